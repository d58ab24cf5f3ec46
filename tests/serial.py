"""serialmail's programs, ours and others in their place, for the tests of both."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.helpers import command

under_tcpclient = pytest.mark.skipif(
    not shutil.which("tcpclient"),
    reason="NOT TESTED: tcpclient; apt-get install --no-install-recommends ucspi-tcp",
)

Done = subprocess.CompletedProcess[bytes]


def tcpclient(server: str, *arguments: str | bytes | Path) -> list[bytes]:
    """Return the command line that runs a program with a connection on 6 and 7."""
    host, _, port = server.rpartition(":")
    words = ["tcpclient", "-RHl0", host, port, *arguments]
    return [os.fsencode(word) for word in words]


def serialqmtp(
    server: str,
    prefix: str,
    feed: bytes,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
) -> Done:
    """Run our serialqmtp under tcpclient; `feed` is its standard input.

    Without `environment` it is not told who the server is.
    """
    words = [*command("serialqmtp"), prefix]
    if environment is None:
        words = ["env", "-u", "TCPREMOTEIP", *words]
    return finish(tcpclient(server, *words), feed, cwd, environment)


def finish(
    words: list[bytes], feed: bytes, cwd: Path, environment: Mapping[str, str] | None = None
) -> Done:
    """Run a command to its end. Never shows a traceback."""
    done = subprocess.run(
        words,
        input=feed,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        timeout=90,
        check=False,
    )
    assert b"Traceback" not in done.stderr, done.stderr
    return done


# maildirserial, and clients of any kind

#: What the scripts of clients are made of.
_PRELUDE = """
import os, signal, sys
signal.signal(signal.SIGPIPE, signal.SIG_DFL)

def names():
    rest = b""
    while data := os.read(0, 65536):
        *whole, rest = (rest + data).split(b"\\0")
        yield from whole

def say(name, text):
    data = name + b"\\0" + text + b"\\n"
    while data:
        data = data[os.write(1, data):]

def note(text):
    fd = os.open("../notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, text + b"\\n")
    os.close(fd)
"""


def client(script: str) -> list[str]:
    """Return a client: Python, with `names()`, `say(name, text)` and `note(text)`."""
    return [sys.executable, "-ISc", _PRELUDE + script]


def notes(maildir: Path) -> list[str]:
    """Return what clients have noted, beside the maildir."""
    path = maildir.parent / "notes"
    return path.read_text().splitlines() if path.exists() else []


def maildirserial(*arguments: str | bytes | Path) -> tuple[int, str]:
    """Run it; return the exit code and its standard error. It writes nothing else."""
    words = [os.fsencode(word) for word in (*command("maildirserial"), *arguments)]
    done = finish(words, b"", Path.cwd())
    assert done.stdout == b""
    return done.returncode, done.stderr.decode()


def info(*lines: str) -> str:
    """What it says of messages."""
    return "".join(f"maildirserial: info: {line}\n" for line in lines)


def fatal(line: str) -> str:
    """Its last words."""
    return f"maildirserial: fatal: {line}\n"
