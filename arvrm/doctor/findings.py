"""What the doctor says: one finding a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["good", "wrong", "unknown", "note"]


@dataclass(frozen=True)
class Finding:
    """One line of the page.

    Attributes:
        part: machine, demonstrations or policy.
        about: what was looked at, one or two words.
        status: good; wrong (the exit code is 1); unknown: could not be looked at; note: good to know.
        text: what was found, with the remedy where something is wrong.
    """

    part: str
    about: str
    status: Status
    text: str
