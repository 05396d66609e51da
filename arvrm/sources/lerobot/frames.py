"""Frames of a LeRobot data set's videos, found by their time stamps, and pictures inside its tables."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from arvrm.sources.pipeline import LeftOut
from arvrm.sources.video import MAX_PIXELS, VideoError, rgb_of, video_stream, warnings_as_errors

TOLERANCE_S = 1e-4
"""LeRobot's own: no frame within it of the time asked for means that times and video do not belong together."""


class VideoReader:
    """Decodes one video file from front to back, starting anew where a frame before the last is asked for."""

    def __init__(self, path: Path) -> None:
        self.path, self.container = path, None
        self._decoded: Iterator[Any] = iter(())
        self._frame: Any = None
        self._time = -1.0

    def frames(self, times: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the frames shown at these ascending times (s) as (H, W, 3) uint8.

        Raises:
            LeftOut: no frame is within TOLERANCE_S of a time, or the file is damaged.
        """
        import av

        try:
            if self.container is None or times[0] < self._time - TOLERANCE_S:
                self._open()
            for time in times.tolist():
                while self._frame is None or self._time < time - TOLERANCE_S:
                    self._advance(time)
                if self._time > time + TOLERANCE_S:
                    raise LeftOut(f"{self.path.name} has no frame at {time:.4f} s; the next is at {self._time:.4f} s")
                yield self._frame.to_ndarray(format="rgb24")
        except (av.FFmpegError, OSError, IndexError) as error:
            self.close()
            raise LeftOut(f"{self.path} cannot be decoded ({' '.join(str(error).split())})") from error

    def _open(self) -> None:
        import av

        self.close()
        self.container = av.open(str(self.path))
        stream = video_stream(self.container)
        if stream is None:
            raise LeftOut(f"{self.path.name} holds no video")
        if stream.width * stream.height > MAX_PIXELS:
            raise LeftOut(f"{self.path.name} states {stream.width} x {stream.height} pixels")
        stream.thread_count = 1
        self._decoded = self.container.decode(stream)

    def _advance(self, wanted: float) -> None:
        self._frame = next(self._decoded, None)
        if self._frame is None:
            raise LeftOut(f"{self.path.name} ends before {wanted:.4f} s")
        if self._frame.time is None or self._frame.is_corrupt:
            raise LeftOut(f"{self.path.name} is damaged after {self._time:.4f} s")
        self._time = self._frame.time

    def close(self) -> None:
        if self.container is not None:
            self.container.close()
        self.container, self._decoded, self._frame, self._time = None, iter(()), None, -1.0


def inline_images(feature: str, column: Any, steps: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the pictures of a column of {bytes, path} at these rows as (H, W, 3) uint8.

    Raises:
        LeftOut: a row has no bytes, or they are no picture.
    """
    from PIL import Image

    for step in steps.tolist():
        cell = column[step].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise LeftOut(f"{feature} has no image bytes at step {step}")
        try:
            with warnings_as_errors(), Image.open(io.BytesIO(data)) as opened:
                yield rgb_of(opened)
        except (VideoError, OSError, ValueError, SyntaxError, Warning, Image.DecompressionBombError) as error:
            raise LeftOut(f"{feature} cannot be decoded at step {step} ({' '.join(str(error).split())})") from error
