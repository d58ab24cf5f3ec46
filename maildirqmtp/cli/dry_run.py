"""`maildirqmtp --dry-run`: what a run would send, what it would hold, what is for others."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

from maildirqmtp.errors import EnvelopeError, FileChangedError, LocalError
from maildirqmtp.exit_codes import EXIT_OK, EXIT_TEMPORARY
from maildirqmtp.forwarder.queued_message import PassedOver, prepare
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.forwarder.route import Route


def dry_run(route: Route, as_json: bool, say: Callable[[str], None]) -> int:
    """List what would be sent on standard output; return 111 where something would be held.

    Everything else goes to `say`, line by line; with `as_json` it is listed, too.
    Raises `LocalError` where the maildir cannot be read.
    """
    held = others = 0
    with Maildir(route.maildir, shard=route.shard) as maildir:
        for folder, name in maildir.scan(route.include_cur):
            try:
                queued = prepare(maildir, route, folder, name)
            except (EnvelopeError, FileChangedError, LocalError) as error:
                held += 1
                say(f"{printable(name)}: held: {error}")
                if as_json:
                    _print_json("held", message=printable(name), reason=str(error))
                continue
            if isinstance(queued, PassedOver):
                others += queued is PassedOver.FOR_OTHERS
                continue
            queued.close()
            _list(queued, as_json)
        _tell_expired(route, maildir, as_json, say)
    if others:
        say(f"{others} for others: no recipient begins with the prefix {printable(route.prefix)}")
        if as_json:
            _print_json("for-others", messages=others)
    sys.stdout.flush()
    return EXIT_TEMPORARY if held else EXIT_OK


def _tell_expired(
    route: Route, maildir: Maildir, as_json: bool, say: Callable[[str], None]
) -> None:
    """Tell how many messages a run would remove that are kept elsewhere."""
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
