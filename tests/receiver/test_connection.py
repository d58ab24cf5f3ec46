"""One client of the receiver against the clock: who is slow, idle, or does not read."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from maildirqmtp.qmtp.protocol import package_head, package_tail
from maildirqmtp.receiver.connection import (
    IDLE_S,
    LAST_PACKAGE_S,
    MIN_RATE,
    OUTPUT_MAX,
    RATE_S,
    SESSION_S,
    STOP_S,
    Connection,
)
from maildirqmtp.receiver.maildir_destination import MaildirDestination
from maildirqmtp.receiver.policy import Policy, Severity, only_domains
from maildirqmtp.receiver.session import Session
from maildirqmtp.receiver.storage import Storage
from tests.receiver.doubles import HeldWork

TIMEOUT_S = 1_200.0
PACKAGE = package_head(3) + b"hi\n" + package_tail(b"a@b", (b"c@example.org",))
REFUSED = package_head(0) + package_tail(b"a@b", (b"c@d",) * 900)
#: One recipient that is delivered to, and many that are refused.
MIXED = package_head(0) + package_tail(b"a@b", (b"c@example.org", *(b"c@d",) * 640))


class Stream:
    """A client whose bytes a test gives, and who takes as many as a test allows."""

    read_fd = write_fd = 99
    handshaking = read_wants_write = False

    def __init__(self) -> None:
        self.incoming: list[bytes] = []
        self.taken = 0
        self.takes = 1 << 30

    def read(self) -> bytes | None:
        return self.incoming.pop(0) if self.incoming else None

    def write(self, data: bytes | bytearray) -> int:
        count = min(self.takes, len(data))
        self.taken += count
        return count

    def half_close(self) -> bool:
        return True

    def close(self) -> None:
        pass


class World:
    """A connection, its stream, its clock and its log."""

    def __init__(self, storage: MaildirDestination, workers: HeldWork | None = None) -> None:
        self.now_s = 1_000.0
        self.log: list[str] = []
        self.stream = Stream()
        policy = Policy(refuse=only_domains([b"example.org"]))
        session = Session(storage, "p", policy, self._log, workers=workers)
        clock = lambda: self.now_s  # noqa: E731
        self.connection = Connection(self.stream, session, TIMEOUT_S, clock, self._log)

    def _log(self, severity: Severity, text: str) -> None:
        self.log.append(text)

    def give(self, data: bytes = b"") -> None:
        """Let the client send something, and let the server do all that it can."""
        if data:
            self.stream.incoming.append(data)
        wanted = self.connection.interest().get(99, 0)
        self.connection.handle(wanted)
        self.connection.turn()
        while self.connection.can_work:
            self.connection.turn()

    def wait(self, seconds: float) -> None:
        """Let time go by, up to the moment at which the connection wants a turn."""
        self.now_s += seconds
        self.connection.turn()

    @property
    def expendable(self) -> bool:
        """True where it would have to make way now."""
        return self.connection.expendable_s <= self.now_s


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with contextlib.closing(MaildirDestination(os.fsencode(tmp_path / "M"))) as storage:
        yield World(storage)


def test_responses_do_not_pile_up(world: World) -> None:
    """A client that sends and does not read must not fill the memory, nor the disk."""
    world.stream.takes = 0
    for _ in range(100):
        world.give(REFUSED)
    assert OUTPUT_MAX < len(world.connection._output) < OUTPUT_MAX + 100_000
    assert world.connection.interest() == {99: 2}
    assert not world.connection.can_work
    world.stream.takes = 1 << 30
    while world.stream.incoming or world.connection.interest().get(99, 0) & 2:
        world.give()
    assert world.log.count("p: connected") == 1
    assert len(world.log) == 101


def test_a_client_that_does_not_read_is_not_read_from(world: World) -> None:
    """What it goes on sending stays with the kernel."""
    world.stream.takes = 0
    for _ in range(2):
        world.give(REFUSED)
    assert len(world.connection._output) > OUTPUT_MAX
    assert world.connection.interest() == {99: 2}


def test_packages_wait_while_responses_do(world: World) -> None:
    """A thousand of them come with one read."""
    world.stream.takes = 0
    refused = package_head(0) + package_tail(b"a@b", (b"c@d",) * 640)
    world.give(refused * 20)
    assert OUTPUT_MAX < len(world.connection._output) < OUTPUT_MAX + 100_000
    assert not world.connection.can_work


@pytest.fixture
def held(tmp_path: Path) -> Iterator[World]:
    """As `world`, but packages are delivered when `stuck` says so."""
    with contextlib.closing(MaildirDestination(os.fsencode(tmp_path / "M"))) as storage:
        yield World(storage, HeldWork())


def stuck(world: World) -> None:
    """Let a client send several batches, have them delivered, and take no response to them."""
    world.stream.takes = 0
    world.give(MIXED * 20)
    session = world.connection._session
    workers = session._workers
    assert isinstance(workers, HeldWork)
    while workers.jobs:
        workers.do()
    world.give()
    assert session.ready
    assert len(world.connection._output) > OUTPUT_MAX
    assert not world.connection.can_work


def test_a_client_that_takes_no_response_is_dropped_whatever_else_is_ready(held: World) -> None:
    """It had its place for ever: some forty of them, and nobody else's mail was taken."""
    stuck(held)
    held.wait(TIMEOUT_S - 1)
    assert not held.connection.closed
    held.wait(1)
    assert held.connection.closed
    assert held.connection.failed
    assert held.log[-1] == f"p: took no response for {TIMEOUT_S:.0f} s; closing"


def test_a_client_that_takes_no_response_makes_way(held: World) -> None:
    """Also where the responses that it does not take are not all that are ready."""
    stuck(held)
    held.wait(RATE_S - 1)
    assert not held.expendable
    held.wait(1)
    assert held.expendable


def test_told_to_stop_it_is_said_who_did_not_take_responses(held: World) -> None:
    """Else the disk of this machine is looked at for the fault of a client."""
    stuck(held)
    held.connection.stop()
    held.wait(STOP_S)
    assert held.connection.closed
    assert held.log[-1] == "p: did not take its responses"


@pytest.mark.parametrize("pause_s", [0, 180])
def test_responses_are_taken_to_the_end_after_an_hour(held: World, pause_s: float) -> None:
    """Over a slow link that takes ten minutes; without its K the client sends its mail again."""
    for _ in range(int(SESSION_S) // 600 - 1):
        held.give(REFUSED)
        held.give()
        held.wait(600)
    held.wait(599)
    stuck(held)
    owed = sum(len(batch.packages) for batch, _ in held.connection._session._under_way)
    assert owed
    logged = len(held.log)
    held.wait(pause_s)
    held.stream.takes = int(70 * MIN_RATE)
    while held.connection.interest().get(99, 0) & 2:
        held.wait(60)
        held.connection.handle(2)
        assert not held.connection.closed
    assert held.now_s > 1_000.0 + SESSION_S + LAST_PACKAGE_S
    held.give()
    assert len(held.log) == logged + owed + 1
    assert not held.connection.failed
    assert held.log[-1] == "p: closed"


def test_a_client_that_trickles_is_dropped(world: World) -> None:
    """A byte a minute kept a place for ever."""
    world.give(package_head(1_000_000))
    for second in range(0, int(TIMEOUT_S) - 60, 60):
        world.wait(60)
        world.give(b"x" if second else b"")
        assert not world.connection.closed
    world.wait(60)
    assert world.connection.closed
    assert world.connection.failed
    assert world.log[-1] == "p: slower than 100 bytes a second; closing"


def test_a_client_that_takes_its_responses_byte_by_byte_is_dropped(world: World) -> None:
    """The same from the other side."""
    world.stream.takes = 1
    world.give(REFUSED)
    for _ in range(int(TIMEOUT_S) // 60):
        assert not world.connection.closed
        world.wait(60)
        world.connection.handle(2)
    assert world.connection.closed
    assert "slower than 100 bytes a second" in world.log[-1]


def test_a_slow_link_is_not_slow_enough_to_be_dropped(world: World) -> None:
    """A satellite telephone carries 300 bytes a second, with pauses of some minutes."""
    world.give(package_head(1_000_000))
    for _ in range(10):
        world.wait(300)
        world.give(b"x" * int(300 * MIN_RATE))
        assert not world.connection.closed
        assert not world.expendable


def test_time_that_the_disk_takes_is_not_the_clients(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fsync of minutes must not cost the connection."""
    stage = Storage.stage

    def slow(storage: Storage, pieces: list[bytes]) -> object:
        world.now_s += 3 * TIMEOUT_S / 4
        return stage(storage, pieces)

    monkeypatch.setattr(Storage, "stage", slow)
    world.give(PACKAGE * 2 + PACKAGE[:5])
    world.wait(1)
    assert not world.connection.closed
    assert not world.expendable


def test_a_client_waits_for_a_slow_disk_as_long_as_it_takes(tmp_path: Path) -> None:
    """Whatever the time-out: nothing of that is the client's doing, and nobody gets its place."""
    workers = HeldWork()
    with contextlib.closing(MaildirDestination(os.fsencode(tmp_path / "M"))) as storage:
        world = World(storage, workers)
        world.give(PACKAGE + PACKAGE[:5])
        for _ in range(2):
            assert world.now_s < world.connection.deadline_s < float("inf")
            assert not world.expendable
            world.wait(0.75 * TIMEOUT_S)
            assert not world.connection.closed
            assert not world.expendable
        world.now_s += RATE_S
        assert not world.expendable, "also before the next turn"
        workers.do()
        assert world.connection.can_work
        world.wait(0)
        world.give()
        assert world.stream.taken
        world.wait(TIMEOUT_S - 1)
        assert not world.connection.closed
        world.wait(1)
        assert world.connection.closed


def test_an_idle_client_makes_way_after_some_seconds(world: World) -> None:
    """It has nothing to lose; another one waits with mail."""
    world.give(PACKAGE)
    world.give()
    assert not world.expendable
    assert world.connection.expendable_s == world.now_s + IDLE_S
    world.wait(IDLE_S)
    assert world.expendable
    world.connection.make_way()
    assert world.connection.closed
    assert not world.connection.failed


def test_a_client_at_work_makes_no_way(world: World) -> None:
    """Not amid a package that comes at a fair rate; once it stalls, it does."""
    world.give(package_head(1_000_000))
    for _ in range(20):
        world.wait(10)
        assert not world.expendable
        world.give(b"x" * 1_250)
    world.wait(RATE_S)
    assert world.expendable
    world.connection.make_way()
    assert world.connection.failed
    assert world.log[-1] == "p: slow, while others wait; closing"


def test_an_hour_and_no_more(world: World) -> None:
    """Not even for a package that comes at the least rate for days."""
    world.give(package_head(100_000_000))
    for _ in range(int(SESSION_S + LAST_PACKAGE_S) // 60):
        assert not world.connection.closed
        world.wait(60)
        world.give(b"x" * int(60 * MIN_RATE))
    assert world.connection.closed
    assert world.log[-1] == "p: did not end its last package after an hour; closing"


@pytest.mark.parametrize("taken", [True, False], ids=["taken at once", "taken late"])
def test_the_last_package_of_an_hour_is_answered_however_long_it_is_delivered(
    tmp_path: Path, taken: bool
) -> None:
    """Closed without its K, the client sends it again, and the next server has it twice."""
    workers = HeldWork()
    with contextlib.closing(MaildirDestination(os.fsencode(tmp_path / "M"))) as storage:
        world = World(storage, workers)
        minutes, piece = int(SESSION_S + LAST_PACKAGE_S) // 60 - 1, int(60 * MIN_RATE)
        world.give(package_head(minutes * piece))
        for _ in range(minutes):
            world.wait(60)
            world.give(b"x" * piece)
        world.wait(59)
        world.give(package_tail(b"a@b", (b"c@example.org",)))
        world.stream.takes = 1 << 30 if taken else 0
        world.wait(15)
        assert not world.connection.closed
        workers.do()
        world.give()
        world.wait(15)
        assert not world.connection.closed
        assert world.connection.deadline_s > world.now_s
        world.stream.takes = 1 << 30
        world.give()
        assert world.stream.taken > 0
        assert not world.connection.failed
        assert world.log[-1] == "p: closed"


def test_a_client_that_falls_silent_after_much_makes_way_after_a_minute(world: World) -> None:
    """No turn came when it was slow: it kept its place for twenty minutes, while others waited."""
    for size in (7_000, 500_000):
        world.wait(1)
        world.give(package_head(1_000_000) if size == 7_000 else b"")
        world.give(b"x" * size)
        at_s = world.connection.expendable_s
        assert at_s == world.now_s + RATE_S, "known beforehand, for nothing wakes the loop then"
    world.now_s = at_s - 1
    assert not world.expendable
    world.now_s = at_s
    assert world.expendable, "whether a turn came meanwhile or not"


def test_a_client_that_trickles_makes_way_once_it_is_slow(world: World) -> None:
    """Its few bytes do not make it one at work."""
    world.give(package_head(1_000_000))
    begin_s = world.now_s
    world.give(b"x" * 7_000)
    for _ in range(3):
        world.now_s += RATE_S / 3
        world.give(b"x")
    assert world.connection.expendable_s <= begin_s + 2 * RATE_S
    assert not world.expendable
    world.now_s += RATE_S
    assert world.expendable


def test_a_client_that_is_not_read_from_is_not_cut_off_for_that(tmp_path: Path) -> None:
    """The next server is slow: the mail that it takes would all be sent once more."""
    workers = HeldWork()
    with contextlib.closing(MaildirDestination(os.fsencode(tmp_path / "M"))) as storage:
        world = World(storage, workers)
        while world.now_s < 1_000 + SESSION_S - 700:
            world.wait(600)
            world.give(PACKAGE)
            workers.do()
            world.give()
        world.now_s = 1_000 + SESSION_S - 60
        for _ in range(6):
            world.give(PACKAGE)
        for _ in range(20):
            world.wait(60)
        assert not world.connection.closed
        for _ in range(6):
            while workers.jobs:
                workers.do()
            world.give()
        assert not world.connection.failed


def test_the_deadline_is_never_passed_in_a_spin(world: World) -> None:
    """A deadline that is over and changes nothing would take a whole processor."""
    for data in (b"", PACKAGE[:5], b"x"):
        world.give(data)
        for _ in range(3):
            before = world.connection.deadline_s
            assert before > world.now_s
            world.wait(before - world.now_s)
            if world.connection.closed:
                return
            world.give(PACKAGE[5:] + PACKAGE[:5])
            assert world.connection.deadline_s > world.now_s
