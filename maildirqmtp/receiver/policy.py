"""What the receiver takes and from whom, and where it says so."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum

from maildirqmtp.qmtp.protocol import MAX_MESSAGE, Response, Status

#: Says why a recipient is refused; None for one that is welcome.
Refuse = Callable[[bytes], Response | None]


class Importance(IntEnum):
    """How much a log line matters."""

    ERROR = 0
    NOTICE = 1
    DETAIL = 2


Log = Callable[[Importance, str], None]


def silent(importance: Importance, text: str) -> None:
    """Log nothing."""


def accept_all(recipient: bytes) -> Response | None:
    """Welcome every recipient; only for those who are let in otherwise, as on loopback."""
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
    """What is taken: messages of at most `max_size` bytes, to whom `refuse` lets through."""

    max_size: int = MAX_MESSAGE
    refuse: Refuse = accept_all

    @property
    def restricted(self) -> bool:
        """False where everybody who can connect can have mail stored for anybody."""
        return self.refuse is not accept_all


DEFAULT_POLICY = Policy()
