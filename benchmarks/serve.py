"""What serving costs: answers a second, how long one takes, and memory, for so many sessions at once.

    python benchmarks/serve.py --checkpoint runs/policy             1, 2, 4, 8 and 16 sessions, 10 s each
    python benchmarks/serve.py                                      a small network with random weights
    python benchmarks/serve.py --sessions 16 --seconds 600          a soak: memory every tenth of the time

Each session asks again as soon as it is answered, so this is full load. CPU seconds are the server's own, all threads:
on a machine that others use they say more than the clock. A robot that acts 30 times a second and executes n actions of
an answer asks 30 / n times a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import websockets

from arvrm.remote import packed, unpacked
from arvrm.robots import CALVIN


def made_checkpoint(folder: Path) -> Path:
    """Write a small network of the demonstration's kind, with random weights."""
    import torch

    from arvrm.config import from_dict
    from arvrm.model.checkpoint import save_checkpoint
    from arvrm.model.config import ModelConfig
    from arvrm.model.metadata import CheckpointMetadata
    from arvrm.model.policy_net import PolicyNet

    torch.manual_seed(0)
    file = Path(__file__).parent.parent / "configs" / "playtable_finetune.json"
    settings = from_dict(ModelConfig, json.loads(file.read_text())["model"])
    vision = settings.vision
    images = {"rgb_static": vision.static_size, "rgb_gripper": vision.gripper_size}
    return save_checkpoint(folder, PolicyNet(settings, CALVIN), CheckpointMetadata("finetune", 1, 3, images))


def usage(process: int) -> tuple[float, float]:
    """Return a process's CPU seconds and its memory (MiB)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds, int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def session(address: str, until: float, times: list[float]) -> None:
    """One client, who asks until the time is over; every 500 answers it begins a new rollout."""
    async with websockets.connect(address, compression=None) as socket:
        own = unpacked(await socket.recv())["arvrm"]
        rng = np.random.default_rng()
        message = {f"observation/{name}": value for name, value in CALVIN.example(rng).items()}
        for name, size in own["spec"]["image_sizes"].items():
            message[f"observation/{name}"] = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        data = packed(message | {"prompt": "open the drawer"})
        while time.monotonic() < until:
            begin = time.perf_counter()
            await socket.send(data)
            answer = await socket.recv()
            assert isinstance(answer, bytes), answer
            times.append(time.perf_counter() - begin)
            if len(times) % 500 == 0:
                await socket.send(packed({"endpoint": "reset"}))
                await socket.recv()


async def load(address: str, sessions: int, seconds: float, process: int) -> dict[str, float]:
    """Load the server and return what that cost; memory is printed every tenth of the time if it is long."""
    times: list[float] = []
    before, _ = usage(process)
    begin = time.monotonic()
    clients = [asyncio.create_task(session(address, begin + seconds, times)) for _ in range(sessions)]
    if seconds >= 60:
        for part in range(10):
            await asyncio.sleep(max(0.0, begin + seconds * (part + 1) / 10 - time.monotonic()))
            memory = usage(process)[1]
            print(f"  {time.monotonic() - begin:5.0f} s: {len(times):8d} answers, {memory:.1f} MiB", flush=True)
    await asyncio.gather(*clients)
    spent, memory = usage(process)
    taken = 1000 * np.sort(times)
    return {
        "answers": len(times),
        "a_second": len(times) / (time.monotonic() - begin),
        "median_ms": float(np.median(taken)),
        "p99_ms": float(taken[int(0.99 * len(taken))]),
        "cpu_ms": 1000 * (spent - before) / len(times),
        "memory": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--batch", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = given.checkpoint or str(made_checkpoint(Path(folder) / "policy"))
        line = [sys.executable, "-m", "arvrm", "serve", "--checkpoint", checkpoint, "--port", "0"]
        server = subprocess.Popen([*line, "--batch", str(given.batch)], stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        asyncio.run(load(address, 1, 2.0, server.pid))
        print("sessions  answers/s  median ms  99 % ms  CPU ms an answer  answers a core and second  MiB")
        for sessions in given.sessions:
            found = asyncio.run(load(address, sessions, given.seconds, server.pid))
            print(
                f"{sessions:8d}  {found['a_second']:9.1f}  {found['median_ms']:9.1f}  {found['p99_ms']:7.1f}  "
                f"{found['cpu_ms']:16.2f}  {1000 / found['cpu_ms']:25.1f}  {found['memory']:.1f}",
                flush=True,
            )
        server.send_signal(signal.SIGTERM)
        server.wait(60)


if __name__ == "__main__":
    main()
