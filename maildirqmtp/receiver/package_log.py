"""One log line for each package that the receiver has answered."""

from collections.abc import Sequence
from typing import NamedTuple

from maildirqmtp.qmtp.protocol import Status
from maildirqmtp.receiver.destination import Outcome
from maildirqmtp.receiver.policy import Log, Severity
from maildirqmtp.text import printable

#: Most lines about refused and deferred packages of one session; the rest are only counted.
MAX_REFUSALS = 1_000
#: Most bytes of an address that are shown.
_SHOWN = 200

_WORDS = {
    Status.ACCEPTED: "accepted",
    Status.DEFERRED: "deferred",
    Status.FAILED: "refused",
}


class Answer(NamedTuple):
    """The answer to one recipient."""

    recipient: bytes
    outcome: Outcome

    @property
    def status(self) -> Status:
        """K, Z or D."""
        return self.outcome.response.status


class PackageLog:
    """The log of one session's packages: INFO if all recipients were accepted, else NOTICE."""

    def __init__(self, peer: str, log: Log) -> None:
        self._peer = peer
        self._log = log
        self._refusals = 0

    def __call__(self, sender: bytes, answers: Sequence[Answer]) -> None:
        """Log a package with the answers to its recipients."""
        if all(answer.status is Status.ACCEPTED for answer in answers):
            severity = Severity.INFO
        else:
            severity = Severity.NOTICE
            self._refusals += 1
        if answers and (severity is Severity.INFO or self._refusals <= MAX_REFUSALS):
            line = _one(answers[0]) if len(answers) == 1 else _several(answers)
            self._log(severity, f"{self._peer}: <{_shown(sender)}> to {line}")

    def close(self) -> None:
        """Log how many lines were left out; harmless twice."""
        left_out = self._refusals - MAX_REFUSALS
        self._refusals = 0
        if left_out > 0:
            text = f"{left_out} more packages refused or deferred"
            self._log(Severity.NOTICE, f"{self._peer}: {text}")


def _one(answer: Answer) -> str:
    return f"<{_shown(answer.recipient)}>: {_WORDS[answer.status]}{_detail(answer)}"


def _several(answers: Sequence[Answer]) -> str:
    """Return the count of each kind of answer, with the first recipient if it is not K."""
    parts = []
    for status, word in _WORDS.items():
        found = [answer for answer in answers if answer.status is status]
        if not found:
            continue
        first = found[0]
        if status is Status.ACCEPTED:
            parts.append(f"{len(found)} {word}{_detail(first)}")
        else:
            parts.append(f"{len(found)} {word}, first <{_shown(first.recipient)}>{_detail(first)}")
    return f"{len(answers)} recipients: {'; '.join(parts)}"


def _detail(answer: Answer) -> str:
    outcome = answer.outcome
    if not outcome.name:
        return f": {outcome.response.text}"
    return f", {outcome.size} bytes as {printable(outcome.name)}"


def _shown(address: bytes) -> str:
    return printable(address[:_SHOWN])
