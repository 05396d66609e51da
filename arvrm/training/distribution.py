"""Several processes that train one network: which rows each takes, what they share, how shards become a whole again.

Every process holds a copy of the network (DDP), or with FSDP a shard of it; accelerate's configuration says which. What
is written is the same in each case: whole tensors, as one process would write them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from arvrm import processes
from arvrm.interface import UserError

SHARDED_ALONE = ("Block", "FullBlock", "FilmedLayer", "ViTMAELayer", "Dinov2Layer")
"""Classes whose instances FSDP gathers one by one; the rest of the network is one more group."""


@dataclass(frozen=True)
class MicroBatch:
    """What one process takes of an update's batch in one backward pass.

    Attributes:
        number, of: which of how many, all of one size: counted by backward pass, then by process. So any number of
            processes cuts the same batch, and with as many backward passes each pass has the same rows.
    """

    number: int = 0
    of: int = 1

    def rows(self, total: int) -> slice:
        """Return its rows of a batch of `total`, which `of` must divide."""
        size, rest = divmod(total, self.of)
        if rest:
            raise ValueError(f"{total} rows cannot be cut into {self.of} micro-batches of one size")
        return slice(self.number * size, (self.number + 1) * size)


WHOLE_BATCH = MicroBatch()


def check_division(batch: int, accumulate: int) -> None:
    """Raise UserError unless the run's processes can share a batch alike."""
    if batch % (accumulate * processes.world()):
        raise UserError(
            f"train.batch: {batch} is no multiple of {processes.world()} processes x {accumulate} (train.accumulate); "
            "choose a batch that is, or another number of processes"
        )


def make_accelerator(model: nn.Module, precision: str, accumulate: int, device: str) -> Any:
    """Return accelerate's `Accelerator`: DDP for several processes, or FSDP2 where its configuration asks for that.

    Raises:
        UserError: the device is not there, or FSDP is asked for in a form that is not supported.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device: cuda is asked for but torch sees no GPU; use cpu or auto")
    # accelerate keeps one state per process; two runs in one process may differ in precision and device.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    cpu = device == "cpu" or not torch.cuda.is_available()
    if shards():
        return _fsdp(model, accumulate, cpu)
    return Accelerator(
        mixed_precision="bf16" if precision == "bf16" else "no",
        gradient_accumulation_steps=accumulate,
        cpu=cpu,
        # Weights that a switch leaves without a gradient (the keypoint head without clips) are no error.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def shards() -> bool:
    """Whether accelerate's configuration asks for FSDP, and there are processes to share the network."""
    return processes.world() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _fsdp(model: nn.Module, accumulate: int, cpu: bool) -> Any:
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise UserError("fsdp_config.fsdp_version: only 2 is supported; set it in accelerate's configuration")
    if cpu and torch.cuda.is_available():
        raise UserError("train.device: FSDP would use the GPUs; hide them with CUDA_VISIBLE_DEVICES=, or train there")
    present = {type(module).__name__ for module in model.modules()}
    alone = [name for name in SHARDED_ALONE if name in present]
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        # fp32 as in DDP; bf16 is autocast there and here.
        mixed_precision_policy=MixedPrecisionPolicy(),
        auto_wrap_policy="transformer_based_wrap" if alone else "no_wrap",
        transformer_cls_names_to_wrap=alone or None,
        cpu_ram_efficient_loading=False,
    )
    accelerator = Accelerator(gradient_accumulation_steps=accumulate, cpu=cpu, fsdp_plugin=plugin, mixed_precision="no")
    # On a CPU accelerate takes FSDP back, though torch can do it (gloo).
    PartialState._shared_state["distributed_type"] = accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    return accelerator


def whole(value: Any) -> Any:
    """Return nested state with its shards gathered; every process must call it, in the same order.

    The first process gets them on the CPU, the others get empty tensors in their place. What is no shard stays.
    """
    from torch.distributed.tensor import DTensor

    if isinstance(value, DTensor):
        gathered = value.detach().full_tensor()
        return gathered.cpu() if processes.is_main() else gathered.new_empty(0)
    if isinstance(value, dict):
        return {key: whole(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [whole(inner) for inner in value]
    return value


def placed(full: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor as `like` is held: this process's shard of it, or itself."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or isinstance(full, DTensor):
        return full
    full = full.to(like.device)
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)


def local(tensors: list[Tensor]) -> list[Tensor]:
    """Return what this process holds of `tensors`, sharing their memory."""
    from torch.distributed.tensor import DTensor

    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


class Votes:
    """What the processes tell each other at every step, without waiting: they hear it one step later, all at once.

    A process that is alone hears itself at once.
    """

    def __init__(self) -> None:
        self._group = torch.distributed.new_group(backend="gloo") if processes.world() > 1 else None
        self._pending: tuple[Any, Tensor] | None = None

    def cast(self, stop: bool, time_used: float) -> tuple[bool, float]:
        """Return whether any process wants to stop, and the first process's `time_used` (fraction of the time budget).

        Raises:
            RuntimeError: a process is gone.
        """
        if self._group is None:
            return stop, time_used
        heard = self._heard()
        numbers = torch.tensor([float(stop), time_used if processes.is_main() else 0.0], dtype=torch.float64)
        self._pending = torch.distributed.all_reduce(numbers, group=self._group, async_op=True), numbers
        return heard

    def _heard(self) -> tuple[bool, float]:
        if self._pending is None:
            return False, 0.0
        work, numbers = self._pending
        self._pending = None
        work.wait()
        return bool(numbers[0] > 0), float(numbers[1])

    def earliest(self, step: int) -> int:
        """Return the smallest of the processes' steps that are not negative; -1 without one. All must ask at once."""
        if self._group is None:
            return step
        self._drain()
        number = torch.tensor(step if step >= 0 else 1 << 62)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MIN, group=self._group)
        return int(number) if int(number) < 1 << 62 else -1

    def meet(self) -> None:
        """Wait for all."""
        if self._group is not None:
            self._drain()
            torch.distributed.barrier(group=self._group)

    def _drain(self) -> None:
        if self._pending is not None:
            self._pending[0].wait()
