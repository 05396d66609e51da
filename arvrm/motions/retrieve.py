"""Which motion to carry over: how like what is asked and seen here each of them is, term by term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from arvrm.config import bounded, check_bounds
from arvrm.hands.skeleton import TIPS
from arvrm.motions.deeds import SAME, alike, deed_of_path
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
        does: of what the motion does, compared with what hands in clips do of which the like is said.
        margin: motions whose words are less like by so much than the likest ones are of another task.
        known: where no words are so much alike (-1 to 1), the task is taken for one that no motion shows: then all
            motions are candidates, words count a third and what the hand does three times as much.

    A clip's motion is carried over where what is said of it is more alike by `margin` than what is said of any
    demonstration; where clips tell what is done (`Retriever.told`), a demonstration that does something else counts
    only if nothing more alike is said, and one that does the same also if less is.
    """

    words: float = bounded(3.0, least=0, most=100)
    motion: float = bounded(1.0, least=0, most=100)
    place: float = bounded(0.5, least=0, most=100)
    start: float = bounded(1.0, least=0, most=100)
    held: float = bounded(0.5, least=0, most=100)
    turn: float = bounded(0.3, least=0, most=100)
    does: float = bounded(3.0, least=0, most=100)
    margin: float = bounded(0.05, least=0, most=2)
    known: float = bounded(0.65, least=-1, most=1)

    __post_init__ = check_bounds


TERMS: tuple[str, ...] = ("words", "motion", "place", "start", "held", "turn", "does")
_WORDS, _DOES = TERMS.index("words"), TERMS.index("does")
_MOTION_PX, _PLACE_PX, _START_M, _HELD_M, _TURN_RAD = 4.0, 12.0, 0.15, 0.02, 0.7
"""Differences at which a similarity has fallen to 1 / e."""
_UNSHOWN = np.array([1 / 3, 3, 1, 1, 1, 1, 1])
"""By what the weights are multiplied where no motion shows the task."""
_KERNEL, _AGREE = 0.03, 0.6
"""A clip whose words are less alike by so much than the likest tells a deed 1 / e as much; what so large a share of
them does is believed."""
_LESS_ALIKE = 0.15
"""Demonstrations of which that much less alike is said than of clips still show the task, if they do what these do."""
_FURTHER = 8
"""Motions at most that follow those that the words allow."""


class Retriever:
    """Compares with all motions of a library at once.

    Args:
        camera: (3, 4) of m, through which deeds are seen.

    Raises:
        ValueError: it holds none.
    """

    def __init__(self, motions: Sequence[Motion], config: RetrieveConfig, camera: np.ndarray) -> None:
        if not motions:
            raise ValueError("a library without motions")
        self.motions, self.config = list(motions), config
        self.words = np.array([one.words for one in motions])
        self.motion = np.array([one.motion for one in motions])
        self.acting = np.array([acting_points(one.hand) for one in motions])
        self.way = np.array([one.start[:3] - one.path.tcp_touch[:3] for one in motions])
        self.width = np.array([one.start[6] for one in motions])
        self.weights = np.array([getattr(config, name) for name in TERMS])
        self.of_hands = np.array([one.embodiment == "human" for one in motions])
        self.deeds = np.array([deed_of_path(camera, one.path) for one in motions])
        self._by_deed = np.argsort(self.deeds, 0)

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
        told = self.told(words)
        does = np.ones(len(self.motions)) if told is None else alike(self.deeds, told)
        return np.stack([self.words @ words, *(np.exp(-distance / unit) for distance, unit in distances), does], 1)

    def told(self, words: np.ndarray) -> np.ndarray | None:
        """What hands do of which words (E,) are said: the weighted median of deeds; None: no clips that agree."""
        like = np.where(self.of_hands, self.words @ words, -1.0)
        if like.max() < self.config.known:
            return None
        weights = np.exp((like - like.max()) / _KERNEL) * self.of_hands
        middle = (np.cumsum(weights[self._by_deed], 0) >= weights.sum() / 2).argmax(0)
        column = np.arange(self.deeds.shape[1])
        found = self.deeds[self._by_deed[middle, column], column]
        agree = weights[alike(self.deeds, found) >= SAME].sum() / weights.sum()
        return found if agree >= _AGREE else None

    def shown(self, terms: np.ndarray) -> Literal["robot", "human"] | None:
        """Whose motions show the task of some words: demonstrations, or hands of whom clearly more alike is said; None:
        nobody's."""
        words = terms[:, _WORDS]
        if words.max() < self.config.known:
            return None
        like = alike(self.deeds, self.deeds[np.where(self.of_hands, words, -1.0).argmax()]) >= SAME
        # Where clips tell what is done, one that does something else shows it only if nothing more alike is said.
        margin = 0.0 if self._told(terms) else self.config.margin
        least = words.max() - np.where(like | self._told_same(terms), _LESS_ALIKE, margin)
        return "robot" if (~self.of_hands & (words >= least)).any() else "human"

    def ranked(self, terms: np.ndarray) -> list[int]:
        """Return numbers of the motions that the words allow, best first; then of some that do the same, if clips tell
        what that is: where the first ones fail, others come from another side, or grip otherwise."""
        shown = self.shown(terms)
        if shown is None:
            order = np.argsort(-(terms @ (self.weights * _UNSHOWN)), kind="stable")
            return [int(row) for row in order if not self.of_hands[row]]
        words, same = terms[:, _WORDS], self._told_same(terms)
        usable = self.of_hands == (shown == "human")
        if shown == "human" and (usable & same).any():
            usable &= same
        allowed = usable & (words >= words[usable].max() - self.config.margin)
        further = same & ~allowed & (words >= words.max() - _LESS_ALIKE)
        order = np.argsort(-(terms @ self.weights), kind="stable")
        return [*order[allowed[order]].tolist(), *order[further[order]][:_FURTHER].tolist()]

    def _told_same(self, terms: np.ndarray) -> np.ndarray:
        """(n,) whether motions do what clips tell; none does where no clip tells."""
        return (terms[:, _DOES] >= SAME) & self._told(terms)

    def _told(self, terms: np.ndarray) -> bool:
        """Whether clips tell what is done."""
        return bool(terms[:, _DOES].min() < 1)


def acting_points(hand: np.ndarray) -> np.ndarray:
    """(..., 2): the middle of the tips of thumb and index finger of hands (..., 21, 2)."""
    return np.asarray(hand, np.float64)[..., list(TIPS[:2]), :].mean(-2)
