"""The clip index: human clips under the frozen encoders of a stage-1 checkpoint."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from arvrm.model.checkpoint import load_checkpoint
from arvrm.model.encoders import TextEncoder
from arvrm.retrieval import FrozenEncoders, SearchConfig, build_index
from arvrm.training.data import open_stores
from arvrm.training.log import progress_bar
from arvrm.training.threads import using_threads


@dataclass(frozen=True)
class IndexConfig:
    """The clip index.

    Attributes:
        stores: human clips.
        checkpoint: stage 1's, whose image encoder gives the features.
        output: the index's folder.
        overwrite: replace an existing index.
        cache: folder for frame features; null: none.
        search: how the index is searched: all clips, or, of many, a short list.
    """

    stores: tuple[str, ...]
    checkpoint: str
    output: str
    overwrite: bool = False
    cache: str | None = None
    search: SearchConfig = field(default_factory=SearchConfig)


def build_index_stage(config: IndexConfig, progress: bool = True) -> Path:
    """Index human clips by the frozen encoders of a stage-1 checkpoint; return the index's folder."""
    encoders = frozen_encoders(config.checkpoint)
    stores = open_stores(config.stores)
    total = sum(store.manifest["counts"]["frames"] for store in stores)
    with using_threads(progress=progress), progress_bar("index", total, progress) as bar:
        index = build_index(stores, encoders, config.output, config.overwrite, config.cache, bar.update, config.search)
    if index.coarse is not None and progress:
        found, wanted = index.settings["recall_at_10"], config.search.recall
        note = "" if found >= wanted else f", less than the {wanted:g} asked for; search.kind=exact finds all"
        print(
            f"{index.path}: {len(index)} clips, approximate search with {index.settings['probes']} of "
            f"{index.settings['lists']} clusters and {index.settings['shortlist']} clips compared: recall@10 {found:g}"
            f"{note}",
            file=sys.stderr,
        )
    return index.path


def frozen_encoders(checkpoint: str | Path) -> FrozenEncoders:
    """Return the encoders by which clips of a checkpoint (of either stage) are compared."""
    loaded = load_checkpoint(checkpoint)
    vision = loaded.config.vision
    return FrozenEncoders(
        TextEncoder(loaded.config.text),
        vision,
        vision.static_size,
        loaded.config.width,
        loaded.model.image_encoder("static"),
        loaded.config.published,
    )
