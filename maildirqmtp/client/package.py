"""A package as a program gives it: sender, recipients, message."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from maildirqmtp.errors import PackageError
from maildirqmtp.qmtp.protocol import ENCODING_CRLF, ENCODING_LF, MAX_RECIPIENTS, check_address
from maildirqmtp.results import as_bytes
from maildirqmtp.text import each_of


class SupportsPath(Protocol):
    """The protocol of `os.PathLike`."""

    def __fspath__(self) -> str | bytes:
        """Return the path."""
        ...


class SupportsRead(Protocol):
    """A binary file object, of which only `read` is needed."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, and b"" at the end."""
        ...


#: An envelope address; str goes out as UTF-8.
MailAddress: TypeAlias = str | bytes
#: A part of a message: the bytes themselves, the path of a file, or an open one.
Part: TypeAlias = bytes | bytearray | memoryview | str | SupportsPath | SupportsRead
#: A message: one part, or several that follow each other.
Message: TypeAlias = Part | Sequence[Part]
#: How the message's lines end: LF, or CR LF.
Encoding: TypeAlias = Literal["unix", "dos"]

_FIRST_BYTE = {"unix": ENCODING_LF, "dos": ENCODING_CRLF}


@dataclass(frozen=True, slots=True, init=False)
class Package:
    """One message, and its sender and recipients.

    `sender` is the envelope sender; `""` is the null sender, and valid.
    `recipients` is one address or several, at most 10,000; they are answered
    one by one, in this order, also if one is listed twice. An address is str
    (sent as UTF-8) or bytes, at most 999 bytes, without NUL, LF and CR.

    `message` is bytes, the path of a file (str or `os.PathLike`), a binary file
    object (sent from its position to its end, and put back there if it can be; one that
    stands at its end is refused when it is sent), or a sequence of such parts;
    b"" is valid. Its text is neither checked nor changed, so it is up to the
    caller to make it a message (RFC 5322). `encoding` says how its lines end:
    "unix" for LF, "dos" for CR LF (qmtp.txt, section 4); it changes nothing in
    the message either.

    Files given by path are opened when the package is sent, and closed after
    that; a file object stays open. As attributes, `sender` and `recipients` are
    bytes.

    Raises `PackageError`, a `ValueError`, if no server takes such a package.
    """

    sender: bytes
    recipients: tuple[bytes, ...]
    message: Message
    encoding: Encoding

    def __init__(
        self,
        sender: MailAddress,
        recipients: MailAddress | Iterable[MailAddress],
        message: Message,
        *,
        encoding: Encoding = "unix",
    ) -> None:
        put = object.__setattr__
        put(self, "sender", as_bytes(sender))
        put(self, "recipients", tuple([as_bytes(recipient) for recipient in each_of(recipients)]))
        put(self, "message", message)
        put(self, "encoding", encoding)
        if wrong := self._wrong():
            raise PackageError(wrong)

    def _wrong(self) -> str | None:
        """Return what no server would take, None if there is nothing."""
        wrong = check_address(self.sender, "sender")
        for recipient in self.recipients:
            wrong = wrong or check_address(recipient, "recipient")
            if not recipient:
                wrong = wrong or "a recipient must not be empty"
        if wrong:
            return wrong
        if not self.recipients:
            return "a package without recipients; servers do not answer it"
        if len(self.recipients) > MAX_RECIPIENTS:
            return f"{len(self.recipients)} recipients; at most {MAX_RECIPIENTS}"
        if self.encoding not in _FIRST_BYTE:
            return f"encoding {self.encoding!r} is neither 'unix' nor 'dos'"
        return None

    @property
    def first_byte(self) -> bytes:
        """The byte before the text in a package, which tells the encoding."""
        return _FIRST_BYTE[self.encoding]
