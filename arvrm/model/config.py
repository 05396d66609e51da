"""The model's configuration: one switch for every choice that the paper leaves open (docs/method.md lists them)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

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
    width: int = 256
    max_tokens: int = 32


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
    input_size: int | None = None
    static_size: int = 96
    gripper_size: int = 64
    width: int = 128
    channels: tuple[int, int] = (32, 64)
    depth: int = 2
    points: int = 32
    landmarks: int = 7
    film: bool = True
    colour_jitter: float = 0.0
    shift_static: float = 0.05
    shift_gripper: float = 0.048

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
    alpha: float = 0.5
    map: str = "global"
    rows: Literal["softmax", "free"] = "softmax"
    target: Literal["current", "next"] = "current"
    at_rollout: Literal["off", "on"] = "off"


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
        others: weights of further objectives by their names (docs/extending.md).
    """

    arm: float = 100.0
    gripper: float = 1.0
    state: float = 1.0
    analogy: float = 1.0
    keypoints: Literal["squared", "distance"] = "squared"
    replay: float = 1.0
    localisation: float = 0.0
    geometry: float = 0.0
    image: float = 1.0
    destination: float = 0.0
    others: dict[str, float] = field(default_factory=dict)


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
    width: int = 192
    layers: int = 4
    heads: int = 6
    attention: Literal["token", "frame"] = "token"
    dropout: float = 0.0
    max_frames: int = 16
    latents: int = 4
    resampler_layers: int = 1
    resampler_heads: int = 4
    resampler_head_width: int = 32
    keypoints: int = 21
    joint_width: int = 64
    predict_residual: bool = True
    residual_from: Literal["pose", "velocity"] = "pose"
    horizon: int = 1
    chunk: int = 10
    action_queries: Literal["each", "one"] = "each"
    query_frames: Literal["all", "last"] = "all"
    head: Literal["regression", "flow"] = "regression"
    flow_steps: int = 8
    fwd_pred: bool = False
    image_decoder_layers: int = 2
    image_patch: int = 16
    freeze_keypoints: bool = True
    published: PublishedConfig | None = None

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}; choose heads that divide it")
        if self.keypoints % 21:
            raise ValueError(f"keypoints is {self.keypoints}; give 21 (one hand) or 42 (two)")
        for name in ("layers", "max_frames", "horizon", "latents", "chunk", "joint_width", "flow_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")
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
        if not 0.0 <= self.analogy.alpha <= 1.0:
            raise ValueError(f"analogy.alpha is {self.analogy.alpha}; give a number from 0 to 1")
        if self.analogy.at_rollout == "on" and not self.analogy.enabled:
            raise ValueError("analogy.at_rollout needs analogy.enabled")
        published = self.published
        if published is not None and published.positions and self.analogy.at_rollout == "on":
            raise ValueError("published.positions leaves no place for analogy.at_rollout's token; set one of them off")
        if published is not None and published.image_decoder == "shared" and vision.encoder == "conv":
            raise ValueError("published.image_decoder 'shared' predicts what a ViT sees; set vision.encoder, or 'each'")

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
