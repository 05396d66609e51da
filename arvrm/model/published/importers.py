"""Checkpoints of GR-1, of its open re-implementation (GR-Chunk) and of AR-VRM's released code, turned into ours.

    gr1      snapshot_ABC.pt        chunk of one action, transformer without positions (bytedance/GR-1)
    gr-chunk GR1_*.pth              chunk of actions, GPT-2's position embedding (EDiRobotics/GR1-Training)
    ar-vrm   AR_*.pth               the same with more tensors (idejie/AR)

AR-VRM's code has three variants: the first's robot side is GR-Chunk's; the others read a frozen DINOv2-B beside MAE,
its CLS token only, or modulated by language and with patches (`variants.VARIANTS`). Which it is, the tensors tell.

All compute one network, which `PolicyNet` computes too under the switches that `official_config` sets. A file must have
every tensor that its variant reads, of the shapes that its configuration says (given, or else the published one). What
else it has is named among those left out, or refused; every tensor of ours that no file has is named as new.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from arvrm.files import read_json
from arvrm.interface import UserError
from arvrm.model import backbones
from arvrm.model.backbones import Weights
from arvrm.model.checkpoint import save_checkpoint
from arvrm.model.config import ModelConfig, VisionConfig
from arvrm.model.metadata import CheckpointMetadata
from arvrm.model.policy_net import PolicyNet
from arvrm.model.published.config import SecondVisionConfig
from arvrm.model.published.names import original_shape, ours, tensor_names
from arvrm.model.published.presets import CLIP, NETWORK, published_model
from arvrm.model.published.variants import FILM, Variant, check_copies, check_depth, check_whole, recognised, why_unread
from arvrm.model.vit import pretrained_model
from arvrm.robots.calvin import CALVIN

LARGEST = 1 << 16
"""Of a number in a configuration."""
Vit = Literal["mae", "dinov2"]
BEYOND = "no part of the robot's forward pass as we know it"
FIXED = {
    "act_dim": 7,
    "state_dim": 7,
    "use_hand_rgb": True,
    "resampler_num_media_embeds": 1,
    "frozen_text": True,
}
"""What an original's configuration may say, and can be imported with this value only."""


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

    @staticmethod
    def explain_unknown(keys: Collection[str], place: str) -> str | None:
        """Say what a configuration with these keys, which are not this one's, is; None: not known."""
        if not set(keys) & (set(NETWORK) | set(FIXED)):
            return None
        return f"is the configuration of an original; pass it as --trained-with {place}"


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
        notes: what else was decided.
    """

    model: PolicyNet
    kind: str
    mapped: dict[str, list[str]]
    left_out: dict[str, str]
    new: list[str]
    metadata: CheckpointMetadata
    notes: tuple[str, ...] = ()


def import_checkpoint(config: ImportConfig, trained_with: Mapping[str, Any] | None = None) -> Path:
    """Convert a file and write a checkpoint folder with import.json, which lists every tensor's fate.

    Args:
        trained_with: what the file `config.trained_with` would say.

    Raises:
        UserError: the file cannot be read, is of no known kind, is not whole, or does not fit the configuration.
    """
    tensors = backbones.read_tensors(config.file)
    given = _given(config.trained_with) if trained_with is None else dict(trained_with)
    recognised(tensors, config.kind, given, config.file)  # before anything more is asked for
    encoder, notes = _encoder(config, tensors, given)
    notes += _text_notes(config, tensors)
    by = config.trained_with or "the published configuration"
    found = convert(tensors, given, encoder, config.kind, config.clip, config.file, by)
    own = tensors.prefix
    listed = {
        "file": config.file,
        "kind": found.kind,
        "mapped": {own + name: targets for name, targets in found.mapped.items()},
        "left_out": {own + name: reason for name, reason in found.left_out.items()},
        "new": found.new,
        "notes": notes,
    }

    def extra(folder: Path) -> None:
        (folder / "import.json").write_text(json.dumps(listed, indent=1) + "\n")

    folder = save_checkpoint(config.output, found.model, found.metadata, config.overwrite, extra)
    print(f"{config.file}: {found.kind}, {len(found.mapped)} tensors mapped", file=sys.stderr)
    for reason in dict.fromkeys(found.left_out.values()):
        names = [own + name for name, why in found.left_out.items() if why == reason]
        # What might matter is named; hundreds of tensors of a frozen encoder are not.
        shown = ", ".join(names) if reason == BEYOND else names[0] + (f" and {len(names) - 1} more" * (len(names) > 1))
        print(f"left out: {shown} ({reason})", file=sys.stderr)
    if BEYOND in found.left_out.values():
        print("warning: if the original's forward pass reads one of the last, outputs differ", file=sys.stderr)
    for note in notes:
        print(note, file=sys.stderr)
    print(f"new, not in the file: {len(found.new)} tensors of the human side (import.json lists them)", file=sys.stderr)
    return folder


def convert(
    tensors: Mapping[str, Tensor],
    given: Mapping[str, Any],
    encoder: tuple[Vit, Any],
    kind: str = "auto",
    clip: str = CLIP,
    place: str = "checkpoint",
    by: str = "its configuration",
) -> Imported:
    """Turn an original state dict into a `PolicyNet`.

    Args:
        tensors: original names to tensors; all that the variant has, of the shapes that its configuration says.
        given: values of the configuration it was trained with; what it does not say is as published (`NETWORK`).
        encoder: "mae" or "dinov2" and the transformers model.
        kind, clip: as in `ImportConfig`.
        place, by: name the file and the configuration in messages.

    Raises:
        UserError: a tensor is missing, unknown, of a wrong shape, or not of finite numbers.
    """
    tensors = tensors if isinstance(tensors, Weights) else Weights(tensors)
    variant, mark = recognised(tensors, kind, given, place)
    title = variant.title + (f" (it has {tensors.prefix}{mark})" if mark else "")
    values = _values(given, variant, place)
    check_depth(tensors, values, title, by, place)
    second = _second(tensors, variant, values, place) if variant.second else None
    config = official_config(values, encoder, clip, place, second and second[0])
    names = tensor_names(config, variant.chunk)
    with torch.device("meta"):
        planned = PolicyNet(config, CALVIN).state_dict()
    films = [name for name in planned if re.search(r"^second\..*\.(scale|shift)\.", name)]
    names |= {variant.dino[0] + name.removeprefix("second.encoder.model."): [name] for name in films}
    left_out, unknown = {}, []
    for name in tensors:
        if name not in names:
            reason = None if FILM.search(name) else why_unread(name, variant)
            if reason is None:
                unknown.append(name)
            else:
                left_out[name] = reason
    leave = kind == "ar-vrm"
    expected = {name: original_shape(name, targets, planned, config) for name, targets in names.items()}
    refused = [name for name in unknown if FILM.search(name) or not leave]
    check_whole(tensors, expected, refused, title, by, place)
    check_copies(tensors, variant, place)
    for name in names:
        backbones.check_numbers(tensors[name], f"{place}: {tensors.prefix}{name}")
    left_out |= dict.fromkeys(unknown, BEYOND)

    torch.manual_seed(0)  # of the human side, which no file has
    net = PolicyNet(config, CALVIN)
    own = net.state_dict()
    found = {f"vlm.static_encoder.model.{name}": value for name, value in encoder[1].state_dict().items()}
    found |= ours(tensors, names, config) | (second[1] if second else {})
    new = [name for name in own if name not in found]
    net.load_state_dict({**{name: own[name] for name in new}, **found}, strict=True)
    metadata = CheckpointMetadata(
        stage="finetune",
        history=config.max_frames,
        stride=1,
        images={"rgb_static": config.vision.static_size, "rgb_gripper": config.vision.gripper_size},
        execute_steps=min(int(values["test_chunk_size"]), config.chunk),
        imported={"file": Path(place).name, "kind": variant.kind},
    )
    return Imported(net.eval(), variant.kind, names, left_out, new, metadata)


def official_config(
    values: Mapping[str, Any],
    encoder: tuple[Vit, Any],
    clip: str,
    place: str,
    second: SecondVisionConfig | None = None,
) -> ModelConfig:
    """Return the configuration under which `PolicyNet` computes what the original computes."""
    own = encoder[1].config
    size = values["rgb_shape"]
    try:
        return published_model(
            {**values, "rgb_shape": None if size == own.image_size else size},
            encoder[0],
            place,
            clip=clip,
            backbone=own.to_diff_dict(),
            second=second and replace(second, input_size=size),
        )
    except ValueError as error:
        raise UserError(f"{place}: its configuration is of no network ({error}); correct it") from error


def _second(
    tensors: Weights, variant: Variant, values: Mapping[str, Any], place: str
) -> tuple[SecondVisionConfig, dict[str, Tensor]]:
    """Return AR-VRM's DINOv2: how it is used, and its own tensors under our names."""
    inside = tensors.part(variant.dino[0])
    films = variant.second == "films"
    base = Weights({n: t for n, t in inside.items() if not FILM.search(variant.dino[0] + n)}, inside.prefix)
    if not base:
        raise UserError(
            f"{place}: is of {variant.title}, and has no tensor {tensors.prefix}{variant.dino[0]}*; give the whole file"
        )
    if films:
        model = backbones.dinov2_hub(base, place, variant.dino[1])
    else:  # the authors' own code, by torch.hub
        if "pos_embed" in base and "patch_embed.proj.weight" in base:
            side = values["rgb_shape"] // base["patch_embed.proj.weight"].shape[-1]
            base["pos_embed"] = backbones.dinov2_positions(base["pos_embed"], side)
        model = backbones.dinov2(base, place)
    config = SecondVisionConfig(
        backbone=model.config.to_diff_dict(), modulated=films, patches=films, latents_have_time=not films
    )
    block = r"\1.block." if films else r"\1."
    found = {re.sub(r"^(encoder\.layer\.\d+)\.", block, name): value for name, value in model.state_dict().items()}
    return config, {f"second.encoder.model.{name}": value for name, value in found.items()}


def _given(file: str | None) -> dict[str, Any]:
    return {} if file is None else read_json(file, "give the original's JSON configuration")


def _values(given: Mapping[str, Any], variant: Variant, place: str) -> dict[str, Any]:
    """Return all values of the keys of `NETWORK`: given ones, or else as published."""
    for key, value in FIXED.items():
        if key in given and given[key] != value:
            why = "the text encoder was trained with it, and CLIP's own would be read in its place"
            raise UserError(
                f"{place}: its configuration says {key} {given[key]!r}; "
                f"{why if key == 'frozen_text' else f'only {value!r} is known'}, so it cannot be imported"
            )
    values = {**NETWORK, **{key: given[key] for key in NETWORK if key in given}}
    for key, published in NETWORK.items():
        value, kind = values[key], type(published)
        number = kind in (int, float) and isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = isinstance(value, kind) or (kind is float and number)
        if not fits or (number and not 0 <= value <= LARGEST) or (kind is int and not isinstance(value, int)):
            raise UserError(f"{place}: its configuration says {key} {value!r}; give a value like {published!r}")
        if kind is int and isinstance(value, int) and value < 1 and key not in ("rgb_static_pad", "rgb_gripper_pad"):
            raise UserError(f"{place}: its configuration says {key} {value!r}; give a value like {published!r}")
    # The published code always trains with its image heads.
    values |= {"fwd_pred": True}
    return values if variant.chunk else values | {"chunk_size": 1, "n_positions": 0}


def _encoder(config: ImportConfig, tensors: Weights, given: Mapping[str, Any]) -> tuple[tuple[Vit, Any], list[str]]:
    """Return the kind and the model of the frozen image encoder, and what to say of it."""
    inside = tensors.part("model_mae.")
    if not inside and (config.vision is None or given.get("frozen_visual") is False):
        trained = " (frozen_visual false: it was trained)" if given.get("frozen_visual") is False else ""
        raise UserError(
            f"{config.file}: does not contain its image encoder{trained}; "
            + ("give the file with it" if trained else "pass --vision mae_pretrain_vit_base.pth ")
            + ("" if trained else "(or a directory or hub name, such as facebook/vit-mae-base)")
        )
    held = _vit(inside, config.encoder, config.file) if inside else None
    path = config.vision
    if path is None:
        assert held is not None
        return held, ["image encoder: the file's own"]
    if Path(path).is_file():
        found = _vit(backbones.read_tensors(path), config.encoder, path)
    else:
        named: Vit = "dinov2" if "dino" in path.lower() else "mae"
        kind = named if config.encoder == "auto" else config.encoder
        found = kind, pretrained_model(VisionConfig(encoder=kind, path=path, film=False))
    if held is None:
        return found, [f"image encoder: {path}"]
    difference = _difference(held[1], found[1])
    if difference:
        raise UserError(
            f"{config.file}: contains an image encoder ({inside.prefix}*) that differs from --vision {path} "
            f"({difference}); leave out --vision"
        )
    return held, [f"image encoder: the file's own, which equals {path}"]


def _vit(tensors: Weights, wanted: str, place: str) -> tuple[Vit, Any]:
    found: Vit = "dinov2" if any(name.endswith("ls1.gamma") for name in tensors) else "mae"
    kind: Vit = found if wanted == "auto" else wanted  # type: ignore[assignment]
    return kind, getattr(backbones, kind)(tensors, place)


def _text_notes(config: ImportConfig, tensors: Weights) -> list[str]:
    """Say what becomes of the text encoder in the file, which is read from `config.clip` instead.

    Raises:
        UserError: the two differ.
    """
    inside = tensors.part("model_clip.")
    if not any(name.startswith("token_embedding") for name in inside):
        return [f"text encoder: {config.clip}"]
    if not Path(config.clip).exists():
        return [
            f"text encoder: {config.clip}; not compared with the file's own, which is left out (--clip a local file)"
        ]
    held = backbones.clip_text(inside, config.file)
    kind = backbones.transformers_for("text.encoder 'clip'").CLIPTextModelWithProjection
    difference = _difference(held, backbones.pretrained(kind, config.clip, "--clip"))
    if difference:
        raise UserError(
            f"{config.file}: contains a text encoder ({inside.prefix}*) that differs from --clip {config.clip} "
            f"({difference}); it cannot be imported with another"
        )
    return [f"text encoder: {config.clip}, which equals the file's own"]


def _difference(first: Any, second: Any) -> str:
    """Say where two models of transformers differ by more than half precision; "" where they do not."""
    one, other = first.state_dict(), second.state_dict()
    for name in one.keys() | other.keys():
        if name.endswith("position_ids"):
            continue
        if name not in one or name not in other or one[name].shape != other[name].shape:
            return name
        if not torch.equal(one[name].half(), other[name].half()):
            return name
    return ""
