"""Seconds per control step of a rollout: encoding the new frame only, against encoding the whole window again.

    python benchmarks/rollout.py                       a small ViT, seconds
    python benchmarks/rollout.py --size paper --batch 1 --threads 2

"window" re-encodes all frames but asks for the last frame's actions only; "original" also computes every frame's
actions and images, as the published code does at each step. Weights are random: they do not change the time. Two rounds
alternate the three, and the better one counts, since other processes disturb.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from arvrm.interface import Observation, PlanRequest
from arvrm.model.checkpoint import Checkpoint
from arvrm.model.config import ModelConfig, VisionConfig
from arvrm.model.metadata import CheckpointMetadata
from arvrm.model.policy_net import PolicyNet
from arvrm.model.published.config import PublishedConfig
from arvrm.model.published.forward import predict
from arvrm.model.transformer import compile_blocks
from arvrm.policy import CheckpointPolicy
from arvrm.robots.calvin import CALVIN

PAPER_VIT = {"layer_norm_eps": 1e-6}
SMALL_VIT = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 768}


def config(size: str, fwd_pred: bool = True) -> ModelConfig:
    """The published network; "small" has a quarter of the ViT's width and a third of all layers."""
    paper = size == "paper"
    backbone = PAPER_VIT if paper else SMALL_VIT
    vision = VisionConfig("mae", backbone=backbone, frozen=True, film=False)
    return ModelConfig(
        vision=vision,
        width=384 if paper else 96,
        layers=12 if paper else 4,
        heads=12 if paper else 3,
        max_frames=10,
        latents=9,
        resampler_layers=3 if paper else 1,
        resampler_head_width=128 if paper else 32,
        fwd_pred=fwd_pred,
        published=PublishedConfig(text_pooling="attention", positions=1024, image_decoder_heads=16 if paper else 3),
    )


def policy(size: str, batch: int, device: str, cache: bool) -> CheckpointPolicy:
    torch.manual_seed(0)
    settings = config(size)
    net = PolicyNet(settings, CALVIN).to(device).eval()
    metadata = CheckpointMetadata("finetune", 10, 1, {"rgb_static": 200, "rgb_gripper": 84}, execute_steps=1)
    # The trial whether rows agree is for results, not for time; it would take longer than the measurement.
    made = CheckpointPolicy(Checkpoint(net, settings, CALVIN, metadata), device, batch=1, cache=cache)
    made.spec = type(made.spec)(**{**vars(made.spec), "batch": batch})
    return made


class Frames:
    """Random observations of `batch` rollouts, the same for every policy."""

    def __init__(self, batch: int, steps: int) -> None:
        rng = np.random.default_rng(0)
        self.batch = batch
        self.frames = [[self._frame(rng) for _ in range(steps)] for _ in range(batch)]

    def _frame(self, rng: np.random.Generator) -> Observation:
        state = np.concatenate([rng.uniform(-1, 1, 14), [1.0]])
        sizes = {"rgb_static": 200, "rgb_gripper": 84}
        images = {name: rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for name, size in sizes.items()}
        return Observation({"robot_obs": state, "target_pose": state[:6]}, images)

    def requests(self, step: int) -> list[PlanRequest]:
        return [
            PlanRequest("open the drawer", tuple(frames[max(0, step + o)] for o in range(-9, 1)), number, step)
            for number, frames in enumerate(self.frames)
        ]


def seconds(run, steps: range, device: str) -> float:
    """Mean seconds of run(step)."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for step in steps:
        run(step)
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / len(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "paper"), default="small")
    parser.add_argument("--batch", type=int, default=1, help="rollouts planned for at once")
    parser.add_argument("--steps", type=int, default=3, help="control steps a measurement")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="compile the blocks of all three")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rounds = 2
    first = 12  # windows are full from step 9
    frames = Frames(options.batch, first + rounds * options.steps)
    cached = policy(options.size, options.batch, options.device, True)
    plain = policy(options.size, options.batch, options.device, False)
    if options.compile:
        for some in (cached, plain):
            compile_blocks(some.net)

    def original(step: int) -> None:
        predict(plain.net, plain.batch(frames.requests(step)), images=True)

    def encode(step: int) -> None:
        cached.cache.clear()
        newest = [PlanRequest(r.instruction, r.history, r.rollout, 0) for r in frames.requests(step)]
        cached._tokens(cached.cache, newest, options.batch)

    for step in range(first - 10, first):
        cached.plan(frames.requests(step))
    both = [policy_.plan(frames.requests(first - 1)) for policy_ in (cached, plain)]
    difference = float(np.abs(np.array(both[0]) - np.array(both[1])).max())
    runs = {
        "new frame only": lambda step: cached.plan(frames.requests(step)),
        "window": lambda step: plain.plan(frames.requests(step)),
        "original": original,
    }
    original(first - 1)  # all shapes have been seen, and compiled for, before the clock starts
    best = dict.fromkeys(runs, float("inf"))
    for number in range(rounds):
        steps = range(first + number * options.steps, first + (number + 1) * options.steps)
        for name, run in runs.items():
            best[name] = min(best[name], seconds(run, steps, options.device))
    of_images = seconds(encode, range(first, first + options.steps), options.device)
    how = "compiled" if options.compile else "eager"
    print(f"{options.size}, batch {options.batch}, {options.threads} threads, {options.device}, {how}, fp32")
    for name, value in best.items():
        print(f"{name:16} {1000 * value:9.1f} ms a control step  x{value / best['new frame only']:.2f}")
    print(f"of the first: two images a rollout {1000 * of_images:.1f} ms, the rest is the transformer")
    print(f"largest difference of actions, cached against window: {difference:.1e}")


if __name__ == "__main__":
    main()
