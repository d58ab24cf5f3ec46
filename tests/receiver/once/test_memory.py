"""What was accepted, on disk: found again, forgotten in time, and right after a crash."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.receiver.once import memory as module
from maildirqmtp.receiver.once.memory import TRUSTED_S, Memory, key_of, text_digest
from tests.fakes import FileSystem
from tests.helpers import make_maildir
from tests.receiver.doubles import Clock

DAY_S = 86_400.0
A, B = b"a" * 32, b"b" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "once"


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    return make_maildir(tmp_path / "maildir")


@contextlib.contextmanager
def opened(path: Path, clock: Clock, keep_s: float = DAY_S) -> Iterator[Memory]:
    with contextlib.closing(Memory(str(path), keep_s, clock)) as memory:
        yield memory


def test_the_key_is_one_recipient_sender_and_text() -> None:
    """What is sent again may have fewer recipients, and one character more makes another mail."""
    text = text_digest([b"a", b"b"])
    assert text == text_digest([b"ab"])
    keys = {
        key_of(text, b"s", b"r"),
        key_of(text, b"s", b"rr"),
        key_of(text, b"sr", b"r"),
        key_of(text, b"", b"sr"),
        key_of(text_digest([b"abc"]), b"s", b"r"),
    }
    assert len(keys) == 5
    assert key_of(text, b"s", b"r") in keys


def test_it_is_known_after_a_restart(path: Path, clock: Clock) -> None:
    """A receiver that is started anew is when things are in doubt."""
    with opened(path, clock) as memory:
        assert not memory.knows(A)
        memory.accept([(A, None)])
        assert memory.knows(A)
    with opened(path, clock) as memory:
        assert memory.knows(A)
        assert not memory.knows(B)
    assert path.stat().st_mode & 0o777 == 0o600


def test_it_is_forgotten_after_its_time(path: Path, clock: Clock) -> None:
    """The same text sent on purpose a week later is meant to arrive."""
    with opened(path, clock) as memory:
        memory.accept([(A, None)])
        clock.now_s += DAY_S - 1
        assert memory.knows(A)
        clock.now_s += 1
        assert not memory.knows(A)
        memory.accept([(B, None)])
        clock.now_s += DAY_S - 1
        memory.accept([(A, None)])
        assert memory.knows(A)
        assert memory.knows(B)


def test_what_is_too_old_takes_no_room(path: Path, clock: Clock) -> None:
    """Else the file grows for ever."""
    with opened(path, clock) as memory:
        for n in range(3):
            memory.accept([(b"%32d" % (1_000 * n + m), None) for m in range(1_000)])
            clock.now_s += DAY_S
        memory.accept([(A, None)])
        (rows,) = memory._database.execute("SELECT count(*) FROM accepted").fetchone()
        assert rows == 1


def test_only_one_process_has_it(path: Path, clock: Clock) -> None:
    """Two receivers would not know of what is under way in the other."""
    with (
        opened(path, clock),
        pytest.raises(LocalError, match="another qmtpmaildir has it"),
        opened(path, clock),
    ):
        pass


def test_what_is_no_database_is_left_alone(path: Path, clock: Clock) -> None:
    """A wrong path must not cost somebody a file."""
    path.write_bytes(b"something else, and long enough " * 100)
    with pytest.raises(LocalError, match="not a database"), opened(path, clock):
        pass
    assert path.read_bytes().startswith(b"something else")


def test_a_later_version_is_left_alone(path: Path, clock: Clock) -> None:
    """After a downgrade nothing is to be destroyed."""
    with opened(path, clock) as memory:
        memory._database.execute("PRAGMA user_version = 2")
    with pytest.raises(LocalError, match="later version"), opened(path, clock):
        pass


def test_a_directory_is_no_database(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(LocalError, match="cannot open"), opened(tmp_path, clock):
        pass


#: Where the file is after the crash, and whether it counts as delivered.
CRASHES = [
    (("tmp/name",), False),
    (("tmp/name", "new/name"), True),
    (("new/name",), True),
    (("cur/name:2,S",), True),
    (("cur/name",), True),
    (("cur/name,U=7:2,S",), True),
    (("cur/name,S=123,W=130:2,S",), True),
    (("new/name,U=7",), True),
    (("new/another",), True),
    ((), True),
]


@pytest.mark.parametrize(("files", "accepted"), CRASHES)
def test_after_a_crash_between_name_and_delivery(
    path: Path, clock: Clock, maildir: Path, files: tuple[str, ...], accepted: bool
) -> None:
    """K for what was never delivered would be lost mail; delivered again, it is there twice."""
    with opened(path, clock) as memory:
        memory.recover(os.fsencode(maildir))
        memory.accept([(A, b"name")])
    for name in files:
        (maildir / name).touch()
    with opened(path, clock) as memory:
        memory.recover(os.fsencode(maildir))
        assert memory.knows(A) is accepted
    (maildir / "tmp/name").touch()
    (maildir / "new/name").unlink(missing_ok=True)
    with opened(path, clock) as memory:
        memory.recover(os.fsencode(maildir))
        assert memory.knows(A) is accepted  # it was found out once, for good


def test_what_is_found_delivered_is_durable(
    path: Path, clock: Clock, maildir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut takes it, and what is sent again is answered K and not delivered."""
    with opened(path, clock) as memory:
        memory.accept([(A, b"name"), (B, b"read")])
    (maildir / "new/name").touch()
    (maildir / "cur/read:2,S").touch()
    system = FileSystem(monkeypatch, maildir)
    with opened(path, clock) as memory:
        memory.recover(os.fsencode(maildir))
    assert {"fsync new", "fsync cur"} <= set(system.calls)


@pytest.mark.parametrize("why", ["power cut", "power cut, no boot ID", "a day later"])
def test_a_file_that_is_nowhere_is_delivered_again(
    path: Path, clock: Clock, maildir: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut its name in tmp/ may be lost; after a day tmp/ may have been cleaned.

    Where /proc/sys is hidden (systemd's ProcSubset=pid), each crash may have been a power cut.
    """
    if why == "power cut, no boot ID":
        monkeypatch.setattr(module, "_BOOT_ID", str(path / "hidden"))
    with opened(path, clock) as memory:
        memory.recover(os.fsencode(maildir))
        memory.accept([(A, b"name"), (B, b"there")])
    (maildir / "new/there").touch()
    if why == "power cut":
        monkeypatch.setattr(module, "_boot_id", lambda: "another")
    elif why == "a day later":
        clock.now_s += TRUSTED_S
    with opened(path, clock, 10 * DAY_S) as memory:
        memory.recover(os.fsencode(maildir))
        assert not memory.knows(A)
        assert memory.knows(B)


@pytest.mark.parametrize("where", ["none", "another", "made anew"])
def test_a_file_that_is_nowhere_says_nothing_of_another_maildir(
    path: Path, clock: Clock, maildir: Path, where: str
) -> None:
    """It was still in the tmp/ of the first: K would be lost mail."""
    with opened(path, clock) as memory:
        memory.recover(os.fsencode(maildir))
        memory.accept([(A, b"name"), (B, b"done")])
        memory.delivered([(B, b"done")])
        memory.accept([])
    (maildir / "tmp/name").touch()
    place: Path | None = maildir
    if where == "none":
        place = None  # as with --deliver
    elif where == "another":
        place = make_maildir(maildir.with_name("another"))
    else:
        maildir.rename(maildir.with_name("away"))
        make_maildir(maildir)
    with opened(path, clock) as memory:
        memory.recover(None if place is None else os.fsencode(place))
        assert not memory.knows(A)
        assert memory.knows(B)


def test_what_was_delivered_needs_no_file(path: Path, clock: Clock, maildir: Path) -> None:
    """Its reader may have taken it away long ago, and the machine been started anew."""
    with opened(path, clock) as memory:
        memory.accept([(A, b"name")])
        memory.delivered([(A, b"name")])
        memory.accept([(B, None)])
    (maildir / "tmp/name").touch()
    with opened(path, clock) as memory:
        memory.recover(os.fsencode(maildir))
        assert memory.knows(A)


@pytest.mark.parametrize("tags", ["", ",U=7", ",S=123,W=130"])
def test_mail_that_was_read_is_not_delivered_again(
    path: Path, clock: Clock, maildir: Path, tags: str
) -> None:
    """A day after, and under the name that Dovecot or mbsync has given it."""
    with opened(path, clock, 10 * DAY_S) as memory:
        memory.accept([(A, b"name")])
    (maildir / f"cur/name{tags}:2,S").touch()
    clock.now_s += TRUSTED_S
    with opened(path, clock, 10 * DAY_S) as memory:
        memory.recover(os.fsencode(maildir))
        assert memory.knows(A)


@pytest.mark.parametrize("why", ["reboot", "a day later"])
def test_the_last_delivery_before_a_clean_stop_counts(
    path: Path, clock: Clock, maildir: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reader has taken it away since; what is sent again then would arrive twice."""
    with opened(path, clock, 10 * DAY_S) as memory:
        memory.recover(os.fsencode(maildir))
        memory.accept([(A, b"name"), (B, b"staged")])
        memory.delivered([(A, b"name")])
        memory.close()
    if why == "reboot":
        monkeypatch.setattr(module, "_boot_id", lambda: "another")
    else:
        clock.now_s += TRUSTED_S
    with opened(path, clock, 10 * DAY_S) as memory:
        memory.recover(os.fsencode(maildir))
        assert memory.knows(A)
        assert not memory.knows(B)


def test_a_disk_that_fails_at_the_stop(path: Path, clock: Clock) -> None:
    """The receiver ends in order; the database is closed."""
    with opened(path, clock) as memory:
        memory.accept([(A, b"name")])
        memory.delivered([(A, b"name")])
        memory._database.execute("PRAGMA query_only = 1")
    with opened(path, clock) as memory:
        assert memory.knows(A)


def test_what_is_taken_back_is_forgotten(path: Path, clock: Clock, maildir: Path) -> None:
    """Also where the disk fails just then: in this process, and by the next one."""
    with opened(path, clock) as memory:
        memory.accept([(A, b"x"), (B, b"y")])
        memory.forget([A])
        assert not memory.knows(A)
        memory._database.execute("PRAGMA query_only = 1")
        with pytest.raises(LocalError, match="cannot write"):
            memory.forget([B])
        with pytest.raises(LocalError, match="cannot write"):
            memory.accept([(A, b"z")])
        memory._database.execute("PRAGMA query_only = 0")
        assert not memory.knows(A)
        assert not memory.knows(B)
        memory.accept([(A, b"z")])
        memory.delivered([(A, b"z")])
        assert memory.knows(A)
    (maildir / "tmp/y").touch()
    with opened(path, clock) as memory:
        memory.recover(os.fsencode(maildir))
        assert memory.knows(A)
        assert not memory.knows(B)


def test_a_disk_that_cannot_forget_takes_no_more(path: Path, clock: Clock) -> None:
    """Each further try of each message would leave a file in tmp/, until the disk is full."""
    with opened(path, clock) as memory:
        memory.accept([(A, b"x")])
        memory._database.execute("PRAGMA query_only = 1")
        with pytest.raises(LocalError, match="cannot write"):
            memory.forget([A])
        with pytest.raises(LocalError, match="cannot write"):
            memory.knows(B)
        memory._database.execute("PRAGMA query_only = 0")
        assert not memory.knows(B)


def test_forgetting_overwrites_what_a_failed_accept_left(path: Path, clock: Clock) -> None:
    """An fsync that fails leaves whole rows in the journal, which only a restart sees.

    It would answer K for a message whose file was removed when the fsync failed: lost mail.
    """
    journal = path.with_name(path.name + "-wal")
    with opened(path, clock) as memory:
        memory.accept([(A, b"x")])
        before = journal.read_bytes()
        memory.forget([B])  # the database does not have it: nothing to remove
        assert journal.read_bytes() != before
        assert memory._database.execute("PRAGMA user_version").fetchone()[0] == 1


def test_no_memory_to_forget_with(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client sends again what could not be stored; K for that would be lost mail."""

    def fail(*_: object) -> None:
        raise MemoryError

    with opened(path, clock) as memory:
        memory.accept([(A, b"x")])
        with monkeypatch.context() as patch:
            patch.setattr(memory, "_forget", fail)
            with pytest.raises(MemoryError):
                memory.forget([A])
        assert not memory.knows(A)
        memory.accept([(A, b"y")])
        memory.delivered([(A, b"y")])
        assert memory.knows(A)


def test_a_transaction_that_was_left_open_is_ended(path: Path, clock: Clock) -> None:
    """Without memory for a ROLLBACK once, all mail would be deferred until a restart."""
    with opened(path, clock) as memory:
        memory._database.execute("BEGIN")
        memory._database.execute("INSERT INTO accepted VALUES (?, ?, NULL, NULL)", (A, 1_000))
        memory.accept([(B, None)])
        assert not memory.knows(A)
        assert memory.knows(B)
