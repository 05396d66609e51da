"""The process that gives chains to workers, plans for them and logs what they finish."""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from arvrm import processes
from arvrm.clusters import RETRIES, Cluster
from arvrm.evaluation.config import EvaluateConfig
from arvrm.evaluation.filming import filmed
from arvrm.evaluation.planner import Planner
from arvrm.evaluation.workers import GONE, SELF_INFLICTED, Worker, crashed
from arvrm.interface import Job, PlanRequest, Policy, PolicySpec, UserError, WorldFactory
from arvrm.results import ChainLog, ChainRecord

NO_POLICY = PolicySpec(robot=None)
"""What experts and random actions ask of a rollout."""
PROGRESS_SECONDS = 5
"""Seconds between two lines of progress."""


class Queue:
    """Chains yet to be rolled out; of several processes each takes the next one that none has taken."""

    def __init__(self, jobs: list[Job], board: processes.Board | None):
        self.jobs, self.board, self.taken = jobs, board, 0
        self.again: list[Job] = []
        """Chains of this process whose worker was ended from outside."""

    def __bool__(self) -> bool:
        return bool(self.again) or (self.board.add("taken", 0) if self.board else self.taken) < len(self.jobs)

    def take(self) -> Job | None:
        if self.again:
            return self.again.pop()
        self.taken = self.board.add("taken", 1) if self.board else self.taken + 1
        return self.jobs[self.taken - 1] if self.taken <= len(self.jobs) else None


class Parent:
    """One process's part of an evaluation.

    Args:
        policy_factory: makes the policy; not called where nobody plans or nothing is `missing`.
        missing: the chains to roll out, shared with other processes if there is a `board`.
        total: of all chains, those of earlier runs included.

    Attributes:
        world: what a worker's world says of itself; empty where none was started.
        left_out: the chains whose workers were ended from outside twice.
    """

    def __init__(
        self,
        policy_factory: Callable[[], Policy] | None,
        config: EvaluateConfig,
        make_world: WorldFactory,
        missing: list[Job],
        log: ChainLog,
        total: int,
        board: processes.Board | None = None,
    ):
        policy = policy_factory() if policy_factory is not None and config.plans and missing else None
        self.spec = policy.spec if policy else NO_POLICY
        self.planner = Planner(policy)
        self.config, self.make_world, self.log, self.board = config, make_world, log, board
        self.queue = Queue([filmed(job, config) for job in missing], board)
        share = -(-len(missing) // processes.world()) if board else len(missing)
        self.simulators = min(config.workers, share)
        self.progress = Progress(log, total, board)
        self.world: dict[str, Any] = {}
        self.left_out: list[int] = []
        self._lost: set[int] = set()
        self.cluster: Cluster | None = None
        self._unborn = 0

    def report(self) -> dict[str, Any]:
        """Return what the first process must know of this one's part, for its `add`."""
        return {"world": self.world, "planning": self.planner.totals, "left_out": self.left_out}

    def add(self, report: dict[str, Any]) -> None:
        self.world = self.world or report["world"]
        self.left_out = sorted(self.left_out + report["left_out"])
        self.planner.add(report["planning"])

    def roll_out(self) -> None:
        """Roll out everything in the queue."""
        workers: list[Worker] = []
        self.cluster = Cluster() if self.config.engine == "ray" else None
        try:
            for _ in range(self.simulators):
                workers.append(self._worker())
            asking: list[tuple[Worker, PlanRequest]] = []
            while workers:
                for worker in self._ready(workers, asking):
                    self._receive(worker, workers, asking)
                # Plan for a full batch, or when all are waiting for it.
                while asking and (len(asking) >= self.spec.batch or len(asking) == len(workers)):
                    some, asking = asking[: self.spec.batch], asking[self.spec.batch :]
                    self._answer(some)
        finally:
            for worker in workers:
                worker.stop()
            if self.cluster is not None:
                self.cluster.close()

    def _worker(self) -> Worker:
        return Worker(self.make_world, self.config, self.spec, self.cluster)

    def _ready(self, workers: list[Worker], asking: list[tuple[Worker, PlanRequest]]) -> list[Worker]:
        """Wait for a message of a worker that is not waiting itself; return those that have one."""
        waiting = [worker for worker, _ in asking]
        connections = [worker.connection for worker in workers if worker not in waiting]
        ready = multiprocessing.connection.wait(connections, 1.0 if self.board else None)
        if processes.orphaned():
            raise KeyboardInterrupt
        return [worker for worker in workers if worker.connection in ready]

    def _receive(self, worker: Worker, workers: list[Worker], asking: list[tuple[Worker, PlanRequest]]) -> None:
        try:
            message = worker.connection.recv()
        except GONE:
            workers.remove(worker)
            workers += self._replaced(worker)
            return
        if message[0] == "plan":
            asking.append((worker, message[1]))
        elif self._handle(worker, message):
            workers.remove(worker)
            worker.process.join(timeout=5)
            worker.stop()

    def _handle(self, worker: Worker, message: tuple[Any, ...]) -> bool:
        """Act on a worker's message; return True when the worker has nothing left to do."""
        kind = message[0]
        if kind == "fatal":
            raise UserError(message[1])
        if kind == "progress":
            _, worker.completed, worker.steps = message
            return False
        if kind == "ready":
            self.world = message[1]
        elif kind == "done":
            self._finish(message[1], message[2])
            self.planner.ended(message[1].index)
        job = self.queue.take()
        worker.give(job)
        return job is None

    def _replaced(self, worker: Worker) -> list[Worker]:
        """A worker process ended by itself or was ended; return its successor, if there is work left.

        If it ended by itself, its chain is a failure: simulator code did it. If it was ended from outside, by a user or
        for want of memory, that says nothing of the chain, which is tried once more.
        """
        code = worker.exit_code()
        worker.stop()
        job = worker.job
        if job is None and self.cluster is not None and code == -signal.SIGKILL and self._unborn < RETRIES:
            self._unborn += 1  # its node went before it had begun; others are there
            return [self._worker()] if self.queue else []
        if job is None:
            raise UserError(f"evaluate: a simulator process ended with code {code} before its first chain")
        if code is None or code >= 0 or -code in SELF_INFLICTED:
            message = f"simulator: process ended with code {code}"
            self._finish(crashed(job, worker.completed, worker.steps, message), {})
        elif job.index not in self._lost:
            self._lost.add(job.index)
            self.queue.again.append(job)
        else:
            self.left_out.append(job.index)
            name = signal.Signals(-code).name
            print(f"chain {job.index} left out: its simulator was ended by {name} twice", file=sys.stderr)
        self.planner.ended(job.index)
        return [self._worker()] if self.queue else []

    def _answer(self, asking: list[tuple[Worker, PlanRequest]]) -> None:
        asking.sort(key=lambda pair: pair[1].rollout)
        answers = self.planner.answer([request for _, request in asking])
        for (worker, request), answer in zip(asking, answers, strict=True):
            filmed = worker.job is not None and worker.job.film is not None
            drawing = self.planner.drawing(request.rollout) if filmed else None
            with contextlib.suppress(*GONE):  # that it died is seen when its pipe is next read
                worker.connection.send((*answer, drawing))

    def _finish(self, record: ChainRecord, cost: dict[str, float]) -> None:
        record = replace(record, notes=self.planner.notes(record.index))
        self.log.append(record, self.progress.seconds(), cost, self.world)
        if record.crashed:
            print(f"chain {record.index} crashed: {record.crashed}", file=sys.stderr)
        self.progress.show(record)


class Progress:
    """Lines about how far an evaluation has come; of several processes the first one prints for all."""

    def __init__(self, log: ChainLog, total: int, board: processes.Board | None) -> None:
        self.log, self.total, self.board = log, total, board
        self.seconds_before, self.begin = log.seconds, time.perf_counter()
        self.done_before = len(log.records)
        self.completed_before = sum(logged.completed for logged in log.records.values())
        self.printed = 0.0

    def seconds(self) -> float:
        """Seconds spent so far, earlier runs included."""
        return self.seconds_before + time.perf_counter() - self.begin

    def show(self, record: ChainRecord) -> None:
        """Count a finished chain; print a line now and then, and at the end."""
        done, completed = len(self.log.records), sum(logged.completed for logged in self.log.records.values())
        if self.board:
            finished, more = self.board.add("finished", 1), self.board.add("completed", record.completed)
            if not processes.is_main():
                return
            # Of the other processes' chains it knows the numbers only.
            done, completed = self.done_before + finished, self.completed_before + more
        now = time.perf_counter()
        if now - self.printed <= PROGRESS_SECONDS and done < self.total:
            return
        self.printed = now
        rate = (done - self.done_before) / (now - self.begin)
        left = max(0, self.total - done) / rate
        print(
            f"evaluate: {done}/{self.total} chains, average length {completed / done:.2f}, "
            f"{3600 * rate:.0f} an hour, {int(left // 60)}:{int(left % 60):02d} left",
            file=sys.stderr,
            flush=True,
        )
