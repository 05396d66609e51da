"""The learnt residual: what it is trained on, what it learns, and what its checkpoint holds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arvrm.config import from_dict
from arvrm.episodes import EpisodeStore, EpisodeWriter
from arvrm.interface import Robot, UserError
from arvrm.model.analogy_net import AnalogyNet
from arvrm.model.checkpoint import load_checkpoint, save_checkpoint
from arvrm.model.config import ModelConfig, PlacesConfig, VisionConfig
from arvrm.model.keypoint_vlm import KeypointVLM
from arvrm.model.metadata import CheckpointMetadata
from arvrm.model.places import MOTION_SIZE
from arvrm.model.residual import EXECUTE, ResidualConfig
from arvrm.motions import Goal, Motion, Phased, Plan, onward, plan_view, whole
from arvrm.motions import Path as MotionPath
from arvrm.motions.plan import UNITS
from arvrm.policy import load_policy
from arvrm.policy.places import Choice, Sight
from arvrm.robots.calvin import apply_relative_action
from arvrm.training import FinetuneConfig, finetune, residual_stage
from arvrm.training.analogy_stage import AnalogyFitConfig, Fitted
from arvrm.training.config import TrainConfig
from arvrm.training.data import DataConfig, open_table
from arvrm.training.residual_stage import ResidualFitConfig, drawn_row, samples_of
from tests.small_stores import robot_episode
from tests.test_analogy_policy import Watched, made
from tests.test_motions import CAMERA, down_and_along

SMALL = ResidualConfig(
    width=32, vision=VisionConfig(width=8, channels=(4, 8), depth=0, points=4, landmarks=0, film=False)
)


def slanted(side: float) -> MotionPath:
    """Down to the touch from a side, faster or slower in the end, then along."""
    path = down_and_along()
    poses = path.poses.copy()
    poses[:, 1] = side * 0.5 * np.maximum(poses[:, 2], 0)
    return dataclasses.replace(path, poses=poses)


def episode(name: str, side: float) -> Any:
    """A demonstration along `slanted`; what the gripper sees is red on one side, blue on the other."""
    path = slanted(side)
    steps, found = len(path.poses), robot_episode(name, steps=len(path.poses), group=name, landmarks=True)
    before = np.concatenate([path.poses[:1], path.poses[:-1]])
    obs = np.zeros((steps, 15))
    obs[:, :6], obs[:, 6], obs[:, 14] = before, 0.08, 1.0
    actions = np.concatenate([(path.poses - before) / UNITS, path.gripper[:, None]], 1).astype(np.float32)
    arrays = {**found.arrays, "robot_obs": obs, "target_pose": before, "actions": actions, "executed": actions}
    images = dict(found.images)
    images["rgb_gripper"] = np.zeros_like(images["rgb_gripper"])
    images["rgb_gripper"][..., 0 if side > 0 else 2] = 200
    return dataclasses.replace(found, arrays=arrays, images=images)


def motion(name: str, path: MotionPath) -> Motion:
    hand, two = np.full((2, 21, 2), 48.0, np.float32), np.ones(2, np.float32)
    words = np.eye(1, 64, dtype=np.float32)[0]
    return Motion(name, "robot", "go", path, np.zeros(7), hand, two, np.zeros(MOTION_SIZE, np.float32), two, words)


class Seer:
    """Sees every motion's place where it is."""

    made: list[list[str]] = []

    def __init__(self, net: AnalogyNet, motions: list[Motion], camera: str, text: Any) -> None:
        self.camera, self.motions = camera, motions
        Seer.made.append([one.id for one in motions])

    def sight(self, image: np.ndarray, sentence: str, robot: np.ndarray) -> Sight:
        return Sight([Choice(one, Goal(one.path.tcp_touch[:3])) for one in self.motions])


SIDES = [1.0, -1.0, 0.0, 0.6, -0.6, 0.8, -0.8]
"""Of seven demonstrations; the last two are held out."""


@pytest.fixture
def fitted(tmp_path, monkeypatch):
    """Everything that needs a trained stage 1 is stood in for; the rest of the stage is itself."""
    with EpisodeWriter(tmp_path / "store", {"source": "test"}) as writer:
        for number, side in enumerate(SIDES):
            writer.append(episode(f"demo-{number}", side))
    motions = {row: motion(f"demo-{row}", slanted(side)) for row, side in enumerate(SIDES)}

    def analogy_of(config: FinetuneConfig, table: Any, robot: Robot, progress: bool) -> Fitted:
        folder = made(tmp_path / "untrained", residual=config.residual.network)
        net = load_checkpoint(folder, kind="analogy").model
        torch.nn.init.zeros_(net.residual.head[-1].weight)
        own = {row: motions[row] for row in range(5)}
        return Fitted(net, list(own.values()), own, np.arange(5), np.arange(5, 7), {"motions": 5.0}, None)

    Seer.made.clear()
    monkeypatch.setattr(residual_stage, "PlaceSeer", Seer)
    monkeypatch.setattr(residual_stage, "analogy_of", analogy_of)
    monkeypatch.setattr(residual_stage, "robot_motions", lambda net, table, rows, *_: {r: motions[r] for r in rows})
    return tmp_path / "store"


def run(store: Path, output: Path, **changes: Any) -> FinetuneConfig:
    train = TrainConfig(steps=120, batch=16, learning_rate=3e-3, warmup=5, validate_every=60, log_every=20, threads=1)
    config = FinetuneConfig(
        str(output), motion="residual", pretrained=str(made(store.parent / "plain")), data=DataConfig((str(store),)),
        residual=ResidualFitConfig(SMALL, noise_m=0.005, dropout=0.1), train=train,
    )  # fmt: skip
    return dataclasses.replace(config, **changes)


def plan_and_samples(store: Path) -> tuple[Any, list[residual_stage.Sample]]:
    table = open_table(DataConfig((str(store),)), "robot", 1)
    made_ = residual_stage.analogy_of(run(store, store), table, table.robot, False)  # type: ignore[arg-type]
    return made_, samples_of(made_.net, made_.motions, made_.own, table, 4, False)


def test_training_brings_actions_nearer_to_demonstrations_it_has_not_seen_than_the_plan_alone(fitted, tmp_path):
    result = finetune(run(fitted, tmp_path / "run"), progress=False)
    judged = result.metrics["validation"]
    assert judged["before_arm_error"] < 0.6 * judged["before_plan_arm_error"]
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["motions"] == 5 and lines[0]["samples"] > 0
    assert {"loss_arm", "loss_gripper"} <= set(lines[1]) and lines[-1]["split"] == "validation"


def test_its_checkpoint_is_a_policy_with_its_settings_and_the_same_seed_gives_the_same_bits(fitted, tmp_path):
    short = dataclasses.replace(run(fitted, tmp_path).train, steps=4)
    folders = [finetune(run(fitted, tmp_path / name, train=short), False).folder for name in ("a", "b")]
    one, other = (load_checkpoint(folder, kind="analogy") for folder in folders)
    assert one.config.residual == SMALL and one.config.library
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
    policy = load_policy(folders[0])
    assert policy.residual is not None and [m.id for m in policy.seer.motions] == [f"demo-{n}" for n in range(5)]
    described = json.loads((folders[0] / "config.json").read_text())
    described["model"]["residual"] = None
    (folders[0] / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="residual"):
        load_policy(folders[0])


def test_no_demonstration_is_carried_over_to_itself(fitted):
    _, samples = plan_and_samples(fitted)
    assert samples and len(Seer.made) == 5
    for row, motions in enumerate(Seer.made):
        assert motions == [f"demo-{other}" for other in range(5) if other != row]


def test_nothing_privileged_is_read_for_training(fitted, monkeypatch):
    read: set[str] = set()
    arrays = EpisodeStore.arrays
    monkeypatch.setattr(EpisodeStore, "arrays", lambda *a, **k: Watched(arrays(*a, **k), read))
    store = EpisodeStore(fitted)
    assert "landmarks" in arrays(store, store.ids[0])
    assert plan_and_samples(fitted)[1]
    assert read == {"robot_obs", "target_pose"}


def test_plans_are_left_out_and_off_as_often_and_as_far_as_asked(fitted):
    _, samples = plan_and_samples(fitted)
    sample, rng = dataclasses.replace(samples[0], plans=samples[0].plans[:1]), np.random.default_rng(0)
    settings = ResidualFitConfig(SMALL, noise_m=0.02, noise_rad=0.0, dropout=0.25)
    rows = [drawn_row(sample, settings, rng) for _ in range(400)]
    absent = [row for row in rows if not row["present"]]
    assert 60 < len(absent) < 140
    assert all((row["plan"] == 0).all() and (row["base"] == 0).all() for row in absent)
    assert all((row["command"] == sample.command).all() for row in absent)
    beside = np.array([row["plan"][-4:-2] for row in rows if row["present"]]) * 0.03
    assert np.allclose(beside.std(0), 0.02, rtol=0.2)


def test_a_demonstration_beside_its_own_path_leaves_nothing_to_be_learnt():
    path = slanted(0.7)
    bent = whole(path, Goal(path.tcp_touch[:3]))
    own, plan = (Phased.of(one.poses, one.gripper, one.touch) for one in (path, bent))
    for step in range(1, len(path.poses) - EXECUTE):
        cursor = plan.row_like(own.phase[step])
        assert cursor == step, "its steps are short enough not to be cut"
        poses, commands = own.beside(step, plan, cursor, EXECUTE)
        np.testing.assert_allclose(poses, path.poses[step : step + EXECUTE], atol=1e-9)
        assert (commands == path.gripper[step : step + EXECUTE]).all()


def test_the_same_way_at_another_speed_is_beside_itself_too():
    path = slanted(0.7)
    rows = np.sort(np.concatenate([np.arange(len(path.poses)), np.arange(len(path.poses) - 1) + 0.5]))
    poses = np.stack([np.interp(rows, np.arange(len(path.poses)), column) for column in path.poses.T], 1)
    slow = Phased.of(poses, np.repeat(path.gripper, 2)[:-1], 2 * path.touch)
    own = Phased.of(path.poses, path.gripper, path.touch)
    found, _ = own.beside(10, slow, slow.row_like(own.phase[10]), EXECUTE)
    np.testing.assert_allclose(found[:, 1], 0.5 * 0.7 * found[:, 2], atol=1e-9, err_msg="on the same line")
    assert np.allclose(np.diff(found[:, 2]), -0.005, atol=0.002), "at the plan's tempo"


def test_a_correction_moves_what_is_left_of_the_path():
    path = down_and_along()
    bent = whole(path, Goal(path.tcp_touch[:3]))
    moved = onward(bent, 8, bent.poses[7] + [0.01, 0, 0, 0, 0, 0.1])
    np.testing.assert_allclose(moved.poses - bent.poses, np.tile([0.01, 0, 0, 0, 0, 0.1], (31, 1)), atol=1e-12)


def test_what_is_read_of_a_plan_turns_with_the_gripper():
    path = down_and_along()
    bent = whole(path, Goal(path.tcp_touch[:3]))
    obs = np.zeros(15)
    obs[:6], turned = bent.poses[24], bent.poses.copy()
    first = plan_view(Plan(bent, 25, bent.poses[20], 1.0), obs[:6], obs, 1.0)
    angle = 0.8
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned[:, :2], turned[:, 5] = turned[:, :2] @ turn.T, turned[:, 5] + angle
    obs[:6] = turned[24]
    again = plan_view(Plan(dataclasses.replace(bent, poses=turned), 25, turned[20], 1.0), obs[:6], obs, 1.0)
    np.testing.assert_allclose(again.plan, first.plan, atol=1e-6)
    np.testing.assert_array_equal(again.state, first.state)
    reached = apply_relative_action(obs[:6], again.actions[0])
    np.testing.assert_allclose(reached, turned[25], atol=1e-9)


def test_what_cannot_be_trained_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="conv encoder without film"):
        from_dict(FinetuneConfig, {"output": "x", "residual": {"network": {"vision": {"film": True}}}})
    with pytest.raises(UserError, match="residual.network: bound is 2"):
        from_dict(FinetuneConfig, {"output": "x", "residual": {"network": {"bound": 2}}})
    with EpisodeWriter(tmp_path / "store", {"source": "test"}) as writer:
        writer.append(robot_episode("demo", steps=30))
    data = DataConfig((str(tmp_path / "store"),), validation=0)
    camera = tmp_path / "camera.json"
    camera.write_text(json.dumps({"camera": CAMERA.tolist()}))
    analogy = AnalogyFitConfig(camera=str(camera))
    config = FinetuneConfig(str(tmp_path / "run"), motion="residual", analogy=analogy, data=data)
    with pytest.raises(UserError, match="motion=residual: pretrained is null"):
        finetune(config, progress=False)
    stage1 = ModelConfig(width=32, layers=1, heads=2, places=PlacesConfig(enabled=True, channels=(8, 8, 8), words=8))
    folder = save_checkpoint(
        tmp_path / "hands", KeypointVLM(stage1), CheckpointMetadata("pretrain", 1, 1, {"rgb_static": 32})
    )
    with pytest.raises(UserError, match="none of 1 demonstrations is like another") as error:
        finetune(dataclasses.replace(config, pretrained=str(folder)), progress=False)
    assert "\n" not in str(error.value) and not (tmp_path / "run" / "config.json").exists()
