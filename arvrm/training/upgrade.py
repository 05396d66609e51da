"""Configurations that older versions wrote into run.json and checkpoints, as this one reads them."""

from __future__ import annotations

import copy
from typing import Any

from arvrm.interface import UserError
from arvrm.windows import upgraded_window

CONSTANT: dict[str, Any] = {"train.beta2": 0.99, "retrieval.exclude_same_group": False}
"""Settings of older versions that are constants now, with the value that they have."""
GONE = ("retrieval.refresh",)
"""Settings of older versions that say nothing of what was trained."""


def upgraded(values: dict[str, Any], stage: str, place: str) -> dict[str, Any]:
    """Return the configuration of a run ("pretrain", "finetune") without settings that are constants now, or gone.

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
    # Stage 1 has a chunk in both places too, and reads neither.
    chunk = values["model"]["chunk"] if stage == "finetune" else None
    return values | {"window": upgraded_window(values["window"], chunk, place)}
