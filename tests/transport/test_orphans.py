"""As PID 1: what others leave behind is reaped, and what is ours is not."""

from __future__ import annotations

import subprocess
import sys

#: A process to which orphans come, as they do to PID 1 (prctl(2), PR_SET_CHILD_SUBREAPER).
PROGRAM = r"""
import ctypes, os, subprocess, sys, time
from maildirqmtp.transport.orphans import is_reaper, reap
from maildirqmtp.transport.process import PIPE, Process

assert not is_reaper()
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0

def zombies():
    found = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
        except OSError:
            continue
        found += fields[0] == "Z" and int(fields[1]) == os.getpid()
    return found

def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)

def orphans(count):
    parent = Process(["sh", "-c", "exec 1>&-;" + "sleep 0 & " * count + "exit 0"], stdout=PIPE)
    parent.end(10.0)
    until(lambda: zombies() == count)

orphans(5)
assert reap()
assert zombies() == 0
ours = Process(["sh", "-c", "exit 7"])
until(lambda: zombies() == 1)
reap()
assert ours.exits(10.0)
assert ours.reap() == 7, "the exit status of our own command is lost"
assert reap()
orphans(3)
assert reap()
assert zombies() == 0
running = Process(["sleep", "60"])
assert reap()
running.end(0.0)
print("well")
"""


def test_orphans_are_reaped_and_our_own_commands_are_not() -> None:
    """A container without an init fills up with zombies; a bounce's exit code must not get lost."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "well\n", done.stderr
