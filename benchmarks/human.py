"""Frames a second of `arvrm convert human` (decode, detect, reduce, JPEG, store) against the detector alone.

    python benchmarks/human.py --photos DIR --model hand_landmarker.task [--processes 2] [--clips 8] [--repeats 1]
                               [--json FILE]

The videos are 640 x 480 at 30 a second, H.264, 4 s each: a photo of a hand from DIR that wanders over a plain ground.
The limit is the detector in as many processes on the same frames, decoded before. Both are steady rates: processes
start and networks load before the clock does (end to end: the difference between --clips clips and three times as
many). Both run --repeats times in turn; medians are given. CPU time per frame, of all processes, is given beside:
other load on the machine stretches it little, and `cpu_share_of_limit` is the share of the limit that processes which
never wait would reach. What each part costs in one process is printed too. Another detector is named by
`--detector package.module:Class`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import statistics
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from arvrm.episodes import EpisodeStore, encode_episode
from arvrm.sources.clips import MEDIAPIPE, Square, make_detector
from arvrm.sources.human import ConvertHumanConfig, convert_human
from arvrm.sources.video import IMAGE_SUFFIXES, sample

WIDTH, HEIGHT, FPS, SECONDS = 640, 480, 30, 4


def make_video(photo: Path, path: Path, seed: int) -> None:
    """A photo on a plain ground, moving along a slow curve."""
    rng = np.random.default_rng(seed)
    hand = Image.open(photo).convert("RGB")
    hand = hand.resize((round(hand.width * 400 / hand.height), 400))
    phase, pace = rng.uniform(0, 6.28, 2), rng.uniform(1, 2, 2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "23"}
        stream.codec_context.time_base = Fraction(1, FPS)
        for number in range(FPS * SECONDS):
            left, top = 0.5 + 0.45 * np.sin(phase + pace * number / FPS)
            ground = Image.new("RGB", (WIDTH, HEIGHT), (150, 150, 145))
            ground.paste(hand, (round(left * (WIDTH - hand.width)), round(top * (HEIGHT - hand.height))))
            container.mux(stream.encode(av.VideoFrame.from_image(ground)))
        container.mux(stream.encode(None))


def detect_alone(
    detector: str,
    model: str | None,
    video: Path,
    repeats: int,
    barrier: multiprocessing.Barrier,
    out: multiprocessing.Queue,
) -> None:
    """Run the detector over decoded frames, in step with the others; put frames, seconds, CPU seconds, hands."""
    frames = [frame.image for frame in sample(video, fps=FPS)]
    found = make_detector(detector, model)
    found.detect(frames[0], 0.0)
    barrier.wait()
    start, cpu, hands = time.perf_counter(), time.process_time(), 0
    for _ in range(repeats):
        for number, image in enumerate(frames):
            hands += bool(found.detect(image, number / FPS))
    out.put((repeats * len(frames), time.perf_counter() - start, time.process_time() - cpu, hands))


def limit(detector: str, model: str | None, videos: list[Path], processes: int, repeats: int) -> dict[str, float]:
    """Return frames a second of the detector alone, CPU seconds a frame, and the share of frames that show a hand."""
    context = multiprocessing.get_context("spawn")
    barrier, out = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=detect_alone, args=(detector, model, videos[i % len(videos)], repeats, barrier, out))
        for i in range(processes)
    ]
    for worker in workers:
        worker.start()
    results = [out.get() for _ in workers]
    for worker in workers:
        worker.join()
    frames = sum(n for n, *_ in results)
    return {
        "fps": sum(n / seconds for n, seconds, *_ in results),
        "cpu": sum(cpu for *_, cpu, _ in results) / frames,
        "seen": sum(hands for *_, hands in results) / frames,
    }


def end_to_end(videos: list[Path], folder: Path, config: dict, processes: int) -> tuple[int, float, float]:
    """Convert links to `videos`; return (frames, seconds, CPU seconds)."""
    source, output = folder / "videos", folder / "store"
    for path in (source, output):
        shutil.rmtree(path, ignore_errors=True)
    source.mkdir()
    for number, video in enumerate(videos):
        (source / f"move the hand {number:04d}.mp4").symlink_to(video)
    start, cpu = time.perf_counter(), cpu_seconds()
    report = convert_human(
        ConvertHumanConfig("folder", str(source), str(output), workers=processes, overwrite=True, **config)
    )
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    if report.errors or report.poor:
        sys.exit(f"clips were left out, the measurement is void: {[*report.errors.values(), *report.poor.values()][0]}")
    return report.steps, seconds, cpu


def cpu_seconds() -> float:
    """CPU time of this process and of those it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def shares(video: Path, detector: str, model: str | None, store: Path) -> dict[str, float]:
    """Milliseconds a frame of each part, in one process."""
    clock = time.perf_counter
    start = clock()
    frames = [frame.image for frame in sample(video, fps=FPS)]
    decode = clock() - start
    found = make_detector(detector, model)
    found.detect(frames[0], 0.0)
    start = clock()
    for number, image in enumerate(frames):
        found.detect(image, number / FPS)
    detect = clock() - start
    square = Square.of(HEIGHT, WIDTH, 224, "crop")
    start = clock()
    for image in frames[::3]:
        square.image(image)
    reduce = clock() - start
    opened = EpisodeStore(store)
    episode = opened.episode(opened.ids[0])
    start = clock()
    encode_episode(episode)
    encode = clock() - start
    parts = {"decode": decode, "detect": detect, "reduce": reduce, "jpeg": encode}
    return {name: 1000 * seconds / len(frames) for name, seconds in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True, type=Path, help="folder with photos of a hand")
    parser.add_argument("--model", help="the detector's model file")
    parser.add_argument("--detector", default=MEDIAPIPE)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    photos = sorted(file for file in arguments.photos.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    config = {"detector": arguments.detector, "model": arguments.model, "fit": "letterbox"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = [folder / f"{number}.mp4" for number in range(len(photos))]
        for number, (photo, video) in enumerate(zip(photos, videos, strict=True)):
            make_video(photo, video, number)
        few = [videos[i % len(videos)] for i in range(arguments.clips)]
        runs = []
        for _ in range(arguments.repeats):
            start = end_to_end(few, folder, config, arguments.processes)
            end = end_to_end(few * 3, folder, config, arguments.processes)
            alone = limit(arguments.detector, arguments.model, videos, arguments.processes, 2)
            frames, seconds, cpu = (b - a for a, b in zip(start, end, strict=True))
            runs.append(
                {
                    "end_to_end_fps": frames / seconds,
                    "with_start_fps": end[0] / end[1],
                    "detector_alone_fps": alone["fps"],
                    "share_of_limit": frames / seconds / alone["fps"],
                    "cpu_ms_per_frame": 1000 * cpu / frames,
                    "detector_cpu_ms_per_frame": 1000 * alone["cpu"],
                    "cpu_share_of_limit": alone["cpu"] / (cpu / frames),
                    "frames_with_a_hand": alone["seen"],
                }
            )
        parts = shares(videos[0], arguments.detector, arguments.model, folder / "store")
    medians = {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}
    result = {"processes": arguments.processes, **medians, "runs": runs, "ms_per_frame_in_one_process": parts}
    print(json.dumps({name: value for name, value in result.items() if name != "runs"}, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
