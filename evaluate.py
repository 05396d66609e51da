"""The paper's command for evaluation: `accelerate launch --config_file FILE evaluate.py --config JSON`.

It rolls out what train.py saved with the same configuration. Further options are those of `arvrm evaluate`. Of several
processes the first one evaluates: its simulators are processes of their own (--workers), and the policy plans for all
of them at once.
"""

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # a checkout works without being installed

from arvrm.interface import UserError  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Evaluate as the configuration says; return the exit code."""
    parser = argparse.ArgumentParser(description="Evaluate what train.py saved, by the same configuration.")
    parser.add_argument("--config", required=True, help="JSON file: published, or of `arvrm evaluate`")
    arguments, rest = parser.parse_known_args(argv)
    if int(os.environ.get("RANK", "0")) > 0:
        return 0
    from arvrm import cli, paper

    try:
        values = paper.read_json(arguments.config)
        if not paper.is_published(values):
            return cli.main(["evaluate", "--config", arguments.config, *rest])
        published = paper.parse(values, arguments.config)
        for note in published.notes:
            print(note, file=sys.stderr)
        given = [f"{name}={json.dumps(value)}" for name, value in paper.evaluation(published).items()]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return cli.main(["evaluate", *given, *rest])


if __name__ == "__main__":
    sys.exit(main())
