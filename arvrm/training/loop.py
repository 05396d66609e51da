"""One training loop for both stages: accelerate, cosine schedule, exact resume, time budget, logs.

A run is a folder. When the run ends (and at every checkpoint) it is a checkpoint that a policy can load:

    model.safetensors, config.json, statistics.json   written by the caller's `save`
    metrics.jsonl                                      one JSON object a line: {"step", "split", "loss", ...}
    tensorboard/                                       the same numbers
    state/latest.json, state/step-00000200/trainer.pt  what a killed run goes on from

Everything random in step n is a function of (seed, n): the batch and, through the seeding of torch at each step, the
augmentations. So a run that was killed and resumed ends with the same bits on a CPU, and two runs that differ in a
switch of the model see the same batches. Several processes share the batch that one would have; see `distribution`.
"""

from __future__ import annotations

import contextlib
import copy
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from arvrm import processes
from arvrm.interface import UserError
from arvrm.model.split_batch import Share, holding
from arvrm.model.transformer import attention_kernel, compile_blocks
from arvrm.training.config import TrainConfig, TrainResult
from arvrm.training.distribution import MicroBatch, Votes, check_division, make_accelerator, shards, whole
from arvrm.training.log import Log, Sums, progress_bar
from arvrm.training.optimizer import Average, learning_rate, make_optimizer, set_learning_rate
from arvrm.training.state import load_state, save_state

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from tqdm import tqdm

Batch = Mapping[str, object]
"""What a network's `forward` takes: a dictionary of tensors, maybe nested (interface.HumanBatch, RobotBatch)."""
_Nested = TypeVar("_Nested")
_VALIDATION = 1 << 40
"""The step whose random state validation uses: none that training reaches."""


def to_device(batch: _Nested, device: torch.device) -> _Nested:
    """Move the tensors of a nested batch."""
    if isinstance(batch, Tensor):
        return cast(_Nested, batch.to(device, non_blocking=True))
    if isinstance(batch, dict):
        return cast(_Nested, {key: to_device(value, device) for key, value in batch.items()})
    return batch


@dataclass
class _Run:
    """What one call of `Trainer.run` keeps.

    Attributes:
        log, bar: where it says how it goes.
        batches: the coming micro-batches.
        parameters: all that are trained, whose gradients are clipped together.
        bad_step: the first step whose loss was not a number, -1 while there is none; on the device.
        sums: since the last log.
        time_used: fraction of the time budget, as the schedule has it.
        began: `time.perf_counter` of the run's start, earlier by what earlier runs took.
        speed_from: the same of the last log, later by what validation took.
    """

    log: Log
    bar: tqdm
    batches: Iterator[Batch]
    parameters: list[Tensor]
    bad_step: Tensor
    time_used: float
    began: float
    sums: Sums = field(default_factory=Sums)
    speed_from: float = field(default_factory=time.perf_counter)


class Trainer:
    """Trains `model` for `config.steps` updates.

    Args:
        model: `model(batch)` gives a dictionary of tensors; "loss" is minimised, all scalars are logged.
        batch_of: (step, micro-batch) -> those rows of the update's batch, as CPU tensors. The batch must depend on the
            step alone, whatever it is cut into.
        folder: the run's folder, see the module.
        save: called with the folder and the bare model (averaged weights if config.ema) to write the checkpoint's files
            there, each under a temporary name first.
        validate: called with the model in evaluation mode; returns numbers to log as split "validation".
        describe: (step, micro-batch) -> words that name its episodes, for the message about a loss that is not a
            number.
        name: what the progress bar calls the run.
        rate_share: see `optimizer.parameter_groups`.
        revise: (n, function): before update n the function is called with the model, as `validate` is, and may change
            what `batch_of` gives from there on; a run that goes on after update n calls it at once.
    """

    def __init__(
        self,
        model: nn.Module,
        batch_of: Callable[[int, MicroBatch], Batch],
        config: TrainConfig,
        folder: Path,
        save: Callable[[Path, nn.Module], None],
        validate: Callable[[nn.Module, torch.device], dict[str, float]] | None = None,
        describe: Callable[[int, MicroBatch], str] = lambda step, micro_batch: str(step),
        name: str = "train",
        rate_share: tuple[str, float] | None = None,
        revise: tuple[int, Callable[[nn.Module, torch.device], None]] | None = None,
    ) -> None:
        self.revise = revise
        self.config, self.folder, self.save, self.validate = config, Path(folder), save, validate
        self.batch_of, self.describe, self.name = batch_of, describe, name
        check_division(config.batch, config.accumulate)
        self.accelerator = make_accelerator(model, config.precision, config.accumulate, config.device)
        device = self.accelerator.device
        # What shards are put together in, to be written.
        self._empty = copy.deepcopy(model).to("meta") if shards() and processes.is_main() else None
        self.bare = model.to(device)
        if config.compile:
            compile_blocks(self.bare)
        optimizer = make_optimizer(self.bare, config, rate_share)
        self.model, self.optimizer = self.accelerator.prepare(self.bare, optimizer)
        if shards() and hasattr(self.bare, "predict_next"):
            from torch.distributed.fsdp import register_fsdp_forward_method

            register_fsdp_forward_method(self.bare, "predict_next")  # validation calls it
        self.average = Average(self.bare, config.ema) if config.ema else None
        self.step, self.seconds = 0, 0.0
        self._votes, self._share_held = Votes(), None
        self.world, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        if self.world > 1:
            generator = torch.Generator(device)
            self._share_held = Share(self.rank, self.world, torch.distributed.all_reduce, generator)
        # Reading a number from a GPU would let it run dry at every step; from a CPU it costs nothing.
        self.check_now = device.type == "cpu"

    def run(self, resume: bool = False, progress: bool = True) -> TrainResult:
        """Train, or go on where a killed run's last checkpoint is.

        Raises:
            UserError: the loss is not a number (with step and episodes), or the state cannot be read.
            KeyboardInterrupt: on SIGINT or SIGTERM, after a checkpoint was written.
        """
        config, device = self.config, self.accelerator.device
        if resume:
            self.step, self.seconds = load_state(self.folder, self.bare, self.optimizer, self.average, device)
        with (
            Log(self.folder, self.step, config.tensorboard, processes.is_main()) as log,
            progress_bar(self.name, config.steps, progress, "step", self.step) as bar,
        ):
            batches, parameters = self._batches(), self._parameters()
            bad_step = torch.full((), -1, dtype=torch.long, device=device)
            self.model.train()
            began = time.perf_counter() - self.seconds
            run = _Run(log, bar, batches, parameters, bad_step, self._time_used(), began)
            with _Signals() as signals, attention_kernel(config.attention, self.bare):
                self._train(run, signals)
        return TrainResult(self.folder, self.step, self.seconds, log.last)

    def _train(self, run: _Run, signals: _Signals) -> None:
        while self.step < self.config.steps and self._has_time(run):
            if self.revise is not None and self.step >= self.revise[0]:
                self._revised(run, self.revise[1])
            rate = learning_rate(self.config, self.step, run.time_used)
            set_learning_rate(self.optimizer, rate)
            self._update(run)
            if self._due(self.config.log_every):
                self._log(run, rate)
            if self.validate and self._due(self.config.validate_every):
                self._log_validation(run)
            if self.step < self.config.steps:
                self._stop_if_told(run, signals)
                if self._due(self.config.checkpoint_every):
                    self._checkpoint(run)
        if self.step < self.config.steps and self.validate and self.config.validate_every:
            self._log_validation(run)  # the time budget ended between two
        self._checkpoint(run)
        self._votes.meet()

    def _has_time(self, run: _Run) -> bool:
        """Whether the time budget allows another update; of several processes each has heard it with the votes."""
        self.seconds = time.perf_counter() - run.began
        if self.world == 1:
            run.time_used = self._time_used()
        return run.time_used < 1

    def _time_used(self) -> float:
        """Return the used fraction of `max_minutes`."""
        return self.seconds / (60 * self.config.max_minutes) if self.config.max_minutes else 0.0

    def _due(self, every: int) -> bool:
        """Whether what is done every so many updates is to be done now; at the end everything is."""
        return every > 0 and (self.step % every == 0 or self.step == self.config.steps)

    # One update

    def _update(self, run: _Run) -> None:
        torch.manual_seed(_mix(self.config.seed, self.step, self.rank))
        if self._share_held:
            self._share_held.generator.manual_seed(_mix(self.config.seed, self.step, 0))
        for _ in range(self.config.accumulate):
            self._pass(run, to_device(next(run.batches), self.accelerator.device))
        if self.average:
            self.average.update()
        self.step += 1
        run.sums.updates += 1
        run.bar.update()

    def _pass(self, run: _Run, batch: Batch) -> None:
        """Do a forward and a backward pass, and, with the update's last one, its step."""
        accelerator = self.accelerator
        with accelerator.accumulate(self.model):
            with holding(self._share_held), self._autocast():
                losses = self.model(batch)
            accelerator.backward(losses["loss"])
            run.sums.add_scalars(losses)
            if accelerator.sync_gradients and self.config.clip is not None:
                norm = accelerator.clip_grad_norm_(run.parameters, self.config.clip)
                norm = norm.full_tensor() if shards() else norm
                run.sums.add("gradient_norm", norm * self.config.accumulate)
            self._note_bad(run, losses["loss"].detach())
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def _note_bad(self, run: _Run, loss: Tensor) -> None:
        now_at = torch.full_like(run.bad_step, self.step)  # made on the device, unlike a plain number
        run.bad_step = torch.where((run.bad_step < 0) & ~loss.isfinite(), now_at, run.bad_step)
        if self.check_now and int(run.bad_step) >= 0:
            self._complain(int(run.bad_step))

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        """bf16 for a network in shards; accelerate sees to the others."""
        if not shards() or self.config.precision != "bf16":
            return contextlib.nullcontext()
        return torch.autocast(self.accelerator.device.type, torch.bfloat16)

    def _parameters(self) -> list[Tensor]:
        if shards():
            return list(self.bare.parameters())  # accelerate tells by their order whose they are
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    # Between updates

    def _log(self, run: _Run, rate: float) -> None:
        self._check(run)
        now = time.perf_counter()
        updates = run.sums.updates
        speed = updates * self.config.batch / (now - run.speed_from)
        sums = self._over_processes(run.sums.values)
        values = {name: float(value) / (updates * self.config.accumulate) for name, value in sums.items()}
        self.seconds = now - run.began
        extra = {"learning_rate": rate, "windows_per_second": speed, "seconds": self.seconds}
        run.log.write(self.step, "train", values | extra)
        run.bar.set_postfix_str(f"loss {values['loss']:.4g}, {speed:.0f} windows/s")
        run.sums, run.speed_from = Sums(), now

    def _over_processes(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the means of the processes' sums."""
        if self._share_held is None or not sums:
            return sums
        names = sorted(sums)
        values = self.accelerator.reduce(torch.stack([sums[name].float() for name in names]), "mean")
        return dict(zip(names, values.unbind(), strict=True))

    def _log_validation(self, run: _Run) -> None:
        pause = time.perf_counter()
        self._check(run)
        run.log.write(self.step, "validation", self._validated())
        run.speed_from += time.perf_counter() - pause

    def _revised(self, run: _Run, revise: Callable[[nn.Module, torch.device], None]) -> None:
        """Let what comes be changed by what was learnt, once; batches that were made in advance are made anew."""
        pause = time.perf_counter()
        self._looked_at(revise)
        self.revise, run.batches = None, self._batches()
        run.speed_from += time.perf_counter() - pause

    def _validated(self) -> dict[str, float]:
        assert self.validate is not None
        return self._looked_at(self.validate)

    @torch.no_grad()
    def _looked_at(self, look: Callable[[nn.Module, torch.device], _Nested]) -> _Nested:
        """What a function says of the model in evaluation mode, with averaged weights if there are any."""
        self.model.eval()
        try:
            with self._averaged():
                # All processes do the same: sharing would save seconds, and shards must be gathered in step anyway.
                torch.manual_seed(_mix(self.config.seed, _VALIDATION, 0))
                with self._autocast():
                    return look(self.bare, self.accelerator.device)
        finally:
            self.model.train()

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the average, if there is one, into the model for the time of the block."""
        with self.average.applied() if self.average else contextlib.nullcontext():
            try:
                yield
            finally:
                if shards():
                    cast("FSDPModule", self.bare).reshard()  # what was gathered may be the averages

    def _stop_if_told(self, run: _Run, signals: _Signals) -> None:
        wish = signals.received is not None or processes.orphaned()
        stop, heard = self._votes.cast(wish, self._time_used())
        run.time_used = max(run.time_used, heard)
        if stop:
            self._checkpoint(run)
            raise KeyboardInterrupt

    def _checkpoint(self, run: _Run) -> None:
        """Write the checkpoint and the state; nothing, if a loss was not a number."""
        self._check(run)
        self.seconds = time.perf_counter() - run.began
        if not processes.is_main() and not shards():
            return
        with self.average.applied() if self.average else contextlib.nullcontext():
            self._save_weights()
        save_state(self.folder, self.step, self.seconds, self.bare, self.optimizer, self.average)

    def _save_weights(self) -> None:
        if not shards():
            self.save(self.folder, self.bare)
            return
        weights = whole(self.bare.state_dict())
        if self._empty is not None:
            full = copy.deepcopy(self._empty)
            full.load_state_dict(weights, assign=True)
            self.save(self.folder, full)

    def _check(self, run: _Run) -> None:
        """Raise if any process met a loss that is not a number; all must ask at once."""
        step = self._votes.earliest(int(run.bad_step))
        if step >= 0:
            self._complain(step, step == int(run.bad_step))

    def _complain(self, step: int, own: bool = True) -> None:
        parts = [self._micro_batch(number) for number in range(self.config.accumulate)]
        words = "; ".join(self.describe(step, part) for part in parts) if own else "of another process"
        raise UserError(
            f"{self.folder}: the loss of step {step} is not a number (batch: {words}); lower train.learning_rate, use "
            "train.precision=fp32, or leave out a damaged episode"
        )

    # Batches

    def _micro_batch(self, number: int) -> MicroBatch:
        """Return what this process takes in the update's backward pass `number`."""
        return MicroBatch(number * self.world + self.rank, self.config.accumulate * self.world)

    def _batches(self) -> Iterator[Batch]:
        config = self.config

        def of(index: int) -> Batch:
            step, number = divmod(index, config.accumulate)
            return self.batch_of(step, self._micro_batch(number))

        first, end = self.step * config.accumulate, config.steps * config.accumulate
        if config.workers == 0:
            return (of(index) for index in range(first, end))
        loader = torch.utils.data.DataLoader(
            _Batches(of, first, end),
            batch_size=None,
            num_workers=config.workers,
            pin_memory=self.accelerator.device.type == "cuda",
            worker_init_fn=_one_thread,
            multiprocessing_context="fork",
        )
        return iter(loader)


class _Batches(torch.utils.data.Dataset):
    def __init__(self, of: Callable[[int], Batch], start: int, end: int) -> None:
        self.of, self.start, self.end = of, start, end

    def __len__(self) -> int:
        return self.end - self.start

    def __getitem__(self, index: int) -> Batch:
        return self.of(self.start + index)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


class _Signals:
    """Notes SIGINT and SIGTERM so that the loop can save and stop between two updates; a second one stops at once."""

    def __enter__(self) -> _Signals:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _mix(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step * 7919 + rank * 104_729) % (1 << 62)
