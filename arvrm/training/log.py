"""What a run says while it trains: metrics.jsonl, TensorBoard files, and the sums that become their numbers."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from torch import Tensor

from arvrm import processes
from arvrm.files import disk_error, replacing
from arvrm.runfiles import read_metrics

if TYPE_CHECKING:
    from tqdm import tqdm


class Log:
    """The lines of metrics.jsonl, one JSON object each, and the same numbers for TensorBoard.

    Args:
        folder: the run's.
        step: updates already made. A resumed run repeats those after its checkpoint: their lines are dropped.
        tensorboard: write its files too.
        enabled: False: write nothing (not the first process), but remember the last numbers.

    Attributes:
        last: the latest numbers of each split.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool, enabled: bool) -> None:
        self.file = folder / "metrics.jsonl"
        self.last: dict[str, dict[str, float]] = {}
        self._writer = self._stream = None
        self._held = contextlib.ExitStack()
        if not enabled:
            return
        kept = self._lines_until(step)
        with replacing(self.file) as partial:
            partial.write_text("".join(kept))
        self._stream = open(self.file, "a", buffering=1)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._held.enter_context(_quiet_threads())
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def _lines_until(self, step: int) -> list[str]:
        if not self.file.exists():
            return []
        return [found.line + "\n" for found in read_metrics(self.file.parent) if found.step <= step]

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Log the numbers of a split ("train" or "validation") after `step` updates."""
        self.last[split] = values
        if self._stream:
            self._stream.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(f"{split}/{name}", value, step)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._held:
            if self._stream:
                self._stream.close()
            if self._writer:
                self._writer.close()


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """Print no traceback of a thread (TensorBoard writes in one) that meets a full disk: the run says so itself."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is None or disk_error(arguments.exc_value) is None:
            before(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


class Sums:
    """Sums, on the device, of what was computed since the last log; reading them is left to the logging."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.updates = 0

    def add(self, name: str, value: Tensor) -> None:
        self.values[name] = self.values[name] + value if name in self.values else value

    def add_scalars(self, losses: dict[str, Tensor]) -> None:
        """Add all that are numbers; leave out what was predicted."""
        for name, value in losses.items():
            if value.ndim == 0:
                self.add(name, value.detach())


def progress_bar(name: str, total: int, progress: bool, unit: str = "frame", done: int = 0) -> tqdm:
    """Return a bar on the first process's stderr (none without `progress`); it is written rarely if that is a file."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        initial=done,
        desc=name,
        unit=unit,
        file=sys.stderr,
        disable=not (progress and processes.is_main()),
        mininterval=0.5 if sys.stderr.isatty() else 15.0,
    )
