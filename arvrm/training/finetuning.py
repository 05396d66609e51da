"""Stage 2: the policy, on robot episodes.

Every row of the claim is a switch of one `FinetuneConfig`, with the same updates and the same robot batches:

    no human data            pretrained = null, index = null
    + keypoint pretraining   pretrained = RUN
    + retrieval and replay   index = INDEX, model.analogy.enabled = false
    + map                    model.analogy.enabled = true
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn

from arvrm.config import bounded, check_bounds, to_dict
from arvrm.interface import PolicyNetwork, Robot, RobotBatch, UserError
from arvrm.model.checkpoint import read_described, robot_of, start_from_stage1
from arvrm.model.config import ModelConfig
from arvrm.model.metadata import CheckpointMetadata
from arvrm.model.objectives import check_others
from arvrm.model.policy_net import PolicyNet
from arvrm.model.weights import load_weights
from arvrm.retrieval import RetrievalConfig
from arvrm.training.analogy_stage import AnalogyFitConfig, fit_analogy
from arvrm.training.config import TrainConfig, TrainResult
from arvrm.training.data import DataConfig, open_table
from arvrm.training.loop import Trainer, to_device
from arvrm.training.residual_stage import ResidualFitConfig, fit_residual
from arvrm.training.robot_data import RobotData
from arvrm.training.runs import begin_run, metadata_of, reserved, saver
from arvrm.training.threads import threads_of
from arvrm.windows import EpisodeTable, WindowConfig, in_batches


@dataclass(frozen=True)
class FinetuneConfig:
    """Stage 2: the policy, on robot episodes.

    Attributes:
        output: the run's folder, which becomes the checkpoint.
        resume: go on with a run that was stopped.
        overwrite: replace an existing run.
        motion: learned: a network is trained that says each action. analogy: m and a library of motions are made of the
            demonstrations, which the policy carries over to where stage 1 sees the hand act; needs a stage 1 with
            places as `pretrained`; `window`, `model` and `train` count for nothing then. residual: the same, and a
            small network is trained (by `train`) that corrects its actions by what the gripper's camera sees.
        analogy: how that is made.
        residual: how that network is trained.
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
    motion: Literal["learned", "analogy", "residual"] = "learned"
    analogy: AnalogyFitConfig = field(default_factory=AnalogyFitConfig)
    residual: ResidualFitConfig = field(default_factory=ResidualFitConfig)
    data: DataConfig = field(default_factory=DataConfig)
    pretrained: str | None = None
    pretrained_rate: float = bounded(1.0, least=0, most=1)
    index: str | None = None
    window: WindowConfig = field(default_factory=WindowConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    replay_windows: int | None = bounded(32, least=0, most=10**6)
    execute_steps: int | None = bounded(None, least=1, most=10**4)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.pretrained_rate != 1.0 and self.pretrained is None:
            raise ValueError("pretrained_rate is for weights of a checkpoint; give pretrained, or set it to 1")
        if self.data.moments and self.motion == "learned":
            raise ValueError("data.moments: a policy with motion=learned needs no moments; leave them out")


def finetune(config: FinetuneConfig, progress: bool = True) -> TrainResult:
    """Train a `PolicyNet` for the robot of the stores.

    Raises:
        UserError: the output exists, a store, checkpoint or index is missing or does not fit, the loss is not a number,
            another process is writing the run's folder.
    """
    if config.model.analogy.at_rollout == "on" and not config.index:
        raise UserError("model.analogy.at_rollout is on but index is null; give the clip index")
    check_others(config.model.loss)
    with reserved(config, "finetune"):
        table = open_table(config.data, "robot", config.window.stride)
        pretrained = Pretrained.read(config.pretrained) if config.pretrained else None
        robot = _robot(table, pretrained)
        if config.motion == "analogy":
            return fit_analogy(config, table, robot, progress)
        with threads_of(config, progress):
            if config.motion == "residual":
                return fit_residual(config, table, robot, progress)
            return _train(config, table, pretrained, robot, progress)


def _train(
    config: FinetuneConfig, table: EpisodeTable, pretrained: Pretrained | None, robot: Robot, progress: bool
) -> TrainResult:
    torch.manual_seed(config.train.seed)
    model = PolicyNet(config.model, robot)
    rate_share = (pretrained.load_into(model), config.pretrained_rate) if pretrained else None
    data = RobotData(config, model, table, progress)
    trainer = Trainer(
        model,
        data.batch_of,
        config.train,
        begin_run(config, "finetune", robot),
        save=saver(_metadata(config, data)),
        validate=(lambda m, device: policy_errors(m, data, device)) if len(data.held_out) else None,
        describe=data.describe,
        name="finetune",
        rate_share=rate_share,
    )
    return trainer.run(config.resume, progress)


def _metadata(config: FinetuneConfig, data: RobotData) -> CheckpointMetadata:
    common = metadata_of(config, data.windows.table, data.train_episodes, "finetune")
    return dataclasses.replace(
        common,
        execute_steps=config.execute_steps,
        clips=config.retrieval.clips if config.index else None,
        index=config.index,
        pretrained=config.pretrained,
        settings={**common.settings, "retrieval": to_dict(config.retrieval)},
    )


@dataclass(frozen=True)
class Pretrained:
    """The checkpoint that training starts from.

    Attributes:
        folder, kind: as it says.
        robot: with the numbers by which it was trained; None: of a network of hands alone.
    """

    folder: str
    kind: str
    robot: Robot | None

    @classmethod
    def read(cls, folder: str) -> Pretrained:
        """Read what it is, and no weights.

        Raises:
            UserError: it is no checkpoint.
        """
        described = read_described(folder)
        robot = None if described.robot is None else robot_of(folder, described)
        return cls(folder, described.kind, robot)

    def load_into(self, model: PolicyNet) -> str:
        """Load its weights; return with what their names begin in `model`."""
        if self.robot is None:
            start_from_stage1(model, self.folder)
            return model.hands()[1]
        load_weights(model, self.folder)
        return ""


def _robot(table: EpisodeTable, pretrained: Pretrained | None) -> Robot:
    """Return the table's robot; with a pretrained policy, with the numbers by which that was trained.

    Raises:
        UserError: it is a policy of another robot.
    """
    own = table.robot
    assert own is not None, "the table is of robot episodes"
    if pretrained is None or pretrained.robot is None:
        return own
    if pretrained.robot.name != own.name:
        raise UserError(
            f"{table.stores[0].path} holds episodes of robot {own.name}, {pretrained.folder} a policy of "
            f"{pretrained.robot.name}; give a checkpoint of {own.name}, or one of stage 1"
        )
    return pretrained.robot


@torch.no_grad()
def policy_errors(
    model: nn.Module, data: RobotData, device: torch.device | str = "cpu", batch: int = 128
) -> dict[str, float]:
    """Judge stage 2 on windows it was not trained on.

    Returns:
        the losses as in training; of the last frame's chunk `arm_error`, the mean absolute error of the continuous
        numbers of an action, as the network learns them, and, of robots that have some, `gripper_accuracy`, the
        fraction of binary ones that are right. `moved_by_images` and `moved_by_words`: see `plan_moves`.
    """
    layout = data.windows.robot.actions
    sums: dict[str, float] = {}
    weights: dict[str, int] = {}
    off, right, actions = 0.0, 0.0, 0
    for number, some in enumerate(in_batches(data.held_out, batch)):
        inputs = to_device(data.batch(some, np.random.default_rng(number)), torch.device(device))
        result = model(inputs)
        scalars = {name: float(value) for name, value in result.items() if value.ndim == 0}
        for name, value in (scalars | plan_moves(model, inputs, result["actions"][:, -1])).items():
            sums[name] = sums.get(name, 0.0) + value * len(some)
            weights[name] = weights.get(name, 0) + len(some)
        target, mask = inputs["actions"][:, -1], inputs["action_mask"][:, -1]
        guess = result["actions"][:, -1].float()
        off += float(((guess - target)[..., : layout.continuous].abs().mean(-1) * mask).sum())
        if layout.binary:
            same = (guess > 0) == (target > 0)
            right += float(same[..., layout.continuous :][mask].float().mean(-1).sum())
        actions += int(mask.sum())
    values = {name: value / weights[name] for name, value in sums.items()} | {"arm_error": off / max(1, actions)}
    return values | ({"gripper_accuracy": right / max(1, actions)} if layout.binary else {})


@torch.no_grad()
def plan_moves(model: nn.Module, batch: RobotBatch, planned: torch.Tensor) -> dict[str, float]:
    """Judge whether a policy uses what it sees and is told. Its error does not tell: where an arm goes on as it moves,
    that is small without looking.

    Args:
        planned: (B, C, A), what the model predicts at the last frame.

    Returns:
        moved_by_images, moved_by_words: mean absolute change of the continuous numbers where each window gets the
        images, or the sentence, of another one. Near 0: not used. Left out where there is no other.
    """
    robot, given = cast(PolicyNetwork, model).robot, cast("dict[str, Any]", batch)
    rows = torch.arange(len(planned))
    told = torch.cat([given["text"].flatten(1), given["text_mask"].to(given["text"].dtype)], 1).cpu()
    sentence = torch.unique(told, dim=0, return_inverse=True)[1]
    other = [next((int(row) for row in rows.roll(-n) if sentence[row] != sentence[n]), n) for n in rows.tolist()]
    swaps: dict[str, tuple[list[str], torch.Tensor]] = {}
    if len(rows) > 1:
        images = [f"{camera.role}{kind}" for camera in robot.cameras for kind in ("", "_features")]
        # Windows stand in the order of their episodes.
        swaps["moved_by_images"] = (images, (rows + len(rows) // 2) % len(rows))
    if int(sentence.max()) > 0:
        swaps["moved_by_words"] = (["text", "text_mask"], torch.tensor(other))
    result = {}
    for name, (keys, which) in swaps.items():
        taken = {key: given[key][which.to(planned.device)] for key in keys if given.get(key) is not None}
        moved = model(given | taken)["actions"][:, -1] - planned
        result[name] = float(moved[..., : robot.actions.continuous].abs().mean())
    return result
