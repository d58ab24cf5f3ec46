"""strace as an instrument: which system calls a run makes, and a fault at one of them."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import pytest

#: System calls that change a file, a directory or what the other side knows.
MUTATING = [
    *("unlink", "unlinkat", "link", "linkat", "symlink", "symlinkat", "rename", "renameat"),
    *("renameat2", "mkdir", "mkdirat", "rmdir", "write", "pwrite64", "writev", "ftruncate"),
    *("fsync", "fdatasync", "utimensat", "connect", "sendto", "sendmsg", "sendfile", "recvfrom"),
]

#: A call that no program makes: it fails where a tracer is there, see `template`.
_PROBE = "sched_get_priority_max"

T = TypeVar("T")

_CALL = re.compile(r"(?:(\d+) +)?([a-z_0-9]+)\((.*)")
#: A call amid which another thread has made one is shown in two parts.
_UNFINISHED = " <unfinished ...>"
_RESUMED = re.compile(r"(\d+) +<\.\.\. [a-z_0-9]+ resumed>(.*)")


@dataclass(frozen=True, slots=True)
class Call:
    """The `number`th call of its name in a thread, and its arguments as strace shows them.

    `begun` is the number of calls, of all threads, that had ended when it began.
    """

    name: str
    number: int
    shown: str
    begun: int = 0

    def __str__(self) -> str:
        """Show it as the test's reader wants it."""
        return f"{self.name} #{self.number}: {self.shown}"


@functools.cache
def can_trace() -> bool:
    """Say whether strace is installed and allowed to trace."""
    if not shutil.which("strace"):
        return False
    probe = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=kill:error=EIO", "true"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


needs_strace = pytest.mark.skipif(
    not can_trace(), reason="NO PROOF UNDER FAULTS: strace is not installed or may not trace"
)


def _optional(names: Sequence[str]) -> str:
    return ",".join(f"?{name}" for name in names)  # not every machine has all of them


def calls_of(
    names: Sequence[str], run: Callable[[list[str]], object], threads: bool = False
) -> list[Call]:
    """Return the calls of these names that a run makes, as they end; `run` gets the wrapper.

    `threads` has those of all its threads, and of its children.
    """
    follow = ["-f"] if threads else []
    with tempfile.NamedTemporaryFile("r", errors="replace") as log:
        run(["strace", *follow, "-y", "-qq", "-o", log.name, "-e", "signal=none", *_trace(names)])
        return calls_in(log)


def calls_in(log: Iterable[str]) -> list[Call]:
    """Read what strace has written."""
    count: Counter[tuple[str, str]] = Counter()
    calls: list[Call] = []
    begun: dict[str, Call] = {}
    for line in log:
        resumed = _RESUMED.match(line)
        if resumed is not None:
            thread, rest = resumed.groups()
            call = begun.pop(thread)
            calls.append(replace(call, shown=call.shown + rest))
            continue
        match = _CALL.match(line)
        if match is None:
            continue
        thread, name, shown = match.groups()
        if name == _PROBE:
            continue
        count[thread, name] += 1
        call = Call(name, count[thread, name], shown.removesuffix(_UNFINISHED), len(calls))
        if shown.endswith(_UNFINISHED):
            begun[thread] = call
        else:
            calls.append(call)
    return calls


def reachable(calls: Iterable[Call]) -> list[Call]:
    """Return the calls that a fault can be put at: strace counts in each thread for itself.

    So of those that are the nth of their name in several threads, it is the first.
    """
    found: dict[tuple[str, int], Call] = {}
    for call in calls:
        found.setdefault((call.name, call.number), call)
    return list(found.values())


def _trace(names: Sequence[str]) -> list[str]:
    return ["-e", f"trace={_optional(names)}"]


def kill_at(call: Call, threads: bool = False) -> list[str]:
    """Return the wrapper that kills the program right before this call.

    Not by --seccomp-bpf: with it, strace 6.1 does not deliver the signal. The
    program's children are not traced, so that a sendmail lives on; with `threads` they are, and
    the first thread that comes so far counts.
    """
    follow = ["-f"] if threads else []
    inject = f"inject={call.name}:signal=KILL:when={call.number}"
    return ["strace", *follow, "-qq", "-o", "/dev/null", *_trace([call.name]), "-e", inject]


def fail_at(call: Call, error: str, *, for_ever: bool, children: bool) -> list[str]:
    """Return the wrapper that makes this call fail, and all that follow it with `for_ever`.

    With `children` they may meet the error as well; that makes it quicker.
    """
    when = f"{call.number}+" if for_ever else f"{call.number}"
    inject = f"inject={call.name}:error={error}:when={when}"
    quick = ["-f", "--seccomp-bpf"] if children else []
    return ["strace", *quick, "-qq", "-o", "/dev/null", *_trace([call.name]), "-e", inject]


def attached(wrapper: Sequence[str], pid: int) -> list[str]:
    """Return a wrapper of this module as a command that traces a process, forked by a template."""
    words = [
        f"{word},?{_PROBE}" if word.startswith("trace=") else word
        for word in wrapper
        if word != "--seccomp-bpf"  # there is none for a process that is there already
    ]
    return [*words, "-e", f"inject={_PROBE}:error=EXDEV", "-p", str(pid)]


def at_each(points: Sequence[T], test: Callable[[T], None]) -> None:
    """Run a test at each of the points, two at a time; the first failure is raised."""
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(test, point) for point in points]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()


def some(points: Sequence[T], step: int, offset: int) -> list[T]:
    """Return every `step`th point, from an offset that is another one for each scenario."""
    return list(points[offset % step :: step])
