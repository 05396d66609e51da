"""Does stage 1 predict hands that it has not seen, synthetic and photographed?

    python benchmarks/teaches.py --photos DIR --model hand_landmarker.task --human STORE --output runs/teaches \
        [section.key=value ...]

Photos of real hands become films: each is moved, turned or brought closer along a minimum-jerk path, and the sentence
says which way. The detector reads the films as it would anybody's videos (`arvrm convert human`). Stage 1 is trained on
the synthetic store and on the films of all photos but the last, half and half; then `arvrm evaluate-hands` measures it
on held-out clips of the synthetic store and on the films of the last photo. The hands are real and so are detections;
the motion is the camera's, and fingers do not move against each other. Steps that are done are skipped.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

WIDTH, HEIGHT, FPS = 480, 360, 30
MOTIONS = {
    "move the hand to the left": (-1, 0, 0, 0),
    "move the hand to the right": (1, 0, 0, 0),
    "move the hand up": (0, -1, 0, 0),
    "move the hand down": (0, 1, 0, 0),
    "bring the hand closer": (0, 0, 1, 0),
    "take the hand further away": (0, 0, -1, 0),
    "turn the hand clockwise": (0, 0, 0, 1),
    "turn the hand counter-clockwise": (0, 0, 0, -1),
}
"""Sentence -> direction of (x, y, log scale, angle)."""
REACH = (0.30, 0.22, 0.35, 0.7)
"""Greatest change: shares of the image's sides, log scale, radians."""


def path(motion: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return (frames, 4): x and y of the photo's centre as shares, log scale, angle (radians)."""
    still, moving = rng.integers(4, 10), rng.integers(30, 54)
    t = np.clip((np.arange(still + moving + 4) - still) / moving, 0, 1)
    progress = t**3 * (10 - 15 * t + 6 * t**2)
    change = np.array(motion) * REACH * rng.uniform(0.6, 1.0)
    # What moves must have room; the start lies half of the way back from the middle.
    start = np.array([0.5, 0.5, 0.0, 0.0]) - change / 2 + rng.uniform(-1, 1, 4) * (0.06, 0.05, 0.08, 0.15)
    return start + progress[:, None] * change


def film(photo: Path, file: Path, motion: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    hand = Image.open(photo).convert("RGB")
    size = 0.62 * HEIGHT / hand.height
    ground = tuple(int(v) for v in rng.integers(90, 200, 3))
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "20"}
        stream.codec_context.time_base = Fraction(1, FPS)
        for x, y, zoom, angle in path(motion, rng):
            scale = size * np.exp(zoom)
            c, s = np.cos(angle) / scale, np.sin(angle) / scale
            centre = np.array([hand.width, hand.height]) / 2
            back = np.array([[c, s], [-s, c]])
            shift = centre - back @ (x * WIDTH, y * HEIGHT)
            matrix = (*back[0], shift[0], *back[1], shift[1])
            image = hand.transform((WIDTH, HEIGHT), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR,
                                   fillcolor=ground)  # fmt: skip
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))


def arvrm(*arguments: str) -> None:
    print("arvrm", *arguments, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "arvrm", *arguments], check=True, stdout=subprocess.DEVNULL)


def make_store(photos: list[Path], output: Path, films: int, seed: int, model: Path) -> None:
    done = output.with_name(output.name + ".done")
    if done.exists():
        return
    videos = output.with_name(output.name + "_films")
    videos.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(films):
        text = list(MOTIONS)[number % len(MOTIONS)]
        photo = photos[number // len(MOTIONS) % len(photos)]
        name = f"{photo.stem}_{number:03d}.mp4"
        film(photo, videos / name, MOTIONS[text], seed + number)
        rows.append((name, text))
    with open(videos / "annotations.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("file", "text"), *rows])
    table = str(videos / "annotations.csv")
    arvrm("convert", "human", "--source", "folder", "--input", str(videos), "--output", str(output),
          "--annotations", table, "--image-size", "96", "--fit", "letterbox", "--model", str(model),
          *(["--resume"] if output.exists() else []))  # fmt: skip
    done.touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of two photos of hands or more")
    parser.add_argument("--model", type=Path, required=True, help="hand_landmarker.task")
    parser.add_argument("--human", required=True, help="store of synthetic hand clips")
    parser.add_argument("--output", type=Path, default=Path("runs/teaches"))
    parser.add_argument("--config", default="configs/hands_pretrain.json")
    parser.add_argument("--films", type=int, default=96, help="films to train on; a third as many to test")
    parser.add_argument("--windows", type=int, default=512)
    parser.add_argument("overrides", nargs="*", help="section.key=value of stage 1's configuration")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    photos = sorted(p for p in options.photos.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(photos) < 2:
        parser.error(f"--photos {options.photos}: {len(photos)} photos; at least one to train on and one to test")
    train, test = options.output / "real_train", options.output / "real_test"
    make_store(photos[:-1], train, options.films, 0, options.model)
    make_store(photos[-1:], test, options.films // 3, 10_000, options.model)
    run = options.output / "stage1"
    if not (run / "done").exists():
        arvrm("pretrain", "--config", options.config, "--output", str(run), *(["--resume"] if run.exists() else []),
              f"data.stores={json.dumps([options.human, str(train)])}", "data.weights=[0.5, 0.5]",
              f"data.cache={options.output / 'cache'}", *options.overrides)  # fmt: skip
        (run / "done").touch()
    for name, store in (("synthetic", options.human), ("real", str(test))):
        result = options.output / f"{name}.json"
        print(f"\n{name}: held-out clips of {store}", flush=True)
        command = [sys.executable, "-m", "arvrm", "evaluate-hands", "--checkpoint", str(run), "--output", str(result)]
        subprocess.run([*command, "--stores", store, "--windows", str(options.windows), "--overwrite"], check=True)


if __name__ == "__main__":
    main()
