import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from arvrm.interface import UserError
from arvrm.training import TrainConfig
from arvrm.training.loop import Trainer
from arvrm.training.optimizer import learning_rate, parameter_groups
from arvrm.training.runs import prepare_folder

HERE = Path(__file__)


class Line(nn.Module):
    """Fits y = x w with noise, so that the random state counts."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 16), nn.LayerNorm(16), nn.Dropout(0.2), nn.Linear(16, 1))

    def forward(self, batch):
        out = self.layers(batch["x"] + 0.01 * torch.randn_like(batch["x"]))
        error = (out[:, 0] - batch["y"]).square()
        return {"loss": error.mean(), "predicted": out}


def batch_of(index: int, size: int = 8):
    generator = torch.Generator().manual_seed(index)
    x = torch.randn(size, 4, generator=generator)
    return {"x": x, "y": x @ torch.tensor([1.0, -2.0, 0.5, 3.0])}


def save(folder: Path, model: nn.Module) -> None:
    from safetensors.torch import save_file

    save_file(dict(model.state_dict()), str(folder / "part.tmp"))
    os.replace(folder / "part.tmp", folder / "model.safetensors")


def trainer(folder, batches=batch_of, model=None, rate_share=None, **options):
    defaults = {"steps": 30, "batch": 8, "warmup": 3, "log_every": 5, "checkpoint_every": 10, "validate_every": 0}
    config = TrainConfig(**(defaults | {"device": "cpu", "tensorboard": False} | options))
    torch.manual_seed(config.seed)
    prepare_folder(Path(folder), resume=True, overwrite=False)

    def numbered(step, micro_batch):
        return batches(step * micro_batch.of + micro_batch.number)

    return Trainer(
        model or Line(),
        numbered,
        config,
        Path(folder),
        save,
        describe=lambda step, micro_batch: f"episodes of {step}",
        rate_share=rate_share,
    )


def lines(folder, split="train"):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["split"] == split]


OPTIONS = {
    "plain": {},
    "averaged, accumulated, bf16": {"ema": 0.9, "accumulate": 2, "precision": "bf16"},
    "a part at a share of the rate": {"rate_share": ("layers.0.", 0.1)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_run_killed_and_resumed_ends_with_the_same_bits(tmp_path, options):
    trainer(tmp_path / "whole", **options).run(progress=False)
    script = (
        "import os, signal, sys, torch\n"
        "sys.path.insert(0, sys.argv[1]); torch.set_num_threads(int(sys.argv[4]))\n"
        "import json; from test_loop import batch_of, trainer\n"
        "options = json.loads(sys.argv[3]); stop = 17 * options.get('accumulate', 1)\n"
        "def batches(index):\n"
        "    if index == stop: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return batch_of(index)\n"
        "trainer(sys.argv[2], batches, **options).run(progress=False)\n"
    )
    threads = str(torch.get_num_threads())
    arguments = [sys.executable, "-c", script, str(HERE.parent), str(tmp_path / "cut"), json.dumps(options), threads]
    assert subprocess.run(arguments).returncode == -signal.SIGKILL
    assert json.loads((tmp_path / "cut" / "state" / "latest.json").read_text())["step"] == 10
    result = trainer(tmp_path / "cut", **options).run(resume=True, progress=False)
    assert result.steps == 30
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    # The log has every step once, with the same numbers.
    pairs = zip(lines(tmp_path / "whole"), lines(tmp_path / "cut"), strict=True)
    assert all((one["step"], one["loss"]) == (other["step"], other["loss"]) for one, other in pairs)


def test_training_learns(tmp_path):
    trainer(tmp_path, steps=200, learning_rate=0.02, checkpoint_every=0).run(progress=False)
    losses = [line["loss"] for line in lines(tmp_path)]
    assert losses[-1] < 0.3 * losses[0]


def test_accumulated_batches_count_as_one(tmp_path):
    """Two halves accumulated give the gradient of the whole, up to rounding."""

    class Exact(Line):
        def forward(self, batch):
            return {"loss": (self.layers[0](batch["x"]).sum(-1) - batch["y"]).square().mean()}

    def halves(index):
        whole = batch_of(index // 2)
        rows = slice(4 * (index % 2), 4 * (index % 2) + 4)
        return {name: value[rows] for name, value in whole.items()}

    models = []
    for name, accumulate, source in (("one", 1, batch_of), ("two", 2, halves)):
        torch.manual_seed(1)
        model = Exact()
        trainer(tmp_path / name, source, model, accumulate=accumulate, steps=5).run(progress=False)
        models.append(model)
    for one, two in zip(*(model.parameters() for model in models), strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_workers_give_the_same_batches(tmp_path):
    trainer(tmp_path / "here", steps=6, checkpoint_every=0).run(progress=False)
    trainer(tmp_path / "there", steps=6, checkpoint_every=0, workers=1).run(progress=False)
    assert (tmp_path / "here" / "model.safetensors").read_bytes() == (
        tmp_path / "there" / "model.safetensors"
    ).read_bytes()


def test_loss_that_is_not_a_number_names_step_and_episodes(tmp_path):
    def batches(index):
        batch = batch_of(index)
        if index == 7:
            batch["y"][3] = float("nan")
        return batch

    with pytest.raises(UserError, match="step 7 is not a number.*episodes of 7"):
        trainer(tmp_path, batches, checkpoint_every=5).run(progress=False)
    # What was saved before is good to go on from.
    assert json.loads((tmp_path / "state" / "latest.json").read_text())["step"] == 5


def test_signal_saves_and_stops(tmp_path):
    def batches(index):
        if index == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch_of(index)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, batches, checkpoint_every=0).run(progress=False)
    assert signal.getsignal(signal.SIGTERM) is before
    assert json.loads((tmp_path / "state" / "latest.json").read_text())["step"] == 13
    trainer(tmp_path, checkpoint_every=0).run(resume=True, progress=False)
    trainer(tmp_path / "whole", checkpoint_every=0).run(progress=False)
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_time_budget_ends_the_run_and_its_schedule(tmp_path):
    def batches(index):
        threading.Event().wait(0.02)
        return batch_of(index)

    result = trainer(tmp_path, batches, steps=100_000, max_minutes=1.5 / 60, log_every=1).run(progress=False)
    assert result.steps < 100 and result.seconds < 15
    rates = [line["learning_rate"] for line in lines(tmp_path)]
    # The last update begins before the end, earlier the longer it takes.
    assert rates[-1] < 0.3 * max(rates)
    assert (tmp_path / "model.safetensors").exists()


def test_schedule_warms_up_and_follows_a_cosine():
    config = TrainConfig(steps=110, warmup=10, learning_rate=1.0, final_learning_rate=0.1)
    assert learning_rate(config, 0) == pytest.approx(1 / 11)
    assert learning_rate(config, 10) == pytest.approx(1.0)
    assert learning_rate(config, 60) == pytest.approx(0.1 + 0.9 * 0.5)
    assert learning_rate(config, 110) == pytest.approx(0.1)
    assert learning_rate(config, 10, time_used=1.0) == pytest.approx(0.1)


def test_norms_and_biases_do_not_decay_and_frozen_weights_are_left_out():
    model = Line()
    model.layers[3].weight.requires_grad_(False)
    decayed, plain = parameter_groups(model, 0.1)
    assert [p.shape for p in decayed["params"]] == [(16, 4)] and decayed["weight_decay"] == 0.1
    assert len(plain["params"]) == 4 and plain["weight_decay"] == 0.0


def test_a_share_of_the_rate_makes_groups_of_their_own_for_the_names_that_it_is_for():
    model = Line()
    groups = parameter_groups(model, 0.1, ("layers.0.", 0.25))
    slow = [p for group in groups[2:] for p in group["params"]]
    assert {id(p) for p in slow} == {id(p) for p in model.layers[0].parameters()}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert [group.get("rate_share") for group in groups] == [None, None, 0.25, 0.25]
    assert len(parameter_groups(model, 0.1, ("layers.0.", 1.0))) == 2, "as without, so that old runs resume"
    assert [group.get("rate_share") for group in parameter_groups(model, 0.1, ("", 0.25))] == [0.25, 0.25]


def test_average_is_saved_and_training_goes_on_from_the_live_weights(tmp_path):
    from safetensors.torch import load_file

    run = trainer(tmp_path, ema=0.5, steps=20)
    run.run(progress=False)
    saved = load_file(str(tmp_path / "model.safetensors"))
    live = run.bare.state_dict()
    assert any(not torch.equal(saved[name], live[name]) for name in live)
    assert all(torch.allclose(saved[name], live[name], atol=0.1) for name in live)


def test_existing_run_is_not_overwritten_unasked(tmp_path):
    prepare_folder(tmp_path / "run", False, False)
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="--resume.*--overwrite"):
        prepare_folder(tmp_path / "run", False, False)
    prepare_folder(tmp_path / "run", False, True)
    assert not list((tmp_path / "run").iterdir())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="not a run"):
        prepare_folder(tmp_path / "other", False, True)


def test_damaged_state_is_named(tmp_path):
    trainer(tmp_path, steps=10).run(progress=False)
    (tmp_path / "state" / "step-00000010" / "trainer.pt").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be resumed"):
        trainer(tmp_path, steps=20).run(resume=True, progress=False)


def test_cuda_without_gpu_is_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="train.device"):
        trainer(tmp_path, device="cuda")
