"""The official codes' image encoders: a ViT read to the last digit as they do, and AR-VRM's second one beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arvrm.interface import UserError
from arvrm.model.config import ModelConfig, VisionConfig
from arvrm.model.transformer import PerceiverResampler
from arvrm.model.vit import VitEncoder


class UnclampedVit(VitEncoder):
    """Leaves what the bicubic resize overshoots, and scales to the last digit as the official code does."""

    def __init__(self, config: VisionConfig, language_width: int = 0) -> None:
        super().__init__(config, language_width)
        self.std = 255.0 * (torch.tensor([0.229, 0.224, 0.225]) + 1e-6)[:, None, None]

    def resized(self, images: Tensor) -> Tensor:
        return F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True)


class SecondSight(nn.Module):
    """Tokens of a second, frozen ViT beside the image encoder: its CLS token, then M latents of all it sees.

    As in AR-VRM's published code, which reads the CLS token among the patches too.

    Args:
        config: of the network, with `published.second`.
        roles: of the cameras that it sees through.
        resampler: makes its resampler, given its width.
    """

    def __init__(
        self, config: ModelConfig, roles: Sequence[str], resampler: Callable[[int], PerceiverResampler]
    ) -> None:
        super().__init__()
        assert config.published is not None and config.published.second is not None
        self.encoder = second_encoder(config)
        features = self.encoder.width
        second = config.published.second
        self.resampler = resampler(features) if second.patches else None
        self.cls = nn.ModuleDict({role: nn.Linear(features, config.width) for role in roles})
        if self.resampler is not None:
            self.patch = nn.ModuleDict({role: nn.Linear(features, config.width) for role in roles})

    def forward(self, images: Tensor, role: str, z_l: Tensor) -> Tensor:
        """Return (B, T, 1 + M or 1, d) for images (B, T, H, W, 3) uint8 and z_l (B, d)."""
        words = z_l.repeat_interleave(images.shape[1], 0)
        # Gradients pass the frozen ViT on their way to what words do to it.
        with torch.set_grad_enabled(torch.is_grad_enabled() and bool(self.encoder.filmed)):
            features, _ = self.encoder(images.flatten(0, 1), words)
        tokens = [self.cls[role](features[:, :1])]
        if self.resampler is not None:
            tokens.append(self.patch[role](self.resampler(features)))
        return torch.cat(tokens, dim=1).unflatten(0, images.shape[:2])


def second_encoder(config: ModelConfig) -> VitEncoder:
    """Build the frozen ViT of `config.published.second`.

    Raises:
        UserError: its weights cannot be found; names the setting.
    """
    published = config.published
    assert published is not None and published.second is not None
    second = published.second
    own = dataclasses.replace(
        config.vision,
        encoder=second.encoder,
        path=second.path,
        backbone=second.backbone,
        input_size=second.input_size,
        modulated=second.modulated,
        frozen=True,
    )
    try:
        return (VitEncoder if published.clamp else UnclampedVit)(own, config.width)
    except UserError as error:
        raise UserError(str(error).replace("vision.", "published.second.")) from error
