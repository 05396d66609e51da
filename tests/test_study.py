"""The study: its cells, what they share, its controls, and the table."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from small_stores import human_store

from arvrm.config import from_dict, merged
from arvrm.episodes import EpisodeStore
from arvrm.evaluation import EvaluateConfig
from arvrm.evaluation.jobs import make_jobs
from arvrm.interface import TASKS, PlanRequest, PolicySpec, UserError
from arvrm.moments import episode_moments, read_moments
from arvrm.motions import Goal, Motion, Path
from arvrm.policy.places import Choice, Sight
from arvrm.results import ChainRecord, load_results, save_results, summarize
from arvrm.sources.playtable import GenerateConfig
from arvrm.study import StudyConfig, study
from arvrm.study.controls import OffSeer, TellingWorld, mean_motion, thing
from arvrm.study.run import (
    Cell,
    _Made,
    cells_of,
    interval,
    load_settings,
    noted,
    rows_of,
    write_clips,
    write_tables,
)
from arvrm.training import FinetuneConfig, PretrainConfig

FURTHER = len(dataclasses.fields(Motion)) - 9
NAMES = ("open_drawer", "close_drawer")


def results(lengths, tasks=NAMES):
    records = [ChainRecord(i, tasks, done, (3,) * min(done + 1, len(tasks))) for i, done in enumerate(lengths)]
    return {"config": {"policy": "checkpoint", "scene": "D"}, "versions": {}, **summarize(records)}


def test_every_packaged_row_is_made_of_the_verbs_own_settings():
    settings = load_settings(None)
    from_dict(GenerateConfig, {**settings.human, "embodiment": "human", "output": "x"}, "human")
    made = from_dict(GenerateConfig, {**settings.robot, "output": "x"}, "robot")
    for name, row in settings.rows.items():
        if row.pretrain is not None:
            from_dict(PretrainConfig, {**merged(settings.pretrain, row.pretrain), "output": "x"}, name)
        from_dict(FinetuneConfig, {**merged(settings.finetune, row.finetune), "output": "x"}, name)
        config = from_dict(EvaluateConfig, merged(settings.evaluate, row.evaluate), name)
        assert config.scene not in made.scenes, "evaluated where it was not trained"
    assert set(settings.tasks["fixtures"]) < set(TASKS) and settings.tasks["all"] == ()


def test_a_study_stopped_early_has_whole_rows():
    settings = dataclasses.replace(load_settings(None))
    config = StudyConfig(demonstrations=("1", "5", "all"), scenes=("builtin", "layouts"), seeds=(4, 9))
    cells = list(cells_of(config, settings))
    few = [name for name, row in settings.rows.items() if row.least > 1]
    assert len(cells) == 12 * len(settings.rows) - 4 * len(few) and "residual" in few
    assert all(cell.demonstrations in ("5", "all") for cell in cells if cell.row in few)
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    assert {cell.group for cell in cells if cell.seed == 4} == {cell.group for cell in cells if cell.seed == 9}
    with pytest.raises(UserError, match="study.rows: 'placs' is unknown"):
        list(cells_of(StudyConfig(rows=("placs",)), settings))
    with pytest.raises(ValueError, match="demonstrations: 'five'"):
        StudyConfig(demonstrations=("five",))
    with pytest.raises(ValueError, match="demonstrations: '0' .* never-demonstrated say what hands alone show"):
        StudyConfig(demonstrations=("0",))


def test_every_task_is_one_that_some_row_never_demonstrates():
    rows = load_settings(None).rows
    left = [rows[name].leave_out for name in ("never-demonstrated", *(f"never-demonstrated-{n}" for n in (2, 3, 4)))]
    assert sorted(task for tasks in left for task in tasks) == sorted(TASKS)


def test_interval_counts_seeds_not_only_chains():
    same = [np.array([0.0, 5.0] * 20)] * 3
    low, high = interval(same, 500)
    assert 1.5 < low < 2.5 < high < 3.5
    apart = [np.full(40, 1.0), np.full(40, 4.0)]
    assert interval(apart, 500) == (1.0, 4.0), "two seeds that disagree leave the mean unknown"


def test_table_joins_the_seeds_of_a_row(tmp_path):
    cells = tmp_path / "cells"
    cells.mkdir()
    settings = load_settings(None)
    for seed, lengths in enumerate(([2, 1], [0, 1])):
        save_results(cells / f"{Cell('hand-made', 'all', '5', 'builtin', seed, 2).name}.json", results(lengths))
    save_results(cells / f"{Cell('hand-made', 'all', 'all', 'builtin', 0, 2).name}.json", results([2, 2]))
    page = write_tables(tmp_path, settings)
    rows = {row["demonstrations"]: row for row in json.loads((tmp_path / "study.json").read_text())["rows"]}
    assert rows["5"]["average_length"] == 1.0 and rows["5"]["by_seed"] == [1.5, 0.5] and rows["5"]["seeds"] == [0, 1]
    assert rows["5"]["per_task"] == {"open_drawer": [3, 4], "close_drawer": [1, 3]}
    assert rows["all"]["average_length"] == 2.0
    text = page.read_text()
    assert "close_drawer 1 of 3" in text and "hand-made" in text and "<svg" in text
    assert rows_of(tmp_path) == json.loads(json.dumps(rows_of(tmp_path)))


def test_shuffled_clips_keep_everything_but_their_words(tmp_path):
    source = human_store(tmp_path / "clips").path
    write_clips(source, tmp_path / "some", 4, False)
    write_clips(source, tmp_path / "shuffled", None, True)
    before, some, after = (EpisodeStore(path) for path in (source, tmp_path / "some", tmp_path / "shuffled"))
    assert some.ids == before.ids[:4] and some.encoded(some.ids[1]) == before.encoded(some.ids[1])
    assert after.ids == before.ids
    said = [[store.header(id).instruction for id in store.ids] for store in (before, after)]
    assert said[0] != said[1] and sorted(said[0]) == sorted(said[1])
    for id in before.ids:
        old, new = before.episode(id), after.episode(id)
        np.testing.assert_array_equal(old.arrays["keypoints"], new.arrays["keypoints"])
        assert before.encoded(id).images == after.encoded(id).images
    with pytest.raises(UserError, match="has 6 clips, 9 are asked for"):
        write_clips(source, tmp_path / "more", 9, False)


def motion(heights, gripper, touch, place=(0.0, 0.0, 0.0)):
    poses = np.zeros((len(heights), 6))
    poses[:, 2] = heights
    poses[:, :3] += place
    path = Path(poses, np.array(gripper, float), touch, len(poses) - 1, poses[touch], poses[-1])
    none = np.zeros(0)
    return Motion("m", "robot", "lift it", path, np.zeros(7), none, none, none, none, *([none] * FURTHER))


def test_mean_motion_is_that_of_motions_laid_together_at_their_touches():
    mean = mean_motion([motion([2, 1, 0], [1, 1, -1], 2), motion([1, 0, 3], [1, -1, -1], 1, (0.5, 0, 0))])
    np.testing.assert_allclose(mean.path.poses[:, 2], [1.5, 1.0, 0.0, 1.5])
    np.testing.assert_allclose(mean.path.poses[:, 0], 0.25)
    assert mean.path.touch == 2 and mean.path.gripper.tolist() == [1, 1, -1, -1] and mean.id == "mean of 2"


def test_places_are_off_by_one_error_an_instruction():
    class Still:
        lookout = None

        def look(self, requests):
            return [Sight([Choice(motion([1, 0], [1, -1], 1), Goal(np.zeros(3)), {}, 0)]) for _ in requests]

    seer = OffSeer(Still(), 0.02)
    asked = [PlanRequest(words, (), rollout, step) for rollout in (0, 1) for words in "ab" for step in (0, 9)]
    touches = [sight.choices[0].goal.touch for sight in seer.look(asked)]
    for first, second in zip(touches[::2], touches[1::2], strict=True):
        np.testing.assert_array_equal(first, second)
    assert len({tuple(touch) for touch in touches}) == 4
    many = [seer.look([PlanRequest("a", (), n, 0)])[0].choices[0].goal.touch for n in range(300)]
    assert np.std(many) == pytest.approx(0.02, rel=0.15)


def test_truth_of_true_places_is_the_simulators():
    world = TellingWorld(EvaluateConfig(), PolicySpec("calvin"))
    world.start(make_jobs(EvaluateConfig(chains=1))[0])
    state, env = world.observe().state, world.env
    info, fixtures = env.task_info(), env.fixtures
    place, yaw = thing("open_drawer", state["landmarks"], state["scene_obs"], state["robot_obs"][:3])
    opened = env.scene_obs()[1] * np.array(fixtures.drawer_direction)
    np.testing.assert_allclose(place, np.array(fixtures.drawer_handle) + opened, atol=1e-6)
    assert yaw is None
    place, yaw = thing("lift_blue_block_table", state["landmarks"], state["scene_obs"], state["robot_obs"][:3])
    np.testing.assert_allclose(place, info["blocks"]["blue"]["position"], atol=1e-3)
    assert yaw is not None
    world.close()


TINY = {
    "human": {"scenes": ["A"], "episodes": 4, "variations": 2, "seed": 1, "tasks": NAMES, "instructions": "own"},
    "robot": {"scenes": ["B"], "episodes": 4, "variations": 2, "seed": 2, "tasks": NAMES, "instructions": "own"},
    "pretrain": {
        "model": {
            "width": 32,
            "layers": 1,
            "heads": 2,
            "places": {"enabled": True, "channels": [8, 8, 8], "words": 8},
        },
        "data": {"validation": 0},
        "place_images": 4,
        "train": {"steps": 2, "batch": 4, "threads": 1},
    },
    "finetune": {
        "model": {"width": 32, "layers": 1, "heads": 2},
        "data": {"validation": 0},
        "train": {"steps": 2, "batch": 4, "threads": 1},
    },
    "evaluate": {"max_steps": 12},
    "tasks": {"two": NAMES},
    "rows": {
        "none": {"title": "no hands", "pretrain": None, "finetune": {}, "evaluate": {}},
        "hands": {"title": "places", "pretrain": {}, "finetune": {"motion": "analogy"}, "evaluate": {}},
        "wrong-words": {
            "title": "control",
            "pretrain": {},
            "finetune": {"motion": "analogy"},
            "evaluate": {},
            "said": "another",
            "control": {"motion": "mean", "map": "uniform", "off_m": 0.01},
        },
        "true": {
            "title": "ceiling",
            "pretrain": {},
            "finetune": {"motion": "analogy"},
            "evaluate": {"max_steps": 150},
            "control": {"places": "true"},
        },
        "never": {
            "title": "left out",
            "pretrain": {},
            "finetune": {"motion": "analogy"},
            "evaluate": {},
            "leave_out": ["close_drawer"],
        },
        "robots": {
            "title": "control",
            "pretrain": {},
            "finetune": {"motion": "analogy"},
            "evaluate": {},
            "learn_from": "demonstrations",
        },
    },
}


def test_study_makes_what_cells_share_once_and_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setitem(study.__globals__["SCENES"], "builtin", {"scene": "D", "protocol": "single", "starts": 1})
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(TINY))
    config = StudyConfig(
        str(tmp_path / "out"), ("none", "hands"), ("2",), ("two",), seeds=(0,), chains=1, workers=1, settings=str(file)
    )
    page = study(config)
    assert page.is_file()
    made = {
        kind: sorted(p.name for p in (tmp_path / "out" / kind).iterdir()) for kind in ("stores", "policies", "hands")
    }
    assert len(made["stores"]) == 2 and len(made["policies"]) == 2 and len(made["hands"]) == 1
    cells = sorted((tmp_path / "out" / "cells").glob("*.json"))
    assert [cell.stem for cell in cells] == ["hands-two-2-builtin-1-0", "none-two-2-builtin-1-0"]
    with pytest.raises(UserError, match="exists; pass --resume"):
        study(config)
    times = {cell: cell.stat().st_mtime_ns for cell in cells}
    study(dataclasses.replace(config, rows=("wrong-words", "true", "robots"), resume=True))
    assert {cell: cell.stat().st_mtime_ns for cell in cells} == times
    wrong = load_results(tmp_path / "out" / "cells" / "wrong-words-two-2-builtin-1-0.json")
    words = json.loads(open(wrong["config"]["instructions"]).read())
    assert words["open_drawer"] != words["close_drawer"]
    assert len(list((tmp_path / "out" / "hands").iterdir())) == 2, "one stage 1 serves three rows"
    true = load_results(tmp_path / "out" / "cells" / "true-two-2-builtin-1-0.json")
    assert true["average_length"] == 1.0, "who knows where things are carries demonstrations over"
    assert true["policy_identity"]["control"]["places"] == "true"
    (told,) = (tmp_path / "out" / "stores").glob("as-clips-*-moments.json")
    (robots,) = (EpisodeStore(path) for path in (tmp_path / "out" / "stores").glob("robot-*"))
    moments = read_moments(told, robots.header)
    assert all(one == episode_moments(robots, id) for id, one in moments.items()), "as robots' are found"
    runs = [(path / "run.json").read_text() for path in (tmp_path / "out" / "hands").iterdir()]
    assert sorted(told.name in run for run in runs) == [False, True]
    made = _Made(tmp_path / "out", config, load_settings(str(file)))
    left = made._demonstrations(Cell("never", "two", "all", "builtin", 0, 1))
    assert left["tasks"] == ["open_drawer"] and "episodes_per_task" not in left
    file.write_text(json.dumps(merged(TINY, {"rows": {"hands": {"title": "another"}}})))
    with pytest.raises(UserError, match="row 'hands' has other settings now"):
        study(dataclasses.replace(config, resume=True))
    assert noted(load_settings(str(file)))["rows"]["hands"]["title"] == "another"
    shutil.rmtree(tmp_path / "out")
