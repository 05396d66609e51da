"""The command line's verbs for data in and out: a table for `arvrm.cli`, which owns the parser.

Each `run` takes the parsed arguments and returns the exit code: 0, or 1 where something was left out (2 is UserError).
Results' paths go to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from arvrm.config import from_dict

_LISTED = 10


class Verb(NamedTuple):
    """One verb: its words ("convert calvin"), one line of help, how to add its arguments, and what it does."""

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def _add_in_out(parser: argparse.ArgumentParser, input_help: str, output_help: str) -> None:
    parser.add_argument("--input", required=True, metavar="DIR", help=input_help)
    parser.add_argument("--output", required=True, metavar="DIR", help=output_help)


def _add_store_options(parser: argparse.ArgumentParser, quality: str) -> None:
    parser.add_argument("--jpeg-quality", type=int, metavar="Q", help=f"1 to 100 (default: {quality})")
    parser.add_argument("--workers", type=int, metavar="N", help="threads (default: one per core)")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted conversion")
    parser.add_argument("--overwrite", action="store_true", help="replace the output")


def _config(kind: type, arguments: argparse.Namespace, **names: str) -> Any:
    """Build the verb's configuration from the arguments that were given; `names` are options spelled otherwise."""
    values = {}
    for field in dataclasses.fields(kind):
        value = getattr(arguments, names.get(field.name, field.name), None)
        if value is not None:
            values[field.name] = value
    return from_dict(kind, values, "arguments")


def _tell_left_out(left_out: Mapping[str, str]) -> None:
    for id, reason in list(left_out.items())[:_LISTED]:
        print(f"left out {id}: {reason}", file=sys.stderr)
    if len(left_out) > _LISTED:
        print(f"... and {len(left_out) - _LISTED} more", file=sys.stderr)


def _add_calvin(parser: argparse.ArgumentParser) -> None:
    _add_in_out(parser, "CALVIN data set (holds training and validation)", "folder for the stores, one per split")
    parser.add_argument("--all", action="store_true", help="play data too: the steps without an annotation")
    parser.add_argument("--play-steps", type=int, metavar="N", help="longest episode of play data (default: 256)")
    parser.add_argument("--depth", action="store_true", help="keep the depth maps")
    parser.add_argument("--tactile", action="store_true", help="keep the tactile images")
    parser.add_argument("--image-stride", type=int, metavar="N", help="keep every n-th step's images (default: 1)")
    parser.add_argument("--verify", action="store_true", help="read everything again afterwards and compare")
    _add_store_options(parser, "80")


def _run_calvin(arguments: argparse.Namespace) -> int:
    from arvrm.sources.calvin import ConvertCalvinConfig, convert_calvin

    config = _config(ConvertCalvinConfig, arguments, play="all")
    reports = convert_calvin(config)
    for split, report in reports.items():
        print(f"{split}: {report.episodes} episodes, {report.steps} steps", file=sys.stderr)
        damaged = [f"{step:07d} ({reason})" for step, reason in report.damaged.items()]
        if damaged:
            more = f", ... and {len(damaged) - _LISTED} more" if len(damaged) > _LISTED else ""
            print(f"{split}: damaged steps: {', '.join(damaged[:_LISTED])}{more}", file=sys.stderr)
        _tell_left_out(report.left_out)
        print(report.store)
    if any(report.left_out for report in reports.values()):
        print(f"incomplete: {Path(config.output) / 'report.json'} lists all; mend and --resume", file=sys.stderr)
        return 1
    return 0


def _add_parent(parser: argparse.ArgumentParser) -> None:
    _add_in_out(parser, "LMDB that GR-1's or AR-VRM's calvin2lmdb.py wrote", "episode store")
    parser.add_argument("--calvin-root", metavar="DIR", help="CALVIN checkout: tells the task of each sentence")
    parser.add_argument("--first", type=int, metavar="N", help="first episode to convert (default: 0)")
    parser.add_argument("--last", type=int, metavar="N", help="last episode to convert (default: all)")
    parser.add_argument("--scene", metavar="LETTER", help="scene, which the LMDB does not hold")
    _add_store_options(parser, "92")


def _run_parent(arguments: argparse.Namespace) -> int:
    from arvrm.sources.parent_lmdb import ConvertParentConfig, convert_parent_lmdb

    report = convert_parent_lmdb(_config(ConvertParentConfig, arguments))
    print(f"{report.episodes} episodes, {report.steps} steps", file=sys.stderr)
    _tell_left_out(report.left_out)
    print(report.store)
    return 1 if report.left_out else 0


def _add_human(parser: argparse.ArgumentParser) -> None:
    sources = ("folder", "ego4d", "epic", "ssv2", "egodex")
    parser.add_argument("--source", required=True, choices=sources, help="whose annotations")
    _add_in_out(parser, "folder that holds the videos, at any depth", "episode store")
    parser.add_argument("--annotations", metavar="FILE", help="what is where (default: the source's usual file)")
    parser.add_argument("--clip-seconds", type=float, metavar="S", help="clips around Ego4D's moments (default: 3)")
    parser.add_argument("--fps", type=float, metavar="F", help="steps a second, at most the video's (default: 30)")
    parser.add_argument("--image-fps", type=float, metavar="F", help="stored images a second (default: 10)")
    parser.add_argument("--sequence-fps", type=float, metavar="F", help="rate of image sequences (default: 30)")
    parser.add_argument("--max-seconds", type=float, metavar="S", help="longer segments are refused (default: 60)")
    parser.add_argument("--image-size", type=int, metavar="PX", help="side of the stored images (default: 224)")
    parser.add_argument("--fit", choices=("crop", "letterbox"), help="how images become square (default: crop)")
    parser.add_argument("--hands", choices=("acting", "both"), help="K = 21 or 42 keypoints (default: acting)")
    parser.add_argument("--detector", metavar="NAME", help="mediapipe, or package.module:Class (default: mediapipe)")
    parser.add_argument("--model", metavar="FILE", help="the detector's model file")
    parser.add_argument("--min-detection-rate", type=float, metavar="X", help="share of frames with a hand (0.5)")
    parser.add_argument("--max-jitter", type=float, metavar="X", help="the detector's noise, hand lengths (0.15)")
    parser.add_argument("--max-truncation", type=float, metavar="X", help="share of points beyond the image (0.5)")
    parser.add_argument("--min-motion-energy", type=float, metavar="X", help="(hand lengths/s) squared (0)")
    parser.add_argument("--max-extra-hands", type=float, metavar="X", help="share of frames with over two hands (0.5)")
    parser.add_argument("--min-frames", type=int, metavar="N", help="shortest clip (2)")
    parser.add_argument("--shard", metavar="I/N", help="make the i-th of n parts only; join them with `arvrm merge`")
    parser.add_argument("--jpeg-quality", type=int, metavar="Q", help="1 to 100 (default: 92)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted conversion")
    parser.add_argument("--overwrite", action="store_true", help="replace the output")


def _run_human(arguments: argparse.Namespace) -> int:
    from arvrm.sources.human import ConvertHumanConfig, convert_human, summary

    config = _config(ConvertHumanConfig, arguments)
    report = convert_human(config)
    _tell_left_out(report.errors)
    for line in summary(report):
        print(line, file=sys.stderr)
    print(f"{report.store}.report.json lists all", file=sys.stderr)
    print(report.store)
    return 1 if report.errors else 0


def _add_lerobot_in(parser: argparse.ArgumentParser) -> None:
    _add_in_out(parser, "LeRobot data set v3 (holds meta/info.json)", "episode store")
    parser.add_argument("--top", metavar="FEATURE", help="camera that becomes rgb_static")
    parser.add_argument("--wrist", metavar="FEATURE", help="camera that becomes rgb_gripper")
    parser.add_argument("--action", metavar="FEATURE", help="relative CALVIN actions (default: found by name)")
    _add_store_options(parser, "92")


def _run_lerobot_in(arguments: argparse.Namespace) -> int:
    from arvrm.sources.lerobot import ConvertLeRobotConfig, convert_lerobot

    report = convert_lerobot(_config(ConvertLeRobotConfig, arguments))
    print(f"{report.episodes} episodes, {report.steps} steps", file=sys.stderr)
    _tell_left_out(report.left_out)
    print(report.store)
    return 1 if report.left_out else 0


def _add_lerobot_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", "--input", dest="store", required=True, metavar="DIR", help="robot episode store")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the LeRobot data set v3")
    parser.add_argument("--crf", type=int, metavar="N", help="H.264 quality, 0 best to 51 (default: 18)")
    parser.add_argument("--chroma", choices=("420", "444"), help="colour resolution of the videos (default: 420)")
    parser.add_argument("--overwrite", action="store_true", help="replace the output")


def _run_lerobot_out(arguments: argparse.Namespace) -> int:
    from arvrm.sources.lerobot import ExportLeRobotConfig, export_lerobot

    print(export_lerobot(_config(ExportLeRobotConfig, arguments)))
    return 0


def _add_few_shot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", required=True, metavar="DIR", help="episode store to choose from")
    parser.add_argument("--output", metavar="FILE", help="manifest to write")
    parser.add_argument("--fraction", type=float, metavar="F", help="share of the episodes, such as 0.1")
    strata = ("store", "task", "scene", "task-scene")
    parser.add_argument("--per", choices=strata, help="what is sampled on its own (default: task)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the draw (default: 0)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these tasks")
    parser.add_argument("--scenes", nargs="+", metavar="SCENE", help="only these scenes")
    parser.add_argument("--check", metavar="FILE", help="instead: check a manifest against the store")
    parser.add_argument("--any-settings", action="store_true", help="with --check: accept other conversion settings")
    parser.add_argument("--write-store", metavar="DIR", help="copy the chosen episodes into a store, to train on")
    parser.add_argument("--overwrite", action="store_true", help="replace the output")


def _run_few_shot(arguments: argparse.Namespace) -> int:
    from arvrm.episodes import EpisodeStore
    from arvrm.interface import UserError
    from arvrm.sources.splits import FewShotRecipe, load_manifest, make_manifest, save_manifest, write_subset

    store = EpisodeStore(arguments.store)
    if arguments.check:
        file = arguments.check
        manifest = load_manifest(file, store, strict=not arguments.any_settings)
    elif arguments.fraction is None or arguments.output is None:
        raise UserError("few-shot: needs --fraction and --output (or --check FILE)")
    else:
        file = arguments.output
        manifest = make_manifest(store, _config(FewShotRecipe, arguments))
        save_manifest(manifest, file, arguments.overwrite)
    print(f"{len(manifest.episodes)} of {manifest.chosen_from} episodes", file=sys.stderr)
    print(file)
    if arguments.write_store:
        write_subset(store, manifest, arguments.write_store, arguments.overwrite)
        print(arguments.write_store)
    return 0


VERBS = (
    Verb("convert calvin", "a CALVIN data set into episode stores", _add_calvin, _run_calvin),
    Verb("convert parent-lmdb", "GR-1's or AR-VRM's CALVIN LMDB into a store", _add_parent, _run_parent),
    Verb("convert human", "videos of hands into a store, of one's own or of published sets", _add_human, _run_human),
    Verb("convert lerobot", "a LeRobot data set v3 into a store", _add_lerobot_in, _run_lerobot_in),
    Verb("export lerobot", "a robot store as a LeRobot data set v3", _add_lerobot_out, _run_lerobot_out),
    Verb("few-shot", "choose episodes: a manifest to share", _add_few_shot, _run_few_shot),
)


def convert_calvin_verb(argv: list[str]) -> int:
    """Run `convert calvin` with its options as a list, for doors other than the command line; errors as there."""
    parser = argparse.ArgumentParser(prog="arvrm convert calvin")
    _add_calvin(parser)
    return _run_calvin(parser.parse_args(argv))
