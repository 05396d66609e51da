"""A first look from Python: open a store of hand clips, predict a hand with a stage-1 checkpoint, draw both.

    python examples/first_look.py runs/demo/human runs/demo/pretrain first_look.png

In the picture, colours are where the hand is at a frame, and white is where the model, one stride before, predicted it.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from arvrm.episodes import EpisodeStore
from arvrm.show.predictor import HandPredictor
from arvrm.show.skeleton import draw_skeleton

FRAMES, SIDE = 6, 224


def first_look(store: str, checkpoint: str, output: str, clip: int = 0) -> float:
    """Draw some frames of a clip in a row; return the mean distance of the predictions in pixels of the stored images
    (NaN where there was nothing to predict)."""
    episodes = EpisodeStore(store)
    episode = episodes.episode(episodes.ids[clip])
    keypoints, visible = episode.arrays["keypoints"], episode.arrays["visible"]  # (N, 21, 3) and (N, 21), N steps
    images, steps = episode.images["rgb_static"], episode.image_steps  # (F, H, W, 3) uint8 at F of the steps
    print(f"{episode.id}: {episode.instruction!r}, {len(keypoints)} steps at {episode.fps:g} Hz, {len(images)} images")

    model = HandPredictor(checkpoint)
    predicted, known, now, seen = model.predict(episode.instruction, keypoints, visible, images, steps, episode.fps)

    chosen = np.linspace(0, len(images) - 1, min(FRAMES, len(images))).round().astype(int)
    row = [
        draw_skeleton(
            images[i], now[i], seen[i], size=(SIDE, SIDE), ghost=predicted[i], ghost_visible=known[i] & seen[i]
        )
        for i in chosen
    ]
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(row, axis=1)).save(output)
    judged = known & seen
    return float(np.linalg.norm((predicted - now)[judged][:, :2], axis=-1).mean()) if judged.any() else float("nan")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", help="store of hand clips")
    parser.add_argument("checkpoint", help="folder of `arvrm pretrain`")
    parser.add_argument("output", nargs="?", default="first_look.png", help="picture to write")
    parser.add_argument("--clip", type=int, default=0, help="number of the clip (default: 0)")
    given = parser.parse_args()
    distance = first_look(given.store, given.checkpoint, given.output, given.clip)
    print(f"predicted {distance:.1f} pixels from where the hand came; drawn to {given.output}")
