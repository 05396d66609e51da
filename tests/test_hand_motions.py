"""Motions of hands: what they do, how they are carried over, and which demonstration they name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path as File

import numpy as np
import pytest
import torch
from small_stores import human_episode, robot_store
from test_motions import CAMERA

from arvrm.cli.explain import ExplainConfig, explain
from arvrm.episodes import EpisodeStore, EpisodeWriter
from arvrm.hands.skeleton import TIPS
from arvrm.model.checkpoint import load_checkpoint, save_checkpoint
from arvrm.model.config import ModelConfig, PlacesConfig
from arvrm.model.keypoint_vlm import KeypointVLM
from arvrm.model.metadata import CheckpointMetadata
from arvrm.model.text import TextEncoder
from arvrm.moments import Moments, episode_moments
from arvrm.motions import Carrier, HandMap, Motion, Path, RetrieveConfig, Retriever, Track, fit_opening
from arvrm.motions.camera import project
from arvrm.motions.deeds import alike, deed_of_hand, deed_of_path
from arvrm.policy import load_policy
from arvrm.training import FinetuneConfig, finetune, motions
from arvrm.training.agreement import PlacesSeen
from arvrm.training.analogy_stage import AnalogyFitConfig
from arvrm.training.data import DataConfig
from arvrm.training.motions import believed
from arvrm.windows import EpisodeTable

TABLE = 0.46


def fitted() -> HandMap:
    """m that reads the tips of thumb and index finger; a gripper lies across their line."""
    position = np.zeros((3, 21))
    position[:, list(TIPS[:2])] = 0.5
    return HandMap(position, np.pi / 2, 0.1, CAMERA, 0.01, opening=7.0)


def hand(points: np.ndarray, gap_m: float, angle: np.ndarray | float = 0.0) -> np.ndarray:
    """(N, 21, 2) hands whose tips lie `gap_m` apart around points (N, 3), in a line at `angle` on the table."""
    points = np.asarray(points, np.float64)
    angle = np.broadcast_to(angle, len(points))
    across = np.stack([np.cos(angle), np.sin(angle), np.zeros(len(points))], -1) * gap_m / 2
    all_points = np.repeat(points[:, None] + [0, -0.06, 0.05], 21, 1)
    all_points[:, TIPS[0]], all_points[:, TIPS[1]] = points - across, points + across
    return project(CAMERA, all_points)


def pushed(way: np.ndarray, at: tuple[float, float] = (0.05, -0.1)) -> Track:
    """A pinched hand that stands still at a place for 20 rows and then goes a `way` (3,) in 20."""
    along = np.concatenate([np.zeros(20), np.arange(21) / 20])
    points = np.array([*at, TABLE]) + along[:, None] * np.asarray(way)
    return Track(hand(points, 0.008), 20, 40, np.eye(4)[0])


def motion(name: str, path: Path, words: np.ndarray, embodiment: str = "robot") -> Motion:
    zeros = np.zeros((2, 21, 2), np.float32), np.ones(2, np.float32), np.zeros(5, np.float32), np.zeros(2, np.float32)
    return Motion(name, embodiment, "do it", path, np.zeros(7), *zeros, np.asarray(words, np.float32))


def going(way: tuple[float, float, float], turned: float = 0.0, after: float = -1.0) -> Path:
    """A path that touches on the table, then goes a way and turns."""
    steps = np.arange(11)[:, None] / 10
    poses = np.zeros((11, 6))
    poses[:, :3] = np.array([0.05, -0.1, TABLE]) + steps * way
    poses[:, 3:] = [np.pi, 0, 1.5]
    poses[:, 5] += turned * steps[:, 0]
    return Path(poses, np.full(11, after), 0, 10, poses[0], poses[-1])


def test_a_hand_and_a_robot_that_do_the_same_have_the_same_deed():
    way = np.array([0.12, 0.0, 0.0])
    mine, other = deed_of_path(CAMERA, going(tuple(way))), deed_of_path(CAMERA, going((-0.12, 0.0, 0.0)))
    found = deed_of_hand(fitted(), pushed(way).keypoints, 20, 40)
    np.testing.assert_allclose(found, mine, atol=0.3)
    assert alike(found, mine) > 0.95 and alike(found, other) < 0.01


@pytest.mark.parametrize("turn", [-1.0, 1.0])
def test_a_hand_that_turns_tells_which_way_seen_from_above(turn):
    angle = np.concatenate([np.zeros(10), turn * np.arange(21) / 20])
    points = np.tile([0.05, -0.1, TABLE], (31, 1))
    found = deed_of_hand(fitted(), hand(points, 0.05, angle), 10, 30)
    assert found[2] == pytest.approx(turn, abs=0.05)
    np.testing.assert_allclose(found[:2], 0, atol=0.3)
    same = [float(alike(found, deed_of_path(CAMERA, going((0, 0, 0), way)))) for way in (turn, -turn)]
    assert same[0] > 0.9 and same[1] < 0.01


def test_the_opening_that_tells_open_grippers_from_closed_ones_is_found():
    rng = np.random.default_rng(0)
    gaps = np.concatenate([rng.normal(5, 0.5, 60), rng.normal(10, 0.5, 20)])
    edge, right = fit_opening(gaps, np.repeat([-1.0, 1.0], [60, 20]))
    assert 6 < edge < 9 and right == 1.0
    assert fit_opening(gaps, np.full(80, -1.0))[1] == 0.5, "closed ones alone tell nothing"
    commands = dataclasses.replace(fitted(), opening=edge).commands(hand(np.zeros((2, 3)) + [0, 0, TABLE], 0.08))
    assert commands.tolist() == [1.0, 1.0]


def test_where_a_demonstration_of_another_task_does_the_same_its_way_is_taken_to_where_the_hand_was():
    demonstrations = [
        motion("left", going((-0.1, 0.0, 0.0)), np.eye(4)[1]),
        motion("right", going((0.1, 0.0, 0.0)), np.eye(4)[2]),
    ]
    path, by = Carrier(fitted(), demonstrations).carried(pushed(np.array([0.11, 0.0, 0.0]), (0.2, -0.2)))
    assert by == "right" and len(path.poses) == 11
    np.testing.assert_allclose(path.tcp_touch[:3], [0.2, -0.2, TABLE], atol=0.005)
    np.testing.assert_allclose(path.poses[-1, :3] - path.poses[0, :3], [0.1, 0, 0], atol=1e-9)


def test_what_no_demonstration_does_is_done_the_hands_own_way_at_the_height_of_demonstrations():
    demonstrations = [motion("left", going((-0.1, 0.0, 0.0)), np.eye(4)[1])]
    way = np.array([0.0, 0.15, 0.0])
    path, by = Carrier(fitted(), demonstrations).carried(pushed(way))
    assert by == ""
    touch = path.poses[path.touch]
    np.testing.assert_allclose(touch[:3], [0.05, -0.1, TABLE], atol=0.005)
    # Pushed a little further than the hand went, and come at from behind, from above.
    np.testing.assert_allclose(path.poses[-1, :3], [0.05, -0.1 + 0.15 + 0.02, TABLE], atol=0.01)
    assert path.poses[path.touch - 1, 1] < touch[1] - 0.005 and path.poses[0, 2] > TABLE + 0.08
    assert set(path.gripper) == {-1.0}
    assert np.linalg.norm(np.diff(path.poses[: path.touch + 1, :3], axis=0), axis=1).max() < 0.02


def test_a_hand_that_closes_and_goes_grips_before_it_goes():
    points = np.array([0.05, -0.1, TABLE]) + np.concatenate([np.zeros(30), np.arange(21) / 20])[:, None] * [0.15, 0, 0]
    keypoints = np.concatenate([hand(points[:26], 0.09), hand(points[26:], 0.03)])
    track = Track(keypoints, 28, 50, np.eye(4)[0])
    path, by = Carrier(fitted(), [motion("up", going((0, 0, 0.1)), np.eye(4)[1])]).carried(track)
    assert by == "" and path.gripper[0] == 1 and path.gripper[path.touch] == -1
    gripping = path.poses[path.touch : path.touch + 8, :3]
    np.testing.assert_allclose(gripping, np.tile(gripping[0], (8, 1)), atol=1e-9)
    np.testing.assert_allclose(path.poses[-1, :3], [0.2, -0.1, TABLE], atol=0.01)


def test_what_nobody_else_does_of_whom_the_like_is_said_is_not_believed():
    left, right = going((-0.1, 0, 0)), going((0.1, 0, 0))
    motions = [motion(f"left-{n}", left, np.eye(4)[0]) for n in range(3)]
    motions += [motion("odd", right, np.eye(4)[0]), motion("alone", right, np.eye(4)[1])]
    assert [one.id for one in believed(CAMERA, motions)] == ["left-0", "left-1", "left-2", "alone"]
    assert believed(CAMERA, [motions[0], motions[3]]) == [motions[0], motions[3]], "a library is never empty"


def retriever(*motions: Motion) -> Retriever:
    return Retriever(list(motions), RetrieveConfig(), CAMERA)


def ranked(found: Retriever, words: np.ndarray) -> list[str]:
    touches = np.zeros((len(found.motions), 3))
    terms = found.terms(words, found.motion[0], found.motions[0].hand, np.zeros(7), touches, touches[:, 0])
    return [found.motions[row].id for row in found.ranked(terms)]


def said(likeness: float) -> np.ndarray:
    """Words that are so much like the first ones."""
    return np.array([likeness, np.sqrt(1 - likeness**2), 0.0, 0.0])


def test_clips_choose_between_demonstrations_of_which_the_same_is_said():
    clips = [motion(f"clip-{n}", going((0.1, 0, 0)), said(0.95), "human") for n in range(3)]
    found = retriever(
        motion("left", going((-0.1, 0, 0)), said(0.96)), motion("right", going((0.1, 0, 0)), said(0.95)), *clips
    )
    # What does the same follows, for when the first ones fail.
    assert ranked(found, said(1.0)) == ["right", "left", "clip-0", "clip-1", "clip-2"]
    assert ranked(retriever(*found.motions[:2]), said(1.0))[0] == "left"


def test_a_motion_of_a_hand_is_carried_over_only_where_no_demonstration_does_what_is_asked():
    clips = [motion(f"clip-{n}", going((0.1, 0, 0)), said(0.95), "human") for n in range(3)]
    less = said(0.85)
    does, another = motion("does", going((0.1, 0, 0)), less), motion("another", going((-0.1, 0, 0)), less)
    assert ranked(retriever(does, *clips), said(1.0))[0] == "does"
    assert set(ranked(retriever(another, *clips), said(1.0))) == {"clip-0", "clip-1", "clip-2"}
    # "To the right" is nearly "to the left" in words; what hands do of just these words tells the two apart.
    nearly, best = (motion("another", going((-0.1, 0, 0)), said(like)) for like in (0.93, 0.96))
    assert set(ranked(retriever(nearly, *clips), said(1.0))) == {"clip-0", "clip-1", "clip-2"}
    assert ranked(retriever(best, *clips), said(1.0))[0] == "another", "of its own words it is believed"
    # Of what nobody has heard, demonstrations are tried, and no clip.
    assert ranked(retriever(another, *clips), np.array([0, 0, 0, 1.0])) == ["another"]


def test_clips_of_the_same_words_that_do_not_agree_tell_nothing():
    clips = [motion(f"clip-{n}", going((way, 0, 0)), said(0.95), "human") for n, way in enumerate((-0.1, 0.1))]
    found = retriever(motion("left", going((-0.1, 0, 0)), said(0.96)), *clips)
    assert found.told(said(1.0)) is None
    assert found.told(np.array([0, 0, 0, 1.0])) is None, "of these words no clip knows"


def test_clips_of_other_sentences_come_first_and_no_more_are_looked_at_than_it_takes(tmp_path, monkeypatch):
    with EpisodeWriter(tmp_path / "clips", {"source": "test"}) as writer:
        for number, said in enumerate("aababc"):
            episode = human_episode(f"clip-{number}", steps=20, group=f"h{number}", seed=number)
            writer.append(dataclasses.replace(episode, instruction=f"wave {said}"))
    table = EpisodeTable([EpisodeStore(tmp_path / "clips")], "human", 1)
    order = motions._one_of_each(table)
    assert order == [0, 2, 5, 1, 4, 3]
    looked = []

    def touching(table, rows, finder):
        looked.extend(rows)
        return [motions.Found(row, Moments(1, 2, 1.0, 1.0)) for row in rows if row != 2]

    monkeypatch.setattr(motions, "touching", touching)
    found = motions._some_touching(table, order, 3, motions.MomentFinder())
    assert [one.row for one in found] == [0, 5, 1] and looked == [0, 2, 5, 1]
    assert len(motions._some_touching(table, order, 100, motions.MomentFinder())) == 5


def test_finetune_carries_clips_over_and_the_policy_says_when_it_follows_a_hand(tmp_path):
    torch.manual_seed(0)
    config = ModelConfig(width=32, layers=1, heads=2, places=PlacesConfig(enabled=True, channels=(8, 8, 8), words=8))
    stage1 = save_checkpoint(
        tmp_path / "hands", KeypointVLM(config), CheckpointMetadata("pretrain", 1, 1, {"rgb_static": 32})
    )
    robot_store(tmp_path / "robots", tasks=1, per_task=3)
    with EpisodeWriter(tmp_path / "clips", {"source": "test"}) as writer:
        for number in range(4):
            episode = human_episode(f"clip-{number}", steps=40, group=f"h{number}", seed=number)
            writer.append(dataclasses.replace(episode, instruction="wave at everybody"))
    camera = tmp_path / "camera.json"
    camera.write_text(json.dumps({"camera": CAMERA.tolist()}))
    fit = AnalogyFitConfig(camera=str(camera), clips=(str(tmp_path / "clips"),), clip_motions=3)
    data = DataConfig((str(tmp_path / "robots"),), validation=0)
    result = finetune(
        FinetuneConfig(str(tmp_path / "run"), motion="analogy", pretrained=str(stage1), analogy=fit, data=data), False
    )
    numbers = result.metrics["train"]
    assert numbers["hand_motions"] + numbers["hand_motions_not_believed"] <= 3
    known = load_checkpoint(result.folder).metadata.stores
    assert [File(one.path).name for one in known] == ["robots", "clips"]
    policy = load_policy(result.folder)
    hands = [one for one in policy.seer.motions if one.embodiment == "human"]
    assert hands and len(hands) == numbers["hand_motions"] and all(one.sentence == "wave at everybody" for one in hands)
    assert sum(not one.by for one in hands) == numbers["hand_motions_own_way"]
    sight = policy.seer.sight(np.zeros((96, 96, 3), np.uint8), "wave at everybody", np.zeros(7))
    assert "no demonstration: as a hand does it" in sight.notes
    assert {one.motion.embodiment for one in sight.choices} == {"human"}
    clips = EpisodeStore(tmp_path / "clips")
    seen = PlacesSeen(policy.seer.net.vlm.places, TextEncoder(), CAMERA)
    assert all(one.touched == episode_moments(clips, one.id, expected=seen).touch for one in hands)
    page = explain(
        ExplainConfig(
            str(result.folder), "wave at everybody", str(tmp_path / "a.html"), store=str(tmp_path / "clips"),
            episode="clip-0",
        )
    )  # fmt: skip
    shown = page.read_text()
    assert f"{sight.choices[0].motion.id} (human, " in shown and "as a hand does it" in shown
    assert "at its touch" in shown and "The store that clip" not in shown
