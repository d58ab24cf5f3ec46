"""Old mail goes from the sent and the failed maildir only, and whatever goes wrong harms none."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.retention import LOOK_S, Retention
from maildirqmtp.forwarder.route import Route
from maildirqmtp.maildir import expiry, trusted_clock
from maildirqmtp.maildir.files import Folder
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.trusted_clock import Reading
from maildirqmtp.transport.endpoint import TcpEndpoint
from tests.fakes import FileSystem
from tests.helpers import add_message, add_sidecar, make_maildir, names, open_descriptors

DAY_S = 86_400.0
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for other users")


class Bench:
    """A maildir, one of sent and one of failed messages, kept for 30 and 90 days; and the time."""

    def __init__(self, root: Path) -> None:
        self.path = make_maildir(root / "M")
        self.sent = make_maildir(root / "sent")
        self.failed = make_maildir(self.path / ".Failed")
        self.maildir = Maildir(os.fsencode(self.path))
        self.days = 0.0
        self.log = io.StringIO()
        self.data = io.StringIO()
        self.begin()

    def begin(self, verbosity: int = 0, **options: Any) -> None:
        """Begin a run, or a route of a daemon, with these options."""
        chosen: dict[str, Any] = {"sent": os.fsencode(self.sent), "keep_sent_s": 30 * DAY_S}
        chosen |= {"keep_failed_s": 90 * DAY_S, **options}
        self.report = Report(self.log, self.data, verbosity)
        route = Route(os.fsencode(self.path), TcpEndpoint("h"), **chosen)
        self.retention = Retention(
            route, self.report, self.maildir, lambda: time.time() + self.days * DAY_S
        )

    def look(self, days: float) -> int:
        """Look so many days from now; return the portions that took."""
        self.days = days
        return sum(1 for _ in self.retention.portions())

    @property
    def lines(self) -> list[str]:
        """What was said."""
        return [line.partition(": ")[2] for line in self.log.getvalue().splitlines()]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """With a message in each of the three."""
    made = Bench(tmp_path)
    for place in (made.path, made.sent, made.failed):
        add_message(place, "1.a")
    yield made
    made.maildir.close()


def test_each_is_kept_for_its_own_time(bench: Bench) -> None:
    """And what waits is never touched."""
    bench.look(29)
    assert bench.lines == []
    bench.look(30.2)
    assert (names(bench.sent / "new"), names(bench.failed / "new")) == ([], ["1.a"])
    for days in (60, 91, 92):  # after a month and more, the clock has to be confirmed
        bench.look(days)
    assert names(bench.failed / "new") == []
    assert names(bench.path / "new") == ["1.a"]
    assert bench.lines == [
        f"keep-sent: 1 removed from {bench.sent}",
        f"keep-failed: 1 removed from {bench.failed}",
    ]
    assert bench.report.counters.exit_code == 0


def test_what_is_removed_is_an_event(bench: Bench) -> None:
    """For scripts; with -q the log says nothing of it."""
    bench.begin(verbosity=-1)
    bench.look(31)
    assert bench.lines == []
    assert json.loads(bench.data.getvalue()) == {
        "event": "expired",
        "maildir": str(bench.sent),
        "messages": 1,
        "setting": "keep-sent",
    }


@pytest.mark.parametrize(
    ("options", "left"),
    [({"keep_sent_s": None}, (1, 0)), ({"keep_failed_s": None}, (0, 1)), ({"sent": None}, (1, 0))],
)
def test_what_is_not_asked_for_is_not_done(
    bench: Bench, options: dict[str, Any], left: tuple[int, int]
) -> None:
    """Off by default, each by itself."""
    bench.begin(**options)
    bench.look(91)
    assert (len(names(bench.sent / "new")), len(names(bench.failed / "new"))) == left


def test_another_failed_maildir(bench: Bench, tmp_path: Path) -> None:
    """That of the route, not the one inside the maildir."""
    other = make_maildir(tmp_path / "other")
    add_message(other, "1.a")
    (tmp_path / "link").symlink_to(other)
    bench.begin(failed=os.fsencode(tmp_path / "link"))
    bench.look(91)
    assert (names(other / "new"), names(bench.failed / "new")) == ([], ["1.a"])


def test_where_nothing_was_ever_kept_nothing_is_made(bench: Bench, tmp_path: Path) -> None:
    """Nor said."""
    bench.begin(sent=os.fsencode(tmp_path / "later"), failed=os.fsencode(tmp_path / "never"))
    assert bench.look(91) == 0
    assert list(bench.retention.count()) == []
    assert (bench.lines, names(tmp_path)) == ([], ["M", "sent"])


# When


def test_it_is_looked_at_every_few_hours_by_one_of_all(bench: Bench) -> None:
    """cron may run each minute, and ten routes may share the maildir."""
    assert bench.look(31) == 2
    add_message(bench.sent, "1.b")
    bench.begin()
    assert bench.look(31 + (LOOK_S - 60) / DAY_S) == 0
    assert names(bench.sent / "new") == ["1.b"]
    assert bench.look(31 + (LOOK_S + 60) / DAY_S) == 2
    assert names(bench.sent / "new") == []


def test_what_is_kept_for_a_short_time_is_looked_at_more_often(bench: Bench) -> None:
    """An hour would be seven, and a second no more than that."""
    assert bench.retention.look_every_s == LOOK_S
    bench.begin(keep_sent_s=3_600.0)
    assert bench.retention.look_every_s == 360.0
    bench.begin(keep_sent_s=1.0)
    assert bench.retention.look_every_s == 1.0


def test_a_clock_that_was_set_back_does_not_put_it_off(bench: Bench) -> None:
    """The last look would seem to be one of next year."""
    bench.look(365)
    add_message(bench.sent, "1.b")
    assert bench.look(31) > 0
    assert names(bench.sent / "new") == []


def test_a_clock_that_jumps_forward_empties_nothing(bench: Bench) -> None:
    """Not the only copies of what has failed; put right, it goes on."""
    bench.look(0)
    bench.look(4_000)
    bench.look(4_000.3)
    assert names(bench.sent / "new") == names(bench.failed / "new") == ["1.a"]
    for days in (1, 2, 31):
        bench.look(days)
    assert bench.lines == []
    bench.look(31.6)
    assert names(bench.sent / "new") == []


def test_a_look_that_was_left_is_begun_anew(bench: Bench) -> None:
    """Killed, or told to stop; what was removed until then is said."""
    bench.days = 31
    portions = bench.retention.portions()
    next(portions)
    portions.close()
    assert bench.lines == [f"keep-sent: 1 removed from {bench.sent}"]
    assert trusted_clock.read(bench.maildir.root) is None
    add_message(bench.sent, "1.b")
    assert bench.look(31) == 2
    assert names(bench.sent / "new") == []


# Others at work


def test_others_get_at_the_maildir_between_two_portions(bench: Bench) -> None:
    """`qmtpq resend` and `qmtpq bounce` lock it; within a portion nothing changes below them."""
    bench.begin(keep_sent_s=None)
    bench.days = 91
    portions = bench.retention.portions()
    next(portions)
    with Maildir(os.fsencode(bench.failed)) as qmtpq:
        qmtpq.lock()
        add_message(bench.failed, "1.b", folder="cur")
        assert list(portions) == []
        assert names(bench.failed / "cur") == ["1.b"]
    bench.look(91)
    assert names(bench.failed / "cur") == []
    assert bench.lines == [f"keep-failed: 1 removed from {bench.failed}"] * 2


HOLDER = """
import os, sys
from maildirqmtp.maildir.maildir import Maildir
with Maildir(os.fsencode(sys.argv[1])) as maildir:
    maildir.lock()
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_nothing_is_removed_while_another_process_has_it(bench: Bench) -> None:
    """Nor said: it is `qmtpq`, or removes old mail itself, and soon done."""
    command = [sys.executable, "-c", HOLDER, str(bench.failed)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "locked\n"
        bench.begin(keep_sent_s=None)
        bench.look(91)
        other.stdin.close()
        assert names(bench.failed / "new") == ["1.a"]
    assert bench.lines == []
    bench.look(92)
    assert names(bench.failed / "new") == []


def test_a_lock_whose_holder_lets_go_at_that_moment_is_no_fault(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log would say that the maildir is locked by another, and name nobody."""
    bench.begin(keep_sent_s=None)
    lock = Maildir.lock
    with Maildir(os.fsencode(bench.failed)) as other:
        other.lock()

        def then_free(maildir: Maildir) -> None:
            try:
                lock(maildir)
            finally:
                other.unlock()

        monkeypatch.setattr(Maildir, "lock", then_free)
        bench.look(91)
    assert bench.lines == []


def test_a_lock_that_can_never_be_had_is_said(bench: Bench) -> None:
    """What has failed would stay for ever."""
    (bench.failed / ".maildirqmtp-lock").mkdir()
    bench.begin(keep_sent_s=None)
    bench.look(91)
    assert "cannot open the lock file" in bench.lines[0]
    assert names(bench.failed / "new") == ["1.a"]


@pytest.mark.parametrize("file", ["state.json", "state-shard-0-2.json", "status-p-.json"])
def test_a_queue_is_not_taken_for_sent_mail(bench: Bench, file: str) -> None:
    """Mail that waits there is somebody's; other files of ours say nothing of that."""
    for name in (".maildirqmtp-lock", ".maildirqmtp-clock"):
        (bench.sent / name).touch()
    (bench.sent / f".maildirqmtp-{file}").touch()
    bench.look(31)
    assert names(bench.sent / "new") == ["1.a"]
    assert "it is forwarded itself, or was" in bench.lines[0]
    with pytest.raises(LocalError, match=f"maildirqmtp-{file} in it tells"):
        list(bench.retention.count())
    (bench.sent / f".maildirqmtp-{file}").unlink()
    bench.look(31)
    assert names(bench.sent / "new") == []


@pytest.mark.parametrize("part", ["new", "cur"])
@pytest.mark.parametrize("theirs", ["new", "cur"])
def test_the_maildir_itself_is_recognised_whatever_leads_there(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, part: str, theirs: str
) -> None:
    """A bind mount is no link that could be seen when the command line is read."""
    folder = getattr(bench.maildir, part)
    real, opened = Maildir._enter, []

    def enter(self: Maildir, name: bytes, parent: Any, nofollow: bool = False) -> Folder:
        found = real(self, name, parent, nofollow)
        if name == theirs.encode():
            os.dup2(folder.fd, found.fd)
            opened.append(found)
        return found

    add_message(bench.path, "1.b", folder="cur")
    monkeypatch.setattr(Maildir, "_enter", enter)
    bench.look(91)
    assert opened
    assert bench.lines[0] == f"keep-sent: {bench.sent} is the maildir that is forwarded"
    assert (names(bench.path / "new"), names(bench.path / "cur")) == (["1.a"], ["1.b"])


# Where it leads


def test_a_link_that_the_route_does_not_name_is_not_followed(bench: Bench, tmp_path: Path) -> None:
    """Its owner may have put it in place of .Failed, to have another's mail removed."""
    victim = make_maildir(tmp_path / "victim")
    add_message(victim, "1.a")
    bench.failed.rename(tmp_path / "away")
    bench.failed.symlink_to(victim)
    bench.begin(keep_sent_s=None)
    bench.look(91)
    assert names(victim / "new") == ["1.a"]
    assert "symbolic link, which is not followed" in bench.lines[0]


@pytest.mark.parametrize("part", ["new", "cur", "tmp", "envelope"])
def test_nor_is_one_inside(bench: Bench, tmp_path: Path, part: str) -> None:
    """Likewise."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "1.a.json").touch()
    os.utime(victim / "1.a.json", (1, 1))
    (bench.failed / "envelope").mkdir()
    (bench.failed / part).rename(tmp_path / "away")
    (bench.failed / part).symlink_to(victim)
    bench.begin(keep_sent_s=None)
    bench.look(91)
    assert names(victim) == ["1.a.json"]
    assert len(bench.lines) == 1


@root_only
def test_root_leaves_another_users_maildir_alone(bench: Bench) -> None:
    """Put in place of .Failed by whoever may rename it there; one that is named is meant."""
    for place in (bench.path, bench.path / "new"):
        os.chown(place, 1_000, 1_000)
    with Maildir(os.fsencode(bench.path)) as bench.maildir:
        for place in (bench.failed, *bench.failed.iterdir()):
            os.chown(place, 1_001, 1_001)
        bench.begin(keep_sent_s=None)
        bench.look(91)
        assert "belongs to user 1001, who is not the maildir's owner" in bench.lines[0]
        assert names(bench.failed / "new") == ["1.a"]
        bench.begin(keep_sent_s=None, failed=os.fsencode(bench.failed))
        os.chown(bench.failed / "cur", 1_002, 1_002)
        bench.look(91)
        assert names(bench.failed / "new") == ["1.a"]
        os.chown(bench.failed / "cur", 1_001, 1_001)
        bench.look(91)
        assert names(bench.failed / "new") == []
    assert (bench.failed / ".maildirqmtp-clock").stat().st_uid == 1_001


def test_who_is_not_root_looks_wherever_they_may(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue that a group shares: the system says what may be removed."""
    monkeypatch.setattr(os, "geteuid", lambda: 1_234)
    with Maildir(os.fsencode(bench.path)) as bench.maildir:
        bench.begin(keep_sent_s=None)
        bench.look(91)
    assert names(bench.failed / "new") == []


# What goes wrong


def test_what_goes_wrong_is_said_once_and_changes_no_exit_code(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of this mail is done with. Also with -q: nobody would find out."""
    bench.begin(verbosity=-1)
    calls = FileSystem(monkeypatch, bench.path)
    calls.always_fail("unlink .Failed/new", errno.EROFS)
    for days in (91, 91.5, 92):
        bench.look(days)
    said = f"keep-failed: cannot remove {bench.failed}/new/1.a: Read-only file system"
    assert bench.lines == [said]
    assert names(bench.sent / "new") == [], "the other one is looked at all the same"
    assert bench.report.counters.exit_code == 0
    events = [json.loads(line) for line in bench.data.getvalue().splitlines()]
    assert {"event": "warning", "text": said} in events


@pytest.mark.parametrize("call", ["listdir", "fstat"])
def test_a_maildir_that_cannot_be_looked_at_is_said(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Out of descriptors, a disk that fails: no traceback, which would end a route of a daemon."""
    real = getattr(os, call)

    def broken(fd: int) -> object:
        if os.readlink(f"/proc/self/fd/{fd}") in (str(bench.sent), str(bench.sent / "cur")):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd)

    def enter(self: Retention, *arguments: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, call, broken)
            check(self, *arguments)

    check = Retention._check
    monkeypatch.setattr(Retention, "_check", enter)
    bench.look(31)
    assert bench.lines == [f"keep-sent: cannot look at {bench.sent}: Input/output error"]
    assert names(bench.sent / "new") == ["1.a"]


def test_what_is_no_maildir_is_said(bench: Bench) -> None:
    """A typing error."""
    (bench.sent / "cur").rmdir()
    bench.look(31)
    assert bench.lines == [
        f"keep-sent: cannot open the maildir directory {bench.sent}/cur: No such file or "
        f"directory; is it a maildir? if so: mkdir {bench.sent}/cur"
    ]


def test_on_a_full_disk_old_mail_goes_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what makes room, also for the note of when that was."""
    seen: list[list[str]] = []

    def write(root: object, reading: Reading) -> None:
        seen.append(names(bench.sent / "new"))
        raise LocalError("no room")

    monkeypatch.setattr(trusted_clock, "write", write)
    bench.begin(keep_failed_s=None)
    bench.look(31)
    assert seen == [[]]
    assert bench.lines == [f"keep-sent: 1 removed from {bench.sent}", "keep-sent: no room"]


def test_no_descriptor_is_left_open(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a look is through, left, or refused."""
    add_sidecar(bench.failed, "1.a", "s@x", "r@y")
    before = open_descriptors()
    bench.look(31)
    monkeypatch.setattr(expiry, "PORTION_FILES", 1)
    bench.days = 91
    portions = bench.retention.portions()
    next(portions)
    portions.close()
    (bench.failed / ".maildirqmtp-state.json").touch()
    bench.look(95)
    assert open_descriptors() == before


# --dry-run


def test_a_count_that_is_not_whole_is_none(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would look for the rest."""

    def broken(fd: int) -> object:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "scandir", broken)
    with pytest.raises(LocalError, match="cannot list"):
        list(bench.retention.count())


def test_how_many_would_go(bench: Bench) -> None:
    """As a run now would have it; nothing is changed, not even a lock made."""
    add_message(bench.sent, "1.b")
    bench.days = 31
    before = names(bench.sent)
    found = [(kept.key, kept.path, count) for kept, count in bench.retention.count()]
    assert found == [
        ("keep-sent", os.fsencode(bench.sent), 2),
        ("keep-failed", os.fsencode(bench.failed), 0),
    ]
    assert (names(bench.sent), names(bench.sent / "new")) == (before, ["1.a", "1.b"])
    bench.look(0)
    bench.days = 4_000
    assert [count for _, count in bench.retention.count()] == [0, 0], "the clock has jumped"
