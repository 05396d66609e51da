"""What a trained network knows, read off without a rollout: the numbers behind docs/notebook.md's explanations.

    python benchmarks/probe.py place --checkpoint RUN --store STORE      # stage 1 (or a policy) with loss.destination
    python benchmarks/probe.py offsets --checkpoint RUN --store STORE    # a policy with loss.geometry
    python benchmarks/probe.py retrieval --index INDEX --store STORE     # robot episodes against the index's clips

`place`: how the place that the image is trained to mark goes with where the hand's wrist, or the gripper, is ten frames
(a second) later: correlations across and down the image, and the mean error in pixels of 96. `offsets`: how far off the
policy takes each landmark to be. `retrieval`: how often the best clip has the robot episode's own task, by language, by
frame features as they are or changed in some way, and by sums of both. Stores are those of `arvrm generate`.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from arvrm.episodes import EpisodeStore
from arvrm.geometry import intrinsics, look_at, project
from arvrm.interface import LANDMARK_UNIT_M
from arvrm.model.checkpoint import load_checkpoint
from arvrm.model.encoders import TextEncoder, fit_images
from arvrm.model.heatmaps import centres
from arvrm.retrieval import ClipIndex, frame_features, resample
from arvrm.sim.builtin import builtin_scene
from arvrm.training import text_table
from arvrm.windows import EpisodeTable, HumanWindows, RobotWindows, WindowConfig, decode_frames

AHEAD, STRIDE, SIZE = 10, 3, 96


@torch.no_grad()
def place(options: argparse.Namespace) -> None:
    checkpoint, store = load_checkpoint(options.checkpoint, "cpu"), EpisodeStore(options.store)
    network = getattr(checkpoint.model, "vlm", checkpoint.model)
    robot = store.manifest["config"]["embodiment"] == "robot"
    table = EpisodeTable([store], "robot" if robot else "human", STRIDE)
    text, bank = text_table(table, TextEncoder(checkpoint.config.text)), decode_frames(table, "rgb_static")
    rows = np.random.default_rng(0).choice(len(table.step_of_image), min(1000, len(table.step_of_image)), replace=False)
    if robot:
        camera = builtin_scene("A").static_camera  # the same in all built-in scenes
        view = look_at(camera.eye, camera.target, camera.up), intrinsics(camera.fov, SIZE, SIZE)
        gripper = project(table.array("robot_obs")[:, :3], *view)[:, :2]
        steps, end = table.step_of_image[rows], table.step_start[table.episode_of_image[rows] + 1]
        known = steps + AHEAD * STRIDE < end
        now, later = gripper[steps], gripper[np.minimum(steps + AHEAD * STRIDE, end - 1)]
    else:
        windows = HumanWindows(table, WindowConfig(history=1, stride=STRIDE), 21, text, bank, horizon=AHEAD)
        batch = windows.batch(rows)
        known = (batch["future_visible"][:, -1, 0] & batch["visible"][:, 0, 0]).numpy()
        poses = batch["keypoints"][:, 0, 0, :2], batch["future_keypoints"][:, -1, 0, :2]
        now, later = ((pose.numpy() + 1) * SIZE / 2 for pose in poses)
    marked = []
    for start in range(0, len(rows), 128):
        some = rows[start : start + 128]
        z_l = network.language(*text.take(table.sentence[table.episode_of_image[some]]))
        images, _ = fit_images(torch.from_numpy(bank.take(some[:, None])), network.config.vision.static_size)
        marked.append(centres(network.static_encoder(images, z_l)[1])[:, -1])
    marked = (torch.cat(marked).numpy()[known] + 1) * SIZE / 2
    now, later = now[known], later[known]
    across, down = (np.corrcoef(marked[:, i], later[:, i])[0, 1] for i in range(2))
    print(f"{len(later)} windows: correlation {across:.2f} across, {down:.2f} down")
    for name, guess in (("marked", marked), ("stays", now), ("mean", later.mean(0))):
        print(f"{name:8} off by {np.linalg.norm(guess - later, axis=1).mean():.1f} px of {SIZE}")


@torch.no_grad()
def offsets(options: argparse.Namespace) -> None:
    checkpoint = load_checkpoint(options.checkpoint, "cpu")
    table = EpisodeTable([EpisodeStore(options.store)], "robot", STRIDE)
    frames = {camera.role: decode_frames(table, camera.name) for camera in table.robot.cameras}
    text = text_table(table, TextEncoder(checkpoint.config.text))
    windows = RobotWindows(table, WindowConfig(history=1, stride=STRIDE), text, frames, checkpoint.config.chunk)
    batch = windows.batch(np.random.default_rng(0).choice(len(table.step_of_image), 500, replace=False))
    points = checkpoint.model.encode_frames(batch)["static_points"]
    read, _ = checkpoint.model.geometry(points, batch["components"], batch["state"])
    known = batch["landmark_mask"][:, 0]
    metres = (read - batch["landmark_offsets"]).norm(dim=-1)[:, 0] * LANDMARK_UNIT_M
    pixels = (points[:, 0, : known.shape[1]] - batch["landmark_pixels"][:, 0]).norm(dim=-1) * SIZE / 2
    print("median per landmark: three blocks, slider, drawer, button, switch")
    for name, values in (("cm", 100 * metres), ("px", pixels)):
        print(name, *(f"{float(values[known[:, i], i].median()):.1f}" for i in range(known.shape[1])))


def retrieval(options: argparse.Namespace, frames: int = 8) -> None:
    index = ClipIndex.load(options.index)
    table = EpisodeTable([EpisodeStore(options.store)], "robot", 1)
    rows = table.image_start[:-1, None] + resample(np.diff(table.image_start), frames)
    robot = np.asarray(frame_features(table, index.encoders).take(rows), dtype=np.float32)
    clips = index.resampled(np.arange(len(index)), frames)
    own, theirs = (np.array(list(names)) for names in ([table.tasks[i] for i in table.task], index.tasks))
    language = index.encoders.sentences([table.sentences[i] for i in table.sentence]) @ np.asarray(index.text).T

    def whitened(features: np.ndarray, basis: np.ndarray) -> np.ndarray:
        reduced = (features - features.mean((0, 1))) @ basis
        return reduced / reduced.std((0, 1))

    flat = (clips - clips.mean((0, 1))).reshape(-1, clips.shape[-1])
    basis = np.linalg.svd(flat, full_matrices=False)[2][:32].T
    changes = {
        "as they are": lambda features: features,
        "centred": lambda features: features - features.mean((0, 1)),
        "whitened": lambda features: whitened(features, basis),
        "change": lambda features: features - features.mean(1, keepdims=True),
    }
    scores = {"language": language}
    for name, change in changes.items():
        one, other = (_unit(change(features)).reshape(len(features), -1) for features in (robot, clips))
        scores[name] = one @ other.T
        scores[f"{name}, sum, language"] = scores[name] + language
        scores[f"{name}, mean, language"] = scores[name] / frames + language
    print(f"{len(robot)} episodes, {len(clips)} clips: the best clip, the best four have the task")
    for name, score in scores.items():
        best = theirs[np.argsort(-score, axis=1)[:, :4]] == own[:, None]
        print(f"{name:28} {best[:, 0].mean():.3f} {best.mean():.3f}")


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("place", "offsets", "retrieval"))
    parser.add_argument("--store", required=True, help="store that `arvrm generate` made")
    parser.add_argument("--checkpoint", help="a run's folder; for place and offsets")
    parser.add_argument("--index", help="clip index; for retrieval")
    options = parser.parse_args()
    needed = "index" if options.what == "retrieval" else "checkpoint"
    if getattr(options, needed) is None:
        parser.error(f"{options.what} needs --{needed}")
    {"place": place, "offsets": offsets, "retrieval": retrieval}[options.what](options)


if __name__ == "__main__":
    main()
