"""Small stand-ins for packages of CALVIN's old environment, for what evaluation scripts use of them."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
from gymnasium import spaces

from arvrm.sim.chains import fnv1

__all__ = ["Env", "Wrapper", "colored", "fnv1_32", "seed_everything", "spaces"]

_COLOURS = ("grey", "red", "green", "yellow", "blue", "magenta", "cyan", "white")


class Env:
    """gym's class of environments before version 0.26: step() returns four values, reset() one."""

    metadata: dict[str, Any] = {}

    @property
    def unwrapped(self) -> Any:
        return self

    def close(self) -> None: ...

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class Wrapper(Env):
    """gym's wrapper: what it does not have is its environment's."""

    def __init__(self, env: Any) -> None:
        self.env = env

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "env":
            raise AttributeError(f"{type(self).__name__} has no {name!r}")
        return getattr(self.env, name)

    @property
    def unwrapped(self) -> Any:
        return self.env.unwrapped

    def step(self, action: Any) -> Any:
        return self.env.step(action)

    def reset(self, **keywords: Any) -> Any:
        return self.env.reset(**keywords)

    def render(self, *arguments: Any, **keywords: Any) -> Any:
        return self.env.render(*arguments, **keywords)

    def close(self) -> None:
        self.env.close()


def fnv1_32(seed: int = 0) -> Any:
    """Return pyhash 0.9.3's hasher: of bytes as they are, of a str as UTF-16-LE."""
    if seed:
        raise ValueError(f"pyhash.fnv1_32: seed {seed} is not part of arvrm.calvin; use 0")
    return lambda data: fnv1(data if isinstance(data, bytes) else str(data).encode("utf-16-le"))


def seed_everything(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Seed Python, NumPy and, where it is installed, torch; return the seed."""
    seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else int(seed)
    os.environ["PL_GLOBAL_SEED"], os.environ["PL_SEED_WORKERS"] = str(seed), str(int(workers))
    random.seed(seed)
    np.random.seed(seed)
    try:
        import torch
    except ImportError:
        return seed
    torch.manual_seed(seed)
    return seed


def colored(text: object, color: str | None = None, *_: Any, **__: Any) -> str:
    """Return text in a terminal's colour; background and attributes are left out."""
    return f"\033[{30 + _COLOURS.index(color)}m{text}\033[0m" if color in _COLOURS else str(text)
