"""Files that are whole or not there, and names that files state."""

import json
import os
import stat
import threading
import time

import pytest

from arvrm.files import check_free, inside, read_json, replacing, write_json
from arvrm.interface import UserError


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    file = tmp_path / "new" / "a.json"
    write_json(file, {"a": [1, 2.5, None]})
    assert json.loads(file.read_text()) == read_json(file) == {"a": [1, 2.5, None]}
    with pytest.raises(RuntimeError), replacing(file) as partial:
        partial.write_text("half")
        raise RuntimeError
    with pytest.raises(ValueError):
        write_json(file, {"a": float("nan")})
    assert read_json(file) == {"a": [1, 2.5, None]} and os.listdir(file.parent) == ["a.json"]


def test_a_new_file_has_the_rights_that_open_gives(tmp_path):
    write_json(tmp_path / "a.json", {})
    (tmp_path / "b.json").write_text("{}")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.json", "b.json")}
    assert len(modes) == 1


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff\xfe{}", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"])
def test_what_is_no_json_object_is_one_line(tmp_path, content):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json(file, "do something")
    assert "\n" not in str(caught.value) and str(file) in str(caught.value) and "do something" in str(caught.value)


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_json(tmp_path / "file" / "a.json", {})
    with pytest.raises(UserError, match="--overwrite"):
        check_free(tmp_path / "file", overwrite=False)
    check_free(tmp_path / "file", overwrite=True)


def test_a_name_from_a_file_stays_in_its_folder(tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"film")
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (folder / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    assert inside(folder, "a.mp4", (".mp4",), "results.json") == folder / "a.mp4"
    wrong = ["../secret.mp4", "/etc/hostname", "..", "", "a.png", "b/../a.mp4", "link.mp4", None, 3, "..\\secret.mp4"]
    for name in wrong:
        with pytest.raises(UserError, match="results.json"):
            inside(folder, name, (".mp4",), "results.json")


def test_what_has_no_end_or_gives_nothing_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    begin = time.monotonic()
    for file in ("/dev/zero", tmp_path / "pipe", "/dev/null", tmp_path):
        with pytest.raises(UserError, match="give an existing JSON file"):
            read_json(file)
    assert time.monotonic() - begin < 3


def test_what_a_shell_pipes_in_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=('{"a": 1}',))
    writer.start()
    time.sleep(0.1)
    assert read_json(tmp_path / "pipe") == {"a": 1}
    writer.join()
