"""What real servers do otherwise than the protocol says, a story for each: nobody loses mail.

200 mixed messages go to a server that has one quirk. Each recipient whom it accepts gets the
message once and byte for byte, each that it refuses is in the failed maildir; a second copy
comes only where a connection broke, and only with a warning. The quirks are those of
qmail-qmtpd and its patches, s/qmail, aQmail and mailfront, read in their sources.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.daemons import Running, watching
from tests.e2e.evil import (
    SQMAIL_REFUSALS,
    EvilServer,
    RecordingTransport,
    Run,
    Stock,
    evil_server,
    run_engine,
    stock,
)
from tests.helpers import (
    Package,
    ScriptedServer,
    closed_port,
    have_mailfront,
    json_events,
    mailfront,
    names,
    random_text,
    run,
    start,
    suspend,
    wait_until,
)
from tests.receiving import receiver

K, Z, D = b"3:Kok,", b"5:Zbusy,", b"20:Dno such user (#5.1),"
TEXTS = (
    b"\0",
    b"Subject: CRLF\r\n\r\nas on DOS\r\n.\r\n",
    b"Subject: \xe4\xf6\xfc\n\nL\xc3\xbcbeck\n",
    b"Subject: no final newline\n\nbody",
    bytes(range(256)),
    b"5:hello,3:a@b,6:3:c@d,,",
)
LARGE = b"Subject: 3 MB\n\n" + random_text(3 << 20)


def is_bad(recipient: bytes) -> bool:
    """Say whether a server refuses this one."""
    return recipient.endswith(b"@bad.example")


def mixed(path: Path, count: int = 200, *, refused: bool = True) -> Stock:
    """Make a maildir of messages of all kinds, to 1 to 50 recipients; the first is empty."""
    made = stock(path)
    for number in range(count):
        text = b"" if not number else TEXTS[number % len(TEXTS)] + b"%d" % number
        if number % 100 == 42:
            text = LARGE + b"%d" % number
        several = {3: 2, 5: 7, 6: 3}.get(number % 10, 1) if number % 50 != 17 else 50
        people = [b"r%d.%d@ok.example" % (number, place) for place in range(several)]
        if refused and number % 10 in (3, 9):
            people.insert(number % (several + 1), b"x%d@bad.example" % number)
        made.add(text, *people)
    return made


@dataclass
class Quirk:
    """A server, what it has taken, and how it answers: `answer` returns the bytes for a package.

    Where `answer` returns None the server ends that connection without a word.
    """

    answer: Callable[[Quirk, Package], bytes | None]
    taken: Counter[tuple[bytes, bytes]] = field(default_factory=Counter)
    packages: int = 0
    farewell: bytes = b""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, package: Package, *recipients: bytes) -> None:
        """Queue a message for these, durably."""
        with self.lock:
            self.taken.update((package.text, recipient) for recipient in recipients)

    def has_read(self, packages: int) -> bool:
        """Say whether so many packages have come."""
        return self.packages >= packages

    def serve(self, line: RecordingTransport, number: int) -> None:
        """Serve a connection."""
        for package in line.packages_from():
            with self.lock:
                self.packages += 1
            said = self.answer(self, package)
            if said is None:
                return
            line.send(said)
        line.send(self.farewell)


def judge(
    made: Stock, taken: Counter[tuple[bytes, bytes]], doubts: Counter[tuple[str, bytes]]
) -> None:
    """Each accepted recipient has the message once, or once more for each warning."""
    assert not made.new
    expected = set()
    for name, (text, recipients) in made.messages.items():
        failed = made.bounced(name)
        assert failed == {r for r in recipients if is_bad(r)}
        for recipient in recipients:
            if not is_bad(recipient):
                expected.add((text, recipient))
                copies, warned = taken[text, recipient], doubts[name, recipient]
                assert 1 <= copies <= 1 + warned, (name, recipient, copies, warned)
    assert set(taken) == expected


def each(refusal: bytes = D, accepted: bytes = K) -> Callable[[Quirk, Package], bytes]:
    """Make a server that answers for each recipient, with this refusal for a bad one."""

    def answer(quirk: Quirk, package: Package) -> bytes:
        quirk.take(package, *(r for r in package.recipients if not is_bad(r)))
        return b"".join(refusal if is_bad(r) else accepted for r in package.recipients)

    return answer


def once(quirk: Quirk, package: Package) -> bytes:
    """Answer once per package; one bad recipient fails all (mailfront)."""
    if any(is_bad(r) for r in package.recipients):
        return D
    quirk.take(package, *package.recipients)
    return b"18:K2.6.0 Accepted\n\nx,"


def cut_every(count: int, taken: bool) -> Callable[[Quirk, Package], bytes | None]:
    """Make a server whose alarm ends each so many packages, with or without having taken it."""

    def answer(quirk: Quirk, package: Package) -> bytes | None:
        last = quirk.packages % count == 0
        said = each()(quirk, package) if taken or not last else b""
        return None if last else said

    return answer


#: Servers that answer as the protocol says, or so that nothing is in doubt.
WHOLE: dict[str, Callable[[Quirk, Package], bytes]] = {
    "as the protocol says": each(),
    "s/qmail, 66": each(SQMAIL_REFUSALS[0]),
    "s/qmail, 46": each(SQMAIL_REFUSALS[1]),
    "s/qmail, a space before the text": each(b"22:D no such user (#5.1)\n,", b"4:K ok,"),
    "realrcptto, CR LF within": each(b"24:Dno such user (#5.1.1)\r\n,"),
    "qmail, a long text": each(b"60001:D" + b"n" * 60_000 + b",", b"9001:K" + b"y" * 9_000 + b","),
}


def forward(made: Stock, quirk: Quirk, **limits: object) -> tuple[list[Run], EvilServer]:
    """Run until nothing is left, ten times at most."""
    runs: list[Run] = []
    with evil_server(quirk.serve) as server:
        while made.new and len(runs) < 10:
            runs.append(run_engine(made, server, **limits))
    return runs, server


def doubts_of(runs: list[Run]) -> Counter[tuple[str, bytes]]:
    """All the warnings of these runs."""
    return sum((ran.in_doubt() for ran in runs), Counter())


@pytest.mark.parametrize("kind", WHOLE)
def test_answers_of_all_kinds_cost_no_copy(tmp_path: Path, kind: str) -> None:
    """Nobody gets a message twice, and it is all done in one run over one connection."""
    made, quirk = mixed(tmp_path / "m"), Quirk(WHOLE[kind])
    runs, server = forward(made, quirk)
    assert len(runs) == len(server.lines) == 1
    assert not doubts_of(runs)
    judge(made, quirk.taken, Counter())
    assert all(package.encoding == b"\n" for line in server.lines for package in line.packages)


def test_answers_that_wait_in_a_buffer(tmp_path: Path) -> None:
    """qmail-qmtpd writes what it has said once it would wait for more, or has 256 bytes of it."""
    made, quirk = mixed(tmp_path / "m"), Quirk(each())

    def serve(line: RecordingTransport, number: int) -> None:
        said = b""
        for package in line.packages_from(chunk=1_000):
            said += each()(quirk, package)
            if len(said) >= 256 or not select.select([line.socket], [], [], 0)[0]:
                line.send(said)
                said = b""
        line.send(said)

    with evil_server(serve) as server:
        ran = run_engine(made, server)
    assert len(server.lines) == 1
    judge(made, quirk.taken, ran.in_doubt())
    assert not ran.in_doubt()


def test_answers_byte_by_byte(tmp_path: Path) -> None:
    """Over a line that cuts anywhere, with all the misframed refusals."""
    made, quirk = mixed(tmp_path / "m", 40), Quirk(each(SQMAIL_REFUSALS[0]))

    def serve(line: RecordingTransport, number: int) -> None:
        for package in line.packages_from():
            for byte in each(SQMAIL_REFUSALS[0])(quirk, package):
                line.send(bytes([byte]))

    with evil_server(serve) as server:
        ran = run_engine(made, server)
    judge(made, quirk.taken, ran.in_doubt())
    assert not ran.in_doubt()


@pytest.mark.parametrize("known", [False, True])
def test_one_answer_per_package(tmp_path: Path, known: bool) -> None:
    """mailfront: its one answer is found out with one message, or known from the start."""
    made, quirk = mixed(tmp_path / "m"), Quirk(once, farewell=b"22:Z4.4.2 Connection lost,")
    runs, _ = forward(made, quirk, grace_s=0.5, one_recipient=known)
    assert len(runs) == 1
    judge(made, quirk.taken, doubts_of(runs))
    in_doubt = {name for name, _ in doubts_of(runs)}
    assert len(in_doubt) == (0 if known else 1)
    assert known == ("answers once per package" not in runs[0].stderr)


def test_one_unknown_user_denies_all(tmp_path: Path) -> None:
    """QMAILRRTDENYALL: D for all, although it is queued for all. The D is taken."""
    made, quirk = mixed(tmp_path / "m"), Quirk(each())

    def deny_all(quirk: Quirk, package: Package) -> bytes:
        quirk.take(package, *package.recipients)
        bad = any(is_bad(r) for r in package.recipients)
        return (D if bad else K) * len(package.recipients)

    quirk.answer = deny_all
    runs, _ = forward(made, quirk)
    assert not made.new
    assert not doubts_of(runs)
    assert set(quirk.taken.values()) == {1}
    for name, (_, recipients) in made.messages.items():
        bad = any(is_bad(r) for r in recipients)
        assert made.bounced(name) == (set(recipients) if bad else set())


def test_a_message_above_the_limit_is_refused_alone(tmp_path: Path) -> None:
    """databytes: all of it is read, and then refused for each recipient."""
    made, quirk = mixed(tmp_path / "m", refused=False), Quirk(each())

    def limited(quirk: Quirk, package: Package) -> bytes:
        if len(package.text) > 1 << 20:
            return b"33:Dsorry, that message is too large," * len(package.recipients)
        return each()(quirk, package)

    quirk.answer = limited
    runs, server = forward(made, quirk)
    assert len(runs) == len(server.lines) == 1
    large = {name for name, (text, _) in made.messages.items() if len(text) > 1 << 20}
    assert made.failed == large
    assert len(large) == 2
    assert set(quirk.taken.values()) == {1}
    assert not made.new


@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("every", [7, 90])
def test_an_alarm_that_answers_nothing(tmp_path: Path, taken: bool, every: int) -> None:
    """alarm(3600) ends qmail-qmtpd and mailfront in the middle, with mail accepted or not."""
    made, quirk = mixed(tmp_path / "m"), Quirk(cut_every(every, taken))
    runs, server = forward(made, quirk)
    assert len(server.lines) > 1
    judge(made, quirk.taken, doubts_of(runs))
    twice = sum(copies - 1 for copies in quirk.taken.values())
    assert twice <= doubts_of(runs).total()


def test_a_server_that_defers_for_a_while(tmp_path: Path) -> None:
    """Z for every third recipient at the first try: later runs bring it to those alone."""
    made, quirk = mixed(tmp_path / "m"), Quirk(each())
    deferred: set[bytes] = set()

    def greylist(quirk: Quirk, package: Package) -> bytes:
        said = b""
        for recipient in package.recipients:
            if not is_bad(recipient) and recipient not in deferred and sum(recipient) % 3 == 0:
                deferred.add(recipient)
                said += Z
            elif is_bad(recipient):
                said += D
            else:
                quirk.take(package, recipient)
                said += K
        return said

    quirk.answer = greylist
    runs, _ = forward(made, quirk)
    assert len(runs) == 2
    assert len(deferred) > 50
    judge(made, quirk.taken, Counter())


# Real servers


def stored(maildir: Path) -> Counter[tuple[bytes, bytes]]:
    """What the receiver has stored: text and recipient of each copy."""
    found: Counter[tuple[bytes, bytes]] = Counter()
    for path in (maildir / "new").iterdir():
        _, to, rest = path.read_bytes().split(b"\n", 2)
        received, _, text = rest.partition(b"\n")
        assert received.startswith(b"Received: ")
        found[text, to.removeprefix(b"Delivered-To: ")] += 1
    return found


def test_200_mixed_messages_through_our_receiver(tmp_path: Path) -> None:
    """Each once and byte for byte, the refused ones in the failed maildir."""
    made = mixed(tmp_path / "m")
    with receiver(tmp_path / "got", "--domain", "ok.example") as (_, server):
        done = run("--json", made.maildir, server)
    assert done.returncode == 111
    judge(made, stored(tmp_path / "got"), Counter())
    assert not any(event["event"] == "in-doubt" for event in json_events(done.stdout))


mailfront_needed = pytest.mark.skipif(
    not have_mailfront(),
    reason="NOT TRIED AGAINST MAILFRONT: "
    "apt-get install --no-install-recommends mailfront ucspi-tcp",
)


@mailfront_needed
def test_200_mixed_messages_through_mailfront(tmp_path: Path) -> None:
    """Debian's own, that answers once per package; nobody gets a second copy."""
    made = mixed(tmp_path / "m", refused=False)
    with mailfront(tmp_path / "queue") as server:
        done = run("--json", "--one-recipient", made.maildir, server)
    assert done.returncode == 0
    got: Counter[tuple[bytes, bytes]] = Counter()
    for path in (tmp_path / "queue" / "new").iterdir():
        _, to, text = path.read_bytes().split(b"\0", 2)
        got[text, to] += 1
    judge(made, got, Counter())
    assert not any(event["event"] == "in-doubt" for event in json_events(done.stdout))


@mailfront_needed
def test_200_mixed_messages_to_mailfront_s_echo(tmp_path: Path) -> None:
    """It keeps nothing, and crashes over some texts: the others all go, and each once."""
    made = mixed(tmp_path / "m", refused=False)
    with mailfront(tmp_path / "queue", "echo", "accept") as server:
        done = run("--json", "--one-recipient", made.maildir, server)
    # It does so over some of the texts without a header, and not each time.
    fragile = {
        name for name, (text, _) in made.messages.items() if not text.startswith(b"Subject: ")
    }
    assert made.new <= fragile
    accepted = [e["recipient"] for e in json_events(done.stdout) if e["event"] == "accepted"]
    gone = [r for name, (_, to) in made.messages.items() for r in to if name not in made.new]
    assert Counter(accepted) >= Counter(r.decode() for r in gone)
    assert set(Counter(accepted).values()) == {1}


# A server that is restarted, in watch mode


@contextlib.contextmanager
def restartable(quirk: Quirk) -> Iterator[tuple[str, Callable[[], None]]]:
    """Serve on a port; the second value cuts every connection and serves there again."""
    servers: list[ScriptedServer] = []

    def serve(port: int) -> None:
        server = ScriptedServer(lambda peer: quirk.serve(RecordingTransport(peer.socket), 0), port)
        servers.append(server)

    def restart() -> None:
        servers[-1].close()
        serve(servers[-1].port)

    serve(closed_port())
    try:
        yield servers[0].address, restart
    finally:
        servers[-1].close()


def doubts_in(daemon: Running) -> Counter[tuple[str, bytes]]:
    """The warnings of a daemon, by message and recipient."""
    return Counter(
        (event["message"], event["recipient"].encode())
        for event in json_events(daemon.data)
        if event["event"] == "in-doubt"
    )


def moved_in(made: Stock, spool: Stock, part: slice) -> None:
    """Deliver some of the messages of a spool, each with its sidecar before it."""
    for name in sorted(spool.messages)[part]:
        sidecar = spool.maildir / "envelope" / f"{name}.json"
        if sidecar.exists():
            (made.maildir / "envelope").mkdir(exist_ok=True)
            os.rename(sidecar, made.maildir / "envelope" / sidecar.name)
        os.rename(spool.maildir / "new" / name, made.maildir / "new" / name)
        made.messages[name] = spool.messages[name]


@pytest.mark.parametrize("kind", ["as the protocol says", "s/qmail, 66", "once"])
def test_watching_300_messages_and_two_restarts_of_the_server(tmp_path: Path, kind: str) -> None:
    """What was in flight then may come twice, and is named; nothing else, and nothing is lost."""
    spool, made = mixed(tmp_path / "spool", 300), stock(tmp_path / "m")
    quirk = Quirk(once if kind == "once" else WHOLE[kind])
    flags = ("--json", "--rescan", "1", *(["--one-recipient"] if kind == "once" else []))
    with (
        restartable(quirk) as (address, restart),
        watching("--watch", *flags, made.maildir, address) as daemon,
    ):
        for third in range(3):
            moved_in(made, spool, slice(100 * third, 100 * third + 100))
            wait_until(partial(quirk.has_read, 100 * third + 30), "some of the messages to come")
            if third < 2:
                restart()
        wait_until(lambda: not names(made.maildir / "new"), "all messages to go")
        assert daemon.stop() == 0
        doubts = doubts_in(daemon)
    judge(made, quirk.taken, doubts)


# A process that is stopped for longer than its time-outs


@pytest.mark.parametrize("watch", [False, True])
def test_nothing_that_was_answered_is_sent_again_after_a_stop(tmp_path: Path, watch: bool) -> None:
    """SIGSTOP, or a closed lid: of 3,000 messages 5,888 were stored."""
    count = 150  # what is said of each fits into a pipe
    made = stock(tmp_path / "m", *(b"Subject: %d\n\n" % number for number in range(count)))
    stopped, all_answered = threading.Event(), threading.Event()
    got: Counter[bytes] = Counter()

    def serve(line: RecordingTransport, number: int) -> None:
        for package in line.packages_from():
            got[package.text] += 1
            if number == 0 and package is not line.packages[0] and not stopped.is_set():
                while len(line.packages) < count:
                    assert line.take()
                suspend(process.pid)
                stopped.set()
            line.send(K)
            if package is line.packages[-1] and stopped.is_set():
                all_answered.set()

    flags = ("--response-timeout", "2", "--write-timeout", "2", "--json")
    mode = ("--watch", "--rescan", "1") if watch else ()
    with (
        evil_server(serve) as server,
        start(*mode, *flags, made.maildir, server.address) as process,
    ):
        assert stopped.wait(60)
        assert all_answered.wait(60)
        # Longer than each of its time-outs: the time is what is tried here.
        threading.Event().wait(3.5)
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: not made.new or max(got.values()) > 1, "all messages to go")
        if watch:
            process.send_signal(signal.SIGTERM)
        out, log = process.communicate(timeout=60)
    assert set(got.values()) == {1}, log
    assert process.returncode == 0, log
    assert not any(event["event"] == "in-doubt" for event in json_events(out))
