"""Small videos whose frames say what they are: a grey level per frame, and a corner that says which way is up."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def picture(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """(height, width, 3): grey 8 n + 16, and a red block in the upper left corner."""
    image = np.full((height, width, 3), 16 + 8 * number, np.uint8)
    image[: height // 4, : width // 4] = (255, 0, 0)
    return image


def level(image: np.ndarray) -> int:
    """The number of the frame that `picture` drew."""
    height, width = image.shape[:2]
    return round((float(image[height // 2 :, width // 2 :].mean()) - 16) / 8)


def write_video(
    path: Path,
    frames: list[np.ndarray],
    fps: int = 10,
    times: list[float] | None = None,
    rotation: int = 0,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    pixel_shape: Fraction | None = None,
) -> Path:
    """Encode RGB frames.

    `times` (s) makes the rate variable, `rotation` (degrees) asks players to turn it, `pixel_shape` (width / height) to
    stretch it.
    """
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = {"gif": "rgb8", "mpeg4": "yuv420p"}.get(codec, "yuv420p")
        stream.time_base = Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        if codec == "libx264":
            stream.options = {"crf": "10", "preset": "ultrafast", "g": "5"}
        if codec == "libvpx-vp9":
            stream.options = {"deadline": "realtime", "cpu-used": "8"}
        if pixel_shape is not None:
            stream.codec_context.sample_aspect_ratio = pixel_shape
        if rotation:
            stream.set_display_rotation(rotation)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if stream.pix_fmt != "rgb24":
                frame = frame.reformat(format=stream.pix_fmt)
            frame.pts = round(1000 * (times[number] if times else number / fps))
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def with_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Write a display matrix into an mp4's track header: a pixel at (x, y) is shown at (a x + c y, b x + d y)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    matrix = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    data[at : at + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)
    return path
