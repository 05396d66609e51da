"""Stage 1: keypoint pretraining on human clips."""

from __future__ import annotations

import dataclasses
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from arvrm import processes
from arvrm.config import bounded, check_bounds
from arvrm.files import replacing
from arvrm.interface import HumanBatch, UserError
from arvrm.model.config import ModelConfig
from arvrm.model.encoders import TextEncoder
from arvrm.model.keypoint_vlm import KeypointVLM
from arvrm.training.agreement import MomentFinder, PlacesSeen
from arvrm.training.config import TrainConfig, TrainResult
from arvrm.training.data import DataConfig, episode_names, frames_of, open_table, sampler_of, split, spread, text_table
from arvrm.training.distribution import MicroBatch
from arvrm.training.judge import keypoint_errors
from arvrm.training.loop import Trainer
from arvrm.training.places import judge_places, moments_of, place_samples
from arvrm.training.runs import begin_run, metadata_of, reserved, saver
from arvrm.training.threads import threads_of
from arvrm.windows import HUMAN_CAMERA, EpisodeTable, HumanWindows, WindowConfig

_FIND_ANEW = "delete it: they are found again with what places have learnt by then"
_SENTENCES = 2000
"""That places know by heart, at most."""


@dataclass(frozen=True)
class PretrainConfig:
    """Stage 1: keypoint pretraining on human clips.

    Attributes:
        output: the run's folder, which becomes the checkpoint.
        resume: go on with a run that was stopped.
        overwrite: replace an existing run.
        place_images: images an update whose hands at the moments are learnt, where `model.places` is enabled.
        moments_again: the update before which the clips' moments are found once more, with what places have learnt by
            then; 0: never.
    """

    output: str
    resume: bool = False
    overwrite: bool = False
    place_images: int = bounded(64, least=1, most=2**16)
    moments_again: int = bounded(500, least=0, most=2**40)
    data: DataConfig = field(default_factory=DataConfig)
    window: WindowConfig = field(default_factory=lambda: WindowConfig(history=4))
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.data.moments and not self.model.places.enabled:
            raise ValueError("data.moments: only places need moments; set model.places.enabled=true, or leave them out")


def pretrain(config: PretrainConfig, progress: bool = True) -> TrainResult:
    """Train a `KeypointVLM` to predict hand keypoints.

    Raises:
        UserError: the output exists, a store is missing or holds no human clip, the loss is not a number, another
            process is writing the run's folder, or places are to be learnt and no clip's touch was found.
    """
    with reserved(config, "pretrain"):
        table = open_table(config.data, "human", config.window.stride)
        with threads_of(config, progress):
            return _train(config, table, progress)


def _train(config: PretrainConfig, table: EpisodeTable, progress: bool) -> TrainResult:
    train, held_out = split(table, config.data)
    torch.manual_seed(config.train.seed)
    model = KeypointVLM(_with_sentences(config.model, table, train))
    windows = _windows(config, table, model, progress)
    sampler = sampler_of(table, windows.anchors(train), config.data, config.train.seed)

    def anchors_of(step: int, micro_batch: MicroBatch) -> np.ndarray:
        return sampler.draw(step, config.train.batch)[micro_batch.rows(config.train.batch)]

    finder = MomentFinder.of(config.data, table, progress=progress)
    places = place_samples(windows, finder) if model.places is not None else None
    if places is not None and not len(places.usable(train)):
        raise UserError("places: no training clip's touch was found; look at some with `arvrm moments`")

    def batch(step: int, micro_batch: MicroBatch) -> HumanBatch:
        given = windows.batch(anchors_of(step, micro_batch))
        if places is not None:
            drawn = places.draw(places.usable(train), config.train.seed, step, config.place_images)
            rows = micro_batch.rows(config.place_images)
            given["places"] = places.batch(*(values[rows] for values in drawn))
        return given

    def validate(network: nn.Module, device: torch.device) -> dict[str, float]:
        values = keypoint_errors(network, windows, held, device) if len(held) else {}
        if places is not None and isinstance(network, KeypointVLM) and network.places is not None:
            values |= judge_places(network.places, places, held_out, device)
        return values

    folder = begin_run(config, "pretrain", None)

    def find_again(network: nn.Module, device: torch.device) -> None:
        assert places is not None and isinstance(network, KeypointVLM) and network.places is not None
        seen = PlacesSeen(network.places, TextEncoder(config.model.text))
        places.revise(*_moments_again(table, dataclasses.replace(finder, cache=None, seen=seen), folder))

    held = spread(windows.anchors(held_out), config.data.validation_windows)
    trainer = Trainer(
        model,
        batch,
        config.train,
        folder,
        save=saver(metadata_of(config, table, train, "pretrain")),
        validate=validate if len(held) else None,
        describe=lambda step, micro_batch: episode_names(table, anchors_of(step, micro_batch)),
        name="pretrain",
        revise=(config.moments_again, find_again) if places is not None and config.moments_again else None,
    )
    return trainer.run(config.resume, progress)


def _with_sentences(config: ModelConfig, table: EpisodeTable, episodes: np.ndarray) -> ModelConfig:
    """Note in a configuration what is said of episodes: of very many sentences the commonest."""
    if not config.places.enabled:
        return config
    times = np.bincount(table.sentence[episodes], minlength=len(table.sentences))
    common = np.argsort(-times, kind="stable")[:_SENTENCES]
    known = tuple(sorted(table.sentences[row] for row in common.tolist() if times[row]))
    return dataclasses.replace(config, places=dataclasses.replace(config.places, known=known))


def _moments_again(table: EpisodeTable, finder: MomentFinder, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the moments of a table's clips as `training.places.moments_of` does, with what places have learnt.

    They are kept in the run's folder: a run that goes on later has learnt more since, and must not find others. Those
    that are given stay as they are given.

    Raises:
        UserError: what is kept there is damaged or of other clips.
    """
    file = folder / "moments.npz"
    if not file.is_file():
        steps, sure = moments_of(table, finder)
        if processes.is_main():
            with replacing(file) as partial, open(partial, "wb") as writable:
                np.savez(writable, steps=steps, sure=sure)
        return steps, sure
    steps, sure = _kept_moments(file, len(table))
    for row, one in enumerate(finder.given.get(str(id)) for id in table.ids):
        if one is not None:
            steps[row], sure[row] = (one.touch, one.end), (one.touch_confidence, one.end_confidence)
    return steps, sure


def _kept_moments(file: Path, clips: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as held:
            steps, sure = held["steps"], held["sure"]
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: is damaged ({error}); {_FIND_ANEW}") from error
    if steps.shape != (clips, 2) or sure.shape != (clips, 2):
        raise UserError(f"{file}: holds no moments of {clips} clips; {_FIND_ANEW}")
    fits = steps.dtype.kind == "i" and sure.dtype.kind == "f" and ((sure >= 0) & (sure <= 1)).all()
    if not fits or (steps[:, 0] < 0).any() or (steps[:, 1] < steps[:, 0]).any():
        raise UserError(f"{file}: holds what are no moments; {_FIND_ANEW}")
    return steps, sure


def _windows(config: PretrainConfig, table: EpisodeTable, model: KeypointVLM, progress: bool) -> HumanWindows:
    images = model.image_encoder("static")
    frames = frames_of(table, HUMAN_CAMERA, config.data, config.model, images, config.train, progress)
    text = text_table(table, TextEncoder(config.model.text))
    joints, horizon = config.model.keypoints, config.model.horizon
    return HumanWindows(table, config.window, joints, text, frames, config.data.in_memory, horizon)
