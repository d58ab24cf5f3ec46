"""Beyond this machine mail goes under TLS, to the server whose name is in the certificate."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from maildirqmtp.receiver.handoff import smtp_client
from maildirqmtp.receiver.handoff.how import SmtpAddress
from maildirqmtp.receiver.handoff.next_server import NextServer
from tests.scripted_smtp import CLOSE, Script, ScriptedServer, scripted_server

OFFERS: Script = {
    "EHLO": b"250-next.example\r\n250-STARTTLS\r\n250 PIPELINING\r\n",
    "STARTTLS": b"220 2.0.0 begin\r\n",
}


@pytest.fixture
def ca(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> trustme.CA:
    """An authority that this system trusts; and the server counts as far away."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setattr(smtp_client, "is_loopback", lambda address: False)
    return authority


def context(ca: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(name).configure_cert(made)
    return made


@contextlib.contextmanager
def answer(
    script: Script, tls: ssl.SSLContext | None, plain: bool = False, ca: str | None = None
) -> Iterator[tuple[str, ScriptedServer]]:
    """Hand one message on; the answer, and the server that gave it."""
    with scripted_server(script, tls=tls) as server:
        where = SmtpAddress(False, "127.0.0.1", server.port)
        to = NextServer(where, "here.example", plain, ca=ca)
        with contextlib.closing(to):
            (response,) = to.deliver(b"", [b"a@example.org"], lambda: iter([b"hi\n"]))
        yield str(response), server


def test_the_text_goes_under_tls(ca: trustme.CA) -> None:
    """And what was announced before TLS counts no more: EHLO is said again."""
    with answer(OFFERS, context(ca)) as (said, server):
        assert said == "K250 2.0.0 queued"
        assert server.conversations[0].verbs[:4] == ["EHLO", "STARTTLS", "EHLO", "MAIL"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ({}, "has no STARTTLS; --deliver-plain"),
        ({**OFFERS, "STARTTLS": b"454 4.7.0 not now\r\n"}, "refuses STARTTLS: 454 4.7.0 not now"),
        ({**OFFERS, "STARTTLS": b"220 go\r\n250-injected\r\n250 SMTPUTF8\r\n"}, "TLS"),
        ({**OFFERS, "STARTTLS": CLOSE}, "closed the connection"),
        ({**OFFERS, "STARTTLS": b"220 go\r\n" + CLOSE}, "TLS"),
    ],
)
def test_without_tls_nothing_is_sent(ca: trustme.CA, script: Script, reason: str) -> None:
    """Whoever is between us and the server could otherwise have TLS switched off."""
    with answer(script, context(ca)) as (said, server):
        assert said.startswith("Z451 ")
        assert reason in said
        assert "MAIL" not in server.conversations[0].verbs


def test_a_certificate_for_another_name_is_refused(ca: trustme.CA) -> None:
    """It is another server."""
    with answer(OFFERS, context(ca, "mx.example.org")) as (said, server):
        assert "certificate verify failed" in said or "CERTIFICATE_VERIFY_FAILED" in said
        assert not server.texts


def test_a_certificate_of_an_unknown_authority_is_refused(ca: trustme.CA) -> None:
    """Anybody can make one."""
    with answer(OFFERS, context(trustme.CA())) as (said, server):
        assert said.startswith("Z451 ")
        assert not server.texts


def test_an_authority_of_ones_own(ca: trustme.CA, tmp_path: Path) -> None:
    """With it no other is believed: not those of the system either."""
    own = trustme.CA()
    own.cert_pem.write_to_path(str(tmp_path / "own.pem"))
    for authority, letter in ((own, "K"), (ca, "Z")):
        with answer(OFFERS, context(authority), ca=str(tmp_path / "own.pem")) as (said, server):
            assert said[0] == letter, said
            assert bool(server.texts) is (letter == "K")


def test_plain_text_where_it_is_asked_for(ca: trustme.CA) -> None:
    """In a network of one's own, say."""
    with answer({}, None, plain=True) as (said, server):
        assert said[0] == "K"
        assert "STARTTLS" not in server.conversations[0].verbs


def test_on_this_machine_tls_is_not_asked_for() -> None:
    """Nobody is between, and the certificate would hardly be for 127.0.0.1."""
    with answer(OFFERS, None) as (said, server):
        assert said[0] == "K"
        assert "STARTTLS" not in server.conversations[0].verbs
