"""What the tests of `qmtp-sendmail` share: a home with its configuration, and a queue."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import Script, ScriptedServer, command, names, wait_until

#: What a program sends that has done its part.
HEADER = b"From: me@x\nDate: Thu, 26 Nov 2026 12:00:00 +0000\nMessage-ID: <1@x>\n"


class Home:
    """A user's home, with a configuration and a maildir of the user's own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = path / "submit.sock"
        self.maildir = path / "out"
        (path / ".config").mkdir(parents=True)
        self.environment = {**os.environ, "HOME": str(path)}

    def configure(self, *, maildir: bool = True, rest: str = 'domain = "example.org"') -> None:
        """Write the configuration; `rest` stands behind socket and maildir."""
        own = 'maildir = "~/out"\n' if maildir else ""
        text = f'[submission]\nsocket = "{self.socket}"\n{own}{rest}\n'
        (self.path / ".config" / "maildirqmtp.toml").write_text(text)

    def send(
        self, *words: str, text: bytes = HEADER + b"\nhi\n", redirect: str = "", limits: str = ""
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the program with the message on standard input; never shows a traceback."""
        argv = [*command("qmtp-sendmail"), *words]
        if redirect or limits:
            argv = ["sh", "-c", f'{limits or ":"}; exec "$@" {redirect}', "sh", *argv]
        done = subprocess.run(
            argv, input=text, capture_output=True, timeout=90, check=False, env=self.environment
        )
        assert b"Traceback" not in done.stderr, done.stderr
        return done

    def kept(self) -> list[tuple[str, list[str], bytes]]:
        """Return sender, recipients and text of what is in the maildir of the user's own."""
        found = []
        for name in names(self.maildir / "new"):
            envelope = json.loads((self.maildir / "envelope" / f"{name}.json").read_text())
            text = (self.maildir / "new" / name).read_bytes()
            found.append((envelope["sender"], envelope["recipients"], text))
        return found


@contextlib.contextmanager
def queue(home: Home, *options: str) -> Iterator[Path]:
    """Run a receiver on the socket that the home's configuration names; its maildir."""
    maildir = home.path / "queue"
    argv = [*command("qmtpmaildir"), "-q", "--listen", f"unix:{home.socket}", *options]
    with subprocess.Popen([*argv, str(maildir)], env=home.environment) as process:
        try:
            wait_until(home.socket.exists, "the socket")
            yield maildir
        finally:
            process.terminate()


class UnixServer(ScriptedServer):
    """A scripted server on a Unix socket."""

    def __init__(self, path: Path, script: Script) -> None:
        self._path = path
        super().__init__(script)

    def __post_init__(self) -> None:
        """Listen at the path, where the base class listens on loopback."""
        super().__post_init__()
        self.stop_listening()
        self._threads[0].join()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._path))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()


@contextlib.contextmanager
def unix_serving(home: Home, script: Script) -> Iterator[ScriptedServer]:
    """Run a script on each connection to the socket that the home's configuration names."""
    server = UnixServer(home.socket, script)
    try:
        yield server
    finally:
        server.close()


def delivered(maildir: Path) -> list[bytes]:
    """Return the messages that the receiver has delivered, each with its trace lines."""
    return [(maildir / "new" / name).read_bytes() for name in names(maildir / "new")]
