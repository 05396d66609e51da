import dataclasses
import functools

import numpy as np
import pytest
import second_robot
import torch
from model_batches import small
from small_stores import human_store, robot_store

from arvrm.evaluation import EvaluateConfig, evaluate
from arvrm.interface import Observation, PlanRequest, UserError
from arvrm.model.checkpoint import save_checkpoint
from arvrm.model.encoders import TextEncoder
from arvrm.model.keypoint_vlm import KeypointVLM
from arvrm.model.metadata import CheckpointMetadata
from arvrm.model.policy_net import PolicyNet
from arvrm.policy import load_policy
from arvrm.results import load_results
from arvrm.robots.calvin import CALVIN
from arvrm.training import IndexConfig, build_index_stage
from arvrm.windows import EpisodeTable, RobotWindows, TextTable, WindowConfig, decode_frames

BACKBONE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BACKBONE |= {"image_size": 32, "patch_size": 8}
METADATA = CheckpointMetadata("finetune", history=2, stride=3, images={"rgb_static": 32, "rgb_gripper": 16}, clips=2)


def make_policy(folder, metadata=METADATA, seed=0, **changes):
    torch.manual_seed(seed)
    net = PolicyNet(small(**changes), CALVIN)
    # An untrained head says nearly nothing; spread its answers out, so that a difference would show.
    with torch.no_grad():
        for parameter in net.head.parameters():
            parameter.mul_(4.0)
    return save_checkpoint(folder, net, metadata=metadata, overwrite=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_policy(tmp_path_factory.mktemp("policy") / "checkpoint")


def request(number=0, step=6, instruction="pull the drawer open", **changes):
    rng = np.random.default_rng(number)

    def frame():
        robot_obs = np.zeros(15)
        robot_obs[:7] = 0.02, -0.2, 0.55, np.pi, 0.0, np.pi / 2, 0.08
        robot_obs[:3] += rng.normal(0, 0.02, 3)
        robot_obs[14] = 1.0
        state = {"robot_obs": robot_obs, "target_pose": robot_obs[:6] + rng.normal(0, 0.01, 6)}
        images = {
            "rgb_static": rng.integers(0, 256, (32, 32, 3), dtype=np.uint8),
            "rgb_gripper": rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
        }
        for name, value in changes.items():
            values = state if name in state else images
            values[name] = value
            if value is None:
                del values[name]
        return Observation(state, images)

    return PlanRequest(instruction, (frame(), frame()), rollout=number, step=step)


def test_spec_follows_the_windows_of_training(checkpoint):
    spec = load_policy(checkpoint).spec
    assert spec.history_offsets == (-3, 0)
    assert spec.robot == "calvin" and spec.image_sizes == {"rgb_static": 32, "rgb_gripper": 16}
    assert spec.execute_steps == 4 and load_policy(checkpoint, execute_steps=2).spec.execute_steps == 2
    with pytest.raises(UserError, match="chunks of 4"):
        load_policy(checkpoint, execute_steps=5)


def test_chunks_have_the_promised_form(checkpoint):
    chunks = load_policy(checkpoint).plan([request(n) for n in range(3)])
    for chunk in chunks:
        assert chunk.shape == (4, 7) and chunk.dtype == np.float32
        assert np.abs(chunk[:, :6]).max() <= 1 and set(chunk[:, 6]) <= {-1.0, 1.0}
    assert not np.array_equal(chunks[0], chunks[1])


@pytest.mark.parametrize("batch", [1, 4])
def test_plan_does_not_depend_on_who_else_is_in_the_batch(checkpoint, batch):
    policy = load_policy(checkpoint, batch=batch)
    requests = [request(n, instruction=("press", "pull the drawer open please now")[n % 2]) for n in range(7)]
    together = policy.plan(requests)
    for n, one in enumerate(requests):
        assert np.array_equal(policy.plan([one])[0], together[n])
    for n, chunk in enumerate(policy.plan(requests[::-1])):
        assert np.array_equal(chunk, together[6 - n])


def test_what_the_policy_sees_equals_the_training_window_of_the_same_frames(checkpoint, tmp_path):
    store = robot_store(tmp_path / "robot", size=32, steps=10)
    policy = load_policy(checkpoint)
    table = EpisodeTable([store], "robot", 3)
    text = TextTable(*TextEncoder(policy.config.text).tokens(list(table.sentences)))
    frames = {camera.role: decode_frames(table, camera.name) for camera in table.robot.cameras}
    windows = RobotWindows(table, WindowConfig(history=2, stride=3), text, frames, chunk=4)
    anchors = windows.anchors(np.array([0]))
    trained = windows.batch(anchors)
    episode = store.episode(table.ids[0])
    requests = []
    for image, step in enumerate(episode.image_steps):
        history = []
        for back in (1, 0):
            at = max(0, image - back)
            history.append(
                Observation(
                    {name: episode.arrays[name][episode.image_steps[at]] for name in ("robot_obs", "target_pose")},
                    {name: images[at] for name, images in episode.images.items()},
                )
            )
        requests.append(PlanRequest(episode.instruction, tuple(history), rollout=0, step=int(step)))
    seen = policy.batch(requests)
    for key in ("static", "gripper", "state", "components", "frame_mask"):
        assert torch.equal(seen[key], trained[key]), key
    length = trained["text"].shape[1]
    assert torch.equal(seen["text"][:, :length], trained["text"])
    assert torch.equal(seen["text_mask"][:, :length], trained["text_mask"]) and not seen["text_mask"][:, length:].any()


def test_padding_before_the_start_influences_nothing(checkpoint):
    policy = load_policy(checkpoint)
    one, other = request(0, step=0), request(1, step=0)
    mixed = dataclasses.replace(other, history=(other.history[0], one.history[1]))
    assert np.array_equal(policy.plan([one])[0], policy.plan([mixed])[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rgb_static": None}, "rgb_static is missing"),
        ({"robot_obs": None}, "robot_obs is missing"),
        ({"rgb_static": np.zeros((20, 20, 3), np.uint8)}, r"\(20, 20, 3\) uint8, expected \(32, 32, 3\)"),
        ({"robot_obs": np.full(15, np.nan)}, "NaN or infinity in robot_obs"),
        ({"target_pose": np.zeros(7)}, r"target_pose has shape \(7,\)"),
    ],
)
def test_malformed_observations_are_named(checkpoint, changes, message):
    with pytest.raises(UserError, match=message):
        load_policy(checkpoint).plan([request(**changes)])


def test_broken_weights_are_reported_as_nan(tmp_path):
    torch.manual_seed(0)
    net = PolicyNet(small(), CALVIN)
    good = load_policy(save_checkpoint(tmp_path / "good", net, metadata=METADATA))
    with torch.no_grad():
        for broken in (net, good.net):
            broken.vlm.time.fill_(float("nan"))
    with pytest.raises(UserError, match="vlm.time"):
        load_policy(save_checkpoint(tmp_path / "broken", net, metadata=METADATA))
    # Weights that are finite may still compute what is not.
    with pytest.raises(UserError, match="NaN in actions for 'pull the drawer open'"):
        good.plan([request()])


def test_stage_1_checkpoint_is_refused(tmp_path):
    folder = save_checkpoint(tmp_path / "stage1", KeypointVLM(small()), dataclasses.replace(METADATA, stage="pretrain"))
    with pytest.raises(UserError, match="expected policy"):
        load_policy(folder)


def test_changing_the_retrieved_clips_changes_the_actions(tmp_path):
    vlm = save_checkpoint(tmp_path / "stage1", KeypointVLM(small()), dataclasses.replace(METADATA, stage="pretrain"))
    indices = []
    for name, options in (("one", {"tasks": 2}), ("other", {"tasks": 3, "per_task": 2, "size": 48})):
        human_store(tmp_path / name, **options)
        settings = IndexConfig((str(tmp_path / name),), str(vlm), str(tmp_path / f"index-{name}"))
        indices.append(build_index_stage(settings, progress=False))
    folder = make_policy(tmp_path / "policy", analogy={"at_rollout": "on"})
    plans = [load_policy(folder, index=index).plan([request()])[0] for index in indices]
    assert not np.array_equal(plans[0], plans[1])
    assert np.array_equal(plans[0], load_policy(folder, index=indices[0]).plan([request()])[0])
    with pytest.raises(UserError, match="--index"):
        load_policy(folder)


class Recorded:
    """Notes what was asked and answered, by chain and step."""

    def __init__(self, policy, seen):
        self.policy, self.spec, self.seen = policy, policy.spec, seen

    def plan(self, requests):
        chunks = self.policy.plan(requests)
        for one, chunk in zip(requests, chunks, strict=True):
            last = one.history[-1]
            self.seen[one.rollout, one.instruction, one.step] = (
                last.state["robot_obs"].tobytes() + last.images["rgb_static"].tobytes() + chunk.tobytes()
            )
        return chunks


# A robot of another shape -----------------------------------------------------------------------------------------


def robot_policy(folder, robot, vision, **statistics):
    """A policy of a robot that is not CALVIN's, in a window of two frames."""
    torch.manual_seed(0)
    if statistics:
        robot = robot.with_statistics(statistics)
    net = PolicyNet(small(vision=vision), robot)
    images = {camera.name: 32 if camera.role == "static" else 16 for camera in robot.cameras}
    metadata = CheckpointMetadata("finetune", 2, 3, images)
    return save_checkpoint(folder, net, metadata=metadata, overwrite=True)


def robot_request(robot, number=0, step=6):
    rng = np.random.default_rng(number)

    def frame():
        sizes = {camera.name: 32 if camera.role == "static" else 16 for camera in robot.cameras}
        images = {name: rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for name, size in sizes.items()}
        return Observation(robot.example(rng), images)

    return PlanRequest("reach for the bell", (frame(), frame()), rollout=number, step=step)


CONV, VIT = {}, {"encoder": "mae", "backbone": BACKBONE, "frozen": True, "film": False, "static_size": 32}


@pytest.mark.parametrize("vision", [CONV, VIT], ids=["conv", "vit"])
@pytest.mark.parametrize("robot", [second_robot.ROBOT, second_robot.ONE_CAMERA], ids=lambda robot: robot.name)
def test_robot_of_another_shape_is_planned_for_in_its_own_units(tmp_path, robot, vision):
    policy = load_policy(robot_policy(tmp_path / "policy", robot, vision), batch=2)
    assert policy.spec.robot == robot.name and list(policy.spec.image_sizes) == [c.name for c in robot.cameras]
    requests = [robot_request(robot, number) for number in range(3)]
    together = policy.plan(requests)
    for number, chunk in enumerate(together):
        assert chunk.shape == (4, robot.actions.size) and chunk.dtype == np.float32
        robot.check_actions("plan", chunk)
        assert np.array_equal(policy.plan([requests[number]])[0], chunk)
    assert np.abs(together[0] - together[1]).max() > 0


def test_checkpoint_s_own_numbers_decide_what_state_and_actions_mean(tmp_path):
    robot = second_robot.ROBOT
    wide = {"low": [2 * number for number in robot.statistics.low], "high": [2 * n for n in robot.statistics.high]}
    plain = load_policy(robot_policy(tmp_path / "plain", robot, CONV))
    doubled = load_policy(robot_policy(tmp_path / "doubled", robot, CONV, **wide))
    frame = robot_request(robot).history[0]
    twice = Observation({"state": 2 * frame.state["state"]}, frame.images)
    first = plain.plan([PlanRequest("reach for the bell", (frame, frame), 0, 6)])[0]
    second = doubled.plan([PlanRequest("reach for the bell", (twice, twice), 0, 6)])[0]
    np.testing.assert_allclose(second, 2 * first, rtol=1e-4, atol=1e-4)


def test_rollouts_of_a_policy_are_the_same_to_the_bit_for_any_number_of_workers(tmp_path):
    """With the real simulator, a network with random weights and its own images."""
    folder = make_policy(
        tmp_path / "policy", dataclasses.replace(METADATA, images={"rgb_static": 32, "rgb_gripper": 32})
    )
    found = []
    for workers in (1, 3):
        seen = {}
        settings = EvaluateConfig(
            output=str(tmp_path / f"{workers}.json"), checkpoint=str(folder), workers=workers, chains=4, max_steps=32
        )
        results = load_results(evaluate(functools.partial(Recorded, load_policy(folder, batch=3), seen), settings))
        found.append((results["chains"], seen))
    assert found[0] == found[1]
    assert len(found[0][1]) >= 4 * 8


@pytest.fixture(scope="module")
def vit_checkpoint(tmp_path_factory):
    """A policy with a window of four frames and a frozen ViT."""
    vision = {"encoder": "mae", "backbone": BACKBONE, "frozen": True, "film": False, "static_size": 32}
    metadata = dataclasses.replace(METADATA, history=4, stride=2, execute_steps=1)
    return make_policy(tmp_path_factory.mktemp("vit") / "checkpoint", metadata, vision=vision)


def rollout(policy, steps, numbers=(0, 1), seed=0):
    """Plan at each of `steps` for several rollouts at once; return their chunks and how many images were encoded."""
    rng = np.random.default_rng(seed)
    frames = {(n, s): request(int(rng.integers(1 << 30)) + n).history[0] for n in numbers for s in range(steps)}
    encoder, counted = policy.net.vlm.static_encoder, []
    hook = encoder.register_forward_pre_hook(lambda module, inputs: counted.append(len(inputs[0])))
    chunks = []
    for step in range(steps):
        history = {n: tuple(frames[n, max(0, step + o)] for o in policy.spec.history_offsets) for n in numbers}
        sentence = "open the drawer" if step < 7 else "close the drawer"
        chunks.append(policy.plan([PlanRequest(sentence, history[n], n, step) for n in numbers]))
    hook.remove()
    return np.array(chunks), counted


@pytest.mark.parametrize("batch", [1, 2])
def test_cached_frames_give_the_actions_that_encoding_the_window_gives(vit_checkpoint, batch):
    cached, encoded = rollout(load_policy(vit_checkpoint, batch=batch), 10)
    plain, every = rollout(load_policy(vit_checkpoint, batch=batch, cache=False), 10)
    assert np.abs(cached - plain).max() < 1e-5
    assert sum(encoded) == 10 * 2 * 2, "one image a camera, a step and a rollout"
    assert sum(every) == 4 * sum(encoded)


def test_cache_forgets_a_rollout_that_begins_anew_with_other_images(vit_checkpoint):
    policy = load_policy(vit_checkpoint)
    rollout(policy, 5, seed=1)
    again, _ = rollout(policy, 5, seed=2)
    fresh, _ = rollout(load_policy(vit_checkpoint), 5, seed=2)
    assert np.array_equal(again, fresh)


def test_cached_plan_does_not_depend_on_who_else_is_in_the_batch(vit_checkpoint):
    together, _ = rollout(load_policy(vit_checkpoint, batch=2), 6, numbers=(0, 1, 2))
    rng = np.random.default_rng(0)
    frames = {(n, s): request(int(rng.integers(1 << 30)) + n).history[0] for n in (0, 1, 2) for s in range(6)}
    policy = load_policy(vit_checkpoint, batch=2)
    for step in range(6):
        history = tuple(frames[1, max(0, step + o)] for o in policy.spec.history_offsets)
        alone = policy.plan([PlanRequest("open the drawer", history, 1, step)])[0]
        assert np.array_equal(alone, together[step, 1])


def test_cache_keeps_no_more_than_a_window_of_each_rollout(vit_checkpoint):
    policy = load_policy(vit_checkpoint)
    policy.cache.rollouts = 3
    rollout(policy, 12, numbers=(0, 1, 2, 3, 4))
    kept = policy.cache._frames
    assert len(kept) == 3
    assert all(len(frames) <= 7 for frames in kept.values())
