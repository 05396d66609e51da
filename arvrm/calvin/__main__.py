"""Run a script that imports calvin_env and calvin_agent: python -m arvrm.calvin [options] SCRIPT [arguments]."""

from __future__ import annotations

import argparse
import runpy
import sys
import traceback
from pathlib import Path

from arvrm.calvin.options import Options, checkout
from arvrm.calvin.stand_ins import install, remedy
from arvrm.interface import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run the script in this process, as Python would; return its exit status (2: a line says what is missing)."""
    parser = argparse.ArgumentParser(
        prog="python -m arvrm.calvin",
        description="Run an evaluation script of CALVIN's: calvin_env and calvin_agent are arvrm's (docs/dropin.md). "
        "CALVIN_ROOT names the checkout whose assets and configuration are used.",
    )
    parser.add_argument("--renderer", choices=("tiny", "egl", "auto"), default="tiny", help="tiny: CALVIN's pixels")
    parser.add_argument("--assets", choices=("official", "builtin"), default="official", help="builtin: our own scenes")
    parser.add_argument("--first", type=int, metavar="N", help="give the script only the first N chains it asks for")
    parser.add_argument("-m", dest="module", metavar="MODULE", help="run a module, as python -m does")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="SCRIPT ...", help="the script and its arguments")
    given = parser.parse_args(arguments)
    if not given.module and not given.command:
        parser.error("name a script")
    try:
        install(Options(given.renderer, given.assets, given.first))
    except (UserError, ValueError) as error:
        parser.error(str(error))
    if checkout() is None and given.assets == "official":
        print("arvrm.calvin: CALVIN_ROOT is not set; point it at a checkout of mees/calvin", file=sys.stderr)
    try:
        _run(given.module, given.command)
    except (UserError, ImportError) as error:
        known = remedy(error) if isinstance(error, ImportError) else ""
        if known is None:
            raise
        print(f"{_place(error)}{error}{known}", file=sys.stderr)
        return 2
    return 0


def _run(module: str | None, command: list[str]) -> None:
    if module:
        sys.argv = [module, *command]
        sys.path.insert(0, "")
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    script = Path(command[0])
    if not script.is_file():
        raise UserError(f"{script}: no such script; name a Python file")
    sys.argv = list(command)
    sys.path[0] = str(script.resolve().parent)
    runpy.run_path(str(script), run_name="__main__")


def _place(error: BaseException) -> str:
    """Return FILE:LINE of the script that the error arose in."""
    ours = str(Path(__file__).parents[1])
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    frames = [frame for frame in frames if not frame.filename.startswith("<") and "runpy" not in frame.filename]
    return f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""


if __name__ == "__main__":
    sys.exit(main())
