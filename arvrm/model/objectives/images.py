"""Objective of the coming images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from arvrm.model.objectives.base import Objective, masked_mean
from arvrm.model.objectives.steps import PolicyStep
from arvrm.model.segments import windows_of


class Images(Objective[PolicyStep]):
    """Squared error of the predicted frames of all cameras."""

    name = "image"
    needs = ("next_image_mask",)
    asks = "image"

    def applies(self, network: Any, batch: Any) -> bool:
        return network.config.fwd_pred and super().applies(network, batch)

    def value(self, step: PolicyStep) -> Tensor:
        network, out = step.network, step.outputs["image"]
        mask = step.batch["next_image_mask"] & step.batch["frame_mask"]
        total = out.new_zeros((), dtype=torch.float32)
        for i, role in enumerate(network.roles):
            head, images = network.image_head(i), step.encoded[f"{role}_later"]
            # A frame is predicted by every window that contains the one before it: its target is made once.
            target = head.target(images.flatten(0, 1)).unflatten(0, tuple(images.shape[:2]))
            asked = out.unflatten(2, (len(network.roles), -1))[:, :, i]
            predicted = head(asked.flatten(0, 1)).unflatten(0, tuple(out.shape[:2]))
            error = F.mse_loss(predicted, windows_of(target, out.shape[1]), reduction="none")
            total = total + masked_mean(error.mean((-1, -2)), mask)
        return total
