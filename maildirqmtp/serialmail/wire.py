"""The language between serialmail's programs; bytes only.

    a feeder to its client   for each file: name NUL
    a client to its feeder   for each name: name NUL, one of K Z D, a text, LF

A client (serialqmtp, serialsmtp) gives no result for a file whose recipient does
not begin with its prefix. Source: the formats of serialmail 0.75.
"""

from maildirqmtp.errors import QMTPError
from maildirqmtp.response import Response, Status
from maildirqmtp.text import printable

#: The most bytes of a file name; the kernel takes no longer path (PATH_MAX, with its NUL).
MAX_NAME = 4_095
#: The most bytes of a result from the status byte on, as serialqmtp writes it.
MAX_WRITTEN = 2_000
#: Bytes of a result's text that are read from a client, as protocol.MAX_RESPONSE of a server.
MAX_TEXT = 65_536
#: Bytes of a result's text that are kept.
MAX_KEPT = 2_000

_NUL, _LF = 0, 10
_STATUS_OF_BYTE = {ord(status.value): status for status in Status}
_PLAIN = bytes(byte if 32 <= byte <= 126 else ord("?") for byte in range(256))


class WireError(QMTPError):
    """The other program wrote something that this language does not allow."""


def write_result(name: bytes, response: Response, said_by: bytes) -> bytes:
    """Return the result for a name; `said_by` is the server's address, or empty."""
    line = response.status.value.encode()
    if said_by:
        line += said_by + b" said: "
    line += response.raw
    return name + b"\0" + line[:MAX_WRITTEN].translate(_PLAIN) + b"\n"


class NameReader:
    """Turns bytes into names, each of which ends with a NUL.

    `feed` bytes as they come, then call `next` until it returns None. Bytes
    after the last NUL are not a name: it may be cut off.
    """

    __slots__ = ("_buffer", "_start")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start = 0

    def feed(self, data: bytes) -> None:
        """Add bytes."""
        del self._buffer[: self._start]
        self._start = 0
        self._buffer += data

    def next(self) -> bytes | None:
        """Return the next name, or None. Raises `WireError` if it is longer than any path."""
        end = self._buffer.find(_NUL, self._start, self._start + MAX_NAME + 1)
        if end < 0:
            if len(self._buffer) - self._start > MAX_NAME:
                raise WireError(f"a name of more than {MAX_NAME} bytes")
            return None
        name = bytes(self._buffer[self._start : end])
        self._start = end + 1
        return name


class ResultReader:
    """Turns a client's bytes into results, each a name and a response.

    Used as `NameReader`; a result that is cut off at the end does not count. `next`
    raises `WireError` for anything else; nothing after it can be trusted.
    """

    __slots__ = ("_buffer", "_looked", "_start")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start = 0
        self._looked = 0

    def feed(self, data: bytes) -> None:
        """Add bytes."""
        del self._buffer[: self._start]
        self._looked -= self._start
        self._start = 0
        self._buffer += data

    def next(self) -> tuple[bytes, Response] | None:
        """Return the next result, or None. Raises `WireError` if it is malformed or too long."""
        buffer, start = self._buffer, self._start
        end_of_name = buffer.find(_NUL, start, start + MAX_NAME + 1)
        if end_of_name < 0:
            if len(buffer) - start > MAX_NAME:
                raise self._garbage()
            return None
        first = end_of_name + 1
        if len(buffer) == first:
            return None
        status = _STATUS_OF_BYTE.get(buffer[first])
        if status is None:
            raise self._garbage()
        end = buffer.find(_LF, max(first, self._looked))
        if (len(buffer) if end < 0 else end) - first > MAX_TEXT:
            raise WireError(f"a result of more than {MAX_TEXT} bytes")
        if end < 0:
            self._looked = len(buffer)
            return None
        self._start = self._looked = end + 1
        text = bytes(buffer[first + 1 : min(end, first + 1 + MAX_KEPT)])
        return bytes(buffer[start:end_of_name]), Response(status, text)

    def _garbage(self) -> WireError:
        shown = printable(bytes(self._buffer[self._start : self._start + 60]))
        return WireError(f"no result: {shown!r}")
