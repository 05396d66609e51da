"""GR-1's state token."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from arvrm.interface import Robot, UserError
from arvrm.robots.calvin import ARM, Calvin

OPENED = 10
"""Where `Calvin.encode_state` has the last gripper command: 1 open, beside it 1 closed."""


class OfficialState(nn.Module):
    """Pose and last gripper command, each through a linear layer, joined by a third.

    Raises:
        UserError: the robot is not CALVIN's, whose units this reads.
    """

    scale: Tensor
    centre: Tensor

    def __init__(self, width: int, robot: Robot) -> None:
        super().__init__()
        if not isinstance(robot, Calvin):
            raise UserError(f"published.state: 'official' reads CALVIN's robot, not {robot.name}; set it to components")
        self.arm = nn.Linear(ARM, width)
        self.gripper = nn.Linear(2, width)
        self.join = nn.Linear(2 * width, width)
        known = robot.statistics
        scale, centre = known.position_scale + known.euler_scale, known.position_centre + known.euler_reference
        self.register_buffer("scale", torch.tensor(scale), persistent=False)
        self.register_buffer("centre", torch.tensor(centre), persistent=False)

    def forward(self, f_s: Tensor, components: Tensor, state: Tensor) -> Tensor:
        """As `parts.StateToken`, of which it reads `components` (B, T, S) and `state` (B, T, Ds)."""
        pose = components[..., :ARM] * self.scale + self.centre
        angles = (pose[..., 3:] + math.pi) % (2.0 * math.pi) - math.pi
        # (B, T, 2): closed, open, as the official code's one-hot has them.
        gripper = state[..., OPENED : OPENED + 2].flip(-1)
        arm = self.arm(torch.cat([pose[..., :3], angles], dim=-1))
        return self.join(torch.cat([arm, self.gripper(gripper.to(arm.dtype))], dim=-1))
