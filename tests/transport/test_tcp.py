"""Connecting by TCP: several addresses, dead ones among them, and what is set on a socket."""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maildirqmtp.errors import ConnectError, ConnectTimeout, TransportError
from maildirqmtp.transport import addresses, tcp
from maildirqmtp.transport.addresses import NEXT_AFTER_S, note_worked
from maildirqmtp.transport.connect import connect
from maildirqmtp.transport.descriptor_pair import DescriptorPair
from maildirqmtp.transport.endpoint import TcpEndpoint
from maildirqmtp.transport.sockets import SocketTransport
from maildirqmtp.transport.tcp import connect_tcp
from tests.fakes import FakeClock, never_wait
from tests.helpers import DEADLINE_S, blackhole

SERVER = TcpEndpoint("mail.example.org")
#: What becomes of connecting to an address.
NEVER = float("inf")
Step = int | float | tuple[float, int]


class Planned(socket.socket):
    """A socket whose connecting does what `plan` says for each address in turn.

    An int: it succeeds (0) or fails with this errno, at once. A float: it
    succeeds after so many seconds. Both: it fails with this errno then.
    """

    clock: FakeClock
    plan: list[Step]
    made: list[Planned]

    def __init__(self, *_: object, **__: object) -> None:
        ours, self._theirs = _socket.socketpair()
        super().__init__(fileno=ours.detach())
        self.number = 0
        self.address: object = None
        self.begun_s = self.clock()
        self.made.append(self)

    def connect_ex(self, address: object) -> int:
        """Do the next step of the plan."""
        self.address = address
        step = self.plan.pop(0)
        if isinstance(step, int):
            return step
        after_s, self.number = step if isinstance(step, tuple) else (step, 0)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.send(bytes(1 << 16))
        if after_s != NEVER:
            self.clock.at(self.clock() + after_s, self._ready)
        return errno.EINPROGRESS

    def _ready(self) -> None:
        self._theirs.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self._theirs.recv(1 << 20):
                pass

    def close(self) -> None:
        """Close both ends."""
        self._theirs.close()
        super().close()

    def getsockopt(self, *_: object) -> int:  # type: ignore[override]
        """Return SO_ERROR, which alone is asked for."""
        return self.number

    def setsockopt(self, *_: object) -> None:
        """Nothing to set on what is not TCP."""


Plan = Callable[..., type[Planned]]


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> Iterator[Plan]:
    """Makes a host with as many addresses as the plan has steps."""
    addresses.forget()
    never_wait(monkeypatch, clock)

    def make(*steps: Step) -> type[Planned]:
        kind = type("Planned", (Planned,), {"clock": clock, "plan": [*steps], "made": []})
        answer = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"192.0.2.{n}", 209))
            for n in range(len(steps))
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
        monkeypatch.setattr(socket, "socket", kind)
        return kind

    yield make
    addresses.forget()


def used(made: DescriptorPair) -> str:
    """Return the address that was connected to, and close it."""
    made.close()
    assert made.address is not None
    return str(made.address.sockaddr[0])


def test_a_first_address_that_is_dead_costs_a_moment(plan: Plan, clock: FakeClock) -> None:
    """With the time-out of a minute, it would cost that in every run of a cron job."""
    begun_s = clock()
    planned = plan(NEVER, 0.01)
    assert used(connect_tcp(SERVER, 60.0, clock=clock)) == "192.0.2.1"
    assert clock() - begun_s == pytest.approx(NEXT_AFTER_S + 0.01)
    assert planned.made[0].fileno() == -1, "the first socket stays open"


def test_a_first_address_that_drops_what_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With real sockets: it has not failed by then, and would not for a minute."""
    addresses.forget()
    with blackhole("127.0.0.2") as port, socket.create_server(("127.0.0.1", port)):
        dead, alive = ("127.0.0.2", port), ("127.0.0.1", port)
        answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in (dead, alive)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
        # Longer than the whole test may take.
        assert used(connect_tcp(SERVER, 3_600.0)) == "127.0.0.1"
        assert addresses._useless == {}, "the first one has been waited for"
        # From then on the one that worked is first.
        assert addresses.look_up(SERVER, 0.0)[0].sockaddr == alive
    addresses.forget()


def test_each_address_has_a_moment_to_itself(plan: Plan, clock: FakeClock) -> None:
    """A server that answers within that gets one connection, not one for each address."""
    begun_s = clock()
    planned = plan(NEVER, NEVER, NEVER, 0.2, 0.0)
    assert used(connect_tcp(SERVER, 60.0, clock=clock)) == "192.0.2.3"
    begun = [sock.begun_s - begun_s for sock in planned.made]
    assert begun == pytest.approx([0.0, NEXT_AFTER_S, 2 * NEXT_AFTER_S, 3 * NEXT_AFTER_S])


def test_over_a_slow_link_the_next_address_waits(plan: Plan, clock: FakeClock) -> None:
    """Connecting takes 0.6 s by satellite; two connections each time would cost twice."""
    note_worked(SERVER, addresses.Address(socket.AF_INET, ("192.0.2.0", 209)), 0.6)
    planned = plan(0.8, 0.8)
    assert used(connect_tcp(SERVER, 60.0, clock=clock)) == "192.0.2.0"
    assert len(planned.made) == 1


def test_the_time_that_connecting_took_is_remembered(plan: Plan, clock: FakeClock) -> None:
    """And that time counts for the next connection, not that of other servers."""
    plan(0.2)
    used(connect_tcp(SERVER, 60.0, clock=clock))
    assert addresses.next_after_s(SERVER) == pytest.approx(0.3)


def test_how_many_addresses_there_are_is_known(plan: Plan, clock: FakeClock) -> None:
    """A server is not given up before each has had its turn."""
    plan(errno.ECONNREFUSED, 0, 0)
    made = connect_tcp(SERVER, 60.0, clock=clock)
    assert made.addresses == 3
    made.close()


def test_the_first_to_connect_wins(plan: Plan, clock: FakeClock) -> None:
    """Also where it was begun later; the other is closed."""
    planned = plan(1.0, 0.1)
    assert used(connect_tcp(SERVER, 60.0, clock=clock)) == "192.0.2.1"
    planned = plan(0.5, 1.0)
    addresses.forget()
    assert used(connect_tcp(SERVER, 60.0, clock=clock)) == "192.0.2.0"
    assert [sock.fileno() for sock in planned.made] == [-1, -1]


@pytest.mark.parametrize("step", [errno.ENETUNREACH, (0.1, errno.ECONNREFUSED)])
def test_after_a_failure_the_next_begins_at_once(plan: Plan, clock: FakeClock, step: Step) -> None:
    """An IPv6 address without IPv6 is the usual first one."""
    begun_s = clock()
    planned = plan(step, 0)
    assert used(connect_tcp(SERVER, 60.0, clock=clock)) == "192.0.2.1"
    assert clock() - begun_s == pytest.approx(step[0] if isinstance(step, tuple) else 0.0)
    assert planned.made[0].fileno() == -1


def test_after_a_failure_the_next_begins_while_another_is_waited_for(
    plan: Plan, clock: FakeClock
) -> None:
    """A refusal takes the place of the moment that an address has to itself."""
    begun_s = clock()
    planned = plan(NEVER, errno.ECONNREFUSED, 0)
    assert used(connect_tcp(SERVER, 60.0, clock=clock)) == "192.0.2.2"
    begun = [sock.begun_s - begun_s for sock in planned.made]
    assert begun == pytest.approx([0.0, NEXT_AFTER_S, NEXT_AFTER_S])


def test_each_address_has_the_whole_time_out(plan: Plan, clock: FakeClock) -> None:
    """The last one is not cut short by those before it; and it ends when its time is over."""
    begun_s = clock()
    planned = plan(NEVER, NEVER, NEVER)
    with pytest.raises(ConnectTimeout) as raised:
        connect_tcp(SERVER, 5.0, clock=clock)
    said = "; ".join(f"192.0.2.{n}: no answer in 5 s" for n in range(3))
    assert str(raised.value) == f"cannot connect to {SERVER}: {said}"
    assert clock() - begun_s == pytest.approx(5.0 + 2 * NEXT_AFTER_S)
    assert {sock.fileno() for sock in planned.made} == {-1}
    plan(NEVER, NEVER, 4.9)
    addresses.forget()
    assert used(connect_tcp(SERVER, 5.0, clock=clock)) == "192.0.2.2"


def test_all_reasons_are_told(plan: Plan, clock: FakeClock) -> None:
    """One may be a firewall, the other a server that is down; only together a time-out."""
    plan(errno.ENETUNREACH, NEVER)
    with pytest.raises(ConnectError) as raised:
        connect_tcp(SERVER, 5.0, clock=clock)
    assert "192.0.2.0: Network is unreachable; 192.0.2.1: no answer in 5 s" in str(raised.value)
    assert not isinstance(raised.value, TimeoutError)


@pytest.mark.parametrize("error", [ConnectError("told to stop"), KeyboardInterrupt()])
def test_being_told_to_stop_ends_it_at_once(
    plan: Plan, clock: FakeClock, error: BaseException
) -> None:
    """TERM must not mean another minute; no other address is tried, no socket is left."""

    def interrupt() -> None:
        raise error

    begun_s = clock()
    planned = plan(NEVER, NEVER, 0)
    clock.at(clock() + NEXT_AFTER_S + 0.1, interrupt)
    with pytest.raises(type(error)) as raised:
        connect_tcp(SERVER, 60.0, clock=clock)
    assert raised.value is error
    assert clock() - begun_s == pytest.approx(NEXT_AFTER_S + 0.1)
    assert [sock.fileno() for sock in planned.made] == [-1, -1]


def test_an_address_that_turns_out_to_be_of_no_use_is_passed_over(
    plan: Plan, clock: FakeClock
) -> None:
    """Its TLS handshake fails; the other addresses are tried now, and first the next time."""

    def wrap(sock: socket.socket, left_s: float) -> DescriptorPair:
        assert 0 < left_s <= 60.0
        assert isinstance(sock, Planned)
        if sock.address == ("192.0.2.0", 209):
            raise OSError(errno.EPROTO, "not a pinned one")
        return SocketTransport(sock, "made")

    planned = plan(0, 0)
    assert used(connect_tcp(SERVER, 60.0, wrap=wrap, clock=clock)) == "192.0.2.1"
    assert planned.made[0].fileno() == -1
    planned = plan(0, 0)
    addresses._worked.clear()
    assert used(connect_tcp(SERVER, 60.0, wrap=wrap, clock=clock)) == "192.0.2.1"
    assert len(planned.made) == 1


def test_a_handshake_that_hangs_does_not_cost_the_other_address_its_time(
    plan: Plan, clock: FakeClock
) -> None:
    """It would be tried first again and again, and the server that works never be reached."""
    left: list[float] = []

    def wrap(sock: socket.socket, left_s: float) -> DescriptorPair:
        assert isinstance(sock, Planned)
        left.append(left_s)
        if sock.address == ("192.0.2.0", 209):
            until = clock() + left_s
            while clock() < until:
                clock.advance(until - clock())
            raise TimeoutError
        return SocketTransport(sock, "made")

    plan(0.5, 0.5)  # both take longer than the moment after which the next one begins
    assert used(connect_tcp(SERVER, 60.0, wrap=wrap, clock=clock)) == "192.0.2.1"
    assert left[1] == pytest.approx(left[0], abs=1.0)


def test_a_connection_of_no_use_goes_behind_the_others(plan: Plan, clock: FakeClock) -> None:
    """An address that takes connections and hangs up would be the first for ever."""
    plan(0, 0)
    made = connect_tcp(SERVER, 60.0, clock=clock)
    made.report_useless()
    assert used(made) == "192.0.2.0"
    plan(0, 0)
    assert used(connect_tcp(SERVER, 60.0)) == "192.0.2.1"


def test_without_a_descriptor_nobody_is_reached(
    plan: Plan, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says so; that this machine is short of descriptors is no time-out."""
    plan(0, 0)

    def none_left(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", none_left)
    with pytest.raises(ConnectError, match=r"192\.0\.2\.1: Too many open files"):
        connect_tcp(SERVER, 5.0, clock=clock)


# What is set on a socket


def option(fd: int, level: int, name: int) -> int:
    """Return an option of a socket."""
    with socket.socket(fileno=os.dup(fd)) as same:
        return same.getsockopt(level, name)


@pytest.mark.parametrize(("write_s", "unacknowledged_ms"), [(73.0, 133_000), (600.0, 660_000)])
def test_a_peer_that_vanishes_is_noticed(write_s: float, unacknowledged_ms: int) -> None:
    """A router that has forgotten the connection would hold a route for an hour.

    But a server that takes nothing has the write time-out, however long that is.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = TcpEndpoint("127.0.0.1", listener.getsockname()[1])
        made = connect(server, DEADLINE_S, write_timeout_s=write_s)
        assert option(made.read_fd, socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        found = [
            option(made.read_fd, socket.IPPROTO_TCP, name)
            for name in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        ]
        assert found == [60, 15, 4]
        assert option(made.read_fd, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == (
            unacknowledged_ms
        )
        made.close()


PEER = """
import socket, sys
listener = socket.create_server(("10.209.0.2", 209))
print("ready", flush=True)
sock, _ = listener.accept()
print("connected", flush=True)
sock.recv(1)
sys.stdin.read()
"""


def ip(*words: str) -> None:
    """Run ip(8); skip the test where that may not be done."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"NOT TESTED: ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def far_away(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A server in a network namespace of its own; its cable can be pulled with `unplug`."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("NOT TESTED: needs ip(8) and root")
    name = f"qmtp{os.getpid()}"
    with contextlib.ExitStack() as stack:
        ip("netns", "add", name)
        stack.callback(subprocess.run, ["ip", "netns", "del", name], check=False)
        ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)
        stack.callback(
            subprocess.run, ["ip", "link", "del", f"{name}a"], check=False, capture_output=True
        )
        ip("addr", "add", "10.209.0.1/30", "dev", f"{name}a")
        ip("link", "set", f"{name}a", "up")
        ip("-n", name, "addr", "add", "10.209.0.2/30", "dev", f"{name}b")
        ip("-n", name, "link", "set", f"{name}b", "up")
        process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{name}", sys.executable, "-c", PEER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.enter_context(process)
        stack.callback(process.kill)
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            pytest.skip("NOT TESTED: no server in a network namespace")
        yield process


@pytest.mark.parametrize("sends", [False, True])
def test_a_peer_whose_network_is_gone(
    far_away: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, sends: bool
) -> None:
    """With mail in flight, or waiting for an answer: it ends with an error, in either case."""
    for name in ("KEEPALIVE_IDLE_S", "KEEPALIVE_INTERVAL_S", "KEEPALIVE_PROBES"):
        monkeypatch.setattr(tcp, name, 1)
    monkeypatch.setattr(tcp, "UNACKNOWLEDGED_S", 2)
    made = connect(TcpEndpoint("10.209.0.2"), DEADLINE_S)
    assert far_away.stdout is not None
    assert far_away.stdout.readline() == "connected\n"
    # Its end of the cable loses all, as a router does that has forgotten the connection.
    name = f"qmtp{os.getpid()}"
    ip("-n", name, "addr", "del", "10.209.0.2/30", "dev", f"{name}b")
    if sends:
        made.send(b"a package")

    assert select.select([made.read_fd], [], [], DEADLINE_S)[0], "it is not noticed"
    with pytest.raises(TransportError) as raised:
        made.receive(1)
    assert raised.value.errno == errno.ETIMEDOUT
    made.close()


@pytest.mark.parametrize("stopped_s", [NEXT_AFTER_S + 1.0, 3_600.0])
def test_who_was_stopped_finds_the_first_address_connected(
    monkeypatch: pytest.MonkeyPatch, stopped_s: float
) -> None:
    """A busy or suspended machine must not take the preferred server for one that is dead."""
    ticks = [0.0] * 3
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        names = [listener.getsockname() for listener in (one, two)]
        answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", name) for name in names]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
        real = socket.socket.connect_ex

        def connect_ex(sock: socket.socket, address: tuple[str, int]) -> int:
            number = real(sock, address)
            select.select([], [sock], [], DEADLINE_S)
            ticks[:] = [stopped_s]
            return number or errno.EINPROGRESS

        monkeypatch.setattr(socket.socket, "connect_ex", connect_ex)
        made = connect_tcp(TcpEndpoint("twofold.example"), 60.0, clock=lambda: ticks[0])
        with contextlib.closing(made):
            assert made.address is not None
            assert made.address.sockaddr == names[0]
