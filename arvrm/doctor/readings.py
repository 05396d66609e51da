"""Ways in which seven numbers can be meant: each says what a perfect policy of that convention would answer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from arvrm.geometry import angle_difference, euler_to_matrix
from arvrm.robots.calvin import EULER_STEP_RAD, POSITION_STEP_M

RIGHT = ""
"""The name of CALVIN's own reading."""
CLIPPED_TWICE = "at full speed nearly always: scaled once more and clipped (clipped twice); answer what was learnt"
ENOUGH = 0.6
"""Of the demonstrations' variance: what another reading may leave unexplained to be believed."""
CLEARLY = 0.7
"""Times what CALVIN's own reading leaves unexplained."""
RELATED = 0.95
"""Of the variance: what leaves more unexplained has nothing to do with the demonstrations."""
_STILL = 0.02
"""Standard deviation of recorded actions below which there is nothing to compare."""
_AXES = "xyz"


@dataclass(frozen=True)
class Reading:
    """One way in which three numbers can be meant.

    Attributes:
        name: in words, after "they are"; RIGHT: as CALVIN means them.
        expected: (n, 3) what a policy that agrees with the demonstrations answers, in this convention.
        angles: differences are wrapped at pi.
    """

    name: str
    expected: np.ndarray
    angles: bool = False

    def unexplained(self, given: np.ndarray) -> float:
        """Return what share of the expected variance given answers (n, 3) leave: 0 all alike, 1 like its mean."""
        difference = given - self.expected
        centre = self.expected - self.expected.mean(0)
        if self.angles:
            difference = angle_difference(given, self.expected)
            # A circle's mean: angles around pi have none in the middle of their numbers.
            mean = np.angle(np.exp(1j * self.expected).mean(0))
            centre = angle_difference(self.expected, mean)
        spread = float(np.square(centre).sum())
        return float(np.square(difference).sum()) / spread if spread > 0 else np.inf


def positions(wanted: np.ndarray, pose: np.ndarray) -> Iterator[Reading]:
    """Yield readings of an action's first three numbers.

    Args:
        wanted: (n, 7) the demonstrations' relative actions.
        pose: (n, 6) the poses that they add to.
    """
    arm, start = wanted[:, :3], pose[:, :3]
    target = start + arm * POSITION_STEP_M
    rotation = euler_to_matrix(pose[:, 3:6])
    yield Reading(RIGHT, arm)
    yield Reading("absolute positions in m; CALVIN's are relative, in 1/50 m", target)
    yield Reading("in metres; CALVIN's unit is 1/50 m: multiply by 50", arm * POSITION_STEP_M)
    yield Reading("in the gripper's frame; CALVIN's are in the world's", np.einsum("nji,nj->ni", rotation, arm))
    yield from _scaled(arm)


def rotations(wanted: np.ndarray, pose: np.ndarray) -> Iterator[Reading]:
    """Yield readings of an action's next three numbers; as `positions`."""
    from scipy.spatial.transform import Rotation

    turn, start = wanted[:, 3:6], pose[:, 3:6]
    target = start + turn * EULER_STEP_RAD
    before, after = euler_to_matrix(start), euler_to_matrix(target)
    world = Rotation.from_matrix(after @ np.swapaxes(before, 1, 2)).as_rotvec()
    own = Rotation.from_matrix(np.swapaxes(before, 1, 2) @ after).as_rotvec()
    yield Reading(RIGHT, turn)
    yield Reading("absolute Euler angles; CALVIN's are relative, in 1/20 rad", target, angles=True)
    yield Reading("in radians; CALVIN's unit is 1/20 rad: multiply by 20", turn * EULER_STEP_RAD)
    yield Reading("in degrees; CALVIN's unit is 1/20 rad", np.rad2deg(turn * EULER_STEP_RAD))
    for vectors, frame in ((world, "world"), (own, "gripper")):
        kind = f"rotation vectors (axis-angle) in the {frame}'s frame; CALVIN's are differences of Euler angles xyz"
        yield Reading(f"{kind}, in 1/20 rad", vectors / EULER_STEP_RAD)
        yield Reading(f"{kind}, and in 1/20 rad: these are in rad", vectors)
    yield from _scaled(turn)


def _scaled(arm: np.ndarray) -> Iterator[Reading]:
    spread = arm.std(0)
    if (spread > 0).all():
        name = "normalised by mean and deviation; undo it before they are executed"
        yield Reading(name, (arm - arm.mean(0)) / spread)


def _clipped_twice(given: np.ndarray, arm: np.ndarray) -> bool:
    """Whether answers go the right way, but at full speed where the demonstrations do not."""
    full, moving = np.abs(given) > 0.999, np.abs(arm) > 0.1
    if np.abs(given).max() > 1.001 or not moving.any():
        return False
    rightly = np.sign(given[moving]) == np.sign(arm[moving])
    return bool(full.mean() > 0.7 and (np.abs(arm) > 0.999).mean() < 0.5 * full.mean() and rightly.mean() > 0.8)


def turned(arm: np.ndarray) -> Iterator[Reading]:
    """Yield readings with axes (n, 3) exchanged or reversed."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            if order == (0, 1, 2) and signs == (1, 1, 1):
                continue
            said = ", ".join(("-" if sign < 0 else "") + _AXES[axis] for axis, sign in zip(order, signs, strict=True))
            yield Reading(f"of other axes or signs: ({said}) in place of (x, y, z)", arm[:, order] * signs)


@dataclass(frozen=True)
class Verdict:
    """How three numbers are best read.

    Attributes:
        name: of the reading; RIGHT: CALVIN's; None: of none that is known.
        unexplained: by that reading, or by CALVIN's where none fits.
        right: what CALVIN's own reading leaves unexplained.
        still: the demonstrations hardly move there: nothing can be said.
    """

    name: str | None
    unexplained: float
    right: float
    still: bool = False


def judge(given: np.ndarray, readings: list[Reading]) -> Verdict:
    """Find the reading (the first is CALVIN's) in which given numbers (n, 3) agree best with the demonstrations.

    What is named must be far better than CALVIN's own; axes are exchanged only if no plainer reading says as much.
    """
    arm = readings[0].expected
    right = readings[0].unexplained(given)
    if arm.std(0).max() < _STILL:
        return Verdict(None, right, right, still=True)
    if _clipped_twice(given, arm):
        return Verdict(CLIPPED_TWICE, right, right)
    best = min(readings, key=lambda reading: reading.unexplained(given))
    least = best.unexplained(given)
    exchanged = min(turned(arm), key=lambda reading: reading.unexplained(given))
    if exchanged.unexplained(given) < 0.9 * least - 1e-9:
        best, least = exchanged, exchanged.unexplained(given)
    if best.name != RIGHT and least < ENOUGH and least < CLEARLY * right:
        return Verdict(best.name, least, right)
    return Verdict(RIGHT if right < RELATED else None, right, right)
