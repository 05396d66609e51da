"""Demonstrations of the scripted motion, written as a LeRobot data set v3 as a person with an arm would have one."""

from __future__ import annotations

import functools
import json
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from so101_world import ROBOT, SENTENCES, CubesWorld, start_of

from arvrm.files import replacing_folder
from arvrm.interface import Job, PolicySpec

SIZES = {"front": 64}
LONGEST, AFTER = 60, 3
"""Control steps of a demonstration, and how many follow its success."""
_FILE = "chunk-000/file-000"


@dataclass(frozen=True)
class Demonstration:
    """One task done once, N control steps.

    Attributes:
        state: (N, 6) float32, the measured joints; action: (N, 6) float32, the targets that the demonstrator wants.
        images: camera name -> (N, H, W, 3) uint8.
    """

    task: str
    state: np.ndarray
    action: np.ndarray
    images: dict[str, np.ndarray]


def demonstrations(tasks: Sequence[str], count: int, seed: int, workers: int = 2) -> Iterator[Demonstration]:
    """Yield `count` successful demonstrations, the tasks in turn; failed tries are drawn anew.

    Now and then a push of some degrees, which `action` does not have, moves the arm off its way for three steps: the
    data show how to come back.

    Args:
        workers: processes; they change nothing but the time.
    """
    one = functools.partial(_demonstrated, tuple(tasks), seed)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context) as pool:
        yield from pool.map(one, range(count), chunksize=4)


def _demonstrated(tasks: tuple[str, ...], seed: int, number: int) -> Demonstration:
    world, task = _world(), tasks[number % len(tasks)]
    attempts = (_attempt(world, task, np.random.default_rng([seed, number, n])) for n in range(100))
    return next(found for found in attempts if found is not None)


@functools.cache
def _world() -> CubesWorld:
    return CubesWorld(None, PolicySpec(ROBOT.name, SIZES))


def _attempt(world: CubesWorld, task: str, rng: np.random.Generator) -> Demonstration | None:
    start = world.start(Job(0, (task,), (SENTENCES[task],), start_of(rng)))
    act, push, success = world.expert(task, rng), np.zeros(6), None
    rows: list[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]] = []
    for step in range(LONGEST):
        if step % 3 == 0:
            push = rng.normal(0.0, (3.0, 3.0, 3.0, 3.0, 3.0, 4.0)) * (rng.random() < 0.3)
        state, images, action = world.observe().state["state"], world.cameras(), act()
        rows.append((state, action, images))
        info = world.step(action + push)
        if success is None and world.completed(start, info, task):
            success = step
        if success is not None and step == success + AFTER:
            states, actions, views = zip(*rows, strict=True)
            frames = {name: np.stack([view[name] for view in views]) for name in SIZES}
            return Demonstration(task, np.float32(states), np.float32(actions), frames)
    return None


def write_data_set(output: Path, found: Iterable[Demonstration]) -> None:
    """Write LeRobot's layout v3: one data file, one film a camera; the folder appears when it is whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(ROBOT.components)
    fps, texts = int(ROBOT.control_hz), list(SENTENCES.values())
    episodes: list[dict[str, Any]] = []
    states, actions, columns = [], [], []
    with replacing_folder(output, overwrite=False) as folder:
        films = {name: _Film(folder / f"videos/{_key(name)}/{_FILE}.mp4", size, fps) for name, size in SIZES.items()}
        first = 0
        for index, one in enumerate(found):
            steps, task = len(one.state), texts.index(SENTENCES[one.task])
            states.append(one.state)
            actions.append(one.action)
            columns.append(np.stack([np.arange(steps), np.full(steps, index), np.full(steps, task)], 1))
            places = {"data": None, **{f"videos/{_key(name)}": name for name in SIZES}}
            row = {"episode_index": index, "tasks": [texts[task]], "length": steps}
            row |= {"dataset_from_index": first, "dataset_to_index": first + steps}
            row |= {
                f"{place}/{part}": 0 for place in ("meta/episodes", *places) for part in ("chunk_index", "file_index")
            }
            for name, film in films.items():
                row[f"videos/{_key(name)}/from_timestamp"] = first / fps
                row[f"videos/{_key(name)}/to_timestamp"] = (first + steps) / fps
                film.add(one.images[name])
            first += steps
            episodes.append(row)
        for film in films.values():
            film.close()
        numbers = np.concatenate(columns)
        values = {"observation.state": np.concatenate(states), "action": np.concatenate(actions)}
        table = {name: pa.FixedSizeListArray.from_arrays(pa.array(v.reshape(-1)), 6) for name, v in values.items()}
        table["timestamp"] = pa.array((numbers[:, 0] / fps).astype(np.float32))
        for column, name in enumerate(("frame_index", "episode_index", "task_index")):
            table[name] = pa.array(numbers[:, column])
        table["index"] = pa.array(np.arange(first))
        _write(pq, pa.table(table), folder / f"data/{_FILE}.parquet")
        _write(pq, pa.Table.from_pylist(episodes), folder / f"meta/episodes/{_FILE}.parquet")
        _write(pq, _tasks(pa, texts), folder / "meta/tasks.parquet")
        statistics = {name: _statistics(value) for name, value in values.items()}
        (folder / "meta/stats.json").write_text(json.dumps(statistics))
        vector = {"dtype": "float32", "shape": [6], "names": names}
        single = {"dtype": "int64", "shape": [1], "names": None}
        features: dict[str, Any] = {name: vector for name in values}
        features["timestamp"] = single | {"dtype": "float32"}
        features |= {name: single for name in ("frame_index", "episode_index", "task_index", "index")}
        features |= {_key(name): _video_feature(size, fps) for name, size in SIZES.items()}
        information = {
            "codebase_version": "v3.0",
            "robot_type": "so101_follower",
            "total_episodes": len(episodes),
            "total_frames": first,
            "total_tasks": len(texts),
            "chunks_size": 1000,
            "fps": fps,
            "splits": {"train": f"0:{len(episodes)}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
            "features": features,
        }
        (folder / "meta/info.json").write_text(json.dumps(information, indent=1))


class _Film:
    def __init__(self, file: Path, size: int, fps: int) -> None:
        import av

        file.parent.mkdir(parents=True)
        self.container = av.open(str(file), "w")
        self.stream = self.container.add_stream("libx264", rate=Fraction(fps))
        self.stream.width = self.stream.height = size
        self.stream.pix_fmt, self.stream.options = "yuv420p", {"crf": "14", "g": "10", "bf": "0"}

    def add(self, frames: np.ndarray) -> None:
        import av

        for frame in frames:
            self.container.mux(self.stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    def close(self) -> None:
        self.container.mux(self.stream.encode())
        self.container.close()


def _key(camera: str) -> str:
    return f"observation.images.{camera}"


def _write(pq: Any, table: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


def _tasks(pa: Any, texts: list[str]) -> Any:
    # LeRobot reads this file with pandas and takes the sentence as the index; only this metadata says so.
    text = {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    number = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"}
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": [number | {"metadata": None}, text]}
    table = pa.table({"task_index": pa.array(range(len(texts)), pa.int64()), "task": pa.array(texts)})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _statistics(values: np.ndarray) -> dict[str, list]:
    kinds = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    return {name: value.astype(float).tolist() for name, value in kinds.items()} | {"count": [len(values)]}


def _video_feature(size: int, fps: int) -> dict[str, Any]:
    about = {"height": size, "width": size, "codec": "h264", "pix_fmt": "yuv420p", "is_depth_map": False, "fps": fps}
    about |= {"channels": 3}
    information = {f"video.{key}": value for key, value in about.items()} | {"has_audio": False}
    return {"dtype": "video", "shape": [size, size, 3], "names": ["height", "width", "channels"], "info": information}
