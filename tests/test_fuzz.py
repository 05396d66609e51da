"""Every door, tried with files and flags that nobody means: the outcome is success or one line, and in time.

`python tests/test_fuzz.py 500` tries each door with so many cases and prints what it found, door by door.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import io
import json
import os
import shutil
import sys
import tempfile
import traceback
import typing
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import FLAGS, TooSlow, arrays_of, at_most, bytes_of, json_of, lines_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_batches import SMALL
from PIL import Image
from small_stores import human_store, robot_store

from arvrm import cli, instructions, processes
from arvrm.config import without_default
from arvrm.episodes import EpisodeStore
from arvrm.interface import KEYPOINTS, TASKS
from arvrm.model.checkpoint import load_checkpoint, save_checkpoint
from arvrm.model.keypoint_vlm import KeypointVLM
from arvrm.model.metadata import CheckpointMetadata
from arvrm.model.policy_net import PolicyNet
from arvrm.results import ChainLog, ChainRecord, load_results, save_results, summarize, table
from arvrm.retrieval import ClipIndex, build_index
from arvrm.retrieval.index import checksum
from arvrm.robots.calvin import CALVIN, COMPONENTS
from arvrm.sim.chains import load_chains
from arvrm.sources.splits import FewShotRecipe, load_manifest, make_manifest, save_manifest
from arvrm.training.index_stage import frozen_encoders
from arvrm.windows import EpisodeTable, decode_frames, headers

CASES = int(os.environ.get("ARVRM_FUZZ_CASES", "10"))
SECONDS = 20.0
CHAIN = ("open_drawer", "turn_on_led", "close_drawer", "turn_off_led", "lift_red_block_table")
FINGERPRINT = {"policy": "expert", "seed": 0}


@dataclass(frozen=True)
class Door:
    """One way in.

    Attributes:
        file: what is damaged, within the made folder.
        damage: how: bytes, json, lines or arrays.
        enter: called with a copy of the folder that holds the damaged file.
        needs: what of the folder is copied.
    """

    file: str
    damage: str
    enter: Callable[[Path], object]
    needs: tuple[str, ...]


def quietly(*words: str | Path) -> int:
    """Run a verb as the command line does; return its exit code."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return cli.run([str(word) for word in words])


def _report(folder: Path, *more: str | Path) -> int:
    return quietly("report", folder / "r.json", "--output", folder / "page.html", "--overwrite", *more)


def _results(folder: Path) -> None:
    print(table(load_results(folder / "r.json")), file=io.StringIO())
    _report(folder)


def _log(folder: Path) -> None:
    with ChainLog(folder / "log.chains.jsonl", FINGERPRINT, resume=True) as log:
        summarize(log.records.values())
        assert all(0 <= record.completed <= len(record.tasks) for record in log.records.values())


def _resume(folder: Path) -> int:
    return quietly("pretrain", "--output", folder / "run", "--resume")


def _index(folder: Path) -> None:
    index = ClipIndex.load(folder / "index")
    rng = np.random.default_rng(0)
    texts, frames = rng.normal(size=(2, index.text.shape[1])), rng.normal(size=(2, 2, index.frames.shape[1]))
    found = index.search(texts, frames, 3)
    assert np.isfinite(found.total[found.rows >= 0]).all()
    list(index.instructions), list(index.tasks), list(index.groups), list(index.ids), index.encoders  # noqa: B018


def _sealed_index(folder: Path) -> None:
    """The same, with checksums that are right: whoever made the file made it so."""
    place = folder / "index" / "index.json"
    values = json.loads(place.read_text())
    for name in values["files"]:
        if (folder / "index" / name).exists():
            values["files"][name] = {"sha256": checksum(folder / "index" / name)}
    place.write_text(json.dumps(values))
    _index(folder)


def _headers(folder: Path) -> None:
    before, headers._KEPT_FROM = headers._KEPT_FROM, 1
    try:
        store = EpisodeStore(folder / "human")
        name = folder / "cache" / "headers.npz"
        real = headers.StoreHeaders._load
        headers.StoreHeaders._load = classmethod(lambda cls, file: real(name))
        try:
            table = EpisodeTable([store], "human", 3, folder / "cache")
            for number in range(len(table)):
                assert table.header(number).id in store
        finally:
            headers.StoreHeaders._load = real
    finally:
        headers._KEPT_FROM = before


def _frames(folder: Path) -> None:
    cached = folder / "cache" / "frames.npy"
    table = EpisodeTable([EpisodeStore(folder / "human")], "human", 3)
    name = cached.name
    bank = decode_frames(table, "rgb_static", cache=folder / "named")
    del bank
    (folder / "named" / next((folder / "named").glob("*.npy")).name).write_bytes(cached.read_bytes())
    bank = decode_frames(table, "rgb_static", cache=folder / "named")
    assert bank.take(np.arange(3)).shape == (3, 32, 32, 3) and bank.parts[0].dtype == np.uint8, name


def _store(folder: Path) -> None:
    quietly("inspect", folder / "human", "--no-contact-sheet")
    store = EpisodeStore(folder / "human")
    store.verify()
    for id in store.ids:
        store.episode(id)


DOORS = {
    "results": Door("r.json", "json", _results, ("r.json",)),
    "results, damaged": Door("r.json", "bytes", _results, ("r.json",)),
    "chain log": Door("log.chains.jsonl", "lines", _log, ("log.chains.jsonl",)),
    "run.json, shown": Door("run/run.json", "json", lambda f: _report(f, "--run", f / "run"), ("r.json", "run")),
    "run.json, resumed": Door("run/run.json", "json", _resume, ("run",)),
    "run.json, damaged": Door("run/run.json", "bytes", lambda f: _report(f, "--run", f / "run"), ("r.json", "run")),
    "metrics": Door("run/metrics.jsonl", "lines", lambda f: _report(f, "--run", f / "run"), ("r.json", "run")),
    "exhibits": Door(
        "exhibits/exhibits.json", "json", lambda f: _report(f, "--exhibits", f / "exhibits"), ("r.json", "exhibits")
    ),
    "checkpoint, settings": Door("policy/config.json", "json", lambda f: load_checkpoint(f / "policy"), ("policy",)),
    "checkpoint, statistics": Door(
        "policy/statistics.json", "json", lambda f: load_checkpoint(f / "policy"), ("policy",)
    ),
    "checkpoint, damaged": Door("policy/config.json", "bytes", lambda f: load_checkpoint(f / "policy"), ("policy",)),
    "checkpoint, weights": Door("hands/model.safetensors", "bytes", lambda f: load_checkpoint(f / "hands"), ("hands",)),
    "index.json": Door("index/index.json", "json", _index, ("index",)),
    "index.json, damaged": Door("index/index.json", "bytes", _index, ("index",)),
    "index, clips": Door("index/clips.npz", "arrays", _sealed_index, ("index",)),
    "index, clips damaged": Door("index/clips.npz", "bytes", _sealed_index, ("index",)),
    "index, features": Door("index/frames.npy", "bytes", _sealed_index, ("index",)),
    "index, encoder": Door("index/encoder.safetensors", "bytes", _sealed_index, ("index",)),
    "headers' cache": Door("cache/headers.npz", "arrays", _headers, ("cache", "human")),
    "headers' cache, damaged": Door("cache/headers.npz", "bytes", _headers, ("cache", "human")),
    "frames' cache": Door("cache/frames.npy", "bytes", _frames, ("cache", "human")),
    "chain file": Door("chains.json", "json", lambda f: load_chains(f / "chains.json"), ("chains.json",)),
    "chain file, damaged": Door("chains.json", "bytes", lambda f: load_chains(f / "chains.json"), ("chains.json",)),
    "instruction file": Door(
        "said.json", "json", lambda f: instructions.load_instruction_file(str(f / "said.json")), ("said.json",)
    ),
    "instruction file, damaged": Door(
        "said.json", "bytes", lambda f: instructions.load_instruction_file(str(f / "said.json")), ("said.json",)
    ),
    "few-shot manifest": Door(
        "few.json", "json", lambda f: load_manifest(f / "few.json", EpisodeStore(f / "robot")), ("few.json", "robot")
    ),
    "few-shot manifest, damaged": Door("few.json", "bytes", lambda f: load_manifest(f / "few.json"), ("few.json",)),
    "configuration": Door(
        "config.json", "json", lambda f: _shown("finetune", "--config", f / "config.json"), ("config.json",)
    ),
    "configuration, damaged": Door(
        "config.json", "bytes", lambda f: _shown("finetune", "--config", f / "config.json"), ("config.json",)
    ),
    "demo's settings": Door("demo.json", "json", lambda f: _demo_settings(f / "demo.json"), ("demo.json",)),
    "store": Door("human/data.mdb", "bytes", _store, ("human",)),
}


def _shown(*words: str | Path) -> None:
    with contextlib.suppress(SystemExit):
        quietly(*words, "--show-config")


def _demo_settings(file: Path) -> None:
    from arvrm.demo import DemoConfig, load_settings

    load_settings(DemoConfig(settings=str(file)))


def make(folder: Path) -> Path:
    """Make one valid file of each kind."""
    robots = robot_store(folder / "robot")
    humans = human_store(folder / "human")
    records = [ChainRecord(i, CHAIN, done, (10,) * min(5, done + 1)) for i, done in enumerate((5, 2, 0))]
    values = {"policy": "checkpoint", "scene": "D", "assets": "builtin", "instructions": "validation", "seed": 3}
    versions = {"python": "3.11", "torch": "2.13", "commit": "c0ffee", "hardware": "a machine"}
    more = {"seconds": 60.0, "chains_per_hour": 10.0, "time_share": {"plan": 0.5}, "policy_identity": {"hash": "ab"},
            "films": [],
            "planning": {"plans": 3, "mean_batch": 1.0, "ms_per_plan": 2.0}, "stage_seconds": {"a": 1.0}}  # fmt: skip
    save_results(folder / "r.json", summarize(records) | {"config": values, "versions": versions} | more)
    with ChainLog(folder / "log.chains.jsonl", FINGERPRINT) as log:
        for record in records:
            log.append(record, 1.5, {"plan": 0.5}, {"renderer": "tiny"})
    torch.manual_seed(0)
    hands = CheckpointMetadata("pretrain", history=4, stride=3, images={"rgb_static": 32})
    plans = CheckpointMetadata("finetune", history=2, stride=3, images={"rgb_static": 32, "rgb_gripper": 32})
    save_checkpoint(folder / "hands", KeypointVLM(SMALL), hands)
    save_checkpoint(folder / "policy", PolicyNet(SMALL, CALVIN), plans)
    build_index([humans], frozen_encoders(folder / "hands"), folder / "index")
    run = folder / "run"
    run.mkdir()
    lines = [
        {"step": s, "split": split, "loss": 1 / s, "seconds": 1.0} for s in (1, 5) for split in ("train", "validation")
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = cli.VERBS["pretrain"].settings(["--output", "run"])
    from arvrm.config import to_dict

    (run / "run.json").write_text(json.dumps({"stage": "pretrain", "robot": None, "config": to_dict(config)}))
    (folder / "exhibits").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "exhibits" / "a.png")
    clip = {"id": "h", "instruction": "pull", "task": "open_drawer", "scene": "A", "language": 0.5, "visual": 0.9}
    query = {"instruction": "open", "task": "open_drawer", "scene": "B", "picture": "a.png"}
    weights = np.full((len(COMPONENTS), len(KEYPOINTS)), 1 / 21).tolist()
    described = {
        "components": list(COMPONENTS), "keypoints": list(KEYPOINTS),
        "retrieval": [{**query, "clips": [{**clip, "picture": "a.png"}]}],
        "map": {"kind": "global", "rows": "softmax", "alpha": 0.5, "weights": weights,
                "by_sentence": {"open": weights}},
    }  # fmt: skip
    (folder / "exhibits" / "exhibits.json").write_text(json.dumps(described))
    before, headers._KEPT_FROM = headers._KEPT_FROM, 1
    made = EpisodeTable([humans], "human", 3, folder / "cache")
    headers._KEPT_FROM = before
    decode_frames(made, "rgb_static", cache=folder / "cache")
    for pattern, name in (("headers-*.npz", "headers.npz"), ("*rgb_static*.npy", "frames.npy")):
        next((folder / "cache").glob(pattern)).rename(folder / "cache" / name)
    from arvrm.evaluation.jobs import official_chains
    from arvrm.sim.chains import save_chains

    save_chains(official_chains()[:2], folder / "chains.json")
    (folder / "said.json").write_text(json.dumps({task: [f"do {task}", "go"] for task in TASKS}))
    save_manifest(make_manifest(robots, FewShotRecipe(0.5)), folder / "few.json")
    config = cli.VERBS["finetune"].settings(["--output", "run"])
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    from importlib import resources

    (folder / "demo.json").write_bytes(resources.files("arvrm").joinpath("resources/demo_fast.json").read_bytes())
    for store in (robots, humans):
        store.close()
    return folder


def strategy(door: Door, made: Path) -> st.SearchStrategy:
    file = made / door.file
    if door.damage == "json":
        return json_of(json.loads(file.read_bytes()))
    if door.damage == "arrays":
        return arrays_of(file)
    return (lines_of if door.damage == "lines" else bytes_of)(file.read_bytes())


def outcome_of(work: Callable[[], object]) -> str:
    """Do it as the command line does, and return "passed" or "refused": whatever else comes of it is a fault."""
    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            code = processes.run_main(lambda: work() and None, "arvrm: ", "interrupted")
        except SystemExit as error:
            assert not error.code
    lines = said.getvalue().strip().splitlines()
    assert code == 0 or (code == 2 and lines and lines[-1].startswith("arvrm: ") and len(lines[-1]) < 2100), lines
    return "refused" if code else "passed"


def _settle(verb: cli.Verb, words: list[str]) -> None:
    found = verb.settings(words)
    if verb.name not in NOT_RUN:
        verb.run(found)


def entered(door: Door, made: Path, damaged: bytes | dict) -> str:
    """Enter by the door with the damaged file; return "passed" or "refused"."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for need in door.needs:
            (shutil.copytree if (made / need).is_dir() else shutil.copy)(made / need, folder / need)
        if isinstance(damaged, dict):
            np.savez(folder / door.file, **damaged)
        else:
            (folder / door.file).write_bytes(damaged)
        try:
            with at_most(SECONDS):
                return outcome_of(lambda: door.enter(folder))
        finally:
            gc.collect()  # a table of episodes holds itself, and with it an open store


quick = settings(
    max_examples=CASES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made"))


@pytest.mark.slow
@pytest.mark.parametrize("name", DOORS)
def test_a_damaged_file_is_read_or_refused_in_one_line(made, name):
    door = DOORS[name]

    @quick
    @given(damaged=strategy(door, made))
    def tried(damaged):
        entered(door, made, damaged)

    tried()


NOT_RUN = ("demo", "study", "generate", "evaluate", "hands fetch-model", "sim verify", "sim doctor")
"""Verbs that do real work, or ask the network, without any input."""


def flags_of(verb: cli.Verb) -> st.SearchStrategy:
    """Draw words: what a verb needs, and flags and settings of it and of its sections with hostile values."""
    names, needed = [], []
    hints = typing.get_type_hints(verb.kind)
    for field in dataclasses.fields(verb.kind):
        kind = hints[field.name]
        inside = [k for k in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(k)]
        names += [f"{field.name}.{inner.name}" for k in inside for inner in dataclasses.fields(k)]
        names.append(field.name)
        if field.name in without_default(verb.kind):
            some = "folder" if field.name == "source" else f"no/{field.name}"
            needed.append(f"{field.name}={json.dumps([some] if typing.get_origin(kind) is tuple else some)}")
    if verb.name == "few-shot":
        needed.append("check=no/manifest")
    value = st.sampled_from(FLAGS)
    word = st.one_of(
        st.tuples(st.sampled_from(names), value).map(lambda pair: [f"{pair[0]}={pair[1]}"]),
        st.tuples(st.sampled_from(names), value).map(lambda pair: ["--" + pair[0].replace("_", "-"), pair[1]]),
        value.map(lambda text: [text]),
        st.sampled_from(["/dev/zero", "/dev/null", "/", "/nowhere"]).map(lambda file: ["--config", file]),
    )
    return st.lists(word, min_size=1, max_size=3).map(lambda words: needed + [w for pair in words for w in pair])


def flagged(verb: cli.Verb, words: list[str]) -> str:
    """Read the flags in a folder of their own and, where nothing can come of it, run the verb."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as top, at_most(SECONDS):
        inner = Path(top, "a", "b", "c")
        inner.mkdir(parents=True)
        os.chdir(inner)
        try:
            outcome = outcome_of(lambda: _settle(verb, words))
        finally:
            os.chdir(before)
        assert [path.name for path in Path(top).iterdir()] == ["a"] and os.listdir(Path(top, "a")) == ["b"]
    return outcome


@pytest.mark.slow
@pytest.mark.parametrize("name", cli.VERBS)
def test_hostile_flags_are_taken_or_refused_in_one_line(name):
    @quick
    @given(words=flags_of(cli.VERBS[name]))
    def tried(words):
        flagged(cli.VERBS[name], words)

    tried()


def survey(cases: int, only: str = "") -> None:
    """Try all doors, go on after a fault, and print what was found."""
    made = make(Path(tempfile.mkdtemp()))
    ways: dict[str, tuple[st.SearchStrategy, Callable]] = {
        name: (strategy(door, made), functools.partial(entered, door, made)) for name, door in DOORS.items()
    }
    ways |= {f"flags of {name}": (flags_of(verb), functools.partial(flagged, verb)) for name, verb in cli.VERBS.items()}
    total: Counter[str] = Counter()
    for name, (values, enter) in ways.items():
        if only not in name:
            continue
        outcomes, faults = surveyed(values, enter, cases)
        total += outcomes
        print(f"{name:<30}", dict(outcomes), flush=True)
        for fault, count in faults.most_common(12):
            print(f"    {count:4d}  {fault}", flush=True)
    print("in all", dict(total))


def surveyed(values: st.SearchStrategy, enter: Callable, cases: int) -> tuple[Counter[str], Counter[str]]:
    """Count outcomes and kinds of faults of one door."""
    outcomes: Counter[str] = Counter()
    faults: Counter[str] = Counter()

    @settings(quick, max_examples=cases)
    @given(damaged=values)
    def tried(damaged):
        try:
            outcomes[enter(damaged)] += 1
        except (Exception, TooSlow) as error:
            outcomes["fault"] += 1
            frames = traceback.extract_tb(error.__traceback__)
            last = ([frame for frame in frames if "/arvrm/" in frame.filename] or frames)[-1]
            place = f"{last.filename.split('/arvrm/')[-1]}:{last.lineno}"
            faults[f"{type(error).__name__}: {str(error)[:90]!r} at {place}"] += 1

    tried()
    return outcomes, faults


if __name__ == "__main__":
    survey(int(sys.argv[1]), *sys.argv[2:])
