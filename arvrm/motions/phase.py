"""How far a motion has come: by it two motions of the same task are laid beside each other, whatever their speeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arvrm.motions.path import length_of_way

_WAIT_M = 0.002
"""A step that stays in its place counts as so much way."""


@dataclass(frozen=True)
class Phased:
    """A motion's rows by phase.

    Attributes:
        poses: (N, 6); gripper: (N,); touch: as in `Path`.
        phase: (N,), ascending: up to the touch minus the way that is left to it (m), 0 at the touch, then the share
            that is done of what follows, up to 1.
    """

    poses: np.ndarray
    gripper: np.ndarray
    touch: int
    phase: np.ndarray

    @classmethod
    def of(cls, poses: np.ndarray, gripper: np.ndarray, touch: int) -> Phased:
        way = length_of_way(poses[:, :3]) + _WAIT_M * np.arange(len(poses))
        phase = way - way[touch]
        if touch + 1 < len(poses):
            phase[touch + 1 :] /= phase[-1]
        return cls(poses, gripper, touch, phase)

    def row_like(self, phase: float) -> int:
        """The row that has come as far as another motion at that phase of it."""
        if phase <= 0 or self.touch + 1 == len(self.poses):
            return int(np.abs(self.phase[: self.touch + 1] - phase).argmin())
        return self.touch + 1 + int(np.abs(self.phase[self.touch + 1 :] - phase).argmin())

    def beside(self, step: int, plan: Phased, cursor: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Return where this motion is, poses (rows, 6) and commands (rows,), while another goes on from `cursor`.

        Both begin where this one has done the step before `step` and the other the row before `cursor`; from there they
        meet the touch together, or, past it, the end. Where the other is this one itself, these are its own rows.
        """
        ahead = np.minimum(np.arange(cursor, cursor + rows), len(plan.poses) - 1)
        here, there, phases = self.phase[step - 1], plan.phase[cursor - 1], plan.phase[ahead]
        if here < 0:
            phases = np.where(phases <= 0, here * phases / min(there, -1e-9), phases)
        else:
            phases = here + (1 - here) * (phases - there) / max(1 - there, 1e-9)
        poses = np.unwrap(self.poses, axis=0)
        poses[:, :3] = self.poses[:, :3]
        found = np.stack([np.interp(phases, self.phase, column) for column in poses.T], 1)
        nearest = np.abs(self.phase[None] - phases[:, None]).argmin(1)
        return found, self.gripper[nearest]
