"""Computing with some of torch's threads for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """Let torch use so many threads in the block (None: as many as before); afterwards it uses as many as before.

    The number is the whole process's: left as it was set, whoever computes next would go on with it.
    """
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
