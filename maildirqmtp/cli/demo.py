"""`maildirqmtp --demo`: send a few messages all the way from a program to mailboxes.

    qmtp-sendmail -> qmtpmaildir --queue -> maildirqmtp -> qmtpmaildir --deliver -> an LMTP server

All in one process: for each part the demo calls what its program calls after reading its
command line, so the configuration of this machine does not matter. The sockets are in a
temporary directory and on loopback; nothing remains afterwards.
"""

import contextlib
import io
import json
import os
import re
import signal
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from maildirqmtp.cli.demo_lmtp import LmtpServer
from maildirqmtp.cli.output import complain
from maildirqmtp.errors import LocalError, QMTPError
from maildirqmtp.exit_codes import EXIT_OK, EXIT_TEMPORARY
from maildirqmtp.forwarder.batch import flush
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import Route
from maildirqmtp.mail.sidecar import Sidecar, decode
from maildirqmtp.receiver.handoff.destination import HandOff
from maildirqmtp.receiver.handoff.how import SmtpAddress
from maildirqmtp.receiver.handoff.next_server import NextServer
from maildirqmtp.receiver.policy import Policy
from maildirqmtp.receiver.queue_destination import QueueDestination
from maildirqmtp.receiver.server import Server
from maildirqmtp.settings.submission import Submission
from maildirqmtp.submission.message_input import Input
from maildirqmtp.submission.sendmail import Request, send
from maildirqmtp.transport.endpoint import TcpEndpoint
from maildirqmtp.transport.signals import signal_handlers

#: Seconds after which the demo gives up. It needs about one.
DEADLINE_S = 60.0
# Seconds that a server may take to end, when nothing that it waits for is left.
_STOP_S = 15.0
# A Unix socket's path has at most 107 bytes (unix(7)), and 40 of them are our names.
_MAX_TEMPORARY = 60
_RECEIVED = re.compile(rb"(?:Received: [^\n]*\n(?:[ \t][^\n]*\n)*){2}")


class _OutOfTime(BaseException):
    """Interrupts the demo at any point; not an `Exception`, so that no handler catches it."""


class _Sample(NamedTuple):
    """A message of the demo. `outcomes` is the outcome that each recipient should have."""

    name: str
    about: str
    sender: bytes
    text: bytes
    outcomes: dict[bytes, str]


def _sample(name: str, about: str, sender: bytes, body: bytes, outcomes: dict[str, str]) -> _Sample:
    head = (
        f"From: Ann <ann@example.org>\nTo: {', '.join(outcomes)}\nSubject: {name}\n"
        f"Date: Thu, 1 Jan 2026 12:00:00 +0000\nMessage-ID: <{name}@example.org>\n\n"
    ).encode()
    raw = {recipient.encode(): outcome for recipient, outcome in outcomes.items()}
    return _Sample(name, about, sender, head + body, raw)


def _samples() -> list[_Sample]:
    me, bob = b"ann@example.org", "bob@example.net"
    four = {
        bob: "accepted",
        "carol@example.net": "accepted",
        "full@example.net": "deferred: 452 4.2.2 mailbox full",
        "nobody@example.net": "failed: 550 5.1.1 no such mailbox",
    }
    odd = b".\n..dots\n" + bytes(range(0x80, 0x100)) + b"\n" + b"long" * 1_000 + b"\n"
    large = (b"3 MB " * 15 + b"\n") * 40_000
    return [
        _sample("letter", "dots, 8-bit bytes, a long line", me, odd, four),
        _sample("bounce", "from the null sender", b"", b"Sorry.\n", {bob: "accepted"}),
        _sample("large", "3 MB, sent from its file", me, large, {"dave@example.net": "accepted"}),
    ]


def _refuse(recipient: bytes) -> bytes | None:
    """Return the reply of the demo's mail server to a recipient; None if it accepts them."""
    return {
        b"full@example.net": b"452 4.2.2 mailbox full",
        b"nobody@example.net": b"550 5.1.1 no such mailbox",
    }.get(recipient)


def run() -> int:
    """Run the demo; return the exit code: 0 if every outcome is as expected.

    In the main thread only: a signal limits its time.
    """
    root = "/tmp" if len(os.fsencode(tempfile.gettempdir())) > _MAX_TEMPORARY else None
    try:
        with (
            _deadline(DEADLINE_S),
            tempfile.TemporaryDirectory(prefix="maildirqmtp-demo-", dir=root) as place,
        ):
            good = _whole_way(Path(place))
    except _OutOfTime:
        complain("maildirqmtp", f"the demo gave up after {DEADLINE_S:g} s")
        return EXIT_TEMPORARY
    except QMTPError as error:
        complain("maildirqmtp", str(error))
        good = False
    if not good:
        complain("maildirqmtp", "the demo did not go as it should")
        return EXIT_TEMPORARY
    print(
        "Accepted: in the mailbox, once, byte for byte. Deferred: waits in the queue for\n"
        "the next run. Failed: in queue/.Failed, the reason beside it. Everything that\n"
        "the demo made has been removed."
    )
    return EXIT_OK


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise `_OutOfTime` inside the context after so many seconds."""

    def out_of_time(*_: object) -> None:
        raise _OutOfTime

    with signal_handlers((signal.SIGALRM,), out_of_time):
        earlier = signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, *earlier)


def _whole_way(place: Path) -> bool:
    """Send the samples and print their outcomes; return whether all are as expected."""
    queue, socket, lmtp_path = place / "queue", place / "submit.sock", place / "lmtp.sock"
    next_server = NextServer(SmtpAddress(lmtp=True, path=str(lmtp_path)), "localhost")
    samples, relay = _samples(), Policy(relays=True)
    # The LMTP server ends first, so that the other servers do not wait for it when they end.
    with (
        _serving(Server(HandOff(next_server), listen=("127.0.0.1", 0), policy=relay)) as far,
        _serving(Server(QueueDestination(bytes(queue)), listen=bytes(socket), policy=relay)),
        LmtpServer(lmtp_path, _refuse) as lmtp,
    ):
        assert far.address is not None
        host, port = far.address
        print(f"In {place}, from a program to mailboxes:\n")
        print("  $ qmtpmaildir --queue queue --listen unix:submit.sock &")
        print(f"  $ qmtpmaildir --deliver lmtp:unix:lmtp.sock --listen {host}:{port} &")
        for sample in samples:
            _submit(sample, place, socket)
        print(f"  $ maildirqmtp queue {host}:{port}")
        report = Report(log := io.StringIO(), events := io.StringIO())
        code = flush(Route(bytes(queue), TcpEndpoint(host, port)), report)
        count = report.counters
        print(f"  {count.accepted} accepted, {count.deferred} deferred, {count.failed} failed\n")
        told = [json.loads(line) for line in events.getvalue().splitlines()]
        good = [_tell(sample, queue, lmtp, told) for sample in samples]
    if all(good) and code == EXIT_TEMPORARY:
        return True
    complain("maildirqmtp", f"exit code {code}, and this log:\n{log.getvalue()}")
    return False


@contextlib.contextmanager
def _serving(server: Server) -> Iterator[Server]:
    """Run a server in a thread."""
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(_STOP_S)
        server.close()


def _submit(sample: _Sample, place: Path, socket: Path) -> None:
    """Send a message as qmtp-sendmail does. Raises `QMTPError` if the queue does not take it."""
    (place / sample.name).write_bytes(sample.text)
    sender = sample.sender.decode() or "''"
    print(f"  $ qmtp-sendmail -t -i -f {sender} < {sample.name}")
    request = Request(sender=sample.sender, from_header=True, dot_ends=False)
    tell = partial(complain, "qmtp-sendmail")
    with (place / sample.name).open("rb") as text:
        code = send(request, Submission(socket=bytes(socket)), Input(text.fileno()), tell)
    if code != EXIT_OK:
        raise LocalError(f"{sample.name} was not taken: exit code {code}")


def _tell(sample: _Sample, queue: Path, lmtp: LmtpServer, events: list[dict[str, str]]) -> bool:
    """Print a message's outcomes, by where its copies are; return whether they are as expected."""
    print(f"{sample.name}: {sample.about}")
    reached = {}
    for recipient in sample.outcomes:
        found = [
            *_in_mailboxes(sample, recipient, lmtp),
            *_in_queue(sample, recipient, queue, events),
            *_in_failed(sample, recipient, queue / ".Failed"),
        ]
        reached[recipient] = " and ".join(found) or "lost"
        print(f"  {recipient.decode():<20}{reached[recipient]}")
    return reached == sample.outcomes


def _in_mailboxes(sample: _Sample, recipient: bytes, lmtp: LmtpServer) -> Iterator[str]:
    """Yield an outcome for each copy of the message in the recipient's mailbox."""
    for sender, owner, text in lmtp.mailboxes:
        if owner == recipient and b"\nSubject: %b\n" % sample.name.encode() in text:
            # Each of the two servers on the way has put a Received line on top.
            top = _RECEIVED.match(text)
            same = top is not None and text[top.end() :] == sample.text and sender == sample.sender
            yield "accepted" if same else "accepted, but changed"


def _in_queue(
    sample: _Sample, recipient: bytes, queue: Path, events: list[dict[str, str]]
) -> Iterator[str]:
    """Yield an outcome for each copy of the message that waits for another attempt."""
    for name, content in _sidecars(sample, queue):
        if recipient in content.recipients:
            why = [e["text"] for e in events if _is_about(e, name, recipient)]
            yield f"deferred: {' and '.join(why)}"


def _is_about(event: dict[str, str], name: str, recipient: bytes) -> bool:
    return (event.get("message"), event.get("recipient")) == (name, recipient.decode())


def _in_failed(sample: _Sample, recipient: bytes, maildir: Path) -> Iterator[str]:
    """Yield an outcome for each copy of the message in the failed maildir."""
    for _, content in _sidecars(sample, maildir):
        for failure in content.failures:
            if failure.recipient == recipient:
                yield f"failed: {failure.response[1:]}"


def _sidecars(sample: _Sample, maildir: Path) -> Iterator[tuple[str, Sidecar]]:
    """Yield the name and the sidecar of each copy of this message in a maildir."""
    for path in sorted(maildir.glob("new/*")):
        content = decode((maildir / "envelope" / f"{path.name}.json").read_bytes())
        if content.sender == sample.sender and path.read_bytes().endswith(sample.text):
            yield path.name, content
