"""Scripted experts: they do CALVIN's tasks through relative actions, recover, and finish what they began."""

from __future__ import annotations

import numpy as np
import pytest

from arvrm.interface import TASKS, UserError
from arvrm.robots.calvin import apply_relative_action
from arvrm.sim.chains import chain_start, generate_chains
from arvrm.sim.env import PlayTableEnv
from arvrm.sim.experts import Expert, grip_matrix, rollout_expert, settle
from arvrm.sim.tasks import TaskOracle


@pytest.fixture(scope="module")
def env():
    env = PlayTableEnv("D", assets="builtin", render_observations=False)
    yield env
    env.close()


def begin(env, task: str) -> None:
    """Start where an official chain that begins with this task starts."""
    chain = next(chain for chain in generate_chains() if chain.tasks[0] == task)
    robot_obs, scene_obs = chain_start(chain, env)
    env.reset(options={"robot_obs": robot_obs, "scene_obs": scene_obs})


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


FROM_THE_START = [task for task in TASKS if any(chain.tasks[0] == task for chain in generate_chains())]


@pytest.mark.parametrize("task", FROM_THE_START)
def test_task_is_done_from_an_official_start(env, task):
    begin(env, task)
    rollout = rollout_expert(env, task, rng())
    assert rollout.success
    assert rollout.steps < 150


@pytest.mark.parametrize(
    "tasks",
    [
        ("lift_red_block_table", "place_in_slider"),
        ("open_drawer", "lift_pink_block_table", "place_in_drawer", "lift_pink_block_drawer"),
        ("lift_blue_block_table", "stack_block", "unstack_block"),
    ],
    ids=lambda tasks: tasks[-1],
)
def test_task_is_done_after_those_it_needs(env, tasks):
    lift = next(task for task in tasks if task.startswith("lift"))
    colour = lift.split("_")[1]
    chain = next(
        chain
        for chain in generate_chains()
        if chain.initial_state[f"{colour}_block"] == "table"
        and list(chain.initial_state.values()).count("table") == 2
        and chain.initial_state["drawer"] == "closed"
    )
    robot_obs, scene_obs = chain_start(chain, env)
    env.reset(options={"robot_obs": robot_obs, "scene_obs": scene_obs})
    for task in tasks:
        assert rollout_expert(env, task, rng()).success, task


def arrange(env, slider: float = 0.0, **blocks: tuple[float, float, float, float]) -> None:
    """Start with the drawer closed, the door there, and blocks at x, y, z (m) and yaw (degrees)."""
    begin(env, "open_drawer")
    robot_obs, scene_obs = env.robot_obs(), env.scene_obs()
    scene_obs[:2] = slider, 0.0
    for name, (x, y, z, yaw) in blocks.items():
        at = 6 + 6 * env.block_order.index(name)
        scene_obs[at : at + 6] = x, y, z, 0, 0, np.radians(yaw)
    env.reset(options={"robot_obs": robot_obs, "scene_obs": scene_obs})
    settle(env)
    env.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))  # what lies on something touches it


@pytest.mark.parametrize(
    "x, slider",
    [(-0.162, 0.0), (-0.028, 0.28), (0.125, 0.28), (-0.315, 0.0)],
    ids=["left of the door's edge", "right of the door's edge", "beside the right wall", "beside the left wall"],
)
def test_block_in_the_cabinet_is_drawn_to_where_the_hand_has_room(env, x, slider):
    arrange(env, slider, blue=(x, 0.11, 0.461, 95), red=(0.1, -0.1, 0.46, 0), pink=(0.25, -0.1, 0.46, 90))
    assert rollout_expert(env, "lift_blue_block_slider", rng()).success


def test_block_is_stacked_although_one_fell_off_the_table_and_the_other_lies_behind_the_door(env):
    arrange(env, 0.0, red=(0.55, -0.12, 0.02, 90), blue=(0.078, 0.07, 0.461, 80), pink=(0.1, -0.1, 0.46, 90))
    assert rollout_expert(env, "lift_pink_block_table", rng()).success
    assert rollout_expert(env, "stack_block", rng()).success


def test_block_below_the_doors_handle_is_not_built_on_where_it_lies(env):
    arrange(env, 0.0, red=(0.04, -0.06, 0.46, 75), blue=(-0.2, 0.09, 0.461, 90), pink=(0.25, -0.1, 0.46, 90))
    assert rollout_expert(env, "lift_blue_block_slider", rng()).success
    assert rollout_expert(env, "stack_block", rng()).success


def test_pushed_block_that_touched_the_door_touches_it_again(env):
    arrange(env, 0.0, pink=(0.05, -0.04, 0.46, 55), red=(-0.2, 0.09, 0.461, 90), blue=(-0.27, 0.09, 0.461, 90))
    for _ in range(10):  # towards the door until it touches
        if ("table", "slide_link") in env.task_info()["blocks"]["pink"]["contacts"]:
            break
        robot_obs, scene_obs = env.robot_obs(), env.scene_obs()
        scene_obs[7 + 6 * env.block_order.index("pink")] += 0.001
        env.reset(options={"robot_obs": robot_obs, "scene_obs": scene_obs})
        env.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    assert ("table", "slide_link") in env.task_info()["blocks"]["pink"]["contacts"]
    assert rollout_expert(env, "push_pink_block_right", rng()).success


def test_actions_are_relative_actions_with_a_binary_gripper(env):
    begin(env, "lift_red_block_slider")
    expert = Expert("lift_red_block_slider", env, rng(), noise=1.0)
    for _ in range(300):
        action = expert.act()
        for given in (action, expert.label):
            assert given.shape == (7,) and given.dtype == np.float64
            assert np.abs(given[:6]).max() <= 1 and given[6] in (-1.0, 1.0)
        env.step(action)
        if expert.finished:
            break
    assert expert.finished


def test_unknown_task_is_refused(env):
    with pytest.raises(UserError, match="juggle"):
        Expert("juggle", env, rng())


@pytest.mark.parametrize(
    "task,joint,goal", [("move_slider_left", 0, "slider_range"), ("open_drawer", 1, "drawer_range")]
)
def test_fixture_moves_all_the_way_although_the_oracle_fires_before(env, task, joint, goal):
    begin(env, task)
    rollout_expert(env, task, rng())
    assert env.scene_obs()[joint] == pytest.approx(getattr(env.fixtures, goal), abs=0.01)


def test_next_expert_lets_an_interrupted_one_finish(env):
    begin(env, "open_drawer")
    start, first, oracle = env.task_info(), Expert("open_drawer", env, rng()), TaskOracle()
    while not oracle.completed(start, env.step(first.act())[4], ("open_drawer",)):
        pass
    assert env.scene_obs()[1] < env.fixtures.drawer_range - 0.03
    task = "turn_off_led" if start["led"] else "turn_on_led"
    start, second = env.task_info(), Expert(task, env, rng(), after=first)
    assert any(oracle.completed(start, env.step(second.act())[4], (task,)) for _ in range(200))
    assert env.scene_obs()[1] > env.fixtures.drawer_range - 0.01


def test_same_seed_gives_the_same_bytes_and_another_seed_others(env):
    rollouts = []
    for seed in (3, 3, 4):
        begin(env, "lift_blue_block_table")
        rollouts.append(rollout_expert(env, "lift_blue_block_table", rng(seed), noise=1.0).records)
    assert all(rollouts[0][name].tobytes() == rollouts[1][name].tobytes() for name in rollouts[0])
    assert rollouts[0]["executed"].tobytes() != rollouts[2]["executed"].tobytes()


def test_label_is_what_a_clean_expert_does_from_the_same_state(env):
    begin(env, "turn_on_lightbulb")
    clean, noisy = (Expert("turn_on_lightbulb", env, rng(1), noise) for noise in (0.0, 1.0))
    for _ in range(10):
        wanted, executed = clean.act(), noisy.act()
        assert np.array_equal(noisy.label, wanted)
        assert not np.array_equal(executed, wanted)
        env.step(executed)


@pytest.mark.parametrize("seed", range(3))
def test_expert_recovers_from_strong_noise(env, seed):
    begin(env, "lift_pink_block_table")
    assert rollout_expert(env, "lift_pink_block_table", rng(seed), noise=1.5).success


def test_lost_block_is_grasped_again(env):
    begin(env, "lift_red_block_table")
    start, expert, oracle = env.task_info(), Expert("lift_red_block_table", env, rng()), TaskOracle()
    closed, dropped = 0, False
    for _ in range(360):
        action = expert.act()
        closed += action[6] < 0
        if 8 < closed < 14:  # a hand that opens by itself, just as it has closed
            action = np.append(action[:6], 1.0)
            dropped = True
        info = env.step(action)[4]
        if oracle.completed(start, info, ("lift_red_block_table",)):
            break
    else:
        pytest.fail("the block was not lifted after it had been dropped")
    assert dropped


def test_records_hold_the_state_before_each_action(env):
    begin(env, "turn_on_led")
    rows = []
    rollout = rollout_expert(env, "turn_on_led", rng(), noise=0.5, recorder=rows.append, after_success_steps=5)
    records, count = rollout.records, len(rows)
    assert rows == list(range(count))
    assert {name: value.shape for name, value in records.items()} == {
        "robot_obs": (count, 15), "scene_obs": (count, 24), "target_pose": (count, 6),
        "actions": (count, 7), "executed": (count, 7),
    }  # fmt: skip
    moved = apply_relative_action(records["target_pose"][:-1], records["executed"][:-1])
    assert np.allclose(moved, records["target_pose"][1:], atol=1e-6)
    assert rollout.success_row is not None and count - rollout.success_row <= 5
    assert records["scene_obs"][rollout.success_row - 1, 5] == 0 and env.scene_obs()[5] == 1


def test_leaning_gripper_points_its_fingers_where_it_leans():
    assert np.allclose(grip_matrix(0.3, (0.0, 0.0))[:, 2], [0, 0, -1])
    assert np.allclose(grip_matrix(0.3, (0.0, 0.4))[:, 2], [0, np.sin(0.4), -np.cos(0.4)])
    assert np.allclose(grip_matrix(1.2, (0.4, 0.0))[:, 2], [np.sin(0.4), 0, -np.cos(0.4)])


@pytest.mark.parametrize("scene", ["A", "B", "C"])
def test_same_code_works_another_layout(scene):
    env = PlayTableEnv(scene, assets="builtin", render_observations=False)
    for task in ("open_drawer", "move_slider_left", "turn_on_lightbulb", "turn_on_led"):
        begin(env, task)
        assert rollout_expert(env, task, rng()).success, task
    env.close()
