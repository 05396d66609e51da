"""A verb's command line, made from its configuration: a frozen dataclass whose fields are its settings.

Each field has a flag (what is nested has `section.key=value`), its help is what the docstring's "Attributes:" say of
it, and `--config FILE` and `--show-config` read and print the whole. Of file, overrides and flags the later one wins.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import itertools
import json
import re
import sys
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from arvrm import config
from arvrm.interface import UserError

C = TypeVar("C")
_OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")
_FILE, _SHOW, _OVERRIDES = "--config", "--show-config", "section.key=value"  # destinations that no field can have


class Parser(argparse.ArgumentParser):
    """Reports mistakes as `UserError`: one line that names the nearest flag."""

    def __init__(self, verb: str, description: str) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=f"arvrm {verb}", description=description, allow_abbrev=False, formatter_class=form)
        self.verb = verb
        self.sections: list[str] = []

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--([\w.-]+))", message)
        if unknown and unknown[2].split(".")[0] in self.sections:
            message = f"unknown flag {unknown[1]}; write a section's settings as {unknown[2].split('.')[0]}.KEY=VALUE"
        elif unknown:
            message = f"unknown flag {unknown[1]}{config.nearest(unknown[1], self._option_string_actions)}"
        raise UserError(f"{self.verb}: {message}; see `arvrm {self.verb} --help`")


def read_arguments(
    kind: type[C],
    verb: str,
    arguments: Sequence[str],
    description: str = "",
    positional: Sequence[str] = (),
    aliases: Mapping[str, str] | None = None,
) -> C:
    """Turn a verb's arguments into its configuration.

    Args:
        kind: the frozen dataclass of the configuration.
        positional: fields that are given without a flag, in this order; a list takes all words. A word of the form
            key=value is an override all the same; a file of such a name is written ./key=value.
        aliases: another flag of a field, beside its own.

    Raises:
        UserError: an unknown flag or key (the nearest is named), a value of another type, a setting that is missing.
        SystemExit: after --help or --show-config.
    """
    shapes = _shapes(kind, positional)
    parser = _parser(kind, shapes, Parser(verb, description), aliases or {})
    parsed = vars(parser.parse_intermixed_args(list(arguments)))
    file, show, words = parsed.pop(_FILE), parsed.pop(_SHOW), parsed.pop(_OVERRIDES)
    given = {}
    for shape in reversed(shapes):
        if shape.positional:
            words = _flat(parsed.pop(shape.name, [])) + words
        elif shape.name in parsed:
            own = parsed[shape.name]
            if shape.item is not None:
                # `--stores a b train.steps=3`: the list takes every word, an override goes on being one.
                words = [word for word in own if _OVERRIDE.match(word)] + words
                own = [word for word in own if not _OVERRIDE.match(word)]
            given[shape.name] = shape.value(own)
    overrides = [word for word in words if _OVERRIDE.match(word)]
    words = [word for word in words if not _OVERRIDE.match(word)]
    for shape in shapes:
        if shape.positional and words:
            taken = words if shape.item is not None else words[:1]
            words = words[len(taken) :]
            given[shape.name] = taken if shape.item is not None else taken[0]
    if words:
        raise UserError(f"{verb}: unexpected argument {words[0]!r}; write overrides as section.key=value")
    values, place = config.read(file, overrides) | given, str(file or verb)
    unset = [shape.usage for shape in shapes if shape.name in config.without_default(kind) and shape.name not in values]
    if show:
        print(json.dumps(config.shown(kind, values, place), indent=1))
        if unset:
            print(f"{verb}: not among them, as they have no default: {', '.join(unset)}", file=sys.stderr)
        raise SystemExit(0)
    if unset:
        config.shown(kind, values, place)  # a misspelt key is the likelier mistake, and is said first
        parser.error(f"give {', '.join(unset)}")
    return config.from_dict(kind, values, place)


class _Shape:
    """How a field is given.

    Attributes:
        kinds: the types its value may have, None left out.
        item: the type of a list's items; None: it is no list.
        nested: it is a section or a dictionary, which has no flag.
    """

    def __init__(self, kind: type, name: str, positional: bool) -> None:
        self.name, self.positional = name, positional
        field = next(field for field in dataclasses.fields(kind) if field.name == name)
        self.default = field.default
        hint = typing.get_type_hints(kind)[name]
        union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        options = typing.get_args(hint) if union else (hint,)
        self.optional = type(None) in options
        self.kinds = [option for option in options if option is not type(None)]
        lists = [option for option in self.kinds if typing.get_origin(option) is tuple]
        self.item = typing.get_args(lists[0])[0] if lists else None
        self.nested = any(dataclasses.is_dataclass(k) or typing.get_origin(k) is dict for k in self.kinds)
        self.flag = "--" + name.replace("_", "-")

    @property
    def metavar(self) -> str:
        first = self.kinds[0]
        if self.positional:
            return self.name.upper()
        if typing.get_origin(first) is typing.Literal:
            return "{" + ",".join(map(str, typing.get_args(first))) + "}"
        if self.item is not None:
            return "A,B,..."
        return {int: "N", float: "X", str: "TEXT"}.get(first, "VALUE")

    @property
    def usage(self) -> str:
        """How a message writes it: as its flag, or as the word that stands for it."""
        several = self.positional and self.item is not None
        return f"{self.metavar}{' ...' if several else ''}" if self.positional else self.flag

    @property
    def summary(self) -> str:
        """What a section's own class says of it in its first line."""
        return inspect.cleandoc(self.kinds[0].__doc__ or "").partition("\n")[0].rstrip(".")

    def value(self, text: Any) -> Any:
        """A JSON-able value of a flag's text, or of a list's texts; the configuration checks its type afterwards."""
        if not isinstance(text, (str, list)):
            return text
        words = [text] if isinstance(text, str) else text
        if self.optional and words[0].lower() in ("none", "null"):
            return None
        if self.item is not None:
            if words == ["all"] and self.default in ((), None):
                return self.default
            parts = [part.strip() for word in words for part in word.split(",") if part.strip()]
            return [_number(part) if self.item in (int, float) else part for part in parts]
        for kind in self.kinds:
            numbers = typing.get_origin(kind) is typing.Literal and not isinstance(typing.get_args(kind)[0], str)
            if numbers or kind in (int, float):
                return _number(words[0])
        return words[0]


def _shapes(kind: type, positional: Sequence[str]) -> list[_Shape]:
    return [_Shape(kind, field.name, field.name in positional) for field in dataclasses.fields(kind)]


def _parser(kind: type, shapes: list[_Shape], parser: Parser, aliases: Mapping[str, str]) -> Parser:
    texts = field_help(kind)
    required = config.without_default(kind)
    usages = [
        shape.usage + ("" if shape.positional else f" {shape.metavar}") for shape in shapes if shape.name in required
    ]
    parser.usage = " ".join([parser.prog, *usages, "[--FLAG ...]", "[section.key=value ...]"])
    any_positional = any(shape.positional for shape in shapes)
    for shape in shapes:
        text = texts.get(shape.name, "")
        if shape.name in required:
            text += " (required)"
        if shape.default not in (dataclasses.MISSING, None, (), "") and not isinstance(shape.default, bool):
            text += f" (default: {_written(shape.default)})"
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
        if shape.nested:
            parser.sections.append(shape.name)
            continue
        if shape.positional:
            several = "*" if shape.item is not None else "?"
            parser.add_argument(shape.name, nargs=several, metavar=shape.metavar, **options)
            continue
        flags = [shape.flag, aliases[shape.name]] if shape.name in aliases else [shape.flag]
        options["dest"] = shape.name
        if shape.kinds == [bool]:
            # What is on by default is turned off by --no-...; the rest needs no such twin.
            action = argparse.BooleanOptionalAction if shape.default is True else "store_true"
            parser.add_argument(*flags, action=action, **options)
        elif shape.item is not None:
            # Beside words without a flag a list takes one word at a time.
            parser.add_argument(
                *flags, action="extend", nargs=1 if any_positional else "+", metavar=shape.metavar, **options
            )
        else:
            parser.add_argument(*flags, metavar=shape.metavar, **options)
    parser.add_argument(_OVERRIDES, nargs="*", help="set a setting, or one of a section, by its name")
    parser.add_argument(_FILE, dest=_FILE, metavar="FILE", help="JSON file with the configuration")
    text = "print the whole configuration as JSON and stop"
    parser.add_argument(_SHOW, dest=_SHOW, action="store_true", help=text)
    parser.epilog = _sections({shape.name: texts.get(shape.name) or shape.summary for shape in shapes if shape.nested})
    return parser


def _sections(texts: dict[str, str]) -> str | None:
    if not texts:
        return None
    lines = [f"Sections, see --show-config, set as {next(iter(texts))}.KEY=VALUE:"]
    for text in dict.fromkeys(texts.values()):
        alike = ", ".join(name for name in texts if texts[name] == text)
        lines += textwrap.wrap(f"{alike}: {text}", 100, subsequent_indent="    ")
    return "\n  ".join(lines)


def _written(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _flat(words: str | list[str]) -> list[str]:
    return [words] if isinstance(words, str) else list(words)


def _number(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def field_help(kind: type) -> dict[str, str]:
    """Return what the `Attributes:` of a dataclass's docstring, and of those it extends, say of each field.

    They are written "name: text" or "a, b: text".
    """
    found: dict[str, str] = {}
    names = {field.name for field in dataclasses.fields(kind)}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _attributes(inspect.cleandoc(base.__doc__ or ""), names)
    return found


def _attributes(text: str, names: set[str]) -> dict[str, str]:
    text = " ".join(text.partition("Attributes:")[2].split())
    marks = [
        mark
        for mark in re.finditer(r"(?:(?<=^)|(?<=[.;)\]] )|(?<=^ ))((?:\w+, )*\w+): ", text)
        if set(mark[1].split(", ")) <= names
    ]
    found = {}
    for mark, after in itertools.zip_longest(marks, marks[1:]):
        body = text[mark.end() : after.start() if after else len(text)].strip().rstrip(".")
        for name in mark[1].split(", "):
            found[name] = body
    return found
