"""From hands seen frame by frame to one left and one right hand over time: identity, sides, gaps, jitter.

Hands are joined across frames by where they are and where they were going, not by the side the detector calls them, so
that a swap of left and right for some frames does no harm; a joined hand's side is what most of its frames say.

The filter is a local line fit in time under a Gaussian window, symmetric about each frame, so that it has no lag; as in
the One-Euro filter (Casiez et al. 2012) its cut-off (-3 dB) rises with the hand's speed: see `TrackConfig`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from arvrm.config import bounded, check_bounds
from arvrm.hands.detect import SIDES, HandObservation
from arvrm.hands.skeleton import hand_length
from arvrm.interface import KEYPOINTS, UserError

POINTS = len(KEYPOINTS)
_SIGMA_HZ = 0.1325
"""A Gaussian window of standard deviation s seconds passes 1/sqrt(2) of the amplitude at _SIGMA_HZ / s."""
_SPEED_CUT_OFF_HZ = 4.0  # of the speed that sets the cut-off


@dataclass(frozen=True)
class TrackConfig:
    """How hands are followed.

    Attributes:
        max_gap_s: gaps up to so long (s) are filled by straight lines and marked; longer ones stay empty.
        reach: how far a hand may lie from where it was expected, in hand lengths, growing by `reach_per_s` a second.
        reach_per_s: hand lengths a second.
        double_reach: two hands in a frame nearer than this (mean over points, hand lengths) are one.
        min_frames: hands seen in fewer frames are taken for mistakes (in clips shorter than that: none is).
        cut_off_hz: of the filter for a hand at rest; 0: no filter.
        cut_off_per_speed: added per hand length a second of speed (Hz).
        max_cut_off_hz: highest cut-off.
        min_presence: points less likely in the image than this are not visible.
    """

    max_gap_s: float = bounded(0.3, least=0, most=3600)
    reach: float = bounded(0.8, above=0)
    reach_per_s: float = bounded(4.0, least=0)
    double_reach: float = bounded(0.2, least=0)
    min_frames: int = bounded(3, least=1)
    cut_off_hz: float = bounded(3.0, least=0)
    cut_off_per_speed: float = bounded(1.5, least=0)
    max_cut_off_hz: float = bounded(10.0, above=0)
    min_presence: float = bounded(0.5, least=0, most=1)

    __post_init__ = check_bounds


@dataclass(frozen=True)
class HandTracks:
    """The left and the right hand of a clip, in that order, on axis 1.

    Attributes:
        times: (N,) float64, seconds.
        keypoints: (N, 2, 21, 3) float32, u, v (pixels) and depth (`coordinates.DEPTH`), filtered; 0 where there
            is no hand.
        raw: (N, 2, 21, 3) float32, the same before the filter, 0 where not detected.
        visible: (N, 2, 21) bool: the hand is there, detected or interpolated, and the point inside the image.
        detected: (N, 2) bool.
        interpolated: (N, 2) bool: the hand was not detected, its points lie on a straight line between the frames
            around the gap.
        score: (N, 2) float32, the detector's, 0 where not detected.
        seen: (N,) int32, how many hands the detector saw.
        height, width: of the images, pixels.
        repaired: observations whose side was changed.
        dropped: observations left out: third hands, doubles and flickers.
    """

    times: np.ndarray
    keypoints: np.ndarray
    raw: np.ndarray
    visible: np.ndarray
    detected: np.ndarray
    interpolated: np.ndarray
    score: np.ndarray
    seen: np.ndarray
    height: int
    width: int
    repaired: int = 0
    dropped: int = 0

    def arrays(self) -> dict[str, np.ndarray]:
        """Return an episode's arrays: keypoints (N, 42, 3) float32 and visible (N, 42) bool, left then right."""
        count = len(self.times)
        return {
            "keypoints": self.keypoints.reshape(count, 2 * POINTS, 3),
            "visible": self.visible.reshape(count, 2 * POINTS),
        }


def track_hands(
    observations: Sequence[Sequence[HandObservation]],
    times: Sequence[float] | np.ndarray,
    height: int,
    width: int,
    config: TrackConfig = TrackConfig(),
) -> HandTracks:
    """Follow the hands of one clip.

    Args:
        observations: what the detector saw in each of N frames.
        times: (N,) seconds, increasing; frames need not be evenly spaced.
        height, width: of the images (pixels).

    Raises:
        UserError: lengths disagree, or times do not increase.
    """
    times = np.asarray(times, dtype=np.float64)
    count = len(observations)
    if times.shape != (count,):
        raise UserError(f"hand tracking: {count} frames but times of shape {times.shape}; give one time a frame")
    if count > 1 and not (np.diff(times) > 0).all():
        at = int(np.argmin(np.diff(times))) + 1
        raise UserError(f"hand tracking: time {times[at]} s of frame {at} is not after {times[at - 1]} s; sort frames")
    seen_count = np.array([len(hands) for hands in observations], np.int32)
    observations = [_without_doubles(hands, config) for hands in observations]
    doubles = int(seen_count.sum()) - sum(map(len, observations))
    chains = _join(observations, times, config)
    least = min(config.min_frames, count)
    kept = [chain for chain in chains if len(chain) >= least]
    placed, homeless = _take_sides(kept, observations)
    dropped = sum(map(len, chains)) - sum(map(len, kept)) + homeless + doubles

    shape = (count, 2, POINTS)
    keypoints, raw = np.zeros((*shape, 3), np.float32), np.zeros((*shape, 3), np.float32)
    presence = np.zeros(shape, np.float32)
    detected, interpolated = np.zeros((count, 2), bool), np.zeros((count, 2), bool)
    score = np.zeros((count, 2), np.float32)
    repaired = 0
    for chain, side in placed:
        rows = np.array([frame for frame, _ in chain])
        seen = [observations[frame][number] for frame, number in chain]
        points = np.stack([hand.keypoints for hand in seen]).astype(np.float64)
        raw[rows, side], detected[rows, side] = points, True
        score[rows, side] = [hand.score for hand in seen]
        presence[rows, side] = np.stack([hand.presence for hand in seen])
        repaired += sum(hand.side != SIDES[side] for hand in seen)
        keypoints[rows, side] = smooth(points, times[rows], config)
        _bridge(keypoints[:, side], presence[:, side], rows, interpolated[:, side], times, config)
    here = (detected | interpolated)[..., None]
    inside = ((keypoints[..., :2] >= 0) & (keypoints[..., :2] < (width, height))).all(axis=-1)
    visible = here & inside & (presence >= config.min_presence)
    return HandTracks(
        times, keypoints, raw, visible, detected, interpolated, score, seen_count, height, width, repaired, dropped
    )


def _without_doubles(hands: Sequence[HandObservation], config: TrackConfig) -> list[HandObservation]:
    """Leave out hands that lie on a surer one: detectors now and then find the same hand twice."""
    kept: list[HandObservation] = []
    for hand in sorted(hands, key=lambda hand: -hand.score):
        length = hand_length(hand.keypoints)
        gaps = [np.linalg.norm(hand.keypoints[:, :2] - other.keypoints[:, :2], axis=-1).mean() for other in kept]
        if all(gap > config.double_reach * length for gap in gaps):
            kept.append(hand)
    return kept


Chain = list[tuple[int, int]]
"""One hand over time: (frame, number of the observation in that frame), ascending frames."""


def _join(observations: Sequence[Sequence[HandObservation]], times: np.ndarray, config: TrackConfig) -> list[Chain]:
    """Join observations of neighbouring frames to chains, best fits first over all hands of a frame."""
    chains: list[Chain] = []
    open_chains: list[int] = []
    for frame, hands in enumerate(observations):
        # However slow the frames come, neighbours may be joined.
        open_chains = [
            c
            for c in open_chains
            if frame - chains[c][-1][0] == 1 or times[frame] - times[chains[c][-1][0]] <= config.max_gap_s + 1e-6
        ]
        taken: set[int] = set()
        if hands and open_chains:
            costs = np.array([[_cost(chains[c], hand, frame, observations, times, config) for hand in hands]
                              for c in open_chains])  # fmt: skip
            for row, column in _match(costs):
                chains[open_chains[row]].append((frame, column))
                taken.add(column)
        for number in range(len(hands)):
            if number not in taken:
                open_chains.append(len(chains))
                chains.append([(frame, number)])
    return chains


def _match(costs: np.ndarray) -> list[tuple[int, int]]:
    """Return (row, column) pairs of finite cost, as many as possible, of least total cost."""
    rows, columns = np.nonzero(np.isfinite(costs))
    if len(set(rows)) == len(rows) and len(set(columns)) == len(columns):
        return list(zip(rows.tolist(), columns.tolist(), strict=True))  # nobody competes: the usual case
    from scipy.optimize import linear_sum_assignment

    pairs = zip(*linear_sum_assignment(np.minimum(costs, 1e6)), strict=True)
    return [(int(row), int(column)) for row, column in pairs if np.isfinite(costs[row, column])]


def _cost(
    chain: Chain,
    hand: HandObservation,
    frame: int,
    observations: Sequence[Sequence[HandObservation]],
    times: np.ndarray,
    config: TrackConfig,
) -> float:
    """How badly `hand` continues `chain`: mean distance of its points in hand lengths, infinite beyond reach."""
    last_frame, last_number = chain[-1]
    last = observations[last_frame][last_number]
    elapsed = times[frame] - times[last_frame]
    expected = last.keypoints[:, :2].astype(np.float64)
    if len(chain) > 1:
        before_frame, before_number = chain[-2]
        span = times[last_frame] - times[before_frame]
        before = observations[before_frame][before_number].keypoints[:, :2]
        # As fast as before, but not for longer than it was seen to be.
        expected = expected + (expected - before).mean(axis=0) / span * min(elapsed, span)
    length = float(max(hand_length(last.keypoints), hand_length(hand.keypoints)))
    distance = float(np.linalg.norm(hand.keypoints[:, :2] - expected, axis=-1).mean()) / length
    if distance > config.reach + config.reach_per_s * elapsed:
        return np.inf
    # Where two hands touch, places do not tell them apart; sides then may.
    doubt = (2 * last.score - 1) * (2 * hand.score - 1) if last.side != hand.side else 0.0
    return distance + 0.2 * max(doubt, 0.0)


def _take_sides(chains: list[Chain], observations: Sequence[Sequence[HandObservation]]) -> tuple[list, int]:
    """Give each chain its side: [(chain, 0 or 1)], and how many observations found none (third hands).

    The chain surest of its side chooses first; one whose side is taken at that time gets the other.
    """
    votes = []
    for chain in chains:
        hands = [observations[frame][number] for frame, number in chain]
        votes.append(sum((2 * hand.score - 1) * (1 if hand.side == SIDES[1] else -1) for hand in hands))
    # Between equally sure ones the longer, then the earlier: the order does not hang on the detector's.
    order = sorted(range(len(chains)), key=lambda c: (-abs(votes[c]), -len(chains[c]), chains[c][0]))
    taken: list[list[tuple[int, int]]] = [[], []]
    placed, homeless = [], 0
    for c in order:
        first, last = chains[c][0][0], chains[c][-1][0]
        wanted = int(votes[c] > 0)
        for side in (wanted, 1 - wanted):
            if all(last < start or first > end for start, end in taken[side]):
                taken[side].append((first, last))
                placed.append((chains[c], side))
                break
        else:
            homeless += len(chains[c])
    return placed, homeless


def smooth(points: np.ndarray, times: np.ndarray, config: TrackConfig = TrackConfig()) -> np.ndarray:
    """Filter one hand's keypoints (M, 21, 3) at `times` (M,) s; see the module's text. Gaps in time are no harm."""
    if config.cut_off_hz <= 0 or len(points) < 3:
        return points.copy()
    flat = points.reshape(len(points), -1)
    length = float(np.median(hand_length(points)))
    steady, slope = _fit(flat, times, np.full(len(times), _SPEED_CUT_OFF_HZ))
    speed = np.linalg.norm(slope.reshape(points.shape)[..., :2], axis=-1).mean(axis=1) / length
    cut_off = np.clip(config.cut_off_hz + config.cut_off_per_speed * speed, None, config.max_cut_off_hz)
    # Neighbours get about the same window, else a change of speed shows as a kink.
    cut_off, _ = _fit(cut_off[:, None], times, np.full(len(times), _SPEED_CUT_OFF_HZ))
    return _fit(flat, times, np.clip(cut_off[:, 0], config.cut_off_hz, config.max_cut_off_hz))[0].reshape(points.shape)


def _fit(values: np.ndarray, times: np.ndarray, cut_off_hz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit a line to `values` (M, D) around each time, under a Gaussian window; return its values and slopes there."""
    fitted, slopes = np.empty_like(values), np.zeros_like(values)
    sigma = _SIGMA_HZ / cut_off_hz
    first = np.searchsorted(times, times - 3 * sigma)
    after = np.searchsorted(times, times + 3 * sigma, side="right")
    for row, now in enumerate(times):
        near = slice(first[row], after[row])
        offset = times[near] - now
        weight = np.exp(-0.5 * (offset / sigma[row]) ** 2)
        weight /= weight.sum()
        mean = weight @ offset
        centred = weight * (offset - mean)
        spread = centred @ offset
        average = weight @ values[near]
        if spread > 1e-12:
            slopes[row] = (centred @ values[near]) / spread
        fitted[row] = average - slopes[row] * mean
    return fitted, slopes


def _bridge(
    keypoints: np.ndarray,
    presence: np.ndarray,
    rows: np.ndarray,
    interpolated: np.ndarray,
    times: np.ndarray,
    config: TrackConfig,
) -> None:
    """Fill short gaps between the `rows` of one chain, in place."""
    for before, after in zip(rows[:-1], rows[1:], strict=True):
        if after - before < 2 or times[after] - times[before] > config.max_gap_s + 1e-6:
            continue
        gap = np.arange(before + 1, after)
        share = ((times[gap] - times[before]) / (times[after] - times[before]))[:, None, None]
        keypoints[gap] = (1 - share) * keypoints[before] + share * keypoints[after]
        presence[gap] = np.minimum(presence[before], presence[after])
        interpolated[gap] = True
