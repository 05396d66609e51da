"""Objectives of retrieved clips: the analogy, and stage 1's loss replayed."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from arvrm.interface import HumanBatch
from arvrm.model.objectives.base import Objective
from arvrm.model.objectives.steps import PolicyStep


class Analogy(Objective[PolicyStep]):
    """L_AR: squared error of the components that the last frame's f* of each clip stand for, summed over clips."""

    name = "analogy"
    needs = ("clips",)

    def applies(self, network: Any, batch: Any) -> bool:
        return network.analogy is not None and super().applies(network, batch)

    def value(self, step: PolicyStep) -> Tensor:
        batch, network, f_s = step.batch, step.network, step.f_s
        last = f_s.shape[1] - 1
        mask = batch["frame_mask"][:, last]
        target = batch["components"][:, last]
        if network.config.analogy.target == "next":
            if batch.get("next_components") is None:
                return f_s.new_zeros(())
            target, mask = batch["next_components"][:, last], mask & batch["next_mask"][:, last]
        assert network.analogy is not None
        transferred, shown = network.transfer(batch, f_s, step.z_l, slice(last, last + 1))
        error = (network.analogy.read(transferred[:, :, 0]).float() - target[:, None]).square().mean(-1)
        counts = shown[:, :, 0] & mask[:, None]
        return torch.where(counts, error, torch.zeros_like(error)).sum() / len(error)


class Replay(Objective[PolicyStep]):
    """Stage 1's loss on retrieved clips."""

    name = "replay"
    needs = ("clips",)

    def value(self, step: PolicyStep) -> Tensor:
        replay = step.batch.get("replay")
        if not replay:
            clips: dict[str, Any] = {**(step.batch["clips"] or {})}
            replay = cast(HumanBatch, {key: x.flatten(0, 1) for key, x in clips.items() if x is not None})
        return step.network.vlm(replay)["loss"]
