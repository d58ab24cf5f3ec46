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
        self._tmp = str(root / "maildir" / "tmp")
        self._envelope = str(root / "maildir" / "envelope")
        self._kept = str(kept)
        #: Files, and directories with what has come; directories from which something went.
        #: With each the number of the call that made it so.
        self._dirty: dict[str, int] = {}
        self._removed: dict[str, int] = {}
        self._calls = -1

    def read(self, call: Call) -> None:
        """Take in one call."""
        self._calls += 1
        if not call.shown.rpartition(" = ")[2].strip().isdigit():
            return  # it did not succeed
        if any(f".maildirqmtp-{what}" in call.shown for what in ("state", "room", "probe")):
            return  # to lose these loses no mail, so they are not made durable
        one = _ONE.match(call.shown)
        two = _TWO.match(call.shown)
        fd = _FD.match(call.shown)
        if call.name in ("write", "sendto") and fd is not None:
            if call.shown.startswith("(deleted)", fd.end()):
                return  # a file without a name is gone with its process, and nobody's promise
            if "/faults-" in fd[2]:
                self._dirty[fd[2]] = self._calls
            elif fd[1] == "1":
                self._promise(call, self._not_durable)
        elif "sync" in call.name and fd is not None:
            for changed in (self._dirty, self._removed):
                # An fsync does nothing for what another thread has changed meanwhile.
                if changed.get(fd[2], call.begun) < call.begun:
                    del changed[fd[2]]
        elif two is not None:
            directory = os.path.dirname(_path(two, 2))
            if directory == self._envelope:
                # Several messages' sidecars may become durable together, while others are written.
                staged = {path for path in self._dirty if os.path.dirname(path) == self._tmp}
                others = self._sent() | {self._envelope} | staged - {_path(two, 1)}
                self._promise(call, self._dirty.keys() - others)
            else:
                needed = {_path(two, 1)} | ({self._envelope} if directory == self._new else set())
                self._promise(call, self._dirty.keys() & needed)
            self._dirty[directory] = self._calls
        elif call.name.startswith("mkdir"):
            made = _path(one, 1) if one is not None else call.shown.split('"')[1]
            self._dirty[os.path.dirname(made)] = self._calls
        elif one is not None:
            self._remove(call, _path(one, 1))

    def end(self) -> None:
        """Take in the end of the run."""
        self._promise("the end of the run", self._not_durable)

    @property
    def _not_durable(self) -> set[str]:
        return self._dirty.keys() | self._removed.keys()

    def _remove(self, call: Call, path: str) -> None:
        directory, name = os.path.split(path)
        self._dirty.pop(path, None)
        if directory == self._new and not name.startswith("."):
            self._promise(call, self._dirty.keys() - self._sent())
            self._removed[directory] = self._calls
        elif directory == self._envelope:
            self._promise(call, self._not_durable)

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
        calls = tracing.calls_of(_CALLS, stage.faulty, scenario.threads)
        sent = [word for word in map(str, getattr(stage, "flags", [])) if word.endswith("/sent")]
        journal = _Journal(stage.root, Path(sent[0]) if sent else stage.root / "sent")
    assert any("sync" in call.name for call in calls)
    for call in calls:
        journal.read(call)
    journal.end()
    assert not journal.broken


def test_an_fsync_counts_for_what_was_there_when_it_began(tmp_path: Path) -> None:
    """Of several threads: a link that came meanwhile may be lost."""
    new = tmp_path / "maildir" / "new"
    log = [
        f'1 linkat(5<{tmp_path}/maildir/tmp>, "a", 6<{new}>, "a", 0) = 0',
        f"1 fsync(6<{new}> <unfinished ...>",
        f'2 linkat(5<{tmp_path}/maildir/tmp>, "b", 6<{new}>, "b", 0) = 0',
        "1 <... fsync resumed>) = 0",
        '3 write(1<socket:[1]>, "3:Kok,", 6) = 6',
        f"2 fsync(6<{new}>) = 0",
        '3 write(1<socket:[1]>, "3:Kok,", 6) = 6',
    ]
    calls = tracing.calls_in(log)
    assert [call.begun for call in calls] == [0, 1, 1, 3, 4, 5]
    journal = _Journal(tmp_path, tmp_path / "sent")
    for call in calls:
        journal.read(call)
    assert len(journal.broken) == 1
    assert "write #1" in journal.broken[0]
