"""The motions that a policy may carry over, and their file in a checkpoint.

motions.safetensors holds the numbers of all motions and their own checksum; motions.json says whose they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from arvrm.config import from_dict, to_dict
from arvrm.files import read_json, write_json
from arvrm.interface import KEYPOINTS, UserError
from arvrm.model.weights import read_checked, save_weights
from arvrm.motions.path import Path as MotionPath

NUMBERS, WORDS = "motions.safetensors", "motions.json"
FORMAT = "arvrm-motions-1"
_DAMAGED = "the library is damaged; copy the checkpoint or make it again"


@dataclass(frozen=True)
class Motion:
    """One motion that was seen.

    Attributes:
        id, embodiment, sentence: of the episode.
        by: of a hand's: the demonstration whose way of doing it the robot takes; "": the hand's own.
        path: its way.
        start: (7,) at its first step: the TCP's pose and the gripper's width (m).
        hand: (2, 21, 2) the hand that is predicted for its own first image, at the touch and at the end, pixels of 96.
        confidence: (2,) of it.
        motion: (D,) what that hand does around the touch (`model.places.PredictedHands.motion`).
        turn: (2,) how the line from thumb tip to index tip lies (`model.places.PredictedHands.turn`).
        words: (E,) what its sentence means to retrieval, of unit length.
        touched: the episode's own step of the touch (the path may have other steps); None: of a library of before.
    """

    id: str
    embodiment: Literal["robot", "human"]
    sentence: str
    path: MotionPath
    start: np.ndarray
    hand: np.ndarray
    confidence: np.ndarray
    motion: np.ndarray
    turn: np.ndarray
    words: np.ndarray
    by: str = ""
    touched: int | None = None


@dataclass(frozen=True)
class _Entry:
    """A motion in motions.json."""

    id: str
    embodiment: Literal["robot", "human"]
    sentence: str
    by: str = ""
    touched: int | None = None


@dataclass(frozen=True)
class _File:
    """motions.json."""

    format: Literal["arvrm-motions-1"]
    sha256: str
    motions: tuple[_Entry, ...]


def save_library(folder: Path, motions: Sequence[Motion]) -> str:
    """Write the two files into a folder; return what identifies them (SHA-256 of motions.json, hex)."""
    save_weights(folder / NUMBERS, _tensors(motions))
    entries = [to_dict(_Entry(one.id, one.embodiment, one.sentence, one.by, one.touched)) for one in motions]
    values = {"format": FORMAT, "sha256": _hash(folder / NUMBERS), "motions": entries}
    write_json(folder / WORDS, values, sort_keys=True)
    return _hash(folder / WORDS)


def load_library(folder: str | Path, identity: str) -> list[Motion]:
    """Read the motions of a checkpoint.

    Args:
        identity: what `save_library` returned.

    Raises:
        UserError: a file is missing, damaged, or of another checkpoint.
    """
    file, numbers = Path(folder) / WORDS, Path(folder) / NUMBERS
    described = from_dict(_File, read_json(file, _DAMAGED), str(file))
    if _hash(file) != identity:
        raise UserError(f"{file}: is not the one that config.json names; {_DAMAGED}")
    if _hash(numbers) != described.sha256:
        raise UserError(f"{numbers}: is not the one that {WORDS} names; {_DAMAGED}")
    held = {name: tensor.numpy() for name, tensor in read_checked(numbers).items()}
    problem = _misfit(held, len(described.motions))
    if problem:
        raise UserError(f"{numbers}: {problem}; {_DAMAGED}")
    found = []
    for row, entry in enumerate(described.motions):
        steps = slice(int(held["begin"][row]), int(held["begin"][row + 1]))
        path = MotionPath(
            held["poses"][steps],
            held["gripper"][steps],
            int(held["moments"][row, 0]),
            int(held["moments"][row, 1]),
            held["tcp"][row, 0],
            held["tcp"][row, 1],
        )
        names = ("start", "hand", "confidence", "motion", "turn", "words")
        numbers = (held[name][row] for name in names)
        found.append(
            Motion(entry.id, entry.embodiment, entry.sentence, path, *numbers, by=entry.by, touched=entry.touched)
        )
    return found


def _tensors(motions: Sequence[Motion]) -> dict[str, torch.Tensor]:
    paths = [one.path for one in motions]
    values = {
        "begin": np.cumsum([0, *(len(path.poses) for path in paths)]),
        "poses": np.concatenate([path.poses for path in paths]),
        "gripper": np.concatenate([path.gripper for path in paths]),
        "moments": np.array([[path.touch, path.end] for path in paths]),
        "tcp": np.array([[path.tcp_touch, path.tcp_end] for path in paths]),
        "start": np.array([one.start for one in motions]),
        "hand": np.array([one.hand for one in motions], np.float32),
        "confidence": np.array([one.confidence for one in motions], np.float32),
        "motion": np.array([one.motion for one in motions], np.float32),
        "turn": np.array([one.turn for one in motions], np.float32),
        "words": np.array([one.words for one in motions], np.float32),
    }
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in values.items()}


def _misfit(held: dict[str, np.ndarray], count: int) -> str | None:
    """What is wrong with the shapes of a library of `count` motions, or None."""
    begin = held.get("begin")
    if begin is None or begin.shape != (count + 1,) or begin.dtype.kind != "i":
        return f"begin does not say where each of {count} motions begins"
    steps = int(begin[-1])
    if count == 0 or begin[0] != 0 or (np.diff(begin) < 1).any():
        return "a motion has no steps"
    shapes = {
        "poses": (steps, 6),
        "gripper": (steps,),
        "moments": (count, 2),
        "tcp": (count, 2, 6),
        "start": (count, 7),
        "hand": (count, 2, len(KEYPOINTS), 2),
        "confidence": (count, 2),
        "motion": (count, None),
        "turn": (count, 2),
        "words": (count, None),
    }
    for name, shape in shapes.items():
        found = held[name].shape if name in held else None
        fits = found is not None and len(found) == len(shape)
        if not fits or any(want not in (None, have) for want, have in zip(shape, found or (), strict=False)):
            return f"{name} has shape {found}, expected {shape}"
        if not np.isfinite(held[name]).all():
            return f"{name} holds NaN or infinity"
    if not np.isin(held["gripper"], (-1.0, 1.0)).all():
        return "gripper holds what is neither -1 nor 1"
    moments, lengths = held["moments"], np.diff(begin)
    if (moments < 0).any() or (moments >= lengths[:, None]).any():
        return "moments lie outside of their motions"
    return None


def _hash(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; give a whole checkpoint folder") from error
