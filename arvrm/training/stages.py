"""The three steps of training: `pretrain` on human clips, `build_index_stage`, `finetune` on robot episodes.

Every row of the claim is a switch of one `FinetuneConfig`, with the same updates and the same robot batches:

    no human data            pretrained = null, index = null
    + keypoint pretraining   pretrained = RUN
    + retrieval and replay   index = INDEX, model.analogy.enabled = false
    + map                    model.analogy.enabled = true
"""

from __future__ import annotations

import glob
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from arvrm import processes
from arvrm.config import from_dict, to_dict
from arvrm.episodes import EpisodeStore
from arvrm.interface import CONTROL_HZ, HumanBatch, RobotBatch, UserError
from arvrm.model.checkpoint import load_checkpoint, load_weights, save_checkpoint, start_from_stage1
from arvrm.model.config import ModelConfig
from arvrm.model.encoders import TextEncoder, fit_images
from arvrm.model.keypoint_vlm import KeypointVLM, last_motion, last_seen
from arvrm.model.policy_net import PolicyNet
from arvrm.retrieval import (
    ClipIndex,
    FrozenEncoders,
    RetrievalConfig,
    RetrievedClips,
    SearchConfig,
    build_index,
    frame_features,
)
from arvrm.training.distribution import WHOLE, Piece, check_division, shards
from arvrm.training.loop import (
    TrainConfig,
    Trainer,
    TrainResult,
    check_folder,
    prepare_folder,
    to_device,
    write_json,
)
from arvrm.windows import (
    IN_MEMORY_BYTES,
    Anchors,
    AnchorSampler,
    EpisodeTable,
    FrameBank,
    HumanWindows,
    LazyText,
    RobotWindows,
    Segments,
    StoreFrames,
    TextTable,
    WindowConfig,
    cell_counts,
    cut_segments,
    decode_frames,
    few_shot,
    in_batches,
    mixing_shares,
    split_episodes,
    store_fingerprint,
)

PIXELS = 224
"""Side of the image in whose pixels keypoint errors are given."""
AHEAD = (1, 5, 10)
"""Frames ahead at which stage 1 is judged."""


@dataclass(frozen=True)
class DataConfig:
    """Which episodes.

    Attributes:
        stores: episode stores. A name with * or ? stands for all stores that it matches, which are mixed like one.
        weights: the share of the batches of each name in `stores`; null: by number of windows.
        balance_tasks: within a store each task gets the same share.
        order: "random": windows are drawn independently; "epochs": every window comes before one comes again, as far as
            weights and balance allow (windows.AnchorSampler says how).
        tasks: only these; null: all.
        episodes_per_task: at most so many training episodes of each task; null: all.
        share: of the training episodes that is used, drawn by `seed`.
        validation: share of the groups that is held out; 0: none.
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
        cache: folder for the stores' headers as arrays, decoded frames and frozen features, shared by runs; null: this
            run's memory only.
    """

    stores: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None
    balance_tasks: bool = True
    order: Literal["random", "epochs"] = "random"
    tasks: tuple[str, ...] | None = None
    episodes_per_task: int | None = None
    share: float = 1.0
    validation: float = 0.1
    validation_windows: int = 512
    seed: int = 0
    in_memory: bool | None = None
    frozen_features: bool = True
    feature_precision: Literal["fp16", "fp32"] = "fp16"
    segment_windows: int = 0
    cache: str | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"share is {self.share}; give a number above 0, at most 1")
        if self.segment_windows < 0:
            raise ValueError(f"segment_windows is {self.segment_windows}; give a number of windows, or 0")


@dataclass(frozen=True)
class PretrainConfig:
    """Stage 1: keypoint pretraining on human clips.

    Attributes:
        output: the run's folder, which becomes the checkpoint.
        resume: go on with a run that was stopped.
        overwrite: replace an existing run.
    """

    output: str
    resume: bool = False
    overwrite: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    window: WindowConfig = field(default_factory=lambda: WindowConfig(history=4))
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True)
class IndexConfig:
    """The clip index.

    Attributes:
        stores: human clips.
        checkpoint: stage 1's, whose image encoder gives the features.
        output: the index's folder.
        overwrite: replace an existing index.
        cache: folder for frame features; null: none.
        search: how the index is searched: all clips, or, of many, a short list.
    """

    stores: tuple[str, ...]
    checkpoint: str
    output: str
    overwrite: bool = False
    cache: str | None = None
    search: SearchConfig = field(default_factory=SearchConfig)


@dataclass(frozen=True)
class FinetuneConfig:
    """Stage 2: the policy, on robot episodes.

    Attributes:
        output: the run's folder, which becomes the checkpoint.
        resume: go on with a run that was stopped.
        overwrite: replace an existing run.
        pretrained: checkpoint to start from: stage 1's, or a policy's; null: from scratch.
        pretrained_rate: share of the learning rate at which the weights of that checkpoint are trained on.
        index: clip index whose clips accompany the robot's windows; null: none.
        retrieval: which of them.
        replay_windows: windows of retrieved clips per update on which stage 1's loss is replayed (a random selection);
            null: every clip of every window, as in the paper. The weight is model.loss.replay.
        execute_steps: actions of a chunk that a rollout executes before it plans again; null: the policy's default.
    """

    output: str
    resume: bool = False
    overwrite: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    pretrained: str | None = None
    pretrained_rate: float = 1.0
    index: str | None = None
    window: WindowConfig = field(default_factory=WindowConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    replay_windows: int | None = 32
    execute_steps: int | None = None
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.window.chunk != self.model.chunk:
            raise ValueError(
                f"window.chunk {self.window.chunk} and model.chunk {self.model.chunk} differ; set both alike"
            )
        if not 0.0 <= self.pretrained_rate <= 1.0:
            raise ValueError(f"pretrained_rate is {self.pretrained_rate}; give a number from 0 to 1")
        if self.pretrained_rate != 1.0 and self.pretrained is None:
            raise ValueError("pretrained_rate is for weights of a checkpoint; give pretrained, or set it to 1")


# ---------------------------------------------------------------------------------------------------------------------
# Stage 1
# ---------------------------------------------------------------------------------------------------------------------


def pretrain(config: PretrainConfig, progress: bool = True) -> TrainResult:
    """Train a `KeypointVLM` to foresee hand keypoints.

    Raises:
        UserError: the output exists, a store is missing or holds no human clip, the loss is not a number.
    """
    _check(config, "pretrain")
    table = open_table(config.data, "human", config.window.stride)
    train, held_out = _split(table, config.data)
    torch.manual_seed(config.train.seed)
    model = KeypointVLM(config.model)
    frames, features = _frames(
        table, "rgb_static", config.data, config.model, model.static_encoder, config.train, progress
    )
    text = text_table(table, TextEncoder(config.model.text))
    joints, foresee = config.model.keypoints, config.model.foresee
    windows = HumanWindows(table, config.window, joints, text, frames, features, config.data.in_memory, foresee)
    sampler = _sampler(table, windows.anchors(train), config.data, config.train.seed)

    def anchors_of(step: int, piece: Piece) -> np.ndarray:
        return sampler.draw(step, config.train.batch)[piece.rows(config.train.batch)]

    held = _spread(windows.anchors(held_out), config.data.validation_windows)
    trainer = Trainer(
        model,
        lambda step, piece: windows.batch(anchors_of(step, piece)),
        config.train,
        _begin(config, "pretrain"),
        save=_saver({"stage": "pretrain", **_metadata(config, table, train)}),
        validate=(lambda m, device: keypoint_errors(m, windows, held, device)) if len(held) else None,
        describe=lambda step, piece: _names(table, anchors_of(step, piece)),
        name="pretrain",
    )
    return trainer.run(config.resume, progress)


def keypoint_errors(
    model: nn.Module, windows: HumanWindows, anchors: np.ndarray, device: torch.device | str = "cpu", batch: int = 128
) -> dict[str, float]:
    """Judge stage 1 on windows it was not trained on.

    Returns:
        loss: as in training; per number of frames ahead (`AHEAD`, one window spacing each) the mean distance in pixels
        of a 224 px image between visible keypoints and: `error_N` the model's, `hold_N` the last pose kept,
        `velocity_N` the last motion continued. Frames past a clip's end count for nothing.
    """
    judged = judge_windows(model, windows, anchors, device, batch)
    names = {"error": "model", "hold": "hold", "velocity": "velocity"}
    total = np.maximum(1, judged.counts.sum(axis=(0, 2)))
    pixels = {
        f"{name}_{ahead}": float(judged.sums[row][:, place].sum() / total[place])
        for name, row in names.items()
        for place, ahead in enumerate(AHEAD)
    }
    return {"loss": judged.loss, **pixels}


CONTROLS = ("language_shuffled", "frames_shuffled", "frames_blanked")
"""What the model is given in place of its own inputs, to see what each contributes; see `judge_windows`."""
_GREY = 127


@dataclass(frozen=True)
class Judged:
    """Errors of a set of W windows, for each of `AHEAD` frames ahead (A).

    Attributes:
        loss: as in training, mean over windows; of the model with its own inputs.
        sums: row ("model", "hold", "velocity" and controls) -> (W, A, K) pixels of a 224 px image, 0 where not counted.
        counts: (W, A, K) bool: the joint is visible then, and was seen in the window.
    """

    loss: float
    sums: dict[str, np.ndarray]
    counts: np.ndarray


@torch.no_grad()
def judge_windows(
    model: nn.Module,
    windows: HumanWindows,
    anchors: np.ndarray,
    device: torch.device | str = "cpu",
    batch: int = 128,
    controls: Sequence[str] = (),
    seed: int = 0,
) -> Judged:
    """Measure how far predicted keypoints are off, joint by joint, for the model, both baselines and `controls`.

    Controls: "language_shuffled" gives each window the sentence of another clip (of another wording, where there is
    one), "frames_shuffled" the images of another window, "frames_blanked" grey images; all else stays. A joint never
    seen in the window cannot be held, and counts for none of the rows.
    """
    network = getattr(model, "module", model)
    device = torch.device(device)
    rng = np.random.default_rng(seed)
    sentences = windows.table.sentence[windows.table.episode_of_image[anchors]]
    other_sentences = _others(sentences, rng)
    partner = rng.permutation(len(anchors))
    loss, sums, counts = 0.0, {row: [] for row in ("model", "hold", "velocity", *controls)}, []
    for places in in_batches(np.arange(len(anchors)), batch):
        some = anchors[places]
        inputs = to_device(windows.batch(some), device)
        loss += float(model(inputs)["loss"]) * len(some)
        truth, visible = (t.to(device) for t in windows.future(some, max(AHEAD)))
        seen = inputs["visible"] & inputs["frame_mask"][..., None]
        held = last_seen(inputs["keypoints"], seen)[:, -1:]
        motion = last_motion(inputs["keypoints"], seen)[:, -1:]
        at = torch.tensor(AHEAD, device=device) - 1
        mask = (visible & seen.any(1, keepdim=True))[:, at]
        guesses = {
            "model": network.predict_next(inputs, max(AHEAD)).float()[:, at],
            "hold": held.expand(-1, len(AHEAD), -1, -1),
            "velocity": held + (at + 1)[:, None, None] * motion,
        }
        for control in controls:
            changed = dict(inputs)
            if control == "language_shuffled":
                text, text_mask = windows.text.take(other_sentences[places])
                changed["text"], changed["text_mask"] = text.to(device), text_mask.to(device)
            elif control == "frames_shuffled":
                other = to_device(windows.batch(anchors[partner[places]]), device)
                changed |= {name: other[name] for name in ("static", "static_features") if name in other}
            elif control == "frames_blanked":
                changed |= _blank(network, inputs)
            else:
                raise ValueError(f"control {control!r} is none of {', '.join(CONTROLS)}")
            guesses[control] = network.predict_next(changed, max(AHEAD)).float()[:, at]
        for row, guess in guesses.items():
            distance = (guess - truth[:, at])[..., :2].norm(dim=-1) * (PIXELS / 2)
            sums[row].append(torch.where(mask, distance, torch.zeros_like(distance)).double().cpu().numpy())
        counts.append(mask.cpu().numpy())
    shape = (0, len(AHEAD), windows.joints)
    return Judged(
        loss / max(1, len(anchors)),
        {row: np.concatenate([np.zeros(shape), *parts]) for row, parts in sums.items()},
        np.concatenate([np.zeros(shape, bool), *counts]),
    )


def _others(sentences: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give each window the sentence of another, with another wording wherever there is one."""
    others = sentences[rng.permutation(len(sentences))]
    for place in np.flatnonzero(others == sentences):
        different = sentences[sentences != sentences[place]]
        if len(different):
            others[place] = rng.choice(different)
    return others


def _blank(network: nn.Module, inputs: HumanBatch) -> dict[str, torch.Tensor]:
    """Return the batch's images as grey ones, or the frozen encoder's features of a grey one."""
    if "static" in inputs:
        return {"static": torch.full_like(inputs["static"], _GREY)}
    vision, features = network.config.vision, inputs["static_features"]
    size = vision.static_size
    grey = torch.full((1, 1, size, size, 3), _GREY, dtype=torch.uint8, device=features.device)
    blank = network.static_encoder(fit_images(grey, size)[0], None)[0]
    return {"static_features": blank[:, None].to(features.dtype).expand_as(features)}


@dataclass(frozen=True)
class EvaluateHandsConfig:
    """How well a stage-1 checkpoint foresees hands.

    Attributes:
        checkpoint: the run's folder.
        output: JSON file to write.
        stores: human clips; none: those the run was trained on. Of these only the held-out clips are used, of other
            stores all.
        windows: most windows of each store, spread evenly.
        seed: of the controls' shuffling and of the intervals.
        device: cpu, cuda ...
        overwrite: replace an existing output.
    """

    checkpoint: str
    output: str
    stores: tuple[str, ...] = ()
    windows: int = 1024
    seed: int = 0
    device: str = "cpu"
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.windows < 1:
            raise ValueError(f"windows is {self.windows}; it must be at least 1")


def evaluate_hands(config: EvaluateHandsConfig, progress: bool = True) -> Path:
    """Compare a checkpoint's predictions on held-out clips with both baselines and with its own under `CONTROLS`.

    Returns:
        The JSON file: per store and over all, per row and per frames ahead, the mean over joints, windows and clips
        (pixels at 224; null where no clip goes on for so long) with the 95 % interval of its difference from the model
        (bootstrap over groups, if there are two), and the model's mean per joint.

    Raises:
        UserError: the checkpoint is no stage-1 run, a store is missing or has no held-out clip, the output exists.
    """
    output = Path(config.output)
    if output.exists() and not config.overwrite:
        raise UserError(f"{output}: exists already; pass --overwrite to replace it")
    loaded = load_checkpoint(config.checkpoint, kind="keypoint_vlm")
    try:
        data = from_dict(DataConfig, loaded.metadata["data"], "data")
        window = from_dict(WindowConfig, loaded.metadata["window"], "window")
        trained = {entry["fingerprint"] for entry in loaded.metadata["stores"]}
    except (KeyError, TypeError) as error:
        raise UserError(f"{config.checkpoint}: does not say what it was trained on ({error}); pretrain anew") from error
    stores = _open(config.stores or data.stores)
    model = loaded.model.eval().to(config.device)
    held_out = _held_out_ids(stores, trained, data, window)
    encoder = TextEncoder(loaded.config.text)
    parts, groups, tables = [], [], []
    for store in stores:
        table = EpisodeTable([store], "human", window.stride)
        wanted = held_out.get(store_fingerprint(store))
        episodes = np.array([e for e, id in enumerate(table.ids) if wanted is None or id in wanted], dtype=np.int64)
        if not len(episodes):
            raise UserError(f"{store.path}: none of its clips was held out of training; give other clips")
        frames = StoreFrames(table, "rgb_static", loaded.config.vision.static_size)
        if loaded.config.vision.encoder != "conv":
            frames = StoreFrames(table, "rgb_static", None)
        windows = HumanWindows(table, window, loaded.config.keypoints, text_table(table, encoder), frames)
        anchors = _spread(windows.anchors(episodes), config.windows)
        judged = judge_windows(model, windows, anchors, config.device, 64, CONTROLS, config.seed)
        parts.append(judged)
        of_episode = [f"{store.path}/{table.header(e).group}" for e in range(len(table))]
        groups.append(np.array([of_episode[e] for e in table.episode_of_image[anchors]]))
        sentences = np.unique(table.sentence[table.episode_of_image[anchors]])
        tables.append(
            {
                "path": str(store.path),
                "held_out_of_training": wanted is not None,
                "clips": len(episodes),
                "windows": len(anchors),
                "sentences": len(sentences),
                **_hand_table(judged, groups[-1], config.seed),
            }
        )
        if progress:
            print(hand_table_text(tables[-1]), file=sys.stderr)
    whole = Judged(
        float(np.average([part.loss for part in parts], weights=[len(part.counts) for part in parts])),
        {row: np.concatenate([part.sums[row] for part in parts]) for row in parts[0].sums},
        np.concatenate([part.counts for part in parts]),
    )
    values = {
        "format": "arvrm-hands",
        "version": 1,
        "checkpoint": str(config.checkpoint),
        "pixels": PIXELS,
        "ahead": list(AHEAD),
        "frame_seconds": window.stride / CONTROL_HZ,
        "stores": tables,
        "all": {
            "path": "all stores",
            "clips": sum(table["clips"] for table in tables),
            "windows": len(whole.counts),
            **_hand_table(whole, np.concatenate(groups), config.seed),
        },
    }
    write_json(output, values)
    return output


def _held_out_ids(
    stores: Sequence[EpisodeStore], trained: set[str], data: DataConfig, window: WindowConfig
) -> dict[str, set[str]]:
    """Return fingerprint -> ids held out of training, of the stores that the run was trained on."""
    if not any(store_fingerprint(store) in trained for store in stores):
        return {}
    # The split is one over all of the run's stores, so it takes all of them to know it.
    table = open_table(data, "human", window.stride)
    found = {store_fingerprint(store): set() for store in table.stores}
    if not trained <= set(found):
        raise UserError(
            "data.stores: have changed since training, so that nobody knows what was held out; pretrain anew"
        )
    names = [store_fingerprint(store) for store in table.stores]
    for episode in _split(table, data)[1]:
        found[names[table.store[episode]]].add(table.ids[episode])
    return found


def _hand_table(judged: Judged, groups: np.ndarray, seed: int, rounds: int = 1000) -> dict[str, Any]:
    """Return means per row and frames ahead, and how sure their difference from the model's is."""
    _, group = np.unique(groups, return_inverse=True)
    number = int(group.max()) + 1
    counts = np.zeros((number, len(AHEAD)))
    np.add.at(counts, group, judged.counts.sum(axis=2))
    draws = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=rounds)
    means, intervals = {}, {}
    totals = {}
    for row, distances in judged.sums.items():
        totals[row] = np.zeros((number, len(AHEAD)))
        np.add.at(totals[row], group, distances.sum(axis=2))
    weight = np.maximum(1e-9, draws @ counts)
    for row, total in totals.items():
        mean = total.sum(axis=0) / np.maximum(1, counts.sum(axis=0))
        means[row] = {
            str(ahead): round(float(value), 4) if some else None
            for ahead, value, some in zip(AHEAD, mean, counts.sum(axis=0), strict=True)
        }
        if row != "model" and number > 1:
            difference = (draws @ (total - totals["model"])) / weight
            low, high = np.percentile(difference, [2.5, 97.5], axis=0)
            intervals[row] = {
                str(ahead): [round(float(a), 4), round(float(b), 4)]
                for ahead, a, b in zip(AHEAD, low, high, strict=True)
            }
    per_joint = judged.sums["model"].sum(axis=0) / np.maximum(1, judged.counts.sum(axis=0))
    return {
        "loss": judged.loss,
        "groups": number,
        "error_px": means,
        "above_model_px_95": intervals,
        "model_px_per_joint": {
            str(ahead): [round(float(v), 4) for v in row] for ahead, row in zip(AHEAD, per_joint, strict=True)
        },
    }


def hand_table_text(table: dict[str, Any]) -> str:
    """Return one of the tables of `evaluate_hands` for a person."""
    lines = [f"{table['path']}: {table['clips']} clips, {table['windows']} windows; mean error, px at {PIXELS}"]
    lines.append(f"{'':20}" + "".join(f"{f'{ahead} ahead':>28}" for ahead in AHEAD))
    for row, means in table["error_px"].items():
        cells = []
        for ahead in map(str, AHEAD):
            spread = table["above_model_px_95"].get(row, {}).get(ahead)
            note = f" ({spread[0]:+.2f} to {spread[1]:+.2f})" if spread else ""
            cells.append("-" if means[ahead] is None else f"{means[ahead]:.2f}{note}")
        lines.append(f"{row.replace('_', ' '):20}" + "".join(f"{cell:>28}" for cell in cells))
    if table.get("sentences") == 1:
        lines.append("language cannot be shuffled: all windows have one sentence")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# The index
# ---------------------------------------------------------------------------------------------------------------------


def build_index_stage(config: IndexConfig, progress: bool = True) -> Path:
    """Index human clips by the frozen encoders of a stage-1 checkpoint; return the index's folder."""
    encoders = frozen_encoders(config.checkpoint)
    stores = _open(config.stores)
    total = sum(store.manifest["counts"]["frames"] for store in stores)
    with _bar("index", total, progress) as bar:
        index = build_index(stores, encoders, config.output, config.overwrite, config.cache, bar.update, config.search)
    if index.coarse is not None and progress:
        found, wanted = index.settings["recall_at_10"], config.search.recall
        note = "" if found >= wanted else f", less than the {wanted:g} asked for; search.kind=exact finds all"
        print(
            f"{index.path}: {len(index)} clips, approximate search with {index.settings['probes']} of "
            f"{index.settings['lists']} clusters and {index.settings['shortlist']} clips compared: recall@10 {found:g}"
            f"{note}",
            file=sys.stderr,
        )
    return index.path


def frozen_encoders(checkpoint: str | Path) -> FrozenEncoders:
    """Return the encoders by which clips of a checkpoint (of either stage) are compared."""
    loaded = load_checkpoint(checkpoint)
    model = loaded.model.vlm if isinstance(loaded.model, PolicyNet) else loaded.model
    vision = loaded.config.vision
    return FrozenEncoders(
        TextEncoder(loaded.config.text), vision, vision.static_size, loaded.config.width, model.static_encoder
    )


# ---------------------------------------------------------------------------------------------------------------------
# Stage 2
# ---------------------------------------------------------------------------------------------------------------------


class RobotData:
    """Robot windows with the human clips that accompany them.

    Attributes:
        windows, train, held_out: the robot's windows; anchors of the training and of the held-out episodes.
        clips: the retrieved clips, or None without an index.
    """

    def __init__(self, config: FinetuneConfig, model: PolicyNet, progress: bool = False) -> None:
        self.config = config
        data, window = config.data, config.window
        table = open_table(data, "robot", window.stride)
        self.train_episodes, held_out = _split(table, data)
        encoder = TextEncoder(config.model.text)
        train = config.train
        static, features = _frames(table, "rgb_static", data, config.model, model.vlm.static_encoder, train, progress)
        gripper, _ = _frames(table, "rgb_gripper", data, config.model, model.hand_encoder, train, progress)
        foresee = config.model.fwd_pred and config.model.loss.image > 0
        pixels = None
        if foresee and features:
            pixels = tuple(_images(table, name, data, config.model, progress) for name in ("rgb_static", "rgb_gripper"))
        self.windows = RobotWindows(
            table, window, text_table(table, encoder), static, gripper, features, foresee, pixels
        )
        self.train = self.windows.anchors(self.train_episodes)
        self.held_out = _spread(self.windows.anchors(held_out), data.validation_windows)
        self.draws = train.batch
        self.segments: Segments | None = None
        if data.segment_windows:
            self.segments = cut_segments(table, self.train, data.segment_windows)
            self.sampler = _sampler(table, self.train, data, train.seed, self.segments.last)
            pieces = train.accumulate * processes.world()
            self.draws = pieces * -(-train.batch // (pieces * data.segment_windows))
        else:
            self.sampler = _sampler(table, self.train, data, train.seed)
        self.clips = self._retrieve(encoder, model, progress) if config.index else None

    def _retrieve(self, encoder: TextEncoder, model: PolicyNet, progress: bool) -> RetrievedClips:
        config, table = self.config, self.windows.table
        index = ClipIndex.load(config.index)
        humans = EpisodeTable(index.open_stores(), "human", config.window.stride, config.data.cache)
        images = features = None
        if config.model.loss.replay > 0:
            images, features = _frames(
                humans, "rgb_static", config.data, config.model, model.vlm.static_encoder, config.train, progress
            )
        windows = HumanWindows(
            humans,
            config.window,
            config.model.keypoints,
            text_table(humans, encoder),
            images,
            bool(features),
            config.data.in_memory,
            config.model.foresee,
        )
        seen = None
        if config.retrieval.choice == "similar" or config.retrieval.align == "dtw":
            with _bar("retrieval features", len(table.step_of_image), progress) as bar:
                seen = frame_features(table, index.encoders, config.data.cache, bar.update)
        return RetrievedClips(index, table, windows, seen, config.retrieval, config.window.history, config.data.cache)

    def batch(self, anchors: np.ndarray, rng: np.random.Generator, piece: Piece = WHOLE) -> RobotBatch:
        """Return a piece of a batch of windows with their clips; `rng` chooses which clips are replayed."""
        return self._with_clips(self.windows.batch(anchors[piece.rows(len(anchors))]), anchors, rng, piece)

    def _with_clips(self, batch: RobotBatch, anchors: np.ndarray, rng: np.random.Generator, piece: Piece) -> RobotBatch:
        if self.clips is None:
            return batch
        count, replays = self.config.replay_windows, self.config.model.loss.replay > 0
        batch["clips"] = self.clips.batch(anchors[piece.rows(len(anchors))], images=replays and count is None)
        if replays and count is not None:
            which = rng.choice(len(anchors), size=count, replace=count > len(anchors))
            clips = rng.integers(batch["clips"]["frame_mask"].shape[1], size=count)
            # Chosen for the whole batch. Where the pieces do not divide it, the last ones repeat one that counts not.
            each = -(-count // piece.of)
            rows = np.arange(each * piece.number, each * (piece.number + 1))
            spare, rows = torch.from_numpy(rows >= count), np.minimum(rows, count - 1)
            chosen, j = self.clips.batch(anchors[which[rows]]), torch.from_numpy(clips[rows])
            batch["replay"] = {name: value[torch.arange(each), j] for name, value in chosen.items()}
            if spare.any():
                for name, value in batch["replay"].items():
                    if name.endswith("visible"):
                        value[spare] = False
        return batch

    def batch_of(self, step: int, piece: Piece = WHOLE) -> RobotBatch:
        """Return a piece of an update's training batch, which is a function of (seed, step)."""
        anchors = self.sampler.draw(step, self.draws)
        rng = np.random.default_rng([self.config.train.seed, step, 1])
        if self.segments is None:
            return self.batch(anchors, rng, piece)
        which = np.searchsorted(self.segments.last, anchors)
        batch = self.windows.segment_batch(self.segments, which[piece.rows(len(which))])
        return self._with_clips(batch, self.windows.segment_anchors(self.segments, which), rng, piece)

    def describe(self, step: int, piece: Piece = WHOLE) -> str:
        """Name the episodes of a piece of a batch."""
        return _names(self.windows.table, self.sampler.draw(step, self.draws)[piece.rows(self.draws)])


def finetune(config: FinetuneConfig, progress: bool = True) -> TrainResult:
    """Train a `PolicyNet`.

    Raises:
        UserError: the output exists, a store, checkpoint or index is missing or does not fit, the loss is not a number.
    """
    if config.model.analogy.at_rollout == "on" and not config.index:
        raise UserError("model.analogy.at_rollout is on but index is null; give the clip index")
    _check(config, "finetune")
    torch.manual_seed(config.train.seed)
    model = PolicyNet(config.model)
    slower = None
    if config.pretrained:
        slower = (_start_from(model, config.pretrained), config.pretrained_rate)
    data = RobotData(config, model, progress)
    metadata = {"stage": "finetune", **_metadata(config, data.windows.table, data.train_episodes)}
    metadata |= {"index": config.index, "retrieval": to_dict(config.retrieval), "pretrained": config.pretrained}
    if config.execute_steps:
        metadata["execute_steps"] = config.execute_steps
    trainer = Trainer(
        model,
        data.batch_of,
        config.train,
        _begin(config, "finetune"),
        save=_saver(metadata),
        validate=(lambda m, device: policy_errors(m, data, device)) if len(data.held_out) else None,
        describe=data.describe,
        name="finetune",
        slower=slower,
    )
    return trainer.run(config.resume, progress)


@torch.no_grad()
def policy_errors(
    model: nn.Module, data: RobotData, device: torch.device | str = "cpu", batch: int = 128
) -> dict[str, float]:
    """Judge stage 2 on windows it was not trained on.

    Returns:
        the losses as in training; of the last frame's chunk `arm_error`, the mean absolute error of the six arm numbers
        in units of actions, and `gripper_accuracy`, the share of right gripper commands.
    """
    sums: dict[str, float] = {}
    weight, arm, right, actions = 0, 0.0, 0.0, 0
    for number, some in enumerate(in_batches(data.held_out, batch)):
        inputs = to_device(data.batch(some, np.random.default_rng(number)), torch.device(device))
        result = model(inputs)
        for name, value in result.items():
            if value.ndim == 0:
                sums[name] = sums.get(name, 0.0) + float(value) * len(some)
        weight += len(some)
        target, mask = inputs["actions"][:, -1], inputs["action_mask"][:, -1]
        guess = result["actions"][:, -1].float()
        arm += float(((guess - target)[..., :6].abs().mean(-1) * mask).sum())
        right += float(((guess[..., 6] > 0) == (target[..., 6] > 0))[mask].sum())
        actions += int(mask.sum())
    values = {name: value / max(1, weight) for name, value in sums.items()}
    return values | {"arm_error": arm / max(1, actions), "gripper_accuracy": right / max(1, actions)}


# ---------------------------------------------------------------------------------------------------------------------
# What the stages share
# ---------------------------------------------------------------------------------------------------------------------


def text_table(table: EpisodeTable, encoder: TextEncoder) -> TextTable | LazyText:
    """Embed every sentence of `table` once; where that takes more than 4 GiB, a batch's when it is asked for."""
    length = encoder.length(table.sentences)
    if len(table.sentences) * length * encoder.config.width * 4 > IN_MEMORY_BYTES:
        return LazyText(table.sentences, encoder.tokens, length)
    text, mask = encoder.tokens(list(table.sentences))
    return TextTable(text, mask)


def open_table(data: DataConfig, embodiment: str, stride: int) -> EpisodeTable:
    """Return the episodes of `data.stores`; those that one name with * or ? matches are mixed like one store."""
    found = [_matching(name) for name in data.stores]
    entries = [number for number, paths in enumerate(found) for _ in paths]
    return EpisodeTable(_open(data.stores), embodiment, stride, data.cache, entries)


def _open(names: Sequence[str]) -> list[EpisodeStore]:
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


def _split(table: EpisodeTable, data: DataConfig) -> tuple[np.ndarray, np.ndarray]:
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


def _sampler(
    table: EpisodeTable,
    anchors: np.ndarray | Anchors,
    data: DataConfig,
    seed: int,
    some: np.ndarray | None = None,
) -> AnchorSampler:
    """Return the sampler of `anchors`, or of `some` of them with the weights they have among all."""
    if len(anchors) == 0:
        raise UserError(f"{', '.join(data.stores)}: no training window is left; give more episodes or fewer held out")
    shares = mixing_shares(table, anchors, data.weights, data.balance_tasks)
    if some is not None:
        # A segment brings each of its windows once, so that its weight is one window's, not their sum.
        shares = shares * cell_counts(table, some) / np.maximum(cell_counts(table, anchors), 1)
        anchors, shares = some, shares / shares.sum()
    return AnchorSampler(table, anchors, shares, seed, data.order)


def _spread(anchors: np.ndarray | Anchors, count: int) -> np.ndarray:
    if len(anchors) <= count:
        return np.asarray(anchors)
    return anchors[np.linspace(0, len(anchors) - 1, count).round().astype(np.int64)]


def _frames(
    table: EpisodeTable,
    camera: str,
    data: DataConfig,
    model: ModelConfig,
    encoder: nn.Module,
    train: TrainConfig,
    progress: bool,
) -> tuple[FrameBank | StoreFrames, bool]:
    """Return the frames of a camera, or, of a frozen encoder, its features; and which of the two.

    Features are computed where and in the precision in which training would compute them.
    """
    vision = model.vision
    by_words = vision.film or vision.modulated
    if by_words or not vision.frozen or vision.second is not None or not data.frozen_features:
        return _images(table, camera, data, model, progress), False
    size = vision.static_size if camera == "rgb_static" else vision.gripper_size
    digest = FrozenEncoders(TextEncoder(model.text), vision, size, model.width, encoder).hash
    lower = train.precision == "bf16"
    kept = torch.float16 if data.feature_precision == "fp16" else torch.float32
    key = "-".join(["all", digest, data.feature_precision, *(["bf16"] if lower else [])])
    kind = "cuda" if train.device != "cpu" and torch.cuda.is_available() else "cpu"
    before = next((parameter.device for parameter in encoder.parameters()), torch.device("cpu"))
    training = encoder.training
    encoder.to(kind).eval()

    @torch.no_grad()
    def compute(frames: np.ndarray) -> np.ndarray:
        out = []
        for start in range(0, len(frames), 256 if kind == "cuda" else 64):
            images = torch.from_numpy(frames[start : start + (256 if kind == "cuda" else 64)]).to(kind)
            with torch.autocast(kind, torch.bfloat16, enabled=lower):
                out.append(encoder(fit_images(images[None], size)[0], None)[0].to(kept).cpu().numpy())
        return np.concatenate(out)

    try:
        with _bar(f"features {camera}", len(table.step_of_image), progress) as bar:
            wait = not processes.is_main() and data.cache is not None
            return decode_frames(table, camera, None, data.cache, compute, key, bar.update, wait), True
    finally:
        encoder.to(before).train(training)


def _images(
    table: EpisodeTable, camera: str, data: DataConfig, model: ModelConfig, progress: bool
) -> FrameBank | StoreFrames:
    """Return the frames of a camera."""
    vision = model.vision
    # Reduced once when decoded, as the model would do at every step. A ViT enlarges: that is left to it.
    size = (vision.static_size if camera == "rgb_static" else vision.gripper_size) if vision.encoder == "conv" else None
    in_memory = data.in_memory
    if in_memory is None:
        height, width = (size, size) if size else table.header(0).cameras[camera]
        in_memory = table.frames * height * width * 3 <= IN_MEMORY_BYTES
    if not in_memory:
        return StoreFrames(table, camera, size)
    with _bar(f"frames {camera}", len(table.step_of_image), progress) as bar:
        return decode_frames(table, camera, size, data.cache, progress=bar.update)


def _start_from(model: PolicyNet, checkpoint: str) -> str:
    """Load the checkpoint's weights; return with what their names begin."""
    try:
        kind = json.loads((Path(checkpoint) / "config.json").read_text()).get("kind")
    except (OSError, ValueError):
        kind = None  # start_from_stage1 says what is wrong
    if kind == "policy":
        load_weights(model, checkpoint)
        return ""
    start_from_stage1(model, checkpoint)
    return "vlm."


def _metadata(config: PretrainConfig | FinetuneConfig, table: EpisodeTable, train: np.ndarray) -> dict[str, Any]:
    header = table.header(0)
    images = {name.removeprefix("rgb_"): size[0] for name, size in header.cameras.items()}
    return {
        "window": to_dict(config.window),
        "images": images,
        "data": to_dict(config.data),
        "train": to_dict(config.train),
        "episodes": len(train),
        "tasks": sorted({table.tasks[task] for task in table.task[train]}),
        "stores": [{"path": str(store.path), "fingerprint": store_fingerprint(store)} for store in table.stores],
    }


def _saver(metadata: dict[str, Any]) -> Callable[[Path, nn.Module], None]:
    def save(folder: Path, model: nn.Module) -> None:
        part = save_checkpoint(folder / ".saving", model, metadata=metadata, overwrite=True)
        # The other two files never change in a run, so that at every moment the three fit together.
        for name in ("statistics.json", "config.json", "model.safetensors"):
            os.replace(part / name, folder / name)
        part.rmdir()

    return save


def _check(config: PretrainConfig | FinetuneConfig, stage: str) -> None:
    """Look whether the run's folder may be used, and change nothing; a resumed run must have the same configuration."""
    check_division(config.train.batch, config.train.accumulate)
    output = Path(config.output)
    if not processes.is_main():
        return
    check_folder(output, config.resume, config.overwrite)
    file = output / "run.json"
    if not (config.resume and file.exists()):
        return
    try:
        before = json.loads(file.read_text())
        known = to_dict(from_dict(type(config), before["config"], str(file)))
        difference = _difference(known, to_dict(config))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: is damaged ({error}); restart with --overwrite") from error
    if before["stage"] != stage or difference:
        what = difference or f"stage {before['stage']}, not {stage}"
        raise UserError(f"{output}: was started with another configuration ({what}); use the same, or --overwrite")


def _begin(config: PretrainConfig | FinetuneConfig, stage: str) -> Path:
    """Make the run's folder, now that everything it needs has been found, and note how it is made."""
    output = Path(config.output)
    if not processes.is_main():
        return output
    prepare_folder(output, config.resume, config.overwrite)
    if not (config.resume and (output / "run.json").exists()):
        values = {
            "stage": stage,
            "config": to_dict(config),
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
            "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
            "processes": {"number": processes.world(), "sharded": shards()},
        }
        write_json(output / "run.json", values)
    return output


_MAY_CHANGE = {"output", "resume", "overwrite", "data.cache", "data.in_memory", "retrieval.refresh"} | {
    f"train.{name}"
    for name in ("accumulate", "log_every", "validate_every", "checkpoint_every", "tensorboard", "workers")
}


def _difference(old: Any, new: Any, place: str = "") -> str | None:
    if place in _MAY_CHANGE:
        return None
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            found = _difference(old.get(key), new.get(key), f"{place}.{key}".lstrip("."))
            if found:
                return found
        return None
    return None if old == new else f"{place} was {old!r}, is {new!r}"


def _names(table: EpisodeTable, anchors: np.ndarray, most: int = 8) -> str:
    names = sorted({table.ids[episode] for episode in table.episode_of_image[anchors]})
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _bar(name: str, total: int, progress: bool) -> Any:
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=name,
        unit="frame",
        file=sys.stderr,
        disable=not (progress and processes.is_main()),
        mininterval=0.5 if terminal else 15.0,
        leave=terminal,
    )
