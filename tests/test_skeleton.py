"""The 21-point convention: conversions from other ones by hand-computed cases, hand length, the normal form."""

import numpy as np
import pytest

from arvrm.hands.skeleton import (
    BONES,
    CONVENTIONS,
    arkit_names,
    denormalise,
    from_convention,
    hand_length,
    normalise,
    to_convention,
)
from arvrm.interface import KEYPOINTS, UserError


def numbered() -> np.ndarray:
    """(21, 3): each point's u is its place in the order it is given in."""
    return np.stack([np.arange(21), np.zeros(21), np.zeros(21)], axis=-1)


def places(convention: str) -> dict[str, int]:
    """Where the convention keeps our points."""
    return dict(zip(KEYPOINTS, from_convention(numbered(), convention)[:, 0].astype(int), strict=True))


@pytest.mark.parametrize("convention", ["mediapipe", "openpose", "freihand"])
def test_these_conventions_are_ours(convention):
    # MediaPipe's documentation: 0 wrist, 4 thumb tip, 5 index MCP, 8 index tip, 17 pinky MCP, 20 pinky tip.
    found = places(convention)
    assert (found["wrist"], found["thumb_tip"], found["index_1"], found["index_tip"]) == (0, 4, 5, 8)
    assert (found["little_1"], found["little_tip"]) == (17, 20)


def test_interhand_goes_from_the_tips_to_the_wrist():
    # InterHand2.6M's list: 0 thumb4 (tip) ... 3 thumb1, 4 index4 ... 7 index1, ... 16 pinky4 ... 19 pinky1, 20 wrist.
    found = places("interhand")
    assert [found[f"thumb_{j}"] for j in ("1", "2", "3", "tip")] == [3, 2, 1, 0]
    assert [found[f"index_{j}"] for j in ("1", "2", "3", "tip")] == [7, 6, 5, 4]
    assert [found[f"middle_{j}"] for j in ("1", "2", "3", "tip")] == [11, 10, 9, 8]
    assert (found["ring_tip"], found["little_tip"], found["little_1"], found["wrist"]) == (12, 16, 19, 20)


def test_mano_has_little_before_ring_and_thumb_last_and_tips_at_the_end():
    # MANO's kinematic tree: 0 wrist, 1-3 index, 4-6 middle, 7-9 pinky, 10-12 ring, 13-15 thumb; tips added: 16-20.
    found = places("mano")
    assert [found[f"index_{j}"] for j in "123"] == [1, 2, 3]
    assert [found[f"middle_{j}"] for j in "123"] == [4, 5, 6]
    assert [found[f"little_{j}"] for j in "123"] == [7, 8, 9]
    assert [found[f"ring_{j}"] for j in "123"] == [10, 11, 12]
    assert [found[f"thumb_{j}"] for j in "123"] == [13, 14, 15]
    assert [found[f"{f}_tip"] for f in ("thumb", "index", "middle", "ring", "little")] == [16, 17, 18, 19, 20]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_conversion_has_its_inverse_and_keeps_batches_apart(convention):
    points = np.random.default_rng(0).normal(size=(4, 2, 21, 3))
    there = from_convention(points, convention)
    np.testing.assert_array_equal(to_convention(there, convention), points)
    np.testing.assert_array_equal(there[1, 1], from_convention(points[1, 1], convention))


def test_arkit_names_are_egodex_spelling_in_our_order():
    names = arkit_names("right")
    assert len(names) == 21
    found = dict(zip(KEYPOINTS, names, strict=True))
    assert found["wrist"] == "rightHand"
    assert [found[f"thumb_{j}"] for j in ("1", "2", "3", "tip")] == [
        "rightThumbKnuckle", "rightThumbIntermediateBase", "rightThumbIntermediateTip", "rightThumbTip"
    ]  # fmt: skip
    assert found["index_1"] == "rightIndexFingerKnuckle" and found["little_tip"] == "rightLittleFingerTip"
    assert arkit_names("left")[8] == "leftIndexFingerTip"
    assert not any("Metacarpal" in name for name in names)


def test_wrong_convention_side_or_count_is_one_line():
    with pytest.raises(UserError, match="'smplx': unknown; choose mediapipe"):
        from_convention(numbered(), "smplx")
    with pytest.raises(UserError, match=r"interhand: points of shape \(42, 3\); give"):
        from_convention(np.zeros((42, 3)), "interhand")
    with pytest.raises(UserError, match="choose left or right"):
        arkit_names("both")


def test_hand_length_is_wrist_to_middle_base_or_the_mean_where_that_is_short():
    points = np.zeros((21, 3))
    points[KEYPOINTS.index("middle_1"), :2] = (30, 40)
    assert hand_length(points) == pytest.approx(50)
    foreshortened = np.zeros((21, 3))
    foreshortened[1:, 0] = 21.0
    foreshortened[KEYPOINTS.index("middle_1"), 0] = 0
    assert hand_length(foreshortened) == pytest.approx(19)  # 19 of 21 points lie 21 px away
    assert hand_length(np.zeros((21, 3))) == 1.0


def test_normal_form_of_a_known_hand():
    points = np.zeros((21, 3))
    points[:, :2] = (160, 60)  # wrist and all: in a 120 x 320 image the middle
    middle, tip = KEYPOINTS.index("middle_1"), KEYPOINTS.index("index_tip")
    points[middle, :2] = (160, 30)  # 30 px up: half of half the height
    points[tip] = (190, 60, 0.05)
    hand = normalise(points, 120, 320)
    np.testing.assert_allclose(hand.root, (0, 0))
    assert hand.scale == pytest.approx(0.5)
    np.testing.assert_allclose(hand.points[middle], (0, -1, 0))
    np.testing.assert_allclose(hand.points[tip], (1, 0, 0.1))


def test_normal_form_does_not_change_with_place_and_size_and_is_undone_exactly():
    rng = np.random.default_rng(3)
    points = rng.normal(size=(5, 21, 3)) * (30, 30, 0.04) + (200, 100, 0)
    moved = points.copy()
    moved[..., :2] = 2 * points[..., :2] + (17, -40)
    first, second = normalise(points, 240, 320), normalise(moved, 240, 320)
    np.testing.assert_allclose(first.points[..., :2], second.points[..., :2])
    np.testing.assert_allclose(denormalise(first, 240, 320), points)
    np.testing.assert_allclose(denormalise(second, 240, 320), moved)


def test_every_point_but_the_wrist_hangs_on_one_bone():
    assert sorted(b for _, b in BONES) == list(range(1, 21))
    assert all(a < b for a, b in BONES)
