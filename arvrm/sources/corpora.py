"""What is to be cut out of which video: annotation files of a user's own folder and of published sets, as `Segment`s.

docs/human_videos.md says where the published sets come from. Nothing here opens a video.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from arvrm.interface import FINGERS, UserError
from arvrm.sources.video import VIDEO_SUFFIXES, is_video

_ID_BYTES = 240
_ARKIT_FINGERS = dict(zip(FINGERS, ("Thumb", "IndexFinger", "MiddleFinger", "RingFinger", "LittleFinger"), strict=True))
ARKIT_JOINTS = (
    "Hand",
    *(
        f"{finger}{joint}"
        for finger in _ARKIT_FINGERS.values()
        for joint in ("Knuckle", "IntermediateBase", "IntermediateTip", "Tip")
    ),
)
"""EgoDex's names (without "left" or "right") of the points of `interface.KEYPOINTS`, in that order."""
EGODEX_FPS = 30.0
EGODEX_WIDTH = 1920
"""Pixels of the image's width that EgoDex's intrinsics are for."""
_SURE = 0.5
"""ARKit's confidence from which a joint counts as seen."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a video that becomes one clip.

    Attributes:
        id: unique in its source, at most 240 bytes.
        video: the file, or a folder of images.
        start, end: seconds; end None: the video's end.
        text: the instruction, not blank.
        group: what must stay on one side of a split: the video or the recording session.
        around: the bounds were put around a moment by us, so that the video may well end sooner.
        poses: EgoDex's HDF5 file, or None.
        meta: JSON-able details.
    """

    id: str
    video: Path
    start: float
    end: float | None
    text: str
    group: str
    around: bool = False
    poses: Path | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What a source asks for.

    Attributes:
        segments: in the source's order.
        refused: (id or row, why) of entries that cannot become clips.
        absent: published sets: annotated videos that are not in the folder (a part of the set was fetched).
        skipped: reason -> entries that are not meant for us, such as what other people's hands did.
    """

    segments: tuple[Segment, ...]
    refused: tuple[tuple[str, str], ...] = ()
    absent: int = 0
    skipped: dict[str, int] = field(default_factory=dict)


class _Draft:
    """Collects segments; makes ids unique and refuses what cannot be a clip."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.refused: list[tuple[str, str]] = []
        self.absent: set[str] = set()
        self.skipped: dict[str, int] = {}
        self._ids: set[str] = set()

    def add(self, id: str, video: Path, start: float, end: float | None, text: str, group: str, **more: Any) -> None:
        id = self._unique(id)
        text = " ".join(text.split())
        if not text:
            self.refused.append((id, "its text is blank"))
        elif start < 0:
            self.refused.append((id, f"begins at {start:g} s, before the video"))
        elif end is not None and end <= start:
            self.refused.append((id, f"has no length ({start:g} to {end:g} s)"))
        else:
            self.segments.append(Segment(id, video, start, end, text, _clean(group), **more))

    def refuse(self, id: str, reason: str) -> None:
        self.refused.append((self._unique(id), reason))

    def skip(self, reason: str) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + 1

    def _unique(self, id: str) -> str:
        id = unique = _clean(id)
        count = 1
        while unique in self._ids:
            count += 1
            unique = f"{id}#{count}"
        self._ids.add(unique)
        return unique

    def plan(self) -> Plan:
        return Plan(tuple(self.segments), tuple(self.refused), len(self.absent), dict(sorted(self.skipped.items())))


def plan(source: str, folder: Path, annotations: Path | None = None, clip_seconds: float = 3.0) -> Plan:
    """List the clips of a source.

    Args:
        source: one of `SOURCES`.
        folder: holds the videos, at any depth.
        annotations: the file that says what is where; None: the source's usual one in `folder`.
        clip_seconds: length of the clips around Ego4D's moments.

    Raises:
        UserError: the folder or the annotation file is missing or cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder; give the folder that holds the videos")
    if annotations is not None and not annotations.is_file():
        raise UserError(f"{annotations}: is no file; give the annotations of the videos")
    draft = _Draft()
    SOURCES[source](draft, folder, annotations, clip_seconds)
    found = draft.plan()
    if not found.segments and not found.refused:
        missing = f"; none of its {found.absent} annotated videos is there" if found.absent else ""
        raise UserError(f"{folder}: holds no clip of source {source}{missing}; give the folder with the videos")
    return found


# ---------------------------------------------------------------------------------------------------------------------
# A folder of one's own
# ---------------------------------------------------------------------------------------------------------------------


def _plan_folder(draft: _Draft, folder: Path, annotations: Path | None, _: float) -> None:
    if annotations is None:
        usual = (folder / "annotations.csv", folder / "annotations.json")
        annotations = next((file for file in usual if file.exists()), None)
    if annotations is None:
        for path in _videos(folder):
            name = path.relative_to(folder).as_posix()
            draft.add(name, path, 0.0, None, text_of_name(path.stem if path.is_file() else path.name), name)
        return
    for row, entry in _rows(annotations, ("file", "text")):
        place = f"{annotations.name}:{row}"
        name = str(entry["file"] or "").strip()
        path = folder / name
        if not name or not path.exists():
            draft.refuse(f"{place} {name}", f"there is no video {name!r} in the folder")
            continue
        try:
            start, end = seconds_of(entry.get("start")) or 0.0, seconds_of(entry.get("end"))
        except ValueError as error:
            draft.refuse(f"{place} {name}", str(error))
            continue
        stretch = f"{start:.3f}-{'end' if end is None else f'{end:.3f}'}"
        draft.add(f"{name}@{stretch}", path, start, end, str(entry["text"] or ""), name)


def text_of_name(stem: str) -> str:
    """Return the sentence a file's name says: "open_the-drawer_02" -> "open the drawer"."""
    words = re.sub(r"[_\-.\s]+", " ", stem).strip()
    return re.sub(r"(\s*[(\[]?\d+[)\]]?)+$", "", words).strip()


def seconds_of(value: Any) -> float | None:
    """Read a time: seconds, or [hours:]minutes:seconds; None where nothing is given.

    Raises:
        ValueError: neither.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        parts = [float(part) for part in str(value).strip().split(":")]
        if isinstance(value, bool) or len(parts) > 3 or not all(math.isfinite(part) for part in parts):
            raise ValueError
    except ValueError:
        raise ValueError(f"time {value!r} is neither seconds nor hours:minutes:seconds") from None
    return float(sum(part * 60**power for power, part in enumerate(reversed(parts))))


# ---------------------------------------------------------------------------------------------------------------------
# Published sets
# ---------------------------------------------------------------------------------------------------------------------


def _plan_ego4d(draft: _Draft, folder: Path, annotations: Path | None, clip_seconds: float) -> None:
    file = annotations or _usual(folder, "narration.json", "all_narrations_redacted.json")
    content = _json(file)
    videos = content.get("videos", content) if isinstance(content, dict) else None
    if not isinstance(videos, dict):
        raise UserError(f"{file}: is no Ego4D narration file (video_uid -> narration_pass_1 ...); fetch it again")
    here = {path.stem: path for path in _videos(folder)}
    for uid, passes in videos.items():
        if not isinstance(passes, dict):
            continue
        if uid not in here:
            draft.absent.add(uid)
            continue
        for name in ("narration_pass_1", "narration_pass_2"):
            narrations = (passes.get(name) or {}).get("narrations") or []
            for number, entry in enumerate(narrations):
                id = f"{uid}/{name}/{number:05d}"
                text, moment = entry.get("narration_text"), entry.get("timestamp_sec")
                if not isinstance(text, str) or not isinstance(moment, (int, float)) or not math.isfinite(moment):
                    draft.refuse(id, "has no narration_text or timestamp_sec")
                    continue
                if re.match(r"\s*#\s*[oO]\b", text):
                    draft.skip("narrations of other people's hands (#O)")
                    continue
                start = max(0.0, float(moment) - clip_seconds / 2)
                end = start + clip_seconds
                meta = {"moment": float(moment)}
                draft.add(id, here[uid], start, end, ego4d_text(text), uid, around=True, meta=meta)


def ego4d_text(narration: str) -> str:
    """Strip Ego4D's marks: "#C C picks a bag #unsure" -> "picks a bag something"."""
    text = re.sub(r"^\s*#\s*[cC]\b\s*([cC]\b)?", "", narration)
    text = re.sub(r"#\s*unsure", "something", text, flags=re.IGNORECASE)
    return " ".join(text.replace("#", " ").split()).rstrip(".").strip()


def _plan_epic(draft: _Draft, folder: Path, annotations: Path | None, _: float) -> None:
    file = annotations or _usual(folder, "EPIC_100_train.csv")
    here = {path.stem: path for path in _videos(folder)}
    wanted = ("narration_id", "video_id", "start_timestamp", "stop_timestamp", "narration")
    for _, entry in _rows(file, wanted):
        video = entry["video_id"]
        if video not in here:
            draft.absent.add(video)
            continue
        try:
            start, end = seconds_of(entry["start_timestamp"]), seconds_of(entry["stop_timestamp"])
            if start is None or end is None:
                raise ValueError("has no start or stop time stamp")
        except ValueError as error:
            draft.refuse(entry["narration_id"], str(error))
            continue
        meta = {name: entry[name] for name in ("participant_id", "verb", "noun") if entry.get(name)}
        draft.add(entry["narration_id"], here[video], start, end, entry["narration"] or "", video, meta=meta)


def _plan_ssv2(draft: _Draft, folder: Path, annotations: Path | None, _: float) -> None:
    file = annotations or _usual(folder, "train.json", "something-something-v2-train.json")
    entries = _json(file)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "id" in entry for entry in entries):
        raise UserError(f"{file}: is no Something-Something label file (a list with id and label); fetch it again")
    if not any("label" in entry for entry in entries):
        raise UserError(f"{file}: has no labels (the test split); give train.json or validation.json")
    here = {path.stem: path for path in _videos(folder)}
    for entry in entries:
        id = str(entry["id"])
        if id not in here:
            draft.absent.add(id)
            continue
        meta = {"template": entry["template"]} if isinstance(entry.get("template"), str) else {}
        draft.add(id, here[id], 0.0, None, str(entry.get("label") or ""), id, meta=meta)


def _plan_egodex(draft: _Draft, folder: Path, annotations: Path | None, _: float) -> None:
    try:
        import h5py
    except ImportError as error:
        raise UserError("egodex: h5py is not installed; run `pip install 'arvrm[egodex]'`") from error
    if annotations is not None:
        raise UserError(f"{annotations}: EgoDex has its texts beside the videos; leave --annotations out")
    for file in sorted(folder.rglob("*.hdf5")):
        name = file.relative_to(folder).with_suffix("").as_posix()
        video = file.with_suffix(".mp4")
        if not video.exists():
            draft.refuse(name, f"{video.name} is not beside {file.name}")
            continue
        try:
            with h5py.File(file, "r") as opened:
                texts = {key: _attribute(opened.attrs.get(key)) for key in opened.attrs}
        except (OSError, RuntimeError, KeyError) as error:
            draft.refuse(name, f"{file.name} is damaged ({' '.join(str(error).split())})")
            continue
        # Reversible tasks were recorded in both directions, and say which one this is.
        second = texts.get("llm_type") == "reversible" and texts.get("which_llm_description") == "2"
        text = texts.get("llm_description2" if second else "llm_description", "")
        meta = {"task": texts["task"]} if texts.get("task") else {}
        group = texts.get("session_name") or name
        draft.add(name, video, 0.0, None, text.strip().rstrip("."), group, poses=file, meta=meta)


def egodex_hands(file: Path, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Project ARKit's joints into the video by the file's own camera.

    Args:
        file: EgoDex's HDF5: transforms/NAME (N, 4, 4), joint or camera to ARKit's world (m); camera/intrinsic (3, 3)
            for 1920 x 1080 (x right, y down, z forward); confidences/NAME (N,), in newer files.
        width, height: the video's pixels, 1920 x 1080 or a reduced copy.

    Returns:
        keypoints (N, 2, 21, 3) float64: left and right hand; u, v in pixels of the video, depth in m relative to the
        wrist; seen (N, 2, 21) bool: in front of the camera, in the image and, where told, with confidence 0.5.

    Raises:
        ValueError: something is missing or of another shape.
    """
    import h5py

    try:
        with h5py.File(file, "r") as opened:
            intrinsic = np.asarray(opened["camera/intrinsic"], dtype=np.float64)
            to_camera = np.linalg.inv(np.asarray(opened["transforms/camera"], dtype=np.float64))
            keypoints = np.zeros((len(to_camera), 2, len(ARKIT_JOINTS), 3))
            seen = np.zeros(keypoints.shape[:3], dtype=bool)
            for hand, side in enumerate(("left", "right")):
                for k, joint in enumerate(ARKIT_JOINTS):
                    world = np.asarray(opened[f"transforms/{side}{joint}"], dtype=np.float64)[:, :, 3]
                    keypoints[:, hand, k] = np.einsum("nij,nj->ni", to_camera, world)[:, :3]
                    sure = opened.get(f"confidences/{side}{joint}")
                    seen[:, hand, k] = True if sure is None else np.asarray(sure) >= _SURE
    except (OSError, RuntimeError, KeyError, IndexError, np.linalg.LinAlgError) as error:
        raise ValueError(f"{file.name} is damaged ({' '.join(str(error).split())})") from error
    if not np.isfinite(keypoints).all() or intrinsic.shape != (3, 3):
        raise ValueError(f"{file.name} holds numbers that are no poses")
    depth = keypoints[..., 2].copy()
    scale = width / EGODEX_WIDTH
    seen &= depth > 1e-3
    safe = np.where(depth > 1e-3, depth, 1.0)
    u = scale * (intrinsic[0, 0] * keypoints[..., 0] + intrinsic[0, 1] * keypoints[..., 1]) / safe
    u += scale * intrinsic[0, 2]
    v = scale * (intrinsic[1, 1] * keypoints[..., 1] / safe + intrinsic[1, 2])
    seen &= (u >= 0) & (u < width) & (v >= 0) & (v < height)
    return np.stack([u, v, depth - depth[..., :1]], axis=-1), seen


SOURCES: dict[str, Callable[[_Draft, Path, Path | None, float], None]] = {
    "folder": _plan_folder,
    "ego4d": _plan_ego4d,
    "epic": _plan_epic,
    "ssv2": _plan_ssv2,
    "egodex": _plan_egodex,
}


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def _videos(folder: Path) -> list[Path]:
    """All videos under `folder`, sorted; a folder that holds images is one."""
    found = [path for path in folder.rglob("*") if path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES]
    return sorted(path for path in found if is_video(path))


def _usual(folder: Path, *names: str) -> Path:
    for name in names:
        found = sorted(folder.rglob(name))
        if len(found) > 1:
            raise UserError(f"{folder}: has {len(found)} files {name}; name one with --annotations")
        if found:
            return found[0]
    raise UserError(f"{folder}: has no {' or '.join(names)}; give the file with --annotations")


def _rows(file: Path, wanted: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line or entry number, entry) of a CSV with a header, or of a JSON list of objects."""
    if file.suffix.lower() == ".json":
        entries = _json(file)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{file}: is no list of objects; write [{{{', '.join(wanted)} ...}}, ...]")
        for number, entry in enumerate(entries, 1):
            yield number, {name: None for name in wanted} | entry
        return
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in wanted if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{file}: has no column {missing[0]!r}; it needs {', '.join(wanted)}")
            for entry in reader:
                yield reader.line_num, entry
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: cannot be read ({error}); save it as CSV in UTF-8") from error


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error}); fetch it again") from error


def _attribute(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else "" if value is None else str(value)


def _clean(text: str) -> str:
    """Make an id of any text: printable, and short without two becoming one."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    # Names that are no valid UTF-8 on disk come as lone surrogates.
    clean = clean.encode("utf-8", "replace").decode("utf-8")
    if clean != text or len(clean.encode()) > _ID_BYTES:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        clean = clean.encode()[: _ID_BYTES - 13].decode("utf-8", "ignore") + "~" + digest
    return clean
