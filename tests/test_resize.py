"""Images are resized in one way: what training decodes is what the network makes of a rollout's images."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_stores import robot_episode, write

from arvrm.model.pixels import fit_images
from arvrm.resize import resize
from arvrm.windows import EpisodeTable, StoreFrames, decode_frames

SIZES = st.integers(4, 120)


def noise(seed, frames, height, width):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stores")


@settings(max_examples=40, deadline=None)
@given(stored=SIZES, size=SIZES, seed=st.integers(0, 2**32 - 1))
def test_frames_decoded_for_training_are_those_that_the_network_sees_in_a_rollout(folder, stored, size, seed):
    episode = robot_episode("a", steps=4, every=1, size=stored)
    episode.images["rgb_static"][:] = noise(seed, 4, stored, stored)
    store = write(folder / f"{stored}-{size}-{seed}", [episode])
    table, rows = EpisodeTable([store], "robot", 1), np.arange(4)
    decoded = decode_frames(table, "rgb_static", size).take(rows)
    assert np.array_equal(StoreFrames(table, "rgb_static", size).take(rows[::-1]), decoded[::-1])
    shown = torch.from_numpy(store.frames("a", "rgb_static", rows))
    together, _ = fit_images(shown[None], size)
    assert np.array_equal(together.numpy(), decoded)
    for frame in rows:  # as a rollout brings them, one by one
        assert np.array_equal(fit_images(shown[None, frame : frame + 1], size)[0][0].numpy(), decoded[frame])
    assert np.array_equal(fit_images(torch.from_numpy(decoded[None]), size)[0].numpy(), decoded), "no second resize"


@given(height=SIZES, width=SIZES, size=SIZES, level=st.integers(0, 255))
def test_a_plain_image_keeps_its_level_in_any_size(height, width, size, level):
    images = torch.full((2, height, width, 3), level, dtype=torch.uint8)
    assert torch.equal(resize(images, size), torch.full((2, size, size, 3), level, dtype=torch.uint8))


def test_images_of_the_size_asked_for_are_not_touched():
    images = torch.from_numpy(noise(0, 2, 16, 16))
    assert resize(images, 16) is images


def test_halving_averages_rounds_and_weighs_neighbours_as_a_triangle():
    images = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    images[0, :, 1] = 200
    # A triangle of half-width 2 around 1 reads columns 0..2 with 3, 3 and 1 of 7; around 3 columns 1..3 with 1, 3, 3.
    assert resize(images, 2)[0, 0, :, 0].tolist() == [round(200 * 3 / 7), round(200 * 1 / 7)]
