"""The records that a store holds: how an episode becomes bytes, and how they are read again.

docs/data.md describes every key and byte. Every record starts with the CRC-32 of its content. There is no pickle.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import simplejpeg

from arvrm.episodes.schema import (
    EMBODIMENTS,
    EncodedImages,
    Episode,
    EpisodeHeader,
    arrays_of,
    cameras_of,
    validate_episode,
)
from arvrm.interface import UserError

FORMAT = "arvrm-episodes"
VERSION = 1
JPEG_QUALITY = 92
JPEG_SUBSAMPLING = "444"
"""No colour subsampling: a block is a few pixels wide, and its colour is what the instruction names."""
OWN_KEYS = frozenset({"format", "version", "jpeg", "complete", "counts", "robot"})
"""Keys of a manifest that the store itself writes."""
_MOST_STEPS, _MOST_PIXELS = 2**31 - 1, 65_500  # the most that int32 and JPEG can say
_DTYPES = ("float64", "float32", "bool", "int32", "int64", "uint8")


@dataclass(frozen=True)
class EncodedEpisode:
    """An episode as its records: what `encode_episode` makes in a worker and `EpisodeWriter.append_encoded` stores."""

    id: str
    header: bytes
    arrays: tuple[tuple[bytes, bytes], ...]
    images: tuple[tuple[bytes, bytes], ...]
    steps: int
    frames: int
    robot: str = ""


def encode_image(image: np.ndarray, jpeg_quality: int = JPEG_QUALITY) -> bytes:
    """Return an (H, W, 3) uint8 RGB image as the JPEG that a store holds."""
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=jpeg_quality, colorspace="RGB", colorsubsampling=JPEG_SUBSAMPLING
    )


def encode_episode(episode: Episode, jpeg_quality: int = JPEG_QUALITY) -> EncodedEpisode:
    """Validate an episode and turn it into the records a store holds; the costly half of writing, safe in a worker.

    Raises:
        UserError: the episode is not valid (see `validate_episode`), or its `meta` is not JSON-able.
    """
    validate_episode(episode)
    arrays, specs = [], []
    for name in arrays_of(episode):
        if name in episode.arrays:
            array = np.ascontiguousarray(episode.arrays[name])
            specs.append([name, array.dtype.name, list(array.shape)])
            arrays.append((array_key(episode.id, name), seal(array.tobytes())))
    encoded = {camera: _encode_images(episode.images[camera], jpeg_quality) for camera in cameras_of(episode)}
    header = {
        "id": episode.id,
        "embodiment": episode.embodiment,
        "instruction": episode.instruction,
        "task": episode.task,
        "scene": episode.scene,
        "source": episode.source,
        "group": episode.group,
        "fps": float(episode.fps),
        "steps": episode.steps,
        "image_steps": episode.image_steps.astype("<i4").tobytes(),
        "cameras": [[camera, images.height, images.width] for camera, images in encoded.items()],
        "arrays": specs,
        "meta": episode.meta,
    }
    try:
        json.dumps(episode.meta, allow_nan=False)
        packed = bytes(msgpack.packb(header) or b"")
    except (TypeError, ValueError) as error:
        raise UserError(f"episode {episode.id!r}: meta is not JSON-able ({error}); use plain Python values") from error
    images = [
        (image_key(episode.id, camera, row), seal(jpeg))
        for camera, found in encoded.items()
        for row, jpeg in enumerate(found.jpegs)
    ]
    return EncodedEpisode(
        episode.id,
        seal(packed),
        tuple(arrays),
        tuple(images),
        episode.steps,
        len(episode.image_steps),
        episode.robot,
    )


def _encode_images(images: np.ndarray | EncodedImages, jpeg_quality: int) -> EncodedImages:
    if isinstance(images, EncodedImages):
        return images
    _, height, width, _ = images.shape
    return EncodedImages(height, width, tuple(encode_image(image, jpeg_quality) for image in images))


def seal(content: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(content)) + content


def array_key(id: str, name: str) -> bytes:
    return b"%s\0%s" % (id.encode(), name.encode())


def image_key(id: str, camera: str, row: int) -> bytes:
    return b"%s\0%s\0%s" % (id.encode(), camera.encode(), row.to_bytes(4, "big"))


def unpack_header(place: str, content: memoryview) -> EpisodeHeader:
    try:
        values = msgpack.unpackb(content)
        values["image_steps"] = np.frombuffer(values["image_steps"], "<i4").astype(np.int32)
        values["image_steps"].flags.writeable = False
        values["cameras"] = {camera: (height, width) for camera, height, width in values["cameras"]}
        values["arrays"] = {name: (dtype, tuple(shape)) for name, dtype, shape in values["arrays"]}
        if not all(dtype in _DTYPES for dtype, _ in values["arrays"].values()):
            raise ValueError("an unknown dtype")
        header = EpisodeHeader(**values)
        _check_header(header)
        return header
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, msgpack.UnpackException) as error:
        raise UserError(f"{place}: cannot be read ({error}); write the store again") from error


def _check_header(header: EpisodeHeader) -> None:
    """Raise ValueError for values that no writer of ours gives, before anything is made of their size."""
    for name in ("id", "embodiment", "instruction", "task", "scene", "source", "group"):
        if not isinstance(getattr(header, name), str):
            raise ValueError(f"{name} is no text")
    if header.embodiment not in EMBODIMENTS or not isinstance(header.meta, dict):
        raise ValueError("embodiment or meta is unknown")
    if not (isinstance(header.fps, (int, float)) and 0 < header.fps < math.inf):
        raise ValueError(f"fps is {header.fps!r}")
    if type(header.steps) is not int or not 0 < header.steps <= _MOST_STEPS:
        raise ValueError(f"steps is {header.steps!r}")
    at = header.image_steps
    if len(at) and ((np.diff(at) <= 0).any() or at[0] < 0 or at[-1] >= header.steps):
        raise ValueError("image_steps do not ascend within the steps")
    for camera, (height, width) in header.cameras.items():
        sizes = type(height) is int and type(width) is int
        if not isinstance(camera, str) or not sizes or not (0 < height <= _MOST_PIXELS and 0 < width <= _MOST_PIXELS):
            raise ValueError(f"camera {str(camera)[:40]!r} is {str(height)[:20]} x {str(width)[:20]} pixels")
    for name, (_, shape) in header.arrays.items():
        whole = isinstance(name, str) and all(type(size) is int and 0 <= size <= _MOST_STEPS for size in shape)
        if not whole or not shape or shape[0] != header.steps:
            raise ValueError(f"array {str(name)[:40]!r} has not one row a step")


def full_manifest(path: Path, manifest: dict[str, Any], jpeg_quality: int) -> dict[str, Any]:
    reserved = OWN_KEYS & set(manifest)
    if reserved:
        raise UserError(f"{path}: manifest key {sorted(reserved)[0]!r} is the store's own; use another name")
    try:
        manifest = json.loads(json.dumps(manifest, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: manifest is not JSON-able ({error}); use plain Python values") from error
    jpeg = {"quality": jpeg_quality, "subsampling": JPEG_SUBSAMPLING}
    return {"format": FORMAT, "version": VERSION, "jpeg": jpeg, "complete": False, **manifest}


def json_bytes(values: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(values), sort_keys=True).encode()


def parse_manifest(path: Path, content: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(content)
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']!r}")
        version = manifest["version"]
        if not isinstance(manifest["jpeg"], dict) or not {"quality", "subsampling"} <= manifest["jpeg"].keys():
            raise ValueError("jpeg is not described")
        if not isinstance(manifest["complete"], bool):
            raise ValueError(f"complete {manifest['complete']!r}")
        if not isinstance(manifest.get("robot", ""), str):
            raise ValueError(f"robot {manifest['robot']!r}")
        if not isinstance(manifest.get("robot_description", {}), dict):
            raise ValueError("robot_description is no object")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: its manifest cannot be read ({error}); write the store again") from error
    if version != VERSION:
        raise UserError(f"{path}: has format version {version}, this program reads {VERSION}; write the store again")
    return manifest


def parse_counts(path: Path, content: bytes) -> dict[str, int]:
    """Read what the store counts; raises UserError where it is damaged."""
    try:
        counts = json.loads(content)
        if not all(type(counts[name]) is int and counts[name] >= 0 for name in counts):
            raise ValueError("a count is no number from 0")
        return dict(counts)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: its counts cannot be read ({error}); write the store again") from error


def difference(key: str, old: object, new: object) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for inner in sorted({*old, *new}):
            if old.get(inner) != new.get(inner):
                return difference(f"{key}.{inner}", old.get(inner), new.get(inner))
    return f"{key} = {old!r}, not {new!r}"
