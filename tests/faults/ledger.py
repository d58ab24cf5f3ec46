"""The ledger: what is owed to whom, what the server took, and whether the disk agrees.

It knows nothing of the forwarder's insides. A recipient's first letter says
what the server answers: `k` K, `z` Z, `d` D, `y` Z the first time and then K.
A message with a sidecar has lines on top that name a trap: whoever is sent the
message by those lines, because its sidecar went first, was never owed it.

The disk is looked at as a `View`, which a real directory and the model of
`durability` both can give.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.helpers import Package, Peer, add_message, add_sidecar, make_maildir

#: Files by their directory (relative, as `m/new`) and name. None: torn, of unknown content.
View = dict[str, dict[str, bytes | None]]
#: A message and one of its recipients.
Who = tuple[str, bytes]

SENDER = b"s@example.org"
TRAP = b"k-trap@example.com"
_SUBJECT = re.compile(rb"^Subject: mail ([0-9]+)$", re.MULTILINE)
_FINAL = re.compile(rb"^Final-Recipient: rfc822; (\S+)$", re.MULTILINE)
_BOUNDARY = re.compile(rb'^\tboundary="([^"]+)"$', re.MULTILINE)


@dataclass(frozen=True)
class Mail:
    """A message as its file is, as it is to arrive, and whom it is for."""

    data: bytes
    text: bytes
    recipients: tuple[bytes, ...]


@dataclass
class Ledger:
    """What is in the maildir `m` under `base` at first, and what the server did with it.

    `accepted` counts the K's of the server, also those that nobody saw;
    `read` the copies that it read whole.
    """

    base: Path
    mails: dict[str, Mail] = field(default_factory=dict)
    accepted: Counter[Who] = field(default_factory=Counter)
    refused: set[Who] = field(default_factory=set)
    read: Counter[Who] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _numbers: dict[bytes, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        make_maildir(self.maildir)

    @property
    def maildir(self) -> Path:
        """The maildir that is forwarded."""
        return self.base / "m"

    def add(self, *recipients: bytes, length: int = 20, with_sidecar: bool | None = None) -> str:
        """Add a message; with a sidecar where it has several recipients, or as told."""
        number = len(self.mails)
        name = f"{1_700_000_000 + number}.M{number}P1.test"
        text = b"Subject: mail %d\n\n" % number + b"x" * length + b"\n"
        if len(recipients) > 1 if with_sidecar is None else with_sidecar:
            add_sidecar(self.maildir, name, SENDER.decode(), *(r.decode() for r in recipients))
            data = add_message(self.maildir, name, text, b"trap@example.com", TRAP)
        else:
            data = add_message(self.maildir, name, text, SENDER, recipients[0])
        self.mails[name] = Mail(data, text, recipients)
        self._numbers[b"%d" % number] = name
        return name

    # The server

    def answer(self, package: Package) -> list[bytes]:
        """Note a package that was read whole; return its answers, the K's noted as given."""
        if not package.sender:
            return [self._take_bounce(package)] * len(package.recipients)
        found = _SUBJECT.search(package.text)
        name = self._numbers.get(found[1], "") if found else ""
        mail = self.mails.get(name)
        if mail is None or mail.text != package.text or package.sender != SENDER:
            self.wrong.append(f"{package.sender!r} sent {package.text[:60]!r}")
            return [b"Dwrong"] * len(package.recipients)
        return [self._answer(name, mail, recipient) for recipient in package.recipients]

    def _answer(self, name: str, mail: Mail, recipient: bytes) -> bytes:
        who = (name, recipient)
        if recipient not in mail.recipients:
            self.wrong.append(f"{name} was sent to {recipient!r}, who was never owed it")
        kind = recipient[:1]
        self.read[who] += 1
        if kind == b"k" or (kind == b"y" and self.read[who] > 1):
            self.accepted[who] += 1
            return b"Kok"
        if kind == b"d":
            self.refused.add(who)
            return b"Dno (#5.1.1)"
        return b"Zlater"

    def _take_bounce(self, package: Package) -> bytes:
        told = list(self._told(package.text))
        if not told or package.recipients != (SENDER,):
            self.wrong.append(f"a bounce to {package.recipients!r}: {package.text[:60]!r}")
        for who in told:
            self.accepted[who] += 1
        return b"Kok"

    @property
    def duplicates(self) -> int:
        """K's beyond the first to the same message and recipient."""
        return sum(self.accepted.values()) - len(self.accepted)

    # The oracle

    def judge(self, view: View, archive: bool = False) -> None:
        """Fail where a recipient is forgotten, or would be sent what was never owed.

        With `archive`, accepted messages have to be in `sent`.
        """
        wrong = self.wrong + self.complaints(view, archive)
        assert not wrong, "\n".join(wrong[:20])

    def complaints(self, view: View, archive: bool = False) -> list[str]:
        """Say what is wrong on the disk."""
        wrong: list[str] = []
        new, envelopes = view.get("m/new", {}), view.get("m/envelope", {})
        told = self._bounced(view, wrong)
        failed = self._failed(view, wrong)
        sent = view.get("sent/new", {})
        for name, mail in self.mails.items():
            owed: tuple[bytes, ...] = ()
            if name in new:
                if new[name] != mail.data:
                    wrong.append(f"{name} is no longer what it was: {_show(new[name])}")
                owed = self._owed(name, mail, envelopes, wrong)
            if name in sent and sent[name] != mail.data:
                wrong.append(f"sent/{name} is not what it was: {_show(sent[name])}")
            for recipient in mail.recipients:
                who = (name, recipient)
                if (who in told or who in failed) and who not in self.refused:
                    wrong.append(f"{name} to {recipient!r} failed, but was never refused")
                if recipient in owed or who in told or who in failed:
                    continue
                if not self.accepted[who]:
                    wrong.append(f"LOST: {name} to {recipient!r}")
            if (
                archive
                and name not in new
                and name not in sent
                and all(self.accepted[name, recipient] for recipient in mail.recipients)
            ):
                wrong.append(f"{name} is not in the archive")
        wrong += [f"a stranger in new/: {name}" for name in new if not self._known(name)]
        wrong += [f"a stranger in sent/: {name}" for name in sent if not self._known(name)]
        return wrong

    def _known(self, name: str) -> bool:
        return name in self.mails or name.startswith(("bounce.", "."))

    def _owed(
        self, name: str, mail: Mail, envelopes: dict[str, bytes | None], wrong: list[str]
    ) -> tuple[bytes, ...]:
        """Return the recipients that the next run would send this message to."""
        file = f"{name}.json"
        if file in envelopes:
            content = _json(envelopes[file], file, wrong)
            owed = tuple(r.encode() for r in content.get("recipients", ()))
        else:
            owed = (TRAP,) if TRAP in mail.data else mail.recipients
        strangers = set(owed) - set(mail.recipients)
        if strangers:
            wrong.append(f"{name} would be sent to {strangers}, who were never owed it")
        return owed

    def _failed(self, view: View, wrong: list[str]) -> set[Who]:
        """Return who the failed maildir names; each message there needs its sidecar."""
        failed: set[Who] = set()
        envelopes = view.get("m/.Failed/envelope", {})
        for name, data in view.get("m/.Failed/new", {}).items():
            mail, file = self.mails.get(name), f"{name}.json"
            if mail is None or data != mail.data:
                wrong.append(f"in the failed maildir, {name} is not what it was: {_show(data)}")
            if file not in envelopes:
                wrong.append(f"in the failed maildir, {name} has lost its sidecar")
                continue
            content = _json(envelopes[file], file, wrong)
            recipients = {r.encode() for r in content.get("recipients", ())}
            if {f["recipient"].encode() for f in content.get("failures", ())} != recipients:
                wrong.append(f"in the failed maildir, {name} does not say why")
            failed |= {(name, recipient) for recipient in recipients}
        return failed

    def _bounced(self, view: View, wrong: list[str]) -> set[Who]:
        """Return who is named by bounces in their maildir, or in new/ for the server."""
        told: set[Who] = set()
        own = {n: d for n, d in view.get("m/new", {}).items() if n.startswith("bounce.")}
        for name, data in [*view.get("bounces/new", {}).items(), *own.items()]:
            found = _BOUNDARY.search(data or b"")
            if data is None or found is None or not data.endswith(b"--%b--\n" % found[1]):
                wrong.append(f"a bounce is not whole: {name}")
                continue
            if name in own and f"{name}.json" not in view.get("m/envelope", {}):
                wrong.append(f"a bounce in new/ has lost its sidecar: {name}")
            told.update(self._told(data))
        return told

    def _told(self, bounce: bytes) -> Iterator[Who]:
        found = _SUBJECT.search(bounce)
        for recipient in _FINAL.findall(bounce):
            yield self._numbers.get(found[1], "") if found else "", recipient

    def done_with(self) -> set[str]:
        """Return the messages of which every recipient was accepted or refused."""
        return {
            name
            for name, mail in self.mails.items()
            if all(self.accepted[name, r] or (name, r) in self.refused for r in mail.recipients)
        }


def _show(data: bytes | None) -> str:
    return "torn" if data is None else f"{len(data)} bytes"


def _json(data: bytes | None, file: str, wrong: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(data or b"")
    except ValueError:
        wrong.append(f"a sidecar that nobody can read: {file}")
        return {}
    assert isinstance(content, dict)
    return content


def view(base: Path, maildirs: Iterable[str] = ("m", "m/.Failed", "sent", "bounces")) -> View:
    """Look at the maildirs under a directory."""
    seen: View = {}
    for maildir in maildirs:
        for part in ("new", "envelope"):
            directory = base / maildir / part
            if directory.is_dir():
                files = ((file.name, file.read_bytes()) for file in directory.iterdir())
                seen[f"{maildir}/{part}"] = dict(files)
    return seen


def serve(
    ledger: Ledger, after: Callable[[int], None] = lambda count: None
) -> Callable[[Peer], None]:
    """Make a correct server's script. `after` is told the number of answers given so far."""
    count = 0

    def script(peer: Peer) -> None:
        nonlocal count
        while (package := peer.read_package()) is not None:
            answers = ledger.answer(package)
            peer.respond(*answers)
            count += len(answers)
            after(count)

    return script


def note_figures(kind: str, **figures: object) -> None:
    """Append the figures of a campaign to the file that MAILDIRQMTP_FIGURES names."""
    path = os.environ.get("MAILDIRQMTP_FIGURES")
    if path:
        with open(path, "a") as file:
            file.write(json.dumps({"kind": kind, **figures}) + "\n")
