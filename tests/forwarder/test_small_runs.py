"""Whole runs with small messages in batches: what becomes of each is the same as one by one."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maildirqmtp.forwarder import outbox, queued_message, small_messages, small_removals
from maildirqmtp.forwarder.queued_message import QueuedMessage
from maildirqmtp.forwarder.report import Report
from maildirqmtp.maildir import holds
from maildirqmtp.maildir.files import Folder
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.removal_process import RemovalProcess
from maildirqmtp.maildir.state import MAX_BYTES, NAME, State
from maildirqmtp.transport.endpoint import Endpoint
from tests.fakes import FakeScript, FakeServer, accept
from tests.forwarder.test_forwarder import NOW, Run
from tests.helpers import Package, names

#: Answers of a server, one for each package; "!" hangs up, "?" is no answer at all.
Answers = Sequence[bytes]


def scripted(answers: Answers) -> FakeScript:
    """Answer the packages of all connections in this order; then accept whatever comes."""
    left = list(answers)

    def script(server: FakeServer, package: Package) -> None:
        answer = left.pop(0) if left else b"Kok"
        if answer == b"!":
            server.hang_up()
        else:
            server.respond(answer)

    return script


def use_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a second process remove messages, as in a long run on a machine with two cores."""
    monkeypatch.setattr(small_removals, "MANY", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr(threading, "active_count", lambda: 1)


def forward(
    monkeypatch: pytest.MonkeyPatch,
    path: Path,
    answers: Answers,
    *,
    one_by_one: bool,
    window: int,
    two_processes: bool = False,
) -> Run:
    """Forward 12 messages."""
    if two_processes:
        use_two_processes(monkeypatch)
        # What is being removed counts as in flight, and less is in doubt then.
        usual = RemovalProcess.take
        monkeypatch.setattr(RemovalProcess, "take", lambda process, wait: usual(process, True))
    run = Run(monkeypatch, path)
    run.report = Report(run.log, run.data if one_by_one else None, -1, run, run.clock)
    run.add(12)
    for number in range(1, 13):
        os.utime(path / "new" / f"{number}.a", (NOW - 100, NOW - 100))
    run.scripts = [scripted(answers)]
    run.go(window_messages=window)
    return run


def outcome(run: Run) -> tuple[object, ...]:
    """What is left, what failed, what the server got, and the counters."""
    failed = run.path / ".Failed" / "new"
    return (
        run.new,
        names(failed) if failed.exists() else [],
        run.received,
        run.report.counters.as_tuple(),
        [[p.text for p in server.received] for server in run.servers],
    )


ANSWERS = [b"Kok", b"Zlater", b"Dno", b"K", b"K" + b"x" * 3_000, b"!", b"Xnonsense"]


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    answers=st.lists(st.sampled_from(ANSWERS), max_size=16),
    window=st.sampled_from([1, 3, 12, 4_096]),
    two_processes=st.booleans(),
)
def test_batches_and_single_messages_come_to_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    answers: list[bytes],
    window: int,
    two_processes: bool,
) -> None:
    """Whatever a server answers, and wherever it hangs up."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        runs = [
            forward(
                monkeypatch,
                tmp_path_factory.mktemp("run") / "Maildir",
                answers,
                one_by_one=one_by_one,
                window=window,
                two_processes=two_processes,
            )
            for one_by_one in (False, True)
        ]
    assert outcome(runs[0]) == outcome(runs[1])


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """A run in which nothing is said of accepted messages."""
    made = Run(monkeypatch, tmp_path / "Maildir")
    made.report = Report(made.log, None, -1, None, made.clock)
    return made


def add_old(run: Run, count: int) -> None:
    """Put messages into new/ whose writers are surely done."""
    run.add(count)
    for number in range(1, count + 1):
        os.utime(run.path / "new" / f"{number}.a", (NOW - 100, NOW - 100))


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """Count the messages that are made objects of, by name."""
    counts: Counter[bytes] = Counter()
    usual = queued_message.prepare

    def counted(
        maildir: object, route: object, folder: object, name: bytes, most_bytes: int
    ) -> object:
        counts[name] += 1
        return usual(maildir, route, folder, name, most_bytes)  # type: ignore[arg-type]

    monkeypatch.setattr(outbox, "prepare", counted)
    return counts


def test_usual_mail_goes_in_batches(run: Run, prepared: Counter[bytes]) -> None:
    """One object for each message takes twice the time."""
    add_old(run, 500)
    run.go()
    assert run.new == []
    assert run.report.counters.accepted == 500
    assert len(prepared) == 1  # before the first, it is proven that messages can be removed


def with_sender(run: Run) -> dict[str, object]:
    """--sender."""
    return {"sender": b""}


def with_recipient(run: Run) -> dict[str, object]:
    """--recipient."""
    return {"recipients": (b"other@y",)}


def with_sent(run: Run) -> dict[str, object]:
    """--sent."""
    return {"sent": os.fsencode(run.path.parent / "sent")}


def with_envelopes(run: Run) -> dict[str, object]:
    """A directory of sidecars."""
    (run.path / "envelope").mkdir()
    return {}


def with_details(run: Run) -> dict[str, object]:
    """-v."""
    run.report.set_output(1, None)
    return {}


@pytest.mark.parametrize(
    "option", [with_sender, with_recipient, with_sent, with_envelopes, with_details]
)
def test_where_more_is_to_be_done_each_goes_by_itself(
    run: Run, prepared: Counter[bytes], option: Callable[[Run], dict[str, object]]
) -> None:
    """In a batch the option would be ignored: a wrong address, no copy, no line in the log."""
    add_old(run, 10)
    run.go(**option(run))
    assert run.new == []
    assert len(prepared) == 10


def test_a_hold_counts_while_a_window_fills(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`qmtpq bounce` holds a message, tells its sender and removes it: it must not go as well."""
    add_old(run, 600)
    done: list[str] = []
    real_held, real_gather = State.held, small_messages.gather

    def held(state: State, *, must_know: bool = False) -> Mapping[str, str]:
        done.append("look")
        return real_held(state, must_know=must_know)

    def gather(*arguments: Any) -> Any:
        assert done[-1] == "look"
        done.append("gather")
        return real_gather(*arguments)

    monkeypatch.setattr(State, "held", held)
    monkeypatch.setattr("maildirqmtp.forwarder.outbox.gather", gather)
    run.go(window_messages=1_000)
    assert run.new == []
    assert done.count("gather") > 8


@pytest.mark.parametrize("way", ["in batches", "one by one", "large"])
def test_a_hold_counts_that_comes_while_the_message_is_opened(
    run: Run, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The disk may take long over that, and its sender is told meanwhile that it has failed."""
    add_old(run, 5)
    of = {"in batches": "gather", "one by one": "prepare", "large": "prepare"}[way]
    real = getattr(outbox, of)

    def and_held(maildir: Maildir, *arguments: Any) -> Any:
        found = real(maildir, *arguments)
        if of == "gather" or (arguments[2] == b"3.a" and isinstance(found, QueuedMessage)):
            holds.change(maildir.root, NAME, MAX_BYTES, hold=[b"3.a"], release=[])
        return found

    monkeypatch.setattr(outbox, of, and_held)
    options: dict[str, object] = {"large_bytes": 1} if way == "large" else {}
    if way != "in batches":
        run.report = Report(run.log, run.data, 0, run, run.clock)
    run.go(**options)
    assert run.new == ["3.a"]
    assert sum(run.received.values()) == 4
    assert (b"r3@y",) not in run.received
    assert run.code == 111


# A second process


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Use two processes; note the IDs of those that are started."""
    use_two_processes(monkeypatch)
    noted: list[int] = []
    usual = RemovalProcess.__init__

    def init(process: RemovalProcess, folders: Sequence[Folder]) -> None:
        usual(process, folders)
        noted.append(process._process)

    monkeypatch.setattr(RemovalProcess, "__init__", init)
    return noted


def test_it_is_started_before_there_is_a_connection(
    run: Run, started: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would keep a connection open: a command would never see the end of its input."""
    connects: list[int] = []
    usual = run.connect

    def connect(server: Endpoint, timeout_s: float) -> FakeServer:
        connects.append(len(started))
        return usual(server, timeout_s)

    monkeypatch.setattr(run, "connect", connect)
    add_old(run, 10)
    run.go()
    assert connects == [1]
    assert run.new == []


@pytest.mark.parametrize("options", [{"sender": b""}, {"recipients": (b"r@y",)}])
def test_none_is_started_where_messages_are_removed_one_by_one(
    run: Run, started: list[int], options: dict[str, object]
) -> None:
    """It would have nothing to do."""
    add_old(run, 10)
    run.go(**options)
    assert started == []
    assert run.new == []


def test_a_scan_waits_for_it(run: Run, started: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has not removed yet would be found, and sent once more."""
    usual = RemovalProcess.take

    def late(process: RemovalProcess, wait: bool) -> bytes:
        return usual(process, wait=True) if wait else b""

    monkeypatch.setattr(RemovalProcess, "take", late)
    add_old(run, 200)
    run.go()
    assert len(started) == 1
    assert set(run.received.values()) == {1}
    assert run.report.counters.accepted == 200


def test_when_it_dies_the_run_goes_on(
    run: Run, started: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent twice, and nothing stays."""
    usual = RemovalProcess.put

    def put(process: RemovalProcess, messages: Any) -> None:
        usual(process, messages)
        os.kill(process._process, signal.SIGKILL)

    monkeypatch.setattr(RemovalProcess, "put", put)
    add_old(run, 200)
    run.go()
    assert set(run.received.values()) == {1}
    assert run.new == []
    assert run.report.counters.accepted == 200
    assert run.report.counters.exit_code == 0


def test_what_it_could_not_remove_stops_the_run(
    run: Run, started: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full or broken disk: each further message would be sent again by the next run."""

    def no_unlink(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "broken")

    add_old(run, 10)
    usual = os.unlink

    def unlink(name: bytes | str, *, dir_fd: int | None = None) -> None:
        if os.fsencode(name)[-2:] == b".a":
            no_unlink()
        usual(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", unlink)
    run.go()
    assert set(run.received.values()) == {1}
    assert run.report.counters.exit_code == 111
    assert len(run.new) == 10


@pytest.mark.parametrize("window", [1, 20, 200])
def test_what_is_being_removed_counts_as_in_flight(
    run: Run, started: list[int], monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    """When both processes are killed, no more is sent again than the window says."""
    usual = RemovalProcess.take
    unsettled: list[int] = []

    def late(process: RemovalProcess, wait: bool) -> bytes:
        return usual(process, wait=True) if wait else b""

    def script(server: FakeServer, package: Package) -> None:
        unsettled.append(len(server.received) - run.report.counters.accepted)
        server.respond(b"Kok")

    monkeypatch.setattr(RemovalProcess, "take", late)
    add_old(run, 300)
    run.scripts = [script]
    run.go(window_messages=window)
    assert run.new == []
    assert max(unsettled) <= window
    assert len(run.servers) == 1


def test_a_window_that_shrinks_has_room_again(
    run: Run, started: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each further connection ends with nothing sent."""
    usual = RemovalProcess.take

    def late(process: RemovalProcess, wait: bool) -> bytes:
        return usual(process, wait=True) if wait else b""

    def script(server: FakeServer, package: Package) -> None:
        if len(server.received) == 100:
            server.hang_up()
        else:
            server.respond(b"Kok")

    monkeypatch.setattr(RemovalProcess, "take", late)
    add_old(run, 150)
    run.scripts = [script, accept]
    run.go(window_messages=200)
    assert run.new == []
    assert [bool(server.received) for server in run.servers] == [True, True]
