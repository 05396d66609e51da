"""CALVIN's play table as a Gymnasium environment, bit for bit the official simulator on official scenes.

Facts of the physics (order of loading, controllers, thresholds) are CALVIN's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from arvrm.geometry import euler_to_quaternion
from arvrm.interface import CONTROL_HZ, UserError
from arvrm.robots.calvin import EULER_STEP_RAD, POSITION_STEP_M
from arvrm.sim.render import (
    CameraRig,
    CameraShift,
    camera_shift_from,
    choose_renderer,
    lighting_from,
    load_egl,
    quiet_stdout,
)
from arvrm.sim.scene import Colour, Fixtures, Lighting, SceneDescription, neutral_directory, official_scene

ACTION_SPACES = ("relative", "absolute", "joint_relative", "joint_absolute")
PHYSICS_HZ = 240
ROBOT_START = np.array([
    0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963, -1.21779124, 1.03987629,
    2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928, 1.0,
])  # fmt: skip
"""robot_obs at which every chain of CALVIN's evaluation starts."""
JOINT_LOW = np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973])
JOINT_HIGH = np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973])
"""The Panda's limits, to which solutions of the inverse kinematics are clipped."""

_ARM = {"force": 200.0, "maxVelocity": 2}
_FINGER_OPEN, _FINGER_CLOSED = 0.04, 0
_FIXTURE_FORCE = 4
_NULL_SPACE_LIMIT = 7
_BLOCK_CLEARANCE = 0.09


class ActionBox(gymnasium.spaces.Box):
    """A Box whose last number is the gripper: exactly -1 (close) or 1 (open), also in samples."""

    def sample(self, *arguments, **keywords):
        action = super().sample(*arguments, **keywords)
        action[-1] = 1 if action[-1] >= 0 else -1
        return action

    def contains(self, x) -> bool:
        return super().contains(x) and abs(x[-1]) == 1


class PlayTableEnv(gymnasium.Env):
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
        self._client = -1
        if action_space not in ACTION_SPACES:
            raise UserError(f"action_space: {action_space!r} is unknown; choose one of {', '.join(ACTION_SPACES)}")
        if render_mode not in (None, "rgb_array"):
            raise UserError(f"render_mode: {render_mode!r} is unknown; choose 'rgb_array' or None")
        for name, size in (("static_size", static_size), ("gripper_size", gripper_size)):
            if not isinstance(size, (int, np.integer)) or not 1 <= size <= 4096:
                raise UserError(f"{name}: {size!r} is no image size; give pixels from 1 to 4096")
        self.description = scene_description(scene, assets, calvin_root, variation)
        self.description.check_files()
        self._colours = {**self.description.colours, **(block_colours or {})}
        for name in block_colours or {}:
            if name not in self.description.block_order:
                raise UserError(f"block_colours: no block {name!r}; name some of {', '.join(self.block_order)}")
        self.renderer = choose_renderer(renderer)
        self.render_mode = render_mode
        self.render_observations = render_observations
        self.action_kind = action_space
        self.action_space = _action_space(action_space)
        images = {"rgb_static": static_size, "rgb_gripper": gripper_size} if render_observations else {}
        self.observation_space = gymnasium.spaces.Dict({
            "robot_obs": gymnasium.spaces.Box(-np.inf, np.inf, (15,), np.float64),
            "scene_obs": gymnasium.spaces.Box(-np.inf, np.inf, (24,), np.float64),
            "target_pose": gymnasium.spaces.Box(-np.inf, np.inf, (6,), np.float64),
            **{name: gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8) for name, size in images.items()},
        })  # fmt: skip
        self._gripper_action = 1
        with quiet_stdout():
            import pybullet

            self._bullet = pybullet
            self._connect()
            self._load()
        light = lighting_from(lighting, self.description.lighting)
        camera_shift = camera_shift_from(camera_shift)
        description = self.description
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

    # Loading

    # The order of the calls from here on decides bits of the results; it is CALVIN's.

    def _connect(self) -> None:
        bullet = self._bullet
        self._client = client = bullet.connect(bullet.DIRECT)
        if client < 0:
            raise UserError("PyBullet: cannot open another physics world; close some environments")
        if self.renderer == "egl" and load_egl(client) < 0:
            raise UserError("renderer: the EGL plugin failed to load; use renderer=tiny")
        bullet.resetSimulation(physicsClientId=client)
        bullet.setPhysicsEngineParameter(deterministicOverlappingPairs=1, physicsClientId=client)
        if self.description.assets == "builtin":
            # PyBullet keeps every file it ever read: half a megabyte for each variation.
            bullet.setPhysicsEngineParameter(enableFileCaching=0, physicsClientId=client)
        bullet.setTimeStep(1.0 / PHYSICS_HZ, physicsClientId=client)
        self._world = 0

    def _load(self) -> None:
        """Create the world anew."""
        self._bullet.resetSimulation(physicsClientId=self._client)
        self._bullet.setGravity(0, 0, -9.8, physicsClientId=self._client)
        with neutral_directory():
            self._load_robot()
            self._load_scene()
        self._world += 1
        self._fresh = True

    def _load_urdf(self, file: str, *arguments, **keywords) -> int:
        try:
            return self._bullet.loadURDF(file, *arguments, physicsClientId=self._client, **keywords)
        except self._bullet.error as error:
            raise UserError(f"{file}: PyBullet cannot load it ({error}); restore the scene's assets") from error

    def _load_robot(self) -> None:
        bullet, client, description = self._bullet, self._client, self.description
        position = list(description.robot_position)
        self._robot = robot = self._load_urdf(
            description.robot_urdf,
            basePosition=position,
            baseOrientation=bullet.getQuaternionFromEuler(description.robot_euler),
            useFixedBase=True,
        )
        joints, links = self._names(robot)
        self._arm = [_find(joints, name, description.robot_urdf) for name in description.arm_joints]
        self._fingers = [_find(joints, name, description.robot_urdf) for name in description.finger_joints]
        self._tcp = _find(links, description.tcp_link, description.robot_urdf)
        self._camera_link = _find(links, description.camera_link, description.robot_urdf)
        self._joints = self._arm + self._fingers
        if description.pedestal is not None:
            radius, behind = description.pedestal
            yaw = description.robot_euler[2]
            centre = [
                position[0] - np.cos(yaw) * behind,
                position[1] - np.sin(yaw) * behind,
                position[2] / 2,
            ]
            shape = bullet.createVisualShape(
                shapeType=bullet.GEOM_CYLINDER,
                rgbaColor=[1, 1, 1, 1],
                radius=radius,
                length=position[2],
                visualFramePosition=centre,
                physicsClientId=client,
            )
            bullet.createMultiBody(baseVisualShapeIndex=shape, physicsClientId=client)
        gear = bullet.createConstraint(
            robot,
            self._fingers[0],
            robot,
            self._fingers[1],
            jointType=bullet.JOINT_GEAR,
            jointAxis=[1, 0, 0],
            parentFramePosition=[0, 0, 0],
            childFramePosition=[0, 0, 0],
            physicsClientId=client,
        )
        bullet.changeConstraint(gear, gearRatio=-1, erp=0.1, maxForce=50, physicsClientId=client)
        freedoms = bullet.computeDofCount(robot, physicsClientId=client)
        self._null_space = (
            [-_NULL_SPACE_LIMIT] * freedoms,
            [_NULL_SPACE_LIMIT] * freedoms,
            [_NULL_SPACE_LIMIT] * freedoms,
            [*description.rest_joints, _FINGER_OPEN, _FINGER_OPEN],
        )
        self._reset_robot(np.array(description.rest_joints), _FINGER_OPEN)

    def _load_scene(self) -> None:
        bullet, client, description = self._bullet, self._client, self.description
        starts = _creation_poses(description)
        self._blocks = {}
        for block in description.blocks:
            position, orientation = starts[block.name]
            self._blocks[block.name] = self._load_urdf(
                block.urdf, position, orientation, globalScaling=description.global_scaling
            )
        self._table = table = self._load_urdf(
            description.table_urdf,
            description.table_position,
            bullet.getQuaternionFromEuler(description.table_euler),
            globalScaling=description.global_scaling,
        )
        joints, links = self._names(table)
        self._slide, self._drawer, self._button, self._switch = (
            _find(joints, name, description.table_urdf)
            for name in (
                description.slide_joint, description.drawer_joint, description.button_joint, description.switch_joint,
            )
        )  # fmt: skip
        self._fixture_joints = [self._slide, self._drawer, self._button, self._switch]
        for joint in (self._slide, self._drawer):
            bullet.setJointMotorControl2(
                table, joint, controlMode=bullet.VELOCITY_CONTROL, force=_FIXTURE_FORCE, physicsClientId=client
            )
        bullet.setJointMotorControl2(
            table, self._button, controlMode=bullet.POSITION_CONTROL, targetPosition=0, force=_FIXTURE_FORCE,
            physicsClientId=client,
        )  # fmt: skip
        bullet.setJointMotorControl2(
            table, self._switch, controlMode=bullet.VELOCITY_CONTROL, force=_FIXTURE_FORCE, physicsClientId=client
        )
        self._button_threshold, self._switch_threshold = (
            sum(bullet.getJointInfo(table, joint, physicsClientId=client)[8:10]) / 2
            for joint in (self._button, self._switch)
        )
        self._light_links = {
            "bulb": _find(links, description.bulb.link, description.table_urdf),
            "led": _find(links, description.led.link, description.table_urdf),
        }
        self._lights = {"bulb": 0, "led": 0}
        self._button_pressed = False
        ground = self._load_urdf(description.plane_urdf) if description.plane_urdf else None
        self._bodies = {self._robot: "robot", self._table: "table"}
        self._bodies.update({identity: name for name, identity in self._blocks.items()})
        if ground is not None:
            self._bodies[ground] = "ground"
        base = bullet.getBodyInfo(table, physicsClientId=client)[0].decode()
        self._table_links = {-1: "base_link", **{index: name for name, index in links.items()}}
        self._table_links[links[description.plank_link]] = "plank_link"
        self._table_links[links[description.drawer_link]] = "drawer_link"
        for name, colour in self._colours.items():
            if name in self._blocks:
                target, link = self._blocks[name], -1
            else:
                target, link = table, -1 if name in ("base", base) else _find(links, name, description.table_urdf)
            bullet.changeVisualShape(target, link, rgbaColor=list(colour), physicsClientId=client)

    def _names(self, body: int) -> tuple[dict[str, int], dict[str, int]]:
        count = self._bullet.getNumJoints(body, physicsClientId=self._client)
        infos = [self._bullet.getJointInfo(body, i, physicsClientId=self._client) for i in range(count)]
        return {info[1].decode(): i for i, info in enumerate(infos)}, {
            info[12].decode(): i for i, info in enumerate(infos)
        }

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
        robot_obs = ROBOT_START if robot_obs is None else _state(robot_obs, 15, "robot_obs")
        scene_obs = self._draw_scene() if scene_obs is None else _state(scene_obs, 24, "scene_obs")
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
        action = self._checked(action)
        self._gripper_action = 1 if action[-1] == 1 else -1
        joints = self._joint_targets(action)
        bullet, client, robot = self._bullet, self._client, self._robot
        for joint, target in zip(self._arm, joints, strict=True):
            bullet.setJointMotorControl2(
                bodyIndex=robot, jointIndex=joint, controlMode=bullet.POSITION_CONTROL, targetPosition=target,
                physicsClientId=client, **_ARM,
            )  # fmt: skip
        closing = self._gripper_action == -1
        for joint in self._fingers:
            bullet.setJointMotorControl2(
                bodyIndex=robot, jointIndex=joint, controlMode=bullet.POSITION_CONTROL,
                targetPosition=_FINGER_CLOSED if closing else _FINGER_OPEN, force=200 if closing else 2.0,
                maxVelocity=1, physicsClientId=client,
            )  # fmt: skip
        for _ in range(PHYSICS_HZ // CONTROL_HZ):
            bullet.stepSimulation(physicsClientId=client)
        self._update_lights()
        return self._observation(), 0.0, False, False, self.task_info()

    def render(self) -> np.ndarray | None:
        """Return the static camera's image (H, W, 3) uint8; None without a render_mode."""
        return self.cameras["static"].render()[0] if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        if self._client >= 0 and self._bullet.isConnected(self._client):
            with quiet_stdout():
                self._bullet.disconnect(self._client)
        self._client = -1

    # State

    @property
    def block_order(self) -> tuple[str, ...]:
        """Names of the blocks in the order of scene_obs."""
        return self.description.block_order

    @property
    def fixtures(self) -> Fixtures:
        """Where the things are that a scripted expert touches."""
        return self.description.fixtures

    def robot_obs(self) -> np.ndarray:
        """Return CALVIN's robot state (15,) float64; see interface.Observation."""
        bullet, client = self._bullet, self._client
        position, orientation = bullet.getLinkState(self._robot, self._tcp, physicsClientId=client)[:2]
        angles = [state[0] for state in bullet.getJointStates(self._robot, self._joints, physicsClientId=client)]
        return np.array([
            *position, *bullet.getEulerFromQuaternion(orientation), angles[7] + angles[8], *angles[:7],
            self._gripper_action,
        ], dtype=np.float64)  # fmt: skip

    def scene_obs(self) -> np.ndarray:
        """Return CALVIN's scene state (24,) float64: door, drawer, button, switch, bulb, LED, blocks x (m, rad)."""
        bullet, client = self._bullet, self._client
        joints = bullet.getJointStates(self._table, self._fixture_joints, physicsClientId=client)
        values = [state[0] for state in joints] + [self._lights["bulb"], self._lights["led"]]
        for block in self._blocks.values():
            position, orientation = bullet.getBasePositionAndOrientation(block, physicsClientId=client)
            values += [*position, *bullet.getEulerFromQuaternion(orientation)]
        return np.array(values, dtype=np.float64)

    def target_pose(self) -> np.ndarray:
        """Return the controller's target TCP (6,): position (m) and Euler angles (rad, not wrapped)."""
        return np.concatenate([self._target_position, self._target_euler])

    def task_info(self) -> dict[str, Any]:
        """Return what the task oracle compares.

        Keys: "door", "drawer" (m); "bulb", "led" (0 or 1); "robot_contacts": names of bodies the robot touches;
        "blocks": name -> {"position" (m), "orientation" (x, y, z, w), "linear_velocity", "angular_velocity",
        "contacts": frozenset of (body, link)}. Bodies are "robot", "table", "ground" and the blocks' names; links
        matter on the table only, where they are names ("base_link", "plank_link", "drawer_link", ...).
        """
        bullet, client = self._bullet, self._client
        bodies, table, table_links = self._bodies, self._table, self._table_links
        touching: dict[int, set] = {body: set() for body in bodies}
        for contact in bullet.getContactPoints(physicsClientId=client):
            a, b, link_a, link_b = contact[1:5]
            touching[a].add((bodies[b], table_links[link_b] if b == table else link_b))
            touching[b].add((bodies[a], table_links[link_a] if a == table else link_a))
        joints = bullet.getJointStates(table, self._fixture_joints[:2], physicsClientId=client)
        blocks = {}
        for name, block in self._blocks.items():
            position, orientation = bullet.getBasePositionAndOrientation(block, physicsClientId=client)
            linear, angular = bullet.getBaseVelocity(block, physicsClientId=client)
            blocks[name] = {
                "position": position,
                "orientation": orientation,
                "linear_velocity": linear,
                "angular_velocity": angular,
                "contacts": frozenset(touching[block]),
            }
        return {
            "door": joints[0][0],
            "drawer": joints[1][0],
            "bulb": self._lights["bulb"],
            "led": self._lights["led"],
            "robot_contacts": frozenset(body for body, _ in touching[self._robot]),
            "blocks": blocks,
        }

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

    def save_state(self) -> dict[str, Any]:
        """Remember the state in memory until the next reset; give it to `restore_state`, then to `forget_state`."""
        return {
            "world": self._world,
            "bullet": self._bullet.saveState(physicsClientId=self._client),
            "target": (self._target_position.copy(), self._target_euler.copy()),
            "gripper": self._gripper_action,
            "lights": dict(self._lights),
            "pressed": self._button_pressed,
        }

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Return to a state saved since the last reset.

        Exact in joints, blocks and velocities. Bullet's observed link poses lag by a physics step, and solver caches
        are not part of a state: the TCP seen before the next step may differ by millimetres, and the same actions
        afterwards lead to the same states up to what contacts amplify. Only reset() is exact.

        Raises:
            UserError: the state is older than the last reset, which made a new world.
        """
        if state["world"] != self._world:
            raise UserError("restore_state: the state is older than the last reset; save one after it")
        self._bullet.restoreState(stateId=state["bullet"], physicsClientId=self._client)
        self._target_position, self._target_euler = (part.copy() for part in state["target"])
        self._gripper_action, self._button_pressed = state["gripper"], state["pressed"]
        for name, value in state["lights"].items():
            self._set_light(name, value)

    def forget_state(self, state: Mapping[str, Any]) -> None:
        """Free the memory of a saved state."""
        if state["world"] == self._world:
            self._bullet.removeState(state["bullet"], physicsClientId=self._client)

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

    def _checked(self, action) -> np.ndarray:
        if self.action_kind == "absolute" and isinstance(action, tuple) and len(action) == 3:
            action = np.concatenate([np.atleast_1d(part) for part in action])
        try:
            action = np.asarray(action)
            if not np.issubdtype(action.dtype, np.floating):
                action = action.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise UserError(f"action: {action!r} is no array of numbers; give one as action_space says") from error
        sizes = {"relative": (7,), "absolute": (7, 8)}.get(self.action_kind, (8,))
        if action.ndim != 1 or action.size not in sizes:
            wanted = " or ".join(f"({size},)" for size in sizes)
            raise UserError(f"action: shape {action.shape}; {self.action_kind} actions have shape {wanted}")
        if not np.isfinite(action).all():
            raise UserError(f"action: {action.tolist()} is not finite; check the policy's outputs")
        if action[-1] not in (-1, 1):
            raise UserError(f"action: gripper {float(action[-1])!r} must be -1 (close) or 1 (open); binarise it")
        return action

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

    def _reset_robot(self, angles: np.ndarray, finger: float) -> None:
        bullet, client, robot = self._bullet, self._client, self._robot
        for joint, angle in zip(self._arm, angles, strict=True):
            bullet.resetJointState(robot, joint, angle, physicsClientId=client)
            bullet.setJointMotorControl2(
                bodyIndex=robot, jointIndex=joint, controlMode=bullet.POSITION_CONTROL, targetPosition=angle,
                physicsClientId=client, **_ARM,
            )  # fmt: skip
        for joint in self._fingers:
            bullet.resetJointState(robot, joint, finger, physicsClientId=client)
            bullet.setJointMotorControl2(
                bodyIndex=robot, jointIndex=joint, controlMode=bullet.POSITION_CONTROL, targetPosition=finger,
                force=200, maxVelocity=1, physicsClientId=client,
            )  # fmt: skip
        position, orientation = bullet.getLinkState(robot, self._tcp, physicsClientId=client)[:2]
        self._target_position = np.array(position)
        self._target_euler = np.array(bullet.getEulerFromQuaternion(orientation))

    def _update_lights(self) -> None:
        bullet, client = self._bullet, self._client
        (button, *_), (switch, *_) = bullet.getJointStates(
            self._table, [self._button, self._switch], physicsClientId=client
        )
        pressed = button > self._button_threshold
        if pressed and not self._button_pressed:
            self._set_light("led", 1 - self._lights["led"])
        self._button_pressed = pressed
        on = int(switch > self._switch_threshold)
        if on != self._lights["bulb"]:
            self._set_light("bulb", on)

    def _set_light(self, name: str, state: float) -> None:
        on = int(round(float(state)))
        self._lights[name] = on
        light = self.description.bulb if name == "bulb" else self.description.led
        self._bullet.changeVisualShape(
            self._table, self._light_links[name], rgbaColor=light.on if on else light.off, physicsClientId=self._client
        )

    def _draw_scene(self) -> np.ndarray:
        scene = np.zeros(24)
        scene[6:] = draw_blocks(self.description, self.np_random).ravel()
        return scene


def scene_description(
    scene: str | SceneDescription, assets: str = "builtin", calvin_root: str | None = None, variation: int | None = None
) -> SceneDescription:
    """Return the description of a scene by name; see PlayTableEnv for the arguments.

    Raises:
        UserError: unknown scene or assets, a variation of an official scene, missing files.
    """
    if isinstance(scene, SceneDescription):
        return scene
    if assets == "builtin":
        from arvrm.sim.builtin import builtin_scene

        return builtin_scene(scene, variation)
    if assets != "official":
        raise UserError(f"assets: {assets!r} is unknown; choose 'builtin' or 'official'")
    if variation is not None:
        raise UserError("variation: official scenes have none; use assets='builtin' or variation=None")
    return official_scene(scene, calvin_root)


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


def _creation_poses(description: SceneDescription) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return where blocks are created: the first draws of CALVIN's generator, whose configured seed is 0.

    reset() moves them, but Bullet's broad phase remembers, and some contacts are solved in another order.
    """
    rng = np.random.Generator(np.random.PCG64(0))
    names = list(description.surfaces)
    poses = {}
    for name in description.block_order:
        low, high = (np.array(corner) for corner in description.surfaces[str(rng.choice(names))])
        position = rng.uniform(low, high)
        poses[name] = position, euler_to_quaternion(rng.uniform([0, 0, -np.pi], [0, 0, np.pi]))
    return poses


def _action_space(kind: str) -> ActionBox:
    if kind == "relative":
        low, high = -np.ones(7), np.ones(7)
    elif kind == "absolute":
        low = np.array([-1.0, -1.0, 0.0, -np.pi, -np.pi, -np.pi, -1.0])
        high = np.array([1.0, 1.0, 1.5, np.pi, np.pi, np.pi, 1.0])
    elif kind == "joint_absolute":
        low, high = np.append(JOINT_LOW, -1.0), np.append(JOINT_HIGH, 1.0)
    else:
        low, high = np.append(np.full(7, -0.2), -1.0), np.append(np.full(7, 0.2), 1.0)
    return ActionBox(low, high, dtype=np.float64)


def _state(values, size: int, name: str) -> np.ndarray:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"reset: {name} is no array of numbers; give {size} floats") from error
    if array.shape != (size,):
        raise UserError(f"reset: {name} has shape {array.shape}; give {size} floats")
    if not np.isfinite(array).all():
        raise UserError(f"reset: {name} is not finite; give {size} finite floats")
    return array


def _find(names: dict[str, int], name: str, file: str) -> int:
    if name not in names:
        raise UserError(f"{file}: no joint or link named {name!r}; restore the scene's assets")
    return names[name]
