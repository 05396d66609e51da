"""Stage 1: a vision-language model that foresees hand keypoints (docs/method.md)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arvrm.interface import HumanBatch, UserError
from arvrm.model.config import ModelConfig
from arvrm.model.conv import ConvEncoder
from arvrm.model.heatmaps import centres, splat_cross_entropy
from arvrm.model.image_encoder import image_encoder
from arvrm.model.joints import JointEncoder
from arvrm.model.pixels import fit_images, jitter_colours
from arvrm.model.split_batch import divisor
from arvrm.model.text import TextPool
from arvrm.model.transformer import PerceiverResampler, Transformer, expect, expect_frames, mlp, sequence_mask
from arvrm.model.vit import VitEncoder

_SLOWING, _MOTIONS = 0.8, 3
_NEAR = 1e-3
"""An error (normalised) below which the distance is rounded off: a tenth of a pixel of 224."""


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


class Seen(NamedTuple):
    """What one camera shows.

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
    """Reads language, then per frame keypoints and image, and predicts the next frame's keypoints.

    Holds everything that stage 2 shares. Tokens of a frame, in order: language, keypoints, M patch latents, CLS; after
    the frames' context a query per frame, hidden from all other tokens, whose output is z^_k of the frame after.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width, vision = config.width, config.vision
        self.text = TextPool(config.text, width)
        self.static_encoder = image_encoder(vision, vision.static_size, width)
        features = self.static_encoder.width
        self.resampler = PerceiverResampler(
            features,
            config.latents,
            config.resampler_layers,
            config.resampler_heads,
            config.resampler_head_width,
            config.resampler_position,
        )
        self.static_tokens = ImageTokens(features, width)
        self.joints = JointEncoder(config)
        joints = config.keypoints * config.joint_width
        self.keypoint_token = mlp(joints, width, width)
        self.time = nn.Parameter(0.02 * torch.randn(config.max_frames, width))
        self.next_query = nn.Parameter(0.02 * torch.randn(width))
        self.transformer = Transformer(width, config.layers, config.heads, config.activation, config.dropout)
        self.keypoint_head = mlp(width, width, 3 * config.keypoints * config.foresee)
        self.destination = mlp(4, width, width) if config.loss.destination > 0 else None
        # Starts at "the hand stays where it is" (or, without the residual, at the middle of the image).
        nn.init.zeros_(self.keypoint_head[-1].weight)
        nn.init.zeros_(self.keypoint_head[-1].bias)
        if config.foresee > 1 and config.predict_residual and config.residual_from == "velocity":
            # How many times its last motions, newest first, a hand goes on to move in 1, 2 .. n frames; it slows down.
            slower = (1 - _SLOWING ** torch.arange(1, config.foresee + 1)) / (1 - _SLOWING)
            self.carry = nn.Parameter(F.pad(slower[:, None], (0, _MOTIONS - 1)))

    kind = "keypoint_vlm"
    robot = None

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

    def look(
        self,
        batch: dict,
        camera: str,
        encoder: ConvEncoder | VitEncoder,
        size: int,
        shift: float,
        z_l: Tensor,
        encoded: int | None = None,
    ) -> Seen:
        """Encode `batch[camera]`, or take `batch[camera + "_features"]`.

        Args:
            size, shift: of `fit_images`.
            z_l: (B, d), for encoders that words modulate.
            encoded: frames to encode, the first ones; None: all.
        """
        cached = batch.get(f"{camera}_features")
        if cached is not None:
            if not self.config.vision.frozen or self.config.vision.modulated:
                raise UserError(f"{camera}_features: cached features need vision.frozen; give images, or freeze it")
            expect(f"{camera}_features", cached, "B", "T", 1 + encoder.patches, encoder.width)
            return Seen(cached.to(z_l.dtype), None, torch.zeros(len(cached), 2, device=cached.device), None)
        images = batch.get(camera)
        expect(camera, images, len(z_l), "T", "H", "W", 3)
        if images.dtype != torch.uint8:
            raise UserError(f"{camera}: expected uint8 images, got {images.dtype}; leave scaling to the model")
        shape = images.shape[:2]
        images, offset = fit_images(images, size, shift if self.training else 0.0)
        if self.training:
            images = jitter_colours(images, shape[0], self.config.vision.colour_jitter)
        pixels = images.unflatten(0, shape)
        count = shape[1] if encoded is None else encoded
        by_words = self.config.vision.film or self.config.vision.modulated
        words = z_l.repeat_interleave(count, 0) if by_words else None
        # Words reach a frozen ViT through layers that are trained, so gradients must pass it.
        trained = self.config.vision.modulated or not self.config.vision.frozen
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            features, heatmaps = encoder(pixels[:, :count].flatten(0, 1), words)
        shape = (shape[0], count)
        heatmaps = None if heatmaps is None else heatmaps.unflatten(0, shape)
        return Seen(features.unflatten(0, shape), heatmaps, offset, pixels)

    def look_static(self, batch: dict, z_l: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """`look` through the static camera, with tokens (B, T, M + 1, d) in place of features."""
        vision = self.config.vision
        seen = self.look(batch, "static", self.static_encoder, vision.static_size, vision.shift_static, z_l)
        return self.static_tokens(seen.features, self.resampler), seen.heatmaps, seen.offset

    def sequence(
        self,
        z_l: Tensor,
        frames: list[Tensor],
        queries: Tensor,
        query_frames: Tensor,
        token_mask: Tensor,
        positions: tuple[Tensor, Tensor, int] | None = None,
        untimed: tuple[int, int] = (0, 0),
    ) -> Tensor:
        """Run the transformer.

        Args:
            z_l: (B, d).
            frames: tokens (B, T, n_i, d) that follow the language token in each frame, in order.
            queries: (B or 1, Q, d), without time embedding.
            query_frames: (Q,) int64, the frame each query belongs to.
            token_mask: (B, T) or (B, T, 1 + sum n_i) bool.
            positions: a position embedding (rows, d), each query's place in its frame (Q,), places in a frame.
            untimed: places in a frame, from and to, of tokens that do not carry its time.

        Returns:
            (B, Q, d).
        """
        batch, count = frames[0].shape[:2]
        if count > self.config.max_frames:
            raise UserError(f"frame_mask: windows have {count} frames, max_frames is {self.config.max_frames}")
        words = z_l[:, None, None, :].expand(-1, count, -1, -1)
        tokens = torch.cat([words, *(f.to(words.dtype) for f in frames)], dim=2)
        rank = torch.arange(count, device=z_l.device)[None]
        if self.config.time_from == "first":
            real = token_mask if token_mask.dim() == 2 else token_mask[..., 0]
            rank = (rank - (~real).long().cumprod(1).sum(1, keepdim=True)).clamp(min=0)
            time = self.time[rank]
        else:
            time = self.time[None, :count]
        if untimed[0] < untimed[1]:
            place = torch.arange(tokens.shape[2], device=z_l.device)[:, None]
            tokens = tokens + time[:, :, None] * ((place < untimed[0]) | (place >= untimed[1]))
        else:
            tokens = tokens + time[:, :, None]
        if token_mask.dim() == 2:
            token_mask = token_mask[..., None].expand(-1, -1, tokens.shape[2])
        if self.config.language_tokens == "first":
            token_mask = token_mask.clone()
            token_mask[:, :, 0] = False
            token_mask[:, 0, 0] = True
        if self.config.query_time:
            queries = queries + time[:, query_frames]
        queries = queries.expand(batch, -1, -1).to(tokens.dtype)
        mask = sequence_mask(token_mask, query_frames, self.config.attention)
        added = None
        if positions is not None:
            table, places, stride = positions
            inside = torch.arange(tokens.shape[2], device=z_l.device)
            rows = [(rank[..., None] * stride + inside).flatten(1), rank[:, query_frames] * stride + places]
            added = table[torch.cat(rows, dim=1)]
        return self.transformer(tokens.flatten(1, 2), queries, mask, added)

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
        """Predict, at each frame, the keypoints of the `foresee` frames after it.

        Args:
            z_l: (B, d).
            static: (B, T, M + 1, d).
            keypoints, visible, frame_mask: as in `HumanBatch`.
            destination: (B, T, 2), with `loss.destination`: where the image says that the hand will be.
            last: only at the last frame.

        Returns:
            (B, T, n, K, 3), normalised as the input; with `last` (B, 1, n, K, 3).
        """
        seen = visible & frame_mask[..., None]
        f_k = self.keypoint_features(keypoints, visible, frame_mask)
        z_k = self.keypoint_token(f_k.flatten(2))[:, :, None]
        first = frame_mask.shape[1] - 1 if last else 0
        query_frames = torch.arange(first, frame_mask.shape[1], device=z_l.device)
        queries = self.next_query.expand(1, len(query_frames), -1)
        if destination is not None:
            # Places reach the query directly, as `loss.geometry`'s reach the policy's: tokens and attention lose them.
            way = destination - last_seen(keypoints, seen)[..., 0, :2]
            queries = queries + self.destination(torch.cat([destination, way], dim=-1)[:, first:])
        out = self.sequence(z_l, [z_k, static], queries, query_frames, frame_mask)
        poses = self.keypoint_head(out).unflatten(-1, (self.config.foresee, self.config.keypoints, 3)).float()
        if self.config.predict_residual:
            poses = poses + last_seen(keypoints, seen)[:, first:, None]
            if self.config.residual_from == "velocity":
                motion = last_motion(keypoints, seen)
                if self.config.foresee > 1:
                    for i in range(_MOTIONS):
                        before = F.pad(motion, (0, 0, 0, 0, i, 0))[:, first : motion.shape[1], None]
                        poses = poses + self.carry[:, i, None, None] * before
                else:
                    poses = poses + motion[:, first:, None]
        return poses

    def forward(self, batch: HumanBatch) -> dict[str, Tensor]:
        """Predict each frame's keypoints from the frames before it.

        Returns:
            loss: mean squared error over the coordinates of visible keypoints (or their mean distance, see
                `loss.keypoints`), of all frames that follow an unmasked one by 1 .. `foresee`, j frames ahead with a
                weight of 1/j: those of the window, `next_keypoints` and, in their place where `foresee` is above 1,
                `future_keypoints`. 0 where there is none.
            keypoints_predicted: (B, T, K, 3), at t the prediction of frame t from l, o_1, k_1 .. o_t-1, k_t-1; at 0,
                where only words came before, zeros that count for nothing.
            next_keypoints_predicted: (B, K, 3), of the frame after the last.
        """
        frame_mask = batch["frame_mask"]
        expect_frames(batch, "static")
        z_l = self.language(batch["text"], batch["text_mask"])
        static, heatmaps, offset = self.look_static(batch, z_l)
        # What moves the image moves the hand in it.
        move = F.pad(offset, (0, 1))
        keypoints, visible = batch["keypoints"], batch["visible"]
        expect("keypoints", keypoints, *frame_mask.shape, self.config.keypoints, 3)
        keypoints = keypoints + move[:, None, None]
        heatmaps = self._destination_heatmaps(heatmaps)
        destination = None if heatmaps is None else centres(heatmaps)[..., 0, :]
        predicted = self.next_poses(z_l, static, keypoints, visible, frame_mask, destination)
        truth, known = [keypoints], [visible & frame_mask[..., None]]
        future, following = batch.get("future_keypoints"), batch.get("next_keypoints")
        if future is not None and self.config.foresee > 1:
            expect("future_keypoints", future, len(frame_mask), "N", self.config.keypoints, 3)
            expect("future_visible", batch.get("future_visible"), *future.shape[:3])
            truth.append(future + move[:, None, None])
            known.append(batch["future_visible"])
        elif following is not None:
            expect("next_keypoints", following, len(frame_mask), self.config.keypoints, 3)
            expect("next_visible", batch["next_visible"], len(frame_mask), self.config.keypoints)
            truth.append((following + move[:, None])[:, None])
            known.append(batch["next_visible"][:, None])
        truth, known = torch.cat(truth, dim=1), torch.cat(known, dim=1)
        frames, total, counted = frame_mask.shape[1], 0.0, 0.0
        for ahead in range(1, self.config.foresee + 1):
            here = truth[:, ahead : ahead + frames]
            counts = known[:, ahead : ahead + frames] & frame_mask[:, : here.shape[1], None]
            error = predicted[:, : here.shape[1], ahead - 1] - here
            error = torch.where(counts[..., None], error, torch.zeros_like(error)).square()
            if self.config.loss.keypoints == "distance":
                # The root of nothing has no gradient; so near, a squared error will do.
                error = 3 * ((error.sum(-1) + _NEAR**2).sqrt() - _NEAR)
            total = total + error.sum() / ahead
            counted = counted + 3 * counts.sum() / ahead
        loss = total / divisor(counted)
        if heatmaps is not None:
            later = truth[:, self.config.foresee : self.config.foresee + frames, 0, :2]
            there = known[:, self.config.foresee : self.config.foresee + frames, 0] & frame_mask[:, : later.shape[1]]
            there = there & (later.abs() <= 1.0).all(-1)
            later = torch.where(there[..., None], later, torch.zeros_like(later))
            missed = splat_cross_entropy(heatmaps[:, : later.shape[1], ..., 0], later)
            missed = torch.where(there, missed, torch.zeros_like(missed)).sum() / divisor(there.sum())
            loss = loss + self.config.loss.destination * missed
        shown = F.pad(predicted[:, :-1, 0] - move[:, None, None], (0, 0, 0, 0, 1, 0))
        return {
            "loss": loss,
            "keypoints_predicted": shown,
            "next_keypoints_predicted": predicted[:, -1, 0] - move[:, None],
        }

    def _destination_heatmaps(self, heatmaps: Tensor | None) -> Tensor | None:
        """Return the last of the encoder's heatmaps, (B, T, h, w, 1), if `loss.destination` is used."""
        if self.destination is None:
            return None
        if heatmaps is None:
            raise UserError("loss.destination: cached features have no heatmaps; give images, or set it to 0")
        return heatmaps[..., -1:]

    @torch.no_grad()
    def predict_next(self, batch: HumanBatch, steps: int) -> Tensor:
        """Foresee the hand `steps` frames beyond the window: `foresee` at once, then on from these.

        The images of those frames are not known: the last one is shown again. Windows slide at `max_frames`.

        Returns:
            (B, steps, K, 3), normalised as the input.
        """
        if steps < 1:
            raise UserError(f"steps: got {steps}; give at least 1")
        keypoints, visible, frame_mask = batch["keypoints"], batch["visible"], batch["frame_mask"]
        z_l = self.language(batch["text"], batch["text_mask"])
        static, heatmaps, offset = self.look_static(batch, z_l)
        heatmaps = self._destination_heatmaps(heatmaps)
        destination = None if heatmaps is None else centres(heatmaps)[..., 0, :]
        move = F.pad(offset, (0, 1))[:, None, None]
        keypoints = keypoints + move
        poses, keep, new = [], slice(-self.config.max_frames, None), self.config.foresee
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


def last_seen(keypoints: Tensor, seen: Tensor) -> Tensor:
    """Return (B, T, K, 3): each joint where it was last seen up to that frame, zeros where never."""
    index = torch.arange(seen.shape[1], device=seen.device)[:, None]
    latest = index.expand_as(seen).masked_fill(~seen, -1).cummax(dim=1).values
    held = keypoints.gather(1, latest.clamp(min=0)[..., None].expand_as(keypoints))
    return torch.where((latest >= 0)[..., None], held, torch.zeros_like(held))


def last_motion(keypoints: Tensor, seen: Tensor) -> Tensor:
    """Return (B, T, K, 3): how each joint moved since the frame before, zeros where it was not seen in both."""
    motion = torch.zeros_like(keypoints)
    both = (seen[:, 1:] & seen[:, :-1])[..., None]
    step = keypoints[:, 1:] - keypoints[:, :-1]
    motion[:, 1:] = torch.where(both, step, torch.zeros_like(step))
    return motion
