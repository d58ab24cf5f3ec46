"""The header of a message: where it ends, its Message-ID, its Received lines."""

import re

#: Bytes on top of a message that are looked at.
MAX_HEADER = 65_536
#: Received lines that mean a loop (RFC 5321, 6.3).
MAX_RECEIVED = 100

_MESSAGE_ID = rb"(?im)^message-id:[ \t]*(?:\r?\n[ \t]+)?([^\s]{1,250})"
# Begins with plain bytes, which the search skips to: it runs for each message.
_RECEIVED = rb"\nreceived[ \t]*:"
# Bytes of the shortest Received line, with its line end.
_RECEIVED_BYTES = len(b"received:\n")


def header_end(top: bytes) -> int:
    """Return where the header ends: before its empty line, or after `MAX_HEADER` bytes.

    The result is the index of the line end before the empty line, 0 if the first
    line is empty (RFC 5322, 2.1). Lines end with LF or CRLF.
    """
    if top.startswith((b"\n", b"\r\n")):
        return 0
    end = top.find(b"\n\n", 0, MAX_HEADER)
    if end < 0:
        end = min(len(top), MAX_HEADER)
    crlf = top.find(b"\n\r\n", 0, end)
    return end if crlf < 0 else crlf


def message_id(top: bytes) -> bytes:
    """Return the Message-ID in a message's header (RFC 5322, 3.6.4), empty if there is none.

    It helps people to follow a message from log to log; nothing depends on it.
    """
    found = re.compile(_MESSAGE_ID).search(top, 0, header_end(top))
    return found[1] if found else b""


def count_received(top: bytes) -> int:
    """Return the number of Received lines in the header, within its first 64 KiB.

    `top` is the beginning of a message, or all of it. `MAX_RECEIVED` or more
    mean a mail loop (RFC 5321, 6.3).
    """
    header = top[: header_end(top)]
    return len(re.findall(_RECEIVED, b"\n" + header.lower()))


def loop_lines(top: bytes) -> int:
    """Return the number of Received lines if it means a mail loop, else 0.

    See `count_received`. This runs for each message that is sent, so two cheap checks come first:
    most headers are too short for so many lines, or have fewer colons than that.
    """
    end = top.find(b"\n\n", 0, MAX_HEADER)
    if 0 <= end < MAX_RECEIVED * _RECEIVED_BYTES:
        return 0
    if top.count(b":", 0, MAX_HEADER if end < 0 else end) < MAX_RECEIVED:
        return 0
    received = count_received(top)
    return received if received >= MAX_RECEIVED else 0
