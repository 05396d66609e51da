"""Pickles of strangers, read without running them.

A pickle is a program: `pickle.load` calls whatever it names. Here it may name only what arrays, tensors and plain
containers need (`_NUMPY`, `_TORCH`); anything else is refused before it is called. Tensors come back as NumPy arrays,
so that reading them needs no torch.

Files of torch.save and of TorchScript keep their tensors' numbers beside the pickle. `load_archive` reads both, and
nothing of a TorchScript file's code.
"""

from __future__ import annotations

import codecs
import io
import math
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from arvrm.interface import UserError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""First object in a file of torch.save's older format, which pickled tensors carry inside."""
_MAX_TENSOR_BYTES = 1 << 30
_MOST_OF_A_PROGRAM = 1 << 24
"""Bytes of the pickle, and of the code, in an archive, whose numbers lie elsewhere: a large model's take some 1e6."""
_MOST_TENSORS = 100_000
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


def _view(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
    """Return a tensor as a read-only view of its storage, in which it must lie."""
    if not isinstance(storage, _Storage) or storage.data is None:
        raise pickle.UnpicklingError("tensor without storage")
    flat = storage.data
    size, stride = tuple(int(n) for n in size), tuple(int(n) for n in stride)
    offset = int(offset)
    if len(size) != len(stride) or offset < 0 or min((*size, *stride, 0)) < 0:
        raise pickle.UnpicklingError(f"tensor of size {size}, stride {stride}")
    count = math.prod(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if len(size) > 32 or max(size, default=0) > _MAX_TENSOR_BYTES:
        raise pickle.UnpicklingError(f"tensor of size {size}")
    if count and (last >= flat.size or count > flat.size):
        raise pickle.UnpicklingError("tensor larger than its storage")
    if count * flat.itemsize > _MAX_TENSOR_BYTES:
        raise pickle.UnpicklingError(f"tensor of {count} elements")
    if not count:
        return np.zeros(size, flat.dtype)
    steps = tuple(s * flat.itemsize for s in stride)
    return np.lib.stride_tricks.as_strided(flat[offset:], size, steps, writeable=False)


def _rebuild_tensor(*arguments: Any) -> np.ndarray:
    return _view(*arguments).copy()


def _same(value: Any, *_: Any) -> Any:
    return value


def _load_storage(data: Any) -> _Storage:
    """Read one storage from torch.save's older format."""
    if not isinstance(data, bytes):
        raise pickle.UnpicklingError("storage that is no bytes")
    storage = _load_legacy(io.BytesIO(data), len(data), _TORCH)
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("no storage where one belongs")
    return storage


def _load_legacy(stream: Any, size: int, allowed: dict) -> Any:
    """Read torch.save's older format of `size` bytes: four pickles, then each storage's length and raw bytes."""
    if _Unpickler(stream, _NUMPY).load() != _LEGACY_MAGIC:
        raise pickle.UnpicklingError("storage in an unknown format")
    _Unpickler(stream, _NUMPY).load()  # protocol version
    system = _Unpickler(stream, _NUMPY).load()
    if not (isinstance(system, dict) and system.get("little_endian", True)):
        raise pickle.UnpicklingError("storage of a big-endian machine")
    known: dict[str, _Storage] = {}
    begin = stream.tell()
    # The program comes before the numbers that it speaks of: once to hear of the storages, once more to read it.
    found = _Unpickler(stream, {**allowed, **_NO_TENSORS}, known).load()
    for key in _Unpickler(stream, _NUMPY).load():
        if key not in known:
            raise pickle.UnpicklingError(f"storage {key!r} that nothing names")
        length = int.from_bytes(stream.read(8), "little")
        kind = known[key].kind
        stated = length * _itemsize(kind)
        raw = stream.read(stated) if stated <= size - stream.tell() else b""
        if len(raw) != stated:
            raise pickle.UnpicklingError("storage cut short")
        known[key].data = _numbers(np.frombuffer(raw, np.uint8), kind)
    if isinstance(found, _Storage):
        return found
    stream.seek(begin)
    return _Unpickler(stream, allowed, known).load()


def _itemsize(kind: str) -> int:
    return 2 if kind == "bfloat16" else np.dtype(kind).itemsize


def _numbers(raw: np.ndarray, kind: str) -> np.ndarray:
    """Return bytes as numbers of a kind of storage; a bfloat16 is the upper half of a float32."""
    if kind != "bfloat16":
        return raw.view(kind)
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


_TORCH: dict[tuple[str, str], Any] = {
    **_NUMPY,
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor"): _Call(_rebuild_tensor),
    ("torch.storage", "_load_from_bytes"): _Call(_load_storage),
    **{("torch", name): name for name in _STORAGES},
}
_NO_TENSORS: dict[tuple[str, str], Any] = {
    ("torch._utils", name): _Call(lambda *_: None) for name in ("_rebuild_tensor_v2", "_rebuild_tensor")
}
_PLAIN_OF_TORCH = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
_ARCHIVE: dict[tuple[str, str], Any] = {
    **_TORCH,
    **{("torch._utils", name): _Call(_view) for name in ("_rebuild_tensor_v2", "_rebuild_tensor")},
    **{("torch._utils", name): _Call(_same) for name in ("_rebuild_parameter", "_rebuild_parameter_with_state")},
    ("torch", "Size"): _Call(tuple),
    ("torch", "device"): _Call(_same),
    ("collections", "defaultdict"): _Call(lambda *_: {}),
    **{("torch", name): f"torch.{name}" for name in _PLAIN_OF_TORCH},
    **{
        ("torch.jit._pickle", name): _Call(_same)
        for name in ("restore_type_tag", "build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
    },
}
"""What files of weights name besides. Their tensors are views of the file, so that only those wanted are copied."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: Any, allowed: dict, storages: dict[str, _Storage] | None = None) -> None:
        super().__init__(stream, encoding="latin1")
        self._allowed, self._storages = allowed, storages

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[(module, name)]
        except KeyError:
            raise NotAllowed(f"{module}.{name}") from None

    def persistent_load(self, identifier: Any) -> Any:
        kind, key = _identified(identifier if self._storages is not None else None)
        assert self._storages is not None
        return self._storages.setdefault(key, _Storage(kind))


class NotAllowed(pickle.UnpicklingError):
    """A pickle asks for what is not on the list."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it asks for {name}")
        self.name = name


def _identified(identifier: Any) -> tuple[str, str]:
    """Return the kind of a storage that a pickle refers to, and its key."""
    if not isinstance(identifier, tuple) or len(identifier) < 5 or identifier[0] != "storage":
        raise pickle.UnpicklingError("it refers to an object outside itself")
    kind, key = identifier[1:3]
    if not isinstance(kind, str) or kind not in _STORAGES or not isinstance(key, str):
        raise pickle.UnpicklingError(f"storage {kind!r}")
    if len(identifier) > 5 and identifier[5] is not None:
        raise pickle.UnpicklingError(f"storage {kind!r} that is part of another")
    return _STORAGES[kind], key


class _Scripted:
    """Stands for a module of a TorchScript file: what it holds, and nothing that it does."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise pickle.UnpicklingError("a module that restores itself by code, which is not run")
        self.held = state


class _ArchiveUnpickler(pickle._Unpickler):  # the one in Python, whose memo takes no more memory than it has entries
    def __init__(self, archive: _Archive) -> None:
        super().__init__(io.BytesIO(archive.record("data.pkl", _MOST_OF_A_PROGRAM).tobytes()), encoding="latin1")
        self._archive = archive
        self._storages: dict[tuple[str, str], _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__" and self._archive.code:
            return _Scripted
        try:
            return _ARCHIVE[(module, name)]
        except KeyError:
            raise NotAllowed(f"{module}.{name}") from None

    def persistent_load(self, identifier: Any) -> Any:
        kind, key = _identified(identifier)
        count = identifier[4]
        if (kind, key) not in self._storages:
            raw = self._archive.record(f"data/{key}")
            if type(count) is not int or count * _itemsize(kind) != raw.size:
                raise pickle.UnpicklingError(f"storage {key!r} of {count!r} numbers in {raw.size} bytes")
            self._storages[kind, key] = _Storage(kind, _numbers(raw, kind))
        return self._storages[kind, key]


class _Archive:
    """A file of torch: a zip of records that are not compressed, but for code.

    Attributes:
        code: names of the source files in it.
    """

    def __init__(self, path: str | Path) -> None:
        self.bytes = np.memmap(path, np.uint8, "r")
        self.zip = zipfile.ZipFile(path)
        entries = {entry.filename: entry for entry in self.zip.infolist()}
        roots = [name.removesuffix("data.pkl") for name in entries if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(roots) != 1:
            raise pickle.UnpicklingError("a zip archive without one data.pkl")
        self.entries = {name.removeprefix(roots[0]): e for name, e in entries.items() if name.startswith(roots[0])}
        self.code = [name for name in self.entries if name.startswith("code/") and name.endswith(".py")]
        if "byteorder" in self.entries and self.record("byteorder", 16).tobytes() != b"little":
            raise pickle.UnpicklingError("numbers of a big-endian machine")

    def record(self, name: str, most: int | None = None) -> np.ndarray:
        """Return a record's bytes, a view of the file."""
        entry = self.entries.get(name)
        if entry is None:
            raise pickle.UnpicklingError(f"no record {name!r}")
        at, size = entry.header_offset, entry.file_size
        head = self.bytes[at : at + 30].tobytes()
        if entry.compress_type != zipfile.ZIP_STORED or head[:4] != b"PK\x03\x04" or entry.flag_bits & 1:
            raise pickle.UnpicklingError(f"record {name!r} is compressed or damaged")
        begin = at + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        if begin + size > self.bytes.size or (most is not None and size > most):
            raise pickle.UnpicklingError(f"record {name!r} of {size} bytes")
        return self.bytes[begin : begin + size]

    def restores_itself(self) -> bool:
        """Whether loading would mean running its code."""
        left = _MOST_OF_A_PROGRAM
        for name in self.code:
            with self.zip.open(self.entries[name]) as stream:
                source = stream.read(left + 1)
            left -= len(source)
            if left < 0:
                raise pickle.UnpicklingError("more code than any model has")
            if b"__setstate__" in source:
                return True
        return False


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


def load_archive(path: str | Path) -> Any:
    """Read a file of torch.save (either format), or the tensors of a TorchScript file by the names they have there.

    What their numbers need is checked against what the file has, and nothing is allocated for it: arrays are views of
    the file, to be copied.

    Raises:
        NotAllowed: the pickle asks for anything but tensors and plain values.
        Exception: the file is damaged, or of another format; which, depends on the damage.
    """
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as stream:
            return _load_legacy(stream, os.fstat(stream.fileno()).st_size, _ARCHIVE)
    archive = _Archive(path)
    with archive.zip:
        if archive.code and archive.restores_itself():
            raise pickle.UnpicklingError(
                "a TorchScript file that restores itself by code (__setstate__), which is not run"
            )
        found = _ArchiveUnpickler(archive).load()
    return dict(_tensors(found)) if isinstance(found, _Scripted) else found


def _tensors(module: _Scripted) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays in a module and in those that it holds, however deep, by their dotted names."""
    waiting, seen = [("", module)], 0
    while waiting:
        place, module = waiting.pop()
        for name, value in module.held.items():
            seen += 1
            if seen > _MOST_TENSORS or len(place) > 1000:
                raise pickle.UnpicklingError("modules that hold each other without end")
            if isinstance(value, _Scripted):
                waiting.append((f"{place}{name}.", value))
            elif isinstance(value, np.ndarray):
                yield f"{place}{name}", value


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
