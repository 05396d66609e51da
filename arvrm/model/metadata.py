"""What a checkpoint says of how its network was trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from arvrm.config import from_dict
from arvrm.interface import UserError


@dataclass(frozen=True)
class TrainedOn:
    """An episode store, by where it was and by what was in it (`windows.store_fingerprint`)."""

    path: str
    fingerprint: str


@dataclass(frozen=True)
class CheckpointMetadata:
    """What a network cannot tell by itself: whoever uses it asks here, and nothing has a default there.

    Attributes:
        stage: which one made it.
        history: T, frames of a window.
        stride: control steps between two frames of a window.
        images: camera name -> side in pixels of the square images that it was trained on.
        execute_steps: actions of a chunk that a rollout executes before it plans again; None: the policy's default.
        clips: retrieved clips beside each window in training; None: it was trained without.
        index: their index, where it then was.
        pretrained: the checkpoint that training started from.
        tasks: of the training episodes, sorted.
        episodes: how many there were; None: not known.
        stores: where they came from; and clips whose motions it carries over.
        settings: sections of the training run's configuration, as they were written: "data", "window", "train" and
            maybe "retrieval".
        imported: file and kind of the original that it was made from.
    """

    stage: Literal["pretrain", "finetune"]
    history: int
    stride: int
    images: dict[str, int]
    execute_steps: int | None = None
    clips: int | None = None
    index: str | None = None
    pretrained: str | None = None
    tasks: tuple[str, ...] = ()
    episodes: int | None = None
    stores: tuple[TrainedOn, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    imported: dict[str, str] | None = None


def metadata_from(values: dict[str, Any], place: str) -> CheckpointMetadata:
    """Read what `config.to_dict` made of one.

    Raises:
        UserError: something needed is absent, or of another type.
    """
    try:
        return from_dict(CheckpointMetadata, values, place)
    except UserError as error:
        raise UserError(
            f"{error}".split(";")[0] + "; it must say how the network was trained: train it again"
        ) from error
