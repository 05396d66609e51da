"""A policy that is asked over a socket, as an evaluation sees it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from arvrm import robots
from arvrm.config import from_dict
from arvrm.interface import PlanFailed, PlanRequest, PolicySpec, UserError
from arvrm.remote.codec import Codec, MessageError
from arvrm.remote.conventions import Conventions, as_values, found_at, load_conventions
from arvrm.remote.links import LINKS, OpenpiLink, Refused, needed
from arvrm.remote.wire import WireError

T = TypeVar("T")
GONE_AFTER = 3
"""Chains in a row that find nobody at the address, after which the evaluation stops."""


class NobodyThere(Exception):
    """No connection came about."""


@dataclass(frozen=True)
class Found:
    """What is known of a server before the first chain.

    Attributes:
        conventions: from the user's file, or the server's own word (of arvrm's server).
        own: what arvrm's server says of itself and its policy; empty: it is another's.
    """

    url: str
    conventions: Conventions
    own: dict[str, Any]
    digest: str

    @property
    def identity(self) -> dict[str, Any]:
        """What a results file says, and what a resumed run must have alike."""
        server = {"metadata_sha256": self.digest}
        if self.own:
            server = {"policy": self.own.get("policy"), "spec": self.own.get("spec")}
        return {"name": self.url, "server": server, "conventions": as_values(self.conventions)}


def ask_who(url: str, conventions: str | None, seconds: float) -> Found:
    """Connect once and find out what to send.

    Args:
        conventions: a file or a known name; None: only arvrm's own server says them itself.
        seconds: to wait for it.

    Raises:
        UserError: nobody answers, or nothing says what the server wants.
    """
    given = None if conventions is None else load_conventions(conventions)
    link = LINKS[given.protocol if given else "openpi"](url)

    async def meet() -> dict[str, Any]:
        try:
            await asyncio.wait_for(link.open(), seconds)
            return link.metadata
        finally:
            await asyncio.wait_for(link.close(), 5)

    try:
        metadata = asyncio.run(meet())
    except Exception as error:
        if isinstance(error, UserError):
            raise
        speaks = given.protocol if given else "openpi"
        raise UserError(
            f"{url}: {_reason(error, seconds)}; is a server there that speaks {speaks}? (docs/remote.md)"
        ) from error
    own = metadata.get("arvrm") if isinstance(metadata.get("arvrm"), dict) else {}
    said = own.get("conventions")
    if given is None and not isinstance(said, dict):
        raise UserError(f"{url}: does not say what it wants; pass --conventions FILE (docs/remote.md)")
    if isinstance(said, dict):
        its = from_dict(Conventions, said, f"{url}: conventions")
        if given is not None and as_values(given) != as_values(its):
            ours, theirs = as_values(given), as_values(its)
            key = next(key for key in ours if ours[key] != theirs[key])
            raise UserError(
                f"{url}: says {key} = {theirs[key]!r}, --conventions {conventions} says {ours[key]!r}; drop the file"
            )
        given = its
    assert given is not None
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True, default=repr).encode()).hexdigest()
    return Found(url, given, own, digest)


class RemotePolicy:
    """`interface.Policy` over a socket: every rollout has a connection, and so a session, of its own.

    What goes wrong with one (no answer in time, a refusal, NaN, another shape, a connection that breaks) is a
    `PlanFailed` of that rollout. A connection is not taken up again within a chain: what the server kept of it is lost.

    Args:
        found: the server.
        seconds: an answer may take.
        execute_steps: actions of an answer to execute; None: as the conventions, or arvrm's server, say.
        batch: requests to send at once.
    """

    def __init__(self, found: Found, seconds: float, execute_steps: int | None = None, batch: int = 1) -> None:
        needed(found.url)
        self.found, self.seconds, self.conventions = found, seconds, found.conventions
        robot = robots.named(self.conventions.robot, f"conventions {self.conventions.name}")
        own = _own_spec(found)
        steps = execute_steps or own.get("execute_steps") or self.conventions.steps_per_answer
        if own and steps != own.get("execute_steps"):
            raise UserError(
                f"{found.url}: plans for {own.get('execute_steps')} steps; give --execute-steps to arvrm serve"
            )
        if own and self.conventions.action.relative_to == "measured":
            steps = 1
        if not steps:
            raise UserError(f"conventions {self.conventions.name}: steps_per_answer is missing; say it")
        sizes = {name: how.rendered or how.size for name, how in self.conventions.cameras.items()}
        self.spec = PolicySpec(
            robot=robot.name,
            image_sizes=sizes,
            history_offsets=tuple(own.get("history_offsets", (0,))),
            execute_steps=int(steps),
            batch=batch,
            bounded=own.get("bounded", self.conventions.action.beyond != "execute"),
        )
        if self.conventions.action.relative_to == "measured" and self.spec.execute_steps > 1:
            raise UserError(
                f"conventions {self.conventions.name}: a motion from where the arm is measured (relative_to) can be "
                "planned one step ahead; give steps_per_answer 1"
            )
        self.codec = Codec(self.conventions, robot, sizes)
        self.numbered = bool(own)
        self._sessions: dict[int, _Session] = {}
        self._absent = 0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="remote policy").start()

    def plan(self, requests: list[PlanRequest]) -> list[np.ndarray | PlanFailed]:
        """Ask for all requests at once; see `interface.Policy`.

        Raises:
            UserError: nobody has been at the address for several chains in a row.
        """
        answers = self._run(self._all(requests))
        if self._absent >= GONE_AFTER:
            raise UserError(
                f"{self.found.url}: nobody there for {self._absent} chains in a row; start the server again, then "
                "go on with --resume"
            )
        return answers

    def ended(self, rollout: int) -> None:
        """End a rollout's session."""
        session = self._sessions.pop(rollout, None)
        if session is not None:
            self._run(session.close())

    def _run(self, work: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result()

    async def _all(self, requests: list[PlanRequest]) -> list[np.ndarray | PlanFailed]:
        return await asyncio.gather(*(self._one(request) for request in requests))

    async def _one(self, request: PlanRequest) -> np.ndarray | PlanFailed:
        websockets = needed(self.found.url)
        try:
            session = await self._session(request.rollout)
            answer = await asyncio.wait_for(session.ask(self, request), self.seconds)
            values = found_at(answer, self.conventions.action.key)
            steps = self.spec.execute_steps
            actions = self.codec.actions_received(values, request.history[-1], steps)
            if self.spec.bounded:
                self.codec.robot.check_actions("actions", actions)
            return actions
        except (
            *(OSError, EOFError, asyncio.TimeoutError, websockets.exceptions.WebSocketException),
            *(WireError, MessageError, Refused, NobodyThere, UserError),
        ) as error:
            session = self._sessions.pop(request.rollout, None)
            if session is not None:
                await session.close()
            return PlanFailed(f"{self.found.url}: {_reason(error, self.seconds)}")

    async def _session(self, rollout: int) -> _Session:
        if rollout not in self._sessions:
            link = LINKS[self.conventions.protocol](self.found.url)
            session = _Session(link)
            try:
                await asyncio.wait_for(link.open(), self.seconds)
            except Exception as error:
                await session.close()
                if link.socket is None:
                    self._absent += 1
                    raise NobodyThere(f"nobody there within {self.seconds:g} s") from error
                raise
            self._absent = 0
            await link.begin(rollout)
            self._sessions[rollout] = session
        return self._sessions[rollout]


class _Session:
    """A rollout's connection, and the steps of its present instruction that the server has seen."""

    def __init__(self, link: OpenpiLink) -> None:
        self.link = link
        self.seen: set[int] = set()

    async def ask(self, policy: RemotePolicy, request: PlanRequest) -> dict[str, Any]:
        """Send what the server has not seen of a request, and return its answer."""
        if request.step == 0:
            self.seen.clear()
        message = policy.codec.message(request.history[-1], request.instruction)
        if policy.numbered:
            for offset, frame in zip(policy.spec.history_offsets[:-1], request.history[:-1], strict=True):
                step = request.step + offset
                if step >= 0 and step not in self.seen:
                    past = policy.codec.message(frame, request.instruction)
                    await self.link.ask(past | {"endpoint": "observe", "arvrm/step": step}, False)
                    self.seen.add(step)
            message |= {"arvrm/step": request.step, "arvrm/steps": policy.spec.execute_steps}
            self.seen.add(request.step)
            self.seen = {step for step in self.seen if step >= request.step + policy.spec.history_offsets[0]}
        return await self.link.ask(message, request.step == 0)

    async def close(self) -> None:
        """Part, politely if that is possible."""
        try:
            await asyncio.wait_for(self.link.close(), 2)
        except Exception:  # whatever it is, the connection is given up
            if self.link.socket is not None:
                self.link.socket.transport.abort()


def _own_spec(found: Found) -> dict[str, Any]:
    spec = found.own.get("spec", {})
    offsets = spec.get("history_offsets", [0]) if isinstance(spec, dict) else None
    fits = isinstance(offsets, (list, tuple)) and offsets and all(isinstance(o, int) and o <= 0 for o in offsets)
    if not fits or list(offsets) != sorted(offsets) or offsets[-1] != 0 or len(offsets) > 1000:
        raise UserError(f"{found.url}: says {str(spec)[:100]} of its policy; update it or arvrm")
    return spec


def _reason(error: BaseException, seconds: float) -> str:
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return f"no answer within {seconds:g} s"
    if isinstance(error, Refused):
        return f"the server says: {error}"
    if isinstance(error, (WireError, MessageError, NobodyThere, UserError)):
        return str(error)
    return f"the connection broke ({type(error).__name__}: {error})"[:300]
