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

ROTATE_DEG = 60.0
ROTATE_TILT_DEG = 30.0
ROTATE_MOVE_M = 0.1
PUSH_M = 0.1
LIFT_M = {"table": ("base_link", 0.05), "slider": ("plank_link", 0.03), "drawer": ("drawer_link", 0.05)}
SLIDER_M = 0.15
DRAWER_M = 0.12
STACK_SPEED = 1.0


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


def _rotated(start: Info, now: Info, block: str, sign: int) -> bool:
    before, after = start["blocks"][block], now["blocks"][block]
    if np.linalg.norm(np.subtract(after["position"], before["position"])) > ROTATE_MOVE_M:
        return False
    if not _bodies(after) - {"robot"}:
        return False
    turn = Rotation.from_quat(after["orientation"]) * Rotation.from_quat(before["orientation"]).inv()
    x, y, z = turn.as_euler("xyz", degrees=True)
    return bool(ROTATE_DEG < sign * z < 180 and abs(x) < ROTATE_TILT_DEG and abs(y) < ROTATE_TILT_DEG)


def _pushed(start: Info, now: Info, block: str, sign: int) -> bool:
    before, after = start["blocks"][block], now["blocks"][block]
    supports = {contact for contact in before["contacts"] if contact[0] != "robot"}
    if not supports or not supports <= after["contacts"]:
        return False
    return sign * (after["position"][0] - before["position"][0]) > PUSH_M


def _lifted(start: Info, now: Info, block: str, place: str) -> bool:
    link, height = LIFT_M[place]
    before, after = start["blocks"][block], now["blocks"][block]
    return (
        after["position"][2] - before["position"][2] > height
        and _bodies(after) == {"robot"}
        and ("table", link) in before["contacts"]
    )


def _placed(start: Info, now: Info, link: str) -> bool:
    if len(start["robot_contacts"]) != 1:
        return False
    (block,) = start["robot_contacts"]
    if block in now["robot_contacts"] or block not in start["blocks"]:
        return False
    return _bodies(start["blocks"][block]) == {"robot"} and ("table", link) in now["blocks"][block]["contacts"]


def _pushed_into_drawer(start: Info, now: Info) -> bool:
    # CALVIN means to ask that the robot touch the block at neither time, but compares a body with (body, link) pairs,
    # so that at the end it may. Scores of published policies contain this, hence so do ours.
    return any(
        start["blocks"][block]["contacts"] == {("table", "base_link")}
        and ("table", "drawer_link") in now["blocks"][block]["contacts"]
        for block in start["blocks"]
    )


def _moved(start: Info, now: Info, joint: str, distance: float) -> bool:
    moved = now[joint] - start[joint]
    return moved > distance if distance > 0 else moved < distance


def _switched(start: Info, now: Info, light: str, state: int) -> bool:
    return start[light] == 1 - state and now[light] == state


def _stands_on_blocks(block: Info) -> bool:
    bodies = _bodies(block)
    return bool(bodies) and bodies <= set(BLOCKS)


def _slow(block: Info) -> bool:
    return max(map(abs, (*block["linear_velocity"], *block["angular_velocity"]))) < STACK_SPEED


def _stacked(start: Info, now: Info) -> bool:
    return any(
        not _bodies(start["blocks"][name]) & set(BLOCKS) and _stands_on_blocks(after) and _slow(after)
        for name, after in now["blocks"].items()
    )


def _unstacked(start: Info, now: Info) -> bool:
    return any(
        _stands_on_blocks(before) and not _bodies(now["blocks"][name]) & set(BLOCKS) and _slow(before)
        for name, before in start["blocks"].items()
    )


def _predicates() -> dict[str, Predicate]:
    table: dict[str, Predicate] = {}
    for block in BLOCKS:
        for side, sign in (("right", -1), ("left", 1)):
            table[f"rotate_{block}_block_{side}"] = functools.partial(_rotated, block=block, sign=sign)
        for side, sign in (("right", 1), ("left", -1)):
            table[f"push_{block}_block_{side}"] = functools.partial(_pushed, block=block, sign=sign)
        for place in LIFT_M:
            table[f"lift_{block}_block_{place}"] = functools.partial(_lifted, block=block, place=place)
    table["move_slider_left"] = functools.partial(_moved, joint="door", distance=SLIDER_M)
    table["move_slider_right"] = functools.partial(_moved, joint="door", distance=-SLIDER_M)
    table["open_drawer"] = functools.partial(_moved, joint="drawer", distance=DRAWER_M)
    table["close_drawer"] = functools.partial(_moved, joint="drawer", distance=-DRAWER_M)
    table["place_in_slider"] = functools.partial(_placed, link="plank_link")
    table["place_in_drawer"] = functools.partial(_placed, link="drawer_link")
    table["stack_block"] = _stacked
    table["unstack_block"] = _unstacked
    for light, name in (("bulb", "lightbulb"), ("led", "led")):
        for word, state in (("on", 1), ("off", 0)):
            table[f"turn_{word}_{name}"] = functools.partial(_switched, light=light, state=state)
    table["push_into_drawer"] = _pushed_into_drawer
    return {task: table[task] for task in TASKS}


_PREDICATES = _predicates()
