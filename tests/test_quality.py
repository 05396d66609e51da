"""Measures of a clip's hands against values computed by hand, and what the limits drop."""

import dataclasses

import numpy as np
import pytest
from fake_hands import shape

from arvrm.hands.detect import HandObservation
from arvrm.hands.quality import ClipQuality, QualityLimits, clip_quality, rank
from arvrm.hands.skeleton import hand_length
from arvrm.hands.tracking import TrackConfig, track_hands

LENGTH = float(hand_length(shape(60.0)))
GOOD = ClipQuality(90, 1.0, 0.0, 0.02, 0.0, 1.0, 0.0, "right", 0.0)


def clip(*paths, noise=0.0, fps=30, seed=0):
    """Tracks of hands whose wrists are at `paths`, (side, places); a place None is a frame without it."""
    rng = np.random.default_rng(seed)
    frames = [[] for _ in paths[0][1]]
    for side, places in paths:
        for frame, place in zip(frames, places, strict=True):
            if place is not None:
                points = shape(60.0) + np.array([*place, 0], np.float32)
                points[:, :2] += rng.normal(0, noise, (21, 2)) if noise else 0
                frame.append(HandObservation(side, 0.9, points, np.ones(21, np.float32)))
    return track_hands(frames, np.arange(len(frames)) / fps, 480, 640, TrackConfig(cut_off_hz=0))


def still(count, place=(320, 300)):
    return [place] * count


def test_detection_rate_counts_detected_frames_only():
    places = still(40)
    places[10:14] = [None] * 4  # interpolated
    places[20:32] = [None] * 12  # too long a gap
    quality = clip_quality(clip(("right", places)))
    assert quality.detection_rate == pytest.approx(24 / 40)
    assert quality.interpolated == pytest.approx(4 / 40)


@pytest.mark.parametrize("speed", [0, 300])
def test_jitter_is_the_noise_in_hand_lengths_whatever_the_motion(speed):
    places = [(100 + speed * n / 30, 300) for n in range(30)]
    quality = clip_quality(clip(("right", places), noise=3.0))
    assert quality.jitter == pytest.approx(3.0 / LENGTH, rel=0.08)


def test_jitter_of_a_smooth_hand_is_nothing():
    assert clip_quality(clip(("right", [(100 + 5 * n, 300) for n in range(30)]))).jitter < 1e-6


def test_truncation_is_the_share_of_points_beyond_the_border():
    quality = clip_quality(clip(("right", still(10, (320, 490)))))  # only the wrist lies below the image
    assert quality.truncation == pytest.approx(1 / 21)


def test_motion_energy_is_squared_speed_in_hand_lengths():
    quality = clip_quality(clip(("left", [(100 + 6 * n, 300) for n in range(30)])))
    assert quality.motion_energy == pytest.approx((6 * 30 / LENGTH) ** 2, rel=1e-4)
    assert quality.acting_hand == "left"


def test_acting_hand_is_the_one_that_moves_or_both_or_none():
    moving, slower = [(100 + 6 * n, 200) for n in range(30)], [(400 + 5.5 * n, 400) for n in range(30)]
    assert clip_quality(clip(("left", still(30, (150, 400))), ("right", moving))).acting_hand == "right"
    assert clip_quality(clip(("right", slower), ("left", moving))).acting_hand == "both"
    empty = clip_quality(clip(("right", [None] * 10)))
    assert empty.acting_hand == "none" and empty.detection_rate == 0 and empty.motion_energy == 0


def test_extra_hands_and_repairs_are_shares():
    places = [(320, 300)] * 10
    three = clip(("left", [(100, 300)] * 10), ("right", places), ("right", [(540, 300)] * 4 + [None] * 6))
    assert clip_quality(three).extra_hands == pytest.approx(0.4)


def test_a_good_clip_passes_and_each_limit_gives_its_reason():
    limits = QualityLimits(min_motion_energy=0.1)
    assert limits.reasons(GOOD) == []
    cases = {
        "detection rate 0.3 below 0.5": {"detection_rate": 0.3},
        "jitter 0.4 above 0.15": {"jitter": 0.4},
        "truncation 0.6 above 0.5": {"truncation": 0.6},
        "motion energy 0.05 below 0.1": {"motion_energy": 0.05},
        "extra hands 0.9 above 0.5": {"extra_hands": 0.9},
        "frames 1 below 2": {"frames": 1},
    }
    for reason, changes in cases.items():
        assert limits.reasons(dataclasses.replace(GOOD, **changes)) == [reason]
    assert limits.reasons(dataclasses.replace(GOOD, detection_rate=0.0)) == ["no hand in any frame"]
    both = limits.reasons(dataclasses.replace(GOOD, jitter=0.4, truncation=0.6))
    assert len(both) == 2


def test_values_at_a_limit_pass():
    limits = QualityLimits()
    edge = dataclasses.replace(GOOD, detection_rate=limits.min_detection_rate, jitter=limits.max_jitter)
    assert limits.reasons(edge) == []


def test_rank_puts_the_poorest_first():
    worse = dataclasses.replace(GOOD, detection_rate=0.6)
    worst = dataclasses.replace(GOOD, detection_rate=0.6, jitter=0.14)
    assert rank([GOOD, worst, worse]) == [1, 2, 0]


def test_empty_clip_has_no_quality_and_no_error():
    quality = clip_quality(track_hands([], [], 480, 640))
    assert QualityLimits().reasons(quality) == ["frames 0 below 2", "detection rate 0 below 0.5"]
