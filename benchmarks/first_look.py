"""A first look at the claim: does each step of AR-VRM help a policy that has few robot demonstrations?

Five rows, each a few switches of one configuration, with the same robot episodes, updates and batches:

    none         no human data
    pretrain     + keypoint pretraining on human clips
    replay       + retrieval of human clips, replayed with the stage-1 loss
    map          + the analogy map from hand keypoints to robot components
    rollout      + the retrieved clips, through the map, as a token that the policy reads (analogy.at_rollout=on)

for several numbers of robot demonstrations per task and several seeds (of the subset of demonstrations, the weights and
the batches). Every policy runs the same chains in a scene that it was not trained in. Steps that are done are skipped,
so a stopped study goes on where it was.

    python benchmarks/first_look.py --robot STORE --human STORE --demonstrations 5,20 --seeds 0,1,2 --chains 100 \
        --output runs/first_look
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROWS = ("none", "pretrain", "replay", "map", "rollout")
LABELS = {
    "none": "no human data",
    "pretrain": "+ keypoint pretraining",
    "replay": "+ retrieval and replay",
    "map": "+ map",
    "rollout": "+ clips at rollout",
}


def arvrm(*arguments: str) -> None:
    print("arvrm", *arguments, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "arvrm", *arguments], check=True, stdout=subprocess.DEVNULL)


def switches(row: str, pretrained: Path, index: Path) -> list[str]:
    """Return the overrides that make a row of the table out of the common configuration."""
    values = [f"model.analogy.enabled={'true' if row in ('map', 'rollout') else 'false'}"]
    if row != "none":
        values.append(f"pretrained={pretrained}")
    if row in ("replay", "map", "rollout"):
        values.append(f"index={index}")
    if row == "rollout":
        # A rollout knows what it has seen, not the whole episode, so training must search by that too.
        values += ["model.analogy.at_rollout=on", "retrieval.query=window", "retrieval.align=dtw"]
    return values


def run(options: argparse.Namespace) -> None:
    """Train and evaluate every row that has no results yet."""
    output = options.output
    cache = f"data.cache={output / 'cache'}"
    tasks = json.dumps(options.tasks.split(","))
    part, parts = options.shard
    for seed in options.seeds:
        stage1, index = output / f"pretrain-{seed}", output / f"index-{seed}"
        while part != 0 and not index.exists():  # the first part prepares what all use
            time.sleep(2)
        if not (stage1 / "done").exists():
            arvrm("pretrain", "--config", options.pretrain_config, "--output", str(stage1), *resume(stage1),
                  f"data.stores={json.dumps([options.human])}", f"train.seed={seed}", cache)  # fmt: skip
            (stage1 / "done").touch()
        if not index.exists():
            arvrm("index", "--stores", options.human, "--checkpoint", str(stage1), "--output", str(index))
    jobs = [(seed, n, row) for seed in options.seeds for n in options.demonstrations for row in ROWS]
    for seed, demonstrations, row in jobs[part::parts]:
        stage1, index = output / f"pretrain-{seed}", output / f"index-{seed}"
        run_folder = output / f"{row}-{demonstrations}-{seed}"
        results = output / f"{row}-{demonstrations}-{seed}.json"
        if results.exists():
            continue
        if not (run_folder / "done").exists():
            arvrm("finetune", "--config", options.finetune_config, "--output", str(run_folder),
                  *resume(run_folder), f"data.stores={json.dumps([options.robot])}", f"data.tasks={tasks}",
                  f"data.episodes_per_task={demonstrations}", f"data.seed={seed}", f"train.seed={seed}", cache,
                  *([f"train.steps={options.steps}"] if options.steps else []),
                  *switches(row, stage1, index))  # fmt: skip
            (run_folder / "done").touch()
        log = results.with_suffix(".chains.jsonl")
        arvrm("evaluate", "--checkpoint", str(run_folder), "--scene", options.scene, "--chains",
              str(options.chains), "--tasks", options.tasks, "--max-steps", str(options.max_steps), "--workers",
              str(options.workers), "--output", str(results), *(["--index", str(index)] if row == "rollout" else []),
              *(["--resume"] if log.exists() else []))  # fmt: skip


def resume(folder: Path) -> list[str]:
    return ["--resume"] if folder.exists() else []


def chains_of(path: Path) -> np.ndarray:
    """Return (chains,) instructions completed in a row, by chain."""
    records = sorted(json.loads(path.read_text())["chains"], key=lambda record: record["index"])
    return np.array([record["completed"] for record in records], dtype=float)


def interval(runs: np.ndarray, seed: int = 0, samples: int = 10_000) -> tuple[float, float]:
    """Return a 95 % interval of the mean that draws both seeds and chains again.

    Args:
        runs: (seeds, chains) instructions completed; the chains are the same for each seed.
    """
    random = np.random.default_rng(seed)
    seeds = random.integers(0, runs.shape[0], (samples, runs.shape[0]))
    chains = random.integers(0, runs.shape[1], (samples, runs.shape[1]))
    means = np.array([runs[s][:, c].mean() for s, c in zip(seeds, chains, strict=True)])
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def summarise(options: argparse.Namespace) -> dict:
    """Return every row's mean, interval, per-seed means and paired difference to the row before it."""
    summary = []
    for demonstrations in options.demonstrations:
        before = None
        for row in ROWS:
            files = [options.output / f"{row}-{demonstrations}-{seed}.json" for seed in options.seeds]
            runs = np.array([chains_of(file) for file in files if file.exists()])
            if not len(runs):
                continue
            low, high = interval(runs)
            entry = {
                "demonstrations_per_task": demonstrations,
                "row": row,
                "average_length": float(runs.mean()),
                "ci95": [low, high],
                "by_seed": runs.mean(axis=1).round(3).tolist(),
                "success_rates": [float((runs >= n).mean()) for n in range(1, 6)],
            }
            if before is not None and before.shape == runs.shape:
                step = runs - before
                entry["gain"] = float(step.mean())
                entry["gain_ci95"] = list(interval(step))
            before = runs
            summary.append(entry)
    return {"rows": summary, "seeds": options.seeds, "chains": options.chains, "tasks": options.tasks.split(",")}


def table(summary: dict) -> str:
    """Return the summary as Markdown."""
    lines = [
        "| demonstrations per task | row | average length (95 % interval) | by seed | gain over the row above |",
        "|---|---|---|---|---|",
    ]
    for entry in summary["rows"]:
        low, high = entry["ci95"]
        gain = ""
        if "gain" in entry:
            gain = f"{entry['gain']:+.2f} ({entry['gain_ci95'][0]:+.2f} to {entry['gain_ci95'][1]:+.2f})"
        lines.append(
            f"| {entry['demonstrations_per_task']} | {LABELS[entry['row']]} "
            f"| {entry['average_length']:.2f} ({low:.2f} to {high:.2f}) "
            f"| {', '.join(f'{mean:.2f}' for mean in entry['by_seed'])} | {gain} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--robot", required=True, help="store of robot demonstrations")
    parser.add_argument("--human", required=True, help="store of human clips")
    parser.add_argument("--output", type=Path, default=Path("runs/first_look"))
    parser.add_argument("--pretrain-config", default="configs/playtable_pretrain.json")
    parser.add_argument("--finetune-config", default="configs/playtable_finetune.json")
    parser.add_argument("--demonstrations", type=lambda text: [int(n) for n in text.split(",")], default=[5, 20])
    parser.add_argument("--seeds", type=lambda text: [int(n) for n in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--chains", type=int, default=100)
    parser.add_argument("--tasks", required=True, help="comma-separated")
    parser.add_argument("--scene", default="D")
    parser.add_argument("--max-steps", type=int, default=360)
    parser.add_argument("--workers", type=int, default=2, help="simulators side by side")
    parser.add_argument("--shard", type=lambda text: [int(n) for n in text.split("/")], default=[0, 1],
                        help="i/n: do every n-th training from the i-th, beside others of the same output")  # fmt: skip
    parser.add_argument("--steps", type=int, help="updates of each fine-tuning; default: the configuration's")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    started = time.time()
    run(options)
    summary = summarise(options)
    (options.output / "summary.json").write_text(json.dumps(summary, indent=1))
    print(table(summary))
    print(f"{(time.time() - started) / 60:.1f} minutes", file=sys.stderr)


if __name__ == "__main__":
    main()
