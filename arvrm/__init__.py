"""arvrm: learn robot manipulation from human hands (AR-VRM, ICCV 2025) and evaluate it on CALVIN."""

__version__ = "0.1.0"
