"""Times and sizes as people write them: `90s 5m 2h 14d 1w`, `64k 32M 1G`."""

from math import inf

from maildirqmtp.errors import ConfigError
from maildirqmtp.pipeline.timeouts import MAX_SECONDS
from maildirqmtp.pipeline.window import WINDOW_BYTES

_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_BYTES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def parse_seconds(text: str, where: str = "time") -> float:
    """Parse a time: seconds, or with a unit as in `90s 5m 2h 14d 1w`.

    Raises `ConfigError` if it is anything else, or more than 100 years.
    """
    number, unit = (text[:-1], text[-1]) if text[-1:] in _SECONDS else (text, "s")
    if not (number.isascii() and number.replace(".", "", 1).isdigit() and len(number) <= 12):
        raise ConfigError(f"{where}: a time is a number with s, m, h, d or w, not {text!r}")
    seconds = float(number) * _SECONDS[unit]
    check_seconds(seconds, where, repr(text))
    return seconds


def check_seconds(seconds: float, where: str, shown: str) -> None:
    """Raise `ConfigError` if a time is negative, infinite or more than 100 years."""
    if not 0 <= seconds < inf:
        raise ConfigError(f"{where}: a time cannot be negative, or endless")
    if seconds > MAX_SECONDS:
        raise ConfigError(f"{where}: {shown} is more than 100 years")


def parse_bytes(text: str, where: str = "size") -> int:
    """Parse a size: bytes, or with a unit as in `64k 32M 1G` (powers of 1,024).

    Raises `ConfigError` if it is anything else.
    """
    number, unit = (text[:-1], text[-1].lower()) if text[-1:].lower() in _BYTES else (text, "")
    if not (number.isascii() and number.isdigit() and len(number) <= 15):
        raise ConfigError(f"{where}: a size is a number of bytes or with k, M or G, not {text!r}")
    return int(number) * _BYTES.get(unit, 1)


def bytes_text(size: int) -> str:
    """Write a size as `parse_bytes` reads it, with the largest unit that divides it."""
    for unit, length in (("G", 1 << 30), ("M", 1 << 20), ("k", 1 << 10)):
        if size and size % length == 0:
            return f"{size // length}{unit}"
    return str(size)


def parse_window(text: str, where: str = "window") -> tuple[int, int]:
    """Parse a window, `MESSAGES` or `MESSAGES,SIZE`; return messages and bytes.

    Raises `ConfigError` if it is anything else, or one of them is below 1.
    """
    count, comma, size = text.partition(",")
    if not (count.isascii() and count.isdigit() and len(count) <= 9 and int(count) > 0):
        raise ConfigError(f"{where}: MESSAGES or MESSAGES,SIZE as in 4096,32M, not {text!r}")
    window_bytes = parse_bytes(size, where) if comma else WINDOW_BYTES
    if window_bytes < 1:
        raise ConfigError(f"{where}: at least one byte, not {text!r}")
    return int(count), window_bytes


def ago(seconds: float | None) -> str:
    """Return a time in seconds for people: 12s, 3.5m, 2.0h, 9.1d; None is `-`."""
    if seconds is None:
        return "-"
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f}{unit}"
    return f"{seconds:.0f}s"
