"""What the receiver accepts and from whom, its limits, and its log."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import IntEnum

from maildirqmtp.qmtp.protocol import MAX_MESSAGE, Response, Status
from maildirqmtp.receiver.clients import Client, Origin

#: Returns the refusal of a recipient; None for one that is accepted.
Refuse = Callable[[bytes], Response | None]

#: Most recipients of one package to deliver to (RFC 5321, 4.5.3.1.8 asks for at least 100).
MAX_PACKAGE_RECIPIENTS = 1_000
#: Characters in a local part by which some servers relay to another domain (RFC 5321, F.2).
_ROUTING = frozenset(b"%!@")
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
    """Logs one kind of trouble at most once a minute, with the number of lines left out.

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
    """Accept every recipient; only for use if something else, such as loopback, limits clients."""
    return None


def only_domains(domains: Iterable[bytes], routing: bool = True) -> Refuse:
    """Return a function that refuses recipients whose domain is not in `domains`.

    The domain is what follows the last `@`; letter case does not matter. A
    recipient without a domain is refused as well; without `routing` also one whose
    local part has a `%`, `!` or `@`, as in `victim%example.net@example.org`: a server that
    trusts us, as Postfix trusts its own machine, would relay that to example.net.
    """
    known = frozenset(domain.lower() for domain in domains)
    refusal = Response(Status.FAILED, b"553 that domain is not served here (#5.7.1)")
    routed = Response(Status.FAILED, b"553 no mail is relayed by %, ! or @ here (#5.7.1)")

    def refuse(recipient: bytes) -> Response | None:
        local, at, domain = recipient.rpartition(b"@")
        if not at or domain.lower() not in known:
            return refusal
        return None if routing or _ROUTING.isdisjoint(local) else routed

    return refuse


def refuse_everyone(text: str) -> Refuse:
    """Return a function that refuses every recipient, with this text."""
    refusal = Response(Status.FAILED, text.encode())
    return lambda recipient: refusal


_NO_RELAY = refuse_everyone("553 this client may not relay (#5.7.1)")
_NO_USER = refuse_everyone("553 this user may not send mail here (#5.7.1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is accepted, and from whom.

    Messages of at most `max_size` bytes, to recipients that `refuse` passes. A message
    that would leave the destination less than `min_free` bytes is deferred. `relays` says
    that mail is passed on from here to any domain: then clients that are not local are
    refused, unless `refuse` limits the recipients, or all clients show a certificate, as
    `verified` says. `pipes_relay` lets clients of unknown origin relay as well. `users` are
    the IDs of the local users who may send; None lets everybody send, local user or not.
    """

    max_size: int = MAX_MESSAGE
    min_free: int = 0
    refuse: Refuse = accept_all
    relays: bool = False
    verified: bool = False
    pipes_relay: bool = False
    users: frozenset[int] | None = None

    @property
    def restricted(self) -> bool:
        """True if `refuse` limits the recipients, or all clients of a relay show a certificate."""
        return self.refuse is not accept_all or (self.relays and self.verified)

    def may_relay(self, client: Client) -> bool:
        """Return whether a client may send to any recipient that `refuse` passes."""
        if not self.relays or self.restricted or client.origin is Origin.LOCAL:
            return True
        return client.origin is Origin.UNKNOWN and self.pipes_relay

    def for_client(self, client: Client) -> "Policy":
        """Return the policy for one client; it refuses everything if the client may not send."""
        if self.users is not None and client.user not in self.users:
            return replace(self, refuse=_NO_USER)
        return self if self.may_relay(client) else replace(self, refuse=_NO_RELAY)


DEFAULT_POLICY = Policy()
