"""Files of older versions, read as those of today. Everything that a version wrote and this one would not is here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arvrm.interface import UserError

CHECKPOINT_FORMAT = 2


def without(values: Mapping[str, Any], constants: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return `values` without settings that no longer exist.

    Args:
        constants: their names, and the value that is now the only one.

    Raises:
        UserError: one has another value.
    """
    for name, constant in constants.items():
        if name in values and values[name] != constant:
            raise UserError(
                f"{place}.{name}: is {values[name]!r}, and is always {constant!r} now; use an older version"
            )
    return {name: value for name, value in values.items() if name not in constants}


def upgraded_checkpoint(described: dict[str, Any], place: str) -> dict[str, Any]:
    """Return what config.json of a checkpoint would say today, of any format; the settings in "model" excepted.

    Raises:
        UserError: the format is unknown, or something is absent that is needed now.
    """
    version = described.get("format")
    if version == CHECKPOINT_FORMAT:
        return described
    if version != 1:
        raise UserError(f"{place}: format {version!r} is unknown; this version reads 1 to {CHECKPOINT_FORMAT}")
    robot = "calvin" if described.get("kind") == "policy" else None
    metadata = _metadata(described.get("metadata") or {}, f"{place}: metadata")
    return {**described, "format": CHECKPOINT_FORMAT, "robot": robot, "metadata": metadata}


def upgraded_model(values: dict[str, Any], place: str) -> dict[str, Any]:
    """Return settings of `ModelConfig` as this version writes them; those of today stay as they are.

    Raises:
        UserError: a setting that no longer exists has another value than the one that is left.
    """
    return values


def _metadata(values: dict[str, Any], place: str) -> dict[str, Any]:
    """Format 1's metadata as a `CheckpointMetadata` in dictionaries."""
    window, images = values.get("window") or {}, values.get("images") or {}
    kept = ("stage", "execute_steps", "index", "pretrained", "tasks", "episodes", "stores", "imported")
    found = {name: values[name] for name in kept if name in values}
    found |= {name: window[name] for name in ("history", "stride") if name in window}
    if images:
        found["images"] = {f"rgb_{name}": size for name, size in images.items()}
    if "retrieval" in values:
        found["clips"] = values["retrieval"].get("clips")
    found["settings"] = {name: values[name] for name in ("data", "window", "train", "retrieval") if name in values}
    return found
