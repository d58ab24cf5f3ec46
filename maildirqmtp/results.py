"""The results of sending: for each recipient of a package, the response. Values only."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from maildirqmtp.response import Response, Status


@dataclass(frozen=True, slots=True)
class Outcome:
    """One recipient of a package and the response for them.

    `address` is the recipient as bytes, `recipient` the same as str (UTF-8;
    other bytes by surrogateescape). `answered` is false if the response is not the
    server's but ours: a deferral that says why there is none. `in_doubt` is true if
    the package was sent whole and no answer came for this recipient: they may have
    the message although it is deferred; or, if it was sent to them again and
    accepted, they may have it twice.
    """

    address: bytes
    response: Response
    answered: bool = True
    in_doubt: bool = False

    # Written out for type checkers: with a generated one they reject `"a@x" in result`.
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Outcome):
            return NotImplemented
        return (self.address, self.response, self.answered, self.in_doubt) == (
            other.address, other.response, other.answered, other.in_doubt,
        )  # fmt: skip

    @property
    def recipient(self) -> str:
        """The recipient's address."""
        return self.address.decode("utf-8", "surrogateescape")


class SendResult(Sequence[Outcome]):
    """The result of one package: an `Outcome` for each recipient, in their order.

    A recipient who is named twice has two. `result[0]` is an outcome;
    `result["a@example.net"]`, or the same as bytes, is that recipient's
    response (the last one if there are several), and raises `KeyError` if there
    is none.
    """

    __slots__ = ("_outcomes",)

    def __init__(self, outcomes: Iterable[Outcome]) -> None:
        self._outcomes = tuple(outcomes)

    @property
    def accepted(self) -> tuple[Outcome, ...]:
        """The outcomes of recipients for whom the server is responsible now."""
        return self._with(Status.ACCEPTED)

    @property
    def deferred(self) -> tuple[Outcome, ...]:
        """The outcomes of recipients to try again later, also because no answer came."""
        return self._with(Status.DEFERRED)

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The outcomes of recipients not to be tried again."""
        return self._with(Status.FAILED)

    @property
    def in_doubt(self) -> tuple[Outcome, ...]:
        """The outcomes of recipients who may have the message without an answer, or twice."""
        return tuple([outcome for outcome in self._outcomes if outcome.in_doubt])

    def _with(self, status: Status) -> tuple[Outcome, ...]:
        return tuple([o for o in self._outcomes if o.response.status is status])

    def __len__(self) -> int:
        return len(self._outcomes)

    def __iter__(self) -> Iterator[Outcome]:
        return iter(self._outcomes)

    def __contains__(self, item: object) -> bool:
        if isinstance(item, (str, bytes)):
            return any(outcome.address == as_bytes(item) for outcome in self._outcomes)
        return item in self._outcomes

    @overload
    def __getitem__(self, key: str | bytes) -> Response: ...
    @overload
    def __getitem__(self, key: int) -> Outcome: ...
    @overload
    def __getitem__(self, key: slice) -> Sequence[Outcome]: ...
    def __getitem__(self, key: str | bytes | int | slice) -> Response | Outcome | Sequence[Outcome]:
        if isinstance(key, (int, slice)):
            return self._outcomes[key]
        address = as_bytes(key)
        for outcome in reversed(self._outcomes):
            if outcome.address == address:
                return outcome.response
        raise KeyError(key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SendResult) and self._outcomes == other._outcomes

    def __hash__(self) -> int:
        return hash(self._outcomes)

    def __repr__(self) -> str:
        return f"SendResult({list(self._outcomes)!r})"


def as_bytes(address: str | bytes) -> bytes:
    """Return an address as it goes over the wire: str as UTF-8 (surrogateescape)."""
    return address.encode("utf-8", "surrogateescape") if isinstance(address, str) else address
