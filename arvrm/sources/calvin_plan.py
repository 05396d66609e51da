"""What a CALVIN split holds: its annotations, recordings and scenes, as segments of steps.

docs/calvin.md describes the layout.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from arvrm.interface import LONGEST_SENTENCE, UserError
from arvrm.unpickle import load_npy

_LONGEST = 100_000
"""Steps of one annotation that are believed; CALVIN's have at most 64."""
_LAST_STEP = 2**31
_MANY_STEPS = 1_000_000
"""Recordings that state more are compared with the files that are there before anything is looped over."""
_MAX_YAML_BYTES = 1 << 20
_YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Segment:
    """Steps `first` to `last` (inclusive) of a split, which become one episode."""

    id: str
    first: int
    last: int
    instruction: str
    task: str
    scene: str
    group: str

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.last - self.first + 1


@dataclass(frozen=True)
class SplitPlan:
    """What a split holds.

    Attributes:
        segments: annotated ones first, each kind in the order of its steps.
        left_out: annotation -> why it cannot be a segment.
        notes: what was decided where two files disagree.
    """

    segments: list[Segment]
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def plan_split(folder: Path, play: bool = False, play_steps: int = 256, prefix: str = "") -> SplitPlan:
    """List the segments of one split.

    Args:
        folder: `training` or `validation` of a data set.
        play: add the steps that no annotation covers, cut at recordings' ends and to `play_steps` at most.
        prefix: begins every id and group.

    Raises:
        UserError: an index file is missing, damaged or hostile, or no annotation can be used.
    """
    recordings = _recordings(folder)
    scenes, notes = _scenes(folder)
    annotations, left_out = _annotations(folder, optional=play)
    if left_out and not annotations and not play:
        raise UserError(next(iter(left_out.values())))

    def group(step: int) -> str:
        # Segments of one recording overlap; the recording is what a split must not cut.
        k = int(np.searchsorted(recordings[:, 0], step, side="right")) - 1
        inside = k >= 0 and step <= recordings[k, 1]
        name = f"{recordings[k, 0]:07d}" if inside else "-"
        return f"{prefix}{scenes(step)}/{folder.name}/{name}"

    def segment(first: int, last: int, instruction: str, task: str, mark: str = "") -> Segment:
        name = f"{prefix}{scenes(first)}/{folder.name}/{first:07d}-{last:07d}{mark}"
        return Segment(name, first, last, instruction, task, scenes(first), group(first))

    segments, seen = [], {}
    for first, last, instruction, task in sorted(annotations):
        seen[(first, last)] = seen.get((first, last), 0) + 1
        mark = f"#{seen[(first, last)]}" if seen[(first, last)] > 1 else ""
        segments.append(segment(first, last, instruction, task, mark))
    if play:
        _check_steps(folder, recordings)
        for first, last in _uncovered(recordings, list(seen)):
            for start in range(first, last + 1, play_steps):
                segments.append(segment(start, min(start + play_steps - 1, last), "", "", "~play"))
    return SplitPlan(segments, left_out, notes)


def _annotations(folder: Path, optional: bool) -> tuple[list[tuple[int, int, str, str]], dict[str, str]]:
    """Return (first, last, sentence, task) of the annotations, and why others cannot be."""
    path = folder / "lang_annotations" / "auto_lang_ann.npy"
    if not path.exists():
        if optional:
            return [], {}
        raise UserError(f"{path}: is not there; fetch it, or pass --all to convert the steps without annotations")
    found = load_npy(path)
    try:
        texts, tasks = list(found["language"]["ann"]), list(found["language"]["task"])
        ranges = list(found["info"]["indx"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path}: no CALVIN annotations ({error!r}); fetch the file again") from error
    if not len(texts) == len(tasks) == len(ranges):
        raise UserError(f"{path}: {len(texts)} sentences, {len(tasks)} tasks, {len(ranges)} ranges; fetch it again")
    good, left_out = [], {}
    for number, (text, task, steps) in enumerate(zip(texts, tasks, ranges, strict=True)):
        try:
            first, last = (int(step) for step in steps)
        except (TypeError, ValueError, OverflowError):
            first, last = -1, -1
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        worded = isinstance(text, str) and text.strip() and len(text) <= LONGEST_SENTENCE and isinstance(task, str)
        if worded and 0 <= first <= last < first + _LONGEST and last < _LAST_STEP:
            good.append((first, last, text.strip(), task))
        else:
            shown = f"annotation {str(text)[:60]!r} of steps {str(steps)[:40]} cannot be"
            left_out[f"{folder.name}/annotation {number}"] = f"{path}: {shown}; fetch the file again"
    return good, left_out


def _recordings(folder: Path) -> np.ndarray:
    path = folder / "ep_start_end_ids.npy"
    found = np.asarray(load_npy(path))
    if found.ndim != 2 or found.shape[1] != 2 or found.dtype.kind not in "iu" or (found[:, 0] > found[:, 1]).any():
        raise UserError(f"{path}: {found.dtype} {found.shape} is no list of first and last steps; fetch it again")
    if found.size and not (0 <= found.min() and found.max() < _LAST_STEP):
        raise UserError(f"{path}: names steps {found.min()} to {found.max()}, which cannot be; fetch it again")
    return found[np.argsort(found[:, 0], kind="stable")].astype(np.int64)


def _check_steps(folder: Path, recordings: np.ndarray) -> None:
    stated = int((recordings[:, 1] - recordings[:, 0] + 1).sum())
    if stated <= _MANY_STEPS:
        return
    with os.scandir(folder) as entries:
        present = sum(1 for _ in entries)
    if stated > 2 * present:
        path = folder / "ep_start_end_ids.npy"
        raise UserError(f"{path}: states {stated} steps where the folder has {present} files; fetch the data again")


def _scenes(folder: Path) -> tuple[Callable[[int], str], list[str]]:
    """Return step -> scene letter ("" where scene_info.npy is missing or does not say), and notes.

    Data sets of one scene that were fetched before September 2022 name the wrong one in scene_info.npy; the
    configuration that they were recorded with is right.
    """
    path = folder / "scene_info.npy"
    if not path.exists():
        return lambda step: "", []
    try:
        ranges = [(int(first), int(last), _letter(str(name))) for name, (first, last) in load_npy(path).items()]
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: no scene -> [first, last] ({error}); fetch the file again") from error
    notes = []
    recorded, said = _recorded_scene(folder), sorted({name for _, _, name in ranges})
    if recorded and recorded not in said:
        taken = recorded if len(said) == 1 else "scene_info.npy"
        notes.append(
            f"{path} says scene {', '.join(said)}, .hydra/merged_config.yaml says {recorded}; {taken} is taken"
        )
        if len(said) == 1:
            return lambda step: recorded, notes

    def scene(step: int) -> str:
        return next((name for first, last, name in ranges if first <= step <= last), "")

    return scene, notes


def _recorded_scene(folder: Path) -> str:
    path = folder / ".hydra" / "merged_config.yaml"
    found = read_yaml(path) if path.exists() else None
    scene = found.get("scene") if isinstance(found, dict) else None
    name = scene.get("name") if isinstance(scene, dict) else scene
    return _letter(name) if isinstance(name, str) else ""


def _letter(name: str) -> str:
    return name.removeprefix("calvin_scene_")[:40]


def read_yaml(path: Path) -> Any:
    """Return what a YAML file of the data set holds, without aliases, which can stand for any amount of memory.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        if path.stat().st_size > _MAX_YAML_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        text = path.read_text()
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, _YamlLoader)):
            raise ValueError("it has aliases")
        return yaml.load(text, _YamlLoader)
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())}); fetch the file again") from error


def _uncovered(recordings: np.ndarray, covered: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    covered = sorted(covered)
    for first, last in recordings.tolist():
        for a, b in covered:
            if b < first or a > last:
                continue
            if a > first:
                yield first, a - 1
            first = max(first, b + 1)
        if first <= last:
            yield first, last
