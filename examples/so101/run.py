"""A policy for an SO-101 from a LeRobot data set and clips of hands: every stage, by arvrm's own verbs.

    python run.py --output runs/so101          # goes on where it was stopped
    python run.py --output runs/so101_fast --fast

Each verb's command line is printed, so that it can be run by hand.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WORLD = "so101_world:CubesWorld"
FACTS = (
    "facts.relative=false",
    "facts.binary=0",
    "facts.frame=joint targets",
    'facts.units=["deg","deg","deg","deg","deg","% open"]',
)
"""What the data set cannot tell of its robot."""
CLIP_TASKS = (
    *("lift_red_block_table", "lift_blue_block_table", "push_red_block_left", "push_blue_block_left"),
    *("push_red_block_right", "push_blue_block_right"),
)


def arvrm(*arguments: object) -> None:
    """Run a verb; stop with its exit code if it fails."""
    from arvrm.cli import main as verb

    words = [str(argument) for argument in arguments]
    print("$ arvrm", *words, flush=True)
    if code := verb(words):
        sys.exit(code)


def record(output: Path, settings: dict[str, Any]) -> None:
    from so101_record import demonstrations, write_data_set

    write_data_set(output / "set", demonstrations(settings["tasks"], settings["demonstrations"], settings["seed"]))


def convert(output: Path, settings: dict[str, Any]) -> None:
    arvrm("describe", "lerobot", "--input", output / "set", "--output", output / "arm.json", "--overwrite", *FACTS)
    again = ["--overwrite"] if (output / "robot").exists() else []
    arvrm(
        *("convert", "lerobot", "--input", output / "set", "--output", output / "robot"),
        "--robot",
        output / "arm.json",
        *again,
    )


def clips(output: Path, settings: dict[str, Any]) -> None:
    further = ["--resume"] if (output / "human").exists() else []
    number = ["--episodes", settings["clips"], "--variations", settings["clips"] // 4]
    tasks = ["--tasks", ",".join(CLIP_TASKS)]
    arvrm(
        "generate",
        "--embodiment",
        "human",
        "--scenes",
        "A,B,C,D",
        *tasks,
        *number,
        "--output",
        output / "human",
        *further,
    )


def pretrain(output: Path, settings: dict[str, Any]) -> None:
    train(output, "pretrain", "pretrain", settings["pretrain"], data={"stores": [str(output / "human")]})


def finetune(output: Path, settings: dict[str, Any]) -> None:
    data = {"stores": [str(output / "robot")], "robot": str(output / "arm.json")}
    train(output, "finetune", "policy", settings["finetune"], data=data, pretrained=str(output / "pretrain"))
    # The same network as it begins, without a clip or a demonstration.
    untaught = {"train": {**settings["finetune"]["train"], "steps": 1, "warmup": 0, "learning_rate": 1e-12}}
    train(output, "finetune", "untrained", settings["finetune"] | untaught, data=data)


def train(output: Path, verb: str, name: str, config: dict[str, Any], **more: Any) -> None:
    file = output / f"{name}.json"
    data = {**config.get("data", {}), **more.pop("data"), "cache": str(output / "cache")}
    file.write_text(json.dumps(config | more | {"data": data, "output": str(output / name)}, indent=1))
    arvrm(verb, "--config", file, *(["--resume"] if (output / name).exists() else []))


def evaluate(output: Path, settings: dict[str, Any]) -> None:
    for name, policy in (
        ("policy", ("--checkpoint", output / "policy")),
        ("untrained", ("--checkpoint", output / "untrained")),
        ("random", ("--policy", "random")),
        ("expert", ("--policy", "expert")),
    ):
        films = ["--film-successes", 4, "--film-failures", 2] if name == "policy" else []
        roll_out(output, settings, name, settings["chains"], *policy, *films)


def roll_out(output: Path, settings: dict[str, Any], name: str, chains: int, *policy: object) -> None:
    results = output / f"{name}_results.json"
    if results.exists():
        return
    begun = ["--resume"] if results.with_suffix(".chains.jsonl").exists() else []
    world = ["--world", WORLD, "--robot", output / "arm.json", "--max-steps", settings["max_steps"]]
    arvrm(
        "evaluate",
        *policy,
        *world,
        "--chains",
        chains,
        "--tasks",
        ",".join(settings["tasks"]),
        "--workers",
        2,
        "--output",
        results,
        *begun,
    )


def serve(output: Path, settings: dict[str, Any]) -> None:
    """Drive the policy over a socket and compare every chain with the local rollout."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", "--checkpoint", str(output / "policy"), "--port", str(port)]
    print("$ arvrm", *words, "&", flush=True)
    with subprocess.Popen([sys.executable, "-m", "arvrm", *words]) as server:
        try:
            wait_for(port, server)
            (output / "served_results.json").unlink(missing_ok=True)
            roll_out(output, settings, "served", settings["served_chains"], "--policy", f"ws://127.0.0.1:{port}")
        finally:
            server.terminate()
    local, remote = (chains_of(output, name) for name in ("policy", "served"))
    pairs = list(zip(local[: len(remote)], remote, strict=True))
    same = sum(one["completed"] == other["completed"] and one["steps"] == other["steps"] for one, other in pairs)
    print(f"over the socket: {same} of {len(pairs)} chains as without it, step by step")


def wait_for(port: int, server: subprocess.Popen) -> None:
    for _ in range(600):
        if server.poll() is not None:
            sys.exit(f"arvrm serve ended with {server.returncode}")
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    sys.exit("arvrm serve: does not listen after two minutes")


def report(output: Path, settings: dict[str, Any]) -> None:
    from arvrm.films import film_strip

    tasks = settings["tasks"]
    lines = [f"| policy | {' | '.join(tasks)} | all | 95 % interval |", "|---" * (len(tasks) + 3) + "|"]
    for name in ("policy", "untrained", "random", "expert"):
        found = [(chain["tasks"][0], chain["completed"]) for chain in chains_of(output, name)]
        each = [[done for task, done in found if task == wanted] for wanted in tasks]
        low, high = wilson(sum(done for _, done in found), len(found))
        cells = [f"{sum(one)} of {len(one)}" for one in each]
        cells += [f"{sum(done for _, done in found)} of {len(found)}", f"{100 * low:.0f} to {100 * high:.0f} %"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    (output / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    films = sorted((output / "policy_results_films").glob("*.mp4"))
    for film in films:
        film_strip(film, 6, 1500).save(film.with_suffix(".png"))
    arvrm(
        "report",
        output / "policy_results.json",
        output / "random_results.json",
        *("--output", output / "report.html"),
        "--overwrite",
    )


def chains_of(output: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((output / f"{name}_results.json").read_text())["chains"]


def wilson(successes: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    z, share = 1.96, successes / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * (share * (1 - share) / total + z * z / (4 * total * total)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


STAGES: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "record": record,
    "convert": convert,
    "clips": clips,
    "pretrain": pretrain,
    "finetune": finetune,
    "evaluate": evaluate,
    "serve": serve,
    "report": report,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/so101"))
    parser.add_argument("--fast", action="store_true", help="every stage in minutes; nothing is learnt")
    parser.add_argument("--until", choices=list(STAGES), default="report", help="the last stage to run")
    given = parser.parse_args(arguments)
    settings = json.loads((HERE / ("fast.json" if given.fast else "settings.json")).read_text())
    given.output.mkdir(parents=True, exist_ok=True)
    notes = given.output / "stages.json"
    done = json.loads(notes.read_text()) if notes.exists() else {"settings": settings, "seconds": {}}
    if done["settings"] != settings:
        sys.exit(f"{given.output}: was begun with other settings; give another --output")
    for name, stage in STAGES.items():
        if name not in done["seconds"]:
            begin = time.perf_counter()
            print(f"[{name}]", flush=True)
            stage(given.output, settings)
            done["seconds"][name] = round(time.perf_counter() - begin, 1)
            notes.write_text(json.dumps(done, indent=1))
        if name == given.until:
            break


if __name__ == "__main__":
    main()
