"""Servers on this machine for tests: somebody's policy behind a socket, well-behaved or not; and arvrm's own."""

import asyncio
import contextlib
import threading
import time

import numpy as np
from websockets.sync.server import serve as listen

from arvrm.remote.wire import packed, unpacked
from arvrm.serving import ServeConfig
from arvrm.serving.run import make_server

FORWARD = np.array([[1.0, 0, 0, 0, 0, 0, 1.0]] * 4)


def misbehaving(message):
    """An openpi server's answer, by what the instruction says; a stop is raised as an exception."""
    words = message["prompt"]
    if words == "late":
        time.sleep(3)
    if words == "nan":
        return packed({"actions": FORWARD * np.nan})
    if words == "shape":
        return packed({"actions": FORWARD[:, :5]})
    if words == "short":
        return packed({"actions": FORWARD[:2]})
    if words == "text":
        return packed({"actions": "forward!"})
    if words == "nothing":
        return packed({"aktions": FORWARD})
    if words == "far":
        return packed({"actions": FORWARD * 3})
    if words == "refuse":
        return "Traceback (most recent call last):\n  File x\nValueError: no such key\n"
    if words == "garbage":
        return b"\xc1\xc1"
    if words == "break":
        raise ConnectionError
    return packed({"actions": FORWARD, "server_timing": {"infer_ms": 1.0}})


@contextlib.contextmanager
def somebodys(answer=misbehaving, metadata=None):
    """Serve `answer(message)` in openpi's protocol; the address, and the messages of each session."""
    sessions = []

    def handle(socket):
        heard = []
        sessions.append(heard)
        socket.send(packed(metadata or {}))
        with contextlib.suppress(ConnectionError):
            for data in socket:
                heard.append(unpacked(data))
                socket.send(answer(heard[-1]))

    with listen(handle, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}", sessions
        server.shutdown()


@contextlib.contextmanager
def ours(**settings):
    """Run arvrm's server in a thread; the address and the server."""
    found, there = [], threading.Event()

    def ready(address):
        found.append(address)
        there.set()

    server = make_server(ServeConfig(port=0, **{"drain_seconds": 0.0, **settings}), ready)
    thread = threading.Thread(target=lambda: asyncio.run(server.run()), daemon=True)
    thread.start()
    assert there.wait(60)
    try:
        yield found[0], server
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()
