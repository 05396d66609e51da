"""The quality page: what the hands of a store are like, with the worst and the best clips as films."""

from __future__ import annotations

import base64
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from arvrm.config import from_dict, to_dict
from arvrm.episodes import EpisodeHeader, EpisodeStore
from arvrm.files import HTML, claimed, process_folder, read_json, replacing
from arvrm.films import FilmWriter
from arvrm.hands.quality import ClipQuality, QualityLimits, clip_quality, rank
from arvrm.hands.tracking import HandTracks
from arvrm.interface import UserError
from arvrm.show.skeleton import POINTS, draw_skeleton, even_size, interpolated_hands

_PAGE_SIDE = 256  # films on a page
_PAGE_FRAMES = 90
_BINS = 20

_MEASURES = (
    ("detection_rate", "frames with a hand (share)", 1.0),
    ("jitter", "jitter before the filter (hand lengths)", 0.2),
    ("truncation", "points beyond the border (share)", 1.0),
    ("motion_energy", "motion energy ((hand lengths/s)\u00b2)", None),
)


@dataclass(frozen=True)
class _Clip:
    id: str
    quality: ClipQuality
    reason: str
    instruction: str = ""


def quality_page(
    store: EpisodeStore,
    output: Path,
    films: int = 4,
    limits: QualityLimits | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one self-contained page: histograms of the clips' quality, and the worst and best clips as films.

    Dropped clips are counted from the conversion's report beside the store, if it is there; they have no film. The
    quality of a clip is what its conversion measured; synthetic clips, which have none, are measured here.

    Raises:
        UserError: the store has no human clips, the page exists, or another process is writing it.
    """
    with claimed(output, overwrite, HTML):
        page = _page(store, films, limits or QualityLimits())
        with replacing(output) as partial:
            partial.write_text(page, encoding="utf-8")
    return output


def _page(store: EpisodeStore, films: int, limits: QualityLimits) -> str:
    from jinja2 import Environment

    kept = [
        _Clip(header.id, _stored_quality(store, header), "", header.instruction)
        for header in store.headers()
        if header.embodiment == "human"
    ]
    report = _report_of(store)
    dropped = [
        _Clip(identity, quality, report["poor"].get(identity, ""))
        for identity, values in report["quality"].items()
        if (quality := _quality(values)) is not None
    ]
    if not kept and not dropped:
        raise UserError(f"{store.path}: no human clips; give a store that `arvrm convert human` wrote")
    order = rank([clip.quality for clip in kept], limits)
    worst, best = order[:films], [clip for clip in order[::-1] if clip not in order[:films]][:films]
    acting: dict[str, int] = {}
    for clip in kept:
        acting[clip.quality.acting_hand] = acting.get(clip.quality.acting_hand, 0) + 1
    source = resources.files("arvrm").joinpath("resources/hands.html.j2").read_text(encoding="utf-8")
    return (
        Environment(autoescape=True)
        .from_string(source)
        .render(
            store=store.path.name,
            kept=len(kept),
            dropped=len(dropped),
            errors=report["errors"],
            reasons=report["reasons"],
            acting=sorted(acting.items()),
            repaired=sum(clip.quality.repaired * clip.quality.frames for clip in kept),
            limits=vars(limits),
            histograms=[_histogram(name, title, top, kept, dropped) for name, title, top in _MEASURES],
            groups=[
                ("Worst clips kept", [_entry(store, kept[clip]) for clip in worst]),
                ("Best clips", [_entry(store, kept[clip]) for clip in best]),
            ],
            poor=[vars(clip) for clip in dropped[:200]],
        )
    )


@dataclass(frozen=True)
class _Report:
    """What is read of STORE.report.json, see `sources.human.HumanReport`."""

    further_keys: ClassVar[bool] = True
    poor: dict[str, str] = field(default_factory=dict)
    quality: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)


def _report_of(store: EpisodeStore) -> dict[str, Any]:
    file = store.path.with_name(store.path.name + ".report.json")
    empty: dict[str, Any] = {"poor": {}, "quality": {}, "errors": {}, "reasons": {}}
    if not file.is_file():
        return empty
    return to_dict(from_dict(_Report, read_json(file, "convert again, or remove it", largest=1 << 30), str(file)))


def _quality(values: dict[str, Any]) -> ClipQuality | None:
    try:
        return ClipQuality(**values)
    except TypeError:
        return None


def _stored_quality(store: EpisodeStore, header: EpisodeHeader) -> ClipQuality:
    measured = _quality(header.meta.get("quality") or {})
    if measured is not None:
        return measured
    arrays = store.arrays(header.id, ["keypoints", "visible"])
    points, visible = arrays["keypoints"], arrays["visible"]
    hands = points.shape[1] // POINTS
    keypoints = np.zeros((len(points), 2, POINTS, 3), np.float32)
    seen = np.zeros((len(points), 2, POINTS), bool)
    # One hand of unknown side stands as the right one unless the clip says otherwise.
    first = 0 if hands == 2 or header.meta.get("side") == "left" else 1
    keypoints[:, first : first + hands] = points.reshape(len(points), hands, POINTS, 3)
    seen[:, first : first + hands] = visible.reshape(len(points), hands, POINTS)
    here = seen.any(axis=2)
    height, width = header.cameras["rgb_static"]
    count = here.sum(axis=1).astype(np.int32)
    times = np.arange(len(points)) / header.fps
    none = np.zeros_like(here)
    return clip_quality(
        HandTracks(times, keypoints, keypoints, seen, here, none, here.astype(np.float32), count, height, width)
    )


def _histogram(
    name: str, title: str, top: float | None, kept: Sequence[_Clip], dropped: Sequence[_Clip]
) -> dict[str, Any]:
    """Bars of an SVG, 20 bins from 0 to `top` (None: the largest value); the last holds what is above it."""
    values = [[getattr(clip.quality, name) for clip in clips] for clips in (kept, dropped)]
    everything = values[0] + values[1]
    if top is None:
        top = max(max(everything), 1e-9)
        step = 10 ** math.floor(math.log10(top))
        top = math.ceil(top / step) * step
    edges = np.linspace(0, top, _BINS + 1)
    counts = [np.histogram(np.minimum(part, top), edges)[0] for part in values]
    tallest = max(int((counts[0] + counts[1]).max()), 1)
    width = 300 / _BINS
    bars = []
    for k in range(_BINS):
        base = 110.0
        for part, colour in ((counts[0], "#2f6fed"), (counts[1], "#e5484d")):
            high = 100 * int(part[k]) / tallest
            if high:
                bars.append({"x": k * width, "y": base - high, "w": width - 1, "h": high, "colour": colour})
            base -= high
    median = float(np.median(values[0])) if values[0] else 0.0
    return {"title": title, "bars": bars, "top": f"{top:g}", "tallest": tallest, "median": f"{median:.3g}"}


def _entry(store: EpisodeStore, clip: _Clip) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=process_folder()) as folder:
        film = _film_clip(store, clip.id, Path(folder) / "clip.mp4")
        source = "" if film is None else base64.b64encode(film.read_bytes()).decode()
    return {"id": clip.id, "instruction": clip.instruction, "film": source, "quality": vars(clip.quality)}


def _film_clip(store: EpisodeStore, identity: str, output: Path) -> Path | None:
    header = store.header(identity)
    rows = np.arange(len(header.image_steps))[:_PAGE_FRAMES]
    if not len(rows):
        return None
    images = store.frames(identity, "rgb_static", rows)
    arrays = store.arrays(identity, ["keypoints", "visible"])
    thin = interpolated_hands(header.meta, header.steps, arrays["keypoints"].shape[1] // POINTS)
    size = even_size(images.shape[2], images.shape[1], _PAGE_SIDE, enlarge=True)
    spacing = float(np.median(np.diff(header.image_steps))) if len(rows) > 1 else header.fps
    film = FilmWriter(output, header.fps / max(spacing, 1.0), size)
    for row in rows:
        step = header.image_steps[row]
        film.add(draw_skeleton(images[row], arrays["keypoints"][step], arrays["visible"][step], thin[step], size))
    return film.close()
