"""The receiver on a stage: a client sends, the receiver stores; every K is to be on disk."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from tests.faults.oracle import Ledger, Mail, Owed, Verdict
from tests.faults.scenarios import Scenario
from tests.faults.stages import ENVIRONMENT, Run, make_mail
from tests.helpers import DEADLINE_S, command


class Receive:
    """`qmtpmaildir --stdio`: every K it sends is on disk, exactly as sent."""

    connections = 0

    def __init__(self, scenario: Scenario, root: Path, elsewhere: Path) -> None:
        self.scenario = scenario
        self.root = root
        self.maildir = root / "maildir"
        self.mails = [make_mail(number, spec) for number, spec in enumerate(scenario.specs)]
        self.ledger = Ledger(self.mails, lambda *_: None)
        self._acknowledged: set[Owed] = set()

    def faulty(self, wrapper: Sequence[str] = ()) -> Run:
        """See `Stage`: a client sends everything that has no K yet."""
        due = [mail for mail in self.mails if mail.owed - self._acknowledged]
        ours, theirs = socket.socketpair()
        with ours:
            process = subprocess.Popen(
                [*wrapper, *command("qmtpmaildir"), "--stdio", str(self.maildir)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.PIPE,
                text=True,
                env=ENVIRONMENT,
                cwd="/",
            )
            theirs.close()
            sender = threading.Thread(target=_send, args=(ours, b"".join(map(_package, due))))
            sender.start()
            said = b""
            with contextlib.suppress(ConnectionError):
                while data := ours.recv(1 << 16):
                    said += data
            sender.join(DEADLINE_S)
            errors = process.communicate(timeout=DEADLINE_S)[1]
        asked = [(mail.name, recipient) for mail in due for recipient in mail.recipients]
        letters = re.findall(rb"\d+:([KZD])[^,]*,", said)
        assert len(letters) <= len(asked), said
        for who, letter in zip(asked, letters, strict=False):
            if letter == b"K":
                self.ledger.accepted[who] += 1
                self._acknowledged.add(who)
        return Run(process.returncode, errors)

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

    def close(self) -> None:
        """Nothing is open."""


def _package(mail: Mail) -> bytes:
    def framed(data: bytes) -> bytes:
        return b"%d:%b," % (len(data), data)

    return (
        framed(b"\n" + mail.text)
        + framed(mail.sender)
        + framed(b"".join(map(framed, mail.recipients)))
    )


def _send(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # killed, as was to be
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
