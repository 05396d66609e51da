"""Configurations: frozen dataclasses from JSON and dotted overrides; an unknown key fails and names the nearest."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from arvrm import files
from arvrm.interface import UserError

C = TypeVar("C")
_LONGEST = 2**15
_LARGEST = 2**63 - 1  # what every reader of a whole number can hold


class OutOfBounds(UserError, ValueError):
    """A number of a configuration that is not within its bounds."""


def bounded(default: Any, *, least: float | None = None, above: float | None = None, most: float | None = None) -> Any:
    """A field of a configuration whose number, or numbers, lie within bounds; None, where the type allows it, has none.

    The class checks them with `__post_init__ = check_bounds`.
    """
    return dataclasses.field(default=default, metadata={"least": least, "above": above, "most": most})


def check_bounds(config: Any) -> None:
    """Raise OutOfBounds for the first `bounded` field of a configuration that is out of its bounds."""
    for field in dataclasses.fields(config):
        least, above, most = (field.metadata.get(name) for name in ("least", "above", "most"))
        if (least, above, most) == (None, None, None):
            continue
        given = getattr(config, field.name)
        for value in given if isinstance(given, tuple) else (given,):
            if value is None:
                continue
            if isinstance(value, float) and not math.isfinite(value):
                raise OutOfBounds(f"{field.name} is {value}; give a finite number")
            if least is not None and not value >= least:
                raise OutOfBounds(f"{field.name} is {value}; give at least {least}")
            if above is not None and not value > above:
                raise OutOfBounds(f"{field.name} is {value}; give more than {above}")
            if most is not None and not value <= most:
                raise OutOfBounds(f"{field.name} is {value}; give at most {most}")


def from_dict(kind: type[C], values: dict[str, Any], place: str = "configuration") -> C:
    """Build the frozen dataclass `kind` from nested dictionaries.

    A class with `further_keys = True` (a ClassVar) is of a file that may say more than its fields, which is left out.

    Raises:
        UserError: an unknown key (named with the nearest known one), a missing one, or a value of another type.
    """
    arguments = _arguments(kind, values, place)
    for name in without_default(kind):
        if name not in arguments:
            raise UserError(f"{place}: missing key {name!r}; add it to the JSON file, or give {name}=VALUE")
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{place}: {error}") from error


def read(file: str | Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the values of a JSON file (none: no values), changed by overrides such as "train.steps=200".

    Raises:
        UserError: the file is missing or no JSON object, or an override has another form.
    """
    values = {} if file is None else files.read_json(file)
    for override in overrides:
        key, separator, text = override.removeprefix("--").partition("=")
        if not separator or not key:
            raise UserError(f"override {override!r}: write it as section.key=value")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
        _assign(values, key.split("."), value, override)
    return values


def load(kind: type[C], file: str | Path | None = None, overrides: Sequence[str] = ()) -> C:
    """Read `kind` from a JSON file (or its defaults) and apply overrides such as "train.steps=200".

    Raises:
        UserError: as `read` and `from_dict`.
    """
    return from_dict(kind, read(file, overrides), str(file) if file else "configuration")


def to_dict(config: Any) -> dict[str, Any]:
    """Return the configuration as JSON-able dictionaries; `from_dict` inverts it."""
    return json.loads(json.dumps(config, default=dataclasses.asdict))


def shown(kind: type, values: dict[str, Any], place: str = "configuration") -> dict[str, Any]:
    """Return all settings of `kind` as JSON-able dictionaries; those without value and default are left out.

    Raises:
        UserError: as `from_dict`, but for what is missing.
    """
    if set(without_default(kind)) <= set(values):
        return to_dict(from_dict(kind, values, place))
    found = _arguments(kind, values, place)
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            found.setdefault(field.name, field.default)
        elif field.default_factory is not dataclasses.MISSING:
            found.setdefault(field.name, field.default_factory())
    return to_dict({field.name: found[field.name] for field in dataclasses.fields(kind) if field.name in found})


def without_default(kind: type) -> list[str]:
    """Return the names of the fields that must be given."""
    missing = dataclasses.MISSING
    fields = [field for field in dataclasses.fields(kind) if field.init]
    return [field.name for field in fields if field.default is missing and field.default_factory is missing]


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return settings (JSON-able objects) changed, section by section."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def nearest(name: str, known: Iterable[str], cutoff: float = 0.4) -> str:
    """Return "; did you mean ...?", or "" where nothing known is like `name` (0: the nearest always)."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""


def _arguments(kind: type, values: Any, place: str) -> dict[str, Any]:
    """The values of `kind`'s fields, each of its type."""
    if not isinstance(values, dict):
        raise UserError(f"{place}: expected an object with keys, got {_short(values)}")
    hints = typing.get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind) if field.init]
    if getattr(kind, "further_keys", False):
        values = {key: value for key, value in values.items() if key in known}
    unknown = [key for key in values if key not in known]
    explain = getattr(kind, "explain_unknown", None)
    why = explain(unknown, place) if unknown and explain is not None else None
    if why:
        raise UserError(f"{place}: unknown key {unknown[0]!r}; it {why}")
    for key in values:
        if key not in known:
            raise UserError(f"{place}: unknown key {key!r}{nearest(key, known, cutoff=0.0)}")
    return {key: _convert(hints[key], value, f"{place}.{key}") for key, value in values.items()}


def _assign(values: dict[str, Any], path: list[str], value: Any, override: str) -> None:
    for key in path[:-1]:
        if values.get(key) is None:
            values[key] = {}
        values = values[key]
        if not isinstance(values, dict):
            raise UserError(f"override {override!r}: {key!r} has no keys of its own")
    values[path[-1]] = value


def _convert(hint: Any, value: Any, place: str) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, place)
    if hint is Any:
        return value
    if origin is typing.Literal:
        return _choose(options, value, place)
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits(options, value, place)
    if origin is tuple:
        return _sequence(options, value, place)
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{place}: expected an object, got {_short(value)}")
        return {key: _convert(options[1], item, f"{place}.{key}") for key, item in value.items()}
    return _plain(hint, value, place)


def _choose(options: tuple[Any, ...], value: Any, place: str) -> Any:
    for option in options:
        if type(value) is type(option) and value == option:
            return option
    known = ", ".join(map(repr, options))
    raise UserError(f"{place}: {_short(value)} is none of {known}{nearest(str(value), map(str, options))}")


def _first_that_fits(options: tuple[Any, ...], value: Any, place: str) -> Any:
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


def _sequence(options: tuple[Any, ...], value: Any, place: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{place}: expected a list, got {_short(value)}")
    kinds = options[:1] * len(value) if options[1:] == (Ellipsis,) else options
    if len(kinds) != len(value):
        raise UserError(f"{place}: expected {len(kinds)} values, got {len(value)}")
    return tuple(_convert(kind, item, f"{place}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _plain(hint: type, value: Any, place: str) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and not (math.isfinite(value) if isinstance(value, float) else abs(value) <= _LARGEST):
        raise UserError(f"{place}: {_short(value)} is too large or no number; give a finite one")
    if hint is float and is_number:
        return float(value)
    if isinstance(value, str) and hint is str:
        _check_text(value, place)
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    raise UserError(f"{place}: expected {hint.__name__}, got {_short(value)}")


def _check_text(value: str, place: str) -> None:
    """Refuse what can be neither a name, nor a sentence, nor the path of a file."""
    if len(value) > _LONGEST:
        raise UserError(f"{place}: has {len(value)} letters; give at most {_LONGEST}")
    try:
        os.fsencode(value)  # paths may hold bytes that are no UTF-8
    except UnicodeEncodeError as error:
        raise UserError(f"{place}: {_short(value)} is no text ({error.reason}); correct it") from error
    if "\0" in value:
        raise UserError(f"{place}: {_short(value)} holds a NUL; remove it")


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or of brackets
        return f"a {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."
