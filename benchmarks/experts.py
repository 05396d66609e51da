"""Measure the scripted experts: success and length of each task from starts as
`arvrm evaluate --protocol single` has them, or of whole official chains.

    python benchmarks/experts.py --scene D --assets official --starts 100
    python benchmarks/experts.py --scene D --assets builtin --chains 1000 --json experts.json

Same arguments, same table, whatever the number of processes. Official scenes need CALVIN_ROOT.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from arvrm.interface import TASKS, UserError

MAX_STEPS = 360
_env = None


def _open(arguments) -> None:
    global _env
    from arvrm.sim.env import PlayTableEnv

    _env = PlayTableEnv(
        arguments.scene, arguments.assets, arguments.calvin_root, variation=arguments.variation,
        render_observations=False,
    )  # fmt: skip


def _single(job) -> dict:
    from arvrm.evaluation import official_chains
    from arvrm.sim.experts import rollout_expert
    from arvrm.sim.starts import prepare, prepared_starts

    task, index, seed, noise = job
    starts = prepared_starts(official_chains(), task, index + 1, seed)[index]
    _, before = prepare(_env, starts, seed, index)
    rng = np.random.default_rng([seed, TASKS.index(task), index])
    rollout = rollout_expert(_env, task, rng, noise, MAX_STEPS, after=before)
    return {"task": task, "index": index, "success": rollout.success, "steps": rollout.steps}


def _chain(job) -> dict:
    from arvrm.evaluation import official_chains
    from arvrm.sim.experts import Expert
    from arvrm.sim.starts import let_do, reset_to_chain

    index, seed, noise = job
    chain, expert, done = official_chains()[index], None, []
    info = reset_to_chain(_env, chain)
    for place, task in enumerate(chain.tasks):
        expert = Expert(task, _env, np.random.default_rng([seed, index, place]), noise, expert)
        info = let_do(_env, expert, info, MAX_STEPS)
        if info is None:
            break
        done.append(expert.acts)
    return {"index": index, "tasks": chain.tasks, "completed": len(done), "steps": done}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", default="D")
    parser.add_argument("--assets", choices=("official", "builtin"), default="builtin")
    parser.add_argument("--calvin-root", default=os.environ.get("CALVIN_ROOT"))
    parser.add_argument("--variation", type=int, help="seed of a built-in scene's varied layout")
    parser.add_argument("--starts", type=int, default=100, help="starts of each task")
    parser.add_argument("--chains", type=int, default=0, help="measure this many official chains instead")
    parser.add_argument("--first", type=int, default=0, help="the first chain's index")
    parser.add_argument("--tasks", default="all", help="comma-separated; all of them by default")
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write every rollout here")
    arguments = parser.parse_args(words)
    tasks = TASKS if arguments.tasks == "all" else tuple(arguments.tasks.split(","))
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        print(f"tasks: {unknown[0]!r} is unknown; choose from arvrm.interface.TASKS", file=sys.stderr)
        return 2
    try:
        _open(arguments)  # a mistake shows here, not in every process
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    _env.close()
    if arguments.chains:
        last = arguments.first + arguments.chains
        work, jobs = _chain, [(index, arguments.seed, arguments.noise) for index in range(arguments.first, last)]
    else:
        work = _single
        # Every task's first start, then every task's second: a run that is stopped early still says something of all.
        jobs = [(task, i, arguments.seed, arguments.noise) for i in range(arguments.starts) for task in tasks]
    results: list[dict] = []
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with multiprocessing.get_context("spawn").Pool(arguments.processes, _open, (arguments,)) as pool:
            for result in pool.imap(work, jobs, chunksize=2):
                results.append(result)
                if len(results) % 50 == 0:
                    print(f"{len(results)}/{len(jobs)}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"stopped after {len(results)} of {len(jobs)}", file=sys.stderr)
    if not results:
        return 130
    (_report_chains if arguments.chains else _report_tasks)(results)
    if arguments.json:
        part = arguments.json.with_name(arguments.json.name + ".part")
        part.write_text(json.dumps({"arguments": {k: str(v) for k, v in vars(arguments).items()}, "results": results}))
        part.replace(arguments.json)
    return 0 if len(results) == len(jobs) else 130


def _report_tasks(results: list[dict]) -> None:
    groups = defaultdict(list)
    for result in results:
        groups[result["task"]].append(result)
    print(f"{'task':28s} success        mean steps")
    for task, rows in groups.items():
        good = [row["steps"] for row in rows if row["success"]]
        failed = [row["index"] for row in rows if not row["success"]]
        mean = np.mean(good) if good else float("nan")
        print(f"{task:28s} {len(good):4d}/{len(rows):<4d} {100 * len(good) / len(rows):4.0f} % {mean:6.0f}"
              + (f"   failed: {failed[:10]}" if failed else ""))  # fmt: skip
    print(f"{'all':28s} {sum(r['success'] for r in results):4d}/{len(results):<4d}")


def _report_chains(results: list[dict]) -> None:
    completed = np.array([result["completed"] for result in results])
    counts = defaultdict(lambda: [0, 0, []])
    for result in results:
        for place, task in enumerate(result["tasks"][: result["completed"] + 1]):
            counts[task][1] += 1
            if place < result["completed"]:
                counts[task][0] += 1
            else:
                counts[task][2].append(result["index"])
    for task in TASKS:
        if task in counts:
            good, total, failed = counts[task]
            print(f"{task:28s} {good:4d}/{total:<4d}" + (f"   failed in chains {failed[:12]}" if failed else ""))
    rates = " ".join(f"{(completed > i).mean():.3f}" for i in range(5))
    print(f"{len(results)} chains: average length {completed.mean():.3f}; success of 1 to 5 in a row {rates}")


if __name__ == "__main__":
    sys.exit(main())
