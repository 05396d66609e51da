"""From the command line's words to a verb, and from what it returns to stdout and the exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from arvrm import __version__, processes
from arvrm.cli.verbs import VERBS, Verb
from arvrm.config import nearest
from arvrm.interface import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code: its own, 2 after a mistake the user can mend, 130 when interrupted."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        interrupted = "arvrm: interrupted; what was finished is kept, --resume goes on"
        return processes.run_main(lambda: run(given), "arvrm: ", interrupted)
    except BrokenPipeError:
        # The reader of stdout (head, say) has gone; Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)


def run(arguments: Sequence[str]) -> int:
    """Run one verb within this process and print the paths of its results; return the exit code.

    Raises:
        UserError: what the user can mend.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    verb, rest = find_verb(arguments)
    if verb is None:
        return 0
    result = verb.run(verb.settings(rest))
    if isinstance(result, int):
        return result
    if result is not None and processes.is_main():
        for path in result if isinstance(result, (list, tuple)) else [result]:
            print(path)
    return 0


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


def find_verb(arguments: Sequence[str]) -> tuple[Verb | None, Sequence[str]]:
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
    raise UserError(f"unknown verb {wrong!r}{nearest(wrong, known)}; `arvrm --help` lists them")


def _listed(verbs: Mapping[str, Verb]) -> list[str]:
    width = max(map(len, verbs)) + 2
    return [f"  {name:<{width}}{verb.summary}" for name, verb in verbs.items()]


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
