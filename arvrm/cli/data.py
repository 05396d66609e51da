"""The verbs of data: what goes in and out of episode stores.

A conversion returns 1 where something was left out, which stderr names.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from arvrm.config import bounded, check_bounds
from arvrm.episodes import EpisodeStore, damage, inspect_store, merge_stores
from arvrm.files import PNG, check_free
from arvrm.interface import UserError
from arvrm.sources.splits import FewShotRecipe, load_manifest, make_manifest, save_manifest, write_subset

if TYPE_CHECKING:
    from arvrm.sources.calvin import ConvertCalvinConfig
    from arvrm.sources.human import ConvertHumanConfig
    from arvrm.sources.lerobot import ConvertLeRobotConfig, DescribeLeRobotConfig, LeRobotReport
    from arvrm.sources.parent_lmdb import ConvertParentConfig, ParentReport

_LISTED = 10


def calvin(config: ConvertCalvinConfig) -> int:
    """`convert calvin`."""
    from arvrm.sources.calvin import convert_calvin

    reports = convert_calvin(config)
    for split, report in reports.items():
        _say(f"{split}: {report.episodes} episodes, {report.steps} steps")
        damaged = [f"{step:07d} ({reason})" for step, reason in report.damaged.items()]
        if damaged:
            more = f", ... and {len(damaged) - _LISTED} more" if len(damaged) > _LISTED else ""
            _say(f"{split}: damaged steps: {', '.join(damaged[:_LISTED])}{more}")
        _tell_left_out(report.left_out)
        if report.store:
            print(report.store)
    if any(report.left_out for report in reports.values()):
        _say(f"incomplete: {Path(config.output) / 'report.json'} lists all; mend and --resume")
        return 1
    return 0


def parent_lmdb(config: ConvertParentConfig) -> int:
    """`convert parent-lmdb`."""
    from arvrm.sources.parent_lmdb import convert_parent_lmdb

    return _converted(convert_parent_lmdb(config))


def lerobot(config: ConvertLeRobotConfig) -> int:
    """`convert lerobot`."""
    from arvrm.sources.lerobot import convert_lerobot

    report = convert_lerobot(config)
    _say(*report.said)
    return _converted(report)


def describe_lerobot(config: DescribeLeRobotConfig) -> str | None:
    """`describe lerobot`."""
    from arvrm.sources.lerobot import describe_lerobot, tell

    description, notes = describe_lerobot(config)
    _say(*tell(description, notes))
    return config.output


def human(config: ConvertHumanConfig) -> int:
    """`convert human`."""
    from arvrm.sources.human import convert_human, summary

    report = convert_human(config)
    _tell_left_out(report.errors)
    _say(*summary(report), f"{report.store}.report.json lists all")
    print(report.store)
    return 1 if report.errors else 0


@dataclass(frozen=True, kw_only=True)
class FewShotConfig(FewShotRecipe):
    """Which episodes to choose, or which choice to check.

    Attributes:
        store: episode store to choose from.
        output: manifest to write.
        check: a manifest to check against the store, in place of choosing.
        any_settings: with check, accept a store that was converted with other settings.
        write_store: copy the chosen episodes into a store there, to train on.
        overwrite: replace what exists.
    """

    fraction: float | None = None  # type: ignore[assignment]  # none is needed to check
    store: str
    output: str | None = None
    check: str | None = None
    any_settings: bool = False
    write_store: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.check is None and (self.fraction is None or self.output is None):
            raise UserError("few-shot: needs --fraction and --output (or --check FILE)")
        if self.fraction is not None:
            super().__post_init__()

    @property
    def recipe(self) -> FewShotRecipe:
        """The part that a manifest keeps."""
        return FewShotRecipe(**{field.name: getattr(self, field.name) for field in fields(FewShotRecipe)})


def few_shot(config: FewShotConfig) -> list[str]:
    """Choose episodes, or check a choice; return the manifest and, where asked for, the store of what is chosen."""
    store = EpisodeStore(config.store)
    if config.check is not None:
        file = config.check
        manifest = load_manifest(file, store, strict=not config.any_settings)
    else:
        file = str(config.output)
        manifest = make_manifest(store, config.recipe)
        save_manifest(manifest, file, config.overwrite)
    _say(f"{len(manifest.episodes)} of {manifest.chosen_from} episodes")
    if config.write_store is None:
        return [file]
    write_subset(store, manifest, config.write_store, config.overwrite)
    return [file, config.write_store]


@dataclass(frozen=True)
class InspectConfig:
    """What to say of a store; or, in words alone, of a clip index or a checkpoint.

    Attributes:
        store: its folder.
        verify: read everything, and say what is damaged or lost; the exit code is 1 if anything is.
        contact_sheet: picture (PNG) of its frames to draw; null: STORE.png.
        no_contact_sheet: text only.
        rows: episodes on the sheet.
        overwrite: draw the sheet anew where the picture exists.
    """

    store: str
    verify: bool = False
    contact_sheet: str | None = None
    no_contact_sheet: bool = False
    rows: int = bounded(16, least=1, most=1000)
    overwrite: bool = False

    __post_init__ = check_bounds


def inspect(config: InspectConfig) -> str | int | None:
    """Print what a store, an index or a checkpoint holds; verify it, or draw a store's contact sheet."""
    folder = Path(config.store)
    if config.store == "builtin":
        from arvrm.model.checkpoint import place_of

        folder = place_of(config.store)
    if (folder / "index.json").exists():
        return _inspect_index(folder, config.verify)
    if (folder / "config.json").exists() or (folder / "model.safetensors").exists():
        return _inspect_checkpoint(folder)
    if config.verify:
        return _verify_store(folder)
    from arvrm.show.contact_sheet import draw_contact_sheet

    sheet = config.contact_sheet or config.store.rstrip("/") + ".png"
    if config.contact_sheet and not config.no_contact_sheet:
        check_free(sheet, config.overwrite, PNG)
    print(inspect_store(folder))
    if config.no_contact_sheet:
        return None
    if not config.contact_sheet and Path(sheet).exists() and not config.overwrite:
        _say(f"{sheet}: is there already; pass --overwrite to draw it anew")
        return None
    draw_contact_sheet(config.store, sheet, config.rows, config.overwrite)
    return sheet


def _verify_store(folder: Path) -> int:
    store = EpisodeStore(folder)
    lines = 0
    for line in damage(store):
        print(f"damaged: {line}", flush=True)
        lines += 1
    if not lines:
        print(inspect_store(folder))
    print(f"{folder}: {f'{lines} damages, see above' if lines else 'everything was read, nothing is damaged'}")
    return int(lines > 0)


def _inspect_index(folder: Path, verify: bool) -> int:
    from arvrm.retrieval import ClipIndex

    index = ClipIndex.load(folder)
    print(f"{folder}: index of {len(index)} clips, {len(index.frames)} frames, search {index.settings['kind']}")
    print(f"encoders {index.encoder_hash}; text {index.text.shape[1]}, frames {index.frames.shape[1]} numbers each")
    for entry in index.stores:
        there = "" if Path(entry["path"]).exists() else ", not there"
        print(f"store {entry['path']}, {entry['fingerprint']}{there}")
    if verify:
        index.verify()
        print(f"{folder}: everything was read, nothing is damaged")
    return 0


def _inspect_checkpoint(folder: Path) -> int:
    from arvrm.model.checkpoint import load_checkpoint

    found = load_checkpoint(folder)  # which reads and tests everything
    about, numbers = found.metadata, sum(p.numel() for p in found.model.parameters())
    robot = "hands" if found.robot is None else f"robot {found.robot.name}"
    print(f"{folder}: {found.model.kind} of {about.stage} for {robot}, {numbers / 1e6:.2f} million parameters, whole")
    print(f"hash {found.hash}")
    print(f"windows of {about.history} frames, one every {about.stride} steps; images {about.images}")
    for store in about.stores:
        print(f"trained on {store.path}, {store.fingerprint}")
    return 0


@dataclass(frozen=True)
class MergeConfig:
    """Which stores to join.

    Attributes:
        inputs: the stores, in the order of their episodes.
        output: the store to write.
        overwrite: replace an existing output.
    """

    inputs: tuple[str, ...]
    output: str
    overwrite: bool = False


def merge(config: MergeConfig) -> Path:
    """Join stores."""
    return merge_stores(config.inputs, config.output, overwrite=config.overwrite).path


def _converted(report: LeRobotReport | ParentReport) -> int:
    _say(f"{report.episodes} episodes, {report.steps} steps")
    _tell_left_out(report.left_out)
    print(report.store)
    return 1 if report.left_out else 0


def _tell_left_out(left_out: Mapping[str, str]) -> None:
    _say(*(f"left out {identity}: {reason}" for identity, reason in list(left_out.items())[:_LISTED]))
    if len(left_out) > _LISTED:
        _say(f"... and {len(left_out) - _LISTED} more")


def _say(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr)
