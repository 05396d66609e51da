"""The network of a policy by analogy: stage 1 with its places, m, which was fitted and not trained, and a residual."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from arvrm.config import bounded, check_bounds
from arvrm.interface import KEYPOINTS, Robot, UserError
from arvrm.model.config import ModelConfig
from arvrm.model.keypoint_vlm import KeypointVLM
from arvrm.model.residual import ResidualConfig, ResidualNet
from arvrm.model.upgrade import section_of, upgraded_model

NUMBERS = ("yaw", "deviation", "error")
"""Of m, besides its rows; see `motions.HandMap`."""


@dataclass(frozen=True)
class AnalogyNetConfig:
    """Of a policy by analogy.

    Attributes:
        vlm: of stage 1.
        library: what identifies the checkpoint's library of motions.
        retrieve: weights of the terms by which a motion is chosen, by name; `motions.RetrieveConfig`.
        plain: how much plain words count beside what places make of a sentence.
        opening: of m; see `motions.HandMap`.
        residual: of the learnt residual; null: the policy has none.
    """

    vlm: ModelConfig
    library: str
    retrieve: dict[str, float] = field(default_factory=dict)
    plain: float = bounded(1.0, least=0, most=100)
    opening: float | None = bounded(None, least=-(10**3), most=10**3)
    residual: ResidualConfig | None = None

    __post_init__ = check_bounds


class AnalogyNet(nn.Module):
    """Stage 1, m, and maybe a residual; an `interface.Network` that predicts hands. The motions lie beside it, in the
    checkpoint.

    Raises:
        UserError: stage 1 has no places.
    """

    kind = "analogy"

    def __init__(self, config: AnalogyNetConfig, robot: Robot) -> None:
        super().__init__()
        if not config.vlm.places.enabled:
            raise UserError("motion=analogy: stage 1 was trained without places; train one with places.enabled=true")
        self.config, self._robot = config, robot
        self.vlm = KeypointVLM(config.vlm)
        self.residual = None if config.residual is None else ResidualNet(config.residual)
        for name, shape in (("position", (3, len(KEYPOINTS))), ("camera", (3, 4))):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("numbers", torch.zeros(len(NUMBERS), dtype=torch.float64))

    @property
    def robot(self) -> Robot:
        return self._robot

    def fitted(self) -> dict[str, Any]:
        """Return m's arrays and numbers by name, as `motions.HandMap` takes them."""
        held = dict(self.named_buffers(recurse=False))
        arrays: dict[str, Any] = {name: held[name].cpu().numpy() for name in ("position", "camera")}
        return arrays | dict(zip(NUMBERS, held["numbers"].tolist(), strict=True)) | {"opening": self.config.opening}

    def keep(self, fitted: Mapping[str, Any]) -> None:
        """Take over what `fitted` returns."""
        held = dict(self.named_buffers(recurse=False))
        for name in ("position", "camera"):
            held[name].copy_(torch.from_numpy(np.asarray(fitted[name], np.float64)))
        held["numbers"].copy_(torch.tensor([float(fitted[name]) for name in NUMBERS], dtype=torch.float64))
        self.config = dataclasses.replace(self.config, opening=fitted.get("opening"))

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return self.vlm(batch)

    def image_encoder(self, role: str) -> nn.Module:
        return self.vlm.image_encoder(role)

    def language(self, text: Tensor, text_mask: Tensor) -> Tensor:
        return self.vlm.language(text, text_mask)

    def hands(self) -> tuple[nn.Module, str]:
        return self.vlm, "vlm."

    def self_contained(self) -> AnalogyNetConfig:
        return dataclasses.replace(self.config, vlm=self.vlm.self_contained())


def upgraded_analogy(values: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return settings of `AnalogyNetConfig` as this version writes them; see `upgraded_model`."""
    values = dict(section_of(values, place))
    if "vlm" in values:
        values["vlm"] = upgraded_model(values["vlm"], f"{place}.vlm")
    return values
