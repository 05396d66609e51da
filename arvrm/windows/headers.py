"""What the headers of a store say, as flat arrays that a cache keeps."""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
import tokenize
import weakref
import zipfile
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from arvrm.episodes import HAND_CAMERAS, EpisodeStore
from arvrm.episodes.schema import EMBODIMENTS as EMBODIMENTS
from arvrm.files import replacing
from arvrm.interface import Camera, Robot

UNREADABLE_ARRAYS = (
    OSError, ValueError, LookupError, TypeError, EOFError, AttributeError, OverflowError, MemoryError, SyntaxError,
    NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError,
)  # fmt: skip
"""What reading a damaged .npy or .npz raises: NumPy and zipfile trust what the file says of itself."""


class Names(Sequence[str]):
    """Strings in two arrays: 100 000 of them cost their letters and 8 bytes each, not an object each.

    Attributes:
        text: uint8, UTF-8 of all of them.      end: (n,) int64, where each ends.
    """

    def __init__(self, text: np.ndarray, end: np.ndarray) -> None:
        self.text, self.end = text, end

    @classmethod
    def of(cls, strings: Iterable[str]) -> Names:
        text, end = bytearray(), array("q")
        for string in strings:
            text += string.encode()
            end.append(len(text))
        return cls(np.frombuffer(bytes(text), np.uint8), np.array(end, dtype=np.int64))

    @classmethod
    def of_file(cls, text: np.ndarray, end: np.ndarray) -> Names:
        """Return the names in two arrays of a file; raises ValueError where they are none."""
        if text.dtype != np.uint8 or text.ndim != 1 or end.dtype.kind not in "iu" or end.ndim != 1:
            raise ValueError("names are not one array of bytes and one of their ends")
        ends = end.astype(np.int64)
        if (np.diff(ends, prepend=0) < 0).any() or (ends[-1] if len(ends) else 0) != len(text):
            raise ValueError("names do not end where they should")
        names = cls(text, ends)
        text.tobytes().decode()  # all of it: a UnicodeDecodeError is a ValueError
        return names

    @classmethod
    def joined(cls, parts: Sequence[Names]) -> Names:
        starts = np.cumsum([0, *(len(part.text) for part in parts)])
        ends = [part.end + start for part, start in zip(parts, starts, strict=False)]
        return cls(np.concatenate([part.text for part in parts]), np.concatenate(ends).astype(np.int64))

    def take(self, rows: np.ndarray) -> Names:
        return Names.of(self[int(row)] for row in rows)

    def __len__(self) -> int:
        return len(self.end)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return self.text[self.end[index - 1] if index else 0 : self.end[index]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        text, start = self.text.tobytes(), 0
        for end in self.end.tolist():
            yield text[start:end].decode()
            start = end

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return np.array_equal(self.end, other.end) and np.array_equal(self.text, other.text)
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def check_codes(codes: np.ndarray, count: int, name: str) -> None:
    """Raise ValueError unless all of `codes`, called `name`, number one of `count` things."""
    whole = codes.dtype.kind in "iu" and codes.ndim == 1
    if not whole or (len(codes) and not (0 <= codes.min() and codes.max() < count)):
        raise ValueError(f"{name} has numbers that none of {count} has")


class Coder:
    """Gives each different string its number, in the order of their first appearance."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}

    def __call__(self, name: str) -> int:
        return self.codes.setdefault(name, len(self.codes))

    def recode(self, names: Sequence[str], codes: np.ndarray) -> np.ndarray:
        """Return (n,) int32 numbers for `codes`, which number `names`."""
        found, first = np.unique(codes, return_index=True)
        table = np.zeros(len(names), dtype=np.int32)
        for code in found[np.argsort(first)]:
            table[code] = self(names[int(code)])
        return table[codes]


HUMAN_CAMERA = Camera(HAND_CAMERAS[0], "static")
"""The camera of human clips."""
_HEADER_FORMAT = 1
_KEPT_FROM = 1024
"""Episodes of a store from which its headers are worth keeping as arrays."""
COLUMNS = {
    "task": "i",
    "sentence": "i",
    "group": "i",
    "embodiment": "b",
    "steps": "q",
    "frames": "q",
    "fps": "d",
    "height": "i",
    "width": "i",
}


def static_camera(robot: Robot | None) -> str:
    """Return the name of the camera that overlooks the scene; None: in human clips."""
    return (HUMAN_CAMERA if robot is None else next(c for c in robot.cameras if c.role == "static")).name


@dataclass(frozen=True)
class StoreHeaders:
    """The headers of a store as arrays, E episodes (play and both embodiments included) and F frames.

    Attributes:
        fingerprint: 16 hex digits that change when the store's manifest, episodes or their lengths change.
        names: "ids" (one an episode), and the different "tasks", "sentences" and "groups".
        columns: (E,) each: task, sentence and group (numbers of the names), embodiment (0 robot, 1 human), steps,
            frames, fps, height and width of the static camera's images.
        image_steps: (F,) int32, the episode's own step at which each frame was taken.
    """

    fingerprint: str
    names: dict[str, Names]
    columns: dict[str, np.ndarray]
    image_steps: np.ndarray

    @classmethod
    def read(cls, store: EpisodeStore, cache: str | Path | None = None) -> StoreHeaders:
        """Read all headers, one after another, or what `cache` has kept of this very file."""
        file = None
        if cache is not None and len(store) >= _KEPT_FROM:
            digest = hashlib.sha256(f"{_HEADER_FORMAT}\t{store.revision}".encode()).hexdigest()[:16]
            file = Path(cache) / f"headers-{digest}.npz"
            # What is damaged is made anew; a damaged archive raises nearly anything.
            with contextlib.suppress(*UNREADABLE_ARRAYS):
                headers = cls._load(file)
                _FINGERPRINTS[store] = (store.revision, headers.fingerprint)
                return headers
        headers = cls._scan(store)
        if file is not None:
            headers._save(file)
        return headers

    @classmethod
    def _scan(cls, store: EpisodeStore) -> StoreHeaders:
        revision = store.revision
        digest = hashlib.sha256(json.dumps(store.manifest, sort_keys=True).encode())
        coders = {"tasks": Coder(), "sentences": Coder(), "groups": Coder()}
        columns = {name: array(kind) for name, kind in COLUMNS.items()}
        image_steps, letters, ends = array("i"), bytearray(), array("q")
        static = {"human": static_camera(None)}
        for header in store.headers():
            digest.update(f"{header.id}\t{header.steps}\t{header.frames}\t{header.instruction}\n".encode())
            letters += header.id.encode()
            ends.append(len(letters))
            if header.embodiment not in static:  # the first robot episode: only now, since it may take all headers
                static[header.embodiment] = static_camera(store.robot)
            height, width = header.cameras.get(static[header.embodiment], (0, 0))
            row = {
                "task": coders["tasks"](header.task),
                "sentence": coders["sentences"](header.instruction),
                "group": coders["groups"](header.group),
                "embodiment": EMBODIMENTS.index(header.embodiment),
                "steps": header.steps,
                "frames": header.frames,
                "fps": header.fps,
                "height": height,
                "width": width,
            }
            for name, value in row.items():
                columns[name].append(value)
            image_steps.frombytes(header.image_steps.astype(np.int32).tobytes())
        names = {name: Names.of(coder.codes) for name, coder in coders.items()}
        names["ids"] = Names(np.frombuffer(bytes(letters), np.uint8), np.array(ends, dtype=np.int64))
        arrays = {name: np.array(values) for name, values in columns.items()}
        fingerprint = digest.hexdigest()[:16]
        _FINGERPRINTS[store] = (revision, fingerprint)
        return cls(fingerprint, names, arrays, np.array(image_steps, dtype=np.int32))

    def _save(self, file: Path) -> None:
        values = {"fingerprint": np.array(self.fingerprint), "image_steps": self.image_steps, **self.columns}
        for name, names in self.names.items():
            values |= {f"{name}_text": names.text, f"{name}_end": names.end}
        with replacing(file) as partial, open(partial, "wb") as stream:
            np.savez(stream, **values)

    @classmethod
    def _load(cls, file: Path) -> StoreHeaders:
        with np.load(file, allow_pickle=False) as found:
            names = {
                name: Names.of_file(found[f"{name}_text"], found[f"{name}_end"])
                for name in ("ids", "tasks", "sentences", "groups")
            }
            columns = {name: found[name] for name in COLUMNS}
            loaded = cls(str(found["fingerprint"]), names, columns, found["image_steps"])
        loaded._check()
        return loaded

    def _check(self) -> None:
        """Raise ValueError where a cache holds what no store does."""
        for name, kind in COLUMNS.items():
            column = self.columns[name]
            if column.dtype != np.dtype(kind) or column.shape != (len(self.names["ids"]),):
                raise ValueError(f"{name} is {column.dtype} {column.shape}")
        known = {"task": len(self.names["tasks"]), "sentence": len(self.names["sentences"]),
                 "group": len(self.names["groups"]), "embodiment": len(EMBODIMENTS)}  # fmt: skip
        for name, count in known.items():
            check_codes(self.columns[name], count, name)
        for name in ("steps", "frames", "height", "width", "fps"):
            if not (self.columns[name] >= (0 if name in ("height", "width") else 1e-9)).all():
                raise ValueError(f"{name} has numbers that are too small, or none")
        if not np.isfinite(self.columns["fps"]).all():
            raise ValueError("fps has numbers that are not finite")
        total = sum(self.columns["frames"].tolist())
        if self.image_steps.dtype != np.int32 or self.image_steps.shape != (total,):
            raise ValueError(f"image_steps is {self.image_steps.dtype} {self.image_steps.shape} for {total} frames")
        longest = self.columns["steps"].max(initial=0)
        if total and not (0 <= self.image_steps.min() and self.image_steps.max() < longest):
            raise ValueError("image_steps has steps that no episode has")


_FINGERPRINTS: weakref.WeakKeyDictionary[EpisodeStore, tuple[str, str]] = weakref.WeakKeyDictionary()


def store_fingerprint(store: EpisodeStore) -> str:
    """Return 16 hex digits that change when the store's manifest, episodes or their lengths change.

    It takes all headers, which are read only if this object has not been read since the store was last written.
    """
    known = _FINGERPRINTS.get(store)
    if known is not None and known[0] == store.revision:
        return known[1]
    return StoreHeaders.read(store).fingerprint
