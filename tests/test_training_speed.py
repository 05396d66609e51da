"""What makes a training step fast changes no result, and the host never waits for the device within a step."""

import pytest
import torch
from model_batches import robot_batch, small
from test_segments import VIT
from torch.utils._python_dispatch import TorchDispatchMode

from arvrm.model.policy_net import PolicyNet
from arvrm.model.published.config import PublishedConfig
from arvrm.model.transformer import FullBlock, attend, attention_kernel, compile_blocks
from arvrm.robots.calvin import CALVIN
from arvrm.training import TrainConfig
from arvrm.training.loop import Trainer

WAITS = {
    "_local_scalar_dense": "reads a number",
    "nonzero": "asks how many there are",
    "masked_select": "asks how many there are",
    "_unique2": "asks how many there are",
    "equal": "reads a number",
    "is_nonzero": "reads a number",
    "lift_fresh": "copies a list from the host",
    "index": "asks how many there are, of a mask",
}
"""Operators for which the host waits if their tensors are on a GPU."""


class Waits(TorchDispatchMode):
    """Counts operators of `WAITS`; needs no GPU to find them."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split("::")[1].split(".")[0]
        if name in WAITS:
            # Single numbers that fill a slice, and indices that are numbers, stay on the device.
            filled = name == "lift_fresh" and args[0].dim() == 0
            taken = name == "index" and not any(i is not None and i.dtype == torch.bool for i in args[1])
            self.found += [] if filled or taken else [name]
        return function(*args, **(kwargs or {}))


CASES = {
    "conv": {"loss": {"localisation": 1.0}, "analogy": {"at_rollout": "on", "map": "language"}},
    "shifted, recoloured": {"vision": {"shift_static": 0.2, "colour_jitter": 0.3}},
    "flow": {"head": "flow"},
    "as published": {
        "vision": {"encoder": "mae", "backbone": VIT, "film": False, "frozen": True},
        "published": PublishedConfig(activation="gelu", text_pooling="attention", positions=256),
    },
}


def built(case, **changes):
    settings = small(**{"fwd_pred": True, "image_patch": 8, **CASES[case], **changes})
    if settings.vision.encoder != "conv":
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    clips = 0 if case == "as published" else 2
    return PolicyNet(settings, CALVIN).train(), robot_batch(clips=clips)


def test_a_wait_is_found_when_there_is_one():
    x = torch.randn(4)
    for wait in (lambda: x.sum().item(), lambda: x[x > 0], lambda: torch.tensor([1.0, 2.0]), lambda: float(x[0])):
        with Waits() as waits:
            wait()
        assert waits.found
    with Waits() as waits:
        (x + torch.full_like(x, 2.0)).sum()
    assert not waits.found


@pytest.mark.parametrize("case", CASES)
def test_the_host_waits_for_nothing_within_a_step(case):
    model, batch = built(case)
    model(batch)  # what is made once and kept may be copied
    with Waits() as waits:
        model(batch)["loss"].backward()
    assert not waits.found


def test_the_loop_reads_numbers_only_when_it_logs(tmp_path):
    model, batch = built("conv")
    settings = TrainConfig(
        steps=8, batch=2, warmup=1, log_every=4, validate_every=0, checkpoint_every=0, device="cpu", tensorboard=False
    )
    read = []

    def batch_of(step, micro_batch):
        read.append(list(waits.found))
        waits.found.clear()
        return batch

    trainer = Trainer(model, batch_of, settings, tmp_path, save=lambda *_: None)
    trainer.check_now = False  # as on a GPU
    with Waits() as waits:
        trainer.run(progress=False)
    # Before batch n stands what was read since batch n - 1: update 4 (batch 3) logged.
    assert [index for index, found in enumerate(read) if "_local_scalar_dense" in found and index > 1] == [4]
    assert waits.found, "the last update logs"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", CASES)
def test_the_gpu_is_never_waited_for_within_a_step(case):
    model, batch = built(case)
    from arvrm.training.loop import to_device

    model, batch = model.cuda(), to_device(batch, torch.device("cuda"))
    model(batch)["loss"].backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(batch)["loss"]
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("case", ["conv", "as published"])
def test_both_attention_kernels_give_one_result(case):
    model, batch = built(case)
    model.eval()
    losses = {}
    for kernel in ("sdpa", "plain"):
        with attention_kernel(kernel, model):
            losses[kernel] = model(batch)["loss"].item()
    assert losses["sdpa"] == pytest.approx(losses["plain"], rel=1e-5)


def test_plain_attention_calls_no_fused_kernel(monkeypatch):
    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        "arvrm.model.transformer.F.scaled_dot_product_attention", lambda *a, **k: (calls.append(1), fused(*a, **k))[1]
    )
    q = torch.randn(2, 5, 8)
    for kernel, expected in (("plain", 0), ("sdpa", 1), ("auto", 2)):
        with attention_kernel(kernel):
            attend(q, q, q, 2, None)
        assert len(calls) == expected


def test_compiled_blocks_give_the_same_losses_under_the_same_names():
    model, batch = built("as published")
    model.eval()
    names, before = list(model.state_dict()), model(batch)["loss"]
    assert compile_blocks(model, backend="eager") == 2 + 2 + 1 + 1 + 1  # transformer, decoder, resampler, ViT, joints
    torch.testing.assert_close(model(batch)["loss"], before)
    assert list(model.state_dict()) == names


def test_tokens_that_all_rows_share_are_projected_once():
    torch.manual_seed(0)
    block = FullBlock(16, 2)
    given, common = torch.randn(3, 4, 16), torch.randn(6, 16, requires_grad=True)
    whole = block(torch.cat([given, common.expand(3, -1, -1)], dim=1))
    rows = []
    block.qkv.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].numel() // 16))
    shared = block(given, common=common, skip=4)
    assert rows == [3 * 4, 6] and torch.allclose(shared, whole[:, 4:], atol=1e-6)
    gradients = [torch.autograd.grad(x.square().sum(), common)[0] for x in (shared, whole[:, 4:])]
    assert torch.allclose(*gradients, atol=1e-4)
