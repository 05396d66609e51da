import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from fake_hands import hand_video, shape
from page_code import write_files
from PIL import Image
from test_corpora import write_egodex
from video_files import write_video

from arvrm.cli import main
from arvrm.config import from_dict
from arvrm.episodes import EpisodeStore, inspect_store, merge_stores
from arvrm.hands.coordinates import DEPTH_SCALES
from arvrm.hands.detect import MediaPipeDetector
from arvrm.hands.gripper import in_world, poses
from arvrm.interface import UserError
from arvrm.sources.clips import Square
from arvrm.sources.human import ConvertHumanConfig, convert_human

BLOB = "fake_hands:BlobDetector"
TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def detectors_are_found(monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS))


def convert(folder, output, **changes):
    settings = {"source": "folder", "input": str(folder), "output": str(output), "detector": BLOB, "workers": 1}
    return convert_human(from_dict(ConvertHumanConfig, settings | {"image_size": 96} | changes))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Eight clips in two videos."""
    folder = tmp_path_factory.mktemp("clips")
    rows = ["file,start,end,text"]
    for name in ("eins ä.mp4", "zwei.mkv"):
        hand_video(folder / name, frames=24)
        rows += [f"{name},{start:.1f},{start + 0.6:.1f},push the block {start}" for start in (0, 0.5, 1.0, 1.5)]
    (folder / "annotations.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder


def records(store):
    return {id: store.encoded(id) for id in store.ids}


# What is stored ------------------------------------------------------------------------------------------------------


def test_a_video_becomes_a_human_episode(tmp_path):
    (tmp_path / "v").mkdir()
    hand_video(tmp_path / "v" / "push the block.mp4", frames=24)
    report = convert(tmp_path / "v", tmp_path / "s")
    assert (report.episodes, report.steps, report.errors, report.poor) == (1, 24, {}, {})
    store = EpisodeStore(tmp_path / "s")
    episode = store.episode(store.ids[0])
    assert episode.embodiment == "human" and episode.instruction == "push the block" and episode.fps == 10.0
    assert episode.arrays["keypoints"].shape == (24, 21, 3) and episode.images["rgb_static"].shape == (24, 96, 96, 3)
    assert store.manifest["complete"] and episode.meta["hand"] == "right"
    assert episode.meta["quality"]["detection_rate"] == 1.0
    # The video is 128 x 96: the crop begins at u = 16. The blob's middle is at u = 46 + 2 n, v = 54.
    wrist = episode.arrays["keypoints"][:, 0]
    assert wrist[:, :2] == pytest.approx(np.stack([30 + 2.0 * np.arange(24), np.full(24, 54)], axis=1), abs=0.6)
    bright = np.argwhere(episode.images["rgb_static"][10].min(-1) > 200)
    assert bright.mean(0) + 0.5 == pytest.approx(wrist[10, 1::-1], abs=0.7)
    assert episode.arrays["visible"][:10].all()
    middle = episode.arrays["keypoints"][10, 9, :2] - wrist[10, :2]
    assert middle == pytest.approx(shape(96 / 6)[9, :2], abs=0.1)


def test_both_hands_are_stored_left_then_right_on_request(tmp_path, clips):
    report = convert(clips, tmp_path / "s", hands="both")
    store = EpisodeStore(tmp_path / "s")
    arrays = store.arrays(store.ids[0])
    assert report.episodes == 8 and arrays["keypoints"].shape == (6, 42, 3)
    assert not arrays["visible"][:, :21].any() and arrays["visible"][:, 21:].any()


def test_a_fast_video_is_resampled_and_a_slow_one_keeps_its_rate(tmp_path):
    (tmp_path / "v").mkdir()
    hand_video(tmp_path / "v" / "fast.mp4", frames=36, fps=60)
    hand_video(tmp_path / "v" / "slow.mp4", frames=12, fps=12)
    convert(tmp_path / "v", tmp_path / "s", fps=30.0)
    store = EpisodeStore(tmp_path / "s")
    fast, slow = store.header("fast.mp4"), store.header("slow.mp4")
    assert (fast.fps, fast.steps, fast.image_steps.tolist()) == (30.0, 18, [0, 3, 6, 9, 12, 15])
    assert slow.fps == pytest.approx(12, rel=1e-3) and (slow.steps, slow.frames) == (12, 10)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (45, 80), (7, 31)])
@pytest.mark.parametrize("fit", ["crop", "letterbox"])
def test_points_move_exactly_as_pixels_do(height, width, fit):
    square = Square.of(height, width, 2 * (min if fit == "crop" else max)(height, width), fit)
    v, u = height // 2, width // 2
    image = np.zeros((height, width, 3), np.uint8)
    image[v, u] = 255
    found = np.argwhere(square.image(image)[..., 0] > 100) + 0.5
    point = square.points(np.array([[u + 0.5, v + 0.5, 0.25]]))[0]
    assert found.mean(0) == pytest.approx(point[1::-1], abs=1e-6) and point[2] == 0.25


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (50, 67), (40, 40)])
@pytest.mark.parametrize("size", [16, 64, 100])
def test_letterbox_is_the_image_between_black_bars_reduced(height, width, size):
    image = np.random.default_rng(height + size).integers(0, 256, (height, width, 3), dtype=np.uint8)
    side = max(height, width)
    top, left = (side - height + 1) // 2, (side - width + 1) // 2
    padded = np.zeros((side, side, 3), np.uint8)
    padded[top : top + height, left : left + width] = image
    wanted = np.asarray(Image.fromarray(padded).resize((size, size), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(Square.of(height, width, size, "letterbox").image(image), wanted)


def test_letterbox_keeps_the_whole_image(tmp_path):
    (tmp_path / "v").mkdir()
    hand_video(tmp_path / "v" / "a.mp4")
    convert(tmp_path / "v", tmp_path / "s", fit="letterbox", image_size=128)
    image = EpisodeStore(tmp_path / "s").frames("a.mp4", "rgb_static", [0])[0]
    assert image[:14].max() < 20 and image[-14:].max() < 20 and image[20:40].min() > 40


def test_rotated_videos_are_stored_upright_with_their_points(tmp_path):
    (tmp_path / "v").mkdir()
    pictures = []
    for number in range(12):
        image = np.full((96, 128, 3), 60, np.uint8)
        image[20:32, 40 + 2 * number : 52 + 2 * number] = 255
        pictures.append(image)
    write_video(tmp_path / "v" / "a.mp4", pictures, rotation=90)
    convert(tmp_path / "v", tmp_path / "s", max_truncation=1.0)
    wrist = EpisodeStore(tmp_path / "s").arrays("a.mp4")["keypoints"][:, 0, :2]
    # Turned counterclockwise: u' = v, v' = 127 - u; the crop of 96 x 128 begins at v = 16.
    assert wrist[0] == pytest.approx((26, 128 - 46 - 16), abs=0.7)
    assert wrist[-1, 1] < wrist[0, 1] - 15


def test_egodex_needs_no_detector(tmp_path):
    attributes = {"llm_description": "Push the cup.", "session_name": "s1"}
    write_egodex(tmp_path / "v/push/0.hdf5", frames=12, attributes=attributes, move=0.01)
    write_video(tmp_path / "v/push/0.mp4", [np.full((54, 96, 3), 90, np.uint8)] * 12, 30)
    report = convert(tmp_path / "v", tmp_path / "s", source="egodex", detector="no.such:Thing", image_size=54)
    store = EpisodeStore(tmp_path / "s")
    assert report.episodes == 1 and store.header("push/0").instruction == "Push the cup"
    keypoints = store.arrays("push/0")["keypoints"]
    # Both hands move alike: the right one. At n its wrist is at x = 0.1 + 0.01 n, z = 0.5 m; 96 px for 1920.
    u = (960 + 736.6339 * (0.1 + 0.01 * np.arange(12)) / 0.5) / 20 - 21
    assert keypoints[:, 0, 0] == pytest.approx(u, abs=0.01)
    assert keypoints[:, 5, 2] == pytest.approx(0.005, abs=1e-5)
    assert not store.arrays("push/0")["visible"][:, 3].any()


def test_egodex_s_hands_are_grippers_in_the_camera_s_frame_and_in_the_world_s(tmp_path):
    attributes = {"llm_description": "Push the cup.", "session_name": "s1"}
    file = write_egodex(tmp_path / "v/0.hdf5", frames=12, attributes=attributes, move=0.01)
    with h5py.File(file, "a") as out:
        out["confidences/leftThumbTip"][...] = 0.1
        for joint in ("IndexFingerIntermediateTip", "ThumbIntermediateBase", "ThumbIntermediateTip"):
            out[f"confidences/right{joint}"][...] = 0.9
        camera = out["transforms/camera"][()].astype(float)
        for joint in ("ThumbIntermediateBase", "ThumbIntermediateTip"):  # out of the line in which all others lie
            out[f"transforms/right{joint}"][:, :3, 3] += np.float32(0.03) * camera[:, :3, 1]
        tips = {side: out[f"transforms/right{side}Tip"][()][:, :3, 3] for side in ("Thumb", "IndexFinger")}
    write_video(tmp_path / "v/0.mp4", [np.full((54, 96, 3), 90, np.uint8)] * 12, 30)
    line = ["convert", "human", "--source", "egodex", "--input", str(tmp_path / "v"), "--image-size", "54"]
    command = [sys.executable, "-m", "arvrm", *line, "--output", str(tmp_path / "s"), "--grippers"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    store = EpisodeStore(tmp_path / "s")
    arrays, meta = store.arrays("0"), store.header("0").meta
    grippers = arrays["grippers"]
    assert grippers.shape == (12, 2, 8)
    assert not arrays["grippers_seen"][:, 0].any() and arrays["grippers_seen"][:, 1].all()
    # The right hand's points k lie at (0.1 + 0.004 k, 0.002 k, 0.5 + 0.001 k): tips are k = 4 and 8.
    assert grippers[0, 1, :4] == pytest.approx(
        [4 * np.linalg.norm([0.004, 0.002, 0.001]), 0.124, 0.012, 0.506], abs=1e-6
    )
    world = in_world(grippers, arrays["camera_pose"])
    middle = (tips["Thumb"] + tips["IndexFinger"]) / 2
    assert world[:, 1, 1:4] == pytest.approx(middle, abs=1e-5)
    assert poses(camera) == pytest.approx(arrays["camera_pose"], abs=1e-6)
    # The camera that the clip keeps draws the gripper between the two tips.
    image = np.array(meta["intrinsic"]) @ grippers[0, 1, 1:4]
    between = (arrays["keypoints"][0, 4, :2] + arrays["keypoints"][0, 8, :2]) / 2
    assert image[:2] / image[2] == pytest.approx(between, abs=0.05)
    assert (
        meta["depth_scale"] == "measured"
        and "z (approach) from the wrist" in store.manifest["settings"]["grippers"]["gripper"]
    )
    with pytest.raises(UserError, match="grippers need poses in m"):
        from_dict(ConvertHumanConfig, {"source": "ssv2", "input": "v", "output": "o", "grippers": True})


def test_clips_say_what_their_depth_is(tmp_path):
    (tmp_path / "v").mkdir()
    hand_video(tmp_path / "v" / "a.mp4")
    convert(tmp_path / "v", tmp_path / "s")
    assert EpisodeStore(tmp_path / "s").header("a.mp4").depth_scale == "unstated"
    assert MediaPipeDetector.depth_scale in DEPTH_SCALES
    assert "depth of keypoints (docs/hands.md): unstated 1" in inspect_store(tmp_path / "s")


def test_published_sets_go_through_the_same_door(tmp_path):
    folder = tmp_path / "v"
    folder.mkdir()
    hand_video(folder / "78687.webm", fps=12)
    (folder / "train.json").write_text(json.dumps([{"id": "78687", "label": "pushing a cup", "template": "x"}]))
    assert convert(folder, tmp_path / "s1", source="ssv2").episodes == 1
    hand_video(folder / "uid.mp4", frames=40)
    narration = {"narration_text": "#C C pushes a cup", "timestamp_sec": 3.5, "timestamp_frame": 105}
    (folder / "narration.json").write_text(json.dumps({"uid": {"narration_pass_1": {"narrations": [narration]}}}))
    report = convert(folder, tmp_path / "s2", source="ego4d")
    # Three seconds around 3.5 s, of which the video has two: what we put around a moment may well be cut.
    assert report.steps == 20 and report.cut == []


def test_a_corpus_of_ones_own_goes_through_the_same_door(tmp_path, monkeypatch, capsys):
    write_files("extending.md", "A video corpus", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "videos"
    (folder / "day 1").mkdir(parents=True)
    hand_video(folder / "day 1" / "c1.mp4", frames=40, fps=25)
    rows = ["c1,ann,push the cup,0,24", "c1,ann,lift it, then wave,0,24", "c1,ann,wave,x,24", "c2,bea,wave,0,24"]
    (folder / "labels.csv").write_text("\n".join(["clip,person,sentence,first,last", *rows]) + "\n")
    arguments = ["convert", "human", "--source", "my_corpus:plan", "--input", str(folder), "--detector", BLOB]
    assert main([*arguments, "--output", str(tmp_path / "s"), "--workers", "1"]) == 1
    said = capsys.readouterr().err
    assert "labels.csv:3: has 6 cells" in said and "labels.csv:4: first and last are no frame numbers" in said
    assert "1 annotated videos are not in the folder" in said
    store = EpisodeStore(tmp_path / "s")
    header = store.header(store.ids[0])
    assert (header.id, header.instruction, header.group, header.steps) == ("labels.csv:2", "push the cup", "ann", 25)
    assert store.manifest["source"] == "human/my_corpus:plan"
    for name, said in {"no.such:plan": "cannot be imported", "folders": "package.module:function"}.items():
        with pytest.raises(UserError, match=said):
            convert(folder, tmp_path / "t", source=name)


@pytest.mark.parametrize("fps", [24, 25, 30, 50, 59.94])
def test_images_are_a_tenth_of_a_second_apart_at_any_rate(tmp_path, fps):
    (tmp_path / "v").mkdir()
    count = round(2 * fps)
    pictures = [np.full((96, 128, 3), 60, np.uint8) for _ in range(count)]
    for number, image in enumerate(pictures):
        image[48:60, 40 + number // 4 : 52 + number // 4] = 255
    write_video(tmp_path / "v" / "push.mkv", pictures, fps=round(fps), times=[n / fps for n in range(count)])
    convert(tmp_path / "v", tmp_path / "s", fps=30.0)
    header = EpisodeStore(tmp_path / "s").header("push.mkv")
    seconds = header.image_steps / header.fps
    assert len(seconds) <= 20 and np.abs(seconds - 0.1 * np.arange(len(seconds))).max() < 1 / header.fps


def test_changed_annotations_are_no_continuation(tmp_path):
    folder = tmp_path / "v"
    folder.mkdir()
    hand_video(folder / "a.mp4", frames=24)
    file = folder / "annotations.csv"
    file.write_text("file,start,end,text\na.mp4,0,1,push\na.mp4,1,2,pull\n")
    convert(folder, tmp_path / "s")
    file.write_text("file,start,end,text\na.mp4,0,1,push\n")
    with pytest.raises(UserError, match="annotations_sha256"):
        convert(folder, tmp_path / "s", resume=True)
    attributes = {"llm_description": "Push the cup.", "session_name": "s1"}
    write_egodex(tmp_path / "e/0.hdf5", frames=12, attributes=attributes, move=0.01)
    write_video(tmp_path / "e/0.mp4", [np.full((54, 96, 3), 90, np.uint8)] * 12, 30)
    convert(tmp_path / "e", tmp_path / "t", source="egodex", image_size=54)
    write_egodex(tmp_path / "e/0.hdf5", frames=12, attributes=attributes | {"llm_description": "Lift it."}, move=0.01)
    with pytest.raises(UserError, match="'Lift it'.*--overwrite"):
        convert(tmp_path / "e", tmp_path / "t", source="egodex", image_size=54, resume=True)


def test_a_video_that_was_exchanged_is_no_continuation(tmp_path):
    folder = tmp_path / "v"
    folder.mkdir()
    hand_video(folder / "push.mp4", frames=24)
    hand_video(folder / "wait.mp4", blob=False)
    assert list(convert(folder, tmp_path / "s").poor) == ["wait.mp4"]
    hand_video(folder / "wait.mp4", frames=14)
    again = convert(folder, tmp_path / "s", resume=True)
    assert again.episodes == 2 and again.poor == {}
    hand_video(folder / "push.mp4", frames=12)
    with pytest.raises(UserError, match="another push.mp4.*--overwrite"):
        convert(folder, tmp_path / "s", resume=True)


def test_one_damaged_file_of_egodex_and_one_odd_sequence_leave_the_others(tmp_path):
    folder = tmp_path / "e"
    for number in range(3):
        write_egodex(folder / f"{number}.hdf5", 12, {"llm_description": "Push.", "session_name": "s"}, move=0.01)
        write_video(folder / f"{number}.mp4", [np.full((54, 96, 3), 90, np.uint8)] * 12, 30)
    data = bytearray((folder / "1.hdf5").read_bytes())
    data[600:4000] = os.urandom(3400)
    (folder / "1.hdf5").write_bytes(data)
    report = convert(folder, tmp_path / "s", source="egodex", image_size=54)
    assert report.episodes == 2 and list(report.errors) == ["1"]
    folder = tmp_path / "v"
    for name, sizes in {"push 1": [(64, 48)] * 3, "pull 2": [(64, 48), (48, 64), (64, 48)]}.items():
        (folder / name).mkdir(parents=True)
        for number, size in enumerate(sizes):
            Image.new("RGB", size, "white").save(folder / name / f"{number}².png")
    report = convert(folder, tmp_path / "t", min_detection_rate=0.0, max_jitter=99.0, max_truncation=1.0)
    assert "unlike the first" in report.errors["pull 2"]


# What must not happen ------------------------------------------------------------------------------------------------


def test_each_bad_clip_gets_its_line_and_the_rest_goes_on(tmp_path, capsys):
    folder = tmp_path / "v"
    folder.mkdir()
    hand_video(folder / "gut.mp4", frames=20)
    hand_video(folder / "leer ☃.mp4", blob=False)
    (folder / "junk.mp4").write_bytes(b"junk" * 50)
    whole = hand_video(folder / "cut.webm", frames=30).read_bytes()
    (folder / "cut.webm").write_bytes(whole[: len(whole) * 2 // 3])
    rows = [
        "file,start,end,text",
        "gut.mp4,0,1,push",
        "gut.mp4,1,1,no length",
        "gut.mp4,5,6,beyond",
        "gut.mp4,1.5,9,cut at the end",
        "gut.mp4,0,1,   ",
        "leer ☃.mp4,0,1,nothing",
        "junk.mp4,0,1,junk",
        "cut.webm,0,3,truncated",
        "fehlt.mp4,0,1,missing",
    ]
    (folder / "annotations.csv").write_text("\n".join(rows), encoding="utf-8")
    arguments = ["convert", "human", "--source", "folder", "--input", str(folder), "--output", str(tmp_path / "s")]
    assert main([*arguments, "--detector", BLOB, "--workers", "1"]) == 1
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 's'}\n"
    for line in (
        "left out gut.mp4@1.000-1.000: has no length",
        "left out gut.mp4@5.000-6.000: gut.mp4 begins at 5.00 s, but the video is over at 2.00 s",
        "gut.mp4@0.000-1.000#2: its text is blank",
        "left out junk.mp4@0.000-1.000: junk.mp4 cannot be opened",
        "there is no video 'fehlt.mp4'",
        "2 clips, 15 steps, 15 images stored; 1 dropped as poor, 6 not made",
        "1 x no hand in any frame",
        "1 x no length",
        "1 clips are shorter than asked",
    ):
        assert line in said.err, line
    report = json.loads((tmp_path / "s.report.json").read_text())
    assert len(report["errors"]) == 6 and list(report["poor"]) == ["leer ☃.mp4@0.000-1.000"]
    assert any("truncated" in reason or "damaged" in reason for reason in report["errors"].values())
    assert sum(report["reasons"].values()) == 7


def test_poor_clips_alone_are_no_error(tmp_path, capsys):
    (tmp_path / "v").mkdir()
    hand_video(tmp_path / "v" / "a.mp4", blob=False)
    hand_video(tmp_path / "v" / "b.mp4")
    arguments = ["convert", "human", "--source", "folder", "--input", str(tmp_path / "v"), "--detector", BLOB]
    assert main([*arguments, "--output", str(tmp_path / "s"), "--workers", "1"]) == 0
    assert main([*arguments, "--output", str(tmp_path / "t"), "--workers", "1", "--min-motion-energy", "99"]) == 0
    report = json.loads((tmp_path / "t.report.json").read_text())
    assert "motion energy" in report["poor"]["b.mp4"] and report["quality"]["b.mp4"]["detection_rate"] == 1.0
    assert report["reasons"] == {"motion energy": 1, "no hand in any frame": 1}


def test_ten_hands_are_too_many_to_know_whose_is_followed(tmp_path):
    (tmp_path / "v").mkdir()
    hand_video(tmp_path / "v" / "a.mp4")
    report = convert(tmp_path / "v", tmp_path / "s", detector="fake_hands:ManyHands", max_truncation=1.0)
    assert report.reasons == {"more than two hands": 1}
    kept = convert(
        tmp_path / "v", tmp_path / "t", detector="fake_hands:ManyHands", max_extra_hands=1.0, max_truncation=1.0
    )
    assert kept.episodes == 1


def test_a_detector_that_fails_or_is_not_there_is_one_line(tmp_path):
    (tmp_path / "v").mkdir()
    hand_video(tmp_path / "v" / "a.mp4")
    report = convert(tmp_path / "v", tmp_path / "s", detector="fake_hands:Clumsy")
    assert "RuntimeError: out of order" in report.errors["a.mp4"] and report.reasons == {"detector failed": 1}
    for name, said in {"no.such:Thing": "cannot be imported", "fake_hands:Thing": "has no 'Thing'"}.items():
        with pytest.raises(UserError, match=said):
            convert(tmp_path / "v", tmp_path / "t", detector=name)
    with pytest.raises(UserError, match="package.module:Class"):
        convert(tmp_path / "v", tmp_path / "t", detector="nonsense")


def test_long_segments_are_refused_before_they_fill_the_memory(tmp_path):
    (tmp_path / "v").mkdir()
    hand_video(tmp_path / "v" / "a.mp4", frames=24)
    report = convert(tmp_path / "v", tmp_path / "s", max_seconds=1.5)
    assert "longer than 1.5 s" in report.errors["a.mp4"]


# Scale ---------------------------------------------------------------------------------------------------------------


def test_any_number_of_processes_gives_the_same_bytes(tmp_path, clips):
    convert(clips, tmp_path / "one")
    convert(clips, tmp_path / "two", workers=2)
    one, two = ((tmp_path / name / "data.mdb").read_bytes() for name in ("one", "two"))
    assert one == two


def test_four_shards_merge_to_the_unsharded_store(tmp_path, clips):
    convert(clips, tmp_path / "whole")
    for part in range(1, 5):
        convert(clips, tmp_path / f"part{part}", shard=f"{part}/4")
    sizes = [len(EpisodeStore(tmp_path / f"part{part}")) for part in range(1, 5)]
    assert sum(sizes) == 8 and max(sizes) < 8
    merged = merge_stores([tmp_path / f"part{part}" for part in range(1, 5)], tmp_path / "merged")
    whole = EpisodeStore(tmp_path / "whole")
    assert merged.ids == whole.ids and records(merged) == records(whole)
    for wrong in ("0/4", "5/4", "1", "a/b"):
        with pytest.raises(UserError, match="shard"):
            convert(clips, tmp_path / "x", shard=wrong)


def test_errors_are_counted_in_one_shard_only(tmp_path):
    folder = tmp_path / "v"
    folder.mkdir()
    for number in range(6):
        (folder / f"wave {number}x.mp4").write_bytes(b"junk")
    found = [convert(folder, tmp_path / f"s{part}", shard=f"{part}/3").errors for part in (1, 2, 3)]
    assert sorted(id for errors in found for id in errors) == [f"wave {number}x.mp4" for number in range(6)]


def test_a_killed_conversion_goes_on_where_it_was_and_ends_the_same(tmp_path, clips):
    output = tmp_path / "s"
    script = (
        "import sys, time; from arvrm.config import from_dict; from arvrm.sources import human\n"
        "import fake_hands; detect = fake_hands.BlobDetector.detect\n"
        "fake_hands.BlobDetector.detect = lambda *a: (time.sleep(0.08), detect(*a))[1]\n"
        "human.convert_human(human.ConvertHumanConfig('folder', sys.argv[1], sys.argv[2], image_size=96,\n"
        f"    detector='{BLOB}', workers=1))"
    )
    environment = os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(clips), str(output)], stderr=subprocess.DEVNULL, env=environment
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and child.poll() is None:
        try:
            if len(EpisodeStore(output)) >= 2:
                break
        except UserError:
            pass
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = EpisodeStore(output).ids
    assert 2 <= len(before) < 8
    with pytest.raises(UserError, match="--resume"):
        convert(clips, output)
    with pytest.raises(UserError, match="fit"):
        convert(clips, output, resume=True, fit="letterbox")
    report = convert(clips, output, resume=True)
    convert(clips, tmp_path / "whole")
    assert report.episodes == 8 and records(EpisodeStore(output)) == records(EpisodeStore(tmp_path / "whole"))


def test_resuming_does_not_judge_poor_clips_again_and_tries_failed_ones(tmp_path, monkeypatch):
    folder = tmp_path / "v"
    folder.mkdir()
    hand_video(folder / "a.mp4", blob=False)
    (folder / "b.mp4").write_bytes(b"not yet copied")
    first = convert(folder, tmp_path / "s")
    assert list(first.poor) == ["a.mp4"] and list(first.errors) == ["b.mp4"]
    with (tmp_path / "s.poor.jsonl").open("a") as stream:
        stream.write('{"id": "half a li')  # a kill in the middle of a line
    hand_video(folder / "b.mp4")
    import fake_hands

    seen = []
    detect = fake_hands.BlobDetector.detect
    monkeypatch.setattr(fake_hands.BlobDetector, "detect", lambda *a: (seen.append(1), detect(*a))[1])
    again = convert(folder, tmp_path / "s", resume=True)
    assert len(seen) == 12 and again.poor == first.poor and again.errors == {} and again.episodes == 1


def test_a_clip_that_kills_its_worker_is_left_out(tmp_path, monkeypatch):
    folder = tmp_path / "v"
    folder.mkdir()
    for name in "acd":
        hand_video(folder / f"{name}.mp4")
    hand_video(folder / "b.mp4", blue=True)
    report = convert(folder, tmp_path / "s", detector="fake_hands:Deadly", workers=2)
    assert report.episodes == 3 and list(report.errors) == ["b.mp4"]
    assert report.reasons == {"killed its worker": 1}


# The real detector ---------------------------------------------------------------------------------------------------


def test_mediapipe_finds_the_hand_in_photos_as_an_image_sequence(tmp_path):
    pytest.importorskip("mediapipe")
    root = Path(os.environ.get("ARVRM_HANDS") or TESTS.parents[1] / "shared" / "hands")
    if not (root / "photos").is_dir():
        pytest.skip(f"ARVRM_HANDS: no folder {root / 'photos'}")
    folder = tmp_path / "v"
    folder.mkdir()
    (folder / "curl the fingers").mkdir()
    for number, photo in enumerate(sorted((root / "photos").iterdir())):  # fullcurl, halfcurl, nocurl
        shutil.copy(photo, folder / "curl the fingers" / f"{number}{photo.suffix}")
    report = convert(
        folder,
        tmp_path / "s",
        detector="mediapipe",
        model=str(root / "hand_landmarker.task"),
        sequence_fps=10.0,
        fit="letterbox",
        image_size=224,
        max_jitter=10.0,
    )
    assert report.errors == {} and report.poor == {}
    store = EpisodeStore(tmp_path / "s")
    arrays, header = store.arrays(store.ids[0]), store.header(store.ids[0])
    assert header.instruction == "curl the fingers" and header.steps == 3 and arrays["visible"].mean() > 0.9
    # From full to no curl (fullcurl, halfcurl, nocurl): the finger tips go away from the wrist.
    reach = np.linalg.norm(arrays["keypoints"][:, [8, 12, 16], :2] - arrays["keypoints"][:, :1, :2], axis=-1).mean(1)
    assert reach[2] > 1.3 * reach[0]
