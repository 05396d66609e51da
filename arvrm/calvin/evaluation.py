"""What calvin_agent.evaluation has: chains, start states, and how results are counted, printed and written."""

from __future__ import annotations

import contextlib
import functools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arvrm.calvin.missing import say
from arvrm.calvin.options import options
from arvrm.sim.chains import generate_chains, official_chains, official_start

OFFICIAL = 1000
_LENGTH = 5

Sequences = list[tuple[dict[str, Any], tuple[str, ...]]]


class CalvinBaseModel:
    """What a model must have to be evaluated."""

    def reset(self) -> None:
        """Forget the last instruction; called before each."""
        raise NotImplementedError

    def step(self, obs: Mapping[str, Any], goal: Any) -> Any:
        """Return the action for an observation and a goal (a sentence or its embedding)."""
        raise NotImplementedError


def get_sequences(num_sequences: int = OFFICIAL, num_workers: int | None = None) -> Sequences:
    """Return CALVIN's chains: (initial state, five tasks) each.

    Args:
        num_sequences: as in CALVIN, another number gives other chains, not the first so many of the 1000.
        num_workers: not used; nothing has to be computed for the 1000.
    """
    chains = _sequences(num_sequences)
    first = options().first
    if first is not None and first < len(chains):
        say(f"get_sequences gives the first {first} of {len(chains)} chains (--first {first})")
        return chains[:first]
    return chains


@functools.lru_cache
def _sequences(number: int) -> Sequences:
    chains = official_chains() if number == OFFICIAL else generate_chains(number)
    return [(dict(chain.initial_state), chain.tasks) for chain in chains]


def get_env_state_for_initial_condition(initial_condition: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return robot_obs (15,) and scene_obs (24,; red, blue, pink) at which CALVIN starts a symbolic state."""
    return official_start(initial_condition)


@contextlib.contextmanager
def temp_seed(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator for the time being."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def count_success(results: Sequence[int]) -> list[float]:
    """Return the fractions of chains with at least 1, 2, ... 5 tasks done."""
    return [sum(done >= least for done in results) / len(results) for least in range(1, _LENGTH + 1)]


def collect_plan(model: Any, plans: Mapping[str, list], subtask: str) -> None:
    """Note a model's latent plan and goal for a task, if it has any."""
    if hasattr(model, "plan") and hasattr(model, "latent_goal"):
        plans[subtask].append((model.plan.cpu(), model.latent_goal.cpu()))


def get_log_dir(log_dir: str | Path | None) -> Path:
    """Return the folder, made if need be; None: /tmp/evaluation."""
    folder = Path("/tmp/evaluation" if log_dir is None else log_dir)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"logging to {folder}")
    return folder


def print_and_save(results: Sequence[int], sequences: Iterable, log_dir: str | Path, epoch: Any = None) -> None:
    """Print a summary and put it, under the epoch's name, into log_dir/results.json.

    Args:
        results: tasks done in a row, of each chain.
        sequences: those chains, as `get_sequences` gives them.
    """
    rates = dict(enumerate(count_success(results), 1))
    succeeded, tried = Counter(), Counter()
    for done, (_, tasks) in zip(results, sequences, strict=False):
        succeeded.update(tasks[:done])
        tried.update(tasks[: done + 1])
    task_info = {task: {"success": succeeded[task], "total": total} for task, total in tried.items()}
    average = float(np.mean(results))
    print(f"Results for Epoch {epoch}:")
    print(f"Average successful sequence length: {average}")
    print("Success rates for i instructions in a row:")
    for number, rate in rates.items():
        print(f"{number}: {rate * 100:.1f}%")
    for task, counts in task_info.items():
        rate = counts["success"] / counts["total"]
        print(f"{task}: {counts['success']} / {counts['total']} |  SR: {rate * 100:.1f}%")
    print()
    file = Path(log_dir) / "results.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    known = {**known, epoch: {"avg_seq_len": average, "chain_sr": rates, "task_info": task_info}}
    file.write_text(json.dumps(known))
    best = max(known, key=lambda name: known[name]["avg_seq_len"])
    print(f"Best model: epoch {best} with average sequences length of {known[best]['avg_seq_len']}")
