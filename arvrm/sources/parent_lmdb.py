"""The LMDB that GR-1's and AR-VRM's own `calvin2lmdb.py` write, into an episode store.

Every value there is a pickle. Step i has cur_episode_{i} (int), done_{i} (bool), rgb_static_{i} and rgb_gripper_{i}
(JPEG as a uint8 tensor), abs_action_{i} and rel_action_{i} (7,), robot_obs_{i} (15,), scene_obs_{i} (24,), float64
tensors; episode e has inst_{e} (text), and with some versions inst_token_{e} and inst_emb_{e} (CLIP's, not read);
cur_step is the last step. They are read through `unpickle.loads_tensors`, which runs nothing of theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import simplejpeg

from arvrm.config import bounded, check_bounds
from arvrm.episodes import Episode, EpisodeStore, EpisodeWriter
from arvrm.instructions import calvin_instructions
from arvrm.interface import CONTROL_HZ, LONGEST_SENTENCE, UserError
from arvrm.sources.pipeline import LeftOut, encode_in_order, store_in_order
from arvrm.sources.video import MAX_PIXELS
from arvrm.unpickle import loads_tensors

JPEG_QUALITY = 92
"""Above the source's (75), so that encoding again adds little."""
_MOST = 2**31
_CAMERAS = ("rgb_static", "rgb_gripper")


@dataclass(frozen=True)
class ConvertParentConfig:
    """What `arvrm convert parent-lmdb` does.

    Attributes:
        input: the LMDB folder (or its data.mdb).
        output: the store's folder.
        calvin_root: a CALVIN checkout, whose annotation file tells the task of each sentence; None: task unknown.
        first, last: convert these episodes only (inclusive; last None: to the end). The parents append validation to
            training in one LMDB, and only the number of episodes tells them apart.
        scene: scene letter, which the LMDB does not hold.
        prefix: begins every id and group, so that several stores can be merged.
        jpeg_quality: 1 to 100.
        workers: threads; 0: one per core.
        resume, overwrite: continue or replace a store that exists.
    """

    input: str
    output: str
    calvin_root: str | None = None
    first: int = bounded(0, least=0)
    last: int | None = bounded(None, least=0)
    scene: str = ""
    prefix: str = ""
    jpeg_quality: int = bounded(JPEG_QUALITY, least=1, most=100)
    workers: int = bounded(0, least=0, most=1024)
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.last is not None and self.last < self.first:
            raise ValueError(f"episodes {self.first} to {self.last}: give first <= last, from 0")


@dataclass(frozen=True)
class ParentReport:
    """What became of the LMDB: the store, its episodes and steps, and id -> why an episode was left out."""

    store: str
    episodes: int
    steps: int
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Run:
    """Steps `first` to `last` (inclusive) of parent episode `number`."""

    number: int
    first: int
    last: int
    id: str
    group: str
    problem: str = ""


class _Reader:
    def __init__(self, path: Path) -> None:
        folder = path.parent if path.name == "data.mdb" else path
        if not (folder / "data.mdb").is_file():
            raise UserError(f"{path}: holds no data.mdb; give the folder that calvin2lmdb.py wrote")
        self.path = folder
        try:
            self.env = lmdb.open(str(folder), readonly=True, lock=False, create=False, readahead=False, max_readers=512)
            pages = (self.env.info()["last_pgno"] + 1) * self.env.stat()["psize"]
            self.entries = self.env.stat()["entries"]
        except (lmdb.Error, OSError) as error:
            raise UserError(f"{folder}: cannot be opened ({error}); copy it again") from error
        self._size = (folder / "data.mdb").stat().st_size
        if self._size < pages:
            raise UserError(f"{folder}: is truncated ({self._size} of {pages} bytes); copy it again")

    def get(self, key: str) -> Any:
        try:
            with self.env.begin(buffers=True) as txn:
                view = txn.get(key.encode())
                # A damaged page can state any length, and reading past the file's end would kill the process.
                if view is not None and len(view) > self._size:
                    raise LeftOut(f"{key} states {len(view)} bytes")
                raw = None if view is None else bytes(view)
        except lmdb.Error as error:
            raise LeftOut(f"{key} cannot be read ({error})") from error
        if raw is None:
            raise LeftOut(f"{key} is missing")
        try:
            return loads_tensors(raw, f"{self.path}: {key}")
        except UserError as error:
            raise LeftOut(str(error)) from error

    def whole_number(self, key: str) -> int:
        value = self.get(key)
        if isinstance(value, np.ndarray) and value.shape in ((), (1,)):
            value = value.reshape(())[()]
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or not 0 <= value < _MOST:
            raise LeftOut(f"{key} is {str(value)[:40]}, no whole number from 0 to {_MOST}")
        return int(value)

    def vector(self, key: str, width: int) -> np.ndarray:
        value = self.get(key)
        if not isinstance(value, np.ndarray) or value.shape != (width,) or value.dtype.kind != "f":
            shown = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
            raise LeftOut(f"{key} is {shown}, not {width} numbers")
        return value.astype(np.float64)

    def image(self, key: str) -> np.ndarray:
        value = self.get(key)
        try:
            if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 1:
                height, width = simplejpeg.decode_jpeg_header(value.tobytes())[:2]
                if height * width > MAX_PIXELS:
                    raise LeftOut(f"{key} states {width} x {height} pixels")
                return simplejpeg.decode_jpeg(value.tobytes(), "RGB")
        except ValueError as error:
            raise LeftOut(f"{key} is no JPEG ({error})") from error
        raise LeftOut(f"{key} is no JPEG")


def convert_parent_lmdb(config: ConvertParentConfig) -> ParentReport:
    """Convert the parents' LMDB; see ConvertParentConfig. Damaged episodes are left out and listed.

    Raises:
        UserError: the LMDB cannot be read at all, or the output exists.
    """
    reader = _Reader(Path(config.input))
    tasks: dict[str, str] = {}
    if config.calvin_root:
        for task, sentences in calvin_instructions(config.calvin_root, "training").items():
            tasks |= {sentence.strip().lower(): task for sentence in sentences}
    try:
        runs = list(_runs(reader, config))
    except LeftOut as error:
        raise UserError(f"{reader.path}: no LMDB of calvin2lmdb.py ({error.reason}); give another folder") from error
    settings = {"first": config.first, "last": config.last, "scene": config.scene}
    if config.prefix:
        settings["prefix"] = config.prefix
    manifest = {"source": "parent-lmdb", "settings": settings}
    with EpisodeWriter(config.output, manifest, config.resume, config.overwrite, config.jpeg_quality) as writer:
        results = encode_in_order(
            [run for run in runs if not writer.has(run.id)],
            lambda run: _read(reader, run, config.scene, tasks),
            lambda run: run.last - run.first + 1,
            config.jpeg_quality,
            config.workers,
        )
        left_out = {run.id: failure.reason for run, failure in store_in_order(writer, results)}
    counts = EpisodeStore(config.output).manifest["counts"]
    return ParentReport(config.output, counts["episodes"], counts["steps"], left_out)


def _runs(reader: _Reader, config: ConvertParentConfig) -> Iterator[_Run]:
    """Find the episodes, and which of them share recorded steps: those must stay on one side of a split."""
    steps = reader.whole_number("cur_step") + 1
    if steps > reader.entries:
        raise LeftOut(f"cur_step states {steps} steps, and there are {reader.entries} entries")
    found: list[tuple[int, int, int]] = []
    problems: dict[int, str] = {}
    start, current, broken = 0, None, ""
    for step in range(steps):
        try:
            number = reader.whole_number(f"cur_episode_{step}")
        except LeftOut as reason:  # it may have been of the episode before or after
            if step == 0:
                raise
            broken = reason.reason
            problems.setdefault(current, broken)
            continue
        if broken:
            problems.setdefault(number, broken)
            broken = ""
        if number != current:
            if current is not None:
                found.append((current, start, step - 1))
            start, current = step, number
    found.append((current, start, steps - 1))
    wanted = [run for run in found if config.first <= run[0] and (config.last is None or run[0] <= config.last)]
    if not wanted:
        raise UserError(f"{reader.path}: has episodes 0 to {found[-1][0]}, none from {config.first}; choose others")
    owner: dict[bytes, int] = {}
    parent = list(range(len(wanted)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for i, (_, first, last) in enumerate(wanted):
        for step in range(first, last + 1):
            try:
                state = reader.vector(f"robot_obs_{step}", 15).tobytes()
            except LeftOut:  # the episode will be reported when it is read
                continue
            # Joint angles agree to the last bit only in copies of one recorded step.
            if (other := owner.setdefault(state, i)) != i:
                a, b = sorted((root(i), root(other)))
                parent[b] = a
    for i, (number, first, last) in enumerate(wanted):
        names = (f"{config.prefix}parent/{k:06d}" for k in (number, wanted[root(i)][0]))
        yield _Run(number, first, last, *names, problem=problems.get(number, ""))


def _read(reader: _Reader, run: _Run, scene: str, tasks: dict[str, str]) -> Episode:
    if run.problem:
        raise LeftOut(run.problem)
    instruction = reader.get(f"inst_{run.number}")
    if not isinstance(instruction, str) or not instruction.strip() or len(instruction) > LONGEST_SENTENCE:
        raise LeftOut(f"inst_{run.number} is {str(instruction)[:60]!r}, no sentence")
    steps = range(run.first, run.last + 1)

    def stack(key: str, width: int) -> np.ndarray:
        return np.stack([reader.vector(f"{key}_{step}", width) for step in steps])

    relative = stack("rel_action", 7).astype(np.float32)
    images = {}
    for camera in _CAMERAS:
        frames = [reader.image(f"{camera}_{step}") for step in steps]
        if len({frame.shape for frame in frames}) != 1:
            raise LeftOut(f"{camera} changes its size")
        images[camera] = np.stack(frames)
    return Episode(
        id=run.id,
        embodiment="robot",
        instruction=instruction.strip(),
        task=tasks.get(instruction.strip().lower(), ""),
        scene=scene,
        source="calvin",
        group=run.group,
        fps=float(CONTROL_HZ),
        arrays={
            "robot_obs": stack("robot_obs", 15),
            "scene_obs": stack("scene_obs", 24),
            "actions": relative,
            "executed": relative,
            "absolute_actions": stack("abs_action", 7),
        },
        images=images,
        image_steps=np.arange(len(steps), dtype=np.int32),
        meta={"first": run.first, "last": run.last},
    )
