"""Whether a failure becomes a bounce, and what is in it; settling with bounces."""

from __future__ import annotations

import email
import email.policy
import errno
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maildirqmtp.errors import FileChangedError, LocalError
from maildirqmtp.forwarder import bounces
from maildirqmtp.forwarder.bounces import Bouncer
from maildirqmtp.forwarder.mailers import (
    MaildirMailer,
    MailerNotAsked,
    MailerStopped,
    QueueMailer,
    SendmailMailer,
)
from maildirqmtp.forwarder.queued_message import QueuedMessage, prepare
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import BounceMethod, BounceVia, Route
from maildirqmtp.mail import dsn
from maildirqmtp.maildir.maildir import WHOLE_MAX, Maildir
from maildirqmtp.transport.endpoint import TcpEndpoint
from tests.fakes import FakeClock, FileSystem
from tests.forwarder.doubles import NOW, SettlerCase
from tests.helpers import add_message, make_maildir, names, open_descriptors, sidecar

DAY_S = 86_400.0


class Recorder:
    """A mailer that keeps what it gets, or fails."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, bytes, str]] = []
        self.reaches = True
        self.error: LocalError | None = None
        self.then: Callable[[], None] = lambda: None

    def can_reach(self, recipient: bytes) -> bool:
        """See `mailer.Mailer`."""
        return self.reaches

    def send(self, bounce: bytes, recipient: bytes, identifier: str) -> bytes | None:
        """See `mailer.Mailer`."""
        if self.error is not None:
            raise self.error
        self.sent.append((bounce, recipient, identifier))
        self.then()
        return None


class Case(SettlerCase):
    """A maildir, a settler that bounces, and a mailer that records."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        super().__init__(root)
        self.mailer = Recorder()
        monkeypatch.setattr(bounces, "make_mailer", lambda *_: self.mailer)
        self.open()

    def open(self, **options: object) -> None:
        """Make a settler for a route with these options."""
        self.make(**{"bounce": True} | options)

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Accepted, deferred, failed, bounced."""
        c = self.report.counters
        return c.accepted, c.deferred, c.failed, c.bounced


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Case]:
    """A maildir with a settler that bounces."""
    made = Case(monkeypatch, tmp_path)
    yield made
    made.settler.finish()
    made.maildir.close()


def recipients_of(bounce: bytes) -> list[str]:
    """Return the recipients that a bounce says have failed."""
    message = email.message_from_bytes(bounce, policy=email.policy.default)
    lines = message.as_string().splitlines()
    return [line.split("; ")[1] for line in lines if line.startswith("Final-Recipient: ")]


# Settling


def test_a_failure_is_told_to_the_sender_and_done(case: Case) -> None:
    """And nothing of ours is left: exit code 0, as serialmail's."""
    case.settle(case.add("1.a"), "Dno such user")
    ((bounce, recipient, identifier),) = case.mailer.sent
    assert recipient == b"s@x"
    assert recipients_of(bounce) == ["recipient@example.net"]
    assert f"\nMessage-ID: <{identifier}@".encode() in bounce
    assert b"\nRemote-MTA: dns; mail.example.org\n" in bounce
    assert b"\nDate: Fri, 15 Jan 2027 08:00:00 +0000\n" in bounce
    assert case.counts == (0, 0, 0, 1)
    assert case.report.counters.exit_code == 0
    assert names(case.path / "new") == []
    assert not case.failed.exists()
    assert "1.a: recipient@example.net: bounced: no such user\n" in case.log.getvalue()


def test_one_bounce_tells_of_all_that_failed(case: Case) -> None:
    """Not a flood of them for a message to a list; the others stay owed."""
    case.settle(case.add("1.a", "k@y", "z@y", "d@y", "e@y"), "Kok", "Zbusy", "Dno", "Dneither")
    ((bounce, _, _),) = case.mailer.sent
    assert recipients_of(bounce) == ["d@y", "e@y"]
    assert case.counts == (1, 1, 0, 2)
    assert sidecar(case.path, "1.a") == {"version": 1, "sender": "s@x", "recipients": ["z@y"]}


def test_bounces_are_sent_before_anything_is_written_or_removed(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a crash in between, the failure would be known to nobody."""
    mixed, lone = case.add("1.a", "z@y", "d@y"), case.add("2.a")
    calls = FileSystem(monkeypatch, case.root)
    seen: list[list[str]] = []
    case.mailer.then = lambda: seen.append(list(calls.calls))
    case.settle(mixed, "Zbusy", "Dno")
    assert seen == [[]]
    assert calls.of("rename") == ["rename M/tmp/* -> M/envelope/1.a.json"]
    calls.calls.clear()
    case.settle(lone, "Dno")
    assert seen[1] == []
    assert calls.calls == ["unlink M/new/2.a"]


def test_a_crash_after_the_bounce_makes_the_same_again(case: Case) -> None:
    """The sender's mail reader, or the mailer, then sees one where there were two."""
    for _ in range(2):
        add_message(case.path, "1.a")
        os.utime(case.path / "new" / "1.a", (NOW, NOW))
        case.settle(case.load(), "Dno")
    first, second = case.mailer.sent
    assert first == second


def test_each_failure_has_its_own_bounce(case: Case) -> None:
    """Equal names would have the second replace the first, whose recipient nobody hears of."""
    case.settle(case.add("1.a", "a@y", "b@y"), "Dno", "Zbusy")
    case.settle(case.load(), "Dno")
    case.settle(case.add("2.a", "a@y"), "Dno")
    assert len({identifier for _, _, identifier in case.mailer.sent}) == 3


def test_a_mailer_that_fails_keeps_the_message_for_the_failed_alone(case: Case) -> None:
    """Those who have it must not get it again with each try; the others are not forgotten."""
    case.mailer.error = LocalError("sendmail is ill")
    case.settle(case.add("1.a", "k@y", "z@y", "d@y"), "Kok", "Zbusy", "Dno such user")
    assert sidecar(case.path, "1.a")["recipients"] == ["z@y", "d@y"]
    assert case.counts == (1, 2, 0, 0)
    assert case.report.counters.exit_code == 111
    assert case.settler.local_error is None
    told = "1.a: d@y: deferred: no such user (no bounce yet: sendmail is ill)\n"
    assert told in case.log.getvalue()
    # The run goes on, and the mailer gets well.
    case.mailer.error = None
    case.settle(case.load(), "Kok", "Dno such user")
    assert len(case.mailer.sent) == 1
    assert names(case.path / "new") == []


def test_a_mailer_that_fails_is_an_error_told_once(case: Case) -> None:
    """Also with -q; and again when it has been well in between."""
    case.report.set_output(-1, None)
    said = []
    for error in ("ill", "ill", "worse", "ill", None, "ill"):
        case.mailer.error = LocalError(error) if error else None
        case.settle(case.add("1.a"), "Dno")
        said.append(case.log.getvalue().count("no bounce can be sent: "))
    assert said == [1, 1, 2, 3, 3, 4]


@pytest.mark.parametrize("answer", ["Dno such user", "Zbusy"])
def test_a_bounce_that_no_mailer_takes_ends_in_the_failed_maildir(case: Case, answer: str) -> None:
    """A sender such as -x@y, whom qmtp-sendmail refuses: the server would get it for ever."""
    case.mailer.error = LocalError("sendmail: '-x@y' begins with -, as an option does")
    case.add("1.a", age_s=20 * DAY_S)
    for after_s in (0.0, DAY_S, 2 * DAY_S - 1):  # it may be ill for a while
        case.now = NOW + after_s
        case.settle(case.load("1.a"), answer)
        assert case.new == ["1.a"]
    case.now += 1
    case.settle(case.load("1.a"), answer)
    assert case.new == []
    failed = case.path / ".Failed"
    (failure,) = sidecar(failed, "1.a")["failures"]
    assert failure["response"].startswith(answer)
    assert "(no bounce: sendmail: '-x@y' begins with -, as an option does)" in case.log.getvalue()


def test_a_mailer_that_is_ill_when_a_message_is_too_old_has_a_day_to_get_well(case: Case) -> None:
    """Otherwise its sender would never be told."""
    case.settle(case.add("1.a", age_s=13 * DAY_S), "Zbusy")
    case.mailer.error = LocalError("ill")
    for hours in (24, 47.9):
        case.now = NOW + hours * 3_600
        case.settle(case.load("1.a"), "Zbusy")
        assert case.new == ["1.a"]
    case.mailer.error = None
    case.settle(case.load("1.a"), "Zbusy")
    assert (len(case.mailer.sent), case.new) == (1, [])


def test_a_bounce_tells_nothing_of_other_recipients(case: Case) -> None:
    """What a server said of one was given as the reason to try the other again."""
    case.settle(case.add("1.a", "d@y", "z@y"), "Zwait", "Zgreylisted")
    case.now += 60
    case.settle(case.load("1.a"), "Dno such user", "Zbusy")
    ((bounce, _, _),) = case.mailer.sent
    assert b"wait" in bounce
    assert b"z@y" not in bounce
    case.settle(case.load("1.a"), "Dnor he")
    told = case.mailer.sent[1][0]
    assert b"<z@y>: busy" in told
    assert b"<d@y>" not in told


def too_old_and_deferred_long_ago(case: Case) -> None:
    """Five days old, deferred three days ago, and the link was away since then."""
    case.settle(case.add("1.a", age_s=13.5 * DAY_S), "Zbusy")
    case.now = NOW + 3 * DAY_S


@pytest.mark.parametrize("answer", ["Dno such user", "Zbusy"])
def test_a_mailer_that_fails_once_does_not_end_mail_that_waited_for_long(
    case: Case, answer: str
) -> None:
    """Of a laptop that was offline over the end of a lifetime, no sender was told anything."""
    too_old_and_deferred_long_ago(case)
    case.mailer.error = LocalError("exit 75: network is down")
    for hours in (0, 23.9):
        case.now = NOW + 3 * DAY_S + hours * 3_600
        case.settle(case.load("1.a"), answer)
        assert case.new == ["1.a"]
    case.mailer.error = None
    case.settle(case.load("1.a"), answer)
    assert (len(case.mailer.sent), case.new) == (1, [])


@pytest.mark.parametrize(
    "error",
    [MailerNotAsked("sendmail is not run, for this was told to stop"), MailerStopped("ended")],
)
def test_a_mailer_that_was_not_asked_has_refused_nothing(case: Case, error: LocalError) -> None:
    """At a stop, all that was too old went to the failed maildir, and nobody was told."""
    too_old_and_deferred_long_ago(case)
    case.mailer.error = error
    for day in range(3):
        case.now = NOW + (3 + day) * DAY_S
        case.settle(case.load("1.a"), "Dno such user")
        assert case.new == ["1.a"]
    case.mailer.error = LocalError("ill")
    case.settle(case.load("1.a"), "Dno such user")
    assert case.new == ["1.a"], "its day begins now"


def test_a_mailer_that_was_well_meanwhile_has_another_day(case: Case) -> None:
    """The failure of one recipient says nothing of the bounce for the next."""
    one = case.add("1.a", "d@y", "z@y", age_s=13.5 * DAY_S)
    case.mailer.error = LocalError("ill")
    case.settle(one, "Dno such user", "Zbusy")
    case.mailer.error = None
    case.settle(case.load("1.a"), "Dno such user", "Zbusy")
    assert len(case.mailer.sent) == 1
    case.now = NOW + 3 * DAY_S
    case.mailer.error = LocalError("ill again")
    case.settle(case.load("1.a"), "Zbusy")
    assert case.new == ["1.a"]


def test_a_mailer_that_fails_leaves_a_lone_message_as_it_is(case: Case) -> None:
    """No sidecar for nothing."""
    case.mailer.error = LocalError("ill")
    case.settle(case.add("1.a"), "Dno")
    assert names(case.path / "new") == ["1.a"]
    assert names(case.path / "envelope") == []


def test_a_message_that_changed_is_not_bounced(case: Case) -> None:
    """What the server refused is not what is there now."""
    one = case.add("1.a")
    (case.path / "new" / "1.a").write_bytes(b"something else")
    kept = case.settle(one, "Dno")
    assert case.mailer.sent == []
    assert (case.path / "new" / "1.a").read_bytes() == b"something else"
    assert kept is not None
    assert kept.at_next_scan


def test_a_message_that_somebody_removed_is_not_bounced(case: Case) -> None:
    """Whoever cancels a message tells its sender, or wants nobody told; the log has it all."""
    one = case.add("1.a")
    (case.path / "new" / "1.a").unlink()
    assert case.settle(one, "Dno") is None
    assert case.mailer.sent == []
    assert "1.a was removed while it was being sent" in case.log.getvalue()
    assert "1.a: recipient@example.net: neither tried again nor bounced: no" in case.log.getvalue()
    assert case.report.counters.exit_code == 0


def test_a_message_that_cannot_be_read_again_is_kept(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its text is not kept in memory after it was sent."""
    one = case.add("1.a")

    def broken(*_: object) -> None:
        raise LocalError("cannot read it: Input/output error")

    monkeypatch.setattr(case.maildir, "load", broken)
    case.settle(one, "Dno")
    assert case.counts == (0, 1, 0, 0)
    assert names(case.path / "new") == ["1.a"]


def test_a_deferral_that_is_too_old_is_bounced(case: Case) -> None:
    """The sender hears after two weeks, and is told why."""
    case.open(lifetime_s=10.0)
    add_message(case.path, "1.a")
    os.utime(case.path / "new" / "1.a", (NOW - 1, NOW - 1))
    case.settle(case.load(), "Zbusy")
    case.now += 10.0
    case.settle(case.load(), "Zbusy")
    ((bounce, _, _),) = case.mailer.sent
    assert b"\nStatus: 4.4.7\n" in bounce
    assert b"\n  busy (too old: 0.0 days)\n" in bounce


def test_recipients_of_another_route_stay(case: Case) -> None:
    """They have not failed; and the prefix is our own business, not the sender's."""
    case.open(prefix=b"pre-")
    case.settle(case.add("1.a", "pre-d@y", "other@y"), "Dno")
    ((bounce, _, _),) = case.mailer.sent
    assert recipients_of(bounce) == ["d@y"]
    assert sidecar(case.path, "1.a")["recipients"] == ["other@y"]


# Whether


@pytest.mark.parametrize("sender", [b"", b"#@[]"])
def test_a_bounce_is_not_bounced(case: Case, sender: bytes) -> None:
    """Two machines that refuse each other's bounces would go on for ever."""
    case.settle(case.add("1.a", sender=sender), "Dno")
    assert case.mailer.sent == []
    assert names(case.failed / "new") == ["1.a"]
    assert case.counts == (0, 0, 1, 0)
    assert case.report.counters.exit_code == 111
    assert f"failed: no (no bounce: it came from <{sender.decode()}>) (moved" in case.log.getvalue()


def test_a_sender_who_cannot_be_reached_is_not_bounced_to(case: Case) -> None:
    """The failed maildir is for what nobody can be told of."""
    case.mailer.reaches = False
    case.settle(case.add("1.a"), "Dno")
    assert names(case.failed / "new") == ["1.a"]
    assert "failed: no (no bounce: <s@x> is no plain address) (moved" in case.log.getvalue()
    assert sidecar(case.failed, "1.a")["failures"][0]["response"] == "Dno"


def test_without_bounce_nobody_is_told(case: Case) -> None:
    """A first try on somebody's inbox must not send 5,000 bounces to strangers."""
    case.open(bounce=False)
    case.settle(case.add("1.a"), "Dno")
    assert case.mailer.sent == []
    assert names(case.failed / "new") == ["1.a"]
    assert "failed: no (moved" in case.log.getvalue()


@pytest.mark.parametrize("most", [0, 1, 3])
def test_beyond_so_many_bounces_the_failed_maildir_takes_the_rest(case: Case, most: int) -> None:
    """A server that refuses everything must not make us a source of a thousand bounces."""
    case.open(max_bounces=most)
    for number in range(6):
        case.settle(case.add(f"{number}.a"), "Dno")
    assert len(case.mailer.sent) == most
    assert names(case.failed / "new") == [f"{number}.a" for number in range(most, 6)]
    assert case.log.getvalue().count("--max-bounces") == 1


def test_after_an_hour_a_daemon_bounces_again(case: Case) -> None:
    """The limit is against floods; a daemon that ran into it once must not stay silent for ever."""
    case.open(max_bounces=1)
    for number, minutes in enumerate((0, 1, 59, 60, 61, 120)):
        case.now = NOW + 60.0 * minutes
        case.settle(case.add(f"{number}.a"), "Dno")
    assert len(case.mailer.sent) == 3
    assert names(case.failed / "new") == ["1.a", "2.a", "4.a"]
    assert case.log.getvalue().count("--max-bounces") == 2


def test_a_clock_that_was_set_back_does_not_silence_a_daemon(case: Case) -> None:
    """By a year, say: for that long no sender would hear of a failure."""
    case.open(max_bounces=1)
    for number, days in enumerate((0, -365, -365)):
        case.now = NOW + days * 86_400.0
        case.settle(case.add(f"{number}.a"), "Dno")
    assert len(case.mailer.sent) == 2
    assert names(case.failed / "new") == ["2.a"]


def test_bounces_that_failed_do_not_count(case: Case) -> None:
    """A mailer that was ill for a while must not use them up."""
    case.open(max_bounces=1)
    case.mailer.error = LocalError("ill")
    one = case.add("1.a")
    for _ in range(3):
        case.settle(one, "Dno")
    case.mailer.error = None
    case.settle(case.load(), "Dno")
    assert len(case.mailer.sent) == 1


# What


@pytest.mark.parametrize(
    ("size", "whole"),
    [(dsn.QUOTE_BYTES, True), (dsn.QUOTE_BYTES + 1, False), (WHOLE_MAX + 1, False)],
)
def test_the_original_is_quoted_as_it_was_sent(case: Case, size: int, whole: bool) -> None:
    """Without the trace lines; whole up to 50 KB, though more of it is at hand."""
    text = (b"Subject: s\n\n" + b"a line of text\n" * (size // 15 + 1))[:size]
    one = case.add("1.a", text=text)
    assert one.length == size
    one.message.close()
    case.settle(one, "Dno")
    ((bounce, _, _),) = case.mailer.sent
    assert b"Delivered-To" not in bounce
    assert (text in bounce) is whole
    assert (b"Content-Type: text/rfc822-headers\n\nSubject: s\n" in bounce) is not whole
    assert len(bounce) < 2 * dsn.QUOTE_BYTES


def test_trace_lines_that_are_sent_are_quoted(case: Case) -> None:
    """Those of Postfix and Exim stay on top of the message."""
    (case.path / "new" / "1.a").write_bytes(
        b"Return-Path: <s@x>\nX-Original-To: o@y\nDelivered-To: r@y\nSubject: s\n\ntext\n"
    )
    case.settle(case.load(), "Dno")
    assert b"\n\nX-Original-To: o@y\nSubject: s\n\ntext\n" in case.mailer.sent[0][0]


def test_a_large_message_leaves_no_descriptor_open(case: Case) -> None:
    """A hundred bounces of large messages would use up what a process may open."""
    one = case.add("1.a", text=b"x" * (WHOLE_MAX + 1))
    one.message.close()
    before = open_descriptors()
    case.settle(one, "Dno")
    two = case.add("2.a", text=b"x" * (WHOLE_MAX + 1))
    two.message.close()
    (case.path / "new" / "2.a").write_bytes(b"y" * (WHOLE_MAX + 2))
    case.settle(two, "Dno")
    assert open_descriptors() == before


def test_the_way_a_bounce_goes(tmp_path: Path) -> None:
    """--bounce-via, with the bytes of the directory's name."""
    path = make_maildir(tmp_path / "M")
    with Maildir(os.fsencode(path)) as maildir:

        def way(**options: object) -> object:
            route = Route(b"M", TcpEndpoint("x"), **options)  # type: ignore[arg-type]
            return bounces.make_mailer(maildir, route)

        assert isinstance(way(), SendmailMailer)
        assert isinstance(way(bounce_via=BounceVia(BounceMethod.SERVER)), QueueMailer)
        target = os.path.join(os.fsencode(tmp_path), b"B\xe4:x")
        made = way(bounce_via=BounceVia(BounceMethod.MAILDIR, target))
        assert isinstance(made, MaildirMailer)
        made.send(b"text", b"a@x", "id")
        assert os.listdir(os.path.join(target, b"new")) == [b"bounce.id"]


def test_a_bouncer_says_where_its_bounce_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forwarder sends it in the same run; and a full disk is an error like any other."""
    path = make_maildir(tmp_path / "M")
    add_message(path, "1.a", sender=b"s@x")
    with Maildir(os.fsencode(path)) as maildir:
        maildir.scan()
        route = Route(
            os.fsencode(path), TcpEndpoint("x"), bounce_via=BounceVia(BounceMethod.SERVER)
        )
        one = prepare(maildir, route, maildir.new, b"1.a")
        assert isinstance(one, QueuedMessage)
        report = Report(io.StringIO(), clock=FakeClock())
        bouncer = Bouncer(maildir, route, report, lambda: NOW)
        calls = FileSystem(monkeypatch, tmp_path)
        calls.fail("rename", errno.ENOSPC)
        with pytest.raises(LocalError, match="No space left"):
            bouncer.bounce(one, {0: "Dno"}, "mx")
        name = bouncer.bounce(one, {0: "Dno"}, "mx")
        assert name is not None
        assert names(path / "new") == ["1.a", os.fsdecode(name)]
        (path / "new" / "1.a").unlink()
        with pytest.raises(FileChangedError):
            bouncer.bounce(one, {0: "Dno"}, "mx")
