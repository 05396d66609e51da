"""LeRobot data sets (format v3) out of a robot store and into one.

Features are named and shaped as in the community's CALVIN conversions: observation.images.top (static camera) and
.wrist (gripper camera) as H.264, observation.state (robot_obs, 15), observation.environment_state (scene_obs, 24),
action (relative, 7), action.absolute (7), all float32. What float32 and video cannot carry travels in columns that
start with `arvrm.` (float64 arrays, bit for bit) and `arvrm/` (an episode's id, group, image steps ...), so that a
store comes back as it was, images apart. docs/calvin.md has sizes and PSNR.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from arvrm.episodes import ARRAYS, Episode, EpisodeHeader, EpisodeStore, EpisodeWriter
from arvrm.interface import UserError
from arvrm.robots.calvin import EULER_STEP_RAD, POSITION_STEP_M
from arvrm.sources.pipeline import LeftOut, encode_in_order, store_in_order, write_json

VERSION = "v3.0"
CAMERA_FEATURES = {"rgb_static": "observation.images.top", "rgb_gripper": "observation.images.wrist"}
ARRAY_FEATURES = {
    "robot_obs": "observation.state",
    "scene_obs": "observation.environment_state",
    "actions": "action",
    "absolute_actions": "action.absolute",
}
_OWN_ARRAYS = ("robot_obs", "scene_obs", "target_pose", "executed", "absolute_actions", "landmarks", "landmark_pixels")
"""Kept bit for bit in columns `arvrm.<name>`, flattened to one vector a row."""
_TOP_NAMES = ("observation.images.top", "observation.images.static", "observation.images.rgb_static", "image")
_WRIST_NAMES = (
    *("observation.images.wrist", "observation.images.gripper", "observation.images.rgb_gripper"),
    "wrist_image",
)
_RELATIVE_NAMES = ("action.relative", "action.rel", "rel_actions")
_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_DATA_PATH = f"data/{_FILE}.parquet"
_VIDEO_PATH = f"videos/{{video_key}}/{_FILE}.mp4"
_EPISODES_PATH = f"meta/episodes/{_FILE}.parquet"
_CHUNK_FILES = 1000
_STATE_NAMES = (
    *("tcp_x", "tcp_y", "tcp_z", "tcp_roll", "tcp_pitch", "tcp_yaw", "gripper_width"),
    *(f"joint_{i}" for i in range(7)),
    "gripper_action",
)
_ACTION_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
_STATISTICS_FRAMES = 32


@dataclass(frozen=True)
class ExportLeRobotConfig:
    """What `arvrm export lerobot` does.

    Attributes:
        store: a store of robot episodes, all at one frame rate and image size.
        output: the data set's folder.
        crf: H.264 quality, 0 (best) to 51.
        chroma: resolution of colour: "420" is usual; "444" keeps the colours of small things, and few players show it.
        data_mb, video_mb: a file of either kind is closed when it has grown to this size.
        overwrite: replace a LeRobot data set that exists.
    """

    store: str
    output: str
    crf: int = 18
    chroma: Literal["420", "444"] = "420"
    data_mb: int = 100
    video_mb: int = 200
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf is {self.crf}; choose 0 to 51")


@dataclass(frozen=True)
class ConvertLeRobotConfig:
    """What `arvrm convert lerobot` does.

    Attributes:
        input: the data set's folder, with CALVIN's 15 state values.
        output: the store's folder.
        top, wrist: features that become rgb_static and rgb_gripper; None: found by name.
        action: feature with relative actions; None: found by name, or worked out from absolute ones.
        workers, resume, overwrite, jpeg_quality: as in ConvertCalvinConfig (decoding takes one thread).
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


def relative_actions(robot_obs: np.ndarray, absolute: np.ndarray) -> np.ndarray:
    """CALVIN's relative actions from absolute ones.

    Args:
        robot_obs: (N, 15) states before the actions.
        absolute: (N, 7) target TCP position (m), Euler angles (rad), gripper +-1.

    Returns:
        (N, 7) float32: differences to the measured TCP in units of POSITION_STEP_M and EULER_STEP_RAD, Euler
        differences wrapped to [-pi, pi], all clipped to [-1, 1]; the gripper as it is.
    """
    position = (absolute[:, :3] - robot_obs[:, :3]) / POSITION_STEP_M
    turn = (absolute[:, 3:6] - robot_obs[:, 3:6] + np.pi) % (2 * np.pi) - np.pi
    moves = np.clip(np.concatenate([position, turn / EULER_STEP_RAD], axis=1), -1, 1)
    return np.concatenate([moves, absolute[:, 6:7]], axis=1).astype(np.float32)


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError:
        raise UserError("LeRobot data sets need pyarrow; install it with `pip install arvrm[lerobot]`") from None
    return pyarrow, pyarrow.parquet


# ---------------------------------------------------------------------------------------------------------------------
# Out
# ---------------------------------------------------------------------------------------------------------------------


def export_lerobot(config: ExportLeRobotConfig) -> Path:
    """Write a robot store as a LeRobot data set v3; it appears under its name when it is whole.

    Steps between stored images repeat the last one (LeRobot wants a frame per step). Depth maps and tactile images do
    not travel.

    Returns:
        The data set's folder.

    Raises:
        UserError: the store has human, unlike or no episodes, or the output exists.
    """
    pa, pq = _arrow()
    store, output = EpisodeStore(config.store), Path(config.output)
    headers = list(store.headers())
    fps, sizes, arrays = _common(store, headers)
    if output.exists():
        if not config.overwrite:
            raise UserError(f"{output}: exists already; pass --overwrite to replace it")
        if not (output / "meta" / "info.json").is_file():
            raise UserError(f"{output}: is no LeRobot data set, so it is not replaced; choose another path")
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    texts = list(dict.fromkeys(header.instruction for header in headers))
    schema = _data_schema(pa, arrays)
    videos = {
        camera: _VideoFiles(partial, feature, sizes[camera], fps, config) for camera, feature in CAMERA_FEATURES.items()
    }
    data = _DataFiles(pq, partial, schema, config.data_mb << 20)
    rows, statistics, first = [], [], 0
    try:
        for index, header in enumerate(headers):
            values = store.arrays(header.id, arrays)
            columns = _columns(header, values, index, first, texts.index(header.instruction))
            row: dict[str, Any] = {
                "episode_index": index,
                "tasks": [header.instruction],
                "length": header.steps,
                "dataset_from_index": first,
                "dataset_to_index": first + header.steps,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
            row["data/chunk_index"], row["data/file_index"] = data.write(pa.table(_to_arrow(pa, columns, schema)))
            found = {name: _describe(column) for name, column in columns.items() if not name.startswith("arvrm.")}
            for camera, video in videos.items():
                frames = store.frames(header.id, camera, range(header.frames))
                at = np.searchsorted(header.image_steps, np.arange(header.steps), side="right") - 1
                row |= video.write(frames, np.maximum(at, 0))
                found[CAMERA_FEATURES[camera]] = _describe_images(frames)
            statistics.append(found)
            row |= {f"stats/{name}/{key}": value for name, one in found.items() for key, value in one.items()}
            row |= {f"arvrm/{key}": getattr(header, key) for key in ("id", "task", "scene", "group", "source")}
            row |= {"arvrm/meta": json.dumps(header.meta), "arvrm/image_steps": header.image_steps.tolist()}
            rows.append(row)
            first += header.steps
    finally:
        for closing in (data, *videos.values()):
            closing.close()
    path = partial / _EPISODES_PATH.format(chunk_index=0, file_index=0)
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    pq.write_table(_tasks_table(pa, texts), partial / "meta" / "tasks.parquet")
    write_json(partial / "meta" / "stats.json", _merge_statistics(statistics))
    write_json(partial / "meta" / "info.json", _info(config, headers, texts, fps, sizes, arrays))
    if output.exists():
        shutil.rmtree(output)
    os.replace(partial, output)
    return output


def _common(store: EpisodeStore, headers: list[EpisodeHeader]) -> tuple[float, dict[str, tuple[int, int]], list[str]]:
    """Return what all episodes share: frame rate, image sizes, and names of arrays that travel."""
    if not headers:
        raise UserError(f"{store.path}: holds no episodes; nothing to export")
    for header in headers:
        if header.embodiment != "robot":
            raise UserError(f"{store.path}: episode {header.id!r} is a {header.embodiment}'s; only robots have actions")
        if (header.fps, header.cameras) != (headers[0].fps, headers[0].cameras):
            raise UserError(
                f"{store.path}: episode {header.id!r} has {header.fps:g} fps and images {header.cameras}, "
                f"{headers[0].id!r} has {headers[0].fps:g} and {headers[0].cameras}; export stores that agree"
            )
    if any(pixels % 2 for size in headers[0].cameras.values() for pixels in size):
        raise UserError(f"{store.path}: images {headers[0].cameras}: H.264 needs even sizes; make them so")
    shared = set.intersection(*(set(header.arrays) for header in headers))
    names = [name for name in ARRAYS["robot"] if name in shared and name in {*ARRAY_FEATURES, *_OWN_ARRAYS}]
    return headers[0].fps, headers[0].cameras, names


def _columns(
    header: EpisodeHeader, values: dict[str, np.ndarray], index: int, first: int, task: int
) -> dict[str, np.ndarray]:
    steps = np.arange(header.steps)
    columns = {feature: values[name].astype(np.float32) for name, feature in ARRAY_FEATURES.items() if name in values}
    columns |= {f"arvrm.{n}": values[n].reshape(header.steps, -1) for n in _OWN_ARRAYS if n in values}
    columns |= {
        "timestamp": (steps / header.fps).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(header.steps, index),
        "index": first + steps,
        "task_index": np.full(header.steps, task),
    }
    return columns


def _features(arrays: list[str]) -> dict[str, tuple[str, int]]:
    """Return column -> (dtype, width) of the data files."""
    widths = {name: int(np.prod(spec.shape)) for name, spec in ARRAYS["robot"].items()}
    found = {feature: ("float32", widths[name]) for name, feature in ARRAY_FEATURES.items() if name in arrays}
    found |= {f"arvrm.{n}": (ARRAYS["robot"][n].dtype, widths[n]) for n in _OWN_ARRAYS if n in arrays}
    found["timestamp"] = ("float32", 1)
    return found | {name: ("int64", 1) for name in ("frame_index", "episode_index", "index", "task_index")}


def _data_schema(pa: Any, arrays: list[str]) -> Any:
    kinds = {"float32": pa.float32(), "float64": pa.float64(), "int64": pa.int64()}
    features = _features(arrays).items()
    return pa.schema([(n, kinds[k] if width == 1 else pa.list_(kinds[k], width)) for n, (k, width) in features])


def _to_arrow(pa: Any, columns: dict[str, np.ndarray], schema: Any) -> dict[str, Any]:
    made = {}
    for name in schema.names:
        kind, values = schema.field(name).type, columns[name]
        if values.ndim == 1:
            made[name] = pa.array(values, kind)
        else:
            flat = pa.array(np.ascontiguousarray(values).reshape(-1), kind.value_type)
            made[name] = pa.FixedSizeListArray.from_arrays(flat, kind.list_size)
    return made


def _info(
    config: ExportLeRobotConfig,
    headers: list[EpisodeHeader],
    texts: list[str],
    fps: float,
    sizes: dict[str, tuple[int, int]],
    arrays: list[str],
) -> dict[str, Any]:
    names = {"observation.state": _STATE_NAMES, "action": _ACTION_NAMES, "action.absolute": _ACTION_NAMES}
    features: dict[str, Any] = {}
    for camera, feature in CAMERA_FEATURES.items():
        height, width = sizes[camera]
        features[feature] = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": height,
                "video.width": width,
                "video.codec": "h264",
                "video.pix_fmt": f"yuv{config.chroma}p",
                "video.is_depth_map": False,
                "video.fps": _plain(fps),
                "video.channels": 3,
                "has_audio": False,
            },
        }
    for name, (dtype, width) in _features(arrays).items():
        features[name] = {"dtype": dtype, "shape": [width], "names": list(names[name]) if name in names else None}
    return {
        "codebase_version": VERSION,
        "robot_type": "panda",
        "total_episodes": len(headers),
        "total_frames": sum(header.steps for header in headers),
        "total_tasks": len(texts),
        "chunks_size": _CHUNK_FILES,
        "data_files_size_in_mb": config.data_mb,
        "video_files_size_in_mb": config.video_mb,
        "fps": _plain(fps),
        "splits": {"train": f"0:{len(headers)}"},
        "data_path": _DATA_PATH,
        "video_path": _VIDEO_PATH,
        "features": features,
    }


def _plain(number: float) -> int | float:
    return int(number) if float(number).is_integer() else number


def _tasks_table(pa: Any, texts: list[str]) -> Any:
    # LeRobot reads this file with pandas and expects the sentence as the index; only this metadata says so.
    column = {"metadata": None, "pandas_type": "unicode", "numpy_type": "object"}
    number = {"metadata": None, "pandas_type": "int64", "numpy_type": "int64"}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": "task_index", "field_name": "task_index", **number},
            {"name": "task", "field_name": "task", **column},
        ],
    }
    table = pa.table({"task_index": pa.array(range(len(texts)), pa.int64()), "task": pa.array(texts, pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _describe(values: np.ndarray) -> dict[str, list]:
    values = values.astype(np.float64).reshape(len(values), -1)
    return {
        "min": values.min(0).tolist(),
        "max": values.max(0).tolist(),
        "mean": values.mean(0).tolist(),
        "std": values.std(0).tolist(),
        "count": [len(values)],
    }


def _describe_images(frames: np.ndarray) -> dict[str, list]:
    """Statistics per channel over a few frames, in [0, 1], as (3, 1, 1) nested lists."""
    chosen = frames[np.linspace(0, len(frames) - 1, min(len(frames), _STATISTICS_FRAMES)).astype(int)]
    found = _describe(chosen.reshape(-1, 3) / 255.0)
    return {k: [[[v]] for v in values] if k != "count" else [len(chosen)] for k, values in found.items()}


def _merge_statistics(episodes: list[dict[str, dict[str, list]]]) -> dict[str, dict[str, list]]:
    merged = {}
    for name in episodes[0]:
        count = np.array([one[name]["count"][0] for one in episodes], np.float64)
        stacked = {key: np.array([one[name][key] for one in episodes]) for key in ("min", "max", "mean", "std")}
        weight = (count / count.sum()).reshape(-1, *[1] * (stacked["mean"].ndim - 1))
        mean = (weight * stacked["mean"]).sum(0)
        variance = (weight * (stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2)).sum(0)
        merged[name] = {
            "min": stacked["min"].min(0).tolist(),
            "max": stacked["max"].max(0).tolist(),
            "mean": mean.tolist(),
            "std": np.sqrt(variance).tolist(),
            "count": [int(count.sum())],
        }
    return merged


class _Numbered:
    """Counts files: chunk-000/file-000, ... of at most `limit` bytes or so each."""

    def __init__(self, root: Path, limit: int) -> None:
        self.root, self.limit, self.number = root, limit, -1

    def next_file(self, template: str, **names: str) -> Path:
        self.number += 1
        chunk, file = self.at
        path = self.root / template.format(chunk_index=chunk, file_index=file, **names)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def at(self) -> tuple[int, int]:
        return divmod(self.number, _CHUNK_FILES)


class _DataFiles(_Numbered):
    """Parquet files with one row group per episode."""

    def __init__(self, pq: Any, root: Path, schema: Any, limit: int) -> None:
        super().__init__(root, limit)
        self.pq, self.schema, self.writer, self.size = pq, schema, None, 0

    def write(self, table: Any) -> tuple[int, int]:
        if self.writer is None or self.size >= self.limit:
            self.close()
            self.writer = self.pq.ParquetWriter(self.next_file(_DATA_PATH), self.schema, compression="snappy")
        self.writer.write_table(table)
        self.size += table.nbytes
        return self.at

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.writer, self.size = None, 0


class _VideoFiles(_Numbered):
    """H.264 files of one camera, episodes one after another."""

    def __init__(
        self, root: Path, feature: str, size: tuple[int, int], fps: float, config: ExportLeRobotConfig
    ) -> None:
        super().__init__(root, config.video_mb << 20)
        self.feature, self.size, self.config = feature, size, config
        self.fps = Fraction(fps).limit_denominator(1001)
        self.container, self.stream, self.frames, self.bytes = None, None, 0, 0

    def write(self, frames: np.ndarray, order: np.ndarray) -> dict[str, Any]:
        """Append frames[order]; return the episode's columns."""
        import av

        if self.container is None or self.bytes >= self.limit:
            self.close()
            self.container = av.open(str(self.next_file(_VIDEO_PATH, video_key=self.feature)), "w")
            self.stream = self.container.add_stream("libx264", rate=self.fps)
            self.stream.height, self.stream.width = self.size
            self.stream.pix_fmt = f"yuv{self.config.chroma}p"
            # Every other frame is a key frame, so that training can jump; one thread, so that the bytes are the same.
            self.stream.options = {"crf": str(self.config.crf), "g": "2", "preset": "faster"}
            self.stream.thread_count = 1
        start = self.frames
        for row in order:
            picture = av.VideoFrame.from_ndarray(frames[row], format="rgb24")
            picture.pts = self.frames
            picture.time_base = 1 / self.fps
            self.frames += 1
            self._mux(picture)
        key, (chunk, file) = f"videos/{self.feature}", self.at
        return {
            f"{key}/chunk_index": chunk,
            f"{key}/file_index": file,
            f"{key}/from_timestamp": float(start / self.fps),
            f"{key}/to_timestamp": float(self.frames / self.fps),
        }

    def _mux(self, picture: Any) -> None:
        for packet in self.stream.encode(picture):
            self.bytes += packet.size
            self.container.mux(packet)

    def close(self) -> None:
        if self.container is not None:
            self._mux(None)
            self.container.close()
        self.container, self.stream, self.frames, self.bytes = None, None, 0, 0


# ---------------------------------------------------------------------------------------------------------------------
# In
# ---------------------------------------------------------------------------------------------------------------------


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
        self.pa, self.pq = _arrow()
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
            if list(self.features.get(feature, {}).get("shape", ())) == list(ARRAYS["robot"][array].shape):
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
        for name, spec in ARRAYS["robot"].items():
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
            return relative_actions(arrays["robot_obs"], absolute.astype(np.float64))
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
        path = self._path(self.info.get("data_path", _DATA_PATH), row, "data")
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
        path = self._path(self.info.get("video_path") or _VIDEO_PATH, row, f"videos/{feature}", video_key=feature)
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
