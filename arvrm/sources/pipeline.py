"""Reads and encodes episodes in parallel and stores them in order: what all converters share.

Threads where the work releases the interpreter (inflating, checksums, JPEG, tensors' copies): they start at once and
hand over results without copying them. Processes, each with its own detector, for videos of hands.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from arvrm.episodes import EncodedEpisode, Episode, EpisodeWriter, encode_episode
from arvrm.interface import UserError

COMMIT = 8
"""Episodes in one transaction: what a killed run may have to convert again. Fixed, so that the bytes are."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class LeftOut(Exception):
    """An episode that cannot be converted: why, and which of the source's steps are to blame (step -> reason)."""

    def __init__(self, reason: str, damaged: dict[int, str] | None = None) -> None:
        super().__init__(reason)
        self.reason, self.damaged = reason, damaged or {}


def encode_in_order(
    items: Sequence[Item],
    read: Callable[[Item], Episode],
    steps: Callable[[Item], int],
    jpeg_quality: int,
    workers: int = 0,
    label: str = "convert",
) -> Iterator[tuple[Item, EncodedEpisode | LeftOut]]:
    """Yield every item with its encoded episode, in order whatever the number of workers, a few in memory at a time.

    Args:
        read: makes the episode of an item; raises LeftOut (or UserError) where that cannot be.
        steps: the item's steps, for the progress shown on stderr.
        workers: threads; 0: one per core.
    """
    workers = workers or os.cpu_count() or 1

    def encode(item: Item) -> EncodedEpisode | LeftOut:
        try:
            return encode_episode(read(item), jpeg_quality)
        except LeftOut as reason:
            return reason
        except UserError as error:
            return LeftOut(str(error))
        except Exception as error:  # whatever a library meets in one damaged item, the others go on
            return LeftOut(f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())})")

    with ThreadPoolExecutor(workers, "convert") as pool:
        yield from in_order(items, pool, encode, steps, 2 * workers, label)


def in_order(
    items: Sequence[Item],
    pool: Executor,
    encode: Callable[[Item], Result],
    steps: Callable[[Item], int],
    ahead: int,
    label: str = "convert",
    unit: str = " steps",
) -> Iterator[tuple[Item, Result]]:
    """Yield every item with what `encode` made of it in `pool`, in order; at most `ahead` others are under way."""
    bar = tqdm(
        total=sum(map(steps, items)),
        desc=label,
        unit=unit,
        file=sys.stderr,
        disable=not items,
        mininterval=0.5 if sys.stderr.isatty() else 10.0,
    )
    pending: deque[tuple[Item, Future]] = deque()

    def finished(item: Item, future: Future) -> tuple[Item, Result]:
        result = future.result()
        bar.update(steps(item))
        return item, result

    with bar:
        try:
            for item in items:
                pending.append((item, pool.submit(encode, item)))
                if len(pending) > ahead:
                    yield finished(*pending.popleft())
            while pending:
                yield finished(*pending.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def store_in_order(
    writer: EpisodeWriter, results: Iterator[tuple[Item, EncodedEpisode | LeftOut]], commit: int | None = None
) -> list[tuple[Item, LeftOut]]:
    """Append all that was encoded, `commit` (COMMIT) episodes at a time; return what was left out."""
    commit = commit or COMMIT
    left_out, batch = [], []
    try:
        for item, result in results:
            if isinstance(result, LeftOut):
                left_out.append((item, result))
                continue
            batch.append(result)
            if len(batch) == commit:
                writer.append_encoded(*batch)
                batch = []
    except KeyboardInterrupt:  # keep what is finished
        rest = [episode for episode in batch if not writer.has(episode.id)]  # it may have come after they were stored
        if rest:
            writer.append_encoded(*rest)
        raise
    if batch:
        writer.append_encoded(*batch, complete=True)
    return left_out
