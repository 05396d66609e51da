"""calvin_env.envs.play_table_env: the play table with the interface of calvin_env 797142c."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from arvrm.calvin import settings
from arvrm.calvin.cameras import Camera, GripperCamera, StaticCamera
from arvrm.calvin.missing import Missing, MissingName, say
from arvrm.calvin.options import options
from arvrm.calvin.others import Env
from arvrm.calvin.world import CalvinTable, PlayTableScene, Robot
from arvrm.interface import UserError
from arvrm.sim.env import draw_blocks
from arvrm.sim.render import choose_renderer

CAMERAS = {
    "calvin_env.camera.static_camera.StaticCamera": StaticCamera,
    "calvin_env.camera.gripper_camera.GripperCamera": GripperCamera,
}
TACTILE = "calvin_env.camera.tactile_sensor.TactileSensor"
ACTION_TYPES = {
    "cartesian_rel": "relative",
    "cartesian_abs": "absolute",
    "joint_rel": "joint_relative",
    "joint_abs": "joint_absolute",
}


class PlayTableSimEnv(Env):
    """CALVIN's environment: one world, whose observations have images and depth of all cameras.

    Args:
        robot_cfg, scene_cfg, cameras: sections of a data set's merged_config.yaml, as OmegaConf's or as dictionaries.
        seed, use_vr, bullet_time_step, control_freq: as CALVIN's data sets have them; others are refused.
        show_gui: there is no window; a line says so.
        use_scene_info: whether infos have "scene_info", which the task oracle needs.
        use_egl: not used; `python -m arvrm.calvin --renderer` chooses.

    Raises:
        UserError: the configuration asks for what is not reproduced, or CALVIN's files are missing.
    """

    metadata = {"render.modes": ["rgb_array"]}

    def __init__(
        self, robot_cfg: Any, seed: int, use_vr: bool, bullet_time_step: float, cameras: Any, show_gui: bool,
        scene_cfg: Any, use_scene_info: bool, use_egl: bool, control_freq: int = 30,
    ) -> None:  # fmt: skip
        settings.check_env(seed, use_vr, bullet_time_step, control_freq)
        settings.check_robot(settings.plain(robot_cfg))
        description = settings.describe(settings.plain(scene_cfg))
        if show_gui:
            say("show_gui=True: there is no window")
        renderer = choose_renderer(options().renderer)
        say(f"scene {description.name}, {description.assets} assets, renderer {renderer} (--renderer changes it)")
        self._table = CalvinTable(description, render_observations=False, renderer=renderer)
        self.use_vr, self.show_gui, self.use_scene_info, self.use_egl = use_vr, show_gui, use_scene_info, use_egl
        self.control_freq, self.action_repeat = control_freq, int(bullet_time_step // control_freq)
        self.seed(seed)
        self.p = _Client(self._table)
        self.robot, self.scene = Robot(self._table), PlayTableScene(self._table)
        self.cameras = self._cameras(settings.plain(cameras) or {}, renderer)

    @property
    def cid(self) -> int:
        return self._table._client

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Seed what `reset()` without a scene_obs draws."""
        self.np_random = np.random.Generator(np.random.PCG64(seed))
        return [seed]

    def reset(self, robot_obs: Any = None, scene_obs: Any = None) -> dict[str, Any]:
        """Start from given states, in a world made anew; return the observation.

        Args:
            robot_obs: (15,) of which joints and gripper width are restored; None: the robot's rest pose.
            scene_obs: (24,), blocks in the scene file's order; None: doors closed, lights off, blocks at random (by
                the generator that `seed` seeds; not CALVIN's draws).
        """
        if robot_obs is None:
            robot_obs = np.zeros(15)
            robot_obs[6], robot_obs[7:14] = 0.08, self._table.description.rest_joints
        if scene_obs is None:
            scene_obs = np.zeros(24)
            scene_obs[6:] = draw_blocks(self._table.description, self.np_random).ravel()
        self._table.given_gripper = 1
        self._table.reset(options={"robot_obs": robot_obs, "scene_obs": scene_obs})
        return self.get_obs()

    def step(self, action: Any) -> tuple[dict[str, Any], int, bool, dict[str, Any]]:
        """Apply an action for 1/30 s; return observation, 0, False and info.

        Args:
            action: (7,) relative; three parts (position, Euler angles or quaternion, gripper) absolute; or
                {"type": one of ACTION_TYPES, "action": numbers}.

        Raises:
            UserError: another shape, a NaN, or a gripper value that is neither -1 nor 1.
        """
        kind, values, gripper = _action(action)
        self._table.action_kind = kind
        self._table.step(values)
        self._table.given_gripper = gripper
        return self.get_obs(), 0, False, self.get_info()

    def get_obs(self) -> dict[str, Any]:
        """Return "rgb_obs", "depth_obs", "robot_obs" (15,) and "scene_obs" (24,), both float64."""
        rgb, depth = self.get_camera_obs()
        return {"rgb_obs": rgb, "depth_obs": depth, **self.get_state_obs()}

    def get_state_obs(self) -> dict[str, np.ndarray]:
        return {"robot_obs": self._table.robot_obs(), "scene_obs": self._table.scene_obs()}

    def get_camera_obs(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return "rgb_NAME" (H, W, 3) uint8 and "depth_NAME" (H, W) float32 in metres of every camera."""
        rgb, depth = _Images(), _Images()
        for camera in self.cameras:
            rgb[f"rgb_{camera.name}"], depth[f"depth_{camera.name}"] = camera.render()
        return rgb, depth

    def get_info(self) -> dict[str, Any]:
        """Return "robot_info" and, if asked for, "scene_info"."""
        info = {"robot_info": self._table.robot_info()}
        if self.use_scene_info:
            info["scene_info"] = self.get_scene_info()
        return info

    def get_scene_info(self) -> dict[str, Any]:
        return self._table.scene_info()

    def render(self, mode: str = "human") -> np.ndarray:
        """Return the static camera's image for mode "rgb_array"."""
        if mode != "rgb_array":
            raise Missing(f"PlayTableSimEnv.render: mode {mode!r} needs a window, which arvrm.calvin has not")
        return self.get_camera_obs()[0]["rgb_static"]

    def close(self) -> None:
        self._table.close()

    def __getattr__(self, name: str) -> Any:
        raise MissingName(
            f"calvin_env's PlayTableSimEnv.{name} is not part of arvrm.calvin; docs/dropin.md lists what is"
        )

    def _cameras(self, sections: Mapping[str, Any], renderer: str) -> list[Any]:
        made = []
        for name, section in sections.items():
            section = dict(section)
            target = section.pop("_target_", None)
            if target == TACTILE:
                say(f"camera {name!r} is left out: tactile images take tacto's renderer, which arvrm.calvin has not")
                continue
            place = {"cid": self.cid, "robot_id": self.robot.robot_uid, "objects": ()}
            if target in CAMERAS:
                camera: Camera = CAMERAS[target](**section, **place)
                camera.renderer = renderer
            else:
                from hydra.utils import instantiate

                camera = instantiate({"_target_": target, **section}, **place)
            made.append(camera)
        return made


def get_env(dataset_path: str | Path, obs_space: Any = None, show_gui: bool = True, **kwargs: Any) -> PlayTableSimEnv:
    """Return the environment that a data set was recorded in.

    Args:
        dataset_path: its training or validation folder, with .hydra/merged_config.yaml.
        obs_space: keep only the cameras of its "rgb_obs" and "depth_obs".
        kwargs: scene: another scene of the checkout, such as "calvin_scene_A".

    Raises:
        UserError: a file is missing, or asks for what is not reproduced.
    """
    file = Path(dataset_path) / ".hydra" / "merged_config.yaml"
    config = settings.load(file)
    for section in ("cameras", "scene", "robot", "env"):
        if not isinstance(config.get(section), Mapping):
            raise UserError(f"{file}: no section {section!r}; give the folder of a CALVIN data set")
    cameras = config["cameras"]
    if obs_space is not None:
        wanted = {key.split("_")[1] for key in (*obs_space["rgb_obs"], *obs_space["depth_obs"])}
        cameras = {name: section for name, section in cameras.items() if name in wanted}
    scene = config["scene"]
    if "scene" in kwargs:
        root = settings.resolve_calvin_root(None)
        scene = settings.load(root / "calvin_env" / "conf" / "scene" / f"{kwargs['scene']}.yaml")
    env = {key: config["env"][key] for key in ("seed", "bullet_time_step", "control_freq") if key in config["env"]}
    return PlayTableSimEnv(
        robot_cfg=config["robot"], scene_cfg=scene, cameras=cameras, show_gui=show_gui, use_vr=False,
        use_scene_info=True, use_egl=False, **{"seed": 0, "bullet_time_step": 240.0, **env},
    )  # fmt: skip


class _Images(dict):
    """Images by key; one that is not there says which are. Copies and pickles are plain dictionaries."""

    def __missing__(self, key: str) -> Any:
        raise KeyError(f"arvrm.calvin has no {key!r} here, but {', '.join(self) or 'no camera'}")

    def __reduce__(self) -> tuple:
        return dict, (dict(self),)


class _Client:
    """PyBullet, bound to the environment's world, as pybullet_utils' BulletClient is."""

    def __init__(self, table: CalvinTable) -> None:
        self._table = table

    def __getattr__(self, name: str) -> Any:
        import pybullet

        found = getattr(pybullet, name)
        if callable(found):
            return functools.partial(found, physicsClientId=self._table._client)
        return found


def _action(action: Any) -> tuple[str, np.ndarray, Any]:
    """Return the kind of an action, its numbers as `PlayTableEnv.step` takes them, and its gripper value as given."""
    kind = None
    if isinstance(action, Mapping):
        name, action = action.get("type"), action.get("action")
        if name not in ACTION_TYPES or not hasattr(action, "__len__"):
            known = ", ".join(ACTION_TYPES)
            raise UserError(f'action: type {name!r}, action {action!r}; give a type of {known}, and "action"')
        kind = ACTION_TYPES[name]
    if len(action) == 3:
        parts = [np.atleast_1d(np.asarray(part)) for part in action]
        given = action[2]
        gripper = given[0] if np.ndim(given) == 1 and len(given) else given
        return kind or "absolute", np.concatenate(parts), gripper
    values = np.asarray(action)
    if kind is None and len(values) != 7:
        raise UserError(f"action: {len(values)} numbers; give 7 (relative), or position, orientation and gripper")
    if kind in (None, "relative"):
        return "relative", values, values[-1]
    return kind, values, int(values[-1])
