"""Places: the hand at the moments of an instruction, in an image without one."""

import dataclasses

import numpy as np
import pytest
import torch
from model_batches import human_batch, small

from arvrm.interface import UserError
from arvrm.model.config import PlacesConfig
from arvrm.model.keypoint_vlm import KeypointVLM
from arvrm.model.places import MOTION_SIZE, PIXELS, PlaceNet, modes, predict_hands
from arvrm.model.text import TextEncoder

SMALL_PLACES = PlacesConfig(enabled=True, size=32, channels=(8, 16, 16), depth=(1, 1), words=16)


def place_batch(count=8, size=32, seed=0):
    g = torch.Generator().manual_seed(seed)
    hand = 0.3 * (torch.rand(count, 2, 21, 3, generator=g) - 0.5)
    place = torch.rand(count, 2, 1, 2, generator=g) - 0.5
    hand[..., :2] += place
    return {
        "image": torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=g),
        "text": torch.randn(count, 5, 256, generator=g),
        "text_mask": torch.ones(count, 5, dtype=torch.bool),
        "points": hand,
        "visible": torch.ones(count, 2, 21),
        "known": torch.ones(count, 2),
        "motion": 10 * torch.randn(count, MOTION_SIZE, generator=g),
        "motion_known": torch.ones(count, MOTION_SIZE),
    }


def test_the_next_poses_are_the_same_to_the_bit_with_places_and_without():
    losses = []
    for places in (PlacesConfig(), SMALL_PLACES):
        torch.manual_seed(3)
        network = KeypointVLM(dataclasses.replace(small(vision={"shift_static": 0.2}), places=places)).train()
        torch.manual_seed(4)
        out = network({**human_batch(), "places": place_batch()})
        losses.append(out)
    assert losses[0]["next_keypoints_predicted"].equal(losses[1]["next_keypoints_predicted"])
    assert losses[0]["loss"] != losses[1]["loss"]


def test_a_few_updates_find_the_places_of_a_few_images():
    torch.manual_seed(0)
    config = dataclasses.replace(
        SMALL_PLACES, occluders=0.0, colour_jitter=0.0, word_dropout=0.0, shift=0.0, scale=0.0, turn=0.0
    )
    net, batch = PlaceNet(config, small().text).train(), place_batch()
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        sum(net.losses(batch).values()).backward()
        optimizer.step()
    found = net.eval().predict(batch["image"], batch["text"], batch["text_mask"])
    acting = found["keypoints"][:, :, (4, 8)].mean(2)
    true = (batch["points"][:, :, (4, 8), :2].mean(2) + 1) * PIXELS / 2
    assert (acting - true).norm(dim=-1).median() < 2
    assert (found["keypoints"] - (batch["points"][..., :2] + 1) * PIXELS / 2).norm(dim=-1).median() < 4
    assert (found["motion"] - batch["motion"]).abs().median() < 4


def test_what_moves_an_image_moves_its_places_and_ways():
    from arvrm.model.place_images import varied

    torch.manual_seed(0)
    config = dataclasses.replace(SMALL_PLACES, occluders=0.0, colour_jitter=0.0)
    images = torch.zeros(16, 64, 64, 3, dtype=torch.uint8)
    points = (torch.rand(16, 2, 2) - 0.5) * 0.8
    for image, (a, _) in zip(images, points, strict=True):
        column, row = ((a + 1) * 32).long().tolist()
        image[row - 1 : row + 2, column - 1 : column + 2] = 255
    pixels, moved, way = varied(images, points, config)
    line = (torch.arange(64) + 0.5) / 32 - 1
    weight = pixels[:, 0] / pixels[:, 0].sum((1, 2), keepdim=True)
    seen = torch.stack([(weight * line).sum((1, 2)), (weight * line[:, None]).sum((1, 2))], -1)
    assert (seen - moved[:, 0]).abs().max() < 0.05
    assert torch.allclose(
        (way @ (points[:, 1] - points[:, 0])[..., None])[..., 0], moved[:, 1] - moved[:, 0], atol=1e-5
    )


def test_the_likeliest_place_is_where_most_probability_lies_and_the_next_is_elsewhere():
    heat = torch.zeros(1, 1, 48, 48)
    heat[0, 0, 10, 20] = heat[0, 0, 10, 21] = 0.3
    heat[0, 0, 40, 5] = 0.4
    at, mass = modes(heat, 2)
    pixel = (at + 1) * PIXELS / 2
    assert torch.allclose(pixel[0, 0], torch.tensor([[42.0, 21.0], [11.0, 81.0]]), atol=1e-3)
    assert torch.allclose(mass[0, 0], torch.tensor([0.6, 0.4]), atol=1e-5)


def test_predicted_hands_are_of_one_hypothesis_and_probabilities():
    torch.manual_seed(0)
    network = KeypointVLM(dataclasses.replace(small(), places=SMALL_PLACES))
    images = np.random.default_rng(0).integers(0, 255, (3, 96, 96, 3), dtype=np.uint8)
    hands = predict_hands(network, TextEncoder(), images, ["open the drawer", "push the red block", "lift it"])
    assert hands.keypoints.shape == (3, 2, 21, 2) and hands.others.shape == (3, 2, 2, 21, 2)
    assert hands.depth.shape == (3, 2, 21) and np.abs(hands.depth[:, :, 0]).max() == 0
    assert hands.motion.shape == (3, MOTION_SIZE)
    assert np.allclose(hands.heat.sum((2, 3)), 1, atol=1e-4)
    assert (0 <= hands.confidence).all() and (hands.confidence <= 1).all()


def test_without_places_the_error_says_how_to_train_them():
    with pytest.raises(UserError, match="model.places.enabled"):
        predict_hands(KeypointVLM(small()), TextEncoder(), np.zeros((1, 96, 96, 3), np.uint8), ["lift it"])
