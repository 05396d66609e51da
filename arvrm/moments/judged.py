"""How far found moments lie from the true ones, which synthetic stores keep: for tables, never for training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from arvrm.episodes import EpisodeHeader
from arvrm.interface import TASKS
from arvrm.moments.signals import PIXELS, RATE, Signals

JUDGE = "judge"
"""The key of an episode's `meta` that `arvrm generate` keeps the truth under."""
MEDIAN_PX, NINE_TENTHS_PX = 1.5, 5.0


@dataclass(frozen=True)
class Judged:
    """One moment of one episode against the truth.

    Attributes:
        pixels: from where the hand (middle of thumb and index tips) or gripper (TCP) was at the true moment, seen by
            the static camera, to where it was at the found one, in pixels of 96.
        centimetres: the same in the world; NaN for a hand.
        steps: found minus true, in steps of 1/30 s.
        confidence: what was said.
    """

    task: str
    pixels: float
    centimetres: float
    steps: float
    confidence: float


def truth_of(header: EpisodeHeader) -> dict[str, Any] | None:
    """What the generator knew, or None."""
    found = header.meta.get(JUDGE)
    return found if isinstance(found, dict) else None


def judge(
    header: EpisodeHeader,
    signals: Signals,
    arrays: dict[str, np.ndarray],
    moment: str,
    found: float,
    confidence: float = 1.0,
) -> Judged | None:
    """Compare a found row with the true one; None where the episode has no such moment.

    Args:
        moment: "touch" or "end".
        arrays: of a robot: robot_obs (N, 15).
    """
    truth = truth_of(header)
    if truth is None or moment not in truth:
        return None
    true, last = int(truth[moment]), header.steps - 1
    found = int(np.clip(round(found), 0, last))
    if header.embodiment == "human":
        steps = [int(np.abs(signals.rows - row).argmin()) for row in (true, found)]
        pixels, centimetres = float(np.linalg.norm(np.diff(signals.place[steps], axis=0))), float("nan")
    else:
        points = arrays["robot_obs"][[true, found], :3]
        centimetres = 100 * float(np.linalg.norm(points[1] - points[0]))
        image = np.concatenate([points, np.ones((2, 1))], 1) @ np.array(truth["camera"]).T
        place = image[:, :2] / image[:, 2:]
        height = next(iter(header.cameras.values()))[0]
        pixels = float(np.linalg.norm(place[1] - place[0])) * PIXELS / height
    return Judged(header.task, pixels, centimetres, (found - true) * RATE / header.fps, confidence)


def table(judged: Iterable[Judged]) -> list[dict[str, Any]]:
    """A row a task, in CALVIN's order, and one of all: n, median and 90 % of pixels, median of steps and centimetres,
    and whether the claim (MEDIAN_PX, NINE_TENTHS_PX) holds."""
    entries = list(judged)
    names = [task for task in TASKS if any(entry.task == task for entry in entries)]
    names += sorted({entry.task for entry in entries} - set(names))
    rows = []
    for name in (*names, "all"):
        own = [entry for entry in entries if name in (entry.task, "all")]
        pixels = np.array([entry.pixels for entry in own])
        median, most = float(np.median(pixels)), float(np.quantile(pixels, 0.9))
        deep = [entry.centimetres for entry in own if np.isfinite(entry.centimetres)]
        rows.append({
            "task": name, "n": len(own), "median_px": round(median, 2), "p90_px": round(most, 2),
            "median_cm": round(float(np.median(deep)), 2) if deep else None,
            "p90_cm": round(float(np.quantile(deep, 0.9)), 2) if deep else None,
            "median_steps": round(float(np.median([abs(entry.steps) for entry in own])), 1),
            "confidence": round(float(np.mean([entry.confidence for entry in own])), 3),
            "holds": bool(median <= MEDIAN_PX and most <= NINE_TENTHS_PX),
        })  # fmt: skip
    return rows


def text(rows: list[dict[str, Any]]) -> str:
    """The table for a terminal."""
    lines = [f"{'task':<26}{'n':>5}{'median px':>11}{'90 % px':>9}{'cm':>7}{'steps':>7}{'said':>7}"]
    for row in rows:
        deep = "" if row["median_cm"] is None else f"{row['median_cm']:.2f}"
        lines.append(
            f"{row['task']:<26}{row['n']:>5}{row['median_px']:>11.2f}{row['p90_px']:>9.2f}{deep:>7}"
            f"{row['median_steps']:>7.1f}{row['confidence']:>7.2f}{'' if row['holds'] else '  misses'}"
        )
    return "\n".join(lines)
