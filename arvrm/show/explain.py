"""One page for one instruction: where a hand would touch, which motion is carried over there, and why."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from arvrm.files import HTML, claimed, replacing
from arvrm.films import draw_over
from arvrm.interface import KEYPOINTS, Stroke
from arvrm.show.figures import map_figure, page_template, safe

SIDE = 480
"""Pixels of the page's pictures."""
_HOT = np.array([229, 72, 77])


@dataclass(frozen=True)
class Explained:
    """What the page says.

    Attributes:
        sentence, origin: what was asked, and of which picture.
        image: (H, W, 3) uint8.
        strokes: over it.
        heat: (h, w) of the touch.
        places: (n, 2) hypotheses, in shares of the image, in order.
        confidence: of touch and end.
        notes: what is to be said aloud.
        choice: a line about the motion; "": there is none.
        source: titles and pictures (H, W, 3) of the episode that the motion came from.
        missing: why there are none.
        terms: names of the similarities; alternatives: (id, sentence, place, values) of each motion, best first.
        rows: names and shares (21,) of the map; tips: what thumb and index tips hold of the position.
    """

    sentence: str
    origin: str
    image: np.ndarray
    strokes: Sequence[Stroke]
    heat: np.ndarray
    places: np.ndarray
    confidence: tuple[float, float]
    notes: Sequence[str]
    choice: str
    source: Sequence[tuple[str, np.ndarray]]
    missing: str
    terms: Sequence[str]
    alternatives: Sequence[tuple[str, str, int, Sequence[float]]]
    rows: Sequence[tuple[str, np.ndarray]]
    tips: float


def write_explanation(found: Explained, output: str | Path, overwrite: bool = False) -> Path:
    """Write the page; raises UserError where it exists (without `overwrite`) or cannot be written."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(page_template("explain")).render(
        sentence=found.sentence,
        origin=found.origin,
        notes=found.notes,
        scene=_picture(draw_over(_large(found.image), found.strokes)),
        heat=_picture(heated(_large(found.image), found.heat, found.places)),
        confidence=found.confidence,
        choice=found.choice,
        source=[{"title": title, "image": _picture(_large(image))} for title, image in found.source],
        missing=found.missing,
        terms=found.terms,
        alternatives=[
            {"id": id, "sentence": said, "place": place, "numbers": [f"{value:.2f}" for value in values]}
            for id, said, place, values in found.alternatives
        ],
        map=[safe(map_figure(name, list(row), KEYPOINTS)) for name, row in found.rows],
        tips=found.tips,
    )
    with claimed(output, overwrite, HTML), replacing(output) as partial:
        partial.write_text(page, encoding="utf-8")
    return Path(output)


def heated(image: np.ndarray, heat: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return an image (H, W, 3) with a heatmap (h, w) laid over it, and numbers at `places` (n, 2; shares)."""
    from PIL import ImageDraw, ImageFont

    height, width = image.shape[:2]
    share = np.sqrt(heat / max(float(heat.max()), 1e-12)).astype(np.float32)
    wide = np.asarray(Image.fromarray(share).resize((width, height), Image.Resampling.BILINEAR))[..., None]
    mixed = image * (1 - 0.75 * wide) + _HOT * (0.75 * wide)
    picture = Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(20)
    for number, (u, v) in enumerate(places, 1):
        at = (float(u) * width, float(v) * height)
        draw.text(at, str(number), fill="#ffffff", font=font, anchor="mm", stroke_width=2, stroke_fill="#16181d")
    return np.asarray(picture)


def _large(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _picture(image: np.ndarray) -> Any:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
