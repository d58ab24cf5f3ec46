"""The command line of `qmtp-sendmail`, as mail programs use sendmail's."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path
from typing import IO

import pytest

from maildirqmtp.cli import qmtp_sendmail
from maildirqmtp.cli.qmtp_sendmail import main
from maildirqmtp.submission.sendmail import Request
from tests.helpers import (
    Peer,
    add_message,
    command,
    make_maildir,
    names,
    serving,
    snapshot,
    start,
    wait_until,
)
from tests.submission.sending import HEADER, Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A user whose mail goes into a maildir of their own."""
    made = Home(tmp_path / "home")
    made.configure()
    return made


def request(line: str) -> Request:
    """Return what a command line asks for."""
    return qmtp_sendmail._request(qmtp_sendmail._parse(line.split(), "sendmail"))


TO = (b"a@x",)


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("a@x", Request(None, None, TO)),
        # cron of Debian (do_command.c), cronie, dcron, busybox.
        ("-i -FCronDaemon -B8BITMIME -oem a@x", Request(None, "CronDaemon", TO, False, False)),
        (
            "-FCronDaemon -i -odi -oem -oi -t -f root",
            Request(b"root", "CronDaemon", (), True, False),
        ),
        ("-ti", Request(None, None, (), True, False)),
        ("-tifme@x", Request(b"me@x", None, (), True, False)),
        ("-vtoi", Request(None, None, (), True, False)),
        # mutt, neomutt.
        ("-oem -oi -f me@x -- a@x b@x", Request(b"me@x", None, (b"a@x", b"b@x"), False, False)),
        (
            "-B 8BITMIME -N failure -R hdrs -oem -oi -f me@x a@x",
            Request(b"me@x", None, TO, False, False),
        ),
        # git send-email; bsd-mailx; s-nail.
        ("-i a@x", Request(None, None, TO, False, False)),
        ("-f me@x -i a@x", Request(b"me@x", None, TO, False, False)),
        ("-i -m -v a@x", Request(None, None, TO, False, False)),
        ("-i -F Ann -r me@x -- a@x", Request(b"me@x", "Ann", TO, False, False)),
        # PHP's mail(), with its fifth argument.
        ("-t -i -fme@x", Request(b"me@x", None, (), True, False)),
        # Emacs.
        ("-f me -oi -oem -odb -t", Request(b"me", None, (), True, False)),
        ("-oi -f me@x -t -odi", Request(b"me@x", None, (), True, False)),
        # logwatch; smartd; and what else scripts say.
        ("-t", Request(None, None, (), True)),
        ("-oi -t", Request(None, None, (), True, False)),
        ("-O IgnoreDots=True -ODeliveryMode=b -t", Request(None, None, (), True, False)),
        ("-O IgnoreDots=False -t", Request(None, None, (), True)),
        ("-bm -d -d0.1 -v -U -n -G -p ESMTP -h 3 -L tag -X /dev/null a@x", Request(None, None, TO)),
        ("-oQ/var/spool -o8 -om -oA/etc/aliases -C /etc/s.cf -Ac a@x", Request(None, None, TO)),
        ("a@x -t -f b@y", Request(b"b@y", None, TO, True)),
        # Addresses: brackets, quoting, the null sender.
        ("-f <> <a@x>", Request(b"", None, TO)),
        ("-f <MAILER-DAEMON> a@x", Request(b"", None, TO)),
        ("-f Mailer-Daemon@x a@x", Request(b"Mailer-Daemon@x", None, TO)),
        ("MAILER-DAEMON", Request(None, None, (b"MAILER-DAEMON",))),
        ("-f <\"a\\b\"@x> \"a,b\"@y", Request(b"ab@x", None, (b"a,b@y",))),
        ("-f x y -- z", Request(b"x", None, (b"y", b"z"))),
    ],
)  # fmt: skip
def test_what_programs_ask_for(line: str, asked: Request) -> None:
    """Each gets what it would get of sendmail."""
    assert request(line) == asked


def test_an_empty_sender_is_the_null_sender() -> None:
    """As bounces have it, ours among them: `-i -f '' -- SENDER`."""
    options = qmtp_sendmail._parse(["-i", "-f", "", "--", "a@x"], "sendmail")
    assert qmtp_sendmail._request(options) == Request(b"", None, TO, False, False)


@pytest.mark.parametrize("line", ["-q", "-q30m", "-qIx", "-vq", "-v -q"])
def test_q_is_no_message(line: str) -> None:
    """Nothing is read from standard input, whatever the interval."""
    options = qmtp_sendmail._parse(line.split(), "sendmail")
    assert options.flush
    assert qmtp_sendmail._request(options).recipients == ()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "recipients are needed, as arguments or with -t"),
        (["-f", "me@x"], "recipients are needed"),
        (["-bs"], "-bs: there is no SMTP on standard input"),
        (["-bs", "-t"], "-bs: there is no SMTP"),
        (["-bd"], "-bd: it is no daemon"),
        (["-bv", "a@x"], "-bv: addresses cannot be verified"),
        (["-bz"], "-bz: there is no such mode"),
        (["-Mrm", "1abc"], "unrecognized arguments: -Mrm"),
        # mail(1) has it, with a subject, which would be a recipient here.
        (["-s", "Test", "a@x"], "unrecognized arguments: -s"),
        (["--foo", "a@x"], "unrecognized arguments: --foo"),
        (["-f"], "expected one argument"),
        (["Ann <a@x>"], "recipient: 'Ann <a@x>' is not one address"),
        (["a@x,b@y"], "is not one address"),
        (["a@x", "b c@y"], "is not one address"),
        (["<>"], "a recipient must not be empty"),
        ([""], "a recipient must not be empty"),
        (["--", "-oQ/tmp"], "begins with -, as an option does"),
        (["-f", "<-x@y>", "a@x"], "begins with -"),
        (["-f", "a b", "a@x"], "sender: 'a b' is not one address"),
        (["-t", "-f", "a@x,b@y"], "sender: 'a@x,b@y' is not one address"),
        (["a" * 1_000 + "@x"], "servers take at most 999"),
    ],
)
def test_wrong_usage_is_told(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """64, before anything is read."""
    assert main(words) == 64
    told = capsys.readouterr().err
    assert told.startswith("qmtp-sendmail: ")
    assert said in told


#: What a link to the installed script runs, under its own name.
LOAD = "from maildirqmtp.__main__ import run_sendmail"


def test_newaliases_and_mailq(home: Home, tmp_path: Path) -> None:
    """By these names packages and people call it: nothing to do, and the queue."""
    for name in ("newaliases", "mailq"):
        program = tmp_path / name
        program.write_text(f"#!{sys.executable}\n{LOAD}\nrun_sendmail()\n")
        program.chmod(0o755)
    run = {"capture_output": True, "env": home.environment, "timeout": 60, "check": False}
    done = subprocess.run([str(tmp_path / "newaliases")], **run)  # type: ignore[call-overload]
    assert (done.returncode, done.stdout) == (0, b"")
    assert home.send("-i", "a@y").returncode == 0
    done = subprocess.run([str(tmp_path / "mailq")], **run)  # type: ignore[call-overload]
    assert done.returncode == 0
    assert b"out: 1 waiting; no daemon" in done.stdout
    assert b"a@y" in done.stdout


# Into a maildir of the user's own


def test_a_message_with_its_envelope(home: Home) -> None:
    """Arguments and -t together, Bcc away, all else as it was."""
    header = HEADER + b"To: b@y (B)\nSubject: \xff\n"
    done = home.send(
        "-t", "-i", "-f", "me@x", "a@y", text=header + b"Bcc: c@y\n\nhi\n.\n\0\xff\r\r\n."
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert home.kept() == [("me@x", ["a@y", "b@y", "c@y"], header + b"\nhi\n.\n\0\xff\r\n.")]


def test_bcc_goes_without_t_too(home: Home) -> None:
    """mutt with write_bcc, and git send-email, say who gets it, and leave the field to sendmail."""
    assert home.send("a@y", text=HEADER + b"Bcc: c@y\n\nhi\n").returncode == 0
    assert home.kept()[0][1:] == (["a@y"], HEADER + b"\nhi\n")


@pytest.mark.parametrize(
    "top",
    [b"From me Thu Nov 26 12:00:00 2026\n", b"Return-Path: <x@y>\nDelivered-To: z@y\n"],
)
def test_lines_of_an_earlier_delivery_go(home: Home, top: bytes) -> None:
    """formail and procmail leave them on top."""
    text = top + HEADER + b"\nhi\n"
    for body in (text, text.replace(b"\n", b"\r\n")):
        assert home.send("a@y", text=body).returncode == 0
    assert [text for *_, text in home.kept()] == [HEADER + b"\nhi\n"] * 2


def test_a_dot_alone_ends_the_message(home: Home) -> None:
    """And what follows it is not lost without a word."""
    done = home.send("a@y", text=HEADER + b"\nhi\n.\nmore\n")
    assert done.returncode == 0
    assert b"a line with a dot alone ended the message; use -i" in done.stderr
    assert home.kept()[0][2] == HEADER + b"\nhi\n"


def test_a_message_that_is_none(home: Home) -> None:
    """`echo hello | sendmail root` is what scripts do; so is nothing at all."""
    for text in (b"hello\n", b""):
        assert home.send("-F", "Ann B.", "root", text=text).returncode == 0
    parts = [text.partition(b"\n\n") for *_, text in home.kept()]
    assert sorted(body for *_, body in parts) == [b"", b"hello\n"]
    for header, *_ in parts:
        names_there = [line.partition(b":")[0] for line in header.split(b"\n")]
        assert names_there == [b"From", b"Date", b"Message-ID"]
        assert header.startswith(b'From: "Ann B." <')


@pytest.mark.parametrize(
    ("rest", "words", "author"),
    [
        ('domain = "d"', ("-f", "me"), b"me@d"),
        ('domain = "d"\nsender = "all@x"', ("-f", "me"), b"me@d"),
        ('domain = "d"\nsender = "all@x"', ("-f", "me@localhost"), b"all@x"),
        ('domain = "d"\nsender = "all"', ("-f", "me@localhost"), b"all@d"),
        ('domain = "d"\nsender = ""', ("-f", "me@localhost"), b"me@d"),
        ('domain = "d"', ("-f", "me@x"), b"me@x"),
        ('sender = "all@x"', ("-f", "me"), b"all@x"),
        ('sender = "all@x"', ("-f", ""), b"all@x"),
    ],
)
def test_the_author_where_from_is_missing(
    home: Home, rest: str, words: tuple[str, ...], author: bytes
) -> None:
    """An address that replies reach."""
    home.configure(rest=rest)
    assert home.send("-F", "", *words, "a@y", text=b"\nhi\n").returncode == 0
    assert home.kept()[0][2].startswith(b"From: " + author + b"\n")


def test_a_large_message(home: Home) -> None:
    """It is not all in memory, and arrives whole."""
    body = os.urandom(3_000_000).replace(b"\r\n", b"xx")
    assert home.send("-i", "a@y", text=HEADER + b"\n" + body).returncode == 0
    assert home.kept()[0][2] == HEADER + b"\n" + body


@pytest.mark.parametrize(
    ("words", "text", "code", "said"),
    [
        (["-t"], HEADER + b"\nhi\n", 65, b"names no recipient in To, Cc or Bcc"),
        (["-t"], HEADER + b"To: Ann Bee\n\n", 65, b"To: not a list of addresses: 'Ann Bee'"),
        (["-t", "a@y"], HEADER + b"Bcc: a@b@c\n\n", 65, b"Bcc: not a list of addresses"),
        (["-t"], HEADER + b"To: " + b"a" * 1_000 + b"@x\n\n", 65, b"at most 999"),
        (["a@y"], b"x:\n y\n" * 200_000, 65, b"header is larger than 1048576 bytes"),
        (["-t"], HEADER + b"To: a@x, jane\n\n", 67, b"no such user: jane"),
        (["jane@localhost"], HEADER, 67, b"no such user: jane@localhost"),
        (["a"], HEADER, 78, b"the alias a leads back to itself: a -> b -> a"),
    ],
)
def test_what_cannot_be_sent_goes_to_nobody(
    home: Home, words: list[str], text: bytes, code: int, said: bytes
) -> None:
    """With the code of sysexits(3), and all of standard input read."""
    home.configure(rest='aliases = {a = "b", b = "a"}')
    done = home.send(*words, text=text)
    assert done.returncode == code
    assert said in done.stderr
    assert not home.maildir.exists()


def test_a_wrong_configuration_is_78(home: Home) -> None:
    """Root's mail must not go elsewhere because of a mistake."""
    home.configure(rest='aliases = {root = "|cat"}')
    done = home.send("a@y")
    assert done.returncode == 78
    assert b".config/maildirqmtp.toml, line 4: aliases, root: '|cat'" in done.stderr
    assert not home.maildir.exists()


@pytest.mark.parametrize("size", [200_000, 3_000_000])
def test_a_full_disk_takes_nothing(home: Home, size: int) -> None:
    """Whether the message is held in memory or in a file; the caller is told to try again."""
    done = home.send("a@y", text=HEADER + b"\n" + b"x" * size, limits="ulimit -f 100")
    assert done.returncode == 75
    assert b"File too large" in done.stderr
    assert not names(home.maildir / "new") + names(home.maildir / "tmp")


@pytest.mark.parametrize(
    ("redirect", "said"),
    [
        ("<&-", b"standard input is closed"),
        ("<&- >&- 2>&-", b""),
        ("0> /dev/null", b"cannot read standard input: Bad file descriptor"),
    ],
)
def test_an_input_that_cannot_be_read_is_told(home: Home, redirect: str, said: bytes) -> None:
    """75: nothing was taken."""
    done = home.send("a@y", redirect=redirect)
    assert done.returncode == 75
    assert said in done.stderr
    assert not home.maildir.exists()


def unread(pipe: IO[bytes]) -> int:
    """Return the bytes in a pipe."""
    (count,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    return int(count)


def test_told_to_stop_before_the_end_it_takes_nothing(home: Home) -> None:
    """Half a message must not be sent."""
    with subprocess.Popen(
        [*command("qmtp-sendmail"), "a@y"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=home.environment,
    ) as process:
        assert process.stdin is not None
        pipe = process.stdin
        pipe.write(HEADER)
        pipe.flush()
        wait_until(lambda: unread(pipe) == 0, "the program to read its input")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 75
    assert b"told to stop before the end of the message" in said
    assert not home.maildir.exists()


def test_another_users_maildir_is_not_ones_own(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its forwarder holds what others put there, and nobody is told."""
    make_maildir(home.maildir)
    monkeypatch.setenv("HOME", str(home.path))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    read, write = os.pipe()
    os.close(write)
    with os.fdopen(read) as file:
        monkeypatch.setattr("sys.stdin", file)
        assert main(["a@y"]) == 78
    assert "name one of your own" in capsys.readouterr().err
    assert names(home.maildir / "new") == []


# No queue, and no maildir


@pytest.mark.parametrize(
    ("what", "code"), [("none", 75), ("file", 75), ("no listener", 75), ("no way to it", 75)]
)
def test_nowhere_to_go_is_try_again(home: Home, what: str, code: int) -> None:
    """Never 0; and the reason, and what to configure."""
    home.configure(maildir=False)
    if what == "file":
        home.socket.write_text("")
    elif what == "no listener":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(home.socket))
    elif what == "no way to it":
        home.socket.symlink_to("submit.sock")
    done = home.send("a@y")
    assert done.returncode == code
    assert b"cannot connect to unix:" in done.stderr
    assert b"no maildir is configured" in done.stderr


# The queue, shown and tried


def test_the_queue_is_shown_without_being_touched(home: Home) -> None:
    """Exit 0, as mailq, whether something waits or not."""
    home.send("-i", "a@y")
    before = snapshot(home.maildir)
    done = home.send("-bp")
    assert done.returncode == 0
    assert b"1 waiting" in done.stdout
    assert snapshot(home.maildir) == before
    (home.maildir / "new" / names(home.maildir / "new")[0]).unlink()
    assert home.send("-bp").returncode == 0


@pytest.mark.parametrize("mode", ["-bp", "-q"])
def test_a_queue_that_is_none_is_told(home: Home, mode: str) -> None:
    """An empty list would say that all mail has gone."""
    home.configure(rest='queue = "/nowhere"')
    done = home.send(mode)
    assert done.returncode == 75
    assert b"cannot open the maildir directory /nowhere" in done.stderr


def test_a_queue_is_listed_whatever_the_locale_and_the_reader(home: Home) -> None:
    """An address that is not ASCII under LC_ALL=C; and `mailq | head -1`."""
    home.send("-i", "j\xfcrgen@y")
    home.environment |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = home.send("-bp")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"rgen@y" in done.stdout
    done = home.send("-bp", redirect="> /dev/full")
    assert (done.returncode, done.stderr) == (75, b"qmtp-sendmail: No space left on device\n")


@pytest.mark.parametrize("mode", ["-bp", "-q"])
def test_a_maildir_that_nothing_was_put_into_is_empty(home: Home, mode: str) -> None:
    """And the machine's queue, which a user may not read, does not matter then."""
    assert home.send(mode).returncode == 0
    home.configure(rest=f'queue = "{make_maildir(home.path / "queue")}"')
    assert home.send(mode).returncode == 0


def test_q_without_a_daemon(home: Home) -> None:
    """Nothing waits: done. Something does: told that nobody tries it."""
    make_maildir(home.maildir)
    assert home.send("-q").returncode == 0
    add_message(home.maildir, "1.a")
    done = home.send("-q30m")
    assert done.returncode == 75
    assert b"no daemon forwards " in done.stderr


def test_q_has_the_daemon_try_at_once(home: Home) -> None:
    """What was deferred goes now, not in minutes."""
    make_maildir(home.maildir)
    add_message(home.maildir, "1.a")
    tried = threading.Semaphore(0)

    def script(peer: Peer) -> None:
        while peer.read_package() is not None:
            tried.release()
            peer.respond(b"Zlater")

    with serving(script) as server, start("--watch", home.maildir, server.address) as daemon:
        assert tried.acquire(timeout=60)
        wait_until(
            lambda: (home.maildir / ".maildirqmtp-status.json").exists(), "the daemon's status"
        )
        assert home.send("-q").returncode == 0
        assert tried.acquire(timeout=60)
        daemon.terminate()
