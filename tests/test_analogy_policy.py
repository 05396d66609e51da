"""The policy by analogy: what it reads, what its motions do to its actions, and what it says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from arvrm.episodes import EpisodeWriter
from arvrm.interface import ImagesWanted, Observation, PlanRequest, UserError
from arvrm.model.analogy_net import AnalogyNet, AnalogyNetConfig
from arvrm.model.checkpoint import load_checkpoint, save_checkpoint, write_checkpoint
from arvrm.model.config import ModelConfig, PlacesConfig
from arvrm.model.keypoint_vlm import KeypointVLM
from arvrm.model.metadata import CheckpointMetadata
from arvrm.model.places import MOTION_SIZE
from arvrm.model.residual import EXECUTE, ResidualConfig
from arvrm.model.text import TextEncoder
from arvrm.model.words import sentence_words
from arvrm.motions import Motion, save_library
from arvrm.motions.camera import project
from arvrm.motions.path import Goal
from arvrm.policy import load_policy
from arvrm.policy.analogy import AnalogyPolicy
from arvrm.policy.places import Choice, PlaceSeer, Sight
from arvrm.robots.calvin import CALVIN, apply_relative_action
from arvrm.training import FinetuneConfig, finetune
from arvrm.training.analogy_stage import AnalogyFitConfig
from arvrm.training.data import DataConfig
from tests.small_stores import robot_episode
from tests.test_motions import CAMERA, down_and_along

SENTENCES = ("press the button", "open the drawer")


def made(folder: Path, shift: float = 0.0, residual: ResidualConfig | None = None, says: float = 0.0) -> Path:
    """A checkpoint with an untrained stage 1 and one motion a sentence, `shift` longer after the touch.

    Args:
        residual: it has one, whose last layer has weights of this deviation: `says`.
    """
    torch.manual_seed(0)
    config = ModelConfig(width=32, layers=1, heads=2, places=PlacesConfig(enabled=True, channels=(8, 8, 8), words=8))
    net = AnalogyNet(AnalogyNetConfig(config, "", residual=residual), CALVIN).eval()
    if net.residual is not None and says:
        torch.nn.init.normal_(cast(torch.nn.Linear, net.residual.head[-1]).weight, std=says)
    position = np.zeros((3, 21))
    position[:, (4, 8)] = 0.5
    net.keep({"position": position, "camera": CAMERA, "yaw": 0.0, "deviation": 0.1, "error": 0.01})
    text, motions = TextEncoder(config.text), []
    for number, sentence in enumerate(SENTENCES):
        path = down_and_along()
        poses = path.poses + [0.1, -0.1, 0.46, 0, 0, 0]
        poses[path.touch + 1 :, 0] += shift
        here = path.tcp_touch + [0.1, -0.1, 0.46, 0, 0, 0]
        path = dataclasses.replace(path, poses=poses, tcp_touch=here, tcp_end=here)
        words = sentence_words(net.vlm, text, [sentence])[0]
        hand = np.full((2, 21, 2), 48.0, np.float32)
        start = np.array([0.1, -0.1, 0.66, np.pi, 0, 1.5, 0.08])
        numbers = np.ones(2, np.float32), np.zeros(MOTION_SIZE, np.float32), np.ones(2, np.float32)
        motions.append(Motion(f"demo-{number}", "robot", sentence, path, start, hand, *numbers, words))
    folder.mkdir(exist_ok=True)
    net.config = dataclasses.replace(net.config, library=save_library(folder, motions))
    write_checkpoint(folder, net, CheckpointMetadata("finetune", 1, 1, {"rgb_static": 96, "rgb_gripper": 64}))
    return folder


class Watched(Mapping):
    """A mapping that notes what is read of it."""

    def __init__(self, values: dict[str, Any], read: set[str]) -> None:
        self.values_, self.read = values, read

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return self.values_[name]

    def __iter__(self) -> Iterator[str]:
        self.read.add("everything")
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)


class Blind:
    """Sees nothing that might be done."""

    lookout = None

    def look(self, requests: list[PlanRequest]) -> list[Sight]:
        return [Sight([]) for _ in requests]

    def to_take(self, request: PlanRequest) -> Sight | None:
        return None


class Told:
    """Has one motion to do and maybe one that takes something up."""

    lookout = None

    def __init__(self, motion: Motion, takes: Motion | None = None) -> None:
        self.motion, self.takes = motion, takes

    def look(self, requests: list[PlanRequest]) -> list[Sight]:
        return [seen(self.motion) for _ in requests]

    def to_take(self, request: PlanRequest) -> Sight | None:
        return None if self.takes is None else seen(self.takes)


def seen(motion: Motion) -> Sight:
    unsure = np.array([[0.0, 0.01, 0.0], [0.005, 0.0, 0.0]])
    return Sight([Choice(motion, Goal(motion.path.tcp_touch[:3], unsure=unsure))])


def named(name: str, gripper: np.ndarray | None = None, up: float = 0.0) -> Motion:
    path = down_and_along()
    shift = np.array([0.1, -0.1, 0.46, 0, 0, 0])
    path = dataclasses.replace(
        path,
        poses=path.poses + shift,
        gripper=path.gripper if gripper is None else gripper,
        tcp_touch=path.tcp_touch + shift,
        tcp_end=path.tcp_end + shift + [0, 0, up, 0, 0, 0],
    )
    hand, one = np.full((2, 21, 2), 48.0, np.float32), np.ones(2, np.float32)
    start = np.array([0.1, -0.1, 0.66, np.pi, 0, 1.5, 0.08])
    return Motion(name, "robot", name, path, start, hand, one, np.zeros(MOTION_SIZE, np.float32), one, np.ones(4))


def rolled(policy: AnalogyPolicy, steps: int = 60, rollouts: int = 1, read: set[str] | None = None) -> np.ndarray:
    """Actions (rollouts, steps, 7) where the arm is always at its target and the image never changes."""
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (96, 96, 3), dtype=np.uint8) for _ in range(rollouts)]
    gripper = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    target = np.tile([0.0, -0.2, 0.5, np.pi, 0, 1.5], (rollouts, 1))
    actions = []
    for step in range(0, steps, EXECUTE):
        requests = []
        for number in range(rollouts):
            robot_obs = np.concatenate([target[number], [0.08], np.zeros(7), [1.0]])
            state: Any = {"robot_obs": robot_obs, "target_pose": target[number], "scene_obs": None, "landmarks": None}
            seen: Any = {"rgb_static": images[number], "rgb_gripper": gripper}
            if read is not None:
                state, seen = Watched(state, read), Watched(seen, read)
            frame = Observation(state, seen)
            requests.append(PlanRequest(SENTENCES[number % 2], (frame,), rollout=number, step=step))
        order = rng.permutation(rollouts)
        chunks: list[Any] = [None] * rollouts
        for number, chunk in zip(order, policy.plan([requests[n] for n in order]), strict=True):
            chunks[number] = chunk
        for chunk, own in zip(chunks, target, strict=True):
            for action in chunk:
                own[:] = apply_relative_action(own, action)
        actions.append(chunks)
    return np.concatenate(actions, 1)


def test_from_the_observation_to_the_action_nothing_privileged_is_read(tmp_path):
    read: set[str] = set()
    rolled(load_policy(made(tmp_path / "c")), read=read)
    assert read == {"robot_obs", "target_pose", "rgb_static"}
    read.clear()
    rolled(load_policy(made(tmp_path / "r", residual=ResidualConfig(), says=1.0)), steps=200, read=read)
    assert read == {"robot_obs", "target_pose", "rgb_static", "rgb_gripper"}


def test_an_untrained_residual_changes_no_bit(tmp_path):
    plain = rolled(load_policy(made(tmp_path / "c")), steps=400, rollouts=2)
    policy = load_policy(made(tmp_path / "r", residual=ResidualConfig()))
    assert np.array_equal(rolled(policy, steps=400, rollouts=2), plain)
    assert policy.spec.image_sizes == {"rgb_static": 96, "rgb_gripper": 64}


def test_a_residual_corrects_within_its_bound_where_the_approach_has_begun_and_not_on_the_way_there(tmp_path):
    plain = rolled(load_policy(made(tmp_path / "c")), steps=200)[0]
    folder = made(tmp_path / "r", residual=ResidualConfig(bound=0.25, corrects="all"), says=1.0)
    corrected = rolled(load_policy(folder), steps=200)[0]
    CALVIN.check_actions("here", corrected)
    first = int(np.flatnonzero((plain != corrected).any(1))[0])
    assert first > 8, "the way to the approach is the plan's"
    change = np.abs(corrected[first, :6] - plain[first, :6])
    assert 0 < change.max() <= 0.25 * 2**0.5 + 1e-6 and (change[3:5] == 0).all()
    assert np.array_equal(rolled(load_policy(folder, batch=3), steps=200, rollouts=3)[0], corrected)


def test_a_residual_asks_for_images_where_it_looks_and_to_be_asked_twice_changes_nothing(tmp_path):
    folder = made(tmp_path / "r", residual=ResidualConfig(), says=1.0)
    policy, asked = load_policy(folder), []
    plan = policy.plan

    def twice(requests: list[PlanRequest]) -> list[Any]:
        blind = [dataclasses.replace(one, history=(Observation(one.history[0].state),)) for one in requests]
        asked.append(plan(blind)[0])
        return plan(requests) if isinstance(asked[-1], ImagesWanted) else [asked[-1]]

    policy.plan = twice
    assert np.array_equal(rolled(policy, steps=120), rolled(load_policy(folder), steps=120))
    wanted = [isinstance(one, ImagesWanted) for one in asked]
    assert 3 < sum(wanted) < len(wanted) - 3, "on the way to the approach it need not look"


def test_corrections_together_lead_no_further_beside_the_plan_than_they_may(tmp_path):
    residual = ResidualConfig(reach_m=0.004, reach_rad=0.02, corrects="all")
    policy = load_policy(made(tmp_path / "r", residual=residual, says=3.0))
    plain = load_policy(made(tmp_path / "c"))
    ways = [rolled(one, steps=80)[0] for one in (plain, policy)]
    first = int(np.flatnonzero((ways[0] != ways[1]).any(1))[0])
    rolled(policy, steps=first + 8)
    known = policy._rollouts[0]
    off = known.bent.poses[known.bent.touch] - known.goal
    assert 0 < np.linalg.norm(off[:3]) <= 0.004 + 1e-6 and abs(off[5]) <= 0.02 + 1e-6
    nothing = ResidualConfig(reach_m=0, reach_rad=0, gripper=False)
    held = load_policy(made(tmp_path / "h", residual=nothing, says=3.0))
    np.testing.assert_allclose(rolled(held, steps=80)[0], ways[0], atol=1e-6)


def test_where_nothing_is_planned_a_residual_says_the_action_itself(tmp_path):
    policy = load_policy(made(tmp_path / "r", residual=ResidualConfig(), says=1.0))
    policy.seer = Blind()
    assert np.abs(rolled(policy, steps=8)[0, :, :6]).max() > 0.01
    policy = load_policy(made(tmp_path / "c"))
    policy.seer = Blind()
    assert np.abs(rolled(policy, steps=8)[0, :, :6]).max() == 0


def test_exchanging_the_motion_that_is_retrieved_changes_the_actions(tmp_path):
    one, other = (rolled(load_policy(made(tmp_path / name, shift))) for name, shift in (("a", 0.0), ("b", 0.05)))
    assert not np.array_equal(one, other)


def test_plans_do_not_depend_on_who_else_waits(tmp_path):
    folder = made(tmp_path / "c")
    together = rolled(load_policy(folder), rollouts=3)
    again = rolled(load_policy(folder, batch=3), rollouts=3)
    assert np.array_equal(together, again)
    assert np.array_equal(rolled(load_policy(folder), rollouts=1)[0], together[0])


def test_actions_are_the_robots(tmp_path):
    actions = rolled(load_policy(made(tmp_path / "c")), steps=200)[0]
    CALVIN.check_actions("here", actions)


def test_what_went_otherwise_than_planned_is_counted_for_the_result(tmp_path):
    policy = load_policy(made(tmp_path / "c"))
    rolled(policy, steps=400)
    assert policy.notes(0).get("path over", 0) > 0


def told(seer: Told) -> AnalogyPolicy:
    return AnalogyPolicy(CALVIN, cast(Any, seer), {"rgb_static": 96})


def test_where_a_touch_was_in_vain_the_next_one_is_beside():
    policy = told(Told(named("press")))
    actions = rolled(policy, steps=400)[0]
    assert policy.notes(0)["touches beside the place, or across"] == policy.notes(0)["path over"] > 1
    way = np.array([0.0, -0.2, 0.5]) + np.cumsum(actions[:, :3] * 0.02, 0)
    low = way[np.flatnonzero(np.diff(np.sign(np.diff(way[:, 2]))) > 0) + 1]
    touched = low[low[:, 2] < way[:, 2].min() + 0.005]
    beside = {round(float(y - touched[0, 1]), 3) for y in touched[:, 1]}
    assert {0.0, 0.015, -0.015} <= beside and max(map(abs, beside)) <= 0.03


def test_an_empty_hand_takes_something_up_before_it_puts_it_down():
    rows = np.arange(len(down_and_along().poses))
    closes = np.where(rows < down_and_along().touch, 1.0, -1.0)
    put, take = named("put", -closes), named("take it", closes, 0.1)
    policy = told(Told(put, take))
    rolled(policy, steps=EXECUTE)
    assert policy._rollouts[0].choice.motion.id == "take it"
    rolled(policy, steps=600)
    assert policy.notes(0)["an empty hand takes something up first"] == 1 + 2, "twice an instruction at most"
    nothing = told(Told(put))
    rolled(nothing, steps=EXECUTE)
    assert nothing._rollouts[0].choice.motion.id == "put" and not nothing.notes(0)


def test_ways_of_a_pixel_are_seen_as_one_and_the_longest_comes_first(tmp_path):
    seer = load_policy(made(tmp_path / "c")).seer
    place = np.array([[0.1, -0.1, 0.46], [0.0, 0.1, 0.5]])
    ways = seer._a_pixel(place)
    moved = project(CAMERA, place[:, None] + 1e-3 * ways) - project(CAMERA, place[:, None])
    np.testing.assert_allclose(np.linalg.norm(moved, axis=-1), 1e-3, rtol=0.01)
    assert (np.linalg.norm(ways[:, 0], axis=-1) >= np.linalg.norm(ways[:, 1], axis=-1)).all()
    assert not ways[..., 2].any()


def test_what_can_be_taken_up_is_looked_for_after_the_words_of_a_demonstration_that_takes(tmp_path):
    policy = load_policy(made(tmp_path / "c"))
    image = np.zeros((96, 96, 3), np.uint8)
    state: Any = {"robot_obs": np.zeros(15), "target_pose": np.zeros(6)}
    request = PlanRequest("stack it", (Observation(state, {"rgb_static": image}),), 0, 0)
    assert policy.seer.to_take(request) is None
    motions = policy.seer.motions
    up = dataclasses.replace(motions[1].path, tcp_end=motions[1].path.tcp_end + [0, 0, 0.1, 0, 0, 0])
    seer = PlaceSeer(policy.seer.net, [motions[0], dataclasses.replace(motions[1], path=up)])
    assert seer.to_take(request).choices[0].motion.id == "demo-1"


def test_what_it_has_in_mind_can_be_drawn(tmp_path):
    policy = load_policy(made(tmp_path / "c"))
    assert policy.drawing(0) is None
    rolled(policy, steps=200)  # past its look from another pose
    drawing = policy.drawing(0)
    assert drawing.camera == "rgb_static" and "as in demo-" in drawing.caption
    rings = [stroke for stroke in drawing.strokes if len(stroke.points) == 1]
    assert len(rings) == 1 and len(drawing.strokes) > 20
    path = max(drawing.strokes, key=lambda stroke: len(stroke.points))
    np.testing.assert_allclose(path.points[-1], path.points[-1].clip(-1, 2))


def test_a_checkpoint_without_its_library_is_refused_in_one_line(tmp_path):
    folder = made(tmp_path / "c")
    (folder / "motions.safetensors").unlink()
    with pytest.raises(UserError, match="whole checkpoint folder") as error:
        load_policy(folder)
    assert "\n" not in str(error.value)


def test_a_policy_by_analogy_is_no_learned_one(tmp_path):
    with pytest.raises(UserError, match="analogy"):
        load_checkpoint(made(tmp_path / "c"), kind="policy")


def test_finetune_makes_it_of_demonstrations_and_a_stage_1_with_places(tmp_path):
    torch.manual_seed(0)
    config = ModelConfig(width=32, layers=1, heads=2, places=PlacesConfig(enabled=True, channels=(8, 8, 8), words=8))
    stage1 = save_checkpoint(
        tmp_path / "hands", KeypointVLM(config), CheckpointMetadata("pretrain", 1, 1, {"rgb_static": 32})
    )
    with EpisodeWriter(tmp_path / "store", {"source": "test"}) as writer:
        for number in range(3):
            writer.append(robot_episode(f"demo-{number}", steps=30, group=f"g{number}", seed=number))
    camera = tmp_path / "camera.json"
    camera.write_text(json.dumps({"camera": CAMERA.tolist()}))
    run = FinetuneConfig(
        str(tmp_path / "run"), motion="analogy", pretrained=str(stage1),
        analogy=AnalogyFitConfig(camera=str(camera)), data=DataConfig((str(tmp_path / "store"),), validation=0),
    )  # fmt: skip
    result = finetune(run, progress=False)
    assert result.metrics["train"]["motions"] == 3
    policy = load_policy(result.folder)
    assert [one.id for one in policy.seer.motions] == ["demo-0", "demo-1", "demo-2"]
    assert np.allclose(policy.seer.map.camera, CAMERA)


def test_a_stage_1_without_places_is_refused_in_one_line(tmp_path):
    stage1 = save_checkpoint(
        tmp_path / "hands", KeypointVLM(ModelConfig(width=32, layers=1, heads=2)),
        CheckpointMetadata("pretrain", 1, 1, {"rgb_static": 32}),
    )  # fmt: skip
    with EpisodeWriter(tmp_path / "store", {"source": "test"}) as writer:
        writer.append(robot_episode("demo", steps=30))
    data = DataConfig((str(tmp_path / "store"),), validation=0)
    with pytest.raises(UserError, match="places.enabled=true"):
        finetune(FinetuneConfig(str(tmp_path / "run"), motion="analogy", pretrained=str(stage1), data=data), False)
