"""The tokens of a frame, counted in one place."""

import pytest
import torch
from model_batches import robot_batch, small

from arvrm.interface import UserError
from arvrm.model.layout import Group, asked, camera_group, hand_layout, policy_layout
from arvrm.model.policy_net import PolicyNet
from arvrm.robots.calvin import CALVIN


def test_places_follow_the_groups_and_their_parts():
    second = Group("static", (("latents", 3), ("cls", 1), ("second cls", 1), ("second latents", 3)))
    layout = policy_layout([second, camera_group("gripper", 3)], actions=4, images=0, analogy=True)
    assert layout.size == 2 + 8 + 4 + 1
    assert layout.where("static", "second latents") == slice(7, 10) and layout.where("gripper", "cls") == slice(13, 14)
    assert layout.where("analogy", "analogy") == slice(14, 15) and layout.where("gripper", "second cls") is None
    assert layout.count("action") == 4 and layout.count("state") == 1


def test_a_frame_is_assembled_in_the_layouts_order_and_a_wrong_number_is_named():
    layout = hand_layout(latents=2)
    tokens = {"static": torch.full((1, 2, 3, 4), 3.0), "language": torch.zeros(1, 2, 1, 4)}
    tokens["keypoints"] = torch.ones(1, 2, 1, 4)
    assert layout.assemble(tokens)[0, 0, :, 0].tolist() == [0, 1, 3, 3, 3]
    tokens["static"] = tokens["static"][:, :, :2]
    with pytest.raises(UserError, match=r"static tokens: expected shape \(1, 2, 3, 4\), got \(1, 2, 2, 4\)"):
        layout.assemble(tokens)


def test_queries_of_a_frame_stand_together():
    kinds = [("action", torch.zeros(2, 4), range(1, 3)), ("state", torch.ones(1, 4), range(3))]
    queries = asked(kinds, torch.device("cpu"))
    assert queries.frames.tolist() == [1, 1, 2, 2, 0, 1, 2] and queries.slices == {"action": (0, 4), "state": (4, 7)}
    assert queries.tokens[0, :, 0].tolist() == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("changes", [{}, {"analogy": {"at_rollout": "on"}}, {"fwd_pred": True, "image_patch": 8}])
def test_a_network_runs_what_its_layout_counts(changes):
    net, batch = PolicyNet(small(**changes), CALVIN), robot_batch(frames=3, clips=1)
    sizes = []
    net.vlm.transformer.register_forward_pre_hook(lambda _, given: sizes.append((given[0].shape[1], given[1].shape[1])))
    net(batch)
    layout = net.layout
    queries = sum(layout.count(kind) for kind in ("action", "state", "image"))
    assert sizes[0] == (3 * layout.size, 3 * queries)
