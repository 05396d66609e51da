"""Parity with the official simulator, on its recordings."""

import json

import numpy as np
import pytest
from PIL import Image

from arvrm.interface import UserError
from arvrm.sim.verify import main_verify, verify_recording

SAMPLE = (
    "A_random_11", "B_random_12", "C_random_11", "D_random_12", "D_stack_block_100", "D_unstack_block_101",
    "D_place_in_drawer_101", "D_place_in_slider_101", "D_push_into_drawer_100", "D_rotate_red_block_left_100",
    "D_lift_pink_block_drawer_100", "D_move_slider_left_101", "D_turn_off_led_100", "D_turn_on_lightbulb_100",
)  # fmt: skip
ZERO = {"robot_error": 0.0, "scene_error": 0.0, "fired_equal": True, "tasks_equal": True}


def check(path, calvin_root):
    result = verify_recording(path, str(calvin_root))
    pictures = (0.0, 0.0) if "random" in path.name else (None, None)
    assert result == {"file": str(path), **ZERO, "rgb_error": pictures[0], "depth_error": pictures[1]}


@pytest.mark.parametrize("name", SAMPLE)
def test_recordings_are_reproduced_to_the_bit(name, golden, calvin_root):
    check(golden / "trajectories" / f"{name}.npz", calvin_root)


@pytest.mark.slow
def test_all_recordings_are_reproduced_to_the_bit(golden, calvin_root):
    files = sorted((golden / "trajectories").glob("*.npz"))
    assert len(files) > 100
    for file in files:
        check(file, calvin_root)


@pytest.fixture
def tampered(golden, calvin_root, tmp_path):
    """A copy of a recording with one number, one pixel and both decisions changed."""
    name = "D_random_11"
    with np.load(golden / "trajectories" / f"{name}.npz") as file:
        record = dict(file)
    record["robot_obs"][20, 1] += 1e-6
    record["scene_obs"][30, 11] += 2 * np.pi  # the same angle: no error
    record["depth_gripper"][3, 4] += 0.5
    record["task"], record["fired_at"], record["tasks_done"] = "open_drawer", 7, np.array(["open_drawer"])
    np.savez(tmp_path / f"{name}.npz", **record)
    for camera in ("static", "gripper"):
        picture = np.array(Image.open(golden / "trajectories" / f"{name}_{camera}.png").convert("RGB"))
        picture[0, 0, 0] ^= 16
        Image.fromarray(picture).save(tmp_path / f"{name}_{camera}.png")
    return tmp_path / f"{name}.npz"


def test_differences_are_measured_and_angles_wrap(tampered, calvin_root):
    result = verify_recording(tampered, str(calvin_root))
    assert result["robot_error"] == pytest.approx(1e-6, rel=1e-3)
    assert result["scene_error"] < 1e-12
    assert result["rgb_error"] == 16
    assert result["depth_error"] == pytest.approx(0.5, rel=1e-3)
    assert not result["fired_equal"] and not result["tasks_equal"]


def test_the_command_prints_json_and_fails_on_differences(tampered, golden, calvin_root, capsys):
    good = golden / "trajectories" / "D_turn_off_led_100.npz"
    assert main_verify([good], as_json=True, calvin_root=str(calvin_root)) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"file": str(good), **ZERO, "rgb_error": None, "depth_error": None}
    ]
    assert main_verify([good, tampered], as_json=True, calvin_root=str(calvin_root)) == 1
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert main_verify([good, tampered], calvin_root=str(calvin_root)) == 1
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 4 and "OTHER" in table[2] and table[3].startswith("1 of 2")


def test_only_what_was_recorded_is_compared(golden, calvin_root, tmp_path, capsys):
    with np.load(golden / "trajectories" / "A_random_11.npz") as file:
        record = dict(file)
    needed = ("scene", "reset_robot_obs", "reset_scene_obs", "actions", "robot_obs", "scene_obs")
    path = tmp_path / "no task, no.pictures.v2.npz"  # its name says nothing
    np.savez(path, **{key: record[key] for key in needed})
    none = dict.fromkeys(("rgb_error", "depth_error", "fired_equal", "tasks_equal"))
    bare = {"file": str(path), **ZERO, **none}
    assert verify_recording(path, str(calvin_root)) == bare
    assert main_verify([path], calvin_root=str(calvin_root)) == 0
    assert "OTHER" not in capsys.readouterr().out
    np.savez(path, **record)
    picture = golden / "trajectories" / "A_random_11_gripper.png"
    (tmp_path / f"{path.stem}_gripper.png").write_bytes(picture.read_bytes())  # the static camera's is missing
    assert verify_recording(path, str(calvin_root)) == {"file": str(path), **ZERO, "rgb_error": 0.0, "depth_error": 0.0}


def test_what_is_no_recording_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no recording")
    np.savez(tmp_path / "other.npz", actions=np.zeros((3, 7)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:150])
    problems = {"text": "text.npz", "other": "no 'scene'", "cut": "cut.npz", "none": "no such recording"}
    for name, words in problems.items():
        with pytest.raises(UserError, match=words) as error:
            verify_recording(tmp_path / f"{name}.npz")
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no recordings given"):
        main_verify([])
