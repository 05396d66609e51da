"""What export and conversion share: where LeRobot puts what, and which of its features is which of our arrays.

Features are named and shaped as in the community's CALVIN conversions: observation.images.top (static camera) and
.wrist (gripper camera) as H.264, observation.state (robot_obs, 15), observation.environment_state (scene_obs, 24),
action (relative, 7), action.absolute (7), all float32. What float32 and video cannot carry travels in columns that
start with `arvrm.` (float64 arrays, bit for bit) and `arvrm/` (an episode's id, group, image steps ...), so that a
store comes back as it was, images apart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from arvrm.interface import UserError
from arvrm.sources.pipeline import LeftOut

VERSION = "v3.0"
CAMERA_FEATURES = {"rgb_static": "observation.images.top", "rgb_gripper": "observation.images.wrist"}
ARRAY_FEATURES = {
    "robot_obs": "observation.state",
    "scene_obs": "observation.environment_state",
    "actions": "action",
    "absolute_actions": "action.absolute",
}
_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH = f"data/{_FILE}.parquet"
VIDEO_PATH = f"videos/{{video_key}}/{_FILE}.mp4"
V2_DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
V2_VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
EPISODES_PATH = f"meta/episodes/{_FILE}.parquet"


def arrow() -> tuple[Any, Any]:
    """Return the modules pyarrow and pyarrow.parquet; UserError where they are not installed."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError:
        raise UserError("LeRobot data sets need pyarrow; install it with `pip install arvrm[lerobot]`") from None
    return pyarrow, pyarrow.parquet


@contextlib.contextmanager
def parquet_errors() -> Iterator[None]:
    """Turn whatever pyarrow meets in a damaged file into OSError; our own errors pass."""
    try:
        yield
    except (UserError, LeftOut, OSError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
