"""How many of torch's threads a stage computes with: as many as the cores really give.

Threads wait for each other after every small piece of work. Where other programs hold the cores, torch's default of one
thread a core is several times slower than a single thread, so both are tried for a moment first. Results of another
number of threads differ in their last bits: a resumed run keeps its number.

bf16 on a processor that has none takes ten times as long as fp32; who asks for it there is told.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from arvrm import processes
from arvrm.files import read_json
from arvrm.model.threads import torch_threads
from arvrm.training.runs import RunConfig

ROUNDS = 5
SECONDS = 0.5
"""Trying ends after so many rounds, or, where that takes long, with the round in which so much time has passed."""
SLOW = 2.0
"""bf16 that takes so many times as long as fp32 is said to be slow."""
MARGIN = 1.25
"""Fewer threads must be so many times as fast as all: on free cores chance must not decide, nor change results."""


@contextlib.contextmanager
def using_threads(wanted: int | None = None, progress: bool = True, before: int | None = None) -> Iterator[int]:
    """Compute with as many threads as are `wanted`, as the run had `before`, or else as are fastest.

    Says on stderr how many and why, if `progress`. Afterwards it is as it was.
    """
    most = torch.get_num_threads()
    number, why = _number(wanted, before, most)
    if progress and processes.is_main():
        print(f"threads: {number} of {most} ({why})", file=sys.stderr)
    with torch_threads(number):
        yield number


def threads_of(config: RunConfig, progress: bool = True) -> contextlib.AbstractContextManager[int]:
    """Return the block in which a run computes, with `train.threads`, or as it did before it was stopped; says where
    its precision is slow."""
    on_cpu = config.train.device == "cpu" or not torch.cuda.is_available()
    if progress and processes.is_main() and on_cpu and config.train.precision == "bf16" and bf16_slowdown() > SLOW:
        print("precision: this processor computes in bf16 slowly; train.precision=fp32 is faster", file=sys.stderr)
    before = _threads_before(Path(config.output)) if config.resume else None
    return using_threads(config.train.threads, progress, before)


def _number(wanted: int | None, before: int | None, most: int) -> tuple[int, str]:
    if wanted is not None:
        return wanted, "train.threads"
    if processes.world() > 1:
        return most, "each process, as the launcher set it"
    if before is not None:
        return before, "as the run began; train.threads sets another"
    if "OMP_NUM_THREADS" in os.environ:
        return most, "OMP_NUM_THREADS"
    if torch.cuda.is_available():
        return most, "torch's default; the GPU computes"
    times = measured(most)
    shown = ", ".join(f"{1000 * seconds:.1f} ms with {number}" for number, seconds in times.items())
    return fastest(times), f"measured: {shown}" if len(times) > 1 else "the only one"


def _threads_before(folder: Path) -> int | None:
    """Return how many threads the run in `folder` began with; None: there is no run, or it does not say."""
    file = folder / "run.json"
    if not file.is_file():
        return None
    values = read_json(file, "restart with --overwrite")
    hardware = values.get("hardware") if isinstance(values, dict) else None
    number = hardware.get("threads") if isinstance(hardware, dict) else None
    return number if type(number) is int and number > 0 else None


def measured(most: int, work: Callable[[], object] | None = None) -> dict[int, float]:
    """Return number of threads -> mean seconds of a piece of work: all `most`, halved down to one.

    The numbers take turns, so that a moment in which others compute more counts for all of them alike.
    """
    numbers = candidates(most)
    if len(numbers) == 1:
        return {1: 0.0}
    work = work or _small_network()
    sums, rounds, began = dict.fromkeys(numbers, 0.0), 0, time.perf_counter()
    for number in numbers:
        with torch_threads(number):
            work()  # starts the threads
    while rounds < ROUNDS and (rounds == 0 or time.perf_counter() - began < SECONDS):
        for number in numbers:
            with torch_threads(number):
                start = time.perf_counter()
                work()
                sums[number] += time.perf_counter() - start
        rounds += 1
    return {number: total / rounds for number, total in sums.items()}


def candidates(most: int) -> Sequence[int]:
    """Return `most`, its half, the half's half, down to 1."""
    numbers = [most]
    while numbers[-1] > 1:
        numbers.append(numbers[-1] // 2)
    return numbers


def fastest(times: dict[int, float]) -> int:
    """Return the number of threads to use: the largest, unless another is faster by `MARGIN`."""
    best, most = min(times, key=lambda number: times[number]), max(times)
    return best if times[best] * MARGIN < times[most] else most


def bf16_slowdown() -> float:
    """Return how many times as long as in fp32 a product of matrices takes in bf16 on this processor."""
    seconds = {}
    for kind in (torch.float32, torch.bfloat16):
        left, right = torch.ones(512, 128, dtype=kind), torch.ones(128, 512, dtype=kind)
        left @ right  # starts the threads
        start = time.perf_counter()
        for _ in range(ROUNDS):
            left @ right
        seconds[kind] = time.perf_counter() - start
    return seconds[torch.bfloat16] / seconds[torch.float32]


def _small_network() -> Callable[[], object]:
    """Return work like that of training: products and functions of some hundred rows."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(512, 128, generator=generator)
    widen, narrow = torch.randn(128, 512, generator=generator), torch.randn(512, 128, generator=generator)

    @torch.no_grad()
    def work() -> None:
        values = rows
        for _ in range(4):
            values = torch.nn.functional.gelu(values @ widen) @ narrow / 512

    return work
