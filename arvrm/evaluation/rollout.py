"""One chain in one world: what is looked at, planned, executed, judged and filmed at each control step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from arvrm.evaluation.config import EvaluateConfig
from arvrm.evaluation.filming import FILM_STRIDE, FILM_TAIL, Film
from arvrm.interface import Drawing, Job, Observation, PlanRequest, PolicySpec, Robot, UserError, World
from arvrm.results import ChainRecord

Actor = Callable[[int, dict[str, np.ndarray]], np.ndarray]


class PolicyCrash(Exception):
    """The policy failed on one request (in the parent); the chain ends there."""


class Clock:
    """Seconds by kind of work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - begin


@dataclass
class Rollout:
    """One chain in one world. `completed` and `steps` are true at any time, also after an exception."""

    world: World
    job: Job
    config: EvaluateConfig
    spec: PolicySpec
    plan: Callable[[PlanRequest], np.ndarray | None]
    """Returns a chunk; None: the policy wants images first."""
    progress: Callable[[int, tuple[int, ...]], None] = lambda completed, steps: None
    drawing: Drawing | None = None
    """What the policy had in mind at its last plan."""
    completed: int = 0
    steps: list[int] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)

    def run(self) -> ChainRecord:
        """Roll the chain out until it ends."""
        film = Film(self.job.film) if self.job.film else None
        kept = None
        try:
            with self.clock("reset"):
                info = self.world.start(self.job)
            for place in range(len(self.job.tasks)):
                info, success = self._attempt(place, info, film)
                self.completed += success
                self.progress(self.completed, tuple(self.steps))
                if not success:
                    break
            if film is not None:
                with self.clock("film"):
                    kept = film.close()
        finally:
            if film is not None and kept is None:
                film.discard()
        return ChainRecord(
            index=self.job.index,
            tasks=self.job.tasks,
            completed=self.completed,
            steps=tuple(self.steps),
            film=kept,
        )

    def _attempt(self, place: int, start_info: Any, film: Film | None) -> tuple[Any, bool]:
        """Attempt one task from the present state; return the info at its end and whether it succeeded."""
        task, instruction = self.job.tasks[place], self.job.instructions[place]
        act = self._actor(place)
        title = f"{place + 1} of {len(self.job.tasks)}"
        info, success, self.drawing = start_info, False, None
        self.steps.append(0)
        for step in range(self.config.max_steps):
            action = act(step, self._images(step))
            if film is not None and step % FILM_STRIDE == 0:
                with self.clock("film"):
                    replanned = self.config.plans and step % self.spec.execute_steps < FILM_STRIDE
                    film.show(self.world.cameras(film=True), self.drawing, instruction, title, step, replanned)
            with self.clock("physics"):
                info = self.world.step(action)
            self.steps[-1] = step + 1
            with self.clock("oracle"):
                success = bool(self.world.completed(start_info, info, task))
            if success:
                break
        if film is not None:
            with self.clock("film"):
                images = self.world.cameras(film=True)
                film.show(images, self.drawing, instruction, title, self.steps[-1], False, success, FILM_TAIL)
        return info, success

    def _images(self, step: int) -> dict[str, np.ndarray]:
        """Render where the policy will look: at every step that is some plan's step plus a history offset."""
        spec = self.spec
        if not spec.image_sizes or spec.looks_when_needed or not needs_images(spec, step):
            return {}
        return self.look()

    def look(self) -> dict[str, np.ndarray]:
        """Render the cameras that the policy asks for."""
        with self.clock("rendering"):
            images = self.world.cameras()
        missing = [camera for camera in self.spec.image_sizes if camera not in images]
        if missing:
            raise UserError(f"world: renders {', '.join(images) or 'nothing'}, and no {missing[0]}, as the policy asks")
        return {camera: images[camera] for camera in self.spec.image_sizes}

    def _actor(self, place: int) -> Actor:
        """Return act(step, images) -> (A,) action for one instruction."""
        rng = np.random.default_rng([self.config.seed, self.job.index, place])
        if self.config.policy == "expert":
            return self._expert(self.job.tasks[place], rng)
        if self.config.policy == "random":
            return lambda step, images: self.world.robot.random_action(rng)
        return Chunks(self, self.job.instructions[place]).act

    def _expert(self, task: str, rng: np.random.Generator) -> Actor:
        expert_of = getattr(self.world, "expert", None)
        if expert_of is None:
            raise UserError(f"evaluate: {type(self.world).__name__} has no experts; choose another --policy")
        with self.clock("policy"):
            expert = expert_of(task, rng)

        def act(step: int, images: dict[str, np.ndarray]) -> np.ndarray:
            with self.clock("policy"):
                return expert()

        return act


class Chunks:
    """Executes a policy's chunks for one instruction, and keeps the observations that plans look back to."""

    def __init__(self, rollout: Rollout, instruction: str) -> None:
        self.rollout, self.instruction = rollout, instruction
        self.observed: dict[int, Observation] = {}
        self.chunk: np.ndarray | None = None

    def act(self, step: int, images: dict[str, np.ndarray]) -> np.ndarray:
        """Return the (A,) action of a step, planning first where a chunk begins."""
        rollout, spec = self.rollout, self.rollout.spec
        if needs_images(spec, step):
            self.observed[step] = replace(rollout.world.observe(), images=images)
            for old in [at for at in self.observed if at and at < step + spec.history_offsets[0]]:
                del self.observed[old]
        if self.chunk is None or step % spec.execute_steps == 0:
            history = tuple(self.observed[max(0, step + offset)] for offset in spec.history_offsets)
            request = PlanRequest(self.instruction, history, rollout=rollout.job.index, step=step)
            self.chunk = checked_chunk(self._planned(request), spec, request, rollout.world.robot)
        return self.chunk[step % spec.execute_steps]

    def _planned(self, request: PlanRequest) -> np.ndarray:
        with self.rollout.clock("policy"):
            chunk = self.rollout.plan(request)
        if chunk is not None:
            return chunk
        seen = self.observed[request.step] = replace(self.observed[request.step], images=self.rollout.look())
        with self.rollout.clock("policy"):
            chunk = self.rollout.plan(replace(request, history=(seen,)))
        if chunk is None:
            raise PolicyCrash("it wanted images again where it had them")
        return chunk


def checked_chunk(chunk: np.ndarray, spec: PolicySpec, request: PlanRequest, robot: Robot) -> np.ndarray:
    """Return the chunk's actions that are executed.

    Raises:
        UserError: it is not (C >= execute_steps, A), not finite, or no action of the robot's.
    """
    chunk = np.asarray(chunk)
    place = f"policy: chain {request.rollout}, step {request.step} ({request.instruction!r})"
    size = robot.actions.size
    if chunk.ndim != 2 or chunk.shape[1] != size or len(chunk) < spec.execute_steps:
        expected = f"(at least {spec.execute_steps}, {size})"
        raise UserError(f"{place}: actions of shape {chunk.shape}, expected {expected}; mend the policy")
    if not np.isfinite(chunk).all():
        raise UserError(f"{place}: NaN or infinity in actions; the checkpoint is broken, train it again")
    robot.check_actions(f"{place}: actions", chunk if spec.bounded else within_range(chunk, robot))
    return chunk[: spec.execute_steps]


def within_range(actions: np.ndarray, robot: Robot) -> np.ndarray:
    """Return actions (n, A) with the continuous ones brought back to -1..1, to check all else about them."""
    encoded = np.array(robot.encode_actions(actions), copy=True)
    continuous = encoded[:, : robot.actions.continuous]
    np.clip(continuous, -1.0, 1.0, out=continuous)
    return robot.decode_actions(encoded)


def check_robots(spec: PolicySpec, world: World) -> None:
    """Raise UserError unless the policy observes and moves the world's robot, through cameras that it has."""
    robot = world.robot
    if spec.robot not in (None, robot.name):
        raise UserError(
            f"evaluate: the policy moves robot {spec.robot!r}, this world has {robot.name!r}; change either"
        )
    if spec.looks_when_needed and spec.history_offsets != (0,):
        raise UserError(f"evaluate: the policy looks when needed, and back {spec.history_offsets}; it can look at (0,)")
    known = [camera.name for camera in robot.cameras]
    for camera in spec.image_sizes:
        if camera not in known:
            raise UserError(f"evaluate: the policy asks for camera {camera!r}; {robot.name} has {', '.join(known)}")


def needs_images(spec: PolicySpec, step: int) -> bool:
    """Whether some plan of the policy looks at this step of an instruction; it plans every `execute_steps`."""
    return step == 0 or any((step - offset) % spec.execute_steps == 0 for offset in spec.history_offsets)
