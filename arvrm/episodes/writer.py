"""Writing a store so that a run killed at any moment leaves whole episodes only."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lmdb

from arvrm import robots
from arvrm.episodes.database import MAP_STEP, TABLES, Database, remove_store
from arvrm.episodes.records import (
    JPEG_QUALITY,
    EncodedEpisode,
    difference,
    encode_episode,
    full_manifest,
    json_bytes,
    parse_counts,
    parse_manifest,
)
from arvrm.episodes.schema import Episode
from arvrm.episodes.store import EpisodeStore
from arvrm.files import clear_folders, disk_error, locked, reporting
from arvrm.interface import UserError
from arvrm.robots.described import described_as

_FULL = 1 << 20


class EpisodeWriter:
    """Appends episodes to a store; each append is one transaction, so a killed run leaves whole episodes only.

    The store is locked for other processes until the writer is closed.

    Args:
        path: the store's folder, made if missing.
        manifest: JSON-able: how the episodes are made (source, configuration, seed ...). A resumed store must agree.
            `robot_description` (`robots.described.described_as`) is added at the first episode.
        resume: continue an existing store; `has(id)` says what is there.
        overwrite: replace an existing store.
        jpeg_quality: 1 to 100, kept in the manifest.
        resumable: whoever writes takes `resume`, for what is said of a full disk.

    Raises:
        UserError: the store exists (without resume or overwrite), is no store, was made otherwise, is being written
            by another process, or cannot be made.
    """

    def __init__(
        self,
        path: str | Path,
        manifest: dict[str, Any],
        resume: bool = False,
        overwrite: bool = False,
        jpeg_quality: int = JPEG_QUALITY,
        resumable: bool = True,
    ) -> None:
        self.path = Path(path)
        self._resumable = resumable
        if resume and overwrite:
            raise UserError(f"{path}: --resume and --overwrite exclude each other; pass one")
        if not isinstance(jpeg_quality, int) or not 1 <= jpeg_quality <= 100:
            raise UserError(f"{path}: JPEG quality {jpeg_quality!r}; choose 1 to 100")
        self.jpeg_quality = jpeg_quality
        wanted = full_manifest(self.path, manifest, jpeg_quality)
        with contextlib.ExitStack() as held:
            held.enter_context(locked(self.path))
            exists = self._prepare_folder(resume, overwrite)
            self._database = Database.writing(self.path)
            held.callback(self._database.close)
            self._begin(wanted, exists)
            self._held = held.pop_all()

    def _prepare_folder(self, resume: bool, overwrite: bool) -> bool:
        data = self.path / "data.mdb"
        with reporting(self.path, None):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            clear_folders(self.path)
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: is a file; an episode store is a folder, choose another path")
        if data.exists():
            if overwrite:
                remove_store(self.path)
            elif not resume:
                raise UserError(f"{self.path}: exists already; pass --resume to continue or --overwrite to replace it")
        elif self.path.exists() and {file.name for file in self.path.iterdir()} - {"lock.mdb"}:
            raise UserError(f"{self.path}: is a folder with other files; choose another path for the store")
        with reporting(self.path, None):
            Path(os.path.realpath(self.path)).mkdir(exist_ok=True)  # a link stays one
        return data.exists()

    def _begin(self, wanted: dict[str, Any], exists: bool) -> None:
        stored, counts = None, b"{}"
        if self._database.tables:
            with self._database.begin() as txn:
                stored = txn.get(b"manifest", db=self._database.tables[b"meta"])
                stored = None if stored is None else bytes(stored)
                counts = bytes(txn.get(b"counts", b"{}", db=self._database.tables[b"meta"]))
        self._counts = Counter(parse_counts(self.path, counts))
        self._manifest: dict[str, Any] = wanted
        self._stored: dict[str, Any] | None = None  # the manifest in the store; a new one's comes with the first append
        if stored is None:
            if exists and self._database.entries(b"headers"):
                raise UserError(f"{self.path}: has episodes but no manifest; it is damaged, use --overwrite")
            return
        self._manifest = self._stored = old = parse_manifest(self.path, stored)
        own = {"complete", "robot"} | ({"robot_description"} - set(wanted))
        for key in sorted({*wanted, *old} - own):
            if wanted.get(key) != old.get(key):
                raise UserError(
                    f"{self.path}: was made with {difference(key, old.get(key), wanted.get(key))}; "
                    "give the same settings to --resume, or --overwrite"
                )
        self._commit([], complete=False)

    def has(self, id: str) -> bool:
        """Whether the store holds this episode."""
        if not self._database.tables:
            return False
        with self._database.begin() as txn:
            return txn.get(id.encode(), db=self._database.tables[b"headers"]) is not None

    def __len__(self) -> int:
        return self._database.entries(b"headers")

    def append(self, episode: Episode) -> None:
        """Add one episode: all of it, or nothing.

        Raises:
            UserError: the episode is invalid, its id is taken, its robot is another than the store's, or the disk is
                full.
        """
        self.append_encoded(encode_episode(episode, self.jpeg_quality))

    def append_encoded(self, *encoded: EncodedEpisode, complete: bool = False) -> None:
        """Add episodes that `encode_episode` made, in one transaction; errors as in `append`.

        Args:
            complete: these are the last, so that `close` need not say so in a transaction, and a wait, of its own.
        """
        records, added = [], Counter[str]()
        for item in encoded:
            records.append((b"headers", item.id.encode(), item.header))
            records += [(b"arrays", array_key, array) for array_key, array in item.arrays]
            records += [(b"images", image_key, image) for image_key, image in item.images]
            added.update(episodes=1, steps=item.steps, frames=item.frames)
        self._commit(records, complete, self._robot_with(encoded), added)

    def _robot_with(self, encoded: Sequence[EncodedEpisode]) -> str:
        """Return the store's robot after these episodes, "" if there is none; raises UserError if they are two."""
        robot = self._manifest.get("robot", "")
        for item in encoded:
            if item.robot and item.robot != robot:
                robot = robot or (EpisodeStore(self.path).robot_name if len(self) else "") or item.robot
                if item.robot != robot:
                    raise UserError(
                        f"{self.path}: holds episodes of robot {robot!r}, episode {item.id!r} is of {item.robot!r}; "
                        "give each robot a store of its own"
                    )
        return robot

    def _commit(
        self,
        records: list[tuple[bytes, bytes, bytes]],
        complete: bool,
        robot: str = "",
        added: Counter[str] | None = None,
    ) -> None:
        """Store records, what they add to the counts and what has changed of the manifest.

        It is one transaction, since each waits for the disk.
        """
        env, manifest = self._database.env, {**self._manifest, "complete": complete}
        if robot:
            manifest["robot"] = robot
            if "robot_description" not in manifest and (description := described_as(robots.known(robot))):
                manifest["robot_description"] = description
        if manifest != self._stored:
            records = [(b"meta", b"manifest", json_bytes(manifest)), *records]
        if not records:
            return
        counts = self._counts
        while True:
            try:
                with env.begin(write=True) as txn:
                    tables = self._database.tables or {name: env.open_db(name, txn=txn) for name in TABLES}
                    for table, key, value in records:
                        if not txn.put(key, value, db=tables[table], overwrite=table == b"meta"):
                            taken = key.split(b"\0")[0].decode()
                            raise UserError(f"{self.path}: episode {taken!r} is there already; give it another id")
                    if added:
                        # Those of the store: an interrupt may have come between an append and what it did in memory.
                        stored = bytes(txn.get(b"counts", b"{}", db=tables[b"meta"]))
                        counts = Counter(parse_counts(self.path, stored))
                        counts.update(added)
                        txn.put(b"counts", json_bytes(counts), db=tables[b"meta"])
                self._database.tables, self._manifest, self._stored = tables, manifest, manifest
                self._counts = counts
                return
            except lmdb.MapFullError:
                size = env.info()["map_size"]
                env.set_mapsize(min(2 * size, size + MAP_STEP))
            except (lmdb.Error, OSError) as error:
                reason = disk_error(error) or error
                if shutil.disk_usage(self.path).free < _FULL:  # LMDB takes what was cut off for an input/output error
                    reason = os.strerror(errno.ENOSPC)
                remedy = "free space on the disk"
                if self._resumable:
                    remedy += f" and pass --resume, the {self._counts['episodes']} episodes before are safe"
                raise UserError(f"{self.path}: could not be written ({reason}); {remedy}") from error

    def close(self, complete: bool = True) -> None:
        """Close the store. `complete` says that nothing is missing; an exception in a `with` block says the reverse."""
        with self._held:
            if not self._database.closed:
                self._commit([], complete)

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            return
        with contextlib.suppress(UserError):  # what is wrong already is to be said
            self.close(complete=False)
