"""calvin_env's cameras. They draw with TinyRenderer unless told otherwise, CALVIN's pixels to the bit."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from arvrm.sim.render import quiet_stdout

with quiet_stdout():
    import pybullet


class Camera:
    """What both cameras have.

    Attributes:
        renderer: "tiny" or "egl".
        viewMatrix, projectionMatrix: OpenGL's, 16 numbers by columns; a mounted camera's as of its last image.
    """

    renderer = "tiny"

    def __init__(
        self, name: str, cid: int, fov: float, aspect: float, nearval: float, farval: float, width: int, height: int
    ) -> None:
        self.name, self.cid = name, cid
        self.fov, self.aspect, self.nearval, self.farval = fov, aspect, nearval, farval
        self.width, self.height = width, height
        self.viewMatrix: Sequence[float] = ()
        self.projectionMatrix: Sequence[float] = pybullet.computeProjectionMatrixFOV(
            fov=fov, aspect=aspect, nearVal=nearval, farVal=farval
        )

    def render(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the image (height, width, 3) uint8 and the depth (height, width) float32 in metres."""
        egl = self.renderer == "egl"
        with quiet_stdout() if egl else contextlib.nullcontext():  # EGL announces its driver
            image = pybullet.getCameraImage(
                width=self.width, height=self.height, viewMatrix=self.viewMatrix,
                projectionMatrix=self.projectionMatrix, physicsClientId=self.cid,
                renderer=pybullet.ER_BULLET_HARDWARE_OPENGL if egl else pybullet.ER_TINY_RENDERER,
            )  # fmt: skip
        return self.process_rgbd(image, self.nearval, self.farval)

    def process_rgbd(self, obs: tuple, nearval: float, farval: float) -> tuple[np.ndarray, np.ndarray]:
        """Return image and depth of what PyBullet's getCameraImage gives."""
        width, height, pixels, buffer = obs[:4]
        rgb = np.ascontiguousarray(np.reshape(np.asarray(pixels, np.uint8), (height, width, 4))[:, :, :3])
        depth = np.reshape(np.asarray(buffer, np.float32), (height, width))
        return rgb, self.z_buffer_to_real_distance(depth, farval, nearval)

    def z_buffer_to_real_distance(self, z_buffer: np.ndarray, far: float, near: float) -> np.ndarray:
        """Return distances (m) along the camera's axis from a depth buffer (0 to 1)."""
        return 1.0 * far * near / (far - (far - near) * z_buffer)

    def project(self, point: np.ndarray) -> tuple[int, int]:
        """Return the pixel (u, v) of a world point (4,; homogeneous)."""
        view, projection = (np.reshape(matrix, (4, 4)).T for matrix in (self.viewMatrix, self.projectionMatrix))
        clip = projection @ view @ point
        x, y = (clip[:2] / clip[3] + 1) / 2
        return int(np.floor(x * self.width)), int(np.floor((1 - y) * self.height))

    def deproject(self, point: tuple[int, int], depth_img: np.ndarray, homogeneous: bool = False) -> np.ndarray:
        """Return the world point (3,), or (4,) if homogeneous, that a pixel (u, v) of a depth image shows."""
        u, v = point
        depth = depth_img[v, u]
        focal = self.height / (2 * np.tan(np.deg2rad(self.fov) / 2))
        x, y = (u - self.width // 2) * depth / focal, (self.height // 2 - v) * depth / focal
        world = np.linalg.inv(np.reshape(self.viewMatrix, (4, 4)).T) @ np.array([x, y, -depth, 1])
        return world if homogeneous else world[:3]


class StaticCamera(Camera):
    """A fixed camera."""

    def __init__(
        self, fov: float, aspect: float, nearval: float, farval: float, width: int, height: int,
        look_at: Sequence[float], look_from: Sequence[float], up_vector: Sequence[float], cid: int, name: str,
        robot_id: int | None = None, objects: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(name, cid, fov, aspect, nearval, farval, width, height)
        self.look_at, self.look_from, self.up_vector = list(look_at), list(look_from), list(up_vector)
        self.viewMatrix = pybullet.computeViewMatrix(
            cameraEyePosition=self.look_from, cameraTargetPosition=self.look_at, cameraUpVector=self.up_vector
        )


class GripperCamera(Camera):
    """The camera at the gripper's link `gripper_cam`; it looks along the link's y, with -z up."""

    def __init__(
        self, fov: float, aspect: float, nearval: float, farval: float, width: int, height: int,
        robot_id: int, cid: int, name: str, objects: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(name, cid, fov, aspect, nearval, farval, width, height)
        self.robot_uid = robot_id
        joints = range(pybullet.getNumJoints(robot_id, physicsClientId=cid))
        links = {pybullet.getJointInfo(robot_id, i, physicsClientId=cid)[12].decode(): i for i in joints}
        self.gripper_cam_link = links["gripper_cam"]
        self._look()

    def _look(self) -> None:
        position, orientation = pybullet.getLinkState(
            self.robot_uid, self.gripper_cam_link, physicsClientId=self.cid
        )[:2]  # fmt: skip
        rotation = np.reshape(pybullet.getMatrixFromQuaternion(orientation), (3, 3))
        self.viewMatrix = pybullet.computeViewMatrix(position, position + rotation[:, 1], -rotation[:, 2])

    @property
    def view_matrix(self) -> Sequence[float]:
        return self.viewMatrix

    @property
    def projection_matrix(self) -> Sequence[float]:
        return self.projectionMatrix

    def render(self) -> tuple[np.ndarray, np.ndarray]:
        self._look()
        return super().render()
