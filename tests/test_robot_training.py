"""Both stages for robots of another shape than CALVIN's, and what does not fit one is refused."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import second_robot
import torch
from small_stores import human_store, robot_store
from test_stages import MODEL, TRAIN, merged

from arvrm import files, robots
from arvrm.config import from_dict
from arvrm.interface import UserError
from arvrm.model.checkpoint import load_checkpoint
from arvrm.model.policy_net import PolicyNet
from arvrm.robots.vector import Ranges
from arvrm.training import (
    FinetuneConfig,
    IndexConfig,
    PretrainConfig,
    RobotData,
    build_index_stage,
    finetune,
    pretrain,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Clips, a stage-1 checkpoint, an index, and stores of three robots."""
    root = tmp_path_factory.mktemp("robots")
    human_store(root / "human", tasks=2, per_task=3, steps=31)
    second_robot.store(root / "four", second_robot.ROBOT)
    second_robot.store(root / "two", second_robot.ONE_CAMERA)
    robot_store(root / "calvin", tasks=1, per_task=3, steps=13)
    hands = {"window": {"history": 3}, "model": MODEL, "train": TRAIN | {"steps": 2}}
    pretrain(from_dict(PretrainConfig, hands | given(root, "hands", "human")), progress=False)
    index = {"stores": [str(root / "human")], "checkpoint": str(root / "hands"), "output": str(root / "index")}
    build_index_stage(from_dict(IndexConfig, index), progress=False)
    return root


def given(root, output, *stores):
    return {"output": str(root / output), "data": {"stores": [str(root / name) for name in stores], "validation": 0.34}}


def tuning(root, output, *stores, **changes):
    base = {"model": MODEL, "train": TRAIN | {"steps": 2, "validate_every": 2}, "retrieval": {"clips": 2}}
    base |= {"window": {"history": 2, "stride": 3}, "replay_windows": 3, **given(root, output, *stores)}
    return from_dict(FinetuneConfig, merged(base, changes))


@pytest.mark.parametrize("robot, store", [(second_robot.ROBOT, "four"), (second_robot.ONE_CAMERA, "two")])
@pytest.mark.parametrize("predict_images", [False, True])
def test_policy_is_trained_for_a_robot_of_another_shape(root, tmp_path, robot, store, predict_images):
    model = {"fwd_pred": predict_images, "image_patch": 8}
    hands = {"pretrained": str(root / "hands"), "index": str(root / "index")}
    finetune(tuning(root, tmp_path / "run", store, model=model, **hands), progress=False)
    loaded = load_checkpoint(tmp_path / "run", kind="policy")
    assert loaded.robot == robot and loaded.model.robot == robot
    assert set(loaded.metadata.images) == {camera.name for camera in robot.cameras}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["robot"] == robot.name
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    judged = next(line for line in lines if line["split"] == "validation")
    assert np.isfinite(judged["arm_error"]) and ("gripper_accuracy" in judged) == (robot.binary > 0)
    assert np.isfinite(judged["loss_analogy"]) and np.isfinite(judged["loss_replay"])
    batch = RobotData(tuning(root, "unused", store, model=model), loaded.model).batch_of(0)
    assert batch["actions"].shape[-1] == robot.actions.size
    planned = loaded.model.act(batch)
    assert planned.shape == (8, 4, robot.actions.size) and planned.abs().max() <= 1


def test_policy_of_another_robot_is_no_start_and_its_numbers_are_kept_where_it_is_the_same(root, tmp_path):
    finetune(tuning(root, tmp_path / "calvin", "calvin"), progress=False)
    with pytest.raises(UserError, match="four holds episodes of robot four-joints, .*calvin a policy of calvin; "):
        finetune(tuning(root, tmp_path / "run", "four", pretrained=str(tmp_path / "calvin")), progress=False)
    finetune(tuning(root, tmp_path / "first", "four"), progress=False)
    # The checkpoint was made when the robot was described by other ranges.
    wider = {"low": [-6.0, -3.0, -1.0, -1.0], "high": [6.0, 3.0, 5.0, 120.0]}
    files.write_json(tmp_path / "first" / "statistics.json", wider)
    config = tuning(root, tmp_path / "second", "four", pretrained=str(tmp_path / "first"))
    finetune(config, progress=False)
    robot = load_checkpoint(tmp_path / "second").robot
    assert robot == dataclasses.replace(
        second_robot.ROBOT, statistics=Ranges(tuple(wider["low"]), tuple(wider["high"]))
    )
    actions = RobotData(config, load_checkpoint(tmp_path / "second").model).windows.actions
    stored = second_robot.episode(second_robot.ROBOT, 0).arrays["actions"]
    assert np.allclose(actions[: len(stored)].numpy(), robot.encode_actions(stored), atol=1e-6)


def test_stores_of_two_robots_are_refused(root, tmp_path):
    with pytest.raises(UserError, match="four-joints.*two-joints"):
        finetune(tuning(root, tmp_path / "run", "four", "two"), progress=False)


def test_robot_that_only_the_users_code_knows_is_named_by_its_place(root, tmp_path):
    place = "second_robot:ROBOT"
    named = tuning(root, tmp_path / "run", "four", data={"robot": place, "validation": 0.0})
    assert finetune(named, progress=False).steps == 2
    # A process that does not know the robot.
    script = (
        "import sys; from arvrm import interface, robots\n"
        "from arvrm.training import DataConfig, open_table\n"
        "for robot in (None, 'second_robot:ROBOT'):\n"
        "    try: print(open_table(DataConfig((sys.argv[1],), robot=robot), 'robot', 3).robot.name)\n"
        "    except interface.UserError as error: print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(root / "four")],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    unknown, known = ran.stdout.splitlines()
    assert "four-joints" in unknown and "package.module:object" in unknown and known == "four-joints"
    other = tuning(root, tmp_path / "other", "four", data={"robot": robots.CALVIN.name})
    with pytest.raises(
        UserError, match="data.robot: calvin is robot calvin, .*four holds episodes of robot four-joints"
    ):
        finetune(other, progress=False)


def test_folder_that_another_process_trains_into_is_refused(root, tmp_path):
    config = tuning(root, tmp_path / "run", "calvin")
    finetune(config, progress=False)
    script = (
        "import sys, time; from arvrm.files import locked\n"
        "with locked(sys.argv[1]): print('locked', flush=True); sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, config.output], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "locked\n"
    again = dataclasses.replace(config, resume=True)
    try:
        with pytest.raises(UserError, match=f"run: process {other.pid} on .* is writing it"):
            finetune(again, progress=False)
    finally:
        other.communicate()
    assert finetune(again, progress=False).steps == 2


def test_a_policy_that_is_blind_or_deaf_is_told_by_how_far_other_images_and_words_move_its_plan(root):
    from arvrm.training.finetuning import plan_moves

    config = tuning(root, "unused", "four", data={"validation": 0.5}, model={"sighted_queries": True})
    torch.manual_seed(0)
    network = PolicyNet(config.model, second_robot.ROBOT).eval()
    batch = RobotData(config, network).batch_of(0)
    batch["text"] = torch.arange(len(batch["text"]))[:, None, None] % 2 + torch.randn(1, *batch["text"].shape[1:])

    def moves():
        return plan_moves(network, batch, network(batch)["actions"][:, -1].detach())

    assert set(moves()) == {"moved_by_images", "moved_by_words"} and min(moves().values()) > 1e-5
    for camera in second_robot.ROBOT.cameras:
        tokens = network.image_tokens(camera.role)
        for layer in (tokens.patch, tokens.cls):
            torch.nn.init.zeros_(layer.weight)
    assert moves()["moved_by_images"] == 0 and moves()["moved_by_words"] > 1e-5
    batch["text"] = batch["text"][:1].expand_as(batch["text"])
    batch["text_mask"] = batch["text_mask"][:1].expand_as(batch["text_mask"])
    assert set(moves()) == {"moved_by_images"}
