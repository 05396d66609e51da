"""What an update costs, and how much of it is the loop's: CPU time, so that a busy machine does not matter much.

python benchmarks/training.py --store ROBOT_STORE [--precision bf16] [--updates 12] [section.key=value ...]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from arvrm.config import load
from arvrm.model.policy_net import PolicyNet
from arvrm.robots.calvin import CALVIN
from arvrm.training import FinetuneConfig, RobotData
from arvrm.training.loop import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    fixed = [
        "output=unused",
        f'data.stores=["{given.store}"]',
        f"train.precision={given.precision}",
        f"train.steps={given.updates}",
        "train.log_every=4",
        "train.validate_every=0",
        "train.checkpoint_every=0",
        "train.device=cpu",
    ]
    config = load(FinetuneConfig, None, fixed + given.overrides)
    spent = {"batch": 0.0, "network": 0.0}

    def timed(name: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            begin = time.process_time()
            result = function(*arguments, **options)
            spent[name] += time.process_time() - begin
            return result

        return call

    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = PolicyNet(config.model, CALVIN)
        data = RobotData(config, model)
        trainer = Trainer(model, timed("batch", data.batch_of), config.train, Path(folder), save=lambda *_: None)
        trainer.model.forward = timed("network", trainer.model.forward)
        trainer.accelerator.backward = timed("network", trainer.accelerator.backward)
        trainer.optimizer.step = timed("network", trainer.optimizer.step)
        begin, begin_wall = time.process_time(), time.perf_counter()
        trainer.run(progress=False)
        total, wall = time.process_time() - begin, time.perf_counter() - begin_wall
    windows = config.train.batch * given.updates
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{parameters:.2f} M parameters, {given.precision}, {len(data.windows.table)} episodes")
    print(f"forward, backward, optimiser: {spent['network'] / given.updates * 1e3:.0f} ms of CPU an update")
    print(f"batch of {config.train.batch}: {spent['batch'] / given.updates * 1e3:.1f} ms")
    print(f"loop over the bare network, batches included: {100 * (total / spent['network'] - 1):.1f} %")
    print(f"{windows / total:.0f} windows per CPU second, {windows / wall:.0f} per second")


if __name__ == "__main__":
    main()
