"""How good a clip's hands are, and which clips are too poor to teach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from arvrm.hands.detect import SIDES
from arvrm.hands.skeleton import hand_length
from arvrm.hands.tracking import HandTracks

_BOTH = 0.5
"""The hand that moves less acts too if it has this share of the other's motion."""


@dataclass(frozen=True)
class ClipQuality:
    """Measures of one clip; lengths are in hand lengths (`skeleton.hand_length`), so that distance does not matter.

    Attributes:
        frames: N.
        detection_rate: share of frames in which a hand was detected (interpolated ones do not count).
        interpolated: share of frames with an interpolated hand.
        jitter: standard deviation of the detector's noise per coordinate before the filter: how far a point is from the
            middle of its neighbours in time, median over frames; 0 where too few frames follow each other.
        truncation: share of the hands' points that lie beyond the image's border.
        motion_energy: squared speed of the points, mean over points and frames, of the hand that acts most;
            (hand lengths/s)^2.
        extra_hands: share of frames in which more than two hands were seen.
        acting_hand: "left", "right", "both" or "none": the hand with the most motion.
        repaired: share of observations whose side was changed.
    """

    frames: int
    detection_rate: float
    interpolated: float
    jitter: float
    truncation: float
    motion_energy: float
    extra_hands: float
    acting_hand: str
    repaired: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class QualityLimits:
    """A clip beyond a limit is dropped.

    Attributes:
        min_detection_rate: see `ClipQuality`, as for the rest. Below a half, most of the motion was not seen.
        max_jitter: a finger is about a seventh of a hand length wide: with more noise one touches its neighbour.
        max_truncation: half a hand tells little of what it does.
        min_motion_energy: 0 keeps clips in which nothing moves.
        max_extra_hands: with other people's hands in view, whose are followed is chance.
        min_frames: shortest clip.
    """

    min_detection_rate: float = 0.5
    max_jitter: float = 0.15
    max_truncation: float = 0.5
    min_motion_energy: float = 0.0
    max_extra_hands: float = 0.5
    min_frames: int = 2

    def reasons(self, quality: ClipQuality) -> list[str]:
        """Return why a clip of this quality is dropped, worst first in the limits' order; none: it is kept."""
        rules = (
            ("frames", quality.frames, self.min_frames, True),
            ("detection rate", quality.detection_rate, self.min_detection_rate, True),
            ("jitter", quality.jitter, self.max_jitter, False),
            ("truncation", quality.truncation, self.max_truncation, False),
            ("motion energy", quality.motion_energy, self.min_motion_energy, True),
            ("extra hands", quality.extra_hands, self.max_extra_hands, False),
        )
        if quality.detection_rate == 0 and quality.frames >= self.min_frames and self.min_detection_rate > 0:
            return ["no hand in any frame"]
        found = []
        for name, value, limit, least in rules:
            if value < limit if least else value > limit:
                found.append(f"{name} {value:.3g} {'below' if least else 'above'} {limit:.3g}")
        return found


def clip_quality(tracks: HandTracks) -> ClipQuality:
    """Measure one clip."""
    count = len(tracks.times)
    if not count:
        return ClipQuality(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, "none", 0.0)
    here = tracks.detected | tracks.interpolated
    lengths = [_length(tracks, side) for side in range(2)]
    points = tracks.keypoints[here][..., :2]
    inside = ((points >= 0) & (points < (tracks.width, tracks.height))).all(axis=-1)
    noises = [noise for side in range(2) for noise in _noise(tracks, side, lengths[side])]
    energies = [_energy(tracks, side, lengths[side]) for side in range(2)]
    observed = int(tracks.detected.sum())
    return ClipQuality(
        frames=count,
        detection_rate=float(tracks.detected.any(axis=1).mean()),
        interpolated=float(tracks.interpolated.any(axis=1).mean()),
        jitter=float(np.median(noises)) if noises else 0.0,
        truncation=float(1 - inside.mean()) if len(points) else 0.0,
        motion_energy=max(energies),
        extra_hands=float((tracks.seen > 2).mean()),
        acting_hand=_acting(energies, here),
        repaired=tracks.repaired / observed if observed else 0.0,
    )


def _length(tracks: HandTracks, side: int) -> float:
    rows = tracks.detected[:, side]
    return float(np.median(hand_length(tracks.keypoints[rows, side]))) if rows.any() else 1.0


def _noise(tracks: HandTracks, side: int, length: float) -> list[float]:
    """Noise per frame: each raw point against the line between the frames before and after."""
    detected = tracks.detected[:, side]
    middle = np.flatnonzero(detected[:-2] & detected[1:-1] & detected[2:]) + 1
    if not len(middle):
        return []
    raw, times = tracks.raw[:, side, :, :2].astype(np.float64), tracks.times
    share = ((times[middle] - times[middle - 1]) / (times[middle + 1] - times[middle - 1]))[:, None, None]
    off = raw[middle] - (1 - share) * raw[middle - 1] - share * raw[middle + 1]
    # Independent noise of variance v leaves v (1 + (1 - s)^2 + s^2) here.
    off = off / np.sqrt(1 + (1 - share) ** 2 + share**2)
    return list(np.sqrt((off**2).mean(axis=(1, 2))) / length)


def _energy(tracks: HandTracks, side: int, length: float) -> float:
    """Squared speed, mean over the clip's frames; frames without the hand count as still."""
    here = (tracks.detected | tracks.interpolated)[:, side]
    both = here[1:] & here[:-1]
    if not both.any():
        return 0.0
    moved = np.diff(tracks.keypoints[:, side, :, :2].astype(np.float64), axis=0)[both]
    speed = np.linalg.norm(moved, axis=-1) / np.diff(tracks.times)[both][:, None] / length
    return float((speed**2).mean(axis=1).sum() / len(both))


def _acting(energies: list[float], here: np.ndarray) -> str:
    present = here.any(axis=0)
    if not present.any():
        return "none"
    if present.sum() == 1:
        return SIDES[int(np.argmax(present))]
    if min(energies) >= _BOTH * max(energies):
        return "both"
    return SIDES[int(np.argmax(energies))]


def rank(qualities: Sequence[ClipQuality], limits: QualityLimits = QualityLimits()) -> list[int]:
    """Return the clips' numbers from the worst to the best.

    A clip's worth is its detection rate less its jitter and truncation, each as a share of what the limits allow.
    """

    def worth(quality: ClipQuality) -> float:
        jitter = quality.jitter / limits.max_jitter if limits.max_jitter > 0 else quality.jitter
        return quality.detection_rate - 0.5 * jitter - 0.5 * quality.truncation - 0.5 * quality.extra_hands

    return sorted(range(len(qualities)), key=lambda clip: (worth(qualities[clip]), clip))
