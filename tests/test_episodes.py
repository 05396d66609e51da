"""The episode store: what goes in comes out, nothing is half written, damage is named."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import lmdb
import numpy as np
import pytest
from PIL import Image

from arvrm import robots
from arvrm.episodes import (
    HAND_ARRAYS,
    EncodedImages,
    Episode,
    EpisodeStore,
    EpisodeWriter,
    encode_episode,
    encode_image,
    inspect_store,
    merge_stores,
)
from arvrm.interface import Camera, UserError
from arvrm.robots.vector import Ranges, VectorRobot
from arvrm.show.contact_sheet import draw_contact_sheet


def smooth_images(rng, frames, size):
    """Images that JPEG keeps well: a gradient with a colour of its own per frame."""
    ramp = np.linspace(0, 200, size)[None, :, None, None] * np.array([1, 0.5, 0.2])
    return (ramp + np.zeros((frames, 1, size, 1)) + rng.integers(0, 50, (frames, 1, 1, 3))).astype(np.uint8)


def robot_episode(id="robot-A-000000", steps=20, seed=0, **changes):
    rng = np.random.default_rng(seed)
    at = np.arange(0, steps, 3, dtype=np.int32)
    actions = rng.uniform(-1, 1, (steps, 7)).astype(np.float32)
    actions[:, 6] = np.where(actions[:, 6] > 0, 1, -1)
    pixels = rng.uniform(0, 24, (steps, 7, 2)).astype(np.float32)
    pixels[0, 0] = np.nan
    values = dict(
        id=id, embodiment="robot", instruction="pull out the drawer", task="open_drawer", scene="A",
        source="playtable", group="robot-A-chain-0", fps=30.0,
        arrays={
            "robot_obs": rng.normal(size=(steps, 15)),
            "scene_obs": rng.normal(size=(steps, 24)),
            "actions": actions,
            "executed": actions,
            "landmark_pixels": pixels,
        },
        images={"rgb_static": smooth_images(rng, len(at), 24), "rgb_gripper": smooth_images(rng, len(at), 16)},
        image_steps=at,
        meta={"noise": 0.1, "tags": ["a", None]},
    )  # fmt: skip
    return Episode(**{**values, **changes})


def human_episode(id="human-A-000000", steps=9, seed=1, **changes):
    rng = np.random.default_rng(seed)
    at = np.arange(0, steps, 3, dtype=np.int32)
    values = dict(
        id=id, embodiment="human", instruction="shut the drawer", task="close_drawer", scene="A", source="playtable",
        group=id, fps=30.0,
        arrays={
            "keypoints": rng.uniform(4, 20, (steps, 21, 3)).astype(np.float32),
            "visible": rng.random((steps, 21)) > 0.2,
        },
        images={"rgb_static": smooth_images(rng, len(at), 24)}, image_steps=at, meta={},
    )  # fmt: skip
    return Episode(**{**values, **changes})


def write(path, *episodes, manifest=None, **options):
    with EpisodeWriter(path, manifest or {"seed": 0}, **options) as writer:
        for episode in episodes:
            writer.append(episode)
    return EpisodeStore(path)


@pytest.mark.parametrize("episode", [robot_episode(), human_episode()], ids=["robot", "human"])
def test_episode_comes_back_as_it_went_in(tmp_path, episode):
    read = write(tmp_path / "s", episode).episode(episode.id)
    for name in ("id", "embodiment", "instruction", "task", "scene", "source", "group", "fps", "meta"):
        assert getattr(read, name) == getattr(episode, name)
    assert set(read.arrays) == set(episode.arrays)
    for name, array in episode.arrays.items():
        assert read.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(read.arrays[name], array)
    np.testing.assert_array_equal(read.image_steps, episode.image_steps)
    for camera, images in episode.images.items():
        assert read.images[camera].shape == images.shape
        difference = read.images[camera].astype(int) - images
        assert np.abs(difference).mean() < 2  # JPEG, not another image


def test_frames_come_in_the_order_asked_for(tmp_path):
    store = write(tmp_path / "s", robot_episode())
    whole = store.episode("robot-A-000000").images["rgb_gripper"]
    rows = [3, 0, 3, 6]
    np.testing.assert_array_equal(store.frames("robot-A-000000", "rgb_gripper", rows), whole[rows])
    assert store.frames("robot-A-000000", "rgb_gripper", []).shape == (0, 16, 16, 3)


def test_arrays_can_be_read_by_name_and_row(tmp_path):
    episode = robot_episode()
    store = write(tmp_path / "s", episode)
    found = store.arrays(episode.id, ("executed", "robot_obs"), [5, 2])
    assert list(found) == ["executed", "robot_obs"]
    np.testing.assert_array_equal(found["robot_obs"], episode.arrays["robot_obs"][[5, 2]])
    found["robot_obs"][:] = 0  # a copy: the store stays
    np.testing.assert_array_equal(store.arrays(episode.id)["robot_obs"], episode.arrays["robot_obs"])


def test_manifest_tells_how_and_how_many(tmp_path):
    store = write(tmp_path / "s", robot_episode(), human_episode(), manifest={"seed": 7}, jpeg_quality=80)
    assert store.manifest["seed"] == 7
    assert store.manifest["jpeg"]["quality"] == 80
    assert store.manifest["complete"] is True
    assert store.manifest["counts"] == {"episodes": 2, "steps": 29, "frames": 10}
    assert store.ids == ("human-A-000000", "robot-A-000000")
    assert len(store) == 2 and "robot-A-000000" in store and "robot-A-1" not in store


def test_same_episodes_make_the_same_records_in_any_order(tmp_path):
    a = write(tmp_path / "a", robot_episode(), human_episode())
    b = write(tmp_path / "b", human_episode(), robot_episode())
    assert a.ids == b.ids
    assert [a.encoded(id) for id in a.ids] == [b.encoded(id) for id in b.ids]


def test_existing_store_needs_resume_or_overwrite(tmp_path):
    write(tmp_path / "s", robot_episode("one"))
    with pytest.raises(UserError, match="--resume.*--overwrite"):
        EpisodeWriter(tmp_path / "s", {"seed": 0})
    resumed = write(tmp_path / "s", robot_episode("two"), resume=True)
    assert resumed.ids == ("one", "two")
    replaced = write(tmp_path / "s", robot_episode("three"), overwrite=True)
    assert replaced.ids == ("three",)


def test_resume_with_other_settings_names_the_setting(tmp_path):
    write(tmp_path / "s", robot_episode(), manifest={"config": {"noise": 0.1, "seed": 1}})
    with pytest.raises(UserError, match=r"config.noise = 0.1, not 0.2"):
        EpisodeWriter(tmp_path / "s", {"config": {"noise": 0.2, "seed": 1}}, resume=True)
    with pytest.raises(UserError, match="jpeg.quality"):
        EpisodeWriter(tmp_path / "s", {"config": {"noise": 0.1, "seed": 1}}, resume=True, jpeg_quality=50)


def test_overwrite_never_removes_what_is_no_store(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(UserError, match="other files"):
        EpisodeWriter(folder, {}, overwrite=True)
    write(tmp_path / "s", robot_episode())
    (tmp_path / "s" / "data.mdb").rename(folder / "data.mdb")
    with pytest.raises(UserError, match="'cat.jpg'"):
        EpisodeWriter(folder, {}, overwrite=True)
    (folder / "cat.jpg").unlink()
    (folder / "data.mdb").write_bytes(b"some other program's file" * 500)
    with pytest.raises(UserError, match="no LMDB file"):
        EpisodeWriter(folder, {}, overwrite=True)
    assert (folder / "data.mdb").stat().st_size == 12500


def test_damaged_store_can_be_overwritten(tmp_path):
    write(tmp_path / "s", robot_episode("old")).close()
    os.truncate(tmp_path / "s" / "data.mdb", 5000)
    assert write(tmp_path / "s", robot_episode("new"), overwrite=True).ids == ("new",)


def test_has_tells_what_a_resumed_writer_may_skip(tmp_path):
    write(tmp_path / "s", robot_episode("one"))
    with EpisodeWriter(tmp_path / "s", {"seed": 0}, resume=True) as writer:
        assert writer.has("one") and not writer.has("two") and len(writer) == 1
        with pytest.raises(UserError, match="'one' is there already"):
            writer.append(robot_episode("one", seed=5))
        assert len(writer) == 1
    EpisodeStore(tmp_path / "s").verify()


def test_exception_leaves_whole_episodes_marked_incomplete(tmp_path):
    with pytest.raises(RuntimeError), EpisodeWriter(tmp_path / "s", {}) as writer:
        writer.append(robot_episode())
        raise RuntimeError("stopped")
    store = EpisodeStore(tmp_path / "s")
    assert store.manifest["complete"] is False
    store.verify()


def test_exception_after_the_last_episode_leaves_the_store_incomplete(tmp_path):
    with pytest.raises(RuntimeError), EpisodeWriter(tmp_path / "s", {}) as writer:
        writer.append_encoded(encode_episode(robot_episode()), complete=True)
        raise RuntimeError("stopped")
    assert EpisodeStore(tmp_path / "s").manifest["complete"] is False


def test_store_that_got_another_episode_is_incomplete_until_closed(tmp_path):
    with EpisodeWriter(tmp_path / "s", {}) as writer:
        writer.append_encoded(encode_episode(robot_episode("one")), complete=True)
        assert EpisodeStore(tmp_path / "s").manifest["complete"] is True
        writer.append(robot_episode("two"))
        assert EpisodeStore(tmp_path / "s").manifest["complete"] is False
    assert EpisodeStore(tmp_path / "s").manifest["complete"] is True


def test_small_store_is_one_transaction(tmp_path):
    with EpisodeWriter(tmp_path / "s", {}) as writer:
        writer.append_encoded(encode_episode(robot_episode()), encode_episode(human_episode()), complete=True)
    with lmdb.open(str(tmp_path / "s"), readonly=True, lock=False) as env:
        assert env.info()["last_txnid"] == 1
    EpisodeStore(tmp_path / "s").verify()


def test_store_without_episodes_is_complete_when_closed(tmp_path):
    store = write(tmp_path / "s", manifest={"seed": 3})
    assert (len(store), store.manifest["complete"], store.manifest["seed"]) == (0, True, 3)


def test_writer_killed_before_its_first_episode_can_be_resumed(tmp_path):
    code = "import os, sys; from arvrm.episodes import EpisodeWriter; EpisodeWriter(sys.argv[1], {}); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")]).returncode == 9
    with pytest.raises(UserError, match="write it again"):
        EpisodeStore(tmp_path / "s")
    with pytest.raises(UserError, match="--resume"):
        EpisodeWriter(tmp_path / "s", {})
    with EpisodeWriter(tmp_path / "s", {}, resume=True) as writer:
        assert len(writer) == 0 and not writer.has("one")
        with pytest.raises(UserError, match="nothing yet"):
            EpisodeStore(tmp_path / "s")
        writer.append(robot_episode("one"))
    assert EpisodeStore(tmp_path / "s").ids == ("one",)


def test_store_that_another_process_writes_is_refused(tmp_path):
    code = "import sys; from arvrm.episodes import EpisodeWriter; writer = EpisodeWriter(sys.argv[1], {}); "
    code += "print(flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path / "s")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    other.stdout.readline()
    write(tmp_path / "a", human_episode()).close()
    for write_too in (
        lambda: EpisodeWriter(tmp_path / "s", {}, resume=True),
        lambda: EpisodeWriter(tmp_path / "s", {}, overwrite=True),
        lambda: merge_stores([tmp_path / "a"], tmp_path / "s", overwrite=True),
    ):
        with pytest.raises(UserError, match=f"s: process {other.pid} .* is writing it"):
            write_too()
    other.kill()
    other.communicate()
    assert len(merge_stores([tmp_path / "a"], tmp_path / "s", overwrite=True)) == 1


def test_images_encoded_beforehand_make_the_same_records():
    episode = robot_episode()
    jpegs = {
        camera: EncodedImages(*images.shape[1:3], tuple(encode_image(image) for image in images))
        for camera, images in episode.images.items()
    }
    assert encode_episode(replace(episode, images=jpegs)) == encode_episode(episode)
    jpegs["rgb_gripper"] = replace(jpegs["rgb_gripper"], jpegs=jpegs["rgb_gripper"].jpegs[:-1])
    with pytest.raises(UserError, match="rgb_gripper has 6 JPEGs, image_steps 7"):
        encode_episode(replace(episode, images=jpegs))


def test_store_grows_beyond_its_first_map(tmp_path, monkeypatch):
    monkeypatch.setattr("arvrm.episodes.database.MAP_START", 1 << 18)
    store = write(tmp_path / "s", *(robot_episode(f"e{i}", steps=200, seed=i) for i in range(20)))
    assert (tmp_path / "s" / "data.mdb").stat().st_size > 1 << 19
    store.verify()
    assert len(store) == 20


def edited(episode, **arrays):
    return replace(episode, arrays={**episode.arrays, **arrays})


def with_value(episode, name, place, value):
    array = episode.arrays[name].copy()
    array[place] = value
    return edited(episode, **{name: array})


ROBOT, HUMAN = robot_episode(), human_episode()


@pytest.mark.parametrize(
    ("episode", "said"),
    [
        (with_value(ROBOT, "robot_obs", (4, 1), np.nan), "robot_obs has a NaN or infinity in row 4"),
        (with_value(HUMAN, "keypoints", (2, 0, 0), np.inf), "keypoints has a NaN or infinity in row 2"),
        (with_value(ROBOT, "actions", (3, 2), 1.5), r"actions\[3, 2\] is 1.5; .*do not clip"),
        (with_value(ROBOT, "executed", (1, 6), 0.0), r"executed\[1, 6\] is 0; the gripper is exactly -1 or 1"),
        (edited(ROBOT, robot_obs=np.zeros((20, 15), np.float32)), r"float32 \(20, 15\).*float64 \(N, 15\)"),
        (edited(ROBOT, actions=ROBOT.arrays["actions"][:, :6]), r"\(20, 6\).*\(N, 7\)"),
        (edited(ROBOT, actions=ROBOT.arrays["actions"][:-1]), "arrays differ in length"),
        (edited(ROBOT, torque=np.zeros((20, 7))), "no array 'torque'; known: robot_obs"),
        (edited(HUMAN, landmarks=np.zeros((9, 7, 3), np.float32)), "a human has no array 'landmarks'"),
        (edited(HUMAN, keypoints=HUMAN.arrays["keypoints"][:, :20]), r"\(N, 21 or 42, 3\)"),
        (edited(HUMAN, visible=np.ones((9, 42), bool)), "21 and 42"),
        (replace(ROBOT, arrays={k: v for k, v in ROBOT.arrays.items() if k != "actions"}), "'actions' is missing"),
        (replace(ROBOT, images={"rgb_static": ROBOT.images["rgb_static"]}), "has rgb_static, rgb_gripper"),
        (replace(HUMAN, images={"rgb_static": HUMAN.images["rgb_static"][:2]}), r"\(3, H, W, 3\)"),
        (replace(HUMAN, images={"rgb_static": HUMAN.images["rgb_static"] / 255}), "uint8"),
        (replace(HUMAN, image_steps=np.array([0, 3, 9], np.int32)), r"ascend within 0..8"),
        (replace(HUMAN, image_steps=np.array([0, 6, 3], np.int32)), "ascend"),
        (replace(HUMAN, image_steps=np.array([0, 3, 6])), "int64"),
        (replace(HUMAN, instruction=" "), "instruction is ' '"),
        (replace(HUMAN, group=""), "group is ''"),
        (replace(HUMAN, fps=0.0), "fps is 0.0"),
        (replace(HUMAN, embodiment="dog"), "use robot or human"),
        (replace(HUMAN, robot="calvin"), "robot is 'calvin'; a human episode has none"),
        (replace(ROBOT, robot="calvinn"), "episode 'robot-A-000000': unknown robot 'calvinn'; did you mean 'calvin'"),
        (replace(HUMAN, id="a\0b"), "control characters"),
        (replace(HUMAN, meta={"x": np.zeros(2)}), "meta is not JSON-able"),
    ],
)
def test_invalid_episode_is_refused_in_one_line(tmp_path, episode, said):
    with EpisodeWriter(tmp_path / "s", {}) as writer:
        with pytest.raises(UserError, match=said) as error:
            writer.append(episode)
        assert "\n" not in str(error.value)
        assert len(writer) == 0


def test_landmarks_may_be_outside_the_image_but_not_the_world():
    encode_episode(ROBOT)  # its landmark_pixels hold a NaN
    landmarks = np.zeros((20, 7, 3), np.float32)
    encode_episode(edited(ROBOT, landmarks=landmarks))
    landmarks[1, 1, 1] = np.nan
    with pytest.raises(UserError, match="landmarks has a NaN"):
        encode_episode(edited(ROBOT, landmarks=landmarks))


SLIDER = VectorRobot("slider", ("x",), ("m",), Ranges((-1,), (1,)), (Camera("front", "static"),))
"""A robot of another shape: one number that it moves, one camera."""


def slider_episode(id="slider-0", steps=6):
    rng = np.random.default_rng(0)
    at = np.arange(0, steps, 2, dtype=np.int32)
    arrays = {"state": rng.uniform(-1, 1, (steps, 1)), "actions": rng.uniform(-1, 1, (steps, 1)).astype(np.float32)}
    images = {"front": smooth_images(rng, len(at), 24)}
    return robot_episode(id, robot="slider", arrays=arrays, images=images, image_steps=at)


@pytest.fixture
def slider(monkeypatch):
    monkeypatch.setattr(robots, "_KNOWN", dict(robots._KNOWN))
    return robots.register(SLIDER)


def without_robot(path):
    """The store as it was written before stores named their robot."""
    EpisodeStore(path).close()
    with lmdb.open(str(path), max_dbs=4) as env, env.begin(write=True) as txn:
        meta = env.open_db(b"meta", txn=txn)
        manifest = json.loads(txn.get(b"manifest", db=meta))
        assert manifest.pop("robot") == "calvin"
        txn.put(b"manifest", json.dumps(manifest, sort_keys=True).encode(), db=meta)
    return EpisodeStore(path)


def test_store_names_its_robot_and_the_robot_says_what_its_episodes_hold(tmp_path, slider):
    episode = slider_episode()
    store = write(tmp_path / "s", episode, human_episode())
    assert store.manifest["robot"] == "slider" and store.robot is slider
    read = store.episode("slider-0")
    assert read.robot == "slider" and store.episode("human-A-000000").robot == ""
    np.testing.assert_array_equal(read.arrays["state"], episode.arrays["state"])
    assert "robot: slider\n" in inspect_store(tmp_path / "s")
    with pytest.raises(UserError, match=r"episode 'a': actions\[0, 0\] \(x\) is 3; it lies between -1 and 1 m"):
        encode_episode(with_value(slider_episode("a"), "actions", (0, 0), 3))
    with pytest.raises(UserError, match="cameras are rgb_gripper, rgb_static; a robot episode has front"):
        encode_episode(replace(slider_episode("a"), images=ROBOT.images))


def test_episode_that_names_no_robot_is_calvins_and_a_store_of_clips_has_none(tmp_path):
    assert write(tmp_path / "a", human_episode(), robot_episode()).robot is robots.CALVIN
    clips = write(tmp_path / "b", human_episode())
    assert clips.robot is None and "robot" not in clips.manifest and "robot:" not in inspect_store(tmp_path / "b")


def test_store_holds_one_robot(tmp_path, slider):
    said = r"holds episodes of robot 'calvin', episode 'slider-0' is of 'slider'; give each robot a store of its own"
    write(tmp_path / "s", robot_episode()).close()
    with EpisodeWriter(tmp_path / "s", {"seed": 0}, resume=True) as writer:
        with pytest.raises(UserError, match=said):
            writer.append(slider_episode())
        writer.append(robot_episode("r2"))
    assert len(EpisodeStore(tmp_path / "s")) == 2
    with EpisodeWriter(tmp_path / "both", {}) as writer, pytest.raises(UserError, match=said):
        writer.append_encoded(encode_episode(robot_episode()), encode_episode(slider_episode()))
    assert len(EpisodeStore(tmp_path / "both")) == 0
    write(tmp_path / "other", slider_episode())
    with pytest.raises(UserError, match="other: is of robot 'slider', .*s of 'calvin'; merge the stores of one robot"):
        merge_stores([tmp_path / "s", tmp_path / "other"], tmp_path / "merged")
    write(tmp_path / "clips", human_episode())
    merged = merge_stores([tmp_path / "clips", tmp_path / "other"], tmp_path / "merged")
    assert merged.robot is slider


def test_store_from_before_robots_had_names_is_calvins(tmp_path, slider):
    write(tmp_path / "s", human_episode(), robot_episode())
    store = without_robot(tmp_path / "s")
    assert store.robot is robots.CALVIN and store.episode("robot-A-000000").robot == "calvin"
    assert "robot" not in store.manifest and "robot: calvin" in inspect_store(tmp_path / "s")
    store.close()
    with EpisodeWriter(tmp_path / "s", {"seed": 0}, resume=True) as writer:
        with pytest.raises(UserError, match="holds episodes of robot 'calvin'"):
            writer.append(slider_episode())
        assert "robot" not in EpisodeStore(tmp_path / "s").manifest
        writer.append(robot_episode("r2"))
    assert EpisodeStore(tmp_path / "s").manifest["robot"] == "calvin"


def test_store_of_an_unknown_robot_can_be_read_but_not_asked_for_it(tmp_path, slider, monkeypatch):
    store = write(tmp_path / "s", slider_episode())
    monkeypatch.delitem(robots._KNOWN, "slider")
    store.verify()
    assert "robot: slider" in inspect_store(tmp_path / "s") and store.episode("slider-0").robot == "slider"
    with pytest.raises(UserError, match="s: unknown robot 'slider'; known: calvin"):
        _ = store.robot


def test_human_table_holds_nothing_privileged():
    assert {name for name, spec in HAND_ARRAYS.items() if spec.required} == {"keypoints", "visible"}
    # What a headset that tracks hands measures, and nothing of a simulator.
    assert set(HAND_ARRAYS) == {"keypoints", "visible", "camera_pose", "grippers", "grippers_seen"}


def test_missing_store_and_names_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        EpisodeStore(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no episode store"):
        EpisodeStore(tmp_path / "empty")
    store = write(tmp_path / "s", human_episode())
    for read, said in (
        (lambda: store.header("nobody"), "'nobody'.*not in the store"),
        (lambda: store.arrays("human-A-000000", ["actions"]), "no array 'actions'; it has keypoints, visible"),
        (lambda: store.frames("human-A-000000", "rgb_gripper", [0]), "no camera 'rgb_gripper'; it has rgb_static"),
        (lambda: store.frames("human-A-000000", "rgb_static", [3]), r"no frame 3; it has 0\.\.2"),
        (lambda: store.frames("human-A-000000", "rgb_static", [-1]), "no frame -1"),
    ):
        with pytest.raises(UserError, match=said):
            read()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_truncated_store_is_refused_not_a_crash(tmp_path, share):
    write(tmp_path / "s", *(robot_episode(f"e{i}", steps=60) for i in range(3))).close()
    size = (tmp_path / "s" / "data.mdb").stat().st_size
    os.truncate(tmp_path / "s" / "data.mdb", int(size * share))
    # In a process of its own: reading beyond the end of a mapped file would kill the test run.
    code = "from arvrm.episodes import EpisodeStore\nfrom arvrm.interface import UserError\n"
    code += f"try:\n  EpisodeStore({str(tmp_path / 's')!r}).verify()\n"
    code += "except UserError as error:\n  print(error)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert str(tmp_path / "s") in result.stdout and result.stdout.count("\n") == 1


def test_every_damaged_record_fails_its_checksum(tmp_path):
    write(tmp_path / "s", robot_episode(steps=4)).close()
    with lmdb.open(str(tmp_path / "s"), max_dbs=4) as env:
        places = []
        for name in (b"headers", b"arrays", b"images"):
            table = env.open_db(name)
            with env.begin() as txn:
                places += [(table, key, txn.get(key, db=table)) for key, _ in txn.cursor(table)]
    assert len(places) == 1 + 5 + 4
    for i in range(len(places)):
        with lmdb.open(str(tmp_path / "s"), max_dbs=4) as env:
            table = env.open_db([b"headers", b"arrays", b"images"][0 if i == 0 else 1 if i < 6 else 2])
            _, key, value = places[i]
            with env.begin(write=True) as txn:
                txn.put(key, value[:-1] + bytes([value[-1] ^ 1]), db=table)
        store = EpisodeStore(tmp_path / "s")
        with pytest.raises(UserError, match="fails its checksum"):
            store.verify()
        with pytest.raises(UserError, match="fails its checksum"):
            store.episode("robot-A-000000")
        store.close()
        with lmdb.open(str(tmp_path / "s"), max_dbs=4) as env, env.begin(write=True) as txn:
            table = env.open_db([b"headers", b"arrays", b"images"][0 if i == 0 else 1 if i < 6 else 2], txn)
            txn.put(key, value, db=table)
    EpisodeStore(tmp_path / "s").verify()


@pytest.mark.parametrize(("table", "said"), [(b"arrays", "missing"), (b"images", "missing")])
def test_missing_record_is_named(tmp_path, table, said):
    write(tmp_path / "s", robot_episode()).close()
    with lmdb.open(str(tmp_path / "s"), max_dbs=4) as env:
        db = env.open_db(table)
        with env.begin(write=True) as txn:
            with txn.cursor(db) as cursor:
                cursor.last()
                key = cursor.key()
            txn.delete(key, db=db)
    with pytest.raises(UserError, match=said):
        EpisodeStore(tmp_path / "s").verify()


def test_other_version_is_refused(tmp_path):
    write(tmp_path / "s", human_episode()).close()
    with lmdb.open(str(tmp_path / "s"), max_dbs=4) as env:
        table = env.open_db(b"meta")
        with env.begin(write=True) as txn:
            manifest = json.loads(txn.get(b"manifest", db=table))
            txn.put(b"manifest", json.dumps({**manifest, "version": 99}).encode(), db=table)
    with pytest.raises(UserError, match="version 99"):
        EpisodeStore(tmp_path / "s")


def test_store_opened_before_a_fork_works_in_the_child(tmp_path):
    store = write(tmp_path / "s", robot_episode(), human_episode())
    expected = store.frames("human-A-000000", "rgb_static", [1]).sum()
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if store.frames("human-A-000000", "rgb_static", [1]).sum() == expected else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert store.frames("human-A-000000", "rgb_static", [1]).sum() == expected


def test_two_readers_and_a_writer_share_a_process(tmp_path):
    first = write(tmp_path / "s", robot_episode("one"))
    second = EpisodeStore(tmp_path / "s")
    assert first.ids == second.ids == ("one",)
    with EpisodeWriter(tmp_path / "s", {"seed": 0}, resume=True) as writer:
        writer.append(robot_episode("two"))
        assert first.ids == ("one", "two")
    assert second.ids == ("one", "two")
    second.close()
    assert first.header("two").steps == 20


def test_store_can_be_passed_to_another_process(tmp_path):
    import pickle

    store = pickle.loads(pickle.dumps(write(tmp_path / "s", robot_episode("one"))))
    assert store.ids == ("one",)


WRITER = """
import sys
sys.path.insert(0, {tests!r})
from test_episodes import robot_episode
from arvrm.episodes import EpisodeWriter
with EpisodeWriter({path!r}, {{}}, resume=True) as writer:
    print("ready", flush=True)
    for i in range(len(writer), 10000):
        writer.append(robot_episode(f"e{{i:06d}}", steps=60, seed=i))
"""


def test_killed_writer_leaves_whole_episodes_and_resumes(tmp_path):
    path = tmp_path / "s"
    code = textwrap.dedent(WRITER.format(tests=os.path.dirname(__file__), path=str(path)))
    rng, counts = np.random.default_rng(0), [0]
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.1, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        store = EpisodeStore(path)
        store.verify()
        assert store.ids == tuple(f"e{i:06d}" for i in range(len(store)))
        assert store.manifest["complete"] is False
        counts.append(len(store))
        store.close()
    assert counts == sorted(set(counts)), "each run added episodes"


FULL = """
import resource, signal, sys
sys.path.insert(0, {tests!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from test_episodes import robot_episode
from arvrm.episodes import EpisodeWriter
from arvrm.interface import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
with EpisodeWriter({path!r}, {{}}) as writer:
    try:
        for i in range(1000):
            writer.append(robot_episode(f"e{{i:06d}}", steps=60, seed=i))
    except UserError as error:
        print(error)
        print(len(writer))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    writer.append(robot_episode("afterwards"))
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes here")
def test_full_disk_loses_nothing(tmp_path):
    code = textwrap.dedent(FULL.format(tests=os.path.dirname(__file__), path=str(tmp_path / "s")))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    message, count = result.stdout.splitlines()
    assert "free space on the disk" in message and int(count) > 0
    store = EpisodeStore(tmp_path / "s")
    store.verify()
    assert len(store) == int(count) + 1


def test_merged_stores_equal_one_store(tmp_path):
    write(tmp_path / "a", robot_episode("r1"), robot_episode("r2", seed=3)).close()
    write(tmp_path / "b", human_episode("h1")).close()
    whole = write(tmp_path / "whole", robot_episode("r1"), robot_episode("r2", seed=3), human_episode("h1"))
    merged = merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    merged.verify()
    assert merged.ids == whole.ids
    assert [merged.encoded(id) for id in merged.ids] == [whole.encoded(id) for id in whole.ids]
    assert merged.manifest["counts"] == whole.manifest["counts"]
    assert [part["seed"] for part in merged.manifest["merged"]] == [0, 0]


def test_merge_refuses_an_id_in_two_stores(tmp_path):
    write(tmp_path / "a", robot_episode("r1"))
    write(tmp_path / "b", robot_episode("r1", seed=9))
    with pytest.raises(UserError, match="'r1' is also in"):
        merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write(tmp_path / "c", robot_episode("r2"), jpeg_quality=50)
    with pytest.raises(UserError, match="JPEG"):
        merge_stores([tmp_path / "a", tmp_path / "c"], tmp_path / "out")
    with pytest.raises(UserError, match="exists; pass --overwrite"):
        merge_stores([tmp_path / "a"], tmp_path / "b")


def test_inspection_counts_and_draws(tmp_path):
    episodes = robot_episode(), human_episode("h1"), human_episode("h2", seed=4)
    write(tmp_path / "s", *episodes, manifest={"synthetic": True})
    text = inspect_store(tmp_path / "s")
    for said in ("3 episodes", "human 2, robot 1", "close_drawer 2, open_drawer 1", "rgb_static: 24x24 px"):
        assert said in text
    assert "synthetic: true" in text and "quality 92" in text
    draw_contact_sheet(tmp_path / "s", tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[0] >= 3 * 144 and sheet.std() > 10
    assert not list(tmp_path.glob("*.partial"))


def test_opening_a_large_store_is_quick(tmp_path):
    encoded = encode_episode(human_episode(steps=1))
    with EpisodeWriter(tmp_path / "s", {}) as writer:
        writer.append_encoded(*(replace(encoded, id=f"h{i:06d}", arrays=(), images=()) for i in range(20000)))
    begin = time.perf_counter()
    store = EpisodeStore(tmp_path / "s")
    assert len(store) == 20000
    assert time.perf_counter() - begin < 0.1
    assert len(store.ids) == 20000
    assert time.perf_counter() - begin < 1


def test_store_whose_file_has_the_number_of_a_deleted_one_can_be_opened(tmp_path):
    """As a file system gives it to the next file, here with a second name of the same one."""
    before = write(tmp_path / "before", human_episode())
    assert len(before) == 1
    (tmp_path / "after").mkdir()
    os.link(tmp_path / "before" / "data.mdb", tmp_path / "after" / "data.mdb")
    shutil.rmtree(tmp_path / "before")
    assert EpisodeStore(tmp_path / "after").ids == ("human-A-000000",)
