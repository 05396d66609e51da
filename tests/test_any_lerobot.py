"""LeRobot data sets of any robot: described, asked about, converted, trained on; nothing is guessed."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("av")
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from lerobot_sets import FPS, FRONT, JOINTS, SENTENCES, SIDE, actions, joints, write_set  # noqa: E402
from video_files import level  # noqa: E402

from arvrm import robots  # noqa: E402
from arvrm.config import from_dict, to_dict  # noqa: E402
from arvrm.episodes import EpisodeStore, EpisodeWriter, inspect_store, merge_stores  # noqa: E402
from arvrm.interface import Observation, PlanRequest, UserError  # noqa: E402
from arvrm.policy import load_policy  # noqa: E402
from arvrm.robots.described import DescribedRobot, load_description  # noqa: E402
from arvrm.sources.lerobot import (  # noqa: E402
    ConvertLeRobotConfig,
    DescribeLeRobotConfig,
    Facts,
    convert_lerobot,
    describe_lerobot,
)
from arvrm.training import FinetuneConfig, finetune  # noqa: E402

FACTS = Facts(static="front", relative=False, binary=1, frame="joint targets", units=("deg", "deg", "percent"))
MODEL = {
    "width": 32, "layers": 1, "heads": 2, "latents": 2, "joint_width": 16, "chunk": 4,
    "vision": {"static_size": 32, "gripper_size": 32, "width": 32, "channels": [8, 16], "depth": 1, "points": 8},
}  # fmt: skip
TRAIN = {"steps": 2, "batch": 4, "device": "cpu", "tensorboard": False, "validate_every": 0}


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """Robots that a test makes known are forgotten after it."""
    monkeypatch.setattr(robots, "_KNOWN", dict(robots._KNOWN))
    monkeypatch.setattr(robots, "_READ", {})


@pytest.fixture(scope="module", params=["v3.0", "v2.1"])
def data_set(request, tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("lerobot") / f"set-{request.param}", request.param)


@pytest.fixture(scope="module")
def v3(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("lerobot") / "set")


def converted(source: Path, output: Path, **more) -> EpisodeStore:
    report = convert_lerobot(ConvertLeRobotConfig(str(source), str(output), **{"facts": FACTS, **more}))
    assert report.left_out == {}
    return EpisodeStore(output)


def arvrm(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", "arvrm", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


# -- describing -------------------------------------------------------------------------------------------------------


def test_names_ranges_rate_and_cameras_are_those_of_the_data_set(data_set):
    found, notes = describe_lerobot(DescribeLeRobotConfig(str(data_set)))
    assert (found.name, found.control_hz) == ("small_arm", FPS)
    assert [(c.name, c.feature) for c in found.cameras] == [("front", FRONT), ("side.left", SIDE)]
    assert found.state.names == found.action.names == tuple(JOINTS)
    state = np.concatenate([joints(i, 12) for i in range(3)])
    np.testing.assert_array_equal(found.state.low, state.min(0))
    np.testing.assert_array_equal(found.state.high, state.max(0))
    assert (found.action.low[2], found.action.high[2]) == (0, 1)
    assert "action jaw.pos: two values only" in notes


def test_what_a_data_set_cannot_tell_is_asked_for_by_name(v3, tmp_path):
    found, _ = describe_lerobot(DescribeLeRobotConfig(str(v3)))
    assert set(found.unknown) == {"static", "relative", "binary", "frame", "units", "action_units"}
    with pytest.raises(UserError) as caught:
        convert_lerobot(ConvertLeRobotConfig(str(v3), str(tmp_path / "store")))
    for key in found.unknown:
        assert key in str(caught.value)
    assert "front, side.left" in str(caught.value) and not (tmp_path / "store").exists()
    answers = {key: getattr(FACTS, key) for key in ("static", "relative", "binary", "frame", "units")}
    for left in answers:
        given = {key: value for key, value in answers.items() if key != left}
        with pytest.raises(UserError, match=left):
            convert_lerobot(ConvertLeRobotConfig(str(v3), str(tmp_path / "store"), facts=Facts(**given)))


def test_units_of_equally_named_actions_are_those_of_the_state_and_unknown_is_an_answer(v3):
    found, _ = describe_lerobot(DescribeLeRobotConfig(str(v3), facts=FACTS))
    assert found.unknown == {} and found.action.units == FACTS.units
    found, _ = describe_lerobot(DescribeLeRobotConfig(str(v3), facts=dataclasses.replace(FACTS, units="unknown")))
    assert found.state.units == ("unknown",) * 3 and found.unknown == {}


def test_a_description_is_printed_edited_and_used(v3, tmp_path):
    told = arvrm("describe", "lerobot", "--input", v3, "--output", "arm.json", cwd=tmp_path)
    assert told.returncode == 0 and told.stdout.strip() == "arm.json", told.stderr
    for words in ("elbow.pos: 10 to 32", "facts.relative", "facts.static", f"camera front: role ? (from {FRONT})"):
        assert words in told.stderr
    refused = arvrm("convert", "lerobot", "--input", v3, "--output", "store", "--robot", "arm.json", cwd=tmp_path)
    assert refused.returncode == 2 and "arm.json: does not say static" in refused.stderr
    values = json.loads((tmp_path / "arm.json").read_text())
    values |= {"name": "my-arm", "relative": False, "frame": "joint targets"}
    values["action"]["units"] = values["state"]["units"] = ["deg", "deg", "percent"]
    values["state"]["high"][1] = 90.0
    (tmp_path / "arm.json").write_text(json.dumps(values))
    command = ["convert", "lerobot", "--input", v3, "--output", "store", "--robot", "arm.json"]
    done = arvrm(*command, "facts.static=side.left", "facts.binary=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    robot = EpisodeStore(tmp_path / "store").robot
    assert (robot.name, robot.statistics.state_high[1]) == ("my-arm", 90.0)
    assert [(camera.name, camera.role) for camera in robot.cameras] == [("side.left", "static"), ("front", "front")]


def test_a_description_that_exists_is_replaced_on_request_only_and_nothing_else_is(v3, tmp_path):
    config = DescribeLeRobotConfig(str(v3), str(tmp_path / "arm.json"))
    describe_lerobot(config)
    with pytest.raises(UserError, match="--overwrite"):
        describe_lerobot(config)
    describe_lerobot(dataclasses.replace(config, overwrite=True))
    (tmp_path / "letter.json").write_text("{}")
    with pytest.raises(UserError, match="is not a robot description"):
        describe_lerobot(dataclasses.replace(config, output=str(tmp_path / "letter.json"), overwrite=True))


def replace_column(file: Path, table: pa.Table, name: str, values: np.ndarray) -> None:
    position = table.column_names.index(name)
    column = pa.array(values.tolist(), table.schema.field(name).type)
    pq.write_table(table.set_column(position, table.schema.field(name), column), file)


def test_features_of_other_names_are_joined_as_asked(tmp_path):
    folder = write_set(tmp_path / "set")
    file = folder / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(file)
    names = ["observation.arm" if name == "observation.state" else name for name in table.column_names]
    table = table.rename_columns(names).append_column("observation.force", table["timestamp"])
    pq.write_table(table, file)
    info = json.loads((folder / "meta" / "info.json").read_text())
    info["features"]["observation.arm"] = info["features"].pop("observation.state")
    info["features"]["observation.force"] = {"dtype": "float32", "shape": [1], "names": None}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    with pytest.raises(
        UserError, match=r"no 'observation.state'; say facts.state=.*observation.arm, observation.force"
    ):
        describe_lerobot(DescribeLeRobotConfig(str(folder)))
    facts = dataclasses.replace(FACTS, state=("observation.arm", "observation.force"), units="unknown")
    facts = dataclasses.replace(facts, action_units="deg", cameras=FRONT)
    store = converted(folder, tmp_path / "store", facts=facts)
    assert store.robot.components == (*JOINTS, "force")
    state = store.arrays(store.ids[1])["state"]
    np.testing.assert_allclose(state[:, :3], joints(1, 12))
    np.testing.assert_allclose(state[:, 3], np.arange(12) / FPS, rtol=1e-6)
    assert list(store.header(store.ids[0]).cameras) == ["front"]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"static": "top"}, "facts.static: no camera 'top'; it has front, side.left"),
        ({"state": ("observation.states",)}, "facts.state: no feature 'observation.states'"),
        ({"action": (FRONT,)}, "facts.action: feature .* is video"),
        ({"cameras": ("action",)}, "facts.cameras: no camera 'action'"),
        ({"units": ("rad", "mm")}, "facts.units: 2 units for 3 numbers"),
        ({"binary": 2}, "facts.binary=2: action 'elbow.pos' has .* values"),
        ({"binary": 4}, "binary is 4; there are 3"),
    ],
)
def test_a_wrong_answer_is_refused_in_one_line(v3, facts, words):
    with pytest.raises(UserError, match=words) as caught:
        describe_lerobot(DescribeLeRobotConfig(str(v3), facts=Facts(**facts)))
    assert "\n" not in str(caught.value)


def test_numbers_that_never_move_and_statistics_that_disagree_are_mentioned(tmp_path):
    folder = write_set(tmp_path / "set", image_side=False)
    file = folder / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(file)
    state = np.array(table["observation.state"].to_pylist(), np.float32)
    state[:, 1] = 5
    replace_column(file, table, "observation.state", state)
    stats = {"observation.state": {"min": [-60.0, 5.0, 2.0], "max": [60.0, 5.0, 30.0]}}
    (folder / "meta" / "stats.json").write_text(json.dumps(stats))
    found, notes = describe_lerobot(DescribeLeRobotConfig(str(folder)))
    said = "\n".join(notes)
    assert "state elbow.pos: is always 5" in said and (found.state.low[1], found.state.high[1]) == (4.5, 5.5)
    assert "stats.json says -60 to 60 of shoulder.pos, the data -42 to 60" in said and "elbow.pos, the data" not in said
    assert "has no ranges of action" in said and "front is the only camera" in said


# -- converting -------------------------------------------------------------------------------------------------------


def test_every_row_picture_and_sentence_arrives_in_either_format(data_set, tmp_path):
    store = converted(data_set, tmp_path / "store")
    assert store.ids == tuple(f"lerobot/{i:06d}" for i in range(3)) and store.robot_name == "small_arm"
    for number, id in enumerate(store.ids):
        episode = store.episode(id)
        assert (episode.instruction, episode.fps) == (SENTENCES[number % 2], FPS)
        np.testing.assert_array_equal(episode.arrays["state"], joints(number, 12))
        wanted = actions(joints(number, 12))
        np.testing.assert_array_equal(episode.arrays["actions"][:, :2], wanted[:, :2])
        np.testing.assert_array_equal(episode.arrays["actions"][:, 2], 2 * wanted[:, 2] - 1)
        assert episode.images["front"].shape == (12, 48, 64, 3) and episode.images["side.left"].shape == (12, 32, 32, 3)
        assert [level(image) for image in episode.images["front"]] == [(12 * number + i) % 20 for i in range(12)]
        assert [level(image) for image in episode.images["side.left"]] == list(range(12))


def test_both_formats_give_the_same_episodes(tmp_path):
    stores = []
    for version in ("v3.0", "v2.1"):
        source = write_set(tmp_path / version, version)
        stores.append(converted(source, tmp_path / f"store-{version}"))
    for id in stores[0].ids:
        one, other = (store.arrays(id) for store in stores)
        assert all(np.array_equal(one[name], other[name]) for name in one)
        for mine, theirs in zip(*(store.frames(id, "front", range(12)) for store in stores), strict=True):
            assert level(mine) == level(theirs)


def test_a_store_and_a_checkpoint_say_all_of_their_robot_to_a_process_that_has_nothing_else(v3, tmp_path):
    source = shutil.copytree(v3, tmp_path / "set")
    converted(source, tmp_path / "store", image_side=32)
    shutil.rmtree(source)
    shown = inspect_store(tmp_path / "store")
    for words in ("robot: small_arm", "jaw.pos: 2 to 30 percent", "absolute; of joint targets; the last 1 binary"):
        assert words in shown
    small = [f"model.{name}={json.dumps(value)}" for name, value in MODEL.items()]
    small += [f"train.{name}={json.dumps(value)}" for name, value in TRAIN.items()]
    command = ["finetune", "--output", "policy", 'data.stores=["store"]', "data.validation=0", "window.stride=3"]
    trained = arvrm(*command, *small, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    shutil.rmtree(tmp_path / "store")
    robots._KNOWN.pop("small_arm"), robots._READ.clear()
    policy = load_policy(tmp_path / "policy")
    assert policy.spec.robot == "small_arm" and dict(policy.spec.image_sizes) == {"front": 32, "side.left": 32}
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in policy.spec.image_sizes}
    history = tuple(Observation(policy.robot.example(rng), images) for _ in policy.spec.history_offsets)
    (chunk,) = policy.plan([PlanRequest(SENTENCES[0], history, 0, 0)])
    policy.robot.check_actions("chunk", chunk)
    taken = policy.robot.commanded(chunk)
    assert set(np.unique(taken[:, 2])) <= {0.0, 1.0} and np.array_equal(policy.robot.recorded(taken), chunk)


def test_images_are_stored_smaller_and_fewer_on_request(v3, tmp_path):
    store = converted(v3, tmp_path / "store", image_every=3, image_side=24)
    header = store.header(store.ids[0])
    assert header.image_steps.tolist() == [0, 3, 6, 9] and set(header.cameras.values()) == {(24, 24)}
    assert [level(image) for image in store.frames(store.ids[0], "front", range(4))] == [0, 3, 6, 9]


def test_numbers_beyond_the_description_leave_the_episode_out_and_say_so(v3, tmp_path):
    found, _ = describe_lerobot(DescribeLeRobotConfig(str(v3), facts=FACTS))
    low = (-30.0, *found.action.low[1:])
    narrow = dataclasses.replace(found, action=dataclasses.replace(found.action, low=low))
    (tmp_path / "arm.json").write_text(json.dumps(to_dict(narrow)))
    config = ConvertLeRobotConfig(str(v3), str(tmp_path / "store"), str(tmp_path / "arm.json"))
    report = convert_lerobot(config)
    assert len(report.left_out) == 3
    for reason in report.left_out.values():
        assert "shoulder.pos" in reason and "-30 to 60" in reason and "widen action.low" in reason


def test_a_third_value_of_a_binary_number_leaves_the_episode_out(tmp_path):
    folder = write_set(tmp_path / "set", image_side=False)
    description = tmp_path / "arm.json"
    describe_lerobot(DescribeLeRobotConfig(str(folder), str(description), facts=FACTS))
    file = folder / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(file)
    values = np.array(table["action"].to_pylist(), np.float32)
    values[15, 2] = 0.4
    replace_column(file, table, "action", values)
    report = convert_lerobot(ConvertLeRobotConfig(str(folder), str(tmp_path / "store"), str(description)))
    assert report.left_out == {"lerobot/000001": "action 'jaw.pos' is 0.4, and said to be binary: 0 or 1"}


def test_a_data_set_without_sentences_is_given_one(tmp_path):
    folder = write_set(tmp_path / "set")
    pq.write_table(pq.read_table(folder / "meta" / "tasks.parquet").set_column(1, "task", [["", "put it down"]]),
                   folder / "meta" / "tasks.parquet")  # fmt: skip
    config = ConvertLeRobotConfig(str(folder), str(tmp_path / "store"), facts=FACTS)
    report = convert_lerobot(config)
    assert set(report.left_out.values()) == {"has no sentence; give one with --instruction"}
    store = converted(folder, tmp_path / "other", instruction="pick it up")
    assert [store.header(id).instruction for id in store.ids] == ["pick it up", "put it down", "pick it up"]


def test_a_conversion_goes_on_with_the_same_description_only(v3, tmp_path):
    converted(v3, tmp_path / "store")
    converted(v3, tmp_path / "store", resume=True)
    with pytest.raises(UserError, match="robot_description"):
        converted(v3, tmp_path / "store", resume=True, facts=dataclasses.replace(FACTS, relative=True))


def test_a_fifteen_number_arm_is_calvins_unless_a_description_says_otherwise(v3, tmp_path):
    assert convert_lerobot(ConvertLeRobotConfig(str(v3), str(tmp_path / "a"), facts=FACTS)).said[0].startswith("robot ")
    with pytest.raises(UserError, match="--top is CALVIN's alone"):
        convert_lerobot(ConvertLeRobotConfig(str(v3), str(tmp_path / "b"), facts=FACTS, top="front"))
    with pytest.raises(UserError, match="facts: CALVIN's robot is known"):
        convert_lerobot(ConvertLeRobotConfig(str(v3), str(tmp_path / "b"), "calvin", facts=FACTS))


def test_a_damaged_v2_set_loses_the_episode_and_names_the_file(tmp_path):
    folder = write_set(tmp_path / "set", "v2.1")
    (folder / "videos" / "chunk-000" / FRONT / "episode_000001.mp4").write_bytes(b"no film")
    (folder / "data" / "chunk-001" / "episode_000002.parquet").unlink()
    report = convert_lerobot(ConvertLeRobotConfig(str(folder), str(tmp_path / "store"), facts=FACTS))
    assert report.episodes == 1 and set(report.left_out) == {"lerobot/000001", "lerobot/000002"}
    assert "episode_000001.mp4" in report.left_out["lerobot/000001"]
    assert "episode_000002.parquet" in report.left_out["lerobot/000002"]
    with (folder / "meta" / "tasks.jsonl").open("a") as stream:
        stream.write("{broken\n")
    with pytest.raises(UserError, match=r"tasks.jsonl: line 3 is no JSON"):
        convert_lerobot(ConvertLeRobotConfig(str(folder), str(tmp_path / "other"), facts=FACTS))


# -- stores that do not go together -----------------------------------------------------------------------------------


def test_stores_with_two_descriptions_of_one_robot_are_mixed_by_a_named_one_only(v3, tmp_path):
    converted(v3, tmp_path / "a")
    robots._KNOWN.pop("small_arm")
    found, _ = describe_lerobot(DescribeLeRobotConfig(str(v3), facts=FACTS))
    wide = dataclasses.replace(found, state=dataclasses.replace(found.state, high=(90.0, 90.0, 90.0)))
    (tmp_path / "wide.json").write_text(json.dumps(to_dict(wide)))
    config = ConvertLeRobotConfig(str(v3), str(tmp_path / "b"), str(tmp_path / "wide.json"), prefix="b/")
    convert_lerobot(config)
    robots._KNOWN.pop("small_arm")
    with pytest.raises(UserError, match=r"otherwise than .*state.high"):
        merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    values = {
        "output": str(tmp_path / "policy"),
        "data": {"stores": [str(tmp_path / "a"), str(tmp_path / "b")], "validation": 0},
        "window": {"history": 2, "stride": 3},
        "model": MODEL,
        "train": TRAIN,
    }
    with pytest.raises(UserError, match=r"state.high.*data.robot=FILE.json"):
        finetune(from_dict(FinetuneConfig, values), progress=False)
    values["data"]["robot"] = str(tmp_path / "wide.json")
    finetune(from_dict(FinetuneConfig, values), progress=False)
    assert json.loads((tmp_path / "policy" / "statistics.json").read_text())["state_high"] == [90.0] * 3


def test_a_description_that_was_named_must_be_the_stores_but_for_its_numbers(v3, tmp_path):
    converted(v3, tmp_path / "store")
    found, _ = describe_lerobot(DescribeLeRobotConfig(str(v3), facts=FACTS))
    (tmp_path / "other.json").write_text(json.dumps(to_dict(dataclasses.replace(found, relative=True))))
    robots.chosen(str(tmp_path / "other.json"))
    with pytest.raises(UserError, match="actions' relative False and True"):
        _ = EpisodeStore(tmp_path / "store").robot


def test_episodes_of_a_described_robot_take_their_description_into_any_store(v3, tmp_path):
    store = converted(v3, tmp_path / "store")
    robots._KNOWN.pop("small_arm")
    with EpisodeWriter(tmp_path / "copy", {"source": "copy"}) as writer:
        writer.append(store.episode(store.ids[0]))
    again = EpisodeStore(tmp_path / "copy")
    assert again.manifest["robot_description"] == store.manifest["robot_description"]
    assert again.robot == store.robot and "small_arm" in inspect_store(tmp_path / "copy")
    merged = merge_stores([tmp_path / "store"], tmp_path / "merged")
    assert merged.robot == store.robot


# -- the description by itself ----------------------------------------------------------------------------------------


def test_a_described_robot_encodes_and_decodes_exactly_what_it_is_given(v3):
    found, _ = describe_lerobot(DescribeLeRobotConfig(str(v3), facts=FACTS))
    robot = DescribedRobot(found)
    rng = np.random.default_rng(0)
    drawn = np.stack([robot.random_action(rng) for _ in range(20)])
    robot.check_actions("drawn", drawn)
    encoded = robot.encode_actions(drawn)
    assert np.abs(encoded).max() <= 1 and set(np.unique(encoded[:, 2])) == {-1.0, 1.0}
    np.testing.assert_allclose(robot.decode_actions(encoded), drawn, rtol=1e-6, atol=1e-5)
    state = robot.example(rng)
    np.testing.assert_allclose(robot.decode_components(robot.encode_components(state)), state["state"], atol=1e-5)
    assert robot.actions.units == ("deg", "deg", "-1 low, 1 high")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nam": "x"}, "unknown key 'nam'; did you mean 'name'"),
        ({"format": "arvrm-robot-9"}, "format 'arvrm-robot-9' is unknown"),
        ({"control_hz": 0}, "control_hz is 0"),
        ({"cameras": []}, "at least one"),
        ({"cameras": [{"name": "a", "role": "static"}, {"name": "b", "role": "text"}]}, "camera role 'text'"),
        ({"binary": -1}, "binary is -1"),
        ({"state": {"names": ["a"], "units": ["m"], "low": [1.0], "high": [1.0]}}, "a: low 1.0 is not below"),
        ({"state": {"names": ["a"], "units": [], "low": [0.0], "high": [1.0]}}, "units has 0 entries"),
    ],
)
def test_a_description_with_a_mistake_is_refused_by_file_and_key(v3, tmp_path, changes, words):
    found, _ = describe_lerobot(DescribeLeRobotConfig(str(v3), facts=FACTS))
    (tmp_path / "arm.json").write_text(json.dumps(to_dict(found) | changes))
    with pytest.raises(UserError, match=words) as caught:
        load_description(tmp_path / "arm.json")
    assert "arm.json" in str(caught.value) and "\n" not in str(caught.value)
