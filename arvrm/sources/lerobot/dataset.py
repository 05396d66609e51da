"""A LeRobot data set: its features, its episodes by task, and what an episode's rows and videos hold."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arvrm.files import read_json
from arvrm.interface import LONGEST_SENTENCE, UserError
from arvrm.sources.lerobot.frames import TOLERANCE_S, VideoReader, inline_images
from arvrm.sources.lerobot.index import open_index
from arvrm.sources.lerobot.layout import arrow
from arvrm.sources.lerobot.rows import DataFiles, Stretch, matrix
from arvrm.sources.pipeline import LeftOut

_MAX_FPS = 1000.0


@dataclass(frozen=True)
class Part:
    """An episode, or the part of one that is of one task; without a stretch: why there is none."""

    id: str
    row: dict[str, Any]
    stretch: Stretch | None = None
    problem: str = ""

    @property
    def steps(self) -> int:
        return self.stretch.steps if self.stretch else 0


class DataSet:
    """A data set of format v3 or v2.

    Args:
        root: its folder.

    Raises:
        UserError: it is of another format, or what describes it cannot be read.
    """

    def __init__(self, root: str | Path) -> None:
        self.pa, self.pq = arrow()
        self.root = Path(root)
        info = self.root / "meta" / "info.json"
        self.info = read_json(info, "give a LeRobot data set, or fetch it again")
        missing = [name for name in ("codebase_version", "features", "fps") if name not in self.info]
        if missing:
            raise UserError(f"{info}: has no {missing[0]}; fetch it again")
        self.features, fps = self.info["features"], self.info["fps"]
        if not isinstance(self.features, dict) or not all(isinstance(f, dict) for f in self.features.values()):
            raise UserError(f"{info}: features are no objects; fetch it again")
        if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps <= _MAX_FPS:
            raise UserError(f"{info}: fps is {fps!r}; it must be over 0 and at most {_MAX_FPS:g}, fetch it again")
        self.fps = float(fps)
        self.index = open_index(self.root, self.info)
        self._videos: dict[str, VideoReader] = {}
        self._data: DataFiles | None = None

    @property
    def cameras(self) -> list[str]:
        """The features that are pictures."""
        return [name for name, f in self.features.items() if f.get("dtype") in ("video", "image")]

    @property
    def problems(self) -> dict[str, str]:
        """File -> why its episodes are lost."""
        return self.index.problems

    def is_video(self, feature: str) -> bool:
        return self.features[feature]["dtype"] == "video"

    def shape(self, feature: str) -> tuple[Any, ...]:
        """Return the shape that info.json states, () where it states none."""
        shape = self.features.get(feature, {}).get("shape")
        return tuple(shape) if isinstance(shape, (list, tuple)) else ()

    def digest(self) -> str:
        """SHA-256 of what names the episodes and their sentences: a changed one is no continuation."""
        digest = hashlib.sha256()
        for file in self.index.files:
            digest.update(file.read_bytes() if file.exists() else b"")
        return digest.hexdigest()

    def want(self, columns: Collection[str], cameras: Sequence[str]) -> None:
        """Say which columns `columns(part)` gives, and which cameras are read.

        Raises:
            UserError: the index does not say where their videos are.
        """
        self._cameras = [name for name in cameras if self.is_video(name)]
        self._data = DataFiles(self.root, {"timestamp", *columns})
        if missing := self.index.lacking(self._cameras):
            raise UserError(f"{self.root / 'meta'}: lacks column {missing!r} of its videos; fetch it again")

    @property
    def data(self) -> DataFiles:
        assert self._data is not None, "ask `want` first"
        return self._data

    def parts(self, prefix: str) -> list[Part]:
        """Return the episodes, those of several tasks in parts, in order; their ids begin with `prefix`."""
        found: list[Part] = []
        doubtful = self._shared_stretches()
        for row in self.index.rows:
            id = prefix + text(row, "arvrm/id", f"lerobot/{row['episode_index']:06d}")
            try:
                if row["episode_index"] in doubtful:
                    raise LeftOut(doubtful[row["episode_index"]])
                stretches = self._stretches(row)
            except LeftOut as reason:
                found.append(Part(id, row, problem=reason.reason))
                continue
            several = len(stretches) > 1
            found += [Part(f"{id}#{n}" if several else id, row, s) for n, s in enumerate(stretches, 1)]
        return found

    def _shared_stretches(self) -> dict[int, str]:
        """Return episodes that the index gives frames of another one: which of the two they belong to, nobody knows."""
        found: dict[int, str] = {}
        for camera in self._cameras:
            claims: dict[Any, list[tuple[float, float, int]]] = {}
            for row in self.index.rows:
                stretch, length = self.index.video_stretch(row, camera), row["length"]
                if stretch is not None and isinstance(length, int):
                    place, start = stretch
                    claims.setdefault(place, []).append((start, start + length / self.fps, row["episode_index"]))
            for stretches in claims.values():
                stretches.sort()
                for (_, end, one), (start, _, other) in itertools.pairwise(stretches):
                    if start < end - 0.5 / self.fps:
                        reason = f"the index gives episodes {one} and {other} the same frames of {camera}"
                        found |= {one: reason, other: reason}
        return found

    def _stretches(self, row: dict[str, Any]) -> list[Stretch]:
        found = self.data.stretches(row["episode_index"], self.index.data_file(row))
        if not found:
            raise LeftOut("its rows are not together in the order of frame_index")
        if found[0].episode_steps != row["length"]:
            raise LeftOut(f"has {found[0].episode_steps} rows instead of {row['length']}")
        return found

    def table(self, part: Part) -> Any:
        """Return a part's rows as an Arrow table. Raises LeftOut where there are none."""
        if part.stretch is None:
            raise LeftOut(part.problem)
        return self.data.columns(part.stretch)

    def values(self, table: Any, features: Sequence[str]) -> np.ndarray:
        """Return features side by side, (rows, n) float64. Raises LeftOut: one is absent, or not of its size."""
        found = []
        for feature in features:
            if feature not in table.column_names:
                raise LeftOut(f"lacks column {feature!r}")
            found.append(matrix(self.pa, table[feature], feature, int(np.prod(self.shape(feature), dtype=np.int64))))
        return np.concatenate(found, axis=1).astype(np.float64)

    def instruction(self, part: Part) -> str:
        """Return the sentence of a part. Raises LeftOut where nothing tells."""
        # The index has a copy of the sentences, which LeRobot makes from a set, in an order left to chance.
        copies, texts = part.row.get("tasks") or [], self.index.texts
        task = part.stretch.task_index if part.stretch else None
        if texts is not None and task is not None:
            if task not in texts:
                raise LeftOut(f"task {task} of its frames is not in meta/{self.index.files[1].name}")
            found = texts[task]
        elif len(copies) == 1 and isinstance(copies[0], str):
            found = copies[0]
        else:
            raise LeftOut(f"nothing tells its task: no meta/{self.index.files[1].name}, or no task_index")
        if len(found) > LONGEST_SENTENCE:
            raise LeftOut(f"its sentence has {len(found)} characters; at most {LONGEST_SENTENCE} are read")
        return found

    def times(self, table: Any) -> np.ndarray:
        """Return the rows' times (s) within their episode, which must be 1 / fps apart."""
        if "timestamp" not in table.column_names:
            raise LeftOut("lacks column 'timestamp'")
        times = matrix(self.pa, table["timestamp"], "timestamp", 1)[:, 0].astype(np.float64)
        if not np.isfinite(times).all():
            raise LeftOut("timestamp holds NaN or infinity")
        off = np.abs(np.diff(times) - 1 / self.fps)
        if len(off) and off.max() > TOLERANCE_S + 2e-7 * np.abs(times).max():
            at = int(off.argmax())
            raise LeftOut(
                f"rows {at} and {at + 1} are {times[at + 1] - times[at]:.4f} s apart at {self.fps:g} a second"
            )
        return times

    def images(self, part: Part, feature: str, table: Any, times: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Return a camera's pictures at these steps of a part, (F, H, W, 3) uint8. Raises LeftOut."""
        if not self.is_video(feature):
            if feature not in table.column_names:
                raise LeftOut(f"lacks column {feature!r}")
            frames = list(inline_images(feature, table[feature], steps))
        else:
            path, start = self.index.video(part.row, feature)
            reader = self._videos.get(feature)
            if reader is None or reader.path != path:
                if reader is not None:
                    reader.close()
                reader = self._videos[feature] = VideoReader(path)
            frames = list(reader.frames(start + times[steps]))
        if len({frame.shape for frame in frames}) != 1:
            raise LeftOut(f"{feature} changes its size")
        return np.stack(frames)

    def close(self) -> None:
        for reader in self._videos.values():
            reader.close()


def text(row: dict[str, Any], name: str, default: str) -> str:
    """Return a text of an episode's row, `default` where it has none."""
    value = row.get(name)
    return value if isinstance(value, str) and value else default
