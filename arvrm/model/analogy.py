"""The analogy map m: which hand keypoints stand for which robot component."""

from __future__ import annotations

import difflib
from typing import ClassVar

import torch
from torch import Tensor, nn

from arvrm import plugins
from arvrm.interface import UserError
from arvrm.model.config import ModelConfig


class AnalogyMap(nn.Module):
    """Learnable m (S x K), its use on features, and the linear readout of L_AR. Here m is one for all instructions.

    A class of another m overrides `build` and `raw`, and is registered among `MAPS`.
    """

    by_words: ClassVar[bool] = False
    """Whether m depends on the language token."""

    def __init__(self, config: ModelConfig, components: int) -> None:
        super().__init__()
        self.config = config.analogy
        parts, width = components, config.joint_width
        start = torch.zeros if config.analogy.rows == "softmax" else lambda *shape: torch.full(shape, 1.0 / shape[1])
        self.weights = nn.Parameter(start(parts, config.keypoints))
        self.build(config)
        self.readout = nn.Parameter(torch.randn(parts, width) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(parts))

    def build(self, config: ModelConfig) -> None:
        """Make what `raw` needs besides `weights` (S, K)."""

    def raw(self, z_l: Tensor | None) -> Tensor:
        """Return m (..., S, K) for z_l (..., d), before rows are made what `analogy.rows` says."""
        return self.weights

    def map(self, z_l: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        """Return m (..., S, K).

        Args:
            z_l: (..., d), needed by a map that depends on language.
            visible: (..., K) bool: keypoints that are not seen get no weight; with softmax rows the others share it,
                and rows are zero where nothing is seen.
        """
        weights = self.raw(z_l)
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


class LanguageMap(AnalogyMap):
    """m plus a linear function of the language token."""

    by_words = True

    def build(self, config: ModelConfig) -> None:
        self.words = nn.Linear(config.width, self.weights.numel())
        nn.init.zeros_(self.words.weight)
        nn.init.zeros_(self.words.bias)

    def raw(self, z_l: Tensor | None) -> Tensor:
        if z_l is None:
            raise ValueError("a map that depends on language needs z_l")
        return self.weights + self.words(z_l).unflatten(-1, self.weights.shape).float()


MAPS: dict[str, type[AnalogyMap]] = {"global": AnalogyMap, "language": LanguageMap}
"""What `analogy.map` may name, besides what installed packages bring."""
GROUP = "arvrm.maps"
"""Their entry points: name = package.module:Class."""


def analogy_map(config: ModelConfig, components: int) -> AnalogyMap | None:
    """Build the map of S components that a configuration names; None: it has none.

    Raises:
        UserError: there is no map of that name.
    """
    name = config.analogy.map
    if not config.analogy.enabled:
        return None
    installed = plugins.installed(GROUP)
    if name not in MAPS and name in installed:
        MAPS[name] = installed[name].load()
    if name not in MAPS:
        close = difflib.get_close_matches(name, [*MAPS, *installed], n=1)
        nearest = f"did you mean {close[0]!r}?" if close else f"known: {', '.join([*MAPS, *installed])}"
        raise UserError(f"analogy.map: there is no map {name!r}; {nearest}")
    return MAPS[name](config, components)
