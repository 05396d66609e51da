"""The index of human clips: which clips resemble what the robot sees and is told.

    sim(R, H) = cos(z_l of R, z_l of H) + sum over t of cos(z_o,t of R, z_o,t of H)        (AR-VRM, arXiv 2508.07626)

z_l is the frozen text encoder's sentence embedding, z_o,t the CLS feature of a frozen image encoder at frame t; a clip
is resampled to the T frames of the query. Everything is computed once. An index is a folder that needs nothing else:

    index.json            format, encoders, stores with fingerprints, how to search, sizes and checksums of the files
    clips.npz             ids, instructions, tasks, groups, stores and lengths of the clips, as arrays
    text.npy              (clips, E) float32, unit length
    frames.npy            (all stored frames, D) float16, unit length
    encoder.safetensors   the image encoder's weights
    coarse.faiss, basis.npy, mean.npy    of many clips: what finds those worth comparing (arvrm/nearest.py)

Features stay on the disk and are mapped into memory. Of few clips, all are compared with a query. Of many, a short list
is found by principal components, and compared by the formula above, so that the similarities returned are exact and
only the choice of the clips is approximate. Building the index measures how good that choice is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import mmap
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from arvrm.config import from_dict
from arvrm.episodes import EpisodeStore
from arvrm.interface import HumanBatch, UserError
from arvrm.model.encoders import TextConfig, TextEncoder, VisionConfig, fit_images, image_encoder
from arvrm.nearest import FILES as COARSE_FILES
from arvrm.nearest import Shortlist, blocks, load_faiss
from arvrm.windows import EpisodeTable, FrameBank, HumanWindows, Names, decode_frames, store_fingerprint

FORMAT, VERSION = "arvrm-clip-index", 2
LARGE = 50_000
"""Clips from which `search` "auto" is approximate."""
FLAT_BYTES = 2 << 30
"""An exact search keeps the vectors of all clips in memory up to this size, and else reads them for every search."""
TESTED_AT_LOADING = 256 << 20
"""Files up to this size have their checksum tested when an index is opened; of larger ones the size, and `verify`."""
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
    dimensions: int = 256
    frames: int = 8
    lists: int | None = None
    probes: int | None = None
    shortlist: int | None = None
    recall: float = 0.995
    queries: int = 64

    def __post_init__(self) -> None:
        for name in ("dimensions", "frames", "lists", "probes", "shortlist", "queries"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; give at least 1")
        if not 0 < self.recall <= 1:
            raise ValueError(f"recall is {self.recall}; give a number above 0, at most 1")


class FrozenEncoders:
    """The text and the image encoder that an index compares with; none of it is trained any more.

    Args:
        text: the text encoder.
        vision: how `image` was built.
        size: pixels at which a conv encoder reads images.
        language_width: width of the language token that modulates the encoder, if it does; here it is zero, so that
            frames are compared as they look, whatever the instruction.
        image: the encoder, as `model.encoders.image_encoder` builds it.
    """

    def __init__(
        self, text: TextEncoder, vision: VisionConfig, size: int, language_width: int, image: torch.nn.Module
    ) -> None:
        self.text, self.vision, self.size, self.language_width = text, vision, size, language_width
        self.image = image.eval().requires_grad_(False)

    @cached_property
    def hash(self) -> str:
        """16 hex digits of weights and configuration."""
        digest = hashlib.sha256(json.dumps(self._description(), sort_keys=True).encode())
        for name, value in sorted(self.image.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def sentences(self, sentences: Sequence[str]) -> np.ndarray:
        """Return (n, E) float32 of unit length."""
        unique = sorted(set(sentences))
        features = dict(zip(unique, self.text.sentence(unique).numpy(), strict=True))
        return np.stack([features[sentence] for sentence in sentences])

    @torch.no_grad()
    def images(self, frames: np.ndarray, batch: int = 256) -> np.ndarray:
        """Return (n, D) float32 of unit length for (n, H, W, 3) uint8."""
        device = next(self.image.parameters()).device
        out = []
        for start in range(0, len(frames), batch):
            images = torch.from_numpy(np.ascontiguousarray(frames[start : start + batch])).to(device)
            if self.vision.encoder == "conv":
                images, _ = fit_images(images[None], self.size)
            by_words = self.vision.film or self.vision.modulated
            words = torch.zeros(len(images), self.language_width, device=device) if by_words else None
            cls = self.image(images, words)[0][:, 0].float()
            out.append(torch.nn.functional.normalize(cls, dim=-1).cpu().numpy())
        return np.concatenate(out)

    def _description(self) -> dict[str, Any]:
        # What is off is left out, so that indexes made before it existed keep their hash.
        optional = ("modulated", "second")
        vision = {k: v for k, v in dataclasses.asdict(self.vision).items() if v or k not in optional}
        return {
            "text": dataclasses.asdict(self.text.config),
            "vision": vision,
            "size": self.size,
            "language_width": self.language_width,
        }

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the weights into `folder`; return what index.json keeps."""
        from safetensors.torch import save_file

        state = {name: value.detach().cpu().contiguous() for name, value in self.image.state_dict().items()}
        save_file(state, str(folder / "encoder.safetensors"))
        return {**self._description(), "hash": self.hash}

    @classmethod
    def load(cls, folder: Path, description: dict[str, Any]) -> FrozenEncoders:
        """Read what `save` wrote."""
        from safetensors.torch import load_file

        text = from_dict(TextConfig, description["text"], f"{folder}/index.json")
        vision = from_dict(VisionConfig, description["vision"], f"{folder}/index.json")
        image = image_encoder(vision, description["size"], description["language_width"])
        image.load_state_dict(load_file(str(folder / "encoder.safetensors")))
        return cls(TextEncoder(text), vision, description["size"], description["language_width"], image)


def build_index(
    stores: Sequence[EpisodeStore | str | Path],
    encoders: FrozenEncoders,
    output: str | Path,
    overwrite: bool = False,
    cache: str | Path | None = None,
    progress: Callable[[int], Any] | None = None,
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
    _check_output(output, overwrite)
    opened = [store if isinstance(store, EpisodeStore) else EpisodeStore(store) for store in stores]
    table = EpisodeTable(opened, "human", stride=1, cache=cache)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=output.name, suffix=".tmp"))
    try:
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
        text = (encoders.sentences([table.sentences[i] for i in table.sentence[rows]]) for rows in _every(len(table)))
        frames = (part[start : start + 65_536] for part in features.parts for start in range(0, len(part), 65_536))
        described = {"encoders": encoders.save(temporary)}
        described["stores"] = [{"path": str(s.path), "fingerprint": store_fingerprint(s)} for s in opened]
        write_index(temporary, described, clips, text, frames, search)
        del features, frames
        shutil.rmtree(temporary / "parts", ignore_errors=True)
        if output.exists():
            shutil.rmtree(output)
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
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
        name: {"bytes": (folder / name).stat().st_size, "sha256": _checksum(folder / name)} for name in files
    }
    (folder / "index.json").write_text(json.dumps(values, indent=1) + "\n")


def _check_output(output: Path, overwrite: bool) -> None:
    if output.exists():
        if not overwrite:
            raise UserError(f"{output}: exists; pass --overwrite to replace it")
        if not (output / "index.json").is_file():
            raise UserError(f"{output}: is no clip index, so it is not overwritten; give another path")


def _every(count: int) -> Iterator[slice]:
    return (slice(start, start + 8192) for start in range(0, count, 8192))


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
            index.let_go()
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
    index.coarse = coarse
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(len(index), size=min(config.queries, len(index)), replace=False))
    return settings | _calibrated(index, config, rows)


def _calibrated(index: ClipIndex, config: SearchConfig, rows: np.ndarray) -> dict[str, Any]:
    """Return the cheapest probes and length of the short list, and their recall over the clips `rows` as queries.

    A clip finds itself at once, so that its 10 best others are looked at. If no choice finds enough, the one that finds
    most is taken.
    """
    wanted = min(RECALL_AT, len(index) - 1)
    lists = index.coarse.lists
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
    scanned = len(index) / lists * index.coarse.basis.shape[1]
    compared = 3 * (4 * index.text.shape[1] + 2 * config.frames * index.frames.shape[1])
    choices = []
    for probe in (min(probe, lists) for probe in probes):
        found = [index.coarse.search(query, min(max(sizes) + 1, len(index)), probe) for query in queries]
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


def frame_features(
    table: EpisodeTable,
    encoders: FrozenEncoders,
    cache: str | Path | None = None,
    progress: Callable[[int], Any] | None = None,
) -> FrameBank:
    """Return unit-length CLS features (F, D) float16 of the static camera, computed once per encoder and store."""
    return decode_frames(
        table,
        "rgb_static",
        cache=cache,
        compute=lambda frames: encoders.images(frames).astype(np.float16),
        key=f"cls-{encoders.hash}",
        progress=progress,
    )


@dataclass(frozen=True)
class Matches:
    """What a search found, best first; Q queries, J clips.

    Attributes:
        rows: (Q, J) int64 rows of the index; -1 where there are fewer than J clips.
        total, language, visual: (Q, J) float32, total = language + visual; -inf, 0, 0 where there is no clip.
    """

    rows: np.ndarray
    total: np.ndarray
    language: np.ndarray
    visual: np.ndarray


class Coded(Sequence[str]):
    """A name for each clip, kept as the number of one of few different `names`."""

    def __init__(self, names: Sequence[str], codes: np.ndarray) -> None:
        self.names, self.codes = names, codes

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index):  # type: ignore[override]
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.names[int(self.codes[index])]

    def rows_of(self, wanted: Sequence[str]) -> np.ndarray:
        """Return the rows whose name is one of `wanted`, ascending."""
        if not wanted:
            return np.zeros(0, dtype=np.int64)
        wanted = set(wanted)
        chosen = [number for number, name in enumerate(self.names) if name in wanted]
        return np.flatnonzero(np.isin(self.codes, chosen)).astype(np.int64)


@dataclass(frozen=True)
class Clips:
    """What is known of the n clips of an index besides their features: arrays, no object for a clip.

    Attributes:
        ids: n.       instructions, tasks, groups: the different names, and (n,) int32 numbers of them.
        store: (n,) int32, which of the index's stores.      lengths: (n,) int64, stored frames.
    """

    ids: Names
    instructions: tuple[Names, np.ndarray]
    tasks: tuple[Names, np.ndarray]
    groups: tuple[Names, np.ndarray]
    store: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def save(self, file: Path) -> None:
        values = {"ids_text": self.ids.text, "ids_end": self.ids.end, "store": self.store, "lengths": self.lengths}
        for name in ("instructions", "tasks", "groups"):
            names, codes = getattr(self, name)
            values |= {f"{name}_text": names.text, f"{name}_end": names.end, name: codes}
        np.savez(file, **values)

    @classmethod
    def load(cls, file: Path) -> Clips:
        with np.load(file, allow_pickle=False) as found:
            named = [
                (Names(found[f"{name}_text"], found[f"{name}_end"]), found[name])
                for name in ("instructions", "tasks", "groups")
            ]
            ids = Names(found["ids_text"], found["ids_end"])
            clips = cls(ids, *named, found["store"], found["lengths"].astype(np.int64))
        for values in (*(codes for _, codes in named), clips.store, clips.lengths):
            if len(values) != len(ids):
                raise ValueError(f"{file.name} has columns of different lengths")
        return clips

    @classmethod
    def of_json(cls, entries: Sequence[dict[str, Any]]) -> Clips:
        """Read the clips of version 1, which kept them in index.json."""

        def named(key: str) -> tuple[Names, np.ndarray]:
            codes: dict[str, int] = {}
            numbers = [codes.setdefault(entry[key], len(codes)) for entry in entries]
            return Names.of(codes), np.array(numbers, dtype=np.int32)

        store, lengths = (np.array([entry[key] for entry in entries], dtype=np.int64) for key in ("store", "frames"))
        ids = Names.of(entry["id"] for entry in entries)
        return cls(ids, named("instruction"), named("task"), named("group"), store, lengths)


class ClipIndex:
    """A saved index, ready to search.

    Attributes:
        path: its folder.                               ids, instructions, tasks, groups: one per clip.
        text: (clips, E) float32 of unit length.        frames: (frames, D) float16 of unit length.
        start: (clips + 1,) where each clip's frames begin.
        stores: [{"path", "fingerprint"}]; `store` (clips,) says which is a clip's.
        encoder_hash: of the encoders the features are from.
        settings: how it is searched, as index.json has it: "kind" and, if approximate, the parameters and the recall
            that was measured; `coarse`, what finds the short lists, or None.
    """

    def __init__(
        self,
        path: Path,
        values: dict[str, Any],
        clips: Clips,
        text: np.ndarray,
        frames: np.ndarray,
        coarse: Shortlist | None = None,
    ) -> None:
        self.path, self.text, self.frames, self.coarse = path, text, frames, coarse
        self.ids = clips.ids
        self.instructions, self.tasks = Coded(*clips.instructions), Coded(*clips.tasks)
        self.groups = Coded(*clips.groups)
        self.store = clips.store
        self.stores: list[dict[str, str]] = values["stores"]
        self.start = np.concatenate([[0], np.cumsum(clips.lengths)]).astype(np.int64)
        self.settings: dict[str, Any] = values.get("search", {"kind": "exact"})
        self.encoder_hash: str = values["encoders"]["hash"]
        self._encoders = values["encoders"]
        self._files: dict[str, Any] = values.get("files", {})
        self._flat: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def load(cls, path: str | Path, encoder_hash: str | None = None) -> ClipIndex:
        """Open an index; features stay on the disk. Large files are tested by their size only, see `verify`.

        Args:
            encoder_hash: refuse an index whose features are from another encoder than this.

        Raises:
            UserError: there is none, it is damaged or of another version, or the encoder differs.
        """
        path = Path(path)
        if not (path / "index.json").is_file():
            what = "is no clip index" if path.exists() else "does not exist"
            raise UserError(f"{path}: {what}; make one with `arvrm index`")
        with _damage_named(path):
            values = json.loads((path / "index.json").read_text())
            if values["format"] != FORMAT or values["version"] not in (1, VERSION):
                raise ValueError(f"format {values['format']!r} version {values['version']}, expected {VERSION}")
            if values["version"] == 1:
                values["files"] = {name: {"sha256": checksum} for name, checksum in values["files"].items()}
            for name, expected in values["files"].items():
                size = (path / name).stat().st_size
                _test(path / name, expected, size <= TESTED_AT_LOADING or values["version"] == 1)
            clips = Clips.of_json(values["clips"]) if values["version"] == 1 else Clips.load(path / "clips.npz")
            text, frames = (np.load(path / name, mmap_mode="r") for name in ("text.npy", "frames.npy"))
            approximate = values.get("search", {}).get("kind") == "approximate"
            index = cls(path, values, clips, text, frames, Shortlist.load(path) if approximate else None)
            if len(text) != len(index) or len(frames) != index.start[-1]:
                raise ValueError(f"{len(index)} clips but {len(text)} texts and {len(frames)} frames")
            if approximate:
                expected = text.shape[1] + index.settings["frames"] * frames.shape[1]
                if len(index.coarse) != len(index) or len(index.coarse.mean) != expected:
                    raise ValueError("the coarse index is not of these clips")
        if encoder_hash is not None and encoder_hash != index.encoder_hash:
            raise UserError(
                f"{path}: its features are from encoder {index.encoder_hash}, not {encoder_hash}; make the index anew "
                "with this checkpoint"
            )
        return index

    def verify(self) -> None:
        """Test the checksums of all files, which reads everything.

        Raises:
            UserError: names the first file that is damaged.
        """
        with _damage_named(self.path):
            for name, expected in self._files.items():
                _test(self.path / name, expected, True)

    @cached_property
    def encoders(self) -> FrozenEncoders:
        """The encoders its features are from; queries must go through them."""
        return FrozenEncoders.load(self.path, self._encoders)

    def open_stores(self, root: str | Path | None = None) -> list[EpisodeStore]:
        """Open the stores of the clips, looked for at their recorded paths, then by name in `root`.

        Raises:
            UserError: one is missing, or is not what was indexed.
        """
        opened = []
        for entry in self.stores:
            path = Path(entry["path"])
            if not path.exists() and root is not None:
                path = Path(root) / path.name
            store = EpisodeStore(path)
            if store_fingerprint(store) != entry["fingerprint"]:
                raise UserError(f"{path}: changed since {self.path} was made; make the index anew with --overwrite")
            opened.append(store)
        return opened

    def clip_features(self, row: int, frames: int | None = None) -> np.ndarray:
        """Return the clip's frame features, (F, D) float32; resampled uniformly to `frames` if given."""
        own = self.frames[self.start[row] : self.start[row + 1]]
        return np.asarray(own if frames is None else own[resample(len(own), frames)], dtype=np.float32)

    def search(
        self,
        text: np.ndarray,
        frames: np.ndarray,
        clips: int,
        exclude_groups: Sequence[str] = (),
    ) -> Matches:
        """Find the most similar clips.

        Args:
            text: (E,) or (Q, E) sentence features; frames: (T, D) or (Q, T, D) frame features. Any length: the cosine
                is taken. T may differ between calls; clips are resampled to it.
            clips: J.
            exclude_groups: clips of these groups are not returned.

        Raises:
            UserError: widths that are not the index's.
        """
        text, frames = np.atleast_2d(text).astype(np.float32), np.asarray(frames, dtype=np.float32)
        frames = frames[None] if frames.ndim == 2 else frames
        if text.shape[1] != self.text.shape[1] or frames.shape[2] != self.frames.shape[1] or len(text) != len(frames):
            raise UserError(
                f"{self.path}: query features {text.shape} and {frames.shape} do not fit E={self.text.shape[1]}, "
                f"D={self.frames.shape[1]}; compute them with the index's own encoders"
            )
        text, frames = _unit(text), _unit(frames)
        excluded = self.groups.rows_of(exclude_groups)
        count = min(clips, len(self) - len(excluded))
        rows = np.full((len(text), clips), -1, dtype=np.int64)
        if count > 0 and self.coarse is not None:
            rows[:, :count] = self._shortlisted(text, frames, count, excluded)
        elif count > 0:
            rows[:, :count] = self.exact(text, frames, count, excluded)
        language, visual = self._terms(rows, text, frames)
        known = rows >= 0
        total = np.where(known, language + visual, -np.inf).astype(np.float32)
        if not np.isfinite(total[known]).all():
            row = int(rows[known & ~np.isfinite(total)][0])
            raise UserError(f"{self.path}: clip {self.ids[row]!r} has features that are no numbers; make it anew")
        return Matches(rows, total, language, visual)

    def exact(self, text: np.ndarray, frames: np.ndarray, count: int, excluded: np.ndarray | None = None) -> np.ndarray:
        """Return the (Q, count) rows most similar to queries of unit length, compared with every clip."""
        faiss = load_faiss()
        query = np.concatenate([text, frames.reshape(len(frames), -1)], axis=1)
        length, excluded = frames.shape[1], np.zeros(0, dtype=np.int64) if excluded is None else excluded
        if len(self) * query.shape[1] * 4 <= FLAT_BYTES:
            if length not in self._flat:
                self._flat[length] = faiss.IndexFlatIP(query.shape[1])
                for rows in blocks(np.arange(len(self)), 8192):
                    self._flat[length].add(self.vectors(rows, length))
            chosen = {"sel": faiss.IDSelectorNot(faiss.IDSelectorBatch(excluded))} if len(excluded) else {}
            params = faiss.SearchParameters(**chosen)
            return self._flat[length].search(np.ascontiguousarray(query), count, params=params)[1]
        best = np.full((len(query), 0), -np.inf, dtype=np.float32)
        found = np.zeros((len(query), 0), dtype=np.int64)
        wanted = torch.from_numpy(query)
        for rows in blocks(np.setdiff1d(np.arange(len(self)), excluded)):
            score = (wanted @ torch.from_numpy(self.vectors(rows, length)).T).numpy()
            best, found = np.hstack([best, score]), np.hstack([found, np.broadcast_to(rows, score.shape)])
            order = np.argsort(-best, axis=1, kind="stable")[:, :count]
            best, found = np.take_along_axis(best, order, 1), np.take_along_axis(found, order, 1)
            self.let_go()
        return found

    def let_go(self) -> None:
        """Give up the mapped pages that were read; the system's file cache keeps them as long as it has room."""
        for features in (self.text, self.frames):
            mapping = getattr(features, "_mmap", None)
            if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
                mapping.madvise(mmap.MADV_DONTNEED)

    def vectors(self, rows: np.ndarray, frames: int) -> np.ndarray:
        """Return (n, E + frames D) float32: what the similarity to a query is the inner product with."""
        text = np.asarray(self.text[rows], dtype=np.float32)
        return np.concatenate([text, self.resampled(rows, frames).reshape(len(rows), -1)], axis=1)

    def resampled(self, rows: np.ndarray, frames: int) -> np.ndarray:
        """Return the features of `frames` frames of each clip, rows.shape + (frames, D) float32."""
        start = self.start[rows]
        picks = start[..., None] + resample(self.start[np.asarray(rows) + 1] - start, frames)
        # torch converts half precision several times as fast as NumPy.
        return torch.from_numpy(self.frames[picks]).float().numpy()

    def query(self, text: np.ndarray, frames: np.ndarray, places: int) -> np.ndarray:
        """Return (Q, E + places D): the query to compare with clips of `places` frames in place of its own number.

        Each frame is added at the nearest of the places, so that a product with a clip's vector is still the sum over
        the query's frames.
        """
        spread = np.zeros((len(frames), places, frames.shape[2]), dtype=np.float32)
        for t, place in enumerate(resample(places, frames.shape[1])):
            spread[:, place] += frames[:, t]
        return np.concatenate([text, spread.reshape(len(frames), -1)], axis=1)

    def _shortlisted(self, text: np.ndarray, frames: np.ndarray, count: int, excluded: np.ndarray) -> np.ndarray:
        query = self.query(text, frames, self.settings["frames"])
        size = min(max(self.settings["shortlist"], count), len(self) - len(excluded))
        found = self.coarse.search(query, size, self.settings["probes"], excluded)
        short = np.flatnonzero((found >= 0).sum(axis=1) < count)
        if len(short):  # the probed clusters hold too few that are not excluded
            found[short] = self.coarse.search(query[short], size, self.coarse.lists, excluded)
        rows = np.full((len(text), count), -1, dtype=np.int64)
        for number, candidates in enumerate(found):
            candidates = np.sort(candidates[candidates >= 0])  # in the order of the disk
            here = slice(number, number + 1)
            language, visual = self._terms(candidates[None], text[here], frames[here])
            order = np.argsort(-(language + visual)[0], kind="stable")[:count]
            rows[number, : len(order)] = candidates[order]
        return rows

    def _terms(self, rows: np.ndarray, text: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the language and the visual term (Q, J) float32 of clips `rows` (Q, J); 0 where a row is -1."""
        known = rows >= 0
        language = np.einsum("qjd,qd->qj", np.asarray(self.text[rows], dtype=np.float32), text)
        visual = np.zeros(rows.shape, dtype=np.float32)
        few = max(8, 65_536 // (frames.shape[1] * frames.shape[2]))  # clips that a core's cache holds
        with _one_thread():
            for query, some in enumerate(np.maximum(rows, 0)):
                wanted = torch.from_numpy(np.ascontiguousarray(frames[query]).reshape(-1))
                for part, terms in zip(blocks(some, few), blocks(visual[query], few), strict=True):
                    seen = torch.from_numpy(self.resampled(part, frames.shape[1]))
                    terms[:] = (seen.view(len(part), -1) @ wanted).numpy()
        return np.where(known, language, 0).astype(np.float32), np.where(known, visual, 0).astype(np.float32)

    def align(
        self, row: int, frames: int, query: np.ndarray | None = None, method: Literal["uniform", "dtw"] = "uniform"
    ) -> np.ndarray:
        """Return which of the clip's stored frames stand beside the `frames` frames of a window, (T,) int64.

        "uniform" spreads them over the clip. "dtw" warps time: `query` (T, D), the window's frame features, is matched
        with the part of the clip that fits best.
        """
        length = int(self.start[row + 1] - self.start[row])
        if method == "uniform":
            return resample(length, frames)
        if query is None or len(query) != frames:
            raise ValueError(f"align: dtw needs the features of the {frames} frames of the query")
        return warp(_unit(np.asarray(query, dtype=np.float32)) @ self.clip_features(row).T, part=True)


def resample(length: int | np.ndarray, frames: int) -> np.ndarray:
    """Return (frames,) int64 indices spread uniformly over 0..length-1, both ends included; one frame: the middle.

    Of an array of lengths: length.shape + (frames,).
    """
    length = np.asarray(length, dtype=np.int64)
    if frames == 1:
        return ((length - 1) // 2)[..., None]
    # As np.linspace rounds, for each length by itself.
    spread = np.arange(frames) * ((length - 1) / (frames - 1))[..., None]
    spread[..., -1] = length - 1
    return np.round(spread).astype(np.int64)


def warp(similarity: np.ndarray, part: bool = False) -> np.ndarray:
    """Align two sequences by dynamic time warping.

    Args:
        similarity: (T, F) of query frames with clip frames.
        part: the query matches any contiguous part of the clip; else both ends are tied.

    Returns:
        (T,) int64, not descending: the clip frame of each query frame (the most similar of those the path visits).
    Source: Sakoe and Chiba, 1978; with `part`: Mueller, Information Retrieval for Music and Motion, section 4.4.
    """
    cost = 1.0 - np.asarray(similarity, dtype=np.float64)
    queries, frames = cost.shape
    total = np.full((queries + 1, frames + 1), np.inf)
    total[0, :] = 0.0 if part else np.inf
    total[0, 0] = 0.0
    for t in range(1, queries + 1):
        for f in range(1, frames + 1):
            total[t, f] = cost[t - 1, f - 1] + min(total[t - 1, f - 1], total[t - 1, f], total[t, f - 1])
    f = int(np.argmin(total[queries, 1:])) + 1 if part else frames
    t = queries
    best = np.full(queries, -1, dtype=np.int64)
    while t > 0:
        if best[t - 1] < 0 or similarity[t - 1, f - 1] > similarity[t - 1, best[t - 1]]:
            best[t - 1] = f - 1
        if f == 1:
            t -= 1
            continue
        moves = (total[t - 1, f - 1], total[t - 1, f], total[t, f - 1])
        step = int(np.argmin(moves))
        t, f = t - (step != 2), f - (step != 1)
    return best


# ---------------------------------------------------------------------------------------------------------------------
# Clips beside robot windows
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RetrievalConfig:
    """Which clips accompany robot windows in training.

    Attributes:
        clips: J.
        query: "episode" searches once with `frames` frames of the whole episode; "window" with each window's own T.
        frames: frames of an episode's query.
        align: how a clip's T frames are chosen: "progress": a window of the clip's own speed that ends where the clip
            is as far as the episode is; "dtw": frame by frame where the clip looks alike; "uniform": spread over the
            whole clip, as in the paper.
        choice: "similar", or "random": the control in which any clips accompany (drawn by `seed`).
        exclude_same_group: leave out clips of the robot episode's own group.
        refresh: search again even if the result is cached.
    """

    clips: int = 4
    query: Literal["episode", "window"] = "episode"
    frames: int = 8
    align: Literal["progress", "dtw", "uniform"] = "progress"
    choice: Literal["similar", "random"] = "similar"
    exclude_same_group: bool = False
    refresh: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clips < 1 or self.frames < 1:
            raise ValueError("clips and frames must be at least 1")


class RetrievedClips:
    """The J clips of every robot window, searched once, as `HumanBatch`es with axes (B, J).

    Args:
        index: the clip index.
        robots: the robot episodes.
        humans: windows over the index's own stores, in its order.
        features: (F, D) frame features of `robots` from the index's encoders.
        history: T.
        cache: folder that keeps the search's result; None: memory only.

    Attributes:
        matches: of each episode, or of each stored frame (as a window's end) with query "window".
    """

    def __init__(
        self,
        index: ClipIndex,
        robots: EpisodeTable,
        humans: HumanWindows,
        features: FrameBank,
        config: RetrievalConfig,
        history: int,
        cache: str | Path | None = None,
    ) -> None:
        if humans.table.ids != index.ids:
            raise UserError(f"{index.path}: the stores' clips are not the index's; make the index anew")
        self.index, self.robots, self.humans, self.config, self.history = index, robots, humans, config, history
        self._features = features
        key = [index.encoder_hash, [s["fingerprint"] for s in index.stores], dataclasses.asdict(config), history]
        key += [store_fingerprint(store) for store in robots.stores]
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        file = Path(cache) / f"retrieval-{name}.npz" if cache is not None else None
        if file is not None and file.exists() and not config.refresh:
            with np.load(file) as found:
                self.matches = Matches(found["rows"], found["total"], found["language"], found["visual"])
                self.warped = found["warped"] if "warped" in found.files else None
            return
        self.matches = self._random() if config.choice == "random" else self._search()
        self.warped = self._warp() if config.align == "dtw" else None
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".tmp.npz")
            os.close(handle)
            extra = {} if self.warped is None else {"warped": self.warped}
            np.savez(temporary, **dataclasses.asdict(self.matches), **extra)
            os.replace(temporary, file)

    def of(self, anchors: np.ndarray) -> np.ndarray:
        """Return the rows (B, J) of the index that accompany the windows ending at `anchors`; -1: none."""
        return self.matches.rows[anchors if self.config.query == "window" else self.robots.episode_of_image[anchors]]

    def batch(self, anchors: np.ndarray, images: bool = True) -> HumanBatch:
        """Return the clips of the windows that end at `anchors`, aligned in time with them."""
        clips = self.of(anchors)
        known = clips >= 0
        clips = np.maximum(clips, 0)
        table, length = self.humans.table, np.diff(self.humans.table.image_start)
        if self.config.align == "progress":
            episode = self.robots.episode_of_image[anchors]
            first, end = self.robots.step_start[episode], self.robots.step_start[episode + 1]
            progress = (self.robots.step_of_image[anchors] - first) / np.maximum(end - 1 - first, 1)
            last = table.image_start[clips] + np.round(progress[:, None] * (length[clips] - 1)).astype(np.int64)
            rows, mask = table.window_frames(last.reshape(-1), self.history)
            rows, mask = rows.reshape(*clips.shape, -1), mask.reshape(*clips.shape, -1)
        elif self.config.align == "uniform":
            share = np.linspace(0, 1, self.history) if self.history > 1 else np.array([0.5])
            local = np.round(share * (length[clips][..., None] - 1)).astype(np.int64)
            rows, mask = table.image_start[clips][..., None] + local, np.ones((*clips.shape, self.history), dtype=bool)
        else:
            frames, mask = self.robots.window_frames(anchors, self.history)
            # (B, T, J) -> (B, J, T); with query "window" a window's frames are warped by its own search.
            warped = self.warped[anchors] if self.config.query == "window" else self.warped[frames].swapaxes(1, 2)
            rows = table.image_start[clips][..., None] + warped
            mask = np.broadcast_to(mask[:, None, :], rows.shape)
        return self.humans.gather(rows, mask & known[..., None], clips, images)

    def _search(self) -> Matches:
        robots, config = self.robots, self.config
        text = self.index.encoders.sentences(robots.sentences)
        if config.query == "episode":
            lengths = np.diff(robots.image_start)
            rows = robots.image_start[:-1, None] + resample(lengths, config.frames)
            episodes = np.arange(len(robots))
        else:
            rows, _ = robots.window_frames(np.arange(len(robots.step_of_image)), self.history)
            episodes = robots.episode_of_image
        parts = []
        queries = [np.arange(len(rows))]
        if config.exclude_same_group:
            queries = [np.flatnonzero(robots.group[episodes] == group) for group in range(len(robots.groups))]
        for group, chosen in enumerate(queries):
            exclude = [robots.groups[group]] if config.exclude_same_group else []
            for start in range(0, len(chosen), 4096):
                some = chosen[start : start + 4096]
                found = self.index.search(
                    text[robots.sentence[episodes[some]]], self._features.take(rows[some]), config.clips, exclude
                )
                parts.append((some, found))
        order = np.argsort(np.concatenate([some for some, _ in parts]))
        return Matches(
            *(
                np.concatenate([getattr(found, f.name) for _, found in parts])[order]
                for f in dataclasses.fields(Matches)
            )
        )

    def _random(self) -> Matches:
        count = len(self.robots) if self.config.query == "episode" else len(self.robots.step_of_image)
        rng = np.random.default_rng(self.config.seed)
        rows = np.full((count, self.config.clips), -1, dtype=np.int64)
        number = min(self.config.clips, len(self.index))
        for query in range(count):
            rows[query, :number] = rng.choice(len(self.index), number, replace=False)
        nothing = np.zeros(rows.shape, dtype=np.float32)
        return Matches(rows, nothing, nothing, nothing)

    def _warp(self) -> np.ndarray:
        """Return clip frames: (F, J) by robot frame for episode queries, (F, J, T) by window's end for window ones."""
        robots, rows = self.robots, self.matches.rows
        if self.config.query == "window":
            out = np.zeros((len(rows), rows.shape[1], self.history), dtype=np.int64)
            frames, _ = robots.window_frames(np.arange(len(rows)), self.history)
            for anchor in range(len(rows)):
                query = self._features.take(frames[anchor])
                for j, row in enumerate(rows[anchor]):
                    if row >= 0:
                        out[anchor, j] = self.index.align(row, self.history, query, "dtw")
            return out
        out = np.zeros((len(robots.step_of_image), rows.shape[1]), dtype=np.int64)
        for episode in range(len(robots)):
            own = np.arange(robots.image_start[episode], robots.image_start[episode + 1])
            query = np.asarray(self._features.take(own), dtype=np.float32)
            for j, row in enumerate(rows[episode]):
                if row >= 0:
                    out[own, j] = warp(_unit(query) @ self.index.clip_features(row).T)
        return out


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread: what is compared here is too little to share, and waiting for a core costs more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-8)


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is damaged ({error}); make it anew with `arvrm index --overwrite`") from error


def _test(file: Path, expected: dict[str, Any], whole: bool) -> None:
    size = file.stat().st_size
    if "bytes" in expected and size != expected["bytes"]:
        raise ValueError(f"{file.name} has {size} bytes instead of {expected['bytes']}")
    if whole and _checksum(file) != expected["sha256"]:
        raise ValueError(f"{file.name} fails its checksum")


def _checksum(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
