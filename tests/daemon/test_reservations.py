"""Two routes on one maildir: never the same message at once, and one lock for both."""

import errno
import os
import resource
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from maildirqmtp.daemon.reservations import MaildirLocks, Reservations
from maildirqmtp.errors import LocalError
from maildirqmtp.forwarder.stuck import Stuck
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.shard import Shard
from tests.fakes import queued
from tests.helpers import make_maildir, open_descriptors


class Claimant:
    """Counts how often it is told to look again."""

    def __init__(self) -> None:
        self.told = 0

    def look_again(self) -> None:
        """See `claims.Claimant`."""
        self.told += 1


def test_a_message_is_one_routes_at_a_time() -> None:
    """Both would rewrite its sidecar: one would put back the recipients the other took off."""
    reservations, a, b = Reservations(), Claimant(), Claimant()
    assert reservations.take(b"1.x", a)
    assert not reservations.take(b"1.x", b)
    assert reservations.take(b"2.x", b)
    reservations.release(b"1.x")
    assert reservations.take(b"1.x", b)


def test_who_was_refused_is_told_once_when_it_is_free() -> None:
    """Otherwise the other route's recipients would wait for the next look around."""
    reservations, a, b, c = Reservations(), Claimant(), Claimant(), Claimant()
    reservations.take(b"1.x", a)
    for _ in range(3):
        assert not reservations.take(b"1.x", b)
    assert not reservations.take(b"1.x", c)
    assert (a.told, b.told, c.told) == (0, 0, 0)
    reservations.release(b"1.x")
    assert (a.told, b.told, c.told) == (0, 1, 1)
    reservations.release(b"1.x")
    assert (a.told, b.told, c.told) == (0, 1, 1)


def test_letting_go_of_what_nobody_holds_is_harmless() -> None:
    """A bounce that was queued was never claimed."""
    reservations = Reservations()
    reservations.release(b"1.x")
    assert reservations.take(b"1.x", Claimant())


def test_a_claimant_may_take_while_it_is_told() -> None:
    """Told under the lock, it would wait for itself for ever."""
    reservations, a = Reservations(), Claimant()

    class Eager(Claimant):
        def look_again(self) -> None:
            super().look_again()
            assert reservations.take(b"1.x", self)

    eager = Eager()
    reservations.take(b"1.x", a)
    reservations.take(b"1.x", eager)
    reservations.release(b"1.x")
    assert eager.told == 1
    assert not reservations.take(b"1.x", a)


def test_of_many_threads_one_has_it() -> None:
    """Taking is one step: two threads never both hear yes."""
    reservations = Reservations()
    barrier = threading.Barrier(4)
    yes: list[int] = []

    def work() -> None:
        me = Claimant()
        for number in range(500):
            barrier.wait()
            if reservations.take(b"%d" % number, me):
                yes.append(number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(yes) == list(range(500))


# Locks


@pytest.fixture
def path(tmp_path: Path) -> bytes:
    """A maildir's path."""
    return os.fsencode(make_maildir(tmp_path / "Maildir"))


def is_locked(path: bytes) -> bool:
    """Say whether another process is kept away from a maildir."""
    code = (
        "import sys, os\n"
        "from maildirqmtp.maildir.maildir import Maildir\n"
        "from maildirqmtp.errors import LocalError\n"
        "with Maildir(os.fsencode(sys.argv[1])) as maildir:\n"
        "    try:\n"
        "        maildir.lock()\n"
        "    except LocalError as error:\n"
        "        sys.exit(str(error))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, os.fsdecode(path)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        assert f"is locked by process {os.getpid()}" in result.stderr, result.stderr
    return bool(result.returncode)


def test_routes_of_one_process_share_the_lock(path: bytes) -> None:
    """With different prefixes they may; and they share what is in hand."""
    locks = MaildirLocks()
    with Maildir(path) as one, Maildir(path) as two, locks.hold(one) as a, locks.hold(two) as b:
        assert a is b
        assert is_locked(path)
    assert not is_locked(path)


@pytest.mark.parametrize("first_leaves_first", [True, False])
def test_the_last_route_lets_go_of_the_lock(path: bytes, first_leaves_first: bool) -> None:
    """A route that HUP has removed must not open the maildir to another process."""
    locks = MaildirLocks()
    one, two = Maildir(path), Maildir(path)
    first, second = locks.hold(one), locks.hold(two)
    first.__enter__()
    second.__enter__()
    leaving = [(first, one), (second, two)]
    if not first_leaves_first:
        leaving.reverse()
    (hold, maildir), (last_hold, last_maildir) = leaving
    hold.__exit__(None, None, None)
    maildir.close()
    assert is_locked(path)
    last_hold.__exit__(None, None, None)
    last_maildir.close()
    assert not is_locked(path)
    with Maildir(path) as again, locks.hold(again):
        assert is_locked(path)


def test_the_same_maildir_by_another_name_is_the_same(path: bytes) -> None:
    """A link to it is no way around the claims."""
    link = path + b"-link"
    os.symlink(path, link)
    locks = MaildirLocks()
    with Maildir(path) as one, Maildir(link) as two, locks.hold(one) as a, locks.hold(two) as b:
        assert a is b


def test_different_maildirs_share_nothing(path: bytes, tmp_path: Path) -> None:
    """A name may be in both."""
    other = os.fsencode(make_maildir(tmp_path / "Other"))
    locks = MaildirLocks()
    with Maildir(path) as one, Maildir(other) as two, locks.hold(one) as a, locks.hold(two) as b:
        assert a is not b
        assert is_locked(path)
        assert is_locked(other)


def test_a_maildir_that_another_process_has_is_refused_and_says_who(path: bytes) -> None:
    """Two forwarders would send everything twice."""
    with Maildir(path) as theirs, Maildir(path) as ours:
        theirs.lock()
        locks = MaildirLocks()
        with pytest.raises(LocalError, match=f"locked by process {os.getpid()}"):
            locks.hold(ours).__enter__()
        theirs.close()
        with locks.hold(ours):
            assert is_locked(path)


def test_what_is_stuck_outlives_the_lock(path: bytes) -> None:
    """Otherwise the next route on the maildir sends what the server has taken."""
    locks = MaildirLocks()
    stuck = Stuck(queued())
    with Maildir(path) as one, locks.hold(one) as shared:
        shared.stuck.put([stuck])
    with Maildir(path) as one, locks.hold(one) as shared:
        assert shared.stuck.take() == [stuck]
        assert shared.stuck.take() == []
    assert locks._kept == {}


def test_what_is_stuck_stays_reserved_whoever_comes_next(path: bytes) -> None:
    """A route with another shard, too, would send what the server has taken."""
    locks, route = MaildirLocks(), Claimant()
    with Maildir(path, shard=Shard(0, 3)) as one, locks.hold(one) as shared:
        assert shared.reservations.take(b"1.x", route)
        shared.stuck.put([Stuck(queued())])
    with Maildir(path) as one, locks.hold(one) as shared:
        assert not shared.reservations.take(b"1.x", route)


def test_what_shards_share_goes_with_the_last(path: bytes) -> None:
    """The first to end must not take from the others what they have reserved."""
    locks, route = MaildirLocks(), Claimant()
    with Maildir(path, shard=Shard(0, 2)) as one, Maildir(path, shard=Shard(1, 2)) as two:
        with locks.hold(one) as shared:
            with locks.hold(two):
                shared.reservations.take(b"1.x", route)
            with locks.hold(two) as again:
                assert not again.reservations.take(b"1.x", route)
        assert locks._kept == {}


def test_one_route_too_many_leaves_the_others_their_descriptors(path: bytes) -> None:
    """It took what they need to open a message: mail of all stayed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    locks = MaildirLocks()
    with ExitStack() as stack:
        one = stack.enter_context(Maildir(path))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        used = max(map(int, open_descriptors()))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 9, hard))
        with locks.hold(one):  # the first is never one too many
            used = max(map(int, open_descriptors()))
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 9, hard))
            with pytest.raises(LocalError, match="beside 1 other routes: it would leave too few"):
                stack.enter_context(locks.hold(one))
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 10, hard))
            with locks.hold(one):
                pass
    assert (locks._held, locks._routes) == ({}, 0)


def test_the_routes_with_one_prefix_are_known(path: bytes) -> None:
    """Two paths may lead to one maildir, whose status file is that of the route that goes on."""
    locks = MaildirLocks()
    with Maildir(path) as one, locks.hold(one, b"a-") as shared:
        with locks.hold(one, b"b-"), locks.hold(one, b"a-"):
            assert sorted(shared.prefixes) == [b"a-", b"a-", b"b-"]
        assert shared.prefixes == [b"a-"]


def test_no_descriptor_is_left(path: bytes) -> None:
    """A daemon that runs for a year opens its maildir many times."""
    locks = MaildirLocks()
    before = open_descriptors()
    for _ in range(5):
        with Maildir(path) as one, Maildir(path) as two, locks.hold(one), locks.hold(two):
            pass
    assert open_descriptors() == before


def test_no_descriptor_for_the_lock_is_this_machines_trouble(
    path: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for, as a maildir that cannot be opened is; a crash would end every route."""

    def no_open(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    locks = MaildirLocks()
    with Maildir(path) as maildir, monkeypatch.context() as patch:
        patch.setattr(os, "open", no_open)
        with pytest.raises(LocalError, match=r"lock .*: Too many open files"):
            locks.hold(maildir).__enter__()
    with Maildir(path) as maildir, locks.hold(maildir):
        assert is_locked(path)
