"""Windows that share frames: each frame is read and encoded once, and nothing else changes."""

import numpy as np
import pytest
import torch
from small_stores import robot_episode, robot_store, write

from arvrm.config import from_dict
from arvrm.interface import UserError
from arvrm.model.policy_net import PolicyNet
from arvrm.model.segments import windows_of
from arvrm.model.upgrade import OURS
from arvrm.robots.calvin import CALVIN
from arvrm.training import FinetuneConfig, RobotData, finetune
from arvrm.windows import EpisodeTable, cut_segments

VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VIT |= {"image_size": 32, "patch_size": 8}
ENCODERS = {
    "conv": {"width": 16, "channels": [8, 8], "depth": 1, "points": 8, "static_size": 32, "gripper_size": 32},
    "mae": {"encoder": "mae", "backbone": VIT, "frozen": True, "static_size": 32, "gripper_size": 16},
}
DINO = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 28}
ENCODERS["mae and modulated dinov2"] = ENCODERS["mae"]
SECOND = {"backbone": {**DINO, "patch_size": 14}, "input_size": 28}


def config(root, encoder="mae", **data):
    pytest.importorskip("transformers")
    published = {**OURS, "image_decoder": "shared", "image_decoder_heads": 2}
    published |= {"second": SECOND} if "dinov2" in encoder else {}
    shared = {"published": published} if encoder != "conv" else {}
    model = {"width": 32, "layers": 1, "heads": 2, "joint_width": 8, "latents": 2, "chunk": 4, "resampler_heads": 2}
    model |= {"resampler_head_width": 8, "fwd_pred": True, "image_patch": 8, "image_decoder_layers": 2, **shared}
    model |= {"vision": {"film": encoder == "conv", **ENCODERS[encoder]}, "analogy": {"enabled": False}}
    model |= {"loss": {"localisation": 1.0 if encoder == "conv" else 0.0}}
    return from_dict(
        FinetuneConfig,
        {
            "output": str(root / "run"),
            "data": {"stores": [str(root / "robot")], "validation": 0.2, "frozen_features": False, **data},
            "window": {"history": 4, "stride": 1, "image_horizon": 2},
            "model": model,
            "train": {"batch": 12, "steps": 2, "device": "cpu", "tensorboard": False, "log_every": 1, "warmup": 0},
        },
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("segments")
    robot_store(root / "robot", tasks=2, per_task=4, steps=17, every=1, landmarks=True)
    return root


def plain_twin(data, index):
    """The windows of the batch `index`, each with frames of its own; those that do not count are masked."""
    shared = data.batch_of(index)
    which = np.searchsorted(data.segments.last, data.sampler.draw(index, data.draws))
    plain = data.windows.batch(data.windows.segment_anchors(data.segments, which))
    for name in (n for n in plain if n.endswith("_mask") and n != "text_mask"):
        plain[name] = plain[name] & shared["frame_mask"].any(1).view(-1, *[1] * (plain[name].dim() - 1))
    return shared, plain


def losses(model, batch):
    model.zero_grad()
    result = model(batch)
    result["loss"].backward()
    return {name: value.detach() for name, value in result.items() if value.ndim == 0}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_shared_frames_give_the_losses_and_gradients_of_separate_windows(root, encoder):
    settings = config(root, encoder, segment_windows=5)
    torch.manual_seed(0)
    model = PolicyNet(settings.model, CALVIN).eval()  # without augmentation
    data = RobotData(settings, model)
    for index in range(2):
        shared, plain = plain_twin(data, index)
        assert shared["segments"]["static"].shape[:2] == (3, 5 + 3 + 2) and "static" not in shared
        assert plain["static"].shape[:2] == (15, 4)
        one = losses(model, shared)
        one_gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        two = losses(model, plain)
        assert one["loss_image"] > 0 and one["loss_arm"] > 0 and set(one) == set(two)
        for name, value in one.items():
            assert torch.allclose(value, two[name], atol=1e-5), name
        for a, (name, p) in zip(one_gradients, model.named_parameters(), strict=True):
            assert (a is None) == (p.grad is None), name
            assert a is None or torch.allclose(a, p.grad, atol=1e-5), name


def test_features_kept_on_disk_give_the_losses_of_images(root, tmp_path):
    torch.manual_seed(0)
    model = PolicyNet(config(root).model, CALVIN).eval()
    images = RobotData(config(root), model)
    expected = losses(model, images.windows.batch(images.train[:12]))
    for precision, near in (("fp32", 1e-5), ("fp16", 1e-2)):
        cache = str(tmp_path / precision)
        settings = config(root, frozen_features=True, feature_precision=precision, cache=cache)
        data = RobotData(settings, model)
        batch = data.windows.batch(data.train[:12])
        assert "static" not in batch and batch["next_static"].shape[:2] == (12, 4)
        found = losses(model, batch)
        for name, value in expected.items():
            assert torch.allclose(value, found[name], atol=near), (precision, name)
        assert len([file for file in (tmp_path / precision).iterdir() if precision in file.name]) == 2
        together = RobotData(config(root, segment_windows=5, **vars_of(settings)), model)
        shared, plain = plain_twin(together, 0)
        assert shared["segments"]["static_features"].shape[:2] == (3, 8)
        assert shared["segments"]["static"].shape[:2] == (3, 8), "only the frames to predict are decoded"
        one, two = losses(model, shared), losses(model, plain)
        assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


def vars_of(settings):
    names = ("frozen_features", "feature_precision", "cache")
    return {name: getattr(settings.data, name) for name in names}


def test_each_frame_is_encoded_once_and_a_segment_shifts_as_one(root):
    settings = config(root, segment_windows=5)
    settings = from_dict(FinetuneConfig, with_vision(settings, shift_static=0.2, shift_gripper=0.2))
    torch.manual_seed(0)
    model = PolicyNet(settings.model, CALVIN).train()
    data = RobotData(settings, model)
    batch = data.batch_of(0)
    images, encoder = [], model.vlm.static_encoder
    encode = encoder.forward
    encoder.forward = lambda x, words: (images.append(x), encode(x, words))[1]
    z_l = model.vlm.language(batch["text"], batch["text_mask"])
    seen = model.encode(batch, z_l, images=True)
    assert [len(x) for x in images] == [3 * 8, 3 * 8], "three segments of eight frames, two cameras"
    assert seen["static_tokens"].shape[:2] == (15, 4)
    offset = seen["offset"].view(3, 5, 2)
    assert (offset == offset[:, :1]).all() and len(torch.unique(offset[:, 0], dim=0)) > 1
    # Frame i + 1 of a window is frame i of the next one, token by token; what is predicted is shifted alike.
    tokens = seen["static_tokens"].view(3, 5, 4, *seen["static_tokens"].shape[2:])
    assert torch.equal(tokens[:, :-1, 1:], tokens[:, 1:, :-1])
    assert torch.equal(seen["static_later"][:, :6], images[0].unflatten(0, (3, 8))[:, 2:])


def with_vision(settings, **changes):
    from arvrm.config import to_dict

    values = to_dict(settings)
    values["model"]["vision"] |= changes
    return values


@pytest.mark.parametrize("windows", [1, 4, 5, 30])
def test_every_window_counts_in_exactly_one_segment(tmp_path, windows):
    episodes = [robot_episode(f"e{n}", steps=n, every=1, group=f"g{n}") for n in (1, 4, 9, 13)]
    table = EpisodeTable([write(tmp_path / "s", episodes)], "robot", 2)
    anchors = np.flatnonzero(table.step_of_image != 7)  # a gap in the third episode's odd row
    segments = cut_segments(table, anchors, windows)
    counted = []
    for last, (low, high) in zip(segments.last, segments.live, strict=True):
        episode = table.episode_of_image[last]
        back = np.arange(windows - 1, -1, -1)[low:high]
        steps = table.step_of_image[last] - 2 * back
        assert 0 <= low < high <= windows and (steps >= table.step_start[episode]).all()
        counted += [table.image_of_step[step] for step in steps]
    assert sorted(counted) == sorted(anchors)
    assert (np.diff(segments.last) > 0).all()


def test_windows_are_drawn_as_often_in_segments_as_one_by_one(root):
    data = RobotData(config(root, segment_windows=5, balance_tasks=True), PolicyNet(config(root).model, CALVIN))
    alone = RobotData(config(root, balance_tasks=True), PolicyNet(config(root).model, CALVIN))

    def shares(sampler):
        return dict(zip(*(column.tolist() for column in sampler.weights()), strict=True))

    by_segment, one_by_one = shares(data.sampler), shares(alone.sampler)
    total = {}
    for last, (low, high) in zip(data.segments.last, data.segments.live, strict=True):
        for anchor in range(last - (4 - low), last - (4 - high)):
            total[anchor] = by_segment[last]
    scale = sum(total.values())
    assert set(total) == set(one_by_one)
    assert all(total[a] / scale == pytest.approx(one_by_one[a], rel=1e-6) for a in total)


def test_training_on_segments_runs_and_is_judged_on_plain_windows(root):
    result = finetune(config(root, segment_windows=4, frozen_features=False), progress=False)
    assert result.steps == 2 and result.metrics["train"]["loss_image"] > 0
    assert 0 <= result.metrics["validation"]["gripper_accuracy"] <= 1


def test_segments_that_do_not_fit_their_windows_are_named(root):
    settings = config(root, segment_windows=5)
    model = PolicyNet(settings.model, CALVIN)
    batch = RobotData(settings, model).batch_of(0)
    batch["segments"] = {name: value[:, :6] for name, value in batch["segments"].items()}
    with pytest.raises(UserError, match="3 of 6 frames cannot hold 15 windows of 4; give 8 frames"):
        model(batch)


def test_runs_of_frames_are_all_consecutive_ones():
    values = torch.arange(2 * 5 * 3).view(2, 5, 3)
    found = windows_of(values, 2)
    assert found.shape == (8, 2, 3)
    assert torch.equal(found[5], values[1, 1:3]) and torch.equal(found[3], values[0, 3:5])
    assert windows_of(values, 5) is values
