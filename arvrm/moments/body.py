"""A robot's own colours, and what changes in its static camera's images that does not have them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from arvrm.moments.world import LEVELS, NAMED, UNDONE, WORLD, alike, colour_bins, named_colour, widened

_DIFFERS, _LEAST_PIXELS, _MOST_EPISODES, _MORE = 0.1, 3, 0.5, 2.0
_SCALE = 400.0
"""Pixels of 96 x 96 that count as 1."""


def body_colours(films: Iterable[np.ndarray]) -> np.ndarray:
    """Learn the colours of whatever moves in most films: the robot's.

    Args:
        films: of each episode (F, 3, S, S) float32, 0 to 1.

    Returns: (LEVELS, LEVELS, LEVELS) bool.
    """
    present, moves, stands, number = np.zeros(LEVELS**3), np.zeros(LEVELS**3), np.zeros(LEVELS**3), 0
    for film in films:
        still = np.median(film, 0)
        moving = (np.abs(film - still) > _DIFFERS).any(1)
        found = np.bincount(colour_bins(film)[moving], minlength=LEVELS**3)
        present += found >= _LEAST_PIXELS
        moves += found / max(found.sum(), 1)
        stands += np.bincount(colour_bins(still[None]).reshape(-1), minlength=LEVELS**3) / moving[0].size
        number += 1
    table = ((present > _MOST_EPISODES * max(number, 1)) & (moves > _MORE * stands)).reshape([LEVELS] * 3)
    return widened(table)


def robot_changes(film: np.ndarray, instruction: str, colours: np.ndarray) -> np.ndarray:
    """(F, 4): what is not the robot and looks otherwise than before; how that goes on; the same of the colour that the
    sentence names; what does not look yet as in the last image.

    Args:
        film: (F, 3, S, S) float32, 0 to 1.
        colours: `body_colours`'.
    """
    count, _, size, _ = film.shape
    free = ~colours.reshape(-1)[colour_bins(film)]
    # A robot's edges mix with what is behind them.
    inner = free.copy()
    inner[:, 1:] &= free[:, :-1]
    inner[:, :-1] &= free[:, 1:]
    inner[:, :, 1:] &= free[:, :, :-1]
    inner[:, :, :-1] &= free[:, :, 1:]
    before = np.take_along_axis(film, inner.argmax(0)[None, None], 0)[0]
    later = np.take_along_axis(film[::-1], inner[::-1].argmax(0)[None, None], 0)[0]
    scale = _SCALE * (size / 96) ** 2
    differs = (np.abs(film - before) > _DIFFERS).any(1) & inner
    found = np.zeros((count, 4), np.float32)
    found[:, 0] = differs.reshape(count, -1).sum(1) / scale
    found[:, 1] = np.diff(found[:, 0], append=found[-1:, 0])
    found[:, 3] = ((np.abs(film - later) > _DIFFERS).any(1) & inner).reshape(count, -1).sum(1) / scale
    colour = named_colour(instruction)
    if colour is not None:
        differs &= alike(film, colour) | alike(before[None], colour)
        found[:, 2] = differs.reshape(count, -1).sum(1) / scale
    if found[:, 2].max(initial=0) < 0.02:
        found[:, 2] = found[:, 0]
    return found * np.array([5, 10, 5, 5], np.float32)


assert (WORLD, NAMED, UNDONE) == (6, 8, 9)
