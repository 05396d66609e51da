"""Computing with some of torch's threads for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """Let torch use so many threads in the block, and afterwards as many as before; None: nothing is changed.

    The number is the whole process's: left as it was set, whoever computes next would go on with it. So the blocks of
    several Python threads must not overlap.
    """
    if number is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
