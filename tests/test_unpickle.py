"""Hostile pickles are refused before they run; NumPy's and torch's own ones are read."""

import collections
import os
import pickle
import subprocess

import numpy as np
import pytest
import torch

from arvrm.interface import UserError
from arvrm.unpickle import load_npy, loads, loads_tensors


class _Runs:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("read", [loads, loads_tensors])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_a_command_is_refused_and_runs_nothing(tmp_path, read, protocol):
    witness = tmp_path / "ran"
    with pytest.raises(UserError, match="system"):
        read(pickle.dumps(_Runs(os.system, f"touch {witness}"), protocol))
    assert not witness.exists()


@pytest.mark.parametrize(
    "value",
    [
        _Runs(eval, "1+1"),
        _Runs(getattr, "", "join"),
        _Runs(open, "/dev/null"),
        _Runs(subprocess.check_output, "true"),
        _Runs(np.load, "x.npy"),
        _Runs(np.fromfile, "/dev/null"),
        _Runs(torch.load, "x.pt"),
        collections.Counter("aab"),
    ],
    ids=["eval", "getattr", "open", "check_output", "np.load", "np.fromfile", "torch.load", "Counter"],
)
def test_everything_outside_the_list_is_refused(value):
    with pytest.raises(UserError, match="refused"):
        loads_tensors(pickle.dumps(value))


def test_a_dotted_name_does_not_reach_past_the_list():
    # Protocol 4 may ask for "ndarray.tofile"; only whole names are on the list.
    program = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    with pytest.raises(UserError, match="ndarray.tofile"):
        loads(program)


def test_a_pickle_cannot_change_an_allowed_function():
    # BUILD (b) on numpy.core.multiarray._reconstruct with a state of attributes.
    program = b"cnumpy.core.multiarray\n_reconstruct\n}(S'__doc__'\nS'x'\nub."
    with pytest.raises(UserError, match="refused"):
        loads(program)


def test_a_pickle_cannot_reserve_memory_by_an_array_shape():
    program = pickle.dumps(_Runs(np.ndarray, (10**13,)))
    with pytest.raises(UserError, match="refused"):
        loads(program)


@pytest.mark.parametrize("data", [b"", b"garbage", pickle.dumps(np.arange(9))[:-20], b"\x80\x04N"])
def test_damaged_pickles_are_errors_of_one_line(data):
    with pytest.raises(UserError) as error:
        loads(data, "here.npy")
    assert "here.npy" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_come_back_equal(protocol):
    value = {
        "float": np.linspace(0, 1, 7).reshape(7, 1),
        "columns": np.asfortranarray(np.arange(12, dtype=np.int32).reshape(3, 4)),
        "bytes": b"\x00\xff",
        "objects": np.array(["a", None, 3], dtype=object),
        "scalar": np.float32(0.5),
        "plain": [(1, 2.5, "three"), {True, False}, None],
    }
    found = loads(pickle.dumps(value, protocol))
    assert found.keys() == value.keys()
    for key in ("float", "columns", "objects", "scalar"):
        assert found[key].dtype == value[key].dtype
        np.testing.assert_array_equal(found[key], value[key])
    assert (found["bytes"], found["plain"]) == (value["bytes"], value["plain"])


def test_the_annotation_file_of_calvin_is_read_as_numpy_reads_it(tmp_path):
    value = {"language": {"ann": ["a"], "emb": np.ones((1, 1, 384))}, "info": {"indx": [(1, 2)]}}
    np.save(tmp_path / "a.npy", value)
    found = load_npy(tmp_path / "a.npy")
    assert found["language"]["ann"] == ["a"] and found["info"] == value["info"]
    np.testing.assert_array_equal(found["language"]["emb"], value["language"]["emb"])
    np.save(tmp_path / "b.npy", np.arange(6).reshape(3, 2))
    np.testing.assert_array_equal(load_npy(tmp_path / "b.npy"), np.arange(6).reshape(3, 2))


def test_a_hostile_npy_file_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", {"x": _Runs(os.system, f"touch {tmp_path / 'ran'}")}, allow_pickle=True)
    with pytest.raises(UserError, match="system"):
        load_npy(tmp_path / "a.npy")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x04\x00abcd", b"no array at all"])
def test_a_damaged_npy_file_is_an_error_of_one_line(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UserError, match="a.npy"):
        load_npy(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(7.0),
        torch.arange(24, dtype=torch.float64).reshape(2, 3, 4)[:, 1:, ::2],
        torch.arange(6, dtype=torch.uint8).reshape(2, 3).t(),
        torch.tensor(3, dtype=torch.int64),
        torch.zeros(0, 3),
        torch.tensor([True, False]),
        torch.tensor([0.5, -2.0], dtype=torch.float16),
    ],
    ids=lambda tensor: f"{tensor.dtype}{tuple(tensor.shape)}",
)
def test_tensors_come_back_as_arrays_of_the_same_values(tensor):
    found = loads_tensors(pickle.dumps(tensor))
    assert found.dtype == tensor.numpy().dtype
    np.testing.assert_array_equal(found, tensor.numpy())


def test_bfloat16_comes_back_as_float32():
    tensor = torch.tensor([1.5, -3.25], dtype=torch.bfloat16)
    np.testing.assert_array_equal(loads_tensors(pickle.dumps(tensor)), tensor.float().numpy())


def test_a_tensor_larger_than_its_storage_is_refused():
    program = pickle.dumps(torch.arange(4.0))
    assert program.count(b"K\x04\x85") == 1  # the size (4,)
    with pytest.raises(UserError, match="larger than its storage"):
        loads_tensors(program.replace(b"K\x04\x85", b"K\x7f\x85"))


def test_tensors_are_refused_where_only_arrays_belong():
    with pytest.raises(UserError, match="torch"):
        loads(pickle.dumps(torch.arange(3)))


def test_a_hostile_pickle_inside_a_tensors_storage_is_refused(tmp_path):
    inner = pickle.dumps(_Runs(os.system, f"touch {tmp_path / 'ran'}"))
    program = pickle.dumps(_Runs(torch.storage._load_from_bytes, inner))
    with pytest.raises(UserError, match="system"):
        loads_tensors(program)
    assert not (tmp_path / "ran").exists()
