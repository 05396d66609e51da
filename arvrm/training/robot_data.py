"""What stage 2 trains on: robot windows, and the human clips that accompany them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from arvrm import processes
from arvrm.interface import HumanBatch, PolicyNetwork, RobotBatch
from arvrm.model.encoders import TextEncoder
from arvrm.retrieval import ClipIndex, RetrievedClips, frame_features
from arvrm.training.data import (
    episode_names,
    frames_of,
    images_of,
    open_table,
    sampler_of,
    split,
    spread,
    text_table,
)
from arvrm.training.distribution import WHOLE_BATCH, MicroBatch
from arvrm.training.log import progress_bar
from arvrm.windows import (
    HUMAN_CAMERA,
    EpisodeTable,
    FrameSource,
    HumanWindows,
    RobotWindows,
    Segments,
    cut_segments,
)

if TYPE_CHECKING:
    from arvrm.training.finetuning import FinetuneConfig


class RobotData:
    """Robot windows with the human clips that accompany them.

    Args:
        model: the network that is trained, whose encoders and robot they are for.
        table: the episodes of `config.data`; None: they are opened.
        progress: show bars.

    Attributes:
        windows, train, held_out: the robot's windows; anchors of the training and of the held-out episodes.
        clips: the retrieved clips, or None without an index.
    """

    def __init__(
        self, config: FinetuneConfig, model: PolicyNetwork, table: EpisodeTable | None = None, progress: bool = False
    ) -> None:
        self.config = config
        data = config.data
        table = table or open_table(data, "robot", config.window.stride)
        self.train_episodes, held_out = split(table, data)
        encoder = TextEncoder(config.model.text)
        frames, predicted = self._cameras(table, model, progress)
        text = text_table(table, encoder)
        self.windows = RobotWindows(table, config.window, text, frames, config.model.chunk, predicted, model.robot)
        self.train = self.windows.anchors(self.train_episodes)
        self.held_out = spread(self.windows.anchors(held_out), data.validation_windows)
        self.draws, self.segments = config.train.batch, None
        if data.segment_windows:
            self.draws, self.segments = self._cut(table)
        some = None if self.segments is None else self.segments.last
        self.sampler = sampler_of(table, self.train, data, config.train.seed, some)
        self.clips = self._retrieve(config.index, encoder, model, progress) if config.index else None

    def _cameras(
        self, table: EpisodeTable, model: PolicyNetwork, progress: bool
    ) -> tuple[dict[str, FrameSource], dict[str, FrameSource]]:
        """Return, by role, what each camera shows, and the images of those whose later frames are predicted."""
        data, network, train = self.config.data, self.config.model, self.config.train
        frames, predicted = {}, {}
        for camera in model.robot.cameras:
            source = frames_of(table, camera, data, network, model.image_encoder(camera.role), train, progress)
            frames[camera.role] = source
            if network.fwd_pred and network.loss.image > 0:
                images = images_of(table, camera, data, network, progress) if source.features else source
                predicted[camera.role] = images
        return frames, predicted

    def _cut(self, table: EpisodeTable) -> tuple[int, Segments]:
        """Return how many segments an update draws, and the segments."""
        train, length = self.config.train, self.config.data.segment_windows
        micro_batches = train.accumulate * processes.world()
        draws = micro_batches * -(-train.batch // (micro_batches * length))
        return draws, cut_segments(table, self.train, length)

    def _retrieve(self, path: str, encoder: TextEncoder, model: PolicyNetwork, progress: bool) -> RetrievedClips:
        config, table = self.config, self.windows.table
        index = ClipIndex.load(path)
        humans = EpisodeTable(index.open_stores(), "human", config.window.stride, config.data.cache)
        frames = None
        if config.model.loss.replay > 0:
            images = model.image_encoder("static")
            frames = frames_of(humans, HUMAN_CAMERA, config.data, config.model, images, config.train, progress)
        text, in_memory = text_table(humans, encoder), config.data.in_memory
        joints, horizon = config.model.keypoints, config.model.horizon
        windows = HumanWindows(humans, config.window, joints, text, frames, in_memory, horizon)
        seen = None
        if config.retrieval.choice == "similar" or config.retrieval.align == "dtw":
            with progress_bar("retrieval features", len(table.step_of_image), progress) as bar:
                seen = frame_features(table, index.encoders, config.data.cache, bar.update)
        return RetrievedClips(index, table, windows, seen, config.retrieval, config.window.history, config.data.cache)

    def batch(self, anchors: np.ndarray, rng: np.random.Generator, micro_batch: MicroBatch = WHOLE_BATCH) -> RobotBatch:
        """Return rows of a batch of windows with their clips; `rng` chooses which clips are replayed."""
        return self._with_clips(self.windows.batch(anchors[micro_batch.rows(len(anchors))]), anchors, rng, micro_batch)

    def batch_of(self, step: int, micro_batch: MicroBatch = WHOLE_BATCH) -> RobotBatch:
        """Return rows of an update's training batch, which is a function of (seed, step)."""
        anchors = self.sampler.draw(step, self.draws)
        rng = np.random.default_rng([self.config.train.seed, step, 1])
        if self.segments is None:
            return self.batch(anchors, rng, micro_batch)
        which = np.searchsorted(self.segments.last, anchors)
        batch = self.windows.segment_batch(self.segments, which[micro_batch.rows(len(which))])
        return self._with_clips(batch, self.windows.segment_anchors(self.segments, which), rng, micro_batch)

    def describe(self, step: int, micro_batch: MicroBatch = WHOLE_BATCH) -> str:
        """Name the episodes of rows of a batch."""
        return episode_names(self.windows.table, self.sampler.draw(step, self.draws)[micro_batch.rows(self.draws)])

    def _with_clips(
        self, batch: RobotBatch, anchors: np.ndarray, rng: np.random.Generator, micro_batch: MicroBatch
    ) -> RobotBatch:
        if self.clips is None:
            return batch
        count, replays = self.config.replay_windows, self.config.model.loss.replay > 0
        clips = self.clips.batch(anchors[micro_batch.rows(len(anchors))], images=replays and count is None)
        batch["clips"] = clips
        if replays and count is not None:
            each = clips["frame_mask"].shape[1]
            batch["replay"] = self._replayed(self.clips, anchors, each, count, rng, micro_batch)
        return batch

    @staticmethod
    def _replayed(
        clips: RetrievedClips,
        anchors: np.ndarray,
        each: int,
        count: int,
        rng: np.random.Generator,
        micro_batch: MicroBatch,
    ) -> HumanBatch:
        """Return the micro-batch's rows of `count` windows, each with one of its `each` clips, chosen for the whole
        batch. Where their number is no multiple, the last ones repeat one that does not count."""
        which = rng.choice(len(anchors), size=count, replace=count > len(anchors))
        clip = rng.integers(each, size=count)
        size = -(-count // micro_batch.of)
        rows = np.arange(size * micro_batch.number, size * (micro_batch.number + 1))
        spare, rows = torch.from_numpy(rows >= count), np.minimum(rows, count - 1)
        chosen = cast("dict[str, torch.Tensor]", clips.batch(anchors[which[rows]]))
        replay = {name: value[torch.arange(size), torch.from_numpy(clip[rows])] for name, value in chosen.items()}
        for name, value in replay.items():
            if name.endswith("visible"):
                value[spare] = False
        return cast("HumanBatch", replay)
