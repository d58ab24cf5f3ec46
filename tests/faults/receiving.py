"""The receiver on a stage: a client sends, the receiver stores; every K is to be on disk."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

from maildirqmtp.qmtp.protocol import package_head, package_tail
from tests.faults.oracle import Ledger, Mail, Owed, Verdict
from tests.faults.programs import Programs, Run
from tests.faults.scenarios import Scenario
from tests.faults.stages import make_mail
from tests.helpers import DEADLINE_S, command


class Receive:
    """`qmtpmaildir --stdio`: every K it sends is on disk, exactly as sent."""

    connections = 0

    def __init__(self, scenario: Scenario, root: Path, elsewhere: Path, programs: Programs) -> None:
        self.scenario = scenario
        self.programs = programs
        self.root = root
        self.maildir = root / "maildir"
        self.mails = [make_mail(number, spec) for number, spec in enumerate(scenario.specs)]
        self.ledger = Ledger(self.mails, lambda *_: None)
        self._acknowledged: set[Owed] = set()

    def place(self) -> list[str]:
        """Return the arguments that say where the mail goes."""
        return [str(self.maildir)]

    def text(self, mail: Mail) -> bytes:
        """Return what the client sends of a message."""
        return mail.text

    def faulty(self, wrapper: Sequence[str] = ()) -> Run:
        """See `Stage`: a client sends everything that has no K yet."""
        due = [mail for mail in self.mails if mail.owed - self._acknowledged]
        ours, theirs = socket.socketpair()
        ours.settimeout(DEADLINE_S)
        with ours:
            argv = [*command("qmtpmaildir"), "--stdio", *self.place()]
            with theirs:
                process = self.programs.start(argv, wrapper, theirs.fileno(), theirs.fileno())
            sender = threading.Thread(target=_send, args=(ours, b"".join(map(self._package, due))))
            sender.start()
            said = b""
            with contextlib.suppress(ConnectionError):
                while data := ours.recv(1 << 16):
                    said += data
            sender.join(DEADLINE_S)
            run = process.finish()
        asked = [(mail.name, recipient) for mail in due for recipient in mail.recipients]
        letters = re.findall(rb"\d+:([KZD])[^,]*,", said)
        assert len(letters) <= len(asked), said
        for who, letter in zip(asked, letters, strict=False):
            if letter == b"K":
                self.ledger.accepted[who] += 1
                self._acknowledged.add(who)
        return run

    def stored(self) -> tuple[list[Owed], list[str]]:
        """Return what is in new/, one entry a copy, and what should not be there."""
        found: list[Owed] = []
        strange: list[str] = []
        of_text = {mail.text: mail for mail in self.mails}
        new = self.maildir / "new"
        for path in sorted(new.iterdir()) if new.exists() else []:
            top, _, rest = path.read_bytes().partition(b"\nReceived: ")
            mail = of_text.get(rest.partition(b"\n")[2])
            trace = re.fullmatch(rb"Return-Path: <s@x\.example>\nDelivered-To: (.*)", top)
            if mail is None or trace is None or trace[1] not in mail.recipients:
                strange.append(f"{path.name} is not whole, or nobody's")
            else:
                found.append((mail.name, trace[1]))
        return found, strange

    def verdict(self) -> Verdict:
        """See `Stage`."""
        found, strange = self.stored()
        lost = sorted(self._acknowledged - set(found))
        return Verdict(lost, strange, len(found) - len(set(found)))

    def state(self) -> object:
        """See `Stage`."""
        found, strange = self.stored()
        return (sorted(found), strange, sorted(self._acknowledged))

    def left(self) -> list[str]:
        """See `Stage`: the client knows what it had no K for, whatever the exit code."""
        return []

    def recover(self) -> None:
        """See `Stage`: the client sends again what it had no K for."""
        run = self.faulty()
        assert run.status == 0, run
        everybody = {who for mail in self.mails for who in mail.owed}
        assert self._acknowledged == everybody

    def _package(self, mail: Mail) -> bytes:
        head = package_head(len(self.text(mail)))
        return head + self.text(mail) + package_tail(mail.sender, mail.recipients)

    def close(self) -> None:
        """Nothing is open."""


class Queue(Receive):
    """`qmtpmaildir --queue --stdio`: one file and one sidecar for each package with a K.

    What is sent has trace lines on top that name somebody else, as a message has
    that was forwarded before: whoever has no sidecar would be sent to by these.
    """

    def place(self) -> list[str]:
        """Return the arguments that say where the mail goes."""
        return ["--relay", "--queue", str(self.maildir)]

    def text(self, mail: Mail) -> bytes:
        """Return what the client sends of a message: with the trace lines on top."""
        return mail.raw

    def stored(self) -> tuple[list[Owed], list[str]]:
        """Return what is in new/, one entry a recipient, and what should not be there."""
        found: list[Owed] = []
        strange: list[str] = []
        of_text = {mail.raw: mail for mail in self.mails}
        new = self.maildir / "new"
        for path in sorted(new.iterdir()) if new.exists() else []:
            received, _, rest = path.read_bytes().partition(b"\n")
            sidecar = self.maildir / "envelope" / f"{path.name}.json"
            mail = of_text.get(rest)
            if mail is None or not received.startswith(b"Received: from "):
                strange.append(f"{path.name} is not whole")
            elif not sidecar.exists():
                strange.append(f"{path.name} has no sidecar")
            else:
                content = json.loads(sidecar.read_text())
                recipients = tuple(map(os.fsencode, content["recipients"]))
                if (os.fsencode(content["sender"]), recipients) != (mail.sender, mail.recipients):
                    strange.append(f"{path.name} has the envelope of another: {content}")
                found += [(mail.name, recipient) for recipient in recipients]
        return found, strange


def _send(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # killed, as was to be
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
