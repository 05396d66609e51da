"""Checkpoints of GR-1, of its open re-implementation (GR-Chunk) and of AR-VRM's released code, turned into ours.

    gr1      snapshot_ABC.pt        chunk of one action, transformer without positions (bytedance/GR-1)
    gr-chunk GR1_*.pth              chunk of actions, GPT-2's position embedding (EDiRobotics/GR1-Training)
    ar-vrm   AR_*.pth               the same with more tensors (idejie/AR)

AR-VRM's code has two variants: the first's robot side is GR-Chunk's; the second (ABCD) reads a frozen DINOv2-B beside
MAE, its CLS token only, or modulated by language and with patches. Which it is, the tensors tell.

All compute one network, which `PolicyNet` computes too under the switches that `official_config` sets. Every
tensor of a file is mapped, or named among those left out; every tensor of ours that the file lacks is named as new.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from arvrm.files import read_json
from arvrm.interface import UserError
from arvrm.model import backbones
from arvrm.model.checkpoint import save_checkpoint
from arvrm.model.config import ModelConfig, VisionConfig
from arvrm.model.metadata import CheckpointMetadata
from arvrm.model.policy_net import PolicyNet
from arvrm.model.published.config import SecondVisionConfig
from arvrm.model.published.presets import CLIP, NETWORK, published_model
from arvrm.model.vit import pretrained_model
from arvrm.robots.calvin import CALVIN

PUBLISHED: dict[str, Any] = {
    **{
        key: NETWORK[key]
        for key in (
            "n_head",
            "activation_function",
            "dropout",
            "resampler_heads",
            "decoder_heads",
            "test_chunk_size",
            "rgb_static_pad",
            "rgb_gripper_pad",
            "arm_loss_ratio",
        )
    },
    "seq_len": None,
    "chunk_size": None,
}
"""What shapes do not tell, with the published configurations' values; None: read from the tensors, and compared."""

Vit = Literal["mae", "dinov2"]
IMAGE_QUERIES = ("obs_queries", "obs_hand_queries")
UNUSED = (
    ("transformer.wte.", "GPT-2's table of words; inputs are embeddings"),
    ("model_clip.", "CLIP, frozen; read from text.path when a policy is loaded"),
)
AR_ONLY = {
    "ego_hand.": "another name of DINOv2's tensors",
    "ar_matrix": "read only with human motion, which the released code never gives",
}
DINO_ONLY = {
    "embed_dino_": "read only with DINOv2, which the file does not have",
    "perceiver_resampler_dino.": "read only with DINOv2, which the file does not have",
}
DINO_READ = dict.fromkeys(
    ("dino.vision_backbone.", "dinov2_vitb14."), "the second frozen image encoder, loaded under its own names"
)
MODULATED, PLAIN = "dino.vision_backbone.", "dinov2_vitb14."
"""Where AR-VRM's two ways to use DINOv2 keep it."""
BEYOND = "no part of the robot's forward pass as we know it"
BUFFERS = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)$")


@dataclass(frozen=True)
class ImportConfig:
    """What to import.

    Attributes:
        file: the original checkpoint.
        output: folder of the checkpoint to write.
        kind: which code wrote the file; "auto" tells by its tensors.
        vision: weights of the frozen image encoder, which the files do not contain: the original file, a local
            directory, or a hub name; null: they are in the file.
        encoder: which one that is; "auto" tells by its tensors.
        clip: CLIP's weights, likewise; they are not copied, the path is noted.
        trained_with: the JSON configuration the file was trained with; null: the published values.
        overwrite: replace an existing output.
    """

    file: str
    output: str
    kind: Literal["auto", "gr1", "gr-chunk", "ar-vrm"] = "auto"
    vision: str | None = None
    encoder: Literal["auto", "mae", "dinov2"] = "auto"
    clip: str = CLIP
    trained_with: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Imported:
    """What an import found.

    Attributes:
        model: the network, in evaluation mode.
        kind: which code wrote the file.
        mapped: original names to ours (several where a matrix was split).
        left_out: original names to the reason.
        new: names of ours that the file does not have, which hold their first random values: the human side.
        metadata: for the checkpoint.
    """

    model: PolicyNet
    kind: str
    mapped: dict[str, list[str]]
    left_out: dict[str, str]
    new: list[str]
    metadata: CheckpointMetadata


def import_checkpoint(config: ImportConfig) -> Path:
    """Convert a file and write a checkpoint folder with import.json, which lists every tensor's fate.

    Raises:
        UserError: the file cannot be read, is of no known kind, or does not fit the configuration.
    """
    tensors = backbones.read_tensors(config.file)
    settings = _settings(config.trained_with)
    encoder = _encoder(config, tensors)
    found = convert(tensors, settings, encoder, config.kind, config.clip, config.file)
    listed = {"file": config.file, "kind": found.kind, "mapped": found.mapped, "left_out": found.left_out}
    listed["new"] = found.new

    def extra(folder: Path) -> None:
        (folder / "import.json").write_text(json.dumps(listed, indent=1) + "\n")

    folder = save_checkpoint(config.output, found.model, found.metadata, config.overwrite, extra)
    print(f"{config.file}: {found.kind}, {len(found.mapped)} tensors mapped", file=sys.stderr)
    for name, reason in found.left_out.items():
        print(f"left out: {name} ({reason})", file=sys.stderr)
    if any(reason == BEYOND for reason in found.left_out.values()):
        print("warning: if the original's forward pass reads one of the last, outputs differ", file=sys.stderr)
    print(f"new, not in the file: {len(found.new)} tensors of the human side (import.json lists them)", file=sys.stderr)
    return folder


def convert(
    tensors: dict[str, Tensor],
    settings: dict[str, Any],
    encoder: tuple[Vit, Any],
    kind: str = "auto",
    clip: str = CLIP,
    place: str = "checkpoint",
) -> Imported:
    """Turn an original state dict into a `PolicyNet`.

    Args:
        tensors: original names to tensors.
        settings: keys of `PUBLISHED`.
        encoder: "mae" or "dinov2" and the transformers model.
        kind, clip: as in `ImportConfig`.
        place: names the file in messages.

    Raises:
        UserError: a tensor is missing, unknown (except in AR-VRM's files), or of a wrong shape.
    """
    if "embed_arm_state.weight" not in tensors or "transformer.h.0.ln_1.weight" not in tensors:
        raise UserError(f"{place}: has no embed_arm_state or transformer; it is no checkpoint of GR-1's family")
    second = _second(tensors, place)
    config = official_config(tensors, settings, encoder, clip, place, second and second[0])
    names = tensor_names(config, tensors) | (second[1] if second else {})
    left_out, unknown, foreign = {}, [], AR_ONLY | (DINO_READ if second else DINO_ONLY)
    of_ar = second is not None or any(name.startswith(tuple(AR_ONLY | DINO_ONLY)) for name in tensors)
    for name in tensors:
        if name in names:
            continue
        reason = next((why for prefix, why in UNUSED if name.startswith(prefix)), None)
        if BUFFERS.search(name):
            reason = "the causal mask, a constant"
        elif name.startswith("model_mae."):
            reason = "the frozen image encoder, loaded under its own names"
        reason = reason or next((why for prefix, why in foreign.items() if name.startswith(prefix)), None)
        if reason is None:
            unknown.append(name)
        else:
            left_out[name] = reason
    if kind == "auto":
        kind = "ar-vrm" if unknown or of_ar else "gr-chunk" if "action_chunk_queries.weight" in tensors else "gr1"
    if unknown and kind != "ar-vrm":
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise UserError(f"{place}: {', '.join(unknown[:3])}{more} are not of {kind}; pass --kind ar-vrm to leave them")
    left_out |= dict.fromkeys(unknown, BEYOND)

    torch.manual_seed(0)  # of the human side, which no file has
    net = PolicyNet(config, CALVIN)
    own = net.state_dict()
    values = {f"vlm.static_encoder.model.{name}": value for name, value in encoder[1].state_dict().items()}
    for name, targets in names.items():
        if name not in tensors:
            raise UserError(f"{place}: has no tensor {name!r}; the file is not whole, or of another model")
        values |= _mapped(name, tensors[name].detach().float(), targets, config)
    values |= second[2] if second else {}
    if "action_chunk_queries.weight" in tensors:
        # A chunk's queries are offsets from the one query of GR-1.
        values["action_queries"] = values["action_queries"] + tensors["action_chunk_queries.weight"].float()
    values["image_queries"] = torch.stack([tensors[f"{name}.weight"].float() for name in IMAGE_QUERIES])
    for name, value in values.items():
        if name not in own or own[name].shape != value.shape:
            shape = tuple(own[name].shape) if name in own else "nothing"
            raise UserError(f"{place}: {name} would be {tuple(value.shape)}, expected {shape}; check --trained-with")
    new = [name for name in own if name not in values]
    net.load_state_dict({**{name: own[name] for name in new}, **values}, strict=True)
    metadata = CheckpointMetadata(
        stage="finetune",
        history=config.max_frames,
        stride=1,
        images={"rgb_static": config.vision.static_size, "rgb_gripper": config.vision.gripper_size},
        execute_steps=min(int(settings["test_chunk_size"]), config.chunk),
        imported={"file": Path(place).name, "kind": kind},
    )
    return Imported(net.eval(), kind, names, left_out, new, metadata)


def official_config(
    tensors: dict[str, Tensor],
    settings: dict[str, Any],
    encoder: tuple[Vit, Any],
    clip: str,
    place: str,
    second: SecondVisionConfig | None = None,
) -> ModelConfig:
    """Return the configuration under which `PolicyNet` computes what the original computes."""
    try:
        width = tensors["embed_ln.weight"].shape[0]
        inner = tensors["perceiver_resampler.layers.0.0.to_q.weight"].shape[0]
        frames = tensors["embed_timestep.weight"].shape[0]
        latents = tensors["perceiver_resampler.latents"].shape[0]
        text = tensors["embed_lang.weight"].shape[1]
        pixels = tensors["decoder_pred.weight"].shape[0]
        cells = tensors["decoder_pos_embed"].shape[1]
        media = tensors["perceiver_resampler.media_pos_emb"].shape[0]
    except KeyError as error:
        raise UserError(f"{place}: has no tensor {error}; the file is not whole, or of another model") from error
    chunk = tensors["action_chunk_queries.weight"].shape[0] if "action_chunk_queries.weight" in tensors else 1
    for key, value in (("seq_len", frames), ("chunk_size", chunk)):
        if settings[key] not in (None, value):
            raise UserError(f"{place}: was made with {key} {value}, the configuration says {settings[key]}; correct it")
    if media != 1:
        raise UserError(f"{place}: its resampler reads {media} media, this one reads one; give another file")
    patch = round((pixels / 3) ** 0.5)
    own = encoder[1].config
    input_size = patch * round(cells**0.5)
    wpe = tensors.get("transformer.wpe.weight")
    values = {
        **NETWORK,
        **settings,
        "rgb_shape": None if input_size == own.image_size else input_size,
        "patch_size": patch,
        "embed_dim": width,
        "n_layer": _count(tensors, r"transformer\.h\.(\d+)\."),
        "n_positions": 0 if wpe is None else wpe.shape[0],
        "resampler_depth": _count(tensors, r"perceiver_resampler\.layers\.(\d+)\."),
        "resampler_dim_head": inner // settings["resampler_heads"],
        "resampler_num_latents": latents,
        "seq_len": frames,
        "chunk_size": chunk,
        "lang_feat_dim": text,
    }
    return published_model(
        values,
        encoder[0],
        place,
        clip=clip,
        backbone=own.to_diff_dict(),
        second=second and replace(second, input_size=input_size),
        decoder_layers=_count(tensors, r"decoder_blocks\.(\d+)\."),
    )


def tensor_names(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, list[str]]:
    """Return, for each tensor that is mapped, its names in a `PolicyNet`."""
    names = {
        "embed_timestep.weight": ["vlm.time"],
        "perceiver_resampler.latents": ["vlm.resampler.latents"],
        "perceiver_resampler.media_pos_emb": ["vlm.resampler.position"],
        "action_queries.weight": ["action_queries"],
        "obs_queries.weight": ["image_queries"],
        "obs_hand_queries.weight": ["image_queries"],
        "mask_token": ["image_heads.0.mask"],
        "decoder_pos_embed": ["image_heads.0.position"],
    }
    if "action_chunk_queries.weight" in tensors:
        names["action_chunk_queries.weight"] = ["action_queries"]
    published = config.published
    assert published is not None
    if published.positions:
        names["transformer.wpe.weight"] = ["positions"]
    both = {
        "embed_arm_state": "state_token.arm",
        "embed_gripper_state": "state_token.gripper",
        "embed_state": "state_token.join",
        "embed_lang": "vlm.text.project",
        "embed_img": "vlm.static_tokens.cls",
        "embed_patch": "vlm.static_tokens.patch",
        "embed_hand_img": "gripper_tokens.cls",
        "embed_hand_patch": "gripper_tokens.patch",
        "embed_ln": "vlm.transformer.norm_in",
        "transformer.ln_f": "vlm.transformer.norm_out",
        "perceiver_resampler.norm": "vlm.resampler.norm_out",
        "pred_act_mlps.0": "head.layers.0",
        "pred_act_mlps.1": "head.layers.2",
        "pred_arm_act": "head.arm",
        "pred_gripper_act": "head.gripper",
        "decoder_embed": "image_heads.0.embed",
        "decoder_norm": "image_heads.0.norm",
        "decoder_pred": "image_heads.0.pixels",
    }
    for i in range(config.layers):
        old, new = f"transformer.h.{i}", f"vlm.transformer.blocks.{i}"
        both |= {f"{old}.ln_1": f"{new}.norm_attention", f"{old}.ln_2": f"{new}.norm_mlp"}
        both |= {f"{old}.attn.c_proj": f"{new}.out"}
        both |= {f"{old}.mlp.c_fc": f"{new}.mlp.0", f"{old}.mlp.c_proj": f"{new}.mlp.2"}
        for end in (".weight", ".bias"):
            names[f"{old}.attn.c_attn{end}"] = [f"{new}.query{end}", f"{new}.key_value{end}"]
    for i in range(config.image_decoder_layers):
        old, new = f"decoder_blocks.{i}", f"image_heads.0.blocks.{i}"
        both |= {f"{old}.norm1": f"{new}.norm_attention", f"{old}.norm2": f"{new}.norm_mlp"}
        both |= {f"{old}.attn.qkv": f"{new}.qkv", f"{old}.attn.proj": f"{new}.out"}
        both |= {f"{old}.mlp.fc1": f"{new}.mlp.0", f"{old}.mlp.fc2": f"{new}.mlp.2"}
    resamplers = {"perceiver_resampler": "vlm.resampler"}
    if published.second is not None:
        both |= {"embed_dino_img": "second.cls.static", "embed_dino_hand_img": "second.cls.gripper"}
        if published.second.patches:
            both |= {"embed_dino_patch": "second.patch.static", "embed_dino_hand_patch": "second.patch.gripper"}
            both |= {"perceiver_resampler_dino.norm": "second.resampler.norm_out"}
            names["perceiver_resampler_dino.latents"] = ["second.resampler.latents"]
            names["perceiver_resampler_dino.media_pos_emb"] = ["second.resampler.position"]
            resamplers["perceiver_resampler_dino"] = "second.resampler"
    for (theirs, ours), i in itertools.product(resamplers.items(), range(config.resampler_layers)):
        old, new = f"{theirs}.layers.{i}", f"{ours}.layers.{i}"
        both |= {f"{old}.0.norm_media": f"{new}.norm_patches", f"{old}.0.norm_latents": f"{new}.norm_latents"}
        both |= {f"{old}.1.0": f"{new}.norm_mlp"}
        for a, b in (
            ("0.to_q", "query"),
            ("0.to_kv", "key_value"),
            ("0.to_out", "out"),
            ("1.1", "up"),
            ("1.3", "down"),
        ):
            names[f"{old}.{a}.weight"] = [f"{new}.{b}.weight"]
    for old, new in both.items():
        names |= {old + end: [new + end] for end in (".weight", ".bias")}
    return names


def _mapped(name: str, value: Tensor, targets: list[str], config: ModelConfig) -> dict[str, Tensor]:
    """Return our tensors for one of the original's."""
    if name in ("action_chunk_queries.weight", "obs_queries.weight", "obs_hand_queries.weight"):
        return {}  # joined with their partners
    if re.search(r"\.(c_attn|c_proj|c_fc)\.weight$", name):
        value = value.T.contiguous()  # GPT-2's layers are stored input by output
    if ".attn.c_attn." in name:
        return {targets[0]: value[: config.width].clone(), targets[1]: value[config.width :].clone()}
    if name == "mask_token" or name.endswith(".media_pos_emb"):
        value = value.flatten()
    if name == "decoder_pos_embed":
        value = value[0]
    return {targets[0]: value.clone()}


def _second(
    tensors: dict[str, Tensor], place: str
) -> tuple[SecondVisionConfig, dict[str, list[str]], dict[str, Tensor]] | None:
    """Return AR-VRM's DINOv2: how it is used, which tensors are read for it, and ours; None where there is none."""
    modulated = any(name.startswith(MODULATED) for name in tensors)
    prefix = MODULATED if modulated else PLAIN
    inside = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    if not inside:
        return None
    films = {name: t for name, t in inside.items() if re.match(r"encoder\.layer\.\d+\.(scale|shift)\.", name)}
    base = {name.replace(".block.", ".", 1): t for name, t in inside.items() if name not in films}
    if modulated:
        model = backbones.dinov2_hub(base, place)
    else:  # the authors' own code, by torch.hub
        if "decoder_pos_embed" in tensors and "decoder_pred.weight" in tensors and "pos_embed" in base:
            size = tensors["decoder_pos_embed"].shape[1] ** 0.5 * (tensors["decoder_pred.weight"].shape[0] / 3) ** 0.5
            side = round(size) // base["patch_embed.proj.weight"].shape[-1]
            base["pos_embed"] = backbones.dinov2_positions(base["pos_embed"], side)
        model = backbones.dinov2(base, place)
    config = SecondVisionConfig(
        backbone=model.config.to_diff_dict(), modulated=modulated, patches=modulated, latents_have_time=not modulated
    )
    values = {}
    for name, value in model.state_dict().items():
        if modulated:
            name = re.sub(r"^(encoder\.layer\.\d+)\.", r"\1.block.", name)
        values[f"second.encoder.model.{name}"] = value
    values |= {f"second.encoder.model.{name}": value.detach().float() for name, value in films.items()}
    names = {prefix + name: [f"second.encoder.model.{name}"] for name in films}
    return config, names, values


def _settings(file: str | None) -> dict[str, Any]:
    if file is None:
        return dict(PUBLISHED)
    given = read_json(file, "give the original's JSON configuration")
    return {key: given.get(key, value) for key, value in PUBLISHED.items()}


def _encoder(config: ImportConfig, tensors: dict[str, Tensor]) -> tuple[Vit, Any]:
    """Return the kind and the model of the frozen image encoder."""
    inside = {n.removeprefix("model_mae."): t for n, t in tensors.items() if n.startswith("model_mae.")}
    if config.vision is None and not inside:
        raise UserError(
            f"{config.file}: does not contain its frozen image encoder; pass --vision mae_pretrain_vit_base.pth "
            "(or a directory or hub name, such as facebook/vit-mae-base)"
        )
    path = config.vision
    if path is None or Path(path).is_file():
        own = inside if path is None else backbones.read_tensors(path)
        found: Vit = "dinov2" if any(name.endswith("ls1.gamma") for name in own) else "mae"
        kind = found if config.encoder == "auto" else config.encoder
        return kind, getattr(backbones, kind)(own, path or config.file)
    named: Vit = "dinov2" if "dino" in path.lower() else "mae"
    kind = named if config.encoder == "auto" else config.encoder
    return kind, pretrained_model(VisionConfig(encoder=kind, path=path, film=False))


def _count(tensors: dict[str, Tensor], pattern: str) -> int:
    return 1 + max((int(found[1]) for name in tensors if (found := re.match(pattern, name))), default=-1)
