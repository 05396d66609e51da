"""Worker processes: each owns one simulator and asks the parent for chunks of actions over a pipe."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from arvrm.evaluation.config import EvaluateConfig
from arvrm.evaluation.rollout import PolicyCrash, Rollout
from arvrm.interface import Job, PlanRequest, PolicySpec, UserError
from arvrm.results import ChainRecord


def work(
    connection: multiprocessing.connection.Connection,
    make_world: Callable[[EvaluateConfig, PolicySpec], Any],
    config: EvaluateConfig,
    spec: PolicySpec,
) -> None:
    """A worker's whole life: build the simulator, roll out jobs until told None or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def plan(request: PlanRequest) -> np.ndarray:
        connection.send(("plan", request))
        kind, value = connection.recv()
        if kind == "crash":
            raise PolicyCrash(value)
        return value

    try:
        try:
            world = make_world(config, spec)
            connection.send(("ready", world.describe()))
        except Exception as error:
            connection.send(("fatal", one_line(error, isinstance(error, UserError))))
            return
        while (job := connection.recv()) is not None:
            begin = time.perf_counter()
            rollout = Rollout(
                world, job, config, spec, plan, lambda completed, steps: connection.send(("progress", completed, steps))
            )
            try:
                record = rollout.run()
            except UserError as error:
                connection.send(("fatal", str(error)))
                return
            except (EOFError, BrokenPipeError, ConnectionResetError):
                return
            except Exception as error:
                who = "policy" if isinstance(error, PolicyCrash) else "simulator"
                message = str(error) if isinstance(error, PolicyCrash) else one_line(error)
                record = crashed(job, rollout.completed, tuple(rollout.steps), f"{who}: {message}")
            total = time.perf_counter() - begin
            cost = dict(rollout.clock.seconds)
            cost["other"] = max(0.0, total - sum(cost.values()))
            connection.send(("done", record, {kind: round(value, 4) for kind, value in cost.items()}))
        world.close()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone; nothing of this chain is recorded


def crashed(job: Job, completed: int, steps: tuple[int, ...], message: str) -> ChainRecord:
    return ChainRecord(index=job.index, tasks=job.tasks, completed=completed, steps=steps, crashed=message)


def one_line(error: BaseException, plain: bool = False) -> str:
    if plain:
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({Path(place[0].filename).name}:{place[0].lineno})" if place else ""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300] + where


class Worker:
    """The parent's end of one worker process."""

    def __init__(self, make_world: Callable[..., Any], config: EvaluateConfig, spec: PolicySpec):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, make_world, config, spec), daemon=True)
        self.process.start()
        theirs.close()
        self.job: Job | None = None
        self.completed, self.steps = 0, ()

    def give(self, job: Job) -> None:
        self.job, self.completed, self.steps = job, 0, ()
        self.connection.send(job)

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.close()
        if self.process.is_alive():
            self.process.terminate()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
