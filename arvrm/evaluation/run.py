"""One evaluation from its configuration to the results file; a launcher may have started several processes for it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from arvrm import processes
from arvrm.config import to_dict
from arvrm.evaluation.chosen import Chosen, choose
from arvrm.evaluation.config import NOT_COMPARED, OFFICIAL_CHAINS, SWITCHES, EvaluateConfig
from arvrm.evaluation.filming import discard_films, film_folder, keep_films
from arvrm.evaluation.parent import Parent
from arvrm.files import check_free, clear_folder
from arvrm.interface import Job, Policy, UserError, WorldFactory
from arvrm.results import RESULTS, ChainLog, environment_versions, load_results, save_results, summarize
from arvrm.sim.render import choose_renderer


def evaluate(
    policy_factory: Callable[[], Policy] | None,
    config: EvaluateConfig,
    make_world: WorldFactory | None = None,
    jobs: list[Job] | None = None,
    policy_identity: dict[str, Any] | None = None,
) -> Path:
    """Roll out the configured chains and write the results file.

    Args:
        policy_factory: makes the policy; None: the one that config.policy names, or that acts inside the workers.
        config: what to roll out.
        make_world: builds a worker's world (importable: workers are spawned); None: the one that config.world names.
        jobs: chains to roll out in place of those of the configuration.
        policy_identity: what identifies the policy's weights; a run with others cannot be resumed.
    Returns: the path of the results file; of several processes the first one writes it, when all have ended.
    Raises:
        UserError: the output exists, a task or chain file is unknown, policy and world have different robots, the
            policy returns malformed or NaN actions, or workers were ended from outside.
    """
    output = Path(config.output)
    if config.resume and config.overwrite:
        raise UserError(f"{output}: --resume and --overwrite exclude each other; pass one")
    if output.exists() and not (config.resume or config.overwrite):
        raise UserError(f"{output}: exists; pass --resume to go on with it or --overwrite to begin anew")
    check_free(output, True, RESULTS)
    chosen = choose(config, policy_factory, policy_identity, make_world, jobs)
    if config.world is None:
        # Tried once, not in every worker; and chains drawn by another renderer must not mix with those of a log.
        config = replace(config, renderer=choose_renderer(config.renderer))
    fingerprint, log_path = _fingerprint(config, chosen), output.with_suffix(".chains.jsonl")
    board = _own_board()
    if board and not processes.is_main():
        return _further_process(chosen, config, fingerprint, log_path, board)
    parts = sorted(log_path.parent.glob(f"{log_path.name}.part*"))
    if parts and not (config.resume or config.overwrite):
        raise UserError(f"{parts[0]}: exists; pass --resume to go on with it or --overwrite to begin anew")
    with ChainLog(log_path, fingerprint, resume=config.resume, overwrite=config.overwrite) as log:
        clear_folder(film_folder(output))
        if config.overwrite:
            discard_films(output)
        for part in parts:  # of a run of several processes that was killed
            part.unlink() if config.overwrite else log.absorb(part)
        missing = [job for job in chosen.jobs if job.index not in log.records]
        if board:
            board.put("plan", {"missing": [job.index for job in missing], "seconds": log.seconds})
        parent = Parent(chosen.policy_factory, config, chosen.make_world, missing, log, len(chosen.jobs), board)
        if missing:
            parent.roll_out()
        if board:
            for number in range(1, processes.world()):
                parent.add(board.take(f"done {number}"))
                log.absorb(_part(log_path, number))
        if parent.left_out:
            names = ", ".join(map(str, parent.left_out))
            raise UserError(
                f"{output}: not written: chains {names} left out, their simulators were ended from outside twice (out "
                "of memory?); pass --resume to try them again, with fewer --workers"
            )
        return save_results(output, _results(chosen, config, log, parent, output))


def _results(chosen: Chosen, config: EvaluateConfig, log: ChainLog, parent: Parent, output: Path) -> dict[str, Any]:
    wanted = {job.index for job in chosen.jobs}
    records, films = keep_films([log.records[index] for index in log.records if index in wanted], config, output)
    busy = sum(log.cost.values()) or 1.0
    return summarize(records, seed=config.seed) | {
        "seconds": round(log.seconds, 1),
        "chains_per_hour": round(3600 * len(log.records) / log.seconds, 1) if log.seconds else None,
        "time_share": {kind: round(value / busy, 4) for kind, value in sorted(log.cost.items())},
        "planning": parent.planner.summary(),
        "films": [str(Path(film_folder(output).name) / name) for name in films],
        "policy_identity": chosen.policy_identity,
        "world_identity": chosen.world_identity,
        "config": to_dict(config),
        "versions": environment_versions() | (parent.world or log.world or _old_world(output)),
    }


def _fingerprint(config: EvaluateConfig, chosen: Chosen) -> dict[str, Any]:
    """What must agree between the run that began a log and one that resumes it."""
    fingerprint = {key: value for key, value in to_dict(config).items() if key not in NOT_COMPARED}
    for name in (
        "world",
        "robot",
        "conventions",
        "answer_seconds",
        *SWITCHES,
    ):  # unset ones are left out: logs from before they existed can be resumed
        if getattr(config, name) == getattr(EvaluateConfig(), name):
            del fingerprint[name]
    if config.tasks is None and config.chains <= OFFICIAL_CHAINS and not chosen.own_chains:
        fingerprint.pop("chains")  # the first n official chains are the same for any n: more may be added to a log
    fingerprint["identity"] = chosen.policy_identity
    if chosen.world_identity is not None:
        fingerprint["world_identity"] = chosen.world_identity
    said = [(job.index, job.tasks, job.instructions) for job in chosen.jobs[:1]]
    fingerprint["jobs"] = hashlib.sha256(repr(said).encode()).hexdigest()[:16]
    return fingerprint


def _part(log_path: Path, number: int) -> Path:
    """The log of the process `number`, which ends up in the first one's."""
    return log_path.with_name(f"{log_path.name}.part{number}")


_calls = itertools.count()


def _own_board() -> processes.Board | None:
    """What the processes of this evaluation share, None for one that is alone."""
    board = processes.board()
    return board and board.section(f"evaluation {next(_calls)}")


def _further_process(
    chosen: Chosen, config: EvaluateConfig, fingerprint: dict[str, Any], log_path: Path, board: processes.Board
) -> Path:
    """What a process does that is not the first: chains, into a log of its own."""
    plan = board.take("plan")
    wanted = set(plan["missing"])
    missing = [job for job in chosen.jobs if job.index in wanted]
    with ChainLog(_part(log_path, processes.rank()), fingerprint, overwrite=True) as log:
        log.seconds = plan["seconds"]
        parent = Parent(chosen.policy_factory, config, chosen.make_world, missing, log, len(chosen.jobs), board)
        if missing:
            parent.roll_out()
    board.put(f"done {processes.rank()}", parent.report())
    return Path(config.output)


def _old_world(output: Path) -> dict[str, Any]:
    """The world's description from the results file, for a log from before it was kept there."""
    try:
        versions = load_results(output)["versions"]
    except UserError:
        return {}
    return {key: versions[key] for key in ("simulator", "assets", "renderer") if key in versions}
