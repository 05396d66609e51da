"""Values that nobody can mean: each is refused in one line that names it and says what is allowed, at once."""

import dataclasses
import importlib
import pkgutil
import time

import pytest
import torch
from model_batches import SMALL
from safetensors.torch import load_file, save_file

import arvrm
from arvrm import cli
from arvrm.cli import VERBS
from arvrm.interface import UserError
from arvrm.model.checkpoint import load_checkpoint, save_checkpoint
from arvrm.model.keypoint_vlm import KeypointVLM
from arvrm.model.metadata import CheckpointMetadata
from arvrm.sim.render import CameraShift
from arvrm.sim.scene import Lighting

HANDS = CheckpointMetadata("pretrain", history=4, stride=3, images={"rgb_static": 32})


@pytest.mark.parametrize(
    ("verb", "word", "said"),
    [
        ("pretrain", "train.clip=-1", "clip is -1"),
        ("pretrain", "train.warmup=-5", "warmup is -5; give at least 0"),
        ("pretrain", "train.max_minutes=0", "max_minutes is 0"),
        ("pretrain", "train.learning_rate=NaN", "finite"),
        ("pretrain", "train.seed=-1", "seed is -1"),
        ("pretrain", "train.workers=-2", "workers is -2"),
        ("pretrain", "train.batch=1000000000000", "give at most"),
        ("pretrain", "train.steps=1000000000000", "give at most"),
        ("pretrain", "data.weights=[-1]", "weights is -1"),
        ("pretrain", "data.validation=2", "validation is 2"),
        ("pretrain", "window.stride=0", "stride is 0"),
        ("finetune", "model.width=0", "width is 0; give at least 1"),
        ("finetune", "model.layers=100000000", "layers is 100000000; give at most"),
        ("finetune", "model.width=1000000000", "give at most"),
        ("finetune", "model.width=60000", "GiB"),
        ("finetune", "model.dropout=2", "dropout is 2"),
        ("finetune", "model.vision.points=1000000000000", "give at most"),
        ("finetune", "model.loss.arm=-1", "arm is -1"),
        ("finetune", "retrieval.clips=0", "clips is 0"),
        ("index", "search.recall=1.5", "recall is 1.5"),
        ("evaluate", "chains=1000000000", "chains is 1000000000; give at most"),
        ("evaluate", "workers=0", "workers is 0"),
        ("evaluate", "lighting.ambient=NaN", "finite"),
        ("evaluate", "lighting.colour=[1, 1, -1]", "colour is -1"),
        ("evaluate", "camera_shift.seed=-1", "seed is -1"),
        ("evaluate", "seed=-3", "seed is -3"),
        ("generate", "episodes=1000000000000", "episodes is 1000000000000"),
        ("generate", "noise=NaN", "finite"),
        ("convert human", "fps=-30", "fps is -30"),
        ("convert human", "max_jitter=NaN", "finite"),
        ("exhibit", "seed=-1", "seed is -1"),
        ("report", "title=" + "x" * 1_000_000, "letters"),
    ],
)
def test_a_value_that_nobody_means_is_refused_in_one_line(verb, word, said):
    begin = time.monotonic()
    needed = {"pretrain": ["output=o"], "finetune": ["output=o"], "exhibit": ["checkpoint=c", "output=o"],
              "index": ['stores=["s"]', "checkpoint=c", "output=o"], "generate": ["output=o"],
              "report": ['results=["r"]'],
              "convert human": ["source=folder", "input=i", "output=o"]}  # fmt: skip
    with pytest.raises(UserError) as error:
        VERBS[verb].settings([*needed.get(verb, []), word])
    name = word.partition("=")[0].split(".")[-1]
    assert said in str(error.value) and name in str(error.value) and "\n" not in str(error.value)
    assert time.monotonic() - begin < 5  # a second, on a machine that is not busy


def test_no_number_of_a_configuration_is_without_bounds():
    """Whoever adds a number says how large it may be, or adds it here and says why it may be anything."""
    anything = {"ema", "fraction"}  # have a check of their own
    for module in pkgutil.walk_packages(arvrm.__path__, "arvrm."):
        if "__main__" not in module.name:
            importlib.import_module(module.name)
    seen, waiting = set(), [verb.kind for verb in VERBS.values()]
    while waiting:
        kind = waiting.pop()
        if kind in seen:
            continue
        seen.add(kind)
        for field in dataclasses.fields(kind):
            bare = str(field.type).replace(" | None", "")
            if bare in ("int", "float", "tuple[float, ...]", "tuple[int, int]") and field.name not in anything:
                assert set(field.metadata) & {"least", "above"}, f"{kind.__name__}.{field.name}"
            default = field.default_factory() if callable(field.default_factory) else field.default
            if dataclasses.is_dataclass(default):
                waiting.append(type(default))


@pytest.mark.parametrize("values", [{"ambient": float("nan")}, {"direction": (0.0, float("inf"), 0.0)}])
def test_a_light_that_is_no_number_is_refused_by_whoever_makes_it(values):
    with pytest.raises(UserError, match="finite"):
        Lighting(**values)
    with pytest.raises(UserError, match="finite"):
        CameraShift(metres=float("nan"))


@pytest.fixture(scope="module")
def hands(tmp_path_factory):
    torch.manual_seed(0)
    return save_checkpoint(tmp_path_factory.mktemp("model") / "hands", KeypointVLM(SMALL), HANDS)


def changed(hands, tmp_path, change, metadata=None):
    folder = tmp_path / "changed"
    folder.mkdir()
    for name in ("config.json", "statistics.json"):
        (folder / name).write_bytes((hands / name).read_bytes())
    tensors = load_file(hands / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata)
    return folder


def test_weights_that_are_whole_numbers_are_refused_by_name(hands, tmp_path):
    def whole(tensors):
        tensors["time"] = tensors["time"].to(torch.int64)

    with pytest.raises(UserError, match="time holds int64, not float32"):
        load_checkpoint(changed(hands, tmp_path, whole))


def test_weights_that_are_no_numbers_are_refused_by_name(hands, tmp_path):
    def broken(tensors):
        tensors["time"][0, 0] = float("nan")

    with pytest.raises(UserError, match="time holds NaN"):
        load_checkpoint(changed(hands, tmp_path, broken))


def test_weights_without_a_checksum_or_in_half_precision_load(hands, tmp_path):
    def half(tensors):
        tensors["time"] = tensors["time"].to(torch.bfloat16)

    assert load_checkpoint(changed(hands, tmp_path, half)).model.time.dtype == torch.float32


@pytest.mark.parametrize("place", [0.3, 0.6, 0.999])
def test_one_bit_of_the_weights_is_missed(hands, tmp_path, place):
    folder = changed(hands, tmp_path, lambda tensors: None)
    content = bytearray((hands / "model.safetensors").read_bytes())
    content[int(place * len(content))] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        load_checkpoint(folder)


def test_a_checkpoint_is_inspected(hands, capsys):
    assert cli.main(["inspect", str(hands)]) == 0
    assert "keypoint_vlm of pretrain for hands" in capsys.readouterr().out
