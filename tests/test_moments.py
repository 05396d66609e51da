import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import second_robot
import torch
from small_stores import human_episode, robot_episode, write

from arvrm.episodes import EpisodeStore
from arvrm.moments import episode_moments, find, hand_signals
from arvrm.moments.find import found_in
from arvrm.moments.fit import examples_of, fit
from arvrm.moments.judged import judge, table
from arvrm.moments.network import load_scorer
from arvrm.moments.ways import after_grasp, closing, combined, corner, slow
from arvrm.sources.playtable import GenerateConfig, generate
from arvrm.sources.truth import moments_of

ROOT = Path(__file__).parent.parent
GRASP = 24


def grasp(size=96, still=0):
    """A hand comes from the left, closes over six steps up to step GRASP, and rises; then `still` steps."""
    path, opening = [], []
    for step in range(46):
        path.append((10 + 2.0 * min(step, 18), 70 - 2.0 * max(0, step - GRASP - 2)))
        opening.append(10 - np.clip(step - GRASP + 6, 0, 6))
    path, opening = path + path[-1:] * still, opening + opening[-1:] * still
    points = np.zeros((len(path), 21, 3))
    points[:, :, :2] = np.array(path)[:, None] + np.array([-12, -8])
    points[:, 9, 1] -= 10
    for tip, sign in ((4, 0.5), (8, -0.5)):
        points[:, tip, :2] = path
        points[:, tip, 1] += sign * np.array(opening)
    points[..., :2] *= size / 96
    return points.astype(np.float32), np.ones(points.shape[:2], bool)


def moments(points, visible, size=96, fps=30.0, text="lift the red block up"):
    return found_in(hand_signals(points, visible, (size, size), fps), text, load_scorer("human"), "human")


def test_each_rule_finds_what_it_is_about_in_a_clip_made_by_hand():
    signals = hand_signals(*grasp(), (96, 96), 30.0)
    assert signals.place[GRASP] == pytest.approx([46, 70])
    assert abs(closing(signals) - GRASP) <= 2
    assert 18 <= slow(signals) <= GRASP + 2
    assert 18 <= corner(signals) <= GRASP + 4
    assert combined(signals) == closing(signals)


def test_the_touch_of_a_grasp_is_where_the_hand_closed():
    signals = hand_signals(*grasp(), (96, 96), 30.0)
    found = moments(*grasp())
    assert np.linalg.norm(signals.place[found.touch] - signals.place[GRASP]) <= 1.5
    assert found.end >= found.touch
    assert found.touch_confidence > 0.5


def test_what_is_expected_from_elsewhere_decides_between_steps_that_look_alike():
    points, visible = grasp()
    signals = hand_signals(points, visible, (96, 96), 30.0)
    scorer, steps = load_scorer("human"), np.arange(len(signals.rows))
    alone = found_in(signals, "lift the red block up", scorer, "human").touch
    expected = np.zeros((2, len(steps)))
    assert found_in(signals, "lift the red block up", scorer, "human", expected).touch == alone
    expected[0] = -20.0 * (np.abs(steps - 12) > 2)
    assert abs(found_in(signals, "lift the red block up", scorer, "human", expected).touch - 12) <= 2


def test_what_was_grasped_within_a_clip_is_not_touched_first_where_it_is_let_go():
    points, visible = grasp(still=30)
    # It goes on to the right, and opens at step 60.
    for step in range(46, 76):
        points[step, :, 0] += 2.0 * min(step - 46, 12)
        wide = np.clip(step - 60, 0, 6) / 2
        points[step, 4, 1] += wide
        points[step, 8, 1] -= wide
    signals = hand_signals(points, visible, (96, 96), 30.0)
    late = after_grasp(signals)
    assert late[58:64].all() and not late[: GRASP + 8].any()
    assert not after_grasp(hand_signals(*grasp(still=30), (96, 96), 30.0)).any()
    # Held from the start, letting go is the touch.
    assert not after_grasp(hand_signals(points[40:], visible[40:], (96, 96), 30.0)).any()


@pytest.mark.parametrize("size", [48, 200, 720])
def test_the_moments_do_not_depend_on_the_size_of_the_image(size):
    found, usual = moments(*grasp(size), size), moments(*grasp())
    assert (found.touch, found.end) == (usual.touch, usual.end)
    assert found.touch_confidence == pytest.approx(usual.touch_confidence, abs=0.01)


@pytest.mark.parametrize("times", [2, 4])
def test_the_moments_do_not_depend_on_the_rate_of_frames(times):
    points, visible = grasp()
    rows = np.linspace(0, len(points) - 1, times * (len(points) - 1) + 1)
    finer = np.stack([np.interp(rows, np.arange(len(points)), points[:, k, c]) for k in range(21) for c in range(3)], 1)
    found = moments(finer.reshape(-1, 21, 3), np.ones((len(rows), 21), bool), fps=30.0 * times)
    assert abs(found.touch / times - moments(points, visible).touch) <= 1


def test_frames_without_a_hand_are_filled_from_those_around_them():
    points, visible = grasp()
    visible[4:9] = visible[40:] = False
    points[~visible] = np.nan
    found = moments(points, visible)
    assert abs(found.touch - moments(*grasp()).touch) <= 3


def test_a_clip_without_any_hand_has_no_confidence():
    points, visible = grasp()
    found = moments(points, np.zeros_like(visible))
    assert (found.touch_confidence, found.end_confidence) == (0.0, 0.0)


def test_of_two_hands_the_one_that_moves_counts():
    points, visible = grasp()
    resting = np.repeat(points[:1], len(points), 0)
    both, seen = np.concatenate([resting, points], 1), np.concatenate([visible, visible], 1)
    assert moments(both, seen).touch == moments(points, visible).touch


def test_a_hand_that_only_passes_by_touches_with_low_confidence():
    points, visible = grasp()
    passing = np.repeat(points[:1], 30, 0)
    passing[..., 0] += 2.0 * np.arange(30)[:, None]
    assert moments(passing, visible[:30]).touch_confidence < 0.5 * moments(points, visible).touch_confidence


def test_clips_of_one_frame_and_clips_that_stand_still_are_taken():
    points, visible = grasp()
    assert moments(points[:1], visible[:1]).touch == 0
    assert 0 <= moments(np.repeat(points[:1], 20, 0), visible[:20]).touch < 20


@pytest.mark.parametrize("robot", [second_robot.ROBOT, second_robot.ONE_CAMERA], ids=lambda r: r.name)
def test_a_robot_of_another_shape_is_taken(robot, tmp_path):
    store = second_robot.store(tmp_path / "store", robot, 3)
    for id in store.ids:
        found = episode_moments(store, id)
        assert 0 <= found.touch <= found.end < store.header(id).steps
        assert 0 <= found.touch_confidence <= 1


def info(**contacts):
    """A `task_info()` of three blocks, whose contacts are (body, link) pairs."""
    names = ("red", "blue", "pink")
    return {"blocks": {n: {"contacts": frozenset(contacts.get(n, ())), "position": (0, 0, 0)} for n in names}}


ROBOT, TABLE, DRAWER = ("robot", 9), ("table", "base_link"), ("table", "drawer_link")


def test_the_true_touch_of_a_block_is_the_first_contact_of_the_last_grasp():
    touched = [3, 40, 41, 44, 45, 46, 47, 48]
    infos = [info(red=[TABLE, ROBOT] if row in touched else [TABLE]) for row in range(60)]
    found = moments_of("lift_red_block_table", infos[0], infos, np.zeros((60, 24)), 48)
    assert found == {"kind": "touch", "touch": 40, "end": 48}


def test_the_true_moment_of_placing_is_where_the_block_is_let_go():
    infos = [info(blue=[ROBOT])] * 30 + [info(blue=[DRAWER])] * 10
    found = moments_of("place_in_drawer", infos[0], infos, np.zeros((40, 24)), 34)
    assert found == {"kind": "release", "touch": 30, "end": 34}


def test_the_true_touch_of_a_fixture_is_where_it_begins_to_move_for_good():
    scene = np.zeros((40, 24))
    scene[5:8, 1] = 0.02
    scene[8:25, 1] = 0.03
    scene[25:, 1] = 0.03 + 0.01 * np.arange(1, 16)
    found = moments_of("open_drawer", info(), [info()] * 40, scene, 36)
    assert found == {"kind": "touch", "touch": 24, "end": 36}


def test_without_contact_there_is_no_true_touch():
    assert "touch" not in moments_of("push_red_block_left", info(), [info()] * 20, np.zeros((20, 24)), 15)


def test_distances_are_in_pixels_of_96_whatever_the_size(tmp_path):
    episode = human_episode("h", size=192, steps=13)
    points = np.zeros_like(episode.arrays["keypoints"])
    points[:, :, 0] = 2.0 * np.arange(13)[:, None]
    arrays = {"keypoints": points, "visible": np.ones((13, 21), bool)}
    truth = {"judge": {"kind": "touch", "touch": 4, "end": 10}}
    store = write(tmp_path / "s", [dataclasses.replace(episode, arrays=arrays, meta=truth)])
    header = store.header("h")
    signals = hand_signals(points, arrays["visible"], (192, 192), 30.0)
    one = judge(header, signals, {}, "touch", 7)
    assert one is not None and one.pixels == pytest.approx(3.0) and one.steps == 3
    assert [row["holds"] for row in table([one])] == [False, False]


READERS = ("windows", "training", "retrieval", "model", "policy")


@pytest.mark.parametrize("package", READERS)
def test_nothing_that_learns_knows_where_the_truth_is(package):
    for file in (ROOT / "arvrm" / package).rglob("*.py"):
        text = file.read_text()
        assert not re.search(r"""["']judge["']|sources\.truth|moments\.judged|\bJUDGE\b""", text), file


def test_what_finds_moments_does_not_know_either():
    for name in ("signals", "ways", "network", "find", "raw", "world", "body", "fit", "__init__"):
        text = (ROOT / "arvrm" / "moments" / f"{name}.py").read_text()
        for word in ("judge", "scene_obs", "landmark", ".task", "success_step"):
            assert word not in text, (name, word)


def test_batches_are_the_same_with_and_without_the_truth(tmp_path):
    from test_windows import human_windows, robot_windows

    truth = {"judge": {"kind": "touch", "touch": 2, "end": 5}}
    for name, make, windows in (("r", robot_episode, robot_windows), ("h", human_episode, human_windows)):
        batches = []
        for meta in ({}, truth):
            store = write(tmp_path / f"{name}{len(meta)}", [dataclasses.replace(make("e"), meta=meta)])
            built = windows(store if name == "r" else [store])
            batches.append(built.batch(np.array([1, 2])))
        assert batches[0].keys() == batches[1].keys()
        assert not any("judge" in key for key in batches[1])
        for key, value in batches[0].items():
            other = batches[1][key]
            assert value is other or torch.equal(torch.as_tensor(value), torch.as_tensor(other)), key


def spoiled(episode, rng):
    """The same to see and hear; whatever is privileged is other."""
    arrays = dict(episode.arrays)
    for name in ("scene_obs", "landmarks", "landmark_pixels"):
        arrays.pop(name, None)
    arrays["scene_obs"] = rng.normal(size=(len(arrays["actions"]), 24)) if "actions" in arrays else None
    arrays = {name: value for name, value in arrays.items() if value is not None}
    truth = {"judge": {"kind": "touch", "touch": 1, "end": 2}, "success_step": 1}
    return dataclasses.replace(episode, arrays=arrays, task="open_drawer", meta=truth)


@pytest.mark.parametrize("make", [human_episode, robot_episode], ids=["hands", "robot"])
def test_fitting_reads_no_truth_no_task_and_nothing_privileged(make, tmp_path):
    episodes = [make(f"e{n}", steps=30, seed=n) for n in range(4)]
    rng = np.random.default_rng(0)
    others = [spoiled(episode, rng) for episode in episodes]
    fitted = []
    for name, content in (("a", episodes), ("b", others)):
        store = write(tmp_path / name, content)
        fitted.append(fit(examples_of([store]), updates=3, rounds=2).state_dict())
    assert all(torch.equal(value, fitted[1][name]) for name, value in fitted[0].items())


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> EpisodeStore:
    config = GenerateConfig(
        str(tmp_path_factory.mktemp("moments") / "clips"), "human", ("D",), ("lift_red_block_table", "place_in_drawer",
        "open_drawer"), 6, seed=977, workers=1, instructions="own", variations=20,
    )  # fmt: skip
    return generate(config).store


def test_clips_that_it_was_not_fitted_to_are_read_right(clips):
    apart = []
    for id in clips.ids:
        header = clips.header(id)
        found = episode_moments(clips, id)
        hand = clips.arrays(id, ("keypoints", "visible"))
        signals = hand_signals(hand["keypoints"], hand["visible"], (96, 96), 30.0)
        apart.append(judge(header, signals, {}, "touch", found.touch).pixels)
    assert np.median(apart) <= 1.5


def arvrm(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "arvrm", *map(str, arguments)], capture_output=True, text=True,
                          env=environment)  # fmt: skip


def test_moments_asked_for_once_are_kept_and_others_found_when_asked_for(clips, tmp_path, monkeypatch):
    cache, asked = tmp_path / "moments.json", []
    whole = find.moments_of_store(clips)

    def counted(store, id, *more):
        asked.append(id)
        return episode_moments(store, id, *more)

    monkeypatch.setattr(find, "episode_moments", counted)
    some = list(clips.ids[1:3])
    assert find.moments_of_store(clips, cache, ids=some) == {id: whole[id] for id in some} and asked == some
    assert find.moments_of_store(clips, cache, ids=clips.ids[2:4]) == {id: whole[id] for id in clips.ids[2:4]}
    assert find.moments_of_store(clips, cache) == whole and sorted(asked) == sorted(clips.ids)
    cache.write_text(cache.read_text()[:40])
    assert find.moments_of_store(clips, cache, ids=some) == {id: whole[id] for id in some}
    assert asked[-2:] == some, "what is damaged is found anew"
    for damage in ([], {some[0]: ["x", None, 1, 2]}, {some[0]: [1, 2]}):
        cache.write_text(json.dumps({**json.loads(cache.read_text()), "moments": damage}))
        assert find.moments_of_store(clips, cache, ids=some) == {id: whole[id] for id in some}


def test_the_verb_writes_moments_a_table_and_pictures(clips, tmp_path):
    output = tmp_path / "moments.json"
    done = arvrm("moments", "--store", clips.path, "--judge", "--pictures", 2, "--output", output)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(output)
    assert "median px" in done.stderr
    content = json.loads(output.read_text())
    assert set(content["episodes"]) == set(clips.ids)
    first = content["episodes"][clips.ids[0]]
    assert 0 <= first["touch"] <= first["end"] < first["steps"]
    assert content["judge"]["touch"][-1]["task"] == "all"
    assert len(list(tmp_path.glob("*.png"))) == 2
    again = arvrm("moments", "--store", clips.path, "--output", output)
    assert again.returncode == 2 and len(again.stderr.strip().splitlines()) == 1


def test_a_store_without_the_truth_is_not_judged(tmp_path):
    store = write(tmp_path / "s", [human_episode("h")])
    done = arvrm("moments", "--store", store.path, "--judge", "--output", tmp_path / "m.json")
    assert done.returncode == 2
    assert "keeps no truth" in done.stderr and len(done.stderr.strip().splitlines()) == 1
