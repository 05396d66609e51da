"""Runs of windows that share their frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arvrm.windows.table import EpisodeTable


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
    # Windows whose stride is no whole number of steps do not meet each other's frames.
    together = (np.diff(episode) == 0) & (np.diff(phase) == 0) & (np.diff(step) == stride[1:])
    together &= stride[1:] == np.round(stride[1:])
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
