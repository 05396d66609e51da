"""Whether PyBullet is installed once: its two distributions (`arvrm.versions`) write the same file."""

from __future__ import annotations

import multiprocessing
import sys

from arvrm import versions


def warn_of_two() -> None:
    """Say on stderr, once and not in workers, that both are installed: no results file could tell which one ran."""
    found = versions.installed("pybullet")
    if len(found) > 1 and multiprocessing.parent_process() is None:
        print(
            f"{' and '.join(found)} are both installed and overwrite each other: "
            f"pip uninstall -y {' '.join(found)}, then install arvrm again",
            file=sys.stderr,
        )
