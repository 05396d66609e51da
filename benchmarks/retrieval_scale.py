"""Retrieval over very many clips: time to build the index, bytes, latency of a query, recall against an exact search.

    python benchmarks/retrieval_scale.py                              50,000 clips, a minute
    python benchmarks/retrieval_scale.py --clips 800000               as many as GR-1 was pretrained on: 3 GB of disk
    python benchmarks/retrieval_scale.py --clips 800000 --text 512 --image 768        CLIP and a ViT-B/16: 14 GB

Features are synthetic, of the widths of our small encoders or of those given, and of `--frames` frames a clip:

    clustered   a clip shows one of clips / 400 scenes and one of 500 actions (scene, action and the action's sentence
                are random directions, the scenes' of a spectrum that falls like 1/i), moves along the action's
                direction, and differs by noise of its own (0.5 of the scene's length) and of each frame (0.3)
    unclustered every clip is a direction of its own, of the same spectrum, with half as much noise of each frame
    isotropic   the same without a spectrum: what no method can shorten, given for comparison

Queries are drawn like the clips and are not among them. The index is what `arvrm index` writes, but for the encoders.
Its features are drawn while it is built; the time for that is given apart. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arvrm.config import load
from arvrm.retrieval import ClipIndex, Clips, SearchConfig, write_index
from arvrm.retrieval.shortlist import load_faiss
from arvrm.windows import Names

ACTIONS, BLOCK = 500, 2000


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


class Features:
    """Draws clips."""

    def __init__(self, kind: str, frames: int, clips: int, text: int, image: int) -> None:
        self.kind, self.frames, scenes = kind, frames, max(20, clips // 400)
        self.widths = text, image
        rng = np.random.default_rng(0)
        falling = kind != "isotropic"
        self.image_scale, self.text_scale = (
            (np.arange(1, n + 1, dtype=np.float32) ** -0.5 if falling else np.ones(n, np.float32))
            for n in (image, text)
        )
        self.scenes = unit(rng.standard_normal((scenes, image), dtype=np.float32) * self.image_scale)
        self.actions = unit(rng.standard_normal((ACTIONS, image), dtype=np.float32))
        self.words = unit(rng.standard_normal((ACTIONS, text), dtype=np.float32))

    def text(self, seed: int, count: int) -> np.ndarray:
        """Return (count, E) float32 of unit length."""
        width = self.widths[0]
        own = np.random.default_rng([2, seed]).standard_normal((count, width), dtype=np.float32)
        if self.kind == "clustered":
            return unit(self.words[self._kinds(seed, count)[1]] + 0.5 / width**0.5 * own)
        return unit(own * self.text_scale)

    def images(self, seed: int, count: int) -> np.ndarray:
        """Return (count, F, D) float32 of unit length."""
        rng, width = np.random.default_rng([3, seed]), self.widths[1]
        own = rng.standard_normal((count, 1, width), dtype=np.float32)
        noise = rng.standard_normal((count, self.frames, width), dtype=np.float32)
        if self.kind == "clustered":
            scene, action = self._kinds(seed, count)
            along = np.linspace(-0.5, 0.5, self.frames, dtype=np.float32)[None, :, None]
            noise *= 0.3 / width**0.5
            noise += self.scenes[scene][:, None] + 0.5 / width**0.5 * own
            noise += along * self.actions[action][:, None]
        else:
            noise *= 0.5
            noise += own
            noise *= self.image_scale
        return unit(noise)

    def _kinds(self, seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([4, seed])
        return rng.integers(len(self.scenes), size=count), rng.integers(ACTIONS, size=count)


class Memory:
    """Watches the process: `anonymous` is what it needs, `mapped` are pages of files, which can be given up."""

    def __init__(self) -> None:
        self.peak = {"RssAnon": 0.0, "RssFile": 0.0}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @staticmethod
    def now() -> dict[str, float]:
        lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
        return {words[0][:-1]: int(words[1]) / 1024 for words in lines if words[0] in ("RssAnon:", "RssFile:")}

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            for name, value in self.now().items():
                self.peak[name] = max(self.peak[name], value)

    def take(self) -> dict[str, int]:
        """Return the peaks since the last call, MiB."""
        found = {"anonymous_mib": round(self.peak["RssAnon"]), "mapped_mib": round(self.peak["RssFile"])}
        self.peak = {"RssAnon": 0.0, "RssFile": 0.0}
        return found


def build(folder: Path, features: Features, clips: int, search: SearchConfig) -> dict[str, float]:
    """Write an index; return the seconds it took, those for drawing its features apart."""
    drawing = 0.0

    def drawn(draw: Any) -> Iterator[np.ndarray]:
        nonlocal drawing
        for number, start in enumerate(range(0, clips, BLOCK)):
            begin = time.perf_counter()
            block = draw(number, min(BLOCK, clips - start))
            drawing += time.perf_counter() - begin
            yield block

    codes = np.zeros(clips, np.int32)
    described = Clips(
        Names.of(f"clip-{number:07d}" for number in range(clips)),
        *((Names.of([name]), codes) for name in ("a sentence", "a task", "a group")),
        codes,
        np.full(clips, features.frames, np.int64),
    )
    frames = (block.astype(np.float16).reshape(-1, features.widths[1]) for block in drawn(features.images))
    (folder / "encoder.safetensors").write_bytes(b"")
    begin, busy = time.perf_counter(), time.process_time()
    write_index(folder, {"encoders": {"hash": "none"}, "stores": []}, described, drawn(features.text), frames, search)
    seconds = time.perf_counter() - begin
    busy = time.process_time() - busy
    return {"build_s": round(seconds - drawing, 1), "drawing_s": round(drawing, 1), "cpu_s": round(busy, 1)}


def measure(index: ClipIndex, features: Features, frames: int, queries: int) -> dict[str, float]:
    """Return recall@10 and latency of queries of `frames` frames."""
    text, images = features.text(10**6, queries), features.images(10**6, queries)
    images = unit(images[:, np.round(np.linspace(0, features.frames - 1, frames)).astype(int)])
    begin = time.perf_counter()
    truth = index.exact(text, images, 10)
    exact = time.perf_counter() - begin
    for query in range(min(10, queries)):  # faiss and torch start their threads
        index.search(text[query], images[query], 10)
    found, seconds, busy = [], [], time.process_time()
    for query in range(queries):
        begin = time.perf_counter()
        matches = index.search(text[query], images[query], 10)
        seconds.append(time.perf_counter() - begin)
        found.append(matches.rows[0])
    busy = time.process_time() - busy
    begin = time.perf_counter()
    index.search(text, images, 10)
    together = time.perf_counter() - begin
    recall = np.mean([len(set(a.tolist()) & set(b.tolist())) / 10 for a, b in zip(truth, found, strict=True)])
    times = np.sort(seconds) * 1e3
    return {
        "frames": frames,
        "recall_at_10": round(float(recall), 4),
        "ms_mean": round(float(times.mean()), 2),
        "cpu_ms_mean": round(busy / queries * 1e3, 2),
        "ms_median": round(float(np.median(times)), 2),
        "ms_95": round(float(times[int(0.95 * len(times))]), 2),
        "ms_of_many": round(together / queries * 1e3, 2),
        "exact_ms_of_many": round(exact / queries * 1e3, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=50_000)
    parser.add_argument("--frames", type=int, default=10, help="stored frames of a clip")
    parser.add_argument("--text", type=int, default=256, help="width of the sentences' features")
    parser.add_argument("--image", type=int, default=128, help="width of the frames' features")
    parser.add_argument("--kind", choices=["clustered", "unclustered", "isotropic"], default="clustered")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--query-frames", type=int, nargs="+", default=[8, 2], help="T of the queries")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the index is made and left; default: made and removed")
    parser.add_argument("--reuse", action="store_true", help="measure the index that is in --folder")
    parser.add_argument("search", nargs="*", help="of SearchConfig, such as probes=100")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    load_faiss().omp_set_num_threads(given.threads)
    features, memory = Features(given.kind, given.frames, given.clips, given.text, given.image), Memory()
    search = load(SearchConfig, None, ["kind=approximate", *given.search])
    result: dict[str, Any] = {"kind": given.kind, "clips": given.clips, "clip_frames": given.frames}
    result["widths"] = features.widths
    result["threads"] = given.threads
    with tempfile.TemporaryDirectory() as other:
        folder = given.folder or Path(other)
        folder.mkdir(parents=True, exist_ok=True)
        if not given.reuse:
            result |= build(folder, features, given.clips, search)
            result["build_peak"] = memory.take()
        before = memory.now()
        begin = time.perf_counter()
        index = ClipIndex.load(folder)
        result["load_s"] = round(time.perf_counter() - begin, 2)
        result["loaded_anonymous_mib"] = round(memory.now()["RssAnon"] - before["RssAnon"])
        result["disk_mib"] = {f.name: round(f.stat().st_size / 2**20, 1) for f in sorted(folder.iterdir())}
        result["search"] = index.settings
        memory.take()
        result["queries"] = [measure(index, features, frames, given.queries) for frames in given.query_frames]
        result["query_peak"] = memory.take()
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
