"""The tokens of one frame: which there are, in what order, how many. Whatever counts tokens asks here.

    stage 1   language | keypoints | static              :: pose
              1        | 1         | M latents, CLS      :: 1

    stage 2   language | state | static | gripper .. | (analogy) :: action | image                | state
              1        | 1     | M, CLS | M, CLS     | 1         :: Q      | cameras x (M + 1)    | 1

Left of :: stand the tokens that give a frame's context, in groups; right of it its queries, hidden from all tokens. A
window is the context of all its frames, then the queries that are asked: those of actions for some frames, all others
for every frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from arvrm.model.transformer import expect


@dataclass(frozen=True)
class Group:
    """Tokens that come together: their parts in order, and how many tokens each has."""

    name: str
    parts: tuple[tuple[str, int], ...]

    @property
    def size(self) -> int:
        return sum(count for _, count in self.parts)


@dataclass(frozen=True)
class FrameLayout:
    """One frame's tokens.

    Attributes:
        context: its groups, in order; the first is the language token.
        queries: kinds of queries and how many of each a frame has.
    """

    context: tuple[Group, ...]
    queries: tuple[tuple[str, int], ...]

    @property
    def size(self) -> int:
        """Tokens of context."""
        return sum(group.size for group in self.context)

    def where(self, name: str, part: str) -> slice | None:
        """Return the places, in a frame, of a part of a group; None: no frame has it."""
        at = 0
        for group in self.context:
            for own, count in group.parts:
                if (group.name, own) == (name, part):
                    return slice(at, at + count)
                at += count
        return None

    def count(self, kind: str) -> int:
        """Queries of a kind in a frame."""
        return dict(self.queries)[kind]

    def assemble(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Return the context (B, T, size, d) of the groups' tokens (B, T, n, d), all as the first one's type."""
        first = tokens[self.context[0].name]
        parts = []
        for group in self.context:
            expect(f"{group.name} tokens", tokens[group.name], *first.shape[:2], group.size, first.shape[3])
            parts.append(tokens[group.name].to(first.dtype))
        return torch.cat(parts, dim=2)


def hand_layout(latents: int) -> FrameLayout:
    """Return stage 1's layout, for M latents of an image."""
    return FrameLayout((_one("language"), _one("keypoints"), camera_group("static", latents)), (("pose", 1),))


def policy_layout(cameras: Sequence[Group], actions: int, images: int, analogy: bool) -> FrameLayout:
    """Return stage 2's layout.

    Args:
        cameras: the tokens of each, in the robot's order.
        actions, images: queries of actions and of coming images in a frame.
        analogy: retrieved clips join each frame as one token.
    """
    context = (_one("language"), _one("state"), *cameras, *([_one("analogy")] if analogy else []))
    return FrameLayout(context, (("action", actions), ("image", images), ("state", 1)))


def camera_group(role: str, latents: int) -> Group:
    """Return the tokens of the camera of this role: M latents of its patches, then CLS."""
    return Group(role, (("latents", latents), ("cls", 1)))


def _one(name: str) -> Group:
    return Group(name, ((name, 1),))


class Queries(NamedTuple):
    """The queries that are asked of a window.

    Attributes:
        tokens: (1, Q, d).
        frames: (Q,) int64, the frame of each.
        slices: kind -> from, to, of its queries. Those of a frame stand together, in the layout's number.
    """

    tokens: Tensor
    frames: Tensor
    slices: dict[str, tuple[int, int]]


def asked(kinds: Sequence[tuple[str, Tensor, range]], device: torch.device) -> Queries:
    """Return queries: per kind its name, the tokens (n, d) that a frame has of it, and the frames that ask it."""
    tokens: list[Tensor] = []
    frames: list[Tensor] = []
    slices: dict[str, tuple[int, int]] = {}
    at = 0
    for name, parameter, where in kinds:
        tokens.append(parameter.repeat(len(where), 1))
        # Made on the device: a list would be copied there, and the host would wait.
        frame = torch.arange(where.start, where.stop, device=device)
        frames.append(frame.repeat_interleave(len(parameter)))
        size = len(where) * len(parameter)
        slices[name] = (at, at + size)
        at += size
    return Queries(torch.cat(tokens)[None], torch.cat(frames), slices)


class Window(NamedTuple):
    """A window of frames on its way into the transformer.

    Attributes:
        tokens: (B, T, n, d), the context.
        token_mask: (B, T, n) bool, False for tokens that nobody may see.
        queries: (1 or B, Q, d); query_frames (Q,) int64, the frame of each.
        slices: kind -> from, to, of its queries.
        layout: of each frame.
        added: (1 or B, T n + Q, d), what is added after the transformer's first layer norm; None: nothing.
    """

    tokens: Tensor
    token_mask: Tensor
    queries: Tensor
    query_frames: Tensor
    slices: dict[str, tuple[int, int]]
    layout: FrameLayout
    added: Tensor | None = None
