"""ViTs of transformers as image encoders, with or without words that modulate them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arvrm.interface import UserError
from arvrm.model.backbones import pretrained, transformers_for
from arvrm.model.config import VisionConfig


class FilmedLayer(nn.Module):
    """A block of a ViT whose stream words scale and shift between attention and MLP (FiLM, Perez et al., 2018).

    Where and how as in AR-VRM's published code: h (1 + gamma) + beta, both linear in the language token. They start at
    zero here, so that training starts from what the ViT has learnt.
    """

    def __init__(self, block: nn.Module, width: int, language_width: int) -> None:
        super().__init__()
        self.block: Any = block
        self.scale, self.shift = nn.Linear(language_width, width), nn.Linear(language_width, width)
        for layer in (self.scale, self.shift):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.words: Tensor | None = None

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Tensor:
        """Return (N, 1 + P, D) for `hidden` (N, 1 + P, D), with `words` (N, language_width) set before."""
        block, words = self.block, self.words
        if hasattr(block, "norm1"):  # DINOv2's names
            attended = block.attention(block.norm1(hidden), attention_mask=attention_mask, **options)[0]
            hidden = block.drop_path(block.layer_scale1(attended)) + hidden
        else:
            hidden = block.attention(block.layernorm_before(hidden), attention_mask, **options)[0] + hidden
        hidden = hidden * (1.0 + self.scale(words)[:, None]) + self.shift(words)[:, None]
        if hasattr(block, "norm2"):
            return block.drop_path(block.layer_scale2(block.mlp(block.norm2(hidden)))) + hidden
        return block.mlp(block.layernorm_after(hidden)) + hidden


class VitEncoder(nn.Module):
    """MAE's or DINOv2's ViT through transformers: CLS and patch tokens of the last layer.

    Args:
        language_width: of the words, where they modulate it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: VisionConfig, language_width: int = 0) -> None:
        super().__init__()
        transformers = transformers_for(f"vision.encoder {config.encoder!r}")
        names = {"mae": ("ViTMAEConfig", "ViTMAEModel"), "dinov2": ("Dinov2Config", "Dinov2Model")}[config.encoder]
        kind, model = (getattr(transformers, name) for name in names)
        # MAE's class hides patches unless told that none are masked.
        extra = {"mask_ratio": 0.0} if config.encoder == "mae" else {}
        if config.backbone is not None:
            self.model = model(kind(**{**config.backbone, **extra}))
        else:
            self.model = pretrained(model, config.path, "vision.path")
            for name, value in extra.items():
                setattr(self.model.config, name, value)
        settings = self.model.config
        self.masks = bool(extra)
        self.size, self.width = config.input_size or settings.image_size, settings.hidden_size
        if self.size % settings.patch_size:
            raise UserError(f"vision.input_size: {self.size} is no multiple of the ViT's patch, {settings.patch_size}")
        self.patches = (self.size // settings.patch_size) ** 2
        self.register_buffer("mean", 255.0 * torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("std", 255.0 * torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)
        if config.frozen:
            self.model.requires_grad_(False)
        self.filmed: list[FilmedLayer] = []
        if config.modulated:
            # transformers keeps MAE's blocks in the model and DINOv2's in its encoder.
            layers = self.model.layers if hasattr(self.model, "layers") else self.model.encoder.layer
            for i, block in enumerate(layers):
                layers[i] = FilmedLayer(block, self.width, language_width)
                self.filmed.append(layers[i])

    def pixels(self, images: Tensor) -> Tensor:
        """Return (N, 3, size, size) float32, normalised by ImageNet's statistics, for images (N, H, W, 3) uint8."""
        x = images.permute(0, 3, 1, 2).float()
        if x.shape[-2:] != (self.size, self.size):
            x = self.resized(x)
        return (x - self.mean) / self.std

    def resized(self, images: Tensor) -> Tensor:
        """Return images (N, 3, H, W), 0..255, at the size that the ViT reads, bicubic."""
        return F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True).clamp(0.0, 255.0)

    def backbone(self) -> dict[str, Any]:
        """The transformers configuration that rebuilds this encoder."""
        return self.model.config.to_diff_dict()

    def forward(self, images: Tensor, language: Tensor | None) -> tuple[Tensor, None]:
        """Return features (N, 1 + P, D) for images (N, H, W, 3) uint8, resized here (bicubic); no heatmaps.

        `language` (N, language_width) is read by a modulated ViT only.
        """
        x = self.pixels(images)
        for layer in self.filmed:
            layer.words = language
        try:
            return self._features(x), None
        finally:
            for layer in self.filmed:
                layer.words = None

    def _features(self, x: Tensor) -> Tensor:
        if self.masks:
            # The class shuffles patches by this noise; ascending noise keeps their order.
            noise = torch.arange(self.patches, device=x.device, dtype=torch.float32).expand(len(x), -1)
            other = {"interpolate_pos_encoding": True} if self.size != self.model.config.image_size else {}
            return self.model(x, noise=noise, **other).last_hidden_state
        return self.model(x).last_hidden_state


def pretrained_model(config: VisionConfig) -> Any:
    """Return the transformers model of `config.path`: a local directory, a hub name or the original file."""
    transformers = transformers_for(f"vision.encoder {config.encoder!r}")
    name = {"mae": "ViTMAEModel", "dinov2": "Dinov2Model"}[config.encoder]
    return pretrained(getattr(transformers, name), config.path, "vision.path")
