"""What a motion does, in terms in which a hand's and a robot's can be compared."""

from __future__ import annotations

import numpy as np
import torch

from arvrm.model.places import twice_angle
from arvrm.motions.camera import project
from arvrm.motions.hand_map import HandMap, finger_line
from arvrm.motions.path import Path

SIZE = 4
"""A deed: pixels of 96 (u, v) from touch to end, rad turned about the vertical meanwhile, and whether the gripper is
open (1) or closed (-1) at the end."""
SAME = 0.5
"""Deeds more alike than that are the same."""
_UNIT = np.array([4.0, 4.0, 0.5, 1.8])
"""Differences of one deviation; how wide a hand is open is told badly, so that it alone tells no deeds apart."""
_LINE_PX = 2.5
"""Tips nearer to each other tell no turn."""


def deed_of_path(camera: np.ndarray, path: Path) -> np.ndarray:
    """(SIZE,) of a robot's path, through its camera (3, 4)."""
    went = project(camera, path.tcp_end[:3]) - project(camera, path.tcp_touch[:3])
    yaw = np.unwrap(path.poses[path.touch : path.end + 1, 5])
    return np.array([*went, yaw[-1] - yaw[0], path.gripper[path.end]])


def deed_of_hand(fitted: HandMap, keypoints: np.ndarray, touch: int, end: int) -> np.ndarray:
    """(SIZE,) of a hand (N, 21, 2; pixels of 96) that touches and is done at these rows."""
    points = fitted.acting(keypoints)
    yaw = yaws_of(fitted, keypoints[touch : end + 1])
    turned = 0.0 if yaw is None else yaw[-1] - yaw[0]
    return np.array([*(points[end] - points[touch]), turned, fitted.commands(keypoints[end : end + 1])[0]])


def yaws_of(fitted: HandMap, keypoints: np.ndarray, height: float = 0.0) -> np.ndarray | None:
    """How a gripper would be turned (N, rad, unwrapped) that grips as a hand (N, 21, 2; pixels of 96) does.

    Args:
        height: m, at which it is; a camera that is far away hardly cares.

    Returns: None for a pinched hand, which tells no turn.
    """
    line = finger_line(keypoints)
    if np.median(np.linalg.norm(line, axis=-1)) < _LINE_PX:
        return None
    place = fitted.place(keypoints, height)
    return np.unwrap(fitted.angle(twice_angle(torch.from_numpy(line)).numpy(), place), period=np.pi)


def alike(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(...,) 0 to 1: how alike deeds (..., SIZE) are."""
    return np.exp(-0.5 * np.square((np.asarray(one) - np.asarray(other)) / _UNIT).sum(-1))
