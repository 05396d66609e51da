"""Episodes on disk: one LMDB store for robot and human demonstrations, read at random, written crash-safe."""

from arvrm.episodes.check import damage
from arvrm.episodes.describe import inspect_store
from arvrm.episodes.merge import merge_stores
from arvrm.episodes.records import (
    FORMAT,
    JPEG_QUALITY,
    JPEG_SUBSAMPLING,
    VERSION,
    EncodedEpisode,
    encode_episode,
    encode_image,
)
from arvrm.episodes.schema import (
    EMBODIMENTS,
    HAND_ARRAYS,
    HAND_CAMERAS,
    EncodedImages,
    Episode,
    EpisodeHeader,
    validate_episode,
)
from arvrm.episodes.store import EpisodeStore
from arvrm.episodes.writer import EpisodeWriter

__all__ = [
    "EMBODIMENTS",
    "FORMAT",
    "HAND_ARRAYS",
    "HAND_CAMERAS",
    "JPEG_QUALITY",
    "JPEG_SUBSAMPLING",
    "VERSION",
    "EncodedEpisode",
    "EncodedImages",
    "Episode",
    "EpisodeHeader",
    "EpisodeStore",
    "EpisodeWriter",
    "damage",
    "encode_episode",
    "encode_image",
    "inspect_store",
    "merge_stores",
    "validate_episode",
]
