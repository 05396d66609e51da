"""The names and shapes of the originals' tensors, and ours for them."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from arvrm.model.config import ModelConfig

ACTION_QUERIES = ("action_queries.weight", "action_chunk_queries.weight")
IMAGE_QUERIES = ("obs_queries.weight", "obs_hand_queries.weight")
TURNED = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
"""GPT-2's layers, which are stored input by output."""


def tensor_names(config: ModelConfig, chunk: bool) -> dict[str, list[str]]:
    """Return the names of all tensors that a forward pass reads, each with its names in a `PolicyNet`.

    Args:
        config: of the network that computes the same; what its frozen encoders have is not among them.
        chunk: the original has queries for each action of a chunk.
    """
    names = {
        "embed_timestep.weight": ["vlm.time"],
        "perceiver_resampler.latents": ["vlm.resampler.latents"],
        "perceiver_resampler.media_pos_emb": ["vlm.resampler.position"],
        "action_queries.weight": ["action_queries"],
        "obs_queries.weight": ["image_queries"],
        "obs_hand_queries.weight": ["image_queries"],
        "mask_token": ["image_heads.0.mask"],
        "decoder_pos_embed": ["image_heads.0.position"],
    }
    if chunk:
        names["action_chunk_queries.weight"] = ["action_queries"]
    published = config.published
    assert published is not None
    if published.positions:
        names["transformer.wpe.weight"] = ["positions"]
    both = {
        "embed_arm_state": "state_token.arm",
        "embed_gripper_state": "state_token.gripper",
        "embed_state": "state_token.join",
        "embed_lang": "vlm.text.project",
        "embed_img": "vlm.static_tokens.cls",
        "embed_patch": "vlm.static_tokens.patch",
        "embed_hand_img": "gripper_tokens.cls",
        "embed_hand_patch": "gripper_tokens.patch",
        "embed_ln": "vlm.transformer.norm_in",
        "transformer.ln_f": "vlm.transformer.norm_out",
        "perceiver_resampler.norm": "vlm.resampler.norm_out",
        "pred_act_mlps.0": "head.layers.0",
        "pred_act_mlps.1": "head.layers.2",
        "pred_arm_act": "head.arm",
        "pred_gripper_act": "head.gripper",
        "decoder_embed": "image_heads.0.embed",
        "decoder_norm": "image_heads.0.norm",
        "decoder_pred": "image_heads.0.pixels",
    }
    for i in range(config.layers):
        old, new = f"transformer.h.{i}", f"vlm.transformer.blocks.{i}"
        both |= {f"{old}.ln_1": f"{new}.norm_attention", f"{old}.ln_2": f"{new}.norm_mlp"}
        both |= {f"{old}.attn.c_proj": f"{new}.out"}
        both |= {f"{old}.mlp.c_fc": f"{new}.mlp.0", f"{old}.mlp.c_proj": f"{new}.mlp.2"}
        for end in (".weight", ".bias"):
            names[f"{old}.attn.c_attn{end}"] = [f"{new}.query{end}", f"{new}.key_value{end}"]
    for i in range(config.image_decoder_layers):
        old, new = f"decoder_blocks.{i}", f"image_heads.0.blocks.{i}"
        both |= {f"{old}.norm1": f"{new}.norm_attention", f"{old}.norm2": f"{new}.norm_mlp"}
        both |= {f"{old}.attn.qkv": f"{new}.qkv", f"{old}.attn.proj": f"{new}.out"}
        both |= {f"{old}.mlp.fc1": f"{new}.mlp.0", f"{old}.mlp.fc2": f"{new}.mlp.2"}
    resamplers = {"perceiver_resampler": "vlm.resampler"}
    if published.second is not None:
        both |= {"embed_dino_img": "second.cls.static", "embed_dino_hand_img": "second.cls.gripper"}
        if published.second.patches:
            both |= {"embed_dino_patch": "second.patch.static", "embed_dino_hand_patch": "second.patch.gripper"}
            both |= {"perceiver_resampler_dino.norm": "second.resampler.norm_out"}
            names["perceiver_resampler_dino.latents"] = ["second.resampler.latents"]
            names["perceiver_resampler_dino.media_pos_emb"] = ["second.resampler.position"]
            resamplers["perceiver_resampler_dino"] = "second.resampler"
    for (theirs, ours), i in itertools.product(resamplers.items(), range(config.resampler_layers)):
        old, new = f"{theirs}.layers.{i}", f"{ours}.layers.{i}"
        both |= {f"{old}.0.norm_media": f"{new}.norm_patches", f"{old}.0.norm_latents": f"{new}.norm_latents"}
        both |= {f"{old}.1.0": f"{new}.norm_mlp"}
        for a, b in (
            ("0.to_q", "query"),
            ("0.to_kv", "key_value"),
            ("0.to_out", "out"),
            ("1.1", "up"),
            ("1.3", "down"),
        ):
            names[f"{old}.{a}.weight"] = [f"{new}.{b}.weight"]
    for old, new in both.items():
        names |= {old + end: [new + end] for end in (".weight", ".bias")}
    return names


def original_shape(name: str, targets: list[str], own: Mapping[str, Tensor], config: ModelConfig) -> tuple[int, ...]:
    """Return the shape of an original's tensor, given the state dict of the network that it becomes."""
    shape = tuple(own[targets[0]].shape)
    if name in IMAGE_QUERIES:
        return shape[1:]
    if name in ACTION_QUERIES:
        return (1 if name == ACTION_QUERIES[0] else config.chunk, config.width)
    if ".attn.c_attn." in name:
        shape = (3 * config.width, *shape[1:])
    if TURNED.search(name):
        return shape[::-1]
    if name == "mask_token":
        return (1, 1, 1, *shape)
    if name.endswith(".media_pos_emb"):
        return (1, 1, *shape)
    return (1, *shape) if name == "decoder_pos_embed" else shape


def ours(tensors: Mapping[str, Tensor], names: Mapping[str, list[str]], config: ModelConfig) -> dict[str, Tensor]:
    """Return the state dict of ours for the tensors of `names`, all of which are there, of the right shape."""
    values: dict[str, Tensor] = {}
    for name, targets in names.items():
        values |= _mapped(name, tensors[name].detach().float(), targets, config)
    # A chunk's queries are offsets from the one query of GR-1.
    queries = [tensors[name].float() for name in ACTION_QUERIES if name in names]
    values["action_queries"] = functools.reduce(torch.add, queries)
    values["image_queries"] = torch.stack([tensors[name].float() for name in IMAGE_QUERIES])
    return values


def _mapped(name: str, value: Tensor, targets: list[str], config: ModelConfig) -> dict[str, Tensor]:
    """Return our tensors for one of the original's."""
    if name in (*ACTION_QUERIES, *IMAGE_QUERIES):
        return {}  # joined with their partners
    if TURNED.search(name):
        value = value.T.contiguous()
    if ".attn.c_attn." in name:
        return {targets[0]: value[: config.width].clone(), targets[1]: value[config.width :].clone()}
    if name == "mask_token" or name.endswith(".media_pos_emb"):
        value = value.flatten()
    if name == "decoder_pos_embed":
        value = value[0]
    return {targets[0]: value.clone()}
