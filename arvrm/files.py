"""Files that are whole or not there: JSON and bytes written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arvrm.interface import UserError


def read_json(file: str | Path, remedy: str = "give an existing JSON file", largest: int = 1 << 24) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        remedy: what the user may do, for messages.
        largest: bytes; what is larger is refused unread: a device has no end.

    Raises:
        UserError: no such file, or it holds something else.
    """
    file = Path(file)
    try:
        with open(file, "rb") as stream:
            content = stream.read(largest + 1)
        if len(content) > largest:
            raise UserError(f"{file}: has more than {largest >> 20} MiB; {remedy}")
        values = json.loads(content)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; {remedy}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON ({error.msg}); {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({error}); {remedy}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected a JSON object at the top, got {type(values).__name__}; {remedy}")
    return values


def write_json(file: str | Path, values: Any, indent: int | None = 1, sort_keys: bool = False) -> None:
    """Write JSON with a line break at its end; NaN is refused, since no reader of JSON must know it."""
    text = json.dumps(values, indent=indent, sort_keys=sort_keys, allow_nan=False)
    with replacing(file) as partial:
        partial.write_text(text + "\n")


def inside(folder: str | Path, name: object, suffixes: tuple[str, ...], place: str) -> Path:
    """Return the path of what a file names, which may be a plain file of an expected type in its own folder only.

    Args:
        name: as the file states it: a base name, not a path.
        suffixes: such as (".mp4",).
        place: where it is stated, for messages.

    Raises:
        UserError: it leads out of the folder (also through a link), or is of another type.
    """
    folder = Path(folder)
    plain = isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name and "\\" not in name
    if not plain or not name.isprintable() or Path(name).suffix.lower() not in suffixes:
        raise UserError(f"{place}: {str(name)[:80]!r} is no {' or '.join(suffixes)} file of {folder}; correct the name")
    path = folder / name
    if path.is_symlink() or path.resolve().parent != folder.resolve():
        raise UserError(f"{place}: {name!r} is a link out of {folder}; put the file itself there")
    return path


def check_free(path: str | Path, overwrite: bool) -> None:
    """Raise UserError if something is at `path` that may not be replaced."""
    if Path(path).exists() and not overwrite:
        raise UserError(f"{path}: exists; pass --overwrite to replace it, or another --output")


@contextlib.contextmanager
def replacing(file: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `file` to write to; it takes the file's place if the block ends without error.

    Raises:
        UserError: it cannot be written (a full disk, a folder that is read-only or missing).
    """
    file = Path(file)
    partial = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=".tmp")
        os.close(handle)
        partial = Path(name)
        partial.chmod(0o666 & ~_umask())
        yield partial
        with open(partial, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, file)
    except OSError as error:
        raise UserError(
            f"{file}: cannot be written ({error.strerror or error}); free or choose another place"
        ) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
