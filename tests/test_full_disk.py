"""A full or read-only disk is one line, whatever writes, and what was written before stays whole."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from small_stores import human_store
from verbs_at_work import command, prepare

from arvrm import files
from arvrm.cli import main
from arvrm.episodes import EpisodeStore, EpisodeWriter
from arvrm.interface import UserError
from arvrm.windows import EpisodeTable, decode_frames


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("root"))


@pytest.fixture
def disk(tmp_path):
    """A disk of 4 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def said(monkeypatch):
    """What is said of errors; here, so that other output may go where it goes."""
    lines = []
    monkeypatch.setattr("arvrm.processes.complain", lines.append)
    return lines


def fill(disk: Path, leave: int) -> None:
    """Leave so many bytes free."""
    (disk / "filler").unlink(missing_ok=True)
    state = os.statvfs(disk)
    (disk / "filler").write_bytes(b"x" * max(0, state.f_bavail * state.f_frsize - leave))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(said, words) -> None:
    assert main(words) == 2
    assert len(said) == 1 and "\n" not in said[0], said
    assert any(text in said[0] for text in ("No space left", "Read-only file system")), said
    said.clear()


VERBS = ["generate", "convert calvin", "merge", "few-shot", "export lerobot", "index", "report", "inspect"]


@pytest.mark.parametrize("verb", VERBS)
def test_verb_says_in_a_line_that_the_disk_is_full(root, disk, said, verb):
    if verb == "export lerobot":
        pytest.importorskip("av")
        pytest.importorskip("pyarrow")
    words = command(verb, root, disk / "out")
    for free in (0, 4096, 12288):
        fill(disk, free)
        if free and (verb == "few-shot" or verb == "report" and free > 4096):
            continue  # it fits
        refused(said, words)
        store = disk / "out" / "training" if verb == "convert calvin" else disk / "out"
        if store.exists():
            assert verb in ("generate", "convert calvin") and {p.name for p in store.iterdir()} <= {
                "data.mdb",
                "lock.mdb",
            }
            shutil.rmtree(disk / "out")
        assert os.listdir(disk) == ["filler"]


@pytest.mark.parametrize("verb", ["index", "export lerobot", "merge", "report"])
def test_output_that_was_to_be_replaced_on_a_full_disk_stays(root, disk, said, verb):
    if verb == "export lerobot":
        pytest.importorskip("av")
        pytest.importorskip("pyarrow")
    words = command(verb, root, disk / "out")
    assert main(words) == 0
    before = contents(disk)
    fill(disk, 4096)
    refused(said, [*words, "--overwrite"])
    (disk / "filler").unlink()
    assert contents(disk) == before


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_training_on_a_full_disk_goes_on_when_there_is_room(root, disk, said, verb):
    words = command(verb, root, disk / "out")
    for free in (0, 8192, 400_000):  # the folder, the metrics, the state
        fill(disk, free)
        refused(said, [*words, "--resume"])
    (disk / "filler").unlink()
    assert main([*words, "--resume"]) == 0
    lines = (disk / "out" / "metrics.jsonl").read_text()
    assert lines.count('"train"') == 4 and not [n for n in os.listdir(disk / "out") if n.startswith(".")]


def test_evaluation_on_a_full_disk_goes_on_when_there_is_room(root, disk, said):
    words = command("evaluate", root, disk / "out.json")
    for free in (0, 8192):  # the log's first line, the results
        fill(disk, free)
        refused(said, [*words, "--resume"])
    assert (disk / "out.chains.jsonl").read_text().count('"steps"') == 3
    (disk / "filler").unlink()
    assert main([*words, "--resume"]) == 0


def test_cache_on_a_full_disk_is_a_line_and_no_signal(disk, tmp_path):
    store = human_store(tmp_path / "human", tasks=1, per_task=4, steps=61, size=64)
    table = EpisodeTable([store], "human", stride=3)
    store.close()
    fill(disk, 400_000)
    pid = os.fork()
    if pid == 0:
        try:
            decode_frames(table, "rgb_static", cache=disk / "cache")
        except UserError as error:
            os._exit(7 if "No space left" in str(error) else 8)
        finally:
            os._exit(9)
    state = os.waitpid(pid, 0)[1]
    assert not os.WIFSIGNALED(state), signal.Signals(os.WTERMSIG(state))
    assert os.WEXITSTATUS(state) == 7 and os.listdir(disk / "cache") == []
    (disk / "filler").unlink()
    frames = decode_frames(table, "rgb_static", cache=disk / "cache")
    assert np.array_equal(frames.parts[0], decode_frames(table, "rgb_static").parts[0])


def test_space_is_taken_where_the_system_cannot_reserve_it(tmp_path, monkeypatch):
    file = tmp_path / "file"
    with open(file, "wb") as stream:
        stream.write(b"begin")
        stream.truncate(3_000_000)
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    files.allocate(file)
    assert file.read_bytes() == b"begin" + bytes(3_000_000 - 5) and file.stat().st_blocks * 512 >= 3_000_000


def test_store_on_a_full_disk_keeps_its_episodes_and_goes_on(disk):
    from small_stores import robot_episode

    fill(disk, 700_000)
    with pytest.raises(UserError, match=r"No space left.*pass --resume, the \d+ episodes before are safe"):
        with EpisodeWriter(disk / "store", {"source": "test"}) as writer:
            for number in range(1000):
                writer.append(robot_episode(f"r{number}", size=64, seed=number))
    kept = EpisodeStore(disk / "store")
    kept.verify()
    assert 1 < len(kept) == number
    kept.close()
    (disk / "filler").unlink()
    with EpisodeWriter(disk / "store", {"source": "test"}, resume=True) as writer:
        writer.append(robot_episode("last", size=64))
    assert len(EpisodeStore(disk / "store")) == number + 1


@pytest.mark.parametrize("verb", ["generate", "merge", "index", "pretrain", "evaluate", "report", "few-shot"])
def test_verb_says_in_a_line_that_the_disk_is_read_only(root, disk, said, verb):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    refused(said, command(verb, root, disk / "out"))
