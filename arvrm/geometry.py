"""Rotations, pose differences and camera projection in NumPy. Euler angles: xyz as PyBullet means them, radians.

PyBullet's Euler xyz are extrinsic: R = Rz(c) Ry(b) Rx(a). Quaternions are (x, y, z, w). All functions broadcast over
leading axes.
"""

from __future__ import annotations

import numpy as np


def euler_to_matrix(euler) -> np.ndarray:
    """Return rotation matrices (..., 3, 3) of Euler angles (..., 3, rad)."""
    euler = np.asarray(euler, dtype=np.float64)
    sines, cosines = np.sin(euler), np.cos(euler)
    (sa, sb, sc), (ca, cb, cc) = ([part[..., i] for i in range(3)] for part in (sines, cosines))
    matrix = np.empty((*euler.shape, 3))  # filled, not stacked: experts call this many times a step
    matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 0, 2] = cc * cb, cc * sb * sa - sc * ca, cc * sb * ca + sc * sa
    matrix[..., 1, 0], matrix[..., 1, 1], matrix[..., 1, 2] = sc * cb, sc * sb * sa + cc * ca, sc * sb * ca - cc * sa
    matrix[..., 2, 0], matrix[..., 2, 1], matrix[..., 2, 2] = -sb, cb * sa, cb * ca
    return matrix


def matrix_to_euler(matrix) -> np.ndarray:
    """Return Euler angles (..., 3, rad) in (-pi, pi], [-pi/2, pi/2], (-pi, pi] of rotation matrices (..., 3, 3)."""
    matrix = np.asarray(matrix, dtype=np.float64)
    horizontal = np.hypot(matrix[..., 0, 0], matrix[..., 1, 0])
    b = np.arctan2(-matrix[..., 2, 0], horizontal)
    locked = horizontal < 1e-9  # gimbal lock: only the sum or difference of the other two is defined
    a = np.where(locked, np.arctan2(-matrix[..., 1, 2], matrix[..., 1, 1]),
                 np.arctan2(matrix[..., 2, 1], matrix[..., 2, 2]))  # fmt: skip
    c = np.where(locked, 0.0, np.arctan2(matrix[..., 1, 0], matrix[..., 0, 0]))
    return np.stack([a, b, c], axis=-1)


def quaternion_to_matrix(quaternion) -> np.ndarray:
    """Return rotation matrices (..., 3, 3) of quaternions (..., 4; x, y, z, w), which need not be normalised."""
    quaternion = np.asarray(quaternion, dtype=np.float64)
    x, y, z, w = np.moveaxis(quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True), -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def euler_to_quaternion(euler) -> np.ndarray:
    """Return quaternions (..., 4; x, y, z, w), w >= 0 or so, of Euler angles (..., 3, rad)."""
    half = np.asarray(euler, dtype=np.float64) / 2
    (sa, sb, sc), (ca, cb, cc) = np.moveaxis(np.sin(half), -1, 0), np.moveaxis(np.cos(half), -1, 0)
    return np.stack(
        [
            sa * cb * cc - ca * sb * sc,
            ca * sb * cc + sa * cb * sc,
            ca * cb * sc - sa * sb * cc,
            ca * cb * cc + sa * sb * sc,
        ],
        axis=-1,
    )


def half_turn(angle: np.ndarray | float) -> np.ndarray:
    """Return angles (rad) in [-pi/2, pi/2): a gripper turned by half a turn is the same."""
    return (np.asarray(angle) + np.pi / 2) % np.pi - np.pi / 2


def wrap_angle(angle) -> np.ndarray:
    """Return angles (any shape, rad) wrapped to [-pi, pi)."""
    return (np.asarray(angle, dtype=np.float64) + np.pi) % (2 * np.pi) - np.pi


def angle_difference(a, b) -> np.ndarray:
    """Return a - b (rad) wrapped to [-pi, pi)."""
    return wrap_angle(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64))


def rotation_angle(first, second) -> np.ndarray:
    """Return the angle (rad, [0, pi]) between rotation matrices (..., 3, 3)."""
    trace = np.einsum("...ij,...ij->...", np.asarray(first), np.asarray(second))
    return np.arccos(np.clip((trace - 1) / 2, -1.0, 1.0))


def look_at(eye, target, up) -> np.ndarray:
    """Return the (4, 4) matrix from world to camera coordinates: x right, y down, z forward (OpenCV's), metres."""
    eye = np.asarray(eye, dtype=np.float64)
    forward = np.asarray(target, dtype=np.float64) - eye
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, np.asarray(up, dtype=np.float64))
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, -rotation @ eye
    return matrix


def intrinsics(fov: float, width: int, height: int) -> np.ndarray:
    """Return the (3, 3) pinhole matrix of a vertical field of view (deg) with square pixels, in pixels."""
    focal = height / 2 / np.tan(np.deg2rad(fov) / 2)
    return np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])


def project(points, world_to_camera, camera_matrix) -> np.ndarray:
    """Project world points (..., 3, m) to (..., 3): u right, v down (pixels, origin at the image's upper left corner),
    and depth along the optical axis (m). Points behind the camera have a depth <= 0 and no meaningful u, v."""
    points = np.asarray(points, dtype=np.float64)
    camera = points @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    depth = camera[..., 2]
    image = camera @ np.asarray(camera_matrix).T
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = image[..., :2] / depth[..., None]
    return np.concatenate([pixels, depth[..., None]], axis=-1)


def unproject(pixels, world_to_camera, camera_matrix) -> np.ndarray:
    """Invert `project`: (..., 3) of u, v (pixels) and depth (m) to world points (..., 3, m)."""
    pixels = np.asarray(pixels, dtype=np.float64)
    homogeneous = np.concatenate([pixels[..., :2], np.ones_like(pixels[..., :1])], axis=-1)
    camera = homogeneous @ np.linalg.inv(camera_matrix).T * pixels[..., 2:]
    return (camera - world_to_camera[:3, 3]) @ world_to_camera[:3, :3]
