"""From pixels to places: the static camera, calibrated, or fitted from where the robot was and where that was seen."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import numpy as np

from arvrm.files import read_json
from arvrm.interface import UserError

CALVIN = "calvin"
LEAST_PAIRS = 8
"""Pairs of point and pixel from which a camera is fitted at least."""
_BEND = 0.5
"""How strongly (1/m, a prior's deviation) a fitted camera may make far things smaller, unless the pairs say so."""


def project(camera: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Pixels (..., 2) of world points (..., 3, m) in a camera (3, 4)."""
    seen = np.asarray(points) @ camera[:, :3].T + camera[:, 3]
    return seen[..., :2] / seen[..., 2:]


def on_plane(camera: np.ndarray, pixels: np.ndarray, value: np.ndarray | float, axis: int = 2) -> np.ndarray:
    """World points (..., 3, m) that are seen at `pixels` (..., 2) and have `value` (m) on one of the world's axes."""
    pixels = np.asarray(pixels, np.float64)
    free = [k for k in range(3) if k != axis]
    value = np.broadcast_to(np.asarray(value, np.float64), pixels.shape[:-1])
    rows = camera[:2] - pixels[..., None] * camera[2]
    known = -(rows[..., axis] * value[..., None] + rows[..., 3])
    found = np.linalg.solve(rows[..., free], known[..., None])[..., 0]
    return np.insert(found, axis, value, axis=-1)


def seen_change(camera: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(..., 2, 3): how pixels change with a world point, pixels a metre."""
    seen = np.asarray(points) @ camera[:, :3].T + camera[:, 3]
    pixels = seen[..., :2] / seen[..., 2:]
    return (camera[:2, :3] - pixels[..., None] * camera[2, :3]) / seen[..., 2, None, None]


def fit_camera(points: np.ndarray, pixels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Fit a camera (3, 4) to points (n, 3, m) that are seen at pixels (n, 2), some of them wrongly.

    Raises:
        UserError: there are fewer than LEAST_PAIRS.
    """
    points, pixels = np.asarray(points, np.float64), np.asarray(pixels, np.float64)
    if len(points) < LEAST_PAIRS:
        raise UserError(
            f"camera: {len(points)} moments to fit it from, {LEAST_PAIRS} at least; give more demonstrations, or "
            "calibrate: analogy.camera=FILE"
        )
    trust = np.ones(len(points)) if weights is None else np.asarray(weights, np.float64)
    middle = points.mean(0)
    local = np.concatenate([points - middle, np.ones((len(points), 1))], 1)
    affine = np.zeros((2, 4))
    bend = np.zeros(3)
    # Pairs far from the others count ever less (Cauchy); half of them may be wrong.
    scale = 20.0
    for _ in range(40):
        depth = 1 + local[:, :3] @ bend
        off = (local @ affine.T) / depth[:, None] - pixels if affine.any() else np.zeros_like(pixels)
        if affine.any():
            scale = float(np.clip(1.5 * np.median(np.linalg.norm(off, axis=1)), 1.0, scale))
        share = trust / (1 + (np.linalg.norm(off, axis=1) / scale) ** 2)
        root = np.sqrt(share)[:, None]
        # u (1 + b x) = a x + c, linear in a, c and b; divided by the last depth, so that errors are in pixels.
        left = []
        for k in range(2):
            block = np.zeros((len(points), 11))
            block[:, 4 * k : 4 * k + 4] = local
            block[:, 8:] = -pixels[:, k, None] * local[:, :3]
            left.append(block * root / depth[:, None])
        prior = np.zeros((3, 11))
        prior[:, 8:] = np.eye(3) * scale / _BEND
        right = [pixels[:, k] * root[:, 0] / depth for k in range(2)]
        found = np.linalg.lstsq(np.concatenate([*left, prior]), np.concatenate([*right, np.zeros(3)]), rcond=None)[0]
        affine, bend = found[:8].reshape(2, 4), found[8:]
    camera = np.zeros((3, 4))
    camera[:2], camera[2, :3], camera[2, 3] = affine, bend, 1.0
    camera[:, 3] -= camera[:, :3] @ middle
    return camera


def read_camera(file: str | Path) -> np.ndarray:
    """Read a calibrated camera: JSON {"camera": (3, 4) numbers that take x, y, z, 1 (m) to u w, v w, w (pixels of 96)}.

    "calvin" is the static camera of CALVIN's play table, the same in all its scenes and in the built-in ones.

    Raises:
        UserError: the file is no such thing.
    """
    remedy = 'give JSON {"camera": three rows of four numbers}, pixels of an image of 96'
    if str(file) == CALVIN and not Path(CALVIN).exists():
        file = str(resources.files("arvrm").joinpath("resources", "calvin_camera.json"))
    values = read_json(Path(file), remedy).get("camera")
    try:
        camera = np.array(values, np.float64)
    except (TypeError, ValueError):
        camera = np.zeros(0)
    if camera.shape != (3, 4) or not np.isfinite(camera).all():
        raise UserError(f"{file}: camera is {json.dumps(values)[:80]}; {remedy}")
    return camera
