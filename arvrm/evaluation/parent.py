"""The process that gives chains to workers, plans for them and logs what they finish."""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from arvrm import processes
from arvrm.evaluation.config import EvaluateConfig
from arvrm.evaluation.workers import Worker, crashed, one_line
from arvrm.interface import Job, PlanRequest, Policy, PolicySpec, UserError
from arvrm.results import ChainLog, ChainRecord

NO_IMAGES = PolicySpec(static_size=None, gripper_size=None)


class Queue:
    """Chains yet to be rolled out; of several processes each takes the next one that none has taken."""

    def __init__(self, jobs: list[Job], crew: processes.Board | None):
        self.jobs, self.crew, self.taken = jobs, crew, 0

    def __bool__(self) -> bool:
        return (self.crew.add("taken", 0) if self.crew else self.taken) < len(self.jobs)

    def take(self) -> Job | None:
        self.taken = self.crew.add("taken", 1) if self.crew else self.taken + 1
        return self.jobs[self.taken - 1] if self.taken <= len(self.jobs) else None


def film_folder(output: Path) -> Path:
    """Where an evaluation keeps its films: beside the results file."""
    return output.with_name(f"{output.stem}_films")


def film_candidates(config: EvaluateConfig) -> int:
    """Outcomes are unknown beforehand: so many early chains are filmed, and the most telling kept."""
    return 2 * (config.film_successes + config.film_failures)


class Parent:
    """The parent of one evaluation: gives jobs to workers, plans for them, logs what they finish."""

    def __init__(
        self,
        policy_factory: Callable[[], Policy] | None,
        config: EvaluateConfig,
        make_world: Callable[..., Any],
        missing: list[Job],
        log: ChainLog,
        total: int,
        crew: processes.Board | None = None,
    ):
        self.crew = crew
        self.policy = policy_factory() if config.policy == "checkpoint" and missing else None
        self.spec = self.policy.spec if self.policy else NO_IMAGES
        self.config, self.make_world, self.log, self.total = config, make_world, log, total
        filmed = film_candidates(config)
        folder = film_folder(Path(config.output))
        chains = [
            replace(job, film=str(folder / f"chain_{job.index:05d}.mp4")) if job.index < filmed else job
            for job in missing
        ]
        self.queue = Queue(chains, crew)
        share = -(-len(chains) // processes.world()) if crew else len(chains)
        self.simulators = min(config.workers, share)
        self.world: dict[str, Any] = {}
        self.before, self.begin = log.seconds, time.perf_counter()
        self.done_before = len(log.records)
        self.completed_before = sum(logged.completed for logged in log.records.values())
        self.plans, self.batches, self.plan_seconds = 0, 0, 0.0
        self.shown = 0.0

    def planning(self) -> dict[str, Any]:
        """How planning went in this run: plans, mean batch, milliseconds a plan. Empty without a learnt policy."""
        if not self.plans:
            return {}
        return {
            "plans": self.plans,
            "mean_batch": round(self.plans / self.batches, 2),
            "ms_per_plan": round(1000 * self.plan_seconds / self.plans, 2),
        }

    def tell(self) -> dict[str, Any]:
        """Return what the first process wants to `hear` of another one's run."""
        return {"world": self.world, "planning": [self.plans, self.batches, self.plan_seconds]}

    def hear(self, told: dict[str, Any]) -> None:
        self.world = self.world or told["world"]
        plans, batches, seconds = told["planning"]
        self.plans, self.batches, self.plan_seconds = (
            self.plans + plans,
            self.batches + batches,
            self.plan_seconds + seconds,
        )

    def go(self) -> None:
        """Roll out everything in the queue."""
        workers: list[Worker] = []
        try:
            for _ in range(self.simulators):
                workers.append(Worker(self.make_world, self.config, self.spec))
            asking: list[tuple[Worker, PlanRequest]] = []
            while workers:
                waiting = {id(worker) for worker, _ in asking}
                ready = multiprocessing.connection.wait(
                    [worker.connection for worker in workers if id(worker) not in waiting], 1.0 if self.crew else None
                )
                if processes.orphaned():
                    raise KeyboardInterrupt
                for worker in [worker for worker in workers if worker.connection in ready]:
                    try:
                        message = worker.connection.recv()
                    except (EOFError, ConnectionResetError):
                        workers.remove(worker)
                        workers += self._bury(worker)
                        continue
                    if message[0] == "plan":
                        asking.append((worker, message[1]))
                    elif self._handle(worker, message):
                        workers.remove(worker)
                        worker.process.join(timeout=5)
                        worker.stop()
                # Plan for a full batch, or when all are waiting for it.
                while asking and (len(asking) >= self.spec.batch or len(asking) == len(workers)):
                    some, asking = asking[: self.spec.batch], asking[self.spec.batch :]
                    self._answer(some)
        finally:
            for worker in workers:
                worker.stop()

    def _handle(self, worker: Worker, message: tuple) -> bool:
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
        job = self.queue.take()
        if job is not None:
            worker.give(job)
            return False
        worker.job = None
        worker.connection.send(None)
        return True

    def _bury(self, worker: Worker) -> list[Worker]:
        """A worker process died: its chain is a failure; return its successor, if there is work left."""
        worker.process.join(timeout=5)
        code = worker.process.exitcode
        worker.stop()
        if worker.job is None:
            raise UserError(f"evaluate: a simulator process ended with code {code} before its first chain")
        message = f"simulator: process ended with code {code}"
        self._finish(crashed(worker.job, worker.completed, worker.steps, message), {})
        return [Worker(self.make_world, self.config, self.spec)] if self.queue else []

    def _answer(self, asking: list[tuple[Worker, PlanRequest]]) -> None:
        begin = time.perf_counter()
        asking.sort(key=lambda pair: pair[1].rollout)
        requests = [request for _, request in asking]
        answers: list[tuple[str, Any]]
        try:
            answers = [("actions", chunk) for chunk in self.policy.plan(requests)]
            if len(answers) != len(requests):
                raise ValueError(f"{len(answers)} chunks for {len(requests)} requests")
        except UserError:
            raise
        except Exception as error:
            answers = self._answer_alone(requests, error)
        for (kind, chunk), request in zip(answers, requests, strict=True):
            if kind == "actions":
                check_chunk(chunk, self.spec, request)
        self.plans += len(requests)
        self.batches += 1
        self.plan_seconds += time.perf_counter() - begin
        for (worker, _), answer in zip(asking, answers, strict=True):
            # A worker that died since is buried when its pipe is next read.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                worker.connection.send(answer)

    def _answer_alone(self, requests: list[PlanRequest], error: Exception) -> list[tuple[str, Any]]:
        """After a failed batch, plan one by one, so that only the chains at fault crash."""
        if len(requests) == 1:
            return [("crash", one_line(error))]
        answers: list[tuple[str, Any]] = []
        for request in requests:
            try:
                answers.append(("actions", self.policy.plan([request])[0]))
            except UserError:
                raise
            except Exception as alone:
                answers.append(("crash", one_line(alone)))
        return answers

    def _finish(self, record: ChainRecord, cost: dict[str, float]) -> None:
        elapsed = time.perf_counter() - self.begin
        self.log.append(record, self.before + elapsed, cost)
        if record.crashed:
            print(f"chain {record.index} crashed: {record.crashed}", file=sys.stderr)
        done, completed = len(self.log.records), sum(logged.completed for logged in self.log.records.values())
        if self.crew:
            finished, more = self.crew.add("finished", 1), self.crew.add("completed", record.completed)
            if not processes.is_main():
                return
            # Of the other processes' chains it knows the numbers only.
            done, completed = self.done_before + finished, self.completed_before + more
        now = time.perf_counter()
        if now - self.shown > 5 or done >= self.total:
            self.shown = now
            rate = (done - self.done_before) / elapsed
            left = max(0, self.total - done) / rate
            print(
                f"evaluate: {done}/{self.total} chains, average length {completed / done:.2f}, "
                f"{3600 * rate:.0f} an hour, {int(left // 60)}:{int(left % 60):02d} left",
                file=sys.stderr,
                flush=True,
            )


def check_chunk(chunk: np.ndarray, spec: PolicySpec, request: PlanRequest) -> None:
    """Raise UserError unless `chunk` is (C >= execute_steps, 7), finite, with a gripper of exactly -1 or 1."""
    chunk = np.asarray(chunk)
    place = f"policy: chain {request.rollout}, step {request.step} ({request.instruction!r})"
    if chunk.ndim != 2 or chunk.shape[1] != 7 or len(chunk) < spec.execute_steps:
        raise UserError(f"{place}: actions of shape {chunk.shape}, expected (at least {spec.execute_steps}, 7)")
    if not np.isfinite(chunk).all():
        raise UserError(f"{place}: NaN or infinity in actions; the checkpoint is broken, train it again")
    if not np.isin(chunk[:, 6], (-1.0, 1.0)).all():
        raise UserError(f"{place}: gripper {chunk[:, 6].tolist()}, expected exactly -1 or 1; binarise it in the policy")
