"""What tells a touch, as signals at one rate: how the hand or the robot moves and closes, and what changes near it.

No unit of the recording is left in them: lengths are shares of the image (a hand's) or of the motion (a robot's), and
time runs at RATE steps a second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arvrm.hands.skeleton import TIPS, WRIST
from arvrm.interface import KEYPOINTS, Robot
from arvrm.moments.body import robot_changes
from arvrm.moments.world import CHANNELS, hand_changes

RATE = 30.0
THUMB, INDEX = TIPS[0], TIPS[1]
PIXELS = 96
"""Lengths in the image are given in pixels of a square image of so many."""
IMAGE_CHANNELS = CHANNELS
_MIDDLE_BASE = KEYPOINTS.index("middle_1")
_POINTS = len(KEYPOINTS)
_SPANS = (1, 3, 6)
"""Steps before and after over which ways are compared."""


@dataclass(frozen=True)
class Signals:
    """An episode, made comparable.

    Attributes:
        motion: (T, C) float32, how it moves and closes; C depends on the embodiment only.
        images: (T, IMAGE_CHANNELS) float32, what changes in the images; zeros where there are none.
        place: (T, D) float64: the acting point. A hand's is the middle of the tips of thumb and index finger in pixels
            of 96; a robot's its components, normalised.
        opening: (T,) float64, how far the hand or gripper is open, in a unit of its own; NaN where nothing opens.
        rows: (T,) float64, the (fractional) row of the episode's arrays that each step shows.
        seen: (T,) bool: a hand is seen; always true of a robot.
    """

    motion: np.ndarray
    images: np.ndarray
    place: np.ndarray
    opening: np.ndarray
    rows: np.ndarray
    seen: np.ndarray

    @property
    def of_hand(self) -> bool:
        """Whether `place` is in an image, a hand's; else it is a robot's."""
        return self.place.shape[1] == 2


def hand_signals(
    keypoints: np.ndarray,
    visible: np.ndarray,
    size: tuple[int, int],
    fps: float,
    images: np.ndarray | None = None,
    image_steps: np.ndarray | None = None,
    instruction: str = "",
) -> Signals:
    """Make the signals of a clip.

    Args:
        keypoints: (N, K, 3): u, v in pixels of the images, depth (m) from the wrist; K is 21 or 42.
        visible: (N, K) bool.
        size: (height, width) of the images.
        images: (F, H, W, 3) uint8, or None.
        image_steps: (F,) the rows that they show.
        instruction: a colour that it names is looked for.
    """
    keypoints, seen = _acting_hand(np.asarray(keypoints, np.float64), np.asarray(visible, bool))
    rows = _rows(len(keypoints), fps)
    points = _at(keypoints, rows)
    points[..., :2] *= PIXELS / size[0]
    place = (points[:, THUMB, :2] + points[:, INDEX, :2]) / 2
    wrist, base = points[:, WRIST], points[:, _MIDDLE_BASE]
    # In the image a hand shortens as it turns; the longest it was tells its size.
    length = max(float(np.quantile(np.linalg.norm(base[:, :2] - wrist[:, :2], axis=1), 0.9)), 1e-3)
    gap = points[:, INDEX] - points[:, THUMB]
    opening = np.linalg.norm(gap[:, :2], axis=1) / length
    depth = np.abs(gap[:, 2]) / max(float(np.quantile(np.abs(points[..., 2]), 0.95)), 1e-3)
    channels = [*_ways(place), *_ways(wrist[:, :2])]
    way = np.gradient(place, axis=0) if len(place) > 1 else np.zeros_like(place)
    channels += [way[:, 0] / 2, way[:, 1] / 2, *_openings(opening), *_openings(depth)]
    found = np.zeros((len(rows), IMAGE_CHANNELS), np.float32)
    if images is not None and len(images) > 1:
        at = np.asarray(image_steps)
        side = min(size)
        corner = np.array([(size[1] - side) // 2, (size[0] - side) // 2])
        film, there = small(images), (keypoints[at][..., :2] - corner) * PIXELS / side
        found = _between(hand_changes(film.transpose(0, 3, 1, 2), there, instruction), at, rows)
    nearest = np.clip(np.round(rows).astype(int), 0, len(seen) - 1)
    return Signals(np.stack(channels, 1).astype(np.float32), found, place, opening, rows, seen[nearest])


def robot_signals(
    robot: Robot,
    arrays: dict[str, np.ndarray],
    fps: float,
    images: list[np.ndarray] | None = None,
    image_steps: np.ndarray | None = None,
    instruction: str = "",
    colours: np.ndarray | None = None,
) -> Signals:
    """Make the signals of a demonstration: of any robot, from its state, its commands and its images.

    Args:
        arrays: the episode's, those of `robot.observed` and "actions".
        images: for each camera (F, H, W, 3) uint8, or None.
        instruction: a colour that it names is looked for.
        colours: the robot's own (`body.body_colours`); None: what it moves in the images is not told from itself.
    """
    components = np.asarray(robot.encode_components(arrays), np.float64)
    actions = np.asarray(robot.encode_actions(arrays["actions"]), np.float64)
    rows = _rows(len(components), fps)
    place, commands = _at(components, rows), _at(actions, rows)
    continuous, binary = commands[:, : robot.actions.continuous], commands[:, robot.actions.continuous :]
    # What a binary command moves is the last component: the fingers are not the way that the arm goes.
    arm = place[:, : place.shape[1] - 1] if binary.shape[1] else place
    span = max(float(np.linalg.norm(np.ptp(arm, axis=0))), 1e-6)
    hand = place[:, -1] if binary.shape[1] else np.full(len(rows), np.nan)
    effort = np.linalg.norm(continuous, axis=1)
    if not robot.actions.relative:
        effort = np.linalg.norm(continuous - place[:, : continuous.shape[1]], axis=1)
    effort = effort / max(float(np.quantile(effort, 0.9)), 1e-6)
    first = arm[:, :3] if arm.shape[1] > 3 else arm
    rest = arm[:, 3:] if arm.shape[1] > 3 else arm
    channels = [*_ways(20 * arm), *_ways(20 * first), *_ways(20 * rest), effort - 0.5, np.full(len(rows), span) - 1]
    down = np.gradient(place[:, : min(3, place.shape[1])], axis=0) if len(place) > 1 else np.zeros((1, 3))
    channels += [20 * down[:, min(k, down.shape[1] - 1)] for k in range(3)]
    channels += [*_openings(np.nan_to_num(hand)), binary[:, 0] if binary.shape[1] else np.zeros(len(rows))]
    found = np.zeros((len(rows), IMAGE_CHANNELS), np.float32)
    if images and len(images[0]) > 1:
        films = [small(camera) for camera in images]
        changes = _whole_changes(films)
        if colours is not None:
            changes[:, 6:] = robot_changes(films[0].transpose(0, 3, 1, 2), instruction, colours)
        found = _between(changes, np.asarray(image_steps), rows)
    motion = np.stack(channels, 1).astype(np.float32)
    return Signals(motion, found, place, hand, rows, np.ones(len(rows), bool))


def _acting_hand(keypoints: np.ndarray, visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, 21, 3) of the hand that moves most while it is seen, gaps filled in between, and (N,) where seen."""
    best = None
    for first in range(0, keypoints.shape[1], _POINTS):
        part, seen = keypoints[:, first : first + _POINTS], visible[:, first : first + _POINTS].any(1)
        seen &= np.isfinite(part).all((1, 2))
        rows = np.flatnonzero(seen)
        tips = part[rows][:, (THUMB, INDEX), :2].mean(1) if len(rows) else np.zeros((0, 2))
        moved = float(np.linalg.norm(np.diff(tips, axis=0), axis=1).sum()) if len(rows) > 1 else -1.0
        if best is None or moved > best[0]:
            best = moved, part, seen
    assert best is not None
    _, part, seen = best
    rows = np.flatnonzero(seen)
    if not len(rows):
        return np.zeros_like(part), seen
    filled = np.stack([
        np.interp(np.arange(len(part)), rows, part[rows, k, c]) for k in range(_POINTS) for c in range(3)
    ], 1).reshape(part.shape)  # fmt: skip
    return filled, seen


def _rows(count: int, fps: float) -> np.ndarray:
    """The rows shown at RATE steps a second, the first and the last among them."""
    steps = max(int(round((count - 1) * RATE / fps)), 0) + 1
    return np.linspace(0.0, count - 1, steps)


def _at(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Values (N, ...) at fractional rows."""
    low = np.clip(np.floor(rows).astype(int), 0, max(len(values) - 2, 0))
    share = (rows - low).reshape(-1, *[1] * (values.ndim - 1))
    return (1 - share) * values[low] + share * values[np.minimum(low + 1, len(values) - 1)]


def _ways(path: np.ndarray) -> list[np.ndarray]:
    """How a path (T, D) goes on: its speed, and over several spans how far it came, goes, and how it turns."""
    last = len(path) - 1
    at = np.arange(len(path))
    found = []
    for span in _SPANS:
        came = path - path[np.maximum(at - span, 0)]
        goes = path[np.minimum(at + span, last)] - path
        before, after = np.linalg.norm(came, axis=1) / span, np.linalg.norm(goes, axis=1) / span
        turn = 1 - (came * goes).sum(1) / (span**2 * np.maximum(before * after, 0.02))
        found += [before / 2, after / 2, np.clip(turn, 0, 2) / 2]
    return found


def _openings(opening: np.ndarray) -> list[np.ndarray]:
    """An opening (T,) in shares of its range, and how it changes before and after."""
    low, high = np.quantile(opening, (0.02, 0.98))
    last, at = len(opening) - 1, np.arange(len(opening))
    share = (opening - low) / max(float(high - low), 0.15)
    before, after = share - share[np.maximum(at - 3, 0)], share[np.minimum(at + 3, last)] - share
    return [share - 0.5, 2 * before, 2 * after]


def small(images: np.ndarray) -> np.ndarray:
    """The middle square, (F, PIXELS, PIXELS, 3) float32, 0 to 1."""
    import torch

    from arvrm.resize import resize

    height, width = images.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = torch.from_numpy(np.ascontiguousarray(images[:, top : top + side, left : left + side]))
    return resize(square, PIXELS).numpy().astype(np.float32) / 255


def _between(values: np.ndarray, steps: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Values (F, C) of images at some steps, at any rows (T,): those in between are interpolated."""
    return np.stack([np.interp(rows, steps, values[:, c]) for c in range(values.shape[1])], 1).astype(np.float32)


def _whole_changes(cameras: list[np.ndarray]) -> np.ndarray:
    """What changes in each of two cameras' images from one to the next: (F, IMAGE_CHANNELS)."""
    found = np.zeros((len(cameras[0]), IMAGE_CHANNELS))
    for c, images in enumerate(cameras[:2]):
        change = np.abs(np.diff(images, axis=0, append=images[-1:])).mean(-1).reshape(len(images), -1)
        since = np.abs(images - images[0]).mean((1, 2, 3))
        found[:, 3 * c : 3 * c + 3] = np.stack([10 * change.mean(1), np.quantile(change, 0.99, axis=1), 5 * since], 1)
    return found
