"""The 21-point hand: which points are joined, and a normal form without place and size that can be undone exactly.

The order of points is `interface.KEYPOINTS` (MediaPipe's): wrist, then thumb to little finger, base to tip. Keypoints
are (..., 21, 3): u, v in pixels of an image (right, down), and depth as `coordinates.DEPTH` says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arvrm.interface import FINGERS, KEYPOINTS, UserError

WRIST = KEYPOINTS.index("wrist")
PARENTS = tuple(-1 if k == 0 else 0 if (k - 1) % 4 == 0 else k - 1 for k in range(len(KEYPOINTS)))
"""The point nearer to the wrist that each point hangs on; -1 for the wrist itself."""
BONES = tuple((parent, k) for k, parent in enumerate(PARENTS) if parent >= 0)
"""(nearer, farther) pairs of points to draw or measure."""
FINGER_POINTS = {finger: tuple(range(1 + 4 * i, 5 + 4 * i)) for i, finger in enumerate(FINGERS)}
"""Indices of each finger's four points, base to tip."""
TIPS = tuple(points[-1] for points in FINGER_POINTS.values())

_JOINTS = ("1", "2", "3")
_FROM_TIP = tuple(f"{finger}_{joint}" for finger in FINGERS for joint in ("tip", "3", "2", "1"))
_ARKIT_JOINTS = ("Knuckle", "IntermediateBase", "IntermediateTip", "Tip")

CONVENTIONS: dict[str, tuple[str, ...]] = {
    "mediapipe": KEYPOINTS,
    "openpose": KEYPOINTS,
    "freihand": KEYPOINTS,
    "interhand": (*_FROM_TIP, "wrist"),
    "mano": (
        "wrist",
        *(f"{finger}_{joint}" for finger in ("index", "middle", "little", "ring", "thumb") for joint in _JOINTS),
        *(f"{finger}_tip" for finger in FINGERS),
    ),
}
"""What each convention's points are, in its order, in our names.

mediapipe, openpose (its hand model), freihand (FreiHAND's files): ours. interhand: InterHand2.6M, one hand: each finger
from the tip, the wrist last; its files have 42 joints, the right hand's 21, then the left hand's. mano: MANO's 16
joints, then the tips that MANO lacks, thumb to little finger, as HO-3D and DexYCB add them.
"""

_MIDDLE_BASE = KEYPOINTS.index("middle_1")
_SMALLEST_SCALE = 1e-3


@dataclass(frozen=True)
class NormalHand:
    """A hand apart from its place and size.

    Attributes:
        points: (..., 21, 3); u and v from the wrist (in halves of the image's height) and depth (m), all divided by
            `scale`.
        root: (..., 2); the wrist in the image plane: -1..1 from left to right, and -1..1 from top to bottom.
        scale: (...,); the image length of wrist to the middle finger's base, as a fraction of half the image's height.
    """

    points: np.ndarray
    root: np.ndarray
    scale: np.ndarray


def from_convention(points: np.ndarray, convention: str) -> np.ndarray:
    """Put one hand's points (..., 21, D) that are in another convention's order (see `CONVENTIONS`) into ours.

    Raises:
        UserError: the convention is unknown, or the number of points is another.
    """
    return np.asarray(points)[..., _order(points, convention), :]


def to_convention(points: np.ndarray, convention: str) -> np.ndarray:
    """Invert `from_convention`."""
    return np.asarray(points)[..., np.argsort(_order(points, convention)), :]


def _order(points: np.ndarray, convention: str) -> list[int]:
    names = CONVENTIONS.get(convention)
    if names is None:
        raise UserError(f"hand convention {convention!r}: unknown; choose {', '.join(CONVENTIONS)}, or arkit_names")
    if np.ndim(points) < 2 or np.shape(points)[-2] != len(names):
        shape = np.shape(points)
        raise UserError(f"hand convention {convention}: points of shape {shape}; give (..., {len(names)}, D), one hand")
    return [names.index(name) for name in KEYPOINTS]


def arkit_names(side: str) -> tuple[str, ...]:
    """Return ARKit's names (as EgoDex's files spell them) of our 21 points for the "left" or "right" hand, in our
    order. ARKit's "Hand" is the wrist; its finger metacarpals, which lie near the wrist, have no part in ours."""
    if side not in ("left", "right"):
        raise UserError(f"hand side {side!r}: choose left or right")
    names = [f"{side}Hand"]
    for finger in FINGERS:
        part = "Thumb" if finger == "thumb" else f"{finger.capitalize()}Finger"
        names += [f"{side}{part}{joint}" for joint in _ARKIT_JOINTS]
    return tuple(names)


def hand_length(keypoints: np.ndarray) -> np.ndarray:
    """Return the image length (pixels, at least 1) of hands (..., 21, 2 or 3): from wrist to the middle finger's base
    or, where that is foreshortened, the mean from the wrist to all points, whichever is larger."""
    keypoints = np.asarray(keypoints, dtype=np.float64)
    lengths = np.linalg.norm(keypoints[..., :2] - keypoints[..., WRIST : WRIST + 1, :2], axis=-1)
    return np.maximum(np.maximum(lengths[..., _MIDDLE_BASE], lengths.mean(axis=-1)), 1.0)


def normalise(keypoints: np.ndarray, height: int, width: int) -> NormalHand:
    """Take place (the wrist) and size out of keypoints (..., 21, 3) seen in a height x width image.

    Size is the image length from wrist to the middle finger's base, or, where that is foreshortened, the mean length
    from the wrist to all points, whichever is larger. `denormalise` is the exact inverse.
    """
    keypoints = np.asarray(keypoints, dtype=np.float64)
    half = height / 2.0
    root = (keypoints[..., WRIST, :2] - (width / 2.0, half)) / (width / 2.0, half)
    flat = (keypoints[..., :2] - keypoints[..., WRIST : WRIST + 1, :2]) / half
    lengths = np.linalg.norm(flat, axis=-1)
    scale = np.maximum(np.maximum(lengths[..., _MIDDLE_BASE], lengths.mean(axis=-1)), _SMALLEST_SCALE)
    points = np.concatenate([flat, keypoints[..., 2:]], axis=-1) / scale[..., None, None]
    return NormalHand(points, root, scale)


def denormalise(hand: NormalHand, height: int, width: int) -> np.ndarray:
    """Return the keypoints (..., 21, 3) that `normalise` was given, in pixels of a height x width image."""
    half = height / 2.0
    scaled = np.asarray(hand.points, dtype=np.float64) * np.asarray(hand.scale)[..., None, None]
    wrist = np.asarray(hand.root) * (width / 2.0, half) + (width / 2.0, half)
    return np.concatenate([scaled[..., :2] * half + wrist[..., None, :], scaled[..., 2:]], axis=-1)
