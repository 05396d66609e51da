"""Settings that only a published architecture needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from arvrm.config import bounded, check_bounds


@dataclass(frozen=True)
class SecondVisionConfig:
    """A frozen ViT beside the image encoder of a policy, as AR-VRM's code has DINOv2-B beside MAE.

    It sees what the first one sees, and its tokens follow the first one's of the same camera.

    Attributes:
        encoder, path, backbone, input_size, modulated: as in `VisionConfig`; modulated is AR-VRM's ABCD code.
        patches: its CLS token, then M latents of all its tokens through a resampler of its own; false: CLS only.
        latents_have_time: all of them carry their frame's time; false: the static camera's latents do not, as in
            AR-VRM's code.
    """

    encoder: Literal["mae", "dinov2"] = "dinov2"
    path: str | None = None
    backbone: dict[str, Any] | None = None
    input_size: int | None = bounded(224, least=1, most=4096)
    modulated: bool = True
    patches: bool = True
    latents_have_time: bool = True

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.patches and not self.latents_have_time:
            raise ValueError("latents_have_time is about its patches; set it to true without them")


@dataclass(frozen=True)
class PublishedConfig:
    """How a network differs from ours. The defaults are GR-1's, of which all published code descends.

    Attributes:
        activation: in the transformer's MLPs.
        text_pooling: "linear": the mean of the text tokens, then one linear layer; "unit": the same on a mean of length
            1; "attention": ours.
        second: another ViT beside the image encoder; null: none.
        clamp: bring what a ViT's bicubic resize overshoots back to 0..255, as ours does; false: leave it, and scale to
            the last digit as the official code does.
        resampler_position: add a learnt vector to all patches (its embedding of its one medium).
        state: how the state token is made. "official": one linear layer of pose (m, rad) and one of the last gripper
            command, joined by a third; "components": ours.
        time_from: time counts from the "first" frame that is not padding, since it pads behind, or from the "window"'s
            first, as ours does.
        query_time: queries carry their frame's time embedding, as ours do.
        positions: rows of a position embedding added to all tokens after the first layer norm (1024 in GR-Chunk, whose
            transformer is GPT-2); 0: none.
        language_tokens: "every": the language token opens every frame; "first": only the first.
        head_activation: between the action head's layers.
        image_decoder: one is "shared" by the cameras, and reads and predicts the images as the ViT sees them; or "each"
            has its own, as in ours.
        image_decoder_heads: of its attention; null: the transformer's.
        clamp_actions: bring planned continuous actions back to [-1, 1], as ours does; false: leave them, as no
            published code, wrapper or simulator clips them.
        history: what a rollout looks back to: the last frames at which it made "plans", as the published evaluations
            do, or frames at the "stride" of training, as ours does. Alike where each plan executes one action.
    """

    activation: Literal["gelu", "relu"] = "relu"
    text_pooling: Literal["attention", "linear", "unit"] = "unit"
    second: SecondVisionConfig | None = None
    clamp: bool = False
    resampler_position: bool = True
    state: Literal["components", "official"] = "official"
    time_from: Literal["window", "first"] = "first"
    query_time: bool = False
    positions: int = bounded(0, least=0, most=10**6)
    language_tokens: Literal["every", "first"] = "every"
    head_activation: Literal["gelu", "none"] = "none"
    image_decoder: Literal["each", "shared"] = "shared"
    image_decoder_heads: int | None = bounded(None, least=1, most=4096)
    clamp_actions: bool = False
    history: Literal["plans", "stride"] = "plans"

    __post_init__ = check_bounds
