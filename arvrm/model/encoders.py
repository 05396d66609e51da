"""What turns observations into features: sentences, images, joints."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arvrm.interface import UserError
from arvrm.model import backbones
from arvrm.model.config import ModelConfig, TextConfig, VisionConfig
from arvrm.model.shares import draw_rows
from arvrm.model.transformer import FullBlock, mlp

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
    transformers = _transformers("text.encoder 'clip'")
    if config.path and Path(config.path).is_file():
        tokenizer = backbones.clip_tokenizer(config.path)
    else:
        tokenizer = _pretrained(transformers.AutoTokenizer, config.path, "text.path")
    model = _pretrained(transformers.CLIPTextModelWithProjection, config.path, "text.path").eval()
    if model.config.projection_dim != config.width:
        raise UserError(f"text.width: {config.path} gives {model.config.projection_dim} numbers, got {config.width}")

    @torch.no_grad()
    def embed(sentence: str) -> Tensor:
        limit = model.config.max_position_embeddings
        inputs = tokenizer([sentence], return_tensors="pt", truncation=True, max_length=limit)
        return model(**inputs).text_embeds.float()

    return embed, lambda sentences: [1] * len(sentences)


def _transformers(need: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"{need} needs transformers; run pip install 'arvrm[backbones]'") from error
    return transformers


def _pretrained(kind: Any, path: str | None, place: str) -> Any:
    if not path:
        raise UserError(f"{place} is not set; give a local directory with the weights, a hub name or the original file")
    if Path(path).is_file():
        return backbones.load_original(path, kind.__name__)
    try:
        return kind.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{place}: cannot load {path!r} ({reason}); download it once and give its directory") from error


def fit_images(images: Tensor, size: int, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """Resize and, with `shift`, move each window's images by one random offset; edges are repeated.

    Args:
        images: (B, T, H, W, 3) uint8.
        size: pixels of the result's sides. A resize is bilinear and anti-aliased.
        shift: largest offset as a fraction of the image, drawn from torch's global generator.

    Returns:
        (B * T, size, size, 3) uint8, and (B, 2) float32: what to add to u, v in [-1, 1] of things in the images.
    """
    batch, frames, height, width = images.shape[:4]
    images = images.flatten(0, 1)
    if (height, width) != (size, size):
        smooth = F.interpolate(
            images.permute(0, 3, 1, 2).float(), (size, size), mode="bilinear", antialias=True, align_corners=False
        )
        images = smooth.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    reach = round(shift * size)
    if reach == 0:
        return images, torch.zeros(batch, 2, device=images.device)
    device = images.device
    offset = draw_rows(lambda n, g: torch.randint(-reach, reach + 1, (n, 2), generator=g, device=device), batch)
    line = torch.arange(size, device=images.device)
    columns = (line - offset[:, :1]).clamp_(0, size - 1).repeat_interleave(frames, 0)
    rows = (line - offset[:, 1:]).clamp_(0, size - 1).repeat_interleave(frames, 0)
    pixel = torch.arange(len(images), device=images.device)[:, None, None] * size * size
    index = (pixel + rows[:, :, None] * size + columns[:, None, :]).flatten()
    moved = images.reshape(-1, 3).index_select(0, index).view(len(images), size, size, 3)
    return moved, offset * (2.0 / size)


def jitter_colours(images: Tensor, windows: int, strength: float) -> Tensor:
    """Scale and shift each colour channel of each window's images at random, as another light or camera would.

    Args:
        images: (B * T, H, W, 3) uint8.
        windows: B; the T images of a window change alike.
        strength: gains are drawn from 1 - strength to 1 + strength, common to the channels and a third of that for
            each, offsets from -128 to 128 times half of it; from torch's global generator.

    Returns:
        (B * T, H, W, 3) uint8.
    """
    if strength == 0.0:
        return images
    frames = len(images) // windows
    device = images.device
    common, single, offset = (
        draw_rows(lambda rows, g, n=n: torch.rand(rows, n, generator=g, device=device), windows) * 2.0 - 1.0
        for n in (1, 3, 3)
    )
    gain = 1.0 + strength * common + strength / 3.0 * single
    # Around the middle, so that brightness and contrast vary together.
    offset = 128.0 * (1.0 - gain) * 0.5 + 64.0 * strength * offset
    levels = torch.arange(256, device=device, dtype=torch.float32)
    table = (gain[..., None] * levels + offset[..., None]).clamp_(0.0, 255.0).to(torch.uint8)  # (B, 3, 256)
    window = torch.arange(windows, device=device).repeat_interleave(frames)
    start = (window[:, None] * 3 + torch.arange(3, device=device)) * 256  # (B * T, 3)
    index = images.to(torch.int32) + start[:, None, None].to(torch.int32)
    return table.flatten().index_select(0, index.flatten()).view(images.shape)


class ConvEncoder(nn.Module):
    """Small image encoder, trained from scratch: where things are (soft-argmax points) and what is where (pooled map).

    A fine map (1/4 of the image) gives the points, a coarse one (1/8) context and patches. The language token, if
    `film`, scales and shifts both, so that words choose early what to look for.
    """

    def __init__(self, config: VisionConfig, size: int, language_width: int) -> None:
        super().__init__()
        fine, coarse = config.channels
        self.size, self.width, self.fine, self.coarse = size, config.width, size // 4, size // 8
        self.stem = nn.Conv2d(12, fine, 3, stride=2, padding=1)
        self.refine = nn.Conv2d(fine, fine, 3, padding=1)
        self.down = nn.Conv2d(fine, coarse, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(coarse, coarse, 3, padding=1) for _ in range(config.depth))
        self.heat_fine = nn.Conv2d(fine, config.points, 1)
        self.heat_coarse = nn.Conv2d(coarse, config.points, 1)
        self.patch = nn.Linear(coarse, config.width)
        self.position = nn.Parameter(0.02 * torch.randn((self.coarse // 2) ** 2, config.width))
        self.cls = mlp(2 * config.points + 16 * coarse, config.width, config.width)
        self.film = nn.Linear(language_width, 2 * coarse) if config.film else None
        if self.film is not None:
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)
        line = (torch.arange(self.fine, dtype=torch.float32) + 0.5) * (2.0 / self.fine) - 1.0
        grid = torch.stack([line.repeat(self.fine), line.repeat_interleave(self.fine)])
        self.register_buffer("grid", grid, persistent=False)

    @property
    def patches(self) -> int:
        """P."""
        return (self.coarse // 2) ** 2

    def forward(self, images: Tensor, language: Tensor | None) -> tuple[Tensor, Tensor]:
        """Encode images.

        Args:
            images: (N, size, size, 3) uint8.
            language: (N, language_width), or None without `film`.

        Returns:
            features (N, 1 + P, D): CLS, then patches by rows; heatmaps (N, size / 4, size / 4, points), logits.
        """
        half = self.size // 2
        x = images.view(-1, half, 2, half, 2, 3).permute(0, 1, 3, 2, 4, 5).reshape(-1, half, half, 12)
        kind = images.device.type
        lower = torch.is_autocast_enabled(kind)
        x = x.to(torch.get_autocast_dtype(kind) if lower else self.stem.weight.dtype).permute(0, 3, 1, 2)
        # Scaling 0..255 to -2..2 in the weights saves two passes over the largest tensor; bf16 holds 0..255 exactly.
        weight = self.stem.weight / 64.0
        bias = self.stem.bias - 128.0 * weight.sum((1, 2, 3))
        x = F.conv2d(x, weight, bias, stride=2, padding=1).relu_()
        x = (x + self.refine(x)).relu_()
        y = self.down(x).relu_()
        if self.film is not None:
            scale, offset = self.film(language).to(y.dtype)[..., None, None].chunk(2, dim=1)
            y = torch.addcmul(y + offset, y, scale)
        for block in self.blocks:
            y = (y + block(y)).relu_()
        logits = self.heat_fine(x) + F.interpolate(self.heat_coarse(y), scale_factor=2, mode="nearest")
        logits = logits.permute(0, 2, 3, 1)
        pooled = F.avg_pool2d(y, self.coarse // 4).permute(0, 2, 3, 1).flatten(1)
        patches = self.patch(F.avg_pool2d(y, 2).permute(0, 2, 3, 1).flatten(1, 2)) + self.position
        # Coordinates need more digits than bf16 has.
        with torch.autocast(kind, enabled=False):
            weights = logits.flatten(1, 2).softmax(1, dtype=torch.float32)
            points = (self.grid @ weights).flatten(1)
        cls = self.cls(torch.cat([points.to(pooled.dtype), pooled], dim=1))
        return torch.cat([cls[:, None], patches.to(cls.dtype)], dim=1), logits


def centres(logits: Tensor) -> Tensor:
    """Soft-argmax of heatmaps: (..., h, w, points) logits to (..., points, 2) float32, u and v in [-1, 1]."""
    height, width = logits.shape[-3:-1]
    across, down = ((torch.arange(n, device=logits.device) + 0.5) * (2.0 / n) - 1.0 for n in (width, height))
    grid = torch.stack([across.repeat(height), down.repeat_interleave(width)], dim=-1)
    weights = logits.flatten(-3, -2).softmax(-2, dtype=torch.float32)
    # Coordinates need more digits than bf16 has.
    with torch.autocast(logits.device.type, enabled=False):
        return weights.transpose(-1, -2) @ grid


def splat_cross_entropy(logits: Tensor, where: Tensor) -> Tensor:
    """Cross-entropy of heatmaps against points spread bilinearly over their four nearest cells.

    The best heatmap's soft-argmax is then the point itself, to a fraction of a cell.

    Args:
        logits: (..., h, w).
        where: (..., 2), u and v in [-1, 1]; outer values are moved to the edge cells.

    Returns:
        (...) float32.
    """
    height, width = logits.shape[-2:]
    # Axis by axis, with sizes as plain numbers: a tensor of them would be copied to the device at every step.
    axes = list(zip(where.unbind(-1), (width, height), strict=True))
    cell = torch.stack([((x + 1.0) * (n / 2.0) - 0.5).clamp(0.0, n - 1) for x, n in axes], dim=-1)
    low = torch.stack([x.floor().clamp(max=n - 2) for x, (_, n) in zip(cell.unbind(-1), axes, strict=True)], dim=-1)
    part = cell - low
    low = low.long()
    log_probability = logits.float().flatten(-2).log_softmax(-1)
    total = torch.zeros(logits.shape[:-2], device=logits.device)
    for du in (0, 1):
        for dv in (0, 1):
            weight = (part[..., 0] if du else 1 - part[..., 0]) * (part[..., 1] if dv else 1 - part[..., 1])
            index = (low[..., 1] + dv) * width + low[..., 0] + du
            total = total - weight * log_probability.gather(-1, index[..., None])[..., 0]
    return total


class FilmedLayer(nn.Module):
    """A block of a ViT whose stream words scale and shift between attention and MLP (FiLM, Perez et al., 2018).

    Where and how as in AR-VRM's published code: h (1 + gamma) + beta, both linear in the language token. They start at
    zero here, so that training starts from what the ViT has learnt.
    """

    def __init__(self, block: nn.Module, width: int, language_width: int) -> None:
        super().__init__()
        self.block = block
        self.scale, self.shift = nn.Linear(language_width, width), nn.Linear(language_width, width)
        for layer in (self.scale, self.shift):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.words: Tensor | None = None

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Tensor:
        """Return (N, 1 + P, D) for `hidden` (N, 1 + P, D), with `words` (N, language_width) set before."""
        block, words = self.block, self.words
        if hasattr(block, "norm1"):  # DINOv2's names
            attended = block.attention(block.norm1(hidden), attention_mask=attention_mask, **options)[0]
            hidden = block.drop_path(block.layer_scale1(attended)) + hidden
        else:
            hidden = block.attention(block.layernorm_before(hidden), attention_mask, **options)[0] + hidden
        hidden = hidden * (1.0 + self.scale(words)[:, None]) + self.shift(words)[:, None]
        if hasattr(block, "norm2"):
            return block.drop_path(block.layer_scale2(block.mlp(block.norm2(hidden)))) + hidden
        return block.mlp(block.layernorm_after(hidden)) + hidden


class VitEncoder(nn.Module):
    """MAE's or DINOv2's ViT through transformers: CLS and patch tokens of the last layer.

    Args:
        language_width: of the words, where they modulate it.
    """

    def __init__(self, config: VisionConfig, language_width: int = 0) -> None:
        super().__init__()
        transformers = _transformers(f"vision.encoder {config.encoder!r}")
        names = {"mae": ("ViTMAEConfig", "ViTMAEModel"), "dinov2": ("Dinov2Config", "Dinov2Model")}[config.encoder]
        kind, model = (getattr(transformers, name) for name in names)
        # MAE's class hides patches unless told that none are masked.
        extra = {"mask_ratio": 0.0} if config.encoder == "mae" else {}
        if config.backbone is not None:
            self.model = model(kind(**{**config.backbone, **extra}))
        else:
            self.model = _pretrained(model, config.path, "vision.path")
            for name, value in extra.items():
                setattr(self.model.config, name, value)
        settings = self.model.config
        self.masks = bool(extra)
        self.size, self.width = config.input_size or settings.image_size, settings.hidden_size
        if self.size % settings.patch_size:
            raise UserError(f"vision.input_size: {self.size} is no multiple of the ViT's patch, {settings.patch_size}")
        self.patches = (self.size // settings.patch_size) ** 2
        self.clamp = config.clamp
        self.register_buffer("mean", 255.0 * torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        spread = torch.tensor([0.229, 0.224, 0.225]) + (0.0 if config.clamp else 1e-6)
        self.register_buffer("std", 255.0 * spread[:, None, None], persistent=False)
        if config.frozen:
            self.model.requires_grad_(False)
        self.filmed: list[FilmedLayer] = []
        if config.modulated:
            # transformers keeps MAE's blocks in the model and DINOv2's in its encoder.
            layers = self.model.layers if hasattr(self.model, "layers") else self.model.encoder.layer
            for i, block in enumerate(layers):
                layers[i] = FilmedLayer(block, self.width, language_width)
                self.filmed.append(layers[i])

    def pixels(self, images: Tensor) -> Tensor:
        """Return (N, 3, size, size) float32, normalised by ImageNet's statistics, for images (N, H, W, 3) uint8."""
        x = images.permute(0, 3, 1, 2).float()
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True)
            x = x.clamp(0.0, 255.0) if self.clamp else x
        return (x - self.mean) / self.std

    def backbone(self) -> dict[str, Any]:
        """The transformers configuration that rebuilds this encoder."""
        return self.model.config.to_diff_dict()

    def forward(self, images: Tensor, language: Tensor | None) -> tuple[Tensor, None]:
        """Return features (N, 1 + P, D) for images (N, H, W, 3) uint8, resized here (bicubic); no heatmaps.

        `language` (N, language_width) is read by a modulated ViT only.
        """
        x = self.pixels(images)
        for layer in self.filmed:
            layer.words = language
        try:
            return self._features(x), None
        finally:
            for layer in self.filmed:
                layer.words = None

    def _features(self, x: Tensor) -> Tensor:
        if self.masks:
            # The class shuffles patches by this noise; ascending noise keeps their order.
            noise = torch.arange(self.patches, device=x.device, dtype=torch.float32).expand(len(x), -1)
            other = {"interpolate_pos_encoding": True} if self.size != self.model.config.image_size else {}
            return self.model(x, noise=noise, **other).last_hidden_state
        return self.model(x).last_hidden_state


def pretrained_model(config: VisionConfig) -> Any:
    """Return the transformers model of `config.path`: a local directory, a hub name or the original file."""
    transformers = _transformers(f"vision.encoder {config.encoder!r}")
    name = {"mae": "ViTMAEModel", "dinov2": "Dinov2Model"}[config.encoder]
    return _pretrained(getattr(transformers, name), config.path, "vision.path")


def image_encoder(config: VisionConfig, size: int, language_width: int) -> ConvEncoder | VitEncoder:
    """Build the encoder of one camera whose images the conv encoder reads at `size` pixels."""
    if config.encoder != "conv":
        return VitEncoder(config, language_width)
    encoder = ConvEncoder(config, size, language_width)
    if config.frozen:
        encoder.requires_grad_(False)
    return encoder


def second_encoder(config: VisionConfig, language_width: int) -> VitEncoder:
    """Build the frozen ViT of `config.second`."""
    second = config.second
    own = dataclasses.replace(
        config,
        encoder=second.encoder,
        path=second.path,
        backbone=second.backbone,
        input_size=second.input_size,
        modulated=second.modulated,
        second=None,
        frozen=True,
    )
    try:
        return VitEncoder(own, language_width)
    except UserError as error:
        raise UserError(str(error).replace("vision.", "vision.second.")) from error


class TextPool(nn.Module):
    """Token embeddings to the language token z_l. Order matters: "open" and "close" sit close as words."""

    def __init__(self, config: TextConfig, width: int) -> None:
        super().__init__()
        self.pooling = config.pooling
        if config.pooling != "attention":
            self.project = nn.Linear(config.width, width)
            return
        self.norm = nn.LayerNorm(config.width)
        self.project = nn.Linear(config.width, width)
        self.position = nn.Parameter(0.02 * torch.randn(max(config.max_tokens, 77), width))
        self.hidden = mlp(width, width, width)
        self.scores = nn.Linear(width, 4)
        self.out = mlp(4 * width, 2 * width, width)

    def forward(self, text: Tensor, mask: Tensor) -> Tensor:
        """Return (B, d) for text (B, L, E) and mask (B, L); four heads each choose their own words."""
        if self.pooling != "attention":
            weight = mask.to(text.dtype)[..., None]
            mean = (text * weight).sum(1) / weight.sum(1).clamp(min=1.0)
            if self.pooling == "unit":
                mean = mean / (mean.norm(dim=-1, keepdim=True) + 1e-6)
            return self.project(mean)
        x = self.project(self.norm(text)) + self.position[: text.shape[1]]
        x = x + self.hidden(x)
        scores = self.scores(x).float().masked_fill(~mask[..., None], -1e4).softmax(1)
        return self.out((scores.transpose(1, 2).to(x.dtype) @ x).flatten(1))


class JointEncoder(nn.Module):
    """Per-joint features f_k, after HandFormer's idea: each joint's place, motion and relation to the others.

    Reads a joint's coordinates, those relative to the wrist (joint 0 of its hand), the change since the frame before,
    and which joint it is; then joints attend to each other. Joints that are not visible hide behind a learnt vector.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.joint_width
        self.joint = nn.Parameter(0.5 * torch.randn(config.keypoints, width))
        self.missing = nn.Parameter(torch.zeros(width))
        self.lift = nn.Linear(9, width)
        self.hidden = mlp(width, 2 * width, width)
        self.block = FullBlock(width, heads=2) if config.joint_attention else None
        self.norm = nn.LayerNorm(width)

    def forward(self, keypoints: Tensor, visible: Tensor) -> Tensor:
        """Return f_k (B, T, K, d_k) for keypoints (B, T, K, 3) and visible (B, T, K); padding must not be visible."""
        seen = visible[..., None].to(keypoints.dtype)
        pose = keypoints * seen
        wrist, has_wrist = pose.unflatten(2, (-1, 21))[..., :1, :], seen.unflatten(2, (-1, 21))[..., :1, :]
        relative = ((pose.unflatten(2, (-1, 21)) - wrist) * has_wrist).flatten(2, 3) * seen
        change = torch.zeros_like(pose)
        change[:, 1:] = (pose[:, 1:] - pose[:, :-1]) * seen[:, 1:] * seen[:, :-1]
        # Hand-sized and step-sized differences are a tenth of the image; brought to the scale of coordinates.
        x = self.lift(torch.cat([pose, 4.0 * relative, 8.0 * change], dim=-1))
        x = torch.where(visible[..., None], x, self.missing.to(x.dtype)) + self.joint
        x = x + self.hidden(x)
        if self.block is not None:
            shape = x.shape
            # A frame without a visible joint lets all see all, lest the softmax divide by zero.
            mask = visible | ~visible.any(-1, keepdim=True)
            x = self.block(x.flatten(0, 1), mask.flatten(0, 1)).view(shape)
        return self.norm(x)


class ComponentEncoder(nn.Module):
    """Per-component features f_s (S x d_k): a robot component's value and which component it is."""

    def __init__(self, config: ModelConfig, components: int) -> None:
        super().__init__()
        width = config.joint_width
        self.scale = nn.Parameter(torch.randn(components, width))
        self.component = nn.Parameter(0.5 * torch.randn(components, width))
        self.hidden = mlp(width, 2 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, components: Tensor) -> Tensor:
        """Return (..., S, d_k) for components (..., S)."""
        x = components[..., None] * self.scale + self.component
        return self.norm(x + self.hidden(x))
