"""CALVIN's table, blocks and robot in a PyBullet world: how they are loaded, what they say of themselves.

Facts of the physics (order of loading, controllers, thresholds) are CALVIN's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from arvrm.geometry import euler_to_quaternion
from arvrm.interface import UserError
from arvrm.sim.render import load_egl, quiet_stdout
from arvrm.sim.scene import Colour, Fixtures, SceneDescription, neutral_directory

PHYSICS_HZ = 240
ARM_MOTOR = {"force": 200.0, "maxVelocity": 2}
FINGER_OPEN, FINGER_CLOSED = 0.04, 0
_FIXTURE_FORCE = 4
_NULL_SPACE_LIMIT = 7


class TableWorld:
    """One world in this process. Its bodies can be loaded anew; the environment steps it.

    Args:
        description: the scene.
        colours: by block name or table link name, RGBA (0 to 1).
        renderer: "tiny" or "egl".

    Raises:
        UserError: PyBullet cannot open a world or load a file.
    """

    _client = -1

    def __init__(self, description: SceneDescription, colours: Mapping[str, Colour], renderer: str) -> None:
        self.description, self.renderer, self._colours = description, renderer, colours
        self._gripper_action = 1
        with quiet_stdout():
            import pybullet

            self._bullet = pybullet
            self._connect()
            self._load()

    def close(self) -> None:
        if self._client >= 0 and self._bullet.isConnected(self._client):
            with quiet_stdout():
                self._bullet.disconnect(self._client)
        self._client = -1

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
            [*description.rest_joints, FINGER_OPEN, FINGER_OPEN],
        )
        self._reset_robot(np.array(description.rest_joints), FINGER_OPEN)

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
        self._switch_on = 0
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

    def save_state(self) -> dict[str, Any]:
        """Remember the state in memory until the next reset; give it to `restore_state`, then to `forget_state`."""
        return {
            "world": self._world,
            "bullet": self._bullet.saveState(physicsClientId=self._client),
            "target": (self._target_position.copy(), self._target_euler.copy()),
            "gripper": self._gripper_action,
            "lights": dict(self._lights),
            "pressed": (self._button_pressed, self._switch_on),
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
        self._gripper_action = state["gripper"]
        self._button_pressed, self._switch_on = state["pressed"]
        for name, value in state["lights"].items():
            self._set_light(name, value)

    def forget_state(self, state: Mapping[str, Any]) -> None:
        """Free the memory of a saved state."""
        if state["world"] == self._world:
            self._bullet.removeState(state["bullet"], physicsClientId=self._client)

    # Parts of the above

    def _reset_robot(self, angles: np.ndarray, finger: float) -> None:
        bullet, client, robot = self._bullet, self._client, self._robot
        for joint, angle in zip(self._arm, angles, strict=True):
            bullet.resetJointState(robot, joint, angle, physicsClientId=client)
            bullet.setJointMotorControl2(
                bodyIndex=robot, jointIndex=joint, controlMode=bullet.POSITION_CONTROL, targetPosition=angle,
                physicsClientId=client, **ARM_MOTOR,
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
        if on != self._switch_on:  # a bulb that a scene_obs lit while its switch is off stays lit
            self._set_light("bulb", on)
        self._switch_on = on

    def _set_light(self, name: str, state: float) -> None:
        on = int(round(float(state)))
        self._lights[name] = on
        light = self.description.bulb if name == "bulb" else self.description.led
        self._bullet.changeVisualShape(
            self._table, self._light_links[name], rgbaColor=light.on if on else light.off, physicsClientId=self._client
        )


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


def _find(names: dict[str, int], name: str, file: str) -> int:
    if name not in names:
        raise UserError(f"{file}: no joint or link named {name!r}; restore the scene's assets")
    return names[name]
