"""The published networks, as a `ModelConfig`: one table for their configurations and for their checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from arvrm.interface import UserError
from arvrm.model.config import LossConfig, ModelConfig, TextConfig, VisionConfig
from arvrm.model.published.config import PublishedConfig, SecondVisionConfig

CLIP = "openai/clip-vit-base-patch32"
CAMERA_PIXELS = {"static": 200, "gripper": 84}
"""CALVIN's cameras, in whose pixels the published shifts are given."""
NETWORK: dict[str, Any] = {
    "rgb_static_pad": 10,
    "rgb_gripper_pad": 4,
    "rgb_shape": 224,
    "patch_size": 16,
    "embed_dim": 384,
    "n_layer": 12,
    "n_head": 12,
    "activation_function": "relu",
    "dropout": 0.1,
    "n_positions": 1024,
    "resampler_depth": 3,
    "resampler_dim_head": 128,
    "resampler_heads": 4,
    "resampler_num_latents": 9,
    "seq_len": 10,
    "chunk_size": 10,
    "test_chunk_size": 1,
    "fwd_pred": True,
    "lang_feat_dim": 512,
    "decoder_heads": 16,
    "arm_loss_ratio": 100,
}
"""What the published configurations call the settings of a network, and their values (GR-Chunk's)."""
ACTIVATIONS: dict[str, Literal["gelu", "relu"]] = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu"}


def published_model(
    values: Mapping[str, Any],
    encoder: Literal["mae", "dinov2"],
    place: str,
    *,
    clip: str = CLIP,
    path: str | None = None,
    backbone: dict[str, Any] | None = None,
    second: SecondVisionConfig | None = None,
    loss: LossConfig | None = None,
    decoder_layers: int = 2,
) -> ModelConfig:
    """Return the configuration under which `PolicyNet` computes what the published code computes.

    Args:
        values: of the keys of `NETWORK`; rgb_shape None: the image encoder's own size.
        encoder, path, backbone: the frozen image encoder ("mae" or "dinov2"), and its weights or its own configuration.
        place: of the values, for messages.
        clip: weights of the text encoder.
        second: AR-VRM's second image encoder.
        loss: weights but for the arm's; None: ours.
        decoder_layers: of the image decoder.

    Raises:
        UserError: a value that no published code has.
    """
    act = ACTIVATIONS.get(values["activation_function"])
    if act is None:
        known = ", ".join(ACTIVATIONS)
        raise UserError(
            f"{place}: activation_function {values['activation_function']!r} is none of {known}; correct it"
        )
    loss = loss or LossConfig()
    return ModelConfig(
        text=TextConfig(encoder="clip", path=clip, width=values["lang_feat_dim"], max_tokens=1),
        vision=VisionConfig(
            encoder=encoder,
            path=path,
            backbone=backbone,
            frozen=True,
            input_size=values["rgb_shape"],
            static_size=CAMERA_PIXELS["static"],
            gripper_size=CAMERA_PIXELS["gripper"],
            film=False,
            shift_static=values["rgb_static_pad"] / CAMERA_PIXELS["static"],
            shift_gripper=values["rgb_gripper_pad"] / CAMERA_PIXELS["gripper"],
        ),
        loss=dataclasses.replace(loss, arm=float(values["arm_loss_ratio"])),
        width=values["embed_dim"],
        layers=values["n_layer"],
        heads=values["n_head"],
        attention="token",
        dropout=float(values["dropout"]),
        max_frames=values["seq_len"],
        latents=values["resampler_num_latents"],
        resampler_layers=values["resampler_depth"],
        resampler_heads=values["resampler_heads"],
        resampler_head_width=values["resampler_dim_head"],
        chunk=values["chunk_size"],
        fwd_pred=values["fwd_pred"],
        image_decoder_layers=decoder_layers,
        image_patch=values["patch_size"],
        published=PublishedConfig(
            activation=act,
            positions=values["n_positions"],
            second=second,
            image_decoder_heads=values["decoder_heads"],
        ),
    )
