"""The play table as a world to roll out in: simulator, oracle and experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from arvrm.evaluation.config import EvaluateConfig
from arvrm.interface import TASKS, Job, Observation, PolicySpec, Robot
from arvrm.robots import CALVIN

EXPERT_STEPS = 360
"""Control steps in which the expert must prepare the start of a single task."""
JITTER_M, JITTER_RAD = 0.01, 0.3
"""How far blocks are moved and turned at most, each way, at the starts of single tasks."""
FILM_SIZES = {"static": 200, "gripper": 84}
"""Pixels of films' images, whatever the policy's are."""
DEFAULT_SIZES = {"rgb_static": 200, "rgb_gripper": 84}
"""Pixels of a camera that the policy does not look through; CALVIN's."""


class PlayTableWorld:
    """The play table as `interface.ExpertWorld`: simulator, oracle and scripted experts."""

    robot: Robot = CALVIN

    def __init__(self, config: EvaluateConfig, spec: PolicySpec):
        from arvrm.sim.env import PlayTableEnv
        from arvrm.sim.tasks import TaskOracle

        sizes = DEFAULT_SIZES | dict(spec.image_sizes)
        self.env = PlayTableEnv(
            scene=config.scene,
            assets="official" if config.assets == "calvin" else config.assets,
            calvin_root=config.calvin_root,
            renderer=config.renderer,
            render_observations=False,
            camera_shift=config.camera_shift,
            lighting=config.lighting,
            block_colours=config.block_colours,
            static_size=sizes["rgb_static"],
            gripper_size=sizes["rgb_gripper"],
        )
        self.oracle = TaskOracle()
        self.seed = config.seed
        self._expert: Any = None

    def start(self, job: Job) -> dict[str, Any]:
        """Bring the simulator to the job's initial state; return the info there."""
        if not isinstance(job.start, tuple):
            return self._reset(job.start)
        rng = np.random.default_rng([self.seed, job.index, 2])
        for attempt, (chain, before) in enumerate(job.start):
            info = self._reset(chain, rng)
            if all((info := self._prepare(task, job.index, attempt, info)) for task in before):
                return info
        raise RuntimeError(f"the expert could not prepare {job.tasks[0]} in {len(job.start)} attempts")

    def _reset(self, chain: Any, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Start a chain; with `rng` the blocks lie a little elsewhere."""
        from arvrm.sim.chains import chain_start

        self._expert = None  # one of another chain has no motion to finish here
        robot_obs, scene_obs = chain_start(chain, self.env)
        if rng is not None:
            blocks = scene_obs[6:].reshape(3, 6)
            blocks[:, :2] += rng.uniform(-JITTER_M, JITTER_M, (3, 2))
            blocks[:, 5] += rng.uniform(-JITTER_RAD, JITTER_RAD, 3)
        return self.env.reset(options={"robot_obs": robot_obs, "scene_obs": scene_obs})[1]

    def _prepare(self, task: str, index: int, attempt: int, start_info: dict[str, Any]) -> dict[str, Any] | None:
        """Let the expert do a task; return the info at its end, None if it fails."""
        act = self.expert(task, np.random.default_rng([index, attempt, TASKS.index(task)]))
        for _ in range(EXPERT_STEPS):
            info = self.step(act())
            if self.completed(start_info, info, task):
                return info
        return None

    def step(self, action: np.ndarray) -> dict[str, Any]:
        return self.env.step(action)[4]

    def observe(self) -> Observation:
        return Observation({"robot_obs": self.env.robot_obs(), "target_pose": self.env.target_pose()})

    def cameras(self, film: bool = False) -> dict[str, np.ndarray]:
        return self.env.render_cameras(sizes=FILM_SIZES if film else None)

    def completed(self, start_info: dict[str, Any], info: dict[str, Any], task: str) -> bool:
        return task in self.oracle.completed(start_info, info, tasks=(task,))

    def expert(self, task: str, rng: np.random.Generator) -> Callable[[], np.ndarray]:
        from arvrm.sim.experts import Expert

        # The oracle fires at its threshold; the expert of the task before still finishes its motion first.
        self._expert = Expert(task, self.env, rng, after=self._expert)
        return self._expert.act

    def describe(self) -> dict[str, Any]:
        return {
            "simulator": "arvrm PlayTable on PyBullet",
            "assets": self.env.description.hash(),
            "renderer": self.env.renderer,
        }

    def close(self) -> None:
        self.env.close()
