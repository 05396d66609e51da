"""Windows over episode stores: which frames, states, keypoints and actions a model sees together.

Everything that is not an image is held in flat NumPy arrays (one row a step or a frame, all stores one after another),
so that a batch is a handful of gathers. Images come from a `FrameSource` per camera: a `FrameBank`, decoded once into
memory or into a memory-mapped cache, for small data; `StoreFrames`, read from the stores on demand, for large.

An *anchor* is the last frame of a window, named by its global image row; so windows end only where an image exists.
"""

from arvrm.windows.config import WindowConfig, upgraded_window
from arvrm.windows.frames import FrameBank, Frames, FrameSource, StoreFrames, decode_frames
from arvrm.windows.headers import HUMAN_CAMERA, Names, StoreHeaders, static_camera, store_fingerprint
from arvrm.windows.human import HAND_KEYPOINTS, IN_MEMORY_BYTES, HumanWindows, choose_hand
from arvrm.windows.places import PlaceSamples
from arvrm.windows.robot import RobotWindows
from arvrm.windows.sampling import (
    Anchors,
    AnchorSampler,
    cell_counts,
    few_shot,
    held_out_groups,
    in_batches,
    mixing_shares,
    permuted,
    split_episodes,
)
from arvrm.windows.segments import Segments, cut_segments
from arvrm.windows.table import EpisodeTable, exact_stride
from arvrm.windows.text import LazyText, TextTable

__all__ = [
    "AnchorSampler",
    "Anchors",
    "EpisodeTable",
    "FrameBank",
    "FrameSource",
    "Frames",
    "HAND_KEYPOINTS",
    "HUMAN_CAMERA",
    "HumanWindows",
    "IN_MEMORY_BYTES",
    "LazyText",
    "Names",
    "PlaceSamples",
    "RobotWindows",
    "Segments",
    "StoreFrames",
    "StoreHeaders",
    "TextTable",
    "WindowConfig",
    "cell_counts",
    "choose_hand",
    "cut_segments",
    "exact_stride",
    "decode_frames",
    "few_shot",
    "held_out_groups",
    "in_batches",
    "mixing_shares",
    "permuted",
    "split_episodes",
    "static_camera",
    "store_fingerprint",
    "upgraded_window",
]
