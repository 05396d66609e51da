"""Killed at any point, or told to stop, a verb leaves what the next run goes on from by itself."""

import dataclasses
import json
import os
import shutil
import signal
import sys

import pytest
import torch
from small_stores import human_store, robot_store
from verbs_at_work import command, prepare, start

from arvrm.episodes import EpisodeStore, merge_stores
from arvrm.files import process_folder, remove_process_folder
from arvrm.model.checkpoint import load_checkpoint, save_checkpoint
from arvrm.model.keypoint_vlm import KeypointVLM
from arvrm.retrieval import ClipIndex
from arvrm.training.index_stage import frozen_encoders

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree", "tempfile.mkdtemp"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("root"))


def killed_before_change(number, work):
    """Run `work` in a fork that is killed before it changes files for this time; return whether it was."""
    pid = os.fork()
    if pid == 0:
        left = number

        def audit(event, arguments):
            nonlocal left
            written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            left -= bool(event in CHANGES or written)
            if left == 0:
                left = -1  # killing is an event too
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(audit)
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def every_point(folder, monkeypatch, begin, work, whole):
    """Kill `work` at every change of files; each time the next `work` must end, and leave what is `whole` alone."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    number, alive = 0, True
    while alive:
        number += 1
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        begin()
        alive = killed_before_change(number, work)
        work()
        whole()
        left = [name for name in os.listdir(folder) if name.startswith(".")]
        assert not left, f"point {number}: {left}"
    return number


def test_merge(tmp_path, monkeypatch):
    inputs = [human_store(tmp_path / "h", per_task=1), robot_store(tmp_path / "r", per_task=1)]
    paths = [store.path for store in inputs]
    output = tmp_path / "work" / "out"

    def whole():
        store = EpisodeStore(output)
        store.verify()
        assert len(store) == 4
        store.close()

    def work():
        merge_stores(paths, output, overwrite=True).close()

    def begin():
        merge_stores(paths[:1], output).close()

    assert every_point(tmp_path / "work", monkeypatch, begin, work, whole) > 10


def test_empty_folder_of_an_older_version_is_in_nobody_s_way(tmp_path):
    store = human_store(tmp_path / "h", per_task=1)
    for name in (".out.partial", "out.partial"):
        (tmp_path / name).mkdir()
    assert len(merge_stores([store.path], tmp_path / "out")) == 2


def test_export_lerobot(root, tmp_path, monkeypatch):
    pytest.importorskip("av")
    pytest.importorskip("pyarrow")
    from arvrm.sources.lerobot import ExportLeRobotConfig, export_lerobot

    output = tmp_path / "work" / "out"
    config = ExportLeRobotConfig(str(root / "robot2"), str(output), overwrite=True)

    def whole():
        assert json.loads((output / "meta" / "info.json").read_text())["total_episodes"] == 3
        assert list(output.glob("data/*/*.parquet")) and len(list(output.glob("videos/*/*/*.mp4"))) == 2

    begin = lambda: export_lerobot(dataclasses.replace(config, crf=40))  # noqa: E731
    assert every_point(tmp_path / "work", monkeypatch, begin, lambda: export_lerobot(config), whole) > 10


def test_checkpoint(root, tmp_path, monkeypatch):
    loaded = load_checkpoint(root / "pretrained")
    torch.manual_seed(1)
    other, output = KeypointVLM(loaded.config), tmp_path / "work" / "out"

    def whole():
        found = load_checkpoint(output).model.state_dict()
        assert all(torch.equal(found[name], value) for name, value in other.state_dict().items())

    def begin():
        save_checkpoint(output, loaded.model, loaded.metadata)

    def work():
        save_checkpoint(output, other, loaded.metadata, overwrite=True)

    assert every_point(tmp_path / "work", monkeypatch, begin, work, whole) > 10


def test_index_that_overwrites(root, tmp_path, monkeypatch):
    from arvrm.retrieval import build_index

    encoders, output = frozen_encoders(root / "pretrained"), tmp_path / "work" / "out"
    small = human_store(tmp_path / "small", tasks=1, per_task=1)
    small.close()

    def whole():
        assert len(ClipIndex.load(output)) == 6

    def begin():
        build_index([tmp_path / "small"], encoders, output)

    def work():
        build_index([root / "human"], encoders, output, overwrite=True)

    assert every_point(tmp_path / "work", monkeypatch, begin, work, whole) > 10


def test_run_that_is_begun_anew_is_still_a_run_when_that_is_killed(root, tmp_path, monkeypatch):
    from arvrm.training.runs import check_folder, prepare_folder

    output = tmp_path / "work" / "out"

    def begin():
        shutil.copytree(root / "pretrained", output)

    def work():
        if output.exists():
            check_folder(output, resume=False, overwrite=True)
        prepare_folder(output, resume=False, overwrite=True)
        (output / "run.json").write_text("{}")

    def whole():
        assert os.listdir(output) == ["run.json"]

    assert every_point(tmp_path / "work", monkeypatch, begin, work, whole) > 10


def test_store_that_is_begun_anew_is_never_half_of_one(tmp_path, monkeypatch):
    output = tmp_path / "work" / "out"

    def begin():
        human_store(output, per_task=1).close()

    def work():
        from small_stores import robot_episode

        from arvrm.episodes import EpisodeWriter

        with EpisodeWriter(output, {"source": "test"}, overwrite=True) as writer:
            writer.append(robot_episode("r"))

    def whole():
        store = EpisodeStore(output)
        assert list(store.ids) == ["r"]
        store.close()

    assert every_point(tmp_path / "work", monkeypatch, begin, work, whole) > 5


def test_process_folder_of_a_fork_is_its_own_and_goes(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    remove_process_folder()
    own = process_folder()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, str(process_folder()).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    forks = os.read(read, 1000).decode()
    assert forks != str(own) and sorted(tmp_path.iterdir()) == sorted([own, type(own)(forks)])
    pid = os.fork()
    if pid == 0:
        process_folder()
        remove_process_folder()
        os._exit(0)
    os.waitpid(pid, 0)
    assert list(tmp_path.iterdir()) == [own]
    remove_process_folder()
    assert list(tmp_path.iterdir()) == []


SLOWLY = {
    "evaluate": "from arvrm.evaluation import parent\n"
    "finish = parent.Parent._finish\n"
    "def slowly(*a):\n    finish(*a); mark()\n"
    "parent.Parent._finish = slowly",
    "finetune": "from arvrm.training import loop\n"
    "save = loop.save_state\n"
    "def slowly(*a):\n    save(*a); mark()\n"
    "loop.save_state = slowly",
    "convert calvin": "from arvrm.sources import pipeline\n"
    "pipeline.COMMIT = 1\n"
    "from arvrm.episodes import EpisodeWriter\n"
    "append = EpisodeWriter.append_encoded\n"
    "def slowly(*a, **k):\n    append(*a, **k); mark()\n"
    "EpisodeWriter.append_encoded = slowly",
    "generate": "from arvrm.sources import playtable\n"
    "playtable._UNIT = 1\n"
    "from arvrm.episodes import EpisodeWriter\n"
    "append = EpisodeWriter.append_encoded\n"
    "def slowly(*a, **k):\n    append(*a, **k); mark()\n"
    "EpisodeWriter.append_encoded = slowly",
    "merge": "from arvrm.episodes import merge\n"
    "merge._EPISODES_AT_ONCE = 1\n"
    "from arvrm.episodes import EpisodeWriter\n"
    "append = EpisodeWriter.append_encoded\n"
    "def slowly(*a, **k):\n    append(*a, **k); mark()\n"
    "EpisodeWriter.append_encoded = slowly",
}
"""What tells the test that a part is finished, and waits for the signal."""
MARK = "import time\ndef mark():\n    print('finished', flush=True)\n    time.sleep(3)\n"


@pytest.mark.parametrize(
    "verb, number",
    [
        ("evaluate", signal.SIGTERM),
        ("finetune", signal.SIGTERM),
        ("convert calvin", signal.SIGTERM),
        ("merge", signal.SIGTERM),
        ("generate", signal.SIGINT),
        ("convert calvin", signal.SIGINT),
        ("merge", signal.SIGINT),
    ],
)
def test_verb_that_is_told_to_stop_keeps_what_is_finished(root, tmp_path, monkeypatch, verb, number):
    (tmp_path / "tmp").mkdir()
    (tmp_path / "out").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    output = tmp_path / "out" / "out"
    words = command(verb, root, output)
    process = start(words, MARK + SLOWLY[verb])
    assert process.stdout.readline() == "finished\n", process.communicate()
    # As a terminal does it: to all processes of the verb.
    os.killpg(process.pid, number) if number == signal.SIGINT else os.kill(process.pid, number)
    _, complaint = process.communicate(timeout=120)
    assert process.returncode == 130, complaint
    assert "arvrm: interrupted; what was finished is kept" in complaint and "Traceback" not in complaint
    assert not [name for name in os.listdir(tmp_path / "out") if name.startswith(".")]
    if verb == "merge":  # which takes no time
        assert os.listdir(tmp_path / "out") == []
    else:
        kept = _kept(verb, output)
        assert kept
        words.append("--resume")
    again = start(words)
    _, complaint = again.communicate(timeout=200)
    assert again.returncode == 0, complaint
    # What a process left that had no time to clean up, the next one that simulates has.
    assert not list((tmp_path / "tmp").glob("arvrm-*"))
    if verb != "merge":
        assert _kept(verb, output)[: len(kept)] == kept and len(_kept(verb, output)) >= len(kept)


def _kept(verb, output):
    """What is finished, in order."""
    if verb == "evaluate":
        lines = output.with_suffix(".chains.jsonl").read_text().splitlines()[1:]
        return [json.loads(line)["index"] for line in lines]
    if verb == "finetune":
        return [1] * json.loads((output / "state" / "latest.json").read_text())["step"]
    store = EpisodeStore(output / "training" if verb == "convert calvin" else output)
    try:
        return [store.encoded(identity) for identity in store.ids]
    finally:
        store.close()
