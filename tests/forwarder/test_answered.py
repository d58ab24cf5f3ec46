"""Messages that are settled one by one, because each may take as long as a mailer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes import FakeServer, accept
from tests.forwarder.test_forwarder import Run
from tests.forwarder.test_looking import SlowRun
from tests.helpers import Package, add_message

LOOP = b"Received: x\n" * 100 + b"\n"


class SlowMailer:
    """A mailer that takes 5 s for each bounce; notes to how many the server had mail by then."""

    def __init__(self, run: Run) -> None:
        self.received: list[int] = []
        self.left: list[list[str]] = []
        self.began: list[float] = []
        self._run = run

    def can_reach(self, recipient: bytes) -> bool:
        """See `mailers.Mailer`."""
        return True

    def send(self, bounce: bytes, recipient: bytes, identifier: str) -> bytes | None:
        """See `mailers.Mailer`."""
        run = self._run
        self.received.append(sum(run.received.values()))
        self.left.append(run.new)
        self.began.append(run.clock())
        run.clock.advance(5.0)
        assert run.clock() <= run.forwarder.watchdog_deadline
        return None


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """An empty maildir and a server that accepts."""
    return Run(monkeypatch, tmp_path / "Maildir")


@pytest.fixture
def mailer(run: Run, monkeypatch: pytest.MonkeyPatch) -> SlowMailer:
    """The mailer of the run's bounces."""
    made = SlowMailer(run)
    monkeypatch.setattr("maildirqmtp.forwarder.bounces.make_mailer", lambda *_: made)
    return made


@pytest.mark.parametrize("good", [0, 1], ids=["without a connection", "with one"])
def test_a_hundred_bounces_of_loops_do_not_count_as_hanging(
    run: Run, mailer: SlowMailer, good: int
) -> None:
    """systemd killed the daemon amid them; and mail that could go waited for all of them."""
    run.add(good)
    for number in range(100, 200):
        add_message(run.path, f"{number}.a", LOOP, b"s@x")
    run.go(bounce=True)
    assert mailer.received == [good] * 100
    assert run.reached == good
    assert run.new == []
    assert run.kinds()["bounced"] == 100


def test_bounces_of_many_refusals_do_not_count_as_hanging(run: Run, mailer: SlowMailer) -> None:
    """The answers to all of them may come at once; systemd killed the daemon amid the bounces."""
    run.add(60)
    answers: list[FakeServer] = []

    def refuse_at_last(server: FakeServer, package: Package) -> None:
        answers.append(server)
        if len(answers) == 60:
            for waiting in answers:
                waiting.respond(b"Dno")

    run.scripts = [refuse_at_last]
    run.go(bounce=True)
    assert len(mailer.began) == 60
    assert run.new == []


@pytest.mark.parametrize("answer", [b"Kok", None])
def test_a_loop_is_bounced_once(run: Run, mailer: SlowMailer, answer: bytes | None) -> None:
    """Also if the maildir is scanned before it is settled, or the server cannot be reached then."""
    run.add(1)
    add_message(run.path, "2.a", LOOP, b"s@x")

    def script(server: FakeServer, package: Package) -> None:
        if answer is None:
            server.hang_up()
        else:
            server.respond(answer)

    run.scripts = [script, accept]
    run.go(bounce=True, window_messages=1)
    assert len(mailer.left) == 1
    assert run.new == []
    assert run.kinds()["bounced"] == 1
    assert "was removed while it was being sent" not in run.log.getvalue()


def test_a_bounce_does_not_wait_for_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has an hour to answer what was sent before."""
    run = SlowRun(monkeypatch, tmp_path / "Maildir")
    mailer = SlowMailer(run)
    monkeypatch.setattr("maildirqmtp.forwarder.bounces.make_mailer", lambda *_: mailer)
    run.fill(100, 0)  # so that the loop is found after the first message was sent
    add_message(run.path, "200.a", LOOP, b"s@x", b"p-r@y")

    def late(server: FakeServer, package: Package) -> None:
        run.clock.at(run.clock() + 3_000, lambda: server.respond(b"Kok"))

    run.scripts = [late]
    run.go(bounce=True, prefix=b"p-")
    assert mailer.began[0] < 1_000 + 2, "it waited for the answer"
    assert len(run.new) == 100


def test_stop_does_not_wait_for_the_bounces_of_all_loops(
    run: Run, mailer: SlowMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand of them, found in one look, kept a daemon from ending for over an hour."""
    for number in range(100, 200):
        add_message(run.path, f"{number}.a", LOOP, b"s@x")
    send = mailer.send

    def send_and_stop(bounce: bytes, recipient: bytes, identifier: str) -> bytes | None:
        run.forwarder.stop()
        return send(bounce, recipient, identifier)

    monkeypatch.setattr(mailer, "send", send_and_stop)
    run.go(bounce=True)
    assert len(mailer.began) == 1
    assert len(run.new) == 99
    assert run.code == 111
