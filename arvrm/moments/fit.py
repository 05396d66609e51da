"""Fits a scorer to clips or demonstrations alone: no moment of any of them is told.

A rule (`ways.mixed`) guesses the touch of each from what a touch does. A scorer that is fitted to all guesses finds
what they have in common, given the words; where it disagrees with the rule, its own choice is the next guess. Episodes
cut off before the guess, and hands that only move, are shown as touching nothing.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from arvrm.episodes import EpisodeStore
from arvrm.moments.find import likeliest, same_place, scorer_input
from arvrm.moments.network import MomentScorer, words_of
from arvrm.moments.raw import colours_of, raw_episode, signals_of
from arvrm.moments.signals import Signals
from arvrm.moments.ways import ending, evidence, mixed
from arvrm.moments.world import CHANNELS

UPDATES, ROUNDS, BATCH, VARIANTS = 375, 2, 32, 2
_DOUBT = 0.25
"""Evidence by so much stronger is e times as likely."""
_WORDS_FROM = 300
"""Of fewer episodes the words are learnt by heart: finding without them is as good on others or better."""
_BLIND, _NOTHING = 0.15, 0.1
"""How often an episode is shown without images, and one in which nothing is touched."""
_CLOSE_STEPS, _CLOSE_PX, _CLOSE_SHARE = 2.0, 0.7, 0.02


@dataclass
class Example:
    """What is known of an episode: what it says and shows, whole and in variants."""

    instruction: str
    embodiment: str
    signals: Signals
    variants: list[Signals]
    nothing: list[Signals]
    colours: np.ndarray | None


def examples_of(stores: Sequence[EpisodeStore], seed: int = 0, every: int = 1) -> list[Example]:
    """Read each n-th episode of stores of one embodiment, and make the variants: cut, mirrored, faster or slower, with
    noise."""
    rng = np.random.default_rng(seed)
    found = []
    for store in stores:
        colours = colours_of(store) if store.robot_name else None
        for header in list(store.headers())[::every]:
            raw = raw_episode(store, header, colours)
            whole = signals_of(raw)
            variants = [signals_of(raw.varied(rng)) for _ in range(VARIANTS)]
            guess = int(whole.rows[mixed(whole)])
            nothing = [signals_of(raw.there_and_back(guess - 4))] if guess > 10 else []
            found.append(Example(header.instruction, header.embodiment, whole, variants, nothing, colours))
    return found


def fit(examples: Sequence[Example], updates: int = UPDATES, rounds: int = ROUNDS, seed: int = 0) -> MomentScorer:
    """Fit a scorer, and again to what it and the evidence of each episode say together; variants are for the last."""
    scorer = None
    for number in range(rounds):
        last = number == rounds - 1
        chosen = [choose(example, scorer) for example in examples]
        weights = np.array([weight for *_, weight in chosen])
        shown = examples if last else [replace(example, variants=[], nothing=[]) for example in examples]
        number_of = updates if last else 2 * updates // 3
        scorer = fit_to(shown, [(touch, end) for touch, end, _ in chosen], number_of, seed + number, weights)
    assert scorer is not None
    if len(examples) < _WORDS_FROM:
        torch.nn.init.zeros_(scorer.words.weight)
    return scorer


def choose(example: Example, scorer: MomentScorer | None) -> tuple[float, float, float]:
    """The rows of touch and end that evidence, and a scorer if there is one, speak for; and how clearly they do."""
    signals = example.signals
    logs = evidence(signals) / _DOUBT
    if scorer is not None:
        values = torch.from_numpy(scorer_input(signals))[None]
        mask = torch.ones(values.shape[:2], dtype=torch.bool)
        with torch.inference_mode():
            scores, _ = scorer(values, mask, scorer.bag(example.instruction)[None])
        logs = logs + torch.log_softmax(scores[0, 0].double(), 0).numpy()
    shares = np.exp(logs - logs.max())
    shares /= shares.sum()
    support = shares @ same_place(signals, example.embodiment)
    touch = likeliest(shares, support)
    return float(signals.rows[touch]), float(signals.rows[ending(signals, touch)]), float(support[touch])


def fit_to(
    examples: Sequence[Example],
    targets: Sequence[tuple[float, float]],
    updates: int,
    seed: int,
    weights: np.ndarray | None = None,
) -> MomentScorer:
    """Fit a scorer to rows (touch, end) of each example; those of more weight are shown more often."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    said = Counter(word for example in examples for word in set(words_of(example.instruction)))
    vocabulary = tuple(sorted(word for word, count in said.items() if count > 1))
    scorer = MomentScorer(scorer_input(examples[0].signals).shape[1], vocabulary)
    if examples[0].colours is not None:
        scorer.colours.copy_(torch.from_numpy(examples[0].colours))
    bags = torch.stack([scorer.bag(example.instruction) for example in examples])
    optimizer = torch.optim.AdamW(scorer.parameters(), 3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, updates)
    scorer.train()
    for update in range(updates):
        picked = rng.choice(len(examples), BATCH, p=None if weights is None else weights / weights.sum())
        batch = [_input(examples[i], targets[i], rng) for i in picked]
        longest = max(len(values) for values, *_ in batch)
        signals = torch.zeros(BATCH, longest, scorer.channels)
        mask = torch.zeros(BATCH, longest, dtype=torch.bool)
        goal = torch.zeros(BATCH, 2, longest)
        there = torch.tensor([has for *_, has in batch])
        for b, (values, goals, _) in enumerate(batch):
            signals[b, : len(values)] = torch.from_numpy(values)
            mask[b, : len(values)] = True
            goal[b, :, : len(values)] = torch.from_numpy(goals)
        scores, none = scorer(signals, mask, torch.nn.functional.dropout(bags[picked], 0.15))
        logs = torch.log_softmax(scores, -1).masked_fill(~mask[:, None], 0)
        loss = (-(goal * logs).sum(-1).mean(1) * there).sum() / there.sum().clamp(min=1)
        loss = loss + torch.nn.functional.binary_cross_entropy_with_logits(none, 1 - there)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if update % 250 == 0 or update == updates - 1:
            print(f"update {update}: loss {loss.item():.3f}", file=sys.stderr, flush=True)
    return scorer.eval()


def _input(
    example: Example, target: tuple[float, float], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float]:
    """A variant's input (T, C), goals (2, T), and whether the touch is in it."""
    seeing = rng.uniform(0.8, 1.2) * (rng.random() > _BLIND)
    if example.nothing and rng.random() < _NOTHING:
        values = scorer_input(example.nothing[0])
        values[:, -CHANNELS:] *= seeing
        return values, np.zeros((2, len(values)), np.float32), 0.0
    number = rng.integers(len(example.variants) + 1)
    signals = example.signals if number == len(example.variants) else example.variants[number]
    values = scorer_input(signals)
    values[:, -CHANNELS:] *= seeing
    steps = [int(np.abs(signals.rows - row).argmin()) for row in target]
    goals = np.zeros((2, len(values)), np.float32)
    if target[0] > signals.rows[-1] - 2 or target[0] < signals.rows[0]:
        return values, goals, 0.0
    human = example.embodiment == "human"
    place = signals.place if human else signals.place[:, :3]
    for k, step in enumerate(steps):
        # Steps at which the hand is in the same place are as good.
        apart = np.linalg.norm(place - place[step], axis=1) / (_CLOSE_PX if human else _CLOSE_SHARE)
        away = np.abs(np.arange(len(values)) - step) / _CLOSE_STEPS
        weight = np.exp(-0.5 * (apart**2 + away**2))
        goals[k] = weight / weight.sum()
    return values, goals, 1.0
