"""A run's folder: whether it may be used, how it began (run.json), and the checkpoint written into it."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn

from arvrm import processes
from arvrm.config import from_dict, to_dict
from arvrm.files import write_json
from arvrm.interface import UserError
from arvrm.model.checkpoint import save_checkpoint
from arvrm.model.metadata import CheckpointMetadata, TrainedOn
from arvrm.training.config import TrainConfig
from arvrm.training.data import DataConfig
from arvrm.training.distribution import check_division, shards
from arvrm.training.upgrade import upgraded
from arvrm.windows import EpisodeTable, WindowConfig, store_fingerprint

_OURS = {"state", "metrics.jsonl", "tensorboard", "model.safetensors", "config.json", "statistics.json", "run.json"}


def check_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """Look whether `folder` may become a run's.

    Raises:
        UserError: it holds a run already and neither `resume` nor `overwrite` is given, or it is no run's folder.
    """
    if resume and overwrite:
        raise UserError(f"{folder}: --resume and --overwrite exclude each other; pass one")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a folder for the run")
    present = set(os.listdir(folder)) if folder.exists() else set()
    if present and not resume:
        if not overwrite:
            raise UserError(f"{folder}: exists; pass --resume to go on with it or --overwrite to replace it")
        if not present & _OURS:
            raise UserError(f"{folder}: is not a run's folder, so it is not overwritten; give another or empty it")


def prepare_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """Make a run's folder, empty of an older run's files unless it is resumed. Raises as `check_folder` does."""
    check_folder(folder, resume, overwrite)
    if overwrite:
        for name in _OURS:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


class RunConfig(Protocol):
    """What the configurations of both stages have in common (frozen dataclasses)."""

    @property
    def output(self) -> str: ...
    @property
    def resume(self) -> bool: ...
    @property
    def overwrite(self) -> bool: ...
    @property
    def data(self) -> DataConfig: ...
    @property
    def window(self) -> WindowConfig: ...
    @property
    def train(self) -> TrainConfig: ...


def metadata_of(
    config: RunConfig, table: EpisodeTable, train: np.ndarray, stage: Literal["pretrain", "finetune"]
) -> CheckpointMetadata:
    """Return what both stages' checkpoints say of a run on the episodes `train` of `table`."""
    return CheckpointMetadata(
        stage=stage,
        history=config.window.history,
        stride=config.window.stride,
        images={name: size[0] for name, size in table.header(0).cameras.items()},
        tasks=tuple(sorted({table.tasks[task] for task in table.task[train]})),
        episodes=len(train),
        stores=tuple(TrainedOn(str(store.path), store_fingerprint(store)) for store in table.stores),
        settings={"data": to_dict(config.data), "window": to_dict(config.window), "train": to_dict(config.train)},
    )


def saver(metadata: CheckpointMetadata) -> Callable[[Path, nn.Module], None]:
    def save(folder: Path, model: nn.Module) -> None:
        part = save_checkpoint(folder / ".saving", model, metadata, overwrite=True)
        # The other two files never change in a run, so that at every moment the three fit together.
        for name in ("statistics.json", "config.json", "model.safetensors"):
            os.replace(part / name, folder / name)
        part.rmdir()

    return save


def check_run(config: RunConfig, stage: str) -> None:
    """Look whether the run's folder may be used, and change nothing; a resumed run must have the same configuration."""
    check_division(config.train.batch, config.train.accumulate)
    output = Path(config.output)
    if not processes.is_main():
        return
    check_folder(output, config.resume, config.overwrite)
    file = output / "run.json"
    if not (config.resume and file.exists()):
        return
    try:
        before = json.loads(file.read_text())
        known = to_dict(from_dict(type(config), upgraded(before["config"], stage, str(file)), str(file)))
        difference = _difference(known, to_dict(config))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: is damaged ({error}); restart with --overwrite") from error
    if before["stage"] != stage or difference:
        what = difference or f"stage {before['stage']}, not {stage}"
        raise UserError(f"{output}: was started with another configuration ({what}); use the same, or --overwrite")


def begin_run(config: RunConfig, stage: str) -> Path:
    """Make the run's folder, now that everything it needs has been found, and note how it is made."""
    output = Path(config.output)
    if not processes.is_main():
        return output
    prepare_folder(output, config.resume, config.overwrite)
    if not (config.resume and (output / "run.json").exists()):
        values = {
            "stage": stage,
            "config": to_dict(config),
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
            "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
            "processes": {"number": processes.world(), "sharded": shards()},
        }
        write_json(output / "run.json", values)
    return output


_MAY_CHANGE = {"output", "resume", "overwrite", "data.cache", "data.in_memory"} | {
    f"train.{name}"
    for name in ("accumulate", "log_every", "validate_every", "checkpoint_every", "tensorboard", "workers")
}


def _difference(old: Any, new: Any, place: str = "") -> str | None:
    if place in _MAY_CHANGE:
        return None
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            found = _difference(old.get(key), new.get(key), f"{place}.{key}".lstrip("."))
            if found:
                return found
        return None
    return None if old == new else f"{place} was {old!r}, is {new!r}"
