"""What is known of the clips of an index besides their features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from arvrm.windows.headers import Names, check_codes


class Categorical(Sequence[str]):
    """A name for each clip, kept as the number of one of few different `names`."""

    def __init__(self, names: Sequence[str], codes: np.ndarray) -> None:
        self.names, self.codes = names, codes

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.names[int(self.codes[index])]

    def rows_of(self, wanted: Sequence[str]) -> np.ndarray:
        """Return the rows whose name is one of `wanted`, ascending."""
        if not wanted:
            return np.zeros(0, dtype=np.int64)
        known = set(wanted)
        chosen = [number for number, name in enumerate(self.names) if name in known]
        return np.flatnonzero(np.isin(self.codes, chosen)).astype(np.int64)


@dataclass(frozen=True)
class Clips:
    """What is known of the n clips of an index besides their features: arrays, no object for a clip.

    Attributes:
        ids: n.       instructions, tasks, groups: the different names, and (n,) int32 numbers of them.
        store: (n,) int32, which of the index's stores.      lengths: (n,) int64, stored frames.
    """

    ids: Names
    instructions: tuple[Names, np.ndarray]
    tasks: tuple[Names, np.ndarray]
    groups: tuple[Names, np.ndarray]
    store: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def save(self, file: Path) -> None:
        values: dict[str, Any] = {
            "ids_text": self.ids.text,
            "ids_end": self.ids.end,
            "store": self.store,
            "lengths": self.lengths,
        }
        for name in ("instructions", "tasks", "groups"):
            names, codes = getattr(self, name)
            values |= {f"{name}_text": names.text, f"{name}_end": names.end, name: codes}
        np.savez(file, **values)

    @classmethod
    def load(cls, file: Path) -> Clips:
        with np.load(file, allow_pickle=False) as found:
            instructions, tasks, groups = (
                (Names.of_file(found[f"{name}_text"], found[f"{name}_end"]), found[name])
                for name in ("instructions", "tasks", "groups")
            )
            ids = Names.of_file(found["ids_text"], found["ids_end"])
            return cls(ids, instructions, tasks, groups, found["store"], found["lengths"])

    def check(self, stores: int, frames: int) -> None:
        """Raise ValueError unless the clips are of so many stores and have so many frames in all."""
        for values in (self.instructions[1], self.tasks[1], self.groups[1], self.store, self.lengths):
            if values.shape != (len(self.ids),):
                raise ValueError("the columns of clips have different lengths")
        for name in ("instructions", "tasks", "groups"):
            names, codes = getattr(self, name)
            check_codes(codes, len(names), name)
        check_codes(self.store, stores, "store")
        if self.lengths.dtype.kind not in "iu" or not (self.lengths > 0).all():
            raise ValueError("lengths are not whole numbers above 0")
        if sum(self.lengths.tolist()) != frames:
            raise ValueError(f"clips have {sum(self.lengths.tolist())} frames, frames.npy {frames}")

    @classmethod
    def of_json(cls, entries: Sequence[dict[str, Any]]) -> Clips:
        """Read the clips of version 1, which kept them in index.json."""

        def named(key: str) -> tuple[Names, np.ndarray]:
            codes: dict[str, int] = {}
            numbers = [codes.setdefault(entry[key], len(codes)) for entry in entries]
            return Names.of(codes), np.array(numbers, dtype=np.int32)

        store, lengths = (np.array([entry[key] for entry in entries], dtype=np.int64) for key in ("store", "frames"))
        ids = Names.of(entry["id"] for entry in entries)
        return cls(ids, named("instruction"), named("task"), named("group"), store, lengths)
