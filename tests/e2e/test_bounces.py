"""What senders hear of failures, with the installed command."""

from __future__ import annotations

import email
import email.message
import email.policy
import json
import os
import re
import shutil
import socketserver
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.e2e.daemons import watching
from tests.helpers import (
    SAID,
    Peer,
    add_message,
    add_sidecar,
    answer_all,
    by_recipient,
    closed_port,
    command,
    have_mailfront,
    ignoring_sigchld,
    mailfront,
    names,
    queuedir_messages,
    run,
    serving,
    sidecar,
)


class Sendmail:
    """A command that stands in for sendmail: keeps its arguments and what it is given."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.home.mkdir()
        self.command = home / "sendmail"
        self.then("exit 0")

    def then(self, end: str) -> None:
        """Say how it is to end."""
        self.command.write_text(
            f'#!/bin/sh\nn=$(mktemp "{self.home}/XXXXXX.text") || exit 9\n'
            f'cat > "$n"; printf "%s\\n" "$@" > "${{n%.text}}.arguments"\n{end}\n'
        )
        self.command.chmod(0o755)

    def forget(self) -> None:
        """Forget the calls so far."""
        for path in self.home.glob("*.text"):
            path.unlink()

    @property
    def sent(self) -> list[tuple[list[str], bytes]]:
        """The arguments and the text of each call."""
        return [
            (path.with_suffix(".arguments").read_text().splitlines(), path.read_bytes())
            for path in sorted(self.home.glob("*.text"))
        ]


@pytest.fixture
def sendmail(tmp_path: Path) -> Sendmail:
    """A recording command."""
    return Sendmail(tmp_path / "sendmail")


def failed_recipients(bounce: bytes) -> list[str]:
    """Read a bounce with Python's own parser; return whom it is about."""
    message = email.message_from_bytes(bounce, policy=email.policy.default)
    assert message.get_content_type() == "multipart/report"
    _, status, original = message.iter_parts()
    assert status.get_content_type() == "message/delivery-status"
    assert original.get_content_type() == "message/rfc822"
    return [
        re.sub("^rfc822; ?", "", group["Final-Recipient"])
        for group in list(status.iter_parts())[1:]
    ]


# By sendmail


def test_the_classic_form_bounces_by_sendmail(maildir: Path, sendmail: Sendmail) -> None:
    """As serialmail does: whoever has sent it hears that it failed, and only once."""
    add_message(maildir, "1.m", recipient=b"pre-d@y")
    add_message(maildir, "2.m", recipient=b"pre-k@y")
    with serving(answer_all(by_recipient)) as server:
        result = run("--sendmail", sendmail.command, maildir, "pre-", server.address)
        assert result.returncode == 0
        assert run("--sendmail", sendmail.command, maildir, "pre-", server.address).returncode == 0
    ((arguments, text),) = sendmail.sent
    assert arguments == ["-i", "-f", "", "--", "sender@example.org"]
    assert failed_recipients(text) == ["d@y"]
    assert "1.m: d@y: bounced: no such user (#5.1.1)\n" in result.stderr
    assert "1 accepted, 0 deferred, 0 failed, 1 bounced, 0 held, " in result.stderr
    assert names(maildir / "new") == []
    assert not (maildir / ".Failed").exists()


def test_a_message_that_changed_in_flight_is_not_bounced(maildir: Path, sendmail: Sendmail) -> None:
    """What the server refused is not what a bounce would quote; as it is now, it is sent anew."""
    path = maildir / "new" / "1.m"
    now = add_message(maildir, "1.m", b"another message\n", recipient=b"k@y")
    add_message(maildir, "1.m", recipient=b"d@y")

    def script(peer: Peer) -> None:
        package = peer.read_package()
        assert package is not None
        if package.recipients == (b"d@y",):
            path.write_bytes(now)
        peer.respond(by_recipient(package, package.recipients[0]))

    flags = ("--bounce", "--sendmail", sendmail.command)
    with serving(script) as server:
        assert run(*flags, maildir, server.address).returncode == 0
    assert sendmail.sent == []
    assert names(maildir / "new") == []
    assert [package.recipients for package in server.packages] == [(b"d@y",), (b"k@y",)]


def test_the_short_form_does_not_bounce(maildir: Path, sendmail: Sendmail) -> None:
    """On somebody's inbox, each failure would go to a stranger."""
    add_message(maildir, "1.m", recipient=b"d@y")
    with serving(answer_all(by_recipient)) as server:
        result = run("--sendmail", sendmail.command, maildir, server.address)
    assert result.returncode == 111
    assert sendmail.sent == []
    assert names(maildir / ".Failed" / "new") == ["1.m"]


def test_150_failures_make_100_bounces(maildir: Path, sendmail: Sendmail) -> None:
    """A server that refuses everything does not make us a source of backscatter without end."""
    for number in range(150):
        add_message(maildir, f"{number}.m", recipient=b"d%d@y" % number)
    with serving(answer_all(by_recipient)) as server:
        result = run("--bounce", "--sendmail", sendmail.command, maildir, server.address)
    bounced = [failed_recipients(text) for _, text in sendmail.sent]
    failed = [
        sidecar(maildir / ".Failed", name)["recipients"]
        for name in names(maildir / ".Failed" / "new")
    ]
    assert (len(bounced), len(failed)) == (100, 50)
    assert {one for (one,) in bounced + failed} == {f"d{number}@y" for number in range(150)}
    assert result.returncode == 111
    assert result.stderr.count("100 bounces are enough for one run or hour (--max-bounces)") == 1
    assert names(maildir / "new") == []


@pytest.mark.parametrize("sender", [b"", b"#@[]", b"a@x, victim@y", b"|/bin/sh"])
def test_who_must_not_get_a_bounce_gets_none(
    maildir: Path, sendmail: Sendmail, sender: bytes
) -> None:
    """No bounces of bounces; and no sender that makes sendmail write elsewhere."""
    content = add_message(maildir, "1.m", sender=sender, recipient=b"d@y")
    with serving(answer_all(lambda package, recipient: b"Dno")) as server:
        result = run("--bounce", "--sendmail", sendmail.command, maildir, server.address)
    assert sendmail.sent == []
    assert (maildir / ".Failed" / "new" / "1.m").read_bytes() == content
    assert result.returncode == 111


@pytest.mark.parametrize("command", ["exit 1", "kill -9 $$", None])
def test_a_sendmail_that_fails_keeps_the_mail_and_the_run_goes_on(
    maildir: Path, sendmail: Sendmail, command: str | None
) -> None:
    """Nothing is lost by it, those who have the mail do not get it again, and it heals."""
    add_message(maildir, "1.m")
    add_sidecar(maildir, "1.m", "s@x", "k@y", "d@y", "z@y")
    add_message(maildir, "2.m", recipient=b"d2@y")
    add_message(maildir, "3.m", recipient=b"k3@y")
    sendmail.then(command or "exit 0")
    given = sendmail.command if command else "/nonexistent/sendmail"
    with serving(answer_all(by_recipient)) as server:
        result = run("--bounce", "--sendmail", given, maildir, server.address)
        assert result.returncode == 111
        assert result.stderr.count("(no bounce yet: ") == 2
        assert names(maildir / "new") == ["1.m", "2.m"]
        assert sidecar(maildir, "1.m")["recipients"] == ["d@y", "z@y"]
        assert not (maildir / "envelope" / "2.m.json").exists()
        sendmail.forget()
        sendmail.then("exit 0")
        result = run("--bounce", "--sendmail", sendmail.command, maildir, server.address)
    told = [failed_recipients(text) for _, text in sendmail.sent]
    assert sorted(told) == [["d2@y"], ["d@y"]]
    assert result.returncode == 111  # z@y
    assert names(maildir / "new") == ["1.m"]
    assert sidecar(maildir, "1.m")["recipients"] == ["z@y"]


def test_a_sendmail_that_fails_is_heard_where_the_parent_ignores_sigchld(
    maildir: Path, sendmail: Sendmail
) -> None:
    """The exit code was taken for 0: the message was removed, and its sender told nothing."""
    add_message(maildir, "1.m", recipient=b"d@y")
    sendmail.then("exit 1")
    flags = ["--bounce", "--sendmail", str(sendmail.command)]
    with serving(answer_all(by_recipient)) as server:
        words = ignoring_sigchld([*command(), *flags, str(maildir), server.address])
        result = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert "did not take a bounce: exit 1" in result.stderr
    assert result.returncode == 111
    assert names(maildir / "new") == ["1.m"]


def test_a_bounce_by_a_real_sendmail(maildir: Path, tmp_path: Path) -> None:
    """Debian's msmtp takes our options, and speaks MAIL FROM:<> to a real socket."""
    msmtp = shutil.which("msmtp")
    if msmtp is None:
        pytest.skip("NO REAL SENDMAIL IS TRIED: apt-get install --no-install-recommends msmtp")
    text = b"Subject: the \xc3\xbcmlaut\n\n.\nFrom here\n..\n"
    add_message(maildir, "1.m", text, recipient=b"d@y")
    with socketserver.TCPServer(("127.0.0.1", 0), Smtp) as smtp:
        smtp.sessions = []  # type: ignore[attr-defined]
        threading.Thread(target=smtp.serve_forever, daemon=True).start()
        configuration = tmp_path / "msmtprc"
        configuration.write_text(
            f"account default\nhost 127.0.0.1\nport {smtp.server_address[1]}\n"
            "from nobody@example.org\nallow_from_override on\n"
        )
        configuration.chmod(0o600)
        with serving(answer_all(by_recipient)) as server:
            result = run(
                "--bounce", f"--sendmail={msmtp} -C {configuration}", maildir, server.address
            )
        smtp.shutdown()
    assert result.returncode == 0, result.stderr
    ((commands, data),) = smtp.sessions  # type: ignore[attr-defined]
    assert re.search(rb"(?im)^MAIL FROM:<>", commands)
    assert re.search(rb"(?im)^RCPT TO:<sender@example.org>", commands)
    bounce = re.sub(rb"(?m)^\.", b"", data.removesuffix(b".\r\n")).replace(b"\r\n", b"\n")
    assert failed_recipients(bounce) == ["d@y"]
    assert text in bounce


class Smtp(socketserver.StreamRequestHandler):
    """As much of an SMTP server as takes one message."""

    def handle(self) -> None:
        """Note the commands and the data of one session on the server."""
        commands, data = b"", b""
        self.wfile.write(b"220 x\r\n")
        while line := self.rfile.readline():
            commands += line
            if line.upper().startswith(b"DATA"):
                self.wfile.write(b"354 go\r\n")
                while not data.endswith(b"\r\n.\r\n"):
                    data += self.rfile.readline()
            self.wfile.write(b"221 x\r\n" if line.upper().startswith(b"QUIT") else b"250 x\r\n")
        self.server.sessions.append((commands, data))  # type: ignore[attr-defined]


# By the server, into a maildir


def test_bounces_through_the_server_go_in_the_same_run(maildir: Path) -> None:
    """A laptop has no sendmail; and what waits for the next run waits for days."""
    for number in range(20):
        add_message(maildir, f"{number}.m", recipient=b"pre-%c%d@y" % (b"kd"[number % 2], number))
    with serving(answer_all(by_recipient)) as server:
        result = run("--bounce-via", "server", "--json", maildir, "pre-", server.address)
        assert server.connections == 1
    bounces = [package for package in server.packages if not package.sender]
    assert {package.recipients for package in bounces} == {(b"sender@example.org",)}
    told = {one for package in bounces for one in failed_recipients(package.text)}
    assert told == {f"d{number}@y" for number in range(1, 20, 2)}
    assert result.returncode == 0
    summary = json.loads(result.stdout.splitlines()[-1])
    assert (summary["accepted"], summary["bounced"]) == (20, 10)
    assert names(maildir / "new") == names(maildir / "envelope") == []


@pytest.mark.parametrize("answer", [b"Z", b"D"])
def test_a_bounce_that_the_server_does_not_take(maildir: Path, answer: bytes) -> None:
    """It waits like any message, or ends in the failed maildir; nobody is told of it."""
    add_message(maildir, "1.m", recipient=b"d@y")
    with serving(answer_all(lambda p, r: SAID[b"d"] if p.sender else answer + b"no")) as server:
        result = run("--bounce", "--bounce-via", "server", maildir, server.address)
        assert len(server.packages) == 2
        where = maildir if answer == b"Z" else maildir / ".Failed"
        (name,) = names(where / "new")
        assert failed_recipients((where / "new" / name).read_bytes()) == ["d@y"]
        assert sidecar(where, name)["sender"] == ""
        assert sidecar(where, name)["recipients"] == ["sender@example.org"]
        assert result.returncode == 111


def test_a_bounce_is_sent_though_the_connection_breaks_just_then(maildir: Path) -> None:
    """The failure comes with the last words of a connection; the bounce is not left behind."""
    add_message(maildir, "1.m")
    add_sidecar(maildir, "1.m", "s@x", "k1@y", "k2@y")
    add_message(maildir, "2.m")
    add_sidecar(maildir, "2.m", "s@x", "d@y", "k3@y")

    def script(peer: Peer) -> None:
        while (package := peer.read_package()) is not None:
            if package.recipients == (b"d@y", b"k3@y"):
                peer.respond(SAID[b"d"])
                return
            peer.respond(*[b"Kok"] * len(package.recipients))

    with serving(script) as server:
        result = run("--bounce", "--bounce-via", "server", maildir, server.address)
    sent = {(package.sender, package.recipients) for package in server.packages[2:]}
    assert sent == {(b"s@x", (b"k3@y",)), (b"", (b"s@x",))}
    assert result.returncode == 0
    assert names(maildir / "new") == []


def test_a_bounce_is_sent_though_its_message_is_set_aside(maildir: Path) -> None:
    """The other recipient's answer never comes; the sender hears of the first one all the same."""
    add_message(maildir, "1.m")
    add_sidecar(maildir, "1.m", "s@x", "k1@y", "k2@y")
    add_message(maildir, "2.m")
    add_sidecar(maildir, "2.m", "s@x", "d@y", "k3@y")

    def script(peer: Peer) -> None:
        while (package := peer.read_package()) is not None:
            if b"k3@y" in package.recipients:
                peer.respond(*[SAID[b"d"]][: len(package.recipients) - 1])
                return
            peer.respond(*[b"Kok"] * len(package.recipients))

    with serving(script) as server:
        result = run("--bounce", "--bounce-via", "server", maildir, server.address)
    bounces = [package for package in server.packages if not package.sender]
    assert [failed_recipients(package.text) for package in bounces] == [["d@y"]]
    assert result.returncode == 111
    assert names(maildir / "new") == ["2.m"]
    assert sidecar(maildir, "2.m")["recipients"] == ["k3@y"]


def test_bounces_into_a_maildir(maildir: Path, tmp_path: Path) -> None:
    """For an administrator who looks first, and forwards it later with this very program."""
    add_message(maildir, "1.m", recipient=b"d@y")
    bounces = tmp_path / "bounces"
    with serving(answer_all(by_recipient)) as server:
        result = run("--bounce", f"--bounce-via=maildir:{bounces}", maildir, server.address)
        assert result.returncode == 0
        assert run(bounces, server.address).returncode == 0
    package = server.packages[-1]
    assert (package.sender, package.recipients) == (b"", (b"sender@example.org",))
    assert failed_recipients(package.text) == ["d@y"]


def test_the_name_in_a_bounce_can_be_set(maildir: Path, tmp_path: Path) -> None:
    """One from MAILER-DAEMON@laptop is thrown away by many servers, and then nobody is told."""
    add_message(maildir, "1.a", recipient=b"d@y")
    with serving(answer_all(lambda package, recipient: b"D421 4.4.2 timed out")) as server:
        done = run(
            "--bounce",
            "--bounce-via",
            f"maildir:{tmp_path}/B",
            "--hostname",
            "mx.example.org",
            maildir,
            server.address,
        )
    assert done.returncode == 0, done.stderr
    (bounce,) = (path.read_text() for path in (tmp_path / "B" / "new").iterdir())
    assert "From: Mail Delivery System <MAILER-DAEMON@mx.example.org>\n" in bounce
    assert re.search(r"(?m)^Message-ID: <[0-9a-f]+@mx\.example\.org>$", bounce)
    assert "Reporting-MTA: dns; mx.example.org\n" in bounce
    # Permanent by its letter, whatever class the code in its text has (RFC 3463, 2).
    assert "Status: 5.4.2\n" in bounce
    assert "Diagnostic-Code: x-qmtp; D421 4.4.2 timed out\n" in bounce


def test_a_bounce_is_from_the_full_name_of_the_host(maildir: Path, tmp_path: Path) -> None:
    """The short one is no name that another machine could find, and many refuse it."""
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: needs root, for a name and a /etc/hosts of its own")
    hosts, bounces = tmp_path / "hosts", tmp_path / "B"
    hosts.write_text("127.0.0.1 localhost\n127.0.1.1 laptop.example.org laptop\n")
    named = (
        f'mount --bind {hosts} /etc/hosts && echo laptop >/proc/sys/kernel/hostname && exec "$@"'
    )
    add_message(maildir, "1.a", recipient=b"d@y")
    with serving(answer_all(lambda package, recipient: b"Dno")) as server:
        words = [*command(), "--bounce", f"--bounce-via=maildir:{bounces}"]
        done = subprocess.run(
            ["unshare", "-m", "-u", "sh", "-c", named, "sh", *words, maildir, server.address],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
    if "mount" in done.stderr or "unshare" in done.stderr or "kernel" in done.stderr:
        pytest.skip(f"NOT TESTED: {done.stderr}")
    (bounce,) = (path.read_text() for path in (bounces / "new").iterdir())
    assert "From: Mail Delivery System <MAILER-DAEMON@laptop.example.org>\n" in bounce
    assert "Reporting-MTA: dns; laptop.example.org\n" in bounce


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"D421 4.4.2 timed out", "5.4.2"),
        (b"Dno such user (#5.1.1)", "5.1.1"),
        (b"Dno", "5.0.0"),
    ],
)
def test_a_bounce_repeats_the_answer_with_its_letter(
    maildir: Path, tmp_path: Path, said: bytes, status: str
) -> None:
    """List managers go by these two fields: without letter or code, an address is not dropped."""
    add_message(maildir, "1.a", recipient=b"d@y")
    with serving(answer_all(lambda package, recipient: said)) as server:
        run("--bounce", f"--bounce-via=maildir:{tmp_path}/B", maildir, server.address)
    (bounce,) = (path.read_text() for path in (tmp_path / "B" / "new").iterdir())
    assert f"\nStatus: {status}\n" in bounce
    assert f"\nDiagnostic-Code: x-qmtp; {said.decode()}\n" in bounce


def test_a_full_disk_keeps_the_mail(maildir: Path, tmp_path: Path) -> None:
    """A bounce that cannot be written whole is none."""
    content = add_message(maildir, "1.m", b"x\n" * 10_000, recipient=b"d@y")
    add_message(maildir, "2.m", recipient=b"k@y")
    bounces = tmp_path / "bounces"
    with serving(answer_all(by_recipient)) as server:
        words = [*command(), "--bounce", f"--bounce-via=maildir:{bounces}", maildir, server.address]
        result = subprocess.run(
            ["sh", "-c", 'ulimit -f 1; exec "$@"', "sh", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
    assert result.returncode == 111
    assert "no bounce yet: cannot write" in result.stderr
    assert (maildir / "new" / "1.m").read_bytes() == content
    assert names(maildir / "new") == ["1.m"]
    assert names(bounces / "new") == names(bounces / "tmp") == []


# Hostile content


def test_what_servers_and_senders_write_stays_in_its_place(
    maildir: Path, sendmail: Sendmail
) -> None:
    """Neither a response nor an address nor a Subject makes a header field of the bounce."""
    evil = b"no\r\nBcc: victim@y\r\n\r\n--x\x1b[2J\xe2\x80\xae" + b"\xf0\x9f\x98\x80" * 400
    text = b"Subject: hi\r\nBcc: victim@y\r\n\r\nbody\r\n"
    add_message(maildir, "1.m", text, b"s@x>\x0bBcc:<v@y", b"d\x85Bcc: v@y\x1b")
    add_message(maildir, "2.m", text, b"s@x", b"d\x85Bcc:v@y\x1b")
    with serving(answer_all(lambda package, recipient: b"D" + evil)) as server:
        run("--bounce", "--sendmail", sendmail.command, maildir, server.address)
    ((arguments, bounce),) = sendmail.sent
    assert arguments[-1] == "s@x"
    message = email.message_from_bytes(bounce, policy=email.policy.default)
    assert message["Bcc"] is None
    assert len(list(message.iter_parts())) == 3
    assert b"\x1b" not in bounce
    assert all(len(line) <= 998 for line in bounce.split(b"\n"))
    assert names(maildir / ".Failed" / "new") == ["1.m"]


def test_a_message_from_the_far_future_is_bounced(maildir: Path, sendmail: Sendmail) -> None:
    """A user's `touch` must not end everybody's run."""
    add_message(maildir, "1.m", recipient=b"d@y")
    os.utime(maildir / "new" / "1.m", (2**33, 2**33))
    with serving(answer_all(by_recipient)) as server:
        result = run("--bounce", "--sendmail", sendmail.command, maildir, server.address)
    assert result.returncode == 0
    assert len(sendmail.sent) == 1


@pytest.mark.skipif(not have_mailfront(), reason="MAILFRONT IS NOT INSTALLED: apt-get install it")
def test_a_bounce_through_mailfront(maildir: Path, tmp_path: Path) -> None:
    """A foreign server takes the bounce, byte for byte as it was made."""
    add_message(maildir, "1.m", recipient=b"d@y")
    bounces = tmp_path / "bounces"
    with serving(answer_all(by_recipient)) as refuser:
        run("--bounce", f"--bounce-via=maildir:{bounces}", maildir, refuser.address)
    (made,) = (path.read_bytes() for path in (bounces / "new").iterdir())
    with mailfront(tmp_path / "queue") as server:
        assert run(bounces, server).returncode == 0
    ((sender, recipients, text),) = queuedir_messages(tmp_path / "queue")
    assert (sender, recipients) == (b"", (b"sender@example.org",))
    assert text == made.split(b"\n", 2)[2]
    assert failed_recipients(text) == ["d@y"]


# Warnings of delays


def wait_for_hours(maildir: Path, name: str, hours: float = 5.0) -> None:
    """Make a message older."""
    then = time.time() - hours * 3_600
    os.utime(maildir / "new" / name, (then, then))


def test_a_sender_hears_once_that_a_message_waits(maildir: Path, sendmail: Sendmail) -> None:
    """From runs by cron and from a daemon, whether the server defers or cannot be reached."""
    for name in ("1.deferred", "2.young"):
        add_message(maildir, name, recipient=b"pre-z@y", sender=b"s@x")
    wait_for_hours(maildir, "1.deferred")
    options = ("--sendmail", sendmail.command, "--warn-after=4h", maildir, "pre-")
    with serving(answer_all(by_recipient)) as server:
        for _ in range(2):
            assert run(*options, server.address).returncode == 111
    ((arguments, text),) = sendmail.sent
    assert arguments == ["-i", "-f", "", "--", "s@x"]
    assert b"\nAction: delayed\n" in text
    assert b"\nDiagnostic-Code: x-qmtp; Zbusy\n" in text
    assert b"\nWill-Retry-Until: " in text
    add_message(maildir, "0.null", recipient=b"pre-z@y", sender=b"")
    wait_for_hours(maildir, "0.null")
    wait_for_hours(maildir, "2.young")
    nowhere = f"127.0.0.1:{closed_port()}"
    with watching("--watch", *options, nowhere) as daemon:
        daemon.wait_for("2.young: <s@x> has been told that it waits")
        assert daemon.stop() == 0
    assert run(*options, nowhere).returncode == 111
    assert len(sendmail.sent) == 2
    assert names(maildir / "new") == ["0.null", "1.deferred", "2.young"]


def test_a_warning_by_the_server_goes_there_too(maildir: Path) -> None:
    """In the same run; it is no message to be warned of."""
    add_message(maildir, "1.m", recipient=b"z@y")
    wait_for_hours(maildir, "1.m")
    options = ("--warn-after=4h", "--bounce", "--bounce-via=server", maildir)
    with serving(answer_all(by_recipient)) as server:
        for _ in range(2):
            assert run(*options, server.address).returncode == 111
    warnings = [package for package in server.packages if not package.sender]
    assert [package.recipients for package in warnings] == [(b"sender@example.org",)]
    assert names(maildir / "new") == ["1.m"]


def test_without_bounces_there_are_no_warnings(maildir: Path) -> None:
    """An error, not a silence that is taken for good news."""
    result = run("--warn-after=4h", maildir, "127.0.0.1:1")
    assert result.returncode == 100
    assert "--warn-after: senders are told nothing without bounces" in result.stderr
