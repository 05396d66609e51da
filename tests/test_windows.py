import dataclasses
import time

import numpy as np
import pytest
import torch
from small_stores import human_episode, human_store, robot_episode, robot_store, write

from arvrm.interface import UserError
from arvrm.windows import (
    AnchorSampler,
    EpisodeTable,
    FrameBank,
    HumanWindows,
    RobotWindows,
    StoreFrames,
    TextTable,
    WindowConfig,
    choose_hand,
    decode_frames,
    few_shot,
    held_out_groups,
    mixing_shares,
    split_episodes,
)


def text_of(table):
    """Sentence i is the constant i, so that a batch shows which sentence it took."""
    count = len(table.sentences)
    text = torch.arange(count, dtype=torch.float32)[:, None, None].expand(count, 2, 4).contiguous()
    return TextTable(text, torch.ones(count, 2, dtype=torch.bool))


def robot_windows(store, **options):
    config = WindowConfig(**({"history": 2, "stride": 3, "chunk": 4} | options))
    table = EpisodeTable([store], "robot", config.stride)
    banks = [decode_frames(table, camera) for camera in ("rgb_static", "rgb_gripper")]
    return RobotWindows(table, config, text_of(table), *banks)


def human_windows(stores, keypoints=21, **options):
    config = WindowConfig(**({"history": 3, "stride": 3} | options))
    table = EpisodeTable(stores, "human", config.stride)
    return HumanWindows(table, config, keypoints, text_of(table), decode_frames(table, "rgb_static"))


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


def test_human_window_carries_the_poses_it_is_asked_to_foresee(tmp_path):
    store = write(tmp_path / "s", [human_episode("a", steps=13)])
    windows = human_windows([store])
    windows.foresee = 3
    batch = windows.batch(np.array([2]))  # the frame at step 6, followed by those at 9 and 12
    assert torch.equal(batch["future_keypoints"][0, :2], windows.keypoints[[9, 12]])
    assert batch["future_visible"][0].any(-1).tolist() == [True, True, False]
    assert torch.equal(batch["future_keypoints"][:, 0], batch["next_keypoints"])


def test_next_images_are_given_where_stored(two_robots):
    windows = robot_windows(two_robots)
    windows.next_images = True
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
