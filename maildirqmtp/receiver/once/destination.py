"""A wrapper of another destination: what was accepted before is not delivered again.

What happens to a recipient, in this order:

    | step                            | a crash after it                                       |
    | ------------------------------- | ------------------------------------------------------ |
    | claimed; not in memory          | nothing was delivered, nothing is remembered           |
    | (maildir, queue) file in tmp/   | the same                                               |
    | (maildir, queue) name in memory | the next start finds the file in tmp/, and forgets it  |
    | delivered                       | the next start finds the file in new/, or in neither   |
    | (next server) key in memory     | before this step: it is delivered again                |
    | claim ended, K                  | -                                                      |

A recipient that another batch has claimed gets the outcome of that batch; a batch ends
its own claims before it waits, so that two batches never wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir.files import Folder
from maildirqmtp.qmtp.protocol import Response, Status
from maildirqmtp.receiver.destination import Delivery, Destination, Mail, Outcome, accepted
from maildirqmtp.receiver.once.claims import Claim, Claims
from maildirqmtp.receiver.once.memory import Memory, key_of, text_digest

_TROUBLE = Outcome(Response(Status.DEFERRED, b"451 cannot store it now, try again later (#4.3.0)"))


class _Place(NamedTuple):
    """A recipient, its key and the claim; `is_ours` is true if this delivery has to end that."""

    recipient: bytes
    key: bytes
    claim: Claim | None
    is_ours: bool


class OnceDelivery:
    """One package on its way; see `Delivery`."""

    def __init__(self, destination: OnceDestination, mail: Mail) -> None:
        self.mail = mail
        self.inner: Delivery | None = None
        self.places: list[_Place] = []
        self.outcomes: list[Outcome] = []
        self.is_recorded = False
        self.has_ended = False
        self._destination = destination
        self._text: bytes | None = None

    def deliver(self, recipient: bytes) -> int:
        """Take one more recipient.

        Raises `LocalError` if the text or the memory cannot be read, or `inner` raises it.
        """
        if self._text is None:
            try:
                self._text = text_digest(self.mail.text.pieces(b""))
            except OSError as error:
                raise LocalError(f"cannot read the message: {error.strerror}") from error
        key = key_of(self._text, self.mail.sender, recipient)
        claim, is_ours = self._destination.claims.claim(key)
        try:
            if not is_ours:
                self._add(_Place(recipient, key, claim, False), _TROUBLE)
                return 0
            if self._destination.memory.knows(key):
                self._destination.claims.end(claim, None)
                self._add(_Place(recipient, key, None, False), _had(self.mail))
                return 0
            if self.inner is None:
                self.inner = self._destination.inner.begin(self.mail)
            written = self.inner.deliver(recipient)
            self._add(_Place(recipient, key, claim, True), _TROUBLE)
        except BaseException:
            if is_ours:
                self._destination.claims.end(claim, None)
            raise
        return written

    def _add(self, place: _Place, outcome: Outcome) -> None:
        self.places.append(place)
        self.outcomes.append(outcome)

    @property
    def own(self) -> list[int]:
        """The indexes in `places` of the recipients that the inner delivery has."""
        return [number for number, place in enumerate(self.places) if place.is_ours]

    def take_outcomes(self) -> None:
        """Take the outcomes of the inner delivery."""
        if self.inner is not None:
            for number, outcome in zip(self.own, self.inner.outcomes, strict=True):
                self.outcomes[number] = outcome

    def end_claims(self, tried: bool) -> None:
        """End this delivery's claims, with the outcomes if it was `tried`; harmless twice."""
        for number in self.own:
            place = self.places[number]
            assert place.claim is not None
            self._destination.claims.end(place.claim, self.outcomes[number] if tried else None)
            self.places[number] = place._replace(claim=None, is_ours=False)
        self.has_ended = True


class OnceDestination:
    """Wraps `inner`, and has a `memory`; see `Destination`.

    `stages` is true if the outcomes of `inner` name files before its `commit` puts
    these into place: then the memory has the names before the commit.
    `complain` gets a line when something could not be remembered.
    """

    def __init__(
        self,
        inner: Destination[Any],
        memory: Memory,
        stages: bool,
        complain: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.inner = inner
        self.memory = memory
        self.claims = Claims()
        self._stages = stages
        self._complain = complain

    @property
    def packages_together(self) -> int:
        """Those of the inner destination."""
        return self.inner.packages_together

    @property
    def tmp(self) -> Folder:
        """The inner destination's tmp/."""
        return self.inner.tmp

    def free_bytes(self) -> int:
        """Return the bytes left at the inner destination. Raises `LocalError` if that does."""
        return self.inner.free_bytes()

    def begin(self, mail: Mail) -> OnceDelivery:
        """Begin to deliver a package."""
        return OnceDelivery(self, mail)

    def commit(self, deliveries: Sequence[OnceDelivery]) -> None:
        """Carry the deliveries out, and wait for recipients that other batches deliver.

        Raises `LocalError` if the inner commit fails or, with `stages`, the memory cannot be
        written.
        """
        under_way = [d for d in deliveries if d.inner is not None]
        if under_way and self._stages:
            self._commit_staged(under_way)
        elif under_way:
            self._hand_on(under_way)
        for delivery in deliveries:
            delivery.end_claims(tried=True)
        for delivery in deliveries:
            self._wait(delivery)

    def _commit_staged(self, deliveries: Sequence[OnceDelivery]) -> None:
        staged = _entries(deliveries)
        if staged:
            for delivery in deliveries:
                delivery.is_recorded = True  # before: an `accept` that fails may have recorded it
            self.memory.accept(staged)
        self.inner.commit([delivery.inner for delivery in deliveries])
        for delivery in deliveries:
            delivery.take_outcomes()
        self.memory.delivered(staged)

    def _hand_on(self, deliveries: Sequence[OnceDelivery]) -> None:
        """Commit one after the other: a crash leaves one in doubt, not the whole batch."""
        for delivery in deliveries:
            self.inner.commit([delivery.inner])
            delivery.take_outcomes()
            # There is no file that a start after a crash could look for.
            entries = [(key, None) for key, _ in _entries([delivery])]
            try:
                if entries:
                    self.memory.accept(entries)
            except LocalError as error:
                # The next server has the mail, even if the disk here cannot remember it.
                self._complain(f"{error}; what is sent again may arrive twice")
            # Not all of it was tried: whoever waits for the rest has to.
            delivery.end_claims(tried=not delivery.mail.no_more.is_set())

    def _wait(self, delivery: OnceDelivery) -> None:
        """Take the outcomes of other batches, and deliver what these have not tried."""
        left: dict[bytes, list[int]] = {}  # a recipient named twice must not wait for itself again
        for number, place in enumerate(delivery.places):
            if place.claim is not None:
                outcome = place.claim.wait(delivery.mail.no_more)
                if outcome is None:
                    left.setdefault(place.recipient, []).append(number)
                else:
                    delivery.outcomes[number] = outcome
        if not left:
            return
        again = self.begin(delivery.mail)
        try:
            for recipient in left:
                again.deliver(recipient)
            self.commit([again])
        except LocalError:
            # These recipients stay deferred; the others have their outcomes.
            self.withdraw([again])
            return
        except BaseException:
            self.withdraw([again])
            raise
        for numbers, outcome in zip(left.values(), again.outcomes, strict=True):
            for number in numbers:
                delivery.outcomes[number] = outcome

    def withdraw(self, deliveries: Sequence[OnceDelivery]) -> list[LocalError]:
        """Take back what was not committed; return the errors.

        Its keys are forgotten before its files are removed.
        """
        try:
            return self._take_back([d for d in deliveries if not d.has_ended])
        except LocalError as error:
            # Files whose keys are still remembered must stay.
            return [error]
        finally:
            for delivery in deliveries:
                delivery.end_claims(tried=False)

    def _take_back(self, deliveries: Sequence[OnceDelivery]) -> list[LocalError]:
        recorded = [delivery for delivery in deliveries if delivery.is_recorded]
        keys = [delivery.places[number].key for delivery in recorded for number in delivery.own]
        if keys:
            self.memory.forget(keys)
        return self.inner.withdraw([d.inner for d in deliveries if d.inner is not None])

    def abort(self) -> None:
        """Make the inner destination's calls return soon."""
        self.inner.abort()

    def close(self) -> None:
        """Close both; harmless twice."""
        self.inner.close()
        self.memory.close()


def _had(mail: Mail) -> Outcome:
    """Return a K for what was delivered before."""
    response = accepted(mail.now_s)
    return Outcome(Response(response.status, response.raw + b", as before"))


def _entries(deliveries: Sequence[OnceDelivery]) -> list[tuple[bytes, bytes | None]]:
    """Return the keys of the accepted recipients, each with the name of its file, or None."""
    found: list[tuple[bytes, bytes | None]] = []
    for delivery in deliveries:
        assert delivery.inner is not None
        for number, outcome in zip(delivery.own, delivery.inner.outcomes, strict=True):
            if outcome.response.status is Status.ACCEPTED:
                found.append((delivery.places[number].key, outcome.name or None))
    return found
