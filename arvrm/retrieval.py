"""The index of human clips: which clips resemble what the robot sees and is told.

    sim(R, H) = cos(z_l of R, z_l of H) + sum over t of cos(z_o,t of R, z_o,t of H)        (AR-VRM, arXiv 2508.07626)

z_l is the frozen text encoder's sentence embedding, z_o,t the CLS feature of a frozen image encoder at frame t; a clip
is resampled to the T frames of the query. Everything is computed once. An index is a folder that needs nothing else:

    index.json            format, encoders, stores with fingerprints, one entry per clip, checksums of the files below
    text.npy              (clips, E) float32, unit length
    frames.npy            (all stored frames, D) float16, unit length
    encoder.safetensors   the image encoder's weights
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
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
from arvrm.windows import EpisodeTable, FrameBank, HumanWindows, decode_frames, store_fingerprint

FORMAT, VERSION = "arvrm-clip-index", 1
LARGE = 50_000
"""Clips from which the search clusters them (inverted file) instead of comparing with all."""


class FrozenEncoders:
    """The text and the image encoder that an index compares with; none of it is trained any more.

    Args:
        text: the text encoder.
        vision: how `image` was built.
        size: pixels at which a conv encoder reads images.
        language_width: width of the language token that modulates a conv encoder with `film`; here it is zero, so that
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
            words = torch.zeros(len(images), self.language_width, device=device) if self.vision.film else None
            cls = self.image(images, words)[0][:, 0].float()
            out.append(torch.nn.functional.normalize(cls, dim=-1).cpu().numpy())
        return np.concatenate(out)

    def _description(self) -> dict[str, Any]:
        return {
            "text": dataclasses.asdict(self.text.config),
            "vision": dataclasses.asdict(self.vision),
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
) -> ClipIndex:
    """Compute the features of every human clip of `stores` and save the index under its name when it is whole.

    Args:
        cache: folder where frame features are kept by encoder and store, so that a second index costs nothing.
        progress: called with a number of frames done.

    Raises:
        UserError: `output` exists (without `overwrite`), or the stores hold no human clip.
    """
    output = Path(output)
    if output.exists():
        if not overwrite:
            raise UserError(f"{output}: exists; pass --overwrite to replace it")
        if not (output / "index.json").is_file():
            raise UserError(f"{output}: is no clip index, so it is not overwritten; give another path")
    opened = [store if isinstance(store, EpisodeStore) else EpisodeStore(store) for store in stores]
    table = EpisodeTable(opened, "human", stride=1)
    features = frame_features(table, encoders, cache, progress)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=output.name, suffix=".tmp"))
    try:
        np.save(temporary / "text.npy", encoders.sentences([table.sentences[i] for i in table.sentence]))
        np.save(temporary / "frames.npy", np.concatenate(features.parts))
        description = encoders.save(temporary)
        clips = [
            {
                "id": identity,
                "store": int(table.store[row]),
                "instruction": table.sentences[table.sentence[row]],
                "task": table.tasks[table.task[row]],
                "group": table.groups[table.group[row]],
                "frames": int(table.image_start[row + 1] - table.image_start[row]),
            }
            for row, identity in enumerate(table.ids)
        ]
        values = {
            "format": FORMAT,
            "version": VERSION,
            "encoders": description,
            "stores": [{"path": str(s.path), "fingerprint": store_fingerprint(s)} for s in opened],
            "files": {name: _checksum(temporary / name) for name in ("text.npy", "frames.npy", "encoder.safetensors")},
            "clips": clips,
        }
        (temporary / "index.json").write_text(json.dumps(values) + "\n")
        if output.exists():
            shutil.rmtree(output)
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return ClipIndex.load(output)


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


class ClipIndex:
    """A saved index, ready to search.

    Attributes:
        path: its folder.                               ids, instructions, tasks, groups: one per clip.
        text: (clips, E) float32 of unit length.        frames: (frames, D) float16 of unit length.
        start: (clips + 1,) where each clip's frames begin.
        stores: [{"path", "fingerprint"}]; `store` (clips,) says which is a clip's.
        encoder_hash: of the encoders the features are from.
    """

    def __init__(self, path: Path, values: dict[str, Any], text: np.ndarray, frames: np.ndarray) -> None:
        clips = values["clips"]
        self.path, self.text, self.frames = path, text, frames
        self.ids = [clip["id"] for clip in clips]
        self.instructions = [clip["instruction"] for clip in clips]
        self.tasks = [clip["task"] for clip in clips]
        self.groups = [clip["group"] for clip in clips]
        self.store = np.array([clip["store"] for clip in clips], dtype=np.int64)
        self.stores: list[dict[str, str]] = values["stores"]
        self.start = np.concatenate([[0], np.cumsum([clip["frames"] for clip in clips])]).astype(np.int64)
        self.encoder_hash: str = values["encoders"]["hash"]
        self._encoders = values["encoders"]
        self._searchers: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def load(cls, path: str | Path, encoder_hash: str | None = None) -> ClipIndex:
        """Read an index.

        Args:
            encoder_hash: refuse an index whose features are from another encoder than this.

        Raises:
            UserError: there is none, it is damaged or of another version, or the encoder differs.
        """
        path = Path(path)
        if not (path / "index.json").is_file():
            what = "is no clip index" if path.exists() else "does not exist"
            raise UserError(f"{path}: {what}; make one with `arvrm index`")
        try:
            values = json.loads((path / "index.json").read_text())
            if (values["format"], values["version"]) != (FORMAT, VERSION):
                raise ValueError(f"format {values['format']!r} version {values['version']}, expected {VERSION}")
            for name, checksum in values["files"].items():
                if _checksum(path / name) != checksum:
                    raise ValueError(f"{name} fails its checksum")
            text = np.load(path / "text.npy")
            frames = np.load(path / "frames.npy", mmap_mode="r")
            index = cls(path, values, text, frames)
            if len(text) != len(index) or len(frames) != index.start[-1]:
                raise ValueError(f"{len(index)} clips but {len(text)} texts and {len(frames)} frames")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: is damaged ({error}); make it anew with `arvrm index --overwrite`") from error
        if encoder_hash is not None and encoder_hash != index.encoder_hash:
            raise UserError(
                f"{path}: its features are from encoder {index.encoder_hash}, not {encoder_hash}; make the index anew "
                "with this checkpoint"
            )
        return index

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
        faiss = _faiss()
        text, frames = np.atleast_2d(text).astype(np.float32), np.asarray(frames, dtype=np.float32)
        frames = frames[None] if frames.ndim == 2 else frames
        if text.shape[1] != self.text.shape[1] or frames.shape[2] != self.frames.shape[1] or len(text) != len(frames):
            raise UserError(
                f"{self.path}: query features {text.shape} and {frames.shape} do not fit E={self.text.shape[1]}, "
                f"D={self.frames.shape[1]}; compute them with the index's own encoders"
            )
        text, frames = _unit(text), _unit(frames)
        excluded = np.flatnonzero(np.isin(self.groups, list(exclude_groups))).astype(np.int64)
        count = min(clips, len(self) - len(excluded))
        rows = np.full((len(text), clips), -1, dtype=np.int64)
        if count > 0:
            searcher = self._searcher(frames.shape[1])
            query = np.concatenate([text, frames.reshape(len(frames), -1)], axis=1)
            kind = faiss.SearchParametersIVF if isinstance(searcher, faiss.IndexIVF) else faiss.SearchParameters
            options = {"nprobe": searcher.nprobe} if isinstance(searcher, faiss.IndexIVF) else {}
            if len(excluded):
                options["sel"] = faiss.IDSelectorNot(faiss.IDSelectorBatch(excluded))
            _, found = searcher.search(np.ascontiguousarray(query), count, params=kind(**options))
            rows[:, :count] = found
        known = rows >= 0
        language = np.where(known, np.einsum("qjd,qd->qj", self.text[rows], text), 0).astype(np.float32)
        resampled = self._resampled(frames.shape[1])
        visual = np.zeros_like(language)
        for j in range(clips):
            visual[:, j] = np.einsum("qtd,qtd->q", resampled(rows[:, j]), frames)
        visual = np.where(known, visual, 0).astype(np.float32)
        return Matches(rows, np.where(known, language + visual, -np.inf).astype(np.float32), language, visual)

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

    def _resampled(self, frames: int) -> Callable[[np.ndarray], np.ndarray]:
        lengths = np.diff(self.start)
        picks = self.start[:-1, None] + np.stack([resample(length, frames) for length in lengths])
        return lambda rows: np.asarray(self.frames[picks[rows]], dtype=np.float32)

    def _searcher(self, frames: int) -> Any:
        """Exact inner products over concatenated features, or, for many clips, an inverted file over them."""
        faiss = _faiss()
        if frames not in self._searchers:
            of = self._resampled(frames)
            width = self.text.shape[1] + frames * self.frames.shape[1]
            every = np.arange(len(self))

            def vectors(rows: np.ndarray) -> np.ndarray:
                return np.ascontiguousarray(np.concatenate([self.text[rows], of(rows).reshape(len(rows), -1)], axis=1))

            if len(self) < LARGE:
                searcher = faiss.IndexFlatIP(width)
            else:
                lists = int(4 * np.sqrt(len(self)))
                searcher = faiss.index_factory(width, f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
                searcher.train(vectors(np.random.default_rng(0).permutation(every)[: 40 * lists]))
                searcher.nprobe = max(8, lists // 16)
            for start in range(0, len(self), 8192):
                searcher.add(vectors(every[start : start + 8192]))
            self._searchers[frames] = searcher
        return self._searchers[frames]


def resample(length: int, frames: int) -> np.ndarray:
    """Return (frames,) int64 indices spread uniformly over 0..length-1, both ends included; one frame: the middle."""
    if frames == 1:
        return np.array([(length - 1) // 2])
    return np.round(np.linspace(0, length - 1, frames)).astype(np.int64)


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
            rows = robots.image_start[:-1, None] + np.stack([resample(length, config.frames) for length in lengths])
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


def _faiss() -> Any:
    # Its loader tells which instruction sets it looked for; another library's logging set-up may let that through.
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    import faiss

    return faiss


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-8)


def _checksum(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
