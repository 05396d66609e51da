"""Images of windows, or what a frozen encoder makes of them: decoded once, or read from the stores on demand."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from arvrm.episodes import EpisodeStore
from arvrm.files import allocate, clear_folder, replacing
from arvrm.interface import UserError
from arvrm.resize import resize
from arvrm.windows.headers import UNREADABLE_ARRAYS, store_fingerprint
from arvrm.windows.table import EpisodeTable

_AT_ONCE = 256
"""Images that are resized together: as 32-bit numbers they take four times their memory."""
_ONE_SIZE = "give stores whose images have one size, or convert them again"


class FrameSource(Protocol):
    """What windows show of one camera, by global image row of their table.

    Attributes:
        features: they are what a frozen encoder made of the images, (1 + P, D); else images, (H, W, 3) uint8.
        shape: of one frame.
    """

    @property
    def features(self) -> bool: ...
    @property
    def shape(self) -> tuple[int, ...]: ...

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return the frames at `rows` (any shape), rows.shape + shape."""
        ...


Frames = Mapping[str, FrameSource]
"""Camera role -> its frames."""


def batch_key(role: str, source: FrameSource) -> str:
    """Return under which key a batch has the frames of the camera of this role."""
    return f"{role}_features" if source.features else role


class FrameBank:
    """A `FrameSource` that is decoded.

    Attributes:
        parts: one (F_s, ...) array per store, in memory or memory-mapped.
    """

    def __init__(self, parts: Sequence[np.ndarray], features: bool = False) -> None:
        shapes = {part.shape[1:] for part in parts}
        if len(shapes) > 1:
            raise UserError(f"stores have frames of different sizes ({sorted(shapes)}); {_ONE_SIZE}")
        self.parts, self.features = list(parts), features
        self.starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])])

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parts[0].shape[1:]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `FrameSource`."""
        if len(self.parts) == 1:
            return self.parts[0][rows]
        flat = rows.reshape(-1)
        out = np.empty((len(flat), *self.shape), dtype=self.parts[0].dtype)
        part = np.searchsorted(self.starts, flat, side="right") - 1
        for number in np.unique(part):
            at = part == number
            out[at] = self.parts[number][flat[at] - self.starts[number]]
        return out.reshape(*rows.shape, *self.shape)


class StoreFrames:
    """A `FrameSource` of images that are read from the stores when they are asked for: for more than memory holds.

    Args:
        camera: its name in the stores.
        size: pixels of the square images to which they are resized; None: as stored.
    """

    features = False

    def __init__(self, table: EpisodeTable, camera: str, size: int | None = None) -> None:
        self.table, self.camera, self.size = table, camera, size
        self.shape: tuple[int, ...] = self.take(np.zeros(1, dtype=np.int64)).shape[1:]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `FrameSource`.

        Raises:
            UserError: the images at `rows` have several sizes.
        """
        flat, inverse = np.unique(rows, return_inverse=True)
        episodes = self.table.episode_of_image[flat]
        frames = []
        for episode in np.unique(episodes):
            local = flat[episodes == episode] - self.table.image_start[episode]
            store = self.table.stores[self.table.store[episode]]
            frames.append(_resized(store.frames(self.table.ids[episode], self.camera, local), self.size))
        shapes = {part.shape[1:] for part in frames}
        if len(shapes) > 1:
            place = self.table.stores[0].path
            raise UserError(f"{place}: {self.camera} has frames of different sizes ({sorted(shapes)}); {_ONE_SIZE}")
        return np.concatenate(frames)[inverse.reshape(rows.shape)]


def decode_frames(
    table: EpisodeTable,
    camera: str,
    size: int | None = None,
    cache: str | Path | None = None,
    compute: Callable[[np.ndarray], np.ndarray] | None = None,
    key: str = "",
    progress: Callable[[int], object] | None = None,
    wait: bool = False,
) -> FrameBank:
    """Decode every frame of `camera` once.

    Args:
        camera: its name in the stores.
        size: resize to this many pixels (square); None keeps the stored size.
        cache: folder for memory-mapped arrays, keyed by the store's fingerprint; runs share them. None: memory only.
        compute: applied to (n, H, W, 3) uint8 frames before they are kept, such as a frozen encoder; `key` must name it
            (its hash), since it becomes part of the cache's file name.
        progress: called with the number of frames done after each episode.
        wait: leave the work to another process, and take its file once it is there.

    Raises:
        UserError: a store's images have several sizes, or the cache cannot be written.
    """
    decoding = _Decoding(table, camera, size, compute, progress)
    parts = []
    for number in range(len(table.stores)):
        file = None if cache is None else Path(cache) / decoding.cache_name(number, key)
        part = decoding.cached(number, file, wait) if file is not None else None
        parts.append(decoding.decoded(number, file) if part is None else part)
    return FrameBank([part for part in parts if len(part)] if len(parts) > 1 else parts, compute is not None)


@dataclass(frozen=True)
class _Decoding:
    """One camera's frames, store by store; fields as the arguments of `decode_frames`."""

    table: EpisodeTable
    camera: str
    size: int | None
    compute: Callable[[np.ndarray], np.ndarray] | None
    progress: Callable[[int], object] | None

    def cache_name(self, number: int, key: str) -> str:
        """Return what the cache calls the frames of a store; it changes with whatever changes them."""
        size = "stored"
        if self.size is not None:
            # Caches of before there was one resize hold other pixels under the bare number; unchanged ones they share.
            changed = self.table.image_sizes(self.camera, self._episodes(number)) - {(self.size, self.size)}
            size = f"{self.size}px" if changed else str(self.size)
        parts = [store_fingerprint(self.table.stores[number]), self.table.embodiment, self.camera, size]
        return f"{'-'.join([*parts, *filter(None, [key])])}.npy"

    def cached(self, number: int, file: Path, wait: bool) -> np.ndarray | None:
        """Return what the cache has of a store, or None; with `wait`, once it is there."""
        total = self._total(number)
        while wait and total and not file.exists():
            time.sleep(1.0)
        if not file.exists():
            return None
        try:
            part = np.load(file, mmap_mode="r")
        except UNREADABLE_ARRAYS:
            return None
        kinds = ("float16", "float32") if self.compute else ("uint8",)
        if part.ndim < 2 or len(part) != total or part.dtype.name not in kinds or 0 in part.shape:
            return None
        if not self.compute and (part.ndim != 4 or part.shape[3] != 3 or not self._sized(number, part.shape[1:3])):
            return None
        self._done(total)
        return part

    def _sized(self, number: int, size: tuple[int, ...]) -> bool:
        wanted = {(self.size, self.size)} if self.size else self.table.image_sizes(self.camera, self._episodes(number))
        return wanted == {size}

    def decoded(self, number: int, file: Path | None) -> np.ndarray:
        """Decode a store's frames (F_s, ...), into `file` if there is one."""
        if not self._total(number):
            return np.empty((0,), dtype=np.uint8)
        if file is None:
            return self._fill(number, np.empty)
        clear_folder(file.parent)  # a large file whose name nobody may ask for again
        with replacing(file) as partial:

            def mapped(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
                np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=shape)
                allocate(partial)
                return np.lib.format.open_memmap(partial, mode="r+")

            self._fill(number, mapped)  # leaving it closes, and so writes, the mapping
        return np.load(file, mmap_mode="r")

    def _fill(self, number: int, empty: Callable[[tuple[int, ...], np.dtype], np.ndarray]) -> np.ndarray:
        store, total = self.table.stores[number], self._total(number)
        out, done = None, 0
        for episode in self._episodes(number):
            values = self._values(store, int(episode))
            if out is None:
                out = empty((total, *values.shape[1:]), values.dtype)
            if values.shape[1:] != out.shape[1:]:
                raise UserError(
                    f"{store.path}, episode {self.table.ids[episode]}: {self.camera} frames are {values.shape[1:]}, "
                    f"others {out.shape[1:]}; {_ONE_SIZE}"
                )
            out[done : done + len(values)] = values
            done += len(values)
            self._done(len(values))
        assert out is not None
        return out

    def _values(self, store: EpisodeStore, episode: int) -> np.ndarray:
        count = int(self.table.image_start[episode + 1] - self.table.image_start[episode])
        frames = _resized(store.frames(self.table.ids[episode], self.camera, np.arange(count)), self.size)
        return self.compute(frames) if self.compute else frames

    def _episodes(self, number: int) -> np.ndarray:
        return np.flatnonzero(self.table.store == number)

    def _total(self, number: int) -> int:
        episodes = self._episodes(number)
        return int((self.table.image_start[episodes + 1] - self.table.image_start[episodes]).sum())

    def _done(self, frames: int) -> None:
        if self.progress:
            self.progress(frames)


def _resized(frames: np.ndarray, size: int | None) -> np.ndarray:
    if size is None or frames.shape[1:3] == (size, size):
        return frames
    images = torch.from_numpy(np.ascontiguousarray(frames))
    return torch.cat([resize(some, size) for some in images.split(_AT_ONCE)]).numpy()
