"""`[submission]`: two files, and what is wrong in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from maildirqmtp.errors import ConfigError
from maildirqmtp.settings import submission
from maildirqmtp.settings.command_line import parse
from maildirqmtp.settings.config import effective
from maildirqmtp.settings.config import read as read_config
from maildirqmtp.settings.config_file import ConfigFile
from maildirqmtp.settings.submission import SOCKET, Submission

ROUTE = '[[route]]\nmaildir = "/m"\nserver = "h"\n'
FULL = """\
[submission]
socket = "/run/s"
maildir = "~/out"
queue = "/q"
domain = "example.org"
sender = '"me x"@isp.example'
[submission.aliases]
root = "admin@example.net"
Cron = ["root", '"jane x"@y']
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Where the system's file and the user's are."""
    system, home = tmp_path / "system.toml", tmp_path / "home"
    (home / ".config").mkdir(parents=True)
    monkeypatch.setattr(submission, "SYSTEM_FILE", str(system))
    monkeypatch.setenv("HOME", str(home))
    return system, home / ".config" / "maildirqmtp.toml"


def read() -> Submission:
    """Read both files, neither of which may be skipped."""
    return submission.read(lambda warning: pytest.fail(warning))


def test_without_a_file(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue's socket is where the queue has it; a home that is none is no trouble."""
    assert read() == Submission(SOCKET)
    monkeypatch.setenv("HOME", "/dev/null")
    assert read() == Submission(SOCKET)


def test_all_of_it(files: tuple[Path, Path]) -> None:
    """Addresses are quoted in the file and raw in an envelope; ~ is the user's home."""
    files[0].write_text(ROUTE + FULL)
    assert read() == Submission(
        socket=b"/run/s",
        maildir=os.fsencode(files[1].parent.parent / "out"),
        queue=b"/q",
        domain="example.org",
        sender=b"me x@isp.example",
        aliases={b"root": (b"admin@example.net",), b"cron": (b"root", b"jane x@y")},
    )


def test_the_users_file_beats_the_systems(files: tuple[Path, Path]) -> None:
    """Key by key, and alias by alias; the rest of the system's holds."""
    files[0].write_text(FULL)
    files[1].write_text('[submission]\nsocket = "/s2"\naliases = {CRON = "me@x", jane = "j@x"}\n')
    found = read()
    assert (found.socket, found.domain) == (b"/s2", "example.org")
    assert found.aliases == {
        b"root": (b"admin@example.net",),
        b"cron": (b"me@x",),
        b"jane": (b"j@x",),
    }


def test_a_file_that_may_not_be_read_is_skipped(files: tuple[Path, Path]) -> None:
    """With a warning: the mail goes by what is left."""
    files[0].mkdir()
    files[1].write_text('[submission]\ndomain = "d.example"\n')
    warnings: list[str] = []
    if os.geteuid() != 0:
        files[0].rmdir()
        files[0].write_text(FULL)
        files[0].chmod(0)
    assert submission.read(warnings.append).domain == "d.example"
    assert len(warnings) == 1
    assert "system.toml is skipped: " in warnings[0]


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("[submission]\nx = 1\n", 2, "unknown key 'x' in [submission]; it may have socket, "),
        ("submission = 1\n", 1, "a table is needed, written [submission]"),
        ("[[submission]]\n", 1, "a table is needed"),
        ("[submission]\nsocket = 1\n", 2, "socket: a path in quotes, from / or ~/ on, is needed"),
        # Else mail would wait in whatever directory a program was in, and nobody look there.
        ('[submission]\nmaildir = "Outgoing"\n', 2, "maildir: a path in quotes, from / or ~/ on"),
        ('[submission]\nqueue = "./q"\n', 2, "is needed, not './q'"),
        ('[submission]\nsocket = "unix:/run/s"\n', 2, "is needed, not 'unix:/run/s'"),
        ('[submission]\ndomain = "a b"\n', 2, "domain: a name as in mail.example.org is needed"),
        ('[submission]\ndomain = ""\n', 2, "domain: a name"),
        ('[submission]\nsender = "a b"\n', 2, "sender: 'a b' is not one address"),
        ("[submission]\naliases = 1\n", 2, "a table as in [submission.aliases] is needed"),
        ("[submission.aliases]\nroot = 1\n", 1, "aliases, root: an address in quotes, or an array"),
        ("[submission.aliases]\nroot = []\n", 1, "root: at least one address is needed"),
        ('[submission.aliases]\nroot = ["a@x", 1]\n', 1, "root: an address in quotes"),
        ('[submission.aliases]\nroot = ""\n', 1, "root: a recipient must not be empty"),
        ('[submission.aliases]\nroot = "a@x, b@y"\n', 1, "is not one address"),
        ("""[submission.aliases]\nroot = '"|cat"'\n""", 1, "leads to addresses only"),
        ('[submission.aliases]\nroot = "|cat"\n', 1, "leads to addresses only"),
        ('[submission.aliases]\nroot = "/var/mail/root"\n', 1, "leads to addresses only"),
        ('[submission.aliases]\nroot = ":include:/etc/x"\n', 1, "leads to addresses only"),
        ('[submission.aliases]\n"a@x" = "b@y"\n', 1, "'a@x' is no name without a domain"),
        ('[submission.aliases]\na = "b@y"\nA = "c@z"\n', 1, "'A' stands there twice"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(
    files: tuple[Path, Path], text: str, line: int, said: str
) -> None:
    """To whoever sends mail, and to whoever checks the file."""
    files[1].write_text(text)
    with pytest.raises(ConfigError) as caught:
        read()
    assert f"maildirqmtp.toml, line {line}: " in str(caught.value)
    assert said in str(caught.value)
    files[1].write_text(text + ROUTE)
    with pytest.raises(ConfigError) as caught:
        read_config(str(files[1]), parse(["--config", "f"]))
    assert said in str(caught.value)


def test_no_toml_is_an_error(files: tuple[Path, Path]) -> None:
    """Skipped, its aliases would be, too, and root's mail with them."""
    files[1].write_text("[submission\n")
    with pytest.raises(ConfigError):
        read()


def test_the_daemon_takes_a_file_that_has_it(files: tuple[Path, Path]) -> None:
    """And shows it, so that what it shows means the same."""
    files[0].write_text(FULL + ROUTE)
    made = read_config(str(files[0]), parse(["--config", "f"]))
    files[1].write_text(effective(made))
    again = ConfigFile(str(files[1]))
    assert submission.from_file(again) == submission.from_file(ConfigFile(str(files[0])))
    assert read_config(str(files[1]), parse(["--config", "f"])).routes == made.routes
    files[0].write_text(ROUTE)
    assert "submission" not in effective(read_config(str(files[0]), parse(["--config", "f"])))
