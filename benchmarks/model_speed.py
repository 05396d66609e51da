"""Windows per second of both stages (forward, backward, AdamW) and plans per second, on random data.

    python benchmarks/model_speed.py --threads 2

Prints one line per case: best and median wall-clock rate, and the CPU-seconds a window costs, which other processes
disturb less.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from arvrm.model.config import ModelConfig
from arvrm.model.keypoint_vlm import KeypointVLM
from arvrm.model.policy_net import PolicyNet
from arvrm.robots.calvin import CALVIN


def human(config: ModelConfig, batch: int, frames: int) -> dict:
    """Random clips of stage 1."""
    size, keypoints = config.vision.static_size, config.keypoints
    return {
        "text": torch.randn(batch, 10, config.text.width),
        "text_mask": torch.ones(batch, 10, dtype=torch.bool),
        "static": torch.randint(0, 256, (batch, frames, size, size, 3), dtype=torch.uint8),
        "keypoints": torch.randn(batch, frames, keypoints, 3),
        "visible": torch.rand(batch, frames, keypoints) > 0.1,
        "next_keypoints": torch.randn(batch, keypoints, 3),
        "next_visible": torch.rand(batch, keypoints) > 0.1,
        "frame_mask": torch.ones(batch, frames, dtype=torch.bool),
    }


def robot(config: ModelConfig, batch: int, frames: int, clips: int) -> dict:
    """Random windows of stage 2."""
    result = {name: value for name, value in human(config, batch, frames).items() if "keyp" not in name}
    size, landmarks = config.vision.gripper_size, config.vision.landmarks
    result |= {
        "gripper": torch.randint(0, 256, (batch, frames, size, size, 3), dtype=torch.uint8),
        "state": torch.randn(batch, frames, CALVIN.state_size),
        "components": torch.randn(batch, frames, 7),
        "actions": torch.rand(batch, frames, config.chunk, 7) * 2 - 1,
        "action_mask": torch.ones(batch, frames, config.chunk, dtype=torch.bool),
        "next_components": torch.randn(batch, frames, 7),
        "next_mask": torch.ones(batch, frames, dtype=torch.bool),
        "landmark_pixels": torch.rand(batch, frames, landmarks, 2) * 2 - 1,
        "landmark_mask": torch.ones(batch, frames, landmarks, dtype=torch.bool),
        "clips": None,
    }
    if clips:
        flat = human(config, batch * clips, frames)
        result["clips"] = {name: value.unflatten(0, (batch, clips)) for name, value in flat.items()}
    return result


def measure(name: str, step: Callable[[], None], windows: int, repeats: int) -> None:
    """Time `step`, which handles `windows`, and print a line."""
    for _ in range(2):
        step()
    wall, cpu = [], []
    for _ in range(repeats):
        start, busy = time.perf_counter(), time.process_time()
        step()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - busy)
    wall.sort()
    print(
        f"{name:44s} best {windows / wall[0]:7.0f}/s   median {windows / wall[len(wall) // 2]:7.0f}/s   "
        f"{1000 * min(cpu) / windows:6.2f} CPU-ms each",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--precision", choices=("bf16", "fp32"), nargs="*", default=["bf16", "fp32"])
    parser.add_argument("--only", default="", help="cases whose name contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    base = ModelConfig()
    base = dataclasses.replace(base, loss=dataclasses.replace(base.loss, localisation=0.1))
    last = dataclasses.replace(base, query_frames="last")
    cases = [
        ("stage 1, T=2", KeypointVLM, base, 2, 0),
        ("stage 1, T=8", KeypointVLM, base, 8, 0),
        ("stage 2, T=1", PolicyNet, base, 1, 0),
        ("stage 2, T=2", PolicyNet, base, 2, 0),
        ("stage 2, T=2, last", PolicyNet, last, 2, 0),
        ("stage 2, T=2, last, one", PolicyNet, dataclasses.replace(last, action_queries="one"), 2, 0),
        ("stage 2, T=2, last, 2 clips replayed", PolicyNet, last, 2, 2),
    ]
    for name, kind, config, frames, clips in cases:
        if arguments.only not in name:
            continue
        model = kind(config) if kind is KeypointVLM else kind(config, CALVIN)
        batch = human(config, arguments.batch, frames) if kind is KeypointVLM else robot(
            config, arguments.batch, frames, clips
        )  # fmt: skip
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
        with FlopCounterMode(display=False) as counter:
            model(batch)
        million = counter.get_total_flops() / arguments.batch / 1e6
        size = sum(p.numel() for p in model.parameters()) / 1e6
        print(f"-- {name}: {size:.2f} M parameters, {million:.0f} MFLOP a window forward")
        for precision in arguments.precision:

            def step(lower=precision == "bf16", model=model, batch=batch, optimizer=optimizer):
                with torch.autocast("cpu", torch.bfloat16, enabled=lower):
                    loss = model(batch)["loss"]
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            measure(f"{name}, {precision}", step, arguments.batch, arguments.repeats)
    if arguments.only in "act":
        model = PolicyNet(base, CALVIN).eval()
        for rows in (1, 4, 16):
            batch = robot(base, rows, 2, 0)
            measure(f"act, T=2, batch {rows}", lambda batch=batch: model.act(batch), rows, 20)


if __name__ == "__main__":
    main()
