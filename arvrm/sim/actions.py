"""Actions and states as numbers: the spaces that the environment offers, and the check of what it is given."""

from __future__ import annotations

import gymnasium
import numpy as np

from arvrm.interface import UserError

ACTION_SPACES = ("relative", "absolute", "joint_relative", "joint_absolute")
JOINT_LOW = np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973])
JOINT_HIGH = np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973])
"""The Panda's limits, to which solutions of the inverse kinematics are clipped."""


class ActionBox(gymnasium.spaces.Box):
    """A Box whose last number is the gripper: exactly -1 (close) or 1 (open), also in samples."""

    def sample(self, *arguments, **keywords):
        action = super().sample(*arguments, **keywords)
        action[-1] = 1 if action[-1] >= 0 else -1
        return action

    def contains(self, x) -> bool:
        return super().contains(x) and abs(x[-1]) == 1


def space_of(kind: str) -> ActionBox:
    """Return the space of one of ACTION_SPACES."""
    if kind == "relative":
        low, high = -np.ones(7), np.ones(7)
    elif kind == "absolute":
        low = np.array([-1.0, -1.0, 0.0, -np.pi, -np.pi, -np.pi, -1.0])
        high = np.array([1.0, 1.0, 1.5, np.pi, np.pi, np.pi, 1.0])
    elif kind == "joint_absolute":
        low, high = np.append(JOINT_LOW, -1.0), np.append(JOINT_HIGH, 1.0)
    else:
        low, high = np.append(np.full(7, -0.2), -1.0), np.append(np.full(7, 0.2), 1.0)
    return ActionBox(low, high, dtype=np.float64)


def checked_action(action, kind: str) -> np.ndarray:
    """Return an action of a space as an array; UserError where it is none."""
    if kind == "absolute" and isinstance(action, tuple) and len(action) == 3:
        action = np.concatenate([np.atleast_1d(part) for part in action])
    try:
        action = np.asarray(action)
        if not np.issubdtype(action.dtype, np.floating):
            action = action.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"action: {action!r} is no array of numbers; give one as action_space says") from error
    sizes = {"relative": (7,), "absolute": (7, 8)}.get(kind, (8,))
    if action.ndim != 1 or action.size not in sizes:
        wanted = " or ".join(f"({size},)" for size in sizes)
        raise UserError(f"action: shape {action.shape}; {kind} actions have shape {wanted}")
    if not np.isfinite(action).all():
        raise UserError(f"action: {action.tolist()} is not finite; check the policy's outputs")
    if action[-1] not in (-1, 1):
        raise UserError(f"action: gripper {float(action[-1])!r} must be -1 (close) or 1 (open); binarise it")
    return action


def checked_state(values, size: int, name: str) -> np.ndarray:
    """Return `size` finite numbers as float64; UserError where they are none."""
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"reset: {name} is no array of numbers; give {size} floats") from error
    if array.shape != (size,):
        raise UserError(f"reset: {name} has shape {array.shape}; give {size} floats")
    if not np.isfinite(array).all():
        raise UserError(f"reset: {name} is not finite; give {size} finite floats")
    return array
