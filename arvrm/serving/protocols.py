"""What a server says in either protocol: greetings, answers, and errors that keep the session."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from arvrm import __version__
from arvrm.interface import PlanFailed, UserError
from arvrm.remote import MessageError, WireError, packed, unpacked
from arvrm.remote.conventions import put_at
from arvrm.remote.links import VLA_EVAL_PROTOCOL
from arvrm.serving.batches import Batches
from arvrm.serving.sessions import Session

MISTAKES = (WireError, MessageError, PlanFailed, UserError)
"""What a client is told of, in one line."""


class Openpi:
    """One session in openpi's protocol, with what RoboArena adds to it (`endpoint`, `session_id`).

    Beside observations it takes `endpoint: reset` (begin anew), `endpoint: observe` (answered by "observed" alone),
    `arvrm/step` (the control step since the instruction began) and `arvrm/steps` (how many actions are wanted).
    """

    def __init__(self, session: Session, batches: Batches, metadata: dict[str, Any], most: int) -> None:
        self.session, self.batches, self.most = session, batches, most
        self.metadata = metadata
        self.client_session: Any = None
        self.before: float | None = None

    def greeting(self) -> bytes | None:
        """Return what is said before anything is asked."""
        return packed(self.metadata, "bytes")

    async def answer(self, data: bytes | str) -> bytes | str | None:
        """Return the answer to a message: bytes, or a line of text if something is wrong with it."""
        begin = time.perf_counter()
        try:
            message = _read(data, self.most)
            endpoint = message.pop("endpoint", "infer")
            if endpoint not in ("infer", "reset", "observe"):
                raise MessageError(f"endpoint: {str(endpoint)[:30]!r}; there are infer, reset and observe")
            self._follow(message.get("session_id"))
            if endpoint == "reset":
                self.session.reset()
                return "reset successful"
            if endpoint == "observe":
                self.session.observe(message)
                return packed({"observed": True}, "bytes")
            actions, planned = await _actions(self.session, self.batches, message, False)
        except Exception as error:
            return _told(error)
        timing = {"infer_ms": 1000 * planned}
        if self.before is not None:
            timing["prev_total_ms"] = 1000 * self.before
        found: dict[str, Any] = {"server_timing": timing, "arvrm/step": self.session.step}
        put_at(found, self.session.contract.codec.action.key, actions)
        self.before = time.perf_counter() - begin
        return packed(found, "bytes")

    def _follow(self, session: Any) -> None:
        """Begin anew where a client says that it has another session than before."""
        session = session.tolist() if isinstance(session, np.ndarray) else session
        if session is None or session == self.client_session:
            return
        if self.client_session is not None:
            self.session.reset()
        self.client_session = session


class VlaEval:
    """One session in vla-eval's protocol."""

    def __init__(self, session: Session, batches: Batches, metadata: dict[str, Any], most: int) -> None:
        self.session, self.batches, self.most = session, batches, most
        self.metadata = metadata

    def greeting(self) -> bytes | None:
        return None

    async def answer(self, data: bytes | str) -> bytes | str | None:
        """Return the answer to a message, of the same number; None: the protocol has none to it."""
        sequence = 0
        try:
            message = _read(data, self.most)
            kind, payload, number = message.get("type"), message.get("payload"), message.get("seq")
            if not isinstance(number, int) or not isinstance(payload, dict):
                raise MessageError("message without payload and seq; vla-eval's have type, payload, seq and timestamp")
            sequence = number
            if kind == "hello":
                version = payload.get("protocol_version")
                if version != VLA_EVAL_PROTOCOL:
                    raise MessageError(f"protocol_version {version!r}; this server speaks {VLA_EVAL_PROTOCOL}")
                return _vla_eval("hello", self.metadata, sequence)
            if kind in ("episode_start", "episode_end"):
                self.session.reset()
                return None
            if kind == "error":
                return None
            if kind != "observation":
                raise MessageError(
                    f"type {str(kind)[:30]!r}; there are hello, episode_start, observation and episode_end"
                )
            restart = bool(payload.pop("episode_restart", False))
            actions, _ = await _actions(self.session, self.batches, payload, restart)
        except Exception as error:
            return _vla_eval("error", {"error": _told(error)}, sequence)
        found: dict[str, Any] = {}
        put_at(found, self.session.contract.codec.action.key, actions[0] if len(actions) == 1 else actions)
        return _vla_eval("action", found, sequence)


Side = Callable[[Session, Batches, dict[str, Any], int], Openpi | VlaEval]
SIDES: dict[str, Side] = {"openpi": Openpi, "vla-eval": VlaEval}


async def _actions(
    session: Session, batches: Batches, message: dict[str, Any], restart: bool
) -> tuple[np.ndarray, float]:
    """Return the actions to answer with, and the seconds that planning took."""
    request = session.request(message, restart)
    batches.ended(session.ended)
    session.ended.clear()
    begin = time.perf_counter()
    chunk = None if request is None else await batches.plan(request)
    return session.answer(chunk), time.perf_counter() - begin


def _read(data: bytes | str, most: int) -> dict[str, Any]:
    if isinstance(data, str):
        raise WireError("message is text; send msgpack, as bytes")
    message = unpacked(data, most)
    if not isinstance(message, dict):
        raise WireError(f"message is a {type(message).__name__}, no mapping")
    return message


def _vla_eval(kind: str, payload: dict[str, Any], sequence: int) -> bytes:
    return packed({"type": kind, "payload": payload, "seq": sequence, "timestamp": time.time()}, "text")


def hello(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the payload of vla-eval's hello."""
    versions = {"harness_version": f"arvrm {__version__}", "protocol_version": VLA_EVAL_PROTOCOL}
    return versions | {"model_server": "arvrm", "capabilities": {}} | metadata


def _told(error: Exception) -> str:
    """Return the line that a client is told; what nobody foresaw is printed here as well."""
    if isinstance(error, MISTAKES):
        return " ".join(str(error).split())[:500]
    traceback.print_exception(error)
    return f"the server failed: {type(error).__name__}: {error}"[:500]
