"""Plans for whatever requests are waiting, so that one policy serves many simulators in batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from arvrm.evaluation.workers import one_line
from arvrm.interface import Drawing, ImagesWanted, PlanFailed, PlanRequest, Policy, UserError

Answer = tuple[str, np.ndarray | str | None]
"""("actions", (C, A) chunk), ("actions", None): with images, please; or ("crash", one line)."""


class Planner:
    """Answers requests with a policy, and measures how that goes.

    Args:
        policy: None: nobody will ask.
    """

    def __init__(self, policy: Policy | None) -> None:
        self.policy = policy
        self.plans, self.batches, self.seconds = 0, 0, 0.0

    def answer(self, requests: list[PlanRequest]) -> list[Answer]:
        """Return an answer to each; where the policy crashes, only to those at fault a crash."""
        begin = time.perf_counter()
        try:
            answers = self._planned(requests)
        except UserError:
            raise
        except Exception as error:
            answers = [self._alone(request) for request in requests] if len(requests) > 1 else [_crash(error)]
        self.plans += sum(value is not None for _, value in answers)
        self.batches += any(value is not None for _, value in answers)
        self.seconds += time.perf_counter() - begin
        return answers

    def _planned(self, requests: list[PlanRequest]) -> list[Answer]:
        assert self.policy is not None
        chunks = self.policy.plan(requests)
        if len(chunks) != len(requests):
            raise ValueError(f"{len(chunks)} chunks for {len(requests)} requests")
        return [self._answer(chunk) for chunk in chunks]

    def _answer(self, chunk: np.ndarray | PlanFailed | ImagesWanted) -> Answer:
        assert self.policy is not None
        if isinstance(chunk, PlanFailed):
            return "crash", str(chunk)
        if not isinstance(chunk, ImagesWanted):
            return "actions", chunk
        if not self.policy.spec.looks_when_needed:
            return "crash", "it wants images, and its spec does not say looks_when_needed"
        return "actions", None

    def _alone(self, request: PlanRequest) -> Answer:
        try:
            return self._planned([request])[0]
        except UserError:
            raise
        except Exception as error:
            return _crash(error)

    def notes(self, rollout: int) -> dict[str, int]:
        """What the policy says of a rollout, if it says anything."""
        says = getattr(self.policy, "notes", None)
        return {} if says is None else {str(text): int(times) for text, times in says(rollout).items()}

    def drawing(self, rollout: int) -> Drawing | None:
        """What the policy has in mind in a rollout, if it shows it."""
        draws = getattr(self.policy, "drawing", None)
        return None if draws is None else draws(rollout)

    def ended(self, rollout: int) -> None:
        """Tell the policy, if it wants to know, that this rollout asks no more."""
        tell = getattr(self.policy, "ended", None)
        if tell is not None:
            tell(rollout)

    def add(self, totals: Sequence[Any]) -> None:
        """Add the `totals` of another process's planner."""
        plans, batches, seconds = totals
        self.plans, self.batches, self.seconds = self.plans + plans, self.batches + batches, self.seconds + seconds

    @property
    def totals(self) -> list[Any]:
        return [self.plans, self.batches, self.seconds]

    def summary(self) -> dict[str, Any]:
        """How planning went: plans, mean batch, milliseconds a plan. Empty where nothing was planned."""
        if not self.plans:
            return {}
        return {
            "plans": self.plans,
            "mean_batch": round(self.plans / self.batches, 2),
            "ms_per_plan": round(1000 * self.seconds / self.plans, 2),
        }


def _crash(error: Exception) -> Answer:
    return "crash", one_line(error)
