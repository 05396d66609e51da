"""What is left of a bent path, from where the gripper is, and what a learnt residual reads of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from arvrm.geometry import angle_difference, wrap_angle
from arvrm.model.residual import AHEAD, ARM, EXECUTE, PLAN_SIZE, STATE_SIZE
from arvrm.motions.path import Bent, Goal, Path, bend
from arvrm.robots.calvin import EULER_STEP_RAD, POSITION_STEP_M, apply_relative_action, relative_action

UNITS = np.array([POSITION_STEP_M] * 3 + [EULER_STEP_RAD] * 3)
"""Metres and radians of an action of 1."""
CORRECTED = [0, 1, 2, 5]
"""Columns of an action that a residual corrects."""
_ROW_M, _GOAL_M, _BESIDE_M, _TURN_RAD, _ROWS = 0.05, 0.1, 0.03, 0.2, 16.0
"""Differences and numbers of rows that count as 1."""


@dataclass(frozen=True)
class Plan:
    """What the policy is about to do.

    Attributes:
        bent: the path; it goes on from the present target.
        cursor: the row to do next.
        goal: (6,) the target's pose at the touch, as the place was seen. What was corrected since has moved the path
            beside it.
        confidence: 0 to 1, that it is there.
    """

    bent: Bent
    cursor: int
    goal: np.ndarray
    confidence: float


@dataclass(frozen=True)
class PlanView:
    """A plan as the residual reads it, in the gripper's frame.

    Attributes:
        state: (STATE_SIZE,); plan: (PLAN_SIZE,), zeros where there is none; present: 1 or 0.
        actions: (EXECUTE, 7) the plan's own, in the world; staying where there is none.
    """

    state: np.ndarray
    plan: np.ndarray
    present: float
    actions: np.ndarray


def whole(path: Path, goal: Goal) -> Bent:
    """All of a path moved to its goal."""
    moved = path.poses[0].copy()
    moved[:3] += goal.touch - path.tcp_touch[:3]
    moved[5] += goal.turn
    return bend(path, moved, goal, 0)


def onward(bent: Bent, cursor: int, target: np.ndarray) -> Bent:
    """Move a path as a whole, so that what is left of it goes on from a target (6,).

    Led back to where it was, it would take back each correction; and a network that learns from states where the way
    to the touch was right would learn no more than not to be led away.

    Args:
        cursor: the row to do next, at least 1.
    """
    offset = np.asarray(target, np.float64)[:6] - bent.poses[cursor - 1]
    offset[3:] = wrap_angle(offset[3:])
    return dataclasses.replace(bent, poses=bent.poses + offset)


def plan_actions(bent: Bent | None, cursor: int, target: np.ndarray, command: float) -> np.ndarray:
    """Return the actions (EXECUTE, 7) that move the target along a path, one row a step; where it is over, none.

    Args:
        command: the gripper's last one.
    """
    actions = []
    for row in range(cursor, cursor + EXECUTE):
        goal = target
        if bent is not None and row < len(bent.poses):
            goal, command = bent.poses[row], float(bent.gripper[row])
        actions.append(relative_action(target, goal, command))
        target = apply_relative_action(target, actions[-1])
    return np.array(actions)


def plan_view(plan: Plan | None, target: np.ndarray, robot_obs: np.ndarray, command: float) -> PlanView:
    """Describe a plan.

    Args:
        target: (6,) the controller's target; robot_obs: (15,); command: the gripper's last one, -1 or 1.
    """
    tcp, turn = robot_obs[:6], to_gripper(robot_obs[5])
    # How far the target is ahead of the gripper would tell which way a demonstration went, which is the answer.
    state = np.array([(tcp[2] - 0.5) / _GOAL_M, robot_obs[6] / 0.08, command])
    actions = plan_actions(plan and plan.bent, plan.cursor if plan else 0, target, command)
    numbers = np.zeros(PLAN_SIZE)
    if plan is not None:
        bent, last = plan.bent, len(plan.bent.poses) - 1
        rows = np.clip(np.arange(plan.cursor, plan.cursor + AHEAD), 0, last)
        ahead = np.zeros((AHEAD, 5))
        ahead[:, :3] = (bent.poses[rows, :3] - target[:3]) @ turn.T / _ROW_M
        ahead[:, 3] = angle_difference(bent.poses[rows, 5], target[5]) / _TURN_RAD
        ahead[:, 4] = bent.gripper[rows]
        left = np.clip(np.array([bent.touch - plan.cursor, last - plan.cursor]) / _ROWS, -2, 2)
        touch = bent.poses[bent.touch]
        leads, seen = turn @ (touch[:3] - target[:3]), turn @ (plan.goal[:3] - touch[:3])
        beside = np.append(seen / _BESIDE_M, angle_difference(plan.goal[5], touch[5]) / _TURN_RAD)
        parts = [ahead.ravel(), left, [plan.confidence], np.clip(leads / _GOAL_M, -3, 3), np.clip(beside, -3, 3), [1.0]]
        numbers = np.concatenate(parts)
    assert len(state) == STATE_SIZE and len(numbers) == PLAN_SIZE
    return PlanView(state.astype(np.float32), numbers.astype(np.float32), float(plan is not None), actions)


def to_gripper(yaw: float) -> np.ndarray:
    """(3, 3) that turns what is in the world's frame into that of a gripper of this yaw (rad)."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])


def arm_in_gripper(actions: np.ndarray, yaw: float) -> np.ndarray:
    """Return the corrected numbers (..., ARM) of actions (..., 7) in the frame of a gripper of this yaw (rad)."""
    arm = np.asarray(actions, np.float64)[..., CORRECTED]
    return np.concatenate([arm[..., :3] @ to_gripper(yaw).T, arm[..., 3:ARM]], -1)


def arm_in_world(arm: np.ndarray, yaw: float) -> np.ndarray:
    """Invert `arm_in_gripper`: numbers (..., ARM) in the world's frame."""
    return np.concatenate([arm[..., :3] @ to_gripper(yaw), arm[..., 3:]], -1)
