"""Checkpoints: a folder with model.safetensors, config.json and statistics.json."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from arvrm import config as configuration
from arvrm.interface import UserError
from arvrm.model.config import ModelConfig
from arvrm.model.keypoint_vlm import KeypointVLM
from arvrm.model.policy_net import PolicyNet
from arvrm.model.vit import VitEncoder
from arvrm.robots.calvin import Statistics

FORMAT = 1
KINDS: dict[str, type[KeypointVLM] | type[PolicyNet]] = {"keypoint_vlm": KeypointVLM, "policy": PolicyNet}


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        model: in evaluation mode.
        config: the model's.
        statistics: how states were normalised in training.
        metadata: what else the trainer said: JSON-able (window spacing, training settings, what it was trained on).
        hash: `checkpoint_hash` of the folder.
    """

    model: KeypointVLM | PolicyNet
    config: ModelConfig
    statistics: Statistics
    metadata: dict[str, Any] = field(default_factory=dict)
    hash: str = ""


def save_checkpoint(
    folder: str | Path,
    model: KeypointVLM | PolicyNet,
    statistics: Statistics | None = None,
    metadata: dict[str, Any] | None = None,
    overwrite: bool = False,
    extra: Callable[[Path], None] | None = None,
) -> Path:
    """Write a checkpoint under a temporary name, then rename it, so that a folder of that name is always whole.

    Args:
        model: its weights are written in their own precision.
        extra: called with the temporary folder, to put more into it (the trainer's `state/`).
        overwrite: replace an existing folder.

    Raises:
        UserError: the folder exists and may not be replaced.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise UserError(f"{folder}: already there; pass --overwrite or choose another name")
    kind = next(name for name, known in KINDS.items() if type(model) is known)
    model_config = _self_contained(model)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        described = {"format": FORMAT, "kind": kind, "model": configuration.to_dict(model_config)}
        _write_json(partial / "config.json", {**described, "metadata": metadata or {}})
        _write_json(partial / "statistics.json", configuration.to_dict(statistics or Statistics()))
        if extra is not None:
            extra(partial)
        old = None
        if folder.exists():
            old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
            folder.rename(old)
        partial.rename(folder)
        if old is not None:
            shutil.rmtree(old)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def load_checkpoint(folder: str | Path, device: str = "cpu", kind: str | None = None) -> Checkpoint:
    """Load a checkpoint strictly: every tensor must be there, of the right shape, and no other.

    Args:
        kind: "keypoint_vlm" or "policy": what the caller needs; None: either.

    Raises:
        UserError: a file is missing or corrupt, the kind is another, or the weights do not fit the configuration.
    """
    folder = Path(folder)
    described = _read_json(folder / "config.json")
    if described.get("format") != FORMAT:
        version = described.get("format")
        raise UserError(f"{folder}/config.json: format {version!r} is unknown; this version reads {FORMAT}")
    found = described.get("kind")
    if found not in KINDS:
        raise UserError(f"{folder}/config.json: kind {found!r} is unknown; expected one of {', '.join(KINDS)}")
    if kind is not None and found != kind:
        raise UserError(f"{folder}: holds a {found} model, expected {kind}; give the checkpoint of the other stage")
    config = configuration.from_dict(ModelConfig, described.get("model"), f"{folder}/config.json: model")
    numbers = _read_json(folder / "statistics.json")
    statistics = configuration.from_dict(Statistics, numbers, f"{folder}/statistics.json")
    model = KINDS[found](config)
    load_weights(model, folder)
    metadata = described.get("metadata", {})
    return Checkpoint(model.to(device).eval(), config, statistics, metadata, checkpoint_hash(folder))


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Load model.safetensors of `folder` into `model`, strictly.

    Raises:
        UserError: the file is missing or corrupt, or names and shapes differ (the first differences are named).
    """
    file = Path(folder) / "model.safetensors"
    try:
        tensors = load_file(file)
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file; give a checkpoint folder") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); the file is damaged, copy or train it again") from error
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in own]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{file}: does not fit its configuration: {'; '.join(problems[:3])}{more}; use matching files")
    model.load_state_dict(tensors, strict=True)


def start_from_stage1(policy: PolicyNet, folder: str | Path) -> None:
    """Load a stage-1 checkpoint into `policy.vlm`, strictly.

    Raises:
        UserError: not a stage-1 checkpoint, or its configuration gives other weights than the policy's.
    """
    found = _read_json(Path(folder) / "config.json").get("kind")
    if found != "keypoint_vlm":
        raise UserError(f"{folder}: holds a {found} model, expected keypoint_vlm; give the checkpoint of stage 1")
    load_weights(policy.vlm, folder)


def checkpoint_hash(folder: str | Path) -> str:
    """Return the SHA-256 (hex) of the checkpoint's three files.

    Raises:
        UserError: one is missing.
    """
    digest = hashlib.sha256()
    for name in ("model.safetensors", "config.json", "statistics.json"):
        file = Path(folder) / name
        try:
            with file.open("rb") as stream:
                for block in iter(lambda: stream.read(1 << 20), b""):
                    digest.update(block)
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}; give a whole checkpoint folder") from error
    return digest.hexdigest()


def _self_contained(model: KeypointVLM | PolicyNet) -> ModelConfig:
    """The model's configuration with the ViT's own inside, so that loading needs no other directory."""
    vlm = model.vlm if isinstance(model, PolicyNet) else model
    if not isinstance(vlm.static_encoder, VitEncoder):
        return model.config
    vision = dataclasses.replace(model.config.vision, backbone=vlm.static_encoder.backbone())
    if vision.second is not None and isinstance(model, PolicyNet):
        second = dataclasses.replace(vision.second, backbone=model.second.encoder.backbone())
        vision = dataclasses.replace(vision, second=second)
    return dataclasses.replace(model.config, vision=vision)


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file; give a whole checkpoint folder") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); the file is damaged, copy or train it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected a JSON object; the file is damaged, copy or train it again")
    return values
