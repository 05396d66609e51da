"""A batch split over several processes in equal shares: how one of them computes what it would with the whole batch.

A loss is a mean over what a mask lets count, and shares rarely let as much count as each other. So each process divides
its sum by the count of all of them over their number: the mean over the processes, which is what becomes of gradients,
is then the mean over the batch. And what is drawn for each row (an image's shift, noise) is drawn for all rows of the
batch, by a generator that all processes seed alike, and each takes its own. Dropout is drawn by each for itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """One process's share.

    Attributes:
        number, of: which of how many, all of the same size.
        total: sums a tensor over the processes, in place.
        generator: on the batch's device, in the same state in every process.
    """

    number: int
    of: int
    total: Callable[[Tensor], object]
    generator: torch.Generator


_share: Share | None = None


@contextlib.contextmanager
def holding(share: Share | None) -> Iterator[None]:
    """Say that batches are shares, for the time of the block; None: they are whole, as they are without it."""
    global _share
    before, _share = _share, share
    try:
        yield
    finally:
        _share = before


def _total(count: Tensor, share: Share) -> Tensor:
    count = count.detach().to(torch.float32)
    share.total(count)
    return count.clamp(min=1) / share.of


def divisor(count: Tensor) -> Tensor:
    """Return what a sum over `count` things is divided by to become their mean; 1 at least, as of an empty batch."""
    return count.clamp(min=1) if _share is None else _total(count, _share)


def draw_rows(draw: Callable[[int, torch.Generator | None], Tensor], rows: int) -> Tensor:
    """Return this process's `rows` rows of what `draw(rows of the whole batch, generator)` gives."""
    if _share is None:
        return draw(rows, None)
    return _own(draw, rows, _share)


def _own(draw: Callable[[int, torch.Generator | None], Tensor], rows: int, share: Share) -> Tensor:
    return draw(rows * share.of, share.generator)[rows * share.number : rows * (share.number + 1)]
