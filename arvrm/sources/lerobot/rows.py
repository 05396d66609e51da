"""Rows of a LeRobot data set: which file holds an episode's, which task each is of, and their columns as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arvrm.interface import UserError
from arvrm.sources.lerobot.layout import arrow, parquet_errors
from arvrm.sources.pipeline import LeftOut

_MAX_ROWS = 20_000_000
"""Rows of one file that are believed; LeRobot closes its files at 100 MB."""


@dataclass(frozen=True)
class Stretch:
    """Rows of one episode in one file that are of one task: `first` counts in the file, `step` in the episode."""

    file: Path
    first: int
    step: int
    steps: int
    task_index: int | None
    episode_steps: int


class DataFiles:
    """The parquet files below `data/`. What the index says of an episode's place is looked up in the files themselves.

    Args:
        columns: the only ones that are read.
    """

    def __init__(self, root: Path, columns: set[str]) -> None:
        self._arrow, self._parquet = arrow()
        self.root, self._columns = root, columns
        self._found: dict[Path, dict[int, list[Stretch]] | LeftOut] = {}
        self._table: tuple[Path, Any] | None = None

    def stretches(self, episode: int, stated: Path | None) -> list[Stretch]:
        """Return an episode's rows, a stretch for each task, from the file that the index states or another.

        Raises:
            LeftOut: no file has them, or several have.
        """
        reasons = []
        if stated is not None:
            found = self._scan(stated)
            if isinstance(found, LeftOut):
                reasons.append(found.reason)
            elif episode in found:
                return found[episode]
            else:
                reasons.append(f"{self._name(stated)} has no rows of episode {episode}")
        others = [file for file in self._files() if file != stated]
        scanned = [found for file in others if not isinstance(found := self._scan(file), LeftOut)]
        holding = [found[episode] for found in scanned if episode in found]
        if len(holding) == 1:
            return holding[0]
        raise LeftOut(f"{'; '.join(reasons) or 'no place is stated'}; {len(holding) or 'no'} other files have")

    def _files(self) -> list[Path]:
        return sorted(file for file in (self.root / "data").rglob("*.parquet") if not file.name.startswith("."))

    def _name(self, file: Path) -> str:
        return str(file.relative_to(self.root))

    def _scan(self, file: Path) -> dict[int, list[Stretch]] | LeftOut:
        if file not in self._found:
            try:
                self._found[file] = self._read_index(file)
            except LeftOut as reason:
                self._found[file] = reason
        return self._found[file]

    def _read_index(self, file: Path) -> dict[int, list[Stretch]]:
        table = self._read(file, {"episode_index", "task_index", "frame_index"})
        if "episode_index" not in table.column_names:
            raise LeftOut(f"{self._name(file)} lacks column 'episode_index'")
        episodes = self._numbers(table, "episode_index", file)
        tasks = self._numbers(table, "task_index", file) if "task_index" in table.column_names else None
        steps = self._numbers(table, "frame_index", file) if "frame_index" in table.column_names else None
        if not len(episodes):
            return {}
        new = np.diff(episodes, prepend=episodes[0] - 1) != 0
        begins = np.append(np.flatnonzero(new), len(episodes)).tolist()
        found: dict[int, list[Stretch]] = {}
        for first, last in zip(begins[:-1], begins[1:], strict=True):
            episode, count = int(episodes[first]), last - first
            whole = steps is None or np.array_equal(steps[first:last], np.arange(count))
            if episode in found or not whole:
                found[episode] = []  # in pieces or out of order
                continue
            task = tasks[first:last] if tasks is not None else np.zeros(count, np.int64)
            cuts = [0, *(np.flatnonzero(np.diff(task)) + 1).tolist(), count]
            found[episode] = [
                Stretch(file, first + a, a, b - a, int(task[a]) if tasks is not None else None, count)
                for a, b in zip(cuts[:-1], cuts[1:], strict=True)
            ]
        return found

    def _numbers(self, table: Any, name: str, file: Path) -> np.ndarray:
        try:
            return matrix(self._arrow, table[name], name, 1)[:, 0].astype(np.int64)
        except (ValueError, OverflowError) as error:
            raise LeftOut(f"{self._name(file)}: {name} holds no whole numbers ({error})") from error

    def _read(self, file: Path, columns: set[str] | None = None) -> Any:
        try:
            with parquet_errors():
                opened = self._parquet.ParquetFile(file)
                if opened.metadata.num_rows > _MAX_ROWS:
                    raise LeftOut(f"{self._name(file)} states {opened.metadata.num_rows} rows")
                names = [name for name in opened.schema_arrow.names if name in (columns or self._columns)]
                return opened.read(columns=names)
        except OSError as error:
            raise LeftOut(f"{self._name(file)} cannot be read ({error})") from error

    def columns(self, stretch: Stretch) -> Any:
        """Return the stretch's rows as an Arrow table."""
        if self._table is None or self._table[0] != stretch.file:
            self._table = (stretch.file, self._read(stretch.file))
        return self._table[1].slice(stretch.first, stretch.steps)


def matrix(pa: Any, column: Any, name: str, width: int | None = None) -> np.ndarray:
    """Return a column as an array (rows, width): numbers, or lists of numbers of whichever of Arrow's list types.

    Raises:
        LeftOut: rows are empty or not all of `width`.
    """
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(column, pa.ChunkedArray):  # of no chunks
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    rows = len(column)
    if column.null_count:
        raise LeftOut(f"{name} is empty in some rows")
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    while any(kind(column.type) for kind in lists):
        column = column.flatten()
    if column.null_count or not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise LeftOut(f"{name} is {column.type}, no numbers")
    flat = column.to_numpy(zero_copy_only=False)
    if width is not None and len(flat) != rows * width or rows and len(flat) % rows:
        raise LeftOut(f"{name} has {len(flat) / max(rows, 1):g} numbers a row instead of {width or 'the same each'}")
    return flat.reshape(rows, width or (len(flat) // rows if rows else 0))


def task_texts(root: Path) -> dict[int, str] | None:
    """Return task_index -> sentence of meta/tasks.parquet; None: there is no such file.

    The sentences stand in a column `task`, or, as LeRobot's own writer leaves them, in the index of a pandas frame.

    Raises:
        UserError: the file cannot be read.
    """
    pa, pq = arrow()
    file = root / "meta" / "tasks.parquet"
    if not file.exists():
        return None
    try:
        with parquet_errors():
            opened = pq.ParquetFile(file)
            if opened.metadata.num_rows > _MAX_ROWS:
                raise UserError(f"{file}: states {opened.metadata.num_rows} tasks; fetch the data set again")
            table = opened.read()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error}); fetch it again") from error
    texts = [name for name in table.column_names if _is_text(pa, table.schema.field(name).type)]
    name = next((name for name in ("task", "__index_level_0__", *texts) if name in texts), None)
    if name is None or "task_index" not in table.column_names:
        raise UserError(f"{file}: has no task_index and task; fetch it again")
    pairs = zip(table["task_index"].to_pylist(), table[name].to_pylist(), strict=True)
    return {int(index): text for index, text in pairs if isinstance(index, int) and isinstance(text, str)}


def _is_text(pa: Any, kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == getattr(pa, "string_view", lambda: 0)()
