"""CALVIN data sets, and the parents' LMDB, become episode stores."""

import json
import os
import pickle
import re
import runpy
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import lmdb
import numpy as np
import pytest
import simplejpeg
import torch
from calvin_files import TRAINING, step, write_calvin, write_split

from arvrm import cli
from arvrm.episodes import EpisodeStore
from arvrm.interface import UserError
from arvrm.sources import npz
from arvrm.sources.calvin import ConvertCalvinConfig, convert_calvin
from arvrm.sources.calvin_plan import plan_split
from arvrm.sources.parent_lmdb import ConvertParentConfig, convert_parent_lmdb

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_calvin(tmp_path_factory.mktemp("calvin") / "task_D")


@pytest.fixture(scope="module")
def stores(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("stores") / "out"
    convert_calvin(ConvertCalvinConfig(str(data), str(output)))
    return output


@pytest.fixture
def copy(data, tmp_path):
    return Path(shutil.copytree(data, tmp_path / "task_D"))


def convert(source, output, **options):
    return convert_calvin(ConvertCalvinConfig(str(source), str(output), **options))


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


# -- what comes out ---------------------------------------------------------------------------------------------------


def test_each_annotation_becomes_an_episode_of_its_split(stores):
    training, validation = EpisodeStore(stores / "training"), EpisodeStore(stores / "validation")
    assert training.ids == ("A/training/0000362-0000366", "A/training/0000365-0000370", "D/training/0000382-0000387")
    assert validation.ids == ("D/validation/0000050-0000054",)
    header = training.header("D/training/0000382-0000387")
    assert (header.embodiment, header.source, header.fps, header.steps) == ("robot", "calvin", 30.0, 6)
    assert (header.instruction, header.task, header.scene) == ("lift the red block", "lift_red_block_table", "D")


def test_segments_of_one_recording_share_a_group_and_others_do_not(stores):
    store = EpisodeStore(stores / "training")
    groups = [store.header(id).group for id in store.ids]
    assert groups == ["A/training/0000360", "A/training/0000360", "D/training/0000380"]


def test_arrays_are_those_of_the_files_to_the_last_bit(data, stores):
    episode = EpisodeStore(stores / "training").episode("A/training/0000365-0000370")
    assert set(episode.arrays) == {"robot_obs", "scene_obs", "actions", "executed", "absolute_actions"}
    for row in range(6):
        with np.load(data / "training" / f"episode_{365 + row:07d}.npz") as file:
            np.testing.assert_array_equal(episode.arrays["robot_obs"][row], file["robot_obs"])
            np.testing.assert_array_equal(episode.arrays["scene_obs"][row], file["scene_obs"])
            np.testing.assert_array_equal(episode.arrays["absolute_actions"][row], file["actions"])
            np.testing.assert_array_equal(episode.arrays["actions"][row], file["rel_actions"].astype(np.float32))
            assert psnr(episode.images["rgb_static"][row], file["rgb_static"]) > 35
            assert psnr(episode.images["rgb_gripper"][row], file["rgb_gripper"]) > 35
    np.testing.assert_array_equal(episode.arrays["actions"], episode.arrays["executed"])


def test_only_annotated_steps_are_stored_unless_asked(stores):
    assert EpisodeStore(stores / "training").manifest["counts"]["steps"] == 5 + 6 + 6


def test_play_data_covers_every_recorded_step_once_beside_the_annotations(data, tmp_path):
    convert(data, tmp_path / "out", play=True, play_steps=5)
    store = EpisodeStore(tmp_path / "out" / "training")
    play = [header for header in store.headers() if not header.instruction]
    annotated = [header for header in store.headers() if header.instruction]
    assert len(annotated) == 3 and all(header.steps <= 5 and header.task == "" for header in play)
    steps = [s for header in play for s in range(header.meta["first"], header.meta["last"] + 1)]
    recorded = {s for first, last in TRAINING["recordings"] for s in range(first, last + 1)}
    covered = {s for header in annotated for s in range(header.meta["first"], header.meta["last"] + 1)}
    assert len(set(steps)) == len(steps) and set(steps) == recorded - covered
    recordings = [range(first, last + 1) for first, last in TRAINING["recordings"]]
    for header in play:
        assert any(header.meta["first"] in r and header.meta["last"] in r for r in recordings)


def test_depth_and_touch_are_kept_on_request(data, tmp_path):
    convert(data, tmp_path / "out", depth=True, tactile=True)
    arrays = EpisodeStore(tmp_path / "out" / "validation").arrays("D/validation/0000050-0000054")
    with np.load(data / "validation" / "episode_0000052.npz") as file:
        for name in ("depth_static", "depth_gripper", "rgb_tactile", "depth_tactile"):
            np.testing.assert_array_equal(arrays[name][2], file[name])


def test_a_stride_keeps_every_nth_image_and_all_states(data, tmp_path):
    convert(data, tmp_path / "out", image_stride=3)
    header = EpisodeStore(tmp_path / "out" / "training").header("A/training/0000365-0000370")
    assert header.steps == 6 and header.image_steps.tolist() == [0, 3]


def test_the_same_range_annotated_twice_gives_two_episodes(tmp_path):
    twice = [(1, 3, "open the drawer", "open_drawer"), (1, 3, "pull the handle", "open_drawer")]
    write_split(tmp_path / "d" / "training", [(0, 4)], twice, {})
    convert(tmp_path / "d", tmp_path / "out")
    store = EpisodeStore(tmp_path / "out" / "training")
    assert sorted(header.instruction for header in store.headers()) == ["open the drawer", "pull the handle"]
    assert {header.scene for header in store.headers()} == {""}


def test_stores_have_the_same_bytes_whatever_the_number_of_workers(data, stores, tmp_path):
    for workers in (1, 3):
        convert(data, tmp_path / str(workers), workers=workers)
        for split in ("training", "validation"):
            ours = (tmp_path / str(workers) / split / "data.mdb").read_bytes()
            assert ours == (stores / split / "data.mdb").read_bytes()


# -- interruptions and checks -----------------------------------------------------------------------------------------


def test_a_killed_conversion_resumes_and_holds_the_same(data, tmp_path, monkeypatch):
    # One segment per transaction and a pause in each, so that the kill hits the middle.
    script = (
        "import sys, time; from arvrm.sources import calvin, pipeline\n"
        "pipeline.COMMIT = 1; read = calvin._read_rows\n"
        "calvin._read_rows = lambda *a: (time.sleep(0.4), read(*a))[1]\n"
        "calvin.convert_calvin(calvin.ConvertCalvinConfig(sys.argv[1], sys.argv[2], workers=1))"
    )
    output = tmp_path / "out"
    child = subprocess.Popen([sys.executable, "-c", script, str(data), str(output)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and child.poll() is None:
        try:
            if len(EpisodeStore(output / "training")) >= 1:
                break
        except UserError:
            pass
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = EpisodeStore(output / "training").ids
    assert 1 <= len(before) < 3 and not EpisodeStore(output / "training").manifest["complete"]
    with pytest.raises(UserError, match="--resume"):
        convert(data, output)
    convert(data, output, resume=True, verify=True)
    store = EpisodeStore(output / "training")
    assert set(before) < set(store.ids) and len(store) == 3 and store.manifest["complete"]


def test_a_split_is_complete_when_a_kill_hits_the_next(data, tmp_path):
    script = textwrap.dedent("""
        import os, sys, time
        from arvrm.sources import calvin
        read = calvin._read_rows

        def die_in_validation(folder, *rest):
            if folder.name == "validation":
                while not os.path.exists(sys.argv[2] + "/report.json"):  # training is done then
                    time.sleep(0.01)
                os._exit(9)
            return read(folder, *rest)

        calvin._read_rows = die_in_validation
        calvin.convert_calvin(calvin.ConvertCalvinConfig(sys.argv[1], sys.argv[2], workers=2))
    """)
    output = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", script, str(data), str(output)], capture_output=True, timeout=60)
    assert done.returncode == 9, done.stderr
    training = EpisodeStore(output / "training")
    training.verify()
    assert len(training) == 3 and training.manifest["complete"]
    with pytest.raises(UserError):
        EpisodeStore(output / "validation")
    convert(data, output, resume=True, verify=True)
    assert len(EpisodeStore(output / "validation")) == 1


def test_resuming_with_other_settings_is_refused(data, tmp_path):
    convert(data, tmp_path / "out")
    with pytest.raises(UserError, match="image_stride"):
        convert(data, tmp_path / "out", resume=True, image_stride=2)


def test_verification_notices_a_source_that_is_not_what_was_stored(copy, tmp_path):
    convert(copy, tmp_path / "out", verify=True)
    values = step(np.random.default_rng(99), 384)
    np.savez_compressed(copy / "training" / "episode_0000384.npz", **values)
    with pytest.raises(UserError, match="D/training/0000382-0000387"):
        convert(copy, tmp_path / "out", resume=True, verify=True)


def test_verification_notices_a_flipped_bit_in_the_store(copy, tmp_path):
    convert(copy, tmp_path / "out")
    file = tmp_path / "out" / "training" / "data.mdb"
    content = bytearray(file.read_bytes())
    content[content.index(b"\xff\xd8\xff") + 400] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        convert(copy, tmp_path / "out", resume=True, verify=True)


# -- damage -----------------------------------------------------------------------------------------------------------


def _cut(path):
    path.write_bytes(path.read_bytes()[:-2000])


def _flip(path):
    # A bit in the middle of the compressed rgb_static.
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("rgb_static.npy")
    content = bytearray(path.read_bytes())
    content[info.header_offset + 60 + info.compress_size // 2] ^= 4
    path.write_bytes(content)


def _drop_member(path):
    values = step(np.random.default_rng(0), 1)
    del values["rgb_gripper"]
    np.savez_compressed(path, **values)


def _wrong_shape(path):
    np.savez_compressed(path, **{**step(np.random.default_rng(0), 1), "robot_obs": np.zeros(14)})


def _not_finite(path):
    np.savez_compressed(path, **{**step(np.random.default_rng(0), 1), "scene_obs": np.full(24, np.nan)})


def _objects(path):
    np.savez_compressed(path, **{**step(np.random.default_rng(0), 1), "robot_obs": np.array([None] * 15)})


DAMAGES = [
    (Path.unlink, "missing"),
    (_cut, "cut short"),
    (_flip, "rgb_static"),
    (_drop_member, "has no rgb_gripper"),
    (_wrong_shape, "robot_obs"),
    (_not_finite, "NaN"),
    (_objects, "objects"),
    (lambda path: path.write_bytes(b""), "cut short"),
    (lambda path: path.write_bytes(b"PK\x05\x06" + b"\xff" * 40), ""),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES, ids=[reason or "nonsense" for _, reason in DAMAGES])
def test_a_bad_file_is_listed_and_costs_its_segments_only(copy, tmp_path, damage, reason):
    damage(copy / "training" / "episode_0000366.npz")
    report = convert(copy, tmp_path / "out")["training"]
    assert list(report.damaged) == [366] and reason in report.damaged[366]
    assert set(report.left_out) == {"A/training/0000362-0000366", "A/training/0000365-0000370"}
    assert EpisodeStore(tmp_path / "out" / "training").ids == ("D/training/0000382-0000387",)
    written = json.loads((tmp_path / "out" / "report.json").read_text())["training"]
    assert list(written["damaged"]) == ["366"]


@pytest.fixture(scope="module")
def long_segment(tmp_path_factory):
    """One annotation of 20 steps, 10 to 29: more than one thread reads at a time."""
    folder = tmp_path_factory.mktemp("long") / "task"
    write_split(folder / "training", [(10, 29)], [(10, 29, "open the drawer", "open_drawer")], {})
    return folder


@pytest.mark.parametrize("stride", [1, 3, 9])
def test_a_long_segment_keeps_its_order_however_many_read_it(long_segment, tmp_path, stride):
    convert(long_segment, tmp_path / "out", image_stride=stride, workers=3)
    episode = EpisodeStore(tmp_path / "out" / "training").episode("/training/0000010-0000029")
    assert episode.image_steps.tolist() == list(range(0, 20, stride))
    for row in range(20):
        with np.load(long_segment / "training" / f"episode_{10 + row:07d}.npz") as file:
            np.testing.assert_array_equal(episode.arrays["robot_obs"][row], file["robot_obs"])
            if row % stride == 0:
                assert psnr(episode.images["rgb_static"][row // stride], file["rgb_static"]) > 35
                assert psnr(episode.images["rgb_gripper"][row // stride], file["rgb_gripper"]) > 35


def test_all_bad_files_of_a_long_segment_are_listed_in_order(long_segment, tmp_path):
    source = Path(shutil.copytree(long_segment, tmp_path / "task"))
    for number in (28, 11, 19):
        (source / "training" / f"episode_{number:07d}.npz").unlink()
    _not_finite(source / "training" / "episode_0000015.npz")
    report = convert(source, tmp_path / "out", workers=3)["training"]
    assert list(report.damaged) == [11, 15, 19, 28] and "NaN" in report.damaged[15]
    listed = "damaged or missing steps 0000011, 0000015, 0000019, 0000028"
    assert report.left_out == {"/training/0000010-0000029": listed}


@pytest.mark.parametrize("first", [18, 21], ids=["between threads", "within one"])
def test_images_that_change_size_within_a_segment_are_damage(long_segment, tmp_path, first):
    source = Path(shutil.copytree(long_segment, tmp_path / "task"))
    for number in range(first, 30):
        path = source / "training" / f"episode_{number:07d}.npz"
        with np.load(path) as file:
            values = dict(file)
        np.savez(path, **{**values, "rgb_gripper": values["rgb_gripper"][:60]})
    report = convert(source, tmp_path / "out")["training"]
    assert report.episodes == 0 and first in report.damaged and first - 1 not in report.damaged
    assert "rgb_gripper is 60 x 84" in report.damaged[first]


def test_the_verb_lists_damage_and_exits_with_1_until_it_is_mended(copy, data, tmp_path, capsys):
    for number in (383, 385):
        (copy / "training" / f"episode_{number:07d}.npz").unlink()
    arguments = ["--input", str(copy), "--output", str(tmp_path / "out")]
    assert cli.main(["convert", "calvin", *arguments]) == 1
    captured = capsys.readouterr()
    assert "0000383 (missing), 0000385 (missing)" in captured.err
    assert captured.out.splitlines() == [str(tmp_path / "out" / s) for s in ("training", "validation")]
    for number in (383, 385):
        shutil.copy(data / "training" / f"episode_{number:07d}.npz", copy / "training")
    assert cli.main(["convert", "calvin", *arguments, "--resume"]) == 0
    assert len(EpisodeStore(tmp_path / "out" / "training")) == 3


def test_a_hostile_annotation_file_is_refused_and_runs_nothing(copy, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = copy / "training" / "lang_annotations" / "auto_lang_ann.npy"
    np.save(path, {"language": Hostile()})
    reports = convert(copy, tmp_path / "out")
    assert re.search(r"auto_lang_ann\.npy.*system", reports["training"].left_out["training"])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["lang_annotations/auto_lang_ann.npy", "ep_start_end_ids.npy"])
def test_a_missing_index_file_leaves_out_its_split_and_is_named(copy, tmp_path, name):
    (copy / "training" / name).unlink()
    reports = convert(copy, tmp_path / "out")
    assert Path(name).name in reports["training"].left_out["training"] and not (tmp_path / "out" / "training").exists()
    assert reports["validation"].episodes == 1
    shutil.rmtree(copy / "validation")
    with pytest.raises(UserError, match=Path(name).name):
        convert(copy, tmp_path / "again")


@pytest.mark.parametrize("steps", [(5, 4), (-1, 3), (0, 10**12)])
def test_an_annotation_of_impossible_steps_is_refused(tmp_path, steps):
    write_split(tmp_path / "d" / "training", [(0, 1)], [(*steps, "open the drawer", "open_drawer")], {})
    with pytest.raises(UserError, match="open the drawer"):
        convert(tmp_path / "d", tmp_path / "out")


def test_an_annotation_that_cannot_be_is_left_out_and_the_others_stay(tmp_path):
    annotations = [
        (0, 3, "open the drawer", "open_drawer"),
        (5, 4, "backwards", "open_drawer"),
        (0, 2**62, "for ever", "open_drawer"),
        (1, 2, "word " * 200_000, "open_drawer"),
        (1, 2, "  ", "open_drawer"),
        (1, 2, "no task", None),
    ]
    write_split(tmp_path / "d" / "training", [(0, 3)], annotations, {})
    report = convert(tmp_path / "d", tmp_path / "out")["training"]
    assert (report.episodes, len(report.left_out)) == (1, 5)
    assert all(reason.endswith("fetch the file again") and len(reason) < 300 for reason in report.left_out.values())


@pytest.mark.parametrize("play", [False, True])
@pytest.mark.parametrize("ranges", [[[0, 2**62]], [[-5, 3]], [[0, 2**31 - 2]], np.array([[0, 2**64 - 1]], np.uint64)])
def test_recordings_of_any_stated_size_are_answered_at_once(copy, tmp_path, ranges, play):
    np.save(copy / "training" / "ep_start_end_ids.npy", np.array(ranges))
    begin = time.monotonic()
    reports = convert(copy, tmp_path / "out", play=play)
    assert time.monotonic() - begin < 5 and reports["validation"].episodes >= 1
    if play or np.array(ranges).max() > 2**31 or np.array(ranges).min() < 0:
        assert "ep_start_end_ids.npy" in reports["training"].left_out["training"]
    else:
        assert reports["training"].episodes == 3  # the recordings only name groups


def test_an_array_that_states_more_than_its_file_holds_is_refused(copy, tmp_path):
    file = copy / "training" / "ep_start_end_ids.npy"
    with file.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<i8", "fortran_order": False, "shape": (10**12, 2)})
        stream.write(bytes(32))
    reports = convert(copy, tmp_path / "out")
    assert "states 16000000000000 bytes and has 32" in reports["training"].left_out["training"]


def recorded(folder, scene):
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "merged_config.yaml").write_text(f"scene:\n  name: calvin_scene_{scene}\n")


@pytest.mark.parametrize(
    ("scenes", "recorded_scene", "found", "said"),
    [
        ({"calvin_scene_A": [0, 99]}, "D", {"D"}, "D is taken"),
        ({"calvin_scene_D": [0, 99]}, "D", {"D"}, ""),
        ({"calvin_scene_A": [0, 2], "calvin_scene_B": [3, 99]}, "B", {"A", "B"}, ""),
        ({"calvin_scene_A": [0, 2], "calvin_scene_B": [3, 99]}, "D", {"A", "B"}, "scene_info.npy is taken"),
    ],
)
def test_two_files_that_name_different_scenes_are_both_named(tmp_path, capsys, scenes, recorded_scene, found, said):
    texts = [(0, 1, "open the drawer", "open_drawer"), (4, 5, "close the drawer", "close_drawer")]
    recorded(write_split(tmp_path / "d" / "validation", [(0, 5)], texts, scenes), recorded_scene)
    convert(tmp_path / "d", tmp_path / "out")
    assert {header.scene for header in EpisodeStore(tmp_path / "out" / "validation").headers()} == found
    lines = [line for line in capsys.readouterr().err.splitlines() if "merged_config.yaml" in line]
    assert len(lines) == bool(said) and all(said in line and "scene_info.npy" in line for line in lines)


def test_steps_numbered_with_other_digits_are_found(copy, tmp_path):
    for file in (copy / "validation").glob("episode_*.npz"):
        file.rename(file.with_name(f"episode_{int(file.stem.split('_')[1]):04d}.npz"))
    reports = convert(copy, tmp_path / "out")
    assert (reports["validation"].episodes, reports["training"].episodes) == (1, 3)


def test_a_yaml_file_with_aliases_is_not_expanded(copy, tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (copy / "training" / "statistics.yaml").write_text("\n".join(lines))
    reports = convert(copy, tmp_path / "out")
    assert "aliases" in reports["training"].left_out["training"] and reports["validation"].episodes == 1


def test_a_prefix_begins_ids_and_groups(data, tmp_path):
    convert(data, tmp_path / "out", prefix="debug/")
    header = next(EpisodeStore(tmp_path / "out" / "validation").headers())
    assert header.id == "debug/D/validation/0000050-0000054" and header.group.startswith("debug/D/")


def test_a_folder_without_splits_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(UserError, match="training"):
        convert(tmp_path, tmp_path / "out")


def test_a_member_that_would_inflate_beyond_bounds_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "MAX_MEMBER_BYTES", 1000)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(1000))
    with pytest.raises(npz.DamagedFile, match="bytes"):
        npz.read_npz(tmp_path / "a.npz", ["x"])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "value",
    [np.arange(6.0).reshape(2, 3), np.asfortranarray([[0, 1, 2], [3, 4, 5]]), np.float32(3), np.zeros((0, 2), "<i2")],
    ids=["c", "fortran", "scalar", "empty"],
)
def test_our_reader_of_npz_files_agrees_with_numpy(tmp_path, save, value):
    save(tmp_path / "a.npz", x=value, y=np.ones(3))
    found = npz.read_npz(tmp_path / "a.npz", ["x"])["x"]
    with np.load(tmp_path / "a.npz") as file:
        assert found.dtype == file["x"].dtype and found.shape == file["x"].shape
        np.testing.assert_array_equal(found, file["x"])


@pytest.mark.parametrize("names", [("last", "first"), ("middle",), ("first", "middle", "last")], ids=" ".join)
def test_our_reader_finds_members_wherever_they_lie_in_the_file(tmp_path, names):
    rng = np.random.default_rng(0)
    values = {name: rng.integers(0, 256, size) for name, size in (("first", 7), ("middle", 20000), ("last", 9))}
    np.savez_compressed(tmp_path / "a.npz", **values)
    found = npz.read_npz(tmp_path / "a.npz", names)
    assert tuple(found) == names
    for name in names:
        np.testing.assert_array_equal(found[name], values[name])


@pytest.mark.parametrize("how", ["bzip2", "long extra field", "long comment"])
def test_an_npz_file_packed_otherwise_is_read_all_the_same(tmp_path, how):
    value = np.random.default_rng(0).integers(0, 256, 3000)
    np.save(tmp_path / "x.npy", value)
    info = zipfile.ZipInfo("x.npy")
    info.compress_type = zipfile.ZIP_BZIP2 if how == "bzip2" else zipfile.ZIP_DEFLATED
    info.extra = b"\xfe\xca" + (2000).to_bytes(2, "little") + bytes(2000) if how == "long extra field" else b""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr(info, (tmp_path / "x.npy").read_bytes())
        archive.writestr("y.npy", bytes(6000))
        archive.comment = b"c" * 20000 if how == "long comment" else b""
    np.testing.assert_array_equal(npz.read_npz(tmp_path / "a.npz", ["x"])["x"], value)


# -- the real thing and the paper's command ---------------------------------------------------------------------------


def test_the_official_debug_data_set_converts_to_an_eighth_of_its_size(tmp_path):
    root = Path(os.environ.get("CALVIN_ROOT", ROOT.parent / "shared" / "calvin"))
    source = root / "dataset" / "task_debug_D"
    if not source.is_dir():
        pytest.skip(f"no CALVIN data set at {source}; set CALVIN_ROOT")
    reports = convert(source, tmp_path / "out")
    counts = {split: (report.episodes, report.steps) for split, report in reports.items()}
    assert counts == {"training": (6, 214), "validation": (2, 70)}
    for split in reports:
        files = sum(file.stat().st_size for file in (source / split).glob("episode_*.npz"))
        assert (tmp_path / "out" / split / "data.mdb").stat().st_size <= files / 8
    header = EpisodeStore(tmp_path / "out" / "training").header("D/training/0000360-0000393")
    assert (header.task, header.scene, header.group) == ("open_drawer", "D", "D/training/0000360")


@pytest.mark.parametrize("output", [None, "elsewhere"])
def test_the_papers_command_works_and_goes_on_when_repeated(copy, tmp_path, output):
    given = ["--output_dir", str(tmp_path / output)] if output else []
    command = [sys.executable, str(ROOT / "data" / "calvin2lmdb.py"), "--input_dir", str(copy), *given]
    made = tmp_path / (output or "task_D_lmdb")
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [str(made / "training"), str(made / "validation")]
    assert len(EpisodeStore(made / "training")) == 3


def test_the_papers_command_leaves_a_read_only_place_alone(copy, tmp_path, monkeypatch, capsys):
    command = runpy.run_path(str(ROOT / "data" / "calvin2lmdb.py"))
    assert command["default_output"](copy) == copy.with_name(f"{copy.name}_lmdb")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert command["default_output"](copy) == elsewhere / f"{copy.name}_lmdb"
    assert "read-only" in capsys.readouterr().err


# -- the parents' LMDB ------------------------------------------------------------------------------------------------


def write_parent(folder: Path, source: Path, segments) -> Path:
    """Write the keys and values of GR-1's and AR-VRM's calvin2lmdb.py."""
    env = lmdb.open(str(folder), map_size=1 << 28)
    with env.begin(write=True) as txn:
        at = 0

        def put(key, value):
            txn.put(key.encode(), pickle.dumps(value))

        for episode, segment in enumerate(segments):
            put(f"inst_{episode}", segment.instruction)
            put(f"inst_token_{episode}", torch.zeros(77, dtype=torch.int32))
            for number in range(segment.first, segment.last + 1):
                with np.load(source / f"episode_{number:07d}.npz") as file:
                    values = {name: file[name] for name in file.files}
                put("cur_step", at)
                put(f"cur_episode_{at}", episode)
                put(f"done_{at}", number == segment.last)
                for camera in ("rgb_static", "rgb_gripper"):
                    jpeg = simplejpeg.encode_jpeg(values[camera], 75, colorsubsampling="420")
                    put(f"{camera}_{at}", torch.frombuffer(bytearray(jpeg), dtype=torch.uint8))
                put(f"abs_action_{at}", torch.from_numpy(values["actions"]))
                put(f"rel_action_{at}", torch.from_numpy(values["rel_actions"]))
                put(f"scene_obs_{at}", torch.from_numpy(values["scene_obs"]))
                put(f"robot_obs_{at}", torch.from_numpy(values["robot_obs"]))
                at += 1
    env.close()
    return folder


@pytest.fixture(scope="module")
def parent(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parent") / "lmdb"
    return write_parent(folder, data / "training", plan_split(data / "training").segments)


def test_the_parents_lmdb_gives_the_states_actions_and_images_of_the_data_set(parent, stores, tmp_path):
    report = convert_parent_lmdb(ConvertParentConfig(str(parent), str(tmp_path / "out")))
    assert (report.episodes, report.steps, report.left_out) == (3, 17, {})
    ours, theirs = EpisodeStore(stores / "training"), EpisodeStore(tmp_path / "out")
    for a, b in zip(ours.ids, theirs.ids, strict=True):
        one, other = ours.episode(a), theirs.episode(b)
        assert one.instruction == other.instruction
        for name in one.arrays:
            np.testing.assert_array_equal(one.arrays[name], other.arrays[name])
        for camera in one.images:
            assert psnr(one.images[camera], other.images[camera]) > 30


def test_parent_episodes_that_share_recorded_steps_share_a_group(parent, tmp_path):
    convert_parent_lmdb(ConvertParentConfig(str(parent), str(tmp_path / "out")))
    groups = [header.group for header in EpisodeStore(tmp_path / "out").headers()]
    assert groups[0] == groups[1] != groups[2]


def test_a_range_of_parent_episodes_can_be_chosen(parent, tmp_path):
    convert_parent_lmdb(ConvertParentConfig(str(parent), str(tmp_path / "out"), first=1, last=1))
    assert [h.instruction for h in EpisodeStore(tmp_path / "out").headers()] == ["press the button"]


def test_a_hostile_value_in_the_parents_lmdb_is_refused_and_costs_its_episode(parent, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    shutil.copytree(parent, tmp_path / "lmdb")
    env = lmdb.open(str(tmp_path / "lmdb"), map_size=1 << 28)
    with env.begin(write=True) as txn:
        txn.put(b"rel_action_12", pickle.dumps(Hostile()))
        txn.delete(b"rgb_static_2")
    env.close()
    report = convert_parent_lmdb(ConvertParentConfig(str(tmp_path / "lmdb"), str(tmp_path / "out")))
    assert not (tmp_path / "ran").exists()
    assert "system" in report.left_out["parent/000002"] and "rgb_static_2" in report.left_out["parent/000000"]
    assert EpisodeStore(tmp_path / "out").ids == ("parent/000001",)


def parent_with(parent, folder, **values):
    shutil.copytree(parent, folder)
    env = lmdb.open(str(folder), map_size=1 << 28)
    with env.begin(write=True) as txn:
        for key, value in values.items():
            txn.put(key.encode(), pickle.dumps(value))
    env.close()
    return ConvertParentConfig(str(folder), str(folder) + "_out")


@pytest.mark.parametrize("number", [2**62, -1, float("nan"), float("inf"), "9" * 6000, True, None, 10**400, 2**31 - 1])
def test_a_number_of_steps_that_cannot_be_is_one_line(parent, tmp_path, number):
    begin = time.monotonic()
    with pytest.raises(UserError, match="cur_step") as error:
        convert_parent_lmdb(parent_with(parent, tmp_path / "lmdb", cur_step=number))
    assert time.monotonic() - begin < 2 and len(str(error.value)) < 400


@pytest.mark.parametrize("number", [2**62, float("nan"), "x", [1]])
def test_a_damaged_episode_number_costs_the_episodes_beside_it(parent, tmp_path, number):
    report = convert_parent_lmdb(parent_with(parent, tmp_path / "lmdb", cur_episode_7=number))
    assert list(report.left_out) == ["parent/000001"] and "cur_episode_7" in report.left_out["parent/000001"]
    report = convert_parent_lmdb(parent_with(parent, tmp_path / "border", cur_episode_5=number))
    assert list(report.left_out) == ["parent/000000", "parent/000001"] and report.episodes == 1


def test_a_sentence_of_a_megabyte_is_left_out(parent, tmp_path):
    report = convert_parent_lmdb(parent_with(parent, tmp_path / "lmdb", inst_1="word " * 200_000))
    assert "no sentence" in report.left_out["parent/000001"] and len(report.left_out["parent/000001"]) < 200


def test_damaged_pages_of_the_parents_lmdb_are_one_line(parent, tmp_path):
    whole = (parent / "data.mdb").read_bytes()
    rng = np.random.default_rng(0)
    for number in range(12):
        folder = tmp_path / str(number)
        folder.mkdir()
        data = bytearray(whole)
        page = 4096 * int(rng.integers(2, len(whole) // 4096))
        data[page : page + 16] = rng.integers(0, 256, 16, dtype=np.uint8).tobytes()
        (folder / "data.mdb").write_bytes(data)
        # In a process of its own: LMDB may end it.
        script = "import sys; from arvrm.cli import main; sys.exit(main(sys.argv[1:]))"
        done = subprocess.run(
            [sys.executable, "-c", script, "convert", "parent-lmdb", "--input", folder, "--output", folder / "out"],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert "Traceback" not in done.stderr and done.returncode in (0, 1, 2), done.stderr


def test_another_lmdb_is_no_parents_lmdb(tmp_path):
    lmdb.open(str(tmp_path / "x")).close()
    with pytest.raises(UserError, match="calvin2lmdb"):
        convert_parent_lmdb(ConvertParentConfig(str(tmp_path / "x"), str(tmp_path / "out")))
