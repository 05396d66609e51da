"""Files and folders that are whole or not there: written under a temporary name beside their place, then renamed.

Temporary names begin with a dot and the name of what they are for: `.NAME.xxxxxxxx.tmp` is a file being written, `.new`
a folder being written, `.old` the folder before it, moved aside, `.gone` a folder being deleted; `.NAME.lock` says that
NAME is being written. What a killed process leaves is cleared up by the next that writes the same; what a living one is
working on is locked, and left alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from arvrm.interface import UserError

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EROFS}
_locks: dict[Path, int] = {}
"""Outputs that this process has locked: how often."""
_open_locks: set[int] = set()


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


def write_json(file: str | Path, values: object, indent: int | None = 1, sort_keys: bool = False) -> None:
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
    plain = isinstance(name, str) and name not in ("", ".", "..") and "\\" not in name and name.isprintable()
    if not isinstance(name, str) or not plain or Path(name).name != name or Path(name).suffix.lower() not in suffixes:
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

    Two processes may write the same file: the last one's stays.

    Raises:
        UserError: it cannot be written (a full disk, a folder that is read-only or missing).
    """
    file = Path(file)
    handle, partial = -1, None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _clear_files(file)
        handle, partial = _locked_temporary(file)
        partial.chmod(0o666 & ~_umask())
        yield partial
        with open(partial, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, file)
    except OSError as error:
        raise _not_written(file, error) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
            _close_lock(handle)


@contextlib.contextmanager
def replacing_folder(
    folder: str | Path, overwrite: bool = False, check: Callable[[Path], None] | None = None
) -> Iterator[Path]:
    """Give a new, empty folder beside `folder` to work in; it takes the folder's place if the block ends without error.

    Killed at any moment, `folder` is what it was or what it was to be, at the latest when this is called again: what
    was moved aside and not replaced comes back then. `folder` is locked meanwhile (see `locked`).

    Args:
        overwrite: `folder` may exist, and is replaced.
        check: called with an existing `folder` before any work; raises UserError if that must not be replaced.

    Raises:
        UserError: `folder` exists (without `overwrite`), another process is writing it, or it cannot be written.
    """
    folder = Path(folder)
    place = Path(os.path.realpath(folder))
    with locked(folder):
        with _as_user_error(folder):
            place.parent.mkdir(parents=True, exist_ok=True)
            _clear_folders(place)
        check_free(folder, overwrite)
        if place.exists() and not place.is_dir():
            raise UserError(f"{folder}: is a file, not a folder; choose another path")
        if place.exists() and check is not None:
            check(folder)
        with _as_user_error(folder):
            partial = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}.", suffix=".new"))
        try:
            partial.chmod(0o777 & ~_umask())
            _locks[partial] = 1  # nobody else writes it
            with _as_user_error(folder, _DISK):
                yield partial
            with _as_user_error(folder):
                _to_disk(partial)
                _exchange(partial, place)
        finally:
            _locks.pop(partial, None)
            _delete(partial)


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Keep other processes from writing `path`, a file or folder that need not exist, until the block ends.

    A process may lock what it has locked already; its children, forked or not, do not hold its locks. A file system
    without locks, or where no file can be made beside `path`, keeps nobody out.

    Raises:
        UserError: another process has locked it; the message says which.
    """
    place = Path(os.path.realpath(path))
    if place in _locks:
        _locks[place] += 1
        try:
            yield
        finally:
            _locks[place] -= 1
        return
    file = place.with_name(f".{place.name}.lock")
    handle = _take(file, path)
    _locks[place] = 1
    try:
        yield
    finally:
        _locks.pop(place, None)
        if handle is not None and handle in _open_locks:
            file.unlink(missing_ok=True)  # before the lock is given up: see `_take`
            _close_lock(handle)


def _take(file: Path, path: str | Path) -> int | None:
    """Lock the lock file of `path`; None: there are no locks here."""
    while True:
        handle = -1
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 200, 0).decode("utf-8", "replace").strip() or "another process"
            os.close(handle)
            remedy = "wait until it has ended, or give another output"
            raise UserError(f"{path}: {holder} is writing it; {remedy}") from error
        except OSError as error:
            if handle >= 0:
                os.close(handle)
            if error.errno in _NO_LOCKS:
                return None
            raise _not_written(Path(path), error) from error
        if _same(handle, file):
            break
        os.close(handle)  # who held it before has deleted it since it was opened
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    _open_locks.add(handle)
    return handle


def _locked_temporary(file: Path) -> tuple[int, Path]:
    while True:
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=".tmp")
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _same(handle, Path(name)):
            _open_locks.add(handle)
            return handle, Path(name)
        os.close(handle)  # another process took it for a left-over before it was locked


def _close_lock(handle: int) -> None:
    if handle in _open_locks:
        _open_locks.discard(handle)
        os.close(handle)


def _forget_locks() -> None:
    """Close what a fork has copied: else a worker that outlives its killed parent would keep the parent's locks."""
    for handle in _open_locks:
        os.close(handle)
    _open_locks.clear()
    _locks.clear()


os.register_at_fork(after_in_child=_forget_locks)


def _same(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except FileNotFoundError:
        return False


def _clear_files(file: Path) -> None:
    """Delete the temporary files for `file` whose writers are dead."""
    for left in _beside(file, r"[a-z0-9_]{8}\.tmp"):
        with contextlib.suppress(OSError):
            handle = os.open(left, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
            finally:
                os.close(handle)


def _clear_folders(place: Path) -> None:
    """Bring back what was moved aside and not replaced, delete other left-overs; `place` is locked by this process."""
    for left in _beside(place, r"[a-z0-9_]{8}\.old"):
        if place.exists():
            _delete(left)
        else:
            left.rename(place)
    for left in _beside(place, r"[a-z0-9_]{8}\.(new|gone)"):
        _delete(left)


def _beside(path: Path, pattern: str) -> list[Path]:
    wanted = re.compile(rf"\.{re.escape(path.name)}\.{pattern}")
    return [path.with_name(name) for name in sorted(os.listdir(path.parent)) if wanted.fullmatch(name)]


def _exchange(partial: Path, place: Path) -> None:
    """Put `partial` at `place`, and delete what was there."""
    old = partial.with_suffix(".old")
    try:
        if place.exists():
            place.rename(old)
        partial.rename(place)
        _sync(place.parent)
    finally:  # an interrupt may come between any two of these lines
        if place.exists():
            _delete(old)
        elif old.exists():
            old.rename(place)


def _delete(folder: Path) -> None:
    """Delete a folder as far as that goes; half deleted, it has a name under which nobody takes it for a whole one."""
    gone = folder.with_suffix(".gone")
    with contextlib.suppress(OSError):
        if folder.exists():
            folder.rename(gone)
            shutil.rmtree(gone)


def _to_disk(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            _sync(Path(root) / name)
        _sync(Path(root))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot do this with a folder
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def _as_user_error(path: Path, kinds: Collection[int] | None = None) -> Iterator[None]:
    """Report an OSError (of these kinds of errno) as one of writing `path`."""
    try:
        yield
    except OSError as error:
        if kinds is not None and error.errno not in kinds:
            raise
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written ({error.strerror or error}); free or choose another place")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
