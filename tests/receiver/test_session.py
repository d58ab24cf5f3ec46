"""The receiver's session: packages in, files in new/ and responses out."""

import contextlib
import errno
import fcntl
import os
import resource
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from maildirqmtp.errors import LocalError
from maildirqmtp.mail.envelope import read_trace
from maildirqmtp.maildir import writing
from maildirqmtp.maildir.files import Folder
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.qmtp.protocol import (
    ENCODING_CRLF,
    ENCODING_LF,
    MAX_RECIPIENTS,
    ResponseReader,
    package_head,
    package_tail,
)
from maildirqmtp.receiver.destination import SHARED_FSYNC_PACKAGES
from maildirqmtp.receiver.maildir_destination import MaildirDestination
from maildirqmtp.receiver.policy import Policy, Severity, only_domains
from maildirqmtp.receiver.session import (
    BATCH_BYTES,
    CHECKED_RECIPIENTS,
    MAX_BATCHES,
    MAX_LOAD,
    Session,
)
from maildirqmtp.receiver.spool import MEMORY_MAX, Spool
from maildirqmtp.text import rfc5322_date
from tests.helpers import open_descriptors
from tests.receiver.doubles import HeldWork

NOW_S = 1_795_398_047.5
TEXT = b"Subject: x\n\nhi\n"


def package(
    text: bytes = TEXT,
    sender: bytes = b"a@b",
    recipients: tuple[bytes, ...] = (b"c@d.e",),
    encoding: bytes = ENCODING_LF,
) -> bytes:
    return package_head(len(text), encoding) + text + package_tail(sender, recipients)


def answers(output: bytes) -> list[str]:
    reader = ResponseReader()
    reader.feed(output)
    found = []
    while (response := reader.next()) is not None:
        found.append(str(response))
    assert reader.pending == 0
    return found


def letters(output: bytes) -> str:
    return "".join(answer[0] for answer in answers(output))


def stored(maildir: Maildir) -> list[bytes]:
    """What is in new/, in the order of delivery; tmp/ has to be empty."""
    assert os.listdir(maildir.tmp.fd) == []
    new = Path(os.fsdecode(maildir.new.path))
    return [path.read_bytes() for path in sorted(new.iterdir(), key=_order)]


def _order(path: Path) -> int:
    return int(path.name.partition("Q")[2].partition(".")[0])


def texts(maildir: Maildir) -> list[bytes]:
    """The messages in new/ without the three lines on top."""
    return [data.split(b"\n", 3)[3] for data in stored(maildir)]


@pytest.fixture
def storage(maildir: Maildir) -> Iterator[MaildirDestination]:
    with contextlib.closing(MaildirDestination(maildir.path)) as opened:
        yield opened


@pytest.fixture
def session(storage: MaildirDestination) -> Session:
    return Session(storage, "[192.0.2.1]", now=lambda: NOW_S)


def test_a_copy_begins_with_its_envelope(
    maildir: Maildir, storage: MaildirDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without these lines nobody, our own forwarder included, knows whom it was for."""
    monkeypatch.setattr("socket.gethostname", lambda: "mx.example.org")
    session = Session(storage, "[192.0.2.1]", now=lambda: NOW_S)
    output = session.receive(package())
    assert stored(maildir) == [
        b"Return-Path: <a@b>\n"
        b"Delivered-To: c@d.e\n"
        b"Received: from [192.0.2.1] by mx.example.org with QMTP; "
        b"Mon, 23 Nov 2026 01:40:47 +0000\n"
        b"Subject: x\n\nhi\n"
    ]
    (answer,) = answers(output)
    assert answer.startswith(f"Kok 1795398047 qp {os.getpid()}.")


@pytest.mark.parametrize("now_s", [0.0, 951_782_400.0, NOW_S, 4_102_444_799.0])
def test_dates_are_what_mail_programs_read(now_s: float) -> None:
    assert parsedate_to_datetime(rfc5322_date(now_s)).timestamp() == int(now_s)


@pytest.mark.parametrize(
    ("sender", "recipient"),
    [
        (b"", b"c@d.e"),
        (b"#@[]", b"alias-c@d.e"),
        (b"a>b@c", b"\xc3\xa4\xff@d.e"),
        (b"a@b", b"x" * 999),
        (b"s" * 999, b"c"),
    ],
)
def test_the_forwarder_understands_what_was_stored(
    maildir: Maildir, session: Session, sender: bytes, recipient: bytes
) -> None:
    """Mail received here and forwarded from here keeps its envelope, byte for byte."""
    assert letters(session.receive(package(b"Return-Path: <no>\n", sender, (recipient,)))) == "K"
    trace = read_trace(stored(maildir)[0], True)
    assert trace is not None
    assert (trace.sender, trace.recipients) == (sender, (recipient,))


# Addresses are made of bytes one by one: with -bb hypothesis cannot shrink st.binary.
_BYTES = [bytes([n]) for n in range(256) if n not in b"\0\r\n"]
_SPECIAL = [b'"', b"\\", b" ", b"@", b"<", b">", b"unknown", b"MAILER-DAEMON", b".", b"a", b"\xff"]
_ADDRESS = st.lists(st.sampled_from(_BYTES) | st.sampled_from(_SPECIAL), max_size=60).map(b"".join)


@given(sender=_ADDRESS, recipient=_ADDRESS.filter(bool))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_envelope_survives_the_lines_on_top(
    maildir: Maildir, storage: MaildirDestination, sender: bytes, recipient: bytes
) -> None:
    """Quoted in the header, raw again when it is forwarded: each address is what it was.

    But for the words that mean something else there: an address that is only `unknown`
    (getmail's) or MAILER-DAEMON (the null sender), and an empty local part, or what
    unquotes to another address, which has no quoted form.
    """
    session = Session(storage, "p")
    assume(b"" not in (sender, recipient) or sender == b"")
    for address in (sender, recipient):
        local = address.rpartition(b"@")[0] or address
        assume(local != b'""')
        assume(not address.startswith(b"@"))
        assume(address.lower() not in (b"unknown", b"mailer-daemon"))
    assert letters(session.receive(package(b"x\n", sender, (recipient,)))) == "K"
    (data,) = stored(maildir)
    trace = read_trace(data, True)
    for name in os.listdir(maildir.new.fd):
        os.unlink(name, dir_fd=maildir.new.fd)
    assert trace is not None
    assert (trace.sender, trace.recipients) == (sender, (recipient,))


def test_local_parts_are_quoted_where_they_need_it(maildir: Maildir, session: Session) -> None:
    """Else a mail reader, or the next server, sees two addresses or none."""
    output = session.receive(package(sender=b"jane x@b", recipients=(b'a"b@d', b"c.d@e")))
    assert letters(output) == "KK"
    tops = [data.split(b"\n")[:2] for data in stored(maildir)]
    assert tops == [
        [b'Return-Path: <"jane x"@b>', b'Delivered-To: "a\\"b"@d'],
        [b'Return-Path: <"jane x"@b>', b"Delivered-To: c.d@e"],
    ]


def test_several_packages_in_one_write(maildir: Maildir, session: Session) -> None:
    """Pipelining clients send hundreds of packages at once; each has its response, in order."""
    data = b"".join(package(b"%d\n" % n, recipients=(b"", b"c@d")[n % 2 :]) for n in range(1, 5))
    assert letters(session.receive(data)) == "KDKKDK"
    assert texts(maildir) == [b"1\n", b"2\n", b"3\n", b"4\n"]
    assert session.between_packages
    assert not session.ended


def test_one_byte_at_a_time(maildir: Maildir, session: Session) -> None:
    """The network may cut anywhere; no response may come before the last byte."""
    data = package(b"1\n") + package(b"2\n\r\r\nx\r", encoding=ENCODING_CRLF)
    output = [session.receive(data[at : at + 1]) for at in range(len(data))]
    assert [at for at, got in enumerate(output) if got] == [len(package(b"1\n")) - 1, len(data) - 1]
    assert texts(maildir) == [b"1\n", b"2\n\r\nx\r"]


def test_no_recipients_no_response(maildir: Maildir, session: Session) -> None:
    """As qmail-qmtpd does: a response for nobody would be taken for the next recipient's."""
    assert session.receive(package(recipients=())) == b""
    assert letters(session.receive(package())) == "K"
    assert len(stored(maildir)) == 1


@pytest.mark.parametrize(
    "garbage",
    [
        b"EHLO example.org\r\n",
        b":",
        b"0:,",
        b"01:\n,",
        b"200000002:",
        b"2:xy,",
        b"2:\nx;",
        b"2:\nx,x",
        b"2:\nx,70000:",
        b"2:\nx,1:ab",
        b"2:\nx,1:a,1048577:",
        b"2:\nx,1:a,3:1:b;,",
        b"2:\nx,1:a,2:1:,",
        b"2:\nx,1:a,4:1:b,x",
        b"2:\nx,1:a,5:01:b,,",
    ],
)
def test_violation(maildir: Maildir, session: Session, garbage: bytes) -> None:
    """Earlier packages keep their responses; nothing after the violation is believed."""
    output = session.receive(package() + garbage + package())
    assert letters(output) == "K"
    assert session.ended
    assert session.violation
    assert session.receive(package()) == b""
    session.wind_down()
    assert not session.busy
    assert len(stored(maildir)) == 1


def test_more_recipients_than_bounded_memory_allows(maildir: Maildir, session: Session) -> None:
    assert session.receive(package(recipients=(b"x",) * (MAX_RECIPIENTS + 1))) == b""
    assert session.violation is not None
    assert str(MAX_RECIPIENTS) in session.violation
    assert stored(maildir) == []


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"", b""),
        (b"a\r\nb\r\n", b"a\nb\n"),
        (b"a\rb\r\r\n\nc\r", b"a\rb\r\n\nc\r"),
        (b"\r\n" * 3, b"\n" * 3),
        (b"\r", b"\r"),
    ],
)
def test_crlf_becomes_lf_on_storing(
    maildir: Maildir, session: Session, sent: bytes, kept: bytes
) -> None:
    """A maildir's files have LF; a CR that ends no line is the sender's own."""
    assert letters(session.receive(package(sent, encoding=ENCODING_CRLF))) == "K"
    assert texts(maildir) == [kept]


def test_lf_encoding_is_stored_as_it_is(maildir: Maildir, session: Session) -> None:
    text = b"a\r\nb\0\xff\r"
    assert letters(session.receive(package(text))) == "K"
    assert texts(maildir) == [text]


# No st.binary: hypothesis would compare its choices with the others' ints, an error with -bb.
@given(pieces=st.lists(st.sampled_from([b"", b"x", b"\r", b"\n", b"\r\n", b"a\r", b"\nb\r\r"])))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_crlf_wherever_the_network_cuts(
    maildir: Maildir, storage: MaildirDestination, pieces: list[bytes]
) -> None:
    """A CR LF that falls between two reads is one line end, not a CR and a line end."""
    spool = Spool(storage, crlf=True)
    for piece in pieces:
        spool.append(piece)
    spool.finish()
    assert b"".join(spool.pieces(b"")) == b"".join(pieces).replace(b"\r\n", b"\n")


def test_a_large_message_to_two(maildir: Maildir, session: Session) -> None:
    """3 MB pass through a file that nobody sees, and each recipient gets all of it."""
    before = len(open_descriptors())
    text = bytes(range(256)) * 12_000
    data = package(text, recipients=(b"c@d", b"e@f"))
    output = b""
    for at in range(0, len(data), 65_536):
        output += session.receive(data[at : at + 65_536])
        assert os.listdir(maildir.tmp.fd) == []
    assert letters(output) == "KK"
    assert texts(maildir) == [text, text]
    assert len(open_descriptors()) == before


@pytest.mark.parametrize("size", [MEMORY_MAX, MEMORY_MAX + 1])
def test_at_the_edge_of_memory(maildir: Maildir, session: Session, size: int) -> None:
    assert letters(session.receive(package(b"x" * size))) == "K"
    assert texts(maildir) == [b"x" * size]


def test_three_recipients_one_outside_the_domain(
    maildir: Maildir, storage: MaildirDestination
) -> None:
    """An open relay to a maildir is still an open relay; but the others get their mail."""
    session = Session(storage, "p", Policy(refuse=only_domains([b"Example.ORG", b"d.e"])))
    output = session.receive(package(recipients=(b"a@example.org", b"b@example.net", b"c@D.E")))
    assert letters(output) == "KDK"
    assert "(#5.7.1)" in answers(output)[1]
    assert [data.split(b"\n")[1] for data in stored(maildir)] == [
        b"Delivered-To: a@example.org",
        b"Delivered-To: c@D.E",
    ]


def test_no_restriction(maildir: Maildir, session: Session) -> None:
    """On loopback without --domain, as a test or a tunnel's end wants it."""
    assert letters(session.receive(package(recipients=(b"x", b"a@b")))) == "KK"
    assert not Policy().restricted
    assert Policy(refuse=only_domains([])).restricted


@pytest.mark.parametrize(
    "recipient", [b"example.org", b"x", b"x@", b"x@sub.example.org", b"x@example.org@other"]
)
def test_what_is_outside_a_domain(
    maildir: Maildir, storage: MaildirDestination, recipient: bytes
) -> None:
    session = Session(storage, "p", Policy(refuse=only_domains([b"example.org"])))
    assert letters(session.receive(package(recipients=(recipient,)))) == "D"


def test_max_size(maildir: Maildir, storage: MaildirDestination) -> None:
    """Too large is refused for everyone, for good, and the connection lives on."""
    session = Session(storage, "p", Policy(max_size=10))
    output = session.receive(package(b"x" * 11, recipients=(b"c@d", b"", b"e@f")))
    assert letters(output) == "DDD"
    assert all("(#5.3.4)" in answer for answer in answers(output))
    assert letters(session.receive(package(b"x" * 10))) == "K"
    assert texts(maildir) == [b"x" * 10]


def test_max_size_above_the_protocols_usual_limit(
    maildir: Maildir, storage: MaildirDestination
) -> None:
    """Asking for more than 200 MB gives more than 200 MB."""
    session = Session(storage, "p", Policy(max_size=300_000_000))
    assert session.receive(b"300000001:\n") == b""
    assert not session.ended
    assert session.receive(b"x") == b""
    session.close()


def test_bad_sender_is_refused_for_all(maildir: Maildir, session: Session) -> None:
    """It could inject header lines into the file, or go unsent ever after."""
    for sender in (b"a\nX: y", b"a\rb", b"a\0b", b"a" * 1_000):
        output = session.receive(package(sender=sender, recipients=(b"c@d", b"e@f")))
        assert letters(output) == "DD"
        assert "sender" in answers(output)[0]
    assert stored(maildir) == []


def test_bad_recipients_are_refused_alone(maildir: Maildir, session: Session) -> None:
    bad = (b"", b"a\nX: y", b"a\rb", b"a\0b", b"a" * 1_000)
    output = session.receive(package(recipients=(*bad, b"c@d")))
    assert letters(output) == "DDDDDK"
    assert all("(#5.1.3)" in answer for answer in answers(output)[:5])
    assert len(stored(maildir)) == 1


def fail_with(code: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("function", ["link", "fsync", "write", "open"])
def test_local_trouble_is_temporary(
    maildir: Maildir, session: Session, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """Disk full: the client keeps the mail, nothing half-written stays, and we live on."""
    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail_with(errno.ENOSPC))
        output = session.receive(package(recipients=(b"c@d", b"e@f", b"")))
    assert letters(output) == "ZZD"
    assert "(#4.3.0)" in answers(output)[0]
    assert stored(maildir) == []
    assert letters(session.receive(package())) == "K"


def test_file_size_limit_amid_a_large_message(
    maildir: Maildir, storage: MaildirDestination
) -> None:
    """The spool file cannot grow: the rest is read and thrown away, then Z; no lost step."""
    log: list[str] = []
    session = Session(storage, "p", log=lambda _, text: log.append(text))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEMORY_MAX + 100_000, hard))
    try:
        data = package(b"x" * 1_000_000, recipients=(b"c@d", b"", b"e@f"))
        output = b"".join(session.receive(data[at : at + 65_536]) for at in range(0, 10**6, 65_536))
        output += session.receive(data[len(range(0, 10**6, 65_536)) * 65_536 :] + package())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert letters(output) == "ZDZK"
    assert texts(maildir) == [TEXT]
    assert sum("cannot write" in line for line in log) == 1


def test_spool_that_cannot_be_read_back(
    maildir: Maildir, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short copy must never be acknowledged."""
    monkeypatch.setattr(os, "pread", lambda *_: b"")
    assert letters(session.receive(package(b"x" * (MEMORY_MAX + 1)))) == "Z"
    assert stored(maildir) == []


@pytest.mark.parametrize("fsync_fails", [True, False])
def test_a_full_nfs_server_defers_a_large_message(
    maildir: Maildir, session: Session, monkeypatch: pytest.MonkeyPatch, fsync_fails: bool
) -> None:
    """There close(2) reports it as well, also for the text that waited: no other client is cut."""
    large = package(b"x" * (MEMORY_MAX + 1)) + package()
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close_late(os.close))
        if fsync_fails:
            patch.setattr(os, "fsync", fail_with(errno.EDQUOT))
        assert letters(session.receive(large)) == "ZZ"
    assert stored(maildir) == []
    assert letters(session.receive(package())) == "K"


def close_late(close: Callable[[int], None]) -> Callable[[int], None]:
    """Return close(2) of NFS: what was written has not found room; the descriptor is closed."""

    def late(fd: int) -> None:
        written = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        close(fd)
        if written:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    return late


def test_one_directory_sync_before_any_k(
    maildir: Maildir, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K before the directory is durable is a message lost at the next power cut."""
    seen: list[tuple[int, bytes]] = []

    def sync(folder: Folder) -> None:
        assert folder.path == maildir.new.path
        seen.append((len(stored(maildir)), session.take_output()))

    monkeypatch.setattr(Folder, "sync", sync)
    assert letters(session.receive(package() * 3)) == "KKK"
    assert seen == [(3, b"")]
    session.receive(package(recipients=(b"",)))
    assert len(seen) == 1


def test_directory_sync_that_fails(
    maildir: Maildir, storage: MaildirDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No K of that batch gets out; the copies go, since the client will send them again."""

    def sync(folder: Folder) -> None:
        raise LocalError("cannot make durable")

    log: list[tuple[Severity, str]] = []
    session = Session(storage, "p", log=lambda *line: log.append(line))
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "sync", sync)
        output = session.receive(package() + package(recipients=(b"", b"c@d")))
    assert letters(output) == "ZDZ"
    assert stored(maildir) == []
    assert [text for severity, text in log if severity is Severity.ERROR] == [
        "p: cannot make durable; 2 recipients deferred"
    ]


def test_copies_that_cannot_be_withdrawn(
    maildir: Maildir, storage: MaildirDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They will be there twice, which is better than an answer that never comes."""

    def fail(*_: object) -> None:
        raise LocalError("read-only all of a sudden")

    log: list[str] = []
    session = Session(storage, "p", log=lambda _, text: log.append(text))
    publish = writing.publish

    def publish_and_break(target: Maildir, name: bytes) -> bytes:
        published = publish(target, name)
        monkeypatch.setattr(Folder, "discard", fail)
        return published

    monkeypatch.setattr(Folder, "sync", fail)
    monkeypatch.setattr(writing, "publish", publish_and_break)
    assert letters(session.receive(package())) == "Z"
    assert log[1] == "p: read-only all of a sudden"
    assert texts(maildir) == [TEXT]


def test_a_turn_is_bounded(session: Session) -> None:
    """One client with ten thousand recipients must not hold up the others."""
    session.feed(package(b"x", recipients=(b"",) * (CHECKED_RECIPIENTS + 1)))
    session.work()
    assert session.busy
    assert not session.ready
    assert not session.between_packages
    session.work()
    assert letters(session.take_output()) == "D" * (CHECKED_RECIPIENTS + 1)
    assert session.between_packages


def test_the_responses_of_a_package_come_together(session: Session) -> None:
    """A client may take the first, and silence after it, for a server that answers once."""
    session.feed(package(b"x", recipients=(b"",) * (2 * CHECKED_RECIPIENTS + 1)) + package())
    session.work()
    session.work()
    assert session.take_output() == b""
    session.work()
    assert letters(session.take_output()) == "D" * (2 * CHECKED_RECIPIENTS + 1) + "K"


def test_responses_do_not_pile_up_over_many_packages(session: Session) -> None:
    """However their recipients fall into batches, those of a package go out when it is done."""
    count = CHECKED_RECIPIENTS - 1
    session.feed(package(b"", recipients=(b"",) * count) * 50)
    answered = []
    while session.busy or session.ready:
        session.work()
        answered.append(len(letters(session.take_output())))
    assert sum(answered) == 50 * count
    assert max(answered) <= 2 * SHARED_FSYNC_PACKAGES * CHECKED_RECIPIENTS / 4


# Side by side


@pytest.fixture
def workers() -> HeldWork:
    """What does the work when it is told to."""
    return HeldWork()


@pytest.fixture
def held(storage: MaildirDestination, workers: HeldWork) -> Session:
    """A session whose packages are delivered when the test says so."""
    return Session(storage, "p", workers=workers)


def test_packages_arrive_while_others_are_stored(
    maildir: Maildir, held: Session, workers: HeldWork
) -> None:
    """One slow fsync at a time is what a disk does least well; nothing is answered early."""
    for number in range(MAX_BATCHES):
        assert held.receive(package(b"%d\n" % number)) == b""
        assert held.waiting
        assert not held.between_packages
    assert len(workers.jobs) == MAX_BATCHES
    assert stored(maildir) == []
    workers.do()
    assert letters(held.take_output()) == "K"
    assert texts(maildir) == [b"0\n"]


def test_answers_keep_the_order_of_the_packages(held: Session, workers: HeldWork) -> None:
    """Whatever is stored first: a client counts answers, and would remove what was refused."""
    held.receive(package(recipients=(b"c@d", b"")))
    held.receive(package(recipients=(b"", b"", b"c@d")))
    held.receive(package(recipients=(b"",)))
    workers.do(1)
    assert not held.ready
    assert held.take_output() == b""
    workers.do()
    assert letters(held.take_output()) == "KD"
    assert letters(held.take_output()) == "DDK"
    assert letters(held.take_output()) == "D"
    assert not held.waiting
    assert held.between_packages


@pytest.mark.parametrize(
    ("count", "size", "batches"),
    [(SHARED_FSYNC_PACKAGES + 1, 10, 2), (4, BATCH_BYTES // 2, 2), (2, MEMORY_MAX * 2, 2)],
)
def test_a_batch_is_bounded(
    maildir: Maildir, held: Session, workers: HeldWork, count: int, size: int, batches: int
) -> None:
    """The first of a hundred packages must not wait for the hundredth."""
    held.feed(package(b"x" * size) * count)
    held.work()
    assert len(workers.jobs) == batches
    output = b""
    while workers.jobs:
        workers.do()
        output += held.take_output()
    assert letters(output) == "K" * count
    assert texts(maildir) == [b"x" * size] * count


@pytest.mark.parametrize("size", [100, BATCH_BYTES, MEMORY_MAX + 1, 2 * MAX_LOAD])
def test_what_is_under_way_is_bounded(held: Session, workers: HeldWork, size: int) -> None:
    """A client that sends faster than the disk writes must not fill the memory."""
    data = package(b"x" * size)
    count = 20 * SHARED_FSYNC_PACKAGES if size == 100 else 20
    held.feed(data * count)
    while held.can_work:
        held.work()
    packages = sum(len(batch.packages) for batch, _ in held._under_way)
    assert held.busy
    assert packages < count
    assert (packages - 1) * size <= MAX_LOAD + BATCH_BYTES
    output = b""
    while workers.jobs:
        workers.do()
        output += held.take_output()
        while held.can_work:
            held.work()
    assert letters(output) == "K" * count
    assert not held.busy


def test_a_client_that_vanishes_before_its_mail_is_stored(
    maildir: Maildir, held: Session, workers: HeldWork
) -> None:
    """It has no response and sends all of it again, to have it there once."""
    before = len(open_descriptors())
    held.receive(package() + package(b"x" * (MEMORY_MAX + 1)))
    held.receive(package())
    held.close()
    held.close()
    assert workers.jobs == []
    assert held.take_output() == b""
    assert stored(maildir) == []
    assert len(open_descriptors()) == before


def test_a_client_that_vanishes_while_its_mail_is_stored(
    maildir: Maildir,
    held: Session,
    workers: HeldWork,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is not committed is taken back, for it comes again; no file stays open."""
    before = len(open_descriptors())
    held.receive(package() + package(b"x" * MEMORY_MAX))
    held.receive(package(b"x" * (MEMORY_MAX + 1)))
    fsync = os.fsync

    def vanish(fd: int) -> None:
        held.close()
        fsync(fd)

    monkeypatch.setattr(os, "fsync", vanish)
    while workers.jobs:
        workers.do()
    assert stored(maildir) == []
    assert len(open_descriptors()) == before
    assert held.take_output() == b""


def test_an_error_in_a_thread_is_its_clients(held: Session, workers: HeldWork) -> None:
    """No memory for a message ends that client: no answer, and no K above all, may go out."""
    held.receive(package())

    def fail(*_: object) -> None:
        raise MemoryError

    held._agent._now = fail  # type: ignore[assignment]
    workers.do()
    assert held.ready
    with pytest.raises(MemoryError):
        held.take_output()


def test_what_cannot_be_given_to_a_thread_is_discarded(
    maildir: Maildir, held: Session, workers: HeldWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory was short for a moment: its file would stay open in a receiver that runs for years."""

    def no_memory(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(workers, "submit", no_memory)
    before = len(open_descriptors())
    with pytest.raises(MemoryError):
        held.receive(package(b"x" * (MEMORY_MAX + 1)))
    held.close()
    assert len(open_descriptors()) == before
    assert stored(maildir) == []


def test_a_thousand_recipients_a_package(maildir: Maildir, session: Session) -> None:
    """The rest is deferred, and comes again: the work that one package makes is bounded."""
    output = session.receive(package(b"", recipients=(b"c@d",) * 1_002))
    assert letters(output) == "K" * 1_000 + "ZZ"
    assert "(#4.5.3)" in answers(output)[-1]
    assert len(stored(maildir)) == 1_000


def test_the_copies_of_a_package_are_bounded_in_bytes(
    maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few kilobytes of recipients must not make hundreds of gigabytes of copies."""
    monkeypatch.setattr("maildirqmtp.receiver.maildir_destination.MAX_PACKAGE_BYTES", 2_500)
    storage = MaildirDestination(maildir.path, 2_500)
    small = Session(storage, "p", Policy(max_size=2_500))
    output = small.receive(package(b"x" * 1_000, recipients=(b"c@d",) * 4))
    assert letters(output) == "KKZZ"
    assert "(#4.5.3)" in answers(output)[-1]
    assert letters(small.receive(package(b"x" * 2_500, recipients=(b"c@d",) * 2))) == "KZ"
    storage.close()
    assert len(stored(maildir)) == 3


def test_min_free(
    maildir: Maildir, storage: MaildirDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of the machine needs some of the disk; mail can wait at its sender."""
    log: list[str] = []
    session = Session(storage, "p", Policy(min_free=1_000), log=lambda _, text: log.append(text))
    monkeypatch.setattr(storage, "free_bytes", lambda: 1_100)
    assert letters(session.receive(package(b"x" * 100))) == "K"
    output = session.receive(package(b"x" * 101, recipients=(b"c@d", b"")))
    assert letters(output) == "ZZ"
    assert "(#4.3.1)" in answers(output)[0]
    monkeypatch.undo()
    monkeypatch.setattr(os, "fstatvfs", fail_with(errno.EIO))
    assert letters(session.receive(package())) == "Z"
    assert f"{os.fsdecode(maildir.path)}/new: Input/output error" in log[-2]
    assert len(stored(maildir)) == 1


def test_a_stored_text_that_cannot_be_read_is_named(
    maildir: Maildir, storage: MaildirDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails: the administrator has to know which."""
    log: list[str] = []
    session = Session(storage, "p", log=lambda _, text: log.append(text))
    monkeypatch.setattr(os, "pread", fail_with(errno.EIO))
    assert letters(session.receive(package(b"x" * (MEMORY_MAX + 1)))) == "Z"
    assert any(f"{os.fsdecode(maildir.path)}/tmp/" in line for line in log)
    assert stored(maildir) == []


@pytest.mark.parametrize("line", [b"Received: x\n", b"received : x\n\ty\n", b"RECEIVED:x\r\n"])
@pytest.mark.parametrize(("lines", "letter"), [(99, "K"), (100, "D"), (1_000, "D")])
def test_a_mail_loop_ends(session: Session, line: bytes, lines: int, letter: str) -> None:
    """Two machines that forward to each other would do so for ever (RFC 5321, 6.3)."""
    encoding = ENCODING_CRLF if line.endswith(b"\r\n") else ENCODING_LF
    output = session.receive(package(b"X: y\n" + line * lines + b"\nhi\n", encoding=encoding))
    assert letters(output) == letter
    assert letter == "K" or "(#5.4.6)" in answers(output)[0]


def test_a_mail_loop_of_a_large_message_ends(session: Session) -> None:
    """Its text is in a file, and its header is read from there."""
    text = b"Received: x\n" * 100 + b"\n" + b"x" * MEMORY_MAX
    assert letters(session.receive(package(text))) == "D"
    text = b"\n" + b"Received: x\n" * 100 + b"x" * MEMORY_MAX
    assert letters(session.receive(package(text))) == "K"


# The log


def log_of(storage: MaildirDestination, data: bytes) -> list[tuple[Severity, str]]:
    """Return what a session logs that receives this."""
    log: list[tuple[Severity, str]] = []
    session = Session(
        storage, "p", Policy(refuse=only_domains([b"d"])), lambda *line: log.append(line)
    )
    session.receive(data)
    session.close()
    session.close()
    return log


def test_one_line_of_log_a_package(storage: MaildirDestination) -> None:
    """600 kB of refused recipients made 18 MB of log."""
    recipients = (b"a@d", b"b@d", b"x@y", b"z", b"")
    ((severity, line),) = log_of(storage, package(recipients=recipients))
    assert severity is Severity.NOTICE
    assert line.startswith("p: <a@b> to 5 recipients: 2 accepted, ")
    assert line.endswith("; 3 refused, first <x@y>: 553 that domain is not served here (#5.7.1)")
    ((severity, line),) = log_of(storage, package(recipients=recipients[:2]))
    assert severity is Severity.INFO
    assert "to 2 recipients: 2 accepted, " in line
    assert log_of(storage, package(recipients=())) == []


def test_the_log_of_a_session_is_bounded(storage: MaildirDestination) -> None:
    """Refused packages of 20 bytes each, without end, must not fill the disk."""
    log = log_of(storage, package(b"", recipients=(b"x",)) * 1_003)
    assert len(log) == 1_001
    assert log[-1] == (Severity.NOTICE, "p: 3 more packages refused or deferred")


def test_a_full_disk_is_one_line_a_package(
    maildir: Maildir, storage: MaildirDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one for each of a thousand recipients; and the disk is tried only once."""
    tries: list[int] = []

    def write(fd: int, data: object) -> int:
        tries.append(fd)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        log = log_of(storage, package(recipients=(b"c@d",) * 100))
    assert [severity for severity, _ in log] == [Severity.ERROR, Severity.NOTICE]
    assert len(tries) == 1
    assert stored(maildir) == []


# Files and answers


def test_a_copy_whose_name_in_tmp_stays_is_delivered(
    maildir: Maildir, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is in new/: a Z would have the client send it a second time."""
    unlink = os.unlink

    def unlink_but_tmp(name: bytes, *, dir_fd: int) -> None:
        if os.path.samestat(os.fstat(dir_fd), os.fstat(maildir.tmp.fd)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        unlink(name, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink_but_tmp)
        assert letters(session.receive(package())) == "K"
    assert len(os.listdir(maildir.new.fd)) == 1
    for name in os.listdir(maildir.tmp.fd):
        os.unlink(name, dir_fd=maildir.tmp.fd)


@pytest.mark.parametrize("size", [100, MEMORY_MAX * 2])
def test_client_that_vanishes_amid_a_package(maildir: Maildir, session: Session, size: int) -> None:
    """It will send the whole package again; what came of it is thrown away."""
    assert letters(session.receive(package() + package(b"x" * size)[:-1])) == "K"
    assert not session.between_packages
    session.close()
    session.close()
    assert texts(maildir) == [TEXT]


def test_wind_down_between_packages(maildir: Maildir, session: Session) -> None:
    session.wind_down()
    assert session.receive(b"") == b""
    assert session.ended


def test_wind_down_amid_a_package(maildir: Maildir, session: Session) -> None:
    """After the protocol's hour the package at hand is finished, and nothing else begun."""
    data = package(b"1\n", recipients=(b"c@d", b"e@f"))
    assert session.receive(data[:8]) == b""
    session.wind_down()
    assert session.receive(b"") == b""
    assert not session.ended
    assert letters(session.receive(data[8:] + package(b"2\n"))) == "KK"
    assert session.ended
    assert texts(maildir) == [b"1\n", b"1\n"]
    assert session.violation is None


def test_nothing_from_a_client_can_command_a_terminal(
    maildir: Maildir, storage: MaildirDestination
) -> None:
    """A log that is read on a terminal must not be able to reprogram it, or to lie."""
    log: list[tuple[Severity, str]] = []
    session = Session(storage, "p", log=lambda *line: log.append(line))
    session.receive(package(sender=b"\x1b[2J", recipients=(b"a\nb", b"x" * 900, b"\xe2\x80\xaec")))
    session.receive(package(sender=b"\x1b[2J", recipients=(b"\x1b[2J" * 200,)))
    session.receive(b"\x1b[2J")
    assert all(text.isprintable() for _, text in log)
    assert [severity for severity, _ in log] == [Severity.NOTICE, Severity.INFO]
    assert "1 refused, first <a?b>: 553 recipient a?b has a LF in it" in log[0][1]
    assert "<?[2J> to <?[2J?[2J" in log[1][1]
    assert all(len(text) < 500 for _, text in log)
    assert session.violation is not None
    assert session.violation.isprintable()
