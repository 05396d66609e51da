"""How well stage 1 predicts hands: of a run while it trains, and of a checkpoint with baselines and controls."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from arvrm.config import from_dict
from arvrm.episodes import EpisodeStore
from arvrm.files import write_json
from arvrm.interface import CONTROL_HZ, HumanBatch, UserError
from arvrm.model.checkpoint import load_checkpoint
from arvrm.model.encoders import TextEncoder, fit_images
from arvrm.model.keypoint_vlm import last_motion, last_seen
from arvrm.training.data import DataConfig, open_stores, open_table, split, spread, text_table
from arvrm.training.loop import to_device
from arvrm.windows import (
    EpisodeTable,
    HumanWindows,
    StoreFrames,
    WindowConfig,
    in_batches,
    store_fingerprint,
    upgraded_window,
)

PIXELS = 224
"""Side of the image in whose pixels keypoint errors are given."""
AHEAD = (1, 5, 10)
"""Frames ahead at which stage 1 is judged."""
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
        data = from_dict(DataConfig, loaded.metadata.settings["data"], "data")
        window = upgraded_window(loaded.metadata.settings["window"], None, config.checkpoint)
        window = from_dict(WindowConfig, window, "window")
        trained = {store.fingerprint for store in loaded.metadata.stores}
    except KeyError as error:
        raise UserError(f"{config.checkpoint}: does not say what it was trained on ({error}); pretrain anew") from error
    stores = open_stores(config.stores or data.stores)
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
        anchors = spread(windows.anchors(episodes), config.windows)
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
    for episode in split(table, data)[1]:
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
