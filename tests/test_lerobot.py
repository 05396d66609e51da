"""LeRobot data sets v3: out of a store, into one, and what LeRobot itself would find."""

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from small_stores import human_episode, robot_episode

from arvrm.episodes import EpisodeStore, EpisodeWriter
from arvrm.interface import UserError
from arvrm.robots.calvin import relative_action
from arvrm.sources.lerobot import (
    ConvertLeRobotConfig,
    ExportLeRobotConfig,
    convert_lerobot,
    export_lerobot,
)

av = pytest.importorskip("av")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

TOP, WRIST = "observation.images.top", "observation.images.wrist"
PSNR_DB = 30
"""What a round trip keeps at least with the default settings, on pictures with hard edges."""


def episodes():
    rng = np.random.default_rng(0)
    for i, task in enumerate(["open_drawer", "turn_on_led", "open_drawer", "lift_red_block_table"]):
        steps = 7 + i
        id = f"D/training/{i:07d}"
        episode = robot_episode(id, task, f"g{i // 2}", steps, every=1, size=64, seed=i, landmarks=True)
        noise = np.array([0.01] * 6 + [0], np.float32)
        arrays = {
            **episode.arrays,
            "robot_obs": rng.normal(size=(steps, 15)),
            "scene_obs": rng.normal(size=(steps, 24)),
            "absolute_actions": rng.normal(size=(steps, 7)),
            "executed": np.clip(episode.arrays["actions"] + noise, -1, 1),
        }
        yield replace(episode, arrays=arrays)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("lerobot") / "store"
    with EpisodeWriter(path, {"source": "test"}) as writer:
        for episode in episodes():
            writer.append(episode)
    return EpisodeStore(path)


@pytest.fixture(scope="module")
def exported(store, tmp_path_factory):
    return export_lerobot(ExportLeRobotConfig(str(store.path), str(tmp_path_factory.mktemp("out") / "set")))


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "set")


def back(source, tmp_path, **options):
    report = convert_lerobot(ConvertLeRobotConfig(str(source), str(tmp_path / "back"), **options))
    return EpisodeStore(tmp_path / "back"), report


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


def same_but_images(one, other):
    for name in ("id", "instruction", "task", "scene", "source", "group", "fps", "meta", "embodiment"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.arrays.keys() == other.arrays.keys()
    for name in one.arrays:
        assert one.arrays[name].dtype == other.arrays[name].dtype
        np.testing.assert_array_equal(one.arrays[name], other.arrays[name])
    np.testing.assert_array_equal(one.image_steps, other.image_steps)


def test_a_round_trip_keeps_everything_exactly_and_images_nearly(store, exported, tmp_path):
    again, report = back(exported, tmp_path)
    assert again.ids == store.ids and report.left_out == {}
    for id in store.ids:
        one, other = store.episode(id), again.episode(id)
        same_but_images(one, other)
        for camera in one.images:
            for mine, theirs in zip(one.images[camera], other.images[camera], strict=True):
                assert psnr(mine, theirs) > PSNR_DB


def test_finer_colour_and_quality_keep_images_better(store, exported, tmp_path):
    config = ExportLeRobotConfig(str(store.path), str(tmp_path / "fine"), crf=8, chroma="444")
    fine, _ = back(export_lerobot(config), tmp_path / "a")
    usual, _ = back(exported, tmp_path / "b")
    id = store.ids[0]
    frames = [s.frames(id, "rgb_static", range(7)) for s in (store, usual, fine)]
    assert psnr(frames[0], frames[2]) > psnr(frames[0], frames[1]) + 3


def test_images_at_some_steps_only_come_back_at_those_steps(tmp_path):
    episode = robot_episode("a", steps=11, every=4, size=64)
    with EpisodeWriter(tmp_path / "store", {}) as writer:
        writer.append(episode)
    out = export_lerobot(ExportLeRobotConfig(str(tmp_path / "store"), str(tmp_path / "set")))
    with av.open(str(out / "videos" / TOP / "chunk-000" / "file-000.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 11  # LeRobot finds a frame for each step
    again, _ = back(out, tmp_path)
    other = again.episode("a")
    same_but_images(episode, other)
    assert psnr(episode.images["rgb_static"], other.images["rgb_static"]) > PSNR_DB


def test_files_lie_where_the_format_wants_them(exported):
    assert sorted(str(file.relative_to(exported)) for file in exported.rglob("*") if file.is_file()) == [
        "data/chunk-000/file-000.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
        f"videos/{TOP}/chunk-000/file-000.mp4",
        f"videos/{WRIST}/chunk-000/file-000.mp4",
    ]


def test_info_names_the_communitys_features_with_their_shapes(exported):
    info = json.loads((exported / "meta" / "info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_episodes"], info["total_tasks"]) == ("v3.0", 30, 4, 3)
    assert (info["total_frames"], info["splits"]) == (7 + 8 + 9 + 10, {"train": "0:4"})
    shapes = {name: (feature["dtype"], feature["shape"]) for name, feature in info["features"].items()}
    assert shapes[TOP] == ("video", [64, 64, 3]) and shapes[WRIST] == ("video", [32, 32, 3])
    assert shapes["observation.state"] == ("float32", [15]) and shapes["action"] == ("float32", [7])
    assert shapes["observation.environment_state"] == ("float32", [24])
    for name in ("frame_index", "episode_index", "index", "task_index"):
        assert shapes[name] == ("int64", [1])
    assert not any("/" in name for name in shapes)
    path = info["data_path"].format(chunk_index=0, file_index=0)
    columns = {name for name, (dtype, _) in shapes.items() if dtype != "video"}
    assert set(pq.read_schema(exported / path).names) == columns


def test_rows_are_numbered_as_lerobot_numbers_them(store, exported):
    rows = pq.read_table(exported / "data" / "chunk-000" / "file-000.parquet").to_pydict()
    assert rows["index"] == list(range(34))
    assert rows["episode_index"] == [0] * 7 + [1] * 8 + [2] * 9 + [3] * 10
    assert rows["frame_index"][7:15] == list(range(8))
    np.testing.assert_allclose(rows["timestamp"][7:15], np.arange(8) / 30, rtol=1e-6)
    assert rows["task_index"] == [0] * 7 + [1] * 8 + [0] * 9 + [2] * 10
    state = store.arrays(store.ids[1], ["robot_obs"])["robot_obs"].astype(np.float32)
    np.testing.assert_array_equal(np.array(rows["observation.state"][7:15], np.float32), state)


def test_the_task_file_has_the_sentence_as_its_pandas_index(exported):
    table = pq.read_table(exported / "meta" / "tasks.parquet")
    assert table.column_names == ["task_index", "task"]
    assert table["task"].to_pylist() == ["pull the drawer open", "press", "lift the red block"]
    assert json.loads(table.schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_episode_rows_point_into_data_and_videos(exported):
    rows = pq.read_table(exported / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pylist()
    assert [(r["dataset_from_index"], r["dataset_to_index"]) for r in rows] == [(0, 7), (7, 15), (15, 24), (24, 34)]
    for row in rows:
        assert row["tasks"] and row["length"] == row["dataset_to_index"] - row["dataset_from_index"]
        for key in (TOP, WRIST):
            assert round(row[f"videos/{key}/from_timestamp"] * 30) == row["dataset_from_index"]
            assert round(row[f"videos/{key}/to_timestamp"] * 30) == row["dataset_to_index"]
        assert np.shape(row[f"stats/{TOP}/mean"]) == (3, 1, 1) and np.shape(row["stats/action/std"]) == (7,)


def test_videos_are_h264_with_a_time_for_every_step(exported):
    with av.open(str(exported / "videos" / WRIST / "chunk-000" / "file-000.mp4")) as video:
        stream = video.streams.video[0]
        times = [float(frame.pts * stream.time_base) for frame in video.decode(stream)]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 30)
    np.testing.assert_allclose(times, np.arange(34) / 30, atol=1e-4)


def test_statistics_of_the_whole_are_those_of_all_rows(store, exported):
    statistics = json.loads((exported / "meta" / "stats.json").read_text())
    values = np.concatenate([store.arrays(id, ["robot_obs"])["robot_obs"] for id in store.ids]).astype(np.float32)
    for key in ("mean", "std", "min", "max"):
        wanted = getattr(values, key)(axis=0)
        np.testing.assert_allclose(statistics["observation.state"][key], wanted, rtol=1e-4, atol=1e-6)
    assert statistics["action"]["count"] == [34]
    mean = np.array(statistics[TOP]["mean"])
    pixels = np.concatenate([store.frames(id, "rgb_static", range(7)) for id in store.ids]) / 255
    assert mean.shape == (3, 1, 1) and np.abs(mean.ravel() - pixels.mean((0, 1, 2))).max() < 0.05


def test_large_data_sets_are_spread_over_files(store, tmp_path):
    config = ExportLeRobotConfig(str(store.path), str(tmp_path / "set"), data_mb=0, video_mb=0)
    out = export_lerobot(config)
    assert len(list((out / "data").rglob("*.parquet"))) == 4 and len(list((out / "videos" / TOP).rglob("*.mp4"))) == 4
    again, report = back(out, tmp_path)
    assert report.left_out == {}
    for id in store.ids:
        same_but_images(store.episode(id), again.episode(id))


def test_the_same_store_gives_the_same_bytes(store, exported, tmp_path):
    again = export_lerobot(ExportLeRobotConfig(str(store.path), str(tmp_path / "set")))
    for file in exported.rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (again / file.relative_to(exported)).read_bytes(), file.name


# -- other people's data sets -----------------------------------------------------------------------------------------


def rewrite(folder, change):
    """Pass the data file's columns and info.json through `change(columns, info)`."""
    path, info_path = folder / "data" / "chunk-000" / "file-000.parquet", folder / "meta" / "info.json"
    table, info = pq.read_table(path), json.loads(info_path.read_text())
    columns = {name: table[name] for name in table.column_names}
    change(columns, info)
    pq.write_table(pa.table(columns), path)
    info_path.write_text(json.dumps(info))


def without_ours(columns, info):
    for name in [name for name in columns if name.startswith("arvrm.")]:
        del columns[name], info["features"][name]


def test_a_data_set_of_others_is_read_by_its_features(store, copy, tmp_path):
    rewrite(copy, without_ours)
    path = copy / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.select([n for n in rows.column_names if not n.startswith(("arvrm/", "stats/"))]), path)
    again, _ = back(copy, tmp_path)
    assert again.ids == tuple(f"lerobot/{i:06d}" for i in range(4))
    one, other = store.episode(store.ids[2]), again.episode(again.ids[2])
    assert (other.instruction, other.task, other.source) == (one.instruction, "", "lerobot")
    np.testing.assert_array_equal(other.arrays["actions"], one.arrays["actions"])
    np.testing.assert_array_equal(other.arrays["executed"], one.arrays["actions"])
    np.testing.assert_array_equal(other.arrays["robot_obs"], one.arrays["robot_obs"].astype(np.float32))


def test_absolute_default_actions_are_made_relative(store, copy, tmp_path):
    def absolute(columns, info):
        columns["action"] = columns["action.absolute"]
        without_ours(columns, info)

    gripper = np.where(np.arange(34) % 3, 1.0, -1.0)

    def binary_gripper(columns, info):
        values = np.array(columns["action.absolute"].to_pylist(), np.float32)
        values[:, 6] = gripper
        columns["action.absolute"] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 7)

    rewrite(copy, binary_gripper)
    rewrite(copy, absolute)
    again, report = back(copy, tmp_path)
    assert report.left_out == {}
    arrays = again.arrays(again.ids[0])
    absolute = arrays["absolute_actions"]
    wanted = relative_action(arrays["robot_obs"], absolute, absolute[:, 6]).astype(np.float32)
    np.testing.assert_array_equal(arrays["actions"], wanted)
    np.testing.assert_array_equal(arrays["actions"][:, 6], gripper[:7])


def episodes_table(folder, change):
    path = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows), path)


def strangers(folder, change=lambda columns, info: None):
    """Make a data set without what only our own export writes."""

    def both(columns, info):
        without_ours(columns, info)
        change(columns, info)

    rewrite(folder, both)

    def plain(rows):
        for row in rows:
            for name in [name for name in row if name.startswith(("arvrm/", "stats/"))]:
                del row[name]

    episodes_table(folder, plain)
    return folder


@pytest.mark.parametrize("width", ["list", "large_list", "fixed", "double", "dictionary", "chunks"])
def test_numbers_are_read_from_whichever_list_type_holds_them(store, copy, tmp_path, width):
    def change(columns, info):
        for name, size in (("observation.state", 15), ("action", 7)):
            values = columns[name].to_pylist()
            kinds = {
                "list": pa.list_(pa.float32()),
                "large_list": pa.large_list(pa.float32()),
                "fixed": pa.list_(pa.float32(), size),
                "double": pa.large_list(pa.float64()),
                "dictionary": pa.list_(pa.float32()),
                "chunks": pa.list_(pa.float32()),
            }
            if width == "chunks":
                columns[name] = pa.chunked_array([pa.array([v], kinds[width]) for v in values])
            else:
                columns[name] = pa.array(values, kinds[width])
        if width == "dictionary":
            columns["task_index"] = columns["task_index"].combine_chunks().dictionary_encode()

    again, report = back(strangers(copy, change), tmp_path)
    assert report.left_out == {}
    for id, other in zip(store.ids, again.ids, strict=True):
        np.testing.assert_array_equal(again.arrays(other)["actions"], store.arrays(id)["actions"])


def test_rows_that_lack_numbers_leave_out_their_episode_only(store, copy, tmp_path):
    def change(columns, info):
        values = columns["action"].to_pylist()
        values[8] = None
        values[16] = values[16][:6]
        columns["action"] = pa.array(values, pa.list_(pa.float32()))

    again, report = back(strangers(copy, change), tmp_path)
    assert again.ids == ("lerobot/000000", "lerobot/000003")
    assert "empty" in report.left_out["lerobot/000001"] and "numbers a row" in report.left_out["lerobot/000002"]


def test_columns_that_nobody_needs_do_no_harm(store, copy, tmp_path):
    def change(columns, info):
        columns["notes"] = pa.array([["x"] * (n % 3) for n in range(34)])
        columns["extra"] = pa.array([[{"role": "user"}] * (n % 2) for n in range(34)])

    again, report = back(strangers(copy, change), tmp_path)
    assert len(again) == 4 and report.left_out == {}


@pytest.mark.parametrize("order", [1, -1])
def test_sentences_are_those_of_the_frames_whatever_the_index_says(store, copy, tmp_path, order):
    tasks = ["pull the drawer open", "press", "lift the red block"]

    def change(columns, info):
        index = columns["task_index"].to_pylist()
        index[0:3], index[3:7] = [2] * 3, [1] * 4
        columns["task_index"] = pa.array(index)

    strangers(copy, change)
    episodes_table(copy, lambda rows: [row.update(tasks=tasks[::order]) for row in rows])
    table = pa.table({"task_index": [0, 1, 2], "__index_level_0__": tasks})
    pq.write_table(table, copy / "meta" / "tasks.parquet")
    again, report = back(copy, tmp_path)
    assert report.left_out == {}
    found = [(header.id, header.instruction, header.steps) for header in again.headers()]
    assert found[:3] == [
        ("lerobot/000000#1", "lift the red block", 3),
        ("lerobot/000000#2", "press", 4),
        ("lerobot/000001", "press", 8),
    ]
    assert len({header.group for header in again.headers()}) == 4
    np.testing.assert_array_equal(
        np.concatenate([again.arrays(id)["robot_obs"] for id in again.ids[:2]]),
        store.arrays(store.ids[0])["robot_obs"].astype(np.float32),
    )


def test_a_task_that_no_file_names_leaves_out_its_episode(copy, tmp_path):
    strangers(copy)
    pq.write_table(pa.table({"task_index": [0, 1], "task": ["a", "b"]}), copy / "meta" / "tasks.parquet")
    again, report = back(copy, tmp_path)
    assert len(again) == 3 and "task 2" in report.left_out["lerobot/000003"]
    (copy / "meta" / "tasks.parquet").unlink()
    again, report = back(copy, tmp_path / "b")
    assert len(again) == 4  # the index names one sentence for each
    episodes_table(copy, lambda rows: rows[0].update(tasks=["a", "b"]))
    again, report = back(copy, tmp_path / "c")
    assert list(report.left_out) == ["lerobot/000000"]


def shift(folder, feature, seconds):
    episodes_table(folder, lambda rows: [row.update({f"videos/{feature}/from_timestamp": t})
                                         for row, t in zip(rows, seconds, strict=True)])  # fmt: skip


def test_frames_are_found_by_their_time_or_not_at_all(store, copy, tmp_path):
    strangers(copy)
    starts = [0.0, 7 / 30, 15 / 30 + 0.01, 24 / 30 + 5.0]
    shift(copy, TOP, starts)
    again, report = back(copy, tmp_path)
    assert again.ids == ("lerobot/000000", "lerobot/000001")
    assert "no frame at 0.51" in report.left_out["lerobot/000002"]
    assert "ends before" in report.left_out["lerobot/000003"]


def test_a_time_stamp_that_is_no_multiple_of_the_rate_leaves_out_the_episode(copy, tmp_path):
    def change(columns, info):
        times = columns["timestamp"].to_pylist()
        times[3] += 0.004
        columns["timestamp"] = pa.array(times, pa.float32())

    again, report = back(strangers(copy, change), tmp_path)
    assert len(again) == 3 and "0.0373 s apart" in report.left_out["lerobot/000000"]


def test_rows_are_found_in_another_file_than_the_index_says(store, copy, tmp_path):
    strangers(copy)
    path = copy / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(15), path.with_name("file-007.parquet"))
    pq.write_table(table.slice(0, 15), path)
    path.with_name("._file-000.parquet").write_bytes(b"\0\5\x16\7")
    again, report = back(copy, tmp_path)
    assert len(again) == 4 and report.left_out == {}
    np.testing.assert_array_equal(again.arrays(again.ids[3])["actions"], store.arrays(store.ids[3])["actions"])
    pq.write_table(table.slice(24), path.with_name("file-008.parquet"))  # twice: which is right?
    again, report = back(copy, tmp_path / "b")
    assert list(report.left_out) == ["lerobot/000003"] and "2 other files" in report.left_out["lerobot/000003"]


def test_frames_that_two_episodes_claim_are_given_to_neither(copy, tmp_path):
    strangers(copy)
    shift(copy, TOP, [0.0, 7 / 30, 7 / 30, 24 / 30])
    again, report = back(copy, tmp_path)
    assert again.ids == ("lerobot/000000", "lerobot/000003")
    assert all("episodes 1 and 2 the same frames" in reason for reason in report.left_out.values())


def test_a_damaged_part_of_the_index_costs_its_episodes_only(copy, tmp_path):
    strangers(copy)
    path = copy / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(2), path.with_name("file-001.parquet"))
    path.write_bytes(path.read_bytes()[:300])
    again, report = back(copy, tmp_path)
    assert again.ids == ("lerobot/000002", "lerobot/000003")
    assert list(report.left_out) == ["meta/episodes/chunk-000/file-000.parquet"]


def test_absolute_actions_are_known_by_their_nearness_to_the_pose(store, copy, tmp_path):
    rng = np.random.default_rng(3)
    state = np.tile([0.1, -0.2, 0.5, 3.12, 0.0, 1.5, 0.08, *[0.0] * 7, 1.0], (34, 1))
    target = state[:, :6] + rng.uniform(-0.03, 0.03, (34, 6))
    target[:, 3] = (target[:, 3] + np.pi) % (2 * np.pi) - np.pi  # some beyond the jump from pi to -pi
    absolute = np.concatenate([target, np.where(np.arange(34) % 2, 1.0, -1.0)[:, None]], axis=1).astype(np.float32)

    def change(columns, info):
        columns["observation.state"] = pa.array(state.astype(np.float32).tolist(), pa.list_(pa.float32()))
        columns["action"] = pa.array(absolute.tolist(), pa.list_(pa.float32()))
        del columns["action.absolute"], info["features"]["action.absolute"]

    again, report = back(strangers(copy, change), tmp_path)
    assert report.left_out == {}
    found = np.concatenate([again.arrays(id)["actions"] for id in again.ids])
    np.testing.assert_allclose(found, relative_action(state, absolute, absolute[:, 6]), atol=1e-4)


def test_actions_that_are_neither_relative_nor_near_the_pose_are_left_out_unclipped(copy, tmp_path):
    def change(columns, info):
        values = np.array(columns["action"].to_pylist(), np.float32)
        values[:7, 3] = 3.14
        columns["action"] = pa.array(values.tolist(), pa.list_(pa.float32()))

    again, report = back(strangers(copy, change), tmp_path)
    assert len(again) == 3 and "3.14" in report.left_out["lerobot/000000"]
    assert "--action" in report.left_out["lerobot/000000"] and "clip it" not in report.left_out["lerobot/000000"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda info: info.update(fps=float("nan")), "fps"),
        (lambda info: info.update(fps=1e300), "fps"),
        (lambda info: info.update(features=[1]), "features"),
        (lambda info: info.update(features={"a": 3}), "features"),
    ],
)
def test_bad_values_of_the_info_file_are_one_line(copy, tmp_path, change, said):
    path = copy / "meta" / "info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))
    with pytest.raises(UserError, match=said):
        back(copy, tmp_path)


def test_chunk_numbers_and_templates_of_any_size_reserve_nothing(copy, tmp_path):
    strangers(copy)
    top = f"videos/{TOP}/chunk_index"
    episodes_table(copy, lambda rows: [rows[0].update({top: 999_999_999}), rows[1].update({top: -1})])
    _, report = back(copy, tmp_path)
    assert set(report.left_out) == {"lerobot/000000", "lerobot/000001"}
    path = copy / "meta" / "info.json"
    info = json.loads(path.read_text())
    info["video_path"] = "{chunk_index:0999999999d}/{file_index}/{video_key}.mp4"
    path.write_text(json.dumps(info))
    _, report = back(copy, tmp_path / "b")
    assert sum("none of LeRobot v3" in reason for reason in report.left_out.values()) == 3 and len(report.left_out) == 4


def test_a_changed_index_is_no_continuation(copy, tmp_path):
    back(copy, tmp_path)
    pq.write_table(pa.table({"task_index": [0, 1, 2], "task": ["a", "b", "c"]}), copy / "meta" / "tasks.parquet")
    with pytest.raises(UserError, match="index_sha256"):
        back(copy, tmp_path, resume=True)


def test_a_prefix_keeps_two_data_sets_apart(copy, tmp_path):
    again, _ = back(strangers(copy), tmp_path, prefix="lab/")
    assert again.ids[0] == "lab/lerobot/000000" and again.header(again.ids[0]).group == "lab/lerobot/000000"


def test_pictures_inside_the_table_are_read(store, copy, tmp_path):
    from PIL import Image

    frames = np.concatenate([store.frames(id, "rgb_gripper", range(store.header(id).frames)) for id in store.ids])

    def inside(columns, info):
        cells = []
        for frame in frames:
            stream = io.BytesIO()
            Image.fromarray(frame).save(stream, "PNG")
            cells.append({"bytes": stream.getvalue(), "path": None})
        columns["wrist_png"] = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        info["features"]["wrist_png"] = {"dtype": "image", "shape": [32, 32, 3], "names": None}

    rewrite(copy, inside)
    again, report = back(copy, tmp_path, wrist="wrist_png")
    assert report.left_out == {}
    assert psnr(again.frames(again.ids[3], "rgb_gripper", range(10)), frames[-10:]) > 35


def test_a_broken_video_costs_its_episodes_and_a_resumed_run_mends_them(store, copy, exported, tmp_path):
    video = copy / "videos" / TOP / "chunk-000" / "file-000.mp4"
    video.write_bytes(video.read_bytes()[:600])
    again, report = back(copy, tmp_path)
    assert len(again) == 0 and set(report.left_out) == set(store.ids)
    assert "file-000.mp4" in report.left_out[store.ids[0]]
    shutil.copy(exported / "videos" / TOP / "chunk-000" / "file-000.mp4", video)
    again, report = back(copy, tmp_path, resume=True)
    assert again.ids == store.ids and report.left_out == {}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda info: info.update(codebase_version="v1.6"), "v1.6"),
        (lambda info: info["features"].pop(TOP), "--top"),
        (lambda info: info["features"]["observation.state"].update(shape=[8]), "15"),
        (lambda info: info["features"].pop("action"), "--action"),
        (lambda info: info.pop("fps"), "info.json"),
        (lambda info: info.update(fps=0), "fps"),
    ],
)
def test_an_unusable_data_set_is_an_error_with_a_remedy(copy, tmp_path, change, match):
    path = copy / "meta" / "info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))
    with pytest.raises(UserError, match=match):
        back(copy, tmp_path)


def test_a_path_that_leaves_the_data_set_is_not_followed(copy, tmp_path):
    path = copy / "meta" / "info.json"
    info = json.loads(path.read_text())
    info["data_path"] = "../../secret-{chunk_index}-{file_index}.parquet"
    path.write_text(json.dumps(info))
    _, report = back(copy, tmp_path)
    assert all("outside" in reason for reason in report.left_out.values()) and len(report.left_out) == 4


def test_human_clips_and_odd_sizes_are_refused_before_anything_is_written(tmp_path):
    odd = robot_episode("odd", steps=3, every=1, size=33)
    for name, episode in (("human", human_episode("h")), ("odd", odd)):
        with EpisodeWriter(tmp_path / name, {}) as writer:
            writer.append(episode)
        with pytest.raises(UserError, match=name if name == "human" else "even"):
            export_lerobot(ExportLeRobotConfig(str(tmp_path / name), str(tmp_path / f"{name}_out")))
        assert not (tmp_path / f"{name}_out").exists()


def test_only_a_lerobot_data_set_is_overwritten(store, exported, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="another path"):
        export_lerobot(ExportLeRobotConfig(str(store.path), str(tmp_path / "mine"), overwrite=True))
    with pytest.raises(UserError, match="--overwrite"):
        export_lerobot(ExportLeRobotConfig(str(store.path), str(exported)))
    assert (tmp_path / "mine" / "thesis.txt").exists()
