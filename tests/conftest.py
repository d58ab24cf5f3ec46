"""What pytest sets up for every test, and the fixtures that tests of several rooms share."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.transport import addresses
from tests.certificates import Authority, Identity
from tests.clients import KINDS, Make, making
from tests.fakes import FakeClock
from tests.helpers import make_maildir

# Programs are to write and to start as they do for users, whatever is set for these tests.
for _name in ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(_name, None)

# Debian's default PATH of a plain user lacks the folders of mailfront and mkfs.
os.environ["PATH"] += ":/usr/local/sbin:/usr/sbin:/sbin"


def pytest_configure(config: pytest.Config) -> None:
    """Refuse pytest-xdist's workers where comparing bytes with text is no error; see tests/run."""
    if hasattr(config, "workerinput") and sys.flags.bytes_warning < 2:
        raise pytest.UsageError("start workers as tests/run does, with python -bb")


#: What takes longest begins first, so that no process is left alone with it in the end.
LONGEST = ("tests/mutants/test_mutants.py::test_a_", "tests/faults/", "tests/test_model.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest tests in front."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


# No test fails because the machine is busy, or depends on what an earlier run has found; what
# fails prints how to get there again.
settings.register_profile(
    "house",
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("house")


@pytest.fixture
def hang_up() -> Iterator[None]:
    """Have SIGHUP end a process, and those that it starts, even if these tests are run by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(autouse=True)
def _forgetful() -> None:
    """Know nothing of addresses: the port of one test's dead server may be the next one's."""
    addresses.forget()


@pytest.fixture(autouse=True)
def _no_colours_no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests the same on every terminal."""
    monkeypatch.setenv("NO_COLOR", "1")


# Maildirs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An empty maildir."""
    return make_maildir(tmp_path / "Maildir")


@pytest.fixture
def maildir(path: Path) -> Iterator[Maildir]:
    """The same, open. (In `tests/e2e/` and `tests/serialmail/` it is the path.)"""
    with Maildir(os.fsencode(path)) as opened:
        yield opened


# Time


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still until a test advances it."""
    return FakeClock()


# Certificates


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority that this side trusts."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that nobody trusts."""
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture(scope="session")
def identity(authority: Authority) -> Identity:
    """A good certificate for a server on this machine."""
    return authority.issue("127.0.0.1", "localhost")


# The library


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Make clients of each kind; they are closed in the end."""
    with making(request.param) as create:
        yield create
