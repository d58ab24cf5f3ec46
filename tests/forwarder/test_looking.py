"""Looking for the next message: thousands that cannot go keep nothing else waiting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from maildirqmtp.forwarder.kept import Kept
from maildirqmtp.forwarder.looking import LOOK_S
from maildirqmtp.forwarder.queued_message import QueuedMessage
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import BounceMethod, BounceVia
from maildirqmtp.forwarder.settle import Settler
from maildirqmtp.forwarder.stop import STOP_S
from maildirqmtp.maildir.files import Folder, Message
from maildirqmtp.maildir.maildir import Maildir
from tests.fakes import FakeServer
from tests.forwarder.test_forwarder import Run
from tests.helpers import Package, add_message

#: Seconds that opening a message takes.
OPEN_S = 0.01


class SlowRun(Run):
    """Some messages for others, and one or more of ours, on a disk that seeks for each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        super().__init__(monkeypatch, path)
        self.opened = 0
        self.on_open: Callable[[], None] = lambda: None
        load = Maildir.load

        def slow(
            maildir: Maildir, folder: Folder, name: bytes, most_bytes: int | None = None
        ) -> Message | None:
            self.opened += 1
            self.clock.advance(OPEN_S)
            self.on_open()
            return load(maildir, folder, name, most_bytes)

        monkeypatch.setattr(Maildir, "load", slow)

    def fill(self, others: int, *ours: int) -> None:
        """Put messages N.a into new/: those of these numbers are for us, the others for others."""
        for number in range(others + len(ours)):
            add_message(
                self.path,
                f"{number}.a",
                recipient=b"p-r%d@y" % number if number in ours else b"other@y",
            )


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SlowRun:
    """An empty maildir on a slow disk."""
    return SlowRun(monkeypatch, tmp_path / "Maildir")


@pytest.mark.parametrize("in_batches", [False, True])
def test_a_message_goes_before_thousands_that_cannot(slow: SlowRun, in_batches: bool) -> None:
    """It was first in the queue, and left only when all others had been opened."""
    if in_batches:
        slow.report = Report(slow.log, None, -1, slow, slow.clock)
    slow.fill(500, 0)
    opened: list[int] = []

    def script(server: FakeServer, package: Package) -> None:
        opened.append(slow.opened)
        server.respond(b"Kok")

    slow.scripts = [script]
    slow.go(prefix=b"p-")
    assert opened[0] <= 4 * (LOOK_S / OPEN_S + 1)
    assert slow.opened >= 500
    assert (len(slow.new), slow.code) == (500, 0)


def test_one_connection_is_enough_for_mail_between_that_of_others(slow: SlowRun) -> None:
    """The run is not over, nor is its connection, while there is more to look at."""
    slow.fill(300, 0, 150, 302)
    slow.go(prefix=b"p-")
    assert sum(slow.received.values()) == 3
    assert (slow.reached, len(slow.new), slow.code) == (1, 300, 0)


@pytest.mark.parametrize("ours", [[], [0]], ids=["without a connection", "with one"])
def test_stop_opens_no_more_messages(slow: SlowRun, ours: list[int]) -> None:
    """A daemon that opened thousands of them was killed when its 25 s were over."""
    slow.fill(500, *ours)

    def stop() -> None:
        if slow.opened == 50:
            slow.forwarder.interrupt()

    slow.on_open = stop
    slow.go(prefix=b"p-")
    assert slow.opened == 50
    assert slow.clock() < 1_000 + STOP_S
    assert "stopped before the end" in slow.log.getvalue()
    assert slow.code == 111


@pytest.mark.parametrize("ours", [[], [0]], ids=["without a connection", "with one"])
def test_a_long_look_does_not_count_as_hanging(slow: SlowRun, ours: list[int]) -> None:
    """systemd killed the daemon, and the next one, over and over."""
    slow.fill(4_000, *ours)

    def on_open() -> None:
        assert slow.clock() <= slow.forwarder.watchdog_deadline

    slow.on_open = on_open
    slow.go(prefix=b"p-")
    assert slow.opened >= 4_000
    assert slow.code == 0


def test_each_look_gets_on(slow: SlowRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the disk is, and whatever else takes longer than a look."""
    slow.fill(5, 2, 6)
    slow.on_open = lambda: slow.clock.advance(2 * LOOK_S)
    slow.go(prefix=b"p-")
    assert sum(slow.received.values()) == 2
    assert (len(slow.new), slow.code) == (5, 0)


LOOP = b"Received: from a by b\n" * 120 + b"Subject: x\n\nhi\n"


def test_a_bounce_that_is_made_on_the_way_out_is_left(slow: SlowRun) -> None:
    """Exit code 0 would say that nothing is."""
    add_message(slow.path, "1.a", LOOP, b"s@x", b"r@y")

    def stop() -> None:
        if slow.opened == 1:
            slow.forwarder.interrupt()

    slow.on_open = stop
    slow.go(bounce=True, bounce_via=BounceVia(BounceMethod.SERVER))
    assert len(slow.new) == 1
    assert slow.code == 111
    assert slow.reached == 0


def test_told_to_stop_while_a_bounce_is_made_it_does_not_connect(
    slow: SlowRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that drops what comes would take a minute for each address."""
    add_message(slow.path, "1.a", LOOP, b"s@x", b"r@y")
    add_message(slow.path, "2.a", b"hi\n", b"s@x", b"r@y")
    settle = Settler.settle

    def stop(settler: Settler, queued: QueuedMessage) -> Kept | None:
        slow.forwarder.interrupt()
        return settle(settler, queued)

    monkeypatch.setattr(Settler, "settle", stop)
    slow.go()
    assert slow.reached == 0
    assert slow.code == 111
    assert "2.a" in slow.new
