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

from arvrm import clusters, instructions
from arvrm.clusters import Engine
from arvrm.config import bounded, check_bounds, to_dict
from arvrm.episodes import JPEG_QUALITY, EpisodeStore, EpisodeWriter
from arvrm.interface import SCENES, TASKS, UserError
from arvrm.sources.recording import ATTEMPTS, SOURCE, Recorder, Stopped, Unit, UnitResult, episode_id, stream

SYNTHETIC = {
    "robot": "Scripted experts with privileged state, in simulation; nobody teleoperated a robot.",
    "human": "An animated hand that follows the scripted experts, in simulation; no human was filmed. Keypoints and "
    "their visibility are the animation's own.",
}
_NOT_CONTENT = ("output", "workers", "engine", "resume", "overwrite")
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
        engine: local processes, or a Ray cluster (docs/performance.md), where `workers` are units at a time.
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
    episodes: int = bounded(100, least=1, most=10**7)
    seed: int = bounded(0, least=0)
    workers: int = bounded(0, least=0, most=1024)
    engine: Engine = "local"
    static_size: int = bounded(96, least=16, most=4096)
    gripper_size: int = bounded(64, least=16, most=4096)
    image_stride: int = bounded(3, least=1, most=10**6)
    noise: float = bounded(0.5, least=0, most=3)
    chain_length: int = bounded(5, least=1, most=10**4)
    variations: int = bounded(0, least=0, most=10**6)
    assets: Literal["builtin", "calvin"] = "builtin"
    calvin_root: str | None = None
    instructions: Literal["auto", "own", "calvin", "both"] = "auto"
    after_success_steps: int = bounded(10, least=0, most=10**6)
    max_steps: int = bounded(200, least=1, most=10**7)
    prefix: str = ""
    resume: bool = False
    overwrite: bool = False
    jpeg_quality: int = bounded(JPEG_QUALITY, least=1, most=100)

    def __post_init__(self) -> None:
        check_bounds(self)
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
        print(f"{config.output}: {left_out} episodes left out after {ATTEMPTS} failures each", file=sys.stderr)
    return GenerateResult(store, made, dict(failed), left_out, seconds)


def plan_units(config: GenerateConfig) -> list[Unit]:
    """Divide the episodes among units: scenes in turn, tasks equally often, variations drawn from the seed.

    No two tasks differ by more than one in how often they occur; within a scene they are as even as that leaves room.
    """
    tasks, scenes = config.all_tasks, config.scenes
    draw = stream(config, "plan")
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
    return dataclasses.replace(
        config,
        instructions=which,
        calvin_root=root,
        workers=config.workers or (_cores() if config.engine == "local" else 0),
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_recorder: Recorder | None = None


def _outcomes(config: GenerateConfig, units: Sequence[Unit]) -> Iterator[UnitResult]:
    """Yield the outcome of each unit, in order, a few units ahead at a time."""
    if config.engine == "ray":
        yield from _on_cluster(config, units)
        return
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


def _on_cluster(config: GenerateConfig, units: Sequence[Unit]) -> Iterator[UnitResult]:
    pool, waiting = clusters.TaskPool(_recording, config), deque[Future]()
    ahead = 3 * (config.workers or clusters.cores())
    try:
        for unit in units:
            waiting.append(pool.submit(None, unit))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(f"{config.output}: a unit's worker {error}; look at the nodes, and --resume") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _recording(config: GenerateConfig) -> Callable[[Unit], UnitResult]:
    return Recorder(config).record


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


def _record(unit: Unit) -> UnitResult | None:
    assert _recorder is not None
    if _recorder.stop():
        return None
    with contextlib.suppress(Stopped):
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
