"""A sheet that shows the episodes of a store: a strip of frames each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from arvrm.episodes import EpisodeHeader, EpisodeStore
from arvrm.files import PNG, claimed, replacing
from arvrm.interface import UserError
from arvrm.show.skeleton import draw_skeleton


def draw_contact_sheet(path: str | Path, file: str | Path, rows: int = 16, overwrite: bool = False) -> None:
    """Draw one strip of frames per episode, over as many tasks as there are, into a PNG.

    Human clips are drawn with their hand's skeleton (hollow: not visible).

    Args:
        path: the store's folder.
        rows: episodes on the sheet.
        overwrite: replace a picture that is there.

    Raises:
        UserError: the store cannot be read or is empty, or the sheet exists or cannot be written.
    """
    with claimed(file, overwrite, PNG):
        sheet = _drawn(EpisodeStore(path), rows)
        with replacing(file) as partial:
            sheet.save(partial, "PNG")


def _drawn(store: EpisodeStore, rows: int) -> Image.Image:
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
                if header.embodiment == "human":
                    at = slice(int(header.image_steps[row]), int(header.image_steps[row]) + 1)
                    hand = store.arrays(header.id, ("keypoints", "visible"), at)
                    image = draw_skeleton(image, hand["keypoints"][0], hand["visible"][0], size=(tile, tile))
                picture = Image.fromarray(image).resize((tile, tile), Image.Resampling.BICUBIC)
                sheet.paste(picture, ((c * per_camera + j) * tile, top + caption))
    return sheet
