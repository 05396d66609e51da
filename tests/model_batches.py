"""Random batches and a small configuration for tests of the model."""

import dataclasses

import torch

from arvrm.model.config import ModelConfig, VisionConfig
from arvrm.model.published.config import PublishedConfig
from arvrm.model.upgrade import OURS
from arvrm.robots.calvin import CALVIN

SMALL = ModelConfig(
    vision=VisionConfig(static_size=32, gripper_size=32, width=24, channels=(8, 16), depth=1, points=8),
    width=32,
    layers=2,
    heads=2,
    latents=2,
    resampler_heads=2,
    resampler_head_width=8,
    joint_width=16,
    chunk=4,
)


def small(**changes):
    """SMALL with changes; vision, analogy and loss take dictionaries of changes, published of changes from ours."""
    if isinstance(changes.get("published"), dict):
        changes["published"] = PublishedConfig(**{**OURS, **changes["published"]})
    for name in ("vision", "analogy", "loss", "text"):
        if isinstance(changes.get(name), dict):
            changes[name] = dataclasses.replace(getattr(SMALL, name), **changes[name])
    return dataclasses.replace(SMALL, **changes)


def human_batch(batch=2, frames=4, keypoints=21, size=32, words=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    start = torch.rand(batch, 1, keypoints, 3, generator=g) - 0.5
    drift = 0.1 * torch.randn(batch, 1, 1, 3, generator=g) * torch.arange(frames)[:, None, None]
    return {
        "text": torch.randn(batch, words, 256, generator=g),
        "text_mask": torch.ones(batch, words, dtype=torch.bool),
        "static": torch.randint(0, 256, (batch, frames, size, size, 3), dtype=torch.uint8, generator=g),
        "keypoints": start + drift,
        "visible": torch.rand(batch, frames, keypoints, generator=g) > 0.2,
        "frame_mask": torch.ones(batch, frames, dtype=torch.bool),
    }


def robot_batch(batch=2, frames=2, clips=0, chunk=4, size=32, words=5, seed=0):
    g = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return 2 * torch.rand(*shape, generator=g) - 1

    def image(*shape):
        return torch.randint(0, 256, (*shape, size, size, 3), dtype=torch.uint8, generator=g)

    result = {
        "text": torch.randn(batch, words, 256, generator=g),
        "text_mask": torch.ones(batch, words, dtype=torch.bool),
        "static": image(batch, frames),
        "gripper": image(batch, frames),
        "frame_mask": torch.ones(batch, frames, dtype=torch.bool),
        "state": uniform(batch, frames, CALVIN.state_size),
        "components": uniform(batch, frames, 7),
        "actions": torch.cat([uniform(batch, frames, chunk, 6), uniform(batch, frames, chunk, 1).sign()], dim=-1),
        "action_mask": torch.ones(batch, frames, chunk, dtype=torch.bool),
        "next_components": uniform(batch, frames, 7),
        "next_mask": torch.ones(batch, frames, dtype=torch.bool),
        "landmark_pixels": 0.9 * uniform(batch, frames, 7, 2),
        "landmark_mask": torch.ones(batch, frames, 7, dtype=torch.bool),
        "landmark_offsets": torch.linspace(-1, 1, batch * frames * 21).view(batch, frames, 7, 3),
        "next_static": image(batch, frames),
        "next_gripper": image(batch, frames),
        "next_image_mask": torch.ones(batch, frames, dtype=torch.bool),
        "clips": None,
    }
    if clips:
        flat = human_batch(batch * clips, frames, size=size, words=words, seed=seed + 1)
        result["clips"] = {name: value.unflatten(0, (batch, clips)) for name, value in flat.items()}
    return result


def clone(batch):
    return {k: clone(v) if isinstance(v, dict) else None if v is None else v.clone() for k, v in batch.items()}
