"""Objective of stage 1: the hand at the moments of an instruction."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from arvrm.model.objectives.base import Objective
from arvrm.model.objectives.steps import HandStep


class Places(Objective[HandStep]):
    """Cross-entropy of the acting points' heatmaps, and errors of the hand about them and of its motion."""

    name = "places"
    needs = ("places",)

    def applies(self, network: Any, batch: Any) -> bool:
        return network.places is not None and super().applies(network, batch)

    def value(self, step: HandStep) -> Tensor:
        places, batch = step.network.places, step.batch.get("places")
        assert places is not None and batch is not None
        terms = places.losses(batch)
        return terms["heat"] + terms["shape"] + terms["motion"] + 0.3 * terms["turn"]
