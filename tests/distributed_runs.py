"""Runs of several processes for tests/test_distributed.py: `python distributed_runs.py FOLDER`.

Processes are started by torchrun's own agent, forked from this one, so that each begins with torch loaded; what they
do is what they would do under the command.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

import accelerate.utils  # noqa: F401
import torch
import torch._dynamo
import torch.distributed.fsdp
import torch.distributed.tensor

torch.set_num_threads(1)

import test_stages as stages  # noqa: E402
from small_stores import human_store, robot_store  # noqa: E402
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: E402
from torch.distributed.launcher.api import LaunchConfig, elastic_launch  # noqa: E402

from arvrm import processes  # noqa: E402
from arvrm.config import from_dict  # noqa: E402
from arvrm.training import IndexConfig, RobotData, build_index_stage, finetune, pretrain  # noqa: E402

SEEN = {"vision": {"shift_static": 0.1, "shift_gripper": 0.1, "colour_jitter": 0.3}}
TRAIN = {"batch": 12, "steps": 4, "log_every": 1, "checkpoint_every": 2, "validate_every": 4, "ema": 0.9}
KILL = 3
"""Update at whose batch the last process is killed, or fails."""


def launch(count: int, function, *arguments, **environment: str) -> bool:
    """Run `function` in `count` processes; return whether all ended well."""
    os.environ.update(environment)

    def fresh(*some) -> None:
        # A process of its own would not have the agent's handlers.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        function(*some)

    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        port = some.getsockname()[1]
    # As `torchrun --master-port`. The other kind of rendezvous keeps a thread that resolves names, and a fork at such a
    # moment inherits the resolver's lock for good.
    where = {"rdzv_backend": "static", "rdzv_endpoint": f"127.0.0.1:{port}", "run_id": "tests"}
    static = {"rank": 0, "timeout": 300}
    config = LaunchConfig(1, 1, count, **where, rdzv_configs=static, max_restarts=0, start_method="fork")
    try:
        elastic_launch(config, fresh)(*arguments)
        return True
    except ChildFailedError:
        return False
    finally:
        for name in environment:
            del os.environ[name]


def settings(root: Path, name: str, **changes):
    given = {"pretrained": str(root / "pretrained"), "index": str(root / "index"), "replay_windows": 4}
    given |= {"train": TRAIN, "model": SEEN, "data": {"cache": str(root / "cache")}}
    return stages.finetuning(root, name, **stages.merged(given, changes))


def train(root: Path, name: str, changes: dict, die_at: int | None = None, fail_at: int | None = None) -> None:
    """One process of a run. The last process is killed, or fails, when it prepares the batch of an update."""
    draw = RobotData.batch_of

    def batch_of(self, step, *piece):
        if processes.rank() == processes.world() - 1:
            if step == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if step == fail_at:
                raise RuntimeError("a disk\nbroke")
        return draw(self, step, *piece)

    RobotData.batch_of = batch_of

    def run() -> None:
        finetune(settings(root, name, **changes), progress=False)

    code = processes.run_main(run, "error: ", "interrupted")
    if processes.world() > 1:
        sys.exit(code)
    RobotData.batch_of = draw


def train_on_few(root: Path) -> None:
    """One process of a run of stage 1 on a clip of two windows; another clip is held out."""
    data = {"stores": [str(root / "few")], "validation": 0.5}
    train = {"batch": 3, "steps": 2, "log_every": 1, "validate_every": 1, "precision": "bf16"}
    settings = stages.pretraining(root, output=str(root / "few run"), data=data, train=train)

    def run() -> None:
        pretrain(settings, progress=False)

    sys.exit(processes.run_main(run, "error: ", "interrupted"))


def training(root: Path) -> None:
    """Everything that test_distributed compares."""
    human_store(root / "human", tasks=2, per_task=3, steps=22)
    robot_store(root / "robot", tasks=2, per_task=4, steps=16, landmarks=True)
    human_store(root / "few", tasks=1, per_task=2, steps=7)
    pretrain(stages.pretraining(root, train={"steps": 1, "validate_every": 0}), progress=False)
    index = {"stores": [str(root / "human")], "checkpoint": str(root / "pretrained"), "output": str(root / "index")}
    build_index_stage(from_dict(IndexConfig, index), progress=False)
    done = {}
    halves = {"train": {"accumulate": 2}}
    train(root, "one", {})
    train(root, "one accumulated", halves)
    done["two"] = launch(2, train, root, "two", {})
    done["three"] = launch(3, train, root, "three", {})
    done["two killed"] = launch(2, train, root, "two again", {}, KILL)
    for name in ("two on one", "two on three"):
        shutil.copytree(root / "two again", root / name)
    done["two again"] = launch(2, train, root, "two again", {"resume": True})
    done["two on three"] = launch(3, train, root, "two on three", {"resume": True})
    train(root, "two on one", {"resume": True})
    done["sharded killed"] = launch(2, train, root, "sharded again", halves, KILL, ACCELERATE_USE_FSDP="true")
    shutil.copytree(root / "sharded again", root / "sharded on one")
    halves |= {"resume": True}
    done["sharded again"] = launch(2, train, root, "sharded again", halves, ACCELERATE_USE_FSDP="true")
    train(root, "sharded on one", halves)
    done["few"] = launch(3, train_on_few, root, ACCELERATE_USE_FSDP="true")
    sys.stderr.flush()
    kept, log = os.dup(2), os.open(root / "failed.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 2)
    done["failed"] = launch(3, train, root, "failed run", {}, None, KILL)
    os.dup2(kept, 2)
    (root / "done.json").write_text(json.dumps(done))


if __name__ == "__main__":
    training(Path(sys.argv[1]))
