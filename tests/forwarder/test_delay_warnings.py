"""Warnings of delays: once a message, whatever happens, and only to those who can be told."""

from __future__ import annotations

import email
import email.policy
import io
import json
import os
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.forwarder import bounces, delay_warnings
from maildirqmtp.forwarder.delay_warnings import DelayWarner
from maildirqmtp.forwarder.mailers import MailerTimeout
from maildirqmtp.forwarder.queued_message import prepare
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import Route
from maildirqmtp.maildir import holds
from maildirqmtp.maildir.files import Folder
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.state import MAX_BYTES, State
from maildirqmtp.maildir.state import NAME as STATE
from maildirqmtp.maildir.warned import MOST_WARNED, WARNED_S
from maildirqmtp.text import rfc5322_date
from maildirqmtp.transport.endpoint import TcpEndpoint
from tests.fakes import FakeClock
from tests.helpers import add_message, add_sidecar, make_maildir

NOW = 1_800_000_000.0
HOUR_S = 3_600.0
DAY_S = 86_400.0


class Case:
    """A maildir, and runs over it that warn after 4 hours; its mailer keeps what it gets."""

    def __init__(self, path: Path) -> None:
        self.path = make_maildir(path)
        self.maildir = Maildir(os.fsencode(path))
        self.log = io.StringIO()
        self.now = NOW
        self.sent: list[tuple[bytes, bytes, str]] = []
        self.reaches = True
        self.then: Callable[[], None] = lambda: None
        self.refused: set[bytes] = set()
        self.tried: list[bytes] = []
        self.run()

    def run(self, **options: object) -> None:
        """Begin another run."""
        self.state = State(self.maildir.root, FakeClock(), lambda: self.now)
        settings: dict[str, object] = {"warn_after_s": 4 * HOUR_S, "bounce": True} | options
        server = TcpEndpoint("mail.example.org")
        route = Route(os.fsencode(self.path), server, **settings)  # type: ignore[arg-type]
        self.report = Report(self.log)
        self.warner = DelayWarner(
            self.maildir,
            route,
            self.report,
            self.state,
            lambda: self.now,
            lambda: [name for _, name in self.maildir.scan()],
        )

    def can_reach(self, recipient: bytes) -> bool:
        """See `mailers.Mailer`."""
        return self.reaches

    def send(self, bounce: bytes, recipient: bytes, identifier: str) -> bytes | None:
        """See `mailers.Mailer`."""
        self.then()
        self.tried.append(recipient)
        if recipient in self.refused:
            raise LocalError(f"exit 67 {recipient!r}")
        self.sent.append((bounce, recipient, identifier))
        return None

    def add(
        self,
        name: str,
        *recipients: str,
        age_s: float = 5 * HOUR_S,
        text: bytes = b"Subject: test\n\nHello\n",
        sender: bytes | None = b"sender@example.org",
    ) -> None:
        """Put a message of this age into new/."""
        add_message(self.path, name, text, sender)
        os.utime(self.path / "new" / name, (NOW - age_s, NOW - age_s))
        if recipients:
            add_sidecar(self.path, name, "s@x", *recipients)

    def warn(self) -> list[bytes]:
        """Warn of all that is due; return to whom."""
        before = len(self.sent)
        self.warner.warn_all(self.maildir.scan())
        return [recipient for _, recipient, _ in self.sent[before:]]

    @property
    def last(self) -> EmailMessage:
        """The last warning."""
        found = email.message_from_bytes(self.sent[-1][0], policy=email.policy.default)
        assert isinstance(found, EmailMessage)
        return found

    @property
    def fields(self) -> list[dict[str, str]]:
        """The groups of the last warning's status part."""
        part = list(self.last.iter_parts())[1]
        return [dict(group.items()) for group in part.get_payload()]  # type: ignore[union-attr]


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Case]:
    """A maildir without messages."""
    cases: list[Case] = []
    monkeypatch.setattr(bounces, "make_mailer", lambda *_: cases[0])
    made = Case.__new__(Case)
    cases.append(made)
    made.__init__(tmp_path / "M")  # type: ignore[misc]
    yield made
    made.maildir.close()


def test_the_sender_is_told_once(case: Case) -> None:
    """Not with each attempt, and not after a restart."""
    case.add("1.a", sender=b"s@x")
    assert case.warn() == [b"s@x"]
    assert case.warn() == []
    case.run()
    assert case.warn() == []
    assert "1.a: <s@x> has been told that it waits" in case.log.getvalue()
    os.rename(case.path / "new" / "1.a", case.path / "cur" / "1.a,U=7:2,S")
    case.warner.warn_all(case.maildir.scan(True))
    assert len(case.sent) == 1, "a mail reader's flag makes no other message of it"


def test_only_what_waits_for_long_enough(case: Case) -> None:
    """A greylisting of 5 minutes is nobody's business; a clock that was set back neither."""
    case.add("1.a", age_s=4 * HOUR_S - 1)
    case.add("2.a", age_s=-DAY_S)
    assert case.warn() == []
    case.now += 1
    assert len(case.warn()) == 1


def test_what_it_says(case: Case) -> None:
    """To people and to programs: RFC 3464, 2.3."""
    case.add("1.a", text=b"Subject: hello\nMessage-ID: <1@x>\n\nsecret\n")
    case.state.note_attempt(b"1.a", "mailbox full (#4.2.2)")
    case.now += 60
    case.warn()
    assert case.last["Subject"] == "Delayed mail"
    assert case.last["Auto-Submitted"] == "auto-replied"
    text, _, quoted = case.last.iter_parts()
    said = text.get_content()
    assert "warning only" in said
    assert "mailbox full" in said
    assert quoted.get_content_type() == "text/rfc822-headers"
    assert b"secret" not in case.sent[0][0], "RFC 3461, 4.3"
    assert case.fields[1] == {
        "Final-Recipient": "rfc822; recipient@example.net",
        "Action": "delayed",
        "Status": "4.2.2",
        "Diagnostic-Code": "x-qmtp; Zmailbox full (#4.2.2)",
        "Last-Attempt-Date": rfc5322_date(NOW),
        "Will-Retry-Until": rfc5322_date(NOW - 5 * HOUR_S + 14 * DAY_S),
    }


def test_of_what_was_never_tried_it_says_nothing_of_a_server(case: Case) -> None:
    """The link may be down: that is what most warnings are about."""
    case.add("1.a", age_s=20 * DAY_S)
    case.warn()
    assert case.fields[1] == {
        "Final-Recipient": "rfc822; recipient@example.net",
        "Action": "delayed",
        "Status": "4.0.0",
        "Will-Retry-Until": rfc5322_date(NOW + DAY_S),
    }


def test_each_recipient_has_its_own_answer(case: Case) -> None:
    """That of another one would be a lie."""
    case.add("1.a", "a@y", "b@y")
    case.state.note_attempt(b"1.a", "<b@y>: busy")
    case.warn()
    first, second = case.fields[1:]
    assert (first["Final-Recipient"], first.get("Diagnostic-Code")) == ("rfc822; a@y", None)
    assert second["Diagnostic-Code"] == "x-qmtp; Zbusy"


@pytest.mark.parametrize(
    ("recipients", "texts", "said"),
    [
        (["b@y", "a@y"], ["<b@y>: busy", "broken"], ["Zbusy", "Zbroken"]),
        (["b@y", "a@y"], ["<a@y>: full"], [None, "Zfull"]),
        (["b@y", "a@y"], ["<a@y>: "], [None, None]),
        (["b@y"], ["<b@y>: busy", "<a@y>: full"], ["Zbusy"]),
        (["b@y"], ["greylisted", "<a@y>: full"], ["Zgreylisted"]),
    ],
)
def test_an_answer_to_one_is_not_shown_for_another(
    case: Case, recipients: list[str], texts: list[str], said: list[str | None]
) -> None:
    """A sender who reads that b's mailbox is full, while it is a's, calls the wrong one."""
    case.add("1.a", *recipients)
    for text in texts:
        case.state.note_attempt(b"1.a", text)
    case.warn()
    got = [group.get("Diagnostic-Code") for group in case.fields[1:]]
    assert got == [text and f"x-qmtp; {text}" for text in said]


@pytest.mark.parametrize("sender", [b"", b"#@[]", b"MAILER-DAEMON"])
def test_a_bounce_is_never_warned_of(case: Case, sender: bytes) -> None:
    """Nobody is there to read it, and two forwarders would go on for ever."""
    case.add("1.a", sender=sender)
    case.add("2.a")
    assert len(case.warn()) == 1


def test_a_sender_that_the_mailer_cannot_reach_is_not_told(case: Case) -> None:
    """sendmail would take it for a list, or for a command."""
    case.add("1.a")
    case.reaches = False
    assert case.warn() == []


def test_what_is_held_is_passed_over(case: Case) -> None:
    """Nobody knows whom to tell; and the next message counts."""
    case.add("1.a", sender=None)
    case.add("2.a", text=b"Received: x\n" * 100 + b"\n")
    case.add("3.a")
    assert len(case.warn()) == 1


def test_a_crash_while_it_is_sent_never_sends_two(case: Case) -> None:
    """Noted first, then sent: at most once."""
    case.add("1.a")

    def crash() -> None:
        noted = json.loads((case.path / ".maildirqmtp-state.json").read_text())["warned"]
        assert list(noted) == ["1.a"]
        raise KeyboardInterrupt

    case.then = crash
    with pytest.raises(KeyboardInterrupt):
        case.warn()
    case.then = lambda: None
    case.run()
    assert case.warn() == []


def test_a_mailer_that_fails_is_tried_again(case: Case) -> None:
    """And told of once, not for each message."""
    case.add("1.a")
    case.add("2.a")

    def fail() -> None:
        raise LocalError("sendmail is missing")

    case.then = fail
    assert case.warn() == case.warn() == []
    assert case.log.getvalue().count("sendmail is missing; it is tried again") == 1
    assert case.report.counters.exit_code == 111
    case.state.save()
    case.then = lambda: None
    case.run()
    assert len(case.warn()) == 2


def test_a_sender_who_is_refused_keeps_no_other_from_being_told(case: Case) -> None:
    """One forged address that the mailer does not take, and nobody was told any more."""
    case.refused = {b"bad@x", b"bad2@x"}
    case.add("1.a", sender=b"bad@x")
    case.add("2.a", sender=b"bad2@x")
    case.add("3.a", sender=b"good@x")
    assert case.warn() == [b"good@x"]
    case.add("4.a", sender=b"good@x")
    assert case.warn() == [b"good@x"]
    assert case.log.getvalue().count("exit 67 b'bad@x'") == 1, "not every ten minutes for weeks"


def test_a_mailer_that_takes_nothing_is_left_alone_for_a_while(case: Case) -> None:
    """After three in a row; the next look begins with others, which it may take."""
    for number in range(4):
        case.add(f"{number}.a", sender=b"%d@x" % number)
        case.refused.add(b"%d@x" % number)
    case.warn()
    assert len(case.tried) == 3
    (last,) = case.refused - set(case.tried)
    case.warn()
    assert case.tried[3] == last
    case.refused.clear()
    assert len(case.warn()) == 4, "those that have failed are not given up on"


def test_a_mailer_that_hangs_ends_the_look(case: Case) -> None:
    """Each of them would hold the mail up for five minutes."""

    def hang() -> None:
        case.tried.append(b"")
        raise MailerTimeout("sendmail took more than 300 s")

    for number in range(4):
        case.add(f"{number}.a")
    case.then = hang
    case.warn()
    assert len(case.tried) == 1


def test_failures_count_as_warnings_do(case: Case) -> None:
    """Each runs a program: a thousand in an hour are too many, whether it takes them or not."""
    case.run(max_bounces=2)
    for number in range(4):
        case.add(f"{number}.a", sender=b"%d@x" % number)
        case.refused.add(b"%d@x" % number)
    case.warn()
    case.warn()
    assert len(case.tried) == 2


def test_what_an_administrator_holds_is_not_warned_of(case: Case) -> None:
    """People know why it waits, and its sender may be the last one who is to."""
    case.add("1.a,S=22:2,S")
    case.add("2.a")
    holds.change(case.maildir.root, STATE, MAX_BYTES, hold=[b"1.a", b"2.a"], release=[])
    assert case.warn() == []
    holds.change(case.maildir.root, STATE, MAX_BYTES, hold=[], release=[b"1.a"])
    assert len(case.warn()) == 1


def test_what_nobody_can_be_told_of_is_read_once(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of bounces that wait would be opened and read every ten minutes."""
    case.add("1.a", sender=b"")
    case.add("2.a", "elsewhere@y")
    case.run(prefix=b"pre-")
    read: list[bytes] = []

    def counted(maildir: Maildir, route: Route, folder: Folder, name: bytes) -> object:
        read.append(name)
        return prepare(maildir, route, folder, name)

    monkeypatch.setattr(delay_warnings, "prepare", counted)
    case.warn()
    case.warn()
    assert sorted(read) == [b"1.a", b"2.a"]
    monkeypatch.setattr(delay_warnings, "_MOST_NAMES", 2)
    case.add("3.a", sender=b"")
    case.warn()
    assert len(case.warner._never) == 1, "a daemon must not grow with the names of years"


def test_each_route_of_a_maildir_tells_of_its_own_recipients(case: Case) -> None:
    """The other one's warning says nothing of them."""
    case.add("1.a", "a-r@y", "b-r@y")
    for prefix in (b"a-", b"b-", b"a-"):
        case.run(prefix=prefix)
        case.warn()
    assert len(case.sent) == 2
    case.state.forget([b"1.a"])
    case.state.save()
    assert "warned" not in (case.path / ".maildirqmtp-state.json").read_text()


def test_what_another_route_has_told_meanwhile_ends_no_look(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has failed, and there is nothing to be complained of."""
    case.add("1.a")
    case.add("2.a")
    case.state.note_warned(b"1.a", b"")
    monkeypatch.setattr(case.state, "was_warned", lambda *_: False)
    assert len(case.warn()) == 1
    assert "no warning" not in case.log.getvalue()


def test_a_mailer_that_took_too_long_may_have_sent_it(case: Case) -> None:
    """So it is not sent again."""
    case.add("1.a")

    def hang() -> None:
        raise MailerTimeout("sendmail took more than 300 s")

    case.then = hang
    assert case.warn() == []
    case.then = lambda: None
    case.run()
    assert case.warn() == []


def test_what_cannot_be_noted_is_not_sent(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk each run would warn again."""
    case.add("1.a")

    def full(*_: object, **__: object) -> None:
        raise LocalError("no space")

    with monkeypatch.context() as patch:
        patch.setattr("maildirqmtp.maildir.files.replace", full)
        assert case.warn() == []
    assert "cannot be noted" in case.log.getvalue()
    assert case.state.take_fault() == "no space"
    assert len(case.warn()) == 1


def test_no_flood(case: Case) -> None:
    """When the link comes down over 5,000 messages; the others follow in the next hours."""
    for number in range(5):
        case.add(f"{number}.a")
    case.run(max_bounces=2)
    assert len(case.warn()) == 2
    assert case.warn() == []
    case.now += HOUR_S
    assert len(case.warn()) == 2
    case.now -= 9 * HOUR_S  # set back
    assert case.warner.may_warn()


def test_the_note_goes_with_the_message(case: Case) -> None:
    """Another message of its name is another one; and after 400 days nobody has it any more."""
    case.add("1.a")
    case.add("2.a")
    assert len(case.warn()) == 2
    case.state.forget([b"1.a"])
    case.state.save()
    case.run()
    assert not case.state.was_warned(b"1.a", b"")
    assert case.state.was_warned(b"2.a", b"")
    case.now += WARNED_S + 1
    case.state.first_deferral(b"3.a")
    case.state.save()
    case.run()
    assert not case.state.was_warned(b"2.a", b"")


def test_the_notes_are_bounded(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no room, nobody is told, for twice would be worse; and that is said."""
    monkeypatch.setattr("maildirqmtp.maildir.warned.MOST_WARNED", 3)
    for number in range(4):
        case.add(f"{number}.a")
    assert len(case.warn()) == 3
    assert case.warn() == []
    assert case.log.getvalue().count("no other sender is told until some of the messages") == 1
    assert len(json.loads((case.path / STATE.decode()).read_text())["warned"]) == 3


def test_notes_of_what_is_gone_make_room(case: Case) -> None:
    """What qmtpq drops, or a reader moves, was noted for 400 days; then nobody was told."""
    content = {"version": 1, "warned": {str(n): NOW for n in range(MOST_WARNED - 1)}}
    (case.path / STATE.decode()).write_text(json.dumps(content))
    case.run()
    for name in ("one.a:2,S", "two.a"):
        case.add(name)
        assert len(case.warn()) == 1
    assert list(json.loads((case.path / STATE.decode()).read_text())["warned"]) == [
        "one.a",
        "two.a",
    ]
    assert case.warn() == []
