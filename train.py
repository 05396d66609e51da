"""The paper's command for training: `accelerate launch --config_file configs/multiple.yaml train.py --config FILE`.

FILE is a published configuration (arvrm/paper.py says how its keys are read) or one of ours with a `stage`.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # a checkout works without being installed

from arvrm.interface import UserError  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Train as the configuration says; return the exit code."""
    parser = argparse.ArgumentParser(description="Train from a published configuration, or one of arvrm's.")
    parser.add_argument("--config", required=True, help="JSON file")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing run")
    arguments = parser.parse_args(argv)
    from arvrm import paper, processes, training
    from arvrm.files import read_json

    def run() -> None:
        values = read_json(arguments.config)
        if paper.is_published(values):
            published = paper.parse(values, arguments.config)
            for note in published.notes if processes.is_main() else ():
                print(note, file=sys.stderr)
            config = paper.finetune_config(published, arguments.resume, arguments.overwrite)
        else:
            config = paper.own_config(values, arguments.config)
            asked = {name: True for name in ("resume", "overwrite") if getattr(arguments, name)}
            known = {field.name for field in dataclasses.fields(config)}
            if not set(asked) <= known:
                raise UserError(f"{arguments.config}: --resume means nothing for stage index; leave it out")
            config = dataclasses.replace(config, **asked)
        stage = {
            training.PretrainConfig: training.pretrain,
            training.IndexConfig: training.build_index_stage,
            training.FinetuneConfig: training.finetune,
        }[type(config)]
        if stage is training.build_index_stage:
            # One process's work; the others wait, as what follows will want the index.
            made = []
            processes.first_does(f"index {config.output}", lambda: made.append(stage(config)))
        else:
            made = [stage(config).folder]
        if processes.is_main():
            print(made[0])

    return processes.run_main(run, "error: ", "interrupted; start it again with --resume to continue")


if __name__ == "__main__":
    sys.exit(main())
