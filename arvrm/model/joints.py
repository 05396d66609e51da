"""Features of a hand's joints, and of a robot's components, in one space."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from arvrm.model.config import ModelConfig
from arvrm.model.transformer import FullBlock, mlp


class JointEncoder(nn.Module):
    """Per-joint features f_k, after HandFormer's idea: each joint's place, motion and relation to the others.

    Reads a joint's coordinates, those relative to the wrist (joint 0 of its hand), the change since the frame before,
    and which joint it is; then joints attend to each other. Joints that are not visible hide behind a learnt vector.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.joint_width
        self.joint = nn.Parameter(0.5 * torch.randn(config.keypoints, width))
        self.missing = nn.Parameter(torch.zeros(width))
        self.lift = nn.Linear(9, width)
        self.hidden = mlp(width, 2 * width, width)
        self.block = FullBlock(width, heads=2)
        self.norm = nn.LayerNorm(width)

    def forward(self, keypoints: Tensor, visible: Tensor) -> Tensor:
        """Return f_k (B, T, K, d_k) for keypoints (B, T, K, 3) and visible (B, T, K); padding must not be visible."""
        shown = visible[..., None].to(keypoints.dtype)
        pose = keypoints * shown
        wrist, has_wrist = pose.unflatten(2, (-1, 21))[..., :1, :], shown.unflatten(2, (-1, 21))[..., :1, :]
        relative = ((pose.unflatten(2, (-1, 21)) - wrist) * has_wrist).flatten(2, 3) * shown
        change = torch.zeros_like(pose)
        change[:, 1:] = (pose[:, 1:] - pose[:, :-1]) * shown[:, 1:] * shown[:, :-1]
        # Hand-sized and step-sized differences are a tenth of the image; brought to the scale of coordinates.
        x = self.lift(torch.cat([pose, 4.0 * relative, 8.0 * change], dim=-1))
        x = torch.where(visible[..., None], x, self.missing.to(x.dtype)) + self.joint
        x = x + self.hidden(x)
        shape = x.shape
        # A frame without a visible joint lets all see all, lest the softmax divide by zero.
        mask = visible | ~visible.any(-1, keepdim=True)
        x = self.block(x.flatten(0, 1), mask.flatten(0, 1)).view(shape)
        return self.norm(x)


class ComponentEncoder(nn.Module):
    """Per-component features f_s (S x d_k): a robot component's value and which component it is."""

    def __init__(self, config: ModelConfig, components: int) -> None:
        super().__init__()
        width = config.joint_width
        self.scale = nn.Parameter(torch.randn(components, width))
        self.component = nn.Parameter(0.5 * torch.randn(components, width))
        self.hidden = mlp(width, 2 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, components: Tensor) -> Tensor:
        """Return (..., S, d_k) for components (..., S)."""
        x = components[..., None] * self.scale + self.component
        return self.norm(x + self.hidden(x))
