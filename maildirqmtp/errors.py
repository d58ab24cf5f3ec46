"""The exception tree: whose fault it is, and whether trying again can help.

K, Z and D are values (`response.Response`), never exceptions. An exception
means that there is no answer at all, or that this side cannot go on.
"""

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maildirqmtp.results import SendResult


class Fault(Enum):
    """Who has to do something about an error."""

    SERVER = "server"
    NETWORK = "network"
    MESSAGE = "message"
    LOCAL = "local"
    USAGE = "usage"


class QMTPError(Exception):
    """The base of everything this package raises on purpose.

    `fault` says who has to do something; `permanent` is true if doing the same
    again cannot help. If a client's `send` raises it, `result` is what is known of
    that package: the answers that came, and the other recipients as deferred.
    """

    fault: Fault = Fault.LOCAL
    permanent: bool = False
    result: "SendResult | None" = None


class ProtocolError(QMTPError):
    """The other side sent something that QMTP does not allow; the connection is useless."""

    fault = Fault.SERVER


class NetstringError(ProtocolError):
    """Bytes that are not a netstring, or a netstring longer than its limit."""


class TransportError(QMTPError, OSError):
    """The connection could not be made, or broke; an `OSError` as well."""

    fault = Fault.NETWORK

    def __str__(self) -> str:
        """Return only the text: `OSError` would put `[Errno 111]` before it."""
        return self.strerror or super().__str__()


class ConnectError(TransportError):
    """No connection: name not found, refused, unreachable."""


class ConnectTimeout(ConnectError, TimeoutError):
    """No connection within the connect time-out."""


class WriteTimeout(TransportError, TimeoutError):
    """The server took no byte within the write time-out."""


class ResponseTimeout(TransportError, TimeoutError):
    """A response did not come within the response time-out."""


class EnvelopeError(QMTPError):
    """A message whose envelope is missing, or cannot be sent as it is."""

    fault = Fault.MESSAGE
    permanent = True


class PackageError(EnvelopeError, ValueError):
    """A package whose addresses or size rule out sending it; a `ValueError` as well."""


class SidecarError(EnvelopeError):
    """A sidecar that exists and cannot be used."""


class FileChangedError(QMTPError):
    """A file shrank, vanished or was replaced while it was being sent."""

    fault = Fault.MESSAGE


class LocalError(QMTPError):
    """Trouble on this machine, such as a maildir that cannot be read, changed or locked."""


class LockedError(LocalError):
    """A maildir that another process has locked, perhaps for a moment only."""


class ConfigError(QMTPError):
    """Wrong usage or configuration; exit code 100."""

    fault = Fault.USAGE
    permanent = True
