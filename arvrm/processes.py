"""The processes of one run, as a launcher (torchrun, accelerate) starts them: one per device, each told its number.

Beside gradients, which torch exchanges, they have a few things to settle: who evaluates which chain, who imports a file
that all read, who says why the run has failed. That goes over a `Board`, the launcher's own key-value store, and works
without a process group. A process that was not started by a launcher is alone, and everything here costs it nothing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from arvrm.files import disk_error
from arvrm.interface import UserError

USAGE = 2
INTERRUPTED = 130

_CONNECT_SECONDS = 120
_LONGEST_LINE = 2000
_PATHS = {errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO}
"""What is wrong with a path, and not with the program."""
_parent = 0


def _remember_parent() -> None:
    global _parent
    _parent = os.getppid()


_remember_parent()
os.register_at_fork(after_in_child=_remember_parent)


def rank() -> int:
    """This process's number; 0 is the first, which alone writes what all share."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the first process."""
    return rank() == 0


def device(name: str) -> str:
    """Return this process's own device where `name` says "cuda" and there are several processes."""
    if name != "cuda" or world() == 1:
        return name
    import torch

    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % max(1, torch.cuda.device_count())}"


def orphaned() -> bool:
    """Whether the launcher is gone, so that nobody would miss, or end, this process. Never true without one."""
    return world() > 1 and os.getppid() != _parent


class Board:
    """Keys and values that all processes of the run see; small ones."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def section(self, name: str) -> Board:
        """Return a board of its own for one purpose."""
        from torch.distributed import PrefixStore

        return Board(PrefixStore(name, self._store))

    def add(self, key: str, amount: int) -> int:
        """Add to a counter, which begins at 0, and return what it is then; no two callers see the same count."""
        return self._store.add(key, amount)

    def put(self, key: str, value: Any) -> None:
        """Set a key to something that JSON can hold."""
        self._store.set(key, json.dumps(value))

    def take(self, key: str) -> Any:
        """Wait until someone has put `key`, and return its value.

        Raises:
            KeyboardInterrupt: the launcher is gone.
        """
        pause = 0.01
        # Not the store's own wait: signals must reach this process meanwhile.
        while not self._store.check([key]):
            if orphaned():
                raise KeyboardInterrupt
            time.sleep(pause)
            pause = min(0.5, 1.5 * pause)
        return json.loads(self._store.get(key))


_board: Board | None = None


def board() -> Board | None:
    """Return the run's board; None for a process that is alone."""
    global _board
    if _board is None and world() > 1:
        from datetime import timedelta

        from torch.distributed import PrefixStore, rendezvous

        store, _, _ = next(iter(rendezvous("env://", timeout=timedelta(seconds=_CONNECT_SECONDS))))
        _board = Board(PrefixStore("arvrm", store))
    return _board


def first_does(key: str, work: Callable[[], Any]) -> None:
    """Let the first process do `work` while the others wait for it; a second call with the same key waits no more."""
    shared = board()
    if is_main():
        work()
        if shared:
            shared.put(key, True)
    elif shared:
        shared.take(key)


def complain(line: str) -> None:
    """Print to stderr why this process stops, unless another one has said why it did: what ends one, ends all."""
    first = True
    with contextlib.suppress(Exception):  # the store ends with the launcher
        shared = board()
        first = shared is None or shared.add("stopped", 1) == 1
    if first:
        print(line, file=sys.stderr, flush=True)


def run_main(run: Callable[[], int | None], prefix: str, interrupted: str) -> int:
    """Run a program and return its exit code: its own, or 2 after a `UserError`, 130 when it was interrupted.

    Of several processes one says what went wrong, in a line that begins with `prefix`; the others notice, since what
    they exchange breaks off, and end too. The traceback of what nobody foresaw goes to the launcher, which prints it. A
    process that is alone raises it.
    """
    try:
        board()  # while the launcher is there: later it may be ending the others
        code = run() or 0
    except UserError as error:
        complain(prefix + _one_line(error))
        return _leave(USAGE)
    except KeyboardInterrupt:
        complain(interrupted)
        return _leave(INTERRUPTED)
    except Exception as error:
        disk, place = disk_error(error), getattr(error, "filename", None) or "a file"
        if disk is not None:
            complain(prefix + _one_line(f"{place}: cannot be written ({disk}); free or choose another place"))
            return _leave(USAGE)
        if (path := _path_error(error)) is not None:
            complain(prefix + _one_line(f"{place}: {path}; choose another path"))
            return _leave(USAGE)
        return _unforeseen(error, prefix)
    if world() > 1:
        _part()
    return code


def _path_error(error: Exception) -> str | None:
    known = isinstance(error, OSError) and error.errno in _PATHS and error.filename is not None
    return error.strerror if known else None


def _unforeseen(error: Exception, prefix: str) -> int:
    if world() == 1:
        raise error
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)
    complain(f"{prefix}process {rank()} of {world()}: {_words(error)}")
    return _leave(1)


def _one_line(error: object) -> str:
    """A line that a person can read: a value of a million letters is cut, beginning and end stay."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _LONGEST_LINE else f"{text[: _LONGEST_LINE - 400]} ... {text[-395:]}"
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _words(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if any(sign in text for sign in ("Connection", "connection", "NCCL", "gloo", "imed out")):
        return "lost another process, which was ended or cannot be reached; start the run again with --resume"
    return text[:300]


def _leave(code: int) -> int:
    """Return an exit code; of several processes, end this one: it may hold work that waits for one that is gone."""
    if world() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _part() -> None:
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()
