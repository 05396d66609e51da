"""Draws hands: skeletons over images, a hand in its normal form, and the figure of the 21 points."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from arvrm.hands.skeleton import BONES, normalise
from arvrm.interface import FINGERS, KEYPOINTS

FINGER_COLOURS = ("#f5a524", "#2eb67d", "#3fa7f5", "#b57edc", "#e5484d")
"""Thumb to little finger."""
SIDE_COLOURS = ("#7dd3fc", "#fda4af")
"""Of the wrist and the letter of the left and the right hand."""
GHOST = "#ffffff"
PAPER, INK, FAINT = "#16181d", "#e8eaed", "#8b9099"
POINTS = len(KEYPOINTS)
OPEN_HAND = {
    "wrist": ((0.50, 0.92),),
    "thumb": ((0.33, 0.83), (0.22, 0.71), (0.14, 0.60), (0.07, 0.50)),
    "index": ((0.36, 0.52), (0.32, 0.36), (0.30, 0.25), (0.28, 0.14)),
    "middle": ((0.49, 0.49), (0.48, 0.31), (0.475, 0.19), (0.47, 0.07)),
    "ring": ((0.62, 0.52), (0.64, 0.35), (0.65, 0.24), (0.66, 0.13)),
    "little": ((0.74, 0.59), (0.79, 0.46), (0.82, 0.37), (0.85, 0.28)),
}
"""An open right hand seen from its back, in shares of the picture: u, v of the wrist and of each finger's points."""


def draw_skeleton(
    image: np.ndarray,
    keypoints: np.ndarray,
    visible: np.ndarray,
    interpolated: np.ndarray | None = None,
    size: tuple[int, int] | None = None,
    ghost: np.ndarray | None = None,
    ghost_visible: np.ndarray | None = None,
) -> np.ndarray:
    """Draw hands over an image.

    Args:
        image: (H, W, 3) uint8.
        keypoints: (K, 2 or 3), u, v in pixels of `image`; K is 21, or 42 for left then right hand.
        visible: (K,) bool; a point that is not is hollow, a hand without any is left out.
        interpolated: (K / 21,) bool: such hands are drawn thin.
        size: W, H of the picture; None: as `image`.
        ghost: (K, 2 or 3), other keypoints of the same hands, drawn in white beneath, without hidden points.
        ghost_visible: (K,) bool; None: `visible`.

    Returns: (H, W, 3) uint8 of that size.
    """
    picture = Image.fromarray(image)
    if size is not None and size != picture.size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    scale = np.array(picture.size) / (image.shape[1], image.shape[0])
    draw = ImageDraw.Draw(picture)
    sides = len(keypoints) // POINTS
    for hand in range(sides):
        part = slice(hand * POINTS, (hand + 1) * POINTS)
        if ghost is not None:
            seen = (visible if ghost_visible is None else ghost_visible)[part]
            if seen.any():
                _hand(draw, ghost[part, :2] * scale, seen, max(picture.size), ghost=True)
        if visible[part].any():
            thin = interpolated is not None and bool(interpolated[hand])
            letter = "LR"[hand] if sides == 2 else ""
            points = keypoints[part, :2] * scale
            _hand(draw, points, visible[part], max(picture.size), thin, letter, SIDE_COLOURS[hand])
    return np.asarray(picture)


def _hand(
    draw: ImageDraw.ImageDraw,
    points: np.ndarray,
    visible: np.ndarray,
    span: int,
    thin: bool = False,
    letter: str = "",
    wrist: str = INK,
    ghost: bool = False,
) -> None:
    unit = max(span / 320, 1.0)
    points = np.clip(points, -4 * span, 5 * span)
    for a, b in BONES:
        if ghost and not (visible[a] and visible[b]):
            continue
        strong = visible[a] and visible[b] and not thin
        colour = GHOST if ghost else FINGER_COLOURS[(b - 1) // 4]
        draw.line([*points[a], *points[b]], fill=colour, width=round(unit * (2 if strong and not ghost else 1)))
    for k, (x, y) in enumerate(points):
        if ghost and not visible[k]:
            continue
        colour = GHOST if ghost else wrist if k == 0 else FINGER_COLOURS[(k - 1) // 4]
        r = unit * (1.2 if ghost else 2.4 if k == 0 else 1.7)
        fill = colour if visible[k] and not thin else None
        draw.ellipse([x - r, y - r, x + r, y + r], outline=colour, fill=fill)
    if letter:
        x, y = points[0]
        font = ImageFont.load_default(round(9 * unit))
        edge = {"stroke_width": round(unit), "stroke_fill": PAPER}
        draw.text((x, y + 3 * unit), letter, fill=wrist, font=font, anchor="ma", **edge)


def draw_normal_form(
    keypoints: np.ndarray, visible: np.ndarray, height: int, width: int, size: tuple[int, int]
) -> np.ndarray:
    """Draw the hands of (K, 3) keypoints of a height x width image in their normal form (`skeleton.normalise`): wrist
    in the middle of a panel, one length; two hands one above the other. Return (H, W, 3) uint8 of `size` (W, H)."""
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    sides = len(keypoints) // POINTS
    high = size[1] / sides
    for hand in range(sides):
        part = slice(hand * POINTS, (hand + 1) * POINTS)
        centre = np.array([size[0] / 2, high * (hand + 0.5)])
        draw.line([0, high * (hand + 1), size[0], high * (hand + 1)], fill="#2a2d35")
        if not visible[part].any():
            draw.text(tuple(centre), "no hand", fill=FAINT, font=ImageFont.load_default(13), anchor="mm")
            continue
        points = normalise(keypoints[part], height, width).points[..., :2]
        # A stretched finger reaches about two hand lengths from the wrist.
        scaled = centre + points * min(size[0], high) / 4.4
        _hand(draw, scaled, visible[part], max(size), letter="LR"[hand] if sides == 2 else "")
    return np.asarray(picture)


def draw_caption(frame: np.ndarray, text: str, pixels: int = 30) -> np.ndarray:
    """Return the frame (H, W, 3) with a line of text above it, (H + pixels, W, 3)."""
    bar = Image.new("RGB", (frame.shape[1], pixels), PAPER)
    font = ImageFont.load_default(15)
    text = " ".join(text.split())
    while len(text) > 4 and font.getlength(text) > frame.shape[1] - 16:
        text = text[:-4].rstrip() + "..."
    ImageDraw.Draw(bar).text((8, pixels / 2), text, fill=INK, font=font, anchor="lm")
    return np.concatenate([np.asarray(bar), frame])


def skeleton_figure(size: int = 760) -> Image.Image:
    """The figure of docs/hands.md: the 21 points of an open right hand seen from its back, with number and name."""
    picture = Image.new("RGB", (size + 260, size), "#ffffff")
    draw = ImageDraw.Draw(picture)
    points = [np.array(point) * size for name in ("wrist", *FINGERS) for point in OPEN_HAND[name]]
    for a, b in BONES:
        draw.line([*points[a], *points[b]], fill=FINGER_COLOURS[(b - 1) // 4], width=7)
    font = ImageFont.load_default(15)
    for k, (x, y) in enumerate(points):
        colour = "#30343b" if k == 0 else FINGER_COLOURS[(k - 1) // 4]
        draw.ellipse([x - 15, y - 15, x + 15, y + 15], fill="#ffffff", outline=colour, width=4)
        draw.text((x, y), str(k), fill="#16181d", font=font, anchor="mm")
        row = 40 + k * (size - 80) / (POINTS - 1)
        label = f"{k:>2}  {KEYPOINTS[k]}"
        draw.text((size + 20, row), label, fill=colour, font=ImageFont.load_default(18), anchor="lm")
    return picture


def even_size(width: int, height: int, longest: int, enlarge: bool = False) -> tuple[int, int]:
    """Return W, H of a film, both even, the longer `longest` pixels at most (with `enlarge`: just so)."""
    scale = longest / max(width, height)
    if not enlarge:
        scale = min(scale, 1.0)
    return max(2, 2 * round(width * scale / 2)), max(2, 2 * round(height * scale / 2))


def interpolated_hands(meta: dict[str, Any], steps: int, hands: int) -> np.ndarray:
    """Return (steps, hands) bool: hands that a conversion filled in between frames, as a clip's `meta` says."""
    thin = np.zeros((steps, hands), bool)
    rows = [row for row in meta.get("interpolated_frames", []) if isinstance(row, int) and 0 <= row < steps]
    thin[rows] = True
    return thin
