"""Objectives of the scene's landmarks, which only simulators know."""

from __future__ import annotations

from torch import Tensor

from arvrm.interface import UserError
from arvrm.model.heatmaps import splat_cross_entropy
from arvrm.model.objectives.base import Objective, masked_mean
from arvrm.model.objectives.steps import PolicyStep
from arvrm.model.transformer import expect


class Geometry(Objective[PolicyStep]):
    """Squared error of where the policy takes the landmarks to be, from the gripper."""

    name = "geometry"
    needs = ("landmark_offsets",)

    def value(self, step: PolicyStep) -> Tensor:
        batch, offsets = step.batch, step.outputs["geometry"]
        expect("landmark_offsets", batch["landmark_offsets"], *offsets.shape)
        expect("landmark_mask", batch.get("landmark_mask"), *offsets.shape[:3])
        mask = batch["landmark_mask"] & batch["frame_mask"][..., None]
        known = batch["landmark_offsets"].masked_fill(~mask[..., None], 0.0)
        return masked_mean((offsets - known).square().mean(-1), mask)


class Localisation(Objective[PolicyStep]):
    """Cross-entropy of the first heatmaps of the static camera against where the landmarks are in its image."""

    name = "localisation"
    needs = ("landmark_pixels",)

    def value(self, step: PolicyStep) -> Tensor:
        batch, heatmaps = step.batch, step.encoded.get("heatmaps")
        if heatmaps is None:
            raise UserError("loss.localisation: only the conv encoder has heatmaps; set it to 0 or use that encoder")
        shape = (*heatmaps.shape[:2], step.network.config.vision.landmarks)
        expect("landmark_pixels", batch["landmark_pixels"], *shape, 2)
        expect("landmark_mask", batch.get("landmark_mask"), *shape)
        known = batch["landmark_mask"][..., None]
        # What moved the image moved the landmarks in it.
        where = batch["landmark_pixels"].masked_fill(~known, 0.0) + step.encoded["offset"][:, None, None]
        inside = (where.abs() <= 1.0).all(-1)
        mask = batch["landmark_mask"] & batch["frame_mask"][..., None] & inside
        return masked_mean(splat_cross_entropy(heatmaps[..., : shape[2]].movedim(-1, 2), where), mask)
