"""What a corpus says of one entry of its annotations: a stretch of video, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Segment:
    """A stretch of a video that becomes one clip.

    Attributes:
        id: unique in its source, at most 240 bytes.
        video: the file, or a folder of images.
        start: seconds from the first moment that a player plays; None: the first picture.
        end: seconds; None: the video's end.
        text: the instruction, not blank.
        group: what must stay on one side of a split: the video or the recording session.
        around: the bounds were put around a moment by us, so that the video may well end sooner.
        poses: EgoDex's HDF5 file, or None.
        rate: frames a second of an image sequence, where the annotations tell it.
        meta: JSON-able details.
    """

    id: str
    video: Path
    start: float | None
    end: float | None
    text: str
    group: str
    around: bool = False
    poses: Path | None = None
    rate: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """An entry that cannot become a clip: its id or row, and why, with the remedy where there is one."""

    id: str
    reason: str


@dataclass(frozen=True)
class Skipped:
    """An entry that is not meant for us, such as what other people's hands did; they are counted by reason."""

    reason: str


@dataclass(frozen=True)
class Absent:
    """An annotated video of a published set that is not in the folder, since only a part of the set was fetched."""

    video: str
