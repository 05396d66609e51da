"""Small LeRobot data sets of an arm that is not CALVIN's, in format v3.0 and v2.1, laid as LeRobot does."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from video_files import picture, write_video

FPS = 10
JOINTS = ["shoulder.pos", "elbow.pos", "jaw.pos"]
FRONT, SIDE = "observation.images.front", "observation.images.side.left"
SENTENCES = ["pick the cube", "put the cube down"]


def joints(number: int, steps: int) -> np.ndarray:
    """State of an episode, (steps, 3): degrees, degrees, and a jaw that is shut in the second half."""
    along = np.linspace(0, 1, steps)[:, None]
    path = np.array([-40.0 - number, 10.0, 0.0]) + along * np.array([100.0, 20.0 + number, 0.0])
    path[:, 2] = np.where(along[:, 0] < 0.5, 30.0, 2.0)
    return path.astype(np.float32)


def actions(state: np.ndarray) -> np.ndarray:
    """The next step's joints, and 0 or 1 for the jaw."""
    moved = np.concatenate([state[1:], state[-1:]])
    moved[:, 2] = (moved[:, 2] > 10).astype(np.float32)
    return moved


def write_set(
    folder: Path, version: str = "v3.0", episodes: int = 3, steps: int = 12, image_side: bool = True, **info: object
) -> Path:
    """Write a data set: `front` a video of 64 x 48, `side.left` pictures of 32 x 32 in the table."""
    (folder / "meta").mkdir(parents=True)
    v3 = version.startswith("v3")
    tables, rows = [], []
    for number in range(episodes):
        state = joints(number, steps)
        columns = {
            "observation.state": pa.array(state.tolist(), pa.list_(pa.float32(), 3)),
            "action": pa.array(actions(state).tolist(), pa.list_(pa.float32(), 3)),
            "timestamp": pa.array(np.arange(steps) / FPS, pa.float32()),
            "frame_index": pa.array(range(steps), pa.int64()),
            "episode_index": pa.array([number] * steps, pa.int64()),
            "index": pa.array(range(number * steps, (number + 1) * steps), pa.int64()),
            "task_index": pa.array([number % 2] * steps, pa.int64()),
        }
        if image_side:
            columns[SIDE] = pa.array([{"bytes": _png(i), "path": None} for i in range(steps)])
        tables.append(pa.table(columns))
        rows.append({"episode_index": number, "tasks": [SENTENCES[number % 2]], "length": steps})
    features = {
        "observation.state": {"dtype": "float32", "shape": [3], "names": {"motors": JOINTS}},
        "action": {"dtype": "float32", "shape": [3], "names": JOINTS},
        FRONT: {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]},
        **({SIDE: {"dtype": "image", "shape": [32, 32, 3], "names": None}} if image_side else {}),
        **{name: {"dtype": "int64", "shape": [1], "names": None} for name in ("frame_index", "episode_index", "index")},
        "task_index": {"dtype": "int64", "shape": [1], "names": None},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    }
    about = {"codebase_version": version, "robot_type": "small_arm", "fps": FPS, "features": features, "chunks_size": 2}
    write = _write_v3 if v3 else _write_v2
    about |= write(folder, tables, rows, steps)
    (folder / "meta" / "info.json").write_text(json.dumps(about | info))
    return folder


def _write_v3(folder: Path, tables: list[pa.Table], rows: list[dict], steps: int) -> dict:
    data, meta = folder / "data" / "chunk-000", folder / "meta" / "episodes" / "chunk-000"
    video = folder / "videos" / FRONT / "chunk-000"
    for place in (data, meta, video):
        place.mkdir(parents=True)
    pq.write_table(pa.concat_tables(tables), data / "file-000.parquet")
    for number, row in enumerate(rows):
        row |= {"data/chunk_index": 0, "data/file_index": 0}
        row |= {f"videos/{FRONT}/chunk_index": 0, f"videos/{FRONT}/file_index": 0}
        row |= {f"videos/{FRONT}/from_timestamp": number * steps / FPS}
    pq.write_table(pa.Table.from_pylist(rows), meta / "file-000.parquet")
    tasks = pa.table({"task_index": [0, 1], "task": SENTENCES})
    pq.write_table(tasks, folder / "meta" / "tasks.parquet")
    write_video(video / "file-000.mp4", [picture(i % 20) for i in range(steps * len(rows))], FPS)
    return {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }


def _write_v2(folder: Path, tables: list[pa.Table], rows: list[dict], steps: int) -> dict:
    for number, table in enumerate(tables):
        chunk = f"chunk-{number // 2:03d}"
        data, video = folder / "data" / chunk, folder / "videos" / chunk / FRONT
        for place in (data, video):
            place.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, data / f"episode_{number:06d}.parquet")
        pictures = [picture((number * steps + i) % 20) for i in range(steps)]
        write_video(video / f"episode_{number:06d}.mp4", pictures, FPS)
    for name, lines in (
        ("episodes", rows),
        ("tasks", [{"task_index": i, "task": task} for i, task in enumerate(SENTENCES)]),
    ):
        (folder / "meta" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }


def _png(number: int) -> bytes:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture(number % 20, 32, 32)).save(stream, "PNG")
    return stream.getvalue()


def columns_of(folder: Path) -> dict[str, np.ndarray]:
    """State and action of all rows of a data set."""
    tables = [pq.read_table(file) for file in sorted(folder.rglob("data/**/*.parquet"))]
    both = ("observation.state", "action")
    return {name: np.concatenate([np.array(table[name].to_pylist(), np.float32) for table in tables]) for name in both}
