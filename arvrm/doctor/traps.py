"""What is known to go wrong on CALVIN, so that numbers of two groups do not mean the same."""

from __future__ import annotations

TRAPS: tuple[tuple[str, str], ...] = (
    (
        "clipped twice",
        "rel_actions are clip(50 dpos), clip(20 deuler) to [-1, 1] already; do not scale or clip them again",
    ),
    ("gripper sign", "exactly 1 opens and -1 closes; other sets have 0 and 1, or the reverse"),
    ("which action", "`actions` in CALVIN's files are absolute, `rel_actions` relative; the second are learnt here"),
    ("their frame", "relative actions are in the world's frame, and add to the target pose, not to the measured one"),
    ("rotation", "differences of Euler angles xyz, 1/20 rad; no rotation vectors (axis-angle), no quaternions"),
    ("renderer", "TinyRenderer and EGL draw other pictures (17 to 26 of 255 apart): use the one of the training data"),
    ("simulator", "calvin_env 797142c is what is compared; other commits have other scenes, lights and contacts"),
    ("steps", "at most 360 control steps (12 s) an instruction, however many of them a chunk or a repeat covers"),
    ("image sizes", "static 200 x 200, gripper 84 x 84; drawing at another size is not drawing and then resizing"),
    ("start states", "blocks start by a hash over UTF-16 text; a common re-implementation hashes UTF-8: other starts"),
    ("sentences", "one validation sentence a task; training sentences, or paraphrases, are another test"),
    ("resets", "none within a chain; the last gripper action after a reset is 1 (open), whatever robot_obs says"),
    (
        "block order",
        "scene_obs lists blocks in the scene file's order, which differs: A pink, blue, red; C blue, red, pink",
    ),
)
"""(name, what is right)."""
