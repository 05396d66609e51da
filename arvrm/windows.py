"""Windows over episode stores: which frames, states, keypoints and actions a model sees together.

Everything that is not an image is held in flat NumPy arrays (one row a step or a frame, all stores one after another),
so that a batch is a handful of gathers. Images come from a `FrameBank`: decoded once into memory or into a
memory-mapped cache for small data, read from the stores on demand for large.

An *anchor* is the last frame of a window, named by its global image row; so windows end only where an image exists.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from arvrm.episodes import EpisodeHeader, EpisodeStore
from arvrm.interface import CONTROL_HZ, LANDMARK_UNIT_M, HumanBatch, RobotBatch, UserError
from arvrm.model.encoders import encode_components, encode_state, normalise_keypoints

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
            (`meta["success_step"]`). "recorded": what was recorded. "hold": to go on as in the last step before; windows
            that end later are left out. Rollouts stop at success, so that a recorded retreat only teaches to let go too
            early of what is nearly done.
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


def store_fingerprint(store: EpisodeStore) -> str:
    """Return 16 hex digits that change when the store's manifest, episodes or their lengths change."""
    digest = hashlib.sha256(json.dumps(store.manifest, sort_keys=True).encode())
    for header in store.headers():
        digest.update(f"{header.id}\t{header.steps}\t{header.frames}\t{header.instruction}\n".encode())
    return digest.hexdigest()[:16]


class EpisodeTable:
    """Headers and time axes of all episodes of one embodiment in several stores, concatenated; play is left out.

    Attributes (E episodes, N steps, F stored frames, all stores together):
        ids, tasks, sentences, groups: names; `task`, `sentence`, `group`, `store`: (E,) int32 indices into them.
        step_start, image_start: (E + 1,) int64, where each episode's steps and frames begin.
        episode_of_image, step_of_image: (F,) int64; steps are global rows.
        image_of_step: (N,) int64, the episode's latest frame at or before a step (its first frame for earlier steps).
        frame_stride: (E,) int64, episode steps between two frames of a window.
    """

    def __init__(self, stores: Sequence[EpisodeStore], embodiment: str, stride: int) -> None:
        if not stores:
            raise UserError(f"no store of {embodiment} episodes given; name at least one")
        self.stores = tuple(stores)
        self.embodiment = embodiment
        tasks, sentences, groups = _Names(), _Names(), _Names()
        columns: dict[str, list[int]] = {name: [] for name in ("task", "sentence", "group", "store", "frame_stride")}
        self.ids: list[str] = []
        steps, frames, step_of_image, image_of_step = [], [], [], []
        first_step = first_image = 0
        for number, store in enumerate(self.stores):
            for identity in store.ids:
                header = store.header(identity)
                if header.embodiment != embodiment or not header.instruction:
                    continue  # play has no instruction to condition on
                image_steps = header.image_steps.astype(np.int64)
                self.ids.append(identity)
                columns["task"].append(tasks(header.task))
                columns["sentence"].append(sentences(header.instruction))
                columns["group"].append(groups(header.group))
                columns["store"].append(number)
                columns["frame_stride"].append(max(1, round(stride * header.fps / CONTROL_HZ)))
                at = np.searchsorted(image_steps, np.arange(header.steps), side="right") - 1
                image_of_step.append(first_image + np.maximum(at, 0))
                step_of_image.append(first_step + image_steps)
                steps.append(header.steps)
                frames.append(len(image_steps))
                first_step += header.steps
                first_image += len(image_steps)
        if not self.ids:
            places = ", ".join(str(store.path) for store in stores)
            raise UserError(f"{places}: no {embodiment} episode; give a store made with --embodiment {embodiment}")
        self.tasks, self.sentences, self.groups = tasks.names, sentences.names, groups.names
        for name, values in columns.items():
            setattr(self, name, np.asarray(values, dtype=np.int64))
        self.step_start = np.concatenate([[0], np.cumsum(steps)]).astype(np.int64)
        self.image_start = np.concatenate([[0], np.cumsum(frames)]).astype(np.int64)
        self.step_of_image = np.concatenate(step_of_image)
        self.image_of_step = np.concatenate(image_of_step)
        self.episode_of_image = np.repeat(np.arange(len(self.ids)), frames)

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


class _Names:
    def __init__(self) -> None:
        self.names: list[str] = []
        self._index: dict[str, int] = {}

    def __call__(self, name: str) -> int:
        if name not in self._index:
            self._index[name] = len(self.names)
            self.names.append(name)
        return self._index[name]


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


def anchor_weights(
    table: EpisodeTable, anchors: np.ndarray, store_weights: Sequence[float] | None = None, balance_tasks: bool = True
) -> np.ndarray:
    """Return (A,) float64 probabilities of `anchors`, which sum to 1.

    Each store gets its share of `store_weights` (None: its share of the anchors); within a store each task gets the
    same share if `balance_tasks`; within a task all anchors are equal.
    """
    episode = table.episode_of_image[anchors]
    store, task = table.store[episode], table.task[episode]
    counts = np.bincount(store, minlength=len(table.stores)).astype(np.float64)
    if store_weights is None:
        share = counts / counts.sum()
    else:
        share = np.asarray(store_weights, dtype=np.float64)
        if len(share) != len(table.stores):
            raise UserError(f"weights: {len(share)} given for {len(table.stores)} stores; give one per store")
        if (share < 0).any() or not (share * (counts > 0)).sum() > 0:
            raise UserError(f"weights {list(store_weights)}: give numbers from 0, at least one positive with episodes")
        share = share * (counts > 0)
        share = share / share.sum()
    cell = store * len(table.tasks) + (task if balance_tasks else 0)
    in_cell = np.bincount(cell, minlength=len(table.stores) * len(table.tasks))
    cells_of_store = np.bincount(np.unique(cell) // len(table.tasks), minlength=len(table.stores))
    weights = share[store] / cells_of_store[store] / in_cell[cell]
    return weights / weights.sum()


class AnchorSampler:
    """Draws anchors by weight; the draw of a step depends on (seed, step) alone, so a run resumes at any step.

    Draws are stratified: the cumulated weights, in order of store, task and time, are cut into B equal parts and one
    anchor is drawn from each. The expected count of every anchor is its weight, and tasks hardly fluctuate.
    """

    def __init__(self, table: EpisodeTable, anchors: np.ndarray, weights: np.ndarray, seed: int) -> None:
        if len(anchors) == 0:
            raise UserError("no window to draw from: the split or the selection left no episode; give more data")
        episode = table.episode_of_image[anchors]
        order = np.lexsort((anchors, table.task[episode], table.store[episode]))
        self.anchors = anchors[order]
        self.cumulated = np.cumsum(weights[order])
        self.cumulated /= self.cumulated[-1]
        self.seed = seed

    def draw(self, step: int, batch: int) -> np.ndarray:
        """Return (batch,) anchors of this step, in random order."""
        rng = np.random.default_rng([self.seed, step])
        points = (np.arange(batch) + rng.random(batch)) / batch
        rows = np.searchsorted(self.cumulated, points, side="right")
        return rng.permutation(self.anchors[np.minimum(rows, len(self.anchors) - 1)])


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


def in_batches(anchors: np.ndarray, batch: int) -> Iterator[np.ndarray]:
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
        rows = torch.from_numpy(np.ascontiguousarray(sentences))
        return self.text[rows], self.mask[rows]


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


class HumanWindows:
    """Human clips as `HumanBatch`es.

    Args:
        table: human episodes.
        keypoints: K of the model, 21 or 42.
        text: embeddings of `table.sentences`.
        frames: images (static) or frozen features of them, by image row; None: keypoints only.
        features: `frames` holds features, not images.
    """

    def __init__(
        self,
        table: EpisodeTable,
        config: WindowConfig,
        keypoints: int,
        text: TextTable,
        frames: FrameBank | StoreFrames | None,
        features: bool = False,
    ) -> None:
        self.table, self.config, self.text, self.frames, self.features = table, config, text, frames, features
        points, seen = [], []
        for episode, identity in enumerate(table.ids):
            found = table.stores[table.store[episode]].arrays(identity, ["keypoints", "visible"])
            here, visible = choose_hand(found["keypoints"], found["visible"], keypoints)
            size = table.header(episode).cameras["rgb_static"]
            points.append(normalise_keypoints(np.where(visible[..., None], here, 0.0), *size))
            seen.append(visible)
        self.keypoints = torch.from_numpy(np.concatenate(points))
        self.visible = torch.from_numpy(np.concatenate(seen))

    def anchors(self, episodes: np.ndarray) -> np.ndarray:
        """Return the frames of `episodes` that are followed by a pose, so that the window has one to predict."""
        rows = np.flatnonzero(np.isin(self.table.episode_of_image, episodes))
        episode = self.table.episode_of_image[rows]
        following = self.table.step_of_image[rows] + self.table.frame_stride[episode]
        return rows[following < self.table.step_start[episode + 1]]

    def batch(self, anchors: np.ndarray) -> HumanBatch:
        """Return the windows that end at `anchors`."""
        rows, mask = self.table.window_frames(anchors, self.config.history)
        return self.gather(rows, mask, self.table.episode_of_image[anchors])

    def future(self, anchors: np.ndarray, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keypoints (B, frames, K, 3) and visible of the frames after the windows that end at `anchors`.

        Past the clip's end nothing is visible.
        """
        episode = self.table.episode_of_image[anchors]
        stride, end = self.table.frame_stride[episode][:, None], self.table.step_start[episode + 1][:, None]
        steps = self.table.step_of_image[anchors][:, None] + stride * np.arange(1, frames + 1)
        at = torch.from_numpy(np.minimum(steps, end - 1))
        return self.keypoints[at], self.visible[at] & torch.from_numpy(steps < end)[..., None]

    def gather(self, rows: np.ndarray, mask: np.ndarray, episodes: np.ndarray, images: bool = True) -> HumanBatch:
        """Return any frames as a batch.

        Args:
            rows: (..., T) global image rows; mask: (..., T), False for padding; episodes: (...) whose text is given.
        """
        steps = self.table.step_of_image[rows]
        index = torch.from_numpy(steps)
        following = steps[..., -1] + self.table.frame_stride[episodes]
        exists = following < self.table.step_start[episodes + 1]
        after = torch.from_numpy(np.where(exists, following, steps[..., -1]))
        text, text_mask = self.text.take(self.table.sentence[episodes])
        out: HumanBatch = {
            "text": text,
            "text_mask": text_mask,
            "keypoints": self.keypoints[index],
            "visible": self.visible[index],
            "next_keypoints": self.keypoints[after],
            "next_visible": self.visible[after] & torch.from_numpy(exists)[..., None],
            "frame_mask": torch.from_numpy(np.ascontiguousarray(mask)),
        }
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
        text: TextTable,
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
        self.state = torch.from_numpy(encode_state(robot_obs, target))
        self.components = torch.from_numpy(encode_components(robot_obs))
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
        height, width = self.table.header(episode).cameras["rgb_static"]
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
