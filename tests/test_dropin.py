"""calvin_env and calvin_agent as arvrm.calvin has them, for scripts that import them."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import yaml

from arvrm.calvin import evaluation, others, settings
from arvrm.calvin.env import PlayTableSimEnv, get_env
from arvrm.calvin.missing import Missing
from arvrm.calvin.options import VARIABLE
from arvrm.calvin.tasks import Tasks
from arvrm.interface import TASKS, UserError
from arvrm.sim.chains import official_chains
from arvrm.sim.experts import Expert
from arvrm.sim.tasks import TaskOracle

ROOT = Path(__file__).parent.parent
LOOP = Path(__file__).with_name("calvin_loop.py")
OPEN = np.array([0, 0, 0, 0, 0, 0, 1.0])
CAMERA = {"aspect": 1, "nearval": 0.01, "fov": 75, "farval": 2, "width": 20, "height": 20}
BLOCK = {"initial_pos": "any", "initial_orn": "any"}


def config(scene: dict | None = None, size: int = 20) -> dict:
    """A data set's merged_config.yaml, with references as OmegaConf writes them."""
    return {
        "cameras": {
            "static": {
                "_target_": "calvin_env.camera.static_camera.StaticCamera",
                **CAMERA, "name": "static", "fov": 10, "farval": 10, "width": size, "height": size,
                "look_at": [-0.026242351159453392, -0.0302329882979393, 0.3920000493526459],
                "look_from": [2.871459009488717, -2.166602199425597, 2.555159848480571],
                "up_vector": [0.4041403970338857, 0.22629790978217404, 0.8862616969685161],
            },
            "gripper": {"_target_": "calvin_env.camera.gripper_camera.GripperCamera", **CAMERA, "name": "gripper"},
            "tactile": {"_target_": "calvin_env.camera.tactile_sensor.TactileSensor", "name": "tactile"},
        },
        "scene": scene or {
            "robot_base_position": [-0.34, -0.46, 0.24],
            "objects": {
                "fixed_objects": {"table": {"file": "calvin_table_D/urdf/calvin_table_D.urdf"}},
                "movable_objects": {"block_red": BLOCK, "block_blue": BLOCK, "block_pink": BLOCK},
            }
        },
        "robot": {"filename": "franka_panda/panda_longer_finger.urdf", "base_position": "${scene.robot_base_position}"},
        "env": {
            "_target_": "calvin_env.envs.play_table_env.PlayTableSimEnv", "_recursive_": False, "seed": 0,
            "cameras": "${cameras}", "robot_cfg": "${robot}", "scene_cfg": "${scene}", "bullet_time_step": 240.0,
            "use_vr": False, "show_gui": False, "use_scene_info": False, "use_egl": True, "control_freq": 30,
        },
    }  # fmt: skip


def dataset(folder: Path, content: dict) -> Path:
    file = folder / "validation" / ".hydra" / "merged_config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file.parents[1]


def run(tmp_path: Path, script: str | Path, *arguments: object, options: tuple = (), **variables: str):
    if isinstance(script, str):
        file = tmp_path / "script.py"
        file.write_text(textwrap.dedent(script))
        script = file
    environment = {k: v for k, v in os.environ.items() if k not in ("CALVIN_ROOT", VARIABLE)}
    environment |= {"PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-m", "arvrm.calvin", *options, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=1200)


@pytest.fixture
def builtin(monkeypatch):
    monkeypatch.setenv(VARIABLE, json.dumps({"assets": "builtin"}))


@pytest.fixture
def env(builtin, tmp_path):
    env = get_env(dataset(tmp_path, config()), show_gui=False)
    yield env
    env.close()


def test_a_loop_of_the_fields_kind_has_the_chains_and_outcomes_of_evaluate(tmp_path, calvin_root):
    from arvrm.evaluation import EvaluateConfig, evaluate
    from arvrm.results import ChainLog, load_results

    scene = yaml.safe_load((calvin_root / "calvin_env/conf/scene/calvin_scene_D.yaml").read_text())
    folder = dataset(tmp_path, config(scene))
    done = run(tmp_path, LOOP, folder.parent, tmp_path / "log", options=("--first", "1"), CALVIN_ROOT=str(calvin_root))
    assert done.returncode == 0, done.stderr
    assert "the first 1 of 1000 chains" in done.stderr and "camera 'tactile' is left out" in done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])
    output = tmp_path / "ours.json"
    settings = {"policy": "expert", "assets": "calvin", "calvin_root": str(calvin_root), "chains": 1, "workers": 1}
    evaluate(None, EvaluateConfig(output=str(output), **settings))
    ours = json.loads(output.with_suffix(".chains.jsonl").read_text().splitlines()[1])
    ours = ours.get("record", ours)
    assert theirs["tasks"] == [ours["tasks"]]
    assert theirs["results"] == [ours["completed"]] and theirs["results"][0] > 1
    assert theirs["steps"] == [ours["steps"]]
    saved = json.loads((tmp_path / "log" / "results.json").read_text())
    assert saved["null"]["avg_seq_len"] == load_results(output)["average_length"] and ChainLog


def test_observations_and_infos_have_calvins_keys_types_and_shapes(env):
    observation, reward, done, info = env.step(OPEN.astype(np.float32))
    assert (reward, done) == (0, False)
    assert list(observation) == ["rgb_obs", "depth_obs", "robot_obs", "scene_obs"]
    for part, dtype, shape in (("rgb", np.uint8, (20, 20, 3)), ("depth", np.float32, (20, 20))):
        images = observation[f"{part}_obs"]
        assert {name: (image.dtype, image.shape) for name, image in images.items()} == {
            f"{part}_{camera}": (dtype, shape) for camera in ("static", "gripper")
        }
    with pytest.raises(KeyError, match="no 'rgb_tactile' here, but rgb_static, rgb_gripper"):
        observation["rgb_obs"]["rgb_tactile"]
    assert [observation[key].shape for key in ("robot_obs", "scene_obs")] == [(15,), (24,)]
    assert list(info["robot_info"]) == [
        "tcp_pos", "tcp_orn", "gripper_opening_width", "arm_joint_states", "gripper_action", "uid", "contacts",
    ]  # fmt: skip
    scene = info["scene_info"]
    assert list(scene) == ["fixed_objects", "movable_objects", "doors", "buttons", "switches", "lights"]
    assert list(scene["movable_objects"]) == ["block_red", "block_blue", "block_pink"]
    assert scene["fixed_objects"]["table"]["links"]["base_link"] == -1
    assert len(env.robot.get_observation_labels()) == 15
    assert env.render(mode="rgb_array").shape == (20, 20, 3)
    assert env.p.getNumBodies() > 4


def test_states_given_to_reset_come_back_and_the_same_actions_give_the_same_images(env):
    robot_obs, scene_obs = evaluation.get_env_state_for_initial_condition(official_chains()[0].initial_state)

    def roll() -> list:
        env.reset(robot_obs=robot_obs, scene_obs=scene_obs)
        return [env.step(action)[0] for action in 5 * [OPEN, np.array([1, 0, -1, 0, 0, 0, -1.0])]]

    first, second = roll(), roll()
    assert np.allclose(first[0]["scene_obs"][:6], scene_obs[:6], atol=1e-2)
    for one, two in zip(first, second, strict=True):
        assert np.array_equal(one["robot_obs"], two["robot_obs"])
        assert np.array_equal(one["rgb_obs"]["rgb_gripper"], two["rgb_obs"]["rgb_gripper"])


def test_every_way_to_write_an_absolute_pose_is_the_same_action(env):
    def after(*actions) -> np.ndarray:
        env.reset()
        env.seed(0)
        for action in actions:
            observation = env.step(action)[0]
        return observation["robot_obs"]

    env.seed(0)
    pose = env.reset()["robot_obs"][:6] + 0.01
    ways = [
        (pose[:3], pose[3:], 1),
        [pose[:3], pose[3:], np.array([1.0])],
        {"type": "cartesian_abs", "action": np.append(pose, 1)},
    ]
    ends = [after(*8 * [way]) for way in ways]
    assert np.array_equal(ends[0], ends[1]) and np.array_equal(ends[0], ends[2])
    assert np.linalg.norm(ends[0][:3] - pose[:3]) < 0.005
    # A relative step goes on from where the last relative one led, not from an absolute pose.
    assert np.abs(after(ways[0], *20 * [OPEN])[:3] - pose[:3] + 0.01).max() < 0.005


def test_actions_that_cannot_be_meant_are_refused(env):
    for action, said in (
        (np.zeros(7), "gripper 0.0 must be"),
        (np.zeros(8), "8 numbers; give 7"),
        ({"type": "torque", "action": [0]}, "type 'torque'"),
        (np.full(7, np.nan), "not finite"),
    ):
        with pytest.raises(UserError, match=said):
            env.step(action)


def test_the_oracle_of_the_task_file_decides_as_ours_does(env, calvin_root):
    file = calvin_root / "calvin_models/conf/callbacks/rollout/tasks/new_playtable_tasks.yaml"
    oracle = Tasks(yaml.safe_load(file.read_text())["tasks"])
    assert oracle.num_tasks == 34 and set(oracle.tasks) == set(TASKS)
    rng, done = np.random.default_rng(0), set()
    for task in ("open_drawer", "turn_on_led", "lift_red_block_table", "rotate_blue_block_left"):
        scene_obs = np.zeros(24)
        scene_obs[6:9], scene_obs[12:15], scene_obs[18:21] = (0.05, -0.12, 0.46), (0.23, -0.12, 0.46), (0.1, 0.08, 0.46)
        env.reset(scene_obs=scene_obs)
        expert = Expert(task, env._table, rng)
        start, start_info = env.get_info(), env._table.task_info()
        for _ in range(150):
            env._table.action_kind = "relative"
            now_info = env._table.step(expert.act())[4]
            now = env.get_info()
            found = oracle.get_task_info(start, now)
            assert found == TaskOracle().completed(start_info, now_info)
            assert oracle.get_task_info_for_set(start, now, {task}) == found & {task}
            done |= found
            if task in found:
                break
    assert len(done) >= 3


def test_an_oracle_may_have_other_numbers_and_functions_of_its_own(env):
    class Mine(Tasks):
        @staticmethod
        def always(start_info, end_info):
            return True

    oracle = Mine({"slow": ["move_door_rel", "base__drawer", 0.01], "mine": ["always"]})
    start = env.get_info()
    scene_obs = env.get_obs()["scene_obs"]
    scene_obs[1] = 0.05
    env.reset(scene_obs=scene_obs)
    assert oracle.get_task_info(start, env.get_info()) == {"slow", "mine"}
    with pytest.raises(Missing, match="task t: function 'move_door_abs'"):
        Tasks({"t": ["move_door_abs", "base__drawer", 0, 1]})


def test_sequences_and_start_states_are_the_official_ones(golden):
    stored = json.loads((golden / "sequences_1000.json").read_text())
    state = np.random.get_state()[1].copy()
    sequences = evaluation.get_sequences(1000)
    assert len(sequences) == 1000
    for (initial, tasks), entry in zip(sequences, stored, strict=True):
        robot_obs, scene_obs = evaluation.get_env_state_for_initial_condition(initial)
        assert list(tasks) == list(entry["tasks"] if "tasks" in entry else entry["sequence"])
        assert robot_obs.shape == (15,) and np.array_equal(scene_obs, entry["scene_obs"])
    assert np.array_equal(np.random.get_state()[1], state)


def test_results_are_counted_and_kept_beside_those_of_other_epochs(tmp_path, capsys):
    sequences = [({}, ("a", "b", "c", "d", "e")), ({}, ("b", "a", "c", "d", "e"))]
    evaluation.print_and_save([2, 0], sequences, tmp_path, epoch="7")
    evaluation.print_and_save([5, 5], sequences, tmp_path, epoch="8")
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["7"] == {
        "avg_seq_len": 1.0,
        "chain_sr": {"1": 0.5, "2": 0.5, "3": 0.0, "4": 0.0, "5": 0.0},
        "task_info": {
            "a": {"success": 1, "total": 1},
            "b": {"success": 1, "total": 2},
            "c": {"success": 0, "total": 1},
        },
    }
    assert "Best model: epoch 8 with average sequences length of 5.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("robot", "max_joint_force", 100), ("robot", "use_target_pose", False), ("env", "control_freq", 15),
     ("env", "seed", 3)],
)  # fmt: skip
def test_another_robot_or_clock_is_refused_by_name(section, key, value, builtin, tmp_path):
    content = config()
    content[section][key] = value
    with pytest.raises(UserError, match=f"{section}.{key}: {value!r}; arvrm.calvin has"):
        get_env(dataset(tmp_path, content), show_gui=False)


def test_a_folder_without_configuration_and_a_table_of_ones_own_are_refused(builtin, tmp_path):
    with pytest.raises(UserError, match="merged_config.yaml"):
        get_env(tmp_path)
    with pytest.raises(UserError, match="none of calvin_table_A to D"):
        settings.describe({"objects": {"fixed_objects": {"table": {"file": "my_table/urdf/my_table.urdf"}}}})


def test_the_environment_is_made_from_omegaconfs_sections_by_its_target(builtin, tmp_path):
    pytest.importorskip("hydra")
    script = """
        import sys, hydra
        from omegaconf import OmegaConf
        config = OmegaConf.load(sys.argv[1] + "/.hydra/merged_config.yaml")
        del config.cameras["tactile"]
        env = hydra.utils.instantiate(config.env, show_gui=False, use_vr=False, use_scene_info=True)
        oracle = hydra.utils.instantiate(OmegaConf.create({"_target_": "calvin_env.envs.tasks.Tasks", "tasks": {
            "push": ["push_object_into", ["block_red"], "table", "base_link", "table", "drawer_link"]}}))
        info = env.get_info()
        print(type(env).__name__, oracle.get_task_info(info, info), [camera.name for camera in env.cameras])
    """
    done = run(tmp_path, script, dataset(tmp_path, config()), options=("--assets", "builtin"))
    assert "PlayTableSimEnv set() ['static', 'gripper']" in done.stdout, done.stderr


def test_what_is_missing_says_so_by_name_with_the_scripts_line(tmp_path):
    for text, said in (
        ("import calvin_agent.models.mcil", "script.py:1: calvin_agent.models.mcil is not part of arvrm.calvin"),
        ("from calvin_env.utils.utils import magic", "script.py:1: cannot import name 'magic'"),
        ("import calvin_env.vrdatacollector", "script.py:1: calvin_env.vrdatacollector is not part of"),
        (
            "from calvin_agent.evaluation.utils import create_tsne\ncreate_tsne({}, None, 0)",
            "script.py:2: calvin_agent.evaluation.utils.create_tsne is not part of arvrm.calvin",
        ),
    ):
        done = run(tmp_path, text)
        assert done.returncode == 2 and said in done.stderr.splitlines()[-1], done.stderr
        assert "Traceback" not in done.stderr


def test_what_needs_no_simulator_comes_from_the_users_own_checkout(tmp_path):
    code = tmp_path / "calvin" / "calvin_models" / "calvin_agent" / "wrappers"
    code.mkdir(parents=True)  # without an __init__.py, as in the original
    (code / "calvin_env_wrapper.py").write_text("import calvin_env.envs.play_table_env\nNAME = 'theirs'\n")
    done = run(
        tmp_path,
        """
        import calvin_agent, calvin_env
        from calvin_agent.wrappers.calvin_env_wrapper import NAME
        print(NAME, calvin_agent.__file__, calvin_env.__file__)
        """,
        CALVIN_ROOT=str(tmp_path / "calvin"),
    )
    name, agent, environment = done.stdout.split()
    assert name == "theirs" and f"is the checkout's own: {code / 'calvin_env_wrapper.py'}" in done.stderr
    assert agent == str(tmp_path / "calvin/calvin_models/calvin_agent/__init__.py")
    assert environment == str(tmp_path / "calvin/calvin_env/calvin_env/__init__.py")


def test_processes_that_a_script_starts_have_the_stand_ins_and_options_too(tmp_path):
    done = run(
        tmp_path,
        """
        import multiprocessing, subprocess, sys

        def chains(n):
            from calvin_agent.evaluation.multistep_sequences import get_sequences
            return len(get_sequences(n))

        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.map(chains, [1000]), flush=True)
            code = "import pickle, numpy, calvin_env; pickle.dumps(numpy.add); print('y')"
            subprocess.run([sys.executable, "-c", code])
        """,
        options=("--first", "3"),
    )
    assert done.stdout.split() == ["[3]", "y"], done.stderr


def test_packages_of_the_old_environment_have_stand_ins_where_they_are_not_installed():
    assert others.fnv1_32()("test") == 3910690890 and others.fnv1_32()(b"test") == 3698262380
    assert others.seed_everything(5) == 5
    first = np.random.rand()
    others.seed_everything(5)
    assert np.random.rand() == first
    assert others.colored("ok", "green") == "\033[32mok\033[0m"

    class Inner(others.Env):
        answer = 42

    wrapped = others.Wrapper(Inner())
    assert wrapped.answer == 42 and isinstance(wrapped.unwrapped, Inner)
    assert issubclass(PlayTableSimEnv, others.Env)
