"""A hand as a gripper: its opening, place and axes."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from arvrm.geometry import quaternion_to_matrix
from arvrm.hands.gripper import GRIPPER_POINTS, hand_grippers, in_world, poses
from arvrm.interface import KEYPOINTS


def pinch(opening=0.05, mirrored=False):
    """A hand (21, 3; m) whose wrist is at the origin and which pinches 0.15 m before it, along z, thumb below index."""
    points = np.zeros((21, 3))
    for k, name in enumerate(KEYPOINTS):
        finger, _, joint = name.partition("_")
        reach = {"1": 0.06, "2": 0.1, "3": 0.13, "tip": 0.15}.get(joint, 0.0)
        bow = {"1": 0.02, "2": 0.03, "3": 0.02, "tip": 0.0}.get(joint, 0.0)
        half = opening / 2 + bow
        points[k] = {"thumb": (0.01, -half, reach), "wrist": (0, 0, 0)}.get(finger, (0.01, half, reach))
    points[:, 0] *= -1 if mirrored else 1
    return points


@pytest.mark.parametrize("mirrored", [False, True])
def test_opening_is_the_distance_of_the_tips_and_the_axes_are_those_of_the_page(mirrored):
    (found,), (there,) = hand_grippers(pinch(mirrored=mirrored)[None])
    x = -0.01 if mirrored else 0.01
    assert there and found[0] == pytest.approx(0.05) and found[1:4] == pytest.approx([x, 0, 0.15])
    rotation = quaternion_to_matrix(found[4:])
    assert rotation[:, 2] == pytest.approx(np.array([x, 0, 0.15]) / np.hypot(x, 0.15), abs=1e-9)  # from the wrist
    assert rotation[:, 1] == pytest.approx([0, 1, 0], abs=1e-9)  # from thumb to index finger
    assert np.linalg.det(rotation) == pytest.approx(1) and found[7] >= 0


def test_axes_do_not_turn_while_the_gripper_closes():
    openings = np.linspace(0.1, 0.0, 60)
    found, there = hand_grippers(np.stack([pinch(opening) for opening in openings]))
    assert there.all() and found[:, 0] == pytest.approx(openings)
    assert np.abs(found[:, 4:] - found[0, 4:]).max() < 1e-6


def test_grippers_move_with_the_hand():
    turn, shift = Rotation.from_rotvec([0.3, -1.0, 2.0]), np.array([0.5, -0.2, 1.0])
    still, _ = hand_grippers(pinch())
    moved, _ = hand_grippers(turn.apply(pinch()) + shift)
    camera = np.eye(4)
    camera[:3, :3], camera[:3, 3] = turn.as_matrix(), shift
    expected = in_world(still[None, None], poses(camera)[None])[0, 0]
    assert moved == pytest.approx(expected, abs=1e-9)


def test_hand_without_a_direction_is_no_gripper():
    points = np.zeros((2, 21, 3))
    points[1] = pinch()
    points[1, list(GRIPPER_POINTS[1:]), :2] = 0.0  # thumb and index finger in one line with the wrist
    found, there = hand_grippers(points)
    assert not there.any() and np.isfinite(found).all() and (found[:, 7] == 1).all()
