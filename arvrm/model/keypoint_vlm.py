"""Stage 1: a vision-language model that predicts hand keypoints (docs/method.md)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arvrm.interface import HumanBatch, UserError
from arvrm.model.config import ModelConfig
from arvrm.model.conv import ConvEncoder
from arvrm.model.heatmaps import centres
from arvrm.model.joints import JointEncoder
from arvrm.model.layout import Window, asked, hand_layout
from arvrm.model.objectives import OF_HANDS, HandStep
from arvrm.model.parts import parts_of
from arvrm.model.pixels import fit_images, jitter_colours
from arvrm.model.places import PlaceNet
from arvrm.model.transformer import PerceiverResampler, expect, expect_frames, mlp, sequence_mask, start_at_zero
from arvrm.model.vit import VitEncoder

_DECAY, _MOTIONS = 0.8, 3
"""What is left of a hand's velocity after a frame, and the last motions that are read of it."""


class ImageTokens(nn.Module):
    """One camera's way into the transformer: M patch latents, then the CLS token, each d wide."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.patch = nn.Linear(features, width)
        self.cls = nn.Linear(features, width)

    def forward(self, features: Tensor, resampler: PerceiverResampler) -> Tensor:
        """Return (B, T, M + 1, d) for encoder features (B, T, 1 + P, D)."""
        batch, frames = features.shape[:2]
        features = features.flatten(0, 1)
        latents = self.patch(resampler(features[:, 1:]))
        cls = self.cls(features[:, :1])
        return torch.cat([latents, cls], dim=1).unflatten(0, (batch, frames))


class CameraImages(NamedTuple):
    """What one camera shows, encoded.

    Attributes:
        features: (B, T, 1 + P, D), the encoder's.
        heatmaps: (B, T, h, w, points), or None: only the conv encoder has them.
        offset: (B, 2) random shift in u, v.
        pixels: (B, F, size, size, 3) uint8, the images as the encoder got them, shifted and recoloured alike; frames
            that were not encoded included. None where features came in their place.
    """

    features: Tensor
    heatmaps: Tensor | None
    offset: Tensor
    pixels: Tensor | None


class KeypointVLM(nn.Module):
    """Reads language, then per frame keypoints and image, and predicts the keypoints of the frames after it.

    Holds everything that stage 2 shares. Tokens of a frame are those of `layout.hand_layout`.
    """

    kind = "keypoint_vlm"
    robot = None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.parts = parts_of(config)
        self.layout = hand_layout(config.latents)
        width = config.width
        self.text = self.parts.text()
        self.static_encoder = self.parts.image_encoder(config.vision.static_size)
        self.resampler = self.parts.resampler(self.static_encoder.width)
        self.static_tokens = ImageTokens(self.static_encoder.width, width)
        self.joints = JointEncoder(config)
        joints = config.keypoints * config.joint_width
        self.keypoint_token = mlp(joints, width, width)
        self.time = nn.Parameter(0.02 * torch.randn(config.max_frames, width))
        self.next_query = nn.Parameter(0.02 * torch.randn(width))
        self.transformer = self.parts.transformer()
        self.keypoint_head = mlp(width, width, 3 * config.keypoints * config.horizon)
        self.destination = mlp(4, width, width) if config.loss.destination > 0 else None
        # Starts at "the hand stays where it is" (or, without the residual, at the middle of the image).
        start_at_zero(self.keypoint_head[-1])
        if config.horizon > 1 and config.predict_residual and config.residual_from == "velocity":
            # How many times its last motions, newest first, a hand goes on to move in 1, 2 .. n frames.
            sums = (1 - _DECAY ** torch.arange(1, config.horizon + 1)) / (1 - _DECAY)
            self.carry = nn.Parameter(F.pad(sums[:, None], (0, _MOTIONS - 1)))
        # The last, so that all else begins as it does without.
        self.places = PlaceNet(config.places, config.text) if config.places.enabled else None

    def image_encoder(self, role: str) -> ConvEncoder | VitEncoder:
        """Return the static camera's encoder: clips of hands have no other."""
        if role != "static":
            raise ValueError(f"a network of hands sees by the static camera alone, not by {role!r}")
        return self.static_encoder

    def hands(self) -> tuple[nn.Module, str]:
        """Return itself: stage 1 trains all of it."""
        return self, ""

    def self_contained(self) -> ModelConfig:
        """Return its configuration with the ViT's own inside, so that loading needs no other directory."""
        if not isinstance(self.static_encoder, VitEncoder):
            return self.config
        vision = dataclasses.replace(self.config.vision, backbone=self.static_encoder.backbone())
        return dataclasses.replace(self.config, vision=vision)

    def language(self, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return z_l (B, d)."""
        expect("text", text, "B", "L", self.config.text.width)
        expect("text_mask", text_mask, *text.shape[:2])
        return self.text(text, text_mask)

    def encode_camera(
        self,
        batch: Mapping[str, Any],
        role: str,
        encoder: ConvEncoder | VitEncoder,
        size: int,
        shift: float,
        z_l: Tensor,
        encoded: int | None = None,
    ) -> CameraImages:
        """Encode `batch[role]`, or take `batch[role + "_features"]`.

        Args:
            size, shift: of `fit_images`.
            z_l: (B, d), for encoders that words modulate.
            encoded: frames to encode, the first ones; None: all.
        """
        vision, cached = self.config.vision, batch.get(f"{role}_features")
        if cached is not None:
            if not vision.frozen or vision.modulated:
                raise UserError(f"{role}_features: cached features need vision.frozen; give images, or freeze it")
            expect(f"{role}_features", cached, "B", "T", 1 + encoder.patches, encoder.width)
            return CameraImages(cached.to(z_l.dtype), None, torch.zeros(len(cached), 2, device=cached.device), None)
        expect(role, batch.get(role), len(z_l), "T", "H", "W", 3)
        images: Tensor = batch[role]
        if images.dtype != torch.uint8:
            raise UserError(f"{role}: expected uint8 images, got {images.dtype}; leave scaling to the model")
        shape = images.shape[:2]
        images, offset = fit_images(images, size, shift if self.training else 0.0)
        if self.training:
            images = jitter_colours(images, shape[0], vision.colour_jitter)
        pixels = images.unflatten(0, shape)
        count = shape[1] if encoded is None else encoded
        words = z_l.repeat_interleave(count, 0) if vision.by_words else None
        # Words reach a frozen ViT through layers that are trained, so gradients must pass it.
        trained = vision.modulated or not vision.frozen
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            features, heatmaps = encoder(pixels[:, :count].flatten(0, 1), words)
        shape = (shape[0], count)
        heatmaps = None if heatmaps is None else heatmaps.unflatten(0, shape)
        return CameraImages(features.unflatten(0, shape), heatmaps, offset, pixels)

    def encode_static(self, batch: Mapping[str, Any], z_l: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return the static camera's tokens (B, T, M + 1, d), its heatmaps or None, and the random shift (B, 2)."""
        vision = self.config.vision
        images = self.encode_camera(batch, "static", self.static_encoder, vision.static_size, vision.shift_static, z_l)
        return self.static_tokens(images.features, self.resampler), images.heatmaps, images.offset

    def transform(self, window: Window, time_of: nn.Module | None = None) -> Tensor:
        """Run the transformer; return (B, Q, d), the queries' outputs.

        Args:
            window: without time.
            time_of: the network whose window it is; None: this one.
        """
        frames = window.tokens.shape[1]
        if frames > self.config.max_frames:
            raise UserError(f"frame_mask: windows have {frames} frames, max_frames is {self.config.max_frames}")
        window = self.parts.place_in_time(window, self.time, self if time_of is None else time_of)
        queries = window.queries.expand(len(window.tokens), -1, -1).to(window.tokens.dtype)
        mask = sequence_mask(window.token_mask, window.query_frames, self.config.attention)
        return self.transformer(window.tokens.flatten(1, 2), queries, mask, window.added)

    def keypoint_features(self, keypoints: Tensor, visible: Tensor, frame_mask: Tensor) -> Tensor:
        """Return f_k (B, T, K, d_k)."""
        frames = frame_mask.shape[1]
        expect("keypoints", keypoints, len(frame_mask), frames, self.config.keypoints, 3)
        expect("visible", visible, len(frame_mask), frames, self.config.keypoints)
        return self.joints(keypoints, visible & frame_mask[..., None])

    def next_poses(
        self,
        z_l: Tensor,
        static: Tensor,
        keypoints: Tensor,
        visible: Tensor,
        frame_mask: Tensor,
        destination: Tensor | None = None,
        last: bool = False,
    ) -> Tensor:
        """Predict, at each frame, the keypoints of the `horizon` frames after it.

        Args:
            z_l: (B, d).
            static: (B, T, M + 1, d).
            keypoints, visible, frame_mask: as in `HumanBatch`.
            destination: (B, T, 2), with `loss.destination`: where the image says that the hand will be.
            last: only at the last frame.

        Returns:
            (B, T, n, K, 3), normalised as the input; with `last` (B, 1, n, K, 3).
        """
        observed = visible & frame_mask[..., None]
        f_k = self.keypoint_features(keypoints, visible, frame_mask)
        z_k = self.keypoint_token(f_k.flatten(2))[:, :, None]
        first, frames = frame_mask.shape[1] - 1 if last else 0, frame_mask.shape[1]
        query = asked([("pose", self.next_query[None], range(first, frames))], z_l.device)
        queries = query.tokens
        if destination is not None:
            # Places reach the query directly, as `loss.geometry`'s reach the policy's: tokens and attention lose them.
            assert self.destination is not None
            way = destination - last_seen(keypoints, observed)[..., 0, :2]
            queries = queries + self.destination(torch.cat([destination, way], dim=-1)[:, first:])
        words = z_l[:, None, None, :].expand(-1, frames, -1, -1)
        tokens = self.layout.assemble({"language": words, "keypoints": z_k, "static": static})
        mask = frame_mask[..., None].expand(-1, -1, self.layout.size)
        out = self.transform(Window(tokens, mask, queries, query.frames, query.slices, self.layout))
        poses = self.keypoint_head(out).unflatten(-1, (self.config.horizon, self.config.keypoints, 3)).float()
        if self.config.predict_residual:
            poses = poses + last_seen(keypoints, observed)[:, first:, None]
            if self.config.residual_from == "velocity":
                poses = self._carried_on(poses, last_motion(keypoints, observed), first)
        return poses

    def _carried_on(self, poses: Tensor, motion: Tensor, first: int) -> Tensor:
        """Return poses (B, F, n, K, 3) of the frames from `first` on, moved on as joints moved: motion (B, T, K, 3)."""
        if self.config.horizon == 1:
            return poses + motion[:, first:, None]
        for i in range(_MOTIONS):
            before = F.pad(motion, (0, 0, 0, 0, i, 0))[:, first : motion.shape[1], None]
            poses = poses + self.carry[:, i, None, None] * before
        return poses

    def forward(self, batch: HumanBatch) -> dict[str, Tensor]:
        """Predict each frame's keypoints from the frames before it.

        Returns:
            loss: mean squared error over the coordinates of visible keypoints (or their mean distance, see
                `loss.keypoints`), of all frames that follow an unmasked one by 1 .. `horizon`, j frames ahead with a
                weight of 1/j: those of the window, `next_keypoints` and, in their place where `horizon` is above 1,
                `future_keypoints`. 0 where there is none.
            keypoints_predicted: (B, T, K, 3), at t the prediction of frame t from l, o_1, k_1 .. o_t-1, k_t-1; at 0,
                where only words came before, zeros that count for nothing.
            next_keypoints_predicted: (B, K, 3), of the frame after the last.
        """
        frame_mask = batch["frame_mask"]
        expect_frames(batch, "static")
        z_l = self.language(batch["text"], batch["text_mask"])
        static, heatmaps, offset = self.encode_static(batch, z_l)
        # What moves the image moves the hand in it.
        move = F.pad(offset, (0, 1))
        expect("keypoints", batch["keypoints"], *frame_mask.shape, self.config.keypoints, 3)
        keypoints = batch["keypoints"] + move[:, None, None]
        heatmaps, destination = self._destination(heatmaps)
        predicted = self.next_poses(z_l, static, keypoints, batch["visible"], frame_mask, destination)
        truth, known = self._truth(batch, keypoints, move)
        step = HandStep(self, batch, predicted, truth, known, heatmaps)
        terms = [one.weight(self.config) * one.value(step) for one in OF_HANDS if one.applies(self, batch)]
        loss = functools.reduce(Tensor.add, terms)
        shown = F.pad(predicted[:, :-1, 0] - move[:, None, None], (0, 0, 0, 0, 1, 0))
        return {
            "loss": loss,
            "keypoints_predicted": shown,
            "next_keypoints_predicted": predicted[:, -1, 0] - move[:, None],
        }

    def _truth(self, batch: HumanBatch, keypoints: Tensor, move: Tensor) -> tuple[Tensor, Tensor]:
        """Return the poses of the window and after it, (B, T + N, K, 3), moved like the images, and which are known."""
        frame_mask, future, following = batch["frame_mask"], batch.get("future_keypoints"), batch.get("next_keypoints")
        truth, known = [keypoints], [batch["visible"] & frame_mask[..., None]]
        if future is not None and self.config.horizon > 1:
            expect("future_keypoints", future, len(frame_mask), "N", self.config.keypoints, 3)
            expect("future_visible", batch.get("future_visible"), *future.shape[:3])
            truth.append(future + move[:, None, None])
            known.append(batch["future_visible"])
        elif following is not None:
            expect("next_keypoints", following, len(frame_mask), self.config.keypoints, 3)
            expect("next_visible", batch["next_visible"], len(frame_mask), self.config.keypoints)
            truth.append((following + move[:, None])[:, None])
            known.append(batch["next_visible"][:, None])
        return torch.cat(truth, dim=1), torch.cat(known, dim=1)

    def _destination(self, heatmaps: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return, with `loss.destination`, the encoder's last heatmap (B, T, h, w, 1) and its centre (B, T, 2)."""
        if self.destination is None:
            return None, None
        if heatmaps is None:
            raise UserError("loss.destination: cached features have no heatmaps; give images, or set it to 0")
        return heatmaps[..., -1:], centres(heatmaps[..., -1:])[..., 0, :]

    @torch.no_grad()
    def predict_next(self, batch: HumanBatch, steps: int) -> Tensor:
        """Predict the hand `steps` frames beyond the window: `horizon` at once, then on from these.

        The images of those frames are not known: the last one is shown again. Windows slide at `max_frames`.

        Returns:
            (B, steps, K, 3), normalised as the input.
        """
        if steps < 1:
            raise UserError(f"steps: got {steps}; give at least 1")
        keypoints, visible, frame_mask = batch["keypoints"], batch["visible"], batch["frame_mask"]
        z_l = self.language(batch["text"], batch["text_mask"])
        static, heatmaps, offset = self.encode_static(batch, z_l)
        _, destination = self._destination(heatmaps)
        move = F.pad(offset, (0, 1))[:, None, None]
        keypoints = keypoints + move
        poses, keep, new = [], slice(-self.config.max_frames, None), self.config.horizon
        for _ in range(-(-steps // new)):
            if poses:
                # A joint that was never seen has no pose to go on from.
                known = (visible & frame_mask[..., None]).any(1, keepdim=True)
                keypoints = torch.cat([keypoints, poses[-1]], dim=1)[:, keep]
                visible = torch.cat([visible, known.expand(-1, new, -1)], dim=1)[:, keep]
                static = torch.cat([static, static[:, -1:].expand(-1, new, -1, -1)], dim=1)[:, keep]
                if destination is not None:
                    destination = torch.cat([destination, destination[:, -1:].expand(-1, new, -1)], dim=1)[:, keep]
                frame_mask = F.pad(frame_mask, (0, new), value=True)[:, keep]
            poses.append(self.next_poses(z_l, static, keypoints, visible, frame_mask, destination, last=True)[:, 0])
        return torch.cat(poses, dim=1)[:, :steps] - move


def last_seen(keypoints: Tensor, observed: Tensor) -> Tensor:
    """Return (B, T, K, 3): each joint where it was last seen up to that frame, zeros where never."""
    index = torch.arange(observed.shape[1], device=observed.device)[:, None]
    latest = index.expand_as(observed).masked_fill(~observed, -1).cummax(dim=1).values
    held = keypoints.gather(1, latest.clamp(min=0)[..., None].expand_as(keypoints))
    return torch.where((latest >= 0)[..., None], held, torch.zeros_like(held))


def last_motion(keypoints: Tensor, observed: Tensor) -> Tensor:
    """Return (B, T, K, 3): how each joint moved since the frame before, zeros where it was not seen in both."""
    motion = torch.zeros_like(keypoints)
    both = (observed[:, 1:] & observed[:, :-1])[..., None]
    step = keypoints[:, 1:] - keypoints[:, :-1]
    motion[:, 1:] = torch.where(both, step, torch.zeros_like(step))
    return motion
