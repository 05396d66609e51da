"""What the forward pass of each stage has computed, for objectives to read."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from arvrm.interface import HumanBatch, RobotBatch
from arvrm.model.transformer import expect

if TYPE_CHECKING:
    from arvrm.model.keypoint_vlm import KeypointVLM
    from arvrm.model.policy_net import PolicyNet


@dataclass
class HandStep:
    """Stage 1's.

    Attributes:
        network, batch: whose, on what.
        predicted: (B, T, n, K, 3), at each frame the poses of the `horizon` frames after it.
        truth: (B, T + N, K, 3), the window's poses and those known of the frames after it; where `known` (B, T + N, K).
        heatmaps: (B, T, h, w, 1), that of the destination; None without.
    """

    network: KeypointVLM
    batch: HumanBatch
    predicted: Tensor
    truth: Tensor
    known: Tensor
    heatmaps: Tensor | None


@dataclass
class PolicyStep:
    """Stage 2's.

    Attributes:
        network, batch: whose, on what.
        z_l: (B, d), the language token.
        f_s: (B, T, S, d_k), features of the robot's components.
        encoded: what `PolicyNet.encode` gives.
        outputs: kind of query -> the transformer's outputs (B, frames, queries, d); with `loss.geometry` "geometry"
            (B, T, N, 3) too.
        shown: predictions that the network returns beside its loss; an objective may add its own.
    """

    network: PolicyNet
    batch: RobotBatch
    z_l: Tensor
    f_s: Tensor
    encoded: dict[str, Tensor]
    outputs: dict[str, Tensor]
    shown: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def chunks(self) -> tuple[Tensor, Tensor]:
        """Actions (B, F, C, A) to learn from the frames that predict any, the last F, and which count (B, F, C)."""
        batch, out = self.batch, self.outputs["action"]
        frames, chunk = batch["frame_mask"].shape[1], self.network.config.chunk
        expect("actions", batch.get("actions"), len(out), frames, chunk, self.network.robot.actions.size)
        expect("action_mask", batch.get("action_mask"), len(out), frames, chunk)
        first = frames - out.shape[1]
        return batch["actions"][:, first:], (batch["action_mask"] & batch["frame_mask"][..., None])[:, first:]

    @cached_property
    def readout(self) -> tuple[Tensor | None, Tensor]:
        """Continuous numbers (B, F, C, n) and binary ones' logits (B, F, C, A - n); see the head's `read`."""
        return self.network.head.read(self.outputs["action"])
