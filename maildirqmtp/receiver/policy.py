"""What the receiver accepts and from whom, its limits, and its log."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum

from maildirqmtp.qmtp.protocol import MAX_MESSAGE, Response, Status

#: Returns the refusal of a recipient; None for one that is accepted.
Refuse = Callable[[bytes], Response | None]

#: Recipients of one package that are delivered to (RFC 5321, 4.5.3.1.8 asks for at least 100).
MAX_PACKAGE_RECIPIENTS = 1_000
#: Seconds between two log lines about the same trouble of the server.
THROTTLE_S = 60.0


class Severity(IntEnum):
    """How much a log line matters; the words are those of syslog (RFC 5424, 6.2.1)."""

    ERROR = 0
    NOTICE = 1
    INFO = 2


Log = Callable[[Severity, str], None]


def silent(severity: Severity, text: str) -> None:
    """Log nothing."""


class ThrottledLog:
    """Logs one kind of trouble once a minute at most, with the number of lines left out.

    `clock` is monotonic seconds.
    """

    def __init__(self, log: Log, clock: Callable[[], float]) -> None:
        self._log = log
        self._clock = clock
        self._next_s = float("-inf")
        self._left_out = 0

    def __call__(self, severity: Severity, text: str) -> None:
        """Log the line, unless there was one less than `THROTTLE_S` ago."""
        now_s = self._clock()
        if now_s < self._next_s:
            self._left_out += 1
            return
        more = f" ({self._left_out} more since the last such line)" if self._left_out else ""
        self._next_s = now_s + THROTTLE_S
        self._left_out = 0
        self._log(severity, text + more)


def accept_all(recipient: bytes) -> Response | None:
    """Accept every recipient; only where something else limits the clients, as loopback does."""
    return None


def only_domains(domains: Iterable[bytes]) -> Refuse:
    """Return a function that refuses recipients whose domain is none of `domains`.

    The domain is what follows the last `@`; letter case does not matter. A
    recipient without a domain is refused as well.
    """
    known = frozenset(domain.lower() for domain in domains)
    refusal = Response(Status.FAILED, b"553 that domain is not served here (#5.7.1)")

    def refuse(recipient: bytes) -> Response | None:
        _, at, domain = recipient.rpartition(b"@")
        return None if at and domain.lower() in known else refusal

    return refuse


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is accepted: messages of at most `max_size` bytes, recipients that `refuse` passes.

    While the maildir's file system has less than `min_free` bytes left for
    ordinary users, every message is deferred.
    """

    max_size: int = MAX_MESSAGE
    min_free: int = 0
    refuse: Refuse = accept_all

    @property
    def restricted(self) -> bool:
        """False where every client can have mail stored for any recipient."""
        return self.refuse is not accept_all


DEFAULT_POLICY = Policy()
