"""From the outputs of image queries to the pixels of a coming frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from arvrm.interface import UserError
from arvrm.model.transformer import FullBlock


class ImageHead(nn.Module):
    """MAE-style decoder: image-query outputs and mask tokens to the pixels of a coming frame, normalised per patch.

    Args:
        width: d.
        size, patch: pixels of the image's sides and of a patch's.
        layers, heads, act: of its transformer.
    """

    def __init__(self, width: int, size: int, patch: int, layers: int, heads: int, act: str = "gelu") -> None:
        super().__init__()
        if size % patch:
            raise UserError(f"image_patch: {patch} does not divide the image of {size} pixels")
        self.size, self.patch = size, patch
        self.embed = nn.Linear(width, width)
        self.mask = nn.Parameter(0.02 * torch.randn(width))
        self.position = nn.Parameter(0.02 * torch.randn((size // patch) ** 2, width))
        self.blocks = nn.ModuleList(FullBlock(width, heads, act) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, 3 * patch**2)

    def forward(self, out: Tensor) -> Tensor:
        """Return patches (N, P, 3 patch^2) for query outputs (N, M + 1, d)."""
        x = self.embed(out)
        masked = (self.mask + self.position).to(x.dtype)
        for i, block in enumerate(self.blocks):
            # Mask tokens enter alike for all images, and only they are read in the end.
            last = i == len(self.blocks) - 1
            x = block(x, common=masked if i == 0 else None, skip=out.shape[1] if last else 0)
        return self.pixels(self.norm(x)).float()

    def target(self, images: Tensor) -> Tensor:
        """Return (N, P, 3 patch^2) for images (N, H, W, 3) uint8: each patch's mean and scale are taken out."""
        x = self.patches(images).float() / 255.0
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()

    def patches(self, images: Tensor) -> Tensor:
        """Return (N, P, 3 patch^2) for images (N, size, size, 3)."""
        side, p = self.size // self.patch, self.patch
        return images.reshape(-1, side, p, side, p, 3).permute(0, 1, 3, 2, 4, 5).reshape(-1, side * side, 3 * p * p)
