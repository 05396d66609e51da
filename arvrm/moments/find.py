"""Finds the moments of an episode of a store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, astuple, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from arvrm.config import bounded, check_bounds, from_dict
from arvrm.episodes import EpisodeHeader, EpisodeStore
from arvrm.files import read_json, write_json
from arvrm.interface import UserError
from arvrm.moments.network import MomentScorer, load_scorer, resource
from arvrm.moments.raw import raw_episode, signals_of
from arvrm.moments.signals import Signals
from arvrm.moments.ways import after_grasp

FORMAT = 3
"""Grows when the same scorer finds other moments than before."""
_SCORER = 0.6
"""How much the scorer's logarithms count beside those of what is expected from elsewhere."""
_LET_GO = 6.0
"""What was grasped within the episode is not let go at its touch: as a logarithm, how much less likely that is."""
NEAR_PX, NEAR_SHARE = 3.0, 0.15
"""A hand so near (pixels of 96), or a robot so near (components' unit), counts as the same place."""


@dataclass(frozen=True)
class Moments:
    """What was found in an episode.

    Attributes:
        touch: the step of the touch or release: the moment that the place of the instruction is about. The hand or
            gripper begins to act on the thing; where something held is to be put somewhere, it lets it go.
        end: the step at which what was to be done is done.
        touch_confidence, end_confidence: 0 to 1: how likely the hand at the true moment is where it is at the found
            one (within NEAR_PX, a robot within NEAR_SHARE).
    """

    touch: int
    end: int
    touch_confidence: float
    end_confidence: float


def episode_signals(store: EpisodeStore, header: EpisodeHeader, colours: np.ndarray | None = None) -> Signals:
    """Read an episode and make its signals. Nothing is read but what a real one has.

    Args:
        colours: the robot's own; None: those that the package's scorer knows.

    Raises:
        UserError: the store's robot is not known, or a record is damaged.
    """
    if colours is None and header.embodiment != "human":
        colours = load_scorer(header.embodiment).colours.numpy()
    return signals_of(raw_episode(store, header, colours))


def scorer_input(signals: Signals) -> np.ndarray:
    """(T, C) float32: what the scorer reads."""
    return np.clip(np.concatenate([signals.motion, signals.images], 1), -3, 3)


def found_in(
    signals: Signals, instruction: str, scorer: MomentScorer, embodiment: str, expected: np.ndarray | None = None
) -> Moments:
    """The moments of signals by a scorer.

    Args:
        expected: (2, T) logarithms of how likely the touch and the end are at each step by something else.
    """
    if not signals.seen.any() or len(signals.rows) < 2:
        return Moments(0, int(round(float(signals.rows[-1]))), 0.0, 0.0)
    values = torch.from_numpy(scorer_input(signals))[None]
    with torch.inference_mode():
        scores, none = scorer(values, torch.ones(values.shape[:2], dtype=torch.bool), scorer.bag(instruction)[None])
    there = float(torch.sigmoid(-none[0]))
    logs = torch.log_softmax(scores[0].double(), 1).numpy()
    if expected is not None:
        logs = _SCORER * logs + expected
    logs[0] -= _LET_GO * after_grasp(signals)
    shares = np.exp(logs - logs.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    # The step of which most of the probability lies near, in place and in time: one of a group, not a lone peak.
    support = shares @ same_place(signals, embodiment)
    touch = likeliest(shares[0], support[0])
    end = likeliest(shares[1], np.where(np.arange(len(signals.rows)) >= touch, support[1], -1.0))
    rows = signals.rows
    seen = float(signals.seen[max(0, touch - 5) : touch + 6].mean())
    last = rows[-1]
    found = [int(round(min(float(rows[step]), float(last)))) for step in (touch, end)]
    confidences = [float(np.clip(support[k][step] * there * seen, 0, 1)) for k, step in enumerate((touch, end))]
    return Moments(*found, *(round(value, 4) for value in confidences))


def same_place(signals: Signals, embodiment: str) -> np.ndarray:
    """(T, T) bool: steps that lie near each other, in place and in time."""
    near = NEAR_PX if embodiment == "human" else NEAR_SHARE
    place = signals.place if embodiment == "human" else signals.place[:, :3]
    at = np.arange(len(place))
    same = np.linalg.norm(place[:, None] - place[None], axis=-1) <= near
    return same & (np.abs(at[:, None] - at[None]) <= 12)


def likeliest(shares: np.ndarray, support: np.ndarray) -> int:
    """The likeliest of the steps that are about as well supported as the best."""
    return int(np.where(support >= 0.95 * support.max(), shares, -1.0).argmax())


class Expected(Protocol):
    """Says how likely an episode's touch and end are at each step of its signals, (2, T) logarithms; None: it cannot
    tell."""

    def __call__(self, store: EpisodeStore, header: EpisodeHeader, signals: Signals) -> np.ndarray | None: ...


def episode_moments(
    store: EpisodeStore, id: str, scorer: MomentScorer | None = None, expected: Expected | None = None
) -> Moments:
    """Find the moments of an episode.

    Args:
        scorer: None: the one that the package brings.
        expected: what else there is to be said of when they are.

    Raises:
        UserError: no such episode, an unknown robot, or a robot whose signals the scorer does not know.
    """
    header = store.header(id)
    scorer = scorer or load_scorer(header.embodiment)
    signals = episode_signals(store, header, scorer.colours.numpy())
    likely = None if expected is None else expected(store, header, signals)
    return found_in(signals, header.instruction, scorer, header.embodiment, likely)


def moments_of_store(
    store: EpisodeStore,
    cache: str | Path | None = None,
    expected: Expected | None = None,
    ids: Iterable[str] | None = None,
) -> dict[str, Moments]:
    """Find the moments of episodes.

    Args:
        cache: a JSON file that keeps what was found; begun anew where it is of another store, scorer or version, or
            damaged. Its name must tell by what is `expected`.
        ids: of those asked for; None: all.

    Raises:
        UserError: no such episode, an unknown robot, a damaged record, or the cache cannot be written.
    """
    wanted = list(store.ids if ids is None else ids)
    if cache is None or not wanted:
        return {id: episode_moments(store, id, None, expected) for id in wanted}
    key = _cache_key(list(store.headers()))
    known = _cached(Path(cache), key)
    new = {id: episode_moments(store, id, None, expected) for id in wanted if id not in known}
    if new:
        # Another run may have written meanwhile what it found.
        known = _cached(Path(cache), key) | known | new
        Path(cache).parent.mkdir(parents=True, exist_ok=True)
        write_json(cache, {"key": key, "moments": {id: list(astuple(one)) for id, one in known.items()}}, indent=None)
    return {id: known[id] for id in wanted}


@dataclass(frozen=True)
class _Given:
    """An episode in the file that `arvrm moments` writes."""

    touch: int = bounded(MISSING, least=0)
    end: int = bounded(MISSING, least=0)
    instruction: str | None = None
    steps: int | None = None
    touch_confidence: float = bounded(1.0, least=0, most=1)
    end_confidence: float = bounded(1.0, least=0, most=1)

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.end < self.touch:
            raise ValueError(f"end is {self.end}, before touch, {self.touch}; correct one of them")


def moments_entry(header: EpisodeHeader, found: Moments) -> dict[str, Any]:
    """What a file of moments says of an episode, for a person and for `read_moments`."""
    return {"instruction": header.instruction, "steps": header.steps, **asdict(found)}


def read_moments(file: str | Path, header_of: Callable[[str], EpisodeHeader | None]) -> dict[str, Moments]:
    """Read moments by episode from a file that `arvrm moments` wrote, and somebody may have corrected.

    Args:
        header_of: returns an episode's header; None: of an episode that is not asked for.

    Raises:
        UserError: there is none, it is of another form, or what it says of an episode is of another one.
    """
    content = read_json(Path(file), "give a file that `arvrm moments` wrote")
    episodes = content.get("episodes") if isinstance(content, dict) else None
    if not isinstance(episodes, dict) or not episodes:
        raise UserError(f"{file}: has no moments of episodes; give a file that `arvrm moments` wrote")
    found = {}
    for id, values in episodes.items():
        one, header = from_dict(_Given, values, f"{file}: {id}"), header_of(id)
        if header is None:
            continue
        if one.steps not in (None, header.steps) or one.instruction not in (None, header.instruction):
            raise UserError(f"{file}: {id} is another episode there than in the store; give the file of this store")
        if one.end >= header.steps:
            raise UserError(f"{file}: {id}: end is {one.end}, and it has {header.steps} steps; correct it")
        found[id] = Moments(one.touch, one.end, one.touch_confidence, one.end_confidence)
    return found


def _cache_key(headers: list[EpisodeHeader]) -> str:
    """What moments depend on: which episodes there are, and what finds them."""
    said = hashlib.sha256()
    for header in headers:
        said.update(
            repr((header.id, header.instruction, header.steps, header.frames, header.fps, header.group)).encode()
        )
    for embodiment in sorted({header.embodiment for header in headers}):
        said.update(resource(embodiment).read_bytes())
    return f"{said.hexdigest()[:32]}-{FORMAT}"


def _cached(file: Path, key: str) -> dict[str, Moments]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["key"] == key:
            return {id: Moments(int(a), int(b), float(c), float(d)) for id, (a, b, c, d) in content["moments"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    return {}
