"""How to train: the settings of the loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from arvrm.config import bounded, check_bounds


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        steps: updates.
        batch: windows per update, over all processes and backward passes.
        accumulate: backward passes per update. Each has its own mean over windows that a mask lets count.
        learning_rate: at the end of the warm-up; then a cosine down to `final_learning_rate` of it.
        warmup: updates of linear warm-up.
        weight_decay: on matrices; norms, biases and other vectors have none.
        clip: largest gradient norm; null: no clipping.
        ema: decay of the averaged weights that are saved and validated, such as 0.999; 0 or null: none.
        precision: bf16 is autocast; weights and optimiser stay fp32.
        attention: how it is computed, see `model.transformer.attention_kernel`.
        compile: compile the network's blocks with torch.compile; the first step takes a minute or more.
        device: "auto" takes a GPU where there is one.
        seed: of weights, batches and augmentations.
        log_every, validate_every, checkpoint_every: updates; 0: never (a checkpoint is always written at the end).
        workers: processes that prepare batches; 0 prepares them in this one, best where frames are in memory.
        threads: that torch computes with on a CPU; null: as many as are fastest in a short trial when the run begins,
            and the same at --resume. Another number changes the last bits of results. OMP_NUM_THREADS sets it too.
        max_minutes: stop after this time over all resumed runs. The schedule then follows steps or time, whichever
            has gone further, so that it always ends at its end; such a run is not reproducible to the bit.
        tensorboard: write TensorBoard files.
    """

    steps: int = bounded(1000, least=1, most=10**9)
    batch: int = bounded(128, least=1, most=2**16)
    accumulate: int = bounded(1, least=1, most=10**6)
    learning_rate: float = bounded(1e-3, above=0, most=1000)
    final_learning_rate: float = bounded(0.0, least=0, most=1)
    warmup: int = bounded(50, least=0, most=10**9)
    weight_decay: float = bounded(0.01, least=0, most=1000)
    clip: float | None = bounded(1.0, above=0)
    ema: float | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    attention: Literal["auto", "sdpa", "plain"] = "auto"
    compile: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = bounded(0, least=0)
    log_every: int = bounded(20, least=0)
    validate_every: int = bounded(200, least=0)
    checkpoint_every: int = bounded(200, least=0)
    workers: int = bounded(0, least=0, most=1024)
    threads: int | None = bounded(None, least=1, most=1024)
    max_minutes: float | None = bounded(None, above=0)
    tensorboard: bool = True

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} is no multiple of accumulate {self.accumulate}; choose one that is")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; give a number from 0 to 1, 1 excluded, or null")


@dataclass(frozen=True)
class TrainResult:
    """What a finished run reports: its folder, updates made, seconds of training, the last logged numbers by split."""

    folder: Path
    steps: int
    seconds: float
    metrics: dict[str, dict[str, float]]
