"""Synthetic demonstrations: scripted experts at the play table, as robot episodes or as clips of an animated hand.

Nothing here was filmed. Robot episodes are what the experts of `sim/experts.py` do in simulation; human clips are the
same motions with an articulated hand in place of the robot, whose keypoints are the animation's own.

Episodes are made in *units*: a bag of tasks in one scene, done in chains in which each begins where the one before
succeeded, as in CALVIN's evaluation. A unit depends on the configuration, the seed and its number only, so units run in
any process and order, and a store is the same bytes whatever the number of workers and however often it was resumed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from arvrm import instructions
from arvrm.config import to_dict
from arvrm.episodes import (
    JPEG_QUALITY,
    LANDMARKS,
    EncodedEpisode,
    Episode,
    EpisodeStore,
    EpisodeWriter,
    encode_episode,
)
from arvrm.geometry import intrinsics, look_at, project
from arvrm.interface import CONTROL_HZ, SCENES, TASKS, UserError

SOURCE = "playtable"
SYNTHETIC = {
    "robot": "Scripted experts with privileged state, in simulation; nobody teleoperated a robot.",
    "human": "An animated hand that follows the scripted experts, in simulation; no human was filmed. Keypoints and "
    "their visibility are the animation's own.",
}
_STREAM = {"robot": 0, "human": 1}
_NOT_CONTENT = ("output", "workers", "resume", "overwrite")
_ATTEMPTS = 12
"""How often one slot is tried from new starts before it is left out."""
_IDLE = 12
"""Steps that a finished expert is given until the oracle agrees; blocks may still be falling."""
_WORLDS_KEPT = 6
_UNIT = 20
"""Most episodes of a unit: enough that most states admit one of those left, and that a killed run loses little."""


@dataclass(frozen=True)
class GenerateConfig:
    """What `arvrm generate` makes.

    Attributes:
        output: the store's folder.
        embodiment: robot episodes or human clips.
        scenes: of A, B, C, D. Episodes take them in turn.
        tasks: of interface.TASKS; empty: all. Each gets episodes / len(tasks), rounded.
        episodes: how many to store. Only successes are stored.
        seed: same seed, same bytes. Human and robot episodes of one seed share nothing.
        workers: processes; 0: one a core. They change nothing but the time.
        static_size, gripper_size: pixels of the square images.
        image_stride: an image every so many steps, the first step included.
        noise: the highest level of action noise (see sim.experts.Expert); each episode draws its own from 0 to it.
        chain_length: at most so many tasks one after another without a reset; 1: every episode from its own start.
        variations: how many varied layouts, colours and lights a built-in scene is seen in; 0: the standard one only.
        assets, calvin_root: built-in scenes, or CALVIN's (None: environment variable CALVIN_ROOT).
        instructions: own sentences, CALVIN's training sentences, or both; auto: both where CALVIN is, own elsewhere.
        after_success_steps: steps recorded past success, so that a policy learns to let go.
        max_steps: an attempt that takes longer counts as failed.
        prefix: begins every id, so that stores of several seeds can be merged.
        resume, overwrite: what to do where the output exists.
        jpeg_quality: 1 to 100.
    """

    output: str
    embodiment: Literal["robot", "human"] = "robot"
    scenes: tuple[str, ...] = ("A", "B", "C")
    tasks: tuple[str, ...] = ()
    episodes: int = 100
    seed: int = 0
    workers: int = 0
    static_size: int = 96
    gripper_size: int = 64
    image_stride: int = 3
    noise: float = 0.5
    chain_length: int = 5
    variations: int = 0
    assets: Literal["builtin", "calvin"] = "builtin"
    calvin_root: str | None = None
    instructions: Literal["auto", "own", "calvin", "both"] = "auto"
    after_success_steps: int = 10
    max_steps: int = 200
    prefix: str = ""
    resume: bool = False
    overwrite: bool = False
    jpeg_quality: int = JPEG_QUALITY

    def __post_init__(self) -> None:
        for name, low in (
            ("episodes", 1), ("seed", 0), ("workers", 0), ("static_size", 16), ("gripper_size", 16),
            ("image_stride", 1), ("chain_length", 1), ("variations", 0), ("after_success_steps", 0), ("max_steps", 1),
        ):  # fmt: skip
            if getattr(self, name) < low:
                raise UserError(f"generate.{name}: {getattr(self, name)!r} is too small; give {low} or more")
        if not 0 <= self.noise <= 3:
            raise UserError(f"generate.noise: {self.noise!r}; choose from 0 (clean) to 3")
        if not self.scenes:
            raise UserError("generate.scenes: none given; name some of A, B, C, D")
        for scene in self.scenes:
            if scene not in SCENES:
                raise UserError(f"generate.scenes: {scene!r} is unknown; name some of {', '.join(SCENES)}")
        for task in self.tasks:
            instructions.validation_instruction(task)  # says which task is unknown and what is near
        for name in ("scenes", "tasks"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise UserError(f"generate.{name}: one is named twice; name each once")
        if self.assets == "calvin" and self.variations:
            raise UserError("generate.variations: official scenes have none; use assets=builtin or variations=0")
        if not 1 <= self.jpeg_quality <= 100:
            raise UserError(f"generate.jpeg_quality: {self.jpeg_quality!r}; choose 1 to 100")

    @property
    def all_tasks(self) -> tuple[str, ...]:
        """The tasks in use, in the order of interface.TASKS."""
        return tuple(task for task in TASKS if task in self.tasks) or TASKS


@dataclass(frozen=True)
class GenerateResult:
    """What `generate` did: the store, episodes made now, failed attempts per task, and slots given up."""

    store: EpisodeStore
    made: int
    failed: dict[str, int]
    left_out: int
    seconds: float


@dataclass(frozen=True)
class Unit:
    """What a worker does at a time: the tasks of episodes `first`, `first` + 1, ... in one scene."""

    number: int
    first: int
    scene: str
    variation: int | None
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class _Outcome:
    episodes: tuple[EncodedEpisode, ...]
    failed: dict[str, int]
    left_out: int


def generate(config: GenerateConfig) -> GenerateResult:
    """Make a store of demonstrations; progress on stderr.

    Raises:
        UserError: the output exists, the disk is full, CALVIN is missing, a worker died.
        KeyboardInterrupt: after SIGINT or SIGTERM; what was finished is in the store.
    """
    config = _resolved(config)
    begin = time.perf_counter()
    embodiment = config.embodiment
    content = {key: value for key, value in to_dict(config).items() if key not in _NOT_CONTENT + ("calvin_root",)}
    manifest = {
        "source": SOURCE, "synthetic": True, "note": SYNTHETIC[embodiment], "seed": config.seed, "config": content,
    }  # fmt: skip
    failed: Counter[str] = Counter()
    made = left_out = 0
    with (
        _interruptible(),
        EpisodeWriter(config.output, manifest, config.resume, config.overwrite, config.jpeg_quality) as writer,
    ):
        units = [
            unit
            for unit in plan_units(config)
            if not all(writer.has(episode_id(config, unit, j)) for j in range(len(unit.tasks)))
        ]
        total = sum(len(unit.tasks) for unit in units)
        bar = tqdm(total=total, desc=f"generate {embodiment}", unit=" episodes", file=sys.stderr, mininterval=0.5)
        with bar, contextlib.closing(_outcomes(config, units)) as outcomes:
            for unit, outcome in zip(units, outcomes, strict=True):
                new = [episode for episode in outcome.episodes if not writer.has(episode.id)]
                if new:
                    writer.append_encoded(*new)
                made += len(new)
                failed.update(outcome.failed)
                left_out += outcome.left_out
                bar.update(len(unit.tasks))
                if failed:
                    bar.set_postfix(failed=sum(failed.values()))
    seconds = time.perf_counter() - begin
    store = EpisodeStore(config.output)
    if failed:
        worst = ", ".join(f"{task} {count}" for task, count in failed.most_common(5))
        print(f"{config.output}: {sum(failed.values())} failed attempts were not kept ({worst})", file=sys.stderr)
    if left_out:
        print(f"{config.output}: {left_out} episodes left out after {_ATTEMPTS} failures each", file=sys.stderr)
    return GenerateResult(store, made, dict(failed), left_out, seconds)


def plan_units(config: GenerateConfig) -> list[Unit]:
    """Divide the episodes among units: scenes in turn, tasks equally often, variations drawn from the seed.

    No two tasks differ by more than one in how often they occur; within a scene they are as even as that leaves room.
    """
    tasks, scenes = config.all_tasks, config.scenes
    draw = _rng(config, "plan")
    # A unit has one variation, so with many variations units are small: all of them are to be seen.
    size = min(_UNIT, max(1, config.episodes // (max(2, config.variations) * len(scenes))))
    variations = [draw.choice(2**31 - 1, config.variations, replace=False) for _ in scenes]
    overall, within = np.zeros(len(tasks), int), np.zeros((len(scenes), len(tasks)), int)
    units: list[Unit] = []
    for first in range(0, config.episodes, size):
        number = len(units)
        scene, turn = number % len(scenes), number // len(scenes)
        chosen = []
        for _ in range(min(size, config.episodes - first)):
            task = int(np.lexsort((draw.random(len(tasks)), within[scene], overall))[0])
            overall[task] += 1
            within[scene, task] += 1
            chosen.append(tasks[task])
        variation = int(variations[scene][turn % config.variations]) if config.variations else None
        units.append(Unit(number, first, scenes[scene], variation, tuple(chosen)))
    return units


def episode_id(config: GenerateConfig, unit: Unit, slot: int) -> str:
    """Id of the episode in a unit's slot, such as robot-A-000123."""
    return f"{config.prefix}{config.embodiment}-{unit.scene}-{unit.first + slot:06d}"


def landmark_positions(fixtures: Any, block_order: Sequence[str], scene_obs: np.ndarray) -> np.ndarray:
    """World positions (m) of LANDMARKS.

    Args:
        scene_obs: (N, 24), blocks in `block_order`.
    Returns:
        (N, 7, 3) float32: centres of the blocks, slider handle, drawer handle, top of the button, bar of the switch.
    """
    points = np.empty((len(scene_obs), len(LANDMARKS), 3))
    for i, name in enumerate(LANDMARKS[:3]):
        at = 6 + 6 * list(block_order).index(name)
        points[:, i] = scene_obs[:, at : at + 3]
    for i, handle, direction, joint in (
        (3, fixtures.slider_handle, fixtures.slider_direction, 0),
        (4, fixtures.drawer_handle, fixtures.drawer_direction, 1),
        (6, fixtures.switch_bar, fixtures.switch_direction, 3),
    ):
        points[:, i] = np.asarray(handle) + scene_obs[:, joint, None] * np.asarray(direction)
    points[:, 5] = fixtures.button_top
    return points.astype(np.float32)


def landmark_pixels(points: np.ndarray, camera: Any, size: int) -> np.ndarray:
    """Project world points (N, P, 3) into a fixed camera's square image: (N, P, 2) float32 u, v; NaN outside it."""
    image = project(points, look_at(camera.eye, camera.target, camera.up), intrinsics(camera.fov, size, size))
    pixels = image[..., :2].astype(np.float32)
    inside = (image[..., 2] > 0) & (pixels >= 0).all(-1) & (pixels < size).all(-1)
    pixels[~inside] = np.nan
    return pixels


# Drawing ------------------------------------------------------------------------------------------------------------


def _rng(config: GenerateConfig, *key: str | int) -> np.random.Generator:
    """A generator of its own for every purpose, unit and attempt; robot and human streams never meet."""
    numbers = [int.from_bytes(k.encode(), "big") if isinstance(k, str) else k for k in key]
    return np.random.default_rng(np.random.SeedSequence([config.seed, _STREAM[config.embodiment], *numbers]))


def _resolved(config: GenerateConfig) -> GenerateConfig:
    """Settle what depends on the machine, so that the manifest says what was used."""
    root = config.calvin_root or os.environ.get("CALVIN_ROOT")
    which = config.instructions
    if which == "auto":
        which = "both" if root and (Path(root) / "calvin_models").is_dir() else "own"
    if config.assets == "calvin":
        from arvrm.sim.scene import resolve_calvin_root

        root = str(resolve_calvin_root(root))
    if which != "own" and not root:
        raise UserError(f"generate.instructions: {which!r} needs CALVIN; set CALVIN_ROOT or use instructions=own")
    return dataclasses.replace(config, instructions=which, calvin_root=root, workers=config.workers or _cores())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _sentences(config: GenerateConfig) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {task: () for task in config.all_tasks}
    if config.instructions in ("own", "both"):
        found = {task: instructions.training_instructions(task) for task in found}
    if config.instructions in ("calvin", "both"):
        theirs = instructions.calvin_instructions(str(config.calvin_root), "training")
        found = {task: found[task] + theirs[task] for task in found}
    return found


# One unit -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """One success: arrays with a row per step, images at every `image_stride`-th step."""

    task: str
    noise: float
    chain: int
    """Which of the unit's uninterrupted chains it is in."""
    place: int
    """How many tasks were done before it in that chain."""
    success_step: int
    """Row before which the oracle saw the task done."""
    arrays: dict[str, np.ndarray]
    images: dict[str, np.ndarray]
    image_steps: np.ndarray


class _Stopped(Exception):
    """The run ends; what this unit had so far is dropped."""


class Recorder:
    """Records units in one process; keeps a few worlds, since making one takes as long as an episode."""

    def __init__(self, config: GenerateConfig, stop: Callable[[], bool] = lambda: False) -> None:
        self.config, self.stop = config, stop
        self.sentences = _sentences(config)
        self._worlds: dict[tuple[str, str, int | None], Any] = {}

    def world(self, kind: str, scene: str, variation: int | None) -> Any:
        """The PlayTableEnv ("robot") or HandScene ("human") of a layout. Both forget what happened before."""
        key = (kind, scene, variation)
        if key in self._worlds:
            self._worlds[key] = self._worlds.pop(key)
            return self._worlds[key]
        while len(self._worlds) >= _WORLDS_KEPT:
            self._worlds.pop(next(iter(self._worlds))).close()
        from arvrm.sim.env import PlayTableEnv
        from arvrm.sim.hand import HandScene

        config = self.config
        place = {
            "scene": scene,
            "assets": "official" if config.assets == "calvin" else config.assets,
            "calvin_root": config.calvin_root if config.assets == "calvin" else None,
            "variation": variation,
        }
        sizes = {"static_size": config.static_size, "gripper_size": config.gripper_size}
        make = HandScene(**place) if kind == "human" else PlayTableEnv(**place, **sizes, render_observations=False)
        self._worlds[key] = make
        return make

    def close(self) -> None:
        while self._worlds:
            self._worlds.popitem()[1].close()

    def record(self, unit: Unit) -> _Outcome:
        """Make a unit's episodes. Raises UserError where an episode would not be valid."""
        env = self.world("robot", unit.scene, unit.variation)
        recordings, failed = record_chains(env, unit.tasks, self.config, unit.number, self.stop)
        episodes = []
        for slot, recording in recordings.items():
            episodes.append(encode_episode(self._episode(unit, slot, recording, env), self.config.jpeg_quality))
        return _Outcome(tuple(episodes), dict(failed), len(unit.tasks) - len(episodes))

    def _episode(self, unit: Unit, slot: int, recording: Recording, env: Any) -> Episode:
        config = self.config
        rng = _rng(config, "words", unit.number, slot)
        meta: dict[str, Any] = {}
        if config.embodiment == "human":
            scene = self.world("human", unit.scene, unit.variation)
            arrays, images, image_steps, meta = _as_human(recording, scene, config, rng)
        else:
            arrays, images, image_steps = dict(recording.arrays), recording.images, recording.image_steps
            meta["success_step"] = recording.success_step
            arrays["landmarks"] = landmark_positions(env.fixtures, env.block_order, arrays["scene_obs"])
            camera = env.description.static_camera
            arrays["landmark_pixels"] = landmark_pixels(arrays["landmarks"], camera, config.static_size)
        sentences = self.sentences[recording.task]
        return Episode(
            id=episode_id(config, unit, slot),
            embodiment=config.embodiment,
            instruction=sentences[rng.integers(len(sentences))],
            task=recording.task,
            scene=unit.scene,
            source=SOURCE,
            group=f"{config.prefix}{config.embodiment}-{unit.scene}-{unit.number:05d}-chain-{recording.chain}",
            fps=float(CONTROL_HZ),
            arrays=arrays,
            images=images,
            image_steps=image_steps,
            meta={
                "synthetic": True, "variation": unit.variation, "noise": round(recording.noise, 4),
                "place_in_chain": recording.place, **meta,
            },
        )  # fmt: skip


@dataclass
class _Attempt:
    """A task being done: where on the tape it began, and what the oracle compares with."""

    slot: int
    task: str
    begin: int
    start_info: Any
    noise: float
    chain: int
    place: int
    expert: Any = None
    success: int | None = None


class _Tape:
    """What happened since a reset, step by step; episodes are cut from it and may overlap."""

    def __init__(self, env: Any, config: GenerateConfig) -> None:
        self.env, self.stride = env, config.image_stride
        self.render = config.embodiment == "robot"
        self.rows: list[tuple[np.ndarray, ...]] = []
        self.images: dict[int, dict[str, np.ndarray]] = {}

    def step(self, actor: Any, begins: Sequence[int]) -> Any:
        """Execute one action of an expert; render where an episode that began at one of `begins` needs it."""
        env, now = self.env, len(self.rows)
        if self.render and any((now - begin) % self.stride == 0 for begin in begins):
            self.images[now] = env.render_cameras()
        state = env.robot_obs(), env.scene_obs(), env.target_pose()
        executed = actor.act()
        self.rows.append((*state, actor.label, executed))
        return env.step(executed)[4]

    def cut(self, attempt: _Attempt, end: int) -> Recording:
        rows = self.rows[attempt.begin : end]
        arrays = {}
        for name, values in zip(_ROWS, zip(*rows, strict=True), strict=True):
            arrays[name] = np.array(values, np.float32 if name in ("actions", "executed") else np.float64)
        at = np.arange(0, len(rows), self.stride, dtype=np.int32)
        frames = [self.images[attempt.begin + step] for step in at] if self.render else []
        images = {camera: np.stack([frame[camera] for frame in frames]) for camera in (frames[0] if frames else ())}
        success = int(attempt.success) - attempt.begin
        return Recording(attempt.task, attempt.noise, attempt.chain, attempt.place, success, arrays, images, at)


_ROWS = ("robot_obs", "scene_obs", "target_pose", "actions", "executed")


def record_chains(
    env: Any, tasks: Sequence[str], config: GenerateConfig, number: int, stop: Callable[[], bool] = lambda: False
) -> tuple[dict[int, Recording], Counter[str]]:
    """Do a unit's tasks, one after the other where the state admits it, from a new start where it does not.

    A task begins in the state in which the oracle saw the one before done, as in CALVIN's evaluation; the steps in
    which the expert finishes the former motion belong to both episodes.

    Args:
        number: the unit's, which decides all that is random.
        stop: asked before each task; True ends it all with an exception.

    Returns: slot (index into `tasks`) -> recording, in order of slots; and failed attempts per task.
    """
    from arvrm.sim.experts import Expert
    from arvrm.sim.tasks import TaskOracle

    rng, oracle = _rng(config, "unit", number), TaskOracle()
    remaining, tries = list(range(len(tasks))), Counter[int]()
    found: dict[int, Recording] = {}
    failed: Counter[str] = Counter()
    chain = -1

    def give_up_or_retry(slot: int) -> None:
        failed[tasks[slot]] += 1
        tries[slot] += 1
        if tries[slot] >= _ATTEMPTS:
            remaining.remove(slot)

    def begin(slot: int, tape: _Tape, info: Any, place: int) -> _Attempt:
        return _Attempt(slot, tasks[slot], len(tape.rows), info, float(rng.uniform(0, config.noise)), chain, place)

    while remaining:
        slot = int(rng.choice(remaining))
        if not fresh_start(env, tasks[slot], rng):
            give_up_or_retry(slot)
            continue
        chain += 1
        tape = _Tape(env, config)
        attempt: _Attempt | None = begin(slot, tape, env.task_info(), 0)
        last = None
        while attempt is not None:
            if stop():
                raise _Stopped
            attempt.expert = Expert(attempt.task, env, rng, attempt.noise, last)
            idle = 0
            while attempt.success is None and idle < _IDLE and len(tape.rows) - attempt.begin < config.max_steps:
                info = tape.step(attempt.expert, [attempt.begin])
                idle += attempt.expert.finished
                if oracle.completed(attempt.start_info, info, (attempt.task,)):
                    attempt.success = len(tape.rows)
            if attempt.success is None:
                give_up_or_retry(attempt.slot)
                break
            remaining.remove(attempt.slot)
            goes_on = attempt.place + 1 < config.chain_length
            options = [s for s in remaining if tasks[s] in admissible_tasks(env)] if goes_on else []
            following = None
            if options:
                # The motion goes on while it is recorded past success, and the next task has begun meanwhile.
                slot = int(rng.choice(_preferred(options, tasks, rng)))
                following = begin(slot, tape, info, attempt.place + 1)
            begins = [attempt.begin] + ([following.begin] if following else [])
            for _ in range(config.after_success_steps):
                if following and attempt.expert.finished:
                    break
                info = tape.step(attempt.expert, begins)
                if following and following.success is None:
                    if oracle.completed(following.start_info, info, (following.task,)):
                        following.success = len(tape.rows)
            found[attempt.slot] = tape.cut(attempt, len(tape.rows))
            attempt, last = following, attempt.expert
    return {slot: found[slot] for slot in sorted(found)}, failed


def _preferred(options: list[int], tasks: Sequence[str], rng: np.random.Generator) -> list[int]:
    """Mostly keep lifts for last: what follows a lift can only be putting the block somewhere."""
    others = [slot for slot in options if not tasks[slot].startswith("lift")]
    return others if others and rng.random() < 0.7 else options


# Where a task can begin ---------------------------------------------------------------------------------------------

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
        if other != name
        and name in bodies[other]
        and blocks[other]["position"][2] > blocks[name]["position"][2] + 0.02
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


def fresh_start(env: Any, task: str, rng: np.random.Generator, tries: int = 30) -> bool:
    """Reset the environment to a random state in which the task can begin; False where none was found.

    Doors, lights and blocks are anywhere that the task admits. A task that begins with a block in the hand begins with
    an expert's lift of it, unrecorded.
    """
    from arvrm.sim.experts import Expert, settle
    from arvrm.sim.tasks import TaskOracle

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
            expert, oracle, start = Expert(lift, env, rng, 0.0), TaskOracle(), env.task_info()
            for _ in range(150):
                if oracle.completed(start, env.step(expert.act())[4], (lift,)):
                    break
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


# Human clips --------------------------------------------------------------------------------------------------------


def _as_human(
    recording: Recording, scene: Any, config: GenerateConfig, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray, dict[str, Any]]:
    """Film the motion with a hand: arrays, images, image steps, and what of the style is no secret of the camera's."""
    from arvrm.sim.hand import HandTrajectory

    seed = int(rng.integers(2**31 - 1))
    trajectory = HandTrajectory.from_arrays(recording.arrays)
    clip = scene.render(trajectory, seed, config.static_size, config.image_stride)
    arrays = {"keypoints": clip["keypoints"], "visible": clip["visible"]}
    style = {name: clip["meta"][name] for name in ("style_seed", "side", "speed")}
    return arrays, {"rgb_static": clip["images"]}, clip["image_steps"], style


# Processes ----------------------------------------------------------------------------------------------------------

_recorder: Recorder | None = None


def _outcomes(config: GenerateConfig, units: Sequence[Unit]) -> Iterator[_Outcome]:
    """Yield the outcome of each unit, in order, a few units ahead at a time."""
    workers = min(config.workers, len(units))
    if workers <= 1:
        with contextlib.closing(Recorder(config)) as recorder:
            for unit in units:
                yield recorder.record(unit)
        return
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, context, _begin_worker, (config, stop, os.getpid()))
    waiting: deque[Future] = deque()
    try:
        for unit in units:
            waiting.append(pool.submit(_record, unit))
            if len(waiting) > 3 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(f"{config.output}: a worker died (out of memory?); use fewer --workers and --resume") from error
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker(config: GenerateConfig, stop: Any, parent: int) -> None:
    global _recorder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what is kept
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _recorder = Recorder(config, stop.is_set)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # the parent was killed: nobody would read the result

    threading.Thread(target=watch, daemon=True).start()


def _record(unit: Unit) -> _Outcome | None:
    assert _recorder is not None
    if _recorder.stop():
        return None
    with contextlib.suppress(_Stopped):
        return _recorder.record(unit)
    return None


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end a run as SIGINT does: by KeyboardInterrupt, after which the store is closed in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
