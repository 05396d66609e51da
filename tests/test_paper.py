"""The published configurations and commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from official_reference import OfficialGR1, Vit
from original_files import openai_clip, openai_vocabulary
from small_stores import robot_episode

from arvrm import paper
from arvrm.episodes import EpisodeWriter
from arvrm.files import read_json
from arvrm.interface import UserError

pytest.importorskip("transformers")

ROOT = Path(__file__).parent.parent
PUBLISHED = [ROOT / "configs" / name for name in ("configs_ABC.json", "configs_ABCD.json")]


def tiny(folder):
    """A published configuration of small size, with a store of 200 and 84 px and backbones as original files."""
    torch.manual_seed(0)
    torch.save({"model": Vit().state_dict()}, folder / "mae.pth")
    torch.save(openai_clip()[0], folder / "clip.pt")
    (folder / "bpe_simple_vocab_16e6.txt").write_text(openai_vocabulary())
    with EpisodeWriter(folder / "lmdb" / "training", {"source": "test"}) as writer:
        for n in range(8):
            writer.append(robot_episode(f"e{n}", group=f"g{n}", steps=9, every=1, seed=n))
    values = json.loads(PUBLISHED[0].read_text())
    values |= {
        "LMDB_path": str(folder / "lmdb"),
        "save_path": str(folder / "save"),
        "mae_ckpt": str(folder / "mae.pth"),
    }
    values |= {"clip_backbone": str(folder / "clip.pt"), "lang_feat_dim": 24, "img_feat_dim": 64, "patch_feat_dim": 64}
    values |= {"embed_dim": 32, "n_layer": 2, "n_head": 2, "resampler_depth": 1, "resampler_dim_head": 8}
    values |= {"resampler_heads": 2, "resampler_num_latents": 2, "rgb_shape": 32, "seq_len": 4, "chunk_size": 3}
    values |= {"bs_per_gpu": 4, "gradient_accumulation_steps": 2, "num_epochs": 1, "workers_per_gpu": 0}
    values |= {"num_sequences": 1, "ep_len": 2, "print_steps": 1}
    (folder / "configs.json").write_text(json.dumps(values))
    return values


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda f: f.name)
def test_published_configuration_says_what_the_paper_says(file):
    published = paper.parse(read_json(file), str(file))
    model = paper.model_config(published)
    assert (model.width, model.layers, model.heads, model.chunk, model.max_frames) == (384, 12, 12, 10, 10)
    assert (model.latents, model.resampler_layers, model.resampler_heads, model.resampler_head_width) == (9, 3, 4, 128)
    assert model.loss.arm == 100 and model.fwd_pred and model.published.activation == "relu"
    assert model.vision.shift_static * 200 == pytest.approx(10) and model.vision.shift_gripper * 84 == pytest.approx(4)
    assert paper.evaluation(published)["chains"] == 1000 and paper.evaluation(published)["max_steps"] == 360


def test_every_published_key_is_read_fixed_or_noted(tmp_path):
    values = read_json(PUBLISHED[0])
    assert set(values) <= set(paper.KNOWN)
    for key in values:
        changed = dict(values)
        if key in paper.ONLY:
            changed[key] = "something else"
            with pytest.raises(UserError, match=key):
                paper.parse(changed)
        elif key in paper.WITHOUT_EFFECT:
            assert any(key in note for note in paper.parse(changed).notes)
        elif key in paper.READ:
            assert paper.parse(changed).values[key] == values[key]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seq_lenn": 10}, "seq_len"),
        ({"seq_len": "ten"}, "give a value like 10"),
        ({"action_mode": "joint"}, "relative actions"),
        ({"fwd_pred_next_n": 5}, "skip_frame 3; they must be alike"),
        ({"unseen_train": True}, "not published"),
    ],
)
def test_what_is_not_done_is_refused_with_the_reason(change, message):
    with pytest.raises(UserError, match=message):
        paper.parse({**read_json(PUBLISHED[0]), **change})


def test_epochs_become_updates_of_the_global_batch(tmp_path, monkeypatch):
    values = tiny(tmp_path)
    windows = 7 * 9  # one chain of eight is held out; every frame ends a window
    for world, share in ((1, False), (2, False), (1, True)):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        config = paper.finetune_config(paper.parse({**values, "num_epochs": 3, "ten_percent_train": share}))
        some = round(windows / 10) if share else windows
        assert config.train.steps == 3 * -(-some // (8 * world))
        assert config.train.batch == 8 * world and config.train.accumulate == 2
    assert config.data.share == 0.1


def test_missing_store_says_how_to_make_one(tmp_path):
    values = tiny(tmp_path) | {"LMDB_path": str(tmp_path / "nowhere")}
    with pytest.raises(UserError, match="calvin2lmdb.py --input_dir"):
        paper.finetune_config(paper.parse(values))


def test_run_starts_from_an_original_checkpoint(tmp_path):
    values = tiny(tmp_path)
    torch.manual_seed(1)
    model = OfficialGR1(3, frames=4, text=24, resampler=(2, 4, 8), heads=12, width=96)
    torch.save({"state_dict": model.saved()}, tmp_path / "GR1_0.pth")
    other = {**values, "pretrained_ckpt_path": str(tmp_path / "GR1_0.pth"), "embed_dim": 32}
    with pytest.raises(UserError, match="is no whole file of GR-Chunk"):
        paper.finetune_config(paper.parse({**other, "n_layer": 2, "resampler_depth": 2}))
    values |= model.configuration()
    config = paper.finetune_config(paper.parse({**values, "pretrained_ckpt_path": str(tmp_path / "GR1_0.pth")}))
    assert config.model.width == 96 and config.model.published.positions == 1024
    assert json.loads((Path(config.pretrained) / "import.json").read_text())["kind"] == "gr-chunk"
    with pytest.raises(UserError, match="chunk_size 5"):
        paper.finetune_config(
            paper.parse({**values, "chunk_size": 5, "pretrained_ckpt_path": str(tmp_path / "save" / "imported")})
        )


def test_own_configurations_name_their_stage():
    with pytest.raises(UserError, match="pretrain, index, finetune"):
        paper.own_config({"output": "run"}, "mine.json")
    config = paper.own_config({"stage": "finetune", "output": "run", "data": {"stores": ["a"]}}, "mine.json")
    assert config.data.stores == ("a",)


def launch(folder, script, *more):
    """The paper's command, word for word but for the accelerate configuration."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / "configs" / "cpu.yaml")]
    command += ["--main_process_port", "0", str(ROOT / script), "--config", str(folder / "configs.json"), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_paper_commands_train_and_evaluate(tmp_path):
    from arvrm.model.checkpoint import load_checkpoint
    from arvrm.results import load_results

    tiny(tmp_path)
    trained = launch(tmp_path, "train.py")
    assert trained.returncode == 0, trained.stderr[-2000:]
    folder = tmp_path / "save" / "policy"
    assert trained.stdout.strip().endswith(str(folder))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if line["split"] == "train"]
    assert len(losses) == 8 and all(line["loss_image"] > 0 for line in losses)
    assert load_checkpoint(folder).metadata.execute_steps == 1
    again = launch(tmp_path, "train.py")
    assert again.returncode != 0 and "--overwrite" in again.stderr
    evaluated = launch(tmp_path, "evaluate.py", "--workers", "1")
    assert evaluated.returncode == 0, evaluated.stderr[-2000:]
    assert load_results(tmp_path / "save" / "results.json")


def test_windows_share_frames_unless_asked_otherwise(tmp_path):
    values = tiny(tmp_path)
    data = paper.finetune_config(paper.parse(values)).data
    assert data.segment_windows == 4 and not data.frozen_features, "as many as a batch holds"
    assert paper.finetune_config(paper.parse({**values, "segment_windows": 0})).data.segment_windows == 0
    cached = {**values, "feature_cache": str(tmp_path / "features")}
    with pytest.raises(UserError, match="rgb_static_pad and rgb_gripper_pad to 0"):
        paper.finetune_config(paper.parse(cached))
    data = paper.finetune_config(paper.parse({**cached, "rgb_static_pad": 0, "rgb_gripper_pad": 0})).data
    assert data.frozen_features and data.cache == str(tmp_path / "features") and data.segment_windows == 4


def test_keys_of_ar_vrms_own_configurations_are_understood():
    values = read_json(PUBLISHED[0]) | {"frozen_visual": True, "frozen_text": True, "load_epoch": 57}
    assert paper.model_config(paper.parse({**values, "novel": True})).published.second is None
    second = paper.model_config(paper.parse({**values, "novel": False})).published.second
    assert (second.encoder, second.modulated, second.patches, second.latents_have_time) == ("dinov2", True, True, False)
    with pytest.raises(UserError, match="frozen_visual"):
        paper.parse({**values, "frozen_visual": False})
