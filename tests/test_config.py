"""Configurations: JSON, overrides, and errors a person can act on."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from arvrm.config import bounded, check_bounds, from_dict, load, shown, to_dict
from arvrm.interface import UserError


@dataclass(frozen=True)
class Optimiser:
    learning_rate: float = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int | None = None


@dataclass(frozen=True)
class Experiment:
    stores: tuple[str, ...]
    steps: int = 100
    size: tuple[int, int] = (96, 64)
    mixed: bool = False
    weights: dict[str, float] = field(default_factory=dict)
    optimiser: Optimiser = Optimiser()

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")


def test_a_file_with_overrides_gives_the_configuration(tmp_path):
    file = tmp_path / "experiment.json"
    file.write_text(json.dumps({"stores": ["a", "b"], "optimiser": {"learning_rate": 1}}))
    overrides = ["steps=5", "--optimiser.warmup_steps=3", "weights.a=2", "optimiser.schedule=constant"]
    config = load(Experiment, file, overrides)
    assert config == Experiment(
        stores=("a", "b"), steps=5, weights={"a": 2.0}, optimiser=Optimiser(1.0, "constant", warmup_steps=3)
    )
    assert isinstance(config.optimiser.learning_rate, float)


def test_dictionaries_round_trip():
    config = Experiment(stores=("a",), size=(1, 2), optimiser=Optimiser(schedule="constant"))
    assert from_dict(Experiment, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stores": [], "stpes": 3}, "unknown key 'stpes'; did you mean 'steps'?"),
        ({"stores": [], "optimiser": {"learning_rat": 3}}, "configuration.optimiser: unknown key 'learning_rat'"),
        ({}, "missing key 'stores'"),
        ({"stores": "a"}, "configuration.stores: expected a list"),
        ({"stores": [1]}, r"configuration.stores\[0\]: expected str, got 1"),
        ({"stores": [], "steps": True}, "expected int, got True"),
        ({"stores": [], "steps": 1.5}, "expected int, got 1.5"),
        ({"stores": [], "size": [1]}, "expected 2 values, got 1"),
        ({"stores": [], "optimiser": {"schedule": "cosin"}}, "did you mean 'cosine'"),
        ({"stores": [], "steps": 0}, "steps must be at least 1, got 0"),
        ([], "expected an object"),
        ({"stores": [], "optimiser": {"learning_rate": float("nan")}}, "nan is too large or no number"),
        ({"stores": [], "optimiser": {"learning_rate": float("inf")}}, "inf is too large or no number"),
        ({"stores": [], "optimiser": {"learning_rate": 10**5000}}, "too large or no number"),
        ({"stores": [], "optimiser": {"learning_rate": True}}, "expected float, got True"),
        ({"stores": [], "steps": 10**30}, "too large"),
        ({"stores": [], "weights": {"a": "much"}}, "weights.a: expected float"),
    ],
)
def test_a_mistake_is_named_with_its_place(values, message):
    with pytest.raises(UserError, match=message):
        from_dict(Experiment, values)


def test_files_that_are_missing_or_broken_are_named(tmp_path):
    with pytest.raises(UserError, match="absent.json"):
        load(Experiment, tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text('{"stores": [')
    with pytest.raises(UserError, match="broken.json:1: not JSON"):
        load(Experiment, tmp_path / "broken.json")
    for content in (b"\xff\xfe\xfa", b"[" * 100_000, b'{"steps": ' + b"1" * 5000 + b"}", b"[]", b""):
        (tmp_path / "broken.json").write_bytes(content)
        with pytest.raises(UserError, match="broken.json.*; give an existing JSON file") as caught:
            load(Experiment, tmp_path / "broken.json")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    for place in (tmp_path, Path("/dev/zero")):
        with pytest.raises(UserError, match=f"{place}: "):
            load(Experiment, place)


def test_overrides_that_cannot_be_are_named():
    with pytest.raises(UserError, match="section.key=value"):
        load(Experiment, None, ["steps"])
    with pytest.raises(UserError, match="steps: expected int, got '1111"):
        load(Experiment, None, ["stores=[]", f"steps={'1' * 5000}"])
    with pytest.raises(UserError, match=r"stores: expected a list, got '\[\[\["):
        load(Experiment, None, [f"stores={'[' * 100_000}"])
    with pytest.raises(UserError, match="nan is too large or no number"):
        load(Experiment, None, ["stores=[]", "optimiser.learning_rate=NaN"])
    with pytest.raises(UserError, match="has no keys of its own"):
        load(Experiment, None, ["steps=3", "steps.more=4"])


@dataclass(frozen=True)
class Film:
    rows: int = bounded(4, least=1, most=8)
    fps: float | None = bounded(None, above=0)

    __post_init__ = check_bounds


def test_numbers_beyond_their_bounds_are_refused():
    assert Film() == from_dict(Film, {"rows": 4, "fps": None})
    for values, message in (
        ({"rows": 0}, "configuration: rows is 0; give at least 1"),
        ({"rows": 9}, "rows is 9; give at most 8"),
        ({"fps": 0}, "fps is 0.0; give more than 0"),
    ):
        with pytest.raises(UserError, match=message):
            from_dict(Film, values)
    with pytest.raises(ValueError, match="at least 1"):
        Film(rows=0)


def test_what_is_shown_leaves_out_what_has_no_value():
    assert list(shown(Experiment, {"steps": 5})) == ["steps", "size", "mixed", "weights", "optimiser"]
    assert shown(Experiment, {"optimiser": {"warmup_steps": 3}})["optimiser"]["learning_rate"] == 1e-3
    assert shown(Experiment, {"stores": ["a"]}) == to_dict(Experiment(stores=("a",)))
    with pytest.raises(UserError, match="unknown key 'stpes'"):
        shown(Experiment, {"stpes": 5})
