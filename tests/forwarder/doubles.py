"""What tests of settling share: a maildir, a route, and answers to settle."""

from __future__ import annotations

import io
import os
from pathlib import Path
from threading import Event

from maildirqmtp.forwarder.kept import Kept
from maildirqmtp.forwarder.queued_message import QueuedMessage, prepare
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import Route
from maildirqmtp.forwarder.settle import Settler
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.state import State
from maildirqmtp.qmtp.protocol import Response, Status
from maildirqmtp.transport.endpoint import TcpEndpoint
from tests.fakes import FakeClock
from tests.helpers import add_message, add_sidecar, make_maildir, names

NOW = 1_800_000_000.0


class SettlerCase:
    """A maildir with a settler; `now` is the time of day."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = make_maildir(root / "M")
        self.maildir = Maildir(os.fsencode(self.path))
        self.log = io.StringIO()
        self.clock = FakeClock()
        self.now = NOW

    def make(self, **options: object) -> None:
        """Make a settler, as a new run does, for a route with these options."""
        self.route = Route(
            os.fsencode(self.path),
            TcpEndpoint("mail.example.org"),
            **options,  # type: ignore[arg-type]
        )
        self.report = Report(self.log, verbosity=1, clock=self.clock)
        state = State(self.maildir.root, self.clock, lambda: self.now)
        self._synced = Event()
        self.settler = Settler(
            self.maildir,
            self.route,
            self.report,
            self.clock,
            lambda: self.now,
            state,
            self._synced.set,
        )

    def wait_until_synced(self) -> None:
        """Wait for the thread that syncs directories to say that a batch is durable."""
        assert self._synced.wait(30)
        self._synced.clear()

    def add(
        self,
        name: str,
        *recipients: str,
        text: bytes = b"Subject: test\n\nHello\n",
        sender: bytes = b"s@x",
        age_s: float = 60.0,
    ) -> QueuedMessage:
        """Put a message into new/, with a sidecar where there are recipients."""
        add_message(self.path, name, text, sender)
        os.utime(self.path / "new" / name, (NOW - age_s, NOW - age_s))
        if recipients:
            add_sidecar(self.path, name, sender.decode(), *recipients)
        return self.load(name)

    def load(self, name: str = "1.a") -> QueuedMessage:
        """Open a message of new/."""
        self.maildir.scan()
        found = prepare(self.maildir, self.route, self.maildir.new, os.fsencode(name))
        assert isinstance(found, QueuedMessage)
        return found

    def settle(self, one: QueuedMessage, *answers: str | None) -> Kept | None:
        """Answer a message, with None for a recipient that has no answer, and settle it.

        Returns what `Settler.settle` does.
        """
        for index, answer in enumerate(answers):
            if answer is not None:
                one.answers[index] = Response(Status(answer[0]), os.fsencode(answer[1:]))
                one.unanswered -= 1
        return self.settler.settle(one)

    @property
    def failed(self) -> Path:
        """The default failed maildir."""
        return self.path / ".Failed"

    @property
    def new(self) -> list[str]:
        """What is in new/."""
        return names(self.path / "new")
