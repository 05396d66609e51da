"""Chains of CALVIN's protocols, and the sentences that a policy hears for their tasks."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection
from importlib import resources
from typing import Any

import numpy as np

from arvrm.evaluation.config import OFFICIAL_CHAINS, EvaluateConfig
from arvrm.interface import TASKS, Job, UserError

SPARE_STARTS = 8
"""Other starts that are tried where the expert cannot prepare a single task."""


def make_jobs(config: EvaluateConfig) -> list[Job]:
    """Return the chains that the configuration asks for, with their sentences.

    Raises:
        UserError: an unknown task (the nearest is named), an unreadable chain or sentence file.
    """
    tasks = TASKS if config.tasks is None else check_tasks(config.tasks)
    if config.protocol == "single" and config.chain_file:
        raise UserError("chain_file: single tasks start from chains of their own; drop it or use --protocol chains")
    if config.protocol == "single":
        wanted = _single_starts(config, tasks)
    else:
        wanted = [(chain.tasks, chain) for chain in _chains(config, tasks)]
    say = sentences(config, {task for these, _ in wanted for task in these})
    return [
        Job(
            index=index,
            tasks=tuple(these),
            instructions=tuple(
                say(task, np.random.default_rng([config.seed, index, place, 1])) for place, task in enumerate(these)
            ),
            start=start,
        )
        for index, (these, start) in enumerate(wanted)
    ]


def check_tasks(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return `names` if all are tasks; raise a UserError that names the nearest task otherwise."""
    for name in names:
        if name not in TASKS:
            nearest = difflib.get_close_matches(name, TASKS, 1, 0.0)[0]
            raise UserError(f"unknown task {name!r}; did you mean {nearest!r}?")
    return names


def _chains(config: EvaluateConfig, tasks: tuple[str, ...]) -> list[Any]:
    from arvrm.sim.chains import generate_chains, load_chains

    if config.chain_file:
        chains = load_chains(config.chain_file)
        for index, chain in enumerate(chains):
            if other := set(chain.tasks) - set(tasks):
                raise UserError(f"{config.chain_file}[{index}]: {min(other)} is none of --tasks; drop either")
        return chains[: config.chains]
    if set(tasks) == set(TASKS) and config.chains <= OFFICIAL_CHAINS:
        return official_chains()[: config.chains]
    return generate_chains(config.chains, tasks)


def official_chains() -> list[Any]:
    """Return what `generate_chains(1000)` does, which takes some seconds, from a file that it made."""
    from arvrm.sim.chains import Chain

    stored = json.loads(resources.files("arvrm").joinpath("resources/official_chains.json").read_text())
    return [
        Chain(dict(zip(stored["keys"], state, strict=True)), tuple(TASKS[number] for number in tasks))
        for state, tasks in stored["chains"]
    ]


def _single_starts(config: EvaluateConfig, tasks: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    """`starts` starts of each task: where it stands early in an official chain, whose tasks before it the expert does.

    So a block is held where it is to be placed, and the drawer open where something is to be taken out of it. Blocks
    are moved a little besides, since some tasks stand in few chains.
    """
    chains = official_chains()
    found = []
    for task in tasks:
        rng = np.random.default_rng([config.seed, TASKS.index(task)])
        places = [(chain, chain.tasks.index(task)) for chain in chains if task in chain.tasks]
        # Early places first: fewer tasks to prepare. The order among equals is drawn.
        order = sorted(rng.permutation(len(places)), key=lambda number: places[number][1])
        for number in range(config.starts):
            tries = [order[(number + more) % len(order)] for more in range(1 + SPARE_STARTS)]
            starts = [(places[k][0], places[k][0].tasks[: places[k][1]]) for k in tries]
            found.append(((task,), tuple(starts)))
    return found


def sentences(
    config: EvaluateConfig, tasks: Collection[str] | None = None
) -> Callable[[str, np.random.Generator], str]:
    """Return say(task, rng), the instruction that a policy hears for a task; see `EvaluateConfig.instructions`.

    Args:
        tasks: what must have a sentence; None: `config.tasks`.
    Raises:
        UserError: the source is unreadable or lacks a task that is needed.
    """
    from arvrm import instructions

    if config.instructions == "validation":
        return lambda task, rng: instructions.validation_instruction(task)
    if config.instructions == "unseen":
        return lambda task, rng: str(rng.choice(instructions.unseen_instructions(task)))
    if config.instructions == "calvin":
        from arvrm.sim.scene import resolve_calvin_root

        known = instructions.calvin_instructions(resolve_calvin_root(config.calvin_root), "validation")
    else:
        known = instructions.load_instruction_file(config.instructions)
        missing = [task for task in sorted(tasks or config.tasks or TASKS) if task not in known]
        if missing:
            raise UserError(f"{config.instructions}: no sentence for {missing[0]!r}; add one or restrict --tasks")
    return lambda task, rng: known[task][0] if len(known[task]) == 1 else str(rng.choice(known[task]))
