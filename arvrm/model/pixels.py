"""Images on their way into the network: resized, and in training shifted and recoloured."""

from __future__ import annotations

import torch
from torch import Tensor

from arvrm.model.split_batch import draw_rows
from arvrm.resize import resize


def fit_images(images: Tensor, size: int, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """Resize and, with `shift`, move each window's images by one random offset; edges are repeated.

    Args:
        images: (B, T, H, W, 3) uint8.
        size: pixels of the result's sides. `arvrm.resize` makes it.
        shift: largest offset as a fraction of the image, drawn from torch's global generator.

    Returns:
        (B * T, size, size, 3) uint8, and (B, 2) float32: what to add to u, v in [-1, 1] of things in the images.
    """
    batch, frames = images.shape[:2]
    images = resize(images.flatten(0, 1), size)
    reach = round(shift * size)
    if reach == 0:
        return images, torch.zeros(batch, 2, device=images.device)
    device = images.device
    offset = draw_rows(lambda n, g: torch.randint(-reach, reach + 1, (n, 2), generator=g, device=device), batch)
    line = torch.arange(size, device=images.device)
    columns = (line - offset[:, :1]).clamp_(0, size - 1).repeat_interleave(frames, 0)
    rows = (line - offset[:, 1:]).clamp_(0, size - 1).repeat_interleave(frames, 0)
    pixel = torch.arange(len(images), device=images.device)[:, None, None] * size * size
    index = (pixel + rows[:, :, None] * size + columns[:, None, :]).flatten()
    moved = images.reshape(-1, 3).index_select(0, index).view(len(images), size, size, 3)
    return moved, offset * (2.0 / size)


def jitter_colours(images: Tensor, windows: int, strength: float) -> Tensor:
    """Scale and shift each colour channel of each window's images at random, as another light or camera would.

    Args:
        images: (B * T, H, W, 3) uint8.
        windows: B; the T images of a window change alike.
        strength: gains are drawn from 1 - strength to 1 + strength, common to the channels and a third of that for
            each, offsets from -128 to 128 times half of it; from torch's global generator.

    Returns:
        (B * T, H, W, 3) uint8.
    """
    if strength == 0.0:
        return images
    frames = len(images) // windows
    device = images.device
    common, single, offset = (
        draw_rows(lambda rows, g, n=n: torch.rand(rows, n, generator=g, device=device), windows) * 2.0 - 1.0
        for n in (1, 3, 3)
    )
    gain = 1.0 + strength * common + strength / 3.0 * single
    # Around the middle, so that brightness and contrast vary together.
    offset = 128.0 * (1.0 - gain) * 0.5 + 64.0 * strength * offset
    levels = torch.arange(256, device=device, dtype=torch.float32)
    table = (gain[..., None] * levels + offset[..., None]).clamp_(0.0, 255.0).to(torch.uint8)  # (B, 3, 256)
    window = torch.arange(windows, device=device).repeat_interleave(frames)
    start = (window[:, None] * 3 + torch.arange(3, device=device)) * 256  # (B * T, 3)
    index = images.to(torch.int32) + start[:, None, None].to(torch.int32)
    return table.flatten().index_select(0, index.flatten()).view(images.shape)
