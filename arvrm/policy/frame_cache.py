"""What is kept of the frames of a rollout, so that each is encoded once."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch

from arvrm.interface import Observation

FrameTokens = dict[str, torch.Tensor]
"""Camera role -> its tokens (M + 1, d)."""


class FrameCache:
    """Tokens of the frames that a rollout has had, so that a control step encodes its new frame only.

    A frame is found by rollout and step, and taken only if its images are the same pixels: a rollout that starts anew
    under an old number finds nothing. What a rollout can no longer look back to is forgotten, and of all rollouts the
    ones that planned longest ago.

    Args:
        rollouts: kept at once.
    """

    def __init__(self, rollouts: int = 512) -> None:
        self.rollouts = rollouts
        self._frames: OrderedDict[int, dict[int, tuple[Observation, FrameTokens, str]]] = OrderedDict()

    def get(self, rollout: int, step: int, frame: Observation, words: str = "") -> FrameTokens | None:
        """Return the tokens of each camera, or None.

        Args:
            words: the instruction, where tokens depend on it.
        """
        known = self._frames.get(rollout, {}).get(step)
        if known is None or known[2] != words:
            return None
        images = known[0].images
        same = images.keys() == frame.images.keys()
        same = same and all(np.array_equal(images[name], image) for name, image in frame.images.items())
        return known[1] if same else None

    def put(self, rollout: int, step: int, frame: Observation, tokens: FrameTokens, words: str = "") -> None:
        self._frames.setdefault(rollout, {})[step] = (frame, tokens, words)

    def forget(self, rollout: int, before: int, after: int) -> None:
        """Drop this rollout's steps outside [before, after], and rollouts beyond the limit."""
        frames = self._frames.setdefault(rollout, {})
        self._frames.move_to_end(rollout)
        for step in [step for step in frames if not before <= step <= after]:
            del frames[step]
        while len(self._frames) > self.rollouts:
            self._frames.popitem(last=False)

    def drop(self, rollout: int) -> None:
        """Forget a rollout, if it is known."""
        self._frames.pop(rollout, None)

    def clear(self) -> None:
        self._frames.clear()
