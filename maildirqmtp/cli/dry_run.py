"""`maildirqmtp --dry-run`: what a run would send, hold, and leave for other routes."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

from maildirqmtp.errors import EnvelopeError, FileChangedError, LocalError
from maildirqmtp.exit_codes import EXIT_OK, EXIT_TEMPORARY
from maildirqmtp.forwarder.queued_message import PassedOver, prepare
from maildirqmtp.mail.addresses import takes_no_bounce
from maildirqmtp.maildir import holds
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.state import State
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.forwarder.route import Route


def dry_run(route: Route, as_json: bool, say: Callable[[str], None]) -> int:
    """List on standard output what would be sent; return 111 if something would be left, else 0.

    Left are messages that are held, and mail loops that would go to the failed maildir.
    Everything but the list goes to `say`, line by line, and with `as_json` into the list
    as well. Raises `LocalError` if the maildir cannot be read.
    """
    left = others = 0

    def tell(name: bytes, event: str, what: str, reason: str) -> None:
        say(f"{printable(name)}: {what}: {reason}")
        if as_json:
            _print_json(event, message=printable(name), reason=reason)

    with Maildir(route.maildir, shard=route.shard) as maildir:
        on_hold = State(maildir.root, time.monotonic, time.time).held()
        for folder, name in maildir.scan(route.include_cur):
            if on_hold and holds.key(name) in on_hold:  # as the outbox has it: before it is opened
                left += 1
                tell(name, "held", "held", on_hold[holds.key(name)])
                continue
            try:
                queued = prepare(maildir, route, folder, name)
            except (EnvelopeError, FileChangedError, LocalError) as error:
                left += 1
                tell(name, "held", "held", str(error))
                continue
            if isinstance(queued, PassedOver):
                others += queued is PassedOver.FOR_OTHERS
                continue
            queued.close()
            if queued.refusal is None:
                _list(queued, as_json)
            else:
                left += not route.bounce or takes_no_bounce(queued.sender)
                tell(name, "would-fail", "would fail", queued.refusal.text)
        _tell_expired(route, maildir, as_json, say)
    if others:
        say(f"{others} for others: no recipient begins with the prefix {printable(route.prefix)}")
        if as_json:
            _print_json("for-others", messages=others)
    sys.stdout.flush()
    return EXIT_TEMPORARY if left else EXIT_OK


def _tell_expired(
    route: Route, maildir: Maildir, as_json: bool, say: Callable[[str], None]
) -> None:
    """Report how many messages a run would remove from the sent and the failed maildir."""
    if route.keep_sent_s is None and route.keep_failed_s is None:
        return
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.forwarder.retention import Retention

    retention = Retention(route, Report(sys.stderr), maildir, time.time)
    try:
        for kept, messages in retention.count():
            path = printable(kept.path)
            if messages:
                say(f"{kept.key}: {messages} would be removed from {path}")
            if as_json:
                _print_json("would-expire", maildir=path, messages=messages, setting=kept.key)
    except LocalError as error:
        say(str(error))


def _list(queued: QueuedMessage, as_json: bool) -> None:
    name, sender = printable(queued.message.name), printable(queued.sender)
    recipients = [printable(recipient) for recipient in queued.recipients]
    if as_json:
        _print_json(
            "would-send", message=name, sender=sender, recipients=recipients, bytes=queued.length
        )
    else:
        print(f"{name}: <{sender}> to {', '.join(recipients)}, {queued.length} bytes")


def _print_json(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}))
