"""Sentences: the frozen encoder, and how its token embeddings become the language token."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arvrm.interface import UserError
from arvrm.model.backbones import clip_tokenizer, pretrained, transformers_for
from arvrm.model.config import TextConfig
from arvrm.model.transformer import mlp

_CACHED_SENTENCES = 65_536
_Lengths = Callable[[list[str]], list[int]]


class TextEncoder:
    """Frozen text encoder; not part of the network, so that its output can be stored with a window.

    Raises:
        UserError: the weights are not at hand.
    """

    def __init__(self, config: TextConfig | None = None) -> None:
        config = config or TextConfig()
        self.config = config
        self._cache: dict[str, Tensor] = {}
        if config.encoder == "wordllama":
            self._embed, self._lengths = _wordllama(config)
        else:
            self._embed, self._lengths = _clip_text(config)

    def tokens(self, sentences: list[str]) -> tuple[Tensor, Tensor]:
        """Return embeddings (B, L, E) float32, zero past the end, and mask (B, L) bool. Cached per sentence."""
        rows = [self._row(sentence) for sentence in sentences]
        length = max(len(row) for row in rows)
        embeddings = torch.zeros(len(rows), length, self.config.width)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for i, row in enumerate(rows):
            embeddings[i, : len(row)] = row
            mask[i, : len(row)] = True
        return embeddings, mask

    def length(self, sentences: Sequence[str]) -> int:
        """Return L, the tokens of the longest sentence, without embedding any."""
        longest = 0
        for start in range(0, len(sentences), 4096):
            longest = max(longest, *self._lengths([_key(s) for s in sentences[start : start + 4096]]))
        return longest

    def sentence(self, sentences: list[str]) -> Tensor:
        """Return (B, E) float32 of unit length: the mean token, not learnt. What retrieval compares."""
        return F.normalize(torch.stack([self._row(sentence).mean(0) for sentence in sentences]), dim=-1)

    def _row(self, sentence: str) -> Tensor:
        key = _key(sentence)
        if key not in self._cache:
            if len(self._cache) >= _CACHED_SENTENCES:
                self._cache.clear()
            self._cache[key] = self._embed(key)
        return self._cache[key]


def _key(sentence: str) -> str:
    key = " ".join(sentence.lower().split())
    if not key:
        raise UserError(f"instruction {sentence!r} is empty; give at least one word")
    return key


def _wordllama(config: TextConfig) -> tuple[Callable[[str], Tensor], _Lengths]:
    import wordllama

    # The wheel's own folder holds weights and tokenizer; its loader only looks there when told to.
    model = wordllama.WordLlama.load(cache_dir=os.path.dirname(wordllama.__file__), disable_download=True)
    table = torch.from_numpy(np.ascontiguousarray(model.embedding, dtype=np.float32))
    if table.shape[1] != config.width:
        raise UserError(f"text.width: wordllama gives {table.shape[1]} numbers per token, got {config.width}")

    def tokens(sentences: list[str]) -> list[list[int]]:
        # One at a time, since the loader has set padding to the longest for batches.
        encoded = (model.tokenizer.encode_batch([sentence], add_special_tokens=False)[0] for sentence in sentences)
        return [one.ids[: config.max_tokens] for one in encoded]

    return lambda sentence: table[torch.tensor(tokens([sentence])[0])], lambda many: list(map(len, tokens(many)))


def _clip_text(config: TextConfig) -> tuple[Callable[[str], Tensor], _Lengths]:
    transformers = transformers_for("text.encoder 'clip'")
    if config.path and Path(config.path).is_file():
        tokenizer = clip_tokenizer(config.path)
    else:
        tokenizer = pretrained(transformers.AutoTokenizer, config.path, "text.path")
    model = pretrained(transformers.CLIPTextModelWithProjection, config.path, "text.path").eval()
    if model.config.projection_dim != config.width:
        raise UserError(f"text.width: {config.path} gives {model.config.projection_dim} numbers, got {config.width}")

    @torch.no_grad()
    def embed(sentence: str) -> Tensor:
        limit = model.config.max_position_embeddings
        inputs = tokenizer([sentence], return_tensors="pt", truncation=True, max_length=limit)
        return model(**inputs).text_embeds.float()

    return embed, lambda sentences: [1] * len(sentences)


class TextPool(nn.Module):
    """Token embeddings to the language token z_l. Order matters: "open" and "close" sit close as words."""

    def __init__(self, config: TextConfig, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.project = nn.Linear(config.width, width)
        self.position = nn.Parameter(0.02 * torch.randn(max(config.max_tokens, 77), width))
        self.hidden = mlp(width, width, width)
        self.scores = nn.Linear(width, 4)
        self.out = mlp(4 * width, 2 * width, width)

    def forward(self, text: Tensor, mask: Tensor) -> Tensor:
        """Return (B, d) for text (B, L, E) and mask (B, L); four heads each choose their own words."""
        x = self.project(self.norm(text)) + self.position[: text.shape[1]]
        x = x + self.hidden(x)
        scores = self.scores(x).float().masked_fill(~mask[..., None], -1e4).softmax(1)
        return self.out((scores.transpose(1, 2).to(x.dtype) @ x).flatten(1))
