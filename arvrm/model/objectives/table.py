"""The objectives of each stage, in the order in which their terms are summed; an experiment is a line here.

Whose weight is no field of `LossConfig` is off until `loss.others` gives it one.
"""

from __future__ import annotations

import difflib
from typing import Any

from arvrm import plugins
from arvrm.interface import UserError
from arvrm.model.config import LossConfig
from arvrm.model.objectives.actions import Binary, FlowMatching, Regression
from arvrm.model.objectives.base import Objective
from arvrm.model.objectives.clips import Analogy, Replay
from arvrm.model.objectives.hands import Destination, Poses
from arvrm.model.objectives.images import Images
from arvrm.model.objectives.landmarks import Geometry, Localisation
from arvrm.model.objectives.places import Places
from arvrm.model.objectives.state import NextState
from arvrm.model.objectives.steps import HandStep, PolicyStep

OF_HANDS: list[Objective[HandStep]] = [Poses(), Destination(), Places()]
OF_POLICIES: list[Objective[PolicyStep]] = [
    Regression(),
    FlowMatching(),
    Binary(),
    Geometry(),
    NextState(),
    Analogy(),
    Replay(),
    Localisation(),
    Images(),
]
GROUP = "arvrm.objectives"
"""Entry points by which an installed package adds objectives of policies: name = package.module:Class."""


def register(objective: Any) -> Any:
    """Add an objective of policies: an object, or a class as its decorator. One of the same name is replaced."""
    made = objective() if isinstance(objective, type) else objective
    OF_POLICIES[:] = [known for known in OF_POLICIES if known.name != made.name] + [made]
    return objective


def check_others(loss: LossConfig) -> None:
    """Look for the objectives to which `loss.others` gives weights, also among those that installed packages bring.

    Raises:
        UserError: there is none of a name.
    """
    for name in loss.others:
        known = {objective.name for objective in OF_POLICIES}
        installed = plugins.installed(GROUP)
        if name not in known and name in installed:
            register(installed[name].load())
        elif name not in known:
            close = difflib.get_close_matches(name, sorted({*known, *installed}), n=1)
            nearest = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(f"loss.others: no objective is called {name!r}{nearest}; register it (docs/extending.md)")
