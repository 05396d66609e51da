"""Stage 2: a policy on the transformer of stage 1, with analogical reasoning from retrieved clips (docs/method.md)."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arvrm.interface import Robot, RobotBatch, UserError
from arvrm.model.analogy import AnalogyMap
from arvrm.model.config import ModelConfig
from arvrm.model.conv import ConvEncoder
from arvrm.model.heads import FlowHead, RegressionHead, queries
from arvrm.model.heatmaps import centres, splat_cross_entropy
from arvrm.model.image_encoder import image_encoder, second_encoder
from arvrm.model.image_head import ImageHead
from arvrm.model.joints import ComponentEncoder
from arvrm.model.keypoint_vlm import ImageTokens, KeypointVLM
from arvrm.model.landmarks import LandmarkHead
from arvrm.model.pixels import fit_images
from arvrm.model.split_batch import divisor
from arvrm.model.transformer import PerceiverResampler, expect, expect_frames, mlp
from arvrm.model.vit import VitEncoder
from arvrm.robots.calvin import ARM, CALVIN, Calvin

OPENED = 10
"""Where `encode_state` has the last gripper command: 1 open, beside it 1 closed."""


class OfficialState(nn.Module):
    """GR-1's state token: pose and last gripper command, each through a linear layer, joined by a third."""

    def __init__(self, width: int, robot: Robot) -> None:
        super().__init__()
        if not isinstance(robot, Calvin):
            raise UserError(f"state: 'official' reads CALVIN's robot, not {robot.name}; set it to components")
        self.arm = nn.Linear(ARM, width)
        self.gripper = nn.Linear(2, width)
        self.join = nn.Linear(2 * width, width)
        known = robot.statistics
        scale, centre = known.position_scale + known.euler_scale, known.position_centre + known.euler_reference
        self.register_buffer("scale", torch.tensor(scale), persistent=False)
        self.register_buffer("centre", torch.tensor(centre), persistent=False)

    def forward(self, components: Tensor, state: Tensor) -> Tensor:
        """Return (B, T, d) for `components` (B, T, S) and `state` (B, T, Ds) as `encode_*` give them."""
        pose = components[..., :ARM] * self.scale + self.centre
        angles = (pose[..., 3:] + math.pi) % (2.0 * math.pi) - math.pi
        # (B, T, 2): closed, open, as the official code's one-hot has them.
        gripper = state[..., OPENED : OPENED + 2].flip(-1)
        arm = self.arm(torch.cat([pose[..., :3], angles], dim=-1))
        return self.join(torch.cat([arm, self.gripper(gripper.to(arm.dtype))], dim=-1))


class SecondSight(nn.Module):
    """Tokens of `vision.second`, a frozen ViT beside the image encoder: its CLS token, then M latents of all it sees.

    As in AR-VRM's published code, which reads the CLS token among the patches too.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = second_encoder(config.vision, config.width)
        features = self.encoder.width
        self.resampler = None
        if config.vision.second.patches:
            self.resampler = PerceiverResampler(
                features,
                config.latents,
                config.resampler_layers,
                config.resampler_heads,
                config.resampler_head_width,
                config.resampler_position,
            )
        cameras = ("static", "gripper")
        self.cls = nn.ModuleDict({name: nn.Linear(features, config.width) for name in cameras})
        if self.resampler is not None:
            self.patch = nn.ModuleDict({name: nn.Linear(features, config.width) for name in cameras})

    def forward(self, images: Tensor, camera: str, z_l: Tensor) -> Tensor:
        """Return (B, T, 1 + M or 1, d) for images (B, T, H, W, 3) uint8 and z_l (B, d)."""
        words = z_l.repeat_interleave(images.shape[1], 0)
        # Gradients pass the frozen ViT on their way to what words do to it.
        with torch.set_grad_enabled(torch.is_grad_enabled() and bool(self.encoder.filmed)):
            features, _ = self.encoder(images.flatten(0, 1), words)
        tokens = [self.cls[camera](features[:, :1])]
        if self.resampler is not None:
            tokens.append(self.patch[camera](self.resampler(features)))
        return torch.cat(tokens, dim=1).unflatten(0, images.shape[:2])


class PolicyNet(nn.Module):
    """The robot's policy. `vlm` is stage 1's model, whose weights are loaded from its checkpoint.

    Tokens of a frame, in order: language, state, then of each camera M patch latents and CLS (behind it those of
    `vision.second`, its CLS first), with `analogy.at_rollout` one analogy token; then queries, hidden from all:
    actions, next state, images.

    Modules of a camera other than the static one are named by its role: `gripper_encoder`, `gripper_tokens`.
    """

    kind = "policy"

    def __init__(self, config: ModelConfig, robot: Robot = CALVIN) -> None:
        super().__init__()
        self.config, self.robot = config, robot
        self.roles = tuple(camera.role for camera in robot.cameras)
        _check_landmarks(config, robot)
        width, parts = config.width, len(robot.components)
        self.vlm = KeypointVLM(config)
        for role in self.roles[1:]:
            if config.vision.encoder == "conv":
                encoder = image_encoder(config.vision, config.vision.gripper_size, width)
                self.add_module(f"{role}_encoder", encoder)
            self.add_module(f"{role}_tokens", ImageTokens(self.vlm.static_encoder.width, width))
        if config.vision.second is not None:
            self.second = SecondSight(config)
        self.components = ComponentEncoder(config, parts)
        if config.state == "official":
            self.state_token = OfficialState(width, robot)
        else:
            self.state_token = mlp(parts * config.joint_width + robot.state_size, width, width)
        self.state_head = mlp(width, width, parts)
        nn.init.zeros_(self.state_head[-1].weight)
        nn.init.zeros_(self.state_head[-1].bias)
        self.action_queries = nn.Parameter(0.02 * torch.randn(queries(config), width))
        self.head = (FlowHead if config.head == "flow" else RegressionHead)(config, robot.actions)
        if config.loss.geometry > 0:
            self.geometry = LandmarkHead(config, robot)
        self.analogy = AnalogyMap(config, parts) if config.analogy.enabled else None
        if config.analogy.at_rollout == "on":
            self.analogy_token = mlp(parts * config.joint_width, width, width)
        if config.positions:
            self.positions = nn.Parameter(0.02 * torch.randn(config.positions, width))
        if config.fwd_pred:
            self.image_queries = nn.Parameter(0.02 * torch.randn(len(self.roles), config.latents + 1, width))
            sizes: tuple[int, ...] = tuple(self.camera(role)[0] for role in self.roles)
            if config.image_decoder == "shared":
                sizes = (self.vlm.static_encoder.size,)
            self.image_heads = nn.ModuleList(ImageHead(config, size) for size in sizes)
        if config.freeze_keypoints:
            for module in (self.vlm.joints, self.vlm.keypoint_token, self.vlm.keypoint_head):
                module.requires_grad_(False)

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
        return self.get_submodule(f"{role}_encoder")

    def image_tokens(self, role: str) -> ImageTokens:
        """Return the way of the camera of this role into the transformer."""
        return self.vlm.static_tokens if role == "static" else self.get_submodule(f"{role}_tokens")

    def language(self, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return z_l (B, d)."""
        return self.vlm.language(text, text_mask)

    def hands(self) -> tuple[nn.Module, str]:
        """Return the part that stage 1 trains, and how its names begin."""
        return self.vlm, "vlm."

    def analogy_map(self, z_l: Tensor | None = None) -> Tensor | None:
        """Return m (S, K), or (B, S, K) where it depends on language z_l (B, d); None: there is no map."""
        return None if self.analogy is None else self.analogy.map(z_l)

    def self_contained(self) -> ModelConfig:
        """Return its configuration with the ViTs' own inside, so that loading needs no other directory."""
        config = self.vlm.self_contained()
        if config.vision.second is None:
            return config
        second = dataclasses.replace(config.vision.second, backbone=self.second.encoder.backbone())
        return dataclasses.replace(config, vision=dataclasses.replace(config.vision, second=second))

    def encode_frames(self, batch: RobotBatch) -> dict[str, Tensor]:
        """Encode images only, so that a rollout can keep each frame's tokens for as long as the instruction holds.

        Reads text and the cameras' images (or their features) of `batch`, any number of frames.

        Returns:
            role + "_tokens": (B, T, M + 1, d), what `act` takes in place of images; with `loss.geometry` static_points
            too, see `_encode`.
        """
        z_l = self.vlm.language(batch["text"], batch["text_mask"])
        kept = ("tokens", "points")
        return {key: value for key, value in self._encode(batch, z_l).items() if key.endswith(kept)}

    def _encode(self, batch: RobotBatch, z_l: Tensor, images: bool = False) -> dict[str, Tensor | None]:
        """Encode each frame once, with one augmentation a window or, where there are segments, a segment.

        Returns:
            role + "_tokens": (B, T, M + 1, d); heatmaps (B, T, h, w, points) or None, offset (B, 2): the static
            camera's. With `loss.geometry` static_points (B, T, points, 2): the heatmaps' centres in [-1, 1], the random
            shift taken out. With `images` role + "_later": (S, F, size, size, 3) uint8, the frames to predict,
            augmented as those that were encoded; `windows_of` them are the windows'.
        """
        segments, count, each = batch.get("segments"), None, 1
        source: dict = dict(batch) if segments is None else dict(segments)
        if segments is not None:
            each, count = _check_segments(batch)
            z_l = z_l[::each]
        elif images:
            count = batch["frame_mask"].shape[1]
            for camera in self.roles:
                ahead = source[f"next_{camera}"]
                # Features come without pixels of the same frames.
                given = [] if f"{camera}_features" in source else [source[camera]]
                source[camera] = torch.cat([*given, ahead], dim=1)
        result: dict[str, Tensor | None] = {}
        frames = count if count is None else count - each + 1
        for camera in self.roles:
            size, shift = self.camera(camera)
            seen = self.vlm.look(source, camera, self.image_encoder(camera), size, shift, z_l, count)
            tokens = self.image_tokens(camera)(seen.features, self.vlm.resampler)
            if self.config.vision.second is not None:
                if seen.pixels is None:
                    raise UserError(f"{camera}_features: vision.second needs images; set data.frozen_features to false")
                tokens = torch.cat([tokens, self.second(seen.pixels[:, : tokens.shape[1]], camera, z_l)], dim=2)
            result[f"{camera}_tokens"] = windows_of(tokens, frames)
            if images:
                pixels = seen.pixels
                if pixels is None:
                    pixels = fit_images(source[camera], size)[0].unflatten(0, source[camera].shape[:2])
                result[f"{camera}_later"] = pixels[:, -count:]
            if camera == "static":
                heatmaps = seen.heatmaps
                result["heatmaps"] = None if heatmaps is None else windows_of(heatmaps, frames)
                result["offset"] = seen.offset.repeat_interleave(each, 0)
                if self.config.loss.geometry > 0:
                    points = centres(seen.heatmaps) - seen.offset[:, None, None]
                    result["static_points"] = windows_of(points, frames)
        return result

    def _queries(
        self, batch: RobotBatch, only_actions: bool, images: bool
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, tuple[int, int]]]:
        """Queries (1, Q, d), the frame of each, its place among its frame's, and per kind a slice: frames x tokens."""
        frames = batch["frame_mask"].shape[1]
        device = batch["frame_mask"].device
        last = only_actions or self.config.query_frames == "last"
        kinds = {"action": (self.action_queries, range(frames - 1 if last else 0, frames))}
        if not only_actions and self.config.loss.state > 0 and batch.get("next_components") is not None:
            kinds["state"] = (self.vlm.next_query[None], range(frames))
        if images and self.config.fwd_pred:
            kinds["image"] = (self.image_queries.flatten(0, 1), range(frames))
        tokens, owners, places, slices, at = [], [], [], {}, 0
        first = {"action": 0, "image": len(self.action_queries), "state": 0}
        for name, (parameter, where) in kinds.items():
            places.append(first[name] + torch.arange(len(parameter), device=device).repeat(len(where)))
            size = len(where) * len(parameter)
            tokens.append(parameter.repeat(len(where), 1))
            # Made on the device: a list would be copied there, and the host would wait.
            frame = torch.arange(where.start, where.stop, device=device)
            owners.append(frame.repeat_interleave(len(parameter)))
            slices[name] = (at, at + size)
            at += size
        return torch.cat(tokens)[None], torch.cat(owners), torch.cat(places), slices

    def _transfer(self, batch: RobotBatch, f_s: Tensor, z_l: Tensor, frames: slice) -> tuple[Tensor, Tensor]:
        """f*_s (B, J, T, S, d_k) of the clips at `frames`, and (B, J, T) bool where a hand was seen."""
        clips = batch["clips"]
        batch_size, count = clips["keypoints"].shape[:2]
        expect("clips.keypoints", clips["keypoints"], len(f_s), "J", f_s.shape[1], self.config.keypoints, 3)
        expect("clips.visible", clips["visible"], *clips["keypoints"].shape[:4])
        expect("clips.frame_mask", clips["frame_mask"], *clips["keypoints"].shape[:3])
        flat = {name: clips[name].flatten(0, 1) for name in ("keypoints", "visible", "frame_mask")}
        f_k = self.vlm.keypoint_features(flat["keypoints"], flat["visible"], flat["frame_mask"])
        f_k = f_k.unflatten(0, (batch_size, count))[:, :, frames]
        seen = (clips["visible"] & clips["frame_mask"][..., None])[:, :, frames]
        transferred = self.analogy.transfer(f_k, f_s[:, None, frames], seen, z_l[:, None, None])
        return transferred, seen.any(-1)

    def _forward_tokens(
        self,
        batch: RobotBatch,
        z_l: Tensor,
        seen: dict[str, Tensor | None],
        only_actions: bool,
        images: bool = False,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Transformer outputs per kind of query, (B, frames, tokens, d), and f_s (B, T, S, d_k).

        `seen` is what `encode_frames` gives. With `loss.geometry`, "geometry" (B, T, N, 3) is among the outputs.
        """
        frame_mask = batch["frame_mask"]
        shape = tuple(frame_mask.shape)
        expect("state", batch.get("state"), *shape, self.robot.state_size)
        expect("components", batch.get("components"), *shape, len(self.robot.components))
        f_s = self.components(batch["components"])
        if self.config.state == "official":
            z_s = self.state_token(batch["components"], batch["state"])
        else:
            z_s = self.state_token(torch.cat([f_s.flatten(2), batch["state"].to(f_s.dtype)], dim=-1))
        geometry = None
        if self.config.loss.geometry > 0:
            expect("static_points", seen.get("static_points"), *shape, self.config.vision.points, 2)
            geometry, whereabouts = self.geometry(seen["static_points"], batch["components"], batch["state"])
            z_s = z_s + whereabouts
        frames = [z_s[:, :, None], *(seen[f"{role}_tokens"] for role in self.roles)]
        token_mask = frame_mask
        if self.config.analogy.at_rollout == "on":
            token, present = self._analogy_token(batch, f_s, z_l)
            frames.append(token[:, :, None])
            real = frame_mask[..., None].expand(-1, -1, 1 + sum(f.shape[2] for f in frames[:-1]))
            token_mask = torch.cat([real, (present & frame_mask)[..., None]], dim=-1)
        tokens, owners, places, slices = self._queries(batch, only_actions, images)
        positions = None
        if self.config.positions:
            # Every query has its row, asked or not, so that a row means the same in training and in a rollout.
            context = 1 + sum(f.shape[2] for f in frames)
            stride = context + len(self.action_queries)
            stride += self.image_queries.shape[:2].numel() if self.config.fwd_pred else 0
            if shape[1] * stride > len(self.positions):
                raise UserError(f"positions: {shape[1]} frames of {stride} tokens need more than {len(self.positions)}")
            positions = (self.positions, context + places, stride)
        second, untimed = self.config.vision.second, (0, 0)
        if second is not None and not second.timed:
            # After language, state, the first ViT's latents and CLS, and the second one's CLS.
            untimed = (self.config.latents + 4, 2 * self.config.latents + 4)
        out = self.vlm.sequence(z_l, frames, tokens, owners, token_mask, positions, untimed)
        counts = {"action": len(self.action_queries), "state": 1, "image": len(self.roles) * (self.config.latents + 1)}
        outputs = {name: out[:, a:b].unflatten(1, (-1, counts[name])) for name, (a, b) in slices.items()}
        if geometry is not None:
            outputs["geometry"] = geometry
            # Once more, past the attention, which averages tokens and so blurs centimetres.
            outputs["action"] = outputs["action"] + whereabouts[:, -outputs["action"].shape[1] :, None]
        return outputs, f_s

    def _analogy_token(self, batch: RobotBatch, f_s: Tensor, z_l: Tensor) -> tuple[Tensor, Tensor]:
        """The retrieved clips' f*, pooled over clips: (B, T, d), and (B, T) bool where there was any."""
        if batch.get("clips") is None:
            nothing = torch.zeros(*f_s.shape[:2], self.config.width, device=f_s.device, dtype=f_s.dtype)
            return nothing, torch.zeros(f_s.shape[:2], device=f_s.device, dtype=torch.bool)
        transferred, seen = self._transfer(batch, f_s, z_l, slice(None))
        weight = seen[..., None, None].to(transferred.dtype)
        pooled = (transferred * weight).sum(1) / weight.sum(1).clamp(min=1.0)
        return self.analogy_token(pooled.flatten(2)), seen.any(1)

    def forward(self, batch: RobotBatch) -> dict[str, Tensor]:
        """Compute the losses that `config.loss` gives a weight and the batch has the targets for.

        Returns:
            loss: the weighted sum. Before weighting: loss_arm, loss_gripper, and where computed loss_state,
            loss_analogy (summed over clips, averaged over windows), loss_replay, loss_localisation, loss_geometry,
            loss_image.
            actions: (B, T or 1, C, A), predicted (continuous numbers unclamped, binary ones +-1); absent with the flow
            head in training, where the integration would be for show.
            next_components: (B, T, S), predicted, with loss_state.
        """
        config, weights = self.config, self.config.loss
        expect_frames(batch, *self.roles)
        z_l = self.vlm.language(batch["text"], batch["text_mask"])
        images = config.fwd_pred and weights.image > 0 and batch.get("next_image_mask") is not None
        seen = self._encode(batch, z_l, images)
        outputs, f_s = self._forward_tokens(batch, z_l, seen, False, images)
        frame_mask = batch["frame_mask"]
        result = self._action_losses(batch, outputs["action"])
        loss = weights.arm * result["loss_arm"]
        if "loss_gripper" in result:
            loss = loss + weights.gripper * result["loss_gripper"]
        if "geometry" in outputs and batch.get("landmark_offsets") is not None:
            result["loss_geometry"] = self._geometry_loss(batch, outputs["geometry"])
            loss = loss + weights.geometry * result["loss_geometry"]
        if "state" in outputs:
            expect("next_components", batch["next_components"], *frame_mask.shape, len(self.robot.components))
            expect("next_mask", batch.get("next_mask"), *frame_mask.shape)
            predicted = self.state_head(outputs["state"][:, :, 0]).float()
            if config.predict_residual:
                predicted = predicted + batch["components"]
            error = (predicted - batch["next_components"]).square().mean(-1)
            result["next_components"] = predicted
            result["loss_state"] = _mean(error, batch["next_mask"] & frame_mask)
            loss = loss + weights.state * result["loss_state"]
        clips = batch.get("clips")
        if clips is not None and self.analogy is not None and weights.analogy > 0:
            result["loss_analogy"] = self._analogy_loss(batch, f_s, z_l)
            loss = loss + weights.analogy * result["loss_analogy"]
        if clips is not None and weights.replay > 0:
            replay = batch.get("replay") or {key: x.flatten(0, 1) for key, x in clips.items() if x is not None}
            result["loss_replay"] = self.vlm(replay)["loss"]
            loss = loss + weights.replay * result["loss_replay"]
        if weights.localisation > 0 and batch.get("landmark_pixels") is not None:
            result["loss_localisation"] = self._localisation_loss(batch, seen["heatmaps"], seen["offset"])
            loss = loss + weights.localisation * result["loss_localisation"]
        if "image" in outputs:
            result["loss_image"] = self._image_loss(batch, outputs["image"], seen)
            loss = loss + weights.image * result["loss_image"]
        return {"loss": loss, **result}

    def _action_losses(self, batch: RobotBatch, out: Tensor) -> dict[str, Tensor]:
        frames, chunk = batch["frame_mask"].shape[1], self.config.chunk
        layout = self.robot.actions
        expect("actions", batch.get("actions"), len(out), frames, chunk, layout.size)
        expect("action_mask", batch.get("action_mask"), len(out), frames, chunk)
        shown = out.shape[1]
        target = batch["actions"][:, frames - shown :]
        mask = (batch["action_mask"] & batch["frame_mask"][..., None])[:, frames - shown :]
        result: dict[str, Tensor] = {}
        if self.config.head == "flow":
            error = self.head.error(out, target[..., : layout.continuous])
            if self.training:
                arm, logits = None, self.head.regression(out)[1]
            else:
                arm, logits = self.head(out)
        else:
            arm, logits = self.head(out)
            error = F.smooth_l1_loss(
                arm, target[..., : layout.continuous], reduction="none", beta=self.config.loss.arm_beta
            )
        result["loss_arm"] = _mean(error.mean(-1), mask)
        if layout.binary:
            on = (target[..., layout.continuous :] > 0).to(logits.dtype)
            error = F.binary_cross_entropy_with_logits(logits, on, reduction="none")
            result["loss_gripper"] = _mean(error.mean(-1), mask)
        if arm is not None:
            result["actions"] = _actions(arm, logits)
        return result

    def _geometry_loss(self, batch: RobotBatch, geometry: Tensor) -> Tensor:
        expect("landmark_offsets", batch["landmark_offsets"], *geometry.shape)
        expect("landmark_mask", batch.get("landmark_mask"), *geometry.shape[:3])
        mask = batch["landmark_mask"] & batch["frame_mask"][..., None]
        known = batch["landmark_offsets"].masked_fill(~mask[..., None], 0.0)
        return _mean((geometry - known).square().mean(-1), mask)

    def _analogy_loss(self, batch: RobotBatch, f_s: Tensor, z_l: Tensor) -> Tensor:
        last = f_s.shape[1] - 1
        mask = batch["frame_mask"][:, last]
        target = batch["components"][:, last]
        if self.config.analogy.target == "next":
            if batch.get("next_components") is None:
                return f_s.new_zeros(())
            target, mask = batch["next_components"][:, last], mask & batch["next_mask"][:, last]
        transferred, seen = self._transfer(batch, f_s, z_l, slice(last, last + 1))
        error = (self.analogy.read(transferred[:, :, 0]).float() - target[:, None]).square().mean(-1)
        counts = seen[:, :, 0] & mask[:, None]
        return torch.where(counts, error, torch.zeros_like(error)).sum() / len(error)

    def _localisation_loss(self, batch: RobotBatch, heatmaps: Tensor | None, offset: Tensor) -> Tensor:
        if heatmaps is None:
            raise UserError("loss.localisation: only the conv encoder has heatmaps; set it to 0 or use that encoder")
        shape = (*heatmaps.shape[:2], self.config.vision.landmarks)
        expect("landmark_pixels", batch["landmark_pixels"], *shape, 2)
        expect("landmark_mask", batch.get("landmark_mask"), *shape)
        known = batch["landmark_mask"][..., None]
        where = batch["landmark_pixels"].masked_fill(~known, 0.0) + offset[:, None, None]
        inside = (where.abs() <= 1.0).all(-1)
        mask = batch["landmark_mask"] & batch["frame_mask"][..., None] & inside
        return _mean(splat_cross_entropy(heatmaps[..., : shape[2]].movedim(-1, 2), where), mask)

    def _image_loss(self, batch: RobotBatch, out: Tensor, seen: dict[str, Tensor | None]) -> Tensor:
        mask = batch["next_image_mask"] & batch["frame_mask"]
        total = out.new_zeros((), dtype=torch.float32)
        for i, camera in enumerate(f"{role}_later" for role in self.roles):
            head = self.image_heads[min(i, len(self.image_heads) - 1)]
            images = seen[camera].flatten(0, 1)
            if head.official:
                images = self.vlm.static_encoder.pixels(images).permute(0, 2, 3, 1)
            # A frame is predicted by every window that contains the one before it: its target is made once.
            target = windows_of(head.target(images).unflatten(0, tuple(seen[camera].shape[:2])), out.shape[1])
            predicted = head(out.unflatten(2, (len(self.roles), -1))[:, :, i].flatten(0, 1)).unflatten(
                0, tuple(out.shape[:2])
            )
            total = total + _mean(F.mse_loss(predicted, target, reduction="none").mean((-1, -2)), mask)
        return total

    @torch.no_grad()
    def predict(self, batch: RobotBatch, images: bool = False) -> dict[str, Tensor]:
        """Return what the heads say at every frame, before any clamping: what the official code's forward returns.

        Returns:
            arm (B, T, C, 6), gripper (B, T, C), logits; with `images` and the image heads: static, gripper_image
            (B, T, P, 3 patch^2), patches of the coming frames.
        """
        z_l = self.vlm.language(batch["text"], batch["text_mask"])
        tokens = batch if "static_tokens" in batch else self._encode(batch, z_l)
        some = {key: value for key, value in batch.items() if key != "next_components"}
        outputs, _ = self._forward_tokens(some, z_l, tokens, False, images and self.config.fwd_pred)
        arm, logits = self.head(outputs["action"])
        result = {"arm": arm, "gripper": logits[..., 0]}
        if "image" in outputs:
            for i, name in enumerate(("static", "gripper_image")):
                head = self.image_heads[min(i, len(self.image_heads) - 1)]
                asked = outputs["image"].unflatten(2, (len(self.roles), -1))[:, :, i]
                result[name] = head(asked.flatten(0, 1)).unflatten(0, tuple(asked.shape[:2]))
        return result

    @torch.no_grad()
    def act(self, batch: RobotBatch) -> Tensor:
        """Plan from the last frame and compute nothing that the plan does not need.

        Args:
            batch: the observations of `RobotBatch`, no targets. Instead of images it may hold `encode_frames`' tokens.
                `clips` matter only with `analogy.at_rollout` on.

        Returns:
            (B, C, A) float32, as `Robot.encode_actions` has them: continuous numbers clamped to [-1, 1], binary ones
            exactly -1 or 1.
        """
        expect_frames(batch, *self.roles)
        z_l = self.vlm.language(batch["text"], batch["text_mask"])
        tokens = batch if "static_tokens" in batch else self._encode(batch, z_l)
        outputs, _ = self._forward_tokens(batch, z_l, tokens, True)
        arm, logits = self.head(outputs["action"])
        return _actions(arm.clamp(-1.0, 1.0), logits)[:, -1]


def _check_landmarks(config: ModelConfig, robot: Robot) -> None:
    for name, array in (("geometry", "landmarks"), ("localisation", "landmark_pixels")):
        if getattr(config.loss, name) > 0 and array not in robot.arrays:
            raise UserError(f"loss.{name}: episodes of {robot.name} have no {array}; set it to 0")


def windows_of(values: Tensor, frames: int | None) -> Tensor:
    """Return all runs of `frames` consecutive frames: (S * (F - frames + 1), frames, ...) of `values` (S, F, ...).

    They are views where memory allows it: frames that runs share are not copied. None: `values` are windows already.
    """
    if frames is None or values.shape[1] == frames:
        return values
    return values.unfold(1, frames, 1).movedim(-1, 2).flatten(0, 1)


def _check_segments(batch: RobotBatch) -> tuple[int, int]:
    """Return windows a segment and frames to encode of each.

    Raises:
        UserError: the segments' shapes do not fit the windows.
    """
    segments, frame_mask = batch["segments"], batch["frame_mask"]
    some = segments.get("static_features", segments.get("static"))
    windows, frames = frame_mask.shape
    each, rest = divmod(windows, len(some))
    count = each + frames - 1
    if rest or some.shape[1] < count:
        raise UserError(
            f"segments: {len(some)} of {some.shape[1]} frames cannot hold {windows} windows of {frames}; give "
            f"{count} frames for each"
        )
    return each, count


def _actions(arm: Tensor, logits: Tensor) -> Tensor:
    return torch.cat([arm.detach(), 2.0 * (logits > 0).float() - 1.0], dim=-1)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask`, over all shares of the batch; what is masked may even be infinite."""
    return torch.where(mask, values, torch.zeros_like(values)).sum() / divisor(mask.sum())
