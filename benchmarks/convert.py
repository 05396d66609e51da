"""Speed and size of `arvrm convert calvin` against the straightforward loop, as one ratio from one run.

    python benchmarks/convert.py [--dataset DIR] [--frames 5000] [--repeats 3] [--json FILE]

The loop opens each npz with numpy.load, encodes the same JPEGs with the same encoder and puts everything into one LMDB
transaction, in one process. Both run in turn, so that another load on the machine hits both alike, and CPU time per
frame is given beside; the file cache is warm for both. Two data sets are measured: DIR as it is (default: task_debug_D
of $CALVIN_ROOT), and one of --frames steps made from DIR by repeating its recordings.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import lmdb
import numpy as np
import simplejpeg

from arvrm.episodes import JPEG_SUBSAMPLING, EpisodeStore
from arvrm.sources.calvin import JPEG_QUALITY, ConvertCalvinConfig, convert_calvin
from arvrm.sources.calvin_plan import plan_split
from arvrm.sources.npz import read_npz

MEMBERS = ("robot_obs", "scene_obs", "rel_actions", "actions", "rgb_static", "rgb_gripper")


def straightforward(source: Path, output: Path) -> int:
    """Convert `source` the plain way; return the number of frames."""
    output.mkdir(parents=True)
    frames = 0
    env = lmdb.open(str(output), map_size=1 << 36)
    with env.begin(write=True) as transaction:
        for split in ("training", "validation"):
            for segment in plan_split(source / split).segments:
                transaction.put(f"{segment.id}_text".encode(), segment.instruction.encode())
                for step in range(segment.first, segment.last + 1):
                    with np.load(source / split / f"episode_{step:07d}.npz") as file:
                        for name in MEMBERS:
                            value = file[name]
                            if value.ndim == 3:
                                data = simplejpeg.encode_jpeg(value, JPEG_QUALITY, colorsubsampling=JPEG_SUBSAMPLING)
                            else:
                                data = value.tobytes()
                            transaction.put(f"{segment.id}_{name}_{step}".encode(), data)
                    frames += 1
    env.close()
    return frames


def enlarge(source: Path, target: Path, frames: int) -> None:
    """Write a data set of at least `frames` annotated steps per split ratio: `source`'s recordings over and over."""
    plans = [plan_split(source / split) for split in ("training", "validation")]
    total = sum(segment.steps for plan in plans for segment in plan.segments)
    copies = -(-frames // total)
    for split in ("training", "validation"):
        segments = plan_split(source / split).segments
        (target / split / "lang_annotations").mkdir(parents=True)
        at, texts, tasks, ranges = 0, [], [], []
        for _ in range(copies):
            for segment in segments:
                for step in range(segment.steps):
                    shutil.copyfile(
                        source / split / f"episode_{segment.first + step:07d}.npz",
                        target / split / f"episode_{at + step:07d}.npz",
                    )
                texts.append(segment.instruction)
                tasks.append(segment.task)
                ranges.append((at, at + segment.steps - 1))
                at += segment.steps + 1
        found = {"language": {"ann": texts, "task": tasks, "emb": np.zeros((len(texts), 1, 384))}}
        found["info"] = {"episodes": [], "indx": ranges}
        np.save(target / split / "lang_annotations" / "auto_lang_ann.npy", found)
        np.save(target / split / "ep_start_end_ids.npy", np.array(ranges))
        np.save(target / split / "scene_info.npy", {"calvin_scene_D": [0, at]})


def image_quality(source: Path, output: Path) -> dict[str, float]:
    """Return camera -> mean PSNR in dB of the stored images (peak 255), and the PSNR of the parents' JPEGs."""
    errors: dict[str, list[float]] = {}
    for split in ("training", "validation"):
        store = EpisodeStore(output / split)
        for id in store.ids[:8]:
            header = store.header(id)
            for row in range(0, header.frames, 8):
                step = header.meta["first"] + int(header.image_steps[row])
                original = read_npz(source / split / f"episode_{step:07d}.npz", header.cameras)
                for camera, image in original.items():
                    stored = store.frames(id, camera, [row])[0]
                    parents = simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(image, 75, colorsubsampling="420"))
                    for name, shown in ((camera, stored), (f"{camera}_quality_75_420", parents)):
                        square = np.mean((shown.astype(np.float64) - image) ** 2)
                        errors.setdefault(name, []).append(10 * np.log10(255**2 / max(square, 1e-9)))
    return {name: round(float(np.mean(values)), 2) for name, values in errors.items()}


def measure(source: Path, work: Path, repeats: int, workers: int) -> dict:
    """Run loop and converter in turn and compare."""
    loop_times, our_times, loop_cpu, our_cpu, frames = [], [], [], [], 0
    for repeat in range(repeats + 1):  # the first turn only warms the file cache
        for name in ("loop", "ours"):
            shutil.rmtree(work / name, ignore_errors=True)
        start = time.perf_counter(), time.process_time()
        frames = straightforward(source, work / "loop")
        middle = time.perf_counter(), time.process_time()
        convert_calvin(ConvertCalvinConfig(str(source), str(work / "ours"), workers=workers))
        end = time.perf_counter(), time.process_time()
        if repeat:
            loop_times.append(middle[0] - start[0])
            loop_cpu.append(middle[1] - start[1])
            our_times.append(end[0] - middle[0])
            our_cpu.append(end[1] - middle[1])
    npz = sum(file.stat().st_size for file in source.glob("*/episode_*.npz"))
    stored = sum(file.stat().st_size for file in (work / "ours").glob("*/data.mdb"))
    return {
        "frames": frames,
        "loop_frames_per_second": round(frames / statistics.median(loop_times)),
        "frames_per_second": round(frames / statistics.median(our_times)),
        "ratio": round(statistics.median(a / b for a, b in zip(loop_times, our_times, strict=True)), 2),
        "ratios": [round(a / b, 2) for a, b in zip(loop_times, our_times, strict=True)],
        "loop_cpu_ms_per_frame": round(1e3 * statistics.median(loop_cpu) / frames, 3),
        "cpu_ms_per_frame": round(1e3 * statistics.median(our_cpu) / frames, 3),
        "npz_bytes": npz,
        "store_bytes": stored,
        "store_share": f"1/{npz / stored:.2f}",
        "jpeg": f"quality {JPEG_QUALITY}, {JPEG_SUBSAMPLING}",
        "psnr_db": image_quality(source, work / "ours"),
    }


def main() -> None:
    """Measure both data sets and print a line for each; JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    root = Path(os.environ.get("CALVIN_ROOT", "../shared/calvin"))
    parser.add_argument("--dataset", type=Path, default=root / "dataset" / "task_debug_D")
    parser.add_argument("--frames", type=int, default=5000, help="steps of the generated data set; 0: none")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        results = {"given": measure(arguments.dataset, work, arguments.repeats, arguments.workers)}
        if arguments.frames:
            enlarge(arguments.dataset, work / "generated", arguments.frames)
            results["generated"] = measure(work / "generated", work, arguments.repeats, arguments.workers)
    for name, result in results.items():
        print(name, json.dumps(result), file=sys.stdout)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
