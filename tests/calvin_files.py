"""Small data sets in CALVIN's official layout, as tests need them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

TRAINING = {
    "recordings": [(360, 371), (380, 399)],
    "annotations": [
        (362, 366, "pull the drawer open", "open_drawer"),
        (365, 370, "press the button", "turn_on_led"),
        (382, 387, "lift the red block", "lift_red_block_table"),
    ],
    "scenes": {"calvin_scene_A": [0, 379], "calvin_scene_D": [380, 999]},
}
VALIDATION = {
    "recordings": [(50, 55)],
    "annotations": [(50, 54, "close the drawer", "close_drawer")],
    "scenes": {"calvin_scene_D": [0, 99]},
}


def step(rng: np.random.Generator, number: int) -> dict[str, np.ndarray]:
    """One step's arrays: official names, dtypes and shapes; smooth pictures that change with the number."""
    ramp = np.arange(200)
    static = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None] // 2, 3 * number % 256), axis=2).astype(np.uint8)
    move = np.append(rng.uniform(-1, 1, 6), 1.0)
    state = np.append(rng.uniform(-1, 1, 14), 1.0)
    return {
        "rgb_static": static,
        "rgb_gripper": np.ascontiguousarray(static[60:144, 60:144, ::-1]),
        "rgb_tactile": np.full((160, 120, 6), number % 256, np.uint8),
        "depth_static": np.full((200, 200), 3 + number / 1000, np.float32),
        "depth_gripper": np.full((84, 84), 0.25 + number / 1000, np.float32),
        "depth_tactile": np.zeros((160, 120, 2), np.float32),
        "actions": np.append(state[:6] + 0.02 * move[:6], 1.0),
        "rel_actions": move,
        "robot_obs": state,
        "scene_obs": rng.uniform(-1, 1, 24),
    }


def write_split(folder: Path, recordings: list, annotations: list, scenes: dict, seed: int = 0) -> Path:
    """Write `training` or `validation`: a file per recorded step, and the index files."""
    rng = np.random.default_rng(seed)
    (folder / "lang_annotations").mkdir(parents=True)
    for first, last in recordings:
        for number in range(first, last + 1):
            np.savez_compressed(folder / f"episode_{number:07d}.npz", **step(rng, number))
    found = {
        "language": {
            "ann": [text for *_, text, _ in annotations],
            "task": [task for *_, task in annotations],
            "emb": np.zeros((len(annotations), 1, 384), np.float32),
        },
        "info": {"episodes": [], "indx": [(first, last) for first, last, *_ in annotations]},
    }
    np.save(folder / "lang_annotations" / "auto_lang_ann.npy", found)
    np.save(folder / "ep_start_end_ids.npy", np.array(recordings))
    np.save(folder / "ep_lens.npy", np.array([last - first + 1 for first, last in recordings]))
    np.save(folder / "scene_info.npy", scenes)
    (folder / "statistics.yaml").write_text("robot_obs:\n  - mean: [0.5, 1.0]\n    std: [1.0, 2.0]\n")
    return folder


def write_calvin(folder: Path) -> Path:
    """Write a data set of two splits: 32 and 6 steps, 3 and 1 annotations, two scenes."""
    write_split(folder / "training", **TRAINING)
    write_split(folder / "validation", **VALIDATION, seed=1)
    return folder
