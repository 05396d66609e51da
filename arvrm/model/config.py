"""The model's configuration: one switch for every choice that the paper leaves open (docs/method.md lists them)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Literal

from arvrm.config import bounded, check_bounds
from arvrm.model.published.config import PublishedConfig


@dataclass(frozen=True)
class TextConfig:
    """Frozen text encoder and how its output becomes the language token.

    Attributes:
        encoder: "wordllama": static token embeddings from the wordllama wheel, off-line; "clip": CLIP's text tower.
        path: the CLIP weights, unused by wordllama: a local directory, a hub name, or OpenAI's own file.
        width: E, numbers per token: 256 for wordllama, the projection size for CLIP (512 for ViT-B/32).
        max_tokens: longer instructions are cut.
    """

    encoder: Literal["wordllama", "clip"] = "wordllama"
    path: str | None = None
    width: int = bounded(256, least=1, most=65536)
    max_tokens: int = bounded(32, least=1, most=4096)

    __post_init__ = check_bounds


@dataclass(frozen=True)
class VisionConfig:
    """Image encoders.

    Attributes:
        encoder: "conv": small, built in, trained from scratch, one per camera; "mae", "dinov2": a ViT through
            transformers, one for all cameras.
        path: the ViT weights: a local directory, a hub name, or the original file (`mae_pretrain_vit_base.pth`).
        backbone: the ViT's own configuration, filled from `path`, so that a checkpoint describes itself.
        modulated: the language token scales and shifts the stream of each block of a ViT after its attention (FiLM),
            through layers that are trained also where the ViT is frozen.
        frozen: do not train the encoder; then cached `*_features` may stand for images.
        input_size: pixels at which a ViT reads (224 for DINOv2, whose own size is 518); None: its own.
        static_size, gripper_size: pixels at which the encoder reads the static camera, and every other one.
        width: D of the conv encoder's outputs.
        channels: the conv encoder's channels at 1/4 and 1/8 of the image size.
        depth: residual blocks at 1/8.
        points: soft-argmax points; the first `landmarks` of them can be supervised.
        landmarks: N of `landmark_pixels`.
        film: scale and shift the conv features by the language token.
        colour_jitter: random gain and offset of the colour channels in training, see `jitter_colours`.
        shift_static, shift_gripper: of the same, the largest random shift in training, as a fraction of the image (10
            of 200, 4 of 84).
    """

    encoder: Literal["conv", "mae", "dinov2"] = "conv"
    path: str | None = None
    backbone: dict[str, Any] | None = None
    modulated: bool = False
    frozen: bool = False
    input_size: int | None = bounded(None, least=1, most=4096)
    static_size: int = bounded(96, least=16, most=4096)
    gripper_size: int = bounded(64, least=16, most=4096)
    width: int = bounded(128, least=1, most=65536)
    channels: tuple[int, int] = bounded((32, 64), least=1, most=8192)
    depth: int = bounded(2, least=0, most=1000)
    points: int = bounded(32, least=1, most=4096)
    landmarks: int = bounded(7, least=0, most=4096)
    film: bool = True
    colour_jitter: float = bounded(0.0, least=0, most=10)
    shift_static: float = bounded(0.05, least=0, most=1)
    shift_gripper: float = bounded(0.048, least=0, most=1)

    __post_init__ = check_bounds

    @property
    def by_words(self) -> bool:
        """Whether the encoder reads the language token."""
        return self.film or self.modulated


@dataclass(frozen=True)
class AnalogyConfig:
    """The analogy map m (S x K) from hand keypoints to robot components.

    Attributes:
        enabled: build the map at all.
        alpha: share of the robot's own features in f* = (1 - alpha) m f_k + alpha f_s.
        map: one of `analogy.MAPS`. "global": one m; "language": m plus a linear function of the language token.
        rows: "softmax": rows of m are distributions over the visible keypoints; "free": any numbers.
        target: "current": the linear readout of f* at T is compared with s_T, as in the paper; "next": with s_{T+1}.
        at_rollout: "on": the retrieved clips' f*, pooled over clips, join each frame as one token before its action
            queries; "off": the map is a training signal only.
    """

    enabled: bool = True
    alpha: float = bounded(0.5, least=0, most=1)
    map: str = "global"
    rows: Literal["softmax", "free"] = "softmax"
    target: Literal["current", "next"] = "current"
    at_rollout: Literal["off", "on"] = "off"

    __post_init__ = check_bounds


@dataclass(frozen=True)
class PlacesConfig:
    """Stage 1's prediction of the hand at the moments of an instruction, by a small network of its own.

    Attributes:
        enabled: build it at all.
        size: pixels at which it reads images; its heatmaps have half of them.
        border: how many times 4 pixels the heatmaps reach beyond each edge of the image, where a hand may touch, too.
        known: the sentences that it was trained on, which training notes here; new ones are read as those like them.
        channels: at 1/2, 1/4 and 1/8 of the image size.
        depth: residual blocks at 1/4 and at 1/8.
        words: width of its language token.
        colour_jitter: in training, random gain and offset of the colour channels, see `jitter_colours`.
        shift, scale, turn: in training, the largest random shift (a fraction of the image), change of size (0.2: from
            1 / 1.2 to 1.2) and turn (degrees).
        occluders: in training, the share of images over which a limb of random shape and colour is laid.
        word_dropout: in training, the share of words that are left out.
        stray_words: in training, at most so many tokens without meaning are put between the words.
    """

    enabled: bool = False
    size: int = bounded(96, least=32, most=1024)
    border: int = bounded(2, least=0, most=64)
    known: tuple[str, ...] = ()
    channels: tuple[int, int, int] = bounded((32, 64, 96), least=8, most=1024)
    depth: tuple[int, int] = bounded((1, 2), least=0, most=100)
    words: int = bounded(96, least=8, most=4096)
    colour_jitter: float = bounded(0.3, least=0, most=10)
    shift: float = bounded(0.1, least=0, most=0.5)
    scale: float = bounded(0.2, least=0, most=1)
    turn: float = bounded(5.0, least=0, most=180)
    occluders: float = bounded(0.5, least=0, most=1)
    word_dropout: float = bounded(0.1, least=0, most=0.9)
    stray_words: int = bounded(2, least=0, most=16)

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.size % 8:
            raise ValueError(f"places.size is {self.size}; give a multiple of 8")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses; at 0 a term is left out, and so is the work that only it needs.

    Attributes:
        arm: smooth-L1 on the actions' continuous numbers (or the flow-matching error), 100 in the paper's code.
        gripper: binary cross-entropy on their binary numbers.
        state: next robot components (L_state).
        analogy: L_AR (the paper's beta).
        keypoints: stage 1's error of a joint: "squared" over its coordinates, as in the paper, or its "distance", which
            neither forgets the near frames, whose errors are small, nor follows the few that cannot be predicted.
        replay: stage-1 loss on the retrieved clips.
        localisation: cross-entropy of the soft-argmax heatmaps against `landmark_pixels`.
        geometry: squared error of where the policy takes the landmarks to be, from the gripper. At a positive weight
            the policy reads that estimate, in the state token and the action head. Needs the conv encoder, and
            landmarks in training but not in rollouts.
        image: squared error of the predicted frames, where `fwd_pred` is on.
        destination: stage 1's cross-entropy of a heatmap of the image, which words modulate, against where the (first)
            hand's root is `horizon` frames later. At a positive weight the heatmap's centre joins the query for the
            poses to come. Needs the conv encoder.
        places: stage 1's error of the hand at the moments, where `places` is enabled.
        others: weights of further objectives by their names (docs/extending.md).
    """

    arm: float = bounded(100.0, least=0, most=10**9)
    gripper: float = bounded(1.0, least=0, most=10**9)
    state: float = bounded(1.0, least=0, most=10**9)
    analogy: float = bounded(1.0, least=0, most=10**9)
    keypoints: Literal["squared", "distance"] = "squared"
    replay: float = bounded(1.0, least=0, most=10**9)
    localisation: float = bounded(0.0, least=0, most=10**9)
    geometry: float = bounded(0.0, least=0, most=10**9)
    image: float = bounded(1.0, least=0, most=10**9)
    destination: float = bounded(0.0, least=0, most=10**9)
    places: float = bounded(1.0, least=0, most=10**9)
    others: dict[str, float] = field(default_factory=dict)

    __post_init__ = check_bounds


@dataclass(frozen=True)
class ModelConfig:
    """Both stages share this; stage 2 must keep what stage 1's weights depend on.

    Attributes:
        published: what of a published architecture the network has in place of our parts; null: nothing.
        width: d of the transformer.
        layers, heads: of the transformer.
        attention: "token": a token sees those before it; "frame": all of its own frame too.
        dropout: in the transformer's residual branches.
        max_frames: longest window (rows of the time embedding).
        latents: M of the Perceiver resampler.
        resampler_layers, resampler_heads, resampler_head_width: 3, 4, 128 in the paper.
        keypoints: K, 21 or 42.
        joint_width: width of the per-joint and per-component features.
        predict_residual: stage 1 predicts the change from what `residual_from` expects, not the pose.
        residual_from: "pose": a joint stays where it was last seen; "velocity": one seen in the last two frames goes on
            as between them.
        horizon: frames after each frame that stage 1 predicts at once, as stage 2 does a chunk of actions; 1: the next
            one only, as in the paper.
        chunk: C.
        action_queries: "each": one query an action; "one": one query for the chunk (fewer tokens).
        query_frames: frames that predict actions in training: "all" or only the "last".
        sighted_queries: the action queries of a frame begin with its cameras' CLS tokens. Without, images reach actions
            through attention alone, which learns to read the robot's state first and small things late or never.
        head: "regression", or "flow": flow matching for the continuous numbers (binary ones stay logits).
        flow_steps: Euler steps of the flow head in `act`.
        fwd_pred: image-prediction head.
        image_decoder_layers, image_patch: of that head.
        freeze_keypoints: stage 2 does not train the keypoint encoder and head.
    """

    text: TextConfig = field(default_factory=TextConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    analogy: AnalogyConfig = field(default_factory=AnalogyConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    places: PlacesConfig = field(default_factory=PlacesConfig)
    width: int = bounded(192, least=1, most=65536)
    layers: int = bounded(4, least=1, most=1000)
    heads: int = bounded(6, least=1, most=4096)
    attention: Literal["token", "frame"] = "token"
    dropout: float = bounded(0.0, least=0, most=0.99)
    max_frames: int = bounded(16, least=1, most=4096)
    latents: int = bounded(4, least=1, most=4096)
    resampler_layers: int = bounded(1, least=1, most=1000)
    resampler_heads: int = bounded(4, least=1, most=4096)
    resampler_head_width: int = bounded(32, least=1, most=65536)
    keypoints: int = bounded(21, least=21, most=42)
    joint_width: int = bounded(64, least=1, most=65536)
    predict_residual: bool = True
    residual_from: Literal["pose", "velocity"] = "pose"
    horizon: int = bounded(1, least=1, most=4096)
    chunk: int = bounded(10, least=1, most=4096)
    action_queries: Literal["each", "one"] = "each"
    query_frames: Literal["all", "last"] = "all"
    sighted_queries: bool = False
    head: Literal["regression", "flow"] = "regression"
    flow_steps: int = bounded(8, least=1, most=10**4)
    fwd_pred: bool = False
    image_decoder_layers: int = bounded(2, least=1, most=1000)
    image_patch: int = bounded(16, least=1, most=4096)
    freeze_keypoints: bool = True
    published: PublishedConfig | None = None

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}; choose heads that divide it")
        if self.keypoints % 21:
            raise ValueError(f"keypoints is {self.keypoints}; give 21 (one hand) or 42 (two)")
        vision = self.vision
        if vision.encoder == "conv":
            for name in ("static_size", "gripper_size"):
                if getattr(vision, name) % 32:
                    raise ValueError(f"vision.{name} is {getattr(vision, name)}; give a multiple of 32")
            if vision.landmarks > vision.points:
                raise ValueError(f"vision.landmarks {vision.landmarks} exceeds vision.points {vision.points}")
        if vision.film and (vision.encoder != "conv" or vision.frozen):
            raise ValueError("vision.film needs a conv encoder in training; set it to false for a ViT or frozen one")
        if self.loss.geometry > 0 and vision.encoder != "conv":
            raise ValueError("loss.geometry: only the conv encoder has heatmaps; set it to 0 or use that encoder")
        if self.loss.destination > 0 and (vision.encoder != "conv" or vision.landmarks == vision.points):
            raise ValueError("loss.destination takes a heatmap of the conv encoder that is no landmark's; set it to 0")
        if vision.modulated and vision.encoder == "conv":
            raise ValueError("vision.modulated is for a ViT; a conv encoder has vision.film")
        if self.analogy.at_rollout == "on" and not self.analogy.enabled:
            raise ValueError("analogy.at_rollout needs analogy.enabled")
        published = self.published
        if published is not None and self.sighted_queries:
            raise ValueError("sighted_queries: no published architecture has them; set it to false")
        if published is not None and published.positions and self.analogy.at_rollout == "on":
            raise ValueError("published.positions leaves no place for analogy.at_rollout's token; set one of them off")
        if published is not None and published.image_decoder == "shared" and vision.encoder == "conv":
            raise ValueError("published.image_decoder 'shared' predicts what a ViT sees; set vision.encoder, or 'each'")
        self._check_memory()

    def _check_memory(self) -> None:
        """Refuse sizes whose weights alone, or one image's activations, exceed this machine's memory."""
        vision, width = self.vision, self.width
        across = self.resampler_heads * self.resampler_head_width
        numbers = {
            "width, layers": 8 * width * width * self.layers,
            "width, max_frames": width * self.max_frames,
            "width, keypoints, joint_width": width * self.keypoints * self.joint_width,
            "width, keypoints, horizon": width * 3 * self.keypoints * self.horizon,
            "width, text.width, text.max_tokens": width * (self.text.width + self.text.max_tokens),
            "resampler_layers, _heads, _head_width": 4 * across * self.resampler_layers * min(vision.width, width),
        }
        if self.fwd_pred:
            numbers["width, image_decoder_layers"] = 8 * width * width * self.image_decoder_layers
        if vision.encoder == "conv":
            fine, coarse = vision.channels
            pixels = vision.static_size**2 // 16
            numbers["vision.channels, depth"] = 9 * (coarse * coarse * vision.depth + fine * fine)
            numbers["vision.channels, width"] = (16 * coarse + vision.width) * vision.width
            numbers["vision.static_size, points, width"] = pixels * (vision.points + fine + vision.width // 16)
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        names, most = max(numbers.items(), key=lambda item: item[1])
        if 4 * most > memory:
            raise ValueError(
                f"{names} make a network of at least {4 * most / 2**30:.0f} GiB, this machine has "
                f"{memory / 2**30:.0f}; make one of them smaller"
            )

    @property
    def tokens_by_words(self) -> bool:
        """Whether a frame's image tokens depend on the instruction, so that they hold for it alone."""
        second = None if self.published is None else self.published.second
        return self.vision.by_words or (second is not None and second.modulated)

    @property
    def features_suffice(self) -> bool:
        """Whether a frozen encoder's features may stand for images: they depend on nothing that is trained."""
        second = None if self.published is None else self.published.second
        return self.vision.frozen and not self.vision.by_words and second is None
