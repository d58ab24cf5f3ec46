"""`qmtp-sendmail` into the queue of the machine: what is answered is what the caller is told."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import DEADLINE_S, Peer, Script, command, names, serving, wait_until
from tests.submission.sending import HEADER, Home, delivered, queue, unix_serving

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A user without a maildir of their own."""
    made = Home(tmp_path / "home")
    made.configure(maildir=False)
    return made


def test_a_cron_jobs_mail_gets_to_a_person(home: Home) -> None:
    """As Debian's cron calls it, over the socket, by the aliases."""
    home.configure(
        maildir=False,
        rest='domain = "example.org"\nsender = "me@isp.example"\naliases = {root = "ann@x"}',
    )
    text = b"From: root (Cron Daemon)\nTo: root\nSubject: Cron\n\nout\n.\n"
    with queue(home) as maildir:
        words = ("-i", "-FCronDaemon", "-B8BITMIME", "-oem", "root")
        assert home.send(*words, text=text).returncode == 0
        (message,) = delivered(maildir)
    assert message.startswith(b"Return-Path: <me@isp.example>\nDelivered-To: ann@x\nReceived: ")
    header, _, body = message.partition(b"\n\n")
    assert body == b"out\n.\n"
    assert b"\nFrom: root@example.org (Cron Daemon)\nTo: root@example.org\nSubject:" in header
    assert re.search(rb"\nDate: .* \+0000\nMessage-ID: <[0-9a-f.]+@example\.org>\Z", header)


def test_many_recipients_go_in_several_packages(home: Home) -> None:
    """A package holds a thousand; no one is left out or has it twice."""
    given = [f"a{n}@x" for n in range(1_001)]
    with unix_serving(home, answering(b"Kok")) as server:
        header = HEADER + b"To: " + ",\n ".join(given).encode() + b"\n"
        assert home.send("-t", text=header + b"\nhi\n").returncode == 0
    assert [len(package.recipients) for package in server.packages] == [1_000, 1]
    recipients = [r.decode() for package in server.packages for r in package.recipients]
    assert recipients == given
    assert {package.text for package in server.packages} == {header + b"\nhi\n"}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("count", [60, pytest.param(200, marks=pytest.mark.long)])
def test_many_at_once_are_all_there(home: Home, count: int) -> None:
    """Of a batch of jobs at midnight none is lost; and each is there once."""
    argv = [*command("qmtp-sendmail"), "-i", "-f", "me@x"]
    with queue(home) as maildir:
        running = [
            subprocess.Popen([*argv, f"a{n}@x"], stdin=subprocess.PIPE, env=home.environment)
            for n in range(count)
        ]
        for process in running:
            assert process.stdin is not None
            process.stdin.write(HEADER + b"\nhi\n")
            process.stdin.close()
        assert {process.wait(timeout=300) for process in running} == {0}
        messages = delivered(maildir)
    found = [message.split(b"\n")[1] for message in messages]
    assert sorted(found) == sorted(b"Delivered-To: a%d@x" % n for n in range(count))


def test_the_recipe_for_one_user(home: Home) -> None:
    """As it stands there: the mail of a machine without a mail server gets to one."""
    page = (ROOT / "contrib" / "recipes" / "sendmail.md").read_text()
    block = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0]
    config = home.path / ".config" / "maildirqmtp.toml"
    with serving(answering(b"Kok")) as server:
        config.write_text(block.replace("mail.example.org", server.address))
        words = re.findall(r"\| qmtp-sendmail (.*?) +#", page)[0].split()
        assert home.send(*words, text=b"hello\n").returncode == 0
        argv = [*command(), "--config", str(config)]
        with subprocess.Popen(argv, env=home.environment, stderr=subprocess.DEVNULL) as daemon:
            wait_until(lambda: bool(server.packages), "the message at the server")
            wait_until(lambda: not names(home.path / "Outgoing" / "new"), "it to be removed")
            daemon.terminate()
    (package,) = server.packages
    assert (package.sender, package.recipients) == (b"ann@example.org", (b"you@example.net",))
    assert package.text.endswith(b"\n\nhello\n")


# What the queue answers


def answering(*answers: bytes) -> Script:
    """Return a script that gives these answers to the recipients in turn, the last one again."""

    def script(peer: Peer) -> None:
        left = list(answers)
        while (package := peer.read_package()) is not None:
            for _ in package.recipients:
                peer.respond(left.pop(0) if len(left) > 1 else left[0])

    return script


def cutting(answer: bytes = b"") -> Script:
    """Return a script that takes a package, sends this, and hangs up."""

    def script(peer: Peer) -> None:
        peer.read_package()
        peer.send(answer)

    return script


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        (answering(b"D553 no such user (#5.1.1)"), 67, b"b@y: 553 no such user (#5.1.1)"),
        (answering(b"D550 no relaying (#5.7.1)"), 77, b"no relaying"),
        (answering(b"D552 too large (#5.3.4)"), 65, b"too large"),
        (answering(b"D554 looping (#5.4.6)"), 65, b"looping"),
        (answering(b"D554 5.6.0 bare CR"), 65, b"bare CR"),
        (answering(b"Dno"), 69, b"b@y: no"),
        (answering(b"Z451 no space (#4.3.1)"), 75, b"b@y: not taken now: 451 no space"),
        (answering(b"Kok", b"D553 no (#5.1.1)"), 67, b"b@y: 553 no"),
        (answering(b"D553 no (#5.1.1)", b"Zlater"), 75, b"b@y: not taken now: later"),
        (answering(b"Kok", b"D\x1b[2J"), 69, b"b@y: ?[2J"),
        (cutting(), 75, b"closed without an answer"),
        (cutting(b"3:Kok,"), 75, b"b@y: not taken now: "),
        (cutting(b"HTTP/1.1 400 Bad Request\r\n"), 75, b"a@y: not taken now: response is no"),
        (lambda peer: None, 75, b"a@y: not taken now: "),
    ],
)
def test_what_is_not_taken_is_not_0(home: Home, script: Script, code: int, said: bytes) -> None:
    """The caller is told with which recipient, and what the queue said."""
    with unix_serving(home, script):
        done = home.send("a@y", "b@y")
    assert done.returncode == code
    assert said in done.stderr


def test_an_answer_too_many_is_no_answer_to_the_next_package(home: Home) -> None:
    """Else the last recipient would count as taken, and never get it."""
    header = HEADER + b"To: " + b",\n ".join(b"a%d@x" % n for n in range(1_001)) + b"\n"

    def too_many(peer: Peer) -> None:
        assert peer.read_package() is not None
        peer.respond(*[b"Kok"] * 1_001)
        peer.read_package()

    with unix_serving(home, too_many) as server:
        done = home.send("-t", text=header + b"\nhi\n")
    assert done.returncode == 75
    assert b"a1000@x: not taken now: " in done.stderr
    assert b"a999@x" not in done.stderr
    assert len(server.packages) == 1


@pytest.mark.parametrize(
    ("script", "code", "left"),
    [
        (answering(b"Kok"), 0, []),
        (answering(b"Dno"), 69, []),
        (answering(b"Zlater"), 0, ["a@y", "b@y"]),
        (answering(b"Kok", b"Zlater"), 0, ["b@y"]),
        (answering(b"Dno", b"Zlater"), 69, ["b@y"]),
        (cutting(), 0, ["a@y", "b@y"]),
        (cutting(b"3:Kok,"), 0, ["b@y"]),
    ],
)
def test_what_the_queue_does_not_take_now_goes_into_the_users_maildir(
    home: Home, script: Script, code: int, left: list[str]
) -> None:
    """cron does not try again; and who has it already does not get it again."""
    home.configure()
    with unix_serving(home, script):
        assert home.send("a@y", "b@y").returncode == code
    assert [recipients for _, recipients, _ in home.kept()] == ([left] if left else [])


def test_neither_queue_nor_maildir(home: Home) -> None:
    """Who is still to get it is told, so that the others do not get it twice."""
    home.configure()
    home.maildir.write_text("no directory")
    with unix_serving(home, answering(b"Kok", b"Zlater")):
        done = home.send("a@y", "b@y")
    assert done.returncode == 75
    assert b"Not a directory" in done.stderr
    assert b"b@y: not taken now: later" in done.stderr
    assert b"a@y" not in done.stderr


def test_a_large_message_to_the_queue(home: Home) -> None:
    """Whole, from a file, and while the queue reads slowly."""
    body = b"x" * 70 + b"\n"
    with queue(home) as maildir:
        assert home.send("-i", "a@y", text=HEADER + b"\n" + body * 100_000).returncode == 0
        (message,) = delivered(maildir)
    assert message.partition(b"\n\n")[2] == body * 100_000


def test_many_at_once_into_a_maildir(home: Home) -> None:
    """It is made by the first of them, or by several at the same time."""
    home.configure()
    running = [
        subprocess.Popen(
            [*command("qmtp-sendmail"), "-i", f"a{n}@x"],
            stdin=subprocess.DEVNULL,
            env=home.environment,
        )
        for n in range(40)
    ]
    assert {process.wait(timeout=300) for process in running} == {0}
    assert sorted(r for _, r, _ in home.kept()) == sorted([f"a{n}@x"] for n in range(40))
    assert names(home.maildir / "tmp") == []


# Told to stop

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def silent(peer: Peer) -> None:
    """Take packages, and never answer."""
    while peer.read_package() is not None:
        pass


@contextlib.contextmanager
def sending(home: Home, text: bytes = HEADER + b"\nhi\n") -> Iterator[subprocess.Popen[bytes]]:
    """Start the program, and give it a message."""
    with subprocess.Popen(
        [*command("qmtp-sendmail"), "a@y"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=home.environment,
        # Whoever has started us may ignore them.
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in SIGNALS],
    ) as process:
        assert process.stdin is not None
        process.stdin.write(text)
        process.stdin.close()
        try:
            yield process
        finally:
            process.kill()


def told_by(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Return the exit code, and what was said."""
    assert process.stderr is not None
    said = process.stderr.read().decode()
    assert "Traceback" not in said
    return process.wait(DEADLINE_S), said


def has_socket(process: subprocess.Popen[bytes]) -> bool:
    """Say whether a process has begun to connect."""
    found = []
    for fd in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(fd))
    return any(where.startswith("socket:") for where in found)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_queue_that_is_silent_does_not_hold_a_program_that_is_told_to_stop(
    home: Home, number: signal.Signals
) -> None:
    """Control-C in `git send-email` did nothing for five minutes; that it is in doubt is said."""
    with unix_serving(home, silent) as server, sending(home) as process:
        wait_until(lambda: server.packages != [], "the package")
        process.send_signal(number)
        code, said = told_by(process)
    assert code == 75
    assert "a@y: not taken now: told to stop before " in said
    assert "the queue may have the message" in said


def test_told_to_stop_it_keeps_the_message_where_it_may(home: Home) -> None:
    """cron does not try again."""
    home.configure()
    with unix_serving(home, silent) as server, sending(home) as process:
        wait_until(lambda: server.packages != [], "the package")
        process.send_signal(signal.SIGTERM)
        code, said = told_by(process)
    assert code == 0
    assert f"the queue may have the message; it is kept in {home.maildir}\n" in said
    assert [recipients for _, recipients, _ in home.kept()] == [["a@y"]]


def test_a_queue_that_stops_reading_is_not_said_to_have_the_message(home: Home) -> None:
    """What is not there whole is thrown away: it is sent again without fear."""
    begun, over = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        peer.socket.recv(1)
        begun.set()
        over.wait(DEADLINE_S)

    text = HEADER + b"\n" + b"xxxxxxxxx\n" * 500_000
    with unix_serving(home, script), sending(home, text) as process:
        assert begun.wait(DEADLINE_S)
        process.send_signal(signal.SIGTERM)
        code, said = told_by(process)
        over.set()
    assert code == 75
    assert "had taken all of the message" in said
    assert "may have" not in said


def test_a_queue_that_answers_after_the_signal_has_the_message(home: Home) -> None:
    """It would be sent twice by a program that tries again."""
    go = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_package()
        go.wait(DEADLINE_S)
        peer.respond(b"Kok")

    with unix_serving(home, script) as server, sending(home) as process:
        wait_until(lambda: server.packages != [], "the package")
        process.send_signal(signal.SIGTERM)
        go.set()
        assert told_by(process) == (0, "")


def test_a_queue_that_takes_no_connection_is_not_waited_for(home: Home) -> None:
    """Others wait before it; nothing was sent, so that nothing is in doubt."""
    home.configure()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
        listener.bind(str(home.socket))
        listener.listen(0)
        other.connect(str(home.socket))  # the only place is taken
        with sending(home) as process:
            wait_until(lambda: has_socket(process), "the attempt to connect")
            process.send_signal(signal.SIGTERM)
            assert told_by(process) == (0, "")
    assert [recipients for _, recipients, _ in home.kept()] == [["a@y"]]


# A message that ends with a dot


def test_text_that_comes_after_the_dot_is_not_lost_without_a_word(home: Home) -> None:
    """A shell loop writes each line by itself, so that the dot ends what is read at once."""
    go = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_package()
        go.wait(DEADLINE_S)
        peer.respond(b"Kok")

    argv = [*command("qmtp-sendmail"), "a@y"]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with (
        unix_serving(home, script) as server,
        subprocess.Popen(argv, env=home.environment, **pipes) as process,  # type: ignore[call-overload]
    ):
        process.stdin.write(HEADER + b"\nhi\n.\n")
        process.stdin.flush()
        wait_until(lambda: server.packages != [], "the package")
        process.stdin.write(b"and more\n")
        process.stdin.flush()
        go.set()
        code, said = told_by(process)
    assert code == 0
    assert "a line with a dot alone ended the message; use -i" in said
