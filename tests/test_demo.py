import json
import subprocess
import sys
import textwrap

import pytest

from arvrm import demo as module
from arvrm.demo import STAGES, DemoConfig, demo, load_settings
from arvrm.interface import UserError
from arvrm.results import load_results


def test_settings_are_those_of_the_stages_own_configurations():
    """A misspelt key would show only when its stage begins, minutes into the demonstration."""
    from arvrm.config import from_dict
    from arvrm.evaluation import EvaluateConfig
    from arvrm.sources.playtable import GenerateConfig
    from arvrm.training import FinetuneConfig, PretrainConfig

    kinds = {
        "robot": (GenerateConfig, {"output": "x"}),
        "human": (GenerateConfig, {"output": "x"}),
        "pretrain": (PretrainConfig, {"output": "x"}),
        "finetune": (FinetuneConfig, {"output": "x"}),
        "builtin": (EvaluateConfig, {}),
        "evaluate": (EvaluateConfig, {}),
    }
    for fast in (False, True):
        settings = load_settings(DemoConfig(fast=fast))
        built = {stage: from_dict(kind, settings[stage] | more, stage) for stage, (kind, more) in kinds.items()}
        assert built["evaluate"].scene not in built["robot"].scenes, "evaluated where it was not trained"
        assert built["pretrain"].model.width == built["finetune"].model.width
        assert set(built["evaluate"].tasks or ()) <= set(built["robot"].all_tasks)
        if not fast:
            assert built["evaluate"].chains >= 20


def test_time_shares_follow_the_minutes_and_sections_are_merged():
    settings = load_settings(DemoConfig(minutes=10.0, pretrain={"train": {"steps": 7}}, time_share={"pretrain": 0.5}))
    assert settings["pretrain"]["train"]["max_minutes"] == 5.0 and settings["pretrain"]["train"]["steps"] == 7
    assert settings["pretrain"]["window"] == load_settings(DemoConfig())["pretrain"]["window"]


def test_stopped_demonstration_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    ran = []

    def stage(name):
        def run(output, settings):
            if name == "robot" and ran.count("robot") == 0:
                ran.append(name)
                raise KeyboardInterrupt
            ran.append(name)

        return run

    monkeypatch.setattr(module, "RUN", {name: stage(name) for name in STAGES})
    monkeypatch.setattr(module, "load_results", lambda path: {})
    monkeypatch.setattr(module, "table", lambda results: "the table")
    settings = DemoConfig(output=str(tmp_path / "demo"), fast=True)
    with pytest.raises(KeyboardInterrupt):
        demo(settings)
    with pytest.raises(UserError, match="--resume"):
        demo(settings)
    with pytest.raises(UserError, match="other settings of 'evaluate'"):
        demo(DemoConfig(output=settings.output, fast=True, resume=True, evaluate={"chains": 9}))
    capsys.readouterr()
    assert demo(DemoConfig(output=settings.output, fast=True, resume=True)).name == "report.html"
    assert ran == ["builtin", "human", "pretrain", "robot", "robot", "finetune", "evaluate", "report"]
    said = capsys.readouterr().err
    assert said.startswith("arvrm demo: ") and "finished before" in said and "the table" in said


def test_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for how in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match="left alone"):
            demo(DemoConfig(output=str(tmp_path), fast=True, **how))
    assert (tmp_path / "thesis.tex").exists()


def test_screen_shows_only_what_the_project_says(tmp_path):
    """The packages' lines are in a log, which is named when something goes wrong."""
    program = """
        import logging, os, subprocess, sys, warnings
        from arvrm.demo import own_lines_only
        with own_lines_only(sys.argv[1]):
            print("ours", file=sys.stderr)
            warnings.warn("a warning")
            logging.getLogger("package").warning("a log line")
            os.write(1, b"C code to stdout\\n")
            os.write(2, b"C code to stderr\\n")
            subprocess.run(["echo", "a worker"])
            if len(sys.argv) > 2:
                raise RuntimeError("broken")
        print("the result")
        os.write(2, b"seen again\\n")
    """
    log = tmp_path / "demo.log"
    command = [sys.executable, "-c", textwrap.dedent(program), str(log)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("the result\n", "ours\nseen again\n")
    for line in ("a warning", "a log line", "C code to stdout", "C code to stderr", "a worker"):
        assert line in log.read_text()
    broken = subprocess.run([*command, "break"], capture_output=True, text=True)
    assert broken.returncode == 1 and f"what other packages said is in {log}" in broken.stderr


@pytest.mark.slow
def test_fast_demonstration_runs_from_generation_to_report(tmp_path):
    page = demo(DemoConfig(output=str(tmp_path / "demo"), fast=True))
    text = page.read_text()
    assert text.count("<video") >= 1
    assert text.index("What it has in mind") < text.index("<video")
    assert "at its touch" in text and "a clip of a hand that learning began with" in text
    results = load_results(tmp_path / "demo" / "results.json")
    assert results["config"]["scene"] == "D" and len(results["chains"]) == 4 and results["crashed"] == 0
    assert list(json.loads((tmp_path / "demo" / "stages.json").read_text())) == list(STAGES)
    assert set(results["stage_seconds"]) == set(STAGES) - {"report"}
