"""maildirserial with clients of every kind: what is removed, what stays, what is said of it.

The clients are scripts in place of serialqmtp and its like.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from maildirqmtp.errors import ConfigError, LocalError
from maildirqmtp.forwarder.queued_message import QueuedMessage
from maildirqmtp.forwarder.route import Route
from maildirqmtp.maildir import holds, state
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.response import Response
from maildirqmtp.serialmail import feeder
from maildirqmtp.serialmail.client_loop import ClientLoop
from maildirqmtp.serialmail.maildirserial import Arguments, parse
from maildirqmtp.serialmail.report import SerialmailReport
from maildirqmtp.transport.endpoint import UcspiEndpoint
from tests.fakes import FileSystem
from tests.helpers import add_message, add_sidecar, command, names, runs, wait_until
from tests.serial import client, fatal, info, maildirserial, notes

USAGE = "maildirserial: usage: maildirserial [ -b ] [ -t lifetime ] dir prefix client [ arg ... ]\n"

#: Answers with the first letter of what follows the prefix `p-` in Delivered-To.
BY_RECIPIENT = client("""
for name in names():
    with open(name, "rb") as file:
        letter = file.read().split(b"Delivered-To: p-")[1][:1].upper()
    say(name, letter + b"said " + name)
""")
ACCEPT = client("for name in names(): say(name, b'Kok')")
NEVER_RUN = client("note(b'run')")


def fill(maildir: Path, *recipients: bytes, sender: bytes = b"s@x") -> None:
    """Put messages 1, 2, ... into it, with the prefix p-."""
    for number, to in enumerate(recipients, 1):
        add_message(maildir, f"{number}", sender=sender, recipient=b"p-" + to)


# The command line


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("M p- tcpclient h 209", Arguments(b"M", b"p-", (b"tcpclient", b"h", b"209"))),
        ("-b -t 60 M p- c", Arguments(b"M", b"p-", (b"c",), True, 60.0)),
        ("-bt60 M p- c -b", Arguments(b"M", b"p-", (b"c", b"-b"), True, 60.0)),
        ("-t 14d -- M p- c", Arguments(b"M", b"p-", (b"c",), False, 14 * 86_400.0)),
        ("--sendmail=/s\\ x M p- c", None),
        ("M p- c -t", Arguments(b"M", b"p-", (b"c", b"-t"))),
    ],
)
def test_command_lines(words: str, options: Arguments | None) -> None:
    """Arguments of the client are the client's."""
    if options is None:
        options = Arguments(b"M", b"p-", (b"c",), sendmail=(b"/s x",))
        assert parse(["--sendmail=/s\\ x", "M", "p-", "c"]) == options
    else:
        assert parse(words.split()) == options


@pytest.mark.parametrize(
    "words",
    ["", "M", "M p-", "-x M p- c", "-t", "-t 1x0 M p- c", "--sendmail= M p- c", "-t 5 M p-"],
)
def test_wrong_command_lines(words: str) -> None:
    """100, so that nobody tries again."""
    with pytest.raises(ConfigError):
        parse(words.split())
    assert maildirserial(*words.split()) == (100, USAGE)


def test_a_directory_that_is_not_there(maildir: Path) -> None:
    """And one that is no maildir; no client is run."""
    code, said = maildirserial(maildir / "none", "", *NEVER_RUN)
    assert (code, said) == (
        111,
        fatal(f"unable to chdir to {maildir}/none: No such file or directory"),
    )
    (maildir / "cur").rmdir()
    code, said = maildirserial(maildir, "", *NEVER_RUN)
    assert code == 111
    assert said.startswith(f"maildirserial: fatal: cannot open the maildir directory {maildir}/cur")
    assert notes(maildir) == []


def test_a_client_that_is_not_there(maildir: Path) -> None:
    """The mail stays."""
    fill(maildir, b"k@y")
    assert maildirserial(maildir, "", "/nonexistent/client") == (
        111,
        fatal("unable to run /nonexistent/client: No such file or directory"),
    )
    assert names(maildir / "new") == ["1"]


def test_two_of_them_do_not_share_a_maildir(maildir: Path) -> None:
    """They would send everything twice."""
    fill(maildir, b"k@y")
    with Maildir(os.fsencode(maildir)) as one:
        one.lock()
        code, said = maildirserial(maildir, "", *NEVER_RUN)
    assert code == 111
    assert f"{maildir} is locked by process {os.getpid()}; " in said
    assert notes(maildir) == []


# What becomes of a message


def test_nothing_to_do(maildir: Path) -> None:
    """No client is run, and that is success; so it is where nothing is ours."""
    assert maildirserial(maildir, "p-", *NEVER_RUN) == (0, "")
    add_message(maildir, "1", recipient=b"other@y")
    (maildir / "new" / ".dot").touch()
    (maildir / "new" / "dir").mkdir()
    (maildir / "new" / "link").symlink_to("1")
    assert maildirserial(maildir, "p-", *NEVER_RUN) == (0, "")
    assert notes(maildir) == []


def test_success_deferral_and_failure(maildir: Path) -> None:
    """K goes, Z and D stay; nobody is told by mail without -b."""
    fill(maildir, b"k@y", b"z@y", b"d@y")
    add_message(maildir, "9", recipient=b"other@y")
    assert maildirserial(maildir, "p-", *BY_RECIPIENT) == (
        111,
        info(
            "new/1 succeeded: said new/1",
            "new/2 failed temporarily: said new/2",
            "new/3 failed: said new/3",
        ),
    )
    assert names(maildir / "new") == ["2", "3", "9"]
    assert not (maildir / ".Failed").exists()


def test_all_accepted(maildir: Path) -> None:
    """Exit code 0; new/ and cur/, oldest first, whatever the names look like."""
    for name in ("20.b", "3.c:2,S"):
        add_message(maildir, name, folder="cur")
    add_message(maildir, "10.a")
    add_message(maildir, b"15.\xff\n\x1b[1m")
    assert maildirserial(maildir, "", *ACCEPT) == (
        0,
        info(
            "cur/3.c:2,S succeeded: ok",
            "new/10.a succeeded: ok",
            "new/15.???[1m succeeded: ok",
            "cur/20.b succeeded: ok",
        ),
    )
    assert names(maildir / "new") == names(maildir / "cur") == []


def test_what_has_stayed_is_not_given_again(maildir: Path) -> None:
    """Though there are more clients, for those of which the first has said nothing."""
    fill(maildir, b"z@y", b"d@y", b"k@y")
    script = """
for name in names():
    note(name)
    if name != b"new/3":
        say(name, {b"new/1": b"Z", b"new/2": b"D"}[name])
"""
    assert maildirserial(maildir, "p-", *client(script))[0] == 111
    assert sorted(notes(maildir)) == ["new/1", "new/2", "new/3", "new/3", "new/3", "new/3"]


def test_what_a_mail_reader_moves_meanwhile_is_not_given_again(maildir: Path) -> None:
    """It has had its turn, whatever it is called now."""
    fill(maildir, b"z@y", b"k@y")
    script = """
for name in names():
    note(name)
    if name == b"new/1":
        say(name, b"Znot now")
        os.rename(name, "cur/1:2,S")
        os._exit(0)
    say(name, b"Kok")
"""
    assert maildirserial(maildir, "p-", *client(script)) == (
        111,
        info("new/1 failed temporarily: not now", "new/2 succeeded: ok"),
    )
    assert notes(maildir) == ["new/1", "new/2"]


def test_what_a_mail_reader_moves_is_removed_from_there(maildir: Path) -> None:
    """Else it would be given, and sent, again."""
    fill(maildir, b"k@y")
    script = "for name in names(): note(name); os.rename(name, 'cur/1:2,S'); say(name, b'Kok')"
    assert maildirserial(maildir, "p-", *client(script))[0] == 0
    assert notes(maildir) == ["new/1"]
    assert names(maildir / "cur") == []


def sendmail(tmp_path: Path, end: str = "exit 0") -> str:
    """Make a sendmail that keeps what it is given; return the option that names it."""
    path = tmp_path / "sendmail"
    path.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/to\ncat > {tmp_path}/bounce\n{end}\n')
    path.chmod(0o755)
    return f"--sendmail={path}"


def test_a_failure_is_bounced(maildir: Path, tmp_path: Path) -> None:
    """With -b the sender is told, and then the message goes: nothing is left."""
    fill(maildir, b"d@y", b"k@y")
    assert maildirserial("-b", sendmail(tmp_path), maildir, "p-", *BY_RECIPIENT) == (
        0,
        info("new/1 bounced: said new/1", "new/2 succeeded: said new/2"),
    )
    assert names(maildir / "new") == []
    assert (tmp_path / "to").read_text() == "-i -f  -- s@x\n"
    assert "said new/1" in (tmp_path / "bounce").read_text()


def test_a_bounce_that_nobody_takes(maildir: Path, tmp_path: Path) -> None:
    """The message stays, for else nobody would ever hear of it."""
    fill(maildir, b"d@y")
    code, said = maildirserial("-b", sendmail(tmp_path, "exit 75"), maildir, "p-", *BY_RECIPIENT)
    assert code == 111
    warning, line = said.splitlines()
    assert warning.startswith("maildirserial: warning: no bounce can be sent: ")
    assert line.startswith(info("new/1 failed temporarily: said new/1 (no bounce yet: ")[:-1])
    assert names(maildir / "new") == ["1"]


@pytest.mark.parametrize("sender", [b"", b"#@[]"])
def test_a_bounce_is_not_bounced(maildir: Path, tmp_path: Path, sender: bytes) -> None:
    """It goes to the failed maildir, as with maildirqmtp."""
    fill(maildir, b"d@y", sender=sender)
    assert maildirserial("-b", sendmail(tmp_path), maildir, "p-", *BY_RECIPIENT) == (
        111,
        info(
            f"new/1 failed: said new/1 (no bounce: it came from <{sender.decode()}>) "
            f"(moved to {maildir}/.Failed/new/1)"
        ),
    )
    assert names(maildir / "new") == []
    assert not (tmp_path / "bounce").exists()


def test_too_old(maildir: Path, tmp_path: Path) -> None:
    """With -t, by the file's time; without, never."""
    fill(maildir, b"z@y", b"z@y")
    old = time.time() - 8_640_000
    os.utime(maildir / "new" / "1", (old, old))
    same = info("new/1 failed temporarily: said new/1", "new/2 failed temporarily: said new/2")
    assert maildirserial(maildir, "p-", *BY_RECIPIENT) == (111, same)
    assert maildirserial("-t", "8650000", maildir, "p-", *BY_RECIPIENT) == (111, same)
    assert maildirserial("-t", "8600000", maildir, "p-", *BY_RECIPIENT) == (
        111,
        info(
            "new/1 failed: said new/1 (too old: 100.0 days)",
            "new/2 failed temporarily: said new/2",
        ),
    )
    assert names(maildir / "new") == ["1", "2"]
    bounce = ("-b", "-t", "8600000", sendmail(tmp_path))
    assert maildirserial(*bounce, maildir, "p-", *BY_RECIPIENT) == (
        111,
        info(
            "new/1 bounced: said new/1 (too old: 100.0 days)",
            "new/2 failed temporarily: said new/2",
        ),
    )
    assert names(maildir / "new") == ["2"]


def test_a_file_that_changes_under_way_stays(maildir: Path) -> None:
    """What the client has sent is not what would be removed."""
    fill(maildir, b"k@y", b"k@y")
    grow = client("""
for name in names():
    if name == b"new/1":
        os.rename(name, "tmp/1")
        with open(name, "wb") as file: file.write(b"another")
    say(name, b"Kok")
""")
    code, said = maildirserial(maildir, "p-", *grow)
    assert code == 111
    assert said == info("new/1 succeeded: ok") + (
        "maildirserial: warning: 1 stays: it changed while it was being sent; kept, to be sent as "
        "it is now\n"
    ) + info("new/2 succeeded: ok")
    assert names(maildir / "new") == ["1"]


def test_what_an_administrator_holds_stays(maildir: Path) -> None:
    """A bounce of it may be out: whoever sends it then tells both."""
    fill(maildir, b"k@y", b"k@y")
    with Maildir(os.fsencode(maildir)) as held:
        holds.change(held.root, state.NAME, state.MAX_BYTES, hold=[b"1"], release=())
    code, said = maildirserial(maildir, "p-", *ACCEPT)
    assert code == 111
    assert f"new/1 stays: {holds.REASON}" in said
    assert names(maildir / "new") == ["1"]


@pytest.mark.parametrize("bounce", [True, False])
def test_a_message_in_a_loop_is_not_sent_once_more(
    maildir: Path, tmp_path: Path, bounce: bool
) -> None:
    """Two machines that forward to each other would go on for ever."""
    add_message(maildir, "1", b"Received: x\n" * 100 + b"\n", recipient=b"p-k@y")
    words = ["-b", sendmail(tmp_path)] if bounce else []
    code, said = maildirserial(*words, maildir, "p-", *NEVER_RUN)
    assert "mail loop: it has 100 Received lines" in said
    assert notes(maildir) == []
    assert (code, names(maildir / "new")) == ((0, []) if bounce else (111, ["1"]))
    if bounce:
        assert "mail loop" in (tmp_path / "bounce").read_text()


def test_what_a_client_would_not_understand_stays(maildir: Path) -> None:
    """It reads the lines on top, and has one result: both must be true of the message."""
    fill(maildir, b"same@y", b"other@y", b"many@y")
    add_sidecar(maildir, "1", "s@x", "p-same@y")
    add_sidecar(maildir, "2", "s@x", "p-another@y")
    add_sidecar(maildir, "3", "s@x", "p-many@y", "q-more@y")
    (maildir / "new" / "4").write_bytes(b"Return-Path: <s@x>\nEnvelope-to: p-a@y, p-b@y\n\n")
    add_message(maildir, "5", sender=None, recipient=None)
    (maildir / "envelope" / "6.json").write_text("{")
    add_message(maildir, "6", recipient=b"p-a@y")
    code, said = maildirserial(maildir, "p-", *ACCEPT)
    assert code == 111
    warnings = [line for line in said.splitlines() if "warning" in line]
    assert [line.split(" stays: ")[0] for line in warnings] == [
        f"maildirserial: warning: new/{number}" for number in (2, 3, 4, 5, 6)
    ]
    assert "its sidecar is not what its lines say" in warnings[0]
    assert "it has 2 recipients" in warnings[1]
    assert "it has 2 recipients" in warnings[2]
    assert info("new/1 succeeded: ok") in said
    assert names(maildir / "new") == ["2", "3", "4", "5", "6"]
    assert names(maildir / "envelope") == ["2.json", "3.json", "6.json"]


# Clients


@pytest.mark.parametrize(
    ("script", "wrote"),
    [
        ("say(b'new/9', b'Kok')", "a result for a name that was not given, new/9"),
        ("say(b'./new/1', b'Kok')", "a result for a name that was not given, ./new/1"),
        ("n = next(names()); say(n, b'Kok'); say(n, b'Kok')", "a second result for new/1"),
        ("n = next(names()); say(n, b'X')", "no result: 'new/1?X?'"),
        ("n = next(names()); say(n, b'')", "no result: 'new/1??'"),
        ("while True: os.write(1, b'y\\n' * 1000)", "no result: '"),
        ("while True: os.write(1, b'new/1\\0K' + b'y' * 1000)", "a result of more than 65536"),
        ("while True: os.write(1, b'\\0' * 1000)", "no result: '"),
    ],
)
def test_a_client_that_talks_nonsense(maildir: Path, script: str, wrote: str) -> None:
    """Nothing of it is believed; the client is ended, and none is run after it."""
    fill(maildir, b"k@y", b"k@y")
    code, said = maildirserial("-b", maildir, "p-", *client(f"note(b'run')\n{script}"))
    assert code == 111
    assert f"maildirserial: fatal: client wrote {wrote}" in said
    accepted = "second" in wrote
    assert said.startswith(info("new/1 succeeded: ok") if accepted else "maildirserial: fatal: ")
    assert names(maildir / "new") == (["2"] if accepted else ["1", "2"])
    assert notes(maildir) == ["run"]


def test_a_client_that_talks_nonsense_and_does_not_go(maildir: Path) -> None:
    """It is killed, and what it has started: it could go on sending for hours."""
    fill(maildir, b"k@y")
    script = """
import time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
note(b"%d" % os.getpid())
child = os.fork()
if child:
    note(b"%d" % child)
    say(b"new/9", b"Kok")
while True: time.sleep(1)
"""
    code, said = maildirserial(maildir, "p-", *client(script))
    assert (code, said) == (
        111,
        fatal("client wrote a result for a name that was not given, new/9"),
    )
    pids = notes(maildir)
    assert len(pids) == 2
    wait_until(lambda: not any(runs(int(pid)) for pid in pids), "both to be gone")


def test_a_client_that_takes_no_more_names(maildir: Path) -> None:
    """It is not our end; the next one gets them."""
    fill(maildir, *[b"k@y"] * 2_000)
    script = """
first = not os.path.exists("../notes")
note(b"run")
for name in names():
    if first: os.close(0)
    say(name, b"Kok")
    if first: os._exit(111)
"""
    code, said = maildirserial(maildir, "p-", *client(script))
    assert (code, said.count(" succeeded: ok\n")) == (0, 2_000)
    assert notes(maildir) == ["run", "run"]


def test_a_name_that_was_not_given_is_a_strangers(maildir: Path) -> None:
    """Though there is such a message: nobody has sent it."""
    fill(maildir, b"k@y")
    add_message(maildir, "2", recipient=b"other@y")
    code, said = maildirserial(maildir, "p-", *client("say(b'new/2', b'Kok')"))
    assert (code, said) == (
        111,
        fatal("client wrote a result for a name that was not given, new/2"),
    )
    assert names(maildir / "new") == ["1", "2"]


@pytest.mark.parametrize(
    ("end", "code", "last"),
    [
        ("os._exit(100)", 100, ""),
        ("os.kill(os.getpid(), 9)", 111, fatal("client crashed")),
        ("os.kill(os.getpid(), 15)", 111, fatal("client crashed")),
    ],
)
def test_how_a_client_ends(maildir: Path, end: str, code: int, last: str) -> None:
    """What it has said before counts; no other is run after it."""
    fill(maildir, b"k@y", b"k@y")
    script = f"note(b'run')\nfor name in names(): say(name, b'Kok'); {end}"
    assert maildirserial(maildir, "p-", *client(script)) == (
        code,
        info("new/1 succeeded: ok") + last,
    )
    assert names(maildir / "new") == ["2"]
    assert notes(maildir) == ["run"]


@pytest.mark.parametrize("end", ["os._exit(0)", "os._exit(111)", "os._exit(1)"])
def test_a_client_that_makes_no_progress(maildir: Path, end: str) -> None:
    """Three in a row: a server that is down must not be asked for ever."""
    fill(maildir, b"k@y", b"k@y")
    assert maildirserial(maildir, "p-", *client(f"note(b'run'); {end}")) == (
        111,
        fatal("making no progress, giving up"),
    )
    assert notes(maildir) == ["run"] * 3
    assert names(maildir / "new") == ["1", "2"]


def test_a_client_that_has_results_for_some(maildir: Path) -> None:
    """The next one gets the rest, as long as there is any progress."""
    fill(maildir, *[b"k@y"] * 5)
    script = """
import glob
note(b'run')
runs = open('../notes').read().count('run')
if runs % 3: os._exit(111)
say(next(names()), b'Kok')
os._exit(111)
"""
    code, said = maildirserial(maildir, "p-", *client(script))
    assert (code, said) == (0, info(*[f"new/{n} succeeded: ok" for n in range(1, 6)]))
    assert len(notes(maildir)) == 15


def test_a_result_that_breaks_off_is_none(maildir: Path) -> None:
    """The client was killed amid a line: the rest of it may have said otherwise."""
    fill(maildir, b"k@y")
    script = "next(names()); os.write(1, b'new/1\\0Kok'); os.kill(os.getpid(), 9)"
    assert maildirserial(maildir, "p-", *client(script)) == (111, fatal("client crashed"))
    assert names(maildir / "new") == ["1"]


def test_new_mail_is_given_to_the_next_client(maildir: Path) -> None:
    """Each round looks anew; what the first could not be given goes with the second."""
    fill(maildir, b"k@y")
    script = """
for name in names():
    if name == b"new/1":
        with open("new/2", "wb") as file:
            file.write(b"Return-Path: <>\\nDelivered-To: p-x@y\\n\\n")
    say(name, b"Kok")
"""
    assert maildirserial(maildir, "p-", *client(script)) == (
        0,
        info("new/1 succeeded: ok", "new/2 succeeded: ok"),
    )


def test_clients_that_read_and_write_at_other_times(maildir: Path) -> None:
    """All names first; or more results than a pipe holds before the next name: no deadlock."""
    count = 3_000
    for script in (
        "for name in list(names()): say(name, b'K' + b'x' * 300)",
        "for name in names(): say(name, b'K' + b'x' * 1000)",
        "every = list(names())\nfor name in reversed(every): say(name, b'Kok')",
    ):
        for number in range(count):
            add_message(maildir, f"{number}.some-host.example.org", b"")
        code, said = maildirserial(maildir, "", *client(script))
        assert code == 0, said[-200:]
        assert said.count(" succeeded: ") == count
        assert names(maildir / "new") == []


def test_the_client_works_in_the_maildir_and_is_waited_for(maildir: Path) -> None:
    """It closes its output first, and takes its time: no zombie, no file in use after us."""
    fill(maildir, b"k@y")
    script = """
assert os.getcwd().endswith("/Maildir")
say(next(names()), b"Kok")
os.close(1)
while os.read(0, 100): pass
note(b"%d" % os.getpid())
"""
    assert maildirserial(maildir, "p-", *client(script)) == (0, info("new/1 succeeded: ok"))
    (pid,) = notes(maildir)
    assert not Path(f"/proc/{pid}").exists()


# In this process: what cannot be had by a script


class Case:
    """Rounds over a maildir, with a clock that can be set forward."""

    def __init__(self, maildir: Path, script: str) -> None:
        self.log = io.StringIO()
        self.late_s = 0.0
        self.maildir = Maildir(os.fsencode(maildir))
        self.maildir.lock()
        route = Route(
            self.maildir.path, UcspiEndpoint(), prefix=b"p-", include_cur=True, lifetime_s=1e12
        )
        words = [os.fsencode(word) for word in client(script)]
        self.rounds = ClientLoop(
            route, self.maildir, words, SerialmailReport(self.log), self.clock, time.time
        )

    def clock(self) -> float:
        """Seconds, and those that were skipped."""
        return time.monotonic() + self.late_s

    def run(self) -> tuple[int, str]:
        """Run to the end; exit code and log."""
        try:
            return self.rounds.run(), self.log.getvalue()
        finally:
            self.rounds.close()
            self.maildir.close()


Make = Callable[[str], Case]


@pytest.fixture
def make(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Make one, in the maildir as its working directory."""
    monkeypatch.chdir(maildir)
    return lambda script: Case(maildir, script)


def loops(maildir: Path) -> None:
    """Put three messages that are in a loop into it."""
    for number in range(3):
        add_message(maildir, f"{number}", b"Received: x\n" * 100 + b"\n", recipient=b"p-k@y")


@pytest.mark.parametrize(
    "happens",
    [
        pytest.param(
            lambda rounds: rounds._settler.stop_taking(LocalError("read-only")),
            id="a removal fails: with -b each sender would be told once more by each run",
        ),
        pytest.param(lambda rounds: rounds.stop(), id="told to stop: thousands would take minutes"),
    ],
)
def test_no_more_of_a_loop_is_settled(
    maildir: Path,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    happens: Callable[[ClientLoop], None],
) -> None:
    """Messages in a loop are settled one after the other, without a client."""
    loops(maildir)
    case = make("note(b'run')")
    settled: list[QueuedMessage] = []

    def settle(queued: QueuedMessage, _: Response) -> None:
        settled.append(queued)
        happens(case.rounds)

    monkeypatch.setattr(case.rounds, "_settle", settle)
    code, _ = case.run()
    assert (code, len(settled)) == (111, 1)


def test_a_message_that_cannot_be_removed(
    maildir: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has it: that it may come twice is said; nothing more is given to a client."""
    count = 2_000  # more than are under way in a pipe
    fill(maildir, *[b"k@y"] * count)
    files = FileSystem(monkeypatch, maildir)
    files.always_fail("unlink new/1", 1)
    case = make("""
every = names()
say(next(every), b"Kok")
note(b"%d" % sum(1 for name in every))
""")
    code, said = case.run()
    assert code == 111
    assert said.splitlines() == [
        "maildirserial: info: new/1 succeeded: ok",
        f"maildirserial: warning: cannot remove {maildir}/new/1: Operation not permitted; nothing "
        "more is taken from this maildir",
        "maildirserial: warning: message will be delivered twice! unable to unlink new/1: "
        "Operation not permitted",
        "maildirserial: warning: the server has taken 1, but cannot remove "
        f"{maildir}/new/1: Operation not permitted; remove it by hand, or it will be sent again",
    ]
    assert len(names(maildir / "new")) == count
    (given,) = notes(maildir)
    assert int(given) < count - 1


def test_removals_are_made_durable_while_the_client_works(
    maildir: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a second; a client may work for hours, and a power cut would bring everything back."""
    fill(maildir, b"k@y")
    files = FileSystem(monkeypatch, maildir)
    case = make("""
import time
for name in names(): say(name, b"Kok")
while not os.path.exists("../go"): time.sleep(0.01)
""")
    synced: list[bool] = []

    def later() -> None:
        try:
            wait_until(lambda: "unlink new/1" in files.calls, "the removal")
            case.late_s = 2.0
            wait_until(lambda: "fsync new" in files.calls, "its being made durable", 10.0)
            synced.append(True)
        finally:
            (maildir.parent / "go").touch()

    thread = threading.Thread(target=later)
    thread.start()
    assert case.run()[0] == 0
    thread.join()
    assert synced


def test_removals_are_made_durable_together(
    maildir: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fsync each would be what takes longest."""
    fill(maildir, *[b"k@y"] * 50)
    files = FileSystem(monkeypatch, maildir)
    case = make("every = list(names())\nfor name in every: say(name, b'Kok')")
    assert case.run()[0] == 0
    calls = files.of("unlink", "fsync")
    assert len([call for call in calls if call.startswith("unlink new/") and "probe" not in call])
    assert calls[-1] == "fsync new"
    assert calls.count("fsync new") <= 3


def test_a_maildir_that_cannot_be_changed(
    maildir: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No client is run: what it sends would be sent by each run."""
    from maildirqmtp.errors import LocalError

    fill(maildir, b"k@y")
    files = FileSystem(monkeypatch, maildir)
    files.always_fail("unlink new/.maildirqmtp-probe", 30)
    case = make("note(b'run')")
    with pytest.raises(LocalError, match="cannot change"):
        case.run()
    assert notes(maildir) == []


def test_a_client_that_wants_more_names_than_are_kept_in_mind(
    maildir: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets the others in another run; nobody waits for ever, and memory is bounded."""
    monkeypatch.setattr(feeder, "MAX_UNANSWERED", 3)
    fill(maildir, *[b"k@y"] * 8)
    case = make("every = list(names()); note(b'%d' % len(every))\nfor n in every: say(n, b'K')")
    assert case.run()[0] == 0
    assert notes(maildir) == ["3", "3", "2"]
    assert names(maildir / "new") == []


def test_a_client_that_does_not_end_after_we_were_told_to(maildir: Path, make: Make) -> None:
    """It has 30 seconds, and is then ended with all it has started."""
    fill(maildir, b"k@y")
    case = make(
        "next(names()); note(b'%d' % os.getpid())\n"
        "while os.read(0, 10): pass\n"
        "os.execvp('sleep', ['sleep', '1000'])"
    )
    pids: list[int] = []

    def skip() -> None:
        wait_until(lambda: bool(notes(maildir)), "the client to have a name")
        pids.append(int(notes(maildir)[0]))
        case.rounds.stop()
        case.late_s = 31.0
        case.rounds.wake.set()

    thread = threading.Thread(target=skip)
    thread.start()
    assert case.run() == (111, fatal("told to stop"))
    thread.join()
    assert not runs(pids[0])
    assert names(maildir / "new") == ["1"]


# Told to stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_told_to_stop(maildir: Path, number: signal.Signals) -> None:
    """What the client has is waited for and settled; it is not killed, and gets nothing more."""
    fill(maildir, *[b"k@y"] * 2_000)
    script = """
import time
mine = next(names())
note(mine)
while not os.path.exists("../go"): time.sleep(0.01)
say(mine, b"Kok")
seen = sum(1 for name in names())
note(b"ended with %d" % seen)
"""
    words = [*command("maildirserial"), str(maildir), "p-", *client(script)]
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may be run by nohup
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        signal.signal(signal.SIGHUP, before)
        assert process.stderr is not None
        wait_until(lambda: bool(notes(maildir)), "the client to have a name")
        process.send_signal(number)
        (maildir.parent / "go").touch()
        said = process.stderr.read()
        assert process.wait() == 111
    assert said == info("new/1 succeeded: ok") + fatal("told to stop")
    assert len(names(maildir / "new")) == 1_999
    assert "1" not in names(maildir / "new")
    # Those that were in the pipe cannot be taken back; there are more than it holds.
    assert int(notes(maildir)[1].removeprefix("ended with ")) < 1_900
