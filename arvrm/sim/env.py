"""CALVIN's play table as a Gymnasium environment, bit for bit the official simulator on official scenes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from arvrm.interface import CONTROL_HZ, UserError
from arvrm.robots.calvin import EULER_STEP_RAD, POSITION_STEP_M
from arvrm.sim.actions import ACTION_SPACES, JOINT_HIGH, JOINT_LOW, checked_action, checked_state, space_of
from arvrm.sim.render import CameraRig, CameraShift, camera_shift_from, choose_renderer, lighting_from, quiet_stdout
from arvrm.sim.scene import Colour, Lighting, SceneDescription, scene_description
from arvrm.sim.table import ARM_MOTOR, FINGER_CLOSED, FINGER_OPEN, PHYSICS_HZ, TableWorld

ROBOT_START = np.array([
    0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963, -1.21779124, 1.03987629,
    2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928, 1.0,
])  # fmt: skip
"""robot_obs at which every chain of CALVIN's evaluation starts."""
_BLOCK_CLEARANCE = 0.09


class PlayTableEnv(TableWorld, gymnasium.Env):
    """A table with sliding door, drawer, button, switch and three blocks, and a Panda arm controlled at 30 Hz.

    Args:
        scene: "A" to "D", or a SceneDescription.
        assets: "builtin" (this package's own geometry) or "official" (a CALVIN checkout).
        calvin_root: the checkout; None: environment variable CALVIN_ROOT.
        static_size, gripper_size: pixels of the square images.
        renderer: "tiny" (reference), "egl", or "auto": EGL where it works.
        action_space: "relative": (7,) steps of the target TCP in units of 0.02 m and 0.05 rad, gripper.
            "absolute": (7,) x, y, z (m), Euler xyz (rad), gripper; or (8,) with a quaternion x, y, z, w.
            "joint_relative", "joint_absolute": (8,) joint angles (rad), added to the measured ones or absolute,
            and gripper.
        variation: seed of a varied layout of a built-in scene; None: the standard one.
        render_observations: whether reset() and step() return images.
        render_mode: Gymnasium's; "rgb_array": render() returns the static camera's image.
        camera_shift, lighting, block_colours: robustness switches: a CameraShift, a Lighting, or mappings with their
            fields; block name -> RGBA (0 to 1).

    Observations: "robot_obs" (15,), "scene_obs" (24,), "target_pose" (6,), and "rgb_static", "rgb_gripper" where
    `render_observations`. Rewards are 0 and episodes endless: tasks are judged by `tasks.TaskOracle` from `info`.

    Raises:
        UserError: unknown scene or option, missing asset files, EGL asked for where it does not work.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}

    def __init__(
        self,
        scene: str | SceneDescription = "D",
        assets: str = "builtin",
        calvin_root: str | None = None,
        static_size: int = 200,
        gripper_size: int = 84,
        renderer: str = "tiny",
        action_space: str = "relative",
        variation: int | None = None,
        render_observations: bool = True,
        render_mode: str | None = None,
        camera_shift: CameraShift | Mapping | None = None,
        lighting: Lighting | Mapping | None = None,
        block_colours: Mapping[str, Colour] | None = None,
    ):
        if action_space not in ACTION_SPACES:
            raise UserError(f"action_space: {action_space!r} is unknown; choose one of {', '.join(ACTION_SPACES)}")
        if render_mode not in (None, "rgb_array"):
            raise UserError(f"render_mode: {render_mode!r} is unknown; choose 'rgb_array' or None")
        for name, size in (("static_size", static_size), ("gripper_size", gripper_size)):
            if not isinstance(size, (int, np.integer)) or not 1 <= size <= 4096:
                raise UserError(f"{name}: {size!r} is no image size; give pixels from 1 to 4096")
        description = scene_description(scene, assets, calvin_root, variation)
        description.check_files()
        for name in block_colours or {}:
            if name not in description.block_order:
                raise UserError(f"block_colours: no block {name!r}; name some of {', '.join(description.block_order)}")
        renderer = choose_renderer(renderer)
        self.render_mode = render_mode
        self.render_observations = render_observations
        self.action_kind = action_space
        self.action_space = space_of(action_space)
        images = {"rgb_static": static_size, "rgb_gripper": gripper_size} if render_observations else {}
        self.observation_space = gymnasium.spaces.Dict({
            "robot_obs": gymnasium.spaces.Box(-np.inf, np.inf, (15,), np.float64),
            "scene_obs": gymnasium.spaces.Box(-np.inf, np.inf, (24,), np.float64),
            "target_pose": gymnasium.spaces.Box(-np.inf, np.inf, (6,), np.float64),
            **{name: gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8) for name, size in images.items()},
        })  # fmt: skip
        super().__init__(description, {**description.colours, **(block_colours or {})}, renderer)
        light = lighting_from(lighting, self.description.lighting)
        camera_shift = camera_shift_from(camera_shift)
        self.cameras = {
            "static": CameraRig(
                self._client, description.static_camera, static_size, self.renderer, shift=camera_shift, lighting=light
            ),
            "gripper": CameraRig(
                self._client, description.gripper_camera, gripper_size, self.renderer,
                self._robot, self._camera_link, lighting=light,
            ),
        }  # fmt: skip
        if self.renderer == "egl":
            self.render_cameras()  # EGL's first image lacks shadows

    # Gymnasium

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start from given or drawn states; what happened before has no influence.

        Args:
            seed: of the blocks' places where no scene_obs is given.
            options: "robot_obs": (15,) or None: CALVIN's start pose; "scene_obs": (24,) or None: doors closed, lights
                off, blocks at random on the scene's surfaces. As in CALVIN, joints and gripper width are restored from
                robot_obs, the last gripper action is 1 (open) after every reset, and one physics step is made.

        Raises:
            UserError: a state has the wrong shape or is not finite.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        robot_obs, scene_obs = options.pop("robot_obs", None), options.pop("scene_obs", None)
        if options:
            raise UserError(f"reset: unknown option {next(iter(options))!r}; use robot_obs and scene_obs")
        robot_obs = ROBOT_START if robot_obs is None else checked_state(robot_obs, 15, "robot_obs")
        scene_obs = self._draw_scene() if scene_obs is None else checked_state(scene_obs, 24, "scene_obs")
        if not np.isin(scene_obs[4:6], (0, 1)).all():
            raise UserError(f"reset: scene_obs has lights at {scene_obs[4:6].tolist()}; each must be 0 or 1")
        bullet, client = self._bullet, self._client
        if not self._fresh:
            # Contacts, solver caches and the broad phase's tree would leak the past into the future, and results would
            # depend on which episodes a worker happened to run before. Bullet's own restoreState leaks them too.
            with quiet_stdout():
                self._load()
        self._fresh = False
        self._button_pressed = False
        self._switch_on = 0
        self._gripper_action = 1
        for joint, value in zip((self._slide, self._drawer), scene_obs[:2], strict=True):
            bullet.resetJointState(self._table, joint, value, physicsClientId=client)
        self._set_light("bulb", scene_obs[4])
        self._set_light("led", scene_obs[5])
        for joint, value in zip((self._button, self._switch), scene_obs[2:4], strict=True):
            bullet.resetJointState(self._table, joint, value, physicsClientId=client)
        for block, pose in zip(self._blocks.values(), scene_obs[6:].reshape(3, 6), strict=True):
            bullet.resetBasePositionAndOrientation(
                block, pose[:3], bullet.getQuaternionFromEuler(pose[3:]), physicsClientId=client
            )
        self._reset_robot(robot_obs[7:14], robot_obs[6] / 2)
        bullet.stepSimulation(physicsClientId=client)
        return self._observation(), self.task_info()

    def step(self, action) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Apply one action for 1/30 s.

        Raises:
            UserError: the action has the wrong shape, is not finite, or its gripper value is neither -1 nor 1.
        """
        action = checked_action(action, self.action_kind)
        self._gripper_action = 1 if action[-1] == 1 else -1
        joints = self._joint_targets(action)
        bullet, client, robot = self._bullet, self._client, self._robot
        for joint, target in zip(self._arm, joints, strict=True):
            bullet.setJointMotorControl2(
                bodyIndex=robot, jointIndex=joint, controlMode=bullet.POSITION_CONTROL, targetPosition=target,
                physicsClientId=client, **ARM_MOTOR,
            )  # fmt: skip
        closing = self._gripper_action == -1
        for joint in self._fingers:
            bullet.setJointMotorControl2(
                bodyIndex=robot, jointIndex=joint, controlMode=bullet.POSITION_CONTROL,
                targetPosition=FINGER_CLOSED if closing else FINGER_OPEN, force=200 if closing else 2.0,
                maxVelocity=1, physicsClientId=client,
            )  # fmt: skip
        for _ in range(PHYSICS_HZ // CONTROL_HZ):
            bullet.stepSimulation(physicsClientId=client)
        self._update_lights()
        return self._observation(), 0.0, False, False, self.task_info()

    def render(self) -> np.ndarray | None:
        """Return the static camera's image (H, W, 3) uint8; None without a render_mode."""
        return self.cameras["static"].render()[0] if self.render_mode == "rgb_array" else None

    def render_cameras(
        self,
        depth: bool = False,
        cameras: tuple[str, ...] = ("static", "gripper"),
        sizes: Mapping[str, int] | None = None,
    ) -> dict:
        """Return "rgb_static", "rgb_gripper" (H, W, 3) uint8 and, with depth, "depth_*" (H, W) float32 in metres.

        Args:
            sizes: camera -> pixels in place of the environment's own, for films.
        """
        images: dict[str, np.ndarray] = {}
        for name in cameras:
            rgb, distance = self.cameras[name].render(depth, (sizes or {}).get(name))
            images[f"rgb_{name}"] = rgb
            if distance is not None:
                images[f"depth_{name}"] = distance
        return images

    # Parts of the above

    def _observation(self) -> dict[str, np.ndarray]:
        observation = {
            "robot_obs": self.robot_obs(),
            "scene_obs": self.scene_obs(),
            "target_pose": self.target_pose(),
        }
        if self.render_observations:
            observation.update(self.render_cameras())
        return observation

    def _joint_targets(self, action: np.ndarray) -> np.ndarray:
        bullet, client = self._bullet, self._client
        if self.action_kind == "joint_absolute":
            return action[:7]
        if self.action_kind == "joint_relative":
            states = bullet.getJointStates(self._robot, self._arm, physicsClientId=client)
            return np.array([state[0] for state in states]) + action[:7]
        if self.action_kind == "relative":
            self._target_position += action[:3] * POSITION_STEP_M
            self._target_euler += action[3:6] * EULER_STEP_RAD
            quaternion = bullet.getQuaternionFromEuler(self._target_euler)
        else:
            self._target_position = action[:3].astype(np.float64)
            if action.size == 8:
                quaternion = action[3:7]
                self._target_euler = np.array(bullet.getEulerFromQuaternion(quaternion))
            else:
                self._target_euler = action[3:6].astype(np.float64)
                quaternion = bullet.getQuaternionFromEuler(self._target_euler)
        solution = bullet.calculateInverseKinematics(
            self._robot, self._tcp, self._target_position, quaternion, *self._null_space, physicsClientId=client
        )
        return np.clip(solution[:7], JOINT_LOW, JOINT_HIGH)

    def _draw_scene(self) -> np.ndarray:
        scene = np.zeros(24)
        scene[6:] = draw_blocks(self.description, self.np_random).ravel()
        return scene


def draw_blocks(description: SceneDescription, rng: np.random.Generator) -> np.ndarray:
    """Draw block poses (3, 6; m, rad) on the scene's surfaces that keep clear of each other, in scene_obs' order."""
    names = sorted(description.surfaces)
    poses = np.zeros((len(description.blocks), 6))
    for row in range(len(poses)):
        for _ in range(1000):
            low, high = description.surfaces[names[rng.integers(len(names))]]
            poses[row, :3] = rng.uniform(low, high)
            poses[row, 5] = rng.uniform(-np.pi, np.pi)
            distances = np.linalg.norm(poses[:row, :2] - poses[row, :2], axis=1)
            if (distances > _BLOCK_CLEARANCE).all():
                break
    return poses
