"""The public cases: what strangers' files are to become. The folder's README.md says what each is modelled on.

What is small enough is made anew in the tests of its own part, so that it runs without the folder.
"""

import json
import shutil
import unicodedata

import numpy as np
import pytest

from arvrm import cli
from arvrm.episodes import EpisodeStore

TEXTS = ["pull the handle of the drawer", "grasp the red block on the table and lift it up"]
TEXTS.append("push the blue block towards the left")
FIRST_X = [0.4428, 0.5571, 0.6303]


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture
def human(cases, tmp_path, monkeypatch):
    """Convert a case with the stand-in detector; return the exit code, and the store if there is one."""
    monkeypatch.syspath_prepend(str(cases))
    pytest.importorskip("h5py")

    def convert(case, *more, source="folder", output="out", folder=None):
        folder = folder or cases / case
        output = tmp_path / output
        code = run(
            *("convert", "human", "--detector", "disc_detector:Disc", "--workers", "1", "--source", source),
            *("--input", folder, "--output", output, *more),
        )
        return code, EpisodeStore(output) if (output / "data.mdb").exists() else None

    return convert


@pytest.fixture
def lerobot(cases, tmp_path):
    pytest.importorskip("pyarrow")

    def convert(case):
        code = run("convert", "lerobot", "--input", cases / case, "--output", tmp_path / "out")
        return code, EpisodeStore(tmp_path / "out")

    return convert


def greys(store, id):
    return np.array([np.median(image) for image in store.frames(id, "rgb_static", range(store.header(id).frames))])


def clip(store):
    assert len(store) == 1
    return store.header(store.ids[0])


# Videos and their annotations ----------------------------------------------------------------------------------------


def test_a_text_with_a_comma_that_is_not_quoted_is_left_out(human, capsys):
    code, store = human("c01_csv_comma")
    said = capsys.readouterr().err
    assert code == 1 and "annotations.csv:2" in said and "5 cells where the header has 4" in said
    assert (clip(store).instruction, clip(store).steps) == ("push it", 10)


def test_names_are_found_in_either_spelling_of_unicode(human):
    code, store = human("c05_nfd")
    assert code == 0 and (clip(store).instruction, clip(store).steps) == ("open the bowl", 20)


def test_what_a_mac_puts_beside_a_video_is_no_video(human, capsys):
    code, store = human("c06_appledouble")
    assert code == 0 and clip(store).steps == 30 and "left out" not in capsys.readouterr().err


def test_thumbnails_are_no_clip(human):
    code, store = human("c07_thumbnails")
    assert code == 0 and [header.steps for header in store.headers()] == [10, 10, 10]


def test_a_mirrored_video_is_stored_as_players_show_it(human):
    code, store = human("c09_hflip", "--fit", "letterbox")
    image = store.frames(store.ids[0], "rgb_static", [0])[0].astype(int)
    v, u = np.nonzero((image[..., 1] > 150) & (image[..., 0] < 100))
    assert code == 0 and (u.min(), u.max()) == (pytest.approx(196, abs=2), pytest.approx(223, abs=2))
    assert (v.min(), v.max()) == (pytest.approx(28, abs=2), pytest.approx(48, abs=2))


def test_wide_pixels_are_widened(human):
    code, store = human("c10_anamorphic")
    points = store.arrays(store.ids[0])["keypoints"].astype(np.float64)
    width, height = np.ptp(points[..., 0], axis=1), np.ptp(points[..., 1], axis=1)
    centre = (points.max(axis=1) + points.min(axis=1)) / 2
    assert code == 0 and np.median(width / height) == pytest.approx(4 / 3, abs=0.05)
    assert centre[[0, -1], 0] == pytest.approx([23.5, 119.7], abs=1.5) and centre[0, 1] == pytest.approx(112, abs=1.5)


def test_a_clip_begins_at_the_first_picture_not_at_the_first_sound(human):
    code, store = human("c11_audio_leads")
    assert code == 0 and clip(store).steps == 30
    assert greys(store, store.ids[0]) == pytest.approx(16 + 3 * np.arange(30), abs=2.5)


def test_images_of_16_bits_keep_their_greys(human):
    code, store = human("c14_png16", "--sequence-fps", "30")
    assert code == 0 and clip(store).steps == 12
    assert greys(store, store.ids[0]) == pytest.approx([16, 25, 34, 43], abs=2.5)


def test_extracted_frames_have_the_rate_that_the_annotations_tell(human):
    code, store = human("c15_epic_rgb_frames", source="epic")
    assert code == 0 and clip(store).steps / clip(store).fps == pytest.approx(0.4)
    assert greys(store, store.ids[0]) == pytest.approx([55, 73, 91, 109], abs=3)


def test_narrations_lose_their_marks_and_what_others_do(human, capsys):
    code, store = human("c17_ego4d", "--clip-seconds", "1", source="ego4d")
    texts = {header.id[-5:]: header.instruction for header in store.headers()}
    assert code == 0 and texts == {
        "00000": "picks a cup",
        "00003": "puts the cup on the table",
        "00004": "hand touches a cup",
        "00005": "talks to lady Y",
        "00006": "picks a cup puts it down",
        "00007": "picks a bag something",
    }
    assert "2 narrations that say nothing but #unsure" in capsys.readouterr().err


def test_the_rate_is_that_of_the_stretch(human):
    code, store = human("c23_vfr_pause")
    assert code == 0 and (clip(store).steps, clip(store).fps, clip(store).frames) == (60, 30, 20)
    assert greys(store, store.ids[0]) == pytest.approx(16 + 9 * np.arange(20), abs=2.5)


def test_cameras_containers_are_read(human):
    code, store = human("c26_suffixes")
    assert code == 0 and [header.steps for header in store.headers()] == [10, 10, 10]


def test_a_video_whose_first_frame_is_late_is_not_truncated(human):
    code, store = human("c29b_webm_start08")
    assert code == 0 and clip(store).steps == 30
    assert greys(store, store.ids[0]) == pytest.approx(16 + 3 * np.arange(30), abs=5)


def test_no_more_images_a_second_are_stored_than_asked(human):
    code, store = human("c30_pal25")
    header = clip(store)
    assert code == 0 and (header.fps, header.steps) == (25, 50) and 12 <= header.frames <= 20
    assert greys(store, header.id) == pytest.approx(16 + 3 * header.image_steps, abs=2.5)


def test_a_column_of_another_name_is_not_passed_over(human, capsys):
    code, store = human("c32d_start_end_named")
    said = capsys.readouterr().err
    assert code == 2 and store is None and "'start_time'" in said and "file, start, end, text" in said


def test_corrected_annotations_are_no_continuation(human, cases, tmp_path, capsys):
    folder = tmp_path / "in"
    shutil.copytree(cases / "r1_fixed_csv", folder)
    assert human("", folder=folder)[0] == 0
    before = (tmp_path / "out" / "data.mdb").read_bytes()
    shutil.copy(folder / "annotations_corrected.csv", folder / "annotations.csv")
    code, _ = human("", "--resume", folder=folder)
    assert code == 2 and "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "out" / "data.mdb").read_bytes() == before


def test_folders_with_equal_names_can_be_merged(human, cases, tmp_path, capsys):
    for name in ("kitchen", "garden"):
        assert human("", folder=cases / "g1_equal_names" / name, output=name)[0] == 0
    both = "merge", tmp_path / "kitchen", tmp_path / "garden"
    assert run(*both, "--output", tmp_path / "both") == 2 and "--prefix" in capsys.readouterr().err
    folder = cases / "g1_equal_names" / "garden"
    assert human("", "--prefix", "garden/", "--overwrite", folder=folder, output="garden")[0] == 0
    assert run(*both, "--output", tmp_path / "both") == 0
    merged = EpisodeStore(tmp_path / "both")
    assert len(merged) == 2 and len({header.group for header in merged.headers()}) == 2


def test_an_empty_intrinsic_is_named(human, capsys):
    code, _ = human("e2_intrinsic_0x3", source="egodex")
    said = capsys.readouterr().err
    assert code == 1 and "camera/intrinsic" in said and "(0, 3)" in said


# CALVIN --------------------------------------------------------------------------------------------------------------


def test_a_split_without_annotations_does_not_spoil_the_other(cases, tmp_path, capsys):
    code = run("convert", "calvin", "--input", cases / "k01_val_no_lang", "--output", tmp_path / "out")
    said = capsys.readouterr().err
    assert code == 1 and "validation/lang_annotations" in said and "--all" in said
    assert clip(EpisodeStore(tmp_path / "out" / "training")).instruction == TEXTS[0]


def test_the_scene_is_the_one_that_was_recorded(cases, tmp_path, capsys):
    run("convert", "calvin", "--input", cases / "k04_scene_info_A", "--output", tmp_path / "out")
    said = capsys.readouterr().err
    assert "scene_info.npy says scene A, .hydra/merged_config.yaml says D" in said
    assert clip(EpisodeStore(tmp_path / "out" / "training")).scene == "D"


# LeRobot -------------------------------------------------------------------------------------------------------------


def whole(store, episode, id=None):
    id = id or f"lerobot/{episode:06d}"
    header = store.header(id)
    assert (header.instruction, header.steps) == (TEXTS[episode], 12)
    assert greys(store, id) == pytest.approx(16 + 4 * (12 * episode + np.arange(12)), abs=2.5)
    assert store.arrays(id)["actions"][0, 0] == pytest.approx(FIRST_X[episode], abs=0.001)


@pytest.mark.parametrize(
    "case",
    [
        "l01_no_tasks_column",
        "l05_language_columns",
        "l06_large_list",
        "l09_gap_in_pts",
        "l11_absolute_only",
        "l18b_stale_file_index",
    ],
)
def test_lerobot_sets_as_strangers_have_them_come_in_whole(lerobot, case):
    code, store = lerobot(case)
    assert code == 0 and len(store) == 3
    for episode in range(3):
        whole(store, episode)


def test_an_episode_of_two_tasks_becomes_two(lerobot):
    code, store = lerobot("l03_two_tasks")
    assert code == 0 and len(store) == 4
    first, second = store.header("lerobot/000000#1"), store.header("lerobot/000000#2")
    assert (first.instruction, first.steps, second.instruction, second.steps) == (TEXTS[0], 6, TEXTS[1], 6)
    assert greys(store, first.id) == pytest.approx(16 + 4 * np.arange(6), abs=2.5)
    assert greys(store, second.id) == pytest.approx(40 + 4 * np.arange(6), abs=2.5)
    assert first.group == second.group
    whole(store, 1)
    whole(store, 2)


# Other files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["noprefix.pt", "epoch.pt"])
def test_a_relatives_checkpoint_is_told_by_a_name_and_asked_for_nothing(cases, tmp_path, capsys, file):
    assert run("import-checkpoint", cases / "m1_grmg" / file, "--output", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "no checkpoint of GR-1, GR-Chunk or AR-VRM" in said and "progress_mask_token_embedding" in said
    assert "--vision" not in said and "Traceback" not in said


def test_sequences_of_an_evaluation_are_chains(cases, tmp_path):
    file, output = cases / "v1_eval_sequences" / "sequences.json", tmp_path / "v.json"
    chain = ("evaluate", "--policy", "expert", "--scene", "D", "--workers", "1", "--chain-file", file)
    assert run(*chain, "--output", output) == 0
    tasks = json.loads(output.read_text())["per_task"]
    assert set(tasks) == {"open_drawer", "turn_on_led"}


def test_the_spellings_of_unicode_differ_in_the_case_itself(cases):
    # A copy that normalises names would make the case prove nothing.
    names = [file.name for file in (cases / "c05_nfd").iterdir() if file.suffix == ".mp4"]
    if names != [unicodedata.normalize("NFD", names[0])]:
        pytest.skip("this file system has composed the name")
