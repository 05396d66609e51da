"""Objectives of stage 1: the poses to come, and where the hand goes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from arvrm.model.config import ModelConfig
from arvrm.model.heatmaps import splat_cross_entropy
from arvrm.model.objectives.base import Objective, masked_mean
from arvrm.model.objectives.steps import HandStep
from arvrm.model.split_batch import divisor

_NEAR = 1e-3
"""An error (normalised) below which the distance is rounded off: a tenth of a pixel of 224."""


class Poses(Objective[HandStep]):
    """Error of a joint's coordinates, or its distance (`loss.keypoints`); j frames ahead it counts 1/j."""

    name = "poses"

    def weight(self, config: ModelConfig) -> float:
        return 1.0

    def value(self, step: HandStep) -> Tensor:
        config, frame_mask = step.network.config, step.batch["frame_mask"]
        frames = frame_mask.shape[1]
        total, counted = step.predicted.new_zeros(()), step.predicted.new_zeros(())
        for ahead in range(1, config.horizon + 1):
            here = step.truth[:, ahead : ahead + frames]
            counts = step.known[:, ahead : ahead + frames] & frame_mask[:, : here.shape[1], None]
            error = step.predicted[:, : here.shape[1], ahead - 1] - here
            error = torch.where(counts[..., None], error, torch.zeros_like(error)).square()
            if config.loss.keypoints == "distance":
                # The root of nothing has no gradient; so near, a squared error will do.
                error = 3 * ((error.sum(-1) + _NEAR**2).sqrt() - _NEAR)
            total = total + error.sum() / ahead
            counted = counted + 3 * counts.sum() / ahead
        return total / divisor(counted)


class Destination(Objective[HandStep]):
    """Cross-entropy of a heatmap of each image against where the hand's root is `horizon` frames later."""

    name = "destination"

    def applies(self, network: Any, batch: Any) -> bool:
        return network.destination is not None

    def value(self, step: HandStep) -> Tensor:
        horizon, frame_mask = step.network.config.horizon, step.batch["frame_mask"]
        frames, heatmaps = frame_mask.shape[1], step.heatmaps
        assert heatmaps is not None
        later = step.truth[:, horizon : horizon + frames, 0, :2]
        there = step.known[:, horizon : horizon + frames, 0] & frame_mask[:, : later.shape[1]]
        there = there & (later.abs() <= 1.0).all(-1)
        later = torch.where(there[..., None], later, torch.zeros_like(later))
        return masked_mean(splat_cross_entropy(heatmaps[:, : later.shape[1], ..., 0], later), there)
