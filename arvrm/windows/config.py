"""The shape of a window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class WindowConfig:
    """Shape of a window.

    Attributes:
        history: T, frames in a window.
        stride: control steps (1/30 s) between two frames of a window. Episodes at another rate are strided by time.
        chunk: C, actions predicted from each frame (robot windows).
        image_ahead: strides from a frame to the one that image prediction foresees.
        past_success: what a policy learns to do once the task is done, in episodes that say when it was
            (`meta["success_step"]`). "recorded": what was recorded. "hold": to go on as in the last step before;
            windows that end later are left out. Rollouts stop at success, so that a recorded retreat only teaches to
            let go too early of what is nearly done.
        image_size, gripper_size: pixels to which stored images of the static and the gripper camera are reduced when
            they are decoded; None: as stored.
    """

    history: int = 2
    stride: int = 3
    chunk: int = 10
    image_ahead: int = 1
    past_success: Literal["recorded", "hold"] = "recorded"
    image_size: int | None = None
    gripper_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("history", "stride", "chunk", "image_ahead"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is too small; give at least 1")
