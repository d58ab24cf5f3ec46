"""Every fsync is where it has to be: after each system call, what would a power cut leave?

`test_power` cuts the power for real, on ext4, which forgives a missing fsync as
long as another one follows. Here nothing is forgiven; see `durability`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.forwarder import removals, settle
from maildirqmtp.forwarder.batch import flush
from maildirqmtp.forwarder.mailers import QueueMailer
from maildirqmtp.forwarder.queued_message import QueuedMessage, prepare
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import BounceMethod, BounceVia, Route
from maildirqmtp.mail.sidecar import Sidecar
from maildirqmtp.maildir import sidecars, writing
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.qmtp.protocol import Response, ResponseReader, Status, package_head, package_tail
from maildirqmtp.receiver.maildir_destination import MaildirDestination
from maildirqmtp.receiver.queue_destination import QueueDestination
from maildirqmtp.receiver.server import Server
from maildirqmtp.receiver.session import Session
from maildirqmtp.transport.endpoint import TcpEndpoint
from tests.fakes import FakeClock, LateThread
from tests.faults.durability import Model, record
from tests.faults.ledger import SENDER, Ledger, note_figures, serve
from tests.helpers import DEADLINE_S, make_maildir, serving
from tests.receiver.doubles import serving_thread

MIXED = (
    (b"k1@y",),
    (b"k1@y", b"z1@y", b"d1@y", b"k2@y"),
    (b"d1@y",),
    (b"y1@y",),
    (b"k1@y", b"d1@y"),
    (b"k1@y", b"k2@y"),
    (b"d1@y", b"d2@y"),
    (b"z1@y",),
    (b"k1@y",),
)
ACCEPTED = ((b"k1@y",), (b"k1@y", b"k2@y"), (b"k1@y",)) * 4

#: Removals of a batch, in these tests; a second one may gather while it is synced.
FEW = 3


def forward(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipients: tuple[tuple[bytes, ...], ...],
    *,
    forget: tuple[tuple[str, str], ...] = (),
    cannot_link: bool = False,
    runs: int = 2,
    **policy: Any,
) -> tuple[Ledger, Model]:
    """Forward these, looking after every call at what a power cut would leave."""
    monkeypatch.setattr(removals, "SYNC_REMOVALS", FEW)
    monkeypatch.setattr(removals, "_in_thread", LateThread)
    ledger = Ledger(tmp_path)
    for each in recipients:
        ledger.add(*each)
    for directory, name in forget:
        (tmp_path / directory / name).mkdir(exist_ok=True)
    if "sent" in policy:
        make_maildir(tmp_path / "sent")
    model = Model(tmp_path)
    for directory, name in forget:
        model.forget(directory, name)
    wrong: dict[str, None] = {}
    states = 0
    archive = "sent" in policy

    def check() -> None:
        nonlocal states
        for number, seen in enumerate(model.views()):
            states += 1
            # The archive's entry may be late where directories are not written in order.
            wrong.update(dict.fromkeys(ledger.complaints(seen, archive and number == 0)))
        if not policy.get("bounce") and model.unsynced("m/new") > 2 * FEW:
            wrong[f"{model.unsynced('m/new')} removals are not durable"] = None

    with serving(serve(ledger)) as server, monkeypatch.context() as patched:
        record(patched, model, check, cannot_link)
        for _ in range(runs):
            route = Route(
                os.fsencode(ledger.maildir), TcpEndpoint("127.0.0.1", server.port), **policy
            )
            log = io.StringIO()
            flush(route, Report(log, io.StringIO()))
            assert "Traceback" not in log.getvalue()
            left = model.least()["m/new"].keys() & ledger.done_with()
            wrong.update(dict.fromkeys(f"{name} comes back after a clean end" for name in left))
    assert not ledger.wrong, ledger.wrong
    assert not wrong, "\n".join(list(wrong)[:10])
    assert states > 50
    note_figures("durability", states=states, lost=0)
    return ledger, model


def test_accepted_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sidecar that went before its message would leave headers that name anybody."""
    ledger, _ = forward(tmp_path, monkeypatch, ACCEPTED, runs=1)
    assert not list((ledger.maildir / "new").iterdir())
    assert not list((ledger.maildir / "envelope").iterdir())


def test_mixed_answers_with_the_failed_maildir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was refused is named in the failed maildir before the message goes from new/."""
    forward(tmp_path, monkeypatch, MIXED)


def test_mixed_answers_with_bounces_in_a_maildir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bounce is on disk before anything says that the recipient is done with."""
    where = BounceVia(BounceMethod.MAILDIR, os.fsencode(tmp_path / "bounces"))
    forward(tmp_path, monkeypatch, MIXED, bounce=True, bounce_via=where, max_bounces=4)


def test_mixed_answers_with_bounces_by_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bounce in the queue is durable, and its sidecar before it."""
    forward(tmp_path, monkeypatch, MIXED, bounce=True, bounce_via=BounceVia(BounceMethod.SERVER))


@pytest.mark.parametrize("cannot_link", [False, True], ids=["link", "copy"])
def test_moving_to_other_maildirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cannot_link: bool
) -> None:
    """A copy on another file system is durable, under its name, before the original goes."""
    sent = os.fsencode(tmp_path / "sent")
    # One that goes without being archived comes first: the archive is synced before new/ even so.
    recipients = ((b"d1@y",), *ACCEPTED, *MIXED)
    forward(tmp_path, monkeypatch, recipients, sent=sent, cannot_link=cannot_link)


@pytest.mark.parametrize(
    "forget",
    [
        (("m", ".Failed"),),
        (("m", ".Failed"), ("m/.Failed", "new"), ("m/.Failed", "envelope")),
        (("m", ".Failed"), ("m/.Failed", "tmp")),
    ],
    ids=lambda forget: forget[-1][0] + "/" + forget[-1][1],
)
def test_after_a_run_that_was_killed_while_making_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: tuple[tuple[str, str], ...]
) -> None:
    """A directory that is there may not be durable yet: files in it would go with it."""
    forward(tmp_path, monkeypatch, MIXED, forget=forget)


def test_a_sidecar_in_a_directory_that_is_not_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is settled in part is owed to the rest only, even if envelope/ was just made."""
    ledger = Ledger(tmp_path)
    (ledger.maildir / "envelope").mkdir()
    model = Model(tmp_path)
    model.forget("m", "envelope")
    record(monkeypatch, model, lambda: None)
    with Maildir(os.fsencode(ledger.maildir)) as maildir:
        sidecars.write(maildir, b"1.a", Sidecar(b"s@x", (b"r@y",)))
    assert "1.a.json" in model.least().get("m/envelope", {})


def test_enqueue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was taken is there after a power cut, with its sidecar; never without it."""
    ledger = Ledger(tmp_path)
    model = Model(tmp_path)
    text = b"Return-Path: <trap@example.com>\nDelivered-To: k-trap@example.com\n\nhi\n"
    wrong: dict[str, None] = {}

    def check() -> None:
        for seen in model.views():
            for name, data in seen["m/new"].items():
                if data != text:
                    wrong[f"{name} is torn"] = None
                if not seen.get("m/envelope", {}).get(f"{name}.json"):
                    wrong[f"{name} has no sidecar"] = None

    record(monkeypatch, model, check)
    with Maildir(os.fsencode(ledger.maildir)) as maildir:
        for number in (1, 2):
            content = Sidecar(SENDER, (b"k1@y", b"k2@y"))
            writing.enqueue(maildir, content, [text[:30], text[30:]])
            assert len(model.least()["m/new"]) == number, "it was taken, and is not durable"
    assert not wrong, wrong


def test_enqueue_that_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed half-way must not come back without its sidecar: its headers name others."""
    ledger = Ledger(tmp_path)
    model = Model(tmp_path)
    alone: set[str] = set()

    def check() -> None:
        for seen in model.views():
            messages = {f"{name}.json" for name in seen["m/new"]}
            alone.update(messages - seen.get("m/envelope", {}).keys())

    record(monkeypatch, model, check)
    recorded = os.fsync
    failed: list[int] = []
    with Maildir(os.fsencode(ledger.maildir)) as maildir:

        def fsync(fd: int) -> None:
            if fd == maildir.new.fd and not failed:
                failed.append(fd)
                raise OSError(errno.EIO, "Input/output error")
            recorded(fd)

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(LocalError):
            writing.enqueue(maildir, Sidecar(SENDER, (b"k1@y",)), [b"hi\n"])
        assert not os.listdir(maildir.new.fd)
    assert not alone


def test_a_bounce_that_is_there_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run was killed between giving the bounce its name and making that durable."""
    ledger = Ledger(tmp_path)
    with Maildir(os.fsencode(ledger.maildir)) as maildir:
        name = QueueMailer(maildir, b"").send(b"told\n", SENDER, "id")
    assert name is not None
    model = Model(tmp_path)
    model.forget("m/new", os.fsdecode(name))
    record(monkeypatch, model, lambda: None)
    with Maildir(os.fsencode(ledger.maildir)) as maildir:
        QueueMailer(maildir, b"").send(b"told\n", SENDER, "id")
    assert os.fsdecode(name) in model.least()["m/new"]


def test_the_receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A K makes the receiver responsible: when it leaves, the message is on disk."""
    storage = MaildirDestination(os.fsencode(tmp_path / "m"))
    model = Model(tmp_path)
    torn: dict[str, None] = {}

    def check() -> None:
        for seen in model.views():
            torn.update((name, None) for name, data in seen["m/new"].items() if data is None)

    record(monkeypatch, model, check)
    taken = 0
    with contextlib.closing(storage):
        session = Session(storage, "test")
        for length in (3, 500, 300_000):
            recipients = (b"a@example.org", b"b@example.org")
            text = b"x" * length
            responses = session.receive(
                package_head(length) + text + package_tail(SENDER, recipients)
            )
            assert responses.count(b":Kok") == 2
            taken += 2
            kept = [d for d in model.least()["m/new"].values() if d and d.endswith(b"\n" + text)]
            assert len(kept) == 2
            assert len(model.least()["m/new"]) == taken
        session.close()
    assert not torn


def test_the_receiver_with_a_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each message is there whole with its sidecar, or not at all; with a K it is there."""
    destination = QueueDestination(os.fsencode(tmp_path / "m"))
    model = Model(tmp_path)
    wrong: dict[str, None] = {}

    def check() -> None:
        for seen in model.views():
            sidecars_there = seen["m/envelope"]
            for name, data in seen["m/new"].items():
                if data is None or sidecars_there.get(f"{name}.json") is None:
                    wrong[f"{name} is torn, or without its sidecar"] = None

    record(monkeypatch, model, check)
    taken = 0
    with contextlib.closing(destination):
        session = Session(destination, "test")
        for length in (3, 500, 300_000):
            package = package_head(length) + b"x" * length
            package += package_tail(SENDER, (b"a@example.org", b"b@example.org"))
            assert session.receive(package * 2).count(b":Kok") == 4
            taken += 2
            assert len(model.least()["m/new"]) == len(model.least()["m/envelope"]) == taken
        session.close()
    assert not wrong


def test_a_queue_that_cannot_be_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No K; and what is taken back never leaves a message without its sidecar."""
    destination = QueueDestination(os.fsencode(tmp_path / "m"))
    model = Model(tmp_path)
    wrong: dict[str, None] = {}

    def check() -> None:
        for seen in model.views():
            without = {f"{name}.json" for name in seen["m/new"]} - seen["m/envelope"].keys()
            wrong.update(dict.fromkeys(without))

    record(monkeypatch, model, check)
    real = os.fsync
    new = os.stat(tmp_path / "m" / "new").st_ino
    failures = [1]

    def fsync(fd: int) -> None:
        if os.fstat(fd).st_ino == new and failures:
            failures.pop()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    package = package_head(3) + b"hi\n" + package_tail(SENDER, (b"a@b", b"c@d"))
    with contextlib.closing(destination):
        session = Session(destination, "test")
        assert session.receive(package).count(b":Z451") == 2
        assert not os.listdir(tmp_path / "m" / "new")
        assert session.receive(package).count(b":Kok") == 2
    assert not wrong


def test_the_receiver_with_eight_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They share fsyncs of the directory: no K may stand on one that had begun before."""
    rng = random.Random(1)
    missing: list[bytes] = []
    taken = 0
    with Server(tmp_path / "m", listen=("127.0.0.1", 0)) as server:
        model = Model(tmp_path)
        lock = record(
            monkeypatch, model, lambda: None, pause=lambda: time.sleep(rng.random() * 0.003)
        )

        def send(number: int) -> None:
            nonlocal taken
            assert server.address is not None
            with socket.create_connection(server.address, DEADLINE_S) as client:
                reader = ResponseReader()
                for turn in range(12):
                    text = b"%d.%d" % (number, turn)
                    client.sendall(
                        package_head(len(text)) + text + package_tail(SENDER, (b"a@example.org",))
                    )
                    while (response := reader.next()) is None:
                        reader.feed(client.recv(4096))
                    assert response.status is Status.ACCEPTED
                    with lock:
                        taken += 1
                        kept = [d for d in model.least()["m/new"].values() if d is not None]
                        if not any(data.endswith(b"\n" + text) for data in kept):
                            missing.append(text)

        with serving_thread(server):
            clients = [threading.Thread(target=send, args=(number,)) for number in range(8)]
            for client in clients:
                client.start()
            for client in clients:
                client.join(DEADLINE_S)
        monkeypatch.undo()
    assert taken == 8 * 12
    assert not missing


def test_a_new_maildir_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mail in a directory whose own name a power cut takes is lost."""
    model = Model(tmp_path)
    record(monkeypatch, model, lambda: None)
    writing.create(os.fsencode(tmp_path / "m"))
    assert {"m", "m/new", "m/tmp", "m/cur"} <= model.least().keys()


def test_removals_are_durable_a_second_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow link few messages go in a second; they must not all come back after a cut."""
    ledger = Ledger(tmp_path)
    name = ledger.add(b"k1@y")
    model = Model(tmp_path)
    record(monkeypatch, model, lambda: None)
    clock = FakeClock()
    route = Route(os.fsencode(ledger.maildir), TcpEndpoint("127.0.0.1", 1))
    with Maildir(os.fsencode(ledger.maildir)) as maildir:
        candidates = maildir.scan()
        report = Report(io.StringIO(), io.StringIO())
        synced = threading.Event()
        settler = settle.Settler(maildir, route, report, clock, clock, None, synced.set)

        queued = prepare(maildir, route, *candidates[0])
        assert isinstance(queued, QueuedMessage)
        queued.answers = [Response(Status.ACCEPTED, b"ok")]
        settler.settle(queued)
        assert name in model.least()["m/new"]
        clock.advance(removals.SYNC_S)
        settler.tick()
        assert synced.wait(30)
        assert name not in model.least()["m/new"]
