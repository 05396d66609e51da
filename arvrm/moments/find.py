"""Finds the moments of an episode of a store."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from arvrm.episodes import EpisodeHeader, EpisodeStore
from arvrm.moments.network import MomentScorer, load_scorer
from arvrm.moments.signals import Signals, hand_signals, robot_signals

NEAR_PX, NEAR_SHARE = 3.0, 0.15
"""A hand so near (pixels of 96), or a robot so near (components' unit), counts as the same place."""


@dataclass(frozen=True)
class Moments:
    """What was found in an episode.

    Attributes:
        touch: the step of the touch or release: the moment that the place of the instruction is about. The hand or
            gripper begins to act on the thing; where something held is to be put somewhere, it lets it go.
        end: the step at which what was to be done is done.
        touch_confidence, end_confidence: 0 to 1: how likely the hand at the true moment is where it is at the found
            one (within NEAR_PX, a robot within NEAR_SHARE).
    """

    touch: int
    end: int
    touch_confidence: float
    end_confidence: float


def episode_signals(store: EpisodeStore, header: EpisodeHeader) -> Signals:
    """Read an episode and make its signals. Nothing is read but what a real one has.

    Raises:
        UserError: the store's robot is not known, or a record is damaged.
    """
    cameras = list(header.cameras)
    everything = range(header.frames)
    if header.embodiment == "human":
        hand = store.arrays(header.id, ("keypoints", "visible"))
        images = store.frames(header.id, cameras[0], everything)
        size = header.cameras[cameras[0]]
        return hand_signals(hand["keypoints"], hand["visible"], size, header.fps, images, header.image_steps)
    robot = store.robot
    assert robot is not None
    names = [name for name in (*robot.observed, "actions") if name in header.arrays]
    frames = [store.frames(header.id, camera, everything) for camera in cameras[:2]]
    return robot_signals(robot, store.arrays(header.id, names), header.fps, frames, header.image_steps)


def scorer_input(signals: Signals) -> np.ndarray:
    """(T, C) float32: what the scorer reads."""
    return np.clip(np.concatenate([signals.motion, signals.images], 1), -3, 3)


def found_in(signals: Signals, instruction: str, scorer: MomentScorer, embodiment: str) -> Moments:
    """The moments of signals by a scorer."""
    if not signals.seen.any() or len(signals.rows) < 2:
        return Moments(0, int(round(float(signals.rows[-1]))), 0.0, 0.0)
    values = torch.from_numpy(scorer_input(signals))[None]
    with torch.inference_mode():
        scores, none = scorer(values, torch.ones(values.shape[:2], dtype=torch.bool), scorer.bag(instruction)[None])
    there = float(torch.sigmoid(-none[0]))
    near = NEAR_PX if embodiment == "human" else NEAR_SHARE
    place = signals.place if embodiment == "human" else signals.place[:, :3]
    shares = torch.softmax(scores[0].double(), 1).numpy()
    same = np.linalg.norm(place[:, None] - place[None], axis=-1) <= near
    # The step of which most of the probability lies near, in place and in time: one of a group, not a lone peak.
    at = np.arange(len(place))
    same &= np.abs(at[:, None] - at[None]) <= 12
    support = shares @ same
    touch = _middle(shares[0], support[0])
    later = np.where(at >= touch, support[1], -1.0)
    end = _middle(shares[1], later)
    rows = signals.rows
    seen = float(signals.seen[max(0, touch - 5) : touch + 6].mean())
    last = rows[-1]
    found = [int(round(min(float(rows[step]), float(last)))) for step in (touch, end)]
    confidences = [float(np.clip(support[k][step] * there * seen, 0, 1)) for k, step in enumerate((touch, end))]
    return Moments(*found, *(round(value, 4) for value in confidences))


def _middle(shares: np.ndarray, support: np.ndarray) -> int:
    """The likeliest of the steps that are about as well supported as the best."""
    return int(np.where(support >= 0.95 * support.max(), shares, -1.0).argmax())


def episode_moments(store: EpisodeStore, id: str, scorer: MomentScorer | None = None) -> Moments:
    """Find the moments of an episode.

    Raises:
        UserError: no such episode, an unknown robot, or a robot whose signals the scorer does not know.
    """
    header = store.header(id)
    scorer = scorer or load_scorer(header.embodiment)
    return found_in(episode_signals(store, header), header.instruction, scorer, header.embodiment)
