"""Stage 2: the policy, on robot episodes.

Every row of the claim is a switch of one `FinetuneConfig`, with the same updates and the same robot batches:

    no human data            pretrained = null, index = null
    + keypoint pretraining   pretrained = RUN
    + retrieval and replay   index = INDEX, model.analogy.enabled = false
    + map                    model.analogy.enabled = true
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from arvrm import processes
from arvrm.config import to_dict
from arvrm.interface import RobotBatch, UserError
from arvrm.model.checkpoint import load_weights, start_from_stage1
from arvrm.model.config import ModelConfig
from arvrm.model.encoders import TextEncoder
from arvrm.model.policy_net import PolicyNet
from arvrm.retrieval import ClipIndex, RetrievalConfig, RetrievedClips, frame_features
from arvrm.training.config import TrainConfig, TrainResult
from arvrm.training.data import (
    DataConfig,
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
from arvrm.training.loop import Trainer, to_device
from arvrm.training.runs import begin_run, check_run, metadata_of, saver
from arvrm.windows import (
    HUMAN_CAMERA,
    EpisodeTable,
    FrameSource,
    HumanWindows,
    RobotWindows,
    Segments,
    WindowConfig,
    cut_segments,
    in_batches,
)


@dataclass(frozen=True)
class FinetuneConfig:
    """Stage 2: the policy, on robot episodes.

    Attributes:
        output: the run's folder, which becomes the checkpoint.
        resume: go on with a run that was stopped.
        overwrite: replace an existing run.
        pretrained: checkpoint to start from: stage 1's, or a policy's; null: from scratch.
        pretrained_rate: fraction of the learning rate at which the weights of that checkpoint are trained on.
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
        if not 0.0 <= self.pretrained_rate <= 1.0:
            raise ValueError(f"pretrained_rate is {self.pretrained_rate}; give a number from 0 to 1")
        if self.pretrained_rate != 1.0 and self.pretrained is None:
            raise ValueError("pretrained_rate is for weights of a checkpoint; give pretrained, or set it to 1")


def finetune(config: FinetuneConfig, progress: bool = True) -> TrainResult:
    """Train a `PolicyNet`.

    Raises:
        UserError: the output exists, a store, checkpoint or index is missing or does not fit, the loss is not a number.
    """
    if config.model.analogy.at_rollout == "on" and not config.index:
        raise UserError("model.analogy.at_rollout is on but index is null; give the clip index")
    check_run(config, "finetune")
    torch.manual_seed(config.train.seed)
    model = PolicyNet(config.model)
    rate_share = None
    if config.pretrained:
        rate_share = (_start_from(model, config.pretrained), config.pretrained_rate)
    data = RobotData(config, model, progress)
    metadata = metadata_of(config, data.windows.table, data.train_episodes, "finetune")
    metadata = dataclasses.replace(
        metadata,
        execute_steps=config.execute_steps,
        clips=config.retrieval.clips if config.index else None,
        index=config.index,
        pretrained=config.pretrained,
        settings={**metadata.settings, "retrieval": to_dict(config.retrieval)},
    )
    trainer = Trainer(
        model,
        data.batch_of,
        config.train,
        begin_run(config, "finetune"),
        save=saver(metadata),
        validate=(lambda m, device: policy_errors(m, data, device)) if len(data.held_out) else None,
        describe=data.describe,
        name="finetune",
        rate_share=rate_share,
    )
    return trainer.run(config.resume, progress)


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
        self.train_episodes, held_out = split(table, data)
        encoder = TextEncoder(config.model.text)
        train = config.train
        frames: dict[str, FrameSource] = {}
        predicted: dict[str, FrameSource] = {}
        for camera in table.robot.cameras:
            images = model.image_encoder(camera.role)
            source = frames_of(table, camera, data, config.model, images, train, progress)
            frames[camera.role] = source
            if config.model.fwd_pred and config.model.loss.image > 0:
                pixels = images_of(table, camera, data, config.model, progress) if source.features else source
                predicted[camera.role] = pixels
        self.windows = RobotWindows(
            table, window, text_table(table, encoder), frames, config.model.chunk, predicted, model.robot
        )
        self.train = self.windows.anchors(self.train_episodes)
        self.held_out = spread(self.windows.anchors(held_out), data.validation_windows)
        self.draws = train.batch
        self.segments: Segments | None = None
        if data.segment_windows:
            self.segments = cut_segments(table, self.train, data.segment_windows)
            self.sampler = sampler_of(table, self.train, data, train.seed, self.segments.last)
            parts = train.accumulate * processes.world()
            self.draws = parts * -(-train.batch // (parts * data.segment_windows))
        else:
            self.sampler = sampler_of(table, self.train, data, train.seed)
        self.clips = self._retrieve(encoder, model, progress) if config.index else None

    def _retrieve(self, encoder: TextEncoder, model: PolicyNet, progress: bool) -> RetrievedClips:
        config, table = self.config, self.windows.table
        index = ClipIndex.load(config.index)
        humans = EpisodeTable(index.open_stores(), "human", config.window.stride, config.data.cache)
        images = None
        if config.model.loss.replay > 0:
            images = frames_of(
                humans, HUMAN_CAMERA, config.data, config.model, model.vlm.static_encoder, config.train, progress
            )
        windows = HumanWindows(
            humans,
            config.window,
            config.model.keypoints,
            text_table(humans, encoder),
            images,
            config.data.in_memory,
            config.model.foresee,
        )
        seen = None
        if config.retrieval.choice == "similar" or config.retrieval.align == "dtw":
            with progress_bar("retrieval features", len(table.step_of_image), progress) as bar:
                seen = frame_features(table, index.encoders, config.data.cache, bar.update)
        return RetrievedClips(index, table, windows, seen, config.retrieval, config.window.history, config.data.cache)

    def batch(self, anchors: np.ndarray, rng: np.random.Generator, micro_batch: MicroBatch = WHOLE_BATCH) -> RobotBatch:
        """Return rows of a batch of windows with their clips; `rng` chooses which clips are replayed."""
        return self._with_clips(self.windows.batch(anchors[micro_batch.rows(len(anchors))]), anchors, rng, micro_batch)

    def _with_clips(
        self, batch: RobotBatch, anchors: np.ndarray, rng: np.random.Generator, micro_batch: MicroBatch
    ) -> RobotBatch:
        if self.clips is None:
            return batch
        count, replays = self.config.replay_windows, self.config.model.loss.replay > 0
        batch["clips"] = self.clips.batch(anchors[micro_batch.rows(len(anchors))], images=replays and count is None)
        if replays and count is not None:
            which = rng.choice(len(anchors), size=count, replace=count > len(anchors))
            clips = rng.integers(batch["clips"]["frame_mask"].shape[1], size=count)
            # Chosen for the whole batch. Where its size is no multiple, the last ones repeat one that does not count.
            each = -(-count // micro_batch.of)
            rows = np.arange(each * micro_batch.number, each * (micro_batch.number + 1))
            spare, rows = torch.from_numpy(rows >= count), np.minimum(rows, count - 1)
            chosen, j = self.clips.batch(anchors[which[rows]]), torch.from_numpy(clips[rows])
            batch["replay"] = {name: value[torch.arange(each), j] for name, value in chosen.items()}
            if spare.any():
                for name, value in batch["replay"].items():
                    if name.endswith("visible"):
                        value[spare] = False
        return batch

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
