"""The paper's command for evaluation: `accelerate launch --config_file FILE evaluate.py --config JSON`.

It rolls out what train.py saved with the same configuration. Further options are those of `arvrm evaluate`. Several
processes share the chains; the simulators of each are processes of their own (--workers), for all of which its policy
plans at once.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # a checkout works without being installed

from arvrm import processes  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Evaluate as the configuration says; return the exit code."""
    parser = argparse.ArgumentParser(description="Evaluate what train.py saved, by the same configuration.")
    parser.add_argument("--config", required=True, help="JSON file: published, or of `arvrm evaluate`")
    arguments, rest = parser.parse_known_args(argv)
    from arvrm import cli, paper
    from arvrm.files import read_json

    given: list[str] = []

    def read() -> None:
        values = read_json(arguments.config)
        if not paper.is_published(values):
            given.extend(["--config", arguments.config])
            return
        published = paper.parse(values, arguments.config)
        for note in published.notes if processes.is_main() else ():
            print(note, file=sys.stderr)
        given.extend(f"{name}={json.dumps(value)}" for name, value in paper.evaluation(published).items())

    return processes.run_main(read, "error: ", "interrupted") or cli.main(["evaluate", *given, *rest])


if __name__ == "__main__":
    sys.exit(main())
