"""Settings of older versions, read as this one writes them."""

import dataclasses

import pytest

from arvrm.config import from_dict, to_dict
from arvrm.interface import UserError
from arvrm.model.config import ModelConfig, TextConfig, VisionConfig
from arvrm.model.published.config import PublishedConfig, SecondVisionConfig
from arvrm.model.upgrade import OURS, described_encoders, upgraded_encoders, upgraded_model

OLD = {
    "width": 128,
    "heads": 4,
    "activation": "gelu",
    "time_from": "window",
    "query_time": True,
    "positions": 0,
    "language_tokens": "every",
    "resampler_position": False,
    "state": "components",
    "joint_attention": True,
    "foresee": 5,
    "head_activation": "gelu",
    "image_decoder": "each",
    "image_decoder_heads": None,
    "text": {"encoder": "wordllama", "pooling": "attention"},
    "vision": {"encoder": "conv", "clamp": True, "second": None, "modulated": False},
    "loss": {"arm": 10.0, "arm_beta": 1.0},
}


def read(values):
    return from_dict(ModelConfig, upgraded_model(values, "old"), "old")


def test_a_network_that_was_ours_has_nothing_published():
    config = read(OLD)
    assert config.published is None and config.horizon == 5 and config.loss.arm == 10.0 and config.width == 128


def test_what_only_published_networks_need_has_a_section_of_its_own():
    second = {"encoder": "dinov2", "input_size": 28, "timed": False}
    old = OLD | {"state": "official", "positions": 1024, "activation": "relu"}
    old |= {"text": {"pooling": "unit"}, "vision": {"encoder": "mae", "film": False, "clamp": False, "second": second}}
    expected = PublishedConfig(**OURS | {"activation": "relu", "state": "official", "positions": 1024, "clamp": False})
    second = SecondVisionConfig(input_size=28, latents_have_time=False)
    assert read(old).published == dataclasses.replace(expected, text_pooling="unit", second=second)


@pytest.mark.parametrize("config", [ModelConfig(), ModelConfig(published=PublishedConfig(image_decoder="each"))])
def test_settings_of_today_stay_as_they_are(config):
    assert read(to_dict(config)) == config


@pytest.mark.parametrize(
    "change, named",
    [
        ({"joint_attention": False}, "old.joint_attention: is False"),
        ({"loss": {"arm_beta": 0.5}}, "loss.arm_beta: is 0.5"),
    ],
)
def test_a_deleted_setting_with_another_value_is_refused_by_name(change, named):
    with pytest.raises(UserError, match=named):
        read(OLD | change)


@pytest.mark.parametrize(
    "published",
    [None, PublishedConfig(clamp=True), PublishedConfig(second=SecondVisionConfig(latents_have_time=False))],
)
def test_encoders_are_described_as_ever_and_found_by_that(published):
    text, vision = TextConfig(), VisionConfig(encoder="mae", film=False)
    described = described_encoders(text, vision, published)
    assert set(described["text"]) - {field.name for field in dataclasses.fields(TextConfig)} == {"pooling"}
    again = upgraded_encoders(described, "index.json")
    assert described_encoders(*again) == described
    if published is not None:
        assert again[2].clamp == published.clamp and again[2].second == published.second
