"""Films of hands: of videos, stored clips and predictions, with the skeleton drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from arvrm.episodes import EpisodeStore
from arvrm.films import FilmWriter
from arvrm.hands.detect import HandDetector, HandObservation
from arvrm.hands.quality import ClipQuality, clip_quality
from arvrm.hands.tracking import HandTracks, track_hands
from arvrm.interface import CONTROL_HZ, UserError
from arvrm.show.predictor import HandPredictor
from arvrm.show.skeleton import POINTS, draw_caption, draw_normal_form, draw_skeleton, even_size, interpolated_hands
from arvrm.sources.clips import Square
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
