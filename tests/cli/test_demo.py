"""`--demo`, what a newcomer runs first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from maildirqmtp.cli import demo
from maildirqmtp.forwarder.batch import flush
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import Route
from tests import helpers


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the demo's temporary directories somewhere we can look at."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def test_the_demo_shows_every_outcome_and_cleans_up(temporary: Path) -> None:
    """A demo that fails, or leaves files behind, is the last thing a newcomer sees of us."""
    result = helpers.run("--demo")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for outcome, count in (("accepted", 4), ("deferred", 1), ("failed", 1), ("held", 1)):
        assert result.stdout.count(f": {outcome}, ") == count
    assert "4 accepted, 1 deferred, 1 failed, 1 held, 0 in doubt" in result.stdout
    assert "no place at all" not in result.stdout
    assert list(temporary.iterdir()) == []


def test_the_demo_takes_no_arguments() -> None:
    """Somebody who names a maildir wants something else than a demo."""
    result = helpers.run("--demo", "/home/me/Maildir", "mail.example.org")
    assert result.returncode == 100
    assert "--demo takes no maildir" in result.stderr


def test_a_demo_that_goes_wrong_says_so(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It looks at the files, and does not only believe the log."""
    monkeypatch.setattr(demo, "flush", lambda route, report: 0)
    assert demo.run() == 111
    assert "did not go as it should" in capsys.readouterr().err


def test_the_demo_looks_for_the_mail_where_it_says_it_is(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A message that is still there after it was accepted would be sent again."""
    real = flush

    def careless(route: Route, report: Report) -> int:
        code = real(route, report)
        Path(os.fsdecode(route.maildir), "new", "1700000001.demo1").write_bytes(b"back again")
        return code

    monkeypatch.setattr(demo, "flush", careless)
    assert demo.run() == 111


def test_the_package_runs_as_a_module() -> None:
    """`python -m maildirqmtp`, where scripts are not on the path."""
    command = [sys.executable, "-m", "maildirqmtp", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0
    assert result.stdout.startswith("maildirqmtp ")
