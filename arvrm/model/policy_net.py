"""Stage 2: a policy on the transformer of stage 1, with analogical reasoning from retrieved clips (docs/method.md)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arvrm.interface import Robot, RobotBatch, UserError
from arvrm.model.analogy import analogy_map
from arvrm.model.config import ModelConfig
from arvrm.model.conv import ConvEncoder
from arvrm.model.heads import FlowHead, RegressionHead, queries
from arvrm.model.heatmaps import centres
from arvrm.model.image_head import ImageHead
from arvrm.model.joints import ComponentEncoder
from arvrm.model.keypoint_vlm import ImageTokens, KeypointVLM
from arvrm.model.landmarks import LandmarkHead
from arvrm.model.layout import Queries, Window, asked, policy_layout
from arvrm.model.objectives import OF_POLICIES, PolicyStep, check_others
from arvrm.model.pixels import fit_images
from arvrm.model.segments import check_segments, windows_of
from arvrm.model.transformer import expect, expect_frames, mlp, start_at_zero
from arvrm.model.vit import VitEncoder


class PolicyNet(nn.Module):
    """A robot's policy. `vlm` is stage 1's model, whose weights are loaded from its checkpoint.

    Tokens of a frame are those of `layout.policy_layout`. Modules of a camera other than the static one are named by
    its role: `gripper_encoder`, `gripper_tokens`.
    """

    kind = "policy"

    def __init__(self, config: ModelConfig, robot: Robot) -> None:
        super().__init__()
        _check(config, robot)
        self.config, self.robot = config, robot
        self.roles = tuple(camera.role for camera in robot.cameras)
        width, parts = config.width, len(robot.components)
        self.vlm = KeypointVLM(config)
        self.parts = self.vlm.parts
        for role in self.roles[1:]:
            if config.vision.encoder == "conv":
                self.add_module(f"{role}_encoder", self.parts.image_encoder(config.vision.gripper_size))
            self.add_module(f"{role}_tokens", ImageTokens(self.vlm.static_encoder.width, width))
        self.parts.add_encoders(self)
        self.components = ComponentEncoder(config, parts)
        self.state_token = self.parts.state_token(robot)
        self.state_head = mlp(width, width, parts)
        start_at_zero(self.state_head[-1])
        self.action_queries = nn.Parameter(0.02 * torch.randn(queries(config), width))
        head = FlowHead if config.head == "flow" else RegressionHead
        self.head: FlowHead | RegressionHead = head(config, robot.actions, self.parts.head_activation)
        if config.loss.geometry > 0:
            self.geometry = LandmarkHead(config, robot)
        self.analogy = analogy_map(config, parts)
        if config.analogy.at_rollout == "on":
            self.analogy_token = mlp(parts * config.joint_width, width, width)
        self.parts.add_embeddings(self)
        if config.fwd_pred:
            self.image_queries = nn.Parameter(0.02 * torch.randn(len(self.roles), config.latents + 1, width))
            sizes = [self.camera(role)[0] for role in self.roles]
            self.image_heads = nn.ModuleList(self.parts.image_heads(sizes, self.vlm.static_encoder))
        if config.freeze_keypoints:
            for module in (self.vlm.joints, self.vlm.keypoint_token, self.vlm.keypoint_head):
                module.requires_grad_(False)
        if self.vlm.places is not None:
            self.vlm.places.requires_grad_(False)  # nothing in stage 2 reads it
        if config.sighted_queries:
            self.sight = mlp(len(self.roles) * width, 2 * width, width)
        self.layout = policy_layout(
            [self.parts.camera_group(role) for role in self.roles],
            queries(config),
            len(self.roles) * (config.latents + 1) if config.fwd_pred else 0,
            config.analogy.at_rollout == "on",
        )

    def camera(self, role: str) -> tuple[int, float]:
        """Return the pixels at which a conv encoder reads the camera of this role, and its largest random shift."""
        vision = self.config.vision
        if role == "static":
            return vision.static_size, vision.shift_static
        return vision.gripper_size, vision.shift_gripper

    def image_encoder(self, role: str) -> ConvEncoder | VitEncoder:
        """Return the encoder of the camera of this role: its own conv encoder, or the ViT that all cameras share."""
        if role == "static" or self.config.vision.encoder != "conv":
            return self.vlm.static_encoder
        return cast(ConvEncoder, self.get_submodule(f"{role}_encoder"))

    def image_tokens(self, role: str) -> ImageTokens:
        """Return the way of the camera of this role into the transformer."""
        return self.vlm.static_tokens if role == "static" else cast(ImageTokens, self.get_submodule(f"{role}_tokens"))

    def language(self, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return z_l (B, d)."""
        return self.vlm.language(text, text_mask)

    def hands(self) -> tuple[nn.Module, str]:
        """Return the part that stage 1 trains, and how its names begin."""
        return self.vlm, "vlm."

    def analogy_map(self, z_l: Tensor | None = None) -> Tensor | None:
        """Return m (S, K), or (B, S, K) where it depends on language z_l (B, d); None: there is no map."""
        return None if self.analogy is None else self.analogy.map(z_l)

    def image_head(self, number: int) -> ImageHead:
        """Return what predicts the images of this camera, in the robot's order: its own, or one for all."""
        return cast(ImageHead, self.image_heads[number % len(self.image_heads)])

    @property
    def bounded(self) -> bool:
        """Whether planned continuous numbers are clamped to [-1, 1]."""
        return self.config.published is None or self.config.published.clamp_actions

    @property
    def map_by_words(self) -> bool:
        """Whether the map depends on the language token."""
        return self.analogy is not None and self.analogy.by_words

    def self_contained(self) -> ModelConfig:
        """Return its configuration with the ViT's own inside, so that loading needs no other directory."""
        return self.parts.self_contained(self.vlm.self_contained(), self)

    def encode_frames(self, batch: RobotBatch) -> dict[str, Tensor]:
        """Encode images only, so that a rollout can keep each frame's tokens for as long as the instruction holds.

        Reads text and the cameras' images (or their features) of `batch`, any number of frames.

        Returns:
            role + "_tokens": (B, T, n, d), what `act` takes in place of images; with `loss.geometry` static_points too,
            see `encode`.
        """
        z_l = self.vlm.language(batch["text"], batch["text_mask"])
        kept = ("tokens", "points")
        return {key: x for key, x in self.encode(batch, z_l).items() if key.endswith(kept)}

    def encode(self, batch: RobotBatch, z_l: Tensor, images: bool = False) -> dict[str, Tensor]:
        """Encode each frame once, with one augmentation a window or, where there are segments, a segment.

        Returns:
            role + "_tokens": (B, T, n, d). Of the static camera: offset (B, 2), the random shift, and, if its encoder
            has any, heatmaps (B, T, h, w, points). With `loss.geometry` static_points (B, T, points, 2): the heatmaps'
            centres in [-1, 1], the random shift taken out. With `images` role + "_later": (S, F, size, size, 3) uint8,
            the frames to predict, augmented as those that were encoded; `windows_of` them are the windows'.
        """
        segments, count, each = batch.get("segments"), None, 1
        source: dict[str, Any] = dict(batch) if segments is None else dict(segments)
        if segments is not None:
            each, count = check_segments(batch)
            z_l = z_l[::each]
        elif images:
            count = batch["frame_mask"].shape[1]
            for role in self.roles:
                # Features come without pixels of the same frames.
                given = [] if f"{role}_features" in source else [source[role]]
                source[role] = torch.cat([*given, source[f"next_{role}"]], dim=1)
        result: dict[str, Tensor] = {}
        frames = count if count is None else count - each + 1
        for role in self.roles:
            size, shift = self.camera(role)
            shown = self.vlm.encode_camera(source, role, self.image_encoder(role), size, shift, z_l, count)
            tokens = self.image_tokens(role)(shown.features, self.vlm.resampler)
            tokens = self.parts.camera_tokens(self, role, tokens, shown.pixels, z_l)
            result[f"{role}_tokens"] = windows_of(tokens, frames)
            if images and count is not None:
                pixels = shown.pixels
                if pixels is None:
                    pixels = fit_images(source[role], size)[0].unflatten(0, source[role].shape[:2])
                result[f"{role}_later"] = pixels[:, -count:]
            if role == "static":
                result["offset"] = shown.offset.repeat_interleave(each, 0)
                if shown.heatmaps is not None:
                    result["heatmaps"] = windows_of(shown.heatmaps, frames)
                if self.config.loss.geometry > 0 and shown.heatmaps is not None:
                    points = centres(shown.heatmaps) - shown.offset[:, None, None]
                    result["static_points"] = windows_of(points, frames)
        return result

    def transfer(self, batch: RobotBatch, f_s: Tensor, z_l: Tensor, frames: slice) -> tuple[Tensor, Tensor]:
        """Return f* (B, J, T, S, d_k) of the clips at `frames`, and (B, J, T) bool where a hand was visible.

        Args:
            f_s: (B, T, S, d_k), features of the robot's components; z_l: (B, d).
        """
        clips = batch["clips"]
        assert clips is not None and self.analogy is not None
        batch_size, count = clips["keypoints"].shape[:2]
        expect("clips.keypoints", clips["keypoints"], len(f_s), "J", f_s.shape[1], self.config.keypoints, 3)
        expect("clips.visible", clips["visible"], *clips["keypoints"].shape[:4])
        expect("clips.frame_mask", clips["frame_mask"], *clips["keypoints"].shape[:3])
        flat = [x.flatten(0, 1) for x in (clips["keypoints"], clips["visible"], clips["frame_mask"])]
        f_k = self.vlm.keypoint_features(*flat)
        f_k = f_k.unflatten(0, (batch_size, count))[:, :, frames]
        visible = (clips["visible"] & clips["frame_mask"][..., None])[:, :, frames]
        transferred = self.analogy.transfer(f_k, f_s[:, None, frames], visible, z_l[:, None, None])
        return transferred, visible.any(-1)

    def forward(self, batch: RobotBatch) -> dict[str, Tensor]:
        """Compute the objectives (`objectives.OF_POLICIES`) that have a weight and find their targets in the batch.

        Returns:
            loss: the weighted sum. Before weighting: "loss_" and the name of each (loss_analogy is summed over clips,
            averaged over windows).
            actions: (B, T or 1, C, A), predicted (continuous numbers unclamped, binary ones +-1); absent with the flow
            head in training, where the integration would be for show.
            next_components: (B, T, S), predicted, with loss_state.
        """
        check_others(self.config.loss)
        expect_frames(batch, *self.roles)
        objectives = [objective for objective in OF_POLICIES if objective.applies(self, batch)]
        kinds = [objective.asks for objective in objectives if objective.asks]
        z_l = self.vlm.language(batch["text"], batch["text_mask"])
        encoded = self.encode(batch, z_l, "image" in kinds)
        outputs, f_s = self.transform(batch, z_l, encoded, kinds)
        step = PolicyStep(self, batch, z_l, f_s, encoded, outputs)
        result = {f"loss_{objective.name}": objective.value(step) for objective in objectives}
        terms = [objective.weight(self.config) * result[f"loss_{objective.name}"] for objective in objectives]
        loss = functools.reduce(Tensor.add, terms)
        continuous, logits = step.readout
        if continuous is not None:
            result["actions"] = _actions(continuous, logits)
        return {"loss": loss, **result, **step.shown}

    @torch.no_grad()
    def act(self, batch: RobotBatch) -> Tensor:
        """Plan from the last frame and compute nothing that the plan does not need.

        Args:
            batch: the observations of `RobotBatch`, no targets. Instead of images it may hold `encode_frames`' tokens.
                `clips` matter only with `analogy.at_rollout` on.

        Returns:
            (B, C, A) float32, as `Robot.encode_actions` has them: continuous numbers clamped to [-1, 1] (unless
            `published.clamp_actions` is false), binary ones exactly -1 or 1.
        """
        expect_frames(batch, *self.roles)
        z_l = self.vlm.language(batch["text"], batch["text_mask"])
        encoded: Mapping[str, Any] = batch if "static_tokens" in batch else self.encode(batch, z_l)
        outputs, _ = self.transform(batch, z_l, encoded, (), last=True)
        continuous, logits = self.head(outputs["action"])
        return _actions(continuous.clamp(-1.0, 1.0) if self.bounded else continuous, logits)[:, -1]

    def transform(
        self,
        batch: RobotBatch,
        z_l: Tensor,
        encoded: Mapping[str, Any],
        kinds: Sequence[str],
        last: bool = False,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the transformer's outputs per kind of query, (B, frames, queries, d), and f_s (B, T, S, d_k).

        With `loss.geometry`, "geometry" (B, T, N, 3) is among the outputs.

        Args:
            encoded: what `encode_frames` gives.
            kinds: of queries to ask besides those of actions.
            last: ask for actions at the last frame only.
        """
        frame_mask = batch["frame_mask"]
        shape = tuple(frame_mask.shape)
        expect("state", batch.get("state"), *shape, self.robot.state_size)
        expect("components", batch.get("components"), *shape, len(self.robot.components))
        f_s = self.components(batch["components"])
        z_s = self.state_token(f_s, batch["components"], batch["state"])
        geometry = whereabouts = None
        if self.config.loss.geometry > 0:
            expect("static_points", encoded.get("static_points"), *shape, self.config.vision.points, 2)
            geometry, whereabouts = self.geometry(encoded["static_points"], batch["components"], batch["state"])
            z_s = z_s + whereabouts
        tokens = {"state": z_s[:, :, None], **{role: encoded[f"{role}_tokens"] for role in self.roles}}
        mask = frame_mask[..., None].expand(-1, -1, self.layout.size)
        if self.config.analogy.at_rollout == "on":
            token, present = self._analogy_token(batch, f_s, z_l)
            tokens["analogy"] = token[:, :, None]
            mask = torch.cat([mask[..., :-1], (present & frame_mask)[..., None]], dim=-1)
        tokens["language"] = z_l[:, None, None, :].expand(-1, shape[1], -1, -1)
        query = self._queries(shape[1], kinds, last or self.config.query_frames == "last")
        context = self.layout.assemble(tokens)
        if self.config.sighted_queries:
            query = self._sighted(query, context)
        window = Window(context, mask, query.tokens, query.frames, query.slices, self.layout)
        out = self.vlm.transform(window, self)
        outputs = {
            name: out[:, start:end].unflatten(1, (-1, self.layout.count(name)))
            for name, (start, end) in query.slices.items()
        }
        if geometry is not None:
            outputs["geometry"] = geometry
            # Once more, past the attention, which averages tokens and so blurs centimetres.
            assert whereabouts is not None
            outputs["action"] = outputs["action"] + whereabouts[:, -outputs["action"].shape[1] :, None]
        return outputs, f_s

    def _queries(self, frames: int, kinds: Sequence[str], last: bool) -> Queries:
        chosen: list[tuple[str, Tensor, range]] = [
            ("action", self.action_queries, range(frames - 1 if last else 0, frames))
        ]
        for kind in kinds:
            parameter = self.vlm.next_query[None] if kind == "state" else self.image_queries.flatten(0, 1)
            chosen.append((kind, parameter, range(frames)))
        return asked(chosen, self.action_queries.device)

    def _sighted(self, query: Queries, context: Tensor) -> Queries:
        """Add to the action queries what the CLS tokens of their own frame, among context (B, T, n, d), say."""
        seen = torch.cat([context[:, :, self.layout.where(role, "cls")] for role in self.roles], dim=-1).squeeze(2)
        start, end = query.slices["action"]
        added = self.sight(seen)[:, query.frames[start:end]]
        return query._replace(tokens=query.tokens + F.pad(added, (0, 0, start, query.tokens.shape[1] - end)))

    def _analogy_token(self, batch: RobotBatch, f_s: Tensor, z_l: Tensor) -> tuple[Tensor, Tensor]:
        """Return the retrieved clips' f*, pooled over clips, (B, T, d), and where there was any (B, T) bool."""
        if batch.get("clips") is None:
            nothing = torch.zeros(*f_s.shape[:2], self.config.width, device=f_s.device, dtype=f_s.dtype)
            return nothing, torch.zeros(f_s.shape[:2], device=f_s.device, dtype=torch.bool)
        transferred, present = self.transfer(batch, f_s, z_l, slice(None))
        weight = present[..., None, None].to(transferred.dtype)
        pooled = (transferred * weight).sum(1) / weight.sum(1).clamp(min=1.0)
        return self.analogy_token(pooled.flatten(2)), present.any(1)


def _check(config: ModelConfig, robot: Robot) -> None:
    for name, array in (("geometry", "landmarks"), ("localisation", "landmark_pixels")):
        if getattr(config.loss, name) > 0 and array not in robot.arrays:
            raise UserError(f"loss.{name}: episodes of {robot.name} have no {array}; set it to 0")


def _actions(continuous: Tensor, logits: Tensor) -> Tensor:
    return torch.cat([continuous.detach(), 2.0 * (logits > 0).float() - 1.0], dim=-1)
