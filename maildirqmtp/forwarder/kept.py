"""Why a message stays in the maildir, and how its queue and the report are told."""

# No postponed annotations; see `route`.
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from maildirqmtp.forwarder.queue import Queue
    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.forwarder.report import Report


class Kept(NamedTuple):
    """Why a message is still there, to be sent again.

    `at_next_scan`: its file has changed, and is sent as it is now when a scan finds it.
    `stuck`: it must not be sent until its files are changed; see `stuck`.
    """

    reason: str
    at_next_scan: bool = False
    stuck: bool = False


class Wait(NamedTuple):
    """The time of the clock until which a message has to wait, and why."""

    until: float
    reason: str


def hold(
    queue: "Queue",
    report: "Report",
    name: bytes,
    reason: str,
    *,
    birth_s: float | None = None,
    at_next_scan: bool = False,
) -> None:
    """Keep a message that cannot be sent as it is; report it, unless the reason is known.

    The arguments are those of `Queue.later`.
    """
    was_held = queue.is_held(name)
    if queue.later(name, birth_s, reason, at_next_scan):
        report.no_longer_held(was_held)
        report.held(name, reason)


def tell(queue: "Queue", report: "Report", queued: "QueuedMessage", kept: Kept | None) -> None:
    """Tell the queue what became of a message that was settled; `kept` is None if it is gone."""
    name = queued.message.name  # with --cur, settling may have found it under another
    if kept is None:
        report.no_longer_held(queue.gone(name))
        return
    was_held, changed = queue.is_held(name), kept.at_next_scan
    is_news = queue.later(name, queued.message.mtime_s, kept.reason, changed, stuck=kept.stuck)
    if is_news or not changed:
        report.no_longer_held(was_held)
    if is_news and changed:
        report.held(name, kept.reason, "changed")
