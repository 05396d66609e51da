"""Original checkpoints become ours and compute the same.

The originals' files were not at hand: they are stood in for by tests/official_reference.py, which follows the published
code's semantics and parameter names with random weights.
"""

import dataclasses
import json

import pytest
import torch

pytest.importorskip("transformers")

from official_reference import OfficialGR1, inputs

from arvrm import cli
from arvrm.interface import UserError
from arvrm.model import backbones
from arvrm.model.checkpoint import load_checkpoint
from arvrm.model.published.forward import predict
from arvrm.model.published.importers import PUBLISHED, ImportConfig, convert, import_checkpoint

SMALL = {**PUBLISHED, "n_head": 4, "resampler_heads": 2}


def original(chunk, seed=0, **sizes):
    torch.manual_seed(seed)
    return OfficialGR1(chunk, **sizes).eval()


def files(tmp_path, model, **more):
    """Save a model as its code does: the policy without frozen encoders, and the MAE apart."""
    torch.save({"state_dict": {**model.saved(), **more}}, tmp_path / "policy.pth")
    decoder = {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 64)}
    torch.save({"model": {**model.model_mae.state_dict(), **decoder}}, tmp_path / "mae.pth")
    (tmp_path / "configs.json").write_text(json.dumps({"n_head": 4, "resampler_heads": 2, "seq_len": 5, "lr_max": 1}))
    return ImportConfig(
        str(tmp_path / "policy.pth"),
        str(tmp_path / "ours"),
        vision=str(tmp_path / "mae.pth"),
        trained_with=str(tmp_path / "configs.json"),
    )


@pytest.mark.parametrize("chunk, padded", [(None, 0), (None, 3), (4, 0), (4, 2)])
def test_imported_network_computes_what_the_original_computes(chunk, padded):
    model = original(chunk)
    mae = backbones.mae(model.model_mae.state_dict())
    ours = convert(model.saved(), SMALL, ("mae", mae)).model
    mine, theirs = inputs(model, padded=padded)
    expected = model(**theirs)
    got = predict(ours, mine, images=True)
    for name, value in expected.items():
        # Ours has padding in front, the original behind; what either says of padding is not compared.
        value[-1] = torch.roll(value[-1], padded, dims=0)
        assert value.std() > 0.01
        difference = (got[name] - value).abs()
        difference[-1, :padded] = 0
        assert difference.max() < 1e-5, name
    actions = ours.act(mine)
    assert torch.allclose(actions[..., :6], expected["arm"][:, -1].clamp(-1, 1), atol=1e-5)
    assert torch.equal(actions[..., 6], expected["gripper"][:, -1].sign())


def assert_computes_the_same(ours, model, padded):
    """Both read images of 112 pixels; the last row has `padded` frames of padding."""
    mine, theirs = inputs(model, padded=padded, view=112)
    with torch.no_grad():
        expected = model(**theirs)
    got = predict(ours, mine, images=True)
    for name, value in expected.items():
        value[-1] = torch.roll(value[-1], padded, dims=0)
        difference = (got[name] - value).abs()
        difference[-1, :padded] = 0
        assert difference.max() < 1e-5 * max(1.0, float(value.abs().max())), name


@pytest.mark.parametrize("padded", [0, 2])
def test_ar_vrms_second_variant_computes_what_the_original_computes(padded):
    # Both ViTs read the same pixels: 112 is a multiple of 16 and of 14.
    model = original(4, dino=True, size=112)
    state = model.saved()
    state |= {name.replace("dino.", "ego_hand.", 1): t for name, t in state.items() if name.startswith("dino.")}
    found = convert(state, SMALL, ("mae", backbones.mae(model.model_mae.state_dict())))
    second = found.model.config.published.second
    assert found.kind == "ar-vrm" and second.modulated and second.patches and not second.latents_have_time
    assert not any("as we know it" in reason for reason in found.left_out.values())
    assert "dino.vision_backbone.encoder.layer.1.scale.weight" in found.mapped
    assert_computes_the_same(found.model, model, padded)


@pytest.mark.parametrize("padded", [0, 2])
def test_ar_vrms_first_variant_computes_what_the_original_computes(padded):
    model = original(4, cls_only=True, size=112)  # 8 x 8 patches of 14, where its positions are for 5 x 5
    found = convert(model.saved(), SMALL, ("mae", backbones.mae(model.model_mae.state_dict())))
    second = found.model.config.published.second
    assert found.kind == "ar-vrm" and not second.modulated and not second.patches and second.latents_have_time
    assert_computes_the_same(found.model, model, padded)


def test_dinov2_without_its_weights_is_left_out_with_the_reason():
    model = original(4)
    extra = {"embed_dino_img.weight": torch.zeros(64, 64), "ar_matrix.layers.0.norm1.bias": torch.zeros(64)}
    found = convert({**model.saved(), **extra}, SMALL, ("mae", backbones.mae(model.model_mae.state_dict())))
    assert found.kind == "ar-vrm" and found.model.config.published.second is None
    assert "which the file does not have" in found.left_out["embed_dino_img.weight"]
    assert "human motion" in found.left_out["ar_matrix.layers.0.norm1.bias"]


@pytest.mark.slow
def test_network_of_the_published_size_computes_what_the_original_computes():
    sizes = {"width": 384, "layers": 12, "heads": 12, "frames": 10, "latents": 9, "text": 512, "size": 224}
    sizes |= {"features": 768, "vit_layers": 12, "vit_heads": 12, "resampler": (3, 4, 128), "noise": 0.02}
    model = original(10, **sizes)
    ours = convert(model.saved(), PUBLISHED, ("mae", backbones.mae(model.model_mae.state_dict()))).model
    mine, theirs = inputs(model, batch=1, text=512, view=224)
    with torch.no_grad():
        expected = model(**theirs)
    got = predict(ours, mine, images=True)
    scale = max(1.0, max(float(value.abs().max()) for value in expected.values()))
    for name, value in expected.items():
        assert (got[name] - value).abs().max() < 1e-5 * scale, name


def test_every_tensor_is_mapped_left_out_or_new(tmp_path):
    model = original(4)
    with_buffers = {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8), "model_clip.logit_scale": torch.zeros(())}
    folder = import_checkpoint(files(tmp_path, model, **with_buffers))
    listed = json.loads((folder / "import.json").read_text())
    assert listed["kind"] == "gr-chunk"
    saved = set(model.saved()) | set(with_buffers)
    assert set(listed["mapped"]) | set(listed["left_out"]) == saved
    assert not set(listed["mapped"]) & set(listed["left_out"])
    assert set(listed["left_out"]) == {*with_buffers, "transformer.wte.weight"}
    loaded = load_checkpoint(folder, kind="policy")
    targets = {name for names in listed["mapped"].values() for name in names}
    own = {name for name in loaded.model.state_dict() if ".static_encoder." not in name}
    assert own == targets | set(listed["new"])
    human = ("vlm.joints", "vlm.keypoint", "vlm.next_query", "components", "state_head", "analogy")
    assert all(name.startswith(human) for name in listed["new"])


def test_command_writes_a_checkpoint_that_computes_the_same(tmp_path, capsys):
    model = original(None)
    config = files(tmp_path, model)
    arguments = [config.file, "--kind", "auto", "--output", config.output, "--vision", config.vision]
    assert cli.main(["import-checkpoint", *arguments, "--trained-with", config.trained_with]) == 0
    assert capsys.readouterr().out.strip() == config.output
    loaded = load_checkpoint(config.output)
    assert loaded.metadata.imported["kind"] == "gr1" and loaded.config.chunk == 1
    assert (loaded.metadata.history, loaded.metadata.stride) == (5, 1)
    mine, theirs = inputs(model)
    assert (predict(loaded.model, mine)["arm"] - model(**theirs)["arm"]).abs().max() < 1e-5


def test_frozen_encoder_inside_the_file_is_used(tmp_path):
    model = original(None)
    inside = {f"model_mae.{name}": value for name, value in model.model_mae.state_dict().items()}
    config = dataclasses.replace(files(tmp_path, model, **inside), vision=None)
    loaded = load_checkpoint(import_checkpoint(config))
    mine, theirs = inputs(model)
    assert (predict(loaded.model, mine)["arm"] - model(**theirs)["arm"]).abs().max() < 1e-5


def test_ar_vrm_tensors_that_the_robot_does_not_read_are_left_out_by_name(tmp_path):
    model = original(4)
    config = files(tmp_path, model, **{"ar_map": torch.ones(7, 21), "human_head.weight": torch.ones(3, 3)})
    folder = import_checkpoint(config)
    listed = json.loads((folder / "import.json").read_text())
    assert listed["kind"] == "ar-vrm"
    assert {"ar_map", "human_head.weight"} <= set(listed["left_out"])
    mine, theirs = inputs(model)
    got = predict(load_checkpoint(folder).model, mine)
    assert (got["arm"] - model(**theirs)["arm"]).abs().max() < 1e-5
    with pytest.raises(UserError, match="ar_map"):
        import_checkpoint(dataclasses.replace(config, kind="gr-chunk", overwrite=True))


@pytest.mark.parametrize("name", ["embed_state.bias", "transformer.h.1.mlp.c_proj.weight", "decoder_pos_embed"])
def test_missing_tensor_is_refused_by_name(name):
    model = original(4)
    state = model.saved()
    del state[name]
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        convert(state, SMALL, ("mae", backbones.mae(model.model_mae.state_dict())))


def test_configuration_that_contradicts_the_file_is_refused():
    model = original(4)
    with pytest.raises(UserError, match="seq_len 5"):
        convert(model.saved(), {**SMALL, "seq_len": 10}, ("mae", backbones.mae(model.model_mae.state_dict())))


def test_file_with_code_in_it_is_refused(tmp_path):
    torch.save({"state_dict": {}, "args": cli.Verb("harm", "", "", "")}, tmp_path / "policy.pth")
    with pytest.raises(UserError, match="could run code"):
        import_checkpoint(ImportConfig(str(tmp_path / "policy.pth"), str(tmp_path / "ours")))


def test_import_without_an_image_encoder_says_which_to_give(tmp_path):
    config = dataclasses.replace(files(tmp_path, original(4)), vision=None)
    with pytest.raises(UserError, match="--vision mae_pretrain_vit_base.pth"):
        import_checkpoint(config)
