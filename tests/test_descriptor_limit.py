"""The limit of open descriptors: used to the full, not handed on, and named where it is met."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys

import pytest

from maildirqmtp.descriptor_limit import reason, threads_reason

PROGRAM = r"""
import resource, sys
from maildirqmtp.descriptor_limit import MOST, raise_limit
from maildirqmtp.transport.process import PIPE, Process

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512))
raise_limit()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (512, 512)
raise_limit()
command = Process(["sh", "-c", "read x; ulimit -n"], stdin=PIPE, stdout=PIPE)
command.stdin.write(b"\n")
assert command.stdout.read() == b"64\n", "a command of select(2)'s times gets what it knows"
command.end(10.0)
print("well")
"""


def test_the_hard_limit_is_used_and_commands_have_the_old_one() -> None:
    """1,000 routes need 9,000 descriptors; ssh and sendmail are not made for so many."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "well\n", done.stderr


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EMFILE, "Too many open files; this process may have "),
        (
            errno.ENFILE,
            "Too many open files in system; this machine has no more: raise fs.file-max",
        ),
        (errno.EACCES, "Permission denied"),
    ],
)
def test_what_to_set_is_said(number: int, said: str) -> None:
    """The words of the system alone send people to search."""
    assert reason(OSError(number, os.strerror(number))).startswith(said)
    assert reason(OSError("plain")) == "plain"
    assert "TasksMax=" in threads_reason(RuntimeError("can't start new thread"))


def test_the_want_of_a_thread_is_said_without_a_descriptor() -> None:
    """Many routes use up both; the daemon ended with a traceback instead of going on."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        os.close(free)
        with pytest.raises(OSError, match="Too many open files"):
            os.open(os.devnull, os.O_RDONLY)
        said = threads_reason(RuntimeError("can't start new thread"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert said.startswith("can't start new thread; this process has ")
