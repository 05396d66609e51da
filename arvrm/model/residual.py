"""The learnt residual of a policy by analogy: how far each step departs from the plan, by what the gripper sees.

Positions are in the frame of the gripper: its camera turns with it, so what lies left in the image is to its left.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arvrm.config import bounded, check_bounds
from arvrm.model.config import VisionConfig
from arvrm.model.conv import ConvEncoder
from arvrm.model.pixels import fit_images, jitter_colours
from arvrm.model.transformer import mlp, start_at_zero

EXECUTE = 4
"""Steps between two plans."""
AHEAD = 8
"""Rows of the plan that it reads."""
ARM = 4
"""Numbers of an action that it corrects: position and yaw."""
STATE_SIZE, PLAN_SIZE = 3, 5 * AHEAD + 11
_SURE = 4.0
"""Logit of the plan's own gripper command."""
_FAR = 0.25
"""An error of an action beyond this counts linearly: a plan so far off is not to be mended."""


@dataclass(frozen=True)
class ResidualConfig:
    """Of the learnt residual.

    Attributes:
        bound: the largest correction of a step, in actions (1: 2 cm, 0.05 rad).
        reach_m, reach_rad: how far all corrections together may lead beside the plan.
        corrects: "all" of position and yaw, or only what the gripper's camera sees as beside, "lateral".
        gripper: it may change the gripper's command too.
        after_touch: it acts after the touch too.
        width: of its head.
        vision: of its encoder of the gripper camera; a conv encoder without words.
    """

    bound: float = bounded(0.5, above=0, most=1)
    reach_m: float = bounded(0.01, least=0, most=1)
    reach_rad: float = bounded(0.1, least=0, most=3.2)
    corrects: Literal["all", "lateral"] = "lateral"
    gripper: bool = False
    after_touch: bool = False
    width: int = bounded(64, least=1, most=65536)
    vision: VisionConfig = field(
        default_factory=lambda: VisionConfig(
            width=16,
            channels=(8, 16),
            depth=0,
            points=8,
            landmarks=0,
            film=False,
            colour_jitter=0.8,
            shift_gripper=0.03,
        )
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.vision.encoder != "conv" or self.vision.film:
            raise ValueError("vision: the residual reads the gripper camera with a conv encoder without film")


class ResidualNet(nn.Module):
    """Corrections (B, EXECUTE, ARM) of a plan's actions, and logits of the gripper's commands.

    Untrained it corrects nothing. Where there is no plan, which it learns by plans left out, it says the action itself.
    """

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ConvEncoder(config.vision, config.vision.gripper_size, 0)
        for unused in (self.encoder.patch.weight, self.encoder.patch.bias, self.encoder.position):
            unused.requires_grad_(False)
        self.head = mlp(config.vision.width + STATE_SIZE + PLAN_SIZE, config.width, config.width, EXECUTE * (ARM + 1))
        start_at_zero(self.head[-1])
        self.register_buffer("height_and_yaw", torch.tensor([0.0, 0.0, 1.0, 1.0]), persistent=False)

    def corrections(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return corrections (B, EXECUTE, ARM) and logits (B, EXECUTE) of an open gripper.

        Args:
            batch: gripper (B, H, W, 3) uint8; state (B, STATE_SIZE) and plan (B, PLAN_SIZE), as `motions.plan` makes
                them; present (B,), 1 with a plan; command (B, EXECUTE), -1 or 1: the plan's, or the last one.
        """
        vision, present = self.config.vision, batch["present"][:, None, None]
        shift = vision.shift_gripper if self.training else 0.0
        images, _ = fit_images(batch["gripper"][:, None], vision.gripper_size, shift)
        if self.training:
            images = jitter_colours(images, len(images), vision.colour_jitter)
        seen = self.encoder(images, None)[0][:, 0]
        # The plan goes straight into the head: pooled with the image it would be lost.
        said = self.head(torch.cat([seen, batch["state"], batch["plan"]], 1)).unflatten(1, (EXECUTE, ARM + 1))
        reach = present * self.config.bound + (1 - present)
        arm = reach * torch.tanh(said[..., :ARM] / reach)
        if self.config.corrects == "lateral":
            arm = torch.where(present * self.height_and_yaw > 0, 0.0, arm)
        change = said[..., ARM] if self.config.gripper else said[..., ARM] * (1 - present[..., 0])
        return arm, _SURE * batch["command"] + change

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Return "loss" and its parts.

        Args:
            batch: that of `corrections`, base (B, EXECUTE, ARM): the plan's own actions, 0 without a plan, and the
                labels: arm (B, EXECUTE, ARM), open (B, EXECUTE), 0 or 1.
        """
        arm, logits = self.corrections(batch)
        loss_arm = F.huber_loss(batch["base"] + arm, batch["arm"], delta=_FAR) / _FAR
        loss_gripper = F.binary_cross_entropy_with_logits(logits, batch["open"])
        return {"loss": loss_arm + 0.2 * loss_gripper, "loss_arm": loss_arm, "loss_gripper": loss_gripper}
