"""What an objective is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from arvrm.model.config import ModelConfig
from arvrm.model.split_batch import divisor

Step = TypeVar("Step")
"""What a forward pass has computed, for objectives to read."""


class Objective(ABC, Generic[Step]):
    """One term of a loss. Objects of it keep nothing: one serves all networks.

    Attributes:
        name: its setting in `config.loss`, a weight, and, as "loss_" + name, its value among what a network returns.
        needs: keys that a batch must have for it; without them it is left out.
        asks: a kind of query that must be asked of every frame for it; None: it needs none of its own.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    asks: ClassVar[str | None] = None

    def weight(self, config: ModelConfig) -> float:
        """Its weight; at 0 it is left out, and so is the work that only it needs."""
        return float(getattr(config.loss, self.name, config.loss.others.get(self.name, 0.0)))

    def applies(self, network: Any, batch: Mapping[str, Any]) -> bool:
        """Whether it is a term of this network's loss on this batch."""
        return self.weight(network.config) > 0 and all(batch.get(key) is not None for key in self.needs)

    @abstractmethod
    def value(self, step: Step) -> Tensor:
        """Return the term, a scalar, before weighting."""


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask`, over all shares of the batch; what is masked may even be infinite."""
    return torch.where(mask, values, torch.zeros_like(values)).sum() / divisor(mask.sum())
