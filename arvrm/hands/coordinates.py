"""Hand keypoints between a store, in pixels and metres, and a network."""

from __future__ import annotations

import numpy as np

DEPTH_UNIT_M = 0.1
"""Metres of keypoint depth that count as 1."""


def normalise_keypoints(keypoints: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return (..., K, 3) float32 for the network: u, v in [-1, 1] over the image, depth in units of `DEPTH_UNIT_M`.

    Args:
        keypoints: (..., K, 3), u and v in pixels of a height x width image, depth in m relative to the wrist.
    """
    scale = np.array([2.0 / width, 2.0 / height, 1.0 / DEPTH_UNIT_M])
    return (np.asarray(keypoints, dtype=np.float64) * scale - np.array([1.0, 1.0, 0.0])).astype(np.float32)


def denormalise_keypoints(keypoints: np.ndarray, height: int, width: int) -> np.ndarray:
    """Invert `normalise_keypoints`."""
    scale = np.array([width / 2.0, height / 2.0, DEPTH_UNIT_M])
    return (np.asarray(keypoints, dtype=np.float64) + np.array([1.0, 1.0, 0.0])) * scale
