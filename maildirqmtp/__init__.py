"""maildirqmtp: send mail over QMTP, from a maildir or from a program.

Importing the package is cheap and has no side effects: what is named here is
loaded when it is first used. The command line is `maildirqmtp.cli`; the
receiver is `maildirqmtp.receiver.cli`.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from maildirqmtp import netstring
    from maildirqmtp.address import Tls
    from maildirqmtp.async_client import AsyncQMTPClient
    from maildirqmtp.client import QMTPClient
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
    from maildirqmtp.package import Package
    from maildirqmtp.response import Response, Status
    from maildirqmtp.results import Outcome, SendResult

__version__ = "0.1.0"

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


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "netstring":
        import maildirqmtp.netstring

        return maildirqmtp.netstring
    module: object
    if name == "AsyncQMTPClient":
        from maildirqmtp import async_client

        module = async_client
    elif name == "QMTPClient":
        from maildirqmtp import client

        module = client
    elif name == "Tls":
        from maildirqmtp import address

        module = address
    elif name == "Package":
        from maildirqmtp import package

        module = package
    elif name in ("Response", "Status"):
        from maildirqmtp import response

        module = response
    elif name in ("Outcome", "SendResult"):
        from maildirqmtp import results

        module = results
    else:
        from maildirqmtp import errors

        module = errors
    value: object = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
