"""Clips as images before the touch, each with the hand at the clip's moments."""

from __future__ import annotations

import numpy as np
import torch

from arvrm.hands.skeleton import TIPS, WRIST
from arvrm.interface import CONTROL_HZ, PlaceBatch
from arvrm.windows.frames import FrameSource
from arvrm.windows.human import HumanWindows

_THUMB, _INDEX = TIPS[0], TIPS[1]
_PIXELS = 96


class PlaceSamples:
    """Draws images of clips for `PlaceBatch`es.

    Args:
        hands: the clips, with keypoints of one hand (K = 21).
        frames: of the static camera.
        moments: (E, 2) steps of each clip's touch and end; those before the first are never drawn.
        known: (E, 2) how sure each is, 0 to 1; clips whose touch is not known at all are never drawn.
        offsets: steps (1/CONTROL_HZ s) from the touch at which the motion is described.
        early: how much sooner images are drawn: one at the share u ** early of the way to the touch, u uniform.
    """

    def __init__(
        self,
        hands: HumanWindows,
        frames: FrameSource,
        moments: np.ndarray,
        known: np.ndarray,
        offsets: tuple[int, ...],
        early: float = 2.0,
    ) -> None:
        self.hands, self.frames, self.early = hands, frames, early
        self.offsets = np.asarray(offsets)
        table = hands.table
        self.rates = np.array([table.header(episode).fps for episode in range(len(table))]) / CONTROL_HZ
        self.revise(moments, known)

    def revise(self, moments: np.ndarray, known: np.ndarray) -> None:
        """Take other moments from now on, as the class takes them."""
        self.moments, self.known = np.asarray(moments, np.int64), np.asarray(known, np.float32)
        table = self.hands.table
        touch = table.step_start[:-1] + self.moments[:, 0]
        # Images up to the touch; the first one where none is.
        self.images = np.maximum(table.frames_before(touch + 1) - table.image_start[:-1], 1)

    def usable(self, episodes: np.ndarray) -> np.ndarray:
        """Return those of `episodes` whose touch is known."""
        return episodes[self.known[episodes, 0] > 0]

    def draw(self, episodes: np.ndarray, seed: int, step: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw `count` images of `episodes`, which depend on (seed, step) alone; return what `batch` takes."""
        rng = np.random.default_rng([seed, step, 4])
        at = ((np.arange(count) + rng.random(count)) * (len(episodes) / count)).astype(np.int64)
        chosen = rng.permutation(episodes[np.minimum(at, len(episodes) - 1)])
        place = (self.images[chosen] * rng.random(count) ** self.early).astype(np.int64)
        return chosen, place

    def batch(self, episodes: np.ndarray, place: np.ndarray) -> PlaceBatch:
        """Return the images `place` (P,) of `episodes` (P,), counted from each one's first."""
        table = self.hands.table
        rows = table.image_start[episodes] + np.minimum(place, self.images[episodes] - 1)
        first, last = table.step_start[episodes], table.step_start[episodes + 1] - 1
        moments = first[:, None] + self.moments[episodes]
        points, visible = self.hands.poses(np.minimum(moments, last[:, None]))
        acting = visible[..., (_THUMB, _INDEX)].all(-1)
        text, mask = self.hands.text.take(table.sentence[episodes])
        motion, motion_known = self._motion(episodes, points[:, 0])
        return {
            "image": torch.from_numpy(np.ascontiguousarray(self.frames.take(rows))),
            "text": text,
            "text_mask": mask,
            "points": points,
            "visible": visible.float(),
            "known": torch.from_numpy(self.known[episodes]) * acting,
            "motion": motion,
            "motion_known": motion_known,
        }

    def _motion(self, episodes: np.ndarray, touching: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        table = self.hands.table
        first, last = table.step_start[episodes, None], table.step_start[episodes + 1][:, None] - 1
        ahead = np.rint(self.offsets * self.rates[episodes, None]).astype(np.int64)
        steps = first + self.moments[episodes, :1] + ahead
        inside = torch.from_numpy((steps >= first) & (steps <= last))
        steps = np.concatenate([np.clip(steps, first, last), first + self.moments[episodes, 1:]], 1)
        inside = torch.cat([inside, torch.ones(len(episodes), 1, dtype=torch.bool)], 1)
        points, visible = self.hands.poses(np.minimum(steps, last))
        points = points[..., (WRIST, _THUMB, _INDEX), :2]
        seen = visible[..., (WRIST, _THUMB, _INDEX)] & inside[..., None]
        tips = touching[:, (_THUMB, _INDEX), :2]
        ways = (points - tips.mean(1)[:, None, None]) * (_PIXELS / 2)
        gaps = (points[:, :, 2] - points[:, :, 1]).norm(dim=-1) * (_PIXELS / 2)
        now = (tips[:, 1] - tips[:, 0]).norm(dim=-1) * (_PIXELS / 2)
        gaps_seen = seen[..., 1] & seen[..., 2]
        known = [
            seen[..., None].expand(-1, -1, -1, 2).flatten(1),
            gaps_seen,
            torch.ones(len(tips), 1, dtype=torch.bool),
        ]
        return torch.cat([ways.flatten(1), gaps, now[:, None]], 1), torch.cat(known, 1).float()
