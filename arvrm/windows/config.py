"""The shape of a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from arvrm.config import bounded, check_bounds
from arvrm.interface import UserError


@dataclass(frozen=True)
class WindowConfig:
    """Shape of a window.

    Attributes:
        history: T, frames in a window.
        stride: control steps (CALVIN's: 1/30 s, human clips too) between two frames of a window. Episodes at another
            rate are strided by time.
        image_horizon: strides from a frame to the one that image prediction predicts.
        past_success: what a policy learns to do once the task is done, in episodes that say when it was
            (`meta["success_step"]`). "recorded": what was recorded. "hold": to go on as in the last step before;
            windows that end later are left out. Rollouts stop at success, so that a recorded retreat only teaches to
            let go too early of what is nearly done.
    """

    history: int = bounded(2, least=1, most=4096)
    stride: int = bounded(3, least=1, most=10**6)
    image_horizon: int = bounded(1, least=1, most=10**6)
    past_success: Literal["recorded", "hold"] = "recorded"

    __post_init__ = check_bounds


def upgraded_window(values: Mapping[str, Any], chunk: int | None, place: str) -> dict[str, Any]:
    """Return the keys of a `WindowConfig` that a file has, which may be older than this version.

    Args:
        values: as in the file: `window` of a checkpoint's metadata or of a run's configuration.
        chunk: C of the model that the file belongs to; None: a model without actions.
        place: of the file, for messages.

    Raises:
        UserError: it cannot be said in this version: images that were resized by the window's own settings, or
            another chunk than the model's.
    """
    known = dict(values)
    for name in ("image_size", "gripper_size"):
        if known.pop(name, None) is not None:
            raise UserError(f"{place}: window.{name} {values[name]} is no longer supported; train anew without it")
    given = known.pop("chunk", None)
    if given is not None and chunk is not None and given != chunk:
        raise UserError(f"{place}: window.chunk {given} is not the model's {chunk}; the file is damaged, train anew")
    if "image_ahead" in known:
        known["image_horizon"] = known.pop("image_ahead")
    return known
