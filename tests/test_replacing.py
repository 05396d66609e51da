"""Files and folders are whole or not there, whenever a process is killed and whoever else writes."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

from arvrm import files
from arvrm.files import locked, replacing, replacing_folder
from arvrm.interface import UserError


def fill(folder, text):
    (folder / "deep").mkdir()
    for name in ("a", "b", "deep/c"):
        (folder / name).write_text(text)


def content(folder):
    """The one text that all files of the folder hold."""
    texts = {(folder / name).read_text() for name in ("a", "b", "deep/c")}
    assert len(texts) == 1
    return texts.pop()


def hidden(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def in_a_process(code, *arguments):
    """Start a process that runs `code`; it has printed a line when this returns."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    process.said = process.stdout.readline().strip()
    return process


def kill(process):
    process.kill()
    process.wait()
    process.stdout.close()
    process.stdin.close()


def killed_at_line(number, work):
    """Run `work` in a fork that dies at the given line of files.py or call within shutil; return whether it did."""
    pid = os.fork()
    if pid == 0:
        left = number

        def trace(frame, event, _):
            nonlocal left
            inside = frame.f_code.co_filename == files.__file__
            if not inside and frame.f_code.co_filename != shutil.__file__:
                return None
            left -= event == ("line" if inside else "call")
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def test_file_is_replaced_when_it_is_whole(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    with pytest.raises(KeyError), replacing(file) as partial:
        partial.write_text("half")
        raise KeyError
    assert file.read_text() == "old"
    with replacing(file) as partial:
        partial.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new" and os.listdir(tmp_path) == ["file"]
    assert file.stat().st_mode & 0o777 == 0o666 & ~files._umask()


WRITES = """
import sys
from arvrm.files import replacing
with replacing(sys.argv[1]) as partial:
    partial.write_text("half")
    print(partial.name, flush=True)
    sys.stdin.read()
"""


def test_temporary_file_of_a_killed_process_goes_and_that_of_a_living_one_stays(tmp_path):
    dead, living = (in_a_process(WRITES, tmp_path / "file") for _ in range(2))
    kill(dead)
    with replacing(tmp_path / "file") as partial:
        partial.write_text("mine")
    assert hidden(tmp_path) == [living.said]
    living.communicate()
    assert (tmp_path / "file").read_text() == "half" and hidden(tmp_path) == []


def test_folder_is_replaced_when_it_is_whole(tmp_path):
    folder = tmp_path / "folder"
    with replacing_folder(folder) as partial:
        fill(partial, "old")
        assert not folder.exists()
    assert content(folder) == "old"
    with pytest.raises(KeyError), replacing_folder(folder, overwrite=True) as partial:
        fill(partial, "half")
        raise KeyError
    assert content(folder) == "old" and os.listdir(tmp_path) == ["folder"]
    with replacing_folder(folder, overwrite=True) as partial:
        fill(partial, "new")
        assert content(folder) == "old"
    assert content(folder) == "new" and os.listdir(tmp_path) == ["folder"]
    assert folder.stat().st_mode & 0o777 == 0o777 & ~files._umask()


def test_folder_behind_a_link_is_replaced_where_it_lies(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "folder")
    for text in ("old", "new"):
        with replacing_folder(tmp_path / "link", overwrite=True) as partial:
            fill(partial, text)
    assert (tmp_path / "link").is_symlink() and content(tmp_path / "disk" / "folder") == "new"


def test_folder_that_may_not_be_replaced_stays(tmp_path):
    def check(folder):
        if not (folder / "mark").exists():
            raise UserError(f"{folder}: is no index; give another path")

    folder = tmp_path / "folder"
    with replacing_folder(folder, check=check) as partial:
        fill(partial, "old")
    (tmp_path / "file").write_text("")
    for path, options, said in (
        (folder, {}, "folder: exists; pass --overwrite"),
        (folder, {"overwrite": True, "check": check}, "folder: is no index"),
        (tmp_path / "file", {"overwrite": True}, "file: is a file"),
        (tmp_path / "file" / "inside", {}, "inside: cannot be written"),
    ):
        with pytest.raises(UserError, match=said), replacing_folder(path, **options):
            raise AssertionError("began to work")
    assert content(folder) == "old" and hidden(tmp_path) == []


def test_full_disk_is_one_line_and_other_mistakes_are_not_called_so(tmp_path):
    with pytest.raises(UserError, match=r"folder: cannot be written \(No space"), replacing_folder(tmp_path / "folder"):
        raise OSError(28, "No space left on device")
    with pytest.raises(FileNotFoundError), replacing_folder(tmp_path / "folder"):
        (tmp_path / "input").read_text()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("again", [True, False], ids=["replaced", "looked at"])
def test_folder_survives_a_kill_at_any_line(tmp_path, monkeypatch, again):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # which matters where the power fails, and takes long
    folder = tmp_path / "folder"

    def replaced():
        with replacing_folder(folder, overwrite=True) as partial:
            fill(partial, "new")

    seen, number, alive = set(), 0, True
    while alive:
        number += 1
        shutil.rmtree(folder, ignore_errors=True)
        with replacing_folder(folder) as partial:
            fill(partial, "old")
        alive = killed_at_line(number, replaced)
        seen.add(content(folder) if folder.exists() else "aside")
        if again:
            with replacing_folder(folder, overwrite=True) as partial:
                fill(partial, "newer")
            assert content(folder) == "newer"
        else:
            with pytest.raises(UserError, match="exists"), replacing_folder(folder):
                raise AssertionError("began to work")
            assert content(folder) in ("old", "new")
        assert hidden(tmp_path) == [], f"line {number}"
    assert seen == {"old", "aside", "new"} and number > 100


HOLDS = """
import os, sys
from arvrm.files import locked
with locked(sys.argv[1]):
    if sys.argv[2:] and os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


def test_output_that_another_process_writes_is_refused_and_free_when_that_is_killed(tmp_path):
    output = tmp_path / "folder"
    other = in_a_process(HOLDS, output)
    with pytest.raises(UserError, match=rf"folder: process {other.said} on .* is writing it; wait") as error:
        with replacing_folder(output):
            raise AssertionError("began to work")
    assert "\n" not in str(error.value)
    with locked(tmp_path / "other"):
        pass
    kill(other)
    with replacing_folder(output) as partial:
        fill(partial, "new")
    assert content(output) == "new" and hidden(tmp_path) == []


def test_worker_that_outlives_its_killed_parent_does_not_hold_the_lock(tmp_path):
    read, write = os.pipe()
    command = [sys.executable, "-c", textwrap.dedent(HOLDS), str(tmp_path / "folder"), "fork"]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=read, text=True)
    os.close(read)
    parent.stdout.readline()
    parent.kill()
    parent.wait()
    with locked(tmp_path / "folder"):
        pass
    os.close(write)  # now the worker ends
    parent.stdout.close()


def test_process_may_lock_what_it_has_locked(tmp_path):
    with locked(tmp_path / "folder"):
        with locked(tmp_path / "sub" / ".." / "folder"):
            pass
        other = in_a_process(HOLDS, tmp_path / "folder")
        assert other.said == "" and other.wait() == 1, "the inner block's end did not give the lock up"
        kill(other)
    assert hidden(tmp_path) == []
