"""What index.json may say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from arvrm.config import bounded, check_bounds, from_dict
from arvrm.files import read_json

FORMAT, VERSION = "arvrm-clip-index", 2
FILES = ("clips.npz", "text.npy", "frames.npy", "encoder.safetensors", "coarse.faiss", "basis.npy", "mean.npy")
_MADE_ANEW = "make it anew with `arvrm index --overwrite`"


@dataclass(frozen=True)
class _File:
    sha256: str
    bytes: int | None = bounded(None, least=0)

    __post_init__ = check_bounds


@dataclass(frozen=True)
class _Store:
    path: str
    fingerprint: str


@dataclass(frozen=True)
class _Encoders:
    """Of the encoders; their settings are read by `model.upgrade.upgraded_encoders`."""

    further_keys: ClassVar[bool] = True
    hash: str
    text: dict[str, Any] | None = None
    vision: dict[str, Any] | None = None
    size: int = bounded(96, least=1, most=4096)
    language_width: int = bounded(1, least=1, most=65_536)

    __post_init__ = check_bounds


@dataclass(frozen=True)
class _Search:
    """How it is searched; the numbers are there if it is approximate."""

    further_keys: ClassVar[bool] = True
    kind: Literal["exact", "approximate"]
    frames: int = bounded(1, least=1, most=4096)
    probes: int = bounded(1, least=1)
    shortlist: int = bounded(1, least=1)

    __post_init__ = check_bounds


@dataclass(frozen=True)
class _Clip:
    """A clip of version 1."""

    further_keys: ClassVar[bool] = True
    id: str
    instruction: str
    task: str
    group: str
    store: int = bounded(0, least=0)
    frames: int = bounded(1, least=1, most=2**40)

    __post_init__ = check_bounds


@dataclass(frozen=True)
class _Index:
    further_keys: ClassVar[bool] = True
    format: Literal["arvrm-clip-index"]
    version: Literal[1, 2]
    encoders: _Encoders
    stores: tuple[_Store, ...]
    files: dict[str, _File]
    search: _Search | None = None
    clips: tuple[_Clip, ...] | None = None

    def __post_init__(self) -> None:
        for name in self.files:
            if name not in FILES:
                raise ValueError(f"files names {name[:40]!r}, which no index has")
        if (self.clips is None) != (self.version == VERSION):
            raise ValueError("clips are listed in version 1, and only there")


def read_index_file(folder: Path) -> dict[str, Any]:
    """Read index.json, "files" in the form of today; raises UserError where it is damaged."""
    place = folder / "index.json"
    values = read_json(place, _MADE_ANEW, largest=1 << 30)  # version 1 lists all clips
    if values.get("version") == 1 and isinstance(values.get("files"), dict):
        values["files"] = {name: {"sha256": checksum} for name, checksum in values["files"].items()}
    from_dict(_Index, values, str(place))
    return values
