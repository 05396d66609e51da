"""Robots: what `interface.Robot` asks for, one file each, found by name."""

from __future__ import annotations

import difflib
import functools
from importlib import metadata
from typing import Any

from arvrm import plugins
from arvrm.interface import Robot, UserError
from arvrm.robots.calvin import CALVIN
from arvrm.robots.described import DescribedRobot, load_description, read_description

_KNOWN: dict[str, Robot] = {CALVIN.name: CALVIN}
_READ: dict[str, Robot] = {}
"""Robots that stores and checkpoints describe; one that a user names goes before."""
GROUP = "arvrm.robots"
"""The entry points by which an installed package makes its robots known: name = package.module:object."""


def register(robot: Robot) -> Robot:
    """Make a robot known by its name to this process; return it."""
    _KNOWN[robot.name] = robot
    return robot


def named(name: str, place: str = "robot") -> Robot:
    """Return the robot of this name: a built-in or registered one, or one that an installed package brings.

    A name that stands in a file is looked up here and nowhere else: no file can make the program import a module.

    Raises:
        UserError: there is none of this name.
    """
    if name not in _KNOWN and (entry := _installed().get(name)) is not None:
        register(entry.load())
    if name not in _KNOWN and name in _READ:
        return _READ[name]
    if name not in _KNOWN:
        known = sorted({*_KNOWN, *_installed()})
        close = difflib.get_close_matches(str(name), known, n=1)
        nearest = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
        raise UserError(
            f"{place}: unknown robot {name!r}{nearest}; name its definition as package.module:object or FILE.json"
        )
    return _KNOWN[name]


def known(name: str) -> Robot | None:
    """Return the robot of this name that this process has met; None: none."""
    return _KNOWN.get(name, _READ.get(name))


def chosen(name: str, flag: str = "--robot") -> Robot:
    """Return the robot that a user asked for, and make it known: a name, package.module:object, or FILE.json.

    The file is a description as `arvrm describe lerobot` writes it (`robots.described.Description`).
    """
    if name.endswith(".json"):
        return register(DescribedRobot(load_description(name), name))
    if not plugins.is_path(name):
        return named(name, flag)
    robot = plugins.load(name, flag)
    missing = [field for field in ("name", "components", "actions", "cameras", "arrays") if not hasattr(robot, field)]
    if missing:
        raise UserError(f"{flag} {name}: has no {missing[0]!r}, so it is no robot (docs/extending.md)")
    return register(robot)


def stored(name: str, description: dict[str, Any] | None, place: str) -> Robot:
    """Return the robot that a store or checkpoint names.

    Args:
        description: what it says of the robot besides (`described.described_as`); None: its name alone. Of a robot that
            the user named (`chosen`) the user's numbers count, and the rest must be the same.

    Raises:
        UserError: there is none of this name, the description is damaged, or another than the user's.
    """
    if description is None:
        return named(name, place)
    robot = DescribedRobot(read_description(description, f"{place}: robot"), f"{place}: robot")
    if robot.name != name:
        raise UserError(f"{place}: is of robot {name!r} and describes {robot.name!r}; make it again")
    if name not in _KNOWN:
        _READ[name] = robot
        return robot
    if other := difference(robot, _KNOWN[name]):
        raise UserError(f"{place}: describes robot {name!r} otherwise than what was named: {other}; correct one")
    return _KNOWN[name]


def difference(one: Robot, other: Robot) -> str:
    """Say in what two robots differ besides their numbers (`statistics`); "": in nothing."""
    for what in ("name", "control_hz", "components", "component_units", "cameras"):
        if getattr(one, what) != getattr(other, what):
            return f"{what} {getattr(one, what)!r} and {getattr(other, what)!r}"
    for what in ("names", "units", "binary", "relative"):
        mine, theirs = getattr(one.actions, what), getattr(other.actions, what)
        if mine != theirs:
            return f"actions' {what} {mine!r} and {theirs!r}"
    return ""


def described(
    name: str, statistics: dict[str, Any] | None, place: str, description: dict[str, Any] | None = None
) -> Robot:
    """Return the robot of `stored` with the numbers that a file holds; None: its own."""
    robot = stored(name, description, place)
    return robot if statistics is None else robot.with_statistics(statistics, place)


@functools.cache
def _installed() -> dict[str, metadata.EntryPoint]:
    return {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
