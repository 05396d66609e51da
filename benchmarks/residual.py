"""How far the actions of a policy by analogy are from demonstrations it has not seen, with its residual and without.

    python benchmarks/residual.py CHECKPOINT --robot STORE ...

CHECKPOINT is of `finetune motion=residual`. Each demonstration of STORE is laid beside the likeliest plan for it, at
the plan's tempo; every chunk begins where the demonstration is.
"""

from __future__ import annotations

import argparse
import dataclasses

from arvrm.model.checkpoint import load_checkpoint
from arvrm.motions import load_library
from arvrm.training.agreement import MomentFinder
from arvrm.training.data import DataConfig, images_of, open_table
from arvrm.training.motions import robot_motions
from arvrm.training.residual_stage import residual_errors, samples_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--robot", nargs="+", required=True)
    parser.add_argument("--cache")
    options = parser.parse_args()
    loaded = load_checkpoint(options.checkpoint, kind="analogy")
    net, robot = loaded.model, loaded.robot
    assert net.residual is not None and robot is not None, "a checkpoint of motion=residual"
    data = DataConfig(tuple(options.robot), cache=options.cache)
    table = open_table(data, "robot", 1)
    library = load_library(options.checkpoint, net.config.library)
    own = robot_motions(net, table, range(len(table)), True, MomentFinder(options.cache))
    samples = samples_of(net, library, own, table, 1, True)
    camera = next(camera for camera in robot.cameras if camera.role == "gripper")
    seen = dataclasses.replace(net.config.vlm, vision=net.residual.config.vision)
    images = images_of(table, camera, data, seen, False)
    print(f"{len(samples)} steps of {len(own)} demonstrations")
    for name, value in residual_errors(net.residual, samples, images).items():
        print(f"{name:32s} {value:.4f}")


if __name__ == "__main__":
    main()
