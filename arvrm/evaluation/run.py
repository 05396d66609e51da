"""One evaluation from its configuration to the results file; a launcher may have started several processes for it."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from arvrm import processes
from arvrm.config import to_dict
from arvrm.evaluation.config import BEHIND_THE_SCENES, OFFICIAL_CHAINS, SWITCHES, EvaluateConfig
from arvrm.evaluation.jobs import make_jobs
from arvrm.evaluation.parent import Parent, film_folder
from arvrm.evaluation.playtable import PlayTableWorld
from arvrm.interface import Job, Policy, PolicySpec, UserError
from arvrm.results import ChainLog, ChainRecord, environment_versions, save_results, summarize
from arvrm.sim.render import choose_renderer


def evaluate(
    policy_factory: Callable[[], Policy] | None,
    config: EvaluateConfig,
    make_world: Callable[[EvaluateConfig, PolicySpec], Any] = PlayTableWorld,
    jobs: list[Job] | None = None,
    policy_identity: dict[str, Any] | None = None,
) -> Path:
    """Roll out the configured chains and write the results file.

    Args:
        policy_factory: makes the policy; None for policy = expert or random, which act inside the workers.
        config: what to roll out.
        make_world: builds a worker's simulator (importable: workers are spawned); tests give a small one.
        jobs: chains to roll out in place of those of the configuration.
        policy_identity: what identifies the policy's weights; a run with others cannot be resumed.
    Returns: the path of the results file; of several processes the first one writes it, when all have ended.
    Raises:
        UserError: the output exists, a task or chain file is unknown, the policy returns malformed or NaN actions.
    """
    output = Path(config.output)
    if config.resume and config.overwrite:
        raise UserError(f"{output}: --resume and --overwrite exclude each other; pass one")
    if output.exists() and not (config.resume or config.overwrite):
        raise UserError(f"{output}: exists; pass --resume to go on with it or --overwrite to begin anew")
    if config.policy == "checkpoint" and policy_factory is None:
        raise UserError("evaluate: policy = 'checkpoint' needs a checkpoint; pass --checkpoint DIR")
    jobs = make_jobs(config) if jobs is None else jobs
    fingerprint = {key: value for key, value in to_dict(config).items() if key not in BEHIND_THE_SCENES}
    for name in SWITCHES:  # unset ones are left out: logs from before they existed can be resumed
        if getattr(config, name) == getattr(EvaluateConfig(), name):
            del fingerprint[name]
    if config.tasks is None and config.chains <= OFFICIAL_CHAINS:
        fingerprint.pop("chains")  # the first n official chains are the same for any n: more may be added to a log
    # Tried once, not in every worker; and chains drawn by another renderer must not mix with those of a log.
    fingerprint["renderer"] = renderer = choose_renderer(config.renderer)
    fingerprint["identity"] = policy_identity
    fingerprint["jobs"] = _digest(jobs[:1])
    log_path = output.with_suffix(".chains.jsonl")
    crew = _crew()
    config_here = replace(config, renderer=renderer)
    if crew and not processes.is_main():
        return _help(policy_factory, config_here, make_world, jobs, fingerprint, log_path, crew)
    parts = sorted(log_path.parent.glob(f"{log_path.name}.part*"))
    if parts and not (config.resume or config.overwrite):
        raise UserError(f"{parts[0]}: exists; pass --resume to go on with it or --overwrite to begin anew")
    with ChainLog(log_path, fingerprint, resume=config.resume, overwrite=config.overwrite) as log:
        for part in parts:  # of a run of several processes that was killed
            part.unlink() if config.overwrite else log.absorb(part)
        indices = {job.index for job in jobs}
        missing = [job for job in jobs if job.index not in log.records]
        if crew:
            crew.put("plan", {"missing": [job.index for job in missing], "seconds": log.seconds})
        run = Parent(policy_factory, config_here, make_world, missing, log, len(jobs), crew)
        if missing:
            run.go()
        for number in range(1, processes.world() if crew else 1):
            run.hear(crew.take(f"done {number}"))
            log.absorb(_part(log_path, number))
        records = [_without_missing_film(record, output) for index, record in log.records.items() if index in indices]
        films = _choose_films(records, config, output)
        records = [record if record.film in films else replace(record, film=None) for record in records]
        results = summarize(records, seed=config.seed)
        busy = sum(log.cost.values()) or 1.0
        results |= {
            "seconds": round(log.seconds, 1),
            "chains_per_hour": round(3600 * len(log.records) / log.seconds, 1) if log.seconds else None,
            "time_share": {kind: round(value / busy, 4) for kind, value in sorted(log.cost.items())},
            "planning": run.planning(),
            "films": [str(Path(film_folder(output).name) / name) for name in films],
            "policy_identity": policy_identity,
            "config": to_dict(config),
            "versions": environment_versions() | (run.world or _old_world(output)),
        }
    return save_results(output, results)


def _part(log_path: Path, number: int) -> Path:
    """The log of the process `number`, which ends up in the first one's."""
    return log_path.with_name(f"{log_path.name}.part{number}")


_calls = itertools.count()


def _crew() -> processes.Board | None:
    """What the processes of this evaluation share, None for one that is alone."""
    board = processes.board()
    return board and board.section(f"evaluation {next(_calls)}")


def _help(
    policy_factory: Callable[[], Policy] | None,
    config: EvaluateConfig,
    make_world: Callable[..., Any],
    jobs: list[Job],
    fingerprint: dict[str, Any],
    log_path: Path,
    crew: processes.Board,
) -> Path:
    """What a process does that is not the first: chains, into a log of its own."""
    plan = crew.take("plan")
    wanted = set(plan["missing"])
    missing = [job for job in jobs if job.index in wanted]
    with ChainLog(_part(log_path, processes.rank()), fingerprint, overwrite=True) as log:
        log.seconds = plan["seconds"]
        run = Parent(policy_factory, config, make_world, missing, log, len(jobs), crew)
        if missing:
            run.go()
    crew.put(f"done {processes.rank()}", run.tell())
    return Path(config.output)


def _digest(jobs: list[Job]) -> str:
    return hashlib.sha256(repr([(job.index, job.tasks, job.instructions) for job in jobs]).encode()).hexdigest()[:16]


def _old_world(output: Path) -> dict[str, Any]:
    """The simulator's description from the results file of a resumed run that had nothing left to do."""
    try:
        versions = json.loads(output.read_text())["versions"]
    except (OSError, ValueError, KeyError):
        return {}
    return {key: versions[key] for key in ("simulator", "assets", "renderer") if key in versions}


def _without_missing_film(record: ChainRecord, output: Path) -> ChainRecord:
    return record if record.film and (film_folder(output) / record.film).exists() else replace(record, film=None)


def _choose_films(records: list[ChainRecord], config: EvaluateConfig, output: Path) -> list[str]:
    """Keep the longest chains that came far and the shortest that failed; delete the other candidates."""
    filmed = sorted((record for record in records if record.film), key=lambda record: record.index)
    best = sorted((r for r in filmed if r.completed > 0), key=lambda r: -r.completed)[: config.film_successes]
    failed = [r for r in filmed if r.completed < len(r.tasks) and r not in best]
    worst = sorted(failed, key=lambda r: r.completed)[: config.film_failures]
    chosen = [record.film for record in best + worst]
    for record in filmed:
        if record.film not in chosen:
            (film_folder(output) / record.film).unlink(missing_ok=True)
    return chosen
