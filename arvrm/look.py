"""Looking at hands: films of videos, stores and predictions with the skeleton drawn, and the quality page of a store.

`VERBS` is the command line's table, as `arvrm.sources.verbs.VERBS` is.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from arvrm.episodes import EpisodeStore
from arvrm.films import FilmWriter
from arvrm.hands.detect import HandDetector, HandObservation, MediaPipeDetector, default_model, fetch_model
from arvrm.hands.quality import ClipQuality, QualityLimits, clip_quality, rank
from arvrm.hands.show import POINTS, draw_caption, draw_normal_form, draw_skeleton
from arvrm.hands.tracking import HandTracks, track_hands
from arvrm.interface import CONTROL_HZ, UserError
from arvrm.sources.human import Square, make_detector
from arvrm.sources.verbs import Verb
from arvrm.sources.video import Frame, VideoError, probe, sample

FOLDER_FPS = 2.0
"""Frames a second at which the images of a folder are shown, unless told otherwise."""
LONGEST_S = 600.0
_FILM_SIDE = 640  # longest side of a film, pixels
_PANEL = 320
_PAGE_SIDE = 256  # films on a page
_PAGE_FRAMES = 90
_BATCH = 16
_BINS = 20


def follow_video(
    video: Path,
    detector: HandDetector,
    fps: float | None = None,
    square: int | None = None,
    seconds: float = LONGEST_S,
) -> tuple[HandTracks, float, list[np.ndarray]]:
    """Detect and follow the hands of a whole video or image sequence.

    Args:
        fps: frames a second; None: the video's own, at most 30, or FOLDER_FPS for a folder.
        square: reduce frames to the middle square of so many pixels, as `convert human` stores them, and return them;
            None: whole frames, which are not kept.
        seconds: refuse what is longer.

    Returns: tracks, in pixels of the frames or squares; frames a second; squares (square, square, 3) uint8 or [].

    Raises:
        UserError: the video cannot be read, is too long, or shows no frame.
    """
    rate = _rate(video, fps)
    times, found, kept = [], [], []
    height = width = 0
    last, hands = -1, []
    for frame in _frames(video, rate):
        if frame.time >= seconds:
            raise UserError(f"{video}: is longer than {seconds:g} s; cut it")
        height, width = frame.image.shape[:2]
        if frame.index != last:
            hands = detector.detect(frame.image, frame.time)
        last = frame.index
        times.append(frame.time)
        found.append(hands)
        if square is not None:
            kept.append(Square.of(height, width, square, "crop").image(frame.image))
    if square is not None:
        area = Square.of(height, width, square, "crop")
        found = [[_moved(hand, area) for hand in hands] for hands in found]
        height = width = square
    return track_hands(found, times, height, width), rate, kept


def _moved(hand: HandObservation, area: Square) -> HandObservation:
    return dataclasses.replace(hand, keypoints=area.points(hand.keypoints))


def _rate(video: Path, fps: float | None) -> float:
    if fps is not None:
        if not 0 < fps <= 240:
            raise UserError(f"--fps {fps:g}: give a number above 0, at most 240")
        return fps
    if video.is_dir():
        return FOLDER_FPS
    try:
        return min(probe(video).fps, float(CONTROL_HZ))
    except VideoError as error:
        raise UserError(f"{video}: {error}; give a video or a folder of images") from error


def _frames(video: Path, fps: float) -> Iterator[Frame]:
    if not video.exists():
        raise UserError(f"{video}: no such file or folder; give a video, a folder of images, or a store")
    try:
        yield from sample(video, fps=fps, sequence_fps=fps)
    except VideoError as error:
        raise UserError(f"{video}: {error}; give a video that plays, or a folder of images") from error


# ---------------------------------------------------------------------------------------------------------------------
# Films
# ---------------------------------------------------------------------------------------------------------------------


def show_video(video: Path, output: Path, detector: HandDetector, fps: float | None = None) -> tuple[Path, ClipQuality]:
    """Film a video or image sequence with the skeletons of its hands; return the film and the clip's quality.

    Raises:
        UserError: the video cannot be read.
    """
    tracks, rate, _ = follow_video(video, detector, fps)
    quality = clip_quality(tracks)
    size = _even(tracks.width, tracks.height, _FILM_SIDE)
    arrays = tracks.arrays()
    film = FilmWriter(output, rate, (size[0], size[1] + 30))
    try:
        for row, frame in enumerate(_frames(video, rate)):
            drawn = draw_skeleton(
                frame.image, arrays["keypoints"][row], arrays["visible"][row], tracks.interpolated[row], size
            )
            film.add(draw_caption(drawn, _says(tracks, row)))
    except BaseException:
        film.discard()
        raise
    return film.close() or output, quality


def _says(tracks: HandTracks, row: int) -> str:
    found = [
        f"{side} {'between frames' if tracks.interpolated[row, hand] else f'{tracks.score[row, hand]:.2f}'}"
        for hand, side in enumerate(("left", "right"))
        if tracks.detected[row, hand] or tracks.interpolated[row, hand]
    ]
    return f"{tracks.times[row]:6.2f} s   {', '.join(found) or 'no hand'}"


def show_clip(
    store: EpisodeStore, identity: str, output: Path, checkpoint: str | None = None, fps: float | None = None
) -> Path:
    """Film a stored clip: keypoints as stored, in their normal form and, with a stage-1 checkpoint, as foreseen there
    one step before (white: what the model foresaw for this frame; colours: what came).

    Raises:
        UserError: no such clip, not a human one, or the checkpoint is of another kind.
    """
    if identity not in store:
        raise UserError(f"{store.path}: no clip {identity!r}; --clip takes an id, or a number below {len(store)}")
    header = store.header(identity)
    if header.embodiment != "human":
        raise UserError(f"{store.path}: {identity} is a robot episode; give a store of human clips")
    if not len(header.image_steps):
        raise UserError(f"{store.path}: {identity} has no images; convert it with images")
    arrays = store.arrays(identity, ["keypoints", "visible"])
    keypoints, visible = arrays["keypoints"], arrays["visible"]
    steps = header.image_steps
    images = store.frames(identity, "rgb_static", np.arange(len(steps)))
    height, width = images.shape[1:3]
    foreseen = known = None
    if checkpoint is not None:
        model = Foresight(checkpoint)
        foreseen, known, truth, there = model.foresee(header.instruction, keypoints, visible, images, steps, header.fps)
    thin = _interpolated(header.meta, len(keypoints), keypoints.shape[1] // POINTS)
    size = _even(width, height, _PANEL, enlarge=True)
    panels = 2 if foreseen is None else 3
    rate = fps or header.fps / max(1.0, float(np.median(np.diff(steps)))) if len(steps) > 1 else fps or 1.0
    film = FilmWriter(output, rate, (panels * size[0], size[1] + 30))
    try:
        for number, step in enumerate(steps):
            parts = [
                draw_skeleton(images[number], keypoints[step], visible[step], thin[step], size),
                draw_normal_form(keypoints[step], visible[step], height, width, size),
            ]
            if foreseen is not None:
                parts.append(
                    draw_skeleton(
                        images[number], truth[number], there[number], None, size, foreseen[number], known[number]
                    )
                )
            film.add(draw_caption(np.concatenate(parts, axis=1), f"{step:4d}  {header.instruction}"))
    except BaseException:
        film.discard()
        raise
    return film.close() or output


def _interpolated(meta: dict[str, Any], steps: int, hands: int) -> np.ndarray:
    thin = np.zeros((steps, hands), bool)
    rows = [row for row in meta.get("interpolated_frames", []) if isinstance(row, int) and 0 <= row < steps]
    thin[rows] = True
    return thin


def predict_hands(
    checkpoint: str, video: Path, text: str, output: Path, detector: HandDetector, fps: float | None = None
) -> tuple[Path, dict[str, float]]:
    """Film a video with the hand (colours) and what a stage-1 model foresees of the next step (white).

    The model sees what `convert human` would store: the middle square of each frame, at its rate.

    Returns: the film; mean distance per joint in pixels at 224 of what was foreseen, and of the pose kept.

    Raises:
        UserError: the video or checkpoint cannot be read, the text is blank, or no hand is seen.
    """
    if not text.strip():
        raise UserError("predict-hands: --text is blank; say what the hand does")
    model = Foresight(checkpoint)
    tracks, rate, squares = follow_video(video, detector, fps, model.image_size)
    if not tracks.detected.any():
        raise UserError(f"{video}: no hand in any frame; give a video that shows one")
    arrays = tracks.arrays()
    every = np.arange(len(squares))
    foreseen, known, current, seen = model.foresee(
        text, arrays["keypoints"], arrays["visible"], np.stack(squares), every, rate, ahead=True
    )
    stride = model.stride(rate)
    errors = _errors(foreseen, known, current, seen, stride, model.image_size)
    film: FilmWriter | None = None
    try:
        for row, frame in enumerate(_frames(video, rate)):
            height, width = frame.image.shape[:2]
            area = Square.of(height, width, model.image_size, "crop")
            size = _even(width, height, _FILM_SIDE)
            film = film or FilmWriter(output, rate, (size[0], size[1] + 30))
            drawn = draw_skeleton(
                frame.image, _back(current[row], area), seen[row], None, size, _back(foreseen[row], area), known[row]
            )
            film.add(draw_caption(drawn, f"{frame.time:6.2f} s   {text}   (white: {stride / rate:.2f} s ahead)"))
    except BaseException:
        if film is not None:
            film.discard()
        raise
    assert film is not None
    return film.close() or output, errors


def _back(points: np.ndarray, area: Square) -> np.ndarray:
    """Points of the square as points of the whole image."""
    return points[..., :2] * (area.side / area.size) + (area.left, area.top)


def _errors(
    foreseen: np.ndarray, known: np.ndarray, current: np.ndarray, seen: np.ndarray, stride: int, size: int
) -> dict[str, float]:
    if len(current) <= stride:
        return {}
    both = known[:-stride] & seen[:-stride] & seen[stride:]
    if not both.any():
        return {}
    scale = 224 / size
    model = np.linalg.norm(foreseen[:-stride, :, :2] - current[stride:, :, :2], axis=-1)[both].mean() * scale
    hold = np.linalg.norm(current[:-stride, :, :2] - current[stride:, :, :2], axis=-1)[both].mean() * scale
    return {"model_px224": float(model), "hold_px224": float(hold)}


class Foresight:
    """A stage-1 checkpoint that foresees keypoints of whole clips.

    Raises:
        UserError: the checkpoint is missing, damaged or of stage 2.
    """

    def __init__(self, checkpoint: str) -> None:
        from arvrm.model.checkpoint import load_checkpoint
        from arvrm.model.encoders import TextEncoder
        from arvrm.windows import WindowConfig

        self.checkpoint = load_checkpoint(checkpoint, kind="keypoint_vlm")
        window = self.checkpoint.metadata.get("window", {})
        self.history = int(window.get("history", WindowConfig.history))
        self._control_stride = int(window.get("stride", WindowConfig.stride))
        self.text = TextEncoder(self.checkpoint.config.text)
        stored = self.checkpoint.metadata.get("images", {}).get("static")
        self.image_size = int(stored or self.checkpoint.config.vision.static_size)

    def stride(self, fps: float) -> int:
        """Steps of a clip at `fps` between two frames of a window."""
        return max(1, round(self._control_stride * fps / CONTROL_HZ))

    def foresee(
        self,
        text: str,
        keypoints: np.ndarray,
        visible: np.ndarray,
        images: np.ndarray,
        image_steps: np.ndarray,
        fps: float,
        ahead: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Foresee one stride from each image.

        Args:
            keypoints: (N, K, 3) in pixels of `images`; visible: (N, K).
            images: (F, H, W, 3) uint8 at the steps `image_steps` (F,).
            ahead: return at each image what is foreseen from it; else what was foreseen for it, one stride before.

        Returns:
            foreseen (F, K', 3), pixels, and known (F, K') bool, whether there was anything to go on from; keypoints and
            visible at the images, (F, K', 3) and (F, K'). K' is the model's.
        """
        import torch

        from arvrm.hands.coordinates import denormalise_keypoints, normalise_keypoints
        from arvrm.windows import choose_hand

        height, width = images.shape[1:3]
        points, seen = choose_hand(keypoints, visible, self.checkpoint.config.keypoints)
        normal = normalise_keypoints(np.where(seen[..., None], points, 0.0), height, width)
        stride = self.stride(fps)
        now = image_steps if ahead else image_steps - stride
        back = stride * np.arange(self.history - 1, -1, -1)
        steps = now[:, None] - back
        mask = steps >= image_steps[0]
        rows = np.maximum(steps, image_steps[0])
        shown = np.searchsorted(image_steps, rows, side="right") - 1
        # A window that lies wholly before the clip has nothing to attend to: the first frame stands in, and `known` is
        # False.
        attended = mask.copy()
        attended[:, -1] = True
        words, words_mask = self.text.tokens([text])
        found = []
        with torch.inference_mode():
            for first in range(0, len(now), _BATCH):
                part = slice(first, first + _BATCH)
                count = len(now[part])
                batch = {
                    "text": words.expand(count, -1, -1),
                    "text_mask": words_mask.expand(count, -1),
                    "static": torch.from_numpy(images[shown[part]]),
                    "keypoints": torch.from_numpy(normal[rows[part]]),
                    "visible": torch.from_numpy(seen[rows[part]]),
                    "frame_mask": torch.from_numpy(attended[part]),
                }
                found.append(self.checkpoint.model(batch)["next_keypoints_predicted"].float().numpy())
        foreseen = denormalise_keypoints(np.concatenate(found), height, width)
        known = (seen[rows] & mask[..., None]).any(axis=1)
        return foreseen, known, points[image_steps], seen[image_steps]


def _even(width: int, height: int, longest: int, enlarge: bool = False) -> tuple[int, int]:
    """W, H, both even, the longer `longest` pixels at most (with `enlarge`: just so)."""
    scale = longest / max(width, height)
    if not enlarge:
        scale = min(scale, 1.0)
    return max(2, 2 * round(width * scale / 2)), max(2, 2 * round(height * scale / 2))


# ---------------------------------------------------------------------------------------------------------------------
# The quality page
# ---------------------------------------------------------------------------------------------------------------------

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
        UserError: the store has no human clips, or the page exists.
    """
    from jinja2 import Environment

    _free(output, overwrite)
    limits = limits or QualityLimits()
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
    page = Environment(autoescape=True).from_string(source).render(
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
    partial = output.with_name(f".{output.name}.tmp")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(page, encoding="utf-8")
    partial.replace(output)
    return output


def _report_of(store: EpisodeStore) -> dict[str, Any]:
    file = store.path.with_name(store.path.name + ".report.json")
    empty: dict[str, Any] = {"poor": {}, "quality": {}, "errors": {}, "reasons": {}}
    if not file.is_file():
        return empty
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {name: dict(found.get(name, {})) for name in empty}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: no report of a conversion ({error}); convert again, or remove it") from error


def _quality(values: dict[str, Any]) -> ClipQuality | None:
    try:
        return ClipQuality(**values)
    except TypeError:
        return None


def _stored_quality(store: EpisodeStore, header: Any) -> ClipQuality:
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
    with tempfile.TemporaryDirectory() as folder:
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
    thin = _interpolated(header.meta, header.steps, arrays["keypoints"].shape[1] // POINTS)
    size = _even(images.shape[2], images.shape[1], _PAGE_SIDE, enlarge=True)
    spacing = float(np.median(np.diff(header.image_steps))) if len(rows) > 1 else header.fps
    film = FilmWriter(output, header.fps / max(spacing, 1.0), size)
    for row in rows:
        step = header.image_steps[row]
        film.add(draw_skeleton(images[row], arrays["keypoints"][step], arrays["visible"][step], thin[step], size))
    return film.close()


# ---------------------------------------------------------------------------------------------------------------------
# Verbs
# ---------------------------------------------------------------------------------------------------------------------


def _free(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise UserError(f"{path}: exists; pass --overwrite to replace it, or another --output")


def _is_store(path: Path) -> bool:
    return (path / "data.mdb").is_file()


def _add_detector(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="FILE", help="hand_landmarker.task (default: the one fetched)")
    parser.add_argument("--detector", default="mediapipe", metavar="NAME", help="mediapipe, or package.module:Class")
    parser.add_argument("--fps", type=float, metavar="X", help="frames a second (default: the video's; folders: 2)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")


def _detector(arguments: argparse.Namespace) -> HandDetector:
    if arguments.detector == "mediapipe" and not arguments.model and not default_model().is_file():
        MediaPipeDetector(None)  # says what to do
    return make_detector(arguments.detector, arguments.model)


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="VIDEO|FOLDER|STORE", help="video, folder of images, or episode store")
    parser.add_argument("--output", metavar="FILM", help="film to write (default: NAME_hands.mp4 here)")
    parser.add_argument("--clip", metavar="N", help="clip of a store: its number from 0, or its id (default: 0)")
    text = "with a store: stage-1 checkpoint, to show what it foresees"
    parser.add_argument("--checkpoint", metavar="DIR", help=text)
    _add_detector(parser)


def _run_show(arguments: argparse.Namespace) -> int:
    source = Path(arguments.input)
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; give a video, a folder of images, or a store")
    if _is_store(source):
        store = EpisodeStore(source)
        identity = _identity(store, arguments.clip or "0")
        output = Path(arguments.output or f"{source.name}_{_plain(identity)}_hands.mp4")
        _free(output, arguments.overwrite)
        print(show_clip(store, identity, output, arguments.checkpoint, arguments.fps))
        return 0
    if arguments.clip or arguments.checkpoint:
        raise UserError(f"hands show: {source} is no store; --clip and --checkpoint go with one (see predict-hands)")
    output = Path(arguments.output or f"{source.stem if source.is_file() else source.name}_hands.mp4")
    _free(output, arguments.overwrite)
    film, quality = show_video(source, output, _detector(arguments), arguments.fps)
    print(_line(quality), file=sys.stderr)
    print(film)
    return 0


def _line(quality: ClipQuality) -> str:
    return (
        f"{quality.frames} frames, a hand in {100 * quality.detection_rate:.0f} %, jitter {quality.jitter:.3f}, "
        f"beyond the border {100 * quality.truncation:.0f} %, motion energy {quality.motion_energy:.2f}, "
        f"acting: {quality.acting_hand}"
    )


def _plain(identity: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in identity)[:80]


def _identity(store: EpisodeStore, clip: str) -> str:
    """The id of a clip given by id or number."""
    if clip in store:
        return clip
    if clip.isascii() and clip.isdigit() and int(clip) < len(store):
        return store.ids[int(clip)]
    raise UserError(f"{store.path}: no clip {clip!r}; --clip takes an id, or a number below {len(store)}")


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="VIDEO|FOLDER", help="video, or folder of images")
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="stage-1 checkpoint")
    parser.add_argument("--text", required=True, help="what the hand does")
    parser.add_argument("--output", metavar="FILM", help="film to write (default: NAME_predicted.mp4 here)")
    _add_detector(parser)


def _run_predict(arguments: argparse.Namespace) -> int:
    source = Path(arguments.input)
    output = Path(arguments.output or f"{source.stem if source.is_file() else source.name}_predicted.mp4")
    _free(output, arguments.overwrite)
    if not arguments.text.strip():
        raise UserError("predict-hands: --text is blank; say what the hand does")
    detector = _detector(arguments)
    film, errors = predict_hands(arguments.checkpoint, source, arguments.text, output, detector, arguments.fps)
    if errors:
        of = f"{errors['model_px224']:.2f} px of 224 from what came; the pose kept: {errors['hold_px224']:.2f} px"
        print(f"foreseen: {of}", file=sys.stderr)
    print(film)
    return 0


def _add_quality(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="store that `arvrm convert human` wrote")
    parser.add_argument("--output", metavar="HTML", help="the page (default: STORE.quality.html)")
    parser.add_argument("--films", type=int, default=4, metavar="N", help="worst and best clips to show (default: 4)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing page")


def _run_quality(arguments: argparse.Namespace) -> int:
    store = EpisodeStore(arguments.store)
    output = Path(arguments.output or arguments.store.rstrip("/") + ".quality.html")
    print(quality_page(store, output, max(arguments.films, 0), overwrite=arguments.overwrite))
    return 0


def _add_fetch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", metavar="FILE", help="where to (default: the user's cache folder)")
    sources = ("auto", "publisher", "wheel")
    text = "publisher's site, a package of the package index, or the first in reach (default: auto)"
    parser.add_argument("--source", choices=sources, default="auto", help=text)
    parser.add_argument("--overwrite", action="store_true", help="fetch it anew")


def _run_fetch(arguments: argparse.Namespace) -> int:
    print(fetch_model(arguments.output, arguments.source, arguments.overwrite))
    return 0


VERBS = (
    Verb("hands fetch-model", "get MediaPipe's hand model, checked", _add_fetch, _run_fetch),
    Verb("hands show", "film a video, or a clip of a store, with the hands drawn", _add_show, _run_show),
    Verb("hands quality", "one HTML page about a store's hands", _add_quality, _run_quality),
    Verb("predict-hands", "film a video with what a stage-1 model foresees", _add_predict, _run_predict),
)
