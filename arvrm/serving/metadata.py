"""What a server says of itself before anybody asks: what it wants, what it answers, what it was trained from."""

from __future__ import annotations

import dataclasses
from typing import Any

from arvrm import __version__
from arvrm.interface import PolicySpec, Robot
from arvrm.remote import Conventions, as_values
from arvrm.serving.sessions import Contract

_VLA_EVAL_ROTATIONS = {"rotation_6d_rows": "rot6d_interleaved"}


def own(contract: Contract, policy: dict[str, Any]) -> dict[str, Any]:
    """Return what arvrm's own client reads: conventions, the policy's wishes, and what identifies it."""
    conventions = dataclasses.replace(contract.codec.conventions, steps_per_answer=contract.steps)
    spec = dataclasses.asdict(contract.spec)
    return {"version": __version__, "spec": spec, "policy": policy, "conventions": as_values(conventions)}


def roboarena(conventions: Conventions, spec: PolicySpec, robot: Robot) -> dict[str, Any]:
    """Return the fields of RoboArena's `PolicyServerConfig` that fit."""
    external = [camera for camera in robot.cameras if camera.role not in ("gripper", "wrist")]
    looked = [camera for camera in external if camera.name in spec.image_sizes]
    found: dict[str, Any] = {
        "needs_wrist_camera": len(spec.image_sizes) > len(looked),
        "n_external_cameras": len(looked),
        "needs_stereo_camera": False,
        "needs_session_id": False,
    }
    sizes = {how.size for name, how in conventions.cameras.items() if name in spec.image_sizes}
    if len(sizes) == 1:
        found["image_resolution"] = [sizes.copy().pop()] * 2
    if conventions.action.motion == "absolute":
        found["action_space"] = "cartesian_position"
    return found


def vla_eval(conventions: Conventions, spec: PolicySpec) -> dict[str, Any]:
    """Return what a vla-eval server says: what its benchmark is to send, and what observations and actions are."""
    action = conventions.action
    cameras = {name: {"name": "image", "dims": 0, "format": "rgb_hwc_uint8"} for name in conventions.cameras}
    found: dict[str, Any] = {
        "observation_spec": cameras | {"language": {"name": "language", "dims": 0, "format": "language"}}
    }
    if action.motion == "native" or action.gripper is None or action.rotation is None:
        return found | {"action_spec": {"actions": {"name": "raw", "dims": 0, "format": "raw"}}}
    rotation = _VLA_EVAL_ROTATIONS.get(action.rotation, action.rotation)
    closes = "negative" if action.gripper.close < action.gripper.open else "positive"
    found["action_spec"] = {
        "position": {"name": "position", "dims": 3, "format": f"{action.motion}_xyz"},
        "rotation": {"name": "rotation", "dims": {"quaternion_xyzw": 4, "quaternion_wxyz": 4}.get(rotation, 6)
                     if rotation not in ("euler_xyz", "axis_angle") else 3, "format": rotation},
        "gripper": {"name": "gripper", "dims": 1, "format": f"binary_close_{closes}"},
    }  # fmt: skip
    found["observation_params"] = {
        "send_wrist_image": "rgb_gripper" in spec.image_sizes,
        "send_state": bool(conventions.state),
        "absolute_action": action.motion == "absolute",
    }
    return found
