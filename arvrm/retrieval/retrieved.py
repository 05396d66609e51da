"""Clips beside robot windows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from arvrm.config import bounded, check_bounds
from arvrm.files import replacing
from arvrm.interface import HumanBatch, UserError
from arvrm.retrieval.align import resample, warp
from arvrm.retrieval.index import ClipIndex, Matches, normalised
from arvrm.retrieval.shortlist import blocks
from arvrm.windows import EpisodeTable, FrameBank, HumanWindows, store_fingerprint
from arvrm.windows.headers import UNREADABLE_ARRAYS


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
    """

    clips: int = bounded(4, least=1, most=10**4)
    query: Literal["episode", "window"] = "episode"
    frames: int = bounded(8, least=1, most=4096)
    align: Literal["progress", "dtw", "uniform"] = "progress"
    choice: Literal["similar", "random"] = "similar"
    seed: int = bounded(0, least=0)

    __post_init__ = check_bounds


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
        # Settings that are gone stay in the key, so that what older versions have kept is still found.
        settings = dataclasses.asdict(config) | {"exclude_same_group": False, "refresh": False}
        key = [index.encoder_hash, [s["fingerprint"] for s in index.stores], settings, history]
        key += [store_fingerprint(store) for store in robots.stores]
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        file = Path(cache) / f"retrieval-{name}.npz" if cache is not None else None
        if file is not None and (kept_before := self._kept(file)) is not None:
            self.matches, self.warped = kept_before
            return
        self.matches = self._random() if config.choice == "random" else self._search()
        self.warped = self._warp() if config.align == "dtw" else None
        if file is not None:
            kept: dict[str, Any] = dataclasses.asdict(self.matches)
            if self.warped is not None:
                kept["warped"] = self.warped
            with replacing(file) as partial, open(partial, "wb") as stream:
                np.savez(stream, **kept)

    def _kept(self, file: Path) -> tuple[Matches, np.ndarray | None] | None:
        """Return matches and warping as a cache has them; None: it has none that is whole and of these clips."""
        queries = self.robots.frames if self.config.query == "window" else len(self.robots)
        shape = (queries, self.config.clips)
        try:
            with np.load(file, allow_pickle=False) as found:
                matches = Matches(*(found[name] for name in ("rows", "total", "language", "visual")))
                warped = found["warped"] if "warped" in found.files else None
        except UNREADABLE_ARRAYS:
            return None
        kinds = ("int64", "float32", "float32", "float32")
        for values, kind in zip(vars(matches).values(), kinds, strict=True):
            if values.shape != shape or values.dtype.name != kind:
                return None
        if not ((matches.rows >= -1) & (matches.rows < len(self.index))).all():
            return None
        return (matches, warped) if (warped is not None) == (self.config.align == "dtw") else None

    def of(self, anchors: np.ndarray) -> np.ndarray:
        """Return the rows (B, J) of the index that accompany the windows ending at `anchors`; -1: none."""
        return self.matches.rows[anchors if self.config.query == "window" else self.robots.episode_of_image[anchors]]

    def batch(self, anchors: np.ndarray, images: bool = True) -> HumanBatch:
        """Return the clips of the windows that end at `anchors`, aligned in time with them."""
        clips = self.of(anchors)
        known = clips >= 0
        clips = np.maximum(clips, 0)
        aligned = {"progress": self._by_progress, "uniform": self._spread, "dtw": self._by_warping}
        rows, mask = aligned[self.config.align](anchors, clips)
        return self.humans.gather(rows, mask & known[..., None], clips, images)

    def _by_progress(self, anchors: np.ndarray, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return rows of the human table and which are no padding, (B, J, T) each; so do the other two."""
        table, robots = self.humans.table, self.robots
        episode = robots.episode_of_image[anchors]
        first, end = robots.step_start[episode], robots.step_start[episode + 1]
        progress = (robots.step_of_image[anchors] - first) / np.maximum(end - 1 - first, 1)
        length = np.diff(table.image_start)[clips]
        last = table.image_start[clips] + np.round(progress[:, None] * (length - 1)).astype(np.int64)
        rows, mask = table.window_frames(last.reshape(-1), self.history)
        return rows.reshape(*clips.shape, -1), mask.reshape(*clips.shape, -1)

    def _spread(self, anchors: np.ndarray, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        table = self.humans.table
        share = np.linspace(0, 1, self.history) if self.history > 1 else np.array([0.5])
        length = np.diff(table.image_start)[clips]
        local = np.round(share * (length[..., None] - 1)).astype(np.int64)
        return table.image_start[clips][..., None] + local, np.ones((*clips.shape, self.history), dtype=bool)

    def _by_warping(self, anchors: np.ndarray, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert self.warped is not None
        frames, mask = self.robots.window_frames(anchors, self.history)
        # (B, T, J) -> (B, J, T); with query "window" a window's frames are warped by its own search.
        warped = self.warped[anchors] if self.config.query == "window" else self.warped[frames].swapaxes(1, 2)
        rows = self.humans.table.image_start[clips][..., None] + warped
        return rows, np.broadcast_to(mask[:, None, :], rows.shape)

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
        parts = [
            self.index.search(text[robots.sentence[episodes[some]]], self._features.take(rows[some]), config.clips)
            for some in blocks(np.arange(len(rows)))
        ]
        return Matches(
            *(np.concatenate([getattr(found, field.name) for found in parts]) for field in dataclasses.fields(Matches))
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
                    out[own, j] = warp(normalised(query) @ self.index.clip_features(row).T)
        return out
