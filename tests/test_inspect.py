"""`arvrm inspect --verify` reads everything and says what is lost."""

import json

import lmdb
import numpy as np
import pytest
from model_batches import SMALL
from small_stores import human_store, robot_store

from arvrm import cli
from arvrm.episodes.records import array_key, image_key, seal
from arvrm.model.checkpoint import save_checkpoint
from arvrm.model.keypoint_vlm import KeypointVLM
from arvrm.model.metadata import CheckpointMetadata
from arvrm.retrieval import build_index
from arvrm.training.index_stage import frozen_encoders


@pytest.fixture
def store(tmp_path):
    store = robot_store(tmp_path / "store", tasks=1, per_task=3)
    store.close()
    return tmp_path / "store"


def change(folder, table, key, value):
    """Put a record in place of another; None deletes it."""
    with lmdb.open(str(folder), max_dbs=4, map_size=1 << 28) as env:
        database = env.open_db(table)
        with env.begin(write=True) as txn:
            if value is None:
                assert txn.delete(key, db=database)
            else:
                txn.put(key, value, db=database)


def verified(folder, capsys):
    code = cli.main(["inspect", str(folder), "--verify"])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_a_whole_store_is_said_to_be_whole(store, capsys):
    code, said = verified(store, capsys)
    assert code == 0 and "everything was read, nothing is damaged" in said and "3 episodes" in said


def test_what_is_damaged_is_named_and_the_rest_is_read(store, capsys):
    change(store, b"arrays", array_key("r0-0", "actions"), b"\0" * 50)
    change(store, b"images", image_key("r0-1", "rgb_static", 2), None)
    change(store, b"images", image_key("r0-1", "rgb_static", 1), seal(b"no JPEG"))
    change(store, b"headers", b"r0-2", seal(b"\xc1"))
    code, said = verified(store, capsys)
    assert code == 1
    assert "episode 'r0-0': array actions is lost (fails its checksum)" in said
    assert "episode 'r0-1': rgb_static: 2 of 4 frames are lost (1, 2)" in said
    assert "episode 'r0-2': lost, as its header is" in said


def test_what_belongs_to_no_episode_is_named(store, capsys):
    change(store, b"headers", b"r0-2", None)
    code, said = verified(store, capsys)
    assert code == 1 and "records in table 'arrays' instead of" in said


@pytest.mark.parametrize(
    ("name", "value"),
    [("fps", float("nan")), ("steps", -3), ("steps", 2**40), ("instruction", 5), ("cameras", [["c", 10**9, 1]])],
)
def test_a_header_that_no_writer_gives_is_refused_before_anything_is_made_of_it(store, capsys, name, value):
    import msgpack

    with lmdb.open(str(store), max_dbs=4) as env, env.begin() as txn:
        values = msgpack.unpackb(txn.get(b"r0-0", db=env.open_db(b"headers", txn))[4:])
    change(store, b"headers", b"r0-0", seal(msgpack.packb(values | {name: value})))
    code, said = verified(store, capsys)
    assert code == 1 and "episode 'r0-0': lost, as its header is" in said
    assert cli.main(["inspect", str(store), "--no-contact-sheet"]) == 2


def test_a_store_whose_writer_was_stopped_is_said_not_to_be_complete(store, capsys):
    with lmdb.open(str(store), max_dbs=4) as env, env.begin() as txn:
        manifest = json.loads(txn.get(b"manifest", db=env.open_db(b"meta", txn)))
    change(store, b"meta", b"manifest", json.dumps(manifest | {"complete": False}).encode())
    code, said = verified(store, capsys)
    assert code == 0 and "NOT complete" in said


def test_an_index_is_described_and_verified(tmp_path, capsys):
    hands = CheckpointMetadata("pretrain", history=4, stride=3, images={"rgb_static": 32})
    save_checkpoint(tmp_path / "hands", KeypointVLM(SMALL), hands)
    folder = build_index([human_store(tmp_path / "human")], frozen_encoders(tmp_path / "hands"), tmp_path / "i").path
    assert cli.main(["inspect", str(folder), "--verify"]) == 0
    assert "nothing is damaged" in capsys.readouterr().out
    frames = np.load(folder / "frames.npy")
    frames[0, 0] = np.nan
    np.save(folder / "frames.npy", frames)
    assert cli.main(["inspect", str(folder), "--verify"]) == 2
    assert "checksum" in capsys.readouterr().err
