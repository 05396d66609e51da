"""What a policy by analogy has in mind, as strokes over the static camera's image: for films and pages."""

from __future__ import annotations

from typing import Any

import numpy as np

from arvrm.hands.skeleton import BONES
from arvrm.interface import Drawing, Stroke
from arvrm.model.places import PIXELS
from arvrm.motions.camera import project
from arvrm.policy.places import Choice, Sight

HAND, FIRST_FINGERS, PATH, TOUCH, END, DOUBT = "#ffffff", "#f5a524", "#3fa7f5", "#2eb67d", "#b57edc", "#e5484d"
_FINGERS = (range(1, 5), range(5, 9))
"""Keypoints of thumb and index finger, whose tips say most about where the gripper is to be."""


def drawing_of(sight: Sight, choice: Choice | None, poses: np.ndarray | None, seer: Any) -> Drawing:
    """Draw a sight.

    Args:
        choice: the motion that is carried over; None: none is.
        poses: (n, 6) what is left of its path, world frame.
        seer: whose sight it is: it has a map and names a camera.
    """
    strokes: list[Stroke] = []
    camera = getattr(getattr(seer, "map", None), "camera", None)
    caption = "no place seen"
    if sight.hands is not None:
        number = 0 if choice is None else choice.hypothesis
        hand = sight.hands.keypoints[0, 0] if number == 0 else sight.hands.others[0, 0, number - 1]
        if number == 0:
            strokes += skeleton(sight.hands.keypoints[0, 1], END, END, 0.003)
        strokes += skeleton(hand)
        caption = f"touch {sight.hands.confidence[0, 0]:.2f}" + (f", place {number + 1}" if number else "")
    if choice is not None:
        caption += f": as in {choice.motion.id}"
    if camera is not None and poses is not None and len(poses):
        strokes.append(Stroke(project(camera, poses[:, :3]) / PIXELS, PATH, 0.007))
    if camera is not None and choice is not None:
        sure = TOUCH if sight.sure else DOUBT
        strokes.append(Stroke(project(camera, choice.goal.touch[None]) / PIXELS, sure, 0.022))
    return Drawing(getattr(seer, "camera", "rgb_static"), tuple(strokes), caption)


def skeleton(hand: np.ndarray, colour: str = HAND, fingers: str = FIRST_FINGERS, width: float = 0.005) -> list[Stroke]:
    """Return the bones of a hand (21, 2; pixels of 96), thumb and index finger in their own colour, last."""
    shares = np.asarray(hand, np.float64) / PIXELS
    first = [any(b in finger for finger in _FINGERS) for _, b in BONES]
    order = sorted(range(len(BONES)), key=lambda n: first[n])
    return [Stroke(shares[list(BONES[n])], fingers if first[n] else colour, width) for n in order]
