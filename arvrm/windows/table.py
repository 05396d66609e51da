"""The episodes of several stores as flat arrays: which frames and steps there are, and whose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from arvrm.episodes import EpisodeHeader, EpisodeStore
from arvrm.interface import CONTROL_HZ, Robot, UserError
from arvrm.robots.described import described_as, unlike
from arvrm.windows.headers import COLUMNS, EMBODIMENTS, Coder, Names, StoreHeaders, static_camera

_WHOLE = 0.005
"""Strides that are a whole number but for this share are whole."""


def exact_stride(stride: int, fps: np.ndarray | float, rate: float) -> np.ndarray:
    """Return how many steps at `fps` a second `stride` steps at `rate` a second are, float64, at least 1."""
    exact = np.maximum(1.0, stride * np.asarray(fps) / rate)
    # 29.97 a second is 30 for a window, which spans a second at most.
    return np.where(np.abs(exact - np.round(exact)) < _WHOLE * exact, np.round(exact), exact)


class _Lookup:
    """A number for every row, found when it is asked for instead of stored: index it like an array."""

    def __init__(self, length: int, find: Callable[[np.ndarray], np.ndarray]) -> None:
        self._length, self._find = length, find

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, rows: slice | int | np.integer | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self._length))
        rows = np.asarray(rows)
        return self._find(np.flatnonzero(rows) if rows.dtype == bool else rows)

    def __array__(self, dtype: DTypeLike = None, copy: bool | None = None) -> np.ndarray:
        return self._find(np.arange(self._length)).astype(dtype or np.int64, copy=False)


class EpisodeTable:
    """Headers and time axes of all episodes of one embodiment in several stores, concatenated; play is left out.

    It holds 4 bytes a frame, and some 60 and its name an episode; no Python object for any of them.

    Attributes (E episodes, N steps, F stored frames, all stores together):
        robot: the one that all stores' robot episodes are of; None in a table of humans.
        ids, tasks, sentences, groups: names; `task`, `sentence`, `group`, `store`: (E,) int32 indices into them.
        entry: (E,) int32, to which of the stores named together (see `entries`) it belongs.
        step_start, image_start: (E + 1,) int64, where each episode's steps and frames begin.
        episode_of_image, step_of_image: int64 by frame, 0..F-1; steps are global rows.
        image_of_step: int64 by step, 0..N-1: the episode's latest frame at or before it (its first frame for earlier
            steps).
        frame_stride: (E,) float64, episode steps between two frames of a window: no whole number where the rate is no
            multiple (2.5 at 25 a second), so that the spacing in seconds holds; see `steps_back` and `steps_ahead`.
        static_size: (E, 2) int32, height and width of the static camera's images.

    Args:
        stride: control steps between two frames of a window, at the robot's `control_hz`, or, of humans, CONTROL_HZ.
        cache: folder that keeps the headers as arrays, so that the next start does not read them one by one.
        entries: one number a store: those with the same number are mixed like one store. None: each is its own.

    Raises:
        UserError: no store, no such episode in any, or stores of two robots.
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
        coders = {"task": Coder(), "sentence": Coder(), "group": Coder()}
        ids, image_steps = [], []
        columns: dict[str, list[np.ndarray]] = {name: [] for name in ("store", *COLUMNS)}
        for number, store in enumerate(self.stores):
            headers = StoreHeaders.read(store, cache)
            # Play has no instruction to condition on.
            spoken = np.array([bool(sentence) for sentence in headers.names["sentences"]], dtype=bool)
            kept = headers.columns["embodiment"] == EMBODIMENTS.index(embodiment)
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
        self.robot = self._common_robot() if embodiment == "robot" else None
        rate = CONTROL_HZ if self.robot is None else self.robot.control_hz
        self.frame_stride = exact_stride(stride, column["fps"], rate)
        self.static_size = np.stack([column["height"], column["width"]], axis=1)
        self.step_start = np.concatenate([[0], np.cumsum(column["steps"])]).astype(np.int64)
        self.image_start = np.concatenate([[0], np.cumsum(column["frames"])]).astype(np.int64)
        self.steps, self.frames = int(self.step_start[-1]), int(self.image_start[-1])
        self._steps_of_images = self._global_steps(image_steps)
        self.episode_of_image = _Lookup(self.frames, self._episode_of_image)
        self.step_of_image = _Lookup(self.frames, lambda rows: self._steps_of_images[rows].astype(np.int64))
        self.image_of_step = _Lookup(self.steps, self._image_of_step)

    def _common_robot(self) -> Robot:
        first, *others = (self.stores[number] for number in np.unique(self.store))
        for store in others:
            if store.robot_name != first.robot_name:
                raise UserError(
                    f"{first.path} holds episodes of {first.robot_name}, {store.path} of {store.robot_name}; "
                    "give stores of one robot"
                )
        robot = first.robot
        assert robot is not None, "it holds robot episodes"
        for store in others:
            described, own = described_as(robot), described_as(store.robot)
            if described != own:
                raise UserError(
                    f"{store.path}: describes robot {robot.name!r} otherwise than {first.path} "
                    f"({unlike(own, described)}); name the description that counts with data.robot=FILE.json"
                )
        return robot

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

    def image_sizes(self, camera: str, episodes: np.ndarray) -> set[tuple[int, int]]:
        """Return the different (height, width) of a camera's images in these episodes, as stored."""
        if camera == static_camera(self.robot):
            return {(int(height), int(width)) for height, width in np.unique(self.static_size[episodes], axis=0)}
        return {self.header(int(episode)).cameras.get(camera, (0, 0)) for episode in episodes}

    def array(self, name: str) -> np.ndarray:
        """Return the step array `name` of all episodes, (N, ...)."""
        return np.concatenate(
            [self.stores[number].arrays(i, [name])[name] for i, number in zip(self.ids, self.store, strict=True)]
        )

    def optional_array(self, name: str) -> np.ndarray | None:
        """Return the same, or None if some episode lacks it."""
        if all(name in self.header(episode).arrays for episode in range(len(self))):
            return self.array(name)
        return None

    def steps_back(self, episode: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Return how many steps lie between a frame and the one `count` strides before it, int64.

        Where that is no whole number it is the next smaller: images are stored at the first step at or after their
        moment, and the latest one before a step is taken.
        """
        return np.floor(count * self.frame_stride[episode] + 1e-6).astype(np.int64)

    def steps_ahead(self, episode: np.ndarray, count: int | np.ndarray = 1) -> np.ndarray:
        """Return how many steps lie between a frame and what is `count` strides after it: the nearest step, int64."""
        return np.rint(count * self.frame_stride[episode]).astype(np.int64)

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
        steps = self.step_of_image[anchors][:, None] - self.steps_back(episode[:, None], back)
        first = self.step_start[episode][:, None]
        # A frame stored after the episode's first step is still its first frame: steps before it are padding.
        first_frame = self.step_of_image[self.image_start[episode]][:, None]
        mask = steps >= np.maximum(first, first_frame)
        return self.image_of_step[np.maximum(steps, first)], mask
