"""Settling: after a crash at any point every recipient has it, is owed it, or is listed as failed.

The order of the calls is what holds that promise, so the tests look at it.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.forwarder import removed
from maildirqmtp.forwarder.attempts import AttemptNotes
from maildirqmtp.forwarder.queued_message import QueuedMessage, prepare
from maildirqmtp.forwarder.removals import SYNC_REMOVALS, SYNC_S
from maildirqmtp.forwarder.route import BounceMethod, BounceVia
from maildirqmtp.maildir import writing
from maildirqmtp.maildir.files import Message
from maildirqmtp.maildir.maildir import Maildir
from tests.fakes import FileSystem
from tests.forwarder.doubles import NOW, SettlerCase
from tests.helpers import add_message, make_maildir, names, sidecar, snapshot

DAY_S = 86_400.0


class Case(SettlerCase):
    """A maildir with a settler, and the calls that it makes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        super().__init__(root)
        self._monkeypatch = monkeypatch
        self.open()

    def open(
        self,
        *,
        sent: str | None = None,
        failed: str | None = None,
        **options: object,
    ) -> None:
        """Make a settler for a route with these options."""
        self.make(
            sent=None if sent is None else os.fsencode(self.root / sent),
            failed=None if failed is None else os.fsencode(self.root / failed),
            **options,
        )

    def watch(self) -> FileSystem:
        """Write down every call from here on."""
        return FileSystem(self._monkeypatch, self.root)

    def add_sidecar(
        self, path: Path, name: str, recipients: tuple[str, ...], **more: object
    ) -> None:
        """Put a sidecar into a maildir."""
        (path / "envelope").mkdir(exist_ok=True)
        content = {"version": 1, "sender": "s@x", "recipients": recipients} | more
        (path / "envelope" / f"{name}.json").write_text(json.dumps(content))

    def sidecar(self, path: Path | None = None, name: str = "1.a") -> dict[str, object]:
        """Read a sidecar."""
        return sidecar(path or self.path, name)

    @property
    def lines(self) -> str:
        """The log."""
        return self.log.getvalue()

    @property
    def counts(self) -> tuple[int, int, int, int, int]:
        """Accepted, deferred, failed, held, trouble."""
        c = self.report.counters
        return c.accepted, c.deferred, c.failed, c.held, c.problems


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Case]:
    """An empty maildir with a settler."""
    made = Case(monkeypatch, tmp_path)
    yield made
    made.maildir.close()


# All accepted


def test_accepted_is_removed_and_synced_a_second_later(case: Case) -> None:
    """One fsync for each message would make it as slow as the disk."""
    one, two = case.add("1.a"), case.add("2.a")
    assert case.settler.next_deadline is None
    system = case.watch()
    case.settle(one, "Kok")
    start = case.clock()
    case.clock.advance(SYNC_S / 2)
    case.settle(two, "Kok")
    assert case.settler.next_deadline == start + SYNC_S
    case.settler.tick()
    assert system.calls == ["unlink M/new/1.a", "unlink M/new/2.a"]
    case.clock.advance(SYNC_S / 2)
    case.settler.tick()
    case.wait_until_synced()
    case.settler.tick()
    assert system.calls == ["unlink M/new/1.a", "unlink M/new/2.a", "fsync M/new"]
    assert case.settler.next_deadline is None
    case.settler.finish()
    assert case.counts == (2, 0, 0, 0, 0)


def test_a_thousand_removals_are_synced_at_once(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most so many come back after a power cut."""
    messages = [case.add(f"{n}.a") for n in range(SYNC_REMOVALS + 1)]
    system = case.watch()
    for one in messages[:-1]:
        case.settle(one, "Kok")
    case.wait_until_synced()
    case.settle(messages[-1], "Kok")
    assert system.calls[SYNC_REMOVALS] == "fsync M/new"
    assert system.of("fsync") == ["fsync M/new"]
    case.settler.finish()
    assert system.of("fsync") == ["fsync M/new"] * 2


def test_sidecars_go_after_the_removal_is_durable(case: Case) -> None:
    """The other way round, a power cut leaves a message whose lines would be trusted."""
    one, two, three = case.add("1.a", "a@y", "b@y"), case.add("2.a"), case.add("3.a", "c@y")
    system = case.watch()
    case.settle(one, "Kok", "Kok")
    case.settle(two, "Kok")
    case.settle(three, "Kok")
    case.settler.finish()
    assert system.calls == [
        "unlink M/new/1.a",
        "unlink M/new/2.a",
        "unlink M/new/3.a",
        "fsync M/new",
        "unlink M/envelope/1.a.json",
        "unlink M/envelope/3.a.json",
    ]
    assert names(case.path / "envelope") == []


def test_with_cur_each_directory_is_synced(case: Case) -> None:
    """The removal of a message in cur/ is not made durable by new/."""
    add_message(case.path, "1.a:2,S", folder="cur")
    one = prepare(case.maildir, case.route, case.maildir.cur, b"1.a:2,S")
    assert isinstance(one, QueuedMessage)
    two = case.add("2.a")
    system = case.watch()
    case.settle(one, "Kok")
    case.settle(two, "Kok")
    case.settler.finish()
    assert sorted(system.of("fsync")) == ["fsync M/cur", "fsync M/new"]


def test_a_message_that_somebody_removed_is_done(case: Case) -> None:
    """A mail reader was faster; where it may be now, its sidecar must go on being believed."""
    one = case.add("1.a", "a@y")
    (case.path / "new" / "1.a").unlink()
    case.settle(one, "Kok")
    case.settler.finish()
    assert case.counts == (1, 0, 0, 0, 0)
    assert names(case.path / "envelope") == ["1.a.json"]


def test_a_message_that_changed_is_kept(case: Case) -> None:
    """What the name is now, nobody has sent."""
    one, two = case.add("1.a", "a@y"), case.add("2.a")
    with (case.path / "new" / "1.a").open("ab") as file:
        file.write(b"more")
    kept = case.settle(one, "Kok")
    assert kept is not None, "the daemon would forget it"
    assert kept.at_next_scan
    assert case.settle(two, "Kok") is None
    case.settler.finish()
    assert case.new == ["1.a"]
    assert case.sidecar()["recipients"] == ["a@y"]
    assert case.settler.local_error is None
    assert kept.reason == "it changed while it was being sent; kept, to be sent as it is now"
    assert "held" not in case.lines, "it may go in this run"


# --sent


def test_sent_takes_the_message_before_it_goes(case: Case) -> None:
    """By link and unlink, and the archive is durable before the removal is."""
    case.open(sent="Sent")
    one, two = case.add("1.a", "a@y"), case.add("2.a")
    case.settler.prove_sent()
    system = case.watch()
    case.settle(one, "Kok")
    case.settle(two, "Kok")
    case.settler.finish()
    moved = [
        [
            f"link M/new/{n} -> Sent/tmp/*",
            f"link Sent/tmp/* -> Sent/new/{n}",
            "unlink Sent/tmp/*",
            f"unlink M/new/{n}",
        ]
        for n in ("1.a", "2.a")
    ]
    assert system.calls == [
        *moved[0],
        *moved[1],
        "fsync Sent/new",
        "fsync M/new",
        "unlink M/envelope/1.a.json",
    ]
    assert case.new == []
    assert names(case.root / "Sent" / "new") == ["1.a", "2.a"]


def test_the_archive_is_synced_first_whatever_came_before(case: Case) -> None:
    """A message in neither place after a power cut is an archive with a hole."""
    case.open(sent="Sent")
    one, two = case.add("1.a"), case.add("2.a")
    case.settler.prove_sent()
    case.settle(one, "Dno")
    system = case.watch()
    case.settle(two, "Kok")
    case.settler.finish()
    assert system.of("fsync") == ["fsync Sent/new", "fsync M/new"]


def test_sent_is_proved_before_anything_is_sent(case: Case) -> None:
    """Else every run sends all of it again."""
    (case.root / "file").write_bytes(b"")
    case.open(sent="file/Sent")
    with pytest.raises(LocalError, match="file/Sent"):
        case.settler.prove_sent()
    case.open()
    case.settler.prove_sent()


def test_sent_that_fails_keeps_the_message(case: Case) -> None:
    """And takes it at the end, when there is room again."""
    case.open(sent="Sent")
    one = case.add("1.a", "a@y")
    system = case.watch()
    system.fail("link Sent/tmp/*", errno.ENOSPC)
    case.settle(one, "Kok")
    assert case.settler.local_error is not None
    assert case.new == ["1.a"]
    case.settler.finish()
    assert case.new == []
    assert names(case.root / "Sent" / "new") == ["1.a"]
    assert names(case.path / "envelope") == []
    assert case.report.counters.exit_code == 111


def test_sent_of_a_message_that_changed_keeps_it(case: Case) -> None:
    """Neither archived as sent nor removed."""
    case.open(sent="Sent")
    one = case.add("1.a")
    with (case.path / "new" / "1.a").open("ab") as file:
        file.write(b"more")
    kept = case.settle(one, "Kok")
    case.settler.finish()
    assert case.new == ["1.a"]
    assert names(case.root / "Sent" / "new") == []
    assert kept is not None
    assert kept.at_next_scan


@pytest.mark.parametrize("bounce", [False, True], ids=["failed", "bounced"])
@pytest.mark.parametrize(
    ("first", "then", "was_sent"),
    [
        ("KD", "", True),
        ("DK", "", True),
        ("DD", "", False),
        ("KZ", "K", True),
        ("KZ", "D", True),
        ("DZ", "K", True),
        ("DZ", "D", False),
        ("-K", "D", True),
    ],
)
def test_sent_keeps_what_any_of_its_recipients_has_got(
    case: Case, bounce: bool, first: str, then: str, was_sent: bool
) -> None:
    """One wrong address among ten, and the archive had a hole, without a word."""
    via = BounceVia(BounceMethod.MAILDIR, os.fsencode(case.root / "Bounces"))
    case.open(sent="Sent", bounce=bounce, bounce_via=via)
    one = case.add("1.a", "r0@y", "r1@y")
    case.settle(one, *[None if answer == "-" else f"{answer}text" for answer in first])
    case.settler.finish()
    if then:
        assert names(case.root / "Sent" / "new") == [], "it is moved when nobody is owed it"
        case.open(sent="Sent", bounce=bounce, bounce_via=via)  # the next run
        again = case.load("1.a")
        case.settler.attempts.earlier(again, [0])  # reads the state file, as the forwarder does
        case.settle(again, f"{then}text")
        case.settler.finish()
    assert case.new == names(case.path / "envelope") == []
    assert names(case.root / "Sent" / "new") == (["1.a"] if was_sent else [])
    state = json.loads((case.path / ".maildirqmtp-state.json").read_text()) if then else {}
    assert "accepted" not in state


def test_without_an_archive_nobody_notes_who_has_got_what(case: Case) -> None:
    """The state file would be written for nothing."""
    case.settle(case.add("1.a", "r0@y", "r1@y"), "Kok", "Dno")
    case.settler.finish()
    assert not (case.path / ".maildirqmtp-state.json").exists()


# Some deferred


def test_deferred_changes_nothing(case: Case) -> None:
    """Not even the inode: backup and mail reader see the same maildir."""
    one, two = case.add("1.a"), case.add("2.a", "a@y", "b@y")
    before = snapshot(case.path)
    system = case.watch()
    case.settle(one, "Zlater")
    case.settle(two, "Zlater", "Zlater")
    assert system.calls == []
    case.settler.finish()
    assert [call for call in system.calls if "state.json" not in call] == []
    assert snapshot(case.path) == before
    assert case.counts == (0, 3, 0, 0, 0)
    assert "1.a: recipient@example.net: deferred: later" in case.lines


def test_a_bounce_tells_what_was_said_before(case: Case) -> None:
    """Of a message that is too old, the last answer alone may not be the reason.

    Not what was said of another recipient, whom the sender may not know.
    """
    bounces = BounceVia(BounceMethod.MAILDIR, os.fsencode(case.root / "Bounces"))
    case.make(bounce=True, bounce_via=bounces, lifetime_s=2 * DAY_S)
    one = case.add("1.a", "a@y", "b@y")
    case.settle(one, "Zgreylisted", "Zgreylisted, too")
    case.settler.finish()
    case.make(bounce=True, bounce_via=bounces, lifetime_s=2 * DAY_S)
    case.now += 3_600.0
    case.settle(case.load(), "Kok", "Zmailbox full")
    case.now += 3 * DAY_S
    assert case.settle(case.load(), "Zoff for ever") is None
    [bounce] = names(case.root / "Bounces" / "new")
    text = (case.root / "Bounces" / "new" / bounce).read_text()
    said = [line.partition(" +0000: ")[2] for line in text.split("\n") if " +0000: " in line]
    assert said == ["<b@y>: mailbox full"]


def test_a_message_that_is_done_leaves_no_history(case: Case) -> None:
    """Another of its name is another message, and the file would grow for ever."""
    case.settle(case.add("1.a"), "Zlater")
    assert case.settler.attempts.earlier(case.load(), [0]) == ((int(NOW), "later"),)
    case.settle(case.load(), "Kok")
    assert case.settler.attempts.earlier(case.add("1.a"), [0]) == ()


def test_without_a_state_file_attempts_are_not_kept(case: Case) -> None:
    """As maildirserial has it."""
    notes = AttemptNotes(None)
    notes.note(case.add("1.a"), "later")
    assert notes.earlier(case.load(), [0]) == ()


def test_those_who_are_done_leave_the_sidecar(case: Case) -> None:
    """Or they would get it again with every try for the others."""
    one = case.add("1.a", "a@y", "b@y", "c@y")
    system = case.watch()
    case.settle(one, "Kok", "Zlater", None)
    case.settler.finish()
    assert system.calls.pop().endswith("state.json"), "what was said is noted, once, at the end"
    assert system.calls == [
        "fsync M",
        "fsync M/tmp/*",
        "rename M/tmp/* -> M/envelope/1.a.json",
        "fsync M/envelope",
    ]
    assert case.sidecar() == {"version": 1, "sender": "s@x", "recipients": ["b@y", "c@y"]}
    assert case.new == ["1.a"]
    assert case.counts == (1, 1, 0, 0, 0)
    assert case.load("1.a").recipients == (b"b@y", b"c@y")


def test_a_message_without_a_sidecar_gets_one(case: Case) -> None:
    """Its lines go on naming everybody."""
    add_message(case.path, "1.a", b"x\n")
    os.utime(case.path / "new" / "1.a", (NOW, NOW))
    case.route = case.route._replace(recipients=(b"a@y", b"b@y"))
    one = case.load("1.a")
    system = case.watch()
    case.settle(one, "Zlater", "Kok")
    assert system.of("mkdir") == ["mkdir M/envelope"]
    assert case.sidecar() == {
        "version": 1,
        "sender": "sender@example.org",
        "recipients": ["a@y"],
    }


def test_failures_that_a_sidecar_knows_stay_in_it(case: Case) -> None:
    """Somebody put them there to be seen."""
    failures = [{"recipient": "z@y", "response": "Dno", "at": "2026-01-31T12:00:00Z"}]
    add_message(case.path, "1.a")
    case.add_sidecar(case.path, "1.a", ("a@y", "b@y"), failures=failures)
    one = case.load("1.a")
    case.settle(one, "Kok", "Zlater")
    assert case.sidecar()["failures"] == failures


def test_recipients_of_other_routes_stay(case: Case) -> None:
    """A message for two branches goes when both have it."""
    case.open(prefix=b"p-")
    one = case.add("1.a", "p-a@y", "q-b@y", "p-c@y")
    case.settle(one, "Kok", "Zlater")
    assert case.sidecar()["recipients"] == ["p-c@y", "q-b@y"]
    again = case.load("1.a")
    assert again.recipients == (b"c@y",)
    system = case.watch()
    case.settle(again, "Kok")
    case.settler.finish()
    assert case.sidecar()["recipients"] == ["q-b@y"]
    assert case.new == ["1.a"]
    assert not [c for c in system.calls if "M/new" in c]


def test_an_answer_is_noted_with_its_recipient_where_others_have_the_message(case: Case) -> None:
    """Their routes share the notes, and would tell the sender that it was said of them."""
    case.open(prefix=b"p-")
    case.settle(case.add("1.a", "p-a@y", "q-b@y"), "Zmailbox full")
    assert case.settler.attempts.earlier(case.load("1.a"), [0]) == (
        (int(NOW), "<a@y>: mailbox full"),
    )


def test_all_accepted_with_others_left_is_no_removal(case: Case) -> None:
    """The other route's recipients have not even been tried."""
    case.open(prefix=b"p-")
    one = case.add("1.a", "p-a@y", "q-b@y")
    case.settle(one, "Kok")
    case.settler.finish()
    assert case.new == ["1.a"]
    assert case.sidecar()["recipients"] == ["q-b@y"]
    assert case.counts[0] == 1


def test_a_sidecar_that_cannot_be_rewritten_stops_everything(case: Case) -> None:
    """On a full disk each message would be sent again to those who have it."""
    one = case.add("1.a", "a@y", "b@y")
    before = snapshot(case.path)
    system = case.watch()
    system.always_fail("fsync M/tmp", errno.ENOSPC)
    case.settle(one, "Kok", "Zlater")
    assert case.settler.local_error is not None
    assert "No space left on device; nothing more is taken from this maildir" in case.lines
    for _ in range(3):
        assert not case.settler.mend(), "it goes to a@y again with each retry"
    case.settler.finish()
    assert "the server has taken 1.a for some recipients, but cannot write" in case.lines
    assert snapshot(case.path) == before
    assert case.report.counters.exit_code == 111


@pytest.mark.parametrize("answers", ["KZD", "KDD", "-KD"])
def test_a_daemon_goes_on_once_the_sidecar_is_written(
    case: Case, monkeypatch: pytest.MonkeyPatch, answers: str
) -> None:
    """Before that, those who have the message, and its sender the bounce, would get them again."""
    case.open(bounce=True, bounce_via=BounceVia(BounceMethod.MAILDIR, os.fsencode(case.path)))
    one = case.add("1.a", "a@y", "b@y", "c@y", "o@other", sender=b"s@x")
    one.others, one.recipients, one.answers = one.recipients[3:], one.recipients[:3], [None] * 3
    system = case.watch()
    system.always_fail("rename M/tmp/* -> M/envelope", errno.EDQUOT)
    case.settle(one, *[None if a == "-" else a for a in answers])
    bounces = len(case.new)
    assert not case.settler.mend()
    assert system.heal()
    assert case.settler.mend()
    owed = [r for r, a in zip(["a@y", "b@y", "c@y"], answers, strict=True) if a in "-Z"]
    assert case.sidecar()["recipients"] == [*owed, "o@other"]
    assert len(case.new) == bounces == 2


def test_who_has_a_message_that_cannot_be_looked_at_is_done(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers are known; an error of the disk that passes is no reason to send it again."""
    one = case.add("1.a", "a@y", "b@y", "c@y", "d@y")

    def broken(message: Message) -> bool:
        raise LocalError("cannot look at 1.a: Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(case.maildir, "is_same", broken)
        case.settle(one, "Kok", "Zlater", "Dno", None)
        assert not case.settler.mend()
    assert case.settler.mend()
    assert case.sidecar()["recipients"] == ["b@y", "c@y", "d@y"]


def test_a_partly_accepted_message_that_changed_gets_no_sidecar(case: Case) -> None:
    """It would send the new message to the old one's recipients."""
    one = case.add("1.a", "a@y", "b@y")
    (case.path / "new" / "1.a").unlink()
    add_message(case.path, "1.a", b"quite another\n")
    kept = case.settle(one, "Kok", "Zlater")
    assert case.sidecar()["recipients"] == ["a@y", "b@y"]
    assert kept is not None
    assert kept.at_next_scan
    assert case.settler.local_error is None


# Failed


def test_failed_goes_to_the_failed_maildir_in_the_safe_order(case: Case) -> None:
    """Its sidecar, the message, the directory; only then the name in new/, last the old sidecar."""
    one = case.add("1.a", "a@y")
    system = case.watch()
    case.settle(one, "Dno such user")
    case.settler.finish()
    begins = system.calls.index("fsync M/.Failed/tmp/*")
    assert set(system.calls[:begins]) == {
        "mkdir M/.Failed",
        "mkdir M/.Failed/tmp",
        "mkdir M/.Failed/new",
        "mkdir M/.Failed/cur",
        "mkdir M/.Failed/envelope",
        "fsync M/.Failed",
        "fsync M",
    }
    assert system.calls[begins - 1] == "fsync M/.Failed"
    assert system.calls[begins:] == [
        "fsync M/.Failed/tmp/*",
        "rename M/.Failed/tmp/* -> M/.Failed/envelope/1.a.json",
        "fsync M/.Failed/envelope",
        "link M/new/1.a -> M/.Failed/tmp/*",
        "link M/.Failed/tmp/* -> M/.Failed/new/1.a",
        "unlink M/.Failed/tmp/*",
        "fsync M/.Failed/new",
        "unlink M/new/1.a",
        "fsync M/new",
        "unlink M/envelope/1.a.json",
    ]
    assert case.sidecar(case.failed) == {
        "version": 1,
        "sender": "s@x",
        "recipients": ["a@y"],
        "failures": [
            {"recipient": "a@y", "response": "Dno such user", "at": "2027-01-15T08:00:00Z"}
        ],
    }
    assert case.new == []
    assert case.counts == (0, 0, 1, 0, 0)
    assert f"failed: no such user (moved to {case.failed}/new/1.a)" in case.lines


def test_failed_may_be_elsewhere(case: Case) -> None:
    """--failed."""
    case.open(failed="Elsewhere", prefix=b"p-")
    one = case.add("1.a", "p-a@y")
    case.settle(one, "Dno")
    case.settler.finish()
    assert names(case.root / "Elsewhere" / "new") == ["1.a"]
    assert case.sidecar(case.root / "Elsewhere")["recipients"] == ["p-a@y"]
    assert ".Failed" not in names(case.path)


def test_a_failed_message_put_back_goes_to_those_it_still_lists(case: Case) -> None:
    """With the prefix, so that the same route takes it."""
    case.open(prefix=b"p-")
    one = case.add("1.a", "p-a@y", "p-b@y")
    case.settle(one, "Kok", "Dno")
    case.settler.finish()
    (case.failed / "new" / "1.a").rename(case.path / "new" / "1.a")
    (case.failed / "envelope" / "1.a.json").rename(case.path / "envelope" / "1.a.json")
    assert case.load("1.a").recipients == (b"b@y",)


def test_accepted_and_failed_is_done(case: Case) -> None:
    """Nobody is owed it; it is in the failed maildir for one."""
    one = case.add("1.a", "a@y", "b@y")
    case.settle(one, "Kok", "Dno")
    case.settler.finish()
    assert case.new == []
    assert names(case.path / "envelope") == []
    assert case.sidecar(case.failed)["recipients"] == ["b@y"]
    assert case.counts == (1, 0, 1, 0, 0)


def test_failed_and_deferred_leaves_the_deferred_owed(case: Case) -> None:
    """The failed maildir is durable before the recipient leaves the sidecar."""
    one = case.add("1.a", "a@y", "b@y", "c@y")
    system = case.watch()
    case.settle(one, "Dno", "Zlater", "Kok")
    case.settler.finish()
    assert case.sidecar()["recipients"] == ["b@y"]
    assert case.sidecar(case.failed)["recipients"] == ["a@y"]
    assert case.new == names(case.failed / "new") == ["1.a"]
    calls = system.calls
    assert calls.index("fsync M/.Failed/new") < calls.index("rename M/tmp/* -> M/envelope/1.a.json")


def test_later_failures_join_the_earlier(case: Case) -> None:
    """The one who failed yesterday stays listed beside today's."""
    one = case.add("1.a", "a@y", "b@y")
    case.settle(one, "Dno", "Zlater")
    case.settle(case.load("1.a"), "Dgone")
    case.settler.finish()
    content = case.sidecar(case.failed)
    assert content["recipients"] == ["a@y", "b@y"]
    failures = content["failures"]
    assert isinstance(failures, list)
    assert [f["response"] for f in failures] == ["Dno", "Dgone"]
    assert names(case.failed / "new") == ["1.a"]
    assert case.new == []


def test_an_earlier_sidecar_that_cannot_be_used_is_replaced(case: Case) -> None:
    """It could only hold the message for ever."""
    one = case.add("1.a")
    make_maildir(case.failed)
    (case.failed / "envelope").mkdir()
    (case.failed / "envelope" / "1.a.json").write_text("{")
    case.settle(one, "Dno")
    case.settler.finish()
    assert case.sidecar(case.failed)["recipients"] == ["recipient@example.net"]
    assert case.new == []


def test_a_strangers_message_of_that_name_is_left_alone(case: Case) -> None:
    """Two maildirs may fail into one."""
    make_maildir(case.failed)
    (case.failed / "new" / "1.a").write_bytes(b"a stranger's")
    case.settle(case.add("1.a"), "Dno")
    case.settler.finish()
    assert names(case.failed / "new") == ["1.a", "1.a.1"]
    assert (case.failed / "new" / "1.a").read_bytes() == b"a stranger's"
    assert names(case.failed / "envelope") == ["1.a.1.json"]


@pytest.mark.parametrize(
    "call",
    [
        "mkdir M/.Failed",
        "fsync M/.Failed/tmp",
        "rename M/.Failed",
        "fsync M/.Failed/envelope",
        "link M/new",
        "link M/.Failed",
        "fsync M/.Failed/new",
    ],
)
def test_a_failed_message_is_not_removed_unless_it_is_safe(case: Case, call: str) -> None:
    """Whatever goes wrong on the way, it is still in new/ with its sidecar."""
    one = case.add("1.a", "a@y")
    before = snapshot(case.path / "envelope")
    system = case.watch()
    system.always_fail(call, errno.EIO)
    case.settle(one, "Dno")
    case.settler.finish()
    assert case.new == ["1.a"]
    assert snapshot(case.path / "envelope") == before
    assert case.settler.local_error is not None
    assert case.counts == (0, 0, 0, 0, 1)
    assert case.report.counters.exit_code == 111


def test_where_the_failed_maildir_cannot_take_it_those_who_have_it_are_done(case: Case) -> None:
    """Else every run sends it again to all of them, because of one who failed."""
    one = case.add("1.a", "a@y", "b@y", "c@y")
    system = case.watch()
    system.always_fail("link M/new", errno.ENOSPC)
    case.settle(one, "Dno", "Kok", "Zlater")
    case.settler.finish()
    assert case.sidecar()["recipients"] == ["a@y", "c@y"]
    assert case.new == ["1.a"]
    assert case.settler.local_error is not None


def test_where_nobody_has_it_the_sidecar_stays_as_it_was(case: Case) -> None:
    """A full disk needs no more writing."""
    one = case.add("1.a", "a@y", "b@y")
    before = snapshot(case.path / "envelope")
    system = case.watch()
    system.always_fail("link M/new", errno.ENOSPC)
    case.settle(one, "Dno", "Zlater")
    assert snapshot(case.path / "envelope") == before


# A message that somebody removes meanwhile


@pytest.mark.parametrize("answers", ["K", "KK", "D", "Z", "-", "KZ", "KD", "DZ", "K-"])
@pytest.mark.parametrize("sent", [None, "Sent"])
def test_of_a_message_that_was_removed_nothing_is_left(
    case: Case, answers: str, sent: str | None
) -> None:
    """Its user, or `qmtpq drop`, wanted it gone: no run by cron may complain of it ever after."""
    case.open(sent=sent)
    one = case.add("1.a", *[f"r{n}@y" for n in range(len(answers))])
    (case.path / "new" / "1.a").unlink()
    (case.path / "envelope" / "1.a.json").unlink()
    assert case.settle(one, *(None if a == "-" else f"{a}text" for a in answers)) is None
    case.settler.finish()
    assert case.settler.local_error is None
    assert case.counts == (answers.count("K"), 0, 0, 0, 0)
    assert case.report.counters.exit_code == 0
    if sent or set(answers) != {"K"}:
        assert "1.a was removed while it was being sent" in case.lines
    for index, answer in enumerate(answers):
        assert (f"1.a: r{index}@y: neither tried again nor bounced: text" in case.lines) is (
            answer in "DZ"
        )
    assert names(case.path / "envelope") == []
    assert not case.failed.exists()
    assert case.settler.attempts.earlier(case.add("1.a"), [0]) == ()


def test_what_is_not_in_the_archive_is_told(case: Case) -> None:
    """Who keeps all that was sent has to know of the one that could not be kept."""
    case.open(sent="Sent")
    one = case.add("1.a")
    (case.path / "new" / "1.a").unlink()
    assert case.settle(one, "Kok") is None
    case.settler.finish()
    assert f"1.a was removed while it was being sent, and is not in {case.root}/Sent" in case.lines
    assert case.counts == (1, 0, 0, 0, 0)


def test_a_message_that_is_removed_while_it_is_settled_is_no_changed_one(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held, it would be waited for, and cron would complain of nothing."""
    one = case.add("1.a")
    real = writing.adopt

    def adopt(target: Maildir, message: Message, name: bytes) -> None:
        (case.path / "new" / "1.a").unlink()
        real(target, message, name)

    monkeypatch.setattr(writing, "adopt", adopt)
    assert case.settle(one, "Dno") is None
    case.settler.finish()
    assert case.counts == (0, 0, 0, 0, 0)
    assert "1.a: recipient@example.net: neither tried again nor bounced: no" in case.lines


# A message that a mail reader moves meanwhile


@pytest.mark.parametrize("answers", ["K", "KK", "KZ", "KD", "KZD"])
@pytest.mark.parametrize("options", [{}, {"sent": "Sent"}, {"bounce": True}], ids=str)
def test_a_message_that_a_reader_moves_while_it_is_settled_is_not_sent_again(
    case: Case, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], answers: str
) -> None:
    """To a user who opens the mailbox at that moment, all of it would come twice."""
    bounces = BounceVia(BounceMethod.MAILDIR, os.fsencode(case.root / "Bounces"))
    case.open(include_cur=True, bounce_via=bounces, **options)
    one = case.add("1.a", *[f"r{n}@y" for n in range(len(answers))])
    is_gone, moved = removed.is_gone, case.path / "cur" / "1.a:2,S"

    def and_moved(*arguments: Any) -> bool:
        found = is_gone(*arguments)
        if (case.path / "new" / "1.a").exists():
            (case.path / "new" / "1.a").rename(moved)
        return found

    monkeypatch.setattr(removed, "is_gone", and_moved)
    kept = case.settle(one, *[f"{answer}text" for answer in answers])
    monkeypatch.undo()
    case.settler.finish()
    assert names(case.path / "new") == []
    assert "changed" not in case.lines
    if "Z" in answers:
        assert kept is not None
        assert not kept.at_next_scan
        assert case.sidecar()["recipients"] == ["r1@y"]
        assert moved.exists()
    else:
        assert kept is None
        assert names(case.path / "cur") == names(case.path / "envelope") == []
    if "D" in answers:
        where = case.root / "Bounces" if options.get("bounce") else case.failed
        assert len(names(where / "new")) == 1
    elif "Z" not in answers and "sent" in options:
        assert names(case.root / "Sent" / "new") == ["1.a"]


# A sidecar that is replaced meanwhile


@pytest.mark.parametrize("answers", ["K", "KK", "KZ", "KD", "DD", "ZZ"])
@pytest.mark.parametrize("sent", [None, "Sent"])
def test_a_sidecar_that_is_replaced_in_flight_is_neither_overwritten_nor_removed(
    case: Case, answers: str, sent: str | None
) -> None:
    """Its writer owes somebody the message: unread, that recipient would be lost."""
    case.open(sent=sent)
    one = case.add("1.a", *[f"r{n}@y" for n in range(len(answers))])
    case.add_sidecar(case.path, "1.a", ("late@y",))
    case.settle(one, *answers)
    case.settler.finish()
    assert case.new == ["1.a"]
    assert case.sidecar()["recipients"] == ["late@y"]
    again = case.load("1.a")
    assert again.recipients == (b"late@y",)
    case.settle(again, "Kok")
    case.settler.finish()
    assert case.new == names(case.path / "envelope") == []


@pytest.mark.parametrize("answers", ["K", "KK", "KZ"])
@pytest.mark.parametrize("is_first", [False, True])
def test_a_sidecar_that_appears_in_flight_counts(case: Case, answers: str, is_first: bool) -> None:
    """The message had none when it was opened, and its header's recipients have it now."""
    add_message(case.path, "1.a")
    if not is_first:
        (case.path / "envelope").mkdir()
    case.open(recipients=tuple(b"r%d@y" % n for n in range(len(answers))))
    one = case.load("1.a")
    case.add_sidecar(case.path, "1.a", ("late@y",))
    case.settle(one, *answers)
    case.settler.finish()
    assert case.new == ["1.a"]
    assert case.sidecar()["recipients"] == ["late@y"]


def moved_away(envelope: Path) -> None:
    envelope.rename(envelope.with_name("old"))


def replaced(envelope: Path) -> None:
    moved_away(envelope)
    envelope.mkdir()


def restored(envelope: Path) -> None:
    shutil.copytree(envelope, envelope.with_name("copy"))
    moved_away(envelope)
    envelope.with_name("copy").rename(envelope)


@pytest.mark.parametrize("change", [moved_away, replaced, restored])
def test_a_directory_of_sidecars_that_is_moved_in_flight_changes_nothing(
    case: Case, change: Callable[[Path], object]
) -> None:
    """Who has the message got it twice, or it went to whom its header names."""
    one, two = case.add("1.a", "a@y"), case.add("2.a", "k@y", "z@y")
    change(case.path / "envelope")
    case.settle(one, "Kok")
    case.settle(two, "Kok", "Zlater")
    case.settler.finish()
    assert case.new == ["2.a"]
    assert case.sidecar(name="2.a")["recipients"] == ["z@y"]


def test_what_is_accepted_stays_while_its_sidecar_cannot_be_looked_for(case: Case) -> None:
    """It may name others; once that can be told, the message goes, and is not sent again."""
    case.open()
    add_message(case.path, "1.a")
    one = case.load("1.a")
    (case.path / "envelope").symlink_to("elsewhere")
    case.settle(one, "Kok")
    assert case.settler.local_error is not None
    assert "it is a symbolic link, which is not followed" in case.lines
    assert not case.settler.mend()
    assert case.new == ["1.a"]
    (case.path / "envelope").unlink()
    assert case.settler.mend()
    assert case.new == []


def test_a_sidecar_of_the_next_message_of_that_name_stays(case: Case) -> None:
    """Put there within the second before the old one was to go: its message is about to come."""
    one = case.add("1.a", "a@y")
    case.settle(one, "Kok")
    case.add_sidecar(case.path, "1.a", ("next@y",))
    case.settler.finish()
    assert case.new == []
    assert case.sidecar()["recipients"] == ["next@y"]


def test_failures_are_told_also_where_the_sidecar_was_replaced(case: Case) -> None:
    """The new one may not name who has failed: nobody else would ever hear of it."""
    one = case.add("1.a", "a@y", "b@y")
    case.add_sidecar(case.path, "1.a", ("late@y",))
    case.settle(one, "Kok", "Dno")
    assert case.sidecar(case.failed, "1.a")["recipients"] == ["b@y"]
    assert case.sidecar()["recipients"] == ["late@y"]


# Too old


def test_a_deferral_after_the_lifetime_is_a_failure(case: Case) -> None:
    """A message must not wait for ever; to the second."""
    for name, age_s in (("1.a", 14 * DAY_S - 1), ("2.a", 14 * DAY_S)):
        case.settle(case.add(name, age_s=age_s - DAY_S), "Zlater")
    case.settler.finish()
    case.now += DAY_S
    case.open()
    for name in ("1.a", "2.a"):
        case.settle(case.load(name), "Zlater")
    case.settler.finish()
    assert case.new == ["1.a"]
    failures = case.sidecar(case.failed, "2.a")["failures"]
    assert isinstance(failures, list)
    assert failures[0]["response"] == "Zlater (too old: 14.0 days)"
    assert case.counts == (0, 1, 1, 0, 0)


def test_who_was_offline_for_weeks_loses_nothing_to_the_first_greylisting(case: Case) -> None:
    """A day of trying comes first, over as many runs as there are."""
    case.add("1.a", age_s=30 * DAY_S)
    for hours in (0, 6, 12, 23.9):
        case.now = NOW + hours * 3_600.0
        case.open()
        case.settle(case.load("1.a"), "Zgreylisted")
        case.settler.finish()
        assert case.new == ["1.a"], hours
    case.now = NOW + DAY_S
    case.open()
    case.settle(case.load("1.a"), "Zgreylisted")
    assert case.new == []
    assert names(case.failed / "new") == ["1.a"]


def test_failures_that_a_sidecar_lists_are_no_first_deferral(case: Case) -> None:
    """A message that was moved back from the failed maildir is tried for a day again."""
    case.add("1.a", age_s=30 * DAY_S)
    failure = {"recipient": "a@y", "response": "Zno", "at": "2026-01-01T00:00:00Z"}
    case.add_sidecar(case.path, "1.a", ("a@y",), failures=[failure])
    case.settle(case.load("1.a"), "Zgreylisted")
    assert case.new == ["1.a"]


def test_a_message_that_was_accepted_or_failed_is_forgotten(case: Case) -> None:
    """Another one of that name, moved back from the failed maildir, has its own day."""
    for answer in ("Kok", "Dno"):
        case.settle(case.add("1.a", age_s=30 * DAY_S), "Zlater")
        case.settle(case.load("1.a"), answer)
        case.settler.finish()
        state = json.loads((case.path / ".maildirqmtp-state.json").read_text())
        assert state["first_deferred"] == {}, answer


def test_a_daemon_that_has_tried_all_the_time_gives_up_at_the_lifetime(case: Case) -> None:
    """Not a day later: the message has had its day before."""
    case.add("1.a", age_s=12 * DAY_S)
    for days in (0.0, 0.5, 0.99, 1.5, 1.99):
        case.now = NOW + days * DAY_S
        case.settle(case.load("1.a"), "Zlater")
        assert case.new == ["1.a"], days
    case.now = NOW + 2.1 * DAY_S
    case.settle(case.load("1.a"), "Zlater")
    assert case.new == []


def test_a_broken_state_file_is_noted_and_stops_nothing(case: Case) -> None:
    """What it has lost is a day."""
    (case.path / ".maildirqmtp-state.json").write_text("{")
    one = case.add("1.a", age_s=30 * DAY_S)
    case.settle(one, "Zlater")
    case.settler.tick()
    case.settler.finish()
    assert case.lines.count("beginning it anew") == 1
    assert case.new == ["1.a"]
    assert case.counts == (0, 1, 0, 0, 0)


def test_what_was_not_answered_is_never_too_old(case: Case) -> None:
    """A server that cannot be reached for a month must not fail anything."""
    one = case.add("1.a", "a@y", "b@y", age_s=99 * DAY_S)
    case.settle(one, "Kok", None)
    case.settler.finish()
    assert case.sidecar()["recipients"] == ["b@y"]
    assert ".Failed" not in names(case.path)


# Removals that fail


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO])
def test_a_removal_that_fails_stops_the_taking(case: Case, number: int) -> None:
    """What is accepted and cannot be removed is sent again by every run: say so, loudly."""
    one, two = case.add("1.a", "a@y"), case.add("2.a")
    system = case.watch()
    system.always_fail("unlink M/new", number)
    case.settle(one, "Kok")
    assert case.settler.local_error is not None
    assert case.lines.count("nothing more is taken") == 1
    case.settle(two, "Kok")
    assert case.lines.count("nothing more is taken") == 1
    case.settler.finish()
    assert case.new == ["1.a", "2.a"]
    assert names(case.path / "envelope") == ["1.a.json"]
    for name in ("1.a", "2.a"):
        assert f"the server has taken {name}, but cannot remove" in case.lines
    assert os.strerror(number) in case.lines
    assert case.report.counters.exit_code == 111


def test_a_removal_is_tried_again_at_the_end(case: Case) -> None:
    """Somebody may have remounted the disk; then nothing is sent twice."""
    one = case.add("1.a", "a@y")
    system = case.watch()
    system.fail("unlink M/new", errno.EROFS)
    case.settle(one, "Kok")
    assert case.new == ["1.a"]
    case.settler.finish()
    assert case.new == []
    assert system.calls[-3:] == ["unlink M/new/1.a", "fsync M/new", "unlink M/envelope/1.a.json"]
    assert case.settler.local_error is not None
    assert case.report.counters.exit_code == 111


@pytest.mark.parametrize("number", [0, errno.EIO])
def test_a_daemon_goes_on_once_the_removal_is_durable(case: Case, number: int) -> None:
    """What was only believed to be removed would come back with a power cut, and go twice."""
    one = case.add("1.a", "a@y")
    system = case.watch()
    system.fail("unlink M/new", errno.EROFS)
    case.settle(one, "Kok")
    system.fail("fsync M/new", number)
    assert case.settler.mend() is (number == 0)
    assert case.new == []
    assert "fsync M/new" in system.calls[system.calls.index("unlink M/new/1.a") :]


def test_a_stuck_message_that_changed_meanwhile_is_kept(case: Case) -> None:
    """It is another message now."""
    one = case.add("1.a")
    case.watch().fail("unlink M/new", errno.EROFS)
    case.settle(one, "Kok")
    (case.path / "new" / "1.a").write_bytes(b"another")
    case.settler.finish()
    assert case.new == ["1.a"]
    assert case.counts[3] == 1


def test_a_stuck_message_that_changed_and_cannot_be_looked_at_is_let_go(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its new text is to be sent: reserved for ever, it stayed until the daemon was restarted."""

    def is_same(maildir: Maildir, message: Message) -> bool:
        raise LocalError("cannot look at it")

    one = case.add("1.a", "a@y")
    system = case.watch()
    system.always_fail("unlink M/new", errno.EROFS)
    case.settle(one, "Kok")
    (case.path / "new" / "1.a").write_bytes(b"another")
    with monkeypatch.context() as context:
        context.setattr(Maildir, "is_same", is_same)
        assert not case.settler.mend()
    system.heal()
    assert case.settler.mend()
    assert case.settler.take_mended() == [b"1.a"]
    assert case.new == ["1.a"]


@pytest.mark.parametrize("answers", ["KZ", "DZ"])
def test_who_has_it_is_known_until_the_sidecar_can_be_written(case: Case, answers: str) -> None:
    """A daemon whose disk was full for a moment would send it again to those who have it."""
    one = case.add("1.a", "a@y", "b@y")
    system = case.watch()
    system.always_fail("rename M/tmp/* -> M/envelope", errno.ENOSPC)
    case.settle(one, *answers)
    assert case.sidecar()["recipients"] == ["a@y", "b@y"]
    assert not case.settler.mend()
    system.heal()
    assert case.settler.mend()
    assert case.sidecar()["recipients"] == ["b@y"]
    assert case.new == ["1.a"]


def test_the_last_word_on_such_a_message_is_not_to_remove_it(case: Case) -> None:
    """Others are still owed it."""
    one = case.add("1.a", "a@y", "b@y")
    case.watch().always_fail("rename M/tmp/* -> M/envelope", errno.ENOSPC)
    case.settle(one, "Kok", "Zlater")
    (left,) = case.settler.finish()
    assert left.owed == (b"b@y",)
    assert "has taken 1.a for some recipients, but cannot write" in case.lines
    assert "remove it by hand" not in case.lines


@pytest.mark.parametrize("heals", [False, True])
def test_a_stuck_message_is_taken_over(case: Case, heals: bool) -> None:
    """Nothing is taken before it is removed, whoever is to do that."""
    one = case.add("1.a")
    system = case.watch()
    system.always_fail("unlink M/new", errno.EROFS)
    case.settle(one, "Kok")
    left = case.settler.finish()
    case.maildir.close()
    with contextlib.ExitStack() as others:  # other files have the numbers of its descriptors now
        for _ in range(8):
            others.enter_context(open(os.devnull))
        case.maildir = Maildir(os.fsencode(case.path))
    case.open()
    if heals:
        system.heal()
    case.settler.take_over(left)
    assert (case.settler.local_error is None) == heals
    assert case.new == ([] if heals else ["1.a"])
    system.heal()
    assert case.settler.finish() == []
    assert case.new == []


@pytest.mark.parametrize(("sent", "kept"), [("Other", "Other"), (None, "Sent")])
def test_a_stuck_message_goes_where_sent_mail_goes_now(
    case: Case, sent: str | None, kept: str
) -> None:
    """The disk of the other place was full; after HUP the route took no mail until a restart."""
    case.open(sent="Sent")
    one = case.add("1.a")
    system = case.watch()
    system.always_fail("link M/new/1.a -> Sent/tmp/*", errno.ENOSPC)
    case.settle(one, "Kok")
    left = case.settler.finish()
    assert case.new == ["1.a"]
    case.open(sent=sent)
    case.settler.take_over(left)
    assert (case.settler.local_error is None) == (sent is not None)
    system.heal()
    assert case.settler.finish() == []
    assert names(case.root / kept / "new") == ["1.a"]
    assert case.new == []


def test_a_failed_message_that_stays_in_new_is_tried_again_at_the_end(case: Case) -> None:
    """It is in the failed maildir already, and not twice."""
    one = case.add("1.a", "a@y")
    case.watch().fail("unlink M/new", errno.EROFS)
    case.settle(one, "Dno")
    assert case.new == names(case.failed / "new") == ["1.a"]
    case.settler.finish()
    assert case.new == []
    assert names(case.failed / "new") == ["1.a"]


def test_a_directory_that_does_not_sync_keeps_the_sidecars(case: Case) -> None:
    """The message may come back after a power cut, and needs its sidecar then."""
    one, two = case.add("1.a", "a@y"), case.add("2.a", "b@y")
    system = case.watch()
    system.fail("fsync M/new", errno.EIO)
    case.settle(one, "Kok")
    case.clock.advance(SYNC_S)
    case.settler.tick()
    case.wait_until_synced()
    case.settler.tick()
    assert case.settler.local_error is not None
    assert names(case.path / "envelope") == ["1.a.json", "2.a.json"]
    case.settle(two, "Kok")
    case.settler.finish()
    assert names(case.path / "envelope") == ["1.a.json"]


def test_a_sidecar_that_cannot_be_removed_is_told(case: Case) -> None:
    """Left behind it could meet another message of that name."""
    one = case.add("1.a", "a@y")
    case.watch().fail("unlink M/envelope", errno.EACCES)
    case.settle(one, "Kok")
    case.settler.finish()
    assert case.settler.local_error is not None
    assert "cannot remove" in case.lines


# Whatever fails


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("call", ["unlink", "fsync", "link", "rename", "mkdir"])
@pytest.mark.parametrize("answers", ["D", "Z", "KZ", "DZ", "KD", "KDZ", "K-", "D-", "KK"])
@pytest.mark.parametrize("sent", [None, "Sent"])
def test_no_error_loses_anybody(
    case: Case, call: str, number: int, answers: str, sent: str | None
) -> None:
    """Every recipient accepted it, or is owed it on disk, or is listed in the failed maildir.

    The first such call fails, then the second, until there is none any more.
    """
    recipients = [f"r{n}@y" for n in range(len(answers))]
    system = case.watch()
    for nth in range(1, 30):
        name = f"{nth}.a"
        case.open(sent=sent)
        one = case.add(name, *recipients)
        text = (case.path / "new" / name).read_bytes()
        system.fail_nth(call, nth, number)
        case.settle(one, *(None if a == "-" else f"{a}text" for a in answers))
        case.settler.finish()
        check_nobody_is_lost(case, name, recipients, answers, text)
        if not system.heal():
            return
    raise AssertionError(f"so many {call}?")


def check_nobody_is_lost(
    case: Case, name: str, recipients: list[str], answers: str, text: bytes
) -> None:
    """Look at what is on disk for each recipient."""
    found = []
    for maildir in (case.path, case.failed):
        listed: object = []
        if (maildir / "new" / name).exists():
            assert (maildir / "new" / name).read_bytes() == text
            listed = case.sidecar(maildir, name)["recipients"]
        assert isinstance(listed, list)
        found.append(listed)
    owed, failed = found
    for recipient, answer in zip(recipients, answers, strict=True):
        assert answer not in "Z-" or recipient in owed
        assert answer != "D" or recipient in owed or recipient in failed


def test_a_link_named_failed_takes_nothing_elsewhere(case: Case) -> None:
    """Whoever may write into the maildir would have us write where only we may."""
    elsewhere = make_maildir(case.root / "Elsewhere")
    one = case.add("1.a")
    case.failed.symlink_to(elsewhere)
    case.settle(one, "Dno")
    assert case.settler.local_error is not None
    assert case.new == ["1.a"]
    assert snapshot(elsewhere) == {}
