"""A simulator and a policy of one's own, as docs/extending.md shows them, through the command line."""

import json
import os
import subprocess
import sys

import pytest
from model_batches import small
from page_code import write_files

from arvrm.config import from_dict
from arvrm.evaluation import EvaluateConfig, evaluate
from arvrm.interface import UserError
from arvrm.model.checkpoint import save_checkpoint
from arvrm.model.metadata import CheckpointMetadata
from arvrm.model.policy_net import PolicyNet
from arvrm.results import load_results
from arvrm.show.report import write_report

POINT = ("--world", "my_world:PointWorld", "--robot", "my_world:ROBOT", "--workers", "2", "--max-steps", "60")


@pytest.fixture
def folder(tmp_path):
    write_files("extending.md", "A policy", tmp_path)
    write_files("extending.md", "A simulator", tmp_path)
    return tmp_path


@pytest.fixture
def here(folder, monkeypatch):
    """The files' folder as working directory; its modules are forgotten afterwards."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in ("my_world", "my_policy"):
        sys.modules.pop(name, None)


def command(folder, *words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "arvrm", "evaluate", *words]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def settings(here, **values):
    given = {"output": str(here / "results.json"), "workers": 1, "max_steps": 40}
    given |= {"world": "my_world:PointWorld", "robot": "my_world:ROBOT", "policy": "my_policy:Wanderer"}
    return from_dict(EvaluateConfig, {**given, **values})


def test_page_s_policy_rolls_out_in_the_page_s_world(folder):
    ran = command(folder, *POINT, "--policy", "my_policy:Wanderer", "--output", "a.json", "--film-failures", "1")
    assert ran.returncode == 0 and ran.stdout.split() == ["a.json"], ran.stderr
    assert "my_policy:Wanderer in my_world:PointWorld: 20 chains" in ran.stderr
    results = load_results(folder / "a.json")
    assert {len(chain["tasks"]) for chain in results["chains"]} == {2} and results["crashed"] == 0
    assert 0 < results["average_length"] < 2
    assert results["versions"]["simulator"] == "point on a table, 1.0" and results["versions"]["robot"] == "my-point"
    for name, identity in (("my_policy:Wanderer", "policy_identity"), ("my_world:PointWorld", "world_identity")):
        assert results[identity]["name"] == name and len(results[identity]["sha256"]) == 64
    assert len(results["films"]) == 1
    page = write_report([folder / "a.json"], folder / "report.html").read_text()
    assert "my_policy:Wanderer, my_world:PointWorld" in page and "scene D" not in page and "my-point" in page
    again = command(folder, *POINT, "--policy", "my_policy:Wanderer", "--output", "b.json", "--workers", "3")
    assert again.returncode == 0
    without_films = [{k: v for k, v in chain.items() if k != "film"} for chain in results["chains"]]
    assert load_results(folder / "b.json")["chains"] == without_films


def test_page_s_policy_rolls_out_at_the_play_table(folder):
    words = ("--policy", "my_policy:Wanderer", "--chains", "1", "--max-steps", "12", "--output", "table.json")
    ran = command(folder, *words)
    assert ran.returncode == 0, ran.stderr
    results = load_results(folder / "table.json")
    assert results["versions"]["robot"] == "calvin" and results["crashed"] == 0 and len(results["chains"]) == 1


def test_checkpoint_for_one_s_own_robot_rolls_out_in_one_s_own_world(here):
    from my_world import ROBOT

    metadata = CheckpointMetadata("finetune", history=2, stride=3, images={"rgb_top": 32})
    save_checkpoint(here / "policy", PolicyNet(small(), ROBOT), metadata)
    words = ("--checkpoint", "policy", "--output", "a.json", "--chains", "3")
    ran = command(here, *POINT, *words)
    assert ran.returncode == 0, ran.stderr
    results = load_results(here / "a.json")
    assert results["crashed"] == 0 and len(results["chains"]) == 3 and results["planning"]["plans"] > 0
    unknown = command(here, *POINT[:2], *words, "--overwrite")
    assert unknown.returncode == 2 and "unknown robot 'my-point'" in unknown.stderr
    elsewhere = command(here, *POINT[2:], *words, "--overwrite")
    assert elsewhere.returncode == 2 and "robot 'my-point', this world has 'calvin'" in elsewhere.stderr


def test_policy_of_another_robot_is_refused_before_the_first_chain(folder):
    ran = command(folder, *POINT[:2], "--policy", "my_policy:Wanderer", "--output", "a.json")
    assert ran.returncode == 2 and not (folder / "a.json").exists()
    (line,) = [line for line in ran.stderr.splitlines() if line]
    assert "robot 'calvin'" in line and "'my-point'" in line


@pytest.mark.parametrize(
    "given",
    [{"scene": "A"}, {"renderer": "egl"}, {"assets": "calvin"}, {"calvin_root": "x"}, {"lighting": {"ambient": 0.1}},
     {"camera_shift": {"metres": 0.1}}, {"block_colours": {"red": [0, 0, 0, 1]}}, {"protocol": "single"},
     {"starts": 3}, {"chain_file": "x.json"}, {"instructions": "unseen"}],
)  # fmt: skip
def test_what_only_the_play_table_has_is_refused_by_name(here, given):
    (name,) = given
    with pytest.raises(UserError, match=name) as caught:
        evaluate(None, settings(here, **given))
    assert "my_world:PointWorld" in str(caught.value)


def test_chains_tasks_and_sentences_are_chosen_among_the_world_s_own(here):
    (here / "said.json").write_text(json.dumps({"go_left": "left!", "go_right": ["right!", "to the right!"]}))
    evaluate(None, settings(here, chains=3, instructions="said.json", policy="random"))
    assert [chain["index"] for chain in load_results(here / "results.json")["chains"]] == [0, 1, 2]
    with pytest.raises(UserError, match="no chains are left"):
        evaluate(None, settings(here, tasks=("go_left",), overwrite=True))
    with pytest.raises(UserError, match="did you mean 'go_left'"):
        evaluate(None, settings(here, tasks=("go_lift",), overwrite=True))
    (here / "said.json").write_text(json.dumps({"go_left": "left!"}))
    with pytest.raises(UserError, match="no sentence for 'go_right'"):
        evaluate(None, settings(here, instructions="said.json", overwrite=True))


def test_world_without_experts_says_so(here):
    with pytest.raises(UserError, match="PointWorld has no experts"):
        evaluate(None, settings(here, policy="expert"))


def test_another_version_of_policy_or_world_does_not_go_on_with_a_log(here):
    evaluate(None, settings(here, chains=2))
    evaluate(None, settings(here, chains=2, resume=True))
    for name, key in (("my_policy.py", "identity"), ("my_world.py", "world_identity")):
        text = (here / name).read_text()
        (here / name).write_text(text + "\n# another version\n")
        with pytest.raises(UserError, match=f"begun with {key} ="):
            evaluate(None, settings(here, chains=2, resume=True))
        (here / name).write_text(text)


def test_names_that_lead_nowhere_are_refused_in_one_line(here):
    for given, message in (
        ({"world": "my_world:Point"}, "my_world has no 'Point'"),
        ({"world": "my_world:SENTENCES"}, "--world my_world:SENTENCES: is a dict"),
        ({"policy": "my_policy:np"}, "--policy my_policy:np: is a module"),
        ({"policy": "my_policy:PolicySpec"}, "gave no policy with `spec` and `plan`"),
        ({"policy": "expart"}, "did you mean 'expert'"),
        ({"robot": "my_world:PointWorld"}, "so it is no robot"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            evaluate(None, settings(here, **given))
        assert "\n" not in str(caught.value)
