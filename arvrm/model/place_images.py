"""Images on their way into `PlaceNet`: in training moved, recoloured and partly hidden."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from arvrm.model.config import PlacesConfig
from arvrm.model.pixels import jitter_colours
from arvrm.model.split_batch import draw_rows


def varied(images: Tensor, points: Tensor, config: PlacesConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Change images as other cameras, lights and arms would; what is random comes from torch's global generator.

    Args:
        images: (B, S, S, 3) uint8.
        points: (B, ..., 2), u and v in [-1, 1] of things in them.

    Returns:
        images (B, 3, S, S) float32, 0 to 255; the points in these; (B, 2, 2), how ways between points changed.
    """
    device, batch = images.device, len(images)
    images = jitter_colours(images, batch, config.colour_jitter)
    pixels = images.permute(0, 3, 1, 2).float()
    if config.occluders > 0:
        pixels = _with_limbs(pixels, config.occluders)
    drawn = draw_rows(lambda n, g: torch.rand(n, 4, generator=g, device=device), batch) * 2 - 1
    size = torch.exp(drawn[:, 0] * math.log1p(config.scale))
    turn = drawn[:, 1] * math.radians(config.turn)
    shift = drawn[:, 2:] * 2 * config.shift
    cosine, sine = size * turn.cos(), size * turn.sin()
    way = torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], -2)
    back = torch.linalg.inv(way)
    grid = F.affine_grid(torch.cat([back, -(back @ shift[..., None])], -1), list(pixels.shape), align_corners=False)
    pixels = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    flat = points.flatten(1, -2)
    moved = flat @ way.transpose(1, 2) + shift[:, None]
    return pixels, moved.reshape(points.shape), way


def _with_limbs(pixels: Tensor, share: float) -> Tensor:
    """Lay a limb of two bones, which comes in from an edge, over a share of images (B, 3, S, S)."""
    batch, size, device = len(pixels), pixels.shape[-1], pixels.device
    drawn = draw_rows(lambda n, g: torch.rand(n, 14, generator=g, device=device), batch)
    # From a point on a circle around the image, to an elbow, to an end somewhere inside.
    angle = drawn[:, 0] * 2 * math.pi
    root = 1.3 * torch.stack([angle.cos(), angle.sin()], -1)
    end = drawn[:, 1:3] * 1.7 - 0.85
    elbow = (root + end) / 2 + (drawn[:, 3:5] - 0.5) * 1.2
    width = 0.06 + 0.14 * drawn[:, 5]
    # How near a bone is changes slowly: half the pixels tell it, at a quarter of the time.
    half = size // 2
    line = (torch.arange(half, device=device) + 0.5) * (2.0 / half) - 1
    place = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(1, -1, 2)
    near = torch.minimum(_distance(place, root, elbow), _distance(place, elbow, end)) / width[:, None]
    near = F.interpolate(near.view(batch, 1, half, half), (size, size), mode="bilinear").flatten(1)
    # Grey or white as often as coloured; rounded by its own shade.
    grey = drawn[:, 6:7].expand(-1, 3)
    colour = 255 * torch.where(drawn[:, 7:8] < 0.5, 0.35 + 0.65 * grey, drawn[:, 8:11])
    shade = 1 - (0.2 + 0.5 * drawn[:, 11:12]) * near.clamp(max=1).square()
    limb = (colour[..., None] * shade[:, None]).unflatten(-1, (size, size))
    over = ((near < 1) & (drawn[:, 12:13] < share)).view(batch, 1, size, size)
    return torch.where(over, limb, pixels)


def _distance(place: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """(B, n) from places (1, n, 2) to the line from a (B, 2) to b (B, 2)."""
    way = (b - a)[:, None]
    along = (((place - a[:, None]) * way).sum(-1) / way.square().sum(-1).clamp(min=1e-6)).clamp(0, 1)
    return (place - a[:, None] - along[..., None] * way).norm(dim=-1)
