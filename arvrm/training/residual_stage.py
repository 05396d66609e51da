"""Stage 2 by analogy with a learnt residual: what each demonstration does otherwise than a plan made of the others.

Each demonstration gets the plans that the policy would have made for it, had it known the others alone: the motion of
another one, bent to where the hand is predicted in its own images. No simulator state and no task is looked at.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from arvrm import processes
from arvrm.config import bounded, check_bounds
from arvrm.files import replacing
from arvrm.geometry import angle_difference, wrap_angle
from arvrm.interface import Robot, UserError
from arvrm.model.analogy_net import AnalogyNet
from arvrm.model.checkpoint import write_checkpoint
from arvrm.model.encoders import TextEncoder
from arvrm.model.residual import EXECUTE, ResidualConfig, ResidualNet
from arvrm.motions import Motion, Phased, Plan, onward, plan_view, whole
from arvrm.motions.path import entry_of
from arvrm.motions.plan import UNITS, arm_in_gripper
from arvrm.policy.places import PlaceSeer, Sight
from arvrm.training.analogy_stage import analogy_of, metadata_of_analogy
from arvrm.training.config import TrainResult
from arvrm.training.data import images_of
from arvrm.training.distribution import WHOLE_BATCH, MicroBatch
from arvrm.training.log import progress_bar
from arvrm.training.loop import Trainer, to_device
from arvrm.training.motions import robot_motions
from arvrm.training.runs import begin_run
from arvrm.windows import EpisodeTable, FrameSource, in_batches

if TYPE_CHECKING:
    from arvrm.training.finetuning import FinetuneConfig

Row = dict[str, Any]
"""One row of a batch: arrays by name, and `image`, a row of the table's images."""
LOOK_EVERY = 16
"""Steps between two looks of the policy while the touch is ahead."""
_MENDED_M, _MENDED_RAD = 0.08, 0.5
"""A plan that acts further from where the demonstration did, or turned further, is none that a residual could mend."""


@dataclass(frozen=True)
class ResidualFitConfig:
    """How the residual is trained, with motion=residual.

    Attributes:
        network: what is trained.
        noise_m, noise_rad: standard deviations of what is added to where a plan acts and how it is turned.
        dropout: share of the samples that are without a plan.
        others: so many of the likeliest other demonstrations are carried over to each.
    """

    network: ResidualConfig = field(default_factory=ResidualConfig)
    noise_m: float = bounded(0.02, least=0, most=1)
    noise_rad: float = bounded(0.1, least=0, most=math.pi)
    dropout: float = bounded(0.15, least=0, most=1)
    others: int = bounded(4, least=1, most=1000)

    __post_init__ = check_bounds


@dataclass(frozen=True)
class Sample:
    """A step of a demonstration, and the plans that the policy might have then.

    Attributes:
        target, robot_obs: (6,), (15,) before the step; command: the gripper's last one.
        image: its row of the table's images.
        plans: at least one, not yet moved to go on from the target; beside each where the demonstration is while the
            plan does EXECUTE rows: poses (EXECUTE, 6) and gripper commands (EXECUTE,).
    """

    target: np.ndarray
    robot_obs: np.ndarray
    command: float
    image: int
    plans: tuple[tuple[Plan, np.ndarray, np.ndarray], ...]


def fit_residual(config: FinetuneConfig, table: EpisodeTable, robot: Robot, progress: bool) -> TrainResult:
    """Make a policy by analogy, and train its residual.

    Raises:
        UserError: as `analogy_of`; the robot has no gripper camera; no demonstration is like another.
    """
    settings = config.residual
    camera = next((one for one in robot.cameras if one.role == "gripper"), None)
    if camera is None:
        raise UserError(f"motion=residual: robot {robot.name!r} has no gripper camera; use motion=analogy")
    torch.manual_seed(config.train.seed)
    made = analogy_of(config, table, robot, progress)
    residual = made.net.residual
    assert residual is not None
    samples = samples_of(made.net, made.motions, made.own, table, settings.others, progress)
    if not samples:
        raise UserError(
            f"motion=residual: none of {len(made.own)} demonstrations is like another; give two or more of each "
            "task, or use motion=analogy"
        )
    vision = dataclasses.replace(config.model, vision=settings.network.vision)
    images = images_of(table, camera, config.data, vision, progress)
    own = robot_motions(made.net, table, made.held_out, progress, made.finder)
    held_out = samples_of(made.net, made.motions, own, table, settings.others, progress)
    folder, metadata = begin_run(config, "finetune", robot), metadata_of_analogy(config, table, made.episodes)
    if processes.is_main():
        made.save_library(folder)
        if not config.resume:
            line = {"step": 0, "split": "train", "samples": len(samples), **made.numbers}
            with replacing(folder / "metrics.jsonl") as partial:
                partial.write_text(json.dumps(line) + "\n")

    def batch_of(step: int, micro_batch: MicroBatch = WHOLE_BATCH) -> dict[str, Tensor]:
        rng = np.random.default_rng([config.train.seed, step])
        drawn = [drawn_row(samples[i], settings, rng) for i in rng.integers(0, len(samples), config.train.batch)]
        return batch_from(drawn[micro_batch.rows(len(drawn))], images)

    def save(folder: Path, model: nn.Module) -> None:
        made.net.residual = cast(ResidualNet, model)
        write_checkpoint(folder, made.net, metadata)

    trainer = Trainer(
        residual,
        batch_of,
        config.train,
        folder,
        save,
        validate=(lambda _, device: residual_errors(residual, held_out, images, device)) if held_out else None,
        name="residual",
    )
    return trainer.run(config.resume, progress)


def samples_of(
    net: AnalogyNet,
    library: Sequence[Motion],
    own: Mapping[int, Motion],
    table: EpisodeTable,
    others: int,
    progress: bool,
) -> list[Sample]:
    """Return the steps with an image of demonstrations, from where the approach begins, with the plans for them.

    Args:
        library: what may be carried over; a demonstration's own motion, and what was made by it, never is to itself.
        own: row of the table -> motion of the demonstrations that are asked for.
        others: so many motions of the library are carried over to each.
    """
    found: list[Sample] = []
    text = TextEncoder(net.config.vlm.text)
    with progress_bar("plans", len(own), progress) as bar:
        for episode, motion in own.items():
            bar.update(1)
            rest = [one for one in library if one is not motion and one.by != motion.id]
            if rest:
                seer = PlaceSeer(net, rest, net.robot.cameras[0].name, text)
                found += _samples(seer, motion, table, episode, others)
    return found


def _samples(seer: PlaceSeer, own: Motion, table: EpisodeTable, episode: int, others: int) -> list[Sample]:
    store, name = table.stores[table.store[episode]], str(table.ids[episode])
    arrays = store.arrays(name)
    poses, robot_obs = own.path.poses, np.asarray(arrays["robot_obs"], np.float64)
    motion = Phased.of(poses, own.path.gripper, own.path.touch)
    # Where the robot has no target of its own, the path was made of where it was.
    targets = np.asarray(arrays.get("target_pose", robot_obs[:, :6]), np.float64)
    begin, looked = entry_of(own.path), -LOOK_EVERY
    found: list[Sample] = []
    plans: list[tuple[Plan, Phased, int]] = []
    for number, step in enumerate(int(step) for step in store.header(name).image_steps):
        if step <= own.path.touch and step - looked >= LOOK_EVERY:
            looked, image = step, store.frames(name, seer.camera, [number])[0]
            plans = _plans(seer.sight(image, own.sentence, robot_obs[step, :7]), own, others)
        if not begin < step <= len(poses) - EXECUTE:
            continue
        here = []
        for plan, phased, entry in plans:
            cursor = phased.row_like(motion.phase[step])
            if plan.bent.rows[cursor] > entry:
                plan = dataclasses.replace(plan, cursor=cursor)
                here.append((plan, *motion.beside(step, phased, cursor, EXECUTE)))
        if here:
            image = int(table.image_start[episode]) + number
            found.append(Sample(targets[step], robot_obs[step], float(own.path.gripper[step - 1]), image, tuple(here)))
    return found


def _plans(sight: Sight, own: Motion, others: int) -> list[tuple[Plan, Phased, int]]:
    """The plans that a sight offers and a residual could mend: each with its phases and where its approach begins."""
    found = []
    for choice in [one for one in sight.choices if one.hypothesis == 0][:others]:
        bent = whole(choice.motion.path, choice.goal)
        apart = np.linalg.norm(choice.goal.touch - own.path.tcp_touch[:3])
        turned = np.abs(angle_difference(bent.poses[bent.touch, 5], own.path.poses[own.path.touch, 5]))
        if apart <= _MENDED_M and turned <= _MENDED_RAD:
            plan = Plan(bent, 0, bent.poses[bent.touch], choice.goal.confidence)
            phased = Phased.of(bent.poses, bent.gripper, bent.touch)
            found.append((plan, phased, entry_of(choice.motion.path)))
    return found


def drawn_row(sample: Sample, settings: ResidualFitConfig, rng: np.random.Generator) -> Row:
    """Return a sample with one of its plans, which is off by chance or left out."""
    number = int(rng.integers(len(sample.plans)))
    off, turn, dropped = rng.normal(0, 1, 3) * settings.noise_m, rng.normal(0, settings.noise_rad), rng.random()
    plan = sample.plans[number][0]
    plan = dataclasses.replace(plan, goal=plan.goal + np.concatenate([off, [0, 0, turn]]))
    return row_of(sample, number, None if dropped < settings.dropout else plan)


def row_of(sample: Sample, number: int, plan: Plan | None) -> Row:
    """Return a sample beside a plan, or none: what is left of plan `number`, whose tempo the labels have."""
    if plan is not None:
        plan = dataclasses.replace(plan, bent=onward(plan.bent, plan.cursor, sample.target))
    view = plan_view(plan, sample.target, sample.robot_obs, sample.command)
    _, poses, commands = sample.plans[number]
    moves = np.diff(np.concatenate([sample.target[None], poses]), axis=0)
    moves[:, 3:] = wrap_angle(moves[:, 3:])
    yaw = sample.robot_obs[5]
    return {
        "state": view.state,
        "plan": view.plan,
        "present": np.float32(view.present),
        "base": arm_in_gripper(view.actions, yaw).astype(np.float32),
        "command": view.actions[:, 6].astype(np.float32),
        "arm": arm_in_gripper(moves / UNITS, yaw).astype(np.float32),
        "open": (commands > 0).astype(np.float32),
        "image": sample.image,
    }


def batch_from(rows: Sequence[Row], images: FrameSource) -> dict[str, Tensor]:
    """Return rows as a batch of `ResidualNet`."""
    batch = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    batch["gripper"] = torch.from_numpy(images.take(batch.pop("image").numpy()))
    return batch


@torch.no_grad()
def residual_errors(
    model: ResidualNet, samples: Sequence[Sample], images: FrameSource, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Judge corrections on demonstrations that are not in the library, each step with its likeliest plan.

    Returns:
        mean absolute errors of position and yaw, in actions, and the share of gripper commands that are right: of the
        plan alone (`plan_`) and of the plan with the residual (`arm_error`, `gripper_accuracy`); `before_` of steps
        before the touch only.
    """
    off: list[np.ndarray] = []
    for some in in_batches(np.arange(len(samples)), 256):
        rows = [row_of(samples[i], 0, samples[i].plans[0][0]) for i in some]
        batch = to_device(batch_from(rows, images), torch.device(device))
        arm, logits = model.corrections(batch)
        errors = [(batch["base"] + add - batch["arm"]).abs().mean((1, 2)) for add in (0 * arm, arm)]
        right = [((command > 0) == (batch["open"] > 0)).float().mean(1) for command in (batch["command"], logits)]
        off.append(torch.stack([*errors, *right], 1).cpu().numpy())
    values = np.concatenate(off)
    names = ("plan_arm_error", "arm_error", "plan_gripper_accuracy", "gripper_accuracy")
    before = np.array([sample.plans[0][0].cursor <= sample.plans[0][0].bent.touch for sample in samples])
    found: dict[str, float] = {}
    for prefix, some in (("", values), ("before_", values[before])):
        if len(some):
            found |= {f"{prefix}{name}": float(value) for name, value in zip(names, some.mean(0), strict=True)}
    return found
