"""Whether this machine computes what the official simulator does."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from arvrm import files, versions
from arvrm.doctor import reference
from arvrm.doctor.findings import Finding, Status
from arvrm.interface import SCENES, UserError

COMPARED = {"3.2.7", "3.2.8"}
"""PyBullet's versions with which all recordings were replayed to the bit."""
OFFICIAL = {"A": "77d9a227be144960", "B": "7ff3892fd55cc84d", "C": "6fcd27c3b62fd4dc", "D": "b4fd2c0d1885bda2"}
"""Hashes of the scenes' URDF and mesh files at calvin_env 797142c."""
_CHAINS = "sequences_1000.json"
_LARGEST = 1 << 26


def examine_machine(recordings: Sequence[str], calvin_root: str | None, most: int) -> Iterator[Finding]:
    """Look at versions, scene files, state, image, chains and renderers.

    Args:
        recordings: files (.npz), or folders that hold some, of the official simulator (`sim.verify`).
        calvin_root: an official checkout; None: environment variable CALVIN_ROOT.
        most: recordings to replay at most; scenes and images come first.
    """
    yield from _versions()
    official = yield from _scene_files(calvin_root)
    yield from _built_in()
    yield from _recordings(recordings, calvin_root, most, official)
    yield from _chains(recordings, calvin_root, official)
    yield from _renderers()


def _finding(about: str, status: Status, text: str) -> Finding:
    return Finding("machine", about, status, text)


def _versions() -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    names = ", ".join(f"{name} {versions.version(name) or 'missing'}" for name in ("numpy", "scipy", "pybullet"))
    here = f"Python {python}, {names}, {platform.system()} {platform.machine()}"
    found = versions.installed("pybullet")
    if not found:
        yield _finding("versions", "wrong", f"{here}: no PyBullet; install arvrm again")
    elif len(found) > 1:
        remedy = f"pip uninstall -y {' '.join(found)}, then install arvrm again"
        yield _finding("versions", "wrong", f"{here}: two PyBullets overwrite each other: {remedy}")
    elif not set(found.values()) <= COMPARED or (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        yield _finding("versions", "note", f"{here}: never compared with recordings here; what follows decides")
    else:
        yield _finding("versions", "good", f"{here}: PyBullet of a version that replayed every recording")


def _scene_files(calvin_root: str | None):
    """Yield a finding; return whether the official files are there."""
    from arvrm.sim.scene import scene_description

    try:
        found = {scene: scene_description(scene, "official", calvin_root).hash() for scene in SCENES}
    except UserError as error:
        yield _finding("scene files", "unknown", f"no official files: {error}")
        return False
    other = [scene for scene in SCENES if found[scene] != OFFICIAL[scene]]
    if other:
        text = f"scene {', '.join(other)}: other files than calvin_env 797142c's; check that commit out"
        yield _finding("scene files", "wrong", text)
    else:
        yield _finding("scene files", "good", "scenes A to D are those of calvin_env 797142c")
    return True


def _built_in() -> Iterator[Finding]:
    kept, here = reference.kept(), reference.measured()
    if here["assets"] != kept["assets"]:
        yield _finding(
            "built-in", "wrong", f"scene D's own files are {here['assets']}, not {kept['assets']}; install again"
        )
        return
    errors = [float(np.abs(np.subtract(here[name], kept[name])).max()) for name in ("robot_obs", "scene_obs")]
    images = [name for name in ("rgb_static", "rgb_gripper") if here[name] != kept[name]]
    if any(errors) or images:
        text = f"built-in scene D: state off by {max(errors):.2g}, images that differ: {', '.join(images) or 'none'}"
        yield _finding("built-in", "wrong", f"{text}; results here are not those of the reference machine")
    else:
        text = f"{reference.STEPS} actions in our scene D: state and images equal the reference's to the bit"
        yield _finding("built-in", "good", text)


def _found(recordings: Sequence[str]) -> list[Path]:
    found: list[Path] = []
    for place in map(Path, recordings):
        if place.is_dir():
            found += sorted(path for path in place.rglob("*.npz") if not path.name.startswith("."))
        else:
            found.append(place)
    return found


def _chosen(paths: list[Path], most: int) -> list[Path]:
    """The first `most`, those with images first, then spread over the rest."""
    pictured = [path for path in paths if path.with_name(f"{path.stem}_static.png").exists()]
    rest = [path for path in paths if path not in pictured]
    left = max(0, most - len(pictured))
    spread = np.unique(np.linspace(0, len(rest) - 1, min(left, len(rest))).astype(int)) if rest and left else []
    return [*pictured[:most], *(rest[place] for place in spread)]


def _recordings(recordings: Sequence[str], calvin_root: str | None, most: int, official: bool) -> Iterator[Finding]:
    from arvrm.sim.verify import verify_recording

    paths = _found(recordings)
    if not paths or not official:
        what = "no recordings of the official simulator" if not paths else "no official scene files"
        yield _finding("state, image", "unknown", f"{what}: name them, or set ARVRM_GOLDEN and CALVIN_ROOT")
        return
    chosen = _chosen(paths, most)
    results = [verify_recording(path, calvin_root) for path in chosen]
    many = f"{len(results)} of {len(paths)} recordings"
    for about, keys in (("state", ("robot_error", "scene_error")), ("image", ("rgb_error", "depth_error"))):
        errors = {r["file"]: max(r[key] or 0 for key in keys) for r in results if any(r[k] is not None for k in keys)}
        yield _compared(about, errors, many)
    decided = {r["file"]: float(False in (r["fired_equal"], r["tasks_equal"])) for r in results}
    yield _compared("decisions", decided, many)


def _compared(about: str, errors: dict[str, float], many: str) -> Finding:
    off = {name: error for name, error in errors.items() if error}
    if not errors:
        return _finding(about, "unknown", f"none of {many} holds any")
    if not off:
        return _finding(about, "good", f"{many}: {len(errors)} compared, all equal to the bit")
    worst = max(off, key=lambda name: off[name])
    text = f"{many}: {len(off)} of {len(errors)} differ, most {Path(worst).name} by {off[worst]:.2g}"
    return _finding(about, "wrong", f"{text}; this machine is not CALVIN's (`arvrm sim verify` has each)")


def _chains(recordings: Sequence[str], calvin_root: str | None, official: bool) -> Iterator[Finding]:
    from arvrm.evaluation import official_chains
    from arvrm.sim.chains import chain_start, generate_chains
    from arvrm.sim.scene import scene_description

    kept = official_chains()
    if generate_chains(len(kept)) != kept:
        yield _finding("chains", "wrong", "those drawn here are not CALVIN's 1000; NumPy's old generator differs?")
        return
    listed = [
        file for place in map(Path, recordings) for file in (place / _CHAINS, place.parent / _CHAINS) if file.is_file()
    ]
    if not listed:
        yield _finding("chains", "good", "the 1000 drawn here equal CALVIN's; no list of start states to compare with")
        return
    golden = json.loads(files.read_bytes(listed[0], "give the list of 1000 chains", _LARGEST))
    pairs = list(zip(golden, kept, strict=False))
    off = sum(tuple(a["tasks"]) != b.tasks or a["initial_state"] != b.initial_state for a, b in pairs)
    starts = "start states not compared (no official files)"
    if official:
        scene = scene_description("D", "official", calvin_root)
        off += sum(not np.array_equal(chain_start(b, scene)[1], a["scene_obs"]) for a, b in pairs)
        starts = "start states included"
    if off or len(golden) != len(kept):
        yield _finding("chains", "wrong", f"{off} of {len(pairs)} differ from {listed[0].name}; do not compare results")
    else:
        yield _finding("chains", "good", f"all {len(kept)} equal {listed[0].name}, {starts}")


def _renderers() -> Iterator[Finding]:
    from arvrm.sim.render import egl_problem

    problem = egl_problem()
    egl = "EGL works too, and draws another picture" if problem is None else f"EGL does not work here ({problem})"
    yield _finding("renderer", "good", f"tiny (the reference; used unless --renderer says otherwise); {egl}")


def usual_recordings() -> tuple[str, ...]:
    """Return the folder that the environment variable ARVRM_GOLDEN names, if it is there."""
    folder = os.environ.get("ARVRM_GOLDEN")
    return (folder,) if folder and Path(folder).is_dir() else ()
