"""How fast windows come out of an episode store, against a loop that only decodes the same JPEGs.

    python benchmarks/store.py [--store STORE] [--episodes 64] [--windows 300] [--open 100000]

A window is 10 consecutive frames of both cameras, decoded, with the state and action rows of its steps. The reference
decodes the same JPEGs from a list in memory: what no store can beat. Rates are of the clock, `ratio_cpu` is of the
processor's time, which other programs on the machine disturb less. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import simplejpeg

from arvrm.episodes import Episode, EpisodeStore, EpisodeWriter, encode_episode

FRAMES = 10
CAMERAS = ("rgb_static", "rgb_gripper")


def synthetic_episode(number: int, rng: np.random.Generator, steps: int = 66) -> Episode:
    """An episode of the generator's usual sizes whose images have edges and texture, so that JPEGs weigh what they do
    in practice (some 3 kB)."""
    at = np.arange(0, steps, 3, dtype=np.int32)
    actions = rng.uniform(-1, 1, (steps, 7)).astype(np.float32)
    actions[:, 6] = 1
    images = {}
    for camera, size in zip(CAMERAS, (96, 64), strict=True):
        patches = rng.integers(0, 256, (len(at), size // 16, size // 16, 3))
        flat = np.kron(patches, np.ones((1, 16, 16, 1)))
        images[camera] = np.clip(flat + rng.normal(0, 4, flat.shape), 0, 255).astype(np.uint8)
    arrays = {"robot_obs": rng.normal(size=(steps, 15)), "target_pose": rng.normal(size=(steps, 6))}
    return Episode(
        f"robot-{number:06d}", "robot", "open the drawer", "open_drawer", "A", "benchmark", f"g{number}", 30.0,
        {**arrays, "actions": actions, "executed": actions}, images, at, {},
    )  # fmt: skip


def windows_of(store: EpisodeStore, count: int, rng: np.random.Generator) -> list[tuple[str, int]]:
    """Draw (id, first frame) of random windows."""
    long_enough = [h for h in store.headers() if h.embodiment == "robot" and h.frames >= FRAMES]
    chosen = rng.integers(len(long_enough), size=count)
    return [(long_enough[i].id, int(rng.integers(long_enough[i].frames - FRAMES + 1))) for i in chosen]


def read_windows(store: EpisodeStore, windows: list[tuple[str, int]]) -> np.ndarray:
    """Return the seconds that reading takes: of the clock, and of the processor."""
    begin = clocks()
    for id, first in windows:
        rows = range(first, first + FRAMES)
        for camera in CAMERAS:
            store.frames(id, camera, rows)
        steps = store.header(id).image_steps
        store.arrays(id, ("robot_obs", "actions"), slice(int(steps[first]), int(steps[first + FRAMES - 1]) + 1))
    return clocks() - begin


def clocks() -> np.ndarray:
    """Seconds of the clock and of the processor."""
    return np.array([time.perf_counter(), time.process_time()])


def decode_only(store: EpisodeStore, windows: list[tuple[str, int]]) -> np.ndarray:
    """Return the seconds that decoding the same JPEGs from memory takes."""
    jpegs = []
    for id, first in windows:
        header = store.header(id)
        images = [image[4:] for _, image in store.encoded(id).images]  # without the checksum
        for k in range(len(CAMERAS)):
            jpegs.append(images[k * header.frames + first : k * header.frames + first + FRAMES])
    begin = clocks()
    for window in jpegs:
        for jpeg in window:
            simplejpeg.decode_jpeg(jpeg, "RGB")
    return clocks() - begin


def measure_open(path: Path, count: int) -> dict[str, float]:
    """Make a store of `count` headers and time its opening and the first listing of ids and headers."""
    encoded = encode_episode(synthetic_episode(0, np.random.default_rng(0)))
    with EpisodeWriter(path, {}) as writer:
        for start in range(0, count, 10000):
            numbers = range(start, min(start + 10000, count))
            writer.append_encoded(*(replace(encoded, id=f"r{i:08d}", arrays=(), images=()) for i in numbers))
    begin = time.perf_counter()
    store = EpisodeStore(path)
    size = len(store)
    opened = time.perf_counter()
    store.ids  # noqa: B018
    listed = time.perf_counter()
    for _ in store.headers():
        pass
    return {
        "episodes": size,
        "open_s": round(opened - begin, 4),
        "ids_s": round(listed - opened, 3),
        "headers_s": round(time.perf_counter() - listed, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="an existing store of robot episodes; default: a synthetic one")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--windows", type=int, default=300)
    parser.add_argument("--open", type=int, default=100_000, help="episodes of the opening test; 0: skip it")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.store
        result: dict[str, object] = {}
        if path is None:
            path = Path(folder) / "store"
            begin = time.perf_counter()
            with EpisodeWriter(path, {}) as writer:
                for number in range(arguments.episodes):
                    writer.append(synthetic_episode(number, rng))
            seconds = time.perf_counter() - begin
            result["written_frames_per_s"] = round(EpisodeStore(path).manifest["counts"]["frames"] / seconds, 1)
        store = EpisodeStore(path)
        windows = windows_of(store, arguments.windows, rng)
        read_windows(store, windows[:50])
        decode_only(store, windows[:50])
        # In turns, and the best of each, since other programs share the machine.
        rounds = [(read_windows(store, windows), decode_only(store, windows)) for _ in range(12)]
        read, decode = np.min(rounds, axis=0)
        count = len(windows)
        result |= {
            "windows_per_s": round(count / read[0], 1),
            "decode_only_windows_per_s": round(count / decode[0], 1),
            "ratio": round(decode[0] / read[0], 3),
            "ratio_cpu": round(decode[1] / read[1], 3),
        }
        if arguments.open:
            result["open"] = measure_open(Path(folder) / "many", arguments.open)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
