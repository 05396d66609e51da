"""The whole pipeline in one command, small enough for two cores: hands to report, in scenes apart.

Places and poses are learnt from clips of hands, the map and a library of motions from few demonstrations of all tasks;
then the policy is rolled out. Settings are `resources/demo.json` (and `resources/demo_fast.json`, a smoke test of a
minute): one section per stage, each with what the stage's own verb takes; `tasks` and `model`, which several stages
share; and `time_share`. The policy learns in scenes A, B and C and is evaluated in D.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from arvrm import files
from arvrm.config import bounded, check_bounds, from_dict, merged
from arvrm.interface import UserError
from arvrm.results import load_results, save_results, source_commit, table

STAGES = ("builtin", "human", "pretrain", "robot", "finetune", "evaluate", "report")
SHOWN = 3
"""Instructions that the page explains."""
TITLES = {
    "builtin": "a look at the policy that the package brings, in a scene it has not seen",
    "human": "generate human clips (synthetic hands)",
    "pretrain": "stage 1: poses, and places at the moments of the touch and the end, from the human clips",
    "robot": "generate robot demonstrations (scripted experts)",
    "finetune": "stage 2: the map and the motions, from the robot demonstrations",
    "evaluate": "roll out chains of five instructions in a scene it has not seen",
    "report": "write the report",
}


@dataclass(frozen=True)
class DemoConfig:
    """The demonstration.

    Attributes:
        output: folder for everything.
        minutes: aim for this long on two cores: training stops at its share of the time (`time_share` in the settings).
        fast: the smoke test in place of the demonstration: everything runs, nothing is learnt.
        settings: JSON file in place of the packaged one.
        resume: go on with a demonstration that was stopped; finished stages are skipped.
        overwrite: replace an existing demonstration.
        tasks: in place of the settings' tasks; null: these.
        model, builtin, robot, human, pretrain, finetune, evaluate, time_share: changes to the settings' sections.
    """

    output: str = "runs/demo"
    minutes: float = bounded(20.0, above=0)
    fast: bool = False
    settings: str | None = None
    resume: bool = False
    overwrite: bool = False
    tasks: tuple[str, ...] | None = None
    model: dict[str, Any] = field(default_factory=dict)
    builtin: dict[str, Any] = field(default_factory=dict)
    robot: dict[str, Any] = field(default_factory=dict)
    human: dict[str, Any] = field(default_factory=dict)
    pretrain: dict[str, Any] = field(default_factory=dict)
    finetune: dict[str, Any] = field(default_factory=dict)
    evaluate: dict[str, Any] = field(default_factory=dict)
    time_share: dict[str, Any] = field(default_factory=dict)

    __post_init__ = check_bounds


def demo(config: DemoConfig) -> Path:
    """Run all stages that are not finished; return the report's path.

    Raises:
        UserError: the output exists (without `resume` or `overwrite`), was begun with other settings, or another
            process is writing it.
    """
    output = Path(config.output)
    settings = load_settings(config)
    with files.locked(output):
        return _run(config, output, settings)


def _run(config: DemoConfig, output: Path, settings: dict[str, Any]) -> Path:
    _begin(config, output, settings)
    expected = "a minute or two" if config.fast else f"about {config.minutes:.0f} minutes on two cores"
    page = output / "report.html"
    _say(f"arvrm demo: {expected}, {len(STAGES)} stages, then a table and {page}; stop and --resume at will")
    with own_lines_only(output / "demo.log"):
        done = _run_stages(output, settings)
    _say("")
    _say(table(load_results(output / "results.json")))
    times = ", ".join(f"{stage} {_clock(done[stage])}" for stage in STAGES)
    _say(f"  stage times: {times}; {_clock(sum(done.values()))} in all")
    return page


def _run_stages(output: Path, settings: dict[str, Any]) -> dict[str, float]:
    done = _read_done(output)
    for number, stage in enumerate(STAGES, 1):
        head = f"[{number}/{len(STAGES)}]"
        if stage in done:
            _say(f"{head} {TITLES[stage]}: finished before ({_clock(done[stage])})")
            continue
        _say(f"{head} {TITLES[stage]}")
        begin = time.perf_counter()
        RUN[stage](output, settings)
        done[stage] = round(time.perf_counter() - begin, 1)
        files.write_json(output / "stages.json", done)
        _say(f"{head} took {_clock(done[stage])}")
    return done


@contextlib.contextmanager
def own_lines_only(log: Path) -> Iterator[None]:
    """Keep the screen for what this project says: what packages print and warn of, here and in workers, goes to `log`.

    Where it is not the screen that Python writes to (a test, a notebook), nothing is changed.
    """
    try:
        is_screen = sys.stderr.fileno() == 2
    except (OSError, io.UnsupportedOperation):
        is_screen = False
    if not is_screen:
        yield
        return
    ours, screens = sys.stderr, [os.dup(descriptor) for descriptor in (1, 2)]
    warned = logging.FileHandler(log)
    with open(log, "ab") as file, os.fdopen(os.dup(2), "w", buffering=1, errors="replace") as screen:
        # Descriptors 1 and 2 are where C code and worker processes write; Python's own stream goes on to the screen.
        sys.stdout.flush()
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        sys.stderr = screen
        logging.getLogger().addHandler(warned)
        logging.captureWarnings(True)
        try:
            yield
        except Exception as error:
            if not isinstance(error, UserError):
                print(f"what other packages said is in {log}", file=screen)
            raise
        finally:
            logging.captureWarnings(False)
            logging.getLogger().removeHandler(warned)
            warned.close()
            sys.stdout.flush()
            sys.stderr = ours
            for descriptor, saved in zip((1, 2), screens, strict=True):
                os.dup2(saved, descriptor)
                os.close(saved)


def load_settings(config: DemoConfig) -> dict[str, Any]:
    """Return the settings of every stage: the packaged (or given) file, changed by the configuration's sections."""
    if config.settings:
        settings = files.read_json(config.settings, "give a JSON file like arvrm/resources/demo.json")
    else:
        name = "demo_fast.json" if config.fast else "demo.json"
        settings = json.loads(resources.files("arvrm").joinpath("resources", name).read_text())
    sections = (*STAGES[:-1], "model", "time_share")
    for section in sections:
        if not isinstance(settings.get(section, {}), dict):
            raise UserError(f"demo settings: {section} is no section; write it as an object with keys")
        settings[section] = merged(settings.get(section, {}), getattr(config, section))
    unknown = settings.keys() - {*sections, "tasks", "note"}
    if unknown:
        raise UserError(f"demo settings: unknown section {sorted(unknown)[0]!r}; use {', '.join(sections)}, tasks")
    tasks, model = config.tasks or settings.pop("tasks", None), settings.pop("model")
    settings.pop("tasks", None)
    for stage in ("builtin", "robot", "human", "evaluate"):
        if tasks:
            settings[stage] = {"tasks": list(tasks), **settings[stage]}
    for stage in ("pretrain", "finetune"):
        settings[stage] = merged({"model": model}, settings[stage])
    # Shares of the time that was asked for, not of what is left: a resumed run must find the same configuration.
    for stage, share in settings["time_share"].items():
        settings[stage] = merged(settings[stage], {"train": {"max_minutes": round(share * config.minutes, 3)}})
    return settings


def _begin(config: DemoConfig, output: Path, settings: dict[str, Any]) -> None:
    """Make the folder and note the settings in it; a resumed demonstration must have the same."""
    notes = output / "demo.json"
    if output.exists() and any(output.iterdir()):
        if not (config.resume or config.overwrite):
            raise UserError(f"{output}: exists; pass --resume to go on with it or --overwrite to begin anew")
        if not notes.is_file():
            raise UserError(f"{output}: holds no demonstration, so it is left alone; give another folder")
        if config.resume:
            before = files.read_json(notes, "--overwrite it").get("settings")
            for section in settings:
                if not isinstance(before, dict) or before.get(section) != json.loads(json.dumps(settings[section])):
                    what = f"was begun with other settings of {section!r}"
                    raise UserError(f"{output}: {what}; use the same or --overwrite")
            return
        files.discard_folder(output)
    output.mkdir(parents=True, exist_ok=True)
    files.write_json(notes, {"settings": settings, "minutes": config.minutes, "commit": source_commit()})


def _robot(output: Path, settings: dict[str, Any]) -> None:
    _generate(output / "robot", settings["robot"], "robot")


def _human(output: Path, settings: dict[str, Any]) -> None:
    _generate(output / "human", settings["human"], "human")


def _generate(store: Path, settings: dict[str, Any], embodiment: str) -> None:
    from arvrm.sources.playtable import GenerateConfig, generate

    values = {**settings, "embodiment": embodiment, "output": str(store), "resume": store.exists()}
    generate(from_dict(GenerateConfig, values, f"demo.{embodiment}"))


def _pretrain(output: Path, settings: dict[str, Any]) -> None:
    from arvrm.training import PretrainConfig, pretrain

    folder = output / "pretrain"
    values = merged(settings["pretrain"], {"output": str(folder), "data": _data(output, "human")})
    pretrain(from_dict(PretrainConfig, values | _onward(folder), "demo.pretrain"))


def _finetune(output: Path, settings: dict[str, Any]) -> None:
    from arvrm.training import FinetuneConfig, finetune

    folder = output / "policy"
    values = merged(
        settings["finetune"],
        {
            "output": str(folder),
            "data": _data(output, "robot"),
            "pretrained": str(output / "pretrain"),
        },
    )
    if values["motion"] != "learned":
        values = merged(values, {"analogy": {"clips": [str(output / "human")]}})
    finetune(from_dict(FinetuneConfig, values | _onward(folder), "demo.finetune"))


def _data(output: Path, store: str) -> dict[str, Any]:
    return {"stores": [str(output / store)], "cache": str(output / "cache")}


def _onward(folder: Path) -> dict[str, bool]:
    """How to start a training run whose folder may hold an unfinished one."""
    return {"resume": folder.exists()}


def _builtin(output: Path, settings: dict[str, Any]) -> None:
    values = {**settings["builtin"], "checkpoint": "builtin", "output": str(output / "builtin.json")}
    _roll_out(values, "demo.builtin")


def _evaluate(output: Path, settings: dict[str, Any]) -> None:
    values = {**settings["evaluate"], "checkpoint": str(output / "policy"), "output": str(output / "results.json")}
    _roll_out(values, "demo.evaluate")


def _roll_out(values: dict[str, Any], place: str) -> None:
    from arvrm.evaluation import EvaluateConfig, evaluate
    from arvrm.policy import policy_factory

    log = Path(values["output"]).with_suffix(".chains.jsonl")
    config = from_dict(EvaluateConfig, {**values, "resume": log.exists()}, place)
    factory, identity = policy_factory(
        str(config.checkpoint), config.device, config.index, config.execute_steps, config.batch, config.threads
    )
    evaluate(factory, config, policy_identity=identity)


def _report(output: Path, settings: dict[str, Any]) -> None:
    from arvrm.show.report import write_report

    results = load_results(output / "results.json")
    # The report shows how long everything took; the results file is where it reads that.
    results["stage_seconds"] = _read_done(output)
    save_results(output / "results.json", results)
    write_report(
        [output / "results.json", output / "builtin.json"],
        output / "report.html",
        runs=[output / "pretrain"],
        title="arvrm demo",
        overwrite=True,
        explained=_explained(output, settings),
    )


def _explained(output: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """What the policy has in mind as the first chains of the evaluation begin."""
    from arvrm.evaluation import EvaluateConfig, make_jobs
    from arvrm.evaluation.playtable import start_picture
    from arvrm.policy.analogy import load_analogy
    from arvrm.show.explain import Picture, entry_of, explanation

    config = from_dict(EvaluateConfig, settings["evaluate"], "demo.evaluate")
    policy, entries = load_analogy(output / "policy"), []
    size = next(iter(policy.spec.image_sizes.values()))
    for job in make_jobs(config)[:SHOWN]:
        image, robot = start_picture(config.scene, config.assets, config.calvin_root, None, job.start, size)
        origin = f"scene {config.scene}, as chain {job.index} begins"
        found = explanation(policy, output / "policy", Picture(image, robot[:7], origin), job.instructions[0])
        entries.append(entry_of(found))
    return entries


RUN: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "builtin": _builtin,
    "human": _human,
    "pretrain": _pretrain,
    "robot": _robot,
    "finetune": _finetune,
    "evaluate": _evaluate,
    "report": _report,
}


def _read_done(output: Path) -> dict[str, float]:
    file = output / "stages.json"
    if not file.exists():
        return {}
    done = files.read_json(file, "--overwrite the demonstration")
    for stage, seconds in done.items():
        if stage not in STAGES or type(seconds) not in (int, float) or not 0 <= seconds < 1e9:
            raise UserError(f"{file}: {stage[:40]!r} took no number of seconds; --overwrite the demonstration")
    return done


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
