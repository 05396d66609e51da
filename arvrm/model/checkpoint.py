"""Checkpoints: a folder with model.safetensors, config.json and statistics.json.

config.json names the kind of network, its robot, its settings and what it was trained on; statistics.json holds the
numbers by which the robot's states and actions are normalised (of a network of hands alone: none).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from arvrm import config as configuration
from arvrm.files import read_json, replacing, replacing_folder, write_json
from arvrm.interface import Robot, UserError
from arvrm.model.metadata import CheckpointMetadata, metadata_from
from arvrm.model.networks import kind_of
from arvrm.model.upgrade import CHECKPOINT_FORMAT, upgraded_checkpoint
from arvrm.robots import described as robot_described

_DAMAGED = "give a whole checkpoint folder, or copy or train it again"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        model: an `interface.Network`, in evaluation mode.
        config: its settings.
        robot: whose policy it is, with the numbers by which states were normalised in training; None: of hands alone.
        metadata: how it was trained.
        hash: `checkpoint_hash` of the folder.
    """

    model: Any
    config: Any
    robot: Robot | None
    metadata: CheckpointMetadata
    hash: str = ""


def save_checkpoint(
    folder: str | Path,
    model: Any,
    metadata: CheckpointMetadata,
    overwrite: bool = False,
    extra: Callable[[Path], None] | None = None,
) -> Path:
    """Write a checkpoint's folder, which appears under its name when it is whole.

    Args:
        model: an `interface.Network`; its weights are written in their own precision.
        extra: called with the temporary folder, to put more into it.
        overwrite: replace an existing checkpoint.

    Raises:
        UserError: the folder exists and may not be replaced, another process is writing it, or it cannot be written.
    """
    folder = Path(folder)
    with replacing_folder(folder, overwrite, _check_is_checkpoint) as partial:
        write_checkpoint(partial, model, metadata)
        if extra is not None:
            extra(partial)
    return folder


def write_checkpoint(folder: Path, model: Any, metadata: CheckpointMetadata) -> None:
    """Write a checkpoint's files into `folder`, each whole or not at all; the weights are the last.

    Raises:
        UserError: they cannot be written.
    """
    described = {
        "format": CHECKPOINT_FORMAT,
        "kind": model.kind,
        "robot": None if model.robot is None else model.robot.name,
        "model": configuration.to_dict(model.self_contained()),
        "metadata": configuration.to_dict(metadata),
    }
    statistics = {} if model.robot is None else configuration.to_dict(model.robot.statistics)
    write_json(folder / "statistics.json", statistics, sort_keys=True)
    write_json(folder / "config.json", described, sort_keys=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(folder / "model.safetensors") as partial:
        save_file(tensors, partial, metadata={"format": "pt"})


def _check_is_checkpoint(folder: Path) -> None:
    if any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise UserError(f"{folder}: is no checkpoint, so it is not overwritten; choose another path")


def load_checkpoint(folder: str | Path, device: str = "cpu", kind: str | None = None) -> Checkpoint:
    """Load a checkpoint strictly: every tensor must be there, of the right shape, and no other.

    Args:
        kind: what the caller needs, such as "keypoint_vlm" or "policy"; None: any.

    Raises:
        UserError: a file is missing or corrupt, the kind is another, its robot is unknown, the weights do not fit the
            configuration, or it does not say how it was trained.
    """
    folder = Path(folder)
    place = f"{folder}/config.json"
    written = read_json(folder / "config.json", _DAMAGED)
    found = kind_of(written.get("kind"), place)
    if kind is not None and written["kind"] != kind:
        raise UserError(
            f"{folder}: holds a {written['kind']} model, expected {kind}; give the checkpoint of the other stage"
        )
    described = upgraded_checkpoint(written, place)
    settings = found.upgrade(described.get("model") or {}, f"{place}: model")
    config = configuration.from_dict(found.config, settings, f"{place}: model")
    metadata = metadata_from(described.get("metadata") or {}, f"{place}: metadata")
    numbers = read_json(folder / "statistics.json", _DAMAGED)
    robot = robot_described(described["robot"], numbers, f"{folder}/statistics.json") if found.plans else None
    model = found.build(config, robot)
    load_weights(model, folder)
    return Checkpoint(model.to(device).eval(), config, robot, metadata, checkpoint_hash(folder))


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


def start_from_stage1(policy: Any, folder: str | Path) -> None:
    """Load a stage-1 checkpoint into the part of `policy`, an `interface.Network`, that stage 1 trains, strictly.

    Raises:
        UserError: not a stage-1 checkpoint, or its configuration gives other weights than the policy's.
    """
    found = read_json(Path(folder) / "config.json", _DAMAGED).get("kind")
    if found != "keypoint_vlm":
        raise UserError(f"{folder}: holds a {found} model, expected keypoint_vlm; give the checkpoint of stage 1")
    load_weights(policy.hands()[0], folder)


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
