"""Rotations as the numbers that policies write them in. Euler angles: xyz as in `arvrm.geometry`, radians."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation as Turn

from arvrm.remote.conventions import Rotation

SIZES: dict[Rotation, int] = {
    "euler_xyz": 3,
    "axis_angle": 3,
    "quaternion_xyzw": 4,
    "quaternion_wxyz": 4,
    "rotation_6d_columns": 6,
    "rotation_6d_rows": 6,
}
"""Numbers of each. 6d: the matrix's first two columns, one after the other, or the three rows of both."""


def turn_of(kind: Rotation, numbers: np.ndarray) -> Turn:
    """Return the rotation that numbers (n,) write.

    Raises:
        ValueError: they write none (a quaternion of zeros).
    """
    numbers = np.asarray(numbers, np.float64)
    if kind == "euler_xyz":
        return Turn.from_euler("xyz", numbers)
    if kind == "axis_angle":
        return Turn.from_rotvec(numbers)
    if kind == "quaternion_xyzw":
        return Turn.from_quat(numbers)
    if kind == "quaternion_wxyz":
        return Turn.from_quat(numbers[[1, 2, 3, 0]])
    first, second = numbers.reshape(2, 3) if kind == "rotation_6d_columns" else numbers.reshape(3, 2).T
    length = np.linalg.norm(first)
    if length < 1e-9:
        raise ValueError(f"{kind} whose first column is zero is no rotation")
    first = first / length
    second = second - first * (first @ second)
    length = np.linalg.norm(second)
    if length < 1e-9:
        raise ValueError(f"{kind} whose columns are parallel is no rotation")
    second = second / length
    return Turn.from_matrix(np.stack([first, second, np.cross(first, second)], axis=1))


def numbers_of(kind: Rotation, turn: Turn) -> np.ndarray:
    """Return a rotation's numbers (n,) float64."""
    if kind == "euler_xyz":
        return turn.as_euler("xyz")
    if kind == "axis_angle":
        return turn.as_rotvec()
    if kind == "quaternion_xyzw":
        return turn.as_quat(canonical=True)
    if kind == "quaternion_wxyz":
        return turn.as_quat(canonical=True)[[3, 0, 1, 2]]
    columns = turn.as_matrix()[:, :2]
    return columns.T.ravel() if kind == "rotation_6d_columns" else columns.ravel()
