"""CALVIN data sets as they are downloaded, into episode stores: one store per split, one episode per annotation.

docs/calvin.md describes both layouts.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from arvrm.config import bounded, check_bounds
from arvrm.episodes import (
    EncodedEpisode,
    EncodedImages,
    Episode,
    EpisodeStore,
    EpisodeWriter,
    encode_episode,
    encode_image,
)
from arvrm.files import locked, write_json
from arvrm.interface import CONTROL_HZ, UserError
from arvrm.robots import CALVIN
from arvrm.sources.calvin_plan import Segment, SplitPlan, plan_split, read_yaml
from arvrm.sources.npz import DamagedFile, read_npz
from arvrm.sources.pipeline import LeftOut, in_order, store_in_order

SPLITS = ("training", "validation")
JPEG_QUALITY = 80
"""Keeps a store below 1/8 of the files it comes from; docs/calvin.md has sizes and PSNR of other qualities."""
_BLOCK = 8
"""Steps that a thread reads at a time. Segments, few and uneven, would not keep all threads busy to the end."""
_AHEAD = 16
"""Blocks per thread that are under way: what is read while a transaction waits for the disk."""
_VECTORS = {"robot_obs": "robot_obs", "scene_obs": "scene_obs", "rel_actions": "actions", "actions": "absolute_actions"}
"""CALVIN's name -> ours."""
_EXTRAS = ("depth_static", "depth_gripper", "rgb_tactile", "depth_tactile")


@dataclass(frozen=True)
class ConvertCalvinConfig:
    """What `arvrm convert calvin` does.

    Attributes:
        input: the data set's folder, which holds `training` and `validation` (or one of them).
        output: the folder for the stores `training` and `validation`, and for `report.json`.
        prefix: begins every id and group, so that the stores of several data sets can be merged.
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
    prefix: str = ""
    play: bool = False
    play_steps: int = bounded(256, least=1, most=10**6)
    depth: bool = False
    tactile: bool = False
    image_stride: int = bounded(1, least=1, most=10**6)
    jpeg_quality: int = bounded(JPEG_QUALITY, least=1, most=100)
    workers: int = bounded(0, least=0, most=1024)
    resume: bool = False
    overwrite: bool = False
    verify: bool = False

    __post_init__ = check_bounds


@dataclass(frozen=True)
class SplitReport:
    """What became of one split.

    Attributes:
        store: the store's folder; "" where the split cannot be used, as `left_out` says under its name.
        episodes, steps: held by the store now.
        damaged: step -> what is wrong with its file.
        left_out: ids of the segments that are not in the store, and why; so are annotations that cannot be.
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
    plans, manifests, reports = _plans(source, splits, config)
    for split in plans:
        for note in plans[split].notes:
            print(f"{split}: {note}", file=sys.stderr)
    with locked(output), contextlib.ExitStack() as stack:  # all of it: a split is let go when it is done
        writers = {
            split: stack.enter_context(
                EpisodeWriter(output / split, manifests[split], config.resume, config.overwrite, config.jpeg_quality)
            )
            for split in plans
        }
        todo = {split: [s for s in plans[split].segments if not writers[split].has(s.id)] for split in plans}
        # One queue for all splits: the next one is read while the last transaction of this one waits for the disk.
        queue = [(source / split, segment) for split in plans for segment in todo[split]]
        encoded = stack.enter_context(contextlib.closing(_encode_all(queue, config, "convert")))
        for split in plans:
            left_out = store_in_order(writers[split], itertools.islice(encoded, len(todo[split])))
            writers[split].close()
            reports[split] = _report(output / split, plans[split].left_out, left_out)
            write_json(output / "report.json", {name: vars(report) for name, report in reports.items()})
    if config.verify:
        for split in plans:
            _verify_split(source / split, EpisodeStore(output / split), plans[split].segments, config)
    return reports


def _plans(
    source: Path, splits: list[str], config: ConvertCalvinConfig
) -> tuple[dict[str, SplitPlan], dict[str, dict[str, Any]], dict[str, SplitReport]]:
    """Return plans and manifests of the splits, and reports of those that cannot be used; UserError if none can."""
    plans, manifests, reports, errors = {}, {}, {}, []
    for split in splits:
        try:
            planned = plan_split(source / split, config.play, config.play_steps, config.prefix)
            manifests[split] = _manifest(source / split, config, bool(planned.notes))
            plans[split] = planned
        except UserError as error:
            errors.append(error)
            reports[split] = SplitReport("", 0, 0, left_out={split: str(error)})
    if not plans:
        raise errors[0]
    return plans, manifests, reports


def _report(path: Path, refused: dict[str, str], left_out: list[tuple[Segment, LeftOut]]) -> SplitReport:
    counts = EpisodeStore(path).manifest["counts"]
    damaged = {step: reason for _, failure in left_out for step, reason in failure.damaged.items()}
    reasons = refused | {segment.id: failure.reason for segment, failure in left_out}
    return SplitReport(str(path), counts["episodes"], counts["steps"], dict(sorted(damaged.items())), reasons)


def _verify_split(folder: Path, store: EpisodeStore, segments: list[Segment], config: ConvertCalvinConfig) -> None:
    """Convert again and compare with what the store holds, byte by byte; the store tests its checksums meanwhile."""
    store.verify()
    present = [segment for segment in segments if segment.id in store]
    if len(present) != len(store):
        raise UserError(f"{store.path}: {len(store) - len(present)} episodes are not of {folder}; use --overwrite")
    for segment, result in _encode_all([(folder, s) for s in present], config, f"verify {folder.name}"):
        if isinstance(result, LeftOut):
            raise UserError(f"{store.path}: episode {segment.id!r} cannot be read again: {result.reason}")
        if result != store.encoded(segment.id):
            raise UserError(f"{store.path}: episode {segment.id!r} is not what {folder} holds; use --overwrite")


def _encode_all(
    segments: Sequence[tuple[Path, Segment]], config: ConvertCalvinConfig, label: str
) -> Iterator[tuple[Segment, EncodedEpisode | LeftOut]]:
    """Yield the segments of (folder, segment) in order, encoded; their blocks are shared between the threads."""
    workers = config.workers or os.cpu_count() or 1
    blocks = [block for folder, segment in segments for block in _Assembly(folder, segment, config).blocks()]
    with ThreadPoolExecutor(workers, "convert") as pool:
        made = None
        for block, whole in in_order(blocks, pool, _Block.read, lambda b: len(b.rows), _AHEAD * workers, label):
            made = made or whole
            if block.rows.stop == block.of.segment.steps:
                yield block.of.segment, made
                made = None


@dataclass(frozen=True)
class _Block:
    """Rows of a segment, which one thread reads and encodes."""

    of: _Assembly
    rows: range

    def read(self) -> EncodedEpisode | LeftOut | None:
        """Return the whole episode if the segment's other blocks are read already."""
        return self.of.add(_read_rows(self.of.folder, self.of.segment, self.rows, self.of.config))


@dataclass
class _Rows:
    """What a block holds: arrays (rows, ...), images that were due, step -> what is wrong with its file."""

    rows: range
    arrays: dict[str, np.ndarray]
    images: dict[str, EncodedImages]
    damaged: dict[int, str]


class _Assembly:
    """Makes an episode of a segment's blocks, which come in any order from several threads."""

    def __init__(self, folder: Path, segment: Segment, config: ConvertCalvinConfig) -> None:
        self.folder, self.segment, self.config = folder, segment, config
        self._lock = threading.Lock()
        self._parts: list[_Rows] = []
        self._missing = -(-segment.steps // _BLOCK)

    def blocks(self) -> list[_Block]:
        steps = self.segment.steps
        return [_Block(self, range(first, min(first + _BLOCK, steps))) for first in range(0, steps, _BLOCK)]

    def add(self, part: _Rows) -> EncodedEpisode | LeftOut | None:
        """Take a block; the last one makes the episode, in its thread."""
        with self._lock:
            self._parts.append(part)
            self._missing -= 1
            if self._missing:
                return None
        parts, self._parts = sorted(self._parts, key=lambda part: part.rows.start), []
        try:
            return encode_episode(_join(self.folder, self.segment, parts, self.config), self.config.jpeg_quality)
        except LeftOut as reason:
            return reason
        except UserError as error:
            return LeftOut(str(error))


@functools.lru_cache(maxsize=64)
def _digits(folder: str) -> int:
    """How many digits number the steps' files: 7 in CALVIN's own data sets, others in some made of them."""
    with os.scandir(folder) as entries:
        numbers = (re.fullmatch(r"episode_(\d+)\.npz", entry.name) for entry in entries)
        return next((len(found[1]) for found in numbers if found), 7)


def _read_rows(folder: Path, segment: Segment, rows: range, config: ConvertCalvinConfig) -> _Rows:
    arrays = {name: np.empty((len(rows), *CALVIN.arrays[ours].shape)) for name, ours in _VECTORS.items()}
    for name in _EXTRAS:
        if config.tactile if "tactile" in name else config.depth:
            arrays[name] = np.empty((len(rows), *CALVIN.arrays[name].shape), CALVIN.arrays[name].dtype)
    digits = _digits(str(folder))
    sizes: dict[str, tuple[int, int]] = {}
    jpegs: dict[str, list[bytes]] = {"rgb_static": [], "rgb_gripper": []}
    damaged: dict[int, str] = {}
    for at, row in enumerate(rows):
        step = segment.first + row
        cameras = jpegs if row % config.image_stride == 0 else ()
        try:
            values = read_npz(f"{folder}/episode_{step:0{digits}d}.npz", (*arrays, *cameras))
            for name, array in arrays.items():
                value = values[name]
                if value.shape != array.shape[1:] or value.dtype.kind not in "fiu":
                    raise DamagedFile(f"{name} is {value.dtype} {value.shape}")
                array[at] = value
            for name in cameras:
                image = values[name]
                if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                    raise DamagedFile(f"{name} is {image.dtype} {image.shape}")
                if image.shape[:2] != sizes.setdefault(name, image.shape[:2]):
                    raise DamagedFile(f"{name} is {image.shape[0]} x {image.shape[1]}, unlike the one before")
                jpegs[name].append(encode_image(image, config.jpeg_quality))
        except DamagedFile as error:
            damaged[step] = str(error)
            if len(damaged) == 1:
                arrays = {n: a for n, a in arrays.items() if n in _VECTORS}  # only to list what else is damaged
    for name, array in arrays.items():  # once a block: a call for each value takes longer than the test
        if not np.isfinite(array).all():
            for at in np.flatnonzero(~np.isfinite(array.reshape(len(rows), -1)).all(axis=1)):
                damaged.setdefault(segment.first + rows[at], f"{name} has a NaN or infinity")
    images = {name: EncodedImages(*sizes[name], tuple(jpegs[name])) for name in sizes}
    return _Rows(rows, arrays, images, damaged)


def _join(folder: Path, segment: Segment, parts: list[_Rows], config: ConvertCalvinConfig) -> Episode:
    """Make the episode of all of a segment's rows, in order."""
    damaged = {step: reason for part in parts for step, reason in sorted(part.damaged.items())}
    sizes = {name: (images.height, images.width) for name, images in parts[0].images.items()}
    for part in () if damaged else parts:
        for name, images in part.images.items():
            if (images.height, images.width) != sizes[name]:
                what = f"{name} is {images.height} x {images.width}, unlike the segment's first"
                due = (row for row in part.rows if row % config.image_stride == 0)
                damaged |= {segment.first + row: what for row in due}
    if damaged:
        listed = ", ".join(f"{step:07d}" for step in list(damaged)[:5]) + (", ..." if len(damaged) > 5 else "")
        raise LeftOut(f"damaged or missing steps {listed}", damaged)
    arrays = {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays}
    images = {
        name: EncodedImages(*size, tuple(jpeg for part in parts if part.images for jpeg in part.images[name].jpegs))
        for name, size in sizes.items()
    }
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
        image_steps=np.arange(0, segment.steps, config.image_stride, dtype=np.int32),
        meta={"first": segment.first, "last": segment.last, "split": folder.name},
    )


def _manifest(folder: Path, config: ConvertCalvinConfig, disputed: bool) -> dict[str, Any]:
    index = {}
    names = ["lang_annotations/auto_lang_ann.npy", "ep_start_end_ids.npy", "scene_info.npy"]
    for name in [*names, *([".hydra/merged_config.yaml"] if disputed else [])]:
        if (folder / name).exists():
            index[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    settings = ["depth", "image_stride", "play", "tactile"]
    settings += [name for name, used in (("play_steps", config.play), ("prefix", config.prefix)) if used]
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
        return json.loads(json.dumps(read_yaml(path), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())}); fetch the file again") from error
