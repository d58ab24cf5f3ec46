"""What the daemon reports about itself: to systemd by sd_notify(3), and in the metrics file."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from maildirqmtp.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from maildirqmtp.daemon.snapshot import Snapshot
    from maildirqmtp.daemon.systemd import Notifier

#: Seconds after which the metrics are written again though nothing has changed: monitoring
#: takes an old file as the sign of a dead daemon.
METRICS_S = 60.0
#: The least seconds between two reports of many routes.
TELL_S = 1.0
#: Bytes of the text after STATUS=: systemd drops a message of more than a page (sd_notify(3)).
STATUS_BYTES = 4_000
#: The most routes that are reported one by one.
MOST_ROUTES = 16


class Announcer:
    """Reports changes to systemd and in the metrics file; of many routes, at most once a second.

    `clock` is monotonic seconds; `complain` gets the errors of writing the file.
    """

    def __init__(
        self, notifier: Notifier, clock: Callable[[], float], complain: Callable[[str], None]
    ) -> None:
        self.notifier = notifier
        self._clock = clock
        self._complain = complain
        self._told = ""
        self._tell_at = 0.0
        self._metrics_at = 0.0
        #: The metrics file that was written last.
        self._written: bytes | None = None
        self._failed = ""

    def wait_s(self, metrics_file: bytes | None, is_news: bool) -> float | None:
        """Return the seconds until the next report is due; None if none is due without news."""
        due = []
        if metrics_file is not None:
            due.append(self._metrics_at if metrics_file == self._written else self._tell_at)
        due += [self._tell_at] if is_news else []
        return max(0.0, min(due) - self._clock()) if due else None

    def tell(self, snapshots: Sequence[Snapshot], metrics_file: bytes | None) -> bool:
        """Report what has changed; return False if it is too early for that."""
        now = self._clock()
        if now < self._tell_at and len(snapshots) > MOST_ROUTES:
            return False
        status = status_line(snapshots)
        is_written = metrics_file is None or metrics_file == self._written
        if status == self._told and is_written and now < self._metrics_at:
            return True
        self._tell_at = now + TELL_S
        self._told, self._metrics_at = status, now + METRICS_S
        self.notifier.send(f"STATUS={status}")
        self._written = metrics_file
        if metrics_file is not None:
            self._write(metrics_file, snapshots)
        return True

    def finish(self, snapshots: Sequence[Snapshot], metrics_file: bytes | None) -> None:
        """Report the final state, even if the last report was less than a second ago."""
        self._tell_at = 0.0
        self.tell(snapshots, metrics_file)

    def _write(self, path: bytes, snapshots: Sequence[Snapshot]) -> None:
        from maildirqmtp.daemon.metrics import write

        try:
            write(path, snapshots)
            self._failed = ""
        except LocalError as error:
            if str(error) != self._failed:
                self._failed = str(error)
                self._complain(str(error))


def status_line(snapshots: Sequence[Snapshot]) -> str:
    """Return STATUS= of sd_notify(3): each route's line if they are few, else their sums."""
    if len(snapshots) <= MOST_ROUTES:
        shown = " | ".join(snapshot.line() for snapshot in snapshots)
        if len(shown.encode("utf-8", "replace")) <= STATUS_BYTES:
            return shown
    states = Counter(snapshot.state for snapshot in snapshots)
    told = ("accepted", "deferred", "failed", "bounced", "in_doubt")
    sums = [(key, sum(snapshot.counters[key] for snapshot in snapshots)) for key in told]
    parts = [
        f"{len(snapshots)} routes: {sum(s.messages for s in snapshots)} waiting",
        ", ".join(f"{count} {state}" for state, count in states.most_common()),
        ", ".join(f"{count} {key.replace('_', ' ')}" for key, count in sums),
    ]
    reasons = Counter(s.stop_reason for s in snapshots if s.state == "backing off")
    parts += [f"{count}: {reason}" for reason, count in reasons.most_common(3) if reason]
    return "; ".join(parts).encode("utf-8", "replace")[:STATUS_BYTES].decode("utf-8", "ignore")
