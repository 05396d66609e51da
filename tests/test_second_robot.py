"""A robot of another shape goes all the way: store, both stages of training, plans; and what must not mix."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from page_code import write_files
from second_robot import ONE_CAMERA, ROBOT, episode, store
from small_stores import human_store, robot_store

from arvrm.config import from_dict
from arvrm.episodes import EpisodeWriter
from arvrm.interface import Observation, PlanRequest, UserError
from arvrm.model.checkpoint import load_checkpoint
from arvrm.policy import load_policy
from arvrm.training import FinetuneConfig, IndexConfig, PretrainConfig, build_index_stage, finetune, pretrain

MODEL = {
    "width": 32, "layers": 1, "heads": 2, "latents": 2, "joint_width": 16, "chunk": 4,
    "vision": {"static_size": 32, "gripper_size": 32, "width": 32, "channels": [8, 16], "depth": 1, "points": 8},
}  # fmt: skip
TRAIN = {"steps": 2, "batch": 4, "device": "cpu", "tensorboard": False, "validate_every": 0}
ROBOTS = [ROBOT, ONE_CAMERA]
NAMES = [robot.name for robot in ROBOTS]


def finetuned(folder: Path, stores: list[Path], **more) -> Path:
    values = {
        "output": str(folder),
        "data": {"stores": list(map(str, stores)), "validation": 0.34},
        "window": {"history": 2, "stride": 3},
        "model": MODEL,
        "train": TRAIN,
    }
    finetune(from_dict(FinetuneConfig, values | more), progress=False)
    return folder


@pytest.fixture(scope="module")
def hands(tmp_path_factory) -> dict[str, Path]:
    """Stage 1 and an index, on clips of hands: they know of no robot."""
    folder = tmp_path_factory.mktemp("hands")
    human_store(folder / "human")
    values = {"output": str(folder / "pretrain"), "data": {"stores": [str(folder / "human")]}, "train": TRAIN}
    pretrain(from_dict(PretrainConfig, values | {"window": {"history": 2}, "model": MODEL}), progress=False)
    index = IndexConfig((str(folder / "human"),), str(folder / "pretrain"), str(folder / "index"))
    build_index_stage(index, progress=False)
    return {"pretrained": folder / "pretrain", "index": folder / "index"}


@pytest.fixture(scope="module", params=ROBOTS, ids=NAMES)
def trained(request, tmp_path_factory, hands):
    """A robot, its store and a policy of both stages, with retrieved clips, the map and replay."""
    folder = tmp_path_factory.mktemp(request.param.name)
    store(folder / "store", request.param)
    more = {name: str(path) for name, path in hands.items()}
    return request.param, folder / "store", finetuned(folder / "policy", [folder / "store"], **more)


def requests(robot, count: int = 2, sizes: dict[str, int] | None = None) -> list[PlanRequest]:
    rng = np.random.default_rng(0)

    def observation() -> Observation:
        images = {name: rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for name, side in sizes.items()}
        return Observation(robot.example(rng), images)

    return [PlanRequest("reach for the bell", (observation(), observation()), row, 6) for row in range(count)]


def test_checkpoint_names_its_robot_and_plans_its_actions(trained):
    robot, _, checkpoint = trained
    assert json.loads((checkpoint / "config.json").read_text())["robot"] == robot.name
    policy = load_policy(checkpoint)
    assert policy.spec.robot == robot.name
    assert set(policy.spec.image_sizes) == {camera.name for camera in robot.cameras}
    chunks = policy.plan(requests(robot, sizes=dict(policy.spec.image_sizes)))
    for chunk in chunks:
        assert chunk.shape == (4, robot.actions.size) and chunk.dtype == np.float32
        robot.check_actions("chunk", chunk)
    assert not np.array_equal(*chunks)


def test_network_has_one_encoder_a_camera_and_the_map_one_row_a_component(trained):
    robot, _, checkpoint = trained
    model = load_checkpoint(checkpoint).model
    encoders = [model.image_encoder(camera.role) for camera in robot.cameras]
    assert len({id(encoder) for encoder in encoders}) == len(robot.cameras)
    assert tuple(model.analogy_map().shape) == (len(robot.components), 21)
    names = set(model.state_dict())
    assert any(name.startswith("wrist_encoder.") for name in names) == (robot is ROBOT)
    assert not any(name.startswith("gripper_encoder.") for name in names)


def test_every_camera_and_the_state_reach_the_plan(trained):
    robot, _, checkpoint = trained
    policy = load_policy(checkpoint)
    with torch.no_grad():
        for parameter in policy.net.head.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    (asked,) = requests(robot, 1, dict(policy.spec.image_sizes))
    before = policy.plan([asked])[0]

    def changed(state=None, images=None) -> np.ndarray:
        history = tuple(
            Observation({**frame.state, **(state or {})}, {**frame.images, **(images or {})}) for frame in asked.history
        )
        return policy.plan([PlanRequest(asked.instruction, history, 99, asked.step)])[0]

    for camera, side in policy.spec.image_sizes.items():
        assert not np.array_equal(changed(images={camera: np.full((side, side, 3), 255, np.uint8)}), before), camera
    assert not np.array_equal(changed(state=robot.example(np.random.default_rng(5))), before)


def test_statistics_of_training_are_those_of_the_rollout(trained, tmp_path):
    robot, _, checkpoint = trained
    assert load_policy(checkpoint).robot.statistics == robot.statistics
    numbers = json.loads((checkpoint / "statistics.json").read_text())
    assert numbers == {"low": list(robot.statistics.low), "high": list(robot.statistics.high)}


def test_a_checkpoint_goes_on_with_stores_of_its_own_robot_only(trained, tmp_path):
    robot, _, checkpoint = trained
    other = ROBOT if robot is ONE_CAMERA else ONE_CAMERA
    store(tmp_path / "other", other)
    with pytest.raises(UserError) as caught:
        finetuned(tmp_path / "policy", [tmp_path / "other"], pretrained=str(checkpoint))
    assert robot.name in str(caught.value) and other.name in str(caught.value) and "\n" not in str(caught.value)


def test_stores_of_two_robots_are_not_mixed(tmp_path):
    store(tmp_path / "four", ROBOT)
    robot_store(tmp_path / "calvin")
    with pytest.raises(UserError) as caught:
        finetuned(tmp_path / "policy", [tmp_path / "four", tmp_path / "calvin"])
    assert "four-joints" in str(caught.value) and "calvin" in str(caught.value)


def test_a_store_takes_episodes_of_one_robot(tmp_path):
    with EpisodeWriter(tmp_path / "store", {"source": "test"}) as writer:
        writer.append(episode(ROBOT, 0))
        with pytest.raises(UserError, match="two-joints"):
            writer.append(episode(ONE_CAMERA, 0))


def test_the_recipe_on_the_page_works_from_the_command_line(tmp_path):
    """docs/extending.md, "A robot": its files, then its commands, in a process that knows the robot by its module."""
    _, record = write_files("extending.md", "A robot", tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), str(tmp_path)])}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert run(sys.executable, str(record)).returncode == 0
    arvrm = (sys.executable, "-m", "arvrm")
    inspected = run(*arvrm, "inspect", "my_store", "--no-contact-sheet")
    assert inspected.returncode == 0 and "robot: my-arm" in inspected.stdout
    small = [f"model.{name}={json.dumps(value)}" for name, value in MODEL.items()]
    small += [f"train.{name}={json.dumps(value)}" for name, value in TRAIN.items()]
    command = [*arvrm, "finetune", "--output", "policy", 'data.stores=["my_store"]', "data.validation=0", *small]
    unknown = run(*command)
    assert unknown.returncode == 2 and "my-arm" in unknown.stderr and "Traceback" not in unknown.stderr
    known = run(*command, "data.robot=my_robot:ROBOT")
    assert known.returncode == 0, known.stderr
    assert json.loads((tmp_path / "policy" / "config.json").read_text())["robot"] == "my-arm"
