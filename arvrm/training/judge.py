"""How well stage 1 predicts hands, joint by joint, beside simple baselines and with parts of its input taken away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from arvrm.interface import HumanBatch
from arvrm.model.encoders import fit_images
from arvrm.model.keypoint_vlm import KeypointVLM, last_motion, last_seen
from arvrm.training.loop import to_device
from arvrm.windows import HumanWindows, in_batches

PIXELS = 224
"""Side of the image in whose pixels keypoint errors are given."""
HORIZONS = (1, 5, 10)
"""Frames after the window at which stage 1 is judged."""
CONTROLS = ("language_shuffled", "frames_shuffled", "frames_blanked")
"""What the model is given in place of its own inputs, to see what each contributes; see `judge_windows`."""
_GREY = 127


@dataclass(frozen=True)
class Judged:
    """Errors of a set of W windows at H `HORIZONS`.

    Attributes:
        loss: as in training, mean over windows; of the model with its own inputs.
        sums: row ("model", "hold", "velocity" and controls) -> (W, H, K) pixels of a 224 px image, 0 where not counted.
        counts: (W, H, K) bool: the joint is visible then, and was seen in the window.
    """

    loss: float
    sums: dict[str, np.ndarray]
    counts: np.ndarray


def keypoint_errors(
    model: nn.Module, windows: HumanWindows, anchors: np.ndarray, device: torch.device | str = "cpu", batch: int = 128
) -> dict[str, float]:
    """Judge stage 1 on windows it was not trained on.

    Returns:
        loss: as in training; per horizon N (`HORIZONS`, in window spacings) the mean distance in pixels of a 224 px
        image between visible keypoints and: `error_N` the model's, `hold_N` the last pose kept, `velocity_N` the last
        motion continued. Frames past a clip's end count for nothing.
    """
    judged = judge_windows(model, windows, anchors, device, batch)
    names = {"error": "model", "hold": "hold", "velocity": "velocity"}
    total = np.maximum(1, judged.counts.sum(axis=(0, 2)))
    pixels = {
        f"{name}_{horizon}": float(judged.sums[row][:, place].sum() / total[place])
        for name, row in names.items()
        for place, horizon in enumerate(HORIZONS)
    }
    return {"loss": judged.loss, **pixels}


@torch.no_grad()
def judge_windows(
    model: nn.Module,
    windows: HumanWindows,
    anchors: np.ndarray,
    device: torch.device | str = "cpu",
    batch: int = 128,
    controls: Sequence[str] = (),
    seed: int = 0,
) -> Judged:
    """Measure how far predicted keypoints are off, joint by joint, for the model, both baselines and `controls`.

    Controls: "language_shuffled" gives each window the sentence of another clip (of another wording, where there is
    one), "frames_shuffled" the images of another window, "frames_blanked" grey images; all else stays. A joint never
    seen in the window cannot be held, and counts for none of the rows.
    """
    network = cast(KeypointVLM, getattr(model, "module", model))
    device = torch.device(device)
    inputs_of = _Inputs(network, windows, anchors, device, np.random.default_rng(seed))
    rows = ("model", "hold", "velocity", *controls)
    shape = (0, len(HORIZONS), windows.joints)
    loss, sums, counts = 0.0, {row: [np.zeros(shape)] for row in rows}, [np.zeros(shape, bool)]
    at = torch.tensor(HORIZONS, device=device) - 1
    for places in in_batches(np.arange(len(anchors)), batch):
        inputs = to_device(windows.batch(anchors[places]), device)
        loss += float(model(inputs)["loss"]) * len(places)
        truth, visible = (t.to(device)[:, at] for t in windows.future(anchors[places], max(HORIZONS)))
        seen = (inputs["visible"] & inputs["frame_mask"][..., None]).any(1, keepdim=True)
        mask = visible & seen
        guesses = _baselines(inputs, at)
        for row, given in (("model", inputs), *inputs_of.each(controls, places, inputs)):
            guesses[row] = network.predict_next(given, max(HORIZONS)).float()[:, at]
        for row, guess in guesses.items():
            distance = (guess - truth)[..., :2].norm(dim=-1) * (PIXELS / 2)
            sums[row].append(torch.where(mask, distance, torch.zeros_like(distance)).double().cpu().numpy())
        counts.append(mask.cpu().numpy())
    return Judged(
        loss / max(1, len(anchors)),
        {row: np.concatenate(parts) for row, parts in sums.items()},
        np.concatenate(counts),
    )


def _baselines(inputs: HumanBatch, at: Tensor) -> dict[str, Tensor]:
    """Return the last pose kept, and the last motion continued, at `at` (H,), frames after the next one."""
    seen = inputs["visible"] & inputs["frame_mask"][..., None]
    held = last_seen(inputs["keypoints"], seen)[:, -1:]
    motion = last_motion(inputs["keypoints"], seen)[:, -1:]
    return {"hold": held.expand(-1, len(at), -1, -1), "velocity": held + (at + 1)[:, None, None] * motion}


class _Inputs:
    """What the controls put in place of the windows' own inputs."""

    def __init__(
        self,
        network: KeypointVLM,
        windows: HumanWindows,
        anchors: np.ndarray,
        device: torch.device,
        rng: np.random.Generator,
    ) -> None:
        self.network, self.windows, self.anchors, self.device = network, windows, anchors, device
        self.sentences = _others(windows.table.sentence[windows.table.episode_of_image[anchors]], rng)
        self.partner = rng.permutation(len(anchors))

    def each(self, controls: Sequence[str], places: np.ndarray, own: HumanBatch) -> Iterator[tuple[str, HumanBatch]]:
        """Give each control and the batch of the windows `places` under it; `own` is the batch without."""
        for control in controls:
            if control == "language_shuffled":
                text, mask = self.windows.text.take(self.sentences[places])
                changed = {"text": text.to(self.device), "text_mask": mask.to(self.device)}
            elif control == "frames_shuffled":
                other = to_device(self.windows.batch(self.anchors[self.partner[places]]), self.device)
                changed = {name: other[name] for name in ("static", "static_features") if name in other}
            elif control == "frames_blanked":
                changed = self._blank(own)
            else:
                raise ValueError(f"control {control!r} is none of {', '.join(CONTROLS)}")
            yield control, cast(HumanBatch, {**own, **changed})

    def _blank(self, own: HumanBatch) -> dict[str, Tensor]:
        """Return the batch's images as grey ones, or the frozen encoder's features of a grey one."""
        if "static" in own:
            return {"static": torch.full_like(own["static"], _GREY)}
        features, size = own["static_features"], self.network.config.vision.static_size
        grey = torch.full((1, 1, size, size, 3), _GREY, dtype=torch.uint8, device=features.device)
        blank = self.network.image_encoder("static")(fit_images(grey, size)[0], None)[0]
        return {"static_features": blank[:, None].to(features.dtype).expand_as(features)}


def _others(sentences: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give each window the sentence of another, with another wording wherever there is one."""
    others = sentences[rng.permutation(len(sentences))]
    for place in np.flatnonzero(others == sentences):
        different = sentences[sentences != sentences[place]]
        if len(different):
            others[place] = rng.choice(different)
    return others
