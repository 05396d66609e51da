"""A store in words."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from arvrm.episodes.records import OWN_KEYS
from arvrm.episodes.store import EpisodeStore
from arvrm.robots.described import lines as robot_lines
from arvrm.robots.described import read_description


def inspect_store(path: str | Path) -> str:
    """Describe a store in a text; raises UserError where it cannot be read."""
    store = EpisodeStore(path)
    manifest = store.manifest
    headers = list(store.headers())
    bytes_on_disk = sum(file.stat().st_size for file in store.path.iterdir())
    steps = np.array([header.steps for header in headers])
    frames = sum(header.frames for header in headers)
    jpeg = manifest["jpeg"]
    lines = [
        f"{store.path}: {len(store)} episodes, {steps.sum()} steps, {frames} frames per camera, "
        f"{bytes_on_disk / 2**20:.1f} MiB" + ("" if manifest["complete"] else ", NOT complete (resume it)"),
        f"format {manifest['format']} {manifest['version']}, JPEG quality {jpeg['quality']}, {jpeg['subsampling']}",
    ]
    if store.robot_name:
        lines.append(f"robot: {store.robot_name}")
    if "robot_description" in manifest:
        described = read_description(manifest["robot_description"], str(store.path))
        lines += [f"  {line}" for line in robot_lines(described)]
    lines += [
        f"{key}: {_shorten(value)}" for key, value in manifest.items() if key not in {*OWN_KEYS, "robot_description"}
    ]
    if headers:
        seconds = sum(header.steps / header.fps for header in headers)
        spread = f"{steps.min()} to {steps.max()}, median {np.median(steps):g}"
        lines.append(f"steps per episode: {spread}; {seconds / 60:.1f} minutes in all")
        sizes = Counter((c, f"{h}x{w}") for header in headers for c, (h, w) in header.cameras.items())
        lines += [f"{camera}: {size} px ({count} episodes)" for (camera, size), count in sorted(sizes.items())]
        arrays = Counter((name, dtype, shape[1:]) for h in headers for name, (dtype, shape) in h.arrays.items())
        lines += [f"array {n}: {d} {('N', *s)} ({count} episodes)" for (n, d, s), count in sorted(arrays.items())]
        lines.append(f"instructions: {len({header.instruction for header in headers})} different")
    if any(header.embodiment == "human" for header in headers):
        scales = Counter(header.depth_scale for header in headers if header.embodiment == "human")
        told = ", ".join(f"{scale} {count}" for scale, count in sorted(scales.items()))
        lines.append(f"depth of keypoints (docs/hands.md): {told}")
    for name in ("embodiment", "source", "scene", "task"):
        counts = Counter(getattr(header, name) or "(none)" for header in headers)
        lines.append(f"{name}: " + ", ".join(f"{value} {count}" for value, count in sorted(counts.items())))
    return "\n".join(lines)


def _shorten(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 400 else text[:397] + "..."
