"""Moments found once more, with what stage 1 has learnt: a hand touches where hands are expected to touch.

The scorer of moments knows one episode's motion and images at a time; places know what all clips have in common, but
not when. What both speak for is found more surely, without any truth: of a demonstration, too, since places look at a
robot's image as at any.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from arvrm import processes
from arvrm.episodes import EpisodeHeader, EpisodeStore
from arvrm.interface import UserError
from arvrm.model.places import INDEX, PIXELS, THUMB, PlaceNet
from arvrm.model.text import TextEncoder
from arvrm.moments import Moments, moments_of_store, read_moments
from arvrm.moments.signals import Signals
from arvrm.motions.camera import project
from arvrm.training.data import DataConfig
from arvrm.windows import HAND_KEYPOINTS, EpisodeTable, choose_hand, store_fingerprint

_ANYWHERE = 10.0
"""How often as likely as by chance it is anywhere, whatever is predicted: a prediction may be wrong."""
_BLUR = 1.0
"""Cells by which a heatmap is blurred: moments and places differ by a pixel or two."""


class PlacesSeen:
    """How likely each step of an episode is its touch and its end, by where places expect them in its first image.

    Args:
        net: places.
        encoder: of sentences.
        camera: (3, 4) through which a robot's static camera sees its TCP (`motions.camera.project`); None: robots
            cannot be judged.
    """

    def __init__(self, net: PlaceNet, encoder: TextEncoder, camera: np.ndarray | None = None) -> None:
        self.net, self.encoder, self.camera = net, encoder, camera

    @functools.cached_property
    def identity(self) -> str:
        """What it depends on: the weights and the camera."""
        said = hashlib.sha256(b"" if self.camera is None else np.ascontiguousarray(self.camera).tobytes())
        for name, value in sorted(self.net.state_dict().items()):
            said.update(name.encode() + value.detach().cpu().numpy().tobytes())
        return said.hexdigest()[:16]

    def __call__(self, store: EpisodeStore, header: EpisodeHeader, signals: Signals) -> np.ndarray | None:
        """Return (2, T) logarithms of how many times as likely as by chance, for touch and end at each step of
        `signals`; None where it cannot tell."""
        at = self._acting(store, header, signals)
        if at is None:
            return None
        likely = self._likely(store, header)
        side = likely.shape[-1]
        cell = np.clip(((at / (PIXELS / 2) - 1) / self.net.reach + 1) * (side / 2), 0, side - 1).astype(int)
        return np.log(likely[:, cell[:, 1], cell[:, 0]] + _ANYWHERE)

    @torch.no_grad()
    def _likely(self, store: EpisodeStore, header: EpisodeHeader) -> np.ndarray:
        """(2, h, h): how many times as likely as by chance each cell of the first image is."""
        device = self.net.temperature.device
        image = torch.from_numpy(store.frames(header.id, next(iter(header.cameras)), [0]).copy())
        logits = self.net.logits(image.to(device), self.net.understood(self.encoder, [header.instruction]))
        heat = (logits / self.net.temperature[:, None, None])[0].flatten(1).softmax(1).view_as(logits[0])
        blurred = gaussian_filter(heat.double().cpu().numpy(), (0, _BLUR, _BLUR), mode="constant")
        return blurred * heat.shape[-1] ** 2

    def _acting(self, store: EpisodeStore, header: EpisodeHeader, signals: Signals) -> np.ndarray | None:
        """(T, 2): where the hand or the gripper acts at each step, pixels of 96."""
        if header.embodiment == "human":
            height, width = next(iter(header.cameras.values()))
            arrays = store.arrays(header.id, ("keypoints", "visible"))
            points, _ = choose_hand(arrays["keypoints"], arrays["visible"], HAND_KEYPOINTS)
            where = np.asarray(points[:, (THUMB, INDEX), :2], np.float64).mean(1) * (PIXELS / np.array([width, height]))
        elif self.camera is not None and "robot_obs" in header.arrays:
            where = project(self.camera, store.arrays(header.id, ("robot_obs",))["robot_obs"][:, :3])
        else:
            return None
        return where[np.clip(np.round(signals.rows).astype(int), 0, len(where) - 1)]


@dataclass(frozen=True)
class MomentFinder:
    """How the moments of a run's episodes are found.

    Attributes:
        cache: folder that keeps the moments, shared by runs; None: they are found anew.
        given: moments by episode that are taken as they are.
        seen: what places say of the others' moments; None: they are not asked.
    """

    cache: str | None = None
    given: Mapping[str, Moments] = field(default_factory=dict)
    seen: PlacesSeen | None = None

    @classmethod
    def of(cls, data: DataConfig, *tables: EpisodeTable, progress: bool = False) -> MomentFinder:
        """Return the finder of a run's configuration and tables; says how many moments are given, if `progress`.

        Raises:
            UserError: a file of `data.moments` is damaged, or of other episodes.
        """
        if not data.moments:
            return cls(data.cache)
        stores: dict[str, list[EpisodeStore]] = {}
        for table in tables:
            for id, number in zip(table.ids, table.store, strict=True):
                stores.setdefault(str(id), []).append(table.stores[number])
        given: dict[str, Moments] = {}
        others: set[str] = set()
        for file in data.moments:

            def header_of(id: str, file: str = file) -> EpisodeHeader | None:
                if id not in stores:
                    others.add(id)
                    return None
                first, *more = stores[id]
                if more:
                    raise UserError(f"{file}: {id} is in {first.path} and in {more[0].path}; give one of the stores")
                return first.header(id)

            known = read_moments(file, header_of)
            if not known:
                raise UserError(f"{file}: names no episode of the stores; correct data.moments")
            twice = next((id for id, one in known.items() if given.get(id, one) != one), None)
            if twice is not None:
                raise UserError(f"{file}: {twice} has other moments than in a file before; leave it out of one of them")
            given |= known
        if progress and processes.is_main():
            said = f"moments: {len(given)} of {len(stores)} episodes' are given by data.moments"
            print(said + (f", {len(others)} there are of other episodes" if others else ""), file=sys.stderr)
        return cls(data.cache, given)

    def moments(self, table: EpisodeTable, rows: Sequence[int] | np.ndarray) -> list[Moments]:
        """Find the moments of episodes of a table."""
        by = "" if self.seen is None or self.cache is None else f"-{self.seen.identity}"
        names: list[list[str]] = [[] for _ in table.stores]
        for row in rows:
            if (name := str(table.ids[row])) not in self.given:
                names[table.store[row]].append(name)
        found: list[Mapping[str, Moments]] = []
        for store, ids in zip(table.stores, names, strict=True):
            file = self.cache and Path(self.cache) / f"moments-{store_fingerprint(store)[:32]}{by}.json"
            found.append(moments_of_store(store, file, self.seen, ids))
        named = [(str(table.ids[row]), int(table.store[row])) for row in rows]
        return [self.given[name] if name in self.given else found[number][name] for name, number in named]
