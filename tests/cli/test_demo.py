"""`--demo`, what a newcomer runs first."""

import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from maildirqmtp.cli import demo
from maildirqmtp.cli.demo_lmtp import LmtpServer, Mail, Refuse
from maildirqmtp.forwarder.batch import flush
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import Route
from tests import helpers

BOB, NOBODY = b"bob@example.net", b"nobody@example.net"


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make the demo's temporary directories somewhere we can look at, with a short path."""
    with tempfile.TemporaryDirectory(prefix="demo-") as place:
        monkeypatch.setenv("TMPDIR", place)
        monkeypatch.setattr("tempfile.tempdir", None)
        yield Path(place)


def test_the_demo_shows_every_outcome_and_cleans_up(temporary: Path) -> None:
    """A demo that fails, or leaves files behind, is the last thing a newcomer sees of us."""
    result = helpers.run("--demo")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert str(temporary) in result.stdout
    lines = [line.split(maxsplit=1)[1] for line in result.stdout.splitlines() if ".net  " in line]
    assert [line.partition(":")[0] for line in lines] == [
        *("accepted", "accepted", "deferred", "failed"),
        *("accepted", "accepted"),
    ]
    assert "4 accepted, 1 deferred, 1 failed" in result.stdout
    assert list(temporary.iterdir()) == []


def test_the_demo_fits_a_screen(temporary: Path) -> None:
    """24 lines of 80 columns, with the command and the next prompt; the rest scrolls away."""
    lines = helpers.run("--demo").stdout.splitlines()
    assert len(lines) <= 22
    assert max(map(len, lines)) <= 80


def test_a_long_path_of_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Unix socket's path is short; whoever has set TMPDIR to a longer one sees a demo too."""
    place = tmp_path / ("long" * 20)
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert demo.run() == 0, capsys.readouterr().err


def test_the_demo_takes_no_arguments() -> None:
    """Somebody who names a maildir wants something else than a demo."""
    result = helpers.run("--demo", "/home/me/Maildir", "mail.example.org")
    assert result.returncode == 100
    assert "--demo takes no maildir" in result.stderr


def test_a_demo_that_goes_wrong_says_so(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It looks at the files, and does not only believe the exit code."""
    monkeypatch.setattr(demo, "flush", lambda route, report: 111)
    assert demo.run() == 111
    assert "did not go as it should" in capsys.readouterr().err
    assert list(temporary.iterdir()) == []


def test_the_demo_looks_for_the_mail_where_it_says_it_is(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A message that is still there after it was accepted would be sent again."""
    kept: dict[Path, bytes] = {}

    def careless(route: Route, report: Report) -> int:
        queue = Path(route.maildir.decode())
        kept.update({path: path.read_bytes() for path in queue.glob("*/*") if path.is_file()})
        code = flush(route, report)
        for path, content in kept.items():
            path.write_bytes(content)
        return code

    monkeypatch.setattr(demo, "flush", careless)
    assert demo.run() == 111
    assert "accepted and deferred" in capsys.readouterr().out


class Loses(LmtpServer):
    """Says that it has delivered, and has not."""

    def take(self, mail: Mail) -> None:
        """Take a message for one recipient."""
        if mail.recipient != BOB:
            super().take(mail)


class Doubles(LmtpServer):
    """Delivers twice."""

    def take(self, mail: Mail) -> None:
        """Take a message for one recipient."""
        super().take(mail)
        super().take(mail)


class Changes(LmtpServer):
    """Delivers another text."""

    def take(self, mail: Mail) -> None:
        """Take a message for one recipient."""
        super().take(mail._replace(text=mail.text.replace(b"..dots", b".dots")))


class Forges(LmtpServer):
    """Delivers with another sender."""

    def take(self, mail: Mail) -> None:
        """Take a message for one recipient."""
        super().take(mail._replace(sender=b"eve@example.org"))


class TakesAll(LmtpServer):
    """Refuses nobody."""

    def __init__(self, path: Path, refuse: Refuse) -> None:
        super().__init__(path, lambda recipient: None)


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (Loses, "bob@example.net     lost"),
        (Doubles, "accepted and accepted"),
        (Changes, "accepted, but changed"),
        (Forges, "accepted, but changed"),
        (TakesAll, "nobody@example.net  accepted"),
    ],
)
def test_a_far_end_that_is_wrong_is_found_out(
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    server: type[LmtpServer],
    said: str,
) -> None:
    """The demo is a test of the installation; one that cannot fail is none."""
    monkeypatch.setattr(demo, "LmtpServer", server)
    assert demo.run() == 111
    assert said in capsys.readouterr().out


#: A demo whose mail server says nothing to RCPT.
HANGS = """
import sys, threading
from maildirqmtp.cli import demo
demo.DEADLINE_S = float(sys.argv[1])
demo._refuse = lambda recipient: threading.Event().wait()
sys.exit(demo.run())
"""


def test_a_demo_that_hangs_ends(temporary: Path) -> None:
    """A script that tries the installation gets an answer, and no directory stays behind."""
    command = [sys.executable, "-c", HANGS, "1.5"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)
    assert result.returncode == 111
    assert "maildirqmtp: the demo gave up after 1.5 s\n" in result.stderr
    assert list(temporary.iterdir()) == []


def test_the_demos_mail_server_speaks_lmtp(temporary: Path) -> None:
    """An answer for each recipient after the text, and none for a command that it does not know."""
    refuse = {NOBODY: b"550 5.1.1 no such mailbox"}.get
    said = (
        b"x\r\nRSET\r\nDATA\r\nMAIL FROM:<a@b>\r\nRCPT TO:<%b>\r\nRCPT TO:<%b>\r\nRCPT TO:<c@d>\r\n"
    )
    long = b"." * (1 << 17)
    with LmtpServer(temporary / "lmtp", refuse) as server:
        with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as replies:
            client.settimeout(helpers.DEADLINE_S)
            client.connect(str(temporary / "lmtp"))
            client.sendall(said % (BOB, NOBODY) + b"DATA\r\n.." + long + b"\r\n.\r\nQUIT\r\n")
            codes = [line[:3] for line in replies.read().splitlines()]
        assert b" ".join(codes) == b"220 500 250 503 250 250 550 250 354 250 250 221"
        text = b"." + long + b"\n"
        assert server.mailboxes == [Mail(b"a@b", BOB, text), Mail(b"a@b", b"c@d", text)]


def test_the_package_runs_as_a_module() -> None:
    """`python -m maildirqmtp`, where scripts are not on the path."""
    command = [sys.executable, "-m", "maildirqmtp", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0
    assert result.stdout.startswith("maildirqmtp ")
