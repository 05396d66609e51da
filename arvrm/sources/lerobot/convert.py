"""A LeRobot data set v3 with CALVIN's state into a store."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from arvrm.episodes import Episode, EpisodeStore, EpisodeWriter
from arvrm.interface import UserError
from arvrm.robots import CALVIN
from arvrm.robots.calvin import relative_action
from arvrm.sources.lerobot.layout import CAMERA_FEATURES, DATA_PATH, VIDEO_PATH, arrow
from arvrm.sources.pipeline import LeftOut, encode_in_order, store_in_order

_TOP_NAMES = ("observation.images.top", "observation.images.static", "observation.images.rgb_static", "image")
_WRIST_NAMES = (
    *("observation.images.wrist", "observation.images.gripper", "observation.images.rgb_gripper"),
    "wrist_image",
)
_RELATIVE_NAMES = ("action.relative", "action.rel", "rel_actions")


@dataclass(frozen=True)
class ConvertLeRobotConfig:
    """What `arvrm convert lerobot` does.

    Attributes:
        input: the data set's folder, with CALVIN's 15 state values.
        output: the store's folder.
        top, wrist: features that become rgb_static and rgb_gripper; None: found by name.
        action: feature with relative actions; None: found by name, or worked out from absolute ones.
        jpeg_quality: 1 to 100.
        workers: threads that write; 0: one per core (one thread decodes).
        resume, overwrite: continue or replace a store that exists.
    """

    input: str
    output: str
    top: str | None = None
    wrist: str | None = None
    action: str | None = None
    jpeg_quality: int = 92
    workers: int = 0
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class LeRobotReport:
    """What became of a data set: the store, its episodes and steps, and id -> why an episode was left out."""

    store: str
    episodes: int
    steps: int
    left_out: dict[str, str] = field(default_factory=dict)


def convert_lerobot(config: ConvertLeRobotConfig) -> LeRobotReport:
    """Convert a LeRobot data set v3 with CALVIN's state into a store; episodes with damaged files are left out.

    Raises:
        UserError: the data set is of another version, lacks a feature, or cannot be read; or the output exists.
    """
    source = _Source(config)
    manifest = {
        "source": "lerobot",
        "settings": {"features": source.names, "robot_type": source.info.get("robot_type")},
    }
    with EpisodeWriter(config.output, manifest, config.resume, config.overwrite, config.jpeg_quality) as writer:
        todo = [row for row in source.episodes if not writer.has(source.id(row))]
        # Videos are read from front to back, so one thread reads; more would make each other jump.
        results = encode_in_order(todo, source.read, lambda row: int(row["length"]), config.jpeg_quality, workers=1)
        left_out = {source.id(row): failure.reason for row, failure in store_in_order(writer, results)}
    source.close()
    counts = EpisodeStore(config.output).manifest["counts"]
    return LeRobotReport(config.output, counts["episodes"], counts["steps"], left_out)


class _Source:
    def __init__(self, config: ConvertLeRobotConfig) -> None:
        self.pa, self.pq = arrow()
        self.root = Path(config.input)
        try:
            self.info = json.loads((self.root / "meta" / "info.json").read_text())
            version, self.features, self.fps = self.info["codebase_version"], self.info["features"], self.info["fps"]
        except OSError as error:
            raise UserError(f"{self.root}: no meta/info.json ({error.strerror}); give a LeRobot data set") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.root}: meta/info.json cannot be read ({error!r}); fetch it again") from error
        if not str(version).startswith("v3"):
            raise UserError(f"{self.root}: LeRobot format {version}; make it v3.0 with LeRobot's own converter")
        if not isinstance(self.fps, (int, float)) or self.fps <= 0:
            raise UserError(f"{self.root}: fps is {self.fps!r} in meta/info.json; fetch it again")
        self.names = self._choose(config)
        self.episodes = self._episodes()
        self._table: tuple[Path, Any] | None = None
        self._videos: dict[str, _VideoReader] = {}

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
        shape = self.features.get("observation.state", {}).get("shape")
        if list(shape or ()) != [15]:
            raise UserError(f"{self.root}: observation.state has shape {shape}; only CALVIN's 15 values are read")
        if config.action and config.action not in self.features:
            raise UserError(f"{self.root}: no feature {config.action!r}; it has {', '.join(self.features)}")
        relative = [config.action] if config.action else [n for n in _RELATIVE_NAMES if n in self.features]
        chosen["actions"] = relative[0] if relative else "action"
        if chosen["actions"] not in self.features:
            raise UserError(f"{self.root}: has no action; pass --action with one of: {', '.join(self.features)}")
        for array, feature in (("scene_obs", "observation.environment_state"), ("absolute_actions", "action.absolute")):
            if list(self.features.get(feature, {}).get("shape", ())) == list(CALVIN.arrays[array].shape):
                chosen[array] = feature
        return {**chosen, "robot_obs": "observation.state"}

    def _episodes(self) -> list[dict[str, Any]]:
        files = sorted((self.root / "meta" / "episodes").glob("*/*.parquet"))
        if not files:
            raise UserError(f"{self.root}: has no meta/episodes; fetch the data set again")
        rows: list[dict[str, Any]] = []
        for file in files:
            try:
                names = [n for n in self.pq.read_schema(file).names if not n.startswith("stats/")]
                rows += self.pq.read_table(file, columns=names).to_pylist()
            except (OSError, self.pa.ArrowException) as error:
                raise UserError(f"{file}: cannot be read ({error}); fetch it again") from error
        needed = {"episode_index", "tasks", "length", "data/chunk_index", "data/file_index"}
        for camera in CAMERA_FEATURES:
            if self.features[self.names[camera]]["dtype"] == "video":
                places = ("chunk_index", "file_index", "from_timestamp")
                needed |= {f"videos/{self.names[camera]}/{place}" for place in places}
        if rows and (missing := needed - set(rows[0])):
            raise UserError(f"{files[0]}: lacks column {sorted(missing)[0]!r}; it is no LeRobot v3, fetch it again")
        return sorted(rows, key=lambda row: row["episode_index"])

    def id(self, row: dict[str, Any]) -> str:
        return row.get("arvrm/id") or f"lerobot/{row['episode_index']:06d}"

    def read(self, row: dict[str, Any]) -> Episode:
        columns = self._columns(row)
        steps = int(row["length"])
        if len(columns["timestamp"]) != steps or steps < 1:
            raise LeftOut(f"has {len(columns['timestamp'])} rows instead of {steps}")
        arrays = {}
        for name, spec in CALVIN.arrays.items():
            column = columns.get(f"arvrm.{name}", columns.get(self.names.get(name, "")))
            if column is not None:
                arrays[name] = column.reshape(steps, *spec.shape).astype(spec.dtype)
        arrays["actions"] = self._actions(columns, arrays)
        arrays.setdefault("executed", arrays["actions"])
        every = np.arange(steps, dtype=np.int32)
        image_steps = np.array(row["arvrm/image_steps"], np.int32) if row.get("arvrm/image_steps") else every
        if image_steps.min() < 0 or image_steps.max() >= steps:
            raise LeftOut("image steps beyond its end")
        images = {camera: self._images(row, camera, columns, image_steps) for camera in CAMERA_FEATURES}
        try:
            meta = json.loads(row.get("arvrm/meta") or "{}")
        except ValueError as error:
            raise LeftOut(f"arvrm/meta is no JSON ({error})") from error
        return Episode(
            id=self.id(row),
            embodiment="robot",
            instruction=(row["tasks"] or [""])[0],
            task=row.get("arvrm/task") or "",
            scene=row.get("arvrm/scene") or "",
            source=row.get("arvrm/source") or "lerobot",
            group=row.get("arvrm/group") or self.id(row),
            fps=float(self.fps),
            arrays=arrays,
            images=images,
            image_steps=image_steps,
            meta=meta,
        )

    def _actions(self, columns: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> np.ndarray:
        actions = columns[self.names["actions"]]
        if actions.shape[1:] != (7,):
            raise LeftOut(f"{self.names['actions']} has shape {actions.shape[1:]} instead of 7 values")
        absolute = columns.get("action.absolute")
        # The community's default action is the absolute one, and then both columns agree.
        if self.names["actions"] == "action" and absolute is not None and np.array_equal(actions, absolute):
            return relative_action(arrays["robot_obs"], absolute, absolute[:, 6]).astype(np.float32)
        return actions.astype(np.float32)

    def _path(self, template: str, row: dict[str, Any], prefix: str, **names: str) -> Path:
        numbers = {key: int(row[f"{prefix}/{key}"]) for key in ("chunk_index", "file_index")}
        try:
            path = self.root / template.format(**numbers, **names)
        except (KeyError, IndexError, AttributeError, ValueError) as error:
            raise LeftOut(f"path {template!r} in meta/info.json cannot be filled ({error!r})") from error
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise LeftOut(f"{path} lies outside the data set")
        return path

    def _columns(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        path = self._path(self.info.get("data_path", DATA_PATH), row, "data")
        if self._table is None or self._table[0] != path:
            try:
                self._table = (path, self.pq.read_table(path))
            except (OSError, self.pa.ArrowException) as error:
                raise LeftOut(f"{path} cannot be read ({error})") from error
        whole = self._table[1]
        episode = whole.filter(self.pa.compute.equal(whole["episode_index"], row["episode_index"]))
        columns = {}
        for name in episode.column_names:
            column = episode[name].combine_chunks()
            if self.pa.types.is_fixed_size_list(column.type) or self.pa.types.is_list(column.type):
                flat = column.flatten().to_numpy(zero_copy_only=False)
                if len(column) and len(flat) % len(column):
                    raise LeftOut(f"{name} changes its width")
                columns[name] = flat.reshape(len(column), -1)
            elif self.pa.types.is_struct(column.type):
                columns[name] = column  # images inside the table
            else:
                columns[name] = column.to_numpy(zero_copy_only=False)
        for name in ("timestamp", self.names["robot_obs"], self.names["actions"]):
            if name not in columns:
                raise LeftOut(f"{path} lacks column {name!r}")
        return columns

    def _images(self, row: dict[str, Any], camera: str, columns: dict[str, Any], image_steps: np.ndarray) -> np.ndarray:
        feature = self.names[camera]
        if self.features[feature]["dtype"] == "image":
            return _inline_images(feature, columns, image_steps)
        path = self._path(self.info.get("video_path") or VIDEO_PATH, row, f"videos/{feature}", video_key=feature)
        reader = self._videos.get(feature)
        if reader is None or reader.path != path:
            if reader is not None:
                reader.close()
            reader = self._videos[feature] = _VideoReader(path)
        start = round(float(row[f"videos/{feature}/from_timestamp"]) * self.fps)
        return np.stack(list(reader.frames(start + image_steps)))

    def close(self) -> None:
        for reader in self._videos.values():
            reader.close()


def _inline_images(feature: str, columns: dict[str, Any], image_steps: np.ndarray) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    frames = []
    for step in image_steps.tolist():
        data = columns[feature][step].as_py()["bytes"] if feature in columns else None
        if not data:
            raise LeftOut(f"{feature} has no image bytes at step {step}")
        try:
            frames.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
        except (UnidentifiedImageError, OSError) as error:
            raise LeftOut(f"{feature} cannot be decoded at step {step} ({error})") from error
    return np.stack(frames)


class _VideoReader:
    """Decodes one video file from front to back, starting anew where a frame before the last is asked for."""

    def __init__(self, path: Path) -> None:
        self.path, self.container, self.decoded, self.position = path, None, iter(()), 0

    def frames(self, wanted: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the frames of these ascending numbers as (H, W, 3) uint8."""
        import av

        try:
            if self.container is None or wanted[0] < self.position:
                self.close()
                self.container = av.open(str(self.path))
                self.container.streams.video[0].thread_count = 1
                self.decoded, self.position = self.container.decode(video=0), 0
            for number in wanted.tolist():
                while True:
                    picture = next(self.decoded, None)
                    if picture is None:
                        raise LeftOut(f"{self.path} ends before frame {number}")
                    self.position += 1
                    if self.position > number:
                        break
                yield picture.to_ndarray(format="rgb24")
        except (av.FFmpegError, OSError, IndexError) as error:
            self.close()
            raise LeftOut(f"{self.path} cannot be decoded ({error})") from error

    def close(self) -> None:
        if self.container is not None:
            self.container.close()
        self.container, self.decoded, self.position = None, iter(()), 0
