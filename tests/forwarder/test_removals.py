"""Removals become durable while sending goes on, and no sidecar goes before its message."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.forwarder.removals import SYNC_REMOVALS, SYNC_S, Removals
from maildirqmtp.maildir import sidecars
from maildirqmtp.maildir.files import Folder
from maildirqmtp.maildir.maildir import Maildir
from tests.fakes import FakeClock
from tests.helpers import add_sidecar, make_maildir, wait_until


class SlowDisk:
    """A maildir whose directories become durable only when the test says so."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = make_maildir(root / "M")
        self.maildir = Maildir(os.fsencode(self.path))
        self.clock = FakeClock()
        self.woken = threading.Event()
        self.removals = Removals(self.maildir, self.clock, self.woken.set)
        self.begun: list[bytes] = []
        self.may_end = threading.Event()
        self.error: LocalError | None = None
        monkeypatch.setattr(Folder, "sync", lambda folder: self._sync(folder))

    def _sync(self, folder: Folder) -> None:
        self.begun.append(folder.path)
        assert self.may_end.wait(30)
        if self.error is not None:
            raise self.error

    def remove(self, count: int = 1) -> None:
        """Count removals from new/."""
        self.removals.add(self.maildir.new, count)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    """A slow disk."""
    made = SlowDisk(tmp_path, monkeypatch)
    yield made
    made.may_end.set()
    made.removals.finish()
    made.maildir.close()


def test_sending_goes_on_while_the_directory_is_synced(disk: SlowDisk) -> None:
    """On a slow disk each fsync of 200 ms would leave the link empty."""
    disk.remove(SYNC_REMOVALS)
    disk.removals.tick()
    wait_until(lambda: bool(disk.begun), "a directory being synced")
    disk.remove(SYNC_REMOVALS - 1)
    disk.removals.tick()
    assert disk.removals.room == 1
    assert len(disk.begun) == 1
    assert disk.removals.next_deadline is None
    disk.may_end.set()
    assert disk.woken.wait(30)
    assert disk.removals.next_deadline is None
    disk.removals.tick()
    assert disk.removals.next_deadline == disk.clock() + SYNC_S


def test_no_more_than_two_batches_are_not_durable(disk: SlowDisk) -> None:
    """What a power cut can take back, and sends again, is bounded however slow the disk is."""
    disk.remove(SYNC_REMOVALS)
    disk.removals.tick()
    disk.remove(SYNC_REMOVALS)
    ticking = threading.Thread(target=disk.removals.tick)
    ticking.start()
    wait_until(lambda: bool(disk.begun), "a directory being synced")
    assert ticking.is_alive()
    disk.may_end.set()
    ticking.join(30)
    assert disk.removals.room == SYNC_REMOVALS
    wait_until(lambda: len(disk.begun) == 2, "the next batch being synced")


def test_sidecars_wait_until_their_batch_is_durable(disk: SlowDisk) -> None:
    """Before that, a power cut leaves messages whose header lines are trusted instead."""
    add_sidecar(disk.path, "1.a", "s@x", "r@y")
    disk.maildir.find_envelopes()
    disk.remove()
    disk.removals.add_sidecar(b"1.a", sidecars.identity(disk.maildir, b"1.a"))
    disk.clock.advance(SYNC_S)
    disk.removals.tick()
    wait_until(lambda: bool(disk.begun), "a directory being synced")
    disk.removals.tick()
    assert (disk.path / "envelope" / "1.a.json").exists()
    disk.may_end.set()
    assert disk.woken.wait(30)
    disk.removals.tick()
    assert not (disk.path / "envelope" / "1.a.json").exists()


def test_a_directory_that_cannot_be_synced_is_told_with_the_next_tick(disk: SlowDisk) -> None:
    """In a thread by itself the error would be lost, and messages would go on being taken."""
    disk.error = LocalError("cannot make durable")
    disk.may_end.set()
    disk.remove(SYNC_REMOVALS)
    disk.removals.tick()
    assert disk.woken.wait(30)
    with pytest.raises(LocalError, match="cannot make durable"):
        disk.removals.tick()
    disk.error = None


def test_the_end_waits_for_all_of_it(disk: SlowDisk) -> None:
    """A run that ends with success must have nothing left that comes back."""
    disk.remove(SYNC_REMOVALS)
    disk.removals.tick()
    disk.remove()
    disk.may_end.set()
    disk.removals.finish()
    assert len(disk.begun) == 2
    assert disk.removals.next_deadline is None


def test_without_a_thread_it_is_done_at_once(
    disk: SlowDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the user's limit of processes is reached, mail still goes."""

    def none(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    disk.may_end.set()
    disk.remove(SYNC_REMOVALS)
    disk.removals.tick()
    assert len(disk.begun) == 1
    assert disk.removals.room == SYNC_REMOVALS


def test_only_one_batch_is_synced_at_a_time(disk: SlowDisk) -> None:
    """A second one in its place, and nobody would see how the first one ended."""
    disk.remove()
    disk.clock.advance(SYNC_S)
    disk.removals.tick()
    wait_until(lambda: bool(disk.begun), "a directory being synced")
    disk.remove()
    disk.clock.advance(2 * SYNC_S)
    disk.removals.tick()
    assert disk.removals.room == SYNC_REMOVALS - 1
    disk.may_end.set()
    assert disk.woken.wait(30)
    disk.removals.tick()
    assert disk.removals.room == SYNC_REMOVALS


def test_at_the_end_sidecars_wait_as_well(disk: SlowDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last batch of a run is as little durable as any before it."""
    add_sidecar(disk.path, "1.a", "s@x", "r@y")
    disk.maildir.find_envelopes()
    disk.remove(SYNC_REMOVALS)
    disk.removals.add_sidecar(b"1.a", sidecars.identity(disk.maildir, b"1.a"))
    disk.removals.tick()
    wait_until(lambda: bool(disk.begun), "a directory being synced")
    were_durable: list[bool] = []
    monkeypatch.setattr(
        sidecars,
        "remove_known",
        lambda maildir, known: were_durable.extend(disk.may_end.is_set() for _ in known),
    )
    threading.Timer(0.2, disk.may_end.set).start()
    disk.removals.finish()
    assert were_durable == [True]
