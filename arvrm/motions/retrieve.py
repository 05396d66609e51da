"""Which motion to carry over: how like what is asked and seen here each of them is, term by term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from arvrm.config import bounded, check_bounds
from arvrm.hands.skeleton import TIPS
from arvrm.motions.library import Motion


@dataclass(frozen=True)
class RetrieveConfig:
    """How motions are compared. Each term is a similarity from 0 to 1; these are their weights.

    Attributes:
        words: of the sentence.
        motion: of what the predicted hand does around the touch.
        place: of where in the image it touches and ends.
        start: of the way from the robot's hand to the touch.
        held: of the gripper's opening at the start.
        turn: of how far the gripper must be turned from how the motion has it.
        margin: motions whose words are less like by so much than the likest ones are of another task.
        known: where no words are so much alike (-1 to 1), the task is taken for one that no motion shows: then all
            motions are candidates, words count a third and what the hand does three times as much.
    """

    words: float = bounded(3.0, least=0, most=100)
    motion: float = bounded(1.0, least=0, most=100)
    place: float = bounded(0.5, least=0, most=100)
    start: float = bounded(1.0, least=0, most=100)
    held: float = bounded(0.5, least=0, most=100)
    turn: float = bounded(0.3, least=0, most=100)
    margin: float = bounded(0.05, least=0, most=2)
    known: float = bounded(0.65, least=-1, most=1)

    __post_init__ = check_bounds


TERMS: tuple[str, ...] = ("words", "motion", "place", "start", "held", "turn")
_MOTION_PX, _PLACE_PX, _START_M, _HELD_M, _TURN_RAD = 4.0, 12.0, 0.15, 0.02, 0.7
"""Differences at which a similarity has fallen to 1 / e."""
_UNSHOWN = np.array([1 / 3, 3, 1, 1, 1, 1])
"""By what the weights are multiplied where no motion shows the task."""


class Retriever:
    """Compares with all motions of a library at once.

    Raises:
        ValueError: it holds none.
    """

    def __init__(self, motions: Sequence[Motion], config: RetrieveConfig) -> None:
        if not motions:
            raise ValueError("a library without motions")
        self.motions, self.config = list(motions), config
        self.words = np.array([one.words for one in motions])
        self.motion = np.array([one.motion for one in motions])
        self.acting = np.array([acting_points(one.hand) for one in motions])
        self.way = np.array([one.start[:3] - one.path.tcp_touch[:3] for one in motions])
        self.width = np.array([one.start[6] for one in motions])
        self.weights = np.array([getattr(config, name) for name in TERMS])

    def terms(
        self,
        words: np.ndarray,
        motion: np.ndarray,
        hand: np.ndarray,
        robot: np.ndarray,
        touches: np.ndarray,
        turns: np.ndarray,
    ) -> np.ndarray:
        """Return similarities (n, len(TERMS)) of n motions.

        Args:
            words: (E,) of the instruction, of unit length.
            motion, hand: (D,) and (2, 21, 2) predicted here.
            robot: (7,) the TCP's pose and the gripper's width now.
            touches: (n, 3) where each motion would touch; turns: (n,) rad it would be turned by.
        """
        change = np.abs(self.motion - motion).mean(1) if motion.size else np.zeros(len(self.motions))
        apart = np.linalg.norm(self.acting - acting_points(hand), axis=-1).mean(1)
        way = np.linalg.norm(robot[:3] - touches - self.way, axis=1)
        distances = (
            (change, _MOTION_PX),
            (apart, _PLACE_PX),
            (way, _START_M),
            (np.abs(self.width - robot[6]), _HELD_M),
            (np.abs(turns), _TURN_RAD),
        )
        return np.stack([self.words @ words, *(np.exp(-distance / unit) for distance, unit in distances)], 1)

    def shown(self, terms: np.ndarray) -> bool:
        """Whether some motion's words are so like these that its task must be theirs."""
        return float(terms[:, 0].max()) >= self.config.known

    def ranked(self, terms: np.ndarray) -> list[int]:
        """Return numbers of the motions that the words allow, best first."""
        if not self.shown(terms):
            return [int(row) for row in np.argsort(-(terms @ (self.weights * _UNSHOWN)), kind="stable")]
        allowed = np.flatnonzero(terms[:, 0] >= terms[:, 0].max() - self.config.margin)
        score = terms @ self.weights
        return [int(row) for row in allowed[np.argsort(-score[allowed], kind="stable")]]


def acting_points(hand: np.ndarray) -> np.ndarray:
    """(..., 2): the middle of the tips of thumb and index finger of hands (..., 21, 2)."""
    return np.asarray(hand, np.float64)[..., list(TIPS[:2]), :].mean(-2)
