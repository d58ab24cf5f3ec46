"""When a recipient is given up on: refused for good, or deferred for too long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.qmtp.protocol import FAILED

if TYPE_CHECKING:
    from maildirqmtp.maildir.state import State
    from maildirqmtp.qmtp.protocol import Response

#: Seconds for which a message is tried again after its first deferral, however old it is: after
#: weeks offline, one greylisting must not fail all mail. A shorter lifetime shortens this as well.
FIRST_DEFERRED_S = 86_400.0


def final_failure(
    answer: Response,
    name: bytes,
    age_s: float,
    lifetime_s: float,
    now_s: float,
    state: State | None,
) -> str | None:
    """Return why a recipient is given up on; None if they are to be tried again.

    `age_s` is the age of the message `name`. `state` knows when it was first deferred; with
    None, its age alone decides, as in serialmail. `now_s` is seconds of the epoch.
    """
    if answer.status is FAILED:
        return str(answer)
    if state is not None:
        grace_s = min(FIRST_DEFERRED_S, lifetime_s)
        if age_s < lifetime_s - 2 * grace_s:
            return None  # noted from then on, so that its day is over when its lifetime is
        if max(0.0, now_s - state.first_deferral(name)) < grace_s:
            return None
    if age_s >= lifetime_s:
        return f"{answer} (too old: {age_s / 86_400:.1f} days)"
    return None
