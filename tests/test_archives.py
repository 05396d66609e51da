"""Files of torch.save and TorchScript are read without running what is in them, and cost no more than their size."""

import io
import os
import pickle
import struct
import time
import warnings
import zipfile

import numpy as np
import pytest
import torch

from arvrm import cli
from arvrm.interface import UserError
from arvrm.model import backbones
from arvrm.unpickle import load_archive


class Writes(torch.nn.Module):
    """Its `__setstate__` creates a file when torch.jit.load reads it."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path
        self.weight = torch.nn.Parameter(torch.ones(3))

    @torch.jit.export
    def __getstate__(self):
        return (self.path, self.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, torch.Tensor, bool]) -> None:
        self.path = state[0]
        self.weight = state[1]
        self.training = state[2]
        self.weight = torch.from_file(self.path, True, 4)

    def forward(self, x):
        return x


class Loops(torch.nn.Module):
    """Its `__setstate__` never ends, and its state looks like a module's own."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    @torch.jit.export
    def __getstate__(self):
        return {"weight": self.weight.detach()}

    @torch.jit.export
    def __setstate__(self, state: dict[str, torch.Tensor]) -> None:
        self.training = True
        self.weight = state["weight"]
        while bool(self.weight.sum() > 0):
            self.weight = self.weight + 1.0

    def forward(self, x):
        return x


class Benign(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(5, 3)
        self.blocks = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
        self.register_buffer("turned", torch.arange(12.0).reshape(3, 4).t())
        self.register_buffer("of_half", torch.tensor([0.5, -2.0], dtype=torch.float16))
        self.register_buffer("brain", torch.tensor([1.5, -3.25], dtype=torch.bfloat16))
        self.register_buffer("count", torch.tensor(7))
        self.sizes, self.names = [1, 2], {"a": 1.0}
        self.tied = self.linear.weight

    def forward(self, x):
        return self.blocks(self.linear(x))


def script(module, file):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module).save(str(file))
    return file


@pytest.fixture
def quick():
    """What is read in the test takes less than a second."""
    backbones.transformers_for("this test")
    begin = time.perf_counter()
    yield lambda: time.perf_counter() - begin
    assert time.perf_counter() - begin < 5  # a second on a quiet machine


def test_torch_itself_would_run_such_a_file(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.load(str(script(Writes(str(tmp_path / "ran")), tmp_path / "a.pt")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["ViTMAEModel", "Dinov2Model", "CLIPTextModelWithProjection"])
@pytest.mark.parametrize("harm", ["writes", "loops"])
def test_a_scripted_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path, kind, harm, quick):
    witness = tmp_path / "ran"
    file = script(Writes(str(witness)) if harm == "writes" else Loops(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match="__setstate__.*not run") as raised:
        backbones.load_original(file, kind)
    assert not witness.exists() and "\n" not in str(raised.value)


@pytest.mark.parametrize("flag", ["file", "vision"])
def test_import_runs_nothing_of_a_scripted_file(tmp_path, flag, quick, capsys):
    witness = tmp_path / "ran"
    file = script(Writes(str(witness)), tmp_path / "weights.pt")
    torch.save({"state_dict": {"embed_ln.weight": torch.ones(3)}}, tmp_path / "policy.pth")
    policy, vision = (file, file) if flag == "file" else (tmp_path / "policy.pth", file)
    assert cli.main(["import-checkpoint", str(policy), "--output", str(tmp_path / "o"), "--vision", str(vision)]) == 2
    assert "not run" in capsys.readouterr().err and not witness.exists()


def test_a_scripted_module_is_read_as_torch_reads_it(tmp_path):
    module = Benign()
    file = script(module, tmp_path / "a.pt")
    found = backbones.read_tensors(file)
    for name, value in module.state_dict().items():
        assert torch.equal(found[name].float(), value.float()), name
    assert found["of_half"].dtype == torch.float16 and found["count"].shape == ()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_saved_state_dict_is_read_as_torch_reads_it(tmp_path, zipped):
    state = Benign().state_dict() | {"parameter": torch.nn.Parameter(torch.randn(2)), "empty": torch.zeros(0, 3)}
    shared = torch.randn(4, 6)
    state |= {"whole": shared, "part": shared[1:3, ::2], "flags": torch.tensor([True, False])}
    more = {"epoch": 3, "args": {"lr": 1e-3}, "sizes": torch.Size([1, 2]), "kind": torch.float16, "rate": np.float64(1)}
    torch.save({"state_dict": state, **more}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = backbones.read_tensors(tmp_path / "a.pth")
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(found[name].float(), value.detach().float()), name


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_runs_a_command_is_refused(tmp_path, zipped):
    class Runs:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"a": torch.ones(2), "b": Runs()}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="system beside its tensors.*could run code"):
        backbones.read_tensors(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()


def archive(file, program, numbers=b"\0" * 16, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(file, "w", compression) as made:
        made.writestr("a/data.pkl", program)
        made.writestr("a/data/0", numbers)
    return file


def tensor(size, stride, count=4, offset=0):
    """The program of a dictionary with one float32 tensor in storage "0"."""

    def number(n):
        return b"\x8a\x08" + struct.pack("<q", n)

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpu" + number(count) + b"tQ"
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(size) + numbers(stride)
    return b"\x80\2}X\1\0\0\0w" + rebuilt + b"\x89ccollections\nOrderedDict\n)RtRs."


def test_the_hand_made_archive_is_a_valid_one(tmp_path):
    file = archive(tmp_path / "a.pt", tensor((2, 2), (2, 1)), np.arange(4, dtype="<f4").tobytes())
    assert np.array_equal(load_archive(file)["w"], [[0, 1], [2, 3]])


@pytest.mark.parametrize(
    "program",
    [
        tensor((2, 3), (3, 1)),
        tensor((4,), (2**40,)),
        tensor((2**62,), (0,)),
        tensor((2**40, 0), (1, 1)),
        tensor((4,), (-1,)),
        tensor((4,), (1,), offset=1),
        tensor((4,), (1,), offset=-1),
        tensor((4,), (1,), count=2**40),
        tensor((2,), (1,), count=2),
        tensor((1 << 20,), (0,)),
        b"\x80\2Nr\xff\xff\xff\x7f.",
        b"\x80\2" + b"(" * 100_000,
        b"\x80\4\x8e" + b"\xff" * 8,
    ],
)
def test_sizes_that_the_file_does_not_have_are_refused_before_anything_is_allocated(tmp_path, program, quick):
    with pytest.raises(UserError, match="a.pt"):
        backbones.read_tensors(archive(tmp_path / "a.pt", program))


def test_compressed_numbers_are_refused(tmp_path, quick):
    bomb = archive(tmp_path / "a.pt", tensor((2**24,), (1,), 2**24), bytes(2**26), zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(UserError, match="compressed"):
        backbones.read_tensors(bomb)


def test_one_storage_under_many_names_does_not_fill_the_memory(tmp_path, quick):
    numbers = torch.zeros(1 << 18)
    torch.save({f"w{i}": numbers[: len(numbers) - i] for i in range(3000)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="share numbers"):
        backbones.read_tensors(tmp_path / "a.pth")


def test_modules_that_hold_each_other_are_refused(tmp_path, quick):
    # Each of 40 modules holds the next one twice: 2^40 names.
    inner = b"c__torch__\nM\n)\x81}X\1\0\0\0wK\1sb"
    for i in range(40):
        inner = b"c__torch__\nM\n)\x81}(X\1\0\0\0a" + inner + b"q" + bytes([i]) + b"X\1\0\0\0bh" + bytes([i]) + b"ub"
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as made:
        made.writestr("a/data.pkl", b"\x80\2" + inner + b".")
        made.writestr("a/code/__torch__.py", "class M(Module):\n  pass\n")
    with pytest.raises(UserError, match="without end"):
        backbones.read_tensors(tmp_path / "a.pt")


def test_a_legacy_file_states_no_more_than_it_has(tmp_path, quick):
    stream = io.BytesIO()
    torch.save({"w": torch.zeros(4)}, stream, _use_new_zipfile_serialization=False)
    data = stream.getvalue()
    at = data.rindex(struct.pack("<q", 4))
    (tmp_path / "a.pth").write_bytes(data[:at] + struct.pack("<q", 2**40) + data[at + 8 :])
    with pytest.raises(UserError, match="cut short"):
        backbones.read_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_file_cut_short_is_an_error_of_one_line(tmp_path, cut):
    torch.save({"w": torch.zeros(4)}, tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:-cut])
    with pytest.raises(UserError, match="cannot be read as weights") as raised:
        backbones.read_tensors(tmp_path / "a.pth")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_wrappers_are_taken_off_and_errors_keep_them(tmp_path, prefix):
    from official_reference import Vit

    state = {prefix + name: value for name, value in Vit().state_dict().items()}
    torch.save({"model": state}, tmp_path / "mae.pth")
    backbones.load_original(tmp_path / "mae.pth", "ViTMAEModel")
    del state[prefix + "norm.bias"]
    torch.save({"model": state}, tmp_path / "mae.pth")
    with pytest.raises(UserError, match=f"{prefix}norm.bias".replace(".", r"\.")):
        backbones.load_original(tmp_path / "mae.pth", "ViTMAEModel")


def test_a_pickle_of_plain_values_holds_no_tensors(tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(UserError, match="cannot be read as weights"):
        backbones.read_tensors(tmp_path / "a.pth")
    torch.save({"epoch": 1}, tmp_path / "b.pth")
    with pytest.raises(UserError, match="no tensors"):
        backbones.read_tensors(tmp_path / "b.pth")
