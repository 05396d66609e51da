"""Where the landmarks of a scene are, by heatmaps of the image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from arvrm.interface import Robot
from arvrm.model.config import ModelConfig
from arvrm.model.transformer import mlp, start_at_zero


class LandmarkHead(nn.Module):
    """Where landmarks are from the gripper, by the points that the static camera's heatmaps mark and the robot's pose.

    CALVIN's static camera is far away and sees the table nearly in parallel projection, so a linear layer does most of
    it (to millimetres, where the points are right); an MLP bends the rest. All in float32.
    """

    def __init__(self, config: ModelConfig, robot: Robot) -> None:
        super().__init__()
        count, width = 2 * config.vision.points + len(robot.components), config.width
        self.straight = nn.Linear(count, 3 * config.vision.landmarks)
        self.bend = mlp(count, width, 3 * config.vision.landmarks)
        start_at_zero(self.bend[-1])
        self.token = mlp(3 * config.vision.landmarks + robot.state_size, 2 * width, width)

    def forward(self, points: Tensor, components: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return offsets (B, T, N, 3) in LANDMARK_UNIT_M and a token (B, T, d) that carries them.

        Args:
            points: (B, T, points, 2); components: (B, T, S); state: (B, T, Ds).
        """
        with torch.autocast(points.device.type, enabled=False):
            x = torch.cat([points.float().flatten(2), components.float()], dim=-1)
            offsets = self.straight(x) + self.bend(x)
            token = self.token(torch.cat([offsets, state.float()], dim=-1))
        return offsets.unflatten(-1, (-1, 3)), token
