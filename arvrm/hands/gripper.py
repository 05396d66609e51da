"""A hand as a gripper: how far it is open and where it is, from its 21 points in metres.

The gripper is thumb and index finger; FRAMES says what its frame is, for a left and a right hand alike. y, along which
it opens, is taken from the fingers' outer joints and not from the tips alone, which touch when it is closed.
"""

from __future__ import annotations

import numpy as np

from arvrm.geometry import quaternion_to_matrix
from arvrm.hands.skeleton import FINGER_POINTS, WRIST

GRIPPER = ("opening", "x", "y", "z", "qx", "qy", "qz", "qw")
"""Columns of a gripper: m between the tips; position (m) and orientation (quaternion, w >= 0) of its frame."""
FRAMES = {
    "gripper": "origin midway between thumb and index tip; z (approach) from the wrist to it; y from thumb to index "
    "finger, at right angles to z; x = y cross z",
    "camera": "of the same step: x right, y down, z forward (OpenCV's); grippers are in it",
    "world": "ARKit's, at rest during a recording: y up; camera_pose (x, y, z, qx, qy, qz, qw) is camera to world",
    "units": "m; quaternions (x, y, z, w) with w >= 0",
}
"""What a store with grippers says of its frames in its manifest."""
_OUTER = np.array([FINGER_POINTS["thumb"][1:], FINGER_POINTS["index"][1:]])
GRIPPER_POINTS = (WRIST, *_OUTER.ravel().tolist())
"""The keypoints that a gripper is made of."""
_FLAT = 1e-4
"""Metres below which a direction is none."""


def hand_grippers(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return grippers (..., 8) float64, columns GRIPPER, of hands (..., 21, 3; m), in the frame that these are in.

    Also returns which of them there are, (...) bool: a hand whose points lie in one line has no orientation, and its
    row is zeros but for the quaternion's w, which is 1.
    """
    points = np.asarray(points, dtype=np.float64)
    thumb, index = points[..., _OUTER[0], :], points[..., _OUTER[1], :]
    origin = (thumb[..., -1, :] + index[..., -1, :]) / 2
    z, reach = _unit(origin - points[..., WRIST, :])
    across = index.mean(-2) - thumb.mean(-2)
    y, width = _unit(across - (across * z).sum(-1, keepdims=True) * z)
    there = (reach > _FLAT) & (width > _FLAT)
    rotation = np.stack([np.cross(y, z), y, z], axis=-1)
    rotation[~there] = np.eye(3)
    opening = np.linalg.norm(index[..., -1, :] - thumb[..., -1, :], axis=-1)
    found = np.concatenate([opening[..., None], origin, _quaternions(rotation)], axis=-1)
    found[~there] = (*[0.0] * 7, 1.0)
    return found, there


def poses(matrices: np.ndarray) -> np.ndarray:
    """Return (..., 7) position (m) and quaternion (x, y, z, w; w >= 0) of rigid transforms (..., 4, 4)."""
    matrices = np.asarray(matrices, dtype=np.float64)
    return np.concatenate([matrices[..., :3, 3], _quaternions(matrices[..., :3, :3])], axis=-1)


def in_world(grippers: np.ndarray, camera_pose: np.ndarray) -> np.ndarray:
    """Return grippers (N, H, 8) of a store, in the camera's frame, in the world's: float64.

    Args:
        camera_pose: (N, 7) of the same store, camera to world.
    """
    grippers, camera = np.asarray(grippers, dtype=np.float64), np.asarray(camera_pose, dtype=np.float64)[:, None]
    turn = quaternion_to_matrix(camera[..., 3:])
    moved = np.array(grippers)
    moved[..., 1:4] = np.einsum("nhij,nhj->nhi", np.broadcast_to(turn, (*grippers.shape[:2], 3, 3)), grippers[..., 1:4])
    moved[..., 1:4] += camera[..., :3]
    moved[..., 4:] = _quaternions(turn @ quaternion_to_matrix(grippers[..., 4:]))
    return moved


def _unit(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    length = np.linalg.norm(vectors, axis=-1)
    return vectors / np.maximum(length, _FLAT)[..., None], length


def _quaternions(rotations: np.ndarray) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    flat = Rotation.from_matrix(rotations.reshape(-1, 3, 3)).as_quat(canonical=True)
    return flat.reshape(*rotations.shape[:-2], 4)
