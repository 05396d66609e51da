"""Images of windows, or what a frozen encoder makes of them: decoded once, or read on demand."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arvrm.interface import UserError
from arvrm.windows.headers import store_fingerprint
from arvrm.windows.table import EpisodeTable


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
