"""The kinds of networks that checkpoints name; a further trained policy is one entry here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from arvrm.interface import Robot, UserError
from arvrm.model.analogy_net import AnalogyNet, AnalogyNetConfig, upgraded_analogy
from arvrm.model.config import ModelConfig
from arvrm.model.keypoint_vlm import KeypointVLM
from arvrm.model.policy_net import PolicyNet
from arvrm.model.upgrade import upgraded_model


@dataclass(frozen=True)
class Kind:
    """One kind of network.

    Attributes:
        build: makes one, untrained, of its configuration; an `interface.Network`.
        config: the frozen dataclass of its settings.
        upgrade: turns settings as older versions wrote them, at a place for messages, into those of `config`.
        plans: it is an `interface.PolicyNetwork`, built for a robot; else it is of hands alone.
    """

    build: Callable[[Any, Robot | None], nn.Module]
    config: type
    upgrade: Callable[[dict[str, Any], str], dict[str, Any]] = lambda values, place: values
    plans: bool = True


def _policy(config: ModelConfig, robot: Robot | None) -> PolicyNet:
    assert robot is not None
    return PolicyNet(config, robot)


def _analogy(config: AnalogyNetConfig, robot: Robot | None) -> AnalogyNet:
    assert robot is not None
    return AnalogyNet(config, robot)


KINDS: dict[str, Kind] = {
    "keypoint_vlm": Kind(lambda config, robot: KeypointVLM(config), ModelConfig, upgraded_model, plans=False),
    "policy": Kind(_policy, ModelConfig, upgraded_model),
    "analogy": Kind(_analogy, AnalogyNetConfig, upgraded_analogy),
}


def kind_of(name: Any, place: str) -> Kind:
    """Return the kind of this name.

    Raises:
        UserError: there is none; says what was read at `place`.
    """
    if name not in KINDS:
        raise UserError(f"{place}: kind {name!r} is unknown; expected one of {', '.join(KINDS)}")
    return KINDS[name]
