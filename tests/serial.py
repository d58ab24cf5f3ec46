"""serialmail's programs, ours and others in their place, for the tests of both."""

from __future__ import annotations

import os
import shutil
import subprocess
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
