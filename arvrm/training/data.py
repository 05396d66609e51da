"""What both stages train on: episodes of stores, their split, and how windows are drawn from them."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from arvrm import processes, robots
from arvrm.config import bounded, check_bounds
from arvrm.episodes import EpisodeStore
from arvrm.interface import Camera, UserError
from arvrm.model.config import ModelConfig, VisionConfig
from arvrm.model.encoders import TextEncoder, fit_images
from arvrm.retrieval import FrozenEncoders
from arvrm.training.config import TrainConfig
from arvrm.training.log import progress_bar
from arvrm.windows import (
    IN_MEMORY_BYTES,
    Anchors,
    AnchorSampler,
    EpisodeTable,
    FrameSource,
    LazyText,
    StoreFrames,
    TextTable,
    cell_counts,
    decode_frames,
    few_shot,
    mixing_shares,
    split_episodes,
)


@dataclass(frozen=True)
class DataConfig:
    """Which episodes.

    Attributes:
        stores: episode stores. A name with * or ? stands for all stores that it matches, which are mixed like one.
        weights: how much of the batches each name in `stores` gets; null: by number of windows.
        balance_tasks: within a store each task gets as much.
        order: "random": windows are drawn independently; "epochs": every window comes before one comes again, as far as
            weights and balance allow (windows.AnchorSampler says how).
        tasks: only these; null: all.
        episodes_per_task: at most so many training episodes of each task; null: all.
        share: fraction of the training episodes that is used, drawn by `seed`.
        validation: fraction of the groups that is held out; 0: none.
        validation_windows: held-out windows that are looked at (spread evenly), a bound on the time it takes.
        seed: of the split and of `episodes_per_task`.
        in_memory: decode all frames once, before the first update; false: read them, and human keypoints, from the
            stores as they are needed, which gives the same batches; null: in memory if they take at most 4 GiB.
        frozen_features: a frozen image encoder reads every frame once, before training, without augmentation; false: it
            reads each batch's images, randomly shifted.
        feature_precision: how those features are kept. fp16 takes 0.3 MB a frame of a ViT-B/16 and changes losses in
            the fourth digit; fp32 changes nothing.
        segment_windows: robot windows that are drawn together, one stride apart, so that each of their frames is read,
            augmented and encoded once instead of once a window; 0: windows are drawn one by one. What a process takes
            in one backward pass is rounded up to whole segments.
        robot: where the stores' robot is defined: package.module:object, or its name; null: found by the name that the
            stores give.
        moments: files of `arvrm moments`, perhaps corrected by a person: the touch and end of their episodes are taken
            as they are, not found.
        cache: folder for the stores' headers as arrays, decoded frames and frozen features, shared by runs; null: this
            run's memory only.
    """

    stores: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = bounded(None, least=0)
    balance_tasks: bool = True
    order: Literal["random", "epochs"] = "random"
    tasks: tuple[str, ...] | None = None
    episodes_per_task: int | None = bounded(None, least=1)
    share: float = bounded(1.0, above=0, most=1)
    validation: float = bounded(0.1, least=0, most=1)
    validation_windows: int = bounded(512, least=0, most=10**7)
    seed: int = bounded(0, least=0)
    in_memory: bool | None = None
    frozen_features: bool = True
    feature_precision: Literal["fp16", "fp32"] = "fp16"
    segment_windows: int = bounded(0, least=0, most=10**6)
    robot: str | None = None
    moments: tuple[str, ...] = ()
    cache: str | None = None

    __post_init__ = check_bounds


def text_table(table: EpisodeTable, encoder: TextEncoder) -> TextTable | LazyText:
    """Embed every sentence of `table` once; where that takes more than 4 GiB, a batch's when it is asked for."""
    length = encoder.length(table.sentences)
    if len(table.sentences) * length * encoder.config.width * 4 > IN_MEMORY_BYTES:
        return LazyText(table.sentences, encoder.tokens, length)
    text, mask = encoder.tokens(list(table.sentences))
    return TextTable(text, mask)


def open_table(data: DataConfig, embodiment: str, stride: int) -> EpisodeTable:
    """Return the episodes of `data.stores`; those that one name with * or ? matches are mixed like one store.

    Raises:
        UserError: a store is missing, holds no such episode, or robot episodes of another robot than `data.robot`.
    """
    robot = None if data.robot is None else robots.chosen(data.robot, "data.robot")
    found = [_matching(name) for name in data.stores]
    entries = [number for number, paths in enumerate(found) for _ in paths]
    table = EpisodeTable(open_stores(data.stores), embodiment, stride, data.cache, entries)
    if robot is not None and table.robot is not None and table.robot.name != robot.name:
        raise UserError(
            f"data.robot: {data.robot} is robot {robot.name}, {table.stores[0].path} holds episodes of robot "
            f"{table.robot.name}; correct one of them"
        )
    return table


def open_stores(names: Sequence[str]) -> list[EpisodeStore]:
    """Open the stores of these names, each of which may stand for several."""
    if not names:
        raise UserError("data.stores: is empty; name at least one episode store")
    return [EpisodeStore(path) for name in names for path in _matching(name)]


def _matching(name: str) -> list[str]:
    if Path(name).exists() or not any(letter in name for letter in "*?["):
        return [name]
    paths = [path for path in sorted(glob.glob(name)) if os.path.isdir(path)]
    if not paths:
        raise UserError(f"data.stores: {name!r} matches no folder; see what is there")
    return paths


def split(table: EpisodeTable, data: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the training episodes that `data` asks for, and those that are held out, as rows of `table`."""
    train, held_out = split_episodes(table, data.validation, data.seed)
    if data.tasks is not None:
        for task in data.tasks:
            if task not in table.tasks:
                raise UserError(f"data.tasks: no episode of {task!r} in {', '.join(data.stores)}; see `arvrm inspect`")
        wanted = np.isin(table.task, [table.tasks.index(task) for task in data.tasks])
        train, held_out = train[wanted[train]], held_out[wanted[held_out]]
    train = few_shot(table, train, data.episodes_per_task, data.seed)
    if data.share < 1.0:
        count = max(1, round(data.share * len(train)))
        train = np.sort(np.random.default_rng(data.seed).choice(train, count, replace=False))
    return train, held_out


def sampler_of(
    table: EpisodeTable,
    anchors: np.ndarray | Anchors,
    data: DataConfig,
    seed: int,
    some: np.ndarray | None = None,
) -> AnchorSampler:
    """Return the sampler of `anchors`, or of `some` of them with the weights they have among all."""
    if len(anchors) == 0:
        raise UserError(f"{', '.join(data.stores)}: no training window is left; give more episodes or fewer held out")
    weights = mixing_shares(table, anchors, data.weights, data.balance_tasks)
    if some is not None:
        # A segment brings each of its windows once, so that its weight is one window's, not their sum.
        weights = weights * cell_counts(table, some) / np.maximum(cell_counts(table, anchors), 1)
        anchors, weights = some, weights / weights.sum()
    return AnchorSampler(table, anchors, weights, seed, data.order)


def spread(anchors: np.ndarray | Anchors, count: int) -> np.ndarray:
    """Return at most `count` of the anchors, spread evenly."""
    if len(anchors) <= count:
        return np.asarray(anchors)
    return anchors[np.linspace(0, len(anchors) - 1, count).round().astype(np.int64)]


def frames_of(
    table: EpisodeTable,
    camera: Camera,
    data: DataConfig,
    model: ModelConfig,
    encoder: nn.Module,
    train: TrainConfig,
    progress: bool,
) -> FrameSource:
    """Return the images of a camera, or, of a frozen encoder, its features.

    Features are computed where and in the precision in which training would compute them.
    """
    if not model.features_suffice or not data.frozen_features:
        return images_of(table, camera, data, model, progress)
    size = _size(model.vision, camera)
    digest = FrozenEncoders(TextEncoder(model.text), model.vision, size, model.width, encoder, model.published).hash
    lower = train.precision == "bf16"
    key = "-".join(["all", digest, data.feature_precision, *(["bf16"] if lower else [])])
    kind = "cuda" if train.device != "cpu" and torch.cuda.is_available() else "cpu"
    kept = torch.float16 if data.feature_precision == "fp16" else torch.float32
    with _encoding(encoder, kind, size, lower, kept) as compute:
        with progress_bar(f"features {camera.name}", len(table.step_of_image), progress) as bar:
            wait = not processes.is_main() and data.cache is not None
            return decode_frames(table, camera.name, None, data.cache, compute, key, bar.update, wait)


@contextlib.contextmanager
def _encoding(
    encoder: nn.Module, kind: str, size: int, lower: bool, kept: torch.dtype
) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """Give a function from images (n, H, W, 3) to the encoder's features (n, 1 + P, D), kept as `kept`.

    Args:
        kind: of the device that the encoder is on for the time of the block.
        size: pixels at which it reads images.
        lower: encode in bf16.
    """
    before = next((parameter.device for parameter in encoder.parameters()), torch.device("cpu"))
    training, at_once = encoder.training, 256 if kind == "cuda" else 64
    encoder.to(kind).eval()

    @torch.no_grad()
    def compute(frames: np.ndarray) -> np.ndarray:
        out = []
        for start in range(0, len(frames), at_once):
            images = torch.from_numpy(frames[start : start + at_once]).to(kind)
            with torch.autocast(kind, torch.bfloat16, enabled=lower):
                out.append(encoder(fit_images(images[None], size)[0], None)[0].to(kept).cpu().numpy())
        return np.concatenate(out)

    try:
        yield compute
    finally:
        encoder.to(before).train(training)


def images_of(table: EpisodeTable, camera: Camera, data: DataConfig, model: ModelConfig, progress: bool) -> FrameSource:
    """Return the images of a camera."""
    # Resized once when decoded, as the model would do at every step. A ViT enlarges: that is left to it.
    size = _size(model.vision, camera) if model.vision.encoder == "conv" else None
    in_memory = data.in_memory
    if in_memory is None:
        height, width = (size, size) if size else table.header(0).cameras[camera.name]
        in_memory = table.frames * height * width * 3 <= IN_MEMORY_BYTES
    if not in_memory:
        return StoreFrames(table, camera.name, size)
    with progress_bar(f"frames {camera.name}", len(table.step_of_image), progress) as bar:
        return decode_frames(table, camera.name, size, data.cache, progress=bar.update)


def _size(vision: VisionConfig, camera: Camera) -> int:
    return vision.static_size if camera.role == "static" else vision.gripper_size


def episode_names(table: EpisodeTable, anchors: np.ndarray, most: int = 8) -> str:
    """Name the episodes of windows, for a message."""
    names = sorted({table.ids[episode] for episode in table.episode_of_image[anchors]})
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
