"""Objective of the robot's next state."""

from __future__ import annotations

from torch import Tensor

from arvrm.model.objectives.base import Objective, masked_mean
from arvrm.model.objectives.steps import PolicyStep
from arvrm.model.transformer import expect


class NextState(Objective[PolicyStep]):
    """L_state: squared error of the next components, asked with stage 1's query for the next pose."""

    name = "state"
    needs = ("next_components",)
    asks = "state"

    def value(self, step: PolicyStep) -> Tensor:
        batch, network = step.batch, step.network
        expect("next_components", batch["next_components"], *batch["components"].shape)
        expect("next_mask", batch.get("next_mask"), *batch["frame_mask"].shape)
        predicted = network.state_head(step.outputs["state"][:, :, 0]).float()
        if network.config.predict_residual:
            predicted = predicted + batch["components"]
        step.shown["next_components"] = predicted
        error = (predicted - batch["next_components"]).square().mean(-1)
        return masked_mean(error, batch["next_mask"] & batch["frame_mask"])
