"""Training windows per second: frames encoded once for all windows of a segment, against 20 images a window.

    python benchmarks/train_speed.py                                  a small ViT, seconds
    python benchmarks/train_speed.py --size paper --windows 10 --alone 2 --repeats 1       a few minutes of CPU
    python benchmarks/train_speed.py --size paper --windows 200 --repeats 5 --compile      on a GPU

Three ways to the same losses: "each window" encodes 10 frames of two cameras for every window, "segments" encodes a
frame once for all windows that contain it (data.segment_windows), "features" reads what a frozen encoder gave before
training (data.frozen_features, without augmentation). A step is forward, backward, clipping and AdamW on random weights
and images, which take the time of real ones; reading and decoding images is not in it. The part table times each part's
forward and backward alone, on what it gets in a step of "segments". On a CPU, seconds are those of the process, which
others disturb less than the clock on the wall.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from rollout import PAPER_VIT, SMALL_VIT, config
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from arvrm.model.config import ModelConfig
from arvrm.model.policy_net import PolicyNet
from arvrm.model.transformer import attention_kernel, compile_blocks
from arvrm.robots.calvin import CALVIN
from arvrm.training.loop import to_device
from arvrm.training.optimizer import parameter_groups

PARTS = {
    "ViT": ("vlm.static_encoder",),
    "resampler": ("static_tokens", "gripper_tokens"),
    "transformer": ("vlm.transformer",),
    "image heads": ("image_heads.0",),
}
FRAMES, AHEAD = 10, 3


def windows(settings: ModelConfig, count: int) -> dict[str, Any]:
    """All of `count` windows but their images."""
    g = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(*shape, generator=g) - 1

    shape = (count, FRAMES)
    return {
        "text": uniform(count, 1, settings.text.width),
        "text_mask": torch.ones(count, 1, dtype=torch.bool),
        "state": uniform(*shape, CALVIN.state_size),
        "components": uniform(*shape, 7),
        "frame_mask": torch.ones(shape, dtype=torch.bool),
        "actions": uniform(*shape, settings.chunk, 7),
        "action_mask": torch.ones(*shape, settings.chunk, dtype=torch.bool),
        "next_image_mask": torch.ones(shape, dtype=torch.bool),
        "clips": None,
    }


def images(*shape: int) -> dict[str, Tensor]:
    """Random images of both cameras in CALVIN's sizes."""
    g = torch.Generator().manual_seed(1)
    sizes = {"static": 200, "gripper": 84}
    return {
        name: torch.randint(0, 256, (*shape, size, size, 3), dtype=torch.uint8, generator=g)
        for name, size in sizes.items()
    }


def batch_of(way: str, settings: ModelConfig, count: int, segment: int, net: PolicyNet) -> dict[str, Any]:
    """One batch of `count` windows, in segments of `segment` except for the way "each window"."""
    batch = windows(settings, count)
    if way == "each window":
        later = {f"next_{name}": value for name, value in images(count, FRAMES).items()}
        return batch | images(count, FRAMES) | (later if settings.fwd_pred else {})
    groups, read = count // segment, segment + FRAMES - 1
    if way == "segments":
        return batch | {"segments": images(groups, read + (AHEAD if settings.fwd_pred else 0))}
    encoder = net.vlm.static_encoder
    kept = torch.randn(groups, read, 1 + encoder.patches, encoder.width).half()
    seen = images(groups, read) if settings.fwd_pred else {}
    return batch | {"segments": {"static_features": kept, "gripper_features": kept.clone(), **seen}}


class Clock:
    """Seconds and memory on one device."""

    def __init__(self, device: str, lower: bool) -> None:
        self.device, self.lower = device, lower

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], Any], repeats: int) -> float:
        best, now = float("inf"), time.perf_counter if self.device == "cuda" else time.process_time
        for _ in range(repeats):
            self.wait()
            start = now()
            run()
            self.wait()
            best = min(best, now() - start)
        return best

    def forget_peak(self) -> None:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            return
        try:
            with open("/proc/self/clear_refs", "w") as stream:
                stream.write("5")  # the peak begins anew, Linux
        except OSError:
            pass

    def peak(self) -> float:
        """GB; on a CPU of the whole process."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() / 1e9
        try:
            with open("/proc/self/status") as stream:
                lines = dict(line.split(":", 1) for line in stream if ":" in line)
            return int(lines["VmHWM"].split()[0]) / 1e6
        except (OSError, KeyError):
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.lower)


def one_step(net: PolicyNet, batch: dict, clock: Clock, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]

    def step() -> None:
        with clock.autocast():
            loss = net(batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def part_seconds(net: PolicyNet, batch: dict, clock: Clock, repeats: int) -> dict[str, float]:
    """Seconds of each part's forward and backward, on the inputs of one step."""
    calls: dict[str, list[tuple[nn.Module, tuple]]] = {part: [] for part in PARTS}
    handles = []
    for part, names in PARTS.items():
        for name in names:
            try:
                module = net.get_submodule(name)
            except AttributeError:
                continue

            def note(module: nn.Module, inputs: tuple, part: str = part) -> None:
                calls[part].append((module, inputs))

            handles.append(module.register_forward_pre_hook(note))
    with clock.autocast():
        net(batch)
    for handle in handles:
        handle.remove()

    def repeat(module: nn.Module, inputs: tuple) -> None:
        given = [
            x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) and x.is_floating_point() else x
            for x in inputs
        ]
        frozen = not any(parameter.requires_grad for parameter in module.parameters())
        with clock.autocast(), torch.set_grad_enabled(not frozen):
            out = module(*given)
        if not frozen:
            out.sum().backward()

    found = {}
    for part, some in calls.items():
        found[part] = sum(clock.seconds(lambda c=c: repeat(*c), repeats) for c in some)
    net.zero_grad(set_to_none=True)
    return found


def part_flops(counter: FlopCounterMode) -> dict[str, float]:
    """FLOPs of each part, backward included."""
    by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    return {part: sum(by_module.get(f"PolicyNet.{name}", 0) for name in names) for part, names in PARTS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "paper"), default="small")
    parser.add_argument("--windows", type=int, default=20, help="windows a step")
    parser.add_argument("--alone", type=int, help="windows a step where each has its own images; default: as many")
    parser.add_argument("--segment", type=int, default=10, help="windows of a segment")
    parser.add_argument("--heads", choices=("on", "off", "both"), default="both", help="image-prediction heads")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--attention", choices=("auto", "sdpa", "plain"), default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--repeats", type=int, default=2, help="steps measured after the first; the best counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    if given.windows % given.segment:
        parser.error(f"--windows {given.windows} is no multiple of --segment {given.segment}")
    torch.set_num_threads(given.threads)
    clock = Clock(given.device, given.precision == "bf16")
    vit = PAPER_VIT if given.size == "paper" else SMALL_VIT
    where = torch.cuda.get_device_name() if given.device == "cuda" else f"CPU, {given.threads} threads"
    how = "compiled" if given.compile else "eager"
    print(
        f"{given.size} size, {given.windows} windows a step, segments of {given.segment}; {where}, {given.precision},"
    )
    print(f"attention {given.attention}, {how}; ViT {vit}")
    for heads in ("on", "off") if given.heads == "both" else (given.heads,):
        settings = config(given.size, fwd_pred=heads == "on")
        torch.manual_seed(0)
        net = PolicyNet(settings, CALVIN).to(given.device).train()
        if given.compile:
            compile_blocks(net)
        optimizer = torch.optim.AdamW(parameter_groups(net, 1e-4), lr=1e-5, fused=True)
        print(f"\nimage-prediction heads {heads}")
        print(f"{'':12} windows/s  against    GFLOP a window  against   peak GB")
        base: tuple[float, float] | None = None
        with attention_kernel(given.attention, net):
            for way in ("each window", "segments", "features"):
                count = given.alone or given.windows if way == "each window" else given.windows
                batch = to_device(batch_of(way, settings, count, given.segment, net), torch.device(given.device))
                step = one_step(net, batch, clock, optimizer)
                clock.forget_peak()
                # The first step warms up, and its operators are counted.
                with FlopCounterMode(display=False, depth=6) as counter:
                    step()
                rate = count / clock.seconds(step, given.repeats)
                work = counter.get_total_flops() / count / 1e9
                base = base or (rate, work)
                print(
                    f"{way:12} {rate:9.2f}  x{rate / base[0]:.2f}   {work:12.1f}  x{base[1] / work:.2f}  "
                    f"{clock.peak():8.2f}",
                    flush=True,
                )
                if way == "segments":
                    total = given.windows / rate
                    parts, flops = part_seconds(net, batch, clock, given.repeats), part_flops(counter)
                del batch, step
        every = sum(flops.values())
        print("of a step with segments:  time   FLOPs")
        for part, value in parts.items():
            print(f"  {part:20} {100 * value / total:6.0f} %  {100 * flops[part] / every:5.0f} %")
        rest = total - sum(parts.values())
        print(f"  {'rest':20} {100 * rest / total:6.0f} %  (images, small layers, losses, optimiser)")


if __name__ == "__main__":
    main()
