"""What a robot says of itself: CALVIN's, and how robots are found by name."""

import dataclasses
import math

import numpy as np
import pytest

from arvrm import robots
from arvrm.interface import Camera, UserError
from arvrm.robots.calvin import CALVIN, EULER_STEP_RAD, POSITION_STEP_M
from arvrm.robots.vector import Ranges, VectorRobot

DOWN = np.array([0.03, -0.23, 0.57, math.pi, 0.0, math.pi / 2, 0.08, *[0.0] * 7, 1.0])


def test_components_do_not_jump_where_the_roll_wraps():
    before, after = DOWN.copy(), DOWN.copy()
    before[3], after[3] = math.pi - 0.01, -math.pi + 0.01
    assert np.abs(
        CALVIN.encode_components({"robot_obs": before}) - CALVIN.encode_components({"robot_obs": after})
    ).max() == pytest.approx(0.04, abs=1e-5)


def test_components_are_of_order_one_over_the_workspace_and_decode_to_what_was_encoded():
    rng = np.random.default_rng(0)
    low = [-0.25, -0.3, 0.36, math.pi - 0.5, -0.5, 0.0, 0.0]
    high = [0.3, 0.1, 0.65, math.pi + 0.5, 0.5, 3.0, 0.08]
    obs = np.concatenate([rng.uniform(low, high, (50, 7)), np.zeros((50, 8))], axis=1)
    encoded = CALVIN.encode_components({"robot_obs": obs})
    assert encoded.shape == (50, 7) and np.abs(encoded).max() < 1.5
    difference = CALVIN.decode_components(encoded) - obs[:, :7]
    difference[:, 3:6] = (difference[:, 3:6] + math.pi) % (2 * math.pi) - math.pi
    assert np.abs(difference).max() < 1e-6


def test_state_holds_the_lag_of_the_target_in_action_steps():
    target = DOWN[:6].copy()
    target[0] += 2 * POSITION_STEP_M
    target[3] = -math.pi + EULER_STEP_RAD
    state = CALVIN.encode_state({"robot_obs": DOWN, "target_pose": target})
    assert state.shape == (CALVIN.state_size,) and state.dtype == np.float32
    assert state[12:] == pytest.approx([2, 0, 0, 1, 0, 0], abs=1e-4)
    assert CALVIN.encode_state({"robot_obs": DOWN})[12:].tolist() == [0] * 6
    closed = DOWN.copy()
    closed[14] = -1.0
    assert CALVIN.encode_state({"robot_obs": DOWN})[10:12].tolist() == [1, 0] and CALVIN.encode_state(
        {"robot_obs": closed}
    )[10:12].tolist() == [0, 1]


def test_states_of_many_steps_are_encoded_as_one_by_one():
    obs = np.stack([DOWN, DOWN + 0.01])
    many = CALVIN.encode_state({"robot_obs": obs, "target_pose": obs[:, :6] + 0.01})
    assert np.array_equal(many[1], CALVIN.encode_state({"robot_obs": obs[1], "target_pose": obs[1, :6] + 0.01}))


def test_layouts_agree_with_each_other():
    assert len(CALVIN.components) == len(CALVIN.component_units) == 7
    assert CALVIN.actions.size == len(CALVIN.actions.units) == CALVIN.arrays["actions"].shape[0]
    assert all(CALVIN.arrays[name].shape == shape for name, shape in CALVIN.observed.items())
    assert CALVIN.cameras[0].role == "static" and len({camera.role for camera in CALVIN.cameras}) == 2


def test_actions_are_checked_by_row_and_column():
    good = np.zeros((3, 7), dtype=np.float32)
    good[:, 6] = 1.0
    CALVIN.check_actions("actions", good)
    for (row, column), value, words in (
        ((1, 2), 1.5, r"actions\[1, 2\] is 1.5; .*do not clip"),
        ((2, 6), 0.5, "exactly -1 or 1"),
    ):
        bad = good.copy()
        bad[row, column] = value
        with pytest.raises(UserError, match=words):
            CALVIN.check_actions("actions", bad)


def test_a_random_action_can_be_executed():
    actions = np.stack([CALVIN.random_action(np.random.default_rng(seed)) for seed in range(20)])
    CALVIN.check_actions("actions", actions)
    assert np.array_equal(CALVIN.decode_actions(CALVIN.encode_actions(actions)), actions)


def test_statistics_change_what_is_encoded():
    other = CALVIN.with_statistics({"gripper_open_m": 0.16})
    state = {"robot_obs": DOWN}
    assert CALVIN.encode_components(state)[6] == pytest.approx(1.0) and other.encode_components(state)[6] == 0.0
    with pytest.raises(UserError, match="gripper_open_n.*did you mean 'gripper_open_m'"):
        CALVIN.with_statistics({"gripper_open_n": 0.1})


def test_a_file_names_a_robot_but_can_import_nothing(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.chdir(tmp_path)
    assert robots.named("calvin") is CALVIN
    with pytest.raises(UserError, match="unknown robot 'calvim'; did you mean 'calvin'"):
        robots.named("calvim")
    with pytest.raises(UserError, match="unknown robot"):
        robots.named("mine:ROBOT")


def test_a_user_names_a_robot_by_its_module(tmp_path, monkeypatch):
    (tmp_path / "my_robots.py").write_text(
        "import dataclasses\nfrom arvrm.robots import CALVIN\nARM = dataclasses.replace(CALVIN, name='arm')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(robots, "_KNOWN", dict(robots._KNOWN))
    found = robots.chosen("my_robots:ARM")
    assert found.name == "arm" and robots.named("arm") is found
    for name, words in (
        ("my_robots:LEG", "has no 'LEG'"),
        ("nowhere:ARM", "cannot be imported"),
        ("calvim", "did you"),
    ):
        with pytest.raises(UserError, match=words):
            robots.chosen(name)


ARM = VectorRobot(
    name="arm",
    components=("shoulder", "elbow", "grip"),
    component_units=("rad", "rad", "mm"),
    statistics=Ranges(low=(-1.0, 0.0, 0.0), high=(1.0, 2.0, 50.0)),
    cameras=(Camera("front", "static"), Camera("wrist", "wrist")),
    binary=1,
)


def test_a_vector_robot_normalises_by_its_ranges_and_back():
    states = np.array([[-1.0, 0.0, 0.0], [1.0, 2.0, 50.0], [0.0, 0.5, 10.0]])
    encoded = ARM.encode_components({"state": states})
    np.testing.assert_allclose(encoded, [[-1, -1, -1], [1, 1, 1], [0, -0.5, -0.6]], atol=1e-6)
    np.testing.assert_allclose(ARM.decode_components(encoded), states, atol=1e-5)
    actions = np.array([[0.5, 1.5, -1.0], [-0.5, 2.0, 1.0]], dtype=np.float32)
    learnt = ARM.encode_actions(actions)
    np.testing.assert_allclose(learnt, [[0.5, 0.5, -1], [-0.5, 1.0, 1]], atol=1e-6)
    np.testing.assert_allclose(ARM.decode_actions(learnt), actions, atol=1e-6)
    ARM.check_actions("actions", actions)
    ARM.check_actions("actions", np.stack([ARM.random_action(np.random.default_rng(seed)) for seed in range(20)]))


def test_a_vector_robot_refuses_what_it_cannot_do():
    wrong = (([3.0, 1.0, 1.0], r"\[0, 0\] \(shoulder\) is 3; .*-1 and 1 rad"), ([0.0, 1.0, 0.0], "exactly -1"))
    for action, words in wrong:
        with pytest.raises(UserError, match=words):
            ARM.check_actions("actions", np.array([action], dtype=np.float32))
    with pytest.raises(UserError, match="needs? as many units and ranges"):
        ARM.with_statistics({"low": [0.0], "high": [1.0]})
    with pytest.raises(UserError, match="each low must be below its high"):
        ARM.with_statistics({"low": [0.0, 0.0, 1.0], "high": [1.0, 1.0, 1.0]})
    with pytest.raises(ValueError, match="the first is 'static'"):
        dataclasses.replace(ARM, cameras=(Camera("wrist", "wrist"),))
