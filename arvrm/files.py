"""Files and folders that are whole or not there: written under a temporary name beside their place, then renamed.

Temporary names begin with a dot and the name of what they are for: `.NAME.xxxxxxxx.tmp` is a file being written, `.new`
a folder being written, `.old` the folder before it, moved aside, `.gone` a folder being deleted; `.NAME.lock` says that
NAME is being written. What a killed process leaves is cleared up by the next that writes the same; what a living one is
working on is locked, and left alone. So is the folder `arvrm-process-xxxxxxxx` that a process has among the system's
temporary files.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import json
import os
import re
import select
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arvrm.interface import UserError

_WAIT_S = 1.0
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EROFS}
_locks: dict[Path, int] = {}
"""Outputs that this process has locked: how often."""
_open_locks: set[int] = set()
_PROCESS_FOLDER = "arvrm-process-"
_process_folder: tuple[Path, int] | None = None
"""This process's own, and the open file that keeps it locked."""


@dataclass(frozen=True)
class Kind:
    """A kind of file that a verb writes, and may replace.

    Attributes:
        name: for messages.
        start: what such a file begins with, a regular expression.
    """

    name: str
    start: bytes


HTML = Kind("an HTML page", rb"(?i)\s*<!doctype html")
PNG = Kind("a PNG picture", rb"\x89PNG\r\n")
MP4 = Kind("an MP4 film", rb"(?s)....ftyp")


def json_kind(name: str, format: str) -> Kind:
    """Return the kind of JSON file whose first key is "format", with this value."""
    return Kind(name, rb'\s*\{\s*"format":\s*"' + re.escape(format).encode() + b'"')


def read_json(file: str | Path, remedy: str = "give an existing JSON file", largest: int = 1 << 24) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        remedy: what the user may do, for messages.
        largest: bytes; what is larger is refused unread: a device has no end.

    Raises:
        UserError: no such file, or it holds something else.
    """
    try:
        values = json.loads(read_bytes(file, remedy, largest))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON ({error.msg}); {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({error}); {remedy}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected a JSON object at the top, got {type(values).__name__}; {remedy}")
    return values


def read_bytes(file: str | Path, remedy: str, largest: int = 1 << 24) -> bytes:
    """Read a small file; a pipe too, if something comes through it within a second.

    Args:
        remedy: what the user may do, for messages.
        largest: bytes; of what is larger, no more is read: a device has no end.

    Raises:
        UserError: no such file, it is larger, or nothing comes.
    """
    content = bytearray()
    try:
        # Opening or reading a pipe to which nobody writes would wait for ever.
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as stream:
            plain = stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
            while len(content) <= largest:
                if not plain and not select.select([stream], [], [], _WAIT_S)[0]:
                    raise UserError(f"{file}: nothing comes from it; {remedy}")
                piece = stream.read(min(1 << 20, largest + 1 - len(content)))
                if not piece:
                    return bytes(content)
                content += piece
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; {remedy}") from error
    except ValueError as error:  # a NUL in its name
        raise UserError(f"{file!r}: is no name of a file ({error}); {remedy}") from error
    raise UserError(f"{file}: has more than {largest >> 20} MiB; {remedy}")


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


def check_free(path: str | Path, overwrite: bool, kind: Kind | None = None) -> None:
    """Raise UserError if something is at `path` that may not be replaced.

    Without `overwrite` that is whatever is there, with it all but an empty file and one of the same kind (None: any
    regular file or folder).
    """
    path = Path(path)
    if not path.exists():
        return
    if not overwrite:
        raise UserError(f"{path}: exists; pass --overwrite to replace it, or another --output")
    if not path.is_file() and (kind is not None or not path.is_dir()):
        raise UserError(f"{path}: is no regular file, so it is not overwritten; choose another path")
    if kind is None:
        return
    try:
        with open(path, "rb") as stream:
            start = stream.read(512)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); choose another path") from error
    if start and not re.match(kind.start, start):
        raise UserError(f"{path}: is not {kind.name}, so it is not overwritten; choose another path")


@contextlib.contextmanager
def claimed(file: str | Path, overwrite: bool = False, kind: Kind | None = None) -> Iterator[None]:
    """Keep the place of a verb's output to this process until the block ends, if it may be written there.

    Raises:
        UserError: something is there that may not be replaced (see `check_free`), or another process is writing it.
    """
    check_free(file, overwrite, kind)
    with locked(file):
        check_free(file, overwrite, kind)  # again: who held the lock before may have written it
        yield


class PartialFile:
    """A file being written under a temporary name beside its own.

    Args:
        file: its own name; folders are made where they are missing.

    Attributes:
        path: where to write.

    Raises:
        UserError: nothing can be written there.
    """

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        with reporting(self.file, None):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            _clear_files(self.file.parent, re.escape(self.file.name))
            self._handle, self.path = _locked_temporary(self.file)
            self.path.chmod(0o666 & ~_umask())

    def keep(self) -> None:
        """Give it its name, whole and on the disk. Raises UserError if that cannot be."""
        try:
            with reporting(self.file, None):
                _sync(self.path)
                os.replace(self.path, self.file)
        finally:
            self.discard()

    def discard(self) -> None:
        """Delete it, unless it has been kept."""
        self.path.unlink(missing_ok=True)
        _close_lock(self._handle)
        self._handle = -1


@contextlib.contextmanager
def replacing(file: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `file` to write to; it takes the file's place if the block ends without error.

    Two processes may write the same file: the last one's stays.

    Raises:
        UserError: it cannot be written (a full disk, a folder that is read-only or missing).
    """
    partial = PartialFile(file)
    try:
        with reporting(file):
            yield partial.path
        partial.keep()
    finally:
        partial.discard()


def clear_folder(folder: str | Path) -> None:
    """Delete the temporary files that killed processes have left in `folder`, whatever they were for."""
    if Path(folder).is_dir():
        _clear_files(Path(folder), ".+")


def allocate(file: str | Path) -> None:
    """Take from the disk what a file's size promises: a hole in it that is mapped kills the process on a full disk.

    Raises:
        OSError: there is not so much.
    """
    handle = os.open(file, os.O_RDWR)
    try:
        size = os.fstat(handle).st_size
        if size and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(handle, 0, size)
                return
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise
        for start in range(0, size, 1 << 20):  # what is there is kept
            block = os.pread(handle, 1 << 20, start)
            while block:
                written = os.pwrite(handle, block, start)
                block, start = block[written:], start + written
    finally:
        os.close(handle)


def process_folder() -> Path:
    """Return this process's own temporary folder, which goes when it ends; a fork makes its own.

    Folders of processes that were killed are deleted when the next one makes its own.
    """
    global _process_folder
    if _process_folder is None:
        with reporting(Path(tempfile.gettempdir()), None):
            _clear_process_folders()
            _process_folder = _locked_folder()
        atexit.register(remove_process_folder)
    folder, _ = _process_folder
    folder.mkdir(exist_ok=True)
    return folder


def remove_process_folder() -> None:
    """Delete what `process_folder` has made."""
    global _process_folder
    if _process_folder is not None:
        (folder, handle), _process_folder = _process_folder, None
        shutil.rmtree(folder, ignore_errors=True)
        _close_lock(handle)


def discard_folder(folder: str | Path) -> None:
    """Delete a folder that this process has locked; killed meanwhile, no half of it keeps the name.

    Raises:
        UserError: it cannot be deleted.
    """
    place = Path(os.path.realpath(folder))
    with reporting(Path(folder), None):
        clear_folders(folder)
        if place.exists():
            gone = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}.", suffix=".gone"))
            place.rename(gone)  # which is empty
            shutil.rmtree(gone)


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
        with reporting(folder, None):
            place.parent.mkdir(parents=True, exist_ok=True)
            clear_folders(folder)
        check_free(folder, overwrite)
        if place.exists() and not place.is_dir():
            raise UserError(f"{folder}: is a file, not a folder; choose another path")
        if place.exists() and check is not None:
            check(folder)
        with reporting(folder, None):
            partial = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}.", suffix=".new"))
        try:
            partial.chmod(0o777 & ~_umask())
            _locks[partial] = 1  # nobody else writes it
            with reporting(folder):
                yield partial
            with reporting(folder, None):
                _to_disk(partial)
                _exchange(partial, place)
        except UserError as error:  # about the folder as the user knows it
            raise UserError(str(error).replace(str(partial), str(folder))) from error
        finally:
            _locks.pop(partial, None)
            _delete(partial)


@contextlib.contextmanager
def reporting(path: str | Path, kinds: Collection[int] | None = frozenset(_DISK)) -> Iterator[None]:
    """Report an error of the disk within the block, whatever library raised it, as a UserError of writing `path`.

    Args:
        kinds: an OSError of these kinds of errno is one; None: of all.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = disk_error(error)
        if kinds is None and isinstance(error, OSError):
            reason = reason or error.strerror or str(error)
        if reason is None:
            raise
        raise UserError(f"{path}: cannot be written ({reason}); free or choose another place") from error


def disk_error(error: BaseException) -> str | None:
    """Return what of the disk kept a file from being written; None: `error` says nothing of that."""
    found: BaseException | None = error
    while found is not None:
        number, text = getattr(found, "errno", None), str(found)
        for kind in sorted(_DISK):
            if number == kind or os.strerror(kind) in text:
                return os.strerror(kind)
        if isinstance(found, OSError) and re.search(r"requested and \d+ written", text):  # numpy drops the reason
            return os.strerror(errno.ENOSPC)
        found = found.__cause__ or found.__context__
    return None


def holds(path: str | Path) -> bool:
    """Whether this process has locked `path`."""
    return Path(os.path.realpath(path)) in _locks


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
    with contextlib.suppress(OSError):  # on a full disk it locks without a name
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
    global _process_folder
    for handle in _open_locks:
        os.close(handle)
    _open_locks.clear()
    _locks.clear()
    _process_folder = None


os.register_at_fork(after_in_child=_forget_locks)


def _same(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except FileNotFoundError:
        return False


def _clear_files(folder: Path, name: str) -> None:
    """Delete the temporary files of `folder` for files called `name` (a pattern) whose writers are dead."""
    for left in _called(folder, rf"\.{name}\.[a-z0-9_]{{8}}\.tmp"):
        with contextlib.suppress(OSError):
            handle = os.open(left, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
            finally:
                os.close(handle)


def _locked_folder() -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PROCESS_FOLDER))
        handle = -1
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, FileNotFoundError):
            pass  # another process took it for a left-over before it was locked
        except OSError:
            pass  # no locks here: nobody clears up either
        if handle >= 0 and _same(handle, folder):
            _open_locks.add(handle)
            return folder, handle
        if handle >= 0:
            os.close(handle)


def _clear_process_folders() -> None:
    for left in _called(Path(tempfile.gettempdir()), _PROCESS_FOLDER + "[a-z0-9_]{8}"):
        with contextlib.suppress(OSError):
            handle = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(handle).st_uid == os.geteuid():
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left)
            finally:
                os.close(handle)


def clear_folders(folder: str | Path) -> None:
    """Bring `folder` back if it was moved aside and not replaced, and delete other left-overs of it.

    This process has locked it, and the folder around it exists.
    """
    place = Path(os.path.realpath(folder))
    for left in _beside(place, r"[a-z0-9_]{8}\.old"):
        if place.exists():
            _delete(left)
        else:
            left.rename(place)
    for left in _beside(place, r"[a-z0-9_]{8}\.(new|gone)"):
        _delete(left)


def _beside(path: Path, pattern: str) -> list[Path]:
    return _called(path.parent, rf"\.{re.escape(path.name)}\.{pattern}")


def _called(folder: Path, pattern: str) -> list[Path]:
    return [folder / name for name in sorted(os.listdir(folder)) if re.fullmatch(pattern, name)]


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


def _not_written(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written ({error.strerror or error}); free or choose another place")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
