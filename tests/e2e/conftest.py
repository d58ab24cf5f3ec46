"""In these tests a maildir is a path: the programs under test open it themselves."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def maildir(path: Path) -> Path:
    """An empty maildir."""
    return path
