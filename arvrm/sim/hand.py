"""A hand in place of the robot: replays what an expert did as a clip of a hand, with exact 21-point labels.

Objects and fixtures move as recorded; no physics runs. `hand_body` says how the hand is held and what it looks like.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from arvrm.geometry import euler_to_quaternion, intrinsics, look_at, matrix_to_euler, project
from arvrm.interface import CONTROL_HZ, FINGERS, KEYPOINTS, UserError
from arvrm.sim.hand_body import (
    FAR,
    NEAR,
    RADII,
    HandStyle,
    HandTrajectory,
    Shape,
    align,
    aperture_of,
    capsule,
    forearm,
    guess_width,
    hand_frames,
    hand_points,
    palm_shape,
    retime,
    upper_arm,
)
from arvrm.sim.render import quiet_stdout
from arvrm.sim.scene import Camera, SceneDescription, neutral_directory, scene_description

_OCCLUSION_M = 0.01
_ARM_OCCLUSION_M = 0.045  # the wrist lies within the forearm's end


def camera_matrices(camera: Camera, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return world-to-camera (4, 4) and pinhole (3, 3) matrices of a fixed camera's size x size image, for
    `geometry.project`: world points (..., 3, m) to u, v (pixels) and depth (m)."""
    return look_at(camera.eye, camera.target, camera.up), intrinsics(camera.fov, size, size)


class HandScene:
    """A play table without robot, loaded once, in which hands replay clips.

    Args:
        scene, assets, variation, calvin_root: as `PlayTableEnv`'s.

    Raises:
        UserError: unknown scene or missing files.
    """

    def __init__(
        self,
        scene: str | SceneDescription = "A",
        assets: str = "builtin",
        variation: int | None = None,
        calvin_root: str | None = None,
    ):
        self._client = -1
        self._shapes: dict[tuple, int] = {}
        self.description = scene_description(scene, assets, calvin_root, variation)
        description = self.description
        with quiet_stdout(), neutral_directory():
            import pybullet

            self._bullet = pybullet
            self._client = client = pybullet.connect(pybullet.DIRECT)
            if client < 0:
                raise UserError("PyBullet: cannot open another physics world; close some environments")
            if description.assets == "builtin":
                pybullet.setPhysicsEngineParameter(enableFileCaching=0, physicsClientId=client)  # as PlayTableEnv does
            load, scaling = pybullet.loadURDF, description.global_scaling
            self._blocks = [
                load(block.urdf, [0.1 * k, 0, 1], globalScaling=scaling, physicsClientId=client)
                for k, block in enumerate(description.blocks)
            ]
            self._table = load(
                description.table_urdf,
                description.table_position,
                pybullet.getQuaternionFromEuler(description.table_euler),
                globalScaling=scaling,
                useFixedBase=True,
                physicsClientId=client,
            )
            if description.plane_urdf:
                load(description.plane_urdf, physicsClientId=client)
        infos = [pybullet.getJointInfo(self._table, i, physicsClientId=client)
                 for i in range(pybullet.getNumJoints(self._table, physicsClientId=client))]  # fmt: skip
        joints = {info[1].decode(): info[0] for info in infos}
        links = {info[12].decode(): info[0] for info in infos}
        self._joints = [joints[name] for name in (description.slide_joint, description.drawer_joint,
                                                  description.button_joint, description.switch_joint)]  # fmt: skip
        self._lights = [(links[light.link], light) for light in (description.bulb, description.led)]
        lit = {link for link, _ in self._lights}
        self._wooden = []
        for shape in pybullet.getVisualShapeData(self._table, physicsClientId=client):
            if shape[1] not in lit and (shape[1], 0) not in [entry[:2] for entry in self._wooden]:
                self._wooden.append((shape[1], 0, np.array(shape[7])))

    def close(self) -> None:
        if self._client >= 0 and self._bullet.isConnected(self._client):
            self._bullet.disconnect(self._client)
        self._client = -1

    def __enter__(self) -> HandScene:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def render(
        self,
        trajectory: HandTrajectory,
        style_seed: int,
        image_size: int = 96,
        image_stride: int = 3,
        style: HandStyle | None = None,
    ) -> dict[str, Any]:
        """Film one clip.

        Args:
            trajectory: N recorded steps.
            style_seed: decides everything of `HandStyle`; same seed, same bytes.
            image_size: pixels of the square images.
            image_stride: every so many steps of the clip an image is rendered, the last step always.
            style: overrides what the seed would decide.

        Returns:
            images: (F, H, W, 3) uint8.
            image_steps: (F,) int32, the clip's steps they show.
            keypoints: (M, 21, 3) float32: u, v (pixels), depth (m) relative to the wrist, + away. M depends on the
                clip's speed; clips too play at 30 Hz.
            visible: (M, 21) bool: inside the image and not behind an object, where no image was rendered judged by
                the nearest one.
            source_rows: (M,) float32, the trajectory's (fractional) row that each step shows.
            scene_obs: (M, 24) float64, the scene at each step.
            meta: the style, fps and camera, JSON-able.

        Raises:
            UserError: the trajectory's arrays disagree, or sizes are not positive.
        """
        if image_size < 8 or image_stride < 1:
            raise UserError(f"image_size, image_stride: {image_size}, {image_stride}; give at least 8 and 1")
        trajectory = trajectory.checked()
        style = style or HandStyle.draw(np.random.default_rng(style_seed), self.description.static_camera)
        position, rotation, closed, width, scene_obs, rows = retime(trajectory, style.speed)
        if width is None:
            width = guess_width(position, closed, scene_obs)
        turned, wrist = hand_frames(position, rotation, style)
        local = hand_points(aperture_of(closed, width, style), style)
        world = np.einsum("nij,nkj->nki", turned, local) + wrist[:, None]
        elbow = forearm(wrist, turned, style)
        world_to_camera, pinhole = camera_matrices(style.camera, image_size)
        projected = project(world, world_to_camera, pinhole)
        inside = ((projected[..., :2] >= 0) & (projected[..., :2] < image_size)).all(axis=-1) & (projected[..., 2] > 0)
        steps = np.arange(0, len(world), image_stride)
        if steps[-1] != len(world) - 1:
            steps = np.append(steps, len(world) - 1)
        images, hidden = self._film(style, world, elbow, turned, scene_obs, projected, steps, image_size)
        nearest = np.abs(np.arange(len(world))[:, None] - steps[None]).argmin(axis=1)
        keypoints = projected.copy()
        keypoints[..., 2] -= projected[:, :1, 2]
        meta = {key: value for key, value in asdict(style).items() if key != "light"}
        meta.update(fps=CONTROL_HZ, style_seed=int(style_seed), image_size=image_size, scene=self.description.name,
                    assets=self.description.assets)  # fmt: skip
        return {
            "images": images,
            "image_steps": steps.astype(np.int32),
            "keypoints": keypoints.astype(np.float32),
            "visible": inside & ~hidden[nearest],
            "source_rows": rows.astype(np.float32),
            "scene_obs": scene_obs,
            "meta": meta,
        }

    # Bodies

    def _body(self, key: tuple, make: Callable[[], Shape], colour) -> int:
        """Create a body in a colour. PyBullet never frees a visual shape: each is made once and used again."""
        bullet, client = self._bullet, self._client
        if key not in self._shapes:
            vertices, normals, indices = make()
            self._shapes[key] = bullet.createVisualShape(
                bullet.GEOM_MESH,
                vertices=vertices.tolist(),
                indices=indices.tolist(),
                normals=normals.tolist(),
                uvs=np.zeros((len(vertices), 2)).tolist(),
                rgbaColor=[1.0, 1.0, 1.0, 1.0],
                physicsClientId=client,
            )
        body = bullet.createMultiBody(0, -1, self._shapes[key], physicsClientId=client)
        bullet.changeVisualShape(body, -1, rgbaColor=[*colour, 1.0], physicsClientId=client)
        return body

    def _film(self, style, world, elbow, turned, scene_obs, projected, steps, size):
        """Render the chosen steps; return images (F, size, size, 3) and (F, 21): hidden by things."""
        bullet, client = self._bullet, self._client
        bodies: list[tuple[int, np.ndarray, np.ndarray]] = []  # id, positions (F, 3), quaternions (F, 4)
        points, back = world[steps], elbow[steps]

        def between(start: np.ndarray, end: np.ndarray, first: float, second: float, colour) -> None:
            along = end - start
            length = np.linalg.norm(along, axis=-1, keepdims=True)
            key = (round(float(length.mean()), 4), round(first, 5), round(second, 5), 6 if first < 0.015 else 10)
            bodies.append((self._body(key, lambda: capsule(*key), colour), start, align(along / length)))

        try:
            with quiet_stdout():
                for child in range(1, len(KEYPOINTS)):
                    finger, joint = FINGERS[(child - 1) // 4], (child - 1) % 4
                    parent = child - 1 if joint else 0
                    radius = RADII[finger] * style.size
                    if joint == 0:
                        if finger == "thumb":  # the others' hand bones lie within the palm
                            between(points[:, parent], points[:, child], 0.016 * style.size, 0.015 * style.size,
                                    style.skin)  # fmt: skip
                        continue
                    taper = (1.15, 1.0, 0.92, 0.82)
                    first, second = radius * taper[joint - 1], radius * taper[joint]
                    if finger == "thumb" and joint == 1:
                        first = 0.015 * style.size
                    between(points[:, parent], points[:, child], first, second, style.skin)
                palm = self._body(("palm", style.side, style.size), lambda: palm_shape(style), style.skin)
                bodies.append((palm, points[:, 0], euler_to_quaternion(matrix_to_euler(turned[steps]))))
                hands = {body for body, _, _ in bodies}
                arm = back - points[:, 0]
                between(points[:, 0], back, 0.024 * style.size, 0.036 * style.size, style.skin)
                upper = upper_arm(back, style)
                between(back, upper, 0.038 * style.size, 0.05 * style.size, style.sleeve or style.skin)
                if style.sleeve is not None:
                    between(points[:, 0] + 0.3 * arm, back, 0.034 * style.size, 0.044 * style.size, style.sleeve)
                arms = {body for body, _, _ in bodies} - hands
                for link, shape, colour in self._wooden:
                    tinted = [*(colour[:3] * style.tint), 1.0]
                    bullet.changeVisualShape(self._table, link, shape, rgbaColor=tinted, physicsClientId=client)
            camera = style.camera
            view = bullet.computeViewMatrix(camera.eye, camera.target, camera.up)
            projection = bullet.computeProjectionMatrixFOV(camera.fov, 1.0, NEAR, FAR)
            images = np.empty((len(steps), size, size, 3), np.uint8)
            hidden = np.zeros((len(steps), len(KEYPOINTS)), bool)
            shown: list = [None, None]
            for frame, step in enumerate(steps):
                self._place(scene_obs[step], shown)
                for body, places, quaternions in bodies:
                    bullet.resetBasePositionAndOrientation(body, places[frame].tolist(), quaternions[frame].tolist(),
                                                           physicsClientId=client)  # fmt: skip
                picture = bullet.getCameraImage(size, size, view, projection, shadow=0,
                                                renderer=bullet.ER_TINY_RENDERER, physicsClientId=client,
                                                **style.light)  # fmt: skip
                images[frame] = np.reshape(np.asarray(picture[2], np.uint8), (size, size, 4))[..., :3]
                buffer = np.reshape(np.asarray(picture[3], np.float32), (size, size))
                owner = np.reshape(np.asarray(picture[4]), (size, size)) & ((1 << 24) - 1)
                hidden[frame] = _hidden(projected[step], buffer, owner, hands, arms)
            return images, hidden
        finally:
            for body, _, _ in bodies:
                bullet.removeBody(body, physicsClientId=client)

    def _place(self, state: np.ndarray, shown: list) -> None:
        bullet, client = self._bullet, self._client
        for joint, value in zip(self._joints, state[:4], strict=True):
            bullet.resetJointState(self._table, joint, float(value), physicsClientId=client)
        for k, (link, light) in enumerate(self._lights):
            lit = bool(state[4 + k] > 0.5)
            if shown[k] != lit:
                shown[k] = lit
                colour = light.on if lit else light.off
                bullet.changeVisualShape(self._table, link, rgbaColor=list(colour), physicsClientId=client)
        for body, pose in zip(self._blocks, state[6:].reshape(3, 6), strict=True):
            bullet.resetBasePositionAndOrientation(body, pose[:3].tolist(), bullet.getQuaternionFromEuler(pose[3:]),
                                                   physicsClientId=client)  # fmt: skip


def _hidden(
    projected: np.ndarray, buffer: np.ndarray, owner: np.ndarray, hands: set[int], arms: set[int]
) -> np.ndarray:
    """Return (21,) bool: whether an object or the arm, but not the hand itself, lies in front of each keypoint."""
    size = len(buffer)
    u, v = (np.clip(projected[:, k], 0, size - 1).astype(int) for k in (0, 1))
    depth = FAR * NEAR / (FAR - (FAR - NEAR) * buffer[v, u])
    covers = owner[v, u].tolist()  # np.isin costs ten times as much for so few
    margin = np.array([_ARM_OCCLUSION_M if body in arms else _OCCLUSION_M for body in covers])
    by_another = np.array([body not in hands for body in covers])
    return by_another & (depth < projected[:, 2] - margin)
