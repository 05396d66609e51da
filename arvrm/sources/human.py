"""Videos of human hands into episode stores: decode, detect, follow, judge, store. docs/human_videos.md is the manual.

Work is split by clip over processes, each with its own detector; a clip is decoded as a stream and only the reduced
images are kept, so that a worker holds one clip. Results are stored in the source's order, one transaction a clip.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import multiprocessing
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from arvrm import plugins
from arvrm.episodes import JPEG_QUALITY, EncodedEpisode, Episode, EpisodeStore, EpisodeWriter, encode_episode
from arvrm.files import write_json
from arvrm.hands.detect import SIDES, HandDetector, HandObservation, MediaPipeDetector, find_model
from arvrm.hands.quality import ClipQuality, QualityLimits, clip_quality
from arvrm.hands.tracking import HandTracks, track_hands
from arvrm.interface import UserError
from arvrm.sources.corpora import EGODEX_FPS, Segment, check_source, egodex_hands, plan
from arvrm.sources.pipeline import LeftOut, in_order, store_in_order
from arvrm.sources.video import VIDEO_SUFFIXES, Frame, VideoError, probe, sample

MEDIAPIPE = "mediapipe"
_SLOW = 0.9
"""A video with less than this share of the rate asked for keeps its own: steps without a new frame teach standstill."""
_SHORT_S = 0.1
"""A clip that ends so much before its segment was cut by the video's end."""
_SHAPING = ("source", "clip_seconds", "fps", "image_fps", "sequence_fps", "max_seconds", "image_size", "fit", "hands")


@dataclass(frozen=True)
class ConvertHumanConfig:
    """What `arvrm convert human` does.

    Attributes:
        source: whose annotations: "folder" (one's own), "ego4d", "epic", "ssv2", "egodex", or a corpus of one's own as
            package.module:function (docs/extending.md).
        input: the folder that holds the videos, at any depth.
        output: the episode store.
        annotations: file that says which stretch shows what; null: the source's usual one in `input`.
        clip_seconds: Ego4D gives moments; clips of this length are cut around them.
        fps: steps a second; a slower video keeps its own rate.
        image_fps: stored images a second, at most.
        sequence_fps: rate of image sequences, which do not say; null: what the annotations tell, 30 in a folder of
            one's own.
        max_seconds: longer segments are refused, a bound on memory.
        image_size: side of the square images stored.
        fit: "crop" the largest square from the middle, or "letterbox" the whole image between black bars.
        hands: "acting": the hand that does it, K = 21; "both": left, then right, K = 42.
        detector: "mediapipe", or a class as package.module:Class (`hands.detect.HandDetector`).
        model: file given to the detector; null: the one that `arvrm hands fetch-model` stored.
        min_detection_rate, max_jitter, max_truncation, min_motion_energy, max_extra_hands, min_frames: clips beyond
            these are dropped, see `hands.quality.QualityLimits`.
        prefix: begins every id and group, so that stores of folders with equal names can be merged.
        follow_links: read videos that links in `input` lead to outside of it.
        shard: "i/n", i from 1: convert the i-th of n parts only; `arvrm merge` joins them.
        jpeg_quality: 1 to 100.
        workers: processes; 0: one per core; 1: none but this.
        resume, overwrite: continue or replace a store that exists.
    """

    source: str
    input: str
    output: str
    annotations: str | None = None
    clip_seconds: float = 3.0
    fps: float = 30.0
    image_fps: float = 10.0
    sequence_fps: float | None = None
    max_seconds: float = 60.0
    image_size: int = 224
    fit: Literal["crop", "letterbox"] = "crop"
    hands: Literal["acting", "both"] = "acting"
    detector: str = MEDIAPIPE
    model: str | None = None
    min_detection_rate: float = QualityLimits.min_detection_rate
    max_jitter: float = QualityLimits.max_jitter
    max_truncation: float = QualityLimits.max_truncation
    min_motion_energy: float = QualityLimits.min_motion_energy
    max_extra_hands: float = QualityLimits.max_extra_hands
    min_frames: int = QualityLimits.min_frames
    prefix: str = ""
    follow_links: bool = False
    shard: str | None = None
    jpeg_quality: int = JPEG_QUALITY
    workers: int = 0
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("clip_seconds", "fps", "image_fps", "sequence_fps", "max_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be more than 0")
        for name, least in (("image_size", 16), ("workers", 0), ("min_frames", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.shard is not None:
            found = re.fullmatch(r"(\d+)/(\d+)", self.shard)
            if not found or not 1 <= int(found[1]) <= int(found[2]):
                raise ValueError(f"shard is {self.shard!r}; write i/n with i from 1 to n, such as 1/4")
        if self.detector != MEDIAPIPE and not plugins.is_path(self.detector):
            raise ValueError(f"detector is {self.detector!r}; give mediapipe, or package.module:Class")

    @property
    def limits(self) -> QualityLimits:
        """The limits as `hands.quality` wants them."""
        return QualityLimits(**{name: getattr(self, name) for name in QualityLimits.__dataclass_fields__})


@dataclass(frozen=True)
class HumanReport:
    """What became of a source; also written to STORE.report.json.

    Attributes:
        store: the store's folder.
        episodes, steps, frames: held by the store now.
        errors: id -> why a clip could not be made. These, and only these, make the exit status 1.
        poor: id -> why a clip was made and dropped: beyond a limit of quality.
        cut: ids of clips that are shorter than asked, as the video ends before.
        reasons: how many clips for each kind of reason, of `errors` and `poor`.
        absent: annotated videos of a published set that are not in the folder.
        skipped: reason -> annotations that are not meant for us.
        unread: ending -> files of a folder of one's own that are no videos.
        quality: id -> measures of the clips in `poor`; a stored clip has its own in `meta`.
    """

    store: str
    episodes: int
    steps: int
    frames: int
    errors: dict[str, str] = field(default_factory=dict)
    poor: dict[str, str] = field(default_factory=dict)
    cut: list[str] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    absent: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)
    quality: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Outcome:
    """A segment's clip, or why there is none."""

    encoded: EncodedEpisode | None = None
    error: str | None = None
    poor: str | None = None
    quality: dict[str, Any] | None = None
    cut: bool = False


def convert_human(config: ConvertHumanConfig) -> HumanReport:
    """Convert videos of hands; see `ConvertHumanConfig`. Progress goes to stderr.

    A video or clip that cannot be read leaves out that clip and nothing else. A run that was killed is continued by
    `resume`, which makes clips that are stored or were found poor not again, and tries failed ones once more.

    Raises:
        UserError: the folder, the annotations or the detector cannot be used, or the output exists.
    """
    check_source(config.source)
    _check_detector(config)
    planned = plan(
        config.source,
        Path(config.input),
        Path(config.annotations) if config.annotations else None,
        config.clip_seconds,
        config.follow_links,
        config.sequence_fps,
        config.prefix,
    )
    mine = [segment for segment in planned.segments if _in_shard(segment.id, config.shard)]
    errors = {id: reason for id, reason in planned.refused if _in_shard(id, config.shard)}
    output = Path(config.output)
    manifest = _manifest(config, planned.annotations)
    _check_stored(output, mine, config)
    with EpisodeWriter(output, manifest, config.resume, config.overwrite, config.jpeg_quality) as writer:
        with _Journal(output.with_name(output.name + ".poor.jsonl"), config.resume) as journal:
            todo = [s for s in mine if s.id not in journal.poor and not writer.has(s.id)]
            results = _record(_outcomes(todo, config), errors, journal)
            store_in_order(writer, results, commit=1)
    store = EpisodeStore(output)
    counts = store.manifest["counts"]
    poor = {s.id: journal.poor[s.id]["reason"] for s in mine if s.id in journal.poor}
    headers = {header.id: header for header in store.headers()}
    report = HumanReport(
        store=str(output),
        episodes=counts["episodes"],
        steps=counts["steps"],
        frames=counts["frames"],
        errors=errors,
        poor=poor,
        cut=[id for id, header in headers.items() if header.meta.get("cut")],
        reasons=dict(sorted(Counter(map(_kind, [*errors.values(), *poor.values()])).items())),
        absent=planned.absent,
        skipped=planned.skipped,
        unread=planned.unread,
        quality={id: journal.poor[id]["quality"] for id in poor},
    )
    write_json(output.with_name(output.name + ".report.json"), vars(report))
    return report


def summary(report: HumanReport) -> list[str]:
    """Return the report as lines for a person."""
    lines = [
        f"{report.episodes} clips, {report.steps} steps, {report.frames} images stored; "
        f"{len(report.poor)} dropped as poor, {len(report.errors)} not made"
    ]
    lines += [f"  {count} x {reason}" for reason, count in report.reasons.items()]
    if report.cut:
        lines.append(f"{len(report.cut)} clips are shorter than asked: the video ends before")
    if report.absent:
        lines.append(f"{report.absent} annotated videos are not in the folder")
    lines += [f"{count} {reason}" for reason, count in report.skipped.items()]
    if report.unread:
        listed = ", ".join(f"{count} {ending}" for ending, count in report.unread.items())
        lines.append(f"not read: {listed}; videos end in {' '.join(VIDEO_SUFFIXES)}")
    return lines


# ---------------------------------------------------------------------------------------------------------------------
# One clip
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Square:
    """How an image of height x width becomes a square of `size` pixels, and what that does to points.

    Attributes:
        left, top: pixels of the image at which the square begins (negative: bars).
        side: of the square in pixels of the image.
    """

    size: int
    left: float
    top: float
    side: int

    @classmethod
    def of(cls, height: int, width: int, size: int, fit: str) -> Square:
        """Return the square that `ConvertHumanConfig.fit` asks for."""
        side = min(height, width) if fit == "crop" else max(height, width)
        return cls(size, (width - side) // 2, (height - side) // 2, side)

    def image(self, image: np.ndarray) -> np.ndarray:
        """Return (size, size, 3) uint8."""
        from PIL import Image

        height, width = image.shape[:2]
        bilinear = Image.Resampling.BILINEAR
        if self.top < 0:
            # Pillow reduces rows first, then columns: bars above and below change nothing of the first, costlier half.
            rows = Image.fromarray(np.ascontiguousarray(image)).resize((self.size, height), bilinear)
            whole = Image.new("RGB", (self.size, self.side))
            whole.paste(rows, (0, -self.top))
        elif self.left < 0:
            whole = Image.new("RGB", (self.side, self.side))
            whole.paste(Image.fromarray(np.ascontiguousarray(image)), (-self.left, 0))
        else:
            square = image[self.top : self.top + self.side, self.left : self.left + self.side]
            whole = Image.fromarray(np.ascontiguousarray(square))
        return np.asarray(whole.resize((self.size, self.size), bilinear))

    def points(self, keypoints: np.ndarray) -> np.ndarray:
        """Return keypoints (..., 3) of the image as keypoints of the square, float32; depth stays."""
        moved = np.array(keypoints, dtype=np.float64)
        moved[..., :2] = (moved[..., :2] - (self.left, self.top)) * (self.size / self.side)
        return moved.astype(np.float32)


class _ImageSteps:
    """Which steps have an image: the first at or after each multiple of 1 / image_fps seconds."""

    def __init__(self, fps: float, image_fps: float) -> None:
        self._spacing, self._taken = max(1.0, fps / image_fps), 0

    def __call__(self, step: int) -> bool:
        due = step >= self._taken * self._spacing - 1e-6
        self._taken += due
        return due


class _Converter:
    """Makes clips of segments, with one detector that is made when it is first needed."""

    def __init__(self, config: ConvertHumanConfig) -> None:
        self.config = config
        self._detector: HandDetector | None = None

    def __call__(self, segment: Segment) -> _Outcome:
        detector = self._detector
        if detector is None and segment.poses is None:
            # What is wrong with a detector is wrong for all clips: not caught here.
            detector = self._detector = make_detector(self.config.detector, self.config.model)
        try:
            return self._convert(segment, detector)
        except VideoError as error:
            return _Outcome(error=f"{_name(segment)} {error}")
        except (UserError, ValueError, MemoryError, OSError) as error:
            return _Outcome(error=f"{_name(segment)}: {' '.join(str(error).split()) or type(error).__name__}")
        except Exception as error:  # whatever a library meets in one damaged clip, the others go on
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return _Outcome(error=f"{_name(segment)} cannot be converted ({why})")

    def _convert(self, segment: Segment, detector: HandDetector | None) -> _Outcome:
        config = self.config
        rate = segment.rate or 30.0
        end = segment.end if segment.end is not None else (segment.start or 0.0) + config.max_seconds
        info = probe(segment.video, rate, segment.start, end)
        fps = config.fps if info.fps >= _SLOW * config.fps else info.fps
        due = _ImageSteps(fps, config.image_fps)
        times, images, image_steps, found, rows = [], [], [], [], []
        square: Square | None = None
        start, height, width = segment.start, 0, 0
        last, hands = -1, []
        for number, frame in enumerate(sample(segment.video, segment.start, segment.end, fps, rate)):
            if number >= config.max_seconds * fps:
                longer = f"is longer than {config.max_seconds:g} s; give start and end, or raise --max-seconds"
                raise VideoError(longer)
            if square is None:
                start, (height, width) = frame.time, frame.image.shape[:2]
                square = Square.of(height, width, config.image_size, config.fit)
            times.append(frame.time - start)
            if due(number):
                images.append(square.image(frame.image))
                image_steps.append(number)
            if detector is not None and segment.poses is None:
                if frame.index != last:
                    hands = _detect(detector, frame, times[-1], square)
                last = frame.index
                found.append(hands)
            else:
                rows.append(round(times[-1] * EGODEX_FPS))
        side = config.image_size
        if segment.poses is None:
            tracks = track_hands(found, times, side, side)
        else:
            tracks = _tracks_of_poses(segment.poses, rows, times, square, height, width)
        quality = clip_quality(tracks)
        reasons = config.limits.reasons(quality)
        if reasons:
            return _Outcome(poor="; ".join(reasons), quality=quality.to_dict())
        seconds = len(times) / fps
        asked = None if segment.end is None or segment.around else segment.end - start
        cut = asked is not None and seconds < asked - max(_SHORT_S, 1.5 / fps)
        arrays, hand = _choose(tracks, quality, config.hands)
        meta = {
            "video": segment.video.name.encode("utf-8", "replace").decode(),
            "start": start,
            "seconds": round(seconds, 3),
            "hand": hand,
            "interpolated_frames": np.flatnonzero(tracks.interpolated.any(axis=1)).tolist(),
            "quality": {k: round(v, 6) if isinstance(v, float) else v for k, v in quality.to_dict().items()},
            **({"cut": True} if cut else {}),
            **segment.meta,
        }
        episode = Episode(
            id=segment.id,
            embodiment="human",
            instruction=segment.text,
            task="",
            scene="",
            source=config.source,
            group=segment.group,
            fps=float(fps),
            arrays=arrays,
            images={"rgb_static": np.stack(images)},
            image_steps=np.array(image_steps, dtype=np.int32),
            meta=meta,
        )
        return _Outcome(encoded=encode_episode(episode, config.jpeg_quality), cut=cut)


def _detect(detector: HandDetector, frame: Frame, time_s: float, square: Square) -> list[HandObservation]:
    """Detect in the whole image, and give the hands in pixels of the stored one."""
    try:
        hands = detector.detect(frame.image, time_s)
    except UserError:
        raise
    except Exception as error:  # a user's own detector may raise anything; the other clips go on
        raise VideoError(f"at {frame.time:.2f} s: the detector failed ({type(error).__name__}: {error})") from error
    return [HandObservation(h.side, h.score, square.points(h.keypoints), h.presence) for h in hands]


def _tracks_of_poses(
    file: Path, rows: list[int], times: list[float], square: Square, height: int, width: int
) -> HandTracks:
    """Return EgoDex's own hands, which need no detector, no identity and no filter."""
    keypoints, seen = egodex_hands(file, width, height)
    if rows and rows[-1] >= len(keypoints) + 2:
        raise ValueError(f"{file.name} holds {len(keypoints)} poses for {rows[-1] + 1} frames of video")
    index = np.minimum(rows, len(keypoints) - 1)
    points, visible = square.points(keypoints[index]), seen[index]
    detected = visible.any(axis=-1)
    visible = visible & ((points[..., :2] >= 0) & (points[..., :2] < square.size)).all(axis=-1)
    points = np.where(detected[..., None, None], points, np.float32(0))
    return HandTracks(
        times=np.asarray(times, dtype=np.float64),
        keypoints=points,
        raw=points,
        visible=visible,
        detected=detected,
        interpolated=np.zeros_like(detected),
        score=detected.astype(np.float32),
        seen=detected.sum(axis=1).astype(np.int32),
        height=square.size,
        width=square.size,
    )


def _choose(tracks: HandTracks, quality: ClipQuality, hands: str) -> tuple[dict[str, np.ndarray], str]:
    """Return the arrays of both hands or of the acting one, and its name."""
    if hands == "both":
        return tracks.arrays(), "both"
    if quality.acting_hand in SIDES:
        side = SIDES.index(quality.acting_hand)
    else:  # both act: the one that was seen more, the right one if alike
        counts = tracks.detected.sum(axis=0)
        side = int(counts[1] >= counts[0])
    return {"keypoints": tracks.keypoints[:, side].copy(), "visible": tracks.visible[:, side].copy()}, SIDES[side]


def make_detector(name: str, model: str | None) -> HandDetector:
    """Return a detector: "mediapipe", or an instance of package.module:Class, made with `model` if one is given.

    Raises:
        UserError: there is no such class, or it cannot be made.
    """
    if name == MEDIAPIPE:
        return MediaPipeDetector(model)
    kind = plugins.load(name, "--detector")
    try:
        return kind(model) if model is not None else kind()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"detector {name}: cannot be made ({type(error).__name__}: {error})") from error


def _check_detector(config: ConvertHumanConfig) -> None:
    """Find out before any work whether there will be a detector, without the seconds that MediaPipe's import takes."""
    if config.source == "egodex":
        return
    if config.detector != MEDIAPIPE:
        plugins.load(config.detector, "--detector")
        return
    if importlib.util.find_spec("mediapipe") is None:
        raise UserError("hand detector: mediapipe is not installed; run `pip install 'arvrm[hands]'`")
    find_model(config.model)


# ---------------------------------------------------------------------------------------------------------------------
# Many clips
# ---------------------------------------------------------------------------------------------------------------------

_converter: _Converter | None = None  # of a worker process


def _start_worker(config: ConvertHumanConfig) -> None:
    global _converter
    _converter = _Converter(config)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    parent = multiprocessing.parent_process()

    def follow() -> None:
        # A killed parent cannot tell its workers.
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _work(segment: Segment) -> _Outcome:
    assert _converter is not None
    return _converter(segment)


def _outcomes(segments: list[Segment], config: ConvertHumanConfig) -> Iterator[tuple[Segment, _Outcome]]:
    """Convert in order. A clip that kills its worker, as broken videos can, is left out and the rest goes on."""
    workers = config.workers or os.cpu_count() or 1
    if workers == 1:
        with ThreadPoolExecutor(1) as pool:
            yield from in_order(segments, pool, _Converter(config), lambda _: 1, 1, "convert human", " clips")
        return
    done = 0
    while done < len(segments):
        try:
            # A few finished clips wait, encoded, for an earlier one that takes longer.
            for segment, outcome in in_order(
                segments[done:], _pool(workers, config), _work, lambda _: 1, 3 * workers, "convert human", " clips"
            ):
                done += 1
                yield segment, outcome
        except BrokenProcessPool:
            # One of those under way did it: the first is tried by itself, the others in the next round.
            segment = segments[done]
            done += 1
            with _pool(1, config) as pool:
                try:
                    outcome = pool.submit(_work, segment).result()
                except BrokenProcessPool:
                    outcome = _Outcome(error=f"{_name(segment)} killed the process that worked on it")
            yield segment, outcome


def _pool(workers: int, config: ConvertHumanConfig) -> Executor:
    # Spawned: a fork would copy the threads' locks of whatever the caller runs.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(config,))


def _record(
    outcomes: Iterator[tuple[Segment, _Outcome]], errors: dict[str, str], journal: _Journal
) -> Iterator[tuple[Segment, EncodedEpisode | LeftOut]]:
    for segment, outcome in outcomes:
        if outcome.error is not None:
            errors[segment.id] = outcome.error
        elif outcome.poor is not None:
            journal.add(segment.id, outcome.poor, outcome.quality or {})
        yield segment, outcome.encoded or LeftOut(outcome.error or outcome.poor or "")


class _Journal:
    """Remembers poor clips across runs, a JSON line each: the store does not know them, and detection is dear."""

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        self.poor: dict[str, dict[str, Any]] = {}
        if resume and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    self.poor[entry["id"]] = entry
                except (ValueError, KeyError, TypeError):
                    continue  # the last line of a killed run
        try:
            partial = path.with_name(path.name + ".partial")
            partial.write_text("".join(json.dumps(e) + "\n" for e in self.poor.values()), encoding="utf-8")
            os.replace(partial, path)
            self._stream = path.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another output") from error

    def add(self, id: str, reason: str, quality: dict[str, Any]) -> None:
        self.poor[id] = {"id": id, "reason": reason, "quality": quality}
        self._stream.write(json.dumps(self.poor[id]) + "\n")
        self._stream.flush()

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, *_: Any) -> None:
        self._stream.close()


def _in_shard(id: str, shard: str | None) -> bool:
    """By the id alone, so that shards never overlap, even if one machine sees more videos than another."""
    if shard is None:
        return True
    part, parts = map(int, shard.split("/"))
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") % parts == part - 1


def _manifest(config: ConvertHumanConfig, annotations: str) -> dict[str, Any]:
    settings = {name: getattr(config, name) for name in _SHAPING} | {"limits": vars(config.limits)}
    if config.source != "egodex":
        settings["detector"] = config.detector
    if config.prefix:
        settings["prefix"] = config.prefix
    made = {"source": f"human/{config.source}", "settings": settings, "shard": config.shard}
    return made | ({"annotations_sha256": annotations} if annotations else {})


def _check_stored(output: Path, segments: list[Segment], config: ConvertHumanConfig) -> None:
    """Refuse to go on where a stored clip's sentence has changed; texts that lie beside videos have no file to hash."""
    if not config.resume or not (output / "data.mdb").exists():
        return
    store = EpisodeStore(output)
    for segment in segments:
        if segment.id in store and (known := store.header(segment.id).instruction) != segment.text:
            raise UserError(
                f"{output}: clip {segment.id!r} says {known[:60]!r}, its source now {segment.text[:60]!r}; "
                "convert anew with --overwrite"
            )


def _name(segment: Segment) -> str:
    return segment.video.name.encode("utf-8", "replace").decode()


_KINDS: Mapping[str, str] = {
    r"text is blank": "blank text",
    r"has no length": "no length",
    r"before the video": "begins before the video",
    r"is over at": "begins after the video's end",
    r"is not there|no video .* in the folder|not beside": "no such video",
    r"truncated": "truncated video",
    r"leads out of the folder": "outside of the folder",
    r"cells where the header|close the quote|quote a text": "unreadable row",
    r"rate nobody states|is missing, so times": "unknown rate",
    r"damaged|cannot be opened|holds no|has no transforms|numbers; fetch|NaN or infinity": "damaged video or poses",
    r"is longer than": "too long",
    r"no hand in any frame": "no hand in any frame",
    r"extra hands": "more than two hands",
    r"detector failed": "detector failed",
    r"killed the process": "killed its worker",
}


def _kind(reason: str) -> str:
    """What a reason is counted under: without its numbers and names."""
    for pattern, kind in _KINDS.items():
        if re.search(pattern, reason):
            return kind
    return re.match(r"[a-z ]*", reason)[0].strip() or "other"
