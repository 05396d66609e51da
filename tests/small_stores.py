"""Small synthetic episode stores, written through the real writer, whose numbers tests can compute by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from arvrm.episodes import Episode, EpisodeStore, EpisodeWriter
from arvrm.interface import TASKS

SENTENCES = {
    "open_drawer": "pull the drawer open",
    "lift_red_block_table": "lift the red block",
    "turn_on_led": "press",
}


def picture(rng: np.random.Generator, frames: int, size: int, colour: tuple[int, int, int]) -> np.ndarray:
    """(frames, size, size, 3) uint8 of one colour with a bright square that wanders to the right."""
    images = np.empty((frames, size, size, 3), dtype=np.uint8)
    images[:] = np.array(colour, dtype=np.uint8)
    images += rng.integers(0, 20, size=(1, size, size, 1), dtype=np.uint8)
    side = max(2, size // 6)
    for frame in range(frames):
        left = 1 + frame * (size - side - 2) // max(1, frames - 1)
        images[frame, size // 2 : size // 2 + side, left : left + side] = 255
    return images


def robot_episode(
    identity: str,
    task: str = "open_drawer",
    group: str = "g0",
    steps: int = 10,
    every: int = 3,
    size: int = 32,
    seed: int = 0,
    colour: tuple[int, int, int] = (40, 90, 160),
    landmarks: bool = False,
) -> Episode:
    """Row n of `robot_obs` has x = 0.001 n and row n of `actions` begins with n / 100, to tell rows apart."""
    rng = np.random.default_rng(seed)
    at = np.arange(0, steps, every, dtype=np.int32)
    robot_obs = np.zeros((steps, 15))
    robot_obs[:, 0] = 0.001 * np.arange(steps)
    robot_obs[:, 3], robot_obs[:, 5], robot_obs[:, 6], robot_obs[:, 14] = np.pi, np.pi / 2, 0.08, 1.0
    actions = np.zeros((steps, 7), dtype=np.float32)
    actions[:, 0] = np.arange(steps) / 100
    actions[:, 6] = np.where(np.arange(steps) < steps // 2, 1, -1)
    arrays = {"robot_obs": robot_obs, "target_pose": robot_obs[:, :6] + 0.01, "actions": actions, "executed": actions}
    if landmarks:
        pixels = np.full((steps, 7, 2), size / 2, dtype=np.float32)
        pixels[:, 6] = np.nan
        arrays |= {"landmarks": np.zeros((steps, 7, 3), dtype=np.float32), "landmark_pixels": pixels}
    images = {
        "rgb_static": picture(rng, len(at), size, colour),
        "rgb_gripper": picture(rng, len(at), size // 2, colour),
    }
    return Episode(
        identity, "robot", SENTENCES.get(task, task), task, "A", "test", group, 30.0, arrays, images, at, {"seed": seed}
    )


def human_episode(
    identity: str,
    task: str = "open_drawer",
    group: str = "h0",
    steps: int = 13,
    every: int = 3,
    size: int = 32,
    seed: int = 0,
    hands: int = 1,
    fps: float = 30.0,
    colour: tuple[int, int, int] = (160, 120, 90),
) -> Episode:
    """A hand that moves to the right at a constant speed; with two hands the left one rests."""
    rng = np.random.default_rng(seed)
    at = np.arange(0, steps, every, dtype=np.int32)
    shape = rng.uniform(-4, 4, size=(21, 3)) * [1, 1, 0.01]
    speed = rng.uniform(0.4, 0.8)
    keypoints = np.zeros((steps, 21, 3))
    keypoints[:] = shape + [size / 3, size / 2, 0]
    resting = keypoints.copy()
    keypoints[:, :, 0] += speed * np.arange(steps)[:, None]
    keypoints[:, 0, 2] = 0
    if hands == 2:
        keypoints = np.concatenate([resting, keypoints], axis=1)
    visible = (keypoints[..., :2] >= 0).all(-1) & (keypoints[..., :2] < size).all(-1)
    arrays = {"keypoints": keypoints.astype(np.float32), "visible": visible}
    images = {"rgb_static": picture(rng, len(at), size, colour)}
    return Episode(identity, "human", SENTENCES.get(task, task), task, "A", "test", group, fps, arrays, images, at, {})


def write(path: Path, episodes: list[Episode], quality: int = 95) -> EpisodeStore:
    with EpisodeWriter(path, {"source": "test"}, jpeg_quality=quality) as writer:
        for episode in episodes:
            writer.append(episode)
    return EpisodeStore(path)


def robot_store(path: Path, tasks: int = 2, per_task: int = 3, **options) -> EpisodeStore:
    """`per_task` episodes of each of the first tasks; group names count up, one group an episode."""
    names = (*SENTENCES, *(t for t in TASKS if t not in SENTENCES))[:tasks]
    episodes = [
        robot_episode(f"r{t}-{n}", task, f"chain{t}-{n}", seed=100 * t + n, colour=(40 + 80 * t, 90, 160), **options)
        for t, task in enumerate(names)
        for n in range(per_task)
    ]
    return write(path, episodes)


def human_store(path: Path, tasks: int = 2, per_task: int = 3, **options) -> EpisodeStore:
    names = (*SENTENCES, *(t for t in TASKS if t not in SENTENCES))[:tasks]
    episodes = [
        human_episode(
            f"h{t}-{n}", task, f"video{t}-{n}", seed=900 + 100 * t + n, colour=(40 + 80 * t, 90, 140), **options
        )
        for t, task in enumerate(names)
        for n in range(per_task)
    ]
    return write(path, episodes)
