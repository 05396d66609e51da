"""Transformer blocks, the Perceiver resampler and the attention masks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arvrm.interface import UserError


def activation(name: str) -> nn.Module:
    """Return the module called "gelu" (tanh form, as cheap as ReLU here), "exact gelu", "relu" or "none"."""
    kinds = {"gelu": nn.GELU(approximate="tanh"), "exact gelu": nn.GELU(), "relu": nn.ReLU(), "none": nn.Identity()}
    return kinds[name]


def mlp(*widths: int, act: str = "gelu") -> nn.Sequential:
    """Linear layers through `widths` with an activation between them, none after the last."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        layers += [nn.Linear(a, b)] if i == len(widths) - 2 else [nn.Linear(a, b), activation(act)]
    return nn.Sequential(*layers)


def start_at_zero(layer: nn.Module) -> None:
    """Set a linear layer's weights to zero, so that what it adds begins as nothing."""
    assert isinstance(layer, nn.Linear)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


Kernel = Literal["auto", "sdpa", "plain"]
_kernel: Kernel = "auto"


@contextlib.contextmanager
def attention_kernel(kernel: Kernel, model: nn.Module | None = None) -> Iterator[None]:
    """Choose how attention is computed, for the time of the block.

    Args:
        kernel: "sdpa": `scaled_dot_product_attention`, which picks a fused kernel; "plain": two matrix products and a
            softmax; "auto": the faster of the two, which is plain on a CPU in bf16 with gradients, else sdpa.
        model: a ViT of transformers in it follows.
    """
    global _kernel
    before, _kernel = _kernel, kernel
    for module in model.modules() if model is not None else ():
        choose: Any = getattr(module, "set_attn_implementation", None)
        if choose is not None:
            choose("eager" if kernel == "plain" else "sdpa")
    try:
        yield
    finally:
        _kernel = before


def compile_blocks(model: nn.Module, **options: Any) -> int:
    """Compile the repeated parts of `model` in place, and return how many they are.

    Block by block, since blocks of one kind share their code: minutes less than the whole, and almost as fast. Names of
    parameters stay.

    Args:
        options: of `torch.compile`.
    """
    count = 0
    for module in model.modules():
        own = isinstance(module, (Block, FullBlock, PerceiverResampler))
        if own or type(module).__name__ in ("ViTMAELayer", "Dinov2Layer", "FilmedLayer"):
            module.compile(**options)
            count += 1
    return count


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention of (B, Nq, w), (B, Nk, w), (B, Nk, w) -> (B, Nq, w).

    Args:
        mask: broadcastable to (B, heads, Nq, Nk), bool, True: may be seen; each row must allow one key at least.
    """
    q, k, v = _split(q, heads), _split(k, heads), _split(v, heads)
    # On a CPU the fused backward takes nine times as long on short sequences in bf16 (AVX-512, torch 2.13).
    slow = q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled()
    if _kernel == "plain" or (_kernel == "auto" and slow):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if mask is not None:
            # A mask is one for all heads, and in place it costs one pass instead of three.
            hidden = torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
            scores = scores.add_(hidden)
        out = scores.softmax(-1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(-3, -2).flatten(-2)


class Block(nn.Module):
    """Pre-norm block in which all tokens read the first `context` ones: queries are hidden from everyone for free."""

    def __init__(self, width: int, heads: int, act: str, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = mlp(width, 4 * width, width, act=act)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, context: int, mask: Tensor, queries_only: bool) -> Tensor:
        """Transform x (B, context + queries, d); with `queries_only` return (B, queries, d)."""
        normed = self.norm_attention(x)
        keys, values = self.key_value(normed[:, :context]).chunk(2, dim=-1)
        if queries_only:
            x, normed, mask = x[:, context:], normed[:, context:], mask[:, :, context:]
        x = x + self.dropout(self.out(attend(self.query(normed), keys, values, self.heads, mask)))
        return x + self.dropout(self.mlp(self.norm_mlp(x)))


class Transformer(nn.Module):
    """Layer norm, blocks, layer norm: context tokens and query tokens in, query tokens out.

    Only queries are read by heads, so the last block leaves the context where it is.
    """

    def __init__(self, width: int, layers: int, heads: int, act: str = "gelu", dropout: float = 0.0) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(width)
        blocks = [Block(width, heads, act, dropout) for _ in range(layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm_out = nn.LayerNorm(width)
        # Residual branches start small, so that depth does not change the scale of the stream (GPT-2).
        for block in blocks:
            for layer in (block.out, block.mlp[-1]):
                assert isinstance(layer, nn.Linear)
                nn.init.normal_(layer.weight, std=0.02 / (2 * layers) ** 0.5)
                nn.init.zeros_(layer.bias)

    def forward(self, context: Tensor, queries: Tensor, mask: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return (B, Q, d) for context (B, N, d), queries (B, Q, d), mask (B or 1, 1, N + Q, N) of `sequence_mask`.

        `positions` (B or 1, N + Q, d) are added after the first layer norm.
        """
        count = context.shape[1]
        x = self.norm_in(torch.cat([context, queries], dim=1))
        if positions is not None:
            x = x + positions.to(x.dtype)
        for i, block in enumerate(self.blocks):
            x = block(x, count, mask, queries_only=i == len(self.blocks) - 1)
        return self.norm_out(x)


def sequence_mask(token_mask: Tensor, query_frames: Tensor, attention: str) -> Tensor:
    """Say which context token each context token and each query may see.

    Context tokens are ordered by frame, n a frame. A query of frame f sees the context of frames up to f, never a query
    (itself included).

    Args:
        token_mask: (B, T, n) bool, False for tokens that nobody may see: padding, absent clips.
        query_frames: (Q,) int64, the frame of each query.
        attention: "token": a context token sees itself and those before it; "frame": its whole frame too.

    Returns:
        (B, 1, T n + Q, T n) bool. Rows that would be empty (padding) see their own frame's first token, lest the
        softmax divide by zero; nobody reads those rows.
    """
    _, frames, tokens = token_mask.shape
    device = token_mask.device
    key_frame = torch.arange(frames, device=device).repeat_interleave(tokens)
    if attention == "token":
        order = torch.arange(frames * tokens, device=device)
        context = order[:, None] >= order[None, :]
    else:
        context = key_frame[:, None] >= key_frame[None, :]
    structure = torch.cat([context, query_frames[:, None] >= key_frame[None, :]])
    allowed = structure & token_mask.flatten(1)[:, None, :]
    row_frame = torch.cat([key_frame, query_frames])
    anchor = torch.arange(frames * tokens, device=device) == (row_frame * tokens)[:, None]
    empty = ~allowed.any(-1, keepdim=True)
    return (allowed | (empty & anchor))[:, None]


class PerceiverResampler(nn.Module):
    """Reads P patch tokens into M latents: cross-attention to patches and latents, then an MLP, `layers` times.

    After Flamingo (Alayrac et al., 2022).
    """

    def __init__(
        self, width: int, latents: int, layers: int, heads: int, head_width: int, position: bool = False
    ) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.position = nn.Parameter(torch.randn(width)) if position else None
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm_patches": nn.LayerNorm(width),
                    "norm_latents": nn.LayerNorm(width),
                    "query": nn.Linear(width, inner, bias=False),
                    "key_value": nn.Linear(width, 2 * inner, bias=False),
                    "out": nn.Linear(inner, width, bias=False),
                    "norm_mlp": nn.LayerNorm(width),
                    "up": nn.Linear(width, 4 * width, bias=False),
                    "down": nn.Linear(4 * width, width, bias=False),
                }
            )
            for _ in range(layers)
        )
        self.norm_out = nn.LayerNorm(width)

    def forward(self, patches: Tensor) -> Tensor:
        """Return (N, M, D) for patches (N, P, D)."""
        x = self.latents.expand(len(patches), -1, -1)
        if self.position is not None:
            patches = patches + self.position
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleDict)
            normed = layer["norm_latents"](x)
            source = torch.cat([layer["norm_patches"](patches), normed], dim=1)
            keys, values = layer["key_value"](source).chunk(2, dim=-1)
            x = x + layer["out"](attend(layer["query"](normed), keys, values, self.heads, None))
            x = x + layer["down"](F.gelu(layer["up"](layer["norm_mlp"](x))))
        return self.norm_out(x)


class FullBlock(nn.Module):
    """Pre-norm block in which every token sees every other that `mask` (B, N) allows."""

    def __init__(self, width: int, heads: int, act: str = "gelu") -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = mlp(width, 4 * width, width, act=act)

    def forward(self, x: Tensor, mask: Tensor | None = None, common: Tensor | None = None, skip: int = 0) -> Tensor:
        """Return (B, N - skip, d) for x (B, N, d); rows of `mask` must allow one token at least.

        Args:
            common: (C, d), tokens that follow x's in every row, the same in all: N counts them.
            skip: the first tokens are seen by the others, and not returned.
        """
        inner = self.qkv(self.norm_attention(x))
        if common is not None:
            # Projected once instead of B times.
            x = torch.cat([x, common.expand(len(x), -1, -1)], dim=1)
            shared = self.qkv(self.norm_attention(common))
            inner = torch.cat([inner, shared.expand(len(x), -1, -1)], dim=1)
        q, k, v = inner.chunk(3, dim=-1)
        if skip:
            x, q = x[:, skip:], q[:, skip:]
        x = x + self.out(attend(q, k, v, self.heads, None if mask is None else mask[:, None, None, :]))
        return x + self.mlp(self.norm_mlp(x))


def expect(name: str, tensor: object, *shape: int | str) -> None:
    """Check a tensor's shape.

    Args:
        shape: a number where the size is known, a letter where any will do.

    Raises:
        UserError: not a tensor, or another shape; says what was expected and what came.
    """
    wanted = f"({', '.join(map(str, shape))})"
    if not isinstance(tensor, Tensor):
        raise UserError(f"{name}: expected a tensor of shape {wanted}, got {type(tensor).__name__}; add it")
    sizes = tuple(tensor.shape)
    if len(sizes) != len(shape) or any(isinstance(s, int) and s != n for s, n in zip(shape, sizes, strict=True)):
        raise UserError(f"{name}: expected shape {wanted}, got {sizes}; check the window's and the model's settings")


def expect_frames(batch: Mapping[str, Any], *cameras: str) -> None:
    """Check that each camera's images (or features, or tokens) have the windows and frames of `frame_mask`.

    Raises:
        UserError: as `expect`.
    """
    expect("frame_mask", batch.get("frame_mask"), len(batch["text"]), "T")
    for camera in cameras:
        for name in (camera, f"{camera}_features", f"{camera}_tokens"):
            value = batch.get(name)
            if isinstance(value, Tensor):
                expect(name, value, *batch["frame_mask"].shape, *value.shape[2:])
