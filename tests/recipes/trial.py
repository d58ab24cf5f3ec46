"""What the stories of `tests/recipes/run` share: code blocks, rows of the table, mail in and out.

They run as root in a copy of the file system and in a network namespace of their own,
so that they write to /etc, make users and listen on ports below 1024.
"""

from __future__ import annotations

import contextlib
import re
import smtplib
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.helpers import wait_until

CONTRIB = Path("/srv/maildirqmtp/contrib")
#: An address of this machine that the other one can reach.
HERE = "192.0.2.1"
#: Seconds for a message to come through.
DEADLINE_S = 25.0
#: Where the recipes keep what is to be forwarded, and where `server` stores what comes.
HOME = Path("/var/lib/maildirqmtp")
OUT = HOME / "out"
THERE = Path("/srv/there")


def block(recipe: str, containing: str) -> str:
    """Return the one code block of a recipe that contains this text."""
    text = (CONTRIB / recipe).read_text()
    codes: list[str] = re.findall(r"(?ms)^```\w*\n(.*?)^```$", text)
    found = [code for code in codes if containing in code]
    assert len(found) == 1, f"{recipe}: {len(found)} code blocks contain {containing!r}"
    return found[0]


def call(*words: str | Path, text: str = "") -> str:
    """Run a program that has to end well; return its standard output."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [*map(str, words)], input=text, text=True, capture_output=True, timeout=90, check=False
    )
    assert done.returncode == 0, f"{words}: {done.returncode} {done.stdout}{done.stderr}"
    return done.stdout


class Trial:
    """The rows of one recipe and program, written to standard output for the table."""

    def __init__(self, recipe: str, package: str, program: str | None = None) -> None:
        version = call("dpkg-query", "-W", "-f", "${Version}", package)
        self._name = f"{recipe}\t{program or package} {version}"

    @contextlib.contextmanager
    def checks(self, what: str) -> Iterator[None]:
        """Make a row of what is done in here; an error makes it a failed one."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            reason = " ".join(str(error).split()) or type(error).__name__
            print(self._name, what, "FAILED", reason[:300], sep="\t", flush=True)
        else:
            print(self._name, what, "works", "", sep="\t", flush=True)


def not_tried(recipe: str, program: str, what: str, reason: str) -> None:
    """Make a row of what this machine cannot try."""
    print(recipe, program, what, "NOT TRIED", reason, sep="\t", flush=True)


def make_user() -> None:
    """Make the user that the recipes speak of, by the file that makes it under systemd."""
    (line,) = (
        line
        for line in (CONTRIB / "systemd/maildirqmtp.sysusers").read_text().splitlines()
        if line.startswith("u maildirqmtp ")
    )
    home = line.split()[-1]
    assert home == str(HOME)
    call("useradd", "--system", "--home-dir", home, "--create-home", "maildirqmtp")
    HOME.chmod(0o700)


# Mail in


def outside_code(recipient: str) -> int:
    """Return what the mail server answers to RCPT TO of a client on another machine."""
    words = (
        "nsenter",
        "--net=/run/netns/outside",
        sys.executable,
        "-m",
        "tests.recipes.trial",
        recipient,
    )
    return int(call(*words))


def ask(recipient: str) -> int:
    """Return what the mail server answers to RCPT TO."""
    with smtplib.SMTP(HERE, 25, "client.example", 30) as client:
        client.ehlo_or_helo_if_needed()
        code, text = client.mail("somebody@client.example")
        assert code == 250, text
        return client.rcpt(recipient)[0]


def submit(sender: str, recipients: list[str], text: bytes) -> None:
    """Send a message from this machine itself, all recipients in one transaction."""
    with smtplib.SMTP("127.0.0.1", 25, "localhost", 30) as client:
        assert client.sendmail(sender, recipients, text) == {}


def message(subject: str) -> bytes:
    """Return a message that names none of its recipients."""
    return (
        f"From: me@here.example\nTo: undisclosed-recipients:;\nSubject: {subject}\n\nHello\n"
    ).encode()


def listening(port: int, host: str = HERE) -> None:
    """Wait until a server greets there."""

    def greets() -> bool:
        try:
            with smtplib.SMTP(host, port, "localhost", 30):
                return True
        except OSError:
            return False

    wait_until(greets, f"a server on port {port}")


# Mail out


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message as the far end has it, with the envelope that came with it."""

    sender: str
    recipient: str
    text: str

    def has(self, subject: str) -> bool:
        """Say whether it is the message with this subject."""
        return f"\nSubject: {subject}\n" in self.text


def arrived(subject: str) -> list[Arrived]:
    """Return what the far end has stored under this subject, by recipient, without quoting."""
    found = []
    for path in (THERE / "new").iterdir():
        match = re.match(r"Return-Path: <(.*)>\nDelivered-To: (.*)\n", path.read_text())
        assert match is not None, path.read_text()
        found.append(Arrived(match[1], match[2].replace('"', ""), path.read_text()[match.end() :]))
    return sorted((one for one in found if one.has(subject)), key=lambda one: one.recipient)


@contextlib.contextmanager
def far_end(*names: str) -> Iterator[None]:
    """Run the server that the recipes forward to, under these names, on the standard port."""
    with Path("/etc/hosts").open("a") as hosts:
        hosts.write(f"127.0.0.1 {' '.join(names)}\n")
    with subprocess.Popen(
        ["qmtpmaildir", "--listen", "127.0.0.1:209", str(THERE)], stderr=subprocess.PIPE
    ) as server:
        assert server.stderr is not None
        assert b"listening" in server.stderr.readline()
        try:
            yield
        finally:
            server.terminate()
            server.stderr.read()
            assert server.wait(60) == 0


@contextlib.contextmanager
def forwarding(config: str) -> Iterator[None]:
    """Run the daemon of a recipe by its configuration file, as its user.

    There must be mail: a maildir that does not exist is looked for every 30 s only.
    """
    wait_until(lambda: (OUT / "new").is_dir() and any((OUT / "new").iterdir()), "mail", DEADLINE_S)
    Path("/etc/maildirqmtp.toml").write_text(config)
    with subprocess.Popen(
        ["maildirqmtp", "--config", "/etc/maildirqmtp.toml"],
        user="maildirqmtp",
        group="maildirqmtp",
        extra_groups=[],
        cwd="/",
    ) as daemon:
        try:
            yield
        finally:
            daemon.terminate()
            assert daemon.wait(60) == 0


def expect(subject: str, sender: str, *recipients: str, maildir: Path = OUT) -> None:
    """Wait for a message: each recipient once, with this sender, and named to no other."""
    wanted = len(recipients)
    wait_until(lambda: len(arrived(subject)) >= wanted, f"{subject} to {recipients}", DEADLINE_S)
    wait_until(lambda: not list((maildir / "new").iterdir()), "an empty maildir", DEADLINE_S)
    found = arrived(subject)
    assert [one.recipient for one in found] == sorted(recipients), found
    for one in found:
        assert one.sender == sender, one
        for other in {*recipients} - {one.recipient}:
            assert other not in one.text, f"{one.recipient} is told of {other}: {one.text}"
        assert "Hello" in one.text


if __name__ == "__main__":
    print(ask(sys.argv[1]))
