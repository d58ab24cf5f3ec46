"""Report the service's state to systemd (sd_notify(3)), if there is a NOTIFY_SOCKET."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

from maildirqmtp.maildir.files import local_error

if TYPE_CHECKING:
    from collections.abc import Mapping


class Notifier:
    """Sends states to the service manager that the environment names.

    `watchdog_s` is the seconds within which WATCHDOG=1 is expected, None if it
    is not. A service manager that cannot be reached must not stop the mail: what
    cannot be sent is dropped, as libsystemd's callers do. Raises `LocalError` if no socket
    can be opened.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.watchdog_s = _watchdog_s(environment)
        self._address: str | bytes | None = None
        self._socket: socket.socket | None = None
        path = environment.get("NOTIFY_SOCKET", "")
        if path[:1] in ("/", "@"):
            # A name that begins with @ is in the abstract namespace: the address has NUL for it.
            self._address = b"\0" + os.fsencode(path[1:]) if path[0] == "@" else path
            try:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            except OSError as error:
                raise local_error("open a socket to", os.fsencode(path), error) from error
            self._socket.setblocking(False)

    def send(self, *states: str) -> None:
        """Send assignments, such as `READY=1`."""
        if self._socket is not None and self._address is not None:
            try:
                self._socket.sendto("\n".join(states).encode("utf-8", "replace"), self._address)
            except OSError:
                return

    def reloading(self) -> None:
        """Report that the configuration is being read again; READY=1 has to follow."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
        self.send("RELOADING=1", f"MONOTONIC_USEC={now_us}")

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    usec = environment.get("WATCHDOG_USEC", "")
    pid = environment.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1e6


def to_journal(environment: Mapping[str, str], fd: int) -> bool:
    """Return whether a descriptor is the journal's (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
