"""Files and flags as nobody means them: what a damaged disk, another program or a joker leaves, drawn by hypothesis."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

DEEP = "[" * 200_000
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, -7, 1, 3.5, 10**12, 2**63, -(2**63) - 1, 10**400, 1e308, -1e308, float("nan"), float("inf"), "",
    "nan", "x" * 100_000, "../../secret", "/etc/hostname", "\x00", "\ud800", "<script>", [], [[]], [None], [-1, "a"],
    {}, {"a": 1}, {"": {"": []}}, [1e400], "2024",
)  # fmt: skip
"""What stands in the place of a value of a JSON file."""
CONTENTS = (
    b"", b"\n", b"null", b"0", b"[]", b"{}", b"[{}]", b"\xff\xfe\x00", b"\xef\xbb\xbf{}", b'{"a": "\xff"}', b"NaN",
    DEEP.encode(), ("[" + "9" * 5000 + "]").encode(), b'{"format": ' + b"9" * 5000 + b"}", b"\x00" * 5000,
    b"PK\x03\x04" + b"\x00" * 60, 
    b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,)}",
    b"\x80\x04cos\nsystem\n(S'exit 1'\ntR.", b"version https://git-lfs.github.com/spec/v1\n",
)  # fmt: skip
"""What stands in the place of a whole file."""
FLAGS = (
    "", "-1", "0", "-0.5", "nan", "inf", "1e999", "1e12", "1000000000000", "9" * 5000, "null", "none", "true", "[]",
    "{}", "[[1]]", '{"a": 1}', "x" * 1_000_000, "\x00", "ä\n", "../..", "/dev/zero", "/dev/null", "a,b", ",", "all",
    "0x10", "--", "-", "=", "a=b", "1.5", "*", "[" * 100_000,
)  # fmt: skip


class TooSlow(BaseException):
    """A case took longer than its limit; no `except Exception` hides it."""


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@st.composite
def bytes_of(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a damaged copy: bits flipped, cut off, a piece doubled or zeroed, or something else altogether."""
    kind = draw(st.sampled_from(("flip", "cut", "double", "zero", "other")))
    if kind == "other" or not content:
        return draw(st.sampled_from(CONTENTS))
    damaged = bytearray(content)
    place = draw(st.integers(0, len(content) - 1))
    if kind == "flip":
        for _ in range(draw(st.integers(1, 4))):
            damaged[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
        return bytes(damaged)
    if kind == "cut":
        return bytes(damaged[:place])
    length = draw(st.integers(1, 4096))
    piece = damaged[place : place + length]
    return bytes(damaged[:place] + (piece * 2 if kind == "double" else bytes(len(piece))) + damaged[place + length :])


@st.composite
def json_of(draw: st.DrawFn, values: Any) -> bytes:
    """Draw the JSON of `values` with one or two of its values, at any depth, replaced, removed or joined by another."""
    text = json.dumps(values)
    for _ in range(draw(st.integers(1, 2))):
        values = json.loads(text)
        places = list(_places(values))
        if not places:
            break
        # The upper levels are few, and matter as much as the many values below.
        depth = draw(st.integers(0, max(level for _, _, level in places)))
        parent, key, _ = draw(st.sampled_from([place for place in places if place[2] == depth]))
        kind = draw(st.sampled_from(("replace", "replace", "replace", "remove", "add", "short", "long")))
        if kind == "remove":
            del parent[key]
        elif kind == "add" and isinstance(parent, dict):
            parent["another"] = draw(st.sampled_from(VALUES))
        elif kind == "short" and isinstance(parent[key], (list, str)):
            parent[key] = parent[key][:-1]
        elif kind == "long" and isinstance(parent[key], (list, str)):
            parent[key] = parent[key] + parent[key][-1:]
        else:
            parent[key] = draw(st.sampled_from(VALUES))
        text = json.dumps(values)
    return text.encode("utf-8", "surrogatepass")


def _places(values: Any, level: int = 0) -> Iterator[tuple[Any, Any, int]]:
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield values, key, level
        yield from _places(value, level + 1)


@st.composite
def lines_of(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a file of JSON lines with one of them changed as `json_of` does, or damaged as `bytes_of` does."""
    lines = content.splitlines()
    number = draw(st.integers(0, len(lines) - 1))
    if draw(st.booleans()):
        lines[number] = draw(json_of(json.loads(lines[number])))
        return b"\n".join(lines) + b"\n"
    return draw(bytes_of(content))


@st.composite
def arrays_of(draw: st.DrawFn, file: Path) -> dict[str, np.ndarray]:
    """Draw the arrays of an .npz with one changed: values, type or shape, or left out."""
    with np.load(file) as found:
        arrays = dict(found)
    name = draw(st.sampled_from(sorted(arrays)))
    array = arrays[name]
    kind = draw(
        st.sampled_from(("none", "empty", "short", "type", "text", "object", "scalar", "deep", "value", "value"))
    )
    if kind == "none":
        del arrays[name]
        return arrays
    if kind == "value" and array.dtype.kind in "iuf" and array.size:
        bad = (np.nan, np.inf, -1.0) if array.dtype.kind == "f" else (-1, 10**6, np.iinfo(array.dtype).max)
        array = array.copy()
        with np.errstate(all="ignore"):
            array.reshape(-1)[draw(st.integers(0, array.size - 1))] = np.array(draw(st.sampled_from(bad))).astype(
                array.dtype
            )
    changed = {"empty": array[:0] if array.ndim else array, "short": array[:-1] if array.ndim else array,
               "type": array.astype(np.float64) if array.dtype.kind in "iu" else array.astype(str),
               "text": np.array("x"), "object": np.array(["a", "b"]), "scalar": np.array(3),
               "deep": array[None]}  # fmt: skip
    arrays[name] = changed.get(kind, array)
    return arrays
