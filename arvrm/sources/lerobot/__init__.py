"""LeRobot data sets (format v3) out of a robot store and into one; docs/calvin.md has sizes and PSNR."""

from arvrm.sources.lerobot.convert import ConvertLeRobotConfig, LeRobotReport, convert_lerobot
from arvrm.sources.lerobot.export import ExportLeRobotConfig, export_lerobot

__all__ = [
    "ConvertLeRobotConfig",
    "ExportLeRobotConfig",
    "LeRobotReport",
    "convert_lerobot",
    "export_lerobot",
]
