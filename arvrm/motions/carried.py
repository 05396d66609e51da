"""Motions of hands, carried over to the robot by m: for what no demonstration shows.

Where a demonstration of another task does the same, the robot's way of doing it is taken to where the hand did; else
the way is made of the hand's own. The static camera hardly sees how high a hand is, so what it does then is taken to be
level, at the height at which demonstrations touched near there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from arvrm.geometry import half_turn
from arvrm.motions.camera import project
from arvrm.motions.deeds import SAME, alike, deed_of_hand, deed_of_path, yaws_of
from arvrm.motions.hand_map import HandMap
from arvrm.motions.library import Motion
from arvrm.motions.path import ABOVE_M, STEP_M, Path

_NEAR_PX, _WORDS = 12.0, 2.0
"""How far apart in the image counts as much as deeds of one deviation; and how much words do."""
_NEIGHBOURS = 5
"""Touches that tell how high one is."""
_DWELL = 8
"""Steps in which the gripper closes or opens."""
_BEHIND_M, _FURTHER_M, _PUSH_M = 0.05, 0.02, 0.02
"""What is pushed (by more than _PUSH_M) is come at from so far behind, and pushed so much further than the hand did."""
_LONGEST = 400
"""Steps between touch and end of a hand that are followed at most."""


@dataclass(frozen=True)
class Track:
    """A hand that was filmed.

    Attributes:
        keypoints: (N, 21, 2) pixels of 96, at 30 a second, in the view of the robot's static camera.
        touch, end: rows.
        words: (E,) what is said of it, of unit length.
    """

    keypoints: np.ndarray
    touch: int
    end: int
    words: np.ndarray


class Carrier:
    """Makes paths of the robot of what hands did.

    Args:
        fitted: m, with its row of the opening.
        motions: of the robot's demonstrations.
        wider: how much wider filmed hands open than predicted ones, by which m's row of the opening was fitted.
    """

    def __init__(self, fitted: HandMap, motions: Sequence[Motion], wider: float = 1.0) -> None:
        assert fitted.opening is not None
        self.fitted, self.motions = replace(fitted, opening=fitted.opening * wider), list(motions)
        self.deeds = np.array([deed_of_path(fitted.camera, one.path) for one in motions])
        self.words = np.array([one.words for one in motions])
        self.tcp = np.array([one.path.tcp_touch for one in motions])
        self.seen = project(fitted.camera, self.tcp[:, :3])
        yaw = self.tcp[:, 5]
        self.yaw = float(np.arctan2(np.sin(yaw).sum(), np.cos(yaw).sum()))

    def deed(self, track: Track) -> np.ndarray:
        """What a hand does; see `deeds`."""
        return deed_of_hand(self.fitted, track.keypoints, track.touch, track.end)

    def carried(self, track: Track) -> tuple[Path, str]:
        """Return the path, and the id of the demonstration whose way of doing it is taken ("": the hand's own)."""
        same = alike(self.deeds, self.deed(track))
        far = np.linalg.norm(self.seen - self.fitted.acting(track.keypoints[track.touch]), axis=1) / _NEAR_PX
        apart = far + _WORDS * (1 - self.words @ track.words)
        usable = np.flatnonzero(same >= SAME)
        if len(usable):
            best = int(usable[np.argmin(apart[usable] - np.log(same[usable]))])
            return self._moved(self.motions[best].path, track), self.motions[best].id
        height = float(np.median(self.tcp[np.argsort(apart, kind="stable")[:_NEIGHBOURS], 2]))
        return self._own(track, height), ""

    def _moved(self, path: Path, track: Track) -> Path:
        """A demonstration's path, moved to where the hand touched."""
        move = np.zeros(6)
        place = self.fitted.place(track.keypoints[track.touch], path.tcp_touch[2])
        move[:2] = place[:2] - path.tcp_touch[:2]
        turned = yaws_of(self.fitted, track.keypoints[track.touch : track.touch + 1], path.tcp_touch[2])
        if turned is not None:
            move[5] = half_turn(turned[0] - path.tcp_touch[5])
        return replace(path, poses=path.poses + move, tcp_touch=path.tcp_touch + move, tcp_end=path.tcp_end + move)

    def _own(self, track: Track, height: float) -> Path:
        """The hand's own way from touch to end, level, and what must come before it."""
        rows = slice(track.touch, min(track.end, track.touch + _LONGEST) + 1)
        hand = track.keypoints[rows]
        poses = np.zeros((len(hand), 6))
        poses[:, :3] = self.fitted.place(hand, height)
        poses[:, 3:5] = self.tcp[0, 3:5]
        poses[:, 5] = self.yaw
        turned = yaws_of(self.fitted, hand, height)
        if turned is not None:
            poses[:, 5] += half_turn(turned[0] - self.yaw) + turned - turned[0]
        commands = self.fitted.commands(track.keypoints)
        early, late = commands[: track.touch + 1][-3 * _DWELL :], commands[rows.start :][: 3 * _DWELL]
        before, after = float(np.sign(early.mean() + 1e-9)), float(np.sign(late.mean() + 1e-9))
        went = poses[-1, :3] - poses[0, :3]
        length = float(np.linalg.norm(went))
        first = poses[0].copy()
        if before == after and length > _PUSH_M:
            way = went / length
            first[:3] -= _BEHIND_M * way
            poses = np.concatenate([poses, poses[-1:]])
            poses[-1, :3] += _FURTHER_M * way
        above = first.copy()
        above[2] += ABOVE_M
        come = np.concatenate([_line(above, first, ABOVE_M), _line(first, poses[0], _BEHIND_M)])
        dwell = np.repeat(poses[:1], _DWELL if before != after else 0, 0)
        touch = len(come)
        commands = np.concatenate([np.full(touch, before), np.full(len(dwell) + len(poses), after)])
        found = np.concatenate([come, dwell, poses])
        return Path(found, commands, touch, len(found) - 1, poses[0].copy(), found[-1].copy())


def _line(start: np.ndarray, end: np.ndarray, length: float) -> np.ndarray:
    """Poses (n, 6) from one to another, the last left out."""
    steps = max(1, int(np.ceil(length / STEP_M)))
    return start + (end - start) * (np.arange(steps) / steps)[:, None]
