"""Heatmaps: the point that one marks, and what it costs to mark another."""

from __future__ import annotations

import torch
from torch import Tensor


def centres(logits: Tensor) -> Tensor:
    """Soft-argmax of heatmaps: (..., h, w, points) logits to (..., points, 2) float32, u and v in [-1, 1]."""
    height, width = logits.shape[-3:-1]
    across, down = ((torch.arange(n, device=logits.device) + 0.5) * (2.0 / n) - 1.0 for n in (width, height))
    grid = torch.stack([across.repeat(height), down.repeat_interleave(width)], dim=-1)
    weights = logits.flatten(-3, -2).softmax(-2, dtype=torch.float32)
    # Coordinates need more digits than bf16 has.
    with torch.autocast(logits.device.type, enabled=False):
        return weights.transpose(-1, -2) @ grid


def splat_cross_entropy(logits: Tensor, where: Tensor) -> Tensor:
    """Cross-entropy of heatmaps against points spread bilinearly over their four nearest cells.

    The best heatmap's soft-argmax is then the point itself, to a fraction of a cell.

    Args:
        logits: (..., h, w).
        where: (..., 2), u and v in [-1, 1]; outer values are moved to the edge cells.

    Returns:
        (...) float32.
    """
    height, width = logits.shape[-2:]
    # Axis by axis, with sizes as plain numbers: a tensor of them would be copied to the device at every step.
    axes = list(zip(where.unbind(-1), (width, height), strict=True))
    cell = torch.stack([((x + 1.0) * (n / 2.0) - 0.5).clamp(0.0, n - 1) for x, n in axes], dim=-1)
    low = torch.stack([x.floor().clamp(max=n - 2) for x, (_, n) in zip(cell.unbind(-1), axes, strict=True)], dim=-1)
    part = cell - low
    low = low.long()
    log_probability = logits.float().flatten(-2).log_softmax(-1)
    total = torch.zeros(logits.shape[:-2], device=logits.device)
    for du in (0, 1):
        for dv in (0, 1):
            weight = (part[..., 0] if du else 1 - part[..., 0]) * (part[..., 1] if dv else 1 - part[..., 1])
            index = (low[..., 1] + dv) * width + low[..., 0] + du
            total = total - weight * log_probability.gather(-1, index[..., None])[..., 0]
    return total
