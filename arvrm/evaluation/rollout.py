"""One chain in one world: what is looked at, planned, executed, judged and filmed at each control step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from arvrm.evaluation.config import EvaluateConfig
from arvrm.interface import Job, Observation, PlanRequest, PolicySpec
from arvrm.results import ChainRecord

FILM_STRIDE = 3
"""Control steps per film frame; `films.FPS` plays it at the speed of life."""
FILM_TAIL = 6
"""Film frames that show a task's outcome."""
IMAGE_KEYS = ("rgb_static", "rgb_gripper")


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

    world: Any
    job: Job
    config: EvaluateConfig
    spec: PolicySpec
    plan: Callable[[PlanRequest], np.ndarray]
    progress: Callable[[int, tuple[int, ...]], None] = lambda completed, steps: None
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

    def _attempt(self, place: int, start_info: dict[str, Any], film: Film | None) -> tuple[dict[str, Any], bool]:
        """Attempt one task from the present state; return the info at its end and whether it succeeded."""
        task, instruction = self.job.tasks[place], self.job.instructions[place]
        rng = np.random.default_rng([self.config.seed, self.job.index, place])
        act = self._actor(task, instruction, rng)
        title = f"{place + 1} of {len(self.job.tasks)}"
        info, success = start_info, False
        self.steps.append(0)
        for step in range(self.config.max_steps):
            images = self._images(step)
            if film is not None and step % FILM_STRIDE == 0:
                with self.clock("film"):
                    replanned = self.config.policy == "checkpoint" and step % self.spec.execute_steps < FILM_STRIDE
                    film.show(self.world.cameras(film=True), instruction, title, step, replanned)
            action = act(step, images)
            with self.clock("physics"):
                info = self.world.step(action)
            self.steps[-1] = step + 1
            with self.clock("oracle"):
                success = self.world.completed(start_info, info, task)
            if success:
                break
        if film is not None:
            with self.clock("film"):
                images = self.world.cameras(film=True)
                film.show(images, instruction, title, self.steps[-1], False, success, FILM_TAIL)
        return info, success

    def _images(self, step: int) -> dict[str, np.ndarray] | None:
        """Render where the policy will look: at every step that is some plan's step plus a history offset."""
        if self.spec.static_size is None or not needs_images(self.spec, step):
            return None
        with self.clock("rendering"):
            return self.world.cameras()

    def _actor(self, task: str, instruction: str, rng: np.random.Generator) -> Callable[..., np.ndarray]:
        """Return act(step, images) -> (7,) action for one instruction."""
        if self.config.policy == "expert":
            with self.clock("policy"):
                expert = self.world.expert(task, rng)

            def act_expert(step: int, images: Any) -> np.ndarray:
                with self.clock("policy"):
                    return expert()

            return act_expert
        if self.config.policy == "random":

            def act_random(step: int, images: Any) -> np.ndarray:
                return np.append(rng.uniform(-1, 1, 6), rng.choice([-1.0, 1.0])).astype(np.float32)

            return act_random
        seen: dict[int, Observation] = {}
        chunk: list[np.ndarray] = []

        def act_policy(step: int, images: dict[str, np.ndarray] | None) -> np.ndarray:
            if needs_images(self.spec, step):
                seen[step] = replace(self.world.observe(), **{key: images[key] for key in IMAGE_KEYS} if images else {})
                for old in [s for s in seen if s and s < step + self.spec.history_offsets[0]]:
                    del seen[old]
            if step % self.spec.execute_steps == 0:
                history = tuple(seen[max(0, step + offset)] for offset in self.spec.history_offsets)
                with self.clock("policy"):
                    actions = self.plan(PlanRequest(instruction, history, rollout=self.job.index, step=step))
                chunk[:] = actions[: self.spec.execute_steps]
            return chunk[step % self.spec.execute_steps]

        return act_policy


def needs_images(spec: PolicySpec, step: int) -> bool:
    """Whether some plan of the policy looks at this step of an instruction (plans are made every `execute_steps`)."""
    return step == 0 or any((step - offset) % spec.execute_steps == 0 for offset in spec.history_offsets)


class Film:
    """Frames of one chain on their way into a file; the writer is made with the first frame."""

    def __init__(self, path: str):
        from arvrm.films import FilmWriter

        self.writer = FilmWriter(path)

    def show(
        self,
        images: dict[str, np.ndarray],
        instruction: str,
        title: str,
        step: int,
        replanned: bool,
        outcome: bool | None = None,
        repeat: int = 1,
    ) -> None:
        from arvrm.films import compose_frame

        frame = compose_frame(images, instruction, title, step, replanned, outcome)
        for _ in range(repeat):
            self.writer.add(frame)

    def close(self) -> str | None:
        path = self.writer.close()
        return None if path is None else path.name

    def discard(self) -> None:
        self.writer.discard()
