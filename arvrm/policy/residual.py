"""Corrects a plan's actions by a learnt residual, which looks at the plan, the gripper and what its camera sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from arvrm.interface import Observation
from arvrm.model.residual import ResidualNet
from arvrm.motions import Plan, plan_view
from arvrm.motions.plan import CORRECTED, UNITS, arm_in_world


@dataclass(frozen=True)
class Correction:
    """What is changed of a chunk.

    Attributes:
        actions: (EXECUTE, 7), corrected.
        moved: (6,) how far they lead beside the plan in the end, m and rad.
    """

    actions: np.ndarray
    moved: np.ndarray


class Residual:
    """A `ResidualNet` at work on one request at a time, so that its bits do not depend on who else waits."""

    def __init__(self, net: ResidualNet, camera: str) -> None:
        self.net, self.camera = net, camera

    @torch.no_grad()
    def corrected(self, plan: Plan | None, seen: Observation, command: float) -> Correction:
        """Return the plan's next chunk as it should be; without a plan, what to do.

        Args:
            command: the gripper's last one.
        """
        robot_obs, target = (np.asarray(seen.state[name], np.float64) for name in ("robot_obs", "target_pose"))
        view = plan_view(plan, target, robot_obs, command)
        actions = view.actions
        image = np.ascontiguousarray(seen.images[self.camera])
        row = {"state": view.state, "plan": view.plan, "present": np.float32(view.present), "gripper": image}
        row["command"] = actions[:, 6].astype(np.float32)
        device = next(self.net.parameters()).device
        batch = {name: torch.from_numpy(np.array(value)[None]).to(device) for name, value in row.items()}
        arm, logits = (said[0].double().cpu().numpy() for said in self.net.corrections(batch))
        found, arm = actions.copy(), arm_in_world(arm, robot_obs[5])
        if plan is not None:
            arm = self._within_reach(plan, arm)
        found[:, CORRECTED] = np.clip(actions[:, CORRECTED] + arm, -1, 1)
        found[:, 6] = np.where(logits > 0, 1.0, -1.0)
        return Correction(found, (found - actions)[:, :6].sum(0) * UNITS)

    def _within_reach(self, plan: Plan, arm: np.ndarray) -> np.ndarray:
        """Let corrections (EXECUTE, ARM), together with those before, lead no further than they may."""
        units, settings = UNITS[CORRECTED], self.net.config
        before = (plan.bent.poses[plan.bent.touch] - plan.goal)[CORRECTED]
        there = before + np.cumsum(arm * units, 0)
        far = np.linalg.norm(there[:, :3], axis=1, keepdims=True)
        there[:, :3] *= np.minimum(1, settings.reach_m / np.maximum(far, 1e-9))
        there[:, 3] = np.clip(there[:, 3], -settings.reach_rad, settings.reach_rad)
        return np.diff(np.concatenate([before[None], there]), axis=0) / units
