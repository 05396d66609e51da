"""Films of rollouts: the cameras, the instruction burnt in, replans marked, the outcome of each task shown."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from arvrm.files import PartialFile, reporting
from arvrm.interface import Stroke

STATIC_PX, GRIPPER_PX, CAPTION_PX = 320, 160, 48
WIDTH, HEIGHT = STATIC_PX + GRIPPER_PX, STATIC_PX + CAPTION_PX
FPS = 10
INK, PAPER, REPLAN, SUCCESS, FAILURE = "#e8eaed", "#16181d", "#f5a524", "#2eb67d", "#e5484d"


def draw_over(image: np.ndarray, strokes: Sequence[Stroke], caption: str = "") -> np.ndarray:
    """Return an (H, W, 3) uint8 image at twice its size, with strokes and, at its foot, a caption drawn over it."""
    height, width = image.shape[:2]
    canvas = Image.fromarray(image).resize((2 * width, 2 * height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    scale = np.array([2 * width, 2 * height])
    for stroke in strokes:
        points = np.clip(np.asarray(stroke.points, np.float64), -1.0, 2.0) * scale
        thick = stroke.width * scale[0]
        if len(points) == 1:
            (x, y), edge = points[0], max(1, round(0.005 * scale[0]))
            draw.ellipse((x - thick, y - thick, x + thick, y + thick), outline=stroke.colour, width=edge)
        elif len(points):
            draw.line([tuple(point) for point in points], fill=stroke.colour, width=max(1, round(thick)), joint="curve")
    if caption:
        size = max(8, round(0.045 * scale[1]))
        font = ImageFont.load_default(size)
        while font.getlength(caption) > scale[0] - 8 and size > 6:
            size -= 1
            font = ImageFont.load_default(size)
        at = (4, scale[1] - 4)
        draw.text(at, caption, fill=INK, font=font, anchor="ls", stroke_width=2, stroke_fill=PAPER)
    return np.asarray(canvas)


def compose_frame(
    images: dict[str, np.ndarray],
    instruction: str,
    place: str,
    step: int,
    replanned: bool = False,
    outcome: bool | None = None,
) -> np.ndarray:
    """Draw one film frame.

    Args:
        images: camera name -> (H, W, 3) uint8 of any size; the first one is drawn large, the others beside it.
        instruction: the sentence the policy was given.
        place: where in the chain, e.g. "2 of 5".
        step: control steps since the instruction began.
        replanned: mark the frame at which a new chunk was planned.
        outcome: True or False on the last frames of a task: succeeded or failed.
    Returns: (HEIGHT, WIDTH, 3) uint8.
    """
    canvas = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    first, *others = images.values()
    _paste(canvas, first, (0, CAPTION_PX), STATIC_PX)
    columns = math.ceil(math.sqrt(len(others)))
    for number, image in enumerate(others):
        row, column = divmod(number, columns)
        side = GRIPPER_PX // columns
        _paste(canvas, image, (STATIC_PX + side * column, CAPTION_PX + side * row), side)
    draw = ImageDraw.Draw(canvas)
    size, small = 17, ImageFont.load_default(13)
    while ImageFont.load_default(size).getlength(instruction) > WIDTH - 90 and size > 10:
        size -= 1
    draw.text((10, CAPTION_PX / 2), instruction, fill=INK, font=ImageFont.load_default(size), anchor="lm")
    draw.text((WIDTH - 10, CAPTION_PX / 2), place, fill=INK, font=small, anchor="rm")
    left, top = STATIC_PX + 12, CAPTION_PX + GRIPPER_PX + 14
    draw.text((left, top), f"step {step}", fill=INK, font=small)
    draw.ellipse((left, top + 25, left + 10, top + 35), fill=REPLAN if replanned else "#3a3d45")
    draw.text((left + 17, top + 30), "replan", fill=REPLAN if replanned else "#6b7079", font=small, anchor="lm")
    if outcome is not None:
        colour = SUCCESS if outcome else FAILURE
        draw.rectangle((0, CAPTION_PX, WIDTH - 1, HEIGHT - 1), outline=colour, width=5)
        draw.text((left, top + 54), "done" if outcome else "failed", fill=colour, font=ImageFont.load_default(22))
    return np.asarray(canvas)


def _paste(canvas: Image.Image, image: np.ndarray, place: tuple[int, int], side: int) -> None:
    canvas.paste(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC), place)


class FilmWriter:
    """Write (H, W, 3) uint8 frames as H.264; the file takes its name only when it is complete.

    Args:
        size: W, H, both even.

    Raises:
        UserError: in all it does: the film cannot be written.
    """

    def __init__(self, path: str | Path, fps: float = FPS, size: tuple[int, int] = (WIDTH, HEIGHT)):
        import av

        self.path = Path(path)
        self._partial = PartialFile(self.path)
        self._container = av.open(str(self._partial.path), "w", format="mp4", options={"movflags": "faststart"})
        self._stream = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        self._stream.width, self._stream.height = size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.thread_count = 1
        self._stream.options = {"crf": "27", "preset": "veryfast"}
        self.frames = 0

    def add(self, frame: np.ndarray) -> None:
        import av

        with reporting(self.path):
            for packet in self._stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")):
                self._container.mux(packet)
        self.frames += 1

    def close(self) -> Path | None:
        """Finish the film; return its path, None if it has no frame."""
        try:
            with reporting(self.path):
                for packet in self._stream.encode():
                    self._container.mux(packet)
                self._container.close()
            if not self.frames:
                return None
            self._partial.keep()
            return self.path
        finally:
            self._partial.discard()

    def discard(self) -> None:
        """Leave no film."""
        with contextlib.suppress(Exception):  # a full disk would be met again
            self._container.close()
        self._partial.discard()


def read_film(path: str | Path) -> np.ndarray:
    """Return all frames of a film, (frames, H, W, 3) uint8."""
    import av

    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def film_strip(path: str | Path, count: int = 6, width: int = 1500) -> Image.Image:
    """Return `count` frames of a film, evenly spaced, side by side in one picture `width` pixels wide."""
    frames = read_film(path)
    chosen = frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
    each = width // count
    tile_height = round(each * chosen.shape[1] / chosen.shape[2])
    strip = Image.new("RGB", (each * count, tile_height), PAPER)
    for place, frame in enumerate(chosen):
        strip.paste(Image.fromarray(frame).resize((each, tile_height), Image.Resampling.LANCZOS), (place * each, 0))
    return strip
