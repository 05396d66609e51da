"""Worker processes: each owns one simulator and asks the parent for chunks of actions over a pipe."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
import traceback
from pathlib import Path
from types import FrameType

import numpy as np

from arvrm import robots
from arvrm.clusters import Cluster
from arvrm.evaluation.config import EvaluateConfig
from arvrm.evaluation.rollout import PolicyCrash, Rollout, check_robots
from arvrm.files import remove_process_folder
from arvrm.interface import Job, PlanRequest, PolicySpec, UserError, World, WorldFactory
from arvrm.results import ChainRecord

GONE = (EOFError, BrokenPipeError, ConnectionResetError)
"""What a pipe raises when the process at its other end has ended."""
SELF_INFLICTED = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP)
"""Signals by which a process ends through its own fault."""


def work(
    connection: multiprocessing.connection.Connection,
    make_world: WorldFactory,
    config: EvaluateConfig,
    spec: PolicySpec,
) -> None:
    """A worker's whole life: build the simulator, roll out jobs until told None or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    with contextlib.suppress(*GONE):  # without its parent, nothing of this chain is recorded
        try:
            world = _opened(make_world, config, spec)
            described = json.dumps({"robot": world.robot.name, **world.describe()})
            connection.send(("ready", json.loads(described)))
        except Exception as error:
            connection.send(("fatal", one_line(error, isinstance(error, UserError))))
            return
        while (job := connection.recv()) is not None:
            try:
                record, cost = _rolled_out(connection, world, job, config, spec)
            except UserError as error:
                connection.send(("fatal", str(error)))
                return
            connection.send(("done", record, cost))
        world.close()


def _end(number: int, _: FrameType | None) -> None:
    """End as the signal would end any process, but leave no files of the scene behind."""
    remove_process_folder()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _opened(make_world: WorldFactory, config: EvaluateConfig, spec: PolicySpec) -> World:
    if config.robot:
        robots.chosen(config.robot)
    world = make_world(config, spec)
    check_robots(spec, world)
    return world


def _rolled_out(
    connection: multiprocessing.connection.Connection,
    world: World,
    job: Job,
    config: EvaluateConfig,
    spec: PolicySpec,
) -> tuple[ChainRecord, dict[str, float]]:
    """Return a chain's record and its seconds by kind of work; what crashes is on record."""

    def plan(request: PlanRequest) -> np.ndarray | None:
        connection.send(("plan", request))
        kind, value, rollout.drawing = connection.recv()
        if kind == "crash":
            raise PolicyCrash(value)
        return value

    def progress(completed: int, steps: tuple[int, ...]) -> None:
        connection.send(("progress", completed, steps))

    begin = time.perf_counter()
    rollout = Rollout(world, job, config, spec, plan, progress)
    try:
        record = rollout.run()
    except (UserError, *GONE):
        raise
    except Exception as error:
        who = "policy" if isinstance(error, PolicyCrash) else "simulator"
        message = str(error) if isinstance(error, PolicyCrash) else one_line(error)
        record = crashed(job, rollout.completed, tuple(rollout.steps), f"{who}: {message}")
    cost = dict(rollout.clock.seconds)
    cost["other"] = max(0.0, time.perf_counter() - begin - sum(cost.values()))
    return record, {kind: round(value, 4) for kind, value in cost.items()}


def crashed(job: Job, completed: int, steps: tuple[int, ...], message: str) -> ChainRecord:
    return ChainRecord(index=job.index, tasks=job.tasks, completed=completed, steps=steps, crashed=message)


def one_line(error: BaseException, plain: bool = False) -> str:
    if plain:
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({Path(place[0].filename).name}:{place[0].lineno})" if place else ""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300] + where


class Worker:
    """The parent's end of one worker process, here or on a node of a cluster.

    Attributes:
        job: the chain it rolls out; completed, steps: how far it has come, by its own word.
    """

    def __init__(
        self, make_world: WorldFactory, config: EvaluateConfig, spec: PolicySpec, cluster: Cluster | None = None
    ):
        if cluster is not None:
            self.connection, self.process = cluster.start(work, (make_world, config, spec))
        else:
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self.process = context.Process(target=work, args=(theirs, make_world, config, spec), daemon=True)
            self.process.start()
            theirs.close()
        self.job: Job | None = None
        self.completed: int = 0
        self.steps: tuple[int, ...] = ()

    def give(self, job: Job | None) -> None:
        """Tell it what to roll out next; None: nothing more."""
        self.job, self.completed, self.steps = job, 0, ()
        with contextlib.suppress(*GONE):  # that it died is seen when its pipe is next read
            self.connection.send(job)

    def exit_code(self) -> int | None:
        """Return how a process ended that is gone; below 0: the signal's number."""
        self.process.join(timeout=5)
        return self.process.exitcode

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.close()
        if self.process.is_alive():
            self.process.terminate()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
