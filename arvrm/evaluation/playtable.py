"""The play table as a world to roll out in: simulator, oracle and experts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from arvrm.evaluation.config import EvaluateConfig
from arvrm.interface import Job, Observation, PolicySpec, Robot
from arvrm.robots import CALVIN

if TYPE_CHECKING:
    from arvrm.sim.env import PlayTableEnv
    from arvrm.sim.experts import Expert

FILM_SIZES = {"static": 200, "gripper": 84}
"""Pixels of films' images, whatever the policy's are."""
DEFAULT_SIZES = {"rgb_static": 200, "rgb_gripper": 84}
"""Pixels of a camera that the policy does not look through; CALVIN's."""


class PlayTableWorld:
    """The play table as `interface.ExpertWorld`: simulator, oracle and scripted experts."""

    robot: Robot = CALVIN

    def __init__(self, config: EvaluateConfig, spec: PolicySpec):
        from arvrm.sim.tasks import TaskOracle

        self.config, self.spec = config, spec
        self.env = self._table(0 if config.layouts else None)
        self.oracle = TaskOracle()
        self.seed = config.seed
        self._expert: Expert | None = None

    def _table(self, variation: int | None) -> PlayTableEnv:
        from arvrm.sim.env import PlayTableEnv

        config, sizes = self.config, DEFAULT_SIZES | dict(self.spec.image_sizes)
        self.variation = variation
        return PlayTableEnv(
            scene=config.scene,
            assets="official" if config.assets == "calvin" else config.assets,
            calvin_root=config.calvin_root,
            renderer=config.renderer,
            variation=variation,
            render_observations=False,
            camera_shift=config.camera_shift,
            lighting=config.lighting,
            block_colours=config.block_colours,
            static_size=sizes["rgb_static"],
            gripper_size=sizes["rgb_gripper"],
        )

    def start(self, job: Job) -> dict[str, Any]:
        from arvrm.sim.starts import prepare, reset_to_chain

        if self.config.layouts and job.index % self.config.layouts != self.variation:
            self.env.close()
            self.env = self._table(job.index % self.config.layouts)
        if isinstance(job.start, tuple):
            info, self._expert = prepare(self.env, job.start, self.seed, job.index)
            return info
        self._expert = None  # one of another chain has no motion to finish here
        return reset_to_chain(self.env, job.start)

    def step(self, action: np.ndarray) -> dict[str, Any]:
        return self.env.step(action)[4]

    def observe(self) -> Observation:
        return Observation({"robot_obs": self.env.robot_obs(), "target_pose": self.env.target_pose()})

    def cameras(self, film: bool = False) -> dict[str, np.ndarray]:
        if film or not self.spec.image_sizes:
            return self.env.render_cameras(sizes=FILM_SIZES if film else None)
        return self.env.render_cameras(cameras=tuple(name.removeprefix("rgb_") for name in self.spec.image_sizes))

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
            "assets": self._assets(),
            "renderer": self.env.renderer,
        }

    def _assets(self) -> str:
        if not self.config.layouts:
            return self.env.description.hash()
        from arvrm.sim.builtin import builtin_scene

        hashes = [builtin_scene(self.config.scene, layout).hash() for layout in range(self.config.layouts)]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def close(self) -> None:
        self.env.close()


def start_picture(
    scene: str, assets: str, calvin_root: str | None, layout: int | None, chain: Any, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return how a chain (or the official one of this number) begins: the static camera's image (size, size, 3) and
    robot_obs (15,)."""
    from arvrm.evaluation.jobs import official_chains
    from arvrm.sim.env import PlayTableEnv
    from arvrm.sim.starts import reset_to_chain

    env = PlayTableEnv(
        scene=scene,
        assets="official" if assets == "calvin" else assets,
        calvin_root=calvin_root,
        static_size=size,
        variation=layout,
        render_observations=False,
    )
    try:
        reset_to_chain(env, official_chains()[chain] if isinstance(chain, int) else chain)
        return env.render_cameras()["rgb_static"], env.robot_obs()
    finally:
        env.close()
