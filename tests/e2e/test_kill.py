"""kill -9 at any moment: nothing is lost, and only what was in doubt goes twice.

The kills come from the server, which knows how far the run is: right before it
sends answers, right after, or some microseconds later, when the client is amid
settling them.
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.evil import RecordingTransport, Stock, evil_server, stock
from tests.helpers import command, names, sidecar, wait_until

Answer = Callable[[bytes, bytes, int], bytes]


def accept(text: bytes, recipient: bytes, times: int) -> bytes:
    """Accept everything."""
    return b"K"


def mixed(text: bytes, recipient: bytes, times: int) -> bytes:
    """Accept most; refuse some; defer some always, and some the first time."""
    kind = (int(text.split()[1]) + len(recipient)) % 10
    return {0: b"D", 1: b"Z", 2: b"K" if times else b"Z"}.get(kind, b"K")


@dataclass
class Killer:
    """A server that accepts, notes what it accepted, and kills its client.

    `accepted` counts, by text and recipient, the K's that were sent; `refused`
    are those that got a D. The client is killed when `left` more packages have come.
    """

    rng: random.Random
    answer: Answer
    accepted: Counter[tuple[bytes, bytes]] = field(default_factory=Counter)
    refused: set[tuple[bytes, bytes]] = field(default_factory=set)
    seen: Counter[tuple[bytes, bytes]] = field(default_factory=Counter)
    left: int = 0
    pid: int = 0
    finished: int = 0

    def __call__(self, line: RecordingTransport, number: int) -> None:
        """Answer in bursts of any size, as servers with a buffer do."""
        waiting: list[tuple[bytes, tuple[bytes, bytes]]] = []
        burst = self.rng.randrange(1, 80)
        for package in line.packages_from(chunk=32 << 10):
            for recipient in package.recipients:
                who = (package.text, recipient)
                waiting.append((self.answer(*who, self.seen[who]), who))
                self.seen[who] += 1
            self.left -= 1
            more = package is not line.packages[-1] or select.select([line.socket], [], [], 0)[0]
            if len(waiting) >= burst or self.left == 0 or not more:
                self._send(line, waiting)
                waiting = []
                burst = self.rng.randrange(1, 80)
        self.finished += 1

    def _send(
        self, line: RecordingTransport, waiting: list[tuple[bytes, tuple[bytes, bytes]]]
    ) -> None:
        moment = self.rng.random() if self.pid and self.left <= 0 else 1.0
        if moment < 0.2:
            self._kill()
        for status, who in waiting:
            if status == b"K":
                self.accepted[who] += 1
            elif status == b"D":
                self.refused.add(who)
        line.send(b"".join(b"5:%btext," % status for status, _ in waiting))
        if 0.2 <= moment < 1.0:
            # Not to wait for anything: to hit the client at another point each time.
            until = time.perf_counter() + self.rng.random() ** 2 * 0.004
            while time.perf_counter() < until:
                pass
            self._kill()

    def _kill(self) -> None:
        pid, self.pid = self.pid, 0
        if pid:
            os.kill(pid, signal.SIGKILL)


@dataclass
class Campaign:
    """What became of a maildir whose forwarder was killed again and again."""

    killer: Killer
    kills: int = 0
    runs: int = 0

    @property
    def duplicates(self) -> int:
        """K's beyond the first to the same message and recipient."""
        return sum(self.killer.accepted.values()) - len(self.killer.accepted)


def campaign(
    made: Stock, kills: int, seed: int, *flags: str | Path, answer: Answer = accept
) -> Campaign:
    """Run and kill so many times, then twice more, for what was deferred the first time."""
    rng = random.Random(seed)
    killer = Killer(rng, answer)
    fought = Campaign(killer)
    arguments = [*command(), "--quiet", *flags, made.maildir]
    with evil_server(killer) as server:
        spared = 0
        while made.new and spared < 2:
            before = len(made.new)
            process = subprocess.Popen(
                [*arguments, server.address],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            if fought.kills == kills:
                spared += 1
            else:
                # Not all of it: on a busy machine more goes before each kill than was meant.
                share = 3 * before // (2 * (kills - fought.kills))
                killer.left = rng.randrange(1, max(2, min(share, before // 2)))
                killer.pid = process.pid
            error = process.communicate(timeout=60)[1]
            killer.pid = 0
            fought.runs += 1
            fought.kills += process.returncode == -signal.SIGKILL
            assert process.returncode in (0, 111, -signal.SIGKILL), error
            assert "Traceback" not in error
            # What was sent before the kill is still taken by the server.
            wait_until(lambda: killer.finished == len(server.lines), "the server to be done")
    # The last one may have come too late, when the run was over.
    assert kills - 2 <= fought.kills <= kills
    return fought


def leftovers(maildir: Path) -> int:
    """Count what a kill may leave in the tmp/ of a maildir: later runs clean it up."""
    return len(names(maildir / "tmp"))


def filled(path: Path, count: int, *recipients: bytes) -> Stock:
    """Make a maildir with so many messages, of many lengths."""
    made = stock(path)
    for number in range(count):
        made.add(b"Subject: %d\n\n" % number + b"x" * (number % 700), *recipients)
    return made


#: Kills and messages: what every run of the tests can afford, and a campaign.
SIZES = [
    pytest.param(40, 2_000, id="40-kills"),
    pytest.param(200, 5_000, id="200-kills", marks=[pytest.mark.long, pytest.mark.timeout(900)]),
]
LONG_ONLY = SIZES[1:]


def say(fought: Campaign, messages: int, bound: int) -> None:
    """Show the figures, with -s."""
    print(
        f"\n{fought.kills} kills in {fought.runs} runs over {messages} messages: "
        f"{fought.duplicates} duplicates, at most {bound} may be"
    )


@pytest.mark.parametrize(("kills", "messages"), SIZES)
def test_killed_at_any_moment_nothing_is_lost(tmp_path: Path, kills: int, messages: int) -> None:
    """A machine that dies must not take mail with it; at most the window goes twice."""
    made = filled(tmp_path / "m", messages)
    fought = campaign(made, kills, 1, "--window", "100")
    say(fought, messages, kills * 100)
    assert not made.new
    accepted = {text for text, _ in fought.killer.accepted}
    assert accepted == {text for text, _ in made.messages.values()}, "lost"
    assert fought.duplicates <= fought.kills * 100
    assert not leftovers(made.maildir)


@pytest.mark.parametrize(("kills", "messages"), LONG_ONLY)
def test_killed_with_the_default_window(tmp_path: Path, kills: int, messages: int) -> None:
    """With the window wide open nothing is lost either."""
    made = filled(tmp_path / "m", messages)
    fought = campaign(made, kills, 2)
    say(fought, messages, kills * 4_096)
    assert not made.new
    assert {text for text, _ in fought.killer.accepted} == {
        text for text, _ in made.messages.values()
    }
    assert fought.duplicates <= fought.kills * 4_096
    assert not leftovers(made.maildir)


@pytest.mark.parametrize(("kills", "messages"), [(15, 600), *LONG_ONLY])
def test_killed_while_moving_to_sent(tmp_path: Path, kills: int, messages: int) -> None:
    """With --sent each message ends there exactly once, however often it was killed."""
    made = filled(tmp_path / "m", messages)
    sent = tmp_path / "sent"
    fought = campaign(made, kills, 3, "--window", "100", "--sent", sent)
    say(fought, messages, kills * 100)
    assert not made.new
    assert set(names(sent / "new")) == made.messages.keys()
    for name, (text, _) in made.messages.items():
        assert (sent / "new" / name).read_bytes().endswith(b"\n" + text)
    assert len(fought.killer.accepted) == messages
    assert fought.duplicates <= fought.kills * 100
    assert not leftovers(made.maildir)
    assert leftovers(sent) <= fought.kills


@pytest.mark.parametrize(("kills", "messages"), [(15, 600), *LONG_ONLY])
def test_killed_among_mixed_answers(tmp_path: Path, kills: int, messages: int) -> None:
    """Every message is at the server, or still in new/, or failed with its reason."""
    made = filled(tmp_path / "m", messages)
    fought = campaign(made, kills, 4, "--window", "100", answer=mixed)
    say(fought, messages, kills * 100)
    for name, (text, recipients) in made.messages.items():
        who = (text, recipients[0])
        expected = mixed(*who, 9)
        assert (who in fought.killer.accepted) is (expected == b"K"), name
        assert (name in made.new) is (expected == b"Z"), name
        assert (made.bounced(name) == {recipients[0]}) is (expected == b"D"), name
    assert fought.duplicates <= fought.kills * 100
    assert leftovers(made.maildir) + leftovers(made.maildir / ".Failed") <= fought.kills


@pytest.mark.parametrize(
    ("kills", "messages"),
    [(15, 150), pytest.param(200, 1_500, marks=[pytest.mark.long, pytest.mark.timeout(900)])],
)
def test_killed_amid_messages_to_several(tmp_path: Path, kills: int, messages: int) -> None:
    """Every recipient was accepted, or is still owed it on disk, or has failed with a reason."""
    recipients = (b"a@y", b"bb@y", b"ccc@y", b"dddd@y")
    made = filled(tmp_path / "m", messages, *recipients)
    fought = campaign(made, kills, 5, "--window", "100", answer=mixed)
    say(fought, messages, kills * 100 * len(recipients))
    for name, (text, _) in made.messages.items():
        owed, bounced = made.owed(name), made.bounced(name)
        for recipient in recipients:
            who = (text, recipient)
            expected = mixed(*who, 9)
            assert (who in fought.killer.accepted) is (expected == b"K"), (name, recipient)
            assert (recipient in owed) is (expected == b"Z"), (name, recipient)
            assert (recipient in bounced) is (expected == b"D"), (name, recipient)
    assert fought.duplicates <= fought.kills * 100 * len(recipients)
    assert leftovers(made.maildir) + leftovers(made.maildir / ".Failed") <= fought.kills


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    """A lock that outlives its process would stop all mail until somebody looks."""
    made = filled(tmp_path / "m", 50)
    campaign(made, 5, 6, "--window", "5")
    assert not made.new


def test_sidecars_of_failed_messages_survive_kills(tmp_path: Path) -> None:
    """A message in the failed maildir without its reason could not be sent again."""
    made = filled(tmp_path / "m", 200)
    campaign(made, 20, 7, "--window", "20", answer=lambda *_: b"D")
    assert not made.new
    assert made.failed == made.messages.keys()
    for name in made.failed:
        content = sidecar(made.maildir / ".Failed", name)
        assert content["recipients"] == ["r@y"]
        assert {failure["response"] for failure in content["failures"]} == {"Dtext"}
