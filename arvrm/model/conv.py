"""The built-in image encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arvrm.model.config import VisionConfig
from arvrm.model.transformer import mlp


class ConvEncoder(nn.Module):
    """Small image encoder, trained from scratch: where things are (soft-argmax points) and what is where (pooled map).

    A fine map (1/4 of the image) gives the points, a coarse one (1/8) context and patches. The language token, if
    `film`, scales and shifts both, so that words choose early what to look for.
    """

    def __init__(self, config: VisionConfig, size: int, language_width: int) -> None:
        super().__init__()
        fine, coarse = config.channels
        self.size, self.width, self.fine, self.coarse = size, config.width, size // 4, size // 8
        self.stem = nn.Conv2d(12, fine, 3, stride=2, padding=1)
        self.refine = nn.Conv2d(fine, fine, 3, padding=1)
        self.down = nn.Conv2d(fine, coarse, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(coarse, coarse, 3, padding=1) for _ in range(config.depth))
        self.heat_fine = nn.Conv2d(fine, config.points, 1)
        self.heat_coarse = nn.Conv2d(coarse, config.points, 1)
        self.patch = nn.Linear(coarse, config.width)
        self.position = nn.Parameter(0.02 * torch.randn((self.coarse // 2) ** 2, config.width))
        self.cls = mlp(2 * config.points + 16 * coarse, config.width, config.width)
        self.film = nn.Linear(language_width, 2 * coarse) if config.film else None
        if self.film is not None:
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)
        line = (torch.arange(self.fine, dtype=torch.float32) + 0.5) * (2.0 / self.fine) - 1.0
        grid = torch.stack([line.repeat(self.fine), line.repeat_interleave(self.fine)])
        self.register_buffer("grid", grid, persistent=False)

    @property
    def patches(self) -> int:
        """P."""
        return (self.coarse // 2) ** 2

    def forward(self, images: Tensor, language: Tensor | None) -> tuple[Tensor, Tensor]:
        """Encode images.

        Args:
            images: (N, size, size, 3) uint8.
            language: (N, language_width), or None without `film`.

        Returns:
            features (N, 1 + P, D): CLS, then patches by rows; heatmaps (N, size / 4, size / 4, points), logits.
        """
        half = self.size // 2
        x = images.view(-1, half, 2, half, 2, 3).permute(0, 1, 3, 2, 4, 5).reshape(-1, half, half, 12)
        kind = images.device.type
        lower = torch.is_autocast_enabled(kind)
        x = x.to(torch.get_autocast_dtype(kind) if lower else self.stem.weight.dtype).permute(0, 3, 1, 2)
        # Scaling 0..255 to -2..2 in the weights saves two passes over the largest tensor; bf16 holds 0..255 exactly.
        weight = self.stem.weight / 64.0
        assert self.stem.bias is not None
        bias = self.stem.bias - 128.0 * weight.sum((1, 2, 3))
        x = F.conv2d(x, weight, bias, stride=2, padding=1).relu_()
        x = (x + self.refine(x)).relu_()
        y = self.down(x).relu_()
        if self.film is not None:
            assert language is not None
            scale, offset = self.film(language).to(y.dtype)[..., None, None].chunk(2, dim=1)
            y = torch.addcmul(y + offset, y, scale)
        for block in self.blocks:
            y = (y + block(y)).relu_()
        logits = self.heat_fine(x) + F.interpolate(self.heat_coarse(y), scale_factor=2, mode="nearest")
        logits = logits.permute(0, 2, 3, 1)
        pooled = F.avg_pool2d(y, self.coarse // 4).permute(0, 2, 3, 1).flatten(1)
        patches = self.patch(F.avg_pool2d(y, 2).permute(0, 2, 3, 1).flatten(1, 2)) + self.position
        # Coordinates need more digits than bf16 has.
        with torch.autocast(kind, enabled=False):
            weights = logits.flatten(1, 2).softmax(1, dtype=torch.float32)
            points = (self.grid @ weights).flatten(1)
        cls = self.cls(torch.cat([points.to(pooled.dtype), pooled], dim=1))
        return torch.cat([cls[:, None], patches.to(cls.dtype)], dim=1), logits
