"""Where a task can begin: what a state admits, random states that admit a task, and states that an expert prepares.

Demonstrations begin at random (`fresh_start`); a task that is measured alone begins where CALVIN's chains have it
(`prepared_starts`), so that it is measured in the states in which the long-horizon protocol meets it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from arvrm.interface import TASKS
from arvrm.sim.chains import Chain, chain_start
from arvrm.sim.experts import Expert, settle
from arvrm.sim.tasks import TaskOracle

PREPARE_STEPS = 360
"""Control steps in which an expert must do a task that prepares a start."""
LIFT_STEPS = 150
"""Control steps of the lift with which a fresh start with a block in the hand begins."""
SPARE_STARTS = 8
"""Other starts that are tried where the expert cannot prepare one."""
JITTER_M, JITTER_RAD = 0.01, 0.3
"""How far blocks are moved and turned at most, each way, at prepared starts."""
_TABLE, _CABINET, _DRAWER = ({("table", link)} for link in ("base_link", "plank_link", "drawer_link"))
_HELD = {"robot"}
_HANDLE_CLEARANCE = 0.1
"""A block in the cabinet is within reach where the door's handle is this far (m) from it along x."""
_DRAWER_OPEN = 0.75
_PUSH_ROOM = 0.16


def admissible_tasks(env: Any) -> set[str]:
    """Return the tasks that can be begun in the state the environment is in, as CALVIN's chains would ask them."""
    info, scene, f = env.task_info(), env.scene_obs(), env.fixtures
    slider, drawer = float(scene[0]), float(scene[1])
    blocks = {name: block for name, block in info["blocks"].items()}
    bodies = {name: {body for body, _ in block["contacts"]} for name, block in blocks.items()}
    opened = drawer > _DRAWER_OPEN * f.drawer_range
    held = [name for name in blocks if bodies[name] == _HELD]
    supported = {name: blocks[name]["contacts"] for name in blocks}
    topped = {
        name
        for name in blocks
        for other in blocks
        if other != name and name in bodies[other] and blocks[other]["position"][2] > blocks[name]["position"][2] + 0.02
    }
    if held:
        if len(held) > 1 or info["robot_contacts"] != {held[0]}:
            return set()
        grounds = [n for n in blocks if n not in held and n not in topped and supported[n] in (_TABLE, _CABINET)]
        found = {"place_in_slider"} | ({"place_in_drawer"} if opened else set())
        return found | ({"stack_block"} if any(supported[n] == _TABLE for n in grounds) else set())
    found = {"turn_off_led" if info["led"] else "turn_on_led"}
    found.add("turn_off_lightbulb" if info["bulb"] else "turn_on_lightbulb")
    grown = slider > 0.5 * f.slider_range
    room = slider if grown else f.slider_range - slider
    if room > 0.8 * f.slider_range:
        leftwards = (f.slider_direction[0] < 0) != grown
        found.add("move_slider_left" if leftwards else "move_slider_right")
    if drawer > _DRAWER_OPEN * f.drawer_range:
        found.add("close_drawer")
    elif drawer < 0.15 * f.drawer_range:
        found.add("open_drawer")
    handle = np.asarray(f.slider_handle) + slider * np.asarray(f.slider_direction)
    low, high = np.array(f.table_box)[:, 0]
    for name in blocks:
        x = blocks[name]["position"][0]
        if name in topped:
            continue
        if supported[name] == _TABLE:
            found |= {f"lift_{name}_block_table", f"rotate_{name}_block_left", f"rotate_{name}_block_right"}
            found |= {f"push_{name}_block_left"} if x - _PUSH_ROOM > low else set()
            found |= {f"push_{name}_block_right"} if x + _PUSH_ROOM < high else set()
            found |= {"push_into_drawer"} if opened else set()
        elif supported[name] == _CABINET and abs(x - handle[0]) > _HANDLE_CLEARANCE:
            found.add(f"lift_{name}_block_slider")
        elif supported[name] == _DRAWER and opened:
            found.add(f"lift_{name}_block_drawer")
        elif bodies[name] and bodies[name] <= set(blocks):
            found.add("unstack_block")
    return found


@dataclass(frozen=True)
class PreparedStart:
    """A chain's initial state, and the chain's first tasks, which an expert does from there."""

    chain: Chain
    before: tuple[str, ...]


def prepared_starts(chains: Sequence[Chain], task: str, count: int, seed: int) -> list[tuple[PreparedStart, ...]]:
    """Return `count` starts of a task, each with others to try where it cannot be prepared.

    A task begins where it stands early in one of the chains, whose tasks before it the expert does. So a block is held
    where it is to be placed, and the drawer open where something is to be taken out of it.
    """
    rng = np.random.default_rng([seed, TASKS.index(task)])
    places = [(chain, chain.tasks.index(task)) for chain in chains if task in chain.tasks]
    # Early places first: fewer tasks to prepare. The order among equals is drawn.
    order = sorted(rng.permutation(len(places)), key=lambda number: places[number][1])
    found = []
    for number in range(count):
        tries = [places[order[(number + more) % len(order)]] for more in range(1 + SPARE_STARTS)]
        found.append(tuple(PreparedStart(chain, chain.tasks[:place]) for chain, place in tries))
    return found


def reset_to_chain(env: Any, chain: Chain, rng: np.random.Generator | None = None) -> dict[str, Any]:
    """Reset the environment to a chain's initial state, with `rng` the blocks a little elsewhere; return the info."""
    robot_obs, scene_obs = chain_start(chain, env)
    if rng is not None:
        blocks = scene_obs[6:].reshape(3, 6)
        blocks[:, :2] += rng.uniform(-JITTER_M, JITTER_M, (3, 2))
        blocks[:, 5] += rng.uniform(-JITTER_RAD, JITTER_RAD, 3)
    return env.reset(options={"robot_obs": robot_obs, "scene_obs": scene_obs})[1]


def prepare(env: Any, starts: Sequence[PreparedStart], seed: int, number: int) -> tuple[dict[str, Any], Expert | None]:
    """Bring the environment to the first of `starts` that an expert can prepare.

    Args:
        seed, number: decide all that is random; the number tells apart the starts of one run.

    Returns: the info there, and the last task's expert (None: nothing was to be done), which may still be moving.

    Raises:
        RuntimeError: none could be prepared.
    """
    rng = np.random.default_rng([seed, number, 2])
    for attempt, start in enumerate(starts):
        info: dict[str, Any] | None = reset_to_chain(env, start.chain, rng)
        expert = None
        for task in start.before:
            expert = Expert(task, env, np.random.default_rng([number, attempt, TASKS.index(task)]), after=expert)
            info = let_do(env, expert, info, PREPARE_STEPS)
            if info is None:
                break
        if info is not None:
            return info, expert
    task = starts[0].chain.tasks[len(starts[0].before)]
    raise RuntimeError(f"the expert could not prepare {task} in {len(starts)} attempts")


def let_do(env: Any, expert: Expert, start_info: dict[str, Any], steps: int) -> dict[str, Any] | None:
    """Let an expert act until the oracle sees its task done; return the info then, None if `steps` do not suffice."""
    oracle = TaskOracle()
    for _ in range(steps):
        info = env.step(expert.act())[4]
        if oracle.completed(start_info, info, (expert.task,)):
            return info
    return None


def fresh_start(env: Any, task: str, rng: np.random.Generator, tries: int = 30) -> bool:
    """Reset the environment to a random state in which the task can begin; False where none was found.

    Doors, lights and blocks are anywhere that the task admits. A task that begins with a block in the hand begins with
    an expert's lift of it, unrecorded.
    """
    for _ in range(tries):
        env.reset(options={"scene_obs": _draw_scene(env, task, rng)})
        settle(env)
        if task in ("place_in_slider", "place_in_drawer", "stack_block"):
            lifts = sorted(t for t in admissible_tasks(env) if t.startswith("lift"))
            if task == "place_in_drawer":
                lifts = [t for t in lifts if not t.endswith("drawer")]
            if not lifts:
                continue
            lift = lifts[rng.integers(len(lifts))]
            expert = Expert(lift, env, rng, 0.0)
            let_do(env, expert, env.task_info(), LIFT_STEPS)
            for _ in range(int(rng.integers(0, 15))):  # CALVIN begins at the lift's threshold; be anywhere after it
                if not expert.finished:
                    env.step(expert.act())
        if task in admissible_tasks(env):
            return True
    return False


def _draw_scene(env: Any, task: str, rng: np.random.Generator) -> np.ndarray:
    """Draw a scene_obs (24,) that admits a task, as far as geometry tells; settling and contacts decide."""
    f = env.fixtures
    grown, opened, bulb, led = (bool(b) for b in rng.integers(0, 2, 4))
    towards_left = f.slider_direction[0] < 0
    if task.startswith("move_slider"):
        grown = (task == "move_slider_left") != towards_left
    elif "drawer" in task:
        opened = task != "open_drawer"
    elif task.startswith("turn"):
        bulb = task == "turn_off_lightbulb" if task.endswith("bulb") else bulb
        led = task == "turn_off_led" if task.endswith("led") else led
    order = list(env.block_order)
    words = task.split("_")
    named = next((word for word in words if word in order), None)
    place = "table"
    if task.startswith("lift"):
        place = words[-1]
    scene = np.zeros(24)
    scene[0] = f.slider_range * grown
    scene[1] = f.drawer_range * opened
    scene[3] = f.switch_range * bulb * rng.uniform(0.9, 1)
    scene[4:6] = bulb, led
    main = named or order[rng.integers(len(order))]
    centres: list[np.ndarray] = []
    poses = {}
    for name in [main, *(n for n in order if n != main)]:
        elsewhere = ("table", "table", "slider", "drawer" if opened else "slider")[rng.integers(4)]
        want = place if name == main else elsewhere
        if task == "stack_block" and name != main and len(centres) == 1:
            want = "table"
        size = np.array(next(block.size for block in env.description.blocks if block.name == name))
        poses[name] = _draw_block(f, want, size, scene[0], scene[1], centres, rng)
        if name == main and task.startswith("push"):
            low, high = np.array(f.table_box)[:, 0]
            room = _PUSH_ROOM + 0.01
            low, high = (low + room, high) if task.endswith("left") else (low, high - room)
            poses[name][0] = np.clip(poses[name][0], low, high)
        centres.append(poses[name][:3])
    if task == "unstack_block":
        below, above = (order[i] for i in rng.permutation(len(order))[:2])
        size = {block.name: np.array(block.size) for block in env.description.blocks}
        poses[below][:3] = _draw_block(f, "table", size[below], 0, 0, [], rng)[:3]
        third = next(n for n in order if n not in (below, above))
        for _ in range(50):
            if np.linalg.norm(poses[third][:2] - poses[below][:2]) > 0.1:
                break
            poses[third] = _draw_block(f, "table", size[third], 0, 0, [], rng)
        poses[above] = poses[below].copy()
        poses[above][2] += (size[below][2] + size[above][2]) / 2 + 0.001
        poses[above][5] += rng.uniform(-0.4, 0.4) + rng.integers(0, 2) * np.pi / 2
    for i, name in enumerate(order):
        scene[6 + 6 * i : 12 + 6 * i] = poses[name]
    return scene


def _draw_block(
    f: Any,
    place: str,
    size: np.ndarray,
    slider: float,
    drawer: float,
    others: list[np.ndarray],
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw a block's pose (6,; m, rad) on the table, in the open half of the cabinet, or in the drawer."""
    handle_x = f.slider_handle[0] + slider * f.slider_direction[0]
    for _ in range(100):
        if place == "table":
            low, high = f.surfaces["table"]
        elif place == "slider":
            centre = {name: np.mean(f.surfaces[name], 0)[0] for name in ("slider_left", "slider_right")}
            low, high = f.surfaces[max(centre, key=lambda name: abs(centre[name] - handle_x))]
        else:
            low, high = np.array(f.drawer_box) + drawer * np.asarray(f.drawer_direction)
            margin = np.array([0.06, 0.045, 0.0])
            low, high = low + margin, high - margin
            # The part of the drawer that the table's plate covers cannot be reached from above.
            high[1] = max(low[1] + 0.01, min(high[1], f.table_box[0][1] - 0.03))
            low[2] = high[2] = f.drawer_box[0][2] + size[2] / 2 + 0.001
        pose = np.zeros(6)
        pose[:3] = rng.uniform(low, high)
        # Between door and back wall a hand can only grasp across; CALVIN's blocks lie there so, too.
        width = np.pi / 8 if place == "slider" else np.pi
        pose[5] = np.pi / 2 + rng.uniform(-width, width)
        beside = np.abs(pose[:2] - f.button_top[:2]) - np.array(f.button_size[:2]) / 2
        if all(np.linalg.norm(pose[:2] - other[:2]) > 0.09 for other in others) and beside.max() > 0.05:
            break
    return pose
