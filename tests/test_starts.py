"""Where tasks begin."""

import numpy as np
import pytest

from arvrm.evaluation import official_chains
from arvrm.sim.env import PlayTableEnv
from arvrm.sim.starts import admissible_tasks, fresh_start, prepare, prepared_starts


@pytest.fixture(scope="module")
def env():
    made = PlayTableEnv("D", render_observations=False)
    yield made
    made.close()


def test_prepared_start_differs_by_number_and_lets_the_task_begin(env):
    scenes = []
    for number in (0, 0, 1):
        starts = prepared_starts(official_chains(), "place_in_drawer", 2, seed=0)[number]
        assert all(any(task.startswith("lift") for task in start.before) for start in starts)
        info, expert = prepare(env, starts, 0, number)
        assert expert.task in starts[0].before and len(info["robot_contacts"]) == 1
        scenes.append(env.scene_obs())
    assert np.array_equal(scenes[0], scenes[1]) and not np.array_equal(scenes[0], scenes[2])


def test_start_without_tasks_before_it_needs_no_expert(env):
    starts = prepared_starts(official_chains(), "turn_on_led", 1, seed=0)[0]
    info, expert = prepare(env, starts, 0, 0)
    assert expert is None and not info["led"]


def test_start_that_no_expert_can_prepare_is_named(env, monkeypatch):
    monkeypatch.setattr("arvrm.sim.starts.PREPARE_STEPS", 1)
    starts = prepared_starts(official_chains(), "place_in_drawer", 1, seed=0)[0][:2]
    with pytest.raises(RuntimeError, match="could not prepare place_in_drawer in 2 attempts"):
        prepare(env, starts, 0, 0)


def test_fresh_start_with_a_block_in_the_hand_is_one_the_task_can_begin_in(env):
    assert fresh_start(env, "stack_block", np.random.default_rng(0))
    assert "stack_block" in admissible_tasks(env)
