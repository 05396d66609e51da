"""What a killed run goes on from: state/latest.json, which names state/step-00000200/trainer.pt.

Weights, optimiser and average are written whole, however many processes hold them in shards, and are taken up by any
number of processes.
"""

from __future__ import annotations

import pickle
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import torch
from torch import nn

from arvrm import processes
from arvrm.files import read_json, replacing, write_json
from arvrm.interface import UserError
from arvrm.training.distribution import local, placed, shards, whole
from arvrm.training.optimizer import Average

_UNREADABLE = (
    OSError, EOFError, LookupError, ValueError, RuntimeError, TypeError, AttributeError, OverflowError, MemoryError,
    NotImplementedError, AssertionError, pickle.UnpicklingError, struct.error,
)  # fmt: skip
"""What torch raises of a damaged file, or of a whole one with other values than ours."""


def save_state(
    folder: Path, step: int, seconds: float, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None
) -> None:
    """Write the state after `step` updates into the run's folder; the one before is deleted after that.

    Of several processes the first writes; with shards all must call it.
    """
    values = {
        "step": step,
        "seconds": seconds,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average and {"mean": average.mean, "updates": average.updates},
    }
    if shards():
        values = whole(values)
    if processes.is_main():
        _write(folder / "state", step, values)


def _write(state: Path, step: int, values: dict[str, Any]) -> None:
    name = f"step-{step:08d}"
    with replacing(state / name / "trainer.pt") as partial, open(partial, "wb") as stream:
        torch.save(values, stream)
    write_json(state / "latest.json", {"folder": name, "step": step})
    for other in state.iterdir():
        if other.is_dir() and other.name != name:
            shutil.rmtree(other)


def load_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    device: torch.device,
) -> tuple[int, float]:
    """Take up the run's last state; return the updates and the seconds of training that led to it.

    A run that was killed before its first checkpoint begins anew: (0, 0.0).

    Raises:
        UserError: the state cannot be read, or belongs to another network.
    """
    state = folder / "state"
    if not (state / "latest.json").exists():
        return 0, 0.0
    try:
        name = read_json(state / "latest.json").get("folder")
        if not re.fullmatch(r"step-\d{1,12}", str(name)):
            raise ValueError("latest.json names no folder of a step")
        file = state / str(name) / "trainer.pt"
        where = "cpu" if shards() or device.type == "cpu" else device
        values = torch.load(file, map_location=where, weights_only=True)
        _take_weights(values, model, optimizer)
        if (values["average"] is None) != (average is None):
            raise ValueError("train.ema was switched")
        if average:
            _take_average(values["average"], average)
        step, seconds = values["step"], values["seconds"]
        if type(step) is not int or step < 0 or not (isinstance(seconds, (int, float)) and 0 <= seconds < 1e12):
            raise ValueError("it states no number of updates or seconds")
        return step, float(seconds)
    except (*_UNREADABLE, UserError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{state}: cannot be resumed ({reason}); restart with --overwrite") from error


def _take_weights(values: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load weights and optimiser, whole as they are written, into what this process holds of them."""
    own = model.state_dict()
    weights = {name: placed(value, own[name]) if name in own else value for name, value in values["model"].items()}
    model.load_state_dict(weights)
    given = values["optimizer"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        index: {key: placed(v, parameters[index]) if key != "step" else v for key, v in held.items()}
        for index, held in given["state"].items()
    }
    optimizer.load_state_dict({**given, "state": moments})


def _take_average(values: dict[str, Any], average: Average) -> None:
    given = [placed(mean, like) for mean, like in zip(values["mean"], average.mean, strict=True)]
    torch._foreach_copy_(local(average.mean), local(given))
    average.updates = values["updates"]
