"""Reading a store at random."""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from arvrm import robots
from arvrm.episodes.database import Database
from arvrm.episodes.records import EncodedEpisode, array_key, image_key, parse_counts, parse_manifest, unpack_header
from arvrm.episodes.schema import EncodedImages, Episode, EpisodeHeader
from arvrm.interface import Robot, UserError
from arvrm.robots import CALVIN

_KEPT_HEADERS, _KEPT_TESTED = 512, 16_384
"""Headers, and names of tested arrays, that a reader remembers: some 3 MB, whatever the store's size."""


class EpisodeStore:
    """Reads a store at random. Opening reads the manifest only; safe to use after a fork and to pass to processes.

    Readers take no locks: read a store when its writer is done or elsewhere; an overtaken read fails its checksum.

    Raises:
        UserError: the folder is missing, no store, truncated, damaged, or of another version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._database: Database | None = None
        self._ids: tuple[str, ...] | None = None
        self._robot_name: str | None = None
        self._headers: dict[str, EpisodeHeader] = {}
        self._tested: set[bytes] = set()
        self._open()

    def _open(self) -> Database:
        database = self._database
        if database is None or database.closed or database.pid != os.getpid():
            if database is not None:  # the file may be another than the one read before
                self._forget()
            database = Database.reading(self.path)
            if not database.tables:
                raise UserError(f"{self.path}: holds nothing yet; read it when its writer is done")
            with database.begin() as txn:
                stored = txn.get(b"manifest", db=database.tables[b"meta"])
            if stored is None:
                raise UserError(f"{self.path}: has no manifest; its writer was stopped at once, write it again")
            parse_manifest(self.path, bytes(stored))
            self._database = database
        return database

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def __len__(self) -> int:
        return self._open().entries(b"headers")

    def __contains__(self, id: str) -> bool:
        return self._get(b"headers", id.encode()) is not None

    @property
    def manifest(self) -> dict[str, Any]:
        """What the writer was given, and `format`, `version`, `jpeg`, `complete`, `counts`, `robot` if it has one.

        `robot_description` is there if that robot is described by numbers and words alone (`robots.described`).
        """
        database = self._open()
        with database.begin() as txn:
            stored = bytes(txn.get(b"manifest", db=database.tables[b"meta"]) or b"")
            counts = parse_counts(self.path, bytes(txn.get(b"counts", db=database.tables[b"meta"]) or b"{}"))
        manifest = parse_manifest(self.path, stored)
        return {**manifest, "counts": {"episodes": 0, "steps": 0, "frames": 0, **counts}}

    @property
    def robot_name(self) -> str:
        """Whose robot episodes it holds, "" where none; a store from before robots had names holds CALVIN's."""
        name = self._robot_name
        if name is None:
            name = self.manifest.get("robot")
        if name is None:
            name = CALVIN.name if any(header.embodiment == "robot" for header in self.headers()) else ""
        self._robot_name = name
        return name

    @property
    def robot(self) -> Robot | None:
        """As `robot_name`, as the store describes it; raises UserError where neither store nor program does."""
        if not self.robot_name:
            return None
        return robots.stored(self.robot_name, self.manifest.get("robot_description"), str(self.path))

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids, sorted by their UTF-8 bytes; read once, at first use."""
        database = self._open()
        if self._ids is None:
            with database.begin() as txn, txn.cursor(db=database.tables[b"headers"]) as cursor:
                self._ids = tuple(bytes(key).decode() for key in cursor.iternext(keys=True, values=False))
        return self._ids

    @property
    def revision(self) -> str:
        """What changes whenever the store is written: cheap to read, and of this file at this place only."""
        stat, info = (self.path / "data.mdb").stat(), self._open().env.info()
        return f"{self.path.resolve()}\t{stat.st_ino}\t{stat.st_size}\t{stat.st_mtime_ns}\t{info['last_txnid']}"

    def headers(self) -> Iterator[EpisodeHeader]:
        """All headers in the order of `ids`, one after another, without reading arrays or images."""
        after: bytes | None = None
        while True:
            database, chunk = self._open(), []
            with database.begin() as txn, txn.cursor(db=database.tables[b"headers"]) as cursor:
                # One transaction for many, a tenth of the time; none is open while the caller works.
                more = cursor.first() if after is None else cursor.set_range(after + b"\0")
                while more and len(chunk) < 1000:
                    after = bytes(cursor.key())
                    id = after.decode()
                    chunk.append(self._headers.get(id) or self._unpack(id, self._unseal(cursor.value(), id, "header")))
                    more = cursor.next()
            if not chunk:
                return
            for header in chunk[: _KEPT_HEADERS - len(self._headers)]:
                self._headers.setdefault(header.id, header)
            yield from chunk

    def header(self, id: str) -> EpisodeHeader:
        """What the episode is. Raises UserError where there is none of this id."""
        self._open()
        header = self._headers.get(id)
        if header is None:
            header = self._unpack(id, self._read(b"headers", id.encode(), id))
            if len(self._headers) >= _KEPT_HEADERS:
                del self._headers[next(iter(self._headers))]  # the oldest
            self._headers[id] = header
        return header

    def _unpack(self, id: str, content: memoryview) -> EpisodeHeader:
        return unpack_header(self._place(id, "header"), content)

    def arrays(
        self, id: str, names: Iterable[str] | None = None, rows: slice | Sequence[int] | np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Read arrays of an episode (all, or those named; all rows, or those asked for); each is a copy of its own.

        An array's checksum is tested at its first read by this object, so that windows of a long array stay cheap.

        Raises:
            UserError: no such episode or array, or the record is damaged.
        """
        header = self.header(id)
        wanted = tuple(header.arrays) if names is None else tuple(names)
        for name in wanted:
            if name not in header.arrays:
                raise UserError(f"{self._place(id)}: has no array {name!r}; it has {', '.join(header.arrays)}")
        database, found = self._open(), {}
        with database.begin() as txn:
            for name in wanted:
                dtype, shape = header.arrays[name]
                key = array_key(id, name)
                content = self._unseal(txn.get(key, db=database.tables[b"arrays"]), id, name, key in self._tested)
                if len(self._tested) >= _KEPT_TESTED:
                    self._tested.clear()  # they are tested again
                self._tested.add(key)
                try:
                    view = np.frombuffer(content, dtype).reshape(shape)
                except ValueError as error:
                    place = self._place(id, name)
                    raise UserError(f"{place}: does not fit its header; write the store again") from error
                found[name] = np.array(view if rows is None else view[rows])
        return found

    def frames(self, id: str, camera: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Decode images of one camera.

        Args:
            rows: indices into the episode's images (0..F-1, not steps), in any order, repeats allowed.
        Returns:
            (len(rows), H, W, 3) uint8 RGB.
        Raises:
            UserError: no such episode, camera or row, or a damaged image.
        """
        header = self.header(id)
        if camera not in header.cameras:
            raise UserError(f"{self._place(id)}: has no camera {camera!r}; it has {', '.join(header.cameras)}")
        height, width = header.cameras[camera]
        out = np.empty((len(rows), height, width, 3), np.uint8)
        done: dict[int, int] = {}
        database = self._open()
        with database.begin() as txn:
            for i, row in enumerate(int(row) for row in rows):
                if row in done:
                    out[i] = out[done[row]]
                    continue
                if not 0 <= row < header.frames:
                    raise UserError(f"{self._place(id, camera)}: has no frame {row}; it has 0..{header.frames - 1}")
                raw = txn.get(image_key(id, camera, row), db=database.tables[b"images"])
                jpeg = self._unseal(raw, id, f"{camera} frame {row}")
                try:
                    if simplejpeg.decode_jpeg_header(jpeg)[:2] != (height, width):
                        raise ValueError("another size than the header's")
                    simplejpeg.decode_jpeg(jpeg, "RGB", buffer=out[i])
                except ValueError as error:
                    place = self._place(id, f"{camera} frame {row}")
                    raise UserError(f"{place}: is no valid JPEG ({error}); write the store again") from error
                done[row] = i
        return out

    def episode(self, id: str) -> Episode:
        """Read a whole episode."""
        header = self.header(id)
        if header.embodiment == "robot" and "robot_description" in self.manifest:
            _ = self.robot  # whoever writes the episode elsewhere finds it by its name
        images: dict[str, np.ndarray | EncodedImages] = {
            camera: self.frames(id, camera, range(header.frames)) for camera in header.cameras
        }
        return Episode(
            header.id,
            header.embodiment,
            header.instruction,
            header.task,
            header.scene,
            header.source,
            header.group,
            header.fps,
            self.arrays(id),
            images,
            header.image_steps,
            header.meta,
            self.robot_name if header.embodiment == "robot" else "",
        )

    def encoded(self, id: str) -> EncodedEpisode:
        """Read an episode as its records, checksums tested, images not decoded."""
        header, database = self.header(id), self._open()
        robot = self.robot_name if header.embodiment == "robot" else ""
        with database.begin() as txn:

            def records(table: bytes, keys: Iterable[tuple[bytes, str]]) -> tuple[tuple[bytes, bytes], ...]:
                found = []
                for key, what in keys:
                    raw = txn.get(key, db=database.tables[table])
                    self._unseal(raw, id, what)
                    found.append((key, bytes(raw or b"")))
                return tuple(found)

            images = (
                (image_key(id, camera, row), f"{camera} frame {row}")
                for camera in header.cameras
                for row in range(header.frames)
            )
            return EncodedEpisode(
                id,
                records(b"headers", [(id.encode(), "header")])[0][1],
                records(b"arrays", ((array_key(id, name), name) for name in header.arrays)),
                records(b"images", images),
                header.steps,
                header.frames,
                robot,
            )

    def verify(self) -> None:
        """Read every record, test its checksum and that nothing is missing or left over.

        Raises:
            UserError: names the first record that is damaged, missing or without an episode.
        """
        arrays = images = 0
        for id in self.ids:
            header, encoded = self.header(id), self.encoded(id)
            for (name, (dtype, shape)), (_, record) in zip(header.arrays.items(), encoded.arrays, strict=True):
                size = math.prod(shape) * np.dtype(dtype).itemsize
                if len(record) - 4 != size:
                    raise UserError(f"{self._place(id, name)}: {len(record) - 4} bytes instead of {size}")
            arrays += len(encoded.arrays)
            images += len(encoded.images)
        database = self._open()
        for table, wanted in ((b"arrays", arrays), (b"images", images)):
            if database.entries(table) != wanted:
                extra = f"{database.entries(table)} records in table {table.decode()!r} instead of {wanted}"
                raise UserError(f"{self.path}: {extra}; write the store again")
        counts = self.manifest["counts"]["episodes"]
        if counts != len(self):
            raise UserError(f"{self.path}: counts {counts} episodes but holds {len(self)}; write the store again")

    def close(self) -> None:
        """Let go of the file; the next read opens it again."""
        self._database = None
        self._forget()

    def _forget(self) -> None:
        self._ids, self._robot_name, self._headers, self._tested = None, None, {}, set()

    def _place(self, id: str, what: str = "") -> str:
        return f"{self.path}: episode {id!r}" + (f", {what}" if what else "")

    def _get(self, table: bytes, key: bytes) -> bytes | None:
        database = self._open()
        with database.begin() as txn:
            raw = txn.get(key, db=database.tables[table])
            return None if raw is None else bytes(raw)

    def _read(self, table: bytes, key: bytes, id: str) -> memoryview:
        raw = self._get(table, key)
        if raw is None:
            raise UserError(f"{self._place(id)}: is not in the store; `arvrm inspect` lists what is")
        return self._unseal(raw, id, table.decode())

    def _unseal(self, raw: bytes | memoryview | None, id: str, what: str, tested: bool = False) -> memoryview:
        if raw is None:
            raise UserError(f"{self._place(id, what)}: is missing; the store is damaged, write it again")
        view = memoryview(raw)
        if len(view) < 4 or not (tested or struct.unpack_from("<I", view)[0] == zlib.crc32(view[4:])):
            raise UserError(f"{self._place(id, what)}: fails its checksum; the store is damaged, write it again")
        return view[4:]
