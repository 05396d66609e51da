"""The LMDB file of a store: opened once in a process, shared by all that read or write it.

A store is a folder with LMDB's `data.mdb`. Four tables:

    meta      manifest (versioned JSON), counts
    headers   id -> what an episode is, without its data: small, so that 100 000 can be listed at once
    arrays    id, name -> one raw array
    images    id, camera, row -> one JPEG
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator
from pathlib import Path

import lmdb

from arvrm.files import allocate, discard_folder, disk_error, reporting
from arvrm.interface import UserError

MAP_START = 1 << 26
MAP_STEP = 1 << 32
_LOCK_FILE = 8192  # bytes; LMDB's own size for 126 readers
TABLES = (b"meta", b"headers", b"arrays", b"images")


class Database:
    """One LMDB environment. LMDB allows one per file and process, so all stores of a process share it."""

    _live: weakref.WeakValueDictionary[str, Database] = weakref.WeakValueDictionary()

    def __init__(self, path: Path, write: bool) -> None:
        self.pid = os.getpid()
        self.closed = False
        self.path = path
        if write:
            _make_lock_file(path)
        try:
            self.env = self._opened(path, write)
        except lmdb.Error as error:
            if reason := disk_error(error):
                raise UserError(f"{path}: cannot be written ({reason}); free or choose another place") from error
            raise UserError(f"{path}: cannot be opened as an episode store ({error}); use --overwrite") from error
        try:
            # A page beyond the end of a truncated file would kill the process (SIGBUS), so look before the first read.
            needed = (self.env.info()["last_pgno"] + 1) * self.env.stat()["psize"]
            size = (path / "data.mdb").stat().st_size
            if self.env.info()["last_txnid"] > 0 and size < needed:
                raise UserError(f"{path}: is truncated ({size} of {needed} bytes); copy it again or use --overwrite")
            # A new store's tables are made by the first append, in its transaction: each waits for the disk.
            self.tables = {}
            if not write or self.env.stat()["entries"]:
                self.tables = {name: self.env.open_db(name, create=False) for name in TABLES}
        except lmdb.Error as error:
            self.env.close()
            raise UserError(f"{path}: holds no episodes ({error}); it is no store, write it again") from error
        except BaseException:
            self.env.close()
            raise
        self.file = _identity(path)

    @classmethod
    def _opened(cls, path: Path, write: bool) -> lmdb.Environment:
        def opened() -> lmdb.Environment:
            return lmdb.open(
                str(path),
                map_size=MAP_START if write else 0,
                max_dbs=len(TABLES),
                readonly=not write,
                create=write,
                lock=write,
                readahead=False,
                meminit=True,  # else pages keep what memory held before: other bytes each time
                max_spare_txns=8,
            )

        try:
            return opened()
        except lmdb.Error as error:
            if "already open" not in str(error):
                raise
            # LMDB knows files by their numbers, and a file system gives that of a deleted store to a new one.
            cls._close_gone()
            return opened()

    @classmethod
    def _close_gone(cls) -> None:
        """Close databases whose file was deleted."""
        for database in list(cls._live.values()):
            if not database.closed and database.pid == os.getpid() and _identity(database.path) != database.file:
                database.close()

    @classmethod
    def reading(cls, path: Path) -> Database:
        if not (path / "data.mdb").is_file():
            what = "is no episode store (a folder with data.mdb)" if path.exists() else "does not exist"
            raise UserError(f"{path}: {what}; make one with `arvrm generate` or give another path")
        key = str(path.resolve())
        database = cls._live.get(key)
        if database is not None and database.pid != os.getpid():
            database.close()  # a forked process: LMDB refuses a second environment beside the inherited one
        if database is None or database.closed:
            database = cls._live[key] = cls(path, write=False)
        return database

    @classmethod
    def writing(cls, path: Path) -> Database:
        close_database(path)
        database = cls._live[str(path.resolve())] = cls(path, write=True)
        return database

    @contextlib.contextmanager
    def begin(self) -> Iterator[lmdb.Transaction]:
        """A read transaction with zero-copy values, which are valid inside it only."""
        try:
            txn = self.env.begin(buffers=True)
        except lmdb.MapResizedError:  # another process let the store grow
            self.env.set_mapsize(0)
            txn = self.env.begin(buffers=True)
        try:
            with txn:
                yield txn
        except (lmdb.Error, UnicodeDecodeError) as error:
            raise UserError(f"{self.path}: cannot be read ({error}); the store is damaged, write it again") from error

    def entries(self, table: bytes) -> int:
        if not self.tables:
            return 0
        with self.begin() as txn:
            return txn.stat(self.tables[table])["entries"]

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.env.close()

    def __del__(self) -> None:
        if hasattr(self, "env"):
            self.close()


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and number of a store's file; None: there is none."""
    try:
        found = (path / "data.mdb").stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _make_lock_file(path: Path) -> None:
    """Make LMDB's file of locks before LMDB does: it would not find out that the disk is full before it is killed."""
    file = path / "lock.mdb"
    with reporting(path, None):
        if not file.exists():
            with open(file, "wb") as stream:
                stream.truncate(_LOCK_FILE)
        allocate(file)


def close_database(path: Path) -> None:
    database = Database._live.get(str(path.resolve()))
    if database is not None:
        database.close()


def check_is_store(path: Path) -> None:
    """Raise UserError if `path` is anything else than a store, whole or damaged."""
    others = {file.name for file in path.iterdir()} - {"data.mdb", "lock.mdb"} if path.is_dir() else {path.name}
    if others:
        raise UserError(f"{path}: holds {sorted(others)[0]!r}, which no episode store does; choose another path")
    with (path / "data.mdb").open("rb") as file:
        start = file.read(20)
    if start and start[16:] != b"\xde\xc0\xef\xbe":  # LMDB's magic number
        raise UserError(f"{path}: its data.mdb is no LMDB file; choose another path")


def remove_store(path: Path) -> None:
    """Remove a store, whole or damaged, and nothing that is not one."""
    check_is_store(path)
    close_database(path)
    discard_folder(path)
