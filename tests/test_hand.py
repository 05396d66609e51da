"""Hands in place of the robot: kinematics, labels that agree with pictures, replay; and the 21-point convention."""

import dataclasses
import json

import numpy as np
import pytest

from arvrm.hands.skeleton import BONES, PARENTS, TIPS, denormalise, normalise
from arvrm.interface import KEYPOINTS, UserError
from arvrm.sim.hand import HandScene, camera_matrices
from arvrm.sim.hand_body import HandStyle, HandTrajectory, hand_points
from arvrm.sim.scene import Camera

THUMB, INDEX = KEYPOINTS.index("thumb_tip"), KEYPOINTS.index("index_tip")
DOWN = (np.pi, 0.0, np.pi / 2)


@pytest.fixture(scope="module")
def scene():
    with HandScene("A") as scene:
        yield scene


def _trajectory(steps=24, start=(-0.1, -0.09, 0.55), end=(0.1, -0.09, 0.47), width=0.06):
    """A hand that glides from start to end and closes halfway; blocks lie aside, pink moves."""
    share = np.linspace(0, 1, steps)[:, None]
    tcp = np.concatenate([(1 - share) * start + share * np.array(end), np.tile(DOWN, (steps, 1))], axis=1)
    state = np.zeros((steps, 24))
    state[:, 6:9] = np.array([0.25, -0.1, 0.46]) + share * [0.08, 0, 0]  # pink is first in scene A
    state[:, 12:15], state[:, 18:21] = (0.0, 0.1, 0.46), (-0.25, 0.1, 0.46)
    closed = np.arange(steps) >= steps // 2
    return HandTrajectory(tcp, closed, state, np.where(closed, width, 0.08))


def _style(scene, **changes) -> HandStyle:
    style = HandStyle.draw(np.random.default_rng(3), scene.description.static_camera)
    return dataclasses.replace(style, speed=1.0, **changes)


@pytest.mark.parametrize("seed", range(8))
def test_bones_keep_their_lengths_and_the_pinch_fits_the_object(scene, seed):
    style = HandStyle.draw(np.random.default_rng(seed), scene.description.static_camera)
    aperture = np.linspace(0.0, style.widest, 9)
    points = hand_points(aperture, style)
    lengths = np.stack([np.linalg.norm(points[:, b] - points[:, a], axis=-1) for a, b in BONES])
    assert np.ptp(lengths, axis=1).max() < 1e-9
    assert 0.14 < np.linalg.norm(points[0, KEYPOINTS.index("middle_1")]) + lengths[9:12, 0].sum() < 0.22
    gap = np.linalg.norm(points[:, INDEX] - points[:, THUMB], axis=-1)
    # Between the skins, up to what a small hand's thumb cannot reach.
    np.testing.assert_allclose(gap - gap[0], aperture, atol=0.012)


def test_left_hand_mirrors_the_right_one(scene):
    aperture = np.array([0.0, 0.04])
    right, left = (hand_points(aperture, _style(scene, side=side)) for side in ("right", "left"))
    np.testing.assert_allclose(right * [1, -1, 1], left)


def test_pinch_stays_at_the_grasp_point(scene):
    trajectory = _trajectory()
    result = scene.render(trajectory, 0, 96, 12, _style(scene))
    world_to_camera, pinhole = camera_matrices(_style(scene).camera, 96)
    from arvrm.geometry import project

    tool = project(trajectory.tcp[:, :3], world_to_camera, pinhole)[:, :2]
    middle = result["keypoints"][:, [THUMB, INDEX], :2].mean(axis=1)
    assert np.abs(middle - tool).max() < 3.0  # pixels; about 1.5 cm


def test_same_seed_same_bytes_and_another_seed_another_clip(scene):
    first, second, other = (scene.render(_trajectory(), seed, 48, 4) for seed in (5, 5, 6))
    for name in ("images", "keypoints", "visible", "image_steps"):
        assert first[name].tobytes() == second[name].tobytes()
    assert json.dumps(first["meta"]) == json.dumps(second["meta"])
    assert other["images"].shape != first["images"].shape or np.any(other["images"] != first["images"])


def test_keypoints_lie_on_the_hand_in_the_picture(scene):
    green = (0.0, 1.0, 0.0)
    style = _style(scene, skin=green, sleeve=None)
    result = scene.render(_trajectory(), 0, 200, 4, style)
    hits = []
    for image, step in zip(result["images"].astype(int), result["image_steps"], strict=True):
        for point, visible in zip(result["keypoints"][step], result["visible"][step], strict=True):
            if visible:
                red, g, blue = image[int(point[1]), int(point[0])]
                hits.append(g > 2 * max(red, blue))
    assert len(hits) > 100 and np.mean(hits) > 0.97


def test_depth_grows_away_from_a_camera_above(scene):
    above = Camera(20.0, 0.5, 10.0, (0.0, -0.1, 3.0), (0.0, -0.1, 0.0), (0.0, 1.0, 0.0))
    result = scene.render(_trajectory(), 0, 96, 12, _style(scene, camera=above))
    depth = result["keypoints"][..., 2]
    assert np.all(depth[:, 0] == 0)
    # The wrist is above the fingertips, hence nearer to the camera; hands are no longer than 22 cm.
    assert np.all(depth[:, [THUMB, INDEX]] > 0.02) and np.abs(depth).max() < 0.22


def test_an_object_in_front_hides_keypoints(scene):
    trajectory = _trajectory(steps=6, start=(0.0, -0.09, 0.55), end=(0.0, -0.09, 0.55))
    style = _style(scene)
    free = scene.render(trajectory, 0, 96, 1, style)
    assert free["visible"][:, INDEX].all()
    towards = np.array(style.camera.eye) - trajectory.tcp[0, :3]
    trajectory.scene_obs[3:, 6:9] = trajectory.tcp[0, :3] + 0.15 * towards / np.linalg.norm(towards)
    covered = scene.render(trajectory, 0, 96, 1, style)
    assert covered["visible"][:3, INDEX].all() and not covered["visible"][3:, INDEX].any()
    np.testing.assert_array_equal(covered["keypoints"], free["keypoints"])


def test_keypoints_outside_the_picture_are_not_visible(scene):
    trajectory = _trajectory(start=(-0.1, -0.09, 0.55), end=(-2.0, -0.09, 0.55))
    result = scene.render(trajectory, 0, 64, 3, _style(scene))
    outside = ((result["keypoints"][..., :2] < 0) | (result["keypoints"][..., :2] >= 64)).any(axis=-1)
    assert outside.any() and not result["visible"][outside].any()


def test_speed_resamples_the_clip(scene):
    slow, fast = (scene.render(_trajectory(25), 0, 32, 5, dataclasses.replace(_style(scene), speed=speed))
                  for speed in (1.0, 2.0))  # fmt: skip
    assert len(slow["keypoints"]) == 25 and len(fast["keypoints"]) == 13
    assert fast["source_rows"][0] == 0 and fast["source_rows"][-1] == 24
    np.testing.assert_allclose(slow["keypoints"][::2], fast["keypoints"], atol=1.5)
    assert fast["image_steps"].tolist() == [0, 5, 10, 12]


def test_objects_and_lights_replay_as_recorded(scene):
    trajectory = _trajectory(start=(-0.3, -0.09, 0.6), end=(-0.3, -0.09, 0.6))
    trajectory.scene_obs[12:, 4] = 1
    style = _style(scene)
    result = scene.render(trajectory, 0, 200, 1, style)
    from arvrm.geometry import project

    matrices = camera_matrices(style.camera, 200)
    for step in (0, 23):
        u, v, _ = project(trajectory.scene_obs[step, 6:9], *matrices).astype(int)
        red, green, blue = result["images"][step, v, u].astype(int)
        assert min(red, blue) > 2 * green
    u, v, _ = project(np.array([0.30, 0.16, 0.67]), *matrices).astype(int)
    before, after = result["images"][5, v, u].astype(int), result["images"][20, v, u].astype(int)
    assert before[2] > 60 and after[2] < 20 < after[0]


def test_width_may_be_missing(scene):
    result = scene.render(dataclasses.replace(_trajectory(), width=None), 1, 32, 6)
    gap = np.linalg.norm(np.diff(result["keypoints"][:, [THUMB, INDEX], :2], axis=1)[:, 0], axis=-1)
    assert gap[0] > gap[-1]


def test_bad_trajectories_are_refused(scene):
    good = _trajectory()
    with pytest.raises(UserError, match=r"trajectory.scene_obs: shape \(3, 24\)"):
        scene.render(dataclasses.replace(good, scene_obs=np.zeros((3, 24))), 0)
    with pytest.raises(UserError, match="trajectory.tcp: not finite"):
        scene.render(dataclasses.replace(good, tcp=np.full((24, 6), np.nan)), 0)
    with pytest.raises(UserError, match="image_size"):
        scene.render(good, 0, image_size=0)


def test_skeleton_is_a_tree_from_the_wrist():
    assert PARENTS[0] == -1 and len(BONES) == 20
    for tip in TIPS:
        chain, point = [], tip
        while point > 0:
            chain.append(KEYPOINTS[point].split("_")[0])
            point = PARENTS[point]
        assert point == 0 and len(chain) == 4 and len(set(chain)) == 1


def test_normal_form_forgets_place_and_size_and_is_undone_exactly():
    rng = np.random.default_rng(0)
    hand = rng.uniform(0, 90, (4, 21, 3)) * [1, 1, 0.001]
    hand[..., 2] -= hand[:, :1, 2]
    normal = normalise(hand, 96, 128)
    np.testing.assert_allclose(denormalise(normal, 96, 128), hand, atol=1e-9)
    moved = hand * 0.5 + [10, 20, 0]
    np.testing.assert_allclose(normalise(moved, 96, 128).points, normal.points, atol=1e-9)
    np.testing.assert_allclose(normal.points[:, 0], 0)
