"""What pytest sets up for every test."""

import os
import sys

import pytest
from hypothesis import settings

# Debian's default PATH of a plain user lacks the folders of mailfront and mkfs.
os.environ["PATH"] += ":/usr/local/sbin:/usr/sbin:/sbin"


def pytest_configure(config: pytest.Config) -> None:
    """Refuse pytest-xdist's workers where comparing bytes with text is no error; see tests/run."""
    if hasattr(config, "workerinput") and sys.flags.bytes_warning < 2:
        raise pytest.UsageError("start workers as tests/run does, with python -bb")


settings.register_profile("house", deadline=None)
settings.load_profile("house")


@pytest.fixture(autouse=True)
def _no_colours_no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests the same on every terminal."""
    monkeypatch.setenv("NO_COLOR", "1")
