"""What is promised is on disk first: the order of fsync and promise, read from a trace.

A kill does not show a missing fsync, and a power cut only by luck. Here the trace
of one clean run per scenario is read like a journal: what has been written,
linked, renamed or made is not durable until its file, or its directory, has been
fsynced; and nothing may be promised on what is not durable.

    | promise                                  | what has to be durable                   |
    | ---------------------------------------- | ---------------------------------------- |
    | a K, or the name that --enqueue prints   | everything                               |
    | a file gets its name                     | what is in it                            |
    | a message gets its name in new/          | and its sidecar, if it has one           |
    | a sidecar takes its place                | what was written before: failed, bounced |
    | a message leaves new/                    | all but earlier removals, and sent mail  |
    | a sidecar leaves envelope/               | everything: the removal of its message   |
    | the end of a run                         | everything                               |
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.faults import tracing
from tests.faults.scenarios import SCENARIOS, Scenario
from tests.faults.telling import telling
from tests.faults.tracing import Call

pytestmark = tracing.needs_strace

_CALLS = [
    *("write", "fsync", "fdatasync", "link", "linkat", "rename", "renameat", "renameat2"),
    *("mkdir", "mkdirat", "unlink", "unlinkat", "sendto"),
]
_AT = r'(?:AT_FDCWD<[^>]*>|\d+<(?P<dir{0}>[^>]*)>), "(?P<name{0}>[^"]*)"'
_ONE = re.compile(_AT.format(1))
_TWO = re.compile(_AT.format(1) + ", " + _AT.format(2))
_FD = re.compile(r"(\d+)<([^>]*)>")


def _path(match: re.Match[str], number: int) -> str:
    return os.path.join(match[f"dir{number}"] or "", match[f"name{number}"])


class _Journal:
    """Reads calls; `broken` says which promises stood on what was not durable."""

    def __init__(self, root: Path, kept: Path) -> None:
        self.broken: list[str] = []
        self._new = str(root / "maildir" / "new")
        self._envelope = str(root / "maildir" / "envelope")
        self._kept = str(kept)
        #: Files, and directories with what has come; directories from which something went.
        self._dirty: set[str] = set()
        self._removed: set[str] = set()

    def read(self, call: Call) -> None:
        """Take in one call."""
        if not call.shown.rpartition(" = ")[2].strip().isdigit():
            return  # it did not succeed
        if ".maildirqmtp-state.json" in call.shown:
            return  # to lose it loses no mail, so it is not made durable
        one = _ONE.match(call.shown)
        two = _TWO.match(call.shown)
        fd = _FD.match(call.shown)
        if call.name in ("write", "sendto") and fd is not None:
            if call.shown.startswith("(deleted)", fd.end()):
                return  # a file without a name is gone with its process, and nobody's promise
            if "/faults-" in fd[2]:
                self._dirty.add(fd[2])
            elif fd[1] == "1":
                self._promise(call, self._dirty | self._removed)
        elif "sync" in call.name and fd is not None:
            self._dirty.discard(fd[2])
            self._removed.discard(fd[2])
        elif two is not None:
            directory = os.path.dirname(_path(two, 2))
            if directory == self._envelope:
                # Several messages' sidecars may become durable together.
                self._promise(call, self._dirty - self._sent() - {self._envelope})
            else:
                needed = {_path(two, 1)} | ({self._envelope} if directory == self._new else set())
                self._promise(call, self._dirty & needed)
            self._dirty.add(directory)
        elif call.name.startswith("mkdir"):
            made = _path(one, 1) if one is not None else call.shown.split('"')[1]
            self._dirty.add(os.path.dirname(made))
        elif one is not None:
            self._remove(call, _path(one, 1))

    def end(self) -> None:
        """Take in the end of the run."""
        self._promise("the end of the run", self._dirty | self._removed)

    def _remove(self, call: Call, path: str) -> None:
        directory, name = os.path.split(path)
        self._dirty.discard(path)
        if directory == self._new and not name.startswith("."):
            self._promise(call, self._dirty - self._sent())
            self._removed.add(directory)
        elif directory == self._envelope:
            self._promise(call, self._dirty | self._removed)

    def _sent(self) -> set[str]:
        return {path for path in self._dirty if path.startswith(self._kept)}

    def _promise(self, call: Call | str, not_durable: set[str]) -> None:
        # What has a name in tmp/ only is nobody's.
        waiting = {path for path in not_durable if os.path.basename(path) != "tmp"}
        if waiting:
            self.broken.append(f"{call} while not durable: {sorted(waiting)}")


@pytest.mark.parametrize("scenario", SCENARIOS, ids=[s.slug for s in SCENARIOS])
def test_promised_only_what_is_durable(tmp_path: Path, scenario: Scenario) -> None:
    """A power cut right after a promise takes nothing back."""
    with telling(scenario, tmp_path) as stage:
        calls = tracing.calls_of(_CALLS, stage.faulty)
        sent = [word for word in map(str, getattr(stage, "flags", [])) if word.endswith("/sent")]
        journal = _Journal(stage.root, Path(sent[0]) if sent else stage.root / "sent")
    for call in calls:
        journal.read(call)
    journal.end()
    assert not journal.broken
