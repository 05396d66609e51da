"""What turns sentences and images into features without a network around it: all that an index needs of the model."""

from arvrm.model.config import TextConfig, VisionConfig
from arvrm.model.image_encoder import image_encoder
from arvrm.model.pixels import fit_images
from arvrm.model.published.config import PublishedConfig
from arvrm.model.text import TextEncoder
from arvrm.model.upgrade import described_encoders, upgraded_encoders
from arvrm.model.weights import load_weights, save_weights

__all__ = [
    "PublishedConfig",
    "TextConfig",
    "TextEncoder",
    "VisionConfig",
    "described_encoders",
    "fit_images",
    "image_encoder",
    "load_weights",
    "save_weights",
    "upgraded_encoders",
]
