"""CALVIN's long-horizon protocol: chains of five instructions and the states they start from.

The 1000 official chains come from a symbolic model of the table (what each task needs and changes) by rejection
sampling with fixed seeds; so do chains over a subset of the tasks, for small benchmarks.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from arvrm.files import read_bytes, write_json
from arvrm.interface import BLOCKS, TASKS, UserError
from arvrm.sim.env import ROBOT_START
from arvrm.sim.scene import SceneDescription

CHAIN_LENGTH = 5

_MAX_CHAIN_BYTES = 1 << 26
_PLACES = ("table", "slider_right", "slider_left")
_DOMAINS: dict[str, tuple] = {
    "led": (0, 1),
    "lightbulb": (0, 1),
    "slider": ("right", "left"),
    "drawer": ("closed", "open"),
    **{f"{block}_block": _PLACES for block in BLOCKS},
    "grasped": (0,),
}
"""What an initial state may be, in CALVIN's order, on which seeds depend."""

State = Mapping[str, Any]
Rule = tuple[dict[str, tuple], dict[str, Any]]

# Official start places on scene D, and the numbers drawn around them.
_CABINET_SPOTS = {
    "slider_left": (-2.40851662e-01, 9.24044687e-02, 4.60990009e-01),
    "slider_right": (7.03416330e-02, 9.24044687e-02, 4.60990009e-01),
}
_TABLE_SPOTS = (
    (5.00000896e-02, -1.20000177e-01, 4.59990009e-01),
    (2.29995412e-01, -1.19995140e-01, 4.59990010e-01),
)
_SURFACES_D = {
    "table": ((0.0, -0.15, 0.46), (0.35, -0.03, 0.46)),
    "slider_left": ((-0.32, 0.05, 0.46), (-0.16, 0.12, 0.46)),
    "slider_right": ((-0.05, 0.05, 0.46), (0.13, 0.12, 0.46)),
}
_YAW_RANGE = (np.pi / 2 - np.pi / 8, np.pi / 2 + np.pi / 8)
_SLIDER_OPEN, _DRAWER_OPEN, _SWITCH_ON = 0.28, 0.22, 0.088

_DRAWS_AT_ONCE = 4096
_DRAWS_BEFORE_LISTING = 200_000


@dataclass(frozen=True)
class Chain:
    """Instructions to be done one after the other, without a reset between them.

    Attributes:
        initial_state: CALVIN's symbolic state: led, lightbulb (0, 1), slider ("left", "right"), drawer ("open",
            "closed"), red_block, blue_block, pink_block ("table", "slider_left", "slider_right"), grasped (0).
        tasks: names of interface.TASKS.
        scene_obs: (24,) start state in the scene file's block order; None: `chain_start` draws it.
    """

    initial_state: dict[str, Any]
    tasks: tuple[str, ...]
    scene_obs: tuple[float, ...] | None = None


def generate_chains(
    number: int = 1000, tasks: Iterable[str] = TASKS, length: int = CHAIN_LENGTH
) -> list[Chain]:  # fmt: skip
    """Return the official chains, or chains of the same kind over some tasks only.

    Officially a chain's tasks are distinct and so are their categories (kinds of motion). Over a subset, a category may
    occur k times in a chain, k being the least number with which any chain exists; initial states from which none
    exists are left out.

    Args:
        number: how many; the first 1000 of TASKS are CALVIN's benchmark only for number=1000, since chains are spread
            over initial states and shuffled.
        tasks: what to draw from; order and repetitions do not matter.
        length: instructions in a chain.

    Raises:
        UserError: unknown tasks, or no chain can be made of them.
    """
    if number < 1 or length < 1:
        raise UserError(f"chains: number {number} and length {length} must be at least 1")
    chosen = set(tasks)
    for task in sorted(chosen):
        if task not in TASKS:
            raise UserError(f"chains: task {task!r} is unknown; choose from CALVIN's, e.g. {TASKS[0]}")
    return list(_generate(int(number), tuple(task for task in TASKS if task in chosen), int(length)))


@functools.lru_cache(maxsize=8)
def _generate(number: int, tasks: tuple[str, ...], length: int) -> tuple[Chain, ...]:
    states = list(enumerate(_initial_states()))
    repeats = 1
    if tasks != TASKS or length != CHAIN_LENGTH:
        states, repeats = _feasible(states, tasks, length)
    counts = [len(part) for part in np.array_split(np.arange(number), len(states))]
    _automaton(tasks)
    # Every state has a generator of its own, and NumPy draws without the interpreter's lock: threads change nothing.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        drawn = pool.map(
            lambda job: _draw(job[0][1], job[1], job[0][0], tasks, length, repeats), zip(states, counts, strict=True)
        )
        chains = [
            Chain(dict(state), chain) for (_, state), found in zip(states, drawn, strict=True) for chain in found
        ]
    np.random.RandomState(0).shuffle(chains)
    return tuple(chains)


def official_chains() -> list[Chain]:
    """Return what `generate_chains(1000)` does, which takes some seconds, from a file that it made."""
    stored = json.loads(resources.files("arvrm").joinpath("resources/official_chains.json").read_text())
    return [
        Chain(dict(zip(stored["keys"], state, strict=True)), tuple(TASKS[number] for number in tasks))
        for state, tasks in stored["chains"]
    ]


def chain_start(chain: Chain, scene: SceneDescription | Any) -> tuple[np.ndarray, np.ndarray]:
    """Return robot_obs (15,) and scene_obs (24,) at which a chain starts; give both to `PlayTableEnv.reset`.

    On the official scene D these are CALVIN's. On other scenes the blocks lie at the same fractions of that scene's
    surfaces, in its block order, with the same drawn orientations, and doors and switch at the ends of its ranges.

    Args:
        chain: if it brings a scene_obs, that is returned as it is.
        scene: a SceneDescription or a PlayTableEnv.

    Raises:
        UserError: more blocks start on a surface than it has places for.
    """
    description: SceneDescription = getattr(scene, "description", scene)
    if chain.scene_obs is not None:
        return ROBOT_START.copy(), np.array(chain.scene_obs, dtype=np.float64)
    state = chain.initial_state
    _check_places(state, "chain")
    if description.assets == "official" and description.name == "D":
        return official_start(state, description.block_order)
    fixtures = description.fixtures
    ranges = (fixtures.slider_range, fixtures.drawer_range, fixtures.switch_range)

    def spot(surface: str, place: tuple) -> np.ndarray:
        return _transfer(place, _SURFACES_D[surface], description.surfaces[surface])

    return ROBOT_START.copy(), _start(state, state_seed(state), description.block_order, ranges, spot)


def official_start(state: State, order: Sequence[str] = ("red", "blue", "pink")) -> tuple[np.ndarray, np.ndarray]:
    """Return robot_obs (15,) and scene_obs (24,) at which CALVIN starts a symbolic state in its scene D.

    As in CALVIN, blocks are drawn by a hash of the state's values as they print, in the order of its keys.
    """
    ranges = (_SLIDER_OPEN, _DRAWER_OPEN, _SWITCH_ON)
    return ROBOT_START.copy(), _start(state, _seed(state.values()), order, ranges, lambda _, place: np.array(place))


def _start(
    state: State,
    seed: int,
    order: Sequence[str],
    ranges: tuple[float, float, float],
    spot: Callable[[str, tuple], np.ndarray],
) -> np.ndarray:
    """Return scene_obs (24,): doors and switch at the ends of `ranges`, blocks where `spot` has CALVIN's places."""
    rng = np.random.RandomState(seed)
    table_spots = [spot("table", place) for place in _TABLE_SPOTS]
    rng.shuffle(table_spots)
    scene_obs = np.zeros(24)
    scene_obs[0] = ranges[0] if state["slider"] == "left" else 0.0
    scene_obs[1] = ranges[1] if state["drawer"] == "open" else 0.0
    scene_obs[3] = ranges[2] if state["lightbulb"] else 0.0
    scene_obs[4:6] = state["lightbulb"], state["led"]
    for block in BLOCKS:
        place = state[f"{block}_block"]
        if place in _CABINET_SPOTS:
            position = spot(place, _CABINET_SPOTS[place])
        elif block == "pink" or (block == "blue" and state["red_block"] == "table"):
            position = table_spots[1]
        else:
            position = table_spots[0]
        row = 6 + 6 * order.index(block)
        scene_obs[row : row + 3] = position
        scene_obs[row + 5] = rng.uniform(*_YAW_RANGE)
    return scene_obs


def state_seed(state: State) -> int:
    """Return CALVIN's seed of an initial state: pyhash's hash of `str(state.values())`."""
    return _seed([state[key] for key in _DOMAINS])


def _seed(values: Iterable[Any]) -> int:
    return fnv1(f"dict_values({list(values)})".encode("utf-16-le"))


def fnv1(data: bytes) -> int:
    """Return what pyhash.fnv1_32 0.9.3 does: 32-bit FNV-1 with the initial value 0, not with the standard basis.

    It hashes a str as UTF-16-LE, on which the start states of CALVIN's published scores depend.
    """
    value = 0
    for byte in data:
        value = value * 0x01000193 % 2**32 ^ byte
    return value


def load_chains(file: str | Path) -> list[Chain]:
    """Read chains of one's own: a JSON list of {"initial_state": {...}, "tasks": [...], "scene_obs": [24] or absent}.

    Lists of [initial state, [task, ...]], as evaluations of CALVIN write them, are read as well.

    Raises:
        UserError: no such file, no JSON, or an entry that is no chain (named by its index).
    """
    content = read_bytes(file, "give a JSON list of chains", _MAX_CHAIN_BYTES)
    try:
        entries = json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not text; give a JSON list of chains") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON ({error.msg}); give a list of chains") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({error}); give a list of chains") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{file}: no chains; give a non-empty JSON list")
    return [_chain(entry, f"{file}[{index}]") for index, entry in enumerate(entries)]


def save_chains(chains: Iterable[Chain], file: str | Path) -> None:
    """Write chains as JSON that `load_chains` reads."""
    entries = []
    for chain in chains:
        entry: dict[str, Any] = {"initial_state": chain.initial_state, "tasks": list(chain.tasks)}
        if chain.scene_obs is not None:
            entry["scene_obs"] = list(chain.scene_obs)
        entries.append(entry)
    write_json(file, entries)


# The symbolic model


def _rules() -> dict[str, tuple[Rule, ...]]:
    """What each task needs and what it changes: alternatives of (condition: key -> allowed values, effect)."""
    free = {"grasped": (0,)}
    rules: dict[str, tuple[Rule, ...]] = {}
    cabinet = ("slider_right", "slider_left")
    for block in BLOCKS:
        key = f"{block}_block"
        on_table = {key: ("table",), **free}
        grasp = {key: "grasped", "grasped": 1}
        for side in ("right", "left"):
            rules[f"rotate_{block}_block_{side}"] = rules[f"push_{block}_block_{side}"] = ((on_table, {}),)
        rules[f"lift_{block}_block_table"] = ((on_table, grasp),)
        # The door hides the half of the cabinet at which it stands.
        rules[f"lift_{block}_block_slider"] = tuple(
            ({key: (f"slider_{place}",), "slider": (door,), **free}, grasp)
            for place, door in (("left", "right"), ("right", "left"))
        )
        rules[f"lift_{block}_block_drawer"] = (({key: ("drawer",), "drawer": ("open",), **free}, grasp),)
    held = {block: {f"{block}_block": ("grasped",), "grasped": (1,)} for block in BLOCKS}
    # CALVIN's model has a block placed behind the door where the door stands, which is where it is not; kept.
    rules["place_in_slider"] = tuple(
        ({**held[block], "slider": (side,)}, {f"{block}_block": f"slider_{side}", "grasped": 0})
        for block in BLOCKS
        for side in ("right", "left")
    )
    rules["place_in_drawer"] = tuple(
        ({**held[block], "drawer": ("open",)}, {f"{block}_block": "drawer", "grasped": 0}) for block in BLOCKS
    )
    pairs = [(f"{top}_block", f"{bottom}_block") for top, bottom in itertools.permutations(BLOCKS, 2)]
    rules["stack_block"] = tuple(
        (
            {top: ("grasped",), bottom: ("table",), "grasped": (1,)},
            {top: "stacked_top", bottom: "stacked_bottom", "grasped": 0},
        )
        for top, bottom in pairs
    )
    rules["unstack_block"] = tuple(
        ({top: ("stacked_top",), bottom: ("stacked_bottom",), **free}, {top: "table", bottom: "table"})
        for top, bottom in pairs
    )
    rules["push_into_drawer"] = tuple(
        (
            {
                f"{block}_block": ("table",),
                **{f"{other}_block": cabinet for other in BLOCKS if other != block},
                "drawer": ("open",),
                **free,
            },
            {f"{block}_block": "drawer", "grasped": 0},
        )
        for block in BLOCKS
    )
    for task, key, before, after in (
        ("move_slider_left", "slider", "right", "left"),
        ("move_slider_right", "slider", "left", "right"),
        ("open_drawer", "drawer", "closed", "open"),
        ("close_drawer", "drawer", "open", "closed"),
        ("turn_on_lightbulb", "lightbulb", 0, 1),
        ("turn_off_lightbulb", "lightbulb", 1, 0),
        ("turn_on_led", "led", 0, 1),
        ("turn_off_led", "led", 1, 0),
    ):
        rules[task] = (({key: (before,), **free}, {key: after}),)
    return {task: rules[task] for task in TASKS}


def _categories() -> dict[str, str]:
    names = {}
    for task in TASKS:
        if task.startswith(("rotate_", "push_")) and task != "push_into_drawer":
            names[task] = "rotate or push"
        elif task.startswith("lift_"):
            names[task] = "lift from " + task.rsplit("_", 1)[1]
        elif task.startswith("turn_"):
            names[task] = "light"
        elif task.startswith("place_"):
            names[task] = "place"
        elif "slider" in task:
            names[task] = "slider"
        elif task in ("open_drawer", "close_drawer"):
            names[task] = "drawer"
        else:
            names[task] = task
    return names


_RULES = _rules()
_CATEGORY = _categories()


def _initial_states() -> list[dict[str, Any]]:
    """All states with one or two blocks on the table and no two at one end of the cabinet."""
    states = []
    for values in itertools.product(*_DOMAINS.values()):
        places = Counter(values)
        if places["table"] in (1, 2) and places["slider_right"] < 2 and places["slider_left"] < 2:
            states.append(dict(zip(_DOMAINS, values, strict=True)))
    return states


def _after(state: State, task: str) -> dict[str, Any] | None:
    """Return the state after a task, or None unless exactly one of its alternatives is possible."""
    effects = [
        effect
        for condition, effect in _RULES[task]
        if all(state[key] in allowed for key, allowed in condition.items())
    ]
    return {**state, **effects[0]} if len(effects) == 1 else None


class _Automaton:
    """The rules as a table: `following[state, task]` is the next state's number, or -1 where the task is impossible."""

    def __init__(self, tasks: tuple[str, ...]):
        self.tasks = tasks
        self.bounds = np.tile(np.arange(len(tasks), 1, -1, dtype=np.uint64), _DRAWS_AT_ONCE)
        self.category = np.unique([_CATEGORY[task] for task in tasks], return_inverse=True)[1]
        self._numbers: dict[tuple, int] = {}
        rows: list[list[int]] = []
        pending: list[State] = []

        def number(state: State) -> int:
            key = tuple(state.values())
            if key not in self._numbers:
                self._numbers[key] = len(self._numbers)
                pending.append(state)
            return self._numbers[key]

        for state in _initial_states():
            number(state)
        while len(rows) < len(pending):
            results = [_after(pending[len(rows)], task) for task in tasks]
            rows.append([-1 if result is None else number(result) for result in results])
        self.following = np.array(rows)

    def number(self, state: State) -> int:
        return self._numbers[tuple(state.values())]


_automaton = functools.lru_cache(maxsize=4)(_Automaton)


def _draw(
    state: State, number: int, seed: int, tasks: tuple[str, ...], length: int, repeats: int
) -> list[tuple[str, ...]]:
    """Draw chains by rejection, exactly as many `RandomState(seed).choice(tasks, length, replace=False)` would.

    A choice shuffles all tasks: one bounded integer for each but the last place. They are drawn here for thousands of
    choices at once, and only the places still in question are followed through the swaps, which is 50 times faster.
    """
    rng, automaton, size = np.random.RandomState(seed), _automaton(tasks), len(tasks)
    bounds = automaton.bounds
    found: list[tuple[str, ...]] = []
    for _ in range(_DRAWS_BEFORE_LISTING // _DRAWS_AT_ONCE if tasks != TASKS else 1_000_000_000):
        if len(found) >= number:
            break
        swaps = rng.randint(0, bounds, dtype=np.uint64).astype(np.uint8).reshape(_DRAWS_AT_ONCE, size - 1).T[::-1]
        swaps = np.ascontiguousarray(swaps)  # row i - 1: with what place i is swapped; places were swapped from the top
        rows = np.arange(_DRAWS_AT_ONCE)
        states = np.full(_DRAWS_AT_ONCE, automaton.number(state))
        chains = np.zeros((_DRAWS_AT_ONCE, 0), np.int64)
        for place in range(length):
            # Before place i was swapped, what is now at a place below i lay there or, if it was swapped with i, at i.
            origin = swaps[place - 1].take(rows) if place else np.zeros(len(rows), np.uint8)
            for i in range(place + 1, size):
                swap = swaps[i - 1].take(rows) if place else swaps[i - 1]
                np.putmask(origin, origin == swap, np.uint8(i))
            states = automaton.following[states, origin]
            chains = np.concatenate([chains, origin[:, None].astype(np.int64)], axis=1)
            kinds = automaton.category[chains]
            keep = (states >= 0) & ((kinds == kinds[:, -1:]).sum(axis=1) <= repeats)
            rows, states, chains = rows[keep], states[keep], chains[keep]
        found += [tuple(tasks[task] for task in chain) for chain in chains]
    if len(found) < number:
        every = list(_all_chains(state, tasks, length, repeats))  # rare ones: drawn from the list of all, the same law
        found += [every[rng.randint(len(every))] for _ in range(number - len(found))]
    return found[:number]


def _all_chains(
    state: State, tasks: tuple[str, ...], length: int, repeats: int, past: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    if len(past) == length:
        yield past
        return
    used = Counter(map(_CATEGORY.__getitem__, past))
    for task in tasks:
        if task in past or used[_CATEGORY[task]] == repeats:
            continue
        following = _after(state, task)
        if following is not None:
            yield from _all_chains(following, tasks, length, repeats, (*past, task))


def _feasible(states: list, tasks: tuple[str, ...], length: int) -> tuple[list, int]:
    for repeats in range(1, length + 1):
        possible = [
            (seed, state)
            for seed, state in states
            if next(_all_chains(state, tasks, length, repeats), None) is not None
        ]
        if possible:
            return possible, repeats
    raise UserError(f"chains: no {length} of these {len(tasks)} tasks follow one another; add tasks or shorten chains")


def _transfer(place: tuple, source: tuple, target: tuple) -> np.ndarray:
    (low, high), (new_low, new_high) = np.array(source), np.array(target)
    moved = np.array(place, dtype=float)
    moved[:2] = new_low[:2] + (moved[:2] - low[:2]) / (high[:2] - low[:2]) * (new_high[:2] - new_low[:2])
    moved[2] += new_low[2] - low[2]
    return moved


def _check_places(state: State, place: str) -> None:
    counts = Counter(state[f"{block}_block"] for block in BLOCKS)
    if counts["table"] > 2 or counts["slider_left"] > 1 or counts["slider_right"] > 1:
        raise UserError(f"{place}: blocks at {dict(counts)} have no start places; give scene_obs")


def _chain(entry: Any, place: str) -> Chain:
    if isinstance(entry, list) and len(entry) == 2:
        entry = {"initial_state": entry[0], "tasks": entry[1]}
    if not isinstance(entry, dict):
        raise UserError(f"{place}: expected an object or [initial state, tasks], got {type(entry).__name__}")
    for key in entry:
        if key not in ("initial_state", "tasks", "scene_obs"):
            raise UserError(f"{place}: unknown key {key!r}; use initial_state, tasks and scene_obs")
    tasks = entry.get("tasks")
    if not isinstance(tasks, list) or not tasks:
        raise UserError(f"{place}: no tasks; give a non-empty list of task names")
    for task in tasks:
        if task not in TASKS:
            nearest = difflib.get_close_matches(str(task), TASKS, 1, 0.0)[0]
            raise UserError(f"{place}: task {task!r} is unknown; did you mean {nearest!r}?")
    scene_obs = entry.get("scene_obs")
    if scene_obs is not None:
        if not (
            isinstance(scene_obs, list)
            and len(scene_obs) == 24
            and all(isinstance(value, (int, float)) and abs(value) < 1e6 for value in scene_obs)
        ):
            raise UserError(f"{place}: scene_obs must be 24 finite numbers")
        scene_obs = tuple(float(value) for value in scene_obs)
    state = entry.get("initial_state", {} if scene_obs is not None else None)
    if not isinstance(state, dict):
        raise UserError(f"{place}: no initial_state; give one, or scene_obs")
    if scene_obs is None or state:
        for key, allowed in _DOMAINS.items():
            if state.get(key, 0 if key == "grasped" else None) not in allowed:
                raise UserError(f"{place}: initial_state {key} is {state.get(key)!r}; choose one of {allowed}")
        for key in state:
            if key not in _DOMAINS:
                raise UserError(f"{place}: initial_state has unknown key {key!r}; use {', '.join(_DOMAINS)}")
        state = {key: state.get(key, 0) for key in _DOMAINS}
        if scene_obs is None:
            _check_places(state, place)
    return Chain(state, tuple(tasks), scene_obs)
