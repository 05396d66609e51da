"""Controls of the study: one part of the policy by analogy replaced, all else as it is.

Only here anything privileged comes near a policy: the world of the row with true places tells where things are.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from arvrm.config import bounded, check_bounds
from arvrm.episodes import EpisodeStore
from arvrm.evaluation.playtable import PlayTableWorld
from arvrm.geometry import angle_difference, euler_to_matrix, half_turn
from arvrm.instructions import validation_instruction
from arvrm.interface import BLOCKS, TASKS, Observation, PlanRequest, UserError
from arvrm.motions import Goal, Motion, Path
from arvrm.motions.path import yaws_of
from arvrm.policy.analogy import AnalogyPolicy
from arvrm.policy.places import Choice, PlaceSeer, Sight
from arvrm.robots.calvin import LANDMARKS
from arvrm.sources.recording import landmark_positions

_FIXTURE = {"slider": 3, "drawer": 4, "led": 5, "lightbulb": 6}
_TURNED = ("lift", "rotate", "unstack")
"""Kinds of tasks whose gripper is turned with the block."""
_TABLE_Z, _TABLE_Y, _CLOSE_M = (0.44, 0.49), 0.02, 0.05


@dataclass(frozen=True)
class Control:
    """What is replaced.

    Attributes:
        off_m: every place is moved by an error drawn once an instruction, normal on each axis, of this deviation (m).
        motion: "mean": of all motions that the words allow their mean, in place of the most similar one.
        map: "uniform": all keypoints count alike in m's position.
        places: "true": where things are is told by the simulator, not seen.
    """

    off_m: float = bounded(0.0, least=0, most=1)
    motion: Literal["retrieved", "mean"] = "retrieved"
    map: Literal["fitted", "uniform"] = "fitted"
    places: Literal["predicted", "true"] = "predicted"

    __post_init__ = check_bounds


def controlled(policy: AnalogyPolicy, control: Control, stores: Sequence[str]) -> AnalogyPolicy:
    """Return the policy with a part replaced.

    Args:
        stores: where its demonstrations lie, for true places.

    Raises:
        UserError: true places of a demonstration that is not there.
    """
    seer = policy.seer
    assert isinstance(seer, PlaceSeer)
    found: Any = seer
    if control.map == "uniform":
        fitted = seer.net.fitted()
        seer.net.keep({**fitted, "position": np.full_like(fitted["position"], 1 / fitted["position"].shape[1])})
        found = PlaceSeer(seer.net, seer.motions, seer.camera)
    if control.places == "true":
        found = TrueSeer(seer.motions, stores)
    if control.motion == "mean":
        found = MeanSeer(found)
    if control.off_m:
        found = OffSeer(found, control.off_m)
    sizes, batch = dict(policy.spec.image_sizes), policy.spec.batch
    return AnalogyPolicy(policy.robot, found, sizes, batch, policy.residual, policy.threads)


class _Around:
    """A seer around another."""

    def __init__(self, seer: Any) -> None:
        self.seer = seer
        self.lookout = seer.lookout
        self.map, self.camera = getattr(seer, "map", None), getattr(seer, "camera", "rgb_static")

    def look(self, requests: list[PlanRequest]) -> list[Sight]:
        return [self.changed(request, sight) for request, sight in zip(requests, self.seer.look(requests), strict=True)]

    def to_take(self, request: PlanRequest) -> Sight | None:
        sight = self.seer.to_take(request)
        return None if sight is None else self.changed(request, sight)

    def changed(self, request: PlanRequest, sight: Sight) -> Sight:
        raise NotImplementedError


class OffSeer(_Around):
    """Moves all places of an instruction of a rollout by one error."""

    def __init__(self, seer: Any, deviation: float) -> None:
        super().__init__(seer)
        self.deviation = deviation

    def changed(self, request: PlanRequest, sight: Sight) -> Sight:
        seed = int.from_bytes(hashlib.sha256(f"{request.rollout} {request.instruction}".encode()).digest()[:8], "big")
        error = np.random.default_rng(seed).normal(0, self.deviation, 3)

        choices = [dataclasses.replace(choice, goal=choice.goal.beside(error)) for choice in sight.choices]
        return dataclasses.replace(sight, choices=choices)


class MeanSeer(_Around):
    """Puts the mean of all motions at a place in the place of each of them."""

    def changed(self, request: PlanRequest, sight: Sight) -> Sight:
        choices = []
        for hypothesis in sorted({choice.hypothesis for choice in sight.choices}):
            some = [choice for choice in sight.choices if choice.hypothesis == hypothesis]
            motion = mean_motion([choice.motion for choice in some])
            touch = np.mean([choice.goal.touch for choice in some], 0)
            turn = float(np.mean([choice.goal.turn for choice in some]))
            choices.append(
                Choice(motion, Goal(touch, turn, None, some[0].goal.confidence, yaws=some[0].goal.yaws), {}, hypothesis)
            )
        return dataclasses.replace(sight, choices=choices)


def mean_motion(motions: Sequence[Motion]) -> Motion:
    """Return the mean of motions, row by row from their touches; where one is over, its ends stand still."""
    before = max(motion.path.touch for motion in motions)
    after = max(len(motion.path.poses) - motion.path.touch for motion in motions)
    first, rows = motions[0].path, np.arange(-before, after)
    poses, grippers = [], []
    for motion in motions:
        path = motion.path
        at = np.clip(path.touch + rows, 0, len(path.poses) - 1)
        angles = first.tcp_touch[3:] + angle_difference(path.poses[at, 3:], first.tcp_touch[3:])
        poses.append(np.concatenate([path.poses[at, :3], angles], 1))
        grippers.append(path.gripper[at])
    tcp = [np.mean([getattr(motion.path, name)[:3] for motion in motions], 0) for name in ("tcp_touch", "tcp_end")]
    touch, end = (np.concatenate([place, first.tcp_touch[3:]]) for place in tcp)
    last = before + round(float(np.mean([motion.path.end - motion.path.touch for motion in motions])))
    gripper = np.where(np.mean(grippers, 0) >= 0, 1.0, -1.0)
    path = Path(np.mean(poses, 0), gripper, before, min(last, len(rows) - 1), touch, end)
    return dataclasses.replace(motions[0], id=f"mean of {len(motions)}", path=path)


class TellingWorld(PlayTableWorld):
    """The play table, which also says where things are: for true places only."""

    def observe(self) -> Observation:
        seen, scene = super().observe(), self.env.scene_obs()
        landmarks = landmark_positions(self.env.fixtures, self.env.block_order, scene[None])[0]
        return Observation({**seen.state, "scene_obs": scene, "landmarks": landmarks}, seen.images)


@dataclass(frozen=True)
class _Known:
    """What a demonstration touched: the thing's place (3,) and yaw (None: it has none), in its own scene."""

    motion: Motion
    place: np.ndarray
    yaw: float | None


class TrueSeer:
    """Knows where the thing of a task is, and carries the task's demonstrations over to there."""

    lookout = None

    def __init__(self, motions: Sequence[Motion], stores: Sequence[str]) -> None:
        self.by_task: dict[str, list[_Known]] = {}
        self.task_of = {validation_instruction(task): task for task in TASKS}
        opened = [EpisodeStore(path) for path in stores]
        yaws = np.array([motion.path.tcp_touch[5] for motion in motions])
        self.middle = float(np.arctan2(np.sin(yaws).sum(), np.cos(yaws).sum()))
        self.yaws = yaws_of([motion.path for motion in motions], self.middle)
        for motion in motions:
            store = next((one for one in opened if motion.id in one), None)
            if store is None:
                raise UserError(f"study: the store of demonstration {motion.id} is not here; true places need it")
            task = store.header(motion.id).task
            arrays = store.arrays(motion.id, ("landmarks", "scene_obs", "robot_obs"))
            row = min(motion.path.touch, len(arrays["landmarks"]) - 1)
            row = 0 if task.startswith(("rotate", "push", "lift", "unstack")) else row
            seen = [arrays[name][row] for name in ("landmarks", "scene_obs", "robot_obs")]
            moved = _moved(arrays["landmarks"], task)
            place, yaw = thing(task, seen[0], seen[1], seen[2][:3], moved)
            self.by_task.setdefault(task, []).append(_Known(motion, place, yaw))

    def look(self, requests: list[PlanRequest]) -> list[Sight]:
        return [self.sight(request) for request in requests]

    def to_take(self, request: PlanRequest) -> Sight | None:
        return None

    def sight(self, request: PlanRequest) -> Sight:
        state, task = request.history[-1].state, self.task_of.get(request.instruction)
        if task is None:
            raise UserError(f"study: true places know validation sentences only, not {request.instruction!r}")
        robot = np.asarray(state["robot_obs"], np.float64)
        place, yaw = thing(task, state["landmarks"], state["scene_obs"], robot[:3])
        costs: list[tuple[float, Choice]] = []
        for known in self.by_task.get(task, []):
            path = known.motion.path
            apart, turn = path.tcp_touch[:3] - known.place, 0.0
            if yaw is not None and known.yaw is not None and task.startswith(_TURNED):
                # No wrist turns further than a quarter from where it is used.
                wanted = path.tcp_touch[5] + yaw - known.yaw
                turn = float(self.middle + half_turn(wanted - self.middle) - path.tcp_touch[5])
                cos, sin = np.cos(turn), np.sin(turn)
                apart = np.append(np.array([[cos, -sin], [sin, cos]]) @ apart[:2], apart[2])
            goal = Goal(place + apart, turn, yaws=self.yaws)
            way = (robot[:3] - goal.touch) - (known.motion.start[:3] - path.tcp_touch[:3])
            cost = float(np.linalg.norm(way) + 0.1 * abs(turn))
            costs.append((cost, Choice(known.motion, goal, {"start": cost})))
        costs.sort(key=lambda pair: pair[0])
        return Sight([choice for _, choice in costs])


def thing(
    task: str, landmarks: np.ndarray, scene_obs: np.ndarray, tcp: np.ndarray, block: str | None = None
) -> tuple[np.ndarray, float | None]:
    """Return where the thing is that a task is about (3,), and its yaw (rad), None where it has none.

    Args:
        landmarks: (7, 3); scene_obs: (24,); tcp: (3,).
        block: the one meant, where the words leave it open; None: the likeliest.
    """
    if task in ("place_in_slider", "place_in_drawer"):
        return np.asarray(landmarks[_FIXTURE[task.split("_")[-1]]], np.float64), None
    fixture = next((at for word, at in _FIXTURE.items() if word in task.split("_")), None)
    named = next((name for name in BLOCKS if name in task.split("_")), block)
    if fixture is not None and named is None and task != "push_into_drawer":
        return np.asarray(landmarks[fixture], np.float64), None
    blocks = {name: np.asarray(landmarks[LANDMARKS.index(name)], np.float64) for name in BLOCKS}
    named = named or _likeliest(task, blocks, np.asarray(landmarks[_FIXTURE["drawer"]]), tcp)
    return blocks[named], _yaw(blocks[named], scene_obs)


def _likeliest(task: str, blocks: dict[str, np.ndarray], drawer: np.ndarray, tcp: np.ndarray) -> str:
    if task == "unstack_block":
        return max(blocks, key=lambda name: blocks[name][2])
    held = min(blocks, key=lambda name: np.linalg.norm(blocks[name] - tcp))
    free = [name for name in blocks if task != "stack_block" or name != held]
    on_table = [name for name in free if _TABLE_Z[0] < blocks[name][2] < _TABLE_Z[1] and blocks[name][1] < _TABLE_Y]
    if task == "stack_block":
        return min(on_table or free, key=lambda name: np.linalg.norm(blocks[name] - tcp))
    return min(on_table or free, key=lambda name: abs(blocks[name][0] - drawer[0]))


def _yaw(place: np.ndarray, scene_obs: np.ndarray) -> float:
    """Yaw (rad) of the block that lies at a place."""
    blocks = np.asarray(scene_obs, np.float64)[6:].reshape(3, 6)
    euler = blocks[np.linalg.norm(blocks[:, :3] - place, axis=1).argmin(), 3:]
    turned = euler_to_matrix(euler)
    return float(np.arctan2(turned[1, 0], turned[0, 0]))


def _moved(landmarks: np.ndarray, task: str) -> str | None:
    """The block that a demonstration moved most, or, of a stacking, the one that it moved least and is under it."""
    ways = np.linalg.norm(landmarks[-1, : len(BLOCKS)] - landmarks[0, : len(BLOCKS)], axis=1)
    names = LANDMARKS[: len(BLOCKS)]
    if task == "push_into_drawer":
        return names[int(ways.argmax())]
    if task == "stack_block":
        held, last = int(ways.argmax()), landmarks[-1, : len(BLOCKS), :2]
        apart = [np.inf if n == held else float(np.linalg.norm(last[n] - last[held])) for n in range(len(BLOCKS))]
        return names[int(np.argmin(apart))]
    return None
