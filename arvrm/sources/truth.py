"""When and where the hand or gripper truly touched, from the simulator's state: to judge by, never to learn from.

Training, windows and retrieval do not read what this makes (`meta["judge"]`); a test sees to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arvrm.interface import BLOCKS

JUDGE = "judge"
"""The key of `Episode.meta` under which it is kept."""
PLACING = ("place_in_slider", "place_in_drawer", "stack_block")
"""Tasks about where a block is let go."""
_JOINTS = {"slider": 0, "drawer": 1, "led": 2, "lightbulb": 3}
_APART = 15
"""Contacts with fewer steps between them are one touch: a pushed block slips ahead of the fingers."""
_STILL_STEPS, _STILL_SHARE = 6, 0.01
_LEAVES_M, _MOVES_M = 0.003, 0.0007


def moments_of(
    task: str,
    start: Mapping[str, Any],
    infos: Sequence[Mapping[str, Any]],
    scene_obs: np.ndarray,
    success: int,
) -> dict[str, Any]:
    """Return the rows of the touch and the end.

    The touch is the first contact with the block that the task moves, of the last time that the robot touched it, or
    the row at which it begins to move, if that is earlier; of a fixture the row at which it begins to move for good; of
    a placing the row at which the block is first let go.

    Args:
        start: `task_info()` when the task began.
        infos: `task_info()` of each row's state; N or more.
        scene_obs: (N, 24), as recorded.
        success: the row before which the oracle saw the task done: the end.

    Returns: {"kind": "touch" or "release", "touch": row, "end": row}; without "touch" where the robot touched nothing.
    """
    end = min(success, len(scene_obs) - 1)
    found: dict[str, Any] = {"kind": "release" if task in PLACING else "touch", "end": end}
    joint = next((at for word, at in _JOINTS.items() if task.endswith(word) or f"move_{word}" in task), None)
    if joint is not None and task not in PLACING and task != "push_into_drawer" and not task.startswith("lift"):
        found["touch"] = _sets_moving(scene_obs[: end + 1, joint])
        return found
    block = _block(task, start, infos[end])
    rows = [row for row in range(end + 1) if block and "robot" in _bodies(infos[row], block)]
    if not rows:
        # Pushed by another block, or the contact fell between two steps.
        if block and (moved := _moved(start, infos[: end + 1], block)) is not None:
            found["touch"] = moved
        return found
    if task in PLACING:
        found["touch"] = min(rows[-1] + 1, end)
        return found
    first = len(rows) - 1
    while first > 0 and rows[first] - rows[first - 1] <= _APART:
        first -= 1
    found["touch"] = _set_off([info["blocks"][block]["position"] for info in infos[: rows[first] + 1]])
    return found


def _sets_moving(values: np.ndarray) -> int:
    """The row from which a joint moves as it does at the end: after the last time that it stood still or came back."""
    least = _STILL_SHARE * max(float(np.ptp(values)), 1e-6)
    row = len(values) - 1
    while row > 0 and values[row] == values[row - 1]:
        row -= 1
    way = np.sign(values[row] - values[row - 1]) if row else 0.0
    while row > 0 and way * (values[row] - values[max(0, row - _STILL_STEPS)]) > least:
        if way * (values[row] - values[row - 1]) < -least:
            break
        row -= 1
    return row


def _set_off(places: Sequence[Any]) -> int:
    """The last row, or where the block moves already then, the row after which it began to: a contact that lasts less
    than a step is not seen, its effect is."""
    row, steps = len(places) - 1, np.linalg.norm(np.diff(np.array(places), axis=0), axis=1)
    while row > 0 and steps[max(0, row - 3) : row].max() > _MOVES_M:
        row -= 1
    return row


def _moved(start: Mapping[str, Any], infos: Sequence[Mapping[str, Any]], block: str) -> int | None:
    """The row at which a block leaves its place, or None."""
    places = np.array([info["blocks"][block]["position"] for info in (start, *infos)])
    away = np.flatnonzero(np.linalg.norm(places[1:] - places[0], axis=1) > _LEAVES_M)
    return int(away[0]) if len(away) else None


def _bodies(info: Mapping[str, Any], block: str) -> set[str]:
    return {body for body, _ in info["blocks"][block]["contacts"]}


def _block(task: str, start: Mapping[str, Any], end: Mapping[str, Any]) -> str | None:
    """The block that the task moved."""
    named = next((block for block in BLOCKS if block in task.split("_")), None)
    if named:
        return named
    for block in BLOCKS:
        before, after = _bodies(start, block), _bodies(end, block)
        contacts = end["blocks"][block]["contacts"]
        if (
            (task == "stack_block" and not before & set(BLOCKS) and after and after <= set(BLOCKS))
            or (task == "unstack_block" and before and before <= set(BLOCKS) and not after & set(BLOCKS))
            or (task.startswith("place") and before == {"robot"})
            or (task == "push_into_drawer" and "robot" not in before and ("table", "drawer_link") in contacts
                and ("table", "drawer_link") not in start["blocks"][block]["contacts"])
        ):  # fmt: skip
            return block
    return None


def camera_matrix(camera: Any, size: int) -> list[list[float]]:
    """(3, 4) numbers that take a world point (x, y, z, 1; m) to u w, v w, w in a fixed camera's square image."""
    from arvrm.geometry import intrinsics, look_at

    matrix = (
        np.asarray(intrinsics(camera.fov, size, size)) @ np.asarray(look_at(camera.eye, camera.target, camera.up))[:3]
    )
    return [[round(float(value), 6) for value in row] for row in matrix]
