"""What every verb that writes needs, very small, and the command line by which it is called."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from calvin_files import write_calvin
from small_stores import human_store, robot_store

from arvrm.config import from_dict
from arvrm.results import FORMAT
from arvrm.training import PretrainConfig, pretrain

MODEL = {
    "width": 32, "layers": 1, "heads": 2, "joint_width": 8, "latents": 2, "chunk": 4,
    "resampler_heads": 2, "resampler_head_width": 8,
    "vision": {
        "static_size": 32, "gripper_size": 32, "width": 16, "channels": [8, 8], "depth": 1, "points": 8, "landmarks": 7,
    },
}  # fmt: skip
TRAIN = {
    "steps": 4, "batch": 4, "warmup": 1, "log_every": 1, "validate_every": 2, "checkpoint_every": 2, "device": "cpu",
    "tensorboard": True,
}  # fmt: skip


def prepare(root: Path) -> Path:
    """Make stores, a CALVIN data set, a checkpoint of stage 1 and a results file, for `command`."""
    human_store(root / "human", tasks=2, per_task=3, steps=19)
    robot_store(root / "robot", tasks=2, per_task=3, steps=13, landmarks=True)
    robot_store(root / "robot2", tasks=1, per_task=3, steps=13, landmarks=True)
    write_calvin(root / "calvin")
    common = {"window": {"history": 2, "stride": 3}, "model": MODEL, "train": TRAIN}
    settings = {
        "pretrain": {**common, "data": {"stores": [str(root / "human")], "validation": 0.2}},
        "finetune": {**common, "data": {"stores": [str(root / "robot")], "validation": 0.2}},
    }
    for name, values in settings.items():
        (root / f"{name}.json").write_text(json.dumps(values))
    pretrain(from_dict(PretrainConfig, {**settings["pretrain"], "output": str(root / "pretrained")}), progress=False)
    results = {
        "format": FORMAT, "average_length": 1.0, "average_length_ci95": [0.5, 1.5], "success_rates": [1.0],
        "success_rates_ci95": [[0.5, 1.0]], "per_task": {"open_drawer": {"success": 1, "total": 1}}, "crashed": 0,
        "chains": [{"index": 0, "tasks": ["open_drawer"], "completed": 1, "steps": [9]}],
        "config": {"policy": "random", "scene": "D", "seed": 0}, "versions": {},
    }  # fmt: skip
    (root / "results.json").write_text(json.dumps(results))
    return root


def command(verb: str, root: Path, output: Path) -> list[str]:
    """Return the words of a command line whose output is `output`; "--overwrite" and the like may follow."""
    inputs = {
        "generate": [
            *("--embodiment", "robot", "--episodes", "3", "--tasks", "open_drawer", "--workers", "1", "--scenes", "D"),
            *("--static-size", "32", "--gripper-size", "16", "--instructions", "own"),
        ],
        "convert calvin": ["--input", str(root / "calvin")],
        "merge": [str(root / "robot"), str(root / "human")],
        "export lerobot": ["--input", str(root / "robot")],
        "few-shot": ["--store", str(root / "robot"), "--fraction", "0.5"],
        "index": ["--stores", str(root / "human"), "--checkpoint", str(root / "pretrained")],
        "pretrain": ["--config", str(root / "pretrain.json")],
        "finetune": ["--config", str(root / "finetune.json")],
        "evaluate": ["--policy", "random", "--chains", "3", "--max-steps", "6", "--workers", "1"],
        "report": [str(root / "results.json")],
        "inspect": [str(root / "robot"), "--rows", "2"],
    }  # fmt: skip
    flag = "--contact-sheet" if verb == "inspect" else "--output"
    return [*verb.split(), *inputs[verb], flag, str(output)]


def driver(patch: str = "") -> str:
    """Return a program that is the command `arvrm` after these lines of Python."""
    return f"import os, signal, sys\n{patch}\nfrom arvrm.cli import main\nsys.exit(main(sys.argv[1:]))"


def start(words: list[str], patch: str = "") -> subprocess.Popen:
    """Start a verb in a process of its own, which SIGINT reaches even where the tests run in the background."""
    return subprocess.Popen(
        [sys.executable, "-c", driver(patch), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
