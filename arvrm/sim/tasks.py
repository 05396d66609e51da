"""CALVIN's 34 tasks as predicates on two moments: `PlayTableEnv.task_info()` at the start of a task, and now."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from arvrm.interface import BLOCKS, TASKS, UserError

Info = Mapping[str, Any]
Predicate = Callable[[Info, Info], bool]
Contact = tuple[str, str | int]

ROTATE_DEG = 60.0
PUSH_M = 0.1
LIFT_M = {"table": ("base_link", 0.05), "slider": ("plank_link", 0.03), "drawer": ("drawer_link", 0.05)}
SLIDER_M = 0.15
DRAWER_M = 0.12


class TaskOracle:
    """Decides which tasks were done between two infos, exactly as CALVIN's task oracle does."""

    def completed(self, start_info: Info, info: Info, tasks: Iterable[str] = TASKS) -> set[str]:
        """Return those of `tasks` whose predicate holds.

        Args:
            start_info: `task_info()` when the task began.
            info: `task_info()` now.

        Raises:
            UserError: a task is unknown.
        """
        return {task for task in tasks if _predicate(task)(start_info, info)}


def _predicate(task: str) -> Predicate:
    try:
        return _PREDICATES[task]
    except KeyError:
        raise UserError(f"task: {task!r} is unknown; choose one of CALVIN's {len(TASKS)}, e.g. {TASKS[0]}") from None


def _bodies(block: Info) -> set[str]:
    return {body for body, _ in block["contacts"]}


# What a task may ask for; calvin_env's configuration files give these predicates other numbers, too.


def rotated(
    start: Info, now: Info, block: str, degrees: float, tilt: float = 30.0, most: float = 180.0, reach: float = 0.1
) -> bool:
    """Whether a block turned by more than `degrees` (+ counter-clockwise), upright and within `reach` (m)."""
    before, after = start["blocks"][block], now["blocks"][block]
    if np.linalg.norm(np.subtract(after["position"], before["position"])) > reach:
        return False
    if not _bodies(after) - {"robot"}:
        return False
    turn = Rotation.from_quat(after["orientation"]) * Rotation.from_quat(before["orientation"]).inv()
    x, y, z = turn.as_euler("xyz", degrees=True)
    turned = z if degrees > 0 else -z
    return bool(abs(degrees) < turned < most and abs(x) < tilt and abs(y) < tilt)


def pushed(start: Info, now: Info, block: str, distance: float, axis: int = 0) -> bool:
    """Whether a block moved by more than `distance` (m, signed) along a world axis, on what it stood on."""
    before, after = start["blocks"][block], now["blocks"][block]
    supports = {contact for contact in before["contacts"] if contact[0] != "robot"}
    if not supports or not supports <= after["contacts"]:
        return False
    moved = after["position"][axis] - before["position"][axis]
    return moved > distance if distance > 0 else moved < distance


def lifted(start: Info, now: Info, block: str, height: float, body: str | None, link: str | None) -> bool:
    """Whether a block rose by more than `height` (m) in the gripper, from a body (or its link), if one is named."""
    before, after = start["blocks"][block], now["blocks"][block]
    stood = body is None or ((body, link) in before["contacts"] if link else body in _bodies(before))
    return after["position"][2] - before["position"][2] > height and _bodies(after) == {"robot"} and stood


def placed(start: Info, now: Info, body: str, link: str | None) -> bool:
    """Whether the block that the gripper held is let go and touches a body (or its link)."""
    if len(start["robot_contacts"]) != 1:
        return False
    (block,) = start["robot_contacts"]
    if block in now["robot_contacts"] or block not in start["blocks"]:
        return False
    after = now["blocks"][block]
    there = (body, link) in after["contacts"] if link else body in _bodies(after)
    return _bodies(start["blocks"][block]) == {"robot"} and there


def pushed_into(start: Info, now: Info, block: str, source: Contact, target: Contact) -> bool:
    """Whether a block that touched nothing but `source` (body, link) touches `target`."""
    # CALVIN means to ask that the robot touch the block at neither time, but compares a body with (body, link) pairs,
    # so that at the end it may. Scores of published policies contain this, hence so do ours.
    return start["blocks"][block]["contacts"] == {source} and target in now["blocks"][block]["contacts"]


def moved(start: Info, now: Info, joint: str, distance: float) -> bool:
    """Whether a door's joint moved by more than `distance` (m, signed)."""
    change = now[joint] - start[joint]
    return change > distance if distance > 0 else change < distance


def switched(start: Info, now: Info, light: str, before: int, after: int) -> bool:
    """Whether a light went from one state (0, 1) to another."""
    return start[light] == before and now[light] == after


def _stands_on_blocks(block: Info) -> bool:
    bodies = _bodies(block)
    return bool(bodies) and bodies <= set(BLOCKS)


def _slow(block: Info, speed: float) -> bool:
    return max(map(abs, (*block["linear_velocity"], *block["angular_velocity"]))) < speed


def stacked(start: Info, now: Info, speed: float = 1.0) -> bool:
    """Whether some block touched none and now rests on blocks alone, slower than `speed` (m/s, rad/s)."""
    return any(
        not _bodies(start["blocks"][name]) & set(BLOCKS) and _stands_on_blocks(after) and _slow(after, speed)
        for name, after in now["blocks"].items()
    )


def unstacked(start: Info, now: Info, speed: float = 1.0) -> bool:
    """Whether some block that rested on blocks alone, slower than `speed`, touches none now."""
    return any(
        _stands_on_blocks(before) and not _bodies(now["blocks"][name]) & set(BLOCKS) and _slow(before, speed)
        for name, before in start["blocks"].items()
    )


def _predicates() -> dict[str, Predicate]:
    table: dict[str, Predicate] = {}
    of = functools.partial
    for block in BLOCKS:
        for side, sign in (("right", -1), ("left", 1)):
            table[f"rotate_{block}_block_{side}"] = of(rotated, block=block, degrees=sign * ROTATE_DEG)
            table[f"push_{block}_block_{side}"] = of(pushed, block=block, distance=-sign * PUSH_M)
        for place, (link, height) in LIFT_M.items():
            table[f"lift_{block}_block_{place}"] = of(lifted, block=block, height=height, body="table", link=link)
    table["move_slider_left"] = of(moved, joint="door", distance=SLIDER_M)
    table["move_slider_right"] = of(moved, joint="door", distance=-SLIDER_M)
    table["open_drawer"] = of(moved, joint="drawer", distance=DRAWER_M)
    table["close_drawer"] = of(moved, joint="drawer", distance=-DRAWER_M)
    table["place_in_slider"] = of(placed, body="table", link="plank_link")
    table["place_in_drawer"] = of(placed, body="table", link="drawer_link")
    table["stack_block"] = stacked
    table["unstack_block"] = unstacked
    for light, name in (("bulb", "lightbulb"), ("led", "led")):
        for word, state in (("on", 1), ("off", 0)):
            table[f"turn_{word}_{name}"] = of(switched, light=light, before=1 - state, after=state)
    table["push_into_drawer"] = _any_pushed_into_drawer
    return {task: table[task] for task in TASKS}


def _any_pushed_into_drawer(start: Info, now: Info) -> bool:
    base, drawer = ("table", "base_link"), ("table", "drawer_link")
    return any(pushed_into(start, now, block, base, drawer) for block in start["blocks"])


_PREDICATES = _predicates()
