"""Masks and blocks: who sees whom."""

import pytest
import torch

from arvrm.interface import UserError
from arvrm.model.transformer import PerceiverResampler, Transformer, attend, expect, sequence_mask


def run(context, queries, frames, query_frames, attention="token", token_mask=None):
    torch.manual_seed(0)
    model = Transformer(16, layers=3, heads=2).eval()
    tokens = context.shape[1] // frames
    if token_mask is None:
        token_mask = torch.ones(len(context), frames, tokens, dtype=torch.bool)
    return model(context, queries, sequence_mask(token_mask, torch.tensor(query_frames), attention))


def inputs(frames=3, tokens=4, queries=3):
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, frames * tokens, 16, generator=g), torch.randn(2, queries, 16, generator=g)


def changed(a, b):
    return [bool((a[:, i] - b[:, i]).abs().max() > 1e-6) for i in range(a.shape[1])]


@pytest.mark.parametrize("attention", ["token", "frame"])
def test_queries_are_hidden_from_all_other_queries(attention):
    context, queries = inputs()
    moved = queries.clone()
    moved[:, 1] = torch.randn(16)
    before = run(context, queries, 3, [0, 1, 2], attention)
    assert changed(before, run(context, moved, 3, [0, 1, 2], attention)) == [False, True, False]


@pytest.mark.parametrize("attention", ["token", "frame"])
def test_a_query_sees_frames_up_to_its_own(attention):
    context, queries = inputs()
    moved = context.clone()
    moved[:, 4:8] = torch.randn(4, 16)
    before = run(context, queries, 3, [0, 1, 2], attention)
    assert changed(before, run(moved, queries, 3, [0, 1, 2], attention)) == [False, True, True]


def test_token_attention_hides_later_tokens_of_the_frame_and_frame_attention_shows_them():
    mask = torch.ones(1, 2, 3, dtype=torch.bool)
    token = sequence_mask(mask, torch.tensor([1]), "token")[0, 0]
    frame = sequence_mask(mask, torch.tensor([1]), "frame")[0, 0]
    assert token[0].tolist() == [True] + [False] * 5
    assert frame[0].tolist() == [True] * 3 + [False] * 3
    assert token[-1].all() and frame[-1].all()


def test_masked_tokens_influence_nothing_and_empty_rows_stay_finite():
    context, queries = inputs()
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    mask[:, 0] = False
    before = run(context, queries, 3, [0, 1, 2], token_mask=mask)
    moved = context.clone()
    moved[:, :4] = 100.0 * torch.randn(4, 16)
    after = run(moved, queries, 3, [0, 1, 2], token_mask=mask)
    assert torch.isfinite(after).all()
    assert changed(before, after)[1:] == [False, False]


def test_attention_in_bf16_with_gradients_equals_the_fused_kernel():
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, n, 16, generator=g).bfloat16().requires_grad_() for n in (5, 4, 4))
    mask = torch.rand(3, 1, 5, 4, generator=g) > 0.3
    mask[..., 0] = True
    composed = attend(q, k, v, 2, mask)
    with torch.no_grad():
        fused = attend(q, k, v, 2, mask)
    exact = attend(q.float(), k.float(), v.float(), 2, mask)
    assert (composed - exact).abs().max() < 0.05
    assert (fused - exact).abs().max() < 0.05


def test_resampler_reads_patches_in_any_order_alike():
    torch.manual_seed(0)
    model = PerceiverResampler(16, latents=3, layers=2, heads=2, head_width=8)
    patches = torch.randn(2, 9, 16)
    out = model(patches)
    assert out.shape == (2, 3, 16)
    assert torch.allclose(out, model(patches.flip(1)), atol=1e-5)
    assert not torch.allclose(out, model(patches + torch.randn(9, 16)), atol=1e-3)


def test_wrong_shapes_say_what_was_expected_and_what_came():
    with pytest.raises(UserError, match=r"state: expected shape \(2, T, 18\), got \(2, 3, 15\)"):
        expect("state", torch.zeros(2, 3, 15), 2, "T", 18)
    with pytest.raises(UserError, match=r"state: expected a tensor of shape \(2, 18\), got NoneType"):
        expect("state", None, 2, 18)
