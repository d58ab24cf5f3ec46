"""What an administrator and a script are told: a run that fails silently is the worst."""

import errno
import io
import json
import os

import pytest

from maildirqmtp.forwarder.queued_message import QueuedMessage
from maildirqmtp.forwarder.report import Counters, Report
from maildirqmtp.qmtp.protocol import Response, Status
from tests.fakes import FakeClock, queued


class Bar:
    """A progress bar that remembers."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def update(self, done: int, total: int) -> None:
        """See `report.Progress`."""
        self.calls.append((done, total))

    def close(self) -> None:
        """See `report.Progress`."""
        self.calls.append("closed")


#: Since the epoch, when the messages of these tests are from.
DELAY_S = 7.25


class Told:
    """A report, and what it wrote."""

    def __init__(self, verbosity: int = 0, data: bool = True) -> None:
        self.log = io.StringIO()
        self.data = io.StringIO()
        self.bar = Bar()
        self.clock = FakeClock()
        self.report = Report(
            self.log,
            self.data if data else None,
            verbosity,
            self.bar,
            self.clock,
            wall_clock=lambda: DELAY_S,
        )

    @property
    def lines(self) -> list[str]:
        """The log, line by line."""
        return self.log.getvalue().splitlines()

    @property
    def events(self) -> list[dict[str, object]]:
        """The data."""
        return [json.loads(line) for line in self.data.getvalue().splitlines()]


def answered(*answers: str) -> QueuedMessage:
    """A message with these answers."""
    one = queued(b"1.a", *[b"r%d@y" % n for n in range(len(answers))])
    one.answers = [Response(Status(a[0]), a[1:].encode()) for a in answers]
    return one


def everything(report: Report) -> None:
    """Tell each kind of thing once."""
    report.connected("mail.example.org:209")
    report.accepted(answered("Kok"))
    report.one_accepted(answered("Kok", "Zx"), 0, "ok")
    report.deferred(answered("Zlater"), 0, "later")
    report.failed(answered("Dno"), 0, "no", b"/F/new/1.a")
    doubted = answered("Kok", "Kok")
    doubted.doubtful = (1,)
    report.in_doubt(doubted)
    report.held(b"2.a", "no envelope")
    report.for_others()
    report.for_others()
    report.closed("mail.example.org:209", "connection reset")
    report.note("it answers once")
    report.problem("disk full", 7)
    report.progress(1, 2)
    report.summary()


LINES = [
    (1, "connected to mail.example.org:209"),
    (1, "1.a: r0@y: accepted: ok"),
    (1, "1.a: r0@y: accepted: ok"),
    (0, "1.a: r0@y: deferred: later"),
    (0, "1.a: r0@y: failed: no (moved to /F/new/1.a)"),
    (0, "1.a: r1@y: in-doubt: not answered; it may have been taken, and will then come twice"),
    (0, "2.a: held: no envelope"),
    (0, "mail.example.org:209: connection reset"),
    (0, "it answers once"),
    (-1, "disk full"),
    (
        0,
        "2 accepted, 1 deferred, 1 failed, 1 held, 1 in doubt, 7 left, 2 for others, "
        "6 bytes, 2.50 s",
    ),
]


@pytest.mark.parametrize("verbosity", [-1, 0, 1])
@pytest.mark.parametrize("data", [True, False])
def test_the_lines_of_each_verbosity(verbosity: int, data: bool) -> None:
    """-q is for cron's mail, the default for people, -v for looking closely."""
    told = Told(verbosity, data)
    told.clock.at(1_002.5, lambda: None)
    told.clock.advance(0)
    began = told.report
    told.clock.advance(2.5)
    everything(began)
    assert told.lines == [f"maildirqmtp: {line}" for v, line in LINES if v <= verbosity]
    assert bool(told.events) is data


def test_every_event_is_an_object_on_a_line() -> None:
    """A script reads them; the names are a promise."""
    told = Told(-1)
    everything(told.report)
    outcome = {"message": "1.a", "sender": "s@x", "recipient": "r0@y", "bytes": 6}
    outcome |= {"server": "mail.example.org:209"}
    events = told.events
    details = [(e.pop("message_id"), e.pop("delay_s")) for e in events if "delay_s" in e]
    assert details == [("", DELAY_S)] * 5
    assert events[:10] == [
        {"event": "connected", "server": "mail.example.org:209"},
        {"event": "accepted", **outcome, "text": "ok"},
        {"event": "accepted", **outcome, "text": "ok"},
        {"event": "deferred", **outcome, "text": "later"},
        {"event": "failed", **outcome, "text": "no", "moved_to": "/F/new/1.a"},
        {
            "event": "in-doubt",
            **outcome,
            "recipient": "r1@y",
            "text": "not answered; it may have been taken, and will then come twice",
        },
        {"event": "held", "message": "2.a", "reason": "no envelope"},
        {"event": "closed", "server": "mail.example.org:209", "reason": "connection reset"},
        {"event": "note", "text": "it answers once"},
        {"event": "trouble", "reason": "disk full", "left": 7},
    ]
    assert events[10] == {
        "event": "summary",
        "accepted": 2,
        "deferred": 1,
        "failed": 1,
        "bounced": 0,
        "held": 1,
        "in_doubt": 1,
        "left": 7,
        "others": 2,
        "messages": 1,
        "bytes": 6,
        "seconds": 0.0,
        "exit_code": 111,
    }


def test_each_recipient_of_an_accepted_message_is_told() -> None:
    """With what the server said to each."""
    told = Told(1)
    told.report.accepted(answered("Kone", "Ktwo"))
    assert told.lines == [
        "maildirqmtp: 1.a: r0@y: accepted: one",
        "maildirqmtp: 1.a: r1@y: accepted: two",
    ]
    counters = told.report.counters
    assert (counters.accepted, counters.messages, counters.bytes) == (2, 1, 6)


def test_nothing_left_is_not_mentioned() -> None:
    """The usual summary is short."""
    told = Told()
    told.report.summary()
    assert "left" not in told.lines[0]
    assert told.events[0]["exit_code"] == 0


@pytest.mark.parametrize(
    ("counter", "code"),
    [
        ("accepted", 0),
        ("messages", 0),
        ("bytes", 0),
        ("in_doubt", 0),
        ("deferred", 111),
        ("failed", 111),
        ("held", 111),
        ("problems", 111),
        ("left", 111),
    ],
)
def test_the_exit_code(counter: str, code: int) -> None:
    """0 only where nothing of ours is left; a cron job believes it."""
    counters = Counters()
    assert counters.exit_code == 0
    setattr(counters, counter, 1)
    assert counters.exit_code == code


def test_control_characters_never_reach_the_log() -> None:
    """A server's answer or a file's name must not write on the administrator's screen."""
    told = Told(1)
    one = queued(b"1.\x1b[2J\n", b"r\x07@y", sender=b"s\r@x")
    told.report.deferred(one, 0, "later\x1b]0;owned\x07\nmaildirqmtp: all is well")
    told.report.failed(one, 0, "no", b"/F/new/1.\x1b\n")
    told.report.held(b"2.\x9b", "why\x1b[31m")
    told.report.closed("server", "reset\x1b")
    told.report.problem("disk\r\nfull")
    told.report.note("\u202egnp.exe \udcff")
    assert len(told.lines) == 6
    assert all(character.isprintable() for line in told.lines for character in line)
    assert told.data.getvalue().isascii()
    assert len(told.events) == 6
    assert told.events[0]["message"] == "1.?[2J?"
    assert told.events[0]["sender"] == "s?@x"


def test_the_bar_is_shown_and_closed_before_the_last_line() -> None:
    """Or the summary would be written into it."""
    told = Told()
    told.report.progress(3, 10)
    told.report.summary()
    assert told.bar.calls == [(3, 10), "closed"]


def test_without_a_bar() -> None:
    """Cron has none."""
    log = io.StringIO()
    report = Report(log)
    report.progress(3, 10)
    report.summary()
    assert log.getvalue().startswith("maildirqmtp: 0 accepted")


class Gone(io.StringIO):
    """A pipe that nobody reads any more."""

    writes = 0

    def write(self, text: str) -> int:
        """Fail."""
        self.writes += 1
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("which", ["log", "data", "both"])
def test_output_that_nobody_reads_stops_nothing(which: str) -> None:
    """`| head -1`: what the server has taken is still to be removed; the exit code tells."""
    log = Gone() if which in ("log", "both") else io.StringIO()
    data = Gone() if which in ("data", "both") else io.StringIO()
    report = Report(log, data, 1)
    everything(report)
    for stream, gone in ((log, isinstance(log, Gone)), (data, isinstance(data, Gone))):
        if gone:
            assert isinstance(stream, Gone)
            assert stream.writes == 1
        else:
            more = [line for line in stream.getvalue().splitlines() if "standard output" in line]
            said = ["maildirqmtp: cannot write to standard output: Broken pipe"]
            assert more == (said if which == "data" else [])
            assert len(stream.getvalue().splitlines()) == 11 + len(more)
    assert report.counters.problems == 1 + (2 if which == "both" else 1)


class Disk(io.StringIO):
    """A file on a disk that may be full."""

    is_full = False

    def flush(self) -> None:
        """Fail while the disk is full: the line stays in the buffer."""
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_was_full_has_the_daemons_log_again() -> None:
    """The log and the events of a daemon ended for good, while it went on without a word."""
    log, data = Disk(), Disk()
    report = Report(log, data)
    log.is_full = True
    report.note("one")
    log.is_full, data.is_full = False, True
    report.note("two")
    report.note("three")
    data.is_full = False
    report.note("four")
    said = "maildirqmtp: cannot write to standard output: No space left on device"
    lines = ["maildirqmtp: two", said, "maildirqmtp: three", "maildirqmtp: four"]
    assert log.getvalue().splitlines()[-4:] == lines
    texts = [json.loads(line)["text"] for line in data.getvalue().splitlines()]
    assert texts == ["one", "two", "three", "four"]
    assert report.counters.exit_code == 111
    data.is_full = True
    report.note("five")
    assert log.getvalue().splitlines()[-2:] == ["maildirqmtp: five", said]


def test_details_are_asked_for_where_they_are_shown() -> None:
    """A daemon's lines and JSON have the Message-ID; who looks for it for nothing loses time."""
    assert not Report(io.StringIO(), None, 1).detailed
    assert Report(io.StringIO(), None, attempts=True).detailed
    report = Report(io.StringIO(), io.StringIO())
    assert report.detailed
    report.set_output(1, None)
    assert not report.detailed
    report.set_output(0, io.StringIO())
    assert report.detailed


def test_more_is_told_after_a_change_of_output() -> None:
    """HUP with another verbosity holds for the frequent case as well."""
    told = Told(data=False)
    answered = queued()
    answered.answers[0] = Response(Status.ACCEPTED, b"ok")
    told.report.accepted(answered)
    assert told.log.getvalue() == ""
    told.report.set_output(1, None)
    told.report.accepted(answered)
    assert told.log.getvalue().endswith(": accepted: ok\n")
