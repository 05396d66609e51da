"""How many threads training computes with, and that a resumed run keeps its number."""

import json
from dataclasses import replace

import pytest
import torch
from test_analogy_policy import made
from test_policy import make_policy, request

import arvrm.training.threads as threads
from arvrm.interface import UserError
from arvrm.policy import policy_factory
from arvrm.study.controls import Control, controlled
from arvrm.training import DataConfig, PretrainConfig, TrainConfig
from arvrm.training.threads import candidates, fastest, measured, threads_of, using_threads


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    """Let torch have two threads, nothing be said from outside, and two be five times slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(threads, "measured", lambda most: {2: 0.05, 1: 0.01})
    yield
    torch.set_num_threads(before)


def run(folder, threads=None, resume=True):
    train = TrainConfig(threads=threads)
    return PretrainConfig(output=str(folder), resume=resume, data=DataConfig(stores=("x",)), train=train)


@pytest.mark.parametrize(
    "times, number",
    [
        ({2: 0.05, 1: 0.01}, 1),
        ({2: 0.011, 1: 0.01}, 2),
        ({2: 0.006, 1: 0.01}, 2),
        ({8: 0.02, 4: 0.003, 2: 0.004, 1: 0.008}, 4),
        ({1: 0.0}, 1),
    ],
)
def test_fewer_threads_are_taken_only_where_they_are_clearly_faster(times, number):
    assert fastest(times) == number


@pytest.mark.parametrize("most, numbers", [(1, [1]), (2, [2, 1]), (6, [6, 3, 1]), (16, [16, 8, 4, 2, 1])])
def test_all_threads_and_halves_of_them_are_tried(most, numbers):
    assert candidates(most) == numbers


def test_numbers_take_turns_and_the_thread_count_comes_back():
    seen = []
    times = measured(2, lambda: seen.append(torch.get_num_threads()))
    assert seen[:4] == [2, 1, 2, 1] and set(times) == {1, 2} and torch.get_num_threads() == 2


@pytest.mark.parametrize("kind", ["analogy", "control", "learned"])
def test_a_policy_plans_with_its_own_threads_and_leaves_the_process_its_number(tmp_path, monkeypatch, kind):
    folder = make_policy(tmp_path / "c") if kind == "learned" else made(tmp_path / "c")
    factory, _ = policy_factory(folder, threads=1)
    policy = factory()
    if kind == "control":
        policy = controlled(policy, Control(motion="mean"), ())
    assert torch.get_num_threads() == 2, "loading leaves it as it was"
    seen = []
    name = "_plan" if kind == "learned" else "_answer"
    monkeypatch.setattr(policy, name, lambda asked: seen.append(torch.get_num_threads()))
    policy.plan([request()])
    assert seen == [1] and torch.get_num_threads() == 2, "training that follows in the same process has all cores"


def test_trying_changes_no_random_numbers():
    state = torch.get_rng_state()
    measured(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_choice_is_said_in_one_line_with_the_reason(capsys):
    with using_threads() as number:
        assert number == torch.get_num_threads() == 1
    assert capsys.readouterr().err == "threads: 1 of 2 (measured: 50.0 ms with 2, 10.0 ms with 1)\n"
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("precision, times, said", [("bf16", 19.8, True), ("bf16", 0.5, False), ("fp32", 19.8, False)])
def test_who_trains_in_bf16_on_a_processor_without_it_is_told(tmp_path, monkeypatch, capsys, precision, times, said):
    monkeypatch.setattr(threads, "bf16_slowdown", lambda: times)
    config = replace(run(tmp_path, resume=False), train=TrainConfig(precision=precision))
    with threads.threads_of(config):
        pass
    line = "precision: this processor computes in bf16 slowly; train.precision=fp32 is faster\n"
    assert (line in capsys.readouterr().err) == said
    with threads.threads_of(config, progress=False):
        assert capsys.readouterr().err == ""


def test_how_much_slower_bf16_is_is_measured():
    assert 0.01 < threads.bf16_slowdown() < 1000


def test_nothing_is_said_without_progress(capsys):
    with using_threads(progress=False):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "wanted, recorded, variable, number", [(2, 1, "1", 2), (None, 2, "1", 2), (None, None, "2", 2), (None, None, "", 1)]
)
def test_the_setting_comes_before_the_run_before_the_environment(
    tmp_path, monkeypatch, wanted, recorded, variable, number
):
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    if recorded:
        (tmp_path / "run.json").write_text(json.dumps({"hardware": {"threads": recorded}}))
    with threads_of(run(tmp_path, wanted), progress=False) as chosen:
        assert chosen == number
    with threads_of(replace(run(tmp_path, wanted), resume=False), progress=False) as chosen:
        assert chosen == (wanted or (2 if variable else 1))


@pytest.mark.parametrize("values", [{}, {"hardware": {}}, {"hardware": {"cores": 2}}, {"hardware": {"threads": "two"}}])
def test_a_run_that_does_not_say_its_threads_is_measured(tmp_path, values):
    (tmp_path / "run.json").write_text(json.dumps(values))
    with threads_of(run(tmp_path), progress=False) as number:
        assert number == 1


def test_a_damaged_run_file_is_one_line(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match="run.json"):
        threads_of(run(tmp_path))


def test_processes_of_a_launcher_keep_its_number(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with using_threads(progress=False) as number:
        assert number == 2


@pytest.mark.parametrize("number", [0, -1])
def test_threads_are_at_least_one(number):
    with pytest.raises(ValueError, match="threads"):
        TrainConfig(threads=number)
