"""When a recipient is given up on: refused for good, or deferred for too long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.qmtp.protocol import FAILED

if TYPE_CHECKING:
    from maildirqmtp.maildir.state import State
    from maildirqmtp.qmtp.protocol import Response

#: Seconds for which a message is tried again after its first deferral, however old it is: who
#: was offline for weeks must not lose all to one greylisting. A shorter lifetime counts here, too.
FIRST_DEFERRED_S = 86_400.0


def final_failure(
    answer: Response,
    name: bytes,
    age_s: float,
    lifetime_s: float,
    now_s: float,
    state: State | None,
) -> str | None:
    """Say why a recipient is given up on; None where it is to be tried again.

    `age_s` is that of the message `name`. `state` knows when it was first deferred; None
    lets its age alone decide, as serialmail does. `now_s` is seconds of the epoch.
    """
    if answer.status is FAILED:
        return str(answer)
    if state is not None:
        grace_s = min(FIRST_DEFERRED_S, lifetime_s)
        if age_s < lifetime_s - 2 * grace_s:
            return None  # so that one tried all the time has had its day by then
        if max(0.0, now_s - state.first_deferral(name)) < grace_s:
            return None
    if age_s >= lifetime_s:
        return f"{answer} (too old: {age_s / 86_400:.1f} days)"
    return None
