"""Generates, converts and evaluates on a local Ray cluster of three nodes, one of which is killed: equal to the byte?

    pip install 'arvrm[ray]'
    python benchmarks/ray_cluster.py [--output runs/ray_cluster]

Each verb runs as a command, first with local processes, then with `--engine ray`; while it works, the node with most of
its workers is killed. Prints a row each: seconds, what was killed, and whether the results are equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))


def verbs(folder: Path, episodes: int, clips: int, chains: int) -> dict[str, tuple[list[str], str]]:
    """Return name -> (arguments without output and engine, what is compared of the output)."""
    from fake_hands import hand_video

    videos = folder / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    for number in range(clips):
        if not (videos / f"push_block_{number}.mp4").exists():
            hand_video(videos / f"push_block_{number}.mp4", frames=120, width=640, height=480)
    convert = [
        "convert",
        "human",
        "--source",
        "folder",
        "--input",
        str(videos),
        "--detector",
        "fake_hands:BlobDetector",
    ]
    return {
        "generate": (["generate", "--scenes", "D", "--episodes", str(episodes), "--variations", "4"], "data.mdb"),
        "convert human": ([*convert, "--image-size", "96"], "data.mdb"),
        "evaluate": (["evaluate", "--policy", "expert", "--chains", str(chains), "--workers", "3"], "chains"),
    }


def compared(output: Path, what: str) -> str:
    """Return a hash of what must be equal."""
    if what == "chains":
        content = json.dumps(json.loads(output.read_text())["chains"]).encode()
    else:
        content = (output / what).read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]


def command(arguments: list[str], output: Path, engine: str, address: str = "") -> subprocess.Popen:
    root = Path(__file__).resolve().parents[1]
    paths = os.pathsep.join([str(root), str(root / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | (
        {"RAY_ADDRESS": address} if address else {}
    )
    line = [sys.executable, "-m", "arvrm", *arguments, "--output", str(output), "--engine", engine, "--overwrite"]
    return subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def busiest(cluster: Any) -> tuple[Any, int]:
    """Return the node, but the head, with most of our tasks under way, and how many those are."""
    nodes = [node for node in cluster.worker_nodes if node is not cluster.head_node]
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in nodes}
    counts = dict.fromkeys(raylets, 0)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            title = (folder / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue  # it has just ended
        if parent in counts and title.startswith((b"ray::_do", b"ray::_host")):
            counts[parent] += 1
    best = max(counts, key=lambda raylet: counts[raylet])
    return raylets[best], counts[best]


def started() -> Any:
    """Return a cluster of three nodes with a core each; a busy machine may need several tries."""
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own is 15: beside other work its workers hardly run
    cluster = Cluster()
    options = {"num_cpus": 1, "object_store_memory": 100 << 20}
    for number in range(3):
        for left in (3, 2, 1, 0):
            try:
                cluster.add_node(**options, **({"include_dashboard": False} if number == 0 else {}))
                break
            except Exception:  # Ray gives a node 30 s to start
                if not left:
                    raise
    cluster.wait_for_nodes()
    return cluster


def run(folder: Path, episodes: int = 24, clips: int = 12, chains: int = 12, only: tuple[str, ...] = ()) -> bool:
    """Print the table; return whether all was equal."""
    good = True
    print("verb           local s   ray s   killed                          equal")
    for name, (arguments, what) in verbs(folder, episodes, clips, chains).items():
        if only and name not in only:
            continue
        results = {}
        suffix = ".json" if what == "chains" else ""
        begin = time.monotonic()
        local = folder / f"{name.split()[0]}_local{suffix}"
        process = command(arguments, local, "local")
        _, errors = process.communicate()
        if process.returncode:
            raise SystemExit(errors)
        seconds = [time.monotonic() - begin]
        results["local"] = compared(local, what)
        cluster = started()
        begin = time.monotonic()
        output = folder / f"{name.split()[0]}_ray{suffix}"
        process = command(arguments, output, "ray", cluster.address)
        count, node = 0, None
        while not count and process.poll() is None:
            time.sleep(1)
            node, count = busiest(cluster)
        killed = "nothing: it had ended"
        if count:
            time.sleep(2)  # into the work
            cluster.remove_node(node, allow_graceful=False)
            killed = f"a node of 3, {count} task{'s' if count > 1 else ''}, after {time.monotonic() - begin:.0f} s"
        _, errors = process.communicate()
        seconds.append(time.monotonic() - begin)
        cluster.shutdown()
        if process.returncode:
            raise SystemExit(f"{name}: exit code {process.returncode}\n{errors}")
        results["ray"] = compared(output, what)
        equal = results["ray"] == results["local"]
        good = good and equal and bool(count)
        print(f"{name:14} {seconds[0]:7.0f} {seconds[1]:7.0f}   {killed:31} {'yes' if equal else 'NO'}", flush=True)
    return good


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/ray_cluster"))
    parser.add_argument("--only", nargs="*", default=())
    for name, default in (("--episodes", 24), ("--clips", 12), ("--chains", 12)):
        parser.add_argument(name, type=int, default=default)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    sys.exit(not run(given.output, given.episodes, given.clips, given.chains, tuple(given.only)))
