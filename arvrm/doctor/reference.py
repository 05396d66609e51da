"""What this version computes in its own scene D, kept in the package: a comparison that needs no file from outside."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from arvrm.files import write_json

STEPS = 90
"""Three seconds of random actions, the gripper opening and closing."""
_FILE = "resources/table_reference.json"


def measured() -> dict[str, Any]:
    """Return what this machine computes: assets (a hash), robot_obs (15), scene_obs (24), SHA-256 of both images after
    STEPS actions, and of the start states of the 1000 official chains."""
    from arvrm.sim.env import PlayTableEnv

    env = PlayTableEnv("D", "builtin", render_observations=False)
    try:
        env.reset(seed=0)
        rng = np.random.RandomState(0)  # a stream that NumPy keeps for good
        for step in range(STEPS):
            motion = 0.4 * rng.uniform(-1, 1, 6)
            motion[2] -= 0.3  # down to the table, and into contact
            env.step(np.append(motion, 1.0 if step // 30 % 2 else -1.0))
        images = env.render_cameras()
        return {
            "assets": env.description.hash(),
            "robot_obs": env.robot_obs().tolist(),
            "scene_obs": env.scene_obs().tolist(),
            **{name: hashlib.sha256(image.tobytes()).hexdigest() for name, image in images.items()},
        }
    finally:
        env.close()


def kept() -> dict[str, Any]:
    """Return what the package keeps, in the form of `measured`."""
    return json.loads(resources.files("arvrm").joinpath(_FILE).read_text())


def write(place: Path = Path(__file__).parent.parent) -> None:
    """Keep what this machine computes; for whoever changes the built-in scene, where `sim verify` holds."""
    write_json(place / _FILE, measured())
