"""How the frames of a clip stand beside those of a query."""

from __future__ import annotations

import numpy as np


def resample(length: int | np.ndarray, frames: int) -> np.ndarray:
    """Return (frames,) int64 indices spread uniformly over 0..length-1, both ends included; one frame: the middle.

    Of an array of lengths: length.shape + (frames,).
    """
    length = np.asarray(length, dtype=np.int64)
    if frames == 1:
        return ((length - 1) // 2)[..., None]
    # As np.linspace rounds, for each length by itself.
    spread = np.arange(frames) * ((length - 1) / (frames - 1))[..., None]
    spread[..., -1] = length - 1
    return np.round(spread).astype(np.int64)


def warp(similarity: np.ndarray, part: bool = False) -> np.ndarray:
    """Align two sequences by dynamic time warping.

    Args:
        similarity: (T, F) of query frames with clip frames.
        part: the query matches any contiguous part of the clip; else both ends are tied.

    Returns:
        (T,) int64, not descending: the clip frame of each query frame (the most similar of those the path visits).
    Source: Sakoe and Chiba, 1978; with `part`: Mueller, Information Retrieval for Music and Motion, section 4.4.
    """
    cost = 1.0 - np.asarray(similarity, dtype=np.float64)
    queries, frames = cost.shape
    total = np.full((queries + 1, frames + 1), np.inf)
    total[0, :] = 0.0 if part else np.inf
    total[0, 0] = 0.0
    for t in range(1, queries + 1):
        for f in range(1, frames + 1):
            total[t, f] = cost[t - 1, f - 1] + min(total[t - 1, f - 1], total[t - 1, f], total[t, f - 1])
    f = int(np.argmin(total[queries, 1:])) + 1 if part else frames
    t = queries
    best = np.full(queries, -1, dtype=np.int64)
    while t > 0:
        if best[t - 1] < 0 or similarity[t - 1, f - 1] > similarity[t - 1, best[t - 1]]:
            best[t - 1] = f - 1
        if f == 1:
            t -= 1
            continue
        moves = (total[t - 1, f - 1], total[t - 1, f], total[t, f - 1])
        step = int(np.argmin(moves))
        t, f = t - (step != 2), f - (step != 1)
    return best
