"""Motions: bending, the library's file, the camera and the map."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from arvrm.hands.skeleton import TIPS
from arvrm.interface import Camera, UserError
from arvrm.model.places import twice_angle
from arvrm.motions import (
    Goal,
    Motion,
    Path,
    RetrieveConfig,
    Retriever,
    bend,
    fit_camera,
    fit_map,
    load_library,
    path_of,
    save_library,
)
from arvrm.motions.camera import on_plane, project, read_camera
from arvrm.motions.path import BESIDE_M, STEP_M, STEP_RAD, entry_of, lets_go, takes, yaws_of
from arvrm.robots.calvin import CALVIN
from arvrm.robots.vector import Ranges, VectorRobot

CAMERA = np.array([
    [363.686097, 306.48557, -277.689796, 329.264406],
    [-16.514362, -354.482674, -421.167323, 355.547205],
    [-0.689929, 0.508659, -0.515038, 4.399169],
])  # fmt: skip


def down_and_along() -> Path:
    """From 0.2 m above the touch at the origin straight down in steps of 0.01, then 0.1 along x."""
    down = [[0.0, 0.0, 0.2 - 0.01 * k] for k in range(21)]
    along = [[0.01 * k, 0.0, 0.0] for k in range(1, 11)]
    poses = np.concatenate([np.array(down + along), np.tile([np.pi, 0, 1.5], (31, 1))], 1)
    gripper = np.where(np.arange(31) < 20, 1.0, -1.0)
    return Path(poses, gripper, 20, 30, poses[20], poses[30])


def test_a_bent_path_touches_at_its_new_place_and_goes_on_from_there_as_it_did():
    path = down_and_along()
    start = np.array([0.3, 0.2, 0.1, np.pi, 0, 1.5])
    bent = bend(path, start, Goal(np.array([0.1, -0.2, 0.05])))
    assert np.allclose(bent.poses[bent.touch, :3], [0.1, -0.2, 0.05])
    assert np.allclose(bent.poses[-1, :3], [0.2, -0.2, 0.05])
    before = np.concatenate([start[None, :3], bent.poses[:, :3]])
    assert np.linalg.norm(np.diff(before, axis=0), axis=1).max() <= STEP_M + 1e-9
    assert bent.gripper[bent.touch] == -1 and bent.gripper[0] == 1


def test_the_way_to_an_approach_is_as_high_as_the_motion_came():
    path = down_and_along()
    start = np.array([0.3, 0.2, 0.1, np.pi, 0, 1.5])
    bent = bend(path, start, Goal(np.array([0.1, -0.2, 0.05])))
    crossing = np.linalg.norm(bent.poses[:, :2] - start[:2], axis=1)
    between = (crossing > 0.02) & (crossing < 0.4)
    assert bent.poses[between, 2].min() > 0.13


def test_the_approach_leaves_out_an_attempt_that_failed_before():
    path = down_and_along()
    again = np.concatenate([path.poses[:21], path.poses[20:0:-1], path.poses])
    both = Path(again, np.ones(len(again)), 61, 71, path.tcp_touch, path.tcp_end)
    assert again[entry_of(both), 2] == pytest.approx(0.09)
    assert entry_of(both) > 41


def test_an_end_that_is_told_stretches_the_path_after_the_touch():
    bent = bend(down_and_along(), np.array([0, 0, 0.2, np.pi, 0, 1.5]), Goal(np.zeros(3), 0.0, np.array([0.2, 0.1, 0])))
    assert np.allclose(bent.poses[bent.touch, :3], 0)
    assert np.allclose(bent.poses[-1, :3], [0.2, 0.1, 0])


def test_a_turn_turns_the_gripper_and_leaves_the_way():
    bent = bend(down_and_along(), np.array([0, 0, 0.2, np.pi, 0, 1.5]), Goal(np.zeros(3), 0.4))
    assert bent.poses[bent.touch, 5] == pytest.approx(1.9)
    assert np.allclose(bent.poses[-1, :3], [0.1, 0, 0])


@pytest.mark.parametrize("turned, further", [(1.0, 1.7), (-1.0, -1.7), (0.5, 0.5)])
def test_what_is_held_is_turned_on_past_where_the_demonstration_was_done(turned, further):
    path = down_and_along()
    path.poses[20:, 5] += np.linspace(0, turned, 11)
    start = np.array([0.3, 0.2, 0.1, np.pi, 0, 1.5])
    bent = bend(path, start, Goal(np.zeros(3), 0.4))
    assert bent.poses[bent.touch, 5] == pytest.approx(1.9) and bent.poses[-1, 5] == pytest.approx(1.9 + further)
    assert np.allclose(bent.poses[-1, :3], [0.1, 0, 0]) and np.abs(np.diff(bent.poses[:, 5])).max() <= STEP_RAD + 1e-9
    again = bend(path, path.poses[24], Goal(np.zeros(3)), 25)
    assert again.poses[-1, 5] == pytest.approx(1.5 + further), "also where it is bent anew on its way"
    least, most = yaws_of([path, down_and_along()], 1.5)
    assert (least, most) == (pytest.approx(1.5 + min(turned, 0)), pytest.approx(1.5 + max(turned, 0)))
    wrist = Goal(np.zeros(3), -0.1 * np.sign(turned), yaws=(least, most))
    end = {1.0: 2.5, -1.0: 0.5, 0.5: 1.9}[turned]
    assert bend(path, start, wrist).poses[-1, 5] == pytest.approx(end), "no further than any wrist was seen to go"
    other = replace(wrist, turn=0.4 * np.sign(turned))
    assert bend(path, start, other).poses[-1, 5] == pytest.approx(1.5 + turned + other.turn), "as far as it was shown"
    empty = replace(path, gripper=np.ones(31))
    assert bend(empty, start, Goal(np.zeros(3))).poses[-1, 5] == pytest.approx(1.5 + turned), "it holds nothing"


def test_what_was_touched_in_vain_is_touched_beside_on_each_side_in_turn_and_then_further():
    unsure = np.array([[0, 0.01, 0], [0.004, 0, 0]])
    goal = Goal(np.array([0.1, 0.2, 0.5]), 0.1, np.array([0.3, 0.2, 0.5]), unsure=unsure, quarter=1.5)
    ways = [goal.next(tries, False).touch - goal.touch for tries in range(6)]
    expected = [[0, 0, 0], [0, 0.015, 0], [0, -0.015, 0], [0.006, 0, 0], [-0.006, 0, 0], [0, 0.03, 0]]
    np.testing.assert_allclose(ways, expected, atol=1e-12)
    assert np.linalg.norm(goal.next(40, False).touch - goal.touch) <= BESIDE_M + 1e-12
    np.testing.assert_allclose(goal.next(1, False).end, [0.3, 0.215, 0.5])
    assert goal.next(1, False).turn == 0.1
    assert not (Goal(goal.touch).next(3, True).touch - goal.touch).any()


def test_what_was_gripped_in_vain_is_gripped_across_each_third_time():
    goal = Goal(np.zeros(3), 0.1, unsure=np.array([[0, 0.01, 0], [0.004, 0, 0]]), quarter=-1.5)
    tries = [goal.next(number, True) for number in range(6)]
    np.testing.assert_allclose([one.turn for one in tries], [0.1, 0.1, -1.4, 0.1, 0.1, -1.4])
    np.testing.assert_allclose([one.touch[1] for one in tries], [0, 0.015, 0, -0.015, 0, 0])
    np.testing.assert_allclose(tries[4].touch[0], 0.006)


def test_what_a_motion_holds_when_it_comes_and_goes_tells_whether_it_takes_or_puts_down():
    path = down_and_along()
    rows = np.arange(len(path.poses))
    up = replace(path, tcp_end=path.tcp_touch + [0, 0, 0.1, 0, 0, 0])
    closes = np.where(rows < path.touch, 1.0, -1.0)
    for one, gripper, lets, takes_up in (
        (up, closes, False, True),
        (path, closes, False, False),
        (path, -closes, True, False),
        (up, np.ones(len(rows)), False, False),
        (path, -np.ones(len(rows)), False, False),
    ):
        there = replace(one, gripper=gripper)
        assert (lets_go(there), takes(there)) == (lets, takes_up)


def test_a_path_is_the_controllers_target_after_each_step():
    targets = np.zeros((3, 6))
    arrays = {"robot_obs": np.zeros((3, 15)), "target_pose": targets, "actions": np.full((3, 7), 0.5, np.float32)}
    path = path_of(CALVIN, arrays, 1, 2)
    assert np.allclose(path.poses, [[0.01] * 3 + [0.025] * 3] * 3)


def test_a_robot_that_is_not_moved_by_poses_is_refused_in_one_line():
    arm = VectorRobot("arm", ("a",), ("rad",), Ranges((-1.0,), (1.0,)), (Camera("front", "static"),))
    with pytest.raises(UserError, match="not moved by poses"):
        path_of(arm, {}, 0, 0)


def moments(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grippers on and above the table, and hands seen there whose thumb and index tips lie on both sides of them."""
    tcp = np.zeros((count, 6))
    tcp[:, :3] = rng.uniform([-0.2, -0.25, 0.4], [0.3, 0.15, 0.6], (count, 3))
    tcp[:, 5] = np.pi / 2 + rng.uniform(-0.7, 0.7, count)
    across = np.stack([np.sin(tcp[:, 5]), -np.cos(tcp[:, 5]), np.zeros(count)], -1)
    hand = rng.normal(0, 0.02, (21, 3)) + [0, -0.06, 0.05]
    points = tcp[:, None, :3] + hand + rng.normal(0, 0.012, (count, 1, 3)) * np.linspace(1, 0.2, 21)[:, None]
    points[:, TIPS[0]] = tcp[:, :3] - 0.02 * across
    points[:, TIPS[1]] = tcp[:, :3] + 0.02 * across
    seen = project(CAMERA, points)
    turn = twice_angle(torch.from_numpy(seen[:, TIPS[1]] - seen[:, TIPS[0]])).numpy()
    return tcp, seen + rng.normal(0, 0.3, (count, 21, 2)), turn


def test_a_camera_is_fitted_from_pairs_of_which_a_quarter_are_wrong():
    rng = np.random.default_rng(0)
    points = rng.uniform([-0.2, -0.25, 0.4], [0.3, 0.15, 0.6], (80, 3))
    pixels = project(CAMERA, points) + rng.normal(0, 0.5, (80, 2))
    pixels[::4] += rng.normal(0, 25, (20, 2))
    camera = fit_camera(points, pixels)
    off = on_plane(camera, project(CAMERA, points), points[:, 2]) - points
    assert np.median(np.linalg.norm(off, axis=1)) < 0.005


def test_too_few_moments_for_a_camera_are_refused_in_one_line():
    with pytest.raises(UserError, match="give more demonstrations, or calibrate"):
        fit_camera(np.zeros((3, 3)), np.zeros((3, 2)))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_map_finds_that_the_tips_of_thumb_and_index_stand_for_the_gripper(seed):
    tcp, hands, turn = moments(np.random.default_rng(5), 120)
    found = fit_map(hands, tcp, np.ones(len(tcp)), turn, CAMERA, seed)
    assert found.position[:, list(TIPS[:2])].sum(1).min() > 0.8
    assert found.error < 0.01
    off = (found.angle(turn, tcp[:, :3]) - tcp[:, 5] + np.pi / 2) % np.pi - np.pi / 2
    assert np.median(np.abs(off)) < 0.05


def library(count: int = 3) -> list[Motion]:
    rng = np.random.default_rng(0)
    path = down_and_along()
    return [
        Motion(
            f"demo-{n}", "robot", "push it", path, np.zeros(7), rng.random((2, 21, 2), np.float32),
            np.ones(2, np.float32), rng.random(5, np.float32), np.ones(2, np.float32), np.eye(4, dtype=np.float32)[n],
        )
        for n in range(count)
    ]  # fmt: skip


def test_a_library_comes_back_from_its_files_as_it_was(tmp_path):
    first, *others = library()
    motions = [replace(first, touched=17), *others]
    identity = save_library(tmp_path, motions)
    found = load_library(tmp_path, identity)
    assert [one.touched for one in found] == [17, None, None]
    assert [one.id for one in found] == ["demo-0", "demo-1", "demo-2"]
    for old, new in zip(motions, found, strict=True):
        assert np.array_equal(old.path.poses, new.path.poses) and np.array_equal(old.hand, new.hand)
        assert (old.path.touch, old.path.end) == (new.path.touch, new.path.end)


@pytest.mark.parametrize("damage", ["cut", "other", "gone", "words"])
def test_a_damaged_library_is_refused_in_one_line(tmp_path, damage):
    identity = save_library(tmp_path, library())
    numbers, words = tmp_path / "motions.safetensors", tmp_path / "motions.json"
    if damage == "cut":
        numbers.write_bytes(numbers.read_bytes()[:-100])
    elif damage == "other":
        save_library(tmp_path, library(2))
    elif damage == "gone":
        numbers.unlink()
    else:
        words.write_text(json.dumps({**json.loads(words.read_text()), "motions": [{"id": 3}]}))
    with pytest.raises(UserError) as error:
        load_library(tmp_path, identity)
    assert "\n" not in str(error.value)


def test_motions_of_other_words_are_left_out_and_the_nearest_of_the_same_words_comes_first():
    motions = library()
    retriever = Retriever(motions, RetrieveConfig(), CAMERA)
    words = motions[0].words
    terms = retriever.terms(words, motions[0].motion, motions[0].hand, np.zeros(7), np.zeros((3, 3)), np.zeros(3))
    assert retriever.ranked(terms) == [0]


def test_camera_of_calvin_is_that_of_its_scenes():
    from arvrm.sim.builtin import builtin_scene
    from arvrm.sources.truth import camera_matrix

    camera = read_camera("calvin")
    true = np.array(camera_matrix(builtin_scene("D").static_camera, 96))
    points = np.array([[0.1, -0.1, 0.46], [-0.3, 0.1, 0.6]])
    np.testing.assert_allclose(project(camera, points), project(true, points), atol=0.01)
