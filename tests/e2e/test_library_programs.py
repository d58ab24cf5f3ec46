"""Programs that use the library, run as their users run them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.helpers import Peer, answer_all, serving

SEND = """
import json, sys
from maildirqmtp import PackageError, QMTPClient
port, *recipients = sys.argv[1:]
with QMTPClient("127.0.0.1", port=int(port)) as client:
    try:
        result = client.send("s@x", recipients, b"Subject: x\\n\\nhi\\n")
    except PackageError as error:
        print(json.dumps(str(error)))
    else:
        print(json.dumps([[r.response.status.name, r.in_doubt] for r in result]))
"""


def send(port: int, *recipients: str) -> Any:
    """Run a program that sends one message; return what it was told of each recipient."""
    words = [sys.executable, "-c", SEND, str(port), *recipients]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("recipients", [[""], ["a@y", ""]])
def test_a_recipient_that_is_empty_is_refused(recipients: list[str]) -> None:
    """qmail takes it, and the message is gone."""
    with serving(answer_all()) as server:
        assert "empty" in send(server.port, *recipients)
    assert server.packages == []


def test_a_refusal_that_is_one_byte_short_is_a_refusal() -> None:
    """s/qmail and aQmail: in doubt, the program would send it again, and again to the others."""

    def script(peer: Peer) -> None:
        while peer.read_package():
            peer.send(b"3:Kok,")
            peer.send(b"46:D Sorry, I can't handle that recipient (#5.1.3),")
            peer.send(b"3:Kok,")

    with serving(script) as server:
        told = send(server.port, "a@y", "bad@y", "b@y")
        assert len(server.packages) == 1
    assert told == [["ACCEPTED", False], ["FAILED", False], ["ACCEPTED", False]]
