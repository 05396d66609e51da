"""Chains: the official 1000 to the bit, subsets of tasks, other scenes, and files of one's own."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from arvrm.interface import BLOCKS, TASKS, UserError
from arvrm.sim.chains import Chain, chain_start, fnv1, generate_chains, load_chains, save_chains
from arvrm.sim.scene import scene_description

OFFICIAL_DIGEST = "a8d66d2e0cb043d4b103fe1d7ec2cb10962b53dfc73ff5dcd61089fee4edec66"
"""SHA-256 of the official initial states, tasks and start states as JSON."""

STATE = {
    "led": 0, "lightbulb": 1, "slider": "left", "drawer": "open",
    "red_block": "table", "blue_block": "slider_left", "pink_block": "slider_right", "grasped": 0,
}  # fmt: skip
FEW = (
    "open_drawer", "close_drawer", "move_slider_left", "move_slider_right", "turn_on_led", "turn_off_led",
    "turn_on_lightbulb", "turn_off_lightbulb", "lift_red_block_table", "push_into_drawer",
)  # fmt: skip


@pytest.fixture(scope="module")
def chains():
    return generate_chains()


@pytest.fixture(scope="module")
def scene_d():
    return scene_description("D")


def official(description):
    return dataclasses.replace(description, assets="official")


def test_the_1000_chains_and_starts_are_the_official_ones(chains, scene_d):
    entries = [
        [chain.initial_state, list(chain.tasks), chain_start(chain, official(scene_d))[1].tolist()] for chain in chains
    ]
    assert hashlib.sha256(json.dumps(entries).encode()).hexdigest() == OFFICIAL_DIGEST


def test_the_1000_chains_equal_the_recorded_ones(chains, scene_d, golden):
    recorded = json.loads((golden / "sequences_1000.json").read_text())
    for chain, entry in zip(chains, recorded, strict=True):
        assert (chain.initial_state, list(chain.tasks)) == (entry["initial_state"], entry["tasks"])
        np.testing.assert_array_equal(chain_start(chain, official(scene_d))[1], entry["scene_obs"])


def test_hashes_are_those_of_pyhash():
    assert fnv1(b"test") == 3698262380
    assert fnv1("test".encode("utf-16-le")) == 3910690890


def test_a_subset_gives_chains_of_its_tasks_only_and_the_same_ones_again():
    chains = generate_chains(60, FEW)
    assert len(chains) == 60 == len(generate_chains(60, reversed(FEW)))
    assert chains == generate_chains(60, FEW)
    for chain in chains:
        assert len(chain.tasks) == len(set(chain.tasks)) == 5
        assert set(chain.tasks) <= set(FEW)
        # three kinds of fixtures, one lift, one push: no kind need occur more than twice
        kinds = ["light" if "turn" in task else task.split("_")[1] for task in chain.tasks]
        assert max(kinds.count(kind) for kind in kinds) <= 2
    assert len({str(chain.initial_state) for chain in chains}) > 30


def test_preconditions_hold_along_subset_chains():
    for chain in generate_chains(40, FEW):
        drawer, door = chain.initial_state["drawer"], chain.initial_state["slider"]
        held = False
        for task in chain.tasks:
            assert not held
            held = task.startswith("lift")
            if task in ("open_drawer", "close_drawer"):
                assert drawer == {"open_drawer": "closed", "close_drawer": "open"}[task]
                drawer = {"open_drawer": "open", "close_drawer": "closed"}[task]
            if task.startswith("move_slider"):
                assert door != task.rsplit("_", 1)[1]
                door = task.rsplit("_", 1)[1]
            if task == "push_into_drawer":
                assert drawer == "open"


def test_rare_chains_are_found_all_the_same():
    tasks = ("open_drawer", "close_drawer", "lift_red_block_table", "place_in_drawer", "lift_red_block_drawer")
    for chain in generate_chains(20, tasks):
        assert sorted(chain.tasks) == sorted(tasks)


def test_one_instruction_chains_suit_single_tasks():
    chains = generate_chains(12, ["turn_on_led"], length=1)
    assert {chain.tasks for chain in chains} == {("turn_on_led",)}
    assert all(chain.initial_state["led"] == 0 for chain in chains)


@pytest.mark.parametrize("number, tasks, words", [
    (10, ["open_drawer", "lift_red_block_table"], "add tasks"),
    (10, ["fold_towel"], "fold_towel"),
    (0, TASKS, "at least 1"),
])  # fmt: skip
def test_impossible_wishes_are_refused(number, tasks, words):
    with pytest.raises(UserError, match=words):
        generate_chains(number, tasks)


@pytest.mark.parametrize("name", ["A", "B", "C", "D"])
def test_starts_fit_the_scene(name):
    description = scene_description(name)
    fixtures = description.fixtures
    robot_obs, scene_obs = chain_start(Chain(STATE, ("open_drawer",)), description)
    assert robot_obs.shape == (15,)
    np.testing.assert_allclose(scene_obs[:2], [fixtures.slider_range, fixtures.drawer_range])
    np.testing.assert_allclose(scene_obs[2:6], [0, fixtures.switch_range, 1, 0])
    poses = dict(zip(description.block_order, scene_obs[6:].reshape(3, 6), strict=True))
    for block in BLOCKS:
        low, high = description.surfaces[STATE[f"{block}_block"]]
        assert (np.array(low)[:2] <= poses[block][:2]).all() and (poses[block][:2] <= np.array(high)[:2]).all()
        assert np.pi * 3 / 8 <= poses[block][5] <= np.pi * 5 / 8


def test_builtin_d_starts_where_official_d_does(scene_d, chains):
    for chain in chains[:20]:
        ours, theirs = (chain_start(chain, scene)[1] for scene in (scene_d, official(scene_d)))
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_chain_files_are_read_back(tmp_path, scene_d):
    scene = tuple(np.linspace(0, 1, 24))
    chains = [Chain(STATE, ("open_drawer", "turn_on_led")), Chain(STATE, ("close_drawer",), scene)]
    save_chains(chains, tmp_path / "chains.json")
    assert load_chains(tmp_path / "chains.json") == chains
    np.testing.assert_array_equal(chain_start(chains[1], scene_d)[1], scene)


def test_the_recorded_file_is_a_chain_file(golden, chains):
    loaded = load_chains(golden / "sequences_1000.json")
    assert [chain.tasks for chain in loaded] == [chain.tasks for chain in chains]
    assert all(len(chain.scene_obs) == 24 for chain in loaded)


@pytest.mark.parametrize("content, words", [
    ("", "not JSON"),
    ("[]", "no chains"),
    ('{"tasks": []}', "no chains"),
    ("[3]", r"\[0\]: expected an object"),
    ("[" * 100000, "not JSON"),
    ([[STATE, "open_drawer"]], "no tasks"),
    ([{"initial_state": STATE, "tasks": []}], "no tasks"),
    ([{"initial_state": STATE, "tasks": ["open_drawer"]}, {"initial_state": STATE, "tasks": ["fly"]}], r"\[1\].*fly"),
    ([{"tasks": ["open_drawer"]}], "no initial_state"),
    ([{"initial_state": {**STATE, "drawer": "ajar"}, "tasks": ["open_drawer"]}], "ajar"),
    ([{"initial_state": {**STATE, "green_block": "table"}, "tasks": ["open_drawer"]}], "green_block"),
    ([{"initial_state": {**STATE, "pink_block": "slider_left"}, "tasks": ["open_drawer"]}], "no start places"),
    ([{"initial_state": STATE, "tasks": ["open_drawer"], "scene_obs": [0] * 23}], "24 finite"),
    ([{"initial_state": STATE, "tasks": ["open_drawer"], "scene": "D"}], "unknown key 'scene'"),
])  # fmt: skip
def test_bad_chain_files_say_where_and_what(tmp_path, content, words):
    file = tmp_path / "chains.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=words) as error:
        load_chains(file)
    assert "\n" not in str(error.value) and "chains.json" in str(error.value)


def test_the_fields_own_lists_of_state_and_tasks_are_read(tmp_path):
    file = tmp_path / "sequences.json"
    file.write_text(json.dumps([[{**STATE, "grasped": 0}, ["open_drawer", "turn_on_led"]]]))
    (tmp_path / "ours.json").write_text(json.dumps([{"initial_state": STATE, "tasks": ["open_drawer", "turn_on_led"]}]))
    assert load_chains(file) == load_chains(tmp_path / "ours.json")


def test_a_missing_chain_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.json"):
        load_chains(tmp_path / "nowhere.json")
