"""The second process: it removes what it is told to, and nothing else, and never outlives that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from maildirqmtp.errors import LockedError
from maildirqmtp.maildir import removal_process
from maildirqmtp.maildir.files import Folder, Identity, identity_of
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.removal_process import RemovalProcess
from tests.helpers import (
    add_message,
    make_maildir,
    names,
    open_descriptors,
    runs,
    suspend,
    wait_until,
)

ROOT = Path(__file__).parents[2]

#: A run that is killed when it has told the process to remove what is in new/. It notes its ID.
DYING = """
import os, signal, sys
from tests.helpers import suspend
from maildirqmtp.maildir.files import identity_of
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.removal_process import RemovalProcess

maildir = Maildir(os.fsencode(sys.argv[1]))
maildir.lock()
process = RemovalProcess((maildir.new, maildir.cur))
suspend(process._process)
for folder, name in maildir.scan():
    process.put([(folder, name, identity_of(os.stat(name, dir_fd=folder.fd)))])
with open(sys.argv[2], "w") as file:
    file.write(str(process._process))
os.kill(os.getpid(), signal.SIGKILL)
"""


class Removing:
    """A maildir, and a process that removes its messages."""

    def __init__(self, root: Path) -> None:
        self.path = make_maildir(root / "M")
        self.maildir = Maildir(os.fsencode(self.path))
        self.process = RemovalProcess((self.maildir.new, self.maildir.cur))

    def add(self, *names: str, folder: str = "new") -> list[tuple[Folder, bytes, Identity]]:
        """Put messages into the maildir, and return them as they can be `put`."""
        found = []
        for name in names:
            add_message(self.path, name)
            directory = getattr(self.maildir, folder)
            if folder != "new":
                (self.path / "new" / name).rename(self.path / folder / name)
            status = os.stat(name, dir_fd=directory.fd)
            found.append((directory, os.fsencode(name), identity_of(status)))
        return found

    def signal(self, number: int) -> None:
        """Send the process a signal."""
        os.kill(self.process._process, number)

    def suspend(self) -> None:
        """Have the process do nothing until it gets SIGCONT."""
        suspend(self.process._process)


@pytest.fixture
def removing(tmp_path: Path) -> Iterator[Removing]:
    """An empty maildir, and the process."""
    made = Removing(tmp_path)
    yield made
    made.process.close()
    made.maildir.close()


def all_results(process: RemovalProcess) -> bytes:
    """Return the results of all that was put."""
    found = b""
    while process.waiting:
        found += process.take(wait=True)
    return found


def test_it_removes_from_each_directory(removing: Removing) -> None:
    """A message of cur/ that stays is sent again; one of that name in new/ is another."""
    messages = removing.add("1.a", "2.a") + removing.add("3.a", folder="cur")
    removing.add("3.a")
    removing.process.put(messages)
    assert all_results(removing.process) == b"\1\1\1"
    assert (names(removing.path / "new"), names(removing.path / "cur")) == (["3.a"], [])


def test_what_is_another_file_by_now_stays(removing: Removing) -> None:
    """It has not been sent."""
    messages = removing.add("1.a", "2.a", "3.a")
    (removing.path / "new" / "2.a").unlink()
    removing.add("2.a")
    removing.process.put(messages)
    assert all_results(removing.process) == b"\1\0\1"
    assert names(removing.path / "new") == ["2.a"]


def test_without_results_nothing_waits_for_them(removing: Removing) -> None:
    """The run has more to do than to wait for a slow disk."""
    removing.suspend()
    removing.process.put(removing.add("1.a"))
    assert removing.process.take(wait=False) == b""
    assert removing.process.waiting == 1
    removing.signal(signal.SIGCONT)
    assert removing.process.take(wait=True) == b"\1"
    assert removing.process.take(wait=True) == b"", "nothing was put"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_stops_the_run_does_not_end_it(removing: Removing, number: int) -> None:
    """A terminal sends it to both, and the run removes what is answered before it ends."""
    assert removing.process.take(wait=False) == b""
    removing.process.put(removing.add("1.a"))
    assert all_results(removing.process) == b"\1"  # it has come far enough to be sent a signal
    removing.signal(number)
    removing.process.put(removing.add("2.a"))
    assert all_results(removing.process) == b"\1"


def test_when_it_is_killed_nobody_knows_of_the_rest(removing: Removing) -> None:
    """What is reported as removed, and is not, stays unseen to the end of the run."""
    removing.process.put(removing.add("1.a"))
    assert all_results(removing.process) == b"\1"
    removing.suspend()
    removing.process.put(removing.add("2.a", "3.a"))
    removing.signal(signal.SIGKILL)
    assert removing.process.take(wait=True) == b"\0\0"
    assert not removing.process.is_alive
    assert removing.process.waiting == 0


def test_a_pipe_that_is_gone_is_found_while_writing(removing: Removing) -> None:
    """SIGPIPE, or an error that nobody expects, would end the run with mail in flight."""
    removing.signal(signal.SIGKILL)
    os.waitid(os.P_PID, removing.process._process, os.WEXITED | os.WNOWAIT)
    removing.process.put(removing.add("1.a"))
    assert removing.process.take(wait=False) == b"\0"
    assert not removing.process.is_alive


def test_one_that_hangs_is_given_up(removing: Removing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody stopped it, or its disk hangs: the run would wait for ever."""
    monkeypatch.setattr(removal_process, "RESULT_TIMEOUT_S", 0.01)
    removing.suspend()
    removing.process.put(removing.add("1.a"))
    assert removing.process.take(wait=True) == b"\0"
    wait_until(lambda: not runs(removing.process._process), "the process to be killed")


def test_one_that_does_not_even_read_is_given_up(
    removing: Removing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With long names the pipe is full before so many wait: the run would wait for ever."""
    messages = removing.add(*[f"{number}.{'a' * 200}" for number in range(400)])
    monkeypatch.setattr(removal_process, "RESULT_TIMEOUT_S", 0.01)
    removing.suspend()
    removing.process.put(messages)
    assert not removing.process.is_alive
    assert removing.process.take(wait=True) == bytes(400)


def test_what_does_not_fit_into_the_pipe_goes_in_parts(
    removing: Removing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that gets half a request dies, and the run has to do all by itself."""
    real = removal_process._is_ready

    def is_ready(fd: int, events: int, timeout_s: float) -> bool:
        """Let the process read only when the pipe is full, and somebody waits for it."""
        is_there = real(fd, events, 0.0)
        if is_there or not timeout_s:
            return is_there
        removing.signal(signal.SIGCONT)
        return real(fd, events, timeout_s)

    monkeypatch.setattr(removal_process, "_is_ready", is_ready)
    messages = removing.add(*[f"{number}.{'a' * 200}" for number in range(400)])
    removing.suspend()
    removing.process.put(messages)
    assert all_results(removing.process) == b"\1" * 400
    assert names(removing.path / "new") == []


def test_it_ends_with_its_owner(removing: Removing) -> None:
    """A process that stays keeps the maildir locked, and is one more with every run."""
    process = removing.process._process
    removing.process.put(removing.add("1.a"))
    assert all_results(removing.process) == b"\1"
    removing.process.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(process, os.WNOHANG)
    removing.process = RemovalProcess((removing.maildir.new,))


def test_at_the_end_one_that_hangs_is_given_up(
    removing: Removing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run would never end."""
    monkeypatch.setattr(removal_process, "RESULT_TIMEOUT_S", 0.01)
    removing.suspend()
    removing.process.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(removing.process._process, os.WNOHANG)
    removing.process = RemovalProcess((removing.maildir.new,))


def test_descriptors_are_closed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no process can be made."""
    before = open_descriptors()
    RemovalProcess(()).close()
    assert open_descriptors() == before

    def no_fork() -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "fork", no_fork)
    with pytest.raises(BlockingIOError):
        RemovalProcess(())
    assert open_descriptors() == before


def test_when_the_run_is_killed_what_it_was_told_is_removed_and_nobody_else_begins(
    tmp_path: Path,
) -> None:
    """All of it was accepted: the next run would send it once more."""
    path = make_maildir(tmp_path / "M")
    for number in range(300):
        add_message(path, f"{number}.a")
    noted = tmp_path / "process"
    run = subprocess.run(
        [sys.executable, "-c", DYING, path, noted], cwd=ROOT, check=False, timeout=60
    )
    assert run.returncode == -signal.SIGKILL
    process = int(noted.read_text())
    with Maildir(os.fsencode(path)) as maildir:
        with pytest.raises(LockedError):
            maildir.lock()
        os.kill(process, signal.SIGCONT)
        wait_until(lambda: not runs(process), "the process to end")
        assert names(path / "new") == []
        maildir.lock()
