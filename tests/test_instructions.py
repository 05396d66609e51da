"""Sentences of the tasks: enough of them, our own, and kept apart."""

import itertools
import json
import os
from pathlib import Path

import pytest

from arvrm.instructions import (
    calvin_instructions,
    load_instruction_file,
    training_instructions,
    unseen_instructions,
    validation_instruction,
)
from arvrm.interface import BLOCKS, TASKS, UserError

CALVIN_ROOT = Path(os.environ.get("CALVIN_ROOT", Path(__file__).parent.parent.parent / "shared" / "calvin"))
needs_calvin = pytest.mark.skipif(
    not (CALVIN_ROOT / "calvin_models").is_dir(), reason=f"CALVIN_ROOT: no CALVIN checkout at {CALVIN_ROOT}"
)


def words(sentence):
    return " ".join("".join(c if c.isalnum() else " " for c in sentence.lower()).split())


def every_sentence(task):
    return [*training_instructions(task), validation_instruction(task), *unseen_instructions(task)]


@pytest.mark.parametrize("task", TASKS)
def test_task_has_enough_sentences(task):
    assert len(training_instructions(task)) >= 12
    assert len(unseen_instructions(task)) >= 10
    assert validation_instruction(task)


def test_no_sentence_is_in_two_lists_or_tells_two_tasks():
    sentences = [words(s) for task in TASKS for s in every_sentence(task)]
    assert len(set(sentences)) == len(sentences)


@needs_calvin
def test_no_sentence_is_calvins():
    theirs = {
        words(sentence)
        for split in ("training", "validation")
        for sentence in itertools.chain(*calvin_instructions(CALVIN_ROOT, split).values())
    }
    assert len(theirs) > 300
    assert not theirs & {words(s) for task in TASKS for s in every_sentence(task)}


def test_sentences_name_their_block_and_direction():
    for task in TASKS:
        for sentence in map(words, every_sentence(task)):
            for colour in BLOCKS:
                named = colour in sentence.split()
                assert named == (f"_{colour}_" in task), (task, sentence)
            other = {"left": "right", "right": "left"}.get(task.split("_")[-1])
            assert not other or other not in sentence.split(), (task, sentence)
            if other and "clockwise" not in sentence:
                assert task.split("_")[-1] in sentence, (task, sentence)


def test_unknown_task_names_the_nearest():
    with pytest.raises(UserError, match="open_drawer"):
        training_instructions("open_drawers")


def test_instruction_file_in_json_and_yaml_read_alike(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"open_drawer": ["pull it "], "stack_block": "pile up"}))
    (tmp_path / "a.yaml").write_text('# ours\nopen_drawer: ["pull it "]\nstack_block: pile up\n')
    read = load_instruction_file(tmp_path / "a.json")
    assert read == load_instruction_file(tmp_path / "a.yaml")
    assert read == {"open_drawer": ("pull it",), "stack_block": ("pile up",)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "expected a mapping"),
        ('{"open_drawr": ["x"]}', "did you mean 'open_drawer'"),
        ('{"open_drawer": []}', "not empty"),
        ('{"open_drawer": [3]}', "not empty"),
    ],
)
def test_bad_instruction_file_is_refused_in_one_line(tmp_path, text, said):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match=said) as error:
        load_instruction_file(tmp_path / "bad.json")
    assert "\n" not in str(error.value)
    assert "bad.json" in str(error.value)


def test_missing_calvin_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="CALVIN_ROOT"):
        calvin_instructions(tmp_path)
    with pytest.raises(UserError, match="split 'test'"):
        calvin_instructions(tmp_path, "test")


@needs_calvin
def test_calvin_validation_has_one_sentence_a_task():
    sentences = calvin_instructions(CALVIN_ROOT, "validation")
    assert set(sentences) == set(TASKS)
    assert all(len(s) == 1 for s in sentences.values())
    assert sentences["open_drawer"] == ("pull the handle to open the drawer",)
