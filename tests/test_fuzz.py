"""Bytes at random, from everybody who can send us some: servers, writers of messages and sidecars.

Each input is made from a number, which is what a failing test shows. The oracle
reads what the server wrote by itself (`evil.responses_in`).
"""

from __future__ import annotations

import io
import json
import os
import random
from pathlib import Path

import pytest

from maildirqmtp.errors import EnvelopeError, FileChangedError, LocalError
from maildirqmtp.forwarder.forwarder import Forwarder
from maildirqmtp.forwarder.queued_message import PassedOver, QueuedMessage, prepare
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import Route
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.transport.endpoint import Endpoint, TcpEndpoint
from tests.e2e.evil import responses_in
from tests.fakes import FakeClock, FakeServer, broken, framed, never_wait
from tests.helpers import Package, add_message, add_sidecar, make_maildir, names

#: How many of each; the campaigns go on from there, to so many times as many.
RESPONSE_RUNS = 2_000
ENVELOPES = 15_000
SIDECARS = 15_000
LONG = 40

#: What is cut up and put together again, besides bytes at random.
RESPONSE_BITS = (
    b"3:Kok,", b"3:Zno,", b"3:Dno,", b"1:K,", b"0:,", b"03:Kok,", b"3:Kok", b":", b",", b"K",
    b"65537:", b"65536:K", b"9" * 30, b"-1:K,", b"3:kok,", b"5:K\x1b[2J,", b"\0", b"\n",
    b"46:D" + b"x" * 47 + b",",
)  # fmt: skip
TOP_BITS = (
    b"Return-Path: <s@x>\n", b"Delivered-To: r@y\n", b"delivered-to:r@y\r\n", b"x" * 8_200,
    b"Envelope-to: a@y, b@y\n", b"Envelope-to: \"a,b\"@y\n", b"X-Original-To: r@y\n",
    b"Delivery-date: now\n", b"Return-Path: <>\n", b"Return-Path: s@x\n", b" folded\n", b"\n",
    b"Delivered-To: \n", b"Delivered-To: <r@y>\n", b"\0", b"\r", b"\n", b":", b"<", b">",
    b"Delivered-To: " + b"x" * 998, b"From r@y\n",
)  # fmt: skip
SIDECAR_BITS = (
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"1", b"true", b"null", b'"version"',
    b'"recipients"', b'"sender"', b'"failures"', b'"a@y"', b'"\\ud800"', b'"\\u0000"', b"\xff",
    b"[" * 3_000, b"9" * 5_000, b"NaN", b"1e999", b"\xef\xbb\xbf", b'"\\n"',
    b'{"recipient":"a@y","response":"Dno","at":"now"}',
)  # fmt: skip
SIDECAR = {
    "version": 1,
    "sender": "s@x",
    "recipients": ["a@y", "b@y"],
    "failures": [{"recipient": "c@y", "response": "Dno", "at": "2026-01-31T12:00:00Z"}],
}


def mutated(chance: random.Random, text: bytes, bits: tuple[bytes, ...]) -> bytes:
    """Change a text in a few places."""
    data = bytearray(text)
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(data) + 1)
        what = chance.randrange(5)
        if what == 0:
            data[at : at + chance.randrange(1, 4)] = b""
        elif what == 1:
            data[at:at] = chance.choice(bits)
        elif what == 2:
            data[at : at + 1] = bytes([chance.randrange(256)])
        elif what == 3:
            data[at:at] = data[chance.randrange(len(data) + 1) :][:20]
        else:
            del data[at:]
    return bytes(data)


def mixed(chance: random.Random, bits: tuple[bytes, ...]) -> bytes:
    """Put a text together from bits and bytes at random."""
    pieces = [
        chance.choice(bits) if chance.random() < 0.8 else chance.randbytes(chance.randrange(5))
        for _ in range(chance.randrange(12))
    ]
    return b"".join(pieces)


# What servers say


def one_run(number: int, path: Path, clock: FakeClock) -> None:
    """Run the forwarder against a server that says what comes to its mind; lose nothing."""
    chance = random.Random(number)
    owed: dict[str, tuple[bytes, list[str]]] = {}
    for index in range(chance.randrange(1, 5)):
        name = f"{index}.m"
        recipients = [f"r{i}@y" for i in range(chance.choice((1, 1, 1, 2, 3)))]
        text = b"message %d\n" % index
        if len(recipients) > 1:
            add_sidecar(path, name, "s@x", *recipients)
        add_message(path, name, text, b"s@x", recipients[0].encode())
        owed[name] = (text, recipients)
    lines: list[tuple[list[Package], bytearray]] = []
    log = io.StringIO()

    def connect(server: Endpoint, timeout_s: float) -> FakeServer:
        assert len(lines) < 60, "it never stops"
        packages: list[Package] = []
        written = bytearray()
        lines.append((packages, written))
        sane = chance.random() < 0.3
        ends = chance.choice((0, 1, 2, 5, 50))
        once = chance.random() < 0.3

        def serve(line: FakeServer, package: Package) -> None:
            packages.append(package)
            wanted = 1 if once else len(package.recipients)
            said = framed(*[bytes([chance.choice(b"KKKZD")]) + b"text" for _ in range(wanted)])
            if not sane:
                said = (
                    mixed(chance, RESPONSE_BITS)
                    if chance.random() < 0.3
                    else mutated(chance, said, RESPONSE_BITS)
                )
            cut = chance.randrange(len(said) + 1)
            written.extend(said)
            for piece in filter(None, (said[:cut], said[cut:])):
                line.say(piece)
            if len(packages) > ends:
                line.say(chance.choice((b"", broken())))

        takes = [chance.choice((0, 1, 9, 40, 10_000)) for _ in range(chance.randrange(9))]
        return FakeServer(serve, takes=takes)

    # The time-out passes in no time, but a run looks around every second of it.
    route = Route(
        bytes(path),
        TcpEndpoint("mx"),
        window_messages=chance.choice((1, 2, 64)),
        response_timeout_s=10.0,
    )
    report = Report(log, io.StringIO(), 1, clock=clock)
    with Maildir(bytes(path)) as opened:
        forwarder = Forwarder(route, opened, report, connect, clock, lambda: 0.0)
        try:
            forwarder.run_batch(opened.scan())
        finally:
            forwarder.close()
    said: dict[tuple[bytes, str], set[bytes]] = {}
    for packages, written in lines:
        whom = [(p.text, r.decode()) for p in packages for r in p.recipients]
        for who, status in zip(whom, responses_in(bytes(written)), strict=False):
            said.setdefault(who, set()).add(status)
    assert log.getvalue().replace("\n", "").isprintable()
    for name, (text, recipients) in owed.items():
        left = listed(path, name, recipients)
        failed = listed(path / ".Failed", name, recipients)
        for recipient in recipients:
            statuses = said.get((text, recipient), set())
            if recipient not in left:
                assert (b"D" if recipient in failed else b"K") in statuses, (name, recipient)


def listed(path: Path, name: str, recipients: list[str]) -> list[str]:
    """Return who is owed a message by a maildir."""
    if name not in names(path / "new"):
        return []
    try:
        content = json.loads((path / "envelope" / f"{name}.json").read_bytes())
    except FileNotFoundError:
        return recipients
    found = content["recipients"]
    assert isinstance(found, list)
    return found


def fuzz_responses(numbers: range, place: Path, patch: pytest.MonkeyPatch) -> None:
    """Make a run for each number."""
    clock = FakeClock()
    never_wait(patch, clock)
    path = make_maildir(place / "M")
    for number in numbers:
        try:
            one_run(number, path, clock)
        except BaseException as error:
            error.add_note(f"response run {number}")
            raise
        for folder in (path, path / ".Failed"):
            for part in ("new", "envelope", "tmp"):
                for name in names(folder / part):
                    (folder / part / name).unlink()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory in memory, where there is one."""
    if not os.access("/dev/shm", os.W_OK):
        return tmp_path
    import tempfile

    return Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm"))


@pytest.fixture(autouse=True)
def _remove(place: Path) -> object:
    """Give the memory back."""
    import shutil

    yield
    shutil.rmtree(place)


def test_whatever_a_server_says_nothing_is_lost(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is there an exception, or a run that never ends."""
    fuzz_responses(range(RESPONSE_RUNS), place, monkeypatch)


@pytest.mark.long
@pytest.mark.timeout(1_800)
def test_whatever_a_server_says_nothing_is_lost_in_the_long_run(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty times as many."""
    fuzz_responses(range(RESPONSE_RUNS, LONG * RESPONSE_RUNS), place, monkeypatch)


# What is on top of messages


def fuzz_envelopes(numbers: range, path: Path) -> None:
    """Prepare a message for each number."""
    make_maildir(path)
    reasons: set[str] = set()
    routes = [Route(bytes(path), TcpEndpoint("mx"), prefix=prefix) for prefix in (b"", b"r")]
    with Maildir(bytes(path)) as opened:
        for number in numbers:
            chance = random.Random(number)
            text = mixed(chance, TOP_BITS)
            if chance.random() < 0.5:
                text = mutated(chance, b"Return-Path: <s@x>\nDelivered-To: r@y\nText\n", TOP_BITS)
            unfolded = text.translate(None, b'\r\n"\\')  # addresses are raw, unquoted
            add_message(path, "1.m", text, None, None)
            for route in routes:
                try:
                    found = prepare(opened, route, opened.new, b"1.m")
                except (EnvelopeError, LocalError, FileChangedError) as error:
                    reasons.add(str(error))
                    continue
                if isinstance(found, PassedOver):
                    assert found is PassedOver.FOR_OTHERS, number
                    assert route.prefix, number
                    continue
                for address in (found.sender, *found.recipients):
                    assert not set(address) & set(b"\0\r\n"), number
                    assert len(address) <= 999, number
                    assert address.translate(None, b'"\\') in unfolded, number
                sent = found.kept + text[found.offset :]
                assert len(sent) == found.length, number
                assert all(found.recipients), number
                # Nothing but trace lines is taken away.
                assert text.endswith(sent[len(found.kept) :]), number
                gone = text[: found.offset].lower()
                assert gone.count(b"return-path") + gone.count(b"delivered-to"), number
    assert all(reason.isprintable() for reason in reasons)


def test_whatever_is_on_top_of_a_message(place: Path) -> None:
    """It is sent to an address that stands there, without the trace lines, or held."""
    fuzz_envelopes(range(ENVELOPES), place / "M")


@pytest.mark.long
@pytest.mark.timeout(1_800)
def test_whatever_is_on_top_of_a_message_in_the_long_run(place: Path) -> None:
    """Forty times as many."""
    fuzz_envelopes(range(ENVELOPES, LONG * ENVELOPES), place / "M")


# What is in sidecars


def fuzz_sidecars(numbers: range, path: Path) -> None:
    """Prepare a message with a sidecar for each number."""
    make_maildir(path)
    route = Route(bytes(path), TcpEndpoint("mx"))
    add_message(path, "1.m", b"text\n", b"s@x", b"nobody@y")
    add_sidecar(path, "1.m", "s@x", "a@y")
    sidecar = path / "envelope" / "1.m.json"
    whole = json.dumps(SIDECAR).encode()
    reasons: set[str] = set()
    sent = held = 0
    with Maildir(bytes(path)) as opened:
        opened.scan()
        for number in numbers:
            chance = random.Random(number)
            data = mutated(chance, whole, SIDECAR_BITS)
            if chance.random() < 0.3:
                data = mixed(chance, SIDECAR_BITS)
            sidecar.write_bytes(data)
            try:
                found = prepare(opened, route, opened.new, b"1.m")
            except EnvelopeError as error:
                reasons.add(str(error))
                held += 1
                continue
            assert isinstance(found, QueuedMessage), number
            assert b"nobody@y" not in found.recipients, f"{number}: the headers were believed"
            sent += 1
            for address in (found.sender, *found.recipients):
                assert not set(address) & set(b"\0\r\n"), number
    assert all(reason.isprintable() for reason in reasons)
    assert sent > len(numbers) // 20
    assert held > len(numbers) // 20


def test_whatever_is_in_a_sidecar(place: Path) -> None:
    """It is believed whole, or the message is held; never the lines on top of the message."""
    fuzz_sidecars(range(SIDECARS), place / "M")


@pytest.mark.long
@pytest.mark.timeout(1_800)
def test_whatever_is_in_a_sidecar_in_the_long_run(place: Path) -> None:
    """Forty times as many."""
    fuzz_sidecars(range(SIDECARS, LONG * SIDECARS), place / "M")
