"""A robot store as a LeRobot data set v3."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from arvrm.config import bounded, check_bounds
from arvrm.episodes import EpisodeHeader, EpisodeStore
from arvrm.files import replacing_folder, write_json
from arvrm.interface import UserError
from arvrm.robots import CALVIN
from arvrm.sources.lerobot.layout import (
    ARRAY_FEATURES,
    CAMERA_FEATURES,
    DATA_PATH,
    EPISODES_PATH,
    VERSION,
    VIDEO_PATH,
    arrow,
)

_OWN_ARRAYS = ("robot_obs", "scene_obs", "target_pose", "executed", "absolute_actions", "landmarks", "landmark_pixels")
"""Kept bit for bit in columns `arvrm.<name>`, flattened to one vector a row."""
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
        data_mb, video_mb: a file of either kind is closed when it has grown to this size; 0: each episode has its own.
        overwrite: replace a LeRobot data set that exists.
    """

    store: str
    output: str
    crf: int = bounded(18, least=0, most=51)
    chroma: Literal["420", "444"] = "420"
    data_mb: int = bounded(100, least=0, most=10**6)
    video_mb: int = bounded(200, least=0, most=10**6)
    overwrite: bool = False

    __post_init__ = check_bounds


def export_lerobot(config: ExportLeRobotConfig) -> Path:
    """Write a robot store as a LeRobot data set v3; it appears under its name when it is whole.

    Steps between stored images repeat the last one (LeRobot wants a frame per step). Depth maps and tactile images do
    not travel.

    Returns:
        The data set's folder.

    Raises:
        UserError: the store has human, unlike or no episodes, or the output exists.
    """
    pa, pq = arrow()
    store, output = EpisodeStore(config.store), Path(config.output)
    headers = list(store.headers())
    fps, sizes, arrays = _common(store, headers)
    with replacing_folder(output, config.overwrite, _check_is_data_set) as partial:
        _write(pa, pq, store, headers, partial, config, (fps, sizes, arrays))
    return output


def _check_is_data_set(output: Path) -> None:
    if not (output / "meta" / "info.json").is_file():
        raise UserError(f"{output}: is no LeRobot data set, so it is not replaced; choose another path")


def _write(
    pa: Any,
    pq: Any,
    store: EpisodeStore,
    headers: list[EpisodeHeader],
    partial: Path,
    config: ExportLeRobotConfig,
    common: tuple[float, dict[str, tuple[int, int]], list[str]],
) -> None:
    """Write the data set into a folder; `common` as `_common` returns it."""
    fps, sizes, arrays = common
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
    path = partial / EPISODES_PATH.format(chunk_index=0, file_index=0)
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    pq.write_table(_tasks_table(pa, texts), partial / "meta" / "tasks.parquet")
    write_json(partial / "meta" / "stats.json", _merge_statistics(statistics))
    write_json(partial / "meta" / "info.json", _info(config, headers, texts, fps, sizes, arrays))


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
    names = [name for name in CALVIN.arrays if name in shared and name in {*ARRAY_FEATURES, *_OWN_ARRAYS}]
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
    widths = {name: int(np.prod(spec.shape)) for name, spec in CALVIN.arrays.items()}
    found = {feature: ("float32", widths[name]) for name, feature in ARRAY_FEATURES.items() if name in arrays}
    found |= {f"arvrm.{n}": (CALVIN.arrays[n].dtype, widths[n]) for n in _OWN_ARRAYS if n in arrays}
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
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH,
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
            self.writer = self.pq.ParquetWriter(self.next_file(DATA_PATH), self.schema, compression="snappy")
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
            self.container = av.open(str(self.next_file(VIDEO_PATH, video_key=self.feature)), "w")
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
