"""The page about one picture and one sentence."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from small_stores import human_episode, robot_episode, write
from test_analogy_policy import made
from test_motions import library

from arvrm.cli.explain import ExplainConfig, explain
from arvrm.interface import UserError
from arvrm.moments import episode_moments
from arvrm.show.explain import _touched, heated


def test_photo_of_any_shape_gets_a_page(tmp_path):
    folder = made(tmp_path / "c")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (70, 120, 3), dtype=np.uint8)).save(tmp_path / "table.png")
    words = ["--checkpoint", str(folder), "--image", str(tmp_path / "table.png"), "--text", "press <b>it</b>"]
    command = [sys.executable, "-m", "arvrm", "explain", *words, "--output", str(tmp_path / "page.html")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path / "page.html"), done.stderr
    assert "Warning" not in done.stderr
    page = (tmp_path / "page.html").read_text()
    assert "its middle square" in page and "demo-0" in page and "press &lt;b&gt;it&lt;/b&gt;" in page
    assert "place seen with low confidence" in page, "an untrained network is sure of nothing, and the page says so"
    assert page.count("data:image/jpeg") == 2
    assert "came from is not here any more" in page and "are not here any more" in page
    assert "100 % of the position" in page, "the map of this checkpoint has the tips alone"
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2 and "--overwrite" in again.stderr


def test_scene_and_frame_of_a_store_get_a_page(tmp_path):
    from small_stores import robot_store

    folder = made(tmp_path / "c")
    page = explain(ExplainConfig(str(folder), "open the drawer", str(tmp_path / "a.html"), scene="D", layout=3))
    assert "built-in scene D, layout 3, as official chain 0 begins" in page.read_text()
    store = robot_store(tmp_path / "s", tasks=1, per_task=1)
    settings = ExplainConfig(
        str(folder), "open it", str(tmp_path / "b.html"), store=str(store.path), episode=store.ids[0], step=4
    )
    assert f"{store.ids[0]}, step " in explain(settings).read_text()


def test_what_cannot_be_explained_is_refused_in_one_line(tmp_path):
    folder = made(tmp_path / "c")
    (tmp_path / "no.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="cannot be read as a picture"):
        explain(ExplainConfig(str(folder), "press it", str(tmp_path / "a.html"), image=str(tmp_path / "no.png")))
    with pytest.raises(UserError, match="give one picture"):
        explain(ExplainConfig(str(folder), "press it", image="a.png", scene="D"))
    with pytest.raises(UserError, match="text: give an instruction"):
        explain(ExplainConfig(str(folder), " ", image="a.png"))


def test_the_touch_that_is_shown_is_the_one_that_the_policy_knows(tmp_path):
    both = [robot_episode("a", steps=40), human_episode("b", steps=40)]
    store = write(tmp_path / "both", both)
    first, *_ = library()
    as_robot = dataclasses.replace(first, id="a", embodiment="robot")
    as_hand = dataclasses.replace(first, id="b", embodiment="human")
    told = [dataclasses.replace(one, touched=7) for one in (as_robot, as_hand)]
    a, b = store.header("a"), store.header("b")
    assert _touched(store, a, told) == 7 and _touched(store, b, told) == 7
    assert _touched(store, a, [as_robot]) == first.path.touch, "a library of before has the robot's own steps"
    assert _touched(store, b, [as_hand]) == episode_moments(store, "b").touch
    assert _touched(store, a, [dataclasses.replace(told[1], id="a")]) == episode_moments(store, "a").touch


def test_heat_is_hottest_where_it_is_likeliest():
    heat = np.zeros((48, 48), np.float32)
    heat[12, 36] = 1.0
    drawn = heated(np.zeros((96, 96, 3), np.uint8), heat, np.zeros((0, 2)))
    assert np.unravel_index(drawn[..., 0].argmax(), (96, 96)) in [(r, c) for r in (24, 25) for c in (72, 73)]
