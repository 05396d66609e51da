"""Draws docs/filmstrip.png: synthetic hand clips above, the robot's rollout of a chain below.

python docs/filmstrip.py HUMAN_STORE FILM.mp4
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from arvrm.episodes import EpisodeStore
from arvrm.films import film_strip
from arvrm.retrieval import resample
from arvrm.show.skeleton import draw_skeleton

WIDTH, CLIPS, FRAMES = 1500, 2, 4


def hands(store: EpisodeStore) -> Image.Image:
    """Two clips of different tasks, four frames each, keypoints drawn in."""
    chosen, seen = [], set()
    for header in store.headers():
        if header.task not in seen and len(chosen) < CLIPS:
            seen.add(header.task)
            chosen.append(header)
    side = WIDTH // (CLIPS * FRAMES)
    strip = Image.new("RGB", (WIDTH, side + 30), "#16181d")
    draw = ImageDraw.Draw(strip)
    for number, header in enumerate(chosen):
        arrays = store.arrays(header.id, ["keypoints", "visible"])
        rows = resample(header.frames, FRAMES)
        frames = store.frames(header.id, "rgb_static", rows)
        left = number * FRAMES * side
        font = ImageFont.load_default(16)
        draw.text((left + 10, 15), f"human: {header.instruction}", fill="#e8eaed", font=font, anchor="lm")
        for k, (row, frame) in enumerate(zip(rows, frames, strict=True)):
            step = header.image_steps[row]
            hand = arrays["keypoints"][step], arrays["visible"][step]
            strip.paste(Image.fromarray(draw_skeleton(frame, *hand, size=(side, side))), (left + k * side, 30))
    return strip


if __name__ == "__main__":
    upper, lower = hands(EpisodeStore(sys.argv[1])), film_strip(sys.argv[2], 5, WIDTH)
    picture = Image.new("RGB", (WIDTH, upper.height + lower.height + 6), "#ffffff")
    picture.paste(upper, (0, 0))
    picture.paste(lower, (0, upper.height + 6))
    assert np.asarray(picture).std() > 0
    picture.save(Path(__file__).with_name("filmstrip.png"), optimize=True)
