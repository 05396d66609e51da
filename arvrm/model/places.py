"""Places: where a hand would be in an image at the moments of an instruction, and what it would do there.

A heatmap for each moment marks the acting point (the middle of the tips of thumb and index finger). What belongs to it,
the 21 keypoints around it and the way the hand comes and goes, is read from the features at a point of the heatmap, so
that all of it is of one hypothesis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arvrm.hands.coordinates import DEPTH_UNIT_M
from arvrm.hands.skeleton import TIPS
from arvrm.interface import KEYPOINTS, PlaceBatch, UserError
from arvrm.model.config import PlacesConfig, TextConfig
from arvrm.model.heatmaps import splat_cross_entropy
from arvrm.model.place_images import varied
from arvrm.model.split_batch import divisor, draw_rows
from arvrm.model.text import TextEncoder, TextPool
from arvrm.model.transformer import expect, mlp
from arvrm.resize import resize

if TYPE_CHECKING:
    from arvrm.model.keypoint_vlm import KeypointVLM

PIXELS = 96
"""Side of the image in whose pixels places are given."""
MOMENTS = ("touch", "end")
THUMB, INDEX = TIPS[0], TIPS[1]
MOTION_STEPS = (-15, -8, -4, 4, 8, 15)
"""Steps (1/30 s) from the touch at which the motion descriptor says where the hand is; and at the end."""
MOTION_POINTS = (0, THUMB, INDEX)
MOTION_SIZE = (len(MOTION_STEPS) + 1) * 2 * len(MOTION_POINTS) + len(MOTION_STEPS) + 2
"""D: u, v of wrist, thumb tip and index tip at each of these, from the acting point at the touch; then the opening (the
tips' distance) at each and at the touch: all in pixels of 96."""
NEAR_PX = 4.0
"""A place so near counts as right: what the confidence is of."""
HYPOTHESES = 2
_K = len(KEYPOINTS)
_MOTION_UNIT = 10.0
"""Pixels of the motion descriptor that count as 1."""
_SHAPE_UNIT = 0.2
"""A keypoint so far (of the image's half) from the acting point counts as 1."""
_ALIKE = 0.03
"""A known sentence whose similarity is less by so much counts 1 / e as much."""
_APART = 10.0
"""Pixels between two hypotheses at least."""


@dataclass(frozen=True)
class PredictedHands:
    """The hands that are predicted for B images.

    Attributes:
        keypoints: (B, 2, 21, 2) float32, u and v in pixels of 96, at touch and end; all 21 of one hypothesis.
        depth: (B, 2, 21) float32, m relative to the wrist.
        confidence: (B, 2) float32, 0 to 1: that the acting point is within NEAR_PX of the true one.
        heat: (B, 2, h, w) float32, the probability of the acting point in the image; sums to 1 where none of it lies
            beyond the edges.
        others: (B, 2, HYPOTHESES, 21, 2) float32, keypoints of the next hypotheses, likeliest first.
        motion: (B, MOTION_SIZE) float32, what the hand does around the touch.
        turn: (B, 2) float32, cosine and sine of twice the angle (u to v) of the line from thumb tip to index tip at the
            touch, shorter the less sure: what grips from either side grips alike, which a mean of keypoints cannot say.
    """

    keypoints: np.ndarray
    depth: np.ndarray
    confidence: np.ndarray
    heat: np.ndarray
    others: np.ndarray
    motion: np.ndarray
    turn: np.ndarray

    @property
    def acting(self) -> np.ndarray:
        """(B, 2, 2): the middle of the tips of thumb and index finger."""
        return self.keypoints[:, :, (THUMB, INDEX)].mean(2)


class _Block(nn.Module):
    """A residual 3 x 3 convolution, whose output words scale and shift."""

    def __init__(self, channels: int, words: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(8, channels)
        self.film = nn.Linear(words, 2 * channels)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        gain, offset = self.film(words)[..., None, None].chunk(2, 1)
        return x + torch.relu(self.norm(self.conv(x)) * (1 + gain) + offset)


class PlaceNet(nn.Module):
    """Predicts the hand at the moments from one image and words.

    A network of its own beside the rest of stage 1, so that the poses of the next frames are what they are without it.
    """

    temperature: Tensor
    grid: Tensor

    def __init__(self, config: PlacesConfig, text: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.reach = 1 + 8 * config.border / config.size
        """How far heatmaps reach from the image's middle, the image itself being 1."""
        self._known: tuple[Tensor, Tensor] | None = None
        fine, middle, coarse = config.channels
        words = config.words
        self.text = TextPool(text, words)
        self.stem = nn.Conv2d(12, fine, 3, padding=1)
        self.down1 = nn.Conv2d(fine, middle, 3, stride=2, padding=1)
        self.at_middle = nn.ModuleList(_Block(middle, words) for _ in range(config.depth[0]))
        self.down2 = nn.Conv2d(middle, coarse, 3, stride=2, padding=1)
        self.at_coarse = nn.ModuleList(_Block(coarse, words) for _ in range(config.depth[1]))
        self.whole = mlp(coarse + words, coarse, coarse)
        self.up = nn.Conv2d(coarse, middle, 1)
        self.merged = _Block(middle, words)
        # Each cell of the middle map marks four of the heatmap; the finest map is only compared with what words seek.
        self.heat = nn.Conv2d(middle, 4 * len(MOMENTS), 1)
        self.sought = nn.Linear(words, len(MOMENTS) * fine)
        nn.init.zeros_(self.sought.weight)
        self.shape = mlp(middle + coarse + words, 256, len(MOMENTS) * _K * 3)
        self.motion = mlp(middle + coarse + words, 256, MOTION_SIZE)
        self.turn = mlp(middle + coarse + words, 128, 2)
        self.register_buffer("temperature", torch.ones(len(MOMENTS)))
        line = (torch.arange(config.size // 8) + 0.5) * (16.0 / config.size) - 1
        grid = torch.stack(torch.meshgrid(line, line, indexing="xy"))
        self.register_buffer("grid", grid[None], persistent=False)
        self.place = nn.Conv2d(2, coarse, 1)

    def maps(self, pixels: Tensor, words: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return heatmaps (B, 2, h, h), logits, and the features at two scales that all else is read from.

        h is S / 2 and four times the border.

        Args:
            pixels: (B, 3, S, S), 0 to 255.
            words: (B, n), the language token.
        """
        x = F.pixel_unshuffle(pixels / 64.0 - 2.0, 2).to(memory_format=torch.channels_last)
        x = torch.relu(self.stem(x))
        y = torch.relu(self.down1(x))
        for block in self.at_middle:
            y = block(y, words)
        z = torch.relu(self.down2(y) + self.place(self.grid))
        for block in self.at_coarse:
            z = block(z, words)
        z = z + self.whole(torch.cat([z.mean((2, 3)), words], 1))[..., None, None]
        border = self.config.border
        y = F.pad(y + F.interpolate(self.up(z), scale_factor=2), (border,) * 4, mode="replicate")
        y = self.merged(y, words)
        sought = self.sought(words).unflatten(1, (len(MOMENTS), -1))
        fine = (sought @ x.flatten(2)).unflatten(2, tuple(x.shape[-2:]))
        heat = F.pixel_shuffle(self.heat(y), 2) + F.pad(fine, (2 * border,) * 4)
        return heat.float(), [y, z]

    def read(self, maps: list[Tensor], words: Tensor, at: Tensor) -> Tensor:
        """Return (B, n, C): features at points `at` (B, n, 2), u and v in [-1, 1], and words."""
        found = [
            F.grid_sample(one, (at[:, None] / reach).to(one.dtype), padding_mode="border", align_corners=False)[:, :, 0]
            for one, reach in zip(maps, (self.reach, 1.0), strict=True)
        ]
        return torch.cat([*(one.transpose(1, 2) for one in found), words[:, None].expand(-1, at.shape[1], -1)], -1)

    def hands(self, maps: list[Tensor], words: Tensor, at: Tensor) -> Tensor:
        """Return (B, 2, ..., 21, 3), normalised: the hands whose acting points are `at` (B, 2, ..., 2)."""
        flat = at.reshape(len(at), -1, 2)
        out = self.shape(self.read(maps, words, flat)).float().unflatten(-1, (len(MOMENTS), _K, 3))
        out = out.reshape(*at.shape[:-1], len(MOMENTS), _K, 3)
        own = torch.stack([out[:, m].select(-3, m) for m in range(len(MOMENTS))], 1)
        points = own[..., :2] * _SHAPE_UNIT
        # The acting point is where it is said to be, whatever the hand around it.
        points = points - points[..., (THUMB, INDEX), :].mean(-2, keepdim=True) + at[..., None, :]
        return torch.cat([points, own[..., 2:]], -1)

    def language(self, text: Tensor, mask: Tensor) -> Tensor:
        """Return the language token; in training some words are left out, and some that mean nothing put between."""
        if self.training:
            text, mask = said_otherwise(text, mask, self.config)
        return self.text(text, mask)

    def losses(self, batch: PlaceBatch) -> dict[str, Tensor]:
        """Return the terms of the loss of `interface.PlaceBatch`: "heat", "shape", "motion", "turn"."""
        images, points = batch["image"], batch["points"]
        expect("places.points", points, len(images), len(MOMENTS), _K, 3)
        images = resize(images, self.config.size)
        way = torch.eye(2, device=images.device).expand(len(images), 2, 2)
        if self.training:
            pixels, uv, way = varied(images, points[..., :2], self.config)
        else:
            pixels, uv = images.permute(0, 3, 1, 2).float(), points[..., :2]
        words = self.language(batch["text"], batch["text_mask"])
        heat, maps = self.maps(pixels, words)
        acting = uv[:, :, (THUMB, INDEX)].mean(2)
        weight = batch["known"] * (acting.abs() <= self.reach).all(-1)
        acting = torch.where(weight[..., None] > 0, acting, torch.zeros_like(acting))
        total = divisor(weight.sum())
        error = splat_cross_entropy(heat, acting / self.reach)
        at = acting
        if self.training:
            noise = draw_rows(lambda n, g: torch.randn(n, 2, 2, generator=g, device=images.device), len(images))
            at = acting + noise * (1.0 / PIXELS)
        hands = self.hands(maps, words, at)
        shape = hands - torch.cat([uv - acting[:, :, None] + at[:, :, None], points[..., 2:]], -1)
        shape = torch.cat([shape[..., :2] / _SHAPE_UNIT, shape[..., 2:]], -1)
        shape = F.smooth_l1_loss(shape, torch.zeros_like(shape), reduction="none", beta=0.1).mean(-1)
        seen = batch["visible"] * weight[..., None]
        found = self.read(maps, words, at[:, :1])[:, 0]
        motion = self.motion(found).float()
        line = uv[:, 0, INDEX] - uv[:, 0, THUMB]
        told = batch["visible"][:, 0, THUMB] * batch["visible"][:, 0, INDEX] * weight[:, 0]
        twice = (self.turn(found).float() - twice_angle(line)).square().sum(-1)
        ways = 2 * len(MOTION_POINTS) * (len(MOTION_STEPS) + 1)
        target = batch["motion"] / _MOTION_UNIT
        turned = (target[:, :ways].unflatten(1, (-1, 2)) @ way.transpose(1, 2)).flatten(1)
        gaps = target[:, ways:] * way.det().clamp(min=1e-6).sqrt()[:, None]
        known = batch["motion_known"] * weight[:, :1]
        off = F.smooth_l1_loss(motion, torch.cat([turned, gaps], 1), reduction="none", beta=0.1)
        return {
            "heat": (error * weight).sum() / total,
            "shape": (shape * seen).sum() / divisor(seen.sum()),
            "motion": (off * known).sum() / divisor(known.sum()),
            "turn": (twice * told).sum() / divisor(told.sum()),
        }

    def logits(self, images: Tensor, words: Tensor) -> Tensor:
        """Return the heatmaps of images (B, H, W, 3) uint8 and language tokens, before the temperature."""
        pixels = resize(images, self.config.size).permute(0, 3, 1, 2).float()
        return self.maps(pixels, words)[0]

    @torch.no_grad()
    def understood(self, encoder: TextEncoder, sentences: list[str]) -> Tensor:
        """Return the language tokens (B, n) of sentences; of one that training did not have, those of the most similar
        ones that it had, weighed by how similar they are.

        What a network makes of a token between those that it knows may be anything, however near they are.
        """
        device = self.temperature.device
        own = self.text(*(one.to(device) for one in encoder.tokens(sentences)))
        known, heard = list(self.config.known), set(self.config.known)
        new = torch.tensor([sentence not in heard for sentence in sentences])
        if not known or not new.any():
            return own
        if self._known is None or self._known[0].device != device:
            tokens = self.text(*(one.to(device) for one in encoder.tokens(known)))
            self._known = tokens, encoder.sentence(known).to(device)
        tokens, plain = self._known
        alike = F.normalize(own, dim=-1) @ F.normalize(tokens, dim=-1).T
        alike = alike + encoder.sentence(sentences).to(device) @ plain.T
        return torch.where(new.to(device)[:, None], torch.softmax(alike / _ALIKE, 1) @ tokens, own)

    def train(self, mode: bool = True) -> PlaceNet:
        self._known = None if mode else self._known
        return super().train(mode)

    @torch.no_grad()
    def predict(self, images: Tensor, words: Tensor) -> dict[str, Tensor]:
        """Predict for images (B, H, W, 3) uint8 and language tokens (B, n); see `PredictedHands`, of whose fields it
        gives tensors."""
        pixels = resize(images, self.config.size).permute(0, 3, 1, 2).float()
        logits, maps = self.maps(pixels, words)
        heat = (logits / self.temperature[:, None, None]).flatten(2).softmax(-1).view_as(logits)
        at, mass = modes(heat, 1 + HYPOTHESES, self.reach)
        beyond = 2 * self.config.border
        hands = self.hands(maps, words, at)
        pixel = (hands[..., :2] + 1) * (PIXELS / 2)
        found = self.read(maps, words, at[:, :1, 0])[:, 0]
        return {
            "keypoints": pixel[:, :, 0],
            "depth": (hands[:, :, 0, :, 2] - hands[:, :, 0, :1, 2]) * DEPTH_UNIT_M,
            "confidence": mass[:, :, 0],
            "heat": heat[..., beyond : heat.shape[-2] - beyond, beyond : heat.shape[-1] - beyond],
            "others": pixel[:, :, 1:],
            "motion": self.motion(found).float() * _MOTION_UNIT,
            "turn": self.turn(found).float(),
        }


def twice_angle(line: Tensor) -> Tensor:
    """(..., 2): cosine and sine of twice the angle of lines (..., 2); zeros where there is none."""
    u, v = line.unbind(-1)
    return torch.stack([u * u - v * v, 2 * u * v], -1) / (u * u + v * v).clamp(min=1e-8)[..., None]


def said_otherwise(text: Tensor, mask: Tensor, config: PlacesConfig) -> tuple[Tensor, Tensor]:
    """Leave some words out, and put tokens between that no sentence has, so that unknown words confuse less.

    Args:
        text: (B, L, E); mask: (B, L).

    Returns: (B, L + stray_words, E) and its mask.
    """
    batch, length, width = text.shape
    more = config.stray_words
    drawn = draw_rows(lambda n, g: torch.rand(n, length + 2 * more, generator=g, device=text.device), batch)
    thinned = mask & (drawn[:, :length] >= config.word_dropout)
    mask = torch.where(thinned.any(1, keepdim=True), thinned, mask)
    if not more:
        return text, mask
    noise = draw_rows(lambda n, g: torch.randn(n, more, width, generator=g, device=text.device), batch)
    # Spread about the sentence's middle as its words are.
    count = mask.sum(1)[:, None, None]
    middle = (text * mask[..., None]).sum(1, keepdim=True) / count
    apart = ((text - middle).square() * mask[..., None]).sum((1, 2), keepdim=True) / (count * width)
    stray = middle + apart.sqrt() * noise
    place, there = drawn[:, length : length + more] * mask.sum(1, keepdim=True), drawn[:, length + more :] < 0.5
    order = torch.cat([torch.arange(length, device=text.device).expand(batch, -1).float(), place], 1).argsort(1)
    text = torch.cat([text, stray], 1).gather(1, order[..., None].expand(-1, -1, width))
    return text, torch.cat([mask, there], 1).gather(1, order)


def modes(heat: Tensor, count: int, reach: float = 1.0) -> tuple[Tensor, Tensor]:
    """Find the places about which most of the probability of heatmaps (B, M, h, w) lies.

    Args:
        reach: how far they reach from the image's middle, the image itself being 1.

    Returns:
        (B, M, count, 2) u and v, [-1, 1] in the image, likeliest first; (B, M, count), the probability within NEAR_PX
        of each.
    """
    height, width = heat.shape[-2:]
    side = PIXELS * reach
    cell = side / width
    around = int(NEAR_PX / cell)
    offsets = torch.arange(-around, around + 1, device=heat.device) * cell
    disc = ((offsets[:, None] ** 2 + offsets[None] ** 2) <= NEAR_PX**2).float()[None, None]
    flat = heat.reshape(-1, 1, height, width)
    # The nearest cells count most, lest the middle between two places be taken for one.
    close = F.avg_pool2d(flat, 3, 1, 1, count_include_pad=True) * 9
    mass = F.conv2d(flat, disc, padding=around)
    line = (torch.arange(width, device=heat.device) + 0.5) * cell, (torch.arange(height, device=heat.device) + 0.5)
    u = line[0].expand(height, width)
    v = (line[1] * (side / height))[:, None].expand(height, width)
    left, places, masses = close.clone(), [], []
    for _ in range(count):
        best = left.flatten(1).argmax(1)
        row, column = best // width, best % width
        near = ((u - u[row, column][:, None, None]) ** 2 + (v - v[row, column][:, None, None]) ** 2)[:, None]
        # A centroid of the cells about the best one: finer than cells.
        local = flat * (near <= (2.3 * cell) ** 2)
        share = local / local.sum((2, 3), keepdim=True).clamp(min=1e-12)
        places.append(torch.stack([(share * u).sum((1, 2, 3)), (share * v).sum((1, 2, 3))], -1))
        masses.append(mass.flatten(1).gather(1, best[:, None])[:, 0])
        left = left.masked_fill(near <= _APART**2, -1.0)
    shape = (*heat.shape[:2], count)
    at = torch.stack(places, 1).reshape(*shape, 2) * (2.0 / PIXELS) - reach
    return at, torch.stack(masses, 1).reshape(shape).clamp(0, 1)


def predict_hands(
    vlm: KeypointVLM, text_encoder: TextEncoder, images: np.ndarray, sentences: list[str]
) -> PredictedHands:
    """Predict where a hand would be in images if it did what sentences say.

    Args:
        images: (B, H, W, 3) uint8, of a static camera.
        sentences: B.

    Raises:
        UserError: stage 1 was trained without places.
    """
    net = vlm.places
    if net is None:
        raise UserError("places: this stage 1 was trained without; train one with model.places.enabled=true")
    device = next(net.parameters()).device
    net.eval()
    pixels = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(device)
    found = net.predict(pixels, net.understood(text_encoder, sentences))
    return PredictedHands(**{name: value.cpu().numpy() for name, value in found.items()})
