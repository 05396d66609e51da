"""What a training run notes beside its checkpoint, as its readers take it: run.json and metrics.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from arvrm import files
from arvrm.config import from_dict
from arvrm.interface import UserError

_DAMAGED = "give the folder of a training run, or restart it with --overwrite"


@dataclass(frozen=True)
class Run:
    """How a run began: its stage, its robot's name and its configuration, as the version that wrote it has it."""

    further_keys: ClassVar[bool] = True
    stage: Literal["pretrain", "finetune"]
    config: dict[str, Any]
    robot: str | None = None


@dataclass(frozen=True)
class Metrics:
    """One line of metrics.jsonl.

    Attributes:
        step: updates made.
        split: "train" or "validation".
        values: its finite numbers by name, "seconds" of training among them.
        line: as it stands in the file, without its line break.
    """

    step: int
    split: str
    values: dict[str, float] = field(default_factory=dict)
    line: str = ""


def read_run(folder: str | Path) -> Run:
    """Read run.json; raises UserError where there is none, or none that is whole."""
    file = Path(folder) / "run.json"
    return from_dict(Run, files.read_json(file, _DAMAGED), str(file))


def read_metrics(folder: str | Path) -> Iterator[Metrics]:
    """Read metrics.jsonl. The last line may be cut, of a run that was killed or goes on; it is left out.

    Raises:
        UserError: the file cannot be read, or another line is damaged.
    """
    file = Path(folder) / "metrics.jsonl"
    try:
        lines = files.read_bytes(file, _DAMAGED, largest=1 << 30).decode().splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is no text ({error.reason} at byte {error.start}); {_DAMAGED}") from error
    for number, line in enumerate(lines, 1):
        try:
            yield _metrics(json.loads(line), line.rstrip("\n"))
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                return
            raise UserError(f"{file}:{number}: is damaged ({error}); {_DAMAGED}") from error


def _metrics(values: Any, line: str) -> Metrics:
    if not isinstance(values, dict):
        raise ValueError("no JSON object")
    step, split = values.pop("step", None), values.pop("split", None)
    if type(step) is not int or not 0 <= step <= 10**12:
        raise ValueError("step is no number of updates")
    if split not in ("train", "validation"):
        raise ValueError("split is neither train nor validation")
    for name, value in values.items():
        if not isinstance(value, (int, float)):
            raise ValueError(f"{name[:40]!r} is no number")
    # The loss of a run that went wrong is no number, and no damage.
    small = {name: float(value) for name, value in values.items() if abs(value) < 1e300}
    return Metrics(step, split, {name: value for name, value in small.items() if math.isfinite(value)}, line)
