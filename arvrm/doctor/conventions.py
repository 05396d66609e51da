"""Compares actions with recorded ones and names the convention in which they are other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from arvrm.doctor.findings import Finding, Status
from arvrm.doctor.readings import CLIPPED_TWICE, RIGHT, Reading, judge, positions, rotations

_FEW = 30
"""Steps below which nothing is said."""
_RARE = 0.05
"""Share of a class below which the other says nothing of it."""


@dataclass(frozen=True)
class Answers:
    """Actions beside those that are known to be right.

    Attributes:
        part: of the page.
        whose: such as "the policy's actions".
        given: (n, 7) what is tested.
        wanted: (n, 7) recorded relative actions, as CALVIN means them.
        pose: (n, 6) the poses that they add to (m, rad).
    """

    part: str
    whose: str
    given: np.ndarray
    wanted: np.ndarray
    pose: np.ndarray


def compare(answers: Answers) -> Iterator[Finding]:
    """Yield a finding each about positions, rotations and gripper."""
    if len(answers.given) < _FEW:
        text = f"{len(answers.given)} steps are too few to compare; name more demonstrations"
        yield Finding(answers.part, "actions", "unknown", text)
        return
    yield _arm(answers, "position", slice(0, 3), positions)
    yield _arm(answers, "rotation", slice(3, 6), rotations)
    yield _gripper(answers)


def _arm(
    answers: Answers,
    about: str,
    columns: slice,
    readings: Callable[[np.ndarray, np.ndarray], Iterator[Reading]],
) -> Finding:
    given = answers.given[:, columns]
    found = judge(given, list(readings(answers.wanted, answers.pose)))
    explained = f"{100 * (1 - found.unexplained):.0f} % of the demonstrations' variance"
    status: Status = "good"
    if found.still:
        status, text = "unknown", f"the demonstrations have next to none; {answers.whose} cannot be compared there"
    elif found.name == RIGHT:
        text = f"{answers.whose} are CALVIN's: they explain {explained}"
    elif found.name == CLIPPED_TWICE:
        status, text = "wrong", f"{answers.whose} are {found.name}"
    elif found.name is not None:
        right = f"{100 * (1 - found.right):.0f} % as CALVIN's"
        status, text = "wrong", f"{answers.whose} are {found.name} (so read they explain {explained}; {right})"
    elif np.ptp(given, axis=0).max() == 0:
        status, text = "wrong", f"{answers.whose} are the same at every step"
    else:
        # A weak policy may turn at random and still be a policy; one that moves at random is none.
        status = "wrong" if about == "position" else "unknown"
        text = f"{answers.whose} are unlike the demonstrations, in every convention that is known here"
    return Finding(answers.part, about, status, text)


def _gripper(answers: Answers) -> Finding:
    given, wanted = answers.given[:, 6], answers.wanted[:, 6] > 0
    values = np.unique(np.round(given, 6))
    about, whose = "gripper", answers.whose
    if set(values) <= {0.0, 1.0} and len(values) > 1:
        agree = _agreement(given > 0.5, wanted)
        sign = "" if agree is None else "; 1 opens" if agree >= 0.5 else "; 1 closes, the reverse of CALVIN's"
        return Finding(answers.part, about, "wrong", f"{whose} are 0 and 1, CALVIN's -1 (close) and 1 (open){sign}")
    binary = set(values) <= {-1.0, 1.0}
    agree = _agreement(given > 0, wanted)
    if agree is None:
        return Finding(answers.part, about, "unknown", "the demonstrations never change it; nothing to compare with")
    said = f"right at {100 * agree:.0f} % of steps, closing and opening counted alike"
    if agree < 0.3:
        text = f"{whose} are reversed ({said}); CALVIN's 1 opens, -1 closes"
        return Finding(answers.part, about, "wrong", text)
    if not binary:
        text = f"{whose} are between -1 and 1, such as {values[len(values) // 2]:g}; give exactly -1 or 1 ({said})"
        return Finding(answers.part, about, "wrong", text)
    if len(values) == 1:
        what = "open" if values[0] > 0 else "closed"
        return Finding(
            answers.part, about, "wrong", f"{whose} keep it {what} at every step; is it thresholded rightly?"
        )
    if agree < 0.6:
        return Finding(answers.part, about, "unknown", f"{whose} say little of it: {said}")
    return Finding(answers.part, about, "good", f"{whose} are CALVIN's: {said}")


def _agreement(given: np.ndarray, wanted: np.ndarray) -> float | None:
    """Mean of the shares of opened and of closed steps that agree; None: there is only one kind."""
    if not _RARE < wanted.mean() < 1 - _RARE:
        return None
    return float((given[wanted].mean() + (~given[~wanted]).mean()) / 2)
