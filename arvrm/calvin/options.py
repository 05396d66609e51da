"""What a user may choose about the stand-ins. An environment variable carries it to processes that a script starts."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from arvrm.config import bounded, check_bounds
from arvrm.interface import UserError

VARIABLE = "ARVRM_CALVIN"


@dataclass(frozen=True)
class Options:
    """Attributes:
    renderer: tiny (CALVIN's pixels to the bit), egl, or auto (egl where it works).
    assets: official (a checkout, CALVIN_ROOT) or builtin (our own scenes, for trying a script without one).
    first: how many of the chains that a script asks for it gets; None: all.
    """

    renderer: Literal["tiny", "egl", "auto"] = "tiny"
    assets: Literal["official", "builtin"] = "official"
    first: int | None = bounded(None, least=1, most=10**6)

    __post_init__ = check_bounds

    def store(self) -> None:
        os.environ[VARIABLE] = json.dumps(dataclasses.asdict(self))


def options() -> Options:
    """Return what was chosen, here or in the process that started this one."""
    text = os.environ.get(VARIABLE)
    try:
        return Options(**json.loads(text)) if text else Options()
    except (ValueError, TypeError) as error:
        raise UserError(f"{VARIABLE}: {text!r} is not what arvrm.calvin writes ({error}); unset it") from error


def checkout() -> Path | None:
    """Return the official checkout that CALVIN_ROOT names, if there is one."""
    root = os.environ.get("CALVIN_ROOT")
    path = Path(root).expanduser().resolve() if root else None
    return path if path and path.is_dir() else None
