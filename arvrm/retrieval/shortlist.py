"""Which of very many vectors have a large inner product with a query: a short list, to be compared exactly after.

The vectors are reduced to their principal components, which are cut into clusters (an inverted file) and kept in 8 bits
a number. A query looks into the clusters nearest to it and ranks what it finds there. Everything is built from a
stream of blocks, so that the vectors need not fit in memory. Source: faiss (Douze et al., 2024), IVF with scalar
quantiser; the principal components by subspace iteration (Halko, Martinsson and Tropp, 2011).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

FILES = ("coarse.faiss", "basis.npy", "mean.npy")
SAMPLE = 16_384
"""Vectors from which the principal components are found."""
PER_LIST = 40
"""Vectors per cluster from which the clusters are found."""

Vectors = Callable[[np.ndarray], np.ndarray]
"""(n,) rows -> (n, W) float32 vectors."""


def load_faiss() -> Any:
    # Its loader tells which instruction sets it looked for; another library's logging set-up may let that through.
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    import faiss

    return faiss


class Shortlist:
    """Finds rows whose vectors probably have the largest inner products with a query.

    Attributes:
        basis: (W, d) float32, orthonormal columns.      mean: (W,) float32.
        lists: clusters.
    """

    def __init__(self, basis: np.ndarray, mean: np.ndarray, lists: Any) -> None:
        self.basis, self.mean, self._index = basis, mean, lists
        self.lists: int = lists.nlist

    @classmethod
    def build(cls, count: int, vectors: Vectors, width: int, dimensions: int, lists: int, seed: int = 0) -> Shortlist:
        """Read `count` vectors of `width` numbers, in blocks; at most `SAMPLE` or those of one training are held.

        Args:
            dimensions: d, principal components kept, at most W.
            lists: clusters, at most `count`.
        """
        faiss = load_faiss()
        rng = np.random.default_rng(seed)
        sample = vectors(np.sort(rng.choice(count, size=min(SAMPLE, count), replace=False)))
        mean = sample.mean(axis=0)
        sample -= mean
        basis = principal_components(sample, min(dimensions, width), seed)
        del sample

        def reduced(rows: np.ndarray) -> np.ndarray:
            return np.ascontiguousarray((vectors(rows) - mean) @ basis)

        size = basis.shape[1]
        lists = max(1, min(lists, count))
        chosen = np.sort(rng.choice(count, size=min(count, PER_LIST * lists), replace=False))
        training = np.concatenate([reduced(rows) for rows in blocks(chosen)])
        quantizer = faiss.IndexFlatL2(size)  # vectors belong to the nearest centroid
        index = faiss.IndexIVFScalarQuantizer(
            quantizer, size, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False
        )
        index.cp.min_points_per_centroid = 1  # a small index need not warn
        index.train(training)
        del training
        for rows in blocks(np.arange(count)):
            index.add(reduced(rows))
        # Queries look by inner product: one of another number of frames has another length, and no near centroid.
        by_product = faiss.IndexFlatIP(size)
        by_product.add(quantizer.reconstruct_n(0, lists))
        index.quantizer, index.own_fields = by_product, True
        by_product.this.disown()
        return cls(basis, mean, index)

    def search(self, queries: np.ndarray, count: int, probes: int, excluded: np.ndarray | None = None) -> np.ndarray:
        """Return (Q, count) int64 rows, the likeliest first, -1 where the probed clusters hold no more.

        Args:
            queries: (Q, W) float32.
            probes: clusters to look into.
            excluded: rows that are not wanted.
        """
        faiss = load_faiss()
        options: dict[str, Any] = {"nprobe": min(probes, self.lists)}
        if excluded is not None and len(excluded):
            options["sel"] = faiss.IDSelectorNot(faiss.IDSelectorBatch(np.asarray(excluded, dtype=np.int64)))
        reduced = np.ascontiguousarray(queries @ self.basis)
        # Threads share out queries, or, where these are fewer, the clusters of each (faiss calls the ways 0 and 1).
        self._index.parallel_mode = int(len(reduced) < faiss.omp_get_max_threads())
        return self._index.search(reduced, count, params=faiss.SearchParametersIVF(**options))[1]

    def save(self, folder: Path) -> None:
        """Write `FILES` into `folder`."""
        load_faiss().write_index(self._index, str(folder / FILES[0]))
        np.save(folder / FILES[1], self.basis)
        np.save(folder / FILES[2], self.mean)

    @classmethod
    def load(cls, folder: Path) -> Shortlist:
        """Read what `save` wrote.

        Raises:
            ValueError: it is not that.
        """
        faiss = load_faiss()
        try:
            index = faiss.read_index(str(folder / FILES[0]))
        except RuntimeError as error:
            raise ValueError(f"{FILES[0]} cannot be read") from error
        basis, mean = np.load(folder / FILES[1]), np.load(folder / FILES[2])
        if not isinstance(index, faiss.IndexIVF) or basis.shape != (len(mean), index.d):
            raise ValueError(f"{', '.join(FILES)} do not fit together")
        return cls(basis, mean, index)

    def __len__(self) -> int:
        return self._index.ntotal


def blocks(rows: np.ndarray, size: int = 4096) -> Iterator[np.ndarray]:
    """Give `rows` in turn, at most `size` at a time."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def principal_components(sample: np.ndarray, count: int, seed: int = 0, rounds: int = 4) -> np.ndarray:
    """Return (W, count) float32 orthonormal columns that hold most of the variance of `sample` (n, W), centred."""
    width = sample.shape[1]
    if count >= width:
        return np.eye(width, dtype=np.float32)
    data = torch.from_numpy(np.ascontiguousarray(sample, dtype=np.float32))
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(width, min(width, count + 32), generator=generator)
    basis = torch.linalg.qr(basis).Q
    for _ in range(rounds):
        basis = torch.linalg.qr(data.T @ (data @ basis)).Q
    # The sample's own principal directions within the subspace, largest first.
    rotation = torch.linalg.eigh((data @ basis).T @ (data @ basis)).eigenvectors
    return (basis @ rotation.flip(1)[:, :count]).contiguous().numpy()
