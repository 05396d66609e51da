"""calvin_env's configuration files: what of them is followed, and what is refused since it would be another robot."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from arvrm.calvin.options import options
from arvrm.files import read_bytes
from arvrm.interface import UserError
from arvrm.sim.actions import JOINT_HIGH, JOINT_LOW
from arvrm.sim.scene import SceneDescription, official_description, resolve_calvin_root, scene_description
from arvrm.sim.table import PHYSICS_HZ

ROBOT = {
    "filename": "franka_panda/panda_longer_finger.urdf",
    "max_joint_force": 200.0,
    "gripper_force": 200,
    "arm_joint_ids": [0, 1, 2, 3, 4, 5, 6],
    "gripper_joint_ids": [9, 11],
    "gripper_joint_limits": [0, 0.04],
    "tcp_link_id": 15,
    "end_effector_link_id": 7,
    "use_nullspace": True,
    "max_velocity": 2,
    "use_ik_fast": False,
    "euler_obs": True,
    "lower_joint_limits": JOINT_LOW.tolist(),
    "upper_joint_limits": JOINT_HIGH.tolist(),
    "max_rel_pos": 0.02,
    "max_rel_orn": 0.05,
    "magic_scaling_factor_pos": 1,
    "magic_scaling_factor_orn": 1,
    "use_target_pose": True,
}
"""The robot that is reproduced, by the keys of calvin_env's configuration."""

_SCENE_LETTER = re.compile(r"calvin_table_([A-D])/")


def plain(config: Any) -> Any:
    """Return dictionaries and lists in place of OmegaConf's, with all references followed."""
    if type(config).__module__.startswith("omegaconf"):
        from omegaconf import OmegaConf

        return OmegaConf.to_container(config, resolve=True)
    return config


def load(file: Path) -> dict[str, Any]:
    """Return what a YAML file says; references (${...}) stay texts.

    Raises:
        UserError: no such file, or no YAML.
    """
    remedy = "give the training or validation folder of a CALVIN data set"
    try:
        content = yaml.safe_load(read_bytes(file, remedy))
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not YAML ({' '.join(str(error).split())}); {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: no configuration; {remedy}")
    return content


def check_env(seed: Any, use_vr: Any, bullet_time_step: Any, control_freq: Any) -> None:
    """Refuse an environment that would behave otherwise than CALVIN's."""
    wanted = (
        ("seed", seed, 0),  # blocks are created where it says, which Bullet remembers
        ("use_vr", use_vr, False),
        ("bullet_time_step", bullet_time_step, PHYSICS_HZ),
        ("control_freq", control_freq, 30),
    )
    for name, value, ours in wanted:
        if value != ours:
            raise UserError(f"env.{name}: {value!r}; arvrm.calvin has {ours!r} only")


def check_robot(config: Mapping[str, Any]) -> None:
    """Refuse a robot that is not CALVIN's Panda with longer fingers."""
    for name, ours in ROBOT.items():
        value = config.get(name, ours)
        value = list(value) if isinstance(value, tuple) else value
        if value != ours:
            raise UserError(f"robot.{name}: {value!r}; arvrm.calvin has {ours!r} only")


def describe(config: Mapping[str, Any]) -> SceneDescription:
    """Return the scene that a configuration describes, from the checkout's files or, if so chosen, built in.

    Raises:
        UserError: the scene is none of A to D, has blocks with places of their own, or there is no checkout.
    """
    objects = config.get("objects", {})
    table = objects.get("fixed_objects", {}).get("table", {}).get("file", "")
    letter = _SCENE_LETTER.search(str(table))
    if letter is None:
        raise UserError(f"scene: table {table!r} is none of calvin_table_A to D; arvrm.calvin has those only")
    for name, block in objects.get("movable_objects", {}).items():
        if "any" != block.get("initial_pos") or "any" != block.get("initial_orn"):
            raise UserError(f"scene: {name} has a place of its own; arvrm.calvin has initial_pos and _orn 'any' only")
    if options().assets == "builtin":
        return scene_description(letter[1])
    return official_description(letter[1], config, _folder(str(config.get("data_path", "data"))))


def _folder(data_path: str) -> Path:
    """Return the folder with data and conf: a data_path of one's own may be absolute."""
    own = Path(data_path)
    return own.parent if own.is_absolute() and own.is_dir() else resolve_calvin_root(None) / "calvin_env"
