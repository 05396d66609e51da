"""The play table as an environment: actions, states, lights, cameras, mistakes."""

import dataclasses
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import arvrm.sim  # noqa: F401  registers the environment
from arvrm.geometry import euler_to_quaternion, intrinsics, project
from arvrm.interface import UserError
from arvrm.sim.env import ROBOT_START, PlayTableEnv
from arvrm.sim.render import CameraShift, choose_renderer, egl_problem
from arvrm.sim.scene import _meshes, official_scene, scene_description

OPEN = np.array([0, 0, 0, 0, 0, 0, 1.0])


def scene_obs(**values) -> np.ndarray:
    scene = np.zeros(24)
    names = ("door", "drawer", "button", "switch", "bulb", "led")
    for name, value in values.items():
        scene[names.index(name)] = value
    scene[6:] = [0.05, -0.12, 0.46, 0, 0, 1.5, 0.23, -0.12, 0.46, 0, 0, 1.5, -0.24, 0.09, 0.46, 0, 0, 1.5]
    return scene


@pytest.fixture(scope="module")
def env():
    env = PlayTableEnv("D", render_observations=False)
    yield env
    env.close()


def act(env, actions):
    return np.array([np.concatenate([(o := env.step(a)[0])["robot_obs"], o["scene_obs"]]) for a in actions])


def random_actions(seed, steps):
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (steps, 7))
    actions[:, 2] = -0.8  # down, into blocks and table
    actions[:, 6] = np.where(rng.random(steps) < 0.5, -1, 1)
    return actions


def test_reset_restores_the_given_states(env):
    robot = ROBOT_START.copy()
    robot[7:14] += 0.05
    robot[6] = 0.04
    obs, _ = env.reset(options={"robot_obs": robot, "scene_obs": scene_obs(door=0.1, drawer=0.2, switch=0.088, bulb=1)})
    np.testing.assert_allclose(obs["robot_obs"][6:14], robot[6:14], atol=2e-3)
    np.testing.assert_allclose(obs["scene_obs"][:6], [0.1, 0.2, 0, 0.088, 1, 0], atol=2e-3)
    np.testing.assert_allclose(obs["scene_obs"][6:], scene_obs()[6:], atol=5e-3)


def test_same_seed_same_bytes_and_other_seeds_other_blocks(env):
    first = env.reset(seed=3)[0]["scene_obs"]
    assert env.reset(seed=3)[0]["scene_obs"].tobytes() == first.tobytes()
    assert not np.array_equal(env.reset(seed=4)[0]["scene_obs"], first)


def test_an_episode_does_not_depend_on_what_happened_before(env):
    start, actions = {"scene_obs": scene_obs()}, random_actions(1, 40)
    fresh = PlayTableEnv("D", render_observations=False)
    fresh.reset(options=start)
    expected = act(fresh, actions)
    fresh.close()
    env.reset(seed=9)
    act(env, random_actions(2, 40))
    env.reset(options=start)
    assert act(env, actions).tobytes() == expected.tobytes()


def test_relative_actions_accumulate_on_the_target_pose(env):
    env.reset(options={"scene_obs": scene_obs()})
    before = env.target_pose()
    env.step(np.array([0.5, -1, 0.25, 0.2, 0, -1, 1]))
    env.step(np.array([0.5, -1, 0.25, 0.2, 0, -1, 1]))
    np.testing.assert_allclose(env.target_pose() - before, [0.02, -0.04, 0.01, 0.02, 0, -0.1], atol=1e-12)


def test_the_arm_follows_the_target(env):
    env.reset(options={"scene_obs": scene_obs()})
    for _ in range(10):
        env.step(np.array([0.5, 0, 0.5, 0, 0, 0.2, 1]))
    for _ in range(15):
        env.step(OPEN)
    np.testing.assert_allclose(env.robot_obs()[:3], env.target_pose()[:3], atol=5e-3)


def test_the_gripper_opens_and_closes(env):
    env.reset(options={"scene_obs": scene_obs()})
    for gripper, width in ((-1, 0.0), (1, 0.08)):
        for _ in range(15):
            env.step(np.array([0, 0, 0, 0, 0, 0, gripper]))
        assert env.robot_obs()[6] == pytest.approx(width, abs=4e-3)
        assert env.robot_obs()[14] == gripper


def test_absolute_actions_take_euler_angles_quaternions_and_calvins_tuple():
    env = PlayTableEnv("D", render_observations=False, action_space="absolute")
    position, euler = np.array([0.05, -0.15, 0.55]), np.array([np.pi, 0, 1.5])
    ends = []
    for action in (
        np.concatenate([position, euler, [1]]),
        np.concatenate([position, euler_to_quaternion(euler), [1]]),
        (position, euler, np.array([1])),
    ):
        env.reset(options={"scene_obs": scene_obs()})
        for _ in range(30):
            env.step(action)
        ends.append(env.robot_obs())
    env.close()
    np.testing.assert_allclose(ends[0][:3], position, atol=5e-3)
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-6)
    np.testing.assert_array_equal(ends[2], ends[0])


def test_joint_actions_set_joint_angles():
    goal = ROBOT_START[7:14] + [0.1, -0.1, 0.05, 0, 0.1, 0, -0.2]
    env = PlayTableEnv("D", render_observations=False, action_space="joint_absolute")
    env.reset(options={"scene_obs": scene_obs()})
    for _ in range(25):
        env.step(np.append(goal, -1))
    np.testing.assert_allclose(env.robot_obs()[7:14], goal, atol=5e-3)
    env.close()
    env = PlayTableEnv("D", render_observations=False, action_space="joint_relative")
    env.reset(options={"scene_obs": scene_obs()})
    before = env.robot_obs()[7]
    for _ in range(5):
        env.step(np.append([0.05, 0, 0, 0, 0, 0, 0], 1))
    assert 0.05 < env.robot_obs()[7] - before < 0.26
    env.close()


@pytest.mark.parametrize("bad, words", [
    (np.zeros(6), "shape"),
    (np.array([0, 0, np.nan, 0, 0, 0, 1]), "not finite"),
    (np.array([0, 0, np.inf, 0, 0, 0, 1]), "not finite"),
    (np.array([0, 0, 0, 0, 0, 0, 0.5]), "binarise"),
    ("left", "action"),
    ([[0] * 7], "shape"),
])  # fmt: skip
def test_bad_actions_are_refused_and_change_nothing(env, bad, words):
    env.reset(options={"scene_obs": scene_obs()})
    before = env.target_pose()
    with pytest.raises(UserError, match=words) as error:
        env.step(bad)
    assert "\n" not in str(error.value)
    np.testing.assert_array_equal(env.target_pose(), before)


@pytest.mark.parametrize("options, words", [
    ({"robot_obs": np.zeros(14)}, "15 floats"),
    ({"scene_obs": np.full(24, np.nan)}, "not finite"),
    ({"scene_obs": "closed"}, "24 floats"),
    ({"scene_obs": scene_obs(led=0.5)}, "0 or 1"),
    ({"scene": 1}, "unknown option"),
])  # fmt: skip
def test_bad_reset_states_are_refused(env, options, words):
    with pytest.raises(UserError, match=words):
        env.reset(options=options)


def test_the_led_toggles_once_for_each_press(env):
    _, info = env.reset(options={"scene_obs": scene_obs(button=0.02)})
    assert info["led"] == 0
    states = [env.step(OPEN)[4]["led"] for _ in range(10)]
    assert states == [1] * 10
    assert env.scene_obs()[2] < 0.005  # and the spring brings the button back
    env.reset(options={"scene_obs": scene_obs(button=0.02, led=1)})
    assert env.step(OPEN)[4]["led"] == 0


def test_the_bulb_follows_the_switch_and_is_left_as_a_state_says_until_that_moves(env):
    env.reset(options={"scene_obs": scene_obs(switch=0.06)})
    assert env.step(OPEN)[4]["bulb"] == 1
    env._bullet.resetJointState(env._table, env._switch, 0.0, physicsClientId=env._client)
    assert env.step(OPEN)[4]["bulb"] == 0
    env.reset(options={"scene_obs": scene_obs(switch=0.03, bulb=1)})  # so does calvin_env
    assert env.step(OPEN)[4]["bulb"] == 1


def test_task_info_names_what_touches_what(env):
    start = scene_obs(drawer=0.2)
    start[6:9] = [0.18, -0.28, 0.37]  # red: in the drawer
    _, info = env.reset(options={"scene_obs": start})
    for _ in range(15):
        info = env.step(OPEN)[4]
    assert info["blocks"]["red"]["contacts"] == {("table", "drawer_link")}
    assert info["blocks"]["blue"]["contacts"] == {("table", "base_link")}
    assert info["blocks"]["pink"]["contacts"] == {("table", "plank_link")}
    assert info["robot_contacts"] == frozenset()
    assert info["drawer"] == pytest.approx(0.2, abs=5e-3)


def test_a_grasped_block_touches_the_robot(env):
    start = scene_obs()
    start[6:12] = [0.05, -0.12, 0.46, 0, 0, np.pi / 2]
    env.reset(options={"scene_obs": start})
    for phase, steps in (("over", 30), ("down", 25), ("close", 12)):
        for _ in range(steps):
            goal = np.array([0.05, -0.12, 0.54 if phase == "over" else 0.465, np.pi, 0, np.pi / 2])
            delta = goal - env.target_pose()
            delta[3:] = (delta[3:] + np.pi) % (2 * np.pi) - np.pi
            move = np.clip(delta / np.repeat([0.02, 0.05], 3), -0.6, 0.6)
            info = env.step(np.append(move, -1 if phase == "close" else 1))[4]
    assert "red" in info["robot_contacts"]
    assert "robot" in {body for body, _ in info["blocks"]["red"]["contacts"]}


def test_a_saved_state_comes_back(env):
    env.reset(options={"scene_obs": scene_obs()})
    act(env, random_actions(3, 10))
    state, robot, scene, target = env.save_state(), env.robot_obs(), env.scene_obs(), env.target_pose()
    act(env, random_actions(4, 20))
    env.restore_state(state)
    np.testing.assert_allclose(env.robot_obs()[6:], robot[6:], atol=1e-9)
    np.testing.assert_allclose(env.robot_obs()[:3], robot[:3], atol=5e-3)
    np.testing.assert_allclose(env.scene_obs(), scene, atol=1e-9)
    np.testing.assert_array_equal(env.target_pose(), target)
    env.forget_state(state)
    env.reset()
    with pytest.raises(UserError, match="older than the last reset"):
        env.restore_state(state)


def test_cameras_see_a_block_where_projection_says(env):
    env.reset(options={"scene_obs": scene_obs()})
    images = env.render_cameras(depth=True)
    assert images["rgb_static"].shape == (200, 200, 3) and images["rgb_static"].dtype == np.uint8
    assert images["depth_gripper"].shape == (84, 84) and images["depth_gripper"].dtype == np.float32
    block = env.scene_obs()[6:9] + [0, 0, 0.02]  # the red block's upper face
    camera = env.description.static_camera
    u, v, depth = project(block, env.cameras["static"].world_to_camera(), intrinsics(camera.fov, 200, 200))
    red, green, blue = images["rgb_static"][int(v), int(u)].astype(int)
    assert red > 2 * max(green, blue)
    assert images["depth_static"][int(v), int(u)] == pytest.approx(depth, abs=0.03)


def test_lights_can_be_seen(env):
    env.reset(options={"scene_obs": scene_obs()})
    dark = env.render_cameras()["rgb_static"]
    env.reset(options={"scene_obs": scene_obs(led=1)})
    changed = (env.render_cameras()["rgb_static"] != dark).any(axis=2)
    assert 20 < changed.sum() < 2000


def test_robustness_switches_change_images_and_nothing_else():
    plain = {"scene": "D", "static_size": 64, "gripper_size": 32}
    images, states = {}, {}
    for name, switch in {
        "plain": {},
        "again": {},
        "camera": {"camera_shift": CameraShift(0.1, 3.0, seed=1)},
        "same camera": {"camera_shift": {"metres": 0.1, "degrees": 3.0, "seed": 1}},
        "light": {"lighting": {"direction": (1.0, 0.0, 1.0), "ambient": 0.3}},
        "colour": {"block_colours": {"red": (0, 1, 1, 1)}},
    }.items():
        env = PlayTableEnv(**plain, **switch)
        obs, _ = env.reset(options={"scene_obs": scene_obs()})
        images[name], states[name] = obs["rgb_static"], env.step(OPEN)[0]["robot_obs"]
        env.close()
    assert np.array_equal(images["plain"], images["again"])
    assert np.array_equal(images["camera"], images["same camera"])
    for name in ("camera", "light", "colour"):
        assert (images[name] != images["plain"]).any(), name
        np.testing.assert_array_equal(states[name], states["plain"])


def test_gymnasium_accepts_the_environment():
    env = gymnasium.make("arvrm/PlayTable-v0", scene="D", static_size=32, gripper_size=16, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # states have no bounds
        check_env(env.unwrapped)
    env.reset(seed=0)
    assert env.render().shape == (32, 32, 3)
    env.close()


@pytest.mark.parametrize("kind", ["relative", "absolute", "joint_relative", "joint_absolute"])
def test_sampled_actions_are_valid(kind):
    env = PlayTableEnv("D", render_observations=False, action_space=kind)
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(5):
        action = env.action_space.sample()
        assert env.action_space.contains(action)
        obs = env.step(action)[0]
    assert all(np.isfinite(values).all() for values in obs.values())
    env.close()


@pytest.mark.parametrize("arguments, words", [
    ({"scene": "E"}, "E"),
    ({"assets": "mine"}, "assets"),
    ({"action_space": "torque"}, "action_space"),
    ({"renderer": "opengl"}, "renderer"),
    ({"static_size": 0}, "static_size"),
    ({"block_colours": {"green": (0, 1, 0, 1)}}, "green"),
    ({"lighting": {"sun": 1}}, "sun"),
    ({"camera_shift": {"inches": 1}}, "camera_shift"),
    ({"assets": "official", "calvin_root": "/nonexistent", "scene": "D"}, "CALVIN_ROOT"),
    ({"assets": "official", "variation": 3}, "variation"),
])  # fmt: skip
def test_wrong_arguments_are_one_line_for_the_user(arguments, words):
    with pytest.raises(UserError, match=words) as error:
        PlayTableEnv(**{"scene": "D", **arguments})
    assert "\n" not in str(error.value)


def test_official_assets_without_calvin_root_say_what_to_set(monkeypatch):
    monkeypatch.delenv("CALVIN_ROOT", raising=False)
    with pytest.raises(UserError, match="CALVIN_ROOT"):
        PlayTableEnv("D", assets="official")


def test_a_missing_asset_file_is_named():
    description = scene_description("D")
    with pytest.raises(UserError, match="gone.urdf"):
        PlayTableEnv(dataclasses.replace(description, table_urdf="/gone.urdf"))


def test_a_missing_mesh_is_named(tmp_path):
    (tmp_path / "table.urdf").write_text(
        '<robot name="t"><link name="base_link"><visual><geometry>'
        '<mesh filename="lost.obj"/></geometry></visual></link></robot>'
    )
    with pytest.raises(UserError, match="lost.obj"):
        PlayTableEnv(dataclasses.replace(scene_description("D"), table_urdf=str(tmp_path / "table.urdf")))


LOOK = """
import hashlib
from arvrm.sim.env import PlayTableEnv
env = PlayTableEnv("D", static_size=64, gripper_size=32)
obs, _ = env.reset(seed=0)
for _ in range(20):
    obs = env.step([0, 0, -1, 0, 0, 0, -1])[0]
print(hashlib.sha256(b"".join(obs[key].tobytes() for key in sorted(obs))).hexdigest())
"""


def test_files_that_lie_about_do_not_become_the_scene(tmp_path):
    trap, clean = tmp_path / "trap", tmp_path / "clean"
    clean.mkdir()
    names = {mesh.name for urdf in scene_description("D").files() for mesh in _meshes(urdf)}
    assert names
    for folder in (".", "data", "meshes", "data/meshes"):
        (trap / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            (trap / folder / name).write_text("o lie\nv 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\nf 1 2 4\nf 1 3 4\n")
    seen = [
        subprocess.run([sys.executable, "-c", LOOK], cwd=folder, capture_output=True, text=True, check=True).stdout
        for folder in (clean, trap)
    ]
    assert len(seen[0].strip()) == 64
    assert seen[0] == seen[1]


def test_a_crashing_driver_does_not_kill_the_run(monkeypatch):
    egl_problem.cache_clear()
    monkeypatch.setattr("arvrm.sim.render._PROBE_CODE", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert "signal 11" in egl_problem()
    assert choose_renderer("auto") == "tiny"
    with pytest.raises(UserError, match="EGL does not work here"):
        choose_renderer("egl")
    egl_problem.cache_clear()


def test_a_hanging_driver_is_given_up(monkeypatch):
    egl_problem.cache_clear()
    monkeypatch.setattr("arvrm.sim.render._PROBE_CODE", "import time; time.sleep(60)")
    monkeypatch.setattr("arvrm.sim.render._PROBE_SECONDS", 1)
    assert "did not answer" in egl_problem()
    egl_problem.cache_clear()


def test_egl_renders_the_same_scene_where_it_works():
    if (problem := egl_problem()) is not None:
        pytest.skip(f"EGL does not work here: {problem}")
    images = {}
    for renderer in ("tiny", "egl"):
        env = PlayTableEnv("D", renderer=renderer)
        images[renderer] = env.reset(options={"scene_obs": scene_obs()})[0]["rgb_static"].astype(float)
        assert env.renderer == renderer
        again = env.reset(options={"scene_obs": scene_obs()})[0]["rgb_static"]
        np.testing.assert_array_equal(images[renderer], again)
        env.close()
    correlation = np.corrcoef(images["tiny"].ravel(), images["egl"].ravel())[0, 1]
    assert correlation > 0.7


def test_official_fixtures_of_d_are_where_they_were_measured(calvin_root):
    fixtures = official_scene("D", str(calvin_root)).fixtures
    for name, place in {
        "slider_handle": (0.04, -0.003, 0.555),
        "drawer_gap": (0.18, -0.212, 0.362),
        "button_top": (-0.12, -0.12, 0.484),
        "switch_bar": (0.3, 0.02, 0.528),
    }.items():
        np.testing.assert_allclose(getattr(fixtures, name), place, atol=3e-3, err_msg=name)
    ranges = (fixtures.slider_range, fixtures.drawer_range, fixtures.button_range, fixtures.switch_range)
    np.testing.assert_allclose(ranges, (0.28, 0.22, 0.02, 0.088), atol=1e-6)


@pytest.mark.parametrize("name", ["A", "B", "C", "D"])
def test_official_fixtures_lie_on_the_parts_they_name(calvin_root, name):
    env = PlayTableEnv(name, "official", str(calvin_root), render_observations=False)
    env.reset(options={"scene_obs": scene_obs()})
    fixtures, bullet, client = env.fixtures, env._bullet, env._client
    for point, joint in (
        (fixtures.slider_handle, env._slide), (fixtures.drawer_handle, env._drawer),
        (fixtures.button_top, env._button), (fixtures.switch_bar, env._switch),
    ):  # fmt: skip
        low, high = (np.array(corner) for corner in bullet.getAABB(env._table, joint, physicsClientId=client))
        assert (low - 1e-2 <= point).all() and (point <= high + 1e-2).all(), joint
    env.close()
