"""Checkpoints: whole or not there, strict, and the same model after loading."""

import dataclasses
import json
import shutil

import pytest
import torch
from model_batches import human_batch, robot_batch, small
from safetensors.torch import load_file, save_file

from arvrm.interface import UserError
from arvrm.model.checkpoint import checkpoint_hash, load_checkpoint, save_checkpoint, start_from_stage1
from arvrm.model.keypoint_vlm import KeypointVLM
from arvrm.model.metadata import CheckpointMetadata, TrainedOn
from arvrm.model.policy_net import PolicyNet
from arvrm.robots.calvin import CALVIN, Calvin, Statistics

HANDS = CheckpointMetadata("pretrain", history=4, stride=3, images={"rgb_static": 32})
PLANS = CheckpointMetadata("finetune", history=2, stride=3, images={"rgb_static": 32, "rgb_gripper": 32})


def stage1(**changes):
    torch.manual_seed(0)
    model = KeypointVLM(small(**changes)).eval()
    torch.nn.init.normal_(model.keypoint_head[-1].weight)
    return model


def policy(robot=CALVIN, **changes):
    torch.manual_seed(1)
    return PolicyNet(small(**changes), robot).eval()


def save(folder, model, **options):
    return save_checkpoint(folder, model, HANDS if isinstance(model, KeypointVLM) else PLANS, **options)


@pytest.mark.parametrize("changes", [{}, {"head": "flow", "analogy": {"map": "language", "at_rollout": "on"}}])
def test_a_policy_comes_back_the_same(tmp_path, changes):
    robot = Calvin(Statistics(euler_scale=(1.0, 1.0, 1.0)))
    model, batch = policy(robot, **changes), robot_batch(clips=1)
    metadata = dataclasses.replace(PLANS, tasks=("open_drawer",), stores=(TrainedOn("robot", "f00"),), clips=4)
    folder = save_checkpoint(tmp_path / "a", model, metadata)
    loaded = load_checkpoint(folder, kind="policy")
    assert torch.equal(loaded.model.act(batch), model.act(batch))
    assert loaded.config == model.config and loaded.robot == loaded.model.robot == robot
    assert loaded.metadata == metadata and not loaded.model.training
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "statistics.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["a"], "no temporary folder stays"


def test_stage_one_comes_back_the_same_and_starts_stage_two(tmp_path):
    model, batch = stage1(), human_batch()
    save(tmp_path / "one", model)
    assert torch.equal(load_checkpoint(tmp_path / "one").model(batch)["loss"], model(batch)["loss"])
    robot = policy()
    assert not torch.equal(robot.vlm(batch)["loss"], model(batch)["loss"])
    start_from_stage1(robot, tmp_path / "one")
    assert torch.equal(robot.vlm(batch)["loss"], model(batch)["loss"])


def test_stage_two_refuses_a_start_of_another_shape_or_kind(tmp_path):
    save(tmp_path / "one", stage1(joint_width=8))
    with pytest.raises(UserError, match=r"has shape .* expected"):
        start_from_stage1(policy(), tmp_path / "one")
    save(tmp_path / "two", policy())
    with pytest.raises(UserError, match="holds a policy model, expected keypoint_vlm"):
        start_from_stage1(policy(), tmp_path / "two")
    with pytest.raises(UserError, match="holds a policy model, expected keypoint_vlm"):
        load_checkpoint(tmp_path / "two", kind="keypoint_vlm")


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_loading_is_strict(tmp_path, fault):
    folder = save(tmp_path / "a", stage1())
    file = folder / "model.safetensors"
    tensors = load_file(file)
    if fault == "missing":
        del tensors["time"]
    elif fault == "unknown":
        tensors["times"] = torch.zeros(1)
    else:
        tensors["time"] = tensors["time"][:1].contiguous()
    save_file(tensors, file)
    messages = {"missing": "time is missing", "unknown": "times is unknown", "shape": r"time has shape \(1, 32\), exp"}
    with pytest.raises(UserError, match=messages[fault]):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "statistics.json"])
def test_missing_and_damaged_files_are_named(tmp_path, name):
    folder = save(tmp_path / "a", stage1())
    file = folder / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=f"{name}.*(not JSON|cannot be read).*again"):
        load_checkpoint(folder)
    file.unlink()
    with pytest.raises(UserError, match=f"(?i){name}: no such file"):
        load_checkpoint(folder)


def test_unknown_settings_and_formats_are_refused(tmp_path):
    folder = save(tmp_path / "a", stage1())
    described = json.loads((folder / "config.json").read_text())
    described["model"]["wdith"] = 3
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="unknown key 'wdith'; did you mean 'width'"):
        load_checkpoint(folder)
    described["format"] = 99
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="format 99 is unknown"):
        load_checkpoint(folder)


def test_an_existing_checkpoint_is_replaced_only_on_request(tmp_path):
    folder, later = save(tmp_path / "a", stage1()), dataclasses.replace(HANDS, episodes=2)
    with pytest.raises(UserError, match="exists; pass --overwrite"):
        save_checkpoint(folder, stage1(), later)
    assert load_checkpoint(folder).metadata == HANDS
    save_checkpoint(folder, stage1(), later, overwrite=True)
    assert load_checkpoint(folder).metadata == later
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_failed_save_leaves_the_old_checkpoint_whole(tmp_path):
    folder = save(tmp_path / "a", stage1())

    def fail(partial):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(folder, stage1(), dataclasses.replace(HANDS, episodes=2), overwrite=True, extra=fail)
    assert load_checkpoint(folder).metadata == HANDS
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_the_trainer_adds_arrives_with_the_rest(tmp_path):
    def extra(partial):
        (partial / "state").mkdir()
        (partial / "state" / "step").write_text("7")

    folder = save(tmp_path / "a", stage1(), extra=extra)
    assert (folder / "state" / "step").read_text() == "7"
    load_checkpoint(folder)


def test_the_hash_follows_the_files_and_not_their_folder(tmp_path):
    folder = save(tmp_path / "a", stage1())
    digest = checkpoint_hash(folder)
    assert digest == load_checkpoint(folder).hash and len(digest) == 64
    shutil.copytree(folder, tmp_path / "b")
    assert checkpoint_hash(tmp_path / "b") == digest
    digest = checkpoint_hash(save(tmp_path / "c", policy()))
    other = save(tmp_path / "d", policy(Calvin(Statistics(gripper_open_m=0.1))))
    assert checkpoint_hash(other) != digest


def test_a_vit_checkpoint_needs_no_other_directory(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
    )
    transformers.ViTMAEModel(config).save_pretrained(tmp_path / "vit")
    model = stage1(vision={"encoder": "mae", "path": str(tmp_path / "vit"), "film": False, "frozen": True})
    folder = save(tmp_path / "a", model)
    shutil.rmtree(tmp_path / "vit")
    batch = human_batch()
    assert torch.allclose(load_checkpoint(folder).model(batch)["loss"], model(batch)["loss"], atol=1e-6)


OLD_METADATA = {
    "stage": "finetune",
    "window": {"history": 2, "stride": 3, "chunk": 4, "image_size": None},
    "images": {"static": 200, "gripper": 84},
    "data": {"stores": ["robot"]},
    "train": {"steps": 3},
    "episodes": 7,
    "tasks": ["open_drawer"],
    "stores": [{"path": "robot", "fingerprint": "f00"}],
    "index": None,
    "retrieval": {"clips": 4},
    "pretrained": None,
}


def as_format_1(folder, **metadata):
    file = folder / "config.json"
    described = json.loads(file.read_text())
    del described["robot"]
    described |= {"format": 1, "metadata": {**OLD_METADATA, **metadata}}
    file.write_text(json.dumps(described))
    return folder


def test_format_1_is_read_as_what_it_would_be_today(tmp_path):
    model = policy(Calvin(Statistics(gripper_open_m=0.1)))
    loaded = load_checkpoint(as_format_1(save(tmp_path / "a", model), execute_steps=3))
    assert torch.equal(loaded.model.act(robot_batch()), model.act(robot_batch()))
    assert loaded.robot == Calvin(Statistics(gripper_open_m=0.1))
    metadata = loaded.metadata
    assert (metadata.history, metadata.stride, metadata.execute_steps, metadata.clips) == (2, 3, 3, 4)
    assert metadata.images == {"rgb_static": 200, "rgb_gripper": 84}
    assert metadata.stores == (TrainedOn("robot", "f00"),) and metadata.settings["data"] == {"stores": ["robot"]}


@pytest.mark.parametrize("absent, named", [("window", "history"), ("images", "images"), ("stage", "stage")])
def test_metadata_that_does_not_say_what_is_needed_is_refused(tmp_path, absent, named):
    folder = as_format_1(save(tmp_path / "a", policy()))
    described = json.loads((folder / "config.json").read_text())
    del described["metadata"][absent]
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=f"metadata: missing key '{named}'.*train it again"):
        load_checkpoint(folder)


def test_an_unknown_robot_is_refused_in_one_line(tmp_path):
    folder = save(tmp_path / "a", policy())
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"robot": "calvin"', '"robot": "calvim"'))
    with pytest.raises(UserError, match="unknown robot 'calvim'; did you mean 'calvin'"):
        load_checkpoint(folder)
