"""What the stand-ins do not have says so by name: at once where a module is asked for, at its use where a name is."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from arvrm.interface import UserError

_said: set[str] = set()


class Missing(ModuleNotFoundError, UserError):
    """A part of calvin_env or calvin_agent that arvrm.calvin does not provide."""


class MissingName(AttributeError, UserError):
    """A name that a stand-in does not have. Python asks modules for names as it likes, so this is no ImportError."""


class Placeholder:
    """A name that can be imported, since scripts import more than they use, and cannot be used."""

    def __init__(self, name: str, remedy: str) -> None:
        self.__dict__.update(_name=name, _remedy=remedy)

    def _refuse(self) -> NoReturn:
        raise Missing(f"{self._name} is not part of arvrm.calvin; {self._remedy}", name=self._name)

    def __call__(self, *arguments: Any, **keywords: Any) -> NoReturn:
        self._refuse()

    def __getattr__(self, attribute: str) -> NoReturn:
        raise MissingName(f"{self._name} is not part of arvrm.calvin; {self._remedy}")

    def __getitem__(self, key: Any) -> NoReturn:
        self._refuse()

    def __iter__(self) -> NoReturn:
        self._refuse()

    def __mro_entries__(self, bases: tuple) -> NoReturn:
        self._refuse()

    def __repr__(self) -> str:
        return f"<{self._name}: not part of arvrm.calvin>"


def say(text: str) -> None:
    """Tell the user, on stderr and once, what a script gets in place of what it asks for."""
    if text not in _said:
        _said.add(text)
        print(f"arvrm.calvin: {text}", file=sys.stderr)
