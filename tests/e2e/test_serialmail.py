"""serialqmtp and maildirserial as people run them: under tcpclient, with each other and others.

What they write and how they end are interfaces of 1998, and asserted to the byte.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers import (
    Peer,
    Script,
    add_message,
    answer_all,
    by_recipient,
    closed_port,
    command,
    have_mailfront,
    mailfront,
    make_maildir,
    names,
    queuedir_messages,
    serving,
    snapshot,
)
from tests.receiving import delivered, receiver
from tests.serial import fatal, finish, info, maildirserial, serialqmtp, tcpclient, under_tcpclient

pytestmark = under_tcpclient


@pytest.fixture
def maildir(path: Path) -> Path:
    """A maildir with a message of each kind: taken, deferred, refused, somebody else's, none."""
    for number, to in enumerate((b"p-k@y", b"p-z@y", b"p-d@y", b"other@y"), 1):
        add_message(path, f"{number}", b"Subject: %d\n\n" % number, recipient=to)
    add_message(path, "5", sender=None, recipient=None)
    return path


# serialqmtp


def test_serialqmtp_tells_what_the_server_says(maildir: Path) -> None:
    """Success, deferral, failure; not a word of what is not ours."""
    feed = b"".join(b"new/%d\0" % number for number in range(1, 6))
    with serving(answer_all(by_recipient)) as server:
        done = serialqmtp(server.address, "p-", feed, maildir)
        assert done.stdout == b"new/1\0Kok\nnew/2\0Zbusy\nnew/3\0Dno such user (#5.1.1)\n"
        assert (done.returncode, done.stderr) == (0, b"")
        assert [(p.sender, p.recipients, p.text) for p in server.packages] == [
            (b"sender@example.org", (b"k@y",), b"Subject: 1\n\n"),
            (b"sender@example.org", (b"z@y",), b"Subject: 2\n\n"),
            (b"sender@example.org", (b"d@y",), b"Subject: 3\n\n"),
        ]


def test_serialqmtp_says_who_has_said_it(maildir: Path) -> None:
    """TCPREMOTEIP, as tcpclient has it; and nothing that a terminal would obey."""
    said = b"K\x1b[31m\n\xc3\xa4 ok" + b"x" * 3_000
    with serving(answer_all(lambda package, recipient: said)) as server:
        done = serialqmtp(server.address, "p-", b"new/1\0", maildir, {"LANG": "C"})
    line = b"K127.0.0.1 said: ?[31m??? ok".ljust(2_000, b"x")
    assert done.stdout == b"new/1\0" + line + b"\n"
    assert (done.returncode, done.stderr) == (0, b"")


def test_serialqmtp_without_a_prefix(tmp_path: Path) -> None:
    """Wrong usage."""
    done = finish([os.fsencode(word) for word in command("serialqmtp")], b"", tmp_path)
    assert done.returncode == 100
    assert (done.stdout, done.stderr) == (b"", b"serialqmtp: usage: serialqmtp prefix\n")


@pytest.mark.parametrize("program", ["serialqmtp", "maildirserial"])
def test_help(program: str, tmp_path: Path) -> None:
    """Not "unable to write to network"."""
    done = finish([*map(os.fsencode, command(program)), b"--help"], b"", tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(f"usage: {program} ".encode())
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_serialqmtp_without_a_connection(tmp_path: Path) -> None:
    """Not run by a UCSPI client; it says how."""
    done = finish([os.fsencode(word) for word in (*command("serialqmtp"), "p-")], b"", tmp_path)
    assert (done.returncode, done.stdout) == (111, b"")
    assert done.stderr.startswith(b"serialqmtp: fatal: unable to write to network: no connection")


def close_after(answers: int) -> Script:
    """A script that answers so many packages and closes."""

    def script(peer: Peer) -> None:
        for _ in range(answers):
            assert peer.read_package() is not None
            peer.respond(b"Kok")
        peer.finish()

    return script


def test_serialqmtp_and_a_server_that_leaves(maildir: Path) -> None:
    """Once all is answered that is its right; before that it is not."""
    with serving(close_after(1)) as server:
        done = serialqmtp(server.address, "p-", b"new/1\0", maildir)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"new/1\0Kok\n", b"")
        done = serialqmtp(server.address, "p-", b"new/1\0new/2\0", maildir)
    assert (done.returncode, done.stdout) == (111, b"new/1\0Kok\n")
    assert done.stderr in (
        b"serialqmtp: fatal: network read error: end of file\n",
        b"serialqmtp: fatal: network read error: Connection reset by peer\n",
    )


def test_serialqmtp_and_a_server_that_speaks_something_else(maildir: Path) -> None:
    """SMTP on the wrong port."""
    with serving(lambda peer: peer.send(b"220 mx ESMTP\r\n")) as server:
        done = serialqmtp(server.address, "p-", b"new/1\0", maildir)
    assert (done.returncode, done.stdout) == (111, b"")
    assert done.stderr == b"serialqmtp: fatal: remote protocol violation\n"


def test_serialqmtp_and_a_file_that_is_not_there(maildir: Path) -> None:
    """It stops there, with the results of those before."""
    (maildir / "new" / "dir").mkdir()
    with serving(answer_all(by_recipient)) as server:
        for name, why in ((b"new/none", b"open"), (b"new/dir", b"read")):
            feed = b"new/1\0new/2\0" + name + b"\0new/3\0"
            done = serialqmtp(server.address, "p-", feed, maildir)
            assert (done.returncode, done.stdout) == (111, b"new/1\0Kok\nnew/2\0Zbusy\n")
            assert done.stderr == b"serialqmtp: fatal: unable to %b file\n" % why


def test_serialqmtp_whose_input_or_output_is_missing(maildir: Path) -> None:
    """Closed by whoever started it: no file of ours may take their place."""
    with serving(answer_all(by_recipient)) as server:
        words = tcpclient(server.address, "sh", "-c", '"$0" p- <&-', *command("serialqmtp"))
        done = finish(words, b"", maildir)
        assert done.stderr == b"serialqmtp: fatal: unable to read input\n"
        words = tcpclient(server.address, "sh", "-c", '"$0" p- >&-', *command("serialqmtp"))
        done = finish(words, b"new/1\0", maildir)
        assert done.stderr == b"serialqmtp: fatal: unable to write output: Bad file descriptor\n"
        words = tcpclient(server.address, "sh", "-c", '"$0" p- >/dev/full', *command("serialqmtp"))
        done = finish(words, b"new/1\0", maildir)
        assert done.stderr == (
            b"serialqmtp: fatal: unable to write output: No space left on device\n"
        )
        assert done.returncode == 111


def test_serialqmtp_with_dev_null_and_files(maildir: Path) -> None:
    """`< /dev/null`, `< names`, `> results`, as in any script."""
    (maildir / "names").write_bytes(b"new/1\0new/2\0")
    with serving(answer_all(by_recipient)) as server:
        words = tcpclient(server.address, "env", "-u", "TCPREMOTEIP", *command("serialqmtp"), "p-")
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True
        )
        assert (done.stdout, done.stderr) == (b"", b"")
        with open(maildir / "names", "rb") as names, open(maildir / "results", "wb") as results:
            subprocess.run(words, stdin=names, stdout=results, cwd=maildir, timeout=60, check=True)
    assert (maildir / "results").read_bytes() == b"new/1\0Kok\nnew/2\0Zbusy\n"


def test_serialqmtp_answers_a_feeder_that_waits(maildir: Path) -> None:
    """One name, one result, the next name: serialmail's feeders may do that."""
    with serving(answer_all(by_recipient)) as server:
        words = tcpclient(server.address, "env", "-u", "TCPREMOTEIP", *command("serialqmtp"), "p-")
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=maildir, bufsize=0
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for name, result in ((b"new/2", b"Zbusy"), (b"new/1", b"Kok"), (b"new/1", b"Kok")):
                process.stdin.write(name + b"\0")
                assert process.stdout.readline() == name + b"\0" + result + b"\n"
            process.stdin.close()
            assert process.wait(60) == 0


def test_serialqmtp_with_ten_thousand_names_and_large_messages(tmp_path: Path) -> None:
    """Through both pipes and the connection at once, into our receiver; in the order of names."""
    maildir = make_maildir(tmp_path / "here")
    texts = []
    for number in range(1_000):
        text = b"Subject: %d\n\n" % number + b"x" * (3_000_000 if number % 400 == 5 else 0)
        add_message(maildir, f"{number}.with-a-name-of-some-length", text)
        texts.append(text)
    feed = [b"new/%d.with-a-name-of-some-length" % number for number in range(1_000)]
    with receiver(tmp_path / "there") as (_, server):
        done = serialqmtp(server, "", b"".join(name + b"\0" for name in feed), maildir)
    assert (done.returncode, done.stderr) == (0, b"")
    results = [line.split(b"\0") for line in done.stdout.splitlines()]
    assert [name for name, _ in results] == feed
    assert all(text.startswith(b"K") for _, text in results)
    assert delivered(tmp_path / "there") == sorted(texts)


@pytest.mark.skipif(not have_mailfront(), reason="NOT TESTED: mailfront is not installed")
def test_serialqmtp_and_mailfront(maildir: Path, tmp_path: Path) -> None:
    """A server that is not ours."""
    with mailfront(tmp_path / "queue") as server:
        done = serialqmtp(server, "p-", b"new/1\0new/2\0new/5\0new/3\0", maildir)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.splitlines()
    assert [line[:7] for line in lines] == [b"new/1\0K", b"new/2\0K", b"new/3\0K"]
    assert Counter(queuedir_messages(tmp_path / "queue")) == Counter(
        (b"sender@example.org", (to,), b"Subject: %d\n\n" % number)
        for number, to in ((1, b"k@y"), (2, b"z@y"), (3, b"d@y"))
    )


def test_a_host_that_cannot_be_reached(maildir: Path) -> None:
    """tcpclient's own exit code; serialqmtp is not even started."""
    done = serialqmtp(f"127.0.0.1:{closed_port()}", "p-", b"new/1\0", maildir)
    assert (done.returncode, done.stdout) == (111, b"")


# maildirserial


def through(server: str, prefix: str) -> list[str]:
    """serialqmtp under tcpclient, as the client of maildirserial."""
    return [os.fsdecode(word) for word in tcpclient(server, *command("serialqmtp"), prefix)]


SAYS = "127.0.0.1 said: "


def test_both_of_them(maildir: Path) -> None:
    """Success, deferral and failure, each with who said it; what is not ours is not touched."""
    (maildir / "new" / "5").unlink()
    with serving(answer_all(by_recipient)) as server:
        assert maildirserial(maildir, "p-", *through(server.address, "p-")) == (
            111,
            info(
                f"new/1 succeeded: {SAYS}ok",
                f"new/2 failed temporarily: {SAYS}busy",
                f"new/3 failed: {SAYS}no such user (#5.1.1)",
            ),
        )
        assert server.connections == 1
    assert names(maildir / "new") == ["2", "3", "4"]


def test_the_client_has_the_connection_of_its_caller(maildir: Path, tmp_path: Path) -> None:
    """Under an sslclient, or a server that calls back; serialmail's own works there."""
    (maildir / "new" / "5").unlink()
    inner = [*command("serialqmtp"), "p-"]
    with serving(answer_all(by_recipient)) as server:
        words = [*command("maildirserial"), str(maildir), "p-", *inner]
        done = finish(tcpclient(server.address, *words), b"", tmp_path)
        assert server.connections == 1
    assert b"new/1 succeeded" in done.stderr
    assert names(maildir / "new") == ["2", "3", "4"]


def test_the_classic_line(maildir: Path, tmp_path: Path) -> None:
    """`maildirserial -b -t 1209600 DIR PREFIX tcpclient HOST 209 serialqmtp PREFIX`."""
    (maildir / "new" / "5").unlink()
    sendmail = tmp_path / "sendmail"
    sendmail.write_text(f"#!/bin/sh\ncat > {tmp_path}/bounce.$5\n")
    sendmail.chmod(0o755)
    os.utime(maildir / "new" / "2", (1e9, 1e9))
    options = ["-b", "-t", "1209600", f"--sendmail={sendmail}"]
    with serving(answer_all(by_recipient)) as server:
        code, said = maildirserial(*options, maildir, "p-", *through(server.address, "p-"))
    assert code == 0
    assert said.startswith(
        info(f"new/1 succeeded: {SAYS}ok")
        + f"maildirserial: info: new/2 bounced: {SAYS}busy (too old: "
    )
    assert said.endswith(info(f"new/3 bounced: {SAYS}no such user (#5.1.1)"))
    assert names(maildir / "new") == ["4"]
    assert b"no such user" in (tmp_path / "bounce.sender@example.org").read_bytes()


def test_the_rest_goes_with_maildirqmtp(maildir: Path, tmp_path: Path) -> None:
    """They are steps from one to the other: the same maildir, prefix and exit codes."""
    (maildir / "new" / "5").unlink()
    with serving(answer_all(by_recipient)) as server:
        assert maildirserial(maildir, "p-", *through(server.address, "p-"))[0] == 111
    with receiver(tmp_path / "there") as (_, address):
        words = tcpclient(address, *command(), str(maildir), "p-", "-")
        assert finish(words, b"", tmp_path).returncode == 0
        code, said = maildirserial(maildir, "", *through(address, ""))
    assert code == 0
    assert re.fullmatch(info(f"new/4 succeeded: {SAYS}ok [0-9]+ qp [0-9.]+"), said)
    assert names(maildir / "new") == []
    assert delivered(tmp_path / "there") == [b"Subject: %d\n\n" % n for n in (2, 3, 4)]


def test_a_server_that_leaves_after_each_answer(maildir: Path) -> None:
    """Connection after connection, one message each, while there is progress."""
    for number in range(1, 6):
        add_message(maildir, f"{number}", recipient=b"p-k@y")
    with serving(close_after(1)) as server:
        code, said = maildirserial(maildir, "p-", *through(server.address, "p-"))
        assert server.connections == 5
    assert code == 0
    lines = [line for line in said.splitlines(keepends=True) if "serialqmtp: " not in line]
    assert "".join(lines) == info(*[f"new/{n} succeeded: {SAYS}ok" for n in range(1, 6)])
    assert names(maildir / "new") == []


def test_a_server_that_cannot_be_reached(maildir: Path) -> None:
    """Three times, and nothing has happened to any message, however old it is."""
    before = snapshot(maildir)
    address = f"127.0.0.1:{closed_port()}"
    code, said = maildirserial("-b", "-t", "0", maildir, "p-", *through(address, "p-"))
    assert code == 111
    assert said.count("tcpclient: ") == 3
    assert said.endswith(fatal("making no progress, giving up"))
    assert snapshot(maildir) == before


def test_a_client_that_is_called_wrongly(maildir: Path) -> None:
    """Its 100 is ours: to try again would not help."""
    (maildir / "new" / "5").unlink()
    with serving(answer_all()) as server:
        words = tcpclient(server.address, *command("serialqmtp"))
        assert maildirserial(maildir, "p-", *words) == (
            100,
            "serialqmtp: usage: serialqmtp prefix\n",
        )


def test_a_server_that_refuses_without_a_word(maildir: Path) -> None:
    """It takes the package and closes: in doubt, three times, and still here."""
    (maildir / "new" / "5").unlink()

    def script(peer: Peer) -> None:
        peer.read_package()

    with serving(script) as server:
        code, said = maildirserial(maildir, "p-", *through(server.address, "p-"))
    assert code == 111
    assert said == "serialqmtp: fatal: network read error: end of file\n" * 3 + fatal(
        "making no progress, giving up"
    )
    assert names(maildir / "new") == ["1", "2", "3", "4"]


@pytest.mark.skipif(not have_mailfront(), reason="NOT TESTED: mailfront is not installed")
def test_both_of_them_and_mailfront(tmp_path: Path) -> None:
    """Three hundred messages to a server that is not ours."""
    maildir = make_maildir(tmp_path / "here")
    for number in range(300):
        add_message(maildir, f"{number}", b"%d\n" % number, recipient=b"p-r@y")
    with mailfront(tmp_path / "queue") as server:
        code, said = maildirserial(maildir, "p-", *through(server, "p-"))
    assert (code, said.count(f" succeeded: {SAYS}")) == (0, 300)
    assert names(maildir / "new") == []
    assert Counter(queuedir_messages(tmp_path / "queue")) == Counter(
        (b"sender@example.org", (b"r@y",), b"%d\n" % number) for number in range(300)
    )


def test_kill_9_at_any_moment(tmp_path: Path) -> None:
    """Each message has been taken, or is still here; in the end all have been taken."""
    rng = random.Random(5)
    maildir, there = make_maildir(tmp_path / "here"), tmp_path / "there"
    texts = [b"Subject: %d\n\n" % number for number in range(400)]
    for number, text in enumerate(texts):
        add_message(maildir, f"{number}", text)
    kills = 0
    with receiver(there) as (_, server):
        for _ in range(12):
            words = [*command("maildirserial"), str(maildir), "", *through(server, "")]
            with subprocess.Popen(words, stderr=subprocess.PIPE) as process:
                assert process.stderr is not None
                for _ in range(rng.randrange(40)):
                    process.stderr.readline()
                process.kill()
                kills += process.wait() == -signal.SIGKILL
                here = {(maildir / "new" / name).read_bytes() for name in names(maildir / "new")}
                lines = b"Return-Path: <sender@example.org>\nDelivered-To: recipient@example.net\n"
                taken = set(delivered(there))
                assert all(text in taken or lines + text in here for text in texts)
        assert kills >= 5
        code, _ = maildirserial(maildir, "", *through(server, ""))
    assert code == 0
    assert names(maildir / "new") == []
    assert set(delivered(there)) == set(texts)
