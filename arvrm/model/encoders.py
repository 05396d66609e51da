"""What turns observations into features, under one name; each is in a module of its own."""

from arvrm.model.config import TextConfig, VisionConfig
from arvrm.model.conv import ConvEncoder
from arvrm.model.heatmaps import centres, splat_cross_entropy
from arvrm.model.image_encoder import image_encoder
from arvrm.model.joints import ComponentEncoder, JointEncoder
from arvrm.model.pixels import fit_images, jitter_colours
from arvrm.model.text import TextEncoder, TextPool
from arvrm.model.vit import FilmedLayer, VitEncoder

__all__ = [
    "ComponentEncoder",
    "ConvEncoder",
    "FilmedLayer",
    "JointEncoder",
    "TextConfig",
    "TextEncoder",
    "TextPool",
    "VisionConfig",
    "VitEncoder",
    "centres",
    "fit_images",
    "image_encoder",
    "jitter_colours",
    "splat_cross_entropy",
]
