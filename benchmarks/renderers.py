"""How TinyRenderer and EGL differ, in images and in time: `python benchmarks/renderers.py [--assets calvin]`.

Both render the start states of the first chains of CALVIN's benchmark, and the worlds 20 steps later. Printed per scene
and camera: mean absolute difference (0 to 255), share of pixels that differ by more than 16 in some channel, and
the fastest image in milliseconds. CALVIN's assets need CALVIN_ROOT.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from scene_options import run, scene_parser

from arvrm.evaluation import official_chains
from arvrm.sim.chains import chain_start
from arvrm.sim.env import PlayTableEnv

STEPS = 20


def compare(scene: str, assets: str, states: int) -> dict[str, dict[str, float]]:
    """Return camera -> mean_difference, share_different, tiny_ms, egl_ms."""
    envs = {
        renderer: PlayTableEnv(scene, assets, renderer=renderer, render_observations=False)
        for renderer in ("tiny", "egl")
    }
    rng = np.random.default_rng(0)
    differences: dict[str, list[tuple[float, float]]] = {camera: [] for camera in envs["tiny"].cameras}
    seconds = {(camera, renderer): [] for camera in differences for renderer in envs}

    def look() -> None:
        for camera, found in differences.items():
            images = {}
            for renderer, env in envs.items():
                begin = time.perf_counter()
                images[renderer] = env.cameras[camera].render()[0].astype(int)
                seconds[camera, renderer].append(time.perf_counter() - begin)
            difference = np.abs(images["tiny"] - images["egl"])
            found.append((difference.mean(), (difference.max(axis=-1) > 16).mean()))

    try:
        for chain in official_chains()[:states]:
            robot_obs, scene_obs = chain_start(chain, envs["tiny"])
            actions = np.append(rng.uniform(-1, 1, 6), 1.0)
            for env in envs.values():
                env.reset(options={"robot_obs": robot_obs, "scene_obs": scene_obs})
            look()
            for env in envs.values():
                for _ in range(STEPS):
                    env.step(actions)
            look()
    finally:
        for env in envs.values():
            env.close()
    return {
        camera: {
            "mean_difference": round(float(np.mean(found, axis=0)[0]), 2),
            "share_different": round(float(np.mean(found, axis=0)[1]), 4),
            "tiny_ms": round(1000 * float(np.min(seconds[camera, "tiny"])), 2),
            "egl_ms": round(1000 * float(np.min(seconds[camera, "egl"])), 2),
        }
        for camera, found in differences.items()
    }


def measure_all(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare scene by scene and print a table."""
    results = {}
    print("scene  camera   mean difference  pixels that differ  tiny ms  egl ms")
    for scene in arguments.scenes:
        results[scene] = compare(scene, "official" if arguments.assets == "calvin" else "builtin", arguments.states)
        for camera, row in results[scene].items():
            print(
                f"{scene:5}  {camera:7}  {row['mean_difference']:15.1f}  {100 * row['share_different']:16.1f} %  "
                f"{row['tiny_ms']:7.1f}  {row['egl_ms']:6.1f}",
                flush=True,
            )
    return results


if __name__ == "__main__":
    parser = scene_parser(__doc__)
    parser.add_argument("--scenes", nargs="+", default=["A", "B", "C", "D"])
    parser.add_argument("--states", type=int, default=8)
    run(parser, measure_all)
