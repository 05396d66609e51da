import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_stores import human_episode, human_store, robot_store, write

from arvrm.config import from_dict, load
from arvrm.interface import UserError
from arvrm.model.checkpoint import load_checkpoint
from arvrm.model.keypoint_vlm import KeypointVLM
from arvrm.model.policy_net import PolicyNet
from arvrm.robots.calvin import CALVIN
from arvrm.training import (
    EvaluateHandsConfig,
    FinetuneConfig,
    IndexConfig,
    PretrainConfig,
    RobotData,
    build_index_stage,
    evaluate_hands,
    finetune,
    pretrain,
)
from arvrm.training.judge import CONTROLS, HORIZONS, judge_windows, keypoint_errors
from arvrm.windows import EpisodeTable, HumanWindows, TextTable, WindowConfig, decode_frames

MODEL = {
    "width": 32,
    "layers": 1,
    "heads": 2,
    "joint_width": 8,
    "latents": 2,
    "chunk": 4,
    "resampler_heads": 2,
    "resampler_head_width": 8,
    "vision": {
        "static_size": 32,
        "gripper_size": 32,
        "width": 16,
        "channels": [8, 8],
        "depth": 1,
        "points": 8,
        "landmarks": 7,
    },
}
TRAIN = {
    "steps": 6,
    "batch": 8,
    "warmup": 1,
    "log_every": 2,
    "validate_every": 3,
    "checkpoint_every": 3,
    "device": "cpu",
    "tensorboard": False,
}
WINDOW = {"history": 2, "stride": 3}


def merged(base, changes):
    out = dict(base)
    for key, value in changes.items():
        inner = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if inner else value
    return out


def pretraining(root, **changes):
    base = {
        "output": str(root / "pretrained"),
        "data": {"stores": [str(root / "human")], "validation": 0.2},
        "window": {"history": 3, "stride": 3},
        "model": MODEL,
        "train": TRAIN,
    }
    return from_dict(PretrainConfig, merged(base, changes))


def finetuning(root, name, **changes):
    base = {
        "output": str(root / name),
        "data": {"stores": [str(root / "robot")], "validation": 0.2},
        "window": WINDOW,
        "model": MODEL,
        "train": TRAIN,
        "retrieval": {"clips": 2},
        "replay_windows": 4,
    }
    return from_dict(FinetuneConfig, merged(base, changes))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Stores, a pretrained checkpoint and an index of the clips by its encoder."""
    root = tmp_path_factory.mktemp("stages")
    human_store(root / "human", tasks=2, per_task=4, steps=31)
    robot_store(root / "robot", tasks=2, per_task=4, steps=19, landmarks=True)
    pretrain(pretraining(root), progress=False)
    index = {"stores": [str(root / "human")], "checkpoint": str(root / "pretrained"), "output": str(root / "index")}
    build_index_stage(from_dict(IndexConfig, index), progress=False)
    return root


def log(folder, split):
    found = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["split"] == split]


def claims(root):
    """The claim's rows, as switches."""
    given = {"pretrained": str(root / "pretrained")}
    indexed = given | {"index": str(root / "index")}
    without_map = {"model": {"analogy": {"enabled": False}}}
    return {"none": without_map, "pretrained": given | without_map, "replay": indexed | without_map, "map": indexed}


def test_pretraining_leaves_a_checkpoint_and_judges_held_out_clips(root):
    checkpoint = load_checkpoint(root / "pretrained", kind="keypoint_vlm")
    assert isinstance(checkpoint.model, KeypointVLM)
    assert checkpoint.metadata.stride == 3 and len(checkpoint.metadata.tasks) == 2
    lines = log(root / "pretrained", "validation")
    assert [line["step"] for line in lines] == [3, 6]
    assert {f"{kind}_{n}" for kind in ("error", "hold", "velocity") for n in (1, 5)} <= set(lines[0])
    # The hand moves steadily: holding it errs more the further one looks; going on errs where a clip has just begun.
    assert lines[0]["hold_5"] > 4 * lines[0]["hold_1"] > 0 and lines[0]["velocity_5"] < 0.3 * lines[0]["hold_5"]


def test_keypoint_errors_are_pixels_of_a_224_image(tmp_path):
    store = write(tmp_path / "s", [human_episode("a", steps=40, size=64)])
    table = EpisodeTable([store], "human", 3)
    text = TextTable(torch.zeros(1, 1, 256), torch.ones(1, 1, dtype=torch.bool))
    windows = HumanWindows(table, WindowConfig(history=2), 21, text, decode_frames(table, "rgb_static"))
    network = pretraining(tmp_path, model={"vision": {"static_size": 64}}).model
    anchors = windows.anchors(np.array([0]))[1:]
    errors = keypoint_errors(KeypointVLM(network).eval(), windows, anchors)
    moved = store.arrays("a")["keypoints"][3, 1, 0] - store.arrays("a")["keypoints"][0, 1, 0]
    assert errors["hold_1"] == pytest.approx(moved * 224 / 64, rel=1e-3)
    # An untrained network predicts that nothing moves.
    assert errors["error_1"] == pytest.approx(errors["hold_1"], rel=1e-3)
    assert errors["error_10"] == pytest.approx(errors["hold_10"], rel=1e-3)


def hand_windows(folder, episodes):
    store = write(folder, episodes)
    table = EpisodeTable([store], "human", 3)
    tokens = torch.randn(len(table.sentences), 2, 256, generator=torch.Generator().manual_seed(0))
    text = TextTable(tokens, torch.ones(len(table.sentences), 2, dtype=torch.bool))
    return HumanWindows(table, WindowConfig(history=2), 21, text, decode_frames(table, "rgb_static"))


class Oracle(torch.nn.Module):
    """Moves every joint by what one input says, so that taking that input away shows."""

    def __init__(self, reads):
        super().__init__()
        self.reads = reads

    def forward(self, batch):
        return {"loss": torch.zeros(())}

    def predict_next(self, batch, steps):
        signal = batch[self.reads].float().flatten(1).mean(1)
        return batch["keypoints"][:, -1:].expand(-1, steps, -1, -1) + signal[:, None, None, None]


@pytest.mark.parametrize(
    ("reads", "moved"), [("text", {"language_shuffled"}), ("static", {"frames_shuffled", "frames_blanked"})]
)
def test_each_control_takes_away_one_input_and_no_other(tmp_path, reads, moved):
    episodes = [
        human_episode("a", "open_drawer", "g0", steps=40, colour=(200, 0, 0)),
        human_episode("b", "turn_on_led", "g1", steps=40, seed=1, colour=(0, 60, 0)),
    ]
    windows = hand_windows(tmp_path / "s", episodes)
    anchors = windows.anchors(np.array([0, 1]))
    judged = judge_windows(Oracle(reads), windows, anchors, controls=CONTROLS)
    assert judged.counts.shape == (len(anchors), len(HORIZONS), 21)
    changed = {row for row in CONTROLS if not np.allclose(judged.sums[row], judged.sums["model"])}
    assert changed == moved
    again = judge_windows(Oracle(reads), windows, anchors, batch=5, controls=CONTROLS)
    for row, sums in judged.sums.items():
        assert sums == pytest.approx(again.sums[row], abs=1e-3), row


def test_shuffled_language_is_another_wording_wherever_there_is_one(tmp_path):
    episodes = [
        human_episode(f"e{n}", task, f"g{n}", steps=20) for n, task in enumerate(["open_drawer"] * 5 + ["lift"])
    ]
    windows = hand_windows(tmp_path / "s", episodes)
    judged = judge_windows(Oracle("text"), windows, windows.anchors(np.arange(6)), controls=("language_shuffled",))
    off = ~np.isclose(judged.sums["language_shuffled"], judged.sums["model"]).all(axis=(1, 2))
    assert off[judged.counts.any(axis=(1, 2))].all()


def test_hands_are_evaluated_on_what_training_held_out(root, tmp_path):
    config = EvaluateHandsConfig(str(root / "pretrained"), str(tmp_path / "hands.json"))
    path = evaluate_hands(config, progress=False)
    found = json.loads(path.read_text())
    assert found["stores"][0]["held_out_of_training"] and found["stores"][0]["clips"] < 8
    # The numbers that training itself wrote last.
    line = log(root / "pretrained", "validation")[-1]
    for row, name in {"model": "error", "hold": "hold", "velocity": "velocity"}.items():
        for horizon in HORIZONS:
            assert found["all"]["error_px"][row][str(horizon)] == pytest.approx(
                line[f"{name}_{horizon}"], rel=2e-2, abs=1e-3
            )
    assert set(found["all"]["error_px"]) == {"model", "hold", "velocity", *CONTROLS}
    assert len(found["all"]["model_px_per_joint"]["5"]) == 21
    low, high = found["all"]["above_model_px_95"]["hold"]["5"]
    difference = found["all"]["error_px"]["hold"]["5"] - found["all"]["error_px"]["model"]["5"]
    assert low - 1e-3 <= difference <= high + 1e-3
    with pytest.raises(UserError, match="--overwrite"):
        evaluate_hands(config, progress=False)


def test_hands_of_a_store_that_was_not_trained_on_are_all_evaluated(root, tmp_path):
    human_store(tmp_path / "new", tasks=1, per_task=2, steps=31)
    config = EvaluateHandsConfig(str(root / "pretrained"), str(tmp_path / "h.json"), (str(tmp_path / "new"),))
    found = json.loads(evaluate_hands(config, progress=False).read_text())
    assert not found["stores"][0]["held_out_of_training"] and found["stores"][0]["clips"] == 2
    assert found["all"]["windows"] == found["stores"][0]["windows"] > 10


def test_rows_of_the_claim_differ_in_switches_only(root):
    batches, losses = {}, {}
    for name, changes in claims(root).items():
        config = finetuning(root, f"row-{name}", **changes)
        finetune(config, progress=False)
        torch.manual_seed(config.train.seed)
        data = RobotData(config, PolicyNet(config.model, CALVIN))
        batches[name] = data.batch_of(3)
        losses[name] = set(log(root / f"row-{name}", "train")[0])
        assert log(root / f"row-{name}", "train")[-1]["step"] == 6
    for name in ("static", "state", "actions", "action_mask", "text"):
        assert all(torch.equal(batches["none"][name], batch[name]) for batch in batches.values())
    assert batches["none"]["clips"] is None and batches["pretrained"]["clips"] is None
    assert batches["replay"]["clips"]["keypoints"].shape == (8, 2, 2, 21, 3)
    assert "loss_replay" not in losses["pretrained"] and "loss_replay" in losses["replay"]
    assert "loss_analogy" not in losses["replay"] and "loss_analogy" in losses["map"]
    # The same stage-1 weights to begin with, and none in the first row.
    for name in ("pretrained", "replay", "map"):
        frozen = load_file(str(root / f"row-{name}" / "model.safetensors"))["vlm.joints.joint"]
        assert torch.equal(frozen, load_file(str(root / "pretrained" / "model.safetensors"))["joints.joint"])


def test_changing_retrieved_clips_changes_the_loss_and_at_rollout_the_actions(root):
    for at_rollout in ("off", "on"):
        changes = {
            "pretrained": str(root / "pretrained"),
            "index": str(root / "index"),
            "model": {"analogy": {"at_rollout": at_rollout}},
        }
        torch.manual_seed(0)
        config = finetuning(root, "unused", **changes)
        model = PolicyNet(config.model, CALVIN).eval()
        # The readout of an untrained keypoint head is zero; any value tells clips apart.
        for parameter in model.vlm.keypoint_head[-1].parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        data = RobotData(config, model)
        rng = np.random.default_rng(0)
        before = model(data.batch(data.train[:4], np.random.default_rng(0)))
        data.clips.matches.rows[:] = (data.clips.matches.rows + 3) % len(data.clips.index)
        after = model(data.batch(data.train[:4], rng))
        for name in ("loss_analogy", "loss_replay", "loss"):
            assert not torch.isclose(before[name], after[name], rtol=1e-6), name
        same = torch.equal(before["actions"], after["actions"])
        assert same == (at_rollout == "off")


def test_replay_takes_retrieved_clips_only(root):
    config = finetuning(root, "unused", **claims(root)["replay"])
    data = RobotData(config, PolicyNet(config.model, CALVIN))
    batch = data.batch_of(0)
    assert batch["replay"]["static"].shape == (4, 2, 32, 32, 3) and "static" not in batch["clips"]
    clips = batch["clips"]["keypoints"].flatten(0, 1)
    assert all(any(torch.equal(window, clip) for clip in clips) for window in batch["replay"]["keypoints"])
    whole = finetuning(root, "unused", replay_windows=None, **claims(root)["replay"])
    assert RobotData(whole, PolicyNet(whole.model, CALVIN)).batch_of(0)["clips"]["static"].shape == (8, 2, 2, 32, 32, 3)


def test_pretrained_weights_are_trained_at_their_share_of_the_rate(root, tmp_path):
    before = load_file(str(root / "pretrained" / "model.safetensors"))
    moved = {}
    for share in (1.0, 0.1, 0.0):
        folder = tmp_path / f"share-{share}"
        changes = claims(root)["pretrained"] | {"pretrained_rate": share}
        finetune(finetuning(root, folder, **changes), progress=False)
        after = load_file(str(folder / "model.safetensors"))
        changed = [(after[f"vlm.{name}"] - value).abs().mean().item() for name, value in before.items()]
        moved[share] = sum(changed)
    assert moved[0.0] == 0 and 0 < moved[0.1] < 0.5 * moved[1.0]
    with pytest.raises(UserError, match="give pretrained"):
        finetuning(root, "unused", pretrained_rate=0.1)


def test_replay_predicts_as_far_as_stage_one_did(root):
    config = finetuning(root, "unused", index=str(root / "index"), model={"horizon": 3})
    data = RobotData(config, PolicyNet(config.model, CALVIN))
    whole = data.batch_of(0)
    assert "future_keypoints" not in whole["clips"], "the map reads none"
    batch = whole["replay"]
    assert batch["future_keypoints"].shape == (4, 3, 21, 3) and batch["future_visible"].any()
    assert torch.equal(batch["future_keypoints"][:, 0], batch["next_keypoints"])


def test_held_out_groups_are_never_drawn(root):
    config = finetuning(root, "unused", data={"episodes_per_task": 2})
    data = RobotData(config, PolicyNet(config.model, CALVIN))
    table = data.windows.table
    held_out = set(table.group[table.episode_of_image[data.held_out]])
    drawn = {
        int(table.episode_of_image[anchor]) for step in range(50) for anchor in data.sampler.draw(step, 8).tolist()
    }
    assert held_out and not held_out & {int(table.group[episode]) for episode in drawn}
    assert drawn == set(data.train_episodes.tolist()) and len(drawn) <= 4


def test_finetuning_killed_and_resumed_ends_with_the_same_bits(root, tmp_path):
    changes = claims(root)["map"] | {"train": {"ema": 0.9}}
    finetune(finetuning(root, str(tmp_path / "whole"), **changes), progress=False)
    script = (
        "import os, signal, sys, torch; torch.set_num_threads(int(sys.argv[3]))\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import test_stages as t; from pathlib import Path\n"
        "draw = t.RobotData.batch_of\n"
        "def batch_of(self, step, *piece):\n"
        "    if step == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return draw(self, step, *piece)\n"
        "t.RobotData.batch_of = batch_of\n"
        "root = Path(sys.argv[2]); changes = t.claims(root)['map'] | {'train': {'ema': 0.9}}\n"
        "t.finetune(t.finetuning(root, sys.argv[4], **changes), progress=False)\n"
    )
    arguments = [str(Path(__file__).parent), str(root), str(torch.get_num_threads()), str(tmp_path / "cut")]
    assert subprocess.run([sys.executable, "-c", script, *arguments]).returncode == -signal.SIGKILL
    assert json.loads((tmp_path / "cut" / "state" / "latest.json").read_text())["step"] == 3
    finetune(finetuning(root, str(tmp_path / "cut"), resume=True, **changes), progress=False)
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (
        tmp_path / "cut" / "model.safetensors"
    ).read_bytes()
    assert load_checkpoint(tmp_path / "cut", kind="policy").metadata.episodes == 6
    assert not [name for name in os.listdir(tmp_path / "cut") if name.startswith(".")]


def test_a_run_notes_its_threads_and_keeps_them_when_resumed(root, tmp_path, capsys):
    pretrain(pretraining(root, output=str(tmp_path / "run"), train={"threads": 2}), progress=False)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["hardware"]["threads"] == 2
    capsys.readouterr()
    pretrain(pretraining(root, output=str(tmp_path / "run"), resume=True))
    assert "threads: 2 of" in capsys.readouterr().err


def test_resumed_run_must_have_the_same_configuration(root, tmp_path):
    finetune(finetuning(root, str(tmp_path / "run")), progress=False)
    with pytest.raises(UserError, match="train.learning_rate was 0.001, is 0.1"):
        changed = finetuning(root, str(tmp_path / "run"), resume=True, train={"learning_rate": 0.1})
        finetune(changed, progress=False)
    again = finetuning(root, str(tmp_path / "run"), resume=True, train={"log_every": 1})
    assert finetune(again, progress=False).steps == 6


@pytest.mark.parametrize("key, constant, other", [("train.beta2", 0.99, 0.999)])
def test_run_of_an_older_version_goes_on_unless_a_setting_meant_what_is_gone(root, tmp_path, key, constant, other):
    config = pretraining(root, output=str(tmp_path / "run"), train={"steps": 2})
    pretrain(config, progress=False)
    file = tmp_path / "run" / "run.json"
    section, _, name = key.partition(".")

    def begun_with(value):
        values = json.loads(file.read_text())
        values["config"][section][name] = value
        file.write_text(json.dumps(values))

    begun_with(constant)
    pretrain(dataclasses.replace(config, resume=True), progress=False)
    begun_with(other)
    with pytest.raises(UserError, match=f"{name}: is {other}, and is always {constant}"):
        pretrain(dataclasses.replace(config, resume=True), progress=False)


def test_run_that_an_earlier_version_began_is_resumed(root, tmp_path):
    finetune(finetuning(root, str(tmp_path / "run")), progress=False)
    file = tmp_path / "run" / "run.json"
    values = json.loads(file.read_text())
    values["config"]["window"] |= {"chunk": 4, "image_size": None, "gripper_size": None, "image_ahead": 1}
    del values["config"]["window"]["image_horizon"]
    file.write_text(json.dumps(values))
    assert finetune(finetuning(root, str(tmp_path / "run"), resume=True), progress=False).steps == 6
    values["config"]["window"]["chunk"] = 5
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match="window.chunk 5 is not the model's 4"):
        finetune(finetuning(root, str(tmp_path / "run"), resume=True), progress=False)


def test_frozen_encoder_is_run_once_and_trains_the_same_from_its_features(root, tmp_path):
    vision = {"model": {"vision": {"frozen": True, "film": False}}, "train": {"steps": 2}}
    cached = vision | {"data": {"cache": str(tmp_path / "cache")}}
    finetune(finetuning(root, str(tmp_path / "one"), **cached), progress=False)
    files = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert len(files) == 2 and all("all-" in name for name in files)
    finetune(finetuning(root, str(tmp_path / "two"), **cached), progress=False)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == files
    one, two = (log(tmp_path / name, "validation")[-1]["loss"] for name in ("one", "two"))
    assert one == two


def test_frames_read_on_demand_train_the_same(root, tmp_path):
    for name, in_memory in (("memory", True), ("disk", False)):
        finetune(finetuning(root, str(tmp_path / name), data={"in_memory": in_memory}), progress=False)
    assert (tmp_path / "memory/model.safetensors").read_bytes() == (tmp_path / "disk/model.safetensors").read_bytes()


@pytest.mark.parametrize("order", ["random", "epochs"])
def test_pretraining_streamed_and_cut_at_any_step_ends_with_the_same_bits(root, tmp_path, monkeypatch, order):
    data = {"order": order, "weights": [1.0, 3.0], "stores": [str(root / "human"), str(root / "more-*")]}
    for number in range(2):
        if not (root / f"more-{number}").exists():
            human_store(root / f"more-{number}", tasks=1, per_task=2 + number, steps=25 + 6 * number)

    def run(name, **changes):
        given = {
            "output": str(tmp_path / name),
            "data": data | changes.pop("data", {}),
            "train": {"checkpoint_every": 1},
        }
        return pretrain(pretraining(root, **given, **changes), progress=False)

    run("memory", data={"in_memory": True})
    batch, left = HumanWindows.batch, iter(range(100))

    def stopped(self, anchors):
        if len(anchors) == TRAIN["batch"] and next(left) == cut:
            raise KeyboardInterrupt
        return batch(self, anchors)

    monkeypatch.setattr(HumanWindows, "batch", stopped)
    for cut in (2, 3):  # of the batches drawn by this process: steps 2 and 4 of the run
        with pytest.raises(KeyboardInterrupt):
            run("disk", data={"in_memory": False}, resume=cut == 3)
        left = iter(range(100))
    run("disk", data={"in_memory": False}, resume=True)
    assert (tmp_path / "memory/model.safetensors").read_bytes() == (tmp_path / "disk/model.safetensors").read_bytes()
    metadata = load_checkpoint(tmp_path / "disk").metadata
    assert [Path(store.path).name for store in metadata.stores] == ["human", "more-0", "more-1"]


def test_pattern_that_matches_no_store_is_named(root):
    with pytest.raises(UserError, match=r"'.*nothing-\*' matches no folder"):
        pretrain(
            pretraining(root, data={"stores": [str(root / "nothing-*")]}, output=str(root / "never")), progress=False
        )


def test_unknown_key_and_wrong_values_are_named(root, tmp_path):
    with pytest.raises(UserError, match="unknown key 'clip'; did you mean 'clips'"):
        finetuning(root, "unused", retrieval={"clip": 3})
    with pytest.raises(UserError, match="data.stores: is empty"):
        finetune(finetuning(root, str(tmp_path / "a"), data={"stores": []}), progress=False)
    with pytest.raises(UserError, match="no episode of 'stack_block'"):
        finetune(finetuning(root, str(tmp_path / "b"), data={"tasks": ["stack_block"]}), progress=False)
    with pytest.raises(UserError, match="no robot episode"):
        finetune(finetuning(root, str(tmp_path / "c"), data={"stores": [str(root / "human")]}), progress=False)
    with pytest.raises(UserError, match="at_rollout is on but index is null"):
        finetune(finetuning(root, str(tmp_path / "d"), model={"analogy": {"at_rollout": "on"}}), progress=False)
    with pytest.raises(UserError, match="holds a policy model|expected keypoint_vlm|No such file"):
        finetune(finetuning(root, str(tmp_path / "e"), pretrained=str(tmp_path / "nothing")), progress=False)
    # Nothing is left of a run that could not begin.
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, kind", [("playtable_pretrain", PretrainConfig), ("playtable_finetune", FinetuneConfig)])
def test_small_configurations_are_valid(name, kind):
    config = load(kind, Path(__file__).parent.parent / "configs" / f"{name}.json")
    assert config.model.width == 128, "both stages share a model"
