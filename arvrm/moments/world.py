"""What changes in a clip's images, near the fingertips and elsewhere, without the hand where that can be told."""

from __future__ import annotations

import re

import numpy as np

from arvrm.hands.skeleton import BONES, TIPS, WRIST
from arvrm.interface import KEYPOINTS

NEAR = 14
"""Pixels of 96 about the fingertips in which a change is taken for the hand's doing."""
CHANNELS = 10
WORLD, NAMED, UNDONE = 6, 8, 9
"""Channels: near the fingertips and not the hand's, the share that looks otherwise than before; the same of the colour
that the sentence names, if it names one that is seen to change; the share that does not look yet as it does last."""
COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0), "pink": (1, 0, 1),
           "purple": (1, 0, 1), "violet": (1, 0, 1), "orange": (2, 1, 0)}  # fmt: skip
LEVELS = 12
"""Of each of red, green and blue, that colours are counted in."""
_FINGER, _ARM, _LEAST_OWN = 0.25, 0.6, 0.01
_TIGHT = 7
_DIFFERS = 0.1
"""Of 1: so much another colour is another thing."""
_SATURATED, _ALIKE, _LEAST_NAMED = 0.3, 0.9, 0.01
_MIDDLE_BASE = KEYPOINTS.index("middle_1")
_ALONG_BONE, _ALONG_ARM = np.linspace(0, 1, 3), np.linspace(0.2, 3.0, 10)
_WEIGHTS = np.array([5, 5, 5, 5, 20, 2, 5, 10, 5, 5], np.float32)


def hand_changes(images: np.ndarray, points: np.ndarray, instruction: str) -> np.ndarray:
    """What changes in the images of a clip.

    Args:
        images: (F, 3, S, S) float32, 0 to 1.
        points: (F, 21, 2) the hand's keypoints in them, pixels.

    Returns: (F, CHANNELS) float32.
    """
    count, _, size, _ = images.shape
    tips = points[:, (TIPS[0], TIPS[1])].mean(1)
    after = np.append(np.arange(1, count), count - 1)
    step = _mean(np.abs(images[after] - images), 1)
    bins = colour_bins(images)
    masks = hand_masks(points, size) & _thick(_own_colours(bins, points)[bins])
    before, later = _seen_first(images, masks), _seen_first(images[::-1], masks[::-1])
    found = np.zeros((count, CHANNELS), np.float32)
    tight = _Window(tips, _TIGHT, size)
    found[:, 0] = tight.mean(tight.of(step))
    found[:, 1] = tight.mean(tight.still(_mean(np.abs(images[0] - images[-1]), 0)[None])[:, 0])
    # What goes on with the hand looks the same where the hand is next.
    moved = _Window(tips[after], _TIGHT, size)
    found[:, 2] = tight.mean(_mean(np.abs(moved.of(images, after) - tight.of(images)), 1))
    found[:, 3] = tight.mean(_mean(np.abs(tight.of(images) - tight.still(images[0])), 1))
    found[:, 4] = step.reshape(count, -1).mean(1)
    found[:, 5] = ((step > _DIFFERS) & ~masks & ~masks[after]).reshape(count, -1).sum(1) * (50 / size**2)
    near = _Window(tips, NEAR, size)
    free = ~near.of(masks) & near.inside
    image, past, future = near.of(images), near.still(before), near.still(later)
    differs = _differ(image, past) & free
    pixels = np.pi * NEAR**2
    found[:, WORLD] = differs.reshape(count, -1).sum(1) / pixels
    found[:, WORLD + 1] = np.diff(found[:, WORLD], append=found[-1:, WORLD])
    found[:, UNDONE] = (_differ(image, future) & free).reshape(count, -1).sum(1) / pixels
    colour = named_colour(instruction)
    if colour is not None:
        differs &= alike(image, colour) | alike(past, colour)
        found[:, NAMED] = differs.reshape(count, -1).sum(1) / pixels
    if found[:, NAMED].max(initial=0) < _LEAST_NAMED:
        found[:, NAMED] = found[:, WORLD]
    return found * _WEIGHTS


def hand_masks(points: np.ndarray, size: int) -> np.ndarray:
    """Where hand and forearm may be: (F, size, size) bool, from keypoints (F, 21, 2) in pixels."""
    bones = _along_bones(points)
    back = points[:, WRIST] - points[:, _MIDDLE_BASE]
    arm = points[:, WRIST, None] + back[:, None] * _ALONG_ARM[None, :, None]
    length = float(np.quantile(np.linalg.norm(back, axis=1), 0.9))
    coarse = np.zeros((len(points), (size + 1) // 2, (size + 1) // 2), bool)
    for f in range(len(points)):
        for spots, radius in ((bones[f], _FINGER * length + 3.0), (arm[f], _ARM * length + 4.0)):
            _paint(coarse[f], spots / 2, radius / 2)
    return coarse.repeat(2, 1).repeat(2, 2)[:, :size, :size]


def _along_bones(points: np.ndarray) -> np.ndarray:
    """(F, n, 2) points along the bones of keypoints (F, 21, 2)."""
    nearer, farther = np.array(BONES).T
    share = _ALONG_BONE[None, None, :, None]
    return (points[:, nearer, None] * (1 - share) + points[:, farther, None] * share).reshape(len(points), -1, 2)


def _paint(mask: np.ndarray, spots: np.ndarray, radius: float) -> None:
    """Set discs about spots (n, 2: u, v)."""
    size = len(mask)
    low = np.clip(np.floor(spots.min(0) - radius), 0, size).astype(int)
    high = np.clip(np.ceil(spots.max(0) + radius), 0, size).astype(int)
    u, v = np.arange(low[0], high[0]) + 0.5, np.arange(low[1], high[1]) + 0.5
    if not len(u) or not len(v):
        return
    across, down = (u[None] - spots[:, :1]) ** 2, (v[None] - spots[:, 1:]) ** 2
    mask[low[1] : high[1], low[0] : high[0]] |= (down[:, :, None] + across[:, None] < radius**2).any(0)


def _own_colours(bins: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(LEVELS ** 3,) bool: colours that often lie under the hand's bones, and more than elsewhere."""
    size = bins.shape[-1]
    at = np.round(_along_bones(points) - 0.5).astype(int)
    good = ((at >= 0) & (at < size)).all(-1)
    at = np.clip(at, 0, size - 1)
    under = np.take_along_axis(bins.reshape(len(bins), -1), at[..., 1] * size + at[..., 0], 1)
    number = np.broadcast_to(np.arange(len(bins))[:, None], under.shape)
    counts = np.zeros((len(bins), LEVELS**3), np.int32)
    np.add.at(counts, (number[good], under[good]), 1)
    share = counts.sum(0) / max(counts.sum(), 1)
    there = np.bincount(bins[0].reshape(-1), minlength=LEVELS**3) / bins[0].size
    own = (share > _LEAST_OWN) & (share > 2 * there)
    return widened(own.reshape([LEVELS] * 3)).reshape(-1)


def colour_bins(images: np.ndarray) -> np.ndarray:
    """(F, S, S): the number of each pixel's colour, of images (F, 3, S, S), 0 to 1."""
    level = np.minimum((images * LEVELS).astype(np.int16), LEVELS - 1)
    return (level[:, 0] * LEVELS + level[:, 1]) * LEVELS + level[:, 2]


def widened(table: np.ndarray) -> np.ndarray:
    """Colours (LEVELS, LEVELS, LEVELS) bool, and their neighbours."""
    padded = np.pad(table, 1)
    wide = padded.copy()
    for axis in range(3):
        wide |= np.roll(padded, 1, axis) | np.roll(padded, -1, axis)
    return wide[1:-1, 1:-1, 1:-1]


def _thick(masks: np.ndarray) -> np.ndarray:
    """Masks (F, S, S) and the pixels beside them: there colours mix."""
    wide = masks.copy()
    wide[:, 1:] |= masks[:, :-1]
    wide[:, :-1] |= masks[:, 1:]
    wide[:, :, 1:] |= masks[:, :, :-1]
    wide[:, :, :-1] |= masks[:, :, 1:]
    return wide


def _seen_first(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """(3, S, S) how each place looked when the hand first left it free; the first image where it never did."""
    free = (~masks).argmax(0)
    return np.take_along_axis(images, free[None, None], 0)[0]


class _Window:
    """Squares about a point of each image, cut off at its edges."""

    def __init__(self, middles: np.ndarray, radius: int, size: int) -> None:
        at = np.round(np.clip(middles, -1e6, 1e6)).astype(int)[..., None] + np.arange(-radius, radius + 1)
        good = (at >= 0) & (at < size)
        self.inside = good[:, 1, :, None] & good[:, 0, None]
        at = np.clip(at, 0, size - 1)
        self.rows, self.columns = at[:, 1, :, None], at[:, 0, None]
        self._number = np.arange(len(at))[:, None, None]
        self._pixels = np.maximum(self.inside.reshape(len(at), -1).sum(1), 1)

    def of(self, images: np.ndarray, which: np.ndarray | None = None) -> np.ndarray:
        """(F, ..., W, W) of images (F, ..., S, S), or of those of other numbers."""
        number = self._number if which is None else which[:, None, None]
        if images.ndim == 3:
            return images[number, self.rows, self.columns]
        return np.stack([images[number, plane, self.rows, self.columns] for plane in range(images.shape[1])], 1)

    def still(self, image: np.ndarray) -> np.ndarray:
        """(F, C, W, W) of one image (C, S, S)."""
        return image[:, self.rows, self.columns].swapaxes(0, 1)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """(F,) of values (F, W, W), where they lie in the image."""
        return (values * self.inside).reshape(len(values), -1).sum(1) / self._pixels


def _mean(planes: np.ndarray, axis: int) -> np.ndarray:
    """The mean over three planes; NumPy's own is slow along a short axis."""
    return (planes.take(0, axis) + planes.take(1, axis) + planes.take(2, axis)) / 3


def _differ(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(F, H, W) of two (F, 3, H, W)."""
    apart = np.abs(image - other) > _DIFFERS
    return apart[:, 0] | apart[:, 1] | apart[:, 2]


def named_colour(instruction: str) -> np.ndarray | None:
    """The colour that a sentence names, (3,) of unit length, or None."""
    word = next((word for word in re.findall("[a-z]+", instruction.lower()) if word in COLOURS), None)
    return None if word is None else np.array(COLOURS[word], np.float32) / np.float32(np.linalg.norm(COLOURS[word]))


def alike(image: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """(F, H, W): where an image (F, 3, H, W) has a colour, however dark or pale."""
    red, green, blue = image[:, 0], image[:, 1], image[:, 2]
    low = np.minimum(np.minimum(red, green), blue)
    high = np.maximum(np.maximum(red, green), blue)
    parts = (red - low, green - low, blue - low)
    along = parts[0] * colour[0] + parts[1] * colour[1] + parts[2] * colour[2]
    length = np.sqrt(parts[0] ** 2 + parts[1] ** 2 + parts[2] ** 2)
    return (high - low > _SATURATED) & (along > _ALIKE * length)
