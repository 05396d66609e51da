"""From the outputs of action queries to actions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from arvrm.interface import ActionLayout
from arvrm.model.config import ModelConfig
from arvrm.model.split_batch import draw_rows
from arvrm.model.transformer import activation, mlp


def queries(config: ModelConfig) -> int:
    """Action queries per frame."""
    return config.chunk if config.action_queries == "each" else 1


class RegressionHead(nn.Module):
    """Query outputs to actions: continuous numbers and binary ones' logits, by two layers and a linear readout each."""

    def __init__(self, config: ModelConfig, actions: ActionLayout, act: str = "gelu") -> None:
        super().__init__()
        width, half = config.width, config.width // 2
        self.queries = queries(config)
        self.each = config.chunk // self.queries
        between = activation(act)
        hidden = half if self.each == 1 else width
        self.layers = nn.Sequential(nn.Linear(width, hidden), between, nn.Linear(hidden, hidden), between)
        self.arm = nn.Linear(hidden, actions.continuous * self.each)
        self.gripper = nn.Linear(hidden, actions.binary * self.each) if actions.binary else None

    def forward(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """Return continuous numbers (B, F, C, n) and logits (B, F, C, A - n) for out (B, F, queries, d)."""
        hidden = self.layers(out)
        arm = self.arm(hidden).unflatten(-1, (self.each, -1)).flatten(2, 3)
        if self.gripper is None:
            return arm.float(), arm.new_zeros(*arm.shape[:3], 0).float()
        return arm.float(), self.gripper(hidden).unflatten(-1, (self.each, -1)).flatten(2, 3).float()

    def read(self, out: Tensor) -> tuple[Tensor | None, Tensor]:
        """As `forward`; here for heads of which only a part is worth computing in training."""
        return self(out)


class FlowHead(nn.Module):
    """Flow matching for the n continuous numbers: a velocity field over the whole chunk carries noise to actions.

    Straight paths x_t = (1 - t) noise + t action (Lipman et al., 2023). Binary numbers stay logits.
    """

    start: Tensor

    def __init__(self, config: ModelConfig, actions: ActionLayout, act: str = "gelu") -> None:
        super().__init__()
        width, chunk = config.width, config.chunk
        self.steps, self.chunk = config.flow_steps, chunk
        self.regression = RegressionHead(config, actions, act)
        self.condition = nn.Linear(width, width * (chunk // queries(config)))
        self.place = nn.Parameter(0.02 * torch.randn(chunk, width))
        self.lift = nn.Linear(actions.continuous, width)
        self.clock = mlp(32, width, width)
        self.mix = nn.ModuleList(nn.Linear(chunk, chunk) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
        self.layers = nn.ModuleList(mlp(width, 2 * width, width) for _ in range(2))
        self.velocity = nn.Linear(width, actions.continuous)
        nn.init.zeros_(self.velocity.weight)
        nn.init.zeros_(self.velocity.bias)
        # Every plan starts at the same noise, so that a plan does not depend on what else is in the batch.
        noise = torch.randn(chunk, actions.continuous, generator=torch.Generator().manual_seed(0))
        self.register_buffer("start", noise)

    def field(self, x: Tensor, time: Tensor, conditions: Tensor) -> Tensor:
        """Return the velocity (N, C, n) at x (N, C, n) and time (N,) in [0, 1]; conditions (N, C, d)."""
        rates = torch.exp(torch.linspace(0.0, math.log(100.0), 16, device=x.device))
        angle = time[:, None] * rates
        clock = self.clock(torch.cat([angle.sin(), angle.cos()], dim=-1))
        h = self.lift(x) + conditions + self.place + clock[:, None]
        for i, (mix, layer) in enumerate(zip(self.mix, self.layers, strict=True)):
            h = h + mix(self.norms[2 * i](h).transpose(1, 2)).transpose(1, 2)
            h = h + layer(self.norms[2 * i + 1](h))
        return self.velocity(self.norms[4](h)).float()

    def conditions(self, out: Tensor) -> Tensor:
        """Return (B F, C, d) for out (B, F, queries, d)."""
        width = out.shape[-1]
        return self.condition(out).unflatten(-1, (-1, width)).flatten(2, 3).flatten(0, 1)

    def error(self, out: Tensor, arm: Tensor) -> Tensor:
        """Return the flow-matching error (B, F, C, n), squared, at one random time per chunk, for arm (B, F, C, n)."""
        target = arm.flatten(0, 1)
        rows, each, device = len(target), target.shape[1:], target.device
        noise = draw_rows(lambda n, g: torch.randn(n, *each, generator=g, device=device), rows)
        time = draw_rows(lambda n, g: torch.rand(n, generator=g, device=device), rows)
        x = torch.lerp(noise, target, time[:, None, None])
        velocity = self.field(x, time, self.conditions(out))
        return (velocity - (target - noise)).square().view_as(arm)

    def forward(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """Integrate from the fixed noise: continuous numbers (B, F, C, n), logits (B, F, C, A - n)."""
        conditions = self.conditions(out)
        x = self.start.expand(len(conditions), -1, -1)
        for i in range(self.steps):
            time = torch.full((len(x),), i / self.steps, device=x.device)
            x = x + self.field(x, time, conditions) / self.steps
        return x.unflatten(0, out.shape[:2]), self.regression(out)[1]

    def read(self, out: Tensor) -> tuple[Tensor | None, Tensor]:
        """As `forward`, but in training no continuous numbers: there the integration would be for show."""
        return (None, self.regression(out)[1]) if self.training else self(out)
