"""The index of human clips: which clips resemble what the robot sees and is told."""

from arvrm.retrieval.align import resample, warp
from arvrm.retrieval.build import SearchConfig, build_index, write_index
from arvrm.retrieval.encoders import FrozenEncoders, frame_features
from arvrm.retrieval.index import ClipIndex, Matches
from arvrm.retrieval.retrieved import RetrievalConfig, RetrievedClips
from arvrm.retrieval.table import Clips

__all__ = [
    "ClipIndex",
    "Clips",
    "FrozenEncoders",
    "Matches",
    "RetrievalConfig",
    "RetrievedClips",
    "SearchConfig",
    "build_index",
    "frame_features",
    "resample",
    "warp",
    "write_index",
]
