"""A strip of frames about the touch and the end of an episode, for a person to judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from arvrm.episodes import EpisodeStore
from arvrm.files import replacing
from arvrm.moments import Moments
from arvrm.show.skeleton import draw_caption, draw_skeleton

_TILE = 240


def draw_moments(store: EpisodeStore, id: str, found: Moments, file: Path) -> None:
    """Draw the first frame, those before, at and after the touch, and that of the end, with the hand, into a PNG.

    Raises:
        UserError: the episode cannot be read, or the picture not be written.
    """
    header = store.header(id)
    at = np.asarray(header.image_steps)
    touch, end = (int(np.abs(at - step).argmin()) for step in (found.touch, found.end))
    frames = [0, max(touch - 2, 0), touch, min(touch + 2, len(at) - 1), end]
    names = ["first", "before", f"touch {found.touch_confidence:.2f}", "after", f"end {found.end_confidence:.2f}"]
    camera = next(iter(header.cameras))
    tiles = []
    for frame, name, image in zip(frames, names, store.frames(id, camera, frames), strict=True):
        row = slice(int(at[frame]), int(at[frame]) + 1)
        if header.embodiment == "human":
            hand = store.arrays(id, ("keypoints", "visible"), row)
            image = draw_skeleton(image, hand["keypoints"][0], hand["visible"][0], size=(_TILE, _TILE))
        else:
            image = np.asarray(Image.fromarray(image).resize((_TILE, _TILE), Image.Resampling.BICUBIC))
        tiles.append(draw_caption(image, f"{name}: step {at[frame]}"))
    strip = draw_caption(np.concatenate(tiles, 1), f"{id}: {header.instruction}")
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        Image.fromarray(strip).save(partial, "PNG")
