"""Hand keypoints between a store, in pixels and metres, and a network; and what their depth means, of any source."""

from __future__ import annotations

import numpy as np

DEPTH_UNIT_M = 0.1
"""Metres of keypoint depth that count as 1."""
DEPTH = "m along the camera's optical axis, + away, from the wrist of the same hand (the wrist's own is 0)"
"""What the third number of every stored keypoint is, of any source."""
DEPTH_SCALES = {
    "measured": "as large as it was: poses of a device (EgoDex), or of a simulation",
    "average": "that of a hand of average size: MediaPipe sees one image and cannot know how large the hand is",
    "unstated": "a detector of one's own that has no attribute `depth_scale`, or a clip from before this was kept",
}
"""How far the metres can be believed, by `EpisodeHeader.depth_scale`."""


def normalise_keypoints(keypoints: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return (..., K, 3) float32 for the network: u, v in [-1, 1] over the image, depth in units of `DEPTH_UNIT_M`.

    Args:
        keypoints: (..., K, 3), u and v in pixels of a height x width image, depth as DEPTH says.
    """
    scale = np.array([2.0 / width, 2.0 / height, 1.0 / DEPTH_UNIT_M])
    return (np.asarray(keypoints, dtype=np.float64) * scale - np.array([1.0, 1.0, 0.0])).astype(np.float32)


def denormalise_keypoints(keypoints: np.ndarray, height: int, width: int) -> np.ndarray:
    """Invert `normalise_keypoints`."""
    scale = np.array([width / 2.0, height / 2.0, DEPTH_UNIT_M])
    return (np.asarray(keypoints, dtype=np.float64) + np.array([1.0, 1.0, 0.0])) * scale
