"""The command line: one verb per step of the pipeline, each a function in one table (`VERBS`).

A verb's module is imported only when the verb is called. Verbs that are described by a configuration dataclass take
`--config FILE`, a flag per field, and overrides `section.key=value` for nested fields.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import inspect
import json
import os
import re
import signal
import sys
import textwrap
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from arvrm import __version__, processes
from arvrm.interface import UserError


@dataclass(frozen=True)
class Verb:
    """One command.

    Attributes:
        summary: one line for `arvrm --help`.
        run: called with the arguments after the verb; returns the path of the result, which is printed to stdout, or an
            exit code, or None.
    """

    summary: str
    run: Callable[[list[str]], Any]


class Parser(argparse.ArgumentParser):
    """Reports mistakes as `UserError`: one line that names the nearest flag."""

    def __init__(self, verb: str, **keywords: Any) -> None:
        keywords.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(prog=f"arvrm {verb}", allow_abbrev=False, **keywords)
        self.verb = verb

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown:
            message = f"unknown flag {unknown[1]}{_nearest(unknown[1], self._option_string_actions)}"
        raise UserError(f"{self.verb}: {message}; see `arvrm {self.verb} --help`")


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"; did you mean {close[0]}?" if close else ""


# ---------------------------------------------------------------------------------------------------------------------
# Flags from configuration dataclasses
# ---------------------------------------------------------------------------------------------------------------------


def config_from(
    kind: type, verb: str, arguments: list[str], description: str, defaults: dict[str, Any] | None = None
) -> Any:
    """Parse a verb's arguments into its configuration: file, then overrides, then flags, the later ones win.

    Args:
        defaults: values that differ from the dataclass's own; a file overrides them.
    """
    parser, flags = _config_parser(kind, verb, description)
    parsed = parser.parse_intermixed_args(arguments)
    from arvrm import config as configuration

    given = [f"{name}={json.dumps(value)}" for name, value in vars(parsed).items() if name in flags]
    base = [f"{name}={json.dumps(value)}" for name, value in (defaults or {}).items()]
    for override in parsed.overrides:
        if "=" not in override:
            raise UserError(f"{verb}: unexpected argument {override!r}; write overrides as section.key=value")
    if base and parsed.config:
        known = _read_keys(parsed.config)
        base = [entry for entry in base if entry.split("=")[0] not in known]
    loaded = configuration.load(kind, parsed.config, base + parsed.overrides + given)
    if parsed.show_config:
        print(json.dumps(configuration.to_dict(loaded), indent=1))
        raise SystemExit(0)
    return loaded


def _read_keys(file: str) -> set[str]:
    try:
        with open(file) as stream:
            return set(json.load(stream))
    except (OSError, ValueError, TypeError):
        return set()  # configuration.load says what is wrong


def _config_parser(kind: type, verb: str, description: str) -> tuple[Parser, set[str]]:
    hints, help_texts = typing.get_type_hints(kind), field_help(kind)
    parser = Parser(verb, description=description)
    text = "set a nested field of the configuration"
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=text)
    parser.add_argument("--config", metavar="FILE", help="JSON file with the configuration")
    parser.add_argument("--show-config", action="store_true", help="print the whole configuration as JSON and stop")
    flags, nested = set(), []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint) or typing.get_origin(hint) is dict:
            nested.append(field.name)
            continue
        flags.add(field.name)
        text = help_texts.get(field.name, "")
        if field.default not in (dataclasses.MISSING, None, (), "") and not isinstance(field.default, bool):
            text += f" (default: {_plain(field.default)})"
        options: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
        flag = "--" + field.name.replace("_", "-")
        if hint is bool:
            # What is on by default is turned off by --no-...; the rest needs no such twin.
            action = argparse.BooleanOptionalAction if field.default is True else "store_true"
            parser.add_argument(flag, action=action, **options)
        else:
            options["metavar"] = _metavar(hint)
            parser.add_argument(flag, type=_reader(hint, field.default), **options)
    if nested:
        lines = [f"Nested, see --show-config, set as {nested[0]}.KEY=VALUE:"]
        for text in dict.fromkeys(help_texts.get(name, "") for name in nested):
            names = ", ".join(name for name in nested if help_texts.get(name, "") == text)
            lines += textwrap.wrap(f"{names}: {text}".strip(": "), 100, subsequent_indent="    ")
        parser.epilog = "\n  ".join(lines)
    return parser, flags


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _alternatives(hint: Any) -> list[Any]:
    """The types a value may have, None left out."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [option for option in typing.get_args(hint) if option is not type(None)]
    return [hint]


def _metavar(hint: Any) -> str:
    first = _alternatives(hint)[0]
    if typing.get_origin(first) is typing.Literal:
        return "{" + ",".join(map(str, typing.get_args(first))) + "}"
    if typing.get_origin(first) is tuple:
        return "A,B,..."
    return {int: "N", float: "X", str: "TEXT"}.get(first, "VALUE")


def _reader(hint: Any, default: Any) -> Callable[[str], Any]:
    """Return what turns a flag's text into a JSON-able value; the configuration checks its type afterwards."""
    kinds = _alternatives(hint)
    optional = typing.get_origin(hint) in (typing.Union, types.UnionType) and type(None) in typing.get_args(hint)

    def read(text: str) -> Any:
        if optional and text.lower() in ("none", "null"):
            return None
        for kind in kinds:
            if typing.get_origin(kind) is tuple:
                if text == "all" and default in ((), None):
                    return default
                parts = [part.strip() for part in text.split(",") if part.strip()]
                inner = typing.get_args(kind)[0]
                return [_number(part) if inner in (int, float) else part for part in parts]
            if kind in (int, float):
                return _number(text)
            if typing.get_origin(kind) is typing.Literal and not isinstance(typing.get_args(kind)[0], str):
                return _number(text)
        return text

    return read


def _number(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def field_help(kind: type) -> dict[str, str]:
    """Return what the `Attributes:` of a dataclass's docstring say of each field ("name: text" or "a, b: text")."""
    text = inspect.cleandoc(kind.__doc__ or "")
    _, _, text = text.partition("Attributes:")
    names = {field.name for field in dataclasses.fields(kind)}
    text = " ".join(text.split())
    marks = [
        mark
        for mark in re.finditer(r"(?:(?<=^)|(?<=[.;)\]] )|(?<=^ ))((?:\w+, )*\w+): ", text)
        if set(mark[1].split(", ")) <= names
    ]
    found = {}
    for mark, after in zip(marks, [*marks[1:], None], strict=True):
        body = text[mark.end() : after.start() if after else len(text)].strip().rstrip(".")
        for name in mark[1].split(", "):
            found[name] = body
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Verbs
# ---------------------------------------------------------------------------------------------------------------------


def _demo(arguments: list[str]) -> Any:
    from arvrm.demo import DemoConfig, demo

    return demo(config_from(DemoConfig, "demo", arguments, "Run the whole pipeline, small: data to report."))


def _generate(arguments: list[str]) -> Any:
    from arvrm.sources.playtable import GenerateConfig, generate

    text = "Record demonstrations of the scripted experts, as robot episodes or as (synthetic) human-hand clips."
    return generate(config_from(GenerateConfig, "generate", arguments, text)).store.path


def _inspect(arguments: list[str]) -> Any:
    parser = Parser("inspect", description="Describe an episode store and draw a contact sheet of its frames.")
    parser.add_argument("store", metavar="STORE", help="folder of the store")
    parser.add_argument("--contact-sheet", metavar="PNG", help="where to draw it (default: STORE.png)")
    parser.add_argument("--no-contact-sheet", action="store_true", help="text only")
    parser.add_argument("--rows", type=int, default=16, help="episodes on the sheet (default: 16)")
    parsed = parser.parse_args(arguments)
    from arvrm.episodes import inspect_store
    from arvrm.show.contact_sheet import draw_contact_sheet

    sheet = None if parsed.no_contact_sheet else parsed.contact_sheet or parsed.store.rstrip("/") + ".png"
    print(inspect_store(parsed.store))
    if sheet is not None:
        draw_contact_sheet(parsed.store, sheet, parsed.rows)
    return sheet


def _merge(arguments: list[str]) -> Any:
    parser = Parser("merge", description="Join episode stores into one.")
    parser.add_argument("inputs", nargs="+", metavar="STORE")
    parser.add_argument("--output", required=True, metavar="STORE")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parsed = parser.parse_args(arguments)
    from arvrm.episodes import merge_stores

    return merge_stores(parsed.inputs, parsed.output, overwrite=parsed.overwrite).path


def _pretrain(arguments: list[str]) -> Any:
    from arvrm.training import PretrainConfig, pretrain

    text = "Stage 1: learn from human clips to foresee the hand's keypoints."
    return _folder(pretrain(config_from(PretrainConfig, "pretrain", arguments, text)))


def _index(arguments: list[str]) -> Any:
    from arvrm.training import IndexConfig, build_index_stage

    text = "Build the index from which human clips are retrieved for robot windows."
    return _folder(build_index_stage(config_from(IndexConfig, "index", arguments, text)))


def _finetune(arguments: list[str]) -> Any:
    from arvrm.training import FinetuneConfig, finetune

    text = "Stage 2: train the robot's policy, with retrieved human clips and the analogy map."
    return _folder(finetune(config_from(FinetuneConfig, "finetune", arguments, text)))


def _import_checkpoint(arguments: list[str]) -> Any:
    parser = Parser("import-checkpoint", description="Turn a checkpoint of GR-1, GR-Chunk or AR-VRM into ours.")
    parser.add_argument("file", metavar="FILE", help="snapshot_ABC.pt, GR1_*.pth or AR_*.pth")
    parser.add_argument("--output", required=True, metavar="DIR", help="checkpoint to write")
    parser.add_argument("--kind", choices=("auto", "gr1", "gr-chunk", "ar-vrm"), default="auto")
    text = "frozen image encoder: its original file, a directory or a hub name (default: in FILE)"
    parser.add_argument("--vision", metavar="PATH", help=text)
    parser.add_argument("--encoder", choices=("auto", "mae", "dinov2"), default="auto", help="which one that is")
    parser.add_argument("--clip", metavar="PATH", help="CLIP ViT-B/32, likewise (default: the hub's)")
    parser.add_argument("--config", metavar="JSON", help="configuration FILE was trained with (default: published)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parsed = parser.parse_args(arguments)
    from arvrm.model.importers import ImportConfig, import_checkpoint

    return import_checkpoint(ImportConfig(**{k: v for k, v in vars(parsed).items() if v is not None}))


def _evaluate_hands(arguments: list[str]) -> Any:
    from arvrm.training import EvaluateHandsConfig, evaluate_hands

    text = "Measure how well a stage-1 checkpoint foresees hands, against baselines and without each of its inputs."
    return evaluate_hands(config_from(EvaluateHandsConfig, "evaluate-hands", arguments, text))


def _folder(result: Any) -> Any:
    return getattr(result, "folder", result)


def _evaluate(arguments: list[str]) -> Any:
    from arvrm.evaluation import EvaluateConfig, evaluate
    from arvrm.results import load_results, table

    text = "Roll a policy out in chains of five instructions and measure how far it gets."
    config = config_from(EvaluateConfig, "evaluate", arguments, text)
    factory, identity = None, None
    if config.policy == "checkpoint":
        if not config.checkpoint:
            raise UserError("evaluate: no policy given; pass --checkpoint DIR, or --policy expert or random")
        from arvrm.policy import policy_factory

        factory, identity = policy_factory(
            config.checkpoint,
            processes.device(config.device),
            config.index,
            config.execute_steps,
            config.batch,
            config.threads,
        )
    path = evaluate(factory, config, policy_identity=identity)
    if processes.is_main():
        print(table(load_results(path)), file=sys.stderr)
    return path


def _report(arguments: list[str]) -> Any:
    parser = Parser("report", description="Write one self-contained HTML page about results files.")
    parser.add_argument("results", nargs="+", metavar="RESULTS.json", help="files written by `arvrm evaluate`")
    parser.add_argument("--output", default="report.html", metavar="HTML", help="the page (default: report.html)")
    parser.add_argument("--run", action="append", default=[], metavar="DIR", help="training run whose curves to draw")
    parser.add_argument("--exhibits", metavar="DIR", help="folder of `arvrm exhibit`: retrieved clips and the map")
    parser.add_argument("--title", default="arvrm report")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing page")
    parsed = parser.parse_args(arguments)
    from arvrm.show.report import write_report

    return write_report(
        parsed.results, parsed.output, parsed.run, parsed.exhibits, title=parsed.title, overwrite=parsed.overwrite
    )


def _exhibit(arguments: list[str]) -> Any:
    from arvrm.show.exhibits import ExhibitConfig, make_exhibits

    text = "Collect what a report shows of a policy: the map over a hand, retrieved clips beside robot frames."
    return make_exhibits(config_from(ExhibitConfig, "exhibit", arguments, text))


def _sim_verify(arguments: list[str]) -> Any:
    parser = Parser("sim verify", description="Compare the simulator with recordings of the official one, bit for bit.")
    parser.add_argument("files", nargs="+", metavar="RECORDING.npz")
    parser.add_argument("--calvin-root", metavar="DIR", help="official checkout (default: CALVIN_ROOT's)")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parsed = parser.parse_args(arguments)
    from arvrm.sim.verify import main_verify

    return main_verify(parsed.files, parsed.json, parsed.calvin_root)


def _data_verb(name: str, module: str = "arvrm.sources.verbs") -> Callable[[list[str]], Any]:
    """A verb of a module's own table, which brings its own arguments."""

    def run(arguments: list[str]) -> Any:
        verb = next(verb for verb in importlib.import_module(module).VERBS if verb.name == name)
        parser = Parser(name, description=verb.help[0].upper() + verb.help[1:] + ".")
        verb.add_arguments(parser)
        return verb.run(parser.parse_args(arguments))

    return run


VERBS: dict[str, Verb] = {
    "demo": Verb("run the whole pipeline, small: about 20 minutes on two cores", _demo),
    "generate": Verb("record scripted demonstrations (robot) or synthetic hand clips (human)", _generate),
    "convert calvin": Verb("an official CALVIN data set into episode stores", _data_verb("convert calvin")),
    "convert parent-lmdb": Verb("GR-1's or AR-VRM's CALVIN LMDB into a store", _data_verb("convert parent-lmdb")),
    "convert human": Verb("videos of human hands into a store", _data_verb("convert human")),
    "convert lerobot": Verb("a LeRobot data set v3 into a store", _data_verb("convert lerobot")),
    "export lerobot": Verb("a robot store as a LeRobot data set v3", _data_verb("export lerobot")),
    "hands fetch-model": Verb("get MediaPipe's hand model", _data_verb("hands fetch-model", "arvrm.show.hands")),
    "hands show": Verb("film hands: of a video, or a clip of a store", _data_verb("hands show", "arvrm.show.hands")),
    "hands quality": Verb("one HTML page about a store's hands", _data_verb("hands quality", "arvrm.show.hands")),
    "few-shot": Verb("choose episodes of a store: a manifest to share", _data_verb("few-shot")),
    "inspect": Verb("describe an episode store, with a contact sheet", _inspect),
    "merge": Verb("join episode stores", _merge),
    "pretrain": Verb("stage 1: learn hand motion from human clips", _pretrain),
    "predict-hands": Verb("film a video with what stage 1 foresees", _data_verb("predict-hands", "arvrm.show.hands")),
    "evaluate-hands": Verb("measure keypoint prediction on held-out clips, with controls", _evaluate_hands),
    "index": Verb("index human clips for retrieval", _index),
    "finetune": Verb("stage 2: train the robot's policy", _finetune),
    "import-checkpoint": Verb("a GR-1, GR-Chunk or AR-VRM checkpoint into ours", _import_checkpoint),
    "evaluate": Verb("roll out chains of instructions and measure", _evaluate),
    "exhibit": Verb("collect the map and retrieved clips of a policy for the report", _exhibit),
    "report": Verb("one HTML page about results", _report),
    "sim verify": Verb("compare the simulator with recordings of the official one", _sim_verify),
}


def usage() -> str:
    """The text of `arvrm --help`."""
    lines = [
        "usage: arvrm VERB ...",
        "",
        "Learn robot manipulation from human hands, and measure it. In the order of the pipeline:",
        "",
        *_listed(VERBS),
        "",
        "`arvrm VERB --help` says more. Progress goes to stderr, the result's path to stdout.",
    ]
    return "\n".join(lines)


def find_verb(arguments: list[str]) -> tuple[Verb | None, list[str]]:
    """Split the command line into its verb of one or two words and the rest. Asked for the help of a first word that
    several verbs share, print it and return None.

    Raises:
        UserError: no such verb; the nearest is named.
    """
    words = " ".join(arguments[:2])
    if words in VERBS:
        return VERBS[words], arguments[2:]
    if arguments[0] in VERBS:
        return VERBS[arguments[0]], arguments[1:]
    family = {name: verb for name, verb in VERBS.items() if name.split()[0] == arguments[0]}
    if family and (len(arguments) == 1 or arguments[1] in ("-h", "--help")):
        print("\n".join([f"usage: arvrm {arguments[0]} ...", "", *_listed(family)]))
        return None, []
    wrong = words if family else arguments[0]
    known = family or {name.split()[0] for name in VERBS}
    raise UserError(f"unknown verb {wrong!r}{_nearest(wrong, known)}; `arvrm --help` lists them")


def _listed(verbs: dict[str, Verb]) -> list[str]:
    width = max(map(len, verbs)) + 2
    return [f"  {name:<{width}}{verb.summary}" for name, verb in verbs.items()]


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; return the exit code: 0, 2 after a mistake the user can mend, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    before = signal.signal(signal.SIGTERM, _interrupt)

    def run() -> int:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(usage())
            return 0
        if arguments[0] == "--version":
            print(__version__)
            return 0
        verb, rest = find_verb(arguments)
        if verb is None:
            return 0
        result = verb.run(rest)
        if isinstance(result, int):
            return result
        if result is not None and processes.is_main():
            print(result)
        return 0

    try:
        interrupted = "arvrm: interrupted; what was finished is kept, --resume goes on"
        return processes.run_main(run, "arvrm: ", interrupted)
    except BrokenPipeError:
        # The reader of stdout (head, say) has gone; Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
