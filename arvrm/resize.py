"""The one resize of images that a network reads, in training (when a store is decoded) and in a rollout."""

from __future__ import annotations

import torch
from torch import Tensor


def resize(images: Tensor, size: int) -> Tensor:
    """Return images (N, size, size, 3) uint8 of images (N, H, W, 3) uint8; those of that size are returned themselves.

    Bilinear with anti-aliasing, rounded to the nearest level.
    """
    if images.shape[1:3] == (size, size):
        return images
    smooth = torch.nn.functional.interpolate(
        images.permute(0, 3, 1, 2).float(), (size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return smooth.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
