"""The analogy map m: which hand keypoints stand for which robot component."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from arvrm.model.config import ModelConfig


class AnalogyMap(nn.Module):
    """Learnable m (S x K), its use on features, and the linear readout of L_AR."""

    def __init__(self, config: ModelConfig, components: int) -> None:
        super().__init__()
        self.config = config.analogy
        parts, width = components, config.joint_width
        start = torch.zeros if config.analogy.rows == "softmax" else lambda *shape: torch.full(shape, 1.0 / shape[1])
        self.weights = nn.Parameter(start(parts, config.keypoints))
        self.words = None
        if config.analogy.map == "language":
            self.words = nn.Linear(config.width, parts * config.keypoints)
            nn.init.zeros_(self.words.weight)
            nn.init.zeros_(self.words.bias)
        self.readout = nn.Parameter(torch.randn(parts, width) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(parts))

    def map(self, z_l: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        """Return m (..., S, K).

        Args:
            z_l: (..., d), needed by a map that depends on language.
            visible: (..., K) bool: keypoints that are not seen get no weight; with softmax rows the others share it,
                and rows are zero where nothing is seen.
        """
        weights = self.weights
        if self.words is not None:
            if z_l is None:
                raise ValueError("a map that depends on language needs z_l")
            weights = weights + self.words(z_l).unflatten(-1, self.weights.shape).float()
        if self.config.rows == "softmax":
            if visible is not None:
                weights = weights.masked_fill(~visible[..., None, :], -1e4)
            weights = weights.softmax(-1)
        if visible is not None:
            weights = weights * visible[..., None, :]
        return weights

    def transfer(self, f_k: Tensor, f_s: Tensor, visible: Tensor, z_l: Tensor | None) -> Tensor:
        """Return f*_s = (1 - alpha) m f_k + alpha f_s, (..., S, d_k).

        Args:
            f_k: (..., K, d_k) keypoint features of a clip.
            f_s: (..., S, d_k) component features of the robot, broadcastable.
            visible: (..., K) bool.
            z_l: (..., d), broadcastable, or None with a global map.
        """
        alpha = self.config.alpha
        return (1.0 - alpha) * (self.map(z_l, visible).to(f_k.dtype) @ f_k) + alpha * f_s

    def read(self, features: Tensor) -> Tensor:
        """Return the components (..., S) that features f*_s (..., S, d_k) stand for."""
        return (features * self.readout).sum(-1) + self.bias
