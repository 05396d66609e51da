"""Robot episodes as batches."""

from __future__ import annotations

import numpy as np
import torch

from arvrm.interface import Robot, RobotBatch, UserError
from arvrm.robots import difference
from arvrm.windows.config import WindowConfig
from arvrm.windows.frames import Frames, batch_key
from arvrm.windows.segments import Segments
from arvrm.windows.table import EpisodeTable
from arvrm.windows.text import LazyText, TextTable


class RobotWindows:
    """Robot episodes as `RobotBatch`es (without `clips`).

    Args:
        table: robot episodes.
        text: embeddings of `table.sentences`.
        frames: of every camera that is observed, by its role.
        chunk: C, actions given from each frame.
        predicted: images, never features, of the cameras whose frames `config.image_horizon` strides later are given
            too, to be predicted; empty: none.
        robot: the table's, with the statistics by which a network was or will be trained; None: the table's own.

    Attributes (N steps, F frames of the table):
        state, components, actions: (N, Ds), (N, S) and (N, A) float32, as the robot encodes them.
        landmarks, landmark_mask, offsets: (F, L, 2) in [-1, 1], (F, L) bool and (F, L, 3), as in `RobotBatch`; None
            where some episode has none.

    Raises:
        UserError: `robot` is not the stores'.
        ValueError: `predicted` holds features.
    """

    def __init__(
        self,
        table: EpisodeTable,
        config: WindowConfig,
        text: TextTable | LazyText,
        frames: Frames,
        chunk: int,
        predicted: Frames | None = None,
        robot: Robot | None = None,
    ) -> None:
        self.robot = _the_same(table, robot)
        self.table, self.config, self.text, self.chunk = table, config, text, chunk
        self.frames, self.predicted = dict(frames), dict(predicted or {})
        if any(source.features for source in self.predicted.values()):
            raise ValueError("predicted: a network predicts images, not features; give their images")
        state = self._state()
        self.state = torch.from_numpy(self.robot.encode_state(state))
        self.components = torch.from_numpy(self.robot.encode_components(state))
        self.actions = torch.from_numpy(self.robot.encode_actions(table.array("actions")))
        # (E,) global rows from which on actions are not the task's, and whether the last one before them goes on.
        self.done = table.step_start[1:].copy()
        self.held = np.zeros(len(table), dtype=bool)
        if config.past_success == "hold":
            for episode in range(len(table)):
                success = table.header(episode).meta.get("success_step")
                if success:
                    self.done[episode] = min(self.done[episode], table.step_start[episode] + success)
                    self.held[episode] = True
        self._read_landmarks(state)

    def _state(self) -> dict[str, np.ndarray]:
        """Return the observed arrays (N, ...) that every episode has."""
        state: dict[str, np.ndarray] = {}
        for name in self.robot.observed:
            required = self.robot.arrays[name].required
            values = self.table.array(name) if required else self.table.optional_array(name)
            if values is not None:
                state[name] = values
        return state

    def _read_landmarks(self, state: dict[str, np.ndarray]) -> None:
        self.landmarks: torch.Tensor | None = None
        self.landmark_mask: torch.Tensor | None = None
        self.offsets: torch.Tensor | None = None
        table = self.table
        pixels = table.optional_array("landmark_pixels")
        if pixels is None:
            return
        sizes = table.static_size[:, ::-1].astype(np.float32)
        pixels = pixels[table.step_of_image] * 2.0 / sizes[table.episode_of_image][:, None] - 1.0
        known = np.isfinite(pixels).all(axis=-1)
        self.landmarks = torch.from_numpy(np.where(known[..., None], pixels, 0.0).astype(np.float32))
        self.landmark_mask = torch.from_numpy(known)
        places = table.optional_array("landmarks")
        if places is not None:
            shown = {name: values[table.step_of_image] for name, values in (state | {"landmarks": places}).items()}
            self.offsets = torch.from_numpy(self.robot.landmark_offsets(shown).astype(np.float32))

    def anchors(self, episodes: np.ndarray) -> np.ndarray:
        """Return the frames of `episodes` that can end a window: all, or those before success; see `past_success`."""
        rows = np.flatnonzero(np.isin(self.table.episode_of_image, episodes))
        return rows[self.table.step_of_image[rows] < self.done[self.table.episode_of_image[rows]]]

    def segment_anchors(self, segments: Segments, which: np.ndarray) -> np.ndarray:
        """Return the (S n,) anchors of the windows of some segments, clipped to their episodes."""
        last = segments.last[which]
        episode = self.table.episode_of_image[last]
        back = self.table.steps_back(episode[:, None], np.arange(segments.windows - 1, -1, -1))
        steps = self.table.step_of_image[last][:, None] - back
        return self.table.image_of_step[np.maximum(steps, self.table.step_start[episode][:, None])].reshape(-1)

    def segment_batch(self, segments: Segments, which: np.ndarray) -> RobotBatch:
        """Return the windows of some segments, with the frames that they share given once (`RobotBatch.segments`).

        Args:
            which: (S,) rows of `segments`. Windows of theirs that do not count are masked.
        """
        table, config, count = self.table, self.config, segments.windows
        out = self.batch(self.segment_anchors(segments, which), images=False)
        last = segments.last[which]
        episode = table.episode_of_image[last]
        first, end = table.step_start[episode][:, None], table.step_start[episode + 1][:, None]
        newest = table.step_of_image[last][:, None]
        window = np.arange(count)
        counts = (window >= segments.live[which, :1]) & (window < segments.live[which, 1:])
        live = torch.from_numpy(counts.reshape(-1))
        for name in ("frame_mask", "action_mask", "next_mask", "next_image_mask", "landmark_mask"):
            if name in out:
                out[name] = out[name] & live.view(-1, *[1] * (out[name].dim() - 1))
        read = count + config.history - 1
        horizon = config.image_horizon if self.predicted else 0
        past = table.steps_back(episode[:, None], np.arange(read - 1, -1, -1))
        future = table.steps_ahead(episode[:, None], np.arange(1, horizon + 1))
        steps = newest + np.concatenate([-past, future], axis=1)
        rows = table.image_of_step[np.clip(steps, first, end - 1)]
        shared: dict[str, torch.Tensor] = {}
        # Of images the same run holds what is observed and what is predicted; beside features only the latter.
        for role, source in self.frames.items():
            observed = rows[:, :read] if source.features else rows
            shared[batch_key(role, source)] = torch.from_numpy(source.take(observed))
        for role, source in self.predicted.items():
            if role not in shared:
                shared[role] = torch.from_numpy(source.take(rows[:, -read:]))
        out["segments"] = shared
        return out

    def batch(self, anchors: np.ndarray, images: bool = True) -> RobotBatch:
        """Return the windows that end at `anchors`; with `images` their frames, or features of them."""
        table, config = self.table, self.config
        rows, mask = table.window_frames(anchors, config.history)
        episode = table.episode_of_image[anchors]
        end = table.step_start[episode + 1][:, None]
        steps = table.step_of_image[rows]
        chunk = steps[:, :, None] + np.arange(self.chunk)
        following = steps + table.steps_ahead(episode)[:, None]
        text, text_mask = self.text.take(table.sentence[episode])
        at = torch.from_numpy(steps)
        out: RobotBatch = {
            "text": text,
            "text_mask": text_mask,
            "state": self.state[at],
            "components": self.components[at],
            "frame_mask": torch.from_numpy(mask),
            "actions": self.actions[torch.from_numpy(np.minimum(chunk, self.done[episode][:, None, None] - 1))],
            "action_mask": torch.from_numpy(
                ((chunk < end[:, :, None]) | self.held[episode][:, None, None]) & mask[:, :, None]
            ),
            "next_components": self.components[torch.from_numpy(np.minimum(following, end - 1))],
            "next_mask": torch.from_numpy((following < end) & mask),
            "clips": None,
        }
        if images:
            for role, source in self.frames.items():
                out[batch_key(role, source)] = torch.from_numpy(source.take(rows))
        if self.predicted:
            wanted = steps + table.steps_ahead(episode, config.image_horizon)[:, None]
            later = table.image_of_step[np.minimum(wanted, end - 1)]
            if images:
                for role, source in self.predicted.items():
                    out[f"next_{role}"] = torch.from_numpy(source.take(later))
            out["next_image_mask"] = torch.from_numpy((table.step_of_image[later] == wanted) & mask)
        if self.landmarks is not None and self.landmark_mask is not None:
            out["landmark_pixels"] = self.landmarks[torch.from_numpy(rows)]
            out["landmark_mask"] = self.landmark_mask[torch.from_numpy(rows)]
        if self.offsets is not None:
            out["landmark_offsets"] = self.offsets[torch.from_numpy(rows)]
        return out


def _the_same(table: EpisodeTable, robot: Robot | None) -> Robot:
    """Return the robot by which to encode the table's episodes."""
    if table.robot is None:
        raise ValueError("the table holds human clips; give one of robot episodes")
    if robot is not None and robot.name != table.robot.name:
        raise UserError(
            f"{table.stores[0].path}: holds episodes of {table.robot.name}, the network is for {robot.name}; give "
            f"stores of {robot.name}, or train anew"
        )
    if robot is not None and (other := difference(table.robot, robot)):
        raise UserError(f"{table.stores[0].path}: has robot {robot.name} with other {other}; give stores of one robot")
    return robot or table.robot
