"""A human hand: how it is sized, held and bent to follow a gripper, and what it looks like.

The hand is a kinematic chain of capsules. Thumb and index finger pinch where the gripper's fingers grasped, as far
apart as the gripper was open; the other fingers follow. Size, skin, side, way of approach, speed, camera, light and the
table's tint come from a seed.

Hand frame (right hand, m): origin at the wrist, x towards the fingers, y towards the thumb's side, z out of the back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from arvrm.geometry import euler_to_quaternion, quaternion_to_matrix
from arvrm.interface import FINGERS, KEYPOINTS, UserError
from arvrm.sim.assets_build import Mesh
from arvrm.sim.scene import Camera

_BASES = {  # first joint of each finger of an average adult hand (m)
    "thumb": (0.025, 0.028, -0.012),
    "index": (0.088, 0.024, 0.0),
    "middle": (0.091, 0.003, 0.003),
    "ring": (0.085, -0.016, 0.0),
    "little": (0.077, -0.034, -0.005),
}
_LENGTHS = {  # its three bones
    "thumb": (0.046, 0.033, 0.028),
    "index": (0.043, 0.026, 0.022),
    "middle": (0.047, 0.030, 0.023),
    "ring": (0.044, 0.028, 0.023),
    "little": (0.035, 0.021, 0.020),
}
RADII = {"thumb": 0.0105, "index": 0.0088, "middle": 0.009, "ring": 0.0085, "little": 0.0075}
_PINCH = np.array([0.113, 0.030, -0.052])  # where thumb and index meet
_BEND_RATIO = 0.65  # the last joint bends this much of the middle one
_KNUCKLES_UP = (0.4, 0.0, 1.0)
_THUMB_OUT = (0.3, 1.0, -0.2)
NEAR, FAR = 0.5, 10.0
_SKINS = np.array([
    (0.98, 0.83, 0.73), (0.93, 0.74, 0.61), (0.85, 0.63, 0.48), (0.72, 0.49, 0.35), (0.52, 0.34, 0.24),
    (0.35, 0.22, 0.16),
])  # fmt: skip


@dataclass(frozen=True)
class HandTrajectory:
    """What an expert did, one row a step at 30 Hz.

    Attributes:
        tcp: (N, 6) TCP positions (m) and Euler angles (rad), world frame.
        closed: (N,) bool: whether the gripper was told to close.
        scene_obs: (N, 24) CALVIN's scene state, blocks in the scene's order.
        width: (N,) opening of the gripper (m), or None: taken from `closed` and the nearest block.
    """

    tcp: np.ndarray
    closed: np.ndarray
    scene_obs: np.ndarray
    width: np.ndarray | None = None

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> HandTrajectory:
        """Take a robot episode's arrays: robot_obs (N, 15), scene_obs (N, 24), actions or executed (N, 7)."""
        robot = np.asarray(arrays["robot_obs"])
        actions = arrays.get("executed", arrays.get("actions"))
        closed = robot[:, 14] < 0 if actions is None else np.asarray(actions)[:, 6] < 0
        return cls(robot[:, :6], closed, np.asarray(arrays["scene_obs"]), robot[:, 6])

    def checked(self) -> HandTrajectory:
        """Return float64 copies; raise UserError where lengths or shapes disagree or numbers are not finite."""
        count = len(self.tcp)
        shapes = {"tcp": (count, 6), "closed": (count,), "scene_obs": (count, 24)}
        values = {"tcp": self.tcp, "closed": self.closed, "scene_obs": self.scene_obs}
        if self.width is not None:
            shapes["width"], values["width"] = (count,), self.width
        if count < 2:
            raise UserError(f"trajectory: {count} steps are too few; give at least 2")
        result = {}
        for name, value in values.items():
            array = np.array(value, dtype=bool if name == "closed" else np.float64)
            if array.shape != shapes[name]:
                raise UserError(f"trajectory.{name}: shape {array.shape}, expected {shapes[name]}; pass equal lengths")
            if not np.isfinite(array).all():
                raise UserError(f"trajectory.{name}: not finite; pass recorded states")
            result[name] = array
        return HandTrajectory(**result)


@dataclass(frozen=True)
class HandStyle:
    """What a seed decides of one clip."""

    side: str
    size: float
    """Relative to an average adult's hand."""
    skin: tuple[float, float, float]
    sleeve: tuple[float, float, float] | None
    pitch: float
    """Angle (rad) between hand and approach: 0 fingers straight down, larger a flatter hand."""
    roll: float
    """Angle (rad) by which the thumb lies to the side of the index finger."""
    lean: tuple[float, float]
    """Small turn (rad) of the hand against the gripper: about the approach and about the opening axis."""
    curl: float
    """0: the other fingers lie beside the index finger; 1: curled into the palm."""
    shoulder: tuple[float, float, float]
    """World point (m) that the forearm comes from."""
    widest: float
    """Largest aperture (m)."""
    speed: float
    """Playback speed relative to the expert's."""
    camera: Camera
    light: dict[str, Any]
    tint: tuple[float, float, float]
    """Multiplies the table's colours."""

    @classmethod
    def draw(cls, rng: np.random.Generator, camera: Camera) -> HandStyle:
        place = rng.uniform(0, len(_SKINS) - 1)
        low = int(place)
        skin = _SKINS[low] + (place - low) * (_SKINS[min(low + 1, len(_SKINS) - 1)] - _SKINS[low])
        skin = np.clip(skin * rng.uniform(0.93, 1.05) + rng.normal(0, 0.01, 3), 0, 1)
        sleeve = tuple(float(c) for c in rng.uniform(0.1, 0.9, 3)) if rng.random() < 0.6 else None
        # A person stands in front of the table or at one end, out of the camera's way (it looks from the right front).
        x, y = (rng.uniform(-0.7, 0.0), rng.uniform(-0.9, -0.65))
        other = rng.random()
        if other < 0.2:
            x, y = -1.0, rng.uniform(-0.5, 0.0)
        elif other < 0.3:
            x, y = 0.9, rng.uniform(0.1, 0.3)
        shoulder = (x, y, rng.uniform(0.6, 0.85))
        angle, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.3)
        light = {
            "lightDirection": [np.cos(angle) * np.cos(height), np.sin(angle) * np.cos(height), np.sin(height)],
            "lightColor": np.clip(rng.uniform(0.85, 1.0) + rng.normal(0, 0.03, 3), 0.7, 1.0).tolist(),
            "lightDistance": 2.0,
            "lightAmbientCoeff": rng.uniform(0.55, 0.75),
            "lightDiffuseCoeff": rng.uniform(0.25, 0.5),
            "lightSpecularCoeff": rng.uniform(0.0, 0.05),
        }
        return cls(
            side="right" if rng.random() < 0.7 else "left",
            size=round(rng.uniform(0.85, 1.1), 2),  # a bounded number of different shapes
            skin=tuple(float(c) for c in skin),
            sleeve=sleeve,
            pitch=rng.uniform(0.45, 0.95),
            roll=rng.uniform(0.35, 0.85),
            lean=(rng.uniform(-0.4, 0.4), rng.uniform(-0.2, 0.2)),
            curl=rng.uniform(0.0, 0.9),
            shoulder=tuple(float(v) for v in shoulder),
            widest=rng.uniform(0.055, 0.085),
            speed=rng.uniform(0.8, 1.8),
            camera=_moved(camera, rng),
            light=light,
            tint=tuple(float(c) for c in rng.uniform(0.85, 1.0) * rng.uniform(0.9, 1.0, 3)),
        )


def _moved(camera: Camera, rng: np.random.Generator) -> Camera:
    """Carry a camera around its target by some degrees, aim it a little aside, and zoom."""
    eye, target, up = (np.asarray(v, float) for v in (camera.eye, camera.target, camera.up))
    azimuth, elevation = rng.normal(0, np.deg2rad(7)), rng.normal(0, np.deg2rad(3))
    offset = eye - target
    across = np.cross(offset, (0, 0, 1))
    turn = _about((0, 0, 1), azimuth) @ _about(across / np.linalg.norm(across), elevation)
    aim = target + rng.normal(0, 0.012, 3)
    place = aim + turn @ offset * rng.uniform(0.95, 1.08)
    return Camera(camera.fov * rng.uniform(0.97, 1.12), NEAR, FAR, tuple(map(float, place)),
                  tuple(map(float, aim)), tuple(map(float, turn @ up)))  # fmt: skip


def _about(axis, angle: float) -> np.ndarray:
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


# ------------------------------------------------------------------------------------------------------ kinematics


def hand_points(aperture: np.ndarray, style: HandStyle) -> np.ndarray:
    """Pose the fingers for a pinch.

    Args:
        aperture: (N,) distance (m) between the skins of thumb and index finger.

    Returns:
        (N, 21, 3) keypoints in the hand's frame (m), a left hand mirrored in y.
    """
    size, count = style.size, len(aperture)
    points = np.zeros((count, len(KEYPOINTS), 3))
    _, opening = _pinch_axes(style)
    centre = _PINCH * size
    tips = {}
    # The skins touch the object, the keypoints lie inside the fingers.
    tips["thumb"] = centre - (aperture[:, None] / 2 + 0.7 * RADII["thumb"] * size) * opening
    tips["index"] = centre + (aperture[:, None] / 2 + 0.7 * RADII["index"] * size) * opening
    for k, finger in enumerate(FINGERS[2:], start=1):
        base, first = np.array(_BASES[finger]) * size, np.array(_BASES["index"]) * size
        beside = tips["index"] + (base - first) * (0.6, 0.75, 0.5) + np.array([-0.004, 0.0, 0.004]) * k * size
        curled = base + np.array([0.022, 0.004, -0.040]) * size
        blend = np.clip(style.curl * (0.55 + 0.25 * k), 0, 1)
        tips[finger] = (1 - blend) * beside + blend * curled
    for k, finger in enumerate(FINGERS):
        start = 1 + 4 * k
        base = np.array(_BASES[finger]) * size
        lengths = np.array(_LENGTHS[finger]) * size
        points[:, start] = base
        bulge = _THUMB_OUT if finger == "thumb" else _KNUCKLES_UP
        points[:, start + 1 : start + 4] = _bend(base, tips[finger], lengths, np.array(bulge))
    if style.side == "left":
        points[..., 1] *= -1
    return points


def _pinch_axes(style: HandStyle) -> tuple[np.ndarray, np.ndarray]:
    """Return the approach and the opening direction (thumb to index) in a right hand's frame."""
    flat = np.pi / 2 - style.pitch  # how far the fingers point below the hand's own direction
    approach = np.array([np.cos(flat), 0.0, -np.sin(flat)])
    upwards = np.array([np.sin(flat), 0.0, np.cos(flat)])
    return approach, np.cos(style.roll) * upwards - np.sin(style.roll) * np.array([0.0, 1.0, 0.0])


def _bend(base: np.ndarray, target: np.ndarray, lengths: np.ndarray, bulge: np.ndarray) -> np.ndarray:
    """Bend a chain of three bones from base (3,) to targets (N, 3), knuckles towards `bulge`; (N, 3, 3) joints."""
    bends = np.linspace(0.02, 2.2, 128)
    angles = np.stack([np.zeros_like(bends), bends, (1 + _BEND_RATIO) * bends])
    ends = np.stack([lengths @ np.cos(angles), -(lengths @ np.sin(angles))])
    reach = np.hypot(*ends)
    order = slice(None, np.argmin(reach) + 1)
    reaches, turns = reach[order][::-1], np.arctan2(ends[1], ends[0])[order][::-1]
    along = target - base
    distance = np.linalg.norm(along, axis=-1)
    along /= distance[:, None]
    bend = np.interp(distance, reaches, bends[order][::-1])
    turn = np.interp(distance, reaches, turns)
    side = bulge - (along @ bulge)[:, None] * along
    side /= np.linalg.norm(side, axis=-1, keepdims=True)
    joints, place = [], np.broadcast_to(base, target.shape)
    for length, angle in zip(lengths, (-turn, -turn - bend, -turn - (1 + _BEND_RATIO) * bend), strict=True):
        place = place + length * (np.cos(angle)[:, None] * along + np.sin(angle)[:, None] * side)
        joints.append(place)
    return np.stack(joints, axis=1)


def hand_frames(position: np.ndarray, rotation: np.ndarray, style: HandStyle) -> tuple[np.ndarray, np.ndarray]:
    """Return the hand's rotation (N, 3, 3) and wrist (N, 3) for gripper poses: fingers open along the gripper's y."""
    approach, opening = _pinch_axes(style)
    mirror = np.diag([1.0, -1.0, 1.0]) if style.side == "left" else np.eye(3)
    local = np.stack([mirror @ approach, mirror @ opening, np.cross(mirror @ approach, mirror @ opening)], axis=1)
    lean = _about((0, 0, 1), style.lean[0]) @ _about((0, 1, 0), style.lean[1])
    best = None
    for sign in (1.0, -1.0):
        # Gripper's frame: z is the approach, y the opening axis.
        tool = np.stack([lean[:, 2], sign * lean[:, 1], np.cross(lean[:, 2], sign * lean[:, 1])], axis=1)
        turned = rotation @ tool @ local.T
        pinch = position + 0.006 * rotation[..., 2]
        wrist = pinch - (turned @ (mirror @ _PINCH)) * style.size
        # The thumb is on the side from which the wrist comes more naturally, for the whole clip.
        score = np.mean(np.sum((wrist - pinch) * (np.array(style.shoulder) - pinch), axis=-1))
        if best is None or score > best[0]:
            best = (score, turned, wrist)
    return best[1], best[2]


def forearm(wrist: np.ndarray, rotation: np.ndarray, style: HandStyle) -> np.ndarray:
    """Return the elbow (N, 3): behind the hand, drawn towards the shoulder."""
    towards = np.array(style.shoulder) - wrist
    towards /= np.linalg.norm(towards, axis=-1, keepdims=True)
    direction = -rotation[..., 0] + 1.2 * towards
    direction[:, 2] = np.maximum(direction[:, 2], 0.1)
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    return wrist + 0.26 * style.size * direction


def upper_arm(elbow: np.ndarray, style: HandStyle) -> np.ndarray:
    """Return where the visible part of the upper arm ends (N, 3): towards the shoulder, mostly out of the picture."""
    towards = np.array(style.shoulder) - elbow
    return elbow + 0.45 * style.size * towards / np.linalg.norm(towards, axis=-1, keepdims=True)


def retime(trajectory: HandTrajectory, speed: float) -> tuple[np.ndarray, ...]:
    """Resample at `speed`; return position (M, 3), rotation (M, 3, 3), closed (M,), width, scene_obs, rows (M,)."""
    last = len(trajectory.tcp) - 1
    count = max(int(np.ceil(last / speed)) + 1, 2)
    rows = np.linspace(0.0, last, count)
    low = np.minimum(rows.astype(int), last - 1)
    share = (rows - low)[:, None]
    position = (1 - share) * trajectory.tcp[low, :3] + share * trajectory.tcp[low + 1, :3]
    quaternion = euler_to_quaternion(trajectory.tcp[:, 3:])
    first, second = quaternion[low], quaternion[low + 1]
    second = np.where(np.sum(first * second, axis=-1, keepdims=True) < 0, -second, second)
    rotation = quaternion_to_matrix((1 - share) * first + share * second)
    nearest = np.minimum(np.round(rows).astype(int), last)
    scene = (1 - share) * trajectory.scene_obs[low] + share * trajectory.scene_obs[low + 1]
    scene[:, 4:6] = trajectory.scene_obs[nearest, 4:6]
    for k in range(3):  # Euler angles wrap: do not interpolate them
        scene[:, 9 + 6 * k : 12 + 6 * k] = trajectory.scene_obs[nearest, 9 + 6 * k : 12 + 6 * k]
    width = None if trajectory.width is None else np.interp(rows, np.arange(last + 1), trajectory.width)
    return position, rotation, trajectory.closed[nearest], width, scene, rows


def aperture_of(closed: np.ndarray, width: np.ndarray, style: HandStyle) -> np.ndarray:
    """Return a hand's aperture (N,): open as wide as this person does, closed onto what the gripper held."""
    aperture = np.where(closed, width, np.minimum(width, style.widest))
    padded = np.pad(aperture, 3, mode="edge")
    smooth = np.convolve(padded, np.ones(7) / 7, mode="valid")
    # While something is held the skins stay on it.
    return np.where(closed & (np.abs(aperture - smooth) < 0.004), aperture, smooth)


def guess_width(position: np.ndarray, closed: np.ndarray, scene_obs: np.ndarray) -> np.ndarray:
    """Guess the gripper's opening (N,) where it was not recorded: 4 cm around a block, 1 cm around anything else."""
    blocks = scene_obs[:, 6:].reshape(len(scene_obs), 3, 6)[..., :3]
    near = np.linalg.norm(blocks - position[:, None], axis=-1).min(axis=1) < 0.035
    return np.where(closed, np.where(near, 0.04, 0.01), 0.08)


# ---------------------------------------------------------------------------------------------------------- shapes


Shape = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Vertices (V, 3), their normals (V, 3) and triangles' corners (3 * triangles,)."""


def capsule(length: float, start: float, end: float, sides: int = 6) -> Shape:
    """A tapered capsule along z from 0 to length (m) with blunt ends; few triangles, smooth normals."""
    radii = np.array([0.0, 0.8 * start, start, end, 0.8 * end, 0.0])
    heights = np.array([-0.75 * start, -0.4 * start, 0.15 * length, 0.85 * length, length + 0.4 * end,
                        length + 0.75 * end])  # fmt: skip
    slopes = np.array([-1.0, -0.5, 0.0, 0.0, 0.5, 1.0])
    angles = 2 * np.pi * np.arange(sides) / sides
    rim = np.stack([np.cos(angles), np.sin(angles), np.zeros(sides)], axis=1)
    up = np.array([0.0, 0.0, 1.0])
    vertices = radii[:, None, None] * rim + heights[:, None, None] * up
    normals = np.sqrt(1 - slopes**2)[:, None, None] * rim + slopes[:, None, None] * up
    rings, k = np.arange(len(radii) - 1)[:, None] * sides, np.arange(sides)[None]
    n = (k + 1) % sides
    lower = np.stack([rings + k, rings + n, rings + sides + n], axis=-1)[1:]  # the first ring is a point
    upper = np.stack([rings + k, rings + sides + n, rings + sides + k], axis=-1)[:-1]  # so is the last
    indices = np.concatenate([lower.reshape(-1), upper.reshape(-1)])
    return vertices.reshape(-1, 3), normals.reshape(-1, 3), indices


def palm_shape(style: HandStyle) -> Shape:
    """The back and the ball of the hand: a bevelled plate in the hand's frame."""
    outline = np.array([(-0.005, -0.020), (0.04, -0.036), (0.078, -0.041), (0.092, -0.016), (0.096, 0.004),
                        (0.090, 0.031), (0.045, 0.036), (-0.005, 0.020)])  # fmt: skip
    inner = outline * 0.86 + outline.mean(axis=0) * 0.14
    rings = [(inner, -0.017), (outline, -0.006), (outline, 0.006), (inner, 0.013)]
    scale = np.array([1.0, -1.0 if style.side == "left" else 1.0, 1.0]) * style.size
    count, mesh = len(outline), Mesh()

    def corner(ring: int, k: int) -> np.ndarray:
        points, z = rings[ring]
        return np.array([*points[k % count], z]) * scale

    order = 1 if style.side == "right" else -1  # mirroring turns faces inside out
    for ring in range(3):
        for k in range(count):
            quad = [corner(ring, k), corner(ring, k + 1), corner(ring + 1, k + 1), corner(ring + 1, k)]
            mesh.polygon(quad[::order])
    mesh.polygon([corner(3, k) for k in range(count)][::order])
    mesh.polygon([corner(0, k) for k in reversed(range(count))][::order])
    triangles = np.stack(mesh.triangles)
    flat = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    return triangles.reshape(-1, 3), np.repeat(flat, 3, axis=0), np.arange(3 * len(triangles))


def align(direction: np.ndarray) -> np.ndarray:
    """Return quaternions (N, 4) that turn +z to unit vectors (N, 3)."""
    quaternion = np.stack([-direction[:, 1], direction[:, 0], np.zeros(len(direction)), 1 + direction[:, 2]], axis=1)
    flipped = quaternion[:, 3] < 1e-6
    quaternion[flipped] = (1.0, 0.0, 0.0, 0.0)
    return quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True)
