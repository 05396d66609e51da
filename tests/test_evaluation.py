"""The protocol on a small world of our own, then the real simulator with experts (tests at the end)."""

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from arvrm import evaluation
from arvrm.config import from_dict
from arvrm.evaluation import EvaluateConfig, Job, Rollout, checked_chunk, evaluate, make_jobs, needs_images, sentences
from arvrm.evaluation.planner import Planner
from arvrm.evaluation.playtable import PlayTableWorld
from arvrm.evaluation.rollout import PolicyCrash, check_robots
from arvrm.films import read_film
from arvrm.interface import TASKS, Drawing, ImagesWanted, Observation, PlanRequest, PolicySpec, Stroke, UserError
from arvrm.results import load_results, table
from arvrm.robots import CALVIN
from arvrm.sim.render import CameraShift
from arvrm.sim.scene import Lighting

CHAIN = ("open_drawer", "turn_on_led", "close_drawer", "turn_off_led", "lift_red_block_table")


class SmallWorld:
    """A point on a line: a task is done when the point has moved by 1 since the task began."""

    robot = CALVIN

    def __init__(self, config, spec):
        self.spec, self.renders = spec, 0

    def start(self, job):
        self.job, self.x, self.steps, self.renders = job, float(job.start), 0, 0
        return {"x": self.x}

    def step(self, action):
        if self.job.index == 3 and self.steps == 12:
            os._exit(7)
        if self.job.index == 4 and self.steps == 12:
            raise RuntimeError("solver\ndiverged")
        self.x += 0.1 * float(action[0])
        self.steps += 1
        return {"x": self.x}

    def observe(self):
        return Observation({"robot_obs": np.full(15, self.x), "target_pose": np.zeros(6)})

    def cameras(self, film=False):
        self.renders += 1
        pixels = np.full((8, 8, 3), int(40 * self.x) % 256, np.uint8)
        return {"rgb_static": pixels, "rgb_gripper": pixels[:4, :4]}

    def completed(self, start_info, info, task):
        return info["x"] - start_info["x"] >= 1.0 - 1e-9

    def expert(self, task, rng):
        return lambda: np.array([rng.uniform(0.5, 1.0), 0, 0, 0, 0, 0, 1.0])

    def describe(self):
        return {"simulator": "small", "assets": "none", "renderer": "none"}

    def close(self):
        pass


class SlowWorld(SmallWorld):
    def step(self, action):
        time.sleep(0.003)
        return super().step(action)


class Steady:
    """Moves at a speed that depends on its oldest frame, and hardly moves at one task of every third chain."""

    def __init__(self, history_offsets=(-3, 0), execute_steps=4):
        self.spec = PolicySpec("calvin", {"rgb_static": 8, "rgb_gripper": 4}, history_offsets, execute_steps)
        self.requests = []

    def plan(self, requests):
        self.requests += requests
        return [self.chunk(request) for request in requests]

    def chunk(self, request):
        stuck = request.rollout % 3 == 1 and request.instruction == "turn off led"
        speed = 0.1 if stuck else 0.7 + 0.2 * np.sin(request.history[0].state["robot_obs"][0])
        return np.tile(np.array([speed, 0, 0, 0, 0, 0, 1.0], np.float32), (10, 1))


class Even(Steady):
    def chunk(self, request):
        return np.tile(np.float32([0.9, 0, 0, 0, 0, 0, 1]), (10, 1))


def jobs(count, skip=()):
    return [
        Job(index, CHAIN, tuple(task.replace("_", " ") for task in CHAIN), start=0.37 * index)
        for index in range(count)
        if index not in skip
    ]


def config(tmp_path, **values):
    return EvaluateConfig(**{"output": str(tmp_path / "results.json"), "max_steps": 30, "workers": 1, **values})


def outcomes(path):
    return load_results(path)["chains"]


def rollout(policy, **values):
    settings = EvaluateConfig(**{"max_steps": 30, **values})
    world = SmallWorld(settings, policy.spec)
    made = Rollout(world, jobs(1)[0], settings, policy.spec, lambda request: policy.plan([request])[0])
    return made, made.run(), world


def test_task_is_compared_with_its_own_start_and_the_world_goes_on_without_reset():
    policy = Even()
    _, record, world = rollout(policy)
    # 0.09 a step: 12 steps pass 1.0, from wherever the last task ended.
    assert record.completed == 5 and record.steps == (12,) * 5
    assert world.steps == 60 and world.x == pytest.approx(5.4)


def test_chain_ends_at_its_first_failure_after_max_steps():
    policy = Steady()
    policy.chunk = lambda request: np.tile(np.float32([0.9 if request.step == 0 else 0, 0, 0, 0, 0, 0, 1]), (10, 1))
    _, record, _ = rollout(policy, max_steps=17)
    assert record.completed == 0 and record.steps == (17,)


def test_history_holds_the_frames_at_the_offsets_and_repeats_the_first_before_the_start():
    policy = Even(history_offsets=(-6, -3, 0), execute_steps=4)
    rollout(policy)
    positions = {}
    for request in policy.requests:
        begun = positions.setdefault(request.instruction, request.history[-1].state["robot_obs"][0])
        steps = [round((frame.state["robot_obs"][0] - begun) / 0.09) for frame in request.history]
        assert steps == [max(0, request.step + offset) for offset in (-6, -3, 0)]
        assert all(frame.images.keys() == {"rgb_static", "rgb_gripper"} for frame in request.history)
        assert request.step % 4 == 0


@pytest.mark.parametrize(
    ("offsets", "execute", "expected"),
    [((0,), 4, {0, 4, 8}), ((-3, 0), 4, {0, 1, 4, 5, 8, 9}), ((-3, 0), 1, set(range(10))), ((-9, 0), 8, {0, 7, 8})],
)
def test_images_are_rendered_only_where_a_plan_looks(offsets, execute, expected):
    spec = PolicySpec("calvin", history_offsets=offsets, execute_steps=execute)
    assert {step for step in range(10) if needs_images(spec, step)} == expected


class Glancing(Steady):
    """Needs images at every third plan only."""

    def __init__(self):
        super().__init__((0,))
        self.spec = dataclasses.replace(self.spec, looks_when_needed=True)

    def plan(self, requests):
        return [
            ImagesWanted() if one.step % 12 == 0 and not one.history[0].images else self.chunk(one) for one in requests
        ]


def test_a_policy_that_looks_when_needed_has_images_rendered_only_where_it_asks_for_them(tmp_path):
    planner = Planner(Glancing())
    settings, asked, planned = config(tmp_path), [], []

    def plan(request):
        kind, value = planner.answer([request])[0]
        assert kind == "actions"
        (asked if value is None else planned).append(request.step)
        return value

    world = SmallWorld(settings, planner.policy.spec)
    record = Rollout(world, jobs(1)[0], settings, planner.policy.spec, plan).run()
    assert asked == [step for step in planned if step % 12 == 0] and 0 < len(asked) < len(planned)
    assert world.renders == len(asked) and planner.plans == len(planned)
    assert record == rollout(Steady((0,)))[1]
    assert outcomes(evaluate(Glancing, settings, SmallWorld, jobs(1)))[0]["steps"] == list(record.steps)


def test_images_are_wanted_by_those_only_that_say_so_and_not_twice(tmp_path):
    class Blind(Glancing):
        def plan(self, requests):
            return [ImagesWanted() for _ in requests]

    blind, undeclared = Planner(Blind()), Planner(Blind())
    undeclared.policy.spec = dataclasses.replace(blind.policy.spec, looks_when_needed=False)
    request = PlanRequest("open drawer", (Observation({}),), rollout=0, step=0)
    assert undeclared.answer([request]) == [("crash", "it wants images, and its spec does not say looks_when_needed")]
    settings = config(tmp_path)
    world = SmallWorld(settings, blind.policy.spec)
    made = Rollout(world, jobs(1)[0], settings, blind.policy.spec, lambda request: None)
    with pytest.raises(PolicyCrash, match="images again"):
        made.run()
    backwards = dataclasses.replace(blind.policy.spec, history_offsets=(-3, 0))
    with pytest.raises(UserError, match=r"looks when needed, and back \(-3, 0\)"):
        check_robots(backwards, SmallWorld(settings, backwards))


def test_rendered_frames_are_counted_by_the_world():
    policy = Even(history_offsets=(0,), execute_steps=4)
    _, record, world = rollout(policy)
    assert world.renders == 5 * 3  # steps 0, 4, 8 of each task


def test_results_do_not_depend_on_the_number_of_workers(tmp_path):
    found = []
    for workers in (1, 3):
        settings = config(tmp_path / str(workers), workers=workers)
        found.append(outcomes(evaluate(Steady, settings, SmallWorld, jobs(12, skip=(3, 4)))))
    assert found[0] == found[1]
    assert {chain["completed"] for chain in found[0]} > {5}, "some chain must fail or the test shows nothing"


def test_expert_and_random_policies_act_inside_the_workers(tmp_path):
    path = evaluate(None, config(tmp_path, policy="expert"), SmallWorld, jobs(3))
    assert load_results(path)["average_length"] == 5.0
    path = evaluate(None, config(tmp_path / "r", policy="random"), SmallWorld, jobs(3))
    assert load_results(path)["average_length"] < 5.0


def test_dead_and_failing_simulators_count_as_failures_and_are_reported_apart(tmp_path, capfd):
    results = load_results(evaluate(Steady, config(tmp_path, workers=2), SmallWorld, jobs(6)))
    by_index = {chain["index"]: chain for chain in results["chains"]}
    assert sorted(by_index) == list(range(6)) and results["crashed"] == 2
    assert "code 7" in by_index[3]["crashed"] and by_index[3]["completed"] == 1
    assert "RuntimeError: solver diverged" in by_index[4]["crashed"]
    assert "chain 3 crashed" in capfd.readouterr().err


class HuntedWorld(SmallWorld):
    """Its process is killed from outside while it does the chains that a file names, once for each line."""

    def step(self, action):
        hunted = Path(os.environ["HUNTED"])
        lines = hunted.read_text().split()
        if str(self.job.index) in lines and self.steps == 12:
            lines.remove(str(self.job.index))
            hunted.write_text("\n".join(lines))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


def test_chain_whose_simulator_was_killed_from_outside_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HUNTED", str(tmp_path / "hunted"))
    (tmp_path / "hunted").write_text("0 2")
    path = evaluate(Steady, config(tmp_path), HuntedWorld, jobs(3))
    assert outcomes(path) == outcomes(evaluate(Steady, config(tmp_path / "calm"), SmallWorld, jobs(3)))


def test_chain_whose_simulator_was_killed_twice_is_left_out_until_resume(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HUNTED", str(tmp_path / "hunted"))
    (tmp_path / "hunted").write_text("1 1")
    with pytest.raises(UserError, match="chains 1 left out.*--resume") as caught:
        evaluate(Steady, config(tmp_path), HuntedWorld, jobs(3))
    assert "\n" not in str(caught.value) and "chain 1 left out" in capfd.readouterr().err
    assert not (tmp_path / "results.json").exists()
    log = (tmp_path / "results.chains.jsonl").read_text().splitlines()[1:]
    assert [json.loads(line)["index"] for line in log] == [0, 2]
    path = evaluate(Steady, config(tmp_path, resume=True), HuntedWorld, jobs(3))
    assert outcomes(path) == outcomes(evaluate(Steady, config(tmp_path / "calm"), SmallWorld, jobs(3)))


def test_results_made_from_a_whole_log_alone_say_which_simulator_it_was(tmp_path):
    settings = config(tmp_path, policy="expert")
    first = load_results(evaluate(None, settings, SmallWorld, jobs(2)))["versions"]
    assert first["simulator"] == "small" and first["assets"] == "none" and first["robot"] == "calvin"
    (tmp_path / "results.json").unlink()
    again = load_results(evaluate(None, dataclasses.replace(settings, resume=True), SmallWorld, jobs(2)))["versions"]
    assert again == first


class Moody(Steady):
    """Fails on chain 1, whoever else is in the batch."""

    def plan(self, requests):
        if any(request.rollout == 1 and request.step == 4 for request in requests):
            raise ValueError("out of memory")
        return super().plan(requests)


def test_failing_policy_ends_only_the_chain_at_fault(tmp_path):
    results = load_results(evaluate(Moody, config(tmp_path, workers=3), SmallWorld, jobs(3)))
    assert [chain.get("crashed", "")[:20] for chain in results["chains"]] == ["", "policy: ValueError: ", ""]
    assert results["chains"][0]["completed"] == 5


class Batched(Steady):
    """Wants three requests at once."""

    sizes: list = []

    def __init__(self):
        super().__init__()
        self.spec = dataclasses.replace(self.spec, batch=3)

    def plan(self, requests):
        self.sizes.append(len(requests))
        return super().plan(requests)


def test_requests_wait_for_each_other_until_the_batch_is_full_or_nobody_is_left(tmp_path):
    Batched.sizes.clear()
    path = evaluate(Batched, config(tmp_path, workers=4), SmallWorld, jobs(12, skip=(3, 4)))
    assert outcomes(path) == outcomes(evaluate(Steady, config(tmp_path / "1"), SmallWorld, jobs(12, skip=(3, 4))))
    # How many batches are full depends on which worker the system runs when; that nearly none goes alone does not.
    assert max(Batched.sizes) == 3 and sum(Batched.sizes) > 2 * len(Batched.sizes)


class Broken(Steady):
    def chunk(self, request):
        return np.full((10, 7), np.nan, np.float32)


def test_nan_in_actions_stops_the_run_with_one_line_and_no_results_file(tmp_path):
    with pytest.raises(UserError, match="NaN") as caught:
        evaluate(Broken, config(tmp_path), SmallWorld, jobs(1))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results.json").exists()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("chunk", "message"),
    [(np.zeros((10, 6)), r"\(10, 6\)"), (np.zeros((3, 7)), r"\(3, 7\)"), (np.zeros((10, 7)), "gripper")],
)
def test_malformed_chunks_are_named(chunk, message):
    with pytest.raises(UserError, match=message):
        checked_chunk(chunk, PolicySpec("calvin", execute_steps=4), PlanRequest("open the drawer", (), 0, 0), CALVIN)


def test_existing_output_needs_resume_or_overwrite(tmp_path):
    settings = config(tmp_path, policy="expert")
    evaluate(None, settings, SmallWorld, jobs(2))
    with pytest.raises(UserError, match="--overwrite"):
        evaluate(None, settings, SmallWorld, jobs(2))
    with pytest.raises(UserError, match="exclude each other"):
        evaluate(None, config(tmp_path, policy="expert", overwrite=True, resume=True), SmallWorld, jobs(1))
    evaluate(None, config(tmp_path, policy="expert", overwrite=True), SmallWorld, jobs(1))
    assert len(outcomes(settings.output)) == 1


def test_resume_adds_chains_and_keeps_the_old(tmp_path):
    evaluate(None, config(tmp_path, policy="expert"), SmallWorld, jobs(2))
    log = tmp_path / "results.chains.jsonl"
    before = log.read_bytes()
    evaluate(None, config(tmp_path, policy="expert", resume=True, workers=2), SmallWorld, jobs(4, skip=(3,)))
    assert log.read_bytes().startswith(before)
    assert [chain["index"] for chain in outcomes(tmp_path / "results.json")] == [0, 1, 2]
    with pytest.raises(UserError, match="seed = 0, now 5"):
        evaluate(None, config(tmp_path, policy="expert", resume=True, seed=5), SmallWorld, jobs(2))


def run_slowly(folder):
    """For the test below, in a process of its own."""
    settings = config(Path(folder), policy="expert", workers=2, resume=True)
    evaluate(None, settings, SlowWorld, jobs(20, skip=(3, 4)))


def test_killed_run_resumes_with_no_chain_lost_or_twice(tmp_path):
    log = tmp_path / "results.chains.jsonl"
    command = [sys.executable, "-c", f"import test_evaluation as t; t.run_slowly({str(tmp_path)!r})"]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.time() + 30
    while time.time() < deadline and (not log.exists() or log.read_bytes().count(b"\n") < 5):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {json.loads(line)["index"]: line for line in log.read_bytes().splitlines()[1:] if line.endswith(b"}")}
    assert 4 <= len(finished) < 18 and not (tmp_path / "results.json").exists()
    path = evaluate(None, config(tmp_path, policy="expert", resume=True), SlowWorld, jobs(20, skip=(3, 4)))
    lines = log.read_bytes().splitlines()[1:]
    assert sorted(json.loads(line)["index"] for line in lines) == [i for i in range(20) if i not in (3, 4)]
    assert set(finished.values()) <= set(lines)
    whole = evaluate(None, config(tmp_path / "whole", policy="expert"), SmallWorld, jobs(20, skip=(3, 4)))
    assert outcomes(path) == outcomes(whole)


def test_films_of_the_best_and_worst_are_kept_with_their_outcome(tmp_path):
    settings = config(tmp_path, film_successes=1, film_failures=1, workers=2)
    results = load_results(evaluate(Steady, settings, SmallWorld, jobs(8, skip=(3, 4))))
    filmed = {chain["film"]: chain for chain in results["chains"] if "film" in chain}
    assert sorted(filmed) == sorted(path.name for path in (tmp_path / "results_films").iterdir())
    assert {chain["completed"] == 5 for chain in filmed.values()} == {True, False}
    for name, chain in filmed.items():
        frames = read_film(tmp_path / "results_films" / name)
        shown = sum(-(-steps // 3) for steps in chain["steps"]) + 6 * len(chain["steps"])
        assert frames.shape == (shown, 368, 480, 3)
        # The border of the last frame: green where the chain succeeded, red where it failed.
        red, green, _ = frames[-1, 200, 2].astype(int)
        assert (green > red) == (chain["completed"] == 5)


class Drawn(Even):
    """Has a blue line over the scene in mind, from its second plan on."""

    def __init__(self):
        super().__init__()
        self.asked = {}

    def chunk(self, request):
        self.asked[request.rollout] = request.step
        return super().chunk(request)

    def drawing(self, rollout):
        if not self.asked[rollout]:
            return None
        return Drawing("rgb_static", (Stroke(np.array([[0.0, 0.5], [1.0, 0.5]]), "#0000ff", 0.2),))


def test_an_evaluation_begun_anew_leaves_no_film_of_the_one_before(tmp_path):
    own = tmp_path / "results_films/own.mp4"
    evaluate(Steady, config(tmp_path, film_successes=1), SmallWorld, jobs(1))
    assert [path.name for path in own.parent.iterdir()] == ["chain_00000.mp4"]
    own.touch()
    again = evaluate(Steady, config(tmp_path, overwrite=True), SmallWorld, jobs(1))
    assert load_results(again)["films"] == [] and list(own.parent.iterdir()) == [own]


def test_films_show_what_the_policy_has_in_mind_when_it_acts(tmp_path):
    settings = config(tmp_path, film_successes=1)
    results = load_results(evaluate(Drawn, settings, SmallWorld, jobs(1)))
    frames = read_film(tmp_path / results["films"][0]).astype(int)
    blue = [bool(frame[180:230, 100:220, 2].mean() > frame[180:230, 100:220, 0].mean() + 60) for frame in frames]
    assert not blue[0] and not blue[1] and blue[2], "planned again at step 4, filmed at 0, 3, 6"
    assert blue[5]


def test_time_shares_add_up_to_one(tmp_path):
    results = load_results(evaluate(Steady, config(tmp_path), SmallWorld, jobs(2)))
    assert sum(results["time_share"].values()) == pytest.approx(1.0, abs=0.01)
    assert results["planning"]["plans"] > 0 and results["chains_per_hour"] > 0


def test_unknown_names_are_answered_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match="'open_drawer'"):
        make_jobs(EvaluateConfig(tasks=("open_drawr",)))
    with pytest.raises(ValueError, match="scene 'E'"):
        EvaluateConfig(scene="E")


def test_sentences_come_from_the_named_source(tmp_path):
    rng = np.random.default_rng(0)
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"open_drawer": "pull it", "close_drawer": ["push it", "shut it"]}))
    own = sentences(EvaluateConfig(instructions=str(file), tasks=("open_drawer", "close_drawer")))
    assert own("open_drawer", rng) == "pull it"
    assert {own("close_drawer", rng) for _ in range(20)} == {"push it", "shut it"}
    validation, unseen = sentences(EvaluateConfig()), sentences(EvaluateConfig(instructions="unseen"))
    for task in TASKS:
        assert validation(task, rng) and unseen(task, rng) != validation(task, rng)
    with pytest.raises(UserError, match="no sentence for"):
        sentences(EvaluateConfig(instructions=str(file)))


def test_switches_are_checked_and_recorded_and_bar_a_resume_without_them(tmp_path):
    for wrong in ({"block_colours": {"green": (0, 1, 0, 1)}}, {"block_colours": {"red": (0, 2, 0, 1)}}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            EvaluateConfig(**wrong)
    with pytest.raises(ValueError, match="metres is nan"):
        CameraShift(metres=float("nan"))
    given = {"camera_shift": {"metres": 0.05}, "lighting": {"direction": [0, 0, 1]}, "block_colours": {"red": [0] * 4}}
    values = {"output": str(tmp_path / "results.json"), "policy": "expert", "max_steps": 30, "workers": 1, **given}
    results = load_results(evaluate(None, from_dict(EvaluateConfig, values), SmallWorld, jobs(1)))
    assert from_dict(EvaluateConfig, results["config"]) == from_dict(EvaluateConfig, values)
    for name in ("camera_shift.metres=0.05", "lighting.direction=[0.0, 0.0, 1.0]", "block_colours.red="):
        assert name in table(results)
    with pytest.raises(UserError, match="begun with block_colours"):
        evaluate(None, config(tmp_path, policy="expert", resume=True), SmallWorld, jobs(2))
    plain = load_results(evaluate(None, config(tmp_path / "plain", policy="expert"), SmallWorld, jobs(1)))
    assert "scene changed" not in table(plain)
    header = json.loads((tmp_path / "plain" / "results.chains.jsonl").read_text().splitlines()[0])
    assert "lighting" not in header["fingerprint"], "logs from before there were switches must go on"


STATE = dict(zip(("led", "lightbulb", "slider", "drawer", "red_block", "blue_block", "pink_block"),
                 (0, 0, "right", "closed", "table", "slider_left", "slider_right"), strict=True))  # fmt: skip


def test_chains_of_ones_own_need_sentences_for_their_tasks_only(tmp_path):
    chains, said = tmp_path / "chains.json", tmp_path / "said.json"
    chains.write_text(json.dumps([{"initial_state": STATE, "tasks": ["open_drawer", "turn_on_led"]}]))
    said.write_text(json.dumps({"open_drawer": "pull", "turn_on_led": "press"}))
    values = {"chain_file": str(chains), "instructions": str(said)}
    (job,) = make_jobs(EvaluateConfig(**values))
    assert job.tasks == ("open_drawer", "turn_on_led") and job.instructions == ("pull", "press")
    said.write_text(json.dumps({"open_drawer": "pull"}))
    with pytest.raises(UserError, match="no sentence for 'turn_on_led'"):
        make_jobs(EvaluateConfig(**values))
    with pytest.raises(UserError, match="turn_on_led is none of --tasks"):
        make_jobs(EvaluateConfig(chain_file=str(chains), tasks=("open_drawer",)))
    with pytest.raises(UserError, match="chain_file"):
        make_jobs(EvaluateConfig(chain_file=str(chains), protocol="single"))


def test_auto_is_settled_before_workers_start_and_renderers_do_not_mix(tmp_path, monkeypatch):
    monkeypatch.setattr("arvrm.sim.render.egl_problem", lambda: "no driver")
    values = {"policy": "expert", "renderer": "auto"}
    evaluate(None, config(tmp_path, **values), SmallWorld, jobs(1))
    evaluate(None, config(tmp_path, policy="expert", renderer="tiny", resume=True), SmallWorld, jobs(2))
    with pytest.raises(UserError, match="no driver"):
        evaluate(None, config(tmp_path / "egl", policy="expert", renderer="egl"), SmallWorld, jobs(1))
    monkeypatch.setattr("arvrm.sim.render.egl_problem", lambda: None)
    with pytest.raises(UserError, match="renderer = 'tiny', now 'egl'"):
        evaluate(None, config(tmp_path, **values, resume=True), SmallWorld, jobs(3))


# The real simulator ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_stored_official_chains_are_those_that_are_generated():
    from arvrm.sim.chains import generate_chains

    assert evaluation.official_chains() == generate_chains(1000)


def test_switches_change_what_the_policy_sees_and_nothing_else():
    spec = PolicySpec("calvin", {"rgb_static": 40, "rgb_gripper": 20})
    job = make_jobs(EvaluateConfig(chains=1))[0]
    seen = []
    for values in (
        {},
        {"camera_shift": CameraShift(metres=0.1, degrees=3)},
        {"lighting": Lighting(ambient=0.1)},
        {"block_colours": {name: (0.0, 1.0, 0.0, 1.0) for name in ("red", "blue", "pink")}},
    ):
        world = evaluation.PlayTableWorld(EvaluateConfig(**values), spec)
        world.start(job)
        world.step(np.array([0.5, 0.5, -0.5, 0, 0, 0, -1.0]))
        seen.append((world.cameras(), world.observe().state["robot_obs"]))
        world.close()
    plain, state = seen[0]
    for images, robot_obs in seen[1:]:
        assert np.abs(images["rgb_static"].astype(int) - plain["rgb_static"]).mean() > 0.5
        np.testing.assert_array_equal(robot_obs, state)
    np.testing.assert_array_equal(seen[1][0]["rgb_gripper"], plain["rgb_gripper"])


def test_chains_take_varied_layouts_in_turn_whoever_rolls_them_out(tmp_path):
    settings = {"policy": "expert", "chains": 3, "layouts": 3, "max_steps": 60}
    alone, shared = (
        load_results(evaluate(None, EvaluateConfig(output=str(tmp_path / f"{n}.json"), workers=n, **settings)))
        for n in (1, 2)
    )
    assert alone["chains"] == shared["chains"] and alone["versions"]["assets"] == shared["versions"]["assets"]
    assert alone["average_length"] > 0 and "3 varied layouts" in table(alone)
    world = PlayTableWorld(EvaluateConfig(layouts=3), PolicySpec(None, {}))
    jobs = make_jobs(EvaluateConfig(chains=4))
    drawers = []
    for job in jobs:
        world.start(job)
        drawers.append(world.env.fixtures.drawer_handle)
    world.close()
    assert len({tuple(np.ravel(drawer)) for drawer in drawers}) == 3
    with pytest.raises(ValueError, match="layouts: official scenes have one"):
        EvaluateConfig(layouts=3, assets="calvin")


def test_single_starts_prepare_what_each_task_needs():
    found = make_jobs(EvaluateConfig(protocol="single", starts=3, tasks=("place_in_drawer", "turn_on_led")))
    assert [job.tasks[0] for job in found] == ["place_in_drawer"] * 3 + ["turn_on_led"] * 3
    for job in found[:3]:
        assert all(any(task.startswith("lift") for task in start.before) for start in job.start)
    assert all(job.start[0].before == () for job in found[3:])
    assert len(make_jobs(EvaluateConfig(protocol="single", starts=100, tasks=("lift_pink_block_drawer",)))) == 100


def test_expert_results_are_the_same_for_any_number_of_workers_in_the_simulator(tmp_path):
    found = []
    for workers in (1, 2):
        settings = config(tmp_path / str(workers), policy="expert", workers=workers, chains=2, max_steps=120)
        found.append(load_results(evaluate(None, settings)))
    assert found[0]["chains"] == found[1]["chains"]
    assert sum(len(chain["steps"]) for chain in found[0]["chains"]) > 2
    assert found[0]["versions"]["assets"] and found[0]["versions"]["renderer"] == "tiny"


def test_single_tasks_are_evaluated_from_prepared_starts(tmp_path):
    settings = config(
        tmp_path, policy="expert", protocol="single", starts=1, tasks=("place_in_drawer", "turn_on_led"), max_steps=200
    )
    results = load_results(evaluate(None, settings))
    assert [chain["tasks"] for chain in results["chains"]] == [["place_in_drawer"], ["turn_on_led"]]
    assert results["crashed"] == 0 and results["per_task"]["turn_on_led"] == {"success": 1, "total": 1}
