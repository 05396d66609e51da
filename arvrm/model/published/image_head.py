"""The official code's image decoder."""

from __future__ import annotations

from torch import Tensor

from arvrm.model.image_head import ImageHead
from arvrm.model.vit import VitEncoder


class SharedImageHead(ImageHead):
    """One for all cameras, which predicts images as the ViT reads them.

    Args:
        encoder: that ViT, which stays the network's.
        others: of `ImageHead`.
    """

    def __init__(self, width: int, encoder: VitEncoder, patch: int, layers: int, heads: int) -> None:
        super().__init__(width, encoder.size, patch, layers, heads, "exact gelu")
        self.as_read = encoder.pixels

    def target(self, images: Tensor) -> Tensor:
        x = self.patches(self.as_read(images).permute(0, 2, 3, 1))
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True).sqrt() + 1e-6)
