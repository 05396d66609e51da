"""Plans a conversion: asks a corpus for its segments, makes ids unique, and refuses what cannot be a clip."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from arvrm import plugins
from arvrm.interface import UserError
from arvrm.sources.corpora.egodex import plan_egodex
from arvrm.sources.corpora.files import VideoFolder
from arvrm.sources.corpora.folder import plan_folder
from arvrm.sources.corpora.published import plan_ego4d, plan_epic, plan_ssv2
from arvrm.sources.corpora.segment import Absent, Refused, Segment, Skipped

Corpus = Callable[[VideoFolder], Iterator[Segment | Refused | Skipped | Absent]]
SOURCES: dict[str, Corpus] = {
    "folder": plan_folder,
    "ego4d": plan_ego4d,
    "epic": plan_epic,
    "ssv2": plan_ssv2,
    "egodex": plan_egodex,
}
MAX_TEXT = 2000
"""Characters of an instruction; a longer one is no sentence but a file gone wrong."""
_ID_BYTES = 240


@dataclass(frozen=True)
class Plan:
    """What a source asks for.

    Attributes:
        segments: in the source's order.
        refused: (id or row, why) of entries that cannot become clips.
        absent: published sets: annotated videos that are not in the folder (a part of the set was fetched).
        skipped: reason -> entries that are not meant for us, such as what other people's hands did.
        unread: ending -> files of a folder of one's own that are neither videos nor annotations.
        annotations: SHA-256 of the annotation files; "" where there is none.
    """

    segments: tuple[Segment, ...]
    refused: tuple[tuple[str, str], ...] = ()
    absent: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)
    annotations: str = ""


def check_source(name: str) -> Corpus:
    """Return the corpus of this name, or of package.module:function.

    Raises:
        UserError: there is none.
    """
    if name in SOURCES:
        return SOURCES[name]
    if not plugins.is_path(name):
        raise UserError(f"--source {name!r}: choose {', '.join(SOURCES)}, or write package.module:function")
    return plugins.load(name, "--source")


def plan(
    source: str,
    folder: Path,
    annotations: Path | None = None,
    clip_seconds: float = 3.0,
    follow_links: bool = False,
    sequence_fps: float | None = None,
    prefix: str = "",
) -> Plan:
    """List the clips of a source.

    Args:
        source: one of `SOURCES`, or package.module:function.
        folder: holds the videos, at any depth.
        annotations: the file that says what is where; None: the source's usual one in `folder`.
        clip_seconds: length of the clips around Ego4D's moments.
        follow_links: read videos that links lead to outside of `folder`.
        sequence_fps: rate of image sequences; None: what the source tells, 30 in a folder of one's own.
        prefix: begins every id and group.

    Raises:
        UserError: the folder or the annotation file is missing or cannot be read.
    """
    corpus = check_source(source)
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder; give the folder that holds the videos")
    if annotations is not None and not annotations.is_file():
        raise UserError(f"{annotations}: is no file; give the annotations of the videos")
    files = VideoFolder(folder, annotations, clip_seconds, follow_links)
    own = source == "folder"
    draft = _Draft(files, sequence_fps if sequence_fps is not None or not own else 30.0, prefix)
    try:
        for entry in corpus(files):
            draft.take(entry)
    except UserError:
        raise
    except Exception as error:  # a corpus of one's own may raise anything
        raise UserError(f"--source {source}: failed ({type(error).__name__}: {error}); mend it") from error
    unnamed = sum(1 for video in files.videos if video not in files.asked) if files.asked else 0
    if unnamed:
        draft.skipped["videos that the annotations do not name"] = unnamed
    if not draft.segments and not draft.refused and not draft.skipped:
        missing = f"; none of its {len(draft.absent)} annotated videos is there" if draft.absent else ""
        raise UserError(f"{folder}: holds no clip of source {source}{missing}; give the folder with the videos")
    return Plan(
        tuple(draft.segments),
        tuple(draft.refused),
        len(draft.absent),
        dict(sorted(draft.skipped.items())),
        dict(sorted(files.unread.items())) if own and not files.read else {},
        _digest(files.read),
    )


class _Draft:
    def __init__(self, files: VideoFolder, sequence_fps: float | None, prefix: str) -> None:
        self.segments: list[Segment] = []
        self.refused: list[tuple[str, str]] = []
        self.absent: set[str] = set()
        self.skipped: dict[str, int] = {}
        self._files, self._sequence_fps, self._prefix = files, sequence_fps, prefix
        self._ids: set[str] = set()

    def take(self, entry: Segment | Refused | Skipped | Absent) -> None:
        if isinstance(entry, Absent):
            self.absent.add(entry.video)
        elif isinstance(entry, Skipped):
            self.skipped[entry.reason] = self.skipped.get(entry.reason, 0) + 1
        elif isinstance(entry, Refused):
            self.refused.append((self._unique(entry.id), entry.reason))
        else:
            self._segment(entry)

    def _segment(self, segment: Segment) -> None:
        id, text = self._unique(segment.id), " ".join(segment.text[: MAX_TEXT + 1].split())
        start, end, sequence = segment.start, segment.end, segment.video.is_dir()
        rate = self._sequence_fps or segment.rate if sequence else None
        if len(segment.text) > MAX_TEXT:
            reason = f"its text has {len(segment.text)} characters; give a sentence of at most {MAX_TEXT}"
        elif not text:
            reason = "its text is blank"
        elif start is not None and start < 0:
            reason = f"begins at {start:g} s, before the video"
        elif end is not None and end <= (start or 0.0):
            reason = f"has no length ({start or 0.0:g} to {end:g} s)"
        elif self._files.leaves(segment.video) and not self._files.follow_links:
            reason = f"{segment.video.name} leads out of the folder by a link; pass --follow-links to read it"
        elif sequence and rate is None:
            reason = f"{segment.video.name} is a folder of images whose rate nobody states; pass --sequence-fps"
        else:
            group = clean(self._prefix + segment.group)
            self.segments.append(replace(segment, id=id, text=text, group=group, rate=rate))
            return
        self.refused.append((id, reason))

    def _unique(self, id: str) -> str:
        id = unique = clean(self._prefix + id)
        count = 1
        while unique in self._ids:
            count += 1
            unique = f"{id}#{count}"
        self._ids.add(unique)
        return unique


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest() if files else ""


def clean(text: str) -> str:
    """Make an id of any text: printable, and short without two becoming one."""
    clean = "".join(c if c.isprintable() else "?" for c in text[: 4 * _ID_BYTES])
    # Names that are no valid UTF-8 on disk come as lone surrogates.
    clean = clean.encode("utf-8", "replace").decode("utf-8")
    if clean != text or len(clean.encode()) > _ID_BYTES:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        clean = clean.encode()[: _ID_BYTES - 13].decode("utf-8", "ignore") + "~" + digest
    return clean
