"""Objects that a user names as package.module:name: a policy, a world, a robot, a detector."""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from arvrm.interface import UserError


def is_path(name: str) -> bool:
    """Whether `name` has the form package.module:attribute."""
    module, _, attribute = name.partition(":")
    return bool(attribute) and all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")])


def load(name: str, flag: str) -> Any:
    """Import `package.module:attribute`, from where Python finds packages or from the working directory.

    Args:
        flag: what the user wrote it after, for messages.

    Raises:
        UserError: the name has another form, the module cannot be imported, or has no such attribute.
    """
    if not is_path(name):
        raise UserError(f"{flag} {name!r}: write it as package.module:name")
    module_name, _, path = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"{flag} {name}: cannot be imported ({error}); install it, or run where it lies") from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise UserError(f"{flag} {name}: {module_name} has no {path!r}; correct the name") from error
    return found


def identity(name: str, flag: str) -> dict[str, str]:
    """Return name and SHA-256 of the file that `load(name, flag)` comes from, so that runs with others do not mix."""
    load(name, flag)
    file = sys.modules[name.partition(":")[0]].__file__
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
    return {"name": name, "sha256": digest}


@functools.cache
def installed(group: str) -> dict[str, metadata.EntryPoint]:
    """Return what installed packages bring of a group of entry points, by name; `load()` imports one."""
    return {entry.name: entry for entry in metadata.entry_points(group=group)}
