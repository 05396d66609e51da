"""Replays recordings of the official simulator and measures how far this one is from them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from arvrm.geometry import angle_difference
from arvrm.interface import SCENES, TASKS, UserError
from arvrm.sim.env import PlayTableEnv
from arvrm.sim.scene import resolve_calvin_root
from arvrm.sim.tasks import TaskOracle

_ROBOT_ANGLES = np.zeros(15, bool)
_ROBOT_ANGLES[3:6] = True
_ROBOT_ANGLES[7:14] = True
_SCENE_ANGLES = np.zeros(24, bool)
for _block in range(3):
    _SCENE_ANGLES[6 + 6 * _block + 3 : 6 + 6 * _block + 6] = True

_KEYS = ("scene", "reset_robot_obs", "reset_scene_obs", "actions", "robot_obs", "scene_obs")


def verify_recording(path: str | Path, calvin_root: str | None = None, renderer: str = "tiny") -> dict[str, Any]:
    """Replay one recording in a freshly loaded official world.

    Args:
        path: an .npz file with scene, reset_robot_obs (15,), reset_scene_obs (24,), actions (N, 7), robot_obs (N, 15),
            scene_obs (N, 24); optionally after_reset_robot_obs, after_reset_scene_obs; task, subtask_start (actions
            applied when the task began; 0 if absent), fired_at (actions applied when its predicate first held; -1:
            never), tasks_done (all tasks that hold at the end); depth_static, depth_gripper and, beside it,
            <name>_static.png and <name>_gripper.png, all after the last action.
        calvin_root: official checkout; None: environment variable CALVIN_ROOT.

    Returns:
        file; robot_error and scene_error: largest absolute errors, angles modulo 2 pi; rgb_error (0 to 255) and
        depth_error (m): largest absolute errors over both cameras, None where not recorded; fired_equal; tasks_equal
        None where not recorded.

    Raises:
        UserError: the file or CALVIN is missing, or the file is no recording.
    """
    path = Path(path)
    record = _load(path)
    depths = {name: record[f"depth_{name}"] for name in ("static", "gripper") if f"depth_{name}" in record}
    images = {name: _image(path.with_name(f"{path.stem}_{name}.png")) for name in ("static", "gripper")}
    images = {name: image for name, image in images.items() if image is not None}
    sizes = {
        f"{name}_size": len(array)
        for pictures in (depths, images)
        for name, array in pictures.items()
    }  # fmt: skip
    env = PlayTableEnv(
        str(record["scene"]), "official", calvin_root, render_observations=False, renderer=renderer, **sizes
    )
    try:
        return {"file": str(path), **_replay(env, record, images, depths)}
    finally:
        env.close()


def main_verify(files: Iterable[str | Path], as_json: bool = False, calvin_root: str | None = None) -> int:
    """Verify recordings, print a table or JSON to stdout, and return the exit code: 0 if all is equal, else 1.

    All errors must be 0 and all decisions equal, except that a pixel may not differ at all. Raises UserError as
    `verify_recording` does, before anything is printed in JSON mode.
    """
    files = [Path(file) for file in files]
    if not files:
        raise UserError("sim verify: no recordings given; name .npz files")
    calvin_root = str(resolve_calvin_root(calvin_root))
    width = max(len(file.name) for file in files)
    results = []
    if not as_json:
        print(f"{'recording':{width}}  {'robot':>9}  {'scene':>9}  {'rgb':>5}  {'depth':>9}  fired  tasks")
    for file in files:
        result = verify_recording(file, calvin_root)
        results.append(result)
        if not as_json:
            print(
                f"{file.name:{width}}  {result['robot_error']:9.2g}  {result['scene_error']:9.2g}  "
                f"{_cell(result['rgb_error'], '5.0f'):>5}  {_cell(result['depth_error'], '9.2g'):>9}  "
                f"{_word(result['fired_equal']):5}  {_word(result['tasks_equal']):5}",
                flush=True,
            )
    if as_json:
        print(json.dumps(results, indent=1))
    equal = sum(map(_is_equal, results))
    if not as_json:
        print(f"{equal} of {len(results)} recordings are reproduced exactly")
    return 0 if equal == len(results) else 1


def _replay(env: PlayTableEnv, record: dict, images: dict, depths: dict) -> dict[str, Any]:
    oracle, task, begin = TaskOracle(), str(record.get("task", "")), int(record.get("subtask_start", 0))
    observation, info = env.reset(
        options={"robot_obs": record["reset_robot_obs"], "scene_obs": record["reset_scene_obs"]}
    )
    robot = [observation["robot_obs"] - record.get("after_reset_robot_obs", observation["robot_obs"])]
    scene = [observation["scene_obs"] - record.get("after_reset_scene_obs", observation["scene_obs"])]
    start = info
    fired = -1
    for count, action in enumerate(record["actions"], 1):
        observation, _, _, _, info = env.step(action)
        robot.append(observation["robot_obs"] - record["robot_obs"][count - 1])
        scene.append(observation["scene_obs"] - record["scene_obs"][count - 1])
        if count == begin:
            start = info
        if task and fired < 0 and count > begin and oracle.completed(start, info, (task,)):
            fired = count
    pictures = env.render_cameras(depth=bool(depths)) if images or depths else {}
    done = oracle.completed(start, info)
    recorded_tasks = {str(name) for name in np.ravel(record.get("tasks_done", []))}
    return {
        "robot_error": _largest(robot, _ROBOT_ANGLES),
        "scene_error": _largest(scene, _SCENE_ANGLES),
        "rgb_error": _worst(images, {name: pictures.get(f"rgb_{name}") for name in images}),
        "depth_error": _worst(depths, {name: pictures.get(f"depth_{name}") for name in depths}),
        "fired_equal": fired == int(record["fired_at"]) if "fired_at" in record else None,
        "tasks_equal": done == recorded_tasks if "tasks_done" in record else None,
    }


def _largest(errors: list[np.ndarray], angles: np.ndarray) -> float:
    errors = np.array(errors)
    return float(np.abs(np.where(angles, angle_difference(errors, 0.0), errors)).max())


def _worst(recorded: dict, ours: dict) -> float | None:
    if not recorded:
        return None
    for name, image in recorded.items():
        if image.shape != ours[name].shape:
            raise UserError(f"recording: {name}: image and depth differ in size; record them alike")
    return max(float(np.abs(ours[name].astype(np.float64) - recorded[name]).max()) for name in recorded)


def _is_equal(result: dict[str, Any]) -> bool:
    errors = [result[key] for key in ("robot_error", "scene_error", "rgb_error", "depth_error")]
    return False not in (result["fired_equal"], result["tasks_equal"]) and not any(errors)


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            record = {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise UserError(f"{path}: no such recording; give .npz files") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not a recording ({str(error).splitlines()[0]}); give .npz files") from error
    except Exception as error:  # zipfile and zlib have errors of their own for damaged archives
        raise UserError(f"{path}: damaged ({error}); copy the recording again") from error
    for key in _KEYS:
        if key not in record:
            raise UserError(f"{path}: no {key!r} in this recording; record it again")
    count = len(record["actions"]) if record["actions"].ndim == 2 else -1
    shapes = {"actions": (count, 7), "robot_obs": (count, 15), "scene_obs": (count, 24), "after_reset_robot_obs": (15,),
              "after_reset_scene_obs": (24,)}  # fmt: skip
    for key, shape in shapes.items():
        if key in record and record[key].shape != shape:
            raise UserError(f"{path}: {key} has shape {record[key].shape}, not {shape}; record it again")
    if str(record["scene"]) not in SCENES:
        raise UserError(f"{path}: unknown scene {str(record['scene'])!r}; record one of {', '.join(SCENES)}")
    if str(record.get("task", "")) not in ("", *TASKS):
        raise UserError(f"{path}: unknown task {str(record['task'])!r}; record one of CALVIN's or none")
    for name in ("static", "gripper"):
        if f"depth_{name}" in record and record[f"depth_{name}"].ndim != 2:
            raise UserError(f"{path}: depth_{name} has shape {record[f'depth_{name}'].shape}, not (size, size)")
    return record


def _image(path: Path) -> np.ndarray | None:
    if not path.exists():
        return None
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path}: not an image; copy the recording again") from error


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _word(value: bool | None) -> str:
    return "-" if value is None else "equal" if value else "OTHER"
