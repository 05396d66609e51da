"""What a policy by analogy sees: where a hand would act here, and which motions might be carried over to there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from arvrm.geometry import half_turn
from arvrm.interface import PlanRequest
from arvrm.model.analogy_net import AnalogyNet
from arvrm.model.encoders import TextEncoder
from arvrm.model.places import PredictedHands, predict_hands
from arvrm.model.words import sentence_words
from arvrm.motions.camera import seen_change
from arvrm.motions.hand_map import SURE_TURN, HandMap
from arvrm.motions.library import Motion
from arvrm.motions.path import Goal, takes, yaws_of
from arvrm.motions.retrieve import TERMS, RetrieveConfig, Retriever

UNSURE = 0.3
"""A place seen with less confidence is no place to go to at once."""
_REACH_M = 0.06
"""How far beyond all motions of the library a place may lie."""
_RANK = 0.7
"""How much likelier (as a logarithm) a place must be for the next motion there to come before the best elsewhere."""
_OWN_M = 0.08
"""The prediction for a motion's own image is believed wrong where it is off by more, times its confidence."""
_ALIKE, _SEVERAL, _AGREE_M = 0.75, 3, 0.045
"""Motions with words so alike, so many, that agree so well, tell together how far off the prediction is."""
_SAID_ALIKE = 0.6
"""Of demonstrations that take something up, those of which the like is said are one way to ask for something."""
_SURE_END, _OTHER_WAY_M = 0.5, 0.05
"""Where the end is seen so confidently, and so far from where the motion as it was would end, it leads there."""


@dataclass(frozen=True)
class Choice:
    """A motion that may be done here, and where.

    Attributes:
        terms: the similarities by which it was chosen, for a person.
        hypothesis: 0: where the hand is most likely; 1, 2, ...: where else it may be.
    """

    motion: Motion
    goal: Goal
    terms: dict[str, float] = field(default_factory=dict)
    hypothesis: int = 0

    @property
    def key(self) -> tuple[str, int]:
        return self.motion.id, self.hypothesis


@dataclass(frozen=True)
class Sight:
    """What a look at the scene gives.

    Attributes:
        choices: best first.
        notes: what there is to be said about it, such as that the place is not seen with confidence.
        sure: whether the place is, and within reach.
        hands: what was predicted, for a person.
    """

    choices: list[Choice]
    notes: tuple[str, ...] = ()
    sure: bool = True
    hands: PredictedHands | None = None


class PlaceSeer:
    """Predicts the hand for a request's static image and words, and ranks a library's motions for it.

    Attributes:
        motions: the library.
        lookout: (6,) a pose (m, rad) in which the arm hides little: above where motions begin.

    Every request is looked at by itself, so that what is seen does not depend, to the bit, on who else is waiting.
    """

    def __init__(
        self,
        net: AnalogyNet,
        motions: Sequence[Motion],
        camera: str = "rgb_static",
        text: TextEncoder | None = None,
    ) -> None:
        self.net, self.camera = net, camera
        self.map = HandMap(**net.fitted())
        self.text = text or TextEncoder(net.config.vlm.text)
        self.retriever = Retriever(motions, RetrieveConfig(**net.config.retrieve), self.map.camera)
        self.motions = self.retriever.motions
        self._words: dict[str, np.ndarray] = {}
        tcp = np.array([one.path.tcp_touch for one in self.motions])
        self._heights = tcp[:, 2]
        own = np.array([one.hand[0] for one in self.motions])
        self._offset = tcp[:, :3] - self.map.place(own, self._heights)
        sure = np.array([one.confidence[0] for one in self.motions])
        for some in (self.retriever.of_hands, ~self.retriever.of_hands):
            self._offset[some] = common_offsets(self.retriever.words[some], self._offset[some], sure[some])
        self._end_heights = np.array([one.path.tcp_end[2] for one in self.motions])
        self._goes = np.array([one.path.tcp_end[:3] - one.path.tcp_touch[:3] for one in self.motions])
        self._own_goes = self._seen_to_go(np.array([one.hand for one in self.motions]))
        self._end_told = np.array([one.confidence.min() >= _SURE_END for one in self.motions])
        # Where a hand lies otherwise than a gripper would (pushing, say), only hands are compared with each other.
        self._yaw, turn = tcp[:, 5], np.array([one.turn for one in self.motions])
        told = self.map.angle(turn, tcp[:, :3])
        alike = np.abs(half_turn(told - self._yaw)) < 2 * self.map.deviation
        self._angle = np.where(alike, self._yaw, told)
        self._sure_turn = alike | (np.linalg.norm(turn, axis=1) > SURE_TURN)
        self._middle_yaw = float(np.arctan2(np.sin(self._yaw).sum(), np.cos(self._yaw).sum()))
        shown = [one.path for one in self.motions if one.embodiment == "robot"]
        self._yaws = yaws_of(shown or [one.path for one in self.motions], self._middle_yaw)
        everything = np.concatenate([one.path.poses[:, :3] for one in self.motions])
        starts = np.array([one.start[:6] for one in self.motions])
        lookout = np.concatenate([np.median(starts[:, :3], 0), starts[0, 3:]])
        lookout[2] = starts[:, 2].max()
        self.lookout: np.ndarray | None = lookout
        self._taken = self._takes()
        self._low, self._high = everything.min(0) - _REACH_M, everything.max(0) + _REACH_M

    def _takes(self) -> list[str]:
        """Sentences of demonstrations that take something up, of those that say the like one."""
        found: list[Motion] = []
        for one in self.motions:
            if one.embodiment == "robot" and takes(one.path):
                if all(one.words @ other.words < _SAID_ALIKE for other in found):
                    found.append(one)
        return [one.sentence for one in found]

    def to_take(self, request: PlanRequest) -> Sight | None:
        """Look for something to take up: as `look`, after the sentence of the demonstration that takes something whose
        place is seen most surely; None: no demonstration does."""
        if not self._taken:
            return None
        image = request.history[-1].images[self.camera]
        hands = predict_hands(self.net.vlm, self.text, np.stack([image] * len(self._taken)), self._taken)
        return self.sight(image, self._taken[int(hands.confidence[:, 0].argmax())], _robot(request))

    def look(self, requests: list[PlanRequest]) -> list[Sight]:
        """Return what each request's present image shows."""
        return [self.sight(one.history[-1].images[self.camera], one.instruction, _robot(one)) for one in requests]

    def sight(self, image: np.ndarray, sentence: str, robot: np.ndarray) -> Sight:
        """Look at one image.

        Args:
            image: (H, W, 3) uint8 of the static camera.
            robot: (7,) the TCP's pose (m, rad) and the gripper's width (m).
        """
        hands = predict_hands(self.net.vlm, self.text, image[None], [sentence])
        if sentence not in self._words:
            self._words[sentence] = sentence_words(self.net.vlm, self.text, [sentence], self.net.config.plain)[0]
        words = self._words[sentence]
        trust = float(hands.confidence[0, 0])
        shares = [trust, *((1 - trust) / (2 + number) for number in range(hands.others.shape[2]))]
        notes = [] if trust >= UNSURE else ["place seen with low confidence"]
        within: list[tuple[float, Choice]] = []
        beyond: list[tuple[float, Choice]] = []
        for number, hand in enumerate([hands.keypoints[0], *hands.others[0].swapaxes(0, 1)]):
            touches, turns = self._goals(hand, hands.turn[0])
            ends = self._ends(hand) if number == 0 and float(hands.confidence[0, 1]) >= _SURE_END else None
            reached = np.clip(touches, self._low, self._high)
            inside = (reached == touches).all(1)
            terms = self.retriever.terms(words, hands.motion[0], hand, robot, reached, turns)
            ranked = self.retriever.ranked(terms)
            if number == 0 and (shown := self.retriever.shown(terms)) != "robot":
                notes.append("no motion for these words" if shown is None else "no demonstration: as a hand does it")
            if number == 0 and not inside[ranked[0]]:
                notes.append("place out of reach")
            ways = self._a_pixel(reached[ranked])
            quarters = np.where(self._yaw + turns > self._middle_yaw, -np.pi / 2, np.pi / 2)
            for rank, row in enumerate(ranked):
                named: dict[str, float] = dict(zip(TERMS, map(float, terms[row]), strict=True))
                named["score"] = float(terms[row] @ self.retriever.weights)
                end = None if ends is None or not ends[row].any() else reached[row] + ends[row]
                goal = Goal(
                    reached[row], float(turns[row]), end, shares[number], ways[rank], float(quarters[row]), self._yaws
                )
                # A place less likely comes after all motions at a likelier one, as far as it is so much less likely.
                order = np.log(max(shares[number], 1e-6)) - _RANK * rank
                (within if inside[row] else beyond).append((order, Choice(self.motions[row], goal, named, number)))
        # What is out of reach is tried at the nearest place within, when nothing else is left.
        found = [choice for some in (within, beyond) for _, choice in sorted(some, key=lambda pair: -pair[0])]
        return Sight(found, tuple(notes), trust >= UNSURE and bool(within), hands)

    def vision(self, hands: PredictedHands) -> np.ndarray:
        """(n,) how alike (0 to 2) what is seen in one image is to what each motion's own showed, words apart."""
        start = self.motions[0].start
        nothing = np.zeros((len(self.motions), 3)), np.zeros(len(self.motions))
        words = self.motions[0].words
        terms = self.retriever.terms(words, hands.motion[0], hands.keypoints[0], start, *nothing)
        return terms[:, TERMS.index("motion")] + terms[:, TERMS.index("place")]

    def _goals(self, hand: np.ndarray, turn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each motion would touch (n, 3), and how it would be turned (n,)."""
        here = np.broadcast_to(hand[0], (len(self.motions), *hand[0].shape))
        touches = self.map.place(here, self._heights) + self._offset
        if np.linalg.norm(turn) < SURE_TURN:
            return touches, np.zeros(len(touches))
        turns = half_turn(self.map.angle(np.broadcast_to(turn, (len(touches), 2)), touches) - self._angle)
        # What may be no more than error is none; and no wrist turns further than from its middle by a quarter.
        turns = np.sign(turns) * np.maximum(np.abs(turns) - self.map.deviation, 0)
        turns = self._middle_yaw + half_turn(self._yaw + turns - self._middle_yaw) - self._yaw
        return touches, np.where(self._sure_turn, turns, 0.0)

    def _a_pixel(self, places: np.ndarray) -> np.ndarray:
        """(n, 2, 3): ways on the table, m, that are a pixel at places (n, 3); the longest and the shortest ones."""
        flat = np.linalg.svd(np.linalg.inv(seen_change(self.map.camera, places)[..., :2]))
        ways = (flat.U * flat.S[:, None]).swapaxes(1, 2)
        return np.concatenate([ways, np.zeros((*ways.shape[:2], 1))], -1)

    def _seen_to_go(self, hands: np.ndarray) -> np.ndarray:
        """From touch to end (n, 3, m), at each motion's own heights, as hands (n, 2, 21, 2) say."""
        return self.map.place(hands[:, 1], self._end_heights) - self.map.place(hands[:, 0], self._heights)

    def _ends(self, hand: np.ndarray) -> np.ndarray:
        """From touch to end (n, 3) of the motions that go another way here than they went; zeros: as they went."""
        here = self._seen_to_go(np.broadcast_to(hand, (len(self.motions), *hand.shape)))
        other = here - self._own_goes
        changed = self._end_told & (np.linalg.norm(other[:, :2], axis=1) > _OTHER_WAY_M)
        return np.where(changed[:, None], self._goes + other, 0.0)


def common_offsets(words: np.ndarray, offsets: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """How far (n, 3, m) each motion acts from where the hand is predicted for its own image.

    Hands and robots may have been given another moment for the touch. Where motions of like words agree on how far that
    is, it is their median; else a motion's own, unless that is so far that the prediction must be wrong.

    Args:
        words: (n, E) of unit length.
        offsets: (n, 3) of each motion by itself, m.
        confidence: (n,) of what is predicted for their own images.
    """
    found = np.zeros_like(offsets)
    for row, own in enumerate(offsets):
        alike = offsets[words @ words[row] >= _ALIKE]
        middle = np.median(alike, 0)
        spread = float(np.median(np.linalg.norm(alike - middle, axis=1)))
        if len(alike) >= _SEVERAL and spread <= _AGREE_M:
            found[row] = middle
        elif np.linalg.norm(own) <= _OWN_M * confidence[row]:
            found[row] = own
    return found


def _robot(request: PlanRequest) -> np.ndarray:
    return np.asarray(request.history[-1].state["robot_obs"], np.float64)[:7]
