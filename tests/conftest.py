"""What pytest sets up for every test."""

import pytest
from hypothesis import settings

settings.register_profile("house", deadline=None)
settings.load_profile("house")


@pytest.fixture(autouse=True)
def _no_colours_no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests the same on every terminal."""
    monkeypatch.setenv("NO_COLOR", "1")
