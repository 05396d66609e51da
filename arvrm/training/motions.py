"""The motions of a policy by analogy: of robot demonstrations, and of clips of hands carried over by m."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from arvrm.model.analogy_net import AnalogyNet
from arvrm.model.encoders import TextEncoder
from arvrm.model.places import PIXELS, predict_hands
from arvrm.model.words import sentence_words
from arvrm.moments import Moments
from arvrm.motions import Carrier, HandMap, Motion, Track, path_of, predicted_gaps
from arvrm.motions.deeds import SAME, alike, deed_of_path
from arvrm.motions.hand_map import finger_line
from arvrm.training.agreement import MomentFinder
from arvrm.training.log import progress_bar
from arvrm.windows import HAND_KEYPOINTS, EpisodeTable, choose_hand

_LIKE, _USUAL = 0.8, 0.1
"""Words so alike speak of the same; what so small a share of those does is not believed."""
_OPENED_PX = 3.0
"""Tips further apart than that are not pinched."""


@dataclass(frozen=True)
class Found:
    """An episode of a table, and when it touches and is done."""

    row: int
    moments: Moments


def touching(table: EpisodeTable, episodes: Sequence[int] | np.ndarray, finder: MomentFinder) -> list[Found]:
    """Return the episodes that touch something."""
    known = finder.moments(table, episodes)
    return [Found(int(row), one) for row, one in zip(episodes, known, strict=True) if one.touch_confidence > 0]


def robot_motions(
    net: AnalogyNet,
    table: EpisodeTable,
    episodes: Sequence[int] | np.ndarray,
    progress: bool,
    finder: MomentFinder,
) -> dict[int, Motion]:
    """Make the motions, by row, of those of a table's robot episodes that touch something."""
    eyes, made = _Eyes(net), {}
    found = touching(table, episodes, finder)
    with progress_bar("motions", len(found), progress) as bar:
        for one in found:
            store, name = table.stores[table.store[one.row]], str(table.ids[one.row])
            arrays = store.arrays(name)
            path = path_of(net.robot, arrays, one.moments.touch, one.moments.end)
            start = np.asarray(arrays["robot_obs"][0, :7], np.float64)
            sentence = store.header(name).instruction
            image = store.frames(name, net.robot.cameras[0].name, [0])
            made[one.row] = Motion(
                name, "robot", sentence, path, start, **eyes.expects(image, sentence), touched=one.moments.touch
            )
            bar.update(1)
    return made


def clip_motions(
    net: AnalogyNet,
    fitted: HandMap,
    robots: Sequence[Motion],
    table: EpisodeTable,
    at_most: int,
    progress: bool,
    finder: MomentFinder,
) -> list[Motion]:
    """Carry the motions of a table's clips over to the robot: one of each sentence, then further ones.

    Args:
        robots: the motions of its demonstrations.
        at_most: so many motions.
    """
    eyes, watched = _Eyes(net), []
    found = _some_touching(table, _one_of_each(table), at_most, finder)
    with progress_bar("motions of hands", len(found), progress) as bar:
        for one in found:
            store, name = table.stores[table.store[one.row]], str(table.ids[one.row])
            header, arrays = store.header(name), store.arrays(name, ("keypoints", "visible"))
            camera = next(iter(header.cameras))
            height, width = header.cameras[camera]
            points, _ = choose_hand(arrays["keypoints"], arrays["visible"], HAND_KEYPOINTS)
            # As many rows a second as the robot has steps.
            rate = header.fps / net.robot.control_hz
            rows = np.clip(np.round(np.arange(0, len(points) / rate) * rate).astype(int), 0, len(points) - 1)
            pixels = np.asarray(points[rows, :, :2], np.float64) * (PIXELS / np.array([width, height]))
            touch, end = (int(np.abs(rows - row).argmin()) for row in (one.moments.touch, one.moments.end))
            expects = eyes.expects(store.frames(name, camera, [0]), header.instruction)
            track = Track(pixels, touch, end, expects["words"])
            watched.append((name, header.instruction, track, expects, one.moments.touch))
            bar.update(1)
    if not watched:
        return []
    share = np.median(np.concatenate([opening_shares(track, expects["motion"]) for _, _, track, expects, _ in watched]))
    carrier, start = Carrier(fitted, robots, float(share)), np.median([one.start for one in robots], 0)
    made = []
    for name, sentence, track, expects, touched in watched:
        path, by = carrier.carried(track)
        made.append(Motion(name, "human", sentence, path, start, **expects, by=by, touched=touched))
    return made


def believed(camera: np.ndarray, motions: Sequence[Motion]) -> list[Motion]:
    """Leave out what hardly anybody else does of whom the like is said: it was misunderstood, its moments perhaps.
    Motions of which nothing like is said of others are believed; and all, where no demonstration would be left.

    Args:
        camera: (3, 4) of m.
    """
    deeds, words = np.array([deed_of_path(camera, one.path) for one in motions]), np.array([m.words for m in motions])
    like = words @ words.T >= _LIKE
    np.fill_diagonal(like, False)
    same = alike(deeds[:, None], deeds[None]) >= SAME
    usual = np.flatnonzero((like & same).sum(1) >= _USUAL * like.sum(1)).tolist()
    kept = [motions[row] for row in usual]
    return kept if any(one.embodiment == "robot" for one in kept) else list(motions)


def opening_shares(track: Track, motion: np.ndarray) -> np.ndarray:
    """(n,) how much wider a hand opens than is predicted (`PredictedHands.motion`) for its own image, where it is open;
    1 where that tells nothing: what is predicted is a mean over all that may be."""
    gaps = np.linalg.norm(finger_line(track.keypoints), axis=-1)
    steps, predicted = predicted_gaps(motion)
    rows = np.clip(track.touch + np.array(steps), 0, len(gaps) - 1)
    opened = (predicted > _OPENED_PX) & (gaps[rows] > _OPENED_PX)
    return gaps[rows][opened] / predicted[opened] if opened.any() else np.ones(1)


class _Eyes:
    """What stage 1 expects in an image after a sentence."""

    def __init__(self, net: AnalogyNet) -> None:
        self.net, self.text = net, TextEncoder(net.config.vlm.text)
        self.words: dict[str, np.ndarray] = {}

    def expects(self, image: np.ndarray, sentence: str) -> dict[str, Any]:
        """Return `Motion`'s hand, confidence, motion, turn and words of an image (1, H, W, 3) and a sentence."""
        hands = predict_hands(self.net.vlm, self.text, image, [sentence])
        if sentence not in self.words:
            self.words[sentence] = sentence_words(self.net.vlm, self.text, [sentence], self.net.config.plain)[0]
        return {
            "hand": hands.keypoints[0],
            "confidence": hands.confidence[0],
            "motion": hands.motion[0],
            "turn": hands.turn[0],
            "words": self.words[sentence],
        }


def _some_touching(table: EpisodeTable, rows: Sequence[int], at_most: int, finder: MomentFinder) -> list[Found]:
    """The first of some episodes that touch something; no more are looked at than that takes."""
    found: list[Found] = []
    begin = 0
    while len(found) < at_most and begin < len(rows):
        end = begin + at_most - len(found)
        found += touching(table, rows[begin:end], finder)
        begin = end
    return found


def _one_of_each(table: EpisodeTable) -> list[int]:
    """The rows of a table, in an order in which each sentence comes once before one comes again."""
    times = np.zeros(len(table.sentences), np.int64)
    ranked = []
    for row, sentence in enumerate(table.sentence.tolist()):
        times[sentence] += 1
        ranked.append((int(times[sentence]), row))
    return [row for _, row in sorted(ranked)]
