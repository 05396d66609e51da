"""Simple ways to find the touch, by one rule each, without words and fitted numbers: to compare with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from arvrm.moments.signals import Signals
from arvrm.moments.world import NAMED, UNDONE

LEAST_CHANGE = 0.08
"""Of the channel NAMED: less is noise."""
_SPAN = 8
_STILL, _CLOSES, _CLEAR = 0.3, 1.5, 0.2
_STANDS, _EMPTY = 1.2, -0.6
"""Pixels of 96 a step at which a hand that grasps moves at most; the opening of a gripper that closed on nothing."""
_PIXELS = 25.0
"""Of 96, very nearly, that a robot's hand moves in the image where its first three components change by 1."""


def closing(signals: Signals) -> int:
    """The last step before the fingers stop changing their opening: they hold, or have let go."""
    opening = signals.opening
    if not np.isfinite(opening).all() or len(opening) < 4:
        return len(opening) // 2
    change = np.abs(np.convolve(opening, [1, 1, -1, -1], mode="same"))
    changing = np.flatnonzero(change > 0.35 * max(float(change[2:-2].max()), 1e-6))
    changing = changing[(changing > 1) & (changing < len(opening) - 2)]
    return int(changing[-1]) if len(changing) else len(opening) // 2


def after_grasp(signals: Signals) -> np.ndarray:
    """(T,) bool: steps at which what was grasped within the episode is let go: something was touched before."""
    opening, speed = signals.opening, _speed(signals)
    count = len(opening)
    late = np.zeros(count, bool)
    if count < 2 * _SPAN or not np.isfinite(opening).all():
        return late
    enough = 0.12 if signals.of_hand else 0.5
    for step in range(6, count - _SPAN):
        fell = opening[step - 6] - opening[step + 3] >= enough
        # A robot's fingers that close on nothing hold nothing; how far a hand's are then, nobody knows.
        holds = signals.of_hand or opening[step + 3 : step + 9].min() >= _EMPTY
        if fell and holds and float(np.median(speed[step - 6 : step + 4])) <= _STANDS:
            while step + 2 < count and opening[step + 1] < opening[step] - 0.01:
                step += 1
            at = np.arange(count)
            widest = np.array([opening[t : t + 9].max() for t in at])
            narrowest = np.array([opening[max(0, t - 3) : t + 1].min() for t in at])
            return (at > step + _SPAN) & (widest - narrowest > enough)
    return late


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


def world(signals: Signals) -> int:
    """Where the world begins to change: where what differs from before grows most faster than it did."""
    changed = signals.images[:, NAMED].astype(np.float64)
    if len(changed) < 4 or np.ptp(changed) < LEAST_CHANGE:
        return slow(signals)
    return int(_kink(changed).argmax())


def evidence(signals: Signals) -> np.ndarray:
    """(T,) how much each step looks like a touch or release, of 1 and more: the fingers stop closing or opening while
    the hand stands nearly still; the world begins to change; the hand stands still between two motions."""
    speed = _speed(signals)
    count = len(speed)
    found = np.zeros(count)
    if count < 5:
        return found
    depth = np.minimum(np.maximum.accumulate(speed), np.maximum.accumulate(speed[::-1])[::-1]) - speed
    found += _STILL * depth / max(float(speed.max()), 0.5)
    changed = signals.images[:, NAMED].astype(np.float64)
    if np.ptp(changed) > LEAST_CHANGE:
        found += np.clip(_kink(changed) / max(float(np.ptp(changed)), _CLEAR), 0, 1)
    opening = signals.opening
    if np.isfinite(opening).all():
        step = closing(signals)
        change = abs(float(opening[min(step + 3, count - 1)] - opening[max(step - 6, 0)]))
        still = float(np.median(speed[max(step - 6, 0) : step + 3]))
        if 4 < step < count - 1 and change > 0.12 and still < 0.8:
            found[step] += _CLOSES
    # Hands that set out from where they worked before leave changes behind, and take their form on the way.
    return found * np.minimum(np.arange(count) / _SPAN, 1)


def _kink(changed: np.ndarray) -> np.ndarray:
    """(T,) how much more is added in the steps after each than in those before."""
    padded = np.pad(changed, _SPAN, mode="edge")
    return padded[2 * _SPAN :] - 2 * changed + padded[: -2 * _SPAN]


def mixed(signals: Signals) -> int:
    """The step with most evidence of all kinds."""
    found = evidence(signals)
    return int(found.argmax()) if found.any() else slow(signals)


def ending(signals: Signals, touch: int) -> int:
    """The first step after the touch from which on the place looks as at the end; the last step where it never does."""
    undone = signals.images[:, UNDONE].astype(np.float64)
    last = len(undone) - 1
    much = np.flatnonzero(undone[touch:] > max(0.25 * float(undone[touch:].max()), LEAST_CHANGE))
    return min(touch + int(much[-1]) + 1, last) if len(much) else last


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
    place = signals.place if signals.of_hand else _PIXELS * signals.place[:, :3]
    step = np.linalg.norm(np.diff(place, axis=0), axis=1)
    step = np.append(step, step[-1:])
    return np.convolve(np.pad(step, 1, mode="edge"), np.ones(3) / 3, mode="valid") if len(step) else step


WAYS: dict[str, Callable[[Signals], int]] = {
    "closing": closing,
    "slow": slow,
    "corner": corner,
    "image": image,
    "combined": combined,
    "world": world,
    "mixed": mixed,
}
