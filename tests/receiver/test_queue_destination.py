"""The receiver's queue: one file and one sidecar for a package, as the forwarder takes them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maildirqmtp.errors import LocalError
from maildirqmtp.mail import envelope, sidecar
from maildirqmtp.maildir import sidecars, writing
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.qmtp.protocol import MAX_MESSAGE, package_head, package_tail
from maildirqmtp.receiver.destination import Mail
from maildirqmtp.receiver.policy import Policy, only_domains
from maildirqmtp.receiver.queue_destination import QueueDestination
from maildirqmtp.receiver.session import Session
from maildirqmtp.receiver.spool import Spool
from maildirqmtp.receiver.storage import Copy
from maildirqmtp.receiver.user_quota import RECOUNT_S, UserQuota
from tests.fakes import FileSystem
from tests.helpers import DEADLINE_S, names, wait_until
from tests.receiver.doubles import HeldWork
from tests.receiving import letters

TEXT = b"Subject: x\n\nhi\n"


def package(*recipients: bytes, text: bytes = TEXT, sender: bytes = b"a@b") -> bytes:
    return package_head(len(text)) + text + package_tail(sender, recipients)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue"


@pytest.fixture
def queue(path: Path) -> Iterator[QueueDestination]:
    with contextlib.closing(QueueDestination(os.fsencode(path))) as opened:
        yield opened


def queued(path: Path) -> list[tuple[bytes, tuple[bytes, ...], bytes]]:
    """Return sender, recipients and text of all messages, as the forwarder reads them."""
    found = []
    assert names(path / "tmp") == []
    assert names(path / "envelope") == [f"{name}.json" for name in names(path / "new")]
    with Maildir(os.fsencode(path)) as maildir:
        for folder, name in maildir.scan():
            content = sidecars.read(maildir, name)
            message = maildir.load(folder, name)
            assert content is not None
            assert message is not None
            text = (path / "new" / os.fsdecode(name)).read_bytes()
            received, _, rest = text.partition(b"\n")
            assert received.startswith(b"Received: from ")
            message.close()
            found.append((content.sender, content.recipients, rest))
    return found


def test_one_file_and_one_sidecar_for_all_recipients(queue: QueueDestination, path: Path) -> None:
    """A thousand recipients take a thousand lines of the sidecar, not a thousand copies."""
    session = Session(queue, "[192.0.2.1]", Policy(refuse=only_domains([b"d", b"f"])))
    output = session.receive(package(b"c@d", b"x@y", b"", b"e@f") + package(b"g@d"))
    assert letters(output) == "KDDKK"
    assert queued(path) == [(b"a@b", (b"c@d", b"e@f"), TEXT), (b"a@b", (b"g@d",), TEXT)]


def test_nothing_is_queued_for_nobody(queue: QueueDestination, path: Path) -> None:
    """Where all recipients are refused, no file is left, for no forwarder could send it."""
    session = Session(queue, "p", Policy(refuse=only_domains([b"d"])))
    assert letters(session.receive(package(b"x@y", b"z"))) == "DD"
    assert session.receive(package()) == b""
    assert queued(path) == []


def test_lines_of_an_earlier_delivery_stay_in_the_text(queue: QueueDestination, path: Path) -> None:
    """By them a mail loop is found; and the forwarder takes them for nobody's envelope."""
    text = b"Return-Path: <old@x>\nDelivered-To: loop@y\nEnvelope-to: z@w\n" + TEXT
    assert letters(Session(queue, "p").receive(package(b"c@d", text=text))) == "K"
    ((sender, recipients, rest),) = queued(path)
    assert (sender, recipients, rest) == (b"a@b", (b"c@d",), text)
    (file,) = (path / "new").iterdir()
    trace = envelope.read_trace(file.read_bytes(), True)
    assert trace is not None
    assert trace.offset == 0
    assert trace.sender is None


# Addresses are made of bytes one by one: with -bb hypothesis cannot shrink st.binary.
address = st.lists(st.sampled_from([bytes([n]) for n in range(256) if n not in b"\0\r\n"])).map(
    lambda parts: b"".join(parts)[:999]
)


@given(
    sender=address,
    recipients=st.lists(address.filter(bool), min_size=1, max_size=5, unique=True),
)
@settings(
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_envelope_comes_through_byte_for_byte(
    tmp_path: Path, sender: bytes, recipients: list[bytes]
) -> None:
    """Quotes, blanks, control bytes and bytes that are no UTF-8: a relay changes no address."""
    place = tmp_path / os.urandom(4).hex()
    with contextlib.closing(QueueDestination(os.fsencode(place))) as queue:
        output = Session(queue, "p").receive(package(*recipients, sender=sender))
    assert letters(output) == "K" * len(recipients)
    assert queued(place) == [(sender, tuple(recipients), TEXT)]


def test_a_sidecar_never_outgrows_what_the_forwarder_reads(
    queue: QueueDestination, path: Path
) -> None:
    """Control bytes take six times their size in JSON; a sidecar too large would hold the mail."""
    recipients = [b"\1" * 900 + b"%d@d" % number for number in range(400)]
    output = letters(Session(queue, "p").receive(package(*recipients)))
    taken = output.count("K")
    assert output == "K" * taken + "Z" * (400 - taken)
    assert 100 < taken < 400
    ((_, kept, _),) = queued(path)
    assert list(kept) == recipients[:taken]
    (file,) = (path / "envelope").iterdir()
    assert file.stat().st_size <= sidecar.MAX_BYTES


def test_a_thousand_long_recipients_fit(queue: QueueDestination, path: Path) -> None:
    """What a package may hold at most is not deferred for ever."""
    recipients = [b"%0900d@d" % number for number in range(1_000)]
    assert letters(Session(queue, "p").receive(package(*recipients))) == "K" * 1_000
    ((_, kept, _),) = queued(path)
    assert list(kept) == recipients


@pytest.mark.parametrize("call", ["link", "rename", "write", "fsync", "open"])
def test_a_full_disk_defers_and_leaves_nothing(
    queue: QueueDestination, path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The client sends all of it again; a half that stayed would be sent twice, or to nobody."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    session = Session(queue, "p")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        assert letters(session.receive(package(b"c@d", b"e@f") + package(b"g@h"))) == "ZZZ"
    assert queued(path) == []
    assert letters(session.receive(package(b"c@d"))) == "K"
    assert len(names(path / "new")) == 1


def test_the_order_of_what_is_made_durable(
    queue: QueueDestination, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sidecars before messages, everything before K; and two directories for a whole batch."""
    session = Session(queue, "p")
    system = FileSystem(monkeypatch, path)
    assert letters(session.receive(package(b"c@d", b"e@f") + package(b"g@h"))) == "KKK"
    calls = [re.sub(r"[0-9]+\.M[^ .]*\.[^ .]*", "NAME", call) for call in system.calls]
    one = ["fsync tmp/*", "rename tmp/* -> envelope/NAME.json"]
    assert calls == [
        *["fsync tmp/*"] * 2,
        *(*one, *one, "fsync envelope"),
        *["link tmp/* -> new/NAME", "unlink tmp/*"] * 2,
        "fsync new",
    ]


def test_what_is_taken_back_goes_before_its_sidecar(
    queue: QueueDestination, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message whose sidecar went first is sent to whom its trace lines name."""
    session = Session(queue, "p")
    system = FileSystem(monkeypatch, path)
    system.fail("link", 0, errno.ENOSPC)
    assert letters(session.receive(package(b"c@d") + package(b"e@f"))) == "ZZ"
    calls = [re.sub(r"[0-9]+\.M[^ .]*\.[^ .]*", "NAME", call) for call in system.calls]
    calls = [call for call in calls if "tmp" not in call]
    assert calls[calls.index("unlink new/NAME") :] == [
        *("unlink new/NAME", "unlink new/NAME", "fsync new"),
        *["unlink envelope/NAME.json"] * 2,
    ]
    assert queued(path) == []


def test_a_directory_that_cannot_be_synced_keeps_the_sidecars(
    queue: QueueDestination, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message may be back after a power cut; an fsync again proves nothing of it."""
    session = Session(queue, "p")
    system = FileSystem(monkeypatch, path)
    system.fail("fsync new", errno.EIO)
    assert letters(session.receive(package(b"c@d"))) == "Z"
    assert system.of("fsync").count("fsync new") == 1
    assert names(path / "new") == names(path / "tmp") == []
    assert len(names(path / "envelope")) == 1
    assert letters(session.receive(package(b"c@d"))) == "K"


def test_a_failed_fsync_of_the_sidecars_counts_for_nobody(
    queue: QueueDestination, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells of it once; a second fsync succeeds, without another client's sidecar.

    After a power cut that message is held, or goes to whom its header names.
    """
    both = threading.Barrier(2, timeout=DEADLINE_S)
    real = sidecars.place_first

    def place_first(*arguments: Any) -> None:
        real(*arguments)
        both.wait()  # the two sidecars are in place before either fsync

    system = FileSystem(monkeypatch, path)
    system.fail("fsync envelope", errno.EIO)
    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(sidecars, "place_first", place_first)
        send = [pool.submit(Session(queue, "p").receive, package(b"c@d")) for _ in range(2)]
        assert [letters(sent.result(DEADLINE_S)) for sent in send] == ["Z", "Z"]
    assert names(path / "new") == names(path / "tmp") == []
    assert letters(Session(queue, "p").receive(package(b"g@h"))) == "K"
    (name,) = names(path / "new")
    assert f"{name}.json" in names(path / "envelope")


def test_an_fsync_that_fails_while_mail_is_taken_back_counts_for_nobody(
    queue: QueueDestination, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have told of another client's message, which a power cut would take: lost after K."""
    texts = [Spool(queue, crlf=False) for _ in range(2)]
    for text in texts:
        text.append(TEXT)
        text.finish()
    withdrawn, late = (queue.begin(Mail(b"a@b", text, b"Received: x\n", 0.0)) for text in texts)
    withdrawn.deliver(b"c@d")
    late.deliver(b"e@f")
    real = queue._storage.commit

    def commit(copies: Sequence[Copy]) -> None:
        # `late` is in new/ by now, and not durable.
        assert queue.withdraw([withdrawn])
        real(copies)

    system = FileSystem(monkeypatch, path)
    system.fail("fsync new", errno.EIO)
    monkeypatch.setattr(queue._storage, "commit", commit)
    with pytest.raises(LocalError, match="Input/output error"):
        queue.commit([late])


def test_a_queue_that_is_not_at_its_path(queue: QueueDestination, path: Path) -> None:
    """The forwarder looks at the path: what lies in a renamed queue is not sent."""
    session = Session(queue, "p")
    path.rename(path.with_name("old"))
    writing.create(os.fsencode(path))
    assert letters(session.receive(package(b"c@d"))) == "Z"
    assert letters(session.receive(package(b"c@d"))) == "K"
    assert [recipients for _, recipients, _ in queued(path)] == [(b"c@d",)]
    assert names(path.with_name("old") / "new") == []


def moved_away(envelope: Path) -> None:
    envelope.rename(envelope.with_name("old"))


def replaced(envelope: Path) -> None:
    moved_away(envelope)
    envelope.mkdir()


def linked(envelope: Path) -> None:
    moved_away(envelope)
    envelope.symlink_to("old")


@pytest.mark.parametrize(
    ("call", "change"),
    [
        ("", Path.rmdir),
        *((call, how) for call in ("", "rename", "link") for how in (moved_away, replaced, linked)),
    ],
)
def test_k_is_said_where_the_sidecar_is_at_its_path(
    queue: QueueDestination,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    change: Callable[[Path], object],
) -> None:
    """Without it the message is held for want of an envelope, or goes to whom its header names."""
    session = Session(queue, "p")
    changes = [change]

    def meanwhile(*names: bytes, **where: Any) -> None:
        while changes:
            changes.pop()(path / "envelope")
        real(*names, **where)

    if call:
        real = getattr(os, call)
        monkeypatch.setattr(os, call, meanwhile)
    else:
        change(path / "envelope")
    assert letters(session.receive(package(b"c@d") + package(b"e@f"))) == "ZZ"
    monkeypatch.undo()
    assert names(path / "new") == []
    if change is linked:
        assert letters(session.receive(package(b"g@h"))) == "Z"
        (path / "envelope").unlink()
    assert letters(session.receive(package(b"g@h"))) == "K"
    assert [recipients for _, recipients, _ in queued(path)] == [(b"g@h",)]


def test_a_client_that_vanishes_while_its_mail_is_stored(
    queue: QueueDestination, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends all of it again; nothing of the first try may be there."""
    workers = HeldWork()
    session = Session(queue, "p", workers=workers)
    session.receive(package(b"c@d", b"e@f") + package(b"g@h"))
    real = os.fsync

    def vanish(fd: int) -> None:
        session.close()
        real(fd)

    monkeypatch.setattr(os, "fsync", vanish)
    workers.do()
    assert queued(path) == []


def test_many_clients_at_once(path: Path) -> None:
    """Threads share the queue; each message is there once, with its own envelope."""
    texts = [b"%d\n" % number for number in range(100)]
    with contextlib.closing(QueueDestination(os.fsencode(path), user_quota=10**6)) as queue:

        def send(text: bytes) -> str:
            session = Session(queue, "p", user=1000)
            return letters(session.receive(package(b"c@d", text, text=text, sender=text[:-1])))

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(send, [text.strip() + b"\n" for text in texts])) == {"KD"}
    assert sorted(queued(path)) == sorted((text[:-1], (b"c@d",), text) for text in texts)


def test_min_free(queue: QueueDestination, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the machine needs some of the disk; mail can wait at its sender."""
    session = Session(queue, "p", Policy(min_free=1_000))
    monkeypatch.setattr(queue, "free_bytes", lambda: 1_000)
    assert letters(session.receive(package(b"c@d", b"e@f"))) == "ZZ"
    monkeypatch.setattr(queue, "free_bytes", lambda: 100_000)
    assert letters(session.receive(package(b"c@d"))) == "K"
    assert len(queued(path)) == 1


def test_old_orphans_are_removed_at_the_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sidecars of a crash before their messages came would pile up for ever."""
    with contextlib.closing(QueueDestination(os.fsencode(path))) as queue:
        assert letters(Session(queue, "p").receive(package(b"c@d"))) == "K"
    content = {"version": 1, "sender": "", "recipients": ["a@b"]}
    (path / "envelope" / "1.gone.json").write_text(json.dumps(content))
    QueueDestination(os.fsencode(path)).close()
    assert "1.gone.json" in names(path / "envelope"), "its message may be about to come"
    later_s = time.time() + 37 * 3_600
    monkeypatch.setattr("maildirqmtp.receiver.storage.time.time", lambda: later_s)
    QueueDestination(os.fsencode(path)).close()
    assert len(queued(path)) == 1


def test_a_queue_that_can_have_no_sidecars_does_not_start(path: Path) -> None:
    """Else each message is deferred, for ever, and the reason stands in a log."""
    writing.create(os.fsencode(path))
    (path / "envelope").write_text("in the way")
    with pytest.raises(LocalError, match="envelope: Not a directory"):
        QueueDestination(os.fsencode(path))


# How much a user may have waiting


def test_a_user_over_the_quota_is_deferred(path: Path) -> None:
    """One user's script that sends without end must not fill the disk for all."""
    with contextlib.closing(QueueDestination(os.fsencode(path), user_quota=1_000)) as queue:
        ann = Session(queue, "ann (uid 1000)", user=1000)
        bob = Session(queue, "bob (uid 100)", user=100)
        large = package(b"c@d", b"e@f", text=b"x" * 500)
        assert letters(ann.receive(large)) == "KK"
        output = ann.receive(large)
        assert letters(output) == "ZZ"
        assert b"(#4.2.2)" in output
        assert letters(bob.receive(large)) == "KK"
        other = Session(queue, "[192.0.2.1]")
        assert letters(other.receive(large * 3)) == "KKKKKK"
    assert len(queued(path)) == 5


def test_what_never_fits_the_quota_is_refused(path: Path) -> None:
    """A deferral would be tried again until its lifetime is over, and nobody would be told."""
    with contextlib.closing(QueueDestination(os.fsencode(path), user_quota=1_000)) as queue:
        output = Session(queue, "p", user=7).receive(package(b"c@d", b"e@f", text=b"x" * 1_000))
    assert letters(output) == "DD"
    assert b"(#5.3.4)" in output
    assert queued(path) == []


def is_taken_soon(session: Session, data: bytes) -> None:
    """Send it until it is taken; within milliseconds of a count there is no other."""
    wait_until(lambda: letters(session.receive(data)) == "K", "the quota to have room")


def test_the_quota_holds_over_a_restart_and_ends_when_mail_goes(path: Path) -> None:
    """Counted by the names of the files: what was forwarded counts no more."""
    large = package(b"c@d", text=b"x" * 600)
    with contextlib.closing(QueueDestination(os.fsencode(path), user_quota=1_000)) as queue:
        assert letters(Session(queue, "p", user=1000).receive(large)) == "K"
    (name,) = names(path / "new")
    with contextlib.closing(QueueDestination(os.fsencode(path), user_quota=1_000)) as queue:
        session = Session(queue, "p", user=1000)
        assert letters(session.receive(large)) == "Z"
        (path / "new" / name).unlink()
        (path / "envelope" / f"{name}.json").unlink()
        is_taken_soon(session, large)
    assert len(queued(path)) == 1


def test_a_queue_that_is_replaced_is_counted_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user over the quota in the old one would have no more mail taken until a restart."""
    monkeypatch.setattr("maildirqmtp.receiver.user_quota.RECOUNT_S", 0.0)
    large = package(b"c@d", text=b"x" * 600)
    with contextlib.closing(QueueDestination(os.fsencode(path), user_quota=1_000)) as queue:
        session = Session(queue, "p", user=1000)
        assert letters(session.receive(large) + session.receive(large)) == "KZ"
        path.rename(path.with_name("old"))
        writing.create(os.fsencode(path))
        assert letters(session.receive(large)) == "K"
    assert len(queued(path)) == 1


class SlowCounts:
    """A quota of 10 bytes on an empty directory; counting it takes some time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, maildir: Maildir, takes_s: float) -> None:
        self.now_s = 0.0
        self.counts = 0
        self._quota = UserQuota(10, lambda: self.now_s)
        self._folders = (maildir.tmp, maildir.new)
        real = os.listdir

        def listdir(fd: Any) -> Any:
            if fd == maildir.new.fd:
                self.counts += 1
                self.now_s += takes_s
            return real(fd)

        monkeypatch.setattr(os, "listdir", listdir)

    def take(self) -> bool:
        """Take a message of 8 bytes, which goes nowhere."""
        may = self._quota.take(lambda: self._folders, 7, 8)
        if may:
            self._quota.written(7, 8)
        return may


def test_what_is_allowed_counts_before_it_is_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who sends six messages at once would have room for each of them."""
    writing.create(os.fsencode(path))
    with Maildir(os.fsencode(path)) as maildir:
        quota = UserQuota(10, lambda: 0.0)
        monkeypatch.setattr("maildirqmtp.receiver.user_quota.RECOUNT_S", 0.0)
        folders = (maildir.tmp, maildir.new)
        assert quota.take(lambda: folders, 7, 8)
        assert not quota.take(lambda: folders, 7, 8)
        assert quota.take(lambda: folders, 8, 8)
        quota.written(7, 8)
        assert quota.take(lambda: folders, 7, 8), "it was not stored after all"


def test_nothing_is_taken_that_the_forwarder_could_never_send(path: Path) -> None:
    """Of the largest message that servers take there is no room for the Received line."""
    with contextlib.closing(QueueDestination(os.fsencode(path))) as queue:
        session = Session(queue, "client")
        assert letters(session.receive(package(b"c@d", text=b"x" * MAX_MESSAGE))) == "D"
    assert not queued(path)


def test_nobody_waits_for_the_count_of_another_user(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One user's script has left a million messages; the others only want to send one."""
    writing.create(os.fsencode(path))
    counting, go_on = threading.Event(), threading.Event()
    with Maildir(os.fsencode(path)) as maildir:
        folders = (maildir.tmp, maildir.new)
        real = os.listdir

        def listdir(fd: Any) -> Any:
            if threading.current_thread() is slow:
                counting.set()
                assert go_on.wait(DEADLINE_S)
            return real(fd)

        monkeypatch.setattr(os, "listdir", listdir)
        quota = UserQuota(10)
        slow = threading.Thread(target=quota.take, args=(lambda: folders, 7, 8))
        slow.start()
        assert counting.wait(DEADLINE_S)
        other = threading.Thread(target=quota.take, args=(lambda: folders, 8, 8))
        other.start()
        other.join(DEADLINE_S / 4)
        waits = other.is_alive()
        go_on.set()
        slow.join(DEADLINE_S)
        other.join(DEADLINE_S)
    assert not waits


@pytest.mark.parametrize(("takes_s", "pause_s"), [(0.001, 0.02), (0.1, 2.0), (3.0, RECOUNT_S)])
def test_a_user_over_the_quota_does_not_have_the_queue_counted_each_time(
    path: Path, monkeypatch: pytest.MonkeyPatch, takes_s: float, pause_s: float
) -> None:
    """A hundred thousand names are not read again for each of that user's messages."""
    writing.create(os.fsencode(path))
    with Maildir(os.fsencode(path)) as maildir:
        quota = SlowCounts(monkeypatch, maildir, takes_s)
        assert quota.take()
        for _ in range(5):
            assert not quota.take()
        quota.now_s = takes_s + pause_s - 0.001
        assert not quota.take()
        assert quota.counts == 1
        quota.now_s = takes_s + pause_s + 0.001
        assert quota.take()
        assert quota.counts == 2


def test_what_is_being_stored_counts_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in tmp/ until its batch is committed; a client could fill the disk with one batch."""
    monkeypatch.setattr("maildirqmtp.receiver.user_quota.RECOUNT_S", 0.0)
    large = package(b"c@d", text=b"x" * 600)
    with contextlib.closing(QueueDestination(os.fsencode(path), user_quota=1_000)) as queue:
        assert letters(Session(queue, "p", user=1000).receive(large * 5)) == "KZZZZ"
    assert len(queued(path)) == 1


def test_what_a_receiver_that_was_killed_left_in_tmp_does_not_count(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays there for 36 hours, and no list shows it. In a container, all are process 1."""
    monkeypatch.setattr("maildirqmtp.receiver.user_quota.RECOUNT_S", 0.0)
    QueueDestination(os.fsencode(path)).close()
    for process in (os.getpid(), 1, os.getpid() + 1):
        name = f"{int(time.time()) - 60}.M1P{process}Q1U1000.host"
        (path / "tmp" / name).write_bytes(b"x" * 900)
    (path / "tmp" / f"{int(time.time()) + 9}.M1P{os.getpid() + 1}Q2U1000.host").write_bytes(
        b"x" * 900
    )
    with contextlib.closing(QueueDestination(os.fsencode(path), user_quota=1_000)) as queue:
        large = package(b"c@d", text=b"x" * 600)
        assert letters(Session(queue, "p", user=1000).receive(large * 2)) == "KZ"


def test_what_has_gone_counts_no_more_for_the_next_message(path: Path) -> None:
    """It was refused as "too much is waiting" while nothing was, for five seconds."""
    large = package(b"c@d", text=b"x" * 600)
    with contextlib.closing(QueueDestination(os.fsencode(path), user_quota=1_000)) as queue:
        session = Session(queue, "p", user=1000)
        for _ in range(3):
            is_taken_soon(session, large)
            for folder in ("new", "envelope"):
                for file in (path / folder).iterdir():
                    file.unlink()
