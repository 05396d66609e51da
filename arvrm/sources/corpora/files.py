"""The folder of a corpus: its videos, found by name whatever the spelling of Unicode, and its annotation files."""

from __future__ import annotations

import csv
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from arvrm.interface import UserError
from arvrm.sources.corpora.segment import Refused
from arvrm.sources.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_sequence

_ASIDE = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information"}
"""Folders that systems put beside the data; so are names that begin with a dot, such as macOS's ._ files."""
_MAX_JSON_BYTES = 1 << 32


class VideoFolder:
    """The files below a folder.

    Args:
        root: the folder.
        annotations: file that the user named; None: the corpus' usual one.
        clip_seconds: length of clips around a moment.
        follow_links: read files that links lead to outside of the folder.

    Attributes:
        videos: (video files and image sequences), sorted.
        unread: ending -> files that are neither videos nor annotations.
        read: annotation files that were opened, in order.
        asked: videos that were looked up and found.
    """

    def __init__(
        self, root: Path, annotations: Path | None = None, clip_seconds: float = 3.0, follow_links: bool = False
    ) -> None:
        self.root, self.annotations, self.clip_seconds = root, annotations, clip_seconds
        self.follow_links = follow_links
        self.unread: Counter[str] = Counter()
        self.read: list[Path] = []
        self.asked: set[Path] = set()
        self._resolved = root.resolve()
        self._leaving: dict[Path, bool] = {}

    @cached_property
    def videos(self) -> list[Path]:
        folders, videos = self._listing, []
        holds_videos: set[Path] = set()
        for folder, files in folders.items():
            found = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
            videos += found
            if found:
                holds_videos |= {folder, *folder.parents}
        stems = {same(file.stem) for file in videos}
        for folder, files in folders.items():
            rest = [file for file in files if file.suffix.lower() not in VIDEO_SUFFIXES]
            # Pictures beside videos, or named as videos are, are their thumbnails.
            if folder != self.root and folder not in holds_videos and is_sequence(rest):
                images = [file for file in rest if file.suffix.lower() in IMAGE_SUFFIXES]
                if not stems & {same(file.stem) for file in images}:
                    videos.append(folder)
                    rest = [file for file in rest if file.suffix.lower() not in IMAGE_SUFFIXES]
            self.unread.update(file.suffix.lower() or "no ending" for file in rest)
        return sorted(videos)

    @cached_property
    def _listing(self) -> dict[Path, list[Path]]:
        """Folder -> its files, hidden ones and links' targets apart as `follow_links` says."""
        found: dict[Path, list[Path]] = {}
        seen = {self._resolved}
        todo = [self.root]
        while todo:
            folder = todo.pop()
            files = found[folder] = []
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError as error:
                if folder == self.root:
                    raise UserError(f"{folder}: {error.strerror}; give a folder that can be read") from error
                self.unread["folders that cannot be listed"] += 1
                continue
            for entry in entries:
                if entry.name.startswith(".") or entry.name in _ASIDE:
                    continue
                path = folder / entry.name
                if entry.is_file():
                    files.append(path)
                elif not entry.is_dir():
                    self.unread["links that lead nowhere, or no files"] += 1
                elif not entry.is_symlink():
                    todo.append(path)
                elif (target := path.resolve()) not in seen and (self.follow_links or not self.leaves(path)):
                    seen.add(target)
                    todo.append(path)
                elif target not in seen:
                    self.unread["links to folders outside (--follow-links reads them)"] += 1
        return found

    def leaves(self, path: Path) -> bool:
        """Whether a path leads out of the folder: by "..", as an absolute path, or by a link."""
        if path not in self._leaving:
            try:
                self._leaving[path] = not path.resolve().is_relative_to(self._resolved)
            except (OSError, RuntimeError, ValueError):  # a circle of links, a NUL
                self._leaving[path] = True
        return self._leaving[path]

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in self.videos:
            found.setdefault(same(path.relative_to(self.root).as_posix()), []).append(path)
        return found

    @cached_property
    def _by_loose_name(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for name, paths in self._by_name.items():
            found.setdefault(name.casefold(), []).extend(paths)
        return found

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in self.videos:
            found.setdefault(same(path.name if path.is_dir() else path.stem), []).append(path)
        return found

    def named(self, name: str) -> Path | Refused:
        """Return the video at this path below the folder, or why there is none."""
        path = self.root / name
        if not name:
            return Refused(name, "there is no video '' in the folder")
        if os.path.isabs(name) or ".." in Path(name).parts:
            return Refused(name, f"{name[:80]!r} leads out of the folder; put the video into it and name it from there")
        # Spelling first, then what Windows and macOS take for the same name.
        found = self._by_name.get(same(Path(name).as_posix()), [])
        found = found or self._by_loose_name.get(same(name.replace("\\", "/")).casefold(), [])
        self.asked.update(found)
        if len(found) > 1:
            return Refused(name, f"{len(found)} videos have a name that looks like {name[:80]!r}; rename one")
        if found:
            return found[0]
        try:
            there = path.is_file() or path.is_dir()
        except (OSError, ValueError):  # too long a name, a NUL
            there = False
        return path if there else Refused(name, f"there is no video {name[:80]!r} in the folder")

    def with_stem(self, stem: str) -> Path | Refused | None:
        """Return the video of this name without ending, at any depth; None: it is not there."""
        found = self._by_stem.get(same(stem), [])
        self.asked.update(found)
        files = [path for path in found if not path.is_dir()] or found
        if len(files) > 1:
            places = " and ".join(path.relative_to(self.root).as_posix() for path in files[:2])
            return Refused(stem, f"there are {len(files)} videos {stem!r} ({places}); keep one below the folder")
        return files[0] if files else None

    def files(self, suffix: str) -> list[Path]:
        """Return all files with this ending, sorted."""
        return sorted(f for files in self._listing.values() for f in files if f.suffix.lower() == suffix)

    def usual(self, *names: str) -> Path:
        """Return the annotations that the user named, or the one file of the first of these names that is there.

        Raises:
            UserError: none, or several.
        """
        if self.annotations is not None:
            return self.annotations
        for name in names:
            found = [file for file in self.files(Path(name).suffix) if file.name == name]
            if len(found) > 1:
                raise UserError(f"{self.root}: has {len(found)} files {name}; name one with --annotations")
            if found:
                return found[0]
        raise UserError(f"{self.root}: has no {' or '.join(names)}; give the file with --annotations")

    def rows(self, file: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any] | Refused]]:
        """Yield (place, entry) of a CSV with a header, or of a JSON list of objects; Refused where a row is no entry.

        Names of columns are compared without case and blanks around them. Cells are text, "" where empty.

        Raises:
            UserError: the file cannot be read, or lacks a column.
        """
        if file.suffix.lower() == ".json":
            entries = self.json(file)
            if not isinstance(entries, list):
                raise UserError(f"{file}: is no list of objects; write [{{{', '.join(wanted)} ...}}, ...]")
            for number, entry in enumerate(entries, 1):
                place = f"{file.name}:{number}"
                if isinstance(entry, dict):
                    yield place, dict.fromkeys(wanted, "") | {str(name).strip().lower(): v for name, v in entry.items()}
                else:
                    yield place, Refused(place, f"is no object with {', '.join(wanted)}")
            return
        self.read.append(file)
        try:
            with file.open(newline="", encoding="utf-8-sig") as stream:
                yield from _csv_rows(file, csv.reader(stream, strict=True), wanted)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: cannot be read ({error}); save it as CSV in UTF-8") from error

    def json(self, file: Path) -> Any:
        """Return what a JSON file holds; UserError where it cannot be read."""
        self.read.append(file)
        try:
            if file.stat().st_size > _MAX_JSON_BYTES:
                raise ValueError(f"it has {file.stat().st_size} bytes")
            return json.loads(file.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
            raise UserError(f"{file}: cannot be read as JSON ({error}); fetch it again") from error


def _csv_rows(file: Path, reader: Any, wanted: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any] | Refused]]:
    header = None
    while True:
        first = reader.line_num + 1
        place = f"{file.name}:{first}"
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if header is None:
                raise UserError(f"{place}: {error}; save it as CSV in UTF-8") from error
            yield place, Refused(place, f"cannot be read ({error}); quote a text that holds commas or quotes")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = _header(file, cells, wanted)
        elif len(cells) != len(header):
            reason = f"has {len(cells)} cells where the header has {len(header)}"
            yield place, Refused(place, f"{reason}; quote a text that holds commas")
        elif reader.line_num > first and any("\n" in cell for cell in cells):
            reason = f"goes on to line {reader.line_num}; close the quote that is open"
            yield place, Refused(place, reason)
        else:
            yield place, dict(zip(header, cells, strict=True))
    if header is None:
        raise UserError(f"{file}: is empty; it needs the columns {', '.join(wanted)}")


def _header(file: Path, cells: list[str], wanted: tuple[str, ...]) -> list[str]:
    header = [cell.strip().lower() for cell in cells]
    missing = [name for name in wanted if name not in header]
    if missing:
        other = next((mark for mark in ";\t|" if len(header) == 1 and mark in header[0]), None)
        remedy = f"separate columns by commas, not by {other!r}" if other else f"it has {', '.join(header)}"
        raise UserError(f"{file}: has no column {missing[0]!r}; it needs {', '.join(wanted)}; {remedy}")
    twice = [name for name, count in Counter(header).items() if count > 1 and name]
    if twice:
        raise UserError(f"{file}: has two columns {twice[0]!r}; keep one")
    return header


def same(name: str) -> str:
    """Return a name as it is compared: file systems spell one Unicode name in two ways."""
    return unicodedata.normalize("NFC", name)
