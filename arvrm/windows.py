"""Windows over episode stores: which frames, states, keypoints and actions a model sees together.

Everything that is not an image is held in flat NumPy arrays (one row a step or a frame, all stores one after another),
so that a batch is a handful of gathers. Images come from a `FrameBank`: decoded once into memory or into a
memory-mapped cache for small data, read from the stores on demand for large.

An *anchor* is the last frame of a window, named by its global image row; so windows end only where an image exists.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
import weakref
import zipfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from arvrm.episodes import EpisodeHeader, EpisodeStore
from arvrm.hands.coordinates import normalise_keypoints
from arvrm.interface import CONTROL_HZ, LANDMARK_UNIT_M, HumanBatch, RobotBatch, UserError
from arvrm.robots import CALVIN

HAND_KEYPOINTS = 21


@dataclass(frozen=True)
class WindowConfig:
    """Shape of a window.

    Attributes:
        history: T, frames in a window.
        stride: control steps (1/30 s) between two frames of a window. Episodes at another rate are strided by time.
        chunk: C, actions predicted from each frame (robot windows).
        image_ahead: strides from a frame to the one that image prediction foresees.
        past_success: what a policy learns to do once the task is done, in episodes that say when it was
            (`meta["success_step"]`). "recorded": what was recorded. "hold": to go on as in the last step before;
            windows that end later are left out. Rollouts stop at success, so that a recorded retreat only teaches to
            let go too early of what is nearly done.
        image_size, gripper_size: pixels to which stored images of the static and the gripper camera are reduced when
            they are decoded; None: as stored.
    """

    history: int = 2
    stride: int = 3
    chunk: int = 10
    image_ahead: int = 1
    past_success: Literal["recorded", "hold"] = "recorded"
    image_size: int | None = None
    gripper_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("history", "stride", "chunk", "image_ahead"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is too small; give at least 1")


# ---------------------------------------------------------------------------------------------------------------------
# Episodes as flat arrays
# ---------------------------------------------------------------------------------------------------------------------


class Names(Sequence[str]):
    """Strings in two arrays: 100 000 of them cost their letters and 8 bytes each, not an object each.

    Attributes:
        text: uint8, UTF-8 of all of them.      end: (n,) int64, where each ends.
    """

    def __init__(self, text: np.ndarray, end: np.ndarray) -> None:
        self.text, self.end = text, end

    @classmethod
    def of(cls, strings: Iterable[str]) -> Names:
        text, end = bytearray(), array("q")
        for string in strings:
            text += string.encode()
            end.append(len(text))
        return cls(np.frombuffer(bytes(text), np.uint8), np.array(end, dtype=np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Names]) -> Names:
        starts = np.cumsum([0, *(len(part.text) for part in parts)])
        ends = [part.end + start for part, start in zip(parts, starts, strict=False)]
        return cls(np.concatenate([part.text for part in parts]), np.concatenate(ends).astype(np.int64))

    def take(self, rows: np.ndarray) -> Names:
        return Names.of(self[int(row)] for row in rows)

    def __len__(self) -> int:
        return len(self.end)

    def __getitem__(self, index):  # type: ignore[override]
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return self.text[self.end[index - 1] if index else 0 : self.end[index]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        text, start = self.text.tobytes(), 0
        for end in self.end.tolist():
            yield text[start:end].decode()
            start = end

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return np.array_equal(self.end, other.end) and np.array_equal(self.text, other.text)
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class _Coder:
    """Gives each different string its number, in the order of their first appearance."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}

    def __call__(self, name: str) -> int:
        return self.codes.setdefault(name, len(self.codes))

    def recode(self, names: Sequence[str], codes: np.ndarray) -> np.ndarray:
        """Return (n,) int32 numbers for `codes`, which number `names`."""
        found, first = np.unique(codes, return_index=True)
        table = np.zeros(len(names), dtype=np.int32)
        for code in found[np.argsort(first)]:
            table[code] = self(names[int(code)])
        return table[codes]


_EMBODIMENTS = ("robot", "human")
_HEADER_FORMAT = 1
_KEPT_FROM = 1024
"""Episodes of a store from which its headers are worth keeping as arrays."""
_COLUMNS = {
    "task": "i",
    "sentence": "i",
    "group": "i",
    "embodiment": "b",
    "steps": "q",
    "frames": "q",
    "fps": "d",
    "height": "i",
    "width": "i",
}


@dataclass(frozen=True)
class StoreHeaders:
    """The headers of a store as arrays, E episodes (play and both embodiments included) and F frames.

    Attributes:
        fingerprint: 16 hex digits that change when the store's manifest, episodes or their lengths change.
        names: "ids" (one an episode), and the different "tasks", "sentences" and "groups".
        columns: (E,) each: task, sentence and group (numbers of the names), embodiment (0 robot, 1 human), steps,
            frames, fps, height and width of `rgb_static`.
        image_steps: (F,) int32, the episode's own step at which each frame was taken.
    """

    fingerprint: str
    names: dict[str, Names]
    columns: dict[str, np.ndarray]
    image_steps: np.ndarray

    @classmethod
    def read(cls, store: EpisodeStore, cache: str | Path | None = None) -> StoreHeaders:
        """Read all headers, one after another, or what `cache` has kept of this very file."""
        file = None
        if cache is not None and len(store) >= _KEPT_FROM:
            digest = hashlib.sha256(f"{_HEADER_FORMAT}\t{store.revision}".encode()).hexdigest()[:16]
            file = Path(cache) / f"headers-{digest}.npz"
            with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
                headers = cls._load(file)
                _FINGERPRINTS[store] = (store.revision, headers.fingerprint)
                return headers
        headers = cls._scan(store)
        if file is not None:
            headers._save(file)
        return headers

    @classmethod
    def _scan(cls, store: EpisodeStore) -> StoreHeaders:
        revision = store.revision
        digest = hashlib.sha256(json.dumps(store.manifest, sort_keys=True).encode())
        coders = {"tasks": _Coder(), "sentences": _Coder(), "groups": _Coder()}
        columns = {name: array(kind) for name, kind in _COLUMNS.items()}
        image_steps, letters, ends = array("i"), bytearray(), array("q")
        for header in store.headers():
            digest.update(f"{header.id}\t{header.steps}\t{header.frames}\t{header.instruction}\n".encode())
            letters += header.id.encode()
            ends.append(len(letters))
            height, width = header.cameras.get("rgb_static", (0, 0))
            row = {
                "task": coders["tasks"](header.task),
                "sentence": coders["sentences"](header.instruction),
                "group": coders["groups"](header.group),
                "embodiment": _EMBODIMENTS.index(header.embodiment),
                "steps": header.steps,
                "frames": header.frames,
                "fps": header.fps,
                "height": height,
                "width": width,
            }
            for name, value in row.items():
                columns[name].append(value)
            image_steps.frombytes(header.image_steps.astype(np.int32).tobytes())
        names = {name: Names.of(coder.codes) for name, coder in coders.items()}
        names["ids"] = Names(np.frombuffer(bytes(letters), np.uint8), np.array(ends, dtype=np.int64))
        arrays = {name: np.array(values) for name, values in columns.items()}
        fingerprint = digest.hexdigest()[:16]
        _FINGERPRINTS[store] = (revision, fingerprint)
        return cls(fingerprint, names, arrays, np.array(image_steps, dtype=np.int32))

    def _save(self, file: Path) -> None:
        values = {"fingerprint": np.array(self.fingerprint), "image_steps": self.image_steps, **self.columns}
        for name, names in self.names.items():
            values |= {f"{name}_text": names.text, f"{name}_end": names.end}
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".tmp.npz")
        os.close(handle)
        try:
            np.savez(temporary, **values)
            os.replace(temporary, file)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)

    @classmethod
    def _load(cls, file: Path) -> StoreHeaders:
        with np.load(file, allow_pickle=False) as found:
            names = {
                name: Names(found[f"{name}_text"], found[f"{name}_end"])
                for name in ("ids", "tasks", "sentences", "groups")
            }
            columns = {name: found[name] for name in _COLUMNS}
            return cls(str(found["fingerprint"]), names, columns, found["image_steps"])


_FINGERPRINTS: weakref.WeakKeyDictionary[EpisodeStore, tuple[str, str]] = weakref.WeakKeyDictionary()


def store_fingerprint(store: EpisodeStore) -> str:
    """Return 16 hex digits that change when the store's manifest, episodes or their lengths change.

    It takes all headers, which are read only if this object has not been read since the store was last written.
    """
    known = _FINGERPRINTS.get(store)
    if known is not None and known[0] == store.revision:
        return known[1]
    return StoreHeaders.read(store).fingerprint


class _Lookup:
    """A number for every row, found when it is asked for instead of stored: index it like an array."""

    def __init__(self, length: int, find: Callable[[np.ndarray], np.ndarray]) -> None:
        self._length, self._find = length, find

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self._length))
        rows = np.asarray(rows)
        return self._find(np.flatnonzero(rows) if rows.dtype == bool else rows)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._find(np.arange(self._length)).astype(dtype or np.int64, copy=False)


class EpisodeTable:
    """Headers and time axes of all episodes of one embodiment in several stores, concatenated; play is left out.

    It holds 4 bytes a frame, and some 60 and its name an episode; no Python object for any of them.

    Attributes (E episodes, N steps, F stored frames, all stores together):
        ids, tasks, sentences, groups: names; `task`, `sentence`, `group`, `store`: (E,) int32 indices into them.
        entry: (E,) int32, to which of the stores named together (see `entries`) it belongs.
        step_start, image_start: (E + 1,) int64, where each episode's steps and frames begin.
        episode_of_image, step_of_image: int64 by frame, 0..F-1; steps are global rows.
        image_of_step: int64 by step, 0..N-1: the episode's latest frame at or before it (its first frame for earlier
            steps).
        frame_stride: (E,) int64, episode steps between two frames of a window.
        static_size: (E, 2) int32, height and width of `rgb_static`.

    Args:
        stride: control steps between two frames of a window.
        cache: folder that keeps the headers as arrays, so that the next start does not read them one by one.
        entries: one number a store: those with the same number are mixed like one store. None: each is its own.
    """

    def __init__(
        self,
        stores: Sequence[EpisodeStore],
        embodiment: str,
        stride: int,
        cache: str | Path | None = None,
        entries: Sequence[int] | None = None,
    ) -> None:
        if not stores:
            raise UserError(f"no store of {embodiment} episodes given; name at least one")
        self.stores = tuple(stores)
        self.embodiment = embodiment
        self.entries = np.asarray(range(len(stores)) if entries is None else entries, dtype=np.int32)
        coders = {"task": _Coder(), "sentence": _Coder(), "group": _Coder()}
        ids, image_steps = [], []
        columns: dict[str, list[np.ndarray]] = {name: [] for name in ("store", *_COLUMNS)}
        for number, store in enumerate(self.stores):
            headers = StoreHeaders.read(store, cache)
            # Play has no instruction to condition on.
            spoken = np.array([bool(sentence) for sentence in headers.names["sentences"]], dtype=bool)
            kept = headers.columns["embodiment"] == _EMBODIMENTS.index(embodiment)
            kept &= spoken[headers.columns["sentence"]] if len(spoken) else False
            everything = bool(kept.all())
            ids.append(headers.names["ids"] if everything else headers.names["ids"].take(np.flatnonzero(kept)))
            image_steps.append(
                headers.image_steps if everything else headers.image_steps[np.repeat(kept, headers.columns["frames"])]
            )
            for name, values in headers.columns.items():
                values = values if everything else values[kept]
                if name in coders:
                    values = coders[name].recode(headers.names[f"{name}s"], values)
                columns[name].append(values)
            columns["store"].append(np.full(int(kept.sum()), number, dtype=np.int32))
        self.ids = Names.joined(ids)
        if not len(self.ids):
            places = ", ".join(str(store.path) for store in stores)
            raise UserError(f"{places}: no {embodiment} episode; give a store made with --embodiment {embodiment}")
        self.tasks, self.sentences = list(coders["task"].codes), Names.of(coders["sentence"].codes)
        self.groups = Names.of(coders["group"].codes)
        column = {name: np.concatenate(values) for name, values in columns.items()}
        self.task, self.sentence, self.group = column["task"], column["sentence"], column["group"]
        self.store = column["store"]
        self.entry = self.entries[self.store]
        self.frame_stride = np.maximum(1, np.round(stride * column["fps"] / CONTROL_HZ)).astype(np.int64)
        self.static_size = np.stack([column["height"], column["width"]], axis=1)
        self.step_start = np.concatenate([[0], np.cumsum(column["steps"])]).astype(np.int64)
        self.image_start = np.concatenate([[0], np.cumsum(column["frames"])]).astype(np.int64)
        self.steps, self.frames = int(self.step_start[-1]), int(self.image_start[-1])
        self._steps_of_images = self._global_steps(image_steps)
        self.episode_of_image = _Lookup(self.frames, self._episode_of_image)
        self.step_of_image = _Lookup(self.frames, lambda rows: self._steps_of_images[rows].astype(np.int64))
        self.image_of_step = _Lookup(self.steps, self._image_of_step)

    def _global_steps(self, parts: list[np.ndarray]) -> np.ndarray:
        """Return the global step of every frame, ascending, in 4 bytes where they suffice."""
        out = np.empty(self.frames, dtype=np.int32 if self.steps < 2**31 else np.int64)
        done = 0
        for part in parts:
            out[done : done + len(part)] = part
            done += len(part)
        if done != self.frames or (self.image_start[1:] <= self.image_start[:-1]).any():
            raise UserError(f"{self.stores[0].path}: headers and frames do not fit; write the store again")
        for first in range(0, len(self), 4096):  # in pieces, lest as much memory be taken once more
            last = min(first + 4096, len(self))
            counts = np.diff(self.image_start[first : last + 1])
            here = slice(self.image_start[first], self.image_start[last])
            out[here] += np.repeat(self.step_start[first:last].astype(out.dtype), counts)
        return out

    def _episode_of_image(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.image_start, rows, side="right") - 1

    def _image_of_step(self, steps: np.ndarray) -> np.ndarray:
        episode = np.searchsorted(self.step_start, steps, side="right") - 1
        return np.maximum(self.frames_before(np.asarray(steps) + 1) - 1, self.image_start[episode])

    def frames_before(self, steps: np.ndarray) -> np.ndarray:
        """Return how many of all frames were taken before the global `steps`, int64."""
        # Of the column's own type: else the search would convert the whole column.
        return np.searchsorted(self._steps_of_images, steps.astype(self._steps_of_images.dtype), side="left")

    def __len__(self) -> int:
        return len(self.ids)

    def header(self, episode: int) -> EpisodeHeader:
        return self.stores[self.store[episode]].header(self.ids[episode])

    def array(self, name: str, optional: bool = False) -> np.ndarray | None:
        """Return the step array `name` of all episodes, (N, ...). None if optional and some episode lacks it."""
        if optional and not all(name in self.header(episode).arrays for episode in range(len(self))):
            return None
        return np.concatenate(
            [self.stores[number].arrays(i, [name])[name] for i, number in zip(self.ids, self.store, strict=True)]
        )

    def window_frames(self, anchors: np.ndarray, history: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the frames of windows that end at `anchors`.

        Args:
            anchors: (B,) global image rows.
        Returns:
            rows: (B, T) global image rows in time order; frames before the episode's start repeat its first frame.
            mask: (B, T) bool, False for those repeats.
        """
        episode = self.episode_of_image[anchors]
        back = np.arange(history - 1, -1, -1)
        steps = self.step_of_image[anchors][:, None] - back * self.frame_stride[episode][:, None]
        first = self.step_start[episode][:, None]
        # A frame stored after the episode's first step is still its first frame: steps before it are padding.
        first_seen = self.step_of_image[self.image_start[episode]][:, None]
        mask = steps >= np.maximum(first, first_seen)
        return self.image_of_step[np.maximum(steps, first)], mask


# ---------------------------------------------------------------------------------------------------------------------
# Splits and samples
# ---------------------------------------------------------------------------------------------------------------------


def _lottery(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


def held_out_groups(groups: Sequence[str], fraction: float, seed: int) -> frozenset[str]:
    """Choose the groups of the validation split: the same for every order of `groups`, and never all of them.

    Raises:
        UserError: `fraction` is not in [0, 1), or there is one group only, so that it cannot be split.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"validation fraction {fraction}: give a number from 0 to below 1")
    names = sorted(set(groups), key=lambda name: _lottery(seed, name))
    if fraction == 0:
        return frozenset()
    if len(names) < 2:
        raise UserError(f"validation fraction {fraction}: all episodes are in one group ({names[0]}); give 0")
    return frozenset(names[: min(len(names) - 1, max(1, round(fraction * len(names))))])


def split_episodes(table: EpisodeTable, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return episode rows (train, validation); no group is in both."""
    held_out = held_out_groups(table.groups, fraction, seed)
    in_validation = np.array([name in held_out for name in table.groups])[table.group]
    return np.flatnonzero(~in_validation), np.flatnonzero(in_validation)


def few_shot(table: EpisodeTable, episodes: np.ndarray, per_task: int | None, seed: int) -> np.ndarray:
    """Keep at most `per_task` of `episodes` for each task. A larger number keeps a superset of a smaller one's."""
    if per_task is None:
        return episodes
    if per_task < 1:
        raise UserError(f"episodes_per_task {per_task}: give at least 1, or null for all")
    kept: dict[int, int] = {}
    chosen = []
    for episode in sorted(episodes, key=lambda e: _lottery(seed, table.ids[e])):
        count = kept.get(int(table.task[episode]), 0)
        if count < per_task:
            kept[int(table.task[episode])] = count + 1
            chosen.append(episode)
    return np.sort(np.asarray(chosen, dtype=np.int64))


class Anchors:
    """Frames that may end a window, ascending, as runs of consecutive ones: 24 bytes a run, of which an episode has
    one. It can be indexed, and turned into an array, like the rows themselves.

    Attributes:
        episode, first, count: (R,) int64: whose frames, the first one's row, how many; each run within one episode.
    """

    def __init__(self, episode: np.ndarray, first: np.ndarray, count: np.ndarray) -> None:
        some = count > 0
        self.episode, self.first, self.count = episode[some], first[some], count[some]
        self.end = np.cumsum(self.count)

    @classmethod
    def of(cls, table: EpisodeTable, rows: np.ndarray | Anchors) -> Anchors:
        """Return `rows` (ascending) as runs."""
        if isinstance(rows, Anchors):
            return rows
        rows = np.asarray(rows, dtype=np.int64)
        if not len(rows):
            return cls(rows, rows, rows)
        episode = table.episode_of_image[rows]
        begins = np.flatnonzero(np.concatenate([[True], (np.diff(rows) != 1) | (np.diff(episode) != 0)]))
        return cls(episode[begins], rows[begins], np.diff([*begins, len(rows)]))

    def __len__(self) -> int:
        return int(self.end[-1]) if len(self.end) else 0

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        index = np.asarray(index)
        index = np.where(index < 0, index + len(self), index)
        run = np.searchsorted(self.end, index, side="right")
        return self.first[run] + index - (self.end - self.count)[run]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.int64, copy=False)

    def tolist(self) -> list[int]:
        return self[:].tolist()


def cell_counts(table: EpisodeTable, anchors: np.ndarray | Anchors) -> np.ndarray:
    """Return (stores, tasks) float64, how many of `anchors` are of each store and task."""
    runs, stores = Anchors.of(table, anchors), int(table.entries.max()) + 1
    cell = table.entry[runs.episode].astype(np.int64) * len(table.tasks) + table.task[runs.episode]
    return np.bincount(cell, runs.count, stores * len(table.tasks)).reshape(stores, -1)


def mixing_shares(
    table: EpisodeTable,
    anchors: np.ndarray | Anchors,
    weights: Sequence[float] | None = None,
    balance_tasks: bool = True,
) -> np.ndarray:
    """Return (stores, tasks) float64, the share of all draws that each store's windows of a task get; they sum to 1.

    Each store gets its share of `weights` (None: its share of the anchors); within a store each task gets the same
    share if `balance_tasks`; within a task all anchors are equal. "Store" means what `EpisodeTable.entries` mixes like
    one; there is one row for each of those.
    """
    in_cell = cell_counts(table, anchors)
    stores, counts = len(in_cell), in_cell.sum(axis=1)
    if weights is None:
        share = counts / counts.sum()
    else:
        share = np.asarray(weights, dtype=np.float64)
        if len(share) != stores:
            raise UserError(f"weights: {len(share)} given for {stores} stores; give one per store")
        if (share < 0).any() or not (share * (counts > 0)).sum() > 0:
            raise UserError(f"weights {list(weights)}: give numbers from 0, at least one positive with episodes")
        share = share * (counts > 0)
        share = share / share.sum()
    within = (in_cell > 0).astype(np.float64) if balance_tasks else in_cell
    shares = share[:, None] * within / np.maximum(within.sum(axis=1, keepdims=True), 1)
    return shares / shares.sum()


class AnchorSampler:
    """Draws anchors by share; the draw of a step depends on (seed, step) alone, so a run resumes at any step.

    Draws are stratified: the cumulated shares, in order of store, task and time, are cut into B equal parts and one
    anchor is drawn from each. The expected count of every anchor is B times its weight, exactly, and tasks hardly
    fluctuate. It holds 40 bytes an episode and nothing for a window.

    Orders:
        "random": each draw is independent of those before.
        "epochs": an epoch is ceil(A / B) steps of A anchors in all; in it every one of the B parts is gone through,
            evenly, in an order of its own, so that an anchor of weight w comes floor(wM) or ceil(wM) times in the
            epoch's M draws: with equal weights each one comes at least once and fewer than B come twice. The order is a
            keyed permutation computed where it is needed (`permuted`).

    Args:
        shares: (stores, tasks), see `mixing_shares`.
    """

    def __init__(
        self,
        table: EpisodeTable,
        anchors: np.ndarray | Anchors,
        shares: np.ndarray,
        seed: int,
        order: Literal["random", "epochs"] = "random",
    ) -> None:
        runs = Anchors.of(table, anchors)
        if len(runs) == 0:
            raise UserError("no window to draw from: the split or the selection left no episode; give more data")
        cell = table.entry[runs.episode].astype(np.int64) * len(table.tasks) + table.task[runs.episode]
        wanted = np.flatnonzero(shares.reshape(-1)[cell] > 0)
        wanted = wanted[np.lexsort((runs.first[wanted], cell[wanted]))]
        cell = cell[wanted]
        self.first, self.run_end = runs.first[wanted], np.cumsum(runs.count[wanted])
        self.run_begin = self.run_end - runs.count[wanted]
        last = np.flatnonzero(np.concatenate([np.diff(cell) != 0, [True]]))  # each cell's last run
        self.share_end = np.cumsum(shares.reshape(-1)[cell[last]])
        self.share_end /= self.share_end[-1]
        self.share_begin = np.concatenate([[0.0], self.share_end[:-1]])
        self.cell_end = self.run_end[last]
        self.cell_size = np.diff(self.cell_end, prepend=0)
        self.size, self.seed, self.order = int(self.run_end[-1]), seed, order

    def draw(self, step: int, batch: int) -> np.ndarray:
        """Return (batch,) anchors of this step, in random order."""
        rng = np.random.default_rng([self.seed, step])
        if self.order == "epochs":
            length = -(-self.size // batch)
            epoch, place = divmod(step, length)
            keys = np.random.default_rng([self.seed, epoch, 2]).integers(2**32, size=batch, dtype=np.uint64)
            slots = np.arange(batch) * length + permuted(np.full(batch, place), length, keys)
            # Where in its slot a draw lies: the golden ratio's multiples spread over the epochs as evenly as can be.
            within = (np.random.default_rng([self.seed, 3]).random() + epoch * 0.6180339887498949) % 1.0
            points = (slots + within) / (length * batch)
        else:
            points = (np.arange(batch) + rng.random(batch)) / batch
        return rng.permutation(self.at(points))

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all (A,) anchors, in the order in which their shares are cumulated, and (A,) their weights."""
        cell = np.searchsorted(self.cell_end, np.arange(self.size), side="right")
        run = np.searchsorted(self.run_end, np.arange(self.size), side="right")
        anchors = self.first[run] + np.arange(self.size) - self.run_begin[run]
        return anchors, ((self.share_end - self.share_begin) / self.cell_size)[cell]

    def at(self, points: np.ndarray) -> np.ndarray:
        """Return the anchors at `points`, in [0, 1), of the cumulated shares."""
        cell = np.minimum(np.searchsorted(self.share_end, points, side="right"), len(self.share_end) - 1)
        into = (points - self.share_begin[cell]) / (self.share_end[cell] - self.share_begin[cell])
        size = self.cell_size[cell]
        index = np.clip((into * size).astype(np.int64), 0, size - 1) + (self.cell_end - self.cell_size)[cell]
        run = np.searchsorted(self.run_end, index, side="right")
        return self.first[run] + index - self.run_begin[run]


def permuted(places: np.ndarray, length: int, keys: np.ndarray) -> np.ndarray:
    """Return where a keyed pseudo-random permutation of 0..length-1 puts `places`, without writing it down.

    Four Feistel rounds over the next even number of bits; what falls outside 0..length-1 is put through again, which
    ends inside and keeps it a bijection. Source: Luby and Rackoff, 1988; Black and Rogaway, 2002 (cycle walking).

    Args:
        places: (n,) integers in 0..length-1.
        keys: (n,) uint64, below 2**32, or one for all: which permutation.
    """
    half = np.uint64(max(1, -(-int(length - 1).bit_length() // 2)))
    mask = np.uint64((1 << int(half)) - 1)
    out = np.array(places, dtype=np.uint64)
    keys = np.broadcast_to(np.asarray(keys, dtype=np.uint64), out.shape)
    todo = np.arange(len(out))
    while len(todo):
        left, right = out[todo] >> half, out[todo] & mask
        for number in range(4):
            left, right = right, left ^ (_mixed(right, keys[todo], number) & mask)
        out[todo] = (left << half) | right
        todo = todo[out[todo] >= length]
    return out.astype(np.int64)


def _mixed(values: np.ndarray, keys: np.ndarray, number: int) -> np.ndarray:
    """Hash (value, key, round) to 64 bits. Source: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    x = (keys << np.uint64(32)) ^ values
    with np.errstate(over="ignore"):
        x = x + np.uint64((number + 1) * 0x9E3779B97F4A7C15 % 2**64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Segments:
    """Runs of `windows` windows each, one stride apart, whose frames are read and encoded once for all of them.

    Attributes:
        windows: n.
        last: (G,) int64, the anchor of each run's last window, ascending.
        live: (G, 2) int64, the first of a run's windows that counts and the one behind the last: every anchor counts
            in exactly one run. The others fill up runs of a length that the windows do not divide.
    """

    windows: int
    last: np.ndarray
    live: np.ndarray


def cut_segments(table: EpisodeTable, anchors: np.ndarray, windows: int) -> Segments:
    """Cut `anchors` into as few runs of at most `windows` as there can be, those of an episode of about one length."""
    episode, step = table.episode_of_image[anchors], table.step_of_image[anchors]
    stride = table.frame_stride[episode]
    phase = (step - table.step_start[episode]) % stride
    order = np.lexsort((step, phase, episode))
    anchors, episode, step, stride, phase = (v[order] for v in (anchors, episode, step, stride, phase))
    together = (np.diff(episode) == 0) & (np.diff(phase) == 0) & (np.diff(step) == stride[1:])
    start = np.flatnonzero(np.concatenate([[True], ~together]))
    length = np.diff(np.concatenate([start, [len(anchors)]]))
    pieces = -(-length // windows)
    run = np.repeat(np.arange(len(start)), pieces)
    number = np.arange(len(run)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    low, high = (length[run] * (number + k) // pieces[run] for k in (0, 1))
    # The first run of a row reaches forward instead of back, as far as there is something.
    stop = np.maximum(high, np.minimum(windows, length[run]))
    live = np.stack([low, high], axis=1) - (stop - windows)[:, None]
    last = anchors[start[run] + stop - 1]
    order = np.argsort(last)
    return Segments(windows, last[order], live[order])


def in_batches(anchors: np.ndarray | Anchors, batch: int) -> Iterator[np.ndarray]:
    """Cut `anchors` into consecutive batches; the last one may be smaller."""
    for start in range(0, len(anchors), batch):
        yield anchors[start : start + batch]


# ---------------------------------------------------------------------------------------------------------------------
# Frames
# ---------------------------------------------------------------------------------------------------------------------


class FrameBank:
    """Frames of one camera (or what is computed from them) by global image row.

    Attributes:
        parts: one (F_s, ...) array per store, in memory or memory-mapped.
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        shapes = {part.shape[1:] for part in parts}
        if len(shapes) > 1:
            raise UserError(f"stores have frames of different sizes ({sorted(shapes)}); set data.window.image_size")
        self.parts = list(parts)
        self.starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])])

    @property
    def frame_shape(self) -> tuple[int, ...]:
        return self.parts[0].shape[1:]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return the frames at `rows` (any shape), rows.shape + frame_shape."""
        if len(self.parts) == 1:
            return self.parts[0][rows]
        flat = rows.reshape(-1)
        out = np.empty((len(flat), *self.frame_shape), dtype=self.parts[0].dtype)
        part = np.searchsorted(self.starts, flat, side="right") - 1
        for number in np.unique(part):
            at = part == number
            out[at] = self.parts[number][flat[at] - self.starts[number]]
        return out.reshape(*rows.shape, *self.frame_shape)


class StoreFrames:
    """Frames of one camera read from the stores when they are asked for: for data that memory does not hold."""

    def __init__(self, table: EpisodeTable, camera: str, size: int | None = None) -> None:
        self.table, self.camera, self.size = table, camera, size
        self.frame_shape = self.take(np.zeros(1, dtype=np.int64)).shape[1:]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return the frames at `rows` (any shape), uint8 rows.shape + (H, W, 3)."""
        flat, inverse = np.unique(rows, return_inverse=True)
        episodes = self.table.episode_of_image[flat]
        frames = []
        for episode in np.unique(episodes):
            local = flat[episodes == episode] - self.table.image_start[episode]
            store = self.table.stores[self.table.store[episode]]
            frames.append(_resize(store.frames(self.table.ids[episode], self.camera, local), self.size))
        return np.concatenate(frames)[inverse.reshape(rows.shape)]


def decode_frames(
    table: EpisodeTable,
    camera: str,
    size: int | None = None,
    cache: str | Path | None = None,
    compute: Callable[[np.ndarray], np.ndarray] | None = None,
    key: str = "",
    progress: Callable[[int], Any] | None = None,
    wait: bool = False,
) -> FrameBank:
    """Decode every frame of `camera` once.

    Args:
        size: reduce to this many pixels (square); None keeps the stored size.
        cache: folder for memory-mapped arrays, keyed by the store's fingerprint; runs share them. None: memory only.
        compute: applied to (n, H, W, 3) uint8 frames before they are kept, such as a frozen encoder; `key` must name it
            (its hash), since it becomes part of the cache's file name.
        progress: called with the number of frames done after each episode.
        wait: leave the work to another process, and take its file once it is there.
    """
    parts = []
    for number, store in enumerate(table.stores):
        episodes = np.flatnonzero(table.store == number)
        total = int((table.image_start[episodes + 1] - table.image_start[episodes]).sum())
        file = None
        if cache is not None:
            parts_of_name = [
                store_fingerprint(store),
                table.embodiment,
                camera,
                str(size or "stored"),
                *filter(None, [key]),
            ]
            file = Path(cache) / f"{'-'.join(parts_of_name)}.npy"
            while wait and total and not file.exists():
                time.sleep(1.0)
            if file.exists():
                part = np.load(file, mmap_mode="r")
                if len(part) == total:
                    parts.append(part)
                    if progress:
                        progress(total)
                    continue
        parts.append(_fill(table, store, episodes, total, camera, size, file, compute, progress))
    return FrameBank([part for part in parts if len(part)] if len(parts) > 1 else parts)


def _fill(table, store, episodes, total, camera, size, file, compute, progress) -> np.ndarray:
    out, done, temporary = None, 0, None
    try:
        for episode in episodes:
            count = int(table.image_start[episode + 1] - table.image_start[episode])
            frames = _resize(store.frames(table.ids[episode], camera, np.arange(count)), size)
            values = compute(frames) if compute else frames
            if out is None:
                shape = (total, *values.shape[1:])
                if file is None:
                    out = np.empty(shape, dtype=values.dtype)
                else:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
                    os.close(handle)
                    out = np.lib.format.open_memmap(temporary, mode="w+", dtype=values.dtype, shape=shape)
            if values.shape[1:] != out.shape[1:]:
                raise UserError(
                    f"{store.path}, episode {table.ids[episode]}: {camera} frames are {values.shape[1:]}, others "
                    f"{out.shape[1:]}; set data.window.image_size so that all are reduced to one size"
                )
            out[done : done + count] = values
            done += count
            if progress:
                progress(count)
        if out is None:
            return np.empty((0,), dtype=np.uint8)
        if file is not None:
            out.flush()
            del out
            os.replace(temporary, file)
            temporary = None
            return np.load(file, mmap_mode="r")
        return out
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def _resize(frames: np.ndarray, size: int | None) -> np.ndarray:
    if size is None or frames.shape[1:3] == (size, size):
        return frames
    tensor = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(tensor, size=(size, size), mode="bilinear", antialias=True)
    return small.permute(0, 2, 3, 1).contiguous().numpy()


# ---------------------------------------------------------------------------------------------------------------------
# Text
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextTable:
    """Embeddings of every sentence of a table, computed once: text (U, L, E) float32, mask (U, L) bool."""

    text: torch.Tensor
    mask: torch.Tensor

    def take(self, sentences: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.from_numpy(np.ascontiguousarray(sentences, dtype=np.int64))
        return self.text[rows], self.mask[rows]


class LazyText:
    """The same embeddings as a `TextTable`'s, computed when a batch needs them: for more sentences than memory holds.

    Args:
        sentences: of the table.
        tokens: sentences -> embeddings (n, l, E) float32, zero past the end, and mask (n, l) bool.
        length: L, tokens of the longest sentence.
    """

    def __init__(
        self, sentences: Sequence[str], tokens: Callable[[list[str]], tuple[torch.Tensor, torch.Tensor]], length: int
    ) -> None:
        self.sentences, self.tokens, self.length = sentences, tokens, length

    def take(self, sentences: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        rows, inverse = np.unique(sentences, return_inverse=True)
        text, mask = self.tokens([self.sentences[int(row)] for row in rows])
        at = torch.from_numpy(inverse.reshape(np.shape(sentences)))
        short = self.length - text.shape[1]
        text, mask = torch.nn.functional.pad(text, (0, 0, 0, short)), torch.nn.functional.pad(mask, (0, short))
        return text[at], mask[at]


# ---------------------------------------------------------------------------------------------------------------------
# Windows
# ---------------------------------------------------------------------------------------------------------------------


def choose_hand(keypoints: np.ndarray, visible: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Bring a clip's keypoints to `wanted` (21 or 42) columns.

    Args:
        keypoints: (F, K, 3); visible: (F, K) bool; K is 21, or 42 for left then right hand.
    Returns:
        The same with K = wanted. From two hands the one that moves most in the image is kept; a hand that is not there
        is invisible (the right one is filled), its numbers zero.
    """
    stored = keypoints.shape[1]
    if stored == wanted:
        return keypoints, visible
    if stored == 2 * HAND_KEYPOINTS and wanted == HAND_KEYPOINTS:
        motion = []
        for hand in (slice(0, HAND_KEYPOINTS), slice(HAND_KEYPOINTS, None)):
            both = visible[1:, hand] & visible[:-1, hand]
            moved = np.linalg.norm(np.diff(np.nan_to_num(keypoints[:, hand, :2]), axis=0), axis=-1)
            motion.append((moved[both].sum(), visible[:, hand].sum()))
        hand = slice(0, HAND_KEYPOINTS) if motion[0] > motion[1] else slice(HAND_KEYPOINTS, None)
        return keypoints[:, hand], visible[:, hand]
    if stored == HAND_KEYPOINTS and wanted == 2 * HAND_KEYPOINTS:
        return (
            np.concatenate([np.zeros_like(keypoints), keypoints], axis=1),
            np.concatenate([np.zeros_like(visible), visible], axis=1),
        )
    raise UserError(f"keypoints: the store has {stored}, the model wants {wanted}; give 21 or 42")


IN_MEMORY_BYTES = 4 << 30
"""What is not larger than this is read into memory before training, where the configuration leaves it open."""


class HumanWindows:
    """Human clips as `HumanBatch`es.

    Args:
        table: human episodes.
        keypoints: K of the model, 21 or 42.
        text: embeddings of `table.sentences`.
        frames: images (static) or frozen features of them, by image row; None: keypoints only.
        features: `frames` holds features, not images.
        in_memory: read all keypoints now; False: read a batch's from the stores when it is asked for, which gives the
            same batches; None: now, if they take at most `IN_MEMORY_BYTES`.
        foresee: frames after the window that `batch` gives the keypoints of; 1: only the next one's.

    Attributes:
        keypoints, visible: (N, K, 3) float32, normalised, and (N, K) bool, if they are in memory; else None.
    """

    def __init__(
        self,
        table: EpisodeTable,
        config: WindowConfig,
        keypoints: int,
        text: TextTable | LazyText,
        frames: FrameBank | StoreFrames | None,
        features: bool = False,
        in_memory: bool | None = None,
        foresee: int = 1,
    ) -> None:
        self.table, self.config, self.text, self.frames, self.features = table, config, text, frames, features
        self.joints, self.foresee = keypoints, foresee
        self.keypoints = self.visible = None
        if in_memory is None:
            in_memory = table.steps * keypoints * 13 <= IN_MEMORY_BYTES
        if in_memory:
            points = np.empty((table.steps, keypoints, 3), dtype=np.float32)
            seen = np.empty((table.steps, keypoints), dtype=bool)
            for episode in range(len(table)):
                here = slice(table.step_start[episode], table.step_start[episode + 1])
                points[here], seen[here] = self._read(episode)
            self.keypoints, self.visible = torch.from_numpy(points), torch.from_numpy(seen)

    def _read(self, episode: int, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the normalised keypoints of an episode (of all its steps, or of `rows`), and which are visible."""
        store, identity = self.table.stores[self.table.store[episode]], self.table.ids[episode]
        found = store.arrays(identity, ["keypoints", "visible"])  # all: it takes the whole clip to choose a hand
        points, visible = choose_hand(found["keypoints"], found["visible"], self.joints)
        if rows is not None:
            points, visible = points[rows], visible[rows]
        height, width = self.table.static_size[episode].tolist()
        return normalise_keypoints(np.where(visible[..., None], points, 0.0), height, width), visible

    def poses(self, steps: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keypoints steps.shape + (K, 3), normalised, and visible steps.shape + (K,) at global steps."""
        if self.keypoints is not None:
            index = torch.from_numpy(steps)
            return self.keypoints[index], self.visible[index]
        flat, inverse = np.unique(steps, return_inverse=True)
        episodes = np.searchsorted(self.table.step_start, flat, side="right") - 1
        begins = np.flatnonzero(np.diff(episodes, prepend=-1))
        parts = [
            self._read(int(episodes[begin]), flat[begin:end] - self.table.step_start[episodes[begin]])
            for begin, end in zip(begins, [*begins[1:], len(flat)], strict=True)
        ]
        at = torch.from_numpy(inverse.reshape(steps.shape))
        points, visible = (torch.from_numpy(np.concatenate(values)) for values in zip(*parts, strict=True))
        return points[at], visible[at]

    def anchors(self, episodes: np.ndarray) -> Anchors:
        """Return the frames of `episodes` that are followed by a pose, so that the window has one to predict."""
        episodes = np.unique(episodes)
        first = self.table.image_start[episodes]
        end = self.table.frames_before(self.table.step_start[episodes + 1] - self.table.frame_stride[episodes])
        return Anchors(episodes, first, np.maximum(end - first, 0))

    def batch(self, anchors: np.ndarray) -> HumanBatch:
        """Return the windows that end at `anchors`."""
        rows, mask = self.table.window_frames(anchors, self.config.history)
        return self.gather(rows, mask, self.table.episode_of_image[anchors])

    def future(self, anchors: np.ndarray, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keypoints (..., frames, K, 3) and visible of the frames after the windows that end at `anchors` (...).

        Past the clip's end nothing is visible.
        """
        episode = self.table.episode_of_image[anchors]
        stride, end = self.table.frame_stride[episode][..., None], self.table.step_start[episode + 1][..., None]
        steps = self.table.step_of_image[anchors][..., None] + stride * np.arange(1, frames + 1)
        points, visible = self.poses(np.minimum(steps, end - 1))
        return points, visible & torch.from_numpy(steps < end)[..., None]

    def gather(self, rows: np.ndarray, mask: np.ndarray, episodes: np.ndarray, images: bool = True) -> HumanBatch:
        """Return any frames as a batch.

        Args:
            rows: (..., T) global image rows; mask: (..., T), False for padding; episodes: (...) whose text is given.
            images: give what only stage 1 reads as well: images, and the poses that it foresees.
        """
        steps = self.table.step_of_image[rows]
        following = steps[..., -1] + self.table.frame_stride[episodes]
        exists = following < self.table.step_start[episodes + 1]
        after = np.where(exists, following, steps[..., -1])
        points, visible = self.poses(np.concatenate([steps, after[..., None]], axis=-1))
        text, text_mask = self.text.take(self.table.sentence[episodes])
        out: HumanBatch = {
            "text": text,
            "text_mask": text_mask,
            "keypoints": points[..., :-1, :, :].contiguous(),
            "visible": visible[..., :-1, :].contiguous(),
            "next_keypoints": points[..., -1, :, :].contiguous(),
            "next_visible": visible[..., -1, :] & torch.from_numpy(exists)[..., None],
            "frame_mask": torch.from_numpy(np.ascontiguousarray(mask)),
        }
        if images and self.foresee > 1:
            out["future_keypoints"], out["future_visible"] = self.future(rows[..., -1], self.foresee)
        if images and self.frames is not None:
            out["static_features" if self.features else "static"] = torch.from_numpy(self.frames.take(rows))
        return out


class RobotWindows:
    """Robot episodes as `RobotBatch`es (without `clips`).

    Args:
        static, gripper: images or frozen features by image row; `features` says which.
        next_images: give the frames `image_ahead` strides later too, for the image-prediction head.
        ahead: banks of images from which those are taken where `static` and `gripper` hold features.
    """

    def __init__(
        self,
        table: EpisodeTable,
        config: WindowConfig,
        text: TextTable | LazyText,
        static: FrameBank | StoreFrames,
        gripper: FrameBank | StoreFrames | None,
        features: bool = False,
        next_images: bool = False,
        ahead: tuple[FrameBank | StoreFrames, FrameBank | StoreFrames] | None = None,
    ) -> None:
        if next_images and features and ahead is None:
            raise ValueError("frames to foresee are images, and the banks hold features; give `ahead`")
        self.next_images = next_images
        banks = zip(("static", "gripper"), ahead or (static, gripper), strict=True)
        self.ahead = {name: bank for name, bank in banks if bank is not None}
        self.table, self.config, self.text = table, config, text
        self.static, self.gripper, self.features = static, gripper, features
        robot_obs = table.array("robot_obs")
        target = table.array("target_pose", optional=True)
        state = {"robot_obs": robot_obs} | ({} if target is None else {"target_pose": target})
        self.state = torch.from_numpy(CALVIN.encode_state(state))
        self.components = torch.from_numpy(CALVIN.encode_components(state))
        self.actions = torch.from_numpy(table.array("actions"))
        # (E,) global rows from which on actions are not the task's, and whether the last one before them goes on.
        self.done = table.step_start[1:].copy()
        self.held = np.zeros(len(table), dtype=bool)
        if config.past_success == "hold":
            for episode in range(len(table)):
                success = table.header(episode).meta.get("success_step")
                if success:
                    self.done[episode] = min(self.done[episode], table.step_start[episode] + success)
                    self.held[episode] = True
        self.landmarks = self.landmark_mask = None
        pixels = table.array("landmark_pixels", optional=True)
        if pixels is not None:
            sizes = np.array([self._static_size(episode) for episode in range(len(table))], dtype=np.float32)
            pixels = pixels[table.step_of_image] * 2.0 / sizes[table.episode_of_image][:, None] - 1.0
            known = np.isfinite(pixels).all(axis=-1)
            self.landmarks = torch.from_numpy(np.where(known[..., None], pixels, 0.0).astype(np.float32))
            self.landmark_mask = torch.from_numpy(known)
        self.offsets = None
        places = table.array("landmarks", optional=True)
        if places is not None and pixels is not None:
            offsets = (places - robot_obs[:, None, :3])[table.step_of_image] / LANDMARK_UNIT_M
            self.offsets = torch.from_numpy(offsets.astype(np.float32))

    def _static_size(self, episode: int) -> tuple[int, int]:
        height, width = self.table.static_size[episode].tolist()
        return width, height

    def anchors(self, episodes: np.ndarray) -> np.ndarray:
        """Return the frames of `episodes` that can end a window: all, or those before success; see `past_success`."""
        rows = np.flatnonzero(np.isin(self.table.episode_of_image, episodes))
        return rows[self.table.step_of_image[rows] < self.done[self.table.episode_of_image[rows]]]

    def segment_anchors(self, segments: Segments, which: np.ndarray) -> np.ndarray:
        """Return the (S n,) anchors of the windows of some segments, clipped to their episodes."""
        last = segments.last[which]
        episode = self.table.episode_of_image[last]
        back = np.arange(segments.windows - 1, -1, -1) * self.table.frame_stride[episode][:, None]
        steps = self.table.step_of_image[last][:, None] - back
        return self.table.image_of_step[np.maximum(steps, self.table.step_start[episode][:, None])].reshape(-1)

    def segment_batch(self, segments: Segments, which: np.ndarray) -> RobotBatch:
        """Return the windows of some segments, with the frames that they share given once (`RobotBatch.segments`).

        Args:
            which: (S,) rows of `segments`. Windows of theirs that do not count are masked.
        """
        table, config, count = self.table, self.config, segments.windows
        out = self.batch(self.segment_anchors(segments, which), images=False)
        last = segments.last[which]
        episode = table.episode_of_image[last]
        stride = table.frame_stride[episode][:, None]
        first, end = table.step_start[episode][:, None], table.step_start[episode + 1][:, None]
        newest = table.step_of_image[last][:, None]
        window = np.arange(count)
        counts = (window >= segments.live[which, :1]) & (window < segments.live[which, 1:])
        live = torch.from_numpy(counts.reshape(-1))
        for name in ("frame_mask", "action_mask", "next_mask", "next_image_mask", "landmark_mask"):
            if name in out:
                out[name] = out[name] & live.view(-1, *[1] * (out[name].dim() - 1))
        read = count + config.history - 1
        ahead = config.image_ahead if self.next_images else 0
        steps = newest + np.arange(1 - read, ahead + 1) * stride
        rows = table.image_of_step[np.clip(steps, first, end - 1)]
        out["segments"] = {}
        for name, bank in (("static", self.static), ("gripper", self.gripper)):
            if bank is None:
                continue
            if self.features:
                out["segments"][f"{name}_features"] = torch.from_numpy(bank.take(rows[:, :read]))
                if self.next_images:
                    out["segments"][name] = torch.from_numpy(self.ahead[name].take(rows[:, -read:]))
            else:
                out["segments"][name] = torch.from_numpy(bank.take(rows))
        return out

    def batch(self, anchors: np.ndarray, images: bool = True) -> RobotBatch:
        """Return the windows that end at `anchors`; with `images` their frames, or features of them."""
        table, config = self.table, self.config
        rows, mask = table.window_frames(anchors, config.history)
        episode = table.episode_of_image[anchors]
        end = table.step_start[episode + 1][:, None]
        steps = table.step_of_image[rows]
        chunk = steps[:, :, None] + np.arange(config.chunk)
        following = steps + table.frame_stride[episode][:, None]
        text, text_mask = self.text.take(table.sentence[episode])
        at = torch.from_numpy(steps)
        out: RobotBatch = {
            "text": text,
            "text_mask": text_mask,
            "state": self.state[at],
            "components": self.components[at],
            "frame_mask": torch.from_numpy(mask),
            "actions": self.actions[torch.from_numpy(np.minimum(chunk, self.done[episode][:, None, None] - 1))],
            "action_mask": torch.from_numpy(
                ((chunk < end[:, :, None]) | self.held[episode][:, None, None]) & mask[:, :, None]
            ),
            "next_components": self.components[torch.from_numpy(np.minimum(following, end - 1))],
            "next_mask": torch.from_numpy((following < end) & mask),
            "clips": None,
        }
        for name, bank in (("static", self.static), ("gripper", self.gripper)):
            if bank is not None and images:
                out[f"{name}_features" if self.features else name] = torch.from_numpy(bank.take(rows))
        if self.next_images:
            seen = steps + config.image_ahead * table.frame_stride[episode][:, None]
            later = table.image_of_step[np.minimum(seen, end - 1)]
            if images:
                out |= {f"next_{name}": torch.from_numpy(bank.take(later)) for name, bank in self.ahead.items()}
            out["next_image_mask"] = torch.from_numpy((table.step_of_image[later] == seen) & mask)
        if self.landmarks is not None:
            out["landmark_pixels"] = self.landmarks[torch.from_numpy(rows)]
            out["landmark_mask"] = self.landmark_mask[torch.from_numpy(rows)]
        if self.offsets is not None:
            out["landmark_offsets"] = self.offsets[torch.from_numpy(rows)]
        return out
