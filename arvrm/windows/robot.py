"""Robot episodes as batches."""

from __future__ import annotations

import numpy as np
import torch

from arvrm.interface import LANDMARK_UNIT_M, RobotBatch
from arvrm.robots import CALVIN
from arvrm.windows.config import WindowConfig
from arvrm.windows.frames import FrameBank, StoreFrames
from arvrm.windows.segments import Segments
from arvrm.windows.table import EpisodeTable
from arvrm.windows.text import LazyText, TextTable


class RobotWindows:
    """Robot episodes as `RobotBatch`es (without `clips`).

    Args:
        static, gripper: images or frozen features by image row; `features` says which.
        next_images: give the frames `image_ahead` strides later too, for the image-prediction head.
        ahead: banks of images from which those are taken where `static` and `gripper` hold features.
    """

    def __init__(
        self,
        table: EpisodeTable,
        config: WindowConfig,
        text: TextTable | LazyText,
        static: FrameBank | StoreFrames,
        gripper: FrameBank | StoreFrames | None,
        features: bool = False,
        next_images: bool = False,
        ahead: tuple[FrameBank | StoreFrames, FrameBank | StoreFrames] | None = None,
    ) -> None:
        if next_images and features and ahead is None:
            raise ValueError("frames to foresee are images, and the banks hold features; give `ahead`")
        self.next_images = next_images
        banks = zip(("static", "gripper"), ahead or (static, gripper), strict=True)
        self.ahead = {name: bank for name, bank in banks if bank is not None}
        self.table, self.config, self.text = table, config, text
        self.static, self.gripper, self.features = static, gripper, features
        robot_obs = table.array("robot_obs")
        target = table.array("target_pose", optional=True)
        state = {"robot_obs": robot_obs} | ({} if target is None else {"target_pose": target})
        self.state = torch.from_numpy(CALVIN.encode_state(state))
        self.components = torch.from_numpy(CALVIN.encode_components(state))
        self.actions = torch.from_numpy(table.array("actions"))
        # (E,) global rows from which on actions are not the task's, and whether the last one before them goes on.
        self.done = table.step_start[1:].copy()
        self.held = np.zeros(len(table), dtype=bool)
        if config.past_success == "hold":
            for episode in range(len(table)):
                success = table.header(episode).meta.get("success_step")
                if success:
                    self.done[episode] = min(self.done[episode], table.step_start[episode] + success)
                    self.held[episode] = True
        self.landmarks = self.landmark_mask = None
        pixels = table.array("landmark_pixels", optional=True)
        if pixels is not None:
            sizes = np.array([self._static_size(episode) for episode in range(len(table))], dtype=np.float32)
            pixels = pixels[table.step_of_image] * 2.0 / sizes[table.episode_of_image][:, None] - 1.0
            known = np.isfinite(pixels).all(axis=-1)
            self.landmarks = torch.from_numpy(np.where(known[..., None], pixels, 0.0).astype(np.float32))
            self.landmark_mask = torch.from_numpy(known)
        self.offsets = None
        places = table.array("landmarks", optional=True)
        if places is not None and pixels is not None:
            offsets = (places - robot_obs[:, None, :3])[table.step_of_image] / LANDMARK_UNIT_M
            self.offsets = torch.from_numpy(offsets.astype(np.float32))

    def _static_size(self, episode: int) -> tuple[int, int]:
        height, width = self.table.static_size[episode].tolist()
        return width, height

    def anchors(self, episodes: np.ndarray) -> np.ndarray:
        """Return the frames of `episodes` that can end a window: all, or those before success; see `past_success`."""
        rows = np.flatnonzero(np.isin(self.table.episode_of_image, episodes))
        return rows[self.table.step_of_image[rows] < self.done[self.table.episode_of_image[rows]]]

    def segment_anchors(self, segments: Segments, which: np.ndarray) -> np.ndarray:
        """Return the (S n,) anchors of the windows of some segments, clipped to their episodes."""
        last = segments.last[which]
        episode = self.table.episode_of_image[last]
        back = np.arange(segments.windows - 1, -1, -1) * self.table.frame_stride[episode][:, None]
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
        stride = table.frame_stride[episode][:, None]
        first, end = table.step_start[episode][:, None], table.step_start[episode + 1][:, None]
        newest = table.step_of_image[last][:, None]
        window = np.arange(count)
        counts = (window >= segments.live[which, :1]) & (window < segments.live[which, 1:])
        live = torch.from_numpy(counts.reshape(-1))
        for name in ("frame_mask", "action_mask", "next_mask", "next_image_mask", "landmark_mask"):
            if name in out:
                out[name] = out[name] & live.view(-1, *[1] * (out[name].dim() - 1))
        read = count + config.history - 1
        ahead = config.image_ahead if self.next_images else 0
        steps = newest + np.arange(1 - read, ahead + 1) * stride
        rows = table.image_of_step[np.clip(steps, first, end - 1)]
        out["segments"] = {}
        for name, bank in (("static", self.static), ("gripper", self.gripper)):
            if bank is None:
                continue
            if self.features:
                out["segments"][f"{name}_features"] = torch.from_numpy(bank.take(rows[:, :read]))
                if self.next_images:
                    out["segments"][name] = torch.from_numpy(self.ahead[name].take(rows[:, -read:]))
            else:
                out["segments"][name] = torch.from_numpy(bank.take(rows))
        return out

    def batch(self, anchors: np.ndarray, images: bool = True) -> RobotBatch:
        """Return the windows that end at `anchors`; with `images` their frames, or features of them."""
        table, config = self.table, self.config
        rows, mask = table.window_frames(anchors, config.history)
        episode = table.episode_of_image[anchors]
        end = table.step_start[episode + 1][:, None]
        steps = table.step_of_image[rows]
        chunk = steps[:, :, None] + np.arange(config.chunk)
        following = steps + table.frame_stride[episode][:, None]
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
        for name, bank in (("static", self.static), ("gripper", self.gripper)):
            if bank is not None and images:
                out[f"{name}_features" if self.features else name] = torch.from_numpy(bank.take(rows))
        if self.next_images:
            seen = steps + config.image_ahead * table.frame_stride[episode][:, None]
            later = table.image_of_step[np.minimum(seen, end - 1)]
            if images:
                out |= {f"next_{name}": torch.from_numpy(bank.take(later)) for name, bank in self.ahead.items()}
            out["next_image_mask"] = torch.from_numpy((table.step_of_image[later] == seen) & mask)
        if self.landmarks is not None:
            out["landmark_pixels"] = self.landmarks[torch.from_numpy(rows)]
            out["landmark_mask"] = self.landmark_mask[torch.from_numpy(rows)]
        if self.offsets is not None:
            out["landmark_offsets"] = self.offsets[torch.from_numpy(rows)]
        return out
