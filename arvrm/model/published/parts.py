"""The published architectures' parts, in place of ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from arvrm.interface import Robot, UserError
from arvrm.model.config import ModelConfig
from arvrm.model.conv import ConvEncoder
from arvrm.model.image_encoder import image_encoder
from arvrm.model.image_head import ImageHead
from arvrm.model.layout import Group, Window
from arvrm.model.parts import Parts
from arvrm.model.published.config import PublishedConfig
from arvrm.model.published.image_head import SharedImageHead
from arvrm.model.published.state import OfficialState
from arvrm.model.published.text import MeanText
from arvrm.model.published.vision import SecondSight
from arvrm.model.transformer import PerceiverResampler, Transformer
from arvrm.model.vit import VitEncoder


class PublishedParts(Parts):
    """Each setting of `PublishedConfig`, where it says something else than ours does."""

    def __init__(self, config: ModelConfig, published: PublishedConfig) -> None:
        super().__init__(config)
        self.published = published
        self.head_activation = published.head_activation

    def text(self) -> nn.Module:
        if self.published.text_pooling == "attention":
            return super().text()
        return MeanText(self.config.text.width, self.config.width, self.published.text_pooling == "unit")

    def image_encoder(self, size: int) -> ConvEncoder | VitEncoder:
        return image_encoder(self.config.vision, size, self.config.width, self.published)

    def resampler(self, features: int) -> PerceiverResampler:
        config = self.config
        sizes = config.latents, config.resampler_layers, config.resampler_heads, config.resampler_head_width
        return PerceiverResampler(features, *sizes, self.published.resampler_position)

    def transformer(self) -> Transformer:
        config = self.config
        return Transformer(config.width, config.layers, config.heads, self.published.activation, config.dropout)

    def state_token(self, robot: Robot) -> nn.Module:
        if self.published.state == "components":
            return super().state_token(robot)
        return OfficialState(self.config.width, robot)

    def image_heads(self, sizes: Sequence[int], static: ConvEncoder | VitEncoder) -> Sequence[ImageHead]:
        config, heads = self.config, self.published.image_decoder_heads or self.config.heads
        if self.published.image_decoder == "shared" and isinstance(static, VitEncoder):
            return [SharedImageHead(config.width, static, config.image_patch, config.image_decoder_layers, heads)]
        return [ImageHead(config.width, size, config.image_patch, config.image_decoder_layers, heads) for size in sizes]

    def camera_group(self, role: str) -> Group:
        group, second = super().camera_group(role), self.published.second
        if second is None:
            return group
        more = (("second cls", 1), ("second latents", self.config.latents)) if second.patches else (("second cls", 1),)
        return Group(role, group.parts + more)

    def camera_tokens(
        self, network: nn.Module, role: str, tokens: Tensor, pixels: Tensor | None, z_l: Tensor
    ) -> Tensor:
        if self.published.second is None:
            return tokens
        if pixels is None:
            raise UserError(f"{role}_features: published.second needs images; set data.frozen_features to false")
        return torch.cat([tokens, network.get_submodule("second")(pixels[:, : tokens.shape[1]], role, z_l)], dim=2)

    def add_encoders(self, network: Any) -> None:
        if self.published.second is not None:
            network.second = SecondSight(self.config, network.roles, self.resampler)

    def add_embeddings(self, network: Any) -> None:
        if self.published.positions:
            network.positions = nn.Parameter(0.02 * torch.randn(self.published.positions, self.config.width))

    def self_contained(self, config: ModelConfig, network: Any) -> ModelConfig:
        second = self.published.second
        if second is None or not hasattr(network, "second"):
            return config
        second = dataclasses.replace(second, backbone=network.second.encoder.backbone())
        return dataclasses.replace(config, published=dataclasses.replace(self.published, second=second))

    def place_in_time(self, window: Window, time: Tensor, network: Any) -> Window:
        tokens, queries, mask = window.tokens, window.queries, window.token_mask
        count, device = tokens.shape[1], tokens.device
        rank = torch.arange(count, device=device)[None]
        if self.published.time_from == "first":
            rank = (rank - (~mask[..., 0]).long().cumprod(1).sum(1, keepdim=True)).clamp(min=0)
        rows = time[rank]
        second, untimed = self.published.second, window.layout.where("static", "second latents")
        if untimed is not None and second is not None and not second.latents_have_time:
            place = torch.arange(tokens.shape[2], device=device)[:, None]
            tokens = tokens + rows[:, :, None] * ((place < untimed.start) | (place >= untimed.stop))
        else:
            tokens = tokens + rows[:, :, None]
        if self.published.language_tokens == "first":
            mask = mask.clone()
            mask[:, :, 0] = False
            mask[:, 0, 0] = True
        if self.published.query_time:
            queries = queries + rows[:, window.query_frames]
        window = window._replace(tokens=tokens, queries=queries, token_mask=mask)
        table = getattr(network, "positions", None)
        return window if table is None else window._replace(added=_positions(window, rank, table))


def _positions(window: Window, rank: Tensor, table: Tensor) -> Tensor:
    """Return the rows of GPT-2's position embedding (rows, d) for the context and the queries (B or 1, T n + Q, d).

    Every query has its row, asked or not, so that a row means the same in training and in a rollout. That of the next
    state, which no published code has, shares the first.
    """
    layout, device = window.layout, window.tokens.device
    stride = layout.size + layout.count("action") + layout.count("image")
    frames = window.tokens.shape[1]
    if frames * stride > len(table):
        raise UserError(f"published.positions: {frames} frames of {stride} tokens need more than {len(table)}")
    first = {"action": 0, "image": layout.count("action"), "state": 0}
    places = [
        first[kind] + torch.arange(end - start, device=device) % layout.count(kind)
        for kind, (start, end) in window.slices.items()
    ]
    inside = torch.arange(layout.size, device=device)
    context = (rank[..., None] * stride + inside).flatten(1)
    return table[torch.cat([context, rank[:, window.query_frames] * stride + layout.size + torch.cat(places)], dim=1)]
