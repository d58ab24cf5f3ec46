"""`maildirqmtp --demo`: a whole run, on a maildir and a server made for it.

Everything is in a temporary directory and on loopback, and is gone afterwards.
"""

import io
import json
import os
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from maildirqmtp.exit_codes import EXIT_OK, EXIT_TEMPORARY
from maildirqmtp.forwarder.batch import flush
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import Route
from maildirqmtp.maildir import writing
from maildirqmtp.qmtp.protocol import Response, Status
from maildirqmtp.receiver.policy import Policy
from maildirqmtp.receiver.server import Server
from maildirqmtp.transport.endpoint import TcpEndpoint


@dataclass(frozen=True, slots=True)
class _Sample:
    """A message of the demo: `about` is for the reader, `outcome` what should become of it."""

    name: str
    about: str
    top: bytes
    text: bytes
    outcome: str


def _sample(
    number: int,
    about: str,
    sender: bytes,
    recipient: bytes,
    text: bytes,
    outcome: str = "accepted",
) -> _Sample:
    top = b"Return-Path: <%b>\nDelivered-To: %b\n" % (sender, recipient)
    return _Sample(f"{1_700_000_000 + number}.demo{number}", about, top, text, outcome)


def _samples() -> list[_Sample]:
    me, head = b"ann@example.org", b"From: Ann\nSubject: demo\n\n"
    full, elsewhere = b"full@example.net", b"eve@elsewhere.example"
    everything = bytes(range(256)) * 16
    return [
        _sample(1, "a plain message", me, b"bob@example.net", head + b"Hello Bob.\n"),
        _sample(2, "a bounce, from the null sender", b"", b"bob@example.net", head + b"Sorry.\n"),
        _sample(3, "every byte there is", me, b"carol@example.net", head + everything),
        _sample(4, "3 MB, sent from the file", me, b"dave@example.net", head + b"big\n" * 750_000),
        _sample(5, "to a mailbox that is full", me, full, head + b"Later.\n", "deferred"),
        _sample(6, "to a domain not served", me, elsewhere, head + b"Never.\n", "failed"),
        _Sample("1700000007.demo7", "without an envelope", b"", head + b"To whom?\n", "held"),
    ]


def _refuse(recipient: bytes) -> Response | None:
    if recipient.startswith(b"full@"):
        return Response(Status.DEFERRED, b"452 mailbox full (#4.2.2)")
    if not recipient.endswith(b"@example.net"):
        return Response(Status.FAILED, b"553 that domain is not served here (#5.7.1)")
    return None


def run() -> int:
    """Run the demo; return the exit code: 0 where everything went as it should."""
    samples = _samples()
    with tempfile.TemporaryDirectory(prefix="maildirqmtp-demo-") as place:
        here, there = Path(place, "Maildir"), Path(place, "Server")
        writing.create(os.fsencode(here))
        for sample in samples:
            (here / "new" / sample.name).write_bytes(sample.top + sample.text)
        print(f"A maildir with {len(samples)} messages, and a QMTP server on loopback:\n")
        with Server(there, listen=("127.0.0.1", 0), policy=Policy(refuse=_refuse)) as server:
            assert server.address is not None
            host, port = server.address
            print(f"  $ maildirqmtp {here} {host}:{port}")
            thread = threading.Thread(target=server.serve)
            thread.start()
            try:
                events, log = _forward(here, TcpEndpoint(host, port))
            finally:
                server.stop()
                thread.join()
        print("".join(f"  {line}\n" for line in log.splitlines()))
        good = [_tell(sample, events, here, there) for sample in samples]
    print(
        "Messages that were accepted are gone from the maildir. The one that was deferred is\n"
        "tried again by the next run; the one that failed waits in .Failed, with the reason.\n"
        "Everything the demo made has been removed."
    )
    if not all(good):
        print("maildirqmtp: the demo did not go as it should", file=sys.stderr)
        return EXIT_TEMPORARY
    return EXIT_OK


def _forward(maildir: Path, server: TcpEndpoint) -> tuple[list[dict[str, str]], str]:
    """Forward, and return the events by message and the log."""
    data, log = io.StringIO(), io.StringIO()
    flush(Route(os.fsencode(maildir), server), Report(log, data))
    return [json.loads(line) for line in data.getvalue().splitlines()], log.getvalue()


def _tell(sample: _Sample, events: list[dict[str, str]], here: Path, there: Path) -> bool:
    """Print what became of a message and where it is; say whether it really is there."""
    event = next((e for e in events if e.get("message") == sample.name), {})
    outcome = event.get("event", "lost")
    print(f"{sample.about}\n    {event.get('recipient', '(nobody)')}: {outcome}", end="")
    print(f", {event.get('text') or event.get('reason')}")
    if outcome == "accepted":
        # The server puts Return-Path, Delivered-To and Received on top again.
        delivered = sample.top + b"Received: "
        found = [
            path
            for path in (there / "new").iterdir()
            if (content := path.read_bytes()).startswith(delivered)
            and content.endswith(sample.text)
        ]
        gone = not (here / "new" / sample.name).exists()
        print(f"    now in {found[0] if found else 'no place at all'}\n")
        return outcome == sample.outcome and len(found) == 1 and gone
    place = here / (".Failed/new" if outcome == "failed" else "new") / sample.name
    print(f"    now in {place}\n")
    return outcome == sample.outcome and place.read_bytes() == sample.top + sample.text
