"""The table as calvin_env's objects show it: a robot, a scene, and what both tell."""

from __future__ import annotations

from typing import Any

import numpy as np

from arvrm.calvin.missing import MissingName
from arvrm.sim.actions import JOINT_HIGH, JOINT_LOW
from arvrm.sim.env import PlayTableEnv

_REMEDY = "docs/dropin.md lists what is"


class CalvinTable(PlayTableEnv):
    """The table, which also tells what calvin_env's infos hold."""

    given_gripper: Any = 1
    """The last gripper action as it was given, which is what calvin_env's info shows."""

    def robot_info(self) -> dict[str, Any]:
        bullet, client, robot = self._bullet, self._client, self._robot
        position, orientation = bullet.getLinkState(robot, self._tcp, physicsClientId=client)[:2]
        angles = [state[0] for state in bullet.getJointStates(robot, self._joints, physicsClientId=client)]
        return {
            "tcp_pos": position,
            "tcp_orn": bullet.getEulerFromQuaternion(orientation),
            "gripper_opening_width": angles[7] + angles[8],
            "arm_joint_states": angles[:7],
            "gripper_action": self.given_gripper,
            "uid": robot,
            "contacts": bullet.getContactPoints(bodyA=robot, physicsClientId=client),
        }

    def scene_info(self) -> dict[str, Any]:
        bullet, client, table = self._bullet, self._client, self._table
        slide, drawer, button, switch = (
            state[0] for state in bullet.getJointStates(table, self._fixture_joints, physicsClientId=client)
        )
        names, lights = self.description, self._lights
        blocks = {}
        for name, block in self._blocks.items():
            position, orientation = bullet.getBasePositionAndOrientation(block, physicsClientId=client)
            linear, angular = bullet.getBaseVelocity(block, physicsClientId=client)
            blocks[f"block_{name}"] = {
                "current_pos": position,
                "current_orn": orientation,
                "current_lin_vel": linear,
                "current_ang_vel": angular,
                "contacts": bullet.getContactPoints(bodyA=block, physicsClientId=client),
                "uid": block,
            }
        links = {name: number for number, name in self._table_links.items() if number >= 0}
        return {
            "fixed_objects": {
                "table": {
                    "uid": table,
                    "links": {**dict(sorted(links.items(), key=lambda item: item[1])), "base_link": -1},
                    "contacts": bullet.getContactPoints(bodyA=table, physicsClientId=client),
                }
            },
            "movable_objects": blocks,
            "doors": {names.slide_joint: {"current_state": slide}, names.drawer_joint: {"current_state": drawer}},
            "buttons": {names.button_joint: {"joint_state": button, "logical_state": lights["led"]}},
            "switches": {names.switch_joint: {"joint_state": switch, "logical_state": self._switch_on}},
            "lights": {
                "lightbulb": {"logical_state": lights["bulb"]},
                "led": {"logical_state": lights["led"]},
            },
        }

    def _joint_targets(self, action: np.ndarray) -> np.ndarray:
        target = self._target_position, self._target_euler
        joints = super()._joint_targets(action)
        if self.action_kind == "absolute":  # in CALVIN, relative steps go on from where the last relative one led
            self._target_position, self._target_euler = target
        return joints


class Robot:
    """calvin_env's robot, to look at; PlayTableSimEnv.step moves it."""

    euler_obs = True
    max_rel_pos, max_rel_orn = 0.02, 0.05
    gripper_joint_limits = (0, 0.04)
    end_effector_link_id = 7
    ll_real, ul_real = JOINT_LOW, JOINT_HIGH

    def __init__(self, table: CalvinTable) -> None:
        self._table = table
        self.filename = table.description.robot_urdf
        self.base_position = list(table.description.robot_position)
        self.initial_joint_positions = np.array(table.description.rest_joints)

    @property
    def cid(self) -> int:
        return self._table._client

    @property
    def robot_uid(self) -> int:
        return self._table._robot

    @property
    def arm_joint_ids(self) -> list[int]:
        return list(self._table._arm)

    @property
    def gripper_joint_ids(self) -> list[int]:
        return list(self._table._fingers)

    @property
    def tcp_link_id(self) -> int:
        return self._table._tcp

    @property
    def target_pos(self) -> np.ndarray:
        """The target (3,; m) that relative actions accumulate on."""
        return self._table.target_pose()[:3]

    @property
    def target_orn(self) -> np.ndarray:
        """Its Euler angles (3,; rad)."""
        return self._table.target_pose()[3:]

    @property
    def gripper_action(self) -> Any:
        return self._table.given_gripper

    def get_observation(self) -> tuple[np.ndarray, dict[str, Any]]:
        """Return robot_obs (15,) and what `get_info` calls robot_info."""
        return self._table.robot_obs(), self._table.robot_info()

    def get_observation_labels(self) -> list[str]:
        """Return the names of robot_obs' numbers."""
        axes = ("x", "y", "z")
        joints = [f"robot_joint_{number}" for number in self.arm_joint_ids]
        return [
            *(f"tcp_pos_{axis}" for axis in axes), *(f"tcp_orn_{axis}" for axis in axes),
            "gripper_opening_width", *joints, "gripper_action",
        ]  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        raise MissingName(f"calvin_env's Robot.{name} is not part of arvrm.calvin; {_REMEDY}")


class PlayTableScene:
    """calvin_env's scene, to look at."""

    def __init__(self, table: CalvinTable) -> None:
        self._table = table

    def get_obs(self) -> np.ndarray:
        """Return scene_obs (24,)."""
        return self._table.scene_obs()

    def get_info(self) -> dict[str, Any]:
        """Return what the environment's `get_info` calls scene_info."""
        return self._table.scene_info()

    def __getattr__(self, name: str) -> Any:
        raise MissingName(f"calvin_env's PlayTableScene.{name} is not part of arvrm.calvin; {_REMEDY}")
