"""Put a policy by analogy into the package, as `--checkpoint builtin`.

    python benchmarks/ship_builtin.py CHECKPOINT --commit COMMIT

What it was made from is noted by digest, not by where that lay on the machine that made it. The model card beside it
(arvrm/resources/builtin/README.md) is written by hand: change it with the weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path

from arvrm.model.checkpoint import load_checkpoint, place_of, write_checkpoint
from arvrm.model.metadata import TrainedOn
from arvrm.motions import load_library, save_library

LARGEST = 25 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--commit", required=True, help="of the code that trained it")
    given = parser.parse_args()
    loaded = load_checkpoint(given.checkpoint, kind="analogy")
    folder = place_of("builtin")
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        if old.name != "README.md":
            old.unlink()
    stores = tuple(TrainedOn(f"data of {given.commit}", one.fingerprint) for one in loaded.metadata.stores)
    metadata = dataclasses.replace(
        loaded.metadata, stores=stores, pretrained=f"stage 1 of {given.commit}", index=None, settings={}
    )
    library = save_library(folder, load_library(given.checkpoint, loaded.config.library))
    loaded.model.config = dataclasses.replace(loaded.model.config, library=library)
    write_checkpoint(folder, loaded.model, metadata)
    size = sum(file.stat().st_size for file in Path(folder).iterdir())
    print(f"{folder}: {size / 2**20:.1f} MB")
    if size > LARGEST:
        shutil.rmtree(folder)
        raise SystemExit(f"larger than {LARGEST >> 20} MB; not kept")


if __name__ == "__main__":
    main()
