"""The socket: who may connect, what a connection does, and how all of it ends."""

from __future__ import annotations

import asyncio
import contextlib
import http
import itertools
import logging
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from arvrm.interface import UserError
from arvrm.remote.links import needed
from arvrm.serving.batches import Batches
from arvrm.serving.config import ServeConfig
from arvrm.serving.protocols import SIDES
from arvrm.serving.sessions import Contract, Session

_PING_SECONDS, _PONG_SECONDS = 60, 600
"""A simulator that loads, or a debugger that halts, answers no pings for minutes; a machine that is gone never does."""


_LAST_SECONDS = 60
"""For answers that are being planned when the time to drain is over."""


class Server:
    """Serves one policy.

    Args:
        batches: its policy.
        contract: what sessions may say.
        metadata: what is told to who connects.
        ready: called with the address, once it can be reached.
    """

    def __init__(
        self,
        config: ServeConfig,
        batches: Batches,
        contract: Contract,
        metadata: dict[str, Any],
        ready: Callable[[str], None],
    ) -> None:
        self.config, self.batches, self.contract, self.metadata, self.ready = config, batches, contract, metadata, ready
        self.rollouts = itertools.count()
        self.open = 0
        self.busy = 0
        self.draining = False
        self.answered = 0

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT has come (or `stop`), and what was begun is answered.

        Raises:
            UserError: the address cannot be had.
        """
        websockets = needed("serve")
        for name in ("websockets.server", "websockets.client"):  # a line for each connection
            logging.getLogger(name).setLevel(logging.WARNING)
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        self._loop, self._stop = loop, stop
        signals = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
        for number in signals:
            loop.add_signal_handler(number, stop.set)
        planning = loop.create_task(self.batches.run())
        config = self.config
        try:
            server = await websockets.serve(
                self._connection,
                config.host,
                config.port,
                process_request=self._request,
                # A page in a browser may reach this machine's own addresses; its requests have an origin.
                origins=[None],
                compression=None,
                max_size=config.message_mib * 2**20,
                max_queue=2,
                ping_interval=_PING_SECONDS,
                ping_timeout=_PONG_SECONDS,
                close_timeout=2,
            )
        except OSError as error:
            planning.cancel()
            raise UserError(f"serve: {config.host}:{config.port} cannot be had ({error}); choose another") from error
        port = server.sockets[0].getsockname()[1]
        host = f"[{config.host}]" if ":" in config.host else config.host
        self.ready(f"ws://{host}:{port}")
        done, _ = await asyncio.wait([planning, loop.create_task(stop.wait())], return_when=asyncio.FIRST_COMPLETED)
        for number in signals:  # a second one ends it at once
            loop.remove_signal_handler(number)
        if planning in done:
            planning.result()
        await self._drain()
        server.close(close_connections=True)
        await server.wait_closed()
        planning.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await planning

    def stop(self) -> None:
        """End as SIGTERM does; from any thread."""
        self._loop.call_soon_threadsafe(self._stop.set)

    async def _drain(self) -> None:
        self.draining = True
        seconds = self.config.drain_seconds
        print(f"serve: draining: {self.open} sessions, {seconds:g} s at most", file=sys.stderr, flush=True)
        until = asyncio.get_running_loop().time() + seconds
        while self.open and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.02)
        until = asyncio.get_running_loop().time() + _LAST_SECONDS
        while self.busy and asyncio.get_running_loop().time() < until:  # what has been asked is answered
            await asyncio.sleep(0.02)

    def _request(self, connection: Any, request: Any) -> Any:
        """Answer what is no WebSocket: whether the server is well; and refuse who comes too late."""
        path = request.path.partition("?")[0]
        if path in ("/healthz", "/health"):
            if self.draining:
                return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "draining\n")
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self.draining:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "draining; no new sessions\n")
        if self.open >= self.config.sessions:
            text = f"{self.open} sessions are open, and no more are allowed (--sessions)\n"
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, text)
        return None

    async def _connection(self, socket: Any) -> None:
        websockets = needed("serve")
        session = Session(self.contract, self.rollouts)
        most = self.config.message_mib * 2**20
        side = SIDES[self.config.protocol](session, self.batches, self.metadata, most)
        self._count(1)
        try:
            greeting = side.greeting()
            if greeting is not None:
                await socket.send(greeting)
            async for data in socket:
                self.busy += 1
                try:
                    answer = await side.answer(data)
                    if answer is not None:
                        await socket.send(answer)
                finally:
                    self.busy -= 1
                self.answered += 1
        except websockets.exceptions.ConnectionClosed:
            pass
        finally:
            self._count(-1)
            self.batches.ended([*session.ended, session.rollout])

    def _count(self, change: int) -> None:
        self.open += change
        self.batches.sessions = self.open
