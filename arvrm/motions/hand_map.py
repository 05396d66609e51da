"""The map m on places: which of a hand's keypoints say where the robot's components are to be.

Rows x, y, z are shares of the 21 keypoints; L_AR fits them (and a camera that nobody calibrated) so that m of the hand
that is predicted for a demonstration's own image, at the touch and at the end, is where the gripper was. The row of the
yaw is two such rows: from the one to the other the fingers lie; that of the opening tells their distance apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from arvrm.hands.skeleton import TIPS
from arvrm.interface import KEYPOINTS
from arvrm.motions.camera import fit_camera, on_plane, project, seen_change

POSITION = 3
_UPDATES, _RATE, _ROUNDS = 400, 0.1, 4
_SURE = 4.0
"""Logit with which the rows of the yaw begin at one keypoint each."""
_OUTLIER_M = 0.03
"""A place so far off (m) counts no more than that."""


@dataclass(frozen=True)
class HandMap:
    """m and the camera through which it is seen.

    Attributes:
        position: (3, 21) rows of x, y, z; each sums to 1.
        across: (2, 21) rows of the two points between which the gripper's fingers lie.
        yaw: rad, how much more the gripper's yaw is than the angle of `across`; deviation: rad, how far a yaw told by
            it is usually off (one deviation).
        camera: (3, 4), see `camera.project`.
        error: m, median distance of m(hand) from the gripper among the demonstrations.
    """

    position: np.ndarray
    across: np.ndarray
    yaw: float
    deviation: float
    camera: np.ndarray
    error: float

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

    def angle(self, keypoints: np.ndarray, height: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Yaw (..., rad, of a gripper: modulo pi) of hands at a height, and how long (..., m) the line is."""
        ends = self.across @ np.asarray(keypoints, np.float64)
        height = np.asarray(height, np.float64)[..., None]
        line = np.diff(on_plane(self.camera, ends, height), axis=-2)[..., 0, :2]
        return np.arctan2(line[..., 1], line[..., 0]) + self.yaw, np.linalg.norm(line, axis=-1)


def fit_map(
    keypoints: np.ndarray,
    tcp: np.ndarray,
    confidence: np.ndarray,
    camera: np.ndarray | None = None,
    seed: int = 0,
) -> HandMap:
    """Fit m by L_AR.

    Args:
        keypoints: (n, 21, 2) predicted hands, pixels of 96.
        tcp: (n, 6) where the gripper was: position (m), Euler xyz (rad).
        confidence: (n,) of the predictions, which they count by.
        camera: (3, 4) calibrated; None: it is fitted too.
        seed: of the rows' start.

    Raises:
        UserError: there is too little to fit a camera from.
    """
    keypoints, tcp = np.asarray(keypoints, np.float64), np.asarray(tcp, np.float64)
    rng = np.random.default_rng(seed)
    logits = 0.01 * rng.standard_normal((POSITION, len(KEYPOINTS)))
    weights = np.clip(np.asarray(confidence, np.float64), 0.05, 1.0)
    fitted = camera
    for _ in range(_ROUNDS if camera is None else 1):
        if camera is None:
            acting = _shares(logits).mean(0) @ keypoints
            fitted = fit_camera(tcp[:, :3], acting, weights)
        assert fitted is not None
        logits = _fit_position(logits, keypoints, tcp, weights, fitted)
    assert fitted is not None
    position = _shares(logits)
    across, yaw, deviation = _fit_across(keypoints, tcp, weights, fitted)
    found = HandMap(position, across, yaw, deviation, fitted, 0.0)
    off = np.linalg.norm(found.place(keypoints, tcp[:, 2]) - tcp[:, :3], axis=-1)
    return HandMap(position, across, yaw, deviation, fitted, float(np.median(off)))


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
        metres = torch.einsum("nrc,rk,nkc->nr", ways, rows.softmax(-1), off)
        error = (metres / _OUTLIER_M).square()
        loss = (share[:, None] * error / (1 + error)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return rows.detach().numpy()


def _fit_across(
    keypoints: np.ndarray, tcp: np.ndarray, weights: np.ndarray, camera: np.ndarray
) -> tuple[np.ndarray, float, float]:
    """Rows of the yaw: the two shares of keypoints whose line turns as the gripper does."""
    world = on_plane(camera, keypoints, np.repeat(tcp[:, 2, None], keypoints.shape[1], 1))[..., :2]
    points, twice = torch.from_numpy(world - world.mean(1, keepdims=True)), torch.from_numpy(2 * tcp[:, 5])
    share = torch.from_numpy(weights / weights.sum())
    # The loss has many hollows: begin at the two keypoints that tell most.
    lines = points[:, None] - points[:, :, None]
    angles = 2 * torch.atan2(lines[..., 1], lines[..., 0]) - twice[:, None, None]
    told = torch.hypot(*(torch.einsum("n,nij->ij", share, part) for part in (angles.cos(), angles.sin())))
    best = int(torch.where(torch.ones_like(told).triu(1) > 0, told, -torch.ones_like(told)).argmax())
    ends = torch.nn.functional.one_hot(torch.tensor(divmod(best, len(KEYPOINTS))), len(KEYPOINTS))
    rows = (_SURE * ends.double()).requires_grad_()
    optimizer = torch.optim.Adam([rows], _RATE)

    def turned() -> tuple[torch.Tensor, torch.Tensor]:
        first, second = torch.einsum("rk,nkc->rnc", rows.softmax(-1), points)
        line = second - first
        angle = 2 * torch.atan2(line[:, 1], line[:, 0]) - twice
        # The mean of the angles, of which pi is a whole turn, is what `across` lies beside the gripper.
        return angle, torch.atan2((share * angle.sin()).sum(), (share * angle.cos()).sum())

    for _ in range(_UPDATES):
        angle, mean = turned()
        loss = (share * (1 - (angle - mean).cos())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        angle, mean = turned()
    off = (angle - mean).numpy() / 2
    off = (off + np.pi / 2) % np.pi - np.pi / 2
    order = np.argsort(np.abs(off))
    half = np.searchsorted(np.cumsum(weights[order]), 0.6827 * weights.sum())
    deviation = float(np.abs(off)[order[min(half, len(order) - 1)]])
    return _shares(rows.detach().numpy()), -float(mean) / 2, deviation
