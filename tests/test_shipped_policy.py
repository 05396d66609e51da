"""The policy that the package brings works right after installation."""

import subprocess
import sys

from arvrm.model.checkpoint import place_of, read_described
from arvrm.results import load_results


def test_builtin_policy_does_what_it_is_told_in_a_scene_it_has_not_seen(tmp_path):
    command = [sys.executable, "-m", "arvrm", "evaluate", "--checkpoint", "builtin", "--scene", "D", "--chains", "2"]
    done = subprocess.run(
        [*command, "--workers", "2", "--output", "results.json"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    results = load_results(tmp_path / "results.json")
    assert results["average_length"] >= 2, "it makes about four of five"
    assert results["policy_identity"]["checkpoint"] == "builtin" and results["crashed"] == 0


def test_builtin_policy_is_small_has_a_card_and_names_no_machine():
    folder = place_of("builtin")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 25 << 20
    assert "What it learnt from" in (folder / "README.md").read_text()
    described = read_described(folder)
    assert described.kind == "analogy"
    assert (
        "/" not in "".join(store["path"] for store in described.metadata["stores"]) + described.metadata["pretrained"]
    )


def test_folder_here_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = place_of("builtin")
    assert shipped.is_absolute() and (shipped / "config.json").is_file()
    (tmp_path / "builtin").mkdir()
    assert str(place_of("builtin")) == "builtin"
