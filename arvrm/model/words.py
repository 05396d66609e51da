"""What sentences mean to retrieval."""

from __future__ import annotations

import numpy as np
import torch

from arvrm.model.keypoint_vlm import KeypointVLM
from arvrm.model.text import TextEncoder


@torch.no_grad()
def sentence_words(vlm: KeypointVLM, text: TextEncoder, sentences: list[str], plain: float = 1.0) -> np.ndarray:
    """Return (n, E) float32 of unit length: what places make of sentences, and plain words, which count `plain`."""
    assert vlm.places is not None
    tokens, mask = text.tokens(sentences)
    device = next(vlm.places.parameters()).device
    meant = torch.nn.functional.normalize(vlm.places.text(tokens.to(device), mask.to(device)), dim=-1)
    found = np.concatenate([plain * text.sentence(sentences).numpy(), meant.cpu().numpy()], 1)
    return found / np.linalg.norm(found, axis=1, keepdims=True)
