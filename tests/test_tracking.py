"""Hands over time: identity, sides, gaps, and a filter that takes jitter and leaves time alone."""

import numpy as np
import pytest
from fake_hands import shape

from arvrm.hands.detect import HandObservation
from arvrm.hands.skeleton import hand_length
from arvrm.hands.tracking import TrackConfig, smooth, track_hands
from arvrm.interface import UserError

FPS = 30
LENGTH = 80.0
LEFT, RIGHT = 0, 1
RAW = TrackConfig(cut_off_hz=0)


def hand(side, place, score=0.9, noise=0.0, rng=None):
    points = shape(LENGTH) + np.array([*place, 0], np.float32)
    if noise:
        points[:, :2] += rng.normal(0, noise, (21, 2))
    return HandObservation(side, score, points, np.ones(21, np.float32))


def times(count):
    return np.arange(count) / FPS


def wave(count, amplitude, hz):
    return np.stack([320 + amplitude * np.sin(2 * np.pi * hz * times(count)), np.full(count, 300.0)], axis=1)


def follow(observations, config=None, at=None):
    when = times(len(observations)) if at is None else at
    return track_hands(observations, when, 480, 640, config or TrackConfig())


def test_two_hands_land_left_then_right_whatever_the_detectors_order():
    rng = np.random.default_rng(0)
    pairs = [[hand("right", (450, 300)), hand("left", (150 + n, 300))] for n in range(10)]
    shuffled = [[pair[k] for k in rng.permutation(2)] for pair in pairs]
    tracks = follow(shuffled)
    assert tracks.detected.all() and tracks.repaired == 0
    assert (tracks.keypoints[:, LEFT, 0, 0] < 200).all() and (tracks.keypoints[:, RIGHT, 0, 0] > 400).all()
    np.testing.assert_array_equal(tracks.keypoints, follow(pairs).keypoints)
    arrays = tracks.arrays()
    np.testing.assert_array_equal(arrays["keypoints"][:, 21:], tracks.keypoints[:, RIGHT])
    assert arrays["keypoints"].shape == (10, 42, 3) and arrays["visible"].dtype == bool


def test_swapped_sides_are_repaired_and_counted():
    observations = []
    for n in range(30):
        names = ("right", "left") if n in (7, 8, 9) else ("left", "right")
        observations.append([hand(names[0], (150 + n, 300)), hand(names[1], (450, 300))])
    tracks = follow(observations, RAW)
    np.testing.assert_allclose(tracks.keypoints[:, LEFT, 0, 0], 150 + np.arange(30))
    assert tracks.repaired == 6


def test_a_lone_hand_called_wrongly_at_first_gets_the_side_most_frames_give():
    observations = [[hand("right", (300, 300), 0.6)]] * 4 + [[hand("left", (300, 300), 0.95)]] * 8
    tracks = follow(observations)
    assert tracks.detected[:, LEFT].all() and not tracks.detected[:, RIGHT].any()
    assert tracks.repaired == 4


def test_hands_that_pass_each_other_keep_who_they_are():
    observations = [[hand("left", (120 + 12 * n, 300)), hand("right", (480 - 12 * n, 260))] for n in range(31)]
    tracks = follow(observations, RAW)
    np.testing.assert_allclose(tracks.keypoints[:, LEFT, 0, 0], 120 + 12 * np.arange(31))
    np.testing.assert_allclose(tracks.keypoints[:, RIGHT, 0, 0], 480 - 12 * np.arange(31))


def test_two_hands_both_called_right_take_both_sides_the_surer_its_own():
    tracks = follow([[hand("right", (150, 300), 0.6), hand("right", (450, 300), 0.99)]] * 10)
    assert tracks.detected.all()
    assert (tracks.keypoints[:, RIGHT, 0, 0] == 450).all() and (tracks.keypoints[:, LEFT, 0, 0] == 150).all()


def test_short_gap_is_a_straight_line_and_marked_and_a_longer_one_stays_empty():
    moving = [[hand("right", (100 + 5 * n, 300))] for n in range(60)]
    for n in (*range(10, 18), *range(30, 40)):  # 8 missing frames: 0.3 s between neighbours; 10: 0.37 s
        moving[n] = []
    tracks = follow(moving, RAW)
    assert tracks.interpolated[10:18, RIGHT].all() and tracks.interpolated.sum() == 8
    np.testing.assert_allclose(tracks.keypoints[10:18, RIGHT, 0, 0], 100 + 5 * np.arange(10, 18), atol=1e-3)
    assert tracks.visible[10:18, RIGHT].all() and not tracks.detected[10:18].any()
    assert not tracks.visible[30:40].any() and not tracks.keypoints[30:40].any()
    assert tracks.detected[40:, RIGHT].all()  # the same hand afterwards


def test_no_line_is_drawn_from_one_hand_to_another_one():
    # It goes at the left edge and 0.2 s later one comes in at the right edge.
    observations = [[hand("right", (60, 300))]] * 10 + [[]] * 5 + [[hand("right", (580, 300))]] * 10
    tracks = follow(observations)
    assert not tracks.interpolated.any() and not tracks.visible[10:15].any()


def test_of_ten_hands_two_are_kept_and_the_rest_counted():
    crowd = [hand("right" if k % 2 else "left", (60 * k + 40, 150 + 200 * (k % 2)), 0.6 + 0.03 * k) for k in range(10)]
    tracks = follow([crowd] * 6)
    assert tracks.detected.all() and (tracks.seen == 10).all()
    assert tracks.dropped == 6 * 8
    assert (tracks.keypoints[:, RIGHT, 0, 0] == 580).all()  # the surest right one


def test_one_hand_found_twice_is_one_hand():
    observations = [[hand("right", (300 + n, 300)), hand("left", (303 + n, 301), 0.6)] for n in range(8)]
    tracks = follow(observations)
    assert tracks.detected[:, RIGHT].all() and not tracks.detected[:, LEFT].any() and tracks.dropped == 8


def test_flickers_are_dropped_but_not_in_a_clip_as_short():
    observations = [[hand("right", (300, 300))] for _ in range(20)]
    observations[5] = [*observations[5], hand("left", (100, 100))]
    tracks = follow(observations)
    assert not tracks.detected[:, LEFT].any() and tracks.dropped == 1
    assert follow(observations[5:6]).detected.all()


def test_without_hands_or_frames_there_is_nothing_and_no_error():
    tracks = follow([[]] * 5)
    assert not tracks.visible.any() and not tracks.keypoints.any() and tracks.keypoints.shape == (5, 2, 21, 3)
    assert follow([]).keypoints.shape == (0, 2, 21, 3)


def test_points_beyond_the_border_are_not_visible_but_finite():
    tracks = follow([[hand("right", (10, 300))]] * 5)
    outside = tracks.keypoints[:, RIGHT, :, 0] < 0
    assert outside.any() and not outside.all()
    np.testing.assert_array_equal(tracks.visible[:, RIGHT], ~outside)


def test_slow_frames_are_joined_though_they_lie_further_apart_than_a_gap():
    tracks = follow([[hand("left", (300 + 20 * n, 300))] for n in range(4)], at=np.arange(4.0))
    assert tracks.detected[:, LEFT].all() and not tracks.interpolated.any()


@pytest.mark.parametrize(("amplitude", "hz"), [(60, 0.5), (60, 1.0), (30, 2.0)])
def test_filter_has_no_lag_and_keeps_the_motion(amplitude, hz):
    place = wave(90, amplitude, hz)
    true = shape(LENGTH)[None].astype(np.float64) + np.concatenate([place, np.zeros((90, 1))], axis=1)[:, None]
    filtered = smooth(true, times(90))
    middle = slice(8, -8)
    lags = np.linspace(-0.1, 0.1, 201)
    misfits = [
        np.mean((filtered[middle, 0, 0] - np.interp(times(90)[middle] - lag, times(90), place[:, 0])) ** 2)
        for lag in lags
    ]
    assert abs(lags[np.argmin(misfits)]) < 0.003
    assert np.ptp(filtered[middle, 0, 0]) > 0.93 * np.ptp(place[middle, 0])


def test_filter_halves_the_jitter_of_a_still_hand_and_lowers_that_of_a_moving_one():
    rng = np.random.default_rng(5)
    for amplitude, share in ((0, 0.55), (60, 0.7)):
        place = wave(120, amplitude, 0.5)
        observations = [[hand("right", spot, noise=2.0, rng=rng)] for spot in place]
        tracks = follow(observations)
        true = shape(LENGTH)[None, :, :2] + place[:, None]
        before = (tracks.raw[:, RIGHT, :, :2] - true).std()
        after = (tracks.keypoints[:, RIGHT, :, :2] - true).std()
        assert before == pytest.approx(2.0, rel=0.05) and after < share * before


def test_filter_leaves_steady_motion_exact_up_to_the_ends_and_at_uneven_times():
    rng = np.random.default_rng(1)
    when = np.cumsum(rng.uniform(0.01, 0.08, 50))
    true = shape(LENGTH)[None].astype(np.float64) + (when[:, None] * [150, -40, 0.1])[:, None]
    np.testing.assert_allclose(smooth(true, when), true, atol=1e-6)


def test_times_that_stand_still_or_lack_are_one_line():
    observations = [[hand("right", (300, 300))]] * 3
    with pytest.raises(UserError, match="frame 2 is not after 0.1 s"):
        track_hands(observations, [0.0, 0.1, 0.1], 480, 640)
    with pytest.raises(UserError, match="3 frames but times of shape"):
        track_hands(observations, [0.0, 0.1], 480, 640)


def test_length_of_the_test_hand_is_what_the_tests_say():
    # The mean over all points (1 to 1.6 lengths away) is larger than wrist to middle base.
    assert LENGTH < hand_length(shape(LENGTH)) < 1.5 * LENGTH
