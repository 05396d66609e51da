"""`arvrm sim doctor`: what it says of machines, demonstrations and policies whose conventions are mixed up."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from test_remote import FILE

from arvrm import cli
from arvrm.doctor import DoctorConfig, as_page, examine, reference
from arvrm.doctor.demonstrations import examine_demonstrations, load_demonstrations
from arvrm.doctor.machine import examine_machine
from arvrm.doctor.replay import examine_policy
from arvrm.episodes import EpisodeStore, EpisodeWriter
from arvrm.geometry import euler_to_matrix
from arvrm.interface import PolicySpec, UserError
from arvrm.robots.calvin import apply_relative_action
from arvrm.sources.playtable import GenerateConfig, generate


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Four tasks of the scripted expert, with all axes, turns and both gripper commands."""
    path = tmp_path_factory.mktemp("doctor") / "store"
    tasks = ("lift_red_block_table", "rotate_blue_block_left", "open_drawer", "turn_on_lightbulb")
    generate(GenerateConfig(str(path), "robot", scenes=("D",), episodes=4, tasks=tasks, image_stride=3))
    return path


class Replay:
    """Answers what the demonstration did, in a convention of its own, and not exactly."""

    def __init__(self, store, distort=lambda wanted, pose: wanted, noise=0.1, images=(), steps=3, seen=None):
        self.spec = PolicySpec(
            "calvin", {name: 48 for name in images}, history_offsets=(-3, 0), execute_steps=steps, batch=4
        )
        self.distort, self.seen, self.known = distort, seen, {}
        rng = np.random.default_rng(0)
        opened = EpisodeStore(store)
        for id in opened.ids:
            arrays = opened.arrays(id, ("robot_obs", "target_pose", "actions"))
            noisy = arrays["actions"].astype(np.float64)
            noisy[:, :6] = np.clip(noisy[:, :6] + rng.normal(scale=noise, size=noisy[:, :6].shape), -1, 1)
            for step, robot_obs in enumerate(arrays["robot_obs"]):
                rows = slice(step, step + steps)
                chunk = self.distort(noisy[rows], arrays["target_pose"][rows])
                missing = steps - len(chunk)
                self.known[robot_obs.tobytes()] = np.concatenate([chunk, np.repeat(chunk[-1:], missing, 0)])

    def plan(self, requests):
        answers = [self.known[request.history[-1].state["robot_obs"].tobytes()] for request in requests]
        if self.seen is not None:
            answers = [self.seen(answer.copy(), request) for answer, request in zip(answers, requests, strict=True)]
        return [answer.astype(np.float32) for answer in answers]


def found(policy, store):
    """Findings by what they are about; of several the first that is wrong."""
    findings = list(examine_policy(policy, load_demonstrations(str(store), 4)))
    return {f.about: f for f in sorted(findings, key=lambda finding: finding.status == "wrong")}


def arm(change):
    """A distortion of the first six numbers; change(motion (n, 6), pose (n, 6)) -> (n, 6)."""
    return lambda wanted, pose: np.concatenate([change(wanted[:, :6], pose), wanted[:, 6:]], axis=1)


def gripper(change):
    return lambda wanted, pose: np.concatenate([wanted[:, :6], change(wanted[:, 6:])], axis=1)


def turned(motion, pose, own, unit):
    before, after = euler_to_matrix(pose[:, 3:]), euler_to_matrix(pose[:, 3:] + 0.05 * motion[:, 3:])
    back = np.swapaxes(before, 1, 2)
    vectors = Rotation.from_matrix(back @ after if own else after @ back).as_rotvec()
    return np.concatenate([motion[:, :3], vectors / unit], axis=1)


def in_gripper_frame(motion, pose):
    return np.concatenate([np.einsum("nji,nj->ni", euler_to_matrix(pose[:, 3:]), motion[:, :3]), motion[:, 3:]], axis=1)


def test_policy_that_acts_as_the_demonstrations_do_is_well(store):
    said = found(Replay(store), store)
    assert {said[about].status for about in ("position", "rotation", "gripper", "repeatable")} == {"good"}


def test_weak_policy_is_not_called_wrong(store):
    rng = np.random.default_rng(1)
    weak = arm(lambda motion, pose: np.clip(0.5 * motion + rng.normal(scale=0.2, size=motion.shape), -1, 1))
    said = found(Replay(store, weak), store)
    assert said["position"].status == "good" and "wrong" not in {finding.status for finding in said.values()}


@pytest.mark.parametrize(
    ("about", "distort", "words"),
    [
        ("position", arm(lambda m, pose: apply_relative_action(pose, m)), "absolute positions in m"),
        ("rotation", arm(lambda m, pose: apply_relative_action(pose, m)), "absolute Euler angles"),
        ("position", arm(lambda m, pose: m * np.repeat([0.02, 1], 3)), "multiply by 50"),
        ("rotation", arm(lambda m, pose: m * np.repeat([1, 0.05], 3)), "multiply by 20"),
        ("rotation", arm(lambda m, pose: m * np.repeat([1, np.rad2deg(0.05)], 3)), "in degrees"),
        ("position", arm(in_gripper_frame), "in the gripper's frame"),
        ("position", arm(lambda m, pose: np.clip(50 * m, -1, 1)), "clipped twice"),
        ("position", arm(lambda m, pose: m[:, [1, 0, 2, 3, 4, 5]]), "(y, x, z) in place of (x, y, z)"),
        ("position", arm(lambda m, pose: m * [-1, 1, 1, 1, 1, 1]), "(-x, y, z)"),
        ("rotation", arm(lambda m, pose: turned(m, pose, own=False, unit=1.0)), "axis-angle) in the world's frame"),
        ("rotation", arm(lambda m, pose: turned(m, pose, own=True, unit=0.05)), "axis-angle) in the gripper's frame"),
        ("position", arm(lambda m, pose: 0 * m), "the same at every step"),
        ("position", arm(lambda m, pose: np.random.default_rng(len(m)).uniform(-1, 1, m.shape)), "unlike"),
        ("gripper", gripper(lambda g: -g), "reversed"),
        ("gripper", gripper(lambda g: (g + 1) / 2), "0 and 1, CALVIN's -1 (close) and 1 (open); 1 opens"),
        ("gripper", gripper(lambda g: (1 - g) / 2), "1 closes, the reverse"),
        ("gripper", gripper(lambda g: 0.7 * g), "exactly -1 or 1"),
        ("gripper", gripper(lambda g: np.ones_like(g)), "keep it open"),
        ("shape", lambda wanted, pose: np.concatenate([wanted, wanted[:, :1]], axis=1), "quaternion"),
        ("shape", arm(lambda m, pose: np.nan * m), "NaN"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mixed_up_convention_is_named(store, about, distort, words):
    finding = found(Replay(store, distort), store)[about]
    assert finding.status == "wrong" and words in finding.text, finding


def test_what_evaluate_would_refuse_is_said(store):
    said = found(Replay(store, arm(lambda motion, pose: 3 * motion)), store)
    assert said["refused"].status == "wrong" and "relative actions lie in [-1, 1]" in said["refused"].text


@pytest.mark.parametrize(
    ("words", "right"),
    [
        ("BGR", lambda image, shown: np.array_equal(image, shown[:, :, ::-1])),
        ("upside down", lambda image, shown: np.array_equal(image, shown[::-1, ::-1])),
        ("mirrored", lambda image, shown: np.array_equal(image, shown[:, ::-1])),
    ],
)
def test_images_given_otherwise_than_trained_are_named(store, words, right):
    """A policy that finds its way only if images are as it knows them: keyed by what the plain request showed."""
    shown = {}

    def seen(answer, request):
        image = request.history[-1].images["rgb_static"]
        first = shown.setdefault((request.rollout % 10_000, request.step), image.copy())
        return answer if right(image, first) else 0.2 * answer

    finding = found(Replay(store, images=("rgb_static",), seen=seen), store)["images"]
    assert finding.status == "wrong" and words in finding.text


def test_policy_that_looks_at_nothing_is_noted(store):
    said = found(Replay(store, images=("rgb_static", "rgb_gripper")), store)
    assert said["images"].status == "note" and "whatever the images show" in said["images"].text
    assert said["words"].status == "note" and said["image sizes"].status == "note"
    assert "rgb_static 48 (stored 96 x 96" in said["image sizes"].text


def test_wrong_image_size_is_a_failure_with_the_policy_s_own_words(store):
    def seen(answer, request):
        if (shape := request.history[-1].images["rgb_gripper"].shape) != (84, 84, 3):
            raise ValueError(f"expected an image of (84, 84, 3), got {shape}")
        return answer

    said = found(Replay(store, images=("rgb_gripper",), seen=seen), store)
    assert said["failures"].status == "wrong" and "expected an image of (84, 84, 3)" in said["failures"].text
    swapped = Replay(store)
    swapped.spec = PolicySpec("calvin", {"rgb_static": 84, "rgb_gripper": 200})
    assert "swapped" in found(swapped, store)["image sizes"].text


def test_policy_of_another_robot_and_store_without_a_robot_are_refused(store, tmp_path):
    other = Replay(store)
    other.spec = PolicySpec("my-arm")
    with pytest.raises(UserError, match="my-arm"):
        found(other, store)
    with EpisodeWriter(tmp_path / "empty", {}) as writer:
        assert writer is not None
    with pytest.raises(UserError, match="holds"):
        load_demonstrations(str(tmp_path / "empty"), 3)
    with pytest.raises(UserError, match="--store"):
        DoctorConfig(policy="a:b")
    with pytest.raises(UserError, match="acts inside"):
        DoctorConfig(policy="expert", store=str(store))


def copied(store, path, change):
    """A store whose arrays are changed: an importer's mistake."""
    opened = EpisodeStore(store)
    with EpisodeWriter(path, {}) as writer:
        for id in opened.ids:
            episode = opened.episode(id)
            change(episode.arrays)
            writer.append(episode)
    return {f.about: f for f in examine_demonstrations(str(path), load_demonstrations(str(path), 4))}


def test_demonstrations_are_held_against_what_the_robot_did(store, tmp_path):
    plain = {f.about: f for f in examine_demonstrations(str(store), load_demonstrations(str(store), 4))}
    assert plain["arm"].status == plain["gripper"].status == "good"

    def reversed_gripper(arrays):
        for name in ("actions", "executed"):
            arrays[name][:, 6] *= -1

    assert "reversed" in copied(store, tmp_path / "a", reversed_gripper)["gripper"].text

    def exchanged(arrays):
        del arrays["target_pose"]  # as in data of others
        for name in ("actions", "executed"):
            arrays[name][:, :2] = arrays[name][:, 1::-1]

    assert "(y, x, z)" in copied(store, tmp_path / "b", exchanged)["position"].text


def test_machine_equals_the_reference_without_any_file_from_outside(monkeypatch):
    monkeypatch.delenv("CALVIN_ROOT", raising=False)
    said = {f.about: f for f in examine_machine((), None, 5)}
    assert said["built-in"].status == said["chains"].status == "good"
    assert said["scene files"].status == said["state, image"].status == "unknown"
    assert "wrong" not in {finding.status for finding in said.values()}


def test_machine_that_computes_something_else_is_told(monkeypatch):
    monkeypatch.delenv("CALVIN_ROOT", raising=False)
    kept = reference.kept()
    kept["scene_obs"][6] += 1e-9
    monkeypatch.setattr(reference, "kept", lambda: kept)
    said = {f.about: f for f in examine_machine((), None, 5)}
    assert said["built-in"].status == "wrong" and "1e-09" in said["built-in"].text


def test_recordings_chains_and_scene_files_are_compared(golden, calvin_root, tmp_path, monkeypatch):
    said = {f.about: f for f in examine_machine([str(golden)], str(calvin_root), 3)}
    assert {said[about].status for about in ("state", "image", "decisions", "chains", "scene files")} == {"good"}
    assert "3 of 110 recordings" in said["state"].text and "start states included" in said["chains"].text
    with np.load(golden / "trajectories" / "D_turn_off_led_100.npz") as file:
        record = dict(file)
    record["robot_obs"][-1, 0] += 1e-6
    np.savez(tmp_path / "D_other_1.npz", **record)
    listed = json.loads((golden / "sequences_1000.json").read_text())
    listed[7]["scene_obs"][6] += 1e-9
    (tmp_path / "sequences_1000.json").write_text(json.dumps(listed))
    said = {f.about: f for f in examine_machine([str(tmp_path)], str(calvin_root), 3)}
    assert said["state"].status == said["chains"].status == "wrong"
    assert (
        "D_other_1.npz" in said["state"].text
        and said["image"].status == "unknown"
        and "1 of 1000" in said["chains"].text
    )


def test_page_is_one_page_and_the_exit_code_says_whether_all_is_well(store, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_doctor import Replay, gripper\n"
        f"def good(config): return Replay({str(store)!r})\n"
        f"def bad(config): return Replay({str(store)!r}, gripper(lambda g: -g))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    command = [sys.executable, "-m", "arvrm", "sim", "doctor", "--store", str(store), "--no-machine"]
    ran = subprocess.run(
        [*command, "--policy", "mine:good"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr + ran.stdout
    lines = ran.stdout.splitlines()
    assert len(lines) < 60 and max(map(len, lines)) <= 118 and "gripper sign" in ran.stdout
    ran = subprocess.run(
        [*command, "--policy", "mine:bad", "--json"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 1, ran.stderr
    told = json.loads(ran.stdout)
    (wrong,) = [finding for finding in told["findings"] if finding["status"] == "wrong"]
    assert told["wrong"] == 1 and wrong["about"] == "gripper" and "reversed" in wrong["text"]


def test_policy_behind_a_socket_is_tested_by_its_conventions_file(store, tmp_path):
    """A server whose gripper is the reverse of what its file says."""
    from websockets.sync.server import serve

    from arvrm.remote import packed, unpacked

    known = {}
    opened = EpisodeStore(store)
    for id in opened.ids:
        arrays = opened.arrays(id, ("robot_obs", "actions"))
        for step, robot_obs in enumerate(arrays["robot_obs"]):
            rows = np.minimum(step + np.arange(3), len(arrays["actions"]) - 1)
            known[robot_obs[:3].astype(np.float32).tobytes()] = arrays["actions"][rows] * np.array([1] * 6 + [-1], "f4")

    def answer(socket):
        socket.send(packed({}))
        for message in socket:
            place = np.asarray(unpacked(message)["observation/state"], np.float32)[:3].tobytes()
            socket.send(packed({"actions": known[place]}))

    file = FILE | {"state": {"observation/state": ["position"]}, "steps_per_answer": 3}
    (tmp_path / "theirs.json").write_text(json.dumps(file))
    server = serve(answer, "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
    line = ["sim", "doctor", "--no-machine", "--store", str(store), "--policy", address, "--episodes", "2", "--json"]
    ran = subprocess.run(
        [sys.executable, "-m", "arvrm", *line, "--conventions", str(tmp_path / "theirs.json")],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    server.shutdown()
    assert ran.returncode == 1, ran.stderr
    said = {finding["about"]: finding for finding in json.loads(ran.stdout)["findings"] if finding["part"] == "policy"}
    assert said["position"]["status"] == said["rotation"]["status"] == "good", said
    assert said["gripper"]["status"] == "wrong" and "reversed" in said["gripper"]["text"]


def test_page_counts_what_was_not_looked_at(store):
    page = as_page(list(examine(DoctorConfig(store=str(store), machine=False))))
    assert page.splitlines()[0] == "demonstrations" and page.endswith("2 good, 0 wrong, 0 not looked at\n")
