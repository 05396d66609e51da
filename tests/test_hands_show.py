"""Looking at hands: drawings, films of videos and stores, predictions, the quality page, and their command lines."""

import base64
import json
import re

import numpy as np
import pytest
from fake_hands import BlobDetector, ManyHands, hand_video, shape
from model_batches import SMALL
from PIL import Image
from small_stores import human_store, robot_store

from arvrm.cli import main
from arvrm.episodes import EpisodeStore
from arvrm.films import read_film
from arvrm.hands.quality import QualityLimits
from arvrm.interface import KEYPOINTS, UserError
from arvrm.show.hands import follow_video, predict_hands, show_clip, show_video
from arvrm.show.predictor import HandPredictor
from arvrm.show.quality import quality_page
from arvrm.show.skeleton import FINGER_COLOURS, draw_normal_form, draw_skeleton, skeleton_figure

GREY = np.full((200, 300, 3), 90, np.uint8)


def rgb(colour):
    return np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)])


def near(image, point, colour, reach=3):
    """Whether the image has that colour near the point."""
    u, v = np.round(point).astype(int)
    patch = image[max(v - reach, 0) : v + reach + 1, max(u - reach, 0) : u + reach + 1].astype(int)
    return bool((np.abs(patch - rgb(colour)).sum(axis=-1) < 60).any())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from arvrm.model.checkpoint import save_checkpoint
    from arvrm.model.keypoint_vlm import KeypointVLM
    from arvrm.model.metadata import CheckpointMetadata

    folder = tmp_path_factory.mktemp("stage1") / "pre"
    metadata = CheckpointMetadata("pretrain", history=3, stride=3, images={"rgb_static": 32})
    return str(save_checkpoint(folder, KeypointVLM(SMALL), metadata=metadata))


@pytest.fixture
def store(tmp_path):
    return human_store(tmp_path / "human", tasks=2, per_task=2)


def test_skeleton_is_drawn_where_the_points_are_in_the_fingers_colours():
    points = shape(60.0) + np.array([150, 160, 0], np.float32)
    drawn = draw_skeleton(GREY, points, np.ones(21, bool))
    for finger in range(5):
        assert near(drawn, points[4 + 4 * finger, :2], FINGER_COLOURS[finger])
    assert (drawn[:, :20] == 90).all() and drawn.shape == GREY.shape
    assert (GREY == 90).all()


def test_enlarging_moves_the_skeleton_with_the_picture():
    points = shape(60.0) + np.array([150, 160, 0], np.float32)
    drawn = draw_skeleton(GREY, points, np.ones(21, bool), size=(600, 400))
    assert drawn.shape == (400, 600, 3)
    assert near(drawn, 2 * points[8, :2], FINGER_COLOURS[1])


def test_hands_that_are_not_there_are_not_drawn():
    points = np.concatenate([shape(60.0) + np.array([150, 160, 0], np.float32)] * 2)
    nothing = draw_skeleton(GREY, points, np.zeros(42, bool))
    np.testing.assert_array_equal(nothing, GREY)
    one = np.arange(42) >= 21
    assert not np.array_equal(draw_skeleton(GREY, points, one), GREY)


def test_interpolated_hands_look_different_and_far_points_do_no_harm():
    points = shape(60.0) + np.array([150, 160, 0], np.float32)
    seen = np.ones(21, bool)
    sure = draw_skeleton(GREY, points, seen, np.array([False]))
    between = draw_skeleton(GREY, points, seen, np.array([True]))
    assert 0 < (between != 90).any(axis=-1).sum() < (sure != 90).any(axis=-1).sum()
    points[8] = (1e9, -1e9, 0)
    draw_skeleton(GREY, points, seen)


def test_ghost_is_white_and_leaves_out_what_is_not_known():
    points = shape(60.0) + np.array([150, 160, 0], np.float32)
    other = points + np.array([60, 0, 0], np.float32)
    known = np.ones(21, bool)
    known[KEYPOINTS.index("index_tip")] = False
    drawn = draw_skeleton(GREY, points, np.ones(21, bool), ghost=other, ghost_visible=known)
    assert near(drawn, other[20, :2], "#ffffff") and not near(drawn, other[8, :2], "#ffffff", 2)


def test_normal_form_looks_the_same_wherever_the_hand_was():
    seen = np.ones(21, bool)
    first = draw_normal_form(shape(30.0) + np.array([80, 90, 0]), seen, 200, 200, (160, 160))
    second = draw_normal_form(shape(60.0) + np.array([120, 150, 0]), seen, 200, 200, (160, 160))
    assert (np.abs(first.astype(int) - second).max(axis=-1) > 60).mean() < 0.002
    none = draw_normal_form(np.zeros((21, 3)), np.zeros(21, bool), 200, 200, (160, 160))
    assert none.shape == (160, 160, 3) and not np.array_equal(none, first)


def test_figure_names_every_point_in_its_colour():
    figure = np.asarray(skeleton_figure(400))
    for colour in FINGER_COLOURS:
        assert (np.abs(figure.astype(int) - rgb(colour)).sum(axis=-1) < 10).sum() > 200


def test_film_of_a_video_has_its_frames_with_the_hand_on_the_blob(tmp_path):
    video = hand_video(tmp_path / "vidéo 手.mp4", frames=12)
    film, quality = show_video(video, tmp_path / "film.mp4", BlobDetector())
    frames = read_film(film)
    assert frames.shape == (12, 96 + 30, 128, 3)
    assert quality.detection_rate == 1 and quality.acting_hand == "right"
    plain = np.abs(frames[6, 30:].astype(int) - 60).max(axis=-1)
    assert (plain > 60).sum() > 150  # blob and skeleton


def test_film_of_an_image_folder_shows_each_image(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        image = np.full((96, 128, 3), 60, np.uint8)
        image[40:52, 30 + 10 * number : 42 + 10 * number] = 255
        Image.fromarray(image).save(folder / f"frame{number}.png")
    film, quality = show_video(folder, tmp_path / "film.mp4", BlobDetector())
    assert len(read_film(film)) == 3 and quality.detection_rate == 1


def test_video_without_a_hand_and_with_ten_are_films_too(tmp_path):
    video = hand_video(tmp_path / "empty.mp4", blob=False)
    _, quality = show_video(video, tmp_path / "none.mp4", BlobDetector())
    assert QualityLimits().reasons(quality) == ["no hand in any frame"]
    _, quality = show_video(video, tmp_path / "ten.mp4", ManyHands())
    assert quality.extra_hands == 1 and len(read_film(tmp_path / "ten.mp4")) == 12


def test_what_is_no_video_is_one_line_and_leaves_no_film(tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    with pytest.raises(UserError, match="broken.mp4"):
        show_video(broken, tmp_path / "film.mp4", BlobDetector())
    with pytest.raises(UserError, match="nothing.mp4"):
        show_video(tmp_path / "nothing.mp4", tmp_path / "film.mp4", BlobDetector())
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="folder without images"):
        show_video(tmp_path / "none", tmp_path / "film.mp4", BlobDetector())
    assert not list(tmp_path.glob("*film*"))


def test_square_frames_and_their_hands_agree(tmp_path):
    tracks, rate, squares = follow_video(hand_video(tmp_path / "a.mp4"), BlobDetector(), square=64)
    assert rate == 10 and len(squares) == 12 and tracks.width == 64
    blob = np.argwhere(squares[5].min(axis=-1) > 200).mean(axis=0)[::-1] + 0.5
    np.testing.assert_allclose(tracks.raw[5, 1, 0, :2], blob, atol=1.5)


def test_clip_of_a_store_shows_stored_normal_and_predicted_side_by_side(store, checkpoint, tmp_path):
    identity = store.ids[0]
    images = len(store.header(identity).image_steps)
    two = read_film(show_clip(store, identity, tmp_path / "two.mp4"))
    three = read_film(show_clip(store, identity, tmp_path / "three.mp4", checkpoint))
    assert two.shape == (images, 350, 640, 3) and three.shape == (images, 350, 960, 3)
    # The stored panel is the same picture in both.
    assert np.abs(two[2, 40:, :300].astype(int) - three[2, 40:, :300]).mean() < 6


def test_an_untrained_model_predicts_that_the_hand_stays(store, checkpoint):
    # The prediction head starts at zero: the last pose is what it predicts.
    identity = store.ids[0]
    header, arrays = store.header(identity), store.arrays(identity, ["keypoints", "visible"])
    images = store.frames(identity, "rgb_static", np.arange(len(header.image_steps)))
    model = HandPredictor(checkpoint)
    assert model.stride(30) == 3 and model.stride(10) == 1 and model.image_size == 32
    steps = header.image_steps
    seen = np.ones_like(arrays["visible"])
    found, known, _, _ = model.predict("open it", arrays["keypoints"], seen, images, steps, header.fps)
    assert not known[0].any() and known[1:].all()
    np.testing.assert_allclose(found[1:, :, :2], arrays["keypoints"][steps[1:] - 3, :, :2], atol=1e-3)
    ahead, _, now, _ = model.predict("open it", arrays["keypoints"], seen, images, steps, header.fps, from_here=True)
    np.testing.assert_allclose(ahead, now, atol=1e-3)


def test_predicted_hands_are_drawn_over_the_video_and_measured(checkpoint, tmp_path):
    video = hand_video(tmp_path / "a.mp4", frames=12)
    film, errors = predict_hands(checkpoint, video, "push it", tmp_path / "film.mp4", BlobDetector())
    assert read_film(film).shape == (12, 126, 128, 3)
    # 2 px a frame of 96: 4.7 px at 224, which an untrained model misses as much as the pose kept.
    assert errors["hold_px224"] == pytest.approx(2 * 224 / 96, rel=0.25)
    assert errors["model_px224"] == pytest.approx(errors["hold_px224"], rel=1e-3)


def test_predicting_without_hands_words_or_stage_one_is_one_line(checkpoint, tmp_path):
    video = hand_video(tmp_path / "a.mp4", blob=False)
    with pytest.raises(UserError, match="no hand in any frame"):
        predict_hands(checkpoint, video, "push", tmp_path / "film.mp4", BlobDetector())
    with pytest.raises(UserError, match="--text is blank"):
        predict_hands(checkpoint, video, "  ", tmp_path / "film.mp4", BlobDetector())
    with pytest.raises(UserError, match="No such file"):
        predict_hands(str(tmp_path / "none"), video, "push", tmp_path / "film.mp4", BlobDetector())


def test_quality_page_has_histograms_films_and_the_dropped(store, tmp_path):
    report = {
        "poor": {"bad <clip>": "jitter 0.4 above 0.15"},
        "quality": {
            "bad <clip>": {
                "frames": 9, "detection_rate": 0.9, "interpolated": 0.0, "jitter": 0.4, "truncation": 0.0,
                "motion_energy": 1.0, "extra_hands": 0.0, "acting_hand": "left", "repaired": 0.0,
            }
        },
        "errors": {},
        "reasons": {"jitter": 1},
    }  # fmt: skip
    (tmp_path / "human.report.json").write_text(json.dumps(report))
    page = quality_page(store, tmp_path / "page.html", films=1).read_text()
    assert "4 clips kept" in page and "1 dropped" in page
    assert "bad &lt;clip&gt;" in page and "<clip>" not in page
    assert page.count("<svg") == 4 and "#e5484d" in page
    films = re.findall(r"data:video/mp4;base64,([A-Za-z0-9+/=]+)", page)
    assert len(films) == 2
    (tmp_path / "x.mp4").write_bytes(base64.b64decode(films[0]))
    assert len(read_film(tmp_path / "x.mp4")) == len(store.header(store.ids[0]).image_steps)
    assert "http" not in page.replace("http-equiv", "")
    with pytest.raises(UserError, match="exists; pass --overwrite"):
        quality_page(store, tmp_path / "page.html")


def test_quality_page_of_robots_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no human clips"):
        quality_page(robot_store(tmp_path / "robot", tasks=1, per_task=1), tmp_path / "page.html")


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out.strip(), printed.err.strip()


def test_command_line_shows_videos_and_clips(store, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    video = hand_video(tmp_path / "a.mp4")
    blob = ("--detector", "fake_hands:BlobDetector")
    code, out, err = run(capsys, "hands", "show", video, *blob)
    assert (code, out) == (0, "a_hands.mp4") and "a hand in 100 %" in err
    code, _, err = run(capsys, "hands", "show", video, *blob)
    assert code == 2 and "a_hands.mp4: exists; pass --overwrite" in err
    code, out, _ = run(capsys, "hands", "show", store.path, "--clip", "1", "--output", "c.mp4")
    assert (code, out) == (0, "c.mp4")
    code, out, _ = run(capsys, "hands", "quality", store.path, "--films", "0")
    assert code == 0 and out.endswith("human.quality.html")


def test_command_line_mistakes_are_one_line(store, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    video = hand_video(tmp_path / "a.mp4")
    robots = robot_store(tmp_path / "robot", tasks=1, per_task=1).path
    cases = {
        ("hands", "show", "gone.mp4"): "gone.mp4: no such file or folder",
        ("hands", "show", store.path, "--clip", "99"): "no clip '99'; --clip takes an id, or a number below 4",
        ("hands", "show", robots): "is a robot episode",
        ("hands", "show", video, "--clip", "0"): "is no store",
        ("hands", "show", video): "run `arvrm hands fetch-model`",
        ("hands", "show", video, "--fps", "0", "--detector", "fake_hands:BlobDetector"): "fps is 0.0; give more than 0",
        ("hands", "show", video, "--detector", "fake_hands:Nobody"): "has no 'Nobody'",
        ("predict-hands", video, "--checkpoint", "gone", "--text", " "): "--text is blank",
        ("hands", "quality", tmp_path): "data.mdb",
    }
    for arguments, expected in cases.items():
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, ""), arguments
        assert expected in err and len(err.splitlines()) == 1, err
    assert len(EpisodeStore(store.path)) == 4
