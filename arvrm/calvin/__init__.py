"""CALVIN's own Python packages, for evaluation scripts that import them: `python -m arvrm.calvin SCRIPT ...`.

`install()` puts stand-ins for `calvin_env` and `calvin_agent` before a script's imports. Behind them are this project's
table, oracle, chains and start states, so that a script's chains and outcomes are those of `arvrm evaluate`.
docs/dropin.md says what is covered; what is not says so by name when it is used.
"""

from arvrm.calvin.missing import Missing
from arvrm.calvin.options import Options
from arvrm.calvin.stand_ins import install

__all__ = ["Missing", "Options", "install"]
