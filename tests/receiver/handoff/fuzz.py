"""The receiver with a hand-off, between a client and a next server that both do as bytes say.

A run is a function of bytes: each choice takes some of them, and where they are used up
everybody behaves well. What judges it is written here from the standards: a parser of packages,
and a next server that knows what it has taken.

    python -m tests.receiver.handoff.fuzz -max_total_time=600   under atheris, which finds bytes
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, TypeVar, cast

from maildirqmtp.receiver.destination import Destination
from maildirqmtp.receiver.handoff import smtp_client
from maildirqmtp.receiver.handoff.destination import HandOff
from maildirqmtp.receiver.handoff.how import SmtpAddress
from maildirqmtp.receiver.handoff.next_server import NextServer
from maildirqmtp.receiver.once.destination import OnceDestination
from maildirqmtp.receiver.once.memory import Memory
from maildirqmtp.receiver.session import Session
from tests.e2e.evil import responses_in

T = TypeVar("T")

SENDERS = (b"s@x", b"", b"#@[]", b"s p@x", b"s\xff@x", b"\xc3\xa4@x", b"a\rb@x", b"x" * 1_100)
RECIPIENTS = (
    b"a@y", b"b@y", b"c@y", b"q q@y", b'"@y', b"\xc3\xa4@y", b"a\xff@y", b"a@b c", b"a\0b@y", b"",
    b"x" * 1_100 + b"@y", b"a> X=Y@y", b"a@[1.2.3.4]",
)  # fmt: skip
TEXTS = (
    b"Subject: x\n\nhi\n", b".\n", b".", b"..\n.\n", b"\n.\r\n", b"no end", b"", b"\r\n.\r\n",
    b"a\rb\n", b"\0", b"\xe4\n", b"x" * 70_000 + b"\n", b".\n" * 50_000, b"\r", b"a\r",
)  # fmt: skip
#: What is no reply, or not the one that was asked for.
STRANGE = (
    b"", b"\r\n", b"250", b"250-", b"250 ok", b"250 ok\n", b"250-a\r\n250 b\r\n", b"250\r\n",
    b"250-a\r\n550 b\r\n", b"999 no\r\n", b"\0\r\n", b"250 \0\x1b[2J\r\n", b"250 " + b"x" * 5_000,
    b"250-x\r\n" * 201, b"354 go on\r\n", b"421 bye\r\n", b"552 5.3.4 size\r\n", b"220 hi\r\n",
    b"250 ok\r\n250 ok\r\n", b"354 go on\r\n250 ok\r\n", b"550 no\r\n250 ok\r\n", b"HTTP/1.1 4\r\n",
    b"250 ok\r\n421 bye\r\n", b"550-\xff\xfe\r\n550 5.1.1 \xff\r\n", b"451 later\r\n" * 3,
)  # fmt: skip
EXTENSIONS = (b"PIPELINING", b"8BITMIME", b"SMTPUTF8", b"SIZE 90000", b"SIZE", b"SIZE x")


class Choices:
    """Choices by bytes; the first of the possible ones once they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data = iter(data)

    def below(self, limit: int) -> int:
        """Return a number from 0 to below `limit`, of at most 256."""
        return next(self._data, 0) % limit

    def one_of(self, things: Sequence[T]) -> T:
        """Return one of several."""
        return things[self.below(len(things))]


@dataclass
class Taken:
    """A text that the next server has read to its end.

    `accepted` are those whom it has said yes for after that. Where it said strange things on
    this connection, it has said some yes, `any_yes`, or none.
    """

    text: bytes
    named: frozenset[bytes]
    strange: bool
    accepted: set[bytes] = field(default_factory=set)
    any_yes: bool = False


class NextServerModel:
    """A socket with an SMTP or LMTP server at its other end, as `smtp_client` uses it."""

    def __init__(self, choices: Choices, lmtp: bool, taken: list[Taken]) -> None:
        self._choices = choices
        self._lmtp = lmtp
        self._taken = taken
        self._input = b""
        self._output = bytearray()
        self._readable = os.eventfd(0)
        self._over = False
        self._in_text = self._strange = self._mute = False
        self._named: list[bytes] = []
        self._accepted: list[bytes] = []
        self._say(b"220 hi")

    # What a socket does

    def fileno(self) -> int:
        return self._readable

    def settimeout(self, timeout_s: float) -> None:
        assert timeout_s > 0

    def setsockopt(self, *arguments: object) -> None:
        pass

    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 25

    def shutdown(self, how: int) -> None:
        self._over = True

    def close(self) -> None:
        self._over = True
        if self._readable >= 0:
            os.close(self._readable)
            self._readable = -1

    def recv(self, limit: int) -> bytes:
        if not self._output:
            if self._over:
                if self._choices.below(2):
                    raise ConnectionResetError(104, "Connection reset by peer")
                return b""
            raise TimeoutError
        count = self._choices.one_of((limit, 1, 3))
        data = bytes(self._output[:count])
        del self._output[:count]
        self._show()
        return data

    def sendall(self, data: bytes) -> None:
        if self._over:
            raise BrokenPipeError(32, "Broken pipe")
        if self._choices.below(30) == 1:
            raise TimeoutError
        self._input += bytes(data)
        while not self._over and self._take():
            pass
        if self._in_text and self._choices.below(10) == 1:
            self._write(self._choices.one_of(STRANGE), strange=True)

    # What the server does

    def _show(self) -> None:
        """Have the descriptor be readable, or not."""
        with contextlib.suppress(BlockingIOError):
            os.set_blocking(self._readable, False)
            os.eventfd_read(self._readable)
        if self._output or self._over:
            os.eventfd_write(self._readable, 1)

    def _write(self, data: bytes, strange: bool = False) -> None:
        self._strange = self._strange or strange
        self._output += data
        self._show()

    def _end(self) -> None:
        self._over = True
        self._show()

    def _say(self, usual: bytes) -> bytes:
        """Say the usual thing, a refusal, something strange, or nothing; return it."""
        if self._over or self._mute:
            return b""
        what = self._choices.below(40)
        said = usual + b"\r\n"
        if what == 1:
            said = self._choices.one_of((b"550 5.1.1 no\r\n", b"550-a\r\n550 b\r\n"))
        elif what == 2:
            said = self._choices.one_of((b"451 4.3.0 later\r\n", b"450-a\r\n450 b\r\n"))
        elif what in (3, 4):
            said = self._choices.one_of(STRANGE)
            self._write(said, strange=True)
            return said
        elif what == 5:
            self._end()
            return b""
        elif what == 6:
            self._mute = True
            return b""
        self._write(said)
        if what == 7:
            self._end()
        return said

    def _take(self) -> bool:
        if self._in_text:
            return self._take_text()
        line, end, rest = self._input.partition(b"\r\n")
        if not end:
            return False
        self._input = rest
        self._obey(line)
        return True

    def _obey(self, line: bytes) -> None:
        verb = line[:4].upper()
        if verb in (b"EHLO", b"LHLO"):
            found = [e for e in EXTENSIONS if self._choices.below(4) != 1]
            lines = [b"hi", *found]
            self._say(b"\r\n".join([*(b"250-" + e for e in lines[:-1]), b"250 " + lines[-1]]))
        elif verb == b"MAIL":
            self._named, self._accepted = [], []
            self._say(b"250 ok")
        elif verb == b"RCPT":
            found_address = re.match(rb"RCPT TO:<(.*)>$", line, re.DOTALL)
            assert found_address is not None, line
            self._named.append(found_address[1])
            if self._say(b"250 ok").startswith(b"2"):
                self._accepted.append(found_address[1])
        elif verb == b"DATA":
            said = self._say(b"354 go on" if self._accepted or self._strange else b"503 no")
            self._in_text = b"354" in said
            if self._in_text:
                self._input = b"\r\n" + self._input
        elif verb == b"QUIT":
            self._end()
        else:
            self._say(b"250 ok")

    def _take_text(self) -> bool:
        at = self._input.find(b"\r\n.\r\n")
        if at < 0:
            return False
        text, self._input = self._input[: at + 2], self._input[at + 5 :]
        assert not re.search(rb"\r(?!\n)|(?<!\r)\n|\0", text), "no text for SMTP"
        self._in_text = False
        lines = text.replace(b"\r\n.", b"\r\n").removeprefix(b"\r\n").replace(b"\r\n", b"\n")
        taken = Taken(lines, frozenset(self._named), self._strange)
        self._taken.append(taken)
        for recipient in self._accepted if self._lmtp else [b""]:
            said = self._say(b"250 queued")
            yes = re.search(rb"(?m)^2", said) is not None
            taken.any_yes |= yes
            if yes:
                taken.accepted |= {recipient} if self._lmtp else set(self._accepted)
        taken.strange |= self._strange
        return True


class _KeysInMemory:
    """What `Memory` does, without a disk."""

    def __init__(self) -> None:
        self._keys: set[bytes] = set()

    def knows(self, key: bytes) -> bool:
        return key in self._keys

    def accept(self, entries: Sequence[tuple[bytes, bytes | None]]) -> None:
        self._keys.update(key for key, _ in entries)

    def close(self) -> None:
        pass


# The client


@dataclass(frozen=True)
class Sent:
    """A package as a server has to understand it; the text with LF."""

    text: bytes
    sender: bytes
    recipients: tuple[bytes, ...]


def netstring(data: bytes) -> bytes:
    return b"%d:%b," % (len(data), data)


def wire(choices: Choices) -> bytes:
    """Write packages, changed in a place or two."""
    data = b""
    for _ in range(1 + choices.below(4)):
        recipients = [choices.one_of(RECIPIENTS) for _ in range(1 + choices.below(4))]
        data += netstring(choices.one_of((b"\n", b"\r", b"x", b"")) + choices.one_of(TEXTS))
        data += netstring(choices.one_of(SENDERS))
        data += netstring(b"".join(map(netstring, recipients)))
    for _ in range(choices.one_of((0, 0, 0, 1, 2))):
        at = (choices.below(256) << 8 | choices.below(256)) % (len(data) + 1)
        what = choices.below(4)
        if what == 0:
            data = data[:at]
        elif what == 1:
            data = data[:at] + bytes([choices.below(256)]) + data[at + 1 :]
        elif what == 2:
            data = data[:at] + choices.one_of((b"0", b":", b",", b"9" * 20, b"0:,")) + data[at:]
        else:
            data = data[:at] + data[at + 1 :]
    return data


def _netstring_at(data: bytes, at: int) -> tuple[bytes, int] | None:
    """Return the netstring that begins there and where it ends; None for none (netstrings.txt)."""
    head = re.compile(rb"(0|[1-9][0-9]{0,8}):").match(data, at)
    if head is None:
        return None
    end = head.end() + int(head[1])
    return (data[head.end() : end], end + 1) if data[end : end + 1] == b"," else None


def packages(data: bytes) -> Iterator[Sent]:
    """Yield the packages that are complete before the first thing that is none (qmtp.txt)."""
    at = 0
    while (message := _netstring_at(data, at)) is not None:
        if message[0][:1] not in (b"\n", b"\r"):
            return
        sender = _netstring_at(data, message[1])
        rest = _netstring_at(data, sender[1]) if sender is not None else None
        if sender is None or rest is None:
            return
        recipients, inside = [], 0
        while inside < len(rest[0]):
            one = _netstring_at(rest[0], inside)
            if one is None:
                return
            recipients.append(one[0])
            inside = one[1]
        text = message[0][1:]
        if message[0][:1] == b"\r":
            text = text.replace(b"\r\n", b"\n")
        yield Sent(text, sender[0], tuple(recipients))
        at = rest[1]


# A run


@contextlib.contextmanager
def _handing_on(connect: Callable[[], NextServerModel], lmtp: bool) -> Iterator[HandOff]:
    """Put models in place of the sockets of the hand-off."""
    tick = itertools.count(0, 1_000)
    connection: Any = smtp_client._Connection
    usual = connection._get_socket
    connection._get_socket = lambda *_: connect()
    to = HandOff(NextServer(SmtpAddress(lmtp, "next", 25), "here", clock=lambda: next(tick)))
    try:
        yield to
    finally:
        to.close()
        connection._get_socket = usual


def run(data: bytes) -> bytes:
    """Have a client send packages; return the answers' letters. Raises `AssertionError`."""
    choices = Choices(data)
    lmtp, once = choices.below(2) == 1, choices.below(2) == 1
    sent = wire(choices)
    taken: list[Taken] = []
    models: list[NextServerModel] = []

    def connect() -> NextServerModel:
        assert len(models) < 300, "it never stops"
        models.append(NextServerModel(choices, lmtp, taken))
        return models[-1]

    output = b""
    with _handing_on(connect, lmtp) as hand_off:
        destination: Destination[Any] = hand_off
        if once:
            destination = OnceDestination(hand_off, cast("Memory", _KeysInMemory()), stages=False)
        session = Session(destination, "p")
        rest = sent
        while rest and not session.ended:
            size = choices.one_of((len(rest), 1, 7, 5_000))
            output += session.receive(rest[:size])
            rest = rest[size:]
        session.close()
    letters = list(responses_in(output))
    judge(list(packages(sent)), letters, taken)
    return b"".join(letters)


def judge(expected: list[Sent], letters: list[bytes], taken: list[Taken]) -> None:
    """One answer for each recipient, and K for none that the next server has not taken."""
    owed = [(one, recipient) for one in expected for recipient in one.recipients]
    assert len(letters) == len(owed), (letters, owed)
    for (one, recipient), letter in zip(owed, letters, strict=True):
        if letter == b"K":
            assert any(has(item, one, recipient) for item in taken), (one, recipient)


def has(item: Taken, one: Sent, recipient: bytes) -> bool:
    """Say whether the next server has taken a text for a recipient."""
    received, _, text = item.text.partition(b"\n")
    whole = one.text.replace(b"\r\n", b"\n")
    if whole and not whole.endswith(b"\n"):
        whole += b"\n"
    if not received.startswith(b"Received: from p by ") or text != whole:
        return False
    if item.strange:
        return item.any_yes and recipient in map(raw, item.named)
    return recipient in map(raw, item.accepted)


def raw(address: bytes) -> bytes:
    """Return an address as QMTP has it: without quoting (RFC 5321, 4.1.2)."""
    quoted = re.fullmatch(rb'"((?:[^"\\]|\\.)*)"(@.*)?', address, re.DOTALL)
    if quoted is None:
        return address
    return re.sub(rb"\\(.)", rb"\1", quoted[1]) + (quoted[2] or b"")


def main() -> None:
    """Let atheris look for bytes that go wrong, with libFuzzer's arguments."""
    import importlib

    atheris: Any = importlib.import_module("atheris")
    for name, module in list(sys.modules.items()):
        if name.startswith(("maildirqmtp.receiver", "maildirqmtp.qmtp", "maildirqmtp.mail")):
            for function in vars(module).values():
                _instrument(atheris, function)

    def one_input(data: bytes) -> None:
        run(data)

    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


def _instrument(atheris: Any, thing: object) -> None:
    """Have atheris see which ways a function, or the methods of a class, have gone."""
    members = vars(thing).values() if isinstance(thing, type) else [thing]
    for member in members:
        function = getattr(member, "fget", None) or getattr(member, "__func__", member)
        if isinstance(function, FunctionType) and function.__module__.startswith("maildirqmtp."):
            atheris.instrument_func(function)


if __name__ == "__main__":
    main()
