import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest
import torch
from small_stores import human_episode, human_store, robot_episode, robot_store, write

from arvrm import robots
from arvrm.interface import Camera, UserError
from arvrm.model.encoders import TextConfig, TextEncoder, VisionConfig, image_encoder
from arvrm.retrieval import (
    ClipIndex,
    Clips,
    FrozenEncoders,
    RetrievalConfig,
    RetrievedClips,
    SearchConfig,
    build_index,
    frame_features,
    resample,
    warp,
    write_index,
)
from arvrm.retrieval.shortlist import principal_components
from arvrm.robots.vector import Ranges, VectorRobot
from arvrm.windows import EpisodeTable, HumanWindows, Names, TextTable, WindowConfig, decode_frames

VISION = VisionConfig(width=16, channels=(8, 8), depth=1, points=8, static_size=32, film=True)


sentence_encoder = functools.cache(TextEncoder)


def encoders(seed=0):
    torch.manual_seed(seed)
    return FrozenEncoders(sentence_encoder(TextConfig()), VISION, 32, 24, image_encoder(VISION, 32, 24))


def planted(tmp_path, clips=12, width=4, text=6, frames=5):
    """An index whose features are set by hand: random unit vectors."""
    index = build_index(
        [human_store(tmp_path / "h", tasks=2, per_task=clips // 2, steps=13)], encoders(), tmp_path / "i"
    )
    rng = np.random.default_rng(0)

    def unit(*shape):
        vectors = rng.normal(size=shape)
        return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)

    assert np.array_equal(np.diff(index.start), np.full(clips, frames))
    index.text, index.frames = unit(clips, text), unit(clips * frames, width)
    return index


def test_search_returns_planted_clips_and_its_terms_add_up(tmp_path):
    index = planted(tmp_path)
    for row in (0, 7):
        found = index.search(index.text[row], index.clip_features(row, 3), clips=3)
        assert found.rows[0, 0] == row
        # The clip itself: cosine 1 with its text and with each of its 3 frames.
        assert found.language[0, 0] == pytest.approx(1, abs=1e-3) and found.visual[0, 0] == pytest.approx(3, abs=1e-2)
        assert np.allclose(found.total, found.language + found.visual)
        assert (np.diff(found.total[0]) <= 0).all()


def test_search_equals_the_definition(tmp_path):
    index = planted(tmp_path)
    rng = np.random.default_rng(1)
    text, frames = rng.normal(size=(2, 6)), rng.normal(size=(2, 4, 4))  # not of unit length: the cosine is meant
    found = index.search(text, frames, clips=len(index))
    for query in range(2):
        expected = np.zeros(len(index))
        for row in range(len(index)):
            expected[row] = index.text[row] @ text[query] / np.linalg.norm(text[query])
            clip = index.clip_features(row, 4)
            expected[row] += sum(clip[t] @ frames[query, t] / np.linalg.norm(frames[query, t]) for t in range(4))
        assert np.array_equal(found.rows[query], np.argsort(-expected))
        assert np.allclose(found.total[query], np.sort(expected)[::-1], atol=1e-3)


def test_language_alone_can_decide(tmp_path):
    index = planted(tmp_path)
    index.frames = np.ones_like(index.frames) / 2
    found = index.search(index.text[4], index.clip_features(0, 2), clips=1)
    assert found.rows[0, 0] == 4 and found.visual[0, 0] == pytest.approx(2, abs=1e-2)


def test_excluded_groups_are_not_returned(tmp_path):
    index = planted(tmp_path)
    found = index.search(index.text[3], index.clip_features(3, 2), 12, exclude_groups=[index.groups[3], "nobody's"])
    assert 3 not in found.rows and found.rows[0, -1] == -1 and (found.rows[0, :11] >= 0).all()
    assert found.total[0, -1] == -np.inf


@pytest.mark.parametrize(
    ("vision", "size", "known"),
    [
        (VISION, 32, "7cc4276cc7e0c2a1"),
        (
            VisionConfig(
                width=8, channels=(4, 4), depth=1, points=8, landmarks=2, static_size=64, gripper_size=32, film=False,
                colour_jitter=0.1, shift_static=0.1,
            ),
            64,
            "e3b2d04e2f2b5996",
        ),
    ],
)  # fmt: skip
def test_encoders_keep_the_hash_by_which_older_indexes_and_caches_know_them(vision, size, known):
    image = image_encoder(vision, size, 24)
    for tensor in image.state_dict().values():
        tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) % 7)
    assert FrozenEncoders(sentence_encoder(TextConfig()), vision, size, 24, image).hash == known


def test_index_survives_its_disk_and_brings_its_encoders(tmp_path):
    store = human_store(tmp_path / "h")
    made = build_index([store], encoders(), tmp_path / "i")
    index = ClipIndex.load(tmp_path / "i", encoder_hash=encoders().hash)
    assert index.ids == list(store.ids) and index.tasks[0] == store.header(store.ids[0]).task
    assert np.array_equal(index.frames, made.frames)
    images = store.frames(store.ids[0], "rgb_static", [0, 1])
    assert np.allclose(index.encoders.images(images), encoders().images(images))
    assert index.encoders.hash == encoders().hash
    assert np.allclose(index.clip_features(0)[:2], encoders().images(images), atol=1e-3)
    found = index.search(index.encoders.sentences([index.instructions[2]]), index.clip_features(2, 4)[None], 1)
    assert found.rows[0, 0] == 2
    assert not list(tmp_path.glob("*.tmp"))


def test_index_of_another_encoder_is_refused(tmp_path):
    build_index([human_store(tmp_path / "h")], encoders(0), tmp_path / "i")
    with pytest.raises(UserError, match="its features are from encoder"):
        ClipIndex.load(tmp_path / "i", encoder_hash=encoders(1).hash)


def test_missing_or_damaged_index_is_one_line(tmp_path):
    with pytest.raises(UserError, match="does not exist; make one"):
        ClipIndex.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is no clip index"):
        ClipIndex.load(tmp_path / "empty")
    build_index([human_store(tmp_path / "h")], encoders(), tmp_path / "i")
    whole = (tmp_path / "i" / "frames.npy").read_bytes()
    (tmp_path / "i" / "frames.npy").write_bytes(whole[:-10])
    with pytest.raises(UserError, match="frames.npy has 1078 bytes instead of 1088"):
        ClipIndex.load(tmp_path / "i")
    values = json.loads((tmp_path / "i" / "index.json").read_text())
    (tmp_path / "i" / "frames.npy").write_bytes(whole)
    (tmp_path / "i" / "index.json").write_text(json.dumps(values | {"version": 99}))
    with pytest.raises(UserError, match="version: 99"):
        ClipIndex.load(tmp_path / "i")


def test_existing_index_is_not_overwritten_unasked(tmp_path):
    store = human_store(tmp_path / "h")
    build_index([store], encoders(), tmp_path / "i")
    with pytest.raises(UserError, match="--overwrite"):
        build_index([store], encoders(), tmp_path / "i")
    build_index([store], encoders(1), tmp_path / "i", overwrite=True)
    assert ClipIndex.load(tmp_path / "i").encoder_hash == encoders(1).hash
    with pytest.raises(UserError, match="is no clip index, so it is not overwritten"):
        build_index([store], encoders(), tmp_path / "h", overwrite=True)


def test_changed_store_is_noticed(tmp_path):
    build_index([human_store(tmp_path / "h")], encoders(), tmp_path / "i")
    index = ClipIndex.load(tmp_path / "i")
    assert len(index.open_stores()[0]) == 6
    shutil.rmtree(tmp_path / "h")
    human_store(tmp_path / "h", per_task=4)
    with pytest.raises(UserError, match="changed since"):
        index.open_stores()


def test_query_of_another_width_is_refused(tmp_path):
    index = planted(tmp_path)
    with pytest.raises(UserError, match="do not fit E=6, D=4"):
        index.search(np.ones(5), np.ones((2, 4)), 1)


def test_resampling_many_lengths_equals_resampling_each():
    lengths = np.arange(1, 60)
    for frames in (1, 2, 3, 7, 16):
        one = [np.round(np.linspace(0, n - 1, frames)) if frames > 1 else [(n - 1) // 2] for n in lengths]
        assert np.array_equal(resample(lengths, frames), np.array(one))


def test_resampling_spreads_over_the_whole_clip():
    assert resample(9, 5).tolist() == [0, 2, 4, 6, 8]
    assert resample(3, 5).tolist() == [0, 0, 1, 2, 2]
    assert resample(7, 1).tolist() == [3]


def test_warping_follows_a_change_of_speed():
    rng = np.random.default_rng(3)
    clip = rng.normal(size=(10, 8))
    clip /= np.linalg.norm(clip, axis=1, keepdims=True)
    slow = clip[[0, 0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 8, 9, 9]]
    assert warp(slow @ clip.T).tolist() == [0, 0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 8, 9, 9]
    assert warp(clip[3:7] @ clip.T, part=True).tolist() == [3, 4, 5, 6]
    assert warp(clip[[0, 9]] @ clip.T).tolist() == [0, 9]
    assert (np.diff(warp(rng.normal(size=(6, 9)))) >= 0).all()


def test_alignment_by_warping_finds_the_part_and_needs_a_query(tmp_path):
    index = planted(tmp_path)
    assert index.align(2, 3).tolist() == [0, 2, 4]
    assert index.align(2, 2, index.clip_features(2)[[2, 3]], "dtw").tolist() == [2, 3]
    with pytest.raises(ValueError, match="needs the features"):
        index.align(2, 2, None, "dtw")


def accompany(tmp_path, config, robots=None, humans=None, **options):
    humans = humans or human_store(tmp_path / "h", tasks=2, per_task=3, steps=25)
    robots = robots or robot_store(tmp_path / "r", tasks=2, per_task=2, steps=19)
    index = build_index([humans], encoders(), tmp_path / "i", overwrite=True)
    window = WindowConfig(history=2, stride=3)
    table, people = (EpisodeTable([store], kind, 3) for store, kind in ((robots, "robot"), (humans, "human")))
    text = TextTable(torch.zeros(len(people.sentences), 1, 4), torch.ones(len(people.sentences), 1, dtype=torch.bool))
    windows = HumanWindows(people, window, 21, text, decode_frames(people, "rgb_static"))
    features = frame_features(table, index.encoders)
    return RetrievedClips(index, table, windows, features, config, 2, **options)


def test_clips_of_the_robots_task_accompany_its_windows(tmp_path):
    clips = accompany(tmp_path, RetrievalConfig(clips=2))
    for episode in range(len(clips.robots)):
        task = clips.robots.tasks[clips.robots.task[episode]]
        assert {clips.index.tasks[row] for row in clips.matches.rows[episode]} == {task}


def test_clips_accompany_a_robot_whose_camera_has_another_name(tmp_path, monkeypatch):
    monkeypatch.setattr(robots, "_KNOWN", dict(robots._KNOWN))
    cameras = (Camera("front", "static"), Camera("left", "left"))
    robots.register(VectorRobot("slider", ("x",), ("m",), Ranges((-1,), (1,)), cameras))
    episodes = []
    for number, task in enumerate(("open_drawer", "lift_red_block_table")):
        same = robot_episode(f"r{number}", task, steps=19, colour=(40 + 80 * number, 90, 160))
        arrays = {"state": np.zeros((19, 1)), "actions": np.zeros((19, 1), np.float32)}
        images = {"front": same.images["rgb_static"], "left": same.images["rgb_gripper"]}
        episodes.append(dataclasses.replace(same, robot="slider", arrays=arrays, images=images))
    clips = accompany(tmp_path, RetrievalConfig(clips=2), write(tmp_path / "r", episodes))
    for episode in range(2):
        task = clips.robots.tasks[clips.robots.task[episode]]
        assert {clips.index.tasks[row] for row in clips.matches.rows[episode]} == {task}


def test_clip_stands_where_the_episode_stands(tmp_path):
    clips = accompany(tmp_path, RetrievalConfig(clips=2, align="progress"))
    anchors = clips.robots.image_start[:1] + np.array([0, 3, 6])  # steps 0, 9, 18 of 19: start, middle, end
    batch = clips.batch(anchors)
    row = clips.of(anchors)[0, 1]
    own = clips.humans.keypoints[clips.humans.table.step_start[row] :]
    assert batch["keypoints"].shape == (3, 2, 2, 21, 3)
    assert torch.equal(batch["keypoints"][:, 1, 1], own[[0, 12, 24]])
    assert torch.equal(batch["keypoints"][1:, 1, 0], own[[9, 21]])
    assert batch["frame_mask"][:, 1].tolist() == [[False, True], [True, True], [True, True]]
    assert torch.equal(batch["next_keypoints"][:2, 1], own[[3, 15]])
    assert not batch["next_visible"][2].any()


def test_uniform_alignment_spreads_the_whole_clip(tmp_path):
    clips = accompany(tmp_path, RetrievalConfig(clips=1, align="uniform"))
    batch = clips.batch(np.array([2]))
    own = clips.humans.keypoints[clips.humans.table.step_start[clips.of(np.array([2]))[0, 0]] :]
    assert torch.equal(batch["keypoints"][0, 0], own[[0, 24]])


@pytest.mark.parametrize("query", ["episode", "window"])
def test_warped_alignment_keeps_the_order_of_frames(tmp_path, query):
    clips = accompany(tmp_path, RetrievalConfig(clips=2, align="dtw", query=query))
    batch = clips.batch(np.arange(7))
    assert batch["static"].shape == (7, 2, 2, 32, 32, 3)
    # The synthetic hand moves to the right all the time.
    u = batch["keypoints"][:, :, :, 5, 0]
    assert (u[:, :, 1] >= u[:, :, 0]).all()
    if query == "episode":
        assert (u[-1, :, 1] > u[0, :, 1]).all()


def test_too_few_clips_leave_masked_places(tmp_path):
    humans = write(tmp_path / "h", [human_episode("only", steps=25)])
    clips = accompany(tmp_path, RetrievalConfig(clips=3), humans=humans)
    batch = clips.batch(np.array([4, 5]))
    assert batch["frame_mask"].any(-1).tolist() == [[True, False, False]] * 2


def test_random_clips_are_a_control(tmp_path):
    similar = accompany(tmp_path, RetrievalConfig(clips=3))
    chance = accompany(tmp_path, RetrievalConfig(clips=3, choice="random"), similar.robots.stores[0],
                       similar.humans.table.stores[0])  # fmt: skip
    assert not np.array_equal(similar.matches.rows, chance.matches.rows)
    assert all(len(set(rows)) == 3 for rows in chance.matches.rows.tolist())


def test_search_is_cached_by_what_it_depends_on(tmp_path, monkeypatch):
    options = {"cache": tmp_path / "cache"}
    first = accompany(tmp_path, RetrievalConfig(clips=2, align="dtw"), **options)
    stores = (first.robots.stores[0], first.humans.table.stores[0])
    monkeypatch.setattr(ClipIndex, "search", lambda *_, **__: pytest.fail("searched again"))
    again = accompany(tmp_path, RetrievalConfig(clips=2, align="dtw"), *stores, **options)
    assert np.array_equal(again.matches.rows, first.matches.rows) and np.array_equal(again.warped, first.warped)
    with pytest.raises(pytest.fail.Exception):
        accompany(tmp_path, RetrievalConfig(clips=1, align="dtw"), *stores, **options)


# ---------------------------------------------------------------------------------------------------------------------
# Many clips
# ---------------------------------------------------------------------------------------------------------------------


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def like_clips(rng, count, frames=None, text=6, width=12, scenes=20):
    """Features of clips: one of some scenes, one of some sentences, and noise; as many frames as said, or 4 to 8."""
    fixed = np.random.default_rng(99)
    places, words = fixed.normal(size=(scenes, width)), fixed.normal(size=(9, text))
    lengths = rng.integers(4, 9, size=count) if frames is None else np.full(count, frames)
    scene = np.repeat(rng.integers(scenes, size=count), lengths)
    own = np.repeat(rng.normal(size=(count, width)), lengths, axis=0)
    seen = unit(places[scene] + 0.4 * own + 0.2 * rng.normal(size=(len(scene), width)))
    return unit(words[rng.integers(9, size=count)] + 0.3 * rng.normal(size=(count, text))), seen, lengths


def many(folder, count=400, groups=5, **search):
    """An index of drawn features, as `arvrm index` would write it."""
    folder.mkdir()
    (folder / "encoder.safetensors").write_bytes(b"")
    text, frames, lengths = like_clips(np.random.default_rng(0), count)
    zeros = np.zeros(count, np.int32)
    clips = Clips(
        Names.of(f"c{n}" for n in range(count)),
        (Names.of(["go"]), zeros),
        (Names.of(["task"]), zeros),
        (Names.of(f"g{n}" for n in range(groups)), np.arange(count, dtype=np.int32) % groups),
        zeros,
        lengths,
    )
    described = {"encoders": {"hash": "drawn"}, "stores": [{"path": "s", "fingerprint": "f"}]}
    parts = [frames[:700].astype(np.float16), frames[700:].astype(np.float16)]
    write_index(folder, described, clips, [text], parts, SearchConfig(**search))
    return ClipIndex.load(folder)


def same(one, other):
    return np.array_equal(one.rows, other.rows) and np.allclose(one.total, other.total, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 4, 5, 11])
def test_a_short_list_of_all_clips_gives_the_exact_search(tmp_path, frames):
    exact = many(tmp_path / "exact", kind="exact")
    approximate = many(
        tmp_path / "short", kind="approximate", frames=4, dimensions=9, lists=13, probes=13, shortlist=400
    )
    assert exact.coarse is None and approximate.settings["lists"] == approximate.settings["probes"] == 13
    text, seen, _ = like_clips(np.random.default_rng(5), 6, frames)
    queries = text, seen.reshape(6, frames, -1)
    assert same(exact.search(*queries, 20), approximate.search(*queries, 20))
    assert same(exact.search(*queries, 20, ["g1", "g4"]), approximate.search(*queries, 20, ["g1", "g4"]))


def test_short_lists_find_the_most_similar_clips_and_say_how_many(tmp_path):
    index = many(tmp_path / "i", kind="approximate", frames=4, dimensions=8)
    assert index.settings["recall_at_10"] >= 0.995 and index.settings["recall_queries"] == 64
    assert json.loads((tmp_path / "i" / "index.json").read_text())["search"] == index.settings
    text, seen, _ = like_clips(np.random.default_rng(6), 50, 4)
    queries = text, seen.reshape(50, 4, -1)
    truth = index.exact(*queries, 10)
    found = index.search(*queries, 10)
    shared = [len(set(a) & set(b)) for a, b in zip(truth.tolist(), found.rows.tolist(), strict=True)]
    assert sum(shared) >= 0.97 * 500
    # Whatever is found has its exact similarity, both terms of it.
    for j, row in enumerate(found.rows[3]):
        assert found.language[3, j] == pytest.approx(index.text[row] @ text[3], abs=1e-5)
        assert found.visual[3, j] == pytest.approx((index.clip_features(row, 4) * queries[1][3]).sum(), abs=1e-4)


def test_few_probes_and_a_short_list_cost_recall(tmp_path):
    index = many(tmp_path / "i", kind="approximate", frames=4, dimensions=2, lists=40, probes=1, shortlist=10)
    assert index.settings["probes"] == 1 and index.settings["recall_at_10"] < 0.9


def test_excluded_groups_leave_as_many_clips_as_there_are(tmp_path):
    index = many(tmp_path / "i", kind="approximate", frames=4, lists=40, probes=1, shortlist=10)
    text, seen, _ = like_clips(np.random.default_rng(7), 3, 4)
    found = index.search(text, seen.reshape(3, 4, -1), 100, [f"g{n}" for n in range(4)])
    assert ((found.rows >= 0).sum(axis=1) == 80).all() and (np.sort(found.rows[:, :80]) % 5 == 4).all()
    assert (found.total[:, 80:] == -np.inf).all()


def test_kind_of_search_follows_the_number_of_clips(tmp_path, monkeypatch):
    monkeypatch.setattr("arvrm.retrieval.build.LARGE", 30)
    assert many(tmp_path / "few", 20).coarse is None
    assert many(tmp_path / "many", 40).coarse is not None
    assert many(tmp_path / "asked", 40, kind="exact").coarse is None
    with pytest.raises(ValueError, match="probes is 0"):
        SearchConfig(probes=0)


def test_exact_search_of_more_than_memory_holds_is_the_same(tmp_path, monkeypatch):
    index = many(tmp_path / "i", kind="exact")
    text, seen, _ = like_clips(np.random.default_rng(8), 5, 3)
    queries = text, seen.reshape(5, 3, -1)
    flat = index.search(*queries, 30), index.search(*queries, 30, ["g2"])
    monkeypatch.setattr("arvrm.retrieval.index.FLAT_BYTES", 0)
    again = index.search(*queries, 30), index.search(*queries, 30, ["g2"])
    assert same(flat[0], again[0]) and same(flat[1], again[1])


def test_approximate_index_is_built_from_stores_and_opened_again(tmp_path):
    store = human_store(tmp_path / "h", tasks=3, per_task=4, steps=13)
    search = SearchConfig(kind="approximate", frames=3, dimensions=10, lists=3)
    made = build_index([store], encoders(), tmp_path / "i", search=search)
    plain = build_index([store], encoders(), tmp_path / "plain", cache=tmp_path / "cache")
    again = ClipIndex.load(tmp_path / "i")
    query = plain.text[4], plain.clip_features(4, 3)
    assert same(made.search(*query, 5), again.search(*query, 5)) and same(
        made.search(*query, 5), plain.search(*query, 5)
    )
    assert (
        list(again.ids) == list(plain.ids) and not list(tmp_path.glob("*.tmp")) and not (tmp_path / "i/parts").exists()
    )


@pytest.mark.parametrize("name", ["coarse.faiss", "basis.npy", "mean.npy", "clips.npz", "text.npy"])
@pytest.mark.parametrize("how", ["cut", "changed", "gone"])
def test_damaged_files_of_an_approximate_index_are_one_line(tmp_path, name, how):
    many(tmp_path / "i", 60, kind="approximate", frames=4)
    file = tmp_path / "i" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-5] if how == "cut" else content)
    with pytest.raises(UserError, match=rf"i: is damaged .*{name}.*--overwrite") as error:
        ClipIndex.load(tmp_path / "i")
    assert "\n" not in str(error.value)


def test_large_files_are_tested_by_size_and_wholly_when_asked(tmp_path, monkeypatch):
    many(tmp_path / "i", 60, kind="approximate", frames=4)
    file = tmp_path / "i" / "frames.npy"
    content = bytearray(file.read_bytes())
    content[-2:] = np.array(np.nan, dtype=np.float16).tobytes()
    file.write_bytes(content)
    monkeypatch.setattr("arvrm.retrieval.index.TESTED_AT_LOADING", 0)
    index = ClipIndex.load(tmp_path / "i")
    with pytest.raises(UserError, match="frames.npy fails its checksum"):
        index.verify()
    with pytest.raises(UserError, match="clip 'c59' has features that are no numbers"):
        index.search(index.text[59], index.clip_features(0, 4), 60)
    file.write_bytes(content[:-1])
    with pytest.raises(UserError, match="frames.npy has"):
        ClipIndex.load(tmp_path / "i")


def test_index_of_the_first_version_is_still_read(tmp_path):
    made = build_index([human_store(tmp_path / "h", tasks=2, per_task=3)], encoders(), tmp_path / "i")
    values = json.loads((tmp_path / "i" / "index.json").read_text())
    del values["search"], values["files"]["clips.npz"]
    values |= {"version": 1, "files": {name: entry["sha256"] for name, entry in values["files"].items()}}
    lengths = np.diff(made.start).tolist()
    columns = zip(made.ids, made.store.tolist(), made.instructions, made.tasks, made.groups, lengths, strict=True)
    names = ("id", "store", "instruction", "task", "group", "frames")
    values["clips"] = [dict(zip(names, column, strict=True)) for column in columns]
    (tmp_path / "i" / "index.json").write_text(json.dumps(values))
    (tmp_path / "i" / "clips.npz").unlink()
    index = ClipIndex.load(tmp_path / "i")
    for name in ("ids", "instructions", "tasks", "groups"):
        assert list(getattr(index, name)) == list(getattr(made, name))
    assert index.start.tolist() == made.start.tolist()
    query = made.text[1], made.clip_features(1, 2)
    assert same(index.search(*query, 4), made.search(*query, 4))


def test_principal_components_are_orthonormal_and_keep_what_varies():
    rng = np.random.default_rng(0)
    scale = 2.0 ** -np.arange(60)
    rotation = np.linalg.qr(rng.normal(size=(60, 60)))[0]
    data = (rng.normal(size=(300, 60)) * scale @ rotation).astype(np.float32)
    basis = principal_components(data, 5)
    assert np.allclose(basis.T @ basis, np.eye(5), atol=1e-5)
    values = np.linalg.svd(data, compute_uv=False)
    assert np.linalg.norm(data @ basis) ** 2 == pytest.approx((values[:5] ** 2).sum(), rel=1e-4)
    assert np.array_equal(principal_components(data, 60), np.eye(60, dtype=np.float32))
