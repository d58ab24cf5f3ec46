"""What the state files of a maildir and its shards say, to whoever asks about its mail."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from maildirqmtp.daemon.known_state import KnownState
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.shard import Shard
from maildirqmtp.maildir.state import NAME, State
from tests.helpers import make_maildir

NOW = 1_800_000_000.0


@pytest.fixture
def maildir(tmp_path: Path) -> Iterator[Maildir]:
    """A maildir."""
    with Maildir(os.fsencode(make_maildir(tmp_path / "Maildir"))) as made:
        yield made


def ended(maildir: Maildir, shard: Shard | None, why: str, at: int) -> None:
    """Have a run end for this reason, empty for none; its state file is of that second."""
    state = State(maildir.root, float, lambda: NOW, shard=shard)
    state.note_stop(why)
    state.note_broken(b"1.a", 10 + at, 100)
    state.save()
    name = NAME if shard is None else shard.own_file(NAME)
    path = os.path.join(maildir.path, name)
    os.utime(path, (NOW + at, NOW + at))


def test_why_the_last_run_of_a_shard_failed_is_known(maildir: Maildir) -> None:
    """`qmtpq list` said `no daemon` and no more."""
    assert KnownState(maildir).last_stop() == ""
    ended(maildir, Shard(0, 2), "cannot connect", 1)
    known = KnownState(maildir)
    assert (known.last_stop(), known.broken(b"1.a")) == ("cannot connect", (11, 100))


def test_the_last_run_counts_whichever_it_was(maildir: Maildir) -> None:
    """Years ago there were three shards; the reason of that time is none today."""
    ended(maildir, Shard(0, 3), "long ago", 1)
    ended(maildir, None, "", 2)
    assert KnownState(maildir).last_stop() == ""
    ended(maildir, Shard(1, 3), "just now", 3)
    assert KnownState(maildir).last_stop() == "just now"


def test_a_shard_is_asked_for_its_own(maildir: Maildir) -> None:
    """`maildirqmtp --status --shard 0/2 DIR`."""
    ended(maildir, Shard(0, 2), "first", 1)
    ended(maildir, Shard(1, 2), "second", 2)
    with Maildir(maildir.path, shard=Shard(0, 2)) as one:
        assert KnownState(one).last_stop() == "first"
