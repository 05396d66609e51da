"""Robots: what `interface.Robot` asks for, one file each, found by name."""

from __future__ import annotations

import difflib
import functools
from importlib import metadata
from typing import Any

from arvrm import plugins
from arvrm.interface import Robot, UserError
from arvrm.robots.calvin import CALVIN

_KNOWN: dict[str, Robot] = {CALVIN.name: CALVIN}
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
    if name not in _KNOWN:
        known = sorted({*_KNOWN, *_installed()})
        close = difflib.get_close_matches(str(name), known, n=1)
        nearest = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
        raise UserError(f"{place}: unknown robot {name!r}{nearest}; name its definition as package.module:object")
    return _KNOWN[name]


def chosen(name: str, flag: str = "--robot") -> Robot:
    """Return the robot that a user asked for: by name, or as package.module:object, which makes it known."""
    if not plugins.is_path(name):
        return named(name, flag)
    robot = plugins.load(name, flag)
    missing = [field for field in ("name", "components", "actions", "cameras", "arrays") if not hasattr(robot, field)]
    if missing:
        raise UserError(f"{flag} {name}: has no {missing[0]!r}, so it is no robot (docs/extending.md)")
    return register(robot)


def described(name: str, statistics: dict[str, Any] | None, place: str) -> Robot:
    """Return the robot of this name with the numbers that a file holds; None: its own."""
    robot = named(name, place)
    return robot if statistics is None else robot.with_statistics(statistics, place)


@functools.cache
def _installed() -> dict[str, metadata.EntryPoint]:
    return {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
