"""A detector without a network, for videos that `hand_video` draws: finds a bright blob and hangs a hand on it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from video_files import write_video

from arvrm.hands.detect import HandObservation


def shape(size: float = 30.0) -> np.ndarray:
    """(21, 3): an open hand that points up, wrist at the origin, `size` pixels to the middle finger's base."""
    points = np.zeros((21, 3), np.float32)
    for finger in range(5):
        for joint in range(4):
            points[1 + 4 * finger + joint] = ((finger - 2) * 0.25 * size, -size * (1 + 0.2 * joint), 0.01 * joint)
    return points


class BlobDetector:
    """One right hand at the middle of the pixels brighter than 200, none where there are none."""

    def detect(self, image: np.ndarray, time_s: float) -> list[HandObservation]:
        v, u = np.nonzero(image.min(axis=-1) > 200)
        if len(v) < 4:
            return []
        points = shape(image.shape[0] / 6) + np.array([u.mean() + 0.5, v.mean() + 0.5, 0], np.float32)
        return [HandObservation("right", 0.9, points, np.ones(21, np.float32))]


class ManyHands(BlobDetector):
    """Ten hands, all over the image."""

    def detect(self, image: np.ndarray, time_s: float) -> list[HandObservation]:
        height, width = image.shape[:2]
        out = []
        for number in range(10):
            points = shape(height / 12) + np.array([(number + 0.5) * width / 10, height * 0.5, 0], np.float32)
            out.append(HandObservation("right" if number % 2 else "left", 0.9, points, np.ones(21, np.float32)))
        return out


class Clumsy(BlobDetector):
    """Fails in every image that is dark in the corner."""

    def detect(self, image: np.ndarray, time_s: float) -> list[HandObservation]:
        raise RuntimeError("out of order")


class Deadly(BlobDetector):
    """Kills its process at images that are quite blue, as a broken video can kill a decoder."""

    def detect(self, image: np.ndarray, time_s: float) -> list[HandObservation]:
        if image[0, 0, 2] > 150 and image[0, 0, 0] < 80:
            os._exit(9)
        return super().detect(image, time_s)


def hand_video(
    path: Path,
    frames: int = 12,
    fps: int = 10,
    width: int = 128,
    height: int = 96,
    blob: bool = True,
    blue: bool = False,
) -> Path:
    """A white blob that moves to the right by 2 px a frame, on grey."""
    pictures = []
    for number in range(frames):
        image = np.full((height, width, 3), (0, 0, 255) if blue else 60, np.uint8)
        if blob:
            left = 40 + 2 * number
            image[height // 2 : height // 2 + 12, left : left + 12] = 255
        pictures.append(image)
    codecs = {".webm": "libvpx-vp9", ".gif": "gif"}
    return write_video(path, pictures, fps, codec=codecs.get(path.suffix.lower(), "libx264"))
