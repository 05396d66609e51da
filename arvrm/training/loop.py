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
import json
import math
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from arvrm import processes
from arvrm.interface import UserError
from arvrm.model.split_batch import Share, holding
from arvrm.model.transformer import attention_kernel, compile_blocks
from arvrm.training.distribution import (
    Piece,
    Votes,
    check_division,
    local,
    make_accelerator,
    placed,
    shards,
    whole,
)

Batch = dict[str, Any]


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
        beta2: AdamW's second beta (the first is 0.9).
        clip: largest gradient norm; null: no clipping.
        ema: decay of the averaged weights that are saved and validated, such as 0.999; 0 or null: none.
        precision: bf16 is autocast; weights and optimiser stay fp32.
        attention: how it is computed, see `model.transformer.attention_kernel`.
        compile: compile the network's blocks with torch.compile; the first step takes a minute or more.
        device: "auto" takes a GPU where there is one.
        seed: of weights, batches and augmentations.
        log_every, validate_every, checkpoint_every: updates; 0: never (a checkpoint is always written at the end).
        workers: processes that prepare batches; 0 prepares them in this one, best where frames are in memory.
        max_minutes: stop after this time over all resumed runs. The schedule then follows the larger of the shares of
            steps and of time, so that it always ends at its end; such a run is not reproducible to the bit.
        tensorboard: write TensorBoard files.
    """

    steps: int = 1000
    batch: int = 128
    accumulate: int = 1
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.0
    warmup: int = 50
    weight_decay: float = 0.01
    beta2: float = 0.99
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
    max_minutes: float | None = None
    tensorboard: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")
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


def learning_rate(config: TrainConfig, step: int, share_of_time: float = 0.0) -> float:
    """Return the rate of update `step` (0 is the first): linear warm-up, then a cosine."""
    warm = min(1.0, (step + 1) / (config.warmup + 1))
    progress = min(1.0, max((step - config.warmup) / max(1, config.steps - config.warmup), share_of_time, 0.0))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * warm * (config.final_learning_rate + (1 - config.final_learning_rate) * cosine)


def parameter_groups(
    model: nn.Module, weight_decay: float, slower: tuple[str, float] | None = None
) -> list[dict[str, Any]]:
    """Return AdamW's groups: matrices decay, vectors and scalars (norms, biases) do not, frozen ones are left out.

    Args:
        slower: a prefix of names, and the share of the learning rate ("rate_share") at which those are trained. They
            come last, in groups of their own.
    """
    prefix, share = slower or ("", 1.0)
    rest, slow = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (slow if share != 1.0 and name.startswith(prefix) else rest).append(parameter)
    return [
        {"params": [p for p in part if (p.ndim >= 2) == matrices], "weight_decay": decay, **rate}
        for part, rate in ((rest, {}), (slow, {"rate_share": share}))
        if part
        for matrices, decay in ((True, weight_decay), (False, 0.0))
    ]


class Average:
    """Exponential moving average of a model's parameters, kept beside them."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.mean = [parameter.detach().clone() for parameter in self.live]
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        # Early on a shorter average: the first weights are noise.
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(local(self.mean), self._live(), 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages into the model for the time of the block."""
        live, kept = self._live(), [parameter.detach().clone() for parameter in self._live()]
        torch._foreach_copy_(live, local(self.mean))
        try:
            yield
        finally:
            torch._foreach_copy_(live, kept)

    def _live(self) -> list[Tensor]:
        return local([parameter.detach() for parameter in self.live])


class _Steps(torch.utils.data.Dataset):
    def __init__(self, batch_of: Callable[[int], Batch], start: int, end: int) -> None:
        self.batch_of, self.start, self.end = batch_of, start, end

    def __len__(self) -> int:
        return self.end - self.start

    def __getitem__(self, index: int) -> Batch:
        return self.batch_of(self.start + index)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a nested batch."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    return batch


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


def write_json(file: Path, value: Any) -> None:
    """Write JSON to a temporary name beside `file`, then rename."""
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=".tmp")
    with os.fdopen(handle, "w") as stream:
        json.dump(value, stream, indent=1)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)


class _Signals:
    """Notes SIGINT and SIGTERM so that the loop can save and stop between two updates; a second one stops at once."""

    def __enter__(self) -> _Signals:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: Any) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _Log:
    def __init__(self, folder: Path, step: int, tensorboard: bool, enabled: bool) -> None:
        self.file = folder / "metrics.jsonl"
        self.last: dict[str, dict[str, float]] = {}
        self._writer = self._stream = None
        if not enabled:
            return
        # A resumed run repeats the steps after its checkpoint: their lines are written again.
        kept = []
        if self.file.exists():
            for line in self.file.read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # the last line of a killed run may be cut
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
        handle, temporary = tempfile.mkstemp(dir=folder, prefix="metrics", suffix=".tmp")
        with os.fdopen(handle, "w") as stream:
            stream.writelines(kept)
        os.replace(temporary, self.file)
        self._stream = open(self.file, "a", buffering=1)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        self.last[split] = values
        if self._stream:
            self._stream.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        if self._stream:
            self._stream.close()
        if self._writer:
            self._writer.close()


class Trainer:
    """Trains `model` for `config.steps` updates.

    Args:
        model: `model(batch)` gives a dictionary of tensors; "loss" is minimised, all scalars are logged.
        batch_of: (step, piece) -> that piece of the update's batch, as CPU tensors. The batch must depend on the step
            alone, whatever it is cut into.
        folder: the run's folder, see the module.
        save: called with the folder and the bare model (averaged weights if config.ema) to write the checkpoint's files
            there, each under a temporary name first.
        validate: called with the model in evaluation mode; returns numbers to log as split "validation".
        describe: (step, piece) -> words that name its episodes, for the message about a loss that is not a number.
        name: what the progress bar calls the run.
        slower: see `parameter_groups`.
    """

    def __init__(
        self,
        model: nn.Module,
        batch_of: Callable[[int, Piece], Batch],
        config: TrainConfig,
        folder: Path,
        save: Callable[[Path, nn.Module], None],
        validate: Callable[[nn.Module, torch.device], dict[str, float]] | None = None,
        describe: Callable[[int, Piece], str] = lambda step, piece: str(step),
        name: str = "train",
        slower: tuple[str, float] | None = None,
    ) -> None:
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
        groups = parameter_groups(self.bare, config.weight_decay, slower)
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=True)
        self.model, self.optimizer = self.accelerator.prepare(self.bare, optimizer)
        if shards() and hasattr(self.bare, "predict_next"):
            from torch.distributed.fsdp import register_fsdp_forward_method

            register_fsdp_forward_method(self.bare, "predict_next")  # validation calls it
        self.average = Average(self.bare, config.ema) if config.ema else None
        self.step, self.seconds = 0, 0.0
        self._votes, self._share_held = Votes(), None
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        if world > 1:
            self._share_held = Share(rank, world, torch.distributed.all_reduce, torch.Generator(device))
        # Reading a number from a GPU would let it run dry at every step; from a CPU it costs nothing.
        self.check_now = device.type == "cpu"

    def run(self, resume: bool = False, progress: bool = True) -> TrainResult:
        """Train, or go on where a killed run's last checkpoint is.

        Raises:
            UserError: the loss is not a number (with step and episodes), or the state cannot be read.
            KeyboardInterrupt: on SIGINT or SIGTERM, after a checkpoint was written.
        """
        from tqdm import tqdm

        config, accelerator = self.config, self.accelerator
        main = accelerator.is_main_process
        if resume:
            self._load()
        log = _Log(self.folder, self.step, config.tensorboard, main)
        terminal = sys.stderr.isatty()
        bar = tqdm(
            total=config.steps,
            initial=self.step,
            desc=self.name,
            unit="step",
            disable=not (progress and main),
            mininterval=0.5 if terminal else 15.0,
            file=sys.stderr,
        )
        batches = self._batches()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if shards():
            parameters = list(self.bare.parameters())  # accelerate tells by their order whose they are
        share = self._share_of_time()
        bad_step = torch.full((), -1, dtype=torch.long, device=accelerator.device)
        sums: dict[str, Tensor] = {}
        since = 0
        self.model.train()
        began, window_began = time.perf_counter() - self.seconds, time.perf_counter()
        try:
            with _Signals() as signals, attention_kernel(config.attention, self.bare):
                while self.step < config.steps:
                    self.seconds = time.perf_counter() - began
                    if accelerator.num_processes == 1:
                        share = self._share_of_time()
                    if share >= 1:
                        break
                    rate = learning_rate(config, self.step, share)
                    for group in self.optimizer.param_groups:
                        group["lr"] = rate * group.get("rate_share", 1.0)
                    torch.manual_seed(_mix(config.seed, self.step, accelerator.process_index))
                    if self._share_held:
                        self._share_held.generator.manual_seed(_mix(config.seed, self.step, 0))
                    for _ in range(config.accumulate):
                        batch = to_device(next(batches), accelerator.device)
                        with accelerator.accumulate(self.model):
                            with holding(self._share_held), self._autocast():
                                losses = self.model(batch)
                            accelerator.backward(losses["loss"])
                            for key, value in losses.items():
                                if value.ndim == 0:
                                    value = value.detach()
                                    sums[key] = sums[key] + value if key in sums else value
                            if accelerator.sync_gradients and config.clip is not None:
                                norm = accelerator.clip_grad_norm_(parameters, config.clip)
                                norm = norm.full_tensor() if shards() else norm
                                sums["gradient_norm"] = sums.get("gradient_norm", 0.0) + norm * config.accumulate
                            loss = losses["loss"].detach()
                            now_at = torch.full_like(bad_step, self.step)  # made on the device, unlike a plain number
                            bad_step = torch.where((bad_step < 0) & ~loss.isfinite(), now_at, bad_step)
                            if self.check_now and int(bad_step) >= 0:
                                self._complain(int(bad_step))
                            self.optimizer.step()
                            self.optimizer.zero_grad(set_to_none=True)
                    if self.average:
                        self.average.update()
                    self.step += 1
                    since += 1
                    bar.update()
                    last = self.step == config.steps
                    if config.log_every and (self.step % config.log_every == 0 or last):
                        self._check(bad_step)
                        now = time.perf_counter()
                        speed = since * config.batch / (now - window_began)
                        sums = self._meant(sums)
                        values = {key: float(value) / (since * config.accumulate) for key, value in sums.items()}
                        self.seconds = now - began
                        extra = {"learning_rate": rate, "windows_per_second": speed, "seconds": self.seconds}
                        log.write(self.step, "train", values | extra)
                        bar.set_postfix_str(f"loss {values['loss']:.4g}, {speed:.0f} windows/s")
                        sums, since, window_began = {}, 0, now
                    if self.validate and config.validate_every and (self.step % config.validate_every == 0 or last):
                        pause = time.perf_counter()
                        self._check(bad_step)
                        log.write(self.step, "validation", self._validated())
                        window_began += time.perf_counter() - pause
                    if last:
                        break
                    wish = signals.received is not None or processes.orphaned()
                    stop, heard = self._votes.cast(wish, self._share_of_time())
                    share = max(share, heard)
                    if stop:
                        self._check(bad_step)
                        self._checkpoint(began)
                        raise KeyboardInterrupt
                    if config.checkpoint_every and self.step % config.checkpoint_every == 0:
                        self._check(bad_step)
                        self._checkpoint(began)
                self._check(bad_step)
                if self.step < config.steps and self.validate and config.validate_every:
                    log.write(self.step, "validation", self._validated())  # the time budget ended between two
                self._checkpoint(began)
                self._votes.meet()
        finally:
            bar.close()
            log.close()
        return TrainResult(self.folder, self.step, self.seconds, log.last)

    def _share_of_time(self) -> float:
        """Return the used share of `max_minutes`."""
        return self.seconds / (60 * self.config.max_minutes) if self.config.max_minutes else 0.0

    def _autocast(self) -> contextlib.AbstractContextManager:
        """bf16 for a network in shards; accelerate sees to the others."""
        if not shards() or self.config.precision != "bf16":
            return contextlib.nullcontext()
        return torch.autocast(self.accelerator.device.type, torch.bfloat16)

    def _meant(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the means of the processes' sums."""
        if self._share_held is None or not sums:
            return sums
        names = sorted(sums)
        values = self.accelerator.reduce(torch.stack([sums[name].float() for name in names]), "mean")
        return dict(zip(names, values.unbind(), strict=True))

    def _batches(self) -> Iterator[Batch]:
        config, accelerator = self.config, self.accelerator
        world, rank = accelerator.num_processes, accelerator.process_index

        def of(index: int) -> Batch:
            step, number = divmod(index, config.accumulate)
            return self.batch_of(step, Piece(number * world + rank, config.accumulate * world))

        first, end = self.step * config.accumulate, config.steps * config.accumulate
        if config.workers == 0:
            return (of(index) for index in range(first, end))
        loader = torch.utils.data.DataLoader(
            _Steps(of, first, end),
            batch_size=None,
            num_workers=config.workers,
            pin_memory=accelerator.device.type == "cuda",
            worker_init_fn=_one_thread,
            multiprocessing_context="fork",
        )
        return iter(loader)

    def _check(self, bad_step: Tensor) -> None:
        """Raise if any process met a loss that is not a number; all must ask at once."""
        step = self._votes.earliest(int(bad_step))
        if step >= 0:
            self._complain(step, step == int(bad_step))

    def _complain(self, step: int, own: bool = True) -> None:
        config, world, rank = self.config, self.accelerator.num_processes, self.accelerator.process_index
        pieces = [Piece(number * world + rank, config.accumulate * world) for number in range(config.accumulate)]
        words = "; ".join(self.describe(step, piece) for piece in pieces) if own else "of another process"
        raise UserError(
            f"{self.folder}: the loss of step {step} is not a number (batch: {words}); lower train.learning_rate, use "
            "train.precision=fp32, or leave out a damaged episode"
        )

    @torch.no_grad()
    def _validated(self) -> dict[str, float]:
        self.model.eval()
        try:
            with self.average.applied() if self.average else contextlib.nullcontext():
                # All processes do the same: sharing would save seconds, and shards must be gathered in step anyway.
                torch.manual_seed(_mix(self.config.seed, 1 << 40, 0))
                try:
                    with self._autocast():
                        return self.validate(self.bare, self.accelerator.device)
                finally:
                    if shards():
                        self.bare.reshard()  # what was gathered may be the averages
        finally:
            self.model.train()

    def _checkpoint(self, began: float) -> None:
        self.seconds = time.perf_counter() - began
        main = self.accelerator.is_main_process
        if not main and not shards():
            return
        with self.average.applied() if self.average else contextlib.nullcontext():
            if shards():
                weights = whole(self.bare.state_dict())
                if main:
                    full = copy.deepcopy(self._empty)
                    full.load_state_dict(weights, assign=True)
                    self.save(self.folder, full)
            else:
                self.save(self.folder, self.bare)
        values = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.bare.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average and {"mean": self.average.mean, "updates": self.average.updates},
        }
        if shards():
            values = whole(values)
        if not main:
            return
        state = self.folder / "state"
        state.mkdir(exist_ok=True)
        name = f"step-{self.step:08d}"
        temporary = Path(tempfile.mkdtemp(dir=state, suffix=".tmp"))
        with open(temporary / "trainer.pt", "wb") as stream:
            torch.save(values, stream)
            stream.flush()
            os.fsync(stream.fileno())
        if (state / name).exists():
            shutil.rmtree(state / name)
        os.replace(temporary, state / name)
        write_json(state / "latest.json", {"folder": name, "step": self.step})
        for other in state.iterdir():
            if other.is_dir() and other.name != name:
                shutil.rmtree(other)

    def _load(self) -> None:
        state = self.folder / "state"
        if not (state / "latest.json").exists():
            return  # killed before its first checkpoint: the beginning is the place to go on from
        try:
            file = state / json.loads((state / "latest.json").read_text())["folder"] / "trainer.pt"
            where = "cpu" if shards() or self.accelerator.device.type == "cpu" else self.accelerator.device
            values = torch.load(file, map_location=where, weights_only=True)
            self._take(values)
            if (values["average"] is None) != (self.average is None):
                raise ValueError("train.ema was switched")
            if self.average:
                own = self.average.mean
                given = [placed(mean, like) for mean, like in zip(values["average"]["mean"], own, strict=True)]
                torch._foreach_copy_(local(own), local(given))
                self.average.updates = values["average"]["updates"]
            self.step, self.seconds = values["step"], values["seconds"]
        except (OSError, EOFError, LookupError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{state}: cannot be resumed ({reason}); restart with --overwrite") from error

    def _take(self, values: dict[str, Any]) -> None:
        """Load weights and optimiser, whole as they are written, into what this process holds of them."""
        own = self.bare.state_dict()
        model = {name: placed(value, own[name]) if name in own else value for name, value in values["model"].items()}
        self.bare.load_state_dict(model)
        optimizer = values["optimizer"]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state = {
            index: {key: placed(v, parameters[index]) if key != "step" else v for key, v in moments.items()}
            for index, moments in optimizer["state"].items()
        }
        self.optimizer.load_state_dict({**optimizer, "state": state})


def _mix(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step * 7919 + rank * 104_729) % (1 << 62)
