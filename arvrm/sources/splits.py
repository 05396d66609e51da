"""Few-shot manifests: small, seeded choices of episodes as files that can be shared and checked."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from arvrm.config import bounded, check_bounds, from_dict
from arvrm.episodes import EpisodeHeader, EpisodeStore, EpisodeWriter
from arvrm.episodes.database import check_is_store, close_database
from arvrm.files import claimed, json_kind, read_json, replacing_folder, write_json
from arvrm.interface import UserError

FORMAT = "arvrm-few-shot"
VERSION = 1
Per = Literal["store", "task", "scene", "task-scene"]


@dataclass(frozen=True)
class FewShotRecipe:
    """How the episodes of a manifest are chosen.

    Attributes:
        fraction: of the episodes, over 0 and at most 1; each stratum keeps the nearest number, at least one.
        per: what is sampled on its own: the whole store, each task, each scene, or each task in each scene.
        seed: of the draw. With one seed a smaller fraction is a subset of a larger one.
        tasks, scenes: choose among these only; empty: all.
    """

    fraction: float
    per: Per = "task"
    seed: int = bounded(0, least=0)
    tasks: tuple[str, ...] = ()
    scenes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_bounds(self)
        if not 0 < self.fraction <= 1:
            raise UserError(f"few-shot fraction {self.fraction!r}: give a number over 0 and at most 1, such as 0.1")
        if self.per not in get_args(Per):
            raise UserError(f"few-shot per {self.per!r}: choose {', '.join(get_args(Per))}")


@dataclass(frozen=True)
class FewShotManifest:
    """A choice of episodes of one store.

    Attributes:
        recipe: how it was made.
        episodes: ids, in the store's order.
        chosen_from: how many episodes the recipe's tasks and scenes leave.
        store_sha256: of the store's manifest: the same data set, converted with the same settings.
        content_sha256: of what the chosen episodes are (id, instruction, task, scene, steps).
    """

    recipe: FewShotRecipe
    episodes: tuple[str, ...]
    chosen_from: int
    store_sha256: str
    content_sha256: str

    def __post_init__(self) -> None:
        if not self.episodes or len(set(self.episodes)) != len(self.episodes):
            raise ValueError("episodes are not distinct ids")
        if self.chosen_from < len(self.episodes):
            raise ValueError(f"chosen_from is {self.chosen_from}, of which {len(self.episodes)} are chosen")


def make_manifest(store: EpisodeStore, recipe: FewShotRecipe) -> FewShotManifest:
    """Draw episodes of a store; the same store and recipe give the same manifest anywhere.

    Raises:
        UserError: the recipe names a task or scene that the store has not.
    """
    headers = [header for header in store.headers() if header.task or header.instruction]
    for name, wanted in (("task", recipe.tasks), ("scene", recipe.scenes)):
        have = {getattr(header, name) for header in headers}
        for value in wanted:
            if value not in have:
                raise UserError(f"{store.path}: no {name} {value!r}; it has {', '.join(sorted(filter(None, have)))}")
    strata: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for header in headers:
        if (not recipe.tasks or header.task in recipe.tasks) and (not recipe.scenes or header.scene in recipe.scenes):
            strata[_stratum(header, recipe.per)].append(header.id)
    if not strata:
        raise UserError(f"{store.path}: no episode has an instruction and fits the recipe; name other tasks or scenes")
    chosen: set[str] = set()
    for key, ids in strata.items():
        # Each stratum has a generator of its own, so that one more task does not change the others' draws.
        digest = hashlib.sha256("\0".join(key).encode()).digest()
        rng = np.random.default_rng([recipe.seed, int.from_bytes(digest[:8], "little")])
        count = max(1, int(np.floor(recipe.fraction * len(ids) + 0.5)))
        chosen.update(ids[i] for i in rng.permutation(len(ids))[:count])
    episodes = tuple(id for id in store.ids if id in chosen)
    total = sum(map(len, strata.values()))
    return FewShotManifest(recipe, episodes, total, store_digest(store), _content_digest(store, episodes))


def save_manifest(manifest: FewShotManifest, path: str | Path, overwrite: bool = False) -> None:
    """Write a manifest as JSON.

    Raises:
        UserError: the file exists (without `overwrite`), is something else, or cannot be written.
    """
    with claimed(path, overwrite, json_kind("a few-shot manifest", FORMAT)):
        write_json(path, {"format": FORMAT, "version": VERSION, **asdict(manifest)})


def load_manifest(path: str | Path, store: EpisodeStore | None = None, strict: bool = True) -> FewShotManifest:
    """Read a manifest and check it against a store.

    Args:
        store: the store it is to be used with; None: check the file alone.
        strict: the store must have been made with the same settings; else the same episodes are enough.

    Raises:
        UserError: the file is no manifest, or the store is another one: which difference is said.
    """
    remedy = "make it with `arvrm few-shot`"
    found = read_json(path, remedy, largest=1 << 28)  # it lists episodes
    form, version = found.pop("format", None), found.pop("version", None)
    if form != FORMAT:
        raise UserError(f"{path}: cannot be read (no few-shot manifest); {remedy}")
    if version != VERSION:
        raise UserError(f"{path}: cannot be read (version {version!r}, this program reads {VERSION}); {remedy}")
    manifest = from_dict(FewShotManifest, found, str(path))
    ids = manifest.episodes
    if store is None:
        return manifest
    missing = [id for id in manifest.episodes if id not in store]
    if missing:
        raise UserError(
            f"{path}: {store.path} lacks {len(missing)} of {len(ids)} episodes, such as {missing[0]!r}; "
            "use it with the store it was made from"
        )
    if _content_digest(store, manifest.episodes) != manifest.content_sha256:
        raise UserError(f"{path}: the episodes of {store.path} have the same ids but are others; use another manifest")
    if strict and store_digest(store) != manifest.store_sha256:
        raise UserError(
            f"{path}: {store.path} was converted with other settings; convert it alike, or pass --any-settings"
        )
    return manifest


def write_subset(store: EpisodeStore, manifest: FewShotManifest, output: str | Path, overwrite: bool = False) -> None:
    """Copy a manifest's episodes into a store of their own, records unchanged, to train on.

    Raises:
        UserError: the output exists (without `overwrite`), or an episode is missing or damaged.
    """
    origin = {key: value for key, value in store.manifest.items() if key in ("source", "split", "settings")}
    made = {"few_shot": {**asdict(manifest), "origin": origin}}
    quality = store.manifest["jpeg"]["quality"]
    with replacing_folder(output, overwrite, check_is_store) as partial:
        with EpisodeWriter(partial, made, jpeg_quality=quality, resumable=False) as writer:
            for id in manifest.episodes:
                writer.append_encoded(store.encoded(id))
        close_database(Path(output))  # of the store before


def store_digest(store: EpisodeStore) -> str:
    """SHA-256 of the store's manifest and counts; no path or time is in it.

    Nor is the robot: lists of episodes made before stores named theirs stay valid.
    """
    manifest = {key: value for key, value in store.manifest.items() if key not in ("complete", "robot")}
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _content_digest(store: EpisodeStore, ids: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for header in map(store.header, ids):
        row = [header.id, header.instruction, header.task, header.scene, header.steps]
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def _stratum(header: EpisodeHeader, per: str) -> tuple[str, ...]:
    keys = {"store": (), "task": ("task",), "scene": ("scene",), "task-scene": ("task", "scene")}[per]
    return tuple(str(getattr(header, key)) for key in keys)
