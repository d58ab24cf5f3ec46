"""Waking a thread that waits, without a lost wake-up, a full pipe or a stranger's descriptor."""

import errno
import os
import select
import threading
from collections.abc import Iterator

import pytest

from maildirqmtp.transport.wakeup import Wakeup


@pytest.fixture
def wake() -> Iterator[Wakeup]:
    """A wake-up that is closed at the end."""
    made = Wakeup()
    yield made
    made.close()


def is_due(wake: Wakeup) -> bool:
    """Say whether a sleeper would wake."""
    return bool(select.select([wake.fd], [], [], 0)[0])


def test_it_wakes_until_it_is_cleared(wake: Wakeup) -> None:
    """A sleeper that was woken sleeps again afterwards; otherwise it would be busy for ever."""
    assert not is_due(wake)
    wake.set()
    assert is_due(wake)
    wake.clear()
    assert not is_due(wake)
    wake.set()
    assert is_due(wake)


def test_thousands_of_calls_are_one_write(wake: Wakeup) -> None:
    """A burst of events neither fills the pipe nor costs a system call each."""
    for _ in range(10_000):
        wake.set()
    assert len(os.read(wake.fd, 4096)) == 8


def test_a_full_pipe_wakes_too(wake: Wakeup) -> None:
    """Signals write to the same pipe: that it is full must not raise in a handler."""
    os.write(wake.write_fd, b"x" * (1 << 20))
    with pytest.raises(BlockingIOError):
        os.write(wake.write_fd, b"x")
    wake.set()
    assert is_due(wake)
    while is_due(wake):
        wake.clear()
    wake.set()
    assert is_due(wake)


def test_a_failure_does_not_leave_the_sleeper_asleep(
    wake: Wakeup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for the end of some work would never hear of it."""
    failures = iter([OSError(errno.ENOMEM, "Cannot allocate memory")])
    write = os.write

    def fail_once(fd: int, data: bytes) -> int:
        for failure in failures:
            raise failure
        return write(fd, data)

    monkeypatch.setattr(os, "write", fail_once)
    wake.set()
    assert is_due(wake)


def test_bytes_of_signals_are_taken_in_too(wake: Wakeup) -> None:
    """`signal.set_wakeup_fd` writes a byte for each signal."""
    os.write(wake.write_fd, b"\x0e\x0e\x01")
    assert is_due(wake)
    wake.clear()
    assert not is_due(wake)


def test_clearing_when_nothing_came_does_not_wait(wake: Wakeup) -> None:
    """The thread would hang for ever."""
    wake.clear()
    assert not is_due(wake)
    wake.set()
    assert is_due(wake)


def test_after_the_end_it_writes_to_nobody() -> None:
    """The number of the descriptor may be a message's by then: a NUL in it would go out."""
    wake = Wakeup()
    reader, writer = os.pipe()
    fd = wake.write_fd
    wake.close()
    os.dup2(writer, fd)  # now it is somebody else's
    try:
        wake.set()
        assert not select.select([reader], [], [], 0)[0]
    finally:
        for opened in (reader, writer, fd):
            os.close(opened)


def test_its_descriptors_are_not_inherited(wake: Wakeup) -> None:
    """A sendmail that we start must not keep our pipes open."""
    assert not os.get_inheritable(wake.fd)
    assert not os.get_inheritable(wake.write_fd)


def test_woken_while_it_is_cleared_it_can_be_woken_again(
    wake: Wakeup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte taken in, and still thought to be there: nobody would write another one, ever."""
    read = os.read

    def read_late(fd: int, count: int) -> bytes:
        wake.set()  # by another thread, at the worst moment
        return read(fd, count)

    wake.set()
    with monkeypatch.context() as patch:
        patch.setattr(os, "read", read_late)
        wake.clear()
    wake.set()
    assert is_due(wake)


def test_no_wake_up_is_lost(wake: Wakeup) -> None:
    """What is in place before `set` is found after `clear`, however the threads take turns."""
    total, found = 3_000, 0
    box: list[int] = []
    lock = threading.Lock()

    def tell() -> None:
        for number in range(total):
            with lock:
                box.append(number)
            wake.set()

    thread = threading.Thread(target=tell)
    thread.start()
    while found < total:
        assert select.select([wake.fd], [], [], 30)[0], "a wake-up was lost"
        wake.clear()
        with lock:
            found += len(box)
            box.clear()
    thread.join()
