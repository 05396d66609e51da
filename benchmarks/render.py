"""Observations a second (both cameras) of the built-in scenes against the official ones, as one ratio from one run.

    python benchmarks/render.py [--scenes A B C D] [--states 12] [--static 200] [--gripper 84] [--json FILE]

Both worlds are put into the same states with the same renderer (TinyRenderer) and filmed in turn, so that another load
on the machine hits both alike. The official part needs CALVIN_ROOT (default: ../shared/calvin beside the repository);
without it only the built-in scenes' rate is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from arvrm.sim.env import PlayTableEnv

REPOSITORY = Path(__file__).resolve().parent.parent


def observe_seconds(env: PlayTableEnv) -> float:
    start = time.perf_counter()
    for camera in env.cameras.values():
        camera.render()
    return time.perf_counter() - start


def measure(scene: str, calvin_root: str | None, states: int, static: int, gripper: int) -> dict[str, float]:
    """Return observations a second for "builtin" and, with a checkout, "official", in the same states."""
    options = {"static_size": static, "gripper_size": gripper, "renderer": "tiny", "render_observations": False}
    envs = {"builtin": PlayTableEnv(scene, "builtin", **options)}
    if calvin_root:
        envs["official"] = PlayTableEnv(scene, "official", calvin_root=calvin_root, **options)
    rng = np.random.default_rng(0)
    seconds = dict.fromkeys(envs, 0.0)
    try:
        for env in envs.values():
            env.reset(seed=0)
            observe_seconds(env)  # textures and buffers are made at the first image
        for state in range(states):
            first = envs["builtin"]
            first.reset(seed=state)
            motion = rng.uniform(-1, 1, 6)
            for _ in range(10):
                first.step(np.append(motion, 1.0))
            robot, scene_obs = first.robot_obs(), first.scene_obs()
            for name, env in envs.items():
                if env is not first:
                    env.reset(options={"robot_obs": robot, "scene_obs": scene_obs})
                seconds[name] += observe_seconds(env)
    finally:
        for env in envs.values():
            env.close()
    return {name: states / value for name, value in seconds.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", nargs="+", default=["A", "B", "C", "D"])
    parser.add_argument("--states", type=int, default=12)
    parser.add_argument("--static", type=int, default=200, help="pixels of the static camera")
    parser.add_argument("--gripper", type=int, default=84, help="pixels of the gripper camera")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    root = os.environ.get("CALVIN_ROOT", str(REPOSITORY.parent / "shared" / "calvin"))
    if not (Path(root) / "calvin_env").is_dir():
        print("CALVIN_ROOT: no checkout of mees/calvin; measuring the built-in scenes only", file=sys.stderr)
        root = None
    results = {}
    for scene in arguments.scenes:
        rates = results[scene] = measure(scene, root, arguments.states, arguments.static, arguments.gripper)
        line = f"scene {scene}: built-in {rates['builtin']:.1f} observations/s"
        if "official" in rates:
            rates["ratio"] = rates["builtin"] / rates["official"]
            line += f", official {rates['official']:.1f}, ratio {rates['ratio']:.2f}"
        print(line, flush=True)
    if root:
        print(f"smallest ratio {min(rates['ratio'] for rates in results.values()):.2f} (goal: at least 3)")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
