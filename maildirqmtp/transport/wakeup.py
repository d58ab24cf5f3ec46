"""Waking a thread that waits in a selector, from other threads and from signals."""

import os
from _thread import allocate_lock  # all of threading would be a good part of a batch's start-up
from sys import byteorder

#: What can be written to an eventfd (eventfd(2)); a pipe takes any bytes.
_ONE = (1).to_bytes(8, byteorder)


class Wakeup:
    """A descriptor that wakes the thread that waits for it. Raises `OSError` if none is left.

    What the waiting thread has to find must be in place before `set`; the thread looks
    for it after `clear`. `for_signals`: `write_fd` can be given to `signal.set_wakeup_fd`,
    which writes single bytes; that takes a pipe, of two descriptors.
    """

    def __init__(self, *, for_signals: bool = True) -> None:
        if for_signals:
            self.fd, self.write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        else:
            self.fd = self.write_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = allocate_lock()
        self._is_set = False
        self._closed = False

    def set(self) -> None:
        """Wake the thread that waits for `fd`. Does nothing once closed.

        Thousands of calls before `clear` cost one write.
        """
        if self._is_set:
            return
        with self._lock:
            if not self._closed:
                self._is_set = True
                try:
                    os.write(self.write_fd, _ONE)
                except BlockingIOError:  # full of signals' bytes, which wake it as well
                    return
                except OSError:  # once more, or the waiting thread would wait for ever
                    os.write(self.write_fd, _ONE)

    def clear(self) -> None:
        """Consume the wake-up."""
        try:  # noqa: SIM105 (contextlib, too, would be a part of the start-up)
            os.read(self.fd, 4096)
        except BlockingIOError:
            pass
        self._is_set = False

    def close(self) -> None:
        """Close both ends."""
        with self._lock:
            self._closed = True
            os.close(self.fd)
            if self.write_fd != self.fd:
                os.close(self.write_fd)
