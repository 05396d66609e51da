"""The verbs that measure and report: policies, results, the simulator itself."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from arvrm import processes
from arvrm.evaluation import EvaluateConfig, evaluate
from arvrm.interface import UserError
from arvrm.results import load_results, table


def evaluate_policy(config: EvaluateConfig) -> Path:
    """Roll a policy out, and print the table of its results to stderr."""
    factory, identity = None, None
    if config.policy == "checkpoint":
        if not config.checkpoint:
            raise UserError("evaluate: no policy given; pass --checkpoint DIR, or --policy expert or random")
        from arvrm.policy import policy_factory

        factory, identity = policy_factory(
            config.checkpoint,
            processes.device(config.device),
            config.index,
            config.execute_steps,
            config.batch,
            config.threads,
        )
    path = evaluate(factory, config, policy_identity=identity)
    if processes.is_main():
        print(table(load_results(path)), file=sys.stderr)
    return path


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
