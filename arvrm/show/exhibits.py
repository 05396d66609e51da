"""What a report shows of a policy besides its results: the analogy map, and retrieved clips beside robot frames.

Exhibits are a folder: `exhibits.json` and the pictures it names. The report reads it without knowing models or stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from arvrm.config import bounded, check_bounds
from arvrm.episodes import EpisodeStore
from arvrm.files import replacing_folder, write_json
from arvrm.interface import KEYPOINTS, Robot, UserError
from arvrm.model.checkpoint import Checkpoint, load_checkpoint
from arvrm.model.encoders import TextEncoder
from arvrm.retrieval import ClipIndex, Matches, resample
from arvrm.show.skeleton import draw_skeleton

PICTURE_PX = 192
QUERY_FRAMES = 8


@dataclass(frozen=True)
class ExhibitConfig:
    """What to collect.

    Attributes:
        checkpoint: the policy.
        output: folder for the exhibits.
        index: clip index, for the retrieved clips; null: none are shown.
        store: robot episodes to retrieve clips for; null: none are shown.
        queries: robot episodes shown, of different tasks.
        clips: retrieved clips beside each.
        seed: of the choice of episodes.
        overwrite: replace existing exhibits.
    """

    checkpoint: str
    output: str
    index: str | None = None
    store: str | None = None
    queries: int = bounded(4, least=1, most=10**4)
    clips: int = bounded(4, least=1, most=10**4)
    seed: int = bounded(0, least=0)
    overwrite: bool = False

    __post_init__ = check_bounds


def make_exhibits(config: ExhibitConfig) -> Path:
    """Collect the exhibits; the folder appears whole or not at all. Return it.

    Raises:
        UserError: it exists (without `overwrite`), or the checkpoint, index or store is missing or damaged.
    """
    output = Path(config.output)
    with replacing_folder(output, config.overwrite, _check_replaced) as folder:
        loaded = load_checkpoint(config.checkpoint, kind="policy")
        sentences: list[str] = []
        found: dict[str, Any] = {"components": list(loaded.robot.components), "keypoints": list(KEYPOINTS)}
        if config.index and config.store:
            found["retrieval"] = _retrieval(config, loaded.robot, folder)
            sentences = [query["instruction"] for query in found["retrieval"]]
        if loaded.config.analogy.enabled:
            found["map"] = describe_map(loaded, sentences)
        write_json(folder / "exhibits.json", found)
    return output


def _check_replaced(output: Path) -> None:
    if not (output / "exhibits.json").is_file():
        raise UserError(f"{output}: holds no exhibits, so it is not overwritten; give another folder")


@torch.no_grad()
def describe_map(checkpoint: Checkpoint, sentences: list[str]) -> dict[str, Any]:
    """Return the map m of a policy: its kind, and weights (S, K) alone or, if it depends on language, by sentence."""
    config, net = checkpoint.config, checkpoint.model
    described: dict[str, Any] = {"kind": config.analogy.map, "rows": config.analogy.rows, "alpha": config.analogy.alpha}
    if not net.map_by_words:
        return described | {"weights": net.analogy_map().tolist()}
    if not sentences:
        sentences = [sentence.replace("_", " ") for sentence in checkpoint.metadata.tasks[:4] or ["open drawer"]]
    z_l = net.language(*TextEncoder(config.text).tokens(sentences))
    maps = net.analogy_map(z_l)
    by_sentence = {sentence: weights.tolist() for sentence, weights in zip(sentences, maps, strict=True)}
    return described | {"weights": maps.mean(0).tolist(), "by_sentence": by_sentence}


def _retrieval(config: ExhibitConfig, robot: Robot, folder: Path) -> list[dict[str, Any]]:
    """Search clips for some robot episodes; draw the episode's middle frame and each clip's at the same progress."""
    index, store = ClipIndex.load(config.index), EpisodeStore(config.store)
    human_stores = index.open_stores()
    if store.robot_name != robot.name:
        held = f"robot {store.robot_name!r}" if store.robot_name else "no robot"
        raise UserError(f"{store.path}: holds {held}, {config.checkpoint} is for {robot.name!r}; give a store of that")
    camera = robot.cameras[0].name
    entries = []
    for number, identity in enumerate(choose_episodes(store, config.queries, config.seed)):
        episode = store.header(identity)
        rows = resample(episode.frames, QUERY_FRAMES)
        frames = store.frames(identity, camera, rows)
        text = index.encoders.sentences([episode.instruction])
        matches = index.search(text, index.encoders.images(frames)[None], config.clips)
        picture = f"query_{number}.png"
        middle = store.frames(identity, camera, np.array([episode.frames // 2]))[0]
        _save(Image.fromarray(middle), folder / picture)
        entries.append(
            {
                "instruction": episode.instruction,
                "task": episode.task,
                "scene": episode.scene,
                "picture": picture,
                "clips": _clips(matches, index, human_stores, folder, number),
            }
        )
    return entries


def _clips(
    matches: Matches, index: ClipIndex, stores: list[EpisodeStore], folder: Path, number: int
) -> list[dict[str, Any]]:
    shown = []
    for j, row in enumerate(matches.rows[0]):
        if row < 0:
            continue
        store, identity = stores[index.store[row]], index.ids[row]
        header = store.header(identity)
        frame = header.frames // 2
        image = store.frames(identity, "rgb_static", np.array([frame]))[0]
        arrays = store.arrays(identity, ["keypoints", "visible"])
        step = header.image_steps[frame]
        size = (PICTURE_PX, round(image.shape[0] * PICTURE_PX / image.shape[1]))
        drawn = draw_skeleton(image, arrays["keypoints"][step], arrays["visible"][step], size=size)
        name = f"query_{number}_clip_{j}.png"
        _save(Image.fromarray(drawn), folder / name)
        shown.append(
            {
                "id": identity,
                "instruction": header.instruction,
                "task": header.task,
                "scene": header.scene,
                "language": float(matches.language[0, j]),
                "visual": float(matches.visual[0, j]) / QUERY_FRAMES,
                "picture": name,
            }
        )
    return shown


def choose_episodes(store: EpisodeStore, count: int, seed: int) -> list[str]:
    """Return ids of `count` episodes, of as many different tasks as there are, drawn by `seed`."""
    rng = np.random.default_rng(seed)
    by_task: dict[str, list[str]] = {}
    for header in store.headers():
        if header.embodiment == "robot" and header.frames:
            by_task.setdefault(header.task, []).append(header.id)
    tasks = sorted(by_task)
    order = [tasks[i] for i in rng.permutation(len(tasks))]
    chosen: list[str] = []
    while len(chosen) < count and any(by_task.values()):
        for task in order:
            if by_task[task] and len(chosen) < count:
                chosen.append(by_task[task].pop(int(rng.integers(len(by_task[task])))))
    return chosen


def _save(picture: Image.Image, path: Path) -> None:
    height = round(picture.height * PICTURE_PX / picture.width)
    picture.resize((PICTURE_PX, height), Image.Resampling.BICUBIC).save(path, optimize=True)
