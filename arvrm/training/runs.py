"""A run's folder: whether it may be used, how it began (run.json), and the checkpoint written into it."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import nn

from arvrm import processes
from arvrm.config import from_dict, to_dict
from arvrm.episodes import EpisodeStore
from arvrm.files import clear_folder, clear_folders, discard_folder, locked, reporting, write_json
from arvrm.interface import Robot, UserError
from arvrm.model.checkpoint import write_checkpoint
from arvrm.model.metadata import CheckpointMetadata, TrainedOn
from arvrm.runfiles import read_run
from arvrm.training.config import TrainConfig
from arvrm.training.data import DataConfig
from arvrm.training.distribution import check_division, shards
from arvrm.training.upgrade import upgraded
from arvrm.windows import EpisodeTable, WindowConfig, store_fingerprint

Stage = Literal["pretrain", "finetune"]
_OURS = (
    "motions.json", "motions.safetensors", "moments.npz",
    "state", "metrics.jsonl", "tensorboard", "model.safetensors", "config.json", "statistics.json", "run.json",
)  # fmt: skip
"""In the order in which they are deleted: killed meanwhile, nothing goes on with half of a run, and it is still one."""


def check_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """Look whether `folder` may become a run's.

    Raises:
        UserError: it holds a run already and neither `resume` nor `overwrite` is given, or it is no run's folder.
    """
    if resume and overwrite:
        raise UserError(f"{folder}: --resume and --overwrite exclude each other; pass one")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a folder for the run")
    present = {name for name in os.listdir(folder) if not name.startswith(".")} if folder.exists() else set()
    if present and not resume:
        if not overwrite:
            raise UserError(f"{folder}: exists; pass --resume to go on with it or --overwrite to replace it")
        if not present & {*_OURS}:
            raise UserError(f"{folder}: is not a run's folder, so it is not overwritten; give another or empty it")


def prepare_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """Make a run's folder, empty of an older run's files unless it is resumed. Raises as `check_folder` does."""
    check_folder(folder, resume, overwrite)
    if overwrite:
        for name in _OURS:
            path = folder / name
            if path.is_dir():
                discard_folder(path)
            else:
                path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    clear_folder(folder)
    for name in ("state", "tensorboard"):  # what is left of deleting them
        clear_folders(folder / name)


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


def metadata_of(config: RunConfig, table: EpisodeTable, train: np.ndarray, stage: Stage) -> CheckpointMetadata:
    """Return what both stages' checkpoints say of a run on the episodes `train` of `table`."""
    return CheckpointMetadata(
        stage=stage,
        history=config.window.history,
        stride=config.window.stride,
        images={name: size[0] for name, size in table.header(0).cameras.items()},
        tasks=tuple(sorted({table.tasks[task] for task in table.task[train]})),
        episodes=len(train),
        stores=trained_on(table.stores),
        settings={"data": to_dict(config.data), "window": to_dict(config.window), "train": to_dict(config.train)},
    )


def trained_on(stores: Sequence[EpisodeStore]) -> tuple[TrainedOn, ...]:
    """Return what a checkpoint keeps of the stores that it was made from."""
    return tuple(TrainedOn(str(store.path), store_fingerprint(store)) for store in stores)


def saver(metadata: CheckpointMetadata) -> Callable[[Path, nn.Module], None]:
    def save(folder: Path, model: nn.Module) -> None:
        # Two of the three files never change in a run, so that at every moment they fit together.
        write_checkpoint(folder, model, metadata)

    return save


@contextlib.contextmanager
def reserved(config: RunConfig, stage: Stage) -> Iterator[None]:
    """Keep the run's folder to this process for the time of the block, once it may be used for such a run.

    Nothing is changed in it. Of several processes of one run the first does this.

    Raises:
        UserError: the folder holds a run and neither `resume` nor `overwrite` is given, the run to be resumed has
            another configuration, or another process is writing it.
    """
    check_division(config.train.batch, config.train.accumulate)
    if not processes.is_main():
        yield
        return
    output = Path(config.output)
    check_folder(output, config.resume, config.overwrite)
    with locked(output):
        if config.resume and (output / "run.json").exists():
            _check_configuration(config, stage)
        with reporting(output):
            yield


def _check_configuration(config: RunConfig, stage: Stage) -> None:
    """Raise UserError unless the run was begun with the same configuration, but for what may change."""
    file = Path(config.output) / "run.json"
    before = read_run(config.output)
    difference = None
    if before.stage == stage:
        settings = upgraded(before.config, before.stage, f"{file}: config")
        difference = _difference(to_dict(from_dict(type(config), settings, f"{file}: config")), to_dict(config))
    if before.stage != stage or difference:
        what = difference or f"stage {before.stage}, not {stage}"
        raise UserError(
            f"{config.output}: was started with another configuration ({what}); use the same, or --overwrite"
        )


def begin_run(config: RunConfig, stage: Stage, robot: Robot | None) -> Path:
    """Make the run's folder, now that everything it needs has been found, and note how it is made."""
    output = Path(config.output)
    if not processes.is_main():
        return output
    with reporting(output, None):
        prepare_folder(output, config.resume, config.overwrite)
    if not (config.resume and (output / "run.json").exists()):
        values = {
            "stage": stage,
            "robot": None if robot is None else robot.name,
            "config": to_dict(config),
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
            "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
            "processes": {"number": processes.world(), "sharded": shards()},
        }
        write_json(output / "run.json", values)
    return output


_MAY_CHANGE = {"output", "resume", "overwrite", "data.cache", "data.in_memory", "data.robot"} | {
    f"train.{name}"
    for name in ("accumulate", "log_every", "validate_every", "checkpoint_every", "tensorboard", "workers", "threads")
}


def _difference(old: object, new: object, place: str = "") -> str | None:
    """Name the first setting whose value is another, with both values; None: there is none."""
    if place in _MAY_CHANGE:
        return None
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            found = _difference(old.get(key), new.get(key), f"{place}.{key}".lstrip("."))
            if found:
                return found
        return None
    return None if old == new else f"{place} was {old!r}, is {new!r}"
