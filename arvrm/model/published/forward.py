"""What the official code's forward returns, computed by ours."""

from __future__ import annotations

import torch
from torch import Tensor

from arvrm.interface import RobotBatch
from arvrm.model.policy_net import PolicyNet


@torch.no_grad()
def predict(network: PolicyNet, batch: RobotBatch, images: bool = False) -> dict[str, Tensor]:
    """Return what the heads say at every frame, before any clamping.

    Returns:
        arm (B, T, C, 6), gripper (B, T, C), logits; with `images` and the image heads: static, gripper_image
        (B, T, P, 3 patch^2), patches of the coming frames.
    """
    z_l = network.language(batch["text"], batch["text_mask"])
    encoded = batch if "static_tokens" in batch else network.encode(batch, z_l)
    kinds = ("image",) if images and network.config.fwd_pred else ()
    outputs, _ = network.transform(batch, z_l, encoded, kinds)
    arm, logits = network.head(outputs["action"])
    result = {"arm": arm, "gripper": logits[..., 0]}
    for i, name in enumerate(("static", "gripper_image") if kinds else ()):
        asked = outputs["image"].unflatten(2, (len(network.roles), -1))[:, :, i]
        result[name] = network.image_head(i)(asked.flatten(0, 1)).unflatten(0, tuple(asked.shape[:2]))
    return result
