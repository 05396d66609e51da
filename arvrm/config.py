"""Configurations: frozen dataclasses from JSON and dotted overrides; an unknown key fails and names the nearest."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from arvrm.interface import UserError

C = TypeVar("C")


def from_dict(kind: type[C], values: dict[str, Any], place: str = "configuration") -> C:
    """Build the frozen dataclass `kind` from nested dictionaries.

    Raises:
        UserError: an unknown key (named with the nearest known one), a missing one, or a value of another type.
    """
    if not isinstance(values, dict):
        raise UserError(f"{place}: expected an object with keys, got {values!r}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    for key in values:
        if key not in fields:
            raise UserError(f"{place}: unknown key {key!r}{_nearest(key, fields)}")
    arguments = {key: _convert(hints[key], value, f"{place}.{key}") for key, value in values.items()}
    missing = [
        name
        for name, field in fields.items()
        if name not in arguments
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{place}: missing key {missing[0]!r}; add it to the JSON file or pass --{missing[0]} VALUE")
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{place}: {error}") from error


def load(kind: type[C], file: str | Path | None = None, overrides: list[str] | None = None) -> C:
    """Read `kind` from a JSON file (or its defaults) and apply overrides such as "train.steps=200".

    Raises:
        UserError: the file is missing or no JSON, a key is unknown, a value has the wrong type.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = json.loads(Path(file).read_text())
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}; give an existing JSON file") from error
        except json.JSONDecodeError as error:
            raise UserError(f"{file}:{error.lineno}: not JSON ({error.msg})") from error
        if not isinstance(values, dict):
            raise UserError(f"{file}: expected a JSON object at the top")
    for override in overrides or []:
        key, separator, text = override.removeprefix("--").partition("=")
        if not separator or not key:
            raise UserError(f"override {override!r}: write it as section.key=value")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        _assign(values, key.split("."), value, override)
    return from_dict(kind, values, str(file) if file else "configuration")


def to_dict(config: Any) -> dict[str, Any]:
    """Return the configuration as JSON-able dictionaries; `from_dict` inverts it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _assign(values: dict[str, Any], path: list[str], value: Any, override: str) -> None:
    for key in path[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise UserError(f"override {override!r}: {key!r} has no keys of its own")
    values[path[-1]] = value


def _nearest(key: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.0)
    return f"; did you mean {close[0]!r}?" if close else ""


def _convert(hint: Any, value: Any, place: str) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, place)
    if hint is Any:
        return value
    if origin is typing.Literal:
        if value in options:
            return value
        known = ", ".join(map(repr, options))
        raise UserError(f"{place}: {value!r} is none of {known}{_nearest(str(value), map(str, options))}")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        errors = []
        for option in options:
            if option is not type(None):
                try:
                    return _convert(option, value, place)
                except UserError as error:
                    errors.append(error)
        raise errors[0]
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{place}: expected a list, got {value!r}")
        if len(options) == 2 and options[1] is Ellipsis:
            return tuple(_convert(options[0], item, f"{place}[{i}]") for i, item in enumerate(value))
        if len(options) != len(value):
            raise UserError(f"{place}: expected {len(options)} values, got {len(value)}")
        return tuple(_convert(o, item, f"{place}[{i}]") for i, (o, item) in enumerate(zip(options, value, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{place}: expected an object, got {value!r}")
        return {key: _convert(options[1], item, f"{place}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise UserError(f"{place}: expected {hint.__name__}, got {value!r}")
