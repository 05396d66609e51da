"""The frozen encoders of an index, and what they give for the frames of stores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arvrm.model.encoders import (
    PublishedConfig,
    TextEncoder,
    VisionConfig,
    described_encoders,
    fit_images,
    image_encoder,
    load_weights,
    save_weights,
    upgraded_encoders,
)
from arvrm.windows import EpisodeTable, FrameBank, decode_frames
from arvrm.windows.headers import static_camera


class FrozenEncoders:
    """The text and the image encoder that an index compares with; none of it is trained any more.

    Args:
        text: the text encoder.
        vision: how `image` was built.
        size: pixels at which a conv encoder reads images.
        language_width: width of the language token that modulates the encoder, if it does; here it is zero, so that
            frames are compared as they look, whatever the instruction.
        image: the encoder, as `model.image_encoder.image_encoder` builds it.
        published: what the network that `image` is from has of a published one; None: nothing.
    """

    def __init__(
        self,
        text: TextEncoder,
        vision: VisionConfig,
        size: int,
        language_width: int,
        image: torch.nn.Module,
        published: PublishedConfig | None = None,
    ) -> None:
        self.text, self.vision, self.size, self.language_width = text, vision, size, language_width
        self.published = published
        self.image = image.eval().requires_grad_(False)

    @cached_property
    def hash(self) -> str:
        """16 hex digits of weights and configuration."""
        digest = hashlib.sha256(json.dumps(self.described, sort_keys=True).encode())
        for name, value in sorted(self.image.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def sentences(self, sentences: Sequence[str]) -> np.ndarray:
        """Return (n, E) float32 of unit length."""
        unique = sorted(set(sentences))
        features = dict(zip(unique, self.text.sentence(unique).numpy(), strict=True))
        return np.stack([features[sentence] for sentence in sentences])

    @torch.no_grad()
    def images(self, frames: np.ndarray, batch: int = 256) -> np.ndarray:
        """Return (n, D) float32 of unit length for (n, H, W, 3) uint8."""
        device = next(self.image.parameters()).device
        out = []
        for start in range(0, len(frames), batch):
            images = torch.from_numpy(np.ascontiguousarray(frames[start : start + batch])).to(device)
            if self.vision.encoder == "conv":
                images, _ = fit_images(images[None], self.size)
            words = torch.zeros(len(images), self.language_width, device=device) if self.vision.by_words else None
            cls = self.image(images, words)[0][:, 0].float()
            out.append(torch.nn.functional.normalize(cls, dim=-1).cpu().numpy())
        return np.concatenate(out)

    @property
    def described(self) -> dict[str, Any]:
        """What identifies the encoders besides the image encoder's weights, as index.json has it."""
        return {
            **described_encoders(self.text.config, self.vision, self.published),
            "size": self.size,
            "language_width": self.language_width,
        }

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the weights into `folder`; return what index.json keeps."""
        save_weights(folder / "encoder.safetensors", self.image.state_dict())
        return {**self.described, "hash": self.hash}

    @classmethod
    def load(cls, folder: Path, description: dict[str, Any]) -> FrozenEncoders:
        """Read what `save` wrote."""
        text, vision, published = upgraded_encoders(description, f"{folder}/index.json")
        size, language_width = description["size"], description["language_width"]
        image = image_encoder(vision, size, language_width, published)
        load_weights(image, folder, "encoder.safetensors")
        return cls(TextEncoder(text), vision, size, language_width, image, published)


def frame_features(
    table: EpisodeTable,
    encoders: FrozenEncoders,
    cache: str | Path | None = None,
    progress: Callable[[int], object] | None = None,
) -> FrameBank:
    """Return unit-length CLS features (F, D) float16 of the static camera, computed once per encoder and store."""
    return decode_frames(
        table,
        static_camera(table.robot),
        cache=cache,
        compute=lambda frames: encoders.images(frames).astype(np.float16),
        key=f"cls-{encoders.hash}",
        progress=progress,
    )
