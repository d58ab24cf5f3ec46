"""A model of maildir, sidecars, server and forwarder, driven at random, with crashes.

The real forwarder works on a real maildir; the server and the clock are in memory.
Between the runs, and in the middle of them, a user does what users do to files.
What must hold after each step, whatever came before, the model knows by itself:

    lost           no recipient who is owed a message is without it, unless the server has
                   accepted it, it is still owed to them on disk (by the sidecar, else by
                   the lines on top), he is listed in the failed maildir, or has a bounce
    misdelivered   nobody gets what he was never owed
    miscredited    nobody is reported as accepted whose answer was not K, or as failed
                   whose answer was
    doubled        nobody gets again what he has, or was refused, unless it was reported as
                   in doubt, the run crashed, or the user changed the file or moved it back

A crash is an exception at a call that changes files, before, after or in the middle
of it; from there on nothing can be changed, and nothing in memory is used again.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from maildirqmtp.forwarder import removals
from maildirqmtp.forwarder.forwarder import Forwarder
from maildirqmtp.forwarder.queued_message import QueuedMessage
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import BounceMethod, BounceVia, Route
from maildirqmtp.maildir import maildir as maildir_module
from maildirqmtp.maildir import state
from maildirqmtp.maildir.cleanup import clean
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.transport.endpoint import Endpoint, TcpEndpoint
from tests.fakes import FakeClock, FakeServer, LateThread, broken, never_wait
from tests.helpers import Package, make_maildir, names

PREFIX = b"p-"
DAY_S = 86_400
LIFETIME_S = 14 * DAY_S
#: Messages above this many bytes are streamed here, so that small ones take both ways.
WHOLE_MAX = 400
PLACE = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

_MARK = re.compile(rb"<<(\d+)>>")
_ADDRESSEE = re.compile(rb"(?m)^(?:Delivered-To|Envelope-to): (.*)$")
_FINAL = re.compile(rb"(?mi)^Final-Recipient: [^;]*; *(.*?)\r?$")


class Crash(BaseException):
    """The process is gone."""


class Crasher:
    """Dies at the nth call that changes files; what is done `aside` is somebody else's doing."""

    NAMES = ("unlink", "link", "rename", "fsync", "write", "mkdir", "utime")

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.dead = False
        self.points = 0
        self._left = 0
        self._moment = ""
        self._running = False
        for name in self.NAMES:
            patch.setattr(os, name, self._wrapped(name, getattr(os, name)))
        patch.setattr(removals, "_in_thread", LateThread)

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if not self._running:
                return real(*arguments, **options)
            if self.dead:
                raise Crash
            self.points += 1
            self._left -= 1
            if self._left == 0:
                self.dead = True
                if self._moment == "after":
                    with contextlib.suppress(OSError):
                        real(*arguments, **options)
                elif self._moment == "amid" and name == "write":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                raise Crash
            return real(*arguments, **options)

        return call

    @contextlib.contextmanager
    def running(self, nth: int, moment: str) -> Iterator[None]:
        """Count the calls of a with block; die at the nth, if there are so many."""
        self.dead, self._left, self._moment, self._running = False, nth, moment, True
        try:
            yield
        finally:
            self._running = False

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Let the with block be somebody else's doing."""
        before, self._running = self._running, False
        try:
            yield
        finally:
            self._running = before


@dataclass
class Content:
    """One content of one file, by its mark: who was ever owed it and what became of it."""

    base: str
    owed: set[bytes]
    written_s: float
    alive: bool = True
    said: dict[bytes, str] = field(default_factory=dict)
    accepted: set[bytes] = field(default_factory=set)
    settled: set[bytes] = field(default_factory=set)
    may_come_again: Counter[bytes] = field(default_factory=Counter)


@dataclass
class Behaviour:
    """How the server behaves in a run: `kind` begins after `after` responses of a connection."""

    fates: str
    once: bool
    kind: str
    after: int
    takes: list[int]


class ModelReport(Report):
    """Tells the model what is claimed."""

    def __init__(self, model: Model) -> None:
        super().__init__(io.StringIO(), io.StringIO(), 1, clock=model.clock)
        self._model = model

    def accepted(self, queued: QueuedMessage) -> None:
        """See `Report`."""
        for index in range(len(queued.recipients)):
            self._model.claimed(queued, index, "K")
        super().accepted(queued)

    def one_accepted(self, queued: QueuedMessage, index: int, text: str) -> None:
        """See `Report`."""
        self._model.claimed(queued, index, "K")
        super().one_accepted(queued, index, text)

    def failed(self, queued: QueuedMessage, index: int, text: str, where: bytes) -> None:
        """See `Report`."""
        self._model.claimed(queued, index, "DZ")
        super().failed(queued, index, text, where)

    def bounced(self, queued: QueuedMessage, index: int, text: str) -> None:
        """See `Report`."""
        self._model.claimed(queued, index, "DZ")
        super().bounced(queued, index, text)

    def in_doubt(self, queued: QueuedMessage, silent: bool = False) -> None:
        """See `Report`."""
        content = self._model.last_sent.get(base_of(queued.message.name))
        for index in queued.doubtful:
            assert content is not None, "in doubt, and never sent"
            content.may_come_again[PREFIX + queued.recipients[index]] += 1
        super().in_doubt(queued)


def base_of(name: bytes | str) -> str:
    """Return a message's name without its flags."""
    return os.fsdecode(name).partition(":")[0]


def mark_of(text: bytes) -> int:
    """Return which content this is: its last mark."""
    return int(_MARK.findall(text)[-1])


addresses = st.builds(
    lambda ours, number: (PREFIX if ours else b"q-") + b"r%d@y" % number,
    st.booleans() | st.just(True),
    st.integers(0, 3),
)
several = st.lists(addresses, min_size=1, max_size=4, unique=True)
fillers = st.sampled_from([0, 0, 0, 500])
messages = st.tuples(st.sampled_from(["top", "exim", "sidecar"]), several, fillers)
picks = st.integers(0, 20)
changes = st.sampled_from(["append", "replace", "delete", "move", "rename", "flag"])
behaviours = st.builds(
    Behaviour,
    st.sampled_from(["K", "K", "D", "Z", "KD", "KZ", "ZDK", "DKKZ", "ZZD"]),
    st.sampled_from([False, False, True]),
    st.sampled_from(["well", "well", "well", "close", "reset", "rubbish", "silence", "poison"]),
    st.integers(0, 5),
    st.lists(st.sampled_from([0, 1, 7, 60, 300]), max_size=8),
)


class Model(RuleBasedStateMachine):
    """See the module's head."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="model-", dir=PLACE))
        self.path = make_maildir(self.root / "M")
        self.now = float(int(time.time()))
        self.clock = FakeClock()
        self.patch = pytest.MonkeyPatch()
        never_wait(self.patch, self.clock)
        self.patch.setattr(maildir_module, "WHOLE_MAX", WHOLE_MAX)
        self.crasher = Crasher(self.patch)
        self.contents: dict[int, Content] = {}
        self.last_sent: dict[str, Content] = {}
        self.sent_now: set[tuple[int, bytes]] = set()
        self.options: dict[str, Any] = {}
        self.ever_crashed = False
        self.connects = 0
        self.packages = 0
        self.amid: tuple[int, str, int] | None = None
        self.behaviour = Behaviour("K", False, "well", 0, [])

    def teardown(self) -> None:
        """Remove everything."""
        self.patch.undo()
        shutil.rmtree(self.root)

    @initialize(
        window=st.sampled_from([1, 2, 8]),
        include_cur=st.booleans(),
        keep_sent=st.booleans(),
        bounce=st.booleans(),
    )
    def choose(self, window: int, include_cur: bool, keep_sent: bool, bounce: bool) -> None:
        """Choose the route."""
        self.options = {
            "window_messages": window,
            "include_cur": include_cur,
            "sent": bytes(self.root / "Sent") if keep_sent else None,
            "bounce": bounce,
            "bounce_via": BounceVia(BounceMethod.MAILDIR, bytes(self.root / "Bounces")),
            "max_bounces": 3,
            "lifetime_s": LIFETIME_S,
        }

    # The writer and other people

    def _new_content(self, base: str, owed: set[bytes], text: bytes) -> bytes:
        number = len(self.contents)
        self.contents[number] = Content(base, owed, self.now + number / 1e6)
        return text + b"<<%d>>\n" % number

    def _put(self, path: Path, text: bytes) -> None:
        path.write_bytes(text)
        mtime_ns = int(self.contents[mark_of(text)].written_s * 1e9)
        os.utime(path, ns=(mtime_ns, mtime_ns))

    def _sidecar(self, base: str, *recipients: bytes) -> None:
        (self.path / "envelope").mkdir(exist_ok=True)
        content = {"version": 1, "sender": "s@x", "recipients": [r.decode() for r in recipients]}
        (self.path / "envelope" / f"{base}.json").write_text(json.dumps(content))

    def _add(self, top: bytes, owed: list[bytes], fill: int) -> None:
        number = len(self.contents)
        base = f"{1_700_000_000 + number}.M{number}.test"
        text = b"Return-Path: <s@x>\n" + top + b"\n\n" + b"x" * fill + b"\n"
        self._put(self.path / "new" / base, self._new_content(base, set(owed), text))

    @rule(messages=st.lists(messages, min_size=1, max_size=6))
    def add(self, messages: list[tuple[str, list[bytes], int]]) -> None:
        """Messages come: with one address on top, several as Exim writes them, or a sidecar.

        What stands on top of one with a sidecar must never be believed.
        """
        for how, recipients, fill in messages:
            if how == "top":
                self._add(b"Delivered-To: " + recipients[0], recipients[:1], fill)
            elif how == "exim":
                self._add(b"Envelope-to: " + b", ".join(recipients), recipients, fill)
            else:
                number = len(self.contents)
                self._sidecar(f"{1_700_000_000 + number}.M{number}.test", *recipients)
                self._add(b"Delivered-To: p-nobody@y", recipients, fill)

    def _files(self, *folders: str) -> list[Path]:
        return [
            self.path / folder / name
            for folder in folders
            for name in names(self.path / folder)
            if not name.startswith(".")
        ]

    def _tell(self, text: bytes) -> None:
        """A file has moved under us: what of it is under way may be sent again."""
        if not self.options["include_cur"]:
            content = self.contents[mark_of(text)]
            content.may_come_again.update(
                r for c, r in self.sent_now if self.contents[c] is content
            )

    def _change(self, how: str, pick: int) -> None:
        """Do something to a file in new/ or cur/."""
        files = self._files("new", "cur")
        if not files:
            return
        path = files[pick % len(files)]
        base, text = base_of(path.name), path.read_bytes()
        if how == "move" or how == "flag":
            self._tell(text)
            flags = ":2," if how == "move" or ":" not in path.name else ":2,S"
            path.rename(self.path / "cur" / (base + flags))
            return
        listed = self._listed(path)
        content = self.contents[mark_of(text)]
        if how == "rename":
            if (self.path / "envelope" / f"{base}.json").exists():
                return  # whoever does that to a message with a sidecar takes its envelope away
            number = len(self.contents)
            content.may_come_again.update(content.owed)
            path = path.rename(self.path / "new" / f"{1_700_000_000 + number}.R{number}.test")
            how = "append"
        content.alive = False
        if how == "delete":
            path.unlink()
        elif how == "append":
            failed = self.path / ".Failed"
            if (failed / "new" / base).exists() and path.samefile(failed / "new" / base):
                # One file of two names: what he is listed for there has grown as well.
                listed |= self._listed_in(failed / "envelope" / f"{base}.json")
            self._put(path, self._new_content(base_of(path.name), listed, text))
        else:
            other = self.path / "tmp" / "other"
            self._put(other, self._new_content(base, listed, text.replace(b"x", b"y")))
            other.rename(path)

    @precondition(lambda self: bool(self._files("new", "cur")))
    @rule(how=changes, pick=picks)
    def change(self, how: str, pick: int) -> None:
        """Somebody does something to a file between the runs."""
        self._change(how, pick)

    @rule(days=st.sampled_from([1, 15]))
    def wait(self, days: int) -> None:
        """Time passes."""
        self.now += days * DAY_S

    @precondition(lambda self: bool(names(self.path / ".Failed" / "new")))
    @rule(pick=picks)
    def move_back(self, pick: int) -> None:
        """Somebody moves a failed message back, its sidecar first."""
        failed = self.path / ".Failed"
        movable = [name for name in names(failed / "new") if not self._is_there(name)]
        if movable:
            name = movable[pick % len(movable)]
            sidecar = failed / "envelope" / f"{name}.json"
            content = self.contents[mark_of((failed / "new" / name).read_bytes())]
            if base_of(content.base) != name or not content.alive:
                return
            content.may_come_again.update(self._listed_in(sidecar))
            content.settled -= self._listed_in(sidecar)
            (self.path / "envelope").mkdir(exist_ok=True)
            sidecar.rename(self.path / "envelope" / f"{name}.json")
            (failed / "new" / name).rename(self.path / "new" / name)

    def _is_there(self, base: str) -> bool:
        return any(base_of(path.name) == base for path in self._files("new", "cur"))

    # The server

    def connect(self, server: Endpoint, timeout_s: float) -> FakeServer:
        """Reach the server."""
        self.connects += 1
        assert self.connects < 300, "it never stops"
        said = 0
        over = False

        def serve(line: FakeServer, package: Package) -> None:
            nonlocal said, over
            self._received(package)
            if over:
                return
            number = mark_of(package.text)
            poison = self.behaviour.kind == "poison" and number == self.behaviour.after
            answers = [] if poison else self._answers(number, package)
            for answer, recipients in answers:
                if self.behaviour.kind not in ("well", "poison") and said >= self.behaviour.after:
                    break
                said += 1
                for recipient in recipients:
                    self._say(number, recipient, answer)
                line.respond(answer.encode() + b"because")
            else:
                if not poison:
                    return
            over = True
            if self.behaviour.kind == "rubbish":
                line.say(b"3:Xok,")
            elif self.behaviour.kind == "reset":
                line.say(broken())
            elif self.behaviour.kind != "silence":
                line.hang_up()

        return FakeServer(serve, takes=self.behaviour.takes)

    def _answers(self, number: int, package: Package) -> list[tuple[str, tuple[bytes, ...]]]:
        fates = self.behaviour.fates
        each = [fates[(number + r[1]) % len(fates)] for r in package.recipients]
        if self.behaviour.once:
            worst = min(each)  # D before K before Z
            return [("D" if "D" in each else "Z" if "Z" in each else worst, package.recipients)]
        return [(fate, (r,)) for fate, r in zip(each, package.recipients, strict=True)]

    def _received(self, package: Package) -> None:
        self.packages += 1
        number = mark_of(package.text)
        content = self.contents[number]
        self.last_sent[content.base] = content
        for recipient in package.recipients:
            full = PREFIX + recipient
            who = f"{content.base} <<{number}>> to {full!r}, of whom was said {content.said}"
            assert full in content.owed, f"misdelivered: {who}"
            if full in content.settled and content.alive:
                assert content.may_come_again[full] > 0, f"doubled: {who}"
                content.may_come_again[full] -= 1
                content.settled.discard(full)
            self.sent_now.add((number, full))
        if self.amid is not None and self.packages == self.amid[0]:
            with self.crasher.aside():
                self._change(*self.amid[1:])

    def _say(self, number: int, recipient: bytes, answer: str) -> None:
        content = self.contents[number]
        full = PREFIX + recipient
        content.said[full] = answer
        if answer == "K":
            content.accepted.add(full)
        if answer != "Z" or self._is_given_up(content):
            content.settled.add(full)

    def _is_given_up(self, content: Content) -> bool:
        """Say whether a deferral is a failure now: the state file has had one for a day."""
        if self.now - content.written_s < LIFETIME_S:
            return False
        file = self.path / os.fsdecode(state.NAME)
        first = json.loads(file.read_text())["first_deferred"] if file.exists() else {}
        return content.base in first and self.now - float(first[content.base]) >= DAY_S

    def claimed(self, queued: QueuedMessage, index: int, answers: str) -> None:
        """The forwarder reports an outcome."""
        content = self.last_sent[base_of(queued.message.name)]
        answer = content.said.get(PREFIX + queued.recipients[index])
        assert answer is not None, f"miscredited: {answers} for {content}"
        assert answer in answers, f"miscredited: {answers} for {content}"

    # A run

    @precondition(lambda self: bool(self._files("new")))
    @rule(how=behaviours)
    def run(self, how: Behaviour) -> None:
        """A run."""
        self._run(how, None, "", None)

    @precondition(lambda self: bool(self._files("new")))
    @rule(
        how=behaviours,
        crash=st.integers(1, 30),
        moment=st.sampled_from(["before", "after", "amid"]),
    )
    def run_to_death(self, how: Behaviour, crash: int, moment: str) -> None:
        """A run that dies, if it comes so far."""
        self._run(how, crash, moment, None)

    @precondition(lambda self: bool(self._files("new")))
    @rule(how=behaviours, amid=st.tuples(st.integers(1, 4), changes, picks))
    def run_with_company(self, how: Behaviour, amid: tuple[int, str, int]) -> None:
        """A run with somebody at the files in the middle of it."""
        self._run(how, None, "", amid)

    @precondition(lambda self: bool(self._files("new")))
    @rule()
    def run_well(self) -> None:
        """A run against a server that takes everything: nothing of ours is left."""
        self._run(Behaviour("K", False, "well", 0, []), None, "", None)
        for path in self._files("new", *(("cur",) if self.options["include_cur"] else ())):
            listed = self._listed(path)
            assert not any(r.startswith(PREFIX) for r in listed), f"stuck: {path.name} {listed}"

    def _run(
        self, how: Behaviour, crash: int | None, moment: str, amid: tuple[int, str, int] | None
    ) -> None:
        self.behaviour, self.amid, self.packages, self.connects = how, amid, 0, 0
        self.sent_now.clear()
        self.last_sent.clear()
        before = set(os.listdir("/proc/self/fd"))
        try:
            with self.crasher.running(crash or 0, moment):
                self._flush()
        except Crash:
            self.ever_crashed = True
            for fd in set(os.listdir("/proc/self/fd")) - before:
                with contextlib.suppress(OSError):
                    os.close(int(fd))
            for number, recipient in self.sent_now:
                self.contents[number].may_come_again[recipient] += 1
        assert set(os.listdir("/proc/self/fd")) == before, "descriptors are left open"

    def _flush(self) -> None:
        """Do what `batch.flush` does."""
        route = Route(bytes(self.path), TcpEndpoint("mx"), prefix=PREFIX, **self.options)
        with Maildir(route.maildir) as opened:
            opened.lock()
            candidates = opened.scan(route.include_cur)
            forwarder = Forwarder(
                route, opened, ModelReport(self), self.connect, self.clock, lambda: self.now
            )
            with contextlib.closing(forwarder):
                forwarder.run_batch(candidates)
            clean(opened, self.now)

    # What must hold

    def _listed_in(self, sidecar: Path) -> set[bytes]:
        return {r.encode() for r in json.loads(sidecar.read_text())["recipients"]}

    def _listed(self, path: Path) -> set[bytes]:
        """Return who is owed a file, by what is on disk."""
        sidecar = self.path / "envelope" / f"{base_of(path.name)}.json"
        if sidecar.exists():
            return self._listed_in(sidecar)
        found = _ADDRESSEE.search(path.read_bytes())
        assert found is not None
        return {address.strip() for address in found[1].split(b",")}

    @invariant()
    def nothing_is_lost(self) -> None:
        """The promise."""
        have: dict[int, set[bytes]] = {}
        for path in self._files("new", "cur"):
            have.setdefault(mark_of(path.read_bytes()), set()).update(self._listed(path))
        failed = self.path / ".Failed"
        for name in names(failed / "new"):
            listed = self._listed_in(failed / "envelope" / f"{name}.json")
            have.setdefault(mark_of((failed / "new" / name).read_bytes()), set()).update(listed)
        for name in names(self.root / "Bounces" / "new"):
            text = (self.root / "Bounces" / "new" / name).read_bytes()
            told = {PREFIX + r for r in _FINAL.findall(text)}
            have.setdefault(mark_of(text), set()).update(told)
        for number, content in self.contents.items():
            if content.alive:
                without = content.owed - content.accepted - have.get(number, set())
                assert not without, f"lost: <<{number}>> {content.base}: {without}"

    @precondition(lambda self: self.options.get("sent"))
    @invariant()
    def what_was_sent_is_kept(self) -> None:
        """With --sent, who was accepted is never the reason for a message to be nowhere."""
        found = self._files("new", "cur")
        found += [p for box in (self.root / "Sent", self.path / ".Failed") for p in files_in(box)]
        marks = {mark_of(path.read_bytes()) for path in found}
        for number, content in self.contents.items():
            if content.alive and all(content.said.get(r) == "K" for r in content.owed):
                assert number in marks, f"not kept: <<{number}>> {content.base}"

    @precondition(lambda self: not self.ever_crashed)
    @invariant()
    def no_rubbish(self) -> None:
        """Only a crash may leave anything in tmp/."""
        for box in (self.path, self.path / ".Failed", self.root / "Sent", self.root / "Bounces"):
            assert not names(box / "tmp")


def files_in(box: Path) -> list[Path]:
    """Return the messages of a maildir that may not be there."""
    return [box / "new" / name for name in names(box / "new") if not name.startswith(".")]


def machine(examples: int, *, derandomize: bool) -> None:
    """Run the model."""
    run_state_machine_as_test(
        Model,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            derandomize=derandomize,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(600)
def test_no_history_loses_a_message() -> None:
    """Whatever order things happen in."""
    machine(400, derandomize=True)


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_no_history_loses_a_message_however_many_are_tried() -> None:
    """Other histories with each run."""
    machine(6_000, derandomize=False)
