"""Human clips for what a robot sees in a rollout."""

from __future__ import annotations

import numpy as np
import torch

from arvrm.interface import HumanBatch, UserError
from arvrm.model.checkpoint import Checkpoint
from arvrm.retrieval import ClipIndex, Matches
from arvrm.windows import EpisodeTable, HumanWindows, TextTable, WindowConfig


class RolloutClips:
    """Retrieves human clips for what a robot sees now.

    In training the whole demonstration is known and its clips stand beside it by progress; in a rollout only the window
    is, so each clip is aligned where it looks most like the window (subsequence time warping).

    Args:
        index: the clip index; its stores must still be where they were.
        checkpoint: says how many clips, and how windows were cut, in training.
    """

    def __init__(self, index: ClipIndex, checkpoint: Checkpoint) -> None:
        metadata = checkpoint.metadata
        if metadata.clips is None:
            raise UserError("index: this checkpoint does not say how many clips it was trained with; train it again")
        self.index, self.history, self.count = index, metadata.history, metadata.clips
        table = EpisodeTable(index.open_stores(), "human", metadata.stride)
        if table.ids != index.ids:
            raise UserError(f"{index.path}: the stores' clips are not the index's; make the index anew")
        # The map reads keypoints only: neither words nor images of the clips are needed.
        count = len(table.sentences)
        nothing = TextTable(torch.zeros(count, 1, 1), torch.ones(count, 1, dtype=torch.bool))
        settings = WindowConfig(history=self.history, stride=metadata.stride)
        self.windows = HumanWindows(table, settings, checkpoint.config.keypoints, nothing, frames=None)

    def search(self, sentences: list[str], static: torch.Tensor) -> tuple[Matches, np.ndarray]:
        """Return the matches and the features (B, T, D) they were found with, for images (B, T, H, W, 3) uint8."""
        frames = static.cpu().numpy()
        features = self.index.encoders.images(frames.reshape(-1, *frames.shape[2:])).reshape(*frames.shape[:2], -1)
        return self.index.search(self.index.encoders.sentences(sentences), features, self.count), features

    def __call__(self, sentences: list[str], static: torch.Tensor) -> HumanBatch:
        """Return the clips with axes (B, J)."""
        matches, features = self.search(sentences, static)
        known = matches.rows >= 0
        clips = np.maximum(matches.rows, 0)
        local = np.array(
            [
                [self.index.align(int(row), self.history, query, "dtw") for row in rows]
                for rows, query in zip(clips, features, strict=True)
            ]
        )
        rows = self.windows.table.image_start[clips][..., None] + local
        return self.windows.gather(rows, np.broadcast_to(known[..., None], rows.shape), clips, images=False)
