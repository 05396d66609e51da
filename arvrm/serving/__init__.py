"""A policy behind a socket: one model, many sessions, each with a history and a plan of its own."""

from arvrm.serving.config import ServeConfig
from arvrm.serving.run import serve

__all__ = ["ServeConfig", "serve"]
