"""Embeddings of the instructions of a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class TextTable:
    """Embeddings of every sentence of a table, computed once: text (U, L, E) float32, mask (U, L) bool."""

    text: torch.Tensor
    mask: torch.Tensor

    def take(self, sentences: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.from_numpy(np.ascontiguousarray(sentences, dtype=np.int64))
        return self.text[rows], self.mask[rows]


class LazyText:
    """The same embeddings as a `TextTable`'s, computed when a batch needs them: for more sentences than memory holds.

    Args:
        sentences: of the table.
        tokens: sentences -> embeddings (n, l, E) float32, zero past the end, and mask (n, l) bool.
        length: L, tokens of the longest sentence.
    """

    def __init__(
        self, sentences: Sequence[str], tokens: Callable[[list[str]], tuple[torch.Tensor, torch.Tensor]], length: int
    ) -> None:
        self.sentences, self.tokens, self.length = sentences, tokens, length

    def take(self, sentences: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        rows, inverse = np.unique(sentences, return_inverse=True)
        text, mask = self.tokens([self.sentences[int(row)] for row in rows])
        at = torch.from_numpy(inverse.reshape(np.shape(sentences)))
        short = self.length - text.shape[1]
        text, mask = torch.nn.functional.pad(text, (0, 0, 0, short)), torch.nn.functional.pad(mask, (0, short))
        return text[at], mask[at]
