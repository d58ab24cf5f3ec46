"""maildirqmtp: send mail over QMTP, from a maildir or from a program.

Importing the package is cheap and has no side effects: each public name is
loaded when it is first used. The programs' entry points are in `maildirqmtp.__main__`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maildirqmtp import netstring
    from maildirqmtp.client.async_client import AsyncQMTPClient
    from maildirqmtp.client.client import QMTPClient
    from maildirqmtp.client.package import Package
    from maildirqmtp.errors import (
        ConfigError,
        ConnectError,
        ConnectTimeout,
        EnvelopeError,
        Fault,
        FileChangedError,
        LocalError,
        NetstringError,
        PackageError,
        ProtocolError,
        QMTPError,
        ResponseTimeout,
        SidecarError,
        TransportError,
        WriteTimeout,
    )
    from maildirqmtp.response import Response, Status
    from maildirqmtp.results import Outcome, SendResult
    from maildirqmtp.transport.tls_options import Tls

__version__ = "1.0.0"

__all__ = [
    "AsyncQMTPClient",
    "ConfigError",
    "ConnectError",
    "ConnectTimeout",
    "EnvelopeError",
    "Fault",
    "FileChangedError",
    "LocalError",
    "NetstringError",
    "Outcome",
    "Package",
    "PackageError",
    "ProtocolError",
    "QMTPClient",
    "QMTPError",
    "Response",
    "ResponseTimeout",
    "SendResult",
    "SidecarError",
    "Status",
    "Tls",
    "TransportError",
    "WriteTimeout",
    "__version__",
    "netstring",
]

#: The module of each public name that is not an exception of `maildirqmtp.errors`.
_HOMES = {
    "AsyncQMTPClient": "maildirqmtp.client.async_client",
    "Outcome": "maildirqmtp.results",
    "Package": "maildirqmtp.client.package",
    "QMTPClient": "maildirqmtp.client.client",
    "Response": "maildirqmtp.response",
    "SendResult": "maildirqmtp.results",
    "Status": "maildirqmtp.response",
    "Tls": "maildirqmtp.transport.tls_options",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name == "netstring":
        return import_module("maildirqmtp.netstring")
    value: object = getattr(import_module(_HOMES.get(name, "maildirqmtp.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
