"""Configurations that older versions wrote into run.json and checkpoints, as this one reads them."""

from __future__ import annotations

import copy
from typing import Any

from arvrm.interface import UserError

CONSTANT: dict[str, Any] = {"train.beta2": 0.99, "retrieval.exclude_same_group": False}
"""Settings of older versions that are constants now, with the value that they have."""
GONE = ("retrieval.refresh",)
"""Settings of older versions that say nothing of what was trained."""


def upgraded(values: dict[str, Any], place: str) -> dict[str, Any]:
    """Return a run's configuration without settings that are constants now, or gone.

    Raises:
        UserError: one had another value.
    """
    values = copy.deepcopy(values)
    for name in GONE:
        section, _, key = name.partition(".")
        if isinstance(values.get(section), dict):
            values[section].pop(key, None)
    for name, constant in CONSTANT.items():
        section, _, key = name.partition(".")
        inside = values.get(section)
        if isinstance(inside, dict) and key in inside and (value := inside.pop(key)) != constant:
            raise UserError(
                f"{place}: {name} is {value!r}, which is {constant!r} in this version; go on with the one that wrote it"
            )
    return values
