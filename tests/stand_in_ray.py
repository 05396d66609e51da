"""A stand-in for the parts of ray that `arvrm.clusters` uses: tasks are threads here, processes are real."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import types
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from pathlib import Path


class RayTaskError(Exception):
    def __init__(self, cause):
        super().__init__("a long traceback")
        self.cause = cause


class GetTimeoutError(Exception): ...


class WorkerCrashedError(Exception): ...


class NodeDiedError(Exception): ...


class OutOfMemoryError(Exception): ...


class ObjectLostError(Exception): ...


class Reference:
    def __init__(self, function, arguments):
        self.found: Future = Future()
        arguments = pickle.loads(pickle.dumps(arguments))  # another process would have copies

        def work():
            try:
                self.settle(function(*arguments))
            except Exception as error:
                self.settle(RayTaskError(error))

        threading.Thread(target=work, daemon=True).start()

    def settle(self, value):
        if not self.found.done():
            (self.found.set_exception if isinstance(value, Exception) else self.found.set_result)(value)

    def future(self):
        return self.found


class Module(types.ModuleType):
    """Put it into sys.modules["ray"]."""

    def __init__(self):
        super().__init__("ray")
        names = (RayTaskError, GetTimeoutError, WorkerCrashedError, NodeDiedError, OutOfMemoryError, ObjectLostError)
        self.exceptions = types.SimpleNamespace(**{kind.__name__: kind for kind in names})
        self.util = types.SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1")
        self.references: list[Reference] = []

    def is_initialized(self):
        return True

    def cluster_resources(self):
        return {"CPU": 2.0}

    def remote(self, function):
        def start(*arguments):
            self.references.append(Reference(function, arguments))
            return self.references[-1]

        task = types.SimpleNamespace(remote=start)
        task.options = lambda **settings: task
        return task

    def get(self, reference, timeout=None):
        try:
            return reference.found.result(timeout)
        except Late:
            raise GetTimeoutError from None

    def cancel(self, reference, force=False):
        reference.settle(WorkerCrashedError())

    def kill_node(self):
        """End all processes that tasks have started, as a node that is switched off does; return how many."""
        for reference in self.references:
            reference.settle(NodeDiedError())
        killed = children()
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        return len(killed)


def children() -> list[int]:
    """Processes that `clusters._host` started in this process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"arvrm.clusters" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (OSError, ValueError):
            continue  # it has just ended
    return found
