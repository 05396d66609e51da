"""Stage 1's index at 1 M and 10 M frames: memory, time to start, windows per second out of the sampler alone.

    python benchmarks/scale.py [--frames 1000000 10000000] [--folder DIR]

The stores hold headers only: 100 stored frames and 300 steps an episode, a sentence of 10,000, a task of 100, a video
of 20 episodes, eight stores of unlike weight. That is all that the index is made of; images and keypoints are read
when a batch asks for them. Each measurement is a process of its own: `first` reads every header, `cached` what the
first left in `data.cache`. `anonymous_mib` is the growth of memory that the process needs, `mapped_mib` that of pages
of the stores, which can be given up, `arrays_mib` the sum over the arrays held. For comparison, `objects` is a list of
one Python tuple a frame, and a shuffled list of their numbers. Prints one line of JSON a size.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STORES, FRAMES, EVERY, BATCH = 8, 100, 3, 256


def make_stores(folder: Path, frames: int) -> None:
    """Write the headers of `frames` / 100 episodes."""
    import msgpack
    import numpy as np

    from arvrm.episodes import EncodedEpisode, EpisodeWriter
    from arvrm.episodes.records import seal

    steps = FRAMES * EVERY
    header: dict[str, Any] = {
        "embodiment": "human",
        "scene": "A",
        "source": "benchmark",
        "fps": 30.0,
        "steps": steps,
        "image_steps": np.arange(0, steps, EVERY, dtype="<i4").tobytes(),
        "cameras": [["rgb_static", 96, 96]],
        "arrays": [["keypoints", "float32", [steps, 21, 3]], ["visible", "bool", [steps, 21]]],
        "meta": {},
    }

    def episodes(store: int) -> Iterator[EncodedEpisode]:
        for number in range(store, frames // FRAMES, STORES):
            own = {
                "id": f"clip-{number:07d}",
                "instruction": f"do the thing with number {number * 7919 % 10_000}",
                "task": f"task {number % 100}",
                "group": f"video {number // 20}",
            }
            yield EncodedEpisode(own["id"], seal(msgpack.packb(own | header)), (), (), steps, FRAMES)

    for store in range(STORES):
        with EpisodeWriter(folder / f"part-{store}", {"source": "benchmark"}) as writer:
            writer.append_encoded(*episodes(store))


def resident() -> dict[str, float]:
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    found = {words[0][:-1]: int(words[1]) / 1024 for words in lines if words and words[0] in ("RssAnon:", "RssFile:")}
    return {"anonymous_mib": found["RssAnon"], "mapped_mib": found["RssFile"]}


def array_bytes(*holders: Any) -> int:
    """Return the bytes of all arrays that the objects hold, each counted once."""
    import numpy as np

    seen: dict[int, int] = {}
    todo = list(holders)
    while todo:
        value = todo.pop()
        if isinstance(value, np.ndarray):
            seen[id(value if value.base is None else value.base)] = value.nbytes
        elif type(value).__module__.startswith("arvrm.windows."):
            todo.extend(v for v in vars(value).values() if not callable(v))
    return sum(seen.values())


def measure_index(folder: Path, cache: str | None) -> dict[str, Any]:
    import numpy as np

    from arvrm.training.data import DataConfig, open_table, sampler_of, split
    from arvrm.windows import HumanWindows, WindowConfig

    weights = tuple(float(n + 1) for n in range(STORES))
    data = DataConfig(
        stores=tuple(str(folder / f"part-{n}") for n in range(STORES)), weights=weights, validation=0.02, cache=cache
    )
    before, busy, begin = resident(), time.process_time(), time.perf_counter()
    table = open_table(data, "human", 3)
    opened = time.perf_counter()
    train, _ = split(table, data)
    windows = HumanWindows(table, WindowConfig(history=4), 21, None, None, in_memory=False)
    anchors = windows.anchors(train)
    sampler = sampler_of(table, anchors, data, 0)
    result = {
        "frames": table.frames,
        "windows": len(anchors),
        "start_s": round(time.perf_counter() - begin, 2),
        "start_cpu_s": round(time.process_time() - busy, 2),
        "of_it_table_s": round(opened - begin, 2),
        **{name: round(value - before[name], 1) for name, value in resident().items()},
        "arrays_mib": round(array_bytes(table, anchors, sampler) / 2**20, 1),
    }
    for order in ("random", "epochs"):
        sampler.order = order
        rates = []
        for repeat in range(5):
            begin = time.process_time()
            for step in range(200):
                drawn = sampler.draw(1000 * repeat + step, BATCH)
            rates.append(200 * BATCH / (time.process_time() - begin))
        result[f"{order}_windows_per_cpu_s"] = round(max(rates))
    begin = time.process_time()
    for step in range(200):
        rows, _ = table.window_frames(sampler.draw(step, BATCH), 4)
    result["with_their_4_frames_per_cpu_s"] = round(200 * BATCH / (time.process_time() - begin))
    shares = np.bincount(table.store[table.episode_of_image[drawn]], minlength=STORES) / BATCH
    result["largest_error_of_a_weight"] = round(float(np.abs(shares - np.array(weights) / sum(weights)).max()), 4)
    assert rows.shape == (BATCH, 4)
    return result


def measure_objects(frames: int) -> dict[str, Any]:
    import numpy as np

    before, begin = resident(), time.perf_counter()
    index = [(f"clip-{row // FRAMES:07d}", row % FRAMES) for row in range(frames)]
    order = np.random.default_rng(0).permutation(frames).tolist()
    seconds = time.perf_counter() - begin
    assert len(index) == len(order)
    return {"anonymous_mib": round(resident()["anonymous_mib"] - before["anonymous_mib"], 1), "s": round(seconds, 2)}


def child(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, "--child", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--folder", type=Path, help="where the stores are made; default: a temporary folder")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        what, place = given.child
        if what == "objects":
            print(json.dumps(measure_objects(int(place))))
        else:
            print(json.dumps(measure_index(Path(place), f"{place}/cache" if what == "cached" else None)))
        return
    for frames in given.frames:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            begin = time.perf_counter()
            make_stores(Path(folder), frames)
            result: dict[str, Any] = {"making_the_stores_s": round(time.perf_counter() - begin, 1)}
            result["first"] = child("first", folder)
            child("cached", folder)  # leaves the cache
            result["cached"] = child("cached", folder)
            if frames <= 2_000_000:
                result["objects"] = child("objects", str(frames))
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
