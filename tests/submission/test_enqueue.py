"""`--enqueue`: taken means on disk with its envelope; not taken means that nothing is left."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.mail.sidecar import Sidecar
from maildirqmtp.maildir import writing
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.submission.line_ends import unix_lines
from maildirqmtp.submission.message_input import Input
from maildirqmtp.submission.trace_lines import remove_trace
from tests.fakes import FileSystem
from tests.helpers import (
    answer_all,
    command,
    names,
    run,
    serving,
    sidecar,
    snapshot,
    wait_until,
)

TEXT = b"Subject: hello\n\nbody\n"
WHO = ("--sender", "s@x", "--recipient", "a@y", "--recipient", "b@y")


def enqueue(
    path: Path | str,
    *arguments: str,
    text: bytes = TEXT,
    limit: Callable[[], None] | None = None,
    redirect: str = "",
) -> subprocess.CompletedProcess[bytes]:
    """Run `maildirqmtp --enqueue`, with redirections by the shell."""
    shell = ["sh", "-c", f'exec "$@" {redirect}', "sh"] if redirect else []
    result = subprocess.run(
        [*shell, *command(), "--enqueue", os.fspath(path), *(arguments or WHO)],
        input=text,
        capture_output=True,
        timeout=90,
        check=False,
        preexec_fn=limit,
    )
    assert b"Traceback" not in result.stderr, result.stderr
    return result


def test_what_was_enqueued_is_forwarded_to_whom_was_said(path: Path) -> None:
    """The whole life of a message that a program hands over, with several recipients."""
    result = enqueue(path)
    assert (result.returncode, result.stderr) == (0, b"")
    name = result.stdout.decode().rstrip("\n")
    assert names(path / "new") == [name]
    assert (path / "new" / name).read_bytes() == TEXT
    assert (path / "new" / name).stat().st_mode & 0o777 == 0o600
    assert sidecar(path, name) == {"version": 1, "sender": "s@x", "recipients": ["a@y", "b@y"]}
    with serving(answer_all()) as server:
        assert run(path, server.address).returncode == 0
    (package,) = server.packages
    assert (package.sender, package.recipients, package.text) == (b"s@x", (b"a@y", b"b@y"), TEXT)
    assert snapshot(path) == {}


@pytest.mark.parametrize("text", [b"", b"\0\r\n\xff" * 100_000, b"no newline"])
def test_any_text_is_taken_as_it_is(path: Path, text: bytes) -> None:
    """From the null sender, too."""
    result = enqueue(path, "--sender", "", "--recipient", "a@y", text=text)
    assert result.returncode == 0
    (file,) = (path / "new").iterdir()
    assert file.read_bytes() == text
    assert sidecar(path, file.name)["sender"] == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sender", "s@x"), "needs --sender and at least one --recipient"),
        (("--recipient", "a@y"), "needs --sender and at least one --recipient"),
        ((*WHO, "mail.example.org"), "takes no SERVER"),
        (("--sender", "s@x", "--recipient", ""), "must not be empty"),
        (("--sender", "s\n@x", "--recipient", "a@y"), "has a LF in it"),
        (("--sender", "s@x", "--recipient", "a" * 1_000), "1000 bytes"),
        (
            ("--sender", "s@x", *(f"--recipient={n}@y" for n in range(10_001))),
            "10001 recipients are too many",
        ),
        (
            ("--sender", "s@x", *(f"--recipient={n:0990}@y" for n in range(1_100))),
            "1100 recipients are too many",
        ),
    ],
)
def test_what_could_never_be_sent_is_refused(
    path: Path, arguments: tuple[str, ...], said: str
) -> None:
    """Exit 100, before anything is read; held for ever, it would be found out too late."""
    result = enqueue(path, *arguments)
    assert result.returncode == 100
    assert said in result.stderr.decode()
    assert snapshot(path) == {}


@pytest.mark.parametrize(
    ("sender", "recipient", "raw"),
    [
        ("<>", "<a@x>", ("", "a@x")),
        ("", "a@x", ("", "a@x")),
        ("MAILER-DAEMON", " <a@x> ", ("", "a@x")),
        ("#@[]", '"jane x"@y', ("#@[]", "jane x@y")),
        ("<mailer-daemon@x>", r'<"a\"\b,c"@y>', ("mailer-daemon@x", 'a"b,c@y')),
        ('""@x', "root", ('""@x', "root")),
        ("ä@ö.example", "a+b=c/d@[192.0.2.1]", ("ä@ö.example", "a+b=c/d@[192.0.2.1]")),
    ],
)
def test_addresses_as_mail_programs_write_them(
    path: Path, sender: str, recipient: str, raw: tuple[str, str]
) -> None:
    """Sent as they are written, they would be other people's, or nobody's."""
    assert enqueue(path, "--sender", sender, "--recipient", recipient).returncode == 0
    (name,) = names(path / "new")
    found = sidecar(path, name)
    assert (found["sender"], found["recipients"]) == (raw[0], [raw[1]])


@pytest.mark.parametrize("option", ["--sender", "--recipient"])
@pytest.mark.parametrize(
    "address",
    [
        "Joe <a@x>",
        "a@b,c@d",
        "a@b,",
        ",a@b",
        "<a@b>,<c@d>",
        "a b@c",
        "a@b c",
        "a@b (Joe)",
        "<a@b",
        "a@b>",
        "<<a@b>>",
        '"a@b',
        "<a@b> c@d",
        "mailto: a@b",
    ],
)
def test_what_is_not_one_address_is_refused(path: Path, option: str, address: str) -> None:
    """With the option's name; it would wait for fourteen days, and then be bounced."""
    other = {"--sender": "--recipient", "--recipient": "--sender"}[option]
    result = enqueue(path, option, address, other, "a@x")
    assert result.returncode == 100
    assert f"{option}: {address!r} is not one address" in result.stderr.decode()
    assert snapshot(path) == {}


@pytest.mark.parametrize("recipient", ["", "<>", " ", "< >"])
def test_an_empty_recipient_is_refused(path: Path, recipient: str) -> None:
    """Servers take it, and then it is nobody's."""
    result = enqueue(path, "--sender", "s@x", "--recipient", recipient)
    assert result.returncode == 100
    assert b"--recipient: " in result.stderr
    assert snapshot(path) == {}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (WHO, 0),
        ((), 64),
        ((*WHO, "--recipient", "a b"), 64),
        ((*WHO, "--no-such-flag"), 64),
        (("--sender", "s@x", *(f"--recipient={n}@y" for n in range(10_001))), 65),
    ],
)
def test_exit_codes_that_postfix_and_exim_understand(
    path: Path, arguments: tuple[str, ...], code: int
) -> None:
    """Postfix bounces on any that it does not know, 100 and 111 among them (pipe(8))."""
    assert enqueue(path, "--sysexits", *arguments).returncode == code
    assert len(names(path / "new")) == (code == 0)


def test_trouble_is_75_with_sysexits(tmp_path: Path, path: Path) -> None:
    """The mail stays in the mailer's queue, whatever the trouble is."""
    assert enqueue(tmp_path / "nowhere", "--sysexits", *WHO).returncode == 75
    assert enqueue(path, "--sysexits", *WHO, redirect="<&-").returncode == 75


def test_sysexits_is_for_enqueue(path: Path) -> None:
    """Elsewhere it would change nothing, and be believed."""
    result = run("--sysexits", path, "h")
    assert result.returncode == 64
    assert "--sysexits changes the exit codes of --enqueue" in result.stderr


def test_a_missing_maildir_is_told(tmp_path: Path) -> None:
    """Not made: it would be a place where nobody looks."""
    result = enqueue(tmp_path / "nowhere")
    assert result.returncode == 111
    assert b"cannot open the maildir directory" in result.stderr
    assert names(tmp_path) == []


def test_a_full_disk_leaves_nothing(path: Path) -> None:
    """The caller is told to try again; half a message must never be sent."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    result = enqueue(path, text=b"x" * 200_000, limit=limit)
    assert result.returncode == 111
    assert b"File too large" in result.stderr
    assert result.stdout == b""
    assert snapshot(path) == {}


def test_more_than_servers_take_is_refused(path: Path) -> None:
    """Above 200,000,000 bytes it would be held for ever."""
    shell = f'truncate -s 200000001 "{path}/../large"; exec "$@" < "{path}/../large"'
    result = subprocess.run(
        ["sh", "-c", shell, "sh", *command(), "--enqueue", path, *WHO],
        capture_output=True,
        timeout=90,
        check=False,
    )
    assert result.returncode == 100
    assert b"larger than 200000000 bytes; nothing is taken" in result.stderr
    assert snapshot(path) == {}


@pytest.mark.parametrize(
    ("redirect", "said"),
    [
        ("<&-", b"standard input is closed"),
        ("<&- >&-", b"standard input is closed"),
        ("<&- 2>&-", b""),
        ("0> /dev/null", b"cannot read standard input: Bad file descriptor"),
    ],
)
def test_an_input_that_cannot_be_read_is_told(path: Path, redirect: str, said: bytes) -> None:
    """Some other file of ours must not be taken for it, nor nothing for an empty message."""
    result = enqueue(path, redirect=redirect)
    assert result.returncode == 111
    assert said in result.stderr
    assert snapshot(path) == {}


@pytest.mark.parametrize("redirect", [">&-", "> /dev/full"])
def test_what_is_taken_is_taken_though_its_name_cannot_be_told(path: Path, redirect: str) -> None:
    """A failure would have the caller enqueue it a second time."""
    result = enqueue(path, redirect=redirect)
    assert result.returncode == 0
    assert len(names(path / "new")) == len(names(path / "envelope")) == 1


# Lines of an earlier delivery

FROM = b"From jane Thu Jan  1 00:00:00 2026\n"
TRACE = b"Return-Path: <old@x>\nDelivered-To: old@y\n"


@pytest.mark.parametrize(
    ("top", "kept"),
    [
        (b"", b""),
        (FROM, b""),
        (FROM.replace(b"\n", b"\r\n"), b""),
        (TRACE, b""),
        (FROM + TRACE, b""),
        (FROM + b"Delivered-To: old@y\nReturn-path: <>\n", b""),
        (
            FROM + b"Return-path: <old@x>\nX-Original-To: old@y\n" + TRACE[21:],
            b"X-Original-To: old@y\n",
        ),
        (FROM + TRACE + b"Received: x\n" + TRACE, b"Received: x\n" + TRACE),
        (b"From: jane\n", b"From: jane\n"),
        (b"Received: x\n" + FROM, b"Received: x\n" + FROM),
        (FROM + FROM, b""),
        (FROM + b">" + FROM + b">>" + FROM + TRACE, b""),
        (b">" + FROM + b"> From x\n", b"> From x\n"),
    ],
)
@pytest.mark.parametrize("text", [TEXT, b"", TEXT * 20_000])
def test_lines_of_an_earlier_delivery_are_not_part_of_it(
    path: Path, top: bytes, kept: bytes, text: bytes
) -> None:
    """A `From ` line would end its header, Return-Path say where bounces of another one went."""
    result = enqueue(path, text=top + text)
    assert result.returncode == 0
    (file,) = (path / "new").iterdir()
    assert file.read_bytes() == kept + text


@pytest.mark.parametrize("eol", [b"\n", b"\r\n"])
@pytest.mark.parametrize(
    ("top", "kept"),
    [
        (b"Return-Path: <a@b>\n (verified)\n", b""),
        (b"Return-Path: <a@b>\n (verified)\n\tby us\n" + TRACE[21:], b""),
        (b"Return-Path:\n <a@b>\n more\n" + TRACE[21:], b""),
        (TRACE + b" folded\n", b""),
        (TRACE + b" folded\nEnvelope-to: blind@x,\n more@x\n", b""),
        (b"Return-Path: =?utf-8?q?=3Ca?=\n =?utf-8?q?=40b?=\n" + TRACE[21:], b""),
        (b"Delivery-date: x\n y\n" + TRACE, b"Delivery-date: x\n y\n"),
        (TRACE + TRACE + b" folded\n", TRACE + TRACE[:-1] + b" folded\n"),
        # Above these the queue puts a Received line: the forwarder does not see them.
        (
            b"Envelope-to: one@x\n" + TRACE + b"Envelope-to: blind@x,\n more@x\n" + TRACE,
            TRACE + TRACE,
        ),
    ],
)
def test_a_field_of_an_earlier_delivery_goes_with_all_of_its_lines(
    path: Path, top: bytes, kept: bytes, eol: bytes
) -> None:
    """What stayed of one would end the header: Bcc is sent in the body, to everybody."""
    text = b"From: me@x\nBcc: secret@z\n\nHello.\n"
    result = enqueue(path, text=(top + text).replace(b"\n", eol))
    assert result.returncode == 0
    (file,) = (path / "new").iterdir()
    assert file.read_bytes().replace(b"\r\n", b"\n") == kept + text


@pytest.mark.parametrize("text", [b" Hello.\n", b"\tHello.\n\nYours\n", b" a: b\nhello\n", b" x"])
def test_a_message_without_a_header_may_begin_with_a_blank(path: Path, text: bytes) -> None:
    """Its first line is nobody's."""
    assert enqueue(path, text=TRACE + text).returncode == 0
    (file,) = (path / "new").iterdir()
    assert file.read_bytes() == text


def test_a_second_delivered_to_is_sent(path: Path) -> None:
    """It is how mail loops are found; the forwarder takes off the first that it meets."""
    second = b"Delivered-To: older@y\n"
    assert enqueue(path, text=FROM + TRACE + second + TEXT).returncode == 0
    with serving(answer_all()) as server:
        assert run(path, server.address).returncode == 0
    (package,) = server.packages
    assert (package.text, package.recipients) == (second + TEXT, (b"a@y", b"b@y"))


@pytest.mark.parametrize("piece", [1, 1 << 16])
@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (b"From ", b""),
        (b"From x", b""),
        (b"From x\n", b""),
        (b"From x\n>From y\nFrom: z\n", b"From: z\n"),
        (b"From x\n>Fro", b">Fro"),
        (b"Fro", b"Fro"),
        (b"", b""),
        (b"From " + b"x" * 2_000_000 + b"\n", None),
        (b"Return-Path: <" + b"x" * 2_000_000 + b">\n" + TEXT, None),
        (FROM + TRACE + b"\0\r\n\xff" * 1_000, b"\0\r\n\xff" * 1_000),
        (TRACE + b" x\n\ty\nFrom: z\n\n", b"From: z\n\n"),
        (TRACE + b" x\n\ty\nFrom z\n\n", b" x\n\ty\nFrom z\n\n"),
        (TRACE + b" x\n" * 400_000 + TEXT, b" x\n" * 400_000 + TEXT),
    ],
)
def test_wherever_the_input_is_cut(text: bytes, kept: bytes | None, piece: int) -> None:
    """A pipe gives what it has; a line without end is not waited for in all of memory."""
    size = piece if len(text) < 10_000 else 1 << 16
    pieces = (text[at : at + size] for at in range(0, len(text), size))
    assert b"".join(remove_trace(pieces)) == (text if kept is None else kept)


def test_a_program_that_writes_byte_by_byte_is_read_to_its_end() -> None:
    """A CR that is read before its LF leaves nothing to pass on yet, and is not the end."""
    text = (FROM + TRACE + TEXT).replace(b"\n", b"\r\n")
    pieces = (text[at : at + 1] for at in range(len(text)))
    assert b"".join(remove_trace(unix_lines(pieces))) == TEXT


# Told to stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_told_to_stop_before_the_end_of_the_message_it_leaves_nothing(
    path: Path, number: signal.Signals
) -> None:
    """Half a message would lie in tmp/ for 36 hours."""
    argv = [*command(), "--enqueue", os.fspath(path), *WHO]
    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # who started us may ignore it
    ) as process:
        assert process.stdin is not None
        process.stdin.write(TEXT)
        process.stdin.flush()
        wait_until(lambda: names(path / "tmp") != [], "the message being written")
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 111
    assert b"told to stop before the end of the message" in said
    assert b"Traceback" not in said
    assert snapshot(path) == {}


def test_a_hangup_that_is_ignored_stays_so(path: Path) -> None:
    """Under nohup(1) the rest is waited for."""
    argv = ["nohup", *command(), "--enqueue", os.fspath(path), *WHO]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(argv, **pipes) as process:  # type: ignore[call-overload]
        process.stdin.write(TEXT)
        process.stdin.flush()
        wait_until(lambda: names(path / "tmp") != [], "the message being written")
        process.send_signal(signal.SIGHUP)
        name, _ = process.communicate(b"the end\n", timeout=30)
    assert process.returncode == 0
    assert (path / "new" / name.decode().strip()).read_bytes() == TEXT + b"the end\n"


def test_told_to_stop_while_it_writes_it_reads_no_more(tmp_path: Path) -> None:
    """And what was read whole is taken."""
    (tmp_path / "message").write_bytes(bytes(100_000))
    for told_after, ends in ((1, True), (2, False)):
        with (tmp_path / "message").open("rb") as file:
            given = Input(file.fileno())
            pieces = given.pieces()
            taken = b"".join(next(pieces) for _ in range(told_after))
            if not ends:
                assert list(pieces) == []
            given.stop(signal.SIGTERM, None)
            if ends:
                with pytest.raises(LocalError, match="told to stop"):
                    next(pieces)
            assert len(taken) == (65_536 if ends else 100_000)


# In the safe order


@pytest.fixture
def maildir(maildir: Maildir) -> Maildir:
    """The maildir, open, with a directory of sidecars."""
    maildir.durable_envelope()
    return maildir


def test_the_sidecar_is_durable_before_the_message_is_seen(
    maildir: Maildir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut in between must not leave a message that goes by its headers."""
    calls = FileSystem(monkeypatch, tmp_path)
    name = writing.enqueue(maildir, Sidecar(b"s@x", (b"a@y",)), [TEXT]).decode()
    assert calls.calls == [
        "fsync Maildir/tmp/*",
        "fsync Maildir/tmp/*",
        f"rename Maildir/tmp/* -> Maildir/envelope/{name}.json",
        "fsync Maildir/envelope",
        f"link Maildir/tmp/* -> Maildir/new/{name}",
        "unlink Maildir/tmp/*",
        "fsync Maildir/new",
    ]


def made_anew(path: Path) -> None:
    path.replace(path.with_name("old"))
    path.mkdir()


@pytest.mark.parametrize("part", ["new", "tmp", ""])
def test_a_message_is_taken_where_a_forwarder_finds_it(
    maildir: Maildir, tmp_path: Path, part: str
) -> None:
    """Who writes it may take hours, and what lies in a directory that was moved away is lost."""

    def pieces() -> Iterator[bytes]:
        yield TEXT
        made_anew(tmp_path / "Maildir" / part)

    with pytest.raises(LocalError, match="was renamed, replaced or mounted over"):
        writing.enqueue(maildir, Sidecar(b"s@x", (b"a@y",)), pieces())
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


@pytest.mark.parametrize("call", ["rename", "link"])
def test_a_message_is_taken_with_its_sidecar_where_a_forwarder_finds_it(
    maildir: Maildir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Without, nobody knows whom it is for."""
    real = getattr(os, call)

    def meanwhile(*names: bytes, **where: Any) -> None:
        made_anew(tmp_path / "Maildir" / "envelope")
        real(*names, **where)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, meanwhile)
        with pytest.raises(LocalError, match="was renamed, replaced or mounted over"):
            writing.enqueue(maildir, Sidecar(b"s@x", (b"a@y",)), [TEXT])
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_a_directory_of_sidecars_may_be_made_anew_before_there_is_one(
    maildir: Maildir, tmp_path: Path
) -> None:
    """Some programs remove it while it is empty."""

    def pieces() -> Iterator[bytes]:
        yield TEXT
        (tmp_path / "Maildir" / "envelope").rmdir()

    name = writing.enqueue(maildir, Sidecar(b"s@x", (b"a@y",)), pieces()).decode()
    assert names(tmp_path / "Maildir" / "new") == [name]
    assert sidecar(tmp_path / "Maildir", name)["recipients"] == ["a@y"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize(
    ("call", "nth"),
    [
        ("fsync Maildir/tmp", 1),
        ("fsync Maildir/tmp", 2),
        ("rename", 1),
        ("fsync Maildir/envelope", 1),
        ("link", 1),
    ],
)
def test_what_fails_is_taken_back(
    maildir: Maildir,
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    nth: int,
    number: int,
) -> None:
    """The caller tries again; left there, it would be sent twice, or by its headers."""
    calls = FileSystem(monkeypatch, tmp_path)
    calls.fail_nth(call, nth, number)
    with pytest.raises(LocalError):
        writing.enqueue(maildir, Sidecar(b"s@x", (b"a@y",)), [TEXT])
    assert calls.heal()
    assert snapshot(path) == {}


def test_a_message_that_a_power_cut_may_bring_back_keeps_its_sidecar(
    maildir: Maildir, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next fsync says that all is well (fsync(2)): the disk may have the name all the same."""
    calls = FileSystem(monkeypatch, tmp_path)
    calls.fail_nth("fsync Maildir/new", 1, errno.EIO)
    with pytest.raises(LocalError, match="Input/output error"):
        writing.enqueue(maildir, Sidecar(b"s@x", (b"a@y",)), [TEXT])
    assert names(path / "new") == names(path / "tmp") == []
    assert len(names(path / "envelope")) == 1


def test_a_sidecar_that_is_taken_back_goes_last(
    maildir: Maildir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut between the two would bring back a message without its recipients."""

    def moved_away(*_: object) -> None:
        raise LocalError("it was moved away")

    calls = FileSystem(monkeypatch, tmp_path)
    monkeypatch.setattr(maildir, "check_path", moved_away)
    with pytest.raises(LocalError, match="moved away"):
        writing.enqueue(maildir, Sidecar(b"s@x", (b"a@y",)), [TEXT])
    done = [call.partition(" Maildir/")[::2] for call in calls.of("unlink", "fsync")]
    places = [(what, where.partition("/")[0]) for what, where in done]
    gone = places.index(("unlink", "new"))
    assert places.index(("unlink", "envelope")) > places.index(("fsync", "new"), gone)


def test_a_name_in_tmp_that_stays_is_no_failure(
    maildir: Maildir, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is in new/, with its sidecar: enqueued once more, it would be sent twice."""
    calls = FileSystem(monkeypatch, tmp_path)
    calls.fail_nth("unlink Maildir/tmp", 1, errno.EIO)
    name = writing.enqueue(maildir, Sidecar(b"s@x", (b"a@y",)), [TEXT]).decode()
    assert calls.heal()
    assert names(path / "new") == [name]
    assert names(path / "envelope") == [f"{name}.json"]


def test_a_message_that_cannot_be_taken_back_keeps_its_sidecar(
    maildir: Maildir, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Better sent twice than to whom its headers say."""
    calls = FileSystem(monkeypatch, tmp_path)
    calls.fail("fsync Maildir/new", errno.EIO)
    calls.always_fail("unlink Maildir/new", errno.EROFS)
    with pytest.raises(LocalError, match="Input/output error"):
        writing.enqueue(maildir, Sidecar(b"s@x", (b"a@y",)), [TEXT])
    (name,) = names(path / "new")
    assert names(path / "envelope") == [f"{name}.json"]
