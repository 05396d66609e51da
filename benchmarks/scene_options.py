"""What measurements of scenes share: --assets, --json, and a user's error in one line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arvrm.interface import UserError


def scene_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with --assets and --json; the description is the first line given."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--assets", choices=("builtin", "calvin"), default="builtin")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    return parser


def run(parser: argparse.ArgumentParser, measure: Callable[[argparse.Namespace], Any]) -> None:
    """Measure what the command line asks for, and write the numbers where it says."""
    arguments = parser.parse_args()
    try:
        found = measure(arguments)
    except UserError as error:
        sys.exit(f"{Path(sys.argv[0]).stem}: {error}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
