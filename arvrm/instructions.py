"""The sentences of the 34 tasks: our own, in three lists that never overlap, and CALVIN's where its files are.

    training    at least 12 a task: what demonstrations are labelled with
    validation  one a task: what evaluation says by default
    unseen      at least 10 a task: other verbs and constructions, for language generalisation only
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from arvrm.files import read_bytes
from arvrm.interface import LONGEST_SENTENCE, TASKS, UserError

_CALVIN_FILES = {"training": "new_playtable.yaml", "validation": "new_playtable_validation.yaml"}


def training_instructions(task: str) -> tuple[str, ...]:
    """Our training paraphrases of a task, lower case. Raises UserError where the task is unknown."""
    return tuple(_own(task)["training"])


def validation_instruction(task: str) -> str:
    """Our one validation sentence of a task; it is in neither other list."""
    return _own(task)["validation"]


def unseen_instructions(task: str) -> tuple[str, ...]:
    """Paraphrases that no training demonstration carries."""
    return tuple(_own(task)["unseen"])


def load_instruction_file(path: str | Path, tasks: Sequence[str] = TASKS) -> dict[str, tuple[str, ...]]:
    """Read task -> sentences from JSON or YAML (CALVIN's annotation files are such YAML).

    A task may have one sentence or a list; tasks not in the file are simply not in the result.

    Args:
        tasks: what there is.

    Raises:
        UserError: the file cannot be read, is no such mapping, or names an unknown task.
    """
    path = Path(path)
    remedy = "give a JSON or YAML file that maps a task to its sentences"
    try:
        text = read_bytes(path, remedy).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8; {remedy}") from error
    values = _parse(path, text)
    if not isinstance(values, Mapping) or not values:
        raise UserError(f"{path}: expected a mapping of task -> sentences, got {type(values).__name__}")
    found = {}
    for task, sentences in values.items():
        if task not in tasks:
            raise UserError(f"{path}: unknown task {task!r}{_nearest(task, tasks)}")
        sentences = [sentences] if isinstance(sentences, str) else sentences
        listed = isinstance(sentences, list) and sentences
        if not listed or not all(isinstance(s, str) and s.strip() for s in sentences):
            said = repr(sentences)[:100] if isinstance(sentences, (str, list)) else type(sentences).__name__
            raise UserError(f"{path}: task {task!r} has {said}; give a list of sentences that are not empty")
        if any(len(sentence) > LONGEST_SENTENCE for sentence in sentences):
            raise UserError(f"{path}: task {task!r} has a sentence of over {LONGEST_SENTENCE} letters; shorten it")
        found[task] = tuple(sentence.strip() for sentence in sentences)
    return found


def calvin_instructions(calvin_root: str | Path, split: str = "validation") -> dict[str, tuple[str, ...]]:
    """CALVIN's sentences for all 34 tasks from an official checkout.

    Args:
        calvin_root: the checkout, with calvin_models/conf/annotations.
        split: "training" (some ten sentences a task) or "validation" (one).
    Raises:
        UserError: the file is missing or lacks a task, or the split is unknown.
    """
    if split not in _CALVIN_FILES:
        raise UserError(f"CALVIN annotations: split {split!r} is unknown; use {' or '.join(_CALVIN_FILES)}")
    path = Path(calvin_root) / "calvin_models" / "conf" / "annotations" / _CALVIN_FILES[split]
    if not path.is_file():
        raise UserError(f"{path}: does not exist; set CALVIN_ROOT to a checkout of CALVIN")
    found = load_instruction_file(path)
    missing = [task for task in TASKS if task not in found]
    if missing:
        raise UserError(f"{path}: lacks task {missing[0]!r}; restore CALVIN's own file")
    return found


def _parse(path: Path, text: str) -> Any:
    if path.suffix == ".json":
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not JSON ({error}); mend the file") from error
    import yaml

    try:
        # Aliases let a file of a few lines stand for more than memory holds.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("has aliases")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not YAML ({str(error).splitlines()[0]}); mend the file") from error


@functools.cache
def _all() -> dict[str, dict[str, Any]]:
    text = resources.files("arvrm").joinpath("resources/instructions.json").read_text(encoding="utf-8")
    return json.loads(text)["tasks"]


def _own(task: str) -> dict[str, Any]:
    if task not in TASKS:
        raise UserError(f"task {task!r} is unknown{_nearest(task)}")
    return _all()[task]


def _nearest(task: Any, tasks: Sequence[str] = TASKS) -> str:
    import difflib

    close = difflib.get_close_matches(str(task), tasks, n=1, cutoff=0.0)
    return f"; did you mean {close[0]!r}?"
