"""State, keypoint, text and image encoders."""

import json

import numpy as np
import pytest
import torch
from model_batches import small

from arvrm.hands.coordinates import denormalise_keypoints, normalise_keypoints
from arvrm.interface import UserError
from arvrm.model.config import TextConfig, VisionConfig
from arvrm.model.conv import ConvEncoder
from arvrm.model.heatmaps import splat_cross_entropy
from arvrm.model.joints import JointEncoder
from arvrm.model.pixels import fit_images, jitter_colours
from arvrm.model.text import TextEncoder, TextPool
from arvrm.model.vit import VitEncoder


@pytest.fixture(scope="module")
def text():
    return TextEncoder()


def test_keypoints_span_the_image_and_come_back():
    corners = np.array([[0.0, 0.0, 0.1], [200.0, 100.0, -0.05]])
    normal = normalise_keypoints(corners, height=100, width=200)
    assert np.allclose(normal, [[-1, -1, 1], [1, 1, -0.5]])
    assert np.allclose(denormalise_keypoints(normal, 100, 200), corners, atol=1e-5)


def test_tokens_are_padded_with_zeros_and_masked(text):
    tokens, mask = text.tokens(["open the drawer", "take the red block and lift it"])
    assert tokens.shape == (2, mask.shape[1], 256) and mask[1].all() and not mask[0].all()
    assert (tokens[~mask] == 0).all() and (tokens[mask].abs().sum(-1) > 0).all()
    alone, _ = text.tokens(["  Open the DRAWER "])
    assert torch.equal(alone[0], tokens[0][mask[0]])


def test_sentence_features_put_like_instructions_together(text):
    a, b, c = text.sentence(["open the drawer", "pull the drawer open", "push the red block left"])
    assert a @ a == pytest.approx(1.0, abs=1e-5)
    assert a @ b > a @ c


def test_empty_instruction_is_refused(text):
    with pytest.raises(UserError, match="empty"):
        text.tokens([" "])


def test_word_order_reaches_the_language_token_and_padding_does_not(text):
    torch.manual_seed(0)
    pool = TextPool(TextConfig(), 32)
    tokens, mask = text.tokens(["put red on blue", "put blue on red", "put red on blue and then wait for more"])
    z = pool(tokens, mask)
    assert (z[0] - z[1]).abs().max() > 1e-3
    alone, alone_mask = text.tokens(["put red on blue"])
    assert torch.allclose(pool(alone, alone_mask)[0], z[0], atol=1e-6)


def test_random_shift_moves_a_window_as_one_and_reports_how_far():
    torch.manual_seed(3)
    images = torch.zeros(6, 2, 32, 32, 3, dtype=torch.uint8)
    images[:, :, 16, 16] = 255
    moved, offset = fit_images(images, 32, shift=0.2)
    assert len({tuple(o) for o in offset.tolist()}) > 1
    for i, image in enumerate(moved):
        v, u = (image[..., 0] == 255).nonzero()[0].tolist()
        assert [(u - 16) / 16, (v - 16) / 16] == pytest.approx(offset[i // 2].tolist())


def test_images_of_another_size_are_resized():
    flat = torch.full((1, 1, 50, 50, 3), 77, dtype=torch.uint8)
    images, offset = fit_images(flat, 32)
    assert images.shape == (1, 32, 32, 3) and (images == 77).all() and (offset == 0).all()


def dots(count, size, rng):
    """Images with one bright dot on noise, and where it is."""
    images = rng.integers(0, 120, (count, size, size, 3))
    where = rng.uniform(4, size - 4, (count, 2))
    v, u = np.mgrid[:size, :size] + 0.5
    blob = np.exp(-((u - where[:, :1, None]) ** 2 + (v - where[:, 1:, None]) ** 2) / 8.0)
    images = images * (1 - blob[..., None]) + 255 * blob[..., None] * np.array([1.0, 0.3, 0.1])
    return torch.from_numpy(images.astype(np.uint8)), torch.from_numpy((where / size * 2 - 1).astype(np.float32))


def test_heatmaps_learn_to_find_a_dot_to_a_fraction_of_their_cells():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    config = VisionConfig(channels=(16, 32), depth=1, points=4, film=False)
    model = ConvEncoder(config, 32, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        images, where = dots(32, 32, rng)
        loss = splat_cross_entropy(model(images, None)[1][..., 0], where).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, where = dots(64, 32, rng)
    heat = model(images, None)[1][..., 0].flatten(1).softmax(-1)
    pixels = ((heat @ model.grid.T - where) * 16).norm(dim=-1)
    assert pixels.median() < 1.0, "a cell is 4 pixels"


def test_splat_cross_entropy_is_least_at_the_point_itself():
    where = torch.tensor([[0.3, -0.55]])
    logits = torch.zeros(1, 8, 8, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(100):
        optimizer.zero_grad()
        splat_cross_entropy(logits, where).sum().backward()
        optimizer.step()
    line = (torch.arange(8) + 0.5) / 4 - 1
    heat = logits.detach().flatten().softmax(0).view(8, 8)
    assert float(heat.sum(0) @ line) == pytest.approx(0.3, abs=0.02)
    assert float(heat.sum(1) @ line) == pytest.approx(-0.55, abs=0.02)


def test_language_changes_what_the_image_encoder_sees_only_with_film():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    model = ConvEncoder(VisionConfig(channels=(8, 16), depth=1), 32, 8)
    torch.nn.init.normal_(model.film.weight)
    features = [model(images, torch.full((2, 8), float(word)))[0] for word in (0, 1)]
    assert (features[0] - features[1]).abs().max() > 1e-3
    assert features[0].shape == (2, 1 + model.patches, model.width)


def test_joint_encoder_reads_no_value_of_a_joint_that_is_not_visible():
    torch.manual_seed(0)
    model = JointEncoder(small())
    keypoints, visible = torch.randn(2, 3, 21, 3), torch.rand(2, 3, 21) > 0.5
    visible[0, 1] = False
    moved = torch.where(visible[..., None], keypoints, torch.full_like(keypoints, 1e4))
    out = model(keypoints, visible)
    assert out.shape == (2, 3, 21, 16) and torch.isfinite(out).all()
    assert torch.equal(out, model(moved, visible))


def test_joint_encoder_does_not_look_ahead():
    torch.manual_seed(0)
    model = JointEncoder(small())
    keypoints, visible = torch.randn(2, 4, 21, 3), torch.ones(2, 4, 21, dtype=torch.bool)
    moved = keypoints.clone()
    moved[:, 2:] += 1.0
    before, after = model(keypoints, visible), model(moved, visible)
    assert torch.allclose(before[:, :2], after[:, :2], atol=1e-6)
    assert (before[:, 2] - after[:, 2]).abs().max() > 1e-3


VIT = dict(hidden_size=16, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8)


def tiny_vit(name, layers):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = {**VIT, "num_hidden_layers": layers}
    if name == "mae":
        return transformers.ViTMAEModel(transformers.ViTMAEConfig(**settings))
    return transformers.Dinov2Model(transformers.Dinov2Config(**settings))


@pytest.mark.parametrize("name", ["mae", "dinov2"])
def test_vit_loads_from_a_directory_and_describes_itself(name, tmp_path):
    source = tiny_vit(name, layers=2)
    source.save_pretrained(tmp_path)
    encoder = VitEncoder(VisionConfig(encoder=name, path=str(tmp_path), film=False)).eval()
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    features, heatmaps = encoder(images, None)
    assert features.shape == (2, 17, 16) and heatmaps is None
    assert all(torch.equal(value, encoder.model.state_dict()[key]) for key, value in source.state_dict().items())
    rebuilt = VitEncoder(VisionConfig(encoder=name, backbone=json.loads(json.dumps(encoder.backbone())), film=False))
    rebuilt.load_state_dict(encoder.state_dict())
    assert torch.allclose(rebuilt.eval()(images, None)[0], features, atol=1e-6)


@pytest.mark.parametrize("name", ["mae", "dinov2"])
def test_vit_keeps_patches_in_their_places(name, tmp_path):
    tiny_vit(name, layers=0).save_pretrained(tmp_path)
    encoder = VitEncoder(VisionConfig(encoder=name, path=str(tmp_path), film=False)).eval()
    images = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    moved = images.clone()
    moved[:, 8:16, 16:24] = 255 - moved[:, 8:16, 16:24]
    changed = (encoder(images, None)[0] - encoder(moved, None)[0]).abs().sum(-1)[0]
    assert changed.nonzero().flatten().tolist() == [1 + 4 * 1 + 2], "CLS, then row 1, column 2 of four"


def test_missing_backbone_says_what_to_do(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(UserError, match="vision.path: cannot load .*; download it once"):
        VitEncoder(VisionConfig(encoder="mae", path=str(tmp_path / "nowhere"), film=False))
    with pytest.raises(UserError, match="vision.path is not set"):
        VitEncoder(VisionConfig(encoder="dinov2", film=False))


def test_clip_text_gives_one_token_per_sentence(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    pieces = ["<|startoftext|>", "<|endoftext|>", *"opendrawtch", *(c + "</w>" for c in "opendrawtch")]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")).save_pretrained(tmp_path)
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        projection_dim=12, max_position_embeddings=20, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    transformers.CLIPTextModelWithProjection(config).save_pretrained(tmp_path)
    encoder = TextEncoder(TextConfig(encoder="clip", path=str(tmp_path), width=12))
    tokens, mask = encoder.tokens(["open", "close the drawer"])
    assert tokens.shape == (2, 1, 12) and mask.all()
    assert (tokens[0] - tokens[1]).abs().max() > 1e-4
    with pytest.raises(UserError, match="text.width: .* gives 12 numbers, got 256"):
        TextEncoder(TextConfig(encoder="clip", path=str(tmp_path)))


def test_colour_jitter_changes_all_frames_of_a_window_alike_and_windows_apart():
    torch.manual_seed(0)
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(4, 16, 16, 3).contiguous()
    changed = jitter_colours(levels, windows=2, strength=0.3)
    assert torch.equal(changed[0], changed[1]) and torch.equal(changed[2], changed[3])
    assert not torch.equal(changed[0], changed[2])
    assert (changed[0].view(256, 3).int().diff(dim=0) >= 0).all(), "brighter stays brighter"
    assert (changed.int() - levels.int()).abs().max() <= 128 * 0.4 * 1.5 + 64 * 0.3 + 1
    assert torch.equal(jitter_colours(levels, windows=2, strength=0.0), levels)
