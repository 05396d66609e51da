"""Stage 1: what a prediction may depend on, what the loss counts, and that it learns."""

from dataclasses import replace

import pytest
import torch
from model_batches import clone, human_batch, small

from arvrm.interface import UserError
from arvrm.model.heatmaps import splat_cross_entropy
from arvrm.model.keypoint_vlm import KeypointVLM, last_seen


def build(seed=0, **changes):
    torch.manual_seed(seed)
    model = KeypointVLM(small(**changes)).eval()
    # The head starts at zero; wake it, so that what it must not depend on would show.
    torch.nn.init.normal_(model.keypoint_head[-1].weight, std=0.3)
    return model


def with_destination(config, weight):
    return replace(config, loss=replace(config.loss, destination=weight))


def frames_changed(a, b):
    return [t for t in range(a.shape[1]) if (a[:, t] - b[:, t]).abs().max() > 1e-5]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention": "frame"},
        {"published": {"language_tokens": "first"}},
        {"predict_residual": False},
        {"residual_from": "velocity"},
    ],
)
def test_a_prediction_sees_only_the_frames_before_it(changes):
    model, batch = build(**changes), human_batch(frames=5)
    before = model(batch)["keypoints_predicted"]
    hands = clone(batch)
    hands["keypoints"][:, 2] += torch.randn(2, 21, 3)
    assert frames_changed(before, model(hands)["keypoints_predicted"]) == [3, 4]
    images = clone(batch)
    images["static"][:, 2] = 255 - images["static"][:, 2]
    assert frames_changed(before, model(images)["keypoints_predicted"]) == [3, 4]
    words = clone(batch)
    words["text"] += torch.randn(256)
    assert frames_changed(before, model(words)["keypoints_predicted"]) == [1, 2, 3, 4]


def test_keypoints_that_are_not_visible_are_neither_read_nor_counted():
    model, batch = build(), human_batch()
    moved = clone(batch)
    moved["keypoints"][~batch["visible"]] = 1e3
    before, after = model(batch), model(moved)
    assert torch.equal(before["loss"], after["loss"])
    assert torch.equal(before["keypoints_predicted"], after["keypoints_predicted"])


def test_loss_is_the_mean_squared_error_of_visible_keypoints():
    model, batch = build(), human_batch()
    out = model(batch)
    error = (out["keypoints_predicted"] - batch["keypoints"])[:, 1:].square()[batch["visible"][:, 1:]]
    assert out["loss"].item() == pytest.approx(error.mean().item(), rel=1e-5)


def test_a_missing_hand_costs_nothing_and_breaks_nothing():
    model, batch = build(), human_batch()
    batch["visible"][:] = False
    out = model(batch)
    assert out["loss"] == 0 and torch.isfinite(out["keypoints_predicted"]).all()
    out["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("padding", [[0, 1], [3]])
def test_padding_frames_influence_nothing(padding):
    model, batch = build(), human_batch(frames=4)
    batch["frame_mask"][0, padding] = False
    moved = clone(batch)
    moved["static"][0, padding] = 255 - moved["static"][0, padding]
    moved["keypoints"][0, padding] += 5.0
    moved["visible"][0, padding] = ~moved["visible"][0, padding]
    before, after = model(batch), model(moved)
    assert torch.equal(before["loss"], after["loss"])
    real = [t for t in range(1, 4) if t not in padding and t - 1 not in padding]
    assert torch.equal(before["keypoints_predicted"][:, real], after["keypoints_predicted"][:, real])


def test_the_pose_after_the_window_lets_a_single_frame_learn():
    model, batch = build(), human_batch(frames=1)
    assert model(batch)["loss"] == 0
    batch["next_keypoints"], batch["next_visible"] = batch["keypoints"][:, 0] + 0.3, batch["visible"][:, 0]
    out = model(batch)
    error = (out["next_keypoints_predicted"] - batch["next_keypoints"])[batch["next_visible"]].square()
    assert out["loss"].item() == pytest.approx(error.mean().item(), rel=1e-5)


def test_rollout_begins_with_the_next_prediction_and_goes_on_from_its_own():
    model, batch = build(max_frames=5), human_batch(frames=4)
    poses = model.predict_next(batch, 3)
    assert poses.shape == (2, 3, 21, 3)
    assert torch.allclose(poses[:, 0], model(batch)["next_keypoints_predicted"], atol=1e-5)
    longer = clone(batch)
    longer["keypoints"] = torch.cat([batch["keypoints"], poses[:, :1]], dim=1)
    longer["visible"] = torch.cat([batch["visible"], batch["visible"].any(1, keepdim=True)], dim=1)
    longer["static"] = torch.cat([batch["static"], batch["static"][:, -1:]], dim=1)
    longer["frame_mask"] = torch.ones(2, 5, dtype=torch.bool)
    assert torch.allclose(model.predict_next(longer, 1)[:, 0], poses[:, 1], atol=1e-5)
    with pytest.raises(UserError, match="steps"):
        model.predict_next(batch, 0)


def test_a_longer_horizon_costs_the_error_of_all_its_frames_the_near_ones_more():
    model, batch = build(horizon=3), human_batch(frames=2)
    batch["visible"][:] = True
    batch["future_keypoints"] = torch.rand(2, 3, 21, 3, generator=torch.Generator().manual_seed(7))
    batch["future_visible"] = torch.ones(2, 3, 21, dtype=torch.bool)
    batch["future_visible"][1, 2] = False  # beyond the second clip's end
    with torch.no_grad():
        z_l = model.language(batch["text"], batch["text_mask"])
        guesses = model.next_poses(z_l, model.encode_static(batch, z_l)[0], batch["keypoints"], batch["visible"],
                                   batch["frame_mask"])  # fmt: skip
    truth = torch.cat([batch["keypoints"], batch["future_keypoints"]], dim=1)
    total = counted = 0.0
    for clip, at, ahead in [(c, t, j) for c in range(2) for t in range(2) for j in (1, 2, 3)]:
        if (clip, at + ahead) != (1, 4):
            total += (guesses[clip, at, ahead - 1] - truth[clip, at + ahead]).square().sum().item() / ahead
            counted += 63 / ahead
    out = model(batch)
    assert out["loss"].item() == pytest.approx(total / counted, rel=1e-5)
    moved = clone(batch)
    moved["future_keypoints"][1, 2] += 5.0
    assert torch.equal(model(moved)["loss"], out["loss"])
    assert torch.allclose(out["next_keypoints_predicted"], guesses[:, -1, 0], atol=1e-6)
    assert torch.allclose(model.predict_next(batch, 2), guesses[:, -1, :2], atol=1e-6)


def test_predicting_beyond_the_horizon_goes_on_from_its_frames():
    model, batch = build(horizon=2, max_frames=4), human_batch(frames=2)
    batch["visible"][:] = True
    poses = model.predict_next(batch, 3)
    longer = clone(batch)
    longer["keypoints"] = torch.cat([batch["keypoints"], poses[:, :2]], dim=1)
    longer["visible"] = torch.ones(2, 4, 21, dtype=torch.bool)
    longer["static"] = torch.cat([batch["static"], batch["static"][:, -1:].expand(-1, 2, -1, -1, -1)], dim=1)
    longer["frame_mask"] = torch.ones(2, 4, dtype=torch.bool)
    assert torch.allclose(model.predict_next(longer, 1)[:, 0], poses[:, 2], atol=1e-5)


def test_an_untrained_model_lets_a_motion_die_out_over_its_horizon():
    torch.manual_seed(0)
    model, batch = KeypointVLM(small(residual_from="velocity", horizon=3)).eval(), human_batch(frames=2)
    batch["visible"][:] = True
    motion = batch["keypoints"][:, 1] - batch["keypoints"][:, 0]
    wanted = torch.stack([batch["keypoints"][:, 1] + times * motion for times in (1, 1.8, 2.44)], dim=1)
    assert torch.allclose(model.predict_next(batch, 3), wanted, atol=1e-5)


def test_a_hand_is_held_where_it_was_last_seen():
    keypoints = torch.arange(4.0)[None, :, None, None].expand(1, 4, 3, 3)
    seen = torch.tensor([[[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]]], dtype=torch.bool)
    assert last_seen(keypoints, seen)[0, :, :, 0].tolist() == [[0, 0, 0], [0, 1, 0], [2, 1, 0], [2, 1, 0]]


def test_an_untrained_model_predicts_that_the_hand_stays():
    torch.manual_seed(0)
    model, batch = KeypointVLM(small()).eval(), human_batch()
    batch["visible"][:] = True
    assert torch.equal(model(batch)["keypoints_predicted"][:, 1:], batch["keypoints"][:, :-1])


def test_random_shift_moves_the_hand_with_the_image():
    model, batch = build(vision={"shift_static": 0.3}), human_batch(batch=8)
    batch["visible"][:] = True
    still = model(batch)
    model.train()
    torch.manual_seed(1)
    moved = model(batch)
    assert (moved["loss"] - still["loss"]).abs() > 1e-6, "the input moved"
    torch.nn.init.zeros_(model.keypoint_head[-1].weight)
    predicted = model(batch)["keypoints_predicted"]
    assert torch.allclose(predicted[:, 1:], batch["keypoints"][:, :-1], atol=1e-5), "given back unmoved"


def test_two_hands_train_with_one_of_them_missing():
    model, batch = build(keypoints=42), human_batch(keypoints=42)
    batch["visible"][:, :, 21:] = False
    out = model(batch)
    assert out["keypoints_predicted"].shape == (2, 4, 42, 3) and out["loss"] > 0
    out["loss"].backward()


def test_wrong_shapes_say_what_was_expected_and_what_came():
    model = build()
    with pytest.raises(UserError, match=r"keypoints: expected shape \(2, 4, 21, 3\), got \(2, 4, 42, 3\)"):
        model(human_batch(keypoints=42))
    batch = human_batch()
    batch["text"] = batch["text"][..., :100]
    with pytest.raises(UserError, match=r"text: expected shape \(B, L, 256\), got \(2, 5, 100\)"):
        model(batch)
    batch = human_batch()
    batch["static"] = batch["static"].float()
    with pytest.raises(UserError, match="static: expected uint8 images, got torch.float32"):
        model(batch)
    with pytest.raises(UserError, match="windows have 20 frames, max_frames is 16"):
        model(human_batch(frames=20))


def test_cached_features_of_a_frozen_encoder_give_the_same_loss():
    model, batch = build(vision={"frozen": True, "film": False}), human_batch()
    before = model(batch)["loss"]
    features, _ = model.static_encoder(batch["static"].flatten(0, 1), None)
    cached = {k: v for k, v in batch.items() if k != "static"} | {"static_features": features.unflatten(0, (2, 4))}
    assert torch.allclose(model(cached)["loss"], before, atol=1e-6)
    before.backward()
    assert all(p.grad is None for p in model.static_encoder.parameters())
    with pytest.raises(UserError, match="cached features need vision.frozen"):
        build()(cached)


def test_one_batch_can_be_learnt_by_heart():
    torch.manual_seed(0)
    model, batch = KeypointVLM(small(vision={"shift_static": 0.0})), human_batch(batch=4)
    batch["keypoints"] += 0.2 * torch.randn(4, 4, 21, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        loss = model(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_an_untrained_model_continues_the_last_motion_if_told_so():
    torch.manual_seed(0)
    model, batch = KeypointVLM(small(residual_from="velocity")).eval(), human_batch(frames=4)
    batch["visible"][:] = True
    batch["visible"][:, 2, 5] = False  # without two frames in a row a joint stays
    keypoints = batch["keypoints"]
    motion = keypoints[:, 3] - keypoints[:, 2]
    motion[:, 5] = 0
    wanted = torch.stack([keypoints[:, 3] + ahead * motion for ahead in (1, 2, 3)], dim=1)
    assert torch.allclose(model.predict_next(batch, 3), wanted, atol=1e-5)


def test_the_destination_that_an_image_shows_reaches_the_poses_and_costs_its_heatmap():
    model, batch = build(horizon=2, loss={"destination": 1.0}), human_batch(frames=2)
    batch["visible"][:] = True
    batch["future_keypoints"] = torch.zeros(2, 2, 21, 3)
    batch["future_visible"] = torch.ones(2, 2, 21, dtype=torch.bool)
    near, far = clone(batch), clone(batch)
    far["future_keypoints"][:, :, 0, :2] += 0.5
    z_l = model.language(batch["text"], batch["text_mask"])
    static, heatmaps, _ = model.encode_static(batch, z_l)
    left, right = (
        model.next_poses(
            z_l, static, batch["keypoints"], batch["visible"], batch["frame_mask"], torch.full((2, 2, 2), x)
        )
        for x in (-0.5, 0.5)
    )
    assert (left - right).abs().max() > 1e-4
    for changed in (near, far):
        truth = torch.cat([batch["keypoints"], changed["future_keypoints"]], dim=1)[:, 2:, 0, :2]
        heat = splat_cross_entropy(heatmaps[..., -1], truth).mean()
        losses = []
        for weight in (1.0, 0.5):
            model.config = with_destination(model.config, weight)
            losses.append(model(changed)["loss"].item())
        assert losses[0] - losses[1] == pytest.approx(0.5 * heat.item(), rel=1e-4)


def test_a_destination_that_is_not_seen_costs_nothing_for_its_heatmap():
    model, batch = build(horizon=2, loss={"destination": 1.0}), human_batch(frames=2)
    batch["visible"][:] = True
    batch["future_keypoints"] = torch.zeros(2, 2, 21, 3)
    batch["future_visible"] = torch.zeros(2, 2, 21, dtype=torch.bool)
    once = model(batch)["loss"]
    model.config = with_destination(model.config, 7.0)
    assert torch.equal(model(batch)["loss"], once)


def test_the_error_of_a_joint_may_be_its_distance():
    model, batch = build(horizon=2, loss={"keypoints": "distance"}), human_batch(frames=2)
    batch["visible"][:] = True
    batch["future_keypoints"] = torch.rand(2, 2, 21, 3, generator=torch.Generator().manual_seed(7))
    batch["future_visible"] = torch.ones(2, 2, 21, dtype=torch.bool)
    with torch.no_grad():
        z_l = model.language(batch["text"], batch["text_mask"])
        guesses = model.next_poses(z_l, model.encode_static(batch, z_l)[0], batch["keypoints"], batch["visible"],
                                   batch["frame_mask"])  # fmt: skip
    truth = torch.cat([batch["keypoints"], batch["future_keypoints"]], dim=1)
    near = (guesses[:, :, 0] - truth[:, 1:3]).norm(dim=-1).mean().item()
    far = (guesses[:, :, 1] - truth[:, 2:4]).norm(dim=-1).mean().item()
    assert model(batch)["loss"].item() == pytest.approx((near + far / 2) / 1.5, abs=2e-3)


def test_a_hand_that_stays_where_it_was_predicted_gives_a_finite_gradient():
    torch.manual_seed(0)
    model, batch = KeypointVLM(small(loss={"keypoints": "distance"})), human_batch(frames=3)
    batch["visible"][:] = True
    batch["keypoints"][:] = batch["keypoints"][:, :1]  # the untrained model is right to the last digit
    loss = model(batch)["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
