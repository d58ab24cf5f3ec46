"""Shards: each message is in one of them, and no two processes ever have the same one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from maildirqmtp.errors import LocalError, LockedError
from maildirqmtp.maildir import cleanup, locking
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.shard import Shard
from maildirqmtp.maildir.state import State
from tests.helpers import add_message, add_sidecar, make_maildir, make_older, names, wait_until

NOW = 1_800_000_000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An empty maildir."""
    return make_maildir(tmp_path / "M")


def opened(path: Path, shard: Shard | None = None) -> Maildir:
    """Return the maildir, open."""
    return Maildir(os.fsencode(path), shard=shard)


def test_each_message_is_in_one_shard() -> None:
    """In none it would never go, in two it would go twice."""
    for total in (1, 2, 3, 7, 100):
        for number in range(200):
            name = b"1700000000.M%dP1.host" % number
            assert sum(Shard(k, total).has(name) for k in range(total)) == 1


@pytest.mark.parametrize(
    "name",
    [
        b"1700000000.M1P2.host",
        b"1700000000.M1P2.host:2,FS",
        b"1700000000.M1P2.host,S=123,W=130",
        b"1700000000.M1P2.host,U=7:2,",
        b"1700000000.M1P2.host,S=1,U=7,W=3:2,S",
    ],
)
def test_a_mail_reader_moves_no_message_to_another_shard(name: bytes) -> None:
    """While it is in flight there, this one would send it as well."""
    number = zlib.crc32(b"1700000000.M1P2.host") % 5
    assert [k for k in range(5) if Shard(k, 5).has(name)] == [number]


def test_a_shard_scans_its_own_messages(path: Path) -> None:
    """In new/ and in cur/; together the shards have them all."""
    for number in range(50):
        add_message(path, f"{number}.a", folder="new" if number % 2 else "cur")
    found = []
    for number in range(3):
        with opened(path, Shard(number, 3)) as maildir:
            here = [name for _, name in maildir.scan(include_cur=True)]
            assert 0 < len(here) < 50
            found += here
    assert sorted(found) == sorted(os.fsencode(f"{number}.a") for number in range(50))


def test_shards_work_side_by_side_and_each_is_locked(path: Path) -> None:
    """The second process with a shard would send everything of it twice."""
    with opened(path, Shard(0, 2)) as first, opened(path, Shard(1, 2)) as second:
        first.lock()
        second.lock()
        assert locking.holder(first.root, Shard(0, 2)) == os.getpid()
        with (
            opened(path, Shard(1, 2)) as third,
            pytest.raises(LocalError, match=r"shard 1/2 of .*M is locked by process \d+; two"),
        ):
            third.lock()
        second.unlock()
        with opened(path, Shard(1, 2)) as third:
            third.lock()


def test_another_number_of_shards_is_refused_while_there_is_one(path: Path) -> None:
    """A message would be in two shards of two numberings; afterwards it may be changed."""
    with opened(path, Shard(0, 2)) as first, opened(path, Shard(2, 3)) as other:
        first.lock()
        with pytest.raises(LocalError, match="being forwarded in 2 shards, not in 3"):
            other.lock()
        assert (path / ".maildirqmtp-lock-shards").read_text() == "2\n"
        first.unlock()
        other.lock()
        assert (path / ".maildirqmtp-lock-shards").read_text() == "3\n"
        with pytest.raises(LocalError, match="being forwarded in 3 shards, not in 2"):
            first.lock()


@pytest.mark.parametrize("left", [b"", b"12", b"x" * 100, b"2"])
def test_what_a_crash_leaves_of_the_number_is_written_anew(path: Path, left: bytes) -> None:
    """A machine that lost power must not need a hand."""
    (path / ".maildirqmtp-lock-shards").write_bytes(left)
    with opened(path, Shard(0, 2)) as first, opened(path, Shard(1, 2)) as second:
        first.lock()
        second.lock()
    assert (path / ".maildirqmtp-lock-shards").read_text() == "2\n"


def test_a_run_without_shards_and_one_with_them_keep_each_other_out(path: Path) -> None:
    """Each would send what the other has in flight."""
    with opened(path) as whole, opened(path, Shard(0, 2)) as part:
        whole.lock()
        with pytest.raises(LocalError, match="M is locked by process"):
            part.lock()
        whole.unlock()
        part.lock()
        with pytest.raises(LocalError, match="M is locked by process"):
            whole.lock()
        part.unlock()
        whole.lock()


_OLD = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("held", flush=True)
sys.stdin.read()
"""


def test_an_earlier_version_and_a_shard_keep_each_other_out(path: Path) -> None:
    """It locks the directory, and knows nothing of shards."""
    command = [sys.executable, "-c", _OLD, str(path)]
    with opened(path, Shard(0, 2)) as part:
        part.lock()
        done = subprocess.run(command, capture_output=True, check=False)
        assert b"BlockingIOError" in done.stderr
        part.unlock()
        with subprocess.Popen(command, stdin=-1, stdout=-1) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == b"held\n"
            with pytest.raises(LocalError, match=f"locked by process {process.pid}"):
                part.lock()
            process.stdin.close()
        part.lock()


_SHARD = """
import os, sys
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.shard import Shard
with Maildir(os.fsencode(sys.argv[1]), shard=Shard(int(sys.argv[2]), 8)) as maildir:
    print("ready", flush=True)
    sys.stdin.readline()
    maildir.lock()
    print("locked", flush=True)
    sys.stdin.readline()
"""


def test_shards_that_begin_at_the_same_moment_all_begin(path: Path) -> None:
    """systemd starts all instances at once; none may fail over another one's first look."""
    (path / ".maildirqmtp-lock-shards").write_text("3\n")
    made = [
        subprocess.Popen(
            [sys.executable, "-c", _SHARD, path, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    try:
        for text in ("ready\n", "locked\n"):
            for process in made:
                assert process.stdout is not None
                assert process.stdout.readline() == text
            for process in made:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
        assert [process.wait(60) for process in made] == [0] * 8
    finally:
        for process in made:
            process.kill()
            process.communicate()


def has_open(pid: int, path: Path) -> bool:
    """Say whether a process has a file open, as proc(5) tells."""
    open_files = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it is closed by now
            open_files.append(fd.readlink())
    return path in open_files


def test_a_shard_waits_for_another_one_that_is_just_looking(path: Path) -> None:
    """For a moment that one has the whole maildir, to see whether it is the first."""
    with opened(path, Shard(0, 8)) as maildir:
        maildir.lock()  # makes the files
    gate = os.open(path / ".maildirqmtp-lock-shards", os.O_RDWR)
    whole = os.open(path / ".maildirqmtp-lock", os.O_RDWR)
    fcntl.flock(gate, fcntl.LOCK_EX)
    fcntl.flock(whole, fcntl.LOCK_EX)
    with subprocess.Popen(
        [sys.executable, "-c", _SHARD, path, "1"], stdin=-1, stdout=-1, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        shards = path / ".maildirqmtp-lock-shards"
        wait_until(lambda: has_open(process.pid, shards), "a shard that waits")
        fcntl.flock(whole, fcntl.LOCK_SH)
        os.close(gate)
        assert process.stdout.readline() + process.stdout.readline() == "ready\nlocked\n"
        process.stdin.close()
    os.close(whole)


def test_who_keeps_the_number_of_shards_locked_stops_one_maildir_for_a_while(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner may: root's daemon waited for ever, with the routes of everybody else."""
    monkeypatch.setattr(locking, "_GATE_S", 0.05)
    with opened(path, Shard(0, 2)) as maildir:
        maildir.lock()
    gate = os.open(path / ".maildirqmtp-lock-shards", os.O_RDWR)
    fcntl.flock(gate, fcntl.LOCK_EX)
    with (
        opened(path, Shard(0, 2)) as maildir,
        pytest.raises(LockedError, match=f"is locked by process {os.getpid()}"),
    ):
        maildir.lock()
    os.close(gate)


def test_the_lock_files_are_for_the_owner_only(path: Path) -> None:
    """Whoever can open one can hold it, and keep all mail back."""
    with opened(path, Shard(0, 2)) as maildir:
        maildir.lock()
    files = [name for name in names(path) if name.startswith(".maildirqmtp-lock")]
    assert files == [".maildirqmtp-lock", ".maildirqmtp-lock-0", ".maildirqmtp-lock-shards"]
    assert all((path / name).stat().st_mode & 0o777 == 0o600 for name in files)


def test_a_lock_file_that_is_not_ours_is_refused(path: Path) -> None:
    """A link would have us write into another file."""
    (path / "victim").write_text("precious")
    (path / ".maildirqmtp-lock-shards").symlink_to("victim")
    with opened(path, Shard(0, 2)) as maildir, pytest.raises(LocalError, match="remove it"):
        maildir.lock()
    assert (path / "victim").read_text() == "precious"


def test_the_first_shard_cleans_tmp(path: Path) -> None:
    """One is enough, and it has to be one."""
    (path / "tmp" / "old").write_text("x")
    make_older(path / "tmp" / "old", 100 * 3_600)
    for number in (2, 1, 0):
        with opened(path, Shard(number, 3)) as maildir:
            maildir.scan()
            removed = cleanup.clean(maildir, (path / "tmp").stat().st_mtime + 1)
        assert removed == (not number)


def test_sidecars_of_other_shards_are_no_orphans(path: Path) -> None:
    """Their messages would be sent to whom their header lines name."""
    for number in range(20):
        add_message(path, f"{number}.a")
        add_sidecar(path, f"{number}.a", "s@x", "r@y")
    orphans = [f"{number}.orphan" for number in range(20)]
    for name in orphans:
        add_sidecar(path, name, "s@x", "r@y")
    later = (path / "envelope").stat().st_ctime + 100 * 3_600
    removed = 0
    for number in range(3):
        with opened(path, Shard(number, 3)) as maildir:
            maildir.scan()
            removed += cleanup.clean(maildir, later)
    assert removed == 20
    assert names(path / "envelope") == sorted(f"{number}.a.json" for number in range(20))


def test_each_shard_has_its_state(path: Path) -> None:
    """Two processes would overwrite what the other has found out."""
    for number in range(2):
        with opened(path, Shard(number, 2)) as maildir:
            state = State(maildir.root, float, lambda: NOW, shard=maildir.shard)
            assert not state.has_shown("mx", "proven")
            state.remember("mx", "proven")
            state.save()
    found = [name for name in names(path) if re.match(r"\.maildirqmtp-state", name)]
    assert found == [f".maildirqmtp-state-shard-{number}-2.json" for number in range(2)]
