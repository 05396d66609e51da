"""Synthetic demonstrations: balanced, true, the same bytes however they are made, and nothing privileged in clips."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from arvrm import instructions
from arvrm.episodes import EpisodeStore
from arvrm.interface import BLOCKS, TASKS, UserError
from arvrm.robots.calvin import LANDMARKS
from arvrm.sim.env import PlayTableEnv
from arvrm.sim.experts import settle
from arvrm.sim.starts import admissible_tasks, fresh_start
from arvrm.sources.playtable import (
    GenerateConfig,
    generate,
    plan_units,
)
from arvrm.sources.recording import episode_id, landmark_positions

EASY = ("open_drawer", "close_drawer", "turn_on_led", "turn_off_led", "turn_on_lightbulb", "move_slider_left")
CALVIN_ROOT = Path(os.environ.get("CALVIN_ROOT", Path(__file__).parent.parent.parent / "shared" / "calvin"))


def config(output, **changes):
    values = dict(
        output=str(output), scenes=("A", "B"), tasks=EASY, episodes=8, seed=3, workers=1, instructions="own",
        static_size=64, gripper_size=32,
    )  # fmt: skip
    return GenerateConfig(**{**values, **changes})


def records(store):
    return [store.encoded(id) for id in store.ids]


@pytest.fixture(scope="module")
def robots(tmp_path_factory):
    return generate(config(tmp_path_factory.mktemp("robots") / "store")).store


@pytest.fixture(scope="module")
def humans(tmp_path_factory):
    path = tmp_path_factory.mktemp("humans") / "store"
    return generate(config(path, embodiment="human", episodes=4, variations=1, scenes=("C",))).store


@pytest.fixture(scope="module")
def env():
    made = PlayTableEnv(scene="A", static_size=96, gripper_size=32, render_observations=False)
    yield made
    made.close()


def test_plan_has_every_task_equally_often():
    plan = plan_units(GenerateConfig(output="x", scenes=("A", "B", "C"), episodes=1000, variations=4))
    counts = Counter(task for unit in plan for task in unit.tasks)
    assert set(counts) == set(TASKS) and max(counts.values()) - min(counts.values()) <= 1
    assert sum(counts.values()) == 1000
    for scene in "ABC":
        here = Counter(task for unit in plan if unit.scene == scene for task in unit.tasks)
        assert min(here[task] for task in TASKS) >= 7
        assert len({unit.variation for unit in plan if unit.scene == scene}) == 4
    ids = [episode_id(GenerateConfig(output="x"), unit, j) for unit in plan for j in range(len(unit.tasks))]
    assert len(set(ids)) == 1000 and ids[0] == "robot-A-000000"


def test_plan_uses_all_variations_where_episodes_suffice():
    plan = plan_units(GenerateConfig(output="x", scenes=("A", "B", "C"), episodes=1000, variations=100))
    for scene in "ABC":
        assert len({unit.variation for unit in plan if unit.scene == scene}) == 100
    assert max(len(unit.tasks) for unit in plan) == 3


def test_plan_of_humans_shares_no_variation_with_robots():
    plans = [
        plan_units(GenerateConfig(output="x", embodiment=embodiment, episodes=300, variations=20))
        for embodiment in ("robot", "human")
    ]
    robot, human = ({unit.variation for unit in plan} for plan in plans)
    assert len(robot) == len(human) and not robot & human
    assert [unit.tasks for unit in plans[0]] != [unit.tasks for unit in plans[1]]


def test_manifest_says_that_clips_are_synthetic(robots, humans):
    for store, word in ((robots, "teleoperated"), (humans, "no human was filmed")):
        assert store.manifest["synthetic"] is True
        assert word in store.manifest["note"]
        assert all(header.meta["synthetic"] for header in store.headers())


def test_robot_episodes_do_what_their_instruction_says(robots):
    robots.verify()
    assert len(robots) == 8
    for header in robots.headers():
        assert header.instruction in instructions.training_instructions(header.task)
        scene = robots.arrays(header.id, ["scene_obs"])["scene_obs"]
        moved = scene[-1] - scene[0]
        proof = {
            "open_drawer": moved[1] > 0.12, "close_drawer": moved[1] < -0.12, "turn_on_led": moved[5] == 1,
            "turn_off_led": moved[5] == -1, "turn_on_lightbulb": moved[4] == 1, "move_slider_left": moved[0] > 0.15,
        }  # fmt: skip
        assert proof[header.task], (header.id, header.task)
        assert header.steps - 10 <= header.meta["success_step"] <= header.steps


def test_label_differs_from_what_was_executed_by_noise_only(robots):
    differences = []
    for id in robots.ids:
        arrays = robots.arrays(id, ["actions", "executed"])
        np.testing.assert_array_equal(arrays["actions"][:, 6], arrays["executed"][:, 6])
        differences.append(np.abs(arrays["actions"] - arrays["executed"])[:, :6].mean())
    assert 0 < np.mean(differences) < 0.2


def test_executed_actions_move_the_target_pose(robots):
    for id in robots.ids:
        arrays = robots.arrays(id, ["target_pose", "executed"])
        steps = np.diff(arrays["target_pose"], axis=0)[:, :3]
        np.testing.assert_allclose(steps, 0.02 * arrays["executed"][:-1, :3], atol=1e-6)


def test_next_task_of_a_chain_begins_where_the_last_succeeded(robots):
    follow = 0
    headers = list(robots.headers())
    for header in headers:
        place = header.meta["place_in_chain"]
        if place:
            before = next(h for h in headers if h.group == header.group and h.meta["place_in_chain"] == place - 1)
            start = robots.arrays(header.id, ["robot_obs"])["robot_obs"][0]
            earlier = robots.arrays(before.id, ["robot_obs"])["robot_obs"]
            at = np.flatnonzero((earlier == start).all(1))
            assert len(at) == 1 and at[0] >= len(earlier) - 10
            follow += 1
    assert follow >= 2


def test_images_are_taken_every_third_step(robots):
    for header in robots.headers():
        np.testing.assert_array_equal(header.image_steps, np.arange(0, header.steps, 3))
        assert header.cameras == {"rgb_static": (64, 64), "rgb_gripper": (32, 32)}


def test_image_shows_the_state_of_its_row(robots):
    header = next(h for h in robots.headers() if h.task == "move_slider_left")
    arrays = robots.arrays(header.id, ["scene_obs"], header.image_steps)
    frames = robots.frames(header.id, "rgb_static", range(header.frames)).astype(int)
    env = PlayTableEnv(scene=header.scene, static_size=64, gripper_size=32, render_observations=False)
    robot = robots.arrays(header.id, ["robot_obs"], header.image_steps)["robot_obs"]
    for frame in (0, header.frames - 1):
        env.reset(options={"robot_obs": robot[frame], "scene_obs": arrays["scene_obs"][frame]})
        shown = env.render_cameras(cameras=("static",))["rgb_static"].astype(int)
        errors = np.abs(frames - shown).mean(axis=(1, 2, 3))
        assert errors.argmin() == frame
    env.close()


def test_landmarks_lie_where_the_picture_shows_them(env):
    colours = {"red": (1, 0, 0), "blue": (0, 0, 1), "pink": (1, 0, 1)}
    from arvrm.sources.recording import landmark_pixels

    found = 0
    for seed in range(4):
        env.reset(seed=seed)
        image = env.render_cameras(cameras=("static",))["rgb_static"] / 255.0
        points = landmark_positions(env.fixtures, env.block_order, env.scene_obs()[None])
        pixels = landmark_pixels(points, env.description.static_camera, 96)[0]
        for name, colour in colours.items():
            u, v = pixels[LANDMARKS.index(name)]
            like = np.linalg.norm(image - np.array(colour), axis=-1) < 0.5
            if like.sum() > 5:  # not hidden behind the door
                rows, columns = np.nonzero(like)
                assert np.hypot(columns.mean() + 0.5 - u, rows.mean() + 0.5 - v) < 3
                found += 1
    assert found >= 6


def test_landmarks_follow_doors_and_leave_the_image_as_nan(env):
    scene = np.tile(env.scene_obs(), (2, 1))
    scene[1, 0] += 0.1
    scene[1, 1] += 0.1
    moved = np.diff(landmark_positions(env.fixtures, env.block_order, scene), axis=0)[0]
    np.testing.assert_allclose(moved[LANDMARKS.index("slider_handle")], [-0.1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(moved[LANDMARKS.index("drawer_handle")], [0, -0.1, 0], atol=1e-6)
    from arvrm.sources.recording import landmark_pixels

    pixels = landmark_pixels(np.array([[[5.0, 5.0, 0.0], [0.0, 0.0, 0.46]]]), env.description.static_camera, 96)
    assert np.isnan(pixels[0, 0]).all() and np.isfinite(pixels[0, 1]).all()


def test_robot_and_human_episodes_are_independent(robots, humans):
    variations = {header.meta["variation"] for header in humans.headers()}
    assert None not in variations and len(variations) == 1
    assert {header.meta["variation"] for header in robots.headers()} == {None}


def test_human_clips_hold_keypoints_and_nothing_privileged(humans):
    humans.verify()
    for header in humans.headers():
        assert set(header.arrays) == {"keypoints", "visible"} and set(header.cameras) == {"rgb_static"}
        arrays = humans.arrays(header.id)
        seen = arrays["keypoints"][arrays["visible"]]
        assert len(seen) and (seen[:, :2] >= 0).all() and (seen[:, :2] <= 64).all()
        np.testing.assert_array_equal(arrays["keypoints"][:, 0, 2], 0)
        assert np.ptp(arrays["keypoints"][:, 0, :2], axis=0).max() > 1, "the hand moves"
        assert not {"camera", "scene_obs", "light"} & set(header.meta)


def test_store_is_the_same_whatever_the_number_of_workers(robots, tmp_path):
    parallel = generate(config(tmp_path / "s", workers=2)).store
    assert parallel.ids == robots.ids
    assert records(parallel) == records(robots)
    assert parallel.manifest == robots.manifest


def test_other_seed_makes_other_episodes(tmp_path):
    one, two = (
        generate(config(tmp_path / str(seed), seed=seed, episodes=1, tasks=("turn_on_led",), scenes=("A",))).store
        for seed in (1, 2)
    )
    assert not np.array_equal(
        one.arrays(one.ids[0])["scene_obs"][0, 6:], two.arrays(two.ids[0])["scene_obs"][0, 6:]
    )


RUN = """
import sys
from arvrm.sources.playtable import GenerateConfig, generate
if __name__ == "__main__":
    try:
        generate(GenerateConfig(output={path!r}, scenes=("A", "B"), tasks={tasks!r}, episodes=8, seed=3,
                 workers=2, instructions="own", static_size=64, gripper_size=32, resume=True))
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_interrupted_run_keeps_what_is_finished_and_resumes_to_the_same(robots, tmp_path, number):
    script = tmp_path / "run.py"
    script.write_text(RUN.format(path=str(tmp_path / "s"), tasks=EASY))
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:  # until some episodes are there
        try:
            store = EpisodeStore(tmp_path / "s")
            some = len(store)
            store.close()
            if some:
                break
        except UserError:
            pass
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode in ((130, 0) if number != signal.SIGKILL else (-signal.SIGKILL, 0))
    store = EpisodeStore(tmp_path / "s")
    store.verify()
    kept = store.ids
    assert kept and set(kept) <= set(robots.ids)
    assert records(store) == [robots.encoded(id) for id in kept]
    store.close()
    result = generate(config(tmp_path / "s", resume=True))
    assert result.made == 8 - len(kept)
    assert records(result.store) == records(robots)
    assert result.store.manifest["complete"] is True


def test_existing_output_is_refused(robots):
    with pytest.raises(UserError, match="--resume"):
        generate(config(robots.path))
    with pytest.raises(UserError, match="config.episodes = 8, not 9"):
        generate(config(robots.path, episodes=9, resume=True))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_can_be_begun_somewhere(env, task):
    assert fresh_start(env, task, np.random.default_rng(TASKS.index(task)))
    assert task in admissible_tasks(env)


def test_admissible_tasks_follow_the_state(env):
    f = env.fixtures
    scene = np.zeros(24)
    places = {"red": (-0.1, -0.1, 0.46), "blue": (0.05, -0.1, 0.46), "pink": (0.2, -0.1, 0.46)}
    for i, name in enumerate(env.block_order):
        scene[6 + 6 * i : 9 + 6 * i] = places[name]
    env.reset(options={"scene_obs": scene})
    settle(env)
    found = admissible_tasks(env)
    assert {"open_drawer", "move_slider_left", "turn_on_led", "turn_on_lightbulb"} <= found
    assert not {"close_drawer", "move_slider_right", "turn_off_led", "push_into_drawer", "stack_block"} & found
    assert {f"lift_{name}_block_table" for name in BLOCKS} <= found
    scene[0], scene[1], scene[3:6] = f.slider_range, f.drawer_range, (f.switch_range, 1, 1)
    env.reset(options={"scene_obs": scene})
    settle(env)
    found = admissible_tasks(env)
    assert {"close_drawer", "move_slider_right", "turn_off_led", "turn_off_lightbulb", "push_into_drawer"} <= found
    assert not {"open_drawer", "move_slider_left", "turn_on_led"} & found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scenes": ("E",)}, "'E' is unknown; name some of A, B, C, D"),
        ({"tasks": ("open_drawr",)}, "did you mean 'open_drawer'"),
        ({"episodes": 0}, "episodes is 0; give at least 1"),
        ({"scenes": ("A", "A")}, "named twice"),
        ({"noise": -1.0}, "noise"),
        ({"assets": "calvin", "variations": 2}, "variations=0"),
        ({"jpeg_quality": 0}, "jpeg_quality"),
    ],
)
def test_bad_configuration_is_refused_in_one_line(tmp_path, changes, said):
    with pytest.raises(UserError, match=said) as error:
        config(tmp_path / "s", **changes)
    assert "\n" not in str(error.value)


def test_missing_calvin_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("CALVIN_ROOT", raising=False)
    for changes in ({"assets": "calvin"}, {"instructions": "calvin"}):
        with pytest.raises(UserError, match="CALVIN_ROOT"):
            generate(config(tmp_path / "s", **changes))
    assert not (tmp_path / "s").exists()


@pytest.mark.skipif(not (CALVIN_ROOT / "calvin_models").is_dir(), reason=f"CALVIN_ROOT: no checkout at {CALVIN_ROOT}")
def test_calvins_training_sentences_are_used_where_calvin_is(tmp_path):
    asked = config(tmp_path / "s", calvin_root=str(CALVIN_ROOT), instructions="calvin", assets="calvin")
    store = generate(replace(asked, scenes=("D",), episodes=1, tasks=("open_drawer",))).store
    header = store.header(store.ids[0])
    assert header.instruction in instructions.calvin_instructions(CALVIN_ROOT, "training")["open_drawer"]
    assert store.manifest["config"]["assets"] == "calvin" and "calvin_root" not in store.manifest["config"]
