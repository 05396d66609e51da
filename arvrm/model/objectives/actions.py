"""Objectives of a policy's actions."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from arvrm.model.heads import FlowHead
from arvrm.model.objectives.base import Objective, masked_mean
from arvrm.model.objectives.steps import PolicyStep


class Regression(Objective[PolicyStep]):
    """Smooth L1 of the continuous numbers."""

    name = "arm"

    def applies(self, network: Any, batch: Any) -> bool:
        return network.config.head == "regression"

    def value(self, step: PolicyStep) -> Tensor:
        target, mask = step.chunks
        predicted, _ = step.readout
        assert predicted is not None  # only a flow head has none
        error = F.smooth_l1_loss(predicted, target[..., : predicted.shape[-1]], reduction="none")
        return masked_mean(error.mean(-1), mask)


class FlowMatching(Objective[PolicyStep]):
    """Squared error of the velocity that carries noise to the continuous numbers."""

    name = "arm"

    def applies(self, network: Any, batch: Any) -> bool:
        return network.config.head == "flow"

    def value(self, step: PolicyStep) -> Tensor:
        target, mask = step.chunks
        head = step.network.head
        assert isinstance(head, FlowHead)
        error = head.error(step.outputs["action"], target[..., : step.network.robot.actions.continuous])
        return masked_mean(error.mean(-1), mask)


class Binary(Objective[PolicyStep]):
    """Cross-entropy of the binary numbers, such as a gripper's."""

    name = "gripper"

    def applies(self, network: Any, batch: Any) -> bool:
        return network.robot.actions.binary > 0

    def value(self, step: PolicyStep) -> Tensor:
        target, mask = step.chunks
        _, logits = step.readout
        on = (target[..., -logits.shape[-1] :] > 0).to(logits.dtype)
        return masked_mean(F.binary_cross_entropy_with_logits(logits, on, reduction="none").mean(-1), mask)
