"""The verbs that measure and report: policies, results, the simulator itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arvrm import processes
from arvrm.doctor import DoctorConfig, as_json, as_page, examine
from arvrm.evaluation import EvaluateConfig, evaluate, named_policy
from arvrm.interface import Policy, UserError
from arvrm.results import load_results, table


def evaluate_policy(config: EvaluateConfig) -> Path:
    """Roll a policy out, and print the table of its results to stderr."""
    factory, identity = _learnt(config) if config.policy == "checkpoint" else (None, None)
    path = evaluate(factory, config, policy_identity=identity)
    if processes.is_main():
        print(table(load_results(path)), file=sys.stderr)
    return path


def _learnt(config: EvaluateConfig) -> tuple[Callable[[], Policy], dict[str, Any]]:
    if not config.checkpoint:
        raise UserError("evaluate: no policy given; pass --checkpoint DIR, or --policy expert or random")
    from arvrm.policy import policy_factory

    device = processes.device(config.device)
    return policy_factory(config.checkpoint, device, config.index, config.execute_steps, config.batch, config.threads)


@dataclass(frozen=True)
class ReportConfig:
    """What the page shows.

    Attributes:
        results: files that `arvrm evaluate` wrote, to be compared.
        output: the page.
        run: folders of training runs, whose curves to draw; may be repeated.
        exhibits: folder of `arvrm exhibit`, with retrieved clips and the map.
        title: of the page.
        overwrite: replace an existing page.
    """

    results: tuple[str, ...]
    output: str = "report.html"
    run: tuple[str, ...] = ()
    exhibits: str | None = None
    title: str = "arvrm report"
    overwrite: bool = False


def report(config: ReportConfig) -> Path:
    """Write the page."""
    from arvrm.show.report import write_report

    return write_report(
        config.results, config.output, config.run, config.exhibits, title=config.title, overwrite=config.overwrite
    )


@dataclass(frozen=True)
class VerifyConfig:
    """Which recordings to compare with.

    Attributes:
        files: recordings (.npz) of the official simulator.
        calvin_root: an official checkout; null: the environment variable CALVIN_ROOT's.
        json: print JSON in place of a table.
    """

    files: tuple[str, ...]
    calvin_root: str | None = None
    json: bool = False


def verify(config: VerifyConfig) -> int:
    """Replay recordings and print how far the simulator is from them; return 1 where it is not equal."""
    from arvrm.sim.verify import main_verify

    return main_verify(config.files, config.json, config.calvin_root)


def doctor(config: DoctorConfig) -> int:
    """Print the page; return 1 where something is wrong."""
    make_policy = None
    if config.plans:
        wanted = EvaluateConfig(
            policy=config.policy or "checkpoint",
            checkpoint=config.checkpoint,
            index=config.index,
            conventions=config.conventions,
            answer_seconds=config.answer_seconds,
            execute_steps=config.execute_steps,
            device=config.device,
        )
        make_policy = _learnt(wanted)[0] if wanted.policy == "checkpoint" else named_policy(wanted)
    findings = list(examine(config, make_policy))
    print(as_json(findings) if config.json else as_page(findings), end="\n" if config.json else "")
    return int(any(finding.status == "wrong" for finding in findings))
