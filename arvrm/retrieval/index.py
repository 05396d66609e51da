"""The index of human clips: which clips resemble what the robot sees and is told.

    sim(R, H) = cos(z_l of R, z_l of H) + sum over t of cos(z_o,t of R, z_o,t of H)        (AR-VRM, arXiv 2508.07626)

z_l is the frozen text encoder's sentence embedding, z_o,t the CLS feature of a frozen image encoder at frame t; a clip
is resampled to the T frames of the query. Everything is computed once. An index is a folder that needs nothing else:

    index.json            format, encoders, stores with fingerprints, how to search, sizes and checksums of the files
    clips.npz             ids, instructions, tasks, groups, stores and lengths of the clips, as arrays
    text.npy              (clips, E) float32, unit length
    frames.npy            (all stored frames, D) float16, unit length
    encoder.safetensors   the image encoder's weights
    coarse.faiss, basis.npy, mean.npy    of many clips: what finds those worth comparing (shortlist.py)

Features stay on the disk and are mapped into memory. Of few clips, all are compared with a query. Of many, a short list
is found by principal components, and compared by the formula above, so that the similarities returned are exact and
only the choice of the clips is approximate. Building the index measures how good that choice is.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from arvrm.episodes import EpisodeStore
from arvrm.interface import UserError
from arvrm.model.threads import torch_threads
from arvrm.retrieval.align import resample, warp
from arvrm.retrieval.encoders import FrozenEncoders
from arvrm.retrieval.index_file import read_index_file
from arvrm.retrieval.shortlist import Shortlist, blocks, load_faiss
from arvrm.retrieval.table import Categorical, Clips
from arvrm.windows import store_fingerprint
from arvrm.windows.headers import UNREADABLE_ARRAYS

FLAT_BYTES = 2 << 30
"""An exact search keeps the vectors of all clips in memory up to this size, and else reads them for every search."""
TESTED_AT_LOADING = 256 << 20
"""Files up to this size have their checksum tested when an index is opened; of larger ones the size, and `verify`."""


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
        self.instructions, self.tasks = Categorical(*clips.instructions), Categorical(*clips.tasks)
        self.groups = Categorical(*clips.groups)
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
        with damage_named(path):
            values = read_index_file(path)
            for name, expected in values["files"].items():
                size = (path / name).stat().st_size
                _test(path / name, expected, size <= TESTED_AT_LOADING or values["version"] == 1)
            clips = Clips.of_json(values["clips"]) if values["version"] == 1 else Clips.load(path / "clips.npz")
            text, frames = (np.load(path / name, mmap_mode="r") for name in ("text.npy", "frames.npy"))
            clips.check(len(values["stores"]), len(frames))
            for name, features, kind in (("text.npy", text, "float32"), ("frames.npy", frames, "float16")):
                if features.ndim != 2 or features.dtype.name != kind or 0 in features.shape:
                    raise ValueError(f"{name} holds {features.dtype} {features.shape}, not {kind} features")
                if features.nbytes <= TESTED_AT_LOADING and not _are_units(features):
                    raise ValueError(f"{name} has features that are no numbers, or not of length 1")
            coarse = Shortlist.load(path) if values.get("search", {}).get("kind") == "approximate" else None
            index = cls(path, values, clips, text, frames, coarse)
            if len(text) != len(index) or len(frames) != index.start[-1]:
                raise ValueError(f"{len(index)} clips but {len(text)} texts and {len(frames)} frames")
            if coarse is not None:
                expected = text.shape[1] + index.settings["frames"] * frames.shape[1]
                if len(coarse) != len(index) or len(coarse.mean) != expected:
                    raise ValueError("the coarse index is not of these clips")
        if encoder_hash is not None and encoder_hash != index.encoder_hash:
            raise UserError(
                f"{path}: its features are from encoder {index.encoder_hash}, not {encoder_hash}; make the index anew "
                "with this checkpoint"
            )
        return index

    def verify(self) -> None:
        """Test the checksums of all files and all features, which reads everything.

        Raises:
            UserError: names the first file that is damaged.
        """
        with damage_named(self.path):
            for name, expected in self._files.items():
                _test(self.path / name, expected, True)
            for name, features in (("text.npy", self.text), ("frames.npy", self.frames)):
                if not _are_units(features):
                    raise ValueError(f"{name} has features that are no numbers, or not of length 1")
            self.encoders.hash  # noqa: B018  # builds them

    @cached_property
    def encoders(self) -> FrozenEncoders:
        """The encoders its features are from; queries must go through them.

        Raises:
            UserError: they are damaged.
        """
        with damage_named(self.path):
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
        text, frames = normalised(text), normalised(frames)
        excluded = self.groups.rows_of(exclude_groups)
        count = min(clips, len(self) - len(excluded))
        rows = np.full((len(text), clips), -1, dtype=np.int64)
        if count > 0 and self.coarse is not None:
            rows[:, :count] = self._shortlisted(self.coarse, text, frames, count, excluded)
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
            self.release_pages()
        return found

    def release_pages(self) -> None:
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

    def _shortlisted(
        self, coarse: Shortlist, text: np.ndarray, frames: np.ndarray, count: int, excluded: np.ndarray
    ) -> np.ndarray:
        query = self.query(text, frames, self.settings["frames"])
        size = min(max(self.settings["shortlist"], count), len(self) - len(excluded))
        found = coarse.search(query, size, self.settings["probes"], excluded)
        short = np.flatnonzero((found >= 0).sum(axis=1) < count)
        if len(short):  # the probed clusters hold too few that are not excluded
            found[short] = coarse.search(query[short], size, coarse.lists, excluded)
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
        # What is compared here is too little to share: waiting for a core costs more.
        with torch_threads(1):
            for query, some in enumerate(np.maximum(rows, 0)):
                wanted = torch.from_numpy(np.ascontiguousarray(frames[query]).reshape(-1))
                for part, terms in zip(blocks(some, few), blocks(visual[query], few), strict=True):
                    own = torch.from_numpy(self.resampled(part, frames.shape[1]))
                    terms[:] = (own.view(len(part), -1) @ wanted).numpy()
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
        return warp(normalised(np.asarray(query, dtype=np.float32)) @ self.clip_features(row).T, part=True)


def normalised(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-8)


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except UNREADABLE_ARRAYS as error:
        raise UserError(f"{path}: is damaged ({error}); make it anew with `arvrm index --overwrite`") from error


def _are_units(features: np.ndarray) -> bool:
    """Whether all rows are finite and of length 1, but for rounding."""
    for rows in blocks(np.arange(len(features)), 65_536):
        part = np.asarray(features[rows], dtype=np.float32)
        if not (np.abs(np.einsum("nd,nd->n", part, part) - 1) < 0.05).all():  # false of NaN
            return False
    return True


def _test(file: Path, expected: dict[str, Any], whole: bool) -> None:
    size = file.stat().st_size
    if "bytes" in expected and size != expected["bytes"]:
        raise ValueError(f"{file.name} has {size} bytes instead of {expected['bytes']}")
    if whole and checksum(file) != expected["sha256"]:
        raise ValueError(f"{file.name} fails its checksum")


def checksum(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
