"""The numbers of a robot's state by name, in the order that a convention says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from arvrm.config import nearest
from arvrm.geometry import wrap_angle
from arvrm.interface import Robot, UserError
from arvrm.remote.rotations import SIZES, Turn, numbers_of, turn_of

_CALVIN = {
    "position": ("robot_obs", 0, 3),
    "gripper_width": ("robot_obs", 6, 7),
    "joints": ("robot_obs", 7, 14),
    "gripper_action": ("robot_obs", 14, 15),
}
"""CALVIN's parts: array, first number, end."""
_SLICE = re.compile(r"(\w+)\[(\d+):(\d+)\]")
_ZEROS = re.compile(r"zeros\[(\d+)\]")


@dataclass(frozen=True)
class Part:
    """One named part: `size` numbers of an array, from `start` on, written as they are or as `kind` says.

    Attributes:
        array: "" for zeros, which are sent and ignored.
        kind: "" as they are; a rotation's name; "opening" or "closing": 0 to 1, of the gripper's width.
    """

    name: str
    array: str
    start: int
    stop: int
    kind: str = ""

    @property
    def size(self) -> int:
        if self.kind in SIZES:
            return SIZES[self.kind]  # type: ignore[index]
        return self.stop - self.start

    def read(self, state: Mapping[str, np.ndarray], robot: Robot) -> np.ndarray:
        """Return this part's numbers (`size`,) of an observation's arrays."""
        if not self.array:
            return np.zeros(self.size)
        numbers = np.asarray(state[self.array], np.float64).ravel()[self.start : self.stop]
        if self.kind in ("opening", "closing"):
            opening = numbers / robot.statistics.gripper_open_m
            return opening if self.kind == "opening" else 1 - opening
        if self.kind in SIZES and self.kind != "euler_xyz":
            return numbers_of(self.kind, Turn.from_euler("xyz", numbers))  # type: ignore[arg-type]
        return numbers

    def write(self, state: Mapping[str, np.ndarray], robot: Robot, numbers: np.ndarray) -> None:
        """Put this part's numbers into an observation's arrays; ValueError where they are no rotation."""
        if not self.array:
            return
        if self.kind in ("opening", "closing"):
            numbers = (numbers if self.kind == "opening" else 1 - numbers) * robot.statistics.gripper_open_m
        elif self.kind in SIZES and self.kind != "euler_xyz":
            numbers = wrap_angle(turn_of(self.kind, numbers).as_euler("xyz"))  # type: ignore[arg-type]
        state[self.array].reshape(-1)[self.start : self.stop] = numbers


def parts(names: Sequence[str], robot: Robot, place: str) -> tuple[Part, ...]:
    """Return the parts of these names.

    Raises:
        UserError: the robot has no such part.
    """
    return tuple(_part(name, robot, place) for name in names)


def _part(name: str, robot: Robot, place: str) -> Part:
    sizes = {array: int(np.prod(shape)) for array, shape in robot.observed.items()}
    if name in sizes:
        return Part(name, name, 0, sizes[name])
    if (found := _ZEROS.fullmatch(name)) and int(found[1]) <= 1000:
        return Part(name, "", 0, int(found[1]))
    if (found := _SLICE.fullmatch(name)) and found[1] in sizes:
        start, stop = int(found[2]), int(found[3])
        if start < stop <= sizes[found[1]]:
            return Part(name, found[1], start, stop)
        raise UserError(f"{place}: {name!r} is outside of {found[1]}, which has {sizes[found[1]]} numbers")
    known = [*sizes, "zeros[n]", *(f"{array}[a:b]" for array in sizes)]
    if robot.name == "calvin":
        if name in _CALVIN:
            return Part(name, *_CALVIN[name])
        if name in SIZES:
            return Part(name, "robot_obs", 3, 6, name)
        if name in ("gripper_opening", "gripper_closing"):
            return Part(name, "robot_obs", 6, 7, name.removeprefix("gripper_"))
        known += [*_CALVIN, *SIZES, "gripper_opening", "gripper_closing"]
    raise UserError(f"{place}: {robot.name} has no {name!r}{nearest(name, known)}; known: {', '.join(known)}")
