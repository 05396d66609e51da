"""Rollouts by CALVIN's long-horizon protocol: simulators in worker processes, one policy that plans in batches.

A chain of (usually five) instructions starts from its initial state; each instruction gets at most `max_steps` control
steps and succeeds as soon as the task oracle, comparing the info at the instruction's start with the info now, says so;
the next begins where the last one ended, without a reset; the chain ends at its first failure.
Source: Mees et al., CALVIN, IEEE RA-L 2022 (section on LH-MTLC).

Each worker owns one simulator and asks the parent for chunks of actions over a pipe; the parent plans for whatever
requests are waiting. A chain depends on its index and the seed alone, never on the worker that ran it. A launcher may
start several parents, each with a device and workers of its own: each takes the next chain that none has taken.
"""

from arvrm.evaluation.chosen import named_policy
from arvrm.evaluation.config import OFFICIAL_CHAINS, EvaluateConfig
from arvrm.evaluation.filming import FILM_TAIL, film_folder
from arvrm.evaluation.jobs import check_tasks, make_jobs, official_chains, sentences
from arvrm.evaluation.playtable import PlayTableWorld
from arvrm.evaluation.rollout import Rollout, checked_chunk, needs_images
from arvrm.evaluation.run import evaluate
from arvrm.interface import Job

__all__ = [
    "FILM_TAIL",
    "OFFICIAL_CHAINS",
    "EvaluateConfig",
    "Job",
    "PlayTableWorld",
    "Rollout",
    "checked_chunk",
    "check_tasks",
    "evaluate",
    "film_folder",
    "make_jobs",
    "named_policy",
    "needs_images",
    "official_chains",
    "sentences",
]
