"""The study: what hands give a robot with few demonstrations, and its controls."""

from arvrm.study.run import StudyConfig, study

__all__ = ["StudyConfig", "study"]
