"""Pickles of strangers, read without running them.

A pickle is a program: `pickle.load` calls whatever it names. Here it may name only what arrays, tensors and plain
containers need (`_NUMPY`, `_TORCH`); anything else is refused before it is called. Tensors come back as NumPy arrays,
so that reading them needs no torch.
"""

from __future__ import annotations

import codecs
import io
import math
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from arvrm.interface import UserError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""First object in a file of torch.save's older format, which pickled tensors carry inside."""
_MAX_TENSOR_BYTES = 1 << 30
_PLAIN_DTYPE = re.compile(r"[<>|=]?(?:[biufc]\d{1,2}|[SU]\d{1,9}|O8?|\?)")


class _Call:
    """A function that a pickle may call and nothing else: it cannot set the function's attributes (opcode BUILD)."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a pickle may not change a function")

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("a pickle may not change a function")


class _Dtype:
    """Stands for a numpy.dtype while a pickle is read. NumPy's own would take any state, and some crash the process."""

    __slots__ = ("kind", "order")

    def __init__(self, kind: str, *_: Any) -> None:
        if not isinstance(kind, str) or not _PLAIN_DTYPE.fullmatch(kind):
            raise pickle.UnpicklingError(f"dtype {kind!r}")
        self.kind, self.order = kind, "="

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, and for compound types: subarray, names, fields, ...)
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "=") or any(state[2:5]):
            raise pickle.UnpicklingError(f"dtype state {state!r}")
        self.order = state[1]

    def resolve(self) -> np.dtype:
        return np.dtype(self.kind).newbyteorder(self.order)


class _Array(np.ndarray):
    """An array whose state is checked before NumPy takes it."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _Dtype):
            raise pickle.UnpicklingError("array state")
        version, shape, dtype, fortran, data = state
        dtype = dtype.resolve()
        if version != 1 or not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise pickle.UnpicklingError(f"array shape {shape!r}")
        count, kind = math.prod(shape), list if dtype.hasobject else (bytes, bytearray)
        if len(shape) > 32 or not isinstance(data, kind):
            raise pickle.UnpicklingError(f"array of {type(data).__name__}")
        if len(data) != count * (1 if dtype.hasobject else dtype.itemsize):
            raise pickle.UnpicklingError(f"array of shape {shape} with {len(data)} values or bytes")
        super().__setstate__((1, shape, dtype, bool(fortran), data))


def _empty_array(kind: Any, shape: Any, typecode: Any) -> np.ndarray:
    # NumPy writes an empty array and fills it from the state; any other shape would only reserve memory.
    if kind is not _ARRAY or shape != (0,):
        raise pickle.UnpicklingError(f"array of shape {shape!r} to fill")
    return _Array((0,), np.int8)


def _no_array(*_: Any) -> None:
    raise pickle.UnpicklingError("an array made in an unusual way")


_ARRAY = _Call(_no_array)
"""Stands for the type numpy.ndarray, which pickles only hand on; calling it could reserve any amount of memory."""


def _array_from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    made = _Array((0,), np.int8)
    data = bytes(buffer) if isinstance(buffer, (bytes, bytearray, pickle.PickleBuffer)) else None
    made.__setstate__((1, shape, dtype, order == "F", data))
    return made


def _scalar(dtype: Any, data: Any = b"") -> Any:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes) or dtype.resolve().hasobject:
        raise pickle.UnpicklingError("scalar of objects")
    if len(data) != dtype.resolve().itemsize:
        raise pickle.UnpicklingError(f"scalar of {len(data)} bytes")
    return np.frombuffer(data, dtype.resolve())[0]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    # Protocol 2 has no bytes and spells them as text.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return codecs.latin_1_encode(text)[0]


def _ordered_dict(*items: Any) -> OrderedDict:
    return OrderedDict(*items)


_NUMPY: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _ARRAY,
    ("numpy", "dtype"): _Call(_Dtype),
    ("_codecs", "encode"): _Call(_encode),
    ("collections", "OrderedDict"): _Call(_ordered_dict),
}
for _package in ("numpy.core", "numpy._core"):
    _NUMPY[(f"{_package}.multiarray", "_reconstruct")] = _Call(_empty_array)
    _NUMPY[(f"{_package}.multiarray", "scalar")] = _Call(_scalar)
    _NUMPY[(f"{_package}.numeric", "_frombuffer")] = _Call(_array_from_buffer)
for _module in ("builtins", "__builtin__"):
    for _type in (set, frozenset, complex, int, float, bool, str, list, tuple, dict):
        _NUMPY[(_module, _type.__name__)] = _Call(_type)

_STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class _Storage:
    """A flat, typed block of a tensor's memory. Built by us only; a pickle cannot name it."""

    __slots__ = ("kind", "data")

    def __init__(self, kind: str, data: np.ndarray | None = None) -> None:
        self.kind, self.data = kind, data


def _rebuild_tensor(storage: Any, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray:
    if not isinstance(storage, _Storage) or storage.data is None:
        raise pickle.UnpicklingError("tensor without storage")
    flat = storage.data
    size, stride = tuple(int(n) for n in size), tuple(int(n) for n in stride)
    offset = int(offset)
    if len(size) != len(stride) or offset < 0 or min((*size, *stride, 0)) < 0:
        raise pickle.UnpicklingError(f"tensor of size {size}, stride {stride}")
    count = math.prod(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if count and last >= flat.size:
        raise pickle.UnpicklingError("tensor larger than its storage")
    if count * flat.itemsize > _MAX_TENSOR_BYTES:
        raise pickle.UnpicklingError(f"tensor of {count} elements")
    if not count:
        return np.zeros(size, flat.dtype)
    steps = tuple(s * flat.itemsize for s in stride)
    return np.lib.stride_tricks.as_strided(flat[offset:], size, steps, writeable=False).copy()


def _rebuild_tensor_v1(storage: Any, offset: int, size: tuple, stride: tuple) -> np.ndarray:
    return _rebuild_tensor(storage, offset, size, stride)


def _load_storage(data: Any) -> _Storage:
    """Read one storage from torch.save's older format: four pickles, then each storage's length and raw bytes."""
    if not isinstance(data, bytes):
        raise pickle.UnpicklingError("storage that is no bytes")
    stream = io.BytesIO(data)
    if _Unpickler(stream, _NUMPY).load() != _LEGACY_MAGIC:
        raise pickle.UnpicklingError("storage in an unknown format")
    _Unpickler(stream, _NUMPY).load()  # protocol version
    system = _Unpickler(stream, _NUMPY).load()
    if not (isinstance(system, dict) and system.get("little_endian", True)):
        raise pickle.UnpicklingError("storage of a big-endian machine")
    known: dict[str, _Storage] = {}
    storage = _Unpickler(stream, _TORCH, known).load()
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("no storage where one belongs")
    for key in _Unpickler(stream, _NUMPY).load():
        if key not in known:
            raise pickle.UnpicklingError(f"storage {key!r} that nothing names")
        length = int.from_bytes(stream.read(8), "little")
        brain = known[key].kind == "bfloat16"
        dtype = np.dtype("<u2" if brain else known[key].kind)
        raw = stream.read(length * dtype.itemsize) if length < _MAX_TENSOR_BYTES else b""
        if len(raw) != length * dtype.itemsize:
            raise pickle.UnpicklingError("storage cut short")
        values = np.frombuffer(raw, dtype)
        # A bfloat16 is the upper half of a float32.
        known[key].data = (values.astype(np.uint32) << 16).view(np.float32) if brain else values
    return storage


_TORCH: dict[tuple[str, str], Any] = {
    **_NUMPY,
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor"): _Call(_rebuild_tensor_v1),
    ("torch.storage", "_load_from_bytes"): _Call(_load_storage),
    **{("torch", name): name for name in _STORAGES},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: Any, allowed: dict, storages: dict[str, _Storage] | None = None) -> None:
        super().__init__(stream, encoding="latin1")
        self._allowed, self._storages = allowed, storages

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[(module, name)]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None

    def persistent_load(self, identifier: Any) -> Any:
        if self._storages is None or not isinstance(identifier, tuple) or identifier[:1] != ("storage",):
            raise pickle.UnpicklingError("it refers to an object outside itself")
        kind, key = identifier[1:3]
        if kind not in _STORAGES or not isinstance(key, str) or (len(identifier) > 5 and identifier[5] is not None):
            raise pickle.UnpicklingError(f"storage {kind!r}")
        return self._storages.setdefault(key, _Storage(_STORAGES[kind]))


def _load(stream: Any, allowed: dict, place: str) -> Any:
    try:
        return _Unpickler(stream, allowed).load()
    except pickle.UnpicklingError as error:
        raise UserError(f"{place}: pickle refused, {error}; only arrays and plain values are read") from error
    except Exception as error:  # a damaged pickle leads anywhere
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{place}: damaged pickle ({why}); fetch the file again") from error


def loads(data: bytes, place: str = "pickle") -> Any:
    """Unpickle arrays and plain values. `place` names the source in errors.

    Raises:
        UserError: the pickle names anything else, or is damaged.
    """
    return _load(io.BytesIO(data), _NUMPY, place)


def loads_tensors(data: bytes, place: str = "pickle") -> Any:
    """Like `loads`, and tensors pickled by torch come back as arrays of their shape (bfloat16 as float32)."""
    return _load(io.BytesIO(data), _TORCH, place)


def load_npy(path: str | Path) -> Any:
    """Read a .npy file as `numpy.load(path, allow_pickle=True)` would; an object array goes through `loads`.

    Returns:
        The array; a 0-dimensional object array (NumPy's way to save a dict) as the object in it.

    Raises:
        UserError: the file is missing, damaged, or its pickle names something that is not allowed.
    """
    try:
        with open(path, "rb") as stream:
            version = np.lib.format.read_magic(stream)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)
            if read_header is None:
                raise UserError(f"{path}: .npy version {version}; save it with numpy.save")
            shape, _, dtype = read_header(stream)
            stated, present = math.prod(shape) * dtype.itemsize, os.fstat(stream.fileno()).st_size - stream.tell()
            if not dtype.hasobject and stated > present:
                raise ValueError(f"it states {stated} bytes and has {present}")
            if dtype.hasobject:
                value = _load(stream, _NUMPY, str(path))
                return value.item() if isinstance(value, np.ndarray) and value.shape == () else value
        return np.load(path, allow_pickle=False)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; check the path") from error
    except Exception as error:  # NumPy's reader of headers raises whatever a tokenizer does
        why = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: damaged .npy file ({why}); fetch it again") from error
