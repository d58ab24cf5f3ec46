"""What the tests share: maildirs, the installed command, and servers to talk to."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maildirqmtp.qmtp.package_reader import MessageData, MessageStart, PackageEnd, PackageReader

#: Seconds after which a test gives up waiting for something that should happen at once.
DEADLINE_S = 60.0


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Poll until the condition holds; fail the test where it does not within the deadline."""
    give_up = time.monotonic() + deadline_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < give_up, f"waited {deadline_s} s in vain for: {what}"
        pause.wait(0.005)


# Maildirs


def make_maildir(path: Path) -> Path:
    """Make an empty maildir and return its path."""
    for part in ("new", "cur", "tmp"):
        (path / part).mkdir(parents=True, exist_ok=True)
    return path


def add_message(
    maildir: Path,
    name: str | bytes,
    text: bytes = b"Subject: test\n\nHello\n",
    sender: bytes | None = b"sender@example.org",
    recipient: bytes | None = b"recipient@example.net",
    folder: str = "new",
) -> bytes:
    """Put a message into the maildir, trace lines on top where there are addresses; its bytes."""
    top = b""
    if sender is not None:
        top += b"Return-Path: <" + sender + b">\n"
    if recipient is not None:
        top += b"Delivered-To: " + recipient + b"\n"
    path = os.path.join(os.fsencode(maildir), os.fsencode(folder), os.fsencode(name))
    with open(path, "wb") as file:
        file.write(top + text)
    return top + text


def add_sidecar(maildir: Path, name: str, sender: str, *recipients: str) -> None:
    """Put a sidecar beside the message of this name."""
    (maildir / "envelope").mkdir(exist_ok=True)
    content = {"version": 1, "sender": sender, "recipients": recipients}
    (maildir / "envelope" / f"{name}.json").write_text(json.dumps(content))


def sidecar(maildir: Path, name: str) -> dict[str, Any]:
    """Return what the sidecar of the message of this name says."""
    content = json.loads((maildir / "envelope" / f"{name}.json").read_text())
    assert isinstance(content, dict)
    return content


def names(directory: Path) -> list[str]:
    """Return the names in a directory, sorted; none where there is no directory."""
    return sorted(os.listdir(directory)) if directory.exists() else []


def snapshot(path: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return every file under a path, with its inode, mode and content, to compare later.

    The lock file is not among them, which every run makes and leaves, nor the state
    file and its lock, which may appear with any run that has an answer.
    """
    found = {}
    ours = {".maildirqmtp-lock", ".maildirqmtp-state.json", ".maildirqmtp-state-lock"}
    for directory, _, files in os.walk(path):
        for name in set(files) - ours:
            file = os.path.join(directory, name)
            status = os.lstat(file)
            content = b""
            if os.path.isfile(file) and not os.path.islink(file):
                with open(file, "rb") as opened:
                    content = opened.read()
            found[os.path.relpath(file, path)] = (status.st_ino, status.st_mode, content)
    return found


# The command


def command(name: str = "maildirqmtp") -> list[str]:
    """Return how to run an installed command of this package."""
    script = Path(sys.executable).with_name(name)
    if script.exists():
        return [str(script)]
    module = {
        "maildirqmtp": "maildirqmtp",
        "qmtpmaildir": "maildirqmtp.cli.qmtpmaildir",
        "qmtp-sendmail": "maildirqmtp.cli.qmtp_sendmail",
        "qmtpq": "maildirqmtp.cli.qmtpq",
        "serialqmtp": "maildirqmtp.serialmail.serialqmtp",
        "maildirserial": "maildirqmtp.serialmail.maildirserial",
    }[name]
    return [sys.executable, "-m", module]


def ignoring_sigchld(words: list[str]) -> list[str]:
    """Return how to run a command from a parent that ignores SIGCHLD, which exec(2) passes on."""
    program = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-c", program, *words]


def importing_first(folder: Path) -> dict[str, str]:
    """Return the environment of a command that seeks modules there first, and then as the tests."""
    places = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(places)}


def run(
    *arguments: str | bytes | Path, timeout_s: float = 90.0
) -> subprocess.CompletedProcess[str]:
    """Run the installed `maildirqmtp`; its output is text. Never shows a traceback."""
    result = subprocess.run(
        [*command(), *map(os.fsdecode, arguments)],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=timeout_s,
        check=False,
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result


@contextlib.contextmanager
def start(*arguments: str | bytes | Path) -> Iterator[subprocess.Popen[str]]:
    """Start the installed `maildirqmtp`, for tests that do something while it runs.

    Its standard error is a pipe, its standard output too; it is killed at the end.
    """
    with subprocess.Popen(
        [*command(), *map(os.fsdecode, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def open_descriptors() -> set[str]:
    """Return the numbers of the descriptors that this process has open."""
    return {fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")}


def runs(pid: int) -> bool:
    """Say whether there is such a process, and it is not only waited for."""
    try:
        return _state_of(pid) != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone before it was opened, or read
        return False


def suspend(pid: int) -> None:
    """Stop a process, and wait until it does nothing more: it may be reading when that is sent."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: _state_of(pid) == "T", f"process {pid} to stop")


def _state_of(pid: int) -> str:
    """Return the letter for what a process does; see proc_pid_stat(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def json_events(stdout: str) -> list[dict[str, Any]]:
    """Read what --json writes: nothing but objects, one a line, each with its event."""
    found = [json.loads(line) for line in stdout.splitlines()]
    assert all(isinstance(event, dict) and isinstance(event["event"], str) for event in found)
    return found


def log_lines(stderr: str) -> list[str]:
    """Return the lines on standard error, each of which says who speaks; without that."""
    lines = stderr.splitlines()
    assert all(line.startswith("maildirqmtp: ") for line in lines), stderr
    return [line.removeprefix("maildirqmtp: ") for line in lines]


def random_text(size: int) -> bytes:
    """Make bytes that do not begin with a space: that would be a folded trace line."""
    return b"\n" + os.urandom(size - 1)


def make_older(path: Path, seconds: float) -> None:
    """Make a file look older."""
    then = time.time() - seconds
    os.utime(path, (then, then))


# Servers


@dataclass
class Package:
    """A package as a server got it."""

    text: bytes
    encoding: bytes
    sender: bytes
    recipients: tuple[bytes, ...]


class Peer:
    """The server's end of one connection, for scripts: read packages, write anything."""

    def __init__(self, sock: socket.socket, server: ScriptedServer) -> None:
        self.socket = sock
        self.server = server
        self._reader = PackageReader()
        self._text: list[bytes] = []
        self._encoding = b""

    def read_package(self) -> Package | None:
        """Wait for the next whole package and note it on the server; None at the end."""
        while True:
            event = self._reader.next()
            if isinstance(event, MessageStart):
                self._text, self._encoding = [], event.encoding
            elif isinstance(event, MessageData):
                self._text.append(event.data)
            elif isinstance(event, PackageEnd):
                package = Package(
                    b"".join(self._text), self._encoding, event.sender, event.recipients
                )
                self.server.packages.append(package)
                return package
            else:
                try:
                    data = self.socket.recv(1 << 18)
                except OSError:
                    return None
                if not data:
                    return None
                self._reader.feed(data)

    def respond(self, *responses: bytes) -> None:
        """Send responses, each framed as a netstring."""
        self.send(b"".join(b"%d:%b," % (len(r), r) for r in responses))

    def send(self, data: bytes) -> None:
        """Send raw bytes; a client that has gone is no error."""
        with contextlib.suppress(OSError):
            self.socket.sendall(data)

    def finish(self) -> None:
        """End the connection so that all arrives that was sent, and wait for the client to go.

        A script that just returns while the client still sends resets the connection (tcp(7)): a
        client that is slow to read loses responses.
        """
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
            while self.socket.recv(1 << 18):
                pass


Script = Callable[[Peer], None]


@dataclass
class ScriptedServer:
    """A server on loopback that runs a script on each connection, in threads.

    `packages` are the packages read so far, `connections` counts, `errors` are
    what scripts raised. `listen_on` is the port, 0 for one that is free, which nobody
    else is given before the server is closed, listening or not; `host` an address of
    loopback.
    """

    script: Script
    listen_on: int = 0
    host: str = "127.0.0.1"
    packages: list[Package] = field(default_factory=list)
    connections: int = 0
    errors: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._held = socket.socket()
        # As the listener has it: only so can both have the port.
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind((self.host, self.listen_on))
        self.port: int = self._held.getsockname()[1]
        self._listener = socket.create_server((self.host, self.port), backlog=64)
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def address(self) -> str:
        """SERVER, for the command line."""
        return f"{self.host}:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._sockets.append(sock)
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            with sock:
                self.script(Peer(sock, self))
        except BaseException as error:
            self.errors.append(error)

    def stop_listening(self) -> None:
        """Refuse further connections, as a server that has gone."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def close(self) -> None:
        """Stop listening, cut every connection, wait for the scripts."""
        self.stop_listening()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(DEADLINE_S)
        self._held.close()
        assert not self.errors, self.errors


@contextlib.contextmanager
def serving(script: Script, port: int = 0, host: str = "127.0.0.1") -> Iterator[ScriptedServer]:
    """Run a scripted server for the length of a with block."""
    server = ScriptedServer(script, port, host)
    try:
        yield server
    finally:
        server.close()


def answer_all(
    answer: Callable[[Package, bytes], bytes] = lambda package, recipient: b"Kok",
) -> Script:
    """Make a script that answers once per recipient, as the protocol says."""

    def script(peer: Peer) -> None:
        while (package := peer.read_package()) is not None:
            peer.respond(*(answer(package, recipient) for recipient in package.recipients))

    return script


#: What `by_recipient` answers, by the first letter of the recipient.
SAID = {b"k": b"Kok", b"z": b"Zbusy", b"d": b"Dno such user (#5.1.1)"}


def by_recipient(package: Package, recipient: bytes) -> bytes:
    """Answer as the recipient's first letter asks for; accept bounces (from the null sender)."""
    return SAID[recipient[:1]] if package.sender else SAID[b"k"]


def closed_port() -> int:
    """Return a port of loopback on which nobody listens.

    It is below those that Linux gives to whoever asks for any (32,768 and above), so that no test
    that runs at the same time is given it.
    """
    while True:
        port = 10_000 + secrets.randbelow(22_768)
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def blackhole(host: str = "127.0.0.1") -> Iterator[int]:
    """Yield a port that drops what comes, as a dead host does: its listener's backlog is full."""
    with socket.create_server((host, 0), backlog=0) as listener, contextlib.ExitStack() as stack:
        port: int = listener.getsockname()[1]
        for _ in range(8):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex((host, port))
        yield port


# mailfront, from Debian


def have_mailfront() -> bool:
    """Say whether Debian's mailfront and tcpserver are installed."""
    return bool(shutil.which("mailfront") and shutil.which("tcpserver"))


@contextlib.contextmanager
def mailfront(queue: Path, *plugins: str) -> Iterator[str]:
    """Run mailfront's QMTP under tcpserver, delivering into `queue`; yields SERVER."""
    for part in ("new", "tmp"):
        (queue / part).mkdir(parents=True, exist_ok=True)
    port = closed_port()
    environment = dict(os.environ, QUEUEDIR=str(queue), QUEUEDIR_NOSYNC="1")
    listen = ["tcpserver", "-H", "-R", "-l0", "-c", "40", "127.0.0.1", str(port)]
    process = subprocess.Popen(
        [*listen, "mailfront", "qmtp", *(plugins or ("queuedir", "accept"))],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: _listens(port), "tcpserver to listen")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def queuedir_messages(queue: Path) -> list[tuple[bytes, tuple[bytes, ...], bytes]]:
    """Read what mailfront's queuedir took: sender, recipients, message of each."""
    return [parse_queuedir(path.read_bytes()) for path in sorted((queue / "new").iterdir())]


def parse_queuedir(data: bytes) -> tuple[bytes, tuple[bytes, ...], bytes]:
    """Read one file of queuedir's that has one recipient: sender NUL recipient NUL message."""
    sender, recipient, message = data.split(b"\0", 2)
    return sender, (recipient,), message


def probe(port: int, path: str, timeout_s: float = DEADLINE_S) -> tuple[int, str]:
    """Ask once, as a kubelet does; status 0 where nobody answers."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        client.request("GET", path)
        response = client.getresponse()
        return response.status, response.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)
    finally:
        client.close()
