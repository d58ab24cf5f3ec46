"""What is sent again: delivered once, whatever comes between."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir.files import Folder
from maildirqmtp.qmtp.protocol import Response, Status, package_head, package_tail
from maildirqmtp.receiver.destination import Mail, Outcome
from maildirqmtp.receiver.handoff.destination import HandOff
from maildirqmtp.receiver.handoff.verdicts import NO_TIME
from maildirqmtp.receiver.once.destination import OnceDelivery, OnceDestination
from maildirqmtp.receiver.once.memory import Memory
from maildirqmtp.receiver.session import Session
from maildirqmtp.receiver.spool import Spool
from tests.helpers import wait_until
from tests.receiver.doubles import Clock, Hop

DAY_S = 86_400.0


class Inner:
    """A destination that gives each recipient the answer that their first letter is."""

    def __init__(self) -> None:
        self.delivered: list[bytes] = []
        self.withdrawn: list[bytes] = []
        self.trouble: BaseException | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.began = threading.Event()

    packages_together = 16

    @property
    def tmp(self) -> Folder:
        raise NotImplementedError

    def free_bytes(self) -> int:
        return 0

    def begin(self, mail: Mail) -> InnerDelivery:
        return InnerDelivery()

    def commit(self, deliveries: Sequence[InnerDelivery]) -> None:
        self.began.set()
        assert self.gate.wait(60)
        if self.trouble is not None:
            raise self.trouble
        self.delivered += [r for d in deliveries for r in d.recipients if r.startswith(b"K")]

    def withdraw(self, deliveries: Sequence[InnerDelivery]) -> list[LocalError]:
        self.withdrawn += [r for d in deliveries for r in d.recipients]
        return []

    def abort(self) -> None:
        self.gate.set()

    def close(self) -> None:
        self.gate.set()


class InnerDelivery:
    def __init__(self) -> None:
        self.recipients: list[bytes] = []
        self.outcomes: list[Outcome] = []

    def deliver(self, recipient: bytes) -> int:
        if recipient.startswith(b"!"):
            raise LocalError("no room")
        self.recipients.append(recipient)
        response = Response(Status(recipient[:1].decode()), b"to " + recipient)
        self.outcomes.append(Outcome(response, b"file of " + recipient))
        return 1


@pytest.fixture
def inner() -> Inner:
    """What mail is delivered to."""
    return Inner()


@pytest.fixture(params=[True, False], ids=["maildir", "next server"])
def once(
    request: pytest.FixtureRequest, inner: Inner, tmp_path: Path, clock: Clock
) -> Iterator[OnceDestination]:
    """What keeps a second copy away from it."""
    memory = Memory(str(tmp_path / "once"), DAY_S, clock)
    with contextlib.closing(OnceDestination(inner, memory, stages=request.param)) as made:
        yield made


def mail(text: bytes = b"hi\n", sender: bytes = b"s@x") -> Mail:
    spool = Spool(None, crlf=False)  # type: ignore[arg-type]
    spool.append(text)
    spool.finish()
    return Mail(sender, spool, b"Received: now\n", 0.0)


def begin(once: OnceDestination, *recipients: bytes, text: bytes = b"hi\n") -> OnceDelivery:
    delivery = once.begin(mail(text))
    for recipient in recipients:
        delivery.deliver(recipient)
    return delivery


def letters(delivery: OnceDelivery) -> str:
    return "".join(outcome.response.status.value for outcome in delivery.outcomes)


def send(once: OnceDestination, *recipients: bytes, text: bytes = b"hi\n") -> str:
    """Deliver one package as a session does; the letters of its answers."""
    delivery = begin(once, *recipients, text=text)
    try:
        once.commit([delivery])
    except LocalError:
        once.withdraw([delivery])
        return "Z" * len(recipients)
    return letters(delivery)


def test_what_is_sent_again_arrives_once(once: OnceDestination, inner: Inner, clock: Clock) -> None:
    """A connection broke before the answer; what is sent again may have fewer recipients."""
    assert send(once, b"K1", b"K2", b"Z3", b"D4") == "KKZD"
    assert send(once, b"K2", b"Z3", b"K5") == "KZK"
    assert inner.delivered == [b"K1", b"K2", b"K5"]
    assert send(once, b"K1", text=b"another") == "K"
    clock.now_s += DAY_S
    assert send(once, b"K1") == "K"
    assert inner.delivered == [b"K1", b"K2", b"K5", b"K1", b"K1"]


def test_a_recipient_named_twice_has_one_copy(once: OnceDestination, inner: Inner) -> None:
    """In one package, and in two of one batch."""
    assert send(once, b"K1", b"K1", b"Z2", b"Z2") == "KKZZ"
    first, second = begin(once, b"K3"), begin(once, b"K3", b"K1", b"K4")
    once.commit([first, second])
    assert letters(first) + letters(second) == "KKKK"
    assert inner.delivered == [b"K1", b"K3", b"K4"]


@pytest.mark.parametrize("recipient", [b"K1", b"Z1", b"D1"])
def test_what_is_under_way_elsewhere_is_waited_for(
    once: OnceDestination, inner: Inner, recipient: bytes
) -> None:
    """The client reconnects while its message is still handed on to a slow mail server."""
    inner.gate.clear()
    answers: list[str] = []
    threads = [
        threading.Thread(target=lambda: answers.append(send(once, recipient))) for _ in range(3)
    ]
    threads[0].start()
    assert inner.began.wait(60)
    for thread in threads[1:]:
        thread.start()
    inner.gate.set()
    for thread in threads:
        thread.join(60)
    assert answers == [recipient[:1].decode()] * 3
    assert inner.delivered.count(b"K1") == (recipient == b"K1")


def test_what_another_batch_took_back_is_delivered(once: OnceDestination, inner: Inner) -> None:
    """Its client has gone; the one that waits must not be answered for something never tried."""
    first = begin(once, b"K1", b"K2")
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(send(once, b"K0", b"K2", b"K1")))
    thread.start()
    wait_until(lambda: inner.delivered == [b"K0"], "its own")
    once.withdraw([first])
    thread.join(60)
    assert answers == ["KKK"]
    assert sorted(inner.delivered) == [b"K0", b"K1", b"K2"]
    assert inner.withdrawn == [b"K1", b"K2"]


def test_two_that_wait_for_each_other_do_not(once: OnceDestination, inner: Inner) -> None:
    """Each ends its own first: else two clients would hang for ever, and their threads."""
    first, second = once.begin(mail()), once.begin(mail())
    first.deliver(b"K1")
    second.deliver(b"K2")
    first.deliver(b"K2")
    second.deliver(b"K1")
    threads = [
        threading.Thread(target=once.commit, args=([delivery],)) for delivery in (first, second)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert letters(first) + letters(second) == "KKKK"
    assert sorted(inner.delivered) == [b"K1", b"K2"]


def test_a_commit_that_fails_is_forgotten(once: OnceDestination, inner: Inner) -> None:
    """K for what was withdrawn would be lost mail."""
    inner.trouble = LocalError("Input/output error")
    assert send(once, b"K1") == "Z"
    assert inner.withdrawn == [b"K1"]
    inner.trouble = None
    assert send(once, b"K1") == "K"
    assert inner.delivered == [b"K1"]


@pytest.fixture
def staged(inner: Inner, tmp_path: Path, clock: Clock) -> Iterator[OnceDestination]:
    """One in front of a maildir."""
    memory = Memory(str(tmp_path / "once"), DAY_S, clock)
    with contextlib.closing(OnceDestination(inner, memory, stages=True)) as made:
        yield made


@pytest.mark.parametrize("can_forget", [True, False])
def test_keys_of_a_failed_accept_go_before_the_files(
    staged: OnceDestination,
    inner: Inner,
    tmp_path: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    can_forget: bool,
) -> None:
    """After an fsync that failed they may be on disk all the same.

    A restart that finds a key, and its file nowhere, says K: lost mail.
    """
    accept = staged.memory.accept

    def fail(*_: object) -> None:
        raise LocalError("disk I/O error")

    def accept_and_fail(entries: Sequence[tuple[bytes, bytes | None]]) -> None:
        accept(entries)
        fail()

    monkeypatch.setattr(staged.memory, "accept", accept_and_fail)
    if not can_forget:
        monkeypatch.setattr(staged.memory, "forget", fail)
    delivery = begin(staged, b"K1")
    with pytest.raises(LocalError):
        staged.commit([delivery])
    (key,) = [place.key for place in delivery.places]
    errors = staged.withdraw([delivery])
    if not can_forget:
        assert errors
        assert inner.withdrawn == [], "the next start needs the file in tmp/"
        return
    assert errors == []
    assert inner.withdrawn == [b"K1"]
    for ending in ("", "-wal"):
        shutil.copy(tmp_path / f"once{ending}", tmp_path / f"crashed{ending}")
    with contextlib.closing(Memory(str(tmp_path / "crashed"), DAY_S, clock)) as after_crash:
        assert not after_crash.knows(key)


@pytest.mark.parametrize("where", ["forget", "_overwrite"])
def test_no_memory_to_take_back_with(
    staged: OnceDestination, inner: Inner, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Out of memory in the commit, and again afterwards: K for the next try is lost mail."""

    def fail(*_: object) -> None:
        raise MemoryError

    inner.trouble = MemoryError()
    with monkeypatch.context() as patch:
        patch.setattr(staged.memory, where, fail)
        delivery = begin(staged, b"K1")
        for step in (staged.commit, staged.withdraw):
            with pytest.raises(MemoryError):
                step([delivery])
    assert inner.withdrawn == []
    inner.trouble = None
    assert send(staged, b"K1") == "K"
    assert inner.delivered == [b"K1"]


def test_a_recipient_without_room_is_not_claimed_for_ever(
    once: OnceDestination, inner: Inner
) -> None:
    """The next attempt would wait for what nobody delivers."""
    delivery = begin(once, b"K1")
    with pytest.raises(LocalError, match="no room"):
        delivery.deliver(b"!2")
    once.commit([delivery])
    assert letters(delivery) == "K"
    with pytest.raises(LocalError, match="no room"):
        begin(once, b"!2")


def test_a_disk_that_cannot_remember(once: OnceDestination, inner: Inner) -> None:
    """Before the delivery: Z, and nothing is delivered. After it: K, for it has arrived."""
    once.memory._database.execute("PRAGMA query_only = 1")
    stages = once._stages
    assert send(once, b"K1") == ("Z" if stages else "K")
    once.memory._database.execute("PRAGMA query_only = 0")
    assert inner.delivered == ([] if stages else [b"K1"])
    assert send(once, b"K1") == "K"


@pytest.mark.parametrize("error", [MemoryError(), LocalError("Input/output error")])
def test_an_error_in_a_thread_holds_nothing(
    once: OnceDestination, inner: Inner, error: BaseException
) -> None:
    """It ends one client; the next one with the same mail must not wait for ever."""
    package = package_head(3) + b"hi\n" + package_tail(b"s@x", (b"K1", b"K2"))
    inner.trouble = error
    with contextlib.suppress(MemoryError):
        Session(once, "p").receive(package)
    assert inner.withdrawn == [b"K1", b"K2"]
    inner.trouble = None
    assert Session(once, "p").receive(package).count(b"Kto") == 2
    assert inner.delivered == [b"K1", b"K2"]


def test_what_has_its_place_is_not_taken_back(once: OnceDestination, inner: Inner) -> None:
    """It is remembered: without its file, the message would be lost when it comes again."""
    delivery = begin(once, b"K1")
    once.commit([delivery])
    assert once.withdraw([delivery]) == []
    assert inner.withdrawn == []


def test_of_a_batch_to_the_next_server_only_one_is_in_doubt(
    inner: Inner, tmp_path: Path, clock: Clock
) -> None:
    """A crash amid sixteen messages must not make all that were handed on arrive twice."""
    memory = Memory(str(tmp_path / "once"), DAY_S, clock)
    with contextlib.closing(OnceDestination(inner, memory, stages=False)) as once:
        commit = inner.commit

        def crash_at_second(deliveries: Sequence[InnerDelivery]) -> None:
            if inner.delivered:
                raise SystemExit
            commit(deliveries)

        inner.commit = crash_at_second  # type: ignore[method-assign]
        batch = [begin(once, b"K1"), begin(once, b"K2")]
        with pytest.raises(SystemExit):
            once.commit(batch)
        once.withdraw(batch)
        inner.commit = commit  # type: ignore[method-assign]
        assert send(once, b"K1", b"K2") == "KK"
        assert inner.delivered == [b"K1", b"K2"]


def test_packages_are_committed_as_the_inner_destination_has_them(
    once: OnceDestination, tmp_path: Path, clock: Clock
) -> None:
    """Behind a scanner, the answer to one would wait for fifteen others."""
    assert once.packages_together == Inner.packages_together
    memory = Memory(str(tmp_path / "other"), DAY_S, clock)
    with contextlib.closing(OnceDestination(HandOff(Hop()), memory, stages=False)) as handing_on:
        assert handing_on.packages_together == 1


def test_what_was_not_handed_on_for_a_client_that_has_gone_is_not_deferred(
    tmp_path: Path, clock: Clock
) -> None:
    """The client is back on another connection; this message would wait for its next retry."""
    hop, gone = Hop(), threading.Event()
    memory = Memory(str(tmp_path / "once"), DAY_S, clock)
    with contextlib.closing(OnceDestination(HandOff(hop), memory, stages=False)) as once:
        first = once.begin(mail()._replace(no_more=gone))
        first.deliver(b"1")
        answers: list[str] = []
        thread = threading.Thread(target=lambda: answers.append(send(once, b"0", b"1")))
        thread.start()
        wait_until(lambda: hop.taken == [b"0"], "its own")
        gone.set()
        once.commit([first])
        thread.join(60)
    assert answers == ["KK"]
    assert hop.taken == [b"0", b"1"]


def test_what_another_took_back_and_fails_here_is_not_claimed_for_ever(
    once: OnceDestination, inner: Inner
) -> None:
    """Without memory once, each later attempt would hold a thread until the receiver ends."""
    first = begin(once, b"K1")
    second = begin(once, b"K1")
    inner.trouble = MemoryError()
    once.withdraw([first])
    with pytest.raises(MemoryError):
        once.commit([second])
    once.withdraw([second])
    inner.trouble = None
    assert once.claims._claims == {}
    assert send(once, b"K1") == "K"


@pytest.mark.parametrize("known", [False, True])
def test_no_memory_for_a_recipient_leaves_no_claim(
    once: OnceDestination, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """It is claimed by then; the next attempt would wait for what nobody delivers."""
    if known:
        assert send(once, b"K1") == "K"

    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(OnceDelivery, "_add", fail)
        with pytest.raises(MemoryError):
            begin(once, b"K1")
    assert once.claims._claims == {}


def test_a_recipient_named_often_when_the_receiver_stops_does_not_end_it_with_a_traceback(
    tmp_path: Path, clock: Clock
) -> None:
    """Each one waits for the one before it, which is not begun any more; all clients would lose."""
    stops = threading.Event()
    stops.set()
    memory = Memory(str(tmp_path / "once"), DAY_S, clock)
    with contextlib.closing(OnceDestination(HandOff(Hop()), memory, stages=False)) as once:
        delivery = once.begin(mail()._replace(no_more=stops))
        for _ in range(1_000):
            delivery.deliver(b"1")
        once.commit([delivery])
        assert [outcome.response for outcome in delivery.outcomes] == [NO_TIME] * 1_000
