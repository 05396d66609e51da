"""LeRobot data sets: of any robot into a store, and CALVIN's out of one; docs/data.md, docs/calvin.md."""

from arvrm.sources.lerobot.convert import ConvertLeRobotConfig, LeRobotReport, convert_lerobot
from arvrm.sources.lerobot.describe import DescribeLeRobotConfig, Facts, describe_lerobot, tell
from arvrm.sources.lerobot.export import ExportLeRobotConfig, export_lerobot

__all__ = [
    "ConvertLeRobotConfig",
    "DescribeLeRobotConfig",
    "ExportLeRobotConfig",
    "Facts",
    "LeRobotReport",
    "convert_lerobot",
    "describe_lerobot",
    "export_lerobot",
    "tell",
]
