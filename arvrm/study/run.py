"""The study: what hands give a robot with few demonstrations, every row of it against its controls.

A *cell* is one evaluation: a row (what is learnt from hands and how the robot moves), so many demonstrations a task, a
set of tasks, a scene and a seed. Cells share what they can: stores, stage-1 runs and policies are made once, under a
name that says what they depend on, and are found again when the study goes on. Settings are `resources/study.json`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from arvrm import files
from arvrm.config import bounded, check_bounds, from_dict, merged, nearest, to_dict
from arvrm.geometry import euler_to_matrix
from arvrm.hands.skeleton import TIPS
from arvrm.interface import KEYPOINTS, TASKS, Policy, UserError
from arvrm.motions.camera import project
from arvrm.results import load_results
from arvrm.study.controls import Control, TellingWorld, controlled
from arvrm.windows import EpisodeTable

SCENES = {
    "builtin": {"scene": "D", "assets": "builtin"},
    "official": {"scene": "D", "assets": "calvin"},
    "layouts": {"scene": "D", "assets": "builtin", "layouts": 20},
}
"""Where policies that learnt in A, B and C are evaluated."""
SAMPLES = 10_000
"""Of the bootstrap."""


@dataclass(frozen=True)
class Row:
    """What is learnt, and how the robot moves.

    Attributes:
        title: for the table.
        pretrain: changes to the settings' stage 1; null: no stage 1.
        learn_from: whose images stage 1 learns places from: clips of hands, or the demonstrations themselves (control).
        clips: so many of the settings' clips; null: all.
        words: "own", or "shuffled": clips carry each other's sentences (control).
        said: what the policy hears: the task's sentence, or that of another (control).
        finetune: changes to the settings' stage 2.
        evaluate: changes to the settings' evaluation.
        control: what is replaced of the policy by analogy.
        leave_out: tasks that no demonstration shows, only hands; these alone are evaluated then.
        carried: motions of the clips are in the library, too.
        least: demonstrations of a task that it needs; with fewer it has no cell.
        unlearnt: stage 1 learns from no clip of what is left out, which is in the library only.
    """

    title: str
    pretrain: dict[str, Any] | None
    finetune: dict[str, Any]
    evaluate: dict[str, Any]
    learn_from: Literal["hands", "demonstrations"] = "hands"
    clips: int | None = bounded(None, least=1, most=10**7)
    words: Literal["own", "shuffled"] = "own"
    control: Control = Control()
    leave_out: tuple[str, ...] = ()
    carried: bool = False
    unlearnt: bool = False
    least: int = bounded(0, least=0, most=10**5)
    said: Literal["own", "another"] = "own"

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class Settings:
    """The settings file.

    Attributes:
        human, robot: of `arvrm generate`: the clips and the demonstrations, enough for the largest cell.
        pretrain, finetune, evaluate: of those verbs, common to all rows.
        tasks: name -> tasks; an empty list: all.
        rows: name -> row.
        note: for the reader.
    """

    human: dict[str, Any]
    robot: dict[str, Any]
    pretrain: dict[str, Any]
    finetune: dict[str, Any]
    evaluate: dict[str, Any]
    tasks: dict[str, tuple[str, ...]]
    rows: dict[str, Row]
    note: str = ""


@dataclass(frozen=True)
class StudyConfig:
    """Which cells.

    Attributes:
        output: folder for everything.
        rows: names of the settings' rows; empty: all.
        demonstrations: a task: a number, or "all". m needs some: what hands alone show is measured by rows that leave
            tasks out.
        tasks: names of the settings' sets of tasks.
        scenes: of builtin (D), official (D), layouts (20 of D's kind).
        seeds: of the demonstrations chosen and of weights.
        chains: of a cell.
        workers: simulators side by side.
        settings: JSON file in place of the packaged one.
        listed: only list the cells, and which are done.
        resume: go on with a study; cells that are done are kept, others may be added.
        overwrite: begin anew.
    """

    output: str = "runs/study"
    rows: tuple[str, ...] = ()
    demonstrations: tuple[str, ...] = ("1", "5")
    tasks: tuple[str, ...] = ("all",)
    scenes: tuple[str, ...] = ("builtin",)
    seeds: tuple[int, ...] = bounded((0, 1, 2), least=0, most=2**31)
    chains: int = bounded(300, least=1, most=10**5)
    workers: int = bounded(4, least=1, most=1024)
    settings: str | None = None
    listed: bool = False
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_bounds(self)
        for count in self.demonstrations:
            if count != "all" and not (count.isdecimal() and len(count) < 6 and int(count)):
                raise ValueError(
                    f"demonstrations: {count!r} is no number of demonstrations a task; give 1 or more, or all "
                    "(rows such as never-demonstrated say what hands alone show)"
                )
        for scene in self.scenes:
            if scene not in SCENES:
                raise ValueError(f"scenes: {scene!r} is unknown{nearest(scene, SCENES)}; use {', '.join(SCENES)}")


@dataclass(frozen=True)
class Cell:
    """One evaluation; its name is its file's."""

    row: str
    tasks: str
    demonstrations: str
    scene: str
    seed: int
    chains: int

    @property
    def name(self) -> str:
        return f"{self.row}-{self.tasks}-{self.demonstrations}-{self.scene}-{self.chains}-{self.seed}"

    @classmethod
    def named(cls, name: str) -> Cell:
        """Invert `name`."""
        row, tasks, count, scene, chains, seed = name.rsplit("-", 5)
        return cls(row, tasks, count, scene, int(seed), int(chains))

    @property
    def group(self) -> tuple[str, str, str, str, int]:
        """What it shares with the cells of other seeds."""
        return self.row, self.tasks, self.demonstrations, self.scene, self.chains


def study(config: StudyConfig) -> Path:
    """Make all cells that are not done, then the table and its page; return the page.

    Raises:
        UserError: the output exists (without `resume` or `overwrite`), was begun with other settings, or another
            process is writing it; a row or set of tasks is unknown.
    """
    settings = load_settings(config.settings)
    cells = list(cells_of(config, settings))
    output = Path(config.output)
    if config.listed:
        for cell in cells:
            done = (output / "cells" / f"{cell.name}.json").is_file()
            print(f"{'done' if done else 'open'}  {cell.name}", file=sys.stderr)
        return output
    with files.locked(output):
        made = _Made(output, config, settings)
        made.begin()
        durations: list[float] = []
        for number, cell in enumerate(cells, 1):
            left = (
                f", about {np.mean(durations) * (len(cells) - number + 1) / 60:.0f} minutes left" if durations else ""
            )
            print(f"arvrm study: [{number}/{len(cells)}] {cell.name}{left}", file=sys.stderr, flush=True)
            begin = time.perf_counter()
            if made.cell(cell):
                durations.append(time.perf_counter() - begin)
                write_tables(output, settings)
        return write_tables(output, settings)


def load_settings(path: str | None) -> Settings:
    """Read the settings file; null: the packaged one.

    Raises:
        UserError: it cannot be read, or a key is unknown.
    """
    if path is None:
        values = json.loads(resources.files("arvrm").joinpath("resources", "study.json").read_text())
        return from_dict(Settings, values, "study.json")
    return from_dict(Settings, files.read_json(path, "give a JSON file like arvrm/resources/study.json"), path)


def cells_of(config: StudyConfig, settings: Settings) -> Iterator[Cell]:
    """Yield the cells, seeds outermost, so that a study that is stopped early has whole rows.

    Raises:
        UserError: a row or set of tasks is unknown.
    """
    for kind, names, known in (("rows", config.rows, settings.rows), ("tasks", config.tasks, settings.tasks)):
        for name in names:
            if name not in known:
                raise UserError(f"study.{kind}: {name!r} is unknown{nearest(name, known)}; use {', '.join(known)}")
    for seed in config.seeds:
        for scene in config.scenes:
            for tasks in config.tasks:
                for count in config.demonstrations:
                    for row in config.rows or settings.rows:
                        if count == "all" or int(count) >= settings.rows[row].least:
                            yield Cell(row, tasks, count, scene, seed, config.chains)


class _Made:
    """What a study has made so far, and how the rest is made."""

    def __init__(self, output: Path, config: StudyConfig, settings: Settings) -> None:
        self.output, self.config, self.settings = output, config, settings

    def begin(self) -> None:
        """Make the folder and note the settings in it; a study goes on with rows of the same meaning only."""
        notes = self.output / "settings.json"
        now = noted(self.settings)
        if self.output.exists() and any(self.output.iterdir()):
            if not (self.config.resume or self.config.overwrite):
                raise UserError(f"{self.output}: exists; pass --resume to go on with it or --overwrite to begin anew")
            if not notes.is_file():
                raise UserError(f"{self.output}: holds no study, so it is left alone; give another folder")
            if self.config.resume:
                self._check_same(files.read_json(notes, "--overwrite it"), now)
            else:
                files.discard_folder(self.output)
        (self.output / "cells").mkdir(parents=True, exist_ok=True)
        files.write_json(notes, now)

    def _check_same(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        old_rows = before.get("rows", {})
        for name, value in now.items():
            if name not in ("rows", "note") and before.get(name) != value:
                raise UserError(
                    f"{self.output}: was begun with other settings of {name!r}; use the same or --overwrite"
                )
        for name, row in now["rows"].items():
            if name in old_rows and old_rows[name] != row and list((self.output / "cells").glob(f"{name}-*.json")):
                raise UserError(f"{self.output}: row {name!r} has other settings now; name it anew or --overwrite")
        now["rows"] = {**old_rows, **now["rows"]}

    def cell(self, cell: Cell) -> bool:
        """Make a cell; return whether there was something to do."""
        from arvrm.evaluation import EvaluateConfig, evaluate
        from arvrm.policy import policy_factory
        from arvrm.policy.analogy import AnalogyPolicy

        file = self.output / "cells" / f"{cell.name}.json"
        if file.is_file():
            return False
        row = self.settings.rows[cell.row]
        tasks = row.leave_out or self._tasks(cell)
        policy = self.policy(cell)
        values = merged(
            {**self.settings.evaluate, **SCENES[cell.scene], "seed": cell.seed},
            {**row.evaluate, "chains": cell.chains, "tasks": list(tasks) or None, "workers": self.config.workers},
        )
        if row.said == "another":
            values["instructions"] = str(self._others_words(tasks))
        log = file.with_suffix(".chains.jsonl")
        values |= {"output": str(file), "checkpoint": str(policy), "resume": log.exists()}
        config = from_dict(EvaluateConfig, values, f"study.{cell.row}.evaluate")
        factory, identity = policy_factory(
            str(policy), config.device, config.index, config.execute_steps, config.batch, config.threads
        )
        world = None
        if row.control != Control():
            plain, stores = factory, [str(path) for path in self._demonstrations(cell)["stores"]]

            def factory() -> Policy:
                made = plain()
                assert isinstance(made, AnalogyPolicy)
                return controlled(made, row.control, stores)

            identity = {**identity, "control": to_dict(row.control)}
            world = TellingWorld if row.control.places == "true" else None
        evaluate(factory, config, make_world=world, policy_identity=identity)
        return True

    def _tasks(self, cell: Cell) -> tuple[str, ...]:
        return self.settings.tasks[cell.tasks]

    def policy(self, cell: Cell) -> Path:
        """Return the folder of the cell's policy, made if need be."""
        from arvrm.training import FinetuneConfig, finetune

        row = self.settings.rows[cell.row]
        values = merged(self.settings.finetune, row.finetune)
        pretrained = self.hands(cell)
        values = merged(values, {"data": self._demonstrations(cell), "train": {"seed": cell.seed}})
        values["pretrained"] = None if pretrained is None else str(pretrained)
        if row.carried:
            values = merged(values, {"analogy": {"clips": [str(self._clips(row))]}})
        folder = self._folder("policies", f"{cell.row}-{cell.tasks}-{cell.demonstrations}-{cell.seed}", values)
        return _trained(folder, values, FinetuneConfig, finetune, f"study.{cell.row}.finetune")

    def hands(self, cell: Cell) -> Path | None:
        """Return the folder of the cell's stage 1, made if need be; null: the row has none."""
        from arvrm.training import PretrainConfig, pretrain

        row = self.settings.rows[cell.row]
        if row.pretrain is None:
            return None
        values = merged(self.settings.pretrain, row.pretrain)
        if row.learn_from == "demonstrations":
            clips, moments = self._demonstrations_as_clips(cell)
            data = {"stores": [str(clips)], "moments": [str(moments)]}
        else:
            data = {"stores": [str(self._clips(row))]}
            tasks, unlearnt = self._tasks(cell), row.leave_out if row.unlearnt else ()
            if tasks or unlearnt:
                data["tasks"] = [task for task in tasks or TASKS if task not in unlearnt]
        values = merged(values, {"data": data, "train": {"seed": cell.seed}})
        folder = self._folder("hands", f"{cell.tasks}-{cell.seed}", values)
        return _trained(folder, values, PretrainConfig, pretrain, f"study.{cell.row}.pretrain")

    def _demonstrations(self, cell: Cell) -> dict[str, Any]:
        data: dict[str, Any] = {"stores": [str(self._store("robot", self.settings.robot))], "seed": cell.seed}
        left_out = self.settings.rows[cell.row].leave_out
        if (tasks := self._tasks(cell)) or left_out:
            data["tasks"] = [task for task in tasks or TASKS if task not in left_out]
        if cell.demonstrations != "all":
            data["episodes_per_task"] = int(cell.demonstrations)
        return data

    def _demonstrations_as_clips(self, cell: Cell) -> tuple[Path, Path]:
        """Return a store of the cell's demonstrations in which the gripper's fingers stand for a hand, and the file of
        their moments, found as those of robots are: what finds hands' moments reads a gripper's worse. Stage 1 keeps
        them."""
        from arvrm.moments.find import moments_entry
        from arvrm.training.agreement import MomentFinder
        from arvrm.training.data import DataConfig, open_table, split

        data = self._demonstrations(cell)
        folder = self._folder("stores", f"as-clips-{cell.tasks}-{cell.demonstrations}-{cell.seed}", data)
        file = folder.with_name(f"{folder.name}-moments.json")
        if not folder.exists() or not file.exists():
            config = from_dict(DataConfig, {**data, "validation": 0}, "study.demonstrations")
            table = open_table(config, "robot", 1)
            episodes, _ = split(table, config)
            if not folder.exists():
                write_as_clips(table, episodes, folder)
            headers = [table.stores[table.store[row]].header(str(table.ids[row])) for row in episodes]
            found = zip(headers, MomentFinder().moments(table, episodes), strict=True)
            files.write_json(file, {"episodes": {header.id: moments_entry(header, one) for header, one in found}})
        return folder, file

    def _store(self, embodiment: str, settings: dict[str, Any]) -> Path:
        from arvrm.sources.playtable import GenerateConfig, generate

        store = self._folder("stores", embodiment, settings)
        if not (store / "whole").is_file():
            values = {**settings, "embodiment": embodiment, "output": str(store), "resume": store.exists()}
            generate(from_dict(GenerateConfig, values, f"study.{embodiment}"))
            (store / "whole").touch()
        return store

    def _clips(self, row: Row) -> Path:
        """Return a store of so many clips, with the words that the row asks for."""
        whole = self._store("human", self.settings.human)
        if row.clips is None and row.words == "own":
            return whole
        chosen = self._folder("stores", f"clips-{row.clips or 'all'}-{row.words}", self.settings.human)
        if not chosen.exists():
            write_clips(whole, chosen, row.clips, row.words == "shuffled")
        return chosen

    def _others_words(self, tasks: tuple[str, ...]) -> Path:
        """Return a file that gives each task the sentence of the task half the list away."""
        from arvrm.instructions import validation_instruction

        names = tasks or TASKS
        file = self.output / f"others_words-{digest(list(names))}.json"
        half = len(names) // 2
        files.write_json(
            file, {name: validation_instruction(names[(i + half) % len(names)]) for i, name in enumerate(names)}
        )
        return file

    def _folder(self, kind: str, name: str, values: dict[str, Any]) -> Path:
        """Return a folder whose name says what it depends on, by a digest of its settings."""
        (self.output / kind).mkdir(parents=True, exist_ok=True)
        return self.output / kind / f"{name}-{digest(values)}"


def _trained(folder: Path, values: dict[str, Any], kind: type, stage: Callable[[Any], Any], place: str) -> Path:
    if not (folder / "whole").is_file():
        stage(from_dict(kind, {**values, "output": str(folder), "resume": folder.exists()}, place))
        (folder / "whole").touch()
    return folder


def write_clips(source: Path, output: Path, count: int | None, shuffle: bool) -> None:
    """Copy the first `count` clips of a store (None: all); with `shuffle` they exchange their sentences.

    The exchange is a fixed permutation of clips of a seed of its own: what a sentence says is no longer what its clip
    shows.
    """
    from arvrm.episodes import EpisodeStore, EpisodeWriter, encode_episode

    store = EpisodeStore(source)
    ids = store.ids[: count or len(store)]
    if count is not None and len(ids) < count:
        raise UserError(f"{source}: has {len(store)} clips, {count} are asked for; generate more")
    order = np.random.default_rng(7).permutation(len(ids)) if shuffle else np.arange(len(ids))
    manifest = {"source": str(store.manifest.get("source", "")), "clips": len(ids), "words_shuffled": shuffle}
    manifest |= {"synthetic": bool(store.manifest.get("synthetic", True))}
    with files.replacing_folder(output) as partial:
        quality = store.manifest["jpeg"]["quality"]
        with EpisodeWriter(partial, manifest, jpeg_quality=quality, resumable=False) as writer:
            for id, other in zip(ids, order, strict=True):
                encoded = store.encoded(id)
                if shuffle:
                    said = store.header(ids[other])
                    episode = dataclasses.replace(store.episode(id), instruction=said.instruction, task=said.task)
                    # Its images as they are, not compressed once more.
                    encoded = dataclasses.replace(encode_episode(episode, quality), images=encoded.images)
                writer.append_encoded(encoded)


def write_as_clips(table: EpisodeTable, episodes: np.ndarray, output: Path) -> None:
    """Write robot episodes as clips, for the control that learns places from them: the TCP seen by the static camera
    stands for all keypoints, the ends of the gripper's fingers for the tips of thumb and index finger.

    The camera is the simulator's own, which only a control may know.
    """
    from arvrm.episodes import Episode, EpisodeWriter

    with files.replacing_folder(output) as partial:
        quality = table.stores[0].manifest["jpeg"]["quality"]
        manifest = {"source": "robot demonstrations as clips", "synthetic": True}
        with EpisodeWriter(partial, manifest, jpeg_quality=quality, resumable=False) as writer:
            for row in episodes:
                robot = table.stores[table.store[row]].episode(str(table.ids[row]))
                size = next(iter(table.stores[table.store[row]].header(robot.id).cameras.values()))[0]
                camera, obs = np.array(robot.meta["judge"]["camera"]), robot.arrays["robot_obs"]
                across = euler_to_matrix(obs[:, 3:6])[..., 1] * obs[:, 6:7] / 2
                points = np.repeat(obs[:, None, :3], len(KEYPOINTS), 1)
                points[:, TIPS[0]] -= across
                points[:, TIPS[1]] += across
                keypoints = np.pad(project(camera, points), ((0, 0), (0, 0), (0, 1)))  # no depth from the wrist
                visible = ((keypoints[..., :2] >= 0) & (keypoints[..., :2] < size)).all(-1)
                arrays = {"keypoints": keypoints.astype(np.float32), "visible": visible}
                name = next(iter(robot.images))
                writer.append(
                    Episode(
                        robot.id, "human", robot.instruction, robot.task, robot.scene, robot.source, robot.group,
                        robot.fps, arrays, {name: robot.images[name]}, robot.image_steps, {"synthetic": True},
                    )
                )  # fmt: skip


def digest(values: Any) -> str:
    """Return eight letters that stand for JSON-able values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def noted(settings: Settings) -> dict[str, Any]:
    """Return the settings as they are noted in the folder."""
    return json.loads(json.dumps(to_dict(settings)))


def interval(lengths: list[np.ndarray], samples: int = SAMPLES) -> tuple[float, float]:
    """95 % interval of the mean over seeds of their mean chains, by drawing seeds, then chains within each.

    Args:
        lengths: (chains,) of each seed, tasks in a row.
    """
    rng = np.random.default_rng(0)
    means = np.empty(samples)
    for sample in range(samples):
        seeds = rng.integers(0, len(lengths), len(lengths))
        means[sample] = np.mean([lengths[s][rng.integers(0, len(lengths[s]), len(lengths[s]))].mean() for s in seeds])
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def rows_of(output: Path) -> list[dict[str, Any]]:
    """Return a line for every group of cells that differ in the seed only: mean, interval, by seed, worst tasks."""
    groups: dict[tuple, list[tuple[int, dict[str, Any]]]] = {}
    for file in sorted((output / "cells").glob("*.json")):
        cell = Cell.named(file.stem)
        groups.setdefault(cell.group, []).append((cell.seed, load_results(file)))
    lines = []
    for (row, tasks, count, scene, chains), found in groups.items():
        lengths = [np.array([chain["completed"] for chain in results["chains"]], float) for _, results in found]
        per_task: dict[str, list[int]] = {}
        for _, results in found:
            for task, counts in results["per_task"].items():
                total = per_task.setdefault(task, [0, 0])
                total[0] += counts["success"]
                total[1] += counts["total"]
        rates = np.mean([results["success_rates"] for _, results in found], axis=0)
        lines.append({
            "row": row, "tasks": tasks, "demonstrations": count, "scene": scene, "chains": chains,
            "seeds": [seed for seed, _ in found],
            "average_length": float(np.mean([one.mean() for one in lengths])),
            "ci95": list(interval(lengths, 2000)),
            "by_seed": [float(one.mean()) for one in lengths],
            "success_rates": [float(rate) for rate in rates],
            "crashed": sum(results["crashed"] for _, results in found),
            "per_task": per_task,
        })  # fmt: skip
    return lines


def write_tables(output: Path, settings: Settings) -> Path:
    """Write study.json and study.html; return the page."""
    from arvrm.show.study import write_study

    lines = rows_of(output)
    files.write_json(output / "study.json", {"rows": lines})
    return write_study(output / "study.html", lines, {name: row.title for name, row in settings.rows.items()})
