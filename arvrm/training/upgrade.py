"""Configurations that older versions wrote into run.json and checkpoints, as this one reads them."""

from __future__ import annotations

from typing import Any, Literal

from arvrm.model.upgrade import section_of, upgraded_model, without
from arvrm.windows import upgraded_window


def upgraded(values: dict[str, Any], stage: Literal["pretrain", "finetune"], place: str) -> dict[str, Any]:
    """Return the sections of a run's configuration, all or some, as this version writes them.

    Raises:
        UserError: a setting that no longer exists has another value than the one that is left.
    """
    found = dict(values)
    for name in ("train", "retrieval", "model", "window"):
        if name in values:
            section_of(values[name], f"{place}.{name}")
    if "train" in values:
        found["train"] = without(values["train"], {"beta2": 0.99}, f"{place}: train")
    if "retrieval" in values:
        some = {name: value for name, value in values["retrieval"].items() if name != "refresh"}
        found["retrieval"] = without(some, {"exclude_same_group": False}, f"{place}: retrieval")
    if "model" in values:
        found["model"] = upgraded_model(values["model"], f"{place}: model")
    if "window" in values:
        # Stage 1 has a chunk in both places too, and reads neither.
        chunk = values["model"].get("chunk") if stage == "finetune" and "model" in values else None
        found["window"] = upgraded_window(values["window"], chunk, place)
    return found
