"""Asks a policy what it would do at the steps of demonstrations, and compares its answers with what was done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from arvrm.doctor.conventions import Answers, compare
from arvrm.doctor.demonstrations import Demonstration, examine_sizes
from arvrm.doctor.findings import Finding
from arvrm.evaluation import checked_chunk
from arvrm.interface import Observation, PlanFailed, PlanRequest, Policy, PolicySpec, UserError
from arvrm.robots import CALVIN

Alter = Callable[[PlanRequest], PlanRequest]
_SIZE = CALVIN.actions.size
_OTHER_INSTRUCTION = "do nothing at all"
_SURE = 0.9
"""Times the plain error: what altered inputs must bring it to for them to be believed."""


@dataclass
class Asked:
    """Answers to the requests of all demonstrations, in order.

    Attributes:
        given, wanted: (n, 7). pose: (n, 6). errors: of each demonstration, of its arm, squared and summed.
        crashes: one line each. refused: what `evaluate` would refuse, first.
        stale: requests whose images are older than their step.
    """

    given: np.ndarray
    wanted: np.ndarray
    pose: np.ndarray
    errors: np.ndarray
    crashes: list[str] = field(default_factory=list)
    refused: str | None = None
    shape: str | None = None
    requests: int = 0
    stale: int = 0


def examine_policy(policy: Policy, demonstrations: list[Demonstration]) -> Iterator[Finding]:
    """Yield findings about a policy's conventions.

    Raises:
        UserError: it is a policy of another robot, or wants what the demonstrations do not have.
    """
    if policy.spec.robot not in (None, CALVIN.name):
        raise UserError(f"policy: moves robot {policy.spec.robot!r}; `sim doctor` is about CALVIN's")
    yield from examine_sizes(demonstrations, policy.spec.image_sizes)
    plain = ask(policy, demonstrations)
    yield from _ran(plain)
    if not len(plain.given):
        return
    yield from compare(Answers("policy", "its actions", plain.given, plain.wanted, plain.pose))
    if plain.refused is not None:
        yield Finding("policy", "refused", "wrong", f"`evaluate` would stop: {plain.refused}")
    yield from _senses(policy, demonstrations, plain)


def _ran(asked: Asked) -> Iterator[Finding]:
    if asked.shape is not None:
        text = f"{asked.shape}; CALVIN's have {_SIZE}: 3 position, 3 Euler, gripper, in chunks (C, {_SIZE})"
        if ", 8)" in asked.shape:
            text += " (8: joints and gripper, or a pose with a quaternion)"
        yield Finding("policy", "shape", "wrong", text)
    if asked.crashes:
        text = f"failed at {len(asked.crashes)} of {asked.requests} requests, first: {asked.crashes[0]}"
        yield Finding("policy", "failures", "wrong", text)
    if asked.stale:
        text = f"at {asked.stale} of {asked.requests} requests the store has older images only; expect other answers"
        yield Finding("policy", "images", "note", text)


def _senses(policy: Policy, demonstrations: list[Demonstration], plain: Asked) -> Iterator[Finding]:
    again = ask(policy, demonstrations, number=1)
    if again.given.shape != plain.given.shape or not np.array_equal(again.given, plain.given, equal_nan=True):
        text = "answers the same requests otherwise when asked again: chains cannot be repeated to the bit"
        yield Finding("policy", "repeatable", "note", text)
        changes = _noise(plain, again)
    else:
        yield Finding("policy", "repeatable", "good", "answers the same when asked again")
        changes = 0.0
    spoken = ask(policy, demonstrations, lambda request: replace(request, instruction=_OTHER_INSTRUCTION), number=2)
    if _noise(plain, spoken) <= changes:
        yield Finding("policy", "words", "note", "answers the same whatever the instruction says")
    better, seen = [], 0
    for number, (name, alter) in enumerate(_alterations(policy.spec), 3):
        altered = ask(policy, demonstrations, alter, number=number)
        seen += _noise(plain, altered) > changes
        if _closer(plain.errors, altered.errors):
            better.append(name)
    if better:
        text = f"acts more like the demonstrations when it sees them {' and when '.join(better)}"
        yield Finding("policy", "images", "wrong", f"{text}: its images are given otherwise than it was trained")
    elif policy.spec.image_sizes and not seen:
        yield Finding("policy", "images", "note", "answers the same whatever the images show")
    elif policy.spec.image_sizes:
        yield Finding(
            "policy", "images", "good", "seen as they are: turned, mirrored or with other colours it acts no better"
        )


def _noise(plain: Asked, other: Asked) -> float:
    if plain.given.shape != other.given.shape:
        return np.inf
    return float(np.abs(plain.given - other.given).max(initial=0.0))


def _closer(plain: np.ndarray, altered: np.ndarray) -> bool:
    """Whether the errors (episodes,) are clearly smaller: in all, and in four episodes of five."""
    fewer = altered.sum() < _SURE * plain.sum()
    return bool(fewer and (altered < plain).mean() >= 0.8)


def _alterations(spec: PolicySpec) -> Iterator[tuple[str, Alter]]:
    if not spec.image_sizes:
        return
    yield "with red and blue exchanged (BGR)", _images(lambda image: image[:, :, ::-1])
    yield "upside down (turned by 180 degrees)", _images(lambda image: image[::-1, ::-1])
    yield "mirrored", _images(lambda image: image[:, ::-1])
    sizes = dict(spec.image_sizes)
    if len(sizes) == 2 and len(set(sizes.values())) == 1:
        first, second = sizes

        def exchanged(frame: Observation) -> Observation:
            return replace(frame, images={first: frame.images[second], second: frame.images[first]})

        yield "with static and gripper camera exchanged", _history(exchanged)


def _images(change: Callable[[np.ndarray], np.ndarray]) -> Alter:
    def changed(frame: Observation) -> Observation:
        return replace(
            frame, images={name: np.ascontiguousarray(change(image)) for name, image in frame.images.items()}
        )

    return _history(changed)


def _history(change: Callable[[Observation], Observation]) -> Alter:
    return lambda request: replace(request, history=tuple(map(change, request.history)))


def ask(
    policy: Policy, demonstrations: list[Demonstration], alter: Alter = lambda request: request, number: int = 0
) -> Asked:
    """Plan along all demonstrations, side by side, as simulators would ask.

    Args:
        alter: changes each request.
        number: of this pass: rollouts of each have numbers of their own, so that no cache mixes them.
    """
    spec = policy.spec
    found = Asked(np.empty((0, _SIZE)), np.empty((0, _SIZE)), np.empty((0, 6)), np.zeros(len(demonstrations)))
    rows: dict[int, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {i: [] for i in range(len(demonstrations))}
    broken: set[int] = set()
    for step in range(0, max(len(one.actions) for one in demonstrations), spec.execute_steps):
        waiting = [i for i, one in enumerate(demonstrations) if step < len(one.actions) and i not in broken]
        for begin in range(0, len(waiting), max(1, spec.batch)):
            some = waiting[begin : begin + max(1, spec.batch)]
            requests = [alter(_request(demonstrations[i], step, spec, 10_000 * number + i, found)) for i in some]
            found.requests += len(requests)
            for i, request, chunk in zip(some, requests, _planned(policy, requests, found), strict=True):
                if chunk is None or not _fits(chunk, spec, request, found):
                    broken.add(i)
                    continue
                one = demonstrations[i]
                count = min(spec.execute_steps, len(one.actions) - step)
                part = slice(step, step + count)
                rows[i].append((chunk[:count].astype(np.float64), one.actions[part], one.pose[part]))
    parts = [part for i in sorted(rows) for part in rows[i]]
    if parts:
        found.given, found.wanted, found.pose = (np.concatenate(column) for column in zip(*parts, strict=True))
    for i in rows if hasattr(policy, "ended") else ():
        policy.ended(10_000 * number + i)  # a server's connections are let go
    for i, asked in rows.items():
        found.errors[i] = sum(float(np.square(given - wanted)[:, :6].sum()) for given, wanted, _ in asked)
    return found


def _request(one: Demonstration, step: int, spec: PolicySpec, rollout: int, found: Asked) -> PlanRequest:
    seen = [one.observation(max(0, step + offset), spec.image_sizes) for offset in spec.history_offsets]
    found.stale += any(age for _, age in seen)
    return PlanRequest(one.instruction, tuple(frame for frame, _ in seen), rollout=rollout, step=step)


def _planned(policy: Policy, requests: list[PlanRequest], found: Asked) -> list[np.ndarray | None]:
    """Chunks, None where the policy failed; if it fails on several, each is tried alone, as `evaluate` does."""
    try:
        chunks = policy.plan(requests)
        if len(chunks) != len(requests):
            raise ValueError(f"{len(chunks)} chunks for {len(requests)} requests")
        failed = [chunk for chunk in chunks if isinstance(chunk, PlanFailed)]
        found.crashes += [str(failure)[:200] for failure in failed]
        return [None if isinstance(chunk, PlanFailed) else np.asarray(chunk) for chunk in chunks]
    except Exception as error:
        if len(requests) > 1:
            return [_planned(policy, [request], found)[0] for request in requests]
        found.crashes.append(" ".join(f"{type(error).__name__}: {error}".split())[:200])
        return [None]


def _fits(chunk: np.ndarray, spec: PolicySpec, request: PlanRequest, found: Asked) -> bool:
    """Whether a chunk can be compared; what `evaluate` would refuse of it is kept."""
    if chunk.ndim != 2 or chunk.shape[1] != _SIZE or len(chunk) < spec.execute_steps or not np.isfinite(chunk).all():
        finite = np.issubdtype(chunk.dtype, np.number) and np.isfinite(chunk).all()
        found.shape = found.shape or (f"actions have shape {chunk.shape}" if finite else "NaN or infinity in actions")
        return False
    try:
        checked_chunk(chunk, spec, request, CALVIN)
    except UserError as error:
        found.refused = found.refused or str(error)
    return True
