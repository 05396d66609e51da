"""Which episodes a LeRobot data set has and in which files they lie: format v3 (many episodes a file) and v2 (one)."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, Protocol

from arvrm.interface import UserError
from arvrm.sources.lerobot.layout import DATA_PATH, V2_DATA_PATH, V2_VIDEO_PATH, VIDEO_PATH, arrow, parquet_errors
from arvrm.sources.lerobot.rows import task_texts
from arvrm.sources.pipeline import LeftOut

MOST_EPISODES = 10_000_000
_LARGEST_TEXT = 1 << 30
_CHUNK = 1000
"""Episodes in a folder of format v2, where info.json does not say."""


class Index(Protocol):
    """What `meta/` says of episodes.

    Attributes:
        rows: one an episode, by `episode_index`: that, `length`, `tasks` and more.
        texts: task_index -> sentence; None: there is no such file.
        files: what names episodes and sentences; a changed one is another data set.
        problems: file -> why it could not be read, though others could.
    """

    rows: list[dict[str, Any]]
    texts: dict[int, str] | None
    files: list[Path]
    problems: dict[str, str]

    def data_file(self, row: dict[str, Any]) -> Path | None:
        """Return the file that is said to have an episode's rows; None: none is named. Raises LeftOut."""
        ...

    def video(self, row: dict[str, Any], feature: str) -> tuple[Path, float]:
        """Return a camera's video of an episode, and at which second of it the episode begins. Raises LeftOut."""
        ...

    def video_stretch(self, row: dict[str, Any], feature: str) -> tuple[Any, float] | None:
        """Return in which of the shared videos an episode lies, and from which second; None: it shares none."""
        ...

    def lacking(self, cameras: list[str]) -> str | None:
        """Return the first column that the index needs for these videos and has not."""
        ...


def open_index(root: Path, info: dict[str, Any]) -> Index:
    """Return the index of the format that info.json states; raises UserError where it is another or damaged."""
    version = str(info["codebase_version"])
    if version.startswith("v3"):
        return _V3(root, info)
    if version.startswith("v2"):
        return _V2(root, info)
    raise UserError(f"{root}: LeRobot format {version[:40]}; make it v2.1 or v3.0 with LeRobot's own converter")


class _Places:
    """Paths made of the templates that info.json gives."""

    root: Path
    format: str

    def _filled(self, template: Any, numbers: dict[str, int], **names: str) -> Path:
        plain = isinstance(template, str) and len(template) < 500
        known = "|".join(numbers)
        # A template could ask for a width of any number of digits.
        if not plain or re.sub(rf"\{{({known})(:0?\d)?d?\}}|\{{video_key\}}", "", template).count("{"):
            raise LeftOut(f"path {str(template)[:80]!r} in meta/info.json is none of LeRobot {self.format}")
        path = self.root / template.format(**numbers, **names)
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise LeftOut(f"{path} lies outside the data set")
        return path


class _V3(_Places):
    format = "v3"

    def __init__(self, root: Path, info: dict[str, Any]) -> None:
        self.root, self.info = root, info
        self.problems: dict[str, str] = {}
        self.texts = task_texts(root)
        episodes = (root / "meta" / "episodes").glob("*/*.parquet")
        self._episode_files = sorted(file for file in episodes if not file.name.startswith("."))
        self.files = [root / "meta" / "info.json", root / "meta" / "tasks.parquet", *self._episode_files]
        self.rows = self._read()

    def _read(self) -> list[dict[str, Any]]:
        _, parquet = arrow()
        if not self._episode_files:
            raise UserError(f"{self.root}: has no meta/episodes; fetch the data set again")
        rows: list[dict[str, Any]] = []
        for file in self._episode_files:
            try:
                with parquet_errors():
                    opened = parquet.ParquetFile(file)
                    if opened.metadata.num_rows > MOST_EPISODES:
                        raise UserError(f"{file}: states {opened.metadata.num_rows} episodes; fetch it again")
                    names = [n for n in opened.schema_arrow.names if not n.startswith("stats/")]
                    rows += opened.read(columns=names).to_pylist()
            except OSError as error:  # the episodes of the other files go on
                self.problems[str(file.relative_to(self.root))] = f"cannot be read ({error}); fetch it again"
        if not rows and self.problems:
            file, reason = next(iter(self.problems.items()))
            raise UserError(f"{self.root / file}: {reason}")
        if missing := self._without(rows, {"episode_index", "length"}):
            raise UserError(f"{self._episode_files[0]}: lacks column {missing!r}; it is no LeRobot v3, fetch it again")
        return _in_order(rows, self.root / "meta/episodes")

    @staticmethod
    def _without(rows: list[dict[str, Any]], needed: set[str]) -> str | None:
        return min(needed - set(rows[0]), default=None) if rows else None

    def lacking(self, cameras: list[str]) -> str | None:
        places = ("chunk_index", "file_index", "from_timestamp")
        return self._without(self.rows, {f"videos/{camera}/{place}" for camera in cameras for place in places})

    def data_file(self, row: dict[str, Any]) -> Path | None:
        if any(row.get(f"data/{place}") is None for place in ("chunk_index", "file_index")):
            return None
        return self._filled(self.info.get("data_path", DATA_PATH), self._numbers(row, "data"))

    def video(self, row: dict[str, Any], feature: str) -> tuple[Path, float]:
        numbers = self._numbers(row, f"videos/{feature}")
        path = self._filled(self.info.get("video_path") or VIDEO_PATH, numbers, video_key=feature)
        start = row[f"videos/{feature}/from_timestamp"]
        if not isinstance(start, (int, float)) or not math.isfinite(start):
            raise LeftOut(f"videos/{feature}/from_timestamp is {start!r}")
        return path, start

    def video_stretch(self, row: dict[str, Any], feature: str) -> tuple[Any, float] | None:
        start = row[f"videos/{feature}/from_timestamp"]
        if not isinstance(start, (int, float)):
            return None
        return (row[f"videos/{feature}/chunk_index"], row[f"videos/{feature}/file_index"]), start

    def _numbers(self, row: dict[str, Any], prefix: str) -> dict[str, int]:
        numbers = {}
        for key in ("chunk_index", "file_index"):
            number = row.get(f"{prefix}/{key}")
            if not isinstance(number, int) or not 0 <= number < 10**9:
                raise LeftOut(f"{prefix}/{key} is {number!r}, no number of a file")
            numbers[key] = number
        return numbers


class _V2(_Places):
    format = "v2"

    def __init__(self, root: Path, info: dict[str, Any]) -> None:
        self.root, self.info = root, info
        self.problems: dict[str, str] = {}
        meta = root / "meta"
        self.files = [meta / "info.json", meta / "tasks.jsonl", meta / "episodes.jsonl"]
        self.texts = self._texts()
        rows = _lines(meta / "episodes.jsonl")
        if any(not isinstance(row.get("length"), int) for row in rows):
            raise UserError(f"{meta / 'episodes.jsonl'}: a line lacks its length; it is no LeRobot v2, fetch it again")
        self.rows = _in_order(rows, meta / "episodes.jsonl")
        chunk = info.get("chunks_size", _CHUNK)
        if type(chunk) is not int or not 0 < chunk < 10**9:
            raise UserError(f"{meta / 'info.json'}: chunks_size is {str(chunk)[:40]}; fetch it again")
        self._chunk = chunk

    def _texts(self) -> dict[int, str] | None:
        file = self.root / "meta" / "tasks.jsonl"
        if not file.exists():
            return None
        found = {}
        for row in _lines(file):
            if type(row.get("task_index")) is not int or not isinstance(row.get("task"), str):
                raise UserError(f"{file}: a line has no task_index and task; fetch it again")
            found[row["task_index"]] = row["task"]
        return found

    def _numbers(self, row: dict[str, Any]) -> dict[str, int]:
        return {"episode_chunk": row["episode_index"] // self._chunk, "episode_index": row["episode_index"]}

    def data_file(self, row: dict[str, Any]) -> Path | None:
        return self._filled(self.info.get("data_path", V2_DATA_PATH), self._numbers(row))

    def video(self, row: dict[str, Any], feature: str) -> tuple[Path, float]:
        template = self.info.get("video_path") or V2_VIDEO_PATH
        return self._filled(template, self._numbers(row), video_key=feature), 0.0

    def video_stretch(self, row: dict[str, Any], feature: str) -> tuple[Any, float] | None:
        return None

    def lacking(self, cameras: list[str]) -> str | None:
        return None


def _in_order(rows: list[dict[str, Any]], place: Path) -> list[dict[str, Any]]:
    whole = [row for row in rows if type(row.get("episode_index")) is int and row["episode_index"] >= 0]
    numbers = [row["episode_index"] for row in whole]
    if len(set(numbers)) != len(numbers):
        raise UserError(f"{place}: names an episode_index twice; fetch it again")
    return sorted(whole, key=lambda row: row["episode_index"])


def _lines(file: Path) -> list[dict[str, Any]]:
    """Return the objects of a file that has one a line."""
    try:
        if file.stat().st_size > _LARGEST_TEXT:
            raise UserError(f"{file}: has {file.stat().st_size} bytes; fetch it again")
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); fetch the data set again") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}: line {number} is no JSON ({error}); fetch it again") from error
        if not isinstance(row, dict):
            raise UserError(f"{file}: line {number} is no object; fetch it again")
        found.append(row)
    return found
