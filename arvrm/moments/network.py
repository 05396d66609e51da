"""The scorer of moments: a small network over time that words modulate, and the file that holds its numbers."""

from __future__ import annotations

import functools
import json
import re
from importlib import resources
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from arvrm.interface import UserError
from arvrm.moments.world import LEVELS

MOMENTS = ("touch", "end")
_WIDTH = 32


def words_of(instruction: str) -> list[str]:
    return re.findall(r"[a-z]+", instruction.lower())


class MomentScorer(nn.Module):
    """Scores each step of an episode as its touch and as its end, or says that it has none.

    Args:
        channels: of the signals, motion and images together.
        vocabulary: the words that it knows; others are passed over.

    Its buffer `colours` keeps those of the robot it was fitted to (`body.body_colours`); a hand's are not used.
    """

    def __init__(self, channels: int, vocabulary: tuple[str, ...]) -> None:
        super().__init__()
        self.channels, self.vocabulary = channels, vocabulary
        self._number = {word: n for n, word in enumerate(vocabulary)}
        self.words = nn.Linear(len(vocabulary), 16, bias=False)
        self.first = nn.Conv1d(channels + 2, _WIDTH, 5, padding=2)
        self.layers = nn.ModuleList(nn.Conv1d(_WIDTH, _WIDTH, 5, padding=2 * d, dilation=d) for d in (1, 2, 4, 8))
        self.modulate = nn.ModuleList(nn.Linear(16, 2 * _WIDTH) for _ in range(4))
        self.scores = nn.Conv1d(_WIDTH, len(MOMENTS), 1)
        self.none = nn.Linear(2 * _WIDTH, 1)
        self.register_buffer("colours", torch.zeros(LEVELS, LEVELS, LEVELS, dtype=torch.bool))

    def bag(self, instruction: str) -> Tensor:
        """(vocabulary,) float: which words stand in it, of length 1."""
        bag = torch.zeros(len(self.vocabulary))
        for word in words_of(instruction):
            if word in self._number:
                bag[self._number[word]] = 1.0
        return bag / bag.norm().clamp(min=1.0)

    def forward(self, signals: Tensor, mask: Tensor, bags: Tensor) -> tuple[Tensor, Tensor]:
        """Score.

        Args:
            signals: (B, T, channels); mask: (B, T) bool, true where there is a step; bags: (B, vocabulary).

        Returns: (B, 2, T) scores, -inf outside the mask; (B,) score that there is no moment.
        """
        inside = mask[:, None].float()
        # Where it begins and where it ends, as a convolution cannot know.
        length = mask.sum(1, keepdim=True)
        at = torch.arange(signals.shape[1])[None]
        edges = torch.stack([torch.exp(-at / 10.0).expand_as(mask), torch.exp((at - length) / 10.0).clamp(max=1)], 1)
        hidden = torch.cat([signals.transpose(1, 2), edges], 1) * inside
        hidden = torch.relu(self.first(hidden)) * inside
        meaning = self.words(bags)
        for layer, modulate in zip(self.layers, self.modulate, strict=True):
            gain, shift = modulate(meaning)[..., None].chunk(2, 1)
            hidden = (hidden + torch.relu((1 + gain) * layer(hidden) + shift)) * inside
        mean, most = hidden.sum(2) / length, hidden.amax(2)
        scores = self.scores(hidden).masked_fill(~mask[:, None], float("-inf"))
        return scores, self.none(torch.cat([mean, most], 1))[:, 0]


def resource(embodiment: str) -> Path:
    """The file of the numbers that the package brings."""
    return Path(str(resources.files("arvrm") / "resources" / f"moments_{embodiment}.safetensors"))


@functools.cache
def load_scorer(embodiment: str, file: str = "") -> MomentScorer:
    """Load a scorer; `file` "": the one that the package brings for this embodiment.

    Raises:
        UserError: there is no such file, or it is another.
    """
    path = Path(file) if file else resource(embodiment)
    try:
        with safe_open(str(path), "pt") as content:
            meta = content.metadata() or {}
            scorer = MomentScorer(int(meta["channels"]), tuple(json.loads(meta["vocabulary"])))
            tensors = {name: content.get_tensor(name) for name in content.keys()}
            scorer.load_state_dict({name: t if t.dtype == torch.bool else t.float() for name, t in tensors.items()})
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: is no scorer of moments ({error}); install the package again") from error
    return scorer.eval()
