"""The 34 predicates, on made-up moments; tests/test_verify.py judges them on recordings of the official oracle."""

import copy

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from arvrm.interface import TASKS, UserError
from arvrm.sim.tasks import TaskOracle

TABLE, PLANK, DRAWER = ("table", "base_link"), ("table", "plank_link"), ("table", "drawer_link")
ROBOT = ("robot", 9)


def moment():
    block = {"orientation": (0, 0, 0, 1), "linear_velocity": (0, 0, 0), "angular_velocity": (0, 0, 0)}
    places = {"red": (0.05, -0.12, 0.46), "blue": (0.23, -0.12, 0.46), "pink": (-0.24, 0.09, 0.46)}
    return {
        "door": 0.0, "drawer": 0.0, "bulb": 0, "led": 0, "robot_contacts": frozenset(),
        "blocks": {
            name: {**block, "position": place, "contacts": frozenset({PLANK if name == "pink" else TABLE})}
            for name, place in places.items()
        },
    }  # fmt: skip


def changed(start=None, block="red", move=(0, 0, 0), turn=None, contacts=None, **values):
    now = copy.deepcopy(start or moment())
    target = now["blocks"][block]
    target["position"] = tuple(np.add(target["position"], move))
    if turn is not None:
        target["orientation"] = tuple(Rotation.from_euler("xyz", turn, degrees=True).as_quat())
    if contacts is not None:
        target["contacts"] = frozenset(contacts)
    for key, value in values.items():
        (target if key.endswith("velocity") else now)[key] = value
    return now


def done(start, now):
    return TaskOracle().completed(start, now)


def test_nothing_is_done_when_nothing_happens():
    assert done(moment(), moment()) == set()


@pytest.mark.parametrize("degrees, task", [
    (61, "rotate_red_block_left"), (179, "rotate_red_block_left"), (-61, "rotate_red_block_right"), (59, None),
    (-59, None),
])  # fmt: skip
def test_a_block_turned_by_more_than_60_degrees_is_rotated(degrees, task):
    assert done(moment(), changed(turn=(0, 0, degrees))) == ({task} if task else set())


@pytest.mark.parametrize("change", [
    {"turn": (35, 0, 90)},
    {"turn": (0, 0, 90), "move": (0, 0.11, 0)},
    {"turn": (0, 0, 90), "contacts": [ROBOT]},
    {"turn": (0, 0, 90), "contacts": []},
])  # fmt: skip
def test_tilted_displaced_or_lifted_turns_do_not_count(change):
    assert done(moment(), changed(**change)) == set()


@pytest.mark.parametrize("x, task", [(0.11, "push_red_block_right"), (-0.11, "push_red_block_left"), (0.09, None)])
def test_a_block_moved_by_10_cm_on_its_support_is_pushed(x, task):
    assert done(moment(), changed(move=(x, 0.3, 0))) == ({task} if task else set())
    assert done(moment(), changed(move=(x, 0, 0), contacts=[TABLE, ROBOT, PLANK])) == ({task} if task else set())
    assert done(moment(), changed(move=(x, 0, 0), contacts=[PLANK])) == set()


def test_a_lift_needs_height_the_robot_alone_and_the_right_start():
    held = [("robot", 9), ("robot", 11)]
    assert done(moment(), changed(move=(0, 0, 0.06), contacts=held)) == {"lift_red_block_table"}
    assert done(moment(), changed(move=(0, 0, 0.04), contacts=held)) == set()
    assert done(moment(), changed(move=(0, 0, 0.06), contacts=[*held, TABLE])) == set()
    assert done(moment(), changed(block="pink", move=(0, 0, 0.04), contacts=held)) == {"lift_pink_block_slider"}
    start = changed(block="blue", contacts=[DRAWER])
    assert done(start, changed(start, block="blue", move=(0, 0, 0.06), contacts=held)) == {"lift_blue_block_drawer"}


@pytest.mark.parametrize("link, task", [(PLANK, "place_in_slider"), (DRAWER, "place_in_drawer"), (TABLE, None)])
def test_placing_needs_a_held_block_let_go_on_its_place(link, task):
    start = changed(contacts=[ROBOT], robot_contacts=frozenset({"red"}))
    placed = changed(start, contacts=[link], robot_contacts=frozenset())
    assert done(start, placed) == ({task} if task else set())
    assert done(start, changed(start, contacts=[link], robot_contacts=frozenset({"red"}))) == set()
    both = changed(start, contacts=[ROBOT], robot_contacts=frozenset({"red", "table"}))
    assert done(both, placed) == set()


def test_pushing_into_the_drawer_goes_from_the_table_only():
    now = changed(contacts=[DRAWER])
    assert "push_into_drawer" in done(moment(), now)
    assert "push_into_drawer" in done(moment(), changed(contacts=[DRAWER, ROBOT]))  # as CALVIN decides
    assert "push_into_drawer" not in done(changed(contacts=[TABLE, ROBOT]), now)
    assert "push_into_drawer" not in done(changed(contacts=[PLANK]), now)


@pytest.mark.parametrize("joint, distance, task", [
    ("door", 0.151, "move_slider_left"), ("door", 0.149, None),
    ("drawer", 0.121, "open_drawer"), ("drawer", 0.119, None),
])  # fmt: skip
def test_doors_count_by_how_far_they_moved(joint, distance, task):
    back = {"move_slider_left": "move_slider_right", "open_drawer": "close_drawer"}.get(task)
    moved = changed(**{joint: distance})
    assert done(moment(), moved) == ({task} if task else set())
    assert done(moved, moment()) == ({back} if back else set())


@pytest.mark.parametrize("light, name", [("bulb", "lightbulb"), ("led", "led")])
def test_lights_count_when_they_change(light, name):
    on = changed(**{light: 1})
    assert done(moment(), on) == {f"turn_on_{name}"}
    assert done(on, moment()) == {f"turn_off_{name}"}
    assert done(on, on) == set()


def test_a_stack_is_a_block_at_rest_on_blocks_only():
    start = changed(contacts=[ROBOT])
    now = changed(start, contacts=[("blue", -1)])
    assert done(start, now) == {"stack_block"}
    assert done(start, changed(start, contacts=[("blue", -1), ROBOT])) == set()
    assert done(start, changed(now, linear_velocity=(0, 0, -1.5))) == set()
    assert done(start, changed(now, angular_velocity=(0, 2, 0))) == set()


def test_unstacking_is_the_reverse_and_looks_at_the_start_s_speed():
    start = changed(contacts=[("blue", -1)])
    assert done(start, moment()) == {"unstack_block"}
    assert done(changed(start, linear_velocity=(0, 0, -1.5)), moment()) == set()


def test_only_the_asked_tasks_are_judged_and_unknown_ones_refused():
    now = changed(led=1, bulb=1)
    assert TaskOracle().completed(moment(), now, ("turn_on_led", "open_drawer")) == {"turn_on_led"}
    assert TaskOracle().completed(moment(), now, TASKS) == {"turn_on_led", "turn_on_lightbulb"}
    with pytest.raises(UserError, match="fold_towel"):
        TaskOracle().completed(moment(), now, ("fold_towel",))
