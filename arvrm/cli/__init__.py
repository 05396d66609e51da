"""The command line: `arvrm VERB ...`, one verb per step of the pipeline."""

from arvrm.cli.command import main, run
from arvrm.cli.flags import field_help, read_arguments
from arvrm.cli.verbs import VERBS, Verb

__all__ = ["VERBS", "Verb", "field_help", "main", "read_arguments", "run"]
