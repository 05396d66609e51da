"""Messages as bytes: msgpack with NumPy arrays, in the two spellings that openpi and vla-eval use. No pickle.

Whoever sends a message may be anyone, so nothing is allocated before its size is known to be allowed: arrays are views
of the message's own bytes, of plain numbers only, and an image's size is read before the image is.
"""

from __future__ import annotations

import io
import math
import re
from typing import Any, Literal

import numpy as np

MOST_BYTES = 32 * 2**20
"""Bytes of a message, and of the images that are unpacked from one."""
_MOST_CONTAINERS, _MOST_ITEMS, _MOST_AXES = 2000, 1024, 8
_NUMBERS = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_TEXT = re.compile(r"[<>|=]?U\d{1,6}")

Spelling = Literal["bytes", "text"]
"""Whether the keys that mark an array are bytes (openpi) or text (vla-eval)."""


class WireError(ValueError):
    """A message that cannot be read. One line: what is wrong with it."""


def packed(message: Any, spelling: Spelling = "bytes") -> bytes:
    """Return a message (dictionaries, lists, texts, numbers, arrays) as bytes.

    Raises:
        TypeError: an array holds something else than numbers, or the message something unknown.
    """
    import msgpack

    def hook(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        if not isinstance(value, np.ndarray) or not _NUMBERS.fullmatch(value.dtype.str):
            raise TypeError(f"{type(value).__name__} {getattr(value, 'dtype', '')} cannot be sent")
        found = {"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": value.shape}
        return found if spelling == "text" else {key.encode(): part for key, part in found.items()}

    return msgpack.packb(message, default=hook)


def unpacked(data: bytes, most: int = MOST_BYTES) -> Any:
    """Return the message in `data`; arrays are read-only views of it.

    Raises:
        WireError: it is longer than `most` bytes, no msgpack, nested or split up beyond measure, or an array in it is
            of other things than numbers, or not as long as its shape says.
    """
    import msgpack

    if len(data) > most:
        raise WireError(f"message of {len(data)} bytes; at most {most} are read")
    reader = _Reader(most)
    try:
        return msgpack.unpackb(
            data,
            object_pairs_hook=reader.mapping,
            list_hook=reader.items,
            ext_hook=_refuse_extension,
            max_array_len=_MOST_ITEMS,
            max_map_len=_MOST_ITEMS,
            max_str_len=2**16,
            max_bin_len=most,
            max_ext_len=0,
        )
    except WireError:
        raise
    except Exception as error:  # msgpack has a class of its own for each kind of damage, and recursion one more
        raise WireError(f"message is no msgpack that can be read ({type(error).__name__}: {error})"[:300]) from error


def _refuse_extension(code: int, _: bytes) -> Any:
    raise WireError(f"message holds an extension of msgpack ({code}); send plain values and arrays")


class _Reader:
    """Counts what a message makes of itself while it is read."""

    def __init__(self, most: int) -> None:
        self.containers, self.image_bytes = 0, most

    def items(self, items: list[Any]) -> list[Any]:
        self.containers += 1
        if self.containers > _MOST_CONTAINERS:
            raise WireError(f"message holds more than {_MOST_CONTAINERS} lists and mappings; send arrays")
        return items

    def mapping(self, pairs: list[tuple[Any, Any]]) -> Any:
        self.items([])
        found = {key.decode("utf-8", "replace") if isinstance(key, bytes) else key: value for key, value in pairs}
        if "__ndarray__" in found:
            return _array(found)
        if "__npgeneric__" in found:
            return _scalar(found)
        if "__image__" in found:
            return self._image(found)
        return found

    def _image(self, found: dict[str, Any]) -> np.ndarray:
        if found.get("format") == "raw":
            return _array(found)
        shape, data = _shape(found), found.get("data")
        if not isinstance(data, bytes) or len(shape) not in (2, 3) or found.get("format") not in ("png", "jpeg"):
            raise WireError(f"image of format {str(found.get('format'))[:20]!r}; send raw, png or jpeg")
        size = math.prod(shape)
        self.image_bytes -= size
        if self.image_bytes < 0:
            raise WireError(f"images of more than {MOST_BYTES} bytes in one message; send smaller ones")
        from PIL import Image

        try:
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
            if (image.height, image.width) != shape[:2] or size < image.height * image.width * len(image.getbands()):
                raise WireError(f"image of {image.height} x {image.width}, said to have shape {shape}")
            pixels = np.asarray(image)
        except WireError:
            raise
        except Exception as error:
            raise WireError(f"image cannot be read ({type(error).__name__})") from error
        if pixels.shape != shape or pixels.dtype != np.uint8:
            raise WireError(f"image of shape {pixels.shape} {pixels.dtype}, said to have {shape}")
        return pixels


def _array(found: dict[str, Any]) -> np.ndarray | str:
    data, shape = found.get("data"), _shape(found)
    if not isinstance(data, bytes):
        raise WireError("array without bytes")
    kind = _kind(found)
    if math.prod(shape) * kind.itemsize != len(data):
        raise WireError(f"array of shape {shape} {kind} in {len(data)} bytes")
    array = np.ndarray(shape, kind, buffer=data)
    if kind.kind == "U":
        if array.size != 1:
            raise WireError(f"array of {array.size} texts; send one")
        return str(array.reshape(())[()])
    return array


def _scalar(found: dict[str, Any]) -> Any:
    value, kind = found.get("data"), _kind(found)
    if kind.kind == "U" and isinstance(value, str):
        return value
    if kind.kind == "U" or not isinstance(value, (bool, int, float)):
        raise WireError(f"number of type {kind} that is a {type(value).__name__}")
    try:
        return kind.type(value)
    except (OverflowError, ValueError) as error:
        raise WireError(f"number {str(value)[:30]} does not fit {kind}") from error


def _kind(found: dict[str, Any]) -> np.dtype:
    text = found.get("dtype")
    text = text.decode("ascii", "replace") if isinstance(text, bytes) else text
    # Not NumPy's own reading of it: that would take records, objects and arrays of arrays.
    if not isinstance(text, str) or not (_NUMBERS.fullmatch(text) or _TEXT.fullmatch(text)):
        raise WireError(f"array of dtype {str(text)[:30]!r}; send plain numbers")
    return np.dtype(text)


def _shape(found: dict[str, Any]) -> tuple[int, ...]:
    shape = found.get("shape")
    if not isinstance(shape, (list, tuple)) or len(shape) > _MOST_AXES:
        raise WireError(f"array of shape {str(shape)[:60]}; send up to {_MOST_AXES} numbers")
    if not all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 2**40 for size in shape):
        raise WireError(f"array of shape {str(shape)[:60]}; send whole numbers")
    return tuple(shape)
