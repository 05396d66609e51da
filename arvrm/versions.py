"""Which distribution of a module is installed. `pybullet` has two: the original, and a fork that has more wheels."""

from __future__ import annotations

import importlib.metadata

DISTRIBUTIONS = {"pybullet": ("pybullet-arm64", "pybullet")}
"""Distributions by the module that they provide, where those are several or have another name."""


def installed(module: str) -> dict[str, str]:
    """Return name -> version of the distributions of a module that are installed; more than one is a mistake."""
    found = {}
    for name in DISTRIBUTIONS.get(module, (module,)):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def version(module: str) -> str | None:
    """Return a module's version, with the distribution's name where that is another; None: it is not installed.

    "3.2.7", or "3.2.8 (pybullet-arm64)".
    """
    found = installed(module)
    return ", ".join(text if name == module else f"{text} ({name})" for name, text in found.items()) or None
