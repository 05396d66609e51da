import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from arvrm.films import FilmWriter, compose_frame
from arvrm.interface import KEYPOINTS, UserError
from arvrm.results import ChainRecord, save_results, summarize
from arvrm.robots.calvin import COMPONENTS
from arvrm.show.exhibits import choose_episodes
from arvrm.show.figures import chain_figure, curve_figure, hand_positions, map_figure, task_figure
from arvrm.show.report import write_report

CHAIN = ("open_drawer", "turn_on_led", "close_drawer", "turn_off_led", "lift_red_block_table")


def results(completed=(5, 2, 0), **config):
    records = [ChainRecord(i, CHAIN, done, (10,) * min(5, done + 1)) for i, done in enumerate(completed)]
    values = {"policy": "checkpoint", "scene": "D", "assets": "builtin", "instructions": "validation", "seed": 3}
    values |= config
    versions = {"python": "3.11", "torch": "2.13", "commit": "c0ffee", "hardware": "a <fast> machine"}
    return summarize(records) | {"config": values, "versions": versions, "seconds": 60.0}


class Page(HTMLParser):
    """Collects tags, and everything the page would load."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"


@pytest.fixture
def inputs(tmp_path):
    """A results file with a film, a training run and exhibits, as their makers write them."""
    film = FilmWriter(tmp_path / "r_films" / "chain_00001.mp4")
    images = {"rgb_static": np.zeros((20, 20, 3), np.uint8), "rgb_gripper": np.zeros((8, 8, 3), np.uint8)}
    for step in range(4):
        film.add(compose_frame(images, "open the drawer", "1 of 5", step))
    film.close()
    values = results()
    values["chains"][1]["film"] = "chain_00001.mp4"
    values["films"] = ["r_films/chain_00001.mp4"]
    save_results(tmp_path / "r.json", values)
    run = tmp_path / "run"
    run.mkdir()
    lines = [{"step": s, "split": split, "loss": 1 / s} for s in (1, 5, 9) for split in ("train", "validation")]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 10, "sp')
    (run / "run.json").write_text(json.dumps({"stage": "finetune", "config": {"output": "run"}}))
    exhibits = tmp_path / "exhibits"
    exhibits.mkdir()
    Image.new("RGB", (4, 4)).save(exhibits / "a.png")
    clip = {"id": "h", "instruction": "pull <it>", "task": "open_drawer", "scene": "A", "language": 0.5, "visual": 0.9}
    query = {"instruction": "open", "task": "open_drawer", "scene": "B", "picture": "a.png"}
    described = {
        "components": list(COMPONENTS),
        "keypoints": list(KEYPOINTS),
        "retrieval": [{**query, "clips": [{**clip, "picture": "a.png"}]}],
        "map": {"kind": "global", "rows": "softmax", "alpha": 0.5, "weights": np.full((7, 21), 1 / 21).tolist()},
    }
    (exhibits / "exhibits.json").write_text(json.dumps(described))
    return tmp_path


def test_page_holds_everything_and_loads_nothing(inputs):
    page = write_report([inputs / "r.json"], inputs / "report.html", [inputs / "run"], inputs / "exhibits")
    text = page.read_text()
    found = Page(text)
    assert not found.open, f"unclosed {found.open}"
    assert found.sources and all(source.startswith("data:") for source in found.sources)
    assert not re.search(r"@import|url\(|<script", text)
    assert found.tags.count("video") == 1 and found.tags.count("svg") == 2 + 1 + 7
    for said in ("2.33", "c0ffee", "a &lt;fast&gt; machine", "pull &lt;it&gt;", "language 0.50", "visual 0.90"):
        assert said in text


def test_existing_page_is_kept_unless_told_otherwise(inputs):
    page = inputs / "report.html"
    write_report([inputs / "r.json"], page)
    with pytest.raises(UserError, match="--overwrite"):
        write_report([inputs / "r.json"], page)
    write_report([inputs / "r.json"], page, overwrite=True)


@pytest.mark.parametrize("missing", ["results", "run", "exhibits"])
def test_missing_inputs_are_named_and_no_page_is_left(inputs, missing):
    arguments = {
        "results": [inputs / ("none.json" if missing == "results" else "r.json")],
        "runs": [inputs / ("none" if missing == "run" else "run")],
        "exhibits": inputs / ("none" if missing == "exhibits" else "exhibits"),
    }
    with pytest.raises(UserError, match="none"):
        write_report(output=inputs / "page.html", **arguments)
    assert not (inputs / "page.html").exists()


@pytest.mark.parametrize("name", ["../s.mp4", "/etc/hostname", "r_films/../../s.mp4", "r_films/a.txt", "a.mp4"])
def test_page_holds_no_film_from_elsewhere(inputs, name):
    values = json.loads((inputs / "r.json").read_text())
    values["films"], values["chains"][0]["film"] = [name], name.rpartition("/")[2]
    (inputs / "r.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="film"):
        write_report([inputs / "r.json"], inputs / "page.html")


def test_page_holds_no_picture_from_elsewhere(inputs):
    file = inputs / "exhibits" / "exhibits.json"
    file.write_text(file.read_text().replace('"a.png"', '"../secret.png"'))
    with pytest.raises(UserError, match="secret.png"):
        write_report([inputs / "r.json"], inputs / "page.html", exhibits=inputs / "exhibits")


def test_several_results_are_compared_under_names_that_differ(inputs):
    save_results(inputs / "other" / "r.json", results((5, 5, 5)))
    save_results(inputs / "expert.json", results((5, 5), policy="expert"))
    page = write_report([inputs / "r.json", inputs / "expert.json"], inputs / "two.html").read_text()
    assert "learnt policy, built-in scene D" in page and "scripted expert, built-in scene D" in page
    page = write_report([inputs / "r.json", inputs / "other" / "r.json"], inputs / "same.html").read_text()
    assert "other/r" in page and f"{inputs.name}/r" in page


def test_chain_curve_puts_higher_rates_higher():
    heights = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', chain_figure(["a"], [results()]))]
    assert heights == sorted(heights) and heights[0] < heights[-1]


def test_task_bars_are_as_long_as_their_rates():
    figure = task_figure(["a"], [results()])
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', figure)]
    counts = re.findall(r">(\d+) of (\d+)<", figure)
    assert len(widths) == len(counts) == 5
    full = max(widths)
    for width, (success, total) in zip(widths, counts, strict=True):
        assert width == pytest.approx(max(1.0, full * int(success) / int(total)), abs=0.2)


def test_curves_show_both_splits_and_skip_what_was_not_measured():
    records = [{"step": s, "split": split, "loss": 1.0 / s} for s in (1, 2) for split in ("train", "validation")]
    assert curve_figure(records, "loss").count("<polyline") == 2
    assert curve_figure(records, "loss_arm") == ""
    assert curve_figure([{"step": 1, "split": "train", "loss": float("nan")}], "loss") == ""


def test_hand_has_its_points_where_they_belong():
    places = dict(zip(KEYPOINTS, hand_positions(KEYPOINTS), strict=True))
    for finger in ("index", "middle", "ring", "little"):
        heights = [places[f"{finger}_{joint}"][1] for joint in ("1", "2", "3", "tip")]
        assert heights == sorted(heights, reverse=True), "tips point up"
    assert places["wrist"][1] == max(y for _, y in places.values())
    assert places["thumb_tip"][0] < places["index_tip"][0] < places["little_tip"][0]


def test_map_draws_area_by_weight_and_names_the_strongest():
    weights = [0.0] * 21
    weights[KEYPOINTS.index("index_tip")], weights[0] = 0.8, 0.2
    figure = map_figure("gripper", weights, KEYPOINTS)
    radii = dict(re.findall(r'r="([\d.]+)" style[^>]*><title>(\w+)', figure))
    radii = {name: float(radius) for radius, name in radii.items()}
    assert (radii["index_tip"] / radii["wrist"]) ** 2 == pytest.approx(4, rel=0.01)
    assert "index tip 0.800" in figure
    assert 'viewBox="0 0 240' in map_figure("gripper", weights * 2, KEYPOINTS)


def test_episodes_on_show_are_of_different_tasks(tmp_path):
    from small_stores import robot_store

    store = robot_store(tmp_path / "robot", tasks=3, per_task=2)
    chosen = choose_episodes(store, 3, seed=0)
    assert len({store.header(identity).task for identity in chosen}) == 3
    assert chosen == choose_episodes(store, 3, seed=0) and len(choose_episodes(store, 50, seed=0)) == 6
