"""Language-modulated ViTs and a second ViT beside the first, with small random weights."""

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from model_batches import clone, robot_batch, small
from test_segments import VIT

from arvrm.interface import Observation, PlanRequest, UserError
from arvrm.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from arvrm.model.config import VisionConfig
from arvrm.model.metadata import CheckpointMetadata
from arvrm.model.policy_net import PolicyNet
from arvrm.model.published.config import SecondVisionConfig
from arvrm.model.vit import VitEncoder
from arvrm.policy import CheckpointPolicy
from arvrm.robots.calvin import CALVIN

DINO = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 28}
DINO |= {"patch_size": 14}
METADATA = CheckpointMetadata("finetune", 2, 1, {"rgb_static": 32, "rgb_gripper": 32}, execute_steps=1)
FIRST = {"encoder": "mae", "backbone": VIT, "film": False, "frozen": True}


def encoder(kind, modulated):
    torch.manual_seed(0)
    backbone = DINO if kind == "dinov2" else VIT
    return VitEncoder(
        VisionConfig(encoder=kind, backbone=backbone, frozen=True, film=False, modulated=modulated), language_width=8
    ).eval()


def pictures(count=3):
    return torch.randint(0, 256, (count, 30, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def built(**second):
    second = SecondVisionConfig(backbone=DINO, **{"input_size": 28, **second})
    torch.manual_seed(0)
    net = PolicyNet(small(vision=FIRST, published={"second": second}), CALVIN).eval()
    for module in net.modules():
        if type(module).__name__ == "FilmedLayer":
            torch.nn.init.normal_(module.scale.weight, std=0.3)
            torch.nn.init.normal_(module.shift.bias, std=0.3)
    return net


@pytest.mark.parametrize("kind", ["dinov2", "mae"])
def test_modulation_starts_as_the_plain_vit_and_then_follows_the_words(kind):
    plain, modulated = encoder(kind, False), encoder(kind, True)
    words = torch.randn(3, 8)
    before = plain(pictures(), None)[0]
    assert torch.allclose(modulated(pictures(), words)[0], before, atol=1e-6)
    torch.nn.init.normal_(modulated.filmed[0].scale.weight)
    changed = modulated(pictures(), words)[0]
    assert (changed - before).abs().max() > 1e-3
    alone = modulated(pictures()[1:2], words[1:2])[0]
    assert torch.allclose(alone, changed[1:2], atol=1e-5), "each image has its own words"


def test_words_scale_and_shift_a_block_between_attention_and_mlp():
    vit, seen = encoder("dinov2", True), []
    layer = vit.filmed[0]
    with torch.no_grad():
        for part in (layer.scale, layer.shift):
            part.weight.normal_()
            part.bias.normal_()
    block, words, hidden = layer.block, torch.randn(2, 8), torch.randn(2, 5, 24)
    block.norm2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    layer.words = words
    out = layer(hidden)
    attended = hidden + block.layer_scale1(block.attention(block.norm1(hidden))[0])
    gamma = words @ layer.scale.weight.T + layer.scale.bias
    beta = words @ layer.shift.weight.T + layer.shift.bias
    expected = attended * (1 + gamma[:, None, :]) + beta[:, None, :]
    assert torch.allclose(seen[0], expected, atol=1e-6)
    assert torch.allclose(out, expected + block.layer_scale2(block.mlp(block.norm2(expected))), atol=1e-6)


def test_a_frozen_vit_is_not_trained_and_its_modulation_is():
    net = built()
    net(robot_batch())["loss"].backward()
    layer = net.second.encoder.filmed[0]
    assert layer.scale.weight.grad.abs().max() > 0 and layer.shift.bias.grad.abs().max() > 0
    assert all(p.grad is None and not p.requires_grad for p in layer.block.parameters())


@pytest.mark.parametrize("second, tokens", [({}, 1 + 2), ({"modulated": False, "patches": False}, 1)])
def test_the_second_vit_adds_its_tokens_behind_the_first_ones(second, tokens):
    net, batch = built(**second), robot_batch()
    first = PolicyNet(small(vision=FIRST), CALVIN)
    first.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("second.")})
    z_l = net.vlm.language(batch["text"], batch["text_mask"])
    for name in ("static_tokens", "gripper_tokens"):
        both, alone = net.encode(batch, z_l)[name], first.eval().encode(batch, z_l)[name]
        assert both.shape[2] == alone.shape[2] + tokens == 3 + tokens
        assert torch.allclose(both[:, :, :3], alone, atol=1e-6)
    assert not torch.allclose(net.act(batch)[..., :6], first.act(batch)[..., :6], atol=1e-4)
    words = clone(batch)
    words["text"] += torch.randn(words["text"].shape)
    other = net.vlm.language(words["text"], words["text_mask"])
    changed = (net.encode(words, other)["static_tokens"] - net.encode(batch, z_l)["static_tokens"])[:, :, 3:]
    assert (changed.abs().max() > 1e-4) == net.config.published.second.modulated


def test_untimed_latents_leave_the_other_tokens_as_they_are():
    batch, found = robot_batch(frames=3), {}
    for timed in (True, False):
        net, inputs = built(latents_have_time=timed), []
        net.vlm.transformer.register_forward_pre_hook(lambda _, given, inputs=inputs: inputs.append(given[0]))
        net.act(batch)
        found[timed] = inputs[0].unflatten(1, (3, -1))
    change = (found[True] - found[False]).abs().amax((0, 1, 3)) > 1e-6
    # language, state, 2 latents, CLS, second CLS, 2 second latents, then the gripper's
    assert change.nonzero().flatten().tolist() == [6, 7] and len(change) == 2 + 2 * 6
    time = net.vlm.time[:3][None, :, None]
    assert torch.allclose(found[True][:, :, 6:8] - found[False][:, :, 6:8], time.expand(2, -1, 2, -1), atol=1e-6)


def test_a_policy_with_two_vits_is_saved_whole(tmp_path):
    net, batch = built(), robot_batch()
    save_checkpoint(tmp_path / "policy", net, METADATA)
    again = load_checkpoint(tmp_path / "policy", kind="policy")
    assert again.config.published.second.backbone["hidden_size"] == 24
    assert torch.equal(again.model.act(batch), net.act(batch))


def test_kept_tokens_of_two_vits_give_the_plan_that_images_give():
    net, batch = built(), robot_batch(frames=2)
    tokens = net.encode_frames(batch)
    without = {name: value for name, value in batch.items() if name not in ("static", "gripper")}
    assert torch.allclose(net.act({**without, **tokens}), net.act(batch), atol=1e-6)


def test_features_of_the_first_vit_alone_are_refused():
    net, batch = built(), robot_batch()
    batch["static_features"] = torch.randn(2, 2, 17, 16)
    with pytest.raises(UserError, match="published.second needs images"):
        net(batch)


def test_modulation_is_refused_where_it_means_nothing():
    with pytest.raises(ValueError, match="vision.film"):
        small(vision={"modulated": True})
    with pytest.raises(UserError, match="published.second.path"):
        PolicyNet(small(vision=FIRST, published={"second": SecondVisionConfig()}), CALVIN)


def test_kept_tokens_count_for_their_own_instruction_only():
    frames = np.random.default_rng(0).integers(0, 256, (2, 2, 32, 32, 3), dtype=np.uint8)
    state = np.zeros(15)
    state[6], state[14] = 0.08, 1.0
    state = {"robot_obs": state, "target_pose": state[:6]}
    seen = tuple(Observation(state, {"rgb_static": static, "rgb_gripper": gripper}) for static, gripper in frames)
    net = built()
    policy = CheckpointPolicy(Checkpoint(net, net.config, CALVIN, METADATA), "cpu", batch=1)
    first = policy.plan([PlanRequest("open the drawer", seen, 0, 5)])[0]
    # The same pictures at the same step of the same rollout, but other words.
    second = policy.plan([PlanRequest("press the button", seen, 0, 5)])[0]
    policy.cache.clear()
    assert np.array_equal(second, policy.plan([PlanRequest("press the button", seen, 0, 5)])[0])
    assert not np.array_equal(first, second)
