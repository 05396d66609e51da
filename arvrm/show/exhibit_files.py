"""What a folder of exhibits says in its exhibits.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from arvrm.config import from_dict
from arvrm.files import read_json
from arvrm.interface import KEYPOINTS

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Clip:
    """A retrieved clip; `language` and `visual` are the terms of its similarity, `picture` a PNG of the folder."""

    id: str
    instruction: str
    task: str
    scene: str
    language: float
    visual: float
    picture: str


@dataclass(frozen=True)
class Query:
    """A robot episode for which clips were searched."""

    instruction: str
    task: str
    scene: str
    picture: str
    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class Map:
    """The analogy map, (S, K), alone or the mean of those by sentence; see `exhibits.describe_map`."""

    kind: str
    rows: str
    alpha: float
    weights: Matrix
    by_sentence: dict[str, Matrix] | None = None


@dataclass(frozen=True)
class Exhibits:
    """All of it."""

    further_keys: ClassVar[bool] = True
    components: tuple[str, ...]
    keypoints: tuple[str, ...]
    retrieval: tuple[Query, ...] = ()
    map: Map | None = None

    def __post_init__(self) -> None:
        if self.keypoints != KEYPOINTS:
            raise ValueError("keypoints are not those of a hand, in their order")
        columns = (len(KEYPOINTS), 2 * len(KEYPOINTS))
        for weights in [] if self.map is None else [self.map.weights, *(self.map.by_sentence or {}).values()]:
            if len(weights) != len(self.components) or len({len(row) for row in weights}) != 1:
                raise ValueError(f"map has not one row of weights for each of {len(self.components)} components")
            if len(weights[0]) not in columns:
                raise ValueError(f"map has {len(weights[0])} weights a row; a hand has {columns[0]}, two {columns[1]}")


def read_exhibits(folder: Path) -> Exhibits:
    """Read exhibits.json; raises UserError where there is none, or one with other values."""
    file = folder / "exhibits.json"
    return from_dict(Exhibits, read_json(file, "give a folder written by `arvrm exhibit`"), str(file))
