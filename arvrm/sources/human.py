"""Videos of human hands into episode stores: decode, detect, follow, judge, store. docs/human_videos.md is the manual.

Work is split by clip over processes, each with its own detector; a clip is decoded as a stream and only the reduced
images are kept, so that a worker holds one clip. Results are stored in the source's order, one transaction a clip.
"""

from __future__ import annotations

import contextlib
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

from arvrm import clusters, plugins
from arvrm.clusters import Engine
from arvrm.config import bounded, check_bounds
from arvrm.episodes import JPEG_QUALITY, EncodedEpisode, EpisodeStore, EpisodeWriter
from arvrm.files import locked, replacing, reporting, write_json
from arvrm.hands.detect import find_model
from arvrm.hands.gripper import FRAMES
from arvrm.hands.quality import QualityLimits
from arvrm.interface import UserError
from arvrm.sources.clips import MEDIAPIPE, Converter, Outcome, bytes_of, name_of
from arvrm.sources.corpora import Plan, Segment, check_source, plan
from arvrm.sources.pipeline import LeftOut, in_order, store_in_order
from arvrm.sources.video import VIDEO_SUFFIXES, VideoError

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
        grippers: also store both hands as grippers (opening and pose), and the camera's pose: of EgoDex, and of corpora
            of one's own whose segments name `poses`.
        detector: "mediapipe", or a class as package.module:Class (`hands.detect.HandDetector`).
        model: file given to the detector; null: the one that `arvrm hands fetch-model` stored.
        min_detection_rate, max_jitter, max_truncation, min_motion_energy, max_extra_hands, min_frames: clips beyond
            these are dropped, see `hands.quality.QualityLimits`.
        prefix: begins every id and group, so that stores of folders with equal names can be merged.
        follow_links: read videos that links in `input` lead to outside of it.
        shard: "i/n", i from 1: convert the i-th of n parts only; `arvrm merge` joins them.
        jpeg_quality: 1 to 100.
        workers: processes; 0: one per core; 1: none but this.
        engine: local processes, or a Ray cluster (docs/human_videos.md), where `workers` are clips at a time.
        resume, overwrite: continue or replace a store that exists.
    """

    source: str
    input: str
    output: str
    annotations: str | None = None
    clip_seconds: float = bounded(3.0, above=0, most=10**5)
    fps: float = bounded(30.0, above=0, most=1000)
    image_fps: float = bounded(10.0, above=0, most=1000)
    sequence_fps: float | None = bounded(None, above=0, most=1000)
    max_seconds: float = bounded(60.0, above=0, most=10**5)
    image_size: int = bounded(224, least=16, most=4096)
    fit: Literal["crop", "letterbox"] = "crop"
    hands: Literal["acting", "both"] = "acting"
    grippers: bool = False
    detector: str = MEDIAPIPE
    model: str | None = None
    min_detection_rate: float = bounded(QualityLimits.min_detection_rate, least=0, most=1)
    max_jitter: float = bounded(QualityLimits.max_jitter, least=0)
    max_truncation: float = bounded(QualityLimits.max_truncation, least=0, most=1)
    min_motion_energy: float = bounded(QualityLimits.min_motion_energy, least=0)
    max_extra_hands: float = bounded(QualityLimits.max_extra_hands, least=0)
    min_frames: int = bounded(QualityLimits.min_frames, least=1)
    prefix: str = ""
    follow_links: bool = False
    shard: str | None = None
    jpeg_quality: int = bounded(JPEG_QUALITY, least=1, most=100)
    workers: int = bounded(0, least=0, most=1024)
    engine: Engine = "local"
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.shard is not None:
            found = re.fullmatch(r"(\d+)/(\d+)", self.shard)
            if not found or not 1 <= int(found[1]) <= int(found[2]):
                raise ValueError(f"shard is {self.shard!r}; write i/n with i from 1 to n, such as 1/4")
        if self.grippers and self.source != "egodex" and not plugins.is_path(self.source):
            raise ValueError(f"grippers need poses in m, which source {self.source!r} has not; drop it, or use egodex")
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
    with locked(output):  # and so the journal and the report beside it
        _check_stored(output, mine, config)
        poor = _store_clips(config, output, planned.annotations, mine, errors)
        report = _report(output, planned, mine, errors, poor)
        write_json(output.with_name(output.name + ".report.json"), vars(report))
    return report


def _store_clips(
    config: ConvertHumanConfig, output: Path, annotations: str, segments: list[Segment], errors: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Convert what is neither stored nor known to be poor; return the journal of poor clips, and add to `errors`."""
    manifest = _manifest(config, annotations)
    with EpisodeWriter(output, manifest, config.resume, config.overwrite, config.jpeg_quality) as writer:
        with _Journal(output.with_name(output.name + ".poor.jsonl"), config.resume) as journal:
            journal.forget(s for s in segments if s.id in journal.poor and not _same_video(s, journal.bytes(s.id)))
            todo = [s for s in segments if s.id not in journal.poor and not writer.has(s.id)]
            results = _record(_outcomes(todo, config), errors, journal)
            store_in_order(writer, results, commit=1)
    return journal.poor


def _report(
    output: Path, planned: Plan, mine: list[Segment], errors: dict[str, str], journal: dict[str, dict[str, Any]]
) -> HumanReport:
    store = EpisodeStore(output)
    counts = store.manifest["counts"]
    poor = {s.id: journal[s.id]["reason"] for s in mine if s.id in journal}
    headers = {header.id: header for header in store.headers()}
    return HumanReport(
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
        quality={id: journal[id]["quality"] for id in poor},
    )


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
# Many clips
# ---------------------------------------------------------------------------------------------------------------------


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


_converter: Converter | None = None  # of a worker process


def _start_worker(config: ConvertHumanConfig) -> None:
    global _converter
    _converter = Converter(config)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    parent = multiprocessing.parent_process()

    def follow() -> None:
        # A killed parent cannot tell its workers.
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _work(segment: Segment) -> Outcome:
    assert _converter is not None
    return _converter(segment)


def _outcomes(segments: list[Segment], config: ConvertHumanConfig) -> Iterator[tuple[Segment, Outcome]]:
    """Convert in order. A clip that kills its worker, as broken videos can, is left out and the rest goes on."""
    if config.engine == "ray":
        yield from _on_cluster(segments, config)
        return
    workers = config.workers or os.cpu_count() or 1
    if workers == 1:
        with ThreadPoolExecutor(1) as pool:
            yield from in_order(segments, pool, Converter(config), lambda _: 1, 1, "convert human", " clips")
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
                    outcome = Outcome(error=f"{name_of(segment)} killed the process that worked on it")
            yield segment, outcome


def _on_cluster(segments: list[Segment], config: ConvertHumanConfig) -> Iterator[tuple[Segment, Outcome]]:
    done, workers = 0, config.workers or clusters.cores()
    while done < len(segments):
        try:
            pool = clusters.TaskPool(Converter, config)
            for segment, outcome in in_order(
                segments[done:], pool, Converter, lambda _: 1, 3 * workers, "convert human", " clips"
            ):
                done += 1
                yield segment, outcome
        except BrokenProcessPool:  # of this very clip: Ray tried it on other workers
            segment = segments[done]
            done += 1
            yield segment, Outcome(error=f"{name_of(segment)} killed the process that worked on it")


def _pool(workers: int, config: ConvertHumanConfig) -> Executor:
    # Spawned: a fork would copy the threads' locks of whatever the caller runs.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(config,))


def _record(
    outcomes: Iterator[tuple[Segment, Outcome]], errors: dict[str, str], journal: _Journal
) -> Iterator[tuple[Segment, EncodedEpisode | LeftOut]]:
    for segment, outcome in outcomes:
        if outcome.error is not None:
            errors[segment.id] = outcome.error
        elif outcome.poor is not None:
            journal.add(segment, outcome.poor, outcome.quality or {})
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
        with replacing(path) as partial:
            partial.write_text("".join(json.dumps(e) + "\n" for e in self.poor.values()), encoding="utf-8")
        with reporting(path, None):
            self._stream = path.open("a", encoding="utf-8")

    def bytes(self, id: str) -> int | None:
        """Return the size that a poor clip's video had."""
        return self.poor[id].get("bytes")

    def forget(self, segments: Iterator[Segment]) -> None:
        for segment in list(segments):
            del self.poor[segment.id]

    def add(self, segment: Segment, reason: str, quality: dict[str, Any]) -> None:
        id = segment.id
        self.poor[id] = {"id": id, "reason": reason, "quality": quality, "bytes": bytes_of(segment)}
        with reporting(self.path, None):
            self._stream.write(json.dumps(self.poor[id]) + "\n")
            self._stream.flush()

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, *_: Any) -> None:
        with contextlib.suppress(OSError):  # a full disk, which was said when the line was added
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
    if config.grippers:
        settings["grippers"] = FRAMES
    made = {"source": f"human/{config.source}", "settings": settings, "shard": config.shard}
    return made | ({"annotations_sha256": annotations} if annotations else {})


def _check_stored(output: Path, segments: list[Segment], config: ConvertHumanConfig) -> None:
    """Refuse to go on where the sentence or the video of a stored clip has changed."""
    if not config.resume or not (output / "data.mdb").exists():
        return
    store = EpisodeStore(output)
    for segment in segments:
        if segment.id not in store:
            continue
        header = store.header(segment.id)
        if (known := header.instruction) != segment.text:
            changed = f"says {known[:60]!r}, its source now {segment.text[:60]!r}"
        elif not _same_video(segment, header.meta.get("bytes")):
            changed = f"was made of another {segment.video.name}"
        else:
            continue
        raise UserError(f"{output}: clip {segment.id!r} {changed}; convert anew with --overwrite")


def _same_video(segment: Segment, known: int | None) -> bool:
    try:
        return known is None or bytes_of(segment) == known
    except (OSError, VideoError):  # it cannot be read now; what is stored stays
        return True


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
