"""The map from hand keypoints to robot components."""

import pytest
import torch
from model_batches import small

from arvrm.model.analogy import analogy_map


def build(**analogy):
    torch.manual_seed(0)
    model = analogy_map(small(analogy=analogy), 7)
    torch.nn.init.normal_(model.weights)
    return model


def test_softmax_rows_are_distributions_over_visible_keypoints():
    visible = torch.rand(3, 21) > 0.5
    visible[2] = False
    m = build(rows="softmax").map(visible=visible)
    assert m.shape == (3, 7, 21)
    assert torch.allclose(m[:2].sum(-1), torch.ones(2, 7)) and (m[:2] >= 0).all()
    assert (m[2] == 0).all()
    assert (m.transpose(1, 2)[~visible] == 0).all()


def test_free_rows_are_any_numbers_but_none_for_keypoints_that_are_not_seen():
    visible = torch.rand(3, 21) > 0.5
    m = build(rows="free").map(visible=visible)
    assert (m < 0).any() and (m.transpose(1, 2)[~visible] == 0).all()


def test_a_language_map_differs_between_instructions_and_a_global_one_does_not():
    z_l = torch.randn(2, 32)
    spoken = build(map="language")
    assert torch.equal(*spoken.map(z_l)), "starts as a global map"
    torch.nn.init.normal_(spoken.words.weight)
    m = spoken.map(z_l)
    assert m.shape == (2, 7, 21) and (m[0] - m[1]).abs().max() > 1e-3
    assert build(map="global").map(z_l).shape == (7, 21)


def test_alpha_shares_out_between_hand_and_robot():
    f_k, f_s, visible = torch.randn(4, 21, 16), torch.randn(4, 7, 16), torch.ones(4, 21, dtype=torch.bool)
    hand = build(alpha=0.0).transfer(f_k, f_s, visible, None)
    robot = build(alpha=1.0).transfer(f_k, f_s, visible, None)
    mixed = build(alpha=0.25).transfer(f_k, f_s, visible, None)
    assert torch.allclose(robot, f_s)
    assert torch.allclose(mixed, 0.75 * hand + 0.25 * robot, atol=1e-6)
    assert torch.allclose(hand[0, 2], build().map()[2] @ f_k[0], atol=1e-6)


@pytest.mark.parametrize("rows", ["softmax", "free"])
def test_the_map_finds_which_keypoint_a_component_follows(rows):
    torch.manual_seed(0)
    model = build(rows=rows, alpha=0.0)
    torch.nn.init.zeros_(model.weights)
    follows = torch.tensor([0, 4, 8, 12, 16, 20, 4])
    reading = torch.randn(16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(300):
        f_k = torch.randn(64, 21, 16)
        target = (f_k[:, follows] * reading).sum(-1)
        visible = torch.ones(64, 21, dtype=torch.bool)
        loss = (model.read(model.transfer(f_k, torch.zeros(64, 7, 16), visible, None)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(model.map().abs().argmax(-1), follows)
