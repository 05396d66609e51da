"""Which image encoder a configuration names."""

from __future__ import annotations

import dataclasses

from arvrm.interface import UserError
from arvrm.model.config import VisionConfig
from arvrm.model.conv import ConvEncoder
from arvrm.model.vit import VitEncoder


def image_encoder(config: VisionConfig, size: int, language_width: int) -> ConvEncoder | VitEncoder:
    """Build the encoder of one camera whose images the conv encoder reads at `size` pixels."""
    if config.encoder != "conv":
        return VitEncoder(config, language_width)
    encoder = ConvEncoder(config, size, language_width)
    if config.frozen:
        encoder.requires_grad_(False)
    return encoder


def second_encoder(config: VisionConfig, language_width: int) -> VitEncoder:
    """Build the frozen ViT of `config.second`."""
    second = config.second
    own = dataclasses.replace(
        config,
        encoder=second.encoder,
        path=second.path,
        backbone=second.backbone,
        input_size=second.input_size,
        modulated=second.modulated,
        second=None,
        frozen=True,
    )
    try:
        return VitEncoder(own, language_width)
    except UserError as error:
        raise UserError(str(error).replace("vision.", "vision.second.")) from error
