"""A robot that is not CALVIN's: four joints with absolute targets, three cameras; and small stores of it."""

from pathlib import Path

import numpy as np

from arvrm.episodes import Episode, EpisodeStore, EpisodeWriter
from arvrm.interface import Camera
from arvrm.robots import register
from arvrm.robots.vector import Ranges, VectorRobot

ROBOT = VectorRobot(
    name="four-joints",
    components=("base", "shoulder", "elbow", "grip"),
    component_units=("rad", "rad", "rad", "mm"),
    statistics=Ranges(low=(-3.0, -1.5, 0.0, 0.0), high=(3.0, 1.5, 2.5, 60.0)),
    cameras=(Camera("front", "static"), Camera("side", "side"), Camera("hand", "wrist")),
    control_hz=20.0,
)
ONE_CAMERA = VectorRobot(
    name="two-joints",
    components=("lift", "suction"),
    component_units=("m", ""),
    statistics=Ranges(low=(0.0, 0.0), high=(0.5, 1.0)),
    cameras=(Camera("top", "static"),),
    binary=1,
    control_hz=10.0,
)
for robot in (ROBOT, ONE_CAMERA):
    register(robot)

SENTENCES = {"reach": "reach for the bell", "rest": "go home"}


def episode(robot: VectorRobot, number: int, task: str = "reach", steps: int = 12, every: int = 3) -> Episode:
    """Joints go from one place to another; each action is the next step's place."""
    rng = np.random.default_rng(number)
    ends = np.stack([robot.example(rng)["state"] for _ in range(2)])
    path = np.linspace(*ends, steps + 1)
    actions = path[1:].astype(np.float32)
    if robot.binary:
        actions[:, -robot.binary :] = np.where(np.arange(steps) < steps // 2, -1.0, 1.0)[:, None]
    at = np.arange(0, steps, every, dtype=np.int32)
    size = {camera.name: 32 if camera.role == "static" else 16 for camera in robot.cameras}
    images = {name: rng.integers(0, 256, (len(at), side, side, 3), dtype=np.uint8) for name, side in size.items()}
    arrays = {"state": path[:-1], "actions": actions}
    return Episode(
        f"{robot.name}-{task}-{number}", "robot", SENTENCES[task], task, "bench", "test", f"g{number % 3}",
        robot.control_hz, arrays, images, at, {}, robot=robot.name,
    )  # fmt: skip


def store(folder: Path, robot: VectorRobot = ROBOT, episodes: int = 6) -> EpisodeStore:
    with EpisodeWriter(folder, {"source": "test"}) as writer:
        for number in range(episodes):
            writer.append(episode(robot, number, ("reach", "rest")[number % 2]))
    return EpisodeStore(folder)
