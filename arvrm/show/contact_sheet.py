"""A sheet that shows the episodes of a store: a strip of frames each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from arvrm.episodes import EpisodeHeader, EpisodeStore
from arvrm.interface import KEYPOINTS, UserError


def draw_contact_sheet(path: str | Path, file: str | Path, rows: int = 16) -> None:
    """Draw one strip of frames per episode, over as many tasks as there are, into a PNG.

    Human clips are drawn with their hand's skeleton (hollow: not visible).

    Args:
        path: the store's folder.
        rows: episodes on the sheet.

    Raises:
        UserError: the store cannot be read or is empty, or the sheet cannot be written.
    """
    from PIL import Image, ImageDraw

    store, file = EpisodeStore(path), Path(file)
    headers = list(store.headers())
    if not headers:
        raise UserError(f"{store.path}: has no episodes to draw; leave the contact sheet out")
    tile, columns, caption = 144, 8, 16
    by_task: dict[str, list[EpisodeHeader]] = {}
    for header in headers:
        by_task.setdefault(header.task, []).append(header)
    turns = max(map(len, by_task.values()))
    # Every task in turn, each at another place in its list, so that scenes mix.
    chosen = [
        group[(turn + i) % len(group)]
        for turn in range(turns)
        for i, group in enumerate(by_task.values())
        if turn < len(group)
    ][:rows]
    sheet = Image.new("RGB", (columns * tile, len(chosen) * (tile + caption)), "#16181d")
    draw = ImageDraw.Draw(sheet)
    for i, header in enumerate(chosen):
        top = i * (tile + caption)
        text = f"{header.id}  {header.task or 'no task'}: {header.instruction} ({header.steps} steps)"
        draw.text((3, top + 2), text.encode("latin-1", "replace").decode("latin-1"), fill="#e8eaed")
        cameras = list(header.cameras)
        per_camera = columns // len(cameras)
        picked = np.linspace(0, header.frames - 1, per_camera).round().astype(int)
        for c, camera in enumerate(cameras):
            for j, (row, image) in enumerate(zip(picked, store.frames(header.id, camera, picked), strict=True)):
                picture = Image.fromarray(image).resize((tile, tile), Image.Resampling.BICUBIC)
                if header.embodiment == "human":
                    at = slice(int(header.image_steps[row]), int(header.image_steps[row]) + 1)
                    hand = store.arrays(header.id, ("keypoints", "visible"), at)
                    scale = tile / np.array(image.shape[1::-1])
                    _draw_skeleton(picture, hand["keypoints"][0], hand["visible"][0], scale)
                sheet.paste(picture, ((c * per_camera + j) * tile, top + caption))
    partial = file.with_name(file.name + ".partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(partial, "PNG")
        os.replace(partial, file)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); choose another path") from error


def _draw_skeleton(picture: Any, keypoints: np.ndarray, visible: np.ndarray, scale: np.ndarray) -> None:
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    points = keypoints[:, :2] * scale
    colours = ("#f5a524", "#2eb67d", "#3fa7f5", "#b57edc", "#e5484d")
    for hand in range(0, len(points), len(KEYPOINTS)):
        for finger, colour in enumerate(colours):
            chain = [hand, *range(hand + 1 + 4 * finger, hand + 5 + 4 * finger)]
            for a, b in zip(chain, chain[1:], strict=False):
                draw.line([*points[a], *points[b]], fill=colour, width=2 if visible[a] and visible[b] else 1)
            for k in chain:
                x, y = points[k]
                draw.ellipse([x - 2, y - 2, x + 2, y + 2], outline=colour, fill=colour if visible[k] else None)
