"""Writes the built-in Franka Emika Panda: our own primitives, joints and links named as CALVIN's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from arvrm.sim import assets_build as build
from arvrm.sim.assets_build import Mesh
from arvrm.sim.builtin_layout import Style
from arvrm.sim.scene import Vector

_HALF_TURN = np.pi / 2
_ARM = (
    # Franka Emika Panda: (place, Euler angles) of joint i in link i - 1, mass (kg), centre of mass.
    ((0, 0, 0.333), (0, 0, 0), 2.7, (0, -0.04, -0.05)),
    ((0, 0, 0), (-_HALF_TURN, 0, 0), 2.73, (0, -0.04, 0.06)),
    ((0, -0.316, 0), (_HALF_TURN, 0, 0), 2.04, (0.01, 0.01, -0.05)),
    ((0.0825, 0, 0), (_HALF_TURN, 0, 0), 2.08, (-0.03, 0.03, 0.02)),
    ((-0.0825, 0.384, 0), (-_HALF_TURN, 0, 0), 3.0, (0, 0.04, -0.12)),
    ((0, 0, 0), (_HALF_TURN, 0, 0), 1.3, (0.04, 0, 0)),
    ((0.088, 0, 0), (_HALF_TURN, 0, 0), 0.2, (0, 0, 0.08)),
)
_ARM_LIMITS = (  # mechanical limits; the controller clips to narrower ones
    (-2.9671, 2.9671), (-1.8326, 1.8326), (-2.9671, 2.9671), (-3.1416, 0.0), (-2.9671, 2.9671), (-0.0873, 3.8223),
    (-2.9671, 2.9671),
)  # fmt: skip

_Cylinder = tuple[Vector, Vector, float]
_ARM_CYLINDERS: tuple[tuple[tuple[_Cylinder, ...], tuple[_Cylinder, ...]], ...] = (
    # Per link 1 to 7: white shells and grey joint caps, as (start, end, radius).
    (
        (((0, 0, -0.192), (0, 0, 0.02), 0.058), ((0, -0.11, 0), (0, 0.0, 0), 0.058)),
        (((0, -0.13, 0), (0, -0.11, 0), 0.052),),
    ),
    (
        (((0, 0, 0), (0, -0.194, 0), 0.058), ((0, 0, 0), (0, 0, 0.11), 0.058)),
        (((0, 0, 0.11), (0, 0, 0.13), 0.052),),
    ),
    (
        (
            ((0, 0, -0.121), (0, 0, 0), 0.056),
            ((0, 0, -0.02), (0.0825, 0.03, 0), 0.052),
            ((0.0825, -0.02, 0), (0.0825, 0.095, 0), 0.055),
        ),
        (((0.0825, 0.095, 0), (0.0825, 0.112, 0), 0.05),),
    ),
    (
        (
            ((0, 0, 0), (0, 0, 0.095), 0.055),
            ((0, 0, 0.02), (-0.0825, 0.03, 0), 0.052),
            ((-0.0825, 0, 0), (-0.0825, 0.124, 0), 0.055),
        ),
        (((0, 0, 0.095), (0, 0, 0.112), 0.05),),
    ),
    (
        (
            ((0, 0, -0.26), (0, 0, -0.13), 0.056),
            ((0, 0.005, -0.15), (0, 0.06, -0.02), 0.055),
            ((0, 0.04, 0), (0, 0.115, 0), 0.05),
        ),
        (((0, 0.115, 0), (0, 0.13, 0), 0.045),),
    ),
    (
        (
            ((0, 0, -0.044), (0, 0, 0.05), 0.05),
            ((0, 0, 0), (0.088, 0.015, 0), 0.045),
            ((0.088, -0.05, 0), (0.088, 0.07, 0), 0.047),
        ),
        (((0.088, 0.07, 0), (0.088, 0.082, 0), 0.04),),
    ),
    ((((0, 0, 0.05), (0, 0, 0.107), 0.043),), ()),
)


def _cylinder_shape(part: _Cylinder) -> str:
    start, end, radius = (np.asarray(part[0], float), np.asarray(part[1], float), part[2])
    axis = end - start
    length = float(np.linalg.norm(axis))
    axis = axis / length
    pitch, yaw = float(np.arccos(np.clip(axis[2], -1, 1))), float(np.arctan2(axis[1], axis[0]))
    return build.cylinder_shape((start + end) / 2, radius, length, (0, pitch, yaw))


def write_robot(folder: Path, style: Style) -> Path:
    """Write the Panda; its meshes are the same for all scenes of a process."""
    shared = folder.parent / "panda"
    if not shared.is_dir():
        _write_robot_meshes(shared)
    foot = [build.visual("../panda/link0.obj", style.robot), build.box_shape((-0.14, -0.09, 0), (0.07, 0.09, 0.10)),
            build.cylinder_shape((0, 0, 0.07), 0.07, 0.14)]  # fmt: skip
    parts = [build.link("panda_link0", foot, 2.9, (0, 0, 0.05))]
    for k, (place, turn, mass, centre) in enumerate(_ARM):
        shells, caps = _ARM_CYLINDERS[k]
        elements = [build.visual(f"../panda/link{k + 1}_shell.obj", style.robot)]
        if caps:
            elements.append(build.visual(f"../panda/link{k + 1}_cap.obj", style.joints))
        elements += [_cylinder_shape(part) for part in shells]
        effort, velocity = (87, 2.175) if k < 4 else (12, 2.61)
        parts.append(build.link(f"panda_link{k + 1}", elements, mass, centre))
        parts.append(build.joint(f"panda_joint{k + 1}", "revolute", f"panda_link{k}", f"panda_link{k + 1}", place, turn,
                                 (0, 0, 1), _ARM_LIMITS[k], effort, velocity))  # fmt: skip
    parts += _gripper(style)
    path = folder / "robot.urdf"
    path.write_text(build.robot("panda", parts))
    return path


_PAD = ((0.0161, -0.0092, 0.0047), (0.0201, 0.0092, 0.0297))


def _write_robot_meshes(folder: Path) -> None:
    folder.mkdir()
    base = Mesh().cylinder((0, 0, 0.0), (0, 0, 0.14), 0.085, 0.065, sides=10, caps="")
    base.cylinder((-0.05, 0, -0.24), (-0.05, 0, 0), 0.13, sides=12, caps="+")  # the pedestal
    base.save(folder / "link0.obj")
    for k, (shells, caps) in enumerate(_ARM_CYLINDERS):
        for kind, cylinders in (("shell", shells), ("cap", caps)):
            mesh = Mesh()
            for start, end, radius in cylinders:
                mesh.cylinder(start, end, radius, sides=8)
            if cylinders:
                mesh.save(folder / f"link{k + 1}_{kind}.obj")
    outline = [(-0.1, 0.0), (0.1, 0.0), (0.104, 0.02), (0.09, 0.06), (-0.09, 0.06), (-0.104, 0.02)]
    Mesh().prism_x(outline, -0.03, 0.03).save(folder / "hand.obj")
    # Finger: (y, z) outline, inner face at y = 4 mm, tip 96 mm below the finger's joint.
    outline = [(0.0062, 0.0), (0.027, 0.0), (0.0215, 0.034), (0.0068, 0.0962), (0.0040, 0.0962), (0.0040, 0.064)]
    finger = Mesh().prism_x(outline, -0.0098, 0.0098)
    finger.save(folder / "finger_left.obj")
    finger.transformed(np.diag([-1.0, -1.0, 1.0])).save(folder / "finger_right.obj")
    Mesh().box(*_PAD).save(folder / "pad.obj")
    # The camera looks out of its own box (+y): leave that face out.
    Mesh().box((-0.04, -0.0125, -0.005), (0.04, 0.0125, 0.005), "-x +x -y -z +z").save(folder / "camera.obj")


def _gripper(style: Style) -> list[str]:
    """Hand, two long fingers with pads, the camera on the hand and the tool centre point, in CALVIN's order."""
    hand_box = build.box_shape((-0.0315, -0.103, -0.02), (0.0315, 0.103, 0.06))
    hand_parts = [build.visual("../panda/hand.obj", style.robot), hand_box]
    contact = ('<contact><stiffness value="30000.0"/><damping value="1000.0"/><spinning_friction value="0.1"/>'
               '<lateral_friction value="1.0"/></contact>')  # fmt: skip
    soft = '<contact><lateral_friction value="1"/><spinning_friction value="0.001"/></contact>'
    grey = tuple(0.92 * np.array(style.robot))

    def finger_link(side: str, sign: int) -> str:
        file = f"../panda/finger_{side}.obj"
        return build.link(f"panda_{side}finger", [build.visual(file, grey), build.mesh_shape(file)], 0.1,
                          (0, 0.01 * sign, 0.02), contact)  # fmt: skip

    tip = [build.visual("../panda/pad.obj", style.robot), build.box_shape(*_PAD)]
    return [
        build.link("panda_link8"),
        build.link("panda_hand", hand_parts, 0.81, (0, 0, 0.04)),
        finger_link("left", 1),
        finger_link("right", -1),
        build.link("panda_grasptarget"),
        build.link("gripper_cam", [build.visual("../panda/camera.obj", style.robot)], 0.2),
        build.link("tcp", mass=1e-5),
        build.link("finger_left_tip", tip, 1e-4, contact=soft),
        build.link("finger_right_tip", tip, 1e-4, contact=soft),
        build.joint("panda_joint8", "fixed", "panda_link7", "panda_link8", (0, 0, 0.107)),
        build.joint("panda_hand_joint", "fixed", "panda_link8", "panda_hand", (0, 0, 0), (0, 0, -np.pi / 4)),
        build.joint("panda_finger_joint1", "prismatic", "panda_hand", "panda_leftfinger", (0, 0, 0.0584), (0, 0, 0),
                    (0, 1, 0), (0.0, 0.04), 20, 0.2),
        build.joint("panda_finger_joint2", "prismatic", "panda_hand", "panda_rightfinger", (0, 0, 0.0584), (0, 0, 0),
                    (0, -1, 0), (0.0, 0.04), 20, 0.2),
        build.joint("panda_grasptarget_hand", "fixed", "panda_hand", "panda_grasptarget", (0, 0, 0.105)),
        build.joint("camera_joint", "fixed", "panda_hand", "gripper_cam", (-0.1, 0, 0), (1.3, 0, -1.57)),
        build.joint("tcp_joint", "fixed", "panda_hand", "tcp", (0, 0, 0.14)),
        build.joint("joint_finger_tip_left", "fixed", "panda_leftfinger", "finger_left_tip", (0.0009, 0.021, 0.066),
                    (0, 0, -1.57)),
        build.joint("joint_finger_tip_right", "fixed", "panda_rightfinger", "finger_right_tip",
                    (-0.0009, -0.021, 0.066), (0, 0, 1.57)),
    ]  # fmt: skip
