"""Somebody's policy behind a socket: what it is sent, what its answers mean, and what its failures cost."""

import dataclasses
import itertools
import json
import socket

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from sockets import FORWARD, somebodys
from test_evaluation import SmallWorld

from arvrm.config import from_dict
from arvrm.evaluation import EvaluateConfig, Job, evaluate
from arvrm.geometry import euler_to_matrix
from arvrm.interface import Observation, PlanFailed, PlanRequest, UserError
from arvrm.remote import Codec, Conventions, MessageError, RemotePolicy, ask_who, load_conventions, packed
from arvrm.remote.conventions import ActionConvention, CameraConvention, GripperConvention
from arvrm.remote.rotations import SIZES
from arvrm.results import load_results
from arvrm.robots import CALVIN

ACTION = {
    "key": "actions", "motion": "delta", "rotation": "euler_xyz", "position_unit": 0.02, "rotation_unit": 0.05,
    "gripper": {"open": 1, "close": -1}, "relative_to": "target", "frame": "world", "composed": "added",
    "beyond": "refuse",
}  # fmt: skip
FILE = {
    "name": "theirs", "protocol": "openpi", "robot": "calvin", "prompt": "prompt",
    "cameras": {"rgb_static": {"key": "observation/image", "size": 8}},
    "state": {"observation/state": ["position", "axis_angle", "gripper_opening", "zeros[1]"]},
    "action": ACTION, "steps_per_answer": 4, "constants": {"unnorm_key": "calvin"},
}  # fmt: skip


def conventions(**action):
    return from_dict(Conventions, FILE | {"action": {k: v for k, v in (ACTION | action).items() if v is not None}})


def observation(seed=0):
    rng = np.random.default_rng(seed)
    robot_obs = np.zeros(15)
    robot_obs[:7] = 0.1, -0.2, 0.5, 3.1, -0.02, 1.5, 0.06
    robot_obs[14] = -1
    images = {name: rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for name in ("rgb_static", "rgb_gripper")}
    return Observation({"robot_obs": robot_obs, "target_pose": robot_obs[:6] + rng.normal(0, 0.01, 6)}, images)


def rolled_out(tmp_path, address, sayings, file=FILE, **settings):
    (tmp_path / "theirs.json").write_text(json.dumps(file))
    jobs = [Job(10 + n, ("open_drawer",), (words,), 0.0) for n, words in enumerate(sayings)]
    given = {"policy": address, "conventions": str(tmp_path / "theirs.json"), "workers": 2, "max_steps": 24}
    given |= {"output": str(tmp_path / "results.json"), "answer_seconds": 1.0, "overwrite": True}
    config = from_dict(EvaluateConfig, given | settings)
    return load_results(evaluate(None, config, make_world=SmallWorld, jobs=jobs))


def test_a_server_that_fails_costs_its_own_chain_and_says_why(tmp_path):
    reasons = {
        "late": "no answer within 1 s",
        "nan": "NaN or infinity in actions",
        "shape": r"shape (4, 5), expected (at least 4, 7)",
        "short": r"shape (2, 7), expected (at least 4, 7)",
        "text": "no array of numbers",
        "nothing": "shape",
        "far": "relative actions lie in [-1, 1]",
        "refuse": "the server says: ValueError: no such key",
        "garbage": "no msgpack",
        "break": "the connection broke",
    }
    with somebodys() as (address, sessions):
        results = rolled_out(tmp_path, address, ["go on", *reasons, "go on too"])
    first, *failed, last = results["chains"]
    for chain in (first, last):
        assert chain["completed"] == 1 and not chain.get("crashed") and chain["steps"] == [10]
    assert results["crashed"] == len(reasons)
    for chain, (words, said) in zip(failed, reasons.items(), strict=True):
        assert chain["completed"] == 0 and chain["crashed"].startswith(f"policy: {address}: "), chain
        assert said in chain["crashed"], words
    assert len(sessions) == 1 + 2 + len(reasons)  # one to ask who is there, one a chain
    heard = next(session for session in sessions if session and session[0]["prompt"] == "go on")
    assert len(heard) == 3 and heard[0]["unnorm_key"] == "calvin"
    assert heard[0]["observation/image"].shape == (8, 8, 3) and heard[0]["observation/state"].dtype == np.float32


def test_what_a_run_assumed_stands_in_its_results_and_no_other_run_goes_on_with_it(tmp_path):
    with somebodys() as (address, _):
        results = rolled_out(tmp_path, address, ["go on"])
        said = results["policy_identity"]["conventions"]
        assert said["action"] == ACTION | {"gripper": {"open": 1.0, "close": -1.0, "threshold": None}}
        assert said["cameras"]["rgb_static"]["colours"] == "rgb" and said["state_type"] == "float32"
        other = FILE | {"action": ACTION | {"gripper": {"open": -1, "close": 1}}}
        with pytest.raises(UserError, match="begun with identity"):
            rolled_out(tmp_path, address, ["go on"], other, overwrite=False, resume=True)


def test_a_server_that_is_gone_stops_the_run_after_a_few_chains(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"ws://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UserError, match="no answer within 0.3 s; is a server there that speaks openpi"):
        rolled_out(tmp_path, address, ["go on"], answer_seconds=0.3)
    with somebodys(lambda message: b"") as (address, _):
        (tmp_path / "theirs.json").write_text(json.dumps(FILE))
        policy = RemotePolicy(ask_who(address, str(tmp_path / "theirs.json"), 5), 0.3)
    for rollout in (1, 2):
        (answer,) = policy.plan([PlanRequest("go on", (observation(),), rollout, 0)])
        assert isinstance(answer, PlanFailed) and "nobody there within 0.3 s" in str(answer)
    with pytest.raises(UserError, match="nobody there for 3 chains.*--resume"):
        policy.plan([PlanRequest("go on", (observation(),), 3, 0)])


def test_a_server_that_does_not_say_what_it_wants_needs_a_file(tmp_path):
    with somebodys() as (address, _):
        config = EvaluateConfig(policy=address, output=str(tmp_path / "r.json"), answer_seconds=5)
        with pytest.raises(UserError, match="does not say what it wants; pass --conventions FILE"):
            evaluate(None, config, make_world=SmallWorld, jobs=[])
    with pytest.raises(ValueError, match="are for a server"):
        EvaluateConfig(policy="expert", conventions="theirs.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"action": {"key": "actions", "motion": "delta"}}, "action.rotation is missing; say it, nothing is assumed"),
        ({"action": {**ACTION, "beyond": None}}, "action.beyond is missing"),
        ({"action": {"key": "a", "motion": "native", "rotation": "euler_xyz"}}, "belongs to other motions"),
        ({"action": {**ACTION, "gripper": {"open": 1, "close": 1}}}, "they differ"),
        ({"action": {**ACTION, "rotation": "euler_zyx"}}, "did you mean 'euler_xyz'"),
        ({"action": {**ACTION, "rotation": "axis_angle"}}, "which Euler angles in the world frame alone can be"),
        ({"robot": "kalvin"}, "did you mean 'calvin'"),
        ({"cameras": {"rgb_statik": {"key": "x"}}}, "calvin has rgb_static, rgb_gripper"),
        ({"cameras": {"rgb_static": {"key": "x", "size": 10**9}}}, "size is 1000000000; give at most"),
        ({"state": {"s": ["positon"]}}, "did you mean 'position'"),
        ({"state": {"s": ["robot_obs[3:99]"]}}, "outside of robot_obs"),
        ({"promt": "x"}, "did you mean 'prompt'"),
        ({"steps_per_answer": None}, "steps_per_answer is missing"),
    ],
)
def test_conventions_that_leave_something_open_or_wrong_are_refused(tmp_path, change, said):
    file = {**FILE, **change}
    with somebodys() as (address, _), pytest.raises(UserError) as error:
        rolled_out(tmp_path, address, ["go on"], file)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_arvrm_knows_by_name_is_whole():
    for name in ("openpi-calvin", "vla-eval-calvin"):
        Codec(load_conventions(name), CALVIN, {"rgb_static": 64, "rgb_gripper": 64})
    with pytest.raises(UserError, match="did you mean 'openpi-calvin'"):
        load_conventions("openpi_calvin")


def every_action():
    for motion, rotation in itertools.product(("delta", "absolute"), SIZES):
        if motion == "absolute":
            yield conventions(
                motion=motion, rotation=rotation, rotation_unit=None, relative_to=None, frame=None, composed=None
            )
            continue
        for relative_to, frame in itertools.product(("target", "measured", "plan"), ("world", "tool")):
            unit = 0.5 if rotation in ("euler_xyz", "axis_angle") else 1.0
            more = {"rotation": rotation, "rotation_unit": unit, "relative_to": relative_to, "frame": frame}
            yield conventions(**more, composed="multiplied")
            if rotation == "euler_xyz" and frame == "world":
                yield conventions(**more, composed="added")


def spelled(agreed):
    action = agreed.action
    return "-".join(filter(None, (action.motion, action.rotation, action.relative_to, action.frame, action.composed)))


@pytest.mark.parametrize("agreed", list(every_action()), ids=spelled)
def test_every_convention_gives_the_robot_back_its_own_actions(agreed):
    codec, seen, rng = Codec(agreed, CALVIN, {"rgb_static": 8}), observation(), np.random.default_rng(1)
    count = 1 if agreed.action.relative_to == "measured" else 5
    actions = np.array([CALVIN.random_action(rng) for _ in range(count)])
    sent = codec.actions_sent(actions, seen)
    assert sent.shape == (count, 3 + SIZES[agreed.action.rotation] + 1)
    assert np.array_equal(codec.actions_received(sent, seen, count), actions)


def test_absolute_poses_become_steps_from_one_target_to_the_next():
    absolute = conventions(
        motion="absolute", rotation="axis_angle", position_unit=1.0, rotation_unit=None, relative_to=None, frame=None,
        composed=None, beyond="clip",
    )  # fmt: skip
    codec, seen = Codec(absolute, CALVIN, {"rgb_static": 8}), observation()
    target = seen.state["target_pose"]
    turn = Rotation.from_matrix(euler_to_matrix(target[3:])).as_rotvec()
    rows = np.array([[*target[:3] + (0.01, 0, 0), *turn, 1], [*target[:3] + (0.11, 0, 0), *turn, -1]])
    got = codec.actions_received(rows, seen, 2)
    assert np.allclose(got[0], [0.5, 0, 0, 0, 0, 0, 1], atol=1e-6)
    assert np.allclose(got[1], [1.0, 0, 0, 0, 0, 0, -1], atol=1e-6)  # clipped: 0.1 m is five steps


def test_a_gripper_s_sign_and_range_are_as_declared():
    for opened, closed, numbers in ((1, -1, (0.3, -0.2)), (-1, 1, (-0.3, 0.2)), (0, 1, (0.4, 0.6)), (1, 0, (0.9, 0.1))):
        codec = Codec(conventions(gripper={"open": opened, "close": closed}), CALVIN, {"rgb_static": 8})
        rows = np.zeros((2, 7))
        rows[:, -1] = numbers
        assert codec.actions_received(rows, observation(), 2)[:, -1].tolist() == [1.0, -1.0]
    late = GripperConvention(1.0, 0.0, threshold=0.8)
    assert late.middle == 0.8


@pytest.mark.parametrize(
    "how",
    [
        CameraConvention("image", 8, colours="bgr"),
        CameraConvention("image", 8, layout="chw", values="0..1"),
        CameraConvention("image", 8, values="-1..1", turned=180),
        CameraConvention(("images", "static"), 8),
    ],
)
def test_an_image_arrives_as_it_was(how):
    agreed = dataclasses.replace(conventions(), cameras={"rgb_static": how}, constants={})
    codec, seen = Codec(agreed, CALVIN, {"rgb_static": 8}), observation()
    words, got = codec.observation(codec.message(seen, "open the drawer"))
    assert words == "open the drawer"
    assert np.array_equal(got.images["rgb_static"], seen.images["rgb_static"])
    assert np.allclose(got.state["robot_obs"][:7], seen.state["robot_obs"][:7], atol=1e-6)
    assert np.isnan(got.state["robot_obs"][7:]).all() and np.isnan(got.state["target_pose"]).all()


def test_an_image_of_another_size_is_resized_as_the_file_says():
    agreed = dataclasses.replace(conventions(), cameras={"rgb_static": CameraConvention("image", 16, rendered=8)})
    message = Codec(agreed, CALVIN, {"rgb_static": 8}).message(observation(), "go")
    assert message["image"].shape == (16, 16, 3)
    with pytest.raises(MessageError, match=r"image: \(8, 8, 3\) uint8, expected \(16, 16, 3\)"):
        Codec(agreed, CALVIN, {"rgb_static": 8}).observation(message | {"image": np.zeros((8, 8, 3), np.uint8)})


def test_native_actions_are_taken_as_they_are():
    agreed = dataclasses.replace(conventions(), action=ActionConvention("actions", "native"))
    codec = Codec(agreed, CALVIN, {"rgb_static": 8})
    assert np.array_equal(codec.actions_received(FORWARD, observation(), 4), FORWARD.astype(np.float32))
    assert packed({"actions": codec.actions_sent(FORWARD, observation())})
