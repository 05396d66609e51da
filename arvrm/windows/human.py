"""Human clips as batches."""

from __future__ import annotations

import numpy as np
import torch

from arvrm.hands.coordinates import normalise_keypoints
from arvrm.interface import HumanBatch, UserError
from arvrm.windows.config import WindowConfig
from arvrm.windows.frames import FrameSource, batch_key
from arvrm.windows.sampling import Anchors
from arvrm.windows.table import EpisodeTable
from arvrm.windows.text import LazyText, TextTable

HAND_KEYPOINTS = 21


def choose_hand(keypoints: np.ndarray, visible: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Bring a clip's keypoints to `wanted` (21 or 42) columns.

    Args:
        keypoints: (F, K, 3); visible: (F, K) bool; K is 21, or 42 for left then right hand.
    Returns:
        The same with K = wanted. From two hands the one that moves most in the image is kept; a hand that is not there
        is invisible (the right one is filled), its numbers zero.
    """
    stored = keypoints.shape[1]
    if stored == wanted:
        return keypoints, visible
    if stored == 2 * HAND_KEYPOINTS and wanted == HAND_KEYPOINTS:
        motion = []
        for hand in (slice(0, HAND_KEYPOINTS), slice(HAND_KEYPOINTS, None)):
            both = visible[1:, hand] & visible[:-1, hand]
            moved = np.linalg.norm(np.diff(np.nan_to_num(keypoints[:, hand, :2]), axis=0), axis=-1)
            motion.append((moved[both].sum(), visible[:, hand].sum()))
        hand = slice(0, HAND_KEYPOINTS) if motion[0] > motion[1] else slice(HAND_KEYPOINTS, None)
        return keypoints[:, hand], visible[:, hand]
    if stored == HAND_KEYPOINTS and wanted == 2 * HAND_KEYPOINTS:
        return (
            np.concatenate([np.zeros_like(keypoints), keypoints], axis=1),
            np.concatenate([np.zeros_like(visible), visible], axis=1),
        )
    raise UserError(f"keypoints: the store has {stored}, the model wants {wanted}; give 21 or 42")


IN_MEMORY_BYTES = 4 << 30
"""What is not larger than this is read into memory before training, where the configuration leaves it open."""


class HumanWindows:
    """Human clips as `HumanBatch`es.

    Args:
        table: human episodes.
        keypoints: K of the model, 21 or 42.
        text: embeddings of `table.sentences`.
        frames: of the static camera; None: keypoints only.
        in_memory: read all keypoints now; False: read a batch's from the stores when it is asked for, which gives the
            same batches; None: now, if they take at most `IN_MEMORY_BYTES`.
        horizon: frames after the window that `batch` gives the keypoints of; 1: only the next one's.

    Attributes:
        keypoints, visible: (N, K, 3) float32, normalised, and (N, K) bool, if they are in memory; else None.
    """

    def __init__(
        self,
        table: EpisodeTable,
        config: WindowConfig,
        keypoints: int,
        text: TextTable | LazyText,
        frames: FrameSource | None,
        in_memory: bool | None = None,
        horizon: int = 1,
    ) -> None:
        self.table, self.config, self.text, self.frames = table, config, text, frames
        self.joints, self.horizon = keypoints, horizon
        self.keypoints: torch.Tensor | None = None
        self.visible: torch.Tensor | None = None
        if in_memory is None:
            in_memory = table.steps * keypoints * 13 <= IN_MEMORY_BYTES
        if in_memory:
            points = np.empty((table.steps, keypoints, 3), dtype=np.float32)
            visible = np.empty((table.steps, keypoints), dtype=bool)
            for episode in range(len(table)):
                here = slice(table.step_start[episode], table.step_start[episode + 1])
                points[here], visible[here] = self._read(episode)
            self.keypoints, self.visible = torch.from_numpy(points), torch.from_numpy(visible)

    def _read(self, episode: int, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the normalised keypoints of an episode (of all its steps, or of `rows`), and which are visible."""
        store, identity = self.table.stores[self.table.store[episode]], self.table.ids[episode]
        found = store.arrays(identity, ["keypoints", "visible"])  # all: it takes the whole clip to choose a hand
        points, visible = choose_hand(found["keypoints"], found["visible"], self.joints)
        if rows is not None:
            points, visible = points[rows], visible[rows]
        height, width = self.table.static_size[episode].tolist()
        return normalise_keypoints(np.where(visible[..., None], points, 0.0), height, width), visible

    def poses(self, steps: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keypoints steps.shape + (K, 3), normalised, and visible steps.shape + (K,) at global steps."""
        if self.keypoints is not None and self.visible is not None:
            index = torch.from_numpy(steps)
            return self.keypoints[index], self.visible[index]
        flat, inverse = np.unique(steps, return_inverse=True)
        episodes = np.searchsorted(self.table.step_start, flat, side="right") - 1
        begins = np.flatnonzero(np.diff(episodes, prepend=-1))
        parts = [
            self._read(int(episodes[begin]), flat[begin:end] - self.table.step_start[episodes[begin]])
            for begin, end in zip(begins, [*begins[1:], len(flat)], strict=True)
        ]
        at = torch.from_numpy(inverse.reshape(steps.shape))
        points, visible = (torch.from_numpy(np.concatenate(values)) for values in zip(*parts, strict=True))
        return points[at], visible[at]

    def anchors(self, episodes: np.ndarray) -> Anchors:
        """Return the frames of `episodes` that are followed by a pose, so that the window has one to predict."""
        episodes = np.unique(episodes)
        first = self.table.image_start[episodes]
        end = self.table.frames_before(self.table.step_start[episodes + 1] - self.table.steps_ahead(episodes))
        return Anchors(episodes, first, np.maximum(end - first, 0))

    def batch(self, anchors: np.ndarray) -> HumanBatch:
        """Return the windows that end at `anchors`."""
        rows, mask = self.table.window_frames(anchors, self.config.history)
        return self.gather(rows, mask, self.table.episode_of_image[anchors])

    def future(self, anchors: np.ndarray, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keypoints (..., frames, K, 3) and visible of the frames after the windows that end at `anchors` (...).

        Past the clip's end nothing is visible.
        """
        episode = self.table.episode_of_image[anchors]
        end = self.table.step_start[episode + 1][..., None]
        ahead = self.table.steps_ahead(episode[..., None], np.arange(1, frames + 1))
        steps = self.table.step_of_image[anchors][..., None] + ahead
        points, visible = self.poses(np.minimum(steps, end - 1))
        return points, visible & torch.from_numpy(steps < end)[..., None]

    def gather(self, rows: np.ndarray, mask: np.ndarray, episodes: np.ndarray, images: bool = True) -> HumanBatch:
        """Return any frames as a batch.

        Args:
            rows: (..., T) global image rows; mask: (..., T), False for padding; episodes: (...) whose text is given.
            images: give what only stage 1 reads as well: images, and the poses of the horizon.
        """
        steps = self.table.step_of_image[rows]
        following = steps[..., -1] + self.table.steps_ahead(episodes)
        exists = following < self.table.step_start[episodes + 1]
        after = np.where(exists, following, steps[..., -1])
        points, visible = self.poses(np.concatenate([steps, after[..., None]], axis=-1))
        text, text_mask = self.text.take(self.table.sentence[episodes])
        out: HumanBatch = {
            "text": text,
            "text_mask": text_mask,
            "keypoints": points[..., :-1, :, :].contiguous(),
            "visible": visible[..., :-1, :].contiguous(),
            "next_keypoints": points[..., -1, :, :].contiguous(),
            "next_visible": visible[..., -1, :] & torch.from_numpy(exists)[..., None],
            "frame_mask": torch.from_numpy(np.ascontiguousarray(mask)),
        }
        if images and self.horizon > 1:
            out["future_keypoints"], out["future_visible"] = self.future(rows[..., -1], self.horizon)
        if images and self.frames is not None:
            out[batch_key("static", self.frames)] = torch.from_numpy(self.frames.take(rows))
        return out
