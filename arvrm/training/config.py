"""How to train: the settings of the loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


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

    steps: int = 1000
    batch: int = 128
    accumulate: int = 1
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.0
    warmup: int = 50
    weight_decay: float = 0.01
    clip: float | None = 1.0
    ema: float | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    attention: Literal["auto", "sdpa", "plain"] = "auto"
    compile: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    log_every: int = 20
    validate_every: int = 200
    checkpoint_every: int = 200
    workers: int = 0
    threads: int | None = None
    max_minutes: float | None = None
    tensorboard: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads is {self.threads}; give at least 1, or null")
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
