"""Who has what: every recipient of every message, at the server and on disk.

The oracle is told what mail there is. It notes what a server was given
(`Ledger`), reads what is on disk (`look`) and compares (`judge`): each
(message, recipient) was accepted, or is owed on disk, or was bounced, or is in
the failed maildir with a sidecar that lists it. It trusts nothing of the code
under test: sidecars and bounces are read here by the standard library.
"""

from __future__ import annotations

import email
import email.policy
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers import Package

#: A recipient of a message: the message's name, and the address as the server gets it.
Owed = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Mail:
    """A message: its name, its envelope, its file, and its text as the server has to get it.

    `recipients` are as the server gets them; on disk `prefix` goes before each.
    `otherwise` are those, as on disk, whom it is for where it has no sidecar. The
    text's Subject is the name. `promised` is false for a message that nobody may
    rely on yet: on disk it is whole, or not there.
    """

    name: str
    sender: bytes
    recipients: tuple[bytes, ...]
    raw: bytes
    text: bytes
    otherwise: tuple[bytes, ...]
    prefix: bytes = b""
    promised: bool = True

    @property
    def owed(self) -> set[Owed]:
        """Return its recipients, as the oracle counts them."""
        return {(self.name, recipient) for recipient in self.recipients}


Answer = Callable[[str, bytes, int], bytes | None]


@dataclass
class Ledger:
    """What a server was given and what it said.

    `answer` gets a message's name, a recipient and how often that one came
    before; None hangs up without a word. `seen` and `accepted` count; `strange`
    says what should never have come. Bounces that come are taken, and count
    as `bounced`.
    """

    mails: Iterable[Mail]
    answer: Answer
    seen: Counter[Owed] = field(default_factory=Counter)
    accepted: Counter[Owed] = field(default_factory=Counter)
    bounced: Counter[Owed] = field(default_factory=Counter)
    strange: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._of_text = {mail.text: mail for mail in self.mails}
        self._lock = threading.Lock()

    def take(self, package: Package) -> list[bytes] | None:
        """Note a package; return the responses, or None to hang up."""
        with self._lock:
            mail = self._of_text.get(package.text)
            if mail is None:
                return self._take_bounce(package)
            if package.sender != mail.sender:
                self.strange.append(f"{mail.name} came from {package.sender!r}")
            said = []
            for recipient in package.recipients:
                who = (mail.name, recipient)
                if who not in mail.owed:
                    self.strange.append(f"{mail.name} was sent to {recipient!r}")
                said.append(self.answer(*who, self.seen[who]))
                self.seen[who] += 1
            responses = [response for response in said if response is not None]
            if len(responses) < len(said):
                return None
            for recipient, response in zip(package.recipients, responses, strict=True):
                self.accepted[mail.name, recipient] += response.startswith(b"K")
            return responses

    def _take_bounce(self, package: Package) -> list[bytes]:
        told = read_bounce(package.text)
        if told is None or package.sender or len(package.recipients) != 1:
            self.strange.append(f"nobody's message, or not whole: {package.text[:80]!r}")
        else:
            self.bounced.update(told)
        return [b"Kok" for _ in package.recipients]


def read_bounce(data: bytes) -> set[Owed] | None:
    """Return whom a bounce tells of; None where it is none, or not whole.

    The message's name is the Subject of the original that it quotes.
    """
    bounce = email.message_from_bytes(data, policy=email.policy.default)
    boundary = bounce.get_boundary()
    if boundary is None or not data.endswith(b"--%b--\n" % boundary.encode()):
        return None
    if bounce.get_content_type() != "multipart/report" or bounce.defects:
        return None
    _, status, original = bounce.iter_parts()
    quoted = original.get_payload()
    text = str(quoted[0]) if isinstance(quoted, list) else str(quoted)
    subject = re.search(r"^Subject: (.*)$", text, re.MULTILINE)
    who = re.findall(r"^Final-Recipient: rfc822; *(.*)$", status.as_string(), re.MULTILINE)
    if subject is None or not who:
        return None
    return {(subject[1], address.strip().encode()) for address in who}


@dataclass
class Places:
    """What is on disk, by recipient; `strange` is what should not be there."""

    owed: set[Owed] = field(default_factory=set)
    failed: set[Owed] = field(default_factory=set)
    bounced: set[Owed] = field(default_factory=set)
    #: Copies of each message in the maildir of sent ones.
    kept: Counter[str] = field(default_factory=Counter)
    strange: list[str] = field(default_factory=list)


def look(
    mails: Iterable[Mail],
    maildir: Path,
    *,
    failed: Path | None = None,
    sent: Path | None = None,
    bounces: Path | None = None,
) -> Places:
    """Read what is on disk: the maildir, and those of failed and sent messages and of bounces.

    Each message must be whole, byte by byte, and nothing else must be there but
    in tmp/, and the dot-files that are nobody's message.
    """
    places = Places()
    of_raw = {mail.raw: mail for mail in mails}
    _look_into(places, of_raw, maildir)
    failed = maildir / ".Failed" if failed is None else failed
    for path in _files(failed / "new"):
        mail = of_raw.get(path.read_bytes())
        listed = _sidecar(places, failed, path.name)
        if mail is None or listed is None:
            places.strange.append(f"failed: {path.name} is not whole, or has no sidecar")
        else:
            _list(places, places.failed, mail, listed)
    if sent is not None:
        for path in _files(sent / "new"):
            mail = of_raw.get(path.read_bytes())
            if mail is None:
                places.strange.append(f"sent: {path.name} is not whole")
            else:
                places.kept[mail.name] += 1
    if bounces is not None:
        for path in _files(bounces / "new"):
            told = read_bounce(
                path.read_bytes().partition(b"\nDelivered-To: ")[2].split(b"\n", 1)[1]
            )
            if told is None:
                places.strange.append(f"bounces: {path.name} is not whole")
            else:
                places.bounced |= told
    return places


def _look_into(places: Places, of_raw: dict[bytes, Mail], maildir: Path) -> None:
    for path in _files(maildir / "new"):
        raw = path.read_bytes()
        mail = of_raw.get(raw)
        listed = _sidecar(places, maildir, path.name)
        if mail is not None:
            _list(places, places.owed, mail, mail.otherwise if listed is None else listed)
            continue
        told = read_bounce(raw)
        if told is None or listed is None:
            places.strange.append(f"{path.name} is nobody's message, or not whole")
        else:
            places.bounced |= told
    places.strange += [f"cur/{path.name}" for path in _files(maildir / "cur")]
    for path in _files(maildir / "envelope"):
        _sidecar(places, maildir, path.name.removesuffix(".json"))


def _files(directory: Path) -> list[Path]:
    if not directory.exists():
        return []
    return [path for path in sorted(directory.iterdir()) if not path.name.startswith(".")]


def _sidecar(places: Places, maildir: Path, name: str) -> list[bytes] | None:
    path = maildir / "envelope" / f"{name}.json"
    if not path.exists():
        return None
    try:
        return [os.fsencode(address) for address in json.loads(path.read_bytes())["recipients"]]
    except (ValueError, KeyError):
        places.strange.append(f"the sidecar {path} is not whole")
        return []


def _list(places: Places, listed: set[Owed], mail: Mail, recipients: Iterable[bytes]) -> None:
    for address in recipients:
        who = (mail.name, address.removeprefix(mail.prefix))
        if who not in mail.owed or not address.startswith(mail.prefix):
            places.strange.append(f"{mail.name} is owed to {address!r}")
        listed.add(who)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the oracle says: who has lost mail, what is strange, how many came twice."""

    lost: list[Owed]
    strange: list[str]
    duplicates: int


def judge(mails: Iterable[Mail], ledger: Ledger, places: Places) -> Verdict:
    """Compare what was owed with where it is."""
    safe = {who for who, times in ledger.accepted.items() if times}
    safe |= places.owed | places.failed | places.bounced | set(ledger.bounced)
    lost = [who for mail in mails if mail.promised for who in sorted(mail.owed - safe)]
    twice = sum(times - 1 for times in ledger.accepted.values() if times)
    return Verdict(lost, ledger.strange + places.strange, twice)
