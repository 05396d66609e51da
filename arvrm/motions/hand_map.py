"""The map m on places: which of a hand's keypoints say where the robot's components are to be.

Rows x, y, z are shares of the 21 keypoints; L_AR fits them (and a camera that nobody calibrated) so that m of the hand
that is predicted for a demonstration's own image, at the touch and at the end, is where the gripper was. The gripper's
yaw is the angle, on the table, of the line from thumb tip to index tip, plus what L_AR finds to lie between the two. It
is open where these tips are so far apart as they are predicted to be where the demonstrations' grippers were open.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from arvrm.hands.skeleton import TIPS
from arvrm.interface import KEYPOINTS
from arvrm.model.places import MOTION_STEPS, PIXELS
from arvrm.motions.camera import fit_camera, on_plane, project, seen_change

POSITION = 3
_UPDATES, _RATE, _ROUNDS = 800, 0.2, 4
SURE_TURN = 0.5
"""A turn that is told less surely (the length of `PredictedHands.turn`) tells none."""
_TURNED_RAD, _TURNED = 0.1, 8
"""Grippers turned so far, and so many of them, tell how well hands tell a yaw."""
_FEW = 0.02
"""How much the rows' entropy costs beside L_AR: of keypoints that move alike those are taken that say it best."""
_OUTLIER_M = 0.015
"""A place so far off (m) counts no more than that."""


@dataclass(frozen=True)
class HandMap:
    """m and the camera through which it is seen.

    Attributes:
        position: (3, 21) rows of x, y, z; each sums to 1.
        yaw: rad, how much more the gripper's yaw is than the angle of the line from thumb tip to index tip; deviation:
            rad, how far a yaw told by it is usually off (one deviation).
        camera: (3, 4), see `camera.project`.
        error: m, median distance of m(hand) from the gripper among the demonstrations.
        opening: pixels of 96 between the tips of thumb and index finger from which on the gripper is open; None: it was
            not fitted (checkpoints of older versions), and no hand's opening can be told.
    """

    position: np.ndarray
    yaw: float
    deviation: float
    camera: np.ndarray
    error: float
    opening: float | None = None

    @property
    def tips_mass(self) -> float:
        """Share of the position rows' weight that lies on the tips of thumb and index finger; 2 / 21 by chance."""
        return float(self.position[:, list(TIPS[:2])].sum(1).mean())

    def place(self, keypoints: np.ndarray, height: np.ndarray | float) -> np.ndarray:
        """World points (..., 3, m) of hands (..., 21, 2; pixels of 96) that act at a height (..., m)."""
        x, y, _ = np.moveaxis(self.position @ np.asarray(keypoints, np.float64), -2, 0)
        height = np.asarray(height, np.float64)
        found = np.stack([on_plane(self.camera, at, height) for at in (x, y)], -2)
        return np.stack([found[..., 0, 0], found[..., 1, 1], np.broadcast_to(height, found.shape[:-2])], -1)

    def height(self, keypoints: np.ndarray, place: np.ndarray) -> np.ndarray:
        """World z (..., m) of hands that act at x, y of `place` (..., 3): what the row of z says."""
        z = (self.position @ np.asarray(keypoints, np.float64))[..., 2, :]
        change = seen_change(self.camera, place)[..., 2]
        return place[..., 2] + ((z - project(self.camera, place)) * change).sum(-1) / (change**2).sum(-1)

    def acting(self, keypoints: np.ndarray) -> np.ndarray:
        """Pixels (..., 2) of the point for which hands (..., 21, 2) stand: the mean of the rows of x and y."""
        return self.position[:2].mean(0) @ np.asarray(keypoints, np.float64)

    def commands(self, keypoints: np.ndarray) -> np.ndarray:
        """(...,) -1 (closed) or 1 (open) of hands (..., 21, 2; pixels of 96)."""
        assert self.opening is not None
        return np.where(np.linalg.norm(finger_line(keypoints), axis=-1) > self.opening, 1.0, -1.0)

    def angle(self, turn: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Yaw (..., rad, of a gripper: modulo pi) at places (..., 3) of hands with `PredictedHands.turn` (..., 2)."""
        return table_angle(self.camera, turn, place) + self.yaw


def finger_line(keypoints: np.ndarray) -> np.ndarray:
    """(..., 2) from thumb tip to index tip of hands (..., 21, 2)."""
    keypoints = np.asarray(keypoints, np.float64)
    return keypoints[..., TIPS[1], :] - keypoints[..., TIPS[0], :]


def fit_opening(gaps: np.ndarray, commands: np.ndarray) -> tuple[float, float]:
    """Fit the row of the opening.

    Args:
        gaps: (n,) pixels of 96 between predicted tips; commands: (n,) of the gripper there, -1 or 1.

    Returns:
        The gap from which on it is open, and the share of moments that it is right about, closed and open ones counting
        alike (0.5: it says nothing).
    """
    gaps, opened = np.asarray(gaps, np.float64), np.asarray(commands) > 0
    if opened.all() or not opened.any():
        return (PIXELS if not opened.any() else 0.0), 0.5
    some = np.sort(gaps)
    between = np.concatenate([some[:1] - 1, (some[1:] + some[:-1]) / 2])
    right = [(np.mean(gaps[opened] > edge) + np.mean(gaps[~opened] <= edge)) / 2 for edge in between]
    best = int(np.argmax(right))
    return float(between[best]), float(right[best])


def predicted_gaps(motion: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    """Steps from the touch, and pixels (..., steps) between the tips there, of `PredictedHands.motion` (..., D)."""
    return MOTION_STEPS, np.asarray(motion)[..., -len(MOTION_STEPS) - 2 : -2]


def table_angle(camera: np.ndarray, turn: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Angle (..., rad) on the table of lines that are seen at places (..., 3) as `turn` (..., 2) says."""
    seen = np.arctan2(turn[..., 1], turn[..., 0]) / 2
    line = np.stack([np.cos(seen), np.sin(seen)], -1)
    flat = np.linalg.solve(seen_change(camera, place)[..., :2], line[..., None])[..., 0]
    return np.arctan2(flat[..., 1], flat[..., 0])


def fit_map(
    keypoints: np.ndarray,
    tcp: np.ndarray,
    confidence: np.ndarray,
    turn: np.ndarray,
    camera: np.ndarray | None = None,
    seed: int = 0,
) -> HandMap:
    """Fit m by L_AR.

    Args:
        keypoints: (n, 21, 2) predicted hands, pixels of 96.
        tcp: (n, 6) where the gripper was: position (m), Euler xyz (rad).
        confidence: (n,) of the predictions, which they count by.
        turn: (n, 2) of the predictions (`PredictedHands.turn`); zeros where there is none.
        camera: (3, 4) calibrated; None: it is fitted too.
        seed: of the rows' start.

    Raises:
        UserError: there is too little to fit a camera from.
    """
    keypoints, tcp = np.asarray(keypoints, np.float64), np.asarray(tcp, np.float64)
    rng = np.random.default_rng(seed)
    logits = 0.01 * rng.standard_normal((POSITION, len(KEYPOINTS)))
    weights = np.clip(np.asarray(confidence, np.float64), 0.01, 1.0)
    fitted = camera
    for _ in range(_ROUNDS if camera is None else 1):
        if camera is None:
            acting = _shares(logits).mean(0) @ keypoints
            fitted = fit_camera(tcp[:, :3], acting, weights)
        assert fitted is not None
        logits = _fit_position(logits, keypoints, tcp, weights, fitted)
    assert fitted is not None
    position = _shares(logits)
    yaw, deviation = _fit_yaw(turn, tcp, fitted)
    found = HandMap(position, yaw, deviation, fitted, 0.0)
    off = np.linalg.norm(found.place(keypoints, tcp[:, 2]) - tcp[:, :3], axis=-1)
    return replace(found, error=float(np.median(off)))


def _shares(logits: np.ndarray) -> np.ndarray:
    grown = np.exp(logits - logits.max(-1, keepdims=True))
    return grown / grown.sum(-1, keepdims=True)


def _fit_position(
    logits: np.ndarray, keypoints: np.ndarray, tcp: np.ndarray, weights: np.ndarray, camera: np.ndarray
) -> np.ndarray:
    """Rows x, y, z: how far m(hand) lies from the gripper along each, at its height or, for z, above its place."""
    change = seen_change(camera, tcp[:, :3])
    down = np.linalg.inv(change[:, :, :2])
    up = change[:, :, 2] / (change[:, :, 2] ** 2).sum(-1, keepdims=True)
    ways = torch.from_numpy(np.concatenate([down, up[:, None]], 1))  # (n, 3, 2) m a pixel
    off = torch.from_numpy(keypoints - project(camera, tcp[:, :3])[:, None])
    share = torch.from_numpy(weights / weights.sum())
    rows = torch.tensor(logits, requires_grad=True)
    optimizer = torch.optim.Adam([rows], _RATE)
    for _ in range(_UPDATES):
        shares = rows.softmax(-1)
        metres = torch.einsum("nrc,rk,nkc->nr", ways, shares, off)
        error = (metres / _OUTLIER_M).square()
        spread = -(shares * torch.log_softmax(rows, -1)).sum(-1).mean()
        loss = (share[:, None] * error / (1 + error)).sum() + _FEW * spread
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return rows.detach().numpy()


def _fit_yaw(turn: np.ndarray, tcp: np.ndarray, camera: np.ndarray) -> tuple[float, float]:
    """How much more the gripper's yaw is than the angle of the line, sure lines counting more; and one deviation of a
    yaw told by it, among the grippers that are turned from where most are (where there are few: a quarter turn)."""
    turn = np.asarray(turn, np.float64)
    sure = np.linalg.norm(turn, axis=1) ** 2
    if sure.sum() < 1e-6:
        return 0.0, np.pi / 2
    twice = 2 * (tcp[:, 5] - table_angle(camera, turn, tcp[:, :3]))
    mean = float(np.arctan2((sure * np.sin(twice)).sum(), (sure * np.cos(twice)).sum()))
    off = np.abs((twice - mean + np.pi) % (2 * np.pi) - np.pi) / 2
    middle = np.arctan2(np.sin(2 * tcp[:, 5]).sum(), np.cos(2 * tcp[:, 5]).sum())
    away = np.abs((2 * tcp[:, 5] - middle + np.pi) % (2 * np.pi) - np.pi) / 2
    turned = (away > _TURNED_RAD) & (sure > SURE_TURN**2)
    if turned.sum() < _TURNED:
        return mean / 2, np.pi / 2
    return mean / 2, float(np.quantile(off[turned], 0.6827))
