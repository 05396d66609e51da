"""Stage 2: what the losses and the actions may depend on, and that it learns."""

import pytest
import torch
from model_batches import clone, human_batch, robot_batch, small

from arvrm.interface import Camera, UserError
from arvrm.model.heads import FlowHead
from arvrm.model.heatmaps import centres
from arvrm.model.policy_net import PolicyNet
from arvrm.robots.calvin import CALVIN
from arvrm.robots.vector import Ranges, VectorRobot


def build(seed=0, **changes):
    torch.manual_seed(seed)
    model = PolicyNet(small(**changes), CALVIN).eval()
    # Heads that start at zero would hide what they must not depend on.
    for head in (model.state_head, model.vlm.keypoint_head):
        torch.nn.init.normal_(head[-1].weight, std=0.3)
    return model


def other_clips(batch):
    moved = clone(batch)
    moved["clips"]["keypoints"] += torch.randn(moved["clips"]["keypoints"].shape)
    return moved


def run(model, batch):
    torch.manual_seed(0)
    return model(batch)


@pytest.mark.parametrize("term", ["analogy", "replay"])
@pytest.mark.parametrize("at_rollout", ["off", "on"])
def test_other_clips_give_another_loss(term, at_rollout):
    only = {"analogy": 0.0, "replay": 0.0, term: 1.0}
    model, batch = build(loss=only, analogy={"at_rollout": at_rollout}), robot_batch(clips=2)
    before, after = run(model, batch), run(model, other_clips(batch))
    assert (before[f"loss_{term}"] - after[f"loss_{term}"]).abs() > 1e-4
    assert (before["loss"] - after["loss"]).abs() > 1e-4


@pytest.mark.parametrize("head", ["regression", "flow"])
def test_other_clips_give_other_actions_with_analogy_at_rollout_and_the_same_without(head):
    batch = robot_batch(clips=2)
    # A fresh flow head's velocity is zero; wake it.
    for at_rollout, differ in (("on", True), ("off", False)):
        model = build(analogy={"at_rollout": at_rollout}, head=head)
        if head == "flow":
            torch.nn.init.normal_(model.head.velocity.weight, std=0.3)
        change = (model.act(batch) - model.act(other_clips(batch))).abs().max()
        assert (change > 1e-5) == differ


def test_a_clip_that_is_masked_counts_as_no_clip():
    model, batch = build(analogy={"at_rollout": "on"}), robot_batch(clips=2)
    gone = clone(batch)
    gone["clips"]["frame_mask"][:] = False
    none = clone(batch)
    none["clips"] = None
    assert torch.allclose(model.act(gone), model.act(none), atol=1e-6)
    one = clone(batch)
    one["clips"]["frame_mask"][:, 1] = False
    moved = clone(one)
    moved["clips"]["keypoints"][:, 1] += 1.0
    assert torch.equal(model.act(one), model.act(moved))
    assert torch.equal(run(model, one)["loss"], run(model, moved)["loss"])
    assert not torch.equal(model.act(one), model.act(none))


def test_padding_frames_influence_neither_loss_nor_actions():
    changes = {"analogy": {"at_rollout": "on"}, "loss": {"localisation": 1.0, "geometry": 1.0}, "fwd_pred": True}
    model, batch = build(**changes, image_patch=8), robot_batch(frames=3, clips=2)
    batch["frame_mask"][0, 0] = False
    batch["clips"]["frame_mask"][0, :, 0] = False
    moved = clone(batch)
    for part in (moved, moved["clips"]):
        for name, value in part.items():
            if name in ("clips", "frame_mask", "text", "text_mask"):
                continue
            where = value[0] if part is moved else value[0].transpose(0, 1)
            where[0] = ~where[0] if value.dtype == torch.bool else 255 - where[0] if "static" in name else where[0] + 3
    before, after = run(model, batch), run(model, moved)
    for name in (n for n in before if n.startswith("loss")):
        assert torch.allclose(before[name], after[name], atol=1e-6), name
    assert torch.allclose(model.act(batch), model.act(moved), atol=1e-6)


@pytest.mark.parametrize("mask", ["action_mask", "next_mask", "landmark_mask", "next_image_mask"])
def test_masked_targets_are_not_counted(mask):
    model, batch = build(loss={"localisation": 1.0}, fwd_pred=True, image_patch=8), robot_batch()
    batch[mask][0] = False
    targets = {
        "action_mask": "actions", "next_mask": "next_components", "landmark_mask": "landmark_pixels",
        "next_image_mask": "next_static",
    }  # fmt: skip
    moved = clone(batch)
    name = targets[mask]
    moved[name][0] = 255 - moved[name][0] if mask == "next_image_mask" else -0.5 * moved[name][0]
    assert torch.equal(run(model, batch)["loss"], run(model, moved)["loss"])
    batch[mask][0] = True
    assert not torch.equal(run(model, batch)["loss"], run(model, moved)["loss"])


@pytest.mark.parametrize("changes", [{}, {"attention": "frame"}, {"action_queries": "one"}, {"sighted_queries": True}])
def test_actions_of_a_frame_see_no_later_frame(changes):
    model, batch = build(**changes), robot_batch(frames=3)
    moved = clone(batch)
    moved["static"][:, 2] = 255 - moved["static"][:, 2]
    moved["state"][:, 2] += 1.0
    moved["components"][:, 2] += 1.0
    before, after = run(model, batch), run(model, moved)
    for name in ("actions", "next_components"):
        assert torch.allclose(before[name][:, :2], after[name][:, :2], atol=1e-5)
        assert (before[name][:, 2] - after[name][:, 2]).abs().max() > 1e-4


@pytest.mark.parametrize("key", ["text", "static", "gripper", "state", "components"])
def test_actions_depend_on_every_observation(key):
    model, batch = build(), robot_batch()
    moved = clone(batch)
    moved[key] = 255 - moved[key] if moved[key].dtype == torch.uint8 else moved[key] + torch.randn(moved[key].shape)
    assert (model.act(batch) - model.act(moved)).abs().max() > 1e-5


@pytest.mark.parametrize("head", ["regression", "flow"])
@pytest.mark.parametrize(
    "queries",
    [{"action_queries": "each"}, {"action_queries": "one"}, {"action_queries": "each", "sighted_queries": True}],
)
def test_a_plan_is_that_of_the_last_frame_within_bounds(head, queries):
    model, batch = build(head=head, query_frames="last", **queries), robot_batch()
    plan = model.act(batch)
    assert plan.shape == (2, 4, 7) and plan.dtype == torch.float32
    assert plan[..., :6].abs().max() <= 1.0 and set(plan[..., 6].flatten().tolist()) <= {-1.0, 1.0}
    shown = run(model, batch)["actions"]
    assert shown.shape == (2, 1, 4, 7)
    assert torch.allclose(shown[:, -1, :, :6].clamp(-1, 1), plan[..., :6], atol=1e-5)
    every = build(head=head, query_frames="all", **queries)
    assert torch.allclose(every.act(batch), plan, atol=1e-6)


@pytest.mark.parametrize("head", ["regression", "flow"])
def test_a_plan_does_not_depend_on_the_rest_of_the_batch(head):
    model, batch = build(head=head), robot_batch(batch=3)
    alone = {name: value[1:2] for name, value in batch.items() if value is not None}
    assert torch.allclose(model.act(batch)[1:2], model.act(alone), atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"loss": {"geometry": 1.0}}, {"sighted_queries": True}])
def test_kept_frame_tokens_give_the_plan_that_images_give(changes):
    model, batch = build(**changes), robot_batch(frames=3)
    observed = {name: batch[name] for name in ("text", "text_mask", "frame_mask", "state", "components")}
    tokens = []
    for t in range(3):
        frame = {"static": batch["static"][:, t : t + 1], "gripper": batch["gripper"][:, t : t + 1], **observed}
        tokens.append(model.encode_frames(frame))
    kept = {name: torch.cat([part[name] for part in tokens], dim=1) for name in tokens[0]}
    assert torch.allclose(model.act({**observed, **kept}), model.act(batch), atol=1e-5)


def test_planning_computes_no_other_queries():
    model, batch = build(fwd_pred=True, image_patch=8), robot_batch(frames=3)
    counts = []
    model.vlm.transformer.register_forward_hook(lambda module, args, out: counts.append(out.shape[1]))
    model.act(batch)
    run(model, batch)
    chunk, latents = 4, 2
    assert counts == [chunk, 3 * (chunk + 1 + 2 * (latents + 1))]


def test_loss_is_the_weighted_sum_of_its_terms():
    weights = dict(arm=3.0, gripper=5.0, state=7.0, analogy=11.0, replay=13.0, localisation=17.0, geometry=19.0)
    model, batch = build(loss=weights), robot_batch(clips=2)
    out = run(model, batch)
    total = sum(weight * out[f"loss_{name}"] for name, weight in weights.items())
    assert out["loss"].item() == pytest.approx(total.item(), rel=1e-5)
    silent = build(loss=dict.fromkeys(weights, 0.0) | {"arm": 1.0})
    assert set(run(silent, batch)) == {"loss", "loss_arm", "loss_gripper", "actions"}


def test_analogy_loss_is_a_sum_over_clips():
    model, batch = build(), robot_batch(clips=2)
    batch["clips"] = {name: value[:, :1] for name, value in batch["clips"].items()}
    batch["clips"]["visible"][:] = True
    twice = clone(batch)
    twice["clips"] = {name: torch.cat([value, value], dim=1) for name, value in batch["clips"].items()}
    once = run(model, batch)["loss_analogy"].item()
    assert run(model, twice)["loss_analogy"].item() == pytest.approx(2 * once, rel=1e-5)


def test_replay_is_the_stage_one_loss_of_the_clips():
    model, batch = build(), robot_batch(clips=2)
    flat = {name: value.flatten(0, 1) for name, value in batch["clips"].items()}
    assert run(model, batch)["loss_replay"].item() == pytest.approx(model.vlm(flat)["loss"].item(), rel=1e-5)


def test_stage_two_trains_the_transformer_and_the_map_but_not_the_keypoint_encoder_and_head():
    model, batch = build(analogy={"at_rollout": "on"}), robot_batch(clips=2)
    run(model, batch)["loss"].backward()
    frozen = (model.vlm.joints, model.vlm.keypoint_token, model.vlm.keypoint_head)
    assert all(p.grad is None for module in frozen for p in module.parameters())
    for module in (model.vlm.transformer, model.vlm.text, model.vlm.static_encoder, model.analogy, model.components):
        assert all(p.grad is not None for p in module.parameters())
    assert model.analogy.weights.grad.abs().max() > 0
    free = build(freeze_keypoints=False)
    run(free, batch)["loss"].backward()
    assert all(p.grad is not None for p in free.vlm.keypoint_head.parameters())


def test_replay_reaches_the_shared_transformer():
    only = dict(arm=0.0, gripper=0.0, state=0.0, analogy=0.0, replay=1.0)
    model = build(loss=only)
    run(model, robot_batch(clips=1, frames=3))["loss"].backward()
    assert model.vlm.transformer.blocks[0].query.weight.grad.abs().max() > 0


def test_without_clips_no_human_term_is_computed():
    out = run(build(), robot_batch(clips=0))
    assert "loss_analogy" not in out and "loss_replay" not in out


@pytest.mark.parametrize("map_kind", ["global", "language"])
def test_a_language_map_makes_the_transfer_depend_on_the_instruction(map_kind):
    model, batch = build(analogy={"map": map_kind, "alpha": 0.0}), robot_batch(clips=1)
    if map_kind == "language":
        torch.nn.init.normal_(model.analogy.words.weight)
    moved = clone(batch)
    moved["text"] += torch.randn(moved["text"].shape)
    change = (run(model, batch)["loss_analogy"] - run(model, moved)["loss_analogy"]).abs()
    assert (change > 1e-5) == (map_kind == "language")


def test_random_shift_in_training_moves_landmarks_with_the_image():
    model, batch = build(vision={"shift_static": 0.3}, loss={"localisation": 1.0}), robot_batch(batch=4)
    encoded, z_l = [], model.vlm.language(batch["text"], batch["text_mask"])
    model.train()
    for seed in range(2):
        torch.manual_seed(seed)
        seen = model.encode(batch, z_l)
        where = batch["landmark_pixels"] + seen["offset"][:, None, None]
        encoded.append(where)
    assert (encoded[0] - encoded[1]).abs().max() > 0.1
    moved = batch["landmark_pixels"].clone()
    torch.manual_seed(5)
    first = model(batch)["loss_localisation"]
    batch["landmark_pixels"] = moved + 0.1
    torch.manual_seed(5)
    assert (model(batch)["loss_localisation"] - first).abs() > 1e-4


def test_soft_argmax_of_a_heatmap_is_the_centre_of_its_hot_cell():
    logits = torch.zeros(1, 4, 8, 2)
    logits[0, 1, 6, 0] = 50.0
    assert torch.allclose(centres(logits), torch.tensor([[[0.625, -0.25], [0.0, 0.0]]]), atol=1e-6)


def test_the_policy_reads_where_it_takes_the_landmarks_to_be():
    model, batch = build(loss={"geometry": 1.0}), robot_batch(frames=2)
    kept = model.encode_frames(batch)
    plan = model.act(batch | kept)
    elsewhere = kept | {"static_points": kept["static_points"] + 0.2}
    assert not torch.allclose(model.act(batch | elsewhere), plan, atol=1e-3)
    later = kept | {"static_points": kept["static_points"].clone()}
    later["static_points"][:, 0] += 0.2
    # A plan reads the last frame's estimate directly, and earlier ones through the transformer.
    assert not torch.equal(model.act(batch | later), plan)


@pytest.mark.parametrize("seed", range(3))
def test_images_reach_the_actions_of_sighted_queries_many_times_as_strongly_as_by_attention_alone(seed):
    batch = robot_batch(batch=16)
    other = batch | {role: batch[role].roll(1, 0) for role in ("static", "gripper")}
    moved = []
    for sighted in (False, True):
        model = build(seed, action_queries="one", sighted_queries=sighted)
        moved.append((model.act(batch) - model.act(other))[..., :6].abs().mean())
    assert moved[1] > 5 * moved[0]


def test_a_sighted_query_sees_the_images_of_its_own_frame_and_of_every_camera():
    model, batch = build(sighted_queries=True), robot_batch(frames=3)
    # Nothing comes through attention.
    for block in model.vlm.transformer.blocks:
        torch.nn.init.zeros_(block.out.weight)
    for role in ("static", "gripper"):
        moved = clone(batch)
        moved[role][:, 1] = 255 - moved[role][:, 1]
        change = (run(model, batch)["actions"] - run(model, moved)["actions"])[..., :6].abs().amax((0, 2, 3))
        assert change[0] == 0 and change[1] > 1e-5 and change[2] == 0


def test_landmark_offsets_are_learnt_from_the_points_alone():
    model = build(loss={"geometry": 1.0})
    generator = torch.Generator().manual_seed(0)
    points = 2 * torch.rand(256, 1, model.config.vision.points, 2, generator=generator) - 1
    components, state = torch.rand(256, 1, 7, generator=generator), torch.zeros(256, 1, 18)
    u, v = points[:, :, :7].unbind(-1)
    target = torch.stack([u, v, u + v], dim=-1) - components[..., :1, None]
    optimiser = torch.optim.Adam(model.geometry.parameters(), lr=0.02)
    for _ in range(150):
        loss = (model.geometry(points, components, state)[0] - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.01 * target.square().mean()


def test_a_random_shift_moves_points_but_not_where_they_stand_for():
    still = build(vision={"shift_static": 0.0}, loss={"geometry": 1.0}).train()
    shifted = build(vision={"shift_static": 0.3}, loss={"geometry": 1.0}).train()
    batch = robot_batch(batch=4)
    # A picture in which a shift is a shift: one bright square on black.
    batch["static"] = torch.zeros_like(batch["static"])
    batch["static"][:, :, 12:16, 12:16] = 255
    for model in (still, shifted):
        encoder = model.vlm.static_encoder
        with torch.no_grad():
            encoder.heat_coarse.weight.zero_()
            encoder.heat_fine.weight.mul_(200.0)
    z_l = still.vlm.language(batch["text"], batch["text_mask"])
    torch.manual_seed(3)
    seen = shifted.encode(batch, z_l)
    fixed = still.encode(batch, z_l)["static_points"]
    off = (seen["static_points"] - fixed).abs().median()
    uncorrected = (seen["static_points"] + seen["offset"][:, None, None] - fixed).abs().median()
    assert seen["offset"].abs().max() > 0.1 and off < 0.5 * uncorrected


def test_geometry_needs_heatmaps():
    with pytest.raises(ValueError, match="loss.geometry"):
        small(vision={"encoder": "mae", "film": False}, loss={"geometry": 1.0})


def test_two_cameras_share_one_vit():
    pytest.importorskip("transformers")
    vit = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    vit |= dict(image_size=32, patch_size=8)
    vision = dict(encoder="mae", backbone=vit, film=False, frozen=True)
    model, batch = build(vision=vision), robot_batch(clips=1)
    assert model.image_encoder("gripper") is model.vlm.static_encoder
    out = run(model, batch)
    out["loss"].backward()
    assert all(p.grad is None for p in model.vlm.static_encoder.parameters())
    cached = clone(batch)
    for camera in ("static", "gripper"):
        features, _ = model.vlm.static_encoder(cached.pop(camera).flatten(0, 1), None)
        cached[f"{camera}_features"] = features.unflatten(0, (2, 2))
    assert torch.allclose(run(model, cached)["loss"], out["loss"], atol=1e-5)


def test_flow_head_learns_two_ways_to_act_where_regression_can_only_mean_them():
    torch.manual_seed(0)
    steps = 250
    head = FlowHead(small(head="flow", flow_steps=16, chunk=2), CALVIN.actions)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    out = torch.zeros(128, 1, 2, 32)
    for _ in range(steps):
        arm = torch.where(torch.rand(128, 1, 1, 1) > 0.5, 0.8, -0.8).expand(-1, -1, 2, 6)
        loss = head.error(out, arm).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    with torch.no_grad():
        ends = []
        for seed in range(20):
            head.start.copy_(torch.randn(2, 6, generator=torch.Generator().manual_seed(seed)))
            ends.append(head(out[:1])[0].mean())
    ends = torch.stack(ends)
    assert (ends.abs() > 0.5).float().mean() > 0.7, "plans go one way or the other"
    assert (ends > 0).any() and (ends < 0).any()


def test_wrong_shapes_say_what_was_expected_and_what_came():
    model = build()
    cases = (
        ("state", lambda x: x[..., :15], r"state: expected shape \(2, 2, 18\), got \(2, 2, 15\)"),
        ("actions", lambda x: x[:, :, :3], r"actions: expected shape \(2, 2, 4, 7\), got \(2, 2, 3, 7\)"),
        ("components", lambda x: None, r"components: expected a tensor of shape \(2, 2, 7\), got NoneType"),
        ("gripper", lambda x: x[:, :1], r"gripper: expected shape \(2, 2, 32, 32, 3\), got \(2, 1, 32, 32, 3\)"),
        ("clips", lambda x: human_batch(), r"clips.keypoints: expected shape \(2, J, 2, 21, 3\), got \(2, 4, 21, 3\)"),
    )
    for name, change, message in cases:
        batch = robot_batch(clips=1)
        batch[name] = change(batch[name])
        with pytest.raises(UserError, match=message):
            model(batch)
    with pytest.raises(UserError, match="image_patch"):
        build(fwd_pred=True, image_patch=5)


@pytest.mark.parametrize("changes", [{}, {"action_queries": "one", "query_frames": "last"}])
def test_one_batch_can_be_learnt_by_heart(changes):
    torch.manual_seed(0)
    vision = {"shift_static": 0.0, "shift_gripper": 0.0}
    loss = {"arm": 10.0, "gripper": 1.0, "state": 0.0}
    model, batch = PolicyNet(small(vision=vision, loss=loss, **changes), CALVIN), robot_batch(batch=4, frames=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(120):
        loss = model(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    plan, target = model.eval().act(batch), batch["actions"][:, -1]
    assert torch.equal(plan[..., 6], target[..., 6])
    assert (plan[..., :6] - target[..., :6]).abs().mean() < 0.1, "chance is 0.5"


def test_landmarks_that_are_not_known_may_be_nan():
    model, batch = build(loss={"localisation": 1.0, "geometry": 1.0}), robot_batch()
    batch["landmark_mask"][:, :, 3] = False
    before = run(model, batch)["loss"]
    for name in ("landmark_pixels", "landmark_offsets"):
        batch[name][:, :, 3] = float("nan")
    after = run(model, batch)["loss"]
    assert torch.equal(before, after)
    after.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def arm(binary=0, roles=("static",), joints=4):
    return VectorRobot(
        name="arm",
        components=tuple(f"joint_{i}" for i in range(joints)),
        component_units=("rad",) * joints,
        statistics=Ranges((-1.0,) * joints, (1.0,) * joints),
        cameras=tuple(Camera(f"rgb_{role}", role) for role in roles),
        binary=binary,
    )


def batch_of(robot, frames=2, clips=1, chunk=4):
    batch, size = robot_batch(frames=frames, clips=clips, chunk=chunk), len(robot.components)
    for name in ("components", "next_components", "state"):
        batch[name] = batch[name][..., :size]
    continuous = batch["actions"][..., : robot.actions.continuous]
    binary = batch["actions"][..., 6:].expand(-1, -1, -1, robot.actions.binary)
    batch["actions"] = torch.cat([continuous, binary], dim=-1)
    wrist = batch.pop("gripper"), batch.pop("next_gripper")
    for camera in robot.cameras[1:]:
        batch[camera.role], batch[f"next_{camera.role}"] = wrist
    return batch


@pytest.mark.parametrize("head", ["regression", "flow"])
@pytest.mark.parametrize("roles", [("static",), ("static", "wrist", "elbow")])
@pytest.mark.parametrize("binary", [0, 2])
def test_a_robot_of_another_shape_is_trained_and_plans(head, roles, binary):
    robot, changes = arm(binary, roles), {"head": head, "fwd_pred": True, "image_patch": 8}
    torch.manual_seed(0)
    model, batch = PolicyNet(small(**changes, analogy={"at_rollout": "on"}), robot).eval(), batch_of(robot)
    if head == "flow":
        torch.nn.init.normal_(model.head.velocity.weight, std=0.3)
    out = run(model, batch)
    assert out["actions"].shape == (2, 2, 4, 4) and ("loss_gripper" in out) == (binary > 0)
    assert out["next_components"].shape == (2, 2, 4) and model.analogy_map().shape == (4, 21)
    out["loss"].backward()
    encoders = [name for name, _ in model.named_children() if name.endswith("_encoder")]
    assert encoders == [f"{role}_encoder" for role in roles[1:]]
    assert model.image_queries.shape == (len(roles), 3, 32) and model.image_queries.grad.abs().amax((1, 2)).min() > 0
    plan = model.act(batch)
    assert plan.shape == (2, 4, 4) and plan.abs().max() <= 1.0
    assert set(plan[..., 4 - binary :].flatten().tolist()) <= {-1.0, 1.0}
    for role in roles:
        moved = batch | {role: 255 - batch[role]}
        assert (model.act(moved) - plan).abs().max() > 1e-6
    kept = {name: value for name, value in batch.items() if name not in roles} | model.encode_frames(batch)
    assert torch.allclose(model.act(kept), plan, atol=1e-5)


def test_parts_that_read_what_a_robot_does_not_have_are_refused():
    for name in ("geometry", "localisation"):
        with pytest.raises(UserError, match=f"loss.{name}: episodes of arm have no landmark"):
            PolicyNet(small(loss={name: 1.0}), arm())
    with pytest.raises(UserError, match="published.state: 'official' reads CALVIN's robot, not arm"):
        PolicyNet(small(published={"state": "official"}), arm())
    with pytest.raises(ValueError, match="sighted_queries: no published architecture"):
        small(published={"state": "components"}, sighted_queries=True)
