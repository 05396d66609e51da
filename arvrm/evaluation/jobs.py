"""Chains of CALVIN's protocols, and the sentences that a policy hears for their tasks."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from arvrm.evaluation.config import OFFICIAL_CHAINS, EvaluateConfig
from arvrm.interface import TASKS, Job, UserError
from arvrm.sim.chains import Chain, generate_chains, load_chains, official_chains

Say = Callable[[str, np.random.Generator], str]


def make_jobs(config: EvaluateConfig) -> list[Job]:
    """Return the chains that the configuration asks for, with their sentences.

    Raises:
        UserError: an unknown task (the nearest is named), an unreadable chain or sentence file.
    """
    tasks = TASKS if config.tasks is None else check_tasks(config.tasks)
    if config.protocol == "single" and config.chain_file:
        raise UserError("chain_file: single tasks start from chains of their own; drop it or use --protocol chains")
    if config.protocol == "single":
        wanted = _single(config, tasks)
    else:
        wanted = [(chain.tasks, chain) for chain in _chains(config, tasks)]
    say = sentences(config, {task for these, _ in wanted for task in these})
    return [
        Job(index, tuple(these), _said(config, say, index, these), start) for index, (these, start) in enumerate(wanted)
    ]


def own_jobs(config: EvaluateConfig, jobs: Callable[[EvaluateConfig], Sequence[Job]]) -> list[Job]:
    """Return the chains that a world with chains of its own offers, as far as the configuration asks for them.

    `tasks` leaves out the chains in which another occurs, `chains` keeps the first so many, and a file of
    `instructions` takes the place of the chains' own sentences.

    Raises:
        UserError: no chain is left, or an option that CALVIN's chains alone have is set.
    """
    config.refuse_own_chains()
    if config.instructions in ("unseen", "calvin"):
        value = f"evaluate: instructions = {config.instructions!r}"
        raise UserError(f"{value}: world {config.world} has sentences of its own; give a JSON file or drop it")
    found = list(jobs(config))
    known = sorted({task for job in found for task in job.tasks})
    if len({job.index for job in found}) < len(found) or any(len(j.tasks) != len(j.instructions) for j in found):
        raise UserError(f"--world {config.world}: jobs need indices of their own and a sentence for each task")
    if config.tasks is not None:
        wanted = set(check_tasks(config.tasks, known))
        found = [job for job in found if wanted.issuperset(job.tasks)]
    found = found[: config.chains]
    if not found:
        raise UserError(f"--world {config.world}: no chains are left of its jobs; change --tasks or the world")
    if config.instructions == "validation":
        return found
    say = sentences(config, {task for job in found for task in job.tasks}, known)
    return [replace(job, instructions=_said(config, say, job.index, job.tasks)) for job in found]


def _said(config: EvaluateConfig, say: Say, index: int, tasks: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(say(task, np.random.default_rng([config.seed, index, place, 1])) for place, task in enumerate(tasks))


def check_tasks(names: tuple[str, ...], known: Sequence[str] = TASKS) -> tuple[str, ...]:
    """Return `names` if all are known; raise a UserError that names the nearest task otherwise."""
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, 1, 0.0)
            raise UserError(f"unknown task {name!r}" + (f"; did you mean {nearest[0]!r}?" if nearest else ""))
    return names


def _chains(config: EvaluateConfig, tasks: tuple[str, ...]) -> list[Chain]:
    if config.chain_file:
        chains = load_chains(config.chain_file)
        for index, chain in enumerate(chains):
            if other := set(chain.tasks) - set(tasks):
                raise UserError(f"{config.chain_file}[{index}]: {min(other)} is none of --tasks; drop either")
        return chains[: config.chains]
    if set(tasks) == set(TASKS) and config.chains <= OFFICIAL_CHAINS:
        return official_chains()[: config.chains]
    return generate_chains(config.chains, tasks)


def _single(config: EvaluateConfig, tasks: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    from arvrm.sim.starts import prepared_starts

    chains = official_chains()
    return [((task,), start) for task in tasks for start in prepared_starts(chains, task, config.starts, config.seed)]


def sentences(config: EvaluateConfig, tasks: Collection[str] | None = None, known_tasks: Sequence[str] = TASKS) -> Say:
    """Return say(task, rng), the instruction that a policy hears for a task; see `EvaluateConfig.instructions`.

    Args:
        tasks: what must have a sentence; None: `config.tasks`.
        known_tasks: what a file may give sentences for.
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
        known = instructions.load_instruction_file(config.instructions, known_tasks)
        missing = [task for task in sorted(tasks or config.tasks or TASKS) if task not in known]
        if missing:
            raise UserError(f"{config.instructions}: no sentence for {missing[0]!r}; add one or restrict --tasks")
    return lambda task, rng: known[task][0] if len(known[task]) == 1 else str(rng.choice(known[task]))
