"""Fixtures that several test files share: data outside the repository, absent on a clean clone."""

import os
from pathlib import Path

import pytest

# Before torch is imported, here or in a subprocess: test files run beside each other, and results are compared to the
# bit, which takes the same number of threads everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def outside(variable: str, folder: str) -> Path:
    path = Path(os.environ.get(variable) or SHARED / folder)
    if not path.is_dir():
        pytest.skip(f"{variable}: no folder {path}")
    return path


@pytest.fixture(scope="session")
def calvin_root() -> Path:
    """A checkout of mees/calvin (its assets and configuration)."""
    return outside("CALVIN_ROOT", "calvin")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Recordings of the official simulator."""
    return outside("ARVRM_GOLDEN", "golden")


@pytest.fixture(scope="session")
def hands_folder() -> Path:
    """MediaPipe's hand model and three photos of one left hand."""
    return outside("ARVRM_HANDS", "hands")


@pytest.fixture(scope="session")
def cases() -> Path:
    """Inputs modelled on public reports, each with its right behaviour in the folder's README.md."""
    return outside("ARVRM_CASES", "cases")
