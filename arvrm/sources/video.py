"""Frames of a stretch of video at an even rate: whatever the container, its time stamps, its rotation, its damage.

Time runs in seconds from the first moment a player would show. A frame is shown from its own time stamp to the next
one's, so a video of variable rate is sampled by what is on the screen at each moment, never by counting frames.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VIDEO_SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".gif", ".avi", ".m4v")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_EARLY_S = 1e-3
"""How much before its time stamp a frame counts as shown: time stamps of some containers are rounded to 1 ms."""
_SHORT_S = 0.25
"""A video whose frames end so much before the length it states is truncated."""
_SEEK_S = 2.0
"""Stretches that begin earlier are reached by decoding from the start, which no damaged index can mislead."""


class VideoError(Exception):
    """A stretch of video that cannot be read; the message says why, without the file's name."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file says of itself.

    Attributes:
        fps: mean frames a second.
        seconds: its length; None where the file does not say.
    """

    fps: float
    seconds: float | None


@dataclass(frozen=True)
class Frame:
    """One sample.

    Attributes:
        time: the moment asked for, seconds.
        index: counts the video's different frames; the same as the sample before where that frame is still shown.
        image: (H, W, 3) uint8 RGB, upright.
    """

    time: float
    index: int
    image: np.ndarray


def is_video(path: Path) -> bool:
    """Whether the path is a video file by its name, or a folder that holds images directly (an image sequence)."""
    if path.is_dir():
        return any(child.suffix.lower() in IMAGE_SUFFIXES for child in path.iterdir())
    return path.suffix.lower() in VIDEO_SUFFIXES


def probe(path: Path, sequence_fps: float = 30.0) -> VideoInfo:
    """Read rate and length without decoding.

    Raises:
        VideoError: there is no such file, or no video in it.
    """
    if path.is_dir():
        return VideoInfo(sequence_fps, len(_sequence(path)) / sequence_fps)
    with _open(path) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate
        return VideoInfo(float(rate) if rate else sequence_fps, _stated(container, stream))


def sample(
    path: Path, start: float = 0.0, end: float | None = None, fps: float = 30.0, sequence_fps: float = 30.0
) -> Iterator[Frame]:
    """Yield what is shown at start, start + 1/fps ... before `end` (None: the video's end), one frame in memory.

    A video that is over before `end` ends the samples there.

    Raises:
        VideoError: the file is missing, damaged or truncated within the stretch, or over before `start`.
    """
    shown = _images(path, sequence_fps) if path.is_dir() else _decoded(path, start)
    current = next(shown, None)
    if current is None:
        raise VideoError("holds no frame")
    number, index, moment, until = 0, 0, start, 0.0
    while current is not None:
        _, until, picture = current
        failure = None
        try:
            following = next(shown, None)
        except VideoError as error:  # what is shown now is still good
            following, failure = None, error
        limit = (following[0] if following is not None else until) - _EARLY_S
        if end is not None:
            limit = min(limit, end - 1e-6)
        image = None
        # A first frame that comes late stands for what is before it too.
        while moment < limit:
            image = picture() if image is None else image
            yield Frame(moment, index, image)
            number += 1
            moment = start + number / fps
        if end is not None and moment >= end - 1e-6:
            return
        if failure is not None:
            raise failure
        current, index = following, index + 1
    if number == 0:
        raise VideoError(f"begins at {start:.2f} s, but the video is over at {until:.2f} s")


def _images(path: Path, fps: float) -> Iterator[tuple[float, float, Any]]:
    from PIL import Image, ImageOps, UnidentifiedImageError

    size = None
    for number, file in enumerate(_sequence(path)):
        try:
            with Image.open(file) as opened:
                image = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
            raise VideoError(f"image {file.name} is damaged ({_line(error)})") from error
        if size is not None and image.shape != size:
            shape = f"{image.shape[1]} x {image.shape[0]}"
            raise VideoError(f"image {file.name} is {shape}, unlike the first ({size[1]} x {size[0]})")
        size = image.shape
        yield number / fps, (number + 1) / fps, lambda image=image: image


def _sequence(path: Path) -> list[Path]:
    files = [file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise VideoError("is a folder without images")
    # frame2 before frame10
    return sorted(files, key=lambda file: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", file.name)])


def _decoded(path: Path, start: float) -> Iterator[tuple[float, float, Any]]:
    """Yield (time, end of its showing, function that gives its image) of the frames from that shown at `start` on."""
    if start > _SEEK_S:
        frames = _decode(path, start)
        try:
            first = next(frames, None)
        except VideoError:
            first = None
        if first is not None and first[0] <= start + _EARLY_S:
            yield first
            yield from frames
            return
    yield from _decode(path, None)


def _decode(path: Path, seek: float | None) -> Iterator[tuple[float, float, Any]]:
    import av

    with _open(path) as container:
        stream = container.streams.video[0]
        # A worker is one core; threads would decode ahead into memory.
        stream.codec_context.thread_count = 1
        rate = float(stream.average_rate or stream.guessed_rate or 30)
        zero = container.start_time / 1e6 if container.start_time is not None else 0.0
        last, over = None, 0.0
        try:
            if seek is not None:
                container.seek(int((seek + zero) * 1e6), backward=True)
            for frame in container.decode(stream):
                time = frame.time - zero if frame.time is not None else (0.0 if last is None else last + 1 / rate)
                if last is not None and time <= last:
                    continue
                if frame.is_corrupt:
                    raise VideoError(f"is damaged at {time:.2f} s")
                length = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 1 / rate
                last, over = time, time + length
                yield time, over, lambda frame=frame: _upright(frame)
        except av.FFmpegError as error:
            raise VideoError(f"is damaged after {over:.2f} s ({_line(error)})") from error
        stated, slack = _stated(container, stream), max(_SHORT_S, 2 / rate)
        if stated is not None and last is not None and over < stated - slack:
            raise VideoError(f"is truncated: its frames end at {over:.2f} s of {stated:.2f} s")


def _stated(container: Any, stream: Any) -> float | None:
    """Seconds of video that the file says it has. Only the video's own: sound may go on for longer."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration and not container.streams.audio:
        return container.duration / 1e6
    return None


def _upright(frame: Any) -> np.ndarray:
    try:
        # PyAV 17 and later start threads for every frame, which costs more than the conversion itself.
        image = frame.reformat(format="rgb24", threads=1).to_ndarray()
    except TypeError:
        image = frame.to_ndarray(format="rgb24")
    quarters = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, quarters)) if quarters else image


def _open(path: Path) -> Any:
    import av

    if not path.exists():
        raise VideoError("is not there")
    try:
        container = av.open(str(path), metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"cannot be opened as video ({_line(error)})") from error
    if not container.streams.video:
        container.close()
        raise VideoError("holds no video")
    return container


def _line(error: Exception) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error)).split())
