"""The codes whose checkpoints are read: what their files hold, and how to tell one from another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from arvrm.interface import UserError
from arvrm.model.backbones import Weights

Kind = Literal["gr1", "gr-chunk", "ar-vrm"]
_AR_UNREAD = {
    "ar_matrix": "read only with human motion, which the released code never gives",
    "embed_dino_": "read only with DINOv2, which this variant does not have",
}


@dataclass(frozen=True)
class Variant:
    """One code.

    Attributes:
        kind: which code wrote the file.
        title: for messages.
        marks: beginnings of names that this variant has, and none of those after it in `VARIANTS`; () for the last.
        chunk: it has queries for a chunk of actions, and GPT-2's position embedding.
        second: how it uses DINOv2 beside the first image encoder.
        dino: where it keeps it, and before what in each block.
        unread: beginnings of names that its forward pass does not read: why.
    """

    kind: Kind
    title: str
    marks: tuple[str, ...]
    chunk: bool = True
    second: Literal["films", "cls"] | None = None
    dino: tuple[str, str] = ("", "")
    unread: Mapping[str, str] = field(default_factory=dict)


VARIANTS = (
    Variant(
        "ar-vrm",
        "AR-VRM with DINOv2 modulated by words",
        ("dino.", "perceiver_resampler_dino.", "embed_dino_patch.", "embed_dino_hand_patch.", "ego_hand.vision_"),
        second="films",
        dino=("dino.vision_backbone.", "block."),
        unread={"ar_matrix": _AR_UNREAD["ar_matrix"]},
    ),
    Variant(
        "ar-vrm",
        "AR-VRM with DINOv2's CLS token",
        ("dinov2_vitb14.", "ego_hand."),
        second="cls",
        dino=("dinov2_vitb14.", ""),
        unread={"ar_matrix": _AR_UNREAD["ar_matrix"]},
    ),
    Variant("ar-vrm", "AR-VRM without DINOv2", tuple(_AR_UNREAD), unread=_AR_UNREAD),
    Variant("gr-chunk", "GR-Chunk", ("action_chunk_queries.", "transformer.wpe.")),
    Variant("gr1", "GR-1", (), chunk=False),
)
UNREAD = {
    "transformer.wte.": "GPT-2's table of words; inputs are embeddings",
    "model_clip.": "CLIP, frozen; read from text.path when a policy is loaded",
    "model_mae.": "the frozen image encoder, loaded under its own names",
}
FOREIGN = ("progress_mask_token_embedding.", "embed_style_vector.", "decode_action.")
"""What GR-MG, which grew out of GR-1's code, has and none of the variants."""
FILM = re.compile(r"^dino\.vision_backbone\.encoder\.layer\.\d+\.(scale|shift)\.")
"""What AR-VRM's code put around DINOv2's blocks."""
BUFFERS = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)$")


def recognised(tensors: Weights, kind: str, given: Mapping[str, Any], place: str) -> tuple[Variant, str]:
    """Return which variant a file is of, whole or not, and a name in it that says so.

    Args:
        kind: the only one to consider; "auto": all.
        given: the configuration it was trained with, as far as it is known.

    Raises:
        UserError: no variant, one of a relative's, or not the one that `given` speaks of.
    """
    other = next((name for start in FOREIGN for name in tensors if f".{start}" in f".{name}"), None)
    if other is not None:
        raise UserError(
            f"{place}: is no checkpoint of GR-1, GR-Chunk or AR-VRM: it holds {tensors.prefix}{other}, which is of "
            "GR-MG and of none of them; evaluate it with its own code"
        )
    if "embed_arm_state.weight" not in tensors and "embed_ln.weight" not in tensors:
        raise UserError(f"{place}: has no embed_arm_state or embed_ln; it is no checkpoint of GR-1's family")
    variants = [variant for variant in VARIANTS if kind in ("auto", variant.kind)]
    variant, mark = variants[-1], ""
    for some in variants:
        found = next((name for name in tensors if some.marks and name.startswith(some.marks)), None)
        if found is not None:
            variant, mark = some, found
            break
    novel = given.get("novel")
    if (novel is False and variant.second is None) or (novel is True and variant.second is not None):
        has = "has no tensor of DINOv2" if novel is False else f"has {tensors.prefix}{mark}"
        raise UserError(
            f"{place}: {has}, and its configuration says novel {str(novel).lower()}; "
            "give the whole file, or its own configuration"
        )
    if not variant.chunk and given.get("chunk_size", 1) != 1:
        raise UserError(
            f"{place}: has neither action_chunk_queries nor transformer.wpe, as GR-1, and its configuration says "
            f"chunk_size {given['chunk_size']}; give the whole file, or set chunk_size to 1"
        )
    return variant, mark


def why_unread(name: str, variant: Variant) -> str | None:
    """Return why a tensor of the original is not read; None: it is not known to be unread."""
    if BUFFERS.search(name):
        return "the causal mask, a constant"
    known = {**UNREAD, **variant.unread}
    if variant.second is not None:
        known |= {
            "ego_hand.": "another name of DINOv2's tensors",
            variant.dino[0]: "DINOv2, loaded under its own names",
        }
    return next((why for beginning, why in known.items() if name.startswith(beginning)), None)


def check_copies(tensors: Weights, variant: Variant, place: str) -> None:
    """Raise UserError where `ego_hand`, another name of DINOv2, holds something else than DINOv2's own name does."""
    before = tensors.prefix
    own = variant.dino[0].split(".")[0] + "."
    copies = {own + name.removeprefix("ego_hand."): name for name in tensors if name.startswith("ego_hand.")}
    if not copies:
        return
    for name in (name for name in tensors if name.startswith(own)):
        if name not in copies:
            raise UserError(
                f"{place}: has {before}{name} and no {before}ego_hand.{name.removeprefix(own)}; the file is not whole"
            )
    for name, copy in copies.items():
        if name not in tensors:
            raise UserError(f"{place}: has {before}{copy} and no {before}{name}; the file is not whole")
        if not torch.equal(tensors[name], tensors[copy]):
            raise UserError(
                f"{place}: {before}{copy} and {before}{name} differ, one tensor in the original; copy it again"
            )


def check_depth(tensors: Weights, values: Mapping[str, Any], title: str, by: str, place: str) -> None:
    """Raise UserError unless a file has as many layers as its configuration says."""
    layers = (("n_layer", "transformer.h."), ("resampler_depth", "perceiver_resampler.layers."))
    for key, beginning in layers:
        numbers = {name[len(beginning) :].split(".")[0] for name in tensors if name.startswith(beginning)}
        absent = [i for i in range(min(values[key], len(tensors) + 1)) if str(i) not in numbers]
        if absent or len(numbers) > values[key]:
            which = f"lacks {tensors.prefix}{beginning}{absent[0]}.*" if absent else f"has {len(numbers)} layers"
            raise UserError(
                f"{place}: {which}, and {title} has {key} {values[key]} by {by} (as published where that is silent); "
                "give the whole file, or with --trained-with its own configuration"
            )


def check_whole(
    tensors: Weights,
    expected: Mapping[str, tuple[int, ...]],
    unknown: list[str],
    title: str,
    by: str,
    place: str,
) -> None:
    """Raise UserError, naming them, where a file lacks tensors, or has others or of other shapes.

    Args:
        expected: the names that are read and their shapes.
        unknown: names of the file that the variant does not have.
        title, by: which variant, and which configuration says so.
    """
    lacking = [name for name in expected if name not in tensors]
    problems = [f"lacks {_listed(lacking, tensors.prefix)}"] if lacking else []
    if unknown:
        problems.append(f"has {_listed(unknown, tensors.prefix)}, which it does not have")
    for name, shape in expected.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            problems.append(f"{tensors.prefix}{name} is {tuple(tensors[name].shape)}, expected {shape}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"{place}: is no whole file of {title} with {by}: {'; '.join(problems[:3])}{more}; "
            "give the whole file, or with --trained-with its own configuration"
        )


def _listed(names: list[str], prefix: str) -> str:
    return ", ".join(prefix + name for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
