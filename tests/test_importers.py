"""Original checkpoints become ours and compute the same.

The originals' files were not at hand: they are stood in for by tests/official_reference.py, which follows the published
code's semantics and parameter names with random weights.
"""

import dataclasses
import json

import pytest
import torch

pytest.importorskip("transformers")

import numpy as np
from official_reference import OfficialGR1, OfficialRollout, inputs
from original_files import openai_clip, openai_vocabulary

from arvrm import cli
from arvrm.interface import UserError
from arvrm.model import backbones
from arvrm.model.checkpoint import load_checkpoint
from arvrm.model.published.forward import predict
from arvrm.model.published.importers import ImportConfig, convert, import_checkpoint


def original(chunk, seed=0, **sizes):
    torch.manual_seed(seed)
    return OfficialGR1(chunk, **sizes).eval()


def files(tmp_path, model, **more):
    """Save a model as its code does: the policy without frozen encoders, and the MAE apart."""
    torch.save({"state_dict": {**model.saved(), **more}}, tmp_path / "policy.pth")
    decoder = {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 64)}
    torch.save({"model": {**model.model_mae.state_dict(), **decoder}}, tmp_path / "mae.pth")
    (tmp_path / "configs.json").write_text(json.dumps({**model.configuration(), "lr_max": 1}))
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
    ours = convert(model.saved(), model.configuration(), ("mae", mae)).model
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
    assert torch.allclose(actions[..., :6], expected["arm"][:, -1], atol=1e-5) and actions.abs().max() > 1
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
    found = convert(state, model.configuration(), ("mae", backbones.mae(model.model_mae.state_dict())))
    second = found.model.config.published.second
    assert found.kind == "ar-vrm" and second.modulated and second.patches and not second.latents_have_time
    assert not any("as we know it" in reason for reason in found.left_out.values())
    assert "dino.vision_backbone.encoder.layer.1.scale.weight" in found.mapped
    assert_computes_the_same(found.model, model, padded)


@pytest.mark.parametrize("padded", [0, 2])
def test_ar_vrms_first_variant_computes_what_the_original_computes(padded):
    model = original(4, cls_only=True, size=112)  # 8 x 8 patches of 14, where its positions are for 5 x 5
    found = convert(model.saved(), model.configuration(), ("mae", backbones.mae(model.model_mae.state_dict())))
    second = found.model.config.published.second
    assert found.kind == "ar-vrm" and not second.modulated and not second.patches and second.latents_have_time
    assert_computes_the_same(found.model, model, padded)


def ar_without_dinov2(model):
    """What AR-VRM's code has beside GR-Chunk's tensors where `novel` is true."""
    names = ("embed_dino_img", "embed_dino_hand_img", "ar_matrix_norm", "ar_matrix.layers.0.norm1")
    return {f"{name}.{end}": torch.zeros(64) for name in names for end in ("weight", "bias")}


def test_what_ar_vrm_without_dinov2_does_not_read_is_left_out_with_the_reason():
    model = original(4)
    state = {**model.saved(), **ar_without_dinov2(model)}
    found = convert(state, model.configuration(), ("mae", backbones.mae(model.model_mae.state_dict())))
    assert found.kind == "ar-vrm" and found.model.config.published.second is None
    assert "which this variant does not have" in found.left_out["embed_dino_img.weight"]
    assert "human motion" in found.left_out["ar_matrix.layers.0.norm1.bias"]


@pytest.mark.slow
def test_network_of_the_published_size_computes_what_the_original_computes():
    sizes = {"width": 384, "layers": 12, "heads": 12, "frames": 10, "latents": 9, "text": 512, "size": 224}
    sizes |= {"features": 768, "vit_layers": 12, "vit_heads": 12, "resampler": (3, 4, 128), "noise": 0.02}
    model = original(10, **sizes)
    ours = convert(model.saved(), {}, ("mae", backbones.mae(model.model_mae.state_dict()))).model
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


def test_unknown_tensors_are_refused_and_left_out_by_name_on_request(tmp_path, capsys):
    model = original(4)
    config = files(tmp_path, model, **{"ar_map": torch.ones(7, 21), "human_head.weight": torch.ones(3, 3)})
    for kind in ("auto", "gr-chunk"):
        with pytest.raises(UserError, match="ar_map, human_head.weight"):
            import_checkpoint(dataclasses.replace(config, kind=kind))
    folder = import_checkpoint(dataclasses.replace(config, kind="ar-vrm"))
    listed = json.loads((folder / "import.json").read_text())
    assert listed["kind"] == "ar-vrm"
    assert {"ar_map", "human_head.weight"} <= set(listed["left_out"])
    assert "ar_map, human_head.weight" in capsys.readouterr().err
    mine, theirs = inputs(model)
    got = predict(load_checkpoint(folder).model, mine)
    assert (got["arm"] - model(**theirs)["arm"]).abs().max() < 1e-5


VARIANTS = {
    "gr1": (None, {}),
    "gr-chunk": (4, {}),
    "films": (4, {"dino": True, "size": 112}),
    "cls": (4, {"cls_only": True, "size": 112}),
    "first": (4, {}),
}


def whole(variant):
    """A file's tensors, its configuration and its image encoder."""
    chunk, sizes = VARIANTS[variant]
    model = original(chunk, **sizes)
    state = model.saved() | (ar_without_dinov2(model) if variant == "first" else {})
    return state, model.configuration(), ("mae", backbones.mae(model.model_mae.state_dict()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_tensor_that_is_read_is_missed_by_name(variant):
    state, values, encoder = whole(variant)
    found = convert(state, values, encoder)
    own = {"films": "dino.vision_backbone.", "cls": "dinov2_vitb14."}.get(variant, "mapped")
    read = [name for name in state if name in found.mapped or name.startswith(own)]
    telling = {"films": "dino.", "cls": "dinov2_vitb14."}.get(variant, "transformer.h.")
    # One of three of those that stand alone, one of forty of those in layers.
    some = [name for name in read if not name.startswith((telling, "perceiver", "decoder_blocks"))]
    some += [name for name in read if name.startswith((telling, "perceiver", "decoder_blocks"))][::13]
    some = some[::3]
    for name in some:
        with pytest.raises(UserError, match=name.replace(".", r"\.")) as raised:
            convert({k: v for k, v in state.items() if k != name}, values, encoder)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("prefix", ["transformer.h.1.", "decoder_blocks.1.", "perceiver_resampler.layers.1."])
def test_a_file_whose_last_layers_were_cut_off_is_refused(variant, prefix):
    state, values, encoder = whole(variant)
    state = {name: value for name, value in state.items() if not name.startswith(prefix)}
    with pytest.raises(UserError, match=f"lacks {prefix}".replace(".", r"\.")):
        convert(state, values, encoder)


@pytest.mark.parametrize(
    "variant, without, message",
    [
        ("films", "dino.", "has embed_dino_patch|has perceiver_resampler_dino|has no tensor dino"),
        ("films", "dino.vision_backbone.encoder.layer.1.scale.", "layer.1.scale.weight"),
        ("films", "dino.vision_backbone.encoder.layer.1.block.", "layer.1"),
        ("films", "perceiver_resampler_dino.", "perceiver_resampler_dino.latents"),
        ("cls", "dinov2_vitb14.blocks.1.ls2", "ls2.gamma"),
        ("cls", "embed_dino_", "embed_dino_img.weight"),
        ("gr-chunk", "action_chunk_queries.", "action_chunk_queries.weight"),
        ("gr-chunk", "transformer.wpe.", "transformer.wpe.weight"),
        ("first", "action_chunk_queries.", "action_chunk_queries.weight"),
        ("gr-chunk", ("transformer.wpe.", "action_chunk_queries."), "chunk_size 4"),
    ],
)
def test_a_file_is_not_taken_for_another_variant_when_it_lacks_something(variant, without, message):
    state, values, encoder = whole(variant)
    state = {name: value for name, value in state.items() if not name.startswith(without)}
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        convert(state, values, encoder)


@pytest.mark.parametrize("variant, novel", [("films", True), ("cls", True), ("first", False), ("gr-chunk", False)])
def test_a_configuration_that_says_another_variant_is_refused(variant, novel):
    state, values, encoder = whole(variant)
    with pytest.raises(UserError, match=f"novel {str(novel).lower()}"):
        convert(state, {**values, "novel": novel}, encoder)
    convert(state, {**values, "novel": not novel}, encoder)


def test_ego_hand_is_another_name_of_dinov2_and_nothing_else():
    state, values, encoder = whole("films")
    copies = {name.replace("dino.", "ego_hand.", 1): t for name, t in state.items() if name.startswith("dino.")}
    convert({**state, **copies}, values, encoder)
    name = "ego_hand.vision_backbone.layernorm.bias"
    with pytest.raises(UserError, match="differ"):
        convert({**state, **copies, name: copies[name] + 1}, values, encoder)
    with pytest.raises(UserError, match="has no tensor dino"):
        convert({k: v for k, v in {**state, **copies}.items() if not k.startswith("dino.")}, values, encoder)


@pytest.mark.parametrize("variant", ["gr1", "films", "cls"])
def test_nan_infinity_and_integers_are_refused_by_name(variant):
    state, values, encoder = whole(variant)
    inside = {
        "films": "dino.vision_backbone.encoder.layer.0.block.norm1.weight",
        "cls": "dinov2_vitb14.blocks.0.norm1.weight",
    }
    for name in ("embed_state.weight", "transformer.h.1.ln_1.bias", inside.get(variant, "mask_token")):
        for wrong in (float("nan"), float("-inf")):
            value = state[name].clone()
            value.view(-1)[-1] = wrong
            with pytest.raises(UserError, match=f"{name} has NaN or infinity".replace(".", r"\.")):
                convert({**state, name: value}, values, encoder)
        with pytest.raises(UserError, match=f"{name} is of int64".replace(".", r"\.")):
            convert({**state, name: state[name].long()}, values, encoder)


@pytest.mark.parametrize(
    "name, cut",
    [("embed_lang.weight", (64, 10)), ("embed_timestep.weight", (3, 64)), ("transformer.wpe.weight", (9, 64))],
)
def test_tensors_of_other_shapes_are_refused_by_name(name, cut):
    state, values, encoder = whole("gr-chunk")
    message = rf"{name} is \({cut[0]}, {cut[1]}\), expected".replace(".", r"\.")
    with pytest.raises(UserError, match=message):
        convert({**state, name: state[name][: cut[0], : cut[1]]}, values, encoder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seq_len": 10}, "expected \\(10, 64\\)"),
        ({"n_layer": 3}, "lacks transformer.h.2"),
        ({"n_layer": 1}, "n_layer 1"),
        ({"n_layer": 10**9}, "n_layer"),
        ({"n_layer": True}, "n_layer True"),
        ({"embed_dim": "wide"}, "embed_dim 'wide'"),
        ({"embed_dim": 0}, "embed_dim 0"),
        ({"n_head": 7}, "configuration is of no network"),
        ({"lang_feat_dim": 512}, "embed_lang.weight"),
        ({"resampler_num_media_embeds": 3}, "resampler_num_media_embeds 3"),
        ({"act_dim": 8}, "act_dim 8"),
        ({"frozen_text": False}, "frozen_text False; the text encoder was trained"),
        ({"activation_function": "tanh"}, "tanh"),
    ],
)
def test_a_configuration_that_contradicts_the_file_is_refused(change, message):
    state, values, encoder = whole("gr-chunk")
    with pytest.raises(UserError, match=message):
        convert(state, {**values, **change}, encoder)


def test_a_small_file_without_its_configuration_is_refused():
    state, _, encoder = whole("gr-chunk")
    with pytest.raises(UserError, match="lacks transformer.h.2.*n_layer 12.*--trained-with"):
        convert(state, {}, encoder)


@pytest.mark.parametrize("prefix", ["_orig_mod.module.", "module._orig_mod.", "module."])
def test_wrapped_names_are_read_and_named_as_the_file_has_them(tmp_path, prefix):
    model = original(4)
    config = files(tmp_path, model)
    state = {prefix + name: value for name, value in model.saved().items()}
    torch.save({"state_dict": state}, config.file)
    listed = json.loads((import_checkpoint(config) / "import.json").read_text())
    assert set(listed["mapped"]) | set(listed["left_out"]) == set(state)
    del state[prefix + "embed_state.bias"]
    torch.save({"state_dict": state}, config.file)
    with pytest.raises(UserError, match=f"lacks {prefix}embed_state.bias".replace(".", r"\.")):
        import_checkpoint(dataclasses.replace(config, overwrite=True))


def test_an_image_encoder_that_differs_from_the_files_own_is_refused(tmp_path):
    model = original(None)
    inside = {f"model_mae.{name}": value for name, value in model.model_mae.state_dict().items()}
    config = files(tmp_path, model, **inside)
    listed = json.loads((import_checkpoint(config) / "import.json").read_text())
    assert any("equals" in note for note in listed["notes"])
    torch.save({"model": original(None, seed=1).model_mae.state_dict()}, config.vision)
    with pytest.raises(UserError, match="model_mae.*differs from --vision.*leave out --vision"):
        import_checkpoint(dataclasses.replace(config, overwrite=True))


def test_a_trained_image_encoder_must_be_in_the_file(tmp_path):
    model = original(4)
    config = files(tmp_path, model)
    (tmp_path / "configs.json").write_text(json.dumps({**model.configuration(), "frozen_visual": False}))
    with pytest.raises(UserError, match="frozen_visual false"):
        import_checkpoint(config)


def test_a_text_encoder_in_the_file_is_compared_with_the_one_that_will_be_read(tmp_path, capsys):
    clip = openai_clip()[0]
    torch.save(clip, tmp_path / "ViT-B-32.pt")
    (tmp_path / "bpe_simple_vocab_16e6.txt").write_text(openai_vocabulary())
    config = files(tmp_path, original(4), **{f"model_clip.{name}": value for name, value in clip.items()})
    import_checkpoint(config)
    assert "not compared with the file's own" in capsys.readouterr().err
    config = dataclasses.replace(config, clip=str(tmp_path / "ViT-B-32.pt"), overwrite=True)
    import_checkpoint(config)
    assert "which equals the file's own" in capsys.readouterr().err
    torch.save({**clip, "ln_final.bias": clip["ln_final.bias"] + 1}, config.clip)
    with pytest.raises(UserError, match="model_clip.*differs from --clip"):
        import_checkpoint(config)


def test_an_originals_configuration_given_as_ours_says_where_it_belongs(tmp_path, capsys):
    config = files(tmp_path, original(4))
    arguments = [config.file, "--output", config.output, "--vision", config.vision, "--config", config.trained_with]
    assert cli.main(["import-checkpoint", *arguments]) == 2
    error = capsys.readouterr().err
    assert f"pass it as --trained-with {config.trained_with}" in error and len(error.splitlines()) == 1


def rollout_frames(count, seed=3):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        robot_obs = rng.uniform(-0.5, 0.5, 15)
        robot_obs[3], robot_obs[14] = rng.choice([-3.1, 3.1]), rng.choice([-1.0, 1.0])
        static, gripper = (rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for size in (200, 84))
        yield static, gripper, robot_obs


def with_clip(tmp_path, chunk, executed=1):
    """A policy whose arm leaves [-1, 1], imported with a small CLIP: the original and the checkpoint."""
    torch.save(openai_clip()[0], tmp_path / "ViT-B-32.pt")
    (tmp_path / "bpe_simple_vocab_16e6.txt").write_text(openai_vocabulary())
    model = original(chunk)
    model.pred_arm_act.weight.data *= 3
    config = files(tmp_path, model)
    (tmp_path / "configs.json").write_text(json.dumps({**model.configuration(), "test_chunk_size": executed}))
    return model, import_checkpoint(dataclasses.replace(config, clip=str(tmp_path / "ViT-B-32.pt")))


def test_evaluate_executes_what_an_imported_policy_plans(tmp_path):
    pytest.importorskip("pybullet")
    from arvrm.results import load_results

    _, checkpoint = with_clip(tmp_path, None)
    output = tmp_path / "results.json"
    short = ["--chains", "1", "--max-steps", "3", "--workers", "1", "--batch", "1", "--output", str(output)]
    assert cli.main(["evaluate", "--checkpoint", str(checkpoint), *short]) == 0
    (chain,) = load_results(output)["chains"]
    assert chain["steps"] == [3] and not chain.get("error"), chain


@pytest.mark.parametrize("chunk, executed, cache", [(None, 1, True), (4, 1, False), (4, 1, True), (4, 3, True)])
def test_a_rollout_acts_as_the_original_evaluation_does(tmp_path, chunk, executed, cache):
    from arvrm.evaluation.rollout import checked_chunk, needs_images
    from arvrm.interface import Observation, PlanRequest
    from arvrm.policy import load_policy
    from arvrm.robots.calvin import CALVIN

    model, checkpoint = with_clip(tmp_path, chunk, executed)
    policy = load_policy(checkpoint, cache=cache)
    assert policy.spec.execute_steps == executed and not policy.spec.bounded
    sentence = policy.text.tokens(["open the drawer"])[0][0, 0]
    official, observed, plan, largest = OfficialRollout(model, sentence, executed), {}, None, 0.0
    for step, (static, gripper, robot_obs) in enumerate(rollout_frames(11)):
        state = {"robot_obs": robot_obs, "target_pose": robot_obs[:6]}
        images = {"rgb_static": static, "rgb_gripper": gripper} if needs_images(policy.spec, step) else {}
        observed[step] = Observation(state, images)
        if step % executed == 0:
            history = tuple(observed[max(0, step + offset)] for offset in policy.spec.history_offsets)
            request = PlanRequest("open the drawer", history, 0, step)
            plan = checked_chunk(policy.plan([request])[0], policy.spec, request, CALVIN)
        expected = official.act(static, gripper, robot_obs)
        assert np.abs(plan[step % executed] - expected).max() < 2e-5, step
        largest = max(largest, float(np.abs(expected[:6]).max()))
    assert largest > 1, "something to clamp"


def test_what_a_policy_may_not_say_is_refused_though_it_may_leave_the_range():
    from arvrm.evaluation.rollout import checked_chunk
    from arvrm.interface import PlanRequest, PolicySpec
    from arvrm.robots.calvin import CALVIN

    free, request = PolicySpec("calvin", bounded=False), PlanRequest("open", (), 0, 0)
    chunk = np.array([[1.5, -2, 0, 0, 0, 0, 1]], np.float32)
    assert np.array_equal(checked_chunk(chunk, free, request, CALVIN), chunk)
    with pytest.raises(UserError, match="lie in"):
        checked_chunk(chunk, PolicySpec("calvin"), request, CALVIN)
    for column, value in ((6, 0.5), (6, 3.0), (0, np.nan), (0, np.inf)):
        wrong = chunk.copy()
        wrong[0, column] = value
        with pytest.raises(UserError):
            checked_chunk(wrong, free, request, CALVIN)


def test_file_with_code_in_it_is_refused(tmp_path):
    torch.save({"state_dict": {}, "args": cli.Verb("harm", "", "", "")}, tmp_path / "policy.pth")
    with pytest.raises(UserError, match="could run code"):
        import_checkpoint(ImportConfig(str(tmp_path / "policy.pth"), str(tmp_path / "ours")))


def test_import_without_an_image_encoder_says_which_to_give(tmp_path):
    config = dataclasses.replace(files(tmp_path, original(4)), vision=None)
    with pytest.raises(UserError, match="--vision mae_pretrain_vit_base.pth"):
        import_checkpoint(config)


def test_a_relatives_file_is_refused_before_anything_is_asked_for(tmp_path):
    names = ("embed_arm_state.weight", "transformer.h.0.ln_1.weight", "progress_mask_token_embedding.weight")
    torch.save({f"model.{name}": torch.zeros(4, 4) for name in names}, tmp_path / "epoch.pt")
    with pytest.raises(UserError, match="no checkpoint of GR-1.*model.progress_mask_token_embedding.weight"):
        import_checkpoint(ImportConfig(str(tmp_path / "epoch.pt"), str(tmp_path / "out")))
