"""A daemon for tests: the installed command in watch mode, its log, its supervisor."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import DEADLINE_S, add_message, command, names, wait_until


class Running:
    """A daemon that runs; its output is in files that may be read at any time."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        self.process = process
        self._directory = directory

    @property
    def log(self) -> str:
        """What it has written to standard error."""
        return (self._directory / "log").read_text(errors="surrogateescape")

    @property
    def data(self) -> str:
        """What it has written to standard output."""
        return (self._directory / "data").read_text(errors="surrogateescape")

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until its log has a text so often."""
        wait_until(lambda: self.log.count(text) >= times, f"{text!r} in the log")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Tell it to stop; return its exit code."""
        self.send(number)
        return self.process.wait(DEADLINE_S * 2)


@contextlib.contextmanager
def watching(
    *arguments: str | bytes | Path,
    environment: dict[str, str] | None = None,
    prelude: tuple[str, ...] = (),
) -> Iterator[Running]:
    """Run the installed command; it is killed at the end, and must not have shown a traceback."""
    with tempfile.TemporaryDirectory(prefix="daemon-") as place:
        directory = Path(place)
        with (directory / "log").open("wb") as log, (directory / "data").open("wb") as data:
            process = subprocess.Popen(
                [*prelude, *command(), *map(os.fsdecode, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=data,
                stderr=log,
                env={**os.environ, **(environment or {})},
            )
        running = Running(process, directory)
        try:
            yield running
        finally:
            process.kill()
            process.wait()
            assert "Traceback" not in running.log, running.log


def deliver(maildir: Path, name: str, text: bytes = b"Subject: test\n\nHello\n") -> None:
    """Put a message into new/ as delivery agents do: written in tmp/, then renamed."""
    add_message(maildir, name, text, folder="tmp")
    os.rename(maildir / "tmp" / name, maildir / "new" / name)


def empties(maildir: Path) -> None:
    """Wait until there is nothing in new/."""
    wait_until(lambda: names(maildir / "new") == [], f"an empty {maildir}/new")


class Supervisor:
    """Listens on a socket of its own to what a service says by sd_notify(3)."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.said: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + path[1:] if path.startswith("@") else path)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while message := self._socket.recv(65_536):
            self.said += message.decode().splitlines()

    def wait_for(self, state: str, times: int = 1) -> None:
        """Wait until it has been told this so often."""
        wait_until(lambda: self.said.count(state) >= times, f"{state} among {self.said}")

    def close(self) -> None:
        """Stop listening."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.sendto(b"", "\0" + self.path[1:] if self.path.startswith("@") else self.path)
        self._thread.join(DEADLINE_S)
        self._socket.close()


@contextlib.contextmanager
def supervisor(path: str) -> Iterator[Supervisor]:
    """Run a supervisor for the length of a with block."""
    made = Supervisor(path)
    try:
        yield made
    finally:
        made.close()


def system_calls(pid: int, seconds: float) -> int:
    """Count the system calls of all threads of a process for some seconds, by strace."""
    with tempfile.NamedTemporaryFile("r") as found:
        tracer = subprocess.Popen(
            ["strace", "-f", "-qq", "-o", found.name, "-p", str(pid)], stderr=subprocess.PIPE
        )
        try:
            threading.Event().wait(seconds)  # the time is what is measured here
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.communicate(timeout=DEADLINE_S)
        return sum("resumed>" not in line for line in found)


def is_connecting(pid: int) -> bool:
    """Say whether one of a process's sockets is in SYN_SENT (proc(5))."""
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(fd).removeprefix("socket:[").removesuffix("]"))
    return any(line.split()[3] == "02" and line.split()[9] in inodes for line in lines[1:])


def now_name(number: int) -> str:
    """Return a name for a message that comes now."""
    return f"{int(time.time())}.{number:06}.test"
