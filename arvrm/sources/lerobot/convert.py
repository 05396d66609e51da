"""A LeRobot data set v3 with CALVIN's state into a store."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from arvrm.config import bounded, check_bounds
from arvrm.episodes import Episode, EpisodeStore, EpisodeWriter
from arvrm.files import read_json
from arvrm.geometry import angle_difference
from arvrm.interface import LONGEST_SENTENCE, UserError
from arvrm.robots import CALVIN
from arvrm.robots.calvin import ARM, relative_action
from arvrm.sources.lerobot.frames import TOLERANCE_S, VideoReader, inline_images
from arvrm.sources.lerobot.layout import CAMERA_FEATURES, DATA_PATH, VIDEO_PATH, arrow, parquet_errors
from arvrm.sources.lerobot.rows import DataFiles, Stretch, matrix, task_texts
from arvrm.sources.pipeline import LeftOut, encode_in_order, store_in_order

_TOP_NAMES = ("observation.images.top", "observation.images.static", "observation.images.rgb_static", "image")
_WRIST_NAMES = (
    *("observation.images.wrist", "observation.images.gripper", "observation.images.rgb_gripper"),
    "wrist_image",
)
_RELATIVE_NAMES = ("action.relative", "action.rel", "rel_actions")
_NEAR_M, _NEAR_RAD = 0.2, 1.0
"""An action that stays so near to the measured pose is a pose itself; CALVIN's targets lead by a few centimetres."""
_MAX_EPISODES = 10_000_000
_MAX_FPS = 1000.0


@dataclass(frozen=True)
class ConvertLeRobotConfig:
    """What `arvrm convert lerobot` does.

    Attributes:
        input: the data set's folder, with CALVIN's 15 state values.
        output: the store's folder.
        top, wrist: features that become rgb_static and rgb_gripper; None: found by name.
        action: feature with relative actions; None: found by name, or worked out from absolute ones.
        prefix: begins every id and group, so that the stores of several data sets can be merged.
        jpeg_quality: 1 to 100.
        workers: threads that write; 0: one per core (one thread decodes).
        resume, overwrite: continue or replace a store that exists.
    """

    input: str
    output: str
    top: str | None = None
    wrist: str | None = None
    action: str | None = None
    prefix: str = ""
    jpeg_quality: int = bounded(92, least=1, most=100)
    workers: int = bounded(0, least=0, most=1024)
    resume: bool = False
    overwrite: bool = False

    __post_init__ = check_bounds


@dataclass(frozen=True)
class LeRobotReport:
    """What became of a data set: the store, its episodes and steps, and id -> why an episode was left out."""

    store: str
    episodes: int
    steps: int
    left_out: dict[str, str] = field(default_factory=dict)


def convert_lerobot(config: ConvertLeRobotConfig) -> LeRobotReport:
    """Convert a LeRobot data set v3 with CALVIN's state into a store; episodes that cannot be read are left out.

    An episode in which the task changes becomes several, in one group: sentences are those of the frames.

    Raises:
        UserError: the data set is of another version, lacks a feature, or cannot be read; or the output exists.
    """
    source = _Source(config)
    settings = {"features": source.names, "robot_type": source.info.get("robot_type")}
    if config.prefix:
        settings["prefix"] = config.prefix
    manifest = {"source": "lerobot", "settings": settings, "index_sha256": source.digest()}
    with EpisodeWriter(config.output, manifest, config.resume, config.overwrite, config.jpeg_quality) as writer:
        todo = [part for part in source.parts() if not writer.has(part.id)]
        # Videos are read from front to back, so one thread reads; more would make each other jump.
        results = encode_in_order(todo, source.read, lambda part: part.steps, config.jpeg_quality, workers=1)
        left_out = source.problems | {part.id: failure.reason for part, failure in store_in_order(writer, results)}
    source.close()
    counts = EpisodeStore(config.output).manifest["counts"]
    return LeRobotReport(config.output, counts["episodes"], counts["steps"], left_out)


@dataclass(frozen=True)
class _Part:
    """An episode, or the part of one that is of one task; without a stretch: why there is none."""

    id: str
    row: dict[str, Any]
    stretch: Stretch | None = None
    problem: str = ""

    @property
    def steps(self) -> int:
        return self.stretch.steps if self.stretch else 0


class _Source:
    def __init__(self, config: ConvertLeRobotConfig) -> None:
        self.pa, self.pq = arrow()
        self.root, self.prefix = Path(config.input), config.prefix
        info = self.root / "meta" / "info.json"
        self.info = read_json(info, "give a LeRobot data set, or fetch it again")
        missing = [name for name in ("codebase_version", "features", "fps") if name not in self.info]
        if missing:
            raise UserError(f"{info}: has no {missing[0]}; fetch it again")
        version, self.features, fps = self.info["codebase_version"], self.info["features"], self.info["fps"]
        if not str(version).startswith("v3"):
            raise UserError(
                f"{self.root}: LeRobot format {str(version)[:40]}; make it v3.0 with LeRobot's own converter"
            )
        if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps <= _MAX_FPS:
            raise UserError(f"{info}: fps is {fps!r}; it must be over 0 and at most {_MAX_FPS:g}, fetch it again")
        if not isinstance(self.features, dict) or not all(isinstance(f, dict) for f in self.features.values()):
            raise UserError(f"{info}: features are no objects; fetch it again")
        self.fps = float(fps)
        self.names = self._choose(config)
        self.texts = task_texts(self.root)
        self.problems: dict[str, str] = {}
        self.episodes = self._episodes()
        wanted = {"timestamp", *self.names.values(), "action.absolute"}
        self.data = DataFiles(self.root, wanted | {f"arvrm.{name}" for name in CALVIN.arrays})
        self._videos: dict[str, VideoReader] = {}

    def _choose(self, config: ConvertLeRobotConfig) -> dict[str, str]:
        cameras = [name for name, f in self.features.items() if f.get("dtype") in ("video", "image")]
        chosen = {}
        for array, option, wanted, known in (
            ("rgb_static", "top", config.top, _TOP_NAMES),
            ("rgb_gripper", "wrist", config.wrist, _WRIST_NAMES),
        ):
            found = [wanted] if wanted else [name for name in known if name in cameras]
            if not found or found[0] not in cameras:
                have = ", ".join(cameras) or "none"
                raise UserError(f"{self.root}: no camera for {array}; pass --{option} with one of: {have}")
            chosen[array] = found[0]
        if self._shape("observation.state") != CALVIN.arrays["robot_obs"].shape:
            shape = self.features.get("observation.state", {}).get("shape")
            raise UserError(f"{self.root}: observation.state has shape {shape}; only CALVIN's 15 values are read")
        if config.action and config.action not in self.features:
            raise UserError(f"{self.root}: no feature {config.action!r}; it has {', '.join(self.features)}")
        relative = [config.action] if config.action else [n for n in _RELATIVE_NAMES if n in self.features]
        chosen["actions"] = relative[0] if relative else "action"
        if chosen["actions"] not in self.features:
            raise UserError(f"{self.root}: has no action; pass --action with one of: {', '.join(self.features)}")
        for array, feature in (("scene_obs", "observation.environment_state"), ("absolute_actions", "action.absolute")):
            if self._shape(feature) == CALVIN.arrays[array].shape:
                chosen[array] = feature
        return {**chosen, "robot_obs": "observation.state"}

    def _shape(self, feature: str) -> tuple[Any, ...]:
        shape = self.features.get(feature, {}).get("shape")
        return tuple(shape) if isinstance(shape, list) else ()

    def _index_files(self) -> list[Path]:
        files = (self.root / "meta" / "episodes").glob("*/*.parquet")
        return sorted(file for file in files if not file.name.startswith("."))

    def digest(self) -> str:
        """SHA-256 of what names the episodes and their sentences: a changed one is no continuation."""
        digest = hashlib.sha256()
        for file in [self.root / "meta" / "info.json", self.root / "meta" / "tasks.parquet", *self._index_files()]:
            digest.update(file.read_bytes() if file.exists() else b"")
        return digest.hexdigest()

    def _episodes(self) -> list[dict[str, Any]]:
        files = self._index_files()
        if not files:
            raise UserError(f"{self.root}: has no meta/episodes; fetch the data set again")
        rows: list[dict[str, Any]] = []
        for file in files:
            try:
                with parquet_errors():
                    opened = self.pq.ParquetFile(file)
                    if opened.metadata.num_rows > _MAX_EPISODES:
                        raise UserError(f"{file}: states {opened.metadata.num_rows} episodes; fetch it again")
                    names = [n for n in opened.schema_arrow.names if not n.startswith("stats/")]
                    rows += opened.read(columns=names).to_pylist()
            except OSError as error:  # the episodes of the other files go on
                self.problems[str(file.relative_to(self.root))] = f"cannot be read ({error}); fetch it again"
        if not rows and self.problems:
            file, reason = next(iter(self.problems.items()))
            raise UserError(f"{self.root / file}: {reason}")
        needed = {"episode_index", "length"}
        for camera in CAMERA_FEATURES:
            if self.features[self.names[camera]]["dtype"] == "video":
                places = ("chunk_index", "file_index", "from_timestamp")
                needed |= {f"videos/{self.names[camera]}/{place}" for place in places}
        if rows and (missing := needed - set(rows[0])):
            raise UserError(f"{files[0]}: lacks column {sorted(missing)[0]!r}; it is no LeRobot v3, fetch it again")
        whole = [row for row in rows if isinstance(row["episode_index"], int)]
        numbers = [row["episode_index"] for row in whole]
        if len(set(numbers)) != len(numbers):
            raise UserError(f"{self.root / 'meta/episodes'}: names an episode_index twice; fetch it again")
        return sorted(whole, key=lambda row: row["episode_index"])

    def parts(self) -> list[_Part]:
        """Return the episodes, those of several tasks in parts, in order."""
        found: list[_Part] = []
        doubtful = self._shared_stretches()
        for row in self.episodes:
            id = self.prefix + _text(row, "arvrm/id", f"lerobot/{row['episode_index']:06d}")
            try:
                if row["episode_index"] in doubtful:
                    raise LeftOut(doubtful[row["episode_index"]])
                stretches = self._stretches(row)
            except LeftOut as reason:
                found.append(_Part(id, row, problem=reason.reason))
                continue
            several = len(stretches) > 1
            found += [_Part(f"{id}#{n}" if several else id, row, s) for n, s in enumerate(stretches, 1)]
        return found

    def _shared_stretches(self) -> dict[int, str]:
        """Return episodes that the index gives frames of another one: which of the two they belong to, nobody knows."""
        found: dict[int, str] = {}
        for camera in CAMERA_FEATURES:
            key = f"videos/{self.names[camera]}"
            claims: dict[tuple[Any, Any], list[tuple[float, float, int]]] = {}
            for row in self.episodes if self.features[self.names[camera]]["dtype"] == "video" else ():
                start, length = row[f"{key}/from_timestamp"], row["length"]
                if isinstance(start, (int, float)) and isinstance(length, int):
                    place = row[f"{key}/chunk_index"], row[f"{key}/file_index"]
                    claims.setdefault(place, []).append((start, start + length / self.fps, row["episode_index"]))
            for stretches in claims.values():
                stretches.sort()
                for (_, end, one), (start, _, other) in itertools.pairwise(stretches):
                    if start < end - 0.5 / self.fps:
                        reason = f"the index gives episodes {one} and {other} the same frames of {self.names[camera]}"
                        found |= {one: reason, other: reason}
        return found

    def _stretches(self, row: dict[str, Any]) -> list[Stretch]:
        places = ("data/chunk_index", "data/file_index")
        stated = None
        if all(row.get(place) is not None for place in places):
            stated = self._path(self.info.get("data_path", DATA_PATH), row, "data")
        found = self.data.stretches(row["episode_index"], stated)
        if not found:
            raise LeftOut("its rows are not together in the order of frame_index")
        if found[0].episode_steps != row["length"]:
            raise LeftOut(f"has {found[0].episode_steps} rows instead of {row['length']}")
        return found

    def read(self, part: _Part) -> Episode:
        """Return the episode of a part. Raises LeftOut where it cannot be read."""
        if part.stretch is None:
            raise LeftOut(part.problem)
        row, steps = part.row, part.steps
        table = self.data.columns(part.stretch)
        instruction = self._instruction(row, part.stretch)
        times = self._times(table)
        arrays = {}
        for name, spec in CALVIN.arrays.items():
            column = next((c for c in (f"arvrm.{name}", self.names.get(name, "")) if c in table.column_names), None)
            if column is not None:
                values = matrix(self.pa, table[column], column, math.prod(spec.shape))
                arrays[name] = values.reshape(steps, *spec.shape).astype(spec.dtype)
        arrays["actions"] = self._actions(table, arrays)
        arrays.setdefault("executed", arrays["actions"])
        image_steps = np.arange(steps, dtype=np.int32)
        if row.get("arvrm/image_steps"):
            stated = np.array(row["arvrm/image_steps"], np.int64)
            if stated.min() < 0 or stated.max() >= steps:
                raise LeftOut("image steps beyond its end")
            image_steps = stated.astype(np.int32)
        images = {camera: self._images(row, camera, table, times, image_steps) for camera in CAMERA_FEATURES}
        try:
            meta = json.loads(row.get("arvrm/meta") or "{}")
        except (ValueError, TypeError, RecursionError) as error:
            raise LeftOut(f"arvrm/meta is no JSON ({error})") from error
        return Episode(
            id=part.id,
            embodiment="robot",
            instruction=instruction,
            task=_text(row, "arvrm/task", ""),
            scene=_text(row, "arvrm/scene", ""),
            source=_text(row, "arvrm/source", "lerobot"),
            group=self.prefix + _text(row, "arvrm/group", f"lerobot/{row['episode_index']:06d}"),
            fps=self.fps,
            arrays=arrays,
            images=images,
            image_steps=image_steps,
            meta=meta,
        )

    def _instruction(self, row: dict[str, Any], stretch: Stretch) -> str:
        # The index has a copy of the sentences, which LeRobot makes from a set, in an order left to chance.
        copies = row.get("tasks") or []
        if self.texts is not None and stretch.task_index is not None:
            if stretch.task_index not in self.texts:
                raise LeftOut(f"task {stretch.task_index} of its frames is not in meta/tasks.parquet")
            text = self.texts[stretch.task_index]
        elif len(copies) == 1 and isinstance(copies[0], str):
            text = copies[0]
        else:
            raise LeftOut("nothing tells its task: no meta/tasks.parquet, or no task_index")
        if len(text) > LONGEST_SENTENCE:
            raise LeftOut(f"its sentence has {len(text)} characters; at most {LONGEST_SENTENCE} are read")
        return text

    def _times(self, table: Any) -> np.ndarray:
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

    def _actions(self, table: Any, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """Return relative actions: those stored, or what follows from absolute ones and the measured pose."""
        name, width = self.names["actions"], ARM + 1
        if name not in table.column_names or "robot_obs" not in arrays:
            raise LeftOut(f"lacks column {name if name not in table.column_names else self.names['robot_obs']!r}")
        actions, state = matrix(self.pa, table[name], name, width), arrays["robot_obs"]
        if not np.isfinite(actions).all():
            raise LeftOut(f"{name} holds NaN or infinity")
        # The community's default action is the absolute one, and then both columns agree.
        same = "action.absolute" in table.column_names and np.array_equal(
            actions, matrix(self.pa, table["action.absolute"], "action.absolute", width)
        )
        distance = np.abs(actions[:, :3] - state[:, :3]).max()
        turn = np.abs(angle_difference(actions[:, 3:ARM], state[:, 3:ARM])).max()
        if (same and name == "action") or (distance < _NEAR_M and turn < _NEAR_RAD):
            return relative_action(state, actions, actions[:, ARM]).astype(np.float32)
        if (largest := np.abs(actions[:, :ARM]).max()) > 1 + 1e-6:
            raise LeftOut(
                f"{name} reaches {largest:g}, so it is no relative action, and it is far from the measured pose; name "
                "the right feature with --action or make relative actions of it (clipping would make nonsense)"
            )
        return actions.astype(np.float32)

    def _path(self, template: Any, row: dict[str, Any], prefix: str, **names: str) -> Path:
        numbers = {}
        for key in ("chunk_index", "file_index"):
            number = row.get(f"{prefix}/{key}")
            if not isinstance(number, int) or not 0 <= number < 10**9:
                raise LeftOut(f"{prefix}/{key} is {number!r}, no number of a file")
            numbers[key] = number
        plain = isinstance(template, str) and len(template) < 500
        # A template could ask for a width of any number of digits.
        if not plain or re.sub(r"\{(chunk_index|file_index)(:0?\d)?d?\}|\{video_key\}", "", template).count("{"):
            raise LeftOut(f"path {str(template)[:80]!r} in meta/info.json is none of LeRobot v3")
        path = self.root / template.format(**numbers, **names)
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise LeftOut(f"{path} lies outside the data set")
        return path

    def _images(self, row: dict[str, Any], camera: str, table: Any, times: np.ndarray, steps: np.ndarray) -> np.ndarray:
        feature = self.names[camera]
        if self.features[feature]["dtype"] == "image":
            if feature not in table.column_names:
                raise LeftOut(f"lacks column {feature!r}")
            frames = list(inline_images(feature, table[feature], steps))
        else:
            path = self._path(self.info.get("video_path") or VIDEO_PATH, row, f"videos/{feature}", video_key=feature)
            reader = self._videos.get(feature)
            if reader is None or reader.path != path:
                if reader is not None:
                    reader.close()
                reader = self._videos[feature] = VideoReader(path)
            start = row[f"videos/{feature}/from_timestamp"]
            if not isinstance(start, (int, float)) or not math.isfinite(start):
                raise LeftOut(f"videos/{feature}/from_timestamp is {start!r}")
            frames = list(reader.frames(start + times[steps]))
        if len({frame.shape for frame in frames}) != 1:
            raise LeftOut(f"{feature} changes its size")
        return np.stack(frames)

    def close(self) -> None:
        for reader in self._videos.values():
            reader.close()


def _text(row: dict[str, Any], name: str, default: str) -> str:
    value = row.get(name)
    return value if isinstance(value, str) and value else default
