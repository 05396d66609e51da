"""A policy for tests that needs no weights, and so no torch."""

import time

import numpy as np

from arvrm.interface import PlanFailed, PolicySpec


class Recorder:
    """A policy that remembers whom it planned for; its actions say what it saw."""

    def __init__(self, config):
        self.spec = PolicySpec("calvin", {"rgb_static": 8}, history_offsets=(-3, 0), execute_steps=4, batch=8)
        self.batches, self.gone = [], []

    def plan(self, requests):
        self.batches.append([(r.rollout, r.step, r.instruction) for r in requests])
        if any(r.instruction == "slow" for r in requests):
            time.sleep(0.3)
        return [self._chunk(request) for request in requests]

    def _chunk(self, request):
        if request.instruction == "crash":
            raise RuntimeError("no\nsuch thing")
        if request.instruction == "fail":
            return PlanFailed("cannot be done")
        chunk = np.zeros((5, 7), np.float32)
        chunk[:, 0] = [frame.images["rgb_static"][0, 0, 0] / 255 for frame in request.history][0]
        chunk[:, 1] = np.arange(5) / 10
        chunk[:, 6] = np.nan if request.instruction == "nan" else 1
        return chunk

    def ended(self, rollout):
        self.gone.append(rollout)
