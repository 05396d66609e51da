"""The parts of a network of which a published architecture has others: here ours, there `published.parts`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from arvrm.interface import Robot
from arvrm.model.config import ModelConfig
from arvrm.model.conv import ConvEncoder
from arvrm.model.image_encoder import image_encoder
from arvrm.model.image_head import ImageHead
from arvrm.model.layout import Group, Window, camera_group
from arvrm.model.text import TextPool
from arvrm.model.transformer import PerceiverResampler, Transformer, mlp
from arvrm.model.vit import VitEncoder


class StateToken(nn.Sequential):
    """The state token, of per-component features and the robot's own state."""

    def __init__(self, config: ModelConfig, robot: Robot) -> None:
        count = len(robot.components) * config.joint_width + robot.state_size
        super().__init__(*mlp(count, config.width, config.width))

    def forward(self, f_s: Tensor, components: Tensor, state: Tensor) -> Tensor:  # type: ignore[override]
        """Return (B, T, d) for f_s (B, T, S, d_k), components (B, T, S) and state (B, T, Ds)."""
        return super().forward(torch.cat([f_s.flatten(2), state.to(f_s.dtype)], dim=-1))


class Parts:
    """Makes the parts of a network, in the order in which it asks for them.

    Attributes:
        head_activation: between the layers of the action head.
    """

    head_activation = "gelu"

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def text(self) -> nn.Module:
        """What turns embeddings (B, L, E) and their mask (B, L) into the language token (B, d)."""
        return TextPool(self.config.text, self.config.width)

    def image_encoder(self, size: int) -> ConvEncoder | VitEncoder:
        """The encoder of a camera whose images a conv encoder reads at `size` pixels."""
        return image_encoder(self.config.vision, size, self.config.width)

    def resampler(self, features: int) -> PerceiverResampler:
        """What turns patches `features` wide into M latents."""
        config = self.config
        sizes = config.latents, config.resampler_layers, config.resampler_heads, config.resampler_head_width
        return PerceiverResampler(features, *sizes)

    def transformer(self) -> Transformer:
        config = self.config
        return Transformer(config.width, config.layers, config.heads, "gelu", config.dropout)

    def state_token(self, robot: Robot) -> nn.Module:
        """What `StateToken` does."""
        return StateToken(self.config, robot)

    def image_heads(self, sizes: Sequence[int], static: ConvEncoder | VitEncoder) -> Sequence[ImageHead]:
        """What predicts the images of cameras read at `sizes` pixels: a head for each, or one for all."""
        config = self.config
        return [
            ImageHead(config.width, size, config.image_patch, config.image_decoder_layers, config.heads)
            for size in sizes
        ]

    def camera_group(self, role: str) -> Group:
        """The tokens of a camera."""
        return camera_group(role, self.config.latents)

    def camera_tokens(
        self, network: nn.Module, role: str, tokens: Tensor, pixels: Tensor | None, z_l: Tensor
    ) -> Tensor:
        """Return all tokens (B, T, n, d) of a camera, given those of its encoder (B, T, M + 1, d).

        Args:
            network: the policy.
            pixels: (B, F, size, size, 3) uint8, its images, T at least; None where features came in their place.
            z_l: (B, d).
        """
        return tokens

    def add_encoders(self, network: nn.Module) -> None:
        """Give a policy more encoders than those of its cameras; ours needs none."""

    def add_embeddings(self, network: nn.Module) -> None:
        """Give a policy more embeddings; ours needs none."""

    def self_contained(self, config: ModelConfig, network: nn.Module) -> ModelConfig:
        """Return `config` with all that loading `network` needs of what `add_encoders` added."""
        return config

    def place_in_time(self, window: Window, time: Tensor, network: nn.Module) -> Window:
        """Say when each token is: here its frame's row of `time` (max_frames, d) is added to it.

        Args:
            network: whose window it is.
        """
        rows = time[None, : window.tokens.shape[1]]
        tokens, queries = window.tokens + rows[:, :, None], window.queries + rows[:, window.query_frames]
        return window._replace(tokens=tokens, queries=queries)


def parts_of(config: ModelConfig) -> Parts:
    """Return what makes the parts of a network of this configuration."""
    if config.published is None:
        return Parts(config)
    from arvrm.model.published.parts import PublishedParts

    return PublishedParts(config, config.published)
