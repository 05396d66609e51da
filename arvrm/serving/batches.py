"""Requests of many sessions, planned for together by one policy in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from arvrm.interface import PlanFailed, PlanRequest, Policy, Robot


class Batches:
    """Collects requests while the policy is busy, and gives them to it.

    Args:
        make: makes the policy, in the thread that will plan.
        robot: whose actions they are.
        wait: seconds that a request waits for others, if the policy has nothing to do.
    """

    def __init__(self, make: Callable[[], Policy], wait: float) -> None:
        self.thread = ThreadPoolExecutor(1, "policy")
        self.policy = self.thread.submit(make).result()
        self.wait = wait
        self.waiting: list[tuple[PlanRequest, asyncio.Future[np.ndarray]]] = []
        self.sessions = 0
        """How many may still ask: nobody is waited for who is waiting."""
        self._more = asyncio.Event()
        self.robot: Robot | None = None
        self.plans, self.calls = 0, 0

    async def plan(self, request: PlanRequest) -> np.ndarray:
        """Return a request's chunk.

        Raises:
            PlanFailed: the policy has none for it.
        """
        answer: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self.waiting.append((request, answer))
        self._more.set()
        return await answer

    async def run(self) -> None:
        """Plan until cancelled."""
        size = max(1, self.policy.spec.batch)
        loop = asyncio.get_running_loop()
        while True:
            await self._more.wait()
            until = loop.time() + self.wait
            while len(self.waiting) < min(size, self.sessions) and (left := until - loop.time()) > 0:
                self._more.clear()
                try:
                    await asyncio.wait_for(self._more.wait(), left)
                except asyncio.TimeoutError:
                    break
            some, self.waiting = self.waiting[:size], self.waiting[size:]
            if not self.waiting:
                self._more.clear()
            some.sort(key=lambda pair: pair[0].rollout)
            answers = await loop.run_in_executor(self.thread, self._planned, [request for request, _ in some])
            for (_, future), answer in zip(some, answers, strict=True):
                if future.cancelled():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    def ended(self, rollouts: list[int]) -> None:
        """Tell the policy, if it wants to know, that these rollouts ask no more."""
        tell = getattr(self.policy, "ended", None)
        if tell is not None:
            for rollout in rollouts:
                self.thread.submit(tell, rollout)

    def _planned(self, requests: list[PlanRequest]) -> list[np.ndarray | PlanFailed]:
        self.plans, self.calls = self.plans + len(requests), self.calls + 1
        try:
            chunks = list(self.policy.plan(requests))
            if len(chunks) != len(requests):
                raise ValueError(f"{len(chunks)} chunks for {len(requests)} requests")
        except Exception as error:
            if len(requests) > 1:  # only those at fault have no plan
                return [answer for request in requests for answer in self._planned([request])]
            return [PlanFailed(f"the policy failed: {type(error).__name__}: {error}"[:300])]
        return [self._checked(chunk) for chunk in chunks]

    def _checked(self, chunk: np.ndarray | PlanFailed) -> np.ndarray | PlanFailed:
        if isinstance(chunk, PlanFailed):
            return chunk
        found, spec = np.asarray(chunk), self.policy.spec
        size = self.robot.actions.size if self.robot is not None else found.shape[-1]
        if found.ndim != 2 or len(found) < spec.execute_steps or found.shape[1] != size:
            return PlanFailed(f"the policy planned actions of shape {found.shape}, not ({spec.execute_steps}, {size})")
        if not np.isfinite(found[: spec.execute_steps]).all():
            return PlanFailed("the policy planned NaN or infinity")
        return found
