"""The examples run as they stand."""

import runpy
from pathlib import Path

import numpy as np
from PIL import Image
from small_stores import human_store

from arvrm.config import from_dict
from arvrm.demo import DemoConfig, load_settings

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_first_look_draws_what_a_checkpoint_predicts(tmp_path, capsys):
    from arvrm.training import PretrainConfig, pretrain

    store = human_store(tmp_path / "human", tasks=1, per_task=3, size=64)
    settings = load_settings(DemoConfig(fast=True))["pretrain"]
    settings["train"] = settings["train"] | {"steps": 2, "warmup": 1, "batch": 2}
    settings |= {"output": str(tmp_path / "run"), "data": {"stores": [str(store.path)], "validation": 0.3}}
    pretrain(from_dict(PretrainConfig, settings))
    first_look = runpy.run_path(str(EXAMPLES / "first_look.py"))["first_look"]
    picture = tmp_path / "pictures" / "first.png"
    distance = first_look(str(store.path), str(tmp_path / "run"), str(picture))
    assert 0 < distance < 100
    assert "13 steps at 30 Hz, 5 images" in capsys.readouterr().out
    with Image.open(picture) as image:
        assert image.size == (5 * 224, 224) and np.asarray(image).std() > 1
