"""`arvrm serve`: sessions of their own, actions equal to local ones, and nothing that a client says ends it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from sockets import ours
from test_evaluation import SmallWorld
from test_policy import METADATA, make_policy, request
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from arvrm import cli
from arvrm.evaluation import EvaluateConfig, Job, evaluate
from arvrm.interface import Observation, PlanRequest, UserError
from arvrm.policy import load_policy
from arvrm.remote import packed, unpacked
from arvrm.remote.conventions import PRESETS
from arvrm.results import load_results
from arvrm.robots import CALVIN
from arvrm.serving import ServeConfig
from arvrm.serving.run import make_server


def seen(grey=0):
    state = CALVIN.example(np.random.default_rng(0))
    return Observation(state, {"rgb_static": np.full((8, 8, 3), grey, np.uint8)})


def said(words="open the drawer", grey=0, **more):
    frame = seen(grey)
    message = {f"observation/{name}": value for name, value in {**frame.state, **frame.images}.items()}
    return packed(message | {"prompt": words} | more)


@contextlib.contextmanager
def session(address):
    with connect(address, compression=None) as opened:
        opened.metadata = unpacked(opened.recv())
        yield opened


def ask(opened, *arguments, **more):
    opened.send(said(*arguments, **more))
    answer = opened.recv(timeout=30)
    return answer if isinstance(answer, str) else unpacked(answer)


@pytest.fixture(scope="module")
def recorder():
    with ours(policy="served_policy:Recorder", message_mib=1, wait_ms=200.0) as (address, server):
        yield address, server


@pytest.fixture
def policy(recorder):
    found = recorder[1].batches.policy
    found.batches.clear()
    found.gone.clear()
    return found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_policy(tmp_path_factory.mktemp("policy") / "checkpoint")


def test_metadata_says_what_is_wanted(recorder):
    with session(recorder[0]) as opened:
        found = opened.metadata
    assert found["image_resolution"] == [8, 8] and found["n_external_cameras"] == 1  # RoboArena's names
    assert found["needs_wrist_camera"] is False and found["needs_stereo_camera"] is False
    own = found["arvrm"]
    assert own["spec"]["history_offsets"] == [-3, 0] and own["spec"]["execute_steps"] == 4
    assert own["conventions"]["steps_per_answer"] == 1 and own["conventions"]["action"]["motion"] == "native"
    assert own["policy"]["name"] == "served_policy:Recorder" and len(own["policy"]["sha256"]) == 64


def test_a_session_keeps_its_history_and_what_is_left_of_its_plan(recorder, policy):
    with session(recorder[0]) as opened:
        answers = [ask(opened, grey=10 * step) for step in range(9)]
    assert [answer["actions"].shape for answer in answers] == [(1, 7)] * 9
    planned = [step for batch in policy.batches for _, step, _ in batch]
    assert planned == [0, 4, 8]  # an observation each step, a plan each execute_steps
    oldest = [0, 0, 0, 0, 10, 10, 10, 10, 50]  # the frame three steps before the plan
    assert np.allclose([255 * answer["actions"][0, 0] for answer in answers], oldest, atol=1e-3)
    assert np.allclose([answer["actions"][0, 1] for answer in answers], [0, 0.1, 0.2, 0.3] * 2 + [0])
    assert answers[3]["server_timing"]["infer_ms"] >= 0


def test_every_session_is_a_rollout_of_its_own_and_plans_are_made_together(recorder, policy):
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(session(recorder[0])) for _ in range(4)]
        for number, one in enumerate(opened):
            one.send(said(grey=number))
        assert all("actions" in unpacked(one.recv(timeout=30)) for one in opened)
        ask(opened[0], "close the drawer")
    rollouts = [rollout for batch in policy.batches for rollout, _, _ in batch]
    assert len(policy.batches[0]) == 4 and len(set(rollouts)) == 4
    assert policy.batches[-1] == [
        (policy.batches[0][0][0], 0, "close the drawer")
    ]  # another sentence, the same rollout


def test_reset_begins_a_rollout_anew_and_the_policy_is_told_which_have_ended(recorder, policy):
    with session(recorder[0]) as opened:
        for step in range(3):
            ask(opened, grey=step)
        opened.send(packed({"endpoint": "reset"}))
        assert opened.recv() == "reset successful"
        ask(opened, grey=77)
        ask(opened, session_id="one")
        ask(opened, session_id="two")
    first, second, third = (batch[0] for batch in policy.batches)
    assert first[1] == second[1] == third[1] == 0 and len({first[0], second[0], third[0]}) == 3
    deadline = time.monotonic() + 20
    ours = [first[0], second[0], third[0]]
    # A session of the test before may end late, too.
    while not set(ours) <= set(policy.gone) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [one for one in policy.gone if one in ours] == ours


@pytest.mark.parametrize(
    ("bad", "answer"),
    [
        (b"\xc1", "no msgpack"),
        ("text", "send msgpack"),
        (packed([1, 2]), "no mapping"),
        (packed({}), "prompt: no instruction"),
        (packed({"prompt": "x" * 5000}), "no instruction"),
        (packed({"prompt": "go"}), "observation/robot_obs: nothing, expected 15 finite numbers"),
        (packed({"endpoint": "exec"}), "there are infer, reset and observe"),
        (said(**{"observation/robot_obs": np.full(15, np.nan)}), "expected 15 finite numbers"),
        (said(**{"observation/rgb_static": np.zeros((9, 9, 3), np.uint8)}), "expected (8, 8, 3) uint8"),
        (said(**{"observation/rgb_static": np.zeros((8, 8, 3))}), "expected (8, 8, 3) uint8"),
        (said(**{"arvrm/step": -1}), "whole number from 0"),
        (said(**{"arvrm/steps": 99}), "whole number from 1 to 4"),
        (said(**{"arvrm/step": 9}), "no observation of step 6"),
        (said("crash"), "the policy failed: RuntimeError: no such thing"),
        (said("fail"), "cannot be done"),
        (said("nan"), "planned NaN"),
    ],
)  # fmt: skip
def test_a_bad_message_is_answered_with_an_error_and_the_session_goes_on(recorder, policy, bad, answer):
    with session(recorder[0]) as opened:
        first = ask(opened)
        opened.send(bad)
        error = opened.recv(timeout=30)
        assert isinstance(error, str) and answer in error and "\n" not in error
        assert ask(opened)["actions"].shape == first["actions"].shape


def test_a_message_that_is_too_long_ends_its_session_only(recorder):
    with session(recorder[0]) as opened, session(recorder[0]) as other:
        opened.send(b"x" * 2**21)
        with pytest.raises(ConnectionClosed, match="1009"):
            opened.recv(timeout=30)
        assert "actions" in ask(other)


def test_pages_in_a_browser_are_refused(recorder):
    with pytest.raises(InvalidStatus, match="403"):
        connect(recorder[0], origin="http://example.org").close()


def test_health_is_told_without_a_session(recorder):
    for path in ("/healthz", "/health"):
        with urllib.request.urlopen(recorder[0].replace("ws", "http") + path) as answer:
            assert answer.status == 200 and answer.read() == b"OK\n"


def test_it_listens_on_this_machine_only_unless_told():
    assert ServeConfig().host == "127.0.0.1"


def test_one_session_more_than_allowed_is_refused_and_room_is_made_again():
    with ours(policy="served_policy:Recorder", sessions=1) as (address, _):
        with session(address) as opened:
            assert "actions" in ask(opened)
            with pytest.raises(InvalidStatus, match="503"):
                connect(address).close()
        deadline = time.monotonic() + 20
        while True:
            try:
                with session(address) as opened:
                    assert "actions" in ask(opened)
                break
            except InvalidStatus:
                assert time.monotonic() < deadline


def test_served_plans_equal_local_ones_to_the_bit(checkpoint):
    local = load_policy(checkpoint, batch=3)
    requests = [request(number, step=0) for number in range(5)]
    requests = [PlanRequest(r.instruction, (r.history[1],) * 2, r.rollout, 0) for r in requests]
    chunks = local.plan(requests)
    with ours(checkpoint=str(checkpoint), batch=3, steps_per_answer=4) as (address, _), contextlib.ExitStack() as stack:
        opened = [stack.enter_context(session(address)) for _ in requests]
        for one, wish in zip(opened, requests, strict=True):
            frame = wish.history[-1]
            message = {f"observation/{name}": value for name, value in {**frame.state, **frame.images}.items()}
            one.send(packed(message | {"prompt": wish.instruction}))
        for one, chunk in zip(opened, chunks, strict=True):
            served = unpacked(one.recv(timeout=60))["actions"]
            assert served.dtype == chunk.dtype and np.array_equal(served, chunk[:4])


class Varied(SmallWorld):
    """Moves by all numbers of its actions, and looks like where it is: a bit that differs shows at the end."""

    def observe(self):
        robot_obs = np.linspace(-1, 1, 15) + self.x
        return Observation({"robot_obs": robot_obs, "target_pose": robot_obs[:6] / 3})

    def cameras(self, film=False):
        rng = np.random.default_rng(int(abs(self.x) * 1e6))
        sizes = {"rgb_static": 32, "rgb_gripper": 16}
        return {name: rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for name, size in sizes.items()}

    def step(self, action):
        self.x += float(np.dot(action.astype(np.float64), np.arange(1, 8))) / 100
        self.steps += 1
        return {"x": self.x}

    def completed(self, start_info, info, task):
        return abs(info["x"] - start_info["x"]) > 2 + 0.1 * self.job.index


def test_an_evaluation_over_a_socket_equals_the_local_one(checkpoint, tmp_path):
    jobs = [Job(n, ("open_drawer", "turn_on_led"), ("open it", "light it"), 0.1 * n) for n in (0, 1, 2, 5)]
    settings = {"workers": 2, "max_steps": 40}
    local = EvaluateConfig(output=str(tmp_path / "local.json"), **settings)
    expected = load_results(evaluate(lambda: load_policy(checkpoint, batch=2), local, make_world=Varied, jobs=jobs))
    with ours(checkpoint=str(checkpoint), batch=2) as (address, server):
        config = EvaluateConfig(policy=address, output=str(tmp_path / "served.json"), **settings)
        results = load_results(evaluate(None, config, make_world=Varied, jobs=jobs))
        assert server.batches.plans == results["planning"]["plans"] == expected["planning"]["plans"]
    assert results["crashed"] == 0 and results["chains"] == expected["chains"]
    assert len({tuple(chain["steps"]) for chain in results["chains"]}) > 1
    assert results["policy_identity"]["server"]["spec"]["history_offsets"] == [-3, 0]
    assert results["policy_identity"]["server"]["policy"]["hash"]


def vla_eval(opened, kind, payload, number):
    opened.send(packed({"type": kind, "payload": payload, "seq": number, "timestamp": 0.0}, "text"))


def test_vla_eval_s_messages_are_answered_in_its_own_units(tmp_path):
    with ours(policy="served_policy:Recorder", protocol="vla-eval") as (address, server), connect(address) as opened:
        vla_eval(opened, "hello", {"harness_version": "0.8.0", "protocol_version": 1}, 1)
        hello = unpacked(opened.recv())
        assert (hello["type"], hello["seq"], hello["payload"]["protocol_version"]) == ("hello", 1, 1)
        assert hello["payload"]["action_spec"]["gripper"]["format"] == "binary_close_negative"
        assert hello["payload"]["observation_params"]["send_state"] is True
        vla_eval(opened, "episode_start", {"task": {"name": "seq_0000"}}, 2)
        image = np.full((200, 200, 3), 51, np.uint8)
        state = np.float32([0.1, -0.2, 0.5, 3.1, 0, 1.5, 0.08, 1])
        observation = {"images": {"rgb_static": image}, "task_description": "open", "states": state}
        for step in range(5):
            vla_eval(opened, "observation", observation, 3 + step)
            answer = unpacked(opened.recv())
            assert (answer["type"], answer["seq"]) == ("action", 3 + step), answer
            actions = answer["payload"]["actions"]
            assert actions.shape == (7,)
            assert np.allclose(actions, [0.2 * 0.02, step % 4 / 10 * 0.02, 0, 0, 0, 0, 1], atol=1e-9)
        vla_eval(opened, "observation", {"task_description": "open"}, 9)
        error = unpacked(opened.recv())
        assert (error["type"], error["seq"]) == ("error", 9) and "rgb_static" in error["payload"][
            "error"
        ] + "rgb_static"
        vla_eval(opened, "observation", observation | {"episode_restart": True}, 10)
        assert unpacked(opened.recv())["type"] == "action"
        assert [batch[0][1] for batch in server.batches.policy.batches] == [0, 4, 0]


def test_what_no_message_has_is_said_or_refused(tmp_path):
    values = json.loads((PRESETS / "openpi-calvin.json").read_text())
    for change, words in (
        ({"absent": {}}, "no message has robot_obs[7:14], which the policy observes"),
        ({"absent": {"robot_obs[7:14]": 0}}, "no message has target_pose"),
        ({"cameras": {}}, "no camera 'rgb_static', which the policy looks through"),
        ({"steps_per_answer": 3}, "does not divide the 4 steps of a plan"),
        ({"absent": {"target_pose": "guessed"}}, "give a number, or tracked or measured"),
    ):
        (tmp_path / "c.json").write_text(json.dumps(values | {"steps_per_answer": 4} | change))
        with pytest.raises(UserError) as error:
            make_server(ServeConfig(policy="served_policy:Recorder", conventions=str(tmp_path / "c.json")))
        assert words in str(error.value)


def command(*words, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    line = [sys.executable, "-m", "arvrm", "serve", *words]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_sigterm_refuses_who_comes_answers_who_asked_and_ends_well():
    process = command("--policy", "served_policy:Recorder", "--port", "0", "--drain-seconds", "20")
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("ws://127.0.0.1:"), process.stderr.read()
        with session(address) as opened:
            opened.send(said("slow"))
            time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            assert "actions" in unpacked(opened.recv(timeout=30))
            health = address.replace("ws", "http") + "/healthz"
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                try:
                    urllib.request.urlopen(health).close()
                except urllib.error.HTTPError as error:
                    assert error.code == 503 and error.read() == b"draining\n"
                    break
            with pytest.raises(InvalidStatus, match="503"):
                connect(address).close()
            assert "actions" in ask(opened)  # who is here goes on
        _, words = process.communicate(timeout=60)
        assert process.returncode == 0 and "draining: 1 sessions" in words and "Traceback" not in words
    finally:
        process.kill()
        process.wait()


def test_mistakes_of_the_command_line_are_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for words, line in (
            (["--policy", "served_policy:Recorder", "--port", port], f"127.0.0.1:{port} cannot be had"),
            ([], "no policy given; pass --checkpoint DIR"),
            (["--policy", "served_policy:Recorder", "--port", "99999"], "port is 99999; give at most 65535"),
            (["--policy", "served_policy:Recorder", "--protocol", "http"], "'http' is none of 'openpi', 'vla-eval'"),
        ):
            assert cli.main(["serve", *words]) == 2
            error = capsys.readouterr().err.strip()
            assert line in error and len(error.splitlines()) == 1


def test_sessions_in_threads_each_see_their_own_rollout(recorder, policy):
    wrong = []

    def roll(number):
        with session(recorder[0]) as opened:
            for step in range(12):
                answer = ask(opened, f"task {number}", grey=number)
                if abs(255 * answer["actions"][0, 0] - number) > 1e-3 or answer["arvrm/step"] != step:
                    wrong.append((number, step))

    threads = [threading.Thread(target=roll, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert len({rollout for batch in policy.batches for rollout, _, _ in batch}) == 8


def test_the_checkpoint_of_the_fixture_looks_back(checkpoint):
    assert METADATA.history == 2  # else the tests above would show nothing of a history
