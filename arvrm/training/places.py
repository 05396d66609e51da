"""Stage 1's places in training: their samples, how far they are off on held-out clips, and how sure they may be."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from arvrm.interface import PlaceBatch, UserError
from arvrm.model.heatmaps import splat_cross_entropy
from arvrm.model.places import INDEX, MOMENTS, MOTION_STEPS, NEAR_PX, PIXELS, THUMB, PlaceNet
from arvrm.training.agreement import MomentFinder
from arvrm.training.loop import to_device
from arvrm.windows import EpisodeTable, HumanWindows, PlaceSamples, in_batches

_TEMPERATURES = torch.logspace(-1, 1, 41)


def moments_of(table: EpisodeTable, finder: MomentFinder) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps (E, 2) of the touch and end of every episode, and how sure each is (E, 2), 0 to 1."""
    found = finder.moments(table, range(len(table)))
    steps = np.array([(one.touch, one.end) for one in found], np.int64).reshape(-1, 2)
    sure = np.array([(one.touch_confidence, one.end_confidence) for one in found], np.float32).reshape(-1, 2)
    return steps, sure


def place_samples(windows: HumanWindows, finder: MomentFinder) -> PlaceSamples:
    """Return the samples of the clips of `windows`.

    Raises:
        UserError: the windows have no images, or no clip's touch was found.
    """
    if windows.frames is None or windows.frames.features:
        raise UserError("places: need images, and data.frozen_features gives none; set it to false")
    hands = windows
    if windows.joints != 21:
        hands = HumanWindows(windows.table, windows.config, 21, windows.text, None, windows.keypoints is not None)
    moments, sure = moments_of(windows.table, finder)
    if not (sure[:, 0] > 0).any():
        raise UserError("places: in no clip a touch was found; look at some with `arvrm moments`")
    return PlaceSamples(hands, windows.frames, moments, sure, MOTION_STEPS)


@torch.no_grad()
def judge_places(
    net: PlaceNet, samples: PlaceSamples, episodes: np.ndarray, device: torch.device | str = "cpu", batch: int = 64
) -> dict[str, float]:
    """Judge places on the first images of clips, and set the net's temperatures by them.

    Returns:
        `places_touch`, `places_touch_90`: median and 90th percentile of the distance from the predicted acting point
        to the clip's own, pixels of 96; `places_touch_right`: the share of those within NEAR_PX; the same of "end".
    """
    net.eval()
    logits, true, known, off = [], [], [], []
    for some in in_batches(samples.usable(episodes), batch):
        given: PlaceBatch = to_device(samples.batch(some, np.zeros(len(some), np.int64)), torch.device(device))
        words = net.text(given["text"], given["text_mask"])
        logits.append(net.logits(given["image"], words).cpu())
        points = given["points"][..., :2].cpu()
        true.append(points[:, :, (THUMB, INDEX)].mean(2))
        known.append(given["known"].cpu() > 0)
        found = net.predict(given["image"], words)["keypoints"].cpu()
        acting = found[:, :, (THUMB, INDEX)].mean(2)
        off.append((acting - (true[-1] + 1) * (PIXELS / 2)).norm(dim=-1))
    if not logits:
        return {}
    where, distance, there = torch.cat(true), torch.cat(off), torch.cat(known)
    net.temperature.copy_(temperatures(torch.cat(logits), where / net.reach, there))
    values = {}
    for number, name in enumerate(MOMENTS):
        own = distance[:, number][there[:, number]]
        if len(own):
            values |= {f"places_{name}": float(own.median()), f"places_{name}_90": float(own.quantile(0.9))}
            values[f"places_{name}_right"] = float((own <= NEAR_PX).float().mean())
    return values


def temperatures(logits: Tensor, where: Tensor, known: Tensor) -> Tensor:
    """Return (M,) by what logits (n, M, h, w) are to be divided to be likeliest at `where` (n, M, 2)."""
    best = torch.ones(logits.shape[1])
    for moment in range(logits.shape[1]):
        own = known[:, moment] & (where[:, moment].abs() <= 1).all(-1)
        if own.any():
            costs = [splat_cross_entropy(logits[own, moment] / t, where[own, moment]).mean() for t in _TEMPERATURES]
            best[moment] = _TEMPERATURES[int(torch.stack(costs).argmin())]
    return best
