"""Objectives and maps: one more is a class, as docs/extending.md shows."""

import importlib
import sys

import pytest
import torch
from model_batches import robot_batch, small
from page_code import write_files

from arvrm.interface import UserError
from arvrm.model import analogy
from arvrm.model.objectives import OF_POLICIES
from arvrm.model.policy_net import PolicyNet
from arvrm.robots.calvin import CALVIN


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The page's files can be imported; what they register is forgotten after the test."""
    write_files("extending.md", "An objective or map", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    objectives, maps = list(OF_POLICIES), dict(analogy.MAPS)
    yield
    OF_POLICIES[:] = objectives
    analogy.MAPS.clear()
    analogy.MAPS.update(maps)
    for name in ("my_objective", "my_map", "my_arvrm"):
        sys.modules.pop(name, None)


def built(**changes):
    torch.manual_seed(0)
    return PolicyNet(small(**changes), CALVIN).eval()


def test_the_page_adds_an_objective(page):
    importlib.import_module("my_objective")
    plain, batch = built()(robot_batch()), robot_batch()
    smooth = built(loss={"others": {"smooth": 0.5}})(batch)
    change = smooth["actions"][..., :6].diff(dim=2).square().mean()
    assert smooth["loss_smooth"].item() == pytest.approx(change.item(), rel=1e-5)
    assert smooth["loss"].item() == pytest.approx((plain["loss"] + 0.5 * change).item(), rel=1e-5)
    assert "loss_smooth" not in built()(batch), "without a weight it is off"
    assert "loss_smooth" not in built(head="flow", loss={"others": {"smooth": 0.5}})(batch)


def test_the_page_adds_a_map(page):
    importlib.import_module("my_map")
    net, batch = built(analogy={"map": "low-rank"}), robot_batch(clips=2)
    net(batch)["loss"].backward()
    assert net.analogy.left.grad.abs().max() > 0
    assert net.analogy_map().shape == (7, 21) and not net.map_by_words


def test_the_pages_command_line_knows_both(page, capsys):
    command = importlib.import_module("my_arvrm")
    with pytest.raises(SystemExit, match="0"):
        command.main(["finetune", "--show-config", "model.analogy.map=low-rank"])
    assert "low-rank" in capsys.readouterr().out
    assert "smooth" in {objective.name for objective in OF_POLICIES}


def test_objectives_and_maps_of_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UserError, match="no objective is called 'replai'; did you mean 'replay'"):
        built(loss={"others": {"replai": 1.0}})(robot_batch())
    with pytest.raises(UserError, match="no map 'globl'; did you mean 'global'"):
        built(analogy={"map": "globl"})


def test_a_policy_trained_with_an_objective_plans_without_it():
    net = built(loss={"others": {"forgotten": 1.0}})
    assert net.act(robot_batch()).shape == (2, 4, 7)


def test_an_objective_is_left_out_where_the_batch_lacks_what_it_needs():
    batch = robot_batch()
    assert "loss_state" in built()(batch)
    batch.pop("next_components")
    assert "loss_state" not in built()(batch)
