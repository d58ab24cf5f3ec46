"""Which daemons are woken, and what is told where one has ended."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from maildirqmtp.daemon import waking
from maildirqmtp.daemon.waking import Woken, wake
from maildirqmtp.errors import LocalError
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.shard import Shard
from tests.helpers import make_maildir


@pytest.fixture
def maildir(tmp_path: Path) -> Iterator[Maildir]:
    with Maildir(os.fsencode(make_maildir(tmp_path / "Maildir"))) as found:
        yield found


@pytest.fixture
def ended() -> int:
    """The number of a process that has just ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def serve(monkeypatch: pytest.MonkeyPatch, *processes: int) -> None:
    """Have these processes serve the shards of the maildir, as their status files say."""
    shards = [Shard(number, len(processes)) for number in range(len(processes))]
    monkeypatch.setattr(waking, "served", lambda _: [(b"", shard) for shard in shards])
    monkeypatch.setattr(waking, "read", lambda _, __, shard: {"pid": processes[shard.number]})


def test_the_daemons_of_other_shards_are_woken(
    monkeypatch: pytest.MonkeyPatch, maildir: Maildir, ended: int
) -> None:
    """One that has just ended must not keep the mail of the others waiting."""
    woken: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: woken.append(1))
    try:
        serve(monkeypatch, ended, os.getpid())
        assert wake(maildir) is Woken.DONE
    finally:
        signal.signal(signal.SIGALRM, before)
    assert woken == [1]


def test_where_all_have_ended_it_says_so(
    monkeypatch: pytest.MonkeyPatch, maildir: Maildir, ended: int
) -> None:
    """Nothing is tried now, whatever the status file says."""
    serve(monkeypatch, ended)
    with pytest.raises(LocalError, match="has just ended"):
        wake(maildir)


def test_without_a_daemon_there_is_nobody_to_wake(maildir: Maildir) -> None:
    """Mail waits for the next run."""
    assert wake(maildir) is Woken.NO_DAEMON
