"""Annotation files of published sets: Ego4D, EPIC-KITCHENS-100, Something-Something V2."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arvrm.interface import UserError
from arvrm.sources.corpora.files import VideoFolder
from arvrm.sources.corpora.folder import seconds_of
from arvrm.sources.corpora.segment import Absent, Refused, Segment, Skipped
from arvrm.sources.video import VideoError, sequence_files

Found = Iterator[Segment | Refused | Skipped | Absent]
_RATES = (60.0, 50.0, 60 / 1.001, 30.0, 30 / 1.001, 25.0, 24.0, 24 / 1.001, 48.0, 120.0, 100.0, 15.0, 12.0, 10.0)
"""Usual frame rates; of those that fit EPIC's frames and time stamps the one that fits best is taken."""

# Ego4D ---------------------------------------------------------------------------------------------------------------


def plan_ego4d(folder: VideoFolder) -> Found:
    """Yield a segment around each narration of the camera wearer's own hands."""
    file = folder.usual("narration.json", "all_narrations_redacted.json")
    content = folder.json(file)
    videos = content.get("videos", content) if isinstance(content, dict) else None
    if not isinstance(videos, dict):
        raise UserError(f"{file}: is no Ego4D narration file (video_uid -> narration_pass_1 ...); fetch it again")
    for uid, passes in videos.items():
        if not isinstance(passes, dict):
            continue
        video = folder.with_stem(uid)
        if video is None:
            yield Absent(uid)
        elif isinstance(video, Refused):
            yield video
        else:
            yield from _narrations(folder, uid, passes, video)


def _narrations(folder: VideoFolder, uid: str, passes: dict[str, Any], video: Path) -> Found:
    for name in ("narration_pass_1", "narration_pass_2"):
        found = passes.get(name) or {}
        narrations = found.get("narrations") or [] if isinstance(found, dict) else None
        if not isinstance(narrations, list):
            yield Refused(f"{uid}/{name}", "is no list of narrations")
            continue
        for number, entry in enumerate(narrations):
            id = f"{uid}/{name}/{number:05d}"
            entry = entry if isinstance(entry, dict) else {}
            narration, moment = entry.get("narration_text"), entry.get("timestamp_sec")
            if not isinstance(narration, str) or not _finite(moment):
                yield Refused(id, "has no narration_text or timestamp_sec")
                continue
            if re.match(r"\s*#\s*[oO0]\b", narration):
                yield Skipped("narrations of other people's hands (#O)")
                continue
            text = ego4d_text(narration)
            if re.fullmatch(r"(something\W*)+", text):
                yield Skipped("narrations that say nothing but #unsure")
                continue
            start = max(0.0, float(moment) - folder.clip_seconds / 2)
            meta = {"moment": float(moment)}
            yield Segment(id, video, start, start + folder.clip_seconds, text, uid, around=True, meta=meta)


def ego4d_text(narration: str) -> str:
    """Return what the camera wearer does, without Ego4D's marks: "#C C picks a bag #unsure" -> "picks a bag something".

    #C marks the wearer, who is called C; #O begins what another person does, which is left out with all that follows up
    to the next #C; #unsure stands for a word; other marks, such as #summary, say nothing of the scene.
    """
    kept: list[str] = []
    ours = True
    for part in re.split(r"(?=#)", narration):
        mark = re.match(r"#+\s*([A-Za-z0]+)", part)
        kind = mark[1].lower() if mark else ""
        rest = part[mark.end() :] if mark else part.lstrip("#")
        if kind == "c" or not kept and kind == "":
            ours = True
        elif kind in ("o", "0"):
            ours = False
        if ours:
            unsure = kind.startswith("unsure")
            kept.append("something" + rest if unsure else re.sub(r"^[\s:,.]*[cC]\b(?:\s*['’]s\b|[:,])?", "", rest))
    text = " ".join(" ".join(kept).split())
    return re.sub(r"\s+([.,;:])", r"\1", text).strip(" .,;:")


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9


# EPIC-KITCHENS-100 ---------------------------------------------------------------------------------------------------


def plan_epic(folder: VideoFolder) -> Found:
    """Yield the action segments of EPIC's CSV; of extracted frames, at the rate that its frame numbers tell."""
    wanted = ("narration_id", "video_id", "start_timestamp", "stop_timestamp", "narration")
    rows = list(folder.rows(folder.usual("EPIC_100_train.csv"), wanted))
    rates = _Rates([entry for _, entry in rows if isinstance(entry, dict)])
    for place, entry in rows:
        if isinstance(entry, Refused):
            yield entry
            continue
        id, name = str(entry["narration_id"] or place), str(entry["video_id"])
        video = folder.with_stem(name)
        if video is None:
            yield Absent(name)
            continue
        if isinstance(video, Refused):
            yield Refused(id, video.reason)
            continue
        try:
            start, end = seconds_of(entry["start_timestamp"]), seconds_of(entry["stop_timestamp"])
            if start is None or end is None:
                raise ValueError("has no start or stop time stamp")
            rate = rates.of(name, video, end) if video.is_dir() else None
        except ValueError as error:
            yield Refused(id, str(error))
            continue
        meta = {key: entry[key] for key in ("participant_id", "verb", "noun") if entry.get(key)}
        yield Segment(id, video, start, end, str(entry["narration"] or ""), name, rate=rate, meta=meta)


class _Rates:
    """Frames a second of EPIC's extracted frames, from start_frame, stop_frame and the time stamps beside them."""

    def __init__(self, entries: list[dict[str, Any]]) -> None:
        self._pairs: dict[str, list[tuple[float, int]]] = {}
        for entry in entries:
            for time, frame in (("start_timestamp", "start_frame"), ("stop_timestamp", "stop_frame")):
                try:
                    seconds, number = seconds_of(entry.get(time)), int(str(entry.get(frame) or "x")[:12])
                except ValueError:
                    continue
                if seconds is not None:
                    self._pairs.setdefault(str(entry.get("video_id")), []).append((seconds, number))
        self._known: dict[str, float | None] = {}
        self._holes: dict[Path, int | None] = {}

    def of(self, name: str, video: Path, end: float) -> float | None:
        """Return the rate of a folder of frames, None where nobody states it.

        Raises:
            ValueError: a frame before `end` is missing, so that counting would lead to a wrong time.
        """
        if name not in self._known:
            self._known[name] = self._fit(self._pairs.get(name, []))
        rate = self._known[name]
        if video not in self._holes:
            self._holes[video] = _first_missing(video)
        hole = self._holes[video]
        if hole is not None and (rate is None or hole <= end * rate):
            raise ValueError(f"frame {hole} of {video.name} is missing, so times cannot be found; extract it again")
        return rate

    @staticmethod
    def _fit(pairs: list[tuple[float, int]]) -> float | None:
        # Frame numbers are whole, and annotators' tools rounded them in more than one way.
        fitting = [rate for rate in _RATES if all(abs(time * rate - frame) <= 1.01 for time, frame in pairs)]
        if not pairs or not fitting:
            return None
        return min(fitting, key=lambda rate: sum(abs(time * rate - frame) for time, frame in pairs))


def _first_missing(video: Path) -> int | None:
    """Return the first number that a series of frames, which begins at 0 or 1, lacks."""
    try:
        numbers = [int(re.findall(r"\d+", file.stem)[-1][-12:]) for file in sequence_files(video)]
    except VideoError as error:
        raise ValueError(f"{video.name} {error}") from error
    begin = numbers[0] if numbers[0] in (0, 1) else 1
    return next((begin + at for at, number in enumerate(numbers) if number != begin + at), None)


# Something-Something V2 ----------------------------------------------------------------------------------------------


def plan_ssv2(folder: VideoFolder) -> Found:
    """Yield a segment for each labelled video."""
    file = folder.usual("train.json", "something-something-v2-train.json")
    entries = folder.json(file)
    if not isinstance(entries, list) or not any(isinstance(entry, dict) and "id" in entry for entry in entries):
        raise UserError(f"{file}: is no Something-Something label file (a list with id and label); fetch it again")
    if not any(isinstance(entry, dict) and "label" in entry for entry in entries):
        raise UserError(f"{file}: has no labels (the test split); give train.json or validation.json")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), (str, int)):
            yield Refused(f"{file.name}:{number}", "has no id")
            continue
        id = str(entry["id"])
        video = folder.with_stem(id)
        if video is None:
            yield Absent(id)
            continue
        if isinstance(video, Refused):
            yield video
            continue
        label = entry.get("label")
        meta = {"template": entry["template"]} if isinstance(entry.get("template"), str) else {}
        yield Segment(id, video, None, None, label if isinstance(label, str) else "", id, meta=meta)
