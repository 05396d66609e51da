"""CALVIN data sets as they are downloaded, into episode stores: one store per split, one episode per annotation.

docs/calvin.md describes both layouts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from arvrm.episodes import EncodedEpisode, Episode, EpisodeStore, EpisodeWriter
from arvrm.interface import CONTROL_HZ, UserError
from arvrm.sources.npz import DamagedFile, read_npz
from arvrm.sources.pipeline import LeftOut, encode_in_order, store_in_order, write_json
from arvrm.sources.unpickle import load_npy

SPLITS = ("training", "validation")
JPEG_QUALITY = 80
"""Keeps a store below 1/8 of the files it comes from; docs/calvin.md has sizes and PSNR of other qualities."""
_YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LONGEST = 100_000
"""Steps of one annotation that are believed; CALVIN's have at most 64."""
_VECTORS = {"robot_obs": 15, "scene_obs": 24, "rel_actions": 7, "actions": 7}
_EXTRA_SHAPES: dict[str, tuple[tuple[int, ...], str]] = {
    "depth_static": ((200, 200), "float32"),
    "depth_gripper": ((84, 84), "float32"),
    "rgb_tactile": ((160, 120, 6), "uint8"),
    "depth_tactile": ((160, 120, 2), "float32"),
}


@dataclass(frozen=True)
class ConvertCalvinConfig:
    """What `arvrm convert calvin` does.

    Attributes:
        input: the data set's folder, which holds `training` and `validation` (or one of them).
        output: the folder for the stores `training` and `validation`, and for `report.json`.
        play: convert the steps without an annotation too, as episodes without instruction.
        play_steps: the most steps of such an episode.
        depth, tactile: keep depth maps (float32, as they are) and the tactile sensors' images.
        image_stride: keep the images of every n-th step only.
        jpeg_quality: 1 to 100.
        workers: threads; 0: one per core.
        resume, overwrite: continue or replace stores that exist.
        verify: afterwards, read the data set again and compare every record.
    """

    input: str
    output: str
    play: bool = False
    play_steps: int = 256
    depth: bool = False
    tactile: bool = False
    image_stride: int = 1
    jpeg_quality: int = JPEG_QUALITY
    workers: int = 0
    resume: bool = False
    overwrite: bool = False
    verify: bool = False

    def __post_init__(self) -> None:
        for name, least in (("play_steps", 1), ("image_stride", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")


@dataclass(frozen=True)
class Segment:
    """Steps `first` to `last` (inclusive) of a split, which become one episode."""

    id: str
    first: int
    last: int
    instruction: str
    task: str
    scene: str
    group: str

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.last - self.first + 1


@dataclass(frozen=True)
class SplitReport:
    """What became of one split.

    Attributes:
        store: the store's folder.
        episodes, steps: held by the store now.
        damaged: step -> what is wrong with its file.
        left_out: ids of the segments that are not in the store, and why.
    """

    store: str
    episodes: int
    steps: int
    damaged: dict[int, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def convert_calvin(config: ConvertCalvinConfig) -> dict[str, SplitReport]:
    """Convert a CALVIN data set; see `ConvertCalvinConfig`. Progress goes to stderr.

    Returns:
        split -> report, also written to `report.json` in the output folder. Missing or damaged files leave out the
        segments that need them and nothing else.

    Raises:
        UserError: the data set or its index files cannot be used, or the output exists.
    """
    source, output = Path(config.input), Path(config.output)
    splits = [split for split in SPLITS if (source / split).is_dir()]
    if not splits:
        what = "has neither training nor validation" if source.is_dir() else "is no folder"
        raise UserError(f"{source}: {what}; give the folder of a CALVIN data set, such as task_D_D")
    if not config.resume and not config.overwrite:
        for split in splits:
            if (output / split / "data.mdb").exists():
                raise UserError(f"{output / split}: exists already; pass --resume to continue or --overwrite")
    plans = {split: plan_segments(source / split, config.play, config.play_steps) for split in splits}
    reports = {}
    for split in splits:
        reports[split] = _convert_split(source / split, output / split, plans[split], config)
        write_json(output / "report.json", {name: vars(report) for name, report in reports.items()})
    return reports


def plan_segments(folder: Path, play: bool = False, play_steps: int = 256) -> list[Segment]:
    """List the segments of one split, annotated ones first, each in the order of its steps.

    Args:
        folder: `training` or `validation` of a data set.
        play: add the steps that no annotation covers, cut at recordings' ends and to `play_steps` at most.

    Raises:
        UserError: an index file is missing, damaged or hostile.
    """
    recordings = _recordings(folder)
    scenes = _scenes(folder)

    def group(step: int) -> str:
        # Segments of one recording overlap; the recording is what a split must not cut.
        k = int(np.searchsorted(recordings[:, 0], step, side="right")) - 1
        inside = k >= 0 and step <= recordings[k, 1]
        return f"{scenes(step)}/{folder.name}/{recordings[k, 0]:07d}" if inside else f"{scenes(step)}/{folder.name}/-"

    def segment(first: int, last: int, instruction: str, task: str, mark: str = "") -> Segment:
        name = f"{scenes(first)}/{folder.name}/{first:07d}-{last:07d}{mark}"
        return Segment(name, first, last, instruction, task, scenes(first), group(first))

    segments, seen = [], {}
    for first, last, instruction, task in sorted(_annotations(folder, optional=play)):
        seen[(first, last)] = seen.get((first, last), 0) + 1
        mark = f"#{seen[(first, last)]}" if seen[(first, last)] > 1 else ""
        segments.append(segment(first, last, instruction, task, mark))
    if play:
        for first, last in _uncovered(recordings, list(seen)):
            for start in range(first, last + 1, play_steps):
                segments.append(segment(start, min(start + play_steps - 1, last), "", "", "~play"))
    return segments


def _annotations(folder: Path, optional: bool) -> Iterator[tuple[int, int, str, str]]:
    path = folder / "lang_annotations" / "auto_lang_ann.npy"
    if optional and not path.exists():
        return
    found = load_npy(path)
    try:
        texts, tasks = found["language"]["ann"], found["language"]["task"]
        ranges = [(int(first), int(last)) for first, last in found["info"]["indx"]]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path}: no CALVIN annotations ({error!r}); fetch the file again") from error
    if not len(texts) == len(tasks) == len(ranges):
        raise UserError(f"{path}: {len(texts)} sentences, {len(tasks)} tasks, {len(ranges)} ranges; fetch it again")
    for (first, last), text, task in zip(ranges, texts, tasks, strict=True):
        worded = isinstance(text, str) and text.strip() and isinstance(task, str)
        if not worded or not 0 <= first <= last < first + _LONGEST:
            raise UserError(f"{path}: annotation {text!r} of steps {first} to {last} cannot be; fetch the file again")
        yield first, last, text.strip(), task


def _recordings(folder: Path) -> np.ndarray:
    path = folder / "ep_start_end_ids.npy"
    found = np.asarray(load_npy(path))
    if found.ndim != 2 or found.shape[1] != 2 or found.dtype.kind not in "iu" or (found[:, 0] > found[:, 1]).any():
        raise UserError(f"{path}: {found.dtype} {found.shape} is no list of first and last steps; fetch it again")
    return found[np.argsort(found[:, 0], kind="stable")].astype(np.int64)


def _scenes(folder: Path) -> Any:
    """Return step -> scene letter ("" where scene_info.npy is missing or does not say)."""
    path = folder / "scene_info.npy"
    if not path.exists():
        return lambda step: ""
    try:
        ranges = [(int(first), int(last), str(name)) for name, (first, last) in load_npy(path).items()]
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no scene -> [first, last] ({error}); fetch the file again") from error

    def scene(step: int) -> str:
        return next((n.removeprefix("calvin_scene_") for first, last, n in ranges if first <= step <= last), "")

    return scene


def _uncovered(recordings: np.ndarray, covered: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    covered = sorted(covered)
    for first, last in recordings.tolist():
        for a, b in covered:
            if b < first or a > last:
                continue
            if a > first:
                yield first, a - 1
            first = max(first, b + 1)
        if first <= last:
            yield first, last


def _convert_split(folder: Path, path: Path, segments: list[Segment], config: ConvertCalvinConfig) -> SplitReport:
    damaged: dict[int, str] = {}
    left_out: dict[str, str] = {}
    manifest = _manifest(folder, config)
    with EpisodeWriter(path, manifest, config.resume, config.overwrite, config.jpeg_quality) as writer:
        todo = [segment for segment in segments if not writer.has(segment.id)]
        for segment, failure in store_in_order(writer, _encode_all(folder, todo, config, "convert")):
            left_out[segment.id] = failure.reason
            damaged.update(failure.damaged)
    store = EpisodeStore(path)
    if config.verify:
        _verify_split(folder, store, segments, config)
    counts = store.manifest["counts"]
    return SplitReport(str(path), counts["episodes"], counts["steps"], dict(sorted(damaged.items())), left_out)


def _verify_split(folder: Path, store: EpisodeStore, segments: list[Segment], config: ConvertCalvinConfig) -> None:
    """Convert again and compare with what the store holds, byte by byte; the store tests its checksums meanwhile."""
    store.verify()
    present = [segment for segment in segments if segment.id in store]
    if len(present) != len(store):
        raise UserError(f"{store.path}: {len(store) - len(present)} episodes are not of {folder}; use --overwrite")
    for segment, result in _encode_all(folder, present, config, "verify"):
        if isinstance(result, LeftOut):
            raise UserError(f"{store.path}: episode {segment.id!r} cannot be read again: {result.reason}")
        if result != store.encoded(segment.id):
            raise UserError(f"{store.path}: episode {segment.id!r} is not what {folder} holds; use --overwrite")


def _encode_all(
    folder: Path, segments: list[Segment], config: ConvertCalvinConfig, verb: str
) -> Iterator[tuple[Segment, EncodedEpisode | LeftOut]]:
    return encode_in_order(
        segments,
        lambda segment: _read_segment(folder, segment, config),
        lambda segment: segment.steps,
        config.jpeg_quality,
        config.workers,
        f"{verb} {folder.name}",
    )


def _read_segment(folder: Path, segment: Segment, config: ConvertCalvinConfig) -> Episode:
    steps = segment.steps
    image_steps = np.arange(0, steps, config.image_stride, dtype=np.int32)
    extras = [n for n in _EXTRA_SHAPES if (config.tactile if "tactile" in n else config.depth)]
    arrays = {name: np.empty((steps, width)) for name, width in _VECTORS.items()}
    arrays |= {name: np.empty((steps, *_EXTRA_SHAPES[name][0]), _EXTRA_SHAPES[name][1]) for name in extras}
    images: dict[str, np.ndarray | None] = {"rgb_static": None, "rgb_gripper": None}
    damaged: dict[int, str] = {}
    for row in range(steps):
        step = segment.first + row
        with_images = row % config.image_stride == 0
        wanted = (*arrays, *images) if with_images else tuple(arrays)
        try:
            values = read_npz(folder / f"episode_{step:07d}.npz", wanted)
            for name, array in arrays.items():
                if values[name].shape != array.shape[1:] or values[name].dtype.kind not in "fiu":
                    raise DamagedFile(f"{name} is {values[name].dtype} {values[name].shape}")
                if not np.isfinite(values[name]).all():
                    raise DamagedFile(f"{name} has a NaN or infinity")
                array[row] = values[name]
            for name in images if with_images else ():
                image = values[name]
                if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                    raise DamagedFile(f"{name} is {image.dtype} {image.shape}")
                if images[name] is None:
                    images[name] = np.empty((len(image_steps), *image.shape), np.uint8)
                if image.shape != images[name].shape[1:]:
                    raise DamagedFile(f"{name} is {image.shape}, unlike the segment's first")
                images[name][row // config.image_stride] = image
        except DamagedFile as error:
            damaged[step] = str(error)
            if len(damaged) == 1:
                arrays = {n: a for n, a in arrays.items() if n in _VECTORS}  # only to list what else is damaged
    if damaged:
        listed = ", ".join(f"{step:07d}" for step in list(damaged)[:5]) + (", ..." if len(damaged) > 5 else "")
        raise LeftOut(f"damaged or missing steps {listed}", damaged)
    relative, absolute = arrays.pop("rel_actions").astype(np.float32), arrays.pop("actions")
    return Episode(
        id=segment.id,
        embodiment="robot",
        instruction=segment.instruction,
        task=segment.task,
        scene=segment.scene,
        source="calvin",
        group=segment.group,
        fps=float(CONTROL_HZ),
        # CALVIN executed what it recorded: label and executed action are one.
        arrays={**arrays, "absolute_actions": absolute, "actions": relative, "executed": relative},
        images=images,
        image_steps=image_steps,
        meta={"first": segment.first, "last": segment.last, "split": folder.name},
    )


def _manifest(folder: Path, config: ConvertCalvinConfig) -> dict[str, Any]:
    index = {}
    for name in ("lang_annotations/auto_lang_ann.npy", "ep_start_end_ids.npy", "scene_info.npy"):
        if (folder / name).exists():
            index[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    settings = ["depth", "image_stride", "play", "tactile", *(["play_steps"] if config.play else [])]
    return {
        "source": "calvin",
        "split": folder.name,
        "settings": {name: getattr(config, name) for name in settings},
        "index_sha256": index,
        "statistics": _statistics(folder / "statistics.yaml"),
    }


def _statistics(path: Path) -> Any:
    """CALVIN's normalisation values, kept for reference; null where the file is missing."""
    if not path.exists():
        return None
    try:
        return json.loads(json.dumps(yaml.load(path.read_text(), _YamlLoader), allow_nan=False))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())}); fetch the file again") from error
