"""Power cuts, for real: what was promised before is there when the machine comes up again."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from maildirqmtp.qmtp.protocol import package_head, package_tail
from tests.faults.disk import Disk, NoDisk
from tests.faults.ledger import SENDER, Ledger, note_figures, serve, view
from tests.helpers import DEADLINE_S, command, make_maildir, serving

#: Messages in flight, in the runs of the forwarder.
WINDOW = 16
#: Removals that may be undone by a cut: a batch that is synced, and one that gathers.
UNSYNCED = 2_000


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """A disk whose power can be cut."""
    try:
        made = Disk(tmp_path_factory.mktemp("power"))
    except NoDisk as error:
        pytest.skip(f"POWER CUTS ARE NOT TESTED, for no disk can be mounted here: {error}")
    try:
        yield made
    finally:
        made.close()


def test_a_disk_comes_up_again_beside_a_container(tmp_path: Path) -> None:
    """Who is started meanwhile has the disk mounted, too; it stayed cut for all that came after."""
    try:
        disk = Disk(tmp_path)
    except NoDisk as error:
        pytest.skip(f"POWER CUTS ARE NOT TESTED, for no disk can be mounted here: {error}")
    with contextlib.closing(disk):
        container = ["unshare", "--mount", "sh", "-c", "echo; exec sleep 600"]
        with subprocess.Popen(container, stdout=subprocess.PIPE) as beside:
            try:
                assert beside.stdout is not None
                assert beside.stdout.readline() == b"\n"
                (disk.path / "durable").write_text("text")
                disk.sync()
                disk.cut()
                disk.remount()
                assert (disk.path / "durable").read_text() == "text"
                (disk.path / "more").touch()
            finally:
                beside.kill()


def sizes(normal: int, long: int) -> list[object]:
    """Return the seeds of every run of the tests, and those of a campaign."""
    marks = [pytest.mark.long, pytest.mark.timeout(1_200)]
    return [
        pytest.param(range(normal), id=f"{normal}-cuts"),
        pytest.param(range(normal, normal + long), id=f"{long}-cuts", marks=marks),
    ]


@dataclass
class Moment:
    """When to cut: at this answer of the server, and then so many seconds later."""

    disk: Disk
    left: int
    delay_s: float
    pid: int = 0
    _cut: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, count: int) -> None:
        """Count the answers; when there are enough of them, cut and kill."""
        pid = self._take_pid() if count >= self.left else 0
        if pid:
            # Not to wait for anything: to hit another point of the settling each time.
            until = time.perf_counter() + self.delay_s
            while time.perf_counter() < until:
                pass
            self.disk.cut()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self._cut.set()

    def _take_pid(self) -> int:
        with self._lock:
            pid, self.pid = self.pid, 0
        return pid

    def passed(self) -> None:
        """Have it cut now, where it was not: the process has ended before."""
        if self._take_pid():
            self.disk.cut()
        else:
            assert self._cut.wait(DEADLINE_S)


def fill(ledger: Ledger, rng: random.Random, count: int) -> int:
    """Add messages with every kind of answer; return how many recipients there are."""
    total = 0
    for _ in range(count):
        several = rng.random() < 0.4
        kinds = rng.choices("kydz", (6, 1, 2, 1), k=rng.randrange(1, 5) if several else 1)
        recipients = [f"{kind}{n}@example.net".encode() for n, kind in enumerate(kinds)]
        ledger.add(*recipients, length=rng.choice((10, 2_000, 9_000)), with_sidecar=several)
        total += len(recipients)
    return total


def start(ledger: Ledger, server: str, *flags: str | Path) -> subprocess.Popen[str]:
    """Start the forwarder on the ledger's maildir."""
    return subprocess.Popen(
        [
            *command(),
            *("--quiet", "--window", str(WINDOW)),
            *map(str, flags),
            *(str(ledger.maildir), server),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], *codes: int) -> None:
    """Wait for its end, which has to be one of these."""
    error = process.communicate(timeout=60)[1]
    assert process.returncode in codes, error
    assert "Traceback" not in error


def policy(folder: Path, number: int) -> list[str]:
    """Return the flags of one of the ways that outcomes can go."""
    return [
        [],
        ["--sent", str(folder / "sent")],
        ["--bounce", "--bounce-via", f"maildir:{folder / 'bounces'}"],
        ["--bounce", "--bounce-via", "server"],
    ][number % 4]


@pytest.mark.parametrize("seeds", sizes(12, 200))
def test_nothing_is_lost_when_the_forwarder_loses_power(disk: Disk, seeds: range) -> None:
    """Everybody was accepted, or is still owed it, or has failed with a reason; nobody else."""
    duplicates = left = 0
    for seed in seeds:
        rng = random.Random(seed)
        folder = disk.path / f"forward{seed}"
        ledger = Ledger(folder)
        total = fill(ledger, rng, 60)
        if rng.random() < 0.5:
            make_maildir(ledger.maildir / ".Failed")
        flags = policy(folder, seed)
        archive = "--sent" in flags
        disk.sync()
        moment = Moment(disk, rng.randrange(1, total), rng.random() ** 2 * 0.01)
        with serving(serve(ledger, moment)) as server:
            process = start(ledger, server.address, *flags)
            moment.pid = process.pid
            finish(process, 0, 111, -signal.SIGKILL)
            moment.passed()
            disk.remount()
            ledger.judge(view(folder), archive)
            left += len(list((ledger.maildir / "new").iterdir()))
            # The machine is up again: the next runs finish the job, and leave it durable.
            for _ in range(2):
                finish(start(ledger, server.address, *flags), 0, 111)
            disk.cut()
            disk.remount()
            after = view(folder)
            ledger.judge(after, archive)
            assert not after["m/new"].keys() & ledger.done_with(), "durable at a clean end"
        assert ledger.duplicates <= 4 * (WINDOW + UNSYNCED)
        duplicates += ledger.duplicates
        shutil.rmtree(folder)
    note_figures("power", cuts=2 * len(seeds), lost=0, duplicates=duplicates, left=left)


@pytest.mark.parametrize("seeds", sizes(3, 20))
def test_removals_in_batches_lose_nothing(disk: Disk, seeds: range) -> None:
    """A sidecar must outlive its message, also where a thousand removals share an fsync."""
    duplicates = 0
    for seed in seeds:
        rng = random.Random(seed)
        folder = disk.path / f"batch{seed}"
        ledger = Ledger(folder)
        count = 1_400
        for number in range(count):
            ledger.add(b"k@example.net", with_sidecar=number % 2 == 0)
        disk.sync()
        moment = Moment(disk, rng.randrange(900, count), rng.random() ** 2 * 0.02)
        with serving(serve(ledger, moment)) as server:
            process = start(ledger, server.address)
            moment.pid = process.pid
            finish(process, 0, 111, -signal.SIGKILL)
            moment.passed()
            disk.remount()
            ledger.judge(view(folder))
            finish(start(ledger, server.address), 0)
            ledger.judge(view(folder))
        assert ledger.duplicates <= WINDOW + UNSYNCED
        duplicates += ledger.duplicates
        shutil.rmtree(folder)
    note_figures("power-batches", cuts=len(seeds), lost=0, duplicates=duplicates)


#: Clients at once, in some of the runs of the receiver.
CLIENTS = 8


#: Where the receiver puts the mail: into a maildir, or into a queue.
PLACES = [pytest.param((), id="maildir"), pytest.param(("--queue",), id="queue")]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("seeds", sizes(4, 50))
def test_nothing_is_lost_when_the_receiver_loses_power(
    disk: Disk, seeds: range, place: tuple[str, ...]
) -> None:
    """A K is a promise: what it was said for is there, whole, when the machine comes up."""
    promised = 0
    for seed in seeds:
        rng = random.Random(seed)
        folder = disk.path / f"receive{seed}"
        with _receiver(disk, folder, rng, place) as (process, address):
            with socket.create_connection(address) as client:
                texts = _talk(client, rng, rng.randrange(1, 12))
            disk.cut()
            process.kill()
        disk.remount()
        _judge(folder, texts, seed)
        promised += len(texts)
        shutil.rmtree(folder)
    note_figures("power-receiver", place=place, cuts=len(seeds), lost=0, promised=promised)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("seeds", sizes(6, 80))
def test_eight_clients_lose_nothing_when_the_receiver_loses_power(
    disk: Disk, seeds: range, place: tuple[str, ...]
) -> None:
    """They share threads and fsyncs; each K stands for its own message all the same."""
    promised = cut_off = 0
    for seed in seeds:
        rng = random.Random(seed)
        folder = disk.path / f"eight{seed}"
        with _receiver(disk, folder, rng, place) as (process, address):
            texts = _talk_together(address, disk, rng)
            process.kill()
        disk.remount()
        _judge(folder, texts, seed)
        promised += len(texts)
        # What was cut off is either whole or not there: nothing else may be in new/.
        files = list((folder / "m" / "new").iterdir())
        assert all(file.read_bytes().endswith(b"\nend\n") for file in files)
        stored = sum(len(_sidecar_recipients(file)) for file in files) if place else len(files)
        cut_off += stored - len(texts)
        shutil.rmtree(folder)
    figures = {"cuts": len(seeds), "promised": promised, "in_doubt": cut_off}
    note_figures("power-eight", place=place, lost=0, **figures)


@contextlib.contextmanager
def _receiver(
    disk: Disk, folder: Path, rng: random.Random, place: tuple[str, ...]
) -> Iterator[tuple[subprocess.Popen[str], tuple[str, int]]]:
    """Run a receiver into `m` of a new folder; its process and its address."""
    folder.mkdir()
    if rng.random() < 0.5:
        make_maildir(folder / "m")  # else the receiver makes it
    disk.sync()
    with subprocess.Popen(
        [*command("qmtpmaildir"), "--listen", "127.0.0.1:0", *place, str(folder / "m")],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        found = re.search(r":(\d+)$", process.stderr.readline().rstrip())
        assert found is not None
        yield process, ("127.0.0.1", int(found[1]))


def _judge(folder: Path, texts: list[tuple[bytes, bytes]], seed: int) -> None:
    """Everything that was promised is there, once."""
    kept = [(file, file.read_bytes()) for file in (folder / "m" / "new").iterdir()]
    if (folder / "m" / "envelope").exists():
        recipients = {file: _sidecar_recipients(file) for file, _ in kept}
    else:
        recipients = {file: data.split(b"\n")[1:2] for file, data in kept}
    for text, recipient in texts:
        wanted = (recipient, b"Delivered-To: " + recipient)
        copies = [
            file
            for file, data in kept
            if data.endswith(b"\n" + text) and any(r in wanted for r in recipients[file])
        ]
        assert len(copies) == 1, f"seed {seed}: {len(copies)} of {text[:20]!r}"


def _sidecar_recipients(message: Path) -> list[bytes]:
    """Return the recipients in a message's sidecar, which has to be there, and whole."""
    sidecar = message.parent.parent / "envelope" / f"{message.name}.json"
    return list(map(os.fsencode, json.loads(sidecar.read_text())["recipients"]))


def _talk_together(
    address: tuple[str, int], disk: Disk, rng: random.Random
) -> list[tuple[bytes, bytes]]:
    """Have all clients send without a pause until the power is cut; return what got a K by then.

    A K that was said after the cut counts as well where the client has it: the disk says that
    nothing can be written from the cut on.
    """
    promised: list[tuple[bytes, bytes]] = []
    after = rng.randrange(5, 150)
    lock, cut = threading.Lock(), threading.Event()

    def send(number: int) -> None:
        own = random.Random(number)
        with (
            contextlib.suppress(OSError),
            socket.create_connection(address) as client,
            client.makefile("rb") as answers,
        ):
            client.settimeout(DEADLINE_S)
            for burst in range(200):
                data, asked = _burst(own, b"%d.%d" % (number, burst), b"\nend\n")
                client.sendall(data)
                for who in asked:
                    if not _is_k(answers.read):
                        return
                    with lock:
                        promised.append(who)
                        if len(promised) == after:
                            disk.cut()
                            cut.set()

    threads = [threading.Thread(target=send, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert cut.is_set()
    return promised


def _is_k(read: Callable[[int], bytes]) -> bool:
    """Read an answer; False where it is not a K, or the server is gone."""
    head = b""
    while not head.endswith(b":"):
        byte = read(1)
        if not byte:
            return False
        head += byte
    return read(int(head[:-1]) + 1).startswith(b"K")


def _talk(client: socket.socket, rng: random.Random, bursts: int) -> list[tuple[bytes, bytes]]:
    """Send bursts of packages; return what got a K, in full view of this client."""
    promised: list[tuple[bytes, bytes]] = []
    with client.makefile("rb") as answers:
        for burst in range(bursts):
            data, asked = _burst(rng, b"%d" % burst)
            client.sendall(data)
            for who in asked:
                assert _is_k(answers.read)
                promised.append(who)
    return promised


def _burst(
    rng: random.Random, name: bytes, end: bytes = b""
) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Return some packages, and what is owed an answer: text and recipient, in order."""
    data, asked = b"", []
    for number in range(rng.randrange(1, 5)):
        text = b"Subject: %b.%d\n\n" % (name, number)
        text += b"x" * rng.choice((10, 5_000, 300_000)) + end
        to = [b"r%d@example.org" % n for n in range(rng.randrange(1, 4))]
        data += package_head(len(text)) + text + package_tail(SENDER, tuple(to))
        asked += [(text, recipient) for recipient in to]
    return data, asked


@pytest.mark.parametrize("seeds", sizes(4, 30))
def test_what_was_enqueued_survives_a_power_cut(disk: Disk, seeds: range) -> None:
    """Exit 0 says that the message is taken: it is there, with its sidecar, after a cut."""
    taken = 0
    for seed in seeds:
        rng = random.Random(seed)
        path = make_maildir(disk.path / f"enqueue{seed}" / "m")
        disk.sync()
        recipients = ["a@example.net", "b@example.net"]
        arguments = [*command(), "--enqueue", str(path), "--sender", "s@example.org"]
        arguments += [word for recipient in recipients for word in ("--recipient", recipient)]
        messages = {}
        for number in range(rng.randrange(1, 4)):
            text = b"Subject: %d\n\n" % number + b"x" * rng.choice((10, 200_000))
            done = subprocess.run(arguments, input=text, stdout=subprocess.PIPE, check=True)
            messages[done.stdout.decode().strip()] = text
        with subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        ) as process:
            # One more, which has not been taken when the power goes.
            assert process.stdin is not None
            process.stdin.write(b"Subject: half of it\n")
            disk.cut()
            process.kill()
        disk.remount()
        seen = view(path.parent)
        assert seen["m/new"] == messages
        for name in messages:
            data = seen["m/envelope"][f"{name}.json"]
            assert data is not None
            assert all(recipient.encode() in data for recipient in recipients)
        taken += len(messages)
        shutil.rmtree(path.parent)
    note_figures("power-enqueue", cuts=len(seeds), lost=0, taken=taken)
