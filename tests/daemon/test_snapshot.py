"""A route at one moment, for people and for programs."""

import json

from maildirqmtp.daemon.snapshot import Snapshot, WaitingMessage
from maildirqmtp.forwarder.report import Counters
from maildirqmtp.forwarder.route import Route
from maildirqmtp.transport.endpoint import TcpEndpoint

ROUTE = Route(b"/Maildir", TcpEndpoint("mail.example.org"), prefix=b"p\xff-")


def snapshot(state: str = "idle", **values: object) -> Snapshot:
    """Return a snapshot whose counters are 1, 2, 3 ..."""
    counters = Counters()
    for number, name in enumerate(counters.__slots__, 1):
        setattr(counters, name, number)
    return Snapshot(ROUTE, state, counters.as_dict(), **values)  # type: ignore[arg-type]


def test_its_line_says_what_an_administrator_asks_first() -> None:
    """How much waits, what it is doing, what became of the rest."""
    assert snapshot(messages=5).line() == (
        "5 waiting; idle; 1 accepted, 4 deferred, 5 failed, 2 bounced, 7 in doubt"
    )


def test_its_line_says_why_it_backs_off_and_only_then() -> None:
    """A reason of yesterday is not shown beside `connected`."""
    reason = "cannot connect to mail.example.org:209: refused"
    assert f"; backing off; {reason}; " in snapshot("backing off", stop_reason=reason).line()
    assert reason not in snapshot("connected", stop_reason=reason).line()
    assert snapshot("backing off").line().startswith("0 waiting; backing off; 1 accepted")


def test_counters_are_those_of_that_moment() -> None:
    """The daemon goes on counting in another thread while this is written to a file."""
    counters = Counters()
    taken = Snapshot(ROUTE, "idle", counters.as_dict())
    counters.accepted = 100
    assert taken.counters["accepted"] == 0


def test_as_a_dictionary_it_survives_json() -> None:
    """Names and prefixes are bytes: those that are no UTF-8, too."""
    waiters = (WaitingMessage(b"1.\xff", 3, "Zno", 1234.5), WaitingMessage(b"2.x", 0, "", 0.0))
    found = json.loads(
        json.dumps(
            snapshot(
                "backing off",
                at_s=1.0,
                answered_s=2.0,
                messages=2,
                oldest_s=3.0,
                connect_at_s=4.0,
                stop_reason="no",
                waiters=waiters,
            ).as_dict()
        )
    )
    assert found.pop("counters")["in_doubt"] == 7
    assert found == {
        "state": "backing off",
        "server": "mail.example.org:209",
        "servers": ["mail.example.org:209"],
        "prefix": "p\udcff-",
        "cur": False,
        "sender": None,
        "default_sender": None,
        "recipients": [],
        "max_size": None,
        "at": 1.0,
        "last_success": 2.0,
        "messages": 2,
        "oldest": 3.0,
        "next_connect": 4.0,
        "excuse": "no",
        "waiting": {
            "1.\udcff": {"tries": 3, "reason": "Zno", "next": 1234.5},
            "2.x": {"tries": 0, "reason": "", "next": 0.0},
        },
    }


def test_equal_ones_are_equal() -> None:
    """It is a value."""
    assert snapshot(messages=1) == snapshot(messages=1)
    assert snapshot(messages=1) != snapshot(messages=2)
    assert "mail.example.org" in repr(snapshot())
