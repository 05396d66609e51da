"""The built-in scenes: CALVIN's layout and kinematics, variations, files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pybullet
import pytest

from arvrm.files import remove_process_folder
from arvrm.geometry import intrinsics, project
from arvrm.interface import SCENES, UserError
from arvrm.sim.builtin import builtin_scene
from arvrm.sim.builtin_layout import LAYOUTS, vary_layout
from arvrm.sim.env import PlayTableEnv
from arvrm.sim.scene import official_scene

STILL = np.array([0, 0, 0, 0, 0, 0, 1.0])
CALVIN = Path(os.environ.get("CALVIN_ROOT", Path(__file__).parents[1].parent / "shared" / "calvin"))
needs_calvin = pytest.mark.skipif(
    not (CALVIN / "calvin_env").is_dir(), reason="CALVIN_ROOT: no checkout of mees/calvin to compare with"
)


def _env(scene="D", variation=None, **options) -> PlayTableEnv:
    return PlayTableEnv(scene, "builtin", variation=variation, render_observations=False, **options)


def _scene_obs(red, blue, pink):
    """Scene state of D with everything closed and blocks at these places."""
    state = np.zeros(24)
    state[6:9], state[12:15], state[18:21] = red, blue, pink
    return state


def test_blocks_rest_where_chains_start():
    env = _env()
    # On the table z = 0.46; on the cabinet's floor CALVIN's blocks lie 1 mm higher.
    start = _scene_obs((0.1, -0.09, 0.45999), (0.25, -0.09, 0.45999), (-0.22, 0.09, 0.46099))
    env.reset(options={"scene_obs": start})
    for _ in range(60):
        env.step(STILL)
    moved = np.abs(env.scene_obs() - start)[6:].reshape(3, 6)
    assert moved[:, :3].max() < 2e-4 and moved[:, 3:].max() < 2e-3
    contacts = {link for block in env._blocks.values() for link in _touched(env, block)}
    assert contacts == {"base_link", "plank_link"}
    env.close()


def _touched(env, block):
    points = pybullet.getContactPoints(block, env._table, physicsClientId=env._client)
    return {env._table_links[point[4]] for point in points}


def test_block_rests_in_the_open_drawer_on_its_link():
    env = _env()
    start = _scene_obs((0.1, -0.09, 0.46), (0.25, -0.09, 0.46), (0.18, -0.26, 0.38))
    start[1] = 0.2
    env.reset(options={"scene_obs": start})
    for _ in range(30):
        env.step(STILL)
    assert _touched(env, env._blocks["pink"]) == {"drawer_link"}
    assert env.scene_obs()[20] == pytest.approx(env.fixtures.drawer_box[0][2] + 0.02, abs=2e-3)
    env.close()


@needs_calvin
def test_robot_moves_like_calvins():
    worlds = [builtin_scene("D").robot_urdf, official_scene("D", CALVIN).robot_urdf]
    rng = np.random.default_rng(0)
    poses = rng.uniform(-1.2, 1.2, (5, 7)) + [0, 0, 0, -1.5, 0, 1.5, 0]
    found = []
    for file in worlds:
        client = pybullet.connect(pybullet.DIRECT)
        robot = pybullet.loadURDF(file, useFixedBase=True, physicsClientId=client)
        names = [pybullet.getJointInfo(robot, k, physicsClientId=client) for k in range(16)]
        rows = [[(info[1], info[12], info[2], info[8:10]) for info in names]]
        for pose in poses:
            for joint, angle in enumerate(pose):
                pybullet.resetJointState(robot, joint, angle, physicsClientId=client)
            links = [pybullet.getLinkState(robot, k, physicsClientId=client) for k in range(16)]
            rows.append([np.concatenate(link[4:6]) for link in links])
        found.append(rows)
        pybullet.disconnect(client)
    assert found[0][0] == found[1][0]
    np.testing.assert_allclose(np.array(found[0][1:]), np.array(found[1][1:]), atol=1e-5)


@needs_calvin
@pytest.mark.parametrize("name", SCENES)
def test_fixtures_agree_with_calvins(name):
    ours, theirs = builtin_scene(name), official_scene(name, CALVIN)
    assert ours.surfaces == theirs.surfaces
    assert ours.block_order == theirs.block_order
    for mine, other in zip(ours.blocks, theirs.blocks, strict=True):
        np.testing.assert_allclose(mine.size, other.size, atol=1e-9)
    for field in ("slider_handle", "drawer_handle", "drawer_gap", "button_top", "switch_bar", "slider_direction",
                  "drawer_direction", "switch_direction", "button_size"):  # fmt: skip
        np.testing.assert_allclose(getattr(ours.fixtures, field), getattr(theirs.fixtures, field), atol=4e-3)
    for field in ("slider_range", "drawer_range", "button_range", "switch_range"):
        assert getattr(ours.fixtures, field) == pytest.approx(getattr(theirs.fixtures, field), abs=1e-6)
    assert ours.static_camera == theirs.static_camera


@needs_calvin
@pytest.mark.parametrize("name", SCENES)
def test_table_joints_agree_with_calvins(name):
    tables = []
    for scene in (builtin_scene(name), official_scene(name, CALVIN)):
        client = pybullet.connect(pybullet.DIRECT)
        body = pybullet.loadURDF(scene.table_urdf, globalScaling=scene.global_scaling, physicsClientId=client)
        count = pybullet.getNumJoints(body, physicsClientId=client)
        infos = [pybullet.getJointInfo(body, k, physicsClientId=client) for k in range(count)]
        places = [pybullet.getLinkState(body, k, physicsClientId=client)[4:6] for k in range(count)]
        tables.append(([(i[1], i[2], i[12]) for i in infos], [(*i[8:10], *i[13]) for i in infos[:4]],
                       [np.concatenate(place) for place in places]))  # fmt: skip
        pybullet.disconnect(client)
    assert tables[0][0] == tables[1][0]
    np.testing.assert_allclose(tables[0][1], tables[1][1], atol=1e-6)
    np.testing.assert_allclose(tables[0][2], tables[1][2], atol=0.006)  # the bulb differs by 4 mm between A to D


@pytest.mark.parametrize(("scene", "variation"), [("A", None), ("B", None), ("C", 3), ("A", 7), ("B", 11), ("D", 2)])
def test_fixtures_point_at_what_they_name(scene, variation):
    """Rays towards each named point must hit its link, about where it says."""
    env = _env(scene, variation)
    env.reset(seed=0)
    fixtures = env.fixtures
    towards = {  # point, direction from which a ray comes
        "button_link": (fixtures.button_top, (0, 0, 1)),
        "drawer_link": (fixtures.drawer_handle, (0, -1, 0)),
        "slide_link": (fixtures.slider_handle, (0, -0.866, 0.5)),
        "switch_link": (fixtures.switch_bar, (0, -0.866, 0.5)),
    }
    for link, (point, direction) in towards.items():
        start = np.array(point) + 0.1 * np.array(direction)
        end = np.array(point) - 0.1 * np.array(direction)
        body, index, _, hit, _ = pybullet.rayTest(start, end, physicsClientId=env._client)[0]
        assert (body, env._table_links.get(index)) == (env._table, link)
        assert np.linalg.norm(np.subtract(hit, point)) < 0.018
    # Nothing is in the gap behind the drawer's bar.
    gap = np.array(fixtures.drawer_gap)
    assert pybullet.rayTest(gap + [0, 0, 0.03], gap - [0, 0, 0.03], physicsClientId=env._client)[0][0] == -1
    env.close()


@pytest.mark.parametrize("name", SCENES)
def test_variations_keep_fixtures_apart_and_other_scenes_unseen(name):
    for seed in range(150):
        layout = vary_layout(name, np.random.default_rng(seed))
        assert all(layout.distance(other) > 0.05 for key, other in LAYOUTS.items() if key != name)
        door = (layout.door - layout.door_range, layout.door + 0.28)
        cabinet = (layout.cabinet - 0.26, layout.cabinet + 0.26)
        assert -0.44 < door[0] and door[1] < 0.44 and -0.42 < cabinet[0] and cabinet[1] < 0.42
        switch = layout.switch[0]
        assert abs(switch) + 0.06 < 0.44
        gap = max(min(door[0], cabinet[0]) - switch, switch - max(door[1], cabinet[1]))
        assert gap > 0.06
        assert abs(layout.drawer) + 0.2 < 0.42
        assert 0.05 < layout.handle < 0.23


@pytest.mark.parametrize("seed", range(6))
def test_varied_surfaces_hold_blocks(seed):
    scene = builtin_scene(SCENES[seed % 4], seed)
    fixtures = scene.fixtures
    for name, (low, high) in scene.surfaces.items():
        assert high[0] - low[0] >= 0.1, name
    button = fixtures.button_top[0]
    table = scene.surfaces["table"]
    assert not table[0][0] - 0.07 < button < table[1][0] + 0.07
    for side in ("slider_left", "slider_right"):
        low, high = scene.surfaces[side]
        assert fixtures.cabinet_box[0][0] + 0.02 < low[0] and high[0] < fixtures.cabinet_box[1][0] - 0.02


def test_expert_works_in_varied_scenes():
    from arvrm.sim.experts import Expert
    from arvrm.sim.tasks import TaskOracle

    for variation, task in ((1, "open_drawer"), (2, "turn_on_led"), (3, "move_slider_left"), (4, "turn_on_lightbulb")):
        env = _env("A", variation)
        _, start = env.reset(seed=0)
        expert, done = Expert(task, env, np.random.default_rng(0)), False
        for _ in range(150):
            if done or expert.finished:
                break
            info = env.step(expert.act())[-1]
            done = task in TaskOracle().completed(start, info, tasks=[task])
        assert done, f"{task} in variation {variation}"
        env.close()


def test_picture_shows_blocks_and_lights_where_they_are():
    env = _env()
    state = _scene_obs((0.05, -0.09, 0.46), (0.17, -0.09, 0.46), (0.29, -0.09, 0.46))
    env.reset(options={"scene_obs": state})
    rig = env.cameras["static"]
    bulb = np.array([0.30, 0.132 + 0.028, 0.648 + 0.0216])
    places = np.array([state[6:9], state[12:15], state[18:21], bulb])
    pixels = project(places, rig.world_to_camera(), intrinsics(10, 200, 200))[:, :2].astype(int)
    image = rig.render()[0]
    red, blue, pink, white = (image[v, u].astype(int) for u, v in pixels)
    assert red[0] > 2 * max(red[1], red[2]) and blue[2] > 2 * max(blue[:2])
    assert min(pink[0], pink[2]) > 2 * pink[1] and min(white) > 100
    state[4] = 1
    env.reset(options={"scene_obs": state})
    u, v = pixels[3]
    yellow = rig.render()[0][v, u].astype(int)
    assert min(yellow[:2]) > 100 and yellow[2] < 20
    env.close()


def test_scenes_and_variations_look_different():
    images = []
    for scene, variation in (("A", None), ("B", None), ("C", None), ("D", None), ("A", 1), ("A", 2)):
        env = _env(scene, variation, static_size=64)
        env.reset(seed=0)
        images.append(env.cameras["static"].render()[0].astype(int))
        env.close()
    for i, first in enumerate(images):
        for second in images[:i]:
            assert np.abs(first - second).mean() > 5


_CHILD = """
import json, sys
from pathlib import Path
from arvrm.sim.builtin import builtin_scene
scenes = [builtin_scene("A"), builtin_scene("B", 17)]
print(json.dumps([[scene.hash() for scene in scenes], scenes[0].table_urdf, Path(scenes[0].table_urdf).is_file()]))
"""


def test_processes_make_the_same_bytes_apart_and_clean_up():
    children = [
        subprocess.Popen([sys.executable, "-c", _CHILD], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    first, second = (json.loads(child.communicate(timeout=100)[0].splitlines()[-1]) for child in children)
    assert first[0] == second[0] == [builtin_scene("A").hash(), builtin_scene("B", 17).hash()]
    assert first[2] and second[2] and first[1] != second[1]
    assert not Path(first[1]).exists() and not Path(second[1]).exists()


def test_what_a_killed_process_left_is_cleared_while_others_run(tmp_path):
    script = "from arvrm.sim.builtin import builtin_scene; builtin_scene('A'); print('made', flush=True); input()"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", script]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    killed, alive = (subprocess.Popen(command, **pipes) for _ in range(2))
    for child in (killed, alive):
        assert "made" in child.stdout.readline()
    assert len(list(tmp_path.glob("arvrm-process-*"))) == 2
    killed.kill()
    killed.wait()
    third = subprocess.Popen(command, **pipes)
    assert "made" in third.stdout.readline()
    assert len(list(tmp_path.glob("arvrm-process-*"))) == 2
    for child in (alive, third):
        assert child.communicate("\n", timeout=60)[0] == "" and child.returncode == 0
    assert list(tmp_path.glob("arvrm-process-*")) == []


def test_scene_whose_files_are_gone_is_made_again():
    before = builtin_scene("A").hash()
    remove_process_folder()
    again = builtin_scene("A")
    assert again.hash() == before
    again.check_files()
    Path(again.robot_urdf).unlink()  # by what tidies a machine's temporary files
    builtin_scene("A").check_files()


def test_unknown_scenes_and_negative_seeds_are_refused():
    with pytest.raises(UserError, match="scene: 'E' is unknown"):
        builtin_scene("E")
    with pytest.raises(UserError, match="variation: -1"):
        builtin_scene("A", -1)
