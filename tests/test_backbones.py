"""Frozen backbones: the same small random weights in each form in which they are published load back equal."""

import gzip

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

import transformers
from official_reference import Vit
from original_files import CLIP_WORDS, openai_clip, openai_vocabulary, original_dinov2

from arvrm.interface import UserError
from arvrm.model import backbones
from arvrm.model.config import TextConfig, VisionConfig
from arvrm.model.text import TextEncoder
from arvrm.model.vit import VitEncoder


def images(size=40, count=3):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def vit(path, encoder="mae", **changes):
    return VitEncoder(VisionConfig(encoder=encoder, path=str(path), frozen=True, film=False, **changes)).eval()


def test_original_mae_file_and_a_directory_of_it_load_equal(tmp_path):
    torch.manual_seed(0)
    model = Vit()
    decoder = {"mask_token": torch.zeros(1, 1, 8), "decoder_blocks.0.norm1.weight": torch.zeros(8)}
    torch.save({"model": {**model.state_dict(), **decoder}}, tmp_path / "mae_pretrain_vit_base.pth")
    from_file = vit(tmp_path / "mae_pretrain_vit_base.pth")
    from_file.model.save_pretrained(tmp_path / "directory")
    from_directory = vit(tmp_path / "directory")
    with torch.no_grad():
        features, _ = from_file(images(), None)
        assert torch.equal(features, from_directory(images(), None)[0])
        cls, patches = model(from_file.pixels(images()))
    assert torch.allclose(features, torch.cat([cls[:, None], patches], dim=1), atol=1e-5)
    assert features.std() > 0.1


def test_original_dinov2_file_and_a_directory_of_it_load_equal(tmp_path):
    torch.manual_seed(0)
    model = transformers.Dinov2Model(
        transformers.Dinov2Config(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=1,
            image_size=28,
            patch_size=14,
            layer_norm_eps=1e-6,
        )
    )
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    torch.save(original_dinov2(model), tmp_path / "dinov2_vitb14_pretrain.pth")
    model.save_pretrained(tmp_path / "directory")
    from_file = vit(tmp_path / "dinov2_vitb14_pretrain.pth", "dinov2")
    from_directory = vit(tmp_path / "directory", "dinov2")
    with torch.no_grad():
        features = from_file(images(), None)[0]
        assert torch.allclose(features, from_directory(images(), None)[0], atol=1e-6)
        assert torch.allclose(features, model.eval()(from_file.pixels(images())).last_hidden_state, atol=1e-5)
    larger = vit(tmp_path / "directory", "dinov2", input_size=56)
    assert larger(images(), None)[0].shape == (3, 1 + 16, 64) and larger.patches == 16


@pytest.mark.parametrize("script", [False, True], ids=["state dict", "TorchScript"])
def test_openai_clip_file_and_a_directory_of_it_load_equal(tmp_path, script):
    state, expected = openai_clip(seed=1)
    if script:
        holder = torch.nn.Module()
        for name, value in state.items():
            parent = holder
            for part in name.split(".")[:-1]:
                if not hasattr(parent, part):
                    parent.add_module(part, torch.nn.Module())
                parent = getattr(parent, part)
            parent.register_buffer(name.split(".")[-1], value)
        torch.jit.script(holder).save(tmp_path / "ViT-B-32.pt")
    else:
        torch.save(state, tmp_path / "ViT-B-32.pt")
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(openai_vocabulary().encode()))
    config = TextConfig(encoder="clip", path=str(tmp_path / "ViT-B-32.pt"), width=24, max_tokens=1)
    encoder = TextEncoder(config)
    sentences = ["open the drawer", "go left"]
    from_file = encoder.tokens(sentences)[0][:, 0]
    backbones.load_original(config.path, "CLIPTextModelWithProjection").save_pretrained(tmp_path / "directory")
    backbones.clip_tokenizer(config.path).save_pretrained(tmp_path / "directory")
    directory = TextConfig(encoder="clip", path=str(tmp_path / "directory"), width=24, max_tokens=1)
    assert torch.allclose(from_file, TextEncoder(directory).tokens(sentences)[0][:, 0], atol=1e-6)
    tokenizer = backbones.clip_tokenizer(config.path)
    for sentence, vector in zip(sentences, from_file, strict=True):
        ids = tokenizer([sentence])["input_ids"][0]
        assert ids[0] == CLIP_WORDS - 2 and ids[-1] == CLIP_WORDS - 1
        assert torch.allclose(vector, expected(ids), atol=1e-5)
    assert not torch.allclose(from_file[0], from_file[1], atol=1e-3)


def test_tokenizer_joins_letters_as_the_vocabulary_says(tmp_path):
    (tmp_path / "bpe_simple_vocab_16e6.txt").write_text(openai_vocabulary())
    tokenizer = backbones.clip_tokenizer(tmp_path / "weights.pt")
    letters = backbones._byte_letters()
    ids = tokenizer(["Go up"])["input_ids"][0][1:-1]
    assert ids == [512 + 0, letters.index("u"), 256 + letters.index("p")], "go is a word, up is not"


def test_weights_without_a_tokenizer_say_which_file_to_put_beside_them(tmp_path):
    torch.save(openai_clip()[0], tmp_path / "ViT-B-32.pt")
    with pytest.raises(UserError, match="bpe_simple_vocab_16e6"):
        TextEncoder(TextConfig(encoder="clip", path=str(tmp_path / "ViT-B-32.pt"), width=24))


def test_name_that_cannot_be_fetched_says_what_to_give(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="vision.path: cannot load 'facebook/vit-mae-none'.*download it once"):
        vit("facebook/vit-mae-none")
    with pytest.raises(UserError, match="text.path: cannot load"):
        TextEncoder(TextConfig(encoder="clip", path=str(tmp_path / "nothing"), width=24))


@pytest.mark.parametrize("name", ["blocks.1.attn.qkv.bias", "pos_embed", "norm.weight"])
def test_missing_tensor_of_an_original_file_is_named(name):
    state = Vit().state_dict()
    del state[name]
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        backbones.mae(state)


def test_file_of_another_model_is_refused():
    with pytest.raises(UserError, match="extra"):
        backbones.mae({**Vit().state_dict(), "extra.weight": torch.zeros(1)})


def test_damaged_file_is_reported_in_one_line(tmp_path):
    (tmp_path / "mae.pth").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(UserError, match="cannot be read as weights") as raised:
        vit(tmp_path / "mae.pth")
    assert "\n" not in str(raised.value)
