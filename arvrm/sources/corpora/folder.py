"""A folder of one's own: a CSV or JSON says what is where, or each file's name says what it shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from arvrm.interface import UserError
from arvrm.sources.corpora.files import VideoFolder, same
from arvrm.sources.corpora.segment import Absent, Refused, Segment, Skipped

_COLUMNS = ("file", "start", "end", "text")
_LATEST_S = 1e9


def plan_folder(folder: VideoFolder) -> Iterator[Segment | Refused | Skipped | Absent]:
    """Yield a folder's segments."""
    file = folder.annotations
    if file is None:
        names = ("annotations.csv", "annotations.json")
        usual = sorted(path for path in folder.root.iterdir() if path.name.lower() in names)
        if len(usual) > 1:
            both = " and ".join(path.name for path in usual)
            raise UserError(f"{folder.root}: has {both}; name one with --annotations")
        file = usual[0] if usual else None
    if file is None:
        for path in folder.videos:
            name = same(path.relative_to(folder.root).as_posix())
            yield Segment(name, path, None, None, text_of_name(path.name if path.is_dir() else path.stem), name)
        return
    for place, entry in folder.rows(file, ("file", "text")):
        if isinstance(entry, Refused):
            yield entry
            continue
        unknown = [name for name in entry if name not in _COLUMNS]
        if unknown and not {"start", "end"} <= set(entry):
            # Else the whole video would silently take the place of a stretch named otherwise.
            reason = f"column {unknown[0]!r} is not known; known are {', '.join(_COLUMNS)}"
            if file.suffix.lower() != ".json":
                raise UserError(f"{file}: {reason}")
            yield Refused(place, reason)
            continue
        name = str(entry["file"] or "").strip()
        video = folder.named(name)
        if isinstance(video, Refused):
            yield Refused(f"{place} {name}", video.reason)
            continue
        try:
            start, end = seconds_of(entry.get("start")), seconds_of(entry.get("end"))
        except ValueError as error:
            yield Refused(f"{place} {name}", str(error))
            continue
        name = same(name)
        stretch = f"{start or 0.0:.3f}-{'end' if end is None else f'{end:.3f}'}"
        text = entry["text"]
        yield Segment(f"{name}@{stretch}", video, start, end, text if isinstance(text, str) else "", name)


def text_of_name(stem: str) -> str:
    """Return the sentence a file's name says: "open_the-drawer_02" -> "open the drawer"."""
    words = re.sub(r"[_\-.\s]+", " ", same(stem)).strip()
    return re.sub(r"(\s*[(\[]?\d+[)\]]?)+$", "", words).strip()


def seconds_of(value: Any) -> float | None:
    """Read a time: seconds, or [hours:]minutes:seconds; None where nothing is given.

    Raises:
        ValueError: neither.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        parts = [float(part) for part in str(value).strip()[:64].split(":")]
        if len(parts) > 3 or not all(abs(part) < _LATEST_S for part in parts):
            raise ValueError
    except (ValueError, OverflowError):
        raise ValueError(f"time {str(value)[:40]!r} is neither seconds nor hours:minutes:seconds") from None
    return float(sum(part * 60**power for power, part in enumerate(reversed(parts))))
