"""How fast evaluation is and where its time goes: the expert's chains with 1 and 2 workers.

    python benchmarks/evaluation.py [--assets calvin] [--chains 48] [--workers 1 2] [--look never policy always]

An expert needs no images, so rendering is asked for as policies would: `never`; `policy`, what the demonstration's
policy looks at (two frames 3 steps apart before each plan, a plan every 9 steps; 200 and 84 pixels); `always`, both
cameras at every step, as policies that plan at every step need. Nothing is planned, so that the simulator's own rate
is measured: a learnt policy's planning comes on top, in the parent process. `chains/h` leaves out the workers' start,
`with start` has it. TinyRenderer by default.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

from scene_options import run, scene_parser

from arvrm.evaluation import EvaluateConfig, evaluate, parent
from arvrm.interface import PolicySpec
from arvrm.results import load_results

SIZES = {"rgb_static": 200, "rgb_gripper": 84}
LOOKS = {
    "never": PolicySpec(None),
    "policy": PolicySpec(None, SIZES, history_offsets=(-3, 0), execute_steps=9),
    "always": PolicySpec(None, SIZES),
}


def measure(look: str, workers: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return chains an hour, control steps a second, and shares of the workers' time."""
    parent.NO_POLICY = LOOKS[look]  # what rollouts of an expert look at
    with tempfile.TemporaryDirectory() as folder:
        config = EvaluateConfig(
            output=str(Path(folder) / "results.json"), policy="expert", chains=arguments.chains, workers=workers,
            scene=arguments.scene, assets=arguments.assets, renderer=arguments.renderer,
        )  # fmt: skip
        with contextlib.redirect_stderr(io.StringIO()):
            results = load_results(evaluate(None, config))
        log = [json.loads(line) for line in (Path(folder) / "results.chains.jsonl").read_text().splitlines()[1:]]
    simulated = sum(sum(line["cost"].values()) for line in log)
    kinds = dict.fromkeys(("physics", "rendering", "reset", "oracle", "policy", "other"), 0.0)
    for line in log:
        for kind, seconds in line["cost"].items():
            kinds[kind] += seconds
    steps = sum(sum(line["steps"]) for line in log)
    return {
        "look": look,
        "workers": workers,
        "renderer": results["versions"]["renderer"],
        "chains": len(log),
        "average_length": results["average_length"],
        # While all workers are busy; at the end some wait for the others, which long runs do not feel.
        "chains_per_hour": round(3600 * len(log) * workers / simulated),
        "chains_per_hour_with_start": results["chains_per_hour"],
        "steps_per_second": round(steps * workers / simulated),
        "share": {kind: round(seconds / simulated, 4) for kind, seconds in kinds.items()},
    }


def measure_all(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every combination and print a table."""
    print("images   workers  chains/h  (with start)  steps/s  physics  rendering  reset  oracle  expert  other")
    found = []
    for look in arguments.look:
        for workers in arguments.workers:
            row = measure(look, workers, arguments)
            found.append(row)
            share = {kind: f"{100 * value:.0f} %" for kind, value in row["share"].items()}
            print(
                f"{look:8} {workers:7}  {row['chains_per_hour']:8}  {row['chains_per_hour_with_start']:12.0f}  "
                f"{row['steps_per_second']:7}  {share['physics']:>7}  {share['rendering']:>9}  {share['reset']:>5}  "
                f"{share['oracle']:>6}  {share['policy']:>6}  {share['other']:>5}",
                flush=True,
            )
    return found


if __name__ == "__main__":
    parser = scene_parser(__doc__)
    parser.add_argument("--scene", default="D")
    parser.add_argument("--renderer", default="tiny", choices=("tiny", "egl", "auto"))
    parser.add_argument("--chains", type=int, default=48)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--look", nargs="+", default=list(LOOKS), choices=LOOKS)
    run(parser, measure_all)
