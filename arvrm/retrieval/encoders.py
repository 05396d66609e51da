"""The frozen encoders of an index, and what they give for the frames of stores."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arvrm.config import from_dict
from arvrm.model.encoders import TextConfig, TextEncoder, VisionConfig, fit_images, image_encoder
from arvrm.model.upgrade import upgraded_model
from arvrm.windows import EpisodeTable, FrameBank, decode_frames
from arvrm.windows.headers import static_camera

_TEXT: Mapping[str, Any] = {
    "encoder": "wordllama",
    "path": None,
    "width": 256,
    "max_tokens": 32,
    "pooling": "attention",
}
_VISION: Mapping[str, Any] = {
    "encoder": "conv",
    "path": None,
    "backbone": None,
    "modulated": False,
    "second": None,
    "frozen": False,
    "input_size": None,
    "clamp": True,
    "static_size": 96,
    "gripper_size": 64,
    "width": 128,
    "channels": (32, 64),
    "depth": 2,
    "points": 32,
    "landmarks": 7,
    "film": True,
    "colour_jitter": 0.0,
    "shift_static": 0.05,
    "shift_gripper": 0.048,
}
"""The settings that identify an encoder, for good: indexes and caches of features know it by a hash of them, whatever
becomes of the settings. Each with its value where a configuration has no such setting."""


def description(
    text: TextConfig, vision: VisionConfig, size: int, language_width: int, published: object | None = None
) -> dict[str, Any]:
    """Return what identifies encoders besides the image encoder's weights, as index.json has it.

    Args:
        published: settings of an imported policy that are not in `text` and `vision`.
    """
    others = {} if published is None else vars(published)
    settings = [
        {name: {**others, **dataclasses.asdict(config)}.get(name, absent) for name, absent in known.items()}
        for config, known in ((text, _TEXT), (vision, _VISION))
    ]
    # What is off is left out, so that indexes made before it existed keep their hash.
    for name in ("modulated", "second"):
        if not settings[1][name]:
            del settings[1][name]
    return {"text": settings[0], "vision": settings[1], "size": size, "language_width": language_width}


class FrozenEncoders:
    """The text and the image encoder that an index compares with; none of it is trained any more.

    Args:
        text: the text encoder.
        vision: how `image` was built.
        size: pixels at which a conv encoder reads images.
        language_width: width of the language token that modulates the encoder, if it does; here it is zero, so that
            frames are compared as they look, whatever the instruction.
        image: the encoder, as `model.encoders.image_encoder` builds it.
        described: as `description` gives it, where that takes more than the above.
    """

    def __init__(
        self,
        text: TextEncoder,
        vision: VisionConfig,
        size: int,
        language_width: int,
        image: torch.nn.Module,
        described: dict[str, Any] | None = None,
    ) -> None:
        self.text, self.vision, self.size, self.language_width = text, vision, size, language_width
        self.image = image.eval().requires_grad_(False)
        self.described = described or description(text.config, vision, size, language_width)

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
            by_words = self.vision.film or self.vision.modulated
            words = torch.zeros(len(images), self.language_width, device=device) if by_words else None
            cls = self.image(images, words)[0][:, 0].float()
            out.append(torch.nn.functional.normalize(cls, dim=-1).cpu().numpy())
        return np.concatenate(out)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the weights into `folder`; return what index.json keeps."""
        from safetensors.torch import save_file

        state = {name: value.detach().cpu().contiguous() for name, value in self.image.state_dict().items()}
        save_file(state, str(folder / "encoder.safetensors"))
        return {**self.described, "hash": self.hash}

    @classmethod
    def load(cls, folder: Path, saved: Mapping[str, Any]) -> FrozenEncoders:
        """Read what `save` wrote, and returned as `saved`."""
        from safetensors.torch import load_file

        described = {name: value for name, value in saved.items() if name != "hash"}
        place = f"{folder}/index.json"
        settings = upgraded_model({"text": described["text"], "vision": described["vision"]}, place)
        text = from_dict(TextConfig, settings["text"], place)
        vision = from_dict(VisionConfig, settings["vision"], place)
        size, language_width = described["size"], described["language_width"]
        image = image_encoder(vision, size, language_width)
        image.load_state_dict(load_file(str(folder / "encoder.safetensors")))
        return cls(TextEncoder(text), vision, size, language_width, image, described)


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
