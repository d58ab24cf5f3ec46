"""Addresses on a command line: what is none is refused, before the message is taken."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers import add_message, answer_all, command, names, run, serving, sidecar
from tests.submission.sending import HEADER, Home

NO_ADDRESSES = [
    b"undisclosed-recipients:;", b"(c)a@x", b"a@x(c)", b"a@b;", b"@", b"@x", b"a@", b"a@@x",
    b"a@b@x", b"mailto:a@x", b"@a,@b:c@d", b"[a]@x", b'a"b@x', b"a\x01@x", b"a b@x", b"a@x,b@x",
]  # fmt: skip

#: What is written, and the envelope's recipient.
ADDRESSES = {
    b"root": b"root",
    b"a%b@x": b"a%b@x",
    b"host!a@x": b"host!a@x",
    b"<a@[192.0.2.1]>": b"a@[192.0.2.1]",
    "j\u00f6e@m\u00fcnchen.example".encode(): "j\u00f6e@m\u00fcnchen.example".encode(),
    b'"a(b, c"@x': b"a(b, c@x",
}


def enqueue(maildir: Path, *words: str | bytes) -> subprocess.CompletedProcess[bytes]:
    """Run `maildirqmtp --enqueue` with a message on standard input."""
    argv = [*command(), "--enqueue", str(maildir), *words]
    return subprocess.run(argv, input=b"Subject: x\n\nhi\n", capture_output=True, check=False)


@pytest.mark.parametrize("text", NO_ADDRESSES)
def test_no_mail_is_taken_for_what_is_no_address(maildir: Path, text: bytes) -> None:
    """With exit code 0 its sender thinks that it is on its way."""
    for sysexits, code in (((), 100), (("--sysexits",), 64)):
        for option, other in (("--recipient", "--sender"), ("--sender", "--recipient")):
            done = enqueue(maildir, *sysexits, option, text, other, "a@x")
            assert (done.returncode, done.stdout) == (code, b"")
            assert b" is not one address: " in done.stderr
    ran = run("--recipient", text, maildir, "127.0.0.1:1")
    assert ran.returncode == 100
    assert names(maildir / "new") == []


@pytest.mark.parametrize("text", NO_ADDRESSES)
def test_nor_by_qmtp_sendmail(tmp_path: Path, text: bytes) -> None:
    """`@` was completed to `@example.org`."""
    home = Home(tmp_path / "home")
    home.configure(rest='domain = "example.org"')
    for words in ((os.fsdecode(text),), ("-f", os.fsdecode(text), "a@x")):
        done = home.send(*words, text=HEADER + b"\nhi\n")
        assert done.returncode == 64
        assert b" is not one address: " in done.stderr


@pytest.mark.parametrize(("text", "recipient"), ADDRESSES.items())
def test_what_is_odd_and_an_address_goes(maildir: Path, text: bytes, recipient: bytes) -> None:
    """As it is in the envelope: raw."""
    assert enqueue(maildir, "--sender=", b"--recipient=" + text).returncode == 0
    with serving(answer_all()) as server:
        assert run(maildir, server.address).returncode == 0
    assert [package.recipients for package in server.packages] == [(recipient,)]


def test_mail_that_is_there_is_not_refused(maildir: Path) -> None:
    """What another program took responsibility for goes to the server, which judges it."""
    recipients = [os.fsdecode(text) for text in NO_ADDRESSES]
    name = os.fsdecode(enqueue(maildir, "--sender=s@x", "--recipient=a@x").stdout.strip())
    content = sidecar(maildir, name) | {"recipients": recipients}
    (maildir / "envelope" / f"{name}.json").write_text(json.dumps(content))
    add_message(maildir, "1.m", recipient=b"undisclosed-recipients:;")
    with serving(answer_all()) as server:
        assert run(maildir, server.address).returncode == 0
    assert sorted(package.recipients for package in server.packages) == sorted(
        [(b"undisclosed-recipients:;",), tuple(NO_ADDRESSES)]
    )
