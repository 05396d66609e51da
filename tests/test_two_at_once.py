"""Of two processes that write the same output one works, the other says so in a line, and nothing is lost."""

import json
import os
import shutil

import pytest
from verbs_at_work import command, prepare, start

from arvrm.episodes import EpisodeStore
from arvrm.interface import UserError
from arvrm.results import load_results

WAITS = """
from arvrm import files
from pathlib import Path
take, wanted = files._take, os.path.realpath(os.environ["WAITS_AT"])
def waiting(file, path):
    handle = take(file, path)
    if os.path.realpath(path) == wanted:
        print("locked", flush=True)
        sys.stdin.readline()
    return handle
files._take = waiting
"""
"""The process stops when it has locked the path in the environment, until it is told to go on."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("root"))


def refused_meanwhile(monkeypatch, words, locked):
    """Run the verb twice at once; the first must end with 0, the second with one line."""
    monkeypatch.setenv("WAITS_AT", str(locked))
    first = start(words, WAITS)
    said = first.stdout.readline()
    if said != "locked\n":
        pytest.fail(f"took no lock: {said}{first.communicate()[1][-2000:]}")
    second = start(words)
    _, complaint = second.communicate(timeout=120)
    assert second.returncode == 2, complaint
    assert complaint.splitlines()[-1].startswith("arvrm: ") and f"process {first.pid}" in complaint
    assert "is writing it; wait" in complaint and "Traceback" not in complaint
    _, complaint = first.communicate("\n", timeout=300)
    assert first.returncode == 0, complaint


def clean(folder):
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_merge(root, tmp_path, monkeypatch):
    refused_meanwhile(monkeypatch, command("merge", root, tmp_path / "out"), tmp_path / "out")
    store = EpisodeStore(tmp_path / "out")
    store.verify()
    assert len(store) == 12
    clean(tmp_path)


def test_export_lerobot_that_overwrites(root, tmp_path, monkeypatch):
    pytest.importorskip("av")
    pytest.importorskip("pyarrow")
    words = command("export lerobot", root, tmp_path / "out")
    assert start(words).wait(120) == 0
    refused_meanwhile(monkeypatch, [*words, "--overwrite"], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "meta" / "info.json").read_text())["total_episodes"] == 6
    assert list(tmp_path.glob("out/data/*/*.parquet")) and list(tmp_path.glob("out/videos/*/*/*.mp4"))
    clean(tmp_path)


def test_index_that_overwrites(root, tmp_path, monkeypatch):
    words = command("index", root, tmp_path / "out")
    assert start(words).wait(120) == 0
    refused_meanwhile(monkeypatch, [*words, "--overwrite"], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "index.json").read_text())["search"]["clips"] == 6
    clean(tmp_path)


def test_pretraining_that_resumes(root, tmp_path, monkeypatch):
    shutil.copytree(root / "pretrained", tmp_path / "out")
    lines = (tmp_path / "out" / "metrics.jsonl").read_bytes()
    words = [*command("pretrain", root, tmp_path / "out"), "--resume"]
    refused_meanwhile(monkeypatch, words, tmp_path / "out")
    assert (tmp_path / "out" / "metrics.jsonl").read_bytes() == lines
    clean(tmp_path)


def test_evaluation(root, tmp_path, monkeypatch):
    words = command("evaluate", root, tmp_path / "out.json")
    refused_meanwhile(monkeypatch, [*words, "--overwrite"], tmp_path / "out.chains.jsonl")
    assert [chain["index"] for chain in load_results(tmp_path / "out.json")["chains"]] == [0, 1, 2]
    clean(tmp_path)


@pytest.mark.parametrize("verb", ["generate", "convert calvin", "few-shot", "report", "inspect"])
def test_other_verbs_take_the_same_lock(root, tmp_path, monkeypatch, verb):
    """Asked in one process, which holds the lock as another would."""
    from arvrm import files
    from arvrm.cli import main

    output = tmp_path / "out"
    holder = start([str(output)], HOLDS)
    assert holder.stdout.readline() == "locked\n"
    said = []
    monkeypatch.setattr("arvrm.processes.complain", said.append)
    assert main(command(verb, root, output)) == 2
    assert len(said) == 1 and f"process {holder.pid}" in said[0]
    holder.communicate("\n")
    assert not output.exists() or not os.listdir(output)
    with files.locked(output):
        pass


HOLDS = """
from arvrm.files import locked
with locked(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.readline()
sys.exit(0)
"""


@pytest.mark.parametrize("verb, name", [("evaluate", "out.json"), ("report", "out.html"), ("inspect", "out.png")])
def test_overwrite_replaces_files_of_its_own_kind_only(root, tmp_path, monkeypatch, verb, name):
    from arvrm.cli import main

    output = tmp_path / name
    output.write_text("a thesis\n" * 100)
    said = []
    monkeypatch.setattr("arvrm.processes.complain", said.append)
    assert main(command(verb, root, output)) == 2 and "--overwrite" in said[-1]
    assert main([*command(verb, root, output), "--overwrite"]) == 2
    assert f"{name}: is not " in said[-1] and "so it is not overwritten" in said[-1]
    assert main([*command(verb, root, "/dev/null"), "--overwrite"]) == 2
    assert output.read_text() == "a thesis\n" * 100 and os.path.exists("/dev/null")
    assert os.listdir(tmp_path) == [name]
    if verb != "evaluate":  # which the test above lets overwrite
        output.unlink()
        assert main(command(verb, root, output)) == main([*command(verb, root, output), "--overwrite"]) == 0


def test_chain_log_is_all_that_an_evaluation_begins_anew(tmp_path):
    from arvrm.results import ChainLog

    log = tmp_path / "out.chains.jsonl"
    log.write_text("a thesis")
    with pytest.raises(UserError, match="is not a chain log"):
        ChainLog(log, {}, overwrite=True)
    for torn in ("", '{"form'):
        log.write_text(torn)
        ChainLog(log, {"seed": 1}, overwrite=True).close()
        assert json.loads(log.read_text())["fingerprint"] == {"seed": 1}


def test_sheet_that_inspect_draws_by_itself_stays_as_it_is(root, tmp_path, capsys):
    from arvrm.cli import main

    shutil.copytree(root / "robot", tmp_path / "store")
    assert main(["inspect", str(tmp_path / "store")]) == 0
    (tmp_path / "store.png").write_bytes(b"\x89PNG\r\nmine")
    assert main(["inspect", str(tmp_path / "store")]) == 0
    said = capsys.readouterr()
    assert "store.png: is there already; pass --overwrite" in said.err
    assert (tmp_path / "store.png").read_bytes() == b"\x89PNG\r\nmine"
    assert main(["inspect", str(tmp_path / "store"), "--overwrite"]) == 0
    assert (tmp_path / "store.png").stat().st_size > 1000
