"""The paper's command for converting CALVIN: `python data/calvin2lmdb.py --input_dir DIR [--output_dir DIR]`.

The same as `arvrm convert calvin --input DIR --output DIR_lmdb`; it makes a store for each split. Started again after
an interruption, it continues.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from arvrm import cli, processes  # noqa: E402


def default_output(source: Path) -> Path:
    """Return the folder beside the input or, where nothing can be written there, the one in the working directory."""
    beside = source.with_name(source.name + "_lmdb")
    if beside.exists() or os.access(source.parent, os.W_OK):
        return beside
    print(f"{source.parent} is read-only: the stores go to {Path.cwd() / beside.name}", file=sys.stderr)
    return Path.cwd() / beside.name


def main(argv: list[str] | None = None) -> int:
    """Parse the paper's two options, convert, and return the exit code."""
    parser = argparse.ArgumentParser(description="Convert a CALVIN data set into episode stores (LMDB).")
    parser.add_argument("--input_dir", required=True, help="folder that holds training and validation")
    parser.add_argument("--output_dir", help="folder for the stores; default: the input's with _lmdb behind its name")
    arguments = parser.parse_args(argv)
    source = Path(arguments.input_dir).resolve()
    output = Path(arguments.output_dir) if arguments.output_dir else default_output(source)
    given = ["convert", "calvin", "--input", str(source), "--output", str(output), "--resume"]
    return processes.run_main(lambda: cli.run(given), "error: ", "interrupted; start it again to continue")


if __name__ == "__main__":
    sys.exit(main())
