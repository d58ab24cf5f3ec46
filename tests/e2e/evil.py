"""Servers that misbehave, what they saw and said, and the oracle that judges the client.

The oracle knows nothing of the client's insides. What a server wrote is parsed
here, by an independent reading of qmtp.txt, section 5; a response belongs to
the recipient of the same number among the packages of its connection.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maildirqmtp.forwarder.batch import flush
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import Route
from maildirqmtp.qmtp.package_reader import MessageData, MessageStart, PackageEnd, PackageReader
from maildirqmtp.transport.endpoint import TcpEndpoint
from tests.helpers import (
    Package,
    Peer,
    ScriptedServer,
    add_message,
    add_sidecar,
    make_maildir,
    names,
    run,
    serving,
    sidecar,
)

#: Two refusals as s/qmail and aQmail frame them: one byte too short.
SQMAIL_REFUSALS = (
    b"66:D Sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1),",
    b"46:D Sorry, I can't handle that recipient (#5.1.3),",
)

_LENGTH = re.compile(rb"(0|[1-9][0-9]{0,4}):")


def responses_in(written: bytes) -> Iterator[bytes]:
    """Yield the status byte of each valid response, up to the first that is none.

    Two refusals of s/qmail, each a byte longer than it says, are valid.
    """
    start = 0
    while (found := _LENGTH.match(written, start)) is not None:
        length = int(found[1])
        end = found.end() + length
        status = written[found.end() : found.end() + 1]
        if not 0 < length <= 65_536 or status not in (b"K", b"Z", b"D"):
            return
        if written[end : end + 1] != b",":
            end += 1
            if written[start : end + 1] not in SQMAIL_REFUSALS:
                return
        yield status
        start = end + 1


class RecordingTransport:
    """The server's end of one connection, which keeps what was read and written."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.packages: list[Package] = []
        self.written = bytearray()
        self._reader = PackageReader()
        self._text: list[bytes] = []

    def take(self, max_bytes: int = 1 << 18) -> int:
        """Read at most this many bytes; return how many came, 0 at the end."""
        try:
            data = self.socket.recv(max_bytes)
        except OSError:
            return 0
        self._reader.feed(data)
        while (event := self._reader.next()) is not None:
            if isinstance(event, MessageStart):
                self._text = []
            elif isinstance(event, MessageData):
                self._text.append(event.data)
            elif isinstance(event, PackageEnd):
                text = b"".join(self._text)
                self.packages.append(Package(text, b"\n", event.sender, event.recipients))
        return len(data)

    def packages_from(self, number: int = 0, chunk: int = 1 << 18) -> Iterator[Package]:
        """Yield each whole package as it comes, from this number on."""
        while True:
            while number < len(self.packages):
                yield self.packages[number]
                number += 1
            if not self.take(chunk):
                return

    def send(self, data: bytes) -> None:
        """Write bytes; a client that has gone is no error."""
        self.written += data
        with contextlib.suppress(OSError):
            self.socket.sendall(data)

    def drain(self) -> None:
        """Read and forget until the client closes."""
        with contextlib.suppress(OSError):
            while self.socket.recv(1 << 18):
                pass

    def reset(self) -> None:
        """Close with a reset, whatever is under way."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def half_close(self) -> None:
        """Say that no more comes, and read on."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
        self.drain()

    def outcomes(self) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Yield text, recipient, and K, Z or D of what was read whole and answered."""
        owed = [(p.text, r) for p in self.packages for r in p.recipients]
        for (text, recipient), status in zip(owed, responses_in(bytes(self.written)), strict=False):
            yield text, recipient, status


Evil = Callable[[RecordingTransport, int], None]


@dataclass
class EvilServer:
    """Runs a script on each connection, with its number, and keeps each line."""

    server: ScriptedServer
    lines: list[RecordingTransport]

    @property
    def address(self) -> str:
        """SERVER, for the command line."""
        return self.server.address


@contextlib.contextmanager
def evil_server(evil: Evil) -> Iterator[EvilServer]:
    """Run an evil server for the length of a with block."""
    lines: list[RecordingTransport] = []
    lock = threading.Lock()

    def script(peer: Peer) -> None:
        line = RecordingTransport(peer.socket)
        with lock:
            number = len(lines)
            lines.append(line)
        evil(line, number)

    with serving(script) as server:
        yield EvilServer(server, lines)


def honest(line: RecordingTransport, number: int = 0) -> None:
    """Answer K for each recipient, as the protocol says."""
    for package in line.packages_from():
        line.send(b"3:Kok," * len(package.recipients))


@dataclass
class Stock:
    """A maildir, and what was in it at first: text and recipients of each message."""

    maildir: Path
    messages: dict[str, tuple[bytes, tuple[bytes, ...]]] = field(default_factory=dict)

    def add(self, text: bytes, *recipients: bytes) -> str:
        """Add a message, with a sidecar where it has several recipients; return its name."""
        number = len(self.messages)
        name = f"{1_700_000_000 + number}.M{number}P1.test"
        if len(recipients) > 1:
            add_sidecar(self.maildir, name, "s@x", *(r.decode() for r in recipients))
            add_message(self.maildir, name, text, None, None)
        else:
            add_message(self.maildir, name, text, b"s@x", recipients[0] if recipients else b"r@y")
        self.messages[name] = (text, recipients or (b"r@y",))
        return name

    @property
    def new(self) -> set[str]:
        """Names that are left in new/."""
        return set(names(self.maildir / "new"))

    @property
    def failed(self) -> set[str]:
        """Names in the failed maildir."""
        return set(names(self.maildir / ".Failed" / "new"))

    def owed(self, name: str) -> set[bytes]:
        """Recipients that are still owed a message, by what is on the disk."""
        if name not in self.new:
            return set()
        if (self.maildir / "envelope" / f"{name}.json").exists():
            return {r.encode() for r in sidecar(self.maildir, name)["recipients"]}
        return set(self.messages[name][1])

    def bounced(self, name: str) -> set[bytes]:
        """Recipients for whom the message is in the failed maildir, with a reason."""
        if name not in self.failed:
            return set()
        content = sidecar(self.maildir / ".Failed", name)
        failures = {f["recipient"].encode() for f in content["failures"]}
        assert failures == {r.encode() for r in content["recipients"]}
        return failures


def stock(path: Path, *texts: bytes) -> Stock:
    """Make a maildir with messages of these texts, to one recipient each."""
    made = Stock(make_maildir(path))
    for text in texts:
        made.add(text)
    return made


@dataclass
class Run:
    """How a run ended: exit code, `--json` events, standard error."""

    code: int
    events: list[dict[str, Any]]
    stderr: str

    def in_doubt(self) -> Counter[tuple[str, bytes]]:
        """Count, by message and recipient, how often the report warned of a second copy."""
        return Counter(
            (e["message"], e["recipient"].encode()) for e in self.events if e["event"] == "in-doubt"
        )


def run_command(made: Stock, server: EvilServer, *flags: str) -> Run:
    """Run the installed command once on the maildir; it may take 60 s at the very most."""
    times = ("--response-timeout", "20", "--write-timeout", "20", "--connect-timeout", "20")
    done = run("--json", *times, *flags, made.maildir, server.address, timeout_s=60)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return Run(done.returncode, events, done.stderr)


def run_engine(made: Stock, server: EvilServer, **limits: Any) -> Run:
    """Do what the command does, in this process: to try hundreds of cases."""
    limits = {"response_timeout_s": 20.0, "write_timeout_s": 20.0, "grace_s": 20.0, **limits}
    route = Route(bytes(made.maildir), TcpEndpoint("127.0.0.1", server.server.port), **limits)
    log, data = io.StringIO(), io.StringIO()
    code = flush(route, Report(log, data))
    return Run(code, [json.loads(s) for s in data.getvalue().splitlines()], log.getvalue())


def judge(made: Stock, server: EvilServer, ran: Run) -> None:
    """The oracle; see the module's head. Call it when the server is closed."""
    said: dict[tuple[bytes, bytes], set[bytes]] = {}
    read: Counter[tuple[bytes, bytes]] = Counter()
    for line in server.lines:
        read.update((p.text, r) for p in line.packages for r in p.recipients)
        for text, recipient, status in line.outcomes():
            said.setdefault((text, recipient), set()).add(status)
    doubts = ran.in_doubt()
    for name, (text, recipients) in made.messages.items():
        owed, bounced = made.owed(name), made.bounced(name)
        for recipient in recipients:
            statuses = said.get((text, recipient), set())
            who = f"{name} to {recipient!r}, of which the server said {statuses or 'nothing'}"
            if recipient in bounced:
                assert b"D" in statuses, f"failed: {who}"
            if recipient not in owed and recipient not in bounced:
                assert b"K" in statuses, f"lost: {who}"
            copies = read[text, recipient]
            warned = doubts[name, recipient]
            assert copies <= 1 + warned, f"sent {copies} times, {warned} warnings: {who}"
        if name in made.new:
            assert (made.maildir / "new" / name).read_bytes().endswith(text)
        if name in made.failed:
            assert (made.maildir / ".Failed" / "new" / name).read_bytes().endswith(text)
    assert made.new <= made.messages.keys()
    assert made.failed <= made.messages.keys()
    assert not names(made.maildir / "tmp")
    assert not names(made.maildir / ".Failed" / "tmp")
    assert ran.code == (111 if made.new or made.failed else 0), ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.stderr.replace("\n", "").isprintable()


def forward(
    made: Stock, evil: Evil, *flags: str, in_process: bool = False, **limits: Any
) -> tuple[Run, EvilServer]:
    """Run once against this server, and have the oracle judge it."""
    with evil_server(evil) as server:
        ran = (
            run_engine(made, server, **limits) if in_process else run_command(made, server, *flags)
        )
    judge(made, server, ran)
    return ran, server
