"""The official code's language token."""

from __future__ import annotations

from torch import Tensor, nn


class MeanText(nn.Module):
    """The mean of the text tokens through one linear layer: right for CLIP, whose only token is already a sentence.

    Args:
        features, width: E and d.
        unit: bring the mean to length 1 first, as the official code does.
    """

    def __init__(self, features: int, width: int, unit: bool) -> None:
        super().__init__()
        self.unit = unit
        self.project = nn.Linear(features, width)

    def forward(self, text: Tensor, mask: Tensor) -> Tensor:
        """Return (B, d) for text (B, L, E) and mask (B, L)."""
        weight = mask.to(text.dtype)[..., None]
        mean = (text * weight).sum(1) / weight.sum(1).clamp(min=1.0)
        if self.unit:
            mean = mean / (mean.norm(dim=-1, keepdim=True) + 1e-6)
        return self.project(mean)
