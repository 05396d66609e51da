"""A motion as the way of the controller's target, and how it is bent to another place.

Frames and units are the world's of `arvrm.interface`: metres, Euler angles xyz in radians; a path's rows are control
steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from arvrm.geometry import angle_difference, wrap_angle
from arvrm.interface import Robot, UserError
from arvrm.robots.calvin import Calvin, apply_relative_action

STEP_M, STEP_RAD = 0.016, 0.045
"""How far a bent path moves and turns in a step at most: what the controller follows without falling behind."""
FAR_M, ABOVE_M = 0.17, 0.09
"""The approach to a touch begins so far to a side of it, or so high above."""
NEAR_M = 0.05
"""So near to the approach the hand goes there straight."""
SETTLED = 0.75
"""Share of the way to the touch (by length) after which a path that is bent anew lies wholly at its new place."""
_AROUND = 5
"""Steps about the touch in which the gripper may be opening or closing."""
TURNS_RAD, FURTHER = 0.6, 1.7
"""Who turns the gripper so far with something in it, turns that; it is turned so many times as far as was shown."""
TAKEN_UP_M = 0.03
"""What is taken goes up by so much."""
BESIDE_PX, BESIDE_M = 1.5, 0.03
"""A place that was touched in vain is touched so far beside the next time, at most so far."""


@dataclass(frozen=True)
class Path:
    """The way of a demonstration.

    Attributes:
        poses: (N, 6) the controller's target after each step: position (m), Euler xyz (rad).
        gripper: (N,) the gripper's command of each step, -1 (close) or 1 (open).
        touch, end: rows of the moments.
        tcp_touch, tcp_end: (6,) the tool centre point's pose at these moments.
    """

    poses: np.ndarray
    gripper: np.ndarray
    touch: int
    end: int
    tcp_touch: np.ndarray
    tcp_end: np.ndarray


@dataclass(frozen=True)
class Goal:
    """Where a motion is to act.

    Attributes:
        touch: (3,) where the TCP is to be at the touch, m.
        turn: how far the gripper is turned about the vertical from how the motion has it, rad.
        end: (3,) where it is to be at the end; None: as far from the touch as the motion has it.
        confidence: 0 to 1, that it is there.
        unsure: (2, 3) ways, m, by which the touch is off where it is seen a pixel beside; the longer one first. None:
            it is not off.
        quarter: a right angle (rad), signed as the wrist turns it; 0: the gripper cannot be turned.
        yaws: the least and the most (rad) that the gripper may be turned to further than was shown; None: any.
    """

    touch: np.ndarray
    turn: float = 0.0
    end: np.ndarray | None = None
    confidence: float = 1.0
    unsure: np.ndarray | None = None
    quarter: float = 0.0
    yaws: tuple[float, float] | None = None

    def beside(self, way: np.ndarray) -> Goal:
        """Return the goal moved by a way (3,)."""
        return replace(self, touch=self.touch + way, end=None if self.end is None else self.end + way)

    def next(self, tries: int, grips: bool) -> Goal:
        """Return where to act after so many tries here: beside, on each side in turn, and then further. What is to be
        gripped is gripped across each third time, where it was seen."""
        if grips and self.quarter:
            before, third = divmod(tries, 3)
            if third == 2:
                return replace(self, turn=self.turn + self.quarter)
            tries -= before
        if tries == 0 or self.unsure is None:
            return self
        ring, side = divmod(tries - 1, 4)
        way = (1 + ring) * BESIDE_PX * self.unsure[side // 2] * (1 if side % 2 == 0 else -1)
        return self.beside(way * min(1.0, BESIDE_M / max(float(np.linalg.norm(way)), 1e-9)))


def path_of(robot: Robot, arrays: Mapping[str, np.ndarray], touch: int, end: int) -> Path:
    """Make the path of an episode's arrays: robot_obs (N, 15), executed or actions (N, 7), target_pose (N, 6) if any.

    Raises:
        UserError: the robot is not moved by poses of its TCP.
    """
    if not isinstance(robot, Calvin):
        raise UserError(f"motions: robot {robot.name!r} is not moved by poses of its TCP; use motion=learned")
    executed = np.asarray(arrays.get("executed", arrays["actions"]), np.float64)
    tcp = np.asarray(arrays["robot_obs"], np.float64)[:, :6]
    # A robot without a controller's target of its own: the TCP stands for it.
    targets = apply_relative_action(np.asarray(arrays.get("target_pose", tcp), np.float64), executed)
    last = len(targets) - 1
    touch, end = min(max(touch, 0), last), min(max(end, touch, 0), last)
    return Path(targets, executed[:, 6], touch, end, tcp[touch], tcp[end])


@dataclass(frozen=True)
class Bent:
    """A path at its new place.

    Attributes:
        poses: (n, 6), gripper: (n,): as in `Path`; no step is longer than STEP_M and STEP_RAD.
        rows: (n,) the row of the path that each was made from.
        touch: the row of the touch.
    """

    poses: np.ndarray
    gripper: np.ndarray
    rows: np.ndarray
    touch: int


def entry_of(path: Path) -> int:
    """The row at which the last approach to the touch begins: what comes before is the way there, or another try."""
    apart = path.poses[: path.touch + 1, :3] - path.tcp_touch[:3]
    across, above = np.linalg.norm(apart[:, :2], axis=1), apart[:, 2]
    far = np.flatnonzero((across >= FAR_M) | (above >= ABOVE_M))
    if len(far):
        return int(far[-1])
    return int(np.argmax(across / FAR_M + np.maximum(above, 0) / ABOVE_M))


def bend(path: Path, start: np.ndarray, goal: Goal, begin: int | None = None) -> Bent:
    """Carry a path over to where it is to begin and to act.

    The last approach and what follows are moved as a whole, and stretched towards `goal.end` where that is given. What
    is held is turned on past where it was: a demonstration ends where its task is done, and a thing that is gripped
    askew turns less than the gripper, since the fingers turn it back first. The way to the approach is up, across and
    down, as high as the motion itself came.

    Args:
        start: (6,) the controller's present target.
        begin: a row of the approach at which the robot is already: the displacement goes over to that of the touch by
            length of way; None: all of the approach is ahead.
    """
    start = np.asarray(start, np.float64)[:6]
    first = entry_of(path) if begin is None else begin
    poses, touch = path.poses[first:].copy(), max(path.touch - first, 0)
    poses[touch:, 5] += _turned_on(path, goal)[first + touch - path.touch :]
    moved = np.zeros(6)
    moved[:3], moved[5] = goal.touch - path.tcp_touch[:3], goal.turn
    share = np.ones(len(poses))
    at_start = np.zeros(6)
    if begin is not None and touch > 0:
        way = length_of_way(poses[: touch + 1, :3])
        share[: touch + 1] = np.clip(way / max(SETTLED * way[-1], 1e-6), 0, 1)
        at_start = start - poses[0]
        at_start[3:] = wrap_angle(at_start[3:])
    poses += (1 - share)[:, None] * at_start + share[:, None] * moved
    if goal.end is not None and path.end - first > touch:
        way = np.zeros(len(poses))
        way[touch:] = length_of_way(path.poses[first + touch :, :3])
        to_end = goal.end - (path.tcp_end[:3] + moved[:3])
        poses[:, :3] += np.clip(way / max(way[path.end - first], 1e-6), 0, 1)[:, None] * to_end
    rows, gripper = np.arange(first, len(path.poses)), path.gripper[first:]
    if begin is None:
        there = _crossing(start, poses[0], path.poses[: first + 1, 2].max())
        poses, touch = np.concatenate([there, poses]), touch + len(there)
        rows = np.concatenate([np.full(len(there), first), rows])
        gripper = np.concatenate([np.full(len(there), gripper[0]), gripper])
    return _evened(start, poses, gripper, rows, touch)


def _turned_on(path: Path, goal: Goal) -> np.ndarray:
    """How much further (rad) each row from the touch on is turned than it was shown: zeros where nothing is turned."""
    turned = _turned(path)
    held = path.gripper[path.touch :] < 0
    if not held.any() or np.abs(turned[held]).max() < TURNS_RAD:
        return np.zeros(len(turned))
    further = FURTHER * turned
    if goal.yaws is not None:
        least, most = goal.yaws
        at = _about((least + most) / 2, path.poses[path.touch, 5] + goal.turn)
        further = np.clip(at + further, np.minimum(least, at + turned), np.maximum(most, at + turned)) - at
    return further - turned


def _turned(path: Path) -> np.ndarray:
    """How far (rad) each row from the touch on is turned from how the gripper was at the touch."""
    return wrap_angle(path.poses[path.touch :, 5] - path.poses[path.touch, 5])


def _about(middle: float, yaw: float) -> float:
    """The yaw (rad) as what lies within half a turn of a middle one."""
    return float(middle + wrap_angle(yaw - middle))


def yaws_of(paths: Sequence[Path], middle: float) -> tuple[float, float]:
    """The least and the most yaw (rad) from the touch on, not wrapped: a wrist goes as far as it was seen to.

    Args:
        middle: of the yaws at the touch, rad.
    """
    yaws = np.concatenate([_about(middle, path.poses[path.touch, 5]) + _turned(path) for path in paths])
    return float(yaws.min()), float(yaws.max())


def lets_go(path: Path) -> bool:
    """Whether the gripper, closed as it comes to the touch, opens there: it puts down what it holds."""
    return _comes(path, -1.0) and bool((path.gripper[path.touch :][: 2 * _AROUND] > 0).any())


def grips(path: Path) -> bool:
    """Whether the gripper, open as it comes to the touch, closes there."""
    return _comes(path, 1.0) and bool((path.gripper[path.touch + _AROUND :][:1] < 0).any())


def _comes(path: Path, command: float) -> bool:
    """Whether the gripper has a command (-1 or 1) on all of its last approach to the touch."""
    coming = path.gripper[entry_of(path) : max(path.touch - _AROUND, 1)]
    return len(coming) > 0 and bool((coming * command > 0).all())


def takes(path: Path) -> bool:
    """Whether the gripper grips and goes up with what it holds."""
    raised = path.tcp_end[2] - path.tcp_touch[2] > TAKEN_UP_M
    return bool(raised and grips(path) and (path.gripper[path.touch + _AROUND :] < 0).all())


def straight(start: np.ndarray, pose: np.ndarray, gripper: float) -> Bent:
    """The way from a pose (6,) to another: up or down, then across; it touches nothing."""
    start, pose = np.asarray(start, np.float64)[:6], np.asarray(pose, np.float64)
    above = start.copy()
    above[2] = max(start[2], pose[2])
    corners = np.array([above, pose])
    return _evened(start, corners, np.full(2, gripper), np.zeros(2, int), -1)


def _crossing(start: np.ndarray, entry: np.ndarray, height: float) -> np.ndarray:
    """Corners (n, 6) of the way from a pose to another: up, across, down; turning all the way across."""
    if np.linalg.norm(entry[:2] - start[:2]) < NEAR_M:
        return np.zeros((0, 6))
    top = max(height, start[2], entry[2])
    up, over = start.copy(), entry.copy()
    up[2] = over[2] = top
    return np.array([up, over])


def length_of_way(points: np.ndarray) -> np.ndarray:
    """(n,) the length of way to each of (n, 3) points."""
    return np.append(0.0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1)))


def _evened(start: np.ndarray, poses: np.ndarray, gripper: np.ndarray, origin: np.ndarray, touch: int) -> Bent:
    """Put steps in between where a path would leap."""
    found, commands, rows, at, here = [], [], [], 0, start
    for row, (pose, command) in enumerate(zip(poses, gripper, strict=True)):
        move = pose - here
        move[3:] = angle_difference(pose[3:], here[3:])
        parts = max(1, int(np.ceil(np.linalg.norm(move[:3]) / STEP_M)), int(np.ceil(np.abs(move[3:]).max() / STEP_RAD)))
        found += [here + move * (part + 1) / parts for part in range(parts)]
        commands += [command] * parts
        rows += [int(origin[row])] * parts
        here = found[-1]
        at = len(found) - 1 if row == touch else at
    return Bent(np.array(found), np.array(commands), np.array(rows), at)
