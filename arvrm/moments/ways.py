"""Simple ways to find the touch, by one rule each, without words and fitted numbers: to compare with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from arvrm.moments.signals import Signals


def closing(signals: Signals) -> int:
    """The last step before the fingers stop changing their opening: they hold, or have let go."""
    opening = signals.opening
    if not np.isfinite(opening).all() or len(opening) < 4:
        return len(opening) // 2
    change = np.abs(np.convolve(opening, [1, 1, -1, -1], mode="same"))
    changing = np.flatnonzero(change > 0.35 * max(float(change[2:-2].max()), 1e-6))
    changing = changing[(changing > 1) & (changing < len(opening) - 2)]
    return int(changing[-1]) if len(changing) else len(opening) // 2


def slow(signals: Signals) -> int:
    """The slowest point between two motions."""
    speed = _speed(signals)
    if len(speed) < 5:
        return len(speed) // 2
    before = np.maximum.accumulate(speed)
    after = np.maximum.accumulate(speed[::-1])[::-1]
    depth = np.minimum(before, after) - speed
    return int(depth.argmax())


def corner(signals: Signals) -> int:
    """Where the path turns most, weighed by how far it comes and goes."""
    place = signals.place
    at, last = np.arange(len(place)), len(place) - 1
    came, goes = place - place[np.maximum(at - 6, 0)], place[np.minimum(at + 6, last)] - place
    lengths = np.linalg.norm(came, axis=1) * np.linalg.norm(goes, axis=1)
    return int((lengths - (came * goes).sum(1)).argmax())


def image(signals: Signals) -> int:
    """From where on most changes near the fingertips, against what changed before."""
    change = signals.images[:, 0].astype(np.float64)
    total = np.cumsum(change)
    share = np.arange(1, len(change) + 1) / len(change)
    return int((share * total[-1] - total).argmax()) if len(change) else 0


def combined(signals: Signals) -> int:
    """`closing` where the fingers move much in the second half of the episode or later than they last ran, else
    `slow`."""
    opening = signals.opening
    step = closing(signals)
    if np.isfinite(opening).all() and len(opening) > 8:
        change = abs(float(opening[min(step + 3, len(opening) - 1)] - opening[max(step - 6, 0)]))
        if change > 0.12 and step > 4:
            return step
    return slow(signals)


def _speed(signals: Signals) -> np.ndarray:
    step = np.linalg.norm(np.diff(signals.place, axis=0), axis=1)
    step = np.append(step, step[-1:])
    return np.convolve(np.pad(step, 1, mode="edge"), np.ones(3) / 3, mode="valid") if len(step) else step


WAYS: dict[str, Callable[[Signals], int]] = {
    "closing": closing,
    "slow": slow,
    "corner": corner,
    "image": image,
    "combined": combined,
}
