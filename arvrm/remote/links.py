"""One connection to somebody's policy server, in either protocol: what is said when, and nothing of what it means.

openpi: the server says its metadata first; every message is then an observation, every answer a dictionary of arrays,
or a text if something went wrong. vla-eval: messages have a type and a number; both say hello, episodes begin and end.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from arvrm import __version__
from arvrm.interface import UserError
from arvrm.remote.wire import MOST_BYTES, WireError, packed, unpacked

VLA_EVAL_PROTOCOL = 1


class Refused(Exception):
    """The server has answered that something is wrong. One line: its own words."""


def is_address(name: str) -> bool:
    """Whether a policy's name is the address of a server."""
    return name.startswith(("ws://", "wss://"))


def needed(what: str) -> Any:
    """Return the package `websockets`.

    Raises:
        UserError: it is not installed.
    """
    try:
        import websockets
    except ImportError as error:
        raise UserError(f"{what}: needs the package websockets; pip install 'arvrm[serve]'") from error
    return websockets


class OpenpiLink:
    """A session with an openpi server.

    Attributes:
        metadata: what the server says of itself.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.metadata: dict[str, Any] = {}
        self.socket: Any = None

    async def open(self) -> None:
        """Connect and be told the metadata."""
        self.socket = await connected(self.url)
        self.metadata = _mapping(unpacked(_bytes(await self.socket.recv())))

    async def begin(self, rollout: int) -> None:
        """Begin a chain. openpi knows no chains: the connection is one."""

    async def ask(self, message: dict[str, Any], first: bool) -> dict[str, Any]:
        """Send an observation and return the answer.

        Args:
            first: whether an instruction begins with it.
        """
        await self.socket.send(packed(message, "bytes"))
        return _mapping(unpacked(_bytes(await self.socket.recv())))

    async def close(self) -> None:
        if self.socket is not None:
            await self.socket.close()


class VlaEvalLink(OpenpiLink):
    """A session with a vla-eval model server."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.sequence, self.asked = 0, 0

    async def open(self) -> None:
        self.socket = await connected(self.url)
        hello = {
            "harness_version": f"arvrm {__version__}",
            "protocol_version": VLA_EVAL_PROTOCOL,
            "benchmark": "calvin",
        }
        kind, self.metadata = await self._reply(await self._send("hello", hello))
        version = self.metadata.get("protocol_version")
        if kind != "hello" or version != VLA_EVAL_PROTOCOL:
            raise Refused(f"answers {kind!r} of protocol {version!r}, not hello of {VLA_EVAL_PROTOCOL}")

    async def begin(self, rollout: int) -> None:
        await self._send("episode_start", {"task": {"name": f"chain {rollout}"}})

    async def ask(self, message: dict[str, Any], first: bool) -> dict[str, Any]:
        if first and self.asked:
            message = message | {"episode_restart": True}
        self.asked += 1
        kind, payload = await self._reply(await self._send("observation", message))
        if kind != "action":
            raise Refused(f"answers {kind!r} to an observation")
        return payload

    async def close(self) -> None:
        if self.socket is not None and self.asked:
            await self._send("episode_end", {})
        await super().close()

    async def _send(self, kind: str, payload: dict[str, Any]) -> int:
        self.sequence += 1
        message = {"type": kind, "payload": payload, "seq": self.sequence, "timestamp": time.time()}
        await self.socket.send(packed(message, "text"))
        return self.sequence

    async def _reply(self, sequence: int) -> tuple[str, dict[str, Any]]:
        found = _mapping(unpacked(_bytes(await self.socket.recv())))
        kind, payload = found.get("type"), found.get("payload")
        if kind == "error":
            raise Refused(_last_line(str(payload.get("error", payload) if isinstance(payload, dict) else payload)))
        if not isinstance(kind, str) or found.get("seq") != sequence:
            raise WireError(f"answer {found.get('seq')!r} of type {kind!r} to message {sequence}")
        return kind, _mapping(payload)


LINKS = {"openpi": OpenpiLink, "vla-eval": VlaEvalLink}


async def connected(url: str) -> Any:
    """Return a connection; while nobody listens there (a server that starts), try again until cancelled."""
    websockets = needed(url)
    while True:
        try:
            # The server may compute for longer than it answers pings; how long an answer may take is ours to say.
            return await websockets.connect(
                url, compression=None, max_size=MOST_BYTES, ping_interval=None, open_timeout=None, close_timeout=1
            )
        except ConnectionRefusedError:
            await asyncio.sleep(0.2)


def _bytes(answer: bytes | str) -> bytes:
    if isinstance(answer, str):
        raise Refused(_last_line(answer))
    return answer


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise WireError(f"answer is a {type(value).__name__}, no mapping")
    return value


def _last_line(text: str) -> str:
    """What a traceback ends with, or a message says."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "an empty error"
