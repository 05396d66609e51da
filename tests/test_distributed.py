"""Several processes: the losses of one, exact resume, whole checkpoints, and every chain once.

The runs themselves are in distributed_runs.py and distributed_evaluations.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_evaluation as small
import torch
from safetensors.torch import load_file

from arvrm import paper, processes
from arvrm.evaluation import evaluate
from arvrm.interface import UserError
from arvrm.model import split_batch
from arvrm.model.checkpoint import load_checkpoint
from arvrm.results import ChainLog, ChainRecord, load_results
from arvrm.training.distribution import MicroBatch, check_division

HERE = Path(__file__).parent
CLOSE = 1e-4


def made_by(script, folder):
    """Run one of the scripts; return its folder and what ended well."""
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [sys.executable, str(HERE / script), str(folder)], env=environment, capture_output=True, text=True, timeout=900
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return folder, json.loads((folder / "done.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return made_by("distributed_runs.py", tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    return made_by("distributed_evaluations.py", tmp_path_factory.mktemp("evaluations"))


def log(folder, split="train"):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = ("windows_per_second", "seconds")
    return [{k: v for k, v in line.items() if k not in times} for line in lines if line["split"] == split]


def largest_difference(one, other):
    """Of all logged numbers; the logs must have the same lines and names."""
    assert [set(line) for line in one] == [set(line) for line in other] and one
    numbers = [(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a if name != "split"]
    return max(abs(a - b) / max(1.0, abs(a)) for a, b in numbers)


def same_weights(one, other, near=CLOSE):
    a, b = (load_file(str(folder / "model.safetensors")) for folder in (one, other))
    assert {k: (v.shape, v.dtype) for k, v in a.items()} == {k: (v.shape, v.dtype) for k, v in b.items()}
    return all(torch.allclose(a[name], b[name], atol=near) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two", "three"])
def test_processes_that_share_a_batch_have_the_losses_of_one(runs, name):
    """Random shifts, colours, clips and replay included; masks let each share count for another number of things."""
    root, done = runs
    assert done[name]
    for split in ("train", "validation"):
        assert largest_difference(log(root / "one", split), log(root / name, split)) < CLOSE
    assert same_weights(root / "one", root / name)
    assert not np.isclose(log(root / name)[0]["loss"], log(root / name)[-1]["loss"], rtol=1e-2), "nothing was learnt"


@pytest.mark.slow
def test_killed_processes_that_are_resumed_end_with_the_same_bits(runs):
    root, done = runs
    assert done["two killed"] is False and done["two again"]
    whole, again = root / "two", root / "two again"
    assert log(whole) == log(again) and [line["step"] for line in log(again)] == [1, 2, 3, 4]
    assert (whole / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two on one", "two on three"])
def test_run_goes_on_with_another_number_of_processes(runs, name):
    root, done = runs
    assert done.get(name, True)
    assert json.loads((root / name / "run.json").read_text())["processes"]["number"] == 2, "it was begun by two"
    assert largest_difference(log(root / "one"), log(root / name)) < CLOSE and same_weights(root / "one", root / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sharded again", "sharded on one"])
def test_shards_killed_and_resumed_with_or_without_shards_have_the_losses_of_one_process(runs, name):
    """FSDP, with two backward passes an update; the one process had as many."""
    root, done = runs
    assert done["sharded killed"] is False and done["sharded again"]
    assert json.loads((root / name / "run.json").read_text())["processes"]["sharded"]
    for split in ("train", "validation"):
        assert largest_difference(log(root / "one accumulated", split), log(root / name, split)) < CLOSE
    assert same_weights(root / "one accumulated", root / name)


@pytest.mark.slow
@pytest.mark.parametrize("name, one", [("three", "one"), ("sharded again", "one accumulated")])
def test_checkpoint_and_state_of_several_processes_are_those_of_one(runs, name, one):
    root, _ = runs
    checkpoint = load_checkpoint(root / name, kind="policy")
    assert checkpoint.metadata.settings["train"]["ema"] == 0.9

    def layout(folder):
        (file,) = (folder / "state").glob("*/trainer.pt")
        state = torch.load(file, weights_only=True)
        shapes = {k: v.shape for k, v in state["model"].items()}, [v.shape for v in state["average"]["mean"]]
        moments = state["optimizer"]["state"]
        return state, (shapes, {i: {k: v.shape for k, v in m.items()} for i, m in moments.items()})

    (alone, expected), (several, found) = layout(root / one), layout(root / name)
    assert found == expected
    # What is saved for policies is the average; training goes on from the live weights.
    saved = load_file(str(root / name / "model.safetensors"))
    assert any(not torch.equal(saved[key], value) for key, value in several["model"].items())
    assert all(torch.allclose(several["model"][key], value, atol=CLOSE) for key, value in alone["model"].items())


@pytest.mark.slow
def test_fewer_windows_than_processes_are_no_hindrance(runs):
    root, done = runs
    assert done["few"] and [line["step"] for line in log(root / "few run", "validation")] == [1, 2]
    assert log(root / "few run", "validation")[-1]["error_1"] > 0
    assert load_checkpoint(root / "few run", kind="keypoint_vlm").metadata.episodes == 1


@pytest.mark.slow
def test_process_that_fails_ends_all_with_one_line(runs):
    root, done = runs
    assert done["failed"] is False
    said = [
        line for line in (root / "failed.log").read_text().splitlines() if line.startswith(("error", "interrupted"))
    ]
    assert said == ["error: process 2 of 3: RuntimeError: a disk broke"]
    # What was saved before is good to go on from.
    assert json.loads((root / "failed run" / "state" / "latest.json").read_text())["step"] == 2


def test_batch_that_cannot_be_shared_alike_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    check_division(12, 2)
    with pytest.raises(UserError, match=r"train.batch: 16 is no multiple of 3 processes x 1"):
        check_division(16, 1)
    with pytest.raises(ValueError, match="16 rows cannot be cut into 3 micro-batches"):
        MicroBatch(0, 3).rows(16)


def test_pieces_of_any_number_of_processes_are_the_same_rows_of_each_backward_pass():
    rows = np.arange(24)
    for accumulate in (1, 2):
        passes = []
        for world in (1, 2, 3):
            pieces = [
                [rows[MicroBatch(n * world + rank, accumulate * world).rows(24)] for rank in range(world)]
                for n in range(accumulate)
            ]
            passes.append([np.concatenate(some).tolist() for some in pieces])
        assert passes[0] == passes[1] == passes[2]
        assert sum(passes[0], []) == rows.tolist()


def test_shares_divide_by_what_all_let_count_and_draw_their_own_rows():
    counts, values = torch.tensor([1, 5, 0]), torch.tensor([2.0, 3.0, 0.0])
    means, drawn = [], []
    for number in range(3):
        generator = torch.Generator().manual_seed(7)
        total = lambda tensor: tensor.fill_(float(counts.sum()))  # noqa: E731
        with split_batch.holding(split_batch.Share(number, 3, total, generator)):
            means.append(float(values[number] / split_batch.divisor(counts[number])))
            drawn.append(split_batch.draw_rows(lambda n, g: torch.rand(n, 2, generator=g), 4))
    assert np.mean(means) == pytest.approx(5.0 / 6)
    assert torch.equal(torch.cat(drawn), torch.rand(12, 2, generator=torch.Generator().manual_seed(7)))
    assert int(split_batch.divisor(torch.tensor(0))) == 1 and int(split_batch.divisor(torch.tensor(4))) == 4


# Evaluation ----------------------------------------------------------------------------------------------------------


def chains_of_one(folder, count):
    path = evaluate(small.Steady, small.config(folder), small.SmallWorld, small.jobs(count))
    return load_results(path)["chains"]


@pytest.mark.parametrize("name, count", [("three", 9), ("killed", 9), ("one chain", 1)])
def test_shared_chains_are_those_of_one_process_and_each_is_there_once(evaluations, tmp_path, name, count):
    root, done = evaluations
    assert done["three"] and done["resumed"] and done["one chain"] and done["killed"] is False
    results = load_results(root / name / "results.json")
    assert results["chains"] == chains_of_one(tmp_path, count)
    lines = (root / name / "results.chains.jsonl").read_text().splitlines()[1:]
    assert sorted(json.loads(line)["index"] for line in lines) == list(range(count))
    assert sorted(path.name for path in (root / name).iterdir()) == ["results.chains.jsonl", "results.json"]
    assert results["planning"]["plans"] > 0 and results["versions"]["simulator"] == "small"


def test_killed_processes_leave_a_log_each_and_one_process_goes_on_with_them(evaluations, tmp_path):
    root, _ = evaluations
    names = ["results.chains.jsonl", "results.chains.jsonl.part1"]
    assert json.loads((root / "killed.json").read_text()) == names
    finished = {}
    for name in names:
        content = (root / f"after the kill {name}").read_bytes()
        finished[name] = [json.loads(line)["index"] for line in content.splitlines()[1:]]
        (tmp_path / name).write_bytes(content)
    assert [len(indices) for indices in finished.values()] == [2, 2] and len(set(sum(finished.values(), []))) == 4
    with pytest.raises(UserError, match="part1: exists; pass --resume"):
        evaluate(small.Steady, small.config(tmp_path), small.SmallWorld, small.jobs(9))
    path = evaluate(small.Steady, small.config(tmp_path, resume=True), small.SmallWorld, small.jobs(9))
    assert load_results(path)["chains"] == chains_of_one(tmp_path / "whole", 9)
    again = (tmp_path / names[0]).read_bytes().splitlines()
    assert len(again) == 10 and not (tmp_path / names[1]).exists()


def test_policy_that_fails_in_one_process_ends_the_evaluation(evaluations):
    root, done = evaluations
    assert done["broken"] is False and not (root / "broken" / "results.json").exists()


def test_log_has_one_writer_and_takes_over_another_log_once(tmp_path):
    def record(index):
        return ChainRecord(index, ("open_drawer",), 1, (3,))

    with ChainLog(tmp_path / "log", {"seed": 0}) as log:
        log.append(record(0), 1.0)
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(UserError, match="is writing it"):
                ChainLog(tmp_path / "log", {"seed": 0}, **options)
        with ChainLog(tmp_path / "part", {"seed": 0}) as part:
            part.append(record(0), 5.0)  # as after a kill while it was taken over
            part.append(record(2), 7.0, {"physics": 2.0})
        log.absorb(tmp_path / "part")
        assert sorted(log.records) == [0, 2] and log.seconds == 7.0 and log.cost == {"physics": 2.0}
    assert not (tmp_path / "part").exists()
    with ChainLog(tmp_path / "log", {"seed": 0}, resume=True) as log:
        assert sorted(log.records) == [0, 2]
        ChainLog(tmp_path / "other", {"seed": 1}).close()
        with pytest.raises(UserError, match="begun with seed"):
            log.absorb(tmp_path / "other")


# The commands --------------------------------------------------------------------------------------------------------


def test_alone_a_process_has_no_board_and_its_errors_are_its_own(capsys):
    assert processes.board() is None and processes.is_main() and not processes.orphaned()
    assert processes.device("cuda") == "cuda"

    def fail(error):
        raise error

    assert processes.run_main(lambda: fail(UserError("a\n b")), "error: ", "") == 2
    assert processes.run_main(lambda: fail(KeyboardInterrupt()), "", "interrupted") == 130
    assert capsys.readouterr().err == "error: a b\ninterrupted\n"
    with pytest.raises(ZeroDivisionError):
        processes.run_main(lambda: 1 // 0, "", "")


def torchrun(folder, script, *arguments, processes=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    command += [str(HERE.parent / script), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_paper_commands_train_and_evaluate_under_torchrun(tmp_path):
    from test_paper import tiny

    tiny(tmp_path)
    values = json.loads((tmp_path / "configs.json").read_text()) | {"num_sequences": 3}
    (tmp_path / "configs.json").write_text(json.dumps(values))
    file = str(tmp_path / "configs.json")
    trained = torchrun(tmp_path, "train.py", "--config", file)
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert trained.stdout.splitlines() == [str(tmp_path / "save" / "policy")]
    assert log(tmp_path / "save" / "policy")[-1]["step"] == 4  # 63 windows, 2 x 2 x 4 at a time
    again = torchrun(tmp_path, "train.py", "--config", file)
    assert again.returncode != 0
    assert [line for line in again.stderr.splitlines() if line.startswith("error:")] == [
        f"error: {tmp_path / 'save' / 'policy'}: exists; pass --resume to go on with it or --overwrite to replace it"
    ]
    evaluated = torchrun(tmp_path, "evaluate.py", "--config", file, "--workers", "1")
    assert evaluated.returncode == 0, evaluated.stderr[-3000:]
    results = load_results(tmp_path / "save" / "results.json")
    assert [chain["index"] for chain in results["chains"]] == [0, 1, 2]
    assert evaluated.stdout.splitlines() == ["save/results.json"] or evaluated.stdout.strip().endswith("results.json")


def test_published_batch_is_that_of_all_processes(monkeypatch, tmp_path):
    pytest.importorskip("transformers")
    from test_paper import tiny

    values = tiny(tmp_path)
    found = []
    for world, accumulate in ((2, 3), (3, 2)):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        found.append(paper.finetune_config(paper.parse({**values, "gradient_accumulation_steps": accumulate})).train)
    assert found[0].batch == found[1].batch == 24 and found[0].steps == found[1].steps


def test_slurm_script_starts_what_the_commands_understand(tmp_path):
    """With stand-ins for SLURM's and torchrun's programs, on the second of two nodes."""
    from torch.distributed.run import get_args_parser

    stand_ins = {
        "scontrol": "echo node-a; sleep 0.2; echo node-b",  # slower than a reader that stops at the first line
        "srun": 'while [[ $1 == -* ]]; do shift; done; exec "$@"',
        "torchrun": f'printf "%s\\n" "$@" --- >> {tmp_path}/said',
    }
    for name, text in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_GPUS_ON_NODE": "8"}
    environment = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = ["bash", str(HERE.parent / "configs" / "slurm.sh"), "configs/configs_ABC.json"]
    ran = subprocess.run(script, env=environment, cwd=HERE.parent, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    calls = [call.split() for call in (tmp_path / "said").read_text().split("---")[:-1]]
    for call, program in zip(calls, ("train.py", "evaluate.py"), strict=True):
        known = get_args_parser().parse_args(call)
        assert (known.nnodes, known.node_rank, known.nproc_per_node) == ("2", 1, "8")
        assert (known.master_addr, known.master_port, known.training_script) == ("node-a", 29500, program)
        assert known.training_script_args[:2] == ["--config", "configs/configs_ABC.json"]
        assert known.training_script_args[2:] in (["--resume"], ["--device", "cuda", "--resume"])
        assert (HERE.parent / program).exists()
    assert subprocess.run(script[:2], env=environment, capture_output=True).returncode != 0
    (tmp_path / "scontrol").write_text("#!/bin/bash\nexit 3\n")
    assert subprocess.run(script, env=environment, cwd=HERE.parent, capture_output=True).returncode == 3
