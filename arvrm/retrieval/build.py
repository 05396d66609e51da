"""Making an index: features of every clip, computed once, and the search that finds enough of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from arvrm.config import bounded, check_bounds
from arvrm.episodes import EpisodeStore
from arvrm.files import replacing_folder, write_json
from arvrm.interface import UserError
from arvrm.retrieval.encoders import FrozenEncoders, frame_features
from arvrm.retrieval.index import ClipIndex, checksum
from arvrm.retrieval.index_file import FORMAT, VERSION
from arvrm.retrieval.shortlist import FILES as COARSE_FILES
from arvrm.retrieval.shortlist import Shortlist, blocks
from arvrm.retrieval.table import Clips
from arvrm.windows import EpisodeTable, Names, store_fingerprint

LARGE = 50_000
"""Clips from which `search` "auto" is approximate."""
SHORT = 2
"""Frames of the shorter of the two queries by which the short list is sized."""
RECALL_AT = 10
"""Clips of which a search should find the same as an exact one."""


@dataclass(frozen=True)
class SearchConfig:
    """How an index is searched.

    Attributes:
        kind: "exact" compares all clips; "approximate" those of a short list; "auto": approximate from 50 000 clips.
        dimensions: principal components by which the short list is found.
        frames: frames that stand for a clip there. Queries may have any number.
        lists: clusters; null: four times the square root of the number of clips.
        probes: clusters that a query looks into; shortlist: clips that are compared exactly. null: what costs least
            and gives the `recall`.
        recall: share of the 10 most similar clips that must be found, over `queries` of the index's own clips.
        queries: how many of them are tried; they are compared with all clips, which takes most of the time.
    """

    kind: Literal["auto", "exact", "approximate"] = "auto"
    dimensions: int = bounded(256, least=1, most=65536)
    frames: int = bounded(8, least=1, most=4096)
    lists: int | None = bounded(None, least=1, most=10**7)
    probes: int | None = bounded(None, least=1, most=10**7)
    shortlist: int | None = bounded(None, least=1, most=10**7)
    recall: float = bounded(0.995, above=0, most=1)
    queries: int = bounded(64, least=1, most=10**6)

    __post_init__ = check_bounds


def build_index(
    stores: Sequence[EpisodeStore | str | Path],
    encoders: FrozenEncoders,
    output: str | Path,
    overwrite: bool = False,
    cache: str | Path | None = None,
    progress: Callable[[int], object] | None = None,
    search: SearchConfig | None = None,
) -> ClipIndex:
    """Compute the features of every human clip of `stores` and save the index under its name when it is whole.

    Args:
        cache: folder where frame features are kept by encoder and store, so that a second index, or one that was
            stopped, does not compute those of a store again.
        progress: called with a number of frames done.

    Raises:
        UserError: `output` exists (without `overwrite`), or the stores hold no human clip.
    """
    output = Path(output)
    opened = [store if isinstance(store, EpisodeStore) else EpisodeStore(store) for store in stores]
    table = EpisodeTable(opened, "human", stride=1, cache=cache)
    with replacing_folder(output, overwrite, _check_is_index) as temporary:
        # Without a cache the features pass through files beside the index: of large stores they exceed the memory.
        features = frame_features(table, encoders, cache or temporary / "parts", progress)
        clips = Clips(
            table.ids,
            (table.sentences, table.sentence),
            (Names.of(table.tasks), table.task),
            (table.groups, table.group),
            table.store,
            np.diff(table.image_start),
        )
        text = (
            encoders.sentences([table.sentences[int(number)] for number in numbers])
            for numbers in blocks(table.sentence, 8192)
        )
        frames = (part[start : start + 65_536] for part in features.parts for start in range(0, len(part), 65_536))
        described = {
            "encoders": encoders.save(temporary),
            "stores": [{"path": str(store.path), "fingerprint": store_fingerprint(store)} for store in opened],
        }
        write_index(temporary, described, clips, text, frames, search)
        del features, frames
        shutil.rmtree(temporary / "parts", ignore_errors=True)
    return ClipIndex.load(output)


def write_index(
    folder: Path,
    described: dict[str, Any],
    clips: Clips,
    text: Iterable[np.ndarray],
    frames: Iterable[np.ndarray],
    search: SearchConfig | None = None,
) -> None:
    """Write an index into `folder`, which holds `encoder.safetensors` already.

    Args:
        described: "encoders", as `FrozenEncoders.save` returns it, and "stores".
        text: blocks of (n, E) float32 rows of unit length, of all clips in turn.
        frames: blocks of (n, D) float16 rows of unit length, of all frames of all clips in turn.
    """
    search = search or SearchConfig()
    clips.save(folder / "clips.npz")
    _write_rows(folder / "text.npy", len(clips), text)
    _write_rows(folder / "frames.npy", int(clips.lengths.sum()), frames)
    values: dict[str, Any] = {"format": FORMAT, "version": VERSION, **described}
    values["search"] = {"kind": "exact", "clips": len(clips)}
    files = ["clips.npz", "text.npy", "frames.npy", "encoder.safetensors"]
    if search.kind == "approximate" or (search.kind == "auto" and len(clips) >= LARGE):
        mapped = (np.load(folder / name, mmap_mode="r") for name in ("text.npy", "frames.npy"))
        values["search"] = _approximate(ClipIndex(folder, values, clips, *mapped), search)
        files += COARSE_FILES
    values["files"] = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": checksum(folder / name)} for name in files
    }
    write_json(folder / "index.json", values)


def _check_is_index(output: Path) -> None:
    if not (output / "index.json").is_file():
        raise UserError(f"{output}: is no clip index, so it is not overwritten; give another path")


def _write_rows(file: Path, rows: int, parts: Iterable[np.ndarray]) -> None:
    """Write an array of `rows` rows block by block, so that no more than one block is in memory."""
    done = 0
    with open(file, "wb") as stream:
        for part in parts:
            if not done:
                described = np.lib.format.header_data_from_array_1_0(part[:1]) | {"shape": (rows, *part.shape[1:])}
                np.lib.format.write_array_header_1_0(stream, described)
            stream.write(np.ascontiguousarray(part).data)
            done += len(part)
    if done != rows:
        raise ValueError(f"{file.name}: {done} rows instead of {rows}")


def _approximate(index: ClipIndex, config: SearchConfig) -> dict[str, Any]:
    """Build what finds the short lists, into the index's folder; return what index.json says of the search."""
    lists = config.lists or max(1, int(4 * np.sqrt(len(index))))
    width = index.text.shape[1] + config.frames * index.frames.shape[1]

    def vectors(rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), width), dtype=np.float32)
        for some, here in zip(blocks(rows), blocks(out), strict=True):
            here[:] = index.vectors(some, config.frames)
            index.release_pages()
        return out

    coarse = Shortlist.build(len(index), vectors, width, config.dimensions, lists)
    coarse.save(index.path)
    settings = {
        "kind": "approximate",
        "clips": len(index),
        "dimensions": coarse.basis.shape[1],
        "frames": config.frames,
        "lists": coarse.lists,
    }
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(len(index), size=min(config.queries, len(index)), replace=False))
    return settings | _calibrated(index, coarse, config, rows)


def _calibrated(index: ClipIndex, coarse: Shortlist, config: SearchConfig, rows: np.ndarray) -> dict[str, Any]:
    """Return the cheapest probes and length of the short list, and their recall over the clips `rows` as queries.

    A clip finds itself at once, so that its 10 best others are looked at. If no choice finds enough, the one that finds
    most is taken.
    """
    wanted = min(RECALL_AT, len(index) - 1)
    lists = coarse.lists
    shares = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    probes = [config.probes] if config.probes else sorted({max(1, round(share * lists)) for share in shares})
    sizes = [config.shortlist] if config.shortlist else [100, 200, 400, 800, 1600, 3200]
    if wanted < 1:
        return {"probes": lists, "shortlist": sizes[-1], "recall_at_10": 1.0, "recall_queries": 0}
    text = np.asarray(index.text[rows], dtype=np.float32)
    truths, queries = [], []
    for length in sorted({config.frames, min(config.frames, SHORT)}):  # of a whole episode, and of a window
        frames = index.resampled(rows, length)
        exact = index.exact(text, frames, wanted + 1)
        truths.append([[row for row in found if row != own][:wanted] for own, found in zip(rows, exact, strict=True)])
        queries.append(index.query(text, frames, config.frames))
    # Bytes that a query reads. Those of the short list lie anywhere, and must be converted.
    scanned = len(index) / lists * coarse.basis.shape[1]
    compared = 3 * (4 * index.text.shape[1] + 2 * config.frames * index.frames.shape[1])
    choices = []
    for probe in (min(probe, lists) for probe in probes):
        found = [coarse.search(query, min(max(sizes) + 1, len(index)), probe) for query in queries]
        for size in sizes:
            hits = [
                sum(len(set(a) & set(b[: size + 1].tolist())) for a, b in zip(*pair, strict=True))
                for pair in zip(truths, found, strict=True)
            ]
            recall = min(hits) / (wanted * len(rows))
            choices.append((recall, probe * scanned + size * compared, probe, size))
    good = [choice for choice in choices if choice[0] >= config.recall]
    recall, _, probe, size = min(good, key=lambda c: c[1]) if good else max(choices, key=lambda c: (c[0], -c[1]))
    return {"probes": probe, "shortlist": size, "recall_at_10": round(recall, 4), "recall_queries": len(rows)}
