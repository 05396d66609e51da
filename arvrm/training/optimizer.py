"""What an update does to the weights: learning rate, AdamW's groups, and their running average."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from arvrm.training.config import TrainConfig
from arvrm.training.distribution import local

BETAS = (0.9, 0.99)
"""AdamW's."""


def learning_rate(config: TrainConfig, step: int, time_used: float = 0.0) -> float:
    """Return the rate of update `step` (0 is the first): linear warm-up, then a cosine.

    Args:
        time_used: fraction of the time budget; the cosine follows it where it is ahead of the steps.
    """
    warm = min(1.0, (step + 1) / (config.warmup + 1))
    progress = min(1.0, max((step - config.warmup) / max(1, config.steps - config.warmup), time_used, 0.0))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * warm * (config.final_learning_rate + (1 - config.final_learning_rate) * cosine)


def parameter_groups(
    model: nn.Module, weight_decay: float, rate_share: tuple[str, float] | None = None
) -> list[dict[str, Any]]:
    """Return AdamW's groups: matrices decay, vectors and scalars (norms, biases) do not, frozen ones are left out.

    Args:
        rate_share: a prefix of names, and the factor on the learning rate at which those are trained. They come last,
            in groups of their own that note the factor as "rate_share".
    """
    prefix, factor = rate_share or ("", 1.0)
    full, scaled = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (scaled if factor != 1.0 and name.startswith(prefix) else full).append(parameter)
    return [
        {"params": [p for p in part if (p.ndim >= 2) == matrices], "weight_decay": decay, **rate}
        for part, rate in ((full, {}), (scaled, {"rate_share": factor}))
        if part
        for matrices, decay in ((True, weight_decay), (False, 0.0))
    ]


def make_optimizer(
    model: nn.Module, config: TrainConfig, rate_share: tuple[str, float] | None = None
) -> torch.optim.Optimizer:
    """Return the AdamW by which `model` is trained."""
    groups = parameter_groups(model, config.weight_decay, rate_share)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=BETAS, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of all groups, of each times its own "rate_share"."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_share", 1.0)


class Average:
    """Exponential moving average of a model's parameters, kept beside them."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.mean = [parameter.detach().clone() for parameter in self.live]
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        # Early on a shorter average: the first weights are noise.
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(local(self.mean), self._live(), 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages into the model for the time of the block."""
        live, kept = self._live(), [parameter.detach().clone() for parameter in self._live()]
        torch._foreach_copy_(live, local(self.mean))
        try:
            yield
        finally:
            torch._foreach_copy_(live, kept)

    def _live(self) -> list[Tensor]:
        return local([parameter.detach() for parameter in self.live])
