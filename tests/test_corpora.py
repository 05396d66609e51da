import json
import os
import re
import unicodedata

import h5py
import numpy as np
import pytest

from arvrm.interface import KEYPOINTS, UserError
from arvrm.sources.corpora import ARKIT_JOINTS, ego4d_text, egodex_poses, plan, seconds_of, text_of_name


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"video")


def short(planned):
    return [(s.id, s.start, s.end, s.text, s.group) for s in planned.segments]


# A folder of one's own -----------------------------------------------------------------------------------------------


def test_without_annotations_each_file_says_its_own_text(tmp_path):
    touch(tmp_path, "open_the-drawer_02.mp4", "Küche/Öffne die Tür.MOV", "x/0001.jpg", "notes.txt", "03.webm")
    planned = plan("folder", tmp_path)
    texts = {s.id: s.text for s in planned.segments}
    assert texts == {
        "Küche/Öffne die Tür.MOV": "Öffne die Tür",
        "open_the-drawer_02.mp4": "open the drawer",
        "x": "x",
    }
    assert planned.refused == (("03.webm", "its text is blank"),)


def test_csv_names_stretches_and_every_bad_row_is_refused_with_its_reason(tmp_path):
    touch(tmp_path, "a.mp4", "ß.mp4")
    (tmp_path / "annotations.csv").write_text(
        "file,start,end,text\n"
        "a.mp4,0.5,2,push the block\n"
        "ß.mp4,00:01:02.5,1:04,leg es ab\n"
        "a.mp4,,,all of it\n"
        "a.mp4,3,3,nothing\n"
        "a.mp4,4,3,backwards\n"
        'a.mp4,1,2,"  "\n'
        "b.mp4,1,2,lost\n"
        "a.mp4,soon,2,when\n"
        "a.mp4,-1,2,early\n"
        "a.mp4,0.5,2,push the block\n",
        encoding="utf-8-sig",
    )
    planned = plan("folder", tmp_path)
    assert short(planned) == [
        ("a.mp4@0.500-2.000", 0.5, 2.0, "push the block", "a.mp4"),
        ("ß.mp4@62.500-64.000", 62.5, 64.0, "leg es ab", "ß.mp4"),
        ("a.mp4@0.000-end", None, None, "all of it", "a.mp4"),
        ("a.mp4@0.500-2.000#2", 0.5, 2.0, "push the block", "a.mp4"),
    ]
    reasons = [reason for _, reason in planned.refused]
    for word, reason in zip(("length", "length", "blank", "'b.mp4'", "'soon'", "before"), reasons, strict=True):
        assert word in reason


def test_json_annotations_are_the_same_as_csv(tmp_path):
    touch(tmp_path, "a.mp4")
    entries = [{"file": "a.mp4", "start": 0.5, "end": 2, "text": "push"}, {"file": "a.mp4", "text": None}]
    (tmp_path / "other.json").write_text(json.dumps(entries))
    planned = plan("folder", tmp_path, tmp_path / "other.json")
    assert short(planned) == [("a.mp4@0.500-2.000", 0.5, 2.0, "push", "a.mp4")]
    assert len(planned.refused) == 1


def test_annotations_without_a_needed_column_are_one_line(tmp_path):
    touch(tmp_path, "a.mp4")
    (tmp_path / "annotations.csv").write_text("file,from,to,label\na.mp4,0,1,x\n")
    with pytest.raises(UserError, match="annotations.csv: has no column 'text'"):
        plan("folder", tmp_path)
    (tmp_path / "annotations.csv").write_bytes(b"file,text\na.mp4,\xff\xfe\n")
    with pytest.raises(UserError, match="UTF-8"):
        plan("folder", tmp_path)
    with pytest.raises(UserError, match="holds no clip"):
        (tmp_path / "empty").mkdir()
        plan("folder", tmp_path / "empty")


def refused(planned):
    return {id: reason for id, reason in planned.refused}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a.mp4,0,1,pick it up, then put it down", "5 cells where the header has 4; quote"),
        ("a.mp4,0,1", "3 cells where the header has 4"),
        ('a.mp4,0,1,the "red" one, please', "5 cells"),
        ('a.mp4,0,1,"the "red" cup"', "cannot be read"),
        ('a.mp4,0,1,"never closed', "cannot be read"),
        ("a.mp4,0,1," + "word " * 1000, "its text has 5000 characters"),
        ("../a.mp4,0,1,look outside", "out of the folder"),
        ("/etc/hostname,0,1,look outside", "out of the folder"),
        ("x/../../in/a.mp4,0,1,look outside", "out of the folder"),
        ("a.mp4," + "9" * 400 + ",1,late", "has no length|neither"),
    ],
)
def test_a_bad_row_is_left_out_whole_and_the_others_stay(tmp_path, line, reason):
    touch(tmp_path / "in", "a.mp4")
    (tmp_path / "in" / "annotations.csv").write_text(f"file,start,end,text\na.mp4,1,2,push it\n{line}\n")
    planned = plan("folder", tmp_path / "in")
    assert [s.text for s in planned.segments] == ["push it"] and len(planned.refused) == 1
    found = re.search(reason, planned.refused[0][1])
    assert found, planned.refused
    if "cell" in reason or "cannot be read" in reason:
        assert planned.refused[0][0].startswith("annotations.csv:3")


def test_a_quote_that_closes_rows_later_does_not_swallow_them_unsaid(tmp_path):
    touch(tmp_path, "a.mp4")
    text = 'file,start,end,text\na.mp4,0,1,"push\na.mp4,1,2,pull\na.mp4,2,3,lift"\na.mp4,3,4,drop\n'
    (tmp_path / "annotations.csv").write_text(text)
    planned = plan("folder", tmp_path)
    assert [s.text for s in planned.segments] == ["drop"]
    assert refused(planned) == {"annotations.csv:2": "goes on to line 4; close the quote that is open"}


def test_headers_may_be_written_with_blanks_and_capitals(tmp_path):
    touch(tmp_path, "a.mp4")
    (tmp_path / "annotations.csv").write_text("File, Start , END, Text,notes\na.mp4,1,2,push it,good\n")
    assert short(plan("folder", tmp_path)) == [("a.mp4@1.000-2.000", 1.0, 2.0, "push it", "a.mp4")]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("file,start_time,end_time,text", "column 'start_time' is not known; known are file, start, end, text"),
        ("file,start,stop,text", "'stop'"),
        ("file,text,t0,t1", "'t0'"),
        ("file;start;end;text", "separate columns by commas, not by ';'"),
        ("file,start,end,text,text", "two columns 'text'"),
    ],
)
def test_a_header_that_would_be_read_in_part_is_refused(tmp_path, header, said):
    touch(tmp_path, "a.mp4")
    (tmp_path / "annotations.csv").write_text(f"{header}\na.mp4,1,2,push it\n")
    with pytest.raises(UserError, match=said):
        plan("folder", tmp_path)


def test_an_unknown_key_of_a_json_entry_leaves_out_that_entry(tmp_path):
    touch(tmp_path, "a.mp4")
    entries = [{"file": "a.mp4", "begin": 1, "end": 2, "text": "push"}, {"file": "a.mp4", "text": "pull"}, 3]
    (tmp_path / "annotations.json").write_text(json.dumps(entries))
    planned = plan("folder", tmp_path)
    assert [s.text for s in planned.segments] == ["pull"]
    assert "'begin' is not known" in refused(planned)["annotations.json:1"] and len(planned.refused) == 2


def test_names_are_the_same_in_either_spelling_of_unicode(tmp_path):
    composed = unicodedata.normalize("NFC", "Tür öffnen")
    for form, other in (("NFC", "NFD"), ("NFD", "NFC")):
        folder = tmp_path / form
        name = unicodedata.normalize(form, composed)
        touch(folder, f"{name}.mp4", f"uid {name}/x.txt")
        assert [s.text for s in plan("folder", folder).segments] == [composed]
        listed = unicodedata.normalize(other, composed)
        (folder / "annotations.csv").write_text(f"file,text\n{listed}.mp4,open\n", encoding="utf-8")
        assert short(plan("folder", folder)) == [(f"{composed}.mp4@0.000-end", None, None, "open", f"{composed}.mp4")]
        (folder / "train.json").write_text(json.dumps([{"id": listed, "label": "open"}]))
        assert len(plan("ssv2", folder).segments) == 1


def test_names_from_other_systems_are_found_if_they_are_unambiguous(tmp_path):
    touch(tmp_path, "Day1/Push.MP4", "a.mp4", "b.mp4", "B.mp4")
    (tmp_path / "annotations.csv").write_text("file,text\nday1\\push.mp4,push\nA.MP4,lift\nb.MP4,which\nb.mp4,this\n")
    planned = plan("folder", tmp_path)
    assert [(s.video.name, s.text) for s in planned.segments] == [
        ("Push.MP4", "push"),
        ("a.mp4", "lift"),
        ("b.mp4", "this"),
    ]
    assert "2 videos" in planned.refused[0][1]


def test_videos_that_annotations_do_not_name_are_counted(tmp_path):
    touch(tmp_path, "1.webm", "2.webm", "3.webm")
    (tmp_path / "train.json").write_text(json.dumps([{"id": "1", "label": "push"}]))
    assert plan("ssv2", tmp_path).skipped == {"videos that the annotations do not name": 2}
    (tmp_path / "Annotations.CSV").write_text("file,text\n2.webm,pull\n")
    planned = plan("folder", tmp_path)
    assert [s.text for s in planned.segments] == ["pull"] and sum(planned.skipped.values()) == 2
    (tmp_path / "annotations.json").write_text("[]")
    with pytest.raises(UserError, match="Annotations.CSV and annotations.json; name one"):
        plan("folder", tmp_path)


def test_what_systems_put_beside_the_data_is_not_read(tmp_path):
    touch(tmp_path, "push.mp4", "._push.mp4", ".trash/old.mp4", "__MACOSX/push.mp4", "@eaDir/push.mp4/thumb_1.jpg")
    planned = plan("folder", tmp_path)
    assert [s.id for s in planned.segments] == ["push.mp4"] and planned.refused == ()
    touch(tmp_path, "cover 1.jpg", "sub/pull.mkv", "sub/thumbs/pull.jpg", "sub/notes.txt", "sub/lift.rmvb")
    planned = plan("folder", tmp_path)
    assert [s.id for s in planned.segments] == ["push.mp4", "sub/pull.mkv"]
    assert planned.unread == {".jpg": 2, ".rmvb": 1, ".txt": 1}
    (tmp_path / "train.json").write_text(json.dumps([{"id": "push", "label": "push"}, {"id": "._push", "label": "x"}]))
    (tmp_path / "._train.json").write_bytes(b"\0\5\x16\7")
    planned = plan("ssv2", tmp_path)
    assert [s.text for s in planned.segments] == ["push"] and planned.absent == 1


def test_thumbnails_named_as_the_videos_are_no_sequence(tmp_path):
    touch(tmp_path, "videos/clip 1.mp4", "videos/clip 2.mp4", "thumbs/clip 1.jpg", "thumbs/clip 2.jpg")
    assert len(plan("folder", tmp_path).segments) == 2


def test_links_out_of_the_folder_are_followed_on_request_only(tmp_path):
    touch(tmp_path, "outside/secret.mp4", "in/own.mp4")
    os.symlink(tmp_path / "outside" / "secret.mp4", tmp_path / "in" / "link.mp4")
    os.symlink(tmp_path / "outside", tmp_path / "in" / "linked")
    os.symlink("own.mp4", tmp_path / "in" / "same.mp4")
    planned = plan("folder", tmp_path / "in")
    assert [s.id for s in planned.segments] == ["own.mp4", "same.mp4"]
    assert "--follow-links" in refused(planned)["link.mp4"] and any("--follow-links" in why for why in planned.unread)
    (tmp_path / "in" / "annotations.csv").write_text("file,text\nlink.mp4,x\nlinked/secret.mp4,y\nown.mp4,z\n")
    planned = plan("folder", tmp_path / "in")
    assert [s.text for s in planned.segments] == ["z"]
    assert all("--follow-links" in reason for reason in refused(planned).values()) and len(planned.refused) == 2
    planned = plan("folder", tmp_path / "in", follow_links=True)
    assert [s.text for s in planned.segments] == ["x", "y", "z"]


def test_a_prefix_begins_ids_and_groups(tmp_path):
    touch(tmp_path, "push.mp4")
    (segment,) = plan("folder", tmp_path, prefix="kitchen/").segments
    assert (segment.id, segment.group) == ("kitchen/push.mp4", "kitchen/push.mp4")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("1:02:03.5", 3723.5), ("00:00:00.14", 0.14), ("2.5", 2.5), (3, 3.0), ("", None), (None, None)],
)
def test_times_are_seconds_or_clock_times(value, seconds):
    assert seconds_of(value) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("value", ["nan", "1:2:3:4", "inf", True, "1,5", [1], {}, "9" * 5000])
def test_other_times_are_refused(value):
    with pytest.raises(ValueError, match="neither"):
        seconds_of(value)


def test_names_become_sentences():
    assert text_of_name("turn_on-the.light (3)") == "turn on the light"
    assert text_of_name("0007") == ""


def test_very_long_names_become_short_ids_that_stay_apart(tmp_path):
    names = [f"{'ü' * 110}{letter}.mp4" for letter in "ab"]
    touch(tmp_path, *(f"{'d' * 80}/{name}" for name in names))
    ids = [s.id for s in plan("folder", tmp_path).segments]
    assert len(set(ids)) == 2 and all(len(id.encode()) <= 240 for id in ids)


# Ego4D ---------------------------------------------------------------------------------------------------------------


def ego4d():
    """narration.json as released: uid -> two annotators' passes, narrations with times and marks, summaries."""

    def entry(text, second):
        return {
            "timestamp_sec": second,
            "timestamp_frame": round(30 * second),
            "narration_text": text,
            "annotation_uid": "8b2d6e0e-5a30-4f0a-8f5c-3f1f24f3a3f8",
        }

    summary = {"start_sec": 0.0, "end_sec": 300.0, "summary_text": "#C C folds clothes", "_annotation_uid": "x"}
    first = [
        entry("#C C picks a bag of clothes from the floor", 3.3445),
        entry("#C C looks around #unsure", 0.5),
        entry("#O a man X walks", 8.0),
        entry("#c c  ", 9.0),
    ]
    return {
        "001e3e4e-2743-47fc-8564-d5efd11f9e90": {
            "narration_pass_1": {"narrations": first, "summaries": [summary]},
            "narration_pass_2": {"narrations": [entry("#C C drops the bag.", 20.0)], "summaries": []},
            "status": "complete",
        },
        "not-fetched": {"narration_pass_1": {"narrations": [entry("#C C runs", 1.0)], "summaries": []}},
        "redacted": {"status": "redacted"},
    }


@pytest.mark.parametrize("wrapped", [False, True])
def test_ego4d_narrations_become_clips_of_three_seconds(tmp_path, wrapped):
    uid = "001e3e4e-2743-47fc-8564-d5efd11f9e90"
    touch(tmp_path, f"v2/full_scale/{uid}.mp4")
    content = {"version": "1.0", "videos": ego4d()} if wrapped else ego4d()
    (tmp_path / "narration.json").write_text(json.dumps(content))
    planned = plan("ego4d", tmp_path)
    assert [(s.id, s.text) for s in planned.segments] == [
        (f"{uid}/narration_pass_1/00000", "picks a bag of clothes from the floor"),
        (f"{uid}/narration_pass_1/00001", "looks around something"),
        (f"{uid}/narration_pass_2/00000", "drops the bag"),
    ]
    first, second, _ = planned.segments
    assert (first.start, first.end) == (pytest.approx(1.8445), pytest.approx(4.8445))
    assert (second.start, second.end) == (0.0, 3.0)  # before the video there is nothing
    assert {s.group for s in planned.segments} == {uid} and all(s.around for s in planned.segments)
    assert planned.refused == ((f"{uid}/narration_pass_1/00003", "its text is blank"),)
    assert planned.absent == 2 and sum(planned.skipped.values()) == 1


@pytest.mark.parametrize("source", ["ego4d", "epic", "ssv2"])
def test_a_video_that_is_there_twice_is_not_chosen_by_chance(tmp_path, source):
    touch(tmp_path, "full_scale/v1.mp4", "video_540ss/v1.mp4")
    narration = {"narration_text": "#C C waves", "timestamp_sec": 3.0}
    (tmp_path / "narration.json").write_text(json.dumps({"v1": {"narration_pass_1": {"narrations": [narration]}}}))
    (tmp_path / "train.json").write_text(json.dumps([{"id": "v1", "label": "waving"}]))
    row = "v1_0,P01,v1,0,00:00:00.1,00:00:00.9,6,54,wave,,,,,,\n"
    (tmp_path / "EPIC_100_train.csv").write_text(EPIC_HEADER + row)
    planned = plan(source, tmp_path)
    assert planned.segments == () and "keep one" in planned.refused[0][1]


def test_one_odd_narration_does_not_end_the_run(tmp_path):
    touch(tmp_path, "v1.mp4", "v2.mp4")
    good = {"narration_text": "#C C waves", "timestamp_sec": 3.0}
    odd = [3, None, [], {"narration_text": 5, "timestamp_sec": 1}, {"narration_text": "#C C x", "timestamp_sec": True}]
    odd += [{"narration_text": "#C C x", "timestamp_sec": 10**400}]
    content = {
        "v1": {"narration_pass_1": {"narrations": [*odd, good]}, "narration_pass_2": []},
        "v2": {"narration_pass_1": {"narrations": {"a": 1}}},
    }
    (tmp_path / "narration.json").write_text(json.dumps(content))
    planned = plan("ego4d", tmp_path)
    assert [s.text for s in planned.segments] == ["waves"] and len(planned.refused) == len(odd) + 1


@pytest.mark.parametrize(
    ("narration", "text"),
    [
        ("#C C's hand touches a cup", "hand touches a cup"),
        ("#C C\u2019s hand touches a cup", "hand touches a cup"),
        ("#C: C opens the door", "opens the door"),
        ("#CC opens the door", "opens the door"),
        ("# C C opens the door.", "opens the door"),
        ("C opens the door", "opens the door"),
        ("#C C opens the door #Unsure.", "opens the door something"),
        ("#C C opens #UNSURE", "opens something"),
        ("#Summary #C C opens the door", "opens the door"),
        ("#C C opens the door #summary", "opens the door"),
        ("#C C talks #O man Y laughs #C C leaves", "talks leaves"),
        ("#C C talks #o lady Y laughs #unsure", "talks"),
        ("#C Cuts carrots", "Cuts carrots"),
    ],
)
def test_ego4d_marks_come_in_many_forms(narration, text):
    assert ego4d_text(narration) == text


def test_ego4d_marks_are_stripped_wherever_they_are():
    assert ego4d_text("#C C turns on the #unsure tap.") == "turns on the something tap"
    assert ego4d_text("#C cuts carrots") == "cuts carrots"


# EPIC-KITCHENS-100 ---------------------------------------------------------------------------------------------------

EPIC_HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
)


def test_epic_rows_become_clips(tmp_path):
    touch(tmp_path, "EPIC-KITCHENS/P01/videos/P01_01.MP4")
    (tmp_path / "EPIC_100_train.csv").write_text(
        EPIC_HEADER
        + "P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,open,3,door,3,['door'],[3]\n"
        + "P01_01_1,P01,P01_01,00:01:00.000,00:01:01.00,00:01:01.00,1,1,close door,close,4,door,3,['door'],[3]\n"
        + "P01_102_0,P01,P01_102,00:00:01.100,00:00:00.54,00:00:02.23,27,111,take knife and plate,take,0,knife,4,"
        + "\"['knife', 'plate']\",\"[4, 2]\"\n"
    )
    planned = plan("epic", tmp_path)
    assert short(planned) == [("P01_01_0", pytest.approx(0.14), pytest.approx(3.37), "open door", "P01_01")]
    assert planned.segments[0].meta == {"participant_id": "P01", "verb": "open", "noun": "door"}
    assert [id for id, _ in planned.refused] == ["P01_01_1"] and planned.absent == 1


def epic_frames(folder, video, count, first=1):
    touch(folder, *(f"{video}/frame_{number:010d}.jpg" for number in range(first, first + count)))


@pytest.mark.parametrize(
    ("video", "row", "rate"),
    [
        ("P01_01", "00:00:00.20,00:00:00.60,12,36", 60),
        ("P01_102", "00:00:00.20,00:00:00.60,10,30", 50),
        ("P02_01", "00:01:00.00,00:01:40.00,3596,5994", 60 / 1.001),
    ],
)
def test_epic_frames_have_the_rate_that_frame_numbers_tell(tmp_path, video, row, rate):
    epic_frames(tmp_path, video, 40)
    (tmp_path / "EPIC_100_train.csv").write_text(f"{EPIC_HEADER}a,P01,{video},0,{row},open door,,,,,,\n")
    planned = plan("epic", tmp_path)
    assert planned.segments[0].rate == pytest.approx(rate)
    assert plan("epic", tmp_path, sequence_fps=12.0).segments[0].rate == 12.0


def test_epic_frames_with_a_hole_or_without_a_rate_are_left_out(tmp_path):
    epic_frames(tmp_path, "P01_01", 20)
    epic_frames(tmp_path, "P01_01", 20, first=25)
    epic_frames(tmp_path, "P01_02", 60, first=100)
    epic_frames(tmp_path, "P01_03", 60)
    rows = [
        "before,P01,P01_01,0,00:00:00.10,00:00:00.25,6,15,open,,,,,,",
        "after,P01,P01_01,0,00:00:00.40,00:00:00.60,24,36,close,,,,,,",
        "late,P01,P01_02,0,00:00:00.10,00:00:00.60,6,36,open,,,,,,",
        "odd,P01,P01_03,0,00:00:00.10,00:00:00.60,6,17,open,,,,,,",
    ]
    (tmp_path / "EPIC_100_train.csv").write_text(EPIC_HEADER + "\n".join(rows) + "\n")
    planned = plan("epic", tmp_path)
    reasons = refused(planned)
    assert [s.id for s in planned.segments] == ["before"]
    assert reasons["after"].startswith("frame 21") and reasons["late"].startswith("frame 1 ")
    assert "--sequence-fps" in reasons["odd"]


@pytest.mark.parametrize("source", ["ego4d", "ssv2"])
def test_frames_of_other_sets_need_a_stated_rate(tmp_path, source):
    touch(tmp_path, *(f"v1/{number:05d}.jpg" for number in range(1, 50)))
    narration = {"narration_text": "#C C waves", "timestamp_sec": 3.0}
    (tmp_path / "narration.json").write_text(json.dumps({"v1": {"narration_pass_1": {"narrations": [narration]}}}))
    (tmp_path / "train.json").write_text(json.dumps([{"id": "v1", "label": "waving"}]))
    planned = plan(source, tmp_path)
    assert planned.segments == () and "--sequence-fps" in planned.refused[0][1]
    assert plan(source, tmp_path, sequence_fps=12.0).segments[0].rate == 12.0


def test_epic_test_timestamps_have_no_texts(tmp_path):
    touch(tmp_path, "P01_01.MP4")
    file = tmp_path / "EPIC_100_test_timestamps.csv"
    file.write_text(EPIC_HEADER.split(",narration,")[0] + "\n")
    with pytest.raises(UserError, match="'narration'"):
        plan("epic", tmp_path, file)


# Something-Something V2 ----------------------------------------------------------------------------------------------


def test_something_something_labels_become_clips(tmp_path):
    touch(tmp_path, "20bn-something-something-v2/78687.webm", "20bn-something-something-v2/42326.webm")
    labels = [
        {
            "id": "78687",
            "label": "holding potato next to vicks vaporub bottle",
            "template": "Holding [something] next to [something]",
            "placeholders": ["potato", "vicks vaporub bottle"],
        },
        {"id": "42326", "label": " ", "template": "Tearing [something]", "placeholders": [""]},
        {"id": "1", "label": "lifting a cup", "template": "Lifting [something]", "placeholders": ["a cup"]},
    ]
    (tmp_path / "train.json").write_text(json.dumps(labels))
    planned = plan("ssv2", tmp_path)
    assert short(planned) == [("78687", None, None, "holding potato next to vicks vaporub bottle", "78687")]
    assert planned.absent == 1 and len(planned.refused) == 1
    (tmp_path / "train.json").write_text(json.dumps([{"id": "78687"}]))
    with pytest.raises(UserError, match="no labels"):
        plan("ssv2", tmp_path)


# EgoDex --------------------------------------------------------------------------------------------------------------

INTRINSIC = np.array([[736.6339, 0.0, 960.0], [0.0, 736.6339, 540.0], [0.0, 0.0, 1.0]], np.float32)


def write_egodex(file, frames=5, attributes=(), move=0.0, confidences=True):
    """An HDF5 in EgoDex's form: a camera that is turned and shifted in ARKit's world, hands 0.5 m before it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    camera = np.eye(4)
    camera[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]  # columns: the camera's x, y, z axes in the world
    camera[:3, 3] = (1.0, 2.0, 3.0)
    with h5py.File(file, "w") as out:
        out["camera/intrinsic"] = INTRINSIC
        out["transforms/camera"] = np.repeat(camera[None], frames, axis=0).astype(np.float32)
        for side, x in (("left", -0.1), ("right", 0.1)):
            for k, joint in enumerate(ARKIT_JOINTS):
                pose = np.repeat(np.eye(4)[None], frames, axis=0)
                in_camera = np.array([x + 0.004 * k, 0.002 * k, 0.5 + 0.001 * k])
                pose[:, :3, 3] = in_camera @ camera[:3, :3].T + camera[:3, 3]
                pose[:, :3, 3] += np.arange(frames)[:, None] * move * camera[:3, 0]
                out[f"transforms/{side}{joint}"] = pose.astype(np.float32)
                if confidences:
                    sure = np.full(frames, 0.9 if k != 3 else 0.1, np.float32)
                    out[f"confidences/{side}{joint}"] = sure
        for name, value in dict(attributes).items():
            out.attrs[name] = value
    return file


def test_egodex_joints_are_in_the_order_of_our_keypoints():
    assert len(ARKIT_JOINTS) == len(KEYPOINTS) == 21
    assert ARKIT_JOINTS[0] == "Hand" and ARKIT_JOINTS[4] == "ThumbTip"
    assert ARKIT_JOINTS[5] == "IndexFingerKnuckle" and ARKIT_JOINTS[20] == "LittleFingerTip"


def test_egodex_keypoints_are_the_projection_by_the_files_camera(tmp_path):
    file = write_egodex(tmp_path / "0.hdf5")
    keypoints, seen = egodex_poses(file).keypoints(1920, 1080)
    assert keypoints.shape == (5, 2, 21, 3)
    # By hand: right index knuckle, k = 5: x = 0.12, y = 0.01, z = 0.505 m.
    assert keypoints[2, 1, 5, :2] == pytest.approx([960 + 736.6339 * 0.12 / 0.505, 540 + 736.6339 * 0.01 / 0.505])
    assert keypoints[2, 1, 5, 2] == pytest.approx(0.005, abs=1e-6)
    assert not seen[:, :, 3].any() and seen[:, :, 4].all()
    half, _ = egodex_poses(file).keypoints(960, 540)
    assert np.allclose(half[..., :2] * 2, keypoints[..., :2])


def test_egodex_points_behind_the_camera_are_not_seen(tmp_path):
    file = write_egodex(tmp_path / "0.hdf5", confidences=False)
    with h5py.File(file, "a") as out:
        for joint in ("leftHand", "leftThumbTip"):
            pose = out[f"transforms/{joint}"][()]
            pose[:, :3, 3] = (0.0, 2.0, 3.0)  # 1 m behind
            out[f"transforms/{joint}"][...] = pose
    keypoints, seen = egodex_poses(file).keypoints(1920, 1080)
    assert np.isfinite(keypoints).all()
    assert not seen[:, 0, [0, 4]].any() and seen[:, 0, 1].all() and seen[:, 1].all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda out: out.create_dataset("camera/intrinsic", data=np.zeros((0, 3))), r"camera/intrinsic is .*\(0, 3\)"),
        (
            lambda out: out.create_dataset("camera/intrinsic", data=np.full((3, 3), np.nan)),
            "camera/intrinsic holds NaN",
        ),
        (lambda out: None, "has no camera/intrinsic"),
        (lambda out: out.create_group("camera/intrinsic"), "has no camera/intrinsic"),
        (lambda out: out.create_dataset("camera/intrinsic", data=[b"a"]), "camera/intrinsic is"),
        (lambda out: out.__setitem__("camera/intrinsic", h5py.ExternalLink("other.hdf5", "x")), "in another file"),
    ],
)
def test_egodex_names_what_is_wrong(tmp_path, change, said):
    file = write_egodex(tmp_path / "0.hdf5")
    with h5py.File(file, "a") as out:
        del out["camera/intrinsic"]
        change(out)
    with pytest.raises(ValueError, match=said):
        egodex_poses(file).keypoints(1920, 1080)


def test_egodex_states_of_enormous_size_are_refused_before_they_are_read(tmp_path):
    file = write_egodex(tmp_path / "0.hdf5")
    with h5py.File(file, "a") as out:
        del out["transforms/leftHand"], out["transforms/camera"]
        out.create_dataset("transforms/camera", shape=(10**8, 4, 4), dtype="f8", chunks=(1, 4, 4))
        out.create_dataset("transforms/leftHand", shape=(10**8, 4, 4), dtype="f8", chunks=(1, 4, 4))
    with pytest.raises(ValueError, match=r"transforms/camera is float64 of shape \(100000000, 4, 4\)"):
        egodex_poses(file).keypoints(1920, 1080)


def test_egodex_files_say_their_text_and_direction(tmp_path):
    reversible = {
        "llm_type": "reversible",
        "llm_description": "Insert the plug.",
        "llm_description2": "Remove the plug.",
        "task": "insert_remove_plug",
        "session_name": "s1",
    }
    write_egodex(tmp_path / "part1/insert_remove_plug/0.hdf5", attributes=reversible | {"which_llm_description": "2"})
    write_egodex(tmp_path / "part1/insert_remove_plug/1.hdf5", attributes=reversible | {"which_llm_description": "1"})
    write_egodex(tmp_path / "part1/insert_remove_plug/2.hdf5", attributes=reversible)
    (tmp_path / "part1/insert_remove_plug/3.hdf5").write_bytes(b"no hdf5")
    for number in (0, 1, 3):
        touch(tmp_path, f"part1/insert_remove_plug/{number}.mp4")
    planned = plan("egodex", tmp_path)
    assert [s.text for s in planned.segments] == ["Remove the plug", "Insert the plug"]
    assert planned.segments[0].group == "s1" and planned.segments[0].meta == {"task": "insert_remove_plug"}
    assert [reason.split()[-1] for _, reason in planned.refused][0] == "2.hdf5" and len(planned.refused) == 2
