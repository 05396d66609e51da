"""What calvin_env.utils.utils and calvin_agent.utils.utils have that evaluation scripts use."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from arvrm.robots.calvin import EULER_STEP_RAD, POSITION_STEP_M


class EglDeviceNotFoundError(Exception):
    """CALVIN's; nothing here raises it."""


def get_egl_device_id(cuda_id: int) -> int:
    """Return 0: images are drawn in software unless told. With `--renderer egl`, set EGL_VISIBLE_DEVICES yourself."""
    return 0


def set_egl_device(device: Any) -> None:
    """Do nothing, for the same reason."""


def unit_vector(vector: Any) -> np.ndarray:
    return np.asarray(vector) / np.linalg.norm(vector)


def angle_between(first: Any, second: Any) -> float:
    """Return the angle (rad) between two vectors."""
    return np.arccos(np.clip(np.dot(unit_vector(first), unit_vector(second)), -1.0, 1.0))


def angle_between_angles(a: Any, b: Any) -> Any:
    """Return b - a (rad), wrapped to [-pi, pi)."""
    return (b - a + np.pi) % (2 * np.pi) - np.pi


def xyzw_to_wxyz(quaternion: Any) -> list:
    x, y, z, w = quaternion
    return [w, x, y, z]


def wxyz_to_xyzw(quaternion: Any) -> list:
    w, x, y, z = quaternion
    return [x, y, z, w]


def to_relative_action(
    actions: np.ndarray,
    robot_obs: np.ndarray,
    max_pos: float = POSITION_STEP_M,
    max_orn: float = EULER_STEP_RAD,
) -> np.ndarray:
    """Return the relative action (7,) that leads from a robot_obs (15,) to an absolute one (7,); each in [-1, 1]."""
    position = np.clip(actions[:3] - robot_obs[:3], -max_pos, max_pos) / max_pos
    euler = np.clip(angle_between_angles(robot_obs[3:6], actions[3:6]), -max_orn, max_orn) / max_orn
    return np.concatenate([position, euler, actions[-1:]])


def timeit(method: Callable) -> Callable:
    """Print how long each call of `method` takes, or put it into the keyword argument log_time."""

    @functools.wraps(method)
    def timed(*arguments: Any, **keywords: Any) -> Any:
        begin = time.time()
        result = method(*arguments, **keywords)
        milliseconds = (time.time() - begin) * 1000
        if "log_time" in keywords:
            keywords["log_time"][keywords.get("log_name", method.__name__.upper())] = int(milliseconds)
        else:
            print(f"{method.__name__!r}  {milliseconds:.2f} ms")
        return result

    return timed


def get_all_checkpoints(experiment_folder: Path) -> list[Path]:
    """Return the .ckpt files of a folder or of its saved_models, the oldest first."""
    folder = Path(experiment_folder)
    folder = folder / "saved_models" if (folder / "saved_models").is_dir() else folder
    if not folder.is_dir():
        return []
    return sorted(folder.glob("*.ckpt"), key=lambda file: file.stat().st_mtime)


def get_last_checkpoint(experiment_folder: Path) -> Path | None:
    """Return the newest of them, if there is one."""
    return next(reversed(get_all_checkpoints(experiment_folder)), None)


def get_checkpoints_for_epochs(experiment_folder: Path, epochs: Iterable[int] | str) -> list[Path]:
    """Return those of them that are named epoch=N, for the given N (numbers, or a text with commas)."""
    wanted = {int(epoch) for epoch in (epochs.split(",") if isinstance(epochs, str) else epochs)}
    return [file for file in get_all_checkpoints(experiment_folder) if int(file.stem.split("=")[1]) in wanted]


def format_sftp_path(path: Path) -> Path:
    """Return where a desktop mounts sftp:HOST paths; any other path as it is."""
    text = Path(path).as_posix()
    return Path(f"/run/user/{os.getuid()}/gvfs/sftp:host={text[6:]}") if text.startswith("sftp") else path
