"""Frames of a stretch of video at an even rate, as a player shows them: whatever the container, its time stamps, its
rotation, its pixels' shape, its damage.

Time runs in seconds from the first moment a player would play, which may be the sound's. A frame is shown from its own
time stamp to the next one's, so a video of variable rate is sampled by what is on the screen at each moment, never by
counting frames.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

VIDEO_SUFFIXES = (
    *(".mp4", ".mov", ".webm", ".mkv", ".gif", ".avi", ".m4v", ".3gp", ".3g2", ".mts", ".m2ts", ".ts", ".mpg", ".mpeg"),
    *(".wmv", ".flv", ".ogv", ".asf", ".vob"),
)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MAX_PIXELS = 1 << 26
"""Larger pictures are refused: a file of a few bytes can state any size. 8K has half as many."""
_EARLY_S = 1e-3
"""How much before its time stamp a frame counts as shown: time stamps of some containers are rounded to 1 ms."""
_SHORT_S = 0.25
"""A video whose frames end so much before the length it states is truncated."""
_SEEK_S = 2.0
"""Stretches that begin earlier are reached by decoding from the start, which no damaged index can mislead."""
_PAUSE = 2.5
"""Intervals longer than so many usual ones are pauses, which say nothing about a video's rate."""
_SAME_RATE = 0.02
"""A stretch whose rate is within this share of the file's mean has the mean, which is exact where the rate is even."""
_MAX_FPS = 1000.0


class VideoError(Exception):
    """A stretch of video that cannot be read; the message says why, without the file's name."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file says of itself.

    Attributes:
        fps: frames a second of the stretch that was asked for: its pauses apart, so that a video of variable rate is
            not taken for a slow one.
        seconds: the video's length; None where the file does not say.
    """

    fps: float
    seconds: float | None


@dataclass(frozen=True)
class Frame:
    """One sample.

    Attributes:
        time: the moment asked for, seconds.
        index: counts the video's different frames; the same as the sample before where that frame is still shown.
        image: (H, W, 3) uint8 RGB, upright, with square pixels.
    """

    time: float
    index: int
    image: np.ndarray


def is_video(path: Path) -> bool:
    """Whether the path is a video file by its name, or a folder that is an image sequence."""
    if path.is_dir():
        return is_sequence(path.iterdir())
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")


def is_sequence(files: Iterator[Path] | list[Path]) -> bool:
    """Whether the files of a folder are one numbered series of images, and no videos are among them.

    Pictures that lie beside videos are their thumbnails, and names that differ in more than a number have no order.
    """
    files = [file for file in files if not file.name.startswith(".")]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if not images or any(file.suffix.lower() in VIDEO_SUFFIXES for file in files):
        return False
    return len({re.sub(r"\d+", "#", file.name) for file in images}) == 1 and bool(re.search(r"\d", images[0].stem))


def probe(path: Path, sequence_fps: float = 30.0, start: float | None = None, end: float | None = None) -> VideoInfo:
    """Read rate and length without decoding.

    Args:
        start, end: seconds of the stretch whose rate counts; None: the video's beginning and end.

    Raises:
        VideoError: there is no such file, or no video in it.
    """
    if path.is_dir():
        return VideoInfo(sequence_fps, len(sequence_files(path)) / sequence_fps)
    with _open(path) as container:
        stream = video_stream(container)
        rate = _mean_rate(stream)
        seconds = _stated(container, stream)
        measured = _stretch_rate(container, stream, start or 0.0, end)
        if measured is not None and (rate is None or abs(measured / rate - 1) > _SAME_RATE):
            rate = measured
        return VideoInfo(rate or sequence_fps, seconds)


def sample(
    path: Path, start: float | None = None, end: float | None = None, fps: float = 30.0, sequence_fps: float = 30.0
) -> Iterator[Frame]:
    """Yield what is shown at start, start + 1/fps ... before `end`, one frame in memory.

    Args:
        start: None: the first picture, which may come after the sound has begun.
        end: None: the video's end. A video that is over before ends the samples there.

    Raises:
        VideoError: the file is missing, damaged or truncated within the stretch, or over before `start`.
    """
    shown = _images(path, sequence_fps) if path.is_dir() else _decoded(path, start or 0.0)
    current = next(shown, None)
    if current is None:
        raise VideoError("holds no frame")
    if start is None:
        start = current[0]
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


# Images --------------------------------------------------------------------------------------------------------------


def rgb_of(image: Any) -> np.ndarray:
    """Return a Pillow image as (H, W, 3) uint8 RGB, upright; 16-bit greys are scaled to 8 bits, not cut off.

    Raises:
        VideoError: it is larger than MAX_PIXELS, or of numbers whose range nobody states.
        OSError, SyntaxError, ValueError: it is damaged.
    """
    from PIL import ImageOps

    if image.width * image.height > MAX_PIXELS:
        raise VideoError(f"is {image.width} x {image.height}, more than {MAX_PIXELS >> 20} megapixels")
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16") or upright.mode == "I" and image.format == "PNG":
        grey = (np.asarray(upright).astype(np.uint32) * 255 + 32767) // 65535
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
    if upright.mode in ("I", "F"):
        raise VideoError(f"has pixels of mode {upright.mode}, whose range is not known; save it with 8 or 16 bits")
    return np.asarray(upright.convert("RGB"))


class DamagedImage(VideoError):
    """A picture that cannot be read at all."""


def read_image(file: str | Path) -> np.ndarray:
    """Read a picture as `rgb_of` gives it.

    Raises:
        DamagedImage: it is missing or damaged; VideoError: as `rgb_of`.
    """
    from PIL import Image

    try:
        with warnings_as_errors(), Image.open(file) as opened:
            return rgb_of(opened)
    except (OSError, ValueError, SyntaxError, Warning, MemoryError, Image.DecompressionBombError) as error:
        raise DamagedImage(_line(error)) from error


def _images(path: Path, fps: float) -> Iterator[tuple[float, float, Any]]:
    size = None
    for number, file in enumerate(sequence_files(path)):
        try:
            image = read_image(file)
        except DamagedImage as error:
            raise VideoError(f"image {file.name} is damaged ({error})") from error
        except VideoError as error:
            raise VideoError(f"image {file.name} {error}") from error
        if size is not None and image.shape != size:
            shape = f"{image.shape[1]} x {image.shape[0]}"
            raise VideoError(f"image {file.name} is {shape}, unlike the first ({size[1]} x {size[0]})")
        size = image.shape
        yield number / fps, (number + 1) / fps, lambda image=image: image


@contextlib.contextmanager
def warnings_as_errors() -> Iterator[None]:
    """Pillow only warns of pictures that state an enormous size."""
    import warnings

    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def sequence_files(path: Path) -> list[Path]:
    """Return the images of a sequence in the order of their numbers: frame2 before frame10.

    Raises:
        VideoError: the folder is no image sequence.
    """
    try:
        files = [file for file in path.iterdir() if not file.name.startswith(".")]
    except OSError as error:
        raise VideoError(f"cannot be listed ({error.strerror})") from error
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise VideoError("is a folder without images")
    if not is_sequence(files):
        raise VideoError("is no image sequence: names must differ in their number alone, without videos beside them")
    return sorted(images, key=lambda file: [_natural(part) for part in re.split(r"(\d+)", file.name)])


def _natural(part: str) -> tuple[int, str]:
    # By length, then by digits: no number is too long to compare.
    digits = part.lstrip("0") if re.fullmatch(r"[0-9]+", part) else None
    return (len(digits), digits) if digits is not None else (0, part)


# Videos --------------------------------------------------------------------------------------------------------------


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
        stream = video_stream(container)
        # A worker is one core; threads would decode ahead into memory.
        stream.codec_context.thread_count = 1
        rate, zero, shape = _mean_rate(stream) or 30.0, _zero(container), _pixel_shape(stream)
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
                yield time, over, lambda frame=frame: _as_shown(frame, shape)
        except av.FFmpegError as error:
            raise VideoError(f"is damaged after {over:.2f} s ({_line(error)})") from error
        ends, slack = _stated_end(container, stream), max(_SHORT_S, 2 / rate)
        if ends is not None and last is not None and over < ends - slack:
            raise VideoError(f"is truncated: its frames end at {over:.2f} s of {ends:.2f} s")


def _mean_rate(stream: Any) -> float | None:
    """Frames a second on average, None where that is not known or cannot be."""
    rate = stream.average_rate or stream.guessed_rate
    return float(rate) if rate and 0 < rate <= _MAX_FPS else None


def _stretch_rate(container: Any, stream: Any, start: float, end: float | None) -> float | None:
    """Frames a second between two moments, from the packets' time stamps; None where they are too few to say."""
    import av

    zero, times = _zero(container), set()
    try:
        if start > _SEEK_S:
            container.seek(int((start + zero) * 1e6), backward=True)
        for packet in container.demux(stream):
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is None:
                continue
            time = float(stamp * packet.time_base) - zero
            if time >= start - _EARLY_S and (end is None or time < end - _EARLY_S):
                times.add(time)
            # Frames are decoded a little before they are shown, so that a few later ones may come first.
            if end is not None and packet.dts is not None and float(packet.dts * packet.time_base) - zero > end + 1:
                break
    except (av.FFmpegError, OSError):
        pass  # decoding will say where
    if len(times) < 3:
        return None
    intervals = np.diff(np.sort(np.fromiter(times, float)))
    mean = float(intervals[intervals <= _PAUSE * np.median(intervals)].mean())
    return _nominal(1 / mean) if mean > 1 / _MAX_FPS else None


def _nominal(rate: float) -> float:
    """Undo what rounded time stamps do to a measured rate."""
    for usual in (round(rate), round(rate * 1.001) / 1.001):
        if usual and abs(rate / usual - 1) < 2e-4:
            return float(usual)
    return rate


def _zero(container: Any) -> float:
    return container.start_time / 1e6 if container.start_time is not None else 0.0


def _stated(container: Any, stream: Any) -> float | None:
    """Seconds of video that the file says it has. Only the video's own: sound may go on for longer."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration and not container.streams.audio:
        # Matroska's length counts from time 0, where the first frame need not be.
        return max(container.duration / 1e6 - max(_zero(container), 0.0), 0.0)
    return None


def _stated_end(container: Any, stream: Any) -> float | None:
    """When the last frame should have been shown, seconds from the first moment that is played."""
    seconds = _stated(container, stream)
    if seconds is None or not stream.duration or stream.start_time is None:
        return seconds
    return seconds + float(stream.start_time * stream.time_base) - _zero(container)


def _pixel_shape(stream: Any) -> Fraction:
    """Width / height of a pixel: videos may be stored squeezed, and players widen them."""
    shape = stream.sample_aspect_ratio
    if not shape or shape < 0:
        return Fraction(1)
    if not 0.1 <= shape <= 10:
        raise VideoError(f"states pixels that are {float(shape):g} times as wide as high; convert it anew")
    return Fraction(shape)


def _as_shown(frame: Any, shape: Fraction) -> np.ndarray:
    height, width = frame.height, frame.width
    if shape > 1:
        width = round(width * shape)
    elif shape < 1:
        height = round(height / shape)
    if width * height > MAX_PIXELS:
        raise VideoError(f"is {width} x {height}, more than {MAX_PIXELS >> 20} megapixels")
    size = {} if (height, width) == (frame.height, frame.width) else {"width": width, "height": height}
    try:
        # PyAV 17 and later start threads for every frame, which costs more than the conversion itself.
        image = frame.reformat(format="rgb24", threads=1, **size).to_ndarray()
    except TypeError:
        image = frame.reformat(format="rgb24", **size).to_ndarray()
    return _turned(image, _display_matrix(frame))


def _display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """Return a, b, c, d: a pixel at (x, y) is shown at (a x + c y, b x + d y), up to scale and place."""
    for data in frame.side_data.keys():
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
            return a, b, c, d
    return None


def _turned(image: np.ndarray, matrix: tuple[int, int, int, int] | None) -> np.ndarray:
    if matrix is None:
        return image
    a, b, c, d = matrix
    straight, across = max(abs(a), abs(d)), max(abs(b), abs(c))
    if not (straight or across):
        return image
    if min(straight, across) > 0.02 * max(straight, across):
        angle = math.degrees(math.atan2(b, a))
        raise VideoError(f"is to be shown turned by {angle:.0f} degrees; only quarter turns and mirrors are read")
    if across > straight:
        image, right, down = np.swapaxes(image, 0, 1), c, b
    else:
        right, down = a, d
    image = image[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]
    return np.ascontiguousarray(image)


def _open(path: Path) -> Any:
    import av

    if not path.exists():
        raise VideoError("is not there")
    try:
        container = av.open(str(path), metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"cannot be opened as video ({_line(error)})") from error
    stream = video_stream(container)
    if stream is None:
        container.close()
        raise VideoError("holds no video")
    if stream.width * stream.height > MAX_PIXELS:
        container.close()
        raise VideoError(f"is {stream.width} x {stream.height}, more than {MAX_PIXELS >> 20} megapixels")
    return container


def video_stream(container: Any) -> Any:
    """Return the first stream of moving pictures, None if there is none: a cover is a video stream too."""
    covers = [bool(stream.disposition & stream.disposition.attached_pic) for stream in container.streams.video]
    return next((s for s, cover in zip(container.streams.video, covers, strict=True) if not cover), None)


def _line(error: Exception) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error)).split())
