"""`lerobot-policy-arvrm CHECKPOINT OUTPUT`: a checkpoint of `arvrm finetune` as a folder that LeRobot loads."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from arvrm.interface import UserError
from lerobot_policy_arvrm.configuration_arvrm import ArvrmConfig
from lerobot_policy_arvrm.modeling_arvrm import ArvrmPolicy
from lerobot_policy_arvrm.processor_arvrm import make_arvrm_pre_post_processors


def package(checkpoint: str, output: str, instruction: str | None = None, device: str = "cpu") -> Path:
    """Write the folder; raises UserError where it exists, or the checkpoint is none."""
    folder = Path(output)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: exists; choose another place")
    policy = ArvrmPolicy(ArvrmConfig(checkpoint=checkpoint, instruction=instruction, device=device))
    policy.save_pretrained(folder)
    for pipeline in make_arvrm_pre_post_processors(policy.config):
        pipeline.save_pretrained(folder)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(prog="lerobot-policy-arvrm", description=__doc__)
    parser.add_argument("checkpoint", help="folder of a checkpoint of stage 2")
    parser.add_argument("output", help="folder to write")
    parser.add_argument("--instruction", help="what is to be done where nothing says a task")
    given = parser.parse_args()
    try:
        print(package(given.checkpoint, given.output, given.instruction))
    except UserError as error:
        print(f"lerobot-policy-arvrm: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
