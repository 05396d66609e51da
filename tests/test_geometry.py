"""Rotations, actions and projection, against SciPy and PyBullet."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from arvrm import geometry
from arvrm.robots import calvin

RNG = np.random.default_rng(0)
EULER = RNG.uniform([-np.pi, -1.5, -np.pi], [np.pi, 1.5, np.pi], (200, 3))


def test_euler_angles_mean_what_scipy_and_pybullet_mean():
    import pybullet

    ours = geometry.euler_to_matrix(EULER)
    np.testing.assert_allclose(ours, Rotation.from_euler("xyz", EULER).as_matrix(), atol=1e-12)
    theirs = [pybullet.getMatrixFromQuaternion(pybullet.getQuaternionFromEuler(angles)) for angles in EULER]
    np.testing.assert_allclose(ours, np.reshape(theirs, (-1, 3, 3)), atol=1e-9)


def test_matrix_to_euler_inverts_euler_to_matrix():
    np.testing.assert_allclose(geometry.matrix_to_euler(geometry.euler_to_matrix(EULER)), EULER, atol=1e-9)


@pytest.mark.parametrize("pitch", [np.pi / 2, -np.pi / 2])
def test_gimbal_lock_keeps_the_rotation(pitch):
    matrix = geometry.euler_to_matrix([0.3, pitch, -0.8])
    np.testing.assert_allclose(geometry.euler_to_matrix(geometry.matrix_to_euler(matrix)), matrix, atol=1e-7)


def test_quaternions_agree_with_matrices_whatever_their_length():
    quaternions = geometry.euler_to_quaternion(EULER)
    matrices = geometry.quaternion_to_matrix(3 * quaternions)
    np.testing.assert_allclose(matrices, geometry.euler_to_matrix(EULER), atol=1e-9)


def test_rotation_angle_is_the_angle_turned():
    turned = geometry.euler_to_matrix([0.0, 0.0, 0.7]) @ geometry.euler_to_matrix(EULER)
    np.testing.assert_allclose(geometry.rotation_angle(turned, geometry.euler_to_matrix(EULER)), 0.7, atol=1e-6)


def test_angle_differences_wrap_across_pi():
    np.testing.assert_allclose(geometry.angle_difference(3.1, -3.1), 6.2 - 2 * np.pi)
    assert geometry.wrap_angle(np.pi) == -np.pi


def test_relative_action_leads_back_to_the_target_and_clips():
    pose = np.array([0.1, -0.2, 0.5, 3.12, 0.0, 1.5])
    target = pose + [0.01, -0.02, 0.004, 0.03, -0.02, 0.05]
    target[3] -= 2 * np.pi
    action = calvin.relative_action(pose, target, 1)
    moved = calvin.apply_relative_action(pose, action)
    np.testing.assert_allclose(geometry.angle_difference(moved[3:], target[3:]), 0, atol=1e-12)
    np.testing.assert_allclose(moved[:3], target[:3], atol=1e-12)
    far = calvin.relative_action(pose, pose + 1.0, -1)
    np.testing.assert_array_equal(far, [1, 1, 1, 1, 1, 1, -1])


def test_projection_agrees_with_pybullets_matrices():
    import pybullet

    eye, target, up, fov, near, far, size = (2.0, -1.5, 1.7), (0.1, 0.0, 0.4), (0.1, 0.2, 1.0), 30.0, 0.1, 10.0, 160
    points = RNG.uniform(-0.5, 0.5, (50, 3)) + target
    view = np.reshape(pybullet.computeViewMatrix(eye, target, up), (4, 4)).T
    projection = np.reshape(pybullet.computeProjectionMatrixFOV(fov, 1, near, far), (4, 4)).T
    clip = np.c_[points, np.ones(50)] @ (projection @ view).T
    pixels = (clip[:, :2] / clip[:, 3:] * [1, -1] + 1) / 2 * size
    ours = geometry.project(points, geometry.look_at(eye, target, up), geometry.intrinsics(fov, size, size))
    np.testing.assert_allclose(ours[:, :2], pixels, atol=1e-3)
    np.testing.assert_allclose(ours[:, 2], clip[:, 3], atol=1e-5)


def test_unproject_inverts_project():
    place, camera = geometry.look_at((1, -2, 1.5), (0, 0, 0.4), (0, 0, 1)), geometry.intrinsics(50, 120, 90)
    points = RNG.uniform(-0.3, 0.3, (4, 5, 3))
    pixels = geometry.project(points, place, camera)
    np.testing.assert_allclose(geometry.unproject(pixels, place, camera), points, atol=1e-12)
