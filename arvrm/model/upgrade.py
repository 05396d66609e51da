"""Files of older versions, read as those of today. Everything that a version wrote and this one would not is here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from arvrm.config import from_dict
from arvrm.interface import UserError
from arvrm.model.config import TextConfig, VisionConfig
from arvrm.model.published.config import PublishedConfig

CHECKPOINT_FORMAT = 2
_PUBLISHED = {
    ("", "activation"): "activation",
    ("text", "pooling"): "text_pooling",
    ("vision", "second"): "second",
    ("vision", "clamp"): "clamp",
    ("", "resampler_position"): "resampler_position",
    ("", "state"): "state",
    ("", "time_from"): "time_from",
    ("", "query_time"): "query_time",
    ("", "positions"): "positions",
    ("", "language_tokens"): "language_tokens",
    ("", "head_activation"): "head_activation",
    ("", "image_decoder"): "image_decoder",
    ("", "image_decoder_heads"): "image_decoder_heads",
}
"""Where a setting of `PublishedConfig` stood among the others: section and name."""
OURS: dict[str, Any] = {
    "activation": "gelu",
    "text_pooling": "attention",
    "second": None,
    "clamp": True,
    "resampler_position": False,
    "state": "components",
    "time_from": "window",
    "query_time": True,
    "positions": 0,
    "language_tokens": "every",
    "head_activation": "gelu",
    "image_decoder": "each",
    "image_decoder_heads": None,
}
"""The settings of `PublishedConfig` by which a network is ours."""


def section_of(values: Any, place: str) -> Mapping[str, Any]:
    """Return `values`; raises UserError unless it is a mapping."""
    if not isinstance(values, Mapping):
        raise UserError(f"{place}: expected an object with keys, got {str(values)[:80]!r}")
    return values


def without(values: Mapping[str, Any], constants: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return `values` without settings that no longer exist.

    Args:
        constants: their names, and the value that is now the only one.

    Raises:
        UserError: one has another value.
    """
    for name, constant in constants.items():
        if name in values and values[name] != constant:
            raise UserError(
                f"{place}.{name}: is {values[name]!r}, and is always {constant!r} now; use an older version"
            )
    return {name: value for name, value in values.items() if name not in constants}


def upgraded_checkpoint(described: dict[str, Any], place: str) -> dict[str, Any]:
    """Return what config.json of a checkpoint would say today, of any format; the settings in "model" excepted.

    Raises:
        UserError: the format is unknown, or something is absent that is needed now.
    """
    version = described.get("format")
    if version == CHECKPOINT_FORMAT:
        return described
    if version != 1:
        raise UserError(f"{place}: format {version!r} is unknown; this version reads 1 to {CHECKPOINT_FORMAT}")
    robot = "calvin" if described.get("kind") == "policy" else None
    metadata = _metadata(section_of(described.get("metadata") or {}, f"{place}: metadata"), f"{place}: metadata")
    return {**described, "format": CHECKPOINT_FORMAT, "robot": robot, "metadata": metadata}


def upgraded_model(values: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return settings of `ModelConfig` as this version writes them; those of today stay as they are.

    What only a published architecture needs had no section of its own once. Where all of it was as in ours, none is
    needed now.

    Raises:
        UserError: a setting that no longer exists has another value than the one that is left.
    """
    values = without(section_of(values, place), {"joint_attention": True}, place)
    if "foresee" in values:
        values["horizon"] = values.pop("foresee")
    for section in ("text", "vision", "loss", "places"):
        if isinstance(values.get(section), Mapping):
            values[section] = dict(values[section])
    if isinstance(values.get("loss"), dict):
        values["loss"] = without(values["loss"], {"arm_beta": 1.0}, f"{place}.loss")
    if isinstance(values.get("places"), dict):
        # Heatmaps once ended with the image.
        values["places"].setdefault("border", 0)
    found = {}
    for (section, old), name in _PUBLISHED.items():
        inside = values.get(section) if section else values
        if isinstance(inside, dict) and old in inside:
            found[name] = inside.pop(old)
    if any(value != OURS[name] for name, value in found.items()):
        published = {**OURS, **found}
        if isinstance(published["second"], Mapping):
            second = dict(published["second"])
            if "timed" in second:
                second["latents_have_time"] = second.pop("timed")
            published["second"] = second
        if published["state"] != "official":
            # One of ours with a published part: it goes on acting as it did.
            published |= {"clamp_actions": True, "history": "stride"}
        values["published"] = published
    return values


def upgraded_encoders(
    description: Mapping[str, Any], place: str
) -> tuple[TextConfig, VisionConfig, PublishedConfig | None]:
    """Return the encoders that an index's `description` is about; it is what `described_encoders` gives, or once gave.

    Raises:
        UserError: a setting is unknown, or has a value that this version does not have.
    """
    values = upgraded_model({name: section_of(description, place).get(name) for name in ("text", "vision")}, place)
    published = values.get("published")
    return (
        from_dict(TextConfig, values["text"], f"{place}.text"),
        from_dict(VisionConfig, values["vision"], f"{place}.vision"),
        None if published is None else from_dict(PublishedConfig, published, f"{place}.published"),
    )


def described_encoders(text: TextConfig, vision: VisionConfig, published: PublishedConfig | None) -> dict[str, Any]:
    """Return the settings of the frozen encoders in the form of all versions, so that their hash stays what it was."""
    own = OURS if published is None else asdict(published)
    described = {
        "text": {**asdict(text), "pooling": own["text_pooling"]},
        "vision": {**asdict(vision), "clamp": own["clamp"]},
    }
    if own["second"] is not None:
        second = dict(own["second"])
        second["timed"] = second.pop("latents_have_time")
        described["vision"]["second"] = second
    # What is off is left out, so that indexes made before it existed keep their hash.
    if not vision.modulated:
        del described["vision"]["modulated"]
    return described


def _metadata(values: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Format 1's metadata as a `CheckpointMetadata` in dictionaries."""
    window = section_of(values.get("window") or {}, f"{place}.window")
    images = section_of(values.get("images") or {}, f"{place}.images")
    kept = ("stage", "execute_steps", "index", "pretrained", "tasks", "episodes", "stores", "imported")
    found = {name: values[name] for name in kept if name in values}
    found |= {name: window[name] for name in ("history", "stride") if name in window}
    if images:
        found["images"] = {f"rgb_{name}": size for name, size in images.items()}
    if "retrieval" in values:
        found["clips"] = section_of(values["retrieval"], f"{place}.retrieval").get("clips")
    found["settings"] = {name: values[name] for name in ("data", "window", "train", "retrieval") if name in values}
    return found
