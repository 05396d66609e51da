"""From the outputs of image queries to the pixels of a coming frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from arvrm.interface import UserError
from arvrm.model.config import ModelConfig
from arvrm.model.transformer import FullBlock


class ImageHead(nn.Module):
    """MAE-style decoder: image-query outputs and mask tokens to the pixels of a coming frame, normalised per patch."""

    def __init__(self, config: ModelConfig, size: int) -> None:
        super().__init__()
        if size % config.image_patch:
            raise UserError(f"image_patch: {config.image_patch} does not divide the image of {size} pixels")
        self.size, self.patch = size, config.image_patch
        count, width = (size // config.image_patch) ** 2, config.width
        self.embed = nn.Linear(width, width)
        self.mask = nn.Parameter(0.02 * torch.randn(width))
        self.position = nn.Parameter(0.02 * torch.randn(count, width))
        self.official = config.image_decoder == "shared"
        heads, act = config.image_decoder_heads or config.heads, "exact gelu" if self.official else "gelu"
        self.blocks = nn.ModuleList(FullBlock(width, heads, act) for _ in range(config.image_decoder_layers))
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, 3 * config.image_patch**2)

    def forward(self, out: Tensor) -> Tensor:
        """Return patches (N, P, 3 patch^2) for query outputs (N, M + 1, d)."""
        given = self.embed(out)
        x, masked = given, (self.mask + self.position).to(given.dtype)
        for i, block in enumerate(self.blocks):
            # Mask tokens enter alike for all images, and only they are read in the end.
            last = i == len(self.blocks) - 1
            x = block(x, common=masked if i == 0 else None, skip=out.shape[1] if last else 0)
        return self.pixels(self.norm(x)).float()

    def target(self, images: Tensor) -> Tensor:
        """Return (N, P, 3 patch^2) for images (N, size, size, 3): pixels with each patch's mean and scale taken out.

        Images are uint8, or float where they are normalised as a ViT reads them (the shared decoder).
        """
        side, p = self.size // self.patch, self.patch
        x = images.reshape(-1, side, p, side, p, 3).permute(0, 1, 3, 2, 4, 5).reshape(-1, side * side, 3 * p * p)
        if self.official:
            return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True).sqrt() + 1e-6)
        x = x.float() / 255.0
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()
