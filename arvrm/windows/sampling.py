"""Which windows a run sees: splits by group, few-shot selections, and draws by share that resume at any step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import DTypeLike

from arvrm.interface import UserError
from arvrm.windows.table import EpisodeTable


def _lottery(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


def held_out_groups(groups: Sequence[str], fraction: float, seed: int) -> frozenset[str]:
    """Choose the groups of the validation split: the same for every order of `groups`, and never all of them.

    Raises:
        UserError: `fraction` is not in [0, 1), or there is one group only, so that it cannot be split.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"validation fraction {fraction}: give a number from 0 to below 1")
    names = sorted(set(groups), key=lambda name: _lottery(seed, name))
    if fraction == 0:
        return frozenset()
    if len(names) < 2:
        raise UserError(f"validation fraction {fraction}: all episodes are in one group ({names[0]}); give 0")
    return frozenset(names[: min(len(names) - 1, max(1, round(fraction * len(names))))])


def split_episodes(table: EpisodeTable, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return episode rows (train, validation); no group is in both."""
    held_out = held_out_groups(table.groups, fraction, seed)
    in_validation = np.array([name in held_out for name in table.groups])[table.group]
    return np.flatnonzero(~in_validation), np.flatnonzero(in_validation)


def few_shot(table: EpisodeTable, episodes: np.ndarray, per_task: int | None, seed: int) -> np.ndarray:
    """Keep at most `per_task` of `episodes` for each task. A larger number keeps a superset of a smaller one's."""
    if per_task is None:
        return episodes
    if per_task < 1:
        raise UserError(f"episodes_per_task {per_task}: give at least 1, or null for all")
    kept: dict[int, int] = {}
    chosen = []
    for episode in sorted(episodes, key=lambda e: _lottery(seed, table.ids[e])):
        count = kept.get(int(table.task[episode]), 0)
        if count < per_task:
            kept[int(table.task[episode])] = count + 1
            chosen.append(episode)
    return np.sort(np.asarray(chosen, dtype=np.int64))


class Anchors:
    """Frames that may end a window, ascending, as runs of consecutive ones: 24 bytes a run, of which an episode has
    one. It can be indexed, and turned into an array, like the rows themselves.

    Attributes:
        episode, first, count: (R,) int64: whose frames, the first one's row, how many; each run within one episode.
    """

    def __init__(self, episode: np.ndarray, first: np.ndarray, count: np.ndarray) -> None:
        some = count > 0
        self.episode, self.first, self.count = episode[some], first[some], count[some]
        self.end = np.cumsum(self.count)

    @classmethod
    def of(cls, table: EpisodeTable, rows: np.ndarray | Anchors) -> Anchors:
        """Return `rows` (ascending) as runs."""
        if isinstance(rows, Anchors):
            return rows
        rows = np.asarray(rows, dtype=np.int64)
        if not len(rows):
            return cls(rows, rows, rows)
        episode = table.episode_of_image[rows]
        begins = np.flatnonzero(np.concatenate([[True], (np.diff(rows) != 1) | (np.diff(episode) != 0)]))
        return cls(episode[begins], rows[begins], np.diff([*begins, len(rows)]))

    def __len__(self) -> int:
        return int(self.end[-1]) if len(self.end) else 0

    def __getitem__(self, index: slice | int | np.integer | np.ndarray) -> np.ndarray:
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        index = np.asarray(index)
        index = np.where(index < 0, index + len(self), index)
        run = np.searchsorted(self.end, index, side="right")
        return self.first[run] + index - (self.end - self.count)[run]

    def __array__(self, dtype: DTypeLike = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.int64, copy=False)

    def tolist(self) -> list[int]:
        return self[:].tolist()


def cell_counts(table: EpisodeTable, anchors: np.ndarray | Anchors) -> np.ndarray:
    """Return (stores, tasks) float64, how many of `anchors` are of each store and task."""
    runs, stores = Anchors.of(table, anchors), int(table.entries.max()) + 1
    cell = table.entry[runs.episode].astype(np.int64) * len(table.tasks) + table.task[runs.episode]
    return np.bincount(cell, runs.count, stores * len(table.tasks)).reshape(stores, -1)


def mixing_shares(
    table: EpisodeTable,
    anchors: np.ndarray | Anchors,
    weights: Sequence[float] | None = None,
    balance_tasks: bool = True,
) -> np.ndarray:
    """Return (stores, tasks) float64, the share of all draws that each store's windows of a task get; they sum to 1.

    Each store gets its share of `weights` (None: its share of the anchors); within a store each task gets the same
    share if `balance_tasks`; within a task all anchors are equal. "Store" means what `EpisodeTable.entries` mixes like
    one; there is one row for each of those.
    """
    in_cell = cell_counts(table, anchors)
    stores, counts = len(in_cell), in_cell.sum(axis=1)
    if weights is None:
        share = counts / counts.sum()
    else:
        share = np.asarray(weights, dtype=np.float64)
        if len(share) != stores:
            raise UserError(f"weights: {len(share)} given for {stores} stores; give one per store")
        if (share < 0).any() or not (share * (counts > 0)).sum() > 0:
            raise UserError(f"weights {list(weights)}: give numbers from 0, at least one positive with episodes")
        share = share * (counts > 0)
        share = share / share.sum()
    within = (in_cell > 0).astype(np.float64) if balance_tasks else in_cell
    shares = share[:, None] * within / np.maximum(within.sum(axis=1, keepdims=True), 1)
    return shares / shares.sum()


class AnchorSampler:
    """Draws anchors by share; the draw of a step depends on (seed, step) alone, so a run resumes at any step.

    Draws are stratified: the cumulated shares, in order of store, task and time, are cut into B equal parts and one
    anchor is drawn from each. The expected count of every anchor is B times its weight, exactly, and tasks hardly
    fluctuate. It holds 40 bytes an episode and nothing for a window.

    Orders:
        "random": each draw is independent of those before.
        "epochs": an epoch is ceil(A / B) steps of A anchors in all; in it every one of the B parts is gone through,
            evenly, in an order of its own, so that an anchor of weight w comes floor(wM) or ceil(wM) times in the
            epoch's M draws: with equal weights each one comes at least once and fewer than B come twice. The order is a
            keyed permutation computed where it is needed (`permuted`).

    Args:
        shares: (stores, tasks), see `mixing_shares`.
    """

    def __init__(
        self,
        table: EpisodeTable,
        anchors: np.ndarray | Anchors,
        shares: np.ndarray,
        seed: int,
        order: Literal["random", "epochs"] = "random",
    ) -> None:
        runs = Anchors.of(table, anchors)
        if len(runs) == 0:
            raise UserError("no window to draw from: the split or the selection left no episode; give more data")
        cell = table.entry[runs.episode].astype(np.int64) * len(table.tasks) + table.task[runs.episode]
        wanted = np.flatnonzero(shares.reshape(-1)[cell] > 0)
        wanted = wanted[np.lexsort((runs.first[wanted], cell[wanted]))]
        cell = cell[wanted]
        self.first, self.run_end = runs.first[wanted], np.cumsum(runs.count[wanted])
        self.run_begin = self.run_end - runs.count[wanted]
        last = np.flatnonzero(np.concatenate([np.diff(cell) != 0, [True]]))  # each cell's last run
        self.share_end = np.cumsum(shares.reshape(-1)[cell[last]])
        self.share_end /= self.share_end[-1]
        self.share_begin = np.concatenate([[0.0], self.share_end[:-1]])
        self.cell_end = self.run_end[last]
        self.cell_size = np.diff(self.cell_end, prepend=0)
        self.size, self.seed, self.order = int(self.run_end[-1]), seed, order

    def draw(self, step: int, batch: int) -> np.ndarray:
        """Return (batch,) anchors of this step, in random order."""
        rng = np.random.default_rng([self.seed, step])
        if self.order == "epochs":
            length = -(-self.size // batch)
            epoch, place = divmod(step, length)
            keys = np.random.default_rng([self.seed, epoch, 2]).integers(2**32, size=batch, dtype=np.uint64)
            slots = np.arange(batch) * length + permuted(np.full(batch, place), length, keys)
            # Where in its slot a draw lies: the golden ratio's multiples spread over the epochs as evenly as can be.
            within = (np.random.default_rng([self.seed, 3]).random() + epoch * 0.6180339887498949) % 1.0
            points = (slots + within) / (length * batch)
        else:
            points = (np.arange(batch) + rng.random(batch)) / batch
        return rng.permutation(self.at(points))

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all (A,) anchors, in the order in which their shares are cumulated, and (A,) their weights."""
        cell = np.searchsorted(self.cell_end, np.arange(self.size), side="right")
        run = np.searchsorted(self.run_end, np.arange(self.size), side="right")
        anchors = self.first[run] + np.arange(self.size) - self.run_begin[run]
        return anchors, ((self.share_end - self.share_begin) / self.cell_size)[cell]

    def at(self, points: np.ndarray) -> np.ndarray:
        """Return the anchors at `points`, in [0, 1), of the cumulated shares."""
        cell = np.minimum(np.searchsorted(self.share_end, points, side="right"), len(self.share_end) - 1)
        into = (points - self.share_begin[cell]) / (self.share_end[cell] - self.share_begin[cell])
        size = self.cell_size[cell]
        index = np.clip((into * size).astype(np.int64), 0, size - 1) + (self.cell_end - self.cell_size)[cell]
        run = np.searchsorted(self.run_end, index, side="right")
        return self.first[run] + index - self.run_begin[run]


def permuted(places: np.ndarray, length: int, keys: np.ndarray) -> np.ndarray:
    """Return where a keyed pseudo-random permutation of 0..length-1 puts `places`, without writing it down.

    Four Feistel rounds over the next even number of bits; what falls outside 0..length-1 is put through again, which
    ends inside and keeps it a bijection. Source: Luby and Rackoff, 1988; Black and Rogaway, 2002 (cycle walking).

    Args:
        places: (n,) integers in 0..length-1.
        keys: (n,) uint64, below 2**32, or one for all: which permutation.
    """
    half = np.uint64(max(1, -(-int(length - 1).bit_length() // 2)))
    mask = np.uint64((1 << int(half)) - 1)
    out = np.array(places, dtype=np.uint64)
    keys = np.broadcast_to(np.asarray(keys, dtype=np.uint64), out.shape)
    todo = np.arange(len(out))
    while len(todo):
        left, right = out[todo] >> half, out[todo] & mask
        for number in range(4):
            left, right = right, left ^ (_mixed(right, keys[todo], number) & mask)
        out[todo] = (left << half) | right
        todo = todo[out[todo] >= length]
    return out.astype(np.int64)


def _mixed(values: np.ndarray, keys: np.ndarray, number: int) -> np.ndarray:
    """Hash (value, key, round) to 64 bits. Source: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    x = (keys << np.uint64(32)) ^ values
    with np.errstate(over="ignore"):
        x = x + np.uint64((number + 1) * 0x9E3779B97F4A7C15 % 2**64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def in_batches(anchors: np.ndarray | Anchors, batch: int) -> Iterator[np.ndarray]:
    """Cut `anchors` into consecutive batches; the last one may be smaller."""
    for start in range(0, len(anchors), batch):
        yield anchors[start : start + batch]
