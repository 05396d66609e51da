"""Work on a Ray cluster (`--engine ray`): the same items as in local processes, tried again when a worker or node dies.

Two ways, as locally. *Items* that need nobody (clips to convert, units to generate) are Ray's tasks, which Ray itself
tries again elsewhere. *Simulators* that ask for plans all the time are processes on the nodes, each with a connection
to this one: Ray starts them and says how they ended, and whoever uses one cannot tell it from a process of its own.

All nodes must have the same installation and see the same files under the same names. The cluster is the one that the
environment variable RAY_ADDRESS names; without it Ray uses this machine alone. ray is imported when first needed.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing.connection
import os
import pickle
import queue
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Literal

from arvrm.interface import UserError

Engine = Literal["local", "ray"]
RETRIES = 4
"""How often an item is tried again whose worker died, wherever."""
_ARRIVAL_SECONDS = 300
"""Until a process that a busy cluster was asked for has called back."""
_WATCH_SECONDS = 1.0
_CLOSED = (EOFError, OSError)


def _ray() -> Any:
    """Return the module ray, connected.

    Raises:
        UserError: it is not installed, or the cluster does not answer.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise UserError("engine ray: ray is not installed; run `pip install 'arvrm[ray]'`") from error
    if not ray.is_initialized():
        # What the nodes import must be what this process does, also where the installation is a checkout.
        paths = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        environment = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, paths))}
        address = os.environ.get("RAY_ADDRESS")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody unasked
        own = {} if address else {"include_dashboard": False}
        settings = {"log_to_driver": False, "configure_logging": False, "runtime_env": {"env_vars": environment}}
        try:
            ray.init(address=address, **settings, **own)
        except Exception as error:  # whatever Ray meets
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"engine ray: no cluster at {address or 'this machine'} ({reason}); start one") from error
    return ray


def cores() -> int:
    """Return how many cores the cluster has now."""
    return max(1, int(_ray().cluster_resources().get("CPU", 1)))


# ---------------------------------------------------------------------------------------------------------------------
# Items that need nobody
# ---------------------------------------------------------------------------------------------------------------------


class TaskPool(Executor):
    """Does items on the cluster, as many at once as it has cores.

    Args:
        make: called with `config` in each worker, once: returns what does an item. It and the items can be pickled.
    """

    def __init__(self, make: Callable[[Any], Callable[[Any], Any]], config: Any) -> None:
        self._ray, self._make, self._config = _ray(), make, config
        self._task = self._ray.remote(_do).options(num_cpus=1, max_retries=RETRIES, scheduling_strategy="SPREAD")
        self._running: dict[Future, Any] = {}

    def submit(self, _: Any, item: Any, /) -> Future:
        """Return a future of the item's result; BrokenProcessPool in it: it killed its worker each time."""
        reference = self._task.remote(self._make, self._config, item, os.getcwd())
        future: Future = Future()
        self._running[future] = reference

        def done(finished: Future) -> None:
            error = finished.exception()
            with contextlib.suppress(Exception):  # nobody waits for what was cancelled
                if error is None:
                    future.set_result(finished.result())
                else:
                    future.set_exception(self._translated(error))
            self._running.pop(future, None)

        reference.future().add_done_callback(done)
        return future

    def _translated(self, error: BaseException) -> BaseException:
        known = self._ray.exceptions
        if isinstance(error, known.RayTaskError):
            return getattr(error, "cause", None) or error
        lost = (known.WorkerCrashedError, known.NodeDiedError, known.OutOfMemoryError, known.ObjectLostError)
        if isinstance(error, lost):
            return BrokenProcessPool(f"died {RETRIES + 1} times ({type(error).__name__})")
        return error

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let go of what runs; what is under way is cancelled, since nobody will read it."""
        for reference in list(self._running.values()):
            with contextlib.suppress(Exception):
                self._ray.cancel(reference, force=True)
        self._running.clear()


_made: dict[bytes, Callable[[Any], Any]] = {}


def _do(make: Callable[[Any], Callable[[Any], Any]], config: Any, item: Any, folder: str) -> Any:
    """Do an item in a worker of the cluster."""
    key = pickle.dumps((make, config))
    if key not in _made:
        with contextlib.suppress(OSError):  # relative paths are the caller's
            os.chdir(folder)
        _made.clear()
        _made[key] = make(config)
    return _made[key](item)


# ---------------------------------------------------------------------------------------------------------------------
# Processes that talk
# ---------------------------------------------------------------------------------------------------------------------


class RemoteProcess:
    """A process on some node, with the part of `multiprocessing.Process` that is used of it."""

    def __init__(self, ray: Any, reference: Any, close: Callable[[], None]) -> None:
        self._ray, self._reference, self._close = ray, reference, close
        self.lost = False
        """Its connection has broken off."""
        self.exitcode: int | None = None
        """As of a process; -SIGKILL where its worker or node is gone, which says nothing of the process itself."""

    def join(self, timeout: float | None = None) -> None:
        if self.exitcode is not None:
            return
        try:
            self.exitcode = self._ray.get(self._reference, timeout=timeout)
        except self._ray.exceptions.GetTimeoutError:
            # Ray may take longer to see that a node is gone; a process that has ended is known at once.
            if self.lost and timeout:
                self.exitcode = -signal.SIGKILL
        except Exception:  # node, worker or task are no more
            self.exitcode = -signal.SIGKILL

    def is_alive(self) -> bool:
        self.join(0)
        return self.exitcode is None

    def terminate(self) -> None:
        self._close()

    def kill(self) -> None:
        with contextlib.suppress(Exception):
            self._ray.cancel(self._reference, force=True)
        self.exitcode = -signal.SIGKILL


class Cluster:
    """Starts processes on the nodes, each with a connection to this process.

    They call back over TCP, to the address by which Ray knows this node, and prove that they know a key of this run.
    """

    def __init__(self) -> None:
        self._ray = _ray()
        self._key = secrets.token_bytes(32)
        address = self._ray.util.get_node_ip_address()
        self._listener = multiprocessing.connection.Listener((address, 0))
        self._arrived: dict[bytes, queue.Queue] = {}
        self._task = self._ray.remote(_host).options(num_cpus=0, max_retries=0, scheduling_strategy="SPREAD")
        threading.Thread(target=self._accept, daemon=True).start()

    def start(
        self, target: Callable[..., None], arguments: tuple[Any, ...]
    ) -> tuple[multiprocessing.connection.Connection, RemoteProcess]:
        """Run target(connection, *arguments) in a process on some node; return the connection's other end, at once."""
        token = secrets.token_bytes(16)
        self._arrived[token] = queue.Queue(1)
        what = pickle.dumps((self._listener.address, self._key, token, target, arguments))
        reference = self._task.remote(what, os.getcwd())
        ours, theirs = multiprocessing.connection.Pipe()
        closed = threading.Event()

        def close() -> None:
            closed.set()
            _hang_up(theirs)

        process = RemoteProcess(self._ray, reference, close)
        threading.Thread(target=self._connect, args=(token, theirs, process, closed), daemon=True).start()
        return ours, process

    def close(self) -> None:
        """Take no more calls."""
        with contextlib.suppress(*_CLOSED):
            self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except Exception:  # closed
                return
            threading.Thread(target=self._welcome, args=(connection,), daemon=True).start()

    def _welcome(self, connection: multiprocessing.connection.Connection) -> None:
        with contextlib.suppress(Exception):  # whoever does not know the key is let go
            multiprocessing.connection.deliver_challenge(connection, self._key)
            multiprocessing.connection.answer_challenge(connection, self._key)
            self._arrived.pop(connection.recv_bytes(64)).put(connection)
            return
        connection.close()

    def _connect(
        self,
        token: bytes,
        local: multiprocessing.connection.Connection,
        process: RemoteProcess,
        closed: threading.Event,
    ) -> None:
        """Wait for a process's call, then hand messages on both ways until either end is gone."""
        arrived, until = self._arrived[token], time.monotonic() + _ARRIVAL_SECONDS
        remote = None
        while remote is None and not closed.is_set() and time.monotonic() < until and process.is_alive():
            with contextlib.suppress(queue.Empty):
                remote = arrived.get(timeout=_WATCH_SECONDS)
        if remote is not None:
            threading.Thread(target=_hand_on, args=(local, remote), daemon=True).start()
            while not closed.is_set():
                try:
                    # A node that is switched off closes no connection: Ray notices that it is gone.
                    if remote.poll(_WATCH_SECONDS):
                        local.send_bytes(remote.recv_bytes())
                    elif not process.is_alive():
                        break
                except _CLOSED:
                    break
            _hang_up(remote)
        process.lost = True
        _hang_up(local)


def _hand_on(source: multiprocessing.connection.Connection, target: multiprocessing.connection.Connection) -> None:
    try:
        while True:
            target.send_bytes(source.recv_bytes())
    except (*_CLOSED, TypeError):  # TypeError: closed by the other thread while it was read
        _hang_up(target)


def _hang_up(connection: multiprocessing.connection.Connection) -> None:
    """Close a connection, so that its other end sees it even while a thread here still reads."""
    with contextlib.suppress(*_CLOSED):
        with socket.socket(fileno=os.dup(connection.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(*_CLOSED):
        connection.close()


def _host(what: bytes, folder: str) -> int:
    """Run a process on a node, as a Ray task; return how it ended. A process of its own: it may crash."""
    folder = folder if os.path.isdir(folder) else os.getcwd()
    process = subprocess.Popen([sys.executable, "-m", "arvrm.clusters"], stdin=subprocess.PIPE, cwd=folder)
    try:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(what)
            process.stdin.close()
        return process.wait()
    finally:
        process.kill()


def _run() -> None:
    """The life of a process on a node: call back, do the work, and end with the worker that started it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    address, key, token, target, arguments = pickle.loads(sys.stdin.buffer.read())
    connection = multiprocessing.connection.Client(address)
    multiprocessing.connection.answer_challenge(connection, key)
    multiprocessing.connection.deliver_challenge(connection, key)
    connection.send_bytes(token)
    target(connection, *arguments)


if __name__ == "__main__":
    _run()
