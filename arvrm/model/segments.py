"""Segments: runs of frames that several windows of a batch share, so that each frame is encoded once."""

from __future__ import annotations

from torch import Tensor

from arvrm.interface import RobotBatch, UserError


def windows_of(values: Tensor, frames: int | None) -> Tensor:
    """Return all runs of `frames` consecutive frames: (S * (F - frames + 1), frames, ...) of `values` (S, F, ...).

    They are views where memory allows it: frames that runs share are not copied. None: `values` are windows already.
    """
    if frames is None or values.shape[1] == frames:
        return values
    return values.unfold(1, frames, 1).movedim(-1, 2).flatten(0, 1)


def check_segments(batch: RobotBatch) -> tuple[int, int]:
    """Return windows a segment and frames to encode of each.

    Raises:
        UserError: the segments' shapes do not fit the windows.
    """
    segments, frame_mask = batch["segments"], batch["frame_mask"]
    some = segments["static_features"] if "static_features" in segments else segments["static"]
    windows, frames = frame_mask.shape
    each, rest = divmod(windows, len(some))
    count = each + frames - 1
    if rest or some.shape[1] < count:
        raise UserError(
            f"segments: {len(some)} of {some.shape[1]} frames cannot hold {windows} windows of {frames}; give "
            f"{count} frames for each"
        )
    return each, count
