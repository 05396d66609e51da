"""What is to be cut out of which video: annotation files of a user's own folder and of published sets, as `Segment`s.

docs/human_videos.md says where the published sets come from, docs/extending.md how to add one. Nothing here opens a
video.
"""

from arvrm.sources.corpora.egodex import ARKIT_JOINTS, EGODEX_FPS, EgoDexPoses, egodex_poses
from arvrm.sources.corpora.files import VideoFolder
from arvrm.sources.corpora.folder import seconds_of, text_of_name
from arvrm.sources.corpora.plan import SOURCES, Plan, check_source, plan
from arvrm.sources.corpora.published import ego4d_text
from arvrm.sources.corpora.segment import Absent, Refused, Segment, Skipped

__all__ = [
    "ARKIT_JOINTS",
    "EGODEX_FPS",
    "SOURCES",
    "Absent",
    "Plan",
    "Refused",
    "Segment",
    "Skipped",
    "VideoFolder",
    "check_source",
    "ego4d_text",
    "EgoDexPoses",
    "egodex_poses",
    "plan",
    "seconds_of",
    "text_of_name",
]
