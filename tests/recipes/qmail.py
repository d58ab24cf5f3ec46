"""recipes/autoturn.md, with a stand-in for qmail-smtpd; Debian has no qmail."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.helpers import add_message, make_maildir, wait_until
from tests.recipes.trial import DEADLINE_S, HERE, THERE, Trial, arrived, block, not_tried

AUTOTURN = "recipes/autoturn.md"
CLIENT = "203.0.113.9"
OUTSIDE = ("nsenter", "--net=/run/netns/outside")
#: The receiver's log. A pipe would be full, and the receiver wait for a reader.
LOG = Path("/var/log/qmtpmaildir")


def connect() -> bool:
    """Call port 25 from the client's machine and wait for the end; say whether it was there."""
    script = f"import socket; socket.create_connection(({HERE!r}, 25), 30).recv(1)"
    words = (*OUTSIDE, "python3", "-c", script)
    return subprocess.run(words, check=False, timeout=90, stderr=subprocess.DEVNULL).returncode == 0


def autoturn() -> None:
    """The client connects, and its mail goes to it; the mail of another client stays."""
    smtpd = Path("/var/qmail/bin/qmail-smtpd")
    smtpd.parent.mkdir(parents=True)
    smtpd.symlink_to("/bin/true")
    home = Path("/var/qmail/autoturn")
    for client in (CLIENT, "192.0.2.7"):
        maildir = make_maildir(home / client)
        recipient = b"autoturn-%b-joe@customer.example" % client.encode()
        add_message(maildir, "1.a", b"Subject: turn\n\nHello\n", b"me@here.example", recipient)
        for part in (maildir, *maildir.rglob("*")):
            os.chown(part, 7790, 2108)
    flags = ("--listen", "0.0.0.0:209", "--domain", "customer.example")
    with (
        LOG.open("wb") as log,
        subprocess.Popen([*OUTSIDE, "qmtpmaildir", *flags, str(THERE)], stderr=log) as receiver,
        subprocess.Popen(["sh", "-c", "exec " + block(AUTOTURN, "tcpserver -u")]) as server,
    ):
        try:
            wait_until(lambda: b"listening" in LOG.read_bytes(), "the receiver", DEADLINE_S)
            wait_until(connect, "tcpserver", DEADLINE_S)
            wait_until(lambda: not any((home / CLIENT / "new").iterdir()), "the flush", DEADLINE_S)
            (one,) = arrived("turn")
            assert (one.sender, one.recipient) == ("me@here.example", "joe@customer.example")
            assert [path.name for path in (home / "192.0.2.7/new").iterdir()] == ["1.a"]
        finally:
            server.terminate()
            receiver.terminate()


def main() -> None:
    """Tell the story; the rows go to standard output."""
    trial = Trial(AUTOTURN, "ucspi-tcp")
    with trial.checks("a client calls, and its mail goes to it; that of others stays"):
        autoturn()
    reason = "Debian has no package of qmail"
    not_tried(AUTOTURN, "qmail", "qmail-smtpd, the .qmail file, virtualdomains", reason)
    not_tried("recipes/qmail.md", "qmail", "all of it", reason)


if __name__ == "__main__":
    main()
