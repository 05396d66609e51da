"""`arvrm evaluate-hands`: a stage-1 checkpoint on clips that it was not trained on, beside baselines and controls."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from arvrm.config import bounded, check_bounds, from_dict
from arvrm.episodes import EpisodeStore
from arvrm.files import claimed, json_kind, write_json
from arvrm.interface import CONTROL_HZ, UserError
from arvrm.model.checkpoint import Checkpoint, load_checkpoint
from arvrm.model.encoders import TextEncoder
from arvrm.training.data import DataConfig, open_stores, open_table, split, spread, text_table
from arvrm.training.judge import CONTROLS, HORIZONS, PIXELS, Judged, judge_windows
from arvrm.training.threads import using_threads
from arvrm.training.upgrade import upgraded
from arvrm.windows import HUMAN_CAMERA, EpisodeTable, HumanWindows, StoreFrames, WindowConfig, store_fingerprint

FORMAT = "arvrm-hands"


@dataclass(frozen=True)
class EvaluateHandsConfig:
    """How well a stage-1 checkpoint predicts hands.

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
    windows: int = bounded(1024, least=1, most=10**7)
    seed: int = bounded(0, least=0)
    device: str = "cpu"
    overwrite: bool = False

    __post_init__ = check_bounds


class _Numbers(TypedDict):
    loss: float
    groups: int
    error_px: dict[str, dict[str, float | None]]
    above_model_px_95: dict[str, dict[str, list[float]]]
    model_px_per_joint: dict[str, list[float]]


class HandTable(_Numbers):
    """One of the tables of `evaluate_hands`; its numbers by row, then by horizon as text.

    Keys:
        loss: as in training.
        error_px: mean over joints, windows and clips, in pixels at 224; None where no clip goes on for so long.
        above_model_px_95: 95 % interval of a row's difference from the model's (bootstrap over groups, if there are
            two).
        model_px_per_joint: the model's means, K of them.
        path: of the store.
        groups, clips, windows, sentences: how many there are.
        held_out_of_training: its clips are those that were held out; False: it was not trained on at all.
    """

    path: str
    clips: int
    windows: int
    held_out_of_training: NotRequired[bool]
    sentences: NotRequired[int]


@dataclass(frozen=True)
class _Run:
    """What a checkpoint was trained on: its settings, and the fingerprints of its stores."""

    data: DataConfig
    window: WindowConfig
    stores: frozenset[str]

    @classmethod
    def of(cls, checkpoint: Checkpoint, place: str) -> _Run:
        metadata = checkpoint.metadata
        try:
            settings = upgraded({name: metadata.settings[name] for name in ("data", "window")}, "pretrain", place)
        except KeyError as error:
            raise UserError(f"{place}: does not say what it was trained on ({error}); pretrain anew") from error
        return cls(
            from_dict(DataConfig, settings["data"], "data"),
            from_dict(WindowConfig, settings["window"], "window"),
            frozenset(store.fingerprint for store in metadata.stores),
        )

    def held_out(self, stores: Sequence[EpisodeStore]) -> dict[str, set[str]]:
        """Return fingerprint -> ids held out of training, of the stores that the run was trained on."""
        if not any(store_fingerprint(store) in self.stores for store in stores):
            return {}
        # The split is one over all of the run's stores, so it takes all of them to know it.
        table = open_table(self.data, "human", self.window.stride)
        names = [store_fingerprint(store) for store in table.stores]
        found: dict[str, set[str]] = {name: set() for name in names}
        if not self.stores <= set(found):
            raise UserError(
                "data.stores: have changed since training, so that nobody knows what was held out; pretrain anew"
            )
        for episode in split(table, self.data)[1]:
            found[names[table.store[episode]]].add(table.ids[episode])
        return found


@dataclass(frozen=True)
class _Part:
    """One store's clips, judged; `groups` (W,) names the group of each window."""

    table: HandTable
    judged: Judged
    groups: np.ndarray


def evaluate_hands(config: EvaluateHandsConfig, progress: bool = True) -> Path:
    """Compare a checkpoint's predictions on held-out clips with both baselines and with its own under `CONTROLS`.

    Returns:
        The JSON file: a `HandTable` per store and one over all.

    Raises:
        UserError: the checkpoint is no stage-1 run, a store is missing or has no held-out clip, the output exists.
    """
    with claimed(config.output, config.overwrite, json_kind("a file of `arvrm evaluate-hands`", FORMAT)):
        write_json(config.output, _measured(config, progress))
    return Path(config.output)


def _measured(config: EvaluateHandsConfig, progress: bool) -> dict[str, Any]:
    loaded = load_checkpoint(config.checkpoint, config.device, kind="keypoint_vlm")
    run = _Run.of(loaded, config.checkpoint)
    stores = open_stores(config.stores or run.data.stores)
    held_out = run.held_out(stores)
    parts = []
    with using_threads(progress=progress):
        for store in stores:
            parts.append(_judge_store(config, loaded, run.window, store, held_out.get(store_fingerprint(store))))
            if progress:
                print(hand_table_text(parts[-1].table), file=sys.stderr)
    return {
        "format": FORMAT,
        "version": 1,
        "checkpoint": str(config.checkpoint),
        "pixels": PIXELS,
        "ahead": list(HORIZONS),
        "frame_seconds": run.window.stride / CONTROL_HZ,
        "stores": [part.table for part in parts],
        "all": _over_all(parts, config.seed),
    }


def _judge_store(
    config: EvaluateHandsConfig,
    loaded: Checkpoint,
    window: WindowConfig,
    store: EpisodeStore,
    held_out: set[str] | None,
) -> _Part:
    """Judge the clips `held_out` of a store; None: all."""
    table = EpisodeTable([store], "human", window.stride)
    wanted = [e for e, identity in enumerate(table.ids) if held_out is None or identity in held_out]
    episodes = np.array(wanted, dtype=np.int64)
    if not len(episodes):
        raise UserError(f"{store.path}: none of its clips was held out of training; give other clips")
    vision = loaded.config.vision
    frames = StoreFrames(table, HUMAN_CAMERA.name, vision.static_size if vision.encoder == "conv" else None)
    text = text_table(table, TextEncoder(loaded.config.text))
    windows = HumanWindows(table, window, loaded.config.keypoints, text, frames)
    anchors = spread(windows.anchors(episodes), config.windows)
    judged = judge_windows(loaded.model, windows, anchors, config.device, 64, CONTROLS, config.seed)
    of_window = table.episode_of_image[anchors]
    group_of = [f"{store.path}/{table.header(e).group}" for e in range(len(table))]
    groups = np.array([group_of[e] for e in of_window])
    described: HandTable = {
        "path": str(store.path),
        "held_out_of_training": held_out is not None,
        "clips": len(episodes),
        "windows": len(anchors),
        "sentences": len(np.unique(table.sentence[of_window])),
        **_numbers(judged, groups, config.seed),
    }
    return _Part(described, judged, groups)


def _over_all(parts: Sequence[_Part], seed: int) -> HandTable:
    judged = Judged(
        float(np.average([part.judged.loss for part in parts], weights=[len(part.groups) for part in parts])),
        {row: np.concatenate([part.judged.sums[row] for part in parts]) for row in parts[0].judged.sums},
        np.concatenate([part.judged.counts for part in parts]),
    )
    return {
        "path": "all stores",
        "clips": sum(part.table["clips"] for part in parts),
        "windows": len(judged.counts),
        **_numbers(judged, np.concatenate([part.groups for part in parts]), seed),
    }


def _numbers(judged: Judged, groups: np.ndarray, seed: int, rounds: int = 1000) -> _Numbers:
    """Return means per row and horizon, and how sure their difference from the model's is."""
    _, group = np.unique(groups, return_inverse=True)
    number = int(group.max()) + 1

    def by_group(values: np.ndarray) -> np.ndarray:
        sums = np.zeros((number, len(HORIZONS)))
        np.add.at(sums, group, values.sum(axis=2))
        return sums

    counts = by_group(judged.counts)
    totals = {row: by_group(distances) for row, distances in judged.sums.items()}
    seen = counts.sum(axis=0)
    means = {
        row: {
            str(horizon): round(float(value), 4) if some else None
            for horizon, value, some in zip(HORIZONS, total.sum(axis=0) / np.maximum(1, seen), seen, strict=True)
        }
        for row, total in totals.items()
    }
    per_joint = judged.sums["model"].sum(axis=0) / np.maximum(1, judged.counts.sum(axis=0))
    return {
        "loss": judged.loss,
        "groups": number,
        "error_px": means,
        "above_model_px_95": _intervals(totals, counts, seed, rounds) if number > 1 else {},
        "model_px_per_joint": {
            str(horizon): [round(float(v), 4) for v in row] for horizon, row in zip(HORIZONS, per_joint, strict=True)
        },
    }


def _intervals(
    totals: dict[str, np.ndarray], counts: np.ndarray, seed: int, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Return, of each row but the model's, the 95 % interval of its difference from the model, by horizon.

    Args:
        totals, counts: (G, H), summed over each group's windows and joints.
    """
    number = len(counts)
    draws = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=rounds)
    weight = np.maximum(1e-9, draws @ counts)
    found = {}
    for row, total in totals.items():
        if row != "model":
            difference = (draws @ (total - totals["model"])) / weight
            bounds = np.percentile(difference, [2.5, 97.5], axis=0).T
            found[row] = {
                str(horizon): [round(float(bound), 4) for bound in both]
                for horizon, both in zip(HORIZONS, bounds, strict=True)
            }
    return found


def hand_table_text(table: HandTable) -> str:
    """Return one of the tables of `evaluate_hands` for a person."""
    lines = [f"{table['path']}: {table['clips']} clips, {table['windows']} windows; mean error, px at {PIXELS}"]
    lines.append(f"{'frames after the window':24}" + "".join(f"{horizon:>28}" for horizon in HORIZONS))
    for row, means in table["error_px"].items():
        cells = []
        for horizon in map(str, HORIZONS):
            interval = table["above_model_px_95"].get(row, {}).get(horizon)
            note = f" ({interval[0]:+.2f} to {interval[1]:+.2f})" if interval else ""
            mean = means[horizon]
            cells.append("-" if mean is None else f"{mean:.2f}{note}")
        lines.append(f"{row.replace('_', ' '):24}" + "".join(f"{cell:>28}" for cell in cells))
    if table.get("sentences") == 1:
        lines.append("language cannot be shuffled: all windows have one sentence")
    return "\n".join(lines)
