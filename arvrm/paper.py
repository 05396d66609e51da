"""The published configurations (`configs_ABC.json` of AR-VRM, `configs.json` of GR-Chunk), key by key.

Every key is read, or accepted at the one value that means what we do (another is refused, with the reason), or named as
without effect. So a published file either does here what it says, or one line tells what it does not.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
from pathlib import Path
from typing import Any

from arvrm import processes
from arvrm.config import from_dict
from arvrm.episodes import EpisodeStore
from arvrm.files import read_json
from arvrm.interface import UserError
from arvrm.model.config import LossConfig, ModelConfig
from arvrm.model.published.config import SecondVisionConfig
from arvrm.model.published.importers import ImportConfig, import_checkpoint
from arvrm.model.published.presets import CLIP, NETWORK, published_model
from arvrm.model.upgrade import upgraded_model
from arvrm.training import DataConfig, FinetuneConfig, IndexConfig, PretrainConfig, TrainConfig
from arvrm.windows import EpisodeTable, WindowConfig, split_episodes

VALIDATION = 0.1
"""Fraction that the published code holds out; here by chain or video, there by frame."""

READ: dict[str, Any] = {
    "LMDB_path": "./calvin_lmdb/",
    "save_path": "./Save/",
    "num_epochs": 20,
    "save_epochs": 1,
    "print_steps": 100,
    "lr_max": 0.0009,
    "weight_decay": 0.0001,
    "num_warmup_epochs": 1,
    "bs_per_gpu": 19,
    "gradient_accumulation_steps": 3,
    "workers_per_gpu": 7,
    "mae_ckpt": "./mae_pretrain_vit_base.pth",
    "clip_backbone": "ViT-B/32",
    "clip_ckpt": None,
    "pretrained_ckpt_path": None,
    "bytedance_ckpt_path": None,
    "load_bytedance_ckpt": False,
    "skip_frame": 3,
    "img_feat_dim": 768,
    "ten_percent_train": False,
    "num_sequences": 1000,
    "ep_len": 360,
    "compile_model": False,
    "novel": True,
    "dino_ckpt": "facebook/dinov2-base",
    "segment_windows": 10,
    "feature_cache": None,
    **NETWORK,
}
"""Keys that are read, with the published values, which stand where a file lacks them."""

ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "act_dim": ((7,), "an action is six arm numbers and a gripper"),
    "state_dim": ((7,), "the state token reads six arm numbers and a gripper"),
    "action_mode": (("ee_rel_pose",), "policies plan relative actions of the end effector"),
    "use_hand_rgb": ((True,), "policies read both cameras"),
    "act_pred": ((True,), "a policy predicts actions"),
    "rgb_mean": (([0.485, 0.456, 0.406],), "the frozen encoders were trained with ImageNet's statistics"),
    "rgb_std": (([0.229, 0.224, 0.225],), "the frozen encoders were trained with ImageNet's statistics"),
    "resampler_num_media_embeds": ((1,), "the resampler reads one image at a time"),
    "without_norm_pixel_loss": ((False,), "image prediction is scored on patches with mean and scale taken out"),
    "without_norm_pix_loss": ((False,), "image prediction is scored on patches with mean and scale taken out"),
    "frozen_visual": ((True,), "the image encoders stay as published"),
    "frozen_text": ((True,), "sentences are embedded once, before training"),
    "unseen_train": ((False,), "what it leaves out is not published; name tasks with data.tasks=[...] instead"),
}
"""Keys with one value that is accepted: any other is refused for this reason."""

WITHOUT_EFFECT: dict[str, str] = {
    "load_epoch": "a run goes on with train.py --resume, and a checkpoint is a folder",
    "device": "accelerate's configuration chooses it",
    "prefetch_factor": "workers prepare two batches each",
    "evaluate_during_training": "evaluate.py is run on what training saved",
    "record_evaluation_video": "evaluate.py --film-failures N keeps films",
    "crop_area_scale": "images are shifted, not cropped",
    "crop_aspect_ratio": "images are shifted, not cropped",
}
"""Keys that change nothing, and why."""

PAIRS = {"fwd_pred_hand": "fwd_pred", "fwd_pred_next_n": "skip_frame", "patch_feat_dim": "img_feat_dim"}
"""Keys that must say the same as another one."""

KNOWN = {**READ, **ONLY, **WITHOUT_EFFECT, **PAIRS}


@dataclasses.dataclass(frozen=True)
class Published:
    """A published configuration.

    Attributes:
        place: the file.
        values: of `READ`.
        notes: one line per key without effect.
    """

    place: str
    values: dict[str, Any]
    notes: tuple[str, ...] = ()


def is_published(values: dict[str, Any]) -> bool:
    """Whether a configuration has the published form (ours has sections)."""
    return bool({"LMDB_path", "seq_len", "embed_dim", "bs_per_gpu", "save_path"} & set(values))


def parse(values: dict[str, Any], place: str = "configuration") -> Published:
    """Check every key.

    Raises:
        UserError: a key is unknown, or has a value that means what we do not do.
    """
    merged, notes = dict(READ), []
    for key, value in values.items():
        if key in READ:
            default = READ[key]
            number = isinstance(default, (int, float)) and not isinstance(default, bool)
            fits = isinstance(value, (int, float)) and not isinstance(value, bool) if number else True
            if isinstance(default, bool):
                fits = isinstance(value, bool)
            if key == "rgb_shape" and isinstance(value, list) and len(set(value)) == 1:
                value = value[0]
                fits = True
            if not fits:
                raise UserError(f"{place}: {key} is {value!r}; give a value like {default!r}")
            merged[key] = value
        elif key in ONLY:
            accepted, reason = ONLY[key]
            if value not in accepted:
                raise UserError(f"{place}: {key} is {value!r}, only {accepted[0]!r} is supported: {reason}")
        elif key in WITHOUT_EFFECT:
            notes.append(f"{place}: {key} has no effect: {WITHOUT_EFFECT[key]}")
        elif key not in PAIRS:
            close = difflib.get_close_matches(key, list(KNOWN), n=1, cutoff=0.5)
            nearest = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(f"{place}: unknown key {key!r}{nearest}")
    for key, other in PAIRS.items():
        if key in values and values[key] != merged[other]:
            raise UserError(f"{place}: {key} is {values[key]!r} and {other} {merged[other]!r}; they must be alike here")
    return Published(place, merged, tuple(notes))


def model_config(published: Published) -> ModelConfig:
    """Return the network that the published code trains, the human side aside."""
    v = published.values
    if v["rgb_shape"] % v["patch_size"]:
        raise UserError(f"{published.place}: rgb_shape {v['rgb_shape']} is no multiple of patch_size {v['patch_size']}")
    second = None
    if not v["novel"]:
        second = SecondVisionConfig(path=v["dino_ckpt"], input_size=v["rgb_shape"], latents_have_time=False)
    return published_model(
        v,
        "dinov2" if "dino" in Path(v["mae_ckpt"]).name.lower() else "mae",
        published.place,
        clip=_clip(published),
        path=v["mae_ckpt"],
        second=second,
        loss=LossConfig(state=0.0, analogy=0.0, replay=0.0),
    )


def finetune_config(published: Published, resume: bool = False, overwrite: bool = False) -> FinetuneConfig:
    """Return our configuration of the published training: one run, in `save_path`/policy.

    Epochs become updates by the number of training windows and of processes; precision is accelerate's.

    Raises:
        UserError: the store is missing, or a pretrained file cannot be imported.
    """
    v = published.values
    shifted = v["rgb_static_pad"] or v["rgb_gripper_pad"]
    if v["feature_cache"] and (shifted or not v["novel"]):
        why = "images are not shifted: set rgb_static_pad and rgb_gripper_pad to 0" if shifted else "novel is true"
        raise UserError(f"{published.place}: feature_cache keeps what the frozen encoder sees, which needs that {why}")
    data = DataConfig(
        stores=training_stores(published),
        validation=VALIDATION,
        balance_tasks=False,
        share=0.1 if v["ten_percent_train"] else 1.0,
        in_memory=False,
        frozen_features=bool(v["feature_cache"]),
        cache=v["feature_cache"],
        segment_windows=min(int(v["segment_windows"]), v["bs_per_gpu"]),
    )
    window = WindowConfig(v["seq_len"], 1, image_horizon=max(1, int(v["skip_frame"])))
    batch = v["bs_per_gpu"] * v["gradient_accumulation_steps"] * processes.world()
    epoch = max(1, math.ceil(training_windows(data) / batch))
    model = _model(published)
    mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if mixed not in ("no", "bf16"):
        raise UserError(f"mixed_precision: {mixed} is not supported; set bf16 or no in accelerate's configuration")
    train = TrainConfig(
        steps=max(1, v["num_epochs"] * epoch),
        batch=batch,
        accumulate=v["gradient_accumulation_steps"],
        learning_rate=float(v["lr_max"]),
        warmup=v["num_warmup_epochs"] * epoch,
        weight_decay=float(v["weight_decay"]),
        precision="bf16" if mixed == "bf16" else "fp32",
        compile=v["compile_model"],
        device="cpu" if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") else "auto",
        log_every=v["print_steps"],
        validate_every=epoch,
        checkpoint_every=v["save_epochs"] * epoch,
        workers=v["workers_per_gpu"],
    )
    return FinetuneConfig(
        output=str(policy_folder(published)),
        resume=resume,
        overwrite=overwrite,
        data=data,
        pretrained=_pretrained(published),
        window=window,
        model=model,
        execute_steps=v["test_chunk_size"],
        train=train,
    )


def evaluation(published: Published) -> dict[str, Any]:
    """Return the fields of `EvaluateConfig` by which the published evaluation rolls out what training saved."""
    v = published.values
    folder = policy_folder(published)
    return {
        "output": str(folder.parent / "results.json"),
        "checkpoint": str(folder),
        "chains": v["num_sequences"],
        "max_steps": v["ep_len"],
        "execute_steps": v["test_chunk_size"],
    }


def own_config(values: dict[str, Any], place: str) -> PretrainConfig | IndexConfig | FinetuneConfig:
    """Return one of our own configurations; `stage` (pretrain, index, finetune) says which.

    Raises:
        UserError: no such stage, or a key does not belong to it.
    """
    kinds = {"pretrain": PretrainConfig, "index": IndexConfig, "finetune": FinetuneConfig}
    stage = values.get("stage")
    if stage not in kinds:
        raise UserError(f"{place}: stage is {stage!r}; give one of {', '.join(kinds)}, or a published configuration")
    return from_dict(kinds[stage], {key: value for key, value in values.items() if key != "stage"}, place)


def policy_folder(published: Published) -> Path:
    """The run's folder, which becomes the checkpoint."""
    return Path(published.values["save_path"]) / "policy"


def training_stores(published: Published) -> tuple[str, ...]:
    """Return the episode stores under LMDB_path: itself, or its `training`, or all stores in it but `validation`.

    Raises:
        UserError: there is none.
    """
    folder = Path(published.values["LMDB_path"])
    if (folder / "data.mdb").exists():
        return (str(folder),)
    inside = sorted(entry.parent for entry in folder.glob("*/data.mdb"))
    found = [entry for entry in inside if entry.name == "training"] or [e for e in inside if e.name != "validation"]
    if not found:
        raise UserError(
            f"{published.place}: no episode store in LMDB_path {folder}; make one with "
            f"python data/calvin2lmdb.py --input_dir DIR --output_dir {folder}"
        )
    return tuple(str(entry) for entry in found)


def training_windows(data: DataConfig) -> int:
    """Count the windows of an epoch: every stored frame of the training episodes ends one."""
    table = EpisodeTable([EpisodeStore(path) for path in data.stores], "robot", 1)
    train, _ = split_episodes(table, data.validation, data.seed)
    lengths = table.image_start[train + 1] - table.image_start[train]
    return max(1, round(float(lengths.sum()) * data.share))


def _clip(published: Published) -> str:
    path, name = published.values["clip_ckpt"], published.values["clip_backbone"]
    if path:
        return path
    if name == "ViT-B/32":
        return CLIP
    if Path(name).exists():
        return name
    raise UserError(f"{published.place}: clip_backbone {name!r} is no file; give 'ViT-B/32' or a path")


def _pretrained(published: Published) -> str | None:
    """The checkpoint to start from; an original file is imported beside the run first (by the first process)."""
    v = published.values
    path = v["pretrained_ckpt_path"] or (v["bytedance_ckpt_path"] if v["load_bytedance_ckpt"] else None)
    if not path or Path(path).is_dir():
        return path or None
    folder = Path(v["save_path"]) / "imported"

    def make() -> None:
        if not (folder / "model.safetensors").exists():
            given = {key: v[key] for key in NETWORK if key in v}
            import_checkpoint(ImportConfig(path, str(folder), vision=v["mae_ckpt"], clip=_clip(published)), given)

    processes.first_does(f"import {folder}", make)
    return str(folder)


def _model(published: Published) -> ModelConfig:
    """The network; one that starts from an imported file has that file's shape (GR-1's has no positions)."""
    start = _pretrained(published)
    own = model_config(published)
    if start is None:
        return own
    described = read_json(Path(start) / "config.json")
    if described.get("kind") != "policy":
        return own
    place = f"{start}/config.json: model"
    known = from_dict(ModelConfig, upgraded_model(described["model"], place), place)
    if (known.chunk, known.max_frames) != (own.chunk, own.max_frames):
        raise UserError(
            f"{published.place}: chunk_size {own.chunk} and seq_len {own.max_frames} differ from {start}'s "
            f"{known.chunk} and {known.max_frames}; set them alike"
        )
    return dataclasses.replace(known, loss=own.loss, dropout=own.dropout)
