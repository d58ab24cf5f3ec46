"""Making the state file's content small enough: what may be lost goes first."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from maildirqmtp.maildir.attempts import AttemptHistory

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# What is never left out: a file that would be too large with it is not written.
_KEPT = frozenset({"version", "first_deferred", "told", "held", "warned"})


def encoded(content: dict[str, Any], attempts: AttemptHistory, max_bytes: int) -> bytes | None:
    """Return the bytes of a state file with this content and these attempts.

    If they are too many, first attempts are forgotten, then what was accepted long ago, then late
    deferrals and old doubts, at last all but the times of hints, the holds and the warnings; None
    if that is not enough.
    """
    import json

    accepted = _sorted(content, "accepted", lambda at_s: -at_s)
    deferred = _sorted(content, "first_deferred", lambda at_s: at_s)
    in_doubt = _sorted(content, "in_doubt", lambda where: -min(where.values()))
    while True:
        if attempts:
            content["attempts"] = attempts.content()
        data = None
        # An unknown key can be nested so deeply that it could only just be read.
        with suppress(RecursionError):
            # A line for each entry; `indent` would do without json's fast encoder.
            data = json.dumps(content, separators=(",\n", ": ")).encode("ascii")
        if data is not None and len(data) <= max_bytes:
            return data
        if attempts:
            attempts.halve()
            content.pop("attempts")
        elif accepted:
            del accepted[len(accepted) // 2 :]  # --sent will not have these
            content["accepted"] = dict(accepted)
        elif deferred or in_doubt:
            del deferred[len(deferred) // 2 :]
            del in_doubt[len(in_doubt) // 2 :]  # the oldest, whose time to wait is over
            content |= {"first_deferred": dict(deferred), "in_doubt": dict(in_doubt)}
        elif content.keys() <= _KEPT:
            return None
        else:
            content = {key: value for key, value in content.items() if key in _KEPT}


def _sorted(content: dict[str, Any], key: str, by: Callable[[Any], float]) -> list[tuple[str, Any]]:
    """Return the entries of a table of the content, sorted; none of a malformed one."""
    try:
        return sorted(content.get(key, {}).items(), key=lambda item: by(item[1]))
    except (AttributeError, TypeError, ValueError):
        return []
