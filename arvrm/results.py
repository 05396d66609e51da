"""Outcome records of rollouts, their statistics, and the results file that reports and comparisons read.

Two files per evaluation: a log beside the output (one line per finished chain, synced to disk, so that a killed run
loses nothing), and the results file itself, which appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from arvrm import files, versions
from arvrm.config import bounded, check_bounds, from_dict
from arvrm.interface import TASKS, UserError

FORMAT = "arvrm-results-1"
LOG_FORMAT = "arvrm-chain-log-1"
BOOTSTRAP_SAMPLES = 10_000
RESULTS = files.json_kind("a results file", FORMAT)


_DAMAGED = "give a file written by `arvrm evaluate`, or evaluate again"


@dataclass(frozen=True)
class ChainRecord:
    """What became of one chain.

    Attributes:
        index: place in the list of chains.
        tasks: all tasks of the chain, attempted or not.
        completed: how many succeeded in a row from the first; a chain ends at its first failure.
        steps: control steps of every attempted task, the failed one included.
        crashed: None, or one line on what crashed (simulator or policy); counted as a failure, reported apart.
        film: file name of the chain's film, if one was kept.
        notes: what the policy says of it (`interface.Policy`): text -> how often.
    """

    index: int
    tasks: tuple[str, ...]
    completed: int
    steps: tuple[int, ...]
    crashed: str | None = None
    film: str | None = None
    notes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.index < 0 or not self.tasks or not 0 <= self.completed <= len(self.tasks):
            raise ValueError(
                f"chain {self.index} says that {self.completed} of its {len(self.tasks)} tasks succeeded; "
                "a chain has a number from 0, and tasks, of which 0 to all succeed"
            )
        if any(steps < 0 for steps in self.steps):
            raise ValueError(f"chain {self.index} has tasks of less than 0 steps")

    @property
    def attempted(self) -> tuple[str, ...]:
        """The tasks that were started: those that succeeded and, if the chain broke, the one it broke at."""
        return self.tasks[: min(self.completed + 1, len(self.tasks))]


@dataclass(frozen=True, kw_only=True)
class _Line(ChainRecord):
    """A line of the log: a chain, and what `ChainLog.append` got with it."""

    seconds: float = bounded(0.0, least=0)
    cost: dict[str, float] = field(default_factory=dict)
    world: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_bounds(self)
        super().__post_init__()

    @property
    def record(self) -> ChainRecord:
        return ChainRecord(**{one.name: getattr(self, one.name) for one in fields(ChainRecord)})


@dataclass(frozen=True)
class _Head:
    """The log's first line."""

    format: Literal["arvrm-chain-log-1"]
    fingerprint: dict[str, Any]


@dataclass(frozen=True)
class _Count:
    success: int = bounded(0, least=0)
    total: int = bounded(0, least=0)

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.success > self.total:
            raise ValueError(f"{self.success} successes of {self.total}")


@dataclass(frozen=True)
class _Config:
    """What is read of a results file's configuration."""

    further_keys: ClassVar[bool] = True
    policy: str | None = None
    world: str | None = None
    scene: str | None = None
    assets: str | None = None
    layouts: int = bounded(0, least=0)
    instructions: str | None = None
    camera_shift: dict[str, Any] | None = None
    lighting: dict[str, Any] | None = None
    block_colours: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Results:
    """What is read of a results file; `summarize` says what most of it means."""

    further_keys: ClassVar[bool] = True
    average_length: float
    average_length_ci95: tuple[float, float]
    success_rates: tuple[float, ...]
    per_task: dict[str, _Count]
    chains: tuple[ChainRecord, ...]
    config: _Config
    versions: dict[str, Any]
    success_rates_ci95: tuple[tuple[float, float], ...] | None = None
    crashed: int = bounded(0, least=0)
    seconds: float = bounded(0.0, least=0)
    chains_per_hour: float | None = bounded(None, least=0)
    time_share: dict[str, float] | None = None
    films: tuple[str, ...] = ()
    policy_identity: dict[str, Any] | None = None
    planning: dict[str, float | None] | None = None
    stage_seconds: dict[str, float] | None = None
    notes: dict[str, int] | None = None

    def __post_init__(self) -> None:
        check_bounds(self)
        longest = max((len(chain.tasks) for chain in self.chains), default=0)
        if len(self.success_rates) != longest:
            raise ValueError(f"success_rates has {len(self.success_rates)} rates, the longest chain {longest} tasks")
        if self.success_rates_ci95 is not None and len(self.success_rates_ci95) != longest:
            raise ValueError(f"success_rates_ci95 has {len(self.success_rates_ci95)} intervals for {longest} rates")
        rates = [*self.success_rates, *(end for pair in self.success_rates_ci95 or () for end in pair)]
        if not all(0 <= rate <= 1 for rate in rates):
            raise ValueError("success_rates and their intervals are numbers from 0 to 1")
        if not 0 <= self.average_length <= longest:
            raise ValueError(f"average_length is {self.average_length}, of chains of {longest} tasks")
        if len({chain.index for chain in self.chains}) < len(self.chains):
            raise ValueError("two chains have one index")


class ChainLog:
    """The log of finished chains: a header line, then one JSON line per chain, each synced before `append` returns.

    Args:
        path: the log file.
        fingerprint: what must agree between the run that began the log and one that resumes it.
        resume: go on with an existing log; a torn last line (a kill during a write) is dropped.
        overwrite: begin anew.
    Raises:
        UserError: the log exists and neither is set, or its fingerprint differs.
    """

    def __init__(self, path: str | Path, fingerprint: dict[str, Any], resume: bool = False, overwrite: bool = False):
        self.path = Path(path)
        self.records: dict[int, ChainRecord] = {}
        self.seconds = 0.0
        """Wall-clock seconds that earlier runs of this log had spent when they wrote their last line."""
        self.cost: dict[str, float] = {}
        """Seconds by kind of work, summed over the logged chains."""
        self.world: dict[str, Any] = {}
        """What the world said of itself when the last chain was logged; empty in logs from before that was kept."""
        self._fingerprint = fingerprint = json.loads(json.dumps(fingerprint))
        if self.path.exists() and not (resume or overwrite):
            raise UserError(f"{self.path}: exists; pass --resume to go on with it or --overwrite to begin anew")
        with contextlib.ExitStack() as held:
            if files.holds(self.path):
                raise UserError(f"{self.path}: this process is writing it; let it end first")
            held.enter_context(files.locked(self.path))
            with files.reporting(self.path, None):
                self._file = held.enter_context(open(self.path, "ab", buffering=0))
            keep = self._check_kind() if overwrite else self._read(fingerprint)
            with files.reporting(self.path, None):
                self._file.truncate(keep)
            if not keep:
                self._write({"format": LOG_FORMAT, "fingerprint": fingerprint})
            self._held = held.pop_all()

    def append(
        self,
        record: ChainRecord,
        seconds: float,
        cost: dict[str, float] | None = None,
        world: dict[str, Any] | None = None,
    ) -> None:
        """Add one finished chain.

        Args:
            seconds: wall-clock time spent so far, earlier runs included.
            cost: seconds by kind of work.
            world: what the world says of itself; written where it is news.
        """
        if record.index in self.records:
            raise ValueError(f"{self.path}: chain {record.index} is logged already")
        news = {"world": world} if world and world != self.world else {}
        written = {name: value for name, value in asdict(record).items() if value != {}}
        self._write({**written, "seconds": round(seconds, 3), "cost": cost or {}, **news})
        self._add(record, seconds, cost or {}, world or {})

    def absorb(self, path: Path) -> None:
        """Take over the chains of another log of this run that are not here yet, and delete it.

        Raises:
            UserError: it is of another run, damaged, or still being written.
        """
        with ChainLog(path, self._fingerprint, resume=True):
            for number, line in enumerate(path.read_bytes().splitlines()[1:], 2):
                record, seconds, cost, world = _parsed(line, path, number)
                if record.index not in self.records:
                    self.append(record, max(self.seconds, seconds), cost, world)
            path.unlink()

    def close(self) -> None:
        self._held.close()

    def __enter__(self) -> ChainLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_kind(self) -> int:
        """Return 0 bytes to keep of a log that is begun anew, if it is one, whole or torn."""
        expected = json.dumps({"format": LOG_FORMAT})[:-1].encode()
        with open(self.path, "rb") as stream:
            start = stream.read(len(expected))
        if not expected.startswith(start):
            raise UserError(f"{self.path}: is not a chain log, so it is not overwritten; choose another --output")
        return 0

    def _add(self, record: ChainRecord, seconds: float, cost: dict[str, float], world: dict[str, Any]) -> None:
        self.records[record.index] = record
        self.seconds = seconds
        self.world = world or self.world
        for kind, value in cost.items():
            self.cost[kind] = self.cost.get(kind, 0.0) + value

    def _write(self, line: dict[str, Any]) -> None:
        content = json.dumps(line).encode() + b"\n"
        with files.reporting(self.path, None):
            while content:
                content = content[self._file.write(content) :]
            os.fsync(self._file.fileno())

    def _read(self, fingerprint: dict[str, Any]) -> int:
        """Fill `records`; return the number of bytes that hold whole lines."""
        content = self.path.read_bytes()
        keep = content.rfind(b"\n") + 1
        lines = content[:keep].splitlines()
        if not lines:
            return 0
        begun = from_dict(_Head, _object(lines[0], self.path, 1), f"{self.path}:1").fingerprint
        for key in sorted(fingerprint.keys() | begun.keys()):
            old, new = begun.get(key), fingerprint.get(key)
            if old != new:
                remedy = "resume with the same or pass --overwrite"
                raise UserError(f"{self.path}: begun with {key} = {old!r}, now {new!r}; {remedy}")
        for number, line in enumerate(lines[1:], 2):
            self._add(*_parsed(line, self.path, number))
        return keep


def _parsed(line: bytes, path: Path, number: int) -> tuple[ChainRecord, float, dict[str, float], dict[str, Any]]:
    """Return a line's chain, seconds, cost and, where it says so, world."""
    found = from_dict(_Line, _object(line, path, number), f"{path}:{number}")
    return found.record, found.seconds, found.cost, found.world


def _object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}:{number}: damaged ({error}); pass --overwrite to begin anew") from error


def bootstrap_interval(values: Sequence[float], seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`; the same values and seed give the same interval.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, section 13.3.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        return (0.0, 0.0)
    rng = np.random.default_rng(seed)
    means = np.array([data[rng.integers(0, data.size, data.size)].mean() for _ in range(BOOTSTRAP_SAMPLES)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson_interval(success: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a rate. Source: Wilson, JASA 22 (1927) 209. (0, 1) where nothing was tried."""
    if total == 0:
        return (0.0, 1.0)
    rate = success / total
    centre = (rate + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * np.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total))
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def summarize(records: Iterable[ChainRecord], seed: int = 0) -> dict[str, Any]:
    """Statistics of the chains, in order of index.

    Returns:
        average_length: mean number of tasks completed in a row; average_length_ci95: its bootstrap interval.
        success_rates: share of chains with at least 1, 2, ... tasks in a row; success_rates_ci95: Wilson intervals.
        per_task: {task: {success, total}} over attempted tasks, in the order of `interface.TASKS`.
        crashed: number of chains that ended in a crash.
        notes: what the policy said of all chains together: text -> how often; absent where it said nothing.
        chains: the records.
    """
    ordered = sorted(records, key=lambda record: record.index)
    lengths = [record.completed for record in ordered]
    longest = max((len(record.tasks) for record in ordered), default=0)
    counts: dict[str, list[int]] = {}
    for record in ordered:
        for place, task in enumerate(record.attempted):
            count = counts.setdefault(task, [0, 0])
            count[0] += place < record.completed
            count[1] += 1
    known = [task for task in TASKS if task in counts] + sorted(counts.keys() - set(TASKS))
    reached = [sum(length >= k for length in lengths) for k in range(1, longest + 1)]
    chains = []
    for record in ordered:
        entry = {key: value for key, value in asdict(record).items() if value not in (None, {})}
        chains.append({key: list(value) if isinstance(value, tuple) else value for key, value in entry.items()})
    notes: Counter[str] = Counter()
    for record in ordered:
        notes.update(record.notes)
    return {
        **({"notes": dict(sorted(notes.items()))} if notes else {}),
        "average_length": float(np.mean(lengths)) if lengths else 0.0,
        "average_length_ci95": list(bootstrap_interval(lengths, seed)),
        "success_rates": [count / len(lengths) for count in reached],
        "success_rates_ci95": [list(wilson_interval(count, len(lengths))) for count in reached],
        "per_task": {task: {"success": counts[task][0], "total": counts[task][1]} for task in known},
        "crashed": sum(record.crashed is not None for record in ordered),
        "chains": chains,
    }


def save_results(path: str | Path, results: dict[str, Any]) -> Path:
    """Write the results file whole or not at all."""
    files.write_json(path, {"format": FORMAT, **results})
    return Path(path)


def load_results(path: str | Path) -> dict[str, Any]:
    """Read a results file.

    Raises:
        UserError: missing, no JSON, of another format, or with a value that no results file has.
    """
    results = files.read_json(path, _DAMAGED)
    if results.get("format") != FORMAT:
        raise UserError(f"{path}: format {str(results.get('format'))[:80]!r}, expected {FORMAT!r}; {_DAMAGED}")
    from_dict(_Results, results, str(path))
    return results


def table(results: dict[str, Any]) -> str:
    """The results as text: the chain curve, then one line per task, weakest first."""
    config, rates = results["config"], results["success_rates"]
    low, high = results["average_length_ci95"]
    count = len(results["chains"])
    single = len(rates) == 1
    what = "single tasks" if single else "chains"
    where = config.get("world") or f"scene {config.get('scene')} ({config.get('assets')})"
    lines = [f"{config.get('policy', 'policy')} in {where}: {count} {what}"]
    if changed := scene_changes(config):
        lines.append(f"  scene changed     {changed}")
    if not single:
        lines.append("  tasks in a row    " + "".join(f"{k:>7d}" for k in range(1, len(rates) + 1)))
        lines.append("  success rate      " + "".join(f"{rate:>7.3f}" for rate in rates))
        average = f"{results['average_length']:>7.2f} of {len(rates)}"
        lines.append(f"  average length    {average}   (95 % interval {low:.2f} to {high:.2f})")
    else:
        lines.append(f"  success rate      {rates[0]:>7.3f}   (95 % interval {low:.3f} to {high:.3f})")
    if results.get("crashed"):
        lines.append(f"  crashed           {results['crashed']:>7d}   (counted as failures)")
    for text, times in results.get("notes", {}).items():
        lines.append(f"  policy            {times:>7d}   times: {text}")
    if results.get("chains_per_hour"):
        lines.append(f"  speed             {results['chains_per_hour']:>7.0f} {what} an hour")
    lines.append("  task                          success  of")
    ordered = sorted(results["per_task"].items(), key=lambda item: item[1]["success"] / max(1, item[1]["total"]))
    for task, count in ordered:
        share = 100 * count["success"] / max(1, count["total"])
        lines.append(f"  {task:<30s}{count['success']:>6d}{count['total']:>5d}{share:>6.0f} %")
    return "\n".join(lines)


def scene_changes(config: dict[str, Any]) -> str:
    """What a results file's configuration changed of the scene (layouts and robustness switches), "" if nothing."""
    changes = [f"{config['layouts']} varied layouts"] if config.get("layouts") else []
    for name in ("camera_shift", "lighting", "block_colours"):
        values = config.get(name) or {}
        if any(value for key, value in values.items() if key != "seed"):
            changes += [f"{name}.{key}={json.dumps(value)}" for key, value in values.items() if value is not None]
    return ", ".join(changes)


def environment_versions() -> dict[str, Any]:
    """Versions, commit and hardware of this run; nothing that names a user or a path."""
    values: dict[str, Any] = {"python": platform.python_version()}
    values |= {module: versions.version(module) for module in ("arvrm", "torch", "pybullet", "numpy")}
    return values | {"commit": source_commit(), "hardware": hardware()}


def source_commit() -> str | None:
    """The commit of the source tree this package runs from ("+changes" if tracked files differ), None outside git."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        run = ["git", "-C", str(root)]
        commit = subprocess.run([*run, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run([*run, "diff", "--quiet", "HEAD", "--", "arvrm"], capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("+changes" if changed.returncode else "")


def hardware() -> str:
    """One line on the machine: processor, usable cores, memory, GPU if torch is loaded and has one."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [name, f"{cores} cores"]
    try:
        parts.append(f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB")
    except (ValueError, OSError, AttributeError):
        pass
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name(0))
    return ", ".join(parts)
