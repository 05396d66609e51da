"""Which image encoder a configuration names."""

from __future__ import annotations

from arvrm.model.config import VisionConfig
from arvrm.model.conv import ConvEncoder
from arvrm.model.published.config import PublishedConfig
from arvrm.model.vit import VitEncoder


def image_encoder(
    config: VisionConfig, size: int, language_width: int, published: PublishedConfig | None = None
) -> ConvEncoder | VitEncoder:
    """Build the encoder of one camera whose images the conv encoder reads at `size` pixels.

    Args:
        language_width: d of the language token, which may modulate it.
        published: of the network; what it changes of a ViT.
    """
    if config.encoder != "conv":
        if published is not None and not published.clamp:
            from arvrm.model.published.vision import UnclampedVit

            return UnclampedVit(config, language_width)
        return VitEncoder(config, language_width)
    encoder = ConvEncoder(config, size, language_width)
    if config.frozen:
        encoder.requires_grad_(False)
    return encoder
