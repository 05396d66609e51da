"""CALVIN's robot: a Franka Panda with a parallel gripper, driven by relative poses of the tool centre point (TCP).

Source: Mees et al., CALVIN, IEEE RA-L 2022, and the simulator's own conventions (docs/calvin.md).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from arvrm.config import bounded, check_bounds, from_dict
from arvrm.geometry import angle_difference, wrap_angle
from arvrm.interface import CONTROL_HZ, LANDMARK_UNIT_M, ActionLayout, ArraySpec, Camera, UserError

COMPONENTS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
POSITION_STEP_M = 0.02
"""Metres that a relative action of 1 moves the target TCP."""
EULER_STEP_RAD = 0.05
"""Radians that a relative action of 1 turns the target TCP."""
ARM = 6
"""Arm numbers of an action; the gripper is the last."""
LANDMARKS = ("red", "blue", "pink", "slider_handle", "drawer_handle", "button", "switch")
"""Rows of the privileged arrays `landmarks` and `landmark_pixels`."""
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Statistics:
    """How robot states are normalised. Constants of CALVIN's workspace, so that stores and sites agree on them.

    Attributes:
        position_centre, position_scale: metres; (p - centre) / scale is about -1..1 over the table.
        euler_reference: radians; the gripper pointing down, fingers across the table. Angles are measured from it and
            wrapped, so that the jump from pi to -pi lies behind the gripper, where it never goes.
        euler_scale: radians that count as 1.
        gripper_open_m: width of the open gripper.
    """

    position_centre: tuple[float, float, float] = (0.04, -0.1, 0.5)
    position_scale: tuple[float, float, float] = bounded((0.3, 0.2, 0.15), above=0)
    euler_reference: tuple[float, float, float] = (math.pi, 0.0, math.pi / 2)
    euler_scale: tuple[float, float, float] = bounded((0.5, 0.5, math.pi / 2), above=0)
    gripper_open_m: float = bounded(0.08, above=0)

    __post_init__ = check_bounds


@dataclass(frozen=True)
class Calvin:
    """See `interface.Robot`; arrays and frames as in docs/data.md.

    Observed are `robot_obs` (15,) float64: TCP position (3, m), TCP Euler xyz (3, rad), gripper width (m), 7 joint
    angles (rad), last gripper action (+-1: 1 open); and `target_pose` (6,) float64, which relative actions move.
    """

    statistics: Statistics = field(default_factory=Statistics)
    name: str = "calvin"
    control_hz: float = float(CONTROL_HZ)
    components: tuple[str, ...] = COMPONENTS
    component_units: tuple[str, ...] = ("m", "m", "m", "rad", "rad", "rad", "m")
    state_size: int = 18
    observed: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: {"robot_obs": (15,), "target_pose": (6,)})
    actions: ActionLayout = ActionLayout(
        names=COMPONENTS,
        units=(*[f"{POSITION_STEP_M} m"] * 3, *[f"{EULER_STEP_RAD} rad"] * 3, "-1 close, 1 open"),
        binary=1,
        relative=True,
        frame="world, added to the target pose of the TCP; Euler xyz",
    )
    cameras: tuple[Camera, ...] = (Camera("rgb_static", "static"), Camera("rgb_gripper", "gripper"))
    arrays: Mapping[str, ArraySpec] = field(
        default_factory=lambda: {
            "robot_obs": ArraySpec("float64", (15,)),
            "scene_obs": ArraySpec("float64", (24,), required=False),
            "target_pose": ArraySpec("float64", (6,), required=False),
            "actions": ArraySpec("float32", (7,)),
            "executed": ArraySpec("float32", (7,)),
            "absolute_actions": ArraySpec("float64", (7,), required=False),
            "landmarks": ArraySpec("float32", (len(LANDMARKS), 3), required=False),
            "landmark_pixels": ArraySpec("float32", (len(LANDMARKS), 2), required=False, finite=False),
            "depth_static": ArraySpec("float32", (200, 200), required=False),
            "depth_gripper": ArraySpec("float32", (84, 84), required=False),
            "rgb_tactile": ArraySpec("uint8", (160, 120, 6), required=False),
            "depth_tactile": ArraySpec("float32", (160, 120, 2), required=False),
        }
    )

    def with_statistics(self, values: Mapping[str, Any], place: str = "statistics") -> Calvin:
        return dataclasses.replace(self, statistics=from_dict(Statistics, dict(values), place))

    def encode_components(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        robot_obs = np.asarray(state["robot_obs"], dtype=np.float64)
        known = self.statistics
        position = (robot_obs[..., :3] - known.position_centre) / known.position_scale
        angles = wrap_angle(robot_obs[..., 3:6] - np.asarray(known.euler_reference)) / known.euler_scale
        gripper = 2.0 * robot_obs[..., 6:7] / known.gripper_open_m - 1.0
        return np.concatenate([position, angles, gripper], axis=-1).astype(np.float32)

    def decode_components(self, components: np.ndarray) -> np.ndarray:
        """As in `interface.Robot`: position (m), Euler xyz (rad, in [-pi, pi)), gripper width (m)."""
        components, known = np.asarray(components, dtype=np.float64), self.statistics
        position = components[..., :3] * known.position_scale + known.position_centre
        angles = wrap_angle(components[..., 3:6] * np.asarray(known.euler_scale) + known.euler_reference)
        gripper = (components[..., 6:7] + 1.0) / 2.0 * known.gripper_open_m
        return np.concatenate([position, angles, gripper], axis=-1)

    def encode_state(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        """As in `interface.Robot`.

        In order: normalised position (3), sines (3) and cosines (3) of the Euler angles from the reference, gripper
        width (1), last gripper action as one-hot open, close (2), controller target minus TCP in action steps: position
        (3), angles (3), both clipped to 10 steps; without `target_pose` the target is the TCP.
        """
        robot_obs = np.asarray(state["robot_obs"], dtype=np.float64)
        target_pose = state.get("target_pose")
        components = self.encode_components(state)
        angles = robot_obs[..., 3:6] - np.asarray(self.statistics.euler_reference)
        opened = (robot_obs[..., 14:15] > 0).astype(np.float64)
        offset = np.zeros((*robot_obs.shape[:-1], ARM))
        if target_pose is not None:
            difference = np.asarray(target_pose, dtype=np.float64) - robot_obs[..., :6]
            offset[..., :3] = difference[..., :3] / POSITION_STEP_M
            offset[..., 3:] = wrap_angle(difference[..., 3:]) / EULER_STEP_RAD
        parts = [components[..., :3], np.sin(angles), np.cos(angles), components[..., 6:7], opened, 1.0 - opened]
        return np.concatenate([*parts, np.clip(offset, -10.0, 10.0)], axis=-1).astype(np.float32)

    def encode_actions(self, actions: np.ndarray) -> np.ndarray:
        return np.asarray(actions, dtype=np.float32)

    def decode_actions(self, actions: np.ndarray) -> np.ndarray:
        return np.asarray(actions, dtype=np.float32)

    def check_actions(self, place: str, actions: np.ndarray) -> None:
        """Raises UserError: an arm number leaves [-1, 1], or a gripper is not exactly -1 or 1."""
        if np.abs(actions[:, :ARM]).max() > 1 + _TOLERANCE:
            row, column = np.argwhere(np.abs(actions[:, :ARM]) > 1 + _TOLERANCE)[0]
            shown = f"{place}[{row}, {column}] is {actions[row, column]:g}"
            raise UserError(f"{shown}; relative actions lie in [-1, 1]: convert absolute ones, do not clip them")
        if not np.isin(actions[:, ARM], (-1.0, 1.0)).all():
            row = int(np.argwhere(~np.isin(actions[:, ARM], (-1.0, 1.0)))[0][0])
            raise UserError(f"{place}[{row}, {ARM}] is {actions[row, ARM]:g}; the gripper is exactly -1 or 1")

    def landmark_offsets(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return (arrays["landmarks"] - arrays["robot_obs"][:, None, :3]) / LANDMARK_UNIT_M

    def example(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        robot_obs = np.concatenate([rng.uniform(-1, 1, 14), [1.0]])
        return {"robot_obs": robot_obs, "target_pose": robot_obs[:6]}

    def random_action(self, rng: np.random.Generator) -> np.ndarray:
        return np.append(rng.uniform(-1, 1, ARM), rng.choice([-1.0, 1.0])).astype(np.float32)


CALVIN = Calvin()


def relative_action(pose, target, gripper) -> np.ndarray:
    """Return CALVIN's relative action (..., 7) that leads from `pose` to `target`, clipped to one step.

    Args:
        pose, target: (..., 6) TCP positions (m) and Euler angles (rad); Euler differences are wrapped.
        gripper: 1 (open) or -1 (close), broadcast.
    """
    pose, target = np.asarray(pose, dtype=np.float64), np.asarray(target, dtype=np.float64)
    position = (target[..., :3] - pose[..., :3]) / POSITION_STEP_M
    euler = angle_difference(target[..., 3:6], pose[..., 3:6]) / EULER_STEP_RAD
    motion = np.clip(np.concatenate([position, euler], axis=-1), -1.0, 1.0)
    gripper = np.broadcast_to(np.asarray(gripper, dtype=np.float64), motion.shape[:-1])
    return np.concatenate([motion, gripper[..., None]], axis=-1)


def apply_relative_action(pose, action) -> np.ndarray:
    """Return the target pose (..., 6; Euler not wrapped) after a relative action (..., 7): what the controller does."""
    pose, action = np.asarray(pose, dtype=np.float64), np.asarray(action, dtype=np.float64)
    return pose[..., :6] + action[..., :6] * np.array([POSITION_STEP_M] * 3 + [EULER_STEP_RAD] * 3)
