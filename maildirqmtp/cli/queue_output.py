"""What `qmtpq` prints: messages as a table or as JSON, one message in full, a summary."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from maildirqmtp.daemon.entry_filter import domain_of
from maildirqmtp.daemon.listing import FAILED, WAITING
from maildirqmtp.settings.units import ago
from maildirqmtp.text import printable, printable_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from maildirqmtp.daemon.listing import Entry

#: The fewest characters of a name that are shown: the seconds and part of the microseconds.
_NAME_MIN = 12
#: Columns of a terminal that does not tell its width, and the fewest that are used on any.
_COLUMNS = 80
_COLUMNS_MIN = 40


def columns() -> int | None:
    """Return the width of the terminal on standard output; None if it is not a terminal."""
    if not sys.stdout.isatty():
        return None
    try:
        found = os.get_terminal_size(sys.stdout.fileno()).columns
    except OSError:
        found = 0
    return max(found, _COLUMNS_MIN) if found else _COLUMNS


def fitted(line: str, width: int | None) -> str:
    """Cut a line to the width of the terminal, so that it does not wrap; None leaves it whole."""
    return line if width is None or len(line) <= width else line[: width - 3] + "..."


def text_of(raw: bytes) -> str:
    """Return an address or a name as text for JSON, in the encoding of the sidecars."""
    return raw.decode("utf-8", "surrogateescape")


def as_json(entry: Entry, path: bytes, now_s: float) -> dict[str, Any]:
    """Return what is known of a message, as one object of `--json`."""
    return {
        "event": "message",
        "maildir": os.fsdecode(path),
        "message": os.fsdecode(entry.name),
        "state": entry.state,
        "sender": None if entry.sender is None else text_of(entry.sender),
        "recipients": [text_of(r) for r in entry.recipients],
        "bytes": entry.size,
        "age_s": age_s(entry, now_s),
        "tries": entry.tries,
        "next": entry.next_s,
        "reason": entry.reason,
        "attempts": [{"at": at, "text": text} for at, text in entry.attempts],
        "failures": [
            {"recipient": text_of(f.recipient), "response": f.response, "at": f.at}
            for f in entry.failures
        ],
    }


def put_json(found: dict[str, Any]) -> None:
    """Print one object, on a line of its own."""
    print(json.dumps(found, allow_nan=False))


def age_s(entry: Entry, now_s: float) -> float:
    """Return how old a message is, in seconds; a time in the future counts as now."""
    return round(max(0.0, now_s - entry.mtime_s), 1)


def size_text(size: int) -> str:
    """Return a size for people: 512, 2.1k, 40.6M."""
    if size < 1_000:
        return str(size)
    units = deque("kMGT")
    value = size / 1_000
    while value >= 999.95 and len(units) > 1:
        value /= 1_000
        units.popleft()
    return f"{value:.1f}{units[0]}"


# The list


def put_table(entries: Sequence[Entry], now_s: float) -> None:
    """Print a table of messages, each with its reason on a line of its own.

    On a terminal, lines are cut to its width and names are only as long as it takes to tell the
    messages apart; elsewhere both are whole.
    """
    width = columns()
    shown = [printable(entry.name) for entry in entries]
    if width is not None:
        shown = shortest(shown)
    rows = [("AGE", "SIZE", "TRIES", "NEXT", "NAME", "FOR")]
    rows += [_row(entry, name, now_s) for entry, name in zip(entries, shown, strict=True)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    reasons = ["", *(_reason(entry) for entry in entries)]
    for row, reason in zip(rows, reasons, strict=True):
        numbers = [cell.rjust(w) for cell, w in zip(row[:4], widths[:4], strict=True)]
        print(fitted("  ".join(["", *numbers, row[4].ljust(widths[4]), row[5]]), width))
        if reason:
            print(fitted(f"        {reason}", width))


def _row(entry: Entry, name: str, now_s: float) -> tuple[str, str, str, str, str, str]:
    recipients = [printable(r) for r in entry.recipients]
    more = f" and {len(recipients) - 1} more" if len(recipients) > 1 else ""
    return (
        ago(age_s(entry, now_s)),
        size_text(entry.size),
        "-" if entry.tries is None else str(entry.tries),
        "-" if entry.next_s is None else ago(max(0.0, entry.next_s - now_s)),
        name,
        f"{recipients[0]}{more}" if recipients else "-",
    )


def _reason(entry: Entry) -> str:
    if entry.state == WAITING:
        return entry.reason
    return f"{entry.state}: {entry.reason}" if entry.reason else entry.state


def shortest(names: Sequence[str]) -> list[str]:
    """Shorten each name to the shortest beginning that no other name has, and a `+`."""
    ordered = sorted(set(names))
    needed = dict.fromkeys(ordered, _NAME_MIN)
    for one, other in pairwise(ordered):
        pairs = enumerate(zip(one, other, strict=False))
        differs = next((index for index, (a, b) in pairs if a != b), len(one))
        needed[one] = max(needed[one], differs + 1)
        needed[other] = max(needed[other], differs + 1)
    # A name that would be just as long with its `+` stays whole.
    return [n if len(n) <= needed[n] + 1 else f"{n[: needed[n]]}+" for n in names]


# One message


def put_entry(entry: Entry, path: bytes, header: Sequence[str], now_s: float) -> None:
    """Print all that is known of one message, and its header."""
    from maildirqmtp.text import rfc5322_date

    lines = [
        ("file", printable(entry.folder.join(entry.name))),
        ("state", entry.state),
        ("since", f"{rfc5322_date(entry.mtime_s)} ({ago(age_s(entry, now_s))})"),
        ("size", f"{entry.size} bytes"),
    ]
    if entry.sender is not None:
        lines.append(("sender", f"<{printable(entry.sender)}>"))
    lines += [("recipient", f"<{printable(recipient)}>") for recipient in entry.recipients]
    if entry.tries is not None:
        again = "" if entry.next_s is None else f", next in {ago(max(0.0, entry.next_s - now_s))}"
        lines.append(("tries", f"{entry.tries}{again}"))
    if entry.reason and not (entry.state == FAILED and entry.failures):
        lines.append(("why", entry.reason))
    lines += [("tried", f"{rfc5322_date(at)}: {text}") for at, text in reversed(entry.attempts)]
    for failure in entry.failures:
        at, said = printable_text(failure.at), printable_text(failure.response[1:])
        lines.append(("failed", f"<{printable(failure.recipient)}> at {at}: {said}"))
    for label, value in lines:
        print(f"{label + ':':<11}{value}")
    print()
    for line in header:
        print(f"  {line}")


def header_lines(data: bytes) -> list[str]:
    """Return the header's lines, safe for a terminal; `data` is the message's beginning."""
    lines = []
    for line in data.split(b"\n"):
        if line in (b"", b"\r"):
            break
        lines.append(printable(line.removesuffix(b"\r").replace(b"\t", b" ")))
    return lines


# The summary


@dataclass(slots=True)
class _Group:
    """Messages to one domain that wait, or have failed, for one reason."""

    messages: int = 0
    recipients: int = 0
    oldest_s: float = 0.0


class Summary:
    """Counts messages by the domain of their recipients and the reason."""

    def __init__(self, now_s: float) -> None:
        self._now_s = now_s
        self._groups: dict[tuple[str, str, str], _Group] = {}

    def add(self, entry: Entry) -> None:
        """Count a message once for each pair of a recipient's domain and a reason."""
        keys: dict[tuple[str, str, str], int] = {}
        if entry.state == FAILED and entry.failures:
            for failure in entry.failures:
                reason = alike(printable_text(failure.response[1:]))
                key = (printable(domain_of(failure.recipient)), entry.state, reason)
                keys[key] = keys.get(key, 0) + 1
        else:
            for recipient in entry.recipients or (b"",):
                key = (printable(domain_of(recipient)), entry.state, alike(entry.reason))
                keys[key] = keys.get(key, 0) + bool(recipient)
        for key, count in keys.items():
            group = self._groups.setdefault(key, _Group())
            group.messages += 1
            group.recipients += count
            group.oldest_s = max(group.oldest_s, age_s(entry, self._now_s))

    def rows(self) -> list[tuple[str, str, str, _Group]]:
        """Return domain, state, reason and counts, most messages first."""
        found = [(*key, group) for key, group in self._groups.items()]
        return sorted(found, key=lambda row: (-row[3].messages, row[:3]))

    def put(self, path: bytes, to_json: bool) -> None:
        """Print the counts of a maildir."""
        if to_json:
            for domain, state, reason, group in self.rows():
                put_json(
                    {
                        "event": "summary",
                        "maildir": os.fsdecode(path),
                        "domain": domain,
                        "state": state,
                        "reason": reason,
                        "messages": group.messages,
                        "recipients": group.recipients,
                        "oldest_s": group.oldest_s,
                    }
                )
            return
        width = columns()
        lines = [("MESSAGES", "OLDEST", "DOMAIN", "WHY")]
        for domain, state, reason, group in self.rows():
            why = reason if state == WAITING else f"{state}: {reason}"
            lines.append((str(group.messages), ago(group.oldest_s), domain or "-", why))
        widest = max(len(line[2]) for line in lines)
        for count, oldest, domain, why in lines:
            row = f"  {count:>8}  {oldest:>6}  {domain.ljust(widest)}  {why}"
            print(fitted(row.rstrip(), width))


def alike(reason: str) -> str:
    """Return a reason without what differs from message to message: addresses, ids, paths, numbers.

    Words with `@` or `/`, and those of eight or more characters with a digit, become `...`; so do
    other numbers of three digits or more, except the code that begins an SMTP reply.
    """
    words = []
    for number, word in enumerate(reason.split()):
        core = word.strip("<>()[]{},;:.'\"")
        is_own = "@" in core or "/" in core or (len(core) >= 8 and re.search(r"\d", core))
        is_number = core.isdigit() and len(core) >= 3 and number > 0
        words.append("..." if is_own or is_number else word)
    return " ".join(words)
