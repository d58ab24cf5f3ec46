"""Text from outside, made safe to show; and dates as mail writes them."""

import time
from collections.abc import Iterable


def each_of(value: str | bytes | Iterable[str | bytes]) -> Iterable[str | bytes]:
    """Return an iterable of texts, also if `value` is a single text."""
    return (value,) if isinstance(value, (str, bytes)) else value


def printable(raw: bytes) -> str:
    """Decode UTF-8 and replace whatever could control a terminal with `?`.

    Control, format and bidirectional characters, line separators and bytes
    that are not UTF-8 become `?`, as serialmail did for all but ASCII.
    """
    return printable_text(raw.decode("utf-8", "replace"))


def printable_text(text: str) -> str:
    """Do what `printable` does, for text that is decoded already."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() and c != "\ufffd" else "?" for c in text)


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
#: The last second of the year 9999, since the epoch; later dates cannot be written.
LAST_S = 253_402_300_799
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def rfc5322_date(seconds: float) -> str:
    """Return a time (seconds since the epoch) as RFC 5322, 3.3 writes it, in UTC.

    strftime is not used, because it takes the names from the locale. A time before
    1970 or after 9999, which a file can have, becomes the nearest that can be written.
    """
    t = time.gmtime(min(max(seconds, 0), LAST_S))
    day = f"{_DAYS[t.tm_wday]}, {t.tm_mday} {_MONTHS[t.tm_mon - 1]} {t.tm_year}"
    return f"{day} {t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} +0000"
