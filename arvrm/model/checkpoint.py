"""Checkpoints: a folder with model.safetensors, config.json and statistics.json.

config.json names the kind of network, its robot, its settings and what it was trained on; statistics.json holds the
numbers by which the robot's states and actions are normalised (of a network of hands alone: none).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

from arvrm import config as configuration
from arvrm.files import read_json, replacing, replacing_folder, write_json
from arvrm.interface import Robot, UserError
from arvrm.model.metadata import CheckpointMetadata, metadata_from
from arvrm.model.networks import kind_of
from arvrm.model.upgrade import CHECKPOINT_FORMAT, upgraded_checkpoint
from arvrm.model.weights import WEIGHTS, load_weights, save_weights
from arvrm.robots import described as robot_described
from arvrm.robots.described import described_as

BUILTIN = "builtin"
"""Names the policy that the package brings, wherever a policy's checkpoint is asked for."""
_DAMAGED = "give a whole checkpoint folder, or copy or train it again"


def place_of(checkpoint: str | Path) -> Path:
    """Return the folder of a checkpoint: "builtin" is the one in the package, unless a folder here is called so."""
    if str(checkpoint) == BUILTIN and not Path(BUILTIN).exists():
        return Path(str(resources.files("arvrm").joinpath("resources", BUILTIN)))
    return Path(checkpoint)


@dataclass(frozen=True)
class Described:
    """What config.json of a checkpoint says, in the form of today."""

    further_keys: ClassVar[bool] = True
    format: int
    kind: str
    model: dict[str, Any]
    metadata: dict[str, Any]
    robot: str | None = None
    robot_description: dict[str, Any] | None = None


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
    if description := described_as(model.robot):
        described["robot_description"] = description
    statistics = {} if model.robot is None else configuration.to_dict(model.robot.statistics)
    write_json(folder / "statistics.json", statistics, sort_keys=True)
    write_json(folder / "config.json", described, sort_keys=True)
    with replacing(folder / WEIGHTS) as partial:
        save_weights(partial, model.state_dict())


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
    described = read_described(folder)
    found = kind_of(described.kind, place)
    if kind is not None and described.kind != kind:
        raise UserError(
            f"{folder}: holds a {described.kind} model, expected {kind}; give the checkpoint of the other stage"
        )
    settings = found.upgrade(described.model, f"{place}: model")
    config = configuration.from_dict(found.config, settings, f"{place}: model")
    metadata = metadata_from(described.metadata, f"{place}: metadata")
    read_json(folder / "statistics.json", _DAMAGED)  # of hands alone it is empty, and part of the hash
    robot = robot_of(folder, described) if found.plans else None
    model = found.build(config, robot)
    load_weights(model, folder)
    return Checkpoint(model.to(device).eval(), config, robot, metadata, checkpoint_hash(folder))


def read_described(folder: str | Path) -> Described:
    """Read config.json of a checkpoint of any version, and no weights; raises UserError as `load_checkpoint` does."""
    place = f"{folder}/config.json"
    written = read_json(place, _DAMAGED)
    kind_of(written.get("kind"), place)
    return configuration.from_dict(Described, upgraded_checkpoint(written, place), place)


def robot_of(folder: str | Path, described: Described) -> Robot:
    """Return a checkpoint's robot, with the numbers of its statistics.json.

    Raises:
        UserError: it is unknown, or the numbers are missing or not its own.
    """
    place = f"{folder}/statistics.json"
    if described.robot is None:
        raise UserError(f"{folder}/config.json: missing key 'robot', of a policy; {_DAMAGED}")
    return robot_described(described.robot, read_json(place, _DAMAGED), place, described.robot_description)


def start_from_stage1(policy: Any, folder: str | Path) -> None:
    """Load a stage-1 checkpoint into the part of `policy`, an `interface.Network`, that stage 1 trains, strictly.

    Raises:
        UserError: not a stage-1 checkpoint, or its configuration gives other weights than the policy's.
    """
    found = read_described(folder).kind
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
