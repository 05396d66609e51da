"""Episodes on disk: one LMDB store for robot and human demonstrations, read at random, written crash-safe.

A store is a folder with LMDB's `data.mdb`; docs/data.md describes every key and byte. Four tables:

    meta      manifest (versioned JSON), counts
    headers   id -> what an episode is, without its data: small, so that 100 000 can be listed at once
    arrays    id, name -> one raw array
    images    id, camera, row -> one JPEG

Every record starts with the CRC-32 of its content. There is no pickle.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import struct
import weakref
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import numpy as np
import simplejpeg

from arvrm.interface import KEYPOINTS, UserError

FORMAT = "arvrm-episodes"
VERSION = 1
JPEG_QUALITY = 92
JPEG_SUBSAMPLING = "444"
"""No colour subsampling: a block is a few pixels wide, and its colour is what the instruction names."""
CAMERAS = {"robot": ("rgb_static", "rgb_gripper"), "human": ("rgb_static",)}
HAND_KEYPOINTS = (len(KEYPOINTS), 2 * len(KEYPOINTS))
LANDMARKS = ("red", "blue", "pink", "slider_handle", "drawer_handle", "button", "switch")
"""Rows of the privileged arrays `landmarks` and `landmark_pixels`."""

_SYNC_EVERY = 64  # episodes of a merge in one transaction
_KEPT_HEADERS, _KEPT_TESTED = 512, 16_384
"""Headers, and names of tested arrays, that a reader remembers: some 3 MB, whatever the store's size."""
_MAP_START = 1 << 26
_MAP_STEP = 1 << 32
_TABLES = (b"meta", b"headers", b"arrays", b"images")
_DTYPES = ("float64", "float32", "bool", "int32", "int64", "uint8")


@dataclass(frozen=True)
class ArraySpec:
    """What one array of an episode must be. `shape` is that of one row; None stands for 21 or 42 keypoints."""

    dtype: str
    shape: tuple[int | None, ...]
    required: bool = True
    finite: bool = True


ARRAYS: dict[str, dict[str, ArraySpec]] = {
    "robot": {
        "robot_obs": ArraySpec("float64", (15,)),
        "scene_obs": ArraySpec("float64", (24,), required=False),
        "target_pose": ArraySpec("float64", (6,), required=False),
        "actions": ArraySpec("float32", (7,)),
        "executed": ArraySpec("float32", (7,)),
        "absolute_actions": ArraySpec("float64", (7,), required=False),
        "landmarks": ArraySpec("float32", (len(LANDMARKS), 3), required=False),
        "landmark_pixels": ArraySpec("float32", (len(LANDMARKS), 2), required=False, finite=False),
        "depth_static": ArraySpec("float32", (200, 200), required=False),
        "depth_gripper": ArraySpec("float32", (84, 84), required=False),
        "rgb_tactile": ArraySpec("uint8", (160, 120, 6), required=False),
        "depth_tactile": ArraySpec("float32", (160, 120, 2), required=False),
    },
    "human": {
        "keypoints": ArraySpec("float32", (None, 3)),
        "visible": ArraySpec("bool", (None,)),
    },
}
"""The arrays of each embodiment; all have N rows, one a step."""


@dataclass(frozen=True)
class EpisodeHeader:
    """What an episode is, without its data.

    Attributes:
        id: unique in the store.                      embodiment: "robot" or "human".
        instruction: one sentence, "": play.          task: one of interface.TASKS, or "" where unknown.
        scene: "A".."D" or another place's name.      source: what made it, e.g. "playtable".
        group: what must stay on one side of a split. fps: steps a second.
        steps: N, rows of each array.                 image_steps: (F,) int32, steps that have images, ascending.
        cameras: camera -> (height, width) of its F images.
        arrays: name -> (dtype, shape) as stored.     meta: JSON-able details of the source.
    """

    id: str
    embodiment: str
    instruction: str
    task: str
    scene: str
    source: str
    group: str
    fps: float
    steps: int
    image_steps: np.ndarray
    cameras: dict[str, tuple[int, int]]
    arrays: dict[str, tuple[str, tuple[int, ...]]]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        """F, stored images per camera."""
        return len(self.image_steps)


@dataclass(frozen=True)
class EncodedImages:
    """F images of `height` x `width` pixels, each as `encode_image` made it."""

    height: int
    width: int
    jpegs: tuple[bytes, ...]


@dataclass(frozen=True)
class Episode:
    """One instruction, demonstrated once; attributes as in EpisodeHeader.

    Attributes:
        arrays: name -> (N, ...) array; names, dtypes and shapes as in ARRAYS[embodiment].
        images: camera -> (F, H, W, 3) uint8 RGB; cameras as in CAMERAS[embodiment]. Who makes an episode piece by
            piece may encode its images on the way: EncodedImages.
        image_steps: (F,) int32, the step at which each image was taken, ascending.
    """

    id: str
    embodiment: str
    instruction: str
    task: str
    scene: str
    source: str
    group: str
    fps: float
    arrays: dict[str, np.ndarray]
    images: dict[str, np.ndarray | EncodedImages]
    image_steps: np.ndarray
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """N, rows of each array."""
        return len(next(iter(self.arrays.values())))


@dataclass(frozen=True)
class EncodedEpisode:
    """An episode as its records: what `encode_episode` makes in a worker and `EpisodeWriter.append_encoded` stores."""

    id: str
    header: bytes
    arrays: tuple[tuple[bytes, bytes], ...]
    images: tuple[tuple[bytes, bytes], ...]
    steps: int
    frames: int


def validate_episode(episode: Episode) -> None:
    """Check an episode against ARRAYS and CAMERAS.

    Raises:
        UserError: a name, dtype, shape or value is not what the embodiment's table asks for.
    """
    place = f"episode {episode.id!r}"
    if not episode.id or not episode.id.isprintable() or len(episode.id.encode()) > 300:
        raise UserError(f"{place}: an id has 1 to 300 bytes and no control characters; choose another")
    if episode.embodiment not in ARRAYS:
        raise UserError(f"{place}: embodiment {episode.embodiment!r} is unknown; use {' or '.join(ARRAYS)}")
    for name in ("source", "group", *(("instruction",) if episode.task else ())):
        if not isinstance(getattr(episode, name), str) or not getattr(episode, name).strip():
            raise UserError(f"{place}: {name} is {getattr(episode, name)!r}; give a text that is not empty")
    for name in ("task", "scene", "instruction"):
        if not isinstance(getattr(episode, name), str):
            raise UserError(f"{place}: {name} is {getattr(episode, name)!r}; give a text, empty where unknown")
    if not (isinstance(episode.fps, (int, float)) and math.isfinite(episode.fps) and episode.fps > 0):
        raise UserError(f"{place}: fps is {episode.fps!r}; give the steps per second")
    table = ARRAYS[episode.embodiment]
    for name in episode.arrays:
        if name not in table:
            raise UserError(f"{place}: a {episode.embodiment} has no array {name!r}; known: {', '.join(table)}")
    for name, spec in table.items():
        if name in episode.arrays:
            _validate_array(place, name, episode.arrays[name], spec)
        elif spec.required:
            raise UserError(f"{place}: array {name!r} is missing; a {episode.embodiment} episode needs it")
    lengths = {name: len(array) for name, array in episode.arrays.items()}
    steps = next(iter(lengths.values()))
    if len(set(lengths.values())) != 1:
        raise UserError(f"{place}: arrays differ in length ({lengths}); record one row per step")
    if steps == 0:
        raise UserError(f"{place}: it has no steps; leave it out")
    if episode.embodiment == "robot":
        _validate_actions(place, episode.arrays)
    elif episode.arrays["keypoints"].shape[1] != episode.arrays["visible"].shape[1]:
        shapes = f"{episode.arrays['keypoints'].shape[1]} and {episode.arrays['visible'].shape[1]}"
        raise UserError(f"{place}: keypoints and visible have {shapes} columns; give one flag per keypoint")
    _validate_images(place, episode, steps)


def _validate_array(place: str, name: str, array: Any, spec: ArraySpec) -> None:
    wanted = f"({', '.join(['N', *('21 or 42' if s is None else str(s) for s in spec.shape)])})"
    if not isinstance(array, np.ndarray):
        raise UserError(f"{place}: {name} is {type(array).__name__}; give a NumPy array {spec.dtype} {wanted}")
    fits = array.ndim == 1 + len(spec.shape) and all(
        have in HAND_KEYPOINTS if want is None else have == want
        for have, want in zip(array.shape[1:], spec.shape, strict=False)
    )
    if not fits or array.dtype != np.dtype(spec.dtype):
        raise UserError(f"{place}: {name} is {array.dtype} {array.shape}; it must be {spec.dtype} {wanted}")
    if spec.finite and spec.dtype.startswith("float") and not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise UserError(f"{place}: {name} has a NaN or infinity in row {row}; mend the recording or leave it out")


def _validate_actions(place: str, arrays: Mapping[str, np.ndarray]) -> None:
    for name in ("actions", "executed"):
        array = arrays[name]
        if np.abs(array[:, :6]).max() > 1 + 1e-6:
            row, column = np.argwhere(np.abs(array[:, :6]) > 1 + 1e-6)[0]
            raise UserError(f"{place}: {name}[{row}, {column}] is {array[row, column]:g}; clip it to [-1, 1]")
        if not np.isin(array[:, 6], (-1.0, 1.0)).all():
            row = int(np.argwhere(~np.isin(array[:, 6], (-1.0, 1.0)))[0][0])
            raise UserError(f"{place}: {name}[{row}, 6] is {array[row, 6]:g}; the gripper is exactly -1 or 1")


def _validate_images(place: str, episode: Episode, steps: int) -> None:
    cameras = CAMERAS[episode.embodiment]
    if set(episode.images) != set(cameras):
        have = ", ".join(sorted(episode.images)) or "none"
        raise UserError(f"{place}: cameras are {have}; a {episode.embodiment} episode has {', '.join(cameras)}")
    at = episode.image_steps
    if not isinstance(at, np.ndarray) or at.dtype != np.int32 or at.ndim != 1 or len(at) == 0:
        shown = f"{at.dtype} {at.shape}" if isinstance(at, np.ndarray) else repr(at)
        raise UserError(f"{place}: image_steps is {shown}; it must be int32 (F,) with F at least 1")
    if (np.diff(at) <= 0).any() or at[0] < 0 or at[-1] >= steps:
        raise UserError(f"{place}: image_steps {at.tolist()} must ascend within 0..{steps - 1}")
    for camera, images in episode.images.items():
        if isinstance(images, EncodedImages):
            if len(images.jpegs) != len(at):
                raise UserError(f"{place}: {camera} has {len(images.jpegs)} JPEGs, image_steps {len(at)}; give all")
            continue
        good = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4
        if not good or images.shape[0] != len(at) or images.shape[3] != 3 or 0 in images.shape:
            shown = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else repr(type(images))
            raise UserError(f"{place}: {camera} is {shown}; it must be uint8 ({len(at)}, H, W, 3)")


def encode_image(image: np.ndarray, jpeg_quality: int = JPEG_QUALITY) -> bytes:
    """Return an (H, W, 3) uint8 RGB image as the JPEG that a store holds."""
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=jpeg_quality, colorspace="RGB", colorsubsampling=JPEG_SUBSAMPLING
    )


def encode_episode(episode: Episode, jpeg_quality: int = JPEG_QUALITY) -> EncodedEpisode:
    """Validate an episode and turn it into the records a store holds; the costly half of writing, safe in a worker.

    Raises:
        UserError: the episode is not valid (see `validate_episode`), or its `meta` is not JSON-able.
    """
    validate_episode(episode)
    arrays, specs = [], []
    for name in ARRAYS[episode.embodiment]:
        if name in episode.arrays:
            array = np.ascontiguousarray(episode.arrays[name])
            specs.append([name, array.dtype.name, list(array.shape)])
            arrays.append((_array_key(episode.id, name), _seal(array.tobytes())))
    encoded = {
        camera: images
        if isinstance(images := episode.images[camera], EncodedImages)
        else EncodedImages(*images.shape[1:3], tuple(encode_image(image, jpeg_quality) for image in images))
        for camera in CAMERAS[episode.embodiment]
    }
    header = {
        "id": episode.id,
        "embodiment": episode.embodiment,
        "instruction": episode.instruction,
        "task": episode.task,
        "scene": episode.scene,
        "source": episode.source,
        "group": episode.group,
        "fps": float(episode.fps),
        "steps": episode.steps,
        "image_steps": episode.image_steps.astype("<i4").tobytes(),
        "cameras": [[camera, images.height, images.width] for camera, images in encoded.items()],
        "arrays": specs,
        "meta": episode.meta,
    }
    try:
        json.dumps(episode.meta, allow_nan=False)
        packed = msgpack.packb(header)
    except (TypeError, ValueError) as error:
        raise UserError(f"episode {episode.id!r}: meta is not JSON-able ({error}); use plain Python values") from error
    images = [
        (_image_key(episode.id, camera, row), _seal(jpeg))
        for camera, found in encoded.items()
        for row, jpeg in enumerate(found.jpegs)
    ]
    return EncodedEpisode(
        episode.id, _seal(packed), tuple(arrays), tuple(images), episode.steps, len(episode.image_steps)
    )


class EpisodeWriter:
    """Appends episodes to a store; each append is one transaction, so a killed run leaves whole episodes only.

    Args:
        path: the store's folder, made if missing.
        manifest: JSON-able: how the episodes are made (source, configuration, seed ...). A resumed store must agree.
        resume: continue an existing store; `has(id)` says what is there.
        overwrite: replace an existing store.
        jpeg_quality: 1 to 100, kept in the manifest.
    Raises:
        UserError: the store exists (without resume or overwrite), is no store, was made otherwise, or cannot be made.
    """

    def __init__(
        self,
        path: str | Path,
        manifest: dict[str, Any],
        resume: bool = False,
        overwrite: bool = False,
        jpeg_quality: int = JPEG_QUALITY,
    ) -> None:
        self.path = Path(path)
        if resume and overwrite:
            raise UserError(f"{path}: --resume and --overwrite exclude each other; pass one")
        if not isinstance(jpeg_quality, int) or not 1 <= jpeg_quality <= 100:
            raise UserError(f"{path}: JPEG quality {jpeg_quality!r}; choose 1 to 100")
        self.jpeg_quality = jpeg_quality
        wanted = _full_manifest(self.path, manifest, jpeg_quality)
        exists = self._prepare_folder(resume, overwrite)
        self._holder = _Holder.writing(self.path)
        try:
            self._begin(wanted, exists)
        except BaseException:
            self._holder.close()
            raise

    def _prepare_folder(self, resume: bool, overwrite: bool) -> bool:
        data = self.path / "data.mdb"
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: is a file; an episode store is a folder, choose another path")
        if data.exists():
            if overwrite:
                _remove_store(self.path)
            elif not resume:
                raise UserError(f"{self.path}: exists already; pass --resume to continue or --overwrite to replace it")
        elif self.path.exists() and any(self.path.iterdir()):
            raise UserError(f"{self.path}: is a folder with other files; choose another path for the store")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be made ({error.strerror}); choose a writable path") from error
        return data.exists()

    def _begin(self, wanted: dict[str, Any], exists: bool) -> None:
        stored, counts = None, b"{}"
        if self._holder.tables:
            with self._holder.begin() as txn:
                stored = txn.get(b"manifest", db=self._holder.tables[b"meta"])
                stored = None if stored is None else bytes(stored)
                counts = bytes(txn.get(b"counts", b"{}", db=self._holder.tables[b"meta"]))
        self._counts = Counter(json.loads(counts))
        self._manifest: dict[str, Any] = wanted
        self._stored: dict[str, Any] | None = None  # the manifest in the store; a new one's comes with the first append
        if stored is None:
            if exists and self._holder.entries(b"headers"):
                raise UserError(f"{self.path}: has episodes but no manifest; it is damaged, use --overwrite")
            return
        self._manifest = self._stored = old = _parse_manifest(self.path, stored)
        for key in sorted({*wanted, *old} - {"complete"}):
            if wanted.get(key) != old.get(key):
                raise UserError(
                    f"{self.path}: was made with {_difference(key, old.get(key), wanted.get(key))}; "
                    "give the same settings to --resume, or --overwrite"
                )
        self._commit([], complete=False)

    def has(self, id: str) -> bool:
        """Whether the store holds this episode."""
        if not self._holder.tables:
            return False
        with self._holder.begin() as txn:
            return txn.get(id.encode(), db=self._holder.tables[b"headers"]) is not None

    def __len__(self) -> int:
        return self._holder.entries(b"headers")

    def append(self, episode: Episode) -> None:
        """Add one episode: all of it, or nothing.

        Raises:
            UserError: the episode is invalid, its id is taken, or the disk is full.
        """
        self.append_encoded(encode_episode(episode, self.jpeg_quality))

    def append_encoded(self, *encoded: EncodedEpisode, complete: bool = False) -> None:
        """Add episodes that `encode_episode` made, in one transaction; errors as in `append`.

        Args:
            complete: these are the last, so that `close` need not say so in a transaction, and a wait, of its own.
        """
        records, counts = [], Counter(self._counts)
        for item in encoded:
            records.append((b"headers", item.id.encode(), item.header))
            records += [(b"arrays", array_key, array) for array_key, array in item.arrays]
            records += [(b"images", image_key, image) for image_key, image in item.images]
            counts.update(episodes=1, steps=item.steps, frames=item.frames)
        self._commit([*records, (b"meta", b"counts", _counts_bytes(counts))], complete)
        self._counts = counts

    def _commit(self, records: list[tuple[bytes, bytes, bytes]], complete: bool) -> None:
        """Store records, and what has changed of the manifest, in one transaction: each waits for the disk."""
        env, manifest = self._holder.env, {**self._manifest, "complete": complete}
        if manifest != self._stored:
            records = [(b"meta", b"manifest", _manifest_bytes(manifest)), *records]
        if not records:
            return
        while True:
            try:
                with env.begin(write=True) as txn:
                    tables = self._holder.tables or {name: env.open_db(name, txn=txn) for name in _TABLES}
                    for table, key, value in records:
                        if not txn.put(key, value, db=tables[table], overwrite=table == b"meta"):
                            taken = key.split(b"\0")[0].decode()
                            raise UserError(f"{self.path}: episode {taken!r} is there already; give it another id")
                self._holder.tables, self._stored = tables, manifest
                return
            except lmdb.MapFullError:
                size = env.info()["map_size"]
                env.set_mapsize(min(2 * size, size + _MAP_STEP))
            except (lmdb.Error, OSError) as error:
                raise UserError(
                    f"{self.path}: could not be written ({error}); free space on the disk and pass --resume, "
                    f"the {self._counts['episodes']} episodes before are safe"
                ) from error

    def close(self, complete: bool = True) -> None:
        """Close the store. `complete` says that nothing is missing; an exception in a `with` block says the reverse."""
        if not self._holder.closed:
            try:
                self._commit([], complete)
            finally:
                self._holder.close()

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.close(complete=kind is None)


class EpisodeStore:
    """Reads a store at random. Opening reads the manifest only; safe to use after a fork and to pass to processes.

    Readers take no locks: read a store when its writer is done or elsewhere; an overtaken read fails its checksum.

    Raises:
        UserError: the folder is missing, no store, truncated, damaged, or of another version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._holder: _Holder | None = None
        self._ids: tuple[str, ...] | None = None
        self._headers: dict[str, EpisodeHeader] = {}
        self._tested: set[bytes] = set()
        self._open()

    def _open(self) -> _Holder:
        holder = self._holder
        if holder is None or holder.closed or holder.pid != os.getpid():
            if holder is not None:  # the file may be another than the one read before
                self._forget()
            holder = _Holder.reading(self.path)
            if not holder.tables:
                raise UserError(f"{self.path}: holds nothing yet; read it when its writer is done")
            with holder.begin() as txn:
                stored = txn.get(b"manifest", db=holder.tables[b"meta"])
            if stored is None:
                raise UserError(f"{self.path}: has no manifest; its writer was stopped at once, write it again")
            _parse_manifest(self.path, bytes(stored))
            self._holder = holder
        return holder

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
        """What the writer was given, and `format`, `version`, `jpeg`, `complete`, `counts`."""
        holder = self._open()
        with holder.begin() as txn:
            manifest = _parse_manifest(self.path, bytes(txn.get(b"manifest", db=holder.tables[b"meta"])))
            counts = json.loads(bytes(txn.get(b"counts", b"{}", db=holder.tables[b"meta"])))
        return {**manifest, "counts": {"episodes": 0, "steps": 0, "frames": 0, **counts}}

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids, sorted by their UTF-8 bytes; read once, at first use."""
        holder = self._open()
        if self._ids is None:
            with holder.begin() as txn, txn.cursor(db=holder.tables[b"headers"]) as cursor:
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
            holder, chunk = self._open(), []
            with holder.begin() as txn, txn.cursor(db=holder.tables[b"headers"]) as cursor:
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
        return _unpack_header(self._place(id, "header"), content)

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
        holder, found = self._open(), {}
        with holder.begin() as txn:
            for name in wanted:
                dtype, shape = header.arrays[name]
                key = _array_key(id, name)
                content = self._unseal(txn.get(key, db=holder.tables[b"arrays"]), id, name, key in self._tested)
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
        holder = self._open()
        with holder.begin() as txn:
            for i, row in enumerate(int(row) for row in rows):
                if row in done:
                    out[i] = out[done[row]]
                    continue
                if not 0 <= row < header.frames:
                    raise UserError(f"{self._place(id, camera)}: has no frame {row}; it has 0..{header.frames - 1}")
                raw = txn.get(_image_key(id, camera, row), db=holder.tables[b"images"])
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
        images = {camera: self.frames(id, camera, range(header.frames)) for camera in header.cameras}
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
        )

    def encoded(self, id: str) -> EncodedEpisode:
        """Read an episode as its records, checksums tested, images not decoded."""
        header, holder = self.header(id), self._open()
        with holder.begin() as txn:

            def records(table: bytes, keys: Iterable[tuple[bytes, str]]) -> tuple[tuple[bytes, bytes], ...]:
                found = []
                for key, what in keys:
                    raw = txn.get(key, db=holder.tables[table])
                    self._unseal(raw, id, what)
                    found.append((key, bytes(raw)))
                return tuple(found)

            images = (
                (_image_key(id, camera, row), f"{camera} frame {row}")
                for camera in header.cameras
                for row in range(header.frames)
            )
            return EncodedEpisode(
                id,
                records(b"headers", [(id.encode(), "header")])[0][1],
                records(b"arrays", ((_array_key(id, name), name) for name in header.arrays)),
                records(b"images", images),
                header.steps,
                header.frames,
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
        holder = self._open()
        for table, wanted in ((b"arrays", arrays), (b"images", images)):
            if holder.entries(table) != wanted:
                extra = f"{holder.entries(table)} records in table {table.decode()!r} instead of {wanted}"
                raise UserError(f"{self.path}: {extra}; write the store again")
        counts = self.manifest["counts"]["episodes"]
        if counts != len(self):
            raise UserError(f"{self.path}: counts {counts} episodes but holds {len(self)}; write the store again")

    def close(self) -> None:
        """Let go of the file; the next read opens it again."""
        self._holder = None
        self._forget()

    def _forget(self) -> None:
        self._ids, self._headers, self._tested = None, {}, set()

    def _place(self, id: str, what: str = "") -> str:
        return f"{self.path}: episode {id!r}" + (f", {what}" if what else "")

    def _get(self, table: bytes, key: bytes) -> bytes | None:
        holder = self._open()
        with holder.begin() as txn:
            raw = txn.get(key, db=holder.tables[table])
            return None if raw is None else bytes(raw)

    def _read(self, table: bytes, key: bytes, id: str) -> memoryview:
        raw = self._get(table, key)
        if raw is None:
            raise UserError(f"{self._place(id)}: is not in the store; `arvrm inspect` lists what is")
        return self._unseal(raw, id, table.decode())

    def _unseal(self, raw: Any, id: str, what: str, tested: bool = False) -> memoryview:
        if raw is None:
            raise UserError(f"{self._place(id, what)}: is missing; the store is damaged, write it again")
        view = memoryview(raw)
        if len(view) < 4 or not (tested or struct.unpack_from("<I", view)[0] == zlib.crc32(view[4:])):
            raise UserError(f"{self._place(id, what)}: fails its checksum; the store is damaged, write it again")
        return view[4:]


def merge_stores(inputs: Sequence[str | Path], output: str | Path, overwrite: bool = False) -> EpisodeStore:
    """Copy the episodes of several stores into one, records unchanged: as if they had been written there.

    The manifest keeps each input's manifest under `merged`. The output appears under its name when it is whole.

    Raises:
        UserError: no input, an id in two inputs, different JPEG quality, or the output exists.
    """
    if not inputs:
        raise UserError(f"{output}: nothing to merge; name at least one store")
    stores = [EpisodeStore(path) for path in inputs]
    output = Path(output)
    if output.exists() and not overwrite:
        raise UserError(f"{output}: exists already; pass --overwrite to replace it")
    if any(output.resolve() == Path(path).resolve() for path in inputs):
        raise UserError(f"{output}: is also an input; give the merged store another path")
    owner: dict[str, Path] = {}
    for store in stores:
        for id in store.ids:
            if id in owner:
                raise UserError(f"{store.path}: episode {id!r} is also in {owner[id]}; give one another id")
            owner[id] = store.path
    jpeg = stores[0].manifest["jpeg"]
    for store in stores[1:]:
        other = store.manifest["jpeg"]
        if other != jpeg:
            raise UserError(f"{store.path}: JPEG {other} but {stores[0].path} has {jpeg}; make them equal")
    partial = output.with_name(output.name + ".partial")
    if partial.exists():
        _remove_store(partial)
    manifest = {"merged": [{k: v for k, v in s.manifest.items() if k not in ("format", "version")} for s in stores]}
    with EpisodeWriter(partial, manifest, jpeg_quality=jpeg["quality"]) as writer:
        for store in stores:
            for start in range(0, len(store), _SYNC_EVERY):
                writer.append_encoded(*(store.encoded(id) for id in store.ids[start : start + _SYNC_EVERY]))
    if output.exists():
        _remove_store(output)
    os.replace(partial, output)
    return EpisodeStore(output)


def inspect_store(path: str | Path, contact_sheet: str | Path | None = None, rows: int = 16) -> str:
    """Describe a store in a text, and draw a sheet of its frames.

    Args:
        contact_sheet: a PNG to write: one strip per episode, `rows` of them over as many tasks as there are; human
            clips with their hand's skeleton (hollow: not visible). None: no sheet.
    Raises:
        UserError: the store cannot be read, or the sheet not be written.
    """
    store = EpisodeStore(path)
    manifest = store.manifest
    headers = list(store.headers())
    bytes_on_disk = sum(file.stat().st_size for file in store.path.iterdir())
    steps = np.array([header.steps for header in headers])
    frames = sum(header.frames for header in headers)
    jpeg = manifest["jpeg"]
    lines = [
        f"{store.path}: {len(store)} episodes, {steps.sum()} steps, {frames} frames per camera, "
        f"{bytes_on_disk / 2**20:.1f} MiB" + ("" if manifest["complete"] else ", NOT complete (resume it)"),
        f"format {manifest['format']} {manifest['version']}, JPEG quality {jpeg['quality']}, {jpeg['subsampling']}",
    ]
    own = {key: manifest[key] for key in manifest if key not in ("format", "version", "jpeg", "complete", "counts")}
    lines += [f"{key}: {_shorten(value)}" for key, value in own.items()]
    if headers:
        seconds = sum(header.steps / header.fps for header in headers)
        spread = f"{steps.min()} to {steps.max()}, median {np.median(steps):g}"
        lines.append(f"steps per episode: {spread}; {seconds / 60:.1f} minutes in all")
        sizes = Counter((c, f"{h}x{w}") for header in headers for c, (h, w) in header.cameras.items())
        lines += [f"{camera}: {size} px ({count} episodes)" for (camera, size), count in sorted(sizes.items())]
        arrays = Counter((name, dtype, shape[1:]) for h in headers for name, (dtype, shape) in h.arrays.items())
        lines += [f"array {n}: {d} {('N', *s)} ({count} episodes)" for (n, d, s), count in sorted(arrays.items())]
        lines.append(f"instructions: {len({header.instruction for header in headers})} different")
    for name in ("embodiment", "source", "scene", "task"):
        counts = Counter(getattr(header, name) or "(none)" for header in headers)
        lines.append(f"{name}: " + ", ".join(f"{value} {count}" for value, count in sorted(counts.items())))
    if contact_sheet is not None:
        _draw_contact_sheet(store, headers, Path(contact_sheet), rows)
    return "\n".join(lines)


def _shorten(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 400 else text[:397] + "..."


def _draw_contact_sheet(store: EpisodeStore, headers: list[EpisodeHeader], file: Path, rows: int) -> None:
    from PIL import Image, ImageDraw

    if not headers:
        raise UserError(f"{store.path}: has no episodes to draw; leave the contact sheet out")
    tile, columns, caption = 144, 8, 16
    by_task: dict[str, list[EpisodeHeader]] = {}
    for header in headers:
        by_task.setdefault(header.task, []).append(header)
    turns = max(map(len, by_task.values()))
    # Every task in turn, each at another place in its list, so that scenes mix.
    chosen = [
        group[(turn + i) % len(group)]
        for turn in range(turns)
        for i, group in enumerate(by_task.values())
        if turn < len(group)
    ][:rows]
    sheet = Image.new("RGB", (columns * tile, len(chosen) * (tile + caption)), "#16181d")
    draw = ImageDraw.Draw(sheet)
    for i, header in enumerate(chosen):
        top = i * (tile + caption)
        text = f"{header.id}  {header.task or 'no task'}: {header.instruction} ({header.steps} steps)"
        draw.text((3, top + 2), text.encode("latin-1", "replace").decode("latin-1"), fill="#e8eaed")
        cameras = list(header.cameras)
        per_camera = columns // len(cameras)
        picked = np.linspace(0, header.frames - 1, per_camera).round().astype(int)
        for c, camera in enumerate(cameras):
            for j, (row, image) in enumerate(zip(picked, store.frames(header.id, camera, picked), strict=True)):
                picture = Image.fromarray(image).resize((tile, tile), Image.Resampling.BICUBIC)
                if header.embodiment == "human":
                    at = slice(int(header.image_steps[row]), int(header.image_steps[row]) + 1)
                    hand = store.arrays(header.id, ("keypoints", "visible"), at)
                    scale = tile / np.array(image.shape[1::-1])
                    _draw_skeleton(picture, hand["keypoints"][0], hand["visible"][0], scale)
                sheet.paste(picture, ((c * per_camera + j) * tile, top + caption))
    partial = file.with_name(file.name + ".partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(partial, "PNG")
        os.replace(partial, file)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); choose another path") from error


def _draw_skeleton(picture: Any, keypoints: np.ndarray, visible: np.ndarray, scale: np.ndarray) -> None:
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    points = keypoints[:, :2] * scale
    colours = ("#f5a524", "#2eb67d", "#3fa7f5", "#b57edc", "#e5484d")
    for hand in range(0, len(points), len(KEYPOINTS)):
        for finger, colour in enumerate(colours):
            chain = [hand, *range(hand + 1 + 4 * finger, hand + 5 + 4 * finger)]
            for a, b in zip(chain, chain[1:], strict=False):
                draw.line([*points[a], *points[b]], fill=colour, width=2 if visible[a] and visible[b] else 1)
            for k in chain:
                x, y = points[k]
                draw.ellipse([x - 2, y - 2, x + 2, y + 2], outline=colour, fill=colour if visible[k] else None)


class _Holder:
    """One LMDB environment. LMDB allows one per file and process, so all stores of a process share it."""

    _live: weakref.WeakValueDictionary[str, _Holder] = weakref.WeakValueDictionary()

    def __init__(self, path: Path, write: bool) -> None:
        self.pid = os.getpid()
        self.closed = False
        self.path = path
        try:
            self.env = lmdb.open(
                str(path),
                map_size=_MAP_START if write else 0,
                max_dbs=len(_TABLES),
                readonly=not write,
                create=write,
                lock=write,
                readahead=False,
                meminit=True,  # else pages keep what memory held before: other bytes each time
                max_spare_txns=8,
            )
        except lmdb.Error as error:
            raise UserError(f"{path}: cannot be opened as an episode store ({error}); use --overwrite") from error
        try:
            # A page beyond the end of a truncated file would kill the process (SIGBUS), so look before the first read.
            needed = (self.env.info()["last_pgno"] + 1) * self.env.stat()["psize"]
            size = (path / "data.mdb").stat().st_size
            if self.env.info()["last_txnid"] > 0 and size < needed:
                raise UserError(f"{path}: is truncated ({size} of {needed} bytes); copy it again or use --overwrite")
            # A new store's tables are made by the first append, in its transaction: each waits for the disk.
            self.tables = {}
            if not write or self.env.stat()["entries"]:
                self.tables = {name: self.env.open_db(name, create=False) for name in _TABLES}
        except lmdb.Error as error:
            self.env.close()
            raise UserError(f"{path}: holds no episodes ({error}); it is no store, write it again") from error
        except BaseException:
            self.env.close()
            raise

    @classmethod
    def reading(cls, path: Path) -> _Holder:
        if not (path / "data.mdb").is_file():
            what = "is no episode store (a folder with data.mdb)" if path.exists() else "does not exist"
            raise UserError(f"{path}: {what}; make one with `arvrm generate` or give another path")
        key = str(path.resolve())
        holder = cls._live.get(key)
        if holder is not None and holder.pid != os.getpid():
            holder.close()  # a forked process: LMDB refuses a second environment beside the inherited one
        if holder is None or holder.closed:
            holder = cls._live[key] = cls(path, write=False)
        return holder

    @classmethod
    def writing(cls, path: Path) -> _Holder:
        _close_holder(path)
        holder = cls._live[str(path.resolve())] = cls(path, write=True)
        return holder

    @contextlib.contextmanager
    def begin(self) -> Iterator[lmdb.Transaction]:
        """A read transaction with zero-copy values, which are valid inside it only."""
        try:
            txn = self.env.begin(buffers=True)
        except lmdb.MapResizedError:  # another process let the store grow
            self.env.set_mapsize(0)
            txn = self.env.begin(buffers=True)
        with txn:
            yield txn

    def entries(self, table: bytes) -> int:
        if not self.tables:
            return 0
        with self.begin() as txn:
            return txn.stat(self.tables[table])["entries"]

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.env.close()

    def __del__(self) -> None:
        if hasattr(self, "env"):
            self.close()


def _close_holder(path: Path) -> None:
    holder = _Holder._live.get(str(path.resolve()))
    if holder is not None:
        holder.close()


def _remove_store(path: Path) -> None:
    """Remove a store, whole or damaged, and nothing that is not one."""
    others = {file.name for file in path.iterdir()} - {"data.mdb", "lock.mdb"} if path.is_dir() else {path.name}
    if others:
        raise UserError(f"{path}: holds {sorted(others)[0]!r}, which no episode store does; choose another path")
    with (path / "data.mdb").open("rb") as file:
        start = file.read(20)
    if start and start[16:] != b"\xde\xc0\xef\xbe":  # LMDB's magic number
        raise UserError(f"{path}: its data.mdb is no LMDB file; choose another path")
    _close_holder(path)
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be removed ({error.strerror}); do it yourself") from error


def _seal(content: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(content)) + content


def _array_key(id: str, name: str) -> bytes:
    return b"%s\0%s" % (id.encode(), name.encode())


def _image_key(id: str, camera: str, row: int) -> bytes:
    return b"%s\0%s\0%s" % (id.encode(), camera.encode(), row.to_bytes(4, "big"))


def _unpack_header(place: str, content: memoryview) -> EpisodeHeader:
    try:
        values = msgpack.unpackb(content)
        values["image_steps"] = np.frombuffer(values["image_steps"], "<i4").astype(np.int32)
        values["image_steps"].flags.writeable = False
        values["cameras"] = {camera: (height, width) for camera, height, width in values["cameras"]}
        values["arrays"] = {name: (dtype, tuple(shape)) for name, dtype, shape in values["arrays"]}
        if not all(dtype in _DTYPES for dtype, _ in values["arrays"].values()):
            raise ValueError("an unknown dtype")
        return EpisodeHeader(**values)
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise UserError(f"{place}: cannot be read ({error}); write the store again") from error


def _full_manifest(path: Path, manifest: dict[str, Any], jpeg_quality: int) -> dict[str, Any]:
    reserved = {"format", "version", "jpeg", "complete", "counts"} & set(manifest)
    if reserved:
        raise UserError(f"{path}: manifest key {sorted(reserved)[0]!r} is the store's own; use another name")
    try:
        manifest = json.loads(json.dumps(manifest, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: manifest is not JSON-able ({error}); use plain Python values") from error
    jpeg = {"quality": jpeg_quality, "subsampling": JPEG_SUBSAMPLING}
    return {"format": FORMAT, "version": VERSION, "jpeg": jpeg, "complete": False, **manifest}


def _manifest_bytes(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True).encode()


def _counts_bytes(counts: Mapping[str, int]) -> bytes:
    return json.dumps(dict(counts), sort_keys=True).encode()


def _parse_manifest(path: Path, content: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(content)
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']!r}")
        version = manifest["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: its manifest cannot be read ({error}); write the store again") from error
    if version != VERSION:
        raise UserError(f"{path}: has format version {version}, this program reads {VERSION}; write the store again")
    return manifest


def _difference(key: str, old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for inner in sorted({*old, *new}):
            if old.get(inner) != new.get(inner):
                return _difference(f"{key}.{inner}", old.get(inner), new.get(inner))
    return f"{key} = {old!r}, not {new!r}"
