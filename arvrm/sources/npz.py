"""Reads chosen members of an .npz file, quickly and with their checksums.

`numpy.load` spends most of its time in Python's zip reader; CALVIN's steps are one small file each, so it pays to find
the members ourselves and to inflate them with libdeflate (package `deflate`; zlib where it is missing). A file that
is unusual in any way, but valid, is left to NumPy.
"""

from __future__ import annotations

import functools
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

try:
    import deflate

    def _inflate(data: memoryview, size: int) -> bytes | bytearray:
        return deflate.deflate_decompress(data, size)

    _crc32 = deflate.crc32
    _ERRORS: tuple[type[Exception], ...] = (deflate.DeflateError, zlib.error)
except ImportError:

    def _inflate(data: memoryview, size: int) -> bytes | bytearray:
        return zlib.decompress(data, -zlib.MAX_WBITS, size)

    _crc32 = zlib.crc32
    _ERRORS = (zlib.error,)

MAX_MEMBER_BYTES = 1 << 28
"""Larger members are refused: a few bytes can inflate to any size."""
_END = struct.Struct("<4s4H2LH")
_ENTRY = struct.Struct("<4s4B4HL2L5H2L")
_LOCAL = struct.Struct("<4s2B4HL2L2H")


class DamagedFile(Exception):
    """An .npz file that is missing, cut short, fails a checksum, or lacks a member. The text says which."""


class _Unusual(Exception):
    """A zip file that is valid perhaps, but not as simple as numpy.savez makes it."""


def read_npz(path: str | Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read the arrays `names` of an .npz file (`numpy.savez` or `savez_compressed`), in that order.

    Returns:
        name -> array; it may be read-only.

    Raises:
        DamagedFile: see there. Arrays of Python objects are refused as well.
    """
    try:
        data = _content(path)
    except FileNotFoundError:
        raise DamagedFile("missing") from None
    except OSError as error:
        raise DamagedFile(f"unreadable ({error.strerror})") from error
    names = tuple(names)
    try:
        members = _directory(data)
        return {name: _array(name, _member(data, members, f"{name}.npy")) for name in names}
    except (_Unusual, struct.error):
        return _read_slowly(data, names)


def _content(path: str | Path) -> bytes:
    # Python's file objects make ten system calls of it, at each of which threads pass the interpreter on.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        size = os.fstat(descriptor).st_size
        data = os.read(descriptor, size)
        while len(data) < size and (more := os.read(descriptor, size - len(data))):
            data += more
        return data
    finally:
        os.close(descriptor)


def _directory(data: bytes) -> dict[bytes, tuple]:
    """Return member name -> (method, crc, compressed size, size, offset) from the zip's central directory."""
    end = data.rfind(b"PK\x05\x06", max(0, len(data) - _END.size - 0xFFFF))
    if end < 0:
        raise DamagedFile("cut short: it has no zip directory")
    _, _, _, _, entries, _, offset, _ = _END.unpack_from(data, end)
    members = {}
    for _ in range(entries):
        values = _ENTRY.unpack_from(data, offset)
        signature, flags, method = values[0], values[5], values[6]
        crc, compressed, size, name_length, extra, comment = values[9:15]
        local = values[-1]
        if signature != b"PK\x01\x02" or flags & 1 or 0xFFFFFFFF in (compressed, size, local):
            raise _Unusual
        start = offset + _ENTRY.size
        members[data[start : start + name_length]] = (method, crc, compressed, size, local)
        offset = start + name_length + extra + comment
    return members


def _member(data: bytes, members: dict[bytes, tuple], name: str) -> bytes | bytearray:
    found = members.get(name.encode())
    if found is None:
        raise DamagedFile(f"has no {name.removesuffix('.npy')}")
    method, crc, compressed, size, local = found
    if size > MAX_MEMBER_BYTES:
        raise DamagedFile(f"{name} has {size} bytes")
    header = _LOCAL.unpack_from(data, local)
    start = local + _LOCAL.size + header[-2] + header[-1]
    raw = memoryview(data)[start : start + compressed]
    if header[0] != b"PK\x03\x04" or len(raw) != compressed:
        raise DamagedFile(f"{name} is cut short")
    if method == zipfile.ZIP_DEFLATED:
        try:
            content = _inflate(raw, size)
        except _ERRORS as error:
            raise DamagedFile(f"{name} cannot be inflated ({error})") from error
    elif method == zipfile.ZIP_STORED:
        content = bytes(raw)
    else:
        raise _Unusual
    if len(content) != size or _crc32(content) != crc:
        raise DamagedFile(f"{name} fails its checksum")
    return content


def _array(name: str, content: bytes | bytearray) -> np.ndarray:
    if content[:6] != b"\x93NUMPY" or content[6:8] != b"\x01\x00":
        raise _Unusual
    start = 10 + int.from_bytes(content[8:10], "little")
    try:
        dtype, shape, fortran = _header(bytes(content[:start]))
        values = np.frombuffer(content, dtype, offset=start)
        return values.reshape(shape, order="F" if fortran else "C")
    except ValueError as error:
        raise DamagedFile(f"{name} is no plain array ({error})") from error


@functools.lru_cache(maxsize=256)
def _header(header: bytes) -> tuple[np.dtype, tuple[int, ...], bool]:
    # Parsing a header costs as much as inflating a small array, and all steps have the same few.
    stream = io.BytesIO(header)
    np.lib.format.read_magic(stream)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject:
        raise ValueError("Python objects")
    return dtype, shape, fortran


def _read_slowly(data: bytes, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for info in archive.infolist():
                if info.file_size > MAX_MEMBER_BYTES:
                    raise DamagedFile(f"{info.filename} has {info.file_size} bytes")
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except KeyError as error:
        raise DamagedFile(f"has no {str(error).split()[0].strip(chr(39))}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise DamagedFile(f"is damaged ({error})") from error
