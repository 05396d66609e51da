import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import typing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import arvrm
from arvrm import cli, config
from arvrm.interface import TASKS, UserError
from arvrm.results import load_results


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "arvrm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def refused(capsys, *arguments: str) -> str:
    """Run in this process; return the one line of complaint."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("arvrm: ") and captured.err.count("\n") == 1
    return captured.err


def test_help_lists_every_verb_and_imports_no_heavy_module():
    check = "assert not {'torch', 'pybullet'} & {*sys.modules}"
    probe = f"import sys; from arvrm.cli import main; main(['--help']); {check}"
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    for verb in cli.VERBS:
        assert f"  {verb} " in found.stdout


VERBS = sorted(cli.VERBS)
ROOT = Path(__file__).parent.parent
BESIDE = {"few-shot": {"check": "x"}}


def enough(verb: str) -> dict[str, object]:
    """Values for the settings that the verb cannot do without."""
    kind = cli.VERBS[verb].kind
    hints = typing.get_type_hints(kind)
    values: dict[str, object] = dict(BESIDE.get(verb, {}))
    for name in config.without_default(kind):
        options = typing.get_args(hints[name])
        values[name] = "x" if not options else ["x"] if typing.get_origin(hints[name]) is tuple else options[0]
    return values


def test_the_readme_lists_every_verb_and_no_other():
    table = (ROOT / "README.md").read_text().split("| verb | what it does |")[1].split("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert sorted(name for cell in cells for name in re.findall(r"`([^`]+)`", cell)) == VERBS


def test_citation_names_the_version():
    assert f"\nversion: {arvrm.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def is_section(hint: object) -> bool:
    return any(
        dataclasses.is_dataclass(option) or typing.get_origin(option) is dict
        for option in (hint, *typing.get_args(hint))
    )


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_each_of_its_settings(verb, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([*verb.split(), "--help"])
    assert left.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"usage: arvrm {verb}" in printed
    kind = cli.VERBS[verb].kind
    texts, hints = cli.field_help(kind), typing.get_type_hints(kind)
    for setting in dataclasses.fields(kind):
        shown = [
            f"--{setting.name.replace('_', '-')}",
            f" {setting.name.upper()} ",
            f" {setting.name}: ",
            f" {setting.name}, ",
        ]
        assert any(form in printed for form in shown), f"{setting.name} is not there"
        if not is_section(hints[setting.name]):
            assert texts.get(setting.name), f"{setting.name} has no help"
            assert texts[setting.name][:40] in printed.replace("- ", "-"), f"{setting.name}'s help is not there"


@pytest.mark.parametrize("verb", VERBS)
def test_what_every_verb_shows_is_read_back_to_the_same(verb, capsys, tmp_path):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(json.dumps(enough(verb)))
    with pytest.raises(SystemExit) as left:
        cli.main([*verb.split(), "--config", str(first), "--show-config"])
    assert left.value.code == 0
    second.write_text(capsys.readouterr().out)
    kind = cli.VERBS[verb].kind
    assert json.loads(second.read_text()).keys() == {setting.name for setting in dataclasses.fields(kind)}
    assert cli.VERBS[verb].settings(["--config", str(second)]) == config.load(kind, first)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_shows_its_defaults_and_says_what_is_wanting(verb, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([*verb.split(), "--show-config"])
    assert left.value.code == 0
    printed = capsys.readouterr()
    kind = cli.VERBS[verb].kind
    wanting = set(config.without_default(kind))
    assert json.loads(printed.out).keys() == {setting.name for setting in dataclasses.fields(kind)} - wanting
    for name in wanting:
        assert name.replace("_", "-") in printed.err.lower()
    if wanting:
        assert "give " in refused(capsys, *verb.split())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_names_the_nearest_flag_and_key(verb, capsys):
    kind, positional = cli.VERBS[verb].kind, cli.VERBS[verb].positional
    hints = typing.get_type_hints(kind)
    names = [setting.name for setting in dataclasses.fields(kind) if setting.name not in positional]
    name = max((name for name in names if not is_section(hints[name])), key=len)
    flag = "--" + name.replace("_", "-")
    assert f"unknown flag {flag}x; did you mean '{flag}'?" in refused(capsys, *verb.split(), f"{flag}x")
    assert f"unknown key '{name}x'; did you mean '{name}'?" in refused(capsys, *verb.split(), f"{name}x=1")


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (("evalute",), "did you mean 'evaluate'"),
        (("convert", "calvn"), "did you mean 'convert calvin'"),
        (("evaluate", "--policy", "expert", "--scen", "D"), "did you mean '--scene'"),
        (("evaluate", "--policy", "expert", "--tasks", "open_drawr"), "did you mean 'open_drawer'"),
        (("evaluate", "--policy", "experts"), "did you mean 'expert'"),
        (("evaluate", "--policy", "expert", "--scene", "E"), "scene 'E' is none of A, B, C, D"),
        (("generate", "--output", "x", "--tasks", "turn_on_lead"), "did you mean 'turn_on_led'"),
        (("generate", "--output", "x", "--scenes", "A,Q"), "'Q' is unknown"),
        (("pretrain", "--output", "x", "trian.steps=3"), "did you mean 'train'"),
        (("finetune", "--output", "x", "train.stesp=3"), "did you mean 'steps'"),
        (("finetune", "--output", "x", "--train.steps", "3"), "write a section's settings as train.KEY=VALUE"),
        (("finetune", "--output", "x", "train.steps=many"), "expected int"),
        (("evaluate",), "--checkpoint DIR"),
        (("report", "no-such.json"), "no-such.json"),
        (("inspect", "no-such-store"), "no-such-store"),
        (("evaluate", "--checkpoint", "no-such-run"), "no-such-run"),
        (("evaluate", "--policy", "expert", "stray"), "section.key=value"),
    ],
)
def test_mistakes_get_one_line_with_a_remedy(arguments, nearest, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert nearest in refused(capsys, *arguments)


def test_missing_calvin_root_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CALVIN_ROOT", raising=False)
    assert "CALVIN_ROOT" in refused(capsys, "evaluate", "--policy", "expert", "--assets", "calvin", "--chains", "1")
    assert not list(tmp_path.glob("*.json"))


def test_mistakes_exit_with_2_and_nothing_on_stdout(tmp_path):
    found = run("evaluate", "--policy", "expert", "--scene", "E", cwd=tmp_path)
    assert found.returncode == 2 and found.stdout == ""
    assert found.stderr.startswith("arvrm: ") and "Traceback" not in found.stderr


def test_evaluation_prints_only_the_path_to_stdout_and_existing_output_is_refused(tmp_path):
    tasks = "turn_on_led,turn_off_led,open_drawer,close_drawer,move_slider_left"
    arguments = ["evaluate", "--policy", "expert", "--tasks", tasks, "--chains", "1", "--workers", "1"]
    arguments += ["--output", tmp_path / "r.json"]
    found = run(*arguments, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout == f"{tmp_path / 'r.json'}\n"
    assert "average length" in found.stderr
    assert len(load_results(tmp_path / "r.json")["chains"]) == 1
    again = run(*arguments, cwd=tmp_path)
    assert again.returncode == 2 and "--resume" in again.stderr and "--overwrite" in again.stderr
    resumed = run(*arguments, "--resume", cwd=tmp_path)
    assert resumed.returncode == 0 and len(load_results(tmp_path / "r.json")["chains"]) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_exits_with_130_and_keeps_what_was_finished(tmp_path, number):
    command = [sys.executable, "-m", "arvrm", "evaluate", "--policy", "random", "--max-steps", "60", "--workers", "1"]
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path / "r.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts its background jobs with SIGINT ignored, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    log = tmp_path / "r.chains.jsonl"
    deadline = time.time() + 60
    while time.time() < deadline and (not log.exists() or log.read_bytes().count(b"\n") < 3):
        time.sleep(0.05)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and out == "" and "interrupted" in err and "Traceback" not in err
    assert not (tmp_path / "r.json").exists()
    lines = log.read_text().splitlines()
    assert len(lines) >= 3 and all(json.loads(line) for line in lines)


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1


@dataclass(frozen=True)
class Outer:
    """An example.

    Attributes:
        output: where to. It is written whole.
        names, sizes: two lists: of words, and of numbers.
        limit: the most; null: none.
        deep: goes deep.
    """

    output: str
    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = (1, 2)
    limit: int | None = 5
    deep: bool = True
    resume: bool = False
    inner: Inner = field(default_factory=Inner)


def parse(*arguments: str) -> Outer:
    return cli.read_arguments(Outer, "example", arguments)


def test_flags_follow_the_types_of_the_configuration():
    found = parse("--output", "x", "--names", "a,b", "--sizes", "3,4", "--limit", "none", "--no-deep", "--resume")
    assert found == Outer("x", ("a", "b"), (3, 4), None, False, True)
    assert parse("--output", "7", "--names", "all").names == () and parse("--output", "7").output == "7"
    with pytest.raises(UserError, match="expected int"):
        parse("--output", "x", "--limit", "many")


def test_flags_win_over_overrides_and_those_over_the_file(tmp_path):
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"output": "file", "limit": 1, "inner": {"rate": 0.2}}))
    found = parse("--config", str(file), "limit=2", "inner.rate=0.3", "--output", "flag")
    assert (found.output, found.limit, found.inner.rate) == ("flag", 2, 0.3)
    assert parse("--config", str(file)).inner.rate == 0.2


@dataclass(frozen=True)
class Joining:
    inputs: tuple[str, ...]
    output: str
    tags: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)


def joining(*arguments: str) -> Joining:
    return cli.read_arguments(Joining, "join", arguments, positional=("inputs",), aliases={"output": "--into"})


def test_words_without_a_flag_fill_the_positional_fields_beside_overrides():
    expected = Joining(("a", "b,c"), "out", ("x", "y"), Inner(0.5))
    given = ("a", "inner.rate=0.5", "b,c", "--output", "out", "--tags", "x", "--tags", "y")
    assert joining(*given) == expected
    assert joining("--tags", "x,y", "a", "--into", "out", "b,c", "inner.rate=0.5") == expected
    assert joining("./a=b", "--output", "out").inputs == ("./a=b",)
    with pytest.raises(UserError, match="join: unknown key 'a'"):
        joining("a=b", "--output", "out", "c")
    with pytest.raises(UserError, match=r"join: give INPUTS \.\.\., --output; see `arvrm join --help`"):
        joining()


def test_lists_take_several_words_and_leave_overrides_alone():
    found = parse("--names", "a", "b,c", "inner.rate=0.3", "--output", "x", "--sizes", "3", "4")
    assert found == Outer("x", ("a", "b", "c"), (3, 4), inner=Inner(0.3))


def test_older_spellings_of_flags_stay():
    calvin = cli.VERBS["convert calvin"].settings(["--input", "a", "--output", "b", "--all"])
    assert calvin.play
    assert cli.VERBS["export lerobot"].settings(["--input", "a", "--output", "b"]).store == "a"
    chosen = cli.VERBS["few-shot"].settings(["--store", "a", "--check", "b", "--any-settings", "--scenes", "A", "B"])
    assert chosen.any_settings and chosen.scenes == ("A", "B")
    report = cli.VERBS["report"].settings(["a.json", "b.json", "--run", "p", "--run", "q"])
    assert (report.results, report.run, report.output) == (("a.json", "b.json"), ("p", "q"), "report.html")


def test_help_of_a_field_comes_from_the_docstring():
    texts = cli.field_help(Outer)
    assert texts["output"] == "where to. It is written whole"
    assert texts["names"] == texts["sizes"] == "two lists: of words, and of numbers"
    assert texts["deep"] == "goes deep" and "resume" not in texts


def test_shown_configuration_can_be_read_back(capsys, tmp_path):
    with pytest.raises(SystemExit) as left:
        cli.main(["evaluate", "--policy", "expert", "--tasks", f"{TASKS[0]},{TASKS[1]}", "--show-config"])
    assert left.value.code == 0
    file = tmp_path / "c.json"
    file.write_text(capsys.readouterr().out)
    from arvrm.evaluation import EvaluateConfig

    assert config.load(EvaluateConfig, file) == EvaluateConfig(policy="expert", tasks=TASKS[:2])
