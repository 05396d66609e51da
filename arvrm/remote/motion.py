"""CALVIN's actions and those of a convention, into each other.

CALVIN's relative action moves the pose that the controller aims at (the target): position in steps of 0.02 m, Euler
angles in steps of 0.05 rad, by addition. Whatever a convention says is first turned into a row of such targets.
"""

from __future__ import annotations

import numpy as np

from arvrm.geometry import wrap_angle
from arvrm.remote.conventions import ActionConvention
from arvrm.remote.rotations import SIZES, Turn, numbers_of, turn_of
from arvrm.robots.calvin import ARM, EULER_STEP_RAD, POSITION_STEP_M, apply_relative_action

STEPS = np.array([POSITION_STEP_M] * 3 + [EULER_STEP_RAD] * 3)


def width(action: ActionConvention) -> int:
    """Numbers of one action on the wire."""
    assert action.rotation is not None
    return 3 + SIZES[action.rotation] + 1


def to_calvin(action: ActionConvention, rows: np.ndarray, measured: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return CALVIN's relative actions (n, 7) float32.

    Args:
        rows: (n, `width`) float64, finite.
        measured, target: (6,) pose of the tool centre point, and where the controller aims, when they were planned.

    Raises:
        ValueError: a rotation is none.
    """
    moves = np.empty((len(rows), ARM))
    for number, row in enumerate(rows):
        if _added_to_target(action):
            move = _units(action, row)
        else:
            new = _next_target(action, row, measured, target)
            move = np.concatenate([new[:3] - target[:3], wrap_angle(new[3:] - target[3:])])
        moves[number] = move / STEPS
        if action.beyond == "clip":
            moves[number] = np.clip(moves[number], -1.0, 1.0)
        target = apply_relative_action(target, moves[number])
    assert action.gripper is not None
    opened = (rows[:, -1] > action.gripper.middle) == (action.gripper.open > action.gripper.close)
    return np.column_stack([moves, np.where(opened, 1.0, -1.0)]).astype(np.float32)


def from_calvin(action: ActionConvention, rows: np.ndarray, measured: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Invert `to_calvin`: (n, `width`) float64 of CALVIN's relative actions (n, 7)."""
    assert action.gripper is not None and action.rotation is not None
    found = np.empty((len(rows), width(action)))
    for number, row in enumerate(np.asarray(rows, np.float64)):
        new = apply_relative_action(target, row)
        if _added_to_target(action):
            move = row[:ARM] * STEPS
            found[number, :-1] = np.concatenate([move[:3] / action.position_unit, move[3:] / action.rotation_unit])
        elif action.motion == "absolute":
            found[number, :3] = new[:3] / action.position_unit
            found[number, 3:-1] = _scaled(action, _written(action.rotation, new[3:]), 1 / (action.rotation_unit or 1.0))
        else:
            found[number, :-1] = _delta(action, _base(action, measured, target), new)
        found[number, -1] = action.gripper.open if row[ARM] > 0 else action.gripper.close
        target = new
    return found


def _added_to_target(action: ActionConvention) -> bool:
    """Whether it is CALVIN's own motion in other units, which takes no pose to compute."""
    return (action.motion, action.relative_to, action.composed) == ("delta", "target", "added")


def _units(action: ActionConvention, row: np.ndarray) -> np.ndarray:
    return np.concatenate([row[:3] * action.position_unit, row[3:-1] * action.rotation_unit])


def _base(action: ActionConvention, measured: np.ndarray, target: np.ndarray) -> np.ndarray:
    return target[:6] if action.relative_to == "target" else measured[:6]


def _next_target(action: ActionConvention, row: np.ndarray, measured: np.ndarray, target: np.ndarray) -> np.ndarray:
    assert action.rotation is not None
    position = row[:3] * action.position_unit
    numbers = _scaled(action, row[3:-1], action.rotation_unit or 1.0)
    if action.motion == "absolute":
        euler = numbers if action.rotation == "euler_xyz" else turn_of(action.rotation, numbers).as_euler("xyz")
        return np.concatenate([position, euler])
    base = _base(action, measured, target)
    if action.composed == "added":
        return base + np.concatenate([position, numbers])
    now, change = Turn.from_euler("xyz", base[3:]), turn_of(action.rotation, numbers)
    if action.frame == "tool":
        return np.concatenate([base[:3] + now.apply(position), (now * change).as_euler("xyz")])
    return np.concatenate([base[:3] + position, (change * now).as_euler("xyz")])


def _delta(action: ActionConvention, base: np.ndarray, new: np.ndarray) -> np.ndarray:
    assert action.rotation is not None and action.rotation_unit is not None
    move = new[:3] - base[:3]
    if action.composed == "added":
        numbers = wrap_angle(new[3:] - base[3:])
    else:
        now, then = Turn.from_euler("xyz", base[3:]), Turn.from_euler("xyz", new[3:])
        if action.frame == "tool":
            move, change = now.inv().apply(move), now.inv() * then
        else:
            change = then * now.inv()
        numbers = numbers_of(action.rotation, change)
    return np.concatenate([move / action.position_unit, _scaled(action, numbers, 1 / action.rotation_unit)])


def _written(kind, euler: np.ndarray) -> np.ndarray:
    return wrap_angle(euler) if kind == "euler_xyz" else numbers_of(kind, Turn.from_euler("xyz", euler))


def _scaled(action: ActionConvention, numbers: np.ndarray, unit: float) -> np.ndarray:
    return numbers * unit if action.rotation in ("euler_xyz", "axis_angle") else numbers
