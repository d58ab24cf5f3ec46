"""maildirqmtp: forward a maildir to a mail server over QMTP.

Importing the package is cheap and has no side effects. The command line is
`maildirqmtp.cli`; the receiver is `maildirqmtp.receiver.cli`.
"""

from maildirqmtp.errors import (
    ConfigError,
    ConnectError,
    ConnectTimeout,
    EnvelopeError,
    FileChangedError,
    LocalError,
    NetstringError,
    ProtocolError,
    QMTPError,
    ResponseTimeout,
    SidecarError,
    TransportError,
    WriteTimeout,
)

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "ConnectError",
    "ConnectTimeout",
    "EnvelopeError",
    "FileChangedError",
    "LocalError",
    "NetstringError",
    "ProtocolError",
    "QMTPError",
    "ResponseTimeout",
    "SidecarError",
    "TransportError",
    "WriteTimeout",
    "__version__",
]
