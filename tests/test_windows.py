import dataclasses
import time

import numpy as np
import pytest
import second_robot
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_stores import human_episode, human_store, robot_episode, robot_store, write

from arvrm.episodes import Episode, EpisodeStore, EpisodeWriter
from arvrm.interface import UserError
from arvrm.robots import CALVIN
from arvrm.windows import (
    Anchors,
    AnchorSampler,
    EpisodeTable,
    FrameBank,
    HumanWindows,
    LazyText,
    Names,
    RobotWindows,
    StoreFrames,
    TextTable,
    WindowConfig,
    choose_hand,
    decode_frames,
    few_shot,
    held_out_groups,
    mixing_shares,
    permuted,
    split_episodes,
    store_fingerprint,
    upgraded_window,
)


def text_of(table):
    """Sentence i is the constant i, so that a batch shows which sentence it took."""
    count = len(table.sentences)
    text = torch.arange(count, dtype=torch.float32)[:, None, None].expand(count, 2, 4).contiguous()
    return TextTable(text, torch.ones(count, 2, dtype=torch.bool))


def robot_windows(store, chunk=4, predicted=False, robot=None, **options):
    config = WindowConfig(**({"history": 2, "stride": 3} | options))
    table = EpisodeTable([store], "robot", config.stride)
    frames = {camera.role: decode_frames(table, camera.name) for camera in table.robot.cameras}
    return RobotWindows(table, config, text_of(table), frames, chunk, frames if predicted else None, robot)


def human_windows(stores, keypoints=21, horizon=1, **options):
    config = WindowConfig(**({"history": 3, "stride": 3} | options))
    table = EpisodeTable(stores, "human", config.stride)
    frames = decode_frames(table, "rgb_static")
    return HumanWindows(table, config, keypoints, text_of(table), frames, horizon=horizon)


@pytest.fixture
def two_robots(tmp_path):
    """Episodes of 10 and 8 steps, frames at steps 0 3 6 9 and 0 3 6."""
    return write(
        tmp_path / "robots",
        [robot_episode("a", steps=10), robot_episode("b", "turn_on_led", "g1", steps=8, seed=1, landmarks=False)],
    )


def test_window_holds_the_frames_states_and_chunks_of_its_steps(two_robots):
    windows = robot_windows(two_robots)
    batch = windows.batch(np.array([2]))  # episode a, step 6, with step 3 before it
    assert batch["frame_mask"].tolist() == [[True, True]]
    # x = 0.001 n; normalised with centre 0.04 and scale 0.3
    assert torch.allclose(batch["components"][0, :, 0], (torch.tensor([0.003, 0.006]) - 0.04) / 0.3)
    assert torch.allclose(batch["next_components"][0, :, 0], (torch.tensor([0.006, 0.009]) - 0.04) / 0.3)
    assert batch["next_mask"].tolist() == [[True, True]]
    expected = torch.tensor([[0.03, 0.04, 0.05, 0.06], [0.06, 0.07, 0.08, 0.09]])
    assert torch.allclose(batch["actions"][0, :, :, 0], expected)
    assert batch["action_mask"].all()
    stored = two_robots.frames("a", "rgb_static", [1, 2])
    assert np.array_equal(batch["static"][0].numpy(), stored)
    assert batch["gripper"].shape == (1, 2, 16, 16, 3)


def test_window_past_episode_start_is_masked_and_repeats_its_first_frame(two_robots):
    windows = robot_windows(two_robots, history=3)
    batch = windows.batch(np.array([5]))  # episode b, step 3
    assert batch["frame_mask"].tolist() == [[False, True, True]]
    assert torch.equal(batch["static"][0, 0], batch["static"][0, 1])
    assert not batch["action_mask"][0, 0].any() and not batch["next_mask"][0, 0]


def test_window_past_episode_end_is_masked(two_robots):
    windows = robot_windows(two_robots)
    batch = windows.batch(np.array([3, 6]))  # last frames: step 9 of 10, step 6 of 8
    assert batch["action_mask"][0, 1].tolist() == [True, False, False, False]
    assert batch["action_mask"][1, 1].tolist() == [True, True, False, False]
    assert batch["next_mask"][:, 1].tolist() == [False, False]
    # What stands behind the mask is of this episode, not the next one's first step.
    assert torch.allclose(batch["actions"][0, 1, :, 0], torch.tensor([0.09] * 4))


def test_windows_end_at_frames_only_and_at_every_frame(two_robots):
    windows = robot_windows(two_robots)
    assert windows.anchors(np.array([0, 1])).tolist() == list(range(7))
    assert windows.table.step_of_image[windows.anchors(np.array([1]))].tolist() == [10, 13, 16]


def test_frame_between_stored_frames_is_the_one_before_it_with_its_own_state(tmp_path):
    store = write(tmp_path / "s", [robot_episode("a", steps=10, every=4)])  # frames at 0 4 8
    batch = robot_windows(store).batch(np.array([2]))  # step 8; 3 steps before is step 5, shown by frame 4
    assert torch.allclose(batch["components"][0, :, 0], (torch.tensor([0.004, 0.008]) - 0.04) / 0.3)
    assert np.array_equal(batch["static"][0, 0].numpy(), store.frames("a", "rgb_static", [1])[0])


def test_text_follows_the_episode(two_robots):
    windows = robot_windows(two_robots)
    batch = windows.batch(np.array([0, 5]))
    assert batch["text"][:, 0, 0].tolist() == [0.0, 1.0]
    assert windows.table.sentences[1] == "press"


def test_landmarks_are_normalised_and_unseen_ones_masked(tmp_path):
    store = write(tmp_path / "s", [robot_episode("a", landmarks=True)])
    batch = robot_windows(store).batch(np.array([1]))
    assert torch.equal(batch["landmark_pixels"][0, :, :6], torch.zeros(2, 6, 2))
    assert batch["landmark_mask"][0, 0].tolist() == [True] * 6 + [False]
    assert torch.isfinite(batch["landmark_pixels"]).all()
    # They lie at the origin, the gripper at x = 0.001 a step; a unit is 0.2 m.
    assert torch.allclose(batch["landmark_offsets"][0, 1, 0], torch.tensor([-0.003 / 0.2, 0.0, 0.0]))


def test_past_success_the_last_action_goes_on_and_no_window_ends(tmp_path):
    episodes = [robot_episode("a", steps=10), robot_episode("b", steps=10, group="g1")]
    episodes[0].meta["success_step"] = 5
    store = write(tmp_path / "s", episodes)
    recorded = robot_windows(store)
    held = robot_windows(store, past_success="hold")
    assert recorded.anchors(np.array([0, 1])).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert held.anchors(np.array([0, 1])).tolist() == [0, 1, 4, 5, 6, 7]  # frames at steps 0 3, and 0 3 6 9 of b
    first, other = held.batch(np.array([1, 6]))["actions"][:, 1, :, 0]
    assert torch.allclose(first, torch.tensor([0.03, 0.04, 0.04, 0.04]))
    assert torch.allclose(other, torch.tensor([0.06, 0.07, 0.08, 0.09]))
    assert held.batch(np.array([1]))["action_mask"][0, 1].all()
    assert torch.allclose(recorded.batch(np.array([1]))["actions"][0, 1, :, 0], torch.tensor([0.03, 0.04, 0.05, 0.06]))
    # What the robot's state became is told as it was.
    assert torch.equal(held.batch(np.array([1]))["next_components"], recorded.batch(np.array([1]))["next_components"])


def test_human_window_normalises_keypoints(tmp_path):
    store = write(tmp_path / "s", [human_episode("a")])
    batch = human_windows([store]).batch(np.array([2]))
    stored = store.arrays("a")["keypoints"][[0, 3, 6]]
    expected = stored / np.array([16, 16, 0.1]) - np.array([1, 1, 0])
    assert np.allclose(batch["keypoints"][0].numpy(), expected, atol=1e-5)
    assert np.array_equal(batch["visible"][0].numpy(), store.arrays("a")["visible"][[0, 3, 6]])


def test_human_window_carries_the_pose_after_its_last_frame(tmp_path):
    windows = human_windows([write(tmp_path / "s", [human_episode("a", steps=8)])])  # frames at 0 3 6, no step 9
    assert windows.anchors(np.array([0])).tolist() == [0, 1]
    batch = windows.batch(np.array([1, 2]))
    assert torch.equal(batch["next_keypoints"][0], batch["keypoints"][1, -1])
    assert batch["next_visible"][0].all() and not batch["next_visible"][1].any()


def test_human_window_carries_the_poses_of_its_horizon(tmp_path):
    store = write(tmp_path / "s", [human_episode("a", steps=13)])
    windows = human_windows([store], horizon=3)
    batch = windows.batch(np.array([2]))  # the frame at step 6, followed by those at 9 and 12
    assert torch.equal(batch["future_keypoints"][0, :2], windows.keypoints[[9, 12]])
    assert batch["future_visible"][0].any(-1).tolist() == [True, True, False]
    assert torch.equal(batch["future_keypoints"][:, 0], batch["next_keypoints"])


def test_next_images_are_given_where_stored(two_robots):
    windows = robot_windows(two_robots, predicted=True)
    batch = windows.batch(np.array([2, 3]))
    assert batch["next_image_mask"].tolist() == [[True, True], [True, False]]
    assert torch.equal(batch["next_static"][0, 1], batch["static"][1, 1])


def test_play_without_instruction_is_left_out(tmp_path):
    play = dataclasses.replace(robot_episode("p", group="g9"), instruction="", task="")
    table = EpisodeTable([write(tmp_path / "s", [robot_episode("a"), play])], "robot", 3)
    assert table.ids == ["a"]


def test_stride_is_a_time_for_stores_at_another_rate(tmp_path):
    store = write(tmp_path / "s", [human_episode("a", fps=10.0, every=1, steps=6)])
    table = EpisodeTable([store], "human", stride=6)  # 0.2 s: two steps at 10 Hz
    rows, mask = table.window_frames(np.array([5]), 3)
    assert rows.tolist() == [[1, 3, 5]] and mask.all()


def test_of_two_hands_the_moving_one_is_kept(tmp_path):
    store = write(tmp_path / "s", [human_episode("a", hands=2)])
    arrays = store.arrays("a")
    keypoints, visible = choose_hand(arrays["keypoints"], arrays["visible"], 21)
    assert np.array_equal(keypoints, arrays["keypoints"][:, 21:])
    swapped = np.concatenate([keypoints, arrays["keypoints"][:, :21]], axis=1)
    swapped_visible = np.concatenate([visible, arrays["visible"][:, :21]], axis=1)
    assert np.array_equal(choose_hand(swapped, swapped_visible, 21)[0], keypoints)


def test_missing_hand_is_invisible(tmp_path):
    arrays = human_episode("a").arrays
    keypoints, visible = choose_hand(arrays["keypoints"], arrays["visible"], 42)
    assert keypoints.shape[1] == 42 and not visible[:, :21].any()
    assert np.array_equal(visible[:, 21:], arrays["visible"])


def test_split_never_shares_a_group_and_does_not_depend_on_order(tmp_path):
    episodes = [robot_episode(f"e{n}", group=f"chain{n // 3}", steps=4, seed=n) for n in range(18)]
    table = EpisodeTable([write(tmp_path / "s", episodes)], "robot", 3)
    train, validation = split_episodes(table, 0.3, seed=1)
    groups = [{table.groups[g] for g in table.group[part]} for part in (train, validation)]
    assert not groups[0] & groups[1] and len(groups[1]) == 2 and len(train) + len(validation) == 18
    assert held_out_groups(table.groups[::-1], 0.3, 1) == held_out_groups(table.groups, 0.3, 1)
    assert len({held_out_groups(table.groups, 0.3, seed) for seed in range(8)}) > 1


def test_single_group_cannot_be_split(tmp_path):
    with pytest.raises(UserError, match="one group"):
        held_out_groups(["g", "g"], 0.1, 0)


def test_few_shot_keeps_n_episodes_a_task_and_larger_n_a_superset(tmp_path):
    table = EpisodeTable([robot_store(tmp_path / "s", tasks=3, per_task=5, steps=4)], "robot", 3)
    everything = np.arange(len(table))
    small, large = few_shot(table, everything, 2, seed=0), few_shot(table, everything, 4, seed=0)
    assert np.bincount(table.task[small]).tolist() == [2, 2, 2]
    assert np.bincount(table.task[large]).tolist() == [4, 4, 4]
    assert set(small) <= set(large)


def test_mixing_weights_and_task_balance_are_respected(tmp_path):
    first = robot_store(tmp_path / "first", tasks=2, per_task=1, steps=10)
    second = write(
        tmp_path / "second",
        [robot_episode(f"z{n}", steps=25, group=f"z{n}") for n in range(3)]
        + [robot_episode("y", "turn_on_led", "y", steps=4)],
    )
    table = EpisodeTable([first, second], "robot", 3)
    anchors = np.arange(len(table.step_of_image))
    weights = mixing_shares(table, anchors, [3.0, 1.0])
    sampler = AnchorSampler(table, anchors, weights, seed=5)
    drawn = np.concatenate([sampler.draw(step, 64) for step in range(200)])
    episode = table.episode_of_image[drawn]
    assert abs((table.store[episode] == 0).mean() - 0.75) < 0.01
    led = table.tasks.index("turn_on_led")
    in_second = table.store[episode] == 1
    # A single short episode of the second task weighs as much as three long ones of the first.
    assert abs((table.task[episode][in_second] == led).mean() - 0.5) < 0.02


def test_draws_depend_on_seed_and_step_alone(tmp_path):
    table = EpisodeTable([robot_store(tmp_path / "s")], "robot", 3)
    anchors = np.arange(len(table.step_of_image))
    weights = mixing_shares(table, anchors)
    one, other = (AnchorSampler(table, anchors, weights, seed=3) for _ in range(2))
    one.draw(0, 8)
    assert np.array_equal(one.draw(7, 8), other.draw(7, 8))
    assert not np.array_equal(one.draw(7, 8), one.draw(8, 8))
    assert not np.array_equal(AnchorSampler(table, anchors, weights, 4).draw(7, 8), one.draw(7, 8))


def test_wrong_number_of_weights_is_named(tmp_path):
    table = EpisodeTable([robot_store(tmp_path / "s")], "robot", 3)
    with pytest.raises(UserError, match="2 given for 1 stores"):
        mixing_shares(table, np.arange(3), [1.0, 1.0])


def test_store_of_the_other_embodiment_is_refused(tmp_path):
    with pytest.raises(UserError, match="no human episode"):
        EpisodeTable([robot_store(tmp_path / "s")], "human", 3)


def test_frames_on_demand_equal_decoded_frames(tmp_path):
    stores = [robot_store(tmp_path / "a", per_task=1), robot_store(tmp_path / "b", per_task=2)]
    table = EpisodeTable(stores, "robot", 3)
    rows = np.array([[0, 9], [17, 9]])
    decoded = decode_frames(table, "rgb_static").take(rows)
    assert np.array_equal(StoreFrames(table, "rgb_static").take(rows), decoded)
    small = StoreFrames(table, "rgb_static", size=16).take(rows)
    assert small.shape == (2, 2, 16, 16, 3)
    assert np.array_equal(small, decode_frames(table, "rgb_static", size=16).take(rows))


def test_frame_cache_is_used_once_written_and_follows_the_store(tmp_path):
    store = robot_store(tmp_path / "s")
    calls = []

    def compute(frames):
        calls.append(len(frames))
        return frames.mean(axis=(1, 2)).astype(np.float16)

    table = EpisodeTable([store], "robot", 3)
    first = decode_frames(table, "rgb_static", cache=tmp_path / "cache", compute=compute, key="mean")
    count = len(calls)
    again = decode_frames(table, "rgb_static", cache=tmp_path / "cache", compute=compute, key="mean")
    assert count == len(table) == len(calls)
    assert np.array_equal(first.take(np.arange(5)), again.take(np.arange(5)))
    decode_frames(table, "rgb_static", cache=tmp_path / "cache", compute=compute, key="other")
    assert len(calls) == 2 * count
    other = EpisodeTable([human_store(tmp_path / "h")], "human", 3)
    decode_frames(other, "rgb_static", cache=tmp_path / "cache", compute=compute, key="mean")
    assert len(calls) == 2 * count + len(other)
    assert not list((tmp_path / "cache").glob("*.tmp"))


def test_frame_bank_gathers_across_parts():
    parts = [np.arange(6, dtype=np.uint8).reshape(3, 2), np.arange(6, 12, dtype=np.uint8).reshape(3, 2)]
    bank = FrameBank(parts)
    rows = np.array([[5, 0], [3, 2]])
    assert np.array_equal(bank.take(rows), np.concatenate(parts)[rows])


def test_batch_of_128_assembles_in_10_ms(tmp_path):
    store = robot_store(tmp_path / "s", tasks=3, per_task=10, steps=60, size=96)
    windows = robot_windows(store, chunk=10)
    anchors = windows.anchors(np.arange(len(windows.table)))
    sampler = AnchorSampler(windows.table, anchors, mixing_shares(windows.table, anchors), seed=0)
    times = []
    for step in range(20):
        start = time.perf_counter()
        windows.batch(sampler.draw(step, 128))
        times.append(time.perf_counter() - start)
    assert min(times) < 0.010, f"{min(times) * 1e3:.1f} ms"  # the machine may be busy otherwise


# ---------------------------------------------------------------------------------------------------------------------
# Many frames
# ---------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.text(alphabet="aZ é漢", max_size=6), max_size=12))
@settings(max_examples=50, deadline=None)
def test_names_are_what_was_put_in(strings):
    names = Names.of(strings)
    assert names == strings and list(names) == strings and [names[i] for i in range(len(names))] == strings
    assert names[1:] == strings[1:] and Names.joined([names, names]) == strings + strings
    assert names != [*strings, "more"]


def uneven_table(tmp_path, embodiment="robot"):
    """Two stores, episodes of unlike length and spacing of frames, one of which begins late; and one of play."""
    make = robot_episode if embodiment == "robot" else human_episode
    first = [make(f"a{n}", group=f"a{n}", steps=5 + 3 * n, every=1 + n) for n in range(4)]
    late = make("late", "turn_on_led", "late", steps=12, every=4)
    late = dataclasses.replace(late, image_steps=late.image_steps + 2)
    play = dataclasses.replace(make("play", group="play", steps=9), instruction="", task="")
    stores = [write(tmp_path / "one", [*first, play]), write(tmp_path / "two", [late, make("z", "turn_on_led", "z")])]
    return EpisodeTable(stores, embodiment, 3)


def test_looked_up_columns_equal_the_ones_written_out(tmp_path):
    table = uneven_table(tmp_path)
    episode, step_of_image, image_of_step = [], [], []
    for number in range(len(table)):
        header = table.header(number)
        first = len(episode)
        for step in range(header.steps):
            shown = [i for i, at in enumerate(header.image_steps) if at <= step]
            image_of_step.append(first + (shown[-1] if shown else 0))
        step_of_image += [int(table.step_start[number]) + int(at) for at in header.image_steps]
        episode += [number] * header.frames
    assert np.asarray(table.episode_of_image).tolist() == episode and len(table.episode_of_image) == table.frames
    assert np.asarray(table.step_of_image).tolist() == step_of_image
    assert np.asarray(table.image_of_step).tolist() == image_of_step and len(image_of_step) == table.steps
    assert table.step_of_image[np.array([[3, 1]])].tolist() == [[step_of_image[3], step_of_image[1]]]


def test_anchors_are_their_rows(tmp_path):
    table = uneven_table(tmp_path, "human")
    text = TextTable(torch.zeros(2, 1, 4), torch.ones(2, 1, dtype=torch.bool))
    windows = HumanWindows(table, WindowConfig(history=2), 21, text, None)
    chosen = np.array([5, 1, 3])
    rows = [
        row
        for row in range(table.frames)
        if table.episode_of_image[row] in chosen
        and table.step_of_image[row] + 3 < table.step_start[table.episode_of_image[row] + 1]
    ]
    anchors = windows.anchors(chosen)
    assert anchors.tolist() == rows == list(anchors) and len(anchors) == len(rows) and anchors[-1] == rows[-1]
    assert np.asarray(anchors)[::2].tolist() == anchors[::2].tolist()
    again = Anchors.of(table, np.array(rows))
    assert again.tolist() == rows and len(again.first) == len(anchors.first)
    assert len(windows.anchors(np.zeros(0, dtype=np.int64))) == 0


def draws_by_definition(table, anchors, weights, seed, step, batch):
    """One anchor from each of `batch` equal parts of the cumulated weights, in order of store, task and time."""
    episode = table.episode_of_image[anchors]
    order = np.lexsort((anchors, table.task[episode], table.store[episode]))
    cumulated = np.cumsum(weights[order])
    rng = np.random.default_rng([seed, step])
    points = (np.arange(batch) + rng.random(batch)) / batch
    rows = np.searchsorted(cumulated / cumulated[-1], points, side="right")
    return rng.permutation(anchors[order][np.minimum(rows, len(anchors) - 1)])


@pytest.mark.parametrize("balance", [True, False])
@pytest.mark.parametrize("weights", [None, [3.0, 1.0], [0.0, 1.0]])
def test_draws_from_runs_equal_draws_from_a_weight_for_every_window(tmp_path, weights, balance):
    table = uneven_table(tmp_path)
    anchors = np.arange(table.frames)
    store, task = table.store[table.episode_of_image[anchors]], table.task[table.episode_of_image[anchors]]
    share = np.bincount(store) / len(anchors) if weights is None else np.array(weights) / sum(weights)
    each = np.zeros(len(anchors))
    for s in range(2):
        tasks = np.unique(task[store == s]) if balance else [None]
        for t in tasks:
            here = (store == s) & (True if t is None else task == t)
            each[here] = share[s] / len(tasks) / here.sum()
    sampler = AnchorSampler(table, anchors, mixing_shares(table, anchors, weights, balance), seed=2)
    for step in range(50):
        assert np.array_equal(sampler.draw(step, 7), draws_by_definition(table, anchors, each, 2, step, 7))
    found = dict(zip(*sampler.weights(), strict=True))
    assert all(found.get(anchor, 0) == pytest.approx(weight) for anchor, weight in zip(anchors, each, strict=True))


@given(st.integers(1, 2000), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_keyed_permutation_is_a_bijection(length, key):
    places = permuted(np.arange(length), length, np.uint64(key))
    assert np.array_equal(np.sort(places), np.arange(length))
    assert permuted(np.array([length - 1]), length, np.uint64(key))[0] == places[-1]


def test_keyed_permutations_differ_by_their_keys():
    orders = {tuple(permuted(np.arange(50), 50, np.uint64(key))) for key in range(40)}
    assert len(orders) == 40


def test_epoch_brings_every_window_before_one_comes_again(tmp_path):
    table = EpisodeTable([robot_store(tmp_path / "s", tasks=2, per_task=4, steps=61)], "robot", 3)
    anchors = np.arange(table.frames)  # 168
    sampler = AnchorSampler(table, anchors, mixing_shares(table, anchors), seed=1, order="epochs")
    batch, length = 16, 11
    epochs = [[sampler.draw(length * epoch + step, batch) for step in range(length)] for epoch in range(3)]
    for epoch in epochs:
        counts = np.bincount(np.concatenate(epoch), minlength=table.frames)
        assert counts.min() == 1 and counts.max() <= 2 and (counts == 2).sum() == batch * length - table.frames
    assert not np.array_equal(np.sort(epochs[0][0]), np.sort(epochs[1][0]))
    # A batch is spread over the data as a random one is: one window from each sixteenth.
    assert all(np.unique(np.sort(drawn) * batch // table.frames).size >= batch - 2 for drawn in epochs[0])


@given(st.lists(st.floats(0.05, 5), min_size=2, max_size=2), st.integers(1, 23), st.integers(0, 9), st.booleans())
@settings(max_examples=25, deadline=None)
def test_epoch_gives_every_window_its_weight_to_less_than_one_draw(tmp_path_factory, weights, batch, seed, balance):
    table = EPOCH_TABLE.get("table") or uneven_table(tmp_path_factory.mktemp("epochs"))
    EPOCH_TABLE["table"] = table
    anchors = np.arange(table.frames)
    shares = mixing_shares(table, anchors, weights, balance)
    sampler = AnchorSampler(table, anchors, shares, seed, "epochs")
    length = -(-table.frames // batch)
    for epoch in (0, 5):
        drawn = np.concatenate([sampler.draw(epoch * length + step, batch) for step in range(length)])
        counts = np.bincount(drawn, minlength=table.frames)
        for anchor, weight in zip(*sampler.weights(), strict=True):
            assert abs(counts[anchor] - weight * length * batch) < 1 + 1e-6


EPOCH_TABLE = {}


@pytest.mark.parametrize("order", ["random", "epochs"])
def test_draws_of_a_step_need_no_step_before_it(tmp_path, order):
    table = uneven_table(tmp_path)
    anchors = np.arange(table.frames)
    one, other = (AnchorSampler(table, anchors, mixing_shares(table, anchors, [1.0, 2.0]), 3, order) for _ in range(2))
    whole = [one.draw(step, 6) for step in range(20)]
    for step in (19, 0, 7):
        assert np.array_equal(other.draw(step, 6), whole[step])


@pytest.mark.parametrize("hands", [1, 2])
def test_keypoints_read_on_demand_are_those_in_memory(tmp_path, hands):
    first = write(tmp_path / "a", [human_episode(f"a{n}", steps=9 + 4 * n, hands=hands, seed=n) for n in range(3)])
    second = write(tmp_path / "b", [human_episode("b", steps=20, size=64, fps=15.0)])
    table = EpisodeTable([first, second], "human", 3)
    memory, disk = (
        HumanWindows(table, WindowConfig(history=3), 21, text_of(table), None, in_memory=held) for held in (True, False)
    )
    assert memory.keypoints is not None and disk.keypoints is None
    anchors = np.array([table.frames - 1, 0, 4, 4, 9])
    one, other = memory.batch(anchors), disk.batch(anchors)
    assert set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)
    for a, b in zip(memory.future(anchors, 4), disk.future(anchors, 4), strict=True):
        assert torch.equal(a, b)


def test_sentences_embedded_on_demand_are_those_of_the_table():
    lengths = [2, 3, 1]

    def tokens(sentences):
        counts = [lengths[int(sentence)] for sentence in sentences]
        mask = torch.arange(max(counts))[None] < torch.tensor(counts)[:, None]
        text = torch.tensor([float(sentence) + 1 for sentence in sentences])[:, None, None] * mask[..., None]
        return text.expand(-1, -1, 2).contiguous(), mask

    table, lazy = TextTable(*tokens(["0", "1", "2"])), LazyText(["0", "1", "2"], tokens, 3)
    for rows in ([0, 2, 2, 0], [[1, 0], [2, 2]]):
        for one, other in zip(table.take(np.array(rows)), lazy.take(np.array(rows)), strict=True):
            assert torch.equal(one, other)


def test_headers_are_kept_as_arrays_and_follow_the_store(tmp_path, monkeypatch):
    monkeypatch.setattr("arvrm.windows.headers._KEPT_FROM", 1)
    cache, store = tmp_path / "cache", robot_store(tmp_path / "s")
    plain = EpisodeTable([store], "robot", 3)
    EpisodeTable([store], "robot", 3, cache)
    (file,) = cache.iterdir()

    def known(table):
        names = (list(table.ids), table.tasks, list(table.sentences), list(table.groups), table.task.tolist())
        return (
            *names,
            np.asarray(table.step_of_image).tolist(),
            table.static_size.tolist(),
            table.frame_stride.tolist(),
        )

    with monkeypatch.context() as patch:
        patch.setattr(EpisodeStore, "headers", lambda _: pytest.fail("read the headers again"))
        again = EpisodeStore(tmp_path / "s")
        assert known(EpisodeTable([again], "robot", 3, cache)) == known(plain)
        assert store_fingerprint(again) == store_fingerprint(store)
    file.write_bytes(file.read_bytes()[:-100])
    assert known(EpisodeTable([EpisodeStore(tmp_path / "s")], "robot", 3, cache)) == known(plain)
    before = store_fingerprint(store)
    store.close()
    with EpisodeWriter(tmp_path / "s", {"source": "test"}, resume=True, jpeg_quality=95) as writer:
        writer.append(robot_episode("new", group="new"))
    table = EpisodeTable([EpisodeStore(tmp_path / "s")], "robot", 3, cache)
    assert "new" in table.ids and store_fingerprint(table.stores[0]) != before
    assert not list(cache.glob("*.tmp*"))


def test_stores_of_one_entry_are_mixed_like_one_store(tmp_path):
    stores = [
        write(tmp_path / name, [robot_episode(name, task, name, steps=steps)])
        for name, task, steps in (("a", "open_drawer", 30), ("b", "turn_on_led", 9), ("c", "open_drawer", 12))
    ]
    table = EpisodeTable(stores, "robot", 3, entries=[0, 0, 1])
    shares = mixing_shares(table, np.arange(table.frames), [3.0, 1.0])
    assert shares.tolist() == [[0.375, 0.375], [0.25, 0.0]]
    with pytest.raises(UserError, match="3 given for 2 stores"):
        mixing_shares(table, np.arange(table.frames), [1.0, 1.0, 1.0])


def test_a_window_has_the_cameras_that_it_is_given(two_robots):
    table = EpisodeTable([two_robots], "robot", 3)
    frames = {"static": decode_frames(table, "rgb_static"), "wrist": decode_frames(table, "rgb_gripper")}
    anchors, config = np.array([2, 5]), WindowConfig()
    one = RobotWindows(table, config, text_of(table), {"static": frames["static"]}, 4).batch(anchors)
    two = RobotWindows(table, config, text_of(table), frames, 4, {"wrist": frames["wrist"]}).batch(anchors)
    assert set(two) - set(one) == {"wrist", "next_wrist", "next_image_mask"}
    assert torch.equal(one["static"], two["static"]) and two["wrist"].shape[2:] == two["next_wrist"].shape[2:]


def test_features_stand_beside_images_of_another_camera(two_robots):
    table = EpisodeTable([two_robots], "robot", 3)
    means = decode_frames(table, "rgb_static", compute=lambda frames: frames.mean(axis=(1, 2)))
    frames = {"static": means, "gripper": StoreFrames(table, "rgb_gripper")}
    batch = RobotWindows(table, WindowConfig(), text_of(table), frames, 4).batch(np.array([2]))
    assert batch["static_features"].shape == (1, 2, 3) and batch["gripper"].dtype == torch.uint8
    with pytest.raises(ValueError, match="predicts images"):
        RobotWindows(table, WindowConfig(), text_of(table), frames, 4, predicted=frames)


def test_states_are_normalised_by_the_statistics_of_the_robot_that_is_given(two_robots):
    given = CALVIN.with_statistics(dataclasses.asdict(CALVIN.statistics) | {"position_centre": [0.5, 0.0, 0.0]})
    own, other = robot_windows(two_robots), robot_windows(two_robots, robot=given)
    difference = own.components[:, 0] - other.components[:, 0]
    assert torch.allclose(difference, torch.tensor((0.5 - 0.04) / 0.3))
    assert torch.equal(own.actions, other.actions)


def test_another_robot_than_the_stores_is_refused(two_robots):
    with pytest.raises(UserError, match=r"robots: holds episodes of calvin, the network is for arm"):
        robot_windows(two_robots, robot=dataclasses.replace(CALVIN, name="arm"))


def test_an_array_that_some_episode_lacks_is_not_observed(tmp_path):
    episodes = [robot_episode("a"), robot_episode("b", group="g1")]
    del episodes[1].arrays["target_pose"]
    windows = robot_windows(write(tmp_path / "s", episodes))
    assert (windows.state[:, -6:] == 0).all(), "without a target the target is where the gripper is"


def test_images_of_several_sizes_are_refused_unless_they_are_resized(tmp_path):
    episodes = [robot_episode("a"), robot_episode("b", group="g1", size=16)]
    table = EpisodeTable([write(tmp_path / "s", episodes)], "robot", 3)
    for read in (decode_frames, lambda *of: StoreFrames(*of).take(np.arange(table.frames))):
        with pytest.raises(UserError, match="give stores whose images have one size"):
            read(table, "rgb_static")
    assert decode_frames(table, "rgb_static", size=24).shape == (24, 24, 3)


def test_the_cache_keeps_resized_images_apart_from_those_of_earlier_versions(tmp_path):
    table = EpisodeTable([write(tmp_path / "s", [robot_episode("a")])], "robot", 3)
    sizes = {None: "stored", 32: "32", 16: "16px"}  # stored are 32 pixels: only these were the same before
    for size, name in sizes.items():
        decode_frames(table, "rgb_static", size, tmp_path / name)
        (file,) = (tmp_path / name).iterdir()
        assert file.name == f"{store_fingerprint(table.stores[0])}-robot-rgb_static-{name}.npy"


def test_windows_of_older_files_are_read():
    old = {"history": 3, "stride": 2, "chunk": 4, "image_ahead": 5, "past_success": "hold"}
    old |= {"image_size": None, "gripper_size": None}
    new = {"history": 3, "stride": 2, "image_horizon": 5, "past_success": "hold"}
    for chunk, values in ((4, old), (None, old), (4, new)):
        assert upgraded_window(values, chunk, "file") == new
    assert WindowConfig(**new).image_horizon == 5


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("chunk", 5, "run.json: window.chunk 5 is not the model's 4"),
        ("image_size", 64, "run.json: window.image_size 64 is no longer supported"),
        ("gripper_size", 32, "run.json: window.gripper_size 32 is no longer supported"),
    ],
)
def test_windows_of_older_files_that_mean_something_else_are_refused(key, value, message):
    with pytest.raises(UserError, match=message):
        upgraded_window({"history": 2, key: value}, 4, "run.json")


def test_windows_of_another_robot_have_its_rate_cameras_and_encodings(tmp_path):
    robot, store = second_robot.ROBOT, second_robot.store(tmp_path / "s")
    windows = robot_windows(store, chunk=2, predicted=True)
    assert windows.table.robot is robot and windows.table.frame_stride.tolist() == [3] * 6, "three steps of its 20 Hz"
    assert windows.table.static_size.tolist() == [[32, 32]] * 6
    batch = windows.batch(np.array([2]))  # step 6 of the first episode, and step 3
    arrays = store.arrays(windows.table.ids[0])
    rows = [3, 6]
    assert np.array_equal(batch["state"][0].numpy(), robot.encode_state({"state": arrays["state"][rows]}))
    assert np.array_equal(batch["components"][0].numpy(), batch["state"][0].numpy())
    chunks = np.stack([arrays["actions"][row : row + 2] for row in rows])
    assert np.array_equal(batch["actions"][0].numpy(), robot.encode_actions(chunks))
    assert not np.array_equal(robot.encode_actions(chunks), chunks)
    for camera in robot.cameras:
        stored = store.frames(windows.table.ids[0], camera.name, [1, 2])
        assert np.array_equal(batch[camera.role][0].numpy(), stored) and f"next_{camera.role}" in batch
    one = robot_windows(second_robot.store(tmp_path / "one", second_robot.ONE_CAMERA)).batch(np.array([2]))
    assert one["actions"].shape == (1, 2, 4, 2) and "static" in one and "wrist" not in one


def test_two_robots_in_one_table_are_refused(tmp_path):
    stores = [robot_store(tmp_path / "a"), second_robot.store(tmp_path / "b")]
    with pytest.raises(UserError, match=r"a holds episodes of calvin, .*b of four-joints; give stores of one robot"):
        EpisodeTable(stores, "robot", 3)
    people = EpisodeTable([human_store(tmp_path / "h")], "human", 3)
    assert people.robot is None


@pytest.mark.parametrize("fps", [24.0, 25.0, 29.97, 30.0, 50.0, 59.94])
def test_frames_of_a_window_are_a_tenth_of_a_second_apart_at_any_rate(tmp_path, fps):
    steps = round(3 * fps)
    spacing = max(1.0, fps / 10)
    image_steps = np.unique(np.ceil(np.arange(0, steps / spacing) * spacing - 1e-6).astype(np.int32))
    image_steps = image_steps[image_steps < steps]
    images = np.zeros((len(image_steps), 16, 16, 3), np.uint8)
    keypoints = np.zeros((steps, 21, 3), np.float32)
    episode = Episode(
        id="a", embodiment="human", instruction="push", task="", scene="", source="test", group="a", fps=fps,
        arrays={"keypoints": keypoints, "visible": np.ones((steps, 21), bool)}, images={"rgb_static": images},
        image_steps=image_steps,
    )  # fmt: skip
    with EpisodeWriter(tmp_path / "s", {}) as writer:
        writer.append(episode)
    table = EpisodeTable([EpisodeStore(tmp_path / "s")], "human", stride=3)
    anchors = np.arange(9, table.frames)
    rows, mask = table.window_frames(anchors, 10)
    seconds = table.step_of_image[rows] / fps
    assert mask.all()
    wanted = seconds[:, -1:] - 0.1 * np.arange(9, -1, -1)
    assert np.abs(seconds - wanted).max() <= 1.01 / fps and (np.diff(seconds, axis=1) > 0).all()
    ahead = table.steps_ahead(np.zeros(1, np.int64), np.arange(1, 11)) / fps
    assert np.abs(ahead - 0.1 * np.arange(1, 11)).max() <= 0.51 / fps
