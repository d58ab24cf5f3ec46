"""QMTPS from end to end: the installed forwarder, and the installed receiver or a bad server.

A server that is not known for certain is unreachable: no message goes there, none
bounces, however old it is.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.certificates import Authority, Identity, over_tls
from tests.helpers import (
    Peer,
    add_message,
    command,
    make_maildir,
    names,
    run,
    serving,
    snapshot,
)
from tests.receiving import delivered, receiver


@pytest.fixture
def maildir(path: Path) -> Path:
    """A maildir with five messages, one of them streamed from its file."""
    for number in range(5):
        add_message(path, f"{number}.m", b"Subject: %d\n\n" % number + b"x" * (number * 500_000))
    return path


def refused(maildir: Path, server: str, *flags: str) -> str:
    """Forward to a server that is to be refused, with all that could make a message bounce."""
    before = snapshot(maildir)
    bounces = maildir.with_name("bounces")
    bouncing = ["--lifetime=0", "--bounce", f"--bounce-via=maildir:{bounces}"]
    result = run(*bouncing, *flags, maildir, server)
    assert result.returncode == 111
    assert "maildirqmtp: 0 accepted, 0 deferred, 0 failed, 0 held, " in result.stderr
    assert snapshot(maildir) == before
    assert names(bounces) == []
    return result.stderr


def tls_flags(identity: Identity) -> tuple[str, ...]:
    """What the receiver has to be told to have this certificate."""
    return "--tls-cert", identity.cert, "--tls-key", identity.key


def test_a_thousand_messages(tmp_path: Path, authority: Authority, identity: Identity) -> None:
    """With the name of the server checked, as always."""
    here = make_maildir(tmp_path / "here")
    texts = [b"Subject: %d\n\ntext\n" % number for number in range(1_000)]
    for number, text in enumerate(texts):
        add_message(here, f"{number}.m", text)
    with receiver(tmp_path / "there", *tls_flags(identity)) as (_, server):
        result = run("--tls-ca", authority.file, here, f"qmtps://{server}")
    assert result.stderr.startswith("maildirqmtp: 1000 accepted, 0 deferred, 0 failed, 0 held, 0 ")
    assert result.returncode == 0
    assert names(here / "new") == []
    assert delivered(tmp_path / "there") == sorted(texts)


def test_servers_that_are_not_the_one_that_was_meant(
    maildir: Path, tmp_path: Path, authority: Authority, stranger: Authority, identity: Identity
) -> None:
    """Unknown authority, another name, expired, another key; nothing gets there."""
    ca = ("--tls-ca", authority.file)
    cases = [
        (stranger.issue("127.0.0.1"), ca, "certificate is not trusted"),
        (identity, (), "certificate is not trusted"),
        (authority.issue("mail.example.org"), ca, "certificate is not trusted"),
        (authority.issue("127.0.0.1", expired=True), ca, "certificate has expired"),
        (identity, ("--tls-pin", f"sha256:{'00' * 32}"), "is not a pinned one"),
        (identity, ("--tls-pin", f"sha256:{'00' * 32}", *ca), "is not a pinned one"),
        (stranger.issue("127.0.0.1"), ("--tls-pin", identity.pin), "is not a pinned one"),
    ]
    for shown, flags, says in cases:
        there = tmp_path / "there"
        with receiver(there, *tls_flags(shown)) as (_, server):
            said = refused(maildir, f"qmtps://{server}", *flags)
        assert f"cannot connect to qmtps://{server}: 127.0.0.1: " in said
        assert says in said
        assert names(there / "new") == []


@pytest.mark.parametrize("with_ca", [False, True])
def test_a_pinned_key(
    maildir: Path, tmp_path: Path, authority: Authority, stranger: Authority, with_ca: bool
) -> None:
    """Alone for a certificate that the server made itself; and one of several will do."""
    if with_ca:
        own = authority.issue("127.0.0.1")
        flags = ["--tls-ca", authority.file]
    else:
        own, flags = stranger.issue("somebody.example", expired=True), []
    flags += ["--tls-pin", f"sha256:{'00' * 32}", "--tls-pin", own.pin]
    with receiver(tmp_path / "there", *tls_flags(own)) as (_, server):
        assert run(*flags, maildir, f"qmtps://{server}").returncode == 0
    assert len(delivered(tmp_path / "there")) == 5


def test_client_certificates(
    maildir: Path, tmp_path: Path, authority: Authority, stranger: Authority, identity: Identity
) -> None:
    """None, a stranger's, one for somebody else, one that is out of date; and the right one."""
    there = tmp_path / "there"
    flags = [*tls_flags(identity), "--tls-client-ca", authority.file]
    flags += ["--tls-client-name", "Laptop.example.org", "--tls-client-name", "ship@example.org"]
    ca = ["--tls-ca", authority.file]
    bad = [
        [],
        shown(stranger.issue("laptop.example.org")),
        shown(authority.issue("other.example.org")),
        shown(authority.issue("laptop.example.org", expired=True)),
    ]
    with receiver(there, *flags) as (process, server):
        for more in bad:
            run("--lifetime=0", "--bounce", *ca, *more, maildir, f"qmtps://{server}")
            assert len(names(maildir / "new")) == 5
        assert names(there / "new") == []
        good = [
            authority.issue("laptop.example.org"),
            authority.issue("ship@example.org"),
            authority.issue("x.example.org", common_name="laptop.example.org"),
        ]
        for number, client in enumerate(good):
            add_message(maildir, f"{number}.more")
            result = run(*ca, *shown(client), maildir, f"qmtps://{server}")
            assert result.returncode == 0, result.stderr
        process.terminate()
        assert process.stderr is not None
        log = process.stderr.read()
    assert len(delivered(there)) == 8
    assert "its certificate is for other.example.org, which is not permitted" in log
    assert "TLS: peer did not return a certificate" in log
    assert "its certificate is not trusted: " in log


def shown(client: Identity) -> list[str]:
    """What the forwarder has to be told to show this certificate."""
    return ["--tls-cert", client.cert, "--tls-key", client.key]


def test_a_missing_client_certificate_is_unreachable(
    maildir: Path, authority: Authority, identity: Identity
) -> None:
    """Though TLS 1.3 tells after the handshake: no message is to blame, and none is set aside."""
    context = identity.context(client_ca=authority.file)

    def script(peer: Peer) -> None:
        peer.read_package()  # the refusal is in the handshake

    with serving(over_tls(context, script)) as server:
        said = refused(maildir, f"qmtps://{server.address}", "--tls-ca", authority.file)
    assert "certificate required" in said or "reset" in said


def test_a_server_that_speaks_plain_gets_nothing(maildir: Path, authority: Authority) -> None:
    """Not even by a second try: whoever can cut TLS off could read everything."""
    received = bytearray()

    def accepts_anything(peer: Peer) -> None:
        with contextlib.suppress(OSError):
            while data := peer.socket.recv(1 << 16):
                received.extend(data)
                peer.send(b"3:Kok,")

    def greets(peer: Peer) -> None:
        peer.send(b"220 mail.example.org ESMTP\r\n")
        accepts_anything(peer)

    for script in (accepts_anything, greets):
        with serving(script) as server:
            for flags in ([], ["--tls-ca", authority.file], ["--tls-pin", f"sha256:{'00' * 32}"]):
                said = refused(maildir, f"qmtps://{server.address}", *flags)
                assert f"cannot connect to qmtps://{server.address}: 127.0.0.1: " in said
            assert server.connections == 3
    assert b"Subject" not in received
    assert b"example.net" not in received


def test_a_server_that_says_nothing_is_given_up(maildir: Path) -> None:
    """The time to connect is for the handshake as well."""

    def script(peer: Peer) -> None:
        while peer.socket.recv(1 << 16):
            pass

    with serving(script) as server:
        said = refused(maildir, f"qmtps://{server.address}", "--connect-timeout=0.3")
    assert "127.0.0.1: no answer in 0.3 s" in said


@pytest.mark.parametrize("rest", [b"", b"3:K", b"3:Kok", b"3:Kok,3:Ko"])
def test_cut_off_without_farewell(
    maildir: Path, authority: Authority, identity: Identity, rest: bytes
) -> None:
    """Whoever holds the wire can cut it anywhere; what was not answered is not accepted."""
    whole = rest.count(b",")

    def script(peer: Peer) -> None:
        if peer.server.connections > 1:
            return
        peer.read_package()
        peer.respond(b"Kok")
        for _ in range(4):
            peer.read_package()
        peer.send(rest)

    cut = over_tls(identity.context(), script, farewell=False)
    with serving(cut) as server:
        flags = ["--lifetime=0", "--tls-ca", authority.file]
        result = run(*flags, maildir, f"qmtps://{server.address}")
    assert result.returncode == 111
    assert "it was cut off, without the end that TLS has (close_notify)" in result.stderr
    assert f"maildirqmtp: {1 + whole} accepted, " in result.stderr
    assert " 0 failed, 0 held, " in result.stderr
    assert names(maildir / "new") == [f"{number}.m" for number in range(1 + whole, 5)]


def test_a_large_message_in_flat_memory(
    tmp_path: Path, authority: Authority, identity: Identity
) -> None:
    """60 MB through TLS on both sides; the kernel cannot send it from the file by itself."""
    here = make_maildir(tmp_path / "here")
    text = b"Subject: large\n\n" + random.Random(5).randbytes(1_000_000) * 60
    add_message(here, "1.m", text)
    with receiver(tmp_path / "there", *tls_flags(identity)) as (process, server):
        words = [*command(), "--tls-ca", authority.file, str(here), f"qmtps://{server}"]
        # By a small process in between: a child's peak begins with what its parent has.
        measure = (
            "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        done = subprocess.run(
            [sys.executable, "-c", measure, *words], capture_output=True, check=True, timeout=90
        )
        assert int(done.stdout) < 48 << 10  # KiB
        peak = Path(f"/proc/{process.pid}/status").read_text().partition("VmHWM:")[2].split()[0]
        assert int(peak) < 56 << 10  # KiB
    assert delivered(tmp_path / "there") == [text]


def test_files_that_are_no_use(maildir: Path, tmp_path: Path, identity: Identity) -> None:
    """The forwarder waits for them; the receiver does not begin without."""
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("rubbish\n")
    said = refused(maildir, "qmtps://127.0.0.1:9", "--tls-ca", str(rubbish))
    assert f"cannot use the certificate authority {rubbish}: " in said
    said = refused(maildir, "qmtps://127.0.0.1:9", "--tls-cert", "/nonexistent")
    assert "cannot use the certificate and key /nonexistent: No such file or directory" in said
    for flags, says in (
        (["--tls-cert", "/nonexistent"], "the certificate and key /nonexistent: No such file"),
        (["--tls-cert", identity.cert], f"{identity.cert}: TLS: no PEM of that kind in it"),
        ([*tls_flags(identity), "--tls-client-ca", rubbish], f"authority {rubbish}: TLS: "),
    ):
        result = subprocess.run(
            [*command("qmtpmaildir"), "--listen=127.0.0.1:0", *flags, str(tmp_path / "there")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 111
        assert "qmtpmaildir: cannot use the certificate " in result.stderr
        assert says in result.stderr
        assert "Traceback" not in result.stderr
